"""What an operator notices of the backup role."""

from __future__ import annotations

import json

import pytest
from checks import access_to, answers, apply_role, eventually, exposure, said

SERVICES = ["lms-backup", "lms-backup-full", "lms-verify-backups"]

# Stands for ansible-playbook: notes how it was started, and fails when it is told to.
PROGRAM = """#!/usr/bin/python3
import json, os, pathlib, sys, time
credentials = {path.name: path.read_text() for path in pathlib.Path(os.environ["CREDENTIALS_DIRECTORY"]).iterdir()}
home = pathlib.Path.home()
with (home / "runs").open("a") as file:
    json.dump({"argv": sys.argv[1:], "mark": os.environ.get("MARK"), "credentials": credentials, "directory": os.getcwd(),
               "user": os.getuid(), "shell": os.environ["SHELL"], "began": time.time()}, file)
    file.write("\\n")
time.sleep(1 if os.environ.get("MARK") == "slow" else 0)
with (home / "ends").open("a") as file:
    file.write(f"{time.time()}\\n")
sys.exit(os.environ.get("MARK") == "fail")
"""


@pytest.fixture
def control(host):
    """A control host whose program writes down its runs. The value writes the environment of the runs."""
    # A machine does this as it boots, a container does not; systemd hands credentials over by it.
    host.check_output("mount --make-rshared /")
    host.check_output("mkdir -p /etc/lms && cd /usr/local/bin && install -m 0755 /dev/null run-playbook && install -m 0755 /dev/null tell")
    host.check_output("printf %s %s > /usr/local/bin/run-playbook", "%s", PROGRAM)
    host.check_output("printf %s %s > /usr/local/bin/tell", "%s", '#!/bin/sh\necho "$1" >> /var/lib/lms-schedule/told\n')
    host.check_output("install -m 0600 /dev/null /etc/lms/vault-password && printf secret > /etc/lms/vault-password")
    host.check_output("install -m 0600 /dev/null /etc/lms/ssh-key && printf key > /etc/lms/ssh-key")
    host.check_output("rm -f /var/lib/lms-schedule/runs /var/lib/lms-schedule/ends /var/lib/lms-schedule/told")

    def environment(mark):
        host.check_output("echo MARK=%s > /etc/lms/schedule.env", mark)

    environment("plain")
    return environment


def runs(host):
    """Return what the program wrote down."""
    return [json.loads(line) for line in host.check_output("cat /var/lib/lms-schedule/runs").splitlines()]


@pytest.mark.parametrize("program", ["age", "pg_dump", "restic", "zstd"])
def test_what_backups_need_is_there(host, program):
    assert host.exists(program)


def test_no_sdk_of_a_bucket_is_installed_for_a_directory(host):
    assert not host.package("python3-boto3").is_installed


def test_only_root_reads_the_repository(host):
    assert access_to(host, "/srv/lms-backups") == ("root", "root", "0700")
    assert host.run("runuser --user nobody -- ls /srv/lms-backups").rc != 0


@pytest.mark.parametrize("name", SERVICES)
def test_a_timer_runs_and_knows_when_it_is_due(host, name):
    shown = dict(
        line.split("=", 1)
        for line in host.check_output(
            "systemctl show --property=ActiveState,UnitFileState,NextElapseUSecRealtime,Persistent,RandomizedDelayUSec %s.timer", name
        ).splitlines()
    )

    assert shown.pop("NextElapseUSecRealtime") != ""
    assert shown == {"ActiveState": "active", "UnitFileState": "enabled", "Persistent": "yes", "RandomizedDelayUSec": "15min"}


def test_the_database_is_backed_up_on_each_day_once(host):
    calendars = [host.check_output(f"systemctl show --property=TimersCalendar {name}.timer") for name in SERVICES[:2]]

    assert "Mon..Sat *-*-* 02:15:00" in calendars[0]
    assert "Sun *-*-* 02:15:00" in calendars[1]


def test_systemd_finds_the_units_well_closed(host):
    units = [f"{name}.service" for name in SERVICES]

    found = exposure(host, *units)

    assert set(found) == set(units)
    assert max(found.values()) <= 2.0
    assert host.run("systemd-analyze verify /etc/systemd/system/lms-backup.service").stderr == ""


def test_a_run_is_the_playbook_with_what_was_given(host, control):
    host.check_output("systemctl start lms-backup-full.service")

    (run,) = runs(host)
    uid = int(host.check_output("id --user lms-schedule"))
    folder = "/run/credentials/lms-backup-full.service"
    assert run.pop("began") > 0
    assert run == {
        "argv": [
            *["bitflow.lms.backup", "--extra-vars", "lms_backup_scope=full", "--inventory", "/etc/lms/inventories/prod"],
            *["--vault-password-file", f"{folder}/vault-password", "--private-key", f"{folder}/ssh-key"],
        ],
        "mark": "plain",
        "credentials": {"vault-password": "secret", "ssh-key": "key"},
        "directory": "/var/lib/lms-schedule",
        "user": uid,
        "shell": "/bin/sh",
    }


def test_a_run_waits_for_the_other_one(host, control):
    control("slow")

    host.check_output("systemctl start --no-block lms-backup.service lms-verify-backups.service")

    assert eventually(lambda: host.run("test $(wc -l < /var/lib/lms-schedule/ends) = 2").rc == 0)
    first, second = (run["began"] for run in runs(host))
    assert second >= float(host.check_output("head -n 1 /var/lib/lms-schedule/ends")) > first


def test_a_run_that_fails_says_so(host, control):
    control("fail")

    assert host.run("systemctl start lms-backup.service").rc != 0

    assert eventually(lambda: host.run("cat /var/lib/lms-schedule/told").stdout == "lms-backup\n")
    said_of_it = "journalctl --priority=crit --identifier=lms-backup --output=cat --grep 'lms-backup failed'"
    assert eventually(lambda: host.run(said_of_it).rc == 0)
    host.check_output("systemctl reset-failed lms-backup.service")


def test_what_cannot_be_is_refused(host):
    main = {
        "relative": ({"backup_repository": "backups"}, "backup_repository is backups. It is an absolute path"),
        "upwards": ({"backup_repository": "/srv/../etc"}, "backup_repository is /srv/../etc."),
        "engine": ({"backup_database_engine": "oracle"}, "value of backup_database_engine must be one of: , postgresql, mariadb, mysql"),
    }
    poison = "/etc/inventory\nExecStartPre=+/usr/bin/touch /etc/poisoned"
    schedule = {
        "lines": ({"backup_schedule_inventory": poison}, "backup_schedule_inventory is"),
        "percent": ({"backup_schedule_ssh_key": "/etc/%n"}, 'backup_schedule_ssh_key is "/etc/%n". It is an absolute path'),
        "options": ({"backup_schedule_inventory": "/etc/lms --extra-vars=@x"}, "It is an absolute path"),
        "root": ({"backup_schedule_user": "root"}, "backup_schedule_user is root."),
        "time": ({"backup_schedule_daily": "at night"}, 'backup_schedule_daily is "at night", and systemd does not understand that'),
        "times": ({"backup_schedule_daily": "daily\nUnit=reboot.target"}, "backup_schedule_daily is"),
        "span": ({"backup_schedule_timeout": "a while"}, 'backup_schedule_timeout is "a while"'),
    }

    for tasks, cases in (("main", main), ("schedule", schedule)):
        answer = answers(host, "backup", {name: variables for name, (variables, _message) in cases.items()}, tasks)
        for name, (_variables, message) in cases.items():
            assert message in answer[name].failure
            assert answer[name].changed == 0

    assert host.run("grep --recursive poisoned /etc/systemd/system").rc != 0


# What follows changes the host.


def test_a_timer_without_a_time_goes_away(host):
    run = apply_role(host, "backup", "schedule", backup_schedule_verify="")

    assert run.returncode == 0, said(run)
    assert not host.file("/etc/systemd/system/lms-verify-backups.timer").exists
    assert host.run("systemctl is-active lms-verify-backups.timer").stdout.strip() == "inactive"
