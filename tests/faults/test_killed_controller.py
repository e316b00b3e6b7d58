"""The control host dies, at each step of a deployment that changes something: the way out is to deploy again, and nothing else."""

from __future__ import annotations

import os

from environment import APPLICATION_HOSTS
from injection import Fault, load, record_steps, service, start_with

# A deployment that dies late takes nearly as long as one that does not: "all" for every step, or how many of them, evenly spread.
KILLS = os.environ.get("LMS_FAULT_KILLS", "8")


def spread(steps: list[dict], wanted: str) -> list[dict]:
    """Return so many of the steps, the first and the last among them."""
    count = len(steps) if wanted == "all" else min(int(wanted), len(steps))
    return [steps[round(place * (len(steps) - 1) / max(count - 1, 1))] for place in range(count)]


def test_a_deployment_killed_at_any_step_harms_nobody_and_the_next_one_gets_further(environment):
    steps = spread(record_steps(environment, lms_version=environment.other_version()), KILLS)

    for step in steps:
        # Within the step: one host has ended it, the other may be at it still, and goes on with it when nobody listens any more.
        version = environment.other_version()
        with load(environment) as visitors:
            deployment, struck = start_with(environment, Fault(number=step["number"], moment="within"), lms_version=version)
            outcome = deployment.finish()
        assert struck.exists(), f"It did not get as far as {step}:\n{outcome.output[-4000:]}"
        assert "fatal:" not in outcome.output, (step, outcome.output[-4000:])
        visitors.assert_nobody_noticed()
        # Each host serves one release, whole.
        service(environment)

    with load(environment) as visitors:
        release = environment.deploy(environment.other_version())
    visitors.assert_nobody_noticed()
    assert {link for seen in service(environment).values() for link in seen["links"].values()} == {release}
    left = {
        host: environment.on(host, "find", "/srv/lms/backend", "/srv/lms/frontend", "-name", "*.partial*") for host in APPLICATION_HOSTS
    }
    assert set(left.values()) == {""}, left
