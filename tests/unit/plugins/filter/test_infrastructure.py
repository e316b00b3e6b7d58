# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters of the infrastructure: what a few settings become, and which ones nothing can be made of."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.bitflow.lms.plugins.filter.infrastructure import (
    FilterModule,
    aws_alarms,
    aws_groups,
    aws_infrastructure,
    aws_listeners,
    aws_routes,
)

SETTINGS: dict[str, Any] = {
    "name": "lms-prod",
    "environment": "prod",
    "region": "us-east-1",
    "tags": {"Team": "lms"},
    "zones": ["a", "b", "c"],
    "public_subnets": ["10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24"],
    "private_subnets": ["10.0.10.0/24", "10.0.11.0/24", "10.0.12.0/24"],
    "visitors": ["0.0.0.0/0"],
    "operators": ["10.0.0.0/16"],
    "instances": {
        "frontend": {"type": "t3.medium", "min": 3, "max": 10, "disk": 30},
        "backend": {"type": "t3.large", "min": 3, "max": 10, "disk": 30},
    },
    "hosts": [{"role": "loadbalancer", "type": "t3.medium", "public": True, "disk": 30}],
    "domain": "lms.example.com",
    "frontends": [{"name": "student", "port": 3001}, {"name": "admin", "port": 3002}],
    "api_port": 8000,
    "bucket_prefix": "example",
}
TAGS = {"Team": "lms", "Environment": "prod", "ManagedBy": "bitflow.lms"}
PLAN = aws_infrastructure(SETTINGS)
ARNS = {each["name"]: f"arn:aws:elasticloadbalancing:us-east-1:1:targetgroup/{each['name']}/1" for each in PLAN["target_groups"]}


def test_each_zone_has_a_public_and_a_private_subnet() -> None:
    assert [(each["name"], each["cidr"], each["zone"]) for each in PLAN["subnets"]] == [
        ("lms-prod-public-us-east-1a", "10.0.1.0/24", "us-east-1a"),
        ("lms-prod-public-us-east-1b", "10.0.2.0/24", "us-east-1b"),
        ("lms-prod-public-us-east-1c", "10.0.3.0/24", "us-east-1c"),
        ("lms-prod-private-us-east-1a", "10.0.10.0/24", "us-east-1a"),
        ("lms-prod-private-us-east-1b", "10.0.11.0/24", "us-east-1b"),
        ("lms-prod-private-us-east-1c", "10.0.12.0/24", "us-east-1c"),
    ]


def test_instances_carry_the_tags_that_the_inventory_reads() -> None:
    assert [(each["name"], each["tags"]) for each in PLAN["tiers"]] == [
        (f"lms-prod-{role}-{colour}", {**TAGS, "Role": role, "Colour": colour})
        for role in ("backend", "frontend")
        for colour in ("blue", "green")
    ]
    assert [(each["name"], each["tags"]) for each in PLAN["hosts"]] == [("lms-prod-loadbalancer", {**TAGS, "Role": "loadbalancer"})]


def test_nobody_takes_the_tags_of_the_inventory_away() -> None:
    plan = aws_infrastructure({**SETTINGS, "tags": {"Environment": "staging", "ManagedBy": "me"}})

    assert plan["tags"] == {"Environment": "prod", "ManagedBy": "bitflow.lms"}


def test_each_service_has_a_target_group_in_each_colour() -> None:
    assert [(each["name"], each["role"], each["colour"], each["path"]) for each in PLAN["target_groups"]] == [
        ("lms-prod-8000-blue", "backend", "blue", "/health"),
        ("lms-prod-8000-green", "backend", "green", "/health"),
        ("lms-prod-3001-blue", "frontend", "blue", "/api/health"),
        ("lms-prod-3001-green", "frontend", "green", "/api/health"),
        ("lms-prod-3002-blue", "frontend", "blue", "/api/health"),
        ("lms-prod-3002-green", "frontend", "green", "/api/health"),
    ]
    assert all(len(each["name"]) <= 32 for each in PLAN["target_groups"])


def test_the_longest_name_still_makes_names_of_target_groups() -> None:
    plan = aws_infrastructure({**SETTINGS, "name": "a" * 20, "api_port": 65535})

    assert max(len(each["name"]) for each in plan["target_groups"]) == 32


def test_each_security_group_names_only_those_before_it() -> None:
    names = [each["name"] for each in PLAN["security_groups"]]

    assert names == [f"lms-prod-{key}" for key in ("alb", "monitoring", "loadbalancer", "backend", "frontend", "database", "cache")]
    for number, group in enumerate(PLAN["security_groups"]):
        assert {rule["group_name"] for rule in group["rules"] if "group_name" in rule} <= set(names[:number])


def test_the_database_and_the_cache_are_reached_by_the_backend_and_by_who_watches() -> None:
    rules = {each["key"]: [(rule["ports"], rule.get("group_name")) for rule in each["rules"]] for each in PLAN["security_groups"]}

    assert rules["database"] == [([5432], "lms-prod-backend"), ([5432], "lms-prod-monitoring")]
    assert rules["cache"] == [([6379], "lms-prod-backend"), ([6379], "lms-prod-monitoring")]


def test_only_the_load_balancers_are_open_to_visitors() -> None:
    everybody = {
        each["key"]: [rule["ports"] for rule in each["rules"] if "0.0.0.0/0" in rule.get("cidr_ip", [])] for each in PLAN["security_groups"]
    }

    assert {key: ports for key, ports in everybody.items() if ports} == {"alb": [[80, 443]], "loadbalancer": [[80, 443]]}


def test_buckets_and_repositories_have_their_names() -> None:
    assert [each["name"] for each in PLAN["buckets"]] == ["example-backups", "example-static", "example-uploads"]
    assert PLAN["repositories"] == ["lms-prod/backend", "lms-prod/student", "lms-prod/admin"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "LMS"}, "lms_aws_name is LMS."),
        ({"name": "a" * 21}, f"lms_aws_name is {'a' * 21}."),
        ({"name": "lms--prod"}, "lms_aws_name is lms--prod."),
        ({"public_subnets": ["10.0.1.0/24"]}, "lms_aws_public_subnets has 1 networks, and lms_aws_zones 3."),
        ({"private_subnets": []}, "lms_aws_private_subnets has 0 networks"),
        ({"zones": ["a"], "public_subnets": ["10.0.1.0/24"], "private_subnets": ["10.0.2.0/24"]}, "lms_aws_zones has fewer than two zones"),
        ({"instances": {"cache": {"min": 1, "max": 2}}}, "lms_aws_instances names the tier cache."),
        ({"instances": {"backend": {"min": 4, "max": 3}}}, "lms_aws_instances: min of backend is 4, and max 3."),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        aws_infrastructure({**SETTINGS, **settings})

    assert str(caught.value).startswith(message)


# Traffic


def weights(rule: dict[str, Any]) -> dict[str, int]:
    """Return the weights of a rule by the names of its target groups."""
    groups = rule["Actions"][0]["ForwardConfig"]["TargetGroups"]
    return {group["TargetGroupArn"].split("/")[1]: group["Weight"] for group in groups}


def test_a_new_load_balancer_sends_all_to_blue_and_has_green_attached() -> None:
    http, https = aws_listeners(PLAN, ARNS, "arn:certificate", [])

    assert http["DefaultActions"][0]["RedirectConfig"]["StatusCode"] == "HTTP_301"
    assert [(rule["Priority"], rule["Conditions"][0]["Values"], weights(rule)) for rule in https["Rules"]] == [
        ("10", ["api.lms.example.com"], {"lms-prod-8000-blue": 100, "lms-prod-8000-green": 0}),
        ("20", ["lms.example.com"], {"lms-prod-3001-blue": 100, "lms-prod-3001-green": 0}),
        ("30", ["student.lms.example.com"], {"lms-prod-3001-blue": 100, "lms-prod-3001-green": 0}),
        ("40", ["admin.lms.example.com"], {"lms-prod-3002-blue": 100, "lms-prod-3002-green": 0}),
    ]


def test_rules_that_are_there_are_left_alone_and_those_that_are_missing_are_made() -> None:
    there = [{"port": 80}, {"port": 443, "rules": [{"priority": "default"}, {"priority": "10"}, {"priority": "30"}]}]
    complete = [{"port": 443, "rules": [{"priority": str(number)} for number in (10, 20, 30, 40)]}]

    _http, https = aws_listeners(PLAN, ARNS, "arn:certificate", there)
    _http, unchanged = aws_listeners(PLAN, ARNS, "arn:certificate", complete)

    assert [rule["Priority"] for rule in https["Rules"]] == ["20", "40"]
    assert "Rules" not in unchanged


def test_who_moves_traffic_gets_every_rule_and_its_groups() -> None:
    assert aws_routes(PLAN) == {
        "lms_traffic_routes": [{"load_balancer": "lms-prod", "port": 443, "priority": number} for number in (10, 20, 30, 40)],
        "lms_traffic_colours": {
            colour: {
                "lms-prod:443/10": f"lms-prod-8000-{colour}",
                "lms-prod:443/20": f"lms-prod-3001-{colour}",
                "lms-prod:443/30": f"lms-prod-3001-{colour}",
                "lms-prod:443/40": f"lms-prod-3002-{colour}",
            }
            for colour in ("blue", "green")
        },
    }


def test_an_api_alone_has_no_front_ends() -> None:
    plan = aws_infrastructure({**SETTINGS, "instances": {"backend": SETTINGS["instances"]["backend"]}, "frontends": []})

    assert [each["name"] for each in plan["tiers"]] == ["lms-prod-backend-blue", "lms-prod-backend-green"]
    assert aws_routes(plan)["lms_traffic_routes"] == [{"load_balancer": "lms-prod", "port": 443, "priority": 10}]


def test_the_groups_of_the_contract_name_roles_and_colours() -> None:
    groups = aws_groups(PLAN, ARNS)

    assert groups["target_groups"][0] == {
        "name": "lms-prod-8000-blue",
        "arn": ARNS["lms-prod-8000-blue"],
        "role": "backend",
        "colour": "blue",
        "port": 8000,
    }
    assert groups["auto_scaling_groups"][0] == {"name": "lms-prod-backend-blue", "role": "backend", "colour": "blue"}


# Alarms


def test_what_visitors_meet_and_what_runs_out_is_watched() -> None:
    balancer = "arn:aws:elasticloadbalancing:us-east-1:1:loadbalancer/app/lms-prod/50dc6c495c0c9188"
    database = {"instances": ["lms-prod", "lms-prod-replica-1"], "storage": 500}

    alarms = {each["name"]: each for each in aws_alarms(PLAN, balancer, ARNS, database, ["lms-prod-0001-001"])}

    assert sorted(alarms) == [
        *("lms-prod-0001-001-memory", "lms-prod-5xx"),
        *(f"lms-prod-8000-{colour}-{kind}" for colour in ("blue", "green") for kind in ("5xx", "slow", "unhealthy")),
        *("lms-prod-cpu", "lms-prod-replica-1-cpu", "lms-prod-replica-1-lag", "lms-prod-storage"),
    ]
    assert alarms["lms-prod-8000-blue-5xx"]["dimensions"] == {
        "LoadBalancer": "app/lms-prod/50dc6c495c0c9188",
        "TargetGroup": "targetgroup/lms-prod-8000-blue/1",
    }
    assert (alarms["lms-prod-storage"]["comparison"], alarms["lms-prod-storage"]["threshold"]) == ("LessThanThreshold", 50 * 1024.0**3)


def test_the_filters_have_their_names() -> None:
    assert set(FilterModule().filters()) == {"aws_alarms", "aws_groups", "aws_infrastructure", "aws_listeners", "aws_routes"}
