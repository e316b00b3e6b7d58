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
    Artifact,
    Collected,
    Dependency,
    Recipe,
    Step,
    Workshop,
    fingerprint,
    is_excluded,
    oldest_beyond,
    recipe_from,
    result,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import locked

FILES = {"artisan": "php", "composer.lock": "lock 1", "public/index.php": "<?php", "tests/x.php": "test"}

PARAMS: dict[str, Any] = {
    "name": "backend",
    "source": None,
    "steps": [],
    "dependencies": [],
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


def build(workshop: Workshop, recipe: Recipe, archive: Path, **secrets: str) -> Artifact:
    """Build an artifact, whether it is there or not."""
    number = workshop.inspect(recipe, archive)
    with workshop.locked(recipe):
        return workshop.build(recipe, archive, number, secrets)[0]


def content(workshop: Workshop, recipe: Recipe, artifact: Artifact) -> dict[str, str]:
    """Return what an artifact holds, without its manifest."""
    with tarfile.open(workshop.path_of(recipe, artifact.fingerprint)) as tar:
        found = {member.name: tar.extractfile(member) for member in tar}
        return {name: stream.read().decode() if stream else "" for name, stream in found.items() if name != MANIFEST}


def test_an_artifact_holds_the_tree_that_the_steps_leave(workshop: Workshop, archive: Path) -> None:
    recipe = Recipe("backend", "backend at abc1234", (shell("mkdir vendor; echo dependency > vendor/autoload.php"),), exclude=("tests",))

    artifact = build(workshop, recipe, archive)

    path = workshop.path_of(recipe, artifact.fingerprint)
    assert content(workshop, recipe, artifact) == {
        "artisan": "php",
        "composer.lock": "lock 1",
        "public": "",
        "public/index.php": "<?php",
        "vendor": "",
        "vendor/autoload.php": "dependency\n",
    }
    expected = Artifact(workshop.inspect(recipe, archive), hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size, 4)
    assert artifact == expected
    assert workshop.find(recipe, artifact.fingerprint) == expected
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
    recipe = Recipe("backend", "backend")
    first = build(workshop, recipe, archive)
    os.utime(tmp_path, (1, 1))

    assert build(Workshop(tmp_path / "other"), recipe, make_archive(tmp_path / "again.tar", FILES)) == first


@pytest.mark.skipif(shutil.which("pigz") is None, reason="pigz is not installed")
def test_pigz_packs_the_same_archive(tmp_path: Path, archive: Path) -> None:
    recipe = Recipe("backend", "backend")
    workshops = [Workshop(tmp_path / "a"), Workshop(tmp_path / "b", pigz=shutil.which("pigz"))]

    paths = [workshop.path_of(recipe, build(workshop, recipe, archive).fingerprint) for workshop in workshops]

    assert len({gzip.decompress(path.read_bytes()) for path in paths}) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"steps": (shell("true"),)},
        {"environment": {"A": "1"}},
        {"collect": (Collected("public", "."),)},
        {"exclude": ("tests",)},
        {"extra": {"php": "8.4"}},
        {"umask": 0o027},
        {"dependencies": (Dependency(("composer.lock",), "vendor"),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_that_the_result_depends_on_is_in_the_fingerprint(change: dict[str, Any]) -> None:
    recipe = Recipe("backend", "backend")

    assert fingerprint(replace(recipe, **change), "content") != fingerprint(recipe, "content")
    assert fingerprint(recipe, "other") != fingerprint(recipe, "content")


def test_the_words_of_messages_are_not_in_the_fingerprint() -> None:
    recipe = Recipe("backend", "backend at abc1234")

    assert fingerprint(replace(recipe, source="backend at def5678", required=("artisan",)), "c") == fingerprint(recipe, "c")


def test_an_artifact_whose_bytes_changed_is_not_found(workshop: Workshop, archive: Path) -> None:
    recipe = Recipe("backend", "backend")
    artifact = build(workshop, recipe, archive)
    path = workshop.path_of(recipe, artifact.fingerprint)
    path.write_bytes(path.read_bytes()[:-1] + b"\1")

    assert workshop.find(recipe, artifact.fingerprint) is None
    assert build(workshop, recipe, archive) == artifact
    assert workshop.find(recipe, artifact.fingerprint) == artifact


def test_an_artifact_without_its_record_is_not_found(workshop: Workshop, archive: Path) -> None:
    recipe = Recipe("backend", "backend")
    artifact = build(workshop, recipe, archive)
    next(workshop.artifacts.glob("*.json")).unlink()

    assert workshop.find(recipe, artifact.fingerprint) is None


def test_required_paths_are_missed_before_anything_runs(workshop: Workshop, archive: Path) -> None:
    recipe = Recipe("backend", "backend at abc1234", required=("artisan", "public", "bootstrap/app.php"))

    with pytest.raises(LmsError, match=r"backend at abc1234 has no bootstrap/app\.php\."):
        workshop.inspect(recipe, archive)


def test_a_source_archive_that_is_not_there_is_an_error(workshop: Workshop) -> None:
    with pytest.raises(LmsError, match="The source archive /nowhere is not on this host"):
        workshop.inspect(Recipe("backend", "backend"), Path("/nowhere"))


def test_a_failing_step_tells_which_and_shows_the_end_of_its_output(workshop: Workshop, archive: Path) -> None:
    steps = (shell("echo first"), shell("seq 1 40; echo wrong >&2; exit 3"), shell("echo never"))
    recipe = Recipe("backend", "backend at abc1234", steps)

    with pytest.raises(CommandError, match=r"Step 2 of 3 of building backend at abc1234, sh -ec .*, ended with status 3\.") as caught:
        build(workshop, recipe, archive)

    details = caught.value.details
    assert (details["step"], details["rc"], details["cmd"]) == (2, 3, list(steps[1].argv))
    assert details["output_lines"] == [*map(str, range(12, 41)), "wrong"]
    assert list(workshop.artifacts.iterdir()) == []
    assert list(workshop.work.iterdir()) == []
    log = workshop.logs / "backend.log"
    assert log.read_text().startswith("$ sh -ec 'echo first'\nfirst\n$ sh -ec")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_program_that_is_not_installed_is_named(workshop: Workshop, archive: Path) -> None:
    with pytest.raises(CommandError, match="Step 1 of building backend needs no-such-program, which is not installed"):
        build(workshop, Recipe("backend", "backend", (Step(("no-such-program",)),)), archive)
    with pytest.raises(LmsError, match=r"Building backend in .* failed: .*no-such-script"):
        build(workshop, Recipe("backend", "backend", (Step(("./no-such-script",)),)), archive)


def test_a_directory_to_run_in_that_is_not_there_is_named(workshop: Workshop, archive: Path) -> None:
    with pytest.raises(LmsError, match="Step 1 of building backend is to run in apps"):
        build(workshop, Recipe("backend", "backend", (shell("true", chdir="apps"),)), archive)


def test_a_step_sees_a_clean_environment(workshop: Workshop, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAK", "x")
    step = shell("env > ../seen", chdir="public", environment={"STEP": "2", "BOTH": "step"})
    recipe = Recipe("backend", "backend", (step,), environment={"ALL": "1", "BOTH": "all"})

    found = content(workshop, recipe, build(workshop, recipe, archive, TOKEN="secret"))["seen"].splitlines()

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
    }


def test_what_is_collected_can_be_moved_and_the_later_entry_wins(workshop: Workshop, archive: Path) -> None:
    recipe = Recipe("frontend", "frontend", collect=(Collected("public", "app/public"), Collected("artisan", "app/public/index.php")))

    found = content(workshop, recipe, build(workshop, recipe, archive))

    assert found == {"app/public": "", "app/public/index.php": "php"}


def test_what_is_collected_must_be_there(workshop: Workshop, archive: Path) -> None:
    with pytest.raises(LmsError, match=r"collect names \.next/standalone, which the steps did not make"):
        build(workshop, Recipe("frontend", "frontend", collect=(Collected(".next/standalone", "."),)), archive)


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
WITH_DEPENDENCY = Recipe("backend", "backend", (INSTALL,), (Dependency(("composer.lock",), "vendor"),))


def test_dependencies_are_there_for_the_next_build_with_the_same_lock(workshop: Workshop, archive: Path, tmp_path: Path) -> None:
    first = content(workshop, WITH_DEPENDENCY, build(workshop, WITH_DEPENDENCY, archive))
    changed = make_archive(tmp_path / "changed.tar", {**FILES, "artisan": "php 2"})

    second = content(workshop, WITH_DEPENDENCY, build(workshop, WITH_DEPENDENCY, changed))
    third = content(workshop, WITH_DEPENDENCY, build(workshop, WITH_DEPENDENCY, archive))

    assert "fresh" in first
    assert "fresh" not in second
    assert {**second, "artisan": "php"} == third
    assert second["vendor/installed"] == "lock 1"


def test_dependencies_of_another_lock_are_installed_anew(workshop: Workshop, archive: Path, tmp_path: Path) -> None:
    build(workshop, WITH_DEPENDENCY, archive)
    changed = make_archive(tmp_path / "changed.tar", {**FILES, "composer.lock": "lock 2"})

    found = content(workshop, WITH_DEPENDENCY, build(workshop, WITH_DEPENDENCY, changed))

    assert (found["fresh"], found["vendor/installed"]) == ("fresh\n", "lock 2")


def test_a_failed_build_gives_no_half_filled_dependencies_back(workshop: Workshop, archive: Path) -> None:
    failing = replace(WITH_DEPENDENCY, steps=(INSTALL, shell("exit 1")))

    with pytest.raises(CommandError):
        build(workshop, failing, archive)

    assert list(workshop.kept.iterdir()) == []


def test_a_lock_file_that_is_not_there_is_named(workshop: Workshop, archive: Path) -> None:
    recipe = Recipe("frontend", "frontend", dependencies=(Dependency(("pnpm-lock.yaml",), "node_modules"),))

    with pytest.raises(LmsError, match=r"frontend has no pnpm-lock\.yaml, which dependencies names"):
        build(workshop, recipe, archive)


def test_what_a_killed_build_left_is_removed(workshop: Workshop, archive: Path) -> None:
    recipe = Recipe("backend", "backend", (shell("! test -e stale"),))
    (workshop.work / "backend" / "source").mkdir(parents=True)
    (workshop.work / "backend" / "source" / "stale").write_text("")
    workshop.artifacts.mkdir()
    (workshop.artifacts / f".backend-{workshop.inspect(recipe, archive)[:16]}.tar.gz.tmp").write_text("half")

    build(workshop, recipe, archive)

    assert list(workshop.work.iterdir()) == []
    assert [path.suffix for path in sorted(workshop.artifacts.iterdir())] == [".json", ".gz"]


def test_two_builds_of_a_name_wait_for_each_other(workshop: Workshop, archive: Path) -> None:
    recipe = Recipe("backend", "backend")
    begin, entered = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.read(begin[0], 1)
        with workshop.locked(recipe):
            os.write(entered[1], b"child")
        os._exit(0)
    with workshop.locked(recipe):
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
    recipe = replace(WITH_DEPENDENCY, steps=())
    names = []
    for number in range(4):
        artifact = build(workshop, recipe, make_archive(tmp_path / "source.tar", {**FILES, "artisan": str(number)}))
        path = workshop.path_of(recipe, artifact.fingerprint)
        names.append(path.name)
        os.utime(path.with_name(path.name.replace(".tar.gz", ".json")), (number + 1000, number + 1000))
    other = Recipe("backend-admin", "admin")
    build(workshop, other, archive)
    (workshop.artifacts / "backend-0123456789abcdef.tar.gz").write_text("no record")
    oldest = workshop.inspect(recipe, make_archive(tmp_path / "source.tar", {**FILES, "artisan": "0"}))

    removed = workshop.tidy(recipe, oldest, keep=2)

    assert removed == sorted(["backend-0123456789abcdef.tar.gz", names[1], names[2]])
    left = sorted(path.name for path in workshop.artifacts.glob("*.tar.gz"))
    assert [name for name in left if not name.startswith("backend-admin")] == sorted([names[0], names[3]])
    assert len(left) == 3


def test_the_newest_are_kept_and_what_is_in_use(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(4)]
    for number, path in enumerate(paths, start=1):
        path.write_text("")
        os.utime(path, (number, number))

    assert oldest_beyond(paths, 2, paths[0]) == [paths[2], paths[1]]
    assert oldest_beyond(paths, 0, None) == [paths[2], paths[1], paths[0]]


def test_a_real_tar_unpacks_an_artifact_and_sha256sum_proves_it(workshop: Workshop, archive: Path, tmp_path: Path) -> None:
    recipe = Recipe("backend", "backend")
    path = workshop.path_of(recipe, build(workshop, recipe, archive).fingerprint)
    target = tmp_path / "target"
    target.mkdir()

    subprocess.run(["tar", "-xzf", str(path), "-C", str(target)], check=True)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", MANIFEST], cwd=target, check=True)

    assert sorted(found.name for found in target.iterdir()) == [MANIFEST, "artisan", "composer.lock", "public", "tests"]


def test_a_recipe_is_read_from_options() -> None:
    params = {
        **PARAMS,
        "source": "backend at abc1234",
        "steps": [{"argv": ["composer", "install"], "chdir": "./api/", "environment": {"A": 1, "B": None}}],
        "dependencies": [{"lock": ["composer.lock"], "directory": "vendor"}],
        "collect": [{"from": "public", "to": "."}],
        "exclude": [".git"],
        "required": ["artisan"],
        "environment": {"C": True},
        "fingerprint_extra": ["8.4"],
        "umask": "027",
    }

    assert recipe_from(params) == Recipe(
        "backend",
        "backend at abc1234",
        (Step(("composer", "install"), "api", {"A": "1", "B": ""}),),
        (Dependency(("composer.lock",), "vendor"),),
        (Collected("public", "."),),
        (".git",),
        ("artisan",),
        {"C": "True"},
        ["8.4"],
        0o027,
    )
    assert recipe_from(PARAMS) == Recipe("backend", "backend")


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
    ],
)
def test_hostile_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(LmsError):
        recipe_from({**PARAMS, **wrong})


def test_a_result_says_nothing_of_what_is_not_known_yet() -> None:
    assert result(Artifact("", "", 0, 0), Path("/x"), reused=False) == {
        "changed": True,
        "artifact": "",
        "sha256": "",
        "size": 0,
        "files": 0,
        "fingerprint": "",
        "reused": False,
        "steps": [],
        "removed": [],
    }
