# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What traffic is, whatever load balancer carries it: routes, the weights of their colours, and the rules that no switch may break.

A colour is a name, such as blue or green, for one group of targets on each route. The weights that a load balancer answers with are the
only truth about where traffic goes; a record or a variable only says what was meant.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

MAX_WEIGHT = 999

HEALTHY = "healthy"
UNHEALTHY = "unhealthy"
INITIAL = "initial"
DRAINING = "draining"
UNUSED = "unused"
UNAVAILABLE = "unavailable"
STATES = (HEALTHY, INITIAL, UNHEALTHY, UNUSED, DRAINING, UNAVAILABLE)

# Colour to weight. A colour that is missing is not attached; one with weight 0 is attached, so its targets are checked.
Weights = Mapping[str, int]


class TrafficError(LmsError):
    """Traffic that cannot, or must not, be switched as asked."""


class DriftError(TrafficError):
    """Weights that are not those that were expected: somebody else changed them."""


class AmbiguousError(TrafficError):
    """Traffic of which nobody can say which colour is live."""


class UnreadyError(TrafficError):
    """A colour that cannot take traffic."""


@dataclass(frozen=True)
class Route:
    """A listener, a rule or a server block that splits traffic by weight, as the load balancer has it."""

    name: str
    # A group that belongs to no colour stands here under its own name.
    weights: Weights
    # For how long a client stays with the colour of its first request (seconds); 0 where it does not.
    sticky_seconds: int = 0


# Name of a route to the route.
Live = Mapping[str, Route]


@dataclass(frozen=True)
class Target:
    """One server of a group, with the state that the load balancer has it in."""

    id: str
    port: int | None
    state: str
    reason: str = ""

    @property
    def label(self) -> str:
        """Return the target in words."""
        where = self.id if self.port is None else f"{self.id}:{self.port}"
        return f"{where} is {self.state}" + (f" ({self.reason})" if self.reason else "")


# Name of a group to its targets. A group without targets is there, and empty.
Health = Mapping[str, Sequence[Target]]


class Provider(Protocol):
    """What a load balancer has to be able to do. Each method raises LmsError when it cannot."""

    @property
    def colours(self) -> Sequence[str]:
        """Return the names of the colours, in the order of the options."""

    def read(self) -> Live:
        """Return every route as it is now. Never from a cache."""

    def health(self, colour: str) -> Health:
        """Return the targets of every group of a colour. A group that no route names is not checked: its targets are unused."""

    def set(self, route: str, weights: Weights, expect: Weights) -> None:
        """Give a route exactly these weights, in one step that never leaves it without any; stickiness stays.

        Reads the route first, and raises DriftError without a change when its weights are not the expected ones. A colour with weight 0
        is attached by it, one that is left out is taken off. When the route has the wanted weights already, nothing is done: a call that
        was done although its answer got lost may be repeated.
        """

    def verify(self, route: str, weights: Weights) -> bool:
        """Say whether the load balancer acts by these weights, as far as it can be seen now. Does not wait."""

    def drained(self, colour: str) -> bool:
        """Say whether nothing of a colour is being served any more, as far as it can be seen now. Asked while its weight is 0."""


# Weights


def read_weights(option: str, given: Mapping[str, Any], colours: Sequence[str]) -> dict[str, int]:
    """Read weights as an option gives them, numbers in strings too, and refuse those that no route can have."""
    weights: dict[str, int] = {}
    for colour, value in given.items():
        if colour not in colours:
            raise TrafficError(f"{option} has {colour}, which is none of the colours {', '.join(colours)}.")
        weights[colour] = _whole_number(f"{option}.{colour}", value)
    refuse_weights(option, weights)
    return weights


def _whole_number(option: str, value: Any) -> int:
    """Read a weight."""
    text = str(value).strip()
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()):
        raise TrafficError(f"{option} is {value!r}. Give a whole number from 0 to {MAX_WEIGHT}.")
    return int(text)


def refuse_weights(what: str, weights: Weights) -> None:
    """Refuse weights that would serve nobody, or that no load balancer takes."""
    for colour, weight in weights.items():
        if not 0 <= weight <= MAX_WEIGHT:
            raise TrafficError(f"{what} gives {colour} the weight {weight}. Give a whole number from 0 to {MAX_WEIGHT}.")
    if not any(weights.values()):
        raise TrafficError(f"{what} has no colour with a weight above 0, so nobody would be served. Give one colour a weight.")


def normal(weights: Weights) -> dict[str, int]:
    """Return weights in their smallest form: 100 to 0 says the same as 1 to 0."""
    divisor = math.gcd(*weights.values()) or 1
    return {colour: weight // divisor for colour, weight in sorted(weights.items())}


def same(one: Weights, other: Weights) -> bool:
    """Say whether two sets of weights mean the same: the same colours attached, in the same proportion."""
    return normal(one) == normal(other)


def share(weights: Weights, colour: str) -> float:
    """Return how much of a route's traffic a colour gets (0 to 1)."""
    total = sum(weights.values())
    return weights.get(colour, 0) / total if total else 0.0


def in_words(weights: Weights) -> str:
    """Return weights as a person reads them."""
    return ", ".join(f"{colour} {weight}" for colour, weight in sorted(weights.items())) or "nothing"


def split(old: str, new: str, percent: int) -> dict[str, int]:
    """Return the weights that give the new colour so many percent, and the old one the rest."""
    return {old: 100 - percent, new: percent}


# What is live


def weights_of(live: Live) -> dict[str, dict[str, int]]:
    """Return the weights of every route as plain data, sorted."""
    return {name: dict(sorted(route.weights.items())) for name, route in sorted(live.items())}


def refuse_foreign(live: Live, colours: Sequence[str]) -> None:
    """Refuse routes that forward to a group of no colour: what it gets would be lost from every calculation."""
    for name, route in live.items():
        foreign = sorted(set(route.weights) - set(colours))
        if foreign:
            raise AmbiguousError(
                f"The route {name} also forwards to {', '.join(foreign)}, which belongs to none of the colours {', '.join(colours)}. "
                "Add it to the colours, or take it off the route.",
                routes=weights_of(live),
            )


def live_colour(live: Live, colours: Sequence[str]) -> str:
    """Return the colour that gets all traffic of every route, or say why there is none."""
    refuse_foreign(live, colours)
    if not live:
        raise AmbiguousError("There is no route, so no colour is live. Give one route at least.")
    found: dict[str, str] = {}
    for name, route in live.items():
        serving = [colour for colour, weight in route.weights.items() if weight]
        if len(serving) != 1:
            raise AmbiguousError(
                f"The route {name} has {in_words(route.weights)}, so no single colour is live. "
                "Finish the rollout or roll it back, or give all weight to one colour.",
                routes=weights_of(live),
            )
        found[name] = serving[0]
    if len(set(found.values())) != 1:
        described = ", ".join(f"{colour} on {name}" for name, colour in sorted(found.items()))
        raise AmbiguousError(f"Different colours are live: {described}. Give all routes to one colour.", routes=weights_of(live))
    return next(iter(found.values()))


def carries(live: Live, colour: str) -> list[str]:
    """Return the routes on which a colour has weight."""
    return sorted(name for name, route in live.items() if route.weights.get(colour, 0))


def refuse_to_shrink(live: Live, colour: str) -> None:
    """Refuse to take capacity from a colour that gets traffic."""
    routes = carries(live, colour)
    if routes:
        raise TrafficError(
            f"{colour} has weight on {', '.join(routes)}, so it keeps its targets. Move the traffic first.", routes=weights_of(live)
        )


def refuse_sticky(live: Live, seconds: float, what: str) -> None:
    """Refuse stickiness that outlives the time for which the old colour is kept: its clients would be left with nobody."""
    for name, route in sorted(live.items()):
        if route.sticky_seconds > seconds:
            raise TrafficError(
                f"The route {name} keeps its clients on their colour for {route.sticky_seconds} s, longer than {what} ({seconds:g} s). "
                f"Turn its stickiness off, shorten it, or raise {what}.",
                sticky_seconds=route.sticky_seconds,
            )


# Changes


@dataclass(frozen=True)
class Change:
    """New weights for one route."""

    route: str
    before: Weights
    after: Weights

    @property
    def needed(self) -> bool:
        """Say whether it changes anything."""
        return not same(self.before, self.after)

    @property
    def raised(self) -> list[str]:
        """Return the colours that get a greater share than before."""
        return sorted(colour for colour in self.after if share(self.after, colour) > share(self.before, colour))

    def words(self) -> dict[str, str]:
        """Return what becomes of each colour that it touches."""
        touched = sorted({*self.before, *self.after})
        told = {colour: (self.before.get(colour, "none"), self.after.get(colour, "none")) for colour in touched}
        return {colour: f"{before}->{after}" for colour, (before, after) in told.items() if before != after}


def make_changes(live: Live, wanted: Mapping[str, Weights]) -> list[Change]:
    """Return what has to be done, route by route, for the wanted weights. Refuses weights that serve nobody and routes that are unknown."""
    changes = []
    for name, weights in wanted.items():
        if name not in live:
            raise TrafficError(f"There is no route {name}. Known routes: {', '.join(sorted(live))}.")
        refuse_weights(f"The route {name}", weights)
        change = Change(name, dict(live[name].weights), dict(weights))
        if change.needed:
            changes.append(change)
    return changes


def raised(changes: Iterable[Change]) -> list[str]:
    """Return the colours that get more traffic, which therefore have to be ready for it."""
    return sorted({colour for change in changes for colour in change.raised})


def check_expected(live: Live, expect: Mapping[str, Weights]) -> None:
    """Refuse to go on from weights that are not the expected ones."""
    for name, weights in sorted(expect.items()):
        if name not in live:
            raise DriftError(f"There is no route {name} any more. Known routes: {', '.join(sorted(live))}.", routes=weights_of(live))
        found = live[name].weights
        if not same(found, weights):
            raise drift(name, found, weights)


def drift(route: str, found: Weights, *expected: Weights) -> DriftError:
    """Return the error for weights that somebody else set."""
    wanted = " or ".join(in_words(weights) for weights in expected)
    return DriftError(
        f"The route {route} has {in_words(found)}, but {wanted} was expected: somebody else changed it. Find out who did, then go on.",
        route=route,
        found=dict(found),
        expected=[dict(weights) for weights in expected],
    )


# Health


@dataclass(frozen=True)
class Readiness:
    """Whether a colour may get traffic, and if not, why."""

    colour: str
    ready: bool
    fault: str = ""
    # State to number of targets, over all groups.
    counts: Mapping[str, int] = field(default_factory=dict)
    targets: Sequence[Mapping[str, Any]] = ()

    def as_result(self) -> dict[str, Any]:
        """Return it as a module does."""
        return {
            "colour": self.colour,
            "ready": self.ready,
            "fault": self.fault,
            "counts": dict(self.counts),
            "targets": [dict(target) for target in self.targets],
        }


def judge(colour: str, health: Health, min_healthy: int = 1) -> Readiness:
    """Judge whether every group of a colour has enough targets that the load balancer itself calls healthy.

    That a group answers is no sign of health: with all targets unhealthy a load balancer may send to all of them.
    """
    faults = [fault for group, targets in sorted(health.items()) if (fault := _group_fault(group, targets, min_healthy))]
    if not health:
        faults = ["it has no group"]
    targets = [
        (group, target) for group, found in sorted(health.items()) for target in sorted(found, key=lambda each: (each.id, each.port or 0))
    ]
    counts = {state: sum(target.state == state for _group, target in targets) for state in STATES}
    described = [
        {"group": group, "id": target.id, "port": target.port, "state": target.state, "reason": target.reason} for group, target in targets
    ]
    return Readiness(colour, not faults, "; ".join(faults), {state: count for state, count in counts.items() if count}, described)


def _group_fault(group: str, targets: Sequence[Target], min_healthy: int) -> str:
    """Say why a group cannot take traffic; nothing when it can."""
    if not targets:
        return f"{group} is empty"
    healthy = sum(target.state == HEALTHY for target in targets)
    if healthy >= max(1, min_healthy):
        return ""
    sick = ", ".join(target.label for target in targets if target.state != HEALTHY)
    return f"{group} has {healthy} healthy of {len(targets)} targets, and {max(1, min_healthy)} are needed" + (f": {sick}" if sick else "")


def refuse_unready(readiness: Readiness) -> None:
    """Refuse weight for a colour that cannot take it."""
    if not readiness.ready:
        raise UnreadyError(
            f"{readiness.colour} cannot take traffic: {readiness.fault}. Repair its targets; nothing was changed.",
            health=readiness.as_result(),
        )
