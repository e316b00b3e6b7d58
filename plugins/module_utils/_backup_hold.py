# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hold a backup, so that no rule deletes it, and release it.

Each change adds a record with the next number, and the last one counts. Nothing is replaced or deleted: a crash leaves the hold of before
or the one of after, and whoever may only write can hold and release as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import Backup, canonical, hold_key, iso
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import ObjectExistsError, Store
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

SHOWN = ("reason", "until")


@dataclass(frozen=True)
class HoldPlan:
    """What is to be done with the hold of a backup."""

    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    # The record to add, or None where nothing changes.
    record: Mapping[str, Any] | None


def read_moment(option: str, text: str) -> datetime:
    """Return a time that a user wrote; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError as error:
        raise LmsError(f'{option} is {text!r}. Give a date or a time such as "2027-01-31" or "2027-01-31T12:00:00Z".') from error
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def plan_hold(backup: Backup, reason: str, until: str | None, now: datetime) -> HoldPlan:
    """Decide how to hold a backup."""
    if not reason.strip():
        raise LmsError("reason is empty. Say why the backup is held, so that somebody can tell when it need not be any more.")
    end = iso(read_moment("until", until)) if until else None
    if until and read_moment("until", until) <= now:
        raise LmsError(f"until is {end}, which is over. Give a later time, or leave it out to hold the backup until it is released.")
    wanted = {"reason": reason, "until": end}
    if backup.hold is not None and shown(backup.hold) == wanted:
        return HoldPlan(backup.hold, backup.hold, None)
    record = {**wanted, "created": iso(now)}
    return HoldPlan(backup.hold, record, record)


def plan_release(backup: Backup, now: datetime) -> HoldPlan:
    """Decide how to release a backup."""
    return HoldPlan(backup.hold, None, None if backup.hold is None else {"released": True, "created": iso(now)})


def carry_out(store: Store, backup: Backup, plan: HoldPlan) -> None:
    """Hold or release a backup, in the bucket's own way as well, where it has one."""
    if plan.after is None:
        # First, so that as long as anything is locked the record says that it is held.
        if plan.record is not None:
            _set_legal_hold(store, backup, False)
            _add(store, backup, plan.record)
        return
    if plan.record is not None:
        _add(store, backup, plan.record)
    # Also where nothing changes: a run before may have been killed here.
    _set_legal_hold(store, backup, True)


def shown(hold: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the diff shows of a hold."""
    return {} if hold is None else {key: hold.get(key) for key in SHOWN}


def _add(store: Store, backup: Backup, record: Mapping[str, Any]) -> None:
    """Add a record. Of two who do so at once one is refused."""
    try:
        store.create(hold_key(backup.path, backup.hold_words + 1), canonical(record))
    except ObjectExistsError as error:
        raise LmsError(f"Somebody else changed the hold of {backup.path} at the same moment. Look at it and try again.") from error


def _set_legal_hold(store: Store, backup: Backup, on: bool) -> None:
    """Lock the objects of a backup in a bucket with object lock, or unlock them."""
    legal_hold = getattr(store, "legal_hold", None)
    if legal_hold is not None:
        for entry in backup.entries:
            legal_hold(entry.key, on)
