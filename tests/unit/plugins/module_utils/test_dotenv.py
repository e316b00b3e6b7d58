# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values come back from a .env file exactly as they were meant."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._dotenv import (
    Difference,
    Dotenv,
    compare,
    encode,
    masked,
    parse,
    render,
    value_text,
    value_texts,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import Owner

NASTY = [
    "",
    " ",
    " leading and trailing ",
    "with space",
    "tab\there",
    "two\nlines",
    "ends with newline\n",
    "carriage\rreturn",
    "windows\r\nline",
    '"double"',
    "'single'",
    "both \" and '",
    '"',
    "'",
    "\\",
    "\\\\",
    "ends with backslash\\",
    "\\n is no newline",
    '\\"',
    "$HOME",
    "${HOME}",
    "\\${HOME}",
    "$",
    "a$b$$c",
    "# no comment",
    "value # with hash",
    "a=b=c",
    "=",
    "`id` $(id) ;|&<>*?[]{}~!^%",
    "base64:q2V0ZXJ1bSBjZW5zZW8gZXNzZSBkZWxlbmRhbQ==",
    "päßwörd 密码 🔑",
    "\x01\x0b\x0c\x7f\u2028",
    "export KEY=value",
    "KEY=value\nOTHER=value",
]


@pytest.mark.parametrize("value", NASTY)
def test_a_nasty_value_comes_back(value: str) -> None:
    assert parse(render({"BEFORE": "1", "KEY": value, "ZAFTER": "2"})) == {"BEFORE": "1", "KEY": value, "ZAFTER": "2"}


def test_all_nasty_values_come_back_together() -> None:
    values = {f"KEY_{number}": value for number, value in enumerate(NASTY)}

    assert parse(render(values)) == values


PHPDOTENV = Path(os.environ.get("PHPDOTENV_AUTOLOAD", "/usr/share/php/Dotenv/autoload.php"))


@pytest.mark.skipif(shutil.which("php") is None or not PHPDOTENV.exists(), reason="php and phpdotenv are not installed")
def test_phpdotenv_reads_the_nasty_values_as_we_do(tmp_path: Path) -> None:
    values = {f"KEY_{number}": value for number, value in enumerate(NASTY)}
    (tmp_path / ".env").write_bytes(render(values).encode())
    script = f"require '{PHPDOTENV}'; echo json_encode(Dotenv\\Dotenv::createArrayBacked('{tmp_path}')->load());"

    ended = subprocess.run(["php", "-r", script], capture_output=True, text=True, check=True)

    assert json.loads(ended.stdout) == values


@pytest.mark.parametrize("value", ["production", "http://localhost:8000", "a@b.c", "8.8.8.8", "/srv/lms", "a_b-c", "3306"])
def test_a_simple_value_stays_plain(value: str) -> None:
    assert encode(value) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (False, "false"), (None, "null"), (7, "7"), (1.5, "1.5"), ("null", "null"), ("0640", "0640")],
)
def test_values_become_what_laravel_understands(value: object, text: str) -> None:
    assert value_text("KEY", value) == text


@pytest.mark.parametrize("value", [["a"], {"a": "b"}, "nul\0"])
def test_values_that_no_environment_can_carry_are_refused_without_being_shown(value: object) -> None:
    with pytest.raises(LmsError, match="KEY in values") as caught:
        value_text("KEY", value)

    assert "nul" not in str(caught.value.as_result()).lower().replace("nul character", "")


@pytest.mark.parametrize("key", ["", "1KEY", "A-B", "A B", "A=B", "A\nB", "KEY\n", "ä", "A.B", 1])
def test_names_that_are_no_keys_are_refused(key: str) -> None:
    with pytest.raises(LmsError, match="values has the keys"):
        value_texts({key: "x"}, [], ".env")


def test_required_keys_that_are_missing_or_empty_are_named() -> None:
    values = {"APP_ENV": "production", "APP_KEY": "", "DB_HOST": None, "DEBUG": False, "PORT": 0}

    with pytest.raises(LmsError, match=r"\.env needs APP_KEY, DB_HOST, DB_PASSWORD\. Set them in lms_backend_environment\.") as caught:
        value_texts(values, ["DB_PASSWORD", "APP_ENV", "APP_KEY", "DB_HOST", "DEBUG", "PORT"], ".env")

    assert caught.value.details == {"missing": ["APP_KEY", "DB_HOST", "DB_PASSWORD"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("# comment\n\n   \nA=1", {"A": "1"}),
        ("A = 1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("A=one # comment\nB='two # three' # four\n", {"A": "one", "B": "two # three"}),
        ("A=\nB=\"\"\nC=''\n", {"A": "", "B": "", "C": ""}),
        ('A="two\nlines"\nB=1\n', {"A": "two\nlines", "B": "1"}),
        ("A='no \\n escape'\n", {"A": "no \\n escape"}),
        ("A=back\\slash\n", {"A": "back\\slash"}),
        ("A=1\nA=2\n", {"A": "2"}),
    ],
)
def test_files_that_people_wrote_are_read(text: str, expected: dict[str, str]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text", ["A", "export A=1\n", "A=one two\n", 'A="open\n', 'A="x"y\n', 'A="\\q"\n', "A=${B}\n", 'A="${B}"\n', "=1\n", "A='open\n"]
)
def test_what_cannot_be_understood_is_an_error_that_shows_no_value(text: str) -> None:
    with pytest.raises(LmsError, match=r"^Line 1 "):
        parse(text)


def test_a_broken_line_is_named_by_its_number() -> None:
    with pytest.raises(LmsError, match="Line 3 is no KEY=value"):
        parse("A=1\nB=2\n!\n")


def test_environments_are_compared_by_meaning() -> None:
    before = parse("B='2' # old\nGONE=x\nA=1\n")
    after = parse('A="1"\nB=3\nNEW=\n')

    assert compare(before, after) == Difference(("NEW",), ("GONE",), ("B",))
    assert not compare(before, before)


def test_a_diff_shows_keys_only() -> None:
    assert masked({"B": "secret", "A": "other"}, ["B"]) == "A=***\nB=*** (changed)\n"


def test_a_file_is_sorted_and_readable_only_by_its_group(tmp_path: Path) -> None:
    dotenv = Dotenv(tmp_path / ".env")

    dotenv.write({"B": "two words", "A": "1"}, 0o640, Owner())

    assert dotenv.path.read_text() == 'A=1\nB="two words"\n'
    assert stat.S_IMODE(dotenv.path.stat().st_mode) == 0o640
    assert dotenv.has(0o640, None, None)
    assert not dotenv.has(0o600, None, None)
    assert not dotenv.has(0o640, "nobody-of-that-name", None)
    assert [path.name for path in tmp_path.iterdir()] == [".env"]


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    (tmp_path / "shared.env").write_text("A=1\n")
    dotenv = Dotenv(tmp_path / ".env")
    dotenv.path.symlink_to("shared.env")

    dotenv.write({"A": "2"}, 0o600, Owner())

    assert ((tmp_path / "shared.env").read_text(), dotenv.path.read_text(), dotenv.path.is_symlink()) == ("A=1\n", "A=2\n", False)


def test_a_file_that_would_not_read_back_never_lands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dotenv = Dotenv(tmp_path / ".env")
    dotenv.path.write_text("A=1\n")
    monkeypatch.setattr("ansible_collections.bitflow.lms.plugins.module_utils._dotenv.encode", lambda value: "other")

    with pytest.raises(LmsError, match="would not read back"):
        dotenv.write({"A": "2"}, 0o600, Owner())

    assert dotenv.path.read_text() == "A=1\n"
    assert [path.name for path in tmp_path.iterdir()] == [".env"]


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LmsError, match="missing is no directory"):
        Dotenv(tmp_path / "missing" / ".env").write({}, 0o600, Owner())


def test_a_file_that_is_not_there_or_broken_has_nothing_to_compare(tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("!")

    assert [Dotenv(tmp_path / name).read() for name in ("missing", "broken", "broken/.env")] == [None, None, None]
