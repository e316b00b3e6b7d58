# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a catalogue comes to: the backups, the newest ones of each name, and sums."""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import Backup, Catalogue, iso, read_catalogue
from ansible_collections.bitflow.lms.plugins.module_utils._backup_retention import by_name, name_of
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Partial, Store

STATES = ("complete", "verified", "suspicious", "corrupt")


def read_filtered(store: Store, filters: Sequence[str]) -> Catalogue:
    """Read what a repository holds of an environment, a kind and a name, each of which may be empty for all."""
    # The repository itself only narrows from the left.
    leading = list(itertools.takewhile(bool, filters))
    catalogue = read_catalogue(store, *leading)

    def asked_for(path: str) -> bool:
        return all(wanted in ("", part) for wanted, part in zip(filters, path.split("/")))

    return Catalogue(
        tuple(backup for backup in catalogue.backups if asked_for(backup.path)),
        tuple(partial for partial in catalogue.partials if asked_for(partial.path)),
    )


def overview(catalogue: Catalogue, now: datetime, states: Container[str] = STATES, wanted: str = "") -> dict[str, Any]:
    """Return what the module returns. A name that is wanted has its row also where no backup is there."""
    names: dict[str, list[Backup]] = by_name(catalogue.backups)
    if wanted:
        names.setdefault(wanted, [])
    return {
        "backups": [describe(backup, now) for those in names.values() for backup in those if backup.state in states],
        "names": [_name(name, those, catalogue.partials, now) for name, those in sorted(names.items())],
        "partials": [_partial(partial, now) for partial in catalogue.partials],
        "totals": _totals(catalogue),
    }


def describe(backup: Backup, now: datetime) -> dict[str, Any]:
    """Return a backup as of a moment: its age, and whether its hold still lasts."""
    hold = backup.hold if backup.held(now) else None
    return {
        **backup.summary(),
        "age": _seconds(now - backup.time),
        "held": hold is not None,
        "hold_reason": hold.get("reason") if hold is not None else None,
        "hold_until": hold.get("until") if hold is not None else None,
    }


def _name(name: str, backups: Sequence[Backup], partials: Sequence[Partial], now: datetime) -> dict[str, Any]:
    """Return the newest backups and the sums of one name."""
    environment, kind, short = name.split("/")
    good = [backup for backup in backups if backup.good]
    verified = [backup for backup in good if backup.state == "verified"]
    return {
        "environment": environment,
        "kind": kind,
        "name": short,
        "newest_good": describe(good[-1], now) if good else None,
        "newest_verified": describe(verified[-1], now) if verified else None,
        "age": _seconds(now - good[-1].time) if good else None,
        "verified_age": _seconds(now - verified[-1].time) if verified else None,
        "good": len(good),
        "backups": len(backups),
        "partials": sum(name_of(partial.path) == name for partial in partials),
        "size": sum(backup.size for backup in backups),
    }


def _partial(partial: Partial, now: datetime) -> dict[str, Any]:
    """Return what an interrupted backup left."""
    started = datetime.fromtimestamp(partial.started, timezone.utc)
    return {
        "path": partial.path,
        "started": iso(started),
        "age": _seconds(now - started),
        "size": partial.size,
        "active": partial.active,
    }


def _totals(catalogue: Catalogue) -> dict[str, int]:
    """Return sums over everything that was read."""
    states = [backup.state for backup in catalogue.backups]
    return {
        "backups": len(states),
        **{state: states.count(state) for state in STATES},
        "partials": len(catalogue.partials),
        "size": sum(backup.size for backup in catalogue.backups) + sum(partial.size for partial in catalogue.partials),
    }


def _seconds(span: timedelta) -> int:
    """Return a span of time in whole seconds."""
    return int(span.total_seconds())
