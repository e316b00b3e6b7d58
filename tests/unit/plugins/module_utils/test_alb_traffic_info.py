# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said about the traffic of a load balancer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._alb_traffic_info import run
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import TrafficError
from ansible_collections.bitflow.lms.tests.lab.elb_model import Alb, State, World, aws, new_alb

REDIRECT = {"Type": "redirect", "RedirectConfig": {"Protocol": "HTTPS", "Port": "443", "StatusCode": "HTTP_301"}}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Put AWS into this process, once for all tests."""
    with aws() as made:
        yield made


@pytest.fixture
def alb(world: World) -> Alb:
    """Return a load balancer with two colours."""
    made = new_alb(world)
    made.group("blue", healthy=2)
    made.group("green", healthy=1)
    return made


def look(alb: Alb, **options: Any) -> dict[str, Any]:
    """Look as the module does, and see that nothing was changed."""
    given = {"load_balancer": None if "routes" in options else "lms", "routes": [], "min_healthy": 1, "expect": None, **options}
    result = run(Api(alb.client), given)
    assert alb.client.changes() == []
    return result


def test_the_result_is_whole(alb: Alb) -> None:
    listener = alb.listener(443, alb.forward(blue=95, green=5))

    assert look(alb) == {
        "live": None,
        "routes": [
            {
                "name": "lms:443",
                "listener_arn": listener,
                "rule_arn": None,
                "weights": {"blue": 95, "green": 5},
                "percent": {"blue": 95.0, "green": 5.0},
                "sticky_seconds": 0,
                "live": None,
            }
        ],
        "groups": [
            {
                "name": "blue",
                "arn": alb.groups["blue"],
                "ready": True,
                "fault": "",
                "counts": {"healthy": 2},
                "targets": [
                    {"group": "blue", "id": "10.0.1.1", "port": 80, "state": "healthy", "reason": ""},
                    {"group": "blue", "id": "10.0.1.2", "port": 80, "state": "healthy", "reason": ""},
                ],
                "weight_on": ["lms:443"],
            },
            {
                "name": "green",
                "arn": alb.groups["green"],
                "ready": True,
                "fault": "",
                "counts": {"healthy": 1},
                "targets": [{"group": "green", "id": "10.0.2.1", "port": 80, "state": "healthy", "reason": ""}],
                "weight_on": ["lms:443"],
            },
        ],
        "findings": [],
    }


def test_a_load_balancer_stands_for_all_its_routes(alb: Alb) -> None:
    plain = alb.listener(80, REDIRECT)
    alb.rule(plain, alb.forward(blue=1), priority=5)
    secure = alb.listener(443, alb.forward(blue=1))
    alb.rule(secure, REDIRECT, priority=6)
    alb.rule(secure, alb.forward(blue=1), priority=7)

    result = look(alb)

    assert ([route["name"] for route in result["routes"]], result["live"]) == (["lms:443", "lms:443/7", "lms:80/5"], "blue")


def test_routes_that_are_named_are_those_that_are_told(alb: Alb) -> None:
    alb.listener(80, alb.forward(blue=1))
    alb.listener(443, alb.forward(green=1))

    result = look(alb, routes=[{"load_balancer": "lms", "port": 443}])

    assert ([route["name"] for route in result["routes"]], result["live"]) == (["lms:443"], "green")


def test_traffic_for_a_group_that_cannot_take_it_is_found(alb: Alb) -> None:
    alb.group("empty")
    alb.listener(443, alb.forward(blue=90, green=5, empty=5))
    alb.states("green")[("10.0.2.1", 80)] = State("unhealthy", "Target.Timeout")

    assert look(alb)["findings"] == [
        "empty has weight on lms:443, and cannot take it: empty is empty.",
        "green has weight on lms:443, and cannot take it: green has 0 healthy of 1 targets, and 1 are needed: "
        "10.0.2.1:80 is unhealthy (Target.Timeout).",
    ]


def test_a_group_without_weight_may_be_sick(alb: Alb) -> None:
    alb.listener(443, alb.forward(blue=1, green=0))
    alb.states("green").clear()

    result = look(alb)

    assert (result["findings"], [group["ready"] for group in result["groups"]]) == ([], [True, False])


def test_targets_in_another_zone_are_found(alb: Alb) -> None:
    alb.listener(443, alb.forward(blue=1, green=0))
    alb.states("blue")[("10.0.1.1", 80)] = State("unused", "Target.NotInUse")

    assert look(alb)["findings"] == [
        "blue has targets in a zone that the load balancer is not in: 10.0.1.1:80 is unused (Target.NotInUse)."
    ]


def test_every_state_of_the_targets_is_counted(alb: Alb) -> None:
    alb.listener(443, alb.forward(blue=1))
    alb.world.drain_looks = 1
    alb.states("blue").update({("10.0.1.1", 81): State("initial"), ("10.0.1.1", 82): State("draining")})

    assert look(alb)["groups"][0]["counts"] == {"healthy": 2, "initial": 1, "draining": 1}


def test_weights_that_serve_nobody_are_found(alb: Alb) -> None:
    alb.listener(443, alb.forward(blue=0, green=0))

    assert look(alb)["findings"] == ["The route lms:443 has blue 0, green 0, so nobody is served."]


def test_stickiness_is_found_where_there_is_a_choice(alb: Alb) -> None:
    alb.listener(443, alb.forward(sticky=600, blue=1, green=0))
    alb.listener(80, alb.forward(sticky=600, blue=1))

    findings = look(alb)["findings"]

    assert findings == ["The route lms:443 keeps clients on their group for 600 s, whatever the weights are."]


def test_routes_that_do_not_agree_are_found(alb: Alb) -> None:
    alb.listener(443, alb.forward(blue=100, green=0))
    alb.listener(80, alb.forward(blue=0, green=100))

    assert look(alb)["findings"] == ["The routes do not agree: lms:443 has blue 100, green 0; lms:80 has blue 0, green 100."]


def test_routes_of_different_applications_need_not_agree(alb: Alb) -> None:
    alb.listener(443, alb.forward(blue=1))
    alb.listener(80, alb.forward(green=1))

    assert look(alb)["findings"] == []


def test_other_weights_than_the_expected_ones_are_found(alb: Alb) -> None:
    alb.listener(443, alb.forward(blue=9, green=1))

    assert look(alb, expect={"blue": "90", "green": "10"})["findings"] == []
    assert look(alb, expect={"blue": 100, "green": 0})["findings"] == [
        "The route lms:443 has blue 9, green 1, but blue 100, green 0 was expected: somebody else changed it. Find out who did, then go on."
    ]


def test_nothing_to_look_at_is_an_error(alb: Alb) -> None:
    alb.listener(80, REDIRECT)

    with pytest.raises(TrafficError, match="The load balancer lms has no listener and no rule that forwards"):
        look(alb)
    with pytest.raises(TrafficError, match=r"routes is empty. Name one listener or rule at least, or a load_balancer."):
        look(alb, routes=[])
