"""What an operator notices of the pgbackrest role."""

from __future__ import annotations

import json

import pytest
from checks import access_to, answers, converge, exposure, once, said

PASSPHRASE = "a test # of a passphrase"
UNITS = [f"lms-pgbackrest-{name}" for name in ("full", "incr", "second", "verify", "metrics")]
FIGURES = "/var/lib/prometheus/node-exporter/pgbackrest.prom"


def administrator(host, query):
    """Return what the administrator of the cluster is answered."""
    return host.check_output("runuser -u postgres -- psql -p 5433 -XAt -c %s postgres", query)


def backups(host, repository=1):
    """Return the types of the backups in a repository."""
    told = host.check_output("runuser -u postgres -- pgbackrest --stanza=lms info --output=json")
    return [item["type"] for item in json.loads(told)[0]["backup"] if item["database"]["repo-key"] == repository]


def figure(host, name):
    """Return a figure that is told Prometheus, as it is now."""
    host.check_output("systemctl start lms-pgbackrest-metrics")
    lines = host.file(FIGURES).content_string.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"lms_pgbackrest_{name}{{"))


def test_the_first_full_backup_is_there(host):
    assert (backups(host)[0], backups(host, 2)[0]) == ("full", "full")


def test_the_log_arrives(host):
    host.check_output("runuser -u postgres -- pgbackrest --stanza=lms check")

    assert administrator(host, "SELECT current_setting('archive_mode'), current_setting('archive_timeout')") == "on|1min"


@pytest.mark.parametrize("unit", UNITS)
def test_the_timers_are_enabled(host, unit):
    timer = host.service(f"{unit}.timer")

    assert (timer.is_running, timer.is_enabled) == (True, True)


def test_a_service_makes_a_backup_in_its_sandbox(host):
    before = backups(host)

    host.check_output("systemctl start lms-pgbackrest-incr")

    assert backups(host) == [*before, "incr"]
    assert max(exposure(host, *(f"{unit}.service" for unit in UNITS)).values()) < 3


def test_the_passphrase_stands_in_one_file_that_is_private(host):
    found = host.run(
        "grep --recursive --files-with-matches --fixed-strings %s /etc /usr/local /var/lib/lms-pgbackrest /var/log/pgbackrest", PASSPHRASE
    )

    assert found.stdout.split() == ["/etc/pgbackrest/pgbackrest.conf"]
    assert access_to(host, "/etc/pgbackrest/pgbackrest.conf") == ("root", "postgres", "0640")


def test_a_repository_is_encrypted_that_has_a_passphrase(host):
    assert not host.run("grep --quiet backup:current /srv/pgbackrest/backup/lms/backup.info").succeeded
    assert host.run("grep --quiet backup:current /srv/second/backup/lms/backup.info").succeeded


def test_the_figures_tell_of_a_gap_in_the_log(host):
    assert (figure(host, "wal_missing_segments"), figure(host, "repository_ok")) == (0, 1)
    for _number in range(3):
        administrator(host, "SELECT pg_logical_emit_message(true, 'test', 'x')")
        administrator(host, "SELECT pg_switch_wal()")
    host.check_output("runuser -u postgres -- pgbackrest --stanza=lms check")
    name = host.check_output("ls /srv/pgbackrest/archive/lms/*/*/ | grep -E '^0.*zst$' | sort | tail -2 | head -1")
    path = host.check_output(f"ls /srv/pgbackrest/archive/lms/*/*/{name}")

    host.check_output("mv %s /var/tmp/", path)
    missing = figure(host, "wal_missing_segments")
    host.check_output("mv %s %s", f"/var/tmp/{name}", path)

    assert missing == 1


def test_a_verification_that_finds_something_fails(host):
    host.check_output("systemctl start lms-pgbackrest-verify")
    good = figure(host, "verification_ok"), figure(host, "last_verified_timestamp_seconds") > 0
    file = host.check_output("find /srv/pgbackrest/backup/lms/*F/ -type f -path '*bundle*' | head -1")
    host.check_output(f"cp {file} /var/tmp/kept && printf DAMAGE | dd of={file} bs=1 seek=1000 conv=notrunc 2>/dev/null")

    broken = host.run("systemctl start lms-pgbackrest-verify")
    bad = figure(host, "verification_ok")
    host.check_output(f"cat /var/tmp/kept > {file}; systemctl reset-failed lms-pgbackrest-verify")

    assert good == (1, True)
    assert (broken.succeeded, bad) == (False, 0)
    assert "checksum invalid: 1" in host.check_output("journalctl --unit lms-pgbackrest-verify --output cat")


def test_what_cannot_be_is_refused_with_a_reason(host):
    once(host)
    before = host.check_output("md5sum /etc/pgbackrest/pgbackrest.conf")
    repository = {"path": "/srv/pgbackrest", "passphrase": PASSPHRASE}
    second = {"path": "/srv/second"}

    cases = answers(
        host,
        "pgbackrest",
        {
            "no_repository": {"pgbackrest_repositories": []},
            "passphrase": {"pgbackrest_repositories": [{**repository, "passphrase": " x"}, second]},
            "timers": {"pgbackrest_timers": [{"name": "full", "type": "full", "on_calendar": "daily"}]},
            "unknown": {"pgbackrest_settings": {"no-such-option": "y"}},
            "value": {"pgbackrest_archive_push_queue_max": "lots"},
            "calendar": {"pgbackrest_verify_on_calendar": "whenever"},
        },
    )

    assert "pgbackrest_repositories is empty" in cases["no_repository"].failure
    assert "pgBackRest cannot read it" in cases["passphrase"].failure
    assert "Give each one a timer" in cases["timers"].failure
    assert "configuration file contains invalid option 'no-such-option'" in cases["unknown"].failure
    assert "'lots' is not valid for 'archive-push-queue-max' option" in cases["value"].failure
    assert "whenever" in cases["calendar"].failure
    assert host.check_output("md5sum /etc/pgbackrest/pgbackrest.conf") == before
    assert PASSPHRASE not in json.dumps([case.failure for case in cases.values()])


def test_an_archive_that_fails_fails_the_run_and_a_timer_that_is_not_listed_goes(host):
    once(host)
    administrator(host, "ALTER SYSTEM SET archive_command = '/bin/false'")
    administrator(host, "SELECT pg_reload_conf()")
    run = converge(host)
    administrator(host, "ALTER SYSTEM RESET archive_command")
    administrator(host, "SELECT pg_reload_conf()")
    timers = [
        {"name": "full", "type": "full", "on_calendar": "Sun 01:00"},
        {"name": "second", "type": "full", "on_calendar": "monthly", "repository": 2},
    ]
    fewer = converge(host, pgbackrest_timers=timers)

    assert run.returncode != 0
    assert "archive_command '/bin/false' must contain pgbackrest" in said(run)
    assert fewer.returncode == 0, said(fewer)
    assert not host.file("/etc/systemd/system/lms-pgbackrest-incr.timer").exists
    assert converge(host).returncode == 0
