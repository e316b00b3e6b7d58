"""The control host dies: each host serves one whole version, nobody notices, and the way out is to deploy again, and nothing else."""

from __future__ import annotations

import os

import pytest
from environment import APPLICATION_HOSTS, wait_until
from injection import Fault, assert_deploys, held_table, load, record_steps, service, start_with

BACKEND, FRONTENDS = "bitflow.lms.laravel_release", "bitflow.lms.nextjs_release"
# Within a step, one host has ended it: the other may be at it still, and goes on with it when nobody listens any more.
MOMENTS = {
    "before anybody is kept away": Fault("bitflow.lms.deploy_lock"),
    "with the first host held": Fault("bitflow.lms.deploy_lock", moment="within"),
    "within the preparation of the backend": Fault(BACKEND, {"state": "prepared"}, moment="within"),
    "within the preparation of the front ends": Fault(FRONTENDS, {"state": "prepared"}, moment="within"),
    "between the two parts of the first host": Fault(FRONTENDS, {"state": "active"}),
    "between the two hosts": Fault(BACKEND, {"state": "active"}, time=2),
    "before the clean-up": Fault("bitflow.lms.release", {"state": "pruned"}),
}


def kill(environment, fault: Fault, version: str) -> None:
    """Deploy a version, with a control host that dies; assert that each host serves one release, whole, and that nobody noticed."""
    with load(environment) as visitors:
        deployment, struck = start_with(environment, fault, lms_version=version)
        outcome = deployment.finish()
    assert struck.exists(), f"It did not get as far as {fault}:\n{outcome.output[-4000:]}"
    assert "fatal:" not in outcome.output, (fault, outcome.output[-4000:])
    visitors.assert_nobody_noticed()
    service(environment)


# Each of them but the first begins where the one before it was killed: it takes the lease from a dead run.


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_deployment_killed_harms_nobody_and_the_next_one_gets_further(environment, moment):
    kill(environment, MOMENTS[moment], environment.other_version())


@pytest.mark.usefixtures("without_names")
def test_a_deployment_killed_during_a_migration_harms_nobody(environment):
    with held_table(environment, "students") as waits:
        kill(environment, Fault("bitflow.lms.artisan_migrate", {"state": "migrated"}, moment="while", condition=waits), "v5-expand")

    # The migration, which nobody listens to any more, ends before anybody else may begin.
    status = {"path": "/srv/lms", "state": "status"}
    wait_until(lambda: not environment.module("app1", "bitflow.lms.deploy_lock", **status)["holder"]["at_work"], "it has ended")


@pytest.mark.skipif(os.environ.get("LMS_FAULT_KILLS") != "all", reason="takes half an hour: LMS_FAULT_KILLS=all")
def test_a_deployment_killed_at_any_step_that_changes_something_harms_nobody(environment):
    for step in record_steps(environment, lms_version=environment.other_version()):
        kill(environment, Fault(number=step["number"], moment="within"), environment.other_version())


def test_the_deployment_after_all_that_were_killed_leaves_nothing_of_them(environment):
    assert_deploys(environment)

    left = {
        host: environment.on(host, "find", "/srv/lms/backend", "/srv/lms/frontend", "-name", "*.partial*") for host in APPLICATION_HOSTS
    }
    assert set(left.values()) == {""}, left
