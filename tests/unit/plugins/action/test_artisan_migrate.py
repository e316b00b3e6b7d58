# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control host's part: it asks for a plan, judges it, and asks for the run of what it judged."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.action import artisan_migrate
from ansible_collections.bitflow.lms.plugins.action.artisan_migrate import ActionModule

DROP = 'alter table "courses" drop column "level"'
PLAN = {
    "changed": False,
    "migration_table": True,
    "database_empty": False,
    "product": {"driver": "pgsql", "product": "PostgreSQL", "version": "17.6"},
    "plan": [
        {
            "migration": "1_drop",
            "sha256": "x",
            "driver": "pgsql",
            "same_database": True,
            "within_transaction": True,
            "statements": [{"sql": DROP, "times": 1}],
            "problem": None,
        }
    ],
}
RAN = {**PLAN, "changed": True, "plan": [], "outcomes": [{"migration": "1_drop", "outcome": "applied", "executed": [DROP]}]}


class Task(ActionModule):
    """The action plugin with a host that answers from a list."""

    def __init__(self, arguments: dict[str, Any], *answers: dict[str, Any], check_mode: bool = False) -> None:
        self._task = SimpleNamespace(args={"chdir": "/srv/r", **arguments}, check_mode=check_mode, async_val=0, diff=False)
        self._connection = SimpleNamespace()
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    def validate_argument_spec(self, argument_spec: Any = None, **_options: Any) -> tuple[Any, dict[str, Any]]:
        approved = self._task.args.get("approved", [])
        return None, {"state": "planned", "backup_confirmed": False, **self._task.args, "approved": approved}

    def _execute_module(self, module_name: str, module_args: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        assert module_name == "bitflow.lms.artisan_migrate"
        self.asked.append(module_args)
        return dict(self.answers.pop(0))


@pytest.fixture(autouse=True)
def without_ansible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ansible.plugins.action.ActionBase.run", lambda *_arguments: {})


def test_approved_plan_is_run_as_it_was_judged() -> None:
    task = Task({"state": "migrated", "approved": ["1_drop"]}, PLAN, RAN)

    result = task.run()

    assert [(asked["state"], asked.get("judged")) for asked in task.asked] == [
        ("planned", None),
        ("migrated", [{"migration": "1_drop", "sha256": "x", "statements": None}]),
    ]
    assert (result["changed"], result["contract"]) == (True, ["1_drop"])


@pytest.mark.parametrize(
    ("state", "check_mode", "fails"), [("migrated", False, True), ("migrated", True, False), ("planned", False, False)]
)
def test_nothing_runs_when_it_is_refused_or_only_looked_at(state: str, check_mode: bool, fails: bool) -> None:
    task = Task({"state": state}, PLAN, check_mode=check_mode)

    result = task.run()

    assert ([asked["state"] for asked in task.asked], result["refused"], result.get("failed", False)) == (["planned"], ["1_drop"], fails)


@pytest.mark.parametrize("answer", [{"failed": True, "msg": "away"}, {"skipped": True, "reason": "none"}, {**PLAN, "plan": []}])
def test_without_a_plan_nothing_is_judged_and_the_keys_are_the_same(answer: dict[str, Any]) -> None:
    result = Task({"state": "migrated"}, answer).run()

    assert result == {**answer, "risks": [], "refused": [], "contract": [], "destructive": False}


def test_missing_parser_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artisan_migrate, "PARSER_PROBLEM", ImportError("No module named 'sqlglot'"))

    result = Task({"state": "migrated"}, PLAN).run()

    assert result["failed"] is True
    assert "the Python package sqlglot, which judges them, cannot be used on the control host" in result["msg"]
