# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Auto scaling groups that get their capacity, and are waited for until every instance serves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._asg_capacity import run, target_groups
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import TrafficError, UnreadyError
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock
from ansible_collections.bitflow.lms.tests.lab.asg_model import Asg, Instance, asg
from ansible_collections.bitflow.lms.tests.lab.elb_model import FakeClock, State, World, aws, new_alb, refusal

DEFAULTS: Mapping[str, Any] = {
    **dict.fromkeys(("min_size", "desired_capacity", "max_size")),
    "name": "green",
    "wait": True,
    "timeout": 300,
    "interval": 5,
    "consecutive": 2,
    "max_failures": 3,
}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Put AWS into this process, once for all tests."""
    with aws() as made:
        yield made


@pytest.fixture
def clock() -> FakeClock:
    """Return a time that passes only where somebody sleeps."""
    return FakeClock()


@pytest.fixture
def lab(world: World, clock: FakeClock) -> Iterator[Asg]:
    """Return the groups blue, which has the traffic, and green, which has the weight 0, with two instances each."""
    alb = new_alb(world)
    alb.group("blue", port=8080)
    alb.group("green", port=8080)
    alb.listener(443, alb.forward(blue=100, green=0))
    with asg(alb, clock.now) as made:
        made.scale("blue", 2, "blue", minimum=1)
        made.scale("green", 2, "green", minimum=1)
        yield made


def work(lab: Asg, clock: FakeClock, check_mode: bool = False, **options: Any) -> dict[str, Any]:
    """Run the module's work."""
    lab.client.calls.clear()
    lab.alb.client.calls.clear()
    autoscaling = Api(lab.client, "autoscaling", sleep=lambda _seconds: None)
    return run(autoscaling, Api(lab.alb.client), {**DEFAULTS, **options}, check_mode, Clock(clock.now, clock.sleep))


def changes(lab: Asg) -> list[tuple[str, dict[str, Any]]]:
    """Return the calls that changed something."""
    return [*lab.client.changes(), *lab.alb.client.changes()]


# The capacity


def test_the_result_is_whole(lab: Asg, clock: FakeClock) -> None:
    one, two = (each.id for each in lab.groups["green"].instances)

    result = work(lab, clock, desired_capacity=3, max_size=5)

    three = lab.groups["green"].instances[2].id
    assert result == {
        "changed": True,
        "name": "green",
        "min_size": 1,
        "desired_capacity": 3,
        "max_size": 5,
        "instances": [{"id": each, "state": "InService", "health": "Healthy", "protected": False} for each in (one, two, three)],
        "groups": [{"name": "green", "arn": lab.alb.groups["green"], "counts": {"healthy": 3}, "weight_on": []}],
        "suspended": [],
        "counts": {"InService": 3},
        "events": [f"Launching a new EC2 instance: {three} (Successful)"],
        "diff": {
            "before": {"min_size": 1, "desired_capacity": 2, "max_size": 10},
            "after": {"min_size": 1, "desired_capacity": 3, "max_size": 5},
        },
    }
    assert changes(lab) == [("update_auto_scaling_group", {"AutoScalingGroupName": "green", "DesiredCapacity": 3, "MaxSize": 5})]
    assert clock.time >= lab.boot


def test_a_second_run_changes_nothing(lab: Asg, clock: FakeClock) -> None:
    work(lab, clock, desired_capacity=3)

    result = work(lab, clock, desired_capacity=3)

    assert (result["changed"], changes(lab), result["events"]) == (False, [], [])


def test_what_is_left_out_stays(lab: Asg, clock: FakeClock) -> None:
    result = work(lab, clock)

    assert (result["changed"], result["min_size"], result["desired_capacity"], result["max_size"]) == (False, 1, 2, 10)


@pytest.mark.parametrize(
    ("options", "sent", "desired"),
    [
        ({"min_size": 0}, {"MinSize": 0}, 2),
        ({"max_size": 12}, {"MaxSize": 12}, 2),
        ({"desired_capacity": 4}, {"DesiredCapacity": 4}, 4),
        # AWS itself moves the desired capacity into the limits; saying so keeps the diff true.
        ({"min_size": 3}, {"MinSize": 3, "DesiredCapacity": 3}, 3),
        ({"max_size": 1}, {"MaxSize": 1, "DesiredCapacity": 1}, 1),
        ({"min_size": 0, "desired_capacity": 0, "max_size": 0}, {"MinSize": 0, "DesiredCapacity": 0, "MaxSize": 0}, 0),
    ],
)
def test_every_option_reaches_aws(options: dict[str, int], sent: dict[str, int], desired: int, lab: Asg, clock: FakeClock) -> None:
    result = work(lab, clock, **options)

    assert changes(lab) == [("update_auto_scaling_group", {"AutoScalingGroupName": "green", **sent})]
    assert (result["desired_capacity"], lab.states("green")) == (desired, ["InService"] * desired)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_size": 11}, "min_size would be 11, above the max_size of 10. Change both."),
        ({"desired_capacity": 11}, "desired_capacity is 11, and green takes 1 to 10. Change min_size or max_size, too."),
        ({"desired_capacity": 0}, "desired_capacity is 0, and green takes 1 to 10."),
        ({"max_size": -1}, "max_size is -1. Give 0 at least."),
        ({"interval": 1}, "interval is 1. Give 2 at least."),
        ({"max_failures": 0}, "max_failures is 0. Give 1 at least."),
        ({"name": "red"}, "The auto scaling group red cannot be found."),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str, lab: Asg, clock: FakeClock) -> None:
    with pytest.raises(LmsError) as caught:
        work(lab, clock, **options)

    assert (caught.value.message.startswith(message), changes(lab)) == (True, [])


def test_instances_that_count_for_several_may_exceed_what_was_asked(lab: Asg, clock: FakeClock) -> None:
    lab.scale("heavy", 5, "green", weight=2)

    result = work(lab, clock, name="heavy", max_size=9)

    assert (result["counts"], result["desired_capacity"]) == ({"InService": 3}, 5)


@pytest.mark.parametrize("state", ["Standby", "Warmed:Stopped"])
def test_instances_that_stand_by_do_not_count(state: str, lab: Asg, clock: FakeClock) -> None:
    lab.groups["green"].instances.append(Instance("i-spare", 0, state))

    assert work(lab, clock)["counts"] == {"InService": 2, state: 1}


# Waiting


def test_every_instance_has_to_be_healthy_in_every_target_group(lab: Asg, clock: FakeClock) -> None:
    lab.alb.group("admin", port=8080)
    lab.alb.listener(8443, lab.alb.forward(blue=1, admin=0))
    lab.scale("both", 2, "green", "admin")
    lab.alb.world.arriving = State("initial", "Elb.InitialHealthChecking")
    late = {"green": 50, "admin": 90}

    def pass_checks(time: float) -> None:
        for group, due in late.items():
            for state in lab.alb.states(group).values() if time >= due else []:
                state.state, state.reason = "healthy", ""

    clock.events = pass_checks
    result = work(lab, clock, name="both", desired_capacity=3)

    assert (clock.time, [group["name"] for group in result["groups"]]) == (95, ["admin", "green"])


def test_an_instance_that_is_not_registered_is_told(lab: Asg, clock: FakeClock) -> None:
    name = lab.groups["green"].instances[0].id
    del lab.alb.states("green")[(name, 8080)]

    with pytest.raises(UnreadyError, match=f"green: It is not ready after 20 s: {name} is not registered with green"):
        work(lab, clock, timeout=20)


def test_other_targets_of_the_group_do_not_count(lab: Asg, clock: FakeClock) -> None:
    lab.alb.states("green")[("i-other", 8080)] = State("unhealthy", "Target.Timeout")

    assert work(lab, clock)["groups"][0]["counts"] == {"healthy": 2, "unhealthy": 1}


def test_an_instance_that_the_group_calls_unhealthy_is_told(lab: Asg, clock: FakeClock) -> None:
    lab.groups["green"].instances[0].health = "Unhealthy"

    with pytest.raises(UnreadyError, match=r"i-0+\d is Unhealthy"):
        work(lab, clock, timeout=20)


def test_a_group_on_no_route_fails_at_once_and_before_anything_is_changed(lab: Asg, clock: FakeClock) -> None:
    lab.alb.group("purple", port=8080)
    lab.scale("purple", 1, "purple")

    with pytest.raises(UnreadyError, match=r"purple is on no route, .* Give it the weight 0 on a route first, or set wait to false."):
        work(lab, clock, name="purple", desired_capacity=2)

    assert (changes(lab), clock.time) == ([], 0)


def test_an_empty_group_on_no_route_fails_as_soon_as_it_has_instances(lab: Asg, clock: FakeClock) -> None:
    lab.alb.group("purple", port=8080)
    lab.scale("purple", 0, "purple")

    with pytest.raises(UnreadyError, match="purple is on no route"):
        work(lab, clock, name="purple", desired_capacity=1)


def test_who_does_not_wait_gets_what_is_there_now(lab: Asg, clock: FakeClock) -> None:
    result = work(lab, clock, desired_capacity=3, wait=False)

    assert (result["changed"], result["counts"], clock.time) == (True, {"InService": 2, "Pending": 1}, 0)


def test_the_wait_of_a_killed_controller_is_taken_up(lab: Asg, clock: FakeClock) -> None:
    work(lab, clock, desired_capacity=3, wait=False)

    result = work(lab, clock, desired_capacity=3)

    assert (result["changed"], result["counts"]) == (False, {"InService": 3})


def test_an_answer_that_lags_behind_is_no_success(lab: Asg, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = lab._shown
    old = shown(lab.groups["green"])
    monkeypatch.setattr(lab, "_shown", lambda group: old if clock.time < 40 else shown(group))

    assert work(lab, clock, desired_capacity=3)["counts"] == {"InService": 3}


def test_the_timeout_says_what_lacks(lab: Asg, clock: FakeClock) -> None:
    with pytest.raises(UnreadyError) as caught:
        work(lab, clock, desired_capacity=3, timeout=21, interval=10)

    pending = lab.groups["green"].instances[2].id
    assert caught.value.message == f"green: It is not ready after 21 s: 2 of 3 are in service; {pending} is Pending."
    assert clock.pauses == [10, 10]
    assert set(caught.value.details) == {"counts", "events", "groups", "suspended"}


def test_launches_that_fail_end_the_wait_with_their_reason(lab: Asg, clock: FakeClock) -> None:
    lab.groups["green"].out_of_stock = "We currently do not have sufficient capacity."

    with pytest.raises(UnreadyError) as caught:
        work(lab, clock, desired_capacity=3, timeout=3600)

    assert caught.value.message == (
        "green: 3 of its activities failed, and it goes on trying. "
        "It says: Launching a new EC2 instance (Failed: We currently do not have sufficient capacity)."
    )
    assert clock.time < 60


def test_guard_off_launches_that_fail_take_the_whole_timeout(lab: Asg, clock: FakeClock) -> None:
    lab.groups["green"].out_of_stock = "We currently do not have sufficient capacity."

    with pytest.raises(UnreadyError, match=r"not ready after 100 s: 2 of 3 are in service\. It says: Launching"):
        work(lab, clock, desired_capacity=3, timeout=100, interval=20, max_failures=1000)

    assert clock.time == 100


# Shrinking


@pytest.mark.parametrize("options", [{"desired_capacity": 1}, {"max_size": 1}])
@pytest.mark.parametrize("check_mode", [False, True])
def test_a_colour_with_weight_does_not_shrink(check_mode: bool, options: dict[str, int], lab: Asg, clock: FakeClock) -> None:
    with pytest.raises(TrafficError) as caught:
        work(lab, clock, check_mode, name="blue", **options)

    assert caught.value.message == (
        "blue has weight on lms:443, so it keeps its capacity of 2, and 1 was asked for. Move the traffic away first."
    )
    assert changes(lab) == []


def test_guard_off_a_colour_with_weight_is_left_without_targets(lab: Asg, clock: FakeClock) -> None:
    lab.raw.update_auto_scaling_group(AutoScalingGroupName="blue", MinSize=0, DesiredCapacity=0)
    for _look in range(10):
        clock.sleep(5)
        lab.advance()

    assert (lab.alb.states("blue"), lab.states("blue")) == ({}, [])


def test_a_colour_with_weight_may_grow(lab: Asg, clock: FakeClock) -> None:
    assert work(lab, clock, name="blue", desired_capacity=3)["counts"] == {"InService": 3}


def test_a_colour_without_weight_is_gone_once_it_has_drained(lab: Asg, clock: FakeClock) -> None:
    result = work(lab, clock, min_size=0, desired_capacity=0)

    assert (result["counts"], result["groups"][0]["counts"], result["instances"]) == ({}, {}, [])
    assert clock.time >= lab.drain


# Protection and suspended processes


def test_instances_that_are_protected_stay(lab: Asg, clock: FakeClock) -> None:
    for instance in lab.groups["green"].instances:
        instance.protected = True
    names = ", ".join(instance.id for instance in lab.groups["green"].instances)

    with pytest.raises(UnreadyError) as caught:
        work(lab, clock, desired_capacity=1)

    assert caught.value.message == (
        f"green has instances that are protected from scale-in, more than 1: {names}. Take their protection away first, or keep them."
    )
    assert changes(lab) == []


def test_the_one_that_is_not_protected_goes(lab: Asg, clock: FakeClock) -> None:
    kept = lab.groups["green"].instances[0]
    kept.protected = True

    result = work(lab, clock, desired_capacity=1)

    assert result["instances"] == [{"id": kept.id, "state": "InService", "health": "Healthy", "protected": True}]


@pytest.mark.parametrize(
    ("process", "desired", "message"),
    [
        ("Launch", 3, "green has Launch suspended, so that it cannot get from 2 to 3. Resume it first."),
        ("AddToLoadBalancer", 3, "green has AddToLoadBalancer suspended, so that it cannot get from 2 to 3."),
        ("Terminate", 1, "green has Terminate suspended, so that it cannot get from 2 to 1."),
    ],
)
def test_a_process_that_is_suspended_and_needed_is_named(process: str, desired: int, message: str, lab: Asg, clock: FakeClock) -> None:
    lab.groups["green"].suspended = [process, "AlarmNotification"]

    with pytest.raises(UnreadyError) as caught:
        work(lab, clock, desired_capacity=desired)

    assert caught.value.message.startswith(message)
    assert (caught.value.details, changes(lab)) == ({"suspended": sorted([process, "AlarmNotification"])}, [])


def test_guard_off_a_group_with_a_suspended_process_never_gets_there(lab: Asg, clock: FakeClock) -> None:
    lab.groups["green"].suspended = ["Launch"]
    lab.raw.update_auto_scaling_group(AutoScalingGroupName="green", DesiredCapacity=3)
    for _look in range(20):
        clock.sleep(30)
        lab.advance()

    assert lab.states("green") == ["InService"] * 2


def test_a_process_that_is_suspended_and_not_needed_is_named_where_the_wait_fails(lab: Asg, clock: FakeClock) -> None:
    lab.groups["green"].suspended = ["HealthCheck"]
    lab.groups["green"].instances[0].health = "Unhealthy"

    with pytest.raises(UnreadyError, match=r"is Unhealthy\. Its processes HealthCheck are suspended\."):
        work(lab, clock, timeout=20)


def test_a_process_that_is_suspended_during_the_wait_ends_it(lab: Asg, clock: FakeClock) -> None:
    lab.boot = 1000
    clock.events = lambda time: lab.groups["green"].suspended.append("Launch") if time == 10 else None

    with pytest.raises(UnreadyError, match="green has Launch suspended"):
        work(lab, clock, desired_capacity=3)

    assert clock.time == 10


# Check mode


@pytest.mark.parametrize("options", [{"desired_capacity": 3}, {"min_size": 0}, {"desired_capacity": 1}, {}])
def test_check_mode_plans_the_same_and_changes_nothing(options: dict[str, Any], lab: Asg, clock: FakeClock) -> None:
    planned = work(lab, clock, True, **options)
    untouched = (changes(lab), clock.time)
    done = work(lab, clock, **options)

    same = ("changed", "name", "min_size", "desired_capacity", "max_size", "diff", "suspended")
    assert untouched == ([], 0)
    assert {key: planned[key] for key in same} == {key: done[key] for key in same}
    assert planned.keys() == done.keys()


# Errors


def test_throttled_calls_go_on(lab: Asg, clock: FakeClock) -> None:
    lab.client.fault = lambda _method, number: refusal("ThrottlingException") if number % 3 == 1 else None

    assert work(lab, clock, desired_capacity=3)["counts"] == {"InService": 3}


def test_a_denied_call_names_the_action_to_allow(lab: Asg, clock: FakeClock) -> None:
    lab.client.fault = lambda method, _number: refusal("AccessDenied", 403) if method == "describe_scaling_activities" else None

    with pytest.raises(LmsError, match="Allow autoscaling:DescribeScalingActivities to the identity of this task"):
        work(lab, clock)


def test_a_group_that_somebody_deletes_is_refused(lab: Asg, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = lab._shown
    monkeypatch.setattr(lab, "_shown", lambda group: type(shown(group))({**shown(group), "Status": "Delete in progress"}))

    with pytest.raises(LmsError, match="The auto scaling group green is on its way out: Delete in progress"):
        work(lab, clock)


def test_target_groups_come_in_two_forms() -> None:
    arn = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/"
    group = {
        "TargetGroupARNs": [f"{arn}a/1"],
        "TrafficSources": [
            {"Identifier": f"{arn}a/1", "Type": "elbv2"},
            {"Identifier": f"{arn}b/2", "Type": "elbv2"},
            {"Identifier": "arn:aws:vpc-lattice:eu-central-1:123456789012:targetgroup/tg-1", "Type": "vpc-lattice"},
            {"Identifier": "classic", "Type": "elb"},
        ],
    }

    assert target_groups(group) == [f"{arn}a/1", f"{arn}b/2"]
