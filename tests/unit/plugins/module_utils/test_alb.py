# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Listeners, rules and their actions as AWS tells and takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._alb import (
    AlbProvider,
    Forward,
    Place,
    all_places,
    find_groups,
    find_places,
    read_forward,
    write_forward,
)
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api, AwsError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import Route, Target, TrafficError
from ansible_collections.bitflow.lms.tests.lab.elb_model import Alb, State, World, aws, new_alb

BLUE = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/blue/1"
GREEN = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/green/2"
LISTENER = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:listener/app/lms/1/2"
PLACE = Place("lms:443", LISTENER)

OIDC = {
    "Type": "authenticate-oidc",
    "Order": 1,
    "AuthenticateOidcConfig": {
        "Issuer": "https://login.example.com",
        "AuthorizationEndpoint": "https://login.example.com/authorize",
        "TokenEndpoint": "https://login.example.com/token",
        "UserInfoEndpoint": "https://login.example.com/user",
        "ClientId": "lms",
    },
}
COGNITO = {
    "Type": "authenticate-cognito",
    "Order": 1,
    "AuthenticateCognitoConfig": {"UserPoolArn": "arn:pool", "UserPoolClientId": "lms", "UserPoolDomain": "lms"},
}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Put AWS into this process, once for all tests."""
    with aws() as made:
        yield made


@pytest.fixture
def alb(world: World) -> Alb:
    """Return a load balancer with two groups."""
    made = new_alb(world)
    made.group("lms-blue", healthy=2)
    made.group("lms-green", healthy=2)
    return made


def only(group: str) -> dict[str, Any]:
    """Return an action that forwards to one group."""
    return {"Type": "forward", "TargetGroupArn": group}


# Actions


@pytest.mark.parametrize(
    ("action", "forward"),
    [
        (only(BLUE), Forward({BLUE: 1})),
        (
            {
                **only(BLUE),
                "ForwardConfig": {"TargetGroups": [{"TargetGroupArn": BLUE}], "TargetGroupStickinessConfig": {"Enabled": False}},
            },
            Forward({BLUE: 1}),
        ),
        (
            {
                "Type": "forward",
                "ForwardConfig": {
                    "TargetGroups": [{"TargetGroupArn": GREEN, "Weight": 0}, {"TargetGroupArn": BLUE, "Weight": 9}],
                    "TargetGroupStickinessConfig": {"Enabled": True, "DurationSeconds": 60},
                },
            },
            Forward({BLUE: 9, GREEN: 0}, 60),
        ),
        (
            {
                "Type": "forward",
                "ForwardConfig": {
                    "TargetGroups": [{"TargetGroupArn": BLUE, "Weight": 9}],
                    "TargetGroupStickinessConfig": {"Enabled": False, "DurationSeconds": 60},
                },
            },
            Forward({BLUE: 9}, 0),
        ),
    ],
)
def test_a_forward_is_read_in_every_form(action: dict[str, Any], forward: Forward) -> None:
    assert read_forward(PLACE, [action]) == forward


def test_only_the_forward_of_the_actions_is_changed() -> None:
    actions = [COGNITO, {**only(BLUE), "Order": 2, "ForwardConfig": {"TargetGroups": [{"TargetGroupArn": BLUE, "Weight": 1}]}}]

    written = write_forward(actions, Forward({GREEN: 10, BLUE: 90}))

    assert written == [
        COGNITO,
        {
            "Type": "forward",
            "Order": 2,
            "ForwardConfig": {
                "TargetGroups": [{"TargetGroupArn": BLUE, "Weight": 90}, {"TargetGroupArn": GREEN, "Weight": 10}],
                "TargetGroupStickinessConfig": {"Enabled": False},
            },
        },
    ]


def test_the_secret_of_a_login_is_kept_without_being_known() -> None:
    written = write_forward([OIDC, {**only(BLUE), "Order": 2}], Forward({BLUE: 1}, 60))

    assert written[0] == {**OIDC, "AuthenticateOidcConfig": {**OIDC["AuthenticateOidcConfig"], "UseExistingClientSecret": True}}  # type: ignore[dict-item]
    assert written[1]["ForwardConfig"]["TargetGroupStickinessConfig"] == {"Enabled": True, "DurationSeconds": 60}


def test_a_route_that_does_not_forward_cannot_be_weighed() -> None:
    with pytest.raises(
        TrafficError, match=r"The route lms:443 ends in redirect, so there is nothing to weigh. Name a route that forwards."
    ):
        read_forward(PLACE, [{"Type": "redirect", "RedirectConfig": {}}])


# Routes


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({}, "A route has nothing. Give load_balancer and port, or listener_arn, or rule_arn."),
        ({"port": 443}, "A route has port=443. Give load_balancer and port, or listener_arn, or rule_arn."),
        ({"load_balancer": "lms"}, "A route has load_balancer=lms. Give load_balancer and port together."),
        (
            {"listener_arn": LISTENER, "rule_arn": f"{LISTENER}/3"},
            f"A route has listener_arn={LISTENER}, rule_arn={LISTENER}/3. Give load_balancer and port, or listener_arn, or rule_arn.",
        ),
        ({"listener_arn": "lms"}, "listener_arn is lms, which is no ARN of a listener."),
        ({"rule_arn": LISTENER}, f"rule_arn is {LISTENER}, which is no ARN of a rule."),
    ],
)
def test_a_route_is_named_in_one_way(option: dict[str, Any], message: str) -> None:
    with pytest.raises(TrafficError) as caught:
        find_places(Api(None), [option])

    assert caught.value.message == message


def test_routes_are_found_by_name_and_by_arn(alb: Alb) -> None:
    listener = alb.listener(443, only(alb.groups["lms-blue"]))
    rule = alb.rule(listener, only(alb.groups["lms-blue"]), priority=7)
    default = alb.raw.describe_rules(ListenerArn=listener)["Rules"][-1]["RuleArn"]

    def found(option: dict[str, Any]) -> Place:
        return find_places(Api(alb.client), [option])[0]

    whole, part = Place("lms:443", listener), Place("lms:443/7", listener, rule)
    assert found({"load_balancer": "lms", "port": 443}) == whole
    assert found({"load_balancer": alb.arn, "port": 443}) == whole
    assert found({"listener_arn": listener}) == whole
    assert found({"rule_arn": default}) == whole
    assert found({"load_balancer": "lms", "port": 443, "priority": 7}) == part
    assert found({"listener_arn": listener, "priority": 7}) == part
    assert found({"rule_arn": rule}) == part
    assert found({"rule_arn": rule, "name": "api"}) == Place("api", listener, rule)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"load_balancer": "lms", "port": 80}, r"The load balancer lms has no listener on port 80. Its listeners: 443."),
        ({"load_balancer": "lms", "port": 443, "priority": 9}, r"lms:443 has no rule of the priority 9. Its priorities: 7, default."),
        ({"load_balancer": "other", "port": 443}, r"The load balancer other cannot be found: LoadBalancerNotFound: .*"),
    ],
)
def test_a_route_that_is_not_there_is_named_with_those_that_are(option: dict[str, Any], message: str, alb: Alb) -> None:
    alb.rule(alb.listener(443, only(alb.groups["lms-blue"])), only(alb.groups["lms-blue"]), priority=7)

    with pytest.raises((TrafficError, AwsError), match=message):
        find_places(Api(alb.client), [option])


def test_the_same_route_twice_is_refused(alb: Alb) -> None:
    listener = alb.listener(443, only(alb.groups["lms-blue"]))

    with pytest.raises(TrafficError, match="The routes lms:443 and again are the same"):
        find_places(Api(alb.client), [{"load_balancer": "lms", "port": 443}, {"listener_arn": listener, "name": "again"}])


def test_a_rule_beyond_the_first_page_is_found(alb: Alb) -> None:
    listener = alb.listener(443, only(alb.groups["lms-blue"]))
    for priority in range(1, 53):
        alb.rule(listener, only(alb.groups["lms-blue"]), priority=priority)

    found = find_places(Api(alb.client), [{"load_balancer": "lms", "port": 443, "priority": 52}])

    assert found[0].name == "lms:443/52"
    assert [method for method, _parameters in alb.client.calls].count("describe_rules") == 2


def test_all_routes_of_a_load_balancer_are_those_that_forward(alb: Alb) -> None:
    redirect = {"Type": "redirect", "RedirectConfig": {"Protocol": "HTTPS", "Port": "443", "StatusCode": "HTTP_301"}}
    plain = alb.listener(80, redirect)
    alb.rule(plain, only(alb.groups["lms-blue"]), priority=5)
    alb.rule(alb.listener(8443, only(alb.groups["lms-blue"])), redirect)

    assert [place.name for place in all_places(Api(alb.client), "lms")] == ["lms:80/5", "lms:8443"]


def test_the_group_that_is_unknown_is_named(alb: Alb) -> None:
    with pytest.raises(AwsError, match=r"The target group lms-red cannot be found: TargetGroupNotFound: .*"):
        find_groups(Api(alb.client), ["lms-blue", "lms-red", "lms-green"])


# The provider


def test_colours_have_a_group_for_each_route(alb: Alb) -> None:
    alb.group("web-blue", healthy=1)
    alb.group("web-green")
    listener = alb.listener(443, alb.forward(**{"web-blue": 1, "web-green": 0}))
    alb.rule(listener, alb.forward(**{"lms-blue": 3, "lms-green": 1}), priority=5)
    routes = [{"load_balancer": "lms", "port": 443, "name": "web"}, {"load_balancer": "lms", "port": 443, "priority": 5, "name": "api"}]
    colours = {
        "blue": {"api": "lms-blue", "web": "web-blue"},
        "green": {"api": alb.groups["lms-green"], "web": "web-green"},
    }

    provider = AlbProvider.of_colours(Api(alb.client), routes, colours)

    assert provider.colours == ["blue", "green"]
    assert provider.read() == {"web": Route("web", {"blue": 1, "green": 0}), "api": Route("api", {"blue": 3, "green": 1})}
    assert provider.health("blue") == {
        "lms-blue": [Target("10.0.1.1", 80, "healthy"), Target("10.0.1.2", 80, "healthy")],
        "web-blue": [Target("10.0.3.1", 80, "healthy")],
    }
    assert provider.health("green")["web-green"] == []


def test_a_colour_needs_a_group_on_every_route(alb: Alb) -> None:
    alb.listener(443, alb.forward(**{"lms-blue": 1}))

    with pytest.raises(TrafficError, match="The colour green has no group for lms:443"):
        AlbProvider.of_colours(Api(alb.client), [{"load_balancer": "lms", "port": 443}], {"blue": "lms-blue", "green": {}})
    with pytest.raises(TrafficError, match=r"The colour blue has None. Give a target group, or one for each route"):
        AlbProvider.of_colours(Api(alb.client), [{"load_balancer": "lms", "port": 443}], {"blue": None})  # type: ignore[dict-item]
    with pytest.raises(TrafficError, match="two colours in one target group"):
        AlbProvider.of_colours(Api(alb.client), [{"load_balancer": "lms", "port": 443}], {"blue": "lms-blue", "green": "lms-blue"})


def test_a_group_of_no_colour_is_told_by_its_own_name(alb: Alb) -> None:
    alb.group("blue")
    alb.listener(443, alb.forward(**{"lms-blue": 1, "lms-green": 2, "blue": 3}))

    provider = AlbProvider.of_colours(Api(alb.client), [{"load_balancer": "lms", "port": 443}], {"blue": "lms-blue"})

    assert provider.read()["lms:443"].weights == {"blue": 1, "lms-green": 2, alb.groups["blue"]: 3}


def test_reading_many_routes_takes_two_calls(alb: Alb) -> None:
    listener = alb.listener(443, alb.forward(**{"lms-blue": 1}))
    rules = [alb.rule(listener, alb.forward(**{"lms-blue": 1})) for _number in range(3)]
    routes = [{"listener_arn": listener}, *({"rule_arn": rule} for rule in rules)]
    provider = AlbProvider.of_colours(Api(alb.client), routes, {"blue": "lms-blue"})
    alb.client.calls.clear()

    assert len(provider.read()) == 4
    assert [method for method, _parameters in alb.client.calls] == ["describe_rules", "describe_listeners"]


def test_a_listener_that_was_deleted_is_no_longer_changed(alb: Alb) -> None:
    listener = alb.listener(443, alb.forward(**{"lms-blue": 1}))
    provider = AlbProvider.of_colours(Api(alb.client), [{"listener_arn": listener}], {"blue": "lms-blue", "green": "lms-green"})
    alb.raw.delete_listener(ListenerArn=listener)

    with pytest.raises((TrafficError, AwsError), match="lms:443"):
        provider.set("lms:443", {"blue": 1, "green": 1}, {"blue": 1})
    assert alb.client.changes() == []


def test_more_groups_than_aws_takes_are_refused_before_the_call(alb: Alb) -> None:
    colours = {f"c{number}": f"group-{number}" for number in range(6)}
    for group in colours.values():
        alb.group(group)
    alb.listener(443, alb.forward(**{"group-0": 1}))
    provider = AlbProvider.of_colours(Api(alb.client), [{"load_balancer": "lms", "port": 443}], colours)

    with pytest.raises(TrafficError, match="would have 6 target groups, and AWS takes 5"):
        provider.set("lms:443", dict.fromkeys(colours, 1), {"c0": 1})


def test_a_colour_that_drains_is_not_drained_yet(alb: Alb) -> None:
    alb.listener(443, alb.forward(**{"lms-blue": 1, "lms-green": 0}))
    provider = AlbProvider.of_colours(Api(alb.client), [{"load_balancer": "lms", "port": 443}], {"blue": "lms-blue", "green": "lms-green"})
    alb.world.drain_looks = 1
    alb.states("lms-green")[("10.0.2.1", 80)] = State("draining", "Target.DeregistrationInProgress")

    looks = [provider.drained("green") for _look in range(3)]

    assert (looks, provider.drained("blue")) == ([False, False, True], False)
