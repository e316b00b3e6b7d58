# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Artifacts are built once, from real archives with real programs."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._archive import MANIFEST
from ansible_collections.bitflow.lms.plugins.module_utils._artifact import (
    NOT_KNOWN,
    Artifact,
    Build,
    Collected,
    Dependency,
    Provided,
    Recipe,
    Step,
    Workshop,
    build_from,
    fingerprint,
    is_excluded,
    result,
    summary,
    what_it_said,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import locked

FILES = {"artisan": "php", "composer.lock": "lock 1", "public/index.php": "<?php", "tests/x.php": "test"}

PARAMS: dict[str, Any] = {
    "name": "backend",
    "source": None,
    "steps": [],
    "dependencies": [],
    "artifacts": None,
    "tools": [],
    "collect": None,
    "exclude": [],
    "required": [],
    "environment": {},
    "fingerprint_extra": None,
    "umask": "022",
}


def shell(script: str, **values: Any) -> Step:
    """Return a step that runs a script."""
    return Step(("sh", "-ec", script), **values)


def make_archive(path: Path, files: dict[str, str], executable: str = "artisan") -> Path:
    """Write a source archive, as git does."""
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o775 if name == executable else 0o664
            member.mtime = int(path.parent.stat().st_mtime)
            tar.addfile(member, io.BytesIO(content.encode()))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Return a source archive."""
    return make_archive(tmp_path / "source.tar", FILES)


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """Return the directory of a build host."""
    return Workshop(tmp_path / "build")


def backend(*steps: Step, name: str = "backend", collect: tuple[Collected, ...] | None = None, exclude: Any = (), **common: Any) -> Build:
    """Return the build of one artifact."""
    recipe = Recipe(name, steps, collect or (Collected(".", "."),), exclude)
    return Build(name, "backend at abc1234", (recipe,), **common)


def provide(workshop: Workshop, wanted: Build, archive: Path, **secrets: str) -> list[Provided]:
    """Build what is not there, as the module does."""
    planned = workshop.inspect(wanted, archive)
    with workshop.locked(wanted):
        return workshop.provide(wanted, archive, planned, secrets)[0]


def build(workshop: Workshop, wanted: Build, archive: Path, **secrets: str) -> Artifact:
    """Build the only artifact, unless it is there."""
    return provide(workshop, wanted, archive, **secrets)[0].artifact


def number_of(workshop: Workshop, wanted: Build, archive: Path) -> str:
    """Return the fingerprint that the only artifact would have."""
    return workshop.inspect(wanted, archive).numbers[wanted.name]


def content(workshop: Workshop, artifact: Artifact, name: str = "backend") -> dict[str, str]:
    """Return what an artifact holds, without its manifest."""
    with tarfile.open(workshop.path_of(name, artifact.fingerprint)) as tar:
        found = {member.name: tar.extractfile(member) for member in tar}
        return {name: stream.read().decode() if stream else "" for name, stream in found.items() if name != MANIFEST}


def test_an_artifact_holds_the_tree_that_the_steps_leave(workshop: Workshop, archive: Path) -> None:
    wanted = backend(shell("mkdir vendor; echo dependency > vendor/autoload.php"), exclude=("tests",))

    artifact = build(workshop, wanted, archive)

    path = workshop.path_of("backend", artifact.fingerprint)
    assert content(workshop, artifact) == {
        "artisan": "php",
        "composer.lock": "lock 1",
        "public": "",
        "public/index.php": "<?php",
        "vendor": "",
        "vendor/autoload.php": "dependency\n",
    }
    expected = Artifact(number_of(workshop, wanted, archive), hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size, 4)
    assert artifact == expected
    assert workshop.find("backend", artifact.fingerprint) == expected
    assert path.name == f"backend-{artifact.fingerprint[:16]}.tar.gz"
    assert sorted(entry.name for entry in workshop.work.iterdir()) == []
    with tarfile.open(path) as tar:
        assert {member.name: member.mode for member in tar if member.isreg()} == {
            MANIFEST: 0o644,
            "artisan": 0o755,
            "composer.lock": 0o644,
            "public/index.php": 0o644,
            "vendor/autoload.php": 0o644,
        }


def test_the_same_source_gives_the_same_bytes(workshop: Workshop, archive: Path, tmp_path: Path) -> None:
    wanted = backend()
    first = build(workshop, wanted, archive)
    os.utime(tmp_path, (1, 1))

    assert build(Workshop(tmp_path / "other"), wanted, make_archive(tmp_path / "again.tar", FILES)) == first


@pytest.mark.skipif(shutil.which("pigz") is None, reason="pigz is not installed")
def test_pigz_packs_the_same_archive(tmp_path: Path, archive: Path) -> None:
    wanted = backend()
    workshops = [Workshop(tmp_path / "a"), Workshop(tmp_path / "b", pigz=shutil.which("pigz"))]

    paths = [workshop.path_of("backend", build(workshop, wanted, archive).fingerprint) for workshop in workshops]

    assert len({gzip.decompress(path.read_bytes()) for path in paths}) == 1


RECIPE = Recipe("backend")


@pytest.mark.parametrize(
    "change",
    [
        {"steps": (shell("true"),)},
        {"collect": (Collected("public", "."),)},
        {"exclude": ("tests",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_artifact_depends_on_its_recipe(change: dict[str, Any]) -> None:
    assert fingerprint(backend(), replace(RECIPE, **change), "content") != fingerprint(backend(), RECIPE, "content")


@pytest.mark.parametrize(
    "change",
    [
        {"steps": (shell("true"),)},
        {"environment": {"A": "1"}},
        {"extra": {"php": "8.4"}},
        {"umask": 0o027},
        {"dependencies": (Dependency(("composer.lock",), "vendor"),)},
        {"tools": (("php", "--version"),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_artifact_depends_on_what_all_of_its_source_share(change: dict[str, Any]) -> None:
    assert fingerprint(replace(backend(), **change), RECIPE, "content") != fingerprint(backend(), RECIPE, "content")


def test_an_artifact_depends_on_the_content_and_on_what_the_tools_say() -> None:
    known = fingerprint(backend(), RECIPE, "content", ("PHP 8.4.1",))

    assert fingerprint(backend(), RECIPE, "other", ("PHP 8.4.1",)) != known
    assert fingerprint(backend(), RECIPE, "content", ("PHP 8.4.2",)) != known


def test_an_artifact_depends_neither_on_the_words_of_messages_nor_on_its_neighbours() -> None:
    other = replace(backend(), source="backend at def5678", required=("artisan",), recipes=(RECIPE, Recipe("admin")))

    assert fingerprint(other, RECIPE, "content") == fingerprint(backend(), RECIPE, "content")


def test_an_artifact_whose_bytes_changed_is_not_found(workshop: Workshop, archive: Path) -> None:
    wanted = backend()
    artifact = build(workshop, wanted, archive)
    path = workshop.path_of("backend", artifact.fingerprint)
    path.write_bytes(path.read_bytes()[:-1] + b"\1")

    assert workshop.find("backend", artifact.fingerprint) is None
    assert build(workshop, wanted, archive) == artifact
    assert workshop.find("backend", artifact.fingerprint) == artifact


def test_an_artifact_without_its_record_is_not_found(workshop: Workshop, archive: Path) -> None:
    wanted = backend()
    artifact = build(workshop, wanted, archive)
    next(workshop.artifacts.glob("*.json")).unlink()

    assert workshop.find("backend", artifact.fingerprint) is None


def test_required_paths_are_missed_before_anything_runs(workshop: Workshop, archive: Path) -> None:
    wanted = backend(required=("artisan", "public", "bootstrap/app.php"))

    with pytest.raises(LmsError, match=r"backend at abc1234 has no bootstrap/app\.php\."):
        workshop.inspect(wanted, archive)


def test_a_source_archive_that_is_not_there_is_an_error(workshop: Workshop) -> None:
    with pytest.raises(LmsError, match="The source archive /nowhere is not on this host"):
        workshop.inspect(backend(), Path("/nowhere"))


def test_a_failing_step_tells_which_and_shows_the_end_of_its_output(workshop: Workshop, archive: Path) -> None:
    steps = (shell("echo first"), shell("seq 1 40; echo wrong >&2; exit 3"), shell("echo never"))
    wanted = backend(*steps)

    with pytest.raises(
        CommandError, match=r"Step 2 of 3 of building backend at abc1234, sh -ec .*, ended with status 3 \(wrong\)\."
    ) as caught:
        build(workshop, wanted, archive)

    details = caught.value.details
    assert (details["step"], details["rc"], details["cmd"]) == (2, 3, list(steps[1].argv))
    assert details["output_lines"] == [*map(str, range(12, 41)), "wrong"]
    assert list(workshop.artifacts.iterdir()) == []
    assert list(workshop.work.iterdir()) == []
    log = workshop.logs / "backend.log"
    assert log.read_text().startswith("$ sh -ec 'echo first'\nfirst\n$ sh -ec")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_program_that_is_not_installed_is_named(workshop: Workshop, archive: Path) -> None:
    with pytest.raises(CommandError, match="Step 1 of building backend at abc1234 needs no-such-program, which is not installed"):
        build(workshop, backend(Step(("no-such-program",))), archive)
    with pytest.raises(LmsError, match=r"Building backend at abc1234 in .* failed: .*no-such-script"):
        build(workshop, backend(Step(("./no-such-script",))), archive)


def test_a_directory_to_run_in_that_is_not_there_is_named(workshop: Workshop, archive: Path) -> None:
    with pytest.raises(LmsError, match="Step 1 of building backend at abc1234 is to run in apps"):
        build(workshop, backend(shell("true", chdir="apps")), archive)


def test_a_step_sees_a_clean_environment(workshop: Workshop, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAK", "x")
    step = shell("env > ../seen", chdir="public", environment={"STEP": "2", "BOTH": "step"})
    wanted = backend(step, environment={"ALL": "1", "BOTH": "all"})

    found = content(workshop, build(workshop, wanted, archive, TOKEN="secret"))["seen"].splitlines()

    variables = dict(line.split("=", 1) for line in found if not line.startswith(("PWD=", "OLDPWD=", "SHLVL=", "_=")))
    assert variables == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(workshop.home),
        "LC_ALL": "C.UTF-8",
        "CI": "1",
        "ALL": "1",
        "STEP": "2",
        "BOTH": "step",
        "TOKEN": "secret",
        "BUILD_ID": number_of(workshop, wanted, archive)[:20],
    }


def test_what_is_collected_can_be_moved_and_the_later_entry_wins(workshop: Workshop, archive: Path) -> None:
    wanted = backend(collect=(Collected("public", "app/public"), Collected("artisan", "app/public/index.php")))

    found = content(workshop, build(workshop, wanted, archive))

    assert found == {"app/public": "", "app/public/index.php": "php"}


def test_what_is_collected_must_be_there(workshop: Workshop, archive: Path) -> None:
    with pytest.raises(LmsError, match=r"collect names \.next/standalone, which the steps did not make"):
        build(workshop, backend(collect=(Collected(".next/standalone", "."),)), archive)


@pytest.mark.parametrize(
    ("path", "patterns", "excluded"),
    [
        ("vendor/x/.git/config", [".git"], True),
        (".gitignore", [".git"], False),
        ("public/app.js.map", ["*.map"], True),
        ("tests/a/b.php", ["tests/"], True),
        ("vendor/tests", ["/tests"], False),
        ("tests", ["/tests"], True),
        ("storage/logs/a.log", ["storage/logs"], True),
        ("app/storage/logs/a.log", ["storage/logs"], False),
        ("apps/x/node_modules/y", ["apps/*/node_modules"], True),
    ],
)
def test_patterns_of_paths_to_leave_out(path: str, patterns: list[str], excluded: bool) -> None:
    assert is_excluded(path, patterns) is excluded


INSTALL = shell("test -e vendor/installed || { mkdir -p vendor; cp composer.lock vendor/installed; echo fresh > fresh; }")
WITH_DEPENDENCY = backend(INSTALL, dependencies=(Dependency(("composer.lock",), "vendor"),))


def test_dependencies_are_there_for_the_next_build_with_the_same_lock(workshop: Workshop, archive: Path, tmp_path: Path) -> None:
    first = content(workshop, build(workshop, WITH_DEPENDENCY, archive))
    changed = make_archive(tmp_path / "changed.tar", {**FILES, "artisan": "php 2"})

    second = content(workshop, build(workshop, WITH_DEPENDENCY, changed))
    again = make_archive(tmp_path / "again.tar", {**FILES, "artisan": "php 3"})
    third = content(workshop, build(workshop, WITH_DEPENDENCY, again))

    assert "fresh" in first
    assert "fresh" not in second
    assert {**second, "artisan": "php 3"} == third
    assert second["vendor/installed"] == "lock 1"


def test_dependencies_of_another_lock_are_installed_anew(workshop: Workshop, archive: Path, tmp_path: Path) -> None:
    build(workshop, WITH_DEPENDENCY, archive)
    changed = make_archive(tmp_path / "changed.tar", {**FILES, "composer.lock": "lock 2"})

    found = content(workshop, build(workshop, WITH_DEPENDENCY, changed))

    assert (found["fresh"], found["vendor/installed"]) == ("fresh\n", "lock 2")


def test_a_failed_build_gives_no_half_filled_dependencies_back(workshop: Workshop, archive: Path) -> None:
    failing = replace(WITH_DEPENDENCY, steps=(INSTALL, shell("exit 1")))

    with pytest.raises(CommandError):
        build(workshop, failing, archive)

    assert list(workshop.kept.iterdir()) == []


def test_without_a_lock_file_nothing_is_kept(workshop: Workshop, tmp_path: Path) -> None:
    unlocked = make_archive(tmp_path / "unlocked.tar", {"artisan": "php"})

    build(workshop, replace(WITH_DEPENDENCY, recipes=(Recipe("backend", (shell("mkdir vendor"),)),)), unlocked)

    assert list(workshop.kept.iterdir()) == []


def test_what_a_tool_prints_is_part_of_the_fingerprint(workshop: Workshop, archive: Path, tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text("8.4.1")
    wanted = backend(tools=(("cat", str(version)),))
    first = number_of(workshop, wanted, archive)
    version.write_text("8.4.2")

    assert number_of(workshop, wanted, archive) != first


def test_a_tool_that_fails_is_named(workshop: Workshop, archive: Path) -> None:
    with pytest.raises(CommandError, match="sh -c 'exit 3', which tools names, ended with status 3"):
        workshop.inspect(backend(tools=(("sh", "-c", "exit 3"),)), archive)
    with pytest.raises(CommandError, match="Building backend at abc1234 needs no-such-php, which is not installed"):
        workshop.inspect(backend(tools=(("no-such-php",),)), archive)


def test_what_a_killed_build_left_is_removed(workshop: Workshop, archive: Path) -> None:
    wanted = backend(shell("! test -e stale"))
    (workshop.work / "backend" / "source").mkdir(parents=True)
    (workshop.work / "backend" / "source" / "stale").write_text("")
    workshop.artifacts.mkdir()
    (workshop.artifacts / f".backend-{number_of(workshop, wanted, archive)[:16]}.tar.gz.tmp").write_text("half")

    build(workshop, wanted, archive)

    assert list(workshop.work.iterdir()) == []
    assert [path.suffix for path in sorted(workshop.artifacts.iterdir())] == [".json", ".gz"]


def test_two_builds_of_a_name_wait_for_each_other(workshop: Workshop, archive: Path) -> None:
    wanted = backend()
    begin, entered = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.read(begin[0], 1)
        with workshop.locked(wanted):
            os.write(entered[1], b"child")
        os._exit(0)
    with workshop.locked(wanted):
        os.write(begin[1], b".")
        with (
            pytest.raises(LmsError, match="Another build of backend is still at work"),
            locked(workshop.directory / ".backend.lock", "Another build of backend", 0),
        ):
            pass
        os.write(entered[1], b"parent ")
    os.waitpid(child, 0)

    assert os.read(entered[0], 100) == b"parent child"


def test_what_was_not_used_for_longest_goes_first(workshop: Workshop, archive: Path, tmp_path: Path) -> None:
    names = []
    for number in range(4):
        artifact = build(workshop, backend(), make_archive(tmp_path / "source.tar", {**FILES, "artisan": str(number)}))
        path = workshop.path_of("backend", artifact.fingerprint)
        names.append(path.name)
        os.utime(path.with_name(path.name.replace(".tar.gz", ".json")), (number + 1000, number + 1000))
    build(workshop, backend(name="backend-admin"), archive)
    for orphan in ("backend-0123456789abcdef.tar.gz", ".backend-fedcba9876543210.tar.gz.tmp", ".backend-admin-fedcba9876543210.tar.gz.tmp"):
        (workshop.artifacts / orphan).write_text("half")
    oldest = make_archive(tmp_path / "source.tar", {**FILES, "artisan": "0"})

    removed = workshop.tidy(backend(), oldest, provide(workshop, backend(), oldest), keep=2)

    assert removed == sorted(["backend-0123456789abcdef.tar.gz", names[1], names[2]])
    left = sorted(path.name for path in workshop.artifacts.iterdir() if not path.name.endswith(".json"))
    assert [name for name in left if "admin" not in name] == sorted([names[0], names[3]])
    assert ".backend-admin-fedcba9876543210.tar.gz.tmp" in left


def test_dependencies_of_the_last_two_locks_are_kept(workshop: Workshop, tmp_path: Path) -> None:
    archives = [make_archive(tmp_path / f"{number}.tar", {**FILES, "composer.lock": f"lock {number}"}) for number in range(3)]
    for number, changed in enumerate(archives):
        made = provide(workshop, WITH_DEPENDENCY, changed)
        for kept in workshop.kept.iterdir():
            os.utime(kept, (kept.stat().st_mtime - 10, kept.stat().st_mtime - 10))
        (workshop.kept / f".backend-{number}.new").mkdir()
        workshop.tidy(WITH_DEPENDENCY, changed, made, keep=5)

    assert sorted(path.read_text() for path in workshop.kept.glob("*/*/installed")) == ["lock 1", "lock 2"]
    assert len(list(workshop.kept.iterdir())) == 2


def test_a_real_tar_unpacks_an_artifact_and_sha256sum_proves_it(workshop: Workshop, archive: Path, tmp_path: Path) -> None:
    wanted = backend()
    path = workshop.path_of("backend", build(workshop, wanted, archive).fingerprint)
    target = tmp_path / "target"
    target.mkdir()

    subprocess.run(["tar", "-xzf", str(path), "-C", str(target)], check=True)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", MANIFEST], cwd=target, check=True)

    assert sorted(found.name for found in target.iterdir()) == [MANIFEST, "artisan", "composer.lock", "public", "tests"]


def test_a_build_is_read_from_options() -> None:
    params = {
        **PARAMS,
        "source": "backend at abc1234",
        "steps": [{"argv": ["composer", "install"], "chdir": "./api/", "environment": {"A": 1, "B": None}}],
        "dependencies": [{"lock": ["composer.lock"], "directory": "vendor"}],
        "collect": [{"from": "public", "to": ".", "optional": True}],
        "exclude": [".git"],
        "required": ["artisan"],
        "environment": {"C": True, "D": {"http-basic": {}}},
        "fingerprint_extra": ["8.4"],
        "tools": [["php", "--version"]],
        "umask": "027",
    }

    assert build_from(params) == Build(
        "backend",
        "backend at abc1234",
        (
            Recipe(
                "backend",
                (Step(("composer", "install"), "api", {"A": "1", "B": ""}),),
                (Collected("public", ".", optional=True),),
                (".git",),
            ),
        ),
        (),
        (Dependency(("composer.lock",), "vendor"),),
        ("artisan",),
        {"C": "True", "D": '{"http-basic": {}}'},
        ["8.4"],
        (("php", "--version"),),
        0o027,
    )
    assert build_from(PARAMS) == Build("backend", "backend", (RECIPE,))


ENTRY: dict[str, Any] = {"name": "student", "package": "", "steps": [], "collect": None, "exclude": []}


def test_several_artifacts_share_the_steps_of_their_source() -> None:
    steps = [{"argv": ["pnpm", "install"], "chdir": ".", "environment": {}}]
    entry = {**ENTRY, "package": "apps/student", "steps": [{"argv": ["pnpm", "build"], "chdir": ".", "environment": {}}]}

    assert build_from({**PARAMS, "name": "frontend", "steps": steps, "artifacts": [entry]}) == Build(
        "frontend",
        "frontend",
        (Recipe("student", (Step(("pnpm", "build")),), package="apps/student"),),
        (Step(("pnpm", "install")),),
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "../x"},
        {"name": ""},
        {"steps": [{"argv": [], "chdir": ".", "environment": {}}]},
        {"steps": [{"argv": ["x"], "chdir": "../up", "environment": {}}]},
        {"dependencies": [{"lock": ["/etc/passwd"], "directory": "vendor"}]},
        {"dependencies": [{"lock": ["x"], "directory": "."}]},
        {"collect": [{"from": "../up", "to": "."}]},
        {"collect": [{"from": ".", "to": "/etc"}]},
        {"required": ["../x"]},
        {"umask": "9"},
        {"tools": [[]]},
        {"artifacts": []},
        {"artifacts": [{**ENTRY, "name": "backend"}]},
        {"artifacts": [ENTRY, ENTRY]},
        {"artifacts": [{**ENTRY, "name": "../x"}]},
        {"artifacts": [{**ENTRY, "package": "../x"}]},
    ],
)
def test_hostile_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(LmsError):
        build_from({**PARAMS, **wrong})


def test_a_result_says_nothing_of_what_is_not_known_yet() -> None:
    nothing: dict[str, Any] = {"artifact": "", "sha256": "", "size": 0, "files": 0, "fingerprint": "", "steps": [], "seconds": 0.0}

    assert result(backend(), [Provided("backend", "", NOT_KNOWN, built=True)]) == {
        **nothing,
        "changed": True,
        "artifacts": [{**nothing, "name": "backend", "built": True}],
        "reused": False,
        "summary": ["backend: would be built"],
        "removed": [],
    }


def test_the_summary_tells_what_took_the_time() -> None:
    artifact = Artifact("f", "s", 1, 1)
    step = {"argv": ["pnpm", "run", "build"], "seconds": 19.84}
    provided = [
        Provided("frontend-student", "/x", artifact, built=True, seconds=21.3, steps=(step,)),
        Provided("frontend-admin", "/x", artifact, built=False),
    ]

    assert summary(backend(name="frontend"), provided, [{"argv": ["pnpm", "install"], "seconds": 1.0}]) == [
        "frontend: pnpm install, 1.0 s",
        "frontend-student: pnpm run build, 19.8 s",
        "frontend-student: built in 21.3 s",
        "frontend-admin: unchanged, used again",
    ]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ["10 files", "build: \x1b[31mError:\x1b[0m Turbopack build failed with 1 error:", "Exit status 1"],
            " (build: Error: Turbopack build failed with 1 error)",
        ),
        (["  Problem 1", "    - laravel/framework needs php ^8.3", "exit 2"], " (Problem 1)"),
        (["everything went wrong", ""], " (everything went wrong)"),
        (["", " "], ""),
        ([], ""),
        (["error " + "x" * 1000], " (error " + "x" * 294 + ")"),
    ],
)
def test_the_message_of_a_failed_step_says_what_the_program_said(lines: list[str], said: str) -> None:
    assert what_it_said(lines) == said
