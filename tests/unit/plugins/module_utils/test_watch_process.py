# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process of a watch outlives the task that starts it, and never its time."""

from __future__ import annotations

import http.server
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._http_watch import Target, Watch
from ansible_collections.bitflow.lms.plugins.module_utils._watch_process import WatchProcess, make_private


class Health(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[WatchProcess]:
    made = WatchProcess(tmp_path / "watches", "switch")
    yield made
    if made.exists():
        made.end()


def watch(address: str, **options: float) -> Watch:
    return Watch((Target("api", "http://api.example.com/health", address),), **{"rate": 40, "timeout": 1, "at_most": 30, **options})


def wait_until(condition: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def alive(pid: int) -> bool:
    """Say whether a process runs; in a container nobody may take the remains of one that ended."""
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


def test_it_asks_until_it_is_stopped(process: WatchProcess, address: str) -> None:
    process.start(watch(address))
    assert wait_until(lambda: len(process.read()) >= 10)

    seen = process.end()

    assert (seen["ended"], seen["failed_requests"], seen["downtime_ms"]) == ("stopped", 0, 0)
    assert seen["requests"] >= 10
    assert not process.running()
    assert not process.directory.exists()


def test_start_returns_when_each_address_was_asked(process: WatchProcess, address: str) -> None:
    process.start(watch(address))

    assert {answer.name for answer in process.read()} == {"api"}


def test_it_leaves_the_session_and_the_terminal(process: WatchProcess, address: str) -> None:
    pid = process.start(watch(address))["pid"]

    files = {str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in (0, 1, 2)}
    assert os.getsid(pid) not in (os.getsid(0), pid)
    assert files == {"/dev/null"}
    assert Path(f"/proc/{pid}/cwd").resolve() == Path("/")


def test_it_never_outlives_its_time(process: WatchProcess, address: str) -> None:
    process.start(watch(address, at_most=0.4))

    assert wait_until(lambda: not process.running(), 3)
    seen = process.end()
    assert seen["ended"] == "time limit"
    assert seen["requests"] > 5


def test_its_files_are_its_life(process: WatchProcess, address: str) -> None:
    process.start(watch(address))

    process.plan.unlink()

    assert wait_until(lambda: not process.running(), 3)


def test_one_that_was_killed_is_told_from_one_that_was_stopped(process: WatchProcess, address: str) -> None:
    os.kill(process.start(watch(address))["pid"], signal.SIGKILL)
    assert wait_until(lambda: not process.running())

    assert process.end()["ended"] == "killed"


def test_one_that_hangs_is_killed(process: WatchProcess, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = process.start(watch(address))["pid"]
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr("ansible_collections.bitflow.lms.plugins.module_utils._watch_process.GRACE_SECONDS", 0.3)

    assert process.end()["ended"] == "killed"
    assert not alive(pid)


def test_the_same_name_again_takes_the_place(process: WatchProcess, address: str) -> None:
    first = process.start(watch(address))["pid"]

    second = process.start(watch(address))["pid"]

    assert first != second
    assert process.running()
    assert not alive(first)


def test_its_files_are_private(process: WatchProcess, address: str) -> None:
    process.start(watch(address))

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [process.parent, process.directory, *process.directory.iterdir()]}
    assert {name: mode for name, mode in modes.items() if mode & 0o077} == {}


def test_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)

    with pytest.raises(LmsError, match="is not a directory of the user"):
        make_private(tmp_path / "link")


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b"])
def test_name_that_leaves_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(LmsError, match="name is"):
        WatchProcess(tmp_path, name)


def test_authorities_that_cannot_be_read_are_refused_before_anything_starts(process: WatchProcess) -> None:
    target = Target("api", "https://api.example.com/", "127.0.0.1:1", "/nonexistent.pem")

    with pytest.raises(LmsError, match="there is no such file"):
        process.start(Watch((target,)))

    assert not process.exists()
