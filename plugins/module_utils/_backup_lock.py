# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run at a time on this host: a lock that ends with the process, however that ends."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

DIRECTORY = Path("/run/lock")


class LockedError(LmsError):
    """Another run on this host is at work."""


@contextmanager
def only_one(what: str, directory: Path = DIRECTORY) -> Iterator[None]:
    """Hold the lock of something, such as a backup's place, while the block runs. LockedError when another process holds it."""
    path = directory / f"bitflow-lms-backup-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    # Not inherited by the programs that run: they may outlive this process by a moment.
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise LmsError(f"The lock {path} of {what} belongs to another user. Run as that user, or remove it when nobody works.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 20, 0).decode("ascii", errors="replace").strip() or "unknown"
            raise LockedError(f"Process {holder} of this host works on {what}. Wait until it has ended.", holder=holder) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
