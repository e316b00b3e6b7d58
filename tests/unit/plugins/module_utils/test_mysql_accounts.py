# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How users and roles are read from a dump, and in which order they are made."""

from __future__ import annotations

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._database import DatabaseError
from ansible_collections.bitflow.lms.plugins.module_utils._mysql_accounts import Accounts, in_order, parse, split_default_role
from ansible_collections.bitflow.lms.plugins.module_utils._mysql_client import StatementError

DUMP = """\
-- Users and roles
-- Account teachers
CREATE ROLE `teachers`;
GRANT SELECT ON `lms`.* TO `teachers`;
-- Account ann@10.%
CREATE USER `ann`@`10.%` IDENTIFIED BY PASSWORD '*0;1';
GRANT `teachers` TO `ann`@`10.%`;
"""


class FakeSession:
    """A session that answers from a table and records what was asked."""

    def __init__(self, users: list[list[str]], refused: str = "") -> None:
        self.users = users
        self.refused = refused
        self.asked: list[str] = []

    def query(self, statement: str) -> list[list[str]]:
        self.asked.append(statement)
        if statement == self.refused:
            raise StatementError("Table 'lms.users' doesn't exist (error 1146).", 1146)
        return self.users if "FROM mysql.user" in statement else []


def test_each_account_has_its_statements() -> None:
    assert parse(DUMP) == {
        "teachers": ["CREATE ROLE `teachers`", "GRANT SELECT ON `lms`.* TO `teachers`"],
        "ann@10.%": ["CREATE USER `ann`@`10.%` IDENTIFIED BY PASSWORD '*0;1'", "GRANT `teachers` TO `ann`@`10.%`"],
    }


def test_all_are_made_before_anything_is_granted() -> None:
    assert in_order(parse(DUMP), ["ann@10.%", "teachers"]) == (
        ["CREATE USER `ann`@`10.%` IDENTIFIED BY PASSWORD '*0;1'", "CREATE ROLE `teachers`"],
        ["GRANT `teachers` TO `ann`@`10.%`", "GRANT SELECT ON `lms`.* TO `teachers`"],
    )


def test_a_default_role_is_given_after_the_role_itself() -> None:
    assert split_default_role("CREATE USER `a`@`%` IDENTIFIED WITH 'x' DEFAULT ROLE `r`@`%`,`s`@`%` REQUIRE NONE", "`a`@`%`") == [
        "CREATE USER `a`@`%` IDENTIFIED WITH 'x' REQUIRE NONE",
        "ALTER USER `a`@`%` DEFAULT ROLE `r`@`%`,`s`@`%`",
    ]


def test_only_those_that_are_not_there_are_missing() -> None:
    session = FakeSession([["ann", "10.%", "N"], ["mariadb.sys", "localhost", "N"]])

    assert Accounts(session, "mariadb").missing(DUMP) == ["teachers"]  # type: ignore[arg-type]


def test_a_refused_grant_is_told_when_the_others_are_given() -> None:
    session = FakeSession([], refused="GRANT SELECT ON `lms`.* TO `teachers`")

    with pytest.raises(DatabaseError) as caught:
        Accounts(session, "mariadb").create(DUMP, ["teachers", "ann@10.%"])  # type: ignore[arg-type]

    assert session.asked[-1] == "GRANT `teachers` TO `ann`@`10.%`"
    assert caught.value.message == (
        "The users teachers, ann@10.% were created, but 1 of their grants were refused; repeat those by hand: "
        "GRANT SELECT ON `lms`.* TO `teachers`: Table 'lms.users' doesn't exist (error 1146)."
    )
