# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of deploy_preflight that only the control host can do: see how long the question about the clock was under way."""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.bitflow.lms.plugins.module_utils._controller import ask_about_clock

USUAL_LIMIT = 30


class ActionModule(ActionBase):  # type: ignore[misc]
    """Run the module, with the time of just now where it was given one."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module on the host."""
        super().run(tmp, task_vars)

        def execute(options: dict[str, Any]) -> dict[str, Any]:
            result: dict[str, Any] = self._execute_module(module_args=options, task_vars=task_vars)
            return result

        options = dict(self._task.args)
        if options.get("controller_time") is None:
            return execute(options)
        return ask_about_clock(execute, options, float(options.get("clock_skew_limit") or USUAL_LIMIT), time.time)
