# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes of this host that run a Laravel application, and which release each of them runs: what /proc knows for certain."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import pwd
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# Programs that run an application's code. A shell or an editor that stands in a release does not.
RUNTIME = re.compile(r"^(?:php\d*(?:\.\d+)?|frankenphp|rr|node(?:js)?)$")
KIND_OF_COMMAND = {
    "queue:work": "queue",
    "queue:listen": "queue",
    "horizon": "horizon",
    "horizon:supervisor": "horizon",
    "horizon:work": "horizon",
    "reverb:start": "reverb",
    "octane:start": "octane",
    "octane:frankenphp": "octane",
    "octane:roadrunner": "octane",
    "octane:swoole": "octane",
    "pulse:check": "pulse",
    "pulse:work": "pulse",
    "schedule:work": "schedule",
    "schedule:run": "schedule",
    "schedule:finish": "schedule",
}
KINDS = ("queue", "horizon", "reverb", "octane", "pulse", "schedule", "command")
# Commands at which a person sits: their end is not for us to wait for.
INTERACTIVE = frozenset({"tinker", "db", "pail"})
# The kernel counts a process's age in hundredths of a second, and a file's change in ticks of its own.
CLOCK_STEP = 0.03
LONGEST_COMMAND = 200
_DELETED = " (deleted)"


@dataclass(frozen=True)
class Process:
    """One process, as /proc shows it."""

    pid: int
    parent: int
    started: float
    user: str
    arguments: tuple[str, ...]
    program: str = ""
    directory: str = ""
    files: tuple[str, ...] = ()
    unit: str | None = None
    ticks: int = 0

    @property
    def identity(self) -> tuple[int, int]:
        """Return what no later process shares, although its number comes again."""
        return (self.pid, self.ticks)


@dataclass(frozen=True)
class Application:
    """What the processes are held against: where the application lives, and which release went live when."""

    root: Path
    release: str
    switched: float
    kinds: tuple[str, ...] = KINDS
    ignored_units: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A process of the application, what it does, which release it runs, and how that is known."""

    process: Process
    kind: str
    command: str
    release: str | None
    proof: str
    current: bool

    def as_result(self, now: float) -> dict[str, Any]:
        """Return the finding for the module's result."""
        process = self.process
        return {
            "pid": process.pid,
            "kind": self.kind,
            "command": shown_command(process.arguments),
            "user": process.user,
            "unit": process.unit,
            "release": self.release,
            "proof": self.proof,
            "current": self.current,
            "started": datetime.fromtimestamp(process.started, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "age": max(0, int(now - process.started)),
        }


def shown_command(arguments: Sequence[str]) -> str:
    """Return a command line for a sentence, without the values that may be secrets."""
    shown = " ".join(_SECRET.sub(r"\1=***", argument) for argument in arguments)
    return shown if len(shown) <= LONGEST_COMMAND else shown[: LONGEST_COMMAND - 3] + "..."


_SECRET = re.compile(r"^(--?[\w-]*(?:secret|password|token|key)[\w-]*)=.*$", re.IGNORECASE | re.DOTALL)


def find_processes(processes: Iterable[Process], application: Application) -> list[Finding]:
    """Return the processes that run the application's code, by their numbers."""
    found = [judge(process, application) for process in processes]
    return sorted((finding for finding in found if finding is not None), key=lambda finding: finding.process.pid)


def judge(process: Process, application: Application) -> Finding | None:
    """Return what a process has to do with the application; None when that is nothing."""
    if any(fnmatch.fnmatchcase(process.unit or "", pattern) for pattern in application.ignored_units):
        return None
    if not _is_runtime(process.program):
        return None
    place = _place(process, application.root)
    if place is None:
        return None
    release, proof = place
    command = artisan_command(process.arguments)
    kind = KIND_OF_COMMAND.get(command, "command")
    if kind not in application.kinds:
        return None
    if proof == "start":
        current = process.started > application.switched + CLOCK_STEP
        release = application.release if current else None
    else:
        current = release == application.release
    return Finding(process, kind, command, release, proof, current)


def artisan_command(arguments: Sequence[str]) -> str:
    """Return the artisan command of a command line, or nothing."""
    names = [Path(argument).name for argument in arguments]
    if "artisan" not in names:
        return ""
    rest = arguments[names.index("artisan") + 1 :]
    return next((argument for argument in rest if not argument.startswith("-")), "list")


def _is_runtime(program: str) -> bool:
    """Tell whether a program is one that runs applications; PHP-FPM is not meant, since it changes over by itself."""
    return bool(RUNTIME.match(Path(program.replace(_DELETED, "")).name))


def _place(process: Process, root: Path) -> tuple[str | None, str] | None:
    """Return the release of a process and the proof for it; no release when only the live link leads there; None for a stranger.

    PHP keeps the script that it was started with open: that file tells the release even when the command line went through a link.
    """
    directory = process.directory.replace(_DELETED, "") or "/"
    roots = {os.path.normpath(root), os.path.realpath(root)}
    scripts = [file for file in process.files if Path(file.replace(_DELETED, "")).name == "artisan"]
    for path in scripts:
        if _release_in(path, roots):
            return _release_in(path, roots), "file"
    arguments = [os.path.normpath(Path(directory) / argument) for argument in process.arguments[1:] if _is_path(argument)]
    for path in arguments:
        if _release_in(path, roots):
            return _release_in(path, roots), "argument"
    if any(path.startswith(f"{top}/current/") for path in arguments for top in roots):
        return None, "start"
    for proof, paths in (("program", [process.program]), ("directory", [directory]), ("file", process.files)):
        for path in paths:
            if _release_in(path, roots):
                return _release_in(path, roots), proof
    return None


def _is_path(argument: str) -> bool:
    """Tell whether an argument may name a file of the application."""
    return "/" in argument or argument == "artisan"


def _release_in(path: str, roots: Iterable[str]) -> str | None:
    """Return the release below one of the roots that a path lies in."""
    for root in roots:
        if path.startswith(f"{root}/releases/"):
            name = path[len(root) + len("/releases/") :].partition("/")[0].replace(_DELETED, "")
            return name or None
    return None


class ProcessTable:
    """The processes of this host. Without root only the own ones show their files and their directory."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self.proc = proc

    def read(self) -> list[Process]:
        """Return every process but this one and those that it was started by."""
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        found = [process for entry in self.proc.glob("[0-9]*") for process in _read_process(entry, booted)]
        own = _ancestors(os.getpid(), {process.pid: process.parent for process in found})
        return [process for process in found if process.pid not in own]


def _ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    """Return a process and all that it was started by."""
    line: set[int] = set()
    while pid > 1 and pid not in line:
        line.add(pid)
        pid = parents.get(pid, 0)
    return line


def _read_process(entry: Path, booted: float) -> Iterator[Process]:
    """Give one process; it may end while we look."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        arguments = tuple((entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0"))
        # Behind the name of the program, which may hold spaces and brackets.
        state = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        if not arguments[0] or state[0] in "ZX":
            return
        program = _link_target(entry / "exe")
        yield Process(
            pid=int(entry.name),
            parent=int(state[1]),
            started=booted + int(state[19]) / os.sysconf("SC_CLK_TCK"),
            user=_user_name(entry.stat().st_uid),
            arguments=arguments,
            program=program,
            directory=_link_target(entry / "cwd"),
            files=tuple(_open_files(entry)) if _is_runtime(program) else (),
            unit=unit_of((entry / "cgroup").read_text(errors="replace")),
            ticks=int(state[19]),
        )


def _open_files(entry: Path) -> Iterator[str]:
    """Give the files that a process holds open."""
    with contextlib.suppress(OSError):
        for descriptor in sorted((entry / "fd").iterdir(), key=lambda path: int(path.name)):
            target = _link_target(descriptor)
            if target.startswith("/"):
                yield target


def _link_target(link: Path) -> str:
    """Return what a link of /proc says, or nothing."""
    try:
        return str(link.readlink())
    except OSError:
        return ""


def _user_name(uid: int) -> str:
    """Return the name of a user, or its number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def unit_of(cgroups: str) -> str | None:
    """Return the system service that a process belongs to, from its file cgroup; None outside of services and in a user's own."""
    for line in cgroups.splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if (number, controllers) == ("0", "") or controllers == "name=systemd":
            parts = path.split("/")
            services = [part for part in parts if part.endswith(".service")]
            if services and not any(part.startswith("user@") for part in parts):
                return services[-1]
    return None
