# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The thin modules: options become the right objects, and check mode holds back."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._expectation import Expectation
from ansible_collections.bitflow.lms.plugins.module_utils._fpm_probe import Probe
from ansible_collections.bitflow.lms.plugins.module_utils._migrations import Migrations
from ansible_collections.bitflow.lms.plugins.modules import artisan_migrate, fpm_probe

PENDING = {"table": True, "migrations": [{"migration": "1_a", "batch": None}]}
DONE = {"table": True, "migrations": [{"migration": "1_a", "batch": 1}]}
PLAN = [{"event": "answer", "state": PENDING, "empty": False, "plan": []}]
RUN = [
    {"event": "locked", "before": PENDING},
    {"event": "answer", "status": 0, "error": None, "after": DONE, "before": PENDING},
]


class Host:
    """A run_command that answers a request of the migrations' script, and records what was asked for."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self.events = events
        self.actions: list[str] = []

    def __call__(self, _argv: list[str], **options: Any) -> tuple[int, str, str]:
        request = json.loads(base64.b64decode(options["data"].rpartition("base64_decode('")[2].partition("'")[0]))
        self.actions.append(request["action"])
        return (0, "".join(f"{request['marker']}{json.dumps(event)}\n" for event in self.events), "")


@pytest.mark.parametrize(
    ("state", "check_mode", "events", "action", "changed"),
    [
        ("planned", False, PLAN, "plan", False),
        ("planned", True, PLAN, "plan", False),
        ("migrated", True, PLAN, "plan", True),
        ("migrated", False, RUN, "run", True),
    ],
)
def test_state_and_check_mode_decide_what_runs(
    tmp_path: Path, state: str, check_mode: bool, events: list[dict[str, Any]], action: str, changed: bool
) -> None:
    host = Host(events)

    result = artisan_migrate.run(make_migrations(tmp_path, host), {"state": state, "step": False, "judged": []}, check_mode)

    assert (host.actions, result["changed"]) == ([action], changed)


def test_migrations_that_nobody_judged_do_not_run(tmp_path: Path) -> None:
    host = Host([])

    with pytest.raises(LmsError, match="judged is not set"):
        artisan_migrate.run(make_migrations(tmp_path, host), {"state": "migrated", "step": False, "judged": None}, False)

    assert host.actions == []


def make_migrations(release: Path, host: Host) -> Migrations:
    (release / "vendor").mkdir()
    (release / "vendor/autoload.php").touch()
    (release / "artisan").touch()
    return Migrations(Artisan(host, str(release)))


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
