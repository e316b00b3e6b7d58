# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deleting backups: the plan and nothing else, in an order that no crash makes dangerous."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import (
    Catalogue,
    canonical,
    hold_key,
    new_id,
    read_catalogue,
    seal,
    verification_key,
)
from ansible_collections.bitflow.lms.plugins.module_utils._backup_directory import DirectoryStore
from ansible_collections.bitflow.lms.plugins.module_utils._backup_prune import as_result, carry_out, foresee, respect_locks
from ansible_collections.bitflow.lms.plugins.module_utils._backup_retention import Plan, Rules, make_plan
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import LockedObjectError, StoreError
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

NOW = datetime(2026, 11, 23, 10, 0, 0, tzinfo=timezone.utc)
DAY = timedelta(days=1)
LAST = Rules({"last": 1, "hourly": 0, "daily": 0, "weekly": 0, "monthly": 0, "yearly": 0}, min_good=1)


class Bucket(DirectoryStore):
    """A directory that refuses what object lock refuses, that breaks off, and that notes what it is asked."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.locked: set[str] = set()
        self.breaks_after: int | None = None
        self.asked: list[tuple[str, ...]] = []

    def delete(self, key: str) -> None:
        """Delete what is not locked."""
        if self.breaks_after == 0:
            raise StoreError("The connection was closed.")
        if self.breaks_after is not None:
            self.breaks_after -= 1
        self.asked.append(("delete", key))
        if key in self.locked:
            raise LockedObjectError(f"{key} is locked until 2027.")
        super().delete(key)


class LegalBucket(Bucket):
    """A bucket that knows locks and legal holds."""

    def __init__(self, root: Path, locks: dict[str, tuple[datetime | None, bool]] | None = None, may_lift: bool = True) -> None:
        super().__init__(root)
        self.locks = locks or {}
        self.may_lift = may_lift

    def lock_of(self, key: str) -> tuple[datetime | None, bool]:
        """Return what keeps an object."""
        return self.locks.get(key, (None, False))

    def legal_hold(self, key: str, on: bool) -> None:
        """Note it."""
        if not self.may_lift:
            raise StoreError("The identity may not do that.")
        self.asked.append(("legal_hold", key, str(on)))


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket(tmp_path)


def put(store: DirectoryStore, age: timedelta, **manifest: Any) -> str:
    """Publish a backup with ten bytes of data, and return its path."""
    path = f"prod/database/lms/{new_id(NOW - age, lambda _size: '00000000')}"
    draft = store.draft(path)
    upload = draft.upload("data.dump")
    upload.write(b"0123456789")
    done = upload.complete()
    draft.publish(seal({"objects": [{"name": done.name, "size": done.size, "sha256": done.sha256}], **manifest}))
    return path


def look(store: DirectoryStore) -> Catalogue:
    """Return what is there."""
    return read_catalogue(store, "prod", "database", "lms")


def planned(store: DirectoryStore, rules: Rules = LAST) -> Plan:
    """Return what would be done."""
    return make_plan(look(store), rules, NOW)


def paths(backups: Iterable[Any]) -> list[str]:
    """Return the paths of backups."""
    return [backup.path for backup in backups]


def files(root: Path) -> list[str]:
    """Return all files below a directory."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_what_the_plan_gives_up_is_gone_and_nothing_else(bucket: Bucket) -> None:
    old, new = put(bucket, 2 * DAY), put(bucket, DAY)
    bucket.create(verification_key(old, NOW - 2 * DAY, "checksum", lambda _size: "0a1b2c3d"), canonical({"ok": True}))
    size = look(bucket).backups[0].size

    result = as_result(plan := planned(bucket), carry_out(bucket, plan))

    assert files(bucket.root) == [f"{new}/data.dump", f"{new}/manifest.json"]
    assert not (bucket.root / old).exists()
    assert {**result, "kept": paths_of(result["kept"]), "deleted": paths_of(result["deleted"])} == {
        "changed": True,
        "kept": [(new, "newest good, last 1")],
        "deleted": [(old, "no rule keeps it")],
        "left_alone": [],
        "aborted_uploads": [],
        "freed": size,
        "blocked": "",
        "diff": {
            "before": f"{old}: delete (no rule keeps it)\n{new}: keep (newest good, last 1)\n",
            "after": f"{new}: keep (newest good, last 1)\n",
        },
    }


def paths_of(summaries: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return path and reason of each."""
    return [(summary["path"], summary["reason"]) for summary in summaries]


def test_check_mode_foresees_the_same_and_deletes_nothing(bucket: Bucket) -> None:
    put(bucket, 2 * DAY), put(bucket, DAY)
    before = files(bucket.root)
    plan = planned(bucket)

    foreseen = as_result(plan, foresee(plan))

    assert files(bucket.root) == before
    assert foreseen == as_result(plan, carry_out(bucket, plan))


def test_a_second_run_finds_nothing_to_do(bucket: Bucket) -> None:
    put(bucket, 2 * DAY), put(bucket, DAY)
    carry_out(bucket, planned(bucket))

    again = as_result(plan := planned(bucket), carry_out(bucket, plan))

    assert (again["changed"], again["deleted"], again["freed"]) == (False, [], 0)


@pytest.mark.parametrize("steps", range(6))
def test_broken_off_anywhere_no_half_backup_is_listed(bucket: Bucket, steps: int) -> None:
    wanted = [put(bucket, 3 * DAY), put(bucket, 2 * DAY), put(bucket, DAY)]
    bucket.breaks_after = steps

    if steps < 4:
        with pytest.raises(LmsError) as caught:
            carry_out(bucket, planned(bucket))
        assert caught.value.message == "Pruning stopped, and can be repeated: The connection was closed."
        assert caught.value.details["deleted"] == wanted[: (steps + 1) // 2]
    else:
        carry_out(bucket, planned(bucket))

    left = look(bucket).backups
    assert paths(left) == wanted[(steps + 1) // 2 if steps < 4 else 2 :]
    assert {backup.fault for backup in left} == {""}
    # The next run finishes it. The leftovers are as old as what they are left of.
    bucket.breaks_after = None
    sweeping = make_plan(look(bucket), LAST, NOW + 400 * 365 * DAY)
    carry_out(bucket, planned(bucket))
    for verdict in sweeping.partials:
        bucket.sweep(verdict.partial)
    assert files(bucket.root) == [f"{wanted[2]}/data.dump", f"{wanted[2]}/manifest.json"]


def test_in_the_order_of_their_names_half_a_backup_would_be_listed(bucket: Bucket) -> None:
    put(bucket, 3 * DAY), put(bucket, DAY)
    bucket.breaks_after = 1

    # As rm -r does it.
    with pytest.raises(StoreError):
        for entry in look(bucket).backups[0].entries:
            bucket.delete(entry.key)

    assert [backup.fault for backup in look(bucket).backups] == ["data.dump is gone.", ""]


def test_a_backup_whose_manifest_is_locked_stays_whole_and_is_no_failure(bucket: Bucket) -> None:
    old, _new = put(bucket, 2 * DAY), put(bucket, DAY)
    bucket.locked = {f"{old}/manifest.json"}
    before = files(bucket.root)

    result = as_result(plan := planned(bucket), carry_out(bucket, plan))

    assert files(bucket.root) == before
    assert (result["changed"], result["deleted"], result["freed"]) == (False, [], 0)
    assert result["left_alone"] == [{"path": old, "reason": f"locked: {old}/manifest.json is locked until 2027."}]


def test_an_object_that_is_locked_longer_is_left_for_a_later_run(bucket: Bucket) -> None:
    old, _new = put(bucket, 2 * DAY), put(bucket, DAY)
    bucket.locked = {f"{old}/data.dump"}

    result = as_result(plan := planned(bucket), carry_out(bucket, plan))

    assert paths_of(result["deleted"]) == [(old, "no rule keeps it")]
    assert result["left_alone"] == [{"path": f"{old}/data.dump", "reason": f"locked: {old}/data.dump is locked until 2027."}]
    assert paths(look(bucket).partials) == [old]


def test_a_backup_that_is_held_meanwhile_is_left_alone(bucket: Bucket) -> None:
    old, _new = put(bucket, 2 * DAY), put(bucket, DAY)
    plan = planned(bucket)
    bucket.create(hold_key(old, 1), canonical({"reason": "audit", "until": None}))
    before = files(bucket.root)

    result = as_result(plan, carry_out(bucket, plan))

    assert files(bucket.root) == before
    assert result["left_alone"] == [{"path": old, "reason": "somebody held or released it meanwhile; the next run looks again"}]


def test_a_held_backup_is_told_and_stays(bucket: Bucket) -> None:
    old, new = put(bucket, 2 * DAY), put(bucket, DAY)
    bucket.create(hold_key(old, 1), canonical({"reason": "audit", "until": None}))

    result = as_result(plan := planned(bucket), carry_out(bucket, plan))

    assert (result["changed"], result["left_alone"]) == (False, [{"path": old, "reason": "held: audit"}])
    assert paths_of(result["kept"]) == [(new, "newest good, last 1")]
    assert paths(look(bucket).backups) == [old, new]


def test_a_hold_that_has_ended_is_taken_from_the_bucket_too(tmp_path: Path) -> None:
    bucket = LegalBucket(tmp_path)
    old, _new = put(bucket, 2 * DAY), put(bucket, DAY)
    bucket.create(hold_key(old, 1), canonical({"reason": "audit", "until": "2026-11-22T00:00:00Z"}))

    carry_out(bucket, planned(bucket))

    assert bucket.asked == [
        *(("legal_hold", f"{old}/{file}", "False") for file in ("data.dump", "hold.json", "manifest.json")),
        *(("delete", f"{old}/{file}") for file in ("manifest.json", "data.dump", "hold.json")),
    ]


def test_a_legal_hold_that_may_not_be_lifted_keeps_the_backup_and_is_no_failure(tmp_path: Path) -> None:
    bucket = LegalBucket(tmp_path, may_lift=False)
    old, new = put(bucket, 2 * DAY), put(bucket, DAY)
    bucket.create(hold_key(old, 1), canonical({"reason": "audit", "until": "2026-11-22T00:00:00Z"}))

    result = as_result(plan := planned(bucket), carry_out(bucket, plan))

    reason = "locked: its hold has ended, and its legal hold cannot be lifted. The identity may not do that."
    assert result["left_alone"] == [{"path": old, "reason": reason}]
    assert paths(look(bucket).backups) == [old, new]


def test_only_what_the_bucket_does_not_keep_is_deleted(tmp_path: Path) -> None:
    bucket = LegalBucket(tmp_path)
    locked, ended, foreign, ours, new = (put(bucket, age * DAY) for age in (5, 4, 3, 2, 1))
    bucket.create(hold_key(ours, 1), canonical({"reason": "audit", "until": "2026-11-22T00:00:00Z"}))
    states = {locked: (NOW + DAY, False), ended: (NOW - DAY, False), foreign: (None, True), ours: (None, True), new: (NOW + DAY, True)}
    bucket.locks = {f"{path}/manifest.json": state for path, state in states.items()}

    plan = respect_locks(bucket, planned(bucket), NOW)

    assert [(verdict.backup.path, verdict.fate, verdict.reason) for verdict in plan.verdicts] == [
        (locked, "skip", "locked by the bucket until 2026-11-24T10:00:00Z"),
        (ended, "delete", "no rule keeps it"),
        (foreign, "skip", "locked by a legal hold that backup_hold did not set"),
        (ours, "delete", "no rule keeps it"),
        (new, "keep", "newest good, last 1"),
    ]
    assert respect_locks(Bucket(tmp_path), planned(bucket), NOW) == planned(bucket)


def test_what_an_interrupted_backup_left_is_swept_and_what_is_written_is_not(bucket: Bucket) -> None:
    put(bucket, DAY)
    interrupted = bucket.draft("prod/database/lms/20261120T000000Z-00000000")
    interrupted.upload("data.dump").abort()
    (bucket.root / "prod/database/lms/.partial-20261120T000000Z-00000000/.lock").unlink()
    writing = bucket.draft("prod/database/lms/20261121T000000Z-00000000")
    # The directories are as old as this test; it is late for whoever looks.
    late = datetime.now(timezone.utc) + 2 * DAY
    plan = make_plan(look(bucket), Rules(LAST.counts, stale_guard=9999 * DAY), max(late, NOW))

    result = as_result(plan, carry_out(bucket, plan))

    assert result["aborted_uploads"] == [{"path": "prod/database/lms/20261120T000000Z-00000000", "size": 0}]
    assert paths(look(bucket).partials) == ["prod/database/lms/20261121T000000Z-00000000"]
    writing.discard()
