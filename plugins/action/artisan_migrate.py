# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let the host plan the migrations, judge the plan here, and let the host run what was judged."""

from __future__ import annotations

import sys
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.bitflow.lms.plugins.module_utils._migrations import migrate_argspec

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

        try:
            from ansible_collections.bitflow.lms.plugins.plugin_utils import _migration_risk as risk
        except ImportError as error:
            message = (
                f"Migrations are pending, and the Python package sqlglot, which judges them, cannot be used on the control host: {error}. "
                f"Install it beside ansible-core: {sys.executable} -m pip install 'sqlglot>=30'"
            )
            return {**plan, **nothing, "failed": True, "msg": message}

        risks = risk.judge_migrations(plan, options["approved"])
        refusals = risk.refused(risks, options["backup_confirmed"])
        verdict = {
            "risks": risks,
            "refused": [one["migration"] for one in refusals],
            "contract": risk.contract_of_plan(risks),
            "destructive": any(one["destructive"] for one in risks),
            "diff": {"before": "", "after": risk.plan_text(risks), "before_header": "applied", "after_header": "pending migrations"},
        }
        if options["state"] == "planned":
            return {**plan, **verdict}
        if refusals:
            return {**plan, **verdict, "failed": True, "msg": risk.refusal(refusals)}
        if self._task.check_mode:
            return {**plan, **verdict, "changed": True}

        outcome = self.ask_host(task_vars, state="migrated", judged=risk.judged_plan(plan, risks))
        verdict["contract"] = risk.contract_of_run(plan, outcome) if outcome.get("outcomes") else verdict["contract"]
        return {**outcome, "plan": plan["plan"], **verdict}

    def ask_host(self, task_vars: dict[str, Any] | None, **options: Any) -> dict[str, Any]:
        """Run the module on the host with some options of the task replaced."""
        answer: dict[str, Any] = self._execute_module(module_name=MODULE, module_args={**self._task.args, **options}, task_vars=task_vars)
        return answer
