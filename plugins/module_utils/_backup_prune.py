# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Delete what a plan of the retention gives up, so that a half deleted backup is never listed."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import Backup, is_hold, iso
from ansible_collections.bitflow.lms.plugins.module_utils._backup_retention import DELETE, KEEP, SKIP, PartialVerdict, Plan, Verdict
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import MANIFEST, Entry, LockedObjectError, Store, StoreError
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError


@dataclass
class Outcome:
    """What became of a plan."""

    deleted: list[Verdict] = field(default_factory=list)
    swept: list[PartialVerdict] = field(default_factory=list)
    # What was to be deleted and stays: the path, and why.
    skipped: list[tuple[str, str]] = field(default_factory=list)
    # Bytes.
    freed: int = 0


def respect_locks(store: Store, plan: Plan, now: datetime) -> Plan:
    """Leave alone what the bucket keeps: to delete it would only hide it.

    The manifest is asked, which was written last and is kept the longest. A legal hold that backup_hold set ends with its note.
    """
    lock_of = getattr(store, "lock_of", None)
    if lock_of is None:
        return plan
    verdicts = []
    for verdict in plan.verdicts:
        until, legal_hold = lock_of(f"{verdict.backup.path}/{MANIFEST}") if verdict.fate == DELETE else (None, False)
        if until is not None and until > now:
            verdicts.append(replace(verdict, fate=SKIP, reason=f"locked by the bucket until {iso(until)}"))
        elif legal_hold and verdict.backup.hold is None:
            verdicts.append(replace(verdict, fate=SKIP, reason="locked by a legal hold that backup_hold did not set"))
        else:
            verdicts.append(verdict)
    return replace(plan, verdicts=tuple(verdicts))


def carry_out(store: Store, plan: Plan) -> Outcome:
    """Delete what the plan says, and nothing else. What is locked or held by now stays, and is told."""
    outcome = Outcome()
    try:
        for verdict in plan.verdicts:
            if verdict.fate == DELETE:
                _delete(store, verdict, outcome)
        for partial in plan.partials:
            if partial.fate == DELETE:
                _sweep(store, partial, outcome)
    except StoreError as error:
        done = sorted(_paths(outcome))
        raise LmsError(
            f"Pruning stopped, and can be repeated: {error.message}", **error.details, deleted=done, freed=outcome.freed
        ) from error
    return outcome


def foresee(plan: Plan) -> Outcome:
    """Return what would become of a plan, as far as nothing is locked."""
    deleted = [verdict for verdict in plan.verdicts if verdict.fate == DELETE]
    swept = [verdict for verdict in plan.partials if verdict.fate == DELETE]
    freed = sum(verdict.backup.size for verdict in deleted) + sum(verdict.partial.size for verdict in swept)
    return Outcome(deleted, swept, [], freed)


def as_result(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """Return what the module returns of it."""
    held = [(verdict.backup.path, verdict.reason) for verdict in plan.verdicts if verdict.fate == SKIP]
    held += [(verdict.partial.path, verdict.reason) for verdict in plan.partials if verdict.fate == SKIP]
    kept = [{**verdict.backup.summary(), "reason": verdict.reason} for verdict in plan.verdicts if verdict.fate == KEEP]
    deleted = [{**verdict.backup.summary(), "reason": verdict.reason} for verdict in outcome.deleted]
    return {
        "changed": bool(outcome.deleted or outcome.swept),
        "kept": kept,
        "deleted": deleted,
        "left_alone": [{"path": path, "reason": reason} for path, reason in sorted([*held, *outcome.skipped])],
        "aborted_uploads": [{"path": verdict.partial.path, "size": verdict.partial.size} for verdict in outcome.swept],
        "freed": outcome.freed,
        "blocked": " ".join(plan.blocked),
        "diff": {"before": _lines(plan), "after": _lines(plan, _paths(outcome))},
    }


def _paths(outcome: Outcome) -> set[str]:
    """Return the paths of what was deleted."""
    return {verdict.backup.path for verdict in outcome.deleted} | {verdict.partial.path for verdict in outcome.swept}


def _lines(plan: Plan, without: Container[str] = ()) -> str:
    """Return what the diff shows: a line for each backup and for each unfinished one."""
    lines = [(verdict.backup.path, verdict.fate, verdict.reason) for verdict in plan.verdicts]
    lines += [(verdict.partial.path, verdict.fate, f"unfinished, {verdict.reason}") for verdict in plan.partials]
    return "".join(f"{path}: {fate} ({reason})\n" for path, fate, reason in sorted(lines) if path not in without)


def _delete(store: Store, verdict: Verdict, outcome: Outcome) -> None:
    """Delete a backup: its manifest first, so that it is not listed from then on, whatever happens to the rest."""
    backup = verdict.backup
    entries = store.entries(f"{backup.path}/")
    if sum(is_hold(entry.key.rpartition("/")[2]) for entry in entries) > backup.hold_words:
        outcome.skipped.append((backup.path, "somebody held or released it meanwhile; the next run looks again"))
        return
    manifest = f"{backup.path}/{MANIFEST}"
    try:
        _lift_expired_hold(store, backup, entries)
        store.delete(manifest)
    except LockedObjectError as error:
        outcome.skipped.append((backup.path, f"locked: {error.message}"))
        return
    outcome.deleted.append(verdict)
    outcome.freed += sum(entry.size for entry in entries if entry.key == manifest)
    for entry in entries:
        if entry.key != manifest:
            _delete_rest(store, entry, outcome)


def _delete_rest(store: Store, entry: Entry, outcome: Outcome) -> None:
    """Delete another object of a backup whose manifest is gone. One that is locked stays, until a later run sweeps it away."""
    try:
        store.delete(entry.key)
    except LockedObjectError as error:
        outcome.skipped.append((entry.key, f"locked: {error.message}"))
        return
    outcome.freed += entry.size


def _lift_expired_hold(store: Store, backup: Backup, entries: Sequence[Entry]) -> None:
    """Take the legal hold of a bucket away, which knows no end of its own."""
    legal_hold = getattr(store, "legal_hold", None)
    if backup.hold is None or legal_hold is None:
        return
    try:
        for entry in entries:
            legal_hold(entry.key, False)
    except StoreError as error:
        raise LockedObjectError(f"its hold has ended, and its legal hold cannot be lifted. {error.message}") from error


def _sweep(store: Store, verdict: PartialVerdict, outcome: Outcome) -> None:
    """Remove what an interrupted backup left."""
    try:
        store.sweep(verdict.partial)
    except LockedObjectError as error:
        outcome.skipped.append((verdict.partial.path, f"locked: {error.message}"))
        return
    outcome.swept.append(verdict)
    outcome.freed += verdict.partial.size
