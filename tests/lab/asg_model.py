# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Auto scaling groups in this process: moto, with instances that live.

An instance takes its time to boot, registers its target, and drains before it is terminated. Protected instances stay, and suspended
processes do nothing. Nothing happens by itself: each look lets happen what is due by the clock that was handed in.

Real backends are connected through two functions: `start(group, instance)` makes one and returns its port, or None for that of the target
group, and `stop(group, instance)` ends it. Targets are registered and deregistered through the API, by the id of the instance, so whatever
stands behind it sees them.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from unittest import mock

import boto3
from ansible_collections.bitflow.lms.tests.lab.elb_model import REGION, Alb, Recorder
from moto.autoscaling.exceptions import ValidationError
from moto.autoscaling.models import AutoScalingBackend
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import ActionResult

BEGINNING = datetime(2026, 11, 23, 10, 0, 0, tzinfo=timezone.utc)
LEAVING = frozenset({"Terminating"})


@dataclass
class Instance:
    """An instance of a group."""

    id: str
    due: float
    state: str = "Pending"
    health: str = "Healthy"
    protected: bool = False
    weight: int = 1
    port: int | None = None


@dataclass
class Group:
    """An auto scaling group."""

    name: str
    minimum: int
    desired: int
    maximum: int
    groups: Sequence[str]
    suspended: list[str] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)
    activities: list[dict[str, Any]] = field(default_factory=list)
    # Why no instance can be launched.
    out_of_stock: str = ""
    weight: int = 1
    protects: bool = False

    def counting(self) -> list[Instance]:
        """Return the instances that stay."""
        return [each for each in self.instances if each.state in ("Pending", "InService")]


class Shown(dict[str, Any]):
    """A group as AWS answers with it, with the name that moto asks for."""

    @property
    def name(self) -> str:
        """Return its name."""
        return str(self["AutoScalingGroupName"])


class Asg:
    """Auto scaling with the groups that a test makes."""

    def __init__(self, alb: Alb, now: Callable[[], float], boot: float = 30, drain: float = 20) -> None:
        self.alb = alb
        self.now = now
        self.boot = boot
        self.drain = drain
        self.groups: dict[str, Group] = {}
        self.start: Callable[[str, str], int | None] = lambda _group, _instance: None
        self.stop: Callable[[str, str], None] = lambda _group, _instance: None
        self._numbers = itertools.count(1)
        # Where targets are really asked, an instance's id has to be an address.
        self.name: Callable[[], str] = lambda: f"i-{next(self._numbers):017x}"
        self._seen: float | None = None
        # A target stays until its instance has gone.
        alb.world.drain_looks = 10**9
        self.raw = _client()
        self.client = Recorder(self.raw)

    # What a test makes

    def scale(self, name: str, desired: int, *groups: str, minimum: int = 0, maximum: int = 10, **more: Any) -> Group:
        """Make a group that has been running for a while."""
        made = Group(name, minimum, desired, maximum, [self.alb.groups[group] for group in groups], **more)
        self.groups[name] = made
        boot, self.boot = self.boot, 0
        self.advance()
        self.boot = boot
        return made

    def states(self, name: str) -> list[str]:
        """Return the states of the instances of a group."""
        return sorted(each.state for each in self.groups[name].instances)

    # What happens

    def _look(self) -> None:
        """Let happen what is due, unless that was done at this moment."""
        if self._seen != self.now():
            self.advance()

    def advance(self) -> None:
        """Let everything happen that is due."""
        self._seen = self.now()
        for group in self.groups.values():
            self._fit(group)
            for instance in [*group.instances]:
                self._go_on(group, instance)

    def _fit(self, group: Group) -> None:
        """Launch what lacks and terminate what is too much."""
        lacking = group.desired - sum(each.weight for each in group.counting())
        while lacking > 0 and "Launch" not in group.suspended:
            if group.out_of_stock:
                self._note(group, "Launching a new EC2 instance", "Failed", group.out_of_stock)
                return
            name = self.name()
            group.instances.append(Instance(name, self.now() + self.boot, protected=group.protects, weight=group.weight))
            self._note(group, f"Launching a new EC2 instance: {name}", "Successful")
            lacking -= group.weight
        if "Terminate" in group.suspended:
            return
        for instance in [each for each in group.counting() if not each.protected]:
            if sum(each.weight for each in group.counting()) - instance.weight < group.desired:
                return
            self._deregister(group, instance)
            instance.state, instance.due = "Terminating", self.now() + self.drain
            self._note(group, f"Terminating EC2 instance: {instance.id}", "Successful")

    def _go_on(self, group: Group, instance: Instance) -> None:
        """Let an instance go on."""
        if instance.state == "Pending" and self.now() >= instance.due:
            instance.state = "InService"
            instance.port = self.start(group.name, instance.id)
            if "AddToLoadBalancer" not in group.suspended:
                self._target(group, instance, self.alb.raw.register_targets)
        elif instance.state == "Terminating" and self.now() >= instance.due:
            group.instances.remove(instance)
            self.stop(group.name, instance.id)
            for arn in group.groups:
                targets = self.alb.world.targets.get(arn, {})
                for key in [key for key in targets if key[0] == instance.id]:
                    del targets[key]

    def _deregister(self, group: Group, instance: Instance) -> None:
        """Take an instance out of the load balancer."""
        if instance.state == "InService":
            self._target(group, instance, self.alb.raw.deregister_targets)

    def _target(self, group: Group, instance: Instance, call: Callable[..., Any]) -> None:
        """Tell the load balancer of an instance."""
        for arn in group.groups:
            call(TargetGroupArn=arn, Targets=[{"Id": instance.id, **({"Port": instance.port} if instance.port else {})}])

    def _note(self, group: Group, description: str, status: str, message: str = "") -> None:
        """Note an activity, the newest first as AWS does."""
        number = next(self._numbers)
        activity = {
            "ActivityId": f"activity-{number}",
            "AutoScalingGroupName": group.name,
            "Description": description,
            "Cause": "",
            "StartTime": BEGINNING,
            "StatusCode": status,
            **({"StatusMessage": message} if message else {}),
        }
        group.activities.insert(0, activity)

    # What the API answers

    def describe_auto_scaling_groups(self, names: Sequence[str], filters: Any = None) -> list[Shown]:
        """Answer."""
        del filters
        self._look()
        return [self._shown(self.groups[name]) for name in names if name in self.groups]

    def _shown(self, group: Group) -> Shown:
        """Return a group as AWS answers with it."""
        return Shown(
            AutoScalingGroupName=group.name,
            MinSize=group.minimum,
            DesiredCapacity=group.desired,
            MaxSize=group.maximum,
            DefaultCooldown=300,
            AvailabilityZones=[f"{REGION}a"],
            HealthCheckType="ELB",
            CreatedTime=BEGINNING,
            TargetGroupARNs=list(group.groups),
            TrafficSources=[{"Identifier": arn, "Type": "elbv2"} for arn in group.groups],
            SuspendedProcesses=[{"ProcessName": name, "SuspensionReason": "User suspended"} for name in group.suspended],
            Instances=[
                {
                    "InstanceId": each.id,
                    "AvailabilityZone": f"{REGION}a",
                    "LifecycleState": each.state,
                    "HealthStatus": each.health,
                    "ProtectedFromScaleIn": each.protected,
                    **({"WeightedCapacity": str(each.weight)} if each.weight > 1 else {}),
                }
                for each in group.instances
            ],
        )

    def update_auto_scaling_group(self, **given: Any) -> None:
        """Answer, with the limits that AWS keeps."""
        group = self.groups[given["name"]]
        self._look()
        minimum = group.minimum if given["min_size"] is None else given["min_size"]
        maximum = group.maximum if given["max_size"] is None else given["max_size"]
        desired = given["desired_capacity"]
        if desired is None:
            desired = min(max(group.desired, minimum), maximum)
        if not minimum <= desired <= maximum:
            raise ValidationError(f"Desired capacity:{desired} must be between the specified min size:{minimum} and max size:{maximum}")
        group.minimum, group.desired, group.maximum = minimum, desired, maximum
        self._seen = None

    def describe_scaling_activities(self, name: str) -> list[dict[str, Any]]:
        """Answer."""
        self._look()
        return self.groups[name].activities


@functools.cache
def _client() -> Any:
    """Return a client, whose making takes longer than a test."""
    return boto3.client("autoscaling", region_name=REGION)


@contextlib.contextmanager
def asg(alb: Alb, now: Callable[[], float], **options: float) -> Iterator[Asg]:
    """Give moto's auto scaling what it lacks. AWS has to be in this process already."""
    made = Asg(alb, now, **options)

    def activities(response: Any) -> ActionResult:
        return ActionResult({"Activities": made.describe_scaling_activities(response._get_param("AutoScalingGroupName"))})

    with contextlib.ExitStack() as stack:
        for name in ("describe_auto_scaling_groups", "update_auto_scaling_group"):
            stack.enter_context(mock.patch.object(AutoScalingBackend, name, _handed_on(getattr(made, name))))
        stack.enter_context(mock.patch.object(AutoScalingResponse, "describe_scaling_activities", activities))
        yield made


def _handed_on(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of moto that hands its call on."""
    return lambda _backend, *arguments, **named: method(*arguments, **named)
