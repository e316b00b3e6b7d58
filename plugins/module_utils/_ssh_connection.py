# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How this process came to the host: the connection of SSH that started it, whatever sudo made of its environment since."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

NO_CONNECTION: dict[str, Any] = {"client": "", "client_port": 0, "port": 0, "user": ""}


def ancestors(pid: int, processes: Path = Path("/proc")) -> Iterator[int]:
    """Yield the process and those that started it, up to the first one."""
    while pid > 0:
        yield pid
        try:
            status = (processes / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        # The name stands in brackets and may hold anything; the parent is the second field after it.
        pid = int(status.rpartition(")")[2].split()[1])


def environment_of(pid: int, processes: Path = Path("/proc")) -> dict[str, str]:
    """Return the environment that a process was started with, empty where it may not be read."""
    try:
        content = (processes / str(pid) / "environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition("=") for item in content.decode("utf-8", "replace").split("\0"))
    return {name: value for name, sign, value in pairs if sign}


def connection_of(pid: int, processes: Path = Path("/proc")) -> dict[str, Any]:
    """Return who connected, from where and to which port. The outermost process knows the user that logged in."""
    environments = [environment_of(ancestor, processes) for ancestor in ancestors(pid, processes)]
    for environment in reversed(environments):
        fields = environment.get("SSH_CONNECTION", "").split()
        if len(fields) == 4:
            client, client_port, _server, port = fields
            user = environment.get("LOGNAME") or environment.get("USER", "")
            return {"client": client, "client_port": int(client_port), "port": int(port), "user": user}
    return NO_CONNECTION
