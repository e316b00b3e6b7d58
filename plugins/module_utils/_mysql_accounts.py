# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users and roles of MariaDB or MySQL as SQL, one statement a line, and back."""

# ruff: noqa: S608 - every name in a statement is quoted by identifier().

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ansible_collections.bitflow.lms.plugins.module_utils._database import DatabaseError
from ansible_collections.bitflow.lms.plugins.module_utils._mysql_client import FORBIDDEN, Session, StatementError, identifier

# Of the server itself, or of the provider.
RESERVED = ("mariadb.sys", "mysql.sys", "mysql.session", "mysql.infoschema", "rdsadmin", "rdsrepladmin", "PUBLIC")

_ACCOUNT = re.compile(r"^-- Account (?P<name>.+)$")
_DEFAULT_ROLE = re.compile(r" DEFAULT ROLE (?P<roles>`(?:[^`]|``)*`@`(?:[^`]|``)*`(?:,`(?:[^`]|``)*`@`(?:[^`]|``)*`)*)")


def parse(globals_sql: str) -> dict[str, list[str]]:
    """Return the statements of each account in a dump."""
    found: dict[str, list[str]] = {}
    statements: list[str] = []
    for line in globals_sql.split("\n"):
        match = _ACCOUNT.match(line)
        if match:
            statements = found.setdefault(match["name"], [])
        elif line and not line.startswith("-- "):
            statements.append(line[:-1] if line.endswith(";") else line)
    return found


def in_order(accounts: Mapping[str, Sequence[str]], names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the statements that make accounts, and those to be run when all of them are there: grants name roles."""
    statements = [statement for name in names for statement in accounts[name]]
    creating = [statement for statement in statements if statement.startswith("CREATE ")]
    return creating, [statement for statement in statements if not statement.startswith("CREATE ")]


def split_default_role(create_user: str, account: str) -> list[str]:
    """Return CREATE USER without its default role, and what gives that when the role was granted."""
    match = _DEFAULT_ROLE.search(create_user)
    if not match:
        return [create_user]
    return [create_user[: match.start()] + create_user[match.end() :], f"ALTER USER {account} DEFAULT ROLE {match['roles']}"]


class Accounts:
    """The users and roles of a server."""

    def __init__(self, session: Session, flavour: str) -> None:
        self._session = session
        self._flavour = flavour

    def dumped(self) -> str:
        """Return them as SQL, with what the server keeps of their passwords."""
        lines = []
        for name, (account, is_role) in self._accounts().items():
            create, *later = [f"CREATE ROLE {account}"] if is_role else self._creating(account)
            grants = self._session.column(f"SHOW GRANTS FOR {account}")
            lines += [f"-- Account {name}", *(f"{statement};" for statement in (create, *grants, *later))]
        return "\n".join(["-- Users and roles", *lines, ""])

    def missing(self, globals_sql: str) -> list[str]:
        """Return the names of those in a dump that the server lacks."""
        there = self._accounts()
        return [name for name in parse(globals_sql) if name not in there]

    def create(self, globals_sql: str, names: Sequence[str]) -> None:
        """Create some from a dump."""
        creating, granting = in_order(parse(globals_sql), names)
        for statement in creating:
            self._session.query(statement)
        refused = []
        for statement in granting:
            try:
                self._session.query(statement)
            except StatementError as error:
                # Such as of a table that is not restored yet.
                refused.append(f"{statement}: {error.message}")
        if refused:
            raise DatabaseError(
                f"The users {', '.join(names)} were created, but {len(refused)} of their grants were refused; repeat those by hand: "
                f"{'; '.join(_without_secret(text) for text in refused)}"
            )

    def _accounts(self) -> dict[str, tuple[str, bool]]:
        """Return the users and roles by name, each as SQL has it, and whether it is one of MariaDB's roles."""
        role = "is_role" if self._flavour == "mariadb" else "'N'"
        try:
            rows = self._session.query(f"SELECT user, host, {role} FROM mysql.user ORDER BY {role} DESC, user, host")
        except StatementError as error:
            if error.code in FORBIDDEN:
                raise DatabaseError(
                    "The login may not read the users of the server: grant it SELECT ON mysql.*, or set globals off."
                ) from error
            raise
        found = {}
        for user, host, is_role in rows:
            if user not in RESERVED:
                name, account = (user, identifier(user)) if is_role == "Y" else (f"{user}@{host}", f"{identifier(user)}@{identifier(host)}")
                found[name] = (account, is_role == "Y")
        return found

    def _creating(self, account: str) -> list[str]:
        return split_default_role(self._session.value(f"SHOW CREATE USER {account}"), account)


def _without_secret(text: str) -> str:
    """Leave out what MariaDB's grants say of the password."""
    return re.sub(r" IDENTIFIED (?:BY PASSWORD|VIA|WITH) .*?(?= REQUIRE | WITH |: |$)", "", text)
