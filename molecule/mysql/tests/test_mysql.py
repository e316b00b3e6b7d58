"""What an operator notices of the mysql role, for both flavours."""

from __future__ import annotations

import pytest
from checks import access_to, converge, listening_addresses, said, service_is_up
from servers import PORT, Server

testinfra_hosts = ["lms-mysql-bookworm", "lms-mysql-trixie", "lms-mysql-sid"]

SETTINGS = {"max_connections": 90, "general_log": True, "init_connect": "SET @it = 'a # \"test\"'"}
LARAVEL = "ONLY_FULL_GROUP_BY,STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"


@pytest.fixture
def server(host):
    return Server(host)


@pytest.fixture
def once_a_flavour(host):
    """Leave the older MariaDB out of a slow test of what does not differ between the two."""
    if host.backend.get_hostname() == "lms-mysql-bookworm":
        pytest.skip("does not differ between the versions of MariaDB: tested on trixie")


@pytest.fixture
def certificate(host):
    """Sign a certificate that the server can read, and return what makes the role use it."""
    host.check_output(
        "mkdir -p /etc/ssl/test && cd /etc/ssl/test && openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=first"
        " -keyout key.pem -out certificate.pem 2>&1 && chown mysql key.pem && chmod 400 key.pem"
    )
    return {"mysql_tls_certificate": "/etc/ssl/test/certificate.pem", "mysql_tls_key": "/etc/ssl/test/key.pem"}


def test_the_server_runs_and_starts_at_boot(host, server):
    assert service_is_up(host, server.service)


def test_the_wanted_addresses_are_served_and_no_other_port(host, server):
    name = host.backend.get_hostname()

    assert listening_addresses(host, PORT) == {"127.0.0.1" if name == "lms-mysql-bookworm" else "0.0.0.0"}  # noqa: S104 - what the test sets
    assert [listening_addresses(host, port) for port in (3306, 33060)] == [set(), set()]


def test_a_user_comes_in_with_its_password_and_can_do_what_it_was_granted(server):
    answer = server.tcp("CREATE TABLE IF NOT EXISTS lesson (title text); SELECT current_user()")

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


def test_the_log_holds_the_statements_of_the_role_but_no_password(host, server):
    log = host.check_output("cat %s", f"/var/lib/mysql/{server.variable('general_log_file').rpartition('/')[2]}")

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
    assert ask("SELECT * FROM lms.lesson").rc != 0
    assert "Access denied" in host.run(f"runuser --user nobody -- {server.client} --user=prometheus --execute=%s", "SELECT 1").stderr


def test_the_unit_is_shut_in(host, server):
    assert host.run(f"systemd-analyze security --threshold=20 {server.service}").rc == 0
    assert access_to(host, "/etc/systemd/system/" + server.service + ".service.d/lms.conf") == ("root", "root", "0644")


def test_what_the_server_lacks_is_set_without_a_restart(server, once_a_flavour):
    before = server.started()
    # As it is after a run that was killed between writing and setting.
    server.root("SET GLOBAL max_connections = 70; SET GLOBAL slow_query_log = 'OFF'")

    run = server.apply("service")

    assert run.returncode == 0, run.stdout
    assert (server.variable("max_connections"), server.variable("slow_query_log")) == ("90", "ON")
    assert server.started() == before


def test_a_setting_that_is_taken_away_returns_to_its_default(server, host, once_a_flavour):
    # As it is where the server never read the setting, but was told while it ran.
    server.root("SET GLOBAL max_connections = 90")
    before = server.started()

    run = converge(host, mysql_settings={name: value for name, value in SETTINGS.items() if name != "max_connections"})

    assert run.returncode == 0, run.stdout
    assert server.variable("max_connections") == "151"
    assert server.started() == before
    assert [server.apply(tasks).returncode for tasks in ("configure", "service")] == [0, 0]
    assert server.variable("max_connections") == "90"


def test_a_setting_that_needs_a_restart_waits_for_one_or_gets_it(server, once_a_flavour):
    before = server.started()
    settings = {**SETTINGS, "back_log": 77}

    # The file is written, and nobody tells the server.
    assert server.apply("configure", mysql_settings=settings).returncode == 0
    forbidden = server.apply("service", mysql_settings=settings, mysql_restart_enabled=False)

    assert "waits for a restart, which mysql_restart_enabled forbids: back_log cannot change while it runs." in said(forbidden)
    assert (server.variable("back_log") == "77", server.started()) == (False, before)

    allowed = server.apply("service", mysql_settings=settings)

    assert "is restarted: back_log cannot change while it runs." in said(allowed)
    assert server.variable("back_log") == "77"
    assert server.started() != before
    assert [server.apply(tasks).returncode for tasks in ("configure", "service")] == [0, 0]


@pytest.mark.parametrize(
    ("settings", "said_of_it"),
    [
        ({"nonsense": 90}, "unknown variable 'nonsense=90'"),
        ({"max_connection": 90}, "unknown "),
        ({"innodb_flush_method": "FAST"}, "FAST"),
        ({"innodb_buffer_pool_size": "12Q"}, "Unknown suffix 'Q'"),
        ({"slow_query_log": "perhaps"}, "perhaps"),
        ({"port; skip": 1}, "is not the name of a setting"),
    ],
)
def test_a_setting_that_the_server_would_not_take_is_refused_before_it_lands(server, host, settings, said_of_it, once_a_flavour):
    before = host.check_output("md5sum %s", server.configuration), server.started()

    run = server.apply("configure", mysql_settings=settings)

    assert run.returncode != 0
    assert said_of_it in said(run).replace("\\'", "'").replace("''", "'")
    assert (host.check_output("md5sum %s", server.configuration), server.started()) == before
    assert server.tcp("SELECT 1").stdout == "1\n"


def test_without_the_guard_the_server_does_not_start(server, host, once_a_flavour):
    host.check_output("cp --preserve %s /var/tmp/good.cnf", server.configuration)
    host.check_output("echo 'innodb_flush_method = FAST' >> %s", server.configuration)
    try:
        assert host.run(f"systemctl restart {server.service}").rc != 0
        assert server.tcp("SELECT 1").rc != 0
    finally:
        host.check_output("cp --preserve /var/tmp/good.cnf %s", server.configuration)
        host.check_output(f"systemctl reset-failed {server.service}; systemctl restart {server.service}")
    assert server.tcp("SELECT 1").stdout == "1\n"


def test_tls_is_required_and_a_renewed_certificate_is_taken_up_by_a_reload(server, host, certificate, once_a_flavour):
    secure = {**certificate, "mysql_tls_required": True}
    assert [server.apply(tasks, **secure).returncode for tasks in ("configure", "service")] == [0, 0]

    without = "--skip-ssl" if server.mariadb else "--ssl-mode=DISABLED"
    assert "secure" in server.tcp("SELECT 1", options=without).stderr

    def shown():
        return host.check_output(
            f"openssl s_client -starttls mysql -connect 127.0.0.1:{PORT} </dev/null 2>/dev/null | openssl x509 -noout -subject"
        )

    assert "first" in shown()
    before = server.started()
    host.check_output(
        "cd /etc/ssl/test && openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=second -keyout key.pem -out certificate.pem"
        f" 2>&1 && systemctl reload {server.service}"
    )
    assert "second" in shown()
    assert server.started() == before
    assert [server.apply(tasks).returncode for tasks in ("configure", "service")] == [0, 0]


def test_a_certificate_that_the_server_cannot_use_is_refused(server, host, certificate, once_a_flavour):
    host.check_output("chown root /etc/ssl/test/key.pem")
    before = host.check_output("md5sum %s", server.configuration)

    run = server.apply("configure", **certificate)

    assert "The user mysql cannot use mysql_tls_certificate /etc/ssl/test/certificate.pem with mysql_tls_key" in said(run)
    assert "Permission denied" in said(run)
    assert host.check_output("md5sum %s", server.configuration) == before


def test_what_contradicts_itself_is_refused_before_anything_is_changed(server, once_a_flavour):
    other = "mysql" if server.mariadb else "mariadb"
    users = [{"name": "root", "hosts": ["localhost"]}, {"name": "exporter", "hosts": ["192.0.2.1"]}]

    run = server.apply("refuse", mysql_flavour=other, mysql_users=users, mysql_tls_required=True, mysql_memory_share=2)

    assert run.returncode != 0
    assert [
        message in said(run)
        for message in (
            f"mysql_flavour is {other}, but this host has {'MariaDB' if server.mariadb else 'MySQL'}:",
            "mysql_tls_required needs mysql_tls_certificate:",
            "mysql_memory_share is 2",
            "mysql_users cannot have root:",
            "mysql_users gives exporter no password:",
        )
    ] == [True] * 5


def test_a_user_that_changes_is_changed_and_its_password_is_in_no_output(server, host, once_a_flavour):
    server.root("CREATE USER 'reports'@'198.51.100.9'")
    users = [{"name": "reports", "hosts": ["localhost"], "password": "a canary's song", "tls_required": True, "grants": []}]

    run = server.apply("databases", mysql_users=users)

    assert run.returncode == 0, run.stdout
    assert "canary" not in said(run)
    assert "canary" not in host.check_output("journalctl --no-pager --output=cat")
    assert server.root("SELECT host, ssl_type FROM user WHERE user = 'reports'") == "localhost\tANY"
    assert "ON `reports`" not in server.root("SHOW GRANTS FOR 'reports'@'localhost'")
    assert server.apply("databases").returncode == 0
    assert server.tcp("SELECT 1", "reports", "another test", "reports").stdout == "1\n"
