# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that shape what is made in AWS: names, subnets, groups and alarms from a few settings. Pure functions over plain data."""

from __future__ import annotations

import re
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

Plain = dict[str, Any]

NAME = re.compile(r"[a-z](?!.*--)[a-z0-9-]{0,18}[a-z0-9]")
MANAGED_BY = "bitflow.lms"
COLOURS = ("blue", "green")
# Ports at which Prometheus asks the hosts, whatever exporter they have.
EXPORTERS = "9000-9999"
BUCKETS = ("backups", "static", "uploads")
# The first rule of the load balancer, and the distance to the next.
PRIORITY = 10
HTTP = 80
HTTPS = 443
TLS = "ELBSecurityPolicy-TLS13-1-2-2021-06"


def aws_infrastructure(settings: Plain) -> Plain:
    """Return everything that is made, by name, or say which setting nothing can be made of."""
    name = settings["name"]
    if not NAME.fullmatch(name):
        raise AnsibleFilterError(
            f"lms_aws_name is {name}. Give 2 to 20 lower-case letters, digits and hyphens, beginning with a letter, "
            "with no hyphen at the end and no two in a row."
        )
    zones = [f"{settings['region']}{letter}" for letter in settings["zones"]]
    for kind in ("public", "private"):
        if len(settings[f"{kind}_subnets"]) != len(zones):
            raise AnsibleFilterError(
                f"lms_aws_{kind}_subnets has {len(settings[f'{kind}_subnets'])} networks, and lms_aws_zones {len(zones)}. "
                "Give one for each zone."
            )
    if len(zones) < 2:
        raise AnsibleFilterError(
            "lms_aws_zones has fewer than two zones, and a load balancer and a database of AWS need two. Give another one."
        )
    tags = {**settings["tags"], "Environment": settings["environment"], "ManagedBy": MANAGED_BY}
    services = _services(settings)
    return {
        "name": name,
        "tags": tags,
        "subnets": [
            {"name": f"{name}-{kind}-{zone}", "kind": kind, "cidr": cidr, "zone": zone}
            for kind in ("public", "private")
            for cidr, zone in zip(settings[f"{kind}_subnets"], zones)
        ],
        "security_groups": _security_groups(settings, services),
        "services": services,
        "target_groups": [
            {
                "name": f"{name}-{service['port']}-{colour}",
                "port": service["port"],
                "path": service["path"],
                "tags": {**tags, "Role": service["role"], "Colour": colour},
                "service": service["name"],
                "role": service["role"],
                "colour": colour,
            }
            for service in services
            for colour in COLOURS
        ],
        "tiers": _tiers(settings, tags),
        "hosts": [{**host, "name": f"{name}-{host['role']}", "tags": {**tags, "Role": host["role"]}} for host in settings["hosts"]],
        "buckets": [{"name": f"{settings['bucket_prefix']}-{bucket}", "kind": bucket} for bucket in BUCKETS],
        "repositories": [f"{name}/{image}" for image in ("backend", *(frontend["name"] for frontend in settings["frontends"]))],
    }


def _services(settings: Plain) -> list[Plain]:
    """Return what the load balancer sends to: the API, and each front end at its port."""
    domain = settings["domain"]
    found = [{"name": "api", "role": "backend", "port": int(settings["api_port"]), "path": "/health", "hosts": [f"api.{domain}"]}]
    for number, frontend in enumerate(settings["frontends"] if "frontend" in settings["instances"] else []):
        hosts = [f"{frontend['name']}.{domain}"] + ([domain] if number == 0 else [])
        found.append({"name": frontend["name"], "role": "frontend", "port": int(frontend["port"]), "path": "/api/health", "hosts": hosts})
    return found


def _security_groups(settings: Plain, services: list[Plain]) -> list[Plain]:
    """Return the groups, each after those that its rules name."""
    name = settings["name"]
    web = {"ports": [80, 443], "cidr_ip": settings["visitors"]}
    ssh = {"ports": [22], "cidr_ip": settings["operators"]}
    measured = {"ports": [EXPORTERS], "group_name": f"{name}-monitoring"}
    balanced = [f"{name}-alb", f"{name}-loadbalancer"]
    wanted: list[tuple[str, str, list[Plain]]] = [
        ("alb", "The load balancer of AWS", [web]),
        ("monitoring", "The host that watches and backs up", [ssh]),
        ("loadbalancer", "The own load balancer", [web, ssh, measured]),
        *(
            (
                role,
                f"The hosts of the tier {role}",
                [
                    ssh,
                    measured,
                    *(
                        {"ports": sorted({each["port"] for each in services if each["role"] == role}), "group_name": balancer}
                        for balancer in balanced
                    ),
                ],
            )
            for role in sorted(settings["instances"])
        ),
        ("database", "The database", [{"ports": [5432], "group_name": f"{name}-{role}"} for role in ("backend", "monitoring")]),
        ("cache", "The cache", [{"ports": [6379], "group_name": f"{name}-{role}"} for role in ("backend", "monitoring")]),
    ]
    return [
        {"name": f"{name}-{key}", "key": key, "description": description, "rules": [{"proto": "tcp", **rule} for rule in rules]}
        for key, description, rules in wanted
    ]


def _tiers(settings: Plain, tags: Plain) -> list[Plain]:
    """Return the tiers in their colours, for each of which there is an auto scaling group."""
    found: list[Plain] = []
    for role, instances in sorted(settings["instances"].items()):
        if role not in ("backend", "frontend"):
            raise AnsibleFilterError(
                f"lms_aws_instances names the tier {role}. The tiers are backend and frontend; others are lms_aws_hosts."
            )
        if not 0 <= int(instances["min"]) <= int(instances["max"]):
            raise AnsibleFilterError(
                f"lms_aws_instances: min of {role} is {instances['min']}, and max {instances['max']}. Give max at least min."
            )
        found.extend(
            {
                **instances,
                "name": f"{settings['name']}-{role}-{colour}",
                "role": role,
                "colour": colour,
                "tags": {**tags, "Role": role, "Colour": colour},
            }
            for colour in COLOURS
        )
    return found


def aws_listeners(plan: Plain, groups: dict[str, str], certificate: str, there: list[Plain]) -> list[Plain]:
    """Return the listeners of the load balancer, each with those of its rules that it does not have yet.

    A rule that is there stays as it is, because its weights are the traffic. A new one sends all to blue, and has green without weight, so
    that it is checked.
    """
    known = {str(rule["priority"]) for listener in there if listener["port"] == HTTPS for rule in listener.get("rules", [])}
    rules = [
        {
            "Priority": str(PRIORITY * number),
            # One name a rule: the module of amazon.aws stumbles over the form that takes several.
            "Conditions": [{"Field": "host-header", "Values": [host]}],
            "Actions": [_forward(plan, groups, service)],
        }
        for number, (host, service) in enumerate(_names(plan), 1)
        if str(PRIORITY * number) not in known
    ]
    redirect = {
        "Protocol": "HTTPS",
        "Port": str(HTTPS),
        "Host": "#{host}",
        "Path": "/#{path}",
        "Query": "#{query}",
        "StatusCode": "HTTP_301",
    }
    return [
        {"Protocol": "HTTP", "Port": HTTP, "DefaultActions": [{"Type": "redirect", "RedirectConfig": redirect}]},
        {
            "Protocol": "HTTPS",
            "Port": HTTPS,
            "SslPolicy": TLS,
            "Certificates": [{"CertificateArn": certificate}],
            # Nobody has business with a name that is not ours.
            "DefaultActions": [
                {
                    "Type": "fixed-response",
                    "FixedResponseConfig": {"StatusCode": "404", "ContentType": "text/plain", "MessageBody": "Not found"},
                }
            ],
            **({"Rules": rules} if rules else {}),
        },
    ]


def _names(plan: Plain) -> list[tuple[str, str]]:
    """Return each name that visitors use, with its service: the API, the bare domain, then the front ends.

    A front end that is added at the end changes the priority of no other rule.
    """
    api, *frontends = plan["services"]
    bare = [(host, each["name"]) for each in frontends for host in each["hosts"][1:]]
    return [(api["hosts"][0], api["name"]), *bare, *[(each["hosts"][0], each["name"]) for each in frontends]]


def _forward(plan: Plain, groups: dict[str, str], service: str) -> Plain:
    """Return an action that sends all to blue."""
    weights = {"blue": 100, "green": 0}
    return {
        "Type": "forward",
        "ForwardConfig": {
            "TargetGroups": [
                {"TargetGroupArn": groups[each["name"]], "Weight": weights[each["colour"]]}
                for each in plan["target_groups"]
                if each["service"] == service
            ],
            "TargetGroupStickinessConfig": {"Enabled": False},
        },
    }


def aws_routes(plan: Plain) -> Plain:
    """Return the routes and colours that moving traffic asks for, as lms_traffic_routes and lms_traffic_colours take them."""
    routes = [{"load_balancer": plan["name"], "port": HTTPS, "priority": PRIORITY * number} for number in range(1, len(_names(plan)) + 1)]
    labels = [f"{route['load_balancer']}:{route['port']}/{route['priority']}" for route in routes]
    return {
        "lms_traffic_routes": routes,
        "lms_traffic_colours": {
            colour: {
                label: next(each["name"] for each in plan["target_groups"] if each["service"] == service and each["colour"] == colour)
                for label, (_host, service) in zip(labels, _names(plan))
            }
            for colour in COLOURS
        },
    }


def aws_groups(plan: Plain, arns: dict[str, str]) -> Plain:
    """Return the groups of both kinds as the contract with the playbooks has them."""
    return {
        "target_groups": [
            {**{key: each[key] for key in ("name", "role", "colour", "port")}, "arn": arns[each["name"]]} for each in plan["target_groups"]
        ],
        "auto_scaling_groups": [{key: each[key] for key in ("name", "role", "colour")} for each in plan["tiers"]],
    }


def aws_alarms(plan: Plain, balancer: str, groups: dict[str, str], database: Plain, nodes: list[str]) -> list[Plain]:
    """Return the alarms: what visitors meet, and what the database and the cache run out of."""
    name = plan["name"]
    on_balancer = {"LoadBalancer": balancer.partition(":loadbalancer/")[2]}
    return [
        _alarm(
            f"{name}-5xx",
            "AWS/ApplicationELB",
            "HTTPCode_ELB_5XX_Count",
            on_balancer,
            "Sum",
            10,
            60,
            5,
            "The load balancer itself answers 5xx",
        ),
        *(
            _alarm(
                f"{name}-{each['port']}-{each['colour']}-{kind}",
                "AWS/ApplicationELB",
                metric,
                {**on_balancer, "TargetGroup": groups[each["name"]].rpartition(":")[2]},
                statistic,
                threshold,
                60,
                3,
                words.format(**each),
            )
            for each in plan["target_groups"]
            if each["role"] == "backend"
            for kind, metric, statistic, threshold, words in (
                ("5xx", "HTTPCode_Target_5XX_Count", "Sum", 10, "Targets of {service} on {colour} answer 5xx"),
                ("unhealthy", "UnHealthyHostCount", "Maximum", 0, "Targets of {service} on {colour} are not healthy"),
                ("slow", "TargetResponseTime", "Average", 1, "{service} on {colour} takes longer than a second"),
            )
        ),
        *_of_database(name, database),
        *(
            _alarm(
                f"{node}-memory",
                "AWS/ElastiCache",
                "DatabaseMemoryUsagePercentage",
                {"CacheClusterId": node},
                "Average",
                80,
                300,
                2,
                f"The cache's node {node} has little memory left",
            )
            for node in nodes
        ),
    ]


def _of_database(name: str, database: Plain) -> list[Plain]:
    """Return the alarms of the database and its replicas."""
    found = []
    for number, instance in enumerate(database["instances"]):
        on = {"DBInstanceIdentifier": instance}
        found.append(_alarm(f"{instance}-cpu", "AWS/RDS", "CPUUtilization", on, "Average", 80, 300, 3, f"{instance} is busy"))
        if number == 0:
            tenth = int(database["storage"]) * 1024**3 // 10
            storage = _alarm(
                f"{instance}-storage",
                "AWS/RDS",
                "FreeStorageSpace",
                on,
                "Minimum",
                tenth,
                300,
                1,
                f"{instance} has a tenth of its disk left",
            )
            found.append({**storage, "comparison": "LessThanThreshold"})
        else:
            found.append(
                _alarm(f"{instance}-lag", "AWS/RDS", "ReplicaLag", on, "Average", 60, 60, 5, f"{instance} is more than a minute late")
            )
    return found


def _alarm(
    name: str, namespace: str, metric: str, dimensions: Plain, statistic: str, threshold: int, period: int, periods: int, words: str
) -> Plain:
    """Return an alarm as the module takes it."""
    return {
        "name": name,
        "namespace": namespace,
        "metric": metric,
        "dimensions": dimensions,
        "statistic": statistic,
        "comparison": "GreaterThanThreshold",
        "threshold": float(threshold),
        "period": period,
        "evaluation_periods": periods,
        "description": words,
    }


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return them by name."""
        return {
            "aws_alarms": aws_alarms,
            "aws_groups": aws_groups,
            "aws_infrastructure": aws_infrastructure,
            "aws_listeners": aws_listeners,
            "aws_routes": aws_routes,
        }
