"""What an operator notices of a replica, for both flavours."""

from __future__ import annotations

import time

import pytest
import testinfra
from checks import converge, said
from servers import PORT, Server

testinfra_hosts = ["lms-mysql-trixie-replica", "lms-mysql-sid-replica"]


@pytest.fixture
def replica(host):
    return Server(host)


@pytest.fixture
def source(host):
    name = host.backend.get_hostname().removesuffix("-replica")
    return Server(testinfra.get_host(f"docker://{name}"))


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


def test_the_password_of_replication_is_in_no_log(host, replica):
    log = host.check_output("cat %s", f"/var/lib/mysql/{replica.variable('general_log_file').rpartition('/')[2]}")

    assert "SHOW REPLICA STATUS" in log
    assert "for 'replicas'" not in log.replace("\\'", "'")


def test_a_replica_that_stopped_is_started_and_catches_up(host, replica, source):
    replica.root("STOP REPLICA")
    source.tcp("INSERT INTO replicated VALUES ('second')")

    run = converge(host)

    assert run.returncode == 0, run.stdout
    assert arrives(replica, "SELECT count(*) FROM replicated", "2\n")


def test_a_source_that_does_not_let_it_in_is_named_with_the_reason(host, replica):
    run = converge(host, mysql_replica_of={"host": "source", "port": PORT, "user": "nobody", "password": "a canary's song"})

    assert "does not replicate source: " in said(run)
    assert "Access denied for user 'nobody'" in said(run).replace("\\'", "'").replace("''", "'")
    assert "canary" not in said(run)

    assert converge(host).returncode == 0


def test_the_number_of_a_source_is_refused_for_a_replica(host):
    run = converge(host, mysql_server_id=1)

    assert "mysql_server_id is 1, as it is on every server that is given none" in said(run)
