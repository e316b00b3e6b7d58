# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL, for backups and restores. It asks for nothing that only superusers may do: some providers let nobody be one."""

# ruff: noqa: S608 - every name and value in a statement is quoted by identifier() or literal().

from __future__ import annotations

import inspect
import json
import pwd
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils import _postgresql_selection
from ansible_collections.bitflow.lms.plugins.module_utils._database import (
    DatabaseError,
    DatabaseLockedError,
    Dump,
    Login,
    MissingDatabaseError,
    Server,
    Table,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._memory_file import MemoryFile
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import Stage
from ansible_collections.bitflow.lms.plugins.module_utils._postgresql_clients import Clients, major_of
from ansible_collections.bitflow.lms.plugins.module_utils._postgresql_roles import (
    clearing_statements,
    identifier,
    joined,
    literal,
    property_statements,
    role_names,
    role_statements,
)
from ansible_collections.bitflow.lms.plugins.module_utils._postgresql_session import (
    ANSWER_TIMEOUT,
    CONNECT_TIMEOUT,
    PostgreSQLSession,
    conninfo,
    environment_of,
    password_file,
    settings_statement,
)
from ansible_collections.bitflow.lms.plugins.module_utils._postgresql_tables import (
    EXISTING,
    TABLES,
    Relation,
    content_problems,
    lock_tables,
    read_tables,
    relations_of,
)

# The first pg_dump that compresses with zstd itself.
ZSTD_INSIDE = 16
# What pg_restore of a version sets although servers before that version do not know it, so that every restore would fail there.
UNKNOWN_BEFORE = {17: "transaction_timeout"}
# Databases that every server has, for what concerns no database in particular.
MAINTENANCE = ("postgres", "template1")
# How long a database that is to be renamed is waited for (seconds). The server itself gives up after 5.
RENAME_TIMEOUT = 30.0
# First part of the key of our advisory locks.
LOCK_SPACE = "bitflow.lms backup"
# What a comment begins with when its database may be dropped: it is of a verification, or a restore that did not come to its end.
OURS = ("bitflow.lms scratch", "bitflow.lms restoring")

_HOLDER = f"""
select a.pid, a.application_name as application, host(a.client_addr) as address,
       to_char(a.backend_start at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as since
  from pg_locks l join pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'advisory' and l.granted and l.objsubid = 2
   and l.database = (select oid from pg_database where datname = current_database())
   and l.classid::int8 = hashtext({literal(LOCK_SPACE)})::int8 & 4294967295
   and l.objid::int8 = hashtext(current_database())::int8 & 4294967295
"""

_BLOCKERS = """
select n.nspname as schema, c.relname as name, l.pid, a.application_name as application
  from pg_locks l join pg_class c on c.oid = l.relation join pg_namespace n on n.oid = c.relnamespace
  left join pg_stat_activity a on a.pid = l.pid
 where l.mode = 'AccessExclusiveLock' and l.granted and c.relkind in ('r', 'p')
   and l.database = (select oid from pg_database where datname = current_database())
"""


class _Counter:
    """Counts what goes through a pipe."""

    def __init__(self) -> None:
        self.bytes = 0

    def hear(self, piece: bytes) -> None:
        """Count a piece."""
        self.bytes += len(piece)


def dump_of(
    clients: Clients,
    base: Mapping[str, Any],
    server_major: int,
    database: str,
    snapshot: str,
    *,
    left_out: Sequence[Relation],
    lock_timeout: float,
    level: int,
    threads: int,
) -> Dump:
    """Say how a database is dumped as of a snapshot. base is what all stages of this login have in common."""
    major = clients.dumping(server_major)
    inside = major >= ZSTD_INSIDE
    argv = [
        clients.program("pg_dump", major),
        "--format=custom",
        f"--compress=zstd:{level}" if inside else "--compress=0",
        f"--snapshot={snapshot}",
        "--no-password",
        f"--lock-wait-timeout={round(lock_timeout * 1000)}",
        *(f"--exclude-table-data={relation.qualified}" for relation in left_out),
        f"--dbname={conninfo(database)}",
    ]
    stage = Stage(argv, **base)
    if inside:
        compression = {"method": "zstd", "level": level, "where": "inside"}
        return Dump([stage], "custom", ".dump", compression, version=clients.version(major))
    counter = _Counter()
    zstd = Stage(["zstd", "--quiet", "--stdout", f"-{level}", f"--threads={threads}", "-"])
    return Dump(
        [stage, zstd],
        "custom",
        ".dump.zst",
        {"method": "zstd", "level": level, "where": "around"},
        taps={0: counter.hear},
        raw_size=lambda: counter.bytes,
        version=clients.version(major),
    )


class PostgreSQLSnapshot:
    """One moment of a database. An idle session holds the lock, so that it is free at once when we die; another one holds the moment."""

    # Always: it costs nothing.
    consistency = "exact"

    def __init__(self, engine: PostgreSQL, database: str, lock: PostgreSQLSession, session: PostgreSQLSession, lock_timeout: float) -> None:
        self.warnings: list[str] = []
        self._engine = engine
        self._database = database
        self._lock = lock
        self._session = session
        self._lock_timeout = lock_timeout
        self._patterns: tuple[str, ...] = ()
        session.query("begin isolation level repeatable read read only")
        begun = session.records(
            "select pg_export_snapshot() as id, current_setting('server_version_num')::int / 10000 as major,"
            " case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end as lsn"
        )[0]
        self.position: dict[str, Any] = {"id": begun["id"], "lsn": begun["lsn"]}
        self._server_major = int(begun["major"])
        # Or what is emptied (TRUNCATE) between the count and the dump would be in one of them only.
        lock_tables(session, session.records(TABLES))

    def tables(self, record: str) -> list[Table]:
        """Return the tables as of this moment, without counts for those whose data the dump leaves out."""
        return read_tables(self._session, record, self._patterns)

    def dump(self, *, exclude_table_data: Sequence[str], compression_level: int, compression_threads: int) -> Dump:
        """Say how the database is dumped as of this moment."""
        self._patterns = tuple(exclude_table_data)
        return dump_of(
            self._engine.clients,
            self._engine.base,
            self._server_major,
            self._database,
            str(self.position["id"]),
            left_out=[relation for relation in relations_of(self._session, self._patterns) if relation.left_out],
            lock_timeout=self._lock_timeout,
            level=compression_level,
            threads=compression_threads,
        )

    def check(self) -> None:
        """Raise DatabaseError when one of the sessions ended."""
        for session in (self._session, self._lock):
            try:
                session.query("select 1", ANSWER_TIMEOUT)
            except DatabaseError as error:
                raise DatabaseError(
                    f"The session that held the snapshot of {self._database} did not last, so the dump is not certainly of that moment: "
                    f"{error.message}",
                    **error.details,
                ) from error


@dataclass
class PostgreSQL:
    """A PostgreSQL server."""

    login: Login
    clients: Clients = field(default_factory=Clients)
    # What each restored database is to get in the end.
    _properties: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _password: MemoryFile | None = None
    _selections: list[MemoryFile] = field(default_factory=list)

    @property
    def base(self) -> dict[str, Any]:
        """Return what every stage that speaks to the server has in common."""
        user = self.login.system_user
        environment = environment_of(self.login)
        if not self.login.password:
            return {"environment": environment, "user": user}
        if self._password is None:
            self._password = MemoryFile(password_file(self.login.password), _existing_user(user))
        environment["PGPASSFILE"] = self._password.path
        return {"environment": environment, "descriptors": (self._password.descriptor,), "user": user}

    @property
    def where(self) -> str:
        """Return how messages name the server."""
        place = self.login.host or self.login.unix_socket or "this host's socket"
        return f"PostgreSQL at {place}" + (f", port {self.login.port}" if self.login.port else "")

    def server(self) -> Server:
        """Ask which server it is."""
        with self._maintenance() as session:
            version = _version(session)
        client = self._client_for(major_of(version))
        return Server("postgresql", version, self.clients.version(client))

    def data_directory(self) -> str:
        """Return where the server keeps its data, when that is a directory of this host."""
        if self.login.host not in ("", "localhost", "127.0.0.1", "::1") and not self.login.host.startswith("/"):
            return ""
        with self._maintenance() as session:
            # Only some may see it, so that the row may be missing.
            found = session.records("select setting from pg_settings where name = 'data_directory'")
        return next((row["setting"] for row in found if Path(row["setting"]).is_dir()), "")

    def describe(self, database: str) -> dict[str, Any]:
        """Return what is to be known of a database before its dump is restored somewhere."""
        with self._session(database) as session:
            major = major_of(_version(session))
            described = _description(session, major)
            described["extensions"] = session.records("select extname as name, extversion as version from pg_extension order by extname")
            properties = _properties(session, database)
        # Settings of one's own (such as app.jwt_secret) may be secrets, and the manifest is not encrypted.
        properties["settings"] = [each for each in properties["settings"] if "." not in each["value"].partition("=")[0]]
        return {**described, "properties": properties}

    def problems(self, database: str, exclude_table_data: Sequence[str] = ()) -> list[str]:
        """Return, as sentences, what would keep a backup from being whole."""
        with self._maintenance() as session:
            server = major_of(_version(session))
            user = str(session.value("current_user"))
            allowed = session.records(
                f"select has_database_privilege(oid, 'CONNECT') as allowed from pg_database where datname = {literal(database)}"
            )
        found = []
        try:
            self.clients.dumping(server)
        except DatabaseError as error:
            found.append(error.message)
        if allowed and not allowed[0]["allowed"]:
            name = identifier(database)
            return [*found, f"{user} may not connect to {database}: GRANT CONNECT ON DATABASE {name} TO {identifier(user)} lets it."]
        with self._session(database) as session:
            return found + content_problems(session, database, user, server, exclude_table_data)

    @contextmanager
    def snapshot(self, database: str, *, consistency: str, lock_timeout: float) -> Iterator[PostgreSQLSnapshot]:
        """Take the lock of the database's backup and fix a moment. It is exact whatever consistency says."""
        with ExitStack() as stack:
            lock = stack.enter_context(self._session(database, lock_timeout))
            self._take_lock(lock, database)
            session = stack.enter_context(self._session(database, lock_timeout))
            try:
                snapshot = PostgreSQLSnapshot(self, database, lock, session, lock_timeout)
            except DatabaseError as error:
                raise _blocked(error, lock, database, lock_timeout) from error
            yield snapshot

    def globals_dump(self) -> Sequence[Stage]:
        """Return the program that prints the roles, without passwords where they may not be read."""
        with self._maintenance() as session:
            server = major_of(_version(session))
            passwords = bool(session.value("has_table_privilege('pg_catalog.pg_authid', 'SELECT')"))
            database = str(session.value("current_database()"))
        argv = [
            self.clients.program("pg_dumpall", self.clients.dumping(server)),
            "--globals-only",
            "--no-password",
            f"--database={database}",
            *([] if passwords else ["--no-role-passwords"]),
        ]
        return [Stage(argv, **self.base)]

    def missing_roles(self, globals_sql: str) -> list[str]:
        """Return the names of the roles in a globals dump that the server lacks."""
        with self._maintenance() as session:
            existing = _roles(session)
        return [name for name in role_names(globals_sql) if name not in existing]

    def create_roles(self, globals_sql: str, names: Sequence[str]) -> None:
        """Create roles that are missing, all or none."""
        with self._maintenance() as session:
            existing = _roles(session)
            chosen = [name for name in names if name not in existing]
            statements = role_statements(globals_sql, chosen, existing, major_of(_version(session)))
            try:
                session.query("begin")
                for statement in statements:
                    session.query(statement, ANSWER_TIMEOUT)
                session.query("commit")
            except DatabaseError as error:
                # A message may quote the statement, and that the verifier of a password.
                raise DatabaseError(
                    f"The roles {joined(chosen)} were not created: {error.message} Create them by hand, or log in as a role that may.",
                    sqlstate=error.details.get("sqlstate", ""),
                ) from error

    def databases(self, prefix: str = "") -> dict[str, str]:
        """Return the databases whose names begin so, each with its comment."""
        with self._maintenance() as session:
            found = session.records(
                "select datname as name, coalesce(shobj_description(oid, 'pg_database'), '') as comment from pg_database"
                f" where starts_with(datname, {literal(prefix)}) and not datistemplate order by datname"
            )
        return {row["name"]: row["comment"] for row in found}

    def create(self, database: str, manifest: Mapping[str, Any], comment: str) -> None:
        """Create an empty database like the one of a manifest."""
        described = manifest.get("database") or {}
        with self._maintenance() as session:
            try:
                session.query(create_statement(database, described, major_of(_version(session))))
            except DatabaseError as error:
                raise DatabaseError(
                    f"The database {database} was not created with encoding {described.get('encoding')} and collation "
                    f"{described.get('collation')}, as the backup has them: {error.message}",
                    **error.details,
                ) from error
            try:
                session.query(_comment_statement(database, comment), ANSWER_TIMEOUT)
            except BaseException:
                # Without its comment, nobody would know whose it is.
                with suppress(DatabaseError):
                    session.query(f"drop database {identifier(database)}")
                raise

    def remark(self, database: str, comment: str) -> None:
        """Give a database another comment."""
        with self._maintenance() as session:
            session.query(_comment_statement(database, comment), ANSWER_TIMEOUT)

    def restore(self, database: str, manifest: Mapping[str, Any], *, tables: Sequence[str] = (), owners: bool = True) -> Sequence[Stage]:
        """Return the programs that read a dump from standard input; any error fails."""
        with self._session(database) as session:
            server = major_of(_version(session))
            existing = session.records(EXISTING) if tables else []
        if owners and not tables:
            self._properties[database] = (manifest.get("database") or {}).get("properties") or {}
        base, selecting = self.base, []
        if tables:
            selection = self._selection(manifest, tables, existing)
            base["descriptors"] = (*base.get("descriptors", ()), *(each.descriptor for each in selection))
            selecting = [sys.executable or "python3", *(each.path for each in selection)]
        dumped_with = major_of(str((manifest.get("tool") or {}).get("version") or ""))
        return restore_stages(self.clients, base, server, database, dumped_with, owners=owners, selecting=selecting)

    def finish_restore(self, database: str) -> None:
        """Give a restored database its owner, privileges and settings, and the planner its statistics."""
        with self._session(database) as session:
            for statement in property_statements(database, self._properties.pop(database, {})):
                try:
                    session.query(statement, ANSWER_TIMEOUT)
                except DatabaseError as error:
                    raise DatabaseError(
                        f"The database {database} did not get its owner, privileges and settings: {error.message} Set globals to missing, "
                        "or owners to false.",
                        **error.details,
                    ) from error
            session.query("analyze")

    def tables(self, database: str, record: str) -> list[Table]:
        """Return the tables of a database as they are now."""
        with self._session(database) as session:
            session.query("begin isolation level repeatable read read only")
            return read_tables(session, record)

    def swap(self, live: str, restored: str, kept: str) -> float:
        """Rename two databases in one transaction: nobody ever sees half of it, even if we are killed.

        A rename waits, holding the database's lock, until its last session is gone. Whoever connects meanwhile waits for that lock, and
        then learns that the name is another database's now.
        """
        with self._maintenance() as acting, self._maintenance() as ending:
            _check_names(acting, self.where, live, restored, kept)
            _end_sessions(ending, restored)
            # What belongs to the database itself stays with its name.
            statements = clearing_statements(restored, _properties(acting, restored))
            statements += property_statements(restored, _properties(acting, live))
            acting.query("begin")
            for statement in statements:
                _give_property(acting, statement, live, restored)
            begun = time.monotonic()
            _rename(acting, ending, live, kept)
            _rename(acting, ending, restored, live)
            acting.query("commit", RENAME_TIMEOUT)
            return time.monotonic() - begun

    def drop(self, database: str) -> None:
        """Remove a database that a restore or a verification made: its comment says so."""
        with self._maintenance() as session:
            found = session.records(
                "select coalesce(shobj_description(oid, 'pg_database'), '') as comment from pg_database"
                f" where datname = {literal(database)}"
            )
            if not found:
                return
            if not found[0]["comment"].startswith(OURS):
                raise DatabaseError(f"The database {database} is not dropped: its comment does not say that it is a half or a scratch one.")
            session.query(f"drop database if exists {identifier(database)} with (force)")

    def _selection(self, manifest: Mapping[str, Any], tables: Sequence[str], existing: Sequence[Mapping[str, str]]) -> list[MemoryFile]:
        """Return the program that chooses tables from a dump, and what it is to choose."""
        there: dict[str, list[str]] = {}
        for row in existing:
            there.setdefault(row["kind"], []).append(row["name"])
        known = [f"{each['schema']} {each['name']}" for each in manifest.get("tables") or ()]
        plan = {"tables": contents_names(manifest, tables), "known": known, "existing": there}
        # A module that Ansible sent lies in an archive, of which no other program can run a part.
        program = inspect.getsource(_postgresql_selection)
        selection = [MemoryFile(content, _existing_user(self.login.system_user)) for content in (program, json.dumps(plan))]
        # They are needed for as long as the stages are.
        self._selections += selection
        return selection

    def _client_for(self, server: int) -> int:
        """Return the client that messages speak of: the one that would dump, or the one that is too old for that."""
        try:
            return self.clients.dumping(server)
        except DatabaseError:
            return self.clients.newest

    def _start(self, database: str, lock_timeout: float) -> PostgreSQLSession:
        """Begin a session; whether the server lets us in, its first statement tells."""
        argv = [
            self.clients.program("psql", self.clients.newest),
            *("--no-psqlrc", "--no-password", "--quiet", "--no-align", "--tuples-only"),
            *("--field-separator", "\x1f", "--record-separator-zero"),
            f"--dbname={conninfo(database)}",
        ]
        base = self.base
        base["environment"] = {**base["environment"], "PGCLIENTENCODING": "UTF8"}
        session = PostgreSQLSession(Stage(argv, **base), f"{self.where}, database {database}")
        try:
            session.query(settings_statement(lock_timeout), CONNECT_TIMEOUT * 2)
        except BaseException:
            session.close()
            raise
        return session

    def _session(self, database: str, lock_timeout: float = 30) -> PostgreSQLSession:
        """Begin a session with a database. MissingDatabaseError when it is not there."""
        try:
            return self._start(database, lock_timeout)
        except DatabaseError as error:
            try:
                there = self.databases()
            except DatabaseError:
                raise error from None
            if database in there:
                raise
            raise MissingDatabaseError(
                f"{self.where} has no database {database}. Its databases: {joined(sorted(there)) or 'none'}."
            ) from error

    def _maintenance(self) -> PostgreSQLSession:
        """Begin a session with a database that is nobody's."""
        try:
            return self._start(MAINTENANCE[0], 30)
        except DatabaseError as error:
            try:
                return self._start(MAINTENANCE[1], 30)
            except DatabaseError:
                raise error from None

    def _take_lock(self, session: PostgreSQLSession, database: str) -> None:
        """Take the database's lock, which ends with the session."""
        if session.value(f"pg_try_advisory_lock(hashtext({literal(LOCK_SPACE)}), hashtext(current_database()))"):
            return
        holders = session.records(_HOLDER)
        if not holders:
            raise DatabaseLockedError(f"Another run worked on the backup of {database} until now; start this one again.")
        holder = holders[0]
        since = f", since {holder['since']}" if holder["since"] else ""
        raise DatabaseLockedError(
            f"Another run works on the backup of {database}: {holder['application'] or 'a session without a name'} "
            f"(process {holder['pid']} of the server, from {holder['address'] or 'the server itself'}{since}). Wait for it, or end it with "
            f"SELECT pg_terminate_backend({holder['pid']}).",
            holder=holder,
        )


def create_statement(database: str, described: Mapping[str, Any], server: int) -> str:
    """Return what creates an empty database like one that was described, as far as the server's version knows how."""
    provider = described.get("locale_provider") or "libc"
    options = []
    if described.get("encoding"):
        options.append(f"encoding {literal(described['encoding'])}")
    if server >= 15 and described.get("collation"):
        options.append(f"locale_provider {identifier(provider)}")
    if described.get("collation"):
        options.append(f"lc_collate {literal(described['collation'])}")
        options.append(f"lc_ctype {literal(described.get('ctype') or described['collation'])}")
    if provider != "libc" and described.get("locale"):
        options.append(f"{provider}_locale {literal(described['locale'])}")
    if provider == "icu" and described.get("icu_rules"):
        options.append(f"icu_rules {literal(described['icu_rules'])}")
    return " ".join([f"create database {identifier(database)} template template0", *options])


def contents_names(manifest: Mapping[str, Any], tables: Sequence[str]) -> list[str]:
    """Return tables, which are named with or without their schema, as a dump's contents name them."""
    known = [(each["schema"], each["name"]) for each in manifest.get("tables") or ()]
    names = []
    for wanted in tables:
        found = [each for each in known if wanted == f"{each[0]}.{each[1]}"] or [each for each in known if wanted == each[1]]
        if len(found) != 1:
            why = "is in several schemas, so name it with its schema" if found else "is not in the backup"
            raise LmsError(f"tables has {wanted}, which {why}.")
        names.append(" ".join(found[0]))
    return names


def restore_stages(
    clients: Clients,
    base: Mapping[str, Any],
    server: int,
    database: str,
    dumped_with: int,
    *,
    owners: bool = True,
    selecting: Sequence[str] = (),
) -> list[Stage]:
    """Return the programs that restore a dump: pg_restore, and where it is too new for the server, what makes its words fit.

    selecting is the program before pg_restore that chooses tables, with its arguments.
    """
    major = clients.restoring(dumped_with, server)
    privileges = [] if owners else ["--no-owner", "--no-privileges"]
    argv = [*selecting, clients.program("pg_restore", major), "--exit-on-error", *privileges]
    unknown = [setting for since, setting in UNKNOWN_BEFORE.items() if server < since <= major]
    if not unknown:
        return [Stage([*argv, "--no-password", f"--dbname={conninfo(database)}"], **base)]
    # They stand in the first lines, long before any data.
    removed = [word for setting in unknown for word in ("--expression", f"1,60{{/^SET {setting} = /d}}")]
    psql = [
        clients.program("psql", major),
        *("--no-psqlrc", "--no-password", "--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null"),
        f"--dbname={conninfo(database)}",
    ]
    return [Stage([*argv, "--file=-"], **base), Stage(["sed", *removed]), Stage(psql, **base)]


def _existing_user(name: str) -> str:
    """Return the name of a user of this host."""
    if name:
        try:
            pwd.getpwnam(name)
        except KeyError as error:
            raise LmsError(f"This host has no user {name}, as whom the clients were to run (login_system_user).") from error
    return name


def _version(session: PostgreSQLSession) -> str:
    """Return the server's version, such as 17.11, without what a distribution adds."""
    return str(session.value("current_setting('server_version')")).split()[0]


def _roles(session: PostgreSQLSession) -> set[str]:
    return {row["name"] for row in session.records("select rolname as name from pg_roles")}


def _description(session: PostgreSQLSession, major: int) -> dict[str, Any]:
    """Return what makes up the current database, but for its content."""
    provider = "case d.datlocprovider when 'i' then 'icu' when 'b' then 'builtin' else 'libc' end" if major >= 15 else "'libc'"
    locale = "d.datlocale" if major >= 17 else "d.daticulocale" if major >= 15 else "null"
    rules = "d.daticurules" if major >= 16 else "null"
    return session.records(
        "select d.datname as name, pg_encoding_to_char(d.encoding) as encoding, d.datcollate as collation, d.datctype as ctype,"
        f" {provider} as locale_provider, {locale} as locale, {rules} as icu_rules, pg_database_size(d.oid) as size_bytes"
        " from pg_database d where d.datname = current_database()"
    )[0]


def _properties(session: PostgreSQLSession, database: str) -> dict[str, Any]:
    """Return what belongs to a database as such: its owner, who may use it, and what holds in it."""
    name = literal(database)
    found = session.records(
        f"select pg_get_userbyid(datdba) as owner, datconnlimit as connection_limit from pg_database where datname = {name}"
    )[0]
    privileges = session.records(
        "select case a.grantee when 0 then null else pg_get_userbyid(a.grantee) end as role, a.privilege_type as privilege,"
        " a.is_grantable as grantable from pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a"
        f" where d.datname = {name} order by 1, 2"
    )
    settings = session.records(
        "select case s.setrole when 0 then null else pg_get_userbyid(s.setrole) end as role, unnest(s.setconfig) as value"
        f" from pg_db_role_setting s join pg_database d on d.oid = s.setdatabase where d.datname = {name} order by 1, 2"
    )
    return {**found, "privileges": privileges, "settings": settings}


def _blocked(error: DatabaseError, lock: PostgreSQLSession, database: str, lock_timeout: float) -> DatabaseError:
    """Say who holds a table for himself, when that is why there is no snapshot."""
    if error.details.get("sqlstate") != "55P03":
        return error
    blockers = [f"{row['schema']}.{row['name']} by process {row['pid']} ({row['application']})" for row in lock.records(_BLOCKERS)]
    return DatabaseError(
        f"A table of {database} stayed locked for {lock_timeout:g} s, as migrations do: {joined(blockers) or 'it is free by now'}. Start "
        "again when it is free, or raise lock_timeout.",
        **error.details,
    )


def _comment_statement(database: str, comment: str) -> str:
    return f"comment on database {identifier(database)} is {literal(comment)}"


def _check_names(session: PostgreSQLSession, where: str, live: str, restored: str, kept: str) -> None:
    """Refuse a swap whose names are not as they have to be."""
    names = ", ".join(literal(name) for name in (live, restored, kept))
    there = {row["name"] for row in session.records(f"select datname as name from pg_database where datname in ({names})")}
    for name in (live, restored):
        if name not in there:
            raise MissingDatabaseError(f"{where} has no database {name}, so {live} and {restored} cannot change places.")
    if kept in there:
        raise DatabaseError(f"{where} has a database {kept} already, so {live} cannot be kept under that name.")


def _end_sessions(session: PostgreSQLSession, database: str) -> None:
    """End everybody's sessions with a database."""
    session.records(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        # Autovacuum, which has no user, gives way by itself.
        f" where datname = {literal(database)} and pid <> pg_backend_pid() and usesysid is not null"
    )


def _give_property(session: PostgreSQLSession, statement: str, live: str, restored: str) -> None:
    """Give the restored database what the live one has. Values may be secret, and stay out of the message."""
    try:
        session.query(statement, ANSWER_TIMEOUT)
    except DatabaseError as error:
        what = statement.partition(" TO ")[0]
        raise DatabaseError(
            f"Nothing was renamed, because {restored} would lack what {live} has ({what}): {error.message} Log in as a role that may set "
            "it, or take it from the live database first.",
            **error.details,
        ) from error


def _rename(acting: PostgreSQLSession, ending: PostgreSQLSession, old: str, new: str) -> None:
    """Rename a database, while its sessions are ended until none is left."""
    acting.send(f"alter database {identifier(old)} rename to {identifier(new)}")
    deadline = time.monotonic() + RENAME_TIMEOUT
    try:
        while not acting.answered(0.01) and time.monotonic() < deadline:
            _end_sessions(ending, old)
    except DatabaseError as error:
        raise DatabaseError(
            f"Sessions with the database {old} could not be ended, so it keeps its name: {error.message} "
            "GRANT pg_signal_backend lets the login end them.",
            **error.details,
        ) from error
    acting.receive(RENAME_TIMEOUT)
