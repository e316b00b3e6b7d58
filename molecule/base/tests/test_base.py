"""What an operator notices of the base role."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checks import access_to, address_of, answers, apply_role, new_key, once, over_ssh, play, said, service_is_up

SSH_SETTINGS = "/etc/ssh/sshd_config.d/00-lms.conf"
POLICIES = {"bookworm": "Hardened Debian 12 (version 3)", "trixie": "Hardened Debian 13 (version 1)"}
# Leaves out what a test of users and the SSH server does not need. A run is quick then.
LOGINS_ALONE = {
    "base_timezone": "",
    "base_time_service": "",
    "base_locale": "",
    "base_upgrades_enabled": False,
    "base_fail2ban_enabled": False,
    "base_sysctl_enabled": False,
    "base_journal_enabled": False,
    "base_logrotate_enabled": False,
}
# Without the packages, which are there.
PARTS = "--tags=base_configure,base_service"
# The one pure Python package, at the version whose policies are named above.
SSH_AUDIT = "ssh-audit==3.9.0"


def log_in(host, key, user, *command, options=()):
    """Run a command on the host over SSH, as somebody who has the key."""
    fixed = ["-F", "none", "-i", str(key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"]
    unknown = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    arguments = [*fixed, *unknown, *options, f"{user}@{address_of(host)}", *command]
    return subprocess.run(["ssh", *arguments], capture_output=True, text=True, check=False)


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.3)


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return new_key(tmp_path_factory.mktemp("ssh"))


@pytest.fixture(scope="module")
def users(host, key):
    """Users that have the key of these tests, for the variables of a run."""
    public = key.with_suffix(".pub").read_text().strip()
    users = [
        {"name": "anna", "authorized_keys": [public], "sudo": ["ALL=(ALL:ALL) NOPASSWD: ALL"]},
        {"name": "ben", "authorized_keys": [public], "groups": ["adm"]},
    ]
    run = apply_role(host, "base", tasks="users", base_users=users)
    assert run.returncode == 0, said(run)
    host.check_output("mkdir -p -m 700 ~/.ssh && echo %s > ~/.ssh/authorized_keys", public)
    return users


@pytest.fixture(scope="module")
def logins_of_root(host, key, users):
    """Let root log in, and return how a login ended between the file and its reload, and after the next run.

    The first run is as if the control host had died in between.
    """
    variables = LOGINS_ALONE | {"base_users": users, "base_ssh_root_login_allowed": True}
    cut_off = play(host, "base", "--tags=base_configure", **variables)
    before = log_in(host, key, "root", "true").returncode
    again = play(host, "base", "--tags=base_service", **variables)
    assert cut_off.returncode == again.returncode == 0, said(cut_off) + said(again)
    return before, log_in(host, key, "root", "true").returncode


def test_the_clock_shows_the_time_zone(host):
    assert host.check_output("date +%:z") == "+05:00"


def test_the_time_comes_from_the_servers(host):
    assert "NTP=time.example.com" in host.check_output("systemd-analyze cat-config systemd/timesyncd.conf")


def test_the_tools_are_there(host):
    assert host.exists("curl")
    assert host.exists("sudo")


def test_a_login_speaks_the_language(host):
    assert host.check_output("su --login ben --command 'locale charmap; echo $LANG'").split() == ["UTF-8", "de_DE.UTF-8"]


def test_the_journal_is_kept_on_the_disk(host):
    host.check_output("echo remember-me | systemd-cat --identifier=base-test && journalctl --sync")

    assert "remember-me" in host.check_output("journalctl --directory=/var/log/journal --identifier=base-test --output=cat")


def test_the_journal_has_its_limits(host):
    assert re.search(r"max 64(\.0)?M", host.check_output("journalctl --unit=systemd-journald --grep='System Journal' --output=cat"))
    assert "MaxRetentionSec=3months" in host.check_output("systemd-analyze cat-config systemd/journald.conf")


def test_a_user_logs_in_with_the_key_and_may_do_what_the_rules_say(host, key, users):
    assert log_in(host, key, "anna", "sudo -n id --user").stdout == "0\n"
    assert log_in(host, key, "ben", "id --groups --name").stdout.split() == ["ben", "adm"]
    assert log_in(host, key, "ben", "sudo -n id --user").returncode != 0
    assert access_to(host, "/etc/sudoers.d/lms") == ("root", "root", "0440")


def test_root_and_passwords_do_not_get_in(host, key, users):
    as_root = log_in(host, key, "root", "true")
    without_key = log_in(host, key, "anna", "true", options=["-o", "PubkeyAuthentication=no"])

    assert as_root.returncode == without_key.returncode == 255
    # Only the key is offered.
    assert "Permission denied (publickey)" in as_root.stderr
    assert "Permission denied (publickey)" in without_key.stderr


def test_an_independent_auditor_finds_the_ssh_server_hardened(host):
    folder = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"], ".cache", SSH_AUDIT)
    if not folder.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, f"--target={folder}", SSH_AUDIT], check=True)
    command = [sys.executable, "-m", "ssh_audit.ssh_audit", "--policy", POLICIES[host.system_info.codename], address_of(host)]

    audit = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)

    assert audit.returncode == 0, audit.stdout + audit.stderr


def test_the_ssh_server_runs_and_starts_at_boot(host):
    assert service_is_up(host, "ssh")
    assert access_to(host, SSH_SETTINGS) == ("root", "root", "0600")


def test_who_fails_to_log_in_is_banned(host, key, users):
    assert service_is_up(host, "fail2ban")
    allowed = host.check_output("fail2ban-client get sshd maxretry")
    host.check_output("fail2ban-client set sshd maxretry 2")

    def banned():
        return host.run("nft list set inet f2b-table addr-set-sshd | grep 'elements = '").rc == 0

    def banned_for_a_failure():
        # One at a time: a connection that is under way when the ban lands hangs for half a minute.
        log_in(host, key, "nobody-knows", "true")
        return any(banned() or time.sleep(0.3) for _try in range(15))

    try:
        wait_until(banned_for_a_failure, 60)
        refused = log_in(host, key, "anna", "true").returncode
        listed = host.check_output("fail2ban-client get sshd banned")
    finally:
        host.check_output("fail2ban-client unban --all && fail2ban-client set sshd maxretry %s", allowed)

    assert (refused, listed == "[]") == (255, False)
    assert log_in(host, key, "anna", "true").returncode == 0


def test_security_updates_alone_install_themselves(host):
    planned = host.check_output("unattended-upgrade --dry-run --verbose 2>&1")
    codename = host.system_info.codename

    assert f"Allowed origins are: origin=Debian,codename={codename}-security,label=Debian-Security\n" in planned
    settings = host.check_output("apt-config dump")
    assert 'APT::Periodic::Unattended-Upgrade "1";' in settings
    assert 'Unattended-Upgrade::Package-Blacklist:: "postgresql-.*";' in settings
    assert 'Unattended-Upgrade::Automatic-Reboot-Time "04:30";' in settings


def test_a_large_log_file_is_rotated_before_its_time(host):
    host.check_output("echo /var/log/base-test.log { } > /etc/logrotate.d/base-test")
    host.check_output("rm -f /var/log/base-test.log.1 && truncate --size=2M /var/log/base-test.log")

    host.check_output("logrotate /etc/logrotate.conf")

    assert host.file("/var/log/base-test.log.1").size == 2 * 1024 * 1024
    host.check_output("rm /etc/logrotate.d/base-test /var/log/base-test.log*")


def test_the_kernels_parameters_are_set_at_the_next_boot(host):
    # In a container they cannot be set: they are those of its host.
    settings = host.check_output("cat /etc/sysctl.d/90-lms.conf")

    assert "\nnet.ipv4.ip_local_port_range = 15000 64000\n" in settings
    assert "\n-kernel.kptr_restrict = 2\n" in settings


# Each with the part of the role that refuses it, what it says, and the file that stays.
REFUSED = {
    "parameter": (
        "sysctl",
        {"base_sysctl": {"kernel.no_such_thing": 1}},
        "does not have: kernel.no_such_thing.",
        "/etc/sysctl.d/90-lms.conf",
    ),
    "rule": ("users", {"base_users": [{"name": "anna", "sudo": ["ALL=(ALL NOPASSWD"]}]}, "syntax error", "/etc/sudoers.d/lms"),
    "exchange": ("ssh", {"base_ssh_key_exchanges": ["rot13"]}, "rot13", SSH_SETTINGS),
    "address": (
        "fail2ban",
        {"base_fail2ban_ignored_addresses": ["%(nothing)s"]},
        "failed to validate",
        "/etc/fail2ban/jail.local",
    ),
    "package": ("upgrades", {"base_upgrades_excluded": ['"; }; }']}, "failed to validate", "/etc/apt/apt.conf.d/90lms-upgrades"),
    "time": (
        "main",
        {"base_fail2ban_ban_time": "soon"},
        'base_fail2ban_ban_time is "soon". It is a number',
        "/etc/fail2ban/jail.local",
    ),
    "size": (
        "main",
        {"base_journal_max_size": "plenty"},
        'base_journal_max_size is "plenty". It is a number with',
        "/etc/systemd/journald.conf.d/lms.conf",
    ),
    "service": (
        "main",
        {"base_time_service": "ntpd"},
        "value of base_time_service must be one of",
        "/etc/systemd/timesyncd.conf.d/lms.conf",
    ),
    "option": ("main", {"base_users": [{"name": "anna", "sudoo": []}]}, "sudoo", "/etc/sudoers.d/lms"),
}


def test_a_value_that_would_break_a_service_does_not_land(host, key, users):
    once(host)
    files = sorted({file for *_others, file in REFUSED.values()})
    before = host.check_output(f"cat {' '.join(files)}")

    found = answers(
        host,
        "base",
        {name: {"base_users": users, **variables} for name, (_part, variables, *_others) in REFUSED.items()},
        tasks={name: part for name, (part, *_others) in REFUSED.items()},
    )

    for name, (_part, _variables, message, _file) in REFUSED.items():
        assert message in found[name].failure, name
    assert host.check_output(f"cat {' '.join(files)}") == before
    assert log_in(host, key, "anna", "sudo -n true").returncode == 0
    assert service_is_up(host, "fail2ban")


def test_a_user_applies_parts_of_the_role_over_ssh_and_those_left_out_leave_their_files_alone(host, key, users):
    files = ["/etc/sysctl.d/90-lms.conf", "/etc/logrotate.conf", "/etc/fail2ban/jail.local", "/etc/apt/apt.conf.d/90lms-upgrades"]
    host.check_output("mkdir /var/tmp/aside && mv %s %s %s %s /var/tmp/aside", *files)

    run = play(host, "base", "--become", PARTS, **over_ssh(host, key, "anna"), **LOGINS_ALONE, base_users=users)
    written = [file for file in files if host.file(file).exists]
    for file in files:
        host.check_output("mv /var/tmp/aside/%s %s", file.rpartition("/")[2], file)
    host.check_output("rmdir /var/tmp/aside")

    assert run.returncode == 0, said(run)
    assert "changed=0" in said(run)
    assert written == []


def test_a_reload_that_was_lost_is_made_good_by_the_next_run(logins_of_root):
    assert logins_of_root == (255, 0)


def test_a_run_that_would_take_away_its_own_login_is_refused(host, key, users, logins_of_root):
    once(host)
    variables = LOGINS_ALONE | {"base_users": users}
    settings = host.check_output("cat %s", SSH_SETTINGS)

    refused = play(host, "base", **over_ssh(host, key, "root"), **variables)

    assert refused.returncode != 0
    assert "Ansible logs in as root, which base_ssh_root_login_allowed does not allow. The next run could not log in." in said(refused)
    assert host.check_output("cat %s", SSH_SETTINGS) == settings
    assert log_in(host, key, "root", "true").returncode == 0

    # With the guard off it does what was feared.
    applied = play(host, "base", PARTS, **over_ssh(host, key, "root"), **variables, base_ssh_lockout_allowed=True)
    assert applied.returncode == 0, said(applied)
    assert log_in(host, key, "root", "true").returncode == 255


def test_a_key_that_is_not_listed_any_more_goes(host, key, users, tmp_path):
    once(host)
    other = new_key(tmp_path).with_suffix(".pub").read_text().strip()

    run = apply_role(host, "base", tasks="users", base_users=[users[0], users[1] | {"authorized_keys": [other]}])

    assert run.returncode == 0, said(run)
    assert log_in(host, key, "ben", "true").returncode == 255
