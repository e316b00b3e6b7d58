"""One deployment after the other under a steady load, and rollbacks between them: every request is accounted for, beside a control run.

LMS_LOAD_DEPLOYMENTS, LMS_LOAD_ROLLBACKS and LMS_LOAD_RATE make it the long proof: 20, 5 and 150 requests a second.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from environment import APPLICATION_HOSTS, LOGS, wait_until
from injection import ENROLMENT, MARKS, load, service

DEPLOYMENTS = int(os.environ.get("LMS_LOAD_DEPLOYMENTS", "2"))
ROLLBACKS = int(os.environ.get("LMS_LOAD_ROLLBACKS", "1"))
RATE = float(os.environ.get("LMS_LOAD_RATE", "20"))
CONTROL_SECONDS = 20

# Mostly what costs little, so that the rate can be high where all hosts share two processors; every kind of request is among them.
MIX = [
    {"site": "api", "path": "/version", "weight": 30, "marks": MARKS},
    {"site": "api", "path": "/api/courses", "weight": 4, "marks": MARKS},
    {"site": "api", "path": "/api/enrolments", "weight": 2, "method": "POST", "body": ENROLMENT, "status": [200, 201], "marks": MARKS},
    {"site": "api", "path": "/api/slow?ms=700", "weight": 2, "takes": 0.7, "marks": MARKS},
    {"site": "student", "path": "/", "weight": 1},
    {"site": "admin", "path": "/", "weight": 1},
]


@pytest.fixture(scope="module")
def figures(environment) -> dict[str, Any]:
    """Deploy and roll back again and again; return what visitors saw, without that and with it, and what OPcache said each time."""
    with load(environment, MIX, RATE) as control:
        control.wait_for_more(round(CONTROL_SECONDS * RATE))

    served, caches = set(), []
    with load(environment, MIX, RATE, seconds=900 + 120 * (DEPLOYMENTS + ROLLBACKS)) as visitors:
        for number in range(DEPLOYMENTS):
            served.add(environment.deploy(environment.other_version()))
            visitors.wait_for_more(round(3 * RATE))
            caches.append(opcache(environment))
            if number < ROLLBACKS:
                outcome = environment.play("bitflow.lms.rollback")
                assert outcome.status == 0, outcome.output[-4000:]
                served.add(environment.live_release())
    found = {"control": control, "visitors": visitors, "releases": served, "opcache": caches}
    shown = {**found, "control": control.summary, "visitors": visitors.summary, "releases": sorted(served)}
    (LOGS / "many-deployments.json").write_text(json.dumps(shown, indent=2))
    return found


def opcache(environment) -> dict[str, int | bool]:
    """Return what the live PHP-FPM of the first host says about its OPcache."""
    socket = "/srv/lms/backend/current/run/fpm.sock"
    status = environment.module("app1", "bitflow.lms.opcache", socket=socket, group="lms")
    return {"full": status["full"], "used": status["memory"]["used"], "misses": status["statistics"]["misses"]}


def test_no_request_fails_however_often_a_version_is_deployed(figures):
    figures["control"].assert_nobody_noticed()
    figures["visitors"].assert_nobody_noticed()
    # Every version that was live has answered, and no answer came from two.
    assert len(figures["visitors"].summary["releases"]) > 1, figures["visitors"].summary


def test_opcache_not_full_after_20_deploys(figures):
    """It begins anew with each release: the last one has as much room as the first one, and compiles no more."""
    first, *_between, last = figures["opcache"]

    assert [cache["full"] for cache in figures["opcache"]] == [False] * DEPLOYMENTS
    assert last["used"] < 1.2 * first["used"]
    assert last["misses"] < 1.2 * first["misses"]


@pytest.mark.usefixtures("figures")
def test_stale_after_switch_zero(environment):
    """What answers is what the links say, on every host, a moment after the switch as well as later."""
    release = environment.deploy(environment.other_version())
    revision = service(environment)["app1"]["revision"]

    marks = [environment.ask("/version")["revision"] for _time in range(40)]

    assert {link for seen in service(environment).values() for link in seen["links"].values()} == {release}
    assert set(marks) == {revision}


def test_no_process_of_an_earlier_release_is_left(environment):
    live = environment.live_release()

    def instances(host: str) -> list[str]:
        units = environment.on(host, "systemctl", "list-units", "--plain", "--no-legend", "lms-fpm@*").splitlines()
        return [line.split()[0] for line in units]

    for host in APPLICATION_HOSTS:
        wait_until(lambda host=host: instances(host) == [f"lms-fpm@{live}.service"], f"{host} runs one instance: {instances(host)}")
