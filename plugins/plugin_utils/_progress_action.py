# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An action whose module takes long: it runs on the host by itself, and the control host says how far it is."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from ansible.plugins.action import ActionBase

# How often to say how far it is (seconds).
TELL_INTERVAL = 10
# How long to wait before asking again (seconds): short ones end at once, long ones are not disturbed.
ASK_INTERVALS = (0.3, 0.5, 1, 2, 4)
# The module has limits of its own; this one is Ansible's, which has to be named (seconds).
AT_MOST = 7 * 86400
_UNITS = ("B", "kB", "MB", "GB", "TB")


def amount(count: float) -> str:
    """Return bytes as a person reads them."""
    unit = 0
    while count >= 999.5 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.1f} {_UNITS[unit]}" if unit and count < 99.95 else f"{count:.0f} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """Return a time as a person reads it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def progress_line(progress: Mapping[str, Any], now: float) -> str:
    """Say how far a step is: bytes, rate, and what is left where the size is known from the last time."""
    passed = max(now - progress["started"], 0.001)
    done, total = progress["bytes"], progress["total"]
    if not done:
        return f"{progress['step']}: {duration(passed)} so far"
    rate = done / passed
    if not total or done > total:
        return f"{progress['step']}: {amount(done)} in {duration(passed)}, {amount(rate)}/s"
    left = duration((total - done) / rate)
    return f"{progress['step']}: {amount(done)} of about {amount(total)} ({100 * done // total} %), {amount(rate)}/s, about {left} left"


class ProgressAction(ActionBase):  # type: ignore[misc]
    """Runs the module of its task and tells its progress. In check mode, and with async on the task, it only runs it."""

    _supports_check_mode = True
    _supports_async = True
    clock: Callable[[], float] = staticmethod(time.time)
    sleep: Callable[[float], None] = staticmethod(time.sleep)

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module."""
        super().run(tmp, task_vars)
        options = dict(self._task.args)
        if self._task.check_mode or self._task.async_val:
            return self.ask(None, options, task_vars, wrap_async=bool(self._task.async_val))
        directory = self._remote_expand_user(self.get_shell_option("async_dir", default="~/.ansible_async"))
        note = f"{directory}/bitflow-lms-{secrets.token_hex(8)}"
        job = self.started({**options, "progress_file": note}, task_vars)
        if "ansible_job_id" not in job:
            return job
        try:
            return self.followed({"jid": job["ansible_job_id"], "_async_dir": directory}, note, task_vars)
        finally:
            self._low_level_execute_command(f"rm -f {note}", sudoable=True)

    def started(self, options: Mapping[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Start the module on the host, and return what tells its run from others."""
        self._task.async_val = AT_MOST
        try:
            return self.ask(None, options, task_vars, wrap_async=True)
        finally:
            # Or Ansible would wait for it as well.
            self._task.async_val = 0

    def followed(self, job: Mapping[str, Any], note: str, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Wait for the end, and say how far it is meanwhile."""
        asked, told = 0, self.clock()
        while True:
            self.sleep(ASK_INTERVALS[min(asked, len(ASK_INTERVALS) - 1)])
            asked += 1
            result = self.ask("ansible.legacy.async_status", {**job, "mode": "status"}, task_vars)
            # An answer that has neither is one of the connection, not of the module.
            if result.get("finished") or (result.get("failed") and "finished" not in result):
                self.ask("ansible.legacy.async_status", {**job, "mode": "cleanup"}, task_vars)
                return {key: value for key, value in result.items() if key not in ("ansible_job_id", "finished", "started", "results_file")}
            if self.clock() - told >= TELL_INTERVAL:
                told = self.clock()
                self.tell(note, str((task_vars or {}).get("inventory_hostname", "")))

    def tell(self, note: str, host: str) -> None:
        """Show how far the host says it is; when it cannot be asked now, the next time will do."""
        answer = self._low_level_execute_command(f"cat {note}; date +%s", sudoable=True)
        progress, _end, now = answer.get("stdout", "").strip().rpartition("}")
        try:
            line = progress_line(json.loads(f"{progress}}}"), float(now))
        except ValueError:
            return
        self._display.display(f"{self._task.get_name()} [{host}] {line}")

    def ask(self, module: str | None, options: Mapping[str, Any], task_vars: dict[str, Any] | None, **how: Any) -> dict[str, Any]:
        """Run a module on the host: the task's own, or another one."""
        answer: dict[str, Any] = self._execute_module(module_name=module, module_args=dict(options), task_vars=task_vars, **how)
        return answer
