# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users meet while traffic is switched: nothing where our code does it, and failures where bare calls do the same in the wrong order.

Each scenario counts 4000 requests at least, half of them over kept connections and half over new ones, with slow answers and conversations
over WebSocket beside them.
"""

from __future__ import annotations

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import TrafficError, UnreadyError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_record import PHASES
from ansible_collections.bitflow.lms.tests.lab.conftest import Report
from ansible_collections.bitflow.lms.tests.lab.elb_model import World
from ansible_collections.bitflow.lms.tests.lab.traffic_lab import AT_ONCE, Killed, Lab, together
from ansible_collections.bitflow.lms.tests.lab.users import ENOUGH

ON = "on"
OFF = "off"
ON_BLUE = {route: {"blue": 100, "green": 0} for route in ("web", "api")}
ON_GREEN = {route: {"blue": 0, "green": 100} for route in ("web", "api")}
UNTOUCHED = {route: {"blue": 100} for route in ("web", "api")}
CHANGES = ("modify_listener", "modify_rule")
# In the order in which they come, so that each of them is met.
MOMENTS = (
    *("put_object idle", "put_object prepared", "put_object attached", *CHANGES, "put_object gated", "put_object smoked"),
    *("put_object shifting", *CHANGES, "put_object shifted", *CHANGES, "put_object baking", "put_object retained", "put_object retired"),
)


# Safe


def test_a_switch_at_once(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2", boot=3)

    outcome = lab.controller(steps=AT_ONCE).until("retired")
    lab.scale("blue", 0)

    count = lab.count()
    report(count, ON, outcome.phase)
    assert (count.failed, lab.weights(), outcome.capacity()) == (0, ON_GREEN, {"blue": "free", "green": "keep"}), count.words()
    assert count.total >= ENOUGH


def test_half_of_the_requests_are_kept_and_half_are_new(lab: Lab) -> None:
    count = lab.count()

    plain = [each for each in count.requests if each.path not in ("/slow", "/ws")]

    assert sum(each.kept for each in plain) * 2 == len(plain)
    assert {each.path for each in count.requests} == {"/", "/api/courses", "/slow", "/ws"}


def test_a_canary_of_5_25_50_100_percent(lab: Lab, report: Report) -> None:
    smoke = lab.smoke_rule("green")
    lab.deploy("green", "r2", boot=3)

    outcome = lab.controller(smoke=[smoke]).until("retired")
    lab.scale("blue", 0)

    count = lab.count()
    report(count, ON, outcome.phase)
    steps = [event["event"] for event in outcome.record.history if event["event"].startswith("in force")]
    assert (count.failed, lab.weights()) == (0, ON_GREEN), count.words()
    assert "green passed its smoke test" in [event["event"] for event in outcome.record.history]
    assert steps == [f"in force: blue {100 - percent}, green {percent}" for percent in (0, 5, 25, 50, 100)]


def test_a_switch_by_single_tasks(lab: Lab, report: Report) -> None:
    controller = lab.controller()
    green = [lab.plane.start_backend("green", "r2", boot=3) for _number in range(2)]

    controller.weigh({"blue": 100, "green": 0})
    controller.targets(green, "present")
    controller.weigh({"blue": 50, "green": 50})
    controller.weigh({"blue": 0, "green": 100})
    controller.targets(lab.of("blue"), "absent")
    for backend in lab.of("blue"):
        lab.plane.stop_backend(backend)

    count = lab.count()
    report(count, ON, "on green")
    assert (count.failed, lab.weights()) == (0, ON_GREEN), count.words()


def test_a_rollback_from_the_middle_of_a_canary(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")
    controller = lab.controller()
    shifting = controller.until("shifting")

    outcome = controller.until(action="rollback")
    lab.scale("green", 0)

    count = lab.count()
    report(count, ON, outcome.phase)
    assert (shifting.phase, count.failed, outcome.phase, lab.weights()) == ("shifting", 0, "rolled_back", ON_BLUE), count.words()
    assert count.served("green")


def test_a_rollback_while_blue_is_kept(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")
    controller = lab.controller(steps=AT_ONCE)
    controller.until("retained")

    outcome = controller.until(action="rollback")
    lab.scale("green", 0)

    count = lab.count()
    report(count, ON, outcome.phase)
    assert (count.failed, outcome.phase, lab.weights()) == (0, "rolled_back", ON_BLUE), count.words()


def test_a_controller_that_is_killed_in_each_phase_is_followed_by_the_next(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")
    died = []

    for moment in MOMENTS:
        for after in (False, True):
            controller = lab.controller(lease_time=5)
            controller.dies(moment, after)
            try:
                controller.until("retired")
            except Killed:
                died.append((moment, after))
    outcome = lab.controller(lease_time=5).until("retired")
    lab.scale("blue", 0)

    count = lab.count()
    report(count, ON, f"{outcome.phase} after {len(died)} kills")
    phases = list(dict.fromkeys(event["phase"] for event in outcome.record.history))
    assert died == [(moment, after) for moment in MOMENTS for after in (False, True)]
    assert (count.failed, lab.weights(), phases) == (0, ON_GREEN, list(PHASES[:-3])), count.words()


def test_two_controllers_at_once(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")
    controllers = [lab.controller(), lab.controller()]

    together(*(lambda controller=controller: controller.until("retired") for controller in controllers))
    lab.scale("blue", 0)

    count = lab.count()
    history = [event["event"] for event in lab.record().history]
    report(count, ON, "retired")
    assert (count.failed, lab.weights()) == (0, ON_GREEN), count.words()
    assert len(history) == len(set(history))
    # Each of them did something.
    assert all(any(call.startswith("put_object") for call in controller.calls) for controller in controllers)


# The same in the wrong order, by bare calls; and what our code says to it


def test_blue_goes_before_every_node_knows(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")
    lab.modify(blue=100, green=0)
    lab.wait_for("green", "healthy", 2)

    lab.modify(blue=0, green=100)
    lab.scale("blue", 0)

    count = lab.count()
    report(count, OFF, "on green")
    assert count.failed > 0


def test_blue_goes_after_a_rollout_that_was_told_to_wait_for_nobody(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")

    outcome = lab.controller(steps=({"weight": 100, "bake": 0},), propagation_wait=0, retain=0).until("retired")
    lab.scale("blue", 0)

    count = lab.count()
    report(count, OFF, outcome.phase)
    assert count.failed > 0


def test_blue_must_not_go_before_every_node_knows(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")
    controller = lab.controller(steps=AT_ONCE)
    shifted = controller.until("shifted")

    with pytest.raises(TrafficError, match=r"The rollout of r2 is shifted, so blue is still needed\."):
        controller.call("retire")
    outcome = controller.until("retired")
    lab.scale("blue", 0)

    count = lab.count()
    report(count, ON, f"refused, then {outcome.phase}")
    assert (count.failed, shifted.capacity()) == (0, {"blue": "keep", "green": "keep"}), count.words()


def test_clients_stick_to_a_blue_that_goes(world: World, report: Report) -> None:
    with Lab(world, sticky=40) as lab:
        lab.deploy("green", "r2")
        lab.modify(blue=100, green=0)
        lab.wait_for("green", "healthy", 2)
        lab.modify(blue=0, green=100)
        lab.clock.sleep(9)
        lab.scale("blue", 0)

        count = lab.count()
    report(count, OFF, "on green")
    assert count.failed > 0


def test_clients_must_not_stick_to_a_blue_that_goes(world: World, report: Report) -> None:
    with Lab(world, sticky=40) as lab:
        lab.deploy("green", "r2")

        with pytest.raises(TrafficError, match=r"keeps its clients on their colour for 40 s, longer than retain \(8 s\)"):
            lab.controller().call()

        count = lab.count()
        report(count, ON, "refused")
        assert (count.failed, lab.weights()) == (0, UNTOUCHED), count.words()


def test_a_blue_that_is_kept_for_those_who_stick_to_it(world: World, report: Report) -> None:
    with Lab(world, sticky=20) as lab:
        lab.deploy("green", "r2")

        outcome = lab.controller(steps=AT_ONCE, retain=20).until("retired")
        lab.scale("blue", 0)

        count = lab.count()
        report(count, ON, outcome.phase)
        assert (count.failed, lab.weights()) == (0, ON_GREEN), count.words()


def test_tasks_run_before_they_listen(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2", boot=20)

    lab.modify(green=100)

    count = lab.count()
    report(count, OFF, "on green")
    assert count.failed > 0


def test_tasks_must_listen_first(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2", boot=20)
    controller = lab.controller()

    with pytest.raises(UnreadyError, match="lms-green is on no route"):
        controller.weigh({"blue": 0, "green": 100})
    controller.weigh({"blue": 100, "green": 0})
    with pytest.raises(UnreadyError, match=r"lms-green has 0 healthy of 2 targets.*That was so for 3 s"):
        controller.weigh({"blue": 0, "green": 100}, gate={**controller.options["gate"], "timeout": 3})
    refused = lab.weights()
    outcome = controller.until("retired")

    count = lab.count()
    report(count, ON, f"refused, then {outcome.phase}")
    assert (count.failed, refused, lab.weights()) == (0, ON_BLUE, ON_GREEN), count.words()


def test_a_share_for_an_empty_group(lab: Lab, report: Report) -> None:
    lab.modify(blue=90, green=10)

    count = lab.count()
    report(count, OFF, "90 to 10")
    assert count.failed > 0


def test_no_share_for_an_empty_group(lab: Lab, report: Report) -> None:
    controller = lab.controller()
    controller.weigh({"blue": 100, "green": 0})

    with pytest.raises(UnreadyError, match="lms-green is empty"):
        controller.weigh({"blue": 90, "green": 10})
    outcome = controller.until()

    count = lab.count()
    report(count, ON, f"refused, then {outcome.phase}")
    assert (count.failed, outcome.phase, lab.weights()) == (0, "rolled_back", ON_BLUE), count.words()
    assert "lms-green is empty" in outcome.fault


def test_the_live_colour_loses_its_targets(lab: Lab, report: Report) -> None:
    lab.scale("blue", 0)

    count = lab.count()
    report(count, OFF, "on nobody")
    assert count.failed > 0


def test_the_live_colour_must_not_lose_its_targets(lab: Lab, report: Report) -> None:
    with pytest.raises(TrafficError, match="lms-blue has weight on lms:443, lms:443/10, and would keep 0 healthy targets"):
        lab.controller().targets(lab.of("blue"), "absent")

    count = lab.count()
    report(count, ON, "refused")
    assert (count.failed, lab.states("blue")) == (0, ["healthy"] * 2), count.words()


def test_no_weight_at_all(lab: Lab, report: Report) -> None:
    lab.modify(blue=0, green=0)

    count = lab.count()
    report(count, OFF, "on nobody")
    assert count.failed > 0


def test_never_no_weight_at_all(lab: Lab, report: Report) -> None:
    with pytest.raises(TrafficError, match="no colour with a weight above 0"):
        lab.controller().weigh({"blue": 0, "green": 0})

    count = lab.count()
    report(count, ON, "refused")
    assert (count.failed, lab.weights()) == (0, UNTOUCHED), count.words()
