# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Laravel release from its artifact to the live one and back: what each state does, and what a failure at each step leaves."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._archive import pack
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._fastcgi import Response
from ansible_collections.bitflow.lms.plugins.module_utils._fpm_instances import Instances
from ansible_collections.bitflow.lms.plugins.module_utils._laravel_release import STEPS, Deployment, keys_of_example, missing_keys, run
from ansible_collections.bitflow.lms.plugins.module_utils._release import Releases
from ansible_collections.bitflow.lms.plugins.module_utils._systemd import Systemctl

NOW = datetime(2026, 11, 23, 21, 0, tzinfo=timezone.utc)
FIRST, SECOND, THIRD = "20261101120000-aaaaaaa", "20261102120000-bbbbbbb", "20261103120000-ccccccc"
SECRET = "correct horse battery staple"
ENVIRONMENT = {"APP_KEY": SECRET, "APP_ENV": "production"}
FILES = {
    "artisan": "",
    "public/index.php": "<?php",
    "app/User.php": "<?php",
    "bootstrap/app.php": "<?php",
    "resources/views/welcome.blade.php": "welcome",
    ".env.example": 'APP_KEY=\n# MAIL_HOST=\nAPP_ENV=local\nexport LOG_LEVEL=info\nAPP_NAME="${APP_ENV}"\n',
}
CACHES = {"config": "config.php", "event": "events.php", "route": "routes-v7.php"}
PREPARED = [
    "unpack the artifact",
    "write the environment",
    "build the caches",
    "start the candidate",
    "ask the candidate for its health",
    "fill OPcache",
    "note that it is verified",
]
KEYS = {
    "changed",
    "root",
    "release",
    "release_path",
    "state",
    "current",
    "previous",
    "steps",
    "drained",
    "pruned",
    "environment_keys",
    "diff",
    "warnings",
}


class Host:
    """A host with systemd, PHP-FPM and artisan, all in memory but for the releases."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "srv" / "backend"
        self.artifact = directory / "release.tar"
        self.running: set[str] = set()
        self.health = 200
        self.time = NOW
        self.web = 200
        self.broken_command = ""
        self.starts = True
        self.ran: list[str] = []
        self.warmed: list[str] = []
        (directory / "wanted").mkdir()
        sources = {}
        for name, content in FILES.items():
            path = directory / "source" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            sources[name] = path
        with self.artifact.open("wb") as stream:
            pack(sources, stream)

    @property
    def live(self) -> str:
        """Return the release that the link points at."""
        return (self.root / "current").readlink().name

    @property
    def enabled(self) -> set[str]:
        """Return the releases whose instances start at boot."""
        return {link.name.partition("@")[2][: -len(".service")] for link in (self.directory / "wanted").iterdir()}

    def state_of(self, release: str) -> str:
        return Releases(self.root).read().state_of(release)

    def run_command(self, argv: list[str], **_options: Any) -> tuple[int, str, str]:
        if "-l" in argv:
            return 0, "".join(f"No syntax errors detected in {name}\n" for name in argv[argv.index("-l") + 1 :]), ""
        if "--no-ansi" in argv:
            return self.artisan(argv[argv.index("--no-ansi") + 1], Path(_options["cwd"]))
        release = argv[-1].partition("@")[2][: -len(".service")]
        link = self.directory / "wanted" / argv[-1]
        if argv[1] == "show":
            return 0, "active\n" if release in self.running else "inactive\n", ""
        if argv[1] == "list-units":
            return 0, "".join(f"lms-fpm@{name}.service loaded active running PHP-FPM\n" for name in sorted(self.running)), ""
        if argv[0] == "systemctl" and argv[1] != "reset-failed":
            self.ran.append(f"{argv[1]} {release}")
        if argv[1] == "start" and self.starts:
            self.running.add(release)
        elif argv[1] == "stop":
            self.running.discard(release)
        elif argv[1] == "enable":
            link.symlink_to("/nowhere")
        elif argv[1] == "disable":
            link.unlink(missing_ok=True)
        return 0, "", ""

    def artisan(self, command: str, release: Path) -> tuple[int, str, str]:
        self.ran.append(command)
        if command == "list":
            return 0, json.dumps({"commands": []}), ""
        if command == self.broken_command:
            return 1, "", "\n   ERROR  The configuration throws.  \n"
        cache = command.partition(":")[0]
        path = release / (f"bootstrap/cache/{CACHES[cache]}" if cache in CACHES else "storage/framework/views/welcome.php")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(f"<?php // {(release / '.env').read_text()}")
        return 0, "INFO  Done.", ""

    def fastcgi(self, address: str, params: Mapping[str, str], body: bytes = b"", timeout: float = 10) -> Response:
        release = Path(address).parents[1].name
        assert release in self.running, f"{release} is asked and does not run"
        if params["SCRIPT_NAME"] == "/fpm-status":
            self.accepted = getattr(self, "accepted", 0) + 1
            return Response(200, {}, json.dumps({"active processes": 1, "accepted conn": self.accepted}).encode())
        if body:
            paths = json.loads(body)["paths"]
            self.warmed += paths
            return Response(200, {}, json.dumps({"unavailable": None, "count": len(paths), "not_cached": []}).encode())
        assert params["SCRIPT_FILENAME"] == f"{self.root}/live/release/public/index.php"
        return Response(self.health, {}, b"")

    def ask_web(self, _probe: Any) -> None:
        if self.web != 200:
            raise LmsError(f"The server answered {self.web}, expected 200.")

    def run(self, state: str, release: str | None = None, check_mode: bool = False, **values: Any) -> dict[str, Any]:
        """Run the module."""
        self.ran.clear()
        params = {
            "release": release,
            "artifact": str(self.artifact),
            "artifact_sha256": hashlib.sha256(self.artifact.read_bytes()).hexdigest(),
            "fingerprint": None,
            "metadata": None,
            "owner": None,
            "group": None,
            "shared_directories": [],
            "shared_owner": None,
            "shared_group": None,
            "shared_mode": "2770",
            "writable_directories": ["bootstrap/cache", "storage/framework/views"],
            "environment": ENVIRONMENT,
            "environment_required": ["APP_KEY"],
            "environment_example": ".env.example",
            "environment_optional": ["LOG_*", "APP_NAME"],
            "php": "php",
            "timeout": 60,
            "caches": ["config", "event", "route", "view"],
            "commands": [],
            "warm_paths": ["app", "bootstrap", "routes"],
            "health_uri": "/health",
            "health_host": "api.example.com",
            "expect_status": [200],
            "attempts": 2,
            "consecutive": 2,
            "interval": 0,
            "web_address": "127.0.0.1:8000",
            "drain_timeout": 60,
            "keep": None,
            "reason": "",
            **values,
        }
        instances = Instances(
            Systemctl(self.run_command), "lms", self.root, self.fastcgi, sleep=lambda _s: None, wanted=self.directory / "wanted"
        )
        releases = Releases(self.root, lambda: self.time)
        deployment = Deployment(params, self.run_command, releases, instances, check_mode, self.ask_web, self.directory / "opcache")
        result = run(deployment, state)
        assert set(result) == KEYS
        return result

    def deploy(self, *releases: str) -> None:
        for release in releases:
            self.run("prepared", release)
            self.run("active", release)

    def tree(self) -> list[str]:
        return sorted(str(path.relative_to(self.directory)) for path in self.directory.rglob("*"))


@pytest.fixture
def host() -> Iterator[Host]:
    # The path of a socket must be short.
    with tempfile.TemporaryDirectory() as directory:
        yield Host(Path(directory))


def changed_steps(result: dict[str, Any]) -> list[str]:
    return [step["name"] for step in result["steps"] if step["changed"]]


def test_a_release_is_prepared_beside_the_live_one(host: Host) -> None:
    host.deploy(FIRST)

    result = host.run("prepared", SECOND)

    assert (result["state"], result["current"], host.live) == ("verified", FIRST, FIRST)
    assert [step["name"] for step in result["steps"]] == PREPARED
    assert host.ran == ["config:cache", "event:cache", "route:cache", "view:cache", f"start {SECOND}"]
    assert (host.running, host.enabled) == ({FIRST, SECOND}, {FIRST})


def test_a_second_run_changes_nothing(host: Host) -> None:
    host.run("prepared", FIRST)

    again = host.run("prepared", FIRST)

    assert (changed_steps(again), host.ran) == ([], [])


def test_the_switch_keeps_the_instance_of_the_release_before(host: Host) -> None:
    host.deploy(FIRST)
    host.run("prepared", SECOND)

    result = host.run("active", SECOND)

    assert (host.live, result["previous"]) == (SECOND, FIRST)
    assert (host.running, host.enabled) == ({FIRST, SECOND}, {FIRST, SECOND})
    assert changed_steps(host.run("active", SECOND)) == []


def test_settling_leaves_the_live_instance_alone(host: Host) -> None:
    host.deploy(FIRST, SECOND)
    host.run("prepared", THIRD)

    result = host.run("settled")

    assert (host.running, host.enabled) == ({SECOND}, {SECOND})
    assert [entry["release"] for entry in result["drained"]] == [FIRST, THIRD]
    assert changed_steps(host.run("settled")) == []


def test_settling_removes_old_releases_where_it_is_asked_to(host: Host) -> None:
    host.deploy(FIRST, SECOND, THIRD)
    host.time += timedelta(hours=1)

    kept = host.run("settled")
    foreseen = host.run("settled", keep=1, check_mode=True)
    settled = host.run("settled", keep=1)

    assert (kept["pruned"], foreseen["pruned"], settled["pruned"]) == ([], [FIRST], [FIRST])
    # The one to go back to stays.
    assert sorted(path.name for path in (host.root / "releases").iterdir()) == [SECOND, THIRD]
    assert host.run("settled", keep=1)["changed"] is False


def test_going_back_starts_what_was_stopped(host: Host) -> None:
    host.deploy(FIRST, SECOND)
    host.run("settled")

    host.run("active", FIRST)

    assert (host.live, FIRST in host.running, FIRST in host.enabled) == (FIRST, True, True)


def test_a_failed_release_is_marked_and_its_instance_stopped(host: Host) -> None:
    host.deploy(FIRST, SECOND)
    host.run("active", FIRST)

    result = host.run("failed", SECOND, reason="The health check answered 500")

    assert (result["state"], host.running, host.enabled) == ("failed", {FIRST}, {FIRST})
    assert changed_steps(host.run("failed", SECOND)) == []


def test_the_live_release_is_never_marked_failed(host: Host) -> None:
    host.deploy(FIRST)

    with pytest.raises(LmsError, match="is live and cannot be marked failed"):
        host.run("failed", FIRST)

    assert host.running == {FIRST}


@pytest.mark.parametrize(
    ("harm", "step", "reason"),
    [
        ({"broken_command": "route:cache"}, "build the caches", "artisan route:cache ended with status 1: The configuration throws."),
        ({"starts": False}, "start the candidate", "did not start"),
        ({"health": 500}, "ask the candidate for its health", "answered 500"),
    ],
)
def test_candidate_500_never_switched(host: Host, harm: dict[str, Any], step: str, reason: str) -> None:
    host.deploy(FIRST)
    vars(host).update(harm)

    with pytest.raises(LmsError) as caught:
        host.run("prepared", SECOND)

    assert caught.value.message.startswith(f"Could not {step}: ")
    assert reason in caught.value.message
    assert (caught.value.details["failed_step"], caught.value.details["state"]) == (step, "failed")
    assert (host.live, host.running, host.state_of(SECOND)) == (FIRST, {FIRST}, "failed")


def test_a_failed_release_is_not_prepared_again(host: Host) -> None:
    host.health = 500
    with pytest.raises(LmsError):
        host.run("prepared", FIRST)
    host.health = 200

    with pytest.raises(LmsError, match=r"is marked failed .* Deploy under a new id"):
        host.run("prepared", FIRST)


def test_a_live_release_that_is_ill_is_not_given_up(host: Host) -> None:
    host.deploy(FIRST)
    host.health = 503

    with pytest.raises(LmsError):
        host.run("prepared", FIRST)

    assert (host.state_of(FIRST), host.running) == ("active", {FIRST})


def test_an_ill_release_is_not_switched_to(host: Host) -> None:
    host.deploy(FIRST, SECOND)
    host.health = 500

    with pytest.raises(LmsError, match="Could not start the instance"):
        host.run("active", FIRST)

    assert host.live == SECOND


def test_an_unverified_release_is_refused_before_it_is_started(host: Host) -> None:
    host.deploy(FIRST)
    (host.root / "releases" / SECOND).mkdir()

    with pytest.raises(LmsError, match="is not verified"):
        host.run("active", SECOND)

    assert host.running == {FIRST}


def test_a_web_server_that_does_not_answer_is_an_error_after_the_switch(host: Host) -> None:
    host.run("prepared", FIRST)
    host.web = 502

    with pytest.raises(LmsError, match="Could not ask the web server for its health: The server answered 502"):
        host.run("active", FIRST)


@pytest.mark.parametrize("step", range(len(PREPARED)))
def test_a_run_that_was_killed_is_made_good_by_the_next(host: Host, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    host.deploy(FIRST)
    whole = STEPS["prepared"]

    def killed(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    cut = tuple((name, killed if number == step else act) for number, (name, act) in enumerate(whole))
    monkeypatch.setitem(STEPS, "prepared", cut)
    with pytest.raises(KeyboardInterrupt):
        host.run("prepared", SECOND)
    monkeypatch.setitem(STEPS, "prepared", whole)

    result = host.run("prepared", SECOND)

    assert (result["state"], host.live, SECOND in host.running) == ("verified", FIRST, True)
    assert [name for name in host.ran if name.endswith("cache")] == ["config:cache", "event:cache", "route:cache", "view:cache"]


@pytest.mark.parametrize("state", ["prepared", "active", "settled", "failed"])
def test_check_mode_fresh_host_passes(host: Host, state: str) -> None:
    before = host.tree()

    result = host.run(state, None if state == "settled" else FIRST, check_mode=True)

    assert (host.tree(), host.ran) == (before, [])
    assert result["changed"] is (state in ("prepared", "active"))


def test_check_mode_plans_every_step(host: Host) -> None:
    host.deploy(FIRST)
    before = host.tree()

    result = host.run("prepared", SECOND, check_mode=True, environment={**ENVIRONMENT, "APP_ENV": "staging", "NEW_KEY": 1})

    assert changed_steps(result) == [PREPARED[0], PREPARED[1], PREPARED[2], PREPARED[3], PREPARED[6]]
    assert result["environment_keys"] == {"added": ["NEW_KEY"], "removed": [], "changed": ["APP_ENV"]}
    assert result["diff"]["after"]["environment"] == {"APP_ENV": "*** (changed)", "APP_KEY": "***", "NEW_KEY": "***"}
    assert result["diff"]["after"]["instances"] == {f"lms-fpm@{SECOND}.service": "active, disabled"}
    assert (host.tree(), host.running) == (before, {FIRST})


def test_no_result_shows_a_value_of_the_environment(host: Host) -> None:
    assert SECRET not in json.dumps(host.run("prepared", FIRST))
    assert SECRET not in json.dumps(host.run("prepared", SECOND, check_mode=True, environment={"APP_KEY": "other", "APP_ENV": SECRET}))


def test_a_path_that_is_too_long_for_a_socket_is_refused_before_anything_is_there(host: Host) -> None:
    host.root = host.directory / ("x" * 80)

    with pytest.raises(LmsError, match=r"Could not unpack the artifact: The socket .* has a longer path"):
        host.run("prepared", FIRST)

    assert not host.root.exists()


def test_a_key_that_the_application_names_must_be_there(host: Host) -> None:
    with pytest.raises(LmsError) as caught:
        host.run("prepared", FIRST, environment_optional=[])

    assert caught.value.details["missing"] == ["APP_NAME", "LOG_LEVEL"]
    assert "The environment lacks APP_NAME, LOG_LEVEL, which .env.example of the application names." in caught.value.message
    assert host.run("prepared", SECOND, environment_optional=[], environment_example="")["state"] == "verified"


def test_the_environment_of_the_live_release_never_changes(host: Host) -> None:
    host.deploy(FIRST)

    with pytest.raises(LmsError, match="is live and its environment never changes"):
        host.run("prepared", FIRST, environment={**ENVIRONMENT, "APP_ENV": "staging"})


def test_a_candidate_whose_environment_changed_is_made_anew(host: Host) -> None:
    host.run("prepared", FIRST)

    host.run("prepared", FIRST, environment={**ENVIRONMENT, "APP_ENV": "staging"})

    assert host.ran == ["config:cache", "event:cache", "route:cache", "view:cache", f"stop {FIRST}", f"start {FIRST}"]


def test_a_change_of_the_environment_alone_is_a_release_of_the_same_artifact(host: Host) -> None:
    host.deploy(FIRST)

    result = host.run("prepared", SECOND, environment={**ENVIRONMENT, "APP_ENV": "staging"})

    assert (result["environment_keys"]["changed"], result["state"]) == (["APP_ENV"], "verified")


def test_opcache_is_filled_with_the_paths_that_requests_will_use(host: Host) -> None:
    host.run("prepared", FIRST)

    seen = f"{host.root}/live/release"
    assert host.warmed == [
        f"{seen}/app/User.php",
        f"{seen}/bootstrap/app.php",
        *(f"{seen}/bootstrap/cache/{name}" for name in sorted(CACHES.values())),
        f"{host.root}/releases/{FIRST}/storage/framework/views/welcome.php",
    ]


def test_keys_of_an_example_are_those_that_are_set() -> None:
    assert keys_of_example(FILES[".env.example"]) == {"APP_KEY", "APP_ENV", "LOG_LEVEL", "APP_NAME"}


def test_optional_keys_may_be_named_by_patterns() -> None:
    example = {"APP_KEY", "MAIL_HOST", "MAIL_PORT", "LOG_LEVEL"}

    assert missing_keys(example, {"APP_KEY": ""}, ["MAIL_*"]) == ["LOG_LEVEL"]
