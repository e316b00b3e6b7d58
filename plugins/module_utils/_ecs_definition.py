# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Task definitions of ECS as plain data: how they are named, and whether two of them say the same.

AWS answers with more than it was given: with defaults, with lists in another order, and with what it adds itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

# What a definition may have. The rest of an answer is AWS's own.
GIVEN = (
    *("containerDefinitions", "cpu", "enableFaultInjection", "ephemeralStorage", "executionRoleArn", "family", "inferenceAccelerators"),
    *("ipcMode", "memory", "networkMode", "pidMode", "placementConstraints", "proxyConfiguration", "requiresCompatibilities"),
    *("runtimePlatform", "tags", "taskRoleArn", "volumes"),
)
ADDED = (
    *("compatibilities", "deleteRequestedAt", "deregisteredAt", "registeredAt", "registeredBy", "requiresAttributes", "revision"),
    *("status", "taskDefinitionArn"),
)
# Whole numbers, which a template of Ansible may have made strings.
NUMBERS = frozenset(
    {
        *("containerPort", "cpu", "hostPort", "interval", "memory", "memoryReservation", "retries", "sizeInGiB", "softLimit"),
        *("hardLimit", "startPeriod", "startTimeout", "stopTimeout", "timeout"),
    }
)
# Lists in which the order says nothing.
UNORDERED = frozenset({"environment", "secrets", "containerDefinitions", "volumes", "ulimits"})
CONTAINER_DEFAULTS: Mapping[str, Any] = {"cpu": 0, "essential": True}
CHECK_DEFAULTS: Mapping[str, Any] = {"interval": 30, "retries": 3, "timeout": 5}
HIDDEN = "(hidden)"
HIDDEN_NEW = "(hidden, new)"


# Names


def short_name(definition: str) -> str:
    """Return family and revision of a definition that may be named by its ARN."""
    return definition.rpartition("/")[2]


def same_name(one: str, other: str) -> bool:
    """Say whether two names, of which one may be an ARN, are of the same definition."""
    if ":task-definition/" in one and ":task-definition/" in other:
        return one == other
    return short_name(one) == short_name(other)


# What a definition says


def read_definition(option: Mapping[str, Any]) -> dict[str, Any]:
    """Read a definition as an option gives it, or as AWS answered with it, so that AWS takes it."""
    unknown = sorted(set(option) - {*GIVEN, *ADDED})
    if unknown:
        raise LmsError(f"definition has {', '.join(unknown)}, which no task definition has. It may have {', '.join(GIVEN)}.")
    definition = {key: _typed(value) for key, value in option.items() if key in GIVEN and value not in (None, [], {})}
    for key in ("family", "containerDefinitions"):
        if not definition.get(key):
            raise LmsError(f"definition has no {key}. Give family and containerDefinitions at least.")
    for number, container in enumerate(definition["containerDefinitions"]):
        if not isinstance(container, Mapping) or not container.get("name"):
            raise LmsError(f"definition.containerDefinitions[{number}] has no name. Give each container a name and an image.")
    # Those of the task are strings in AWS, unlike those of its containers.
    return {key: str(value) if key in ("cpu", "memory") else value for key, value in definition.items()}


def _typed(value: Any, key: str = "") -> Any:
    """Return data with its numbers as numbers, and the values of environments as strings."""
    if isinstance(value, Mapping):
        return {each: _typed(inner, each) for each, inner in value.items() if inner is not None}
    if isinstance(value, (list, tuple)):
        if key == "environment":
            return [{"name": str(each["name"]), "value": str(each.get("value", ""))} for each in value]
        return [_typed(each, key) for each in value]
    if key in NUMBERS and isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return value


def normal(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return a definition so that two that mean the same are equal. Tags say nothing about what runs."""
    given = {key: value for key, value in read_definition(definition).items() if key != "tags"}
    fargate = "FARGATE" in given.get("requiresCompatibilities", [])
    given.setdefault("networkMode", "awsvpc" if fargate else "bridge")
    given["requiresCompatibilities"] = sorted(given.get("requiresCompatibilities") or [])
    # The network of the container is that of its host, or of its own interface: no port is translated.
    fixed_ports = given["networkMode"] in ("awsvpc", "host")
    given["containerDefinitions"] = [_normal_container(container, fixed_ports) for container in given["containerDefinitions"]]
    given["volumes"] = [_normal_volume(volume) for volume in given.get("volumes", [])]
    return dict(_pruned(given))


def _normal_container(container: Mapping[str, Any], fixed_ports: bool) -> dict[str, Any]:
    """Return a container with the defaults that AWS adds."""
    filled = {**CONTAINER_DEFAULTS, **container}
    if filled.get("healthCheck"):
        filled["healthCheck"] = {**CHECK_DEFAULTS, **filled["healthCheck"]}
    filled["portMappings"] = [_normal_port(port, fixed_ports) for port in filled.get("portMappings") or []]
    return filled


def _normal_port(port: Mapping[str, Any], fixed: bool) -> dict[str, Any]:
    """Return a port with the defaults that AWS adds."""
    filled = {"protocol": "tcp", **port}
    host_port = filled.pop("hostPort", 0) or (filled.get("containerPort", 0) if fixed else 0)
    return {**filled, "hostPort": host_port}


def _normal_volume(volume: Mapping[str, Any]) -> dict[str, Any]:
    """Return a volume with the defaults that AWS adds."""
    shared = volume.get("efsVolumeConfiguration")
    return {**volume, "efsVolumeConfiguration": {"rootDirectory": "/", "transitEncryption": "DISABLED", **shared}} if shared else {**volume}


def _pruned(value: Any, key: str = "") -> Any:
    """Return data without what is empty, and with lists sorted whose order says nothing."""
    if isinstance(value, Mapping):
        pruned = {each: _pruned(inner, each) for each, inner in sorted(value.items())}
        return {each: inner for each, inner in pruned.items() if inner not in (None, [], {})}
    if isinstance(value, list):
        items = [_pruned(each) for each in value]
        return sorted(items, key=lambda item: str(item.get("name"))) if key in UNORDERED else items
    return value


# Diff


def pictured(definition: Mapping[str, Any] | None, other: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a definition for a diff beside another one. The values of its environment may be secret, and only say whether they are new."""
    if definition is None:
        return {}
    known = {container["name"]: _environment(container) for container in normal(other)["containerDefinitions"]} if other else {}
    shown = normal(definition)
    containers = []
    for container in shown.pop("containerDefinitions"):
        before = known.get(container["name"], {})
        environment = {
            name: HIDDEN if other is None or before.get(name) == value else HIDDEN_NEW for name, value in _environment(container).items()
        }
        containers.append({**container, "environment": environment})
    return {**shown, "containerDefinitions": containers}


def _environment(container: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment of a container."""
    return {each["name"]: each["value"] for each in container.get("environment", [])}


# Containers


def container_named(definition: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """Return a container of a definition, the only one where none is named."""
    containers: Sequence[dict[str, Any]] = definition["containerDefinitions"]
    names = ", ".join(container["name"] for container in containers)
    what = short_name(definition["taskDefinitionArn"])
    if name is None:
        if len(containers) > 1:
            raise LmsError(f"{what} has the containers {names}. Say which of them is meant with container.")
        return containers[0]
    for container in containers:
        if container["name"] == name:
            return container
    raise LmsError(f"{what} has no container {name}. Its containers: {names}.")


def log_of(container: Mapping[str, Any], task_id: str) -> dict[str, str] | None:
    """Return the group and the stream of CloudWatch that a container writes to, where it does."""
    config = container.get("logConfiguration") or {}
    options = config.get("options") or {}
    if config.get("logDriver") != "awslogs" or "awslogs-group" not in options:
        return None
    prefix = options.get("awslogs-stream-prefix")
    return {"group": options["awslogs-group"], "stream": f"{prefix}/{container['name']}/{task_id}" if prefix else ""}
