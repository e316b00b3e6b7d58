# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong during a rollout, how it has to end, and that users meet none of it where that can be had."""

from __future__ import annotations

import itertools
import json

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import AmbiguousError, DriftError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_record import RecordError
from ansible_collections.bitflow.lms.tests.lab.conftest import Report
from ansible_collections.bitflow.lms.tests.lab.elb_model import World, refusal
from ansible_collections.bitflow.lms.tests.lab.test_scenarios import ON, ON_BLUE, ON_GREEN
from ansible_collections.bitflow.lms.tests.lab.traffic_lab import AT_ONCE, BUCKET, KEY, Lab

# What AWS says to who asks too often, and at a bad moment.
BAD_ANSWERS = (("ThrottlingException", 400), ("InternalFailure", 500), ("ServiceUnavailable", 503))


# Green


def test_green_is_never_healthy(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2", boot=10000)

    outcome = lab.controller().until()

    count = lab.count()
    report(count, ON, outcome.phase)
    assert (count.failed, count.served("green"), outcome.phase, lab.weights()) == (0, 0, "rolled_back", ON_BLUE), count.words()
    assert "green was not ready within 25 s: lms-green has 0 healthy of 2 targets" in outcome.fault


def test_green_becomes_ill_while_it_is_watched(lab: Lab, report: Report) -> None:
    green = lab.deploy("green", "r2")
    controller = lab.controller(steps=({"weight": 25, "bake": 60}, {"weight": 100, "bake": 4}))
    controller.until("shifting")
    lab.wait_until(lambda: any(backend.served for backend in green))

    for backend in green:
        backend.ill = True
    outcome = controller.until()
    lab.scale("green", 0)

    count = lab.count()
    report(count, ON, outcome.phase)
    assert (count.failed, outcome.phase, lab.weights()) == (0, "rolled_back", ON_BLUE), count.words()
    assert count.served("green")
    assert "green is not ready: lms-green has 0 healthy of 2 targets" in outcome.fault


def test_green_fails_and_the_smoke_test_meets_it_before_any_user(lab: Lab, report: Report) -> None:
    smoke = lab.smoke_rule("green")
    for backend in lab.deploy("green", "r2"):
        backend.failing = True

    outcome = lab.controller(smoke=[smoke]).until()

    count = lab.count()
    report(count, ON, outcome.phase)
    assert (count.failed, count.served("green"), outcome.phase, lab.weights()) == (0, 0, "rolled_back", ON_BLUE), count.words()
    assert "The smoke test failed" in outcome.fault
    assert any(backend.served for backend in lab.of("green"))


def test_an_alarm_fires_while_green_is_watched(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")
    lab.alarm("lms-5xx", "OK")
    controller = lab.controller(alarms=["lms-5xx"])
    controller.until("shifting")

    lab.alarm("lms-5xx", "ALARM")
    outcome = controller.until()
    lab.scale("green", 0)

    count = lab.count()
    report(count, ON, outcome.phase)
    assert (count.failed, outcome.phase, lab.weights()) == (0, "rolled_back", ON_BLUE), count.words()
    assert "The alarm lms-5xx fires." in outcome.fault


def test_an_alarm_is_missing(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")

    outcome = lab.controller(alarms=["lms-5xx"]).until()

    count = lab.count()
    report(count, ON, outcome.phase)
    assert (count.failed, count.served("green"), outcome.phase, lab.weights()) == (0, 0, "rolled_back", ON_BLUE), count.words()
    assert "There is no alarm lms-5xx." in outcome.fault


def test_green_has_no_targets(lab: Lab, report: Report) -> None:
    outcome = lab.controller().until()

    count = lab.count()
    report(count, ON, outcome.phase)
    assert (count.failed, outcome.phase, lab.weights()) == (0, "rolled_back", ON_BLUE), count.words()
    assert "lms-green is empty" in outcome.fault


def test_a_target_is_registered_on_two_ports_of_which_one_is_dead(lab: Lab, report: Report) -> None:
    one = lab.plane.start_backend("green", "r2")
    other = lab.plane.start_backend("green", "r2", host=one.host, boot=10000)
    for backend in (one, other):
        lab.register(backend)

    outcome = lab.controller().until()

    count = lab.count()
    report(count, ON, outcome.phase)
    assert (count.failed, count.served("green"), outcome.phase, lab.weights()) == (0, 0, "rolled_back", ON_BLUE), count.words()
    assert f"lms-green has 1 healthy of 2 targets, and 2 are needed: {one.host}:{other.port} is" in outcome.fault


def test_a_target_is_registered_on_two_ports_that_both_serve(lab: Lab, report: Report) -> None:
    one = lab.plane.start_backend("green", "r2")
    other = lab.plane.start_backend("green", "r2", host=one.host)
    for backend in (one, other):
        lab.register(backend)

    outcome = lab.controller(steps=AT_ONCE).until("retired")
    lab.scale("blue", 0)

    count = lab.count()
    report(count, ON, outcome.phase)
    assert (count.failed, lab.weights()) == (0, ON_GREEN), count.words()
    assert one.served and other.served


# AWS


def test_aws_throttles_and_fails(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")
    controller = lab.controller(lease_time=60)
    numbers, answers = itertools.count(1), itertools.cycle(BAD_ANSWERS)
    # Every third call is refused, and every fifth is done without an answer.
    controller.before = lambda _moment: refusal(*next(answers)) if next(numbers) % 3 == 0 else None
    done = itertools.count(1)
    controller.after = lambda _moment: refusal("InternalFailure", 500) if next(done) % 5 == 0 else None

    outcome = controller.until("retired")
    lab.scale("blue", 0)

    count = lab.count()
    report(count, ON, outcome.phase)
    assert (count.failed, lab.weights()) == (0, ON_GREEN), count.words()


def test_aws_is_away_for_long(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")
    controller = lab.controller()
    controller.until("shifting")
    numbers = itertools.count()
    # Longer than the calls that are made again for one.
    controller.before = lambda moment: refusal("ThrottlingException") if not moment.startswith("put_") and next(numbers) < 12 else None

    outcome = controller.until("retired")
    lab.scale("blue", 0)

    count = lab.count()
    report(count, ON, outcome.phase)
    assert (count.failed, lab.weights()) == (0, ON_GREEN), count.words()


def test_nodes_learn_later_than_the_propagation_wait(lab: Lab, report: Report) -> None:
    lab.plane.delays[:] = (1, 8, 16)
    lab.deploy("green", "r2")

    outcome = lab.controller(steps=AT_ONCE).until("retired")
    lab.scale("blue", 0)

    count = lab.count()
    report(count, ON, outcome.phase)
    assert (count.failed, lab.weights()) == (0, ON_GREEN), count.words()


def test_draining_takes_longer_than_blue_is_kept(world: World, report: Report) -> None:
    with Lab(world, drain=25) as lab:
        lab.deploy("green", "r2")
        controller = lab.controller(steps=AT_ONCE, retain=1)
        controller.until("retained")

        lab.deregister(lab.of("blue")[0])
        waiting = controller.call("retire")
        outcome = controller.until("retired")
        drained = lab.states("blue")
        lab.scale("blue", 0)

        count = lab.count()
        report(count, ON, outcome.phase)
        assert (waiting.phase, waiting.capacity()["blue"]) == ("retained", "keep")
        assert (count.failed, drained, lab.weights()) == (0, ["healthy"], ON_GREEN), count.words()


# The record


def test_the_record_is_deleted(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")
    controller = lab.controller()
    shifting = controller.until("shifting")

    lab.s3.delete_object(Bucket=BUCKET, Key=KEY)
    with pytest.raises(AmbiguousError, match="so no single colour is live"):
        controller.call()
    refused = lab.weights()
    outcome = controller.until(action="rollback", colour="blue")
    lab.scale("green", 0)

    count = lab.count()
    report(count, ON, f"refused, then {outcome.phase}")
    assert refused == {name: dict(route.weights) for name, route in shifting.live.items()}
    assert (count.failed, outcome.phase, lab.weights()) == (0, "rolled_back", ON_BLUE), count.words()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"half of it {", r"The record s3://example-state/traffic/lab/lms\.json is damaged"),
        (json.dumps({"format": 99}).encode(), "has the format 99"),
        (json.dumps({"format": 1, "name": "x", "serial": 1, "lease": None, "rollout": None, "history": []}).encode(), "belongs to x"),
    ],
    ids=["damaged", "newer", "foreign"],
)
def test_the_record_is_not_ours(content: bytes, message: str, lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")
    controller = lab.controller()
    shifting = controller.until("shifting")
    before = lab.s3.get_object(Bucket=BUCKET, Key=KEY)["Body"].read()

    lab.s3.put_object(Bucket=BUCKET, Key=KEY, Body=content)
    with pytest.raises(RecordError, match=message):
        controller.call()
    refused = lab.weights()
    # As the message advises.
    lab.s3.put_object(Bucket=BUCKET, Key=KEY, Body=before)
    outcome = controller.until("retired")
    lab.scale("blue", 0)

    count = lab.count()
    report(count, ON, f"refused, then {outcome.phase}")
    assert refused == {name: dict(route.weights) for name, route in shifting.live.items()}
    assert (count.failed, lab.weights()) == (0, ON_GREEN), count.words()


def test_somebody_else_writes_the_record_in_the_middle(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")
    controller = lab.controller(lease_time=5)
    writes = itertools.count()

    def write(moment: str) -> None:
        if moment == "modify_rule" and next(writes) % 2 == 0:
            content = lab.s3.get_object(Bucket=BUCKET, Key=KEY)["Body"].read()
            lab.s3.put_object(Bucket=BUCKET, Key=KEY, Body=content + b" ")

    controller.before = write
    outcome = controller.until("retired")
    lab.scale("blue", 0)

    count = lab.count()
    report(count, ON, outcome.phase)
    assert next(writes) > 2
    assert (count.failed, lab.weights()) == (0, ON_GREEN), count.words()


# Hands


@pytest.mark.parametrize(("on_drift", "first"), [("restore", 5), ("adopt", 70)])
def test_weights_are_changed_by_hand(on_drift: str, first: int, lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")
    controller = lab.controller()
    controller.until("shifting")

    lab.modify(blue=30, green=70)
    with pytest.raises(DriftError, match="somebody else changed it"):
        controller.call()
    refused = lab.weights()
    controller.until("shifting", on_drift=on_drift)
    after = lab.weights()
    outcome = controller.until("retired")
    lab.scale("blue", 0)

    count = lab.count()
    report(count, ON, f"refused, then {outcome.phase}")
    assert refused == {route: {"blue": 30, "green": 70} for route in ("web", "api")}
    assert after == {route: {"blue": 100 - first, "green": first} for route in ("web", "api")}
    assert (count.failed, lab.weights()) == (0, ON_GREEN), count.words()


def test_blue_is_terminated_while_it_is_kept(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")
    controller = lab.controller(steps=AT_ONCE)
    controller.until("retained")

    for backend in lab.of("blue"):
        lab.plane.stop_backend(backend)
    outcome = controller.until("retired")

    count = lab.count()
    report(count, ON, outcome.phase)
    assert (count.failed, lab.weights()) == (0, ON_GREEN), count.words()


def test_the_way_back_to_a_terminated_blue_is_not_gone(lab: Lab, report: Report) -> None:
    lab.deploy("green", "r2")
    controller = lab.controller(steps=AT_ONCE, retain=60)
    controller.until("retained")
    for backend in lab.of("blue"):
        lab.plane.stop_backend(backend)
    lab.wait_for("blue", "unhealthy", 2)

    failed = controller.until(action="rollback")
    stayed = lab.weights()
    lab.deploy("blue", "r1")
    outcome = controller.until(action="rollback")

    count = lab.count()
    report(count, ON, f"{failed.phase}, then {outcome.phase}")
    assert (failed.phase, stayed) == ("failed", ON_GREEN)
    assert "r2 can neither go on nor back" in failed.fault
    assert (count.failed, outcome.phase, lab.weights()) == (0, "rolled_back", ON_BLUE), count.words()
