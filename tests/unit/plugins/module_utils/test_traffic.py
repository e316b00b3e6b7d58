# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights, colours and health: what may be switched, and what never may."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import (
    AmbiguousError,
    Change,
    DriftError,
    Live,
    Route,
    Target,
    TrafficError,
    UnreadyError,
    Weights,
    check_expected,
    judge,
    live_colour,
    make_changes,
    raised,
    read_weights,
    refuse_sticky,
    refuse_to_shrink,
    refuse_unready,
    refuse_weights,
    same,
    share,
    split,
)

COLOURS = ("blue", "green")


def live(**routes: Weights) -> Live:
    """Return routes with weights."""
    return {name: Route(name, weights) for name, weights in routes.items()}


@pytest.mark.parametrize(
    ("one", "other", "answer"),
    [
        ({"blue": 100, "green": 0}, {"green": 0, "blue": 1}, True),
        ({"blue": 90, "green": 10}, {"blue": 9, "green": 1}, True),
        ({"blue": 100}, {"blue": 100, "green": 0}, False),
        ({"blue": 90, "green": 10}, {"blue": 10, "green": 90}, False),
        ({"blue": 0, "green": 0}, {"blue": 0, "green": 0}, True),
        ({}, {}, True),
    ],
)
def test_weights_are_the_same_when_the_same_colours_get_the_same_share(one: Weights, other: Weights, answer: bool) -> None:
    assert [same(*pair) for pair in ((one, other), (other, one))] == [answer, answer]


def test_weights_may_be_numbers_in_strings() -> None:
    assert read_weights("weights", {"blue": "50", "green": 50}, COLOURS) == {"blue": 50, "green": 50}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"blue": 0, "green": 0}, "weights has no colour with a weight above 0, so nobody would be served. Give one colour a weight."),
        ({}, "weights has no colour with a weight above 0, so nobody would be served. Give one colour a weight."),
        ({"blue": 1000}, "weights gives blue the weight 1000. Give a whole number from 0 to 999."),
        ({"blue": -1}, "weights.blue is -1. Give a whole number from 0 to 999."),
        ({"blue": True}, "weights.blue is True. Give a whole number from 0 to 999."),
        ({"blue": "1.5"}, "weights.blue is '1.5'. Give a whole number from 0 to 999."),
        ({"red": 1}, "weights has red, which is none of the colours blue, green."),
    ],
)
def test_weights_that_no_route_can_have_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TrafficError) as caught:
        read_weights("weights", given, COLOURS)

    assert caught.value.message == message


def test_a_negative_weight_is_refused_wherever_it_comes_from() -> None:
    with pytest.raises(TrafficError, match="the weight -1"):
        refuse_weights("The route web", {"blue": -1, "green": 2})


def test_a_share_of_nothing_is_nothing() -> None:
    assert share({}, "blue") == 0
    assert share({"blue": 1, "green": 3}, "green") == 0.75
    assert split("blue", "green", 5) == {"blue": 95, "green": 5}


def test_the_colour_with_all_weight_everywhere_is_live() -> None:
    assert live_colour(live(web={"blue": 0, "green": 7}, api={"green": 1}), COLOURS) == "green"


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        (live(web={"blue": 50, "green": 50}), "The route web has blue 50, green 50"),
        (live(web={"blue": 0}), "The route web has blue 0"),
        (live(web={"blue": 1}, api={"green": 1}), "Different colours are live: green on api, blue on web"),
        (live(web={"blue": 1, "old": 0}), "The route web also forwards to old"),
        ({}, "There is no route"),
    ],
)
def test_traffic_without_one_live_colour_is_refused(routes: Live, message: str) -> None:
    with pytest.raises(AmbiguousError) as caught:
        live_colour(routes, COLOURS)

    assert caught.value.message.startswith(message)


def test_only_what_differs_is_changed_and_said() -> None:
    found = live(web={"blue": 100, "green": 0}, api={"blue": 90, "green": 10}, admin={"blue": 1})
    wanted = {"web": {"blue": 90, "green": 10}, "api": {"green": 1, "blue": 9}, "admin": {"blue": 100, "green": 0}}

    changes = make_changes(found, wanted)

    assert [(change.route, change.words(), change.raised) for change in changes] == [
        ("web", {"blue": "100->90", "green": "0->10"}, ["green"]),
        ("admin", {"blue": "1->100", "green": "none->0"}, []),
    ]
    assert raised(changes) == ["green"]


def test_a_change_of_an_unknown_route_or_to_nobody_is_refused() -> None:
    with pytest.raises(TrafficError, match="There is no route api"):
        make_changes(live(web={"blue": 1}), {"api": {"blue": 1}})
    with pytest.raises(TrafficError, match="nobody would be served"):
        make_changes(live(web={"blue": 1}), {"web": {"blue": 0}})


def test_taking_a_colour_off_raises_the_other_one_only_where_it_had_less() -> None:
    assert Change("web", {"blue": 50, "green": 50}, {"green": 1}).raised == ["green"]
    assert Change("web", {"blue": 0, "green": 50}, {"green": 1}).raised == []


def test_weights_that_somebody_else_set_are_drift() -> None:
    found = live(web={"blue": 80, "green": 20})

    with pytest.raises(DriftError) as caught:
        check_expected(found, {"web": {"blue": 100, "green": 0}})

    assert caught.value.as_result() == {
        "msg": "The route web has blue 80, green 20, but blue 100, green 0 was expected: somebody else changed it. "
        "Find out who did, then go on.",
        "route": "web",
        "found": {"blue": 80, "green": 20},
        "expected": [{"blue": 100, "green": 0}],
    }


def test_a_route_that_is_gone_is_drift() -> None:
    with pytest.raises(DriftError, match="no route api any more"):
        check_expected(live(web={"blue": 1}), {"api": {"blue": 1}})


def test_a_colour_is_ready_when_every_group_has_enough_healthy_targets() -> None:
    health = {"web-green": [Target("192.0.2.1", 80, "healthy"), Target("192.0.2.2", 80, "initial", "Elb.RegistrationInProgress")]}

    readiness = judge("green", health)

    assert readiness.as_result() == {
        "colour": "green",
        "ready": True,
        "fault": "",
        "counts": {"healthy": 1, "initial": 1},
        "targets": [
            {"group": "web-green", "id": "192.0.2.1", "port": 80, "state": "healthy", "reason": ""},
            {"group": "web-green", "id": "192.0.2.2", "port": 80, "state": "initial", "reason": "Elb.RegistrationInProgress"},
        ],
    }


@pytest.mark.parametrize(
    ("health", "least", "fault"),
    [
        ({}, 1, "it has no group"),
        ({"web": []}, 1, "web is empty"),
        ({"web": []}, 0, "web is empty"),
        (
            {"web": [Target("i-1", 80, "unused", "Target.NotInUse")]},
            0,
            "web has 0 healthy of 1 targets, and 1 are needed: i-1:80 is unused (Target.NotInUse)",
        ),
        (
            {"web": [Target("i-1", None, "healthy"), Target("i-2", 80, "draining")]},
            2,
            "web has 1 healthy of 2 targets, and 2 are needed: i-2:80 is draining",
        ),
        ({"web": [Target("i-1", None, "healthy")]}, 3, "web has 1 healthy of 1 targets, and 3 are needed"),
        ({"api": [Target("i-1", None, "healthy")], "web": []}, 1, "web is empty"),
    ],
)
def test_a_colour_with_a_poor_group_gets_no_traffic(health: dict[str, list[Target]], least: int, fault: str) -> None:
    readiness = judge("green", health, least)

    assert (readiness.ready, readiness.fault) == (False, fault)
    with pytest.raises(UnreadyError, match="green cannot take traffic"):
        refuse_unready(readiness)


def test_stickiness_may_not_outlive_the_old_colour() -> None:
    routes = {"web": Route("web", {"blue": 1}, 86400)}

    refuse_sticky(routes, 86400, "retain")
    with pytest.raises(TrafficError) as caught:
        refuse_sticky(routes, 3600, "retain")

    assert caught.value.message == (
        "The route web keeps its clients on their colour for 86400 s, longer than retain (3600 s). "
        "Turn its stickiness off, shorten it, or raise retain."
    )


def test_a_colour_with_weight_keeps_its_targets() -> None:
    routes = live(web={"blue": 99, "green": 1}, api={"blue": 1})

    with pytest.raises(TrafficError, match="green has weight on web, so it keeps its targets"):
        refuse_to_shrink(routes, "green")
    refuse_to_shrink(live(web={"blue": 1, "green": 0}), "green")
