# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module deploy_lock."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._lease import Lessor, Moment
from ansible_collections.bitflow.lms.plugins.modules import deploy_lock

DETAILS = {"what": "the deployment of v1.4.0", "release": "20261123210000-abc1234", "controller": "control", "user": "anna"}
KEYS = {"changed", "lease_file", "held", "holder", "taken_from", "blocked", "warnings", "diff"}


class Host:
    """A host on which the module runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.moment = Moment(datetime(2026, 11, 23, 21, 0, tzinfo=timezone.utc), "boot", 1000)

    def run(self, state: str, owner: str | None = "ours", check_mode: bool = False, **values: Any) -> dict[str, Any]:
        """Run the module."""
        params = {
            "path": str(self.path),
            "state": state,
            "owner": owner,
            "ttl": 60,
            "wait": 0,
            "steal": "expired",
            "details": {},
            "dead_owner": None,
            "act_as": None,
            **values,
        }
        result = deploy_lock.run(Lessor(self.path, lambda: self.moment), params, check_mode)
        assert set(result) == KEYS
        return result

    def pass_by(self, seconds: int) -> None:
        """Let time pass."""
        self.moment = replace(self.moment, clock=self.moment.clock + timedelta(seconds=seconds), uptime=self.moment.uptime + seconds)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Return a host that nothing was deployed to."""
    return Host(tmp_path / "lms")


def without(result: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return a result without some keys."""
    return {key: value for key, value in result.items() if key not in keys}


def test_held_returns_the_holder(host: Host) -> None:
    host.path.mkdir()

    result = host.run("held", details=DETAILS)

    shown = {"owner": "ours", **DETAILS}
    file = f"{host.path}/.deploy/lease.json"
    assert result == {
        "changed": True,
        "lease_file": file,
        "held": True,
        "holder": {
            **shown,
            "process": "",
            "since": "2026-11-23T21:00:00Z",
            "renewed_at": "2026-11-23T21:00:00Z",
            "expires_at": "2026-11-23T21:01:00Z",
            "expires_in": 60,
            "expired": False,
            "at_work": False,
            "processes": [],
        },
        "taken_from": None,
        "blocked": "",
        "warnings": [],
        "diff": {"before_header": file, "after_header": file, "before": {}, "after": shown},
    }


def test_held_again_is_no_change_and_renews(host: Host) -> None:
    host.path.mkdir()
    host.run("held", details=DETAILS)
    host.pass_by(50)

    result = host.run("held")

    assert (result["changed"], result["held"], result["holder"]["expires_at"]) == (False, True, "2026-11-23T21:01:50Z")
    assert result["diff"]["before"] == result["diff"]["after"]


@pytest.mark.parametrize("state", ["held", "released", "status"])
def test_check_mode_fresh_host_passes(host: Host, state: str) -> None:
    result = host.run(state, check_mode=True)

    assert (result["changed"], result["held"], result["blocked"]) == (state == "held", state == "held", "")
    assert not host.path.exists()


def test_check_mode_and_the_real_run_agree_at_every_step(host: Host) -> None:
    host.path.mkdir()
    steps: list[tuple[str, str, dict[str, Any]]] = [
        ("held", "ours", {"details": DETAILS}),
        ("released", "theirs", {}),
        ("held", "theirs", {"steal": "force"}),
        ("released", "ours", {}),
        ("released", "theirs", {}),
        ("released", "theirs", {}),
        ("status", "ours", {}),
    ]
    for state, owner, values in steps:
        before = {file.name: file.read_bytes() for file in host.path.rglob("*") if file.is_file()}
        foreseen = host.run(state, owner, check_mode=True, **values)
        assert {file.name: file.read_bytes() for file in host.path.rglob("*") if file.is_file()} == before

        assert host.run(state, owner, **values) == foreseen


def test_check_mode_says_who_would_block_and_does_not_fail(host: Host) -> None:
    host.path.mkdir()
    host.run("held", details=DETAILS)

    result = host.run("held", "theirs", check_mode=True)

    assert result["blocked"] == (
        f"{host.path} is held by anna on control for the deployment of v1.4.0 (release 20261123210000-abc1234) since 2026-11-23T21:00:00Z; "
        "it expires at 2026-11-23T21:01:00Z, in 60 s. Wait until it ends. If it is dead for sure, set steal to force."
    )
    assert (result["changed"], result["held"], result["holder"]["owner"], result["warnings"]) == (False, False, "ours", [result["blocked"]])
    with pytest.raises(LmsError, match="is held by anna"):
        host.run("held", "theirs")


def test_a_takeover_says_from_whom(host: Host) -> None:
    host.path.mkdir()
    host.run("held", details=DETAILS)
    host.pass_by(61)

    result = host.run("held", "theirs")

    assert (result["changed"], result["held"], result["holder"]["owner"], result["taken_from"]["owner"]) == (True, True, "theirs", "ours")
    assert result["taken_from"]["expired"] is True
    assert result["warnings"] == [
        f"The lease was taken from another owner: {host.path} was held by anna on control for the deployment of v1.4.0 "
        "(release 20261123210000-abc1234) since 2026-11-23T21:00:00Z; it expired at 2026-11-23T21:01:00Z, 1 s ago."
    ]


def test_released_by_somebody_else_tells_who_holds_it(host: Host) -> None:
    host.path.mkdir()
    host.run("held", details=DETAILS)

    result = host.run("released", "theirs")

    assert (result["changed"], result["held"], result["holder"]["owner"]) == (False, False, "ours")
    assert host.run("status")["held"] is True


def test_a_lease_that_was_replaced_by_force_is_reported(host: Host) -> None:
    host.run("released")
    (host.path / ".deploy").mkdir(parents=True)
    (host.path / ".deploy/lease.json").write_text("{")

    for state in ("held", "released", "status"):
        with pytest.raises(LmsError, match="cannot be read: it is no whole JSON"):
            host.run(state)
    result = host.run("held", steal="force")

    assert (result["held"], result["taken_from"]) == (True, None)
    assert result["warnings"] == [f"The lease {host.path}/.deploy/lease.json could not be read and was replaced: it is no whole JSON."]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "There is no directory .* on this host, so nothing can be deployed there. Provision the host first."),
        ({"ttl": 0}, "ttl is 0; it must be 1 to 604800 seconds."),
        ({"owner": " "}, "owner is empty; give each deployment a name of its own."),
        ({"act_as": "no-such-user"}, "There is no user no-such-user on this host."),
    ],
)
def test_wrong_options_are_refused(host: Host, values: dict[str, Any], message: str) -> None:
    if values:
        host.path.mkdir()

    with pytest.raises(LmsError, match=message):
        host.run("held", **values)


def test_a_text_of_several_lines_becomes_one(host: Host) -> None:
    host.path.mkdir()

    result = host.run("held", details={**DETAILS, "what": "v1\nok: [host]\r\n"})

    assert result["holder"]["what"] == "v1 ok: [host]"


def test_no_result_has_a_key_that_ansible_would_fill_with_facts_about_a_file(host: Host) -> None:
    # AnsibleModule adds owner, mode and state of a path that a result names.
    assert not {"path", "dest"} & set(host.run("status"))
