# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module release."""

from __future__ import annotations

import hashlib
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._archive import pack
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._release import Releases
from ansible_collections.bitflow.lms.plugins.module_utils._release_info import describe_applications
from ansible_collections.bitflow.lms.plugins.modules import release

NOW = datetime(2026, 11, 23, 21, 0, tzinfo=timezone.utc)
FIRST, SECOND, THIRD = "20261101120000-aaaaaaa", "20261102120000-bbbbbbb", "20261103120000-ccccccc"
KEYS = {"changed", "root", "release", "release_path", "state", "current", "previous", "pruned", "components_pruned", "diff"}


class Host:
    """A host on which the module runs."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "srv" / "backend"
        self.artifact = directory / "backend.tar"
        (directory / "artisan").write_text("php")
        with self.artifact.open("wb") as stream:
            pack({"artisan": directory / "artisan"}, stream)
        self.sha256 = hashlib.sha256(self.artifact.read_bytes()).hexdigest()
        self.time = NOW

    def run(self, state: str, name: str | None = None, check_mode: bool = False, **values: Any) -> dict[str, Any]:
        """Run the module."""
        params = {
            "path": str(self.root),
            "release": name,
            "state": state,
            "artifact": str(self.artifact),
            "artifact_sha256": self.sha256,
            "fingerprint": None,
            "metadata": None,
            "owner": None,
            "group": None,
            "shared_directories": [],
            "shared_owner": None,
            "shared_group": None,
            "shared_mode": "2770",
            "writable_directories": [],
            "pinned": None,
            "reason": "",
            "unverified_allowed": False,
            "keep": 5,
            "min_age": 0,
            **values,
        }
        result = release.run(Releases(self.root, lambda: self.time), params, check_mode)
        assert set(result) == KEYS
        return result

    def deploy(self, *names: str) -> None:
        """Make releases live, one after the other."""
        for name in names:
            self.run("present", name)
            self.run("verified", name)
            self.run("active", name)

    def tree(self) -> list[str]:
        """Return everything on the host."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*")) if self.root.exists() else []


def info(host: Host) -> dict[str, Any]:
    """Return what the info module says about the application."""
    told: dict[str, Any] = describe_applications([Releases(host.root)])[str(host.root)]
    return told


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Return a bare host."""
    return Host(tmp_path)


def test_check_mode_fresh_host_passes(host: Host) -> None:
    host.artifact.unlink()

    results = [host.run(state, FIRST, check_mode=True, owner="not-yet-a-user") for state in ("present", "verified", "active")]
    pruned = host.run("pruned", check_mode=True)

    assert [(result["changed"], result["state"], result["current"]) for result in results] == [
        (True, "built", None),
        (True, "verified", None),
        (True, "active", FIRST),
    ]
    assert (pruned["changed"], pruned["pruned"]) == (False, [])
    assert not host.root.exists()


def test_check_mode_and_the_real_run_agree_at_every_step(host: Host) -> None:
    host.deploy(FIRST, SECOND)
    steps: list[tuple[str, str | None, dict[str, Any]]] = [
        ("present", THIRD, {"metadata": {"commit": "c"}, "fingerprint": "f", "pinned": True}),
        ("verified", THIRD, {}),
        ("active", THIRD, {}),
        ("active", FIRST, {}),
        ("failed", THIRD, {"reason": "slow"}),
        ("present", THIRD, {"pinned": False}),
        ("pruned", None, {"keep": 1}),
        ("absent", SECOND, {}),
    ]
    for state, name, values in steps:
        before = host.tree()
        foreseen = host.run(state, name, check_mode=True, **values)
        assert host.tree() == before
        done = host.run(state, name, **values)

        assert foreseen == done
        assert done["changed"] is True
        again = host.run(state, name, **values)
        assert again == {**done, "changed": False, "pruned": [], "diff": {"before": done["diff"]["after"], "after": done["diff"]["after"]}}


def test_active_returns_the_live_release_and_the_one_to_go_back_to(host: Host) -> None:
    host.deploy(FIRST)
    host.run("present", SECOND)
    host.run("verified", SECOND)

    result = host.run("active", SECOND)

    assert result == {
        "changed": True,
        "root": str(host.root),
        "release": SECOND,
        "release_path": f"{host.root}/releases/{SECOND}",
        "state": "active",
        "current": SECOND,
        "previous": FIRST,
        "pruned": [],
        "components_pruned": [],
        "diff": {
            "before": {
                "current": FIRST,
                "releases": [FIRST, SECOND],
                "release": SECOND,
                "state": "verified",
                "pinned": False,
                "reason": "",
            },
            "after": {"current": SECOND, "releases": [FIRST, SECOND], "release": SECOND, "state": "active", "pinned": False, "reason": ""},
        },
    }


def test_no_result_has_a_key_that_ansible_would_fill_with_facts_about_a_file(host: Host) -> None:
    # AnsibleModule adds owner, mode and state of a path that a result names, over the state that we return.
    assert not {"path", "dest"} & set(host.run("present", FIRST))


def test_prune_returns_what_it_removed(host: Host) -> None:
    host.deploy(FIRST, SECOND, THIRD)
    host.time = NOW + timedelta(seconds=100)

    assert host.run("pruned", keep=1, min_age=101)["pruned"] == []
    assert host.run("pruned", keep=1, min_age=100)["pruned"] == [FIRST]


def test_errors_leave_the_live_release(host: Host) -> None:
    host.deploy(FIRST)

    for state, name, message in [
        ("active", "20250101000000-0000000", "is not there"),
        ("failed", FIRST, "is live"),
        ("absent", FIRST, "is live"),
        ("present", "../x", "release is"),
    ]:
        with pytest.raises(LmsError, match=message):
            host.run(state, name)

    assert (host.root / "current").readlink() == Path("releases", FIRST)


def test_info_on_a_bare_host(host: Host) -> None:
    result = info(host)

    assert {key: value for key, value in result.items() if key != "disk"} == {
        "root": str(host.root),
        "current": None,
        "previous": None,
        "fingerprint": "",
        "releases": [],
        "components": [],
        "leftovers": [],
        "history": [],
    }
    assert not host.root.exists()


def test_info_describes_the_releases_newest_first(host: Host) -> None:
    host.deploy(FIRST)
    host.run("present", SECOND, metadata={"commit": "abc1234", "version": "v1"}, fingerprint="f2", pinned=True)
    host.run("verified", SECOND)
    host.run("active", SECOND)
    (host.root / "releases" / f"{THIRD}.partial").mkdir()

    result = info(host)

    moment = "2026-11-23T21:00:00Z"
    second = {
        "id": SECOND,
        "path": f"{host.root}/releases/{SECOND}",
        "state": "active",
        "commit": "abc1234",
        "version": "v1",
        "fingerprint": "f2",
        "artifact_sha256": host.sha256,
        "metadata": {"commit": "abc1234", "version": "v1"},
        "pinned": True,
        "size": 77,
        "files": 2,
        "built_at": moment,
        "verified_at": moment,
        "activated_at": moment,
        "replaced": FIRST,
        "left_for": "",
        "reason": "",
        "in_use_by": [],
    }
    assert result["releases"][0] == second
    assert [(entry["id"], entry["state"]) for entry in result["releases"]] == [(SECOND, "active"), (FIRST, "superseded")]
    assert (result["current"], result["previous"], result["fingerprint"]) == (SECOND, FIRST, "f2")
    assert result["leftovers"] == [f"{THIRD}.partial"]
    assert result["history"][-1] == {"at": moment, "event": "superseded", "release": FIRST}


def test_info_describes_several_applications_with_one_look(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.deploy(FIRST)
    monkeypatch.chdir(host.root / "releases" / FIRST)

    result = describe_applications([Releases(host.root), Releases(host.root.parent / "frontend")])

    assert {root: found["current"] for root, found in result.items()} == {
        str(host.root): FIRST,
        str(host.root.parent / "frontend"): None,
    }
    assert os.getpid() in [process["pid"] for process in result[str(host.root)]["releases"][0]["in_use_by"]]
    assert all(process["command"] for process in result[str(host.root)]["releases"][0]["in_use_by"])


def test_several_applications_are_pruned_in_one_call(host: Host) -> None:
    for number in range(4):
        host.deploy(f"2026110{number + 1}120000-aaaaaaa")
    other = Releases(host.root.parent / "frontend")
    params = {"state": "pruned", "keep": 1, "min_age": 0, **dict.fromkeys(("artifact", "owner", "group", "shared_owner", "shared_group"))}
    params |= {"shared_directories": [], "shared_mode": "2770", "writable_directories": []}

    result = release.run_all([Releases(host.root, lambda: host.time + timedelta(hours=1)), other], params, check_mode=False)

    pruned = {root: found["pruned"] for root, found in result["applications"].items()}
    assert pruned == {str(host.root): ["20261101120000-aaaaaaa", "20261102120000-aaaaaaa"], str(other.root): []}
    assert (result["changed"], [diff["before_header"] for diff in result["diff"]]) == (True, [str(host.root), str(other.root)])
    assert not other.root.exists()
