"""What an operator notices of the base role."""

from __future__ import annotations

import re


def test_the_clock_shows_the_time_zone(host):
    assert host.check_output("date +%:z") == "+05:00"


def test_the_tools_are_there(host):
    assert host.exists("curl")
    assert host.exists("sudo")


def test_the_journal_is_kept_on_the_disk(host):
    host.check_output("echo remember-me | systemd-cat --identifier=base-test && journalctl --sync")

    assert "remember-me" in host.check_output("journalctl --directory=/var/log/journal --identifier=base-test --output=cat")


def test_the_journal_has_its_limit(host):
    assert re.search(r"max 64(\.0)?M", host.check_output("journalctl --unit=systemd-journald --grep='System Journal' --output=cat"))
