# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read of ECS: services, task definitions, and why tasks stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api, AwsError
from ansible_collections.bitflow.lms.plugins.module_utils._ecs_definition import short_name
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

RUNNING = "RUNNING"
STOPPED = "STOPPED"
# How many tasks AWS describes in one call.
MAX_TASKS = 100
# How AWS says that it does not know a task definition.
UNKNOWN = "ClientException"


def find_service(api: Api, cluster: str, name: str) -> dict[str, Any]:
    """Return a service that can be worked with."""
    what = f"The service {name} of the cluster {cluster} cannot be read"
    found = api.call("DescribeServices", what, cluster=cluster, services=[name])["services"]
    if not found or found[0]["status"] == "INACTIVE":
        raise LmsError(f"The cluster {cluster} has no service {name}. Name one of this account and region.")
    service: dict[str, Any] = found[0]
    if service["status"] != "ACTIVE":
        raise LmsError(f"The service {name} is {service['status']}: somebody deletes it. Name another one.")
    return service


def find_definition(api: Api, name: str) -> dict[str, Any]:
    """Return a task definition by its family, with or without revision, or its ARN."""
    try:
        reply = api.call("DescribeTaskDefinition", f"The task definition {name} cannot be read", taskDefinition=name)
    except AwsError as error:
        if error.code == UNKNOWN:
            raise LmsError(f"The task definition {name} cannot be found. Name one of this account and region.") from error
        raise
    definition: dict[str, Any] = reply["taskDefinition"]
    if definition["status"] != "ACTIVE":
        raise LmsError(
            f"The task definition {short_name(name)} is {definition['status']}, so that no task starts with it. Name an active one."
        )
    return definition


def newest_definition(api: Api, family: str) -> dict[str, Any] | None:
    """Return the newest active definition of a family, if it has one."""
    try:
        what = f"The newest task definition of {family} cannot be read"
        definition: dict[str, Any] = api.call("DescribeTaskDefinition", what, taskDefinition=family)["taskDefinition"]
    except AwsError as error:
        if error.code == UNKNOWN:
            return None
        raise
    return definition if definition["status"] == "ACTIVE" else None


def find_tasks(api: Api, cluster: str, status: str, **where: str) -> list[dict[str, Any]]:
    """Return the tasks of a service or family that should run, or that were stopped a short while ago."""
    what = f"The tasks of {', '.join(where.values())} cannot be read"
    arns: list[str] = []
    token: dict[str, str] = {}
    while True:
        reply = api.call("ListTasks", what, cluster=cluster, desiredStatus=status, **where, **token)
        arns.extend(reply["taskArns"])
        if not reply.get("nextToken"):
            break
        token = {"nextToken": reply["nextToken"]}
    found: list[dict[str, Any]] = []
    for start in range(0, len(arns), MAX_TASKS):
        found.extend(describe_tasks(api, cluster, arns[start : start + MAX_TASKS]))
    return found


def describe_tasks(api: Api, cluster: str, arns: Sequence[str]) -> list[dict[str, Any]]:
    """Return tasks by their ARNs. One that AWS has forgotten is missing."""
    reply = api.call("DescribeTasks", "The tasks cannot be read", cluster=cluster, tasks=list(arns))
    return list(reply["tasks"])


def why_stopped(task: Mapping[str, Any]) -> str:
    """Say why a task stopped, with what its containers said."""
    containers = []
    for container in task.get("containers", []):
        said = [str(container["reason"])] if container.get("reason") else []
        if container.get("exitCode") is not None and container["exitCode"] != 0:
            said.insert(0, f"ended with {container['exitCode']}")
        if said:
            containers.append(
                f"{container['name']} {', '.join(said)}" if said[0].startswith("ended") else f"{container['name']}: {said[0]}"
            )
    reason = str(task.get("stoppedReason") or "for no reason that AWS tells").rstrip(".")
    return f"{reason} ({'; '.join(containers)})" if containers else reason


def task_id(task: Mapping[str, Any]) -> str:
    """Return the id of a task."""
    return str(task["taskArn"]).rpartition("/")[2]
