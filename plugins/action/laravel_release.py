# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of laravel_release that only the control host can do: send the artifact that is there."""

from __future__ import annotations

from typing import Any

from ansible_collections.bitflow.lms.plugins.plugin_utils._sending import SendingAction

ARTIFACT = "release.tar.gz"


class ActionModule(SendingAction):
    """Send the artifact where one is given, and run the module. In check mode it need not have been built."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module on the host."""
        super().run(tmp, task_vars)
        options = dict(self._task.args)
        local = options.pop("local_artifact", None)
        if not local or self._task.check_mode:
            return self.ask_host(options, task_vars)
        with self.sent({ARTIFACT: str(local)}) as directory:
            return self.ask_host({**options, "artifact": f"{directory}/{ARTIFACT}"}, task_vars)
