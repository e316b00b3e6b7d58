# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a long step is."""

from __future__ import annotations

import json
from pathlib import Path

from ansible_collections.bitflow.lms.plugins.module_utils._progress import Progress


class Clock:
    """A clock that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_it_is_noted_at_most_once_a_second(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "progress"
    progress = Progress(str(path), clock)

    progress.step("dump lms", 500)
    progress.add(100)
    before = json.loads(path.read_text())
    clock.now += 1
    progress.add(100)

    assert before == {"step": "dump lms", "total": 500, "started": 1000.0, "bytes": 0}
    assert json.loads(path.read_text()) == {"step": "dump lms", "total": 500, "started": 1000.0, "bytes": 200}
    assert [each.name for each in tmp_path.iterdir()] == ["progress"]


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    progress = Progress(str(tmp_path / "missing" / "progress"))

    progress.step("dump lms")
    progress.add(100)

    assert progress.bytes == 100
