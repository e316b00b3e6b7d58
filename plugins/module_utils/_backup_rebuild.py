# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A backup's database, built anew under another name and compared with the manifest, table by table.

What is built carries a mark in its comment, so that a later run knows what an interrupted one left, and never touches anything else.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import Backup, iso
from ansible_collections.bitflow.lms.plugins.module_utils._backup_reading import Reader, data_object
from ansible_collections.bitflow.lms.plugins.module_utils._controller import identity_of
from ansible_collections.bitflow.lms.plugins.module_utils._database import Engine, Server, Table
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import StageError

# How long a database that is being built is left alone where nobody can tell whether its run is alive: longer than any takes.
LIFETIMES = {"scratch": timedelta(days=1), "restoring": timedelta(days=7)}
# A new database is as large as the old one, or smaller; what the server writes beside it comes on top.
ROOM_MARGIN = 1.2

_MARK = re.compile(
    r"^bitflow\.lms (?P<purpose>scratch|restoring|restored) (?P<backup>[0-9TZ]+-[0-9a-f]{8})"
    r"(?: tables (?P<tables>[0-9a-f]{8}))?(?:; run (?P<run>[^;]*); until (?P<until>[0-9TZ:-]+))?$"
)
_MISSING_ROLE = re.compile(r'role "?[^"]+"? does not exist', re.IGNORECASE)
_FULL = re.compile(r"no space left|disk full|is full|could not extend", re.IGNORECASE)


@dataclass(frozen=True)
class Mark:
    """What the comment of a database says that we built."""

    # scratch: of a verification. restoring: on the way. restored: whole, and compared.
    purpose: str
    backup: str
    # The process that builds it; empty when none does.
    run: str = ""
    # When it is abandoned for certain (ISO 8601).
    until: str = ""
    # Which tables, where it is not all of them: see digest_of().
    tables: str = ""

    @property
    def text(self) -> str:
        """Return the comment."""
        tables = f" tables {self.tables}" if self.tables else ""
        return f"bitflow.lms {self.purpose} {self.backup}{tables}" + (f"; run {self.run}; until {self.until}" if self.until else "")

    @classmethod
    def read(cls, comment: str) -> Mark | None:
        """Return what a comment says; None when it is not one of ours."""
        match = _MARK.match(comment or "")
        return cls(**{key: value or "" for key, value in match.groupdict().items()}) if match else None

    def abandoned(self, now: datetime, dead: Callable[[str], bool]) -> bool:
        """Say whether the run that built it is dead, or its time over."""
        return self.purpose != "restored" and (dead(self.run) or iso(now) > self.until)


def mark_of(purpose: str, backup: Backup, now: datetime, *, tables: Sequence[str] = (), run: str | None = None) -> Mark:
    """Return the mark of what this process begins to build."""
    run = identity_of(os.getpid()) if run is None else run
    return Mark(purpose, backup.id, run, iso(now + LIFETIMES[purpose]), digest_of(tables))


def digest_of(tables: Sequence[str]) -> str:
    """Return what tells a choice of tables from others; nothing for all of them."""
    return hashlib.sha256("\n".join(sorted(tables)).encode()).hexdigest()[:8] if tables else ""


@dataclass(frozen=True)
class Rebuilt:
    """A database that was built from a backup, and what the comparison gave."""

    database: str
    # False when the counts of the manifest are approximate, or there are none.
    compared: bool
    mismatches: tuple[str, ...]
    tables: int
    rows: int
    seconds: float


def rebuild(
    engine: Engine,
    reader: Reader,
    database: str,
    mark: Mark,
    *,
    tables: Sequence[str] = (),
    owners: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Rebuilt:
    """Create a database, restore a backup into it, and compare. When that fails, nothing is left of it.

    CorruptObjectError when the backup is at fault; any other error is the server's or the repository's.
    """
    begun = clock()
    _create(engine, database, reader.backup.manifest, mark)
    try:
        fill(engine, reader, database, tables=tables, owners=owners)
        engine.finish_restore(database)
        return compare(engine, reader, database, tables=tables, seconds=lambda: clock() - begun)
    except BaseException:
        # The failure counts, not that its traces could not be removed: the mark lets the next run do that.
        with contextlib.suppress(LmsError):
            engine.drop(database)
        raise


def fill(engine: Engine, reader: Reader, database: str, *, tables: Sequence[str] = (), owners: bool = True) -> None:
    """Restore a backup into a database, and find out who is at fault when that fails."""
    backup, described = reader.backup, data_object(reader.backup)
    try:
        stages = engine.restore(database, backup.manifest, tables=tables, owners=owners)
        reader.run(described, stages, step="restore", partly=bool(tables))
    except StageError as error:
        # The bytes are those that were written. Whether they are a whole dump, only reading all of it tells.
        reader.decode(described)
        raise LmsError(
            f"Backup {backup.id} is sound, but the server did not take it into {database}: {error.message}.{_way_out(error)}",
            **error.details,
        ) from error


def compare(
    engine: Engine, reader: Reader, database: str, *, tables: Sequence[str] = (), seconds: Callable[[], float] = lambda: 0.0
) -> Rebuilt:
    """Compare the tables of a database with the manifest of the backup that it was built from."""
    manifest = reader.backup.manifest
    reader.progress.step(f"compare {database}")
    found = engine.tables(database, manifest.get("record") or "counts")
    mismatches = differences(manifest, found, tables)
    rows = sum(table.rows or 0 for table in found)
    return Rebuilt(database, comparable(manifest), tuple(mismatches), len(found), rows, round(seconds(), 3))


def comparable(manifest: Mapping[str, Any]) -> bool:
    """Say whether the manifest has exact counts of the dump's own moment."""
    return (manifest.get("snapshot") or {}).get("consistency") == "exact" and manifest.get("record") != "none"


def differences(manifest: Mapping[str, Any], found: Sequence[Table], tables: Sequence[str] = ()) -> list[str]:
    """Return, as sentences, in what a restored database differs from the manifest. Approximate counts are not compared, names are."""
    exact = comparable(manifest)
    excluded = manifest.get("excluded_data") or []
    expected = {_full_name(manifest, table["schema"], table["name"]): table for table in manifest.get("tables", [])}
    if tables:
        expected = {name: table for name, table in expected.items() if name in tables}
    there = {_full_name(manifest, table.schema, table.name): table for table in found}
    sentences = []
    for name in sorted(expected.keys() | there.keys()):
        if name not in there:
            rows = expected[name].get("rows")
            counted = f" with {rows} rows" if rows is not None else ""
            sentences.append(f"Table {name} is missing; the manifest has it{counted}.")
        elif name not in expected:
            sentences.append(f"Table {name} is in the restored database ({_rows(there[name].rows)}), but not in the manifest.")
        elif exact and not _excluded(expected[name], excluded):
            sentences += _difference(name, expected[name], there[name])
    return sentences


def _difference(name: str, expected: Mapping[str, Any], found: Table) -> list[str]:
    """Compare one table that both have."""
    rows, checksum = expected.get("rows"), expected.get("checksum")
    if rows is not None and found.rows is not None and rows != found.rows:
        return [f"Table {name} has {found.rows} rows, the manifest says {rows}."]
    same_way = expected.get("checksum_algorithm") == found.checksum_algorithm
    if checksum is not None and found.checksum is not None and same_way and checksum != found.checksum:
        return [f"Table {name} has {_rows(rows)} as the manifest says, but the checksum {found.checksum} instead of {checksum}."]
    return []


def _rows(rows: int | None) -> str:
    return "rows not counted" if rows is None else f"{rows} rows"


def _excluded(table: Mapping[str, Any], patterns: Sequence[str]) -> bool:
    """Say whether a table was dumped without its rows."""
    names = (table["name"], f"{table['schema']}.{table['name']}")
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def table_name(manifest: Mapping[str, Any], table: Table) -> str:
    """Return a table's name as the choice of tables has it."""
    return _full_name(manifest, table.schema, table.name)


def _full_name(manifest: Mapping[str, Any], schema: str, name: str) -> str:
    """Return a table's name; only PostgreSQL has schemas that a restore under another name keeps."""
    return f"{schema}.{name}" if family(manifest) == "postgresql" else name


def family(manifest: Mapping[str, Any]) -> str:
    """Return whose dump it is: postgresql or mysql, as the option engine calls them."""
    return "postgresql" if (manifest.get("database") or {}).get("engine") == "postgresql" else "mysql"


def choose_tables(manifest: Mapping[str, Any], wanted: Sequence[str]) -> list[str]:
    """Return the full names of tables that a user named, with or without their schema."""
    known = {_full_name(manifest, table["schema"], table["name"]): table["name"] for table in manifest.get("tables", [])}
    chosen = []
    for name in wanted:
        matching = [name] if name in known else sorted(full for full, short in known.items() if short == name)
        if not matching:
            raise LmsError(f"tables has {name}, which is not in the backup. Its tables: {', '.join(sorted(known)) or 'none'}.")
        if len(matching) > 1:
            raise LmsError(f"tables has {name}, which is in several schemas. Name one of {', '.join(matching)}.")
        chosen += [full for full in matching if full not in chosen]
    return chosen


def obstacles(backup: Backup, keys: Mapping[str, Any], server: Server | None) -> list[str]:
    """Return, as sentences, why a backup cannot be read here, or not be restored on the server, where one is given."""
    manifest = backup.manifest
    methods = {(described.get("encryption") or {}).get("method") for described in manifest.get("objects", [])}
    found = []
    if "age" in methods and not (keys.get("identity") or keys.get("identity_file")):
        found.append(f"Backup {backup.id} is encrypted with age; give identity or identity_file.")
    if server is None:
        return found
    database = manifest.get("database") or {}
    theirs, ours = str(database.get("engine")), server.flavour
    if (theirs == "postgresql") != (ours == "postgresql"):
        return [*found, f"Backup {backup.id} is of a {theirs} server, this one is {ours}; choose engine and login_host for it."]
    version = str(database.get("server_version") or "")
    # MariaDB and MySQL count their versions apart.
    if theirs == ours and _release(ours, server.version) < _release(ours, version):
        found.append(
            f"Backup {backup.id} is of {theirs} {version}, this server is {server.version}: an older server does not take it. Use one that "
            "is as new."
        )
    return found


def _release(flavour: str, version: str) -> tuple[int, ...]:
    """Return the part of a version that decides which dumps a server takes: PostgreSQL has one number, the others two."""
    numbers = [int(number) for number in re.findall(r"\d+", version)]
    return tuple(numbers[: 1 if flavour == "postgresql" else 2])


@dataclass(frozen=True)
class Room:
    """Whether a database fits on the server."""

    needed: int | None
    # Bytes. None when it is not known.
    free: int | None
    # Why it is not known.
    unknown: str = ""

    @property
    def obstacle(self) -> str:
        """Say that there is too little, if so."""
        if self.needed is None or self.free is None or self.free >= self.needed:
            return ""
        return f"The server has {self.free} bytes free, and the restored database may need {self.needed}. Make room there."


def room_for(engine: Engine, manifest: Mapping[str, Any], usage: Callable[[str], Any] = shutil.disk_usage) -> Room:
    """Compare the size of the database that was backed up with what the server has free, where this host can tell."""
    size = (manifest.get("database") or {}).get("size_bytes") or manifest.get("raw_size")
    needed = round(size * ROOM_MARGIN) if size else None
    directory = engine.data_directory()
    if needed is None:
        return Room(None, None, "the manifest does not say how large the database was")
    if not directory:
        return Room(needed, None, "the server's data is not on this host, or it does not say where")
    try:
        return Room(needed, usage(directory).free)
    except OSError as error:
        return Room(needed, None, f"{directory} cannot be looked at: {error.strerror}")


def _create(engine: Engine, database: str, manifest: Mapping[str, Any], mark: Mark) -> None:
    """Create a database; of one that was half made, nothing is left."""
    try:
        engine.create(database, manifest, mark.text)
    except BaseException:
        # Only by its mark is it certainly ours: another one may have got the name first.
        with contextlib.suppress(LmsError):
            if engine.databases(database).get(database) == mark.text:
                engine.drop(database)
        raise


def _way_out(error: StageError) -> str:
    """Say what helps against what the server said."""
    said = f"{error.message}\n{error.details.get('stderr', '')}"
    if _MISSING_ROLE.search(said):
        return " Roles that the backup knows are not on this server: set globals to missing, or owners to false."
    if _FULL.search(said):
        return " Make room on the server."
    return ""
