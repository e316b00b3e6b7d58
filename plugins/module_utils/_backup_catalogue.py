# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The backups of a repository, each with what is known of it: its manifest, its verifications, what holds it."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import MANIFEST, Entry, MissingObjectError, Partial, Store
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

FORMAT = 1
KINDS = ("database", "files")
HOLD = "hold.json"
# What a verification looked at, from the least to the most.
LEVELS = ("manifest", "checksum", "decode", "restore")
# What proves a backup: a database has to have been restored; of files, each one was read and held against its sum.
PROOF = {"database": "restore", "files": "decode"}
SELECTORS = "latest, latest_verified, before:<time>, or an id"

_ID = re.compile(r"^(?P<time>\d{8}T\d{6}Z)-(?P<random>[0-9a-f]{8})$")
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_HOLD = re.compile(r"^hold(?:-(?P<number>[1-9][0-9]*))?\.json$")
_VERIFICATION = re.compile(r"^verify-(?P<time>\d{8}T\d{6}Z)-(?P<level>[a-z]+)(?:-[0-9a-f]{8})?\.json$")
_STAMP = "%Y%m%dT%H%M%SZ"


class CorruptManifestError(LmsError):
    """A manifest that is not what was written."""


@dataclass(frozen=True)
class Verification:
    """One look at a backup."""

    level: str
    ok: bool
    time: datetime
    # Differences, as sentences.
    mismatches: tuple[str, ...] = ()
    # Everything that was noted, such as duration_s and rto_seconds.
    record: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Backup:
    """A backup that was published."""

    environment: str
    kind: str
    name: str
    id: str
    # Empty when it cannot be read: the backup is then corrupt.
    manifest: Mapping[str, Any]
    verifications: tuple[Verification, ...] = ()
    # reason, until (ISO 8601 or None), created; as backup_hold wrote it. None when it was released.
    hold: Mapping[str, Any] | None = None
    # Its objects, as the repository has them.
    entries: tuple[Entry, ...] = ()
    # Why it is corrupt, when its manifest alone tells.
    fault: str = ""
    # How many words on holding it were written. The last one counts.
    hold_words: int = 0

    @property
    def path(self) -> str:
        """Return where it lies in the repository."""
        return f"{self.environment}/{self.kind}/{self.name}/{self.id}"

    @property
    def time(self) -> datetime:
        """Return when it began (UTC)."""
        return time_of(self.id)

    @property
    def state(self) -> str:
        """Return complete, suspicious, verified (restored, and equal) or corrupt. The last look counts, whatever its level."""
        if self.fault or (self.verifications and not self.verifications[-1].ok):
            return "corrupt"
        if self.verified is not None:
            return "verified"
        return "suspicious" if self.manifest.get("suspicious") else "complete"

    @property
    def good(self) -> bool:
        """Say whether it may be counted on: whole, and neither suspicious nor corrupt."""
        return self.state in ("complete", "verified")

    @property
    def verified(self) -> datetime | None:
        """Return when it was last proven (PROOF), unless a later look found it corrupt."""
        if not self.verifications or not self.verifications[-1].ok:
            return None
        return max((look.time for look in self.verifications if look.ok and look.level == PROOF[self.kind]), default=None)

    @property
    def size(self) -> int:
        """Return how much room it takes (bytes)."""
        return sum(entry.size for entry in self.entries)

    def held(self, now: datetime) -> bool:
        """Say whether a hold keeps it."""
        if self.hold is None:
            return False
        until = self.hold.get("until")
        try:
            return until is None or datetime.fromisoformat(str(until).replace("Z", "+00:00")) > now
        except (ValueError, TypeError):
            # Better kept too long than lost.
            return True

    def summary(self) -> dict[str, Any]:
        """Return it as the modules do."""
        return {
            "id": self.id,
            "environment": self.environment,
            "kind": self.kind,
            "name": self.name,
            "path": self.path,
            "time": iso(self.time),
            "state": self.state,
            "verified": iso(self.verified) if self.verified else None,
            "held": self.hold is not None,
            "size": self.size,
            "raw_size": self.manifest.get("raw_size"),
            "duration": self.manifest.get("duration_s"),
            "rows": sum(table.get("rows") or 0 for table in self.manifest.get("tables", [])) if self.kind == "database" else None,
            "labels": dict(self.manifest.get("labels") or {}),
            "fault": self.fault or "; ".join(self.verifications[-1].mismatches if self.state == "corrupt" and self.verifications else ()),
        }


@dataclass(frozen=True)
class Catalogue:
    """What a repository holds below an environment, kind and name."""

    # By environment, kind, name and time, the oldest first.
    backups: tuple[Backup, ...]
    partials: tuple[Partial, ...]


def now_utc() -> datetime:
    """Return the time, to the second."""
    return datetime.now(timezone.utc).replace(microsecond=0)


def iso(moment: datetime) -> str:
    """Return a time as ISO 8601 in UTC."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def stamp(moment: datetime) -> str:
    """Return a time as ids and keys have it."""
    return moment.astimezone(timezone.utc).strftime(_STAMP)


def new_id(now: datetime, random: Callable[[int], str] = secrets.token_hex) -> str:
    """Return an id that no other backup has: its time, and eight random digits."""
    return f"{stamp(now)}-{random(4)}"


def time_of(identity: str) -> datetime:
    """Return when the backup of an id began."""
    match = _ID.match(identity)
    if not match:
        raise LmsError(f"{identity} is not the id of a backup. An id is a time and eight digits, such as 20261123T102835Z-6f3a91c2.")
    return datetime.strptime(match["time"], _STAMP).replace(tzinfo=timezone.utc)


def check_name(option: str, value: str) -> None:
    """Refuse what would not be one part of a path."""
    if not _NAME.match(value):
        raise LmsError(f"{option} is {value!r}, but it becomes part of a path: letters, digits, dot, underscore and hyphen only.")


def canonical(record: Mapping[str, Any]) -> bytes:
    """Return a record as the bytes that are stored and hashed: JSON, sorted keys, UTF-8."""
    return (json.dumps(record, sort_keys=True, ensure_ascii=False, indent=1) + "\n").encode()


def seal(manifest: Mapping[str, Any]) -> bytes:
    """Return a manifest as it is stored: with the sum of everything else in it."""
    unsealed = {"format": FORMAT, **manifest}
    return canonical({**unsealed, "manifest_sha256": hashlib.sha256(canonical(unsealed)).hexdigest()})


def parse_manifest(content: bytes) -> dict[str, Any]:
    """Return a manifest that is as it was written. CorruptManifestError otherwise."""
    try:
        manifest = json.loads(content)
        said = manifest.pop("manifest_sha256")
        known = manifest["format"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptManifestError("The manifest is no manifest of a backup.") from error
    if hashlib.sha256(canonical(manifest)).hexdigest() != said:
        raise CorruptManifestError("The manifest was changed after it was written: its sum differs.")
    if known != FORMAT:
        raise CorruptManifestError(f"The manifest has the format {known}; this version of the collection reads {FORMAT}.")
    return manifest  # type: ignore[no-any-return]


def hold_key(path: str, number: int) -> str:
    """Return the key of the first, second or a later word on holding a backup. A later one is added, and none is replaced or deleted."""
    return f"{path}/{HOLD}" if number == 1 else f"{path}/hold-{number}.json"


def is_hold(file: str) -> bool:
    """Say whether the name of a file is that of a word on holding a backup."""
    return _HOLD.match(file) is not None


def verification_key(path: str, moment: datetime, level: str, random: Callable[[int], str] = secrets.token_hex) -> str:
    """Return the key under which a look at a backup is noted."""
    return f"{path}/verify-{stamp(moment)}-{level}-{random(4)}.json"


def read_catalogue(store: Store, environment: str = "", kind: str = "", name: str = "") -> Catalogue:
    """Read what a repository holds. Each narrowing needs those before it."""
    prefix = "/".join(part for part in (environment, kind, name) if part)
    entries = store.entries(f"{prefix}/" if prefix else "")
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        parts = entry.key.split("/")
        if len(parts) == 5 and is_place("/".join(parts[:4])):
            found.setdefault("/".join(parts[:4]), []).append(entry)
    complete = {path: those for path, those in found.items() if any(entry.key == f"{path}/{MANIFEST}" for entry in those)}
    backups = [backup for path, those in complete.items() if (backup := _read_unless_deleted(store, path, those))]
    backups.sort(key=lambda backup: (backup.environment, backup.kind, backup.name, backup.id))
    # Other things may lie beside the backups, such as restic's own repository; nobody is to take them for what an interrupted run left.
    partials = (partial for partial in store.partials(f"{prefix}/" if prefix else "") if is_place(partial.path))
    return Catalogue(tuple(backups), tuple(partials))


def is_place(path: str) -> bool:
    """Say whether a path is one at which a backup lies, or would."""
    parts = path.split("/")
    return len(parts) == 4 and parts[1] in KINDS and _ID.match(parts[3]) is not None


def select(backups: Iterable[Backup], wanted: str) -> Backup:
    """Return the backup that is wanted among those of one name: latest good, latest_verified, before:TIME (good), or by id."""
    sorted_backups = sorted(backups, key=lambda backup: backup.id)
    if wanted == "latest":
        return _newest([backup for backup in sorted_backups if backup.good], wanted)
    if wanted == "latest_verified":
        return _newest([backup for backup in sorted_backups if backup.state == "verified"], wanted)
    if wanted.startswith("before:"):
        limit = _moment(wanted.partition(":")[2])
        return _newest([backup for backup in sorted_backups if backup.good and backup.time < limit], wanted)
    time_of(wanted)
    for backup in sorted_backups:
        if backup.id == wanted:
            return backup
    known = ", ".join(backup.id for backup in sorted_backups[-10:]) or "none"
    raise LmsError(f"Backup {wanted} is not in the repository. The newest ones there: {known}.")


def _moment(text: str) -> datetime:
    """Read a time that a user wrote; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise LmsError(f"before:{text} has no time that can be read. Write it as before:2026-11-23T10:28:35Z.") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _newest(backups: Sequence[Backup], wanted: str) -> Backup:
    """Return the last of them."""
    if not backups:
        raise LmsError(f"There is no backup that is meant by {wanted}: only good ones count. backup_info lists what is there, and why not.")
    return backups[-1]


def _read_unless_deleted(store: Store, path: str, entries: Sequence[Entry]) -> Backup | None:
    """Read what is known of one backup, or nothing of one that somebody deletes at this moment."""
    try:
        return _read_backup(store, path, entries)
    except MissingObjectError:
        return None


def _read_backup(store: Store, path: str, entries: Sequence[Entry]) -> Backup:
    """Read what is known of one backup."""
    environment, kind, name, identity = path.split("/")
    fault, manifest = "", {}
    try:
        manifest = parse_manifest(store.read(f"{path}/{MANIFEST}"))
    except CorruptManifestError as error:
        fault = error.message
    present = {entry.key.rpartition("/")[2]: entry for entry in entries}
    for described in manifest.get("objects", []):
        entry = present.get(described["name"])
        if entry is None:
            fault = fault or f"{described['name']} is gone."
        elif entry.size != described["size"]:
            fault = fault or f"{described['name']} has {entry.size} bytes, the manifest says {described['size']}."
    words = sorted((int(match["number"] or 1), file) for file in present if (match := _HOLD.match(file)))
    hold = _read_record(store, f"{path}/{words[-1][1]}") if words else None
    looks = [(match, file) for file in sorted(present) if (match := _VERIFICATION.match(file))]
    return Backup(
        environment,
        kind,
        name,
        identity,
        manifest,
        tuple(_read_verification(store, f"{path}/{file}", match["time"], match["level"]) for match, file in looks),
        None if hold and hold.get("released") is True else hold,
        tuple(entries),
        fault,
        words[-1][0] if words else 0,
    )


def _read_verification(store: Store, key: str, time: str, level: str) -> Verification:
    """Read one look at a backup; one that cannot be read proves nothing."""
    record = _read_record(store, key)
    moment = datetime.strptime(time, _STAMP).replace(tzinfo=timezone.utc)
    return Verification(level, record.get("ok") is True, moment, tuple(record.get("mismatches", [])), record)


def _read_record(store: Store, key: str) -> dict[str, Any]:
    """Read a small record; an unreadable one is empty."""
    try:
        record = json.loads(store.read(key))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
