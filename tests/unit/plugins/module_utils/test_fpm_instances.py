# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The PHP-FPM instances: none is stopped before it is at rest, and one that does not start says why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._fastcgi import FastcgiError, Response
from ansible_collections.bitflow.lms.plugins.module_utils._fpm_instances import Drain, Instances, State, complaint_in
from ansible_collections.bitflow.lms.plugins.module_utils._systemd import Systemctl

OLD, NEW = "20261101120000-aaaaaaa", "20261102120000-bbbbbbb"
ROOT = Path("/srv/lms/backend")


class Host:
    """A systemd with one instance, a PHP-FPM that tells what it has to do, and a clock."""

    def __init__(self, wanted: Path, *loads: tuple[int, int] | str) -> None:
        self.wanted = wanted
        self.loads = list(loads)
        self.active = "active"
        self.listing = ""
        self.log = ""
        self.start: tuple[int, str, str] = (0, "", "")
        self.ran: list[str] = []
        self.asked: list[tuple[str, str, str]] = []
        self.time = 0.0

    def run_command(self, argv: list[str], **_options: Any) -> tuple[int, str, str]:
        name = " ".join(word for word in argv[:2] if not word.startswith("-"))
        answers = {
            "systemctl show": (0, f"{self.active}\n", ""),
            "systemctl list-units": (0, self.listing, ""),
            "systemctl start": self.start,
            "journalctl": (0, self.log, ""),
        }
        if name not in ("systemctl show", "systemctl list-units", "journalctl"):
            self.ran.append(" ".join(argv))
        return answers.get(name, (0, "", ""))

    def call(self, address: str, params: Mapping[str, str], timeout: float) -> Response:
        self.asked.append((address, params["SCRIPT_NAME"], params["QUERY_STRING"]))
        load = self.loads.pop(0) if len(self.loads) > 1 else self.loads[0]
        if isinstance(load, str):
            self.time += timeout if load == "timeout" else 0
            raise FastcgiError("No answer.", load)
        active, accepted = load
        return Response(200, {}, json.dumps({"active processes": active, "accepted conn": accepted, "pool": "lms"}).encode())

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def instances(self) -> Instances:
        return Instances(Systemctl(self.run_command), "lms", ROOT, self.call, lambda: self.time, self.sleep, self.wanted)


def test_an_instance_at_rest_is_stopped_at_once(tmp_path: Path) -> None:
    host = Host(tmp_path, (1, 12), (1, 13))

    drained = host.instances().stop(OLD, drain_timeout=60)

    assert drained == Drain(OLD, 0.05, True)
    assert host.asked == [(f"{ROOT}/releases/{OLD}/run/fpm.sock", "/fpm-status", "json")] * 2
    assert host.ran == [f"systemctl stop lms-fpm@{OLD}.service", f"systemctl reset-failed lms-fpm@{OLD}.service"]


@pytest.mark.parametrize(
    ("loads", "polls"),
    [
        pytest.param([(3, 12), (2, 13), (1, 14), (1, 15)], 4, id="requests that run"),
        pytest.param([(1, 12), (1, 15), (1, 16)], 3, id="a request that came and went between two questions"),
        pytest.param(["closed", (1, 20), (1, 21)], 3, id="an answer that broke off"),
        pytest.param([(1, 12), (2, 14), (1, 15), (1, 16)], 4, id="a request that waited in the queue"),
    ],
)
def test_an_instance_with_requests_is_waited_for(tmp_path: Path, loads: list[tuple[int, int] | str], polls: int) -> None:
    host = Host(tmp_path, *loads)

    drained = host.instances().drain(OLD, timeout=1000)

    assert (drained.complete, len(host.asked)) == (True, polls)


def test_an_instance_that_never_rests_is_stopped_when_the_time_is_up(tmp_path: Path) -> None:
    host = Host(tmp_path, (2, 12))

    drained = host.instances().stop(OLD, drain_timeout=2)

    assert (drained.complete, round(drained.seconds)) == (False, 2)
    assert host.ran[0] == f"systemctl stop lms-fpm@{OLD}.service"


def test_an_instance_that_died_needs_no_waiting(tmp_path: Path) -> None:
    host = Host(tmp_path, "connect")
    host.active = "failed"

    assert host.instances().drain(OLD, timeout=60) == Drain(OLD, 0.0, True)


def test_a_stopped_instance_does_not_come_back_at_boot(tmp_path: Path) -> None:
    host = Host(tmp_path, (1, 1), (1, 2))
    (tmp_path / f"lms-fpm@{OLD}.service").symlink_to("/nowhere")

    host.instances().stop(OLD, drain_timeout=60)

    assert f"systemctl disable --quiet --no-reload lms-fpm@{OLD}.service" in host.ran


def test_the_instances_are_those_that_run_and_those_that_will_at_boot(tmp_path: Path) -> None:
    host = Host(tmp_path, (1, 1))
    host.listing = (
        f"lms-fpm@{NEW}.service loaded active running PHP-FPM of lms\nlms-frontend@{NEW}.target loaded active active Front ends\n"
    )
    for name in (f"lms-fpm@{OLD}.service", "lms-workers.target"):
        (tmp_path / name).symlink_to("/nowhere")

    assert host.instances().known() == {OLD: State("inactive", True), NEW: State("active", False)}


def test_an_instance_is_started_and_if_wanted_enabled(tmp_path: Path) -> None:
    host = Host(tmp_path, (1, 1))

    host.instances().start(NEW, at_boot=False)
    host.instances().start(NEW, at_boot=True)

    start = f"systemctl start lms-fpm@{NEW}.service"
    assert host.ran == [start, f"systemctl enable --quiet --no-reload lms-fpm@{NEW}.service", start]


def test_an_instance_that_does_not_start_is_stopped_and_says_why(tmp_path: Path) -> None:
    host = Host(tmp_path, (1, 1))
    host.start = (1, "", "Job for lms-fpm@.service failed because the control process exited with error code.\n")
    host.log = "PHP Fatal error:  Uncaught Error in /etc/lms/preload.php\n[NOTICE] ready\n[ERROR] FPM initialization failed\n"

    with pytest.raises(LmsError) as caught:
        host.instances().start(NEW, at_boot=False)

    assert caught.value.message == f"lms-fpm@{NEW}.service did not start: PHP Fatal error:  Uncaught Error in /etc/lms/preload.php"
    assert host.ran[1] == f"systemctl stop lms-fpm@{NEW}.service"


def test_a_start_that_systemd_left_out_is_no_success(tmp_path: Path) -> None:
    host = Host(tmp_path, (1, 1))
    host.active = "inactive"

    with pytest.raises(LmsError, match=r"systemd found no public/index\.php in the release"):
        host.instances().start(NEW, at_boot=False)


@pytest.mark.parametrize(("log", "said"), [([], ""), (["one", "two"], "two"), (["no error", "then this"], "no error")])
def test_the_line_that_complains_is_the_reason(log: list[str], said: str) -> None:
    assert complaint_in(log) == said


def test_a_socket_with_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    deep = Instances(Systemctl(Host(tmp_path, (1, 1)).run_command), "lms", Path("/srv") / ("x" * 90))

    with pytest.raises(LmsError, match="longer path than the 107 bytes"):
        deep.socket(NEW)


def test_an_instance_without_a_status_page_is_an_error_that_names_the_directive(tmp_path: Path) -> None:
    host = Host(tmp_path, (1, 1))
    instances = Instances(
        Systemctl(host.run_command), "lms", ROOT, lambda *_a, **_k: Response(404, {}, b"File not found."), wanted=tmp_path
    )

    with pytest.raises(LmsError, match=r"Set pm\.status_path to /fpm-status"):
        instances.load(OLD, 1)
