# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write, lock and remove files so that a crash leaves the old state or the new one."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import grp
import os
import pwd
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Callable

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError


@dataclass(frozen=True)
class Owner:
    """A user and a group as numbers; -1 leaves the one in place as it is."""

    uid: int = -1
    gid: int = -1

    @classmethod
    def of(cls, user: str | None, group: str | None) -> Owner:
        """Look up a user and a group by name or number."""
        return cls(_user_number(user), _group_number(group))

    def give(self, path: Path, follow: bool = True) -> None:
        """Hand a path over where it belongs to somebody else."""
        found = path.stat() if follow else path.lstat()
        if self.uid in (-1, found.st_uid) and self.gid in (-1, found.st_gid):
            return
        os.chown(path, self.uid, self.gid, follow_symlinks=follow)


ANYBODY = Owner()


def _user_number(user: str | None) -> int:
    """Return the number of a user."""
    if not user:
        return -1
    if user.isdigit():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError as error:
        raise LmsError(f"There is no user {user} on this host.") from error


def _group_number(group: str | None) -> int:
    """Return the number of a group."""
    if not group:
        return -1
    if group.isdigit():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise LmsError(f"There is no group {group} on this host.") from error


def mode_number(mode: str, option: str) -> int:
    """Read an octal mode that was given as a string."""
    try:
        number = int(mode, 8)
    except ValueError as error:
        raise LmsError(f'{option} is {mode}, which is no octal mode such as "0750".') from error
    if not 0 <= number <= 0o7777:
        raise LmsError(f'{option} is {mode}, which is no octal mode such as "0750".')
    return number


def relative_path(name: str, option: str) -> str:
    """Return a relative path in its shortest form, or refuse one that is absolute, leaves its directory or hides something."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith(("/", "-")) or ".." in parts or not name.isprintable():
        raise LmsError(f"{option} has {name!r}: give a relative path without .., a leading hyphen or control characters.")
    return "/".join(parts)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_filesystem(directory: Path) -> None:
    """Write everything of one file system to the disk, which is far cheaper than fsync on each of thousands of files."""
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        os.sync()
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(directory))
    finally:
        os.close(descriptor)


def write_atomically(
    path: Path,
    content: bytes,
    mode: int = 0o644,
    owner: Owner | None = None,
    check: Callable[[bytes], None] | None = None,
) -> None:
    """Write a file aside, readable by nobody else until it is whole, check it as it is on the disk, and rename it into place."""
    for stale in path.parent.glob(f".{path.name}.*.tmp"):
        stale.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            if owner is not None:
                os.fchown(descriptor, owner.uid, owner.gid)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        if check is not None:
            check(temporary.read_bytes())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def owner_of_directory(directory: Path) -> Owner:
    """Return who owns a directory, so that what root adds to it stays usable for its owner."""
    if os.geteuid() != 0:
        return Owner()
    found = directory.stat()
    return Owner(found.st_uid, found.st_gid)


def make_directory(directory: Path, mode: int = 0o755, owner: Owner | None = None) -> None:
    """Create a directory with its parents; one that exists is left alone."""
    if directory.is_dir():
        return
    make_directory(directory.parent, 0o755, owner)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(0o700)
        if owner is not None:
            owner.give(directory)
        directory.chmod(mode)
    if not directory.is_dir():
        raise LmsError(f"{directory} is in the way: it should be a directory.")


def remove_tree(path: Path) -> None:
    """Remove a directory with everything below it; a path that is gone is fine."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


@contextlib.contextmanager
def locked(path: Path, holder: str, timeout: float | None = None) -> Iterator[int]:
    """Hold a lock that the kernel frees when the process ends; wait for it, for ever or for some seconds.

    Gives the lock's descriptor. A program that inherits it holds the lock until it ends, too.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        owner = owner_of_directory(path.parent)
        os.fchown(descriptor, owner.uid, owner.gid)
        _wait_for_lock(descriptor, holder, timeout)
        yield descriptor
    finally:
        os.close(descriptor)


def _wait_for_lock(descriptor: int, holder: str, timeout: float | None) -> None:
    """Take an exclusive lock on an open file."""
    if timeout is None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise LmsError(f"{holder} is still at work after {timeout:g} seconds. Try again when it has ended.") from error
            time.sleep(0.1)
        else:
            return
