"""What an operator notices of the postgresql role."""

from __future__ import annotations

import pytest
from checks import access_to, apply_role, listening_addresses

PASSWORD = 'it\'s a "test"'


def psql(host, query, password=PASSWORD, user="lms", database="lms", options=""):
    """Run a query over TCP, the password not among the arguments of psql."""
    address = f"host=127.0.0.1 port=5433 user={user} dbname={database} {options}"
    return host.run("PGPASSWORD=%s psql --no-psqlrc --tuples-only --no-align --command=%s %s", password, query, address)


def administrator(host, query, database="postgres"):
    """Return what the administrator on the host is answered."""
    return host.check_output("runuser -u postgres -- psql -p 5433 --tuples-only --no-align -c %s %s", query, database)


def started(host):
    return administrator(host, "SELECT pg_postmaster_start_time()")


@pytest.fixture(scope="module")
def version(host):
    return str(int(administrator(host, "SHOW server_version_num")) // 10000)


@pytest.fixture(scope="module")
def rules(version):
    return f"/etc/postgresql/{version}/main/pg_hba.conf"


def test_the_server_runs_and_starts_at_boot(host, version):
    assert host.service(f"postgresql@{version}-main").is_running
    assert host.service("postgresql").is_enabled


def test_only_loopback_is_served_by_default_at_the_new_port(host):
    addresses = listening_addresses(host, 5433)

    assert "127.0.0.1" in addresses
    assert addresses <= {"127.0.0.1", "[::1]"}
    assert listening_addresses(host, 5432) == set()


def test_the_owner_comes_in_with_the_password_and_can_write(host):
    answer = psql(host, "CREATE TABLE IF NOT EXISTS lesson (title text); SELECT current_user")

    assert answer.stdout.splitlines()[-1] == "lms", answer.stderr


def test_a_wrong_password_is_refused(host):
    assert "password authentication failed" in psql(host, "SELECT 1", password="wrong").stderr


def test_a_connection_without_tls_is_refused(host):
    assert "no encryption" in psql(host, "SELECT 1", options="sslmode=disable").stderr


def test_another_user_cannot_read_the_database(host):
    assert psql(host, "SELECT 1", "another test", "reports", "reports").stdout == "1\n"
    assert 'permission denied for database "lms"' in psql(host, "SELECT * FROM lesson", "another test", "reports", "lms").stderr


def test_without_the_guard_another_user_gets_in(host):
    administrator(host, "GRANT CONNECT ON DATABASE lms TO PUBLIC")
    try:
        assert psql(host, "SELECT 1", "another test", "reports", "lms").stdout == "1\n"
    finally:
        administrator(host, "REVOKE CONNECT ON DATABASE lms FROM PUBLIC")


def test_the_password_is_stored_as_a_scram_verifier(host):
    assert administrator(host, "SELECT left(rolpassword, 13) FROM pg_authid WHERE rolname = 'lms'") == "SCRAM-SHA-256"


def test_the_log_holds_the_statements_of_the_role_but_no_password(host):
    log = host.check_output("cat /var/log/postgresql/*.log")

    assert 'CREATE DATABASE "reports"' in log
    assert "another test" not in log


def test_pages_have_checksums_and_text_is_utf8(host):
    assert administrator(host, "SHOW data_checksums") == "on"
    assert administrator(host, "SELECT pg_encoding_to_char(encoding), datcollate FROM pg_database WHERE datname = 'lms'") == "UTF8|C.UTF-8"


def test_settings_and_extensions_are_there(host):
    assert administrator(host, "SELECT current_setting('work_mem'), current_setting('log_line_prefix')") == "8MB|it's %m "
    assert administrator(host, "SELECT extname FROM pg_extension ORDER BY 1", "lms").split() == ["citext", "pg_trgm", "plpgsql"]


def test_the_rules_are_private(host, rules):
    assert access_to(host, rules) == ("postgres", "postgres", "0640")


def test_a_reload_that_was_lost_is_made_up_for_without_a_restart(host, version, rules):
    before = started(host)
    host.check_output("cp --preserve %s /tmp/rules && sed -i '/hostssl/d' %s && systemctl reload postgresql@%s-main", rules, rules, version)
    # The server sees the time of a file in whole seconds.
    host.check_output("sleep 1 && cp /tmp/rules %s", rules)
    assert "no pg_hba.conf entry" in psql(host, "SELECT 1").stderr

    run = apply_role(host, "postgresql", tasks="service", postgresql_version=version)

    assert run.returncode == 0, run.stdout
    assert psql(host, "SELECT 1").stdout == "1\n"
    assert started(host) == before


def test_a_setting_that_needs_a_restart_gets_one(host, version):
    before = started(host)

    run = apply_role(host, "postgresql", postgresql_version=version, postgresql_settings={"max_connections": 90})

    assert run.returncode == 0, run.stdout
    assert administrator(host, "SHOW max_connections") == "90"
    assert started(host) != before


def test_a_setting_that_does_not_exist_is_refused_before_it_lands(host, version):
    before = host.check_output("md5sum /etc/postgresql/*/main/conf.d/lms.conf")

    run = apply_role(host, "postgresql", tasks="configure", postgresql_version=version, postgresql_settings={"work_memory": "8MB"})

    assert 'unrecognized configuration parameter "work_memory"' in run.stdout.replace('\\"', '"')
    assert host.check_output("md5sum /etc/postgresql/*/main/conf.d/lms.conf") == before


def test_rules_that_are_not_understood_are_refused_and_not_taken_up(host, version, rules):
    broken = [{"type": "host", "address": "192.0.2.0", "method": "scram-sha-256"}]
    host.check_output("cp --preserve %s /tmp/rules", rules)
    try:
        run = apply_role(host, "postgresql", postgresql_version=version, postgresql_access=broken)

        assert "postgresql_access gives a pg_hba.conf that PostgreSQL does not understand: line 8: " in " ".join(run.stdout.split())
        assert psql(host, "SELECT 1").stdout == "1\n"
    finally:
        host.check_output("cp --preserve /tmp/rules %s", rules)


def test_a_version_that_cannot_be_had_is_refused_with_those_that_can(host, version):
    run = apply_role(host, "postgresql", tasks="install", postgresql_version="9")

    assert f"postgresql_version 9 is not in the package lists of this host. They have: {version}." in run.stdout
