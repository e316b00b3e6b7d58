# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The SSH connection that a process came by, read from a folder that looks like /proc."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.bitflow.lms.plugins.module_utils._ssh_connection import NO_CONNECTION, connection_of


def process(processes: Path, pid: int, parent: int, environment: dict[str, str]) -> None:
    """Add a process. Its name has what a careless reader would stumble over."""
    folder = processes / str(pid)
    folder.mkdir()
    (folder / "stat").write_text(f"{pid} (a name) 7 (x) S {parent} 1 1 0")
    (folder / "environ").write_bytes("\0".join(f"{name}={value}" for name, value in environment.items()).encode())


def test_the_connection_is_found_behind_sudo(tmp_path: Path) -> None:
    connection = "192.0.2.1 51234 198.51.100.1 2222"
    process(tmp_path, 1, 0, {})
    process(tmp_path, 20, 1, {"PATH": "/bin"})
    process(tmp_path, 30, 20, {"USER": "admin", "SSH_CONNECTION": connection})
    process(tmp_path, 40, 30, {"USER": "root", "SSH_CONNECTION": connection})
    process(tmp_path, 50, 40, {"USER": "root", "SUDO_USER": "admin"})

    assert connection_of(50, tmp_path) == {"client": "192.0.2.1", "client_port": 51234, "port": 2222, "user": "admin"}


def test_the_name_of_the_login_is_believed_first(tmp_path: Path) -> None:
    process(tmp_path, 1, 0, {"LOGNAME": "admin", "USER": "x", "SSH_CONNECTION": "2001:db8::1 51234 2001:db8::2 22"})

    assert connection_of(1, tmp_path) == {"client": "2001:db8::1", "client_port": 51234, "port": 22, "user": "admin"}


def test_a_process_without_a_connection_has_none(tmp_path: Path) -> None:
    process(tmp_path, 1, 0, {"SSH_CONNECTION": "UNKNOWN"})
    process(tmp_path, 20, 1, {"USER": "root"})

    assert connection_of(20, tmp_path) == NO_CONNECTION


def test_processes_that_may_not_be_read_end_the_search(tmp_path: Path) -> None:
    process(tmp_path, 20, 1, {"USER": "root"})
    (tmp_path / "20/environ").unlink()

    assert connection_of(20, tmp_path) == NO_CONNECTION
