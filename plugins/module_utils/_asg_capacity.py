# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The capacity of an auto scaling group that carries a colour: instances in service, each of them healthy in every target group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api
from ansible_collections.bitflow.lms.plugins.module_utils._capacity import (
    MAX_EVENTS,
    Serving,
    Settings,
    Targets,
    find_serving,
    groups_result,
    refuse_to_shrink,
    refuse_unattached,
    sentences,
    targets_of,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import HEALTHY, Target, UnreadyError
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock, wait_for

IN_SERVICE = "InService"
# Neither counts for the group nor is it on its way anywhere.
STANDBY = "Standby"
WARM = "Warmed:"
# The processes without which a group cannot grow, or shrink.
TO_GROW = ("Launch", "AddToLoadBalancer")
TO_SHRINK = ("Terminate",)
FAILED = "Failed"

AutoScalingGroup = Mapping[str, Any]
Instance = Mapping[str, Any]


@dataclass(frozen=True)
class Size:
    """How large a group is, and may become."""

    minimum: int
    desired: int
    maximum: int

    def as_plain(self) -> dict[str, int]:
        """Return it as a module does."""
        return {"min_size": self.minimum, "desired_capacity": self.desired, "max_size": self.maximum}


@dataclass(frozen=True)
class Plan:
    """What will be done."""

    before: Size
    after: Size

    @property
    def changes(self) -> dict[str, int]:
        """Return what AWS is told: nothing that stays."""
        names = {"minimum": "MinSize", "desired": "DesiredCapacity", "maximum": "MaxSize"}
        return {
            name: getattr(self.after, field) for field, name in names.items() if getattr(self.after, field) != getattr(self.before, field)
        }


# Deciding


def make_plan(group: AutoScalingGroup, options: Mapping[str, Any]) -> Plan:
    """Decide what to change. What was not asked for stays, unless the limits move the desired capacity, as AWS itself would."""
    before = Size(int(group["MinSize"]), int(group["DesiredCapacity"]), int(group["MaxSize"]))
    given = {name: options[name] for name in ("min_size", "desired_capacity", "max_size") if options[name] is not None}
    for name, value in given.items():
        if value < 0:
            raise LmsError(f"{name} is {value}. Give 0 at least.")
    minimum, maximum = given.get("min_size", before.minimum), given.get("max_size", before.maximum)
    if minimum > maximum:
        raise LmsError(f"min_size would be {minimum}, above the max_size of {maximum}. Change both.")
    desired = given.get("desired_capacity", min(max(before.desired, minimum), maximum))
    if not minimum <= desired <= maximum:
        name = group["AutoScalingGroupName"]
        raise LmsError(f"desired_capacity is {desired}, and {name} takes {minimum} to {maximum}. Change min_size or max_size, too.")
    return Plan(before, Size(minimum, desired, maximum))


def weight_of_instance(instance: Instance) -> int:
    """Return how much an instance counts for its group."""
    return int(instance.get("WeightedCapacity") or 1)


def counting(group: AutoScalingGroup) -> list[Instance]:
    """Return the instances that count for a group, those too that come or go."""
    return [
        each for each in group.get("Instances", []) if each["LifecycleState"] != STANDBY and not each["LifecycleState"].startswith(WARM)
    ]


def in_service(group: AutoScalingGroup) -> list[Instance]:
    """Return the instances that serve."""
    return [each for each in counting(group) if each["LifecycleState"] == IN_SERVICE]


def suspended(group: AutoScalingGroup) -> list[str]:
    """Return the names of the processes that somebody suspended."""
    return sorted(each["ProcessName"] for each in group.get("SuspendedProcesses", []))


def capacity_of(instances: Sequence[Instance]) -> int:
    """Return how much instances count for together."""
    return sum(weight_of_instance(each) for each in instances)


def refuse_blocked(group: AutoScalingGroup, desired: int) -> None:
    """Refuse what cannot come to an end, because somebody said that it must not."""
    name = group["AutoScalingGroupName"]
    serving = in_service(group)
    has = capacity_of(serving)
    needed = TO_GROW if has < desired else TO_SHRINK if has > desired else ()
    stopped = [process for process in suspended(group) if process in needed]
    if stopped:
        raise UnreadyError(
            f"{name} has {', '.join(stopped)} suspended, so that it cannot get from {has} to {desired}. Resume it first.",
            suspended=suspended(group),
        )
    kept = [each for each in serving if each.get("ProtectedFromScaleIn")]
    if capacity_of(kept) > desired:
        ids = ", ".join(sorted(each["InstanceId"] for each in kept))
        raise UnreadyError(
            f"{name} has instances that are protected from scale-in, more than {desired}: {ids}. "
            "Take their protection away first, or keep them.",
            protected=sorted(each["InstanceId"] for each in kept),
        )


# Looking


def find_group(api: Api, name: str) -> AutoScalingGroup:
    """Return an auto scaling group."""
    what = f"The auto scaling group {name} cannot be read"
    found = api.call("DescribeAutoScalingGroups", what, AutoScalingGroupNames=[name])["AutoScalingGroups"]
    if not found:
        raise LmsError(f"The auto scaling group {name} cannot be found. Name one of this account and region.")
    group: AutoScalingGroup = found[0]
    if group.get("Status"):
        raise LmsError(f"The auto scaling group {name} is on its way out: {group['Status']}. Name another one.")
    return group


def target_groups(group: AutoScalingGroup) -> list[str]:
    """Return the target groups that an auto scaling group registers its instances with."""
    sources = [each["Identifier"] for each in group.get("TrafficSources", []) if each.get("Type", "elbv2") == "elbv2"]
    return sorted({*group.get("TargetGroupARNs", []), *(source for source in sources if ":targetgroup/" in source)})


def activities(api: Api, name: str) -> list[dict[str, Any]]:
    """Return what a group did last, the newest first."""
    what = f"The activities of {name} cannot be read"
    return list(api.call("DescribeScalingActivities", what, AutoScalingGroupName=name, MaxRecords=20)["Activities"])


@dataclass(frozen=True)
class Look:
    """What was found at one moment."""

    group: AutoScalingGroup
    targets: Targets
    activities: Sequence[Mapping[str, Any]] = ()
    # What is not as it should be; nothing where all is.
    missing: Sequence[str] = ()


def missing_of(group: AutoScalingGroup, targets: Targets, plan: Plan) -> list[str]:
    """Say what a group lacks until it is as it should be."""
    desired = int(group["DesiredCapacity"])
    serving = in_service(group)
    has = capacity_of(serving)
    found = []
    if desired == plan.before.desired != plan.after.desired:
        found.append(f"its desired capacity is still {desired}")
    # An instance that counts for several may exceed what was asked for, by less than itself.
    if not 0 <= has - desired < max([1, *(weight_of_instance(each) for each in serving)]):
        found.append(f"{has} of {desired} are in service")
    moving = sorted(f"{each['InstanceId']} is {each['LifecycleState']}" for each in counting(group) if each["LifecycleState"] != IN_SERVICE)
    found.extend(moving)
    found.extend(sorted(f"{each['InstanceId']} is {each['HealthStatus']}" for each in serving if each["HealthStatus"] != "Healthy"))
    for name, each in sorted(targets.items()):
        found.extend(fault for instance in serving if (fault := _target_fault(name, each, instance["InstanceId"])))
    return found


def _target_fault(group: str, targets: Sequence[Target], instance: str) -> str:
    """Say why an instance does not serve through a target group; nothing where it does."""
    registered = [target for target in targets if target.id == instance]
    if not registered:
        return f"{instance} is not registered with {group}"
    sick = [target for target in registered if target.state != HEALTHY]
    return f"{group}: {', '.join(target.label for target in sick)}" if sick else ""


@dataclass(frozen=True)
class Watch:
    """A group that is waited for."""

    api: Api
    elb: Api
    name: str
    serving: Sequence[Serving]
    plan: Plan
    settings: Settings
    # The activities that were there before.
    old: frozenset[str]

    def look(self) -> Look:
        """Look once, and raise what waiting cannot mend."""
        group = find_group(self.api, self.name)
        targets = targets_of(self.elb, self.serving)
        missing = missing_of(group, targets, self.plan)
        seen = Look(group, targets, [each for each in activities(self.api, self.name) if each["ActivityId"] not in self.old], missing)
        if missing:
            refuse_blocked(group, int(group["DesiredCapacity"]))
            if in_service(group):
                refuse_unattached(targets)
            failed = [each for each in seen.activities if each["StatusCode"] == FAILED]
            if len(failed) >= self.settings.max_failures:
                raise self.error(f"{len(failed)} of its activities failed, and it goes on trying", seen)
        return seen

    def error(self, what: str, seen: Look) -> LmsError:
        """Return an error that tells the reasons."""
        failed = [activity_words(each) for each in seen.activities if each["StatusCode"] == FAILED]
        reasons = list(dict.fromkeys(failed))[:3]
        stopped = suspended(seen.group)
        return UnreadyError(
            f"{self.name}: "
            + sentences(
                what,
                f"It says: {'; '.join(reasons)}" if reasons else "",
                f"Its processes {', '.join(stopped)} are suspended" if stopped else "",
            ),
            **progress(seen),
            groups=groups_result(self.serving, seen.targets),
            suspended=stopped,
        )


def activity_words(activity: Mapping[str, Any]) -> str:
    """Return an activity in words."""
    said = str(activity.get("StatusMessage") or "").rstrip(".")
    description = str(activity.get("Description") or activity["ActivityId"]).rstrip(".")
    return f"{description} ({activity['StatusCode']}{': ' + said if said else ''})"


def progress(seen: Look) -> dict[str, Any]:
    """Return what a result and an error tell of a group."""
    counts: dict[str, int] = {}
    for instance in seen.group.get("Instances", []):
        counts[instance["LifecycleState"]] = counts.get(instance["LifecycleState"], 0) + 1
    return {
        "counts": dict(sorted(counts.items())),
        "events": [activity_words(each) for each in reversed(seen.activities[:MAX_EVENTS])],
    }


# Acting


def run(api: Api, elb: Api, options: Mapping[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Give a group its capacity, and wait until every instance serves."""
    settings = Settings.of(options)
    name = options["name"]
    group = find_group(api, name)
    plan = make_plan(group, options)
    serving = find_serving(elb, target_groups(group))
    refuse_to_shrink(name, serving, plan.before.desired, plan.after.desired)
    if plan.changes:
        refuse_blocked(group, plan.after.desired)
    targets = targets_of(elb, serving)
    if check_mode:
        return as_result(plan, serving, Look(group, targets))
    if settings.wait and plan.after.desired:
        refuse_unattached(targets)
    old = frozenset(each["ActivityId"] for each in activities(api, name))
    if plan.changes:
        api.call("UpdateAutoScalingGroup", f"The auto scaling group {name} cannot be changed", AutoScalingGroupName=name, **plan.changes)
    watch = Watch(api, elb, name, serving, plan, settings, old)
    if not settings.wait:
        return as_result(plan, serving, Look(find_group(api, name), targets))
    seen = wait_for(watch.look, lambda look: not look.missing, settings.pace, clock)
    if seen.missing:
        raise watch.error(f"It is not ready after {settings.pace.timeout:g} s: {'; '.join(seen.missing)}", seen)
    return as_result(plan, serving, seen)


def as_result(plan: Plan, serving: Sequence[Serving], seen: Look) -> dict[str, Any]:
    """Return what was found and done, as the module does."""
    return {
        "changed": bool(plan.changes),
        "name": seen.group["AutoScalingGroupName"],
        **plan.after.as_plain(),
        "instances": [
            {
                "id": each["InstanceId"],
                "state": each["LifecycleState"],
                "health": each["HealthStatus"],
                "protected": bool(each.get("ProtectedFromScaleIn")),
            }
            for each in sorted(seen.group.get("Instances", []), key=lambda each: str(each["InstanceId"]))
        ],
        "groups": groups_result(serving, seen.targets),
        "suspended": suspended(seen.group),
        **progress(seen),
        "diff": {"before": plan.before.as_plain(), "after": plan.after.as_plain()},
    }
