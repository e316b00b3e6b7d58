# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules that act under a lease, run as Ansible runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.bitflow.lms.plugins.module_utils._lease import Claim, Lessor
from ansible_collections.bitflow.lms.plugins.modules import artisan, dotenv, release

# A php that leaves a trace, and that says whether it inherited the lock of who acts.
PHP = """#!/bin/sh
touch trace
ls -l /proc/self/fd | grep -o 'lease.acting' || echo 'not inherited'
"""


class Acting:
    """A module, its options, and what it leaves behind when it acts."""

    def __init__(self, module: Any, options: Callable[[Path], dict[str, Any]], trace: str) -> None:
        self.module = module
        self.options = options
        self.trace = trace

    def run(self, path: Path, capsys: pytest.CaptureFixture[str], **more: Any) -> dict[str, Any]:
        """Run the module and return its result."""
        with patch_module_args({**self.options(path), **more}), pytest.raises(SystemExit):
            self.module.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result


def artisan_options(path: Path) -> dict[str, Any]:
    """Return the options of artisan, with a php in place."""
    (path / "artisan").touch()
    (path / "php").write_text(PHP)
    (path / "php").chmod(0o755)
    return {"chdir": str(path), "php": str(path / "php"), "command": "queue:restart"}


MODULES = [
    Acting(release, lambda path: {"path": str(path / "app"), "release": "20261101120000-aaaaaaa", "state": "failed"}, "app"),
    Acting(dotenv, lambda path: {"path": str(path / ".env"), "values": {"APP_ENV": "production"}}, ".env"),
    Acting(artisan, artisan_options, "trace"),
]


@pytest.mark.parametrize("acting", MODULES, ids=lambda acting: acting.module.__name__.rpartition(".")[2])
def test_an_owner_who_lost_the_lease_changes_nothing(acting: Acting, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Lessor(tmp_path).hold(Claim("theirs"))

    result = acting.run(tmp_path, capsys, lease={"path": str(tmp_path), "owner": "ours"})

    assert result["failed"] is True
    assert result["msg"].startswith(f"ours does not hold {tmp_path} any more: the owner theirs since ")
    assert not (tmp_path / acting.trace).exists()


@pytest.mark.parametrize("acting", MODULES, ids=lambda acting: acting.module.__name__.rpartition(".")[2])
def test_the_owner_acts_and_check_mode_asks_for_no_lease(acting: Acting, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lease = {"path": str(tmp_path), "owner": "ours"}

    planned = acting.run(tmp_path, capsys, lease=lease, _ansible_check_mode=True)
    Lessor(tmp_path).hold(Claim("ours"))
    done = acting.run(tmp_path, capsys, lease=lease)

    assert (planned.get("failed", False), done.get("failed", False)) == (False, False)
    assert Lessor(tmp_path).look().busy is False


def test_artisan_counts_as_at_work_on_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Lessor(tmp_path).hold(Claim("ours"))
    module = MODULES[2]

    under_a_lease = module.run(tmp_path, capsys, lease={"path": str(tmp_path), "owner": "ours"})
    without = module.run(tmp_path, capsys)

    assert [result["results"][0]["stdout"].strip() for result in (under_a_lease, without)] == ["lease.acting", "not inherited"]
