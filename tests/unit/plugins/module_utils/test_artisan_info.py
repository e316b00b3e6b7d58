# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an application is, in the same words for every Laravel; captured from real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan
from ansible_collections.bitflow.lms.plugins.module_utils._artisan_info import (
    describe,
    features_of,
    parse_about_json,
    parse_about_text,
    parse_environment,
    read_about,
    truth,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.modules import artisan_info

DATA = Path(__file__).parent / "data" / "artisan"
DRIVERS = {"broadcasting": "null", "cache": "redis", "database": "pgsql", "mail": "log", "queue": "redis", "session": "redis"}


def options_of(laravel: str) -> dict[str, list[str]]:
    """Return the options of every command of a real Laravel."""
    found: dict[str, list[str]] = json.loads((DATA / laravel / "options.json").read_text())
    return found


def listed(name: str, options: list[str]) -> dict[str, Any]:
    """Return a command as artisan list prints it."""
    return {"name": name, "definition": {"options": {option: {"name": option} for option in options}}}


class Host:
    """A run_command that plays a Laravel."""

    def __init__(self, laravel: str) -> None:
        self.laravel = laravel
        self.commands: list[list[str]] = []

    def __call__(self, argv: list[str], **_options: Any) -> tuple[int, str, str]:
        arguments = argv[argv.index("--no-ansi") + 1 :]
        self.commands.append(arguments)
        answers = {
            "list": json.dumps({"commands": [listed(name, options) for name, options in options_of(self.laravel).items()]}),
            "about": (DATA / "laravel10" / ("about.json" if "--json" in arguments else "about.txt")).read_text(),
            "env": "Current application environment: staging\n",
            "--version": (DATA / self.laravel / "version.txt").read_text(),
        }
        return (0, answers[arguments[0]], "")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor/autoload.php").touch()
    (tmp_path / "artisan").touch()
    return tmp_path


def test_application_is_described(release: Path) -> None:
    host = Host("laravel10")

    result = describe(Artisan(host, str(release)))

    assert host.commands == [["list", "--format=json"], ["about", "--json"], ["--version"]]
    about, commands, features = result.pop("about"), result.pop("commands"), result.pop("features")
    assert result == {
        "laravel_version": "10.48.29",
        "php_version": "8.4.28",
        "environment": "production",
        "debug": False,
        "maintenance": False,
        "drivers": {**DRIVERS, "logs": ["single"], "octane": None, "scout": None},
        "caches": {"config": True, "events": True, "routes": True, "views": True},
    }
    assert (about["environment"]["application_name"], "about" in commands, features["about_json"]) == ("Bitflow LMS", True, True)


def test_laravel_without_about_is_described_as_far_as_it_tells(release: Path) -> None:
    (release / "storage/framework").mkdir(parents=True)
    (release / "storage/framework/down").touch()

    result = describe(Artisan(Host("laravel8"), str(release)))

    result.pop("commands"), result.pop("features")
    assert result == {
        "laravel_version": result["laravel_version"],
        "php_version": None,
        "environment": "staging",
        "debug": None,
        "maintenance": True,
        "drivers": {},
        "caches": {},
        "about": {},
    }
    assert result["laravel_version"].startswith("8.")


def test_text_of_about_says_what_its_json_says(release: Path) -> None:
    text = parse_about_text((DATA / "laravel10/about.txt").read_text())

    assert list(text) == ["environment", "cache", "drivers"]
    assert {name: text["drivers"][name] for name in DRIVERS} == DRIVERS
    assert text["environment"]["laravel_version"] == "10.48.29"
    assert (truth(text["environment"]["debug_mode"]), truth(text["cache"]["config"])) == (False, True)
    assert read_about(Artisan(Host("laravel10"), str(release)), {"about": {"--only"}}) == text


def test_json_of_about_is_found_behind_other_output() -> None:
    text = 'Deprecated: x\n{broken\n{"cache": {"config": true}, "empty": []}\n\n'

    assert parse_about_json(text) == {"cache": {"config": True}, "empty": {}}


def test_about_without_json_is_an_error() -> None:
    with pytest.raises(LmsError, match="artisan about --json printed no JSON"):
        parse_about_json("nothing")


@pytest.mark.parametrize(
    ("text", "environment"),
    [
        ("Current application environment: production\n", "production"),
        ("\n   INFO  The application environment is [production].  \n", "production"),
        ("", None),
    ],
)
def test_environment_is_read(text: str, environment: str | None) -> None:
    assert parse_environment(text) == environment


@pytest.mark.parametrize(
    ("laravel", "missing"),
    [
        (
            "laravel8",
            {
                *(
                    "about_json",
                    "config_show",
                    "database_monitor",
                    "horizon",
                    "migrate_isolated",
                    "migrate_status_pending",
                    "octane",
                    "pulse",
                ),
                *("queue_pause", "reload", "reverb", "schedule_interrupt", "schedule_list_json", "schedule_pause"),
            },
        ),
        ("laravel10", {"horizon", "octane", "pulse", "queue_pause", "reload", "reverb", "schedule_list_json", "schedule_pause"}),
        ("laravel13", {"horizon", "octane", "pulse", "reverb"}),
    ],
)
def test_features_are_those_of_the_real_laravels(laravel: str, missing: set[str]) -> None:
    features = features_of({name: set(options) for name, options in options_of(laravel).items()})

    assert {name for name, present in features.items() if not present} == missing


def test_release_that_is_not_there_yet_is_skipped_in_check_mode(tmp_path: Path) -> None:
    result = artisan_info.run(Artisan(Host("laravel10"), str(tmp_path / "r1")), check_mode=True)

    assert result == {
        "changed": False,
        "laravel_version": None,
        "php_version": None,
        "environment": None,
        "debug": None,
        "maintenance": None,
        "drivers": {},
        "caches": {},
        "about": {},
        "commands": [],
        "features": {},
        "skipped": True,
        "reason": f"There is no directory {tmp_path / 'r1'}. Set chdir to a release that exists.",
    }
