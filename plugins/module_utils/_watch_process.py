# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process of a watch: it outlives the task that starts it, and never its time."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import signal
import stat
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import remove_tree, write_atomically
from ansible_collections.bitflow.lms.plugins.module_utils._http_watch import Target, Watch, Watcher, read_answers, summarise

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# How long the start waits until each address was asked once.
FIRST_ANSWERS_SECONDS = 5.0
POLL_SECONDS = 0.05
GRACE_SECONDS = 3.0
ENDED_STOPPED = "stopped"
ENDED_TIME = "time limit"
ENDED_KILLED = "killed"


class WatchProcess:
    """The watch with a name: its directory, and the process that holds its lock."""

    def __init__(self, directory: Path, name: str) -> None:
        if not NAME.fullmatch(name):
            raise LmsError(f"name is {name!r}; it must consist of up to 64 letters, digits, dots, hyphens and underscores.")
        self.parent = directory
        self.directory = directory / name
        self.lock = self.directory / "lock"
        self.plan = self.directory / "watch.json"
        self.answers = self.directory / "answers.jsonl"
        self.stop_file = self.directory / "stop"
        self.end_file = self.directory / "ended"

    def exists(self) -> bool:
        """Say whether there is a watch, running or ended."""
        return self.plan.exists()

    def running(self) -> bool:
        """Say whether the process lives: the kernel frees its lock when it ends, however that happens."""
        try:
            descriptor = os.open(self.lock, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def start(self, watch: Watch, sleep: Callable[[float], None] = time.sleep) -> dict[str, Any]:
        """Start the process, in place of one with the same name, and wait until each address was asked once."""
        contexts = watch.contexts()
        if self.exists():
            self.end(sleep)
        make_private(self.parent)
        remove_tree(self.directory)
        make_private(self.directory)
        write_atomically(self.plan, json.dumps({"started": time.time(), **asdict(watch)}).encode(), 0o600)
        pid = detach(self.lock, lambda: self.work(watch, contexts))
        deadline = time.monotonic() + min(FIRST_ANSWERS_SECONDS, watch.timeout + len(watch.targets) / watch.rate)
        wanted = {target.name for target in watch.targets}
        while time.monotonic() < deadline and not wanted <= {answer.name for answer in self.read()} and self.running():
            sleep(POLL_SECONDS)
        if not self.running():
            raise LmsError(f"The watch {self.directory.name} ended as soon as it was started. Its files are in {self.directory}.")
        return {"pid": pid}

    def work(self, watch: Watch, contexts: Any) -> None:
        """Ask until the stop, the end of the time or the removal of the directory."""
        # The last resort: the kernel ends a process whose own clock does not.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(watch.at_most + watch.timeout + GRACE_SECONDS) + 1)
        with self.answers.open("a", encoding="utf-8", buffering=1) as stream:
            watcher = Watcher(watch, contexts, stream.write)
            asyncio.run(watcher.run(lambda: self.stop_file.exists() or not self.plan.exists()))
        self.end_file.write_text(ENDED_STOPPED if self.stop_file.exists() else ENDED_TIME, encoding="utf-8")

    def read(self) -> list[Any]:
        """Return what was written so far."""
        try:
            return read_answers(self.answers.read_text(encoding="utf-8", errors="replace").splitlines())
        except FileNotFoundError:
            return []

    def end(self, sleep: Callable[[float], None] = time.sleep) -> dict[str, Any]:
        """End the process, remove its files and return what it saw."""
        plan = json.loads(self.plan.read_text(encoding="utf-8"))
        stopped_at = time.time()
        was_running = self.running()
        if was_running:
            self.stop_file.touch(mode=0o600)
            # Requests that wait for their answer are waited for: they count.
            deadline = time.monotonic() + plan["timeout"] + GRACE_SECONDS
            while self.running() and time.monotonic() < deadline:
                sleep(POLL_SECONDS)
            if self.running():
                self.kill(sleep)
        ended = self.end_file.read_text(encoding="utf-8") if self.end_file.exists() else ENDED_KILLED
        answers = self.read()
        # Of a watch that ended before it was stopped, nothing is known after its last request.
        seen = summarise(answers, [target["name"] for target in plan["targets"]], stopped_at if was_running else None)
        remove_tree(self.directory)
        return {**seen, "ended": ended}

    def kill(self, sleep: Callable[[float], None]) -> None:
        """Kill a process that does not end; its number is its own as long as it holds the lock."""
        with contextlib.suppress(ProcessLookupError, ValueError, FileNotFoundError):
            os.kill(int(self.lock.read_text(encoding="ascii")), signal.SIGKILL)
        deadline = time.monotonic() + GRACE_SECONDS
        while self.running() and time.monotonic() < deadline:
            sleep(POLL_SECONDS)


def watch_from(options: dict[str, Any]) -> Watch:
    """Return the watch that a module's options describe."""
    return Watch(
        targets=tuple(
            Target(
                name=item["name"],
                url=item["url"],
                connect_to=item["connect_to"],
                ca_path=item["ca_path"],
                expect_status=tuple(item["expect_status"]),
            )
            for item in options["urls"] or []
        ),
        rate=options["rate"],
        timeout=options["timeout"],
        at_most=options["at_most"],
        release_header=options["release_header"],
    )


def make_private(directory: Path) -> None:
    """Create a directory that only this user can enter, or refuse one that is somebody else's."""
    directory.mkdir(0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise LmsError(f"{directory} is not a directory of the user that the task runs as. Set directory to another one.")
    if stat.S_IMODE(found.st_mode) & 0o077:
        directory.chmod(0o700)


def detach(lock: Path, work: Callable[[], None]) -> int:
    """Run something in a process of its own that holds a lock, without terminal, parent or open files; return its number."""
    holder = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    reader, writer = os.pipe()
    try:
        # The lock belongs to the open file: the process that is forked from this one goes on holding it.
        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child = os.fork()
        if child == 0:
            become_watcher(holder, writer, work)
        os.close(writer)
        writer = -1
        os.waitpid(child, 0)
        number = os.read(reader, 20)
    finally:
        for descriptor in (holder, reader, writer):
            if descriptor >= 0:
                os.close(descriptor)
    if not number:
        raise LmsError(f"The process of the watch in {lock.parent} could not be started.")
    return int(number)


def become_watcher(holder: int, writer: int, work: Callable[[], None]) -> None:
    """Leave the session of the task, tell the number, and work. Does not return."""
    status = 1
    try:
        os.setsid()
        # Without the leadership of its session the process can never get a terminal; its parent is init.
        if os.fork():
            os._exit(0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.chdir("/")
        os.umask(0o077)
        number = str(os.getpid()).encode()
        os.ftruncate(holder, 0)
        os.pwrite(holder, number, 0)
        os.write(writer, number)
        # Whoever waits for the end of the task's output must not wait for the watcher.
        empty = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(empty, descriptor)
        for descriptor in open_descriptors():
            if descriptor > 2 and descriptor != holder:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        work()
        status = 0
    finally:
        # Nothing of the task may run twice: no handler at exit, no buffer, no clean-up.
        os._exit(status)


def open_descriptors() -> list[int]:
    """Return the numbers of the open files of this process."""
    try:
        return [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    except OSError:
        return list(range(3, 1024))
