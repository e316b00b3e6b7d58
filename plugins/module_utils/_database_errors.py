# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read database errors out of Laravel's messages, and say what they mean. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

POSTGRESQL = re.compile(r"SQLSTATE\[\w{5}\](?:: [^:\n]+: \d+ (?:ERROR|FATAL|PANIC):| \[7\] )")
MYSQL = re.compile(r"SQLSTATE\[\w{5}\](?:: [^:\n]+: (?:1\d{3}|[2-4]\d{3})\s| \[(?:1\d{3}|2\d{3})\] )")
SQLITE = re.compile(r"SQLSTATE\[\w{5}\](?:: [^:\n]+: \d{1,2} (?!ERROR|FATAL|PANIC)| \[14\] )|Database file at path \[")
SQLSERVER = re.compile(r"SQLSTATE\[\w{5}\]:? ?\[Microsoft\]")

DRIVERS = (("pgsql", POSTGRESQL), ("sqlsrv", SQLSERVER), ("mysql", MYSQL), ("sqlite", SQLITE))


@dataclass(frozen=True)
class Connection:
    """Where an application's database is, as far as it is known. It holds no password."""

    name: str | None = None
    driver: str | None = None
    host: str | None = None
    port: str | None = None
    database: str | None = None

    def description(self) -> str:
        """Return the database and its place in words."""
        words = f"the database {self.database}" if self.database else "the database"
        if self.host:
            words += f" on {self.host}" + (f":{self.port}" if self.port else "")
        return words + (f" (connection {self.name})" if self.name else "")


@dataclass(frozen=True)
class ConnectionProblem:
    """Why the database could not be used, and the way out."""

    connection: Connection
    reason: str
    advice: str


def driver_of_error(text: str) -> str | None:
    """Return the driver whose error this is, told by the form of its message."""
    for driver, pattern in DRIVERS:
        if pattern.search(text):
            return driver
    return None


CREDENTIALS = "Correct DB_USERNAME and DB_PASSWORD in .env."
UNREACHABLE = "Start the database, or correct DB_HOST and DB_PORT in .env."
NO_DATABASE = "Create the database, or correct DB_DATABASE in .env."
CAUSES = (
    (re.compile(r"password authentication failed for user \"[^\"]*\""), CREDENTIALS),
    (re.compile(r"no pg_hba\.conf entry for host [^\n(]*"), "Let this host in with an entry in pg_hba.conf, or correct DB_HOST in .env."),
    (re.compile(r"role \"[^\"]*\" does not exist"), CREDENTIALS),
    (re.compile(r"database \"[^\"]*\" does not exist"), NO_DATABASE),
    (re.compile(r"Access denied for user '[^']*'@'[^']*' to database '[^']*'"), NO_DATABASE),
    (re.compile(r"Access denied for user '[^']*'@'[^']*'(?: \(using password: (?:YES|NO)\))?"), CREDENTIALS),
    (re.compile(r"Unknown database '[^']*'"), NO_DATABASE),
    (re.compile(r"could not translate host name \"[^\"]*\""), "Correct DB_HOST in .env."),
    (re.compile(r"getaddrinfo for \S+ failed"), "Correct DB_HOST in .env."),
    (re.compile(r"the database system is (?:starting up|shutting down|in recovery mode)"), "Wait until the database is up."),
    (
        re.compile(r"(?i)too many (?:clients|connections)[^\n(]*|remaining connection slots[^\n(]*"),
        "Free connections, or raise the database's limit.",
    ),
    (re.compile(r"Connection refused"), UNREACHABLE),
    (re.compile(r"Connection timed out|timeout expired|Operation timed out|No route to host|Network is unreachable"), UNREACHABLE),
    (re.compile(r"No such file or directory(?=[^\n]*(?:SQLSTATE|Connection:|Is the server|$))"), UNREACHABLE),
    (re.compile(r"server has gone away|Lost connection to [^\n(]*|server closed the connection unexpectedly"), UNREACHABLE),
    (
        re.compile(r"unsupported startup parameter[^\n(]*|doesn't support command-line options"),
        "A pooler shares its sessions, and migrations need one of their own: name a connection past the pooler with database.",
    ),
    (re.compile(r"could not find driver"), "Install the PHP extension of the database: php-pgsql or php-mysql."),
    (re.compile(r"Database file at path \[[^\]]*\] does not exist"), "Create the file, or correct DB_DATABASE in .env."),
    (re.compile(r"unable to open database file"), "Create the file, or correct DB_DATABASE in .env."),
)
CONNECTION_STATE = re.compile(
    r"SQLSTATE\[(?:08\w{3}|28\w{3}|57P0\w)\]|SQLSTATE\[HY000\] \[\d+\]|SQLSTATE\[HY000\]: General error: 20(?:06|13)"
    r"|could not find driver|Database file at path \[|unsupported startup parameter"
)

SERVER = re.compile(r"connection to server at \"(?P<host>[^\"]+)\"(?: \([^)]*\))?, port (?P<port>\d+)")
SOCKET = re.compile(r"connection to server on socket \"(?P<host>[^\"]+)\"")
UNKNOWN_HOST = re.compile(r"host name \"(?P<host>[^\"]+)\"|getaddrinfo for (?P<other>\S+) failed")
CONNECTION_NAME = re.compile(r"\(Connection: (?P<name>[\w-]+)[,)]")
CONNECTION_PLACE = re.compile(r"\(Connection: [\w-]+, Host: (?P<host>[^,]*), Port: (?P<port>[^,]*), Database: (?P<database>[^,]*),")


def is_connection_error(text: str) -> bool:
    """Tell whether the database could not be reached or refused the login, as opposed to refusing a statement."""
    return bool(CONNECTION_STATE.search(text))


def locate(text: str, known: Connection) -> Connection:
    """Return what the message says about the place of the database, completed by what is known otherwise."""
    found = replace(known, driver=driver_of_error(text) or known.driver)
    name = CONNECTION_NAME.search(text)
    if name:
        found = replace(found, name=name.group("name"))
    place = CONNECTION_PLACE.search(text)
    if place:
        return replace(found, **{key: value for key, value in place.groupdict().items() if value})
    server = SERVER.search(text)
    if server:
        return replace(found, host=server.group("host"), port=server.group("port"))
    host = SOCKET.search(text) or UNKNOWN_HOST.search(text)
    if host:
        return replace(found, host=next(value for value in host.groupdict().values() if value))
    return found


def explain_connection_error(text: str, known: Connection) -> ConnectionProblem | None:
    """Return why the database cannot be used; None when the message is about something else."""
    if not is_connection_error(text):
        return None
    connection = locate(text, known)
    for pattern, advice in CAUSES:
        match = pattern.search(text)
        if match:
            return ConnectionProblem(connection, " ".join(match.group(0).split()), advice)
    return ConnectionProblem(connection, "the connection failed", UNREACHABLE)


LIMITS = (
    (
        re.compile(r"canceling statement due to lock timeout|Lock wait timeout exceeded"),
        "Another session kept a table locked for longer than lock_timeout. Run it again later, or raise lock_timeout.",
    ),
    (
        re.compile(r"canceling statement due to statement timeout|max_statement_time exceeded"),
        "The statement took longer than statement_timeout. Split it, or raise statement_timeout.",
    ),
)


def explain_limit(text: str) -> str | None:
    """Return which of the limits on a migration was reached, and the way out; None when it was none of them."""
    return next((advice for pattern, advice in LIMITS if pattern.search(text)), None)


def remains_of_failure(product: str, rolled_back: bool, executed: Sequence[str]) -> str:
    """Return one sentence on what a failed migration leaves behind: the statements that it had executed, unless they were rolled back."""
    if rolled_back:
        return f"{product} rolled it back whole."
    if not executed:
        return f"{product} does not roll it back, but nothing of it had been executed."
    listed = "; ".join(executed[:10]) + (f"; and {len(executed) - 10} more" if len(executed) > 10 else "")
    return f"{product} does not roll it back: what it had executed remains. Undo that before the next run: {listed}."
