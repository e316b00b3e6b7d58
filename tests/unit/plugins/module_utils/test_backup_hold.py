# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Holding a backup and releasing it: by records that are only added, the last of which counts."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import Backup, canonical, hold_key, read_catalogue, seal
from ansible_collections.bitflow.lms.plugins.module_utils._backup_directory import DirectoryStore
from ansible_collections.bitflow.lms.plugins.module_utils._backup_hold import carry_out, plan_hold, plan_release
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import LockedObjectError, StoreError
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.modules import backup_hold

NOW = datetime(2026, 11, 23, 10, 0, 0, tzinfo=timezone.utc)
ID = "20261120T020000Z-00000000"
PATH = f"prod/database/lms/{ID}"


class Bucket(DirectoryStore):
    """A directory that notes what it is asked, may delete nothing, and breaks off where it is told."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[tuple[str, ...]] = []
        self.breaks_after: int | None = None

    def create(self, key: str, content: bytes) -> None:
        """Write an object."""
        self._note("create", key)
        super().create(key, content)

    def delete(self, key: str) -> None:
        """Refuse, as for a writer who may not delete."""
        raise LockedObjectError(f"{key} may not be deleted.")

    def legal_hold(self, key: str, on: bool) -> None:
        """Note it."""
        self._note("legal_hold", key, str(on))

    def _note(self, *what: str) -> None:
        """Note what is asked, or break off."""
        if self.breaks_after == 0:
            raise StoreError("The connection was closed.")
        if self.breaks_after is not None:
            self.breaks_after -= 1
        self.asked.append(what)


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    made = Bucket(tmp_path)
    made.draft(PATH).publish(seal({"objects": []}))
    return made


def look(store: DirectoryStore) -> Backup:
    """Return the backup."""
    return read_catalogue(store, "prod", "database", "lms").backups[0]


def params(**more: Any) -> dict[str, Any]:
    """Return the options of the module."""
    options = {"environment": "prod", "kind": "database", "name": "lms", "id": ID, "state": "present", "reason": "The audit", "until": None}
    return {**options, **more}


def run(store: DirectoryStore, check_mode: bool = False, **more: Any) -> dict[str, Any]:
    """Run the module's own part."""
    return backup_hold.run(store, params(**more), check_mode, NOW)


def records(root: Path) -> dict[str, Any]:
    """Return the records there are."""
    return {path.name: json.loads(path.read_bytes()) for path in sorted((root / PATH).glob("hold*"))}


def test_a_hold_is_made_changed_and_released_by_adding_records(bucket: Bucket) -> None:
    changes = [
        run(bucket)["changed"],
        run(bucket)["changed"],
        run(bucket, until="2027-01-31")["changed"],
        run(bucket, until="2027-01-31T01:00:00+01:00")["changed"],
        run(bucket, state="absent")["changed"],
        run(bucket, state="absent")["changed"],
        run(bucket, reason="Again")["changed"],
    ]

    assert changes == [True, False, True, False, True, False, True]
    created = "2026-11-23T10:00:00Z"
    assert records(bucket.root) == {
        "hold.json": {"reason": "The audit", "until": None, "created": created},
        "hold-2.json": {"reason": "The audit", "until": "2027-01-31T00:00:00Z", "created": created},
        "hold-3.json": {"released": True, "created": created},
        "hold-4.json": {"reason": "Again", "until": None, "created": created},
    }
    assert look(bucket).hold == {"reason": "Again", "until": None, "created": created}


def test_the_tenth_record_counts_more_than_the_ninth(bucket: Bucket) -> None:
    for number in range(1, 11):
        run(bucket, reason=f"Reason {number}")

    assert (look(bucket).hold or {})["reason"] == "Reason 10"


def test_the_result_and_the_diff_say_what_holds_it(bucket: Bucket) -> None:
    run(bucket)

    result = run(bucket, reason="The case", until="2027-01-31")

    assert (result["backup"]["id"], result["backup"]["held"]) == (ID, True)
    assert {key: result[key] for key in ("changed", "hold", "diff")} == {
        "changed": True,
        "hold": {"reason": "The case", "until": "2027-01-31T00:00:00Z", "created": "2026-11-23T10:00:00Z"},
        "diff": {
            "before_header": PATH,
            "after_header": PATH,
            "before": {"reason": "The audit", "until": None},
            "after": {"reason": "The case", "until": "2027-01-31T00:00:00Z"},
        },
    }


@pytest.mark.parametrize("state", ["present", "absent"])
def test_check_mode_tells_the_same_and_adds_nothing(bucket: Bucket, state: str) -> None:
    run(bucket, reason="Before")
    before = records(bucket.root)

    foreseen = run(bucket, check_mode=True, state=state)

    assert records(bucket.root) == before
    assert foreseen == run(bucket, state=state)
    assert foreseen["changed"] is True


def test_the_bucket_locks_what_is_held_and_unlocks_it_before_it_is_released(bucket: Bucket) -> None:
    run(bucket)
    run(bucket)
    run(bucket, state="absent")

    manifest, hold = f"{PATH}/manifest.json", f"{PATH}/hold.json"
    assert bucket.asked == [
        ("create", hold),
        ("legal_hold", manifest, "True"),
        # Again, since the first run may have been killed before it.
        ("legal_hold", hold, "True"),
        ("legal_hold", manifest, "True"),
        ("legal_hold", hold, "False"),
        ("legal_hold", manifest, "False"),
        ("create", f"{PATH}/hold-2.json"),
    ]


@pytest.mark.parametrize("steps", range(7))
def test_broken_off_anywhere_a_change_loses_no_hold(bucket: Bucket, steps: int) -> None:
    run(bucket)
    bucket.breaks_after = steps

    for wanted in ({"reason": "Another"}, {"state": "absent"}):
        try:
            run(bucket, **wanted)
        except StoreError:
            break

    # It is released only when nothing is left to do.
    assert look(bucket).held(NOW) is True


def test_deleted_and_made_anew_a_hold_would_be_lost(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.draft(PATH).publish(seal({"objects": []}))
    run(store)

    # What a change would be without a second record, killed between its halves.
    store.delete(hold_key(PATH, 1))

    assert look(store).held(NOW) is False


def test_of_two_who_change_it_at_once_one_is_refused(bucket: Bucket) -> None:
    backup = look(bucket)
    run(bucket, reason="Theirs")

    with pytest.raises(LmsError, match=f"^Somebody else changed the hold of {PATH} at the same moment. Look at it and try again.$"):
        carry_out(bucket, backup, plan_hold(backup, "Ours", None, NOW))

    assert (look(bucket).hold or {})["reason"] == "Theirs"


def test_a_record_that_cannot_be_read_holds(bucket: Bucket) -> None:
    bucket.create(hold_key(PATH, 1), canonical({"released": True}))
    bucket.create(hold_key(PATH, 2), b"{")

    assert look(bucket).held(NOW) is True
    assert plan_release(look(bucket), NOW).record == {"released": True, "created": "2026-11-23T10:00:00Z"}


def test_a_hold_ends_when_it_said(bucket: Bucket) -> None:
    run(bucket, until="2026-12-01")

    held = [look(bucket).held(NOW + timedelta(days=days)) for days in (7, 8)]

    assert held == [True, False]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"reason": "  "}, "reason is empty."),
        ({"until": "soon"}, "until is 'soon'. Give a date or a time"),
        ({"until": "2026-11-23T10:00:00Z"}, "until is 2026-11-23T10:00:00Z, which is over."),
        ({"id": "20261120T020000Z-00000001"}, "Backup 20261120T020000Z-00000001 is not in the repository."),
        ({"name": "../lms"}, "name is '../lms'"),
    ],
)
def test_what_cannot_be_held_is_refused(bucket: Bucket, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(LmsError) as caught:
        run(bucket, **wrong)

    assert caught.value.message.startswith(message)
    assert bucket.asked == []
