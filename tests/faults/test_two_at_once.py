"""One deployment at a time: who comes second changes nothing and learns who is first; who is dead or late holds nobody up."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from environment import Environment, wait_until
from injection import assert_deploys, assert_failed, load, service

ROOT = "/srv/lms"
# A run of another control host, of which this one cannot know whether it is alive.
ELSEWHERE = {
    "what": "the deployment of v9",
    "controller": "elsewhere",
    "user": "somebody",
    "process": "a-start a-namespace 1 1",
}


@contextmanager
def lease(environment: Environment, **options):
    """Let somebody else hold a host."""
    environment.module("app1", "bitflow.lms.deploy_lock", path=ROOT, owner="somebody", details=ELSEWHERE, act_as="lms-deploy", **options)
    try:
        yield
    finally:
        environment.module("app1", "bitflow.lms.deploy_lock", path=ROOT, owner="somebody", state="released")


def test_of_two_deployments_at_once_one_wins_and_the_other_names_it(environment):
    version = environment.other_version()

    with load(environment) as visitors:
        running = [environment.start("deploy.yml", lms_version=version) for _time in range(2)]
        winner, loser = sorted((one.finish() for one in running), key=lambda outcome: outcome.status)

    assert winner.status == 0, winner.output[-4000:]
    assert_failed(
        loser,
        rf"on app1: {ROOT} is held by \S+ on \S+ for the deployment of {version} \(release \S+\) since \S+; it expires at",
        r"Wait until it ends\. If it is dead for sure, .*?lms_lock_steal=force",
    )
    visitors.assert_nobody_noticed()
    assert len({link for seen in service(environment).values() for link in seen["links"].values()}) == 1


@pytest.mark.usefixtures("served_as_before")
def test_a_lease_of_another_control_host_ends_a_deployment_before_it_prepares_anything(environment):
    before = environment.releases("app2", "backend")

    with lease(environment):
        outcome = environment.play("deploy.yml", lms_version=environment.other_version())

    assert_failed(outcome, "somebody on elsewhere for the deployment of v9", "lms_lock_steal=force")
    assert environment.releases("app2", "backend") == before


def test_a_lease_of_another_control_host_whose_time_is_over_is_taken(environment):
    with lease(environment, ttl=1):
        status = {"path": ROOT, "state": "status"}
        wait_until(lambda: environment.module("app1", "bitflow.lms.deploy_lock", **status)["holder"]["expired"], "its time is over")
        assert_deploys(environment)
