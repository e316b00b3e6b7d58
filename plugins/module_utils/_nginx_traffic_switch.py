# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights for several sites of the own load balancer at once: all of them, or those from before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic import NginxProvider, group_name, percent_of
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_network import Network
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import (
    Change,
    Health,
    Live,
    Readiness,
    Route,
    TrafficError,
    UnreadyError,
    check_expected,
    read_weights,
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

# Pause between two questions to nginx (seconds).
VERIFY_INTERVAL = 0.5


@dataclass(frozen=True)
class Settings:
    """What a switch has to keep to."""

    gate: Gate = field(default_factory=Gate)
    verify_timeout: float = 10
    propagation_wait: float = 1

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        """Read the options."""
        for name in ("verify_timeout", "propagation_wait"):
            if options[name] < 0:
                raise LmsError(f"{name} is {options[name]}. Give 0 at least.")
        return cls(Gate.of(options["gate"]), options["verify_timeout"], options["propagation_wait"])


def open_provider(options: Mapping[str, Any], network: Network | None = None) -> tuple[NginxProvider, Wanted]:
    """Find the sites that the options name, and read what they shall have."""
    given = {route["name"]: route for route in options["routes"]}
    provider = NginxProvider.of_routes(options["traffic_directory"], [route["name"] for route in options["routes"]], network)
    weights, expect = {}, {}
    for name, site in provider.sites.items():
        route = given.get(name, {})
        wanted = route.get("weights") or options["weights"]
        if not wanted:
            raise TrafficError(f"The route {name} has no weights. Give weights, to all routes or to this one.")
        weights[name] = percent_of(site, read_weights("weights", wanted, list(site.colours)))
        expected = route.get("expect") or options["expect"]
        if expected:
            expect[name] = read_weights("expect", expected, list(site.colours))
    return provider, Wanted(weights, expect)


# Deciding


@dataclass(frozen=True)
class Step:
    """What becomes of one site."""

    change: Change
    # Why nginx does not act by weights that stay as they are; writing them again mends what is damaged.
    fault: str = ""

    @property
    def needed(self) -> bool:
        """Say whether it changes anything."""
        return self.change.needed or bool(self.fault)

    @property
    def raised(self) -> list[str]:
        """Return the groups that get more traffic."""
        return [group_name(self.change.route, colour) for colour in self.change.raised] if self.change.needed else []


@dataclass(frozen=True)
class Plan:
    """What will be done, in this order."""

    before: Live
    steps: Sequence[Step]

    @property
    def needed(self) -> list[Step]:
        """Return the steps that change something."""
        return [step for step in self.steps if step.needed]

    @property
    def raised(self) -> list[str]:
        """Return the groups that have to be healthy first."""
        return sorted(group for step in self.steps for group in step.raised)

    @property
    def after(self) -> dict[str, Route]:
        """Return every site as it will be."""
        return {step.change.route: Route(step.change.route, step.change.after) for step in self.steps}


def make_plan(provider: NginxProvider, wanted: Wanted) -> Plan:
    """Decide what to do, or refuse it."""
    live = provider.read()
    steps = []
    for name, weights in wanted.weights.items():
        change = Change(name, dict(live[name].weights), dict(weights))
        refuse_to_forget(change)
        if change.needed:
            # What a task that was killed has done already is no drift.
            check_expected(live, {route: expected for route, expected in wanted.expect.items() if route == name})
        steps.append(Step(change, "" if change.needed else provider.fault(name, weights)))
    # What only attaches a colour can harm nobody, and whatever fails is better known before traffic moves.
    steps.sort(key=lambda step: bool(step.raised))
    return Plan(live, steps)


def _refuse_unattached(change: Change) -> None:
    """Refuse weight for a colour that nobody looks at: waiting would not help."""
    for colour in change.raised:
        if colour not in change.before:
            raise UnreadyError(
                f"{group_name(change.route, colour)} is not attached, so that it is not checked. Give it the weight 0 first, then more.",
                routes={change.route: dict(change.before)},
            )


# Acting


@dataclass
class Outcome:
    """What was found and done."""

    changed: bool
    before: Live
    after: Live
    health: Sequence[Readiness] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_result(self) -> dict[str, Any]:
        """Return it as the module does."""
        before, after = weights_of(self.before), weights_of(self.after)
        return {
            "changed": self.changed,
            "before": before,
            "after": after,
            "live": only_live(self.after),
            "routes": [{"name": name, "changes": Change(name, before[name], after[name]).words()} for name in before],
            "health": [health_of(readiness) for readiness in self.health],
            "diff": {"before": before, "after": after},
        }


@dataclass(frozen=True)
class _Groups:
    """The servers of a colour on one site, by the name of the group."""

    provider: NginxProvider

    def health(self, colour: str) -> Health:
        """Return the servers of a group."""
        names = {group_name(site.name, each): (site.name, each) for site in self.provider.sites.values() for each in site.colours}
        site, own = names[colour]
        return self.provider.health(own, site)


def run(provider: NginxProvider, wanted: Wanted, settings: Settings, check_mode: bool, clock: Clock) -> Outcome:
    """Give all sites their weights. When one of them fails, those before it get theirs back."""
    plan = make_plan(provider, wanted)
    outcome = Outcome(bool(plan.needed), plan.before, plan.after)
    groups = _Groups(provider)
    if check_mode:
        outcome.health = look(groups, plan.raised, settings.gate)
        outcome.warnings = [fault_of(readiness) for readiness in outcome.health if not readiness.ready]
        return outcome
    for step in plan.needed:
        _refuse_unattached(step.change)
    outcome.health = wait_until_ready(groups, plan.raised, settings.gate, clock)
    if plan.needed:
        _shift(provider, plan, settings, clock)
        outcome.after = provider.read()
    if plan.raised:
        # Requests that were decided before the switch are on their way to the old colour.
        clock.sleep(settings.propagation_wait)
    return outcome


def _shift(provider: NginxProvider, plan: Plan, settings: Settings, clock: Clock) -> None:
    """Carry the steps out, or put everything back."""

    def do(step: Step) -> None:
        change = step.change
        provider.set(change.route, change.after, change.before)
        wait_until_verified(lambda: provider.fault(change.route, change.after), settings.verify_timeout, VERIFY_INTERVAL, clock)

    def undo(step: Step) -> None:
        provider.set(step.change.route, step.change.before, step.change.after)

    all_or_none(plan.needed, do, undo)
