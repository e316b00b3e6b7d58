# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a backup of files: look at them, stream them to the repository, list what was stored, publish last.

What is stored is a writer's business: BuiltinWriter here keeps tar, ResticWriter in _restic keeps a snapshot in a repository of restic.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import (
    Backup,
    Catalogue,
    check_name,
    iso,
    new_id,
    now_utc,
    read_catalogue,
    seal,
)
from ansible_collections.bitflow.lms.plugins.module_utils._backup_encryption import encrypting_stage, encryption_of
from ansible_collections.bitflow.lms.plugins.module_utils._backup_lock import LockedError, only_one
from ansible_collections.bitflow.lms.plugins.module_utils._backup_making import (
    Outcome,
    check_room,
    diff_of,
    doubts,
    ended_in_order,
    newest_good,
    read_back,
    sweep_interrupted,
    young_enough,
)
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Draft, Store
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._file_archive import (
    TarStream,
    counts_of_reasons,
    decode_list,
    encode_list,
    joined,
)
from ansible_collections.bitflow.lms.plugins.module_utils._file_tree import (
    CHANGED,
    NAMES_SHOWN,
    VANISHED,
    Changes,
    Counts,
    FileEntry,
    Patterns,
    Reports,
    Scan,
    Selection,
    compare,
    names,
    scan,
    shown,
)
from ansible_collections.bitflow.lms.plugins.module_utils._files import make_directory, write_atomically
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import Stage, run_pipeline
from ansible_collections.bitflow.lms.plugins.module_utils._progress import Progress

KIND = "files"
DATA, LIST = "files.tar.zst", "files.list.zst"
COMPRESSION = {"method": "zstd", "level": 3, "where": "around"}
# What the estimate of a backup's size may be wrong by.
ROOM_MARGIN = 1.2


@dataclass(frozen=True)
class Settings:
    """What is asked for, in the words of the module's options."""

    environment: str
    name: str
    paths: Sequence[str] = ()
    exclude: Sequence[str] = ()
    one_file_system: bool = False
    vanish_ok: Sequence[str] = ()
    xattrs: bool = False
    encrypted_required: bool = True
    max_age: int = 0
    max_shrink_percent: int = 50
    when_locked: str = "fail"
    nice: int = 10
    encryption: Mapping[str, Any] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Settings:
        """Take them from a module's options."""
        return cls(**{each.name: options[each.name] for each in fields(cls) if each.name in options})

    @property
    def path(self) -> str:
        """Return where its backups lie."""
        return f"{self.environment}/{KIND}/{self.name}"


def settings_argspec() -> dict[str, dict[str, Any]]:
    """Return the options of file_backup that no documentation fragment has, and that every engine takes."""
    return {
        "paths": {"type": "list", "elements": "path"},
        "exclude": {"type": "list", "elements": "str", "default": []},
        "one_file_system": {"type": "bool", "default": False},
        "vanish_ok": {"type": "list", "elements": "str", "default": []},
        "xattrs": {"type": "bool", "default": False},
        "encrypted_required": {"type": "bool", "default": True},
        "max_age": {"type": "int", "default": 0},
        "max_shrink_percent": {"type": "int", "default": 50},
        "when_locked": {"type": "str", "choices": ["fail", "skip"], "default": "fail"},
        "nice": {"type": "int", "default": 10},
        "labels": {"type": "dict", "default": {}},
    }


@dataclass
class Plan:
    """What was found, and what is to be done."""

    settings: Settings
    selection: Selection
    repository: Mapping[str, Any]
    catalogue: Catalogue
    # The good one that is young enough, when there is one; nothing else is looked at then.
    sufficient: Backup | None
    scan: Scan = field(default_factory=Scan)
    # Bytes that the backup will probably take.
    estimate: int = 0
    # How the files differ from the newest good backup; None where that was not asked, or nobody can tell.
    changes: Changes | None = None
    # What the writer has to do beside, such as creating its repository.
    notes: list[str] = field(default_factory=list)
    swept: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    skipped_reason: str = ""

    @property
    def previous(self) -> Backup | None:
        """Return the newest good backup."""
        return newest_good(self.catalogue)

    def as_result(self) -> dict[str, Any]:
        """Return it as the module does."""
        return {
            "paths": [shown(path) for path in self.selection.paths],
            "counts": asdict(self.scan.counts),
            "estimated_size": self.estimate,
            "changes": self.changes.as_result() if self.changes else None,
            "skipped": [{"path": f"/{shown(path)}", "reason": reason} for path, reason in self.skipped[:NAMES_SHOWN]],
            "notes": list(self.notes),
            "repository": dict(self.repository),
            "previous": self.previous.summary() if self.previous else None,
            "partials": [partial.path for partial in self.catalogue.partials],
            "swept": list(self.swept),
            "skipped_reason": self.skipped_reason,
        }


@dataclass(frozen=True)
class Written:
    """What a writer stored."""

    counts: Counts
    # What of the manifest is the writer's: objects, raw_size, tool and more.
    manifest: Mapping[str, Any]
    skipped: Sequence[tuple[str, str]] = ()


class Writer(Protocol):
    """How files get into a repository."""

    warnings: list[str]

    def check(self, plan: Plan) -> None:
        """Refuse what cannot work, and note in the plan what has to be done beside; nothing is written."""

    def prepare(self) -> None:
        """Do what check() noted."""

    def before(self, backup: Backup) -> Mapping[str, FileEntry] | None:
        """Return the files of an earlier backup, as far as this host can tell."""

    def estimate(self, plan: Plan) -> int:
        """Say how much room the backup will take (bytes)."""

    def write(self, draft: Draft, identity: str, plan: Plan) -> Written:
        """Store the files. Whatever happens, nothing of it may be taken for a backup before the draft is published."""

    def finish(self, backup: Backup) -> None:
        """Do what comes after the backup was published."""


def run(
    settings: Settings, store: Store, writer: Writer, *, check_mode: bool = False, compared: bool = False, progress: Progress | None = None
) -> Outcome:
    """Make the backup, unless a good one is young enough; in check mode only look."""
    # For whatever the programs and we ourselves create.
    os.umask(0o077)
    plan = make_plan(settings, store, writer, now_utc(), compared or check_mode)
    if plan.sufficient:
        plan.skipped_reason = f"{plan.sufficient.id} is younger than max_age."
    if plan.sufficient and not plan.notes:
        return Outcome(False, plan.as_result(), plan.sufficient.summary(), writer.warnings)
    if check_mode:
        plan.skipped = plan.scan.skipped
        found = plan.sufficient.summary() if plan.sufficient else None
        return Outcome(
            True, plan.as_result(), found, writer.warnings, _diff(plan, plan.sufficient.id if plan.sufficient else "a new backup")
        )
    try:
        with ended_in_order(), only_one(f"{store.uri}/{settings.path}"):
            writer.prepare()
            if plan.sufficient:
                return Outcome(True, plan.as_result(), plan.sufficient.summary(), writer.warnings, _diff(plan, plan.sufficient.id))
            return Maker(plan, store, writer, progress or Progress()).make()
    except LockedError as error:
        if settings.when_locked == "fail":
            raise
        plan.skipped_reason = error.message
        return Outcome(False, plan.as_result(), warnings=[*writer.warnings, error.message])


def make_plan(settings: Settings, store: Store, writer: Writer, now: datetime, compared: bool) -> Plan:
    """Look at the files and the repository, and refuse what cannot become a whole backup."""
    check_name("environment", settings.environment)
    check_name("name", settings.name)
    selection = Selection.of(settings.paths, settings.exclude, settings.one_file_system)
    repository = store.facts()
    catalogue = read_catalogue(store, settings.environment, KIND, settings.name)
    plan = Plan(settings, selection, repository, catalogue, young_enough(catalogue, settings.max_age, now))
    refuse_inside(store.uri, selection)
    writer.check(plan)
    if plan.sufficient:
        return plan
    since = plan.previous.time.timestamp() if plan.previous else 0
    plan.scan = scan(selection, since=since, keep=compared)
    plan.estimate = writer.estimate(plan)
    check_room(store.uri, repository.get("free"), plan.estimate)
    if compared:
        before = writer.before(plan.previous) if plan.previous else {}
        plan.changes = compare(before, plan.scan.entries) if before is not None else None
    return plan


def refuse_inside(uri: str, selection: Selection) -> None:
    """Refuse files among which the repository lies: each backup would hold all earlier ones, and itself."""
    for path in selection.paths:
        if f"{uri}/".startswith(f"{path}/") and not selection.exclude.match(uri[1:]):
            raise LmsError(f"The repository {uri} lies in {shown(path)}, which is to be backed up. Add it to exclude, or move it.")


def suspicion(counts: Counts, previous: Backup | None, max_shrink_percent: int) -> str:
    """Say why a backup that is complete may all the same not be what was wanted; nothing when there is no reason."""
    before = previous.manifest.get("counts", {}) if previous else {}
    limit = 1 - max_shrink_percent / 100
    for what, now in (("files", counts.files), ("bytes", counts.bytes)):
        then = before.get(what) or 0
        if previous and now < then * limit:
            return f"It has {now} {what}, {previous.id} had {then}: more than {max_shrink_percent} % fewer."
    return ""


class Maker:
    """Makes one backup."""

    def __init__(self, plan: Plan, store: Store, writer: Writer, progress: Progress) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.store = store
        self.writer = writer
        self.progress = progress
        self.warnings: list[str] = []

    def make(self) -> Outcome:
        """Clear away what interrupted runs left, store the files, publish."""
        plan, settings = self.plan, self.settings
        plan.swept, left = sweep_interrupted(self.store, settings.path)
        self.warnings += left
        started, begun = now_utc(), time.monotonic()
        identity = new_id(started)
        draft = self.store.draft(f"{settings.path}/{identity}")
        try:
            written = self.writer.write(draft, identity, plan)
            times = {"started": iso(started), "finished": iso(now_utc()), "duration_s": round(time.monotonic() - begun, 3)}
            draft.publish(seal({**self._identity(identity), **self._described(written), **times}))
        except BaseException:
            draft.discard()
            raise
        made = read_back(self.store, settings.path, identity)
        plan.skipped = list(written.skipped)
        self._warn(made, written)
        self.writer.finish(made)
        return Outcome(True, plan.as_result(), made.summary(), [*self.writer.warnings, *self.warnings], _diff(plan, identity))

    def _identity(self, identity: str) -> dict[str, Any]:
        """Return what the manifest says of the backup as such."""
        settings, previous = self.settings, self.plan.previous
        return {
            "id": identity,
            "kind": KIND,
            "environment": settings.environment,
            "name": settings.name,
            "host": socket.gethostname(),
            "paths": [shown(path) for path in self.plan.selection.paths],
            "exclude": list(settings.exclude),
            "one_file_system": settings.one_file_system,
            "labels": dict(settings.labels),
            "previous_id": previous.id if previous else None,
        }

    def _described(self, written: Written) -> dict[str, Any]:
        """Return what the manifest says of what was stored."""
        reason = suspicion(written.counts, self.plan.previous, self.settings.max_shrink_percent)
        return {
            **written.manifest,
            "counts": asdict(written.counts),
            "skipped": counts_of_reasons(written.skipped),
            "suspicious": bool(reason),
            "suspicious_reason": reason,
        }

    def _warn(self, made: Backup, written: Written) -> None:
        """Tell what a person should look at."""
        self.warnings += doubts(made)
        missed = [path for path, reason in written.skipped if reason in (VANISHED, CHANGED)]
        if missed:
            self.warnings.append(f"Files vanished or changed while they were read, which vanish_ok allows: {names(missed)}.")
        if not written.counts.files:
            self.warnings.append(f"Backup {made.id} holds no file.")


class BuiltinWriter:
    """Keeps files as tar, compressed and encrypted, with the list of them beside it."""

    def __init__(self, settings: Settings, store: Store, progress: Progress | None = None, notes: ListNotes | None = None) -> None:
        self.settings = settings
        self.store = store
        self.progress = progress or Progress()
        self.encryption = encryption_of(settings.encryption)
        self.notes = notes or ListNotes(f"{store.uri}/{settings.path}")
        self.warnings: list[str] = []
        # Called between two looks at a file; tests change it there.
        self.reading: Callable[[str], None] = lambda _path: None
        self._entries: list[FileEntry] = []

    def check(self, plan: Plan) -> None:
        """Refuse to store plain what may hold secrets."""
        if self.encryption.method == "none":
            if self.settings.encrypted_required:
                raise LmsError(
                    f"No recipients are given, so that whoever reads the repository could read the files of {self.settings.name}. "
                    "Set encryption.recipients, or encrypted_required to false where nothing in them is secret."
                )
            self.warnings.append(f"The backup of {self.settings.name} is not encrypted: no recipients are given.")

    def prepare(self) -> None:
        """Do nothing: the repository is ready."""

    def before(self, backup: Backup) -> Mapping[str, FileEntry] | None:
        """Return the files of an earlier backup. An encrypted list nobody can read here: what this host noted serves then."""
        noted = self.notes.read(backup.id)
        described = list_object(backup)
        if noted is None and described and described["encryption"]["method"] == "none":
            content = bytearray()
            source = self.store.stream(f"{backup.path}/{described['name']}")
            run_pipeline([Stage(["zstd", "--decompress", "--quiet", "--stdout", "-"])], source=source, sink=content.extend)
            noted = bytes(content)
        return decode_list(noted) if noted is not None else None

    def estimate(self, plan: Plan) -> int:
        """Say how much room the backup will take: in the proportion of the newest good one, or at first that of the files."""
        previous = plan.previous
        raw = previous.manifest.get("raw_size") if previous else None
        if previous and raw:
            return round(plan.scan.counts.bytes * min(1.0, previous.size / int(raw)) * ROOM_MARGIN)
        return plan.scan.counts.bytes

    def write(self, draft: Draft, identity: str, plan: Plan) -> Written:
        """Store the files and their list."""
        reports = Reports(Patterns(tuple(self.settings.vanish_ok)))
        self.progress.step(f"back up {self.settings.name}", plan.scan.counts.bytes)
        stream = TarStream(plan.selection, reports, self.settings.xattrs, heard=self.progress.add, reading=self.reading)
        data = self._store(draft, DATA, stream.pieces())
        self.progress.step("list the files")
        listing = list(joined(encode_list(stream.entries, reports.skipped)))
        described = [{**data, "raw_size": stream.size}, {**self._store(draft, LIST, listing), "raw_size": sum(map(len, listing))}]
        self._entries = stream.entries
        manifest = {"engine": "builtin", "tool": {"name": "tar", "version": "pax"}, "objects": described, "raw_size": stream.size}
        return Written(stream.counts, manifest, reports.skipped)

    def finish(self, backup: Backup) -> None:
        """Note what was stored, for the next comparison."""
        self.notes.write(backup.id, encode_list(self._entries))

    def _store(self, draft: Draft, name: str, pieces: Iterable[bytes]) -> dict[str, Any]:
        """Run the stream into an object of the repository, and describe that."""
        encrypting = encrypting_stage(self.settings.encryption)
        stages = [Stage(["zstd", f"-{COMPRESSION['level']}", "-T2", "-q", "-c", "-"]), *([encrypting] if encrypting else [])]
        upload = draft.upload(name + self.encryption.suffix)
        try:
            run_pipeline(stages, source=pieces, sink=upload.write, nice=self.settings.nice)
            stored = upload.complete()
        except BaseException:
            upload.abort()
            raise
        return {**asdict(stored), "compression": dict(COMPRESSION), "encryption": self.encryption.record()}


def list_object(backup: Backup) -> Mapping[str, Any] | None:
    """Return the object with the list of the files, where the backup has one."""
    return next((described for described in backup.manifest.get("objects", []) if described["name"].startswith(LIST)), None)


def data_object(backup: Backup) -> Mapping[str, Any] | None:
    """Return the object with the files, where the backup has one."""
    return next((described for described in backup.manifest.get("objects", []) if described["name"].startswith(DATA)), None)


def cache_directory() -> Path:
    """Return where this user keeps what can be lost."""
    home = Path("/var/cache") if os.geteuid() == 0 else Path("~/.cache").expanduser()
    return home / "bitflow-lms-backups"


class ListNotes:
    """What this host remembers of the newest list of files, so that it can tell what changed although it cannot decrypt the list.

    It names nothing that does not lie on this host, and is for its owner alone. When it is lost, only the comparison is.
    """

    def __init__(self, what: str, directory: Path | None = None) -> None:
        self.directory = directory or cache_directory()
        self.file = self.directory / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.list.gz"

    def read(self, identity: str) -> bytes | None:
        """Return the list of a backup, if it is that one's."""
        with suppress(OSError, EOFError):
            noted, _newline, content = gzip.decompress(self.file.read_bytes()).partition(b"\n")
            return content if noted == identity.encode() else None
        return None

    def write(self, identity: str, lines: Iterable[bytes]) -> None:
        """Remember the list of a backup. That it cannot be remembered is no reason to fail."""
        with suppress(OSError, LmsError):
            make_directory(self.directory, 0o700)
            write_atomically(self.file, gzip.compress(b"".join([identity.encode(), b"\n", *lines]), 1), 0o600)


def _diff(plan: Plan, new: str) -> dict[str, Any]:
    """Return what --diff shows: which backup was the newest good one and which is, and how the files differ."""
    shown_diff = diff_of(plan.previous, new)
    changes = plan.changes.lines() if plan.changes else ""
    return {**shown_diff, "after": f"{new}\n{changes}", "after_header": "newest good backup, and what changed in the files"}
