# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a backup back: always beside the live database, compared with the manifest, and only then in its place, if that is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import (
    Backup,
    check_name,
    now_utc,
    read_catalogue,
    select,
    stamp,
)
from ansible_collections.bitflow.lms.plugins.module_utils._backup_lock import only_one
from ansible_collections.bitflow.lms.plugins.module_utils._backup_reading import Reader, data_object, globals_object
from ansible_collections.bitflow.lms.plugins.module_utils._backup_rebuild import (
    Mark,
    Rebuilt,
    choose_tables,
    compare,
    digest_of,
    family,
    fill,
    mark_of,
    obstacles,
    rebuild,
    room_for,
    table_name,
)
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Store
from ansible_collections.bitflow.lms.plugins.module_utils._controller import is_dead
from ansible_collections.bitflow.lms.plugins.module_utils._database import Engine
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._progress import Progress

MODES = ("new", "swap", "tables")
# The longest name that every server takes (PostgreSQL cuts what is longer, and says nothing).
LONGEST_NAME = 63
# What a mode puts between the live database's name and the id.
BESIDE = {"new": "__r_", "swap": "__r_", "tables": "__t_"}


@dataclass(frozen=True)
class Settings:
    """What is asked for, in the words of the module's options."""

    environment: str
    name: str
    backup: str
    # The database that is built (mode new), or that serves (swap, tables).
    database: str
    mode: str = "new"
    tables: tuple[str, ...] = ()
    globals: str = "none"
    owners: bool = True
    confirm: str = ""
    safety_backup: bool = True
    accept_suspicious: bool = False
    again: bool = False

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Settings:
        """Take them from the module's options, and refuse what contradicts itself."""
        for option in ("environment", "name"):
            check_name(option, options[option])
        mode, tables, confirm = options["mode"], tuple(options["tables"] or ()), options["confirm"] or ""
        if (mode == "tables") != bool(tables):
            raise LmsError(f"mode is {mode} and tables has {len(tables)} items; tables are named with mode tables, and only then.")
        database = options["database"] or ("" if mode == "new" else options["name"])
        wrong = (mode == "swap" and confirm != database) or (mode == "tables" and confirm not in ("", database))
        if wrong:
            raise LmsError(
                f"confirm is {confirm!r}, but mode {mode} changes what the database {database} serves. Set confirm to {database} if "
                "that is meant."
            )
        chosen = ("environment", "name", "backup", "globals", "owners", "accept_suspicious", "again")
        safety = options["safety_backup"] is not False
        return cls(
            **{key: options[key] for key in chosen},
            database=database,
            mode=mode,
            tables=tables,
            confirm=confirm,
            safety_backup=safety and bool(confirm) and mode != "new",
        )


@dataclass(frozen=True)
class Plan:
    """What is to be done, decided from what the repository and the server hold."""

    backup: Backup
    # The database that is built, or that an earlier run built completely.
    beside: str
    # Full names of the tables, where it is not all of them.
    tables: tuple[str, ...] = ()
    reuse: bool = False
    # Nothing is left to do.
    done: bool = False
    # What the live database is kept as (mode swap).
    kept: str = ""
    # Databases that restores which died left.
    abandoned: tuple[str, ...] = ()


def decide(
    settings: Settings, backup: Backup, databases: Mapping[str, str], now: datetime, dead: Callable[[str], bool] = lambda _run: False
) -> Plan:
    """Decide what is to be done; LmsError when it must not be. databases are those of the server, with their comments."""
    _refuse_backup(settings, backup)
    live = settings.database or settings.name
    beside = settings.database if settings.mode == "new" and settings.database else beside_name(live, settings.mode, backup.id)
    tables = tuple(choose_tables(backup.manifest, settings.tables))
    marks = {name: Mark.read(comment) for name, comment in databases.items()}
    abandoned = tuple(sorted(name for name, mark in marks.items() if mark and mark.purpose == "restoring" and mark.abandoned(now, dead)))
    if settings.mode != "new" and live not in databases:
        others = sorted(name for name in databases if name.startswith(f"{live}__"))
        beside_it = f" What is there: {', '.join(others)}." if others else ""
        raise LmsError(
            f"The server has no database {live}, so mode {settings.mode} has nothing to change.{beside_it} Use mode new with "
            f"database {live}."
        )
    kept = f"{live}__before_{stamp(now)}" if settings.mode == "swap" else ""
    for name in (beside, kept):
        _check_length(name)
    serving = marks.get(live)
    if settings.mode == "swap" and serving and (serving.purpose, serving.backup) == ("restored", backup.id) and not settings.again:
        return Plan(backup, live, done=True, abandoned=abandoned)
    if beside not in databases or beside in abandoned:
        return Plan(backup, beside, tables, kept=kept, abandoned=abandoned)
    _refuse_existing(beside, marks[beside], backup, tables)
    done = settings.mode == "new" or (settings.mode == "tables" and not settings.confirm)
    return Plan(backup, beside, tables, reuse=True, done=done, kept=kept, abandoned=abandoned)


def beside_name(live: str, mode: str, identity: str) -> str:
    """Return the name of what is built beside a database."""
    return f"{live}{BESIDE[mode]}{identity}"


def _check_length(name: str) -> None:
    if len(name.encode()) > LONGEST_NAME:
        raise LmsError(
            f"{name} would have {len(name.encode())} bytes, and a database's name has {LONGEST_NAME} at most. Restore with mode new and a "
            "shorter name as database."
        )


def _refuse_backup(settings: Settings, backup: Backup) -> None:
    """Refuse a backup that may not be relied on."""
    if backup.state == "corrupt":
        fault = backup.summary()["fault"]
        raise LmsError(f"Backup {backup.id} is corrupt and is not restored: {fault} Choose another one, such as latest_verified.")
    if backup.state == "suspicious" and not settings.accept_suspicious:
        reason = backup.manifest.get("suspicious_reason") or "it is much smaller than the one before."
        raise LmsError(
            f"Backup {backup.id} is suspicious: {reason} Choose an earlier one, or set accept_suspicious if this is what is wanted."
        )


def _refuse_existing(name: str, mark: Mark | None, backup: Backup, tables: Sequence[str]) -> None:
    """Refuse a database that is there already, unless it is what would be built."""
    if mark is None or mark.purpose == "scratch":
        raise LmsError(
            f"The database {name} exists, and no restore made it. It is not touched: choose another name as database, or drop it."
        )
    if mark.purpose == "restoring":
        raise LmsError(
            f"The database {name} is being restored from backup {mark.backup} by another run, or by one whose end cannot be seen from this "
            f"host. Wait for it, or drop {name} if it is dead."
        )
    if mark.backup != backup.id:
        raise LmsError(
            f"The database {name} was restored from backup {mark.backup}, not from {backup.id}. Choose another name, or drop it."
        )
    if mark.tables != digest_of(tables):
        raise LmsError(f"The database {name} holds other tables of backup {backup.id} than those asked for. Drop it first.")


@dataclass
class Outcome:
    """What a run came to; the module's result."""

    backup: dict[str, Any]
    mode: str
    changed: bool = False
    # Where the restored data is, and where the former database.
    database: str = ""
    previous: str | None = None
    compared: bool = False
    tables: int | None = None
    rows: int | None = None
    rto_seconds: float | None = None
    away_seconds: float | None = None
    safety_backup: str | None = None
    roles_created: list[str] = field(default_factory=list)
    # Mode tables: what was copied into the live database, and what was there and stays.
    copied: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    swept: list[str] = field(default_factory=list)
    plan: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    diff: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Surroundings:
    """What a run does not decide itself: the time, who is dead, and how a safety backup is made."""

    # Makes a backup of a database, encrypted as the one that is restored (method, recipients), and returns its id.
    make_backup: Callable[[str, Mapping[str, Any]], str]
    now: Callable[[], datetime] = now_utc
    clock: Callable[[], float] = time.monotonic
    dead: Callable[[str], bool] = is_dead


def run(
    settings: Settings,
    store: Store,
    engine: Engine,
    keys: Mapping[str, Any],
    around: Surroundings,
    *,
    check_mode: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Restore the backup that is meant; in check mode make every check, and say what would be done."""
    live = settings.database or settings.name
    if check_mode:
        return Restorer(settings, store, engine, keys, around, progress or Progress()).run(check_mode=True)
    with only_one(f"the restore of {live} on {engine.login.host or engine.login.unix_socket or 'this host'}"):
        return Restorer(settings, store, engine, keys, around, progress or Progress()).run(check_mode=False)


class Restorer:
    """Brings one backup back."""

    def __init__(
        self, settings: Settings, store: Store, engine: Engine, keys: Mapping[str, Any], around: Surroundings, progress: Progress
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.around = around
        self.live = settings.database or settings.name
        backups = read_catalogue(store, settings.environment, "database", settings.name).backups
        self.backup = select(backups, settings.backup)
        self.reader = Reader(store, self.backup, keys, progress)
        self.outcome = Outcome(self.backup.summary(), settings.mode)

    def run(self, *, check_mode: bool) -> Outcome:
        """Decide, check, and act unless only looking."""
        begun = self.around.clock()
        databases = self.engine.databases(self.live)
        plan = decide(self.settings, self.backup, databases, self.around.now(), self.around.dead)
        roles = [] if plan.done else self._check(plan)
        self._announce(plan, roles)
        if not check_mode:
            self._act(plan, roles)
            if not plan.done:
                self.outcome.rto_seconds = round(self.around.clock() - begun, 3)
        after = self._names_after(plan, databases) if check_mode else self.engine.databases(self.live)
        headers = {"before_header": "databases", "after_header": "databases"}
        self.outcome.diff = {"before": _listed(databases), "after": _listed(after), **headers}
        return self.outcome

    def _check(self, plan: Plan) -> list[str]:
        """Refuse what will not work, before anything is changed. Return the roles that have to be created."""
        found = obstacles(self.backup, self.reader.keys, self.engine.server())
        room = room_for(self.engine, self.backup.manifest)
        if room.obstacle and not plan.reuse:
            found.append(room.obstacle)
        if found:
            raise LmsError(" ".join(found))
        if room.unknown and not plan.reuse:
            self.outcome.plan.append(f"Whether there is room is not checked: {room.unknown}.")
        return self.engine.missing_roles(self._globals()) if self.settings.globals == "missing" and not plan.reuse else []

    def _globals(self) -> str:
        """Return the roles or users that were backed up, as SQL."""
        described = globals_object(self.backup)
        if described is None:
            raise LmsError(f"globals is missing, but backup {self.backup.id} has no roles. Set globals to none.")
        return self.reader.text(described)

    def _announce(self, plan: Plan, roles: Sequence[str]) -> None:
        """Say what is to be done, and note what is known of the outcome by now."""
        mode, outcome = self.settings.mode, self.outcome
        steps = outcome.plan
        outcome.database = self.live if mode == "swap" else plan.beside
        outcome.previous = plan.kept or None
        outcome.roles_created = list(roles)
        outcome.changed = not plan.done or bool(plan.abandoned)
        steps += [f"Drop {name}, which a restore that died left." for name in plan.abandoned]
        if plan.done:
            again = " What was written since stays; again restores it once more." if mode == "swap" else ""
            steps.append(f"The database {plan.beside} was restored from backup {self.backup.id} already.{again}")
            return
        if self.settings.safety_backup:
            steps.append(f"Make a backup of {self.live} for safety.")
        steps += [f"Create the role {role}." for role in roles]
        what = f"the tables {', '.join(plan.tables)} of backup {self.backup.id}" if plan.tables else f"backup {self.backup.id}"
        steps.append(f"Take {plan.beside}, which an earlier run restored." if plan.reuse else f"Restore {what} into {plan.beside}.")
        steps.append(f"Compare {plan.beside} with the manifest.")
        if mode == "swap":
            steps.append(f"Put {plan.beside} in the place of {self.live}, and keep that as {plan.kept}.")
        if mode == "tables" and self.settings.confirm:
            steps.append(f"Restore those of the tables into {self.live} that it lacks; the others stay as they are.")

    def _act(self, plan: Plan, roles: Sequence[str]) -> None:
        """Carry the plan out."""
        for name in plan.abandoned:
            self.engine.drop(name)
            self.outcome.swept.append(name)
        if plan.done:
            return
        if self.settings.safety_backup:
            self._save()
        if roles:
            self.engine.create_roles(self._globals(), roles)
        rebuilt = self._take(plan) if plan.reuse else self._build(plan)
        self.outcome.compared, self.outcome.tables, self.outcome.rows = rebuilt.compared, rebuilt.tables, rebuilt.rows
        if not rebuilt.compared:
            self.outcome.warnings.append(
                f"The rows of {plan.beside} were not compared: the manifest of {self.backup.id} has no exact counts."
            )
        if self.settings.mode == "swap":
            self._swap(plan)
        elif self.settings.mode == "tables" and self.settings.confirm:
            self._copy(plan)

    def _save(self) -> None:
        """Make the safety backup. Without it nothing goes on."""
        try:
            self.outcome.safety_backup = self.around.make_backup(self.live, data_object(self.backup).get("encryption") or {})
        except LmsError as error:
            raise LmsError(
                f"The restore was not begun, because the safety backup of {self.live} failed: {error.message} Mend that, or set "
                "safety_backup to false.",
                **error.details,
            ) from error

    def _build(self, plan: Plan) -> Rebuilt:
        """Restore beside the live database; what differs from the manifest is dropped again."""
        mark = mark_of("restoring", self.backup, self.around.now(), tables=plan.tables)
        rebuilt = rebuild(
            self.engine,
            self.reader,
            plan.beside,
            mark,
            tables=plan.tables,
            owners=self.settings.owners,
            clock=self.around.clock,
        )
        if rebuilt.mismatches:
            self.engine.drop(plan.beside)
            raise self._different(plan.beside, rebuilt, f"{plan.beside} was dropped again, and nothing else was changed.")
        self.engine.remark(plan.beside, Mark("restored", self.backup.id, tables=digest_of(plan.tables)).text)
        return rebuilt

    def _take(self, plan: Plan) -> Rebuilt:
        """Compare what an earlier run restored: somebody may have written to it since."""
        rebuilt = compare(self.engine, self.reader, plan.beside, tables=plan.tables)
        if rebuilt.mismatches:
            raise self._different(plan.beside, rebuilt, f"Somebody wrote to it since it was restored; drop {plan.beside} and start again.")
        return rebuilt

    def _different(self, database: str, rebuilt: Rebuilt, way_out: str) -> LmsError:
        mismatches = list(rebuilt.mismatches)
        return LmsError(
            f"{database} is not what the manifest of backup {self.backup.id} says: {' '.join(mismatches)} {way_out}", mismatches=mismatches
        )

    def _swap(self, plan: Plan) -> None:
        """Put the restored database in the live one's place."""
        try:
            self.outcome.away_seconds = round(self.engine.swap(self.live, plan.beside, plan.kept), 3)
        except LmsError as error:
            raise LmsError(f"{self.live} was not replaced: {error.message} {self._whereabouts(plan)}", **error.details) from error
        try:
            self.engine.remark(self.live, Mark("restored", self.backup.id).text)
        except LmsError as error:
            self.outcome.warnings.append(f"{self.live} was replaced, but its comment does not say from which backup: {error.message}")

    def _whereabouts(self, plan: Plan) -> str:
        """Say what stands where after a swap that failed, and what to do."""
        try:
            there = self.engine.databases(self.live)
        except LmsError:
            return f"The server does not answer any more. Look for {self.live}, {plan.beside} and {plan.kept} there before anything else."
        if self.live in there and plan.kept not in there:
            return f"{self.live} is the former database, as before; the restored one is {plan.beside}. Start again when that is mended."
        if self.live in there:
            return f"Both {self.live} and {plan.kept} are there: compare them before anything else."
        return (
            f"There is no {self.live} now: the former database is {plan.kept}, the restored one {plan.beside}. Rename one of them to "
            f"{self.live}."
        )

    def _copy(self, plan: Plan) -> None:
        """Restore into the live database the tables that it lacks. Those that it has are never written to."""
        there = {table_name(self.backup.manifest, table) for table in self.engine.tables(self.live, "none")}
        lacking = [name for name in plan.tables if name not in there]
        self.outcome.present = [name for name in plan.tables if name in there]
        if not lacking:
            return
        try:
            fill(self.engine, self.reader, self.live, tables=lacking, owners=self.settings.owners)
        except LmsError as error:
            raise LmsError(
                f"Tables that {self.live} lacked were not, or not wholly, restored into it ({', '.join(lacking)}): {error.message} They "
                f"are whole in {plan.beside}.",
                **error.details,
            ) from error
        self.outcome.copied = lacking
        self.outcome.database = self.live
        if family(self.backup.manifest) == "postgresql":
            self.outcome.warnings.append(
                f"{', '.join(lacking)} came back into {self.live} without foreign keys that lead to or from other tables. Add those that "
                "are missing."
            )

    def _names_after(self, plan: Plan, databases: Mapping[str, str]) -> set[str]:
        """Return the names that the server will have."""
        names = set(databases) - set(plan.abandoned)
        if plan.done:
            return names
        return names | {plan.kept} if plan.kept else names | {plan.beside}


def _listed(names: Mapping[str, str] | set[str]) -> str:
    return "".join(f"{name}\n" for name in sorted(names))
