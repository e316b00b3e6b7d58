# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A tree of files as a stream of tar, and the list of what is in it.

The list says everything but the content: kinds, owners, modes, times, and a sum for each file. tar and zstd alone bring the files back as
well; the list is what proves that they are the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._file_tree import (
    CHANGED,
    DIRECTORY,
    FILE,
    HARD_LINK,
    LINK,
    NO_FILE,
    UNREADABLE,
    Counts,
    FileEntry,
    Found,
    Reports,
    Selection,
    entry_from,
    entry_of,
    is_kept,
    walk,
)

PIECE = 1024 * 1024
# Files up to this size are read before anything of them is written, so that one which changes meanwhile is read again.
WHOLE = 8 * 1024 * 1024
# A file that changes while it is read is read once more.
ATTEMPTS = 2
_BLOCK = 512
_XATTR = "SCHILY.xattr."
_TYPES = {FILE: tarfile.REGTYPE, DIRECTORY: tarfile.DIRTYPE, LINK: tarfile.SYMTYPE, HARD_LINK: tarfile.LNKTYPE}


@dataclass
class _Reading:
    """One attempt to read a file."""

    # Why it does not count, or nothing.
    fault: str = ""
    sha256: str = ""


@dataclass
class TarStream:
    """The files of a selection as tar. What was put in is known when pieces() has come to its end."""

    selection: Selection
    reports: Reports
    xattrs: bool = False
    # Called with the number of bytes that were read.
    heard: Callable[[int], None] = lambda _count: None
    # Called between two looks at a file; tests change it there.
    reading: Callable[[str], None] = lambda _path: None
    whole: int = WHOLE
    entries: list[FileEntry] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    size: int = 0
    _inodes: dict[tuple[int, int], FileEntry] = field(default_factory=dict)

    def pieces(self) -> Iterator[bytes]:
        """Return the stream piece by piece. LmsError as soon as it cannot become whole."""
        for piece in self._members():
            self.size += len(piece)
            yield piece
        end = bytes(2 * _BLOCK + -(self.size + 2 * _BLOCK) % tarfile.RECORDSIZE)
        self.size += len(end)
        yield end

    def _members(self) -> Iterator[bytes]:
        for found in walk(self.selection, self.reports):
            if not is_kept(found.status.st_mode):
                self.reports.tell(found.path, NO_FILE)
                continue
            try:
                entry = dataclasses.replace(entry_of(found), xattrs=self._attributes(found))
            except OSError as error:
                self.reports.tell_error(found.path, error)
                continue
            if entry.type != FILE:
                yield self._take(entry)
            elif found.status.st_nlink > 1 and self._key(found.status) in self._inodes:
                first = self._inodes[self._key(found.status)]
                link = dataclasses.replace(entry, type=HARD_LINK, target=first.path, sha256=first.sha256, size=first.size)
                yield self._take(dataclasses.replace(link, mtime_ns=first.mtime_ns))
            else:
                yield from self._file(found, entry)

    def _file(self, found: Found, entry: FileEntry) -> Iterator[bytes]:
        """Return a file's member, or two when it changed while the first one was written: the later one counts."""
        written: FileEntry | None = None
        fault = ""
        for _attempt in range(ATTEMPTS):
            try:
                descriptor = os.open(
                    found.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=found.directory
                )
            except OSError as error:
                self.reports.tell_error(found.path, error)
                fault = ""
                break
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    fault = CHANGED
                    continue
                current = dataclasses.replace(entry_of(dataclasses.replace(found, status=status)), xattrs=entry.xattrs)
                attempt = _Reading()
                yield from self._attempt(descriptor, current, attempt)
                written = dataclasses.replace(current, sha256=attempt.sha256) if attempt.sha256 else written
                fault = attempt.fault
                if not fault:
                    break
            except OSError as error:
                self.reports.tell(found.path, f"{UNREADABLE}: {error.strerror}")
                break
            finally:
                os.close(descriptor)
        if fault:
            self.reports.tell(found.path, fault)
        if written:
            self._note(written)
            if found.status.st_nlink > 1:
                self._inodes[self._key(found.status)] = written

    def _attempt(self, descriptor: int, entry: FileEntry, attempt: _Reading) -> Iterator[bytes]:
        """Return a file's member as it is now, with the size that was announced whatever becomes of the file."""
        if entry.size <= self.whole:
            content = b"".join(self._read(descriptor, entry.size))
            self.reading(entry.path)
            attempt.fault = self._judge(descriptor, entry, len(content))
            if attempt.fault and not self.reports.vanish_ok.match(entry.path):
                return
            yield self._header(entry)
            content += bytes(entry.size - len(content))
            attempt.sha256 = hashlib.sha256(content).hexdigest()
            yield content + bytes(-len(content) % _BLOCK)
            return
        yield self._header(entry)
        digest, count = hashlib.sha256(), 0
        for piece in self._read(descriptor, entry.size):
            digest.update(piece)
            count += len(piece)
            yield piece
            self.reading(entry.path)
        attempt.fault = self._judge(descriptor, entry, count)
        for missing in _zeros(entry.size - count):
            digest.update(missing)
            yield missing
        yield bytes(-entry.size % _BLOCK)
        attempt.sha256 = digest.hexdigest()

    def _read(self, descriptor: int, size: int) -> Iterator[bytes]:
        """Return a file's content up to the size that was announced."""
        left = size
        while left and (piece := os.read(descriptor, min(PIECE, left))):
            left -= len(piece)
            self.heard(len(piece))
            yield piece

    @staticmethod
    def _judge(descriptor: int, entry: FileEntry, count: int) -> str:
        """Say why a file is not as it was when its reading began."""
        status = os.fstat(descriptor)
        same = count == entry.size == status.st_size and status.st_mtime_ns == entry.mtime_ns
        return "" if same else CHANGED

    def _take(self, entry: FileEntry) -> bytes:
        """Note a path without content of its own, and return its member."""
        self._note(entry)
        return self._header(entry)

    def _note(self, entry: FileEntry) -> None:
        self.entries.append(entry)
        self.counts.add(entry)

    def _attributes(self, found: Found) -> dict[str, str]:
        """Return extended attributes, access control lists among them."""
        if not self.xattrs or stat.S_ISLNK(found.status.st_mode):
            return {}
        # By the open directory, as everything else.
        path = f"/proc/self/fd/{found.directory}/{found.name}"
        listed = os.listxattr(path, follow_symlinks=False)
        return {name: os.getxattr(path, name, follow_symlinks=False).decode("utf-8", "surrogateescape") for name in sorted(listed)}

    @staticmethod
    def _key(status: os.stat_result) -> tuple[int, int]:
        return (status.st_dev, status.st_ino)

    @staticmethod
    def _header(entry: FileEntry) -> bytes:
        """Return the header of a member."""
        member = tarfile.TarInfo(entry.path)
        member.type = _TYPES[entry.type]
        member.size = entry.size if entry.type == FILE else 0
        member.mode = entry.mode
        member.uid, member.gid, member.uname, member.gname = entry.uid, entry.gid, entry.user, entry.group
        member.linkname = entry.target
        seconds, nanoseconds = divmod(entry.mtime_ns, 10**9)
        member.mtime = seconds
        if nanoseconds and seconds >= 0:
            member.pax_headers = {"mtime": f"{seconds}.{nanoseconds:09d}"}
        member.pax_headers = {**member.pax_headers, **{_XATTR + name: value for name, value in entry.xattrs.items()}}
        return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _zeros(count: int) -> Iterator[bytes]:
    """Return as many zeros, in pieces."""
    while count > 0:
        yield bytes(min(count, PIECE))
        count -= PIECE


def encode_list(entries: Iterable[FileEntry], skipped: Iterable[tuple[str, str]] = ()) -> Iterator[bytes]:
    """Return a list of files as it is stored: a record a line, what was left out at the end."""
    for entry in entries:
        yield _line(entry.record())
    for path, reason in skipped:
        yield _line({"path": path, "skipped": reason})


def decode_list(content: bytes) -> dict[str, FileEntry]:
    """Return the files of a list by their paths."""
    try:
        records = [json.loads(line) for line in content.splitlines()]
    except ValueError as error:
        raise LmsError("The list of files of this backup cannot be read.") from error
    entries = [entry_from(record) for record in records if "skipped" not in record]
    found = {entry.path: entry for entry in entries}
    if len(found) != len(entries):
        raise LmsError("The list of files of this backup names a path twice.")
    return found


def joined(lines: Iterable[bytes], size: int = PIECE) -> Iterator[bytes]:
    """Return small pieces in larger ones."""
    waiting: list[bytes] = []
    length = 0
    for line in lines:
        waiting.append(line)
        length += len(line)
        if length >= size:
            yield b"".join(waiting)
            waiting, length = [], 0
    yield b"".join(waiting)


def counts_of_reasons(skipped: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Return how many paths were left out for which reason."""
    reasons = [reason for _path, reason in skipped]
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}


def _line(record: dict[str, Any]) -> bytes:
    # ASCII keeps names that are not UTF-8.
    return (json.dumps(record, sort_keys=True, separators=(",", ":")) + "\n").encode("ascii")
