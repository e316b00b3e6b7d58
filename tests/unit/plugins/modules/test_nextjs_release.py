# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module nextjs_release, on a real file system with a service manager that answers from a table."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._archive import pack
from ansible_collections.bitflow.lms.plugins.module_utils._components import Component, Components
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._http_probe import Probe, Response
from ansible_collections.bitflow.lms.plugins.module_utils._nextjs_release import (
    FrontEnds,
    Prober,
    Question,
    Units,
    hide_values,
    superfluous,
)
from ansible_collections.bitflow.lms.plugins.module_utils._release import Releases
from ansible_collections.bitflow.lms.plugins.module_utils._systemd import Systemctl
from ansible_collections.bitflow.lms.plugins.modules import nextjs_release, release

FIRST, SECOND, THIRD = "20261101120000-aaaaaaa", "20261102120000-bbbbbbb", "20261103120000-ccccccc"
KEYS = {
    "changed",
    "root",
    "release",
    "state",
    "current",
    "previous",
    "components",
    "built",
    "environment",
    "started",
    "stopped",
    "assets_offered",
    "assets_removed",
    "pruned",
    "components_pruned",
    "steps",
    "diff",
}
FRONTENDS: list[dict[str, Any]] = [
    {"name": "admin", "port": 3002, "server": "server.js", "environment": {}},
    {"name": "student", "port": 3001, "server": "server.js", "environment": {}},
]


class Killed(BaseException):
    """The run was killed here."""


@dataclass
class Systemd:
    """A service manager; units named in broken fail as soon as they are started."""

    states: dict[str, str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    missing: bool = False
    falling: set[str] = field(default_factory=set)
    fallen: dict[str, int] = field(default_factory=dict)
    calls: list[list[str]] = field(default_factory=list)

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        if argv[0] == "journalctl":
            return 0, "Error: Cannot find module 'next'\ntoken is canary-93f1\n", ""
        verb, units = argv[1], [unit for unit in argv[2:] if not unit.startswith("--")]
        if verb == "show":
            return (
                0,
                "\n\n".join(
                    f"Id={unit}\nActiveState={self.states.get(unit, 'inactive')}\nNRestarts={self.restarts(unit)}" for unit in units
                ),
                "",
            )
        if verb == "list-units":
            found = sorted(unit for unit in self.states if fnmatch.fnmatchcase(unit, units[0]))
            return 0, "".join(f"{unit} loaded {self.states[unit]} running A front end\n" for unit in found), ""
        self.calls.append([verb, *units])
        if self.missing:
            return 5, "", "Unit lms-admin@.service not found.\n"
        for unit in units:
            self.states[unit] = "inactive" if verb != "start" else "failed" if unit in self.broken else "active"
        if verb == "start" and self.broken & set(units):
            return 1, "", f"Job for {units[0]} failed because the control process exited with error code."
        return 0, "", ""

    def restarts(self, unit: str) -> int:
        """Return how often a process was started again; each look at one that falls finds it fallen once more."""
        self.fallen[unit] = self.fallen.get(unit, 4) + (unit in self.falling)
        return self.fallen[unit]

    def running(self) -> list[str]:
        """Return what runs, without the application's name."""
        return sorted(unit[4:-8] for unit, state in self.states.items() if state == "active")


class Host:
    """A host on which the module runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "srv"
        self.sent = directory / "sent"
        self.sent.mkdir()
        self.systemd = Systemd()
        self.time = datetime.now(timezone.utc)
        self.builds = {"admin": self.send("admin", "1"), "student": self.send("student", "1")}
        self.ill: set[str] = set()
        self.kill_at = ""

    def send(self, app: str, build: str) -> str:
        """Send an artifact to the host, and return its sum."""
        tree = self.directory / f"{app}-{build}"
        for name in (f"apps/{app}/server.js", f"apps/{app}/.next/static/{build}.js"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(build)
        artifact = self.sent / f"{app}.tar.gz"
        with artifact.open("wb") as stream:
            pack({str(found.relative_to(tree)): found for found in tree.rglob("*")}, stream)
        return hashlib.sha256(artifact.read_bytes()).hexdigest()

    def ask(self, probe: Probe) -> tuple[Response | None, str]:
        """Answer for a front end: the process behind a socket, or what the web server finds behind the live link."""
        app = str(probe.url).split("/")[2].split(".")[0]
        key = probe.unix_socket.split("/")[-3][-16:] if probe.unix_socket else self.live(app)
        if self.systemd.states.get(f"lms-{app}@{key}.service") != "active":
            return None, "there is no such socket."
        if app in self.ill:
            return Response(500), "it answered 500."
        expected = probe.expectation.values["revision"]
        return Response(200), "" if expected == key else f"the revision is {key}."

    def live(self, app: str) -> str:
        """Return the key of a front end's component in the live release."""
        return (self.root / "current" / "apps" / app).readlink().name[-16:]

    def checkpoint(self, name: str) -> None:
        """Die where the test says so."""
        if name == self.kill_at:
            raise Killed

    def run(self, state: str, name: str | None = None, check_mode: bool = False, **values: Any) -> dict[str, Any]:
        """Run the module."""
        params = {
            "path": str(self.root),
            "state": state,
            "release": name,
            "name": "lms",
            "frontends": FRONTENDS,
            "artifacts": self.builds,
            "artifacts_path": str(self.sent),
            "environment": {"API_URL": "http://127.0.0.1:8000"},
            "fingerprint": None,
            "metadata": {"commit": "abc1234"},
            "owner": str(os.geteuid()),
            "group": str(os.getegid()),
            "domain": "example.com",
            "health_uri": "/api/health",
            "consecutive": 3,
            "timeout": 5.0,
            "assets_kept": 30,
            "keep": None,
            "reason": "",
            **values,
        }
        now = iter(range(1000))
        frontends = FrontEnds(
            Releases(self.root, lambda: self.time, self.checkpoint),
            Components(self.root, lambda: self.time, self.checkpoint),
            Units(Systemctl(self.systemd), "lms"),
            nextjs_release.settings_of(params, check_mode),
            Prober(self.ask, lambda: float(next(now)), lambda seconds: None),
        )
        result = nextjs_release.run(frontends, params, check_mode)
        assert set(result) == KEYS
        return result

    def deploy(self, name: str) -> dict[str, Any]:
        """Make a release the live one."""
        prepared = self.run("prepared", name)
        self.run("active", name)
        self.run("settled")
        return prepared

    def tree(self) -> list[str]:
        """Return everything on the host."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*")) if self.root.exists() else []


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Return a bare host."""
    return Host(tmp_path)


def changed_steps(result: dict[str, Any]) -> list[str]:
    """Return the steps that changed something."""
    return [step["name"] for step in result["steps"] if step["changed"]]


def test_a_first_release_is_prepared_switched_and_settled(host: Host) -> None:
    prepared = host.run("prepared", FIRST)
    before = (host.root / "current").exists()
    active = host.run("active", FIRST)
    settled = host.run("settled")

    assert changed_steps(prepared) == ["unpack", "offer assets", "link", "start", "verify"]
    assert (prepared["state"], before) == ("verified", False)
    assert changed_steps(active) == ["switch"]
    assert (active["state"], active["current"]) == ("active", FIRST)
    assert changed_steps(settled) == []
    assert host.systemd.running() == [f"{app}@{host.live(app)}" for app in ("admin", "student")]
    assert (host.root / "releases" / FIRST / "REVISION").read_text() == "abc1234\n"


def test_every_step_again_changes_nothing(host: Host) -> None:
    host.deploy(FIRST)
    tree, calls = host.tree(), len(host.systemd.calls)

    results = [host.run("prepared", FIRST), host.run("active", FIRST), host.run("settled")]

    assert [result["changed"] for result in results] == [False, False, False]
    assert (host.tree(), len(host.systemd.calls)) == (tree, calls)


def test_an_unchanged_front_end_is_neither_unpacked_nor_restarted(host: Host) -> None:
    host.deploy(FIRST)
    admin, student = host.live("admin"), host.live("student")
    host.builds["student"] = host.send("student", "2")
    (host.sent / "admin.tar.gz").unlink()
    host.systemd.calls.clear()

    prepared = host.run("prepared", SECOND)
    host.run("active", SECOND)
    beside = host.systemd.running()
    settled = host.run("settled")

    new = host.live("student")
    assert prepared["built"] == [f"student-{new}"]
    assert host.live("admin") == admin
    assert beside == sorted([f"admin@{admin}", f"student@{student}", f"student@{new}"])
    assert settled["stopped"] == [f"lms-student@{student}.service"]
    assert host.systemd.calls == [["start", f"lms-student@{new}.service"], ["stop", f"lms-student@{student}.service"]]


def test_a_new_commit_that_changed_nothing_is_a_release_of_the_same_components(host: Host) -> None:
    host.deploy(FIRST)
    host.systemd.calls.clear()

    prepared = host.deploy(SECOND)

    assert (prepared["built"], prepared["started"]) == ([], [])
    assert host.systemd.calls == []
    assert (host.root / "current").readlink() == Path("releases", SECOND)


def test_a_variable_of_one_front_end_restarts_only_that_one(host: Host) -> None:
    host.deploy(FIRST)
    frontends = [FRONTENDS[0], {**FRONTENDS[1], "environment": {"API_URL": "https://api.example.com", "TOKEN": "canary-93f1"}}]

    prepared = host.run("prepared", SECOND, frontends=frontends)

    assert prepared["environment"] == {"student": {"added": ["TOKEN"], "removed": [], "changed": ["API_URL"]}}
    assert prepared["diff"]["after"]["environment"] == {"student": ["+ TOKEN=***", "~ API_URL=***"]}
    assert [name[:8] for name in prepared["built"]] == ["student-"]
    assert "canary-93f1" not in json.dumps(prepared)


def test_going_back_starts_processes_that_were_stopped(host: Host) -> None:
    host.deploy(FIRST)
    host.builds["student"] = host.send("student", "2")
    host.deploy(SECOND)
    left = host.live("student")

    back = host.run("active", FIRST)
    failed = host.run("failed", SECOND, reason="slow")

    assert back["started"] == [f"lms-student@{host.live('student')}.service"]
    assert (failed["state"], failed["stopped"]) == ("failed", [f"lms-student@{left}.service"])
    assert host.systemd.running() == [f"{app}@{host.live(app)}" for app in ("admin", "student")]


def test_a_process_that_does_not_stay_up_is_named_with_its_log(host: Host) -> None:
    host.deploy(FIRST)
    host.builds["student"] = host.send("student", "2")
    planned = host.run("prepared", SECOND, check_mode=True)
    host.systemd.broken = {f"lms-{name.replace('-', '@')}.service" for name in planned["built"]}
    before = host.systemd.running()

    with pytest.raises(LmsError) as raised:
        host.run("prepared", SECOND, environment={"API_URL": "http://127.0.0.1:8000"})
    failed = host.run("failed", SECOND, reason=raised.value.message)

    assert raised.value.message == (
        f"The front end student of release {SECOND} is not well: its process does not stay up. The last lines of its log are in journal."
    )
    assert raised.value.details["app"] == "student"
    assert raised.value.details["journal"] == ["Error: Cannot find module 'next'", "token is canary-93f1"]
    assert [step["name"] for step in raised.value.details["steps"]] == ["unpack", "offer assets", "link", "start", "probe"]
    assert failed["state"] == "failed"
    assert host.systemd.running() == before
    assert set(host.systemd.states.values()) == {"active", "inactive"}


def test_a_process_that_is_started_again_and_again_is_not_waited_for(host: Host) -> None:
    student = host.run("prepared", FIRST, check_mode=True)["components"]["student"]
    host.systemd.falling = {f"lms-{student.replace('-', '@')}.service"}
    host.ill = {"student"}

    with pytest.raises(LmsError, match=r"The front end student of .* is not well: its process does not stay up\."):
        host.run("prepared", FIRST, timeout=1000.0)


def test_a_unit_that_is_not_there_is_said_at_once(host: Host) -> None:
    host.systemd.missing = True

    with pytest.raises(LmsError, match=r"systemctl start ended with status 5: Unit lms-admin@\.service not found"):
        host.run("prepared", FIRST)


def test_all_front_ends_that_are_not_well_are_named(host: Host) -> None:
    host.ill = {"admin", "student"}

    with pytest.raises(LmsError, match=r"The front end admin of .* it answered 500\. .* Not well either: student\.") as raised:
        host.run("prepared", FIRST)

    assert raised.value.details["not_well"] == {"admin": "it answered 500.", "student": "it answered 500."}


def test_nothing_is_switched_unless_every_process_answers(host: Host) -> None:
    host.deploy(FIRST)
    host.builds["student"] = host.send("student", "2")
    host.run("prepared", SECOND)
    host.ill = {"student"}

    with pytest.raises(LmsError, match="student"):
        host.run("active", SECOND)

    assert (host.root / "current").readlink() == Path("releases", FIRST)


def test_a_failed_or_missing_release_is_refused_before_anything_starts(host: Host) -> None:
    host.deploy(FIRST)
    host.builds["student"] = host.send("student", "2")
    host.run("prepared", SECOND)
    host.run("failed", SECOND, reason="slow")
    host.systemd.calls.clear()

    for state, name, message in [
        ("prepared", SECOND, r"is marked failed \(slow\)"),
        ("active", SECOND, r"is marked failed \(slow\)"),
        ("active", THIRD, "is not there"),
        ("failed", FIRST, "is live"),
    ]:
        with pytest.raises(LmsError, match=message):
            host.run(state, name)

    assert host.systemd.calls == []


def test_a_release_whose_component_was_removed_by_hand_is_refused(host: Host) -> None:
    host.deploy(FIRST)
    component = f"student-{host.live('student')}"
    (host.root / "components" / component).rename(host.directory / "away")

    with pytest.raises(LmsError, match=f"lacks the components {component}"):
        host.run("active", FIRST)


def test_the_same_release_of_other_components_is_refused(host: Host) -> None:
    host.run("prepared", FIRST)
    host.builds["student"] = host.send("student", "2")

    with pytest.raises(LmsError, match="was built from another artifact"):
        host.run("prepared", FIRST)


@pytest.mark.parametrize("where", ["unpacked", "finished", "synced", "renamed", "linked", "record", "journal", "switched"])
def test_a_run_that_is_killed_anywhere_is_made_good_by_the_next_one(host: Host, where: str) -> None:
    host.deploy(FIRST)
    host.builds["student"] = host.send("student", "2")
    host.kill_at = where

    with pytest.raises(Killed):
        host.deploy(SECOND)
    host.kill_at = ""
    served = (host.root / "current").resolve().name
    host.deploy(THIRD)

    assert served == (SECOND if where == "switched" else FIRST)
    assert host.systemd.running() == [f"{app}@{host.live(app)}" for app in ("admin", "student")]
    assert (host.root / "current").readlink() == Path("releases", THIRD)


def test_check_mode_fresh_host_passes(host: Host) -> None:
    (host.sent / "student.tar.gz").unlink()

    prepared = host.run("prepared", FIRST, check_mode=True, artifacts={}, owner="not-yet-a-user")
    active = host.run("active", FIRST, check_mode=True)
    settled = host.run("settled", check_mode=True)

    assert (prepared["changed"], prepared["state"], prepared["built"]) == (True, "verified", ["admin-not-built", "student-not-built"])
    assert (active["changed"], active["current"]) == (True, FIRST)
    assert settled["changed"] is False
    assert not host.root.exists()
    assert host.systemd.calls == []


def test_check_mode_and_the_real_run_agree_at_every_step(host: Host) -> None:
    host.deploy(FIRST)
    host.builds["student"] = host.send("student", "2")
    for state, name in [("prepared", SECOND), ("active", SECOND), ("settled", None), ("active", FIRST), ("failed", SECOND)]:
        before = host.tree()
        foreseen = host.run(state, name, check_mode=True)
        assert host.tree() == before
        done = host.run(state, name)

        shown = [key for key in KEYS if key not in ("steps", "assets_offered")]
        assert {key: foreseen[key] for key in shown} == {key: done[key] for key in shown}
        assert set(changed_steps(foreseen)) == set(changed_steps(done))


def test_another_application_of_the_host_is_left_alone(host: Host) -> None:
    host.systemd.states = {
        "lms-x-student@0123456789abcdef.service": "active",
        "lms-queue@1.service": "active",
        "lms-student@0123456789abcdef.service": "failed",
    }
    host.deploy(FIRST)

    assert host.systemd.states["lms-x-student@0123456789abcdef.service"] == "active"
    assert host.systemd.states["lms-queue@1.service"] == "active"
    assert host.systemd.states["lms-student@0123456789abcdef.service"] == "inactive"


def test_without_a_live_release_nothing_is_stopped(host: Host) -> None:
    host.run("prepared", FIRST)

    assert host.run("settled")["stopped"] == []


def test_old_assets_go_when_the_release_settles(host: Host) -> None:
    host.deploy(FIRST)
    (host.root / "assets/apps/student/.next/static/gone.js").write_text("x")
    host.time += timedelta(days=31)

    foreseen = host.run("settled", check_mode=True)
    settled = host.run("settled")

    assert (foreseen["assets_removed"], settled["assets_removed"]) == (1, 1)
    assert [path.name for path in (host.root / "assets/apps/student/.next/static").iterdir()] == ["1.js"]


def test_pruning_removes_components_with_their_last_release(host: Host) -> None:
    for number, name in enumerate((FIRST, SECOND, THIRD), start=1):
        host.builds["student"] = host.send("student", str(number))
        host.deploy(name)
    host.time += timedelta(hours=2)
    first = (host.root / "releases" / FIRST / "apps/student").readlink().name
    params = {"state": "pruned", "keep": 1, "min_age": 300, "owner": None, "group": None, "artifact": None}
    params.update({"shared_directories": [], "shared_owner": None, "shared_group": None, "shared_mode": "2770", "writable_directories": []})

    outcome = release.run_all(
        [Releases(self_root, lambda: host.time) for self_root in (host.root, host.directory / "other")], params, False
    )

    pruned = outcome["applications"][str(host.root)]
    assert (pruned["pruned"], pruned["components_pruned"]) == ([FIRST], [first])
    assert outcome["applications"][str(host.directory / "other")]["changed"] is False
    assert len(list((host.root / "components").iterdir())) == 3


def test_settling_removes_old_releases_where_it_is_asked_to(host: Host) -> None:
    for number, name in enumerate((FIRST, SECOND, THIRD), start=1):
        host.builds["student"] = host.send("student", str(number))
        host.deploy(name)
    host.time += timedelta(hours=2)
    first = (host.root / "releases" / FIRST / "apps/student").readlink().name

    foreseen = host.run("settled", keep=1, check_mode=True)
    settled = host.run("settled", keep=1)

    assert (foreseen["pruned"], foreseen["components_pruned"]) == (settled["pruned"], settled["components_pruned"]) == ([FIRST], [first])
    assert host.run("settled", keep=1)["changed"] is False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"artifacts": {"admin": "a" * 64}}, "artifacts has no SHA-256 of the front ends student"),
        ({"frontends": [{**FRONTENDS[0], "name": "../x"}]}, r"frontends has the names '\.\./x'"),
        ({"frontends": [FRONTENDS[0], FRONTENDS[0]]}, "frontends has the names 'admin'"),
        ({"environment": {"a b": "x"}}, "values has the keys 'a b'"),
    ],
)
def test_what_cannot_be_right_is_refused(host: Host, values: dict[str, Any], message: str) -> None:
    with pytest.raises(LmsError, match=message):
        host.run("prepared", FIRST, **values)

    assert host.tree() == []


def test_superfluous_is_what_runs_for_nobody() -> None:
    assert superfluous(["b", "a", "c"], ["c", "d"]) == ["a", "b"]


def test_values_of_the_environment_are_shown_by_name() -> None:
    environment = {"TOKEN": "canary-93f1", "LONG": "canary-93f1-more", "FLAG": "1"}

    assert hide_values("1: canary-93f1-more, canary-93f1", environment) == "1: ${LONG}, ${TOKEN}"


def test_a_bad_answer_among_good_ones_starts_the_count_again() -> None:
    answers = iter(["", "", "it answered 500.", "", "", ""])
    question = Question(Component("student", "0" * 16), "lms-student@0.service", Probe("http://student/"))
    asked: list[Probe] = []

    def ask(probe: Probe) -> tuple[Response | None, str]:
        asked.append(probe)
        return None, next(answers)

    ill = Prober(ask, lambda: 0.0, lambda seconds: None).wait([question], 3, 1, lambda units: {})

    assert (ill, len(asked)) == ({}, 6)
