# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Task definitions: what is the same, what differs, and what a diff shows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._ecs_definition import log_of, normal, pictured, read_definition, same_name
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

ARN = "arn:aws:ecs:eu-central-1:123456789012:task-definition/lms:1"
GIVEN: dict[str, Any] = {
    "family": "lms",
    "networkMode": "awsvpc",
    "requiresCompatibilities": ["FARGATE"],
    "cpu": 512,
    "memory": "1024",
    "taskRoleArn": "arn:aws:iam::123456789012:role/lms",
    "containerDefinitions": [
        {
            "name": "app",
            "image": "lms:1",
            "portMappings": [{"containerPort": "8080"}],
            "environment": [{"name": "B", "value": "2"}, {"name": "A", "value": 1}],
            "secrets": [{"name": "APP_KEY", "valueFrom": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:key"}],
            "healthCheck": {"command": ["CMD", "true"]},
            "command": ["php", "artisan", "serve"],
        },
        {"name": "proxy", "image": "nginx:1", "essential": False},
    ],
    "volumes": [{"name": "files", "efsVolumeConfiguration": {"fileSystemId": "fs-1"}}],
}
# The same as AWS answers with it.
ANSWERED: dict[str, Any] = {
    "taskDefinitionArn": ARN,
    "family": "lms",
    "revision": 1,
    "status": "ACTIVE",
    "networkMode": "awsvpc",
    "requiresCompatibilities": ["FARGATE"],
    "compatibilities": ["EC2", "FARGATE"],
    "requiresAttributes": [{"name": "ecs.capability.task-eni"}],
    "registeredAt": "2026-11-23T10:00:00Z",
    "registeredBy": "arn:aws:iam::123456789012:user/lms",
    "cpu": "512",
    "memory": "1024",
    "taskRoleArn": "arn:aws:iam::123456789012:role/lms",
    "placementConstraints": [],
    "containerDefinitions": [
        {
            "name": "proxy",
            "image": "nginx:1",
            "cpu": 0,
            "essential": False,
            "portMappings": [],
            "environment": [],
            "mountPoints": [],
            "volumesFrom": [],
            "systemControls": [],
        },
        {
            "name": "app",
            "image": "lms:1",
            "cpu": 0,
            "essential": True,
            "portMappings": [{"containerPort": 8080, "hostPort": 8080, "protocol": "tcp"}],
            "environment": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
            "secrets": [{"name": "APP_KEY", "valueFrom": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:key"}],
            "healthCheck": {"command": ["CMD", "true"], "interval": 30, "timeout": 5, "retries": 3},
            "command": ["php", "artisan", "serve"],
            "mountPoints": [],
            "volumesFrom": [],
            "systemControls": [],
        },
    ],
    "volumes": [
        {"name": "files", "efsVolumeConfiguration": {"fileSystemId": "fs-1", "rootDirectory": "/", "transitEncryption": "DISABLED"}}
    ],
}


def changed(path: list[Any], value: Any) -> dict[str, Any]:
    """Return the definition with another value somewhere; None takes it out."""
    definition = copy.deepcopy(GIVEN)
    place: Any = definition
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return definition


def test_what_aws_adds_makes_no_difference() -> None:
    assert normal(ANSWERED) == normal(GIVEN)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["cpu"], 1024),
        (["memory"], 2048),
        (["taskRoleArn"], None),
        (["executionRoleArn"], "arn:aws:iam::123456789012:role/execution"),
        (["networkMode"], "host"),
        (["requiresCompatibilities"], ["EC2", "FARGATE"]),
        (["volumes"], None),
        (["volumes", 0, "efsVolumeConfiguration", "rootDirectory"], "/lms"),
        (["ephemeralStorage"], {"sizeInGiB": 50}),
        (["containerDefinitions", 0, "image"], "lms:2"),
        (["containerDefinitions", 0, "command"], ["artisan", "php", "serve"]),
        (["containerDefinitions", 0, "command"], None),
        (["containerDefinitions", 0, "cpu"], 256),
        (["containerDefinitions", 0, "essential"], False),
        (["containerDefinitions", 0, "environment", 0, "value"], "3"),
        (["containerDefinitions", 0, "environment", 0], None),
        (["containerDefinitions", 0, "secrets"], None),
        (["containerDefinitions", 0, "portMappings", 0, "containerPort"], 8081),
        (["containerDefinitions", 0, "portMappings", 0, "protocol"], "udp"),
        (["containerDefinitions", 0, "healthCheck", "interval"], 10),
        (["containerDefinitions", 0, "healthCheck"], None),
        (["containerDefinitions", 0, "stopTimeout"], 120),
        (["containerDefinitions", 1], None),
    ],
)
def test_defect_18_every_part_of_a_definition_is_compared(path: list[Any], value: Any) -> None:
    assert normal(changed(path, value)) != normal(ANSWERED)


def test_a_port_of_the_host_is_free_where_the_network_is_a_bridge() -> None:
    bridge: dict[str, Any] = {
        "family": "lms",
        "containerDefinitions": [{"name": "app", "image": "a", "portMappings": [{"containerPort": 80}]}],
    }
    fixed = {**bridge, "containerDefinitions": [{"name": "app", "image": "a", "portMappings": [{"containerPort": 80, "hostPort": 80}]}]}

    assert normal(bridge) == normal({**bridge, "networkMode": "bridge"})
    assert normal(bridge) != normal(fixed)


def test_tags_say_nothing_about_what_runs() -> None:
    assert normal({**GIVEN, "tags": [{"key": "a", "value": "b"}]}) == normal(GIVEN)


def test_an_answer_of_aws_can_be_given_as_it_is() -> None:
    assert set(read_definition(ANSWERED)) <= {*GIVEN, "placementConstraints"}


def test_numbers_and_strings_become_what_aws_takes() -> None:
    definition = read_definition(GIVEN)

    assert (definition["cpu"], definition["memory"]) == ("512", "1024")
    container = definition["containerDefinitions"][0]
    assert (container["portMappings"], container["environment"][1]) == ([{"containerPort": 8080}], {"name": "A", "value": "1"})


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        (
            {"family": "lms", "containers": []},
            "definition has containers, which no task definition has. It may have containerDefinitions, cpu",
        ),
        ({"containerDefinitions": [{"name": "app"}]}, "definition has no family. Give family and containerDefinitions at least."),
        ({"family": "lms"}, "definition has no containerDefinitions."),
        ({"family": "lms", "containerDefinitions": [{"image": "a"}]}, r"definition.containerDefinitions\[0\] has no name."),
    ],
)
def test_what_is_no_definition_is_refused(definition: dict[str, Any], message: str) -> None:
    with pytest.raises(LmsError, match=message):
        read_definition(definition)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (ARN, "lms:1", True),
        ("lms:1", ARN, True),
        (ARN, ARN, True),
        ("lms:1", "lms:2", False),
        (ARN, ARN.replace("123456789012", "210987654321"), False),
    ],
)
def test_a_short_name_and_an_arn_are_the_same(one: str, other: str, same: bool) -> None:
    assert same_name(one, other) is same


def test_a_picture_tells_which_variables_are_new_and_no_value() -> None:
    picture = pictured(changed(["containerDefinitions", 0, "environment", 0, "value"], "secret"), GIVEN)

    assert picture["containerDefinitions"][0]["environment"] == {"A": "(hidden)", "B": "(hidden, new)"}
    assert "secret" not in str(picture).replace("secretsmanager", "").replace("secrets", "").replace(":secret:", "")
    assert pictured(None) == {}


@pytest.mark.parametrize(
    ("config", "log"),
    [
        ({"logDriver": "awslogs", "options": {"awslogs-group": "g", "awslogs-stream-prefix": "p"}}, {"group": "g", "stream": "p/app/1"}),
        ({"logDriver": "awslogs", "options": {"awslogs-group": "g"}}, {"group": "g", "stream": ""}),
        ({"logDriver": "fluentd", "options": {"awslogs-group": "g"}}, None),
        ({"logDriver": "awslogs"}, None),
        (None, None),
    ],
)
def test_the_place_of_the_log(config: dict[str, Any] | None, log: dict[str, str] | None) -> None:
    assert log_of({"name": "app", "logConfiguration": config}, "1") == log
