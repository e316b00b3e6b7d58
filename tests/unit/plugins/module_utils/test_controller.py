# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run of Ansible is recognised, and only one that is certainly dead counts as dead."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._controller import ask_about_clock, identity_of, is_dead, take_lease

RUN = {"controller": "control", "user": "anna", "process": "boot pid:[1] 4711 123"}


class Processes:
    """A /proc with one process."""

    def __init__(self, directory: Path, boot: str = "boot", namespace: str = "pid:[1]") -> None:
        self.directory = directory
        (directory / "sys/kernel/random").mkdir(parents=True)
        (directory / "sys/kernel/random/boot_id").write_text(f"{boot}\n")
        (directory / "self/ns").mkdir(parents=True)
        (directory / "self/ns/pid").symlink_to(namespace)

    def start(self, pid: int, ticks: int, state: str = "S", name: str = "ansible-playboo") -> None:
        """Let a process run."""
        fields = ["0"] * 18 + [str(ticks)] + ["0"] * 30
        (self.directory / str(pid)).mkdir(exist_ok=True)
        (self.directory / str(pid) / "stat").write_text(f"{pid} ({name}) {state} {' '.join(fields)}\n")


def test_a_living_process_is_recognised_until_it_ends() -> None:
    process = subprocess.Popen(["sleep", "60"])
    identity = identity_of(process.pid)

    alive = is_dead(identity)
    process.send_signal(signal.SIGKILL)
    # Dead, and not yet buried: nobody has asked for its status.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    unburied = is_dead(identity)
    process.wait()

    assert (alive, unburied, is_dead(identity)) == (False, True, True)


def test_a_name_with_parentheses_hides_nothing(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.start(7, 42, name="a) S 1 (b")

    assert identity_of(7, tmp_path) == "boot pid:[1] 7 42"


@pytest.mark.parametrize(
    ("identity", "dead"),
    [
        ("boot pid:[1] 7 42", False),
        ("boot pid:[1] 7 41", True),
        ("boot pid:[1] 8 42", True),
        ("boot-before pid:[1] 8 42", False),
        ("boot pid:[2] 8 42", False),
        ("", False),
        ("boot pid:[1] x 42", False),
        ("boot pid:[1] ../7 42", False),
        ("boot pid:[1] 7", False),
    ],
)
def test_only_who_can_be_judged_is_dead(tmp_path: Path, identity: str, dead: bool) -> None:
    Processes(tmp_path).start(7, 42)

    assert is_dead(identity, tmp_path, there=lambda _pid: False) is dead


def test_a_process_that_is_only_hidden_is_not_dead(tmp_path: Path) -> None:
    Processes(tmp_path)

    assert is_dead("boot pid:[1] 8 42", tmp_path, there=lambda _pid: True) is False


def test_without_proc_nobody_is_known_or_dead(tmp_path: Path) -> None:
    assert (identity_of(os.getpid(), tmp_path), is_dead("boot pid:[1] 7 42", tmp_path)) == ("", False)


class Host:
    """A host that answers from a list and records what it was asked."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    def __call__(self, options: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(options)
        return self.answers.pop(0)


HELD: dict[str, Any] = {"failed": True, "holder": {"owner": "theirs", "process": "p"}}
DONE: dict[str, Any] = {"changed": True, "holder": {"owner": "ours"}}


def test_the_run_introduces_itself_and_an_option_goes_first() -> None:
    host = Host(DONE)

    result = take_lease(host, {"owner": "ours", "details": {"what": "w", "user": "robot", "controller": None}}, RUN)

    assert result == DONE
    assert host.asked == [{"owner": "ours", "details": {**RUN, "what": "w", "user": "robot"}, "wait": 0}]


@pytest.mark.parametrize("held", [HELD, {"blocked": "x", "holder": HELD["holder"]}])
def test_from_a_dead_run_it_is_taken_at_once(held: dict[str, Any]) -> None:
    host = Host(held, DONE)

    result = take_lease(host, {"owner": "ours", "wait": "5"}, RUN, dead=lambda process: process == "p")

    assert result == DONE
    assert host.asked[1] == {"owner": "ours", "details": RUN, "dead_owner": "theirs", "wait": 60}


@pytest.mark.parametrize(
    ("options", "dead", "asked"),
    [
        ({}, False, 1),
        ({"wait": 9}, False, 2),
        ({"steal": "never"}, True, 1),
        ({"steal": "never", "wait": 9}, True, 2),
    ],
)
def test_from_a_living_run_it_is_not_taken(options: dict[str, Any], dead: bool, asked: int) -> None:
    host = Host(HELD, HELD)

    assert take_lease(host, {"owner": "ours", **options}, RUN, dead=lambda _process: dead) == HELD
    assert len(host.asked) == asked
    assert not any("dead_owner" in call for call in host.asked)


def test_a_run_that_dies_while_another_waits_is_not_waited_for_any_longer() -> None:
    host = Host(HELD, HELD, HELD, DONE)
    judgements = iter([False, False, True])

    result = take_lease(host, {"owner": "ours", "wait": 300}, RUN, dead=lambda _process: next(judgements))

    assert result == DONE
    assert [(call["wait"], call.get("dead_owner")) for call in host.asked] == [(0, None), (10, None), (10, None), (280, "theirs")]


def test_waiting_ends_with_the_last_answer() -> None:
    host = Host(HELD, HELD, HELD)

    assert take_lease(host, {"owner": "ours", "wait": 15}, RUN, dead=lambda _process: False) == HELD
    assert [call["wait"] for call in host.asked] == [0, 10, 5]


def test_a_plan_waits_for_nobody() -> None:
    blocked = {"blocked": "held", "holder": HELD["holder"]}
    host = Host(blocked)

    assert take_lease(host, {"owner": "ours", "wait": 300}, RUN, dead=lambda _process: False) == blocked


def test_a_failure_without_a_holder_is_passed_on() -> None:
    failure = {"failed": True, "msg": "There is no directory /srv/lms"}

    assert take_lease(Host(failure), {"owner": "ours", "wait": 60}, RUN) == failure


@pytest.mark.parametrize(
    ("seconds", "skews", "asked", "problems"),
    [
        ([1], [0], 1, []),
        # The first way was long, the second one was not.
        ([31, 1], [0, 0], 2, []),
        # Every way is longer than the limit: nothing is said about the clock.
        ([31, 31, 31], [0, 0, 0], 3, []),
        ([1, 1], [40, 40], 2, ["clock"]),
    ],
)
def test_a_long_way_to_a_host_is_not_taken_for_a_wrong_clock(seconds, skews, asked, problems):
    time, ways = [1000.0], []

    def execute(options: dict[str, Any]) -> dict[str, Any]:
        number = len(ways)
        ways.append(options)
        time[0] += seconds[number]
        sent = options["controller_time"]
        wrong = sent is not None and abs(time[0] + skews[number] - sent) > 30
        return {"failed": wrong, "problems": [{"check": "clock"}] if wrong else []}

    result = ask_about_clock(execute, {"directories": []}, 30, lambda: time[0])

    assert (len(ways), [problem["check"] for problem in result["problems"]]) == (asked, problems)
