# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pipes of programs: every end counts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import Stage, StageError, run_pipeline


def shell(command: str) -> Stage:
    """Return a program that does what a test needs."""
    return Stage(["sh", "-c", command])


def collect(*stages: Stage, **options: object) -> bytes:
    """Run programs and return what the last one wrote."""
    pieces: list[bytes] = []
    run_pipeline(stages, sink=pieces.append, **options)  # type: ignore[arg-type]
    return b"".join(pieces)


def test_bytes_go_from_source_through_all_programs_to_the_sink() -> None:
    assert collect(Stage(["tr", "a-z", "A-Z"]), Stage(["rev"]), source=[b"abc\n", b"def\n"]) == b"CBA\nFED\n"


def test_a_large_stream_arrives_whole() -> None:
    size = 20 * 1024 * 1024

    assert len(collect(Stage(["head", "-c", str(size), "/dev/zero"]), Stage(["cat"]))) == size


def test_the_first_program_reads_nothing_without_a_source() -> None:
    assert collect(Stage(["cat"])) == b""


def test_a_tap_hears_what_goes_from_one_program_to_the_next() -> None:
    heard: list[bytes] = []

    assert collect(shell("printf abc"), Stage(["tr", "a", "x"]), taps={0: heard.append}) == b"xbc"
    assert b"".join(heard) == b"abc"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((shell("echo no room >&2; exit 3"), Stage(["cat"])), "sh ended with status 3: no room"),
        ((Stage(["cat", "/dev/zero"]), shell("echo broken >&2; exit 4")), "sh ended with status 4: broken"),
        ((shell("printf abc; kill -9 $$"), Stage(["cat"])), "sh was killed by signal 9"),
    ],
)
@pytest.mark.parametrize("tapped", [False, True])
def test_a_program_that_fails_is_named_wherever_it_stands(stages: tuple[Stage, ...], message: str, tapped: bool) -> None:
    with pytest.raises(StageError) as error:
        collect(*stages, taps={0: lambda _piece: None} if tapped else {})

    assert error.value.message == message


def test_without_the_guard_a_killed_program_is_not_noticed() -> None:
    # What a shell makes of it: the compressor ends well, and so does the pipe.
    assert subprocess.run(["sh", "-c", "sh -c 'printf abc; kill -9 $$' | gzip | gzip -t"], check=False).returncode == 0


def test_what_a_program_said_is_kept_to_its_end() -> None:
    with pytest.raises(StageError) as error:
        collect(shell("seq 1 100000 >&2; exit 1"))

    assert error.value.message == "sh ended with status 1: 100000"
    assert len(error.value.details["stderr"]) <= 8192


def test_a_source_that_fails_is_no_end_of_data() -> None:
    def source() -> Iterator[bytes]:
        yield b"abc"
        raise LmsError("The sum differs.")

    with pytest.raises(LmsError, match="The sum differs"):
        collect(Stage(["cat"]), source=source())


def test_a_sink_that_fails_ends_the_programs() -> None:
    def sink(_piece: bytes) -> None:
        raise LmsError("The disk is full.")

    with pytest.raises(LmsError, match="The disk is full"):
        run_pipeline([Stage(["cat", "/dev/zero"])], sink=sink)


def test_a_tap_that_fails_ends_the_programs() -> None:
    def tap(_piece: bytes) -> None:
        raise LmsError("The trailer is wrong.")

    with pytest.raises(LmsError, match="The trailer is wrong"):
        collect(Stage(["cat", "/dev/zero"]), Stage(["cat"]), taps={0: tap})


def test_a_program_that_stops_reading_early_and_fails_is_blamed_rather_than_its_source() -> None:
    with pytest.raises(StageError) as error:
        collect(shell("head -c 1 >/dev/null; echo relation exists >&2; exit 1"), source=(b"x" * 1024 * 1024 for _piece in range(64)))

    assert error.value.message == "sh ended with status 1: relation exists"


def test_what_takes_too_long_is_ended() -> None:
    with pytest.raises(StageError, match=r"sleep was not done after 0\.1 s"):
        collect(Stage(["sleep", "60"]), Stage(["cat"]), timeout=0.1)


def test_what_a_program_started_ends_with_it() -> None:
    with pytest.raises(StageError, match="sh was not done"):
        collect(shell("sleep 60; true"), Stage(["cat"]), timeout=0.1)


def test_a_program_that_is_not_installed_is_named() -> None:
    with pytest.raises(LmsError, match="no-such-program is not installed on this host"):
        collect(Stage(["no-such-program"]))


def test_programs_see_no_more_of_the_environment_than_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "secret")

    names = {line.partition(b"=")[0] for line in collect(Stage(["env"], environment={"PGAPPNAME": "backup"})).splitlines()}

    assert names - {b"PWD", b"SHLVL", b"_"} == {b"HOME", b"LC_ALL", b"PATH", b"PGAPPNAME"}


def test_programs_die_with_the_process_that_started_them(tmp_path: Path) -> None:
    program = (
        "from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import Stage, run_pipeline\n"
        f"run_pipeline([Stage(['sh', '-c', 'echo $$ > {tmp_path}/pid; exec sleep 60'])])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        time.sleep(0.01)
    pid = int((tmp_path / "pid").read_text())

    process.kill()
    process.wait()

    for _attempt in range(500):
        if not _runs(pid):
            return
        time.sleep(0.01)
    pytest.fail("The program went on without the one that had started it.")


def _runs(pid: int) -> bool:
    """Say whether a process runs; one that nobody has buried yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False
