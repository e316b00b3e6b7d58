# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The figures of backups in the text format that Prometheus reads.

They come from the repository and not from the run that made a backup, so that they are true whoever made it. Only what the repository
cannot know, how the last attempt ended, is told by the run and kept in the file.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import LEVELS, Backup, Catalogue, Verification
from ansible_collections.bitflow.lms.plugins.module_utils._backup_info import read_filtered
from ansible_collections.bitflow.lms.plugins.module_utils._backup_retention import by_name, clock_fault, name_of, stale_because
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Store
from ansible_collections.bitflow.lms.plugins.module_utils._deploy_metrics import ESCAPES, labels, number
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import locked, relative_path, write_atomically

PREFIX = "lms_backup_"
ATTEMPT = f"{PREFIX}last_attempt_timestamp_seconds"
ATTEMPT_OK = f"{PREFIX}last_attempt_ok"
SUCCESS = f"{PREFIX}last_success_timestamp_seconds"
VERIFIED = f"{PREFIX}last_verified_timestamp_seconds"
# In the order of the file. All are gauges.
HELP = {
    SUCCESS: "When the newest good backup was begun.",
    ATTEMPT: "When a backup was last tried.",
    ATTEMPT_OK: "Whether the last attempt succeeded.",
    VERIFIED: "When the newest of the good backups that were looked at as far as this level, or further, was begun.",
    f"{PREFIX}size_bytes": "Size of the newest complete backup in the repository, good or not.",
    f"{PREFIX}raw_bytes": "Size of the newest complete backup before it was compressed, good or not.",
    f"{PREFIX}rows": "Rows in the newest complete backup of a database, good or not.",
    f"{PREFIX}duration_seconds": "How long the newest complete backup took, good or not.",
    f"{PREFIX}good_total": "Good backups in the repository.",
    f"{PREFIX}corrupt_total": "Backups in the repository of which something is gone or was changed.",
    f"{PREFIX}partial_total": "Unfinished backups in the repository, with those that are being written.",
    f"{PREFIX}restore_duration_seconds": "How long it took to restore a backup for the last trial.",
    f"{PREFIX}prune_blocked": "Whether pruning deletes nothing, since the newest good backup is too old or a clock is wrong.",
}
# Those that only a run knows.
KEPT = (ATTEMPT, ATTEMPT_OK)
# Seconds. Whoever holds the lock reads a repository.
LOCK_TIMEOUT = 600
NAME_LABELS = ("environment", "kind", "name")

_SAMPLE = re.compile(r"^(?P<metric>[a-z_]+)\{(?P<labels>.*)\} (?P<value>[0-9.eE+-]+)$")
_LABEL = re.compile(r'(?P<label>[a-z_]+)="(?P<value>(?:[^"\\]|\\.)*)"')

# A metric and its labels, as pairs in the order of their names.
Key = tuple[str, tuple[tuple[str, str], ...]]


class MetricsFile:
    """The file in the directory that the node exporter reads."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.path = directory / relative_path(name, "file")
        if self.path.parent != directory or self.path.suffix != ".prom":
            raise LmsError(f"file is {name}; the node exporter reads names that end in .prom, directly in its directory.")

    def read(self) -> str:
        """Return what it says."""
        try:
            return self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def write(self, text: str) -> None:
        """Replace it in one step."""
        write_atomically(self.path, text.encode(), 0o644)

    def locked(self) -> contextlib.AbstractContextManager[int]:
        """Keep others who write it out, so that what they add is not lost."""
        return locked(self.directory / f".{self.path.name}.lock", f"Another task that writes {self.path}", LOCK_TIMEOUT)


def write_metrics(
    opened: Callable[[], Store],
    file: MetricsFile,
    filters: Sequence[str],
    ended: str | None,
    stale_guard: timedelta,
    now: datetime,
    check_mode: bool,
) -> tuple[str, str]:
    """Bring the file up to date, and return what it said and what it says. An attempt is noted also where the repository cannot be read."""
    with contextlib.nullcontext() if check_mode else file.locked():
        before = file.read()
        known = read_samples(before)
        tried = attempt("/".join(filters), ended == "ok", now) if ended else {}
        try:
            after = render(merge(known, {**samples(read_filtered(opened(), filters), stale_guard, now), **tried}, filters))
        except LmsError:
            if tried and not check_mode:
                file.write(render({**known, **tried}))
            raise
        if after != before and not check_mode:
            file.write(after)
    return before, after


def read_samples(text: str) -> dict[Key, float]:
    """Return the samples of an earlier file that this version of the collection knows."""
    found = [match for line in text.splitlines() if (match := _SAMPLE.match(line)) and match["metric"] in HELP]
    return {
        (match["metric"], tuple(sorted((label["label"], _unescape(label["value"])) for label in _LABEL.finditer(match["labels"])))): float(
            match["value"]
        )
        for match in found
    }


def merge(before: Mapping[Key, float], after: Mapping[Key, float], filters: Sequence[str]) -> dict[Key, float]:
    """Return the samples of the whole file: the new ones, the last attempts, and those of what was not looked at."""
    kept = {key: value for key, value in before.items() if key[0] in KEPT or not _within(key, filters)}
    return {**kept, **after}


def attempt(name: str, ended_well: bool, now: datetime) -> dict[Key, float]:
    """Return the samples of an attempt to back something up."""
    return {_key(ATTEMPT, name): now.timestamp(), _key(ATTEMPT_OK, name): float(ended_well)}


def samples(catalogue: Catalogue, stale_guard: timedelta, now: datetime) -> dict[Key, float]:
    """Return what the repository tells."""
    wrong_clock = bool(clock_fault(catalogue.backups, now))
    names: dict[str, list[Backup]] = by_name(catalogue.backups)
    for partial in catalogue.partials:
        names.setdefault(name_of(partial.path), [])
    found: dict[Key, float] = {}
    for name, backups in names.items():
        blocked = wrong_clock or bool(backups and stale_because(backups, stale_guard, now))
        figures = {
            "good_total": sum(backup.good for backup in backups),
            "corrupt_total": sum(backup.state == "corrupt" for backup in backups),
            "partial_total": sum(name_of(partial.path) == name for partial in catalogue.partials),
            "prune_blocked": float(blocked),
            **_newest(backups),
        }
        found |= {_key(PREFIX + metric, name): float(value) for metric, value in figures.items() if value is not None}
        found |= {_key(VERIFIED, name, level=level): moment for level, moment in _verified(backups).items()}
    return found


def render(values: Mapping[Key, float]) -> str:
    """Return the file."""
    lines = []
    for metric, text in HELP.items():
        of_metric = sorted((pairs, value) for (name, pairs), value in values.items() if name == metric)
        if of_metric:
            lines += [f"# HELP {metric} {text}", f"# TYPE {metric} gauge"]
            lines += [f"{metric}{labels(**dict(pairs))} {number(value)}" for pairs, value in of_metric]
    return "".join(f"{line}\n" for line in lines)


def _newest(backups: Sequence[Backup]) -> dict[str, Any]:
    """Return the figures of the newest backups of one name, the oldest of which comes first."""
    good = [backup for backup in backups if backup.good]
    # A backup that is too small is suspicious, and its size is what is to be seen.
    complete = [backup for backup in backups if backup.manifest]
    summary = complete[-1].summary() if complete else {}
    return {
        "last_success_timestamp_seconds": good[-1].time.timestamp() if good else None,
        "size_bytes": summary.get("size"),
        "raw_bytes": summary.get("raw_size"),
        "rows": summary.get("rows"),
        "duration_seconds": summary.get("duration"),
        "restore_duration_seconds": _restore_duration(look for backup in backups for look in backup.verifications),
    }


def _verified(backups: Iterable[Backup]) -> dict[str, float]:
    """Return when the newest good backup of each level of verification was begun. Who restores has read everything."""
    found: dict[str, float] = {}
    for backup in backups:
        reached = [LEVELS.index(look.level) for look in backup.verifications if look.ok and look.level in LEVELS]
        if backup.good and reached:
            found |= dict.fromkeys(LEVELS[: max(reached) + 1], backup.time.timestamp())
    return found


def _restore_duration(looks: Iterable[Verification]) -> float | None:
    """Return how long the last restore for a trial took."""
    restored = [look for look in looks if look.ok and look.level == "restore" and (look.record or {}).get("rto_seconds") is not None]
    return float((max(restored, key=lambda look: look.time).record or {})["rto_seconds"]) if restored else None


def _key(metric: str, name: str, **more: str) -> Key:
    """Return the key of a sample of environment/kind/name."""
    return metric, tuple(sorted({**dict(zip(NAME_LABELS, name.split("/"))), **more}.items()))


def _within(key: Key, filters: Sequence[str]) -> bool:
    """Say whether a sample is of what was looked at."""
    found = dict(key[1])
    return all(wanted in ("", found.get(label)) for label, wanted in zip(NAME_LABELS, filters))


def _unescape(value: str) -> str:
    """Return the value of a label as it was before it was escaped."""
    escaped = {after: before for before, after in ESCAPES}
    return re.sub(r"\\.", lambda match: escaped.get(match[0], match[0]), value)
