# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of traffic_rollout that is the control host's: wait, and say how far it is. The host is only asked for short calls."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.bitflow.lms.plugins.plugin_utils._traffic_progress import Plan, Surroundings, follow


class ActionModule(ActionBase):  # type: ignore[misc]
    """Run the module, and again until it is done. What does not wait, and a task with async, goes to the host as it is."""

    _supports_check_mode = True
    _supports_async = True
    clock: Callable[[], float] = staticmethod(time.time)
    sleep: Callable[[float], None] = staticmethod(time.sleep)
    parent: Callable[[], int] = staticmethod(os.getppid)

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module on the host."""
        super().run(tmp, task_vars)
        options = dict(self._task.args)
        plan = Plan.of(options)
        if self._task.check_mode or self._task.async_val or plan is None:
            result: dict[str, Any] = self._execute_module(module_args=options, task_vars=task_vars, wrap_async=bool(self._task.async_val))
            return result
        host = str((task_vars or {}).get("inventory_hostname", ""))
        run = self.parent()
        reached = False

        def ask(wanted: dict[str, Any]) -> dict[str, Any]:
            nonlocal reached
            try:
                answer: dict[str, Any] = self._execute_module(module_args=dict(wanted), task_vars=task_vars)
            except AnsibleConnectionFailure as error:
                if not reached:
                    raise
                # The traffic stays as it is meanwhile, and somebody has to look after it when the host is back.
                return {"failed": True, "done": False, "msg": f"The host cannot be reached: {error}"}
            reached = True
            # Nothing lies on the host while nothing runs there.
            with contextlib.suppress(AnsibleConnectionFailure):
                self._remove_tmp_path(self._connection._shell.tmpdir)
            return answer

        def tell(text: str) -> None:
            if not self._task.no_log:
                self._display.display(f"{self._task.get_name()} [{host}] {text}")

        # A task runs in a process of its own. When the run was killed, it has another parent, and nobody gets the result.
        around = Surroundings(self.clock, self.sleep, tell, lambda: self.parent() == run)
        return follow(ask, options, plan, around)
