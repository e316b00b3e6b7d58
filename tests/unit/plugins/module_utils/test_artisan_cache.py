# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The caches of a release: each by its own command, and judged by what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan, as_user
from ansible_collections.bitflow.lms.plugins.module_utils._artisan_cache import CACHES, run
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

FILES = {"config": "config.php", "event": "events.php", "route": "routes-v7.php"}


class Laravel:
    """A run_command that plays artisan and php -l in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ran: list[str] = []
        self.content = "<?php return [];"
        for name in ("bootstrap/cache", "storage/framework/views", "resources/views", "vendor"):
            (directory / name).mkdir(parents=True)
        (directory / "artisan").touch()
        (directory / "resources/views/welcome.blade.php").touch()

    def __call__(self, argv: list[str], **_options: Any) -> tuple[int, str, str]:
        if "-l" in argv:
            names = argv[argv.index("-l") + 1 :]
            self.ran.append(f"php -l ({len(names)})")
            broken = [name for name in names if "broken" in Path(name).read_text()]
            good = "".join(f"No syntax errors detected in {name}\n" for name in names if name not in broken)
            bad = "".join(f"PHP Parse error:  syntax error, unexpected end of file in {name} on line 3\n" for name in broken)
            return (255 if broken else 0, good, bad)
        command = argv[argv.index("--no-ansi") + 1]
        self.ran.append(command)
        cache, _colon, verb = command.partition(":")
        path = self.directory / (f"bootstrap/cache/{FILES[cache]}" if cache in FILES else "storage/framework/views/welcome.php")
        path.unlink(missing_ok=True)
        if verb == "cache":
            path.write_text(self.content)
        return 0, "\n   INFO  Done.  \n\n", ""


@pytest.fixture
def laravel(tmp_path: Path) -> Laravel:
    return Laravel(tmp_path)


def bring(laravel: Laravel, state: str, caches: tuple[str, ...] = CACHES, check_mode: bool = False, lint: bool = True) -> dict[str, Any]:
    return run(Artisan(laravel, str(laravel.directory)), caches, state, lint, check_mode)


def test_every_cache_is_built_by_its_own_command_and_read_by_php(laravel: Laravel) -> None:
    result = bring(laravel, "present", ("view", "route", "config", "event"))

    assert laravel.ran == ["config:cache", "event:cache", "route:cache", "view:cache", "php -l (1)", "php -l (3)"]
    assert result["changed"] is True
    assert sorted(result["caches"]) == [
        "bootstrap/cache/config.php",
        "bootstrap/cache/events.php",
        "bootstrap/cache/routes-v7.php",
        "storage/framework/views",
    ]


def test_the_same_caches_again_are_no_change(laravel: Laravel) -> None:
    bring(laravel, "present")

    assert bring(laravel, "present")["changed"] is False


def test_caches_are_removed_and_then_there_is_nothing_to_remove(laravel: Laravel) -> None:
    bring(laravel, "present")

    assert [bring(laravel, "absent")["changed"], bring(laravel, "absent")["changed"]] == [True, False]
    assert list((laravel.directory / "bootstrap/cache").iterdir()) == []


def test_verified_runs_no_artisan_and_changes_nothing(laravel: Laravel) -> None:
    bring(laravel, "present")
    laravel.ran.clear()

    result = bring(laravel, "verified")

    assert (result["changed"], laravel.ran) == (False, ["php -l (1)", "php -l (3)"])


def test_verified_names_the_caches_that_are_missing(laravel: Laravel) -> None:
    bring(laravel, "present", ("config", "view"))

    with pytest.raises(LmsError) as caught:
        bring(laravel, "verified")

    assert caught.value.details["missing"] == ["bootstrap/cache/events.php", "bootstrap/cache/routes-v7.php"]


def test_an_application_without_templates_needs_no_compiled_views(laravel: Laravel) -> None:
    (laravel.directory / "resources/views/welcome.blade.php").unlink()
    bring(laravel, "present", ("config",))

    assert bring(laravel, "verified", ("config", "view"))["changed"] is False


@pytest.mark.parametrize("state", ["present", "verified"])
def test_a_cache_that_is_no_php_is_refused(laravel: Laravel, state: str) -> None:
    bring(laravel, "present")
    laravel.content = "<?php broken"
    (laravel.directory / "bootstrap/cache/config.php").write_text(laravel.content)

    with pytest.raises(LmsError, match=r"config\.php is broken PHP: Parse error: syntax error, unexpected end of file on line 3\."):
        bring(laravel, state, ("config",))


def test_broken_blade_stops_deploy(laravel: Laravel) -> None:
    laravel.content = "<?php broken ?>"

    with pytest.raises(LmsError, match="compiles to broken PHP"):
        bring(laravel, "present", ("view",))


def test_check_mode_only_says_what_would_run(laravel: Laravel) -> None:
    result = bring(laravel, "present", check_mode=True)

    assert (result["changed"], laravel.ran) == (True, [])
    assert [entry["reason"] for entry in result["results"]] == ["Check mode: would run."] * 4


@pytest.mark.parametrize("state", ["present", "absent", "verified"])
def test_check_mode_works_for_a_release_that_is_not_there_yet(laravel: Laravel, state: str) -> None:
    result = run(Artisan(laravel, "/nowhere"), CACHES, state, True, check_mode=True)

    assert (result["changed"], result["caches"]) == (state != "verified", {})
    assert result["warnings"] == ["There is no directory /nowhere. Set chdir to a release that exists."]


@pytest.mark.parametrize(
    ("user_id", "user", "prefix"),
    [
        (0, "lms-deploy", ("setpriv", "--reuid=lms-deploy", "--regid=lms", "--init-groups", "--")),
        (0, None, ()),
        (1000, "lms-deploy", ()),
    ],
)
def test_root_runs_artisan_as_the_owner(monkeypatch: pytest.MonkeyPatch, user_id: int, user: str | None, prefix: tuple[str, ...]) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user_id)

    assert as_user(user, "lms") == prefix
