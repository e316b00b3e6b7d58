# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control host's part of deploy_lock."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.action import deploy_lock
from ansible_collections.bitflow.lms.plugins.module_utils._controller import identity_of, is_dead

DEAD = "boot pid:[1] 4711 123"


class Action(deploy_lock.ActionModule):  # type: ignore[misc]
    """The action with hosts that answer from a list, and that records what they were asked."""

    def __init__(self, options: dict[str, Any], *answers: dict[str, Any]) -> None:
        task = SimpleNamespace(args=options, async_val=0, check_mode=False, environment=None, action="bitflow.lms.deploy_lock")
        super().__init__(task, SimpleNamespace(_shell=SimpleNamespace(tmpdir="/tmp")), SimpleNamespace(), None, None, None)
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    def _execute_module(self, module_args: dict[str, Any], **_options: Any) -> dict[str, Any]:
        self.asked.append(module_args)
        return self.answers.pop(0)


def test_the_run_is_the_process_that_started_the_task() -> None:
    run = deploy_lock.this_run()

    assert run["process"] == identity_of(os.getppid())
    assert not is_dead(run["process"])
    assert run["controller"]
    assert run["user"]


@pytest.mark.parametrize("state", ["released", "status"])
def test_other_states_go_to_the_host_as_they_are(state: str) -> None:
    options = {"path": "/srv/lms", "owner": "ours", "state": state}
    action = Action(options, {"changed": False})

    assert action.run() == {"changed": False}
    assert action.asked == [options]


def test_held_says_who_asks() -> None:
    action = Action({"path": "/srv/lms", "owner": "ours", "details": {"what": "w"}}, {"changed": True})

    assert action.run() == {"changed": True}
    assert action.asked == [{"path": "/srv/lms", "owner": "ours", "wait": 0, "details": {**deploy_lock.this_run(), "what": "w"}}]


def test_a_run_of_another_control_host_keeps_the_lease() -> None:
    held = {"failed": True, "msg": "held", "holder": {"owner": "theirs", "process": DEAD}}
    action = Action({"path": "/srv/lms", "owner": "ours"}, held)

    assert action.run() == held
    assert len(action.asked) == 1
