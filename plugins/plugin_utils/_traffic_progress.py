# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Follow a rollout from the control host: when to ask again, what to say meanwhile, and what all calls came to.

Between two calls nothing is at work anywhere and nobody holds the lease, so a run may end at any moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import HEALTHY, in_words
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_options import rollout_argspec, settings_of
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_record import (
    ATTACHED,
    BAKING,
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
    moment_of,
)
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_rollout import STATUS
from ansible_collections.bitflow.lms.plugins.plugin_utils._progress_action import TELL_INTERVAL, duration

# Between two calls (seconds): never less, so that nothing is asked without a pause.
SHORTEST_PAUSE = 0.5
# How long a sleep lasts at most before it is seen whether anybody waits for the result (seconds).
NAP = 1.0

Result = dict[str, Any]

_WORDS = {
    IDLE: "no rollout is under way",
    PREPARED: "{new} is to be attached",
    ATTACHED: "{new} is attached without weight",
    GATED: "{new} was healthy in a row",
    SMOKED: "{new} passed its smoke test",
    SHIFTED: "all traffic was given to {new}",
    BAKING: "all traffic is on {new}",
    RETAINED: "all traffic is on {new}",
    RETIRED: "all traffic is on {new}, {old} is given up",
    ROLLING_BACK: "on the way back to {old}",
    ROLLED_BACK: "all traffic is back on {old}",
    FAILED: "it can neither go on nor back",
}


@dataclass(frozen=True)
class Plan:
    """What the options say about time. All times in seconds."""

    max_wait: float
    # Pause between two looks.
    interval: float
    consecutive: int
    propagation: float
    alarms: int

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Plan | None:
        """Read the options of a task; nothing where the module has to refuse them, or where nothing is to be waited for."""
        known = rollout_argspec()
        checked = ArgumentSpecValidator(known).validate({name: value for name, value in options.items() if name in known})
        read = checked.validated_parameters
        if checked.error_messages or read["action"] == STATUS or read["max_wait"] <= 0:
            return None
        try:
            settings = settings_of(read)
        except LmsError:
            return None
        return cls(read["max_wait"], settings.interval, settings.consecutive, settings.propagation, len(read["alarms"]))


@dataclass(frozen=True)
class Surroundings:
    """What a run needs of the world: a clock, a way to sleep, a place for lines, and whether anybody still waits for the result."""

    clock: Callable[[], float]
    sleep: Callable[[float], None]
    tell: Callable[[str], None]
    wanted: Callable[[], bool] = lambda: True


@dataclass
class _Seen:
    """What was seen so far."""

    changed: bool = False
    events: list[Mapping[str, Any]] = field(default_factory=list)
    health: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    before: Mapping[str, Any] | None = None
    # The last answer that told of the rollout.
    rollout: Result = field(default_factory=dict)

    def note(self, result: Result) -> None:
        """Take in what a call came to."""
        self.changed = self.changed or bool(result.get("changed"))
        self.events += result.get("events", [])
        self.health.update({each["colour"]: each for each in result.get("health", [])})
        if "phase" in result:
            self.rollout = result
        if self.before is None and "diff" in result:
            self.before = result["diff"]["before"]

    def look(self, found: Result) -> None:
        """Take in what a look showed."""
        self.health.update({each["colour"]: each for each in found.get("health", [])})
        if not self.rollout and "phase" in found:
            self.rollout = found

    def together(self, last: Result) -> Result:
        """Return what all calls came to as one result."""
        result = {**last, "changed": self.changed, "events": list(self.events)}
        if "health" in last:
            result["health"] = [self.health[colour] for colour in sorted(self.health)]
        if "diff" in last and self.before is not None:
            result["diff"] = {**last["diff"], "before": self.before}
        return result


def follow(ask: Callable[[Result], Result], options: Mapping[str, Any], plan: Plan, around: Surroundings) -> Result:
    """Call the module again and again until it is done, or until the time is over, and say how far it is meanwhile."""
    return _Following(ask, {**options, "max_wait": 0}, plan, around).run()


def next_call(result: Mapping[str, Any], now: float, plan: Plan) -> float | None:
    """Return when to call again; nothing where that would lead nowhere."""
    # A module that broke says neither.
    if result.get("done", True):
        return None
    if result.get("failed"):
        # Somebody else may have the lease until then; everything else may pass at any moment.
        return moment_of(result["until"]).timestamp() if result.get("until") else now + plan.interval
    return moment_of(result["next_at"]).timestamp() if result.get("next_at") else None


class _Following:
    """One run that follows a rollout."""

    def __init__(self, ask: Callable[[Result], Result], once: Result, plan: Plan, around: Surroundings) -> None:
        self.ask = ask
        self.once = once
        self.plan = plan
        self.around = around
        self.seen = _Seen()
        # What was told last, and when.
        self.told: tuple[Any, ...] = ()
        self.told_at = around.clock()
        # Whether the host can say its status, too.
        self.status = True

    def run(self) -> Result:
        """Call, wait and tell."""
        deadline = self.around.clock() + self.plan.max_wait
        while True:
            result = self.ask(dict(self.once))
            self.seen.note(result)
            problem = str(result.get("msg", "")) if result.get("failed") else ""
            until = next_call(result, self.around.clock(), self.plan)
            if until is None or until > deadline:
                # Only who waited wants to read of the end before the task tells it.
                if self.told and not problem:
                    self._tell(problem)
                return self.seen.together(result)
            self._tell_again(problem)
            self._rest(until, problem)
            if not self.around.wanted():
                return self.seen.together(result)

    def _rest(self, until: float, problem: str) -> None:
        """Sleep until there is something to do, unless the run ends that would have got the result. The clock of the host may be wrong."""
        now = self.around.clock()
        until = min(max(until, now + SHORTEST_PAUSE), now + max(self.plan.interval, SHORTEST_PAUSE))
        while self.around.wanted() and self.around.clock() < until:
            self.around.sleep(min(NAP, until - self.around.clock()))
            if self.around.clock() < until:
                self._tell_again(problem)

    def _look(self) -> None:
        """Ask how all colours are. It changes nothing, and nothing depends on it."""
        if not self.status:
            return
        found = self.ask({**self.once, "action": STATUS})
        self.status = not found.get("failed")
        self.seen.look(found)

    def _tell_again(self, problem: str) -> None:
        """Show a line where something changed, or where it is time for one."""
        due = not self.told or self.around.clock() - self.told_at >= TELL_INTERVAL
        if due:
            self._look()
        self._tell(problem, due)

    def _tell(self, problem: str, again: bool = False) -> None:
        """Show a line where something changed, or again."""
        news = _news(self.seen, problem)
        if news != self.told or again:
            self.told, self.told_at = news, self.around.clock()
            self.around.tell(line(self.seen.rollout, self.seen.health, self.plan, self.around.clock(), problem))


def _news(seen: _Seen, problem: str) -> tuple[Any, ...]:
    """Return what a person would call news."""
    rollout = seen.rollout
    return (
        problem,
        *(rollout.get(key) for key in ("phase", "step", "weights", "reason")),
        _without_time(rollout.get("waiting", "")),
        {colour: each["counts"] for colour, each in seen.health.items()},
    )


def _without_time(waiting: str) -> str:
    """Return what is waited for, without until when: that is the next look, and another one each time."""
    return waiting.rpartition(" until ")[0] or waiting


# What is said


def line(rollout: Mapping[str, Any], health: Mapping[str, Mapping[str, Any]], plan: Plan, now: float, problem: str = "") -> str:
    """Say how far a rollout is, in one line."""
    parts = [
        _where(rollout),
        _traffic(rollout),
        _healthy(health),
        _quiet(rollout, plan, problem),
        _waiting(rollout, problem),
        _left(rollout, plan, now),
    ]
    return "; ".join(part for part in parts if part)


def _where(rollout: Mapping[str, Any]) -> str:
    """Say which step it is at."""
    if not rollout:
        return ""
    steps, step, phase = rollout["steps"], rollout["step"], rollout["phase"]
    if phase == SHIFTING:
        return f"step {step} of {len(steps)}" if step else "before the first step"
    words = _WORDS[phase].format(**rollout)
    return f"step {step} of {len(steps)}, {words}" if phase in (SHIFTED, BAKING) else words


def _traffic(rollout: Mapping[str, Any]) -> str:
    """Say the weights: once where all routes have the same."""
    weights = rollout.get("weights") or {}
    told = {name: in_words(route) for name, route in sorted(weights.items())}
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return ", ".join(f"{name}: {words}" for name, words in told.items())


def _healthy(health: Mapping[str, Mapping[str, Any]]) -> str:
    """Say how many targets of each colour are healthy."""
    counts = {colour: each["counts"] for colour, each in sorted(health.items())}
    told = ", ".join(f"{colour} {count.get(HEALTHY, 0)} of {sum(count.values())}" for colour, count in counts.items())
    return f"healthy: {told}" if told else ""


def _quiet(rollout: Mapping[str, Any], plan: Plan, problem: str) -> str:
    """Say that the alarms were asked: one that fires would have ended the step."""
    if not plan.alarms or problem or rollout["phase"] not in (SHIFTING, SHIFTED, BAKING) or "no data" in rollout["waiting"]:
        return ""
    return "the alarm does not fire" if plan.alarms == 1 else f"none of {plan.alarms} alarms fires"


def _waiting(rollout: Mapping[str, Any], problem: str) -> str:
    """Say what is waited for, and why it goes back."""
    if problem:
        return f"tried again: {problem.rstrip('.')}"
    if not rollout:
        return ""
    phase, waiting = rollout["phase"], rollout["waiting"]
    parts = [rollout["reason"] if phase == ROLLING_BACK else "", waiting if phase == RETAINED else _without_time(waiting)]
    return "; ".join(part.rstrip(".") for part in parts if part)


def _left(rollout: Mapping[str, Any], plan: Plan, now: float) -> str:
    """Say how much time is left, as far as it can be foreseen."""
    step, whole = time_left(rollout, plan, now)
    told = [f"{duration(step)} left of it"] if step is not None else []
    return ", ".join([*told, f"about {duration(whole)} in all"] if whole is not None else told)


def time_left(rollout: Mapping[str, Any], plan: Plan, now: float) -> tuple[float | None, float | None]:
    """Return for how long the step still lasts, and the whole, if nothing comes in between (seconds). None where nobody can know."""
    if not rollout.get("history"):
        return None, None
    # The phase began with the last thing that happened.
    passed = max(0.0, now - moment_of(rollout["history"][-1]["time"]).timestamp())
    phase, step, bakes = rollout["phase"], rollout["step"], [each["bake"] for each in rollout["steps"]]
    if phase == ROLLING_BACK:
        left = max(0.0, plan.propagation - passed) if rollout["live_colour"] == rollout["old"] else None
        return left, left
    if rollout["next_at"] is None:
        return None, None
    if phase in (PREPARED, ATTACHED, GATED, SMOKED):
        gate = (plan.consecutive - 1) * plan.interval
        return None, (max(0.0, gate - passed) if phase == ATTACHED else 0) + sum(bakes) + plan.propagation
    lasts, after = {
        SHIFTING: (bakes[step - 1] if step else 0, sum(bakes[step:]) + plan.propagation),
        SHIFTED: (plan.propagation, bakes[-1]),
        BAKING: (bakes[-1], 0),
    }.get(phase, (None, 0))
    if lasts is None:
        return None, None
    left = max(0.0, lasts - passed)
    return left, left + after
