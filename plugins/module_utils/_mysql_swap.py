# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Putting one database of MariaDB or MySQL in another's place.

No server renames a database. One RENAME TABLE moves all tables of both at once, or none; it refuses those with triggers, and leaves
routines, events and views where they are. So the triggers are dropped before, and everything that is no table is made anew from its
definition afterwards. The definitions are kept in a table of the database that is kept, until all is done: an interrupted swap is
undone from it when the tables were not moved yet, and completed otherwise.
"""

# ruff: noqa: S608 - every name and value in a statement is quoted by identifier() or literal().

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ansible_collections.bitflow.lms.plugins.module_utils._database import DatabaseError, Server
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._mysql_client import (
    LOCK_TIMED_OUT,
    Client,
    Session,
    StatementError,
    identifier,
    literal,
)
from ansible_collections.bitflow.lms.plugins.module_utils._mysql_dump_filter import filtered
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import run_pipeline

OURS = "__bitflow_"
JOURNAL = f"{OURS}swap"
# How long the tables' users are waited for (seconds). Whoever comes meanwhile waits too.
LOCK_TIMEOUT = 10
DEFINITIONS = ("live_triggers", "restored_triggers", "live_programs", "restored_programs")
_PROCEDURE_PRIVILEGES = {"Execute": "EXECUTE", "Alter Routine": "ALTER ROUTINE"}


@dataclass(frozen=True)
class UnfinishedSwap:
    """A swap that was interrupted, as its journal says."""

    live: str
    restored: str
    kept: str


def replica_side_disabled(server: Server) -> str:
    """Return how SQL says that an event is there and does not run, in the way that is told from events that somebody disabled."""
    numbers = [int(number) for number in re.findall(r"\d+", server.version)[:2]]
    return "DISABLE ON REPLICA" if server.flavour == "mysql" and numbers >= [8, 2] else "DISABLE ON SLAVE"


def enable_events(session: Session, database: str) -> None:
    """Let the events run that a restore or a swap kept from it."""
    for name, definer in session.query(
        "SELECT event_name, definer FROM information_schema.events WHERE status LIKE '%SIDE\\_DISABLED' "
        f"AND event_schema = {literal(database)}"
    ):
        # Without its definer it would become an event of ours.
        user, _at, host = definer.rpartition("@")
        whose = f"{identifier(user)}@{identifier(host)}"
        session.query(f"ALTER DEFINER = {whose} EVENT {identifier(database)}.{identifier(name)} ENABLE")


def tables_of(session: Session, database: str) -> list[str]:
    """Return everything that RENAME TABLE moves: tables, also ours, and MariaDB's sequences."""
    return session.column(
        "SELECT table_name FROM information_schema.tables WHERE table_type IN ('BASE TABLE', 'SYSTEM VERSIONED', 'SEQUENCE') "
        f"AND table_schema = {literal(database)} ORDER BY table_name"
    )


def unfinished_swaps(session: Session, live: str) -> list[UnfinishedSwap]:
    """Return the interrupted swaps of a database."""
    found = []
    for kept in session.column(f"SELECT table_schema FROM information_schema.tables WHERE table_name = {literal(JOURNAL)}"):
        journal = f"{identifier(kept)}.{identifier(JOURNAL)}"
        for restored in session.column(f"SELECT restored FROM {journal} WHERE live = {literal(live)}"):
            found.append(UnfinishedSwap(live, restored, kept))
    return found


def rename_statement(moves: Sequence[tuple[str, str, str]]) -> str:
    """Return the SQL that moves tables (from a database, by name, into another one), all of them or none."""
    parts = [f"{identifier(old)}.{identifier(table)} TO {identifier(new)}.{identifier(table)}" for old, table, new in moves]
    return f"RENAME TABLE {', '.join(parts)}"


def settle(client: Client, server: Server, session: Session, live: str) -> list[UnfinishedSwap]:
    """Complete or undo the interrupted swaps of a database. Return those that were completed."""
    completed = []
    for unfinished in unfinished_swaps(session, live):
        swap = Swap(client, server, session, unfinished.live, unfinished.restored, unfinished.kept)
        swap.read_journal()
        if any(not name.startswith(OURS) for name in tables_of(session, unfinished.restored)):
            swap.undo()
        else:
            swap.complete()
            completed.append(unfinished)
    return completed


class Swap:
    """One swap of a live database with a restored one."""

    def __init__(self, client: Client, server: Server, session: Session, live: str, restored: str, kept: str) -> None:
        self._client = client
        self._server = server
        self._session = session
        self.live, self.restored, self.kept = live, restored, kept
        self._definitions: dict[str, bytes] = {}
        self._grants: list[str] = []

    def run(self) -> float:
        """Swap. Return for how long something was away (seconds): the tables never, but what belongs to them."""
        self._check()
        for which, database in (("live", self.live), ("restored", self.restored)):
            self._definitions[f"{which}_triggers"] = self._triggers_of(database)
            self._definitions[f"{which}_programs"] = self._programs_of(database)
        self._grants = self._procedure_grants()
        self._write_journal()
        begun = time.monotonic()
        try:
            self._session.query(f"SET SESSION lock_wait_timeout = {LOCK_TIMEOUT}")
            self._move()
        except DatabaseError as error:
            self._undo_after(error)
        self._fill_live()
        away = time.monotonic() - begun
        self._fill_kept()
        return away

    def complete(self) -> None:
        """Do what an interrupted swap has left to do."""
        self._fill_live()
        self._fill_kept()

    def undo(self) -> None:
        """Give the triggers back, where the tables were not moved."""
        self._replay(self.live, "live_triggers")
        self._replay(self.restored, "restored_triggers")
        self._session.query(f"DROP DATABASE {identifier(self.kept)}")

    def read_journal(self) -> None:
        """Read what an interrupted swap had noted."""
        columns = ", ".join(f"HEX({name})" for name in DEFINITIONS)
        row = self._session.query(f"SELECT {columns}, grants FROM {identifier(self.kept)}.{identifier(JOURNAL)}")[0]
        self._definitions = {name: bytes.fromhex(value) for name, value in zip(DEFINITIONS, row)}
        self._grants = json.loads(row[-1])

    def _check(self) -> None:
        """Refuse what cannot be swapped."""
        if not self._movable():
            raise DatabaseError(f"The database {self.restored} has no tables, and does not take the place of {self.live}.")
        if self._session.column(f"SELECT 1 FROM information_schema.schemata WHERE schema_name = {literal(self.kept)}"):
            raise DatabaseError(f"There is a database {self.kept} already, under which {self.live} was to be kept; choose another name.")
        foreign = self._session.query(
            "SELECT DISTINCT table_schema, table_name FROM information_schema.key_column_usage "
            f"WHERE referenced_table_schema = {literal(self.live)} AND table_schema <> {literal(self.live)}"
        )
        if foreign:
            names = ", ".join(".".join(row) for row in foreign)
            raise DatabaseError(
                f"Foreign keys of {names} refer to {self.live}, and would go on to refer to {self.kept}: drop them, and create them anew "
                "after the swap."
            )

    def _movable(self) -> list[str]:
        """Return the tables of the restored database that move; its comment does not."""
        return [name for name in tables_of(self._session, self.restored) if not name.startswith(OURS)]

    def _triggers_of(self, database: str) -> bytes:
        """Return the triggers of a database as SQL."""
        if not self._names("trigger_name", "triggers", "trigger_schema", database):
            return b""
        return self._dumped("--no-create-info", "--triggers", "--add-drop-trigger", "--skip-routines", "--skip-events", database)

    def _programs_of(self, database: str) -> bytes:
        """Return routines, events and views of a database as SQL."""
        programs = b""
        if self._routines(database) or self._events(database):
            programs = self._dumped("--no-create-info", "--skip-triggers", "--routines", "--events", database)
        views = self._views(database)
        if views:
            # After the routines, which they may call.
            programs += self._dumped("--skip-triggers", "--skip-routines", "--skip-events", database, *views)
        return programs

    def _dumped(self, *arguments: str) -> bytes:
        content = bytearray()
        run_pipeline([self._client.dump("--no-data", "--skip-lock-tables", *arguments)], sink=content.extend)
        return bytes(content)

    def _write_journal(self) -> None:
        """Create the database that keeps the former tables, and note in it what is needed to complete the swap, or to undo it."""
        self._session.query(f"CREATE DATABASE {identifier(self.kept)}{_encoding_clause(self._schema(self.live))}")
        journal = f"{identifier(self.kept)}.{identifier(JOURNAL)}"
        columns = ", ".join(f"{name} LONGBLOB NOT NULL" for name in DEFINITIONS)
        values = [literal(self.live), literal(self.restored), *(f"X'{self._definitions[name].hex()}'" for name in DEFINITIONS)]
        try:
            self._session.query(
                f"CREATE TABLE {journal} (live VARCHAR(64) NOT NULL, restored VARCHAR(64) NOT NULL, {columns}, grants LONGTEXT NOT NULL) "
                "CHARACTER SET utf8mb4"
            )
            self._session.query(f"INSERT INTO {journal} VALUES ({', '.join(values)}, {literal(json.dumps(self._grants))})")
        except BaseException:
            with contextlib.suppress(DatabaseError):
                self._session.query(f"DROP DATABASE {identifier(self.kept)}")
            raise

    def _move(self) -> None:
        """Move the tables."""
        self._drop_triggers(self.restored)
        if self._definitions["live_triggers"]:
            # Whoever writes waits: no row is to be written without its trigger, should the tables not be had.
            locks = [f"{identifier(self.live)}.{identifier(name)} WRITE" for name in tables_of(self._session, self.live)]
            self._session.query(f"LOCK TABLES {', '.join(locks)}")
            try:
                self._drop_triggers(self.live)
            finally:
                self._session.query("UNLOCK TABLES")
        moves = [(self.live, name, self.kept) for name in tables_of(self._session, self.live)]
        moves += [(self.restored, name, self.live) for name in self._movable()]
        self._session.query(rename_statement(moves))

    def _drop_triggers(self, database: str) -> None:
        for name in self._names("trigger_name", "triggers", "trigger_schema", database):
            self._session.query(f"DROP TRIGGER {identifier(database)}.{identifier(name)}")

    def _undo_after(self, error: DatabaseError) -> None:
        """Undo what was done before the tables could not be moved, and raise what happened."""
        why = error.message
        if isinstance(error, StatementError) and error.code == LOCK_TIMED_OUT:
            why = f"a query or transaction held its tables for longer than {LOCK_TIMEOUT} s. End what uses the database, and repeat."
        try:
            self.undo()
        except LmsError as second:
            raise DatabaseError(
                f"{self.live} could not be replaced ({why}), and its triggers could not be given back: {second.message} Their definitions "
                f"are in {self.kept}.{JOURNAL}; repeating the restore gives them back."
            ) from error
        raise DatabaseError(f"The tables of {self.live} could not be moved: {why}") from error

    def _fill_live(self) -> None:
        """Give the tables that are live now their triggers, routines, events and views, and take away what only the former ones had."""
        try:
            self._replay(self.live, "restored_triggers")
            self._replay(self.live, "restored_programs")
            for kind, names in (("VIEW", self._views), ("EVENT", self._events)):
                for name in sorted(set(names(self.live)) - set(names(self.restored))):
                    self._session.query(f"DROP {kind} IF EXISTS {identifier(self.live)}.{identifier(name)}")
            for kind, name in sorted(set(self._routines(self.live)) - set(self._routines(self.restored))):
                self._session.query(f"DROP {kind} IF EXISTS {identifier(self.live)}.{identifier(name)}")
            self._set_default_encoding()
            enable_events(self._session, self.live)
            self._regrant()
        except LmsError as error:
            raise DatabaseError(
                f"The tables of {self.live} are those of the backup now, and the former ones in {self.kept}, but not every trigger, view, "
                f"routine and event could be made: {error.message} Repeating the restore completes it; the definitions are in "
                f"{self.kept}.{JOURNAL}."
            ) from error

    def _set_default_encoding(self) -> None:
        """Give the live database the restored one's encoding, which new tables take."""
        schema = self._schema(self.restored)
        if schema and schema != self._schema(self.live):
            self._session.query(f"ALTER DATABASE {identifier(self.live)}{_encoding_clause(schema)}")

    def _fill_kept(self) -> None:
        """Give the former tables what belonged to them, with events that do not run, and remove what is left of the swap."""
        try:
            self._replay(self.kept, "live_triggers")
            self._replay(self.kept, "live_programs")
        except LmsError as error:
            raise DatabaseError(
                f"{self.live} is what was restored, and the former tables are in {self.kept}, but not all that belonged to them could be "
                f"made there: {error.message} The definitions are in {self.kept}.{JOURNAL}; drop that table when they are not needed."
            ) from error
        self._session.query(f"DROP DATABASE IF EXISTS {identifier(self.restored)}")
        self._session.query(f"DROP TABLE {identifier(self.kept)}.{identifier(JOURNAL)}")

    def _replay(self, database: str, which: str) -> None:
        """Run definitions in a database. Those that are there already are replaced."""
        definitions = self._definitions[which]
        if not definitions:
            return
        events_become = replica_side_disabled(self._server) if database == self.kept else ""
        lines: Iterator[bytes] = filtered(definitions.splitlines(keepends=True), events_become=events_become)
        run_pipeline([self._client.running_sql(database, f"SET SESSION lock_wait_timeout = {LOCK_TIMEOUT}")], source=lines)

    def _procedure_grants(self) -> list[str]:
        """Return, as SQL, who may use single routines of the live database: the server forgets that when they are made anew."""
        try:
            rows = self._session.query(
                "SELECT user, host, routine_name, routine_type, proc_priv FROM mysql.procs_priv "
                f"WHERE routine_type IN ('PROCEDURE', 'FUNCTION') AND db = {literal(self.live)}"
            )
        except StatementError:
            return []
        statements = []
        for user, host, name, kind, privileges in rows:
            names = [_PROCEDURE_PRIVILEGES[each] for each in privileges.split(",") if each in _PROCEDURE_PRIVILEGES]
            option = " WITH GRANT OPTION" if "Grant" in privileges.split(",") else ""
            if names:
                routine = f"{kind} {identifier(self.live)}.{identifier(name)}"
                statements.append(f"GRANT {', '.join(names)} ON {routine} TO {identifier(user)}@{identifier(host)}{option}")
        return statements

    def _regrant(self) -> None:
        for statement in self._grants:
            # Of a routine that the backup does not have.
            with contextlib.suppress(StatementError):
                self._session.query(statement)

    def _schema(self, database: str) -> tuple[str, str] | None:
        rows = self._session.query(
            "SELECT default_character_set_name, default_collation_name FROM information_schema.schemata "
            f"WHERE schema_name = {literal(database)}"
        )
        return (rows[0][0], rows[0][1]) if rows else None

    def _views(self, database: str) -> list[str]:
        return self._names("table_name", "views", "table_schema", database)

    def _events(self, database: str) -> list[str]:
        return self._names("event_name", "events", "event_schema", database)

    def _routines(self, database: str) -> list[tuple[str, str]]:
        rows = self._session.query(
            f"SELECT routine_type, routine_name FROM information_schema.routines WHERE routine_schema = {literal(database)}"
        )
        return [(row[0], row[1]) for row in rows]

    def _names(self, column: str, view: str, schema: str, database: str) -> list[str]:
        return self._session.column(
            f"SELECT {column} FROM information_schema.{view} WHERE {schema} = {literal(database)} ORDER BY {column}"
        )


def _encoding_clause(schema: tuple[str, str] | None) -> str:
    return f" CHARACTER SET {literal(schema[0])} COLLATE {literal(schema[1])}" if schema else ""
