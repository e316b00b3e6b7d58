# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every switch of weights needs, whatever carries the traffic: a gate of health, and all routes or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import (
    AmbiguousError,
    Change,
    DriftError,
    Health,
    Live,
    Readiness,
    TrafficError,
    UnreadyError,
    Weights,
    judge,
    live_colour,
)
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock


@dataclass(frozen=True)
class Wanted:
    """What the options want, by the name of a route."""

    weights: Mapping[str, Weights]
    expect: Mapping[str, Weights]


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


class Switch(Protocol):
    """One step of a switch."""

    @property
    def change(self) -> Change:
        """Return what becomes of the weights of its route."""


Step = TypeVar("Step", bound=Switch)


# Deciding


def refuse_to_forget(change: Change) -> None:
    """Refuse to take a group off a route while it has traffic, which nobody spoke of."""
    forgotten = sorted(group for group, weight in change.before.items() if weight and group not in change.after)
    if forgotten:
        raise TrafficError(
            f"The route {change.route} also forwards to {', '.join(forgotten)}, which weights does not name. "
            "Name it, with 0 to move its traffic away.",
            routes={change.route: dict(sorted(change.before.items()))},
        )


# Asking


def look(provider: Looked, groups: Sequence[str], gate: Gate) -> list[Readiness]:
    """Judge the groups as they are now."""
    return [judge(group, provider.health(group), gate.min_healthy) for group in groups]


def wait_until_ready(
    provider: Looked,
    groups: Sequence[str],
    gate: Gate,
    clock: Clock,
    refuse: Callable[[str, Health], None] = lambda _group, _health: None,
) -> list[Readiness]:
    """Wait until the groups were healthy some times in a row, or say which one is not. What waiting cannot mend is for refuse."""
    if not groups:
        return []
    deadline = clock.now() + gate.timeout
    good = 0
    while True:
        found = []
        for group in groups:
            health = provider.health(group)
            refuse(group, health)
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


# Acting


def all_or_none(steps: Sequence[Step], do: Callable[[Step], None], undo: Callable[[Step], None]) -> None:
    """Carry the steps out in their order. When one of them fails, those before it are undone, and the error says so."""
    tried: list[Step] = []
    try:
        for step in steps:
            tried.append(step)
            do(step)
    except LmsError as error:
        # A route with the weights of somebody else is theirs.
        ours = tried[:-1] if isinstance(error, DriftError) else tried
        raise _put_back(ours, undo, error) from error
    except BaseException as error:
        _put_back(tried, undo, LmsError(str(error)))
        raise


def _put_back(steps: Sequence[Step], undo: Callable[[Step], None], cause: LmsError) -> LmsError:
    """Give routes the weights from before, the last one first, and return the error that says so."""
    restored, left = [], {}
    for step in reversed(steps):
        try:
            undo(step)
            restored.append(step.change.route)
        except LmsError as error:
            left[step.change.route] = error.message
    message = cause.message
    if restored:
        message += f" The weights from before are on {', '.join(sorted(restored))}."
    if left:
        message += f" Repair by hand: {', '.join(sorted(left))}."
    return TrafficError(message, **{**cause.details, "put_back": sorted(restored), "left": left})


def wait_until_verified(fault: Callable[[], str], timeout: float, interval: float, clock: Clock) -> None:
    """Ask until there is no fault any more, or raise the one that is left."""
    deadline = clock.now() + timeout
    while found := fault():
        if clock.now() >= deadline:
            raise TrafficError(found)
        clock.sleep(interval)


# Telling


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


def fault_of(readiness: Readiness) -> str:
    """Say for a warning what would fail by now."""
    return f"{readiness.colour} could not take traffic now: {readiness.fault}."
