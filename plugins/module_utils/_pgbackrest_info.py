# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What pgBackRest's repositories hold, and whether it is enough to recover with.

pgBackRest itself leaves three things unsaid: its command verify ends with status 0 whatever it finds; no command names a WAL segment that
is missing between two others, where every recovery ends; and a segment that it dropped because its queue was full counts as archived for
PostgreSQL. All three are told here, from the words that its commands print.

The role pgbackrest copies this file to the hosts, where its timers read the same words: it imports nothing but the standard library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

# Of pgBackRest's own numbers, those that are told apart here.
STATUS = {0: "ok", 1: "missing", 2: "empty", 3: "missing"}
SEGMENT = re.compile(r"(?:^|/)(?P<timeline>[0-9A-F]{8})(?P<log>[0-9A-F]{8})(?P<part>[0-9A-F]{8})-[0-9a-f]{40}(?:\.\w+)?$")
SEGMENT_SIZES: tuple[int, ...] = tuple(1 << power for power in (24, *range(20, 24), *range(25, 31)))
LOG_SIZE = 1 << 32
# What is wrong with the files of a backup or of the archive, in the words of pgBackRest's verify.
FAULTS = re.compile(r"missing: (\d+), checksum invalid: (\d+), size invalid: (\d+), other: (\d+)")
FAULT_NAMES = ("missing", "checksum_invalid", "size_invalid", "other")
VERIFIED_BACKUP = re.compile(r"backup: (?P<label>\S+), status: (?P<status>[^,]+)(?:, total files checked: (?P<total>\d+))?")
VERIFIED_ARCHIVE = re.compile(r"archiveId: (?P<id>\S+), total WAL checked: (?P<total>\d+), total valid WAL: (?P<valid>\d+)")


@dataclass(frozen=True)
class Backup:
    """A backup in a repository."""

    label: str
    # full, diff or incr
    type: str
    repository: int
    # Seconds since 1970.
    started: int
    stopped: int
    # The cluster (bytes), and what this backup added to the repository.
    size: int
    stored_size: int
    wal_start: str
    wal_stop: str
    lsn_start: str
    lsn_stop: str
    # The cluster's own checksums did not fit its pages.
    damaged: bool

    def describe(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**vars(self), "started": iso(self.started), "stopped": iso(self.stopped)}


@dataclass(frozen=True)
class Repository:
    """A repository as pgBackRest sees it."""

    key: int
    # ok, empty (no backup), missing (no stanza), passphrase (not readable with the one configured) or error
    status: str
    message: str
    cipher: str


@dataclass(frozen=True)
class Segment:
    """A file of the write-ahead log in a repository."""

    timeline: int
    # How many came before it since the cluster was made.
    position: int
    # When it was written there, in seconds since 1970.
    time: int


@dataclass(frozen=True)
class Gap:
    """Segments that are missing between others."""

    timeline: int
    first: int
    last: int
    # Until when the segment before it reaches, in seconds since 1970; 0 where there is none.
    reached: int

    @property
    def count(self) -> int:
        """Return how many segments are missing."""
        return self.last - self.first + 1


@dataclass(frozen=True)
class Stanza:
    """What is known of a stanza."""

    name: str
    status: str
    message: str
    # A backup runs.
    running: bool
    database_version: str
    repositories: Sequence[Repository]
    # The oldest first.
    backups: Sequence[Backup]
    # By repository, as far as the archive was looked at.
    segments: Mapping[int, Sequence[Segment]] = field(default_factory=dict)
    # Segments that PostgreSQL has still to hand over: they are late and not missing.
    waiting: Collection[tuple[int, int]] = ()

    @property
    def segment_size(self) -> int:
        """Return the size of a WAL segment (bytes), which only the backups' positions tell."""
        return segment_size((backup.lsn_start, backup.wal_start) for backup in self.backups)

    def newest(self, *types: str) -> Backup | None:
        """Return the newest backup of these types, or of any."""
        return max(
            (backup for backup in self.backups if not types or backup.type in types), key=lambda backup: backup.stopped, default=None
        )

    def gaps_after(self, backup: Backup) -> list[Gap]:
        """Return what is missing to recover from a backup to the end of the archive."""
        return gaps(self.segments.get(backup.repository, ()), backup, self.segment_size, self.waiting)

    @property
    def recoverable_since(self) -> int:
        """Return from when on every moment can be recovered (seconds since 1970), 0 where none can."""
        return min((backup.stopped for backup in self.backups if not backup.damaged and not self.gaps_after(backup)), default=0)

    @property
    def newest_wal(self) -> int:
        """Return when the newest segment came into a repository (seconds since 1970), 0 for none."""
        return max((segment.time for segments in self.segments.values() for segment in segments), default=0)

    @property
    def missing(self) -> int:
        """Return how many segments are missing after the newest backup: the recovery to now is cut off until the next backup."""
        newest = [self.only_in(repository.key).newest() for repository in self.repositories]
        return sum(gap.count for backup in newest if backup for gap in self.gaps_after(backup))

    def only_in(self, repository: int) -> Stanza:
        """Return the stanza with the backups of one repository."""
        return replace(self, backups=[backup for backup in self.backups if backup.repository == repository])

    def describe(self, now: float) -> dict[str, Any]:
        """Return it as plain data."""
        newest = {name: self.newest(*types) for name, types in (("newest_full", ("full",)), ("newest", ()))}
        return {
            "status": self.status,
            "message": self.message,
            "backup_running": self.running,
            "database_version": self.database_version,
            "repositories": [vars(repository) for repository in self.repositories],
            "backups": [backup.describe() for backup in self.backups],
            **{name: backup and {**backup.describe(), "age": int(now - backup.stopped)} for name, backup in newest.items()},
            "archive": [self._archive(key, segments) for key, segments in sorted(self.segments.items())],
            "recoverable_since": iso(self.recoverable_since),
            "recoverable_until": iso(self.newest_wal if self.recoverable_since else 0),
        }

    def _archive(self, key: int, segments: Sequence[Segment]) -> dict[str, Any]:
        """Return what a repository has of the log, and lacks since its oldest and since its newest backup."""
        own = sorted((backup for backup in self.backups if backup.repository == key), key=lambda backup: backup.stopped)
        size = self.segment_size
        ordered = sorted(segments, key=lambda segment: (segment.timeline, segment.position))
        return {
            "repository": key,
            "segments": len(segments),
            "first": segment_name(ordered[0].timeline, ordered[0].position, size) if ordered else None,
            "last": segment_name(ordered[-1].timeline, ordered[-1].position, size) if ordered else None,
            "newest": iso(max((segment.time for segment in segments), default=0)),
            "missing": [describe_gap(gap, size) for gap in (self.gaps_after(own[0]) if own else [])],
            "missing_since_newest_backup": sum(gap.count for gap in (self.gaps_after(own[-1]) if own else [])),
        }


def read_info(text: str, name: str) -> Stanza:
    """Read what `pgbackrest info --output=json` printed."""
    # A passphrase that does not fit leaves bytes in the message that no JSON should have.
    found = next((item for item in json.loads(text, strict=False) if item["name"] == name), None)
    if found is None:
        return Stanza(name, "missing", "", False, "", [], [])
    repositories = [_repository(item) for item in found["repo"]]
    database: Mapping[str, Any] = max(found["db"], key=lambda item: int(item["id"]), default={})
    backups = [_backup(item) for item in found["backup"]]
    return Stanza(
        name=name,
        status=_overall(repositories),
        message=next((repository.message for repository in repositories if repository.status not in {"ok", "empty", "missing"}), ""),
        running=bool(found["status"].get("lock", {}).get("backup", {}).get("held")),
        database_version=str(database.get("version", "")),
        repositories=repositories,
        backups=sorted(backups, key=lambda backup: (backup.stopped, backup.repository)),
    )


def _overall(repositories: Sequence[Repository]) -> str:
    """Return the worst that can be said of the repositories."""
    for status in ("passphrase", "error", "missing", "empty"):
        if any(repository.status == status for repository in repositories):
            return status
    return "ok" if repositories else "missing"


def _repository(item: Mapping[str, Any]) -> Repository:
    """Read a repository."""
    code, message = int(item["status"]["code"]), str(item["status"]["message"])
    status = STATUS.get(code, "error")
    if status == "error" and re.search(r"CryptoError|FormatError", message):
        return Repository(int(item["key"]), "passphrase", "It is encrypted with another passphrase, or not at all.", str(item["cipher"]))
    return Repository(int(item["key"]), status, "" if status == "ok" else printable(message.splitlines()[0]), str(item["cipher"]))


def _backup(item: Mapping[str, Any]) -> Backup:
    """Read a backup."""
    return Backup(
        label=str(item["label"]),
        type=str(item["type"]),
        repository=int(item["database"]["repo-key"]),
        started=int(item["timestamp"]["start"]),
        stopped=int(item["timestamp"]["stop"]),
        size=int(item["info"]["size"]),
        stored_size=int(item["info"]["repository"]["delta"]),
        wal_start=str(item["archive"]["start"] or ""),
        wal_stop=str(item["archive"]["stop"] or ""),
        lsn_start=str(item.get("lsn", {}).get("start") or ""),
        lsn_stop=str(item.get("lsn", {}).get("stop") or ""),
        damaged=bool(item.get("error")),
    )


def segment_size(positions: Iterable[tuple[str, str]]) -> int:
    """Return the size of a segment at which places in the log (LSN) are in the segments that backups name. 16 MiB where several are."""
    pairs = [(lsn, name) for lsn, name in positions if lsn and name]
    for size in SEGMENT_SIZES:
        if all(int(lsn.split("/")[1], 16) // size == int(name[16:24], 16) for lsn, name in pairs):
            return size
    return SEGMENT_SIZES[0]


def position_of(name: str, size: int) -> tuple[int, int]:
    """Return the timeline and the position of a segment."""
    return int(name[:8], 16), int(name[8:16], 16) * (LOG_SIZE // size) + int(name[16:24], 16)


def segment_name(timeline: int, position: int, size: int) -> str:
    """Return the name of a segment."""
    log, part = divmod(position, LOG_SIZE // size)
    return f"{timeline:08X}{log:08X}{part:08X}"


def read_listing(text: str, version: str, size: int) -> list[Segment]:
    """Read what `pgbackrest repo-ls --recurse --output=json archive/STANZA` printed: the segments of the database's version."""
    segments = []
    for path, item in json.loads(text, strict=False).items():
        found = SEGMENT.search(path)
        # Another major version has its own folder, such as 15-1 beside 17-2, and counts anew.
        if found and path.startswith(f"{version}-"):
            timeline, position = position_of(found["timeline"] + found["log"] + found["part"], size)
            segments.append(Segment(timeline, position, int(item.get("time", 0))))
    return segments


def gaps(segments: Iterable[Segment], backup: Backup, size: int, waiting: Collection[tuple[int, int]] = ()) -> list[Gap]:
    """Return what is missing from a backup's beginning on, on its timeline and on those that came after."""
    if not backup.wal_start:
        return []
    timeline, start = position_of(backup.wal_start, size)
    stop = position_of(backup.wal_stop, size)[1] if backup.wal_stop else start
    known: dict[int, dict[int, int]] = {timeline: {}}
    for segment in segments:
        if segment.timeline > timeline or (segment.timeline == timeline and segment.position >= start):
            known.setdefault(segment.timeline, {})[segment.position] = segment.time
    return [
        gap
        for number, times in sorted(known.items())
        for gap in _gaps_of(number, times, *((start, max([stop, *times])) if number == timeline else (min(times), max(times))), waiting)
    ]


def _gaps_of(timeline: int, times: Mapping[int, int], start: int, stop: int, waiting: Collection[tuple[int, int]]) -> list[Gap]:
    """Return what is missing of a timeline between two positions."""
    found: list[Gap] = []
    reached, before = 0, start - 1
    for position in [*sorted(times), stop + 1]:
        absent = [number for number in range(before + 1, position) if (timeline, number) not in waiting]
        if absent:
            found.append(Gap(timeline, absent[0], absent[-1], reached))
        before, reached = position, times.get(position, reached)
    return found


def describe_gap(gap: Gap, size: int) -> dict[str, Any]:
    """Return a gap as plain data."""
    return {
        "first": segment_name(gap.timeline, gap.first, size),
        "last": segment_name(gap.timeline, gap.last, size),
        "count": gap.count,
        "reached": iso(gap.reached),
    }


def read_verification(text: str) -> dict[str, Any]:
    """Read what `pgbackrest verify --output=text --verbose` printed. Its exit status says nothing."""
    backups: list[dict[str, Any]] = []
    archives: list[dict[str, Any]] = []
    problems: list[str] = []
    latest: dict[str, Any] = {}
    for line in (line.strip() for line in text.splitlines()):
        if found := VERIFIED_BACKUP.match(line):
            latest = {"label": found["label"], "status": found["status"], "files": int(found["total"] or 0)}
            backups.append(latest)
        elif found := VERIFIED_ARCHIVE.match(line):
            latest = {"id": found["id"], "segments": int(found["total"]), "valid": int(found["valid"])}
            archives.append(latest)
        elif found := FAULTS.match(line):
            latest.update(zip(FAULT_NAMES, map(int, found.groups())))
        elif line and not line.startswith(("stanza:", "status:")):
            problems.append(printable(line))
    problems += [
        f"backup {item['label']} is {item['status']}{_faults(item)}" for item in backups if item["status"] not in {"valid", "in-progress"}
    ]
    problems += [f"archive {item['id']} has bad segments{_faults(item)}" for item in archives if _bad(item)]
    if not backups and not problems:
        problems.append("there is no backup")
    if not problems and not re.search(r"^status: ok$", text, re.MULTILINE):
        problems.append("pgBackRest calls it an error and does not say why")
    return {"ok": not problems, "problems": problems, "backups": backups, "archives": archives}


def _bad(item: Mapping[str, Any]) -> bool:
    return bool(item["segments"] != item["valid"] or any(item.get(name) for name in FAULT_NAMES))


def _faults(item: Mapping[str, Any]) -> str:
    told = ", ".join(f"{name.replace('_', ' ')}: {item[name]}" for name in FAULT_NAMES if item.get(name))
    return f" ({told})" if told else ""


# In the order of the file. All are gauges.
HELP = {
    "lms_pgbackrest_report_timestamp_seconds": "When these figures were taken.",
    "lms_pgbackrest_repository_ok": "Whether a repository can be read and has the stanza.",
    "lms_pgbackrest_last_backup_timestamp_seconds": "When the newest backup of this type, or of a stronger one, ended.",
    "lms_pgbackrest_last_backup_damaged": "Whether pages of the cluster did not fit their checksums when the newest backup was taken.",
    "lms_pgbackrest_backups": "Backups in a repository.",
    "lms_pgbackrest_backup_bytes": "What the newest backup of this type added to its repository.",
    "lms_pgbackrest_backup_duration_seconds": "How long the newest backup of this type took.",
    "lms_pgbackrest_wal_newest_timestamp_seconds": "When the newest WAL segment came into a repository.",
    "lms_pgbackrest_wal_missing_segments": "WAL segments that are missing after the newest backup: a recovery ends there.",
    "lms_pgbackrest_wal_waiting_segments": "WAL segments that PostgreSQL still has to hand over.",
    "lms_pgbackrest_wal_waiting_seconds": "How long the oldest of them has waited.",
    "lms_pgbackrest_recoverable_since_timestamp_seconds": "From when on every moment can be recovered.",
    "lms_pgbackrest_last_verified_timestamp_seconds": "When all files in the repositories were last read and found whole.",
    "lms_pgbackrest_verification_ok": "Whether the last verification found everything whole.",
}
# What is at least as strong as a backup of a type.
STRONGER = {"full": ("full",), "diff": ("full", "diff"), "incr": ("full", "diff", "incr")}


def metrics(stanza: Stanza, waiting: tuple[int, float], verification: Mapping[str, Any], now: float) -> str:
    """Return the figures of a stanza in the text format that Prometheus reads.

    waiting is how many segments PostgreSQL has still to hand over, and for how long the oldest has waited (seconds).
    """
    label = {"stanza": stanza.name}
    newest = stanza.newest()
    keys = [repository.key for repository in stanza.repositories if repository.status in {"ok", "empty"}]
    strong = {name: stanza.newest(*types) for name, types in STRONGER.items()}
    of_type = {name: stanza.newest(name) for name in STRONGER}
    verified = verification.get("verified", 0)
    values: dict[str, list[tuple[dict[str, Any], float]]] = {
        "report_timestamp_seconds": [({}, int(now))],
        "repository_ok": [({"repository": item.key}, int(item.status in {"ok", "empty"})) for item in stanza.repositories],
        "last_backup_timestamp_seconds": [({"type": name}, backup.stopped) for name, backup in strong.items() if backup],
        "last_backup_damaged": [({}, int(newest.damaged))] if newest else [],
        "backups": [({"repository": key}, sum(backup.repository == key for backup in stanza.backups)) for key in keys],
        "backup_bytes": [({"type": name}, backup.stored_size) for name, backup in of_type.items() if backup],
        "backup_duration_seconds": [({"type": name}, backup.stopped - backup.started) for name, backup in of_type.items() if backup],
        "wal_newest_timestamp_seconds": [
            ({"repository": key}, max(segment.time for segment in segments))
            for key, segments in sorted(stanza.segments.items())
            if segments
        ],
        "wal_missing_segments": [({}, stanza.missing)] if stanza.segments else [],
        "wal_waiting_segments": [({}, waiting[0])],
        "wal_waiting_seconds": [({}, int(waiting[1]))],
        "recoverable_since_timestamp_seconds": [({}, stanza.recoverable_since)] if stanza.recoverable_since else [],
        "last_verified_timestamp_seconds": [({}, verified)] if verified else [],
        "verification_ok": [({}, int(verification["ok"]))] if "ok" in verification else [],
    }
    lines = []
    for name, text in HELP.items():
        samples = values[name.replace("lms_pgbackrest_", "")]
        lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"] if samples else []
        lines += [f"{name}{{{_labels({**label, **more})}}} {value}" for more, value in samples]
    return "".join(f"{line}\n" for line in lines)


def _labels(values: Mapping[str, Any]) -> str:
    return ",".join(f'{name}="{value}"' for name, value in sorted(values.items()))


def printable(text: str) -> str:
    """Return a text without what a wrong passphrase makes of a file."""
    return "".join(character for character in text if character.isprintable() and character != "\ufffd").strip()


def iso(seconds: float) -> str | None:
    """Return a moment as ISO 8601, or nothing where there is none."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else None
