"""One deployment after the other under a steady load, and rollbacks between them: every request is accounted for, beside a control run.

LMS_LOAD_DEPLOYMENTS, LMS_LOAD_ROLLBACKS and LMS_LOAD_RATE make it the long proof: 20, 5 and 150 requests a second.
"""

from __future__ import annotations

import json
import os

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


def test_no_request_fails_however_often_a_version_is_deployed(environment):
    with load(environment, MIX, RATE) as control:
        control.wait_for_more(round(CONTROL_SECONDS * RATE))

    served, caches = set(), []
    with load(environment, MIX, RATE) as visitors:
        for number in range(DEPLOYMENTS):
            served.add(environment.deploy(environment.other_version()))
            visitors.wait_for_more(round(3 * RATE))
            caches.append(opcache(environment))
            if number < ROLLBACKS:
                outcome = environment.play("bitflow.lms.rollback")
                assert outcome.status == 0, outcome.output[-4000:]
                served.add(environment.live_release())

    figures = {"control": control.summary, "deployments": visitors.summary, "releases": sorted(served), "opcache": caches}
    (LOGS / "many-deployments.json").write_text(json.dumps(figures, indent=2))
    control.assert_nobody_noticed()
    visitors.assert_nobody_noticed()
    # Every version that was live has answered, and no answer came from two.
    assert len(visitors.summary["releases"]) > 1, visitors.summary
    assert {link for seen in service(environment).values() for link in seen["links"].values()} == {environment.live_release()}
    # OPcache begins anew with each release: the last one has as much room as the first one, and compiles no more.
    assert [cache["full"] for cache in caches] == [False] * DEPLOYMENTS
    assert caches[-1]["used"] < 1.2 * caches[0]["used"], caches
    assert caches[-1]["misses"] < 1.2 * caches[0]["misses"], caches


def opcache(environment) -> dict[str, int | bool]:
    """Return what the live PHP-FPM of the first host says about its OPcache."""
    socket = "/srv/lms/backend/current/run/fpm.sock"
    status = environment.module("app1", "bitflow.lms.opcache", socket=socket, group="lms")
    return {"full": status["full"], "used": status["memory"]["used"], "misses": status["statistics"]["misses"]}


def test_no_process_of_an_earlier_release_is_left(environment):
    live = environment.live_release()

    def instances(host: str) -> list[str]:
        units = environment.on(host, "systemctl", "list-units", "--plain", "--no-legend", "lms-fpm@*").splitlines()
        return [line.split()[0] for line in units]

    for host in APPLICATION_HOSTS:
        wait_until(lambda host=host: instances(host) == [f"lms-fpm@{live}.service"], f"{host} runs one instance: {instances(host)}")
