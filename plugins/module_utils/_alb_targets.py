# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Targets of a group, each by its id and port: registered until all are healthy, deregistered until all are gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._alb import (
    NOT_REGISTERED,
    find_groups,
    group_name,
    is_unattached,
    read_forward_weights,
    read_targets,
    rules_of,
)
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import (
    DRAINING,
    HEALTHY,
    STATES,
    UNUSED,
    Target,
    TrafficError,
    UnreadyError,
)
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock

PRESENT = "present"
ABSENT = "absent"
# What a target looks like that the group does not have.
MISSING = "missing"

# Id and port of a target.
Key = tuple[str, "int | None"]


@dataclass(frozen=True)
class Settings:
    """What the options want."""

    state: str = PRESENT
    wait: bool = True
    wait_timeout: float = 600
    interval: float = 5
    # How many looks in a row have to find all targets healthy.
    consecutive: int = 3
    # How many healthy targets a group with weight keeps.
    min_healthy: int = 1

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        """Read the options."""
        for name, least in (("wait_timeout", 0), ("interval", 0), ("consecutive", 1), ("min_healthy", 1)):
            if options[name] < least:
                raise LmsError(f"{name} is {options[name]}. Give {least} at least.")
        return cls(**{key: options[key] for key in ("state", "wait", "wait_timeout", "interval", "consecutive", "min_healthy")})


@dataclass(frozen=True)
class Group:
    """A target group."""

    name: str
    arn: str
    port: int | None
    load_balancers: Sequence[str]


@dataclass(frozen=True)
class Plan:
    """What will be done, as keys of targets."""

    register: Sequence[Key]
    deregister: Sequence[Key]


# Deciding


def key_of(target: Target) -> Key:
    """Return what tells a target from others: one host may serve on several ports."""
    return target.id, target.port


def is_registered(target: Target) -> bool:
    """Say whether a group has a target. One that drains is on its way out."""
    return target.state not in (DRAINING, MISSING) and not (target.state == UNUSED and target.reason == NOT_REGISTERED)


def make_plan(found: Sequence[Target], wanted: Sequence[Key], state: str) -> Plan:
    """Decide which targets to register, again where they drain, or to deregister."""
    there = {key_of(target) for target in found if is_registered(target)}
    if state == PRESENT:
        return Plan([key for key in wanted if key not in there], [])
    return Plan([], [key for key in wanted if key in there])


def refuse_to_empty(group: Group, found: Sequence[Target], leaving: Sequence[Key], weighted_on: Sequence[str], min_healthy: int) -> None:
    """Refuse to take away the healthy targets of a group that gets traffic."""
    if not leaving or not weighted_on:
        return
    staying = [target for target in found if is_registered(target) and key_of(target) not in leaving]
    healthy = sum(target.state == HEALTHY for target in staying)
    takes_healthy = any(target.state == HEALTHY for target in found if key_of(target) in leaving)
    # Without any healthy target the load balancer sends to all of them, so that the last one still counts.
    if healthy < min_healthy and (takes_healthy or not staying):
        raise TrafficError(
            f"{group.name} has weight on {', '.join(weighted_on)}, and would keep {healthy} healthy targets where {min_healthy} "
            "are needed. Move its traffic away first, or register others.",
            weight_on=list(weighted_on),
        )


# Looking


def find_group(api: Api, wanted: str) -> Group:
    """Find a target group by its name or ARN."""
    found = find_groups(api, [wanted])[wanted]
    if found.get("TargetType") == "lambda":
        raise TrafficError(f"The target group {wanted} holds a Lambda function, which has no port. Name one of instances or addresses.")
    return Group(group_name(found["TargetGroupArn"]), found["TargetGroupArn"], int(found["Port"]), found.get("LoadBalancerArns") or [])


def weight_of(api: Api, group: Group) -> list[str]:
    """Return the listeners and rules on which a group has weight."""
    found = []
    for balancer in group.load_balancers or all_balancers(api):
        what = f"The listeners of {balancer} cannot be read"
        for listener in api.pages("DescribeListeners", "Listeners", what, LoadBalancerArn=balancer):
            for rule in rules_of(api, listener["ListenerArn"]):
                if read_forward_weights(rule["Actions"]).get(group.arn, 0):
                    place = f"{balancer.split('/')[-2]}:{listener['Port']}"
                    found.append(place if rule["IsDefault"] else f"{place}/{rule['Priority']}")
    return sorted(found)


def all_balancers(api: Api) -> list[str]:
    """Return all load balancers. A group that seems to belong to none may lag behind a change: that is no reason to empty it."""
    found = api.pages("DescribeLoadBalancers", "LoadBalancers", "The load balancers cannot be read")
    return [balancer["LoadBalancerArn"] for balancer in found if balancer.get("Type", "application") == "application"]


def read_keys(group: Group, options: Sequence[Mapping[str, Any]]) -> dict[Key, Mapping[str, Any]]:
    """Return the wanted targets by what tells them apart. Without a port it is that of the group."""
    if not options:
        raise TrafficError("targets is empty. Name one target at least.")
    return {(option["id"], option["port"] if option.get("port") is not None else group.port): option for option in options}


def look_at(found: Sequence[Target], wanted: Sequence[Key]) -> list[Target]:
    """Return the wanted targets as they are; those that are not there too."""
    by_key = {key_of(target): target for target in found}
    return [by_key.get(key, Target(key[0], key[1], MISSING)) for key in sorted(wanted, key=lambda key: (key[0], key[1] or 0))]


# Acting


def run(api: Api, options: Mapping[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Register or deregister targets, and wait for all of them."""
    settings = Settings.of(options)
    group = find_group(api, options["group"])
    wanted = read_keys(group, options["targets"])
    found = read_targets(api, group.arn)
    plan = make_plan(found, list(wanted), settings.state)
    waiting = settings.wait and settings.state == PRESENT
    if plan.deregister:
        refuse_to_empty(group, found, plan.deregister, weight_of(api, group), settings.min_healthy)
    if waiting and is_unattached(found) and not check_mode:
        raise _unattached(group)
    if check_mode:
        after = foresee(found, plan)
        return as_result(group, plan, found, after, look_at(after, list(wanted)))
    carry_out(api, group, wanted, plan)
    after = wait(api, group, list(wanted), settings, clock) if settings.wait else read_targets(api, group.arn)
    return as_result(group, plan, found, after, look_at(after, list(wanted)))


def carry_out(api: Api, group: Group, wanted: Mapping[Key, Mapping[str, Any]], plan: Plan) -> None:
    """Register and deregister."""
    if plan.register:
        targets = [_described(key, wanted[key]) for key in plan.register]
        api.call("RegisterTargets", f"Targets cannot be registered with {group.name}", TargetGroupArn=group.arn, Targets=targets)
    if plan.deregister:
        targets = [_described(key, wanted[key]) for key in plan.deregister]
        api.call("DeregisterTargets", f"Targets cannot be deregistered from {group.name}", TargetGroupArn=group.arn, Targets=targets)


def _described(key: Key, option: Mapping[str, Any]) -> dict[str, Any]:
    """Return a target as AWS takes it. Its port is always named: without it all ports of the host would be meant."""
    zone = option.get("availability_zone")
    return {"Id": key[0], "Port": key[1], **({"AvailabilityZone": zone} if zone else {})}


def wait(api: Api, group: Group, wanted: Sequence[Key], settings: Settings, clock: Clock) -> list[Target]:
    """Wait until every target is healthy, or gone, and return all targets of the group."""
    deadline = clock.now() + settings.wait_timeout
    needed = settings.consecutive if settings.state == PRESENT else 1
    good = 0
    while True:
        found = read_targets(api, group.arn)
        targets = look_at(found, wanted)
        if settings.state == PRESENT and is_unattached(targets):
            raise _unattached(group)
        late = [target for target in targets if not _is_done(target, settings.state)]
        good = 0 if late else good + 1
        if good >= needed:
            return found
        if late and clock.now() + settings.interval > deadline:
            raise UnreadyError(
                f"{group.name} has targets that are not {'healthy' if settings.state == PRESENT else 'gone'} after "
                f"{settings.wait_timeout:g} s: {', '.join(target.label for target in late)}.",
                targets=[as_plain(target) for target in targets],
            )
        clock.sleep(settings.interval)


def _is_done(target: Target, state: str) -> bool:
    """Say whether a target is as it should be."""
    if state == PRESENT:
        return target.state == HEALTHY
    return target.state == MISSING or (target.state == UNUSED and target.reason == NOT_REGISTERED)


def _unattached(group: Group) -> LmsError:
    """Return the error for a group whose targets nobody checks."""
    return UnreadyError(
        f"{group.name} is on no route, or its targets are in no zone of the load balancer, so that they are never checked. "
        "Give it the weight 0 on a route first, or set wait to false."
    )


def foresee(found: Sequence[Target], plan: Plan) -> list[Target]:
    """Return the targets as they would be a moment after the plan was carried out."""
    after = {key_of(target): target for target in found}
    after.update({key: Target(key[0], key[1], "initial") for key in plan.register})
    after.update({key: replace(after[key], state=DRAINING, reason="") for key in plan.deregister})
    return sorted(after.values(), key=lambda target: (target.id, target.port or 0))


def as_result(group: Group, plan: Plan, before: Sequence[Target], after: Sequence[Target], wanted: Sequence[Target]) -> dict[str, Any]:
    """Return what was found and done, as the module does."""
    counts = {state: sum(target.state == state for target in after) for state in STATES}
    return {
        "changed": bool(plan.register or plan.deregister),
        "group": {"name": group.name, "arn": group.arn, "counts": {state: count for state, count in counts.items() if count}},
        "registered": [_label(key) for key in sorted(plan.register, key=str)],
        "deregistered": [_label(key) for key in sorted(plan.deregister, key=str)],
        "targets": [as_plain(target) for target in wanted],
        "diff": {"before": _pictured(group, before), "after": _pictured(group, after)},
    }


def as_plain(target: Target) -> dict[str, Any]:
    """Return a target as plain data."""
    return {"id": target.id, "port": target.port, "state": target.state, "reason": target.reason}


def _pictured(group: Group, targets: Sequence[Target]) -> dict[str, Any]:
    """Return the registered targets for a diff. Their health is no work of ours."""
    return {group.name: [_label(key_of(target)) for target in targets if is_registered(target)]}


def _label(key: Key) -> str:
    """Return a target in words."""
    return key[0] if key[1] is None else f"{key[0]}:{key[1]}"
