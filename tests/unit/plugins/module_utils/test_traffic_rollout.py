# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rollouts from beginning to end, and back from everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import (
    AmbiguousError,
    DriftError,
    Route,
    TrafficError,
    UnreadyError,
    Weights,
)
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_record import (
    ConflictError,
    LeaseHeldError,
    LeaseLostError,
    RecordError,
    Step,
)
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_rollout import BAD, UNKNOWN, Settings, Verdict
from ansible_collections.bitflow.lms.tests.unit.plugins.module_utils.traffic_world import World

ALL_BLUE = {"api": {"blue": 100, "green": 0}, "web": {"blue": 100, "green": 0}}
ALL_GREEN = {"api": {"blue": 0, "green": 100}, "web": {"blue": 0, "green": 100}}
# Every phase in which a rollout is under way.
UNDER_WAY = ("attached", "shifting", "shifted", "baking", "retained")


def both(weights: Weights) -> dict[str, dict[str, int]]:
    """Return the same weights for both routes."""
    return {"api": dict(weights), "web": dict(weights)}


def at(phase: str, **settings: Any) -> World:
    """Return a world whose rollout has reached a phase."""
    world = World(**settings)
    world.run(until=phase)
    return world


def sick(_colour: str) -> Verdict:
    """Answer as an alarm that fires."""
    return Verdict(BAD, "The alarm lms-5xx fires.")


# The way forward


def test_a_rollout_goes_step_by_step_and_keeps_the_old_colour_for_its_time() -> None:
    world = World()
    begun = world.now

    switched = world.run()
    at_switch = (world.now - begun).total_seconds()
    retired = world.run(until="retired")

    steps = [{"blue": 95, "green": 5}, {"blue": 50, "green": 50}, {"blue": 0, "green": 100}]
    assert [weights for route, weights in world.provider.writes if route == "web"] == [{"blue": 100, "green": 0}, *steps]
    assert [weights for route, weights in world.provider.writes if route == "api"] == [{"blue": 100, "green": 0}, *steps]
    # Three looks in 60 s, two steps of 60 s, 60 s until every node knows, 120 s of watching.
    assert at_switch == 60 + 60 + 60 + 60 + 120
    assert (switched.phase, switched.done, switched.live_colour, switched.capacity()) == (
        "retained",
        True,
        "green",
        {"blue": "keep", "green": "keep"},
    )
    assert (world.now - begun).total_seconds() == at_switch + 3600
    assert (retired.phase, retired.capacity(), retired.fault) == ("retired", {"blue": "free", "green": "keep"}, "")
    assert [entry["event"] for entry in world.record.history] == [
        "begun, from blue to green",
        "meant: blue 100, green 0",
        "in force: blue 100, green 0",
        "green was ready 3 times in a row",
        "green passed its smoke test",
        "meant: blue 95, green 5",
        "in force: blue 95, green 5",
        "meant: blue 50, green 50",
        "in force: blue 50, green 50",
        "meant: blue 0, green 100",
        "in force: blue 0, green 100",
        "baking",
        "retained",
        "retired",
    ]
    assert world.record.lease is None


def test_the_result_says_where_it_stands() -> None:
    world = at("shifting")

    result = world.tick().as_result()

    history = result.pop("history")
    assert result.pop("health") == []
    assert len(history) == 7
    assert result == {
        "phase": "shifting",
        "done": False,
        "next_at": "2026-11-23T10:01:30.000Z",
        "live_colour": "",
        "weights": both({"blue": 95, "green": 5}),
        "release": "r1",
        "old": "blue",
        "new": "green",
        "step": 1,
        "steps": [{"weight": 5, "bake": 60}, {"weight": 50, "bake": 60}, {"weight": 100, "bake": 120}],
        "reason": "",
        "waiting": "green is watched until 2026-11-23T10:01:30.000Z",
        "capacity": {"blue": "keep", "green": "keep"},
        "events": [],
        "message": "r1, from blue to green: step 1 of 3 of the shift. Waiting: green is watched until 2026-11-23T10:01:30.000Z. "
        "Traffic: api: blue 95, green 5; web: blue 95, green 5.",
    }


def test_a_tick_that_only_waits_writes_nothing() -> None:
    world = at("shifting")
    version, calls = world.store.version, len(world.provider.calls)

    outcome = world.tick()

    assert (outcome.changed, world.store.version, world.provider.calls[calls:]) == (False, version, ["read"])


def test_the_diff_and_the_change_are_those_of_the_tick() -> None:
    world = World()

    outcome = world.tick()

    assert outcome.changed is True
    assert outcome.diff() == {
        "before": {"phase": "idle", "weights": both({"blue": 1})},
        "after": {"phase": "attached", "weights": ALL_BLUE},
    }


def test_check_mode_says_the_same_and_does_nothing() -> None:
    for phase in ("", *UNDER_WAY):
        world = at(phase) if phase else World()
        world.now = max(world.now, world.rollout.since if phase else world.now)
        world.sleep(4000)
        content, weights, writes = world.store.content, world.weights, len(world.provider.writes)

        said = world.tick(check_mode=True)

        assert (world.store.content, world.weights, len(world.provider.writes)) == (content, weights, writes)
        done = world.tick()
        assert (said.changed, said.diff()["before"]) == (done.changed, done.diff()["before"])
        assert said.diff()["after"]["weights"] == done.diff()["after"]["weights"]
        assert set(said.as_result()) == set(done.as_result())


def test_a_second_release_goes_back_to_the_first_colour() -> None:
    world = at("retired")

    outcome = world.run(release="r2", colour="")

    assert (outcome.phase, outcome.live_colour, world.rollout.old, world.rollout.new) == ("retained", "blue", "green", "blue")


def test_a_release_that_is_out_is_not_begun_again() -> None:
    world = at("retired")

    for release in ("r1", ""):
        outcome = world.tick(release=release)
        assert (outcome.changed, outcome.done, outcome.phase, world.weights) == (False, True, "retired", ALL_GREEN)


def test_another_release_waits_until_the_first_one_is_over() -> None:
    for phase in UNDER_WAY:
        world = at(phase)
        with pytest.raises(TrafficError, match=f"The rollout of r1 is {phase}, so r2 cannot begin"):
            world.tick(release="r2")


# What is refused at the beginning


@pytest.mark.parametrize(
    ("routes", "colour", "message"),
    [
        ({"web": {"blue": 1}}, "", "There is no record of a rollout, so nobody knows whether green holds r1."),
        ({"web": {"blue": 1}}, "blue", "colour is blue, which has all traffic already. Deploy r1 to green."),
        ({"web": {"blue": 1}}, "red", "colour is red, which is none of the colours blue, green."),
        ({"web": {"blue": 50, "green": 50}}, "green", "The route web has blue 50, green 50, so no single colour is live."),
        ({"web": {"blue": 1}, "api": {"green": 1}}, "green", "Different colours are live: green on api, blue on web."),
        ({"web": {"blue": 1, "old": 0}}, "green", "The route web also forwards to old, which belongs to none of the colours blue, green."),
    ],
)
def test_a_rollout_that_cannot_be_right_is_not_begun(routes: dict[str, Weights], colour: str, message: str) -> None:
    world = World(routes)

    with pytest.raises(TrafficError) as caught:
        world.tick(colour=colour)

    assert caught.value.message.startswith(message)
    assert world.store.content is None
    assert world.provider.writes == []


def test_stickiness_that_outlives_the_old_colour_is_refused() -> None:
    world = World()
    world.provider.routes["web"] = Route("web", {"blue": 1}, 7200)

    with pytest.raises(TrafficError, match="longer than retain"):
        world.tick()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": ()}, "steps has the weights"),
        ({"steps": (Step(5, 0),)}, "steps has the weights"),
        ({"steps": (Step(50, 0), Step(50, 0), Step(100, 0))}, "steps has the weights"),
        ({"steps": (Step(0, 0), Step(100, 0))}, "steps has the weights"),
        ({"steps": (Step(100, -1),)}, "steps has a bake below 0"),
        ({"min_healthy": 0}, "min_healthy is 0"),
        ({"interval": 0}, "interval is 0"),
        ({"retain": -1}, "retain is -1"),
    ],
)
def test_settings_that_cannot_end_well_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TrafficError, match=message):
        Settings(**given)


# Gates


def test_a_colour_that_never_gets_healthy_never_gets_weight() -> None:
    world = World()
    world.provider.states["green"] = ["healthy", "initial"]

    outcome = world.run()

    assert (outcome.phase, world.weights) == ("rolled_back", ALL_BLUE)
    assert outcome.fault == (
        "r1 was rolled back to blue: green was not ready within 300 s: api-green has 1 healthy of 2 targets, and 2 are needed: "
        "192.0.2.2:80 is initial; web-green has 1 healthy of 2 targets, and 2 are needed: 192.0.2.2:80 is initial. "
        "Mend that, then give release another name."
    )
    assert all(not weights["green"] for _route, weights in world.provider.writes)


def test_a_colour_has_to_be_ready_several_times_in_a_row() -> None:
    world = at("attached")
    world.sleep(30)
    world.tick()
    world.sleep(30)
    world.provider.states["green"][0] = "unhealthy"

    world.tick()
    assert world.rollout.passes == 0
    world.provider.states["green"][0] = "healthy"

    assert world.run(until="shifting").phase == "shifting"


def test_a_failed_smoke_test_ends_the_rollout_before_any_weight() -> None:
    world = World()
    world.smoke = lambda colour: Verdict(BAD, f"{colour} answered 500.")

    outcome = world.run()

    assert (outcome.phase, outcome.rollout and outcome.rollout.reason) == ("rolled_back", "The smoke test failed: green answered 500.")
    assert all(not weights["green"] for _route, weights in world.provider.writes)


def test_an_alarm_that_fires_already_lets_no_weight_pass() -> None:
    world = World()
    world.alarms = sick

    outcome = world.run()

    assert outcome.phase == "rolled_back"
    assert all(not weights["green"] for _route, weights in world.provider.writes)


@pytest.mark.parametrize("phase", ["shifting", "shifted", "baking"])
def test_an_alarm_brings_the_traffic_back(phase: str) -> None:
    world = at(phase)
    world.alarms = sick
    world.sleep(30)

    outcome = world.tick()

    assert (outcome.phase, world.weights) == ("rolling_back", ALL_BLUE)
    assert world.run().phase == "rolled_back"


@pytest.mark.parametrize("phase", ["shifting", "shifted", "baking"])
def test_targets_that_get_sick_bring_the_traffic_back(phase: str) -> None:
    world = at(phase)
    world.provider.states["green"] = ["unhealthy", "healthy"]
    world.sleep(30)

    outcome = world.tick()

    assert (outcome.phase, world.weights) == ("rolling_back", ALL_BLUE)


@pytest.mark.parametrize(
    ("insufficient", "phase", "weights"),
    [("pass", "retained", ALL_GREEN), ("wait", "rolled_back", ALL_BLUE), ("fail", "rolled_back", ALL_BLUE)],
)
def test_a_check_without_data_means_what_the_setting_says(insufficient: str, phase: str, weights: dict[str, Any]) -> None:
    world = World(insufficient=insufficient)
    world.alarms = lambda _colour: Verdict(UNKNOWN, "The alarm lms-5xx has no data.")

    outcome = world.run()

    assert (outcome.phase, world.weights) == (phase, weights)


def test_data_that_comes_in_time_lets_the_rollout_go_on() -> None:
    world = World()
    asked: list[str] = []

    def slow(colour: str) -> Verdict:
        """Have no answer the first times."""
        asked.append(colour)
        return Verdict(UNKNOWN if len(asked) < 5 else "good")

    world.alarms = world.smoke = slow

    assert world.run().phase == "retained"


def test_a_check_that_breaks_has_no_data() -> None:
    world = World(insufficient="fail")

    def broken(_colour: str) -> Verdict:
        """Break."""
        raise LmsError("CloudWatch does not answer.")

    world.alarms = broken

    assert world.run().rollout == replace(world.rollout, phase="rolled_back", reason="CloudWatch does not answer.")


def test_a_load_balancer_that_does_not_act_by_its_weights_gets_them_back() -> None:
    world = at("attached")
    world.provider.slow = {"api"}

    outcome = world.run(until="rolling_back")

    assert outcome.rollout and outcome.rollout.reason == "api did not act by the weights within 60 s."
    assert world.weights == ALL_BLUE
    world.provider.slow = set()
    assert world.run().phase == "rolled_back"


def test_the_old_colour_is_kept_while_it_still_serves() -> None:
    world = at("retained")
    world.provider.undrained = {"blue"}
    world.sleep(4000)

    outcome = world.tick()

    assert (outcome.phase, outcome.capacity()["blue"]) == ("retained", "keep")
    assert outcome.waiting.startswith("blue still serves requests until")
    world.provider.undrained = set()
    world.sleep(30)
    assert world.tick().phase == "retired"


def test_the_old_colour_is_kept_for_clients_that_stick_to_it() -> None:
    world = World(retain=3600)
    for name in ("web", "api"):
        world.provider.routes[name] = Route(name, {"blue": 1}, 3600)
    world.run()

    outcome = world.tick("retire")

    assert (outcome.phase, outcome.waiting[:12]) == ("retained", "blue is kept")
    world.sleep(3600)
    assert world.tick("retire").phase == "retired"


# The way back


@pytest.mark.parametrize("phase", UNDER_WAY)
def test_rollback_works_from_everywhere(phase: str) -> None:
    world = at(phase)

    outcome = world.tick("rollback")

    # The traffic is back at once; that the new colour may go takes longer.
    assert world.weights == ALL_BLUE
    assert (outcome.live_colour, outcome.capacity()["green"]) == ("blue", "free" if phase == "attached" else "keep")
    outcome = world.run("rollback")
    assert (outcome.phase, outcome.done, outcome.fault, outcome.capacity()) == ("rolled_back", True, "", {"blue": "keep", "green": "free"})
    again = world.tick("rollback")
    assert (again.changed, again.done) == (False, True)


def test_rollback_gates_an_old_colour_that_was_scaled_down() -> None:
    world = at("retained")
    world.provider.states["blue"] = []

    outcome = world.tick("rollback")
    assert (outcome.phase, world.weights) == ("rolling_back", ALL_GREEN)
    world.provider.states["blue"] = ["initial", "healthy"]
    world.sleep(30)
    world.tick("rollback")
    assert world.weights == ALL_GREEN
    world.provider.states["blue"] = ["healthy", "healthy"]

    outcome = world.run("rollback")
    assert (outcome.phase, world.weights) == ("rolled_back", ALL_BLUE)


def test_rollback_to_a_colour_that_stays_down_fails_and_leaves_the_traffic() -> None:
    world = at("retained")
    world.provider.states["blue"] = []

    outcome = world.run("rollback")

    assert (outcome.phase, outcome.done, world.weights) == ("failed", True, ALL_GREEN)
    assert outcome.fault == (
        "r1 can neither go on nor back: It was asked for. blue was not ready within 300 s: api-blue is empty; web-blue is empty. "
        "Repair blue, then ask for rollback."
    )
    assert world.tick().phase == "failed"
    world.provider.states["blue"] = ["healthy", "healthy"]
    assert world.run("rollback").phase == "rolled_back"


def test_what_failed_may_be_kept_instead() -> None:
    world = at("retained")
    world.provider.states["blue"] = []
    world.run("rollback")

    outcome = world.tick("retire")

    assert (outcome.phase, outcome.fault, world.weights) == ("retired", "", ALL_GREEN)


def test_what_failed_goes_on_from_wherever_a_person_left_it_but_not_with_a_foreign_group() -> None:
    world = at("retained")
    world.provider.states["blue"] = []
    world.run("rollback")
    world.provider.by_hand("web", {"canary": 1, "green": 99})

    with pytest.raises(AmbiguousError, match="also forwards to canary"):
        world.tick("rollback")
    for name in ("web", "api"):
        world.provider.by_hand(name, {"blue": 1})

    outcome = world.tick("abort")
    assert (outcome.phase, outcome.done, outcome.live_colour) == ("rolled_back", True, "blue")


def test_a_rollout_that_is_over_is_not_rolled_back_by_chance() -> None:
    world = at("retired")

    with pytest.raises(TrafficError, match="no rollout that could be rolled back"):
        world.tick("rollback", colour="")

    outcome = world.run("rollback", colour="blue")
    assert (outcome.phase, world.weights) == ("rolled_back", ALL_BLUE)


def test_a_rolled_back_release_fails_who_asks_for_it_again() -> None:
    world = at("baking")
    world.run("rollback")

    outcome = world.tick()

    assert (outcome.changed, outcome.done) == (False, True)
    assert outcome.fault == "r1 was rolled back to blue: It was asked for. Mend that, then give release another name."
    assert world.run(release="r2", colour="").phase == "retained"


def test_abort_ends_what_has_no_weight_and_nothing_else() -> None:
    world = at("attached")
    outcome = world.tick("abort")
    assert (outcome.phase, outcome.done, world.weights) == ("rolled_back", True, ALL_BLUE)

    world = at("shifting")
    with pytest.raises(TrafficError, match="green has weight on api, web, so it cannot be aborted"):
        world.tick("abort")


def test_retire_ends_the_time_of_the_old_colour_and_nothing_else() -> None:
    world = at("retained")
    outcome = world.tick("retire")
    assert (outcome.phase, outcome.done, outcome.capacity()) == ("retired", True, {"blue": "free", "green": "keep"})

    for phase in ("attached", "shifting", "shifted", "baking"):
        world = at(phase)
        with pytest.raises(TrafficError, match=f"The rollout of r1 is {phase}, so blue is still needed"):
            world.tick("retire")


@pytest.mark.parametrize("action", ["abort", "retire", "status"])
def test_without_a_rollout_there_is_nothing_to_end(action: str) -> None:
    world = World()

    outcome = world.tick(action)

    assert (outcome.changed, outcome.phase, outcome.done) == (False, "idle", True)
    assert outcome.capacity() == {"blue": "keep", "green": "keep"}
    assert outcome.message() == "No rollout was begun. Traffic: api: blue 1; web: blue 1."


# Status


def test_a_colour_that_contradicts_the_rollout_is_refused() -> None:
    world = at("shifting")

    with pytest.raises(TrafficError, match="colour is blue, but the rollout of r1 goes from blue to green"):
        world.tick(colour="blue")
    with pytest.raises(TrafficError, match="Leave colour out, or give blue"):
        world.tick("rollback", colour="green")


def test_status_only_looks() -> None:
    world = at("shifting")
    world.provider.by_hand("web", {"blue": 10, "green": 90})
    content, writes = world.store.content, len(world.provider.writes)

    outcome = world.tick("status")

    assert (world.store.content, len(world.provider.writes), outcome.changed) == (content, writes, False)
    assert outcome.waiting.startswith("The route web has blue 10, green 90, but blue 95, green 5 was expected")
    assert outcome.health["green"].counts == {"healthy": 4}


# Several routes


def test_a_route_that_fails_takes_the_others_back_with_it() -> None:
    world = at("attached")
    world.sleep(60)

    def fail(call: str) -> None:
        """Fail at the second route, once green is to get weight."""
        if call == "set api" and world.rollout.phase == "shifting":
            raise LmsError("ThrottlingException")

    world.provider.before = fail
    with pytest.raises(LmsError, match="ThrottlingException"):
        world.run()

    assert world.weights == ALL_BLUE
    assert ("web", {"blue": 95, "green": 5}) in world.provider.writes
    assert world.record.lease is None
    world.provider.before = lambda _call: None
    assert world.run().phase == "retained"


def test_routes_that_are_not_those_of_the_beginning_are_refused() -> None:
    world = at("shifting")
    del world.provider.routes["api"]

    with pytest.raises(TrafficError, match="was begun with the routes api, web, not web"):
        world.tick()


# Drift


@pytest.mark.parametrize("phase", UNDER_WAY)
def test_weights_that_somebody_else_set_stop_the_rollout(phase: str) -> None:
    world = at(phase)
    world.provider.by_hand("web", {"blue": 33, "green": 67})
    content = world.store.content
    world.sleep(60)

    for action in ("advance", "rollback"):
        with pytest.raises(DriftError, match="The route web has blue 33, green 67"):
            world.tick(action)

    assert world.weights["web"] == {"blue": 33, "green": 67}
    assert world.record.rollout == json_rollout(content)
    assert world.record.lease is None


def json_rollout(content: bytes | None) -> Any:
    """Return the rollout of a document."""
    world = World()
    world.store.content = content
    return world.rollout


@pytest.mark.parametrize("phase", UNDER_WAY)
def test_drift_can_be_restored(phase: str) -> None:
    world = at(phase, on_drift="restore")
    meant = world.weights
    world.provider.by_hand("web", {"blue": 33, "green": 67})

    outcome = world.tick()

    assert (outcome.phase, world.weights) == (phase, meant)
    assert world.run().phase == "retained"


@pytest.mark.parametrize("phase", UNDER_WAY)
def test_drift_can_be_adopted(phase: str) -> None:
    world = at(phase, on_drift="adopt")
    world.provider.by_hand("web", {"blue": 40, "green": 60})
    world.provider.by_hand("api", {"blue": 40, "green": 60})

    outcome = world.tick()

    assert (outcome.phase, outcome.rollout and outcome.rollout.step, world.weights) == ("shifting", 1, both({"blue": 40, "green": 60}))
    assert world.run().phase == "retained"


@pytest.mark.parametrize("on_drift", ["adopt", "restore"])
@pytest.mark.parametrize("phase", UNDER_WAY)
def test_rollback_goes_back_from_wherever_the_weights_are(phase: str, on_drift: str) -> None:
    world = at(phase, on_drift=on_drift)
    world.provider.by_hand("web", {"blue": 33, "green": 67})

    world.tick("rollback")

    assert world.weights == ALL_BLUE
    assert world.run("rollback").phase == "rolled_back"


def test_a_way_back_by_hand_is_adopted_as_one() -> None:
    world = at("baking", on_drift="adopt")
    for name in ("web", "api"):
        world.provider.by_hand(name, {"blue": 1, "green": 0})

    outcome = world.tick()

    assert (outcome.phase, outcome.rollout and outcome.rollout.reason) == ("rolled_back", "Somebody gave all traffic back by hand.")


def test_a_switch_by_hand_is_adopted_as_one_and_watched() -> None:
    world = at("shifting", on_drift="adopt")
    for name in ("web", "api"):
        world.provider.by_hand(name, {"green": 1})

    outcome = world.tick()

    assert outcome.phase == "shifted"
    assert world.run().phase == "retained"


def test_weight_that_somebody_else_gave_to_a_sick_colour_is_not_adopted() -> None:
    world = at("attached", on_drift="adopt")
    world.provider.states["green"] = ["unhealthy", "unhealthy"]
    world.provider.by_hand("web", {"blue": 50, "green": 50})

    with pytest.raises(UnreadyError, match="green cannot take traffic"):
        world.tick()


def test_a_foreign_group_is_never_adopted() -> None:
    world = at("shifting", on_drift="adopt")
    world.provider.by_hand("web", {"blue": 50, "canary": 50})

    with pytest.raises(AmbiguousError, match="also forwards to canary"):
        world.tick()


# The record


def test_a_lost_record_is_not_guessed() -> None:
    world = at("shifting")
    world.store.content = None

    with pytest.raises(AmbiguousError, match="no single colour is live"):
        world.tick()
    with pytest.raises(TrafficError, match="Name the colour that is to get all traffic in colour"):
        world.tick("rollback", colour="")

    outcome = world.run("rollback", colour="blue")
    assert (outcome.phase, world.weights) == ("rolled_back", ALL_BLUE)


def test_a_lost_record_does_not_turn_a_finished_switch_round() -> None:
    world = at("retained")
    world.store.content = None

    with pytest.raises(TrafficError, match="There is no record of a rollout"):
        world.tick(colour="")
    with pytest.raises(TrafficError, match="colour is green, which has all traffic already"):
        world.tick(colour="green")

    assert (world.weights, world.store.content) == (ALL_GREEN, None)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format": 1}',
        b'{"format": 2}',
    ],
)
def test_a_damaged_record_is_left_to_a_person(damage: bytes) -> None:
    world = at("shifting")
    weights, world.store.content = world.weights, damage

    for action in ("advance", "rollback", "abort", "retire", "status"):
        with pytest.raises(RecordError):
            world.tick(action)

    assert (world.store.content, world.weights) == (damage, weights)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("phase", "happy"),
        ("step", 7),
        ("step", "1"),
        ("old", ""),
        ("intent", {"web": {"blue": "x"}}),
        ("intent", None),
        ("settled", "yes"),
        ("since", "yesterday"),
        ("since", "2026-11-23T10:00:00"),
        ("steps", []),
        ("more", 1),
    ],
)
def test_a_record_that_says_nonsense_is_refused(key: str, value: Any) -> None:
    world = at("shifting")
    assert world.store.content is not None
    document = json.loads(world.store.content)
    document["rollout"][key] = value
    world.store.content = json.dumps(document).encode()

    with pytest.raises(RecordError, match="is damaged"):
        world.tick()


def test_the_record_of_another_rollout_is_refused() -> None:
    world = at("shifting")
    assert world.store.content is not None
    world.store.content = world.store.content.replace(b'"name": "lms"', b'"name": "other"')

    with pytest.raises(RecordError, match="belongs to other, not to lms"):
        world.tick()


def test_a_record_that_somebody_else_writes_meanwhile_stops_the_tick_before_it_acts() -> None:
    world = World()
    written: list[int] = []

    def write(call: str) -> None:
        """Write between two writes of the tick."""
        if call == "write":
            written.append(1)
            if len(written) == 3:
                world.store.version += 1

    world.store.before = write
    with pytest.raises(ConflictError):
        world.tick()

    assert world.provider.writes == []


def test_a_record_that_is_removed_meanwhile_stops_the_tick() -> None:
    world = at("attached")
    world.sleep(30)

    def remove(call: str) -> None:
        """Remove the record after the lease was taken."""
        if call.startswith("health"):
            world.store.content = None

    world.provider.after = remove
    with pytest.raises(ConflictError):
        world.tick()

    assert world.store.content is None


def test_the_history_does_not_grow_for_ever() -> None:
    world = World()
    for number in range(20):
        world.run(until="retired", release=f"r{number}", colour="" if number else "green")

    assert len(world.record.history) == 200


# Two controllers


def test_a_second_controller_waits_for_the_first_one() -> None:
    world = World()
    heard: list[str] = []

    def second(call: str) -> None:
        """Let another controller come in the middle."""
        if call == "set api" and not heard:
            try:
                world.tick()
            except LeaseHeldError as error:
                heard.append(error.message)

    world.provider.before = second
    world.tick()

    assert heard == ["deployer@controller is at the rollout lms until 2026-11-23T10:01:30.000Z. Try again then."]


def test_a_lease_that_ran_out_stops_the_act() -> None:
    world = at("attached")
    world.sleep(60)
    world.tick()
    world.sleep(30)
    world.provider.after = lambda call: world.sleep(95 if call == "health green" and world.rollout.phase == "shifting" else 0)

    with pytest.raises(LeaseLostError, match=r"ran out before the weights were set.* raise lease_time"):
        world.run()

    assert world.weights == ALL_BLUE


def test_a_controller_that_slept_through_its_lease_puts_back_what_it_set() -> None:
    world = at("attached")
    slept: list[str] = []

    def sleep_through(call: str) -> None:
        """Sleep between the last look at the lease and the call, while somebody else rolls back."""
        if call == "set api" and world.rollout.phase == "shifting" and not slept:
            slept.append(call)
            world.sleep(1000)
            world.run("rollback")

    world.provider.before = sleep_through
    with pytest.raises(LeaseLostError, match="Somebody else went on"):
        world.run()

    assert (world.rollout.phase, world.weights) == ("rolled_back", ALL_BLUE)
