"""What an operator notices of the postgresql role."""

from __future__ import annotations

import pytest
from checks import access_to, apply_role, converge, listening_addresses, once, said

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


def sign(host, name):
    """Make a certificate for the name, with a key that PostgreSQL can use."""
    host.check_output(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=%s -out /etc/ssl/lms.pem -keyout /etc/ssl/lms.key 2>/dev/null"
        " && chown postgres:postgres /etc/ssl/lms.key && chmod 0600 /etc/ssl/lms.key",
        name,
    )


def shown_certificate(host):
    """Return whom the server's certificate is for."""
    return host.check_output(
        "echo | openssl s_client -starttls postgres -connect 127.0.0.1:5433 2>/dev/null | openssl x509 -noout -subject"
    )


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


def test_memory_follows_from_the_host_and_a_given_setting_wins(host):
    shown = administrator(
        host, "SELECT string_agg(current_setting(n), ' ') FROM unnest(ARRAY['shared_buffers', 'effective_cache_size', 'work_mem']) n"
    )

    assert shown == "500MB 1500MB 8MB"


def test_a_slow_statement_is_logged_and_a_quick_one_is_not(host):
    psql(host, "SELECT pg_sleep(0.3), 'slow'")

    log = host.check_output("cat /var/log/postgresql/*.log")

    assert "duration: 3" in log
    assert "ms  statement: SELECT pg_sleep(0.3), 'slow'" in log


def test_an_old_protocol_is_refused(host):
    assert administrator(host, "SHOW ssl_min_protocol_version") == "TLSv1.2"
    assert psql(host, "SELECT 1", options="sslmode=require ssl_max_protocol_version=TLSv1.1 ssl_min_protocol_version=TLSv1.1").stdout == ""


def test_the_monitoring_user_sees_figures_and_no_data(host):
    host.check_output("id prometheus || useradd --system prometheus")
    question = "runuser -u prometheus -- psql -h /run/postgresql -p 5433 --tuples-only --no-align -c %s %s"

    assert host.check_output(question, "SELECT pg_has_role('pg_monitor', 'member')", "postgres") == "t"
    assert 'permission denied for database "lms"' in host.run(question, "SELECT * FROM lesson", "lms").stderr


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


def test_a_restart_that_is_not_allowed_is_announced_and_made_up_for_by_the_next_run(host, version):
    before = started(host)

    told = apply_role(
        host, "postgresql", postgresql_version=version, postgresql_settings={"max_connections": 80}, postgresql_restart_enabled=False
    )

    assert told.returncode == 0, told.stdout
    assert "PostgreSQL takes up max_connections with a restart only." in " ".join(told.stdout.split())
    assert (started(host), administrator(host, "SHOW max_connections")) == (before, "90")

    run = apply_role(host, "postgresql", tasks="service", postgresql_version=version)

    assert run.returncode == 0, run.stdout
    assert administrator(host, "SHOW max_connections") == "80"


def test_a_certificate_is_shown_and_its_renewal_taken_up_by_the_next_run(host, version):
    tls = {"certificate": "/etc/ssl/lms.pem", "key": "/etc/ssl/lms.key"}
    sign(host, "first.lms.test")
    run = apply_role(host, "postgresql", postgresql_version=version, postgresql_tls=tls)
    assert run.returncode == 0, run.stdout
    assert "first.lms.test" in shown_certificate(host)
    before = started(host)
    host.check_output("sleep 1")
    sign(host, "second.lms.test")

    run = apply_role(host, "postgresql", tasks="service", postgresql_version=version, postgresql_tls=tls)

    assert run.returncode == 0, run.stdout
    assert "second.lms.test" in shown_certificate(host)
    assert started(host) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("chmod 0644 /etc/ssl/lms.key", "the key /etc/ssl/lms.key must be root's with mode 0640, or postgres' with mode 0600."),
        ("rm /etc/ssl/lms.pem", "/etc/ssl/lms.pem is not there or PostgreSQL cannot read it."),
        ("openssl genrsa -out /etc/ssl/lms.key 2048", "the key /etc/ssl/lms.key is not that of the certificate /etc/ssl/lms.pem."),
    ],
)
def test_a_certificate_that_cannot_be_used_is_refused_before_it_lands(host, version, damage, message):
    sign(host, "third.lms.test")
    host.check_output(damage)
    before = host.check_output("md5sum /etc/postgresql/*/main/conf.d/lms.conf")

    run = apply_role(
        host,
        "postgresql",
        tasks="configure",
        postgresql_version=version,
        postgresql_tls={"certificate": "/etc/ssl/lms.pem", "key": "/etc/ssl/lms.key"},
    )

    assert f"PostgreSQL cannot use postgresql_tls: {message}" in " ".join(run.stdout.split())
    assert host.check_output("md5sum /etc/postgresql/*/main/conf.d/lms.conf") == before


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

        assert "postgresql_access gives a pg_hba.conf that PostgreSQL does not understand: line 10: " in " ".join(run.stdout.split())
        assert psql(host, "SELECT 1").stdout == "1\n"
    finally:
        host.check_output("cp --preserve /tmp/rules %s", rules)


def test_a_version_that_cannot_be_had_is_refused_with_those_that_can(host, version):
    run = apply_role(host, "postgresql", tasks="install", postgresql_version="9")

    assert f"postgresql_version 9 is not in the package lists of this host. They have: {version}." in run.stdout


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"postgresql_memory_share": 2}, "postgresql_memory_share is 2. It is a part of the host's memory"),
        ({"postgresql_access": [{"type": "host", "address": "192.0.2.1/32", "method": "md5"}]}, "value of method must be one of"),
        ({"postgresql_replica_of": {"address": "192.0.2.1", "slot": "one"}}, "postgresql_replication_password is empty."),
        (
            {"postgresql_replicas": [{"name": "a-b", "address": "192.0.2.1"}], "postgresql_replication_password": "x"},
            "A slot is named with",
        ),
        (
            {"postgresql_replica_of": {"address": "192.0.2.1", "slot": "one"}, "postgresql_replication_password": "x"},
            "holds data of its own and is not a replica.",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_change(host, variables, message):
    once(host)

    run = converge(host, **variables)

    assert message in said(run)
    assert "changed=0" in said(run)


POOLED = {"postgresql_pgbouncer_enabled": True, "postgresql_pgbouncer_pool_size": 2}


def pooled(host, query, password=PASSWORD, user="lms", database="lms"):
    """Run a query through pgBouncer, the password not among the arguments of psql."""
    address = f"host=127.0.0.1 port=6432 user={user} dbname={database}"
    return host.run("PGPASSWORD=%s psql --no-psqlrc --tuples-only --no-align --command=%s %s", password, query, address)


def pgbouncer(host):
    """Return the number of pgBouncer's process."""
    return host.check_output("systemctl show --property MainPID --value pgbouncer")


@pytest.fixture(scope="module")
def pool(host):
    """Run pgBouncer, and see that a second run changes nothing."""
    run = converge(host, **POOLED)
    assert run.returncode == 0, said(run)
    again = converge(host, **POOLED)
    assert "changed=0" in said(again), said(again)
    yield
    # Its rule of access lets clients of this host in without TLS, which other tests do not expect.
    host.check_output("systemctl stop pgbouncer")
    assert converge(host).returncode == 0


@pytest.mark.usefixtures("pool")
def test_pgbouncer_lets_in_who_has_the_password_of_the_database(host):
    assert pooled(host, "SELECT current_user").stdout == "lms\n"
    assert "authentication failed" in pooled(host, "SELECT 1", password="wrong").stderr
    assert listening_addresses(host, 6432) == {"127.0.0.1"}


@pytest.mark.usefixtures("pool")
def test_many_clients_share_few_connections(host):
    host.check_output(
        'PGPASSWORD=%s sh -c \'for n in 1 2 3 4 5 6 7 8; do psql -At -c "SELECT pg_backend_pid() FROM pg_sleep(0.2)"'
        ' "host=127.0.0.1 port=6432 user=lms dbname=lms" & done; wait\' | sort -u > /tmp/backends',
        PASSWORD,
    )

    assert len(host.check_output("cat /tmp/backends").split()) <= 2


@pytest.mark.usefixtures("pool")
def test_the_users_of_pgbouncer_are_verifiers_and_private(host):
    assert access_to(host, "/etc/pgbouncer/userlist.txt") == ("postgres", "postgres", "0640")
    assert host.check_output("grep -c SCRAM-SHA-256 /etc/pgbouncer/userlist.txt") == "2"
    assert "another test" not in host.check_output("cat /etc/pgbouncer/userlist.txt")


@pytest.mark.usefixtures("pool")
def test_a_changed_setting_and_a_lost_reload_disturb_no_client(host):
    before = pgbouncer(host)

    run = converge(host, **{**POOLED, "postgresql_pgbouncer_pool_size": 3})

    assert run.returncode == 0, said(run)
    assert pgbouncer(host) == before
    # What a controller that was killed after the write leaves behind.
    host.check_output(
        "sed -i 's/^default_pool_size.*/default_pool_size = 9/; s/^syslog_ident.*/syslog_ident = lost/' /etc/pgbouncer/pgbouncer.ini"
    )
    host.check_output(
        "systemctl reload pgbouncer && sleep 1 && sed -i 's/^default_pool_size.*/default_pool_size = 3/' /etc/pgbouncer/pgbouncer.ini"
    )

    run = converge(host, **{**POOLED, "postgresql_pgbouncer_pool_size": 3})

    assert run.returncode == 0, said(run)
    shown = host.check_output("runuser -u postgres -- psql -At -h /run/postgresql -p 6432 -U pgbouncer -c 'SHOW CONFIG' pgbouncer")
    assert "default_pool_size|3|" in shown
    assert pgbouncer(host) == before


@pytest.mark.usefixtures("pool")
def test_a_setting_that_pgbouncer_does_not_know_is_refused_before_it_lands(host):
    before = host.check_output("md5sum /etc/pgbouncer/pgbouncer.ini"), pgbouncer(host)

    run = converge(host, **POOLED, postgresql_pgbouncer_settings={"pool_modus": "session"})

    assert "unknown parameter: pgbouncer/pool_modus" in said(run)
    assert (host.check_output("md5sum /etc/pgbouncer/pgbouncer.ini"), pgbouncer(host)) == before
    assert pooled(host, "SELECT 1").stdout == "1\n"


@pytest.mark.usefixtures("pool")
def test_a_new_password_is_known_to_pgbouncer(host):
    users = [{"name": "lms", "password": "a new test"}]

    run = converge(host, **POOLED, postgresql_users=users)

    assert run.returncode == 0, said(run)
    assert pooled(host, "SELECT 1", password="a new test").stdout == "1\n"
    assert "a new test" not in said(run)
