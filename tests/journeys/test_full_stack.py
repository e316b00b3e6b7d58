"""The journeys of an operator and of the visitors, on four hosts: nothing is lost, nobody notices, and every error says the way out.

The tests run in this order, each from where the one before it left the environment.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from environment import APPLICATION_HOSTS, DOMAIN, PARTS, PROJECT, Environment, Outcome, Running, Traffic, difference, run, wait_until

TAKEN_OVER = "The lease was taken from another owner: /srv/lms was held by "
CONTRACT = "2026_06_15_000001_drop_name_from_students_table"


def assert_only_this_release_runs(environment: Environment, release: str) -> None:
    """Assert by /proc that the release is live everywhere, and that no process of another one is left on any host."""
    assert environment.live_release() == release
    for host in APPLICATION_HOSTS:

        def runs_only_the_release(host=host) -> bool:
            seen = environment.processes(host)
            frontends = list(seen["frontends"]) == seen["live_frontends"] != []
            return frontends and seen["fpm"] == [release] and set(seen["workers"]) == {release}

        wait_until(runs_only_the_release, f"{host} runs {release} only: {environment.processes(host)}", seconds=60)


def assert_served(traffic: Traffic, *lived: dict[str, str], api: set[str]) -> None:
    """Assert that exactly these releases of the API and these components of the front ends answered the visitors."""
    assert traffic.releases("api") == api
    for frontend in ("student", "admin"):
        assert traffic.releases(frontend) == {components[frontend] for components in lived}, frontend


def assert_marked_failed(environment: Environment, release: str) -> None:
    """Assert that every host noted that the release failed, in each part that had come as far as to have it."""
    for host in APPLICATION_HOSTS:
        found = {part: environment.releases(host, part).get(release, {}).get("state") for part in PARTS}
        assert found in ({"backend": "failed", "frontend": "failed"}, {"backend": "failed", "frontend": None}), (host, found)


def assert_report(outcome: Outcome, *sentences: str) -> None:
    """Assert that the report of a run that ended well says so, and that its own watch saw no failure."""
    assert outcome.status == 0, outcome.output[-5000:]
    wanted = ["Visitors: 0 of ", " requests failed; ", *sentences]
    assert [sentence for sentence in wanted if sentence not in outcome.text] == [], outcome.output[-5000:]
    assert "The watch ended early" not in outcome.text


def columns_of(environment: Environment, table: str) -> list[str]:
    return environment.in_database(f"select column_name from information_schema.columns where table_name = '{table}'")  # noqa: S608


# Again and only looking


def test_provisioning_again_changes_nothing(environment):
    outcome = environment.play("bitflow.lms.provision")

    assert outcome.status == 0, outcome.output[-5000:]
    assert outcome.changed == {"app1": 0, "app2": 0, "data": 0, "lb": 0, "localhost": 0}


@pytest.mark.usefixtures("unchanged")
def test_deploying_the_same_version_again_changes_nothing_and_says_so(environment):
    outcome = environment.play("deploy.yml", lms_version="v1")

    assert outcome.status == 0, outcome.output[-5000:]
    assert outcome.changed == {"app1": 0, "app2": 0, "localhost": 0}
    assert "nothing to deploy" in outcome.text


@pytest.mark.usefixtures("unchanged")
def test_check_mode_plans_a_deployment_and_only_looks(environment):
    outcome = environment.play("deploy.yml", "--check", "--diff", lms_version="v2")

    assert outcome.status == 0, outcome.output[-5000:]
    assert min(outcome.changed["app1"], outcome.changed["app2"]) > 0


@pytest.mark.usefixtures("unchanged")
def test_check_mode_of_provisioning_only_looks(environment):
    outcome = environment.play("bitflow.lms.provision", "--check", "--diff")

    assert outcome.status == 0, outcome.output[-5000:]
    assert set(outcome.changed.values()) == {0}


# From version to version


@contextmanager
def job_that_a_worker_cannot_end(environment: Environment):
    """Hold a row of the database, so that the worker that takes the job stays at it; give the worker's host and the row."""
    # One of the sample data: the visitors' own are computed in this very second, and computing them again would write nothing.
    enrolment = environment.ask("/api/enrolments?student_id=1")["data"][-1]
    hold = f"begin; select id from enrolments where id = {enrolment['id']} for update; select pg_sleep(120)"  # noqa: S608
    argv = ["docker", "exec", "-e", "PGAPPNAME=journey", f"{environment.name}-data", "runuser", "-u", "postgres", "--", "psql", "lms"]
    with subprocess.Popen([*argv, "--command", hold], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        try:
            held = "select 1 from pg_stat_activity where application_name = 'journey' and wait_event = 'PgSleep'"
            wait_until(lambda: environment.in_database(held), "the row is held")
            # Nothing of the row changes here, so that this request does not wait for it; the job will.
            body = {"completed_lessons": enrolment["completed_lessons"]}
            environment.ask(f"/api/enrolments/{enrolment['id']}", "PATCH", json=body)
            waiting = "select host(client_addr) from pg_stat_activity where wait_event_type = 'Lock' and query ilike 'update%enrolments%'"
            address = wait_until(lambda: environment.in_database(waiting), "a worker has taken the job")[0]
            yield APPLICATION_HOSTS[int(address.rpartition(".")[2]) - 11], enrolment
        finally:
            environment.in_database("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'journey'")


def test_a_new_version_goes_live_and_nobody_notices(environment):
    old, before = environment.live_release(), environment.components()

    with environment.traffic() as traffic:
        deployment = environment.start("deploy.yml", lms_version="v2")
        deployment.wait_for("TASK [prepare | Run the pending migrations]")
        with job_that_a_worker_cannot_end(environment) as (host, enrolment):
            units = ("systemctl", "show", "lms-queue@*", "--property=ActiveState")
            wait_until(lambda: "deactivating" in environment.on(host, *units), f"the worker on {host} is asked to end", interval=0.1)
        outcome = deployment.finish()

    new = environment.live_release()
    assert new != old
    assert_report(outcome, f"was deployed as release {new}.", "2026_02_09_000001_add_level_to_courses_table (expand)")
    traffic.assert_nobody_noticed(at_least=400)
    assert_served(traffic, before, environment.components(), api={old, new})
    assert {environment.releases(host, part)[new]["metadata"]["version"] for host in APPLICATION_HOSTS for part in PARTS} == {"v2"}
    assert {environment.ask("/version")["release"] for _time in range(8)} == {new}
    assert_only_this_release_runs(environment, new)
    assert "level" in columns_of(environment, "courses")
    done = environment.ask("/api/enrolments?student_id=1")["data"][-1]
    assert (done["id"], done["progress_computed_at"] != enrolment["progress_computed_at"]) == (enrolment["id"], True)
    assert environment.in_database("select count(*) from failed_jobs") == ["0"]


@pytest.mark.parametrize("host", APPLICATION_HOSTS)
def test_each_release_has_an_opcache_of_its_own_with_room(environment, host):
    socket = "/srv/lms/backend/current/run/fpm.sock"
    status = environment.module(host, "bitflow.lms.opcache", socket=socket, group="lms")

    assert (status["enabled"], status["full"], status["statistics"]["oom_restarts"]) == (True, False, 0)
    # Visitors found everything compiled, and nothing of an earlier release takes room.
    assert status["statistics"]["hits"] > 20 * status["statistics"]["misses"]


def test_the_traffic_notices_a_careless_switch(environment):
    careless = (
        "cd /srv/lms/backend && target=$(readlink current) && end=$(($(date +%s) + 3)) &&"
        " while [ $(date +%s) -lt $end ]; do rm current; ln -s $target current; done"
    )

    with environment.traffic() as traffic:
        running = [environment.start_on(host, "sh", "-c", careless) for host in APPLICATION_HOSTS]
        assert [one.finish().status for one in running] == [0, 0]

    assert traffic.result["failed"] > 0


def test_a_rollback_goes_unnoticed_as_well(environment):
    live, before = environment.live_release(), environment.components()

    with environment.traffic() as traffic:
        outcome = environment.play("bitflow.lms.rollback")

    previous = environment.live_release()
    assert_report(outcome, f"Every host went back from {live} to {previous}.")
    traffic.assert_nobody_noticed(at_least=200)
    assert_served(traffic, before, environment.components(), api={live, previous})
    assert_only_this_release_runs(environment, previous)


# Versions that must not go live


def test_an_unhealthy_candidate_is_stopped_before_anybody_sees_it(environment):
    live = environment.live()

    with environment.traffic() as traffic:
        outcome = environment.play("deploy.yml", lms_version="v3-broken")

    assert outcome.status != 0
    assert environment.live() == live
    traffic.assert_nobody_noticed(at_least=200)
    release = environment.live_release()
    assert_served(traffic, environment.components(), api={release})
    said = r"v3-broken \((?P<release>\S+)\) was not deployed: .*? on app[12]: .*?search.*?nothing has to be cleaned up"
    message = re.search(said, outcome.text)
    assert message, outcome.output[-5000:]
    assert_marked_failed(environment, message["release"])
    assert_only_this_release_runs(environment, release)


def test_after_an_unhealthy_candidate_the_next_deployment_works(environment):
    old = environment.live_release()

    with environment.traffic() as traffic:
        new = environment.deploy(environment.other_version())

    assert new != old
    traffic.assert_nobody_noticed(at_least=200)
    assert_only_this_release_runs(environment, new)


def test_a_rollback_does_not_go_to_the_release_that_somebody_went_back_from(environment):
    """Of v1, v2, back to v1, v2 again: the release before the live one is the first v2, and the way back is v1."""
    releases = environment.releases("app1", "backend")
    live = environment.live_release()
    lived = sorted((record["sequence"], name) for name, record in releases.items() if record["activated_at"] and name != live)
    good, left = (name for _sequence, name in lived[-2:])
    assert releases[left]["metadata"]["version"] == releases[live]["metadata"]["version"]

    outcome = environment.play("bitflow.lms.rollback")

    assert_report(outcome, f"Every host went back from {live} to {good}.")
    assert_only_this_release_runs(environment, good)


def test_a_release_that_fails_after_the_switch_is_taken_back_on_every_host(environment):
    live = environment.live()

    with environment.traffic() as traffic:
        outcome = environment.play("deploy.yml", lms_version="ill-once-live")

    assert outcome.status != 0
    assert environment.live() == live
    traffic.assert_nobody_noticed(at_least=200)
    message = re.search(r"(?P<release>\d{14}-\w{7}) was taken back: .*? on app2: .*?nothing has to be cleaned up", outcome.text)
    assert message, outcome.output[-5000:]
    assert "ill-once-live (" in outcome.text
    assert "was taken back after the switch." in outcome.text
    assert "Why: " in outcome.text
    assert "Visitors: 0 of " in outcome.text
    # It was live: on the first host, until the second one failed.
    assert traffic.releases("api") == {environment.live_release(), message["release"]}
    assert_marked_failed(environment, message["release"])
    assert_only_this_release_runs(environment, environment.live_release())


@pytest.fixture
def _without_bad_migration(environment):
    """Undo what the migration before the bad one did, so that the test can run again."""
    yield
    environment.in_database("alter table courses drop column if exists language; delete from migrations where migration like '2026_03%'")


@pytest.mark.usefixtures("_without_bad_migration")
def test_a_migration_that_breaks_keeps_the_old_version_live(environment):
    live = environment.live()

    with environment.traffic() as traffic:
        outcome = environment.play("deploy.yml", lms_version="v4-bad-migration")

    assert outcome.status != 0
    assert environment.live() == live
    traffic.assert_nobody_noticed(at_least=200)
    said = (
        r"v4-bad-migration \((?P<release>\S+)\) was not deployed: .*? on app1: "
        r"Migration 2026_03_10_000002_add_credits_to_courses_table failed: The credits of the courses are not known \(\S+\)\. .*?"
        r"Applied before it: [^.]*2026_03_10_000001_add_language_to_courses_table\. .*?nothing has to be cleaned up"
    )
    message = re.search(said, outcome.text)
    assert message, outcome.output[-5000:]
    assert_marked_failed(environment, message["release"])
    assert_only_this_release_runs(environment, environment.live_release())


# The control host dies


def assert_next_one_takes_over(environment: Environment, version: str) -> str:
    """Deploy, and assert that it did not wait for the lease of the run that died; return the release."""
    outcome = environment.play("deploy.yml", lms_version=version)
    assert outcome.status == 0, outcome.output[-5000:]
    assert TAKEN_OVER in outcome.text
    return environment.live_release()


def test_a_deployment_killed_between_two_hosts_is_mended_by_the_next_one(environment):
    old, version = environment.live_release(), environment.other_version()

    with environment.traffic() as traffic:
        deployment = environment.start("deploy.yml", lms_version=version)
        deployment.wait_for("PLAY [Switch to the release, one host before the others]", times=2)
        deployment.kill()
        between = environment.live()
        # Visitors meet both releases, also a page of one and its assets on the other's host.
        traffic.wait_for_more(300)
        new = assert_next_one_takes_over(environment, version)

    assert {between["backend on app2"], between["frontend on app2"]} == {old}
    assert {between["backend on app1"], between["frontend on app1"]}.isdisjoint({old})
    assert new != old
    traffic.assert_nobody_noticed(at_least=500)
    assert_only_this_release_runs(environment, new)


def test_a_deployment_mends_a_host_whose_live_release_is_ill(environment):
    version = environment.other_version()
    environment.on("app2", "rm", "/srv/lms/backend/current/app/Http/Controllers/HealthController.php")
    # It has the file in its OPcache.
    environment.on("app2", "systemctl", "restart", f"lms-fpm@{environment.live_release()}.service")

    new = environment.deploy(version)

    assert {environment.ask("/health")["status"] for _time in range(4)} == {"ok"}
    assert_only_this_release_runs(environment, new)


# Two at once


def test_of_two_deployments_at_once_one_goes_on_and_the_other_says_who_holds_the_hosts(environment):
    version = environment.other_version()
    environment.push("at-the-same-time", version)
    directories = [f"/srv/lms/{place}" for place in ("backend/releases", "frontend/releases", "frontend/components")]

    first = environment.start("deploy.yml", lms_version=version)
    first.wait_for("TASK [prepare | Run the pending migrations]")
    # It waits for this worker, so that the second one is sure to meet it.
    with job_that_a_worker_cannot_end(environment):
        before = {host: environment.on(host, "ls", *directories) for host in APPLICATION_HOSTS}
        second = environment.play("deploy.yml", lms_version="at-the-same-time")
        after = {host: environment.on(host, "ls", *directories) for host in APPLICATION_HOSTS}
        assert not first.ended, first.output[-3000:]
    outcome = first.finish()

    assert_report(outcome, f"was deployed as release {environment.live_release()}.")
    assert second.status != 0
    said = (
        r"at-the-same-time \((?P<release>\S+)\) was not deployed: lock \| Let nobody else change the first host on app1: "
        rf"/srv/lms is held by .*? for the deployment of {version} \(release {environment.live_release()}\) since "
    )
    message = re.search(said, second.text)
    assert message, second.output[-5000:]
    assert "Here that is -e lms_lock_steal=force." in second.text
    assert after == before
    known = {name for host in APPLICATION_HOSTS for part in PARTS for name in environment.releases(host, part)}
    assert message["release"] not in known
    assert_only_this_release_runs(environment, environment.live_release())


# What a version does not change


def test_only_the_front_end_that_changed_starts_anew(environment):
    environment.push("student-only", environment.version(), "frontend/apps/student/app/page.js", "Here is where", "This is where")
    old, before = environment.live_release(), environment.components()
    admin = {host: environment.processes(host)["frontends"][f"admin-{before['admin']}"] for host in APPLICATION_HOSTS}

    with environment.traffic() as traffic:
        new = environment.deploy("student-only")

    after = environment.components()
    assert (after["admin"], after["student"] != before["student"]) == (before["admin"], True)
    assert {host: environment.processes(host)["frontends"][f"admin-{after['admin']}"] for host in APPLICATION_HOSTS} == admin
    traffic.assert_nobody_noticed(at_least=200)
    assert_served(traffic, before, after, api={old, new})
    assert_only_this_release_runs(environment, new)


# Migrations that take something away


@pytest.fixture(scope="module")
def _with_names_again(environment):
    """Give the students the column back that other versions read."""
    yield
    environment.in_database(
        "alter table students add column if not exists name varchar(255) not null default '';"
        "update students set name = trim(given_name || ' ' || family_name) where name = ''"
    )


@pytest.mark.usefixtures("_with_names_again")
def test_a_migration_that_takes_something_away_needs_an_approval_by_name(environment):
    for version in ("v5-expand", "v6-backfill"):
        environment.deploy(version)
    old, live = environment.live_release(), environment.live()

    refused = environment.play("deploy.yml", lms_version="v7-contract")
    between = environment.live(), "name" in columns_of(environment, "students")
    with environment.traffic() as traffic:
        approved = environment.play("deploy.yml", lms_version="v7-contract", lms_migrations_approved=CONTRACT)

    assert refused.status != 0
    assert f"{CONTRACT}: contract" in refused.text
    assert f"Or approve it by name: -e lms_migrations_approved={CONTRACT}" in refused.text
    assert between == (live, True)
    assert_report(approved, f"{CONTRACT} (contract)")
    traffic.assert_nobody_noticed(at_least=200)
    new = environment.live_release()
    assert new != old
    assert "name" not in columns_of(environment, "students")
    assert_only_this_release_runs(environment, new)


@pytest.mark.usefixtures("_with_names_again", "unchanged")
def test_a_rollback_across_it_is_refused_and_says_the_way_out(environment):
    refused = environment.play("bitflow.lms.rollback")
    approved = environment.play("bitflow.lms.rollback", "--check", lms_rollback_contract_approved=True)

    assert refused.status != 0
    assert f"is refused: since then {CONTRACT} took something away that the older code may need." in refused.text
    assert "set -e lms_rollback_contract_approved=true." in refused.text
    assert set(refused.changed.values()) == {0}
    assert approved.status == 0, approved.output[-5000:]


# Bad input


def copy_of_inventory(tmp_path: Path, file: str, pattern: str, replacement: str) -> Path:
    """Return a copy of the inventory in which something is wrong."""
    copy = tmp_path / "inventory"
    shutil.copytree(PROJECT / "inventories" / "dev", copy, ignore=shutil.ignore_patterns(".secrets"))
    text = (copy / file).read_text()
    (copy / file).write_text(re.sub(pattern, replacement, text, flags=re.MULTILINE))
    assert (copy / file).read_text() != text
    return copy


def assert_refused(running: Running, *sentences: str) -> None:
    """Assert that a program ended with one clear error."""
    outcome = running.finish()
    assert outcome.status != 0, outcome.output[-3000:]
    assert [sentence for sentence in sentences if sentence not in outcome.text] == [], outcome.output[-3000:]
    assert "Traceback" not in outcome.output


@pytest.mark.usefixtures("unchanged")
class TestBadInput:
    """Each is refused with one error that says what is wrong, before anything that serves has changed."""

    def test_environment_that_does_not_exist(self, environment):
        refused = environment.start("deploy.yml", inventory="inventories/nowhere")

        assert_refused(refused, "no host in the groups", "Name an environment's directory with -i, such as -i inventories/dev")

    def test_group_without_hosts(self, environment, tmp_path):
        inventory = copy_of_inventory(tmp_path, "hosts.yml", r"^    database:\n      hosts:\n        data:\n", "    database:\n")

        assert_refused(environment.start("deploy.yml", inventory=inventory), "no host in the group database.")

    def test_required_variable_that_is_missing(self, environment, tmp_path):
        inventory = copy_of_inventory(tmp_path, "group_vars/all/lms.yml", r"^lms_frontends:(\n  .*)+", "")

        refused = environment.start("deploy.yml", inventory=inventory)

        assert_refused(refused, "The variable lms_frontends is not set.", "group_vars/all/lms.yml")

    def test_repository_that_does_not_exist(self, environment):
        refused = environment.start("deploy.yml", lms_repository="/nowhere/lms.git")

        assert_refused(refused, "/nowhere/lms.git")

    def test_version_that_does_not_exist(self, environment):
        refused = environment.start("deploy.yml", lms_version="v22")

        assert_refused(refused, "v22", "v2")

    def test_source_without_artisan(self, environment):
        assert_refused(environment.start("deploy.yml", lms_version="no-artisan"), "backend at ", "artisan")

    def test_source_for_another_php(self, environment):
        assert_refused(environment.start("deploy.yml", lms_version="php-too-old"), "The application requires PHP >=99, and the host has 8.")

    def test_disk_without_room(self, environment):
        refused = environment.start("deploy.yml", lms_version="v1", lms_free_bytes_required=10**15)

        assert_refused(refused, "The host is not ready for a deployment.", " left for /srv/lms, and a deployment needs 1000 TB.")


@pytest.fixture
def _without_app2(environment):
    """Stop a host, and start it again at the end."""
    run("docker", "stop", f"{environment.name}-app2")
    yield
    outcome = environment.demo("hosts")
    assert outcome.status == 0, outcome.output


@pytest.mark.usefixtures("_without_app2", "unchanged")
def test_a_host_that_cannot_be_reached_ends_the_deployment_before_it_changes_another(environment):
    outcome = environment.play("deploy.yml", lms_version="v1")

    assert outcome.status != 0
    assert outcome.changed["app1"] == 0
    assert re.search(r"fatal: \[app2\]: .*? is not running", outcome.text), outcome.output[-3000:]


def test_a_host_that_comes_back_serves_the_same_release(environment):
    release = environment.live_release()

    sites = {"api": "8000/health", "student": "3001/api/health", "admin": "3002/api/health"}
    curl = ["docker", "exec", f"{environment.name}-app2", "curl", "--silent", "--fail", "--connect-to", "::127.0.0.1:"]

    def serves() -> bool:
        urls = [f"http://{site}.{DOMAIN}:{place}" for site, place in sites.items()]
        return all(subprocess.run([*curl, url], capture_output=True, check=False).returncode == 0 for url in urls)

    wait_until(serves, "app2 serves again")
    assert_only_this_release_runs(environment, release)


def test_a_port_that_is_taken_is_refused_with_the_way_out(environment):
    other = {"LMS_NAME": f"{environment.name}-port", "LMS_NETWORK": "172.29.87"}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        outcome = environment.demo("hosts", LMS_PORT=port, **other)
    removed = environment.demo("down", **other)

    assert outcome.status != 0
    assert f"port {port} of this machine is taken. Choose another one: LMS_PORT=" in outcome.text
    assert removed.status == 0, removed.output
    assert difference([], run("docker", "ps", "--all", "--quiet", "--filter", f"label=bitflow-lms={other['LMS_NAME']}").split()) == []
