# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Colours of ECS and of auto scaling whose capacity changes while users are served, by the modules and by the bare calls of the scripts."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils import _asg_capacity, _ecs_rollout_service
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import TrafficError
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock
from ansible_collections.bitflow.lms.tests.lab.asg_model import Asg, asg
from ansible_collections.bitflow.lms.tests.lab.backends import Backend
from ansible_collections.bitflow.lms.tests.lab.conftest import Report
from ansible_collections.bitflow.lms.tests.lab.ecs_model import Ecs, ecs, forget_definitions
from ansible_collections.bitflow.lms.tests.lab.elb_model import Key
from ansible_collections.bitflow.lms.tests.lab.test_scenarios import OFF, ON, ON_BLUE, ON_GREEN
from ansible_collections.bitflow.lms.tests.lab.traffic_lab import AT_ONCE, DRAIN, GROUPS, Lab

WAIT: Mapping[str, Any] = {"wait": True, "timeout": 120, "interval": 2, "consecutive": 2, "max_failures": 3}
# How long an application needs to listen after its task or instance runs (seconds of the lab).
LISTENS_AFTER = 6
TASKS = 2


@pytest.fixture
def services(lab: Lab) -> Iterator[Ecs]:
    """Return a cluster whose service green has no task yet."""
    backends: dict[Key, Backend] = {}

    def start(_service: str, _definition: str) -> Key:
        made = lab.plane.start_backend("green", "r2", boot=LISTENS_AFTER)
        backends[made.host, made.port] = made
        return made.host, made.port

    with ecs(lab.alb, lambda: lab.clock.seconds, boot=2, drain=DRAIN + 2, grace=30) as made:
        forget_definitions()
        made.start = start
        made.stop = lambda _service, address: lab.plane.stop_backend(backends.pop(address))
        made.serve("green", made.define(), 0, GROUPS["green"])
        yield made


@contextlib.contextmanager
def scaling(lab: Lab) -> Iterator[Asg]:
    """Return auto scaling whose group green has no instance yet."""
    backends: dict[str, Backend] = {}
    hosts = (f"127.250.0.{number}" for number in itertools.count(1))

    def start(_group: str, instance: str) -> int:
        backends[instance] = lab.plane.start_backend("green", "r2", boot=LISTENS_AFTER, host=instance)
        return backends[instance].port

    with asg(lab.alb, lambda: lab.clock.seconds, boot=2, drain=DRAIN + 2) as made:
        made.name = lambda: next(hosts)
        made.start = start
        made.stop = lambda _group, instance: lab.plane.stop_backend(backends.pop(instance))
        made.scale("green", 0, GROUPS["green"])
        yield made


def clock_of(lab: Lab) -> Clock:
    """Return the time of the lab."""
    return Clock(lambda: lab.clock.seconds, lab.clock.sleep)


def roll_out(lab: Lab, services: Ecs, count: int) -> dict[str, Any]:
    """Do what the module ecs_rollout_service does."""
    options = {"cluster": "lms", "service": "green", "task_definition": None, "definition": None, "desired_count": count, **WAIT}
    apis = Api(services.client, "ecs", lab.clock.sleep), Api(lab.alb.client, sleep=lab.clock.sleep)
    return _ecs_rollout_service.run(*apis, options, False, clock_of(lab))


def scale(lab: Lab, groups: Asg, count: int) -> dict[str, Any]:
    """Do what the module asg_capacity does."""
    options = {"name": "green", "min_size": None, "desired_capacity": count, "max_size": None, **WAIT}
    apis = Api(groups.client, "autoscaling", lab.clock.sleep), Api(lab.alb.client, sleep=lab.clock.sleep)
    return _asg_capacity.run(*apis, options, False, clock_of(lab))


def test_tasks_get_the_traffic_once_they_are_healthy(lab: Lab, services: Ecs, report: Report) -> None:
    lab.modify(blue=100, green=0)

    ready = roll_out(lab, services, TASKS)
    outcome = lab.controller(steps=AT_ONCE).until("retired")
    with pytest.raises(TrafficError, match="green has weight on"):
        roll_out(lab, services, 0)

    count = lab.count()
    report(count, ON, f"{outcome.phase}, then refused to scale down")
    assert (count.failed, lab.weights(), ready["groups"][0]["counts"]) == (0, ON_GREEN, {"healthy": TASKS}), count.words()


def test_tasks_that_run_get_the_traffic_before_they_listen(lab: Lab, services: Ecs, report: Report) -> None:
    # aws ecs update-service --desired-count, aws ecs wait services-stable, aws elbv2 modify-listener
    services.raw.update_service(cluster="lms", service="green", desiredCount=TASKS)
    lab.wait_until(lambda: services.raw.describe_services(cluster="lms", services=["green"])["services"][0]["runningCount"] == TASKS)
    services.raw.get_waiter("services_stable").wait(cluster="lms", services=["green"], WaiterConfig={"Delay": 0, "MaxAttempts": 1})
    lab.modify(green=100)

    count = lab.count()
    report(count, OFF, "502 until they listen")
    assert count.failed > 0


def test_the_live_tasks_are_scaled_down(lab: Lab, services: Ecs, report: Report) -> None:
    lab.modify(blue=100, green=0)
    roll_out(lab, services, TASKS)
    lab.controller(steps=AT_ONCE, retain=0).until("retired")

    services.raw.update_service(cluster="lms", service="green", desiredCount=0)
    lab.wait_until(lambda: not services.raw.describe_services(cluster="lms", services=["green"])["services"][0]["runningCount"])

    count = lab.count()
    report(count, OFF, "nobody serves")
    assert count.failed > 0


def test_tasks_without_traffic_leave_unnoticed(lab: Lab, services: Ecs, report: Report) -> None:
    lab.modify(blue=100, green=0)
    roll_out(lab, services, TASKS)

    gone = roll_out(lab, services, 0)

    count = lab.count()
    report(count, ON, "gone after they drained")
    assert (count.failed, lab.weights(), gone["groups"][0]["counts"], lab.of("green")) == (0, ON_BLUE, {}, []), count.words()


def test_instances_get_the_traffic_once_they_are_healthy(lab: Lab, report: Report) -> None:
    lab.modify(blue=100, green=0)
    with scaling(lab) as groups:
        ready = scale(lab, groups, TASKS)
        outcome = lab.controller(steps=AT_ONCE).until("retired")
        with pytest.raises(TrafficError, match="green has weight on"):
            scale(lab, groups, 0)

        count = lab.count()
    report(count, ON, f"{outcome.phase}, then refused to shrink")
    assert (count.failed, lab.weights(), ready["groups"][0]["counts"]) == (0, ON_GREEN, {"healthy": TASKS}), count.words()


def test_instances_in_service_get_the_traffic_before_they_listen(lab: Lab, report: Report) -> None:
    with scaling(lab) as groups:
        groups.raw.update_auto_scaling_group(AutoScalingGroupName="green", DesiredCapacity=TASKS)
        lab.wait_until(lambda: [groups.advance(), groups.states("green")][1] == ["InService"] * TASKS)
        lab.modify(green=100)

        count = lab.count()
    report(count, OFF, "502 until they listen")
    assert count.failed > 0
