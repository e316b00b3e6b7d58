# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a backup of a database: one stream from the server to the repository, counted in the dump's own snapshot, published last."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import (
    Backup,
    Catalogue,
    check_name,
    iso,
    new_id,
    now_utc,
    read_catalogue,
    seal,
)
from ansible_collections.bitflow.lms.plugins.module_utils._backup_encryption import encrypting_stage, encryption_of
from ansible_collections.bitflow.lms.plugins.module_utils._backup_lock import LockedError, only_one
from ansible_collections.bitflow.lms.plugins.module_utils._backup_making import (
    Outcome,
    check_room,
    diff_of,
    doubts,
    ended_in_order,
    newest_good,
    read_back,
    sweep_interrupted,
    young_enough,
)
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Draft, Store, StoredObject
from ansible_collections.bitflow.lms.plugins.module_utils._database import DatabaseLockedError, Engine, Server, Snapshot, Table
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import Stage, run_pipeline
from ansible_collections.bitflow.lms.plugins.module_utils._progress import Progress

KIND = "database"
# A dump takes less room than the database, whose indexes it only names (measured: a third).
FIRST_DUMP_SHARE = 0.5
# What the estimate of a dump's size may be wrong by.
ROOM_MARGIN = 1.2


@dataclass(frozen=True)
class Settings:
    """What is asked for, in the words of the module's options."""

    environment: str
    name: str
    record: str = "counts"
    consistency: str = "exact"
    exclude_table_data: Sequence[str] = ()
    globals: bool = True
    max_age: int = 0
    max_shrink_percent: int = 50
    min_free: int = 0
    lock_timeout: float = 10
    when_locked: str = "fail"
    timeout: int | None = None
    rate_limit: int | None = None
    nice: int = 10
    compression_level: int = 3
    compression_threads: int = 1
    encryption: Mapping[str, Any] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Settings:
        """Take them from a module's options."""
        return cls(**{each.name: options[each.name] for each in fields(cls) if each.name in options})

    @property
    def path(self) -> str:
        """Return where its backups lie."""
        return f"{self.environment}/{KIND}/{self.name}"


def settings_argspec() -> dict[str, dict[str, Any]]:
    """Return the options of database_backup that no documentation fragment has."""
    return {
        "record": {"type": "str", "choices": ["counts", "checksums", "none"], "default": "counts"},
        "consistency": {"type": "str", "choices": ["exact", "fast"], "default": "exact"},
        "exclude_table_data": {"type": "list", "elements": "str", "default": []},
        "globals": {"type": "bool", "default": True},
        "max_age": {"type": "int", "default": 0},
        "max_shrink_percent": {"type": "int", "default": 50},
        "min_free": {"type": "int", "default": 0},
        "lock_timeout": {"type": "float", "default": 10},
        "when_locked": {"type": "str", "choices": ["fail", "skip"], "default": "fail"},
        "timeout": {"type": "int"},
        "rate_limit": {"type": "int"},
        "nice": {"type": "int", "default": 10},
        "compression_level": {"type": "int", "default": 3},
        "compression_threads": {"type": "int", "default": 1},
        "labels": {"type": "dict", "default": {}},
    }


@dataclass(frozen=True)
class Plan:
    """What was found, and what is to be done."""

    settings: Settings
    server: Server
    database: Mapping[str, Any]
    repository: Mapping[str, Any]
    catalogue: Catalogue
    # Bytes that the backup will probably take, and the earlier one from which that follows.
    estimate: int
    estimated_from: Backup | None
    # The good one that is young enough, when there is one.
    sufficient: Backup | None

    @property
    def previous(self) -> Backup | None:
        """Return the newest good backup."""
        return newest_good(self.catalogue)

    def as_result(self, skipped_reason: str = "", swept: Sequence[str] = ()) -> dict[str, Any]:
        """Return it as the module does."""
        duration = self.estimated_from.manifest.get("duration_s") if self.estimated_from else None
        return {
            "server": asdict(self.server),
            "database_size": self.database["size_bytes"],
            "estimated_size": self.estimate,
            "estimated_duration": duration,
            "estimated_from": self.estimated_from.id if self.estimated_from else None,
            "repository": dict(self.repository),
            "previous": self.previous.summary() if self.previous else None,
            "partials": [partial.path for partial in self.catalogue.partials],
            "swept": list(swept),
            "skipped_reason": skipped_reason,
        }


def run(settings: Settings, store: Store, engine: Engine, *, check_mode: bool = False, progress: Progress | None = None) -> Outcome:
    """Make the backup, unless a good one is young enough; in check mode only look."""
    plan = make_plan(settings, store, engine, now_utc())
    if plan.sufficient:
        return Outcome(False, plan.as_result(f"{plan.sufficient.id} is younger than max_age."), plan.sufficient.summary())
    if check_mode:
        return Outcome(True, plan.as_result(), diff=diff_of(plan.previous, "a new backup"))
    try:
        with ended_in_order(), only_one(f"{store.uri}/{settings.path}"):
            return Maker(plan, store, engine, progress or Progress()).make()
    except (LockedError, DatabaseLockedError) as error:
        if settings.when_locked == "fail":
            raise
        return Outcome(False, plan.as_result(error.message), warnings=[error.message])


def make_plan(settings: Settings, store: Store, engine: Engine, now: datetime) -> Plan:
    """Look at the server, the database and the repository, and refuse what cannot become a whole backup."""
    check_name("environment", settings.environment)
    check_name("name", settings.name)
    server = engine.server()
    database = engine.describe(settings.name)
    problems = engine.problems(settings.name, settings.exclude_table_data)
    if problems:
        raise LmsError(f"A backup of the database {settings.name} would not be whole: {' '.join(problems)}", problems=problems)
    repository = store.facts()
    catalogue = read_catalogue(store, settings.environment, KIND, settings.name)
    estimate, estimated_from = estimated_size(catalogue, database["size_bytes"])
    sufficient = young_enough(catalogue, settings.max_age, now)
    if not sufficient:
        check_room(store.uri, repository.get("free"), round(estimate * ROOM_MARGIN) + settings.min_free)
    return Plan(settings, server, database, repository, catalogue, estimate, estimated_from, sufficient)


def estimated_size(catalogue: Catalogue, database_size: int) -> tuple[int, Backup | None]:
    """Say how large the backup will be: in the proportion of the newest good one to its database, or at first a guess."""
    for backup in reversed(catalogue.backups):
        then = backup.manifest.get("database", {}).get("size_bytes")
        if backup.good and then:
            return round(backup.size * max(1.0, database_size / then)), backup
    return round(database_size * FIRST_DUMP_SHARE), None


def suspicion(tables: Sequence[Table], size: int, previous: Backup | None, max_shrink_percent: int) -> str:
    """Say why a backup that is complete may all the same not be what was wanted; nothing when there is no reason."""
    if not tables:
        return "The database has no table."
    if previous is None:
        return ""
    limit = 1 - max_shrink_percent / 100
    rows = sum(table.rows or 0 for table in tables)
    before = sum(table.get("rows") or 0 for table in previous.manifest.get("tables", []))
    # Only what was counted in both can be compared.
    if before and any(table.rows is not None for table in tables) and rows < before * limit:
        return f"It has {rows} rows, {previous.id} had {before}: more than {max_shrink_percent} % fewer."
    data = sum(described["size"] for described in previous.manifest.get("objects", []))
    if size < data * limit:
        return f"It takes {size} bytes, {previous.id} took {data}: more than {max_shrink_percent} % less."
    return ""


class Maker:
    """Makes one backup."""

    def __init__(self, plan: Plan, store: Store, engine: Engine, progress: Progress) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.store = store
        self.engine = engine
        self.progress = progress
        self.encryption = encryption_of(self.settings.encryption)
        self.encrypting = encrypting_stage(self.settings.encryption)
        self.warnings: list[str] = []

    def make(self) -> Outcome:
        """Take the database's lock, clear away what interrupted runs left, dump, count, publish."""
        settings = self.settings
        if self.encrypting is None:
            self.warnings.append(f"The backup of {settings.name} is not encrypted: no recipients are given.")
        with self.engine.snapshot(settings.name, consistency=settings.consistency, lock_timeout=settings.lock_timeout) as snapshot:
            swept, left = sweep_interrupted(self.store, settings.path)
            started, begun = now_utc(), time.monotonic()
            identity = new_id(started)
            draft = self.store.draft(f"{settings.path}/{identity}")
            try:
                described = self._write(draft, snapshot)
                described["started"], described["finished"] = iso(started), iso(now_utc())
                described["duration_s"] = round(time.monotonic() - begun, 3)
                draft.publish(seal({**self._identity(identity), **described}))
            except BaseException:
                draft.discard()
                raise
            self.warnings += [*left, *snapshot.warnings]
        made = read_back(self.store, settings.path, identity)
        self.warnings += doubts(made)
        return Outcome(True, self.plan.as_result(swept=swept), made.summary(), self.warnings, diff_of(self.plan.previous, identity))

    def _write(self, draft: Draft, snapshot: Snapshot) -> dict[str, Any]:
        """Write the objects, and return what the manifest says of them."""
        settings = self.settings
        objects = [self._write_globals(draft)] if settings.globals else []
        dump = snapshot.dump(
            exclude_table_data=settings.exclude_table_data,
            compression_level=settings.compression_level,
            compression_threads=settings.compression_threads,
        )
        counting = Beside(lambda: snapshot.tables(settings.record))
        stored = self._store(draft, f"data{dump.suffix}", dump.stages, dump.taps, f"dump {settings.name}", self._expected())
        dump.check()
        self.progress.step(f"count {settings.name}")
        tables = counting.result()
        snapshot.check()
        objects.append(self._described(stored, dump.compression, dump.raw_size()))
        reason = suspicion(tables, sum(each["size"] for each in objects), self.plan.previous, settings.max_shrink_percent)
        return {
            "tool": {"name": dump.stages[0].name, "version": dump.version, "argv": list(dump.stages[0].argv)},
            "snapshot": {"consistency": snapshot.consistency, **snapshot.position},
            "tables": [asdict(table) for table in tables],
            "objects": objects,
            "raw_size": dump.raw_size(),
            "format_of_dump": dump.format,
            "suspicious": bool(reason),
            "suspicious_reason": reason,
        }

    def _write_globals(self, draft: Draft) -> dict[str, Any]:
        """Write the roles or users, without which a restored database belongs to nobody."""
        zstd = Stage(["zstd", "-q", "-c", "-"])
        stored = self._store(draft, "globals.sql.zst", [*self.engine.globals_dump(), zstd], {}, "dump the roles", None)
        return self._described(stored, {"method": "zstd", "level": 3, "where": "around"}, None)

    def _store(
        self,
        draft: Draft,
        name: str,
        stages: Sequence[Stage],
        taps: Mapping[int, Callable[[bytes], None]],
        step: str,
        expected: int | None,
    ) -> StoredObject:
        """Run programs into an object of the repository, encrypted where recipients are given."""
        settings = self.settings
        stages = [*stages, self.encrypting] if self.encrypting else list(stages)
        upload = draft.upload(f"{name}{self.encryption.suffix}")
        self.progress.step(step, expected)

        def take(piece: bytes) -> None:
            upload.write(piece)
            self.progress.add(len(piece))
            if settings.rate_limit:
                time.sleep(len(piece) / settings.rate_limit)

        try:
            run_pipeline(stages, sink=take, taps=taps, nice=settings.nice, timeout=settings.timeout)
            return upload.complete()
        except BaseException:
            upload.abort()
            raise

    def _described(self, stored: StoredObject, compression: Mapping[str, Any], raw_size: int | None) -> dict[str, Any]:
        """Return an object as the manifest describes it."""
        return {**asdict(stored), "raw_size": raw_size, "compression": dict(compression), "encryption": self.encryption.record()}

    def _identity(self, identity: str) -> dict[str, Any]:
        """Return what the manifest says of the backup as such."""
        settings, previous = self.settings, self.plan.previous
        return {
            "id": identity,
            "kind": KIND,
            "environment": settings.environment,
            "name": settings.name,
            "host": socket.gethostname(),
            "database": {**self.plan.database, "engine": self.plan.server.flavour, "server_version": self.plan.server.version},
            "record": settings.record,
            "excluded_data": list(settings.exclude_table_data),
            "globals": settings.globals,
            "labels": dict(settings.labels),
            "previous_id": previous.id if previous else None,
        }

    def _expected(self) -> int | None:
        """Return how many bytes to expect, where an earlier backup tells."""
        return self.plan.estimate if self.plan.estimated_from else None


class Beside:
    """A call that runs in a thread beside this one."""

    def __init__(self, call: Callable[[], list[Table]]) -> None:
        self._call = call
        self._outcome: list[Table] | BaseException = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def result(self) -> list[Table]:
        """Wait for it and return what it gave, or raise what it raised."""
        self._thread.join()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def _run(self) -> None:
        try:
            self._outcome = self._call()
        except BaseException as error:
            self._outcome = error
