# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the backups need of a database server, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import Stage


class DatabaseError(LmsError):
    """A server that refused, or could not be reached."""


class MissingDatabaseError(DatabaseError):
    """A database that is not on the server."""


class DatabaseLockedError(DatabaseError):
    """Another run, on whatever host, works on this database's backup."""


@dataclass(frozen=True)
class Login:
    """How a server is reached. Empty values are the client's own defaults."""

    # postgresql, or mysql for MariaDB and MySQL; which of the two it is, the server says.
    engine: str
    host: str = ""
    port: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    unix_socket: str = ""
    # disable, allow, prefer, require, verify-ca, verify-full
    ssl_mode: str = "prefer"
    ca_cert: str = ""
    # User of this host as whom the clients run, for servers that know their users by the socket (peer).
    system_user: str = ""


@dataclass(frozen=True)
class Server:
    """A server, and the client that speaks to it."""

    # postgresql, mariadb or mysql
    flavour: str
    # Such as 17.11
    version: str
    client_version: str


@dataclass(frozen=True)
class Table:
    """A table as a snapshot shows it."""

    schema: str
    name: str
    # None where nothing was recorded.
    rows: int | None = None
    checksum: str | None = None
    # How the checksum was made, such as sum-hashtextextended or crc32-checksum-table. Only equal ways compare.
    checksum_algorithm: str | None = None


@dataclass(frozen=True)
class Dump:
    """How a database is dumped: the programs, and what is heard on the way."""

    # The last one writes what is stored (before encryption).
    stages: Sequence[Stage]
    # custom (pg_restore's format) or plain (SQL)
    format: str
    # Of the data object's name: .dump, .dump.zst, .sql.zst
    suffix: str
    # Such as zstd; where, inside the dump (format custom) or around it.
    compression: Mapping[str, Any]
    # Called with each piece that goes from stage i to stage i + 1.
    taps: Mapping[int, Callable[[bytes], None]] = field(default_factory=dict)
    # Called when every program ended well; raises DatabaseError when the dump is not whole all the same.
    check: Callable[[], None] = lambda: None
    # What went in before the compression, as far as it is known by now (bytes), for the progress.
    raw_size: Callable[[], int | None] = lambda: None
    # The dump program's own version, for the manifest.
    version: str = ""


class Snapshot(Protocol):
    """One moment of a database, from which the dump and the counts are taken. It holds the lock of the database's backup."""

    # exact: the counts are those of the dump. fast: they were taken beside it.
    consistency: str
    # Why it is not exact although that was asked.
    warnings: list[str]
    # Where it stands in the server's log: id and lsn, or binlog file and position, gtid.
    position: dict[str, Any]

    def tables(self, record: str) -> list[Table]:
        """Return the tables: counted (record: counts), also summed (checksums), or named only (none). May run in a thread."""

    def dump(self, *, exclude_table_data: Sequence[str], compression_level: int, compression_threads: int) -> Dump:
        """Say how the database is dumped as of this moment."""

    def check(self) -> None:
        """Raise DatabaseError when the session ended: the dump is then not of this moment."""


class Engine(Protocol):
    """A server, for backups and restores. Nothing here asks a shell, and no secret stands in argv or the environment."""

    login: Login

    def server(self) -> Server:
        """Ask which server it is. DatabaseError when it does not answer, or the login is refused."""

    def describe(self, database: str) -> dict[str, Any]:
        """Return name, encoding, collation, size_bytes, extensions (list). MissingDatabaseError."""

    def problems(self, database: str, exclude_table_data: Sequence[str] = ()) -> list[str]:
        """Return, as sentences, what would keep a backup from being whole: an older client, row-level security, unreadable tables."""

    def snapshot(self, database: str, *, consistency: str, lock_timeout: float) -> AbstractContextManager[Snapshot]:
        """Take the lock of the database's backup and fix a moment. DatabaseLockedError when another run holds it."""

    def globals_dump(self) -> Sequence[Stage]:
        """Return the programs that print roles or users, without passwords where the server does not give them."""

    def missing_roles(self, globals_sql: str) -> list[str]:
        """Return the names of the roles in a globals dump that the server lacks."""

    def create_roles(self, globals_sql: str, names: Sequence[str]) -> None:
        """Create roles that are missing, from a globals dump; existing ones are never changed."""

    def databases(self, prefix: str = "") -> dict[str, str]:
        """Return the databases whose names begin so, each with its comment (or nothing)."""

    def create(self, database: str, manifest: Mapping[str, Any], comment: str) -> None:
        """Create an empty database like the one of a manifest (encoding, collation), with a comment that databases() gives back."""

    def remark(self, database: str, comment: str) -> None:
        """Give a database that create() made another comment: it is whole now, and its events (MariaDB, MySQL) run from here on."""

    def data_directory(self) -> str:
        """Return where the server keeps its data, when that is a directory of this host; otherwise, or when it does not say, nothing."""

    def restore(self, database: str, manifest: Mapping[str, Any], *, tables: Sequence[str] = (), owners: bool = True) -> Sequence[Stage]:
        """Return the programs that read a dump (decrypted, and decompressed but for format custom) from standard input; any error fails."""

    def finish_restore(self, database: str) -> None:
        """Do what a restored database needs before it serves, such as ANALYZE."""

    def tables(self, database: str, record: str) -> list[Table]:
        """Return the tables of a database as they are now, as Snapshot.tables does."""

    def swap(self, live: str, restored: str, kept: str) -> float:
        """Put a restored database in the live one's place, which is kept under another name. Return the seconds it was away."""

    def drop(self, database: str) -> None:
        """Remove a scratch database. Only ever called with a name that the caller itself made."""


def engine_for(login: Login) -> Engine:
    """Return what speaks to a server."""
    # Not at the top: each of the two knows this file.
    if login.engine == "postgresql":
        from ansible_collections.bitflow.lms.plugins.module_utils._database_postgresql import PostgreSQL

        return PostgreSQL(login)
    from ansible_collections.bitflow.lms.plugins.module_utils._database_mysql import MySQL

    return MySQL(login)
