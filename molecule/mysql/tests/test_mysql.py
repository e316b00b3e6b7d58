"""What an operator notices of the mysql role, for both flavours and on replicas too: no test of this file changes a setting."""

from __future__ import annotations

import pytest
from checks import access_to, listening_addresses, service_is_up
from servers import PORT, Server

LARAVEL = "ONLY_FULL_GROUP_BY,STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"


@pytest.fixture
def server(host):
    return Server(host)


def test_the_server_runs_and_starts_at_boot(host, server):
    assert service_is_up(host, server.service)


def test_the_wanted_addresses_are_served_and_no_other_port(host, server):
    assert listening_addresses(host, PORT) == {"127.0.0.1" if server.replicates else "0.0.0.0"}  # noqa: S104 - what the test sets
    assert [listening_addresses(host, port) for port in (3306, 33060)] == [set(), set()]


def test_a_user_comes_in_with_its_password_and_can_do_what_it_was_granted(server):
    answer = server.tcp("CREATE TEMPORARY TABLE lesson (title text); SELECT current_user()")

    assert answer.stdout == "lms@localhost\n", answer.stderr


def test_a_wrong_password_is_refused(server):
    assert "Access denied for user 'lms'" in server.tcp("SELECT 1", password="wrong").stderr


def test_another_user_cannot_read_the_database(server):
    assert server.tcp("SELECT 1", "reports", "another test", "reports").stdout == "1\n"
    assert "Access denied for user 'reports'" in server.tcp("SELECT 1", "reports", "another test", "lms").stderr


def test_root_comes_in_over_the_socket_alone(server):
    assert server.root("SELECT current_user()") == "root@localhost"
    assert ["Access denied" in server.tcp("SELECT 1", "root", password, "").stderr for password in ("", "root")] == [True, True]
    assert server.root("SELECT host FROM user WHERE user = 'root'") == "localhost"


def test_nobody_comes_in_without_a_name_and_there_is_no_database_for_all(server):
    assert server.root("SELECT count(*) FROM user WHERE user = '' AND host <> ''") == "0"
    assert "test" not in server.root("SHOW DATABASES").split()


def test_everything_is_utf8_and_a_smiley_comes_back(server):
    assert server.root("SELECT @@GLOBAL.character_set_server, @@GLOBAL.collation_server") == "utf8mb4\tutf8mb4_unicode_ci"
    collations = "SELECT schema_name, default_collation_name FROM information_schema.schemata WHERE schema_name IN ('lms', 'reports')"
    assert sorted(server.root(collations).splitlines()) == ["lms\tutf8mb4_unicode_ci", "reports\tutf8mb4_bin"]

    query = "CREATE TEMPORARY TABLE t (c text); INSERT INTO t VALUES ('\N{GRINNING FACE}'); SELECT hex(c) FROM t"
    assert server.tcp(query, options="--default-character-set=utf8mb4").stdout == "F09F9880\n"


def test_data_is_judged_as_in_laravels_sessions(server):
    assert set(server.tcp("SELECT @@sql_mode").stdout.strip().split(",")) == set(LARAVEL.split(","))
    assert "Data too long" in server.tcp("CREATE TEMPORARY TABLE t (c varchar(1)); INSERT INTO t VALUES ('ab')").stderr


def test_settings_are_there_as_they_were_given(server):
    assert server.variable("max_connections") == "90"
    assert server.tcp("SELECT @it").stdout == 'a # "test"\n'


def test_the_cache_is_the_share_of_the_memory(host, server):
    memory = int(host.check_output("awk '/^MemTotal:/ { print $2 }' /proc/meminfo")) // 1024

    assert int(server.variable("innodb_buffer_pool_size")) == max(int(memory * 0.02 / 128), 1) * 128 * 1024**2


def test_the_log_holds_the_statements_of_the_role_but_no_password(server):
    if server.replicates:
        pytest.skip("has its databases and users from another server")
    log = server.log()

    assert "CREATE DATABASE `reports`" in log
    assert "CREATE USER 'reports'@'localhost'" in log
    assert "another test" not in log


def test_slow_queries_are_logged_and_the_log_is_rotated(host, server):
    server.tcp("SELECT sleep(1.1), 'first'")
    host.check_output("logrotate --force %s", "/etc/logrotate.d/mariadb" if server.mariadb else "/etc/logrotate.d/mysql-server")
    server.tcp("SELECT sleep(1.1), 'second'")

    assert "'first'" in host.check_output("zcat --force /var/log/mysql/slow.log.1*")
    log = host.check_output("cat /var/log/mysql/slow.log")
    assert "'second'" in log
    assert "'first'" not in log


def test_the_binary_log_serves_replicas_and_a_restore_to_a_point_in_time(server):
    names = ("log_bin", "binlog_format", "binlog_expire_logs_seconds", "sync_binlog")

    assert [server.variable(name) for name in names] == ["ON", "ROW", "604800", "1"]
    assert server.variable("gtid_strict_mode" if server.mariadb else "gtid_mode") == "ON"


def test_an_exporter_sees_the_state_and_no_data(host, server):
    host.check_output("id prometheus >/dev/null 2>&1 || useradd --system prometheus")

    def ask(query):
        return host.run(f"runuser --user prometheus -- {server.client} --batch --skip-column-names --execute=%s", query)

    assert "Threads_connected" in ask("SHOW GLOBAL STATUS").stdout
    assert ask("SHOW REPLICA STATUS").rc == 0
    assert ask("SELECT count(*) FROM performance_schema.global_status").rc == 0
    assert "command denied" in ask("SELECT * FROM lms.lesson").stderr
    assert "Access denied" in host.run(f"runuser --user nobody -- {server.client} --user=prometheus --execute=%s", "SELECT 1").stderr


def test_the_unit_is_shut_in(host, server):
    assert host.run(f"systemd-analyze security --threshold=20 {server.service}").rc == 0
    assert access_to(host, "/etc/systemd/system/" + server.service + ".service.d/lms.conf") == ("root", "root", "0644")
