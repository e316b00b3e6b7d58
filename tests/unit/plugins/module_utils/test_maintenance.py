# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Maintenance is compared by its payload, put in place once, and its secret is nowhere. The PHP itself is proven by the journeys."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan
from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._maintenance import (
    PROGRAM,
    Look,
    Maintenance,
    check_excepted,
    down_options,
    shown_payload,
)
from ansible_collections.bitflow.lms.plugins.modules import artisan_maintenance

PARAMS: dict[str, Any] = {
    "state": "down",
    "secret": None,
    "retry": None,
    "refresh": None,
    "status": None,
    "redirect": None,
    "render": None,
    "excepted": [],
}
SECRET = "open-sesame"
THROWN = f"lms-maintenance:{base64.b64encode(json.dumps({'error': 'View [y]   not found.'}).encode()).decode()}"


class Laravel:
    """A run_command that plays PHP: it keeps a payload, and knows some options of down."""

    def __init__(self, payload: dict[str, Any] | None = None, known: tuple[str, ...] = ("secret", "retry", "render", "status")) -> None:
        self.payload = payload
        self.known = known
        self.actions: list[str] = []
        self.argv: list[list[str]] = []
        self.stubborn = False

    def __call__(self, argv: list[str], data: str, **_options: Any) -> tuple[int, str, str]:
        request = json.loads(base64.b64decode(data.partition("base64_decode('")[2].partition("'")[0]))
        self.argv.append(argv)
        self.actions.append(request["action"])
        before, wanted, missing = self.payload, None, []
        if request["options"] is not None:
            wanted = {"except": ["/health"], "retry": None, "secret": None, "status": 503, "template": None}
            wanted.update({name: value for name, value in request["options"].items() if name in self.known})
            missing = [name for name in request["options"] if name not in self.known]
        if request["action"] != "look" and not self.stubborn:
            self.payload = request.get("payload")
        answer = {"driver": "file", "before": before, "wanted": wanted, "page": "<?php", "missing": missing, "after": self.payload}
        return (0, f"A warning of the application\nlms-maintenance:{base64.b64encode(json.dumps(answer).encode()).decode()}\n", "")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor/autoload.php").touch()
    (tmp_path / "artisan").touch()
    return tmp_path


def run(laravel: Any, release: Path, check_mode: bool = False, **params: Any) -> dict[str, Any]:
    return artisan_maintenance.run(Maintenance(Artisan(laravel, str(release))), {**PARAMS, **params}, check_mode)


def payload(**values: Any) -> dict[str, Any]:
    return {"except": ["/health"], "retry": None, "secret": None, "status": 503, "template": None, **values}


def test_down_puts_the_payload_in_place_and_reads_it_again(release: Path) -> None:
    laravel = Laravel()

    result = run(laravel, release, secret=SECRET, retry=60)

    assert (laravel.actions, laravel.payload) == (["look", "down"], payload(secret=SECRET, retry="60"))
    shown = {"active": True, "except": ["/health"], "retry": "60", "secret": "set", "status": 503, "template": None}
    assert result == {
        "changed": True,
        "active": True,
        "driver": "file",
        "payload": shown,
        "options_skipped": [],
        "laravel_version": None,
        "reason": "",
        "diff": {"before": {"active": False}, "after": shown},
    }


@pytest.mark.parametrize(
    ("before", "params", "actions", "changed"),
    [
        (None, {"state": "up"}, ["look"], False),
        (payload(), {"state": "up"}, ["look", "up"], True),
        (payload(), {}, ["look"], False),
        (payload(secret=SECRET), {"secret": SECRET}, ["look"], False),
        # What artisan down forgets before Laravel 12.53, and does without opening the application.
        (payload(secret="another-one"), {"secret": SECRET}, ["look", "down"], True),
        (payload(secret=SECRET), {}, ["look", "down"], True),
    ],
)
def test_only_a_difference_is_a_change(
    release: Path, before: dict[str, Any] | None, params: dict[str, Any], actions: list[str], changed: bool
) -> None:
    laravel = Laravel(before)

    planned = run(Laravel(before), release, check_mode=True, **params)
    result = run(laravel, release, **params)

    assert (laravel.actions, result["changed"], planned) == (actions, changed, result)


def test_check_mode_only_looks(release: Path) -> None:
    laravel = Laravel()

    run(laravel, release, check_mode=True, secret=SECRET)

    assert (laravel.actions, laravel.payload) == (["look"], None)


def test_secret_is_in_no_command_line_and_no_result(release: Path) -> None:
    laravel = Laravel(payload(secret="old-" + SECRET))

    result = run(laravel, release, secret=SECRET)

    assert SECRET not in json.dumps([laravel.argv, result])
    assert (result["diff"]["before"]["secret"], result["diff"]["after"]["secret"]) == ("set", "another one")


def test_option_that_this_laravel_lacks_is_reported(release: Path) -> None:
    result = run(Laravel(), release, refresh=5)

    assert result["options_skipped"] == [
        {"what": "refresh", "reason": "artisan down of Laravel has no option --refresh; Laravel 8.42 brought it."}
    ]


@pytest.mark.parametrize(("state", "message"), [("up", "artisan up left .* down"), ("down", "is not down as it should be")])
def test_what_does_not_take_effect_is_an_error(release: Path, state: str, message: str) -> None:
    laravel = Laravel(payload(retry=1))
    laravel.stubborn = True

    with pytest.raises(LmsError, match=message):
        run(laravel, release, state=state)


def test_application_that_shuts_the_health_check_out_is_not_taken_down(release: Path) -> None:
    laravel = Laravel()

    with pytest.raises(LmsError, match=r"^/up would answer 503 during maintenance of .*\$except of"):
        run(laravel, release, excepted=["/health", "/up"])

    assert (laravel.actions, laravel.payload) == (["look"], None)


@pytest.mark.parametrize(
    ("excepted", "path", "open_path"),
    [(["/health"], "/health", True), (["health*"], "/health/deep", True), (["/"], "/", True), ([], "/health", False), (None, "/up", False)],
)
def test_exceptions_are_matched_as_laravel_does(excepted: list[str] | None, path: str, open_path: bool) -> None:
    look = Look("file", None, {"except": excepted}, "")

    if open_path:
        check_excepted(look, [path], Path("/r"))
    else:
        with pytest.raises(LmsError):
            check_excepted(look, [path], Path("/r"))


@pytest.mark.parametrize("option", ["secret", "retry", "refresh", "status", "redirect", "render"])
def test_every_option_reaches_artisan(option: str) -> None:
    value = SECRET if option == "secret" else 7
    assert down_options({**PARAMS, option: value}) == {option: str(value)}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"secret": "short"}, "secret must have at least 8 characters"),
        ({"secret": "with/slash/x"}, "secret must have at least 8 characters"),
        ({"retry": 0}, "retry is 0; it must be at least 1 second"),
        ({"refresh": -1}, "refresh is -1; it must be at least 1 second"),
    ],
)
def test_bad_options_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(LmsError, match=message):
        down_options({**PARAMS, **params})


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (255, "", "PHP Fatal error:  Uncaught InvalidArgumentException: View [x] not found. in /r/View.php:1\nStack trace:"),
            r"Maintenance of .* failed: View \[x\] not found\.",
        ),
        ((0, THROWN, ""), r"failed: View \[y\] not found\."),
        ((255, "", ""), r"failed: PHP ended with status 255\."),
        ((0, "no answer", ""), r"failed: PHP ended with status 0\."),
        ((0, "lms-maintenance:AAAA\n", ""), "an answer that is not understood"),
        ((124, "", ""), "did not answer within 300 s"),
    ],
)
def test_php_that_fails_is_an_error(release: Path, answer: tuple[int, str, str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        run(lambda *_arguments, **_options: answer, release)


def test_release_that_is_not_there_yet_is_skipped_in_check_mode(tmp_path: Path) -> None:
    result = run(Laravel(), tmp_path / "r1", check_mode=True)

    assert (result["skipped"], result["changed"], result["active"]) == (True, False, False)
    with pytest.raises(LmsError, match="There is no directory"):
        run(Laravel(), tmp_path / "r1")


def test_rendered_page_is_shown_as_a_sum() -> None:
    shown = shown_payload({"template": "<h1>Back soon</h1>", "secret": None})

    assert re.fullmatch(r"sha256 [0-9a-f]{16}", shown["template"])
    assert "Back soon" not in json.dumps(shown)


def test_program_takes_its_request_in_one_place() -> None:
    assert PROGRAM.count("@REQUEST@") == 1
