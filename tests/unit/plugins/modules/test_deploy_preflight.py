# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module deploy_preflight, run as Ansible runs it."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.bitflow.lms.plugins.modules import deploy_preflight

KEYS = {"changed", "ready", "checks", "problems", "fingerprints"}
KEY, PASSWORD = "base64:c2VjcmV0LWtleQ==", "canary-password"


class Module:
    """The module with its output."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.output = ""

    def run(self, **options: Any) -> dict[str, Any]:
        """Run the module and return its result."""
        with patch_module_args(options), pytest.raises(SystemExit):
            deploy_preflight.main()
        self.output = self.capsys.readouterr().out
        result: dict[str, Any] = json.loads(self.output)
        return result


@pytest.fixture
def module(capsys: pytest.CaptureFixture[str]) -> Module:
    """Return the module."""
    return Module(capsys)


@pytest.fixture
def php(tmp_path: Path) -> str:
    """Return a PHP that answers."""
    path = tmp_path / "php"
    path.write_text("""#!/bin/sh\nprintf '\\n{"version":"8.2.29","bits":64,"extensions":{"redis":"6.2.0"}}'\n""")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def refused() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_what_is_not_asked_for_is_not_checked(module: Module) -> None:
    result = module.run()

    assert {key: result[key] for key in KEYS} == {"changed": False, "ready": True, "checks": [], "problems": [], "fingerprints": {}}


def test_it_says_what_the_host_serves_and_how_well(module: Module, refused: int, tmp_path: Path) -> None:
    (tmp_path / "releases" / "20261101120000-aaaaaaa").mkdir(parents=True)
    (tmp_path / "current").symlink_to("releases/20261101120000-aaaaaaa")

    result = module.run(
        applications=[str(tmp_path)], health=[{"url": "http://api.example.com/health", "connect_to": f"127.0.0.1:{refused}"}]
    )

    assert result["applications"][str(tmp_path)]["current"] == "20261101120000-aaaaaaa"
    # Somebody may deploy because of it.
    assert (result["healthy"], result["ready"], result.get("failed", False)) == (False, True, False)


def test_a_host_of_another_environment_is_refused(module: Module, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f'APP_ENV="production"\nAPP_URL="https://api.example.com"\nAPP_KEY="{KEY}"\n')
    identity = {"APP_ENV": "staging", "APP_URL": "https://api.example.com", "APP_NAME": "LMS"}

    refused = module.run(identity=identity, live_environment=str(tmp_path / ".env"))
    same = module.run(identity={**identity, "APP_ENV": "production"}, live_environment=str(tmp_path / ".env"))
    bare = module.run(identity=identity, live_environment=str(tmp_path / "none" / ".env"))
    nowhere = module.run(identity=identity)

    assert [entry["check"] for entry in refused["problems"]] == ["identity APP_ENV"]
    assert refused["msg"].startswith(
        "The host is not ready for a deployment. This host serves with APP_ENV production, and the inventory wants staging. Look whether"
    )
    assert (same["ready"], bare["ready"]) == (True, True)
    assert nowhere["msg"].startswith("live_environment is not set.")


def everything(php: str, port: int, directory: Path) -> dict[str, Any]:
    """Return options of which each finds a problem."""
    return {
        "disk": [{"path": str(directory), "free_bytes": 10**18}],
        "directories": [str(directory / "none")],
        "controller_time": time.time() - 1000,
        "php": php,
        "php_requirements": {"php": "^8.4", "ext-gd": "*", "ext-redis": "*"},
        "endpoints": [{"name": "cache", "host": "127.0.0.1", "port": port, "redis": True, "password": PASSWORD}],
        "required_environment": ["APP_KEY", "APP_URL"],
        "environment_names": ["APP_URL"],
        "environment_drivers": {"CACHE_STORE": "file"},
        "hosts_count": 2,
        "same_everywhere": {"APP_KEY": KEY},
        "salt": "run-1",
    }


def test_all_problems_come_in_one_answer_and_no_secret_with_them(module: Module, php: str, refused: int, tmp_path: Path) -> None:
    result = module.run(**everything(php, refused, tmp_path))

    assert set(result) >= {*KEYS, "msg", "failed"}
    assert [entry["check"] for entry in result["problems"]] == [
        f"directory {tmp_path}/none",
        f"disk {tmp_path}",
        "clock",
        "php",
        "ext-gd",
        "environment",
        "driver CACHE_STORE",
        "endpoint cache",
    ]
    assert result["msg"].startswith("The host is not ready for a deployment; it has 8 problems. (1) There is no ")
    assert [check["name"] for check in result["checks"] if check["ok"]] == ["ext-redis"]
    assert KEY not in module.output
    assert PASSWORD not in module.output


def test_check_mode_is_the_same(module: Module, php: str, refused: int, tmp_path: Path) -> None:
    options = {key: value for key, value in everything(php, refused, tmp_path).items() if key not in ("controller_time", "disk")}

    results = [module.run(**options, _ansible_check_mode=check_mode) for check_mode in (False, True)]

    assert results[0] == results[1]
    assert results[0]["failed"] is True


def test_for_a_plan_problems_are_warnings(module: Module, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "applications": [],
        "identity": {},
        "health": [],
        "disk": [],
        "directories": [str(tmp_path / "none")],
        "controller_time": None,
        "php_requirements": {},
        "php": "php",
        "endpoints": [],
        "required_environment": [],
        "environment_drivers": {},
        "same_everywhere": {},
        "salt": "",
        "enforced": False,
        "hosts_count": 1,
    }

    def no_command(*_words: Any, **_options: Any) -> tuple[int, str, str]:
        raise AssertionError

    result = deploy_preflight.run(no_command, options, now=0)

    problem = f"There is no {tmp_path}/none. Provision the host first."
    assert (result["ready"], len(result["problems"]), result["warnings"]) == (False, 1, [problem])
    assert module.run(directories=options["directories"], enforced=False).get("failed", False) is False
    assert module.run(directories=options["directories"])["failed"] is True


def test_a_good_host_is_ready(module: Module, php: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        result = module.run(
            disk=[{"path": str(tmp_path)}],
            directories=[str(tmp_path)],
            controller_time=time.time(),
            php=php,
            php_requirements={"php": "^8.2", "ext-redis": "^6"},
            endpoints=[{"name": "database", "host": "127.0.0.1", "port": listener.getsockname()[1]}],
            required_environment=["APP_KEY"],
            environment_names=["APP_KEY"],
            environment_drivers={"SESSION_DRIVER": "redis"},
            hosts_count=2,
        )

    assert (result["ready"], result["problems"]) == (True, [])
    assert [check["name"] for check in result["checks"]] == [
        f"directory {tmp_path}",
        f"disk {tmp_path}",
        "clock",
        "php",
        "ext-redis",
        "environment",
        "driver SESSION_DRIVER",
        "endpoint database",
    ]


def test_a_php_that_is_absent_is_a_problem(module: Module) -> None:
    result = module.run(php="/nowhere/php", php_requirements={"php": "*"})

    assert result["msg"] == (
        "The host is not ready for a deployment. PHP cannot be run as /nowhere/php. "
        "Provision the host first, or set php to its name or path."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"same_everywhere": {"APP_KEY": KEY}}, "salt is empty."),
        ({"endpoints": [{"name": "x"}]}, "one of the following is required: host, unix_socket"),
        ({"endpoints": [{"name": "x", "host": "localhost"}]}, "parameters are required together: host, port"),
        ({"endpoints": [{"name": "x", "host": "localhost", "port": 1, "unix_socket": "/x"}]}, "parameters are mutually exclusive"),
    ],
)
def test_wrong_options_are_refused(module: Module, options: dict[str, Any], message: str) -> None:
    result = module.run(**options)

    assert message in result["msg"]
    assert KEY not in module.output
