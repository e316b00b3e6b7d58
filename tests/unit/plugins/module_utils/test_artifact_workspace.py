# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One artifact for each front end of a workspace, from real files with a small program in pnpm's place."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.bitflow.lms.plugins.filter.wiring import frontend_artifacts
from ansible_collections.bitflow.lms.plugins.module_utils._archive import MANIFEST, Unpacker
from ansible_collections.bitflow.lms.plugins.module_utils._artifact import Build, Provided, Workshop, build_from
from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError

# It installs what is not there, and builds an application from its own file and those of the packages that it has links to.
PNPM = """#!/bin/sh -e
printf '%s\\n' "$*" >> "$CALLS"
if [ "$1" = install ]; then
    for place in . apps/*; do
        place=$place/node_modules
        [ -e "$place/whole" ] && cmp -s pnpm-lock.yaml "$place/whole" && continue
        echo "download ${place#./}" >> "$CALLS"
        mkdir -p "$place"
        [ ! -e "$TROUBLE/install" ] || { echo "registry does not answer"; exit 7; }
        ln -sf ../../../packages/ui ../../../packages/api "$place/"
        cp pnpm-lock.yaml "$place/whole"
    done
    exit 0
fi
app=${2#?apps/} app=${app%?...}
cd "apps/$app"
mkdir -p .next/standalone/apps/$app .next/static
cat index.js $(sed 's|.*|node_modules/&/index.js|' uses) > .next/standalone/apps/$app/server.js
echo "$BUILD_ID" > .next/static/$BUILD_ID.js
if [ -e "$TROUBLE/$app" ]; then
    seq 1 40
    touch "$TROUBLE/$app.waits"
    while [ -e "$TROUBLE/$app.hold" ]; do sleep 0.02; done
    echo "end of trouble" >> "$CALLS"
    [ ! -e "$TROUBLE/$app" ] || { echo "no such component"; exit 3; }
fi
"""

FILES = {
    "package.json": '{"private": true}',
    "pnpm-lock.yaml": "lock 1",
    "apps/student/index.js": "student 1\n",
    "apps/student/uses": "ui\n",
    "apps/admin/index.js": "admin 1\n",
    "apps/admin/uses": "api\n",
    "apps/admin/public/robots.txt": "none",
    "packages/ui/index.js": "ui 1\n",
    "packages/api/index.js": "api 1\n",
    **{
        f"{directory}/package.json": json.dumps({"name": f"@lms/{name}", "dependencies": dict.fromkeys(wanted, "workspace:*")})
        for directory, name, wanted in (
            ("apps/student", "student", ["@lms/ui"]),
            ("apps/admin", "admin", ["@lms/api"]),
            ("packages/ui", "ui", []),
            ("packages/api", "api", []),
        )
    },
}
STEP = {"chdir": ".", "environment": {}}


@dataclass
class Bench:
    """A build host, the files of a source, and what pnpm was told to do."""

    path: Path
    concurrency: int = 1
    files: dict[str, str] = field(default_factory=lambda: dict(FILES))

    def __post_init__(self) -> None:
        for name in ("bin", "trouble"):
            (self.path / name).mkdir()
        (self.path / "bin" / "pnpm").write_text(PNPM)
        (self.path / "bin" / "pnpm").chmod(0o755)
        self.workshop = Workshop(self.path / "build", concurrency=self.concurrency)

    def wanted(self) -> Build:
        """Return what the playbook asks for."""
        artifacts = frontend_artifacts([{"name": "student", "port": 3001}, {"name": "admin", "port": 3002}])
        for entry in artifacts:
            entry["steps"] = [{**STEP, **step} for step in entry["steps"]]
        lock = ["pnpm-lock.yaml"]
        params: dict[str, Any] = {
            "name": "frontend",
            "source": "frontend at abc1234",
            "steps": [{**STEP, "argv": ["pnpm", "install", "--frozen-lockfile"]}],
            "dependencies": [{"lock": lock, "directory": place} for place in ("node_modules", "apps/*/node_modules")],
            "artifacts": [{"exclude": [], **entry} for entry in artifacts],
            "tools": [],
            "required": ["pnpm-lock.yaml"],
            "environment": {
                "PATH": f"{self.path}/bin:{os.environ['PATH']}",
                "CALLS": str(self.path / "calls"),
                "TROUBLE": str(self.path / "trouble"),
            },
            "fingerprint_extra": None,
            "umask": "022",
        }
        return build_from(params)

    def build(self) -> dict[str, Provided]:
        """Build what is not there, as the module does."""
        wanted = self.wanted()
        archive = self.path / "source.tar"
        with tarfile.open(archive, "w") as tar:
            for name, content in self.files.items():
                (self.path / "file").write_text(content)
                tar.add(self.path / "file", name)
        planned = self.workshop.inspect(wanted, archive)
        with self.workshop.locked(wanted):
            provided, _steps = self.workshop.provide(wanted, archive, planned, {})
            self.workshop.tidy(wanted, archive, provided, keep=5)
        return {entry.name: entry for entry in provided}

    def calls(self) -> list[str]:
        """Return what pnpm did since the last time."""
        log = self.path / "calls"
        found = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return found

    def trouble(self, name: str) -> Path:
        """Return the file that gives pnpm trouble."""
        return self.path / "trouble" / name

    def left_at_work(self) -> list[str]:
        """Return what is left of builds that ended."""
        return [str(path) for path in (*self.workshop.work.iterdir(), *self.workshop.kept.glob(".*"), *self.workshop.artifacts.glob(".*"))]


@pytest.fixture(name="make_bench")
def _make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Return what makes build hosts, and let no step wait for ever."""
    yield lambda **values: Bench(tmp_path, **values)
    for trouble in tmp_path.glob("trouble/*"):
        trouble.unlink()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    """Return a build host."""
    return make_bench()


def unpacked(entry: Provided, into: Path) -> dict[str, str]:
    """Unpack an artifact and return its files, without the manifest."""
    into.mkdir(parents=True)
    with Path(entry.path).open("rb") as stream:
        Unpacker(into).unpack(stream)
    return {str(path.relative_to(into)): path.read_text() for path in into.rglob("*") if path.is_file() and path.name != MANIFEST}


def server_of(entry: Provided, into: Path) -> str:
    """Return what an application was built of."""
    return next(content for name, content in unpacked(entry, into).items() if name.endswith("server.js"))


def built(provided: dict[str, Provided]) -> list[str]:
    """Return the names of what was built."""
    return [name for name, entry in provided.items() if entry.built]


STUDENT, ADMIN = "frontend-student", "frontend-admin"
BUILD_STUDENT, BUILD_ADMIN = (f"--filter {{apps/{name}}}... --fail-if-no-match run build" for name in ("student", "admin"))
INSTALL = "install --frozen-lockfile"
DOWNLOADS = ["download node_modules", "download apps/admin/node_modules", "download apps/student/node_modules"]


def test_each_front_end_gets_an_artifact_that_works_alone(bench: Bench, tmp_path: Path) -> None:
    provided = bench.build()

    build_id = provided[STUDENT].artifact.fingerprint[:20]
    assert unpacked(provided[STUDENT], tmp_path / "student") == {
        "apps/student/server.js": "student 1\nui 1\n",
        f"apps/student/.next/static/{build_id}.js": f"{build_id}\n",
    }
    assert sorted(unpacked(provided[ADMIN], tmp_path / "admin")) == [
        f"apps/admin/.next/static/{provided[ADMIN].artifact.fingerprint[:20]}.js",
        "apps/admin/public/robots.txt",
        "apps/admin/server.js",
    ]
    assert bench.calls() == [INSTALL, *DOWNLOADS, BUILD_STUDENT, BUILD_ADMIN]
    assert bench.left_at_work() == []


def test_nothing_runs_when_every_artifact_is_there(bench: Bench) -> None:
    first = bench.build()
    bench.calls()

    again = bench.build()

    assert bench.calls() == []
    assert {name: entry.artifact for name, entry in again.items()} == {name: entry.artifact for name, entry in first.items()}
    assert built(again) == []


def test_a_change_in_one_app_rebuilds_only_that_one(bench: Bench, tmp_path: Path) -> None:
    first = bench.build()
    bench.calls()
    bench.files["apps/student/index.js"] = "student 2\n"

    second = bench.build()

    assert built(second) == [STUDENT]
    assert second[ADMIN].artifact == first[ADMIN].artifact
    assert bench.calls() == [INSTALL, BUILD_STUDENT]
    assert server_of(second[STUDENT], tmp_path / "student") == "student 2\nui 1\n"


def test_a_change_in_a_shared_package_rebuilds_what_depends_on_it(bench: Bench, tmp_path: Path) -> None:
    bench.build()
    bench.files["packages/ui/index.js"] = "ui 2\n"

    second = bench.build()

    assert built(second) == [STUDENT]
    assert server_of(second[STUDENT], tmp_path / "student") == "student 1\nui 2\n"


def test_a_change_outside_of_every_package_rebuilds_all(bench: Bench) -> None:
    bench.build()
    bench.files["tsconfig.base.json"] = "{}"

    assert built(bench.build()) == [STUDENT, ADMIN]


def test_an_unchanged_lock_file_needs_no_download_and_a_changed_one_does(bench: Bench) -> None:
    bench.build()
    bench.calls()
    bench.files["apps/student/index.js"] = "student 2\n"
    bench.build()
    assert [call for call in bench.calls() if call.startswith("download")] == []

    bench.files["pnpm-lock.yaml"] = "lock 2"
    bench.build()
    assert [call for call in bench.calls() if call.startswith("download")] == DOWNLOADS

    # Back on the branch with the first lock file, whose dependencies were kept too.
    bench.files.update({"pnpm-lock.yaml": "lock 1", "apps/student/index.js": "student 3\n"})
    bench.build()
    assert [call for call in bench.calls() if call.startswith("download")] == []


def test_a_failing_install_leaves_no_artifact_and_no_half_filled_dependencies(bench: Bench) -> None:
    bench.trouble("install").touch()

    with pytest.raises(CommandError) as caught:
        bench.build()

    log = f"{bench.workshop.logs}/frontend.log"
    assert caught.value.message == (
        "Step 1 of 1 of building frontend at abc1234, pnpm install --frozen-lockfile, ended with status 7 (registry does not answer). "
        f"The end of its output is in output_lines, the whole in {log}."
    )
    assert caught.value.details["output_lines"] == ["registry does not answer"]
    assert [list(directory.iterdir()) for directory in (bench.workshop.artifacts, bench.workshop.kept, bench.workshop.work)] == [[], [], []]

    bench.trouble("install").unlink()
    bench.calls()
    assert built(bench.build()) == [STUDENT, ADMIN]
    assert bench.calls()[1:4] == DOWNLOADS


def test_a_failing_install_does_not_give_back_what_it_may_have_spoilt(bench: Bench) -> None:
    bench.build()
    bench.files["apps/student/index.js"] = "student 2\n"
    for kept in bench.workshop.kept.glob("*/*/whole"):
        kept.unlink()
    bench.trouble("install").touch()

    with pytest.raises(CommandError):
        bench.build()

    assert list(bench.workshop.kept.iterdir()) == []


def test_a_failing_build_keeps_what_is_whole(bench: Bench) -> None:
    bench.trouble("student").touch()

    with pytest.raises(
        CommandError, match=r"Step 1 of 1 of building frontend-student of frontend at abc1234, pnpm .* status 3 \(no such component\)\."
    ) as caught:
        bench.build()

    details = caught.value.details
    assert details["output_lines"] == [*map(str, range(12, 41)), "no such component"]
    assert details["log"] == f"{bench.workshop.logs}/frontend-student.log"
    assert (details["broken"], details["built"]) == ([STUDENT], [])
    assert list(bench.workshop.artifacts.iterdir()) == []
    assert list(bench.workshop.work.iterdir()) == []

    bench.trouble("student").unlink()
    bench.calls()
    assert built(bench.build()) == [STUDENT, ADMIN]
    assert bench.calls() == [INSTALL, BUILD_STUDENT, BUILD_ADMIN]


def test_what_was_built_beside_a_failing_one_is_not_built_again(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(concurrency=2)
    bench.trouble("student").touch()
    bench.trouble("student.hold").touch()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(CommandError):
            bench.build()
        os._exit(0)
    wait_until(lambda: list(bench.workshop.artifacts.glob(f"{ADMIN}-*.json")))
    bench.trouble("student.hold").unlink()
    os.waitpid(child, 0)

    bench.trouble("student").unlink()

    assert built(bench.build()) == [STUDENT]


def test_side_by_side_the_same_artifacts_are_built(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "wide").mkdir()
    wide = Bench(tmp_path / "wide", concurrency=2)

    narrow_files, wide_files = (
        {name: server_of(entry, tmp_path / place / name) for name, entry in made.items()}
        for place, made in (("a", bench.build()), ("b", wide.build()))
    )

    assert narrow_files == wide_files


def test_a_build_that_reads_what_its_package_does_not_name_fails(bench: Bench) -> None:
    bench.files["apps/student/uses"] = "ui\napi\n"

    with pytest.raises(CommandError, match="building frontend-student") as caught:
        bench.build()

    assert "node_modules/api/index.js" in caught.value.details["output_lines"][-1]


def test_the_artifacts_can_share_one_tree(bench: Bench, tmp_path: Path) -> None:
    provided = bench.build()
    trees = [unpacked(entry, tmp_path / name) for name, entry in provided.items()]

    assert all(trees[0][path] == trees[1][path] for path in set(trees[0]) & set(trees[1]))
    assert {path.split("/")[1] for tree in trees for path in tree} == {"student", "admin"}


def wait_until(condition: Any) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def open_files(process: int) -> list[str]:
    """Return the files that a process has open."""
    found = []
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(descriptor.readlink()))
    return found


@pytest.fixture
def killed(bench: Bench) -> Bench:
    """Return a build host whose build was killed in the middle of a step that still runs."""
    for name in ("student", "student.hold"):
        bench.trouble(name).touch()
    child = os.fork()
    if child == 0:
        bench.build()
        os._exit(1)
    wait_until(bench.trouble("student.waits").exists)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return bench


def test_the_next_build_waits_for_what_a_killed_one_had_started(killed: Bench) -> None:
    child = os.fork()
    if child == 0:
        killed.build()
        os._exit(0)
    wait_until(lambda: str(killed.workshop.directory / ".frontend.lock") in open_files(child))
    # Long enough to begin, if nothing held it back.
    time.sleep(0.3)

    killed.trouble("student").unlink()
    killed.trouble("student.hold").unlink()

    assert os.waitpid(child, 0)[1] == 0
    assert killed.calls() == [INSTALL, *DOWNLOADS, BUILD_STUDENT, "end of trouble", INSTALL, *DOWNLOADS, BUILD_STUDENT, BUILD_ADMIN]
    assert built(killed.build()) == []


def test_nothing_of_a_killed_build_is_trusted(killed: Bench, tmp_path: Path) -> None:
    killed.trouble("student").unlink()
    killed.calls()
    killed.trouble("student.hold").unlink()
    killed.files["apps/student/index.js"] = "student 2\n"
    assert list(killed.workshop.kept.iterdir()) == []
    assert list(killed.workshop.artifacts.iterdir()) == []

    provided = killed.build()

    assert killed.calls() == ["end of trouble", INSTALL, *DOWNLOADS, BUILD_STUDENT, BUILD_ADMIN]
    assert server_of(provided[STUDENT], tmp_path / "student") == "student 2\nui 1\n"
    assert killed.left_at_work() == []
