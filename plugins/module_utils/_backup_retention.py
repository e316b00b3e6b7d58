# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backups stay and which go. Only good ones count, and the newest good and the newest verified one always stay."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import Backup, Catalogue, is_hold, iso
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Partial
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

KEEP = "keep"
DELETE = "delete"
# It would be deleted, if nothing held it.
SKIP = "skip"
SPARED = "no rule keeps it, but nothing is deleted now"

# The periods of UTC, each with how the name of one is written.
PERIODS = {"hourly": "%Y-%m-%d %H h", "daily": "%Y-%m-%d", "weekly": "%G-W%V", "monthly": "%Y-%m", "yearly": "%Y"}
COUNTS = ("last", *PERIODS)
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
# By how much the clocks of two hosts may differ.
CLOCK_TOLERANCE = timedelta(minutes=10)

_DURATION = re.compile(r"^(?P<number>[0-9]+)(?P<unit>[smhdw]?)$")


@dataclass(frozen=True)
class Rules:
    """What a person wants to keep."""

    # How many, by the names in COUNTS.
    counts: Mapping[str, int]
    within: timedelta = timedelta()
    min_good: int = 2
    min_verified: int = 1
    stale_guard: timedelta = timedelta(days=3)
    partial_max_age: timedelta = timedelta(hours=24)
    suspicious_max_age: timedelta = timedelta(days=14)

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Rules:
        """Read them from the options of a module, and refuse those that would keep nothing."""
        keep = params["keep"]
        counts = {name: keep.get(name) or 0 for name in COUNTS}
        within = read_duration("keep.within", keep.get("within") or "0")
        for name, count in counts.items():
            if count < 0:
                raise LmsError(f"keep.{name} is {count}. It is a number of backups, or 0 for none by this rule.")
        if not within and not any(counts.values()):
            raise LmsError(f"keep keeps nothing. Give at least one of {', '.join(COUNTS)} and within more than 0.")
        for name in ("min_good", "min_verified"):
            if params[name] < 1:
                raise LmsError(f"{name} is {params[name]}. At least the newest one stays: give 1 or more.")
        ages = {name: read_duration(name, params[name]) for name in ("stale_guard", "partial_max_age", "suspicious_max_age")}
        for name, age in ages.items():
            if not age:
                raise LmsError(f'{name} is {params[name]!r}. Give more than 0, such as "3d".')
        return cls(counts, within, params["min_good"], params["min_verified"], **ages)


@dataclass(frozen=True)
class Verdict:
    """What becomes of a backup, and why."""

    backup: Backup
    fate: str
    reason: str


@dataclass(frozen=True)
class PartialVerdict:
    """What becomes of what an interrupted backup left, and why."""

    partial: Partial
    fate: str
    reason: str


AnyVerdict = TypeVar("AnyVerdict", Verdict, PartialVerdict)


@dataclass(frozen=True)
class Plan:
    """What becomes of everything."""

    verdicts: tuple[Verdict, ...]
    partials: tuple[PartialVerdict, ...]
    # Why nothing of a name, or nothing at all, is deleted.
    blocked: tuple[str, ...]


def read_duration(option: str, text: str) -> timedelta:
    """Return a span of time that a user wrote: seconds, or a number with s, m, h, d or w."""
    match = _DURATION.match(text.strip())
    if not match:
        raise LmsError(f'{option} is {text!r}. Give seconds, or a number with one of s, m, h, d and w, such as "30d".')
    return timedelta(seconds=int(match["number"]) * UNITS[match["unit"]])


def in_words(span: timedelta) -> str:
    """Return a span of time in its largest unit and the next one, such as 3d 5h."""
    seconds = max(int(span.total_seconds()), 0)
    numbers = {}
    for unit in ("d", "h", "m", "s"):
        numbers[unit], seconds = divmod(seconds, UNITS[unit])
    words = [f"{number}{unit}" if number else "" for unit, number in numbers.items()]
    largest = next((index for index, word in enumerate(words) if word), None)
    return "0s" if largest is None else " ".join(filter(None, words[largest : largest + 2]))


def make_plan(catalogue: Catalogue, rules: Rules, now: datetime) -> Plan:
    """Decide on everything in a catalogue."""
    names = by_name(catalogue.backups)
    wrong_clock = clock_fault(catalogue.backups, now)
    stale = {name: reason for name, those in names.items() if (reason := stale_because(those, rules.stale_guard, now))}
    blocked = (wrong_clock,) if wrong_clock else tuple(stale.values())
    verdicts = [verdict for those in names.values() for verdict in _judge(those, rules, now)]
    partials = [_judge_partial(partial, rules, now) for partial in catalogue.partials]

    def spared(name: str) -> bool:
        return bool(wrong_clock) or name in stale

    return Plan(
        tuple(_spare(verdict, spared(name_of(verdict.backup.path))) for verdict in verdicts),
        tuple(_spare(verdict, spared(name_of(verdict.partial.path))) for verdict in partials),
        blocked,
    )


def by_name(backups: Iterable[Backup]) -> dict[str, list[Backup]]:
    """Return backups by environment, kind and name, the oldest first."""
    found: dict[str, list[Backup]] = {}
    for backup in sorted(backups, key=lambda backup: backup.path):
        found.setdefault(name_of(backup.path), []).append(backup)
    return found


def name_of(path: str) -> str:
    """Return environment, kind and name of a backup's path."""
    return path.rpartition("/")[0]


def clock_fault(backups: Iterable[Backup], now: datetime) -> str:
    """Say why the clock cannot be trusted, or nothing. No age means anything then."""
    future = [backup for backup in backups if backup.time > now + CLOCK_TOLERANCE]
    if not future:
        return ""
    return (
        f"The backup {future[-1].path} is from the future: it is {iso(now)} here. Nothing is deleted. "
        "Set the clock of this host, or, where the clock of its writer was wrong, move that backup out of the repository."
    )


def stale_because(backups: Sequence[Backup], stale_guard: timedelta, now: datetime) -> str:
    """Say why nothing of one name may be deleted, or nothing: its newest good backup is too old, or there is none."""
    good = [backup for backup in backups if backup.good]
    name = name_of(backups[-1].path)
    if not good:
        return f"No backup of {name} is good: nothing of it is deleted. Make a good one; backup_info says what is wrong with these."
    age = now - good[-1].time
    if age <= stale_guard:
        return ""
    return (
        f"The newest good backup of {name} is {in_words(age)} old, which is more than stale_guard ({in_words(stale_guard)}): "
        "nothing of it is deleted. Make a good one; backup_info says what is wrong with the newer ones, if there are any."
    )


def _spare(verdict: AnyVerdict, spared: bool) -> AnyVerdict:
    """Keep what would be deleted, where nothing is."""
    return replace(verdict, fate=KEEP, reason=SPARED) if spared and verdict.fate == DELETE else verdict


def _judge(backups: Sequence[Backup], rules: Rules, now: datetime) -> list[Verdict]:
    """Decide on the backups of one name, the oldest first."""
    reasons = _reasons(backups, rules, now)
    verdicts = []
    for backup in backups:
        if backup.id in reasons:
            verdicts.append(Verdict(backup, KEEP, ", ".join(reasons[backup.id])))
        elif not backup.good and now - backup.time <= rules.suspicious_max_age:
            verdicts.append(Verdict(backup, KEEP, f"{backup.state}, kept {in_words(rules.suspicious_max_age)} to be looked at"))
        elif backup.held(now):
            verdicts.append(Verdict(backup, SKIP, held_because(backup)))
        else:
            reason = "no rule keeps it" if backup.good else f"{backup.state} for more than {in_words(rules.suspicious_max_age)}"
            verdicts.append(Verdict(backup, DELETE, reason))
    return verdicts


def held_because(backup: Backup) -> str:
    """Say what holds a backup."""
    hold = backup.hold or {}
    until = f" until {hold['until']}" if hold.get("until") else ""
    return f"held{until}: {hold.get('reason') or 'no reason was given'}"


def _reasons(backups: Sequence[Backup], rules: Rules, now: datetime) -> dict[str, list[str]]:
    """Return why backups of one name stay, by id."""
    good = [backup for backup in reversed(backups) if backup.good]
    verified = [backup for backup in good if backup.state == "verified"]
    stays = [(backup, "newest good") for backup in good[:1]]
    stays += [(backup, "newest verified") for backup in verified[:1]]
    stays += [(backup, "min_good") for backup in good[1 : rules.min_good]]
    stays += [(backup, "min_verified") for backup in verified[1 : rules.min_verified]]
    stays += [(backup, f"last {rules.counts['last']}") for backup in good[: rules.counts["last"]]]
    stays += [(backup, f"within {in_words(rules.within)}") for backup in good if rules.within and now - backup.time <= rules.within]
    for rule, form in PERIODS.items():
        stays += [(backup, f"{rule} {period(backup, form)}") for backup in _newest_of_each(good, form)[: rules.counts[rule]]]
    reasons: dict[str, list[str]] = {}
    for backup, reason in stays:
        reasons.setdefault(backup.id, []).append(reason)
    return reasons


def period(backup: Backup, form: str) -> str:
    """Return the name of the period of UTC in which a backup began."""
    return backup.time.astimezone(timezone.utc).strftime(form)


def _newest_of_each(backups: Iterable[Backup], form: str) -> list[Backup]:
    """Return the newest backup of each period, the newest first, of backups in that order."""
    found: dict[str, Backup] = {}
    for backup in backups:
        found.setdefault(period(backup, form), backup)
    return list(found.values())


def _judge_partial(partial: Partial, rules: Rules, now: datetime) -> PartialVerdict:
    """Decide on what an interrupted backup left."""
    age = now - datetime.fromtimestamp(partial.started, timezone.utc)
    if partial.active:
        return PartialVerdict(partial, KEEP, "it is being written")
    if any(is_hold(key.rpartition("/")[2]) for key in partial.keys):
        return PartialVerdict(partial, SKIP, "held, though its manifest is gone")
    if age <= rules.partial_max_age:
        return PartialVerdict(partial, KEEP, f"younger than {in_words(rules.partial_max_age)}, so that it may be being written")
    return PartialVerdict(partial, DELETE, f"unfinished for more than {in_words(rules.partial_max_age)}")
