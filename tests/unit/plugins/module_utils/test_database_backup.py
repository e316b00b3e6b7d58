# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A backup from the plan to its manifest, with programs that stand for the server's."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import now_utc, read_catalogue
from ansible_collections.bitflow.lms.plugins.module_utils._backup_directory import DirectoryStore
from ansible_collections.bitflow.lms.plugins.module_utils._database import DatabaseError, DatabaseLockedError, Dump, Login, Server, Table
from ansible_collections.bitflow.lms.plugins.module_utils._database_backup import Settings, run, settings_argspec, suspicion
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import Stage

pytestmark = pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed here")

SETTINGS = Settings("test", "lms")
TABLES = (Table("public", "students", 2), Table("public", "submissions", 10))


class Moment:
    """A snapshot of a server that is none."""

    consistency = "exact"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.warnings: list[str] = []
        self.position = {"id": "00000003-1", "lsn": "0/1"}

    def tables(self, record: str) -> list[Table]:
        """Return the tables."""
        return list(self.engine.counted)

    def dump(self, **_options: Any) -> Dump:
        """Return what prints a dump."""
        compression = {"method": "zstd", "level": 3, "where": "inside"}
        return Dump([Stage(["sh", "-c", self.engine.script])], "custom", ".dump", compression, version="17.1")

    def check(self) -> None:
        """Find out whether the session is alive."""
        if self.engine.session_lost:
            raise DatabaseError("The session of the snapshot ended.")


class Engine:
    """A server that is none."""

    login = Login("postgresql")

    def __init__(self) -> None:
        self.script = "printf 'a dump of some length'"
        self.counted: Sequence[Table] = TABLES
        self.session_lost = False
        self.locked = False
        self.problem: list[str] = []
        self.size = 1000

    def server(self) -> Server:
        """Return what it says it is."""
        return Server("postgresql", "17.1", "17.1")

    def describe(self, database: str) -> dict[str, Any]:
        """Return what is known of a database."""
        return {"name": database, "encoding": "UTF8", "collation": "C.UTF-8", "size_bytes": self.size, "extensions": []}

    def problems(self, _database: str, _exclude: Sequence[str] = ()) -> list[str]:
        """Return what stands in the way."""
        return self.problem

    @contextmanager
    def snapshot(self, database: str, **_options: Any) -> Iterator[Moment]:
        """Fix a moment."""
        if self.locked:
            raise DatabaseLockedError(f"Process 42 of the server works on the backup of {database}.")
        yield Moment(self)

    def globals_dump(self) -> list[Stage]:
        """Return what prints the roles."""
        return [Stage(["printf", "CREATE ROLE lms;"])]


class Backups:
    """A repository on disk, and what backs up into it."""

    def __init__(self, directory: Path) -> None:
        self.engine = Engine()
        self.directory = directory
        self.store = DirectoryStore(directory)

    def back_up(self, *, check_mode: bool = False, **settings: Any) -> Any:
        """Make a backup."""
        return run(replace(SETTINGS, **settings), self.store, self.engine, check_mode=check_mode)  # type: ignore[arg-type]

    def manifest(self, outcome: Any) -> dict[str, Any]:
        """Return what was published."""
        manifest: dict[str, Any] = json.loads((self.directory / outcome.backup["path"] / "manifest.json").read_text())
        return manifest

    def files(self) -> list[str]:
        """Return all files, also hidden ones."""
        return sorted(str(path.relative_to(self.directory)) for path in self.directory.rglob("*") if path.is_file())


@pytest.fixture
def backups(tmp_path: Path) -> Backups:
    """Return an empty repository."""
    return Backups(tmp_path / "repository")


def test_the_manifest_says_what_was_dumped_and_counted(backups: Backups) -> None:
    outcome = backups.back_up(labels={"release": "v2"})

    manifest = backups.manifest(outcome)
    assert outcome.changed is True
    assert {
        key: manifest[key] for key in ("environment", "kind", "name", "labels", "record", "snapshot", "suspicious", "format_of_dump")
    } == {
        "environment": "test",
        "kind": "database",
        "name": "lms",
        "labels": {"release": "v2"},
        "record": "counts",
        "snapshot": {"consistency": "exact", "id": "00000003-1", "lsn": "0/1"},
        "suspicious": False,
        "format_of_dump": "custom",
    }
    assert [(table["name"], table["rows"]) for table in manifest["tables"]] == [("students", 2), ("submissions", 10)]
    assert [(each["name"], each["encryption"]["method"]) for each in manifest["objects"]] == [
        ("globals.sql.zst", "none"),
        ("data.dump", "none"),
    ]
    assert (backups.directory / outcome.backup["path"] / "data.dump").read_text() == "a dump of some length"
    assert list(outcome.warnings) == ["The backup of lms is not encrypted: no recipients are given."]


@pytest.mark.parametrize(
    "breaks",
    [
        lambda engine: setattr(engine, "script", "printf half; exit 3"),
        lambda engine: setattr(engine, "script", "printf half; kill -9 $$"),
        lambda engine: setattr(engine, "session_lost", True),
    ],
)
def test_what_fails_leaves_nothing_and_what_was_there(backups: Backups, breaks: Callable[[Engine], None]) -> None:
    backups.back_up()
    before = backups.files()
    breaks(backups.engine)

    with pytest.raises(LmsError):
        backups.back_up()

    assert backups.files() == before


def test_a_signal_to_end_leaves_nothing(backups: Backups) -> None:
    backups.engine.script = f"printf half; kill -TERM {os.getpid()}; sleep 60"

    with pytest.raises(LmsError, match=r"The run was ended by SIGTERM; nothing half is left\. Start it again\."):
        backups.back_up()

    assert backups.files() == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_check_mode_only_looks(backups: Backups) -> None:
    outcome = backups.back_up(check_mode=True)

    assert (outcome.changed, outcome.backup, backups.files()) == (True, None, [])
    assert outcome.plan["estimated_size"] == 500


def test_problems_end_the_run_before_anything_is_written_also_in_check_mode(backups: Backups) -> None:
    backups.engine.problem = ["The client 15.2 is older than the server 17.1.", "The role lms may not read public.grades."]

    with pytest.raises(LmsError, match="would not be whole: The client 15"):
        backups.back_up(check_mode=True)


def test_the_estimate_follows_from_the_last_good_one(backups: Backups) -> None:
    first = backups.back_up().backup
    backups.engine.size = 3000

    plan = backups.back_up(check_mode=True).plan

    assert (plan["estimated_from"], plan["estimated_size"]) == (first["id"], first["size"] * 3)


def test_one_that_is_young_enough_is_not_made_again(backups: Backups) -> None:
    first = backups.back_up()

    again = backups.back_up(max_age=60)

    assert (again.changed, again.backup["id"], again.diff) == (False, first.backup["id"], {})


def test_one_from_the_future_is_no_reason_to_make_none(backups: Backups, monkeypatch: pytest.MonkeyPatch) -> None:
    later = now_utc() + timedelta(days=1)
    monkeypatch.setattr("ansible_collections.bitflow.lms.plugins.module_utils._database_backup.now_utc", lambda: later)
    backups.back_up()
    monkeypatch.undo()

    assert backups.back_up(max_age=7 * 86400).changed is True


def test_a_locked_database_fails_or_is_skipped_as_it_was_asked(backups: Backups) -> None:
    backups.engine.locked = True

    with pytest.raises(DatabaseLockedError, match="Process 42"):
        backups.back_up()
    skipped = backups.back_up(when_locked="skip")

    assert (skipped.changed, skipped.backup, skipped.plan["skipped_reason"]) == (
        False,
        None,
        "Process 42 of the server works on the backup of lms.",
    )


def test_what_interrupted_runs_left_is_cleared_away(backups: Backups) -> None:
    backups.store.draft("test/database/lms/20261101T000000Z-00000000").upload("data.dump").write(b"half")
    # A draft of a process that is gone holds no lock any more; this one's does.
    before = [partial.active for partial in backups.store.partials()]

    outcome = backups.back_up()

    assert before == [True]
    assert outcome.plan["swept"] == []


@pytest.mark.parametrize(
    ("tables", "size", "reason"),
    [
        (TABLES, 100, ""),
        ((), 100, "The database has no table."),
        ((Table("public", "students", 2),), 100, "It has 2 rows, {previous} had 12: more than 50 % fewer."),
        (TABLES, 10, "It takes 10 bytes, {previous} took {size}: more than 50 % less."),
        # Without counts only the size can be compared.
        ((Table("public", "students"),), 100, ""),
    ],
)
def test_what_became_much_smaller_is_suspicious(backups: Backups, tables: Sequence[Table], size: int, reason: str) -> None:
    backups.back_up()
    previous = read_catalogue(backups.store, "test", "database", "lms").backups[0]
    data = sum(each["size"] for each in previous.manifest["objects"])

    assert suspicion(tables, size, previous, 50) == reason.format(previous=previous.id, size=data)


def test_the_first_one_is_held_against_nothing() -> None:
    assert suspicion(TABLES, 1, None, 50) == ""


def test_the_options_and_the_settings_have_the_same_defaults() -> None:
    options = {name: option.get("default") for name, option in settings_argspec().items()}

    made = Settings.from_options({"environment": "test", "name": "lms", "encryption": None, **options})

    assert made == replace(SETTINGS, exclude_table_data=[])


def test_times_are_utc() -> None:
    assert now_utc().tzinfo is timezone.utc
    assert abs(now_utc() - datetime.now(timezone.utc)) < timedelta(seconds=5)
