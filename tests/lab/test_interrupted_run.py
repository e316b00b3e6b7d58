# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real run of ansible-playbook that follows a rollout and is ended in its middle: nothing stays behind, and the next run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_record import parse
from ansible_collections.bitflow.lms.tests.lab.moto_process import Moto, PlainAlb, moto_process

ROOT = Path(__file__).parents[2]
PLAYBOOK = ROOT / "tests/lab/playbooks/rollout.yml"
REGIONS = iter(["eu-central-1", "eu-west-1", "us-west-2", "eu-north-1"])
# So that a run is in its first step for as long as a test takes.
LONG = [{"weight": 10, "bake": 3600}, {"weight": 100, "bake": 0}]
SHORT = [{"weight": 10, "bake": 2}, {"weight": 100, "bake": 0}]
FIRST_STEP = {"lms-blue": 90, "lms-green": 10}


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    """Return a moto that runs."""
    with moto_process() as made:
        yield made


@pytest.fixture
def alb(moto: Moto) -> PlainAlb:
    """Return a load balancer whose colours are both healthy."""
    region = next(REGIONS)
    made = PlainAlb(moto, region, f"run-{region}")
    made.elb.register_targets(TargetGroupArn=made.groups["lms-green"], Targets=[{"Id": "10.0.2.1", "Port": 8080}])
    return made


class Run:
    """A run of ansible-playbook."""

    def __init__(self, alb: PlainAlb, folder: Path, steps: list[dict[str, int]]) -> None:
        self.mark = f"LMS_TEST_RUN={folder}"
        self.record = folder / "lms.json"
        self.folder = folder
        settings = folder / "ansible.cfg"
        settings.write_text("")
        self.process = subprocess.Popen(
            [
                *(str(Path(sys.executable).parent / "ansible-playbook"), str(PLAYBOOK), "-i", "localhost,"),
                *("-e", json.dumps({"state": str(self.record), "steps": steps})),
            ],
            env={
                **alb.moto.environment(alb.region),
                "LMS_TEST_RUN": str(folder),
                "ANSIBLE_CONFIG": str(settings),
                "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
                "ANSIBLE_LOCAL_TEMP": str(folder / "local"),
                "ANSIBLE_REMOTE_TEMP": str(folder / "remote"),
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def lines(self, until: str) -> list[str]:
        """Read what the run shows, up to a line with a text."""
        assert self.process.stdout is not None
        read = []
        for line in self.process.stdout:
            read.append(line.rstrip())
            if until in line:
                return read
        raise AssertionError("\n".join(read))

    def rest(self) -> tuple[int, str]:
        """Return how the run ended, and what else it showed."""
        shown, _nothing = self.process.communicate(timeout=120)
        return self.process.returncode, shown

    def processes(self) -> list[int]:
        """Return the processes of the run that are alive, by what stands in their environment."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and self.mark.encode() in _environment(entry):
                found.append(int(entry.name))
        return found

    def left(self) -> list[str]:
        """Return what modules have left in their directory of temporary files."""
        return sorted(str(path) for path in self.folder.glob("remote/*"))


def _environment(process: Path) -> bytes:
    """Return the environment of a process; nothing where it ended or is somebody else's."""
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


def wait_for(what: Callable[[], Any]) -> None:
    """Wait until something is so. It would be a fault if it never were."""
    for _attempt in range(600):
        if what():
            return
        time.sleep(0.1)
    raise AssertionError("it was not so within a minute")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_run_that_is_ended_leaves_nothing_behind_and_the_next_one_goes_on(how: signal.Signals, alb: PlainAlb, tmp_path: Path) -> None:
    run = Run(alb, tmp_path, LONG)
    shown = run.lines("step 1 of 2")
    # A task that is killed in the middle of a line keeps ansible-core's queue locked, and its run hangs.
    time.sleep(1)

    os.kill(run.process.pid, how)
    run.process.wait(60)
    wait_for(lambda: not run.processes())
    record = parse(run.record.read_bytes(), "prod/lms", "lms.json")
    weights, left = alb.weights()["listener"], run.left()

    assert "step 1 of 2; blue 90, green 10; healthy: blue 1 of 1, green 1 of 1; the alarm does not fire; green is watched; " in shown[-1]
    # Between two calls nobody holds anything.
    assert (record.lease, weights, left) == (None, FIRST_STEP, [])

    # The steps are those that it began with, so its time has to be over before the next one.
    document = json.loads(run.record.read_text())
    document["rollout"]["steps"][0]["bake"] = 0
    run.record.write_text(json.dumps(document))
    status, shown_after = Run(alb, tmp_path, SHORT).rest()
    after = parse(run.record.read_bytes(), "prod/lms", "lms.json")

    assert status == 0, shown_after
    assert (after.rollout.phase, alb.weights()["listener"]) == ("retained", {"lms-blue": 0, "lms-green": 100})  # type: ignore[union-attr]
    assert [event["event"] for event in after.history].count("begun, from blue to green") == 1


def test_a_run_shows_each_step_on_its_way(alb: PlainAlb, tmp_path: Path) -> None:
    status, shown = Run(alb, tmp_path, SHORT).rest()

    told = [line for line in shown.splitlines() if line.startswith("Roll the release out [localhost] ")]
    assert status == 0, shown
    assert any("step 1 of 2; blue 90, green 10; healthy: blue 1 of 1, green 1 of 1" in line for line in told)
    assert "all traffic is on green; blue 0, green 100; healthy: blue 1 of 1, green 1 of 1; blue is kept until " in told[-1]
