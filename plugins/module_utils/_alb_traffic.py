# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights for several routes of a load balancer at once: all of them, or those from before."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ansible_collections.bitflow.lms.plugins.module_utils._alb import (
    MAX_GROUPS,
    MAX_STICKY_SECONDS,
    AlbProvider,
    Place,
    find_places,
    group_name,
    is_unattached,
)
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import (
    AmbiguousError,
    Change,
    DriftError,
    Health,
    Live,
    Readiness,
    Route,
    TrafficError,
    UnreadyError,
    Weights,
    check_expected,
    judge,
    live_colour,
    read_weights,
    refuse_sticky,
    weights_of,
)

# Pause between two looks at what was just written (seconds).
VERIFY_INTERVAL = 2.0


@dataclass(frozen=True)
class Clock:
    """The time, and how to let it pass."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Looked(Protocol):
    """What can be asked for the health of its groups."""

    def health(self, colour: str) -> Health:
        """Return the targets of a group."""


@dataclass(frozen=True)
class Gate:
    """How healthy a group has to be before it gets more traffic."""

    min_healthy: int = 1
    # How many looks in a row have to find it so: a new target counts as healthy after a single passed check.
    consecutive: int = 3
    interval: float = 5
    timeout: float = 300

    @classmethod
    def of(cls, option: Mapping[str, Any]) -> Gate:
        """Read the option."""
        gate = cls(**option)
        for name, least in (("min_healthy", 1), ("consecutive", 1), ("interval", 0), ("timeout", 0)):
            if getattr(gate, name) < least:
                raise LmsError(f"gate.{name} is {getattr(gate, name)}. Give {least} at least.")
        return gate


@dataclass(frozen=True)
class Settings:
    """What a switch has to keep to."""

    gate: Gate = Gate()
    # What the stickiness shall be (seconds, 0 for none); None leaves it.
    sticky_seconds: int | None = None
    # For how long the caller keeps the targets of a group that loses its weight (seconds).
    retain: float = 0
    verify_timeout: float = 30
    propagation_wait: float = 60

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        """Read the options."""
        for name in ("retain", "verify_timeout", "propagation_wait"):
            if options[name] < 0:
                raise LmsError(f"{name} is {options[name]}. Give 0 at least.")
        return cls(
            Gate.of(options["gate"]),
            read_stickiness(options["stickiness"]),
            options["retain"],
            options["verify_timeout"],
            options["propagation_wait"],
        )


def read_stickiness(option: Mapping[str, Any] | None) -> int | None:
    """Read the option stickiness."""
    if option is None:
        return None
    if not option["enabled"]:
        return 0
    seconds = option.get("seconds")
    if seconds is None or not 1 <= seconds <= MAX_STICKY_SECONDS:
        raise LmsError(f"stickiness.seconds is {seconds}. Give from 1 to {MAX_STICKY_SECONDS} seconds where it is enabled.")
    return int(seconds)


@dataclass(frozen=True)
class Wanted:
    """What the options want, by the name of a route."""

    weights: Mapping[str, Weights]
    expect: Mapping[str, Weights]


def open_provider(api: Api, options: Mapping[str, Any]) -> tuple[AlbProvider, Wanted]:
    """Find the routes and the groups that the options name. Each group is a colour of its own name."""
    if not options["routes"]:
        raise TrafficError("routes is empty. Name one listener or rule at least.")
    places = find_places(api, options["routes"])
    weights: dict[str, Weights] = {}
    expect: dict[str, Weights] = {}
    groups: dict[str, dict[str, str]] = {}
    for place, route in zip(places, options["routes"]):
        given = route.get("weights") or options["weights"]
        if not given:
            raise TrafficError(f"The route {place.name} has no weights. Give weights, to all routes or to this one.")
        weights[place.name] = by_group("weights", given)
        if len(given) > MAX_GROUPS:
            raise TrafficError(f"The route {place.name} would have {len(given)} target groups, and AWS takes {MAX_GROUPS}.")
        expected = route.get("expect") or options["expect"]
        if expected:
            expect[place.name] = by_group("expect", expected)
        groups[place.name] = {group_name(group): str(group) for group in given}
    provider = AlbProvider(api, places, groups)
    # Before anything is changed, and in check mode too.
    provider.find_groups()
    return provider, Wanted(weights, expect)


def by_group(option: str, given: Mapping[str, Any]) -> dict[str, int]:
    """Read weights whose groups are named or given by their ARN."""
    named: dict[str, Any] = {}
    for group, weight in given.items():
        if group_name(group) in named:
            raise TrafficError(f"{option} has the target group {group_name(group)} twice. Name it once.")
        named[group_name(group)] = weight
    return read_weights(option, named, list(named))


# Deciding


@dataclass(frozen=True)
class Step:
    """What becomes of one route."""

    change: Change
    sticky_before: int
    sticky_after: int

    @property
    def needed(self) -> bool:
        """Say whether it changes anything."""
        return self.change.needed or self.sticky_before != self.sticky_after

    @property
    def after(self) -> Route:
        """Return the route as it will be. Weights that mean the same stay as they are."""
        return Route(self.change.route, self.change.after if self.needed else self.change.before, self.sticky_after)


@dataclass(frozen=True)
class Plan:
    """What will be done, in this order."""

    before: Live
    steps: Sequence[Step]
    # The groups that have to be healthy first.
    raised: Sequence[str]

    @property
    def needed(self) -> list[Step]:
        """Return the steps that change something."""
        return [step for step in self.steps if step.needed]

    @property
    def after(self) -> dict[str, Route]:
        """Return every route as it will be."""
        return {step.change.route: step.after for step in self.steps}


def make_plan(live: Live, wanted: Wanted, settings: Settings) -> Plan:
    """Decide what to do, or refuse it."""
    steps = []
    for name, weights in wanted.weights.items():
        route = live[name]
        _refuse_to_forget(route, weights)
        sticky = route.sticky_seconds if settings.sticky_seconds is None else settings.sticky_seconds
        step = Step(Change(name, dict(route.weights), dict(weights)), route.sticky_seconds, sticky)
        if step.needed:
            # What a task that was killed has done already is no drift.
            check_expected(live, {route: expected for route, expected in wanted.expect.items() if route == name})
        if any(weight and not weights.get(group, 0) for group, weight in route.weights.items()):
            refuse_sticky({name: step.after}, settings.retain, "retain")
        steps.append(step)
    # What only attaches a group can harm nobody, and whatever fails is better known before traffic moves.
    steps.sort(key=lambda step: bool(step.change.raised))
    raised = sorted({group for step in steps if step.change.needed for group in step.change.raised})
    return Plan(live, steps, raised)


def _refuse_to_forget(route: Route, weights: Weights) -> None:
    """Refuse to take a group off a route while it has traffic, which nobody spoke of."""
    forgotten = sorted(group for group, weight in route.weights.items() if weight and group not in weights)
    if forgotten:
        raise TrafficError(
            f"The route {route.name} also forwards to {', '.join(forgotten)}, which weights does not name. "
            "Name it, with 0 to move its traffic away.",
            routes=weights_of({route.name: route}),
        )


# Acting


@dataclass
class Outcome:
    """What was found and done."""

    changed: bool
    before: Live
    after: Live
    places: Sequence[Place]
    health: Sequence[Readiness] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_result(self) -> dict[str, Any]:
        """Return it as the module does."""
        return {
            "changed": self.changed,
            "before": weights_of(self.before),
            "after": weights_of(self.after),
            "live": only_live(self.after),
            "routes": [self._route(place) for place in sorted(self.places, key=lambda place: place.name)],
            "health": [health_of(readiness) for readiness in self.health],
            "diff": {"before": _pictured(self.before), "after": _pictured(self.after)},
        }

    def _route(self, place: Place) -> dict[str, Any]:
        """Return a route with what became of it."""
        before, after = self.before[place.name], self.after[place.name]
        return {
            **place.as_result(),
            "changes": Change(place.name, before.weights, after.weights).words(),
            "sticky_seconds": after.sticky_seconds,
        }


def only_live(live: Live) -> str | None:
    """Return the group that gets all traffic of all routes, if there is one."""
    try:
        return live_colour(live, sorted({group for route in live.values() for group in route.weights}))
    except AmbiguousError:
        return None


def health_of(readiness: Readiness) -> dict[str, Any]:
    """Return the health of a group as a module does."""
    result = readiness.as_result()
    return {"name": result.pop("colour"), **result}


def _pictured(live: Live) -> dict[str, Any]:
    """Return routes for a diff."""
    weights = weights_of(live)
    return {name: {"weights": weights[name], "sticky_seconds": route.sticky_seconds} for name, route in sorted(live.items())}


def run(provider: AlbProvider, wanted: Wanted, settings: Settings, check_mode: bool, clock: Clock) -> Outcome:
    """Give all routes their weights. When one of them fails, those before it get theirs back."""
    plan = make_plan(provider.read(), wanted, settings)
    outcome = Outcome(bool(plan.needed), plan.before, plan.after, provider.places)
    if check_mode:
        outcome.health = look(provider, plan.raised, settings.gate)
        outcome.warnings = [fault_of(readiness) for readiness in outcome.health if not readiness.ready]
        return outcome
    outcome.health = wait_until_ready(provider, plan.raised, settings.gate, clock)
    if plan.needed:
        shift(provider, plan, settings, clock)
        outcome.after = provider.read()
    if plan.raised:
        # AWS has taken the weights; its nodes go by them a little later, and the old group serves until then.
        clock.sleep(settings.propagation_wait)
    return outcome


def look(provider: Looked, groups: Sequence[str], gate: Gate) -> list[Readiness]:
    """Judge the groups as they are now."""
    return [judge(group, provider.health(group), gate.min_healthy) for group in groups]


def wait_until_ready(provider: Looked, groups: Sequence[str], gate: Gate, clock: Clock) -> list[Readiness]:
    """Wait until the groups were healthy some times in a row, or say which one is not."""
    if not groups:
        return []
    deadline = clock.now() + gate.timeout
    good = 0
    while True:
        found = []
        for group in groups:
            health = provider.health(group)
            _refuse_unattached(group, health)
            found.append(judge(group, health, gate.min_healthy))
        good = good + 1 if all(readiness.ready for readiness in found) else 0
        if good >= gate.consecutive:
            return found
        # Looks that were good may be completed although the time is over.
        if not good and clock.now() + gate.interval > deadline:
            raise _unready(found, gate.timeout)
        clock.sleep(gate.interval)


def _unready(found: Sequence[Readiness], timeout: float) -> LmsError:
    """Return the error for groups that did not become healthy."""
    faults = " ".join(f"{readiness.colour} cannot take traffic: {readiness.fault}." for readiness in found if not readiness.ready)
    return UnreadyError(
        f"{faults} That was so for {timeout:g} s. Repair the targets; nothing was changed.",
        health=[health_of(readiness) for readiness in found],
    )


def _refuse_unattached(group: str, health: Health) -> None:
    """Refuse weight for a group that the load balancer does not look at: waiting would not help."""
    for targets in health.values():
        if is_unattached(targets):
            raise UnreadyError(
                f"{group} is on no route, or its targets are in no zone of the load balancer, so that they are not checked. "
                "Give it the weight 0 first, then more.",
                health=[health_of(judge(group, health))],
            )


def fault_of(readiness: Readiness) -> str:
    """Say for a warning what would fail by now."""
    return f"{readiness.colour} could not take traffic now: {readiness.fault}."


def shift(provider: AlbProvider, plan: Plan, settings: Settings, clock: Clock) -> None:
    """Carry the steps out, each in one call, or put everything back."""
    tried: list[Step] = []
    try:
        for step in plan.needed:
            tried.append(step)
            change = step.change
            provider.set(change.route, change.after, expect=change.before, sticky_seconds=step.sticky_after)
            _wait_until_verified(provider, change, settings.verify_timeout, clock)
    except LmsError as error:
        # A route with the weights of somebody else is theirs.
        ours = tried[:-1] if isinstance(error, DriftError) else tried
        raise _put_back(provider, ours, error) from error
    except BaseException as error:
        _put_back(provider, tried, LmsError(str(error)))
        raise


def _wait_until_verified(provider: AlbProvider, change: Change, timeout: float, clock: Clock) -> None:
    """Read the weights back until they are what was written."""
    deadline = clock.now() + timeout
    while not provider.verify(change.route, change.after):
        if clock.now() >= deadline:
            raise TrafficError(f"The route {change.route} does not show its new weights after {timeout:g} s. Look who else changes it.")
        clock.sleep(VERIFY_INTERVAL)


def _put_back(provider: AlbProvider, steps: Sequence[Step], cause: LmsError) -> LmsError:
    """Give routes the weights from before, the last one first, and return the error that says so."""
    restored, left = [], {}
    for step in reversed(steps):
        change = step.change
        try:
            provider.set(change.route, change.before, expect=change.after, sticky_seconds=step.sticky_before)
            restored.append(change.route)
        except LmsError as error:
            left[change.route] = error.message
    message = cause.message
    if restored:
        message += f" The weights from before are on {', '.join(sorted(restored))}."
    if left:
        message += f" Repair by hand: {', '.join(sorted(left))}."
    return TrafficError(message, **{**cause.details, "put_back": sorted(restored), "left": left})
