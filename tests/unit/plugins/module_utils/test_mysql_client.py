# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the clients of MariaDB and MySQL are started, and what they say is read."""

from __future__ import annotations

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._database import Login
from ansible_collections.bitflow.lms.plugins.module_utils._mysql_client import (
    Client,
    Programs,
    identifier,
    literal,
    option_value,
    program_version,
    tls_options,
)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("mariadb-dump from 11.8.9-MariaDB, client 10.20 for debian-linux-gnu (x86_64)\n", ("mariadb", "11.8.9")),
        ("mariadb-dump  Ver 10.19 Distrib 10.11.19-MariaDB, for debian-linux-gnu (x86_64)\n", ("mariadb", "10.11.19")),
        ("mysqldump  Ver 9.7.4-2 for Linux on x86_64 ((Debian))\n", ("mysql", "9.7.4")),
        ("mysqldump  Ver 8.0.36 for Linux on x86_64 (MySQL Community Server - GPL)\n", ("mysql", "8.0.36")),
    ],
)
def test_flavour_and_version_of_a_program(said: str, expected: tuple[str, str]) -> None:
    assert program_version(said) == expected


@pytest.mark.parametrize(
    ("flavour", "mode", "expected"),
    [
        ("mysql", "disable", [["--ssl-mode=DISABLED", "--get-server-public-key"]]),
        ("mysql", "allow", [["--ssl-mode=PREFERRED"]]),
        ("mysql", "prefer", [["--ssl-mode=PREFERRED"]]),
        ("mysql", "require", [["--ssl-mode=REQUIRED"]]),
        ("mysql", "verify-ca", [["--ssl-mode=VERIFY_CA"]]),
        ("mysql", "verify-full", [["--ssl-mode=VERIFY_IDENTITY"]]),
        ("mariadb", "disable", [["--skip-ssl"]]),
        ("mariadb", "allow", [["--skip-ssl"], ["--ssl", "--skip-ssl-verify-server-cert"]]),
        ("mariadb", "prefer", [["--ssl", "--skip-ssl-verify-server-cert"], ["--skip-ssl"]]),
        ("mariadb", "require", [["--ssl", "--skip-ssl-verify-server-cert"]]),
        ("mariadb", "verify-ca", [["--ssl", "--ssl-verify-server-cert"]]),
        ("mariadb", "verify-full", [["--ssl", "--ssl-verify-server-cert"]]),
    ],
)
def test_each_mode_becomes_options_of_the_client(flavour: str, mode: str, expected: list[list[str]]) -> None:
    assert tls_options(flavour, mode, "") == expected


def test_names_and_strings_are_quoted() -> None:
    assert identifier("a`b") == "`a``b`"
    assert literal("it's \\") == "'it''s \\\\'"
    assert option_value('a "b" \\ # ;') == '"a \\"b\\" \\\\ # ;"'


def test_a_password_is_in_no_argument_and_shuts_out_other_files() -> None:
    login = Login("mysql", host="db.example.com", port=3307, user="backup", password="secret word", system_user="")
    client = Client(login, Programs("mariadb", "mariadb", "mariadb-dump", "11.8.9"), ["--skip-ssl"])

    stage = client.dump("--single-transaction", "lms")

    assert stage.argv[0] == "mariadb-dump"
    assert stage.argv[1] == f"--defaults-file=/proc/self/fd/{stage.descriptors[0]}"
    assert stage.argv[2:6] == ["--host=db.example.com", "--port=3307", "--user=backup", "--skip-ssl"]
    assert "secret" not in repr(stage)


def test_without_a_password_the_clients_own_files_are_read() -> None:
    client = Client(Login("mysql", system_user="mysql"), Programs("mysql", "mysql", "mysqldump", "9.7.4"), [])

    stage = client.stage("mysql", "lms")

    assert (list(stage.argv), stage.descriptors, stage.user) == (["mysql", "lms"], (), "mysql")
