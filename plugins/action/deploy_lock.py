# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of deploy_lock that only the control host can do: say which run asks, and see that the one that holds the lease is dead."""

from __future__ import annotations

import getpass
import os
import platform
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.bitflow.lms.plugins.module_utils._controller import identity_of, take_lease


def this_run() -> dict[str, str]:
    """Return who runs this where. A task runs in a process of its own, whose parent is the run."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return {"controller": platform.node(), "user": user, "process": identity_of(os.getppid())}


class ActionModule(ActionBase):  # type: ignore[misc]
    """Run the module, and again when its answer shows that the holder is dead."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module on the host."""
        super().run(tmp, task_vars)

        def execute(options: dict[str, Any]) -> dict[str, Any]:
            result: dict[str, Any] = self._execute_module(module_args=options, task_vars=task_vars)
            return result

        options = dict(self._task.args)
        if options.get("state", "held") != "held":
            return execute(options)
        return take_lease(execute, options, this_run())
