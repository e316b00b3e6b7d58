# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""MariaDB and MySQL, for backups and restores.

The moment of a dump is fixed while LOCK TABLES keeps the writers of this one database waiting: the dump's transaction and the one that
counts begin meanwhile, and see the same. FLUSH TABLES WITH READ LOCK would do as well, but it stops every database, waits on MySQL for
each long SELECT, and those who come after it go on waiting when it has given up (measured); and some providers forbid it.
"""

# ruff: noqa: S608 - every name and value in a statement is quoted by identifier() or literal().

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import math
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils import _mysql_dump_filter
from ansible_collections.bitflow.lms.plugins.module_utils._database import (
    DatabaseError,
    DatabaseLockedError,
    Dump,
    Login,
    MissingDatabaseError,
    Server,
    Table,
)
from ansible_collections.bitflow.lms.plugins.module_utils._memory_file import MemoryFile
from ansible_collections.bitflow.lms.plugins.module_utils._mysql_accounts import Accounts
from ansible_collections.bitflow.lms.plugins.module_utils._mysql_client import (
    ACCESS_DENIED,
    DATABASE_EXISTS,
    FORBIDDEN,
    LOCK_TIMED_OUT,
    NO_SUCH_TABLE,
    NO_TLS,
    Client,
    Programs,
    Session,
    StatementError,
    identifier,
    installed_programs,
    literal,
    tls_options,
)
from ansible_collections.bitflow.lms.plugins.module_utils._mysql_grants import Privileges, read_privileges
from ansible_collections.bitflow.lms.plugins.module_utils._mysql_swap import (
    OURS,
    Swap,
    UnfinishedSwap,
    enable_events,
    replica_side_disabled,
    settle,
    tables_of,
    unfinished_swaps,
)
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import Stage, run_pipeline

CHECKSUM_ALGORITHM = "sum-sha256"
# MySQL has no comments of databases: this table keeps it. Tables of ours are never counted, and never dumped.
MARKER = f"{OURS}comment"
TRAILER_WITHIN = 512
# Storage engines whose tables a transaction shows as of its beginning.
TRANSACTIONAL = ("InnoDB", "ROCKSDB", "TokuDB")
# How often the tables are locked anew because one was created or dropped in between.
LOCK_ATTEMPTS = 3

_LARGE = ("tinytext", "text", "mediumtext", "longtext", "tinyblob", "blob", "mediumblob", "longblob")
_SHORT = ("char", "varchar", "binary", "varbinary", "enum", "set")
_NUMBERS = ("tinyint", "smallint", "mediumint", "int", "bigint", "decimal", "float", "double")
_TIMES = ("date", "time", "datetime", "timestamp", "year")
_SHAPES = ("geometry", "point", "linestring", "polygon", "multipoint", "multilinestring", "multipolygon", "geomcollection")
_TABLE_BEGINS = re.compile(
    rb"^(?:-- (?:Table structure|Temporary (?:table|view) structure|Sequence structure) for |CREATE TABLE )", re.MULTILINE
)
_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)?")


def lock_name(database: str) -> str:
    """Return the name of the lock that a backup of a database holds on the server, where 64 characters are the limit."""
    return f"bitflow-backup:{hashlib.sha256(database.encode()).hexdigest()[:40]}"


def cell_expression(column: str, data_type: str) -> str:
    """Return the SQL that makes one text of a value, so that equal texts are equal values."""
    name = identifier(column)
    if data_type in (*_NUMBERS, *_TIMES):
        text = f"CAST({name} AS CHAR)"
    elif data_type in _SHORT:
        # With its length, or 'a', 'bc' and 'ab', 'c' would be the same.
        text = f"CONCAT(LENGTH({name}), ':', CAST({name} AS BINARY))"
    elif data_type in _LARGE:
        # Not the value itself: a text longer than max_allowed_packet becomes NULL.
        text = f"SHA2({name}, 256)"
    elif data_type == "bit":
        text = f"CAST({name} + 0 AS CHAR)"
    elif data_type in _SHAPES or data_type == "geometrycollection":
        text = f"SHA2(CONCAT(ST_SRID({name}), ':', ST_AsWKB({name})), 256)"
    elif data_type == "vector":
        text = f"SHA2(HEX({name}), 256)"
    else:
        text = f"SHA2(CAST({name} AS CHAR), 256)"
    return f"IFNULL({text}, 'N')"


def counting_statement(database: str, table: str, columns: Sequence[tuple[str, str]]) -> str:
    """Return the SQL that counts a table, and with columns (names and types) also sums its rows up, in whatever order they come."""
    where = f"FROM {identifier(database)}.{identifier(table)}"
    if not columns:
        return f"SELECT COUNT(*) {where}"
    row = ", ',', ".join(cell_expression(*column) for column in columns)
    # 60 bits of each row's hash: their sum stays exact, as DECIMAL.
    return f"SELECT COUNT(*), COALESCE(SUM(CAST(CONV(LEFT(SHA2(CONCAT({row}, ''), 256), 15), 16, 10) AS UNSIGNED)), 0) {where}"


def older(client: str, server: str) -> bool:
    """Say whether a client is of an earlier release than the server (two numbers count)."""
    ours, theirs = ([int(number) for number in re.findall(r"\d+", version)[:2]] for version in (client, server))
    return ours < theirs


class MySQL:
    """A server of MariaDB or MySQL."""

    def __init__(self, login: Login, programs: Callable[[], Mapping[str, Programs]] = installed_programs) -> None:
        self.login = login
        self._programs = programs
        self._known: tuple[Client, Server] | None = None

    def server(self) -> Server:
        return self._connected()[1]

    def describe(self, database: str) -> dict[str, Any]:
        with self._session() as session:
            encoding, collation = _schema_of(session, database)
            size = session.value(
                "SELECT COALESCE(SUM(data_length + index_length), 0) FROM information_schema.tables "
                f"WHERE table_schema = {literal(database)}"
            )
        return {"name": database, "encoding": encoding, "collation": collation, "size_bytes": int(size), "extensions": []}

    def problems(self, database: str, exclude_table_data: Sequence[str] = ()) -> list[str]:
        client, server = self._connected()
        found = []
        if client.programs.flavour == server.flavour and older(server.client_version, server.version):
            found.append(
                f"{client.programs.dump} {server.client_version} is older than the server ({server.version}), whose tables it may not dump "
                "whole: install a client as new as that."
            )
        with self._session() as session:
            _schema_of(session, database)
            if client.programs.flavour != server.flavour:
                found += _other_flavour(session, client.programs, database)
            found += _missing_privileges(session, database)
            found += _broken_tables(session, database)
            found += _broken_views(session, database)
            found += [
                f"The swap of {database} with {swap.restored} was interrupted: repeat the restore, which completes or undoes it."
                for swap in unfinished_swaps(session, database)
            ]
        return found

    @contextmanager
    def snapshot(self, database: str, *, consistency: str, lock_timeout: float) -> Iterator[MySQLSnapshot]:
        client, server = self._connected()
        with ExitStack() as stack:
            session = stack.enter_context(self._session())
            _schema_of(session, database)
            _take_lock(session, database)
            # Its own session: a transaction would end the lock of the tables.
            guard = stack.enter_context(self._session()) if consistency == "exact" else None
            snapshot = MySQLSnapshot(client, server, session, guard, database, lock_timeout)
            stack.callback(snapshot.release)
            yield snapshot

    def globals_dump(self) -> Sequence[Stage]:
        with self._session() as session:
            content = Accounts(session, self.server().flavour).dumped()
        # Held for as long as the stage is: with the hashes of passwords, it is for no other eyes.
        self._globals = MemoryFile(content)
        return [Stage(["cat", self._globals.path], descriptors=(self._globals.descriptor,))]

    def missing_roles(self, globals_sql: str) -> list[str]:
        with self._session() as session:
            return Accounts(session, self.server().flavour).missing(globals_sql)

    def create_roles(self, globals_sql: str, names: Sequence[str]) -> None:
        with self._session() as session:
            Accounts(session, self.server().flavour).create(globals_sql, names)

    def databases(self, prefix: str = "") -> dict[str, str]:
        with self._session() as session:
            names = session.column("SELECT schema_name FROM information_schema.schemata ORDER BY schema_name")
            marked = set(session.column(f"SELECT table_schema FROM information_schema.tables WHERE table_name = {literal(MARKER)}"))
            return {name: _comment_of(session, name) if name in marked else "" for name in names if name.startswith(prefix)}

    def create(self, database: str, manifest: Mapping[str, Any], comment: str) -> None:
        described = manifest.get("database") or {}
        encoding, collation = described.get("encoding"), described.get("collation")
        options = (f" CHARACTER SET {literal(encoding)}" if encoding else "") + (f" COLLATE {literal(collation)}" if collation else "")
        with self._session() as session:
            try:
                session.query(f"CREATE DATABASE {identifier(database)}{options}")
            except StatementError as error:
                if error.code == DATABASE_EXISTS:
                    raise DatabaseError(f"There is a database {database} already; choose another name.") from error
                raise
            try:
                _remark(session, database, comment)
            except BaseException:
                # Without its comment nobody would know whose it is.
                with contextlib.suppress(DatabaseError):
                    session.query(f"DROP DATABASE {identifier(database)}")
                raise

    def remark(self, database: str, comment: str) -> None:
        """Give a database that create() made another comment. It is whole then: its events, which a restore keeps from running, run now."""
        with self._session() as session:
            _remark(session, database, comment)
            enable_events(session, database)

    def data_directory(self) -> str:
        if self.login.host not in ("", "localhost"):
            return ""
        with self._session() as session:
            directory = session.value("SELECT @@datadir")
        return directory if Path(directory).is_dir() else ""

    def restore(self, database: str, manifest: Mapping[str, Any], *, tables: Sequence[str] = (), owners: bool = True) -> Sequence[Stage]:
        client, server = self._connected()
        # No copy runs the events of the database that it was made of; remark() and swap() let them run.
        options = {"tables": list(tables), "owners": owners, "events_become": replica_side_disabled(server)}
        loader: Any = _mysql_dump_filter.__loader__
        self._filter = MemoryFile(loader.get_source(_mysql_dump_filter.__name__))
        filtering = Stage([sys.executable, "-I", self._filter.path, json.dumps(options)], descriptors=(self._filter.descriptor,))
        return [filtering, client.running_sql(database)]

    def finish_restore(self, database: str) -> None:
        with self._session() as session:
            for name, _engine in _base_tables(session, database):
                session.query(f"ANALYZE NO_WRITE_TO_BINLOG TABLE {identifier(database)}.{identifier(name)}")

    def tables(self, database: str, record: str) -> list[Table]:
        with self._session() as session:
            _schema_of(session, database)
            session.query("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
            return _read_tables(session, database, record)

    def swap(self, live: str, restored: str, kept: str) -> float:
        client, server = self._connected()
        with self._session() as session:
            if UnfinishedSwap(live, restored, kept) in settle(client, server, session, live):
                return 0.0
            for database in (live, restored):
                _schema_of(session, database)
            return Swap(client, server, session, live, restored, kept).run()

    def drop(self, database: str) -> None:
        with self._session() as session:
            names = tables_of(session, database)
            if names and MARKER not in names:
                raise DatabaseError(f"The database {database} was not made by a restore, and is not dropped: it has no table {MARKER}.")
            session.query(f"DROP DATABASE IF EXISTS {identifier(database)}")

    def _session(self) -> Session:
        """Open a session. To be used in a with statement."""
        client, server = self._connected()
        session = client.session()
        try:
            session.prepare(server.flavour)
        except BaseException:
            session.close()
            raise
        return session

    def _connected(self) -> tuple[Client, Server]:
        """Find the client of the server's flavour, and the way of encryption that both know."""
        if self._known is None:
            installed = self._programs()
            client, server = self._first_that_connects(list(installed.values()))
            if server.flavour != client.programs.flavour and server.flavour in installed:
                client, server = self._first_that_connects([installed[server.flavour]])
            self._known = (client, server)
        return self._known

    def _first_that_connects(self, candidates: Sequence[Programs]) -> tuple[Client, Server]:
        failures: list[DatabaseError] = []
        for programs in candidates:
            remote = self.login.host not in ("", "localhost")
            for tls in tls_options(programs.flavour, self.login.ssl_mode, self.login.ca_cert) if remote else [[]]:
                client = Client(self.login, programs, tls)
                try:
                    with client.session() as session:
                        said = session.value("SELECT VERSION()")
                        encrypted = not remote or bool(session.query("SHOW SESSION STATUS LIKE 'Ssl_cipher'")[0][1])
                except StatementError as error:
                    if error.code == ACCESS_DENIED:
                        raise
                    failures.append(error)
                    if error.code != NO_TLS:
                        break
                    continue
                if not encrypted and self.login.ssl_mode in ("require", "verify-ca", "verify-full"):
                    # MariaDB's clients before 11 go on without.
                    raise DatabaseError(f"The server at {client.what} offers no TLS, but ssl_mode is {self.login.ssl_mode}.")
                version = _VERSION.search(said)
                flavour = "mariadb" if "mariadb" in said.lower() else "mysql"
                return client, Server(flavour, version[0] if version else said, programs.version)
        raise failures[0]


class MySQLSnapshot:
    """One moment of a database. It is fixed when it is first needed, so that nothing else has to be waited for meanwhile."""

    def __init__(self, client: Client, server: Server, session: Session, guard: Session | None, database: str, lock_timeout: float) -> None:
        self.consistency = "fast"
        self.warnings: list[str] = []
        self.position: dict[str, Any] = {}
        self._client = client
        self._server = server
        self._session = session
        self._guard = guard
        self._database = database
        self._lock_timeout = lock_timeout
        self._fixed = False
        self._turn = threading.Lock()
        self._timer: threading.Timer | None = None
        self._structure: MemoryFile | None = None

    def tables(self, record: str) -> list[Table]:
        self._fix(())
        return _read_tables(self._session, self._database, record)

    def dump(self, *, exclude_table_data: Sequence[str], compression_level: int, compression_threads: int) -> Dump:
        database = self._database
        names = [name for name, _engine in _base_tables(self._session, database)]
        without_data = sorted({name for name in names for pattern in exclude_table_data if fnmatch.fnmatchcase(name, pattern)})
        structure = self._structure_of(without_data)
        ours = [name for name in tables_of(self._session, database) if name.startswith(OURS)]
        ignored = [f"--ignore-table={database}.{name}" for name in (*without_data, *ours)]
        dump = self._client.dump("--single-transaction", "--routines", "--events", "--triggers", *ignored, database)
        ultra = ["--ultra"] if compression_level > 19 else []
        compress = Stage(["zstd", "-q", "-c", *ultra, f"-{compression_level}", f"-T{compression_threads}", "-"])
        stages = [dump, compress]
        if structure:
            # Before the dump, whose views may need these tables.
            self._structure = MemoryFile(structure)
            stages.insert(1, Stage(["cat", self._structure.path, "-"], descriptors=(self._structure.descriptor,)))
        watch = DumpWatch(self.release)
        self._fix(without_data)
        return Dump(
            stages=stages,
            format="plain",
            suffix=".sql.zst",
            compression={"method": "zstd", "level": compression_level, "where": "around"},
            taps={0: watch.take},
            check=watch.check,
            raw_size=lambda: watch.size + len(structure),
            version=self._server.client_version,
        )

    def check(self) -> None:
        if self._session.value("SELECT 1") != "1":
            raise DatabaseError(f"The session that counted the tables of {self._database} ended: the dump is of no known moment.")

    def release(self, late: bool = False) -> None:
        """Let the writers go on. late: before it is certain that the dump's transaction has begun."""
        with self._turn:
            if self._timer is not None:
                self._timer.cancel()
            guard, self._guard = self._guard, None
            if guard is None:
                return
            if late:
                self._inexact(f"the dump did not begin within {self._lock_timeout:g} s")
            guard.close()

    def _inexact(self, why: str) -> None:
        self.consistency = "fast"
        self.warnings.append(f"The counts of {self._database} are not exactly of the dump's moment: {why}.")

    def _fix(self, without_data: Sequence[str]) -> None:
        """Begin the transaction that counts, at a moment when nobody writes."""
        if self._fixed:
            return
        if self._guard is not None:
            self._lock_tables(self._guard)
        self._session.query("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        self.position = _position(self._session, self._server)
        self._fixed = True
        others = [
            name
            for name, engine in _base_tables(self._session, self._database)
            if engine.lower() not in (each.lower() for each in TRANSACTIONAL) and name not in without_data
        ]
        if others:
            self._inexact(f"{', '.join(others)} of it have a storage engine without transactions")

    def _lock_tables(self, guard: Session) -> None:
        """Keep the writers of the database waiting."""
        try:
            for _attempt in range(LOCK_ATTEMPTS):
                names = _base_tables(guard, self._database)
                if names and _lock(guard, self._database, [name for name, _engine in names], self._lock_timeout):
                    if _base_tables(guard, self._database) == names:
                        self.consistency = "exact"
                        self._timer = threading.Timer(self._lock_timeout, self.release, kwargs={"late": True})
                        self._timer.daemon = True
                        self._timer.start()
                        return
                    guard.query("UNLOCK TABLES")
            why = "tables come and go" if names else "it has no tables"
        except StatementError as error:
            if error.code == LOCK_TIMED_OUT:
                why = f"a transaction that writes did not end within {self._lock_timeout:g} s (lock_timeout)"
            elif error.code in FORBIDDEN:
                why = "the login lacks the privilege LOCK TABLES"
            else:
                raise
        self._guard = None
        guard.close()
        self._inexact(why)

    def _structure_of(self, names: Sequence[str]) -> bytes:
        """Return the dump of tables without their rows."""
        if not names:
            return b""
        content = bytearray()
        run_pipeline([self._client.dump("--no-data", "--skip-lock-tables", "--triggers", self._database, *names)], sink=content.extend)
        return bytes(content)


class DumpWatch:
    """What is heard of a dump while it passes."""

    def __init__(self, on_table: Callable[[], None]) -> None:
        self.size = 0
        self._tail = b""
        self._on_table: Callable[[], None] | None = on_table

    def take(self, piece: bytes) -> None:
        """Hear the next bytes."""
        self.size += len(piece)
        # The first table comes after the dump's transaction has begun.
        if self._on_table is not None and _TABLE_BEGINS.search(self._tail + piece):
            on_table, self._on_table = self._on_table, None
            on_table()
        self._tail = (self._tail + piece[-TRAILER_WITHIN:])[-TRAILER_WITHIN:]

    def check(self) -> None:
        """Raise DatabaseError when the dump was cut off, although every program ended well."""
        if b"\n" + _mysql_dump_filter.TRAILER not in b"\n" + self._tail:
            raise DatabaseError("The dump has no end (Dump completed): the program that made it was cut off, whatever its status says.")


def _schema_of(session: Session, database: str) -> tuple[str, str]:
    """Return encoding and collation of a database."""
    rows = session.query(
        "SELECT default_character_set_name, default_collation_name FROM information_schema.schemata "
        f"WHERE schema_name = {literal(database)}"
    )
    if not rows:
        raise MissingDatabaseError(f"The server at {session.what} has no database {database}, or the login may not see it.")
    return rows[0][0], rows[0][1]


def _base_tables(session: Session, database: str) -> list[tuple[str, str]]:
    """Return the tables with their storage engines, without views and without those of ours."""
    rows = session.query(
        "SELECT table_name, COALESCE(engine, '') FROM information_schema.tables WHERE table_type IN ('BASE TABLE', 'SYSTEM VERSIONED') "
        f"AND table_schema = {literal(database)} ORDER BY table_name"
    )
    return [(name, engine) for name, engine in rows if not name.startswith(OURS)]


def _read_tables(session: Session, database: str, record: str) -> list[Table]:
    """Return the tables, counted and summed as asked, as the session's transaction shows them."""
    names = [name for name, _engine in _base_tables(session, database)]
    if record == "none":
        return [Table(database, name) for name in names]
    columns: dict[str, list[tuple[str, str]]] = {}
    if record == "checksums":
        # The columns of a system-versioned table that tell when a row was written are of the server, not of the data.
        for table, column, data_type in session.query(
            "SELECT table_name, column_name, LOWER(data_type) FROM information_schema.columns "
            f"WHERE table_schema = {literal(database)} AND COALESCE(generation_expression, '') NOT IN ('ROW START', 'ROW END') "
            "ORDER BY table_name, ordinal_position"
        ):
            columns.setdefault(table, []).append((column, data_type))
    found = []
    for name in names:
        # Going back gives up the table's metadata lock: a migration would wait for it, and everybody else for the migration.
        session.query("SAVEPOINT before_table")
        counted = session.query(counting_statement(database, name, columns.get(name, ())))[0]
        session.query("ROLLBACK TO SAVEPOINT before_table")
        if record == "checksums":
            found.append(Table(database, name, int(counted[0]), counted[1], CHECKSUM_ALGORITHM))
        else:
            found.append(Table(database, name, int(counted[0])))
    return found


def _lock(guard: Session, database: str, names: Sequence[str], timeout: float) -> bool:
    """Lock tables against writing; False when one of them is gone."""
    guard.query(f"SET SESSION lock_wait_timeout = {max(1, math.ceil(timeout))}")
    try:
        guard.query("LOCK TABLES " + ", ".join(f"{identifier(database)}.{identifier(name)} READ" for name in names))
    except StatementError as error:
        if error.code == NO_SUCH_TABLE:
            return False
        raise
    return True


def _take_lock(session: Session, database: str) -> None:
    """Take the lock of a database's backup, which ends with the session."""
    name = literal(lock_name(database))
    if session.value(f"SELECT GET_LOCK({name}, 0)") == "1":
        return
    holder = session.value(f"SELECT IS_USED_LOCK({name})")
    rows = session.query(f"SELECT user, host FROM information_schema.processlist WHERE id = {int(holder)}") if holder.isdigit() else []
    who = f" (session {holder}" + (f" of {rows[0][0]} from {rows[0][1]}" if rows else "") + ")" if holder.isdigit() else ""
    raise DatabaseLockedError(f"Another run works on the backup of {database}{who}. Wait until it has ended.")


def _position(session: Session, server: Server) -> dict[str, Any]:
    """Return where the server's log stands; nothing when there is none, or the login may not ask."""
    rows: list[list[str]] = []
    for statement in ("SHOW BINARY LOG STATUS", "SHOW MASTER STATUS"):
        with contextlib.suppress(StatementError):
            rows = session.query(statement)
            break
    if not rows:
        return {}
    row = rows[0]
    gtid = session.value("SELECT @@gtid_binlog_pos") if server.flavour == "mariadb" else (row[4] if len(row) > 4 else "")
    return {"binlog": {"file": row[0], "pos": int(row[1])}, "gtid": gtid.replace("\n", "")}


def _other_flavour(session: Session, programs: Programs, database: str) -> list[str]:
    """Return why the dump program of the one flavour does not do for a server of the other."""
    if programs.flavour == "mysql":
        return ["mysqldump does not know all that MariaDB has, such as sequences: install mariadb-dump on this host."]
    generated = session.column(
        "SELECT DISTINCT table_name FROM information_schema.columns "
        f"WHERE generation_expression <> '' AND table_schema = {literal(database)} ORDER BY table_name"
    )
    if not generated:
        return []
    return [
        f"mariadb-dump writes the values of MySQL's generated columns, which MySQL does not take back ({', '.join(generated)}): install "
        "mysqldump on this host."
    ]


def _missing_privileges(session: Session, database: str) -> list[str]:
    """Return what the login may not do that a whole dump needs."""
    privileges = read_privileges(session.column("SHOW GRANTS"), database)
    found = [
        f"The login lacks the privilege {', '.join(missing)} on {database}: GRANT {', '.join(missing)} ON {identifier(database)}.* to it."
        for missing in [privileges.missing(("SELECT", "SHOW VIEW", "TRIGGER", "EVENT"))]
        if missing
    ]
    if not privileges.sees_routines:
        found.append(f"The login does not see the routines of {database}, which the dump would lack: grant it {Privileges.FOR_ROUTINES}.")
    hidden = session.column(
        "SELECT routine_name FROM information_schema.routines WHERE routine_definition IS NULL AND routine_body = 'SQL' "
        f"AND routine_schema = {literal(database)} ORDER BY routine_name"
    )
    if hidden:
        found.append(f"The login may not read the routines {', '.join(hidden)} of {database}: grant it {Privileges.FOR_ROUTINES}.")
    return found


def _broken_tables(session: Session, database: str) -> list[str]:
    """Return the tables that cannot be read."""
    found = [
        f"Table {database}.{name} cannot be read: {comment.rstrip('. ')}. Repair it (REPAIR TABLE), or drop it."
        for name, comment in session.query(
            "SELECT table_name, table_comment FROM information_schema.tables WHERE table_type = 'BASE TABLE' AND engine IS NULL "
            f"AND table_schema = {literal(database)} ORDER BY table_name"
        )
    ]
    for name, engine in _base_tables(session, database):
        if engine in ("MyISAM", "Aria"):
            checked = session.query(f"CHECK TABLE {identifier(database)}.{identifier(name)} FAST QUICK")
            found += [
                f"Table {database}.{name} is damaged: {row[3].rstrip('. ')}. Repair it (REPAIR TABLE)."
                for row in [row for row in checked if row[2].lower() == "error"][:1]
            ]
    return found


def _broken_views(session: Session, database: str) -> list[str]:
    """Return the views at which the dump would fail: they name tables, columns or users that are gone."""
    found = []
    for name in session.column(
        f"SELECT table_name FROM information_schema.views WHERE table_schema = {literal(database)} ORDER BY table_name"
    ):
        try:
            session.query(f"SHOW FIELDS FROM {identifier(database)}.{identifier(name)}")
        except StatementError as error:
            found.append(f"View {database}.{name} cannot be dumped: {error.message} Mend or drop it.")
    return found


def _comment_of(session: Session, database: str) -> str:
    """Return the comment that create() gave a database."""
    return session.value(f"SELECT comment FROM {identifier(database)}.{identifier(MARKER)}")


def _remark(session: Session, database: str, comment: str) -> None:
    """Give a database a comment."""
    table = f"{identifier(database)}.{identifier(MARKER)}"
    session.query(f"CREATE TABLE IF NOT EXISTS {table} (id TINYINT PRIMARY KEY, comment TEXT NOT NULL) CHARACTER SET utf8mb4")
    session.query(f"REPLACE INTO {table} VALUES (1, {literal(comment)})")
