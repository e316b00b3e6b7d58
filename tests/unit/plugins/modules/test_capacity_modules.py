# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules of ECS and auto scaling as Ansible runs them: against moto as it is, against the models, and what IAM has to allow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
import yaml
from ansible_collections.bitflow.lms.plugins.module_utils import _asg_capacity, _ecs_rollout_service, _ecs_run_task
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import ACTIONS, Api
from ansible_collections.bitflow.lms.plugins.module_utils._capacity import capacity_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock
from ansible_collections.bitflow.lms.plugins.modules import asg_capacity, ecs_rollout_service, ecs_run_task
from ansible_collections.bitflow.lms.tests.lab.asg_model import asg
from ansible_collections.bitflow.lms.tests.lab.ecs_model import ecs, forget_definitions
from ansible_collections.bitflow.lms.tests.lab.elb_model import REGION, Alb, FakeClock, World, aws, new_alb
from ansible_collections.bitflow.lms.tests.unit.plugins.modules.test_alb_modules import call, documented, name_of, specified

MODULES = [asg_capacity, ecs_rollout_service, ecs_run_task]
OPTIONS: dict[str, dict[str, Any]] = {
    "asg_capacity": {"name": "green", "desired_capacity": 3},
    "ecs_rollout_service": {"cluster": "lms", "service": "green", "task_definition": "lms:2", "desired_count": 3},
    "ecs_run_task": {"cluster": "lms", "task_definition": "lms:1", "command": ["php", "artisan", "migrate"], "client_token": "migrate-1"},
}
LOG = {"logDriver": "awslogs", "options": {"awslogs-group": "/ecs/lms", "awslogs-stream-prefix": "web"}}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Put AWS into this process, once for all tests."""
    with aws() as made:
        yield made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Return the time of all modules, which passes only where one sleeps."""
    made = FakeClock()
    for module in MODULES:
        monkeypatch.setattr(module, "Clock", lambda: Clock(made.now, made.sleep))
    return made


@pytest.fixture
def alb(world: World) -> Alb:
    """Return a load balancer on which blue has the traffic."""
    made = new_alb(world)
    made.group("blue", port=8080)
    made.group("green", port=8080)
    made.listener(443, made.forward(blue=100, green=0))
    forget_definitions()
    return made


@pytest.fixture
def colours(alb: Alb, clock: FakeClock) -> Iterator[None]:
    """Make the colour green, of tasks and of instances."""
    alb.group("instances", port=8080)
    alb.listener(80, alb.forward(blue=1, instances=0))
    with ecs(alb, clock.now) as services, asg(alb, clock.now) as scaling:
        services.define(container={"logConfiguration": LOG})
        services.define(image="lms:2")
        services.serve(
            "green", services.raw.describe_task_definition(taskDefinition="lms:1")["taskDefinition"]["taskDefinitionArn"], 2, "green"
        )
        scaling.scale("green", 2, "instances")
        yield


@pytest.mark.usefixtures("colours")
@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_a_module_plans_does_and_does_nothing_more(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    options = OPTIONS[name_of(module)]

    planned = call(module, capsys, check_mode=True, **options)
    done = call(module, capsys, **options)
    again = call(module, capsys, **options)

    assert [result["changed"] for result in (planned, done, again)] == [True, True, False]
    assert planned["diff"] == done["diff"]
    assert set(planned) == set(done) == set(again)


@pytest.mark.usefixtures("colours")
@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (asg_capacity, {"name": "red"}, "The auto scaling group red cannot be found."),
        (ecs_rollout_service, {"cluster": "lms", "service": "red"}, "The cluster lms has no service red."),
        (ecs_run_task, {"cluster": "lms", "task_definition": "red"}, "The task definition red cannot be found."),
    ],
)
def test_a_failure_is_told_by_the_module(module: Any, options: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(module, capsys, **options)

    assert (result["failed"], result["msg"].startswith(message)) == (True, True)


# Documentation


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_every_option_is_documented_as_it_is(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    documentation = yaml.safe_load(module.DOCUMENTATION)
    found = specified(module, monkeypatch)
    if "bitflow.lms.capacity" in documentation["extends_documentation_fragment"]:
        for name in capacity_argspec():
            del found[name]

    assert documented(documentation["options"]) == found


@pytest.mark.usefixtures("colours")
@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_every_key_of_the_result_is_documented(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = call(module, capsys, **OPTIONS[name_of(module)])
    returned = yaml.safe_load(module.RETURN)

    assert set(found) - {"changed", "diff"} == {key for key, value in returned.items() if value["returned"] in ("always", "success")}
    for key, value in found.items():
        contained = returned.get(key, {}).get("contains")
        samples = value if isinstance(value, list) else [value]
        assert all(set(sample) == set(contained) for sample in samples if contained)


# IAM


def test_iam_has_to_allow_exactly_the_calls_that_are_made(alb: Alb) -> None:
    clock = FakeClock()
    time = Clock(clock.now, clock.sleep)
    waits: dict[str, Any] = {"wait": True, "timeout": 300, "interval": 5, "consecutive": 1, "max_failures": 3}
    made: dict[str, set[str]] = {}
    elb = Api(alb.client)

    def note(module: str, client: Any, service: str) -> None:
        for found, prefix in ((client, service), (alb.client, "elasticloadbalancing")):
            made.setdefault(module, set()).update(f"{prefix}:{method.title().replace('_', '')}" for method, _parameters in found.calls)
            found.calls.clear()

    # A group that seems to belong to no load balancer makes the module look at all of them.
    alb.world.forgetful = True
    with asg(alb, clock.now) as scaling:
        scaling.scale("green", 1, "green")
        options = {"name": "green", "min_size": None, "desired_capacity": 2, "max_size": None, **waits}
        _asg_capacity.run(Api(scaling.client), elb, options, False, time)
        note("asg_capacity", scaling.client, "autoscaling")
    with ecs(alb, clock.now) as services:
        first = services.define()
        services.serve("green", first, 1, "green")
        definition = {"family": "lms", "memory": 512, "containerDefinitions": [{"name": "app", "image": "lms:3"}]}
        options = {"cluster": "lms", "service": "green", "task_definition": None, "definition": definition, "desired_count": None, **waits}
        _ecs_rollout_service.run(Api(services.client), elb, options, False, time)
        note("ecs_rollout_service", services.client, "ecs")
        options = {"cluster": "lms", "service": "green", "client_token": "one", **waits}
        for _again in range(2):
            _ecs_run_task.run(Api(services.client), options, False, time)
        note("ecs_run_task", services.client, "ecs")

    assert made == {name: set(ACTIONS[name]) for name in made}


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_the_documentation_names_the_actions_of_iam(module: Any) -> None:
    named = re.findall(r"C\(((?:autoscaling|ecs|elasticloadbalancing):\w+)\)", module.DOCUMENTATION)

    assert sorted(named) == sorted(ACTIONS[name_of(module)])


# moto as it is, without the models


def test_ecs_of_moto_takes_the_calls(
    alb: Alb, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOTO_ECS_SERVICE_RUNNING", "2")
    client = boto3.client("ecs", region_name=REGION)
    client.create_cluster(clusterName="plain")
    container = {"name": "app", "image": "lms:1", "memory": 512, "logConfiguration": LOG}
    family: dict[str, Any] = {
        "family": "plain",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "256",
        "memory": "512",
    }
    client.register_task_definition(**family, containerDefinitions=[container])
    network = boto3.client("ec2", region_name=REGION)
    vpc = network.describe_vpcs()["Vpcs"][0]["VpcId"]
    network.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": True})
    places = {
        "subnets": [network.describe_subnets()["Subnets"][0]["SubnetId"]],
        "security_groups": [network.describe_security_groups()["SecurityGroups"][0]["GroupId"]],
    }
    balancer = {"targetGroupArn": alb.groups["green"], "containerName": "app", "containerPort": 8080}
    client.create_service(
        cluster="plain", serviceName="green", taskDefinition="plain:1", desiredCount=2, launchType="FARGATE", loadBalancers=[balancer]
    )
    options: dict[str, Any] = {"cluster": "plain", "service": "green", "wait": False}
    new = {**family, "containerDefinitions": [{**container, "image": "lms:2"}]}

    same = call(ecs_rollout_service, capsys, **options, definition={**family, "containerDefinitions": [container]})
    planned = call(ecs_rollout_service, capsys, check_mode=True, **options, definition=new)
    done = call(ecs_rollout_service, capsys, **options, definition=new, desired_count=3)
    again = call(ecs_rollout_service, capsys, **options, task_definition="plain:2", desired_count=3)
    task = call(
        ecs_run_task, capsys, cluster="plain", task_definition="plain", launch_type="FARGATE", network=places, client_token="migrate-1"
    )

    assert [result["changed"] for result in (same, planned, done, again, task)] == [False, True, True, False, True]
    assert (done["registered"], done["task_definition"].rpartition("/")[2], done["desired_count"]) == (True, "plain:2", 3)
    assert (task["task"]["status"], task["task"]["exit_code"], task["log"]["group"]) == ("STOPPED", 0, "/ecs/lms")
    assert set(clock.pauses) == {5}


def test_auto_scaling_of_moto_takes_the_calls(alb: Alb, clock: FakeClock, capsys: pytest.CaptureFixture[str]) -> None:
    network, scaling = (boto3.client(service, region_name=REGION) for service in ("ec2", "autoscaling"))
    image = network.describe_images()["Images"][0]["ImageId"]
    network.create_launch_template(LaunchTemplateName="plain", LaunchTemplateData={"ImageId": image, "InstanceType": "t3.micro"})
    scaling.create_auto_scaling_group(
        AutoScalingGroupName="plain",
        LaunchTemplate={"LaunchTemplateName": "plain"},
        MinSize=1,
        MaxSize=2,
        TargetGroupARNs=[alb.groups["green"]],
        VPCZoneIdentifier=network.describe_subnets()["Subnets"][0]["SubnetId"],
    )

    planned = call(asg_capacity, capsys, check_mode=True, name="plain", desired_capacity=3, max_size=3)
    done = call(asg_capacity, capsys, name="plain", desired_capacity=3, max_size=3)
    again = call(asg_capacity, capsys, name="plain", desired_capacity=3, max_size=3)

    assert [result["changed"] for result in (planned, done, again)] == [True, True, False]
    assert (done["counts"], done["groups"][0]["counts"], planned["diff"]) == ({"InService": 3}, {"healthy": 3}, done["diff"])
    assert set(clock.pauses) == {5}
