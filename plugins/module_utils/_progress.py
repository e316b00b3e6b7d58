# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a long step is: a small file on the host, which the control host reads and shows."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# How often the file is written at most (seconds).
INTERVAL = 1.0


class Progress:
    """Counts the bytes of a step, and notes them in a file where one is given."""

    def __init__(self, path: str | None = None, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path) if path else None
        self.clock = clock
        self.bytes = 0
        self._step: dict[str, Any] = {}
        self._noted = 0.0

    def step(self, name: str, total: int | None = None) -> None:
        """Begin a step, of as many bytes as are expected (None: nobody knows)."""
        self.bytes = 0
        self._step = {"step": name, "total": total, "started": self.clock()}
        self._note()

    def add(self, count: int) -> None:
        """Count bytes that are done."""
        self.bytes += count
        if self.path and self.clock() - self._noted >= INTERVAL:
            self._note()

    def _note(self) -> None:
        """Write the file anew. That nobody can be told is no reason to stop."""
        if not self.path:
            return
        self._noted = self.clock()
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps({**self._step, "bytes": self.bytes}), encoding="utf-8")
            temporary.replace(self.path)
        except OSError:
            self.path = None
