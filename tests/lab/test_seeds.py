# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The defects of the scripts deploy-blue-green.sh and rollback.sh: what their calls do to users, and what ours do in their place."""

from __future__ import annotations

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import TrafficError
from ansible_collections.bitflow.lms.tests.lab.conftest import Report
from ansible_collections.bitflow.lms.tests.lab.test_scenarios import OFF, ON, ON_BLUE, ON_GREEN
from ansible_collections.bitflow.lms.tests.lab.traffic_lab import AT_ONCE, Lab


def on_green(lab: Lab) -> None:
    """Have green serve everything, and blue nothing any more, as after the first run of the script."""
    lab.deploy("green", "r2")
    lab.controller(steps=AT_ONCE, retain=0).until("retired")
    lab.scale("blue", 0)


# deploy-blue-green.sh always deploys to green


def test_the_second_release_goes_over_the_live_one(lab: Lab, report: Report) -> None:
    on_green(lab)

    # aws ecs update-service --service bitflow-backend-green --task-definition ...
    old = lab.of("green")
    for backend in lab.deploy("green", "r3"):
        backend.failing = True
    for backend in old:
        lab.deregister(backend)

    count = lab.count()
    report(count, OFF, "r3 on users untested")
    assert count.failed > 0


def test_the_second_release_goes_to_the_colour_that_is_not_live(lab: Lab, report: Report) -> None:
    on_green(lab)
    controller = lab.controller(steps=AT_ONCE, release="r3")

    with pytest.raises(TrafficError, match=r"colour is green, which has all traffic already\. Deploy r3 to blue\."):
        controller.call(colour="green")
    lab.deploy("blue", "r3")
    outcome = controller.until("retired", colour="")

    count = lab.count()
    report(count, ON, f"refused, then {outcome.phase}")
    assert (count.failed, outcome.live_colour, lab.weights()) == (0, "blue", ON_BLUE), count.words()


# deploy-blue-green.sh moves traffic to a group that was never checked, and takes blue away by the clock


def test_green_gets_everything_without_ever_having_been_checked(lab: Lab, report: Report) -> None:
    for backend in lab.deploy("green", "r2"):
        backend.ill = True
    lab.clock.sleep(10)
    unused = lab.alb.raw.describe_target_health(TargetGroupArn=lab.alb.groups["lms-green"])["TargetHealthDescriptions"]

    # aws ecs wait services-stable, and then aws elbv2 modify-listener; blue to 0 instead of 1.
    lab.modify(green=100)
    lab.scale("blue", 0)

    count = lab.count()
    report(count, OFF, "ill green serves")
    assert {each["TargetHealth"]["Reason"] for each in unused} == {"Target.NotInUse"}
    assert count.failed > 0


def test_green_gets_nothing_before_the_load_balancer_calls_it_healthy(lab: Lab, report: Report) -> None:
    for backend in lab.deploy("green", "r2"):
        backend.ill = True

    outcome = lab.controller().until()

    count = lab.count()
    report(count, ON, outcome.phase)
    assert (count.failed, count.served("green"), lab.weights()) == (0, 0, ON_BLUE), count.words()
    assert "Target.ResponseCodeMismatch" in outcome.fault


# deploy-blue-green.sh watches by sleeping


def test_the_monitoring_that_sleeps_sees_nothing(lab: Lab, report: Report) -> None:
    green = lab.deploy("green", "r2")
    lab.modify(blue=100, green=0)
    lab.wait_for("green", "healthy", 2)
    lab.modify(green=100)
    lab.clock.sleep(9)
    for backend in green:
        backend.failing = True

    # sleep 600
    lab.clock.sleep(30)

    count = lab.count()
    report(count, OFF, "failing green serves")
    assert count.served("green") and count.failed > 1000


def test_the_monitoring_takes_the_traffic_back(lab: Lab, report: Report) -> None:
    green = lab.deploy("green", "r2")
    lab.alarm("lms-5xx", "OK")
    controller = lab.controller(steps=({"weight": 100, "bake": 30},), alarms=["lms-5xx"])
    controller.until("baking")

    for backend in green:
        backend.failing = True
    lab.alarm("lms-5xx", "ALARM")
    outcome = controller.until()

    back = lab.clock.seconds
    count = lab.count()
    report(count, ON, f"{outcome.phase}, failed until then")
    assert (outcome.phase, lab.weights()) == ("rolled_back", ON_BLUE)
    assert outcome.rollout is not None and outcome.rollout.reason == "The alarm lms-5xx fires."
    assert [each for each in count.failures if each.at > back] == [], count.words()


# deploy-blue-green.sh keeps one task of blue, for a way back that needs all of them


def test_blue_keeps_all_its_targets_for_the_way_back(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")
    controller = lab.controller(steps=AT_ONCE)
    kept = {phase: controller.until(phase).capacity()["blue"] for phase in ("shifted", "baking", "retained")}

    outcome = controller.until(action="rollback")

    count = lab.count()
    report(count, ON, outcome.phase)
    assert kept == dict.fromkeys(("shifted", "baking", "retained"), "keep")
    assert (count.failed, lab.weights(), lab.states("blue")) == (0, ON_BLUE, ["healthy"] * 2), count.words()


# deploy-blue-green.sh switches the default action alone


def test_rules_stay_on_a_blue_that_goes(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")
    lab.modify(blue=100, green=0)
    lab.wait_for("green", "healthy", 2)

    lab.modify(routes=["web"], green=100)
    lab.clock.sleep(9)
    lab.scale("blue", 0)

    count = lab.count()
    report(count, OFF, "rule on nobody")
    assert {each.path for each in count.failures} >= {"/api/courses"}


def test_rules_are_switched_with_the_default_action(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")

    outcome = lab.controller(steps=AT_ONCE).until("retired")
    lab.scale("blue", 0)

    count = lab.count()
    report(count, ON, outcome.phase)
    assert (count.failed, lab.weights()) == (0, ON_GREEN), count.words()


# rollback.sh moves traffic first and scales up then


def test_the_way_back_leads_to_a_blue_that_is_not_there(lab: Lab, report: Report) -> None:
    on_green(lab)

    # aws elbv2 modify-listener, and only then aws ecs update-service --desired-count 3
    lab.modify(blue=100)
    lab.deploy("blue", "r1", boot=15)
    lab.wait_for("blue", "healthy", 2)

    count = lab.count()
    report(count, OFF, "on blue")
    assert count.failed > 0


def test_the_way_back_waits_for_blue(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")
    controller = lab.controller(steps=AT_ONCE, retain=0, gate={"min_healthy": 2, "consecutive": 3, "interval": 1, "timeout": 60})
    controller.until("retired")
    lab.scale("blue", 0)

    waiting = controller.call("rollback", colour="blue")
    lab.clock.sleep(5)
    meanwhile = lab.weights()
    lab.deploy("blue", "r1", boot=15)
    outcome = controller.until(action="rollback", colour="blue")

    count = lab.count()
    report(count, ON, outcome.phase)
    assert (waiting.phase, meanwhile) == ("rolling_back", ON_GREEN)
    assert (count.failed, outcome.phase, lab.weights()) == (0, "rolled_back", ON_BLUE), count.words()
