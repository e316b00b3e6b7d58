# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options become the right probe, and check mode skips a socket that is not there yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._expectation import Expectation
from ansible_collections.bitflow.lms.plugins.module_utils._http_probe import Probe, skipped_result
from ansible_collections.bitflow.lms.plugins.modules import http_probe

PARAMS: dict[str, Any] = {
    "url": "https://api.example.com/up?x=1",
    "method": "GET",
    "headers": {"Accept": "text/html"},
    "connect_to": "192.0.2.10:443",
    "unix_socket": None,
    "ca_path": "/etc/ssl/authority.pem",
    "validate_certs": False,
    "expect_status": [200, 204],
    "expect_body": "ok",
    "expect_json": {"a": 1},
    "expect_headers": {"Age": 0},
    "attempts": 9,
    "consecutive": 2,
    "interval": 0.5,
    "timeout": 4.0,
}


def test_every_option_reaches_the_probe() -> None:
    assert http_probe.build_probe(PARAMS) == Probe(
        url="https://api.example.com/up?x=1",
        method="GET",
        headers={"Accept": "text/html"},
        connect_to="192.0.2.10:443",
        ca_path="/etc/ssl/authority.pem",
        validate_certs=False,
        expectation=Expectation((200, 204), "ok", {"a": 1}, {"Age": "0"}),
        attempts=9,
        consecutive=2,
        interval=0.5,
        timeout=4.0,
    )


def test_check_mode_skips_a_socket_that_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "student.sock"
    probe = http_probe.build_probe({**PARAMS, "url": "http://student/", "connect_to": None, "unix_socket": str(path)})

    result = http_probe.run([probe], check_mode=True)

    assert result == {**skipped_result(f"The socket {path} is not there yet."), "probes": []}
