# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights for several routes of a load balancer at once: all of them, or those from before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    Change,
    Health,
    Live,
    Readiness,
    Route,
    TrafficError,
    UnreadyError,
    Weights,
    check_expected,
    judge,
    read_weights,
    refuse_sticky,
    weights_of,
)
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_switch import (
    Gate,
    Wanted,
    all_or_none,
    fault_of,
    health_of,
    look,
    only_live,
    refuse_to_forget,
    wait_until_ready,
    wait_until_verified,
)
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock

# Pause between two looks at what was just written (seconds).
VERIFY_INTERVAL = 2.0


@dataclass(frozen=True)
class Settings:
    """What a switch has to keep to."""

    gate: Gate = field(default_factory=Gate)
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
        sticky = route.sticky_seconds if settings.sticky_seconds is None else settings.sticky_seconds
        step = Step(Change(name, dict(route.weights), dict(weights)), route.sticky_seconds, sticky)
        refuse_to_forget(step.change)
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
    outcome.health = wait_until_ready(provider, plan.raised, settings.gate, clock, _refuse_unattached)
    if plan.needed:
        shift(provider, plan, settings, clock)
        outcome.after = provider.read()
    if plan.raised:
        # AWS has taken the weights; its nodes go by them a little later, and the old group serves until then.
        clock.sleep(settings.propagation_wait)
    return outcome


def _refuse_unattached(group: str, health: Health) -> None:
    """Refuse weight for a group that the load balancer does not look at: waiting would not help."""
    for targets in health.values():
        if is_unattached(targets):
            raise UnreadyError(
                f"{group} is on no route, or its targets are in no zone of the load balancer, so that they are not checked. "
                "Give it the weight 0 first, then more.",
                health=[health_of(judge(group, health))],
            )


def shift(provider: AlbProvider, plan: Plan, settings: Settings, clock: Clock) -> None:
    """Carry the steps out, each in one call, or put everything back."""

    def do(step: Step) -> None:
        change = step.change
        provider.set(change.route, change.after, expect=change.before, sticky_seconds=step.sticky_after)
        late = f"The route {change.route} does not show its new weights after {settings.verify_timeout:g} s. Look who else changes it."
        wait_until_verified(
            lambda: "" if provider.verify(change.route, change.after) else late, settings.verify_timeout, VERIFY_INTERVAL, clock
        )

    def undo(step: Step) -> None:
        provider.set(step.change.route, step.change.before, expect=step.change.after, sticky_seconds=step.sticky_before)

    all_or_none(plan.needed, do, undo)
