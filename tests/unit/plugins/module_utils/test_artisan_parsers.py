# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What artisan printed for real, on Laravel 8.83, 10.48 and 13.31, and what is read out of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._artisan_parsers import (
    StorageLink,
    SyntaxProblem,
    UnknownCommand,
    error_message,
    parse_blade_source,
    parse_command_list,
    parse_lint,
    parse_storage_links,
    parse_unknown_command,
    parse_unknown_option,
    parse_version,
    parse_version_constant,
    split_by_marks,
    version_refusal,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

DATA = Path(__file__).parent / "data" / "artisan"
ALL = pytest.mark.parametrize("laravel", ["laravel8", "laravel10", "laravel13"])


def captured(laravel: str, name: str) -> str:
    return (DATA / laravel / f"{name}.txt").read_text(encoding="utf-8")


@ALL
def test_error_message_is_the_first_exception_without_its_statement(laravel: str) -> None:
    assert error_message(captured(laravel, "pgsql_migrate_broken"), "") == (
        'SQLSTATE[42P07]: Duplicate table: 7 ERROR:  relation "students" already exists'
    )


@pytest.mark.parametrize(
    ("stdout", "stderr", "message"),
    [
        ("\n   ERROR  Migration table not found.  \n\n", "", "Migration table not found."),
        ("PHP Fatal error:  Uncaught Error: x in /a.php:1\n", "", "Fatal error:  Uncaught Error: x in /a.php:1"),
        ("", "Killed\n", "Killed"),
        ("hello\n", "", None),
    ],
)
def test_error_message_of_other_failures(stdout: str, stderr: str, message: str | None) -> None:
    assert error_message(stdout, stderr) == message


@ALL
def test_unknown_namespace_is_recognized(laravel: str) -> None:
    assert parse_unknown_command(captured(laravel, "unknown_command")) == UnknownCommand("confg", ("config",))


def test_unknown_command_comes_with_those_that_are_similar() -> None:
    text = '\n   ERROR  Command "config:cachex" is not defined. Did you mean one of these?  \n\n  ⇂ config:cache  \n  ⇂ config:clear  \n\n'

    assert parse_unknown_command(text) == UnknownCommand("config:cachex", ("config:cache", "config:clear"))


@ALL
def test_other_failures_are_no_unknown_command(laravel: str) -> None:
    assert parse_unknown_command(captured(laravel, "pgsql_status_refused")) is None


@ALL
def test_unknown_option_is_recognized(laravel: str) -> None:
    assert parse_unknown_option(captured(laravel, "unknown_option")) == "--isolatedx"


@ALL
def test_command_list_gives_names_and_options(laravel: str) -> None:
    commands = parse_command_list((DATA / laravel / "list.json").read_text(encoding="utf-8"))

    assert sorted(commands) == ["config:cache", "down", "migrate", "storage:link"]
    assert {"--force", "--step", "--path"} <= commands["migrate"]


@pytest.mark.parametrize("text", ["", "no json", "{}", '{"commands": [{}]}'])
def test_command_list_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(LmsError):
        parse_command_list(text)


@pytest.mark.parametrize(("laravel", "version"), [("laravel8", "8.83.26"), ("laravel10", "10.48.29"), ("laravel13", "13.31.0")])
def test_version_is_read(laravel: str, version: str) -> None:
    assert parse_version(captured(laravel, "version")) == version


def test_version_is_read_from_source() -> None:
    assert parse_version_constant("class Application\n{\n    const VERSION = '10.48.29';\n") == "10.48.29"


@pytest.mark.parametrize(
    ("version", "minimum", "maximum", "refusal"),
    [
        ("10.48.29", None, None, None),
        ("10.48.29", "10.48", None, None),
        ("10.48.29", "10.49", None, "Laravel 10.48.29 is older than version_min 10.49."),
        ("10.48.29", "9", "10", None),
        ("10.48.29", None, "10.48", None),
        ("10.48.29", None, "10.47", "Laravel 10.48.29 is newer than version_max 10.47."),
        ("11.0.0", None, "10", "Laravel 11.0.0 is newer than version_max 10."),
        ("9.9", "10", None, "Laravel 9.9 is older than version_min 10."),
    ],
)
def test_version_gate(version: str, minimum: str | None, maximum: str | None, refusal: str | None) -> None:
    assert version_refusal(version, minimum, maximum) == refusal


def test_version_gate_names_the_option_that_is_no_version() -> None:
    with pytest.raises(LmsError, match=r"version_min is 'new', which is not a version such as 10\.48\."):
        version_refusal("10.48.29", "new", None)


def test_storage_link_names_what_it_made() -> None:
    release = "/srv/lms/backend/releases/20261123210000-abc1234"

    assert parse_storage_links(captured("laravel8", "storage_link")) == [
        StorageLink(f"{release}/public/storage", f"{release}/storage/app/public")
    ]
    for laravel in ("laravel10", "laravel13"):
        assert parse_storage_links(captured(laravel, "storage_link")) == [StorageLink("public/storage", "storage/app/public")]


@ALL
def test_storage_link_names_what_it_found(laravel: str) -> None:
    links = parse_storage_links(captured(laravel, "storage_link_again"))

    assert [(Path(link.path).name, link.target) for link in links] == [("storage", None)]


def test_lint_names_the_broken_file_among_the_good_ones() -> None:
    views = "/srv/lms/backend/current/storage/framework/views"

    good, bad = parse_lint(captured("laravel10", "lint_stdout"), captured("laravel10", "lint_stderr"))

    assert len(good) == 11
    assert bad == [
        SyntaxProblem(
            f"{views}/b9308cf7bc9222ab2f012fe6d35e76f7.php",
            'Parse error: syntax error, unexpected end of file, expecting "elseif" or "else" or "endif" on line 3',
        )
    ]


def test_lint_of_php_before_8_3_judges_the_first_file_only() -> None:
    good, bad = parse_lint(captured("laravel8", "lint_stdout"), captured("laravel8", "lint_stderr"))

    assert (len(good), bad) == (1, [])


def test_compiled_view_names_its_template() -> None:
    assert (
        parse_blade_source("<p></p>\n<?php /**PATH /srv/a/resources/views/b.blade.php ENDPATH**/ ?>")
        == "/srv/a/resources/views/b.blade.php"
    )
    assert parse_blade_source("<p></p>") is None


def test_marks_tell_which_command_printed_what_and_which_did_not_end() -> None:
    text = "noise\nM begin\nfirst\n\nM end 0\n late\nM begin\nsecond"

    assert split_by_marks(text, "M ") == [(0, "first\n late"), (None, "second")]
