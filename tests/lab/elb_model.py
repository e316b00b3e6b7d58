# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An Application Load Balancer in this process: moto, with what its Elastic Load Balancing lacks.

Targets are told apart by id and port, have states that a test sets, are unused while no action names their group, and drain. Answers have
AWS's shape: a single group stands in them twice, and secrets do not stand in them. Weights and groups are checked.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import boto3
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.core.exceptions import ServiceException
from moto.core.models import DEFAULT_ACCOUNT_ID as ACCOUNT
from moto.elbv2 import models
from moto.elbv2.exceptions import TargetGroupNotFoundError

REGION = "eu-central-1"

Key = tuple[str, int]


class RefusedError(ServiceException):
    """What AWS refuses and moto takes."""

    code = "ValidationError"


@dataclass
class State:
    """A target as AWS has it."""

    state: str = "healthy"
    reason: str = ""


@dataclass
class World:
    """What moto does not keep: the states of the targets, by the ARN of their group."""

    targets: dict[str, dict[Key, State]] = field(default_factory=dict)
    # What newly registered targets become.
    arriving: State = field(default_factory=State)
    # Whether groups do not say which load balancers they belong to.
    forgetful: bool = False
    # How often a draining target is still seen.
    drain_looks: int = 0
    # Whether it is seen until somebody takes it away, as the data plane does after the delay of its group.
    drains: bool = False


def _refuse_bad_forward(action: Mapping[str, Any]) -> None:
    """Refuse what AWS refuses in an action."""
    groups = (action.get("ForwardConfig") or {}).get("TargetGroups") or []
    if len(groups) > 5:
        raise RefusedError("A forward action takes up to 5 target groups")
    if len(groups) > 1 and "TargetGroupArn" in action:
        raise RefusedError("You cannot specify both a target group ARN and multiple target groups in a forward action")
    for group in groups or [action]:
        arn = group.get("TargetGroupArn")
        if arn is not None and arn not in models.elbv2_backends[ACCOUNT][REGION].target_groups:
            raise TargetGroupNotFoundError()
        if not isinstance(group.get("Weight", 1), int) or not 0 <= group.get("Weight", 1) <= 999:
            raise RefusedError("Weight must be between 0 and 999")
    oidc = action.get("AuthenticateOidcConfig")
    if oidc is not None and "ClientSecret" not in oidc and not oidc.get("UseExistingClientSecret"):
        raise RefusedError("A client secret must be specified")


def _as_answered(action: Mapping[str, Any]) -> dict[str, Any]:
    """Return an action as AWS answers with it."""
    answer = copy.deepcopy(dict(action))
    if answer["Type"] == "forward":
        config = answer.setdefault("ForwardConfig", {})
        groups = config.setdefault("TargetGroups", [{"TargetGroupArn": answer.get("TargetGroupArn"), "Weight": 1}])
        config.setdefault("TargetGroupStickinessConfig", {"Enabled": False})
        # In an order of its own.
        groups.sort(key=lambda group: group["TargetGroupArn"][::-1])
        if len(groups) == 1:
            answer["TargetGroupArn"] = groups[0]["TargetGroupArn"]
    for key in ("ClientSecret", "UseExistingClientSecret"):
        answer.get("AuthenticateOidcConfig", {}).pop(key, None)
    return answer


@contextlib.contextmanager
def _patched(world: World) -> Iterator[None]:
    """Give moto's load balancer what it lacks."""

    def states(group: Any) -> dict[Key, State]:
        return world.targets.setdefault(group.arn, {})

    def key(group: Any, target: Mapping[str, Any]) -> Key:
        return target["Id"], int(target.get("Port") or group.port)

    def register(group: Any, targets: Sequence[Mapping[str, Any]]) -> None:
        for target in targets:
            states(group)[key(group, target)] = copy.copy(world.arriving)

    def deregister(group: Any, targets: Sequence[Mapping[str, Any]]) -> None:
        for target in targets:
            if key(group, target) in states(group):
                states(group)[key(group, target)] = State("draining", "Target.DeregistrationInProgress")

    def describe_target_health(backend: Any, target_group_arn: str, _targets: Any) -> list[Any]:
        group = backend.target_groups.get(target_group_arn)
        if group is None:
            raise TargetGroupNotFoundError()
        attached = backend._any_listener_using(target_group_arn)
        found = []
        for (name, port), state in list(states(group).items()):
            shown = state if attached or state.state == "draining" else State("unused", "Target.NotInUse")
            found.append(models.FakeHealthStatus(name, str(port), str(port), shown.state, shown.reason or None))
            if state.state == "draining" and not world.drains:
                if world.drain_looks <= 0:
                    del states(group)[(name, port)]
                world.drain_looks -= 1
        return found

    def describe_target_groups(backend: Any, *arguments: Any, **named: Any) -> Any:
        groups = list(original_groups(backend, *arguments, **named))
        for group in groups:
            group.load_balancer_arns = [
                arn
                for arn, balancer in backend.load_balancers.items()
                if not world.forgetful
                and any(
                    group.arn in backend._get_target_group_arns_from(action_data=action.data)
                    for listener in balancer.listeners.values()
                    for rule in listener.rules.values()
                    for action in rule.actions
                )
            ]
        return groups

    def make_action(action: Any, data: dict[str, Any]) -> None:
        _refuse_bad_forward(data)
        # As it came: moto shares what it was given between a listener and its default rule.
        original_action(action, _as_answered(data))

    original_groups = models.ELBv2Backend.describe_target_groups
    original_action = models.FakeAction.__init__
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in (
            (models.FakeTargetGroup, "register", register),
            (models.FakeTargetGroup, "deregister", deregister),
            (models.ELBv2Backend, "describe_target_health", describe_target_health),
            (models.ELBv2Backend, "describe_target_groups", describe_target_groups),
            (models.FakeAction, "__init__", make_action),
        ):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def _raise(error: Exception | None) -> None:
    """Raise an error, if there is one."""
    if error:
        raise error


class Recorder:
    """A client that notes its calls, and that fails where a test says so."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.calls: list[tuple[str, dict[str, Any]]] = []
        # Asked before a call, with its method and how many calls of that method there were; an error is raised, whatever else happens.
        self.fault: Callable[[str, int], Exception | None] = lambda _method, _number: None
        # The same, after the call was done.
        self.lost: Callable[[str, int], Exception | None] = lambda _method, _number: None

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(**parameters: Any) -> Any:
            self.calls.append((method, parameters))
            number = sum(name == method for name, _parameters in self.calls)
            _raise(self.fault(method, number))
            reply = getattr(self._client, method)(**parameters)
            _raise(self.lost(method, number))
            return reply

        return call

    def changes(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the calls that may change something."""
        return [call for call in self.calls if not call[0].startswith("describe_")]


def refusal(code: str, status: int = 400, message: str = "said no") -> ClientError:
    """Return an error as the SDK raises it."""
    return ClientError({"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Operation")


class Alb:
    """A load balancer with the listeners, rules and groups that a test makes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.raw = boto3.client("elbv2", region_name=REGION)
        self.client = Recorder(self.raw)
        network = boto3.client("ec2", region_name=REGION)
        self._vpc = network.describe_vpcs()["Vpcs"][0]["VpcId"]
        subnets = [subnet["SubnetId"] for subnet in network.describe_subnets()["Subnets"][:2]]
        self.arn = self.raw.create_load_balancer(Name="lms", Subnets=subnets)["LoadBalancers"][0]["LoadBalancerArn"]
        self.groups: dict[str, str] = {}
        self._priorities = itertools.count(10, 10)

    def group(self, name: str, healthy: int = 0, port: int = 80) -> str:
        """Make a target group with so many healthy targets."""
        made = self.raw.create_target_group(Name=name, Protocol="HTTP", Port=port, VpcId=self._vpc, TargetType="ip")
        self.groups[name] = made["TargetGroups"][0]["TargetGroupArn"]
        self.world.targets[self.groups[name]] = {(f"10.0.{len(self.groups)}.{number}", port): State() for number in range(1, healthy + 1)}
        return self.groups[name]

    def states(self, group: str) -> dict[Key, State]:
        """Return the states of a group's targets, to be changed."""
        return self.world.targets[self.groups[group]]

    def forward(self, sticky: int = 0, **weights: int) -> dict[str, Any]:
        """Return an action that forwards."""
        stickiness = {"Enabled": True, "DurationSeconds": sticky} if sticky else {"Enabled": False}
        groups = [{"TargetGroupArn": self.groups[name], "Weight": weight} for name, weight in weights.items()]
        return {"Type": "forward", "ForwardConfig": {"TargetGroups": groups, "TargetGroupStickinessConfig": stickiness}}

    def listener(self, port: int, *actions: Mapping[str, Any], **more: Any) -> str:
        """Make a listener."""
        made = self.raw.create_listener(
            **{"LoadBalancerArn": self.arn, "Protocol": "HTTP", "Port": port, "DefaultActions": [*actions], **more}
        )
        return str(made["Listeners"][0]["ListenerArn"])

    def rule(self, listener: str, *actions: Mapping[str, Any], priority: int | None = None) -> str:
        """Make a rule."""
        conditions = [{"Field": "path-pattern", "Values": ["/api/*"]}]
        made = self.raw.create_rule(
            ListenerArn=listener, Priority=priority or next(self._priorities), Conditions=conditions, Actions=[*actions]
        )
        return str(made["Rules"][0]["RuleArn"])

    def actions(self, arn: str) -> list[dict[str, Any]]:
        """Return the actions of a listener or rule."""
        if ":listener-rule/" in arn:
            return list(self.raw.describe_rules(RuleArns=[arn])["Rules"][0]["Actions"])
        return list(self.raw.describe_listeners(ListenerArns=[arn])["Listeners"][0]["DefaultActions"])

    def weights(self, arn: str) -> dict[str, int]:
        """Return the weights of a listener or rule by the names of the groups."""
        forward = next(action for action in self.actions(arn) if action["Type"] == "forward")
        return {group["TargetGroupArn"].split("/")[1]: group["Weight"] for group in forward["ForwardConfig"]["TargetGroups"]}

    def by_hand(self, listener: str, **weights: int) -> None:
        """Change a listener as somebody at the console does."""
        self.raw.modify_listener(ListenerArn=listener, DefaultActions=[self.forward(**weights)])


@contextlib.contextmanager
def aws() -> Iterator[World]:
    """Put AWS into this process."""
    credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": REGION}
    world = World()
    with mock.patch.dict("os.environ", credentials), mock_aws(), _patched(world):
        yield world


def new_alb(world: World) -> Alb:
    """Return a load balancer in an AWS that has no other."""
    models.elbv2_backends[ACCOUNT][REGION].reset()
    world.targets.clear()
    world.arriving, world.drain_looks, world.forgetful, world.drains = State(), 0, False, False
    return Alb(world)


class FakeClock:
    """A time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.time = 0.0
        self.pauses: list[float] = []
        # Called after each pause with the time.
        self.events: Callable[[float], None] = lambda _time: None

    def now(self) -> float:
        """Return the time."""
        return self.time

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.pauses.append(seconds)
        self.time += seconds
        self.events(self.time)
