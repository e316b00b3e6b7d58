# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring files of a backup back: beside their destination first, compared with the list of the backup, and put in place at the end.

What is written follows from the list alone. A path that is none below the destination is refused, and so is one that would lead through a
link, whether of the backup or of the destination.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import hashlib
import os
import pwd
import queue
import secrets
import shutil
import stat
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import IO, Any, Protocol, cast

from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import Backup, check_name, read_catalogue, select
from ansible_collections.bitflow.lms.plugins.module_utils._backup_making import ended_in_order
from ansible_collections.bitflow.lms.plugins.module_utils._backup_reading import CorruptObjectError, Reader
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Store
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._file_archive import decode_list
from ansible_collections.bitflow.lms.plugins.module_utils._file_backup import KIND, data_object, list_object
from ansible_collections.bitflow.lms.plugins.module_utils._file_tree import (
    DIRECTORY,
    FILE,
    HARD_LINK,
    LINK,
    NAMES_SHOWN,
    REPLACED,
    Counts,
    FileEntry,
    Patterns,
    check_path,
    names,
    shown,
)
from ansible_collections.bitflow.lms.plugins.module_utils._files import sync_filesystem
from ansible_collections.bitflow.lms.plugins.module_utils._progress import Progress
from ansible_collections.bitflow.lms.plugins.module_utils._restic import Restic

NEW, MISSING = "new", "missing"
# Room for a name and what belongs to it, beside the content (bytes).
ROOM_FOR_A_PATH = 4096
# Of a directory that leads to what is restored, and of which the backup says nothing.
PLAIN_DIRECTORY = 0o755
# restic is told each path, as long as all of them fit on a command line.
PATHS_NAMED = 500
_PIECE = 1024 * 1024
_HOLE = 64 * 1024
# tarfile copies what is left of its buffer at every read, so that a large one is slow.
_STREAM_BLOCK = 1 << 14
_STAGING = ".restore-"


@dataclass(frozen=True)
class Settings:
    """What is asked for, in the words of the module's options."""

    environment: str
    name: str
    destination: str = ""
    backup: str = "latest"
    mode: str = NEW
    include: Sequence[str] = ()
    path: str = ""
    nice: int = 0

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Settings:
        """Take them from a module's options."""
        named = {each.name: options[each.name] for each in fields(cls) if options.get(each.name) is not None}
        return cls(**named)


def settings_argspec() -> dict[str, dict[str, Any]]:
    """Return the options of file_restore that no documentation fragment has."""
    return {
        "backup": {"type": "str", "default": "latest"},
        "destination": {"type": "path", "required": True},
        "mode": {"type": "str", "choices": [NEW, MISSING], "default": NEW},
        "include": {"type": "list", "elements": "str", "default": []},
        "path": {"type": "path"},
        "nice": {"type": "int", "default": 0},
    }


@dataclass(frozen=True)
class Item:
    """A path that is to be written: where, below the destination, and what."""

    target: str
    entry: FileEntry
    # The path in the backup whose content it gets, for a file.
    source: str = ""
    # The target that it is another name of, for a hard link.
    link_to: str = ""


@dataclass(frozen=True)
class Plan:
    """What is to be written."""

    settings: Settings
    backup: Backup
    items: tuple[Item, ...]
    # How many paths are there already and stay as they are.
    existing: int
    free: int
    needed: int

    @property
    def counts(self) -> Counts:
        """Return how much it is."""
        counts = Counts()
        for item in self.items:
            counts.add(replace(item.entry, type=HARD_LINK) if item.link_to else item.entry)
        return counts

    def as_result(self) -> dict[str, Any]:
        """Return it as the module does."""
        return {
            "destination": self.settings.destination,
            "mode": self.settings.mode,
            "counts": asdict(self.counts),
            "existing": self.existing,
            "names": [shown(item.target) for item in self.items[:NAMES_SHOWN]],
            "free": self.free,
            "needed": self.needed,
        }

    def lines(self) -> str:
        """Return it for --diff."""
        more = f"and {len(self.items) - NAMES_SHOWN} more\n" if len(self.items) > NAMES_SHOWN else ""
        return "".join(f"{Path(self.settings.destination) / shown(item.target)}\n" for item in self.items[:NAMES_SHOWN]) + more


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    changed: bool
    plan: dict[str, Any]
    backup: dict[str, Any]
    diff: Mapping[str, Any]
    warnings: Sequence[str] = ()


class Source(Protocol):
    """Where the files of a backup come from."""

    def listing(self) -> dict[str, FileEntry]:
        """Return what the backup holds."""

    def extract(self, items: Sequence[Item], staging: Path) -> None:
        """Write the items below a directory, with owners, modes and times, and compare them with the list."""


def run(
    settings: Settings,
    store: Store,
    source_of: Callable[[Backup], Source],
    *,
    check_mode: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Restore; in check mode only look."""
    os.umask(0o077)
    check_name("environment", settings.environment)
    check_name("name", settings.name)
    store.facts()
    backup = select(read_catalogue(store, settings.environment, KIND, settings.name).backups, settings.backup)
    if backup.state == "corrupt":
        raise LmsError(f"Backup {backup.id} is corrupt: {backup.summary()['fault']} Choose another one; backup_info lists them.")
    destination = Path(settings.destination)
    staging = staging_place(destination)
    if not check_mode:
        staging.sweep()
    source = source_of(backup)
    plan = make_plan(settings, backup, source.listing(), staging)
    warnings = [f"Backup {backup.id} is suspicious: {backup.manifest['suspicious_reason']}"] if backup.state == "suspicious" else []
    if plan.items and not check_mode:
        (progress or Progress()).step(f"restore {settings.name}", plan.counts.bytes)
        with ended_in_order():
            carry_out(plan, source, staging)
    diff = {"before": "", "after": plan.lines(), "before_header": str(destination), "after_header": str(destination)}
    return Outcome(bool(plan.items), plan.as_result(), backup.summary(), diff, warnings)


# Deciding


def make_plan(settings: Settings, backup: Backup, listing: Mapping[str, FileEntry], staging: Staging) -> Plan:
    """Say what is to be written, and refuse what cannot be."""
    destination = Path(settings.destination)
    chosen = choose(listing, settings.path, Patterns(tuple(settings.include)))
    there = Presence(destination)
    if settings.mode == NEW:
        there.refuse_unless_empty()
        wanted = chosen
    else:
        wanted = {target: entry for target, entry in chosen.items() if not there.has(target, entry)}
    if not chosen:
        raise LmsError(f"Backup {backup.id} has nothing that path and include mean. It holds {names(_tops(listing))}.")
    items = tuple(resolve(wanted))
    free = staging.free()
    needed = sum(item.entry.size for item in items if item.source) + ROOM_FOR_A_PATH * len(items)
    if items and free < needed:
        raise LmsError(f"{staging.parent} has {free} bytes free, and the files need {needed}. Make room there.", free=free, needed=needed)
    return Plan(settings, backup, items, len(chosen) - len(wanted), free, needed)


def choose(listing: Mapping[str, FileEntry], path: str, include: Patterns) -> dict[str, FileEntry]:
    """Return what is meant, by where it goes, with the directories that lead there."""
    prefix = os.path.normpath(path).lstrip("/") if path and path != "/" else ""
    if prefix in listing and listing[prefix].type != DIRECTORY:
        raise LmsError(f"path is {path}, which is no directory in this backup. Use include for a single file.")
    chosen: dict[str, FileEntry] = {}
    for name, entry in listing.items():
        check_path(name)
        target = _below(name, prefix)
        if target is None or (include.globs and not include.match(name)):
            continue
        chosen[target] = entry
    for target in list(chosen):
        for parent in _parents(target):
            if parent in chosen:
                continue
            name = f"{prefix}/{parent}".strip("/")
            chosen[parent] = listing.get(name) or FileEntry(name, DIRECTORY, mode=PLAIN_DIRECTORY, uid=-1, gid=-1)
    for target in chosen:
        blocking = next((parent for parent in _parents(target) if chosen[parent].type != DIRECTORY), None)
        if blocking is not None:
            raise LmsError(f"The backup names {shown(target)} below {shown(blocking)}, which is no directory in it. Nothing is restored.")
    # Without a path the destination is no directory of the backup.
    return {target: chosen[target] for target in sorted(chosen) if target or prefix}


def _below(name: str, prefix: str) -> str | None:
    """Return a path as it is below another one; empty for that itself, None for what is not below."""
    if not prefix:
        return name
    if name == prefix:
        return ""
    return name[len(prefix) + 1 :] if name.startswith(f"{prefix}/") else None


def _parents(target: str) -> Iterator[str]:
    """Return the directories above a path, the nearest one first, without the destination itself."""
    while "/" in target:
        target = target.rpartition("/")[0]
        yield target


def _tops(listing: Mapping[str, FileEntry]) -> list[str]:
    """Return the paths that lie below no other one."""
    return [path for path in listing if not any(parent in listing for parent in _parents(path))]


def resolve(wanted: Mapping[str, FileEntry]) -> Iterator[Item]:
    """Return the items in the order of their paths: a hard link whose file is not wanted gets the content itself."""
    first: dict[str, str] = {}
    by_source = {entry.path: target for target, entry in wanted.items() if entry.type == FILE}
    for target, entry in wanted.items():
        if entry.type == FILE:
            yield Item(target, entry, source=entry.path)
        elif entry.type == HARD_LINK:
            original = by_source.get(entry.target) or first.get(entry.target)
            if original is None:
                first[entry.target] = target
                yield Item(target, replace(entry, type=FILE), source=entry.target)
            else:
                yield Item(target, entry, link_to=original)
        else:
            yield Item(target, entry)


class Presence:
    """What lies at a destination."""

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self._directories: dict[str, bool] = {}

    def refuse_unless_empty(self) -> None:
        """Refuse a destination that holds something."""
        if self.destination.is_symlink() or (self.destination.exists() and not self.destination.is_dir()):
            raise LmsError(f"destination is {self.destination}, which is no directory. Choose another one.")
        if self.destination.is_dir() and any(not path.name.startswith(_STAGING) for path in self.destination.iterdir()):
            raise LmsError(
                f"destination is {self.destination}, which is not empty. Choose a new directory, or mode missing to add what is not there."
            )

    def has(self, target: str, entry: FileEntry) -> bool:
        """Say whether a path is there. LmsError when what is there is in the way."""
        if not target:
            return self.destination.is_dir()
        parent = target.rpartition("/")[0]
        if not self._directory(parent):
            return False
        try:
            status = (self.destination / target).lstat()
        except FileNotFoundError:
            return False
        if (entry.type == DIRECTORY) != stat.S_ISDIR(status.st_mode):
            kind = "a directory" if entry.type == DIRECTORY else "no directory"
            raise LmsError(f"{self.destination / shown(target)} is in the way: in the backup it is {kind}. Move it away.")
        return True

    def _directory(self, target: str) -> bool:
        """Say whether a directory is there that may be written into."""
        if target not in self._directories:
            path = self.destination / target if target else self.destination
            above = self._directory(target.rpartition("/")[0]) if target else True
            if above and target and path.is_symlink():
                raise LmsError(
                    f"{shown(str(path))} is a symbolic link, and nothing is written through one. Use where it leads as destination."
                )
            self._directories[target] = above and path.is_dir()
        return self._directories[target]


# Staging


@dataclass(frozen=True)
class Staging:
    """Where files are gathered before they are put in place: on the same file system."""

    parent: Path
    beginning: str

    def free(self) -> int:
        """Return how much room there is (bytes)."""
        return shutil.disk_usage(self.parent).free

    def sweep(self) -> None:
        """Remove what interrupted runs left; one that is at work holds a lock."""
        for path in self.parent.glob("*"):
            if path.name.startswith(self.beginning) and path.is_dir() and not path.is_symlink():
                with self._locked(path) as free:
                    if free:
                        shutil.rmtree(path)

    @contextmanager
    def open(self) -> Iterator[Path]:
        """Give a directory for this process alone, and leave nothing of it."""
        path = self.parent / f"{self.beginning}{secrets.token_hex(4)}"
        path.mkdir(0o700)
        try:
            with self._locked(path):
                # What becomes of it in the end must not be taken for left over.
                content = path / "content"
                content.mkdir(0o700)
                yield content
        finally:
            _remove(path)

    @staticmethod
    @contextmanager
    def _locked(path: Path) -> Iterator[bool]:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(descriptor)


def staging_place(destination: Path) -> Staging:
    """Return where to gather files for a destination: beside it, or in it where it is a file system of its own."""
    if not destination.is_absolute():
        raise LmsError(f"destination is {destination}. Give an absolute path.")
    parent = destination.parent
    if not parent.is_dir():
        raise LmsError(f"destination is {destination}, and there is no directory {parent}. Create it first.")
    if destination.is_dir() and (destination == parent or destination.stat().st_dev != parent.stat().st_dev):
        return Staging(destination, _STAGING)
    return Staging(parent, f".{destination.name}{_STAGING}")


def carry_out(plan: Plan, source: Source, staging: Staging) -> None:
    """Gather the files, and put them in place when all are there."""
    destination = Path(plan.settings.destination)
    try:
        with staging.open() as content:
            _scaffold(plan.items, content)
            source.extract(plan.items, content)
            sync_filesystem(content)
            if plan.settings.mode == MISSING:
                Addition(plan.items, content, destination).place()
            elif destination.exists():
                _move_into(content, destination)
            else:
                content.rename(destination)
    except OSError as error:
        raise LmsError(
            f"The files of backup {plan.backup.id} were not restored to {destination}, and nothing of them is left there: {error.strerror}"
            f"{f' ({shown(str(error.filename))})' if error.filename else ''}."
        ) from error


def _scaffold(items: Sequence[Item], content: Path) -> None:
    """Make the directories that the destination has already, so that what goes into them can be gathered."""
    targets = {item.target for item in items}
    for item in items:
        for parent in reversed([parent for parent in _parents(item.target) if parent not in targets]):
            (content / parent).mkdir(0o700, exist_ok=True)


def _move_into(content: Path, destination: Path) -> None:
    """Move everything into an empty directory, which stays the one that it is for who has it open."""
    moved: list[Path] = []
    try:
        for path in sorted(content.iterdir()):
            target = destination / path.name
            if os.path.lexists(target):
                raise LmsError(f"{target} came into being while the files were restored. Nothing was put in place.")
            path.rename(target)
            moved.append(target)
    except BaseException:
        for target in moved:
            target.rename(content / target.name)
        raise


class Addition:
    """Puts files beside others, and never in place of one; what it put there goes again when it cannot finish."""

    def __init__(self, items: Sequence[Item], content: Path, destination: Path) -> None:
        self.items = items
        self.content = content
        self.destination = destination
        self._placed: list[tuple[str, bool]] = []

    def place(self) -> None:
        """Put everything in place."""
        try:
            for item in self.items:
                self._place(item)
        except BaseException:
            self._take_back()
            raise
        for item in reversed(self.items):
            if item.entry.type == DIRECTORY:
                with self._parent(item.target) as (directory, name):
                    _dress_directory(name, directory, item.entry)

    def _place(self, item: Item) -> None:
        if not item.target:
            self.destination.mkdir(0o700)
            self._placed.append(("", True))
            return
        with self._parent(item.target) as (directory, name):
            if item.entry.type == DIRECTORY:
                os.mkdir(name, 0o700, dir_fd=directory)
            else:
                os.link(self.content / item.target, name, dst_dir_fd=directory, follow_symlinks=False)
        self._placed.append((item.target, item.entry.type == DIRECTORY))

    def _take_back(self) -> None:
        for target, is_directory in reversed(self._placed):
            with contextlib.suppress(OSError), self._parent(target) as (directory, name):
                if is_directory:
                    os.rmdir(name, dir_fd=directory)
                else:
                    os.unlink(name, dir_fd=directory)

    @contextmanager
    def _parent(self, target: str) -> Iterator[tuple[int, str]]:
        """Give the open directory of a path, reached through no link, and the path's last part."""
        if not target:
            descriptor = os.open(self.destination.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                yield descriptor, self.destination.name
            finally:
                os.close(descriptor)
            return
        *parts, name = target.split("/")
        descriptor = os.open(self.destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts:
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            yield descriptor, name
        finally:
            os.close(descriptor)


# Extracting


class BuiltinSource:
    """The files of a backup that BuiltinWriter made."""

    def __init__(self, store: Store, backup: Backup, keys: Mapping[str, Any], progress: Progress | None = None, nice: int = 0) -> None:
        self.backup = backup
        self.reader = Reader(store, backup, keys, progress, nice)

    def listing(self) -> dict[str, FileEntry]:
        """Return what the backup holds."""
        described = list_object(self.backup)
        if described is None:
            raise LmsError(f"Backup {self.backup.id} has no list of its files.")
        content = bytearray()
        self.reader.run(described, sink=content.extend, step="read")
        return decode_list(bytes(content))

    def extract(self, items: Sequence[Item], staging: Path) -> None:
        """Write the items below a directory."""
        described = data_object(self.backup)
        if described is None:
            raise LmsError(f"Backup {self.backup.id} has no files in it, only a list of them.")
        unpacker = Unpacker(items, staging)
        unpacker.directories()
        self._served(described, unpacker.files, "restore")
        unpacker.finish()

    def differences(self) -> list[str]:
        """Read every file and hold it against the list, without writing any. Return as sentences what differs."""
        comparison = Comparison(self.listing())
        described = data_object(self.backup)
        if described is not None:
            self._served(described, comparison.files, "compare")
        return comparison.differences()

    def _served(self, described: Mapping[str, Any], reader: Callable[[Pipe], None], step: str) -> None:
        """Let something read the archive while it is decrypted and decompressed."""
        pipe = Pipe()
        # Programs are started by this thread, whose end they are to notice: reading is for another one.
        thread = threading.Thread(target=pipe.serve, args=(reader,), daemon=True)
        thread.start()
        try:
            self.reader.run(described, sink=pipe.put, step=step)
        finally:
            pipe.close()
            thread.join()
        if pipe.failure:
            raise pipe.failure


class Pipe:
    """Hands what one thread is given to another one that reads."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self._queue: queue.Queue[bytes] = queue.Queue(maxsize=4)
        self._rest = b""
        self._ended = False

    def put(self, piece: bytes) -> None:
        """Take a piece; raises what the reader failed with."""
        while True:
            if self.failure:
                raise self.failure
            with contextlib.suppress(queue.Full):
                self._queue.put(piece, timeout=0.2)
                return

    def close(self) -> None:
        """Say that nothing more comes."""
        with contextlib.suppress(BaseException):
            self.put(b"")

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most as many; none at the end."""
        if not self._rest and not self._ended:
            self._rest = self._queue.get()
            self._ended = not self._rest
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece

    def serve(self, reader: Callable[[Pipe], None]) -> None:
        """Let a reader read to its end, and read what it leaves."""
        try:
            reader(self)
            while self.read(_PIECE):
                pass
        except BaseException as error:
            self.failure = error


def members(stream: Pipe) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """Read a stream of tar, and give each file with its content. CorruptObjectError for what no archive of ours holds."""
    try:
        source = cast("IO[bytes]", stream)
        with tarfile.open(fileobj=source, mode="r|", bufsize=_STREAM_BLOCK, encoding="utf-8", errors="surrogateescape") as archive:
            for member in archive:
                check_path(member.name)
                if member.isreg():
                    content = archive.extractfile(member)
                    if content is None or member.size < 0:
                        raise CorruptObjectError(f"The archive of the files holds {shown(member.name)} without content.")
                    yield member, content
                # It would remember every one.
                archive.members = []  # type: ignore[attr-defined]
    except tarfile.TarError as error:
        raise CorruptObjectError(f"The archive of the files cannot be read: {error}.") from error


class Comparison:
    """Holds the files of a stream of tar against a list."""

    def __init__(self, listing: Mapping[str, FileEntry]) -> None:
        self._listed = {path: entry.sha256 for path, entry in listing.items() if entry.type == FILE}
        self._sums: dict[str, str] = {}

    def files(self, stream: Pipe) -> None:
        """Sum every file. Of several of one name the last one counts: the file changed while the first one was stored."""
        for member, content in members(stream):
            digest = hashlib.sha256()
            while piece := content.read(_PIECE):
                digest.update(piece)
            self._sums[member.name] = digest.hexdigest()

    def differences(self) -> list[str]:
        """Return as sentences what differs."""
        wrong = [path for path, expected in self._listed.items() if self._sums.get(path) != expected]
        return [f"The archive does not hold what its list says: {names(wrong)}."] if wrong else []


class Unpacker:
    """Writes what a list says, with the content that a stream of tar has."""

    def __init__(self, items: Sequence[Item], staging: Path) -> None:
        self.items = items
        self.staging = staging
        self._by_source: dict[str, Item] = {item.source: item for item in items if item.source}
        self._sums: dict[str, str] = {}

    def directories(self) -> None:
        """Make the directories, for nobody else until everything is there."""
        for item in self.items:
            if item.entry.type == DIRECTORY and item.target:
                (self.staging / item.target).mkdir(0o700)

    def files(self, stream: Pipe) -> None:
        """Write the files."""
        for member, content in members(stream):
            item = self._by_source.get(member.name)
            if item is not None:
                self._file(content, member.size, item)

    def finish(self) -> None:
        """Compare everything with the list, and make links, owners, modes and times."""
        wrong = [item.source for item in self.items if item.source and self._sums.get(item.source) != item.entry.sha256]
        if wrong:
            raise LmsError(
                f"The backup's archive does not hold what its list says: {names(wrong)}. Nothing is restored; choose another backup.",
                mismatches=[f"/{shown(path)}" for path in wrong[:NAMES_SHOWN]],
            )
        for item in self.items:
            path = self.staging / item.target
            if item.link_to:
                os.link(self.staging / item.link_to, path, follow_symlinks=False)
            elif item.entry.type == LINK:
                path.symlink_to(item.entry.target)
                _dress(path, item.entry)
            elif item.entry.type == FILE:
                _dress(path, item.entry)
        for item in reversed(self.items):
            if item.entry.type == DIRECTORY:
                _dress(self.staging / item.target if item.target else self.staging, item.entry)

    def _file(self, content: IO[bytes], size: int, item: Item) -> None:
        """Write a file and sum it. A later member of the same name counts: the file changed while the first one was stored."""
        digest = hashlib.sha256()
        descriptor = os.open(self.staging / item.target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as target:
            while piece := content.read(_HOLE if item.entry.sparse else _PIECE):
                digest.update(piece)
                if item.entry.sparse and not piece.strip(b"\0"):
                    target.seek(len(piece), os.SEEK_CUR)
                else:
                    _write(target, piece)
            target.truncate(size)
        self._sums[item.source] = digest.hexdigest()


def _write(target: IO[bytes], piece: bytes) -> None:
    """Write a piece whole."""
    view = memoryview(piece)
    while view:
        view = view[target.write(view) :]


class ResticSource:
    """The files of a backup that restic made."""

    def __init__(self, backup: Backup, restic: Restic, settings: Settings) -> None:
        self.backup = backup
        self.restic = restic
        self.settings = settings
        self.snapshot = str((backup.manifest.get("restic") or {}).get("snapshot") or "")
        if not self.snapshot:
            raise LmsError(f"Backup {backup.id} names no snapshot of restic.")
        # Whether everything is wanted that lies below the path.
        self.whole = settings.mode == NEW and not settings.include

    def listing(self) -> dict[str, FileEntry]:
        """Return what the backup holds: what was backed up, without the directories that lead there."""
        roots = [str(path).lstrip("/") for path in self.backup.manifest.get("paths", [])]
        found = self.restic.listing(self.snapshot)
        kept = {path: entry for path, entry in found.items() if any(path == root or path.startswith(f"{root}/") for root in roots)}
        untold = [entry.path for entry in choose(kept, self.settings.path, Patterns()).values() if REPLACED in entry.path]
        if untold and not self.whole:
            raise LmsError(
                f"Backup {self.backup.id} has names that are not UTF-8, which restic does not tell: {names(untold)}. "
                "Restore it to a new directory, without include."
            )
        return kept

    def extract(self, items: Sequence[Item], staging: Path) -> None:
        """Let restic write and compare what is meant, and move it to where the plan has it."""
        leaves = [item for item in items if item.entry.type != DIRECTORY]
        named = not self.whole and len(leaves) <= PATHS_NAMED
        included = [word for item in leaves for word in ("--include", escaped(item.entry.path))] if named else []
        raw = staging.with_name("restic")
        raw.mkdir(0o700)
        if leaves or self.whole:
            self.restic.call("restore", self.snapshot, "--target", str(raw), "--verify", *included)
        for item in items:
            self._check(item, raw)
        if self.whole:
            # With their names as they are, which need not be those of the list.
            for path in sorted((raw / os.path.normpath(self.settings.path or "/").lstrip("/")).iterdir()):
                path.rename(staging / path.name)
        else:
            for item in items:
                self._move(item, raw, staging)
        for item in reversed(items):
            if item.entry.type == DIRECTORY and (not self.whole or not item.target):
                _dress(staging / item.target if item.target else staging, item.entry)
        _remove(raw)

    def _check(self, item: Item, raw: Path) -> None:
        """Refuse what restic wrote otherwise than it listed it."""
        if item.entry.type == DIRECTORY or REPLACED in item.entry.path:
            return
        try:
            status = (raw / item.entry.path).lstat()
            same = stat.S_ISLNK(status.st_mode) if item.entry.type == LINK else status.st_size == item.entry.size
        except OSError:
            same = False
        if not same:
            raise LmsError(f"restic did not restore {shown(item.entry.path)} as snapshot {self.snapshot} lists it. Nothing is restored.")

    @staticmethod
    def _move(item: Item, raw: Path, staging: Path) -> None:
        """Put one path where the plan has it."""
        if item.entry.type != DIRECTORY:
            (raw / item.entry.path).rename(staging / item.target)
        elif item.target:
            (staging / item.target).mkdir(0o700)


def escaped(path: str) -> str:
    """Return a pattern of restic that means one path."""
    return "/" + "".join(f"\\{letter}" if letter in "*?[\\" else letter for letter in path)


# Owners, modes, times


def _dress(path: Path, entry: FileEntry) -> None:
    """Give a path of the staging directory, where nobody else can act, what the backup says of it."""
    link = entry.type == LINK
    if entry.uid < 0:
        path.chmod(entry.mode)
        return
    if os.geteuid() == 0:
        os.chown(path, owner_of(entry.user, entry.uid), group_of(entry.group, entry.gid), follow_symlinks=False)
    if not link:
        # After the owner, whose change takes these bits away; and never for somebody else's files.
        path.chmod(entry.mode if os.geteuid() == 0 else entry.mode & 0o1777)
        for name, value in entry.xattrs.items():
            os.setxattr(path, name, value.encode("utf-8", "surrogateescape"))
    os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)


def _dress_directory(name: str, parent: int, entry: FileEntry) -> None:
    """Give a new directory what the backup says of it, by its open parent."""
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if entry.uid >= 0 and os.geteuid() == 0:
            os.fchown(descriptor, owner_of(entry.user, entry.uid), group_of(entry.group, entry.gid))
        os.fchmod(descriptor, entry.mode if os.geteuid() == 0 else entry.mode & 0o1777)
        for attribute, value in entry.xattrs.items():
            os.setxattr(descriptor, attribute, value.encode("utf-8", "surrogateescape"))
        if entry.uid >= 0:
            os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
    finally:
        os.close(descriptor)


def owner_of(name: str, number: int) -> int:
    """Return the user of this host who has the name of the owner, or else the number: a new host counts its users anew."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(name).pw_uid if name else number
    return number


def group_of(name: str, number: int) -> int:
    """Return the group of this host that has the name of the group, or else the number."""
    with contextlib.suppress(KeyError):
        return grp.getgrnam(name).gr_gid if name else number
    return number


def _remove(path: Path) -> None:
    """Remove a directory whose parts may have modes that keep their owner out, too."""
    if os.geteuid() != 0:
        for directory, folders, _files in os.walk(path):
            for folder in folders:
                inner = Path(directory) / folder
                if not inner.is_symlink():
                    inner.chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)
