# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ECS in this process: moto, with services and tasks that live.

A task takes its time to boot, registers its target, drains before it stops, and fails where a test says so. A deployment replaces tasks,
fails at its circuit breaker and goes back. A single task ends with an exit code. Nothing happens by itself: each look lets happen what is
due by the clock that was handed in.

Real backends are connected through two functions: `start(service, definition)` makes one and returns its address, `stop(service, address)`
ends it. Targets are registered and deregistered through the API, so whatever stands behind it sees them.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from unittest import mock

import boto3
from ansible_collections.bitflow.lms.tests.lab.elb_model import REGION, Alb, Key, Recorder
from moto.core.models import DEFAULT_ACCOUNT_ID as ACCOUNT
from moto.core.responses import ActionResult
from moto.ecs.exceptions import InvalidParameterException, ServiceNotFoundException
from moto.ecs.models import EC2ContainerServiceBackend, ecs_backends
from moto.ecs.responses import EC2ContainerServiceResponse

BEGINNING = datetime(2026, 11, 23, 10, 0, 0, tzinfo=timezone.utc)
# After how many failures in a row the circuit breaker opens.
BREAKER = 3
# For how long AWS tells of a deployment that failed (seconds).
TOLD = 60
GONE = frozenset({"STOPPED"})
LEAVING = frozenset({"DEACTIVATING", "STOPPED"})


@dataclass(frozen=True)
class Fate:
    """What becomes of the tasks of a definition."""

    # None for a task that runs on.
    exit_code: int | None = None
    reason: str = "Essential container in task exited"
    stop_code: str = "EssentialContainerExited"
    # What the container says, where it did not even start.
    container_reason: str = ""
    # For how long it runs before it ends (seconds).
    after: float = 0
    fails: bool = False


@dataclass
class Task:
    """A task of a service, or one by itself."""

    arn: str
    definition: str
    started_by: str
    due: float
    status: str = "PENDING"
    service: str = ""
    address: Key | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    created: float = 0
    since: float = 0
    fate: Fate = Fate()
    stop_code: str = ""
    reason: str = ""
    exit_code: int | None = None
    container_reason: str = ""


@dataclass
class Deployment:
    """A deployment of a service."""

    id: str
    definition: str
    state: str = "IN_PROGRESS"
    reason: str = ""
    failed: int = 0
    # Whether a task of it ever ran: then failures are no longer counted.
    ran: bool = False
    # Until when AWS tells of it although it failed.
    told_until: float = 0


@dataclass
class Service:
    """A service, its newest deployment first."""

    name: str
    desired: int
    groups: Sequence[str]
    deployments: list[Deployment]
    breaker: bool
    rollback: bool
    more: Mapping[str, Any]
    events: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)

    @property
    def primary(self) -> Deployment:
        """Return the newest deployment."""
        return self.deployments[0]

    def of(self, deployment: Deployment, *, leaving: bool = False) -> list[Task]:
        """Return the tasks of a deployment, with or without those that drain."""
        out = GONE if leaving else LEAVING
        return [task for task in self.tasks if task.started_by == deployment.id and task.status not in out]


class Ecs:
    """A cluster with the services and definitions that a test makes."""

    def __init__(self, alb: Alb, now: Callable[[], float], boot: float = 10, drain: float = 20, grace: float = 0) -> None:
        self.alb = alb
        self.now = now
        self.boot = boot
        self.drain = drain
        # For how long after its start the load balancer's checks of a task do not count (seconds).
        self.grace = grace
        # By family and revision.
        self.fates: dict[str, Fate] = {}
        # What tasks by themselves become, by family and revision.
        self.endings: dict[str, Fate] = {}
        # What RunTask answers in place of a task.
        self.unplaced: list[dict[str, str]] = []
        self.forgets_tasks = False
        self.services: dict[str, Service] = {}
        self.single: list[Task] = []
        self.tokens: dict[str, Task] = {}
        self.start: Callable[[str, str], Key] = lambda _service, _definition: (f"10.9.{next(self._numbers)}.1", 8080)
        self.stop: Callable[[str, Key], None] = lambda _service, _address: None
        self._numbers = itertools.count(1)
        self._tick = itertools.count(1)
        self._seen: float | None = None
        # A target stays until its task has gone.
        alb.world.drain_looks = 10**9
        self.raw = _client()
        self.client = Recorder(self.raw)
        self.raw.create_cluster(clusterName="lms")

    # What a test makes

    def define(self, family: str = "lms", image: str = "lms:1", **more: Any) -> str:
        """Register a task definition and return its ARN."""
        container = {"name": "app", "image": image, "memory": 512, "portMappings": [{"containerPort": 8080}], **more.pop("container", {})}
        given = {"family": family, "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"], "cpu": "256", "memory": "512", **more}
        made = self.raw.register_task_definition(containerDefinitions=[container], **given)
        return str(made["taskDefinition"]["taskDefinitionArn"])

    def serve(
        self, name: str, definition: str, count: int, *groups: str, breaker: bool = False, rollback: bool = False, **more: Any
    ) -> Service:
        """Make a service that has been running for a while."""
        first = Deployment(self._id(), definition, "COMPLETED", "ECS deployment completed.", ran=True)
        made = Service(name, count, [self.alb.groups[group] for group in groups], [first], breaker, rollback, more)
        self.services[name] = made
        boot, self.boot = self.boot, 0
        self.advance()
        self.boot = boot
        return made

    def running(self, name: str) -> list[str]:
        """Return the definitions of the running tasks of a service."""
        return sorted(_short(task.definition) for task in self.services[name].tasks if task.status == "RUNNING")

    # What happens

    def _look(self) -> None:
        """Let happen what is due, unless that was done at this moment."""
        if self._seen != self.now():
            self.advance()

    def advance(self) -> None:
        """Let everything happen that is due."""
        self._seen = self.now()
        for service in self.services.values():
            sick = self._sick_of(service)
            for task in [*service.tasks]:
                self._go_on(service, task, sick)
            self._break(service)
            self._replace(service)
            # Without a boot time they run at once.
            for task in [*service.tasks]:
                self._go_on(service, task, {})
            self._settle(service)
        for task in self.single:
            self._go_on_alone(task)

    def _go_on(self, service: Service, task: Task, sick: Mapping[Key, str]) -> None:
        """Let a task of a service go on."""
        if task.status == "PENDING" and self.now() >= task.due:
            fate = self.fates.get(_short(task.definition), Fate())
            deployment = next((each for each in service.deployments if each.id == task.started_by), None)
            if fate.fails:
                self._end(task, fate)
                self._say(service, f"(service {service.name}) has stopped 1 running tasks: (task {task.arn.rpartition('/')[2]}).")
                if deployment and not deployment.ran:
                    deployment.failed += 1
                return
            task.status, task.due, task.since = "RUNNING", self.now() + fate.after, self.now()
            task.fate = fate
            task.address = self.start(service.name, _short(task.definition))
            if deployment:
                deployment.ran, deployment.failed = True, 0
            for group in service.groups:
                self.alb.raw.register_targets(TargetGroupArn=group, Targets=[{"Id": task.address[0], "Port": task.address[1]}])
        elif task.status == "RUNNING":
            if task.fate.exit_code is not None and self.now() >= task.due:
                self._leave(service, task)
                self._gone(service, task, task.fate)
            elif task.address in sick and self.now() >= task.since + self.grace:
                group = sick[task.address]
                self._leave(service, task)
                self._gone(
                    service, task, Fate(143, f"Task failed ELB health checks in (target-group {group})", "ServiceSchedulerInitiated")
                )
        elif task.status == "DEACTIVATING" and self.now() >= task.due:
            self._gone(service, task, Fate(0, "Scaling activity initiated by (deployment)", "ServiceSchedulerInitiated"))

    def _sick_of(self, service: Service) -> dict[Key, str]:
        """Return the unhealthy targets of a service with their groups."""
        return {
            (found["Target"]["Id"], found["Target"]["Port"]): group
            for group in service.groups
            for found in self.alb.raw.describe_target_health(TargetGroupArn=group)["TargetHealthDescriptions"]
            if found["TargetHealth"]["State"] == "unhealthy"
        }

    def _leave(self, service: Service, task: Task) -> None:
        """Take a task out of the load balancer, and let it drain."""
        if task.status == "RUNNING" and task.address:
            for group in service.groups:
                self.alb.raw.deregister_targets(TargetGroupArn=group, Targets=[{"Id": task.address[0], "Port": task.address[1]}])
            task.status, task.due = "DEACTIVATING", self.now() + self.drain
        elif task.status == "PENDING":
            self._end(task, Fate(None, "Scaling activity initiated by (deployment)", "ServiceSchedulerInitiated"))

    def _gone(self, service: Service, task: Task, fate: Fate) -> None:
        """End a task that has drained."""
        self._end(task, fate)
        if task.address:
            self.stop(service.name, task.address)
            for group in service.groups:
                self.alb.world.targets.get(group, {}).pop(task.address, None)

    def _end(self, task: Task, fate: Fate) -> None:
        """Stop a task."""
        task.status, task.stop_code, task.reason = "STOPPED", fate.stop_code, fate.reason
        task.exit_code, task.container_reason, task.due = fate.exit_code, fate.container_reason, self.now()

    def _break(self, service: Service) -> None:
        """Open the circuit breaker of a deployment that failed too often."""
        primary = service.primary
        if not service.breaker or primary.state != "IN_PROGRESS" or primary.failed < BREAKER:
            return
        primary.state, primary.reason = "FAILED", "ECS deployment circuit breaker: tasks failed to start."
        primary.told_until = self.now() + TOLD
        self._say(service, f"(service {service.name}) (deployment {primary.id}) deployment failed: tasks failed to start.")
        if service.rollback and len(service.deployments) > 1:
            before = service.deployments[1]
            before.state, before.reason = "IN_PROGRESS", f"ECS deployment circuit breaker: rolling back to deploymentId {before.id}."
            service.deployments[:2] = [before, primary]

    def _replace(self, service: Service) -> None:
        """Start what lacks and stop what is too much."""
        primary = service.primary
        if primary.state != "FAILED":
            for _number in range(service.desired - len(service.of(primary))):
                service.tasks.append(self._new(primary.definition, primary.id, service.name))
        for task in service.of(primary)[service.desired :]:
            self._leave(service, task)
        enough = sum(task.status == "RUNNING" for task in service.of(primary)) >= service.desired
        for old in service.deployments[1:]:
            if enough or old.state == "FAILED":
                for task in service.of(old):
                    self._leave(service, task)

    def _settle(self, service: Service) -> None:
        """Complete a deployment whose tasks run, and forget those without any."""
        primary = service.primary
        if primary.state == "IN_PROGRESS" and sum(task.status == "RUNNING" for task in service.of(primary)) == service.desired:
            primary.state, primary.reason = "COMPLETED", f"ECS deployment {primary.id} completed."
            self._say(service, f"(service {service.name}) has reached a steady state.")
        service.deployments[1:] = [
            each for each in service.deployments[1:] if service.of(each, leaving=True) or self.now() < each.told_until
        ]

    def _go_on_alone(self, task: Task) -> None:
        """Let a task by itself go on."""
        ending = self.endings.get(_short(task.definition), Fate(0))
        if task.status == "PENDING" and self.now() >= task.due:
            task.status, task.due = "RUNNING", task.due + ending.after
        if task.status == "RUNNING" and self.now() >= task.due:
            self._end(task, ending)

    def _new(self, definition: str, started_by: str, service: str = "", overrides: Mapping[str, Any] | None = None) -> Task:
        """Make a task."""
        arn = f"arn:aws:ecs:{REGION}:{ACCOUNT}:task/lms/{next(self._tick):032x}"
        return Task(arn, definition, started_by, self.now() + self.boot, service=service, overrides=overrides or {}, created=self.now())

    def _id(self) -> str:
        """Return the id of a deployment."""
        return f"ecs-svc/{next(self._tick):019d}"

    def _say(self, service: Service, message: str) -> None:
        """Note an event, the newest first as AWS does."""
        service.events.insert(0, {"id": f"event-{next(self._tick)}", "createdAt": BEGINNING, "message": message})

    # What the API answers

    def _found(self, name: str) -> Service:
        """Return a service by its name or ARN."""
        found = self.services.get(name.rpartition("/")[2])
        if found is None:
            raise ServiceNotFoundException
        return found

    def describe_services(self, _cluster: str, names: Sequence[str]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
        """Answer."""
        self._look()
        known = [self.services[name.rpartition("/")[2]] for name in names if name.rpartition("/")[2] in self.services]
        missing = [{"arn": name, "reason": "MISSING"} for name in names if name.rpartition("/")[2] not in self.services]
        return [self._shown(service) for service in known], missing

    def update_service(self, properties: Mapping[str, Any]) -> dict[str, Any]:
        """Answer."""
        service = self._found(properties["service"])
        self._look()
        definition = properties.get("task_definition")
        if properties.get("desired_count") is not None:
            service.desired = properties["desired_count"]
        if definition or properties.get("force_new_deployment"):
            service.deployments.insert(0, Deployment(self._id(), definition or service.primary.definition))
        self._seen = None
        return self._shown(service)

    def _shown(self, service: Service) -> dict[str, Any]:
        """Return a service as AWS answers with it."""
        live = [task for each in service.deployments for task in service.of(each)]
        return {
            "serviceArn": f"arn:aws:ecs:{REGION}:{ACCOUNT}:service/lms/{service.name}",
            "serviceName": service.name,
            "clusterArn": f"arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/lms",
            "loadBalancers": [{"targetGroupArn": group, "containerName": "app", "containerPort": 8080} for group in service.groups],
            "status": "ACTIVE",
            "desiredCount": service.desired,
            "runningCount": sum(task.status == "RUNNING" for task in live),
            "pendingCount": sum(task.status == "PENDING" for task in live),
            "launchType": "FARGATE",
            "platformVersion": "LATEST",
            "taskDefinition": service.primary.definition,
            "deploymentConfiguration": {"deploymentCircuitBreaker": {"enable": service.breaker, "rollback": service.rollback}},
            "deploymentController": {"type": "ECS"},
            "schedulingStrategy": "REPLICA",
            "networkConfiguration": {
                "awsvpcConfiguration": {"subnets": ["subnet-1"], "securityGroups": ["sg-1"], "assignPublicIp": "DISABLED"}
            },
            "events": service.events,
            "deployments": [self._shown_deployment(service, each) for each in service.deployments],
            **service.more,
        }

    def _shown_deployment(self, service: Service, deployment: Deployment) -> dict[str, Any]:
        """Return a deployment as AWS answers with it."""
        tasks = service.of(deployment)
        return {
            "id": deployment.id,
            "status": "PRIMARY" if deployment is service.primary else "ACTIVE",
            "taskDefinition": deployment.definition,
            "desiredCount": service.desired if deployment is service.primary else 0,
            "runningCount": sum(task.status == "RUNNING" for task in tasks),
            "pendingCount": sum(task.status == "PENDING" for task in tasks),
            "failedTasks": deployment.failed,
            "rolloutState": deployment.state,
            "rolloutStateReason": deployment.reason or f"ECS deployment {deployment.id} in progress.",
        }

    def _all_tasks(self) -> list[Task]:
        """Return every task that AWS still knows."""
        found = [*self.single, *(task for service in self.services.values() for task in service.tasks)]
        return [task for task in found if not (self.forgets_tasks and task.status == "STOPPED")]

    def list_tasks(
        self, _cluster: str, _instance: Any, family: str | None, started_by: str | None, service: str | None, status: str | None
    ) -> list[Any]:
        """Answer."""
        if started_by and (family or service):
            raise InvalidParameterException("startedBy must be the only filter")
        self._look()
        wanted = [
            task
            for task in self._all_tasks()
            if (task.status in LEAVING) == (status == "STOPPED")
            and (not family or _short(task.definition).partition(":")[0] == family)
            and (not started_by or task.started_by == started_by)
            and (not service or task.service == service)
        ]
        return [SimpleNamespace(task_arn=task.arn) for task in wanted]

    def describe_tasks(self, _cluster: str, arns: Sequence[str]) -> list[dict[str, Any]]:
        """Answer."""
        self._look()
        return [self._shown_task(task) for task in self._all_tasks() if task.arn in arns]

    def _shown_task(self, task: Task) -> dict[str, Any]:
        """Return a task as AWS answers with it."""
        container = {"name": "app", "lastStatus": task.status}
        if task.exit_code is not None:
            container["exitCode"] = task.exit_code  # type: ignore[assignment]
        if task.container_reason:
            container["reason"] = task.container_reason
        shown = {
            "taskArn": task.arn,
            "taskDefinitionArn": task.definition,
            "startedBy": task.started_by,
            "lastStatus": task.status,
            "desiredStatus": "STOPPED" if task.status in LEAVING else "RUNNING",
            "overrides": dict(task.overrides),
            "createdAt": BEGINNING + timedelta(seconds=task.created),
            "containers": [container],
        }
        if task.status == "STOPPED":
            shown.update(stopCode=task.stop_code, stoppedReason=task.reason, stoppedAt=BEGINNING + timedelta(seconds=task.due))
        return shown

    def run_task(self, asked: Callable[..., Any]) -> dict[str, Any]:
        """Answer. A token that was used starts nothing."""
        self._look()
        if self.unplaced:
            return {"tasks": [], "failures": self.unplaced}
        token = asked("clientToken")
        definition = self.raw.describe_task_definition(taskDefinition=asked("taskDefinition"))["taskDefinition"]["taskDefinitionArn"]
        if token not in self.tokens:
            self.tokens[token] = self._new(definition, asked("startedBy") or "", overrides=asked("overrides"))
            self.single.append(self.tokens[token])
        return {"tasks": [self._shown_task(self.tokens[token])], "failures": []}


@functools.cache
def _client() -> Any:
    """Return a client, whose making takes longer than a test."""
    return boto3.client("ecs", region_name=REGION)


def _short(definition: str) -> str:
    """Return family and revision."""
    return definition.rpartition("/")[2]


def forget_definitions() -> None:
    """Let a test begin with the revision 1."""
    ecs_backends[ACCOUNT][REGION].task_definitions.clear()


@contextlib.contextmanager
def ecs(alb: Alb, now: Callable[[], float], **options: float) -> Iterator[Ecs]:
    """Give moto's ECS what it lacks. AWS has to be in this process already."""
    made = Ecs(alb, now, **options)
    backend = EC2ContainerServiceBackend

    def run_task(response: Any) -> ActionResult:
        return ActionResult(made.run_task(response._get_param))

    with contextlib.ExitStack() as stack:
        for name in ("describe_services", "update_service", "list_tasks", "describe_tasks"):
            stack.enter_context(mock.patch.object(backend, name, _handed_on(getattr(made, name))))
        stack.enter_context(mock.patch.object(EC2ContainerServiceResponse, "run_task", run_task))
        yield made


def _handed_on(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of moto that hands its call on."""
    return lambda _backend, *arguments: method(*arguments)
