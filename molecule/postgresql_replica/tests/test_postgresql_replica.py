"""What an operator notices of a streaming replica."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from checks import access_to, said
from testinfra.utils.ansible_runner import AnsibleRunner

INVENTORY = os.environ["MOLECULE_INVENTORY_FILE"]
PASSWORD = 'it\'s: a \\ "test"'
SERVICE = "postgresql@17-main"
DATA = "/var/lib/postgresql/17/main"

INSERT = "INSERT INTO lesson VALUES ('{}')"
COUNT = "SELECT count(*) FROM lesson WHERE title = '{}'"

# Each test looks at both hosts and runs once.
testinfra_hosts = ["lms-postgresql_replica-replica"]


@pytest.fixture(scope="module")
def primary():
    return AnsibleRunner(INVENTORY).get_host("lms-postgresql_replica-primary")


def administrator(host, query, database="postgres"):
    """Return what the administrator on the host is answered."""
    return host.check_output("runuser -u postgres -- psql --tuples-only --no-align -c %s %s", query, database)


def provision(*options, **variables):
    """Apply the role to both hosts once more, with other variables."""
    playbook = str(Path(__file__).parents[1] / "converge.yml")
    arguments = [playbook, f"--inventory={INVENTORY}", f"--extra-vars={json.dumps(variables)}", *options]
    return subprocess.run(["ansible-playbook", *arguments], capture_output=True, text=True, check=False)


def eventually(question, answer, seconds=30):
    """Wait until the question has the answer."""
    end = time.monotonic() + seconds
    while (last := question()) != answer and time.monotonic() < end:
        time.sleep(0.5)
    assert last == answer


def arrives(primary, host, text):
    """Write on the primary, and wait until it is on the replica."""
    administrator(primary, "CREATE TABLE IF NOT EXISTS lesson (title text)", "lms")
    administrator(primary, INSERT.format(text), "lms")
    eventually(lambda: administrator(host, COUNT.format(text), "lms"), "1")


def test_what_is_written_on_the_primary_arrives(host, primary):
    arrives(primary, host, "first")


def test_the_primary_knows_its_replica_and_keeps_what_it_lacks(primary):
    assert administrator(primary, "SELECT application_name, state FROM pg_stat_replication") == "one|streaming"
    assert administrator(primary, "SELECT slot_name, active FROM pg_replication_slots") == "one|t"
    assert administrator(primary, "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_replication USING (pid)") == "t"


def test_the_replica_refuses_to_write(host):
    run = host.run("runuser -u postgres -- psql -c %s lms", INSERT.format("here"))

    assert "read-only transaction" in run.stderr


def test_the_password_is_in_its_private_file_alone(host):
    assert access_to(host, "/etc/postgresql/17/main/replication.pgpass") == ("postgres", "postgres", "0600")
    assert PASSWORD not in host.check_output("ps -e -o args")
    for place in (DATA, "/etc/postgresql", "/var/log/postgresql"):
        assert host.run("grep --recursive --fixed-strings --files-with-matches %s %s", PASSWORD, place).stdout == ""
    assert PASSWORD not in host.check_output("journalctl --output cat")


def test_the_replica_follows_again_after_a_restart_of_either(host, primary):
    host.check_output(f"systemctl restart {SERVICE}")
    arrives(primary, host, "after the replica")
    primary.check_output(f"systemctl restart {SERVICE}")
    arrives(primary, host, "after the primary")


def test_the_run_says_how_far_the_replica_lags():
    run = provision()

    assert run.returncode == 0, said(run)
    assert "The replica streams and lags" in said(run)


def test_a_replica_that_lags_too_far_is_an_error(host, primary):
    administrator(host, "SELECT pg_wal_replay_pause()")
    try:
        administrator(primary, "CREATE TABLE bulk AS SELECT md5(n::text) FROM generate_series(1, 20000) n", "lms")

        run = provision(postgresql_replica_lag_allowed=1000)

        assert "more than postgresql_replica_lag_allowed (1000)." in said(run)
    finally:
        administrator(host, "SELECT pg_wal_replay_resume()")


def test_a_password_that_was_changed_by_hand_is_set_back_and_the_replica_returns(primary):
    administrator(primary, "ALTER USER replicator PASSWORD 'changed by hand'")
    administrator(primary, "SELECT pg_terminate_backend(pid) FROM pg_stat_replication")

    run = provision()

    assert run.returncode == 0, said(run)
    eventually(lambda: administrator(primary, "SELECT state FROM pg_stat_replication"), "streaming")


def test_a_promoted_server_keeps_its_data_until_they_are_moved_away(host, primary):
    administrator(host, "SELECT pg_promote()")
    administrator(host, INSERT.format("written after the promotion"), "lms")

    refused = provision()

    assert f"{DATA} holds data of its own and is not a replica." in said(refused)
    assert administrator(host, COUNT.format("written after the promotion"), "lms") == "1"

    # What the guard prevents: the copy has no such row.
    host.check_output(f"systemctl stop {SERVICE} && mv {DATA} /var/lib/postgresql/17/aside")
    run = provision()

    assert run.returncode == 0, said(run)
    arrives(primary, host, "copied anew")
    assert administrator(host, COUNT.format("written after the promotion"), "lms") == "0"


def test_a_copy_that_was_cut_off_is_made_anew(host, primary):
    host.check_output(f"systemctl stop {SERVICE} && rm -r {DATA} && mkdir {DATA}.copy && touch {DATA}.copy/half")

    run = provision()

    assert run.returncode == 0, said(run)
    arrives(primary, host, "after the cut")
    assert not host.file(f"{DATA}.copy").exists


def test_a_copy_that_is_refused_says_what_the_primary_must_have(host):
    host.check_output(f"systemctl stop {SERVICE} && rm -r {DATA}")
    nobody = {"address": "127.0.0.1", "slot": "one"}
    try:
        run = provision("--limit=lms-postgresql_replica-replica", postgresql_replica_of=nobody)

        assert "127.0.0.1 was not copied:" in said(run)
        assert "It must have slot one" in said(run)
    finally:
        assert provision().returncode == 0
