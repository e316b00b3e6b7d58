# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options become settings, checks and stores, and one call goes on for as long as it may wait."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import AwsError
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic import NginxProvider
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import TrafficError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_options import (
    checks_of,
    open_provider,
    open_state,
    passes,
    rollout_argspec,
    run,
    settings_of,
)
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_record import (
    FileStore,
    LeaseHeldError,
    LeaseLostError,
    RecordError,
    Step,
    UnreachableError,
    conflict,
)
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_rollout import Checks, Outcome, Settings
from ansible_collections.bitflow.lms.tests.unit.plugins.module_utils.traffic_memory import MemoryProvider, MemoryStore

SMOKE: dict[str, Any] = {
    "url": "http://192.0.2.1/",
    "headers": {},
    "connect_to": None,
    "ca_path": None,
    "validate_certs": True,
    "watch": True,
}
ANSWER: dict[str, Any] = {"expect_status": [200], "expect_body": None, "expect_json": {}, "expect_headers": {}}
ATTEMPTS = {"attempts": 1, "consecutive": 1, "interval": 0, "timeout": 1}
QUERY = {
    "url": "http://192.0.2.1",
    "query": "up",
    "min": 1,
    "max": None,
    "headers": {},
    "ca_path": None,
    "validate_certs": True,
    "timeout": 1,
}


def options(**given: Any) -> dict[str, Any]:
    """Return the options as the module has them."""
    spec = rollout_argspec()
    found = {name: option.get("default") for name, option in spec.items()}
    found["gate"] = {name: option["default"] for name, option in spec["gate"]["options"].items()}
    basic = {"name": "lms", "action": "advance", "provider": "alb", "release": "r1", "colour": "green"}
    return {**found, **basic, "colours": {"blue": "b", "green": "g"}, "routes": [{}], **given}


class Time:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 23, 10, 0, 0, tzinfo=timezone.utc)
        self.slept: list[float] = []

    def __call__(self) -> datetime:
        """Return the time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.slept.append(seconds)
        self.now += timedelta(seconds=seconds)


def go(time: Time, provider: MemoryProvider, store: MemoryStore, check_mode: bool = False, **given: Any) -> Outcome:
    """Make one call of the module."""
    return run(options(**given), provider, store, Checks(), check_mode=check_mode, clock=time, sleep=time.sleep)


def test_every_setting_comes_from_its_option() -> None:
    given = options(
        steps=[{"weight": 10, "bake": 1.5}, {"weight": 100, "bake": 2}],
        gate={"min_healthy": 2, "consecutive": 4, "interval": 6, "timeout": 8},
        insufficient_data="pass",
        verify_timeout=11,
        propagation_wait=12,
        retain=13,
        on_drift="adopt",
        lease_time=14,
    )

    assert settings_of(given) == Settings((Step(10, 1.5), Step(100, 2)), 2, 4, 6, 8, 11, 12, 13, 14, "pass", "adopt")


def test_the_defaults_of_the_options_are_sound() -> None:
    assert settings_of(options()).steps == (Step(5, 300), Step(25, 300), Step(50, 300), Step(100, 600))


@pytest.mark.parametrize(("provider", "seconds"), [("alb", 60), ("nginx", 1)])
def test_each_load_balancer_has_its_own_time_to_go_by_new_weights(provider: str, seconds: float) -> None:
    assert settings_of(options(provider=provider)).propagation == seconds
    assert settings_of(options(provider=provider, propagation_wait=0)).propagation == 0


def test_a_call_goes_on_for_as_long_as_it_may_wait() -> None:
    time, provider, store = Time(), MemoryProvider({"web": {"blue": 1}}), MemoryStore()

    outcome = go(time, provider, store, max_wait=60)

    # Two more looks at the gate, then the first step, whose watching takes longer than the call may.
    assert (outcome.phase, outcome.phase_before, outcome.changed, outcome.done) == ("shifting", "idle", True, False)
    assert sum(time.slept) <= 60
    assert outcome.diff() == {
        "before": {"phase": "idle", "weights": {"web": {"blue": 1}}},
        "after": {"phase": "shifting", "weights": {"web": {"blue": 95, "green": 5}}},
    }
    assert len(outcome.events) == 7
    outcome = go(time, provider, store, max_wait=3000)
    assert (outcome.phase, outcome.done) == ("retained", True)


def test_without_waiting_a_call_is_one_tick() -> None:
    time, provider, store = Time(), MemoryProvider({"web": {"blue": 1}}), MemoryStore()

    assert go(time, provider, store).phase == "attached"
    assert time.slept == []


def test_check_mode_waits_for_nothing() -> None:
    time, provider, store = Time(), MemoryProvider({"web": {"blue": 1}}), MemoryStore()

    outcome = go(time, provider, store, check_mode=True, max_wait=600)

    assert (outcome.changed, time.slept, store.content, provider.writes) == (True, [], None, [])


def test_a_call_waits_for_a_lease_if_it_may() -> None:
    time, provider, store = Time(), MemoryProvider({"web": {"blue": 1}}), MemoryStore()

    def die(_call: str) -> None:
        """Die like a process that is killed."""
        raise KeyboardInterrupt

    provider.before = lambda call: die(call) if call.startswith("set") else None
    store.before = lambda _call: die(_call) if store.version == 3 else None
    with pytest.raises(KeyboardInterrupt):
        go(time, provider, store)
    provider.before = store.before = lambda _call: None

    with pytest.raises(LeaseHeldError):
        go(time, provider, store, max_wait=60)
    outcome = go(time, provider, store, max_wait=300)

    assert outcome.phase == "shifting"


def caused(error: LmsError, cause: Exception) -> LmsError:
    """Return an error with its cause."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (LeaseHeldError("held", Time().now), True),
        (LeaseLostError("lost"), True),
        (conflict("memory"), True),
        (UnreachableError("away"), True),
        (caused(AwsError("throttled", "ThrottlingException"), ConnectionResetError()), True),
        (caused(AwsError("denied", "AccessDenied"), ValueError()), False),
        (AwsError("gone", ""), False),
        (RecordError("damaged"), False),
        (TrafficError("drift"), False),
    ],
)
def test_only_what_may_pass_is_worth_repeating(error: LmsError, answer: bool) -> None:
    assert passes(error) is answer


def test_a_wait_below_zero_is_refused() -> None:
    with pytest.raises(LmsError, match="max_wait is -1"):
        go(Time(), MemoryProvider({"web": {"blue": 1}}), MemoryStore(), max_wait=-1)


def test_checks_are_made_of_their_options() -> None:
    services: list[str] = []
    smoke = {**SMOKE, **ANSWER, **ATTEMPTS}
    given = options(smoke=[smoke, {**smoke, "watch": False}], queries=[QUERY], alarms=["lms-5xx"])

    checks = checks_of(given, services.append)

    assert (len(checks.smoke), len(checks.watch), services) == (2, 3, ["cloudwatch"])
    assert checks.watch[0] is checks.smoke[0]
    assert checks_of(options(), services.append) == Checks([], [])
    assert services == ["cloudwatch"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"colours": {"blue": "b"}}, "colours names blue. Name two colours at least."),
        ({"colours": {}}, "colours names nothing. Name two colours at least."),
        ({"colours": None}, "colours names nothing. Name two colours at least."),
        ({"routes": []}, "routes is empty. Name one route at least."),
        ({"routes": None}, "routes is empty. Name one route at least."),
        (
            {"provider": "nginx"},
            "colours is given, but the load balancer's own upstreams say what its colours are. Leave colours out.",
        ),
        (
            {"provider": "nginx", "colours": None, "routes": [{"name": "api", "port": 443, "rule_arn": None}]},
            "A route has name, port, but nginx knows sites by name alone. Give name.",
        ),
        (
            {"provider": "nginx", "colours": {}, "routes": [{"name": None}]},
            "A route has nothing, but nginx knows sites by name alone. Give name.",
        ),
        (
            {"provider": "nginx", "colours": None, "routes": None, "traffic_directory": "/nowhere"},
            "There is no /nowhere/sites.json, which tells of the sites. Run the role load_balancer with a site that has upstreams, "
            "or correct traffic_directory.",
        ),
    ],
)
def test_traffic_that_cannot_be_switched_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(LmsError) as caught:
        open_provider(options(**given), lambda _service: None)

    assert caught.value.message == message


SITE = {"health": {"uri": "/up", "host": "api.example.com"}, "colours": {"blue": [], "green": []}}
OTHER = {"health": {"uri": "/", "host": "web.example.com"}, "colours": {"old": [], "new": []}}


def write_sites(directory: Path, **sites: Any) -> dict[str, Any]:
    """Write sites as the role does, and return the options that lead there."""
    document = {"method": "flag", "status_url": "http://127.0.0.1:8081", "sites": sites}
    (directory / "sites.json").write_text(json.dumps(document))
    return {"provider": "nginx", "colours": None, "routes": None, "traffic_directory": str(directory)}


def test_nginx_has_the_sites_and_the_colours_that_the_role_wrote_down(tmp_path: Path) -> None:
    given = write_sites(tmp_path, api=SITE, web=SITE)
    services: list[str] = []

    every, one = (open_provider(options(**{**given, "routes": routes}), services.append) for routes in (None, [{"name": "web"}]))

    assert isinstance(every, NginxProvider) and isinstance(one, NginxProvider)
    assert (every.colours, list(every.sites), list(one.sites), services) == (["blue", "green"], ["api", "web"], ["web"], [])


def test_sites_of_different_colours_are_not_switched_together(tmp_path: Path) -> None:
    given = write_sites(tmp_path, api=SITE, web=OTHER)

    with pytest.raises(TrafficError) as caught:
        open_provider(options(**given), lambda _service: None)

    assert caught.value.message == (
        "The sites have different colours: api has blue, green; web has new, old. Name in routes those with the same ones."
    )


def test_a_state_on_this_host_needs_no_sdk(tmp_path: Path) -> None:
    store = open_state(options(state=str(tmp_path / "lms.json")))

    assert isinstance(store, FileStore)


def test_steps_that_do_not_end_with_everything_are_refused() -> None:
    with pytest.raises(TrafficError, match="steps has the weights"):
        settings_of(options(steps=[{"weight": 5, "bake": 1}]))
