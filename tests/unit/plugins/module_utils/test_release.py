# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Releases on a real file system, with crashes."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import signal
import stat
import tarfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils import _release
from ansible_collections.bitflow.lms.plugins.module_utils._archive import MANIFEST, pack
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import Owner
from ansible_collections.bitflow.lms.plugins.module_utils._release import (
    Build,
    Releases,
    build_from,
    disk_facts,
    open_releases,
)
from ansible_collections.bitflow.lms.plugins.module_utils._release_plan import Release, Request, Tree, decide

NOW = datetime(2026, 11, 23, 21, 0, tzinfo=timezone.utc)
OURS = Owner(os.geteuid(), os.getegid())


def names_in(directory: Path) -> list[str]:
    """Return the names in a directory."""
    return sorted(path.name for path in directory.iterdir())


@dataclass
class Clock:
    """A clock that a test moves."""

    time: datetime = NOW

    def __call__(self) -> datetime:
        return self.time


@dataclass
class Application:
    """An application's root with a way to ask for states."""

    root: Path
    artifact: Path
    clock: Clock = field(default_factory=Clock)
    checkpoint: Callable[[str], None] = lambda name: None

    @property
    def releases(self) -> Releases:
        return Releases(self.root, self.clock, self.checkpoint)

    def ask(self, state: str, release: str = "", build: Build | None = None, **values: Any) -> Tree:
        """Bring about a state as the module does."""
        digest = hashlib.sha256(self.artifact.read_bytes()).hexdigest()
        request = Request(state, release, artifact_sha256=digest, **values)
        build = build or Build(artifact=self.artifact, owner=OURS, shared_owner=OURS)
        with self.releases.locked(OURS):
            plan = decide(self.releases.read(with_open=state == "pruned"), request, self.clock())
            return self.releases.carry_out(plan, build)

    def deploy(self, *names: str) -> None:
        """Make releases live, one after the other."""
        for name in names:
            self.ask("present", name)
            self.ask("verified", name)
            self.ask("active", name)

    def on_disk(self) -> list[str]:
        """Return the names below releases/."""
        return names_in(self.root / "releases")

    def record(self, name: str) -> dict[str, Any]:
        """Return a record as it was written."""
        found: dict[str, Any] = json.loads((self.root / ".deploy" / "releases" / f"{name}.json").read_text())
        return found


def make_artifact(path: Path, files: dict[str, str], links: dict[str, str] | None = None) -> Path:
    """Write an artifact."""
    top = path.parent / f"{path.name}.tree"
    for name, content in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(content)
    for name, target in (links or {}).items():
        (top / name).symlink_to(target)
    with path.open("wb") as stream:
        pack({str(found.relative_to(top)): found for found in top.rglob("*")}, stream)
    return path


@pytest.fixture
def application(tmp_path: Path) -> Application:
    """Return an application on a bare host, and its artifact."""
    artifact = make_artifact(
        tmp_path / "backend.tar",
        {"artisan": "php", "public/index.php": "<?php", "storage/app/.gitignore": "*", "bootstrap/cache/.gitignore": "*"},
    )
    return Application(tmp_path / "srv" / "backend", artifact)


def test_a_bare_host_has_nothing(application: Application) -> None:
    assert application.releases.read(with_open=True) == Tree()
    assert not application.root.exists()


def test_a_release_is_built_with_all_that_belongs_to_it(application: Application) -> None:
    group = os.getegid()
    build = Build(
        artifact=application.artifact,
        owner=OURS,
        shared_directories=("storage/app", "storage/logs"),
        shared_owner=Owner(os.geteuid(), group),
        shared_mode=0o2750,
        writable_directories=("bootstrap/cache", "storage/framework/views"),
    )

    application.ask("present", "20261123200000-abc1234", build, metadata={"commit": "abc1234"}, fingerprint="f1")

    release = application.root / "releases" / "20261123200000-abc1234"
    assert (release / "storage/app").readlink() == Path("../../../shared/storage/app")
    assert (release / "storage/logs").resolve() == (application.root / "shared/storage/logs").resolve()
    assert (release / "REVISION").read_text() == "abc1234\n"
    modes = {name: stat.S_IMODE((release / name).stat().st_mode) for name in (".", "artisan", "bootstrap/cache", "storage/framework/views")}
    assert modes == {".": 0o755, "artisan": 0o644, "bootstrap/cache": 0o2770, "storage/framework/views": 0o2770}
    assert stat.S_IMODE((release / "bootstrap/cache/.gitignore").stat().st_mode) == 0o660
    assert stat.S_IMODE((application.root / "shared/storage/logs").stat().st_mode) == 0o2750
    assert application.record(release.name)["files"] == 5
    assert application.record(release.name)["fingerprint"] == "f1"


def test_files_carry_the_time_of_the_release_and_never_a_young_one(application: Application) -> None:
    application.ask("present", "20261123200000-abc1234")
    application.ask("present", "20261123210000-abc1234")
    application.ask("present", "by-hand")

    times = [(application.root / "releases" / name / "artisan").stat().st_mtime for name in application.on_disk()]

    stamped = datetime(2026, 11, 23, 20, 0, tzinfo=timezone.utc).timestamp()
    latest = (NOW - timedelta(seconds=10)).timestamp()
    assert times == [stamped, latest, latest]


def test_a_link_in_the_application_leads_no_shared_directory_astray(application: Application, tmp_path: Path) -> None:
    application.artifact = make_artifact(tmp_path / "linked.tar", {"deep/inner/x": ""}, {"storage": "deep/inner"})

    application.ask("present", "r1", Build(artifact=application.artifact, owner=OURS, shared_directories=("storage/app",)))

    assert (application.root / "releases/r1/deep/inner/app").resolve() == (application.root / "shared/storage/app").resolve()
    with pytest.raises(LmsError, match="which is a link in the release"):
        application.ask("present", "r2", Build(artifact=application.artifact, owner=OURS, writable_directories=("storage",)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_gives_the_files_to_their_owner(application: Application) -> None:
    build = Build(
        artifact=application.artifact,
        owner=Owner(1, 2),
        shared_directories=("storage/app",),
        shared_owner=Owner(3, 4),
        writable_directories=("bootstrap/cache",),
    )
    with application.releases.locked(Owner(1, 2)):
        plan = decide(Tree(), Request("present", "r1", artifact_sha256=hashlib.sha256(application.artifact.read_bytes()).hexdigest()), NOW)
        application.releases.carry_out(plan, build)

    def owner(name: str) -> tuple[int, int]:
        found = (application.root / name).lstat()
        return found.st_uid, found.st_gid

    names = [
        ".",
        "releases/r1",
        "releases/r1/artisan",
        "releases/r1/storage/app",
        "shared/storage",
        ".deploy/journal.jsonl",
        ".deploy/releases/r1.json",
    ]
    assert {owner(name) for name in names} == {(1, 2)}
    assert owner("shared/storage/app") == (3, 4)
    assert owner("releases/r1/bootstrap/cache") == (1, 4)
    assert owner("..") == (0, 0)


def test_the_journal_tells_what_happened(application: Application) -> None:
    application.deploy("r1", "r2")
    application.ask("active", "r1")
    application.ask("failed", "r2", reason="slow")

    told = [(entry["event"], entry["release"]) for entry in application.releases.journal.entries()]

    assert told == [
        ("built", "r1"),
        ("verified", "r1"),
        ("activated", "r1"),
        ("built", "r2"),
        ("verified", "r2"),
        ("activated", "r2"),
        ("superseded", "r1"),
        ("activated", "r1"),
        ("superseded", "r2"),
        ("failed", "r2"),
    ]


def test_rollback_uses_readlink_not_mtime(application: Application) -> None:
    application.deploy("r1", "r2", "r3")
    os.utime(application.root / "releases" / "r1", (2**31, 2**31))

    tree = application.releases.read()

    assert (tree.current, tree.previous) == ("r3", "r2")


@pytest.mark.parametrize("target", ["releases/r1", "./releases/r1/", "releases/r1/public"])
def test_the_live_release_is_found_however_the_link_is_written(application: Application, target: str) -> None:
    application.deploy("r1")
    (application.root / "current").unlink()
    (application.root / "current").symlink_to(target)

    assert application.releases.read().current == "r1"


def test_the_live_release_is_found_by_an_absolute_link_through_another_name(application: Application, tmp_path: Path) -> None:
    application.deploy("r1")
    (tmp_path / "alias").symlink_to(application.root)
    (application.root / "current").unlink()
    (application.root / "current").symlink_to(tmp_path / "alias" / "releases" / "r1")

    assert application.releases.read().current == "r1"


def test_a_directory_in_place_of_the_link_is_an_error(application: Application) -> None:
    (application.root / "current").mkdir(parents=True)

    with pytest.raises(LmsError, match="current is not a link"):
        application.releases.read()


def test_a_directory_without_a_readable_record_is_unknown(application: Application) -> None:
    application.deploy("r1")
    (application.root / "releases" / "r0").mkdir()
    (application.root / ".deploy" / "releases" / "r1.json").write_text("{")

    tree = application.releases.read()

    assert tree.releases == (Release("r0"), Release("r1", state="active"))


def test_an_artifact_that_was_changed_on_the_way_is_refused(application: Application) -> None:
    request = Request("present", "r1", artifact_sha256="0" * 64)
    with application.releases.locked(OURS), pytest.raises(LmsError, match="its SHA-256 differs"):
        application.releases.carry_out(decide(Tree(), request, NOW), Build(artifact=application.artifact))

    assert application.on_disk() == []


def test_an_artifact_that_is_not_there_is_an_error(application: Application) -> None:
    request = Request("present", "r1", artifact_sha256="0" * 64)
    with application.releases.locked(OURS):
        with pytest.raises(LmsError, match="The artifact /nowhere is not on this host"):
            application.releases.carry_out(decide(Tree(), request, NOW), Build(artifact=Path("/nowhere")))
        with pytest.raises(LmsError, match="give artifact and artifact_sha256"):
            application.releases.carry_out(decide(Tree(), request, NOW), Build())


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "has no MANIFEST.sha256"),
        (f"{'0' * 64}  file\n", "1 different"),
        (f"{hashlib.sha256(b'x').hexdigest()}  file\n{'0' * 64}  gone\n", "1 missing"),
        ("", "1 extra"),
        ("rubbish\n", "Line 1 of MANIFEST.sha256"),
    ],
)
def test_files_that_the_manifest_does_not_prove_are_refused(application: Application, manifest: str | None, message: str) -> None:
    with tarfile.open(application.artifact, "w:gz") as tar:
        for name, content in [("file", b"x"), *([(MANIFEST, manifest.encode())] if manifest is not None else [])]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

    with pytest.raises(LmsError, match=message):
        application.ask("present", "r1")

    assert application.on_disk() == []


def test_a_full_disk_leaves_nothing_and_says_so(application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(directory: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_release, "sync_filesystem", full)

    with pytest.raises(LmsError, match=r"Building release r1 in .* failed: .*No space left on device"):
        application.ask("present", "r1")

    assert application.releases.read() == Tree()
    assert names_in(application.root / ".deploy" / "releases") == []


BUILD_STEPS = ["artifact", "unpacked", "finished", "synced", "record", "renamed", "journal"]


@pytest.mark.parametrize("step", BUILD_STEPS)
def test_a_build_that_is_killed_leaves_nothing_or_a_whole_release(application: Application, step: str) -> None:
    application.deploy("r1")
    child = os.fork()
    if child == 0:
        application.checkpoint = lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == step else None
        application.ask("present", "r2", metadata={"commit": "c"})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    tree = application.releases.read()
    whole = step in ("renamed", "journal")
    assert (tree.current, tree.state_of("r2")) == ("r1", "built" if whole else "absent")

    application.deploy("r2")
    assert application.releases.read().current == "r2"
    assert application.on_disk() == ["r1", "r2"]
    assert set(names_in(application.root / "releases" / "r2")) - {"REVISION"} == set(names_in(application.root / "releases" / "r1"))


@pytest.mark.parametrize("step", BUILD_STEPS)
def test_a_build_that_fails_leaves_nothing_or_a_whole_release(application: Application, step: str) -> None:
    def fail(name: str) -> None:
        if name == step:
            raise OSError(errno.EIO, "Input/output error")

    application.checkpoint = fail
    with pytest.raises(LmsError, match="Input/output error"):
        application.ask("present", "r1")

    assert application.on_disk() == (["r1"] if step in ("renamed", "journal") else [])


@pytest.mark.parametrize("step", ["linked", "switched", "record", "journal"])
def test_a_switch_that_is_killed_is_done_or_not(application: Application, step: str) -> None:
    application.deploy("r1")
    application.ask("present", "r2")
    application.ask("verified", "r2")
    child = os.fork()
    if child == 0:
        application.checkpoint = lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == step else None
        application.ask("active", "r2")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    assert application.releases.read().current == ("r1" if step == "linked" else "r2")

    tree = application.ask("active", "r2")
    assert (tree.current, tree.previous) == ("r2", "r1")
    assert [name for name in names_in(application.root) if name.startswith(".current")] == []


@pytest.mark.parametrize("step", ["taken away", "journal"])
def test_a_removal_that_is_killed_never_leaves_half_a_release(application: Application, step: str) -> None:
    application.deploy("r1", "r2")
    child = os.fork()
    if child == 0:
        application.checkpoint = lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == step else None
        application.ask("absent", "r1")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    assert application.releases.read().state_of("r1") == "absent"

    application.ask("pruned", keep=5)
    assert application.on_disk() == ["r2"]


def test_prune_sweeps_an_old_partial_and_keeps_a_young_one(application: Application) -> None:
    application.deploy("r1")
    (application.root / "releases" / "r2.partial").mkdir()
    application.clock.time = datetime.now(timezone.utc) + timedelta(minutes=59)
    application.ask("pruned")
    assert application.on_disk() == ["r1", "r2.partial"]

    application.clock.time += timedelta(minutes=2)
    application.ask("pruned")

    assert application.on_disk() == ["r1"]


@pytest.mark.parametrize("how", ["cwd", "fd"])
def test_prune_keeps_a_release_that_a_process_has_open(application: Application, how: str) -> None:
    application.deploy("r1", "r2", "r3")
    application.clock.time = NOW + timedelta(days=1)
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        held = application.root / "releases" / "r1"
        if how == "cwd":
            os.chdir(held)
        else:
            os.open(held / "artisan", os.O_RDONLY)
        os.write(ready[1], b".")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        application.ask("pruned", keep=1)
        assert application.on_disk() == ["r1", "r2", "r3"]
    finally:
        os.write(done[1], b".")
        os.waitpid(child, 0)

    application.ask("pruned", keep=1)

    assert application.on_disk() == ["r2", "r3"]


def test_open_releases_are_found_in_every_corner_of_a_process(tmp_path: Path) -> None:
    top = tmp_path / "releases"
    top.mkdir()
    processes = tmp_path / "proc"
    for number, name in enumerate(["cwd", "root", "exe", "fd/7", "maps", "mountinfo"], start=1):
        link = processes / str(number) / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if name == "maps":
            link.write_text(f"7f0-7f1 r--p 00 08:01 9  {top}/r{number}/build/addon.node\n7f2-7f3 rw-p 00 00:00 0 [heap]\n")
        elif name == "mountinfo":
            link.write_text(f"90 60 8:1 {tmp_path}/releases/r{number} /srv/live rw - ext4 /dev/sda1 rw\n")
        else:
            link.symlink_to(f"{top}/r{number}{' (deleted)' if name == 'exe' else '/public'}")
    (processes / "8").mkdir()
    (processes / "self").mkdir()
    (processes / "self" / "mountinfo").write_text("60 1 8:1 / / rw - ext4 /dev/sda1 rw\n61 60 8:2 / /srv rw - ext4 /dev/sdb1 rw\n")

    assert open_releases(top, processes) == {"r1", "r2", "r3", "r4", "r5", "r6"}


def test_a_second_change_waits_and_then_says_who_is_at_work(application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_release, "LOCK_TIMEOUT", 0)

    with (
        application.releases.locked(OURS),
        pytest.raises(LmsError, match=r"Another change of the releases in .* is still at work"),
        application.releases.locked(OURS),
    ):
        pass


def test_switch_400x_zero_errors(application: Application) -> None:
    application.deploy("r1", "r2")
    seen = {"reads": 0, "errors": 0}
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen["reads"] += 1
            try:
                (application.root / "current" / "public" / "index.php").read_bytes()
            except OSError:
                seen["errors"] += 1

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(400):
            application.releases._switch(f"r{number % 2 + 1}")
    finally:
        stop.set()
        reader.join()

    assert seen["errors"] == 0
    assert seen["reads"] > 0


def test_application_in_maintenance_stays_in_it_and_an_open_one_open(application: Application) -> None:
    application.deploy("r1", "r2")
    marker = "storage/framework/down"
    (application.root / "current/storage/framework").mkdir(parents=True)
    (application.root / "current" / marker).write_text("{}")

    application.deploy("r3")
    down = (application.root / "current" / marker).exists()
    (application.root / "current" / marker).unlink()
    application.ask("active", "r2")

    assert (down, (application.root / "current" / marker).exists()) == (True, False)


def test_disk_facts_come_from_the_nearest_directory_there_is(tmp_path: Path) -> None:
    facts = disk_facts(tmp_path / "not" / "yet")

    assert facts["directory"] == str(tmp_path)
    assert {name for name, value in facts.items() if isinstance(value, int) and value >= 0} == {
        "free_bytes",
        "total_bytes",
        "free_inodes",
        "total_inodes",
    }


def test_the_options_of_a_build_are_checked() -> None:
    params: dict[str, Any] = {
        "artifact": "/artifact",
        "owner": "0",
        "group": None,
        "shared_directories": ["./storage/app"],
        "shared_owner": None,
        "shared_group": "0",
        "shared_mode": "2750",
        "writable_directories": ["bootstrap/cache"],
    }

    build = build_from(params)

    assert build == Build(Path("/artifact"), Owner(0, -1), ("storage/app",), Owner(-1, 0), 0o2750, ("bootstrap/cache",))
    for option in ("shared_directories", "writable_directories"):
        with pytest.raises(LmsError, match=f"{option} has '../up'"):
            build_from({**params, option: ["../up"]})


def test_the_sequence_counts_on_from_what_is_there(application: Application) -> None:
    application.deploy("r1", "r2")
    tree = application.ask("present", "a-name-that-sorts-first")

    assert [(release.id, release.sequence) for release in tree.releases] == [("r1", 1), ("r2", 2), ("a-name-that-sorts-first", 3)]
