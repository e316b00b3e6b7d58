# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollout does next: the phases of a switch from one colour to another, as calculations over the record and the live weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._traffic import (
    AmbiguousError,
    Change,
    Live,
    Readiness,
    TrafficError,
    Weights,
    carries,
    drift,
    in_words,
    live_colour,
    make_changes,
    refuse_foreign,
    refuse_sticky,
    same,
    share,
    split,
    weights_of,
)
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_record import (
    ATTACHED,
    BAKING,
    ENDS,
    FAILED,
    GATED,
    IDLE,
    PREPARED,
    RETAINED,
    RETIRED,
    ROLLED_BACK,
    ROLLING_BACK,
    SHIFTED,
    SHIFTING,
    SMOKED,
    Record,
    Rollout,
    Step,
    stamp,
)

ADVANCE = "advance"
ROLLBACK = "rollback"
ABORT = "abort"
RETIRE = "retire"
STATUS = "status"
ACTIONS = (ADVANCE, ROLLBACK, ABORT, RETIRE, STATUS)

GOOD = "good"
BAD = "bad"
UNKNOWN = "unknown"

# Phases in which the new colour has had no weight yet.
BEFORE_SHIFT = frozenset({PREPARED, ATTACHED, GATED, SMOKED})
Clock = Callable[[], datetime]


@dataclass(frozen=True)
class Verdict:
    """What a check found."""

    # good, bad, or unknown where there is not enough data.
    state: str
    text: str = ""


# Asks something about a colour: a smoke test through the load balancer, alarms, a query of metrics.
Check = Callable[[str], Verdict]


@dataclass(frozen=True)
class Settings:
    """How a rollout is to go. All times in seconds."""

    steps: Sequence[Step] = (Step(100, 0),)
    min_healthy: int = 1
    # How many times in a row a colour has to be ready: a new target needs one passed check only, and may fail the next one.
    consecutive: int = 3
    # Between two looks at the same thing.
    interval: float = 5
    gate_timeout: float = 600
    # How long the load balancer may take to act by its weights.
    verify_timeout: float = 60
    # How long it may take until every node of the load balancer knows the weights; nothing tells when it is over.
    propagation: float = 60
    # How long the old colour stays warm.
    retain: float = 86400
    lease: float = 120
    # What a check without enough data means: pass, wait or fail.
    insufficient: str = "wait"
    # What to do with weights that somebody else set: fail, adopt or restore.
    on_drift: str = "fail"

    def __post_init__(self) -> None:
        """Refuse what cannot end well."""
        weights = [step.weight for step in self.steps]
        if not weights or weights != sorted(set(weights)) or weights[0] < 1 or weights[-1] != 100:
            raise TrafficError(f"steps has the weights {weights}. Give rising percentages from 1 that end with 100.")
        if any(step.bake < 0 for step in self.steps):
            raise TrafficError("steps has a bake below 0. Give seconds.")
        for name in ("min_healthy", "consecutive", "interval", "lease"):
            if getattr(self, name) <= 0:
                raise TrafficError(f"{name} is {getattr(self, name)}. Give a number above 0.")
        for name in ("gate_timeout", "verify_timeout", "propagation", "retain"):
            if getattr(self, name) < 0:
                raise TrafficError(f"{name} is {getattr(self, name)}. Give a number from 0.")


@dataclass(frozen=True)
class Request:
    """What somebody asks for."""

    action: str
    # What is rolled out. Without it a rollout is gone on with, and none is begun.
    release: str = ""
    # The colour that is to get the traffic: that of the release, or the one to roll back to where no rollout is known.
    colour: str = ""


@dataclass(frozen=True)
class Checks:
    """What is asked besides the load balancer's own health checks."""

    # Before the first weight.
    smoke: Sequence[Check] = ()
    # Before the first weight, and as long as the rollout is watched.
    watch: Sequence[Check] = ()


@dataclass(frozen=True)
class Outcome:
    """What a tick came to."""

    changed: bool
    record: Record
    before: Live
    live: Live
    phase_before: str
    colours: Sequence[str]
    action: str
    now: datetime
    events: Sequence[Mapping[str, Any]] = ()
    health: Mapping[str, Readiness] = field(default_factory=dict)
    # Why nothing more was done, and when there will be something to do.
    waiting: str = ""
    next_at: datetime | None = None

    @property
    def rollout(self) -> Rollout | None:
        """Return the rollout."""
        return self.record.rollout

    @property
    def phase(self) -> str:
        """Return the phase."""
        return self.rollout.phase if self.rollout else IDLE

    @property
    def done(self) -> bool:
        """Say whether what was asked for is done, or will not be."""
        if self.action == ADVANCE:
            return self.phase in (IDLE, RETAINED, FAILED, *ENDS)
        if self.action == RETIRE:
            return self.phase in (IDLE, FAILED, *ENDS)
        if self.action == ROLLBACK:
            return self.phase in (ROLLED_BACK, FAILED)
        return True

    @property
    def fault(self) -> str:
        """Say why what was asked for did not come about; nothing when it did, or may yet."""
        rollout = self.rollout
        if rollout is None or self.action == STATUS:
            return ""
        if rollout.phase == FAILED:
            return f"{rollout.release} can neither go on nor back: {rollout.reason} Repair {rollout.old}, then ask for rollback."
        if rollout.phase == ROLLED_BACK and self.action in (ADVANCE, RETIRE):
            return f"{rollout.release} was rolled back to {rollout.old}: {rollout.reason} Mend that, then give release another name."
        return ""

    @property
    def live_colour(self) -> str:
        """Return the colour that gets all traffic; nothing while it is split."""
        with contextlib.suppress(AmbiguousError):
            return live_colour(self.live, self.colours)
        return ""

    def capacity(self) -> dict[str, str]:
        """Say which colours have to keep their targets, and which may lose them."""
        busy = {colour for colour in self.colours if carries(self.live, colour)}
        if self.rollout is None:
            # Nothing is known, so nothing is given up.
            busy = set(self.colours)
        elif not self.rollout.over:
            busy |= {self.rollout.old, self.rollout.new}
        return {colour: "keep" if colour in busy else "free" for colour in self.colours}

    def message(self) -> str:
        """Return the state in words."""
        traffic = "; ".join(f"{name}: {in_words(route.weights)}" for name, route in sorted(self.live.items()))
        rollout = self.rollout
        if rollout is None:
            return f"No rollout was begun. Traffic: {traffic}."
        told = {
            PREPARED: f"{rollout.new} is to be attached",
            ATTACHED: f"{rollout.new} is attached without weight, and was ready {rollout.passes} times in a row",
            GATED: f"{rollout.new} is ready for its smoke test",
            SMOKED: f"{rollout.new} has passed its smoke test",
            SHIFTING: f"step {rollout.step + 1} of {len(rollout.steps)} of the shift",
            SHIFTED: f"all traffic is given to {rollout.new}; every node of the load balancer has to learn it",
            BAKING: f"all traffic is on {rollout.new}, and is watched",
            RETAINED: f"all traffic is on {rollout.new}; {rollout.old} is kept for the way back",
            RETIRED: f"all traffic is on {rollout.new}; {rollout.old} may be scaled down",
            ROLLING_BACK: f"on the way back to {rollout.old}: {rollout.reason}",
            ROLLED_BACK: f"all traffic is back on {rollout.old}: {rollout.reason}",
            FAILED: f"it can neither go on nor back: {rollout.reason}",
        }[rollout.phase].rstrip(".")
        text = f"{rollout.release}, from {rollout.old} to {rollout.new}: {told}."
        if self.waiting:
            text += f" Waiting: {self.waiting.rstrip('.')}."
        return f"{text} Traffic: {traffic}."

    def as_result(self) -> dict[str, Any]:
        """Return it as the module does."""
        rollout = self.rollout
        return {
            "phase": self.phase,
            "done": self.done,
            "next_at": stamp(self.next_at) if self.next_at else None,
            "live_colour": self.live_colour,
            "weights": weights_of(self.live),
            "release": rollout.release if rollout else "",
            "old": rollout.old if rollout else "",
            "new": rollout.new if rollout else "",
            "step": rollout.step + 1 if rollout else 0,
            "steps": [{"weight": step.weight, "bake": step.bake} for step in rollout.steps] if rollout else [],
            "reason": rollout.reason if rollout else "",
            "waiting": self.waiting,
            "capacity": self.capacity(),
            "health": [readiness.as_result() for _colour, readiness in sorted(self.health.items())],
            "events": [dict(event) for event in self.events],
            "history": [dict(event) for event in self.record.history],
            "message": self.message(),
        }

    def diff(self) -> dict[str, Any]:
        """Return what became of the traffic."""
        return {
            "before": {"phase": self.phase_before, "weights": weights_of(self.before)},
            "after": {"phase": self.phase, "weights": weights_of(self.live)},
        }


# What to do next


@dataclass(frozen=True)
class Act:
    """The next thing to do."""

    kind: str
    # For wait: why, in words, and until when.
    text: str = ""
    until: datetime | None = None
    # For set: what is left to do.
    changes: Sequence[Change] = ()
    # For intend: the weights, and the phase and the step that they belong to.
    target: Mapping[str, Weights] = field(default_factory=dict)
    phase: str = ""
    step: int = -1


SET = "set"
SETTLE = "settle"
INTEND = "intend"
GATE = "gate"
SMOKE = "smoke"
WATCH = "watch"
DRAIN = "drain"
MOVE = "move"
WAIT = "wait"
END = "end"


def wait(until: datetime, text: str) -> Act:
    """Return the act of waiting."""
    return Act(WAIT, f"{text} until {stamp(until)}", until)


def next_act(rollout: Rollout, live: Live, settings: Settings, now: datetime, hurry: bool = False) -> Act:
    """Say what is to be done next. Refuses to go on from weights that nobody meant."""
    if rollout.phase in ENDS or rollout.phase == FAILED:
        return Act(END)
    check_drift(rollout, live)
    if now < rollout.next_at:
        return wait(rollout.next_at, waiting_for(rollout))
    if not rollout.settled:
        # In the order in which the routes were given, not in that of the record.
        changes = make_changes(live, {name: rollout.intent[name] for name in live})
        return Act(SET, changes=changes) if changes else Act(SETTLE)
    return _next_of_settled(rollout, live, settings, now, hurry)


def _next_of_settled(rollout: Rollout, live: Live, settings: Settings, now: datetime, hurry: bool) -> Act:
    """Say what follows when the weights are in force that were meant."""
    old, new, phase = rollout.old, rollout.new, rollout.phase
    elapsed = (now - rollout.since).total_seconds()
    if phase == PREPARED:
        return Act(INTEND, target=everywhere(live, split(old, new, 0)), phase=ATTACHED)
    if phase == ATTACHED:
        return Act(GATE)
    if phase == GATED:
        return Act(SMOKE)
    if phase == SMOKED:
        return Act(WATCH, phase=SHIFTING)
    if phase == SHIFTING:
        over = elapsed >= (rollout.steps[rollout.step].bake if rollout.step >= 0 else 0)
        return Act(WATCH, phase=SHIFTING if over else "")
    if phase == SHIFTED:
        return Act(WATCH, phase=BAKING if elapsed >= settings.propagation else "")
    if phase == BAKING:
        return Act(WATCH, phase=RETAINED if elapsed >= rollout.steps[-1].bake else "")
    if phase == RETAINED:
        until = kept_until(rollout, live, settings, hurry)
        return wait(until, f"{old} is kept") if now < until else Act(DRAIN)
    if not carries(live, new):
        until = rollout.since + timedelta(seconds=spread_time(rollout, live, settings))
        return wait(until, f"{new} may still get requests") if now < until else Act(MOVE, phase=ROLLED_BACK)
    if any(old not in route.weights for route in live.values()):
        # Its targets are only checked once a route names them.
        return Act(INTEND, target={name: {**route.weights, old: route.weights.get(old, 0)} for name, route in live.items()}, phase=phase)
    return Act(INTEND, target=everywhere(live, {old: 100, new: 0}), phase=phase)


def everywhere(live: Live, weights: Weights) -> dict[str, Weights]:
    """Return the same weights for every route."""
    return {name: dict(weights) for name in live}


def waiting_for(rollout: Rollout) -> str:
    """Say what is looked at again later."""
    if not rollout.settled:
        return (
            f"{rollout.old} is not ready yet" if rollout.unverified_since is None else "the load balancer does not act by the weights yet"
        )
    if rollout.unverified_since is not None:
        return "a check has no data yet"
    told = {ATTACHED: f"{rollout.new} is looked at again", RETAINED: f"{rollout.old} still serves requests"}
    return told.get(rollout.phase, f"{rollout.new} is watched")


def kept_until(rollout: Rollout, live: Live, settings: Settings, hurry: bool = False) -> datetime:
    """Return until when the old colour is kept: for its time, and in any case for its clients that stick to it."""
    shifted = rollout.shifted_at or rollout.since
    sticky = shifted + timedelta(seconds=longest_stickiness(live))
    return sticky if hurry else max(sticky, rollout.since + timedelta(seconds=settings.retain))


def spread_time(rollout: Rollout, live: Live, settings: Settings) -> float:
    """Return for how long after a way back the new colour may still get requests."""
    # One that never had weight gets none.
    return max(settings.propagation, longest_stickiness(live)) if rollout.step >= 0 else 0


def longest_stickiness(live: Live) -> int:
    """Return for how long a client may stay with a colour."""
    return max((route.sticky_seconds for route in live.values()), default=0)


def check_drift(rollout: Rollout, live: Live) -> None:
    """Refuse weights that are neither those that were meant nor, where they may not be set yet, those before them."""
    check_routes(rollout, live)
    for name, route in sorted(live.items()):
        if not means(rollout, name, route.weights):
            error = drift(name, route.weights, *meant(rollout, name))
            error.message += " Set on_drift to adopt to take these weights for meant, or to restore to set the meant ones again."
            raise error


def meant(rollout: Rollout, route: str) -> list[Weights]:
    """Return the weights that a route may have."""
    found = [weights.get(route) for weights in ([rollout.intent] if rollout.settled else [rollout.intent, rollout.previous])]
    return [weights for weights in found if weights is not None]


def means(rollout: Rollout, route: str, weights: Weights) -> bool:
    """Say whether a route may have weights, as far as the record knows."""
    return any(same(weights, known) for known in meant(rollout, route))


def check_routes(rollout: Rollout, live: Live) -> None:
    """Refuse routes that are not those that the rollout began with."""
    if set(live) != set(rollout.intent):
        raise TrafficError(
            f"{rollout.release} was begun with the routes {', '.join(sorted(rollout.intent))}, not {', '.join(sorted(live))}. "
            "Name the routes that it was begun with until it is over."
        )


# Beginnings and turns: each returns the rollout that is to be written.


def begin(request: Request, record: Record | None, live: Live, colours: Sequence[str], settings: Settings, now: datetime) -> Rollout:
    """Begin a rollout of a release to the colour that is not live."""
    old = live_colour(live, colours)
    others = [colour for colour in colours if colour != old]
    if record is None and not request.colour:
        raise TrafficError(
            f"There is no record of a rollout, so nobody knows whether {', '.join(others)} holds {request.release}. "
            "If this is the first rollout, or the record was lost, name the colour that the release was deployed to in colour."
        )
    if not request.colour and len(others) != 1:
        raise TrafficError(f"There are {len(others)} colours besides {old}. Name the one that the release was deployed to in colour.")
    new = request.colour or others[0]
    if new not in colours:
        raise TrafficError(f"colour is {new}, which is none of the colours {', '.join(colours)}.")
    if new == old:
        raise TrafficError(f"colour is {new}, which has all traffic already. Deploy {request.release} to {' or '.join(others)}.")
    refuse_third(live, old, new)
    refuse_sticky(live, settings.retain, "retain")
    found = weights_of(live)
    return Rollout(request.release, old, new, PREPARED, tuple(settings.steps), now, now, now, intent=found, previous=found)


def refuse_third(live: Live, old: str, new: str) -> None:
    """Refuse routes that name a colour that takes no part: a switch would take it off."""
    for name, route in live.items():
        third = sorted(set(route.weights) - {old, new})
        if third:
            raise TrafficError(f"The route {name} also names {', '.join(third)}, which takes no part in a switch. Take it off the route.")


def refuse_another(request: Request, rollout: Rollout) -> None:
    """Refuse what is meant for another rollout than the one that is under way."""
    if request.action == ADVANCE and request.release not in ("", rollout.release):
        # The new release would be deployed over its way back.
        advice = "Retire it first." if rollout.phase == RETAINED else "Finish it or roll it back first."
        raise TrafficError(f"The rollout of {rollout.release} is {rollout.phase}, so {request.release} cannot begin. {advice}")
    goal = {ADVANCE: rollout.new, ROLLBACK: rollout.old}.get(request.action, "")
    if goal and request.colour not in ("", goal):
        raise TrafficError(
            f"colour is {request.colour}, but the rollout of {rollout.release} goes from {rollout.old} to {rollout.new}. "
            f"Leave colour out, or give {goal}."
        )


def begin_way_back(request: Request, live: Live, colours: Sequence[str], settings: Settings, now: datetime) -> Rollout:
    """Begin a way back that no rollout is known of, because its record was lost or it is long over."""
    old = request.colour
    if not old:
        raise TrafficError("There is no rollout that could be rolled back. Name the colour that is to get all traffic in colour.")
    if old not in colours:
        raise TrafficError(f"colour is {old}, which is none of the colours {', '.join(colours)}.")
    refuse_foreign(live, colours)
    serving = sorted({colour for route in live.values() for colour, weight in route.weights.items() if weight and colour != old})
    if not serving:
        raise TrafficError(f"{old} has all traffic already, so there is nothing to roll back.")
    if len(serving) > 1:
        raise AmbiguousError(
            f"Several colours besides {old} have weight: {', '.join(serving)}. Leave one of them.", routes=weights_of(live)
        )
    refuse_third(live, old, serving[0])
    found = weights_of(live)
    return Rollout(
        request.release or "unknown",
        old,
        serving[0],
        ROLLING_BACK,
        tuple(settings.steps),
        now,
        now,
        now,
        step=len(settings.steps) - 1,
        intent=found,
        previous=found,
        reason="It was asked for.",
    )


def turn_back(rollout: Rollout, live: Live, settings: Settings, now: datetime, reason: str) -> Rollout:
    """Turn a rollout round. The old colour, as long as it is ready, gets the traffic at once."""
    found = weights_of(live)
    return replace(
        rollout,
        phase=ROLLING_BACK,
        since=now,
        next_at=now,
        passes=settings.consecutive - 1,
        intent=found,
        previous=found,
        settled=True,
        unverified_since=None,
        reason=reason,
    )


def adopt(rollout: Rollout, live: Live, now: datetime) -> Rollout:
    """Take weights that somebody else set for what was meant, and say where in the rollout they lie."""
    shares = [share(route.weights, rollout.new) for route in live.values()]
    found = weights_of(live)
    taken = replace(rollout, intent=found, previous=found, settled=True, unverified_since=None, since=now, next_at=now)
    if rollout.phase == ROLLING_BACK:
        return taken
    if max(shares) == 0:
        if rollout.phase in BEFORE_SHIFT:
            # So that it is attached everywhere, and gated again.
            return replace(taken, phase=PREPARED, step=-1, passes=0)
        return replace(taken, phase=ROLLED_BACK, reason="Somebody gave all traffic back by hand.")
    if min(shares) == 1:
        done = rollout.phase in (BAKING, RETAINED)
        return replace(
            taken,
            phase=rollout.phase if done else SHIFTED,
            since=rollout.since if done else now,
            step=len(rollout.steps) - 1,
            shifted_at=rollout.shifted_at or now,
        )
    reached = [index for index, step in enumerate(rollout.steps) if step.weight <= 100 * min(shares) and step.weight < 100]
    return replace(taken, phase=SHIFTING, step=reached[-1] if reached else -1, shifted_at=None)


def restore(rollout: Rollout, live: Live, now: datetime) -> Rollout:
    """Mean the same weights as before, from those that somebody else set."""
    return replace(rollout, previous=weights_of(live), settled=False, unverified_since=None, next_at=now)
