# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What PostgreSQL keeps outside of a database's dump: roles, and the properties of the database itself."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

# PostgreSQL 16 says of each membership whether it is inherited and may be assumed; older servers know ADMIN OPTION alone.
MEMBERSHIP_OPTIONS = 16

# pg_dumpall quotes whatever is not of lower case letters, digits and underscores.
_NAME = r'(?:"(?:[^"]|"")+"|[a-z_][a-z0-9_$]*)'
_CREATE = re.compile(rf"^CREATE ROLE (?P<role>{_NAME});$")
_ALTER = re.compile(rf"^ALTER ROLE (?P<role>{_NAME}) (?:WITH |SET ).*;$", re.DOTALL)
_COMMENT = re.compile(rf"^COMMENT ON ROLE (?P<role>{_NAME}) IS .*;$", re.DOTALL)
_MEMBERSHIP = re.compile(rf"^GRANT (?P<role>{_NAME}) TO (?P<member>{_NAME})(?: WITH (?P<options>[A-Z, ]+?))?(?: GRANTED BY {_NAME})?;$")
# Settings whose value is a list, and stored as it is to be written (GUC_LIST_QUOTE).
_QUOTED_LISTS = frozenset({"local_preload_libraries", "search_path", "session_preload_libraries", "temp_tablespaces"})


def identifier(name: str) -> str:
    """Return a name as SQL reads it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as SQL reads it, whatever standard_conforming_strings says."""
    quoted = text.replace("'", "''")
    return f"E'{quoted}'".replace("\\", "\\\\") if "\\" in quoted else f"'{quoted}'"


def unquoted(name: str) -> str:
    """Return the name that SQL means."""
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def statements(globals_sql: str) -> list[str]:
    """Return what a globals dump consists of, without comments and psql's own commands."""
    found: list[str] = []
    for line in globals_sql.splitlines():
        open_quote = bool(found) and _within_quotes(found[-1])
        if open_quote:
            found[-1] += f"\n{line}"
        elif line and not line.startswith(("--", "\\")):
            found.append(line)
    return found


def role_names(globals_sql: str) -> list[str]:
    """Return the roles that a globals dump creates."""
    return sorted(unquoted(match["role"]) for each in statements(globals_sql) if (match := _CREATE.match(each)))


def role_statements(globals_sql: str, names: Collection[str], existing: Collection[str], server_major: int) -> list[str]:
    """Return what creates the named roles as they were. Nothing in it changes an existing role."""
    chosen: list[str] = []
    memberships: list[str] = []
    known = {*names, *existing}
    for each in statements(globals_sql):
        membership = _MEMBERSHIP.match(each)
        if membership and unquoted(membership["member"]) in names and unquoted(membership["role"]) in known:
            memberships.append(_membership(membership, server_major))
        match = _CREATE.match(each) or _ALTER.match(each) or _COMMENT.match(each)
        if match and unquoted(match["role"]) in names:
            chosen.append(each.removesuffix(";"))
    return chosen + memberships


def clearing_statements(database: str, properties: Mapping[str, Any]) -> list[str]:
    """Return what takes from a database the settings and privileges that it has, so that only others' remain to be given."""
    name = identifier(database)
    made = []
    for role in sorted({setting.get("role") or "" for setting in properties.get("settings") or ()}):
        made.append(f"ALTER ROLE {identifier(role)} IN DATABASE {name} RESET ALL" if role else f"ALTER DATABASE {name} RESET ALL")
    roles = {granted["role"] for granted in properties.get("privileges") or ()} - {None, properties.get("owner")}
    return made + [f"REVOKE ALL ON DATABASE {name} FROM {identifier(role)} CASCADE" for role in sorted(roles)]


def property_statements(database: str, properties: Mapping[str, Any]) -> list[str]:
    """Return what gives a database its owner, privileges, settings and limit."""
    name = identifier(database)
    made = []
    if properties.get("owner"):
        made.append(f"ALTER DATABASE {name} OWNER TO {identifier(properties['owner'])}")
    if properties.get("connection_limit") is not None:
        made.append(f"ALTER DATABASE {name} CONNECTION LIMIT {int(properties['connection_limit'])}")
    made += _privilege_statements(name, properties.get("owner"), properties.get("privileges"))
    for setting in properties.get("settings") or ():
        variable, _equals, value = str(setting["value"]).partition("=")
        whose = f"ALTER ROLE {identifier(setting['role'])} IN DATABASE {name}" if setting.get("role") else f"ALTER DATABASE {name}"
        # Names of extensions' settings have two parts.
        variable_name = ".".join(identifier(part) for part in variable.split("."))
        made.append(f"{whose} SET {variable_name} TO {value if variable.lower() in _QUOTED_LISTS else literal(value)}")
    return made


def _privilege_statements(name: str, owner: str | None, privileges: Iterable[Mapping[str, Any]] | None) -> list[str]:
    """Return what grants the privileges on a database. None are unknown, and stay as they are."""
    if privileges is None:
        return []
    made = [f"REVOKE ALL ON DATABASE {name} FROM PUBLIC"]
    for granted in privileges:
        if granted["role"] == owner:
            continue
        whom = identifier(granted["role"]) if granted["role"] else "PUBLIC"
        option = " WITH GRANT OPTION" if granted["grantable"] else ""
        made.append(f"GRANT {granted['privilege']} ON DATABASE {name} TO {whom}{option}")
    return made


def _membership(match: re.Match[str], server_major: int) -> str:
    """Return a membership as the server understands it; who granted it may not exist there."""
    options = match["options"] or ""
    if server_major < MEMBERSHIP_OPTIONS:
        options = "ADMIN OPTION" if re.search(r"ADMIN (OPTION|TRUE)", options) else ""
    return f"GRANT {match['role']} TO {match['member']}" + (f" WITH {options}" if options else "")


def _within_quotes(statement: str) -> bool:
    """Say whether a statement goes on in the next line: a quote is open."""
    closed = re.sub(r"E'(?:[^'\\]|\\.|'')*'", "", statement, flags=re.DOTALL)
    closed = re.sub(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"", "", closed, flags=re.DOTALL)
    return "'" in closed or '"' in closed


def joined(names: Sequence[str], most: int = 10) -> str:
    """Return names for a sentence, the first ones when there are many."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
