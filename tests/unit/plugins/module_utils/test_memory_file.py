# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets in memory."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

from ansible_collections.bitflow.lms.plugins.module_utils._memory_file import MemoryFile


def test_a_program_reads_it_and_nobody_else_may() -> None:
    with MemoryFile("secret\n") as secret:
        read = subprocess.run(["cat", secret.path], pass_fds=[secret.descriptor], check=True, capture_output=True).stdout

        assert read == b"secret\n"
        assert stat.S_IMODE(os.fstat(secret.descriptor).st_mode) == 0o600


def test_every_reader_begins_at_the_beginning() -> None:
    with MemoryFile("secret") as secret:
        assert [Path(secret.path).read_text(), Path(secret.path).read_text()] == ["secret", "secret"]


def test_it_is_gone_afterwards() -> None:
    with MemoryFile("secret") as secret:
        path = secret.path

    assert not Path(path).exists()
    secret.close()
