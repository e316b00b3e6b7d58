# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Single tasks of ECS: started once, awaited, judged by their exit code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api
from ansible_collections.bitflow.lms.plugins.module_utils._ecs_run_task import TaskFailedError, run
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock
from ansible_collections.bitflow.lms.tests.lab.ecs_model import Ecs, Fate, ecs, forget_definitions
from ansible_collections.bitflow.lms.tests.lab.elb_model import Alb, FakeClock, World, aws, new_alb, refusal

MIGRATE = ["php", "artisan", "migrate", "--force"]
DEFAULTS: Mapping[str, Any] = {
    **dict.fromkeys(("service", "container", "environment", "launch_type", "network", "platform_version", "client_token")),
    "cluster": "lms",
    "task_definition": "lms:1",
    "command": MIGRATE,
    "timeout": 300,
    "interval": 5,
}
LOG = {"logDriver": "awslogs", "options": {"awslogs-group": "/ecs/lms", "awslogs-stream-prefix": "web", "awslogs-region": "eu-central-1"}}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Put AWS into this process, once for all tests."""
    with aws() as made:
        yield made


@pytest.fixture
def clock() -> FakeClock:
    """Return a time that passes only where somebody sleeps."""
    return FakeClock()


@pytest.fixture(scope="module")
def alb(world: World) -> Alb:
    """Return a load balancer, which single tasks do not have."""
    return new_alb(world)


@pytest.fixture
def lab(alb: Alb, clock: FakeClock) -> Iterator[Ecs]:
    """Return a cluster with a definition that writes a log."""
    with ecs(alb, clock.now) as made:
        forget_definitions()
        made.define(container={"logConfiguration": LOG})
        yield made


def work(lab: Ecs, clock: FakeClock, check_mode: bool = False, **options: Any) -> dict[str, Any]:
    """Run the module's work."""
    lab.client.calls.clear()
    api = Api(lab.client, "ecs", sleep=lambda _seconds: None)
    return run(api, {**DEFAULTS, **options}, check_mode, Clock(clock.now, clock.sleep), lambda: "made-up")


def started(lab: Ecs) -> list[dict[str, Any]]:
    """Return what was started."""
    return [parameters for method, parameters in lab.client.calls if method == "run_task"]


DEFINITION = "arn:aws:ecs:eu-central-1:123456789012:task-definition/lms:1"


def test_the_result_is_whole(lab: Ecs, clock: FakeClock) -> None:
    lab.endings["lms:1"] = Fate(0, after=20)

    result = work(lab, clock, client_token="migrate-1")

    arn = lab.single[0].arn
    task = arn.rpartition("/")[2]
    assert result == {
        "changed": True,
        "task_definition": DEFINITION,
        "container": "app",
        "command": MIGRATE,
        "client_token": "migrate-1",
        "task": {"id": task, "arn": arn, "status": "STOPPED", "exit_code": 0, "reason": "Essential container in task exited"},
        "log": {"group": "/ecs/lms", "stream": f"web/app/{task}"},
        "events": ["PENDING", "RUNNING", "STOPPED"],
        "diff": {"before": {}, "after": {"task_definition": "lms:1", "container": "app", "command": MIGRATE}},
    }
    assert started(lab) == [
        {
            "cluster": "lms",
            "taskDefinition": DEFINITION,
            "count": 1,
            "clientToken": "migrate-1",
            "startedBy": "migrate-1",
            "overrides": {"containerOverrides": [{"name": "app", "command": MIGRATE}]},
        }
    ]
    assert (clock.time, set(clock.pauses)) == (30, {5})


# Its end


def test_the_exit_code_counts(lab: Ecs, clock: FakeClock) -> None:
    lab.endings["lms:1"] = Fate(1)

    with pytest.raises(TaskFailedError) as caught:
        work(lab, clock, client_token="migrate-1")

    task = lab.single[0].arn.rpartition("/")[2]
    assert caught.value.message == (
        f"The task {task} of lms:1 (php artisan migrate --force) ended with 1: Essential container in task exited (app ended with 1). "
        f"Its last lines are in the log group /ecs/lms, stream web/app/{task}. Repair the cause, then run it with another client_token."
    )
    assert caught.value.details["task"]["exit_code"] == 1
    assert set(caught.value.details) == {"client_token", "task", "log", "events"}


def test_a_task_that_never_ran_is_a_failure(lab: Ecs, clock: FakeClock) -> None:
    lab.endings["lms:1"] = Fate(None, "Task failed to start", "TaskFailedToStart", "CannotPullContainerError: not found")

    with pytest.raises(TaskFailedError, match=r"did not run: Task failed to start \(app: CannotPullContainerError: not found\)\."):
        work(lab, clock)


def test_a_task_that_outlives_the_timeout_goes_on_and_can_be_awaited(lab: Ecs, clock: FakeClock) -> None:
    lab.endings["lms:1"] = Fate(0, after=60)

    with pytest.raises(TaskFailedError, match=r"is RUNNING after 20 s, and goes on\. .* again with client_token=made-up\. Its last lines"):
        work(lab, clock, timeout=20)
    result = work(lab, clock, client_token="made-up")

    assert (result["changed"], result["task"]["exit_code"], len(lab.single)) == (False, 0, 1)


def test_a_definition_without_a_log_names_none(lab: Ecs, clock: FakeClock) -> None:
    lab.define(family="quiet")
    lab.endings["quiet:1"] = Fate(2)

    with pytest.raises(TaskFailedError, match=r"ended with 2: .*\)\. Repair the cause"):
        work(lab, clock, task_definition="quiet")


def test_what_cannot_be_placed_says_why(lab: Ecs, clock: FakeClock) -> None:
    lab.unplaced = [{"arn": "arn:x", "reason": "RESOURCE:MEMORY", "detail": "too little"}]

    with pytest.raises(TaskFailedError, match=r"was not placed: RESOURCE:MEMORY: too little\. Look at the capacity of the cluster lms\."):
        work(lab, clock)


def test_an_answer_that_does_not_know_the_task_yet_is_waited_for(lab: Ecs, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "_all_tasks", lambda: lab.single if clock.time > 10 else [])

    assert work(lab, clock)["task"]["exit_code"] == 0


# Once only


def test_a_task_of_a_killed_controller_is_found_and_awaited(lab: Ecs, clock: FakeClock) -> None:
    lab.endings["lms:1"] = Fate(0, after=60)

    def die(time: float) -> None:
        if time == 15:
            raise KeyboardInterrupt

    clock.events = die
    with pytest.raises(KeyboardInterrupt):
        work(lab, clock, client_token="migrate-1")
    clock.events = lambda _time: None
    result = work(lab, clock, client_token="migrate-1")

    assert (result["changed"], result["task"]["exit_code"], len(lab.single), started(lab)) == (False, 0, 1, [])


def test_guard_off_without_a_token_the_work_is_started_twice(lab: Ecs, clock: FakeClock) -> None:
    lab.endings["lms:1"] = Fate(0, after=60)
    for token in ("one", "two"):
        run(Api(lab.client, "ecs"), dict(DEFAULTS), False, Clock(clock.now, clock.sleep), lambda name=token: name)  # type: ignore[misc]

    assert len(lab.single) == 2


def test_a_task_that_ended_well_is_not_run_again(lab: Ecs, clock: FakeClock) -> None:
    work(lab, clock, client_token="migrate-1")

    result = work(lab, clock, client_token="migrate-1")

    assert (result["changed"], result["diff"], len(lab.single)) == (False, {"before": {}, "after": {}}, 1)


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_task_that_ended_badly_fails_again_until_it_gets_another_token(check_mode: bool, lab: Ecs, clock: FakeClock) -> None:
    lab.endings["lms:1"] = Fate(1)
    with pytest.raises(TaskFailedError):
        work(lab, clock, client_token="migrate-1")
    lab.endings.clear()

    with pytest.raises(TaskFailedError, match="ended with 1"):
        work(lab, clock, check_mode, client_token="migrate-1")

    assert work(lab, clock, client_token="migrate-1b")["changed"] is True


def test_a_lost_answer_starts_no_second_task(lab: Ecs, clock: FakeClock) -> None:
    lab.client.lost = lambda method, number: refusal("InternalFailure", 500) if method == "run_task" and number == 1 else None

    result = work(lab, clock)

    assert (result["task"]["exit_code"], len(started(lab)), len(lab.single)) == (0, 2, 1)


@pytest.mark.parametrize("options", [{"command": ["php", "artisan", "db:seed"]}, {"task_definition": "lms:2"}])
def test_a_token_belongs_to_one_piece_of_work(options: dict[str, Any], lab: Ecs, clock: FakeClock) -> None:
    lab.define(image="lms:2")
    work(lab, clock, client_token="migrate-1")

    with pytest.raises(
        LmsError, match=r"client_token is migrate-1, with which the task .* of lms:1 \(php artisan migrate --force\) was started"
    ):
        work(lab, clock, client_token="migrate-1", **options)


@pytest.mark.parametrize("token", ["", "a b", "ümlaut", "x" * 65])
def test_a_token_that_aws_does_not_take_is_refused(token: str, lab: Ecs, clock: FakeClock) -> None:
    with pytest.raises(LmsError, match=r"client_token is .* Give 1 to 64 letters"):
        work(lab, clock, client_token=token)


# What is asked for


@pytest.mark.parametrize(
    ("options", "request_part"),
    [
        ({"launch_type": "FARGATE"}, {"launchType": "FARGATE"}),
        ({"launch_type": "FARGATE", "platform_version": "1.4.0"}, {"launchType": "FARGATE", "platformVersion": "1.4.0"}),
        (
            {"network": {"subnets": ["subnet-1"], "security_groups": [], "assign_public_ip": True}},
            {"networkConfiguration": {"awsvpcConfiguration": {"subnets": ["subnet-1"], "securityGroups": [], "assignPublicIp": "ENABLED"}}},
        ),
        (
            {"environment": {"B": 2, "A": "one"}, "command": None},
            {
                "overrides": {
                    "containerOverrides": [{"name": "app", "environment": [{"name": "A", "value": "one"}, {"name": "B", "value": "2"}]}]
                }
            },
        ),
        ({"task_definition": DEFINITION}, {"taskDefinition": DEFINITION}),
        ({"task_definition": "lms"}, {"taskDefinition": DEFINITION}),
        ({"container": "app"}, {"overrides": {"containerOverrides": [{"name": "app", "command": MIGRATE}]}}),
        (
            {"cluster": "arn:aws:ecs:eu-central-1:123456789012:cluster/lms"},
            {"cluster": "arn:aws:ecs:eu-central-1:123456789012:cluster/lms"},
        ),
    ],
)
def test_every_option_reaches_aws(options: dict[str, Any], request_part: dict[str, Any], lab: Ecs, clock: FakeClock) -> None:
    work(lab, clock, **options)

    assert {key: started(lab)[0][key] for key in request_part} == request_part


def test_a_service_lends_its_definition_and_its_network(lab: Ecs, clock: FakeClock) -> None:
    lab.serve("green", DEFINITION, 1)

    work(lab, clock, service="green", task_definition=None)

    request = started(lab)[0]
    assert (request["taskDefinition"], request["launchType"], request["platformVersion"]) == (DEFINITION, "FARGATE", "LATEST")
    assert request["networkConfiguration"]["awsvpcConfiguration"]["subnets"] == ["subnet-1"]


def test_a_service_lends_its_capacity_providers(lab: Ecs, clock: FakeClock) -> None:
    strategy = [{"capacityProvider": "FARGATE_SPOT", "weight": 1, "base": 0}]
    lab.serve("green", DEFINITION, 1, capacityProviderStrategy=strategy)

    work(lab, clock, service="green")

    assert (started(lab)[0]["capacityProviderStrategy"], "launchType" in started(lab)[0]) == (strategy, False)


def test_several_containers_have_to_be_told_apart(lab: Ecs, clock: FakeClock) -> None:
    containers = [{"name": name, "image": "lms:1", "memory": 256} for name in ("app", "proxy")]
    lab.raw.register_task_definition(family="pair", containerDefinitions=containers)

    with pytest.raises(LmsError, match=r"pair:1 has the containers app, proxy. Say which of them is meant with container."):
        work(lab, clock, task_definition="pair")
    with pytest.raises(LmsError, match=r"pair:1 has no container web. Its containers: app, proxy."):
        work(lab, clock, task_definition="pair", container="web")


def test_no_definition_is_an_error(lab: Ecs, clock: FakeClock) -> None:
    with pytest.raises(LmsError, match="Give task_definition, or a service that has one"):
        work(lab, clock, task_definition=None)


@pytest.mark.parametrize(("option", "value", "least"), [("timeout", -1, 0), ("interval", 1, 2)])
def test_options_that_make_no_sense_are_refused(option: str, value: int, least: int, lab: Ecs, clock: FakeClock) -> None:
    with pytest.raises(LmsError, match=f"{option} is {value}. Give {least} at least."):
        work(lab, clock, **{option: value})


# Check mode


def test_check_mode_says_what_would_run(lab: Ecs, clock: FakeClock) -> None:
    planned = work(lab, clock, True, client_token="migrate-1")
    untouched = (started(lab), clock.time)
    done = work(lab, clock, client_token="migrate-1")

    assert untouched == ([], 0)
    assert planned == {**done, "task": None, "log": None, "events": []}


def test_check_mode_finds_a_task_that_runs_already(lab: Ecs, clock: FakeClock) -> None:
    lab.endings["lms:1"] = Fate(0, after=60)
    with pytest.raises(TaskFailedError):
        work(lab, clock, client_token="migrate-1", timeout=20)

    planned = work(lab, clock, True, client_token="migrate-1")

    assert (planned["changed"], planned["task"]["status"], planned["events"]) == (False, "RUNNING", ["RUNNING"])
