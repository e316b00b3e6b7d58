"""Workers and maintenance on the four hosts, after the journeys of test_full_stack: each test leaves the environment as it found it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import pytest
import urllib3
from environment import APPLICATION_HOSTS, DOMAIN, Environment, wait_until
from test_full_stack import job_that_a_worker_cannot_end

ROOT = "/srv/lms/backend"
SECRET, OTHER_SECRET = "journey-secret-1", "journey-secret-2"


def workers(environment: Environment, host: str, **options: Any) -> dict[str, Any]:
    return environment.module(host, "bitflow.lms.laravel_workers", path=ROOT, units=["lms-workers.target"], **options)


def switch(environment: Environment, host: str, release: str) -> None:
    health = {"health_uri": "/health", "health_host": f"api.{DOMAIN}", "web_address": "127.0.0.1:8000"}
    environment.module(host, "bitflow.lms.laravel_release", path=ROOT, name="lms", release=release, state="active", **health)


@contextmanager
def another_release(environment: Environment, host: str) -> Iterator[str]:
    """Let another release be the live one of a host, whose workers run on in the first; give it, and undo all of it."""
    live = environment.live_release()
    other = max(name for name, record in environment.releases(host, "backend").items() if record["state"] == "superseded")
    switch(environment, host, other)
    try:
        yield other
    finally:
        switch(environment, host, live)
        workers(environment, host)
        environment.module(host, "bitflow.lms.laravel_release", path=ROOT, name="lms", state="settled")


def releases_of(found: list[dict[str, Any]]) -> set[str]:
    """Return the releases that the queue workers run."""
    return {process["release"] for process in found if process["kind"] == "queue"}


def test_workers_follow_the_link_and_proc_proves_it(environment):
    live = environment.live_release()

    with another_release(environment, "app1") as other:
        with pytest.raises(AssertionError, match=rf"process.* do(es)? not run release {other}"):
            workers(environment, "app1", state="checked")
        result = workers(environment, "app1")
        again = workers(environment, "app1")

    assert (releases_of(result["before"]), releases_of(result["after"])) == ({live}, {other})
    assert {process["proof"] for process in result["after"] if process["kind"] == "queue"} == {"file"}
    assert (result["changed"], result["leftovers"], result["killed"]) == (True, [], [])
    assert (again["changed"], again["restarted"]) == (False, [])


def test_worker_that_somebody_started_by_hand_is_ended_after_its_job(environment):
    script = f"{ROOT}/releases/{environment.live_release()}/artisan"

    def by_hand() -> list[dict[str, Any]]:
        found = workers(environment, "app1", state="checked", leftovers_allowed=True)["after"]
        return [process for process in found if process["kind"] == "queue" and process["unit"] is None]

    with another_release(environment, "app1") as other:
        old = environment.start_on("app1", "runuser", "-u", "lms", "--", "php", script, "queue:work")
        started = wait_until(by_hand, "the worker runs")
        result = workers(environment, "app1")
        assert old.finish().status == 0

    assert [(process["current"], process["proof"]) for process in started] == [(False, "file")]
    assert started[0]["pid"] in {process["pid"] for process in result["before"]}
    assert (result["commands"], result["leftovers"], releases_of(result["after"])) == (["queue:restart"], [], {other})


def test_job_longer_than_the_wait_is_named_and_not_lost(environment):
    failed = environment.in_database("select count(*) from failed_jobs")

    with job_that_a_worker_cannot_end(environment) as job, another_release(environment, job[0]):
        host, enrolment = job
        with pytest.raises(AssertionError, match=r"after 3 s: pid \d+ \(lms-queue@\d\.service, .*Raise wait above the longest job"):
            workers(environment, host, wait=3)
        environment.in_database("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'journey'")
        result = workers(environment, host)

    assert (result["leftovers"], result["killed"]) == ([], [])
    done = environment.ask("/api/enrolments?student_id=1")["data"][-1]
    assert (done["id"], done["progress_computed_at"] != enrolment["progress_computed_at"]) == (enrolment["id"], True)
    assert environment.in_database("select count(*) from failed_jobs") == failed


# Maintenance


def answer(environment: Environment, path: str = "/", **headers: str) -> Any:
    """Ask the API through the load balancer and return its answer, whatever it is."""
    name = f"api.{DOMAIN}"
    with urllib3.HTTPSConnectionPool(
        "127.0.0.1", environment.port, ca_certs=str(environment.authority), server_hostname=name, assert_hostname=name, retries=False
    ) as pool:
        return pool.request("GET", path, headers={"Host": f"{name}:{environment.port}", **headers}, redirect=False)


def statuses(environment: Environment, path: str = "/", **headers: str) -> set[int]:
    """Return the statuses of enough answers to have met every host."""
    return {answer(environment, path, **headers).status for _time in range(8)}


def cookie_of(environment: Environment, secret: str) -> str:
    """Return the cookie that a secret brings."""
    return answer(environment, f"/{secret}").headers["Set-Cookie"].partition(";")[0]


def maintenance(environment: Environment, mode: str, **variables: Any) -> Any:
    outcome = environment.play("bitflow.lms.maintenance", lms_maintenance=mode, **variables)
    assert outcome.status == 0, outcome.output[-5000:]
    return outcome


@pytest.fixture
def down(environment: Environment) -> Iterator[Any]:
    """Have the API in maintenance, and open it at the end."""
    yield maintenance(environment, "down", lms_maintenance_secret=SECRET)
    maintenance(environment, "up")
    assert statuses(environment) == {200}


@contextmanager
def watched(environment: Environment) -> Iterator[set[int]]:
    """Ask all the time, and give the statuses of the answers."""
    seen: set[int] = set()
    ended = Event()

    def ask() -> None:
        while not ended.is_set():
            seen.add(answer(environment).status)

    thread = Thread(target=ask)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def test_maintenance_shows_a_page_while_health_stays_green(environment, down):
    page = answer(environment)

    assert (page.status, page.headers["Retry-After"]) == (503, "60")
    assert b"Service Unavailable" in page.data
    assert (statuses(environment), statuses(environment, "/health")) == ({503}, {200})
    assert statuses(environment, Cookie=cookie_of(environment, SECRET)) == {200}
    assert SECRET not in down.output


@pytest.mark.usefixtures("down")
def test_maintenance_again_changes_nothing_and_another_secret_opens_nothing_meanwhile(environment):
    cookie = cookie_of(environment, SECRET)

    again = maintenance(environment, "down", lms_maintenance_secret=SECRET)
    with watched(environment) as seen:
        changed = maintenance(environment, "down", lms_maintenance_secret=OTHER_SECRET)

    assert [again.changed[host] for host in APPLICATION_HOSTS] == [0, 0]
    assert [changed.changed[host] for host in APPLICATION_HOSTS] == [1, 1]
    assert seen == {503}
    assert statuses(environment, Cookie=cookie) == {503}
    assert statuses(environment, Cookie=cookie_of(environment, OTHER_SECRET)) == {200}


@pytest.mark.usefixtures("down")
def test_deployment_and_rollback_during_maintenance_open_nothing(environment):
    live = environment.live_release()

    with watched(environment) as seen:
        new = environment.deploy(environment.other_version())
        rollback = environment.play("bitflow.lms.rollback")

    assert rollback.status == 0, rollback.output[-5000:]
    assert (new != live, environment.live_release()) == (True, live)
    assert seen == {503}
    assert statuses(environment, "/health") == {200}


def test_maintenance_without_a_mode_is_refused(environment):
    outcome = environment.play("bitflow.lms.maintenance")

    assert outcome.status != 0
    assert "The variable lms_maintenance is not set. Set it to down or up: -e lms_maintenance=down." in outcome.text
    assert set(re.findall(r"changed=(\d+)", outcome.output)) == {"0"}
