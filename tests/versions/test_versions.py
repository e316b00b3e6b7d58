"""The same deployment with an old Laravel and with a new one: what one of them lacks is detected, never assumed."""

from __future__ import annotations

from injection import EVERYTHING, assert_failed, load

API = [kind for kind in EVERYTHING if kind["site"] == "api"]


def test_a_first_deployment(lms):
    foreseen = lms.play("deploy.yml", "--check", "--diff", lms_version="v1")
    outcome = lms.play("deploy.yml", lms_version="v1")

    assert foreseen.status == 0, foreseen.output[-5000:]
    assert outcome.status == 0, outcome.output[-5000:]
    assert lms.play("tests/fixtures/lms/seed.yml").status == 0
    told = lms.environment.ask("/version")
    assert told["laravel"].startswith(lms.leg.laravel), told
    assert lms.environment.ask("/health")["status"] == "ok"


def test_the_next_version_and_the_way_back_go_unnoticed(lms):
    first = lms.live()
    with load(lms.environment, API) as visitors:
        outcome = lms.play("deploy.yml", "--diff", lms_version="v2")
        second = lms.live()
        back = lms.play("bitflow.lms.rollback")

    assert outcome.status == 0, outcome.output[-5000:]
    assert back.status == 0, back.output[-5000:]
    assert (second != first, lms.live()) == (True, first)
    visitors.assert_nobody_noticed()


def test_a_version_that_is_ill_is_stopped_before_anybody_sees_it(lms):
    live = lms.live()
    with load(lms.environment, API) as visitors:
        outcome = lms.play("deploy.yml", lms_version="v3-broken")

    assert_failed(outcome, r"No visitor saw it; every host serves what it served before")
    assert lms.live() == live
    visitors.assert_nobody_noticed()


def test_deploying_again_changes_nothing(lms):
    lms.play("deploy.yml", lms_version="v2")
    again = lms.play("deploy.yml", lms_version="v2")

    assert (again.status, again.changed[lms.leg.host]) == (0, 0), again.output[-4000:]
