# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One task of ECS that runs to its end, such as the migrations of a release: started once, awaited, and judged by its exit code."""

from __future__ import annotations

import re
import shlex
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api
from ansible_collections.bitflow.lms.plugins.module_utils._ecs import (
    RUNNING,
    STOPPED,
    describe_tasks,
    find_definition,
    find_service,
    find_tasks,
    task_id,
    why_stopped,
)
from ansible_collections.bitflow.lms.plugins.module_utils._ecs_definition import container_named, log_of, short_name
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock, Pace, wait_for

FARGATE = "FARGATE"
# What AWS takes as startedBy and as clientToken alike.
TOKEN = re.compile(r"[A-Za-z0-9/_-]{1,64}")


def network_argspec() -> dict[str, dict[str, Any]]:
    """Return the options of a network."""
    return {
        "subnets": {"type": "list", "elements": "str", "required": True},
        "security_groups": {"type": "list", "elements": "str", "default": []},
        "assign_public_ip": {"type": "bool", "default": False},
    }


class TaskFailedError(LmsError):
    """A task that did not do its work."""


@dataclass(frozen=True)
class Job:
    """What is to run, and where."""

    cluster: str
    definition: Mapping[str, Any]
    container: Mapping[str, Any]
    # Without its own words the container runs what its image says.
    command: Sequence[str] | None
    environment: Mapping[str, str]
    # Launch type, network and the like, as AWS takes them.
    placement: Mapping[str, Any]
    token: str

    @property
    def name(self) -> str:
        """Return it for a message."""
        definition = short_name(self.definition["taskDefinitionArn"])
        return f"{definition} ({shlex.join(self.command)})" if self.command else definition

    def overrides(self) -> dict[str, Any]:
        """Return what replaces parts of the definition."""
        override: dict[str, Any] = {"name": self.container["name"]}
        if self.command is not None:
            override["command"] = list(self.command)
        if self.environment:
            override["environment"] = [{"name": name, "value": value} for name, value in sorted(self.environment.items())]
        return {"containerOverrides": [override]}


# Deciding


def read_token(option: str | None, new_token: Callable[[], str]) -> str:
    """Return the token that tells a task from others. A new one serves for the calls of this run alone."""
    if option is None:
        return new_token()
    if not TOKEN.fullmatch(option):
        raise LmsError(
            f"client_token is {option!r}. Give 1 to 64 letters, digits, hyphens, slashes and underscores, such as migrate-20250101."
        )
    return option


def make_job(api: Api, options: Mapping[str, Any], token: str) -> Job:
    """Find what the options name. What they leave out is as it is in the service, where one is named."""
    cluster = options["cluster"]
    service = find_service(api, cluster, options["service"]) if options.get("service") else {}
    name = options.get("task_definition") or service.get("taskDefinition")
    if not name:
        raise LmsError("No task definition is known. Give task_definition, or a service that has one.")
    definition = find_definition(api, name)
    container = container_named(definition, options.get("container"))
    environment = {str(key): str(value) for key, value in (options.get("environment") or {}).items()}
    return Job(cluster, definition, container, options.get("command") or None, environment, placement_of(options, service), token)


def placement_of(options: Mapping[str, Any], service: Mapping[str, Any]) -> dict[str, Any]:
    """Return where a task runs, as AWS takes it."""
    placement: dict[str, Any] = {}
    if options.get("launch_type"):
        placement["launchType"] = options["launch_type"]
    elif service.get("capacityProviderStrategy"):
        placement["capacityProviderStrategy"] = service["capacityProviderStrategy"]
    elif service.get("launchType"):
        placement["launchType"] = service["launchType"]
    network = options.get("network")
    if network:
        placement["networkConfiguration"] = {
            "awsvpcConfiguration": {
                "subnets": network["subnets"],
                "securityGroups": network["security_groups"],
                "assignPublicIp": "ENABLED" if network["assign_public_ip"] else "DISABLED",
            }
        }
    elif service.get("networkConfiguration"):
        placement["networkConfiguration"] = service["networkConfiguration"]
    version = options.get("platform_version") or service.get("platformVersion")
    if version and placement.get("launchType", FARGATE) == FARGATE:
        placement["platformVersion"] = version
    return placement


def find_started(api: Api, job: Job) -> dict[str, Any] | None:
    """Return the task that was started with the token, whether it runs or has ended. AWS forgets ended tasks after about an hour."""
    family = job.definition["family"]
    found: list[dict[str, Any]] = []
    for status in (RUNNING, STOPPED):
        found.extend(task for task in find_tasks(api, job.cluster, status, family=family) if task.get("startedBy") == job.token)
        if found:
            break
    if not found:
        return None
    task = max(found, key=lambda each: (str(each.get("createdAt", "")), each["taskArn"]))
    _refuse_other_work(job, task)
    return task


def _refuse_other_work(job: Job, task: Mapping[str, Any]) -> None:
    """Refuse a token that somebody used for other work."""
    overrides = (task.get("overrides") or {}).get("containerOverrides") or []
    ran: Mapping[str, Any] = next((each for each in overrides if each.get("name") == job.container["name"]), {})
    command = list(ran.get("command") or [])
    definition = task["taskDefinitionArn"]
    if definition != job.definition["taskDefinitionArn"] or command != list(job.command or []):
        ran_before = f"{short_name(definition)} ({shlex.join(command)})" if command else short_name(definition)
        raise LmsError(
            f"client_token is {job.token}, with which the task {task_id(task)} of {ran_before} was started, and not {job.name}. "
            "Give a token of its own to each piece of work."
        )


# Acting


def run(
    api: Api, options: Mapping[str, Any], check_mode: bool, clock: Clock, new_token: Callable[[], str] = lambda: str(uuid.uuid4())
) -> dict[str, Any]:
    """Start a task unless its token has started it already, and await its end."""
    pace = Pace.of(options)
    job = make_job(api, options, read_token(options.get("client_token"), new_token))
    task = find_started(api, job) if options.get("client_token") else None
    if check_mode:
        if task is not None and task["lastStatus"] == STOPPED:
            refuse_failed(job, task, [STOPPED])
        return as_result(job, task, task is None, [task["lastStatus"]] if task else [])
    started = task is None
    arn = str((start(api, job) if task is None else task)["taskArn"])
    statuses: list[str] = []

    def look() -> dict[str, Any] | None:
        """Look once. AWS may not know yet what it has just started."""
        found = next(iter(describe_tasks(api, job.cluster, [arn])), None)
        if found and statuses[-1:] != [found["lastStatus"]]:
            statuses.append(found["lastStatus"])
        return found

    ended = wait_for(look, lambda each: each is not None and each["lastStatus"] == STOPPED, pace, clock)
    if ended is None:
        raise TaskFailedError(
            f"AWS knows nothing of the task {arn} after {pace.timeout:g} s. Look into its log.", **_details(job, None, statuses)
        )
    if ended["lastStatus"] != STOPPED:
        raise TaskFailedError(
            f"The task {task_id(ended)} of {job.name} is {ended['lastStatus']} after {pace.timeout:g} s, and goes on. "
            f"To await it, run this again with client_token={job.token}.{_log_words(job, ended)}",
            **_details(job, ended, statuses),
        )
    refuse_failed(job, ended, statuses)
    return as_result(job, ended, started, statuses)


def start(api: Api, job: Job) -> dict[str, Any]:
    """Start the task. Because of its token a repeated call starts no second one."""
    reply = api.call(
        "RunTask",
        f"{job.name} cannot be started",
        cluster=job.cluster,
        taskDefinition=job.definition["taskDefinitionArn"],
        count=1,
        clientToken=job.token,
        startedBy=job.token,
        overrides=job.overrides(),
        **job.placement,
    )
    if reply.get("failures") or not reply.get("tasks"):
        reasons = "; ".join(
            ": ".join(str(each[key]) for key in ("reason", "detail") if each.get(key)) for each in reply.get("failures", [])
        )
        raise TaskFailedError(
            f"{job.name} was not placed: {reasons or 'AWS gives no reason'}. Look at the capacity of the cluster {job.cluster}."
        )
    task: dict[str, Any] = reply["tasks"][0]
    return task


def refuse_failed(job: Job, task: Mapping[str, Any], statuses: Sequence[str]) -> None:
    """Refuse a task that ended badly. Its exit code counts, and none is as bad as a wrong one."""
    code = exit_code(job, task)
    if code == 0:
        return
    what = "did not run" if code is None else f"ended with {code}"
    raise TaskFailedError(
        f"The task {task_id(task)} of {job.name} {what}: {why_stopped(task)}.{_log_words(job, task)} "
        "Repair the cause, then run it with another client_token.",
        **_details(job, task, statuses),
    )


def exit_code(job: Job, task: Mapping[str, Any]) -> int | None:
    """Return what the container ended with, if it ran."""
    container: Mapping[str, Any] = next((each for each in task.get("containers", []) if each["name"] == job.container["name"]), {})
    return container.get("exitCode")


def _log_words(job: Job, task: Mapping[str, Any]) -> str:
    """Say where the last lines of a task are."""
    log = log_of(job.container, task_id(task))
    if log is None:
        return ""
    return f" Its last lines are in the log group {log['group']}{', stream ' + log['stream'] if log['stream'] else ''}."


def _details(job: Job, task: Mapping[str, Any] | None, statuses: Sequence[str]) -> dict[str, Any]:
    """Return what a result and an error tell of a task."""
    return {
        "client_token": job.token,
        "task": None
        if task is None
        else {
            "id": task_id(task),
            "arn": task["taskArn"],
            "status": task["lastStatus"],
            "exit_code": exit_code(job, task),
            "reason": task.get("stoppedReason") or "",
        },
        "log": None if task is None else log_of(job.container, task_id(task)),
        "events": list(statuses),
    }


def as_result(job: Job, task: Mapping[str, Any] | None, started: bool, statuses: Sequence[str]) -> dict[str, Any]:
    """Return what was found and done, as the module does."""
    work = {
        "task_definition": job.definition["taskDefinitionArn"],
        "container": job.container["name"],
        "command": list(job.command or []),
    }
    return {
        "changed": started,
        **work,
        **_details(job, task, statuses),
        "diff": {"before": {}, "after": {**work, "task_definition": short_name(work["task_definition"])} if started else {}},
    }
