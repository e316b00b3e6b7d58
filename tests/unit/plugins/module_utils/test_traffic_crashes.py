# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controllers that die anywhere, and several at once: never a moment without weight, never weight for the unready, always the same end.

The rules are held in traffic_world, at each change of a weight. A thing that happens is the moment before or after a call of the load
balancer, or before or after a write of the record.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_record import LeaseHeldError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_rollout import BAD, GOOD, UNKNOWN, Verdict
from ansible_collections.bitflow.lms.tests.unit.plugins.module_utils.traffic_world import Crash, World

End = tuple[str, dict[str, dict[str, int]], str]


def forward(world: World) -> None:
    """Roll out, to the end."""
    world.run_through()


def alarmed(phase: str) -> Callable[[World], None]:
    """Return a rollout in which an alarm fires as soon as a phase is reached."""

    def story(world: World) -> None:
        reached = []

        def alarm(_colour: str) -> Verdict:
            """Fire from then on."""
            reached.extend([1] if world.rollout.phase == phase else [])
            return Verdict(BAD if reached else GOOD, "The alarm lms-5xx fires.")

        world.alarms = alarm
        world.run_through()

    return story


def sickening(phase: str) -> Callable[[World], None]:
    """Return a rollout whose new colour gets sick in a phase."""

    def story(world: World) -> None:
        def alarm(_colour: str) -> Verdict:
            """Notice the phase."""
            if world.rollout.phase == phase:
                world.provider.states["green"] = ["unhealthy"] * 2
            return Verdict(GOOD)

        world.alarms = alarm
        world.run_through()

    return story


def asked_back(phase: str) -> Callable[[World], None]:
    """Return a rollout that is rolled back when it has reached a phase."""

    def story(world: World) -> None:
        for _count in range(400):
            try:
                world.run(until=phase)
                break
            except Crash:
                continue
        world.run_through("rollback")

    return story


def dead_end(world: World) -> None:
    """Roll back to a colour that is gone."""
    for _count in range(400):
        try:
            world.run(until="retained")
            break
        except Crash:
            continue
    world.provider.states["blue"] = []
    world.run_through("rollback")


def slow_data(world: World) -> None:
    """Roll out with checks that have nothing to say at first."""
    asked: list[int] = []

    def check(_colour: str) -> Verdict:
        """Answer at the third time."""
        asked.append(1)
        return Verdict(GOOD if len(asked) > 2 else UNKNOWN)

    world.smoke = check
    world.run_through()


STORIES: dict[str, Callable[[World], None]] = {
    "forward": forward,
    "alarm in the first step": alarmed("shifting"),
    "alarm in baking": alarmed("baking"),
    "sick in the first step": sickening("shifting"),
    "sick in shifted": sickening("shifted"),
    "back from attached": asked_back("attached"),
    "back from shifting": asked_back("shifting"),
    "back from retained": asked_back("retained"),
    "dead end": dead_end,
    "slow data": slow_data,
}

WHOLE = ("forward", "alarm in baking", "back from shifting")


def end_of(world: World) -> End:
    """Return how a story ended."""
    return world.rollout.phase, world.weights, world.rollout.reason


@pytest.mark.parametrize("name", STORIES)
def test_a_death_at_any_moment_changes_nothing_about_the_end(name: str) -> None:
    whole = World()
    STORIES[name](whole)

    # Every moment of the whole way forward and of two ways back; the others share most of theirs with these.
    for moment in range(0, whole.happened, 1 if name in WHOLE else 5):
        world = World()
        world.fuse = moment
        STORIES[name](world)
        assert end_of(world) == end_of(whole), f"died at moment {moment}"
        assert world.fuse is None


@pytest.mark.parametrize("name", STORIES)
def test_any_number_of_deaths_changes_nothing_about_the_end(name: str) -> None:
    whole = World()
    STORIES[name](whole)

    for seed in range(8):
        source = random.Random(seed)  # noqa: S311 (no secret comes of it)
        world = World()
        happen = world._happen

        def deadly(call: str, world: World = world, source: random.Random = source, happen: Callable[[str], None] = happen) -> None:
            """Die now and then."""
            if not world.dead and world.happened < 2000 and source.random() < 0.05:
                world.fuse = 0
            happen(call)

        world.provider.before = world.provider.after = world.store.before = world.store.after = deadly
        STORIES[name](world)
        assert end_of(world) == end_of(whole), f"seed {seed}"


def test_a_death_with_each_setting_of_drift_is_no_drift() -> None:
    for on_drift in ("adopt", "restore"):
        whole = World(on_drift=on_drift)
        forward(whole)
        for moment in range(0, whole.happened, 3):
            world = World(on_drift=on_drift)
            world.fuse = moment
            forward(world)
            assert end_of(world) == end_of(whole), f"died at moment {moment}"


def test_several_controllers_at_once_come_to_the_same_end() -> None:
    whole = World()
    forward(whole)
    seen: set[str] = set()

    for seed in range(60):
        source = random.Random(seed)  # noqa: S311 (no secret comes of it)
        world = World()
        crowd(world, source, seen)
        for _count in range(400):
            try:
                if world.tick().rollout and world.rollout.over:
                    break
            except LmsError as error:
                seen.add(type(error).__name__)
            world.sleep(30)
        assert end_of(world) == end_of(whole), f"seed {seed}"

    # Else nothing was tried.
    assert seen >= {"LeaseHeldError", "LeaseLostError", "ConflictError"}


def crowd(world: World, source: random.Random, seen: set[str]) -> None:
    """Let other controllers come in the middle of a tick, some of them after its lease has run out."""
    inside: list[Any] = []

    count = world._happen

    def happen(call: str) -> None:
        """Let another one come now and then."""
        count(call)
        if inside or source.random() > 0.05:
            return
        inside.append(1)
        if source.random() < 0.5:
            world.now += timedelta(seconds=source.choice([5, 100, 1000]))
        try:
            world.tick()
        except LmsError as error:
            seen.add(type(error).__name__)
        inside.clear()

    world.provider.before = world.provider.after = world.store.before = world.store.after = happen


def test_a_lease_that_a_dead_controller_left_is_waited_for() -> None:
    world = World()
    world.fuse = 5
    with pytest.raises(Crash):
        world.tick()

    with pytest.raises(LeaseHeldError) as caught:
        world.tick()

    assert caught.value.until == world.now + timedelta(seconds=90)
    world.now = caught.value.until
    assert world.tick().phase == "attached"
