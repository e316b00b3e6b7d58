# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let the host plan the migrations, judge the plan here, and let the host run what was judged."""

from __future__ import annotations

import sys
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.bitflow.lms.plugins.module_utils._migrations import migrate_argspec
from ansible_collections.bitflow.lms.plugins.plugin_utils._migration_risk import carry_out
from ansible_collections.bitflow.lms.plugins.plugin_utils._sql_risk import PARSER_PROBLEM

MODULE = "bitflow.lms.artisan_migrate"


class ActionModule(ActionBase):  # type: ignore[misc]
    """The part of artisan_migrate that is the control host's."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Plan, judge, refuse or run."""
        super().run(tmp, task_vars)
        _checked, options = self.validate_argument_spec(argument_spec=migrate_argspec())
        plan = self.ask_host(task_vars, state="planned")
        nothing = {"risks": [], "refused": [], "contract": [], "destructive": False}
        if plan.get("failed") or plan.get("skipped") or (plan["migration_table"] and not plan["plan"]):
            return {**plan, **nothing}

        if PARSER_PROBLEM is not None:
            message = (
                "Migrations are pending, and the Python package sqlglot, which judges them, cannot be used on the control host: "
                f"{PARSER_PROBLEM}. Install it beside ansible-core: {sys.executable} -m pip install 'sqlglot>=30'"
            )
            return {**plan, **nothing, "failed": True, "msg": message}

        def run(judged: list[dict[str, Any]]) -> dict[str, Any]:
            return self.ask_host(task_vars, state="migrated", judged=judged)

        result: dict[str, Any] = carry_out(plan, options, bool(self._task.check_mode), run)
        return result

    def ask_host(self, task_vars: dict[str, Any] | None, **options: Any) -> dict[str, Any]:
        """Run the module on the host with some options of the task replaced."""
        answer: dict[str, Any] = self._execute_module(module_name=MODULE, module_args={**self._task.args, **options}, task_vars=task_vars)
        return answer
