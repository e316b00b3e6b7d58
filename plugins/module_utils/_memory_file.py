# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets for programs that want a file: kept in memory, passed by descriptor, readable for nobody else, gone with the process."""

from __future__ import annotations

import os
import pwd
from types import TracebackType


class MemoryFile:
    """A file without a name (memfd_create(2)), open for as long as the programs that read it run."""

    def __init__(self, content: str | bytes, user: str = "") -> None:
        self.descriptor = os.memfd_create("secret")
        # Clients refuse password files that others might read; 0777 is what the kernel makes.
        os.fchmod(self.descriptor, 0o600)
        if user:
            os.fchown(self.descriptor, pwd.getpwnam(user).pw_uid, -1)
        with os.fdopen(os.dup(self.descriptor), "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)

    @property
    def path(self) -> str:
        """Return the path at which a program that inherits the descriptor reads it from the beginning."""
        return f"/proc/self/fd/{self.descriptor}"

    def close(self) -> None:
        """Forget it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> MemoryFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
