# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights for routes: decided, refused, carried out and put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import boto3
import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._alb_traffic import (
    Outcome,
    Settings,
    make_plan,
    open_provider,
    read_stickiness,
    run,
)
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import ATTEMPTS, Api
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import DriftError, Route, TrafficError, UnreadyError, weights_of
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_switch import Gate, Wanted
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock
from ansible_collections.bitflow.lms.tests.lab.elb_model import Alb, FakeClock, State, World, aws, new_alb, refusal

DEFAULTS: dict[str, Any] = {
    "routes": [{"load_balancer": "lms", "port": 443}],
    "weights": None,
    "expect": None,
    "stickiness": None,
    "retain": 0,
    "gate": {"min_healthy": 1, "consecutive": 2, "interval": 5, "timeout": 60},
    "verify_timeout": 10,
    "propagation_wait": 60,
}
THREE = [
    {"load_balancer": "lms", "port": 443},
    {"load_balancer": "lms", "port": 443, "priority": 10},
    {"load_balancer": "lms", "port": 80},
]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Put AWS into this process, once for all tests."""
    with aws() as made:
        yield made


@pytest.fixture
def alb(world: World) -> Alb:
    """Return a load balancer with two colours, of which blue has all traffic of three routes."""
    made = new_alb(world)
    made.group("blue", healthy=2)
    made.group("green", healthy=2)
    secure = made.listener(443, made.forward(blue=100, green=0))
    made.rule(secure, made.forward(blue=100, green=0), priority=10)
    made.listener(80, made.forward(blue=100, green=0))
    return made


class Switch:
    """A run of the module, and what it took."""

    def __init__(self, alb: Alb, check_mode: bool = False, clock: FakeClock | None = None, **options: Any) -> None:
        given = {**DEFAULTS, **options}
        self.clock = clock or FakeClock()
        alb.client.calls.clear()
        provider, wanted = open_provider(Api(alb.client, sleep=lambda _seconds: None), given)
        self.outcome: Outcome = run(provider, wanted, Settings.of(given), check_mode, Clock(self.clock.now, self.clock.sleep))
        self.result = self.outcome.as_result()


def listeners(alb: Alb) -> dict[int, str]:
    """Return the listeners by their port."""
    return {found["Port"]: found["ListenerArn"] for found in alb.raw.describe_listeners(LoadBalancerArn=alb.arn)["Listeners"]}


def all_weights(alb: Alb) -> dict[str, dict[str, int]]:
    """Return the weights of all listeners and rules that forward."""
    found = {}
    for port, listener in listeners(alb).items():
        for rule in alb.raw.describe_rules(ListenerArn=listener)["Rules"]:
            found[f"{port}/{rule['Priority']}"] = alb.weights(rule["RuleArn"])
    return found


# The same, however it is said


@pytest.mark.parametrize(
    "weights",
    [
        {"blue": 90, "green": 10},
        {"green": 10, "blue": 90},
        {"blue": "90", "green": "10"},
        {"blue": 9, "green": 1},
    ],
    ids=["as before", "in another order", "as strings", "in the same proportion"],
)
def test_the_same_weights_again_change_nothing(weights: Mapping[str, Any], alb: Alb) -> None:
    first = Switch(alb, weights={"blue": 90, "green": 10})

    second = Switch(alb, weights=weights)

    assert (first.result["changed"], second.result["changed"]) == (True, False)
    assert alb.client.changes() == []
    assert second.clock.pauses == []
    assert second.result["after"] == {"lms:443": {"blue": 90, "green": 10}}


def test_weights_without_stickiness_are_no_change_on_the_second_run(alb: Alb) -> None:
    alb.raw.modify_listener(ListenerArn=listeners(alb)[443], DefaultActions=[alb.forward(sticky=600, blue=100, green=0)])

    again = Switch(alb, weights={"blue": 100, "green": 0})

    assert (again.result["changed"], again.result["routes"][0]["sticky_seconds"]) == (False, 600)


def test_groups_may_be_given_by_arn(alb: Alb) -> None:
    result = Switch(alb, weights={alb.groups["blue"]: 90, alb.groups["green"]: 10}).result

    assert result["after"] == {"lms:443": {"blue": 90, "green": 10}}
    assert Switch(alb, weights={"blue": 90, "green": 10}).result["changed"] is False


def test_a_group_that_is_named_twice_is_refused(alb: Alb) -> None:
    with pytest.raises(TrafficError, match="weights has the target group blue twice"):
        Switch(alb, weights={"blue": 90, alb.groups["blue"]: 10})


def test_the_form_of_a_single_group_is_no_change(alb: Alb) -> None:
    alb.raw.modify_listener(ListenerArn=listeners(alb)[443], DefaultActions=[{"Type": "forward", "TargetGroupArn": alb.groups["blue"]}])

    assert Switch(alb, weights={"blue": 100}).result["changed"] is False
    assert Switch(alb, weights={"blue": 100, "green": 0}).result["changed"] is True


# What is left alone


def test_other_listeners_and_rules_stay(alb: Alb) -> None:
    Switch(alb, weights={"blue": 0, "green": 100})

    untouched = {"blue": 100, "green": 0}
    assert all_weights(alb) == {"443/default": {"blue": 0, "green": 100}, "443/10": untouched, "80/default": untouched}


def test_conditions_priority_and_other_actions_of_a_rule_stay(alb: Alb) -> None:
    login = {
        "Type": "authenticate-oidc",
        "Order": 1,
        "AuthenticateOidcConfig": {
            "Issuer": "https://login.example.com",
            "AuthorizationEndpoint": "https://login.example.com/authorize",
            "TokenEndpoint": "https://login.example.com/token",
            "UserInfoEndpoint": "https://login.example.com/user",
            "ClientId": "lms",
            "ClientSecret": "hush",
        },
    }
    rule = alb.rule(listeners(alb)[443], login, {**alb.forward(blue=1), "Order": 2}, priority=20)
    before = alb.raw.describe_rules(RuleArns=[rule])["Rules"][0]

    Switch(alb, routes=[{"rule_arn": rule}], weights={"blue": 0, "green": 1})

    after = alb.raw.describe_rules(RuleArns=[rule])["Rules"][0]
    changed = after["Actions"].pop(1)
    before["Actions"].pop(1)
    assert after == before
    assert changed["Order"] == 2
    assert alb.weights(rule) == {"blue": 0, "green": 1}
    written = alb.client.changes()[0][1]["Actions"][0]["AuthenticateOidcConfig"]
    assert (written["UseExistingClientSecret"], "ClientSecret" in written) == (True, False)


def test_a_listener_of_https_keeps_its_certificate(alb: Alb) -> None:
    certificate = boto3.client("acm", region_name="eu-central-1").request_certificate(DomainName="lms.example.com")["CertificateArn"]
    more = {"Protocol": "HTTPS", "Certificates": [{"CertificateArn": certificate}], "SslPolicy": "ELBSecurityPolicy-TLS13-1-2-2021-06"}
    listener = alb.listener(8443, alb.forward(blue=1), **more)
    before = alb.raw.describe_listeners(ListenerArns=[listener])["Listeners"][0]

    Switch(alb, routes=[{"listener_arn": listener}], weights={"blue": 0, "green": 1})

    after = alb.raw.describe_listeners(ListenerArns=[listener])["Listeners"][0]
    assert {**after, "DefaultActions": []} == {**before, "DefaultActions": []}
    assert alb.weights(listener) == {"blue": 0, "green": 1}


# Several at once


def test_each_route_is_changed_in_one_call(alb: Alb) -> None:
    switch = Switch(alb, routes=THREE, weights={"blue": 0, "green": 100})

    assert [method for method, _parameters in alb.client.changes()] == ["modify_listener", "modify_rule", "modify_listener"]
    assert list(all_weights(alb).values()) == [{"blue": 0, "green": 100}] * 3
    assert switch.result["live"] == "green"


def test_routes_may_have_weights_and_expectations_of_their_own(alb: Alb) -> None:
    alb.group("web-blue", healthy=1)
    alb.group("web-green", healthy=1)
    alb.raw.modify_listener(ListenerArn=listeners(alb)[80], DefaultActions=[alb.forward(**{"web-blue": 1, "web-green": 0})])
    web = {
        "name": "web",
        "load_balancer": "lms",
        "port": 80,
        "weights": {"web-blue": 0, "web-green": 1},
        "expect": {"web-blue": 1, "web-green": 0},
    }
    api = {"name": "api", "load_balancer": "lms", "port": 443}

    switch = Switch(alb, routes=[api, web], weights={"blue": 0, "green": 1}, expect={"blue": 1, "green": 0})

    assert switch.result["after"] == {"api": {"blue": 0, "green": 1}, "web": {"web-blue": 0, "web-green": 1}}
    assert switch.result["live"] is None


def test_what_only_attaches_comes_before_what_moves_traffic(alb: Alb) -> None:
    alb.by_hand(listeners(alb)[80], blue=100)
    last = {**THREE[2], "weights": {"blue": 100, "green": 0}}

    Switch(alb, routes=[THREE[0], last], weights={"blue": 0, "green": 100})

    assert [parameters["ListenerArn"] for _method, parameters in alb.client.changes()] == [listeners(alb)[80], listeners(alb)[443]]


def test_there_is_no_moment_without_weight(alb: Alb) -> None:
    totals: list[int] = []

    def watch(method: str, _number: int) -> None:
        if method.startswith("modify_"):
            totals.extend(sum(weights.values()) for weights in all_weights(alb).values())

    alb.client.lost = watch
    Switch(alb, routes=THREE, weights={"blue": 0, "green": 100})

    assert totals == [100] * 9


def test_when_a_route_fails_those_before_it_get_their_weights_back(alb: Alb) -> None:
    before = all_weights(alb)
    alb.client.fault = lambda method, number: refusal("ValidationError") if (method, number) == ("modify_listener", 2) else None

    with pytest.raises(TrafficError) as caught:
        Switch(alb, routes=THREE, weights={"blue": 0, "green": 100})

    assert all_weights(alb) == before
    assert caught.value.message.startswith("The route lms:80 cannot be changed: ValidationError: said no.")
    assert (caught.value.details["put_back"], caught.value.details["left"]) == (["lms:443", "lms:443/10", "lms:80"], {})


def test_a_group_that_was_taken_off_is_put_back_too(alb: Alb) -> None:
    alb.group("purple")
    alb.by_hand(listeners(alb)[443], blue=100, green=0, purple=0)
    before = all_weights(alb)
    alb.client.fault = lambda method, _number: refusal("ValidationError") if method == "modify_rule" else None

    with pytest.raises(TrafficError):
        Switch(alb, routes=THREE[:2], weights={"blue": 0, "green": 100})

    assert all_weights(alb) == before


@pytest.mark.parametrize("failing", [1, 2], ids=["the first listener", "the second listener"])
def test_a_change_whose_answer_got_lost_is_put_back_as_well(failing: int, alb: Alb) -> None:
    before = all_weights(alb)
    alb.client.lost = lambda method, number: refusal("AnythingElse") if (method, number) == ("modify_listener", failing) else None

    with pytest.raises(TrafficError, match=r"The weights from before are on lms:443"):
        Switch(alb, routes=THREE, weights={"blue": 0, "green": 100})

    assert all_weights(alb) == before


def test_an_answer_that_got_lost_for_a_moment_does_no_harm(alb: Alb) -> None:
    alb.client.lost = lambda method, number: ConnectionResetError() if (method, number) == ("modify_listener", 1) else None

    switch = Switch(alb, routes=THREE, weights={"blue": 0, "green": 100})

    assert switch.result["live"] == "green"


def test_a_throttled_switch_goes_on(alb: Alb) -> None:
    alb.client.fault = lambda _method, number: refusal("ThrottlingException") if number < ATTEMPTS - 1 else None

    assert Switch(alb, routes=THREE, weights={"blue": 0, "green": 100}).result["live"] == "green"


def test_what_cannot_be_put_back_is_told(alb: Alb) -> None:
    alb.client.fault = lambda method, number: refusal("AccessDenied", 403) if method == "modify_listener" and number > 1 else None

    with pytest.raises(TrafficError) as caught:
        Switch(alb, routes=THREE, weights={"blue": 0, "green": 100})

    assert caught.value.details["put_back"] == ["lms:443/10", "lms:80"]
    assert list(caught.value.details["left"]) == ["lms:443"]
    assert caught.value.message.endswith("Repair by hand: lms:443.")


def test_whoever_interrupts_the_task_leaves_the_weights_from_before(alb: Alb) -> None:
    before = all_weights(alb)

    def interrupt(method: str, number: int) -> Exception | None:
        if (method, number) == ("modify_rule", 1):
            raise KeyboardInterrupt
        return None

    alb.client.lost = interrupt
    with pytest.raises(KeyboardInterrupt):
        Switch(alb, routes=THREE, weights={"blue": 0, "green": 100})

    assert all_weights(alb) == before


# Drift


def test_weights_that_are_not_the_expected_ones_are_left_alone(alb: Alb) -> None:
    alb.by_hand(listeners(alb)[80], blue=50, green=50)

    with pytest.raises(DriftError, match="The route lms:80 has blue 50, green 50, but blue 100, green 0 was expected"):
        Switch(alb, routes=THREE, weights={"blue": 0, "green": 100}, expect={"blue": 100, "green": 0})

    assert alb.client.changes() == []


def test_a_task_with_expectations_may_be_repeated(alb: Alb) -> None:
    options: dict[str, Any] = {"routes": THREE, "weights": {"blue": 0, "green": 100}, "expect": {"blue": 100, "green": 0}}

    assert [Switch(alb, **options).result["changed"] for _time in range(2)] == [True, False]


def test_a_task_that_was_killed_half_way_is_taken_up(alb: Alb) -> None:
    alb.by_hand(listeners(alb)[443], blue=0, green=100)

    switch = Switch(alb, routes=THREE, weights={"blue": 0, "green": 100}, expect={"blue": 100, "green": 0})

    assert (switch.result["changed"], switch.result["live"], len(alb.client.changes())) == (True, "green", 2)


def test_expectations_count_by_proportion_and_by_arn(alb: Alb) -> None:
    switch = Switch(alb, weights={"blue": 0, "green": 1}, expect={alb.groups["blue"]: "1", "green": 0})

    assert switch.result["changed"] is True


def test_who_changes_the_weights_meanwhile_is_not_overwritten(alb: Alb) -> None:
    clock = FakeClock()
    # While the health is looked at.
    clock.events = lambda _time: alb.by_hand(listeners(alb)[80], blue=30, green=70)

    with pytest.raises(TrafficError, match="The route lms:80 has blue 30, green 70, but blue 100, green 0 was expected") as caught:
        Switch(alb, clock=clock, routes=THREE, weights={"blue": 0, "green": 100})

    assert all_weights(alb) == {
        "443/default": {"blue": 100, "green": 0},
        "443/10": {"blue": 100, "green": 0},
        "80/default": {"blue": 30, "green": 70},
    }
    assert (caught.value.details["put_back"], caught.value.details["left"]) == (["lms:443", "lms:443/10"], {})


# Readiness


def test_traffic_waits_until_the_group_is_healthy_some_times_in_a_row(alb: Alb) -> None:
    # Healthy, then not, then healthy for good: one good look is none.
    course = {0: "healthy", 5: "unhealthy", 10: "initial", 15: "healthy"}
    clock = FakeClock()

    def go_on(time: float) -> None:
        for state in alb.states("green").values():
            state.state = course.get(int(time), state.state)

    clock.events = go_on

    switch = Switch(alb, clock=clock, weights={"blue": 90, "green": 10})

    assert clock.pauses == [5, 5, 5, 5, 60]
    assert [health["counts"] for health in switch.result["health"]] == [{"healthy": 2}]


def test_an_empty_group_gets_no_traffic(alb: Alb) -> None:
    alb.states("green").clear()

    with pytest.raises(UnreadyError, match="green cannot take traffic: green is empty"):
        Switch(alb, weights={"blue": 90, "green": 10})

    assert alb.client.changes() == []


def test_a_group_without_a_healthy_target_gets_no_traffic_although_it_would_answer(alb: Alb) -> None:
    alb.states("green").update(
        {
            ("10.0.2.1", 80): State("unhealthy", "Target.ResponseCodeMismatch"),
            ("10.0.2.2", 80): State("unhealthy", "Target.Timeout"),
        }
    )

    with pytest.raises(UnreadyError) as caught:
        Switch(alb, weights={"blue": 90, "green": 10})

    assert caught.value.message == (
        "green cannot take traffic: green has 0 healthy of 2 targets, and 1 are needed: "
        "10.0.2.1:80 is unhealthy (Target.ResponseCodeMismatch), 10.0.2.2:80 is unhealthy (Target.Timeout). "
        "That was so for 60 s. Repair the targets; nothing was changed."
    )
    assert alb.client.changes() == []


def test_an_unused_group_fails_at_once_instead_of_at_the_timeout(alb: Alb) -> None:
    alb.group("purple", healthy=3)
    clock = FakeClock()

    with pytest.raises(UnreadyError, match=r"purple is on no route, .* Give it the weight 0 first, then more."):
        Switch(alb, clock=clock, weights={"blue": 90, "purple": 10, "green": 0})

    assert (clock.time, alb.client.changes()) == (0, [])
    attached = Switch(alb, clock=clock, weights={"blue": 90, "purple": 0, "green": 0})
    shifted = Switch(alb, clock=clock, weights={"blue": 90, "purple": 10, "green": 0})
    assert (attached.result["changed"], shifted.result["changed"]) == (True, True)


def test_the_timeout_of_the_gate_is_kept(alb: Alb) -> None:
    alb.states("green")[("10.0.2.1", 80)].state = "initial"
    clock = FakeClock()

    with pytest.raises(UnreadyError, match=r"1 healthy of 2 targets, and 2 are needed: 10.0.2.1:80 is initial"):
        Switch(alb, clock=clock, weights={"blue": 90, "green": 10}, gate={"min_healthy": 2, "interval": 7, "timeout": 30})

    assert clock.pauses == [7, 7, 7, 7]


def test_good_looks_may_be_completed_after_the_timeout(alb: Alb) -> None:
    switch = Switch(alb, weights={"blue": 90, "green": 10}, gate={"consecutive": 3, "interval": 5, "timeout": 0})

    assert switch.clock.pauses == [5, 5, 60]


def test_a_target_in_another_zone_does_not_stop_the_others(alb: Alb) -> None:
    alb.states("green")[("10.0.2.1", 80)] = State("unused", "Target.NotInUse")

    assert Switch(alb, weights={"blue": 90, "green": 10}).result["health"][0]["counts"] == {"healthy": 1, "unused": 1}


def test_all_routes_are_gated_before_the_first_is_changed(alb: Alb) -> None:
    alb.group("web", healthy=0)
    alb.by_hand(listeners(alb)[80], blue=100, web=0)
    last = {**THREE[2], "weights": {"blue": 0, "web": 100}}

    with pytest.raises(UnreadyError, match="web is empty"):
        Switch(alb, routes=[THREE[0], last], weights={"blue": 0, "green": 100})

    assert alb.client.changes() == []


def test_the_way_back_from_a_sick_group_needs_only_the_old_one(alb: Alb) -> None:
    alb.by_hand(listeners(alb)[443], blue=0, green=100)
    for state in alb.states("green").values():
        state.state = "unhealthy"

    assert Switch(alb, weights={"blue": 100, "green": 0}).result["live"] == "blue"


# Refusals


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"blue": 0, "green": 0}, "weights has no colour with a weight above 0"),
        ({"blue": 1000, "green": 0}, "Give a whole number from 0 to 999"),
        ({"blue": -1, "green": 1}, "Give a whole number from 0 to 999"),
        ({"blue": "half", "green": 1}, "weights.blue is 'half'"),
        ({"blue": True, "green": 1}, "weights.blue is True"),
        ({"blue": 1, "red": 0}, "The target group red cannot be found"),
        ({"blue": 1, "arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/red/1": 0}, "/red/1 cannot be found"),
        ({"blue": 1, **{f"group-{number}": 0 for number in range(5)}}, "would have 6 target groups, and AWS takes 5"),
        ({}, "The route lms:443 has no weights"),
        ({"green": 100}, "The route lms:443 also forwards to blue, which weights does not name"),
    ],
)
@pytest.mark.parametrize("check_mode", [False, True])
def test_weights_that_would_lose_traffic_are_refused(check_mode: bool, weights: dict[str, Any], message: str, alb: Alb) -> None:
    with pytest.raises(LmsError, match=message):
        Switch(alb, check_mode=check_mode, weights=weights)

    assert alb.client.changes() == []


def test_a_group_without_weight_may_be_taken_off(alb: Alb) -> None:
    result = Switch(alb, weights={"blue": 100}).result

    assert result["routes"][0]["changes"] == {"green": "0->none"}
    assert alb.weights(listeners(alb)[443]) == {"blue": 100}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("gate", {"min_healthy": 0}, "gate.min_healthy is 0. Give 1 at least."),
        ("gate", {"consecutive": 0}, "gate.consecutive is 0. Give 1 at least."),
        ("gate", {"timeout": -1}, "gate.timeout is -1. Give 0 at least."),
        ("retain", -1, "retain is -1. Give 0 at least."),
        ("propagation_wait", -1, "propagation_wait is -1. Give 0 at least."),
        ("stickiness", {"enabled": True}, "stickiness.seconds is None. Give from 1 to 604800 seconds where it is enabled."),
        ("stickiness", {"enabled": True, "seconds": 604801}, "stickiness.seconds is 604801. Give from 1 to 604800"),
    ],
)
def test_options_that_make_no_sense_are_refused(option: str, value: Any, message: str) -> None:
    with pytest.raises(LmsError, match=message):
        Settings.of({**DEFAULTS, option: value})


# Stickiness


def test_stickiness_that_outlives_the_switch_is_refused(alb: Alb) -> None:
    stay = {"enabled": True, "seconds": 600}
    Switch(alb, weights={"blue": 100, "green": 0}, stickiness=stay)

    with pytest.raises(TrafficError, match=r"keeps its clients on their colour for 600 s, longer than retain \(0 s\)"):
        Switch(alb, weights={"blue": 0, "green": 100})

    assert alb.client.changes() == []
    assert Switch(alb, weights={"blue": 50, "green": 50}).result["changed"] is True
    assert Switch(alb, weights={"blue": 0, "green": 100}, retain=600).result["routes"][0]["sticky_seconds"] == 600


def test_stickiness_can_be_turned_on_and_off(alb: Alb) -> None:
    weights = {"blue": 100, "green": 0}

    on = Switch(alb, weights=weights, stickiness={"enabled": True, "seconds": 600})
    same = Switch(alb, weights=weights, stickiness={"enabled": True, "seconds": 600})
    other = Switch(alb, weights=weights, stickiness={"enabled": True, "seconds": 60})
    off = Switch(alb, weights=weights, stickiness={"enabled": False, "seconds": None})
    still = Switch(alb, weights=weights, stickiness={"enabled": False, "seconds": 5})

    assert [switch.result["changed"] for switch in (on, same, other, off, still)] == [True, False, True, True, False]
    assert alb.actions(listeners(alb)[443])[0]["ForwardConfig"]["TargetGroupStickinessConfig"] == {"Enabled": False}


def test_stickiness_turned_off_with_the_switch_lets_it_pass(alb: Alb) -> None:
    Switch(alb, weights={"blue": 100, "green": 0}, stickiness={"enabled": True, "seconds": 600})

    switch = Switch(alb, weights={"blue": 0, "green": 100}, stickiness={"enabled": False})

    assert (switch.result["live"], switch.result["routes"][0]["sticky_seconds"]) == ("green", 0)


def test_stickiness_is_put_back_too(alb: Alb) -> None:
    Switch(alb, weights={"blue": 100, "green": 0}, stickiness={"enabled": True, "seconds": 600})
    alb.client.fault = lambda method, _number: refusal("ValidationError") if method == "modify_rule" else None

    with pytest.raises(TrafficError):
        Switch(alb, routes=THREE[:2], weights={"blue": 0, "green": 100}, stickiness={"enabled": False})

    kept = alb.actions(listeners(alb)[443])[0]["ForwardConfig"]["TargetGroupStickinessConfig"]
    assert kept == {"Enabled": True, "DurationSeconds": 600}


def test_no_stickiness_is_read_as_leave_it() -> None:
    assert [read_stickiness(None), read_stickiness({"enabled": False})] == [None, 0]


# Afterwards


def test_the_nodes_get_their_time_after_traffic_moved(alb: Alb) -> None:
    moved = Switch(alb, weights={"blue": 90, "green": 10}, propagation_wait=45)
    attached = Switch(alb, routes=[THREE[2]], weights={"blue": 100}, propagation_wait=45)

    assert (moved.clock.pauses[-1], attached.clock.pauses) == (45, [])


def test_weights_that_do_not_show_are_an_error(alb: Alb) -> None:
    clock = FakeClock()
    provider, wanted = open_provider(Api(alb.client), {**DEFAULTS, "weights": {"blue": 0, "green": 1}})
    provider.verify = lambda route, weights: False  # type: ignore[method-assign]

    with pytest.raises(TrafficError, match="The route lms:443 does not show its new weights after 10 s"):
        run(provider, wanted, Settings(Gate(consecutive=1), verify_timeout=10), False, Clock(clock.now, clock.sleep))

    assert clock.time == 10
    assert alb.weights(listeners(alb)[443]) == {"blue": 100, "green": 0}


def test_the_result_is_whole(alb: Alb) -> None:
    result = Switch(alb, weights={"blue": 90, "green": 10}).result

    assert result == {
        "changed": True,
        "before": {"lms:443": {"blue": 100, "green": 0}},
        "after": {"lms:443": {"blue": 90, "green": 10}},
        "live": None,
        "routes": [
            {
                "name": "lms:443",
                "listener_arn": listeners(alb)[443],
                "rule_arn": None,
                "changes": {"blue": "100->90", "green": "0->10"},
                "sticky_seconds": 0,
            }
        ],
        "health": [
            {
                "name": "green",
                "ready": True,
                "fault": "",
                "counts": {"healthy": 2},
                "targets": [
                    {"group": "green", "id": "10.0.2.1", "port": 80, "state": "healthy", "reason": ""},
                    {"group": "green", "id": "10.0.2.2", "port": 80, "state": "healthy", "reason": ""},
                ],
            }
        ],
        "diff": {
            "before": {"lms:443": {"weights": {"blue": 100, "green": 0}, "sticky_seconds": 0}},
            "after": {"lms:443": {"weights": {"blue": 90, "green": 10}, "sticky_seconds": 0}},
        },
    }


# Check mode


def test_check_mode_plans_the_same_and_changes_nothing(alb: Alb) -> None:
    planned = Switch(alb, check_mode=True, routes=THREE, weights={"blue": 90, "green": 10})
    untouched = all_weights(alb)
    changes = alb.client.changes()

    done = Switch(alb, routes=THREE, weights={"blue": 90, "green": 10})

    assert changes == []
    assert list(untouched.values()) == [{"blue": 100, "green": 0}] * 3
    assert planned.result == done.result
    assert planned.clock.pauses == []


def test_check_mode_warns_of_a_group_that_is_not_ready_yet(alb: Alb) -> None:
    alb.states("green").clear()

    planned = Switch(alb, check_mode=True, weights={"blue": 90, "green": 10})

    assert planned.outcome.warnings == ["green could not take traffic now: green is empty."]
    assert (planned.result["changed"], planned.result["health"][0]["ready"]) == (True, False)


def test_check_mode_refuses_what_the_run_would_refuse(alb: Alb) -> None:
    with pytest.raises(DriftError):
        Switch(alb, check_mode=True, weights={"blue": 0, "green": 100}, expect={"blue": 1, "green": 1})


# Plans


def test_a_plan_reads_nothing_and_keeps_what_means_the_same() -> None:
    live = {"a": Route("a", {"blue": 1}), "b": Route("b", {"blue": 100, "green": 0})}

    plan = make_plan(live, Wanted({"a": {"blue": 100}, "b": {"blue": 1, "green": 0}}, {}), Settings())

    assert (plan.needed, plan.raised, weights_of(plan.after)) == ([], [], {"a": {"blue": 1}, "b": {"blue": 100, "green": 0}})
