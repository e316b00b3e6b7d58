# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A service of ECS that carries a colour: its task definition, its number of tasks, and its targets in the load balancer.

That the tasks run is not enough: the load balancer has to call their targets healthy, in every group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api
from ansible_collections.bitflow.lms.plugins.module_utils._capacity import (
    MAX_EVENTS,
    Serving,
    Settings,
    Targets,
    draining,
    find_serving,
    groups_result,
    refuse_to_shrink,
    refuse_unattached,
    sentences,
    targets_of,
)
from ansible_collections.bitflow.lms.plugins.module_utils._ecs import (
    STOPPED,
    find_definition,
    find_service,
    find_tasks,
    newest_definition,
    why_stopped,
)
from ansible_collections.bitflow.lms.plugins.module_utils._ecs_definition import normal, pictured, read_definition, same_name, short_name
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import UnreadyError, judge
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock, wait_for

PRIMARY = "PRIMARY"
FAILED = "FAILED"
COMPLETED = "COMPLETED"
# What AWS says of a deployment that takes the place of a failed one.
WENT_BACK = "circuit breaker"
# For how many looks in a row AWS may answer with what was before: its answers lag behind its changes.
LAG = 6
# Why a task stops that is broken, and not only superfluous.
BROKEN = frozenset({"EssentialContainerExited", "TaskFailedToStart"})
BROKEN_REASON = "Task failed"

Service = Mapping[str, Any]
Deployment = Mapping[str, Any]


@dataclass(frozen=True)
class Wanted:
    """The task definition that the options want."""

    # Its ARN; empty where the service keeps its own, or where it has yet to be registered.
    arn: str = ""
    # What has to be registered, and the newest one that differs from it.
    new: Mapping[str, Any] | None = None
    newest: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Plan:
    """What will be done."""

    register: Mapping[str, Any] | None
    # The definition that the service gets; empty where it keeps its own.
    definition: str
    desired: int
    desired_before: int
    # Whether a failed deployment of the same definition is begun again.
    again: bool

    @property
    def shrinks(self) -> bool:
        """Say whether the service loses tasks."""
        return self.desired < self.desired_before

    @property
    def deploys(self) -> bool:
        """Say whether a new deployment begins."""
        return bool(self.register is not None or self.definition or self.again)

    @property
    def updates(self) -> bool:
        """Say whether the service changes."""
        return self.deploys or self.desired != self.desired_before


# Deciding


def find_wanted(api: Api, options: Mapping[str, Any]) -> Wanted:
    """Find the task definition that the options name, or that says what they say."""
    if options.get("task_definition"):
        return Wanted(find_definition(api, options["task_definition"])["taskDefinitionArn"])
    if not options.get("definition"):
        return Wanted()
    new = read_definition(options["definition"])
    newest = newest_definition(api, new["family"])
    if newest is not None and normal(newest) == normal(new):
        return Wanted(newest["taskDefinitionArn"])
    return Wanted("", new, newest)


def make_plan(service: Service, wanted: Wanted, desired: int | None) -> Plan:
    """Decide what to change. What was not asked for stays, so that auto scaling keeps its count."""
    has = str(service["taskDefinition"])
    before = int(service["desiredCount"])
    differs = bool(wanted.arn) and not same_name(has, wanted.arn)
    again = bool(wanted.arn) and not differs and primary(service).get("rolloutState") == FAILED
    return Plan(wanted.new, wanted.arn if differs else "", before if desired is None else desired, before, again)


def refuse_unfit(service: Service, desired: int | None) -> None:
    """Refuse a service that AWS does not let one roll out this way, and a number that no service has."""
    name = service["serviceName"]
    controller = (service.get("deploymentController") or {}).get("type", "ECS")
    if controller != "ECS":
        raise LmsError(f"The service {name} is deployed by {controller}. Name one with the deployment controller ECS.")
    if desired is None:
        return
    if desired < 0:
        raise LmsError(f"desired_count is {desired}. Give 0 at least.")
    if service.get("schedulingStrategy") == "DAEMON":
        raise LmsError(f"The service {name} runs a task on every instance, so that its count cannot be set. Leave desired_count out.")


def primary(service: Service) -> Deployment:
    """Return the newest deployment of a service."""
    return next((each for each in service.get("deployments", []) if each["status"] == PRIMARY), {})


def group_arns(service: Service) -> list[str]:
    """Return the target groups of a service."""
    found = set()
    for balancer in service.get("loadBalancers", []):
        found.add(balancer.get("targetGroupArn"))
        found.add((balancer.get("advancedConfiguration") or {}).get("alternateTargetGroupArn"))
    return sorted(arn for arn in found if arn)


# Looking


@dataclass
class Look:
    """What was found at one moment."""

    service: Service
    targets: Targets
    # Why tasks of the deployment stopped, without those that were superfluous.
    stopped: Sequence[str] = ()
    # What is not as it should be; nothing where all is.
    missing: Sequence[str] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Return the numbers of tasks."""
        return {
            "desired": int(self.service["desiredCount"]),
            "running": int(self.service["runningCount"]),
            "pending": int(self.service["pendingCount"]),
            "failed": int(primary(self.service).get("failedTasks") or 0),
        }


def missing_of(service: Service, targets: Targets, plan: Plan) -> list[str]:
    """Say what a service lacks until it is as it should be."""
    newest = primary(service)
    desired = int(service["desiredCount"])
    found = []
    if desired == plan.desired_before != plan.desired:
        found.append(f"its count is still {desired}")
    state = newest.get("rolloutState") or COMPLETED
    if state != COMPLETED:
        found.append(f"its deployment is {state}")
    found.extend(
        f"{each['runningCount']} tasks of {short_name(each['taskDefinition'])} still run"
        for each in service.get("deployments", [])
        if each is not newest
    )
    if int(service["runningCount"]) != desired:
        found.append(f"{service['runningCount']} of {desired} tasks run")
    if desired:
        found.extend(fault for name, each in sorted(targets.items()) if (fault := judge(name, {name: each}, desired).fault))
    if plan.shrinks:
        found.extend(draining(targets))
    return found


@dataclass
class Watch:
    """A deployment that is waited for."""

    ecs: Api
    elb: Api
    cluster: str
    serving: Sequence[Serving]
    plan: Plan
    settings: Settings
    # Its id; empty where AWS tells none.
    deployment: str
    # The events and the stopped tasks that were there before.
    old_events: frozenset[str]
    old_tasks: frozenset[str]
    name: str
    # Its id before the service was changed.
    previous: str
    # How often in a row AWS told nothing of the deployment.
    absent: int = 0

    def look(self) -> Look:
        """Look once, and raise what waiting cannot mend."""
        service = find_service(self.ecs, self.cluster, self.name)
        targets = targets_of(self.elb, self.serving)
        if int(service["desiredCount"]):
            refuse_unattached(targets)
        missing = missing_of(service, targets, self.plan)
        self.absent = self.absent + 1 if primary(service).get("id", "") != self.deployment else 0
        if self.absent:
            missing.append("its deployment is not that of this task")
        seen = Look(service, targets, (), missing)
        if missing:
            seen.stopped = self._stopped()
            self._refuse_failed(seen)
        return seen

    def _stopped(self) -> list[str]:
        """Return why tasks of the deployment stopped."""
        tasks = [task for task in stopped_tasks(self.ecs, self.cluster, self.name) if task["taskArn"] not in self.old_tasks]
        broken = [task for task in tasks if task.get("startedBy") == self.deployment and is_broken(task)]
        return [why_stopped(task) for task in sorted(broken, key=lambda task: (str(task.get("stoppedAt", "")), task["taskArn"]))]

    def _refuse_failed(self, seen: Look) -> None:
        """Raise the reason of a deployment that will not succeed."""
        newest = primary(seen.service)
        ours: Deployment = next((each for each in seen.service["deployments"] if each["id"] == self.deployment), {})
        now = short_name(seen.service["taskDefinition"])
        wanted = f"The deployment of {short_name(ours['taskDefinition'])}" if ours else "The deployment"
        if newest.get("id") == self.previous != self.deployment:
            # ECS makes the one before the newest again when it goes back; a person's is always another one.
            went_back = seen.stopped or ours.get("rolloutState") == FAILED or WENT_BACK in str(newest.get("rolloutStateReason", ""))
            if went_back or self.absent > LAG:
                reason = ours.get("rolloutStateReason") or newest.get("rolloutStateReason", "")
                raise self.error(f"{wanted} failed", seen, reason, f"ECS went back to {now}")
            return
        if ours.get("rolloutState") == FAILED:
            raise self.error(f"{wanted} failed", seen, ours.get("rolloutStateReason", ""))
        if newest.get("id", "") != self.deployment:
            raise self.error(f"{wanted} was replaced by one of {now}", seen, "Find out who did that, then run the task again")
        breaker = ((seen.service.get("deploymentConfiguration") or {}).get("deploymentCircuitBreaker") or {}).get("enable")
        # The circuit breaker counts the failures itself until a first task ran, and then no more.
        if breaker and seen.counts["failed"]:
            return
        failures = max(len(seen.stopped), seen.counts["failed"])
        if failures >= self.settings.max_failures:
            what = f"The deployment of {now} does not succeed"
            raise self.error(what, seen, f"{failures} of its tasks failed, and ECS goes on trying")

    def error(self, what: str, seen: Look, *more: str) -> LmsError:
        """Return an error that tells the reasons."""
        reasons = list(dict.fromkeys(seen.stopped))[-3:]
        events = self.events(seen.service)
        told = f"Its tasks stopped: {'; '.join(reasons)}" if reasons else f"ECS said last: {events[-1]}" if events else ""
        return UnreadyError(
            f"{self.name}: {sentences(what, *more[:1], told, *more[1:])}",
            counts=seen.counts,
            events=events,
            groups=groups_result(self.serving, seen.targets),
            stopped=list(seen.stopped),
        )

    def events(self, service: Service) -> list[str]:
        """Return what ECS said since, the newest last."""
        new = [event for event in service.get("events", []) if event["id"] not in self.old_events]
        return [str(event["message"]) for event in reversed(new[:MAX_EVENTS])]


def stopped_tasks(api: Api, cluster: str, service: str) -> list[dict[str, Any]]:
    """Return the tasks of a service that stopped a short while ago."""
    return find_tasks(api, cluster, STOPPED, serviceName=service)


def is_broken(task: Mapping[str, Any]) -> bool:
    """Say whether a task stopped because something was wrong with it."""
    return task.get("stopCode") in BROKEN or str(task.get("stoppedReason", "")).startswith(BROKEN_REASON)


# Acting


def run(ecs: Api, elb: Api, options: Mapping[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Give a service its task definition and its number of tasks, and wait until the load balancer calls all of them healthy."""
    settings = Settings.of(options)
    cluster, desired = options["cluster"], options["desired_count"]
    service = find_service(ecs, cluster, options["service"])
    name = str(service["serviceName"])
    refuse_unfit(service, desired)
    wanted = find_wanted(ecs, options)
    plan = make_plan(service, wanted, desired)
    serving = find_serving(elb, group_arns(service))
    refuse_to_shrink(name, serving, plan.desired_before, plan.desired)
    targets = targets_of(elb, serving)
    if settings.wait and plan.desired and not check_mode:
        refuse_unattached(targets)
    if check_mode:
        return as_result(service, wanted, plan, serving, Look(service, targets), [])
    old_events = frozenset(event["id"] for event in service.get("events", []))
    # What went wrong in a deployment that has been completed since says nothing about the tasks that start now.
    settled = settings.wait and not plan.deploys and primary(service).get("rolloutState") == COMPLETED
    old_tasks = frozenset(task["taskArn"] for task in stopped_tasks(ecs, cluster, name)) if settled else frozenset()
    after, arn = carry_out(ecs, cluster, service, wanted, plan)
    done = replace(wanted, arn=arn)
    ids = [str(primary(each).get("id", "")) for each in (after, service)]
    watch = Watch(ecs, elb, cluster, serving, plan, settings, ids[0], old_events, old_tasks, name, ids[1])
    if not settings.wait:
        return as_result(service, done, plan, serving, Look(after, targets), watch.events(after))
    seen = wait_for(watch.look, lambda look: not look.missing, settings.pace, clock)
    if seen.missing:
        raise watch.error(f"It is not ready after {settings.pace.timeout:g} s: {'; '.join(seen.missing)}", seen)
    return as_result(service, done, plan, serving, seen, watch.events(seen.service))


def carry_out(api: Api, cluster: str, service: Service, wanted: Wanted, plan: Plan) -> tuple[Service, str]:
    """Register the definition and update the service, with nothing but what changes. Return the service and the definition."""
    arn = wanted.arn or str(service["taskDefinition"])
    definition = plan.definition
    if plan.register is not None:
        # A repeated call makes one more revision of the same content, which harms nobody.
        what = f"The task definition {plan.register['family']} cannot be registered"
        arn = definition = api.call("RegisterTaskDefinition", what, **plan.register)["taskDefinition"]["taskDefinitionArn"]
    changes: dict[str, Any] = {}
    if definition:
        changes["taskDefinition"] = definition
    if plan.desired != plan.desired_before:
        changes["desiredCount"] = plan.desired
    if plan.again:
        changes["forceNewDeployment"] = True
    if not changes:
        return service, arn
    name = service["serviceName"]
    after: Service = api.call("UpdateService", f"The service {name} cannot be changed", cluster=cluster, service=name, **changes)["service"]
    return after, arn


def as_result(
    service: Service, wanted: Wanted, plan: Plan, serving: Sequence[Serving], seen: Look, events: Sequence[str]
) -> dict[str, Any]:
    """Return what was found and done, as the module does."""
    has = str(service["taskDefinition"])
    deployment = primary(seen.service)
    after = wanted.arn or ("" if plan.register else has)
    shown_before: dict[str, Any] = {}
    shown_after: dict[str, Any] = {}
    if plan.register is not None:
        shown_before["definition"] = pictured(wanted.newest)
        shown_after["definition"] = pictured(plan.register, wanted.newest or {})
    return {
        "changed": plan.updates,
        "service": service["serviceName"],
        "cluster": str(service["clusterArn"]).rpartition("/")[2],
        "task_definition": after or None,
        "registered": plan.register is not None,
        "restarted": plan.again,
        "desired_count": plan.desired,
        "deployment": {"id": deployment.get("id"), "state": deployment.get("rolloutState"), "reason": deployment.get("rolloutStateReason")},
        "counts": seen.counts,
        "groups": groups_result(serving, seen.targets),
        "events": list(events),
        "diff": {
            "before": {"task_definition": short_name(has), "desired_count": plan.desired_before, **shown_before},
            "after": {"task_definition": _name_after(plan, after), "desired_count": plan.desired, **shown_after},
        },
    }


def _name_after(plan: Plan, arn: str) -> str:
    """Return the definition for a diff, equal in check mode, where a new one has no revision yet."""
    return f"{plan.register['family']} (new revision)" if plan.register is not None else short_name(arn)
