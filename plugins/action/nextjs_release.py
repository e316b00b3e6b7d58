# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of nextjs_release that only the control host can do: send the artifacts that are there."""

from __future__ import annotations

from typing import Any

from ansible_collections.bitflow.lms.plugins.plugin_utils._sending import SendingAction


class ActionModule(SendingAction):
    """Send the artifacts that are given, and run the module. In check mode they need not have been built."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module on the host."""
        super().run(tmp, task_vars)
        options = dict(self._task.args)
        local = options.pop("local_artifacts", None)
        if not local or self._task.check_mode:
            return self.ask_host(options, task_vars)
        with self.sent({f"{name}.tar.gz": str(path) for name, path in local.items()}) as directory:
            return self.ask_host({**options, "artifacts_path": directory}, task_vars)
