"""What an operator notices of changes of a server, for both flavours. Each test starts with what the one before it left."""

from __future__ import annotations

import pytest
from checks import answers, said
from servers import PORT, Server

# The first one was a replica at first, and the tests of replicas come before these.
testinfra_hosts = ["lms-mysql-trixie", "lms-mysql-sid"]

SETTINGS = {"general_log": True, "init_connect": "SET @it = 'a # \"test\"'"}
REPLICA = {"host": "192.0.2.1", "user": "replication", "password": "test"}
REQUEST = "cd /etc/ssl/test && openssl req -x509 -newkey rsa:2048 -nodes -days 30 -keyout key.pem -out certificate.pem"
CERTIFICATE = {"mysql_tls_certificate": "/etc/ssl/test/certificate.pem", "mysql_tls_key": "/etc/ssl/test/key.pem"}


@pytest.fixture
def server(host):
    return Server(host)


@pytest.fixture(scope="module")
def certificate(host):
    """Sign a certificate that the server can read, and have a key that it cannot."""
    host.check_output(f"mkdir -p /etc/ssl/test && {REQUEST} -subj /CN=first 2>&1 && cp key.pem root.pem && chown mysql key.pem")
    host.check_output("chmod 400 /etc/ssl/test/*.pem && chmod 444 /etc/ssl/test/certificate.pem")


def test_what_contradicts_itself_is_refused_before_the_first_change(host, server):
    if not server.mariadb:
        pytest.skip("does not differ between the flavours")
    user = {"name": "exporter", "hosts": ["192.0.2.1"]}
    refused = {
        "flavour": ({"mysql_flavour": "mysql"}, "mysql_flavour is mysql, but this host has MariaDB:"),
        "key": ({"mysql_tls_key": "/etc/ssl/test/key.pem"}, "mysql_tls_certificate and mysql_tls_key belong together:"),
        "tls": ({"mysql_tls_required": True}, "mysql_tls_required needs mysql_tls_certificate:"),
        "address": ({"mysql_listen_addresses": ["192.0.2.7"]}, "mysql_listen_addresses has 192.0.2.7, which this host does not have:"),
        "share": ({"mysql_memory_share": 2}, "mysql_memory_share is 2"),
        "root": ({"mysql_users": [{"name": "root", "hosts": ["localhost"]}]}, "mysql_users cannot have root:"),
        "socket": ({"mysql_users": [user]}, "mysql_users gives exporter no password:"),
        "empty": ({"mysql_users": [{**user, "password": ""}]}, "mysql_users gives exporter an empty password."),
        "number": ({"mysql_replica_of": REPLICA}, "mysql_server_id is 1, as it is on every server that is given none"),
        "password": ({"mysql_replica_of": {"host": "192.0.2.1", "user": "test"}, "mysql_server_id": 2}, "mysql_replica_of needs password."),
        "log": (
            {"mysql_replica_of": REPLICA, "mysql_server_id": 2, "mysql_binlog_enabled": False},
            "mysql_replica_of needs mysql_binlog_enabled:",
        ),
    }

    answer = answers(host, "mysql", {name: variables for name, (variables, _message) in refused.items()})

    for name, (_variables, message) in refused.items():
        assert message in answer[name].failure
        assert answer[name].changed == 0


@pytest.mark.usefixtures("certificate")
def test_what_the_server_would_not_take_is_refused_before_it_lands(host, server):
    before = host.check_output("md5sum %s", server.configuration), server.started()
    refused = {
        "unknown": ({"mysql_settings": {"nonsense": 90}}, "unknown variable 'nonsense=90'"),
        "abridged": ({"mysql_settings": {"max_connection": 90}}, "unknown "),
        "innodb": ({"mysql_settings": {"innodb_flush_method": "FAST"}}, "FAST"),
        "number": ({"mysql_settings": {"innodb_buffer_pool_size": "12Q"}}, "Unknown suffix 'Q'"),
        "boolean": ({"mysql_settings": {"slow_query_log": "perhaps"}}, "perhaps"),
        "name": ({"mysql_settings": {"port; skip": 1}}, "is not the name of a setting"),
        "certificate": (
            {**CERTIFICATE, "mysql_tls_key": "/etc/ssl/test/root.pem"},
            "cannot use mysql_tls_certificate /etc/ssl/test/certificate.pem with mysql_tls_key /etc/ssl/test/root.pem: PermissionError",
        ),
    }
    flavour = {"mysql_flavour": "mariadb" if server.mariadb else "mysql"}

    answer = answers(host, "mysql", {name: {**flavour, **variables} for name, (variables, _message) in refused.items()}, tasks="configure")

    for name, (_variables, message) in refused.items():
        assert message in answer[name].failure
        assert answer[name].changed == 0
    assert (host.check_output("md5sum %s", server.configuration), server.started()) == before
    assert server.tcp("SELECT 1").stdout == "1\n"


def test_without_the_guard_the_server_does_not_start(host, server):
    host.check_output("cp --preserve %s /var/tmp/good.cnf", server.configuration)
    host.check_output("echo 'innodb_flush_method = FAST' >> %s", server.configuration)
    try:
        assert host.run(f"systemctl restart {server.service}").rc != 0
        assert server.tcp("SELECT 1").rc != 0
    finally:
        host.check_output("cp --preserve /var/tmp/good.cnf %s", server.configuration)
        host.check_output(f"systemctl reset-failed {server.service}; systemctl restart {server.service}")
    assert server.tcp("SELECT 1").stdout == "1\n"


def test_what_can_change_while_the_server_runs_is_set_and_the_rest_waits_where_a_restart_is_forbidden(server):
    before = server.started()
    # As it is after a run that was killed between writing and setting.
    server.root("SET GLOBAL max_connections = 70; SET GLOBAL slow_query_log = 'OFF'")

    run = server.converge(mysql_settings={**SETTINGS, "back_log": 77}, mysql_restart_enabled=False)

    assert "waits for a restart, which mysql_restart_enabled forbids: back_log cannot change while it runs." in said(run)
    # What was taken away returns to its default.
    assert [server.variable(name) for name in ("max_connections", "slow_query_log")] == ["151", "ON"]
    assert server.variable("back_log") != "77"
    assert server.started() == before


def test_a_restart_that_is_due_is_made_where_it_is_allowed_and_its_reason_said(server):
    before = server.started()

    run = server.apply("service", mysql_settings={**SETTINGS, "back_log": 77})

    assert "is restarted: back_log cannot change while it runs." in said(run)
    assert server.variable("back_log") == "77"
    assert server.started() != before


@pytest.mark.usefixtures("certificate")
def test_tls_is_required_and_a_renewed_certificate_is_taken_up_by_a_reload(host, server):
    run = server.converge(**CERTIFICATE, mysql_tls_required=True)
    assert run.returncode == 0, said(run)

    assert server.tcp("SELECT 1").stdout == "1\n"
    assert "secure" in server.tcp("SELECT 1", options=server.without_tls).stderr

    def shown():
        return host.check_output(
            f"openssl s_client -starttls mysql -connect 127.0.0.1:{PORT} </dev/null 2>/dev/null | openssl x509 -noout -subject"
        )

    assert "first" in shown()
    before = server.started()
    host.check_output(f"{REQUEST} -subj /CN=second 2>&1 && systemctl reload {server.service}")
    assert "second" in shown()
    assert server.started() == before


def test_a_user_that_changes_is_changed_and_strangers_go(host, server):
    server.root("CREATE USER 'reports'@'198.51.100.9'; CREATE USER ''@'localhost'; CREATE DATABASE test")
    users = [{"name": "reports", "hosts": ["localhost"], "password": "a canary's song", "tls_required": True, "grants": []}]

    run = server.apply("databases", mysql_users=users)

    assert run.returncode == 0, said(run)
    assert "canary" not in said(run) + host.check_output("journalctl --no-pager --output=cat")
    assert server.root("SELECT host, ssl_type FROM user WHERE user = 'reports'") == "localhost\tANY"
    assert "ON `reports`" not in server.root("SHOW GRANTS FOR 'reports'@'localhost'")
    assert server.tcp("SELECT 1", "reports", "a canary's song", "").stdout == "1\n"
    assert server.tcp("SELECT 1", "reports", "another test", "").rc != 0
    assert server.root("SELECT count(*) FROM user WHERE user = '' AND host <> ''") == "0"
    assert "test" not in server.root("SHOW DATABASES").split()
