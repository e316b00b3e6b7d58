# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Trees of files: which of them are meant, what is known of each, and how two of them differ.

A tree is walked by open directories, never by whole paths: who may write in a tree could otherwise put a link in place of a directory, and
have root read or write somewhere else.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import functools
import grp
import os
import pwd
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

FILE, DIRECTORY, LINK, HARD_LINK = "file", "directory", "link", "hard_link"
# Why a path of a tree is not in its backup, or not as it should be.
VANISHED, CHANGED, UNREADABLE, NO_FILE = "vanished", "changed while it was read", "unreadable", "neither a file, a directory nor a link"
# How many paths results and messages name.
NAMES_SHOWN = 100
NAMES_IN_MESSAGE = 10
# What stands in lists of JSON for a byte of a name that is not UTF-8, where these lists do not come from here.
REPLACED = "\ufffd"
_NO_TEXT = re.compile("[\udc80-\udcff]")
_GONE = (errno.ENOENT, errno.ESTALE)


@dataclass(frozen=True)
class FileEntry:
    """A path of a tree, without the slash at its beginning, and what is known of it."""

    path: str
    type: str
    size: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    user: str = ""
    group: str = ""
    mtime_ns: int = 0
    # Where a link leads, and for a hard link the path whose content it shares.
    target: str = ""
    # Empty where nobody summed it.
    sha256: str = ""
    # Whether it has holes that take no room.
    sparse: bool = False
    # Extended attributes; their bytes as surrogateescape keeps them.
    xattrs: Mapping[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return it for the list of a backup, without what is empty."""
        return {key: value for key, value in asdict(self).items() if value}


def entry_from(record: Mapping[str, Any]) -> FileEntry:
    """Return the entry of a record. LmsError when it is none, or its path would leave the tree."""
    try:
        entry = FileEntry(**record)
    except TypeError as error:
        raise LmsError("The list of files of this backup has an entry that is none.") from error
    if entry.type not in (FILE, DIRECTORY, LINK, HARD_LINK):
        raise LmsError(f"The list of files of this backup has an entry of the type {entry.type!r}.")
    check_path(entry.path)
    if entry.type == HARD_LINK:
        check_path(entry.target)
    return entry


def check_path(path: str) -> None:
    """Refuse a path that is not below the place to which a backup is restored."""
    if not path or "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise LmsError(f"The backup names the path {shown(path)!r}, which does not lie below the place to restore to. Nothing is restored.")


def shown(path: str) -> str:
    """Return a path as text that every reader can take: names need not be UTF-8."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def names(paths: Iterable[str], limit: int = NAMES_IN_MESSAGE) -> str:
    """Return some paths for a sentence."""
    listed = sorted(paths)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(f"/{shown(path).lstrip('/')}" for path in listed[:limit]) + more


# Which paths are meant


@dataclass(frozen=True)
class Patterns:
    """Globs, as the options exclude, vanish_ok and include have them.

    With a slash at the beginning a pattern is held against the whole path, else against any part of it that begins after a slash. What
    lies below a path that matches is meant as well. C(*) and C(?) stop at a slash, C(**) does not.
    """

    globs: tuple[str, ...] = ()

    def match(self, path: str) -> bool:
        """Say whether a path without the slash at its beginning is meant."""
        return bool(self.globs) and _compiled(self.globs).match(f"/{path}") is not None


@functools.lru_cache(maxsize=32)
def _compiled(globs: tuple[str, ...]) -> re.Pattern[str]:
    """Return one pattern for several globs."""
    alternatives = [("" if glob.startswith("/") else "(?:.*/)") + _translated(glob) for glob in globs]
    return re.compile(f"(?s:(?:{'|'.join(alternatives)})(?:/.*)?)\\Z")


def _translated(glob: str) -> str:
    """Return a glob as a regular expression."""
    parts: list[str] = []
    # Sets in brackets are read as fnmatch reads them.
    for piece in re.findall(r"/\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", glob.rstrip("/") or "/", flags=re.DOTALL):
        if piece == "/**/":
            parts.append("/(?:.*/)?")
        elif piece == "**":
            parts.append(".*")
        elif piece == "*":
            parts.append("[^/]*")
        elif piece == "?":
            parts.append("[^/]")
        elif piece.startswith("[") and len(piece) > 1:
            parts.append(re.sub(r"^\(\?s:(.*)\)\\[zZ]$", r"\1", fnmatch.translate(piece), flags=re.DOTALL))
        else:
            parts.append(re.escape(piece))
    return "".join(parts)


@dataclass(frozen=True)
class Selection:
    """The files that are to be kept."""

    paths: tuple[str, ...]
    exclude: Patterns = Patterns()
    one_file_system: bool = False

    @classmethod
    def of(cls, paths: Sequence[str], exclude: Sequence[str] = (), one_file_system: bool = False) -> Selection:
        """Return a selection whose paths are absolute, there, and apart from each other."""
        if not paths:
            raise LmsError("paths is empty. Name the directories and files to back up.")
        normal = tuple(sorted({os.path.normpath(path) for path in paths}))
        for path in normal:
            if not path.startswith("/") or path.startswith("//") or path == "/":
                raise LmsError(f"paths has {shown(path)!r}. Give absolute paths below the root directory.")
        for path in normal:
            inner = next((other for other in normal if other.startswith(f"{path}/")), None)
            if inner:
                raise LmsError(f"paths has {shown(inner)}, which lies in {shown(path)} and would be stored twice. Leave one of them out.")
        selection = cls(normal, Patterns(tuple(exclude)), one_file_system)
        for path in normal:
            if selection.exclude.match(path[1:]):
                raise LmsError(f"paths has {shown(path)}, which exclude leaves out. Change one of them.")
        return selection


# Walking


class Reports:
    """What a walk met with, and whether it may go on."""

    def __init__(self, vanish_ok: Patterns = Patterns(), patient: bool = False) -> None:
        self.vanish_ok = vanish_ok
        # Whether everything is to be found out before anything is said.
        self.patient = patient
        # The path and the reason, of what may be missed.
        self.skipped: list[tuple[str, str]] = []
        self.failures: list[tuple[str, str]] = []

    def tell(self, path: str, reason: str) -> None:
        """Note what became of a path. LmsError when the backup would not be whole."""
        if reason.startswith(NO_FILE) or (reason in (VANISHED, CHANGED) and self.vanish_ok.match(path)):
            self.skipped.append((path, reason))
            return
        self.failures.append((path, reason))
        if not self.patient:
            self.judge()

    def tell_error(self, path: str, error: OSError) -> None:
        """Note that a path could not be read."""
        self.tell(path, VANISHED if error.errno in _GONE else f"{UNREADABLE}: {error.strerror}")

    def judge(self) -> None:
        """Raise LmsError when something is missing."""
        if not self.failures:
            return
        reasons: dict[str, list[str]] = {}
        for path, reason in self.failures:
            reasons.setdefault(reason, []).append(path)
        told = "; ".join(f"{names(paths)}: {reason}" for reason, paths in sorted(reasons.items()))
        soft = all(reason in (VANISHED, CHANGED) for reason in reasons)
        hint = (
            "List what may vanish or change in vanish_ok." if soft else "Let the user of the backup read it, or leave it out with exclude."
        )
        raise LmsError(
            f"The backup of the files would not be whole: {told}. {hint}",
            problems=[{"path": f"/{shown(path)}", "reason": reason} for path, reason in self.failures[:NAMES_SHOWN]],
        )


@dataclass(frozen=True)
class Found:
    """A path as a walk comes by it."""

    path: str
    # Its last part, and the open directory in which that lies.
    name: str
    directory: int
    status: os.stat_result


def walk(selection: Selection, reports: Reports) -> Iterator[Found]:
    """Return everything that is meant, parents before children, in the order of the names. Links are never followed."""
    for root in selection.paths:
        parent, name = os.path.split(root)
        try:
            # What leads to a path was named by the user, links included.
            directory = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise LmsError(f"paths has {shown(root)}, which cannot be read: {error.strerror}. Correct it, or leave it out.") from error
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                raise LmsError(f"paths has {shown(root)}, which is a symbolic link. Name the directory that it leads to.")
            yield from _walk(Found(root[1:], name, directory, status), selection, reports, status.st_dev)
        except OSError as error:
            raise LmsError(f"paths has {shown(root)}, which cannot be read: {error.strerror}. Correct it, or leave it out.") from error
        finally:
            os.close(directory)


def _walk(found: Found, selection: Selection, reports: Reports, device: int) -> Iterator[Found]:
    """Return a path and what lies below it."""
    if not stat.S_ISDIR(found.status.st_mode):
        yield found
        return
    try:
        directory = os.open(found.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=found.directory)
    except OSError as error:
        reports.tell_error(found.path, error)
        return
    try:
        yield found
        if selection.one_file_system and found.status.st_dev != device:
            return
        for name in sorted(os.listdir(directory)):  # noqa: PTH208 - of an open directory
            path = f"{found.path}/{name}"
            if selection.exclude.match(path):
                continue
            try:
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except OSError as error:
                reports.tell_error(path, error)
                continue
            yield from _walk(Found(path, name, directory, status), selection, reports, device)
    finally:
        os.close(directory)


def entry_of(found: Found) -> FileEntry:
    """Return what is known of a path without reading it."""
    status = found.status
    mode = status.st_mode
    kind = DIRECTORY if stat.S_ISDIR(mode) else LINK if stat.S_ISLNK(mode) else FILE
    return FileEntry(
        found.path,
        kind,
        size=status.st_size if kind == FILE else 0,
        mode=stat.S_IMODE(mode),
        uid=status.st_uid,
        gid=status.st_gid,
        user=_user_name(status.st_uid),
        group=_group_name(status.st_gid),
        mtime_ns=status.st_mtime_ns,
        target=os.readlink(found.name, dir_fd=found.directory) if kind == LINK else "",
        sparse=kind == FILE and status.st_blocks * 512 < status.st_size,
    )


def is_kept(mode: int) -> bool:
    """Say whether a path of such a mode is kept: sockets, pipes and devices are made by programs, not restored."""
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)


@functools.lru_cache(maxsize=1024)
def _user_name(uid: int) -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return ""


@functools.lru_cache(maxsize=1024)
def _group_name(gid: int) -> str:
    with contextlib.suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return ""


@dataclass
class Counts:
    """How much a tree holds; the content of a file with several names counts once."""

    files: int = 0
    directories: int = 0
    links: int = 0
    bytes: int = 0

    def add(self, entry: FileEntry) -> None:
        """Count a path."""
        if entry.type == DIRECTORY:
            self.directories += 1
        elif entry.type == LINK:
            self.links += 1
        else:
            self.files += 1
            self.bytes += entry.size if entry.type == FILE else 0


@dataclass
class Scan:
    """What a tree holds at the moment, unread."""

    entries: dict[str, FileEntry] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    # Bytes of the files that were made or changed since a moment.
    recent: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


def scan(selection: Selection, since: float = 0, readable: Callable[[Found], bool] | None = None, keep: bool = True) -> Scan:
    """Look at every path, and refuse a tree that cannot be read whole."""
    # What vanishes now is no loss: whether it is there when it is read counts.
    reports = Reports(Patterns(("/**",)), patient=True)
    allowed = readable or _may_read
    result = Scan()
    inodes: set[tuple[int, int]] = set()
    for found in walk(selection, reports):
        if not is_kept(found.status.st_mode):
            reports.tell(found.path, NO_FILE)
            continue
        try:
            entry = entry_of(found)
        except OSError as error:
            reports.tell_error(found.path, error)
            continue
        if entry.type == FILE and not allowed(found):
            reports.tell(found.path, f"{UNREADABLE}: {os.strerror(errno.EACCES)}")
            continue
        key = (found.status.st_dev, found.status.st_ino)
        if entry.type == FILE and found.status.st_nlink > 1 and key in inodes:
            result.counts.files += 1
        else:
            inodes.add(key)
            result.counts.add(entry)
            if entry.type == FILE and max(found.status.st_mtime, found.status.st_ctime) >= since:
                result.recent += entry.size
        if keep:
            result.entries[entry.path] = entry
    reports.judge()
    result.skipped = [(path, reason) for path, reason in reports.skipped if reason == NO_FILE]
    return result


def _may_read(found: Found) -> bool:
    """Say whether a file may be read; one that vanished is not judged."""
    try:
        return os.access(found.name, os.R_OK, dir_fd=found.directory, effective_ids=True) or not os.access(
            found.name, os.F_OK, dir_fd=found.directory, effective_ids=True
        )
    except OSError:
        return True


# Comparing


@dataclass(frozen=True)
class Changes:
    """How a tree differs from what it was: paths, sorted."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def as_result(self) -> dict[str, Any]:
        """Return it as the modules do, with some of the names."""
        return {
            "added": len(self.added),
            "changed": len(self.changed),
            "removed": len(self.removed),
            "added_names": [f"/{shown(path)}" for path in self.added[:NAMES_SHOWN]],
            "changed_names": [f"/{shown(path)}" for path in self.changed[:NAMES_SHOWN]],
            "removed_names": [f"/{shown(path)}" for path in self.removed[:NAMES_SHOWN]],
        }

    def lines(self) -> str:
        """Return it for --diff."""
        marked = [("added", self.added), ("changed", self.changed), ("removed", self.removed)]
        every = [f"{word} /{shown(path)}\n" for word, paths in marked for path in paths]
        more = f"and {len(every) - NAMES_SHOWN} more\n" if len(every) > NAMES_SHOWN else ""
        return "".join(every[:NAMES_SHOWN]) + more


def compare(before: Mapping[str, FileEntry], after: Mapping[str, FileEntry]) -> Changes:
    """Say how a tree differs from an earlier one, as far as size, time and kind tell."""
    before, after = _told(before), _told(after)
    return Changes(
        tuple(sorted(set(after) - set(before))),
        tuple(sorted(path for path in set(after) & set(before) if _differ(before[path], after[path]))),
        tuple(sorted(set(before) - set(after))),
    )


def _told(entries: Mapping[str, FileEntry]) -> dict[str, FileEntry]:
    """Return entries by their paths as every list can tell them."""
    return {_NO_TEXT.sub(REPLACED, path): entry for path, entry in entries.items()}


def _differ(before: FileEntry, after: FileEntry) -> bool:
    """Say whether a path changed. A directory's time and a link's own say nothing."""
    kinds = {FILE if entry.type == HARD_LINK else entry.type for entry in (before, after)}
    if len(kinds) > 1:
        return True
    if kinds == {LINK}:
        # Not every list says where links lead.
        return before.target != after.target and bool(before.target and after.target)
    return kinds == {FILE} and (before.size, before.mtime_ns) != (after.size, after.mtime_ns)
