# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The thin modules: options become the right objects, and check mode holds back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan
from ansible_collections.bitflow.lms.plugins.module_utils._expectation import Expectation
from ansible_collections.bitflow.lms.plugins.module_utils._fpm_probe import Probe
from ansible_collections.bitflow.lms.plugins.module_utils._migrations import Migrations
from ansible_collections.bitflow.lms.plugins.modules import artisan_migrate, fpm_probe

PENDING = "\n  Migration name ... Batch / Status  \n  1_a ..... Pending  \n"
DONE = "\n  Migration name ... Batch / Status  \n  1_a ..... [1] Ran  \n"


class Host:
    """A run_command that answers from a list and records the commands."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.commands: list[str] = []

    def __call__(self, argv: list[str], **_options: Any) -> tuple[int, str, str]:
        self.commands.append(argv[7])
        return (0, self.answers.pop(0), "")


@pytest.mark.parametrize(
    ("state", "check_mode", "answers", "commands", "changed"),
    [
        ("planned", False, [PENDING], ["migrate:status"], False),
        ("planned", True, [PENDING], ["migrate:status"], False),
        ("migrated", True, [PENDING], ["migrate:status"], True),
        ("migrated", False, [PENDING, "", DONE], ["migrate:status", "migrate", "migrate:status"], True),
        ("migrated", False, [DONE], ["migrate:status"], False),
    ],
)
def test_state_and_check_mode_decide_what_runs(
    tmp_path: Path, state: str, check_mode: bool, answers: list[str], commands: list[str], changed: bool
) -> None:
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor/autoload.php").touch()
    (tmp_path / "artisan").touch()
    host = Host(*answers)

    result = artisan_migrate.run(Migrations(Artisan(host, str(tmp_path))), state, step=False, check_mode=check_mode)

    assert (host.commands, result["changed"]) == (commands, changed)


PARAMS: dict[str, Any] = {
    "socket": "/run/php/lms.sock",
    "script": "/srv/r/public/index.php",
    "document_root": None,
    "uri": "/up?x=1",
    "method": "HEAD",
    "headers": {"Accept": "text/html"},
    "server_name": "api.example.com",
    "https": True,
    "expect_status": [200, 204],
    "expect_body": None,
    "expect_json": {},
    "attempts": 9,
    "consecutive": 2,
    "interval": 0.5,
    "timeout": 4.0,
}


def test_every_option_reaches_the_probe() -> None:
    assert fpm_probe.build_probe(PARAMS) == Probe(
        socket="/run/php/lms.sock",
        script="/srv/r/public/index.php",
        document_root="/srv/r/public",
        uri="/up?x=1",
        method="HEAD",
        headers={"Accept": "text/html"},
        server_name="api.example.com",
        https=True,
        expectation=Expectation((200, 204), None, {}),
        attempts=9,
        consecutive=2,
        interval=0.5,
        timeout=4.0,
    )
    with_body = {**PARAMS, "method": "GET", "document_root": "/srv/r", "expect_body": "ok", "expect_json": {"a": 1}}
    probe = fpm_probe.build_probe(with_body)
    assert (probe.document_root, probe.expectation) == ("/srv/r", Expectation((200, 204), "ok", {"a": 1}))


def test_check_mode_skips_what_is_not_there_yet(tmp_path: Path) -> None:
    script = tmp_path / "index.php"
    probe = fpm_probe.build_probe({**PARAMS, "script": str(script), "socket": str(tmp_path / "socket")})

    without_script = fpm_probe.run(probe, check_mode=True)
    script.touch()
    without_socket = fpm_probe.run(probe, check_mode=True)

    assert (without_script["skipped"], without_script["reason"]) == (True, f"The script {script} is not there yet.")
    assert (without_socket["skipped"], without_socket["reason"]) == (True, f"The socket {tmp_path / 'socket'} is not there yet.")
