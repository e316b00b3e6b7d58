# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the options of traffic_rollout mean: which load balancer, which record, which checks."""

from __future__ import annotations

import getpass
import socket
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._alb import AlbProvider, routes_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api, AwsError, client_for, is_transient
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic import NginxProvider
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_sites import traffic_directory_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import Provider
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_checks import (
    alarm_check,
    queries_argspec,
    query_check,
    smoke_argspec,
    smoke_check,
)
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_record import (
    ConflictError,
    LeaseHeldError,
    LeaseLostError,
    Step,
    Store,
    UnreachableError,
    open_record,
)
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_rollout import ACTIONS, STATUS, Check, Checks, Outcome, Request, Settings
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_tick import tick, ticks

ALB = "alb"
NGINX = "nginx"
PROVIDERS = (ALB, NGINX)
# How long a colour that lost its last weight may still get requests (seconds). nginx looks with each request.
PROPAGATION: Mapping[str, float] = {ALB: 60, NGINX: 1}
DEFAULT_STEPS = (
    {"weight": 5, "bake": 300},
    {"weight": 25, "bake": 300},
    {"weight": 50, "bake": 300},
    {"weight": 100, "bake": 600},
)


def rollout_argspec() -> dict[str, dict[str, Any]]:
    """Return the options."""
    return {
        **traffic_directory_argspec(),
        "name": {"type": "str", "required": True},
        "action": {"type": "str", "choices": list(ACTIONS), "required": True},
        "provider": {"type": "str", "choices": list(PROVIDERS), "required": True},
        "routes": {"type": "list", "elements": "dict", "options": routes_argspec()},
        "colours": {"type": "dict"},
        "release": {"type": "str", "default": ""},
        "colour": {"type": "str", "default": ""},
        "state": {"type": "str", "required": True},
        "steps": {
            "type": "list",
            "elements": "dict",
            "default": [dict(step) for step in DEFAULT_STEPS],
            "options": {"weight": {"type": "int", "required": True}, "bake": {"type": "float", "required": True}},
        },
        "gate": {
            "type": "dict",
            "default": {},
            "options": {
                "min_healthy": {"type": "int", "default": 1},
                "consecutive": {"type": "int", "default": 3},
                "interval": {"type": "float", "default": 5},
                "timeout": {"type": "float", "default": 600},
            },
        },
        "smoke": {"type": "list", "elements": "dict", "default": [], "options": smoke_argspec()},
        "alarms": {"type": "list", "elements": "str", "default": []},
        "queries": {"type": "list", "elements": "dict", "default": [], "options": queries_argspec()},
        "insufficient_data": {"type": "str", "choices": ["wait", "fail", "pass"], "default": "wait"},
        "verify_timeout": {"type": "float", "default": 60},
        "propagation_wait": {"type": "float"},
        "retain": {"type": "float", "default": 86400},
        "on_drift": {"type": "str", "choices": ["fail", "adopt", "restore"], "default": "fail"},
        "lease_time": {"type": "float", "default": 120},
        "max_wait": {"type": "float", "default": 0},
    }


def settings_of(options: Mapping[str, Any]) -> Settings:
    """Read how the rollout is to go."""
    gate, propagation = options["gate"], options["propagation_wait"]
    return Settings(
        steps=tuple(Step(step["weight"], step["bake"]) for step in options["steps"]),
        min_healthy=gate["min_healthy"],
        consecutive=gate["consecutive"],
        interval=gate["interval"],
        gate_timeout=gate["timeout"],
        propagation=PROPAGATION[options["provider"]] if propagation is None else propagation,
        verify_timeout=options["verify_timeout"],
        retain=options["retain"],
        lease=options["lease_time"],
        insufficient=options["insufficient_data"],
        on_drift=options["on_drift"],
    )


def checks_of(options: Mapping[str, Any], api: Callable[[str], Any]) -> Checks:
    """Read what is asked besides the load balancer; api makes a service of AWS by its name."""
    smoke = [smoke_check(option) for option in options["smoke"]]
    watch: list[Check] = [check for check, option in zip(smoke, options["smoke"]) if option["watch"]]
    watch += [query_check(option) for option in options["queries"]]
    if options["alarms"]:
        watch.append(alarm_check(api("cloudwatch"), options["alarms"]))
    return Checks(smoke, watch)


def open_provider(options: Mapping[str, Any], api: Callable[[str], Any]) -> Provider:
    """Return the load balancer that the options name."""
    return _open_nginx(options) if options["provider"] == NGINX else _open_alb(options, api)


def _open_alb(options: Mapping[str, Any], api: Callable[[str], Any]) -> Provider:
    """Return a load balancer of AWS."""
    colours, routes = options["colours"] or {}, options["routes"]
    if len(colours) < 2:
        raise LmsError(f"colours names {', '.join(colours) or 'nothing'}. Name two colours at least.")
    if not routes:
        raise LmsError("routes is empty. Name one route at least.")
    return AlbProvider.of_colours(api("elasticloadbalancing"), routes, colours)


def _open_nginx(options: Mapping[str, Any]) -> Provider:
    """Return the load balancer of this host."""
    if options["colours"]:
        raise LmsError("colours is given, but the load balancer's own upstreams say what its colours are. Leave colours out.")
    routes = options["routes"] or []
    for route in routes:
        given = sorted(key for key, value in route.items() if value is not None)
        if given != ["name"]:
            raise LmsError(f"A route has {', '.join(given) or 'nothing'}, but nginx knows sites by name alone. Give name.")
    provider = NginxProvider.of_routes(options["traffic_directory"], [route["name"] for route in routes])
    provider.refuse_mixed()
    return provider


def open_api(options: Mapping[str, Any]) -> Callable[[str], Any]:
    """Return what makes a service of AWS by the name that IAM has for it."""

    def make(service: str) -> Any:
        return Api(client_for({"elasticloadbalancing": "elbv2"}.get(service, service), options), service)

    return make


def open_state(options: Mapping[str, Any]) -> Store:
    """Return where the record lies."""
    return open_record(options["state"], lambda: client_for("s3", options))


def passes(error: LmsError) -> bool:
    """Say whether the same call may succeed a moment later, so that it is worth repeating."""
    if isinstance(error, AwsError):
        return error.__cause__ is not None and is_transient(error.__cause__)
    return isinstance(error, (ConflictError, LeaseHeldError, LeaseLostError, UnreachableError))


def whoami() -> str:
    """Return who acts, for those who find the lease."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # A user without a name, as in a container.
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def now() -> datetime:
    """Return the time."""
    return datetime.now(timezone.utc)


def run(
    options: Mapping[str, Any],
    provider: Provider,
    store: Store,
    checks: Checks,
    *,
    check_mode: bool = False,
    clock: Callable[[], datetime] = now,
    sleep: Callable[[float], None] = time.sleep,
) -> Outcome:
    """Do what the options ask for, as far as it goes within max_wait."""
    settings = settings_of(options)
    request = Request(options["action"], options["release"], options["colour"])
    if options["max_wait"] < 0:
        raise LmsError(f"max_wait is {options['max_wait']:g}. Give 0 at least.")

    def one() -> Outcome:
        return tick(options["name"], request, settings, store, provider, checks, clock, whoami(), check_mode=check_mode)

    # In check mode time changes nothing.
    return one() if check_mode or request.action == STATUS else ticks(one, options["max_wait"], clock, sleep)
