# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do harm at an exact moment of a play, and note what the play does. The tests of faults put it in the way; see injection.py."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: fault
type: notification
short_description: Do harm at an exact moment of a play
description:
  - E(LMS_FAULT_STEPS) names a file to which each task is written that changed something, as a line of JSON.
  - E(LMS_FAULT) holds JSON that says at which task of a play something is done, and what.
"""


class CallbackModule(CallbackBase):
    """Count tasks; at the one that was named, run a command or die."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "fault"

    def __init__(self) -> None:
        super().__init__()
        self.fault: dict[str, Any] = json.loads(os.environ.get("LMS_FAULT", "{}"))
        self.steps = os.environ.get("LMS_FAULT_STEPS")
        self.times = 0
        self.number = 0

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Do what is due before a task."""
        self.number += 1
        if self.fault.get("moment") in ("before", "while") and self._is_the_one(task):
            self._strike()

    def v2_runner_on_ok(self, result: Any) -> None:
        """Do what is due when the first host has ended a task, and others may be at it still."""
        task = result.task if hasattr(result, "task") else result._task
        if self.steps and dict(result.result if hasattr(result, "result") else result._result).get("changed"):
            with Path(self.steps).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"number": self.number, "name": task.get_name()}) + "\n")
        if self.fault.get("moment") == "within" and self._is_the_one(task):
            self._strike()

    def _is_the_one(self, task: Any) -> bool:
        if "number" in self.fault:
            return bool(self.number == self.fault["number"])
        if not fnmatch(task.action, self.fault.get("action", "")):
            return False
        for key, value in self.fault["arguments"].items():
            if key not in task.args or value not in (None, task.args[key]):
                return False
        self.times += 1
        return bool(self.times == self.fault["time"])

    def _strike(self) -> None:
        if self.fault["moment"] == "while":
            self._strike_when_it_is_so()
            return
        Path(self.fault["struck"]).touch()
        if self.fault["command"] is None:
            os.killpg(os.getpgrp(), signal.SIGKILL)
        # A command that fails is told by the test: it left a fault unmade.
        subprocess.run(self.fault["command"], check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.fault = {}

    def _strike_when_it_is_so(self) -> None:
        """Let a program of its own look until a command prints something, and do then what is due."""
        deed = shlex.join(self.fault["command"] or ["kill", "-9", f"-{os.getpgrp()}"])
        look = f"{shlex.join(self.fault['condition'])} | grep -q ."
        script = f"n=0; until {look}; do n=$((n + 1)); [ $n -lt 600 ] || exit; sleep 0.05; done; touch {self.fault['struck']}; {deed}"
        subprocess.Popen(
            ["sh", "-c", script], start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.fault = {}
