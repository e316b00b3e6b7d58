# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions with PostgreSQL, held by psql, and how all its clients reach the server."""

# ruff: noqa: S608 - every name and value in a statement is quoted by identifier() or literal().

from __future__ import annotations

import json
import os
import re
import socket
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._database import DatabaseError, Login
from ansible_collections.bitflow.lms.plugins.module_utils._database_session import ClientSession
from ansible_collections.bitflow.lms.plugins.module_utils._postgresql_roles import literal

CONNECT_TIMEOUT = 15
# How long a question about the catalogue may take (seconds).
ANSWER_TIMEOUT = 120.0

# None of them keeps a session from lasting as long as a dump, or changes how a value is written from one server to the next.
_SETTINGS = {
    "standard_conforming_strings": "on",
    "search_path": "pg_catalog",
    "client_min_messages": "error",
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    # A host that vanished, or a client that was killed while the server counts, is noticed.
    "client_connection_check_interval": "5s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    # Rows that a policy hides are an error, not fewer rows.
    "row_security": "off",
    "default_transaction_read_only": "off",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "xmlbinary": "base64",
    "lc_monetary": "C",
}


class PostgreSQLSession(ClientSession):
    """A session held by psql."""

    connected = False

    def framed(self, statement: str, mark: str) -> str:
        """Have psql print how the statement ended, too."""
        return f"{statement}\n;\n\\echo {mark} :SQLSTATE\n"

    def rows(self, output: bytes) -> list[list[str]]:
        """Take the output apart: psql separates the rows by zero bytes, which no text contains."""
        self.connected = True
        lines = output.decode("utf-8", errors="surrogateescape").split("\0")
        return [line.split("\x1f") for line in lines[:-1]]

    def failure(self, ending: str, said: str) -> DatabaseError | None:
        """Return why a statement failed."""
        self.connected = True
        if ending == "00000":
            return None
        return DatabaseError(f"{self.what} answered: {reason_of(said) or ending}.", sqlstate=ending, stderr=said)

    def lost(self, said: str) -> DatabaseError:
        """Return why there is no session."""
        if self.connected:
            return DatabaseError(f"{self.what} ended the session: {reason_of(said) or 'nobody said why'}.", stderr=said)
        return DatabaseError(
            f"{self.what} gave no session: {reason_of(said) or 'nobody said why'}. Compare login_host, login_port, login_user, "
            "login_password and ssl_mode with what the server expects.",
            stderr=said,
        )

    def records(self, select: str, timeout: float | None = ANSWER_TIMEOUT) -> list[dict[str, Any]]:
        """Return the rows of a query by their columns' names."""
        return [json.loads(row[0]) for row in self.query(f"select row_to_json(r) from (\n{select}\n) r", timeout)]

    def value(self, expression: str) -> Any:
        """Return what an expression is."""
        return self.records(f"select {expression} as value")[0]["value"]


def reason_of(said: str) -> str:
    """Return what a client's message is about: its first line, without what every one begins with."""
    line = next((line for line in said.splitlines() if line.strip()), "")
    line = re.sub(r"^psql: (?:\w+: )?", "", line)
    # Words such as FATAL are translated.
    return re.sub(r"^(?:connection to server .* failed: )?(?:[^\W\d_]+: {1,2})?", "", line).strip().rstrip(".")


def conninfo(database: str) -> str:
    """Return the name of a database as clients read it, whatever characters it has, and have a server that vanished be noticed."""
    escaped = database.replace("\\", "\\\\").replace("'", "\\'")
    return f"dbname='{escaped}' keepalives_idle=30 keepalives_interval=10 keepalives_count=3"


def password_file(password: str) -> str:
    """Return the content of a password file for every server, as its clients escape it."""
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    return f"*:*:*:*:{escaped}\n"


def environment_of(login: Login) -> dict[str, str]:
    """Return how clients reach the server. Nothing in it is secret."""
    given = {
        "PGHOST": login.host or login.unix_socket,
        "PGPORT": str(login.port or ""),
        "PGUSER": login.user,
        "PGSSLMODE": login.ssl_mode,
        "PGSSLROOTCERT": login.ca_cert,
        "PGCONNECT_TIMEOUT": str(CONNECT_TIMEOUT),
        # The server keeps 63 bytes.
        "PGAPPNAME": f"bitflow.lms {os.getpid()} on {socket.gethostname()}"[:63],
    }
    return {name: value for name, value in given.items() if value}


def settings_statement(lock_timeout: float) -> str:
    """Return what makes a session ours, as far as the server's version knows the settings."""
    values = {**_SETTINGS, "lock_timeout": str(round(lock_timeout * 1000))}
    wanted = ", ".join(f"({literal(name)}, {literal(value)})" for name, value in values.items())
    return (
        "select pg_catalog.count(pg_catalog.set_config(s.name, w.value, false)) from pg_catalog.pg_settings s"
        f" join (values {wanted}) w(name, value) on w.name = pg_catalog.lower(s.name)"
    )
