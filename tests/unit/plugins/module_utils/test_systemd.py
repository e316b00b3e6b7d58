# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs of systemd: what is run, and what becomes of what they say."""

from __future__ import annotations

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError
from ansible_collections.bitflow.lms.plugins.module_utils._systemd import Systemctl, run_program


def test_all_that_a_program_says_is_read() -> None:
    told = run_program(["sh", "-c", "sleep 1.05; echo $LC_ALL; echo wrong >&2; exit 3"])

    assert told == (3, "C.UTF-8\n", "wrong\n")


def test_a_refusal_is_an_error_unless_it_was_foreseen() -> None:
    systemctl = Systemctl(lambda argv: (5, "", f"Unit {argv[-1]} not found.\n"))

    assert systemctl.attempt("start", "a.service") == (5, "", "Unit a.service not found.\n")
    with pytest.raises(CommandError, match=r"^systemctl start ended with status 5: Unit a\.service not found\.$") as caught:
        systemctl("start", "a.service")
    assert caught.value.details["cmd"] == ["systemctl", "start", "a.service"]


def test_the_log_is_what_the_processes_wrote() -> None:
    ran: list[list[str]] = []

    def run(argv: list[str]) -> tuple[int, str, str]:
        ran.append(argv)
        return 0, "one\n  two\n", ""

    assert Systemctl(run).log("--unit=a.service") == ["one", "  two"]
    assert ran == [["journalctl", "--no-pager", "--quiet", "--output=cat", "--unit=a.service"]]
