# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal of an application: one line an event, added to the end and never rewritten."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._files import owner_of_directory


class Journal:
    """A file of JSON lines that survives a crash in the middle of a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, entry: dict[str, Any]) -> None:
        """Add one entry and wait until the disk has it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        descriptor = os.open(self.path, flags, 0o644)
        try:
            owner = owner_of_directory(self.path.parent)
            os.fchown(descriptor, owner.uid, owner.gid)
            line = json.dumps(entry, sort_keys=True) + "\n"
            # A line that a crash cut short stays alone on its line.
            os.write(descriptor, (line if self._ends_whole(descriptor) else f"\n{line}").encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @staticmethod
    def _ends_whole(descriptor: int) -> bool:
        """Say whether the file is empty or ends with the end of a line."""
        size = os.fstat(descriptor).st_size
        return size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"

    def entries(self) -> list[dict[str, Any]]:
        """Return the entries, oldest first, without lines that a crash cut short."""
        found: list[dict[str, Any]] = []
        with contextlib.suppress(FileNotFoundError):
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    entry = json.loads(line)
                    if isinstance(entry, dict):
                        found.append(entry)
        return found
