# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""script/test in a project of its own, with tools that only say when they run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The layer unit ends only after the journey has begun; and the journey's visitors come as those of tests/journeys do.
PYTEST = f"""#!/bin/sh
say() {{ echo "$1" >>"$LMS_TOLD"; }}
case "$*" in
    *tests/journeys*)
        say "the journey begins"
        {sys.executable} -c '
import sys
sys.path.insert(0, "{ROOT}/tests/journeys")
from environment import wait_until_alone
wait_until_alone()
'
        say "visitors come"
        ;;
    *tests/migrations*)
        say "migrations fail"
        exit 1
        ;;
    *)
        until grep -q begins "$LMS_TOLD"; do sleep 0.1; done
        sleep 1
        say "unit ends"
        ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    tools = tmp_path / ".venv/bin"
    for directory in (tmp_path / "script", tools):
        directory.mkdir(parents=True)
    for name in ("test", "lib.sh"):
        shutil.copy(ROOT / "script" / name, tmp_path / "script")
    for path, text in {tmp_path / "script/bootstrap": "#!/bin/sh\n", tools / "pytest": PYTEST}.items():
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path


def run_layers(project: Path, *layers: str) -> tuple[int, str, list[str]]:
    """Run script/test, and return its status, what it printed, and what the tools said."""
    told = project / "told"
    told.touch()
    environment = {**os.environ, "LMS_TOLD": str(told)}
    done = subprocess.run(
        [project / "script/test", *layers],
        capture_output=True,
        check=False,
        env=environment,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout + done.stderr, told.read_text().splitlines()


def test_visitors_come_when_nothing_else_runs(project: Path) -> None:
    status, output, told = run_layers(project, "unit", "journey")

    assert (status, told) == (0, ["the journey begins", "unit ends", "visitors come"]), output
    assert "2 passed, 0 failed" in output


def test_a_layer_that_fails_fails_the_whole_and_the_others_run(project: Path) -> None:
    status, output, told = run_layers(project, "migrations", "unit", "journey")

    assert (status, sorted(told)) == (1, ["migrations fail", "the journey begins", "unit ends", "visitors come"]), output
    assert "2 passed, 1 failed" in output


def test_an_unknown_layer_is_refused_before_anything_runs(project: Path) -> None:
    status, output, told = run_layers(project, "unit", "units", "journey")

    assert (status, told) == (1, [])
    assert "unknown layer units. The layers are lint, unit, " in output
