# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file of backups for the node exporter: what is in it, what stays, and what no failure loses."""

from __future__ import annotations

import stat
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import (
    canonical,
    new_id,
    read_catalogue,
    seal,
    time_of,
    verification_key,
)
from ansible_collections.bitflow.lms.plugins.module_utils._backup_directory import DirectoryStore
from ansible_collections.bitflow.lms.plugins.module_utils._backup_metrics import HELP, read_samples, render
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Store, StoreError
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.modules import backup_metrics

NOW = datetime(2026, 11, 23, 10, 0, 0, tzinfo=timezone.utc)
DAY = timedelta(days=1)
LMS = 'environment="prod",kind="database",name="lms"'


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    made = tmp_path / "repository"
    made.mkdir()
    return DirectoryStore(made)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "node-exporter"
    made.mkdir()
    return made


def put(store: DirectoryStore, age: timedelta, name: str = "prod/database/lms", **manifest: Any) -> str:
    """Publish a backup and return its path."""
    path = f"{name}/{new_id(NOW - age, lambda _size: '00000000')}"
    store.draft(path).publish(seal({"objects": [], **manifest}))
    return path


def verify(store: DirectoryStore, path: str, level: str, ok: bool = True, **more: Any) -> None:
    """Note a look at a backup, an hour after it was begun."""
    moment = time_of(path.rpartition("/")[2]) + timedelta(hours=1)
    store.create(verification_key(path, moment, level, lambda _size: "0a1b2c3d"), canonical({"ok": ok, **more}))


def run(store: DirectoryStore, directory: Path, check_mode: bool = False, now: datetime = NOW, **options: Any) -> dict[str, Any]:
    """Run the module's own part."""
    defaults = {"environment": None, "kind": None, "name": None, "attempt": None, "stale_guard": "3d", "file": "lms_backups.prom"}
    return backup_metrics.run(lambda: store, {**defaults, "directory": str(directory), **options}, check_mode, now)


def tried(store: DirectoryStore, directory: Path, ended: str, now: datetime = NOW) -> dict[str, Any]:
    """Run it after an attempt to back the database up."""
    return run(store, directory, now=now, environment="prod", kind="database", name="lms", attempt=ended)


def told(directory: Path) -> dict[str, str]:
    """Return the samples in the file, without the beginning that all names share."""
    lines = (directory / "lms_backups.prom").read_text().splitlines()
    return {key.replace("lms_backup_", ""): value for line in lines if not line.startswith("#") for key, value in [line.rsplit(" ", 1)]}


def test_the_file_says_what_the_repository_holds(store: DirectoryStore, directory: Path) -> None:
    verified = put(store, 3 * DAY, tables=[{"rows": 7}], raw_size=900, duration_s=2)
    verify(store, verified, "restore", rto_seconds=41.25)
    good = put(store, DAY, tables=[{"rows": 40}, {"rows": 2}], raw_size=1000, duration_s=1.5)
    verify(store, good, "checksum")
    small = put(store, timedelta(hours=1), tables=[{"rows": 0}], raw_size=10, duration_s=0.25, suspicious=True)
    corrupt = put(store, 2 * DAY)
    verify(store, corrupt, "decode", ok=False)
    size = next(backup.size for backup in read_catalogue(store).backups if backup.path == small)

    result = run(store, directory)

    moment = {path: str(int(time_of(path.rpartition("/")[2]).timestamp())) for path in (verified, good)}
    path = directory / "lms_backups.prom"
    assert told(directory) == {
        f"last_success_timestamp_seconds{{{LMS}}}": moment[good],
        'last_verified_timestamp_seconds{environment="prod",kind="database",level="manifest",name="lms"}': moment[good],
        'last_verified_timestamp_seconds{environment="prod",kind="database",level="checksum",name="lms"}': moment[good],
        'last_verified_timestamp_seconds{environment="prod",kind="database",level="decode",name="lms"}': moment[verified],
        'last_verified_timestamp_seconds{environment="prod",kind="database",level="restore",name="lms"}': moment[verified],
        f"size_bytes{{{LMS}}}": str(size),
        f"raw_bytes{{{LMS}}}": "10",
        f"rows{{{LMS}}}": "0",
        f"duration_seconds{{{LMS}}}": "0.25",
        f"good_total{{{LMS}}}": "2",
        f"corrupt_total{{{LMS}}}": "1",
        f"partial_total{{{LMS}}}": "0",
        f"restore_duration_seconds{{{LMS}}}": "41.25",
        f"prune_blocked{{{LMS}}}": "0",
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert result == {
        "changed": True,
        "path": str(path),
        "reason": "",
        "diff": {"before": "", "after": path.read_text(), "before_header": str(path), "after_header": str(path)},
    }
    assert path.read_text().splitlines()[:3] == [
        "# HELP lms_backup_last_success_timestamp_seconds When the newest good backup was begun.",
        "# TYPE lms_backup_last_success_timestamp_seconds gauge",
        f"lms_backup_last_success_timestamp_seconds{{{LMS}}} {moment[good]}",
    ]
    # What a reader of the folder does not read is what keeps two writers apart.
    assert sorted(entry.name for entry in directory.iterdir()) == [".lms_backups.prom.lock", "lms_backups.prom"]


def test_equal_figures_change_nothing(store: DirectoryStore, directory: Path) -> None:
    put(store, DAY)
    run(store, directory)

    assert run(store, directory, now=NOW + timedelta(minutes=5))["changed"] is False


def test_check_mode_only_looks(store: DirectoryStore, directory: Path) -> None:
    put(store, DAY)

    result = run(store, directory, check_mode=True)

    assert result["changed"] is True
    assert list(directory.iterdir()) == []
    assert run(store, directory) == result


def test_how_the_last_attempt_ended_stays_until_another_run_says(store: DirectoryStore, directory: Path) -> None:
    put(store, DAY)
    tried(store, directory, "failed", NOW - DAY)

    run(store, directory)
    run(store, directory, environment="prod", kind="database", name="lms")

    attempts = {key: value for key, value in told(directory).items() if "attempt" in key}
    assert attempts == {f"last_attempt_timestamp_seconds{{{LMS}}}": "1795341600", f"last_attempt_ok{{{LMS}}}": "0"}
    tried(store, directory, "ok")
    assert {key: value for key, value in told(directory).items() if "attempt" in key} == {
        f"last_attempt_timestamp_seconds{{{LMS}}}": "1795428000",
        f"last_attempt_ok{{{LMS}}}": "1",
    }


def test_a_first_attempt_that_failed_is_told(store: DirectoryStore, directory: Path) -> None:
    tried(store, directory, "failed")

    assert told(directory) == {f"last_attempt_timestamp_seconds{{{LMS}}}": "1795428000", f"last_attempt_ok{{{LMS}}}": "0"}


def test_an_attempt_is_noted_where_the_repository_cannot_be_read(store: DirectoryStore, directory: Path) -> None:
    put(store, DAY)
    run(store, directory)
    before = told(directory)

    def unreachable() -> Store:
        raise StoreError("The bucket cannot be reached.")

    options = {
        "environment": "prod",
        "kind": "database",
        "name": "lms",
        "attempt": "failed",
        "stale_guard": "3d",
        "file": "lms_backups.prom",
    }
    with pytest.raises(StoreError):
        backup_metrics.run(unreachable, {**options, "directory": str(directory)}, False, NOW)

    attempts = {f"last_attempt_timestamp_seconds{{{LMS}}}": "1795428000", f"last_attempt_ok{{{LMS}}}": "0"}
    assert told(directory) == {**before, **attempts}


def test_names_that_are_not_looked_at_stay_and_those_that_are_gone_go(store: DirectoryStore, directory: Path, tmp_path: Path) -> None:
    put(store, DAY, "prod/database/lms")
    put(store, DAY, "prod/files/uploads")
    put(store, DAY, "staging/database/lms")
    run(store, directory)
    empty = DirectoryStore(tmp_path / "empty")

    run(empty, directory, environment="prod", kind="database")

    names = {key.partition("{")[2] for key in told(directory) if key.startswith("good_total")}
    assert names == {'environment="prod",kind="files",name="uploads"}', 'environment="staging",kind="database",name="lms"}'}


def test_unfinished_backups_are_counted_where_there_is_no_other(store: DirectoryStore, directory: Path) -> None:
    store.draft("prod/database/lms/20261123T090000Z-00000000")

    run(store, directory)

    assert told(directory) == {
        f"good_total{{{LMS}}}": "0",
        f"corrupt_total{{{LMS}}}": "0",
        f"partial_total{{{LMS}}}": "1",
        f"prune_blocked{{{LMS}}}": "0",
    }


@pytest.mark.parametrize(
    ("ages", "stale_guard", "blocked"),
    [([2], "3d", "0"), ([9], "3d", "1"), ([9], "10d", "0"), ([1, -1], "3d", "1")],
)
def test_pruning_that_is_blocked_is_told(store: DirectoryStore, directory: Path, ages: list[int], stale_guard: str, blocked: str) -> None:
    for age in ages:
        put(store, age * DAY)

    run(store, directory, stale_guard=stale_guard)

    assert told(directory)[f"prune_blocked{{{LMS}}}"] == blocked


def test_two_who_write_at_once_lose_nothing(store: DirectoryStore, directory: Path) -> None:
    names = [f"database{index}" for index in range(8)]
    options = {"environment": "prod", "kind": "database", "attempt": "ok"}
    threads = [threading.Thread(target=run, args=(store, directory), kwargs={**options, "name": name}) for name in names]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len([key for key in told(directory) if key.startswith("last_attempt_ok")]) == len(names)


def test_what_is_read_is_what_was_written() -> None:
    samples = {(metric, (("environment", 'a "b"\\\nc'), ("kind", "files"), ("name", "x"))): 1.5 for metric in HELP}

    assert read_samples(render(samples)) == samples
    assert read_samples('garbage\nlms_other{a="b"} 1\nlms_backup_rows 1\n') == {}


def test_host_without_the_exporter_is_skipped_with_the_reason(store: DirectoryStore, tmp_path: Path) -> None:
    missing = tmp_path / "missing"

    assert run(store, missing) == {
        "changed": False,
        "path": f"{missing}/lms_backups.prom",
        "skipped": True,
        "reason": f"There is no directory {missing}. Install the node exporter there, or set directory to what it reads.",
        "diff": {},
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"file": "lms.txt"}, "file is lms.txt;"),
        ({"file": "../lms.prom"}, "file has '../lms.prom'"),
        ({"attempt": "ok", "environment": "prod"}, "attempt is of one backup: give environment, kind and name as well."),
        ({"stale_guard": "soon"}, "stale_guard is 'soon'."),
        ({"environment": "a/b"}, "environment is 'a/b'"),
    ],
)
def test_what_makes_no_sense_is_refused(store: DirectoryStore, directory: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(LmsError) as caught:
        run(store, directory, **wrong)

    assert caught.value.message.startswith(message)
