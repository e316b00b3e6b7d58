# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the role mysql: options of a configuration file, and what a running server has not taken up of it."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

NAME = re.compile(r"[a-z][a-z0-9_-]*\Z")
NUMBER = re.compile(r"-?\d+(\.\d+)?\Z")
# A line of the table that `mariadbd --verbose --help` ends with: a name, at least one space, the value.
LINE = re.compile(r"(?P<name>[a-z][a-z0-9-]*) +(?P<value>.*)\Z")
TABLE = re.compile(r"^-{20,} -+\n", re.MULTILINE)
# A table as it stands in a grant.
TABLE_NAME = re.compile(r"(\*|[\w$%-]+)\.(\*|[\w$-]+)\Z")
NO_VALUE = "(No default value)"
# How that table and a running server write the same.
WORDS = {"TRUE": "ON", "FALSE": "OFF", NO_VALUE: ""}
# Variables of MariaDB whose options have another name.
OPTIONS = {"tx_isolation": "transaction_isolation", "tx_read_only": "transaction_read_only"}
# What one character is written as between the quotes of a configuration file.
ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def mysql_options(settings: dict[str, Any]) -> list[str]:
    """Return the lines of a configuration file, sorted, that give the server these settings."""
    for name in settings:
        if not NAME.match(str(name)):
            raise AnsibleFilterError(
                f"{name!r} in mysql_settings is not the name of a setting: it has lower-case letters, digits and _ alone."
            )
    named = {name.replace("-", "_"): value for name, value in settings.items()}
    return [f"{name} = {_option(value)}" for name, value in sorted(named.items())]


def _option(value: Any) -> str:
    """Return a value as it stands in a configuration file."""
    if isinstance(value, bool):
        return "ON" if value else "OFF"
    if isinstance(value, (int, float)):
        return str(value)
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f'"{text.translate(ESCAPES)}"'


def mysql_due(table: str, names: list[str], running: list[dict[str, str]], read: list[str]) -> list[dict[str, str]]:
    """Return what a running server has not taken up: the settings named, and those that it read from the file and that are gone."""
    started = {row["Variable_name"]: str(row["Value"]) for row in running}
    wanted = _settings(table)
    named = {_variable(name, started) for name in names}
    due = []
    for name in sorted(named | set(read)):
        if name not in started:
            due.append({"name": name, "running": "", "statement": ""})
        elif _normal(name, wanted.get(OPTIONS.get(name, name), NO_VALUE)) != _normal(name, started[name]):
            value = _literal(wanted.get(OPTIONS.get(name, name), NO_VALUE)) if name in named else "DEFAULT"
            due.append({"name": name, "running": started[name], "statement": f"SET GLOBAL `{name}` = {value}"})
    return due


def _variable(name: str, started: dict[str, str]) -> str:
    """Return the name of the variable that an option of this name sets."""
    name = name.replace("-", "_")
    return next((variable for variable, option in OPTIONS.items() if option == name and name not in started), name)


def _settings(table: str) -> dict[str, str]:
    """Return the settings in the output of the server's help, by their names as variables."""
    lines = TABLE.split(table, maxsplit=1)[-1].split("\n\n", maxsplit=1)[0].splitlines()
    found = (LINE.match(line) for line in lines)
    return {match["name"].replace("-", "_"): match["value"].rstrip() for match in found if match}


def _normal(name: str, value: str) -> str | frozenset[str]:
    """Return a value so that two ways to write it are equal."""
    value = WORDS.get(value, value)
    # The option is the name of a file, the variable says whether there is one.
    if name == "log_bin":
        return "ON" if value not in ("", "OFF") else "OFF"
    if NUMBER.match(value):
        return f"{float(value):.6f}"
    if name == "sql_mode":
        return frozenset(value.upper().split(","))
    # A folder has a slash at its end, or has not.
    return value.rstrip("/") or value


def _literal(value: str) -> str:
    """Return a value of the table as a literal of SQL."""
    if value == NO_VALUE:
        return "DEFAULT"
    value = WORDS.get(value, value)
    return value if NUMBER.match(value) else "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def mysql_accounts(users: list[dict[str, Any]], flavour: str, installation: str) -> list[dict[str, Any]]:
    """Return the accounts of the users, one for each of their hosts, as the module mysql_user takes them."""
    return [
        {
            "account": f"{user['name']}@{host.lower()}",
            "name": user["name"],
            "host": host.lower(),
            "privileges": _privileges(user),
            "tls_requires": {"SSL": None} if user.get("tls_required") else None,
            **_authentication(user, host.lower(), flavour, installation),
        }
        for user in users
        for host in user["hosts"]
    ]


def _authentication(user: dict[str, Any], host: str, flavour: str, installation: str) -> dict[str, str]:
    """Return how a user proves who it is: by a password, or over the socket by being the user of the host with that name."""
    if "password" not in user:
        return {"plugin": "unix_socket" if flavour == "mariadb" else "auth_socket"}
    if flavour == "mariadb":
        return {"plugin": "mysql_native_password", "plugin_hash_string": _native_password(user["password"])}
    # A salt of its own for each account, and the same in each run: so it is seen whether the password changed.
    salt = hashlib.sha256(f"{installation}\0{user['name']}\0{host}".encode()).hexdigest()[:20]
    return {"plugin": "caching_sha2_password", "plugin_auth_string": user["password"], "salt": salt}


def _native_password(password: str) -> str:
    """Return what MariaDB keeps of a password, so that the password itself is never sent to the server."""
    return "*" + hashlib.sha1(hashlib.sha1(password.encode()).digest()).hexdigest().upper()  # noqa: S324 - the server's own format


def _privileges(user: dict[str, Any]) -> dict[str, str]:
    """Return what a user is granted, by table. What is not granted is revoked."""
    privileges = {"*.*": "USAGE"}
    for grant in user.get("grants", []):
        table = f"{grant['database']}.{grant.get('table', '*')}"
        if not TABLE_NAME.match(table):
            raise AnsibleFilterError(
                f"mysql_users grants {user['name']} something on {table}: a name has letters, digits, _, $, - and % alone, or is *."
            )
        privileges[table] = ",".join(grant["privileges"])
    return privileges


class FilterModule:
    """What Ansible asks for the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"mysql_accounts": mysql_accounts, "mysql_due": mysql_due, "mysql_options": mysql_options}
