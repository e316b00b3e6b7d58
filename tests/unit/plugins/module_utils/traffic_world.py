# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A world for rollouts: a clock that jumps, a load balancer that watches its own rules, and controllers that die where they are told to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._traffic import HEALTHY, Weights, share, weights_of
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_record import LeaseHeldError, Record, Rollout, Step, parse
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_rollout import (
    ADVANCE,
    GOOD,
    Checks,
    Outcome,
    Request,
    Settings,
    Verdict,
)
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_tick import tick
from ansible_collections.bitflow.lms.tests.unit.plugins.module_utils.traffic_memory import MemoryProvider, MemoryStore

NOW = datetime(2026, 11, 23, 10, 0, 0, tzinfo=timezone.utc)
ON_BLUE: Mapping[str, Weights] = {"web": {"blue": 1}, "api": {"blue": 1}}
SETTINGS: Mapping[str, Any] = {
    "steps": (Step(5, 60), Step(50, 60), Step(100, 120)),
    "min_healthy": 2,
    "consecutive": 3,
    "interval": 30,
    "gate_timeout": 300,
    "propagation": 60,
    "retain": 3600,
    "lease": 90,
}


class Crash(BaseException):
    """The end of a controller in the middle of something."""


class World:
    """Everything that a tick is given."""

    def __init__(self, routes: Mapping[str, Weights] | None = None, **settings: Any) -> None:
        self.now = NOW
        self.provider = MemoryProvider(ON_BLUE if routes is None else routes)
        self.store = MemoryStore()
        self.settings = Settings(**{**SETTINGS, **settings})
        self.smoke: Callable[[str], Verdict] = lambda _colour: Verdict(GOOD)
        self.alarms: Callable[[str], Verdict] = lambda _colour: Verdict(GOOD)
        # How many more things may happen before the controller dies.
        self.fuse: int | None = None
        self.dead = False
        self.happened = 0
        # How often each colour was seen ready in a row.
        self.seen_ready: dict[str, int] = {}
        self._tokens = itertools.count(1)
        self.provider.before = self.provider.after = self.store.before = self.store.after = self._happen
        self.provider.guard = self._guard

    # Acting

    def tick(self, action: str = ADVANCE, release: str = "r1", colour: str | None = None, **more: Any) -> Outcome:
        """Let a controller that has just started do one tick."""
        self.dead = False
        if colour is None:
            colour = "green" if action == ADVANCE else ""
        return tick(
            "lms",
            Request(action, release, colour),
            self.settings,
            self.store,
            self.provider,
            Checks([self.smoke], [self.alarms]),
            lambda: self.now,
            "deployer@controller",
            lambda: f"token-{next(self._tokens)}",
            **more,
        )

    def run(self, action: str = ADVANCE, until: str = "", most: int = 400, **more: Any) -> Outcome:
        """Tick until it is done, or until a phase is reached."""
        for _count in range(most):
            try:
                outcome = self.tick(action, **more)
            except LeaseHeldError as error:
                self.now = error.until + timedelta(seconds=1)
                continue
            if (outcome.phase == until) if until else outcome.done:
                return outcome
            self.now = outcome.next_at or self.now + timedelta(seconds=self.settings.interval)
        raise AssertionError(f"no end in sight: {outcome.message()}")

    def run_through(self, action: str = ADVANCE, most: int = 400, **more: Any) -> Outcome:
        """Tick until the rollout is over, whatever dies on the way."""
        for _count in range(most):
            try:
                outcome = self.tick(action, **more)
            except LeaseHeldError as error:
                self.now = error.until + timedelta(seconds=1)
                continue
            except Crash:
                continue
            if outcome.rollout and (outcome.rollout.over or outcome.phase == "failed"):
                return outcome
            self.now = outcome.next_at or self.now + timedelta(seconds=self.settings.interval)
        raise AssertionError("no end in sight")

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)

    # Looking

    @property
    def weights(self) -> dict[str, dict[str, int]]:
        """Return the live weights."""
        return weights_of(self.provider.routes)

    @property
    def record(self) -> Record:
        """Return the record."""
        assert self.store.content is not None
        return parse(self.store.content, "lms", "memory")

    @property
    def rollout(self) -> Rollout:
        """Return the rollout."""
        found = self.record.rollout
        assert found is not None
        return found

    # Rules

    def _happen(self, call: str) -> None:
        """Count what happens, and die where that was asked for."""
        if self.dead:
            raise Crash
        self.happened += 1
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                self.fuse, self.dead = None, True
                raise Crash
        if call.startswith("health "):
            self._see(call.partition(" ")[2])

    def _see(self, colour: str) -> None:
        """Count how often a colour was seen ready; each call happens twice, before and after."""
        attached = all(colour in route.weights for route in self.provider.routes.values())
        ready = attached and self.healthy(colour)
        self.seen_ready[colour] = self.seen_ready.get(colour, 0) + 1 if ready else 0

    def healthy(self, colour: str) -> bool:
        """Say whether a colour can take traffic."""
        return self.provider.states[colour].count(HEALTHY) >= self.settings.min_healthy

    def _guard(self, route: str, before: Weights, after: Weights) -> None:
        """Hold every change of weights against the rules that no controller may break."""
        assert sum(after.values()) > 0, f"{route} serves nobody: {after}"
        for colour in after:
            if share(after, colour) <= share(before, colour):
                continue
            assert self.healthy(colour), f"{colour} gets weight on {route} without enough healthy targets"
            in_use = any(found.weights.get(colour) for found in self.provider.routes.values())
            needed = 1 if in_use or colour == "blue" else self.settings.consecutive
            assert self.seen_ready.get(colour, 0) >= needed, f"{colour} gets weight on {route} and was not gated"
