# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading a backup's objects: counted and summed on their way, decrypted, decompressed, and refused when they are not what was written.

The sum is known at the end only. Until then the programs that read an object have not seen its end: they are killed when it differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import Backup
from ansible_collections.bitflow.lms.plugins.module_utils._backup_encryption import decrypting
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Store
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import Stage, StageError, run_pipeline
from ansible_collections.bitflow.lms.plugins.module_utils._progress import Progress

GLOBALS = "globals."
# Of files, what lies beside the archive: the sum of each of them.
FILE_LIST = "files.list."
# Where dump programs of SQL say that they came to their end. Not always in the last line, so the end is searched.
TRAILER_ROOM = 512
TRAILERS = (b"dump complete", b"Dump completed")


class CorruptObjectError(LmsError):
    """An object that is not what was written, or that cannot be read although it is."""


class DecryptionError(LmsError):
    """An object that is as it was written, and that the keys at hand do not open."""


def globals_object(backup: Backup) -> Mapping[str, Any] | None:
    """Return the object with the roles or users, where the backup has one."""
    return next((described for described in backup.manifest.get("objects", []) if described["name"].startswith(GLOBALS)), None)


def data_object(backup: Backup) -> Mapping[str, Any]:
    """Return the object with the data."""
    for described in backup.manifest.get("objects", []):
        if not described["name"].startswith(GLOBALS):
            return described  # type: ignore[no-any-return]
    raise CorruptObjectError(f"Backup {backup.id} has no data: its manifest names no such object.")


class Pieces:
    """The pieces of an object, once. Its end comes only when it is the one that the manifest describes."""

    def __init__(self, pieces: Iterator[bytes], described: Mapping[str, Any], heard: Callable[[int], None] = lambda _count: None) -> None:
        self._described = described
        self._heard = heard
        self._fault: LmsError | None = None
        self._iterator = self._checked(pieces)

    def __iter__(self) -> Iterator[bytes]:
        return self._iterator

    def finish(self) -> None:
        """Read what nobody read. CorruptObjectError when the whole is not what was written."""
        for _piece in self._iterator:
            pass
        if self._fault:
            raise self._fault

    def _checked(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        size, total = 0, hashlib.sha256()
        try:
            for piece in pieces:
                size += len(piece)
                total.update(piece)
                self._heard(len(piece))
                yield piece
            self._judge(size, total.hexdigest())
        except LmsError as error:
            # A second look at this iterator would see an end, and take it for a good one.
            self._fault = error
            raise

    def _judge(self, size: int, sha256: str) -> None:
        name = self._described["name"]
        if size != self._described["size"]:
            raise CorruptObjectError(f"{name} has {size} bytes, the manifest says {self._described['size']}.")
        if sha256 != self._described["sha256"]:
            raise CorruptObjectError(f"{name} has another SHA-256 than the manifest says: its content was changed after it was written.")


class Reader:
    """Reads the objects of one backup."""

    def __init__(self, store: Store, backup: Backup, keys: Mapping[str, Any], progress: Progress | None = None, nice: int = 0) -> None:
        self.store = store
        self.backup = backup
        # The options identity, identity_file and gpg_home.
        self.keys = keys
        self.progress = progress or Progress()
        self.nice = nice

    def check(self, described: Mapping[str, Any]) -> None:
        """Read an object whole, and compare its size and sum. CorruptObjectError when it differs."""
        self.progress.step(f"check {described['name']}", described["size"])
        self._pieces(described).finish()

    def run(
        self,
        described: Mapping[str, Any],
        stages: Sequence[Stage] = (),
        *,
        sink: Callable[[bytes], None] | None = None,
        step: str = "read",
        partly: bool = False,
    ) -> None:
        """Run programs on an object as it was before it was encrypted and compressed; what the last one writes goes to the sink.

        With partly the programs may have enough before the end; it is read all the same, for its sum.
        Raises CorruptObjectError, DecryptionError, StageError for a program that failed on sound input, or what reading met with.
        """
        self.progress.step(f"{step} {described['name']}", described["size"])
        pieces = self._pieces(described)
        with decrypting(_method(described, "encryption"), self.keys) as decryptor:
            opening = [*([decryptor] if decryptor else []), *_decompressing(described)]
            if not opening and not stages:
                _copy(pieces, sink)
                return
            taps: dict[int, Callable[[bytes], None]] = {len(opening) - 1: lambda _piece: None} if partly and opening and stages else {}
            try:
                run_pipeline([*opening, *stages], source=pieces, sink=sink, taps=taps, nice=self.nice, whole=partly)
            except StageError as error:
                # Whose fault it is the bytes tell: those that were changed make every program fail.
                pieces.finish()
                raise self._cause(error, described, decryptor) from error
        pieces.finish()

    def text(self, described: Mapping[str, Any]) -> str:
        """Return a small object's text."""
        content = bytearray()
        self.run(described, sink=content.extend)
        return content.decode("utf-8", errors="replace")

    def decode(self, described: Mapping[str, Any]) -> None:
        """Read a dump to its end as a restore would, and restore nothing. CorruptObjectError when that cannot be done."""
        if self.backup.manifest.get("format_of_dump") == "custom" and not described["name"].startswith(GLOBALS):
            # Its list of contents stands at the beginning, and is there in a dump that was cut, too: everything has to be read.
            self._try(described, [Stage(["pg_restore", "--file", "/dev/null"])])
        else:
            self._decode_text(described)

    def _decode_text(self, described: Mapping[str, Any]) -> None:
        """Read SQL to its end, where the dump program says that it is whole."""
        size, end = 0, b""

        def hear(piece: bytes) -> None:
            nonlocal size, end
            size += len(piece)
            end = (end + piece)[-TRAILER_ROOM:]

        self.run(described, sink=hear, step="decode")
        raw_size = described.get("raw_size")
        if raw_size is not None and size != raw_size:
            raise CorruptObjectError(f"{described['name']} holds {size} bytes of SQL, the manifest says {raw_size}.")
        if not described["name"].startswith(GLOBALS) and not any(trailer in end for trailer in TRAILERS):
            raise CorruptObjectError(f"{described['name']} ends without the dump program's last line: the dump was cut.")

    def _try(self, described: Mapping[str, Any], stages: Sequence[Stage]) -> None:
        """Let a program read an object whose bytes are right: where it fails, they were wrong from the beginning."""
        try:
            self.run(described, stages, step="decode")
        except StageError as error:
            if _was_killed(error):
                raise
            raise CorruptObjectError(f"{described['name']} is as it was written, but cannot be read to its end: {error.message}") from error

    def _pieces(self, described: Mapping[str, Any]) -> Pieces:
        return Pieces(self.store.stream(f"{self.backup.path}/{described['name']}"), described, self.progress.add)

    def _cause(self, error: StageError, described: Mapping[str, Any], decryptor: Stage | None) -> LmsError:
        """Say what it means that a program failed on an object whose bytes are right."""
        program = error.details.get("program")
        if _was_killed(error):
            return error
        if decryptor and program == decryptor.name:
            return DecryptionError(
                f"{described['name']} of backup {self.backup.id} was not decrypted: {error.message}. It is as it was written, so "
                "the key is another one: give the identity of one of its recipients.",
                **error.details,
            )
        if program == "zstd":
            return CorruptObjectError(f"{described['name']} is as it was written, but is no whole stream of zstd: {error.message}")
        return error


def _was_killed(error: StageError) -> bool:
    """Say whether a program did not fail, but was ended by a signal: that says nothing of what it read."""
    return int(error.details.get("rc") or 0) < 0


def _method(described: Mapping[str, Any], what: str) -> str:
    """Return how an object is compressed or encrypted."""
    return str((described.get(what) or {}).get("method") or "none")


def _decompressing(described: Mapping[str, Any]) -> list[Stage]:
    """Return the program that undoes what was done around a dump; a dump that is compressed inside is left to who reads it."""
    method = _method(described, "compression")
    if method == "none" or (described.get("compression") or {}).get("where") == "inside":
        return []
    if method != "zstd":
        raise LmsError(f"{described['name']} is compressed with {method}, which this version of the collection does not read.")
    return [Stage(["zstd", "--decompress", "--quiet", "--stdout", "-"])]


def _copy(pieces: Pieces, sink: Callable[[bytes], None] | None) -> None:
    """Hand on an object that is stored as it is."""
    for piece in pieces:
        if sink:
            sink(piece)
