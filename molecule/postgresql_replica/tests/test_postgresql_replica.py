"""What an operator notices of a streaming replica."""

from __future__ import annotations

import os

import pytest
from checks import access_to, address_of, apply_role, eventually, said
from testinfra.utils.ansible_runner import AnsibleRunner

INVENTORY = os.environ["MOLECULE_INVENTORY_FILE"]
PASSWORD = 'it\'s: a \\ "test"'
VERSION = "17"
SERVICE = f"postgresql@{VERSION}-main"
DATA = f"/var/lib/postgresql/{VERSION}/main"

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


def replica_of(primary):
    """Return the variables of the replica that follow from facts."""
    return {"postgresql_version": VERSION, "postgresql_replica_of": {"address": address_of(primary), "slot": "one"}}


def arrives(primary, host, text):
    """Write on the primary, and wait until it is on the replica."""
    administrator(primary, "CREATE TABLE IF NOT EXISTS lesson (title text)", "lms")
    administrator(primary, INSERT.format(text), "lms")
    assert eventually(lambda: administrator(host, COUNT.format(text), "lms") == "1")


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
    assert access_to(host, f"/etc/postgresql/{VERSION}/main/replication.pgpass") == ("postgres", "postgres", "0600")
    assert PASSWORD not in host.check_output("ps -e -o args")
    for place in (DATA, "/etc/postgresql", "/var/log/postgresql"):
        assert host.run("grep --recursive --fixed-strings --files-with-matches %s %s", PASSWORD, place).stdout == ""
    assert PASSWORD not in host.check_output("journalctl --output cat")


def test_the_replica_follows_again_after_a_restart_of_either(host, primary):
    host.check_output(f"systemctl restart {SERVICE}")
    arrives(primary, host, "after the replica")
    primary.check_output(f"systemctl restart {SERVICE}")
    arrives(primary, host, "after the primary")


def test_the_run_says_how_far_the_replica_lags(host, primary):
    run = apply_role(host, "postgresql", tasks="follow", **replica_of(primary))

    assert run.returncode == 0, said(run)
    assert "The replica streams and lags" in said(run)


def test_a_replica_that_lags_too_far_is_an_error(host, primary):
    administrator(host, "SELECT pg_wal_replay_pause()")
    try:
        administrator(primary, "CREATE TABLE bulk AS SELECT md5(n::text) FROM generate_series(1, 20000) n", "lms")

        run = apply_role(host, "postgresql", tasks="follow", **replica_of(primary), postgresql_replica_lag_allowed=1000)

        assert "more than postgresql_replica_lag_allowed (1000)." in said(run)
    finally:
        administrator(host, "SELECT pg_wal_replay_resume()")


def test_a_password_that_was_changed_by_hand_is_set_back_and_the_replica_returns(host, primary):
    administrator(primary, "ALTER USER replicator PASSWORD 'changed by hand'")
    administrator(primary, "SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
    replicas = [{"name": "one", "address": address_of(host)}]

    run = apply_role(primary, "postgresql", tasks="databases", postgresql_replicas=replicas)

    assert run.returncode == 0, said(run)
    assert eventually(lambda: administrator(primary, "SELECT state FROM pg_stat_replication") == "streaming")


def test_a_copy_that_is_refused_says_what_the_primary_must_have(host):
    nobody = {"address": "127.0.0.1", "slot": "one"}

    run = apply_role(host, "postgresql", tasks="copy", postgresql_version=VERSION, postgresql_replica_of=nobody)

    assert "127.0.0.1 was not copied:" in said(run)
    assert "It must have slot one" in said(run)
    assert PASSWORD not in said(run)
    assert host.service(SERVICE).is_running


def test_a_promoted_server_keeps_its_data_until_they_are_moved_away(host, primary):
    administrator(host, "SELECT pg_promote()")
    administrator(host, INSERT.format("written after the promotion"), "lms")

    refused = apply_role(host, "postgresql", tasks="replica", **replica_of(primary))

    assert f"{DATA} holds data of its own and is not a replica." in said(refused)
    assert administrator(host, COUNT.format("written after the promotion"), "lms") == "1"

    # What the guard prevents: the copy has no such row. An earlier copy was cut off.
    host.check_output(f"systemctl stop {SERVICE} && mv {DATA} /var/lib/postgresql/{VERSION}/aside")
    host.check_output(f"mkdir {DATA}.copy && touch {DATA}.copy/half")
    run = apply_role(host, "postgresql", **replica_of(primary))

    assert run.returncode == 0, said(run)
    arrives(primary, host, "copied anew")
    assert administrator(host, COUNT.format("written after the promotion"), "lms") == "0"
    assert not host.file(f"{DATA}.copy").exists
