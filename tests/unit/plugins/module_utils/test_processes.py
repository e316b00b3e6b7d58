# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which processes run the application, and which release: by the facts of /proc, also of real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._processes import (
    Application,
    Finding,
    Process,
    ProcessTable,
    artisan_command,
    find_processes,
    judge,
    shown_command,
    unit_of,
)

ROOT = Path("/srv/lms/backend")
SWITCHED = 1000.0
APPLICATION = Application(ROOT, "new", SWITCHED)
WORKER = Process(
    pid=7,
    parent=1,
    started=SWITCHED + 5,
    user="lms",
    arguments=("php", "/srv/lms/backend/current/artisan", "queue:work", "--tries=3"),
    program="/usr/bin/php8.4",
    directory="/srv/lms/backend",
    unit="lms-queue@1.service",
)
BY_HAND = replace(WORKER, arguments=("php", "artisan", "queue:work"))


def verdict(process: Process, application: Application = APPLICATION) -> tuple[str, str | None, str, bool] | None:
    """Return what is found out about a process."""
    finding = judge(process, application)
    return None if finding is None else (finding.kind, finding.release, finding.proof, finding.current)


@pytest.mark.parametrize(
    ("process", "expected"),
    [
        # The script that PHP holds open, whatever link the command line went through, and whenever it was started.
        (replace(WORKER, files=("/srv/lms/backend/releases/new/artisan",)), ("queue", "new", "file", True)),
        (replace(WORKER, files=("/srv/lms/backend/releases/old/artisan",)), ("queue", "old", "file", False)),
        (replace(WORKER, files=("/srv/lms/backend/releases/old/artisan (deleted)",)), ("queue", "old", "file", False)),
        # Without it, by the time of the start.
        (WORKER, ("queue", "new", "start", True)),
        (replace(WORKER, started=SWITCHED - 5), ("queue", None, "start", False)),
        # The kernel's clocks are coarse: what cannot be told apart is taken for old.
        (replace(WORKER, started=SWITCHED), ("queue", None, "start", False)),
        (replace(BY_HAND, directory="/srv/lms/backend/releases/old"), ("queue", "old", "argument", False)),
        (replace(BY_HAND, directory="/srv/lms/backend/releases/new"), ("queue", "new", "argument", True)),
        (replace(BY_HAND, directory="/srv/lms/backend/releases/old (deleted)"), ("queue", "old", "argument", False)),
        (
            replace(WORKER, arguments=("php", "current/artisan", "horizon"), started=SWITCHED - 5),
            ("horizon", None, "start", False),
        ),
        (
            replace(WORKER, arguments=("php", "/srv/lms/backend/releases/old/import.php")),
            ("command", "old", "argument", False),
        ),
        (
            replace(WORKER, arguments=("swoole_http_server: worker",), directory="/srv/lms/backend/releases/old"),
            ("command", "old", "directory", False),
        ),
        (
            replace(WORKER, program="/srv/lms/backend/releases/old/rr", arguments=("rr", "serve")),
            ("command", "old", "program", False),
        ),
    ],
)
def test_release_is_proven(process: Process, expected: tuple[str, str | None, str, bool]) -> None:
    assert verdict(process) == expected


@pytest.mark.parametrize(
    "process",
    [
        # Another application of the same host, and one whose name begins alike.
        replace(BY_HAND, directory="/srv/other/releases/old"),
        replace(WORKER, arguments=("php", "/srv/lms/backend2/current/artisan", "queue:work")),
        # A person who looks into a release.
        replace(WORKER, program="/usr/bin/bash", arguments=("-bash",), directory="/srv/lms/backend/releases/old"),
        replace(WORKER, program="/usr/bin/tail", arguments=("tail", "-f", "/srv/lms/backend/current/storage/logs/laravel.log")),
        # PHP-FPM changes over by itself.
        replace(WORKER, program="/usr/sbin/php-fpm8.4", files=("/srv/lms/backend/releases/old/public/index.php",)),
    ],
)
def test_strangers_are_left_alone(process: Process) -> None:
    assert verdict(process) is None


def test_units_and_kinds_can_be_left_out() -> None:
    assert verdict(WORKER, replace(APPLICATION, ignored_units=("*-queue@*.service",))) is None
    assert verdict(WORKER, replace(APPLICATION, kinds=("horizon",))) is None


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (("php", "artisan", "queue:work", "redis"), "queue:work"),
        (("php", "-d", "memory_limit=1G", "/a/current/artisan", "--env=x", "schedule:run"), "schedule:run"),
        (("php", "artisan"), "list"),
        (("php", "index.php"), ""),
    ],
)
def test_command_is_read_from_the_command_line(arguments: tuple[str, ...], command: str) -> None:
    assert artisan_command(arguments) == command


def test_secrets_and_long_command_lines_are_not_shown() -> None:
    assert (
        shown_command(("php", "artisan", "down", "--secret=let-me-in", "--api-token=x")) == "php artisan down --secret=*** --api-token=***"
    )
    assert len(shown_command(("php", "x" * 500))) == 200


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        ("0::/system.slice/system-lms\\x2dqueue.slice/lms-queue@1.service\n", "lms-queue@1.service"),
        ("9:name=systemd:/\n1:cpu:/\n0::/system.slice/lms-horizon.service\n", "lms-horizon.service"),
        ("1:name=systemd:/docker/abc/system.slice/cron.service\n", "cron.service"),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", None),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/worker.service\n", None),
        ("0::/\n", None),
        ("", None),
    ],
)
def test_unit_is_read_from_the_cgroup(cgroups: str, unit: str | None) -> None:
    assert unit_of(cgroups) == unit


# Real processes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make an application with two releases, of which the new one is live."""
    for name in ("old", "new"):
        (tmp_path / "releases" / name).mkdir(parents=True)
        (tmp_path / "releases" / name / "artisan").write_text("while :; do sleep 0.1; done\n")
    (tmp_path / "current").symlink_to("releases/new")
    # The shell plays PHP: it too runs a script that it holds open.
    shutil.copy("/bin/sh", tmp_path / "php8.4")
    return tmp_path


@pytest.fixture
def start(root: Path) -> Iterator[Any]:
    """Start processes, and end them."""
    running: list[subprocess.Popen[bytes]] = []

    def start_one(*arguments: str, cwd: Path = root, program: Path = root / "php8.4") -> int:
        running.append(subprocess.Popen(["php", *arguments], executable=program, cwd=cwd))
        # Its command line is that of this process until it has become another program.
        while Path(f"/proc/{running[-1].pid}/exe").readlink() != program:
            time.sleep(0.01)
        time.sleep(0.05)
        return running[-1].pid

    yield start_one
    for process in running:
        process.kill()
        process.wait()


def look(root: Path) -> dict[int, Finding]:
    """Return what is found on this host."""
    application = Application(root, "new", (root / "current").lstat().st_ctime)
    return {finding.process.pid: finding for finding in find_processes(ProcessTable().read(), application)}


def test_real_worker_is_found_by_the_script_that_it_holds_open(root: Path, start: Any) -> None:
    (root / "current").unlink()
    (root / "current").symlink_to("releases/old")
    old = start("current/artisan", "queue:work")
    (root / "next").symlink_to("releases/new")
    (root / "next").rename(root / "current")
    new = start("current/artisan", "queue:work")

    found = look(root)

    assert {pid: (finding.release, finding.proof, finding.current) for pid, finding in found.items()} == {
        old: ("old", "file", False),
        new: ("new", "file", True),
    }
    assert found[old].process.unit == found[new].process.unit
    assert abs(found[new].process.started - time.time()) < 5


def test_real_worker_of_a_release_that_is_gone_is_found(root: Path, start: Any) -> None:
    pid = start("artisan", "queue:work", cwd=root / "releases/old")
    shutil.rmtree(root / "releases/old")

    finding = look(root)[pid]

    assert (finding.release, finding.current) == ("old", False)


def test_real_shell_in_a_release_is_no_worker(root: Path, start: Any) -> None:
    start("-c", "while :; do sleep 0.1; done", cwd=root / "releases/old", program=Path("/bin/sh").resolve())

    assert look(root) == {}


def test_this_process_and_its_parents_are_not_looked_at() -> None:
    found = {process.pid for process in ProcessTable().read()}

    assert found.isdisjoint({os.getpid(), os.getppid()} - {1})
    assert 1 in found
