# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run at a time on a host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._backup_lock import LockedError, only_one


def test_the_second_is_refused_and_told_who_is_at_work(tmp_path: Path) -> None:
    with only_one("prod/database/lms", tmp_path), pytest.raises(LockedError) as error, only_one("prod/database/lms", tmp_path):
        pass

    assert error.value.message == f"Process {os.getpid()} of this host works on prod/database/lms. Wait until it has ended."


def test_another_backup_has_another_lock(tmp_path: Path) -> None:
    with only_one("prod/database/lms", tmp_path), only_one("prod/database/forum", tmp_path):
        pass


def test_it_is_free_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), only_one("lms", tmp_path):
        raise ValueError("broken")

    with only_one("lms", tmp_path):
        pass
