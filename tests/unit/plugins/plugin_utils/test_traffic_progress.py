# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rollout that the control host follows: when the host is asked, what is said, and what all calls came to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_options import passes
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_record import LeaseHeldError, UnreachableError, stamp
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_rollout import BAD, GOOD, Verdict
from ansible_collections.bitflow.lms.plugins.plugin_utils._traffic_progress import Plan, Surroundings, follow, line, next_call, time_left
from ansible_collections.bitflow.lms.tests.unit.plugins.module_utils.traffic_world import NOW, World

START = NOW.timestamp()
OPTIONS: dict[str, Any] = {
    "name": "lms",
    "action": "advance",
    "release": "r1",
    "alarms": ["lms-5xx"],
    "gate": {"interval": 30, "consecutive": 3},
    "propagation_wait": 60,
    "max_wait": 3600,
}
PLAN = Plan(max_wait=3600, interval=30, consecutive=3, propagation=60, alarms=1)
GREEN = {"colour": "green", "ready": True, "fault": "", "counts": {"healthy": 2, "unhealthy": 1}, "targets": []}
BLUE = {"colour": "blue", "ready": True, "fault": "", "counts": {"healthy": 3}, "targets": []}


def answer(**more: Any) -> dict[str, Any]:
    """Return what the module says in the middle of the first step."""
    return {
        "changed": False,
        "phase": "shifting",
        "done": False,
        "next_at": stamp(NOW + timedelta(seconds=30)),
        "live_colour": "",
        "weights": {"api": {"blue": 95, "green": 5}, "web": {"blue": 95, "green": 5}},
        "old": "blue",
        "new": "green",
        "step": 1,
        "steps": [{"weight": 5, "bake": 60}, {"weight": 50, "bake": 60}, {"weight": 100, "bake": 120}],
        "reason": "",
        "waiting": f"green is watched until {stamp(NOW + timedelta(seconds=30))}",
        "health": [GREEN],
        "events": [],
        "history": [{"time": stamp(NOW), "event": "in force: blue 95, green 5"}],
        **more,
    }


class Host:
    """A host whose module works on a world in memory, and a control host that has its clock."""

    def __init__(self, **settings: Any) -> None:
        self.world = World(**settings)
        self.asked: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.moments: list[float] = []
        self.naps: list[float] = []
        # Called before each call of the module with its number; an error is what the module fails with.
        self.before: Callable[[int], Exception | None] = lambda _number: None
        # What the module answers, whatever the world is.
        self.answer: Callable[[], dict[str, Any]] | None = None
        # Whether the run still waits.
        self.wanted: Callable[[], bool] = lambda: True

    def ask(self, options: dict[str, Any]) -> dict[str, Any]:
        """Run the module, as Ansible returns its result."""
        self.asked.append(options)
        error = self.before(len(self.asked))
        if error:
            assert isinstance(error, LmsError)
            return {"failed": True, **error.as_result(), "done": not passes(error)}
        if self.answer:
            return self.answer()
        try:
            outcome = self.world.tick(options["action"], options["release"])
        except LmsError as error:
            return {"failed": True, **error.as_result(), "done": not passes(error)}
        result = {"changed": outcome.changed, "diff": outcome.diff(), **outcome.as_result()}
        return {"failed": True, "msg": outcome.fault, **result} if outcome.fault else result

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.naps.append(seconds)
        self.world.sleep(seconds)

    def tell(self, said: str) -> None:
        """Show a line."""
        self.said.append(said)
        self.moments.append(self.world.now.timestamp())

    def clock(self) -> float:
        """Return the time of the world, which is another one with each look."""
        return self.world.now.timestamp()

    def wanted_now(self) -> bool:
        """Say whether anybody waits for the result, as the test has it by now."""
        return self.wanted()

    def follow(self, plan: Plan = PLAN, **options: Any) -> dict[str, Any]:
        """Follow a rollout."""
        around = Surroundings(self.clock, self.sleep, self.tell, self.wanted_now)
        return follow(self.ask, {**OPTIONS, **options}, plan, around)

    @property
    def acting(self) -> list[dict[str, Any]]:
        """Return the calls that are more than a look."""
        return [options for options in self.asked if options["action"] != "status"]


def test_a_rollout_is_followed_to_its_end() -> None:
    host = Host()

    result = host.follow()

    assert (result["phase"], result["done"], result["changed"]) == ("retained", True, True)
    # The host is never the one that waits, and what happened in each call is told.
    assert {options["max_wait"] for options in host.asked} == {0}
    assert [event["event"] for event in result["events"]] == [event["event"] for event in result["history"]]
    assert result["diff"]["before"] == {"phase": "idle", "weights": {"api": {"blue": 1}, "web": {"blue": 1}}}
    assert result["diff"]["after"]["phase"] == "retained"
    assert [each["colour"] for each in result["health"]] == ["blue", "green"]


def test_the_end_is_the_same_as_that_of_a_module_that_waits_itself() -> None:
    host, alone = Host(), World()

    followed = host.follow()
    waited = alone.run()

    assert followed["weights"] == host.world.weights == alone.weights
    assert [event["event"] for event in followed["events"]] == [event["event"] for event in waited.record.history]


def test_every_change_is_said_and_every_ten_seconds_something() -> None:
    host = Host()

    host.follow()

    attached = "green is attached without weight; blue 100, green 0; healthy: blue 4 of 4, green 4 of 4; green is looked at again; about"
    first = "step 1 of 3; blue 95, green 5; healthy: blue 4 of 4, green 4 of 4; the alarm does not fire; green is watched;"
    assert host.said[:7] == [
        f"{attached} 6 min 0 s in all",
        f"{attached} 5 min 50 s in all",
        f"{attached} 5 min 40 s in all",
        f"{attached} 5 min 30 s in all",
        f"{attached} 5 min 20 s in all",
        f"{attached} 5 min 10 s in all",
        f"{first} 1 min 0 s left of it, about 5 min 0 s in all",
    ]
    assert host.said[-1] == (
        "all traffic is on green; blue 0, green 100; healthy: blue 4 of 4, green 4 of 4; blue is kept until 2026-11-23T11:06:00.000Z"
    )
    assert max(later - earlier for earlier, later in zip(host.moments, host.moments[1:])) <= 10


def test_nothing_is_asked_without_a_pause_and_no_nap_is_long() -> None:
    host = Host()

    host.follow()

    # Whoever ends the run is noticed within a nap.
    assert all(0 < nap <= 1 for nap in host.naps)
    assert sum(host.naps) / len(host.acting) > 10


def test_a_host_whose_clock_is_ahead_is_asked_as_often_as_any_other() -> None:
    host = Host()
    # Seen from here the next look is an hour away.
    host.answer = lambda: answer(next_at=stamp(host.world.now + timedelta(hours=1)), done=len(host.acting) > 20)

    host.follow(Plan(7200, 30, 3, 60, 0))

    assert sum(host.naps) == 20 * 30


def test_a_host_whose_clock_is_behind_is_not_asked_without_a_pause() -> None:
    host = Host()
    host.answer = lambda: answer(next_at=stamp(NOW - timedelta(hours=1)), done=len(host.acting) > 20)

    host.follow()

    assert sum(host.naps) == 20 * 0.5


def test_time_that_is_over_ends_the_task_without_a_failure() -> None:
    host = Host()

    result = host.follow(Plan(70, 30, 3, 60, 1))

    assert (result["done"], result["phase"], result.get("failed", False)) == (False, "shifting", False)
    assert host.world.record.lease is None


@pytest.mark.parametrize(
    "error",
    [
        UnreachableError("The record cannot be read, 5 times in a row."),
        LeaseHeldError("somebody is at the rollout lms. Try again then.", NOW + timedelta(seconds=45), owner="somebody"),
    ],
    ids=["throttled", "held"],
)
def test_a_failure_that_passes_is_tried_again(error: Exception) -> None:
    host = Host()
    host.before = lambda number: error if number == 1 else None

    result = host.follow()

    assert (result["phase"], result.get("failed", False)) == ("retained", False)
    told = f"tried again: {error}".rstrip(".")
    assert host.said[0] == f"no rollout is under way; blue 1; healthy: blue 4 of 4; {told}"


def test_a_failure_that_passes_too_late_fails_the_task_and_keeps_what_was_done() -> None:
    host = Host()
    host.before = lambda number: UnreachableError("It cannot be read.") if number > 3 else None

    result = host.follow(Plan(300, 30, 3, 60, 1))

    assert {key: result[key] for key in ("failed", "done", "msg", "changed")} == {
        "failed": True,
        "done": False,
        "msg": "It cannot be read.",
        "changed": True,
    }
    assert result["events"][0]["event"] == "begun, from blue to green"


def test_a_lease_of_somebody_else_that_lasts_longer_is_not_waited_for() -> None:
    host = Host()
    host.before = lambda _number: LeaseHeldError("somebody is at it.", NOW + timedelta(hours=2), owner="somebody")

    result = host.follow()

    assert (result["failed"], result["msg"], len(host.asked), host.naps) == (True, "somebody is at it.", 1, [])


def test_a_failure_that_does_not_pass_ends_the_task_at_once() -> None:
    host = Host()
    host.before = lambda number: LmsError("steps has the weights [].") if number == 1 else None

    result = host.follow()

    assert (result["failed"], len(host.asked), host.naps, host.said) == (True, 1, [], [])


def test_what_went_back_by_itself_fails_the_task() -> None:
    host = Host()
    looks = iter(range(1000))
    host.world.alarms = lambda _colour: Verdict(BAD, "The alarm lms-5xx fires.") if next(looks) > 2 else Verdict(GOOD)

    result = host.follow()

    assert (result["failed"], result["phase"]) == (True, "rolled_back")
    assert result["msg"].startswith("r1 was rolled back to blue: The alarm lms-5xx fires.")
    assert any(said.startswith("on the way back to blue; ") and "The alarm lms-5xx fires" in said for said in host.said)


def test_a_status_that_cannot_be_had_disturbs_nothing() -> None:
    host = Host()
    host.before = lambda number: UnreachableError("no status") if host.asked[number - 1]["action"] == "status" else None

    result = host.follow()

    assert (result["phase"], [options["action"] for options in host.asked].count("status")) == ("retained", 1)


@pytest.mark.parametrize("moment", range(1, 9))
def test_a_run_that_ends_leaves_no_lease_and_the_next_one_goes_on(moment: int) -> None:
    """Whatever the moment: between two calls nothing is held, and asking ends with the run."""
    host, uninterrupted = Host(), Host()
    host.wanted = lambda: len(host.acting) < moment

    host.follow()
    asked = len(host.acting)
    lease = host.world.record.lease
    host.wanted = lambda: True
    after = host.follow()
    whole = uninterrupted.follow()

    assert (asked, lease) == (moment, None)
    assert (after["phase"], host.world.weights) == ("retained", uninterrupted.world.weights)
    assert [event["event"] for event in after["history"]] == [event["event"] for event in whole["history"]]


def test_without_the_look_at_its_parent_a_run_that_was_killed_goes_on_to_shift_traffic() -> None:
    """The harm: nobody is there any more, and the traffic still moves."""
    host = Host()

    host.follow()

    assert host.world.weights["web"] == {"blue": 0, "green": 100}


# Lines


@pytest.mark.parametrize(
    ("more", "problem", "said"),
    [
        (
            {},
            "",
            "step 1 of 3; blue 95, green 5; healthy: blue 3 of 3, green 2 of 3; the alarm does not fire; green is watched; "
            "50 s left of it, about 4 min 50 s in all",
        ),
        (
            {},
            "The routes cannot be read: ThrottlingException.",
            "step 1 of 3; blue 95, green 5; healthy: blue 3 of 3, green 2 of 3; "
            "tried again: The routes cannot be read: ThrottlingException; 50 s left of it, about 4 min 50 s in all",
        ),
        (
            {"waiting": "a check has no data yet until 2026-11-23T10:00:30.000Z"},
            "",
            "step 1 of 3; blue 95, green 5; healthy: blue 3 of 3, green 2 of 3; a check has no data yet; "
            "50 s left of it, about 4 min 50 s in all",
        ),
        (
            {"weights": {"api": {"blue": 95, "green": 5}, "web": {"blue": 100, "green": 0}}},
            "",
            "step 1 of 3; api: blue 95, green 5, web: blue 100, green 0; healthy: blue 3 of 3, green 2 of 3; the alarm does not fire; "
            "green is watched; 50 s left of it, about 4 min 50 s in all",
        ),
        (
            {
                "phase": "rolling_back",
                "reason": "The alarm lms-5xx fires.",
                "live_colour": "blue",
                "waiting": "green may still get requests",
            },
            "",
            "on the way back to blue; blue 95, green 5; healthy: blue 3 of 3, green 2 of 3; The alarm lms-5xx fires; "
            "green may still get requests; 50 s left of it, about 50 s in all",
        ),
        (
            {"phase": "retained", "step": 3, "next_at": None, "waiting": ""},
            "",
            "all traffic is on green; blue 95, green 5; healthy: blue 3 of 3, green 2 of 3",
        ),
    ],
    ids=["watched", "throttled", "no data", "routes that differ", "back", "over"],
)
def test_a_line_says_where_it_is_and_what_is_left(more: Mapping[str, Any], problem: str, said: str) -> None:
    health = {"blue": BLUE, "green": GREEN}

    assert line(answer(**more), health, PLAN, START + 10, problem) == said


@pytest.mark.parametrize(
    ("phase", "step", "left"),
    [
        ("prepared", 0, (None, 300)),
        ("attached", 0, (None, 350)),
        ("smoked", 0, (None, 300)),
        ("shifting", 0, (0, 300)),
        ("shifting", 1, (50, 290)),
        ("shifting", 2, (50, 230)),
        ("shifted", 3, (50, 170)),
        ("baking", 3, (110, 110)),
        ("retained", 3, (None, None)),
    ],
)
def test_what_is_left_counts_every_step_to_come(phase: str, step: int, left: tuple[float | None, float | None]) -> None:
    assert time_left(answer(phase=phase, step=step), PLAN, START + 10) == left


def test_a_step_that_lasts_longer_than_it_should_is_never_late() -> None:
    assert time_left(answer(), PLAN, START + 1000) == (0, 240)


# Options


@pytest.mark.parametrize(
    ("options", "plan"),
    [
        ({"action": "advance", "max_wait": "600"}, Plan(600, 5, 3, 60, 0)),
        ({"action": "rollback", "max_wait": 600, "gate": {"interval": "2"}, "alarms": ["a", "b"]}, Plan(600, 2, 3, 60, 2)),
        ({"action": "advance", "max_wait": 600, "provider": "nginx", "colours": None}, Plan(600, 5, 3, 1, 0)),
        ({"action": "status", "max_wait": 600}, None),
        ({"action": "advance", "max_wait": 0}, None),
        ({"action": "advance"}, None),
        # What the module has to refuse.
        ({"action": "advance", "max_wait": -1}, None),
        ({"action": "advance", "max_wait": "soon"}, None),
        ({"action": "advance", "max_wait": 600, "gate": {"intervall": 2}}, None),
        ({"action": "advance", "max_wait": 600, "gate": {"interval": 0}}, None),
        ({"action": "advance", "max_wait": 600, "steps": [{"weight": 50, "bake": 0}]}, None),
        ({"max_wait": 600}, None),
    ],
)
def test_only_what_waits_is_followed(options: Mapping[str, Any], plan: Plan | None) -> None:
    given = {"name": "lms", "provider": "alb", "colours": {"blue": "lms-blue", "green": "lms-green"}, "state": "/srv/lms.json", **options}

    assert Plan.of(given) == plan


def test_a_module_that_broke_is_not_asked_again() -> None:
    assert next_call({"failed": True, "msg": "MODULE FAILURE"}, START, PLAN) is None


def test_a_wait_without_an_end_is_none() -> None:
    assert next_call(answer(next_at=None), START, PLAN) is None


def test_times_are_those_of_the_record() -> None:
    assert next_call(answer(), START, PLAN) == datetime.fromisoformat("2026-11-23T10:00:30+00:00").timestamp()
