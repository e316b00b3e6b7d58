"""What an operator notices of the postgresql role."""

from __future__ import annotations

import re

import pytest
from checks import access_to, answers, apply_role, eventually, listening_addresses, once, process, said, service_is_up

PASSWORD = 'it\'s a "test"'
TLS = {"certificate": "/etc/ssl/lms.pem", "key": "/etc/ssl/lms.key"}


def psql(host, query, password=PASSWORD, user="lms", database="lms", options="", port=5433):
    """Run a query over TCP, the password not among the arguments of psql."""
    address = f"host=127.0.0.1 port={port} user={user} dbname={database} {options}"
    return host.run("PGPASSWORD=%s psql --no-psqlrc --tuples-only --no-align --command=%s %s", password, query, address)


def pooled(host, query, password=PASSWORD, user="lms", database="lms"):
    """Run a query through pgBouncer."""
    return psql(host, query, password, user, database, port=6432)


def administrator(host, query, database="postgres"):
    """Return what the administrator on the host is answered."""
    return host.check_output("runuser -u postgres -- psql -p 5433 --tuples-only --no-align -c %s %s", query, database)


def started(host):
    return administrator(host, "SELECT pg_postmaster_start_time()")


def sign(host, name, certificate=TLS["certificate"], key=TLS["key"]):
    """Make a certificate for the name, with a key that PostgreSQL can use."""
    host.check_output(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=%s -out %s -keyout %s 2>/dev/null"
        " && chown postgres:postgres %s && chmod 0600 %s",
        *(name, certificate, key, key, key),
    )


def later(host, path):
    """Give a file the time that it would have a second later: the server sees whole seconds."""
    host.check_output("touch --date='1 second' %s", path)


def shown_certificate(host, port=5433):
    """Return whom the server's certificate is for."""
    return host.check_output(
        f"echo | openssl s_client -starttls postgres -connect 127.0.0.1:{port} 2>/dev/null | openssl x509 -noout -subject"
    )


def landed(host):
    """Return what the files of the role are."""
    files = "/etc/postgresql/*/main/conf.d/lms.conf /etc/postgresql/*/main/pg_hba.conf /etc/pgbouncer/pgbouncer.ini"
    return host.check_output(f"md5sum {files}")


def pool_configuration(host):
    """Return what pgBouncer says of its own configuration."""
    return host.check_output("runuser -u postgres -- psql -At -h /run/postgresql -p 6432 -U pgbouncer -c 'SHOW CONFIG' pgbouncer")


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
    assert "no encryption" in psql(host, "SELECT 1", database="postgres", options="sslmode=disable").stderr


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
    # A statement that log_statement has logged already is not repeated.
    session = "PGOPTIONS='-c log_statement=none' runuser -u postgres -- psql -p 5433"
    host.check_output(f"{session} -c %s -c %s", "SELECT pg_sleep(0.3), 'slow'", "SELECT 'quick'")

    log = host.check_output("cat /var/log/postgresql/*-main.log")

    assert re.search(r"duration: \d+\.\d+ ms  statement: SELECT pg_sleep\(0\.3\), 'slow'", log)
    assert "SELECT 'quick'" not in log


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


def test_pgbouncer_runs_and_starts_at_boot(host):
    assert service_is_up(host, "pgbouncer")
    assert listening_addresses(host, 6432) == {"127.0.0.1"}


def test_pgbouncer_lets_in_who_has_the_password_of_the_database(host):
    assert pooled(host, "SELECT current_user").stdout == "lms\n"
    assert "authentication failed" in pooled(host, "SELECT 1", password="wrong").stderr


def test_many_clients_share_few_connections(host):
    backends = host.check_output(
        'for n in 1 2 3 4 5 6 7 8; do PGPASSWORD=%s psql -At -c "SELECT pg_backend_pid() FROM pg_sleep(0.2)"'
        ' "host=127.0.0.1 port=6432 user=lms dbname=lms" & done; wait',
        PASSWORD,
    ).split()

    assert len(backends) == 8
    assert len(set(backends)) <= 2


def test_the_users_of_pgbouncer_are_verifiers_and_private(host):
    users = host.check_output("cat /etc/pgbouncer/userlist.txt").splitlines()

    assert access_to(host, "/etc/pgbouncer/userlist.txt") == ("postgres", "postgres", "0640")
    assert [user.partition("$")[0] for user in users[1:]] == ['"lms" "SCRAM-SHA-256', '"reports" "SCRAM-SHA-256']


def test_what_the_server_does_not_take_is_refused_before_it_lands(host):
    peer = {"type": "local", "method": "peer"}
    for case in ("open", "gone", "other"):
        sign(host, "lms.test", f"/etc/ssl/{case}.pem", f"/etc/ssl/{case}.key")
    host.check_output("chmod 0644 /etc/ssl/open.key && rm /etc/ssl/gone.pem && openssl genrsa -out /etc/ssl/other.key 2048")
    cannot = "PostgreSQL cannot use postgresql_tls:"
    refused = {
        "unknown": ({"postgresql_settings": {"work_memory": "8MB"}}, 'unrecognized configuration parameter "work_memory"'),
        # Each is right alone. Only a server that starts finds that they exclude each other.
        "excluding": ({"postgresql_settings": {"wal_level": "minimal", "max_wal_senders": 5}}, "FATAL: WAL streaming"),
        "rules": (
            {"postgresql_access": [peer, {"type": "host", "address": "192.0.2.0", "method": "scram-sha-256"}]},
            'invalid IP mask "scram-sha-256"',
        ),
        "open": ({}, f"{cannot} the key /etc/ssl/open.key must be root's with mode 0640, or postgres' with mode 0600."),
        "gone": ({}, f"{cannot} /etc/ssl/gone.pem is not there or PostgreSQL cannot read it."),
        "other": ({}, f"{cannot} the key /etc/ssl/other.key is not that of the certificate /etc/ssl/other.pem."),
    }
    cases = {
        case: variables or {"postgresql_tls": {"certificate": f"/etc/ssl/{case}.pem", "key": f"/etc/ssl/{case}.key"}}
        for case, (variables, _message) in refused.items()
    }
    before = landed(host)

    answer = answers(host, "postgresql", cases, tasks="configure")

    for case, (_variables, message) in refused.items():
        assert message in answer[case].failure
        assert answer[case].changed == 0
    assert landed(host) == before


def test_a_setting_that_pgbouncer_does_not_know_is_refused_before_it_lands(host, version):
    once(host)
    before = landed(host), process(host, "pgbouncer")

    run = apply_role(
        host, "postgresql", tasks="pgbouncer", postgresql_version=version, postgresql_pgbouncer_settings={"pool_modus": "session"}
    )

    assert "unknown parameter: pgbouncer/pool_modus" in said(run)
    assert (landed(host), process(host, "pgbouncer")) == before


def test_what_cannot_be_is_refused_before_the_first_change(host, version):
    once(host)
    replica = {"postgresql_replica_of": {"address": "192.0.2.1", "slot": "one"}}
    password = {"postgresql_replication_password": "x"}
    refused = {
        "share": ({"postgresql_memory_share": 2}, "postgresql_memory_share is 2. It is a part of the host's memory"),
        "method": (
            {"postgresql_access": [{"type": "host", "address": "192.0.2.1/32", "method": "md5"}]},
            "value of method must be one of",
        ),
        "password": (replica, "postgresql_replication_password is empty."),
        "slot": ({"postgresql_replicas": [{"name": "a-b", "address": "192.0.2.1"}], **password}, "A slot is named with"),
        "data": ({**replica, **password}, "holds data of its own and is not a replica."),
        "version": (
            {"postgresql_version": "9"},
            f"postgresql_version 9 is not in the package lists of this host. They have: {version}.",
        ),
    }

    answer = answers(host, "postgresql", {case: variables for case, (variables, _message) in refused.items()})

    for case, (_variables, message) in refused.items():
        assert message in answer[case].failure
        assert answer[case].changed == 0


# From here on, tests change what the role does.


def test_a_reload_that_was_lost_is_made_up_for_without_a_restart(host, version, rules):
    before = started(host)
    host.check_output(
        "cp --preserve %s /var/tmp/rules && sed -i '/hostssl/d' %s && systemctl reload postgresql@%s-main", rules, rules, version
    )
    assert eventually(lambda: "no pg_hba.conf entry" in psql(host, "SELECT 1", database="postgres").stderr)
    host.check_output("cp --preserve /var/tmp/rules %s", rules)
    later(host, rules)

    run = apply_role(host, "postgresql", tasks="service", postgresql_version=version)

    assert run.returncode == 0, said(run)
    assert eventually(lambda: psql(host, "SELECT 1", database="postgres").stdout == "1\n")
    assert started(host) == before


def test_rules_that_were_broken_by_hand_are_not_taken_up(host, version, rules):
    once(host)
    host.check_output("cp --preserve %s /var/tmp/rules && echo 'host all all 192.0.2.0 scram-sha-256' >> %s", rules, rules)
    later(host, rules)

    run = apply_role(host, "postgresql", tasks="service", postgresql_version=version)

    host.check_output("cp --preserve /var/tmp/rules %s", rules)
    assert f"PostgreSQL does not understand {rules}: line " in said(run)
    assert psql(host, "SELECT 1").stdout == "1\n"


def test_a_new_password_and_a_changed_setting_disturb_no_client(host, version):
    before = process(host, "pgbouncer")
    changed = {
        "postgresql_version": version,
        "postgresql_users": [{"name": "lms", "password": PASSWORD}, {"name": "reports", "password": "a new test"}],
        "postgresql_databases": [{"name": "reports", "owner": "reports"}],
        "postgresql_monitoring_user": "",
        "postgresql_pgbouncer_pool_size": 3,
    }

    users = apply_role(host, "postgresql", tasks="databases", **changed)
    pool = apply_role(host, "postgresql", tasks="pgbouncer", **changed)

    assert users.returncode == 0, said(users)
    assert pool.returncode == 0, said(pool)
    assert pooled(host, "SELECT 1", "a new test", "reports", "reports").stdout == "1\n"
    assert process(host, "pgbouncer") == before
    assert "a new test" not in said(users) + said(pool)
    assert "a new test" not in host.check_output("cat /var/log/postgresql/*.log")


def test_a_reload_of_pgbouncer_that_was_lost_is_made_up_for(host, version):
    once(host)
    before = process(host, "pgbouncer")
    # What a controller that was killed after the write leaves behind: it runs what the file does not say.
    host.check_output(
        "cd /etc/pgbouncer && cp --preserve pgbouncer.ini /var/tmp/"
        " && sed -i 's/^default_pool_size.*/default_pool_size = 9/; s/^syslog_ident.*/syslog_ident = lost/' pgbouncer.ini"
        " && systemctl reload pgbouncer"
    )
    assert eventually(lambda: "default_pool_size|9|" in pool_configuration(host))
    host.check_output("cp --preserve /var/tmp/pgbouncer.ini /etc/pgbouncer/")

    run = apply_role(host, "postgresql", tasks="pgbouncer", postgresql_version=version)

    assert run.returncode == 0, said(run)
    assert eventually(lambda: "default_pool_size|2|" in pool_configuration(host))
    assert process(host, "pgbouncer") == before


def test_a_certificate_and_its_renewal_are_taken_up_without_a_restart(host, version):
    once(host)
    before = started(host), process(host, "pgbouncer")
    sign(host, "first.lms.test")

    told = apply_role(
        host,
        "postgresql",
        postgresql_version=version,
        postgresql_tls=TLS,
        postgresql_settings={"max_connections": 80},
        postgresql_restart_enabled=False,
    )

    assert told.returncode == 0, said(told)
    assert "PostgreSQL takes up max_connections with a restart only." in said(told)
    assert "first.lms.test" in shown_certificate(host)
    assert "first.lms.test" in shown_certificate(host, port=6432)

    sign(host, "second.lms.test")
    later(host, TLS["certificate"])
    for part in ("service", "pgbouncer"):
        run = apply_role(host, "postgresql", tasks=part, postgresql_version=version, postgresql_tls=TLS, postgresql_restart_enabled=False)
        assert run.returncode == 0, said(run)

    assert eventually(lambda: "second.lms.test" in shown_certificate(host))
    assert eventually(lambda: "second.lms.test" in shown_certificate(host, port=6432))
    assert (started(host), process(host, "pgbouncer")) == before
    assert administrator(host, "SHOW max_connections") == "100"


def test_a_restart_that_was_not_allowed_is_made_up_for_by_the_next_run(host, version):
    once(host)
    assert administrator(host, "SHOW max_connections") == "100"

    run = apply_role(host, "postgresql", tasks="service", postgresql_version=version, postgresql_tls=TLS)

    assert run.returncode == 0, said(run)
    assert administrator(host, "SHOW max_connections") == "80"
