# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a backup of files is made, what it is held against, and that it is there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import Backup, Catalogue, new_id, read_catalogue
from ansible_collections.bitflow.lms.plugins.module_utils._backup_directory import DirectoryStore
from ansible_collections.bitflow.lms.plugins.module_utils._backup_making import Outcome, young_enough
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Draft
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._file_backup import (
    BuiltinWriter,
    ListNotes,
    Plan,
    Settings,
    Written,
    refuse_inside,
    run,
    suspicion,
)
from ansible_collections.bitflow.lms.plugins.module_utils._file_tree import FILE, Counts, FileEntry, Selection

NOON = datetime(2026, 11, 23, 12, 0, 0, tzinfo=timezone.utc)


def backup(age: timedelta = timedelta(0), **manifest: Any) -> Backup:
    """Return a backup."""
    return Backup("prod", "files", "uploads", new_id(NOON - age, lambda _size: "00000000"), {"objects": [], **manifest})


class FakeWriter:
    """Stores the number of files, and can be told to fail or to change something."""

    def __init__(self, before_end: Callable[[], None] = lambda: None) -> None:
        self.warnings: list[str] = []
        self.before_end = before_end
        self.calls: list[str] = []
        self.notes: list[str] = []

    def check(self, plan: Plan) -> None:
        """Note what is to be done."""
        plan.notes += self.notes

    def prepare(self) -> None:
        """Note the call."""
        self.calls.append("prepare")

    def before(self, backup: Backup) -> Mapping[str, FileEntry] | None:
        """Return nothing that is known."""
        return {}

    def estimate(self, plan: Plan) -> int:
        """Return the size."""
        return plan.scan.counts.bytes

    def write(self, draft: Draft, identity: str, plan: Plan) -> Written:
        """Store a byte for each file."""
        self.calls.append("write")
        upload = draft.upload("files.tar.zst")
        upload.write(b"x" * plan.scan.counts.files)
        self.before_end()
        stored = upload.complete()
        counts = plan.scan.counts
        return Written(counts, {"objects": [{"name": stored.name, "size": stored.size}], "raw_size": counts.bytes}, [])

    def finish(self, backup: Backup) -> None:
        """Note the call."""
        self.calls.append("finish")


class Place:
    """A tree, a repository, and what is asked for."""

    def __init__(self, tmp_path: Path) -> None:
        self.tree = tmp_path / "tree"
        self.tree.mkdir()
        for number in range(4):
            (self.tree / str(number)).write_text("1234567890")
        self.store = DirectoryStore(tmp_path / "repository")

    def run(self, writer: FakeWriter | None = None, check_mode: bool = False, **settings: Any) -> Outcome:
        """Run."""
        wanted = Settings("prod", "uploads", [str(self.tree)], **settings)
        return run(wanted, self.store, writer or FakeWriter(), check_mode=check_mode)

    def listed(self) -> list[str]:
        """Return the states of the backups that the repository lists."""
        return [each.state for each in read_catalogue(self.store, "prod", "files", "uploads").backups]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return a place with four files."""
    return Place(tmp_path)


def test_a_backup_is_published_and_reported_as_the_repository_has_it(place: Place) -> None:
    writer = FakeWriter()

    outcome = place.run(writer)

    assert outcome.changed
    assert outcome.backup and outcome.backup["state"] == "complete"
    assert outcome.plan["counts"] == {"files": 4, "directories": 1, "links": 0, "bytes": 40}
    assert writer.calls == ["prepare", "write", "finish"]
    assert place.listed() == ["complete"]


def test_check_mode_looks_at_everything_and_writes_nothing(place: Place) -> None:
    writer = FakeWriter()

    outcome = place.run(writer, check_mode=True)

    assert (outcome.changed, outcome.backup) == (True, None)
    assert outcome.plan["changes"]["added"] == 5
    assert writer.calls == []
    assert not place.store.root.exists()


def test_a_young_backup_is_enough(place: Place) -> None:
    made = place.run().backup
    writer = FakeWriter()

    outcome = place.run(writer, max_age=3600)

    assert (outcome.changed, outcome.backup, writer.calls) == (False, made, [])
    assert made and outcome.plan["skipped_reason"] == f"{made['id']} is younger than max_age."


def test_what_is_to_be_done_beside_is_done_although_a_young_backup_is_enough(place: Place) -> None:
    place.run()
    writer = FakeWriter()
    writer.notes = ["Add the key safe to restic's repository."]

    outcome = place.run(writer, max_age=3600)

    assert (outcome.changed, writer.calls) == (True, ["prepare"])
    assert place.listed() == ["complete"]


def test_a_failure_leaves_nothing_and_the_earlier_backup_as_it_was(place: Place) -> None:
    place.run()

    def fail() -> None:
        raise LmsError("The disk is full.")

    with pytest.raises(LmsError, match="The disk is full"):
        place.run(FakeWriter(fail))

    assert place.listed() == ["complete"]
    assert place.store.partials() == []


def test_what_a_dead_run_left_is_swept(place: Place) -> None:
    place.run()
    left = place.store.root / "prod/files/uploads/.partial-20261120T000000Z-00000000"
    left.mkdir()
    (left / "files.tar.zst").write_text("half")

    outcome = place.run()

    assert outcome.plan["swept"] == ["prod/files/uploads/20261120T000000Z-00000000"]
    assert not left.exists()


def test_a_backup_that_shrank_is_suspicious_and_does_not_count(place: Place) -> None:
    made = place.run().backup
    assert made
    for name in "012":
        (place.tree / name).unlink()

    outcome = place.run()

    assert outcome.backup and outcome.backup["state"] == "suspicious"
    assert outcome.warnings == [
        f"Backup {outcome.backup['id']} is suspicious and does not count as good: It has 1 files, {made['id']} had 4: more than 50 % fewer."
    ]
    assert place.run(max_age=3600).backup == made


@pytest.mark.parametrize(
    ("now", "before", "percent", "suspicious"),
    [
        (Counts(files=50, bytes=50), {"files": 100, "bytes": 100}, 50, False),
        (Counts(files=49, bytes=100), {"files": 100, "bytes": 100}, 50, True),
        (Counts(files=100, bytes=49), {"files": 100, "bytes": 100}, 50, True),
        (Counts(files=0, bytes=0), {"files": 100, "bytes": 100}, 100, False),
        (Counts(files=0, bytes=0), {"files": 0, "bytes": 0}, 50, False),
        (Counts(files=0, bytes=0), {}, 50, False),
    ],
)
def test_what_makes_a_backup_suspicious(now: Counts, before: dict[str, int], percent: int, suspicious: bool) -> None:
    assert bool(suspicion(now, backup(counts=before), percent)) is suspicious


@pytest.mark.parametrize(
    ("age", "max_age", "enough"),
    [
        (timedelta(minutes=59), 3600, True),
        (timedelta(hours=1), 3600, False),
        (timedelta(minutes=1), 0, False),
        (timedelta(minutes=-1), 3600, False),
    ],
)
def test_how_old_a_backup_may_be(age: timedelta, max_age: int, enough: bool) -> None:
    assert (young_enough(Catalogue((backup(age),), ()), max_age, NOON) is not None) is enough


def test_a_repository_among_the_files_is_refused() -> None:
    with pytest.raises(LmsError, match="Add it to exclude, or move it"):
        refuse_inside("/srv/lms/backups", Selection.of(["/srv/lms"]))
    refuse_inside("/srv/lms/backups", Selection.of(["/srv/lms"], ["/srv/lms/backups"]))
    refuse_inside("/srv/lms-backups", Selection.of(["/srv/lms"]))
    refuse_inside("s3://example-backups/lms", Selection.of(["/srv/lms"]))


def test_files_are_not_stored_plain_unless_that_is_said(place: Place) -> None:
    settings = Settings("prod", "uploads", [str(place.tree)])

    with pytest.raises(LmsError, match="encrypted_required to false"):
        run(settings, place.store, BuiltinWriter(settings, place.store), check_mode=True)

    plain = Settings("prod", "uploads", [str(place.tree)], encrypted_required=False)
    outcome = run(plain, place.store, BuiltinWriter(plain, place.store), check_mode=True)
    assert outcome.warnings == ["The backup of uploads is not encrypted: no recipients are given."]


def test_this_host_remembers_the_list_of_the_newest_backup_alone(tmp_path: Path) -> None:
    notes = ListNotes("/srv/backups/prod/files/uploads", tmp_path / "notes")
    notes.write("20261123T120000Z-00000000", [b"a\n", b"b\n"])

    assert notes.read("20261123T120000Z-00000000") == b"a\nb\n"
    assert notes.read("20261122T120000Z-00000000") is None
    assert [notes.file.stat().st_mode & 0o777, notes.directory.stat().st_mode & 0o777] == [0o600, 0o700]


def test_notes_that_are_broken_are_no_notes(tmp_path: Path) -> None:
    notes = ListNotes("x", tmp_path)
    notes.file.write_bytes(b"\x1f\x8bbroken")

    assert notes.read("20261123T120000Z-00000000") is None


def test_files_that_are_too_many_for_the_repository_are_refused_beforehand(place: Place) -> None:
    place.store.facts = lambda: {"type": "directory", "free": 39}  # type: ignore[method-assign]
    writer = FakeWriter()

    with pytest.raises(LmsError, match="has 39 bytes free, and the backup may need 40"):
        place.run(writer)

    assert writer.calls == []


def test_an_entry_of_a_file_has_a_record_without_what_is_empty() -> None:
    assert FileEntry("a", FILE, size=3).record() == {"path": "a", "type": "file", "size": 3}
