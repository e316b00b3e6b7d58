# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell a run of Ansible from all others, and say whether one that held a lease is dead.

A run is known by its control host's start, its process namespace, its process id and the time at which the process started. Only a
run in the same namespace since the same start can be judged: in any other one the same number means another process, or none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PROCESSES = Path("/proc")
# How long a step of a run that is dead may take to end (seconds).
LAST_STEP = 60
# How often to see whether the holder is still alive (seconds).
LOOK_INTERVAL = 10
# How often a clock is asked that seems to be wrong.
CLOCK_ATTEMPTS = 2


def identity_of(pid: int, processes: Path = PROCESSES) -> str:
    """Return what tells a process from all others, or nothing where that cannot be told."""
    try:
        return " ".join((*_surroundings(processes), str(pid), _start_of(pid, processes)))
    except (OSError, IndexError):
        return ""


def exists(pid: int) -> bool:
    """Say whether there is a process, also where those of other users are hidden in /proc."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def is_dead(identity: str, processes: Path = PROCESSES, there: Callable[[int], bool] = exists) -> bool:
    """Say whether a process has certainly ended; one that cannot be judged has not."""
    words = identity.split(" ")
    if len(words) != 4 or not words[2].isdigit():
        return False
    try:
        if words[:2] != list(_surroundings(processes)):
            return False
    except OSError:
        return False
    try:
        return _start_of(int(words[2]), processes) != words[3]
    except (FileNotFoundError, ProcessLookupError):
        return not there(int(words[2]))
    except (OSError, IndexError):
        return False


def _surroundings(processes: Path) -> tuple[str, str]:
    """Return the start of the control host, and the namespace in which process ids count."""
    return (processes / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip(), str((processes / "self/ns/pid").readlink())


def _start_of(pid: int, processes: Path) -> str:
    """Return when a process started, in ticks. A dead one that nobody has buried yet has no start."""
    # The name in parentheses may hold spaces and parentheses itself.
    state, *fields = (processes / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return "" if state in ("Z", "X") else fields[18]


def take_lease(
    execute: Callable[[dict[str, Any]], dict[str, Any]],
    options: Mapping[str, Any],
    run: Mapping[str, str],
    dead: Callable[[str], bool] = is_dead,
) -> dict[str, Any]:
    """Take a lease; if a run of this control host holds it that is dead, take it from that run and from nobody else."""
    details = {**run, **{key: value for key, value in (options.get("details") or {}).items() if value}}
    asked = {**options, "details": details}
    remaining = float(options.get("wait") or 0)
    result = execute({**asked, "wait": 0})
    while (result.get("failed") or result.get("blocked")) and result.get("holder"):
        holder = result["holder"]
        if options.get("steal", "expired") != "never" and dead(holder.get("process", "")):
            return execute({**asked, "dead_owner": holder["owner"], "wait": max(remaining, LAST_STEP)})
        # In check mode the host only says who would block.
        if remaining <= 0 or result.get("blocked"):
            break
        # Not all at once: the holder may die meanwhile.
        wait = min(remaining, LOOK_INTERVAL)
        result = execute({**asked, "wait": wait})
        remaining -= wait
    return result


def ask_about_clock(
    execute: Callable[[dict[str, Any]], dict[str, Any]], options: Mapping[str, Any], limit: float, clock: Callable[[], float]
) -> dict[str, Any]:
    """Run a module that holds its host's clock against this one; what the way there may have taken is no difference of the clocks."""
    result: dict[str, Any] = {}
    took = 0.0
    for _attempt in range(CLOCK_ATTEMPTS):
        begun = clock()
        result = execute({**options, "controller_time": begun})
        took = clock() - begun
        if all(problem["check"] != "clock" for problem in result.get("problems") or []):
            return result
    # On a way as long as that, a right clock would look wrong too.
    return execute({**options, "controller_time": None}) if took > limit else result
