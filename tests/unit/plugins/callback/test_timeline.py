# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The callback in real runs of ansible-playbook."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.callback.timeline import message_of, progress_line

ROOT = Path(__file__).parents[4]
PLAYBOOK = """
- name: Prepare <b>it</b>
  hosts: all
  gather_facts: false
  tasks:
    - name: Take some time
      ansible.builtin.command: sleep {{ seconds if inventory_hostname == 'web2' else 0 }}
      changed_when: inventory_hostname == 'web2'
    - name: Do nothing
      ansible.builtin.debug:
      when: false
- name: Switch
  hosts: all
  gather_facts: false
  tasks:
    - name: Keep a secret
      ansible.builtin.command: echo canary-secret
      no_log: true
      failed_when: inventory_hostname == 'web1'
    - name: Prove it
      ansible.builtin.fail:
        msg: "<script> answered 503 to item {{ item }}"
      loop: [1, 2]
"""


def start(tmp_path: Path, seconds: float = 0.5, **environment: str) -> subprocess.Popen[str]:
    playbook = tmp_path / "deploy.yml"
    playbook.write_text(PLAYBOOK)
    (tmp_path / "ansible.cfg").write_text("[defaults]\n")
    settings = {
        "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
        "ANSIBLE_CALLBACKS_ENABLED": "bitflow.lms.timeline",
        "ANSIBLE_LOCALHOST_WARNING": "False",
        "ANSIBLE_NOCOLOR": "1",
    }
    known = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "LMS_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "ansible", "playbook", "-i", "web1,web2,", "-c", "local", "-e", f"seconds={seconds}", str(playbook)],
        env={**known, **settings, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _errors = process.communicate(timeout=60)
    return process.returncode, output


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str, Path]]:
    tmp_path = tmp_path_factory.mktemp("drawn")
    path = tmp_path / "run.html"
    yield (*finish(start(tmp_path, seconds=3, LMS_TIMELINE=str(path), LMS_PROGRESS_INTERVAL="1")), path)


def test_run_is_drawn_with_what_failed(drawn: tuple[int, str, Path]) -> None:
    status, output, path = drawn
    page = path.read_text()

    assert status == 2
    assert f"The timeline of this run is in {path}." in output
    assert "Prepare &lt;b&gt;it&lt;/b&gt;" in page
    assert "<strong>Prove it</strong> on web2" in page
    assert "<pre>&lt;script&gt; answered 503 to item 1</pre>" in page
    assert path.stat().st_mode & 0o077 == 0


def test_secret_of_a_task_with_no_log_is_not_drawn(drawn: tuple[int, str, Path]) -> None:
    page = drawn[2].read_text()

    assert "<strong>Keep a secret</strong> on web1" in page
    assert "The result is hidden, because the task has no_log." in page
    assert "canary-secret" not in page


def test_long_task_is_named_while_it_runs(drawn: tuple[int, str, Path]) -> None:
    output = drawn[1]

    said = re.search(r"^  Take some time: \d+ s, waiting for (?:web1, )?web2$", output, re.MULTILINE)
    assert said is not None
    assert said.start() < output.index("changed: [web2]")
    # What ended within the interval of a second is not named, however long that took here.
    assert {int(seconds) >= 1 for seconds in re.findall(r": (\d+) s, waiting for ", output)} == {True}


def test_nothing_is_drawn_or_said_when_it_is_off(tmp_path: Path) -> None:
    status, output = finish(start(tmp_path, LMS_PROGRESS_INTERVAL="0"))

    assert status == 2
    assert "waiting for" not in output
    assert list(tmp_path.glob("*.html")) == []


def test_trouble_of_the_drawing_is_a_warning_and_the_run_goes_on(tmp_path: Path) -> None:
    status, output = finish(start(tmp_path, LMS_TIMELINE=str(tmp_path / "missing" / "run.html")))

    assert status == 2
    assert "The timeline was given up: FileNotFoundError" in output.replace("\n", " ")
    assert "PLAY RECAP" in output


def test_run_that_is_interrupted_is_drawn_too(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    process = start(tmp_path, seconds=10, LMS_TIMELINE=str(path), LMS_PROGRESS_INTERVAL="0.5")
    assert process.stdout is not None
    while "Take some time" not in (line := process.stdout.readline()):
        assert line or process.poll() is None
    process.send_signal(signal.SIGINT)
    finish(process)

    deadline = time.monotonic() + 5
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "unfinished" in path.read_text()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"msg": "it failed"}, "it failed"),
        ({"censored": "hidden", "msg": "secret"}, "The result is hidden, because the task has no_log."),
        ({}, "It failed."),
    ],
)
def test_message_says_why_and_no_secret(result: dict[str, Any], message: str) -> None:
    assert message_of(result) == message


def test_many_hosts_are_cut() -> None:
    assert progress_line("Build", 20.4, [f"web{number}" for number in range(7)]) == (
        "  Build: 20 s, waiting for web0, web1, web2, web3, web4 and 2 more"
    )
