# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Targets that are registered, waited for and taken out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._alb_targets import Settings, make_plan, run
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api, AwsError
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import Target, TrafficError, UnreadyError
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock
from ansible_collections.bitflow.lms.tests.lab.elb_model import Alb, FakeClock, State, World, aws, new_alb, refusal

DEFAULTS: dict[str, Any] = {
    "group": "green",
    "state": "present",
    "wait": True,
    "wait_timeout": 60,
    "interval": 5,
    "consecutive": 2,
    "min_healthy": 1,
}
ONE, TWO = "10.0.2.1", "10.0.2.2"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Put AWS into this process, once for all tests."""
    with aws() as made:
        yield made


@pytest.fixture
def alb(world: World) -> Alb:
    """Return a load balancer whose group green has two healthy targets and no weight."""
    made = new_alb(world)
    made.group("blue", healthy=1)
    made.group("green", healthy=2)
    made.listener(443, made.forward(blue=100, green=0))
    return made


def work(alb: Alb, *targets: tuple[str, int | None], check_mode: bool = False, clock: FakeClock | None = None, **options: Any) -> Any:
    """Run the module's work."""
    alb.client.calls.clear()
    time = clock or FakeClock()
    given = {**DEFAULTS, "targets": [{"id": name, "port": port} for name, port in targets], **options}
    return run(Api(alb.client, sleep=lambda _seconds: None), given, check_mode, Clock(time.now, time.sleep))


# Registering


def test_the_result_is_whole(alb: Alb) -> None:
    assert work(alb, (ONE, 80), ("10.0.2.9", None)) == {
        "changed": True,
        "group": {"name": "green", "arn": alb.groups["green"], "counts": {"healthy": 3}},
        "registered": ["10.0.2.9:80"],
        "deregistered": [],
        "targets": [
            {"id": ONE, "port": 80, "state": "healthy", "reason": ""},
            {"id": "10.0.2.9", "port": 80, "state": "healthy", "reason": ""},
        ],
        "diff": {
            "before": {"green": [f"{ONE}:80", f"{TWO}:80"]},
            "after": {"green": [f"{ONE}:80", f"{TWO}:80", "10.0.2.9:80"]},
        },
    }


def test_targets_that_are_there_are_no_change(alb: Alb) -> None:
    result = work(alb, (TWO, 80), (ONE, None))

    assert (result["changed"], alb.client.changes()) == (False, [])


def test_one_host_may_serve_on_two_ports(alb: Alb) -> None:
    result = work(alb, (ONE, 80), (ONE, 8080))

    assert result["registered"] == [f"{ONE}:8080"]
    assert [(target["port"], target["state"]) for target in result["targets"]] == [(80, "healthy"), (8080, "healthy")]
    gone = work(alb, (ONE, 8080), state="absent")
    assert (gone["deregistered"], sorted(alb.states("green"))) == ([f"{ONE}:8080"], [(ONE, 80), (TWO, 80)])


def test_a_target_that_drains_is_registered_again(alb: Alb) -> None:
    alb.states("green")[(ONE, 80)] = State("draining", "Target.DeregistrationInProgress")
    alb.world.drain_looks = 9

    result = work(alb, (ONE, 80), (TWO, 80))

    assert (result["changed"], result["registered"]) == (True, [f"{ONE}:80"])
    assert alb.states("green")[(ONE, 80)].state == "healthy"


def test_targets_that_were_there_already_are_waited_for_as_well(alb: Alb) -> None:
    alb.states("green")[(ONE, 80)] = State("initial", "Elb.RegistrationInProgress")
    clock = FakeClock()
    clock.events = lambda time: alb.states("green").update({(ONE, 80): State()}) if time >= 20 else None

    result = work(alb, (ONE, 80), clock=clock)

    assert (result["changed"], clock.time) == (False, 25)


def test_all_targets_are_waited_for_and_not_only_the_first(alb: Alb) -> None:
    alb.states("green")[(TWO, 80)] = State("unhealthy", "Target.Timeout")

    with pytest.raises(UnreadyError) as caught:
        work(alb, (ONE, 80), (TWO, 80))

    assert caught.value.message == f"green has targets that are not healthy after 60 s: {TWO}:80 is unhealthy (Target.Timeout)."
    assert [target["state"] for target in caught.value.details["targets"]] == ["healthy", "unhealthy"]


def test_other_targets_need_not_be_healthy(alb: Alb) -> None:
    alb.states("green")[(TWO, 80)] = State("unhealthy", "Target.Timeout")

    assert work(alb, (ONE, 80))["targets"] == [{"id": ONE, "port": 80, "state": "healthy", "reason": ""}]


def test_one_good_look_is_not_enough(alb: Alb) -> None:
    course = {0: "healthy", 5: "unhealthy", 10: "healthy"}
    clock = FakeClock()

    def go_on(time: float) -> None:
        alb.states("green")[(ONE, 80)].state = course.get(int(time), "healthy")

    clock.events = go_on
    work(alb, (ONE, 80), clock=clock)

    assert clock.pauses == [5, 5, 5]


def test_the_timeout_is_kept(alb: Alb) -> None:
    alb.states("green")[(ONE, 80)] = State("initial")
    clock = FakeClock()

    with pytest.raises(UnreadyError, match="after 21 s"):
        work(alb, (ONE, 80), clock=clock, wait_timeout=21, interval=10)

    assert clock.pauses == [10, 10]


def test_a_group_on_no_route_fails_at_once_instead_of_at_the_timeout(alb: Alb) -> None:
    alb.group("purple")
    clock = FakeClock()

    with pytest.raises(UnreadyError, match=r"purple is on no route, .* Give it the weight 0 on a route first, or set wait to false."):
        work(alb, ("10.0.3.1", 80), group="purple", clock=clock)
    with pytest.raises(UnreadyError, match=r"purple is on no route"):
        work(alb, ("10.0.3.1", 80), ("10.0.3.2", 80), group="purple", clock=clock)

    assert (clock.time, alb.client.changes()) == (0, [])


def test_a_target_in_another_zone_does_not_stop_the_others(alb: Alb) -> None:
    alb.states("green")[(TWO, 80)] = State("unused", "Target.NotInUse")

    assert work(alb, (ONE, 80))["targets"] == [{"id": ONE, "port": 80, "state": "healthy", "reason": ""}]
    with pytest.raises(UnreadyError, match=r"not healthy after 60 s: 10.0.2.2:80 is unused \(Target.NotInUse\)"):
        work(alb, (ONE, 80), (TWO, 80))


def test_who_does_not_wait_may_register_with_a_group_on_no_route(alb: Alb) -> None:
    alb.group("purple")

    result = work(alb, ("10.0.3.1", 80), group="purple", wait=False)

    assert result["targets"] == [{"id": "10.0.3.1", "port": 80, "state": "unused", "reason": "Target.NotInUse"}]


def test_a_zone_is_passed_on(alb: Alb) -> None:
    work(alb, targets=[{"id": "192.0.2.1", "port": None, "availability_zone": "all"}])

    assert alb.client.changes()[0][1]["Targets"] == [{"Id": "192.0.2.1", "Port": 80, "AvailabilityZone": "all"}]


# Taking out


def test_a_target_is_gone_once_it_has_drained(alb: Alb) -> None:
    alb.world.drain_looks = 3
    clock = FakeClock()

    result = work(alb, (ONE, 80), state="absent", clock=clock)

    assert clock.pauses == [5, 5, 5, 5]
    assert (result["changed"], result["deregistered"]) == (True, [f"{ONE}:80"])
    assert result["targets"] == [{"id": ONE, "port": 80, "state": "missing", "reason": ""}]


def test_draining_that_takes_longer_than_the_timeout_is_told(alb: Alb) -> None:
    alb.world.drain_looks = 99

    with pytest.raises(UnreadyError, match=r"not gone after 60 s: 10.0.2.1:80 is draining \(Target.DeregistrationInProgress\)"):
        work(alb, (ONE, 80), state="absent")


def test_a_target_that_is_gone_or_draining_is_no_change(alb: Alb) -> None:
    alb.states("green")[(ONE, 80)] = State("draining", "Target.DeregistrationInProgress")

    result = work(alb, (ONE, 80), ("10.0.2.9", 80), state="absent")

    assert (result["changed"], alb.client.changes()) == (False, [])


@pytest.mark.parametrize(
    ("states", "leaving", "min_healthy", "refused"),
    [
        (["healthy", "healthy"], 1, 1, False),
        (["healthy", "healthy"], 2, 1, True),
        (["healthy", "healthy"], 1, 2, True),
        (["healthy", "unhealthy"], 1, 1, True),
        (["unhealthy", "healthy"], 1, 1, False),
        # Without a healthy target the load balancer sends to all of them.
        (["unhealthy", "unhealthy"], 1, 1, False),
        (["unhealthy", "unhealthy"], 2, 1, True),
        (["healthy", "draining"], 1, 1, True),
        (["healthy", "initial"], 1, 1, True),
    ],
)
def test_a_group_with_weight_keeps_its_last_healthy_targets(
    states: list[str], leaving: int, min_healthy: int, refused: bool, alb: Alb
) -> None:
    listener = alb.raw.describe_listeners(LoadBalancerArn=alb.arn)["Listeners"][0]["ListenerArn"]
    alb.by_hand(listener, blue=99, green=1)
    alb.world.drain_looks = 99
    alb.states("green").update({(name, 80): State(state) for name, state in zip((ONE, TWO), states)})
    targets = [(ONE, 80), (TWO, 80)][:leaving]

    if refused:
        with pytest.raises(TrafficError, match="green has weight on lms:443, and would keep"):
            work(alb, *targets, state="absent", wait=False, min_healthy=min_healthy)
        assert alb.client.changes() == []
    else:
        assert work(alb, *targets, state="absent", wait=False, min_healthy=min_healthy)["changed"] is True


def test_weight_is_looked_for_on_every_rule(alb: Alb) -> None:
    listener = alb.listener(80, alb.forward(blue=1))
    alb.rule(listener, alb.forward(blue=1, green=1), priority=7)

    with pytest.raises(TrafficError, match=r"green has weight on lms:80/7, and would keep 0 healthy targets where 1 are needed"):
        work(alb, (ONE, 80), (TWO, 80), state="absent")


def test_weight_is_looked_for_although_the_group_seems_to_belong_to_no_load_balancer(alb: Alb) -> None:
    alb.world.forgetful = True

    with pytest.raises(TrafficError, match=r"blue has weight on lms:443"):
        work(alb, ("10.0.1.1", 80), group="blue", state="absent")


def test_a_group_without_weight_may_be_emptied(alb: Alb) -> None:
    assert work(alb, (ONE, 80), (TWO, 80), state="absent")["group"]["counts"] == {}


# Check mode


@pytest.mark.parametrize("state", ["present", "absent"])
def test_check_mode_plans_the_same_and_changes_nothing(state: str, alb: Alb) -> None:
    targets = [(ONE, 80), ("10.0.2.9", 80)]
    clock = FakeClock()

    planned = work(alb, *targets, state=state, check_mode=True, clock=clock)
    changes = alb.client.changes()
    done = work(alb, *targets, state=state)

    assert (changes, clock.time) == ([], 0)
    same = ("changed", "registered", "deregistered", "diff")
    assert {key: planned[key] for key in same} == {key: done[key] for key in same}
    assert planned.keys() == done.keys()


def test_check_mode_refuses_to_empty_a_group_with_weight(alb: Alb) -> None:
    with pytest.raises(TrafficError, match="blue has weight on lms:443"):
        work(alb, ("10.0.1.1", 80), group="blue", state="absent", check_mode=True)


# Errors


def test_a_throttled_registration_goes_on(alb: Alb) -> None:
    alb.client.fault = lambda _method, number: refusal("ThrottlingException") if number < 4 else None

    assert work(alb, ("10.0.2.9", 80))["registered"] == ["10.0.2.9:80"]


def test_a_group_that_is_not_there_is_named(alb: Alb) -> None:
    with pytest.raises(AwsError, match="The target group red cannot be found"):
        work(alb, (ONE, 80), group="red")


def test_no_target_is_an_error(alb: Alb) -> None:
    with pytest.raises(TrafficError, match=r"targets is empty. Name one target at least."):
        work(alb)


@pytest.mark.parametrize("option", ["wait_timeout", "interval", "consecutive", "min_healthy"])
def test_options_that_make_no_sense_are_refused(option: str) -> None:
    with pytest.raises(LmsError, match=f"{option} is -1. Give"):
        Settings.of({**DEFAULTS, option: -1})


def test_a_target_that_was_never_registered_is_told_so_by_aws_too() -> None:
    found = [Target(ONE, 80, "unused", "Target.NotRegistered"), Target(TWO, 80, "unused", "Target.NotInUse")]

    assert make_plan(found, [(ONE, 80), (TWO, 80)], "present").register == [(ONE, 80)]
    assert make_plan(found, [(ONE, 80), (TWO, 80)], "absent").deregister == [(TWO, 80)]
