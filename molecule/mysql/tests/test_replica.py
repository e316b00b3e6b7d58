"""What an operator notices of a replica, for both flavours. It is promoted at the end."""

from __future__ import annotations

import time

import pytest
import testinfra
from checks import said
from servers import PORT, SOURCES, Server

testinfra_hosts = list(SOURCES)

ALL = [{"database": "own", "privileges": ["ALL"]}]


@pytest.fixture
def replica(host):
    return Server(host)


@pytest.fixture
def source(replica):
    return Server(testinfra.get_host(f"docker://{SOURCES[replica.name]}"))


def arrives(replica, query, wanted):
    """Say whether the replica gives the answer within some seconds."""
    for _try in range(20):
        if replica.tcp(query).stdout == wanted:
            return True
        time.sleep(0.5)
    return False


def test_what_is_written_to_the_source_arrives_with_the_databases_and_users_of_before(replica, source):
    source.tcp("CREATE TABLE IF NOT EXISTS replicated (at text); DELETE FROM replicated; INSERT INTO replicated VALUES ('first')")

    assert arrives(replica, "SELECT at FROM replicated", "first\n")
    assert "reports" in replica.root("SHOW DATABASES").split()


def test_nobody_but_an_administrator_writes_to_the_replica(replica):
    assert "read-only" in replica.tcp("CREATE TABLE mine (at text)").stderr


def test_it_replicates_by_global_transaction_identifiers(replica):
    status = replica.root("SHOW REPLICA STATUS", options="--vertical")

    assert ("Using_Gtid: Slave_Pos" if replica.mariadb else "Auto_Position: 1") in status


def test_the_password_of_replication_is_in_no_log(replica):
    log = replica.log()

    assert "SHOW REPLICA STATUS" in log
    assert "for 'replicas'" not in log.replace("\\'", "'")


def test_a_replica_that_stopped_is_started_and_catches_up(replica, source):
    replica.root("STOP REPLICA")
    source.tcp("INSERT INTO replicated VALUES ('second')")

    run = replica.apply("replica")

    assert run.returncode == 0, said(run)
    assert arrives(replica, "SELECT count(*) FROM replicated", "2\n")


def test_a_source_that_does_not_let_it_in_is_named_with_the_reason(replica, source):
    run = replica.apply("replica", mysql_replica_of={"host": "source", "port": PORT, "user": "nobody", "password": "a canary's song"})

    assert "does not replicate source: " in said(run)
    assert "Access denied for user 'nobody'" in said(run).replace("\\'", "'").replace("''", "'")
    assert "canary" not in said(run)

    # With the right credentials it goes on where it was.
    source.tcp("INSERT INTO replicated VALUES ('third')")
    mended = replica.apply("replica")
    assert mended.returncode == 0, said(mended)
    assert arrives(replica, "SELECT count(*) FROM replicated", "3\n")


# The tests of changes go on with what this one leaves.
def test_a_promoted_replica_has_databases_and_users_of_its_own(replica):
    replica.root("STOP REPLICA; RESET REPLICA ALL")

    run = replica.converge(
        mysql_databases=[{"name": "own"}], mysql_users=[{"name": "own", "hosts": ["localhost"], "password": "a third test", "grants": ALL}]
    )

    assert run.returncode == 0, said(run)
    assert replica.tcp("CREATE TABLE mine (at text)", "own", "a third test", "own").rc == 0
    assert replica.tcp("SELECT count(*) FROM replicated").stdout == "3\n"
    assert replica.root("SHOW REPLICA STATUS") == ""
