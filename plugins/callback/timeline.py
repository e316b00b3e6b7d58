# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show what a run is doing while it does it, and draw it afterwards."""

from __future__ import annotations

DOCUMENTATION = r"""
name: timeline
type: notification
short_description: Say what long tasks wait for, and draw a run over time
version_added: 1.0.0
author: Bitflow LMS contributors (@bitflow-lms)
description:
  - While a task takes long, prints a line every few seconds with its name, the time, and the hosts that are not done.
  - On request writes one HTML file in which plays and tasks are bars over time, a bar a host, with the messages of what failed. The file
    needs nothing else and holds no script. Results of tasks with C(no_log) are not in it.
  - The file is also written when the run is interrupted.
  - It must be enabled, with C(callbacks_enabled = bitflow.lms.timeline) in C(ansible.cfg). Trouble of its own is a warning and ends neither
    the run nor a task.
options:
  path:
    description:
      - File to write. Its directory must exist. Without it, nothing is drawn.
    type: path
    env:
      - name: LMS_TIMELINE
    ini:
      - section: callback_timeline
        key: path
  progress_interval:
    description:
      - Seconds after which a task that runs is named, and again after as many more. 0 turns this off.
    type: float
    default: 10
    env:
      - name: LMS_PROGRESS_INTERVAL
    ini:
      - section: callback_timeline
        key: progress_interval
"""

EXAMPLES = r"""
# In ansible.cfg:
#   [defaults]
#   callbacks_enabled = bitflow.lms.timeline
#
# With a drawing of this run:
#   LMS_TIMELINE=deploy.html ansible-playbook deploy.yml -i inventories/prod
"""

import atexit
import functools
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, TypeVar

from ansible.plugins.callback import CallbackBase
from ansible_collections.bitflow.lms.plugins.module_utils._timeline import Bar, Play, Run, Task, render

HOSTS_SHOWN = 5
# They wait for a person, who needs no line about it.
INTERACTIVE = frozenset({"pause", "ansible.builtin.pause", "ansible.legacy.pause"})

Hook = TypeVar("Hook", bound=Callable[..., None])


def harmless(hook: Hook) -> Hook:
    """Make of any trouble of a hook one warning, after which the plugin is quiet."""

    @functools.wraps(hook)
    def guarded(self: Any, *arguments: Any, **keywords: Any) -> None:
        if self.broken:
            return
        try:
            hook(self, *arguments, **keywords)
        except Exception as error:
            self.broken = True
            self._display.warning(f"The timeline was given up: {type(error).__name__}: {error}")

    return guarded  # type: ignore[return-value]


def message_of(result: Mapping[str, Any]) -> str:
    """Return why a task or an item failed."""
    if "censored" in result:
        return "The result is hidden, because the task has no_log."
    return str(result.get("msg") or "It failed.")


def progress_line(name: str, seconds: float, hosts: list[str]) -> str:
    """Return what a task is doing that takes long."""
    more = f" and {len(hosts) - HOSTS_SHOWN} more" if len(hosts) > HOSTS_SHOWN else ""
    return f"  {name}: {round(seconds)} s, waiting for {', '.join(hosts[:HOSTS_SHOWN])}{more}"


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Record what starts and ends, and say it."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "bitflow.lms.timeline"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.broken = False
        self.path: Path | None = None
        self.interval = 0.0
        self.process = os.getpid()
        self.run_record = Run("ansible-playbook", time.time())
        self.tasks: dict[str, Task] = {}
        # What runs now: written by the hooks, read by the thread that says so.
        self.running: dict[tuple[str, str], Task] = {}
        self.lock = threading.Lock()
        self.done = threading.Event()
        self.written = False

    def set_options(self, *arguments: Any, **keywords: Any) -> None:
        """Read the options; without any there is nothing to do."""
        super().set_options(*arguments, **keywords)
        path = self.get_option("path")
        self.path = Path(path).absolute() if path else None
        self.interval = float(self.get_option("progress_interval") or 0)
        self.disabled = self.path is None and self.interval <= 0
        if self.path is not None:
            # A run that is interrupted ends without statistics.
            atexit.register(self.write)

    @harmless
    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Begin the record."""
        self.run_record = Run(Path(playbook._file_name).name, time.time())
        if self.interval > 0:
            threading.Thread(target=self.say_progress, name="lms-progress", daemon=True).start()

    @harmless
    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Note a play."""
        self.run_record.plays.append(Play(play.get_name().strip() or "Play", time.time()))

    @harmless
    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Note a task."""
        self.note_task(task)

    @harmless
    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """Note a handler."""
        self.note_task(task)

    @harmless
    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Note that a task starts on a host."""
        record = self.tasks.get(task._uuid) or self.note_task(task)
        part = Bar(host.get_name(), time.time())
        record.bars.append(part)
        if task.action not in INTERACTIVE:
            with self.lock:
                self.running[task._uuid, part.host] = record

    @harmless
    def v2_runner_on_ok(self, result: Any) -> None:
        """Note a success."""
        self.end_bar(result, "changed" if result.is_changed() else "ok")

    @harmless
    def v2_runner_on_skipped(self, result: Any) -> None:
        """Note that there was nothing to do."""
        self.end_bar(result, "skipped")

    @harmless
    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Note a failure; one that is ignored is none."""
        self.end_bar(result, "ok" if ignore_errors else "failed", message_of(result.result))

    @harmless
    def v2_runner_item_on_failed(self, result: Any) -> None:
        """Keep why the first item of a loop failed: the loop's own result only counts."""
        part = self.bar_of(result)
        if part is not None:
            part.message = part.message or message_of(result.result)

    @harmless
    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Note that a host cannot be reached."""
        self.end_bar(result, "unreachable", message_of(result.result))

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Draw."""
        self.done.set()
        self.write()

    def note_task(self, task: Any) -> Task:
        """Return the record of a task; another batch of hosts gets another one."""
        if not self.run_record.plays:
            self.run_record.plays.append(Play("Play", time.time()))
        record = Task(task.get_name().strip(), time.time())
        self.run_record.plays[-1].tasks.append(record)
        self.tasks[task._uuid] = record
        return record

    def end_bar(self, result: Any, status: str, message: str = "") -> None:
        """Note how a task ended on a host."""
        with self.lock:
            self.running.pop((result.task._uuid, result.host.get_name()), None)
        part = self.bar_of(result)
        if part is not None:
            part.end, part.status = time.time(), status
            part.message = (part.message or message) if message else ""

    def bar_of(self, result: Any) -> Bar | None:
        """Return the bar of a task on a host."""
        record = self.tasks.get(result.task._uuid)
        name = result.host.get_name()
        return next((part for part in reversed(record.bars) if part.host == name), None) if record else None

    def say_progress(self) -> None:
        """Say what takes long, until the run ends."""
        said: dict[tuple[str, float], int] = {}
        while not self.done.wait(min(self.interval, 1) / 4):
            now = time.time()
            for record, hosts in self.waited_for():
                times = int((now - record.start) / self.interval)
                if times > said.get((record.name, record.start), 0):
                    said[record.name, record.start] = times
                    self._display.display(progress_line(record.name, now - record.start, hosts), color="bright blue")

    def waited_for(self) -> list[tuple[Task, list[str]]]:
        """Return the tasks that run now, each with the hosts that are not done."""
        with self.lock:
            running = [(host, record) for (_number, host), record in self.running.items()]
        tasks: dict[int, tuple[Task, list[str]]] = {}
        for host, record in running:
            tasks.setdefault(id(record), (record, []))[1].append(host)
        return list(tasks.values())

    @harmless
    def write(self) -> None:
        """Write the page, once, and not in a worker's copy of this process."""
        if self.path is None or self.written or os.getpid() != self.process:
            return
        self.written = True
        self.run_record.end = time.time()
        # What failed may show paths and names of hosts: it is for whoever ran the playbook.
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(render(self.run_record))
        temporary.replace(self.path)
        self._display.display(f"The timeline of this run is in {self.path}.")
