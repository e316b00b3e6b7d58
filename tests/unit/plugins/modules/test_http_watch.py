# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module starts and ends a watch, and check mode only says what would happen."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._http_watch import Target, Watch
from ansible_collections.bitflow.lms.plugins.module_utils._watch_process import watch_from
from ansible_collections.bitflow.lms.plugins.modules import http_watch

ROOT = Path(__file__).parents[4]


def params(directory: Path, **options: Any) -> dict[str, Any]:
    url = {
        "name": "api",
        "url": "http://api.example.com/health",
        "connect_to": "127.0.0.1:9",
        "ca_path": "/etc/ssl/authority.pem",
        "expect_status": [200, 204],
    }
    return {
        "name": "switch",
        "state": "started",
        "urls": [url],
        "rate": 20.0,
        "timeout": 3.0,
        "at_most": 60.0,
        "release_header": "X-Release",
        "directory": str(directory),
        **options,
    }


def test_every_option_reaches_the_watch(tmp_path: Path) -> None:
    assert watch_from(params(tmp_path)) == Watch(
        targets=(Target("api", "http://api.example.com/health", "127.0.0.1:9", "/etc/ssl/authority.pem", (200, 204)),),
        rate=20,
        timeout=3,
        at_most=60,
        release_header="X-Release",
    )


def test_check_mode_starts_nothing_and_refuses_what_is_wrong(tmp_path: Path) -> None:
    assert http_watch.run(params(tmp_path), check_mode=True) == {**http_watch.NOTHING, "changed": True}
    with pytest.raises(LmsError, match="rate is 99"):
        http_watch.run(params(tmp_path, rate=99.0), check_mode=True)
    assert list(tmp_path.iterdir()) == []


def test_without_a_watch_there_is_nothing_to_end(tmp_path: Path) -> None:
    assert http_watch.run(params(tmp_path, state="stopped"), check_mode=False) == http_watch.NOTHING


def test_every_mode_returns_the_same_keys(tmp_path: Path) -> None:
    started = http_watch.run(params(tmp_path), check_mode=False)
    checked = http_watch.run(params(tmp_path, state="stopped"), check_mode=True)
    stopped = http_watch.run(params(tmp_path, state="stopped"), check_mode=False)

    assert set(started) == set(checked) == set(stopped) == set(http_watch.NOTHING)
    assert (checked["changed"], checked["found"], stopped["complete"]) == (True, True, True)
    assert (stopped["failed_requests"], stopped["urls"][0]["good_at_start"]) == (stopped["requests"], False)


def ansible(directory: Path, state: str, address: str) -> dict[str, Any]:
    """Run the module as a task, in a process that ends."""
    urls = json.dumps([{"name": "api", "url": "http://api.example.com/", "connect_to": address}])
    arguments = json.dumps({"state": state, "urls": json.loads(urls), "rate": 50, "timeout": 0.5, "directory": str(directory)})
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "adhoc", "localhost", "-c", "local", "-m", "bitflow.lms.http_watch", "-a", arguments, "-o"],
        capture_output=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections")},
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.partition("=> ")[2])


def test_watch_goes_on_between_the_tasks(tmp_path: Path) -> None:
    # It takes connections and never answers, which is enough to count.
    with socket.create_server(("127.0.0.1", 0), backlog=500) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        started = ansible(tmp_path, "started", address)
        listener.close()
        stopped = ansible(tmp_path, "stopped", address)

    assert started["pid"] > 0
    assert stopped["complete"]
    # The task that ends it takes half a second to start: whatever was asked meanwhile shows that the process went on.
    assert stopped["requests"] > 10
