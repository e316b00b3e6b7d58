# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the traffic of the own load balancer goes, and what looks wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_info import run
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import TrafficError
from ansible_collections.bitflow.lms.tests.unit.plugins.module_utils.nginx_model import BEFORE, URL, Nginx, servers


@pytest.fixture
def nginx(tmp_path: Path) -> Nginx:
    """Return a load balancer with the sites api and web."""
    return Nginx(tmp_path)


def look(nginx: Nginx, **options: Any) -> dict[str, Any]:
    """Run the module."""
    given = {"routes": [], "min_healthy": 1, "expect": None, "traffic_directory": str(nginx.directory), **options}
    return run(given, nginx.network)


def test_sites_and_their_colours_are_told(nginx: Nginx) -> None:
    nginx.by_hand("api", {"blue": 95, "green": 5})
    nginx.faults["192.0.2.22"] = "refused"

    found = look(nginx, routes=[{"name": "api"}])

    blue, green = (
        [
            {"group": f"api-{colour}", "id": server["address"], "port": 8000, "state": "healthy", "reason": ""}
            for server in servers(colour, 2)
        ]
        for colour in ("blue", "green")
    )
    green[1].update(state="unhealthy", reason="refused")
    same = {"route": "api", "ready": True, "fault": ""}
    assert found == {
        "live": None,
        "routes": [{"name": "api", "weights": {"blue": 95, "green": 5}, "live": None, "verified": True}],
        "groups": [
            {"name": "api-blue", "colour": "blue", "weight": 95, "counts": {"healthy": 2}, "targets": blue, **same},
            {"name": "api-green", "colour": "green", "weight": 5, "counts": {"healthy": 1, "unhealthy": 1}, "targets": green, **same},
        ],
        "findings": [],
    }


def test_all_sites_are_told_sorted(nginx: Nginx) -> None:
    found = look(nginx)

    assert (found["live"], [route["name"] for route in found["routes"]], found["findings"]) == ("blue", ["api", "web"], [])
    assert [group["name"] for group in found["groups"]] == ["api-blue", "api-green", "web-blue", "web-green"]


def test_a_colour_that_cannot_take_its_traffic_is_a_finding(nginx: Nginx) -> None:
    nginx.by_hand("web", {"blue": 100})
    nginx.faults.update(dict.fromkeys(("192.0.2.11", "192.0.2.21"), "refused"))

    found = look(nginx, routes=[{"name": "web"}], min_healthy=2)

    assert found["findings"] == [
        "web-blue has the weight 100, and cannot take it: web-blue has 1 healthy of 2 targets, and 2 are needed: "
        "192.0.2.11:8000 is unhealthy (refused)."
    ]
    assert [group["counts"] for group in found["groups"]] == [{"healthy": 1, "unhealthy": 1}, {"unused": 2}]


def test_a_site_that_has_lost_its_weights_is_a_finding_and_the_others_are_told(nginx: Nginx) -> None:
    link = nginx.directory / "api" / "current"
    link.unlink()

    found = look(nginx)

    assert found["live"] is None
    assert found["routes"] == [
        {"name": "api", "weights": {}, "live": None, "verified": False},
        {"name": "web", "weights": BEFORE, "live": "blue", "verified": True},
    ]
    assert [group["name"] for group in found["groups"]] == ["web-blue", "web-green"]
    assert found["findings"] == [
        f"The site api has lost its weights: {link} is missing, so all servers of both colours serve. "
        "Run the role load_balancer, which makes it as load_balancer_traffic_initial says."
    ]


def test_an_nginx_that_does_not_act_by_the_weights_is_a_finding(nginx: Nginx) -> None:
    nginx.running = False

    found = look(nginx, routes=[{"name": "api"}])

    assert found["routes"][0]["verified"] is False
    assert found["findings"] == [f"nginx does not say at {URL} where it leads api: [Errno 111] Connection refused. Start it."]


def test_weights_that_are_not_the_expected_ones_are_a_finding(nginx: Nginx) -> None:
    nginx.by_hand("web", {"blue": 50, "green": 50})

    assert look(nginx, expect=BEFORE)["findings"] == [
        "The route web has blue 50, green 50, but blue 100, green 0 was expected: somebody else changed it. Find out who did, then go on.",
        "The routes do not agree: api has blue 100, green 0; web has blue 50, green 50.",
    ]


def test_a_colour_that_no_site_has_is_a_finding(nginx: Nginx) -> None:
    nginx.by_hand("api", {"blue": 50, "red": 50})

    found = look(nginx, routes=[{"name": "api"}])

    assert (found["routes"][0]["weights"], found["routes"][0]["verified"]) == ({"blue": 50, "red": 50}, False)
    assert found["findings"] == ["The route api has no colour red. Its colours: blue, green."]


def test_a_site_that_there_is_not_is_refused(nginx: Nginx) -> None:
    with pytest.raises(TrafficError, match="There is no site new with two colours"):
        look(nginx, routes=[{"name": "new"}])
