# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read database errors out of Laravel's messages, and say what they mean. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

POSTGRESQL = re.compile(r"SQLSTATE\[\w{5}\](?:: [^:\n]+: \d+ (?:ERROR|FATAL|PANIC):| \[7\] )")
MYSQL = re.compile(r"SQLSTATE\[\w{5}\](?:: [^:\n]+: (?:1\d{3}|[2-4]\d{3})\s| \[(?:1\d{3}|2\d{3})\] )")
SQLITE = re.compile(r"SQLSTATE\[\w{5}\](?:: [^:\n]+: \d{1,2} (?!ERROR|FATAL|PANIC)| \[14\] )|Database file at path \[")
SQLSERVER = re.compile(r"SQLSTATE\[\w{5}\]:? ?\[Microsoft\]")

DRIVERS = (("pgsql", POSTGRESQL), ("sqlsrv", SQLSERVER), ("mysql", MYSQL), ("sqlite", SQLITE))
KNOWN_DRIVERS = frozenset({"pgsql", "mysql", "mariadb", "sqlite", "sqlsrv"})
TRANSACTIONAL = {"pgsql": "PostgreSQL", "sqlsrv": "SQL Server"}
NOT_TRANSACTIONAL = {"mysql": "MySQL and MariaDB do", "mariadb": "MySQL and MariaDB do", "sqlite": "Laravel on SQLite does"}


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
    (re.compile(r"could not find driver"), "Install the PHP extension of the database: php-pgsql or php-mysql."),
    (re.compile(r"Database file at path \[[^\]]*\] does not exist"), "Create the file, or correct DB_DATABASE in .env."),
    (re.compile(r"unable to open database file"), "Create the file, or correct DB_DATABASE in .env."),
)
CONNECTION_STATE = re.compile(
    r"SQLSTATE\[(?:08\w{3}|28\w{3}|57P0\w)\]|SQLSTATE\[HY000\] \[\d+\]|SQLSTATE\[HY000\]: General error: 20(?:06|13)"
    r"|could not find driver|Database file at path \["
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


WITHOUT_TRANSACTION = re.compile(r"\$withinTransaction\s*=\s*false")


def declines_transaction(source: str) -> bool:
    """Tell whether a migration says that it must not run inside a transaction."""
    return bool(WITHOUT_TRANSACTION.search(source))


def remains_of_failure(driver: str | None, within_transaction: bool = True) -> str:
    """Return one sentence on what a failed migration leaves behind on this kind of database."""
    if driver in TRANSACTIONAL and not within_transaction:
        return "It declines a transaction ($withinTransaction = false), so what it did before the error remains. Look at the schema first."
    if driver in TRANSACTIONAL:
        return f"{TRANSACTIONAL[driver]} rolled it back whole."
    if driver in NOT_TRANSACTIONAL:
        return (
            f"{NOT_TRANSACTIONAL[driver]} not roll back schema changes: what it did before the error remains, such as a half-made table. "
            "Look at the schema first."
        )
    return "The driver is not known: unless the database rolls back schema changes, what it did before the error remains."
