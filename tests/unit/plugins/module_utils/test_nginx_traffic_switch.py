# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights for sites of the own load balancer: decided, refused, carried out and put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_switch import Settings, open_provider, run
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import DriftError, TrafficError, UnreadyError, weights_of
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock
from ansible_collections.bitflow.lms.tests.lab.elb_model import FakeClock
from ansible_collections.bitflow.lms.tests.unit.plugins.module_utils.nginx_model import BEFORE, Nginx, servers

DEFAULTS: dict[str, Any] = {
    "routes": [],
    "weights": None,
    "expect": None,
    "gate": {"min_healthy": 1, "consecutive": 2, "interval": 5, "timeout": 60},
    "verify_timeout": 10,
    "propagation_wait": 1,
}
SHIFTED = {"blue": 0, "green": 100}


@pytest.fixture
def nginx(tmp_path: Path) -> Nginx:
    """Return a load balancer with the sites api and web."""
    return Nginx(tmp_path)


class Switch:
    """A run of the module, and what it took."""

    def __init__(self, nginx: Nginx, check_mode: bool = False, clock: FakeClock | None = None, **options: Any) -> None:
        given = {**DEFAULTS, "traffic_directory": str(nginx.directory), **options}
        self.clock = clock or FakeClock()
        provider, wanted = open_provider(given, nginx.network)
        self.outcome = run(provider, wanted, Settings.of(given), check_mode, Clock(self.clock.now, self.clock.sleep))
        self.result = self.outcome.as_result()


def answering(nginx: Nginx, answers: Callable[[str, str], list[str]], **options: Any) -> None:
    """Switch all sites where nginx answers otherwise."""
    given = {**DEFAULTS, "traffic_directory": str(nginx.directory), "weights": SHIFTED, **options}
    provider, wanted = open_provider(given, replace(nginx.network, answers=answers))
    clock = FakeClock()
    run(provider, wanted, Settings.of(given), False, Clock(clock.now, clock.sleep))


def live(nginx: Nginx) -> Mapping[str, Any]:
    """Return the weights of all sites."""
    return weights_of(nginx.provider().read())


def readiness(group: str, colour: str) -> dict[str, Any]:
    """Return a healthy group as the module does."""
    targets = [
        {"group": group, "id": server["address"], "port": server["port"], "state": "healthy", "reason": ""} for server in servers(colour, 2)
    ]
    return {"name": group, "ready": True, "fault": "", "counts": {"healthy": 2}, "targets": targets}


def test_all_sites_are_switched_together(nginx: Nginx) -> None:
    switch = Switch(nginx, weights={"blue": "0", "green": "1"}, expect={"blue": 1, "green": 0})

    before, after = dict.fromkeys(("api", "web"), BEFORE), dict.fromkeys(("api", "web"), SHIFTED)
    changes = {"blue": "100->0", "green": "0->100"}
    assert switch.result == {
        "changed": True,
        "before": before,
        "after": after,
        "live": "green",
        "routes": [{"name": "api", "changes": changes}, {"name": "web", "changes": changes}],
        "health": [readiness("api-green", "green"), readiness("web-green", "green")],
        "diff": {"before": before, "after": after},
    }
    assert live(nginx) == after
    assert switch.clock.pauses == [5, 1]


def test_check_mode_plans_the_same_and_touches_nothing(nginx: Nginx) -> None:
    planned = Switch(nginx, check_mode=True, weights={"blue": 1, "green": 1})
    untouched = live(nginx)
    done = Switch(nginx, weights={"blue": 1, "green": 1})

    assert planned.result == done.result
    assert (untouched, planned.clock.pauses) == (dict.fromkeys(("api", "web"), BEFORE), [])


@pytest.mark.parametrize("weights", [{"blue": 90, "green": 10}, {"green": "10", "blue": "90"}, {"blue": 9, "green": 1}])
def test_the_same_weights_again_change_nothing(weights: Mapping[str, Any], nginx: Nginx) -> None:
    first = Switch(nginx, weights={"blue": 90, "green": 10})

    second = Switch(nginx, weights=weights)

    assert (first.result["changed"], second.result["changed"], second.clock.pauses) == (True, False, [])
    assert second.result["after"] == {site: {"blue": 90, "green": 10} for site in ("api", "web")}


def test_sites_may_have_weights_and_expectations_of_their_own(nginx: Nginx) -> None:
    own = {"weights": {"blue": 50, "green": 50}, "expect": {"blue": 100, "green": 0}}

    switch = Switch(nginx, routes=[{"name": "web", **own}, {"name": "api"}], weights={"blue": 90, "green": 10})

    assert switch.result["after"] == {"api": {"blue": 90, "green": 10}, "web": {"blue": 50, "green": 50}}
    assert switch.result["live"] is None


def test_a_site_that_is_not_named_stays(nginx: Nginx) -> None:
    Switch(nginx, routes=[{"name": "web"}], weights=SHIFTED)

    assert live(nginx) == {"api": BEFORE, "web": SHIFTED}


def test_attaching_a_colour_asks_for_no_health(nginx: Nginx) -> None:
    nginx.by_hand("web", {"blue": 100})
    nginx.faults.update(dict.fromkeys(("192.0.2.21", "192.0.2.22"), "refused"))

    attached = Switch(nginx, routes=[{"name": "web"}], weights=BEFORE)

    assert (attached.result["changed"], attached.result["health"], attached.clock.pauses) == (True, [], [])


def test_what_only_attaches_comes_before_what_moves_traffic(nginx: Nginx) -> None:
    nginx.by_hand("web", {"blue": 100})
    order: list[str] = []

    def note(_url: str, site: str) -> list[str]:
        order.append(site)
        return nginx.answers(site)

    answering(nginx, note, routes=[{"name": "api"}, {"name": "web", "weights": BEFORE}])

    assert order == ["web", "api"]


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "The route api has no weights. Give weights, to all routes or to this one."),
        ({"weights": {"blue": 0, "green": 0}}, "weights has no colour with a weight above 0"),
        ({"weights": {"red": 1}}, "weights has red, which is none of the colours blue, green."),
        ({"weights": {"blue": 2, "green": 1}}, "The route api cannot have blue 2, green 1: nginx splits traffic in hundredths."),
        ({"weights": SHIFTED, "expect": {"red": 1}}, "expect has red, which is none of the colours blue, green."),
        ({"weights": {"green": 100}}, "The route api also forwards to blue, which weights does not name. Name it, with 0"),
        ({"weights": SHIFTED, "routes": [{"name": "new"}]}, "There is no site new with two colours. Known sites: api, web."),
        ({"weights": SHIFTED, "verify_timeout": -1}, "verify_timeout is -1. Give 0 at least."),
        ({"weights": SHIFTED, "gate": {"consecutive": 0}}, "gate.consecutive is 0. Give 1 at least."),
    ],
)
@pytest.mark.parametrize("check_mode", [False, True])
def test_what_cannot_be_meant_is_refused(check_mode: bool, options: Mapping[str, Any], message: str, nginx: Nginx) -> None:
    with pytest.raises(LmsError) as caught:
        Switch(nginx, check_mode, **options)

    assert caught.value.message.startswith(message)
    assert live(nginx) == dict.fromkeys(("api", "web"), BEFORE)


def test_a_colour_that_is_not_attached_gets_no_traffic(nginx: Nginx) -> None:
    nginx.by_hand("web", {"blue": 100})

    planned = Switch(nginx, check_mode=True, weights=SHIFTED)
    with pytest.raises(UnreadyError) as caught:
        Switch(nginx, weights=SHIFTED)

    assert caught.value.message == "web-green is not attached, so that it is not checked. Give it the weight 0 first, then more."
    assert planned.outcome.warnings[0].startswith("web-green could not take traffic now: web-green has 0 healthy of 2 targets")
    assert live(nginx)["api"] == BEFORE


def test_a_colour_without_a_healthy_server_gets_no_traffic(nginx: Nginx) -> None:
    nginx.faults.update({"192.0.2.21": "refused", "192.0.2.22": "status 503"})

    with pytest.raises(UnreadyError) as caught:
        Switch(nginx, routes=[{"name": "api"}], weights={"blue": 90, "green": 10})

    assert caught.value.message == (
        "api-green cannot take traffic: api-green has 0 healthy of 2 targets, and 1 are needed: "
        "192.0.2.21:8000 is unhealthy (refused), 192.0.2.22:8000 is unhealthy (status 503). "
        "That was so for 60 s. Repair the targets; nothing was changed."
    )
    assert live(nginx) == dict.fromkeys(("api", "web"), BEFORE)


def test_a_colour_without_servers_gets_no_traffic(nginx: Nginx) -> None:
    nginx.write({"api": {"blue": servers("blue", 2), "green": []}})

    with pytest.raises(UnreadyError, match="api-green cannot take traffic: api-green is empty"):
        Switch(nginx, weights=SHIFTED)


def test_only_the_colour_that_gets_more_has_to_be_healthy(nginx: Nginx) -> None:
    nginx.faults.update({"192.0.2.11": "refused", "192.0.2.12": "refused"})

    assert Switch(nginx, weights=SHIFTED).result["live"] == "green"


def test_weights_that_are_not_the_expected_ones_are_left_alone(nginx: Nginx) -> None:
    nginx.by_hand("web", {"blue": 50, "green": 50})

    with pytest.raises(DriftError, match="The route web has blue 50, green 50, but blue 100, green 0 was expected"):
        Switch(nginx, weights=SHIFTED, expect=BEFORE)

    assert live(nginx)["api"] == BEFORE


def test_a_task_that_was_killed_half_way_is_taken_up(nginx: Nginx) -> None:
    nginx.by_hand("api", SHIFTED)

    assert Switch(nginx, weights=SHIFTED, expect=BEFORE).result["live"] == "green"
    assert Switch(nginx, weights=SHIFTED, expect=BEFORE).result["changed"] is False


def test_who_changes_the_weights_meanwhile_is_not_overwritten(nginx: Nginx) -> None:
    clock = FakeClock()
    # While the health is looked at.
    clock.events = lambda _time: nginx.by_hand("web", {"blue": 30, "green": 70})

    with pytest.raises(TrafficError, match="The route web has blue 30, green 70, but blue 100, green 0 was expected") as caught:
        Switch(nginx, clock=clock, weights=SHIFTED)

    assert live(nginx) == {"api": BEFORE, "web": {"blue": 30, "green": 70}}
    assert (caught.value.details["put_back"], caught.value.details["left"]) == (["api"], {})


def test_without_the_comparison_the_weights_of_somebody_else_are_overwritten(nginx: Nginx) -> None:
    nginx.by_hand("web", {"blue": 30, "green": 70})

    nginx.by_hand("web", SHIFTED)

    assert live(nginx)["web"] == SHIFTED


# What nginx says


def test_when_nginx_does_not_act_by_the_weights_all_sites_get_theirs_back(nginx: Nginx) -> None:
    with pytest.raises(TrafficError) as caught:
        answering(nginx, lambda _url, site: ["blue"] * 100 if site == "web" else nginx.answers(site))

    assert caught.value.message == (
        "nginx leads web to blue 100 of 100 buckets, and not by blue 0, green 100. The weights from before are on api, web."
    )
    assert live(nginx) == dict.fromkeys(("api", "web"), BEFORE)


def test_an_nginx_that_is_not_there_is_named(nginx: Nginx) -> None:
    nginx.running = False

    with pytest.raises(TrafficError, match=r"nginx does not say at .* where it leads api: .* The weights from before are on api\."):
        Switch(nginx, weights=SHIFTED)

    assert live(nginx) == dict.fromkeys(("api", "web"), BEFORE)


def test_an_nginx_that_takes_a_moment_is_waited_for(nginx: Nginx) -> None:
    late = [["blue"] * 100, ["blue"] * 100]

    answering(nginx, lambda _url, site: late.pop() if late else nginx.answers(site))

    assert live(nginx) == dict.fromkeys(("api", "web"), SHIFTED)


def test_files_that_somebody_changed_are_mended(nginx: Nginx) -> None:
    (nginx.directory / "api" / "weights" / "blue-100+green-0" / "green" / "7").touch()

    planned = Switch(nginx, check_mode=True, weights=BEFORE).result["changed"]
    mended = Switch(nginx, weights=BEFORE).result["changed"]
    again = Switch(nginx, weights=BEFORE).result["changed"]

    assert (planned, mended, again, set(nginx.answers("api"))) == (True, True, False, {"blue"})


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_whoever_interrupts_the_task_leaves_the_weights_from_before(error: type[BaseException], nginx: Nginx) -> None:
    def interrupt(_url: str, site: str) -> list[str]:
        if site == "web":
            raise error
        return nginx.answers(site)

    with pytest.raises(error):
        answering(nginx, interrupt)

    assert live(nginx) == dict.fromkeys(("api", "web"), BEFORE)


def test_what_cannot_be_put_back_is_told(nginx: Nginx) -> None:
    def lose(_url: str, site: str) -> list[str]:
        (nginx.directory / "api" / "current").unlink(missing_ok=True)
        return ["lost"] * 100

    with pytest.raises(TrafficError) as caught:
        answering(nginx, lose, verify_timeout=0)

    assert caught.value.message == "nginx leads api to lost 100 of 100 buckets, and not by blue 0, green 100. Repair by hand: api."
    assert list(caught.value.details["left"]) == ["api"]
