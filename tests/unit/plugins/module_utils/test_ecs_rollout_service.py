# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services of ECS that get their task definition and their tasks, and are waited for in the load balancer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api
from ansible_collections.bitflow.lms.plugins.module_utils._ecs_rollout_service import run
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import TrafficError, UnreadyError
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock
from ansible_collections.bitflow.lms.tests.lab.ecs_model import Ecs, Fate, ecs, forget_definitions
from ansible_collections.bitflow.lms.tests.lab.elb_model import Alb, FakeClock, State, World, aws, new_alb, refusal

DEFAULTS: Mapping[str, Any] = {
    "cluster": "lms",
    "service": "green",
    "task_definition": None,
    "definition": None,
    "desired_count": None,
    "wait": True,
    "timeout": 300,
    "interval": 5,
    "consecutive": 2,
    "max_failures": 3,
}
CONTAINER = {"name": "app", "image": "lms:1", "memory": 512, "portMappings": [{"containerPort": 8080}]}
DEFINITION: Mapping[str, Any] = {
    "family": "lms",
    "networkMode": "awsvpc",
    "requiresCompatibilities": ["FARGATE"],
    "cpu": 256,
    "memory": 512,
    "containerDefinitions": [CONTAINER],
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
def alb(world: World) -> Alb:
    """Return a load balancer on which blue has the traffic and green the weight 0."""
    made = new_alb(world)
    made.group("blue", port=8080)
    made.group("green", port=8080)
    made.listener(443, made.forward(blue=100, green=0))
    return made


@pytest.fixture
def lab(alb: Alb, clock: FakeClock) -> Iterator[Ecs]:
    """Return a cluster whose services blue and green run two tasks each of the first definition. There is a second definition."""
    with ecs(alb, clock.now) as made:
        forget_definitions()
        first = made.define(image="lms:1")
        made.define(image="lms:2")
        made.serve("blue", first, 2, "blue")
        made.serve("green", first, 2, "green")
        yield made


def work(lab: Ecs, clock: FakeClock, check_mode: bool = False, **options: Any) -> dict[str, Any]:
    """Run the module's work."""
    lab.client.calls.clear()
    lab.alb.client.calls.clear()
    quiet = {"sleep": lambda _seconds: None}
    services = Api(lab.client, "ecs", **quiet), Api(lab.alb.client, **quiet)
    return run(*services, {**DEFAULTS, **options}, check_mode, Clock(clock.now, clock.sleep))


def changes(lab: Ecs) -> list[tuple[str, dict[str, Any]]]:
    """Return the calls that changed something."""
    return [call for call in [*lab.client.calls, *lab.alb.client.calls] if not call[0].startswith(("describe_", "list_"))]


def arn(revision: int) -> str:
    """Return the ARN of a revision."""
    return f"arn:aws:ecs:eu-central-1:123456789012:task-definition/lms:{revision}"


# The definition and the count


def test_the_result_is_whole(lab: Ecs, clock: FakeClock) -> None:
    result = work(lab, clock, task_definition="lms:2", desired_count=3)

    deployment = lab.services["green"].primary.id
    assert result == {
        "changed": True,
        "service": "green",
        "cluster": "lms",
        "task_definition": arn(2),
        "registered": False,
        "restarted": False,
        "desired_count": 3,
        "deployment": {"id": deployment, "state": "COMPLETED", "reason": f"ECS deployment {deployment} completed."},
        "counts": {"desired": 3, "running": 3, "pending": 0, "failed": 0},
        "groups": [{"name": "green", "arn": lab.alb.groups["green"], "counts": {"healthy": 3}, "weight_on": []}],
        "events": ["(service green) has reached a steady state."],
        "diff": {
            "before": {"task_definition": "lms:1", "desired_count": 2},
            "after": {"task_definition": "lms:2", "desired_count": 3},
        },
    }
    assert changes(lab) == [("update_service", {"cluster": "lms", "service": "green", "taskDefinition": arn(2), "desiredCount": 3})]
    assert lab.running("green") == ["lms:2"] * 3


def test_a_second_run_changes_nothing(lab: Ecs, clock: FakeClock) -> None:
    work(lab, clock, task_definition="lms:2", desired_count=3)

    result = work(lab, clock, task_definition="lms:2", desired_count=3)

    assert (result["changed"], changes(lab)) == (False, [])


@pytest.mark.parametrize("name", ["lms:1", arn(1)])
def test_defect_18_a_full_arn_and_a_short_name_are_the_same(name: str, lab: Ecs, clock: FakeClock) -> None:
    result = work(lab, clock, task_definition=name, desired_count=2)

    assert (result["changed"], changes(lab)) == (False, [])


@pytest.mark.parametrize("left_out", ["desired_count", "load_balancers", "short name"])
def test_guard_off_community_aws_sees_a_change_where_there_is_none(left_out: str, lab: Ecs) -> None:
    module = pytest.importorskip("ansible_collections.community.aws.plugins.modules.ecs_service")
    service = {**lab.raw.describe_services(cluster="lms", services=["green"])["services"][0], "propagateTags": "NONE"}
    expected = {
        **dict.fromkeys(("health_check_grace_period_seconds", "propagate_tags", "tags", "enable_execute_command")),
        "task_definition": "lms:1",
        "load_balancers": service["loadBalancers"],
        "scheduling_strategy": "REPLICA",
        "desired_count": 2,
    }
    matches = module.EcsServiceManager.__dict__["is_matching_service"]
    assert matches(None, expected, service) is True

    without = {**expected, "task_definition": arn(1)} if left_out == "short name" else {**expected, left_out: None}

    assert matches(None, without, service) is False


def test_a_family_alone_means_its_newest_revision(lab: Ecs, clock: FakeClock) -> None:
    assert work(lab, clock, task_definition="lms")["task_definition"] == arn(2)


def test_defect_17_a_count_that_is_left_out_stays_that_of_auto_scaling(lab: Ecs, clock: FakeClock) -> None:
    lab.services["green"].desired = 7

    result = work(lab, clock, task_definition="lms:2")
    again = work(lab, clock, task_definition="lms:2")

    assert (result["desired_count"], lab.services["green"].desired, again["changed"]) == (7, 7, False)
    assert result["counts"]["running"] == 7


def test_defect_17_what_is_left_out_altogether_changes_nothing(lab: Ecs, clock: FakeClock) -> None:
    result = work(lab, clock)

    assert (result["changed"], result["task_definition"], changes(lab)) == (False, arn(1), [])


def test_a_count_of_auto_scaling_during_the_wait_is_taken_over(lab: Ecs, clock: FakeClock) -> None:
    clock.events = lambda time: setattr(lab.services["green"], "desired", 4) if time == 5 else None

    result = work(lab, clock, task_definition="lms:2", desired_count=3)

    assert result["counts"] == {"desired": 4, "running": 4, "pending": 0, "failed": 0}


@pytest.mark.parametrize("family", ["lms:9", "purple"])
def test_an_unknown_definition_is_named(family: str, lab: Ecs, clock: FakeClock) -> None:
    with pytest.raises(LmsError, match=f"The task definition {family} cannot be found. Name one of this account and region."):
        work(lab, clock, task_definition=family)


def test_a_definition_that_was_deregistered_is_refused(lab: Ecs, clock: FakeClock) -> None:
    lab.raw.deregister_task_definition(taskDefinition="lms:2")

    with pytest.raises(LmsError, match="The task definition lms:2 is INACTIVE, so that no task starts with it"):
        work(lab, clock, task_definition="lms:2")


# A definition as a dictionary


def with_image(image: str, **container: Any) -> dict[str, Any]:
    """Return a definition with another image."""
    return {**DEFINITION, "containerDefinitions": [{**CONTAINER, "image": image, **container}]}


def test_a_definition_that_the_newest_revision_has_already_is_not_registered_again(lab: Ecs, clock: FakeClock) -> None:
    result = work(lab, clock, definition=with_image("lms:2"))

    assert (result["registered"], result["task_definition"], result["changed"]) == (False, arn(2), True)
    assert [name for name, _options in changes(lab)] == ["update_service"]


def test_a_definition_that_differs_becomes_a_new_revision_once(lab: Ecs, clock: FakeClock) -> None:
    wanted = with_image("lms:3", environment=[{"name": "PASSWORD", "value": "hunter2"}, {"name": "PORT", "value": 8080}])

    planned = work(lab, clock, check_mode=True, definition=wanted)
    untouched = changes(lab)
    result = work(lab, clock, definition=wanted)
    again = work(lab, clock, definition=wanted)

    assert (untouched, planned["changed"], planned["registered"], planned["task_definition"]) == ([], True, True, None)
    assert (result["registered"], result["task_definition"], again["changed"]) == (True, arn(3), False)
    assert planned["diff"] == result["diff"]
    assert lab.running("green") == ["lms:3"] * 2


def test_the_diff_of_a_definition_shows_what_changes_and_no_value_of_the_environment(lab: Ecs, clock: FakeClock) -> None:
    environment = [{"name": "APP_KEY", "value": "hunter2"}, {"name": "APP_ENV", "value": "production"}]
    work(lab, clock, definition=with_image("lms:3", environment=environment))
    environment[0]["value"] = "hunter3"

    diff = work(lab, clock, check_mode=True, definition=with_image("lms:4", environment=environment))["diff"]

    before, after = (diff[side]["definition"]["containerDefinitions"][0] for side in ("before", "after"))
    assert (before["image"], after["image"]) == ("lms:3", "lms:4")
    assert (before["environment"], after["environment"]) == (
        {"APP_ENV": "(hidden)", "APP_KEY": "(hidden)"},
        {"APP_ENV": "(hidden)", "APP_KEY": "(hidden, new)"},
    )
    assert "hunter" not in str(diff)
    assert diff["after"]["task_definition"] == "lms (new revision)"


def test_the_first_definition_of_a_family_is_registered(lab: Ecs, clock: FakeClock) -> None:
    result = work(lab, clock, definition={**DEFINITION, "family": "lms-worker"})

    assert result["task_definition"].endswith(":task-definition/lms-worker:1")


def test_a_controller_that_was_killed_after_registering_goes_on(lab: Ecs, clock: FakeClock) -> None:
    lab.client.fault = lambda method, _number: KeyboardInterrupt() if method == "update_service" else None  # type: ignore[return-value]
    with pytest.raises(KeyboardInterrupt):
        work(lab, clock, definition=with_image("lms:3"))
    lab.client.fault = lambda _method, _number: None

    result = work(lab, clock, definition=with_image("lms:3"))

    assert (result["registered"], result["task_definition"], lab.running("green")) == (False, arn(3), ["lms:3"] * 2)


# Waiting


def test_tasks_that_run_are_not_enough_their_targets_have_to_be_healthy(lab: Ecs, clock: FakeClock) -> None:
    lab.alb.world.arriving = State("initial", "Elb.InitialHealthChecking")

    def pass_checks(time: float) -> None:
        if time >= 60:
            for state in lab.alb.states("green").values():
                if state.state == "initial":
                    state.state, state.reason = "healthy", ""

    clock.events = pass_checks
    result = work(lab, clock, task_definition="lms:2")

    assert (result["counts"]["running"], result["groups"][0]["counts"], clock.time) == (2, {"healthy": 2}, 65)


def test_guard_off_services_stable_ends_while_no_target_is_healthy(lab: Ecs, clock: FakeClock) -> None:
    lab.alb.world.arriving = State("initial", "Elb.InitialHealthChecking")
    lab.raw.update_service(cluster="lms", service="green", taskDefinition=arn(2))
    for _look in range(20):
        clock.sleep(5)
        lab.advance()

    lab.raw.get_waiter("services_stable").wait(cluster="lms", services=["green"], WaiterConfig={"Delay": 0, "MaxAttempts": 1})

    assert [state.state for state in lab.alb.states("green").values()] == ["initial", "initial"]
    with pytest.raises(UnreadyError, match="green has 0 healthy of 2 targets, and 2 are needed"):
        work(lab, clock, task_definition="lms:2")


def test_every_group_of_a_service_has_to_be_healthy(lab: Ecs, clock: FakeClock) -> None:
    lab.alb.group("green-admin", port=8080)
    lab.alb.listener(8443, lab.alb.forward(blue=100, green=0, **{"green-admin": 0}))
    lab.serve("both", arn(1), 2, "green", "green-admin")
    next(iter(lab.alb.states("green-admin").values())).state = "initial"

    with pytest.raises(UnreadyError, match=r"both: .* 20 s: green-admin has 1 healthy of 2 targets, and 2 are needed"):
        work(lab, clock, service="both", timeout=20)


def test_a_group_on_no_route_fails_at_once_and_before_anything_is_changed(lab: Ecs, clock: FakeClock) -> None:
    lab.alb.group("purple", port=8080)
    lab.serve("purple", arn(1), 2, "purple")

    with pytest.raises(UnreadyError, match=r"purple is on no route, .* Give it the weight 0 on a route first, or set wait to false."):
        work(lab, clock, service="purple", task_definition="lms:2")

    assert (changes(lab), clock.time) == ([], 0)


def test_an_empty_group_on_no_route_fails_as_soon_as_it_has_targets(lab: Ecs, clock: FakeClock) -> None:
    lab.alb.group("purple", port=8080)
    lab.serve("purple", arn(1), 0, "purple")

    with pytest.raises(UnreadyError, match="purple is on no route"):
        work(lab, clock, service="purple", desired_count=2)

    assert clock.time < 30


def test_a_service_without_a_load_balancer_is_waited_for_by_its_tasks(lab: Ecs, clock: FakeClock) -> None:
    lab.serve("worker", arn(1), 1)

    result = work(lab, clock, service="worker", task_definition="lms:2", desired_count=2)

    assert (result["groups"], result["counts"]["running"], lab.running("worker")) == ([], 2, ["lms:2"] * 2)


def test_more_tasks_of_a_service_without_a_load_balancer_are_waited_for(lab: Ecs, clock: FakeClock) -> None:
    lab.serve("worker", arn(1), 1)

    assert work(lab, clock, service="worker", desired_count=3)["counts"]["running"] == 3


def test_only_events_of_this_run_are_told(lab: Ecs, clock: FakeClock) -> None:
    work(lab, clock, task_definition="lms:2")

    assert work(lab, clock, task_definition="lms:2")["events"] == []


def test_old_tasks_are_waited_for_until_they_have_drained(lab: Ecs, clock: FakeClock) -> None:
    work(lab, clock, task_definition="lms:2")

    assert {task.status for task in lab.services["green"].tasks if task.definition == arn(1)} == {"STOPPED"}


def test_who_does_not_wait_gets_what_is_there_now(lab: Ecs, clock: FakeClock) -> None:
    result = work(lab, clock, task_definition="lms:2", wait=False)

    assert (result["changed"], result["deployment"]["state"], clock.time) == (True, "IN_PROGRESS", 0)


def test_the_wait_of_a_killed_controller_is_taken_up(lab: Ecs, clock: FakeClock) -> None:
    work(lab, clock, task_definition="lms:2", wait=False)

    result = work(lab, clock, task_definition="lms:2")

    assert (result["changed"], result["deployment"]["state"], result["counts"]["running"]) == (False, "COMPLETED", 2)


def test_the_timeout_is_kept_and_says_what_lacks(lab: Ecs, clock: FakeClock) -> None:
    lab.boot = 1000

    with pytest.raises(UnreadyError) as caught:
        work(lab, clock, task_definition="lms:2", timeout=21, interval=10)

    assert caught.value.message == ("green: It is not ready after 21 s: its deployment is IN_PROGRESS; 2 tasks of lms:1 still run.")
    assert clock.pauses == [10, 10]
    assert set(caught.value.details) == {"counts", "events", "groups", "stopped"}


def test_an_answer_that_lags_behind_is_no_success(lab: Ecs, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    old = lab.raw.describe_services(cluster="lms", services=["green"])["services"][0]
    shown = lab._shown
    monkeypatch.setattr(lab, "_shown", lambda service: old if 0 < clock.time < 30 and service.name == "green" else shown(service))

    result = work(lab, clock, task_definition="lms:2", desired_count=3)

    assert (result["counts"]["running"], result["deployment"]["id"]) == (3, lab.services["green"].primary.id)


def test_a_count_that_lags_behind_is_no_success(lab: Ecs, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = lab._shown
    old = shown(lab.services["green"])
    monkeypatch.setattr(lab, "_shown", lambda service: old if 0 < clock.time < 30 and service.name == "green" else shown(service))

    assert work(lab, clock, desired_count=3)["counts"]["running"] == 3


def test_tasks_that_auto_scaling_ends_meanwhile_are_no_failure(lab: Ecs, clock: FakeClock) -> None:
    clock.events = lambda time: setattr(lab.services["green"], "desired", 3) if time == 5 else None

    assert work(lab, clock, task_definition="lms:2", desired_count=6)["counts"] == {"desired": 3, "running": 3, "pending": 0, "failed": 0}


# Failing


def test_a_deployment_that_aws_never_shows_again_has_failed(lab: Ecs, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = lab._shown
    old = shown(lab.services["green"])
    monkeypatch.setattr(lab, "_shown", lambda service: old if clock.time and service.name == "green" else shown(service))

    with pytest.raises(UnreadyError, match=r"The deployment failed\. .* ECS went back to lms:1\."):
        work(lab, clock, task_definition="lms:2")

    assert clock.time == 35


def test_the_circuit_breaker_decides_while_it_counts(lab: Ecs, clock: FakeClock) -> None:
    lab.services["green"].breaker = lab.services["green"].rollback = True
    lab.fates["lms:2"] = Fate(1, fails=True)

    with pytest.raises(UnreadyError, match=r"circuit breaker: tasks failed to start\. .* ECS went back to lms:1\."):
        work(lab, clock, task_definition="lms:2", max_failures=1)


def test_defect_19_the_outcome_of_the_deployment_is_told(lab: Ecs, clock: FakeClock) -> None:
    lab.services["green"].breaker = lab.services["green"].rollback = True
    lab.fates["lms:2"] = Fate(1, fails=True)

    with pytest.raises(UnreadyError) as caught:
        work(lab, clock, task_definition="lms:2")

    assert caught.value.message == (
        "green: The deployment of lms:2 failed. ECS deployment circuit breaker: tasks failed to start. "
        "Its tasks stopped: Essential container in task exited (app ended with 1). ECS went back to lms:1."
    )
    assert clock.time < 100
    assert (len(caught.value.details["stopped"]), lab.running("green")) == (4, ["lms:1"] * 2)
    assert [event for event in caught.value.details["events"] if event.endswith("deployment failed: tasks failed to start.")]


def test_a_deployment_that_fails_without_a_way_back_says_so(lab: Ecs, clock: FakeClock) -> None:
    lab.services["green"].breaker = True
    lab.fates["lms:2"] = Fate(1, fails=True)

    with pytest.raises(UnreadyError, match=r"The deployment of lms:2 failed\. .*app ended with 1\)\.$"):
        work(lab, clock, task_definition="lms:2")


def test_a_rollback_that_was_over_before_the_next_look_is_no_success(lab: Ecs, clock: FakeClock) -> None:
    lab.services["green"].breaker = lab.services["green"].rollback = True
    lab.fates["lms:2"] = Fate(1, fails=True)

    def hurry(_time: float) -> None:
        for _look in range(8):
            clock.time += 10
            lab.advance()

    clock.events = lambda time: hurry(time) if time == 5 else None
    with pytest.raises(UnreadyError, match=r"The deployment failed\. .* ECS went back to lms:1"):
        work(lab, clock, task_definition="lms:2")


def test_tasks_that_stop_again_and_again_end_the_wait_with_their_reason(lab: Ecs, clock: FakeClock) -> None:
    reason = "CannotPullContainerError: lms:2: not found"
    lab.fates["lms:2"] = Fate(None, reason, "TaskFailedToStart", "no such image", fails=True)

    with pytest.raises(UnreadyError) as caught:
        work(lab, clock, task_definition="lms:2", timeout=3600)

    assert caught.value.message == (
        "green: The deployment of lms:2 does not succeed. 4 of its tasks failed, and ECS goes on trying. "
        f"Its tasks stopped: {reason} (app: no such image)."
    )
    assert clock.time < 100


def test_tasks_that_run_and_then_fail_their_checks_end_the_wait_although_the_breaker_counts_them_no_more(
    lab: Ecs, clock: FakeClock
) -> None:
    lab.services["green"].breaker = True
    lab.alb.world.arriving = State("unhealthy", "Target.ResponseCodeMismatch")

    with pytest.raises(UnreadyError, match=r"of its tasks failed, .*Task failed ELB health checks in \(target-group"):
        work(lab, clock, task_definition="lms:2", timeout=3600)

    assert clock.time < 200


def test_guard_off_a_broken_definition_takes_the_whole_timeout(lab: Ecs, clock: FakeClock) -> None:
    lab.fates["lms:2"] = Fate(1, fails=True)

    with pytest.raises(UnreadyError, match=r"It is not ready after 200 s: .* Its tasks stopped"):
        work(lab, clock, task_definition="lms:2", timeout=200, interval=20, max_failures=1000)

    assert clock.time == 200


def test_failures_of_a_deployment_that_was_completed_do_not_count_for_new_tasks(lab: Ecs, clock: FakeClock) -> None:
    lab.boot = 0
    lab.fates["lms:1"] = Fate(1, fails=True)
    lab.services["green"].tasks.clear()
    for _look in range(4):
        lab.advance()
    lab.fates.clear()
    lab.boot = 10

    result = work(lab, clock, desired_count=3)

    assert result["counts"]["running"] == 3


def test_a_deployment_that_failed_before_is_begun_again(lab: Ecs, clock: FakeClock) -> None:
    lab.services["green"].breaker = True
    lab.fates["lms:2"] = Fate(1, fails=True)
    with pytest.raises(UnreadyError):
        work(lab, clock, task_definition="lms:2")
    lab.fates.clear()

    result = work(lab, clock, task_definition="lms:2")

    assert (result["changed"], result["restarted"], lab.running("green")) == (True, True, ["lms:2"] * 2)
    assert changes(lab) == [("update_service", {"cluster": "lms", "service": "green", "forceNewDeployment": True})]


def test_a_deployment_of_somebody_else_is_told(lab: Ecs, clock: FakeClock) -> None:
    def meddle(time: float) -> None:
        if time == 10:
            lab.raw.update_service(cluster="lms", service="green", taskDefinition=arn(1))

    clock.events = meddle
    with pytest.raises(UnreadyError, match=r"The deployment of lms:2 was replaced by one of lms:1. Find out who did that"):
        work(lab, clock, task_definition="lms:2")


# Shrinking


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_colour_with_weight_is_not_scaled_down(check_mode: bool, lab: Ecs, clock: FakeClock) -> None:
    with pytest.raises(TrafficError) as caught:
        work(lab, clock, check_mode, service="blue", desired_count=1)

    assert caught.value.message == (
        "blue has weight on lms:443, so it keeps its capacity of 2, and 1 was asked for. Move the traffic away first."
    )
    assert changes(lab) == []


def test_weight_on_any_listener_of_any_group_counts(lab: Ecs, clock: FakeClock) -> None:
    listener = lab.alb.listener(80, lab.alb.forward(blue=1))
    lab.alb.rule(listener, lab.alb.forward(blue=99, green=1), priority=7)

    with pytest.raises(TrafficError, match=r"green has weight on lms:80/7, so it keeps"):
        work(lab, clock, desired_count=0)


def test_guard_off_a_colour_with_weight_is_left_without_targets(lab: Ecs, clock: FakeClock) -> None:
    lab.raw.update_service(cluster="lms", service="blue", desiredCount=0)
    for _look in range(10):
        clock.sleep(5)
        lab.advance()

    assert (lab.alb.states("blue"), lab.running("blue")) == ({}, [])


def test_a_colour_with_weight_may_grow(lab: Ecs, clock: FakeClock) -> None:
    assert work(lab, clock, service="blue", desired_count=3)["counts"]["running"] == 3


def test_a_colour_without_weight_is_gone_once_its_targets_have_drained(lab: Ecs, clock: FakeClock) -> None:
    result = work(lab, clock, desired_count=0)

    assert (result["changed"], result["groups"][0]["counts"], lab.alb.states("green")) == (True, {}, {})
    assert clock.time >= lab.drain


def test_a_count_of_a_service_that_another_controller_deploys_is_refused(lab: Ecs, clock: FakeClock) -> None:
    lab.serve("other", arn(1), 1, deploymentController={"type": "CODE_DEPLOY"})
    lab.serve("agent", arn(1), 1, schedulingStrategy="DAEMON")

    with pytest.raises(LmsError, match="The service other is deployed by CODE_DEPLOY"):
        work(lab, clock, service="other", desired_count=2)
    with pytest.raises(LmsError, match="Leave desired_count out"):
        work(lab, clock, service="agent", desired_count=2)


# Check mode


@pytest.mark.parametrize(
    "options", [{"task_definition": "lms:2"}, {"desired_count": 4}, {"task_definition": "lms:1"}, {"desired_count": 1}]
)
def test_check_mode_plans_the_same_and_changes_nothing(options: dict[str, Any], lab: Ecs, clock: FakeClock) -> None:
    planned = work(lab, clock, True, **options)
    untouched = (changes(lab), clock.time)
    done = work(lab, clock, **options)

    same = ("changed", "task_definition", "registered", "restarted", "desired_count", "diff", "service", "cluster")
    assert untouched == ([], 0)
    assert {key: planned[key] for key in same} == {key: done[key] for key in same}
    assert planned.keys() == done.keys()


# Errors


def test_throttled_calls_go_on(lab: Ecs, clock: FakeClock) -> None:
    lab.client.fault = lambda _method, number: refusal("ThrottlingException") if number % 3 == 1 else None

    assert work(lab, clock, task_definition="lms:2")["counts"]["running"] == 2


def test_a_denied_call_names_the_action_to_allow(lab: Ecs, clock: FakeClock) -> None:
    lab.client.fault = lambda method, _number: refusal("AccessDeniedException", 403) if method == "update_service" else None

    with pytest.raises(LmsError, match="Allow ecs:UpdateService to the identity of this task"):
        work(lab, clock, task_definition="lms:2")


def test_a_service_that_is_not_there_is_named(lab: Ecs, clock: FakeClock) -> None:
    with pytest.raises(LmsError, match=r"The cluster lms has no service red. Name one of this account and region."):
        work(lab, clock, service="red")


@pytest.mark.parametrize(
    ("option", "value", "least"), [("timeout", -1, "0"), ("interval", 1, "2"), ("consecutive", 0, "1"), ("max_failures", 0, "1")]
)
def test_options_that_make_no_sense_are_refused(option: str, value: float, least: str, lab: Ecs, clock: FakeClock) -> None:
    with pytest.raises(LmsError, match=f"{option} is {value}. Give {least} at least."):
        work(lab, clock, **{option: value})


def test_a_negative_count_is_refused(lab: Ecs, clock: FakeClock) -> None:
    with pytest.raises(LmsError, match=r"desired_count is -1. Give 0 at least."):
        work(lab, clock, desired_count=-1)
