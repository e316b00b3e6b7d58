# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every provider of traffic has to do. Each test runs on the one in memory and on those of real load balancers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._alb import AlbProvider
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import (
    STATES,
    DriftError,
    Provider,
    TrafficError,
    Weights,
    judge,
    live_colour,
    refuse_foreign,
    weights_of,
)
from ansible_collections.bitflow.lms.tests.lab.elb_model import State, World, aws, new_alb
from ansible_collections.bitflow.lms.tests.unit.plugins.module_utils.nginx_model import Nginx, servers
from ansible_collections.bitflow.lms.tests.unit.plugins.module_utils.traffic_memory import MemoryProvider
from ansible_collections.bitflow.lms.tests.unit.plugins.module_utils.traffic_world import World as RolloutWorld

ROUTES = ("api", "web")
BEFORE = {"blue": 100, "green": 0}


class Bench(Protocol):
    """A load balancer with the routes api and web, both on blue, and green attached; each colour has two healthy targets."""

    provider: Provider
    # The states that this load balancer knows.
    known: Sequence[str]

    def by_hand(self, route: str, weights: Weights) -> None:
        """Change weights as somebody with a console does."""

    def states(self, colour: str, states: Sequence[str]) -> None:
        """Give a colour targets in these states."""

    def drain(self, colour: str) -> None:
        """Have a colour end its last requests, seen by the next look and not by the one after it."""


class MemoryBench:
    """The provider in memory."""

    known: Sequence[str] = STATES

    def __init__(self) -> None:
        self._memory = MemoryProvider(dict.fromkeys(ROUTES, BEFORE))
        self.provider: Provider = self._memory

    def by_hand(self, route: str, weights: Weights) -> None:
        """Change weights."""
        self._memory.by_hand(route, weights)

    def states(self, colour: str, states: Sequence[str]) -> None:
        """Change targets."""
        self._memory.states[colour] = list(states)

    def drain(self, colour: str) -> None:
        """Drain until somebody looks."""
        self._memory.undrained.add(colour)
        self._memory.after = lambda call: self._memory.undrained.clear() if call.startswith("drained") else None


class AlbBench:
    """A load balancer of AWS, whose web is a default action and whose api is a rule."""

    known: Sequence[str] = STATES

    def __init__(self, world: World) -> None:
        self._alb = new_alb(world)
        for group in ("lms-blue", "lms-green"):
            self._alb.group(group, healthy=2)
        self._alb.group("red", healthy=1)
        self._names = {"blue": "lms-blue", "green": "lms-green", "red": "red"}
        listener = self._alb.listener(443, self._forward(BEFORE))
        rule = self._alb.rule(listener, self._forward(BEFORE))
        self._arns = {"web": listener, "api": rule}
        routes = [{"name": "web", "listener_arn": listener}, {"name": "api", "rule_arn": rule}]
        colours = {"blue": "lms-blue", "green": self._alb.groups["lms-green"]}
        self.provider: Provider = AlbProvider.of_colours(Api(self._alb.client), routes, colours)

    def by_hand(self, route: str, weights: Weights) -> None:
        """Change weights."""
        change = {"web": self._alb.raw.modify_listener, "api": self._alb.raw.modify_rule}[route]
        arn = {"web": "ListenerArn", "api": "RuleArn"}[route]
        actions = {"web": "DefaultActions", "api": "Actions"}[route]
        change(**{arn: self._arns[route], actions: [self._forward(weights)]})

    def states(self, colour: str, states: Sequence[str]) -> None:
        """Change targets."""
        found = self._alb.states(self._names[colour])
        found.clear()
        found.update({(f"192.0.2.{number}", 80): State(state) for number, state in enumerate(states, 1)})

    def drain(self, colour: str) -> None:
        """Drain until somebody looks."""
        self._alb.world.drain_looks = 0
        self._alb.states(self._names[colour])[("192.0.2.9", 80)] = State("draining")

    def _forward(self, weights: Weights) -> dict[str, Any]:
        """Return an action."""
        return self._alb.forward(**{self._names[colour]: weight for colour, weight in weights.items()})


class NginxBench:
    """The own load balancer, with a stand-in for nginx or HAProxy."""

    known: Sequence[str] = ("healthy", "unhealthy", "unused")

    def __init__(self, directory: Path, method: str) -> None:
        self._nginx = Nginx(directory, ROUTES, BEFORE, method)
        self.provider: Provider = self._nginx.provider()

    def by_hand(self, route: str, weights: Weights) -> None:
        """Change weights."""
        self._nginx.by_hand(route, weights)

    def states(self, colour: str, states: Sequence[str]) -> None:
        """Give a colour other servers, as the role does."""
        given = servers(colour, len(states))
        self._nginx.faults.update({server["address"]: "" if state == "healthy" else "refused" for server, state in zip(given, states)})
        colours = {each: given if each == colour else servers(each, 2) for each in BEFORE}
        self._nginx.write(dict.fromkeys(ROUTES, colours))
        self.provider = self._nginx.provider()

    def drain(self, colour: str) -> None:
        """Drain until somebody looks."""
        server = servers(colour, 1)[0]
        self._nginx.connections = [{(server["address"], server["port"])}]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Put AWS into this process, once for all tests."""
    with aws() as made:
        yield made


@pytest.fixture(params=["memory", "alb", "flag", "reload", "haproxy"])
def bench(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> Bench:
    """Return each load balancer in turn."""
    if request.param == "memory":
        return MemoryBench()
    return AlbBench(world) if request.param == "alb" else NginxBench(tmp_path, request.param)


def live(bench: Bench) -> Mapping[str, Weights]:
    """Return the live weights. Those of the tests are percents, which is what nginx keeps."""
    return weights_of(bench.provider.read())


def counts(bench: Bench, colour: str) -> Mapping[str, int]:
    """Return how many targets of the first group of a colour are in each state."""
    group, targets = next(iter(sorted(bench.provider.health(colour).items())))
    return judge(colour, {group: targets}).counts


def test_the_colours_have_their_order(bench: Bench) -> None:
    assert list(bench.provider.colours) == ["blue", "green"]


def test_reading_tells_every_route_in_colours(bench: Bench) -> None:
    assert live(bench) == {"api": BEFORE, "web": BEFORE}
    assert live_colour(bench.provider.read(), bench.provider.colours) == "blue"


def test_reading_is_never_from_a_cache(bench: Bench) -> None:
    live(bench)

    bench.by_hand("api", {"blue": 30, "green": 70})

    assert live(bench) == {"api": {"blue": 30, "green": 70}, "web": BEFORE}


def test_a_group_of_no_colour_is_told(bench: Bench) -> None:
    bench.by_hand("web", {"blue": 50, "red": 50})

    assert live(bench)["web"] == {"blue": 50, "red": 50}
    with pytest.raises(TrafficError, match="also forwards to red"):
        refuse_foreign(bench.provider.read(), bench.provider.colours)


@pytest.mark.parametrize("route", ROUTES)
def test_setting_gives_one_route_its_weights(route: str, bench: Bench) -> None:
    bench.provider.set(route, {"blue": 90, "green": 10}, BEFORE)

    assert live(bench) == {**dict.fromkeys(ROUTES, BEFORE), route: {"blue": 90, "green": 10}}


@pytest.mark.parametrize("route", ROUTES)
def test_weights_that_somebody_else_set_stay(route: str, bench: Bench) -> None:
    bench.by_hand(route, {"blue": 70, "green": 30})

    with pytest.raises(DriftError):
        bench.provider.set(route, {"blue": 90, "green": 10}, BEFORE)

    assert live(bench)[route] == {"blue": 70, "green": 30}


def test_expected_weights_count_by_their_proportion(bench: Bench) -> None:
    bench.provider.set("web", {"blue": 50, "green": 50}, {"blue": 1, "green": 0})

    assert live(bench)["web"] == {"blue": 50, "green": 50}


def test_a_change_whose_answer_got_lost_may_be_repeated(bench: Bench) -> None:
    for _time in range(2):
        bench.provider.set("web", {"blue": 90, "green": 10}, BEFORE)

    assert live(bench)["web"] == {"blue": 90, "green": 10}


@pytest.mark.parametrize("weights", [{"blue": 0, "green": 0}, {"blue": 1000, "green": 0}, {"blue": -1, "green": 1}])
def test_weights_that_serve_nobody_or_are_none_are_refused(weights: Weights, bench: Bench) -> None:
    with pytest.raises(TrafficError):
        bench.provider.set("web", weights, BEFORE)

    assert live(bench)["web"] == BEFORE


def test_a_colour_that_is_left_out_is_taken_off_and_no_longer_checked(bench: Bench) -> None:
    for route in ROUTES:
        bench.provider.set(route, {"blue": 100}, BEFORE)

    assert live(bench) == {route: {"blue": 100} for route in ROUTES}
    assert counts(bench, "green") == {"unused": 2}


def test_the_weight_of_zero_attaches_a_colour_and_has_it_checked(bench: Bench) -> None:
    for route in ROUTES:
        bench.by_hand(route, {"blue": 100})

    for route in ROUTES:
        bench.provider.set(route, BEFORE, {"blue": 100})

    assert live(bench) == dict.fromkeys(ROUTES, BEFORE)
    assert counts(bench, "green") == {"healthy": 2}


def test_health_tells_the_state_of_every_target(bench: Bench) -> None:
    states = [state for state in ("healthy", "initial", "unhealthy") if state in bench.known]
    bench.states("green", states)

    assert counts(bench, "green") == dict.fromkeys(states, 1)
    assert counts(bench, "blue") == {"healthy": 2}


def test_a_group_without_targets_is_there_and_empty(bench: Bench) -> None:
    bench.states("green", [])

    health = bench.provider.health("green")

    assert [list(targets) for targets in health.values()] == [[]] * len(health)
    assert judge("green", health).ready is False


def test_verifying_tells_which_weights_are_in_force(bench: Bench) -> None:
    bench.provider.set("web", {"blue": 90, "green": 10}, BEFORE)

    verified = [
        bench.provider.verify("web", {"blue": 9, "green": 1}),
        bench.provider.verify("web", BEFORE),
        bench.provider.verify("api", BEFORE),
    ]

    assert verified == [True, False, True]


def test_a_colour_is_drained_once_nothing_of_it_is_served(bench: Bench) -> None:
    quiet = bench.provider.drained("green")
    bench.drain("green")

    assert (quiet, bench.provider.drained("green"), bench.provider.drained("green")) == (True, False, True)


def test_a_rollout_goes_from_beginning_to_end(bench: Bench) -> None:
    rollout = RolloutWorld()
    rollout.provider = bench.provider  # type: ignore[assignment]

    phases = [rollout.run(until=phase).phase for phase in ("retained", "retired")]

    assert (phases, live(bench)) == (["retained", "retired"], {route: {"blue": 0, "green": 100} for route in ROUTES})


def test_a_rollout_comes_back_from_a_step(bench: Bench) -> None:
    rollout = RolloutWorld()
    rollout.provider = bench.provider  # type: ignore[assignment]
    rollout.run(until="shifting")
    shifted = live(bench)

    rollout.run("rollback")

    assert shifted == {route: {"blue": 95, "green": 5} for route in ROUTES}
    assert live_colour(bench.provider.read(), bench.provider.colours) == "blue"
