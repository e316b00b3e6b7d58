# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules of traffic on each ansible-core that the collection supports, against a plain moto."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.tests.lab.moto_process import Moto, PlainAlb, moto_process

ROOT = Path(__file__).parents[2]
PLAYBOOK = ROOT / "tests/lab/playbooks/traffic.yml"
# Each ansible-core with the oldest and the newest Python that it runs on, and a region of its own.
CORES = {"2.19": ((3, 11), (3, 13), "eu-central-1"), "2.20": ((3, 12), (3, 14), "eu-west-1"), "2.21": ((3, 12), (3, 14), "us-west-2")}
ON_BLUE = {"lms-blue": 1}
BACK_ON_BLUE = {"lms-blue": 100, "lms-green": 0}


def version_of(python: str) -> tuple[int, int] | None:
    """Return the version of a Python; nothing where it does not run."""
    command = [python, "-c", "import sys; print(*sys.version_info[:2])"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        return None
    major, minor = answer.stdout.split()
    return int(major), int(minor)


def python_for(oldest: tuple[int, int], newest: tuple[int, int]) -> str | None:
    """Return a Python of this machine that an ansible-core runs on."""
    for python in (sys.executable, "python3.13", "python3.12", "python3.11"):
        found = shutil.which(python)
        if found and oldest <= (version_of(found) or (0, 0)) <= newest:
            return found
    return None


def installed(core: str) -> Path:
    """Return the environment of an ansible-core. It is made once, and again where what belongs in it has changed."""
    oldest, newest, _region = CORES[core]
    python = python_for(oldest, newest)
    if python is None:
        pytest.skip(f"ansible-core {core} needs a Python from {oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1]}, and there is none")
    packages = [f"ansible-core~={core}.0", *(f"{name}=={importlib.metadata.version(name)}" for name in ("boto3", "botocore"))]
    place = ROOT / ".cache/ansible-cores" / core
    recipe, wanted = place / "recipe", "\n".join([python, *packages])
    if not recipe.exists() or recipe.read_text() != wanted:
        uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([uv, "venv", "--quiet", "--no-python-downloads", "--python", python, str(place)], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(place / "bin/python"), *packages], check=True)
        recipe.write_text(wanted)
    return place


def play(core: str, alb: PlainAlb, folder: Path, *options: str) -> tuple[dict[str, Any], str]:
    """Run the playbook, and return what its tasks said and what it showed."""
    environment = installed(core)
    results, settings = folder / "results.json", folder / "ansible.cfg"
    # None of the settings of whoever runs this.
    settings.write_text("")
    variables = {"results": str(results), "state": f"s3://{alb.bucket}/traffic/lms.json", "blue": "90"}
    ran = subprocess.run(
        [str(environment / "bin/ansible-playbook"), str(PLAYBOOK), "-i", "localhost,", "-e", json.dumps(variables), *options],
        env={
            **alb.moto.environment(alb.region),
            "PATH": f"{environment / 'bin'}:/usr/bin:/bin",
            "ANSIBLE_CONFIG": str(settings),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
            "ANSIBLE_LOCAL_TEMP": str(folder / "local"),
            "ANSIBLE_REMOTE_TEMP": str(folder / "remote"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_PYTHON_INTERPRETER": str(environment / "bin/python"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    said: dict[str, Any] = json.loads(results.read_text())
    return said, ran.stdout


def changed(said: Mapping[str, Any]) -> dict[str, bool]:
    """Return which tasks changed something."""
    return {name: result["changed"] for name, result in said.items()}


@dataclass(frozen=True)
class Story:
    """What one ansible-core did: with --check on a load balancer that is as it was made, and then in earnest."""

    planned: Mapping[str, Any]
    shown_of_plan: str
    weights_of_plan: Mapping[str, Mapping[str, int]]
    objects_of_plan: Sequence[str]
    said: Mapping[str, Any]
    shown: str
    weights: Mapping[str, Mapping[str, int]]
    objects: Sequence[str]


def tell(core: str, moto: Moto, folder: Path) -> Story:
    """Let one ansible-core run the playbook twice."""
    alb = PlainAlb(moto, CORES[core][2], f"lab-{core.replace('.', '-')}")
    planned, shown_of_plan = play(core, alb, folder, "--check", "--diff")
    weights, objects = alb.weights(), alb.objects()
    said, shown = play(core, alb, folder, "--diff")
    return Story(planned, shown_of_plan, weights, objects, said, shown, alb.weights(), alb.objects())


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    """Return a moto that runs."""
    with moto_process() as made:
        yield made


# One test for each, because whoever runs tests beside each other would tell its story more than once.
@pytest.mark.parametrize("core", CORES)
def test_the_modules_do_the_same_on_each_ansible_core(core: str, moto: Moto, tmp_path: Path) -> None:
    version = subprocess.run([str(installed(core) / "bin/ansible"), "--version"], capture_output=True, text=True, check=True).stdout
    story = tell(core, moto, tmp_path)
    said = story.said

    assert version.startswith(f"ansible [core {core}.")

    looks = {"info", "status"}
    again = {"registered_again", "attached_again", "attached_swapped", "strings_again", "advanced_again"}
    assert changed(said) == {task: task not in looks | again for task in said}
    assert said["strings"]["after"]["lms:443/10"] == {"lms-blue": 90, "lms-green": 10}
    assert [said[task]["phase"] for task in ("advanced", "advanced_again", "status", "back")] == [
        *("retained", "retained", "retained", "rolled_back")
    ]
    assert said["status"]["live_colour"] == "green"
    assert (story.weights, story.objects) == ({"listener": BACK_ON_BLUE, "rule": BACK_ON_BLUE}, ["traffic/lms.json"])

    # In check mode the same is planned, and nothing is done.
    assert changed(story.planned) == changed(said)
    assert story.planned["attached"]["after"] == said["attached"]["after"]
    assert (story.weights_of_plan, story.objects_of_plan) == ({"listener": ON_BLUE, "rule": ON_BLUE}, [])

    # The difference is shown both times.
    for shown in (story.shown_of_plan, story.shown):
        assert '+            "lms-green": 0' in shown.splitlines()
