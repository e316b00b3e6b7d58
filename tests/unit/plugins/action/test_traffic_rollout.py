# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control host's part of traffic_rollout."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.bitflow.lms.plugins.action import traffic_rollout

OPTIONS: dict[str, Any] = {
    "name": "lms",
    "action": "advance",
    "provider": "alb",
    "routes": [{"load_balancer": "lms", "port": 443}],
    "colours": {"blue": "lms-blue", "green": "lms-green"},
    "state": "/srv/lms.json",
    "max_wait": 600,
}
WAITING: dict[str, Any] = {
    "changed": True,
    "phase": "attached",
    "done": False,
    "next_at": "1970-01-01T00:00:05.000Z",
    "live_colour": "blue",
    "weights": {"lms:443": {"blue": 100, "green": 0}},
    "old": "blue",
    "new": "green",
    "step": 0,
    "steps": [{"weight": 100, "bake": 60}],
    "reason": "",
    "waiting": "green is looked at again until 1970-01-01T00:00:05.000Z",
    "health": [],
    "events": ["begun"],
    "history": [],
}
DONE = {**WAITING, "changed": False, "phase": "retained", "done": True, "next_at": None, "waiting": "", "events": ["retained"]}


class Action(traffic_rollout.ActionModule):  # type: ignore[misc]
    """The action on a host that answers from a list, at times that pass only in its sleep."""

    def __init__(self, options: dict[str, Any], *answers: Any, check_mode: bool = False, async_val: int = 0, no_log: bool = False) -> None:
        task = SimpleNamespace(
            args=options,
            async_val=async_val,
            check_mode=check_mode,
            no_log=no_log,
            environment=None,
            action="bitflow.lms.traffic_rollout",
            get_name=lambda: "Switch",
        )
        super().__init__(task, SimpleNamespace(_shell=SimpleNamespace(tmpdir="/tmp/x-tmp-1")), SimpleNamespace(), None, None, None)
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []
        self.shown: list[str] = []
        self.removed = 0
        self.now = 0.0
        self.run_of_task = 4711
        self._display = SimpleNamespace(display=self.shown.append)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def parent(self) -> int:
        return self.run_of_task

    def _remove_tmp_path(self, tmp_path: str, force: bool = False) -> None:
        self.removed += 1

    def _execute_module(self, module_args: dict[str, Any], **how: Any) -> dict[str, Any]:
        self.asked.append({**module_args, **({"wrap_async": True} if how.get("wrap_async") else {})})
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        # Ansible writes its own options into those of the task.
        module_args["_ansible_check_mode"] = False
        return dict(answer)


def test_the_host_is_called_until_it_is_done() -> None:
    action = Action(OPTIONS, WAITING, {"health": []}, DONE)

    result = action.run(task_vars={"inventory_hostname": "lb"})

    assert result == {**DONE, "changed": True, "events": ["begun", "retained"]}
    once = {**OPTIONS, "max_wait": 0}
    assert action.asked == [once, {**once, "action": "status"}, once]
    assert action.shown == [
        "Switch [lb] green is attached without weight; blue 100, green 0; green is looked at again",
        "Switch [lb] all traffic is on green; blue 100, green 0",
    ]
    # Nothing lies on the host while nobody is at work there.
    assert action.removed == 3


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({}, {"check_mode": True}),
        ({}, {"async_val": 60}),
        ({"max_wait": 0}, {}),
        ({"action": "status"}, {}),
        ({"max_wait": "soon"}, {}),
    ],
)
def test_what_does_not_wait_goes_to_the_host_as_it_is(options: dict[str, Any], how: dict[str, Any]) -> None:
    action = Action({**OPTIONS, **options}, WAITING, **how)

    assert action.run() == WAITING
    assert action.asked == [{**OPTIONS, **options, **({"wrap_async": True} if "async_val" in how else {})}]
    assert action.shown == []


def test_a_task_whose_run_was_killed_asks_no_more() -> None:
    action = Action(OPTIONS, WAITING, {"health": []}, DONE)

    def fall_asleep(seconds: float) -> None:
        # Its parent is dead, and another process took it over.
        action.now += seconds
        action.run_of_task = 1

    action.sleep = fall_asleep  # type: ignore[method-assign]

    assert action.run()["phase"] == "attached"
    assert (len(action.asked), action.now) == (2, 1)


def test_a_host_that_cannot_be_reached_for_a_while_is_asked_again() -> None:
    lost = AnsibleConnectionFailure("Connection timed out")
    action = Action(OPTIONS, WAITING, {"health": []}, lost, DONE)

    result = action.run(task_vars={"inventory_hostname": "lb"})

    assert (result["phase"], result["changed"], "failed" in result) == ("retained", True, False)
    assert action.shown[1].startswith("Switch [lb] green is attached without weight; blue 100, green 0; tried again: ")
    assert "Connection timed out" in action.shown[1]


def test_a_host_that_could_never_be_reached_is_unreachable() -> None:
    action = Action(OPTIONS, AnsibleConnectionFailure("Connection refused"))

    with pytest.raises(AnsibleConnectionFailure):
        action.run()


def test_a_task_without_a_log_shows_no_lines() -> None:
    action = Action(OPTIONS, WAITING, {"health": []}, DONE, no_log=True)

    action.run()

    assert action.shown == []
