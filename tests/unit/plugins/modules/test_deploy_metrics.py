# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file for the node exporter: its format, what stays, and where it is not written."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.modules import deploy_metrics

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\n"])*"'
SAMPLE = re.compile(rf"({NAME})(\{{(?:{LABEL}(?:,{LABEL})*)?\}})? (-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)")
COMMIT = "abc1234567890abc1234567890abc1234567890a"


def parse(text: str) -> dict[str, str]:
    """Read the text format as strictly as the node exporter does: a help and a type before the samples of each name, once."""
    samples: dict[str, str] = {}
    announced: list[str] = []
    for line in text.splitlines():
        if line.startswith("# HELP "):
            announced.append(line.split()[2])
        elif line.startswith("# TYPE "):
            assert line.split()[2:] == [announced[-1], "gauge"]
        else:
            found = SAMPLE.fullmatch(line)
            assert found, line
            assert found[1] == announced[-1]
            assert found[1] + (found[2] or "") not in samples
            samples[found[1] + (found[2] or "")] = found[3]
    assert len(announced) == len(set(announced))
    assert text.endswith("\n")
    return samples


@pytest.fixture
def application(tmp_path: Path) -> Path:
    root = tmp_path / "backend"
    for name in ("20261120180000-fedcba9", "20261123210000-abc1234"):
        (root / "releases" / name).mkdir(parents=True)
    (root / "current").symlink_to("releases/20261123210000-abc1234")
    (root / ".deploy" / "releases").mkdir(parents=True)
    record = {"id": "20261123210000-abc1234", "sequence": 2, "state": "active", "metadata": {"commit": COMMIT, "version": 'v1 "x"\\\n'}}
    (root / ".deploy" / "releases" / "20261123210000-abc1234.json").write_text(json.dumps(record))
    return root


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "node-exporter"
    made.mkdir()
    return made


def params(directory: Path, *applications: Path, **options: Any) -> dict[str, Any]:
    return {
        "directory": str(directory),
        "file": "lms_deploy.prom",
        "applications": [{"name": path.name, "path": str(path)} for path in applications],
        "outcome": "none",
        "duration": None,
        "downtime": None,
        "migrations_pending": None,
        **options,
    }


def test_file_says_what_is_live_and_how_the_deployment_went(directory: Path, application: Path) -> None:
    wanted = params(directory, application, outcome="succeeded", duration=71.25, downtime=0.0, migrations_pending=0)

    result = deploy_metrics.run(wanted, check_mode=False, now=1800000000.0)

    path = directory / "lms_deploy.prom"
    assert parse(path.read_text()) == {
        f'lms_release_info{{application="backend",commit="{COMMIT}",release="20261123210000-abc1234",version="v1 \\"x\\"\\\\\\n"}}': "1",
        'lms_releases_on_disk{application="backend"}': "2",
        "lms_deploy_last_success_timestamp_seconds": "1800000000",
        "lms_deploy_duration_seconds": "71.25",
        "lms_deploy_downtime_seconds": "0",
        "lms_migrations_pending": "0",
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert result == {
        "changed": True,
        "path": str(path),
        "reason": "",
        "diff": {"before": "", "after": path.read_text(), "before_header": str(path), "after_header": str(path)},
    }
    assert [entry.name for entry in directory.iterdir()] == ["lms_deploy.prom"]


def test_what_is_not_given_stays(directory: Path, application: Path) -> None:
    deploy_metrics.run(params(directory, application, outcome="succeeded", duration=5.0, downtime=0.0), check_mode=False, now=1000.0)

    deploy_metrics.run(params(directory, application, outcome="failed", downtime=1.5), check_mode=False, now=2000.0)

    samples = parse((directory / "lms_deploy.prom").read_text())
    assert {name: value for name, value in samples.items() if name.startswith("lms_deploy_")} == {
        "lms_deploy_last_success_timestamp_seconds": "1000",
        "lms_deploy_last_failure_timestamp_seconds": "2000",
        "lms_deploy_duration_seconds": "5",
        "lms_deploy_downtime_seconds": "1.5",
    }


def test_run_without_an_outcome_changes_nothing(directory: Path, application: Path) -> None:
    deploy_metrics.run(params(directory, application, outcome="succeeded", duration=5.0, downtime=0.0), check_mode=False, now=1000.0)

    # It took time as well, which is not the last deployment's.
    again = params(directory, application, duration=2.0, downtime=0.0)
    assert deploy_metrics.run(again, check_mode=False, now=2000.0)["changed"] is False


def test_check_mode_only_looks(directory: Path, application: Path) -> None:
    result = deploy_metrics.run(params(directory, application, outcome="succeeded"), check_mode=True, now=1000.0)

    assert result["changed"] is True
    assert "lms_release_info" in result["diff"]["after"]
    assert list(directory.iterdir()) == []


def test_host_without_a_release_has_no_live_one(directory: Path, tmp_path: Path) -> None:
    deploy_metrics.run(params(directory, tmp_path / "frontend"), check_mode=False, now=1000.0)

    assert parse((directory / "lms_deploy.prom").read_text()) == {'lms_releases_on_disk{application="frontend"}': "0"}


def test_host_without_the_exporter_is_skipped_with_the_reason(tmp_path: Path) -> None:
    missing = tmp_path / "missing"

    assert deploy_metrics.run(params(missing), check_mode=False, now=1.0) == {
        "changed": False,
        "path": f"{missing}/lms_deploy.prom",
        "skipped": True,
        "reason": f"There is no directory {missing}. Install the node exporter there, or set directory to what it reads.",
        "diff": {},
    }


@pytest.mark.parametrize("name", ["lms.txt", "a/lms.prom", "../lms.prom"])
def test_name_that_the_exporter_does_not_read_is_refused(directory: Path, name: str) -> None:
    with pytest.raises(LmsError, match="file "):
        deploy_metrics.run(params(directory, file=name), check_mode=False, now=1.0)
