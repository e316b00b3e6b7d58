# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Long steps: what is said of them, and what the control host asks the host."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.plugin_utils._progress_action import ProgressAction, progress_line

MEGABYTE = 1000 * 1000
NOTED = {"step": "dump lms", "bytes": 300 * MEGABYTE, "total": 400 * MEGABYTE, "started": 1000.0}


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        ({}, "dump lms: 300 MB of about 400 MB (75 %), 30.0 MB/s, about 3 s left"),
        ({"total": None}, "dump lms: 300 MB in 10 s, 30.0 MB/s"),
        # Larger than the last time: an estimate that is wrong is not told.
        ({"bytes": 500 * MEGABYTE}, "dump lms: 500 MB in 10 s, 50.0 MB/s"),
        ({"bytes": 0}, "dump lms: 10 s so far"),
        ({"bytes": 1500, "total": 1500000}, "dump lms: 1.5 kB of about 1.5 MB (0 %), 150 B/s, about 2 h 46 min left"),
    ],
)
def test_a_step_is_told_in_bytes_rate_and_what_is_left(progress: dict[str, Any], line: str) -> None:
    assert progress_line({**NOTED, **progress}, 1010.0) == line


class Host:
    """A host that runs a module by itself for a while."""

    def __init__(self, answers: list[dict[str, Any]], check_mode: bool = False, async_val: int = 0) -> None:
        self.now = 1000.0
        self.asked: list[tuple[str | None, dict[str, Any], int]] = []
        self.shown: list[str] = []
        host = self
        remaining = list(answers)

        class Action(ProgressAction):
            def clock(self) -> float:
                return host.now

            def sleep(self, seconds: float) -> None:
                host.now += seconds

            def get_shell_option(self, option: str, default: Any = None) -> Any:
                return default

            def _remote_expand_user(self, path: str, *_arguments: Any, **_options: Any) -> str:
                return path.replace("~", "/home/lms")

            def _low_level_execute_command(self, cmd: str, **_options: Any) -> dict[str, Any]:
                host.asked.append((cmd.split()[0], {}, 0))
                return {"stdout": f"{json.dumps(NOTED)}1010\n"} if cmd.startswith("cat") else {}

            def _execute_module(self, module_name: str | None, module_args: dict[str, Any], **_options: Any) -> dict[str, Any]:
                host.asked.append((module_name, module_args, self._task.async_val))
                return remaining.pop(0)

        display = SimpleNamespace(display=self.shown.append)
        task = SimpleNamespace(
            args={"name": "lms"}, async_val=async_val, check_mode=check_mode, action="database_backup", get_name=lambda: "Back up"
        )
        self.action = Action(task, SimpleNamespace(_shell=SimpleNamespace(tmpdir=None)), SimpleNamespace(), None, None, None)
        self.action._display = display

    def run(self) -> dict[str, Any]:
        """Run the action."""
        return self.action.run(task_vars={"inventory_hostname": "data"})


STARTED = {"ansible_job_id": "j1", "started": True, "finished": False}
RUNNING = {"started": True, "finished": False}
DONE = {"changed": True, "backup": {"id": "x"}, "started": True, "finished": True, "ansible_job_id": "j1", "results_file": "/home/lms/j1"}


def test_a_short_step_says_nothing_and_leaves_nothing_behind() -> None:
    host = Host([STARTED, RUNNING, DONE, {}])

    assert host.run() == {"changed": True, "backup": {"id": "x"}}
    assert host.shown == []
    assert [(module, options.get("mode")) for module, options, _limit in host.asked[1:]] == [
        ("ansible.legacy.async_status", "status"),
        ("ansible.legacy.async_status", "status"),
        ("ansible.legacy.async_status", "cleanup"),
        ("rm", None),
    ]
    assert host.asked[0][1]["progress_file"].startswith("/home/lms/.ansible_async/bitflow-lms-")
    # Ansible itself is not to wait for it.
    assert host.action._task.async_val == 0


def test_a_long_step_says_how_far_it_is() -> None:
    host = Host([STARTED, *[RUNNING] * 9, DONE, {}])

    host.run()

    assert host.shown == ["Back up [data] dump lms: 300 MB of about 400 MB (75 %), 30.0 MB/s, about 3 s left"] * 2


def test_a_failure_is_the_modules_own() -> None:
    failed = {"failed": True, "msg": "no room", "finished": True, "started": True}
    host = Host([STARTED, failed, {}])

    assert host.run() == {"failed": True, "msg": "no room"}


def test_a_module_that_does_not_start_is_not_waited_for() -> None:
    host = Host([{"failed": True, "msg": "no python"}])

    assert host.run() == {"failed": True, "msg": "no python"}


@pytest.mark.parametrize("how", [{"check_mode": True}, {"async_val": 60}])
def test_check_mode_and_async_tasks_run_the_module_as_it_is(how: dict[str, Any]) -> None:
    host = Host([{"changed": True}], **how)

    assert host.run() == {"changed": True}
    assert host.asked == [(None, {"name": "lms"}, how.get("async_val", 0))]
