# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every run that makes a backup does, whatever is in it: see whether one is due, clear away, end in order, look at what was made."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import Backup, Catalogue, iso, read_catalogue
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Store
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

# What systemd, a terminal that closes, and a person send to end a run.
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    changed: bool
    plan: dict[str, Any]
    backup: dict[str, Any] | None = None
    warnings: Sequence[str] = ()
    diff: Mapping[str, Any] = field(default_factory=dict)


def newest_good(catalogue: Catalogue) -> Backup | None:
    """Return the newest good backup."""
    return next((backup for backup in reversed(catalogue.backups) if backup.good), None)


def young_enough(catalogue: Catalogue, max_age: int, now: datetime) -> Backup | None:
    """Return the newest good backup when it is younger than max_age (seconds); one from the future is no proof of anything."""
    good = [backup for backup in catalogue.backups if backup.good and backup.time <= now]
    return good[-1] if max_age and good and now - good[-1].time < timedelta(seconds=max_age) else None


def check_room(uri: str, free: int | None, needed: int) -> None:
    """Refuse to begin what will not fit (bytes)."""
    if free is not None and free < needed:
        raise LmsError(
            f"{uri} has {free} bytes free, and the backup may need {needed}. Make room there, or prune.", free=free, needed=needed
        )


def sweep_interrupted(store: Store, path: str) -> tuple[list[str], list[str]]:
    """Remove what interrupted runs left at <environment>/<kind>/<name>. Return what was removed, and sentences about what was not.

    To be called under the lock that their writers held, so that they are certainly dead.
    """
    swept, warnings = [], []
    for partial in store.partials(f"{path}/"):
        if partial.active:
            continue
        try:
            store.sweep(partial)
            swept.append(partial.path)
        except LmsError as error:
            warnings.append(f"What an interrupted run left at {partial.path} stays: {error.message}")
    return swept, warnings


def read_back(store: Store, path: str, identity: str) -> Backup:
    """Return a backup that was just made as the repository gives it now: what is reported is what is there."""
    for backup in read_catalogue(store, *path.split("/")).backups:
        if backup.id == identity:
            if backup.fault:
                raise LmsError(f"Backup {identity} was written, but reads as corrupt: {backup.fault}")
            return backup
    raise LmsError(f"Backup {identity} was written, but {store.uri} does not list it.")


def doubts(made: Backup) -> list[str]:
    """Return as a sentence why a backup does not count; nothing when it does."""
    reason = made.manifest.get("suspicious_reason")
    return [f"Backup {made.id} is suspicious and does not count as good: {reason}"] if made.manifest.get("suspicious") else []


def diff_of(previous: Backup | None, new: str) -> dict[str, Any]:
    """Return what --diff shows: which backup was the newest good one, and which is."""
    before = f"{previous.id} of {iso(previous.time)}\n" if previous else ""
    return {"before": before, "after": f"{new}\n", "before_header": "newest good backup", "after_header": "newest good backup"}


class Interrupted(BaseException):
    """A signal asked the run to end. No Exception: nothing is to take it for a failure that it could mend."""


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Let signals that ask for an end raise Interrupted, so that nothing half stays; the second one ends at once."""

    def interrupt(number: int, _frame: Any) -> None:
        for each in ENDING_SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        raise Interrupted(f"ended by {signal.Signals(number).name}")

    before = {each: signal.signal(each, interrupt) for each in ENDING_SIGNALS}
    try:
        yield
    except Interrupted as interruption:
        raise LmsError(f"The run was {interruption}; nothing half is left. Start it again.") from interruption
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
