# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository in a directory of the host, such as a disk of its own or a mounted share.

A backup grows in C(.partial-<id>), which is renamed when its manifest is written. Its writer holds a lock of the kernel on a file in it,
which ends with the process, so that everybody can tell a backup that is being written from one that was interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import (
    MANIFEST,
    Entry,
    LockedObjectError,
    MissingObjectError,
    ObjectExistsError,
    Partial,
    StoredObject,
    StoreError,
    check_key,
)
from ansible_collections.bitflow.lms.plugins.module_utils._files import Owner, owner_of_directory, sync_directory

PIECE = 1024 * 1024
PARTIAL = ".partial-"
LOCK = ".lock"
# How deep a backup lies: environment, kind, name, id.
DEPTH = 4


class DirectoryStore:
    """A repository in a directory."""

    def __init__(self, root: Path, link: Callable[[Path, Path], None] = os.link) -> None:
        self.root = root
        self.uri = str(root)
        self._link = link

    # Looking

    def facts(self) -> dict[str, Any]:
        """Check, without writing, that it can be used, and say what is known."""
        directory = self.root if self.root.exists() else self.root.parent
        if not directory.is_dir():
            what = f"{directory} is no directory" if directory.exists() else f"there is no directory {directory}"
            raise StoreError(f"The repository {self.uri} cannot be used: {what}. Create it, or mount what belongs there.")
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
            raise StoreError(
                f"The repository {self.uri} cannot be used: the user id {os.geteuid()} may not write to {directory}. "
                "Change its owner or mode, or mount it writable."
            )
        return {"type": "directory", "object_lock": None, "versioning": False, "free": shutil.disk_usage(directory).free}

    def entries(self, prefix: str = "") -> list[Entry]:
        """Return the keys below a prefix, sorted. What begins with a dot is left out: nothing of it is complete."""
        start = prefix.rpartition("/")[0]
        found = [entry for entry in self._walk(self.path_of(start) if start else self.root) if entry.key.startswith(prefix)]
        return sorted(found, key=lambda entry: entry.key)

    def read(self, key: str) -> bytes:
        """Return a small object whole."""
        return b"".join(self.stream(key))

    def stream(self, key: str) -> Iterator[bytes]:
        """Return an object in pieces."""
        with self.telling(f"{key} cannot be read"):
            try:
                descriptor = os.open(self.path_of(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise MissingObjectError(f"{key} is not in the repository {self.uri}.") from error
            with os.fdopen(descriptor, "rb", buffering=0) as stream:
                while piece := stream.read(PIECE):
                    yield piece

    def partials(self, prefix: str = "") -> list[Partial]:
        """Return what interrupted backups left below a prefix, and those that are being written."""
        found = [self._partial(directory) for directory in self._partial_directories()]
        found += self._without_manifest(self.entries(prefix))
        return sorted((partial for partial in found if partial and partial.path.startswith(prefix)), key=lambda partial: partial.path)

    # Changing

    def create(self, key: str, content: bytes) -> None:
        """Write a small object, durably and at once or not at all."""
        path = self.path_of(key)
        with self.telling(f"{key} cannot be written"):
            owner = self._make_directories(path.parent)
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            try:
                _write_new(temporary, content, owner)
                self._put_in_place(temporary, path, content, owner)
            except FileExistsError as error:
                raise ObjectExistsError(f"{key} is in the repository {self.uri} already, and stays as it is.") from error
            finally:
                temporary.unlink(missing_ok=True)
            sync_directory(path.parent)

    def delete(self, key: str) -> None:
        """Delete an object, and with the last one of a backup its directory."""
        path = self.path_of(key)
        try:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
                sync_directory(path.parent)
        except PermissionError as error:
            raise LockedObjectError(f"{key} may not be deleted from the repository {self.uri}: {error.strerror}.") from error
        except OSError as error:
            raise self._error(f"{key} cannot be deleted", error) from error
        if len(key.split("/")) > DEPTH:
            _remove_empty(path.parent)

    def draft(self, path: str) -> DirectoryDraft:
        """Begin a backup."""
        target = self.path_of(path)
        with self.telling(f"The backup {path} cannot be begun"):
            owner = self._make_directories(target.parent)
            return DirectoryDraft(self, path, target, owner)

    def sweep(self, partial: Partial) -> None:
        """Remove what an interrupted backup left."""
        path = self.path_of(partial.path)
        directory = path.with_name(PARTIAL + path.name)
        if directory.is_dir():
            if _is_locked(directory / LOCK):
                raise StoreError(f"The backup {partial.path} is being written, so that it is not swept away.")
            self._remove(directory, partial.path)
        if not (path / MANIFEST).exists():
            for key in partial.keys:
                self.delete(key)

    # Helpers

    def path_of(self, key: str) -> Path:
        """Return where a key lies."""
        check_key(key)
        return self.root / key

    def _walk(self, directory: Path) -> Iterator[Entry]:
        """Return the files below a directory. Others may add and delete meanwhile."""
        with self.telling(f"{directory} cannot be read"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            with os.scandir(directory) as scan:
                found = [entry for entry in scan if not entry.name.startswith(".")]
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    yield from self._walk(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        yield Entry(str(Path(entry.path).relative_to(self.root)), status.st_size, status.st_mtime)

    def _partial_directories(self) -> list[Path]:
        """Return the directories of backups that are not published."""
        with self.telling("Interrupted backups cannot be looked for"):
            return [path for path in self.root.glob(f"*/*/*/{PARTIAL}*") if path.is_dir() and not path.is_symlink()]

    def _partial(self, directory: Path) -> Partial | None:
        """Return what is known of the directory of a backup that is not published; it may be published meanwhile."""
        name = str(directory.with_name(directory.name[len(PARTIAL) :]).relative_to(self.root))
        try:
            files = [path.stat() for path in directory.iterdir()]
            started = min([directory.stat().st_mtime, *(file.st_mtime for file in files)])
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._error(f"{directory} cannot be read", error) from error
        return Partial(name, started, sum(file.st_size for file in files), _is_locked(directory / LOCK))

    @staticmethod
    def _without_manifest(entries: list[Entry]) -> list[Partial]:
        """Return the backups whose manifest was deleted and whose data was not, because that was interrupted."""
        backups: dict[str, list[Entry]] = {}
        for entry in entries:
            parts = entry.key.split("/")
            if len(parts) == DEPTH + 1:
                backups.setdefault("/".join(parts[:DEPTH]), []).append(entry)
        return [
            Partial(
                path,
                min(entry.modified for entry in found),
                sum(entry.size for entry in found),
                keys=tuple(entry.key for entry in found),
            )
            for path, found in backups.items()
            if not any(entry.key == f"{path}/{MANIFEST}" for entry in found)
        ]

    def _put_in_place(self, temporary: Path, path: Path, content: bytes, owner: Owner) -> None:
        """Give a file its name, unless another one has it: a rename would replace that."""
        try:
            self._link(temporary, path)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            # A share without hard links. A crash can leave half of it here, which no reader takes for a record.
            _write_new(path, content, owner)

    def _make_directories(self, directory: Path) -> Owner:
        """Create a directory of the repository with its parents, and say to whom its files belong. The root's parent has to be there."""
        if not self.root.is_dir():
            self.facts()
        missing = []
        while not directory.is_dir():
            missing.append(directory)
            if directory == self.root:
                break
            directory = directory.parent
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                path.mkdir(0o700)
                if path != self.root:
                    owner_of_directory(self.root).give(path)
                sync_directory(path.parent)
        return owner_of_directory(self.root)

    def _remove(self, directory: Path, path: str) -> None:
        """Remove the directory of a backup that is not published."""
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            return
        except PermissionError as error:
            raise LockedObjectError(f"What is left of {path} may not be deleted from {self.uri}: {error.strerror}.") from error
        except OSError as error:
            raise self._error(f"What is left of {path} cannot be deleted", error) from error

    @contextlib.contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """Turn errors of the system into sentences."""
        try:
            yield
        except OSError as error:
            raise self._error(what, error) from error

    def _error(self, what: str, error: OSError) -> StoreError:
        """Say what failed, and why."""
        hint = " Free some room, or choose another repository." if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return StoreError(f"{what}: {error.strerror} (repository {self.uri}).{hint}")


class DirectoryDraft:
    """A backup that is being written to a directory."""

    def __init__(self, store: DirectoryStore, path: str, target: Path, owner: Owner) -> None:
        self.store = store
        self.path = path
        self.target = target
        self.owner = owner
        self.directory = target.with_name(PARTIAL + target.name)
        self._uploads: list[DirectoryUpload] = []
        self._done = False
        try:
            self.directory.mkdir(0o700)
        except FileExistsError as error:
            raise ObjectExistsError(f"The backup {path} is being written already, or was interrupted (repository {store.uri}).") from error
        try:
            owner.give(self.directory)
            self._lock = os.open(self.directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except BaseException:
            self.directory.rmdir()
            raise
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def upload(self, name: str) -> DirectoryUpload:
        """Begin a data object."""
        with self.store.telling(f"{self.path}/{name} cannot be written"):
            upload = DirectoryUpload(self, name)
        self._uploads.append(upload)
        return upload

    def publish(self, manifest: bytes) -> None:
        """Write the manifest, and let everybody see the backup."""
        unfinished = [upload.name for upload in self._uploads if not upload.done]
        if unfinished:
            raise StoreError(f"The backup {self.path} cannot be published: {unfinished[0]} is not complete.")
        with self.store.telling(f"The backup {self.path} cannot be published"):
            _write_new(self.directory / MANIFEST, manifest, self.owner)
            sync_directory(self.directory)
            try:
                # It replaces an empty directory at most.
                self.directory.rename(self.target)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise ObjectExistsError(f"The backup {self.path} is in the repository {self.store.uri} already.") from error
                raise
            self._done = True
            sync_directory(self.target.parent)
        # Only now: without it the backup would look interrupted until the rename.
        with contextlib.suppress(OSError):
            (self.target / LOCK).unlink()
        os.close(self._lock)

    def discard(self) -> None:
        """Remove what was written."""
        if self._done:
            return
        self._done = True
        for upload in self._uploads:
            upload.abort()
        shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._lock)


class DirectoryUpload:
    """A data object that is being written to a directory."""

    def __init__(self, draft: DirectoryDraft, name: str) -> None:
        draft.store.path_of(f"{draft.path}/{name}")
        self.draft = draft
        self.name = name
        self.done = False
        self._hash = hashlib.sha256()
        self._size = 0
        self._stream: BinaryIO | None = _open_new(draft.directory / name, draft.owner)

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        with self._telling():
            self._open().write(data)
        self._hash.update(data)
        self._size += len(data)

    def complete(self) -> StoredObject:
        """Make sure that everything lies on the disk."""
        with self._telling():
            stream = self._open()
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
        self._stream = None
        self.done = True
        return StoredObject(self.name, self._size, self._hash.hexdigest())

    def abort(self) -> None:
        """Leave nothing behind. What is complete stays for the draft to publish or to discard."""
        if self._stream is None:
            return
        # Closing writes what is buffered, which may fail again.
        with contextlib.suppress(OSError):
            self._stream.close()
        with contextlib.suppress(OSError):
            (self.draft.directory / self.name).unlink()
        self._stream = None
        self.draft._uploads.remove(self)

    def _open(self) -> BinaryIO:
        """Return the file, as long as it is being written."""
        if self._stream is None:
            raise StoreError(f"{self.draft.path}/{self.name} takes no more data: it is complete, or was given up.")
        return self._stream

    def _telling(self) -> contextlib.AbstractContextManager[None]:
        """Turn errors of the system into sentences."""
        return self.draft.store.telling(f"{self.draft.path}/{self.name} cannot be written")


def _open_new(path: Path, owner: Owner) -> BinaryIO:
    """Open a file that is not there yet, for nobody but its owner."""
    stream = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb")
    os.fchown(stream.fileno(), owner.uid, owner.gid)
    return stream


def _write_new(path: Path, content: bytes, owner: Owner) -> None:
    """Write a file that is not there yet, durably."""
    with _open_new(path, owner) as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _is_locked(path: Path) -> bool:
    """Say whether a process holds the lock of a backup that is being written."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _remove_empty(directory: Path) -> None:
    """Remove the directory of a backup in which nothing is left but what a crash may leave."""
    with contextlib.suppress(OSError):
        left = list(directory.iterdir())
        if all(path.name.startswith(".") and stat.S_ISREG(path.lstat().st_mode) for path in left):
            for path in left:
                path.unlink()
            directory.rmdir()
            sync_directory(directory.parent)
