"""The journey of those who deploy blue-green: to hosts without traffic, then the traffic step by step, and back in a moment.

These tests come last: they divide the hosts of the environment into two colours.
"""

from __future__ import annotations

import pytest
from environment import Environment, wait_until

# Every request goes by itself, so that visitors see both releases while traffic is shared: the hardest case for them.
COLOURS = {
    "lms_deploy_strategy": "blue_green",
    "load_balancer_traffic_affinity": "request",
    "lms_traffic_steps": [{"weight": 25, "bake": 4}, {"weight": 100, "bake": 3}],
    "lms_traffic_gate": {"interval": 1, "consecutive": 2},
}
HOSTS = {"blue": "app1", "green": "app2"}


def state(environment: Environment) -> dict:
    """Return what switch_traffic would say."""
    return environment.module(
        "lb",
        "bitflow.lms.traffic_rollout",
        name="lms.localhost",
        action="status",
        provider="nginx",
        state="/var/lib/lms-traffic/rollout.json",
    )


def release_of(environment: Environment, colour: str) -> str:
    """Return the release that the host of a colour serves, in each of its parts."""
    found = {release for place, release in environment.live().items() if place.endswith(HOSTS[colour])}
    assert len(found) == 1, environment.live()
    return found.pop()


def assert_only_works_for(environment: Environment, colour: str) -> None:
    """Assert that the queue workers run on the hosts of one colour, and nowhere else."""
    for each, host in HOSTS.items():

        def works(host=host) -> bool:
            return bool(environment.processes(host)["workers"])

        wanted = each == colour
        wait_until(lambda works=works, wanted=wanted: works() == wanted, f"workers on {host}: {wanted}", seconds=60)


@pytest.fixture(scope="module")
def coloured(environment: Environment) -> Environment:
    """Divide the hosts: one version on both, blue has the traffic."""
    environment.deploy("v1")
    outcome = environment.play("bitflow.lms.provision", **COLOURS)
    assert outcome.status == 0, outcome.output[-5000:]
    if state(environment)["live_colour"] == "green":
        # An earlier run ended like this in an environment that was kept.
        outcome = environment.play("bitflow.lms.switch_traffic", traffic_action="rollback", lms_traffic_colour="blue", **COLOURS)
        assert outcome.status == 0, outcome.output[-5000:]
    return environment


def test_provisioning_two_colours_again_changes_nothing(coloured):
    outcome = coloured.play("bitflow.lms.provision", **COLOURS)

    assert outcome.status == 0, outcome.output[-5000:]
    assert set(outcome.changed.values()) == {0}
    assert state(coloured)["live_colour"] == "blue"
    assert_only_works_for(coloured, "blue")


def test_the_traffic_follows_a_release_to_the_other_colour_and_nobody_notices(coloured):
    old = release_of(coloured, "blue")

    with coloured.traffic() as traffic:
        outcome = coloured.play("deploy.yml", lms_version="v2", **COLOURS)

    new = release_of(coloured, "green")
    assert outcome.status == 0, outcome.output[-5000:]
    assert f"was deployed as release {new}." in outcome.text
    assert "Visitors: 0 of " in outcome.text
    assert "Traffic: all of it on green; blue is kept for the way back until " in outcome.text
    traffic.assert_nobody_noticed(at_least=400)
    assert traffic.releases("api") == {old, new}
    assert (release_of(coloured, "blue"), state(coloured)["phase"], state(coloured)["live_colour"]) == (old, "retained", "green")
    assert_only_works_for(coloured, "green")


def test_the_same_version_again_is_nothing_to_deploy(coloured):
    outcome = coloured.play("deploy.yml", lms_version="v2", **COLOURS)

    assert outcome.status == 0, outcome.output[-5000:]
    assert "nothing to deploy" in outcome.text
    assert state(coloured)["phase"] == "retained"


def test_the_traffic_goes_back_at_once_and_nobody_notices(coloured):
    old, new = release_of(coloured, "blue"), release_of(coloured, "green")

    with coloured.traffic() as traffic:
        outcome = coloured.play("bitflow.lms.rollback", **COLOURS)

    assert outcome.status == 0, outcome.output[-5000:]
    assert f"All traffic went back from {new} to {old}." in outcome.text
    traffic.assert_nobody_noticed(at_least=200)
    assert (state(coloured)["phase"], state(coloured)["live_colour"]) == ("rolled_back", "blue")
    assert_only_works_for(coloured, "blue")


def test_a_release_that_fails_its_smoke_test_gets_no_visitor(coloured):
    live, before = release_of(coloured, "blue"), release_of(coloured, "green")
    coloured.push("v2-again", "v2")
    smoke = [{"url": "http://{colour}.invalid/health", "connect_to": "127.0.0.1:9", "attempts": 1, "consecutive": 1}]

    with coloured.traffic() as traffic:
        outcome = coloured.play("deploy.yml", lms_version="v2-again", lms_traffic_smoke=smoke, **COLOURS)

    assert outcome.status != 0
    assert "The smoke test failed" in outcome.text
    assert "was taken back" in outcome.text
    traffic.assert_nobody_noticed(at_least=200)
    assert traffic.releases("api") == {live}
    assert (release_of(coloured, "green"), state(coloured)["live_colour"]) == (before, "blue")


def test_hosts_that_have_got_traffic_meanwhile_are_left_alone(coloured):
    before = release_of(coloured, "green")
    shared = {"weights": {"blue": 50, "green": 50}, "gate": {"consecutive": 1}}

    deployment = coloured.start("deploy.yml", lms_version="v2-again", **COLOURS)
    deployment.wait_for("TASK [prepare | Prepare the backend]")
    coloured.module("lb", "bitflow.lms.nginx_traffic", **shared)
    outcome = deployment.finish()
    coloured.module("lb", "bitflow.lms.nginx_traffic", **{**shared, "weights": {"blue": 100, "green": 0}})

    assert outcome.status != 0
    assert "Green has traffic by now" in outcome.text
    assert release_of(coloured, "green") == before


def test_a_release_whose_hosts_fall_ill_loses_the_traffic_by_itself(coloured):
    live = release_of(coloured, "blue")

    deployment = coloured.start(
        "deploy.yml", lms_version="v2-again", **{**COLOURS, "lms_traffic_steps": [{"weight": 5, "bake": 60}, {"weight": 100, "bake": 1}]}
    )
    wait_until(lambda: state(coloured)["phase"] == "shifting" or deployment.ended, "green has a share", seconds=300)
    coloured.on("app2", "systemctl", "stop", "nginx")
    try:
        outcome = deployment.finish()
    finally:
        coloured.on("app2", "systemctl", "start", "nginx")

    assert outcome.status != 0
    assert "green is not ready" in outcome.text
    assert (state(coloured)["phase"], state(coloured)["live_colour"]) == ("rolled_back", "blue")
    assert release_of(coloured, "blue") == live
    assert coloured.ask("/version")["release"] == live


def test_the_next_run_goes_on_where_one_was_killed(coloured):
    steps = {**COLOURS, "lms_traffic_steps": [{"weight": 25, "bake": 20}, {"weight": 100, "bake": 1}]}
    coloured.push("v2-third", "v2")

    with coloured.traffic() as traffic:
        deployment = coloured.start("deploy.yml", lms_version="v2-third", **steps)
        wait_until(lambda: state(coloured)["phase"] == "shifting" or deployment.ended, "green has a share", seconds=300)
        deployment.kill()
        outcome = coloured.play("deploy.yml", lms_version="v2-third", **steps)

    assert outcome.status == 0, outcome.output[-5000:]
    traffic.assert_nobody_noticed(at_least=400)
    assert (state(coloured)["phase"], state(coloured)["live_colour"]) == ("retained", "green")
    assert_only_works_for(coloured, "green")


def test_status_says_in_words_where_the_traffic_is(coloured):
    outcome = coloured.play("bitflow.lms.switch_traffic", traffic_action="status", **COLOURS)

    assert outcome.status == 0, outcome.output[-5000:]
    assert "all traffic is on green; blue is kept for the way back" in outcome.text
    assert set(outcome.changed.values()) == {0}


def test_the_hosts_become_one_group_again(coloured):
    outcome = coloured.play("bitflow.lms.provision")
    assert outcome.status == 0, outcome.output[-5000:]
    release = coloured.deploy("v1")

    assert coloured.live_release() == release
    for host in HOSTS.values():
        wait_until(lambda host=host: coloured.processes(host)["workers"], f"workers on {host}", seconds=60)
