# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prove backups: read them whole, or restore them into a scratch database and compare, and note what came of it beside them."""

from __future__ import annotations

import random
import re
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, cast

from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import (
    FORMAT,
    LEVELS,
    Backup,
    Verification,
    canonical,
    check_name,
    iso,
    now_utc,
    read_catalogue,
    select,
    verification_key,
)
from ansible_collections.bitflow.lms.plugins.module_utils._backup_reading import CorruptObjectError, Reader, data_object
from ansible_collections.bitflow.lms.plugins.module_utils._backup_rebuild import (
    Mark,
    Rebuilt,
    comparable,
    mark_of,
    obstacles,
    rebuild,
    room_for,
)
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Store
from ansible_collections.bitflow.lms.plugins.module_utils._controller import is_dead
from ansible_collections.bitflow.lms.plugins.module_utils._database import Engine, Server
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._file_restore import BuiltinSource
from ansible_collections.bitflow.lms.plugins.module_utils._progress import Progress

NICE = 10
# What a result shows of a record, and under which name.
_SHOWN = {
    "level": "level",
    "ok": "ok",
    "mismatches": "mismatches",
    "compared": "compared",
    "tables": "tables",
    "rows": "rows",
    "duration": "duration_s",
    "rto_seconds": "rto_seconds",
    "scratch": "scratch",
}

_PREFIX = re.compile(r"^[a-z][a-z0-9_]{3,39}$")


@dataclass(frozen=True)
class Settings:
    """What is asked for, in the words of the module's options."""

    environment: str
    name: str
    kind: str = "database"
    backup: str = "latest"
    level: str = "restore"
    # Seconds for which a look of this level counts.
    max_age: int = 0
    scratch_prefix: str = "lms_verify_"
    keep_scratch: bool = False

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Settings:
        """Take them from the module's options, and refuse what contradicts itself."""
        level = options["level"] or ("restore" if options["kind"] == "database" else "decode")
        for option in ("environment", "name"):
            check_name(option, options[option])
        if options["kind"] == "files" and level == "restore":
            raise LmsError("level is restore, but kind is files; only databases are restored for a trial. Use decode.")
        if level == "restore" and not options["engine"]:
            raise LmsError("level is restore, but engine is not given. Give the server for the trial, or a lower level.")
        if not _PREFIX.match(options["scratch_prefix"]):
            raise LmsError(
                f"scratch_prefix is {options['scratch_prefix']!r}. It begins with a letter, and has 4 to 40 lower-case letters, digits and "
                "underscores."
            )
        chosen = {key: options[key] for key in ("environment", "name", "kind", "backup", "max_age", "scratch_prefix", "keep_scratch")}
        return cls(**chosen, level=level)


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    changed: bool
    verifications: list[dict[str, Any]]
    backup: dict[str, Any] | None
    mismatches: list[str]
    plan: list[str]
    swept: list[str]
    warnings: list[str]
    diff: dict[str, Any]

    @property
    def failure(self) -> str:
        """Say which backups are corrupt; nothing when none is."""
        bad = [each for each in self.verifications if not each["ok"]]
        return " ".join(f"Backup {each['backup']['id']} is corrupt: {' '.join(each['mismatches'])}" for each in bad)

    def as_result(self) -> dict[str, Any]:
        """Return it as the module does."""
        return {
            "changed": self.changed,
            "backup": self.backup,
            "verifications": self.verifications,
            "mismatches": self.mismatches,
            "plan": self.plan,
            "swept": self.swept,
            "diff": self.diff,
        }


@dataclass(frozen=True)
class Surroundings:
    """What a run does not decide itself: the time, what is random, and who is dead."""

    now: Callable[[], datetime] = now_utc
    clock: Callable[[], float] = time.monotonic
    token: Callable[[int], str] = secrets.token_hex
    # One out of several; the choice is no secret.
    pick: Callable[[Sequence[Backup]], Backup] = random.choice
    dead: Callable[[str], bool] = is_dead
    host: str = field(default_factory=socket.gethostname)


def choose(backups: Sequence[Backup], settings: Settings, now: datetime, pick: Callable[[Sequence[Backup]], Backup]) -> list[Backup]:
    """Return the backups that are meant, the newest first. sample is any one of those that were not looked at lately."""
    newest_first = sorted(backups, key=lambda backup: backup.id, reverse=True)
    if settings.backup not in ("all", "sample"):
        return [select(backups, settings.backup)]
    if not newest_first:
        raise LmsError(f"There is no backup of {settings.name} in {settings.environment}. Make one first.")
    if settings.backup == "all":
        return newest_first
    due = [backup for backup in newest_first if not looked_at(backup, settings, now)]
    return [pick(due or newest_first)]


def looked_at(backup: Backup, settings: Settings, now: datetime) -> Verification | None:
    """Return the look that is young enough and saw enough, unless the backup was found corrupt since."""
    if not settings.max_age or backup.state == "corrupt":
        return None
    for look in reversed(backup.verifications):
        deep = LEVELS.index(look.level) >= LEVELS.index(settings.level) if look.level in LEVELS else False
        if look.ok and deep and timedelta(0) <= now - look.time < timedelta(seconds=settings.max_age):
            return look
    return None


def announce(backup: Backup, settings: Settings, look: Verification | None) -> str:
    """Say what is done with a backup, and why."""
    if look:
        return f"Backup {backup.id} was verified at {iso(look.time)} (level {look.level}), within max_age."
    if settings.level != "restore":
        what = {
            "manifest": "compare the sizes of its objects with its manifest",
            "checksum": "read its objects and compare their sums",
            "decode": "read its objects as a restore would",
        }[settings.level]
        return f"Backup {backup.id}: {what}."
    tables = backup.manifest.get("tables", [])
    rows = sum(table.get("rows") or 0 for table in tables)
    compared = f"compare {len(tables)} tables with {rows} rows" if comparable(backup.manifest) else "compare the names of its tables"
    return f"Backup {backup.id}: restore it into a scratch database {settings.scratch_prefix}<8 digits>, {compared}, and drop that."


def run(
    settings: Settings,
    store: Store,
    engine: Engine | None,
    keys: Mapping[str, Any],
    *,
    check_mode: bool = False,
    progress: Progress | None = None,
    surroundings: Surroundings | None = None,
) -> Outcome:
    """Look at the backups that are meant and due, and note what came of it; in check mode only say so.

    A backup that is corrupt is noted and reported, and the others are looked at. LmsError is a failure that says nothing of a backup.
    """
    around = surroundings or Surroundings()
    now = around.now()
    backups = read_catalogue(store, settings.environment, settings.kind, settings.name).backups
    chosen = choose(backups, settings, now, around.pick)
    looks = {backup.id: looked_at(backup, settings, now) for backup in chosen}
    due = [backup for backup in chosen if not looks[backup.id]]
    verifier = Verifier(settings, store, engine, keys, progress or Progress(), around)
    verifier.refuse_obstacles(due)
    plan = [announce(backup, settings, looks[backup.id]) for backup in chosen]
    abandoned = verifier.abandoned(now)
    if check_mode:
        after = {backup.id: f"to be verified (level {settings.level})" for backup in due}
        return _outcome(chosen, bool(due or abandoned), [], plan, abandoned, verifier.warnings, after)
    swept = verifier.sweep(abandoned)
    noted = [verifier.verify(backup) for backup in due]
    after = {each["backup"]["id"]: each["backup"]["state"] for each in noted}
    return _outcome(chosen, bool(due or swept), noted, plan, swept, verifier.warnings, after)


def _outcome(
    chosen: Sequence[Backup],
    changed: bool,
    noted: list[dict[str, Any]],
    plan: list[str],
    swept: list[str],
    warnings: list[str],
    after: Mapping[str, str],
) -> Outcome:
    """Return what the run came to, with the states of the backups before and after."""
    before = {backup.id: backup.state for backup in chosen}
    backup = noted[0]["backup"] if noted else chosen[0].summary()
    mismatches = [sentence for each in noted for sentence in each["mismatches"]]
    diff = {"before": before, "after": {**before, **after}, "before_header": "states of backups", "after_header": "states of backups"}
    return Outcome(changed, noted, backup, mismatches, plan, swept, warnings, diff)


class Verifier:
    """Looks at backups, one after the other."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        engine: Engine | None,
        keys: Mapping[str, Any],
        progress: Progress,
        around: Surroundings,
    ) -> None:
        self.settings = settings
        self.store = store
        self.keys = keys
        self.progress = progress
        self.around = around
        self.warnings: list[str] = []
        # Lower levels need no server.
        self.engine = engine if settings.level == "restore" else None
        self.server: Server | None = self.engine.server() if self.engine else None

    def refuse_obstacles(self, due: Sequence[Backup]) -> None:
        """Fail before anything is done when a backup cannot be looked at here."""
        kept_elsewhere = [backup.id for backup in due if backup.manifest.get("engine") == "restic"]
        if kept_elsewhere:
            raise LmsError(
                f"The files of backup {kept_elsewhere[0]} are kept by restic, which alone can read them. Let file_backup check them as it "
                "makes a backup (restic_check_percent)."
            )
        if LEVELS.index(self.settings.level) < LEVELS.index("decode"):
            return
        found = []
        for backup in due:
            if backup.fault:
                continue
            found += obstacles(backup, self.keys, self.server)
            if self.engine:
                room = room_for(self.engine, backup.manifest)
                found += [room.obstacle] if room.obstacle else []
        if found:
            raise LmsError(" ".join(dict.fromkeys(found)))

    def abandoned(self, now: datetime) -> list[str]:
        """Return the scratch databases whose run is dead, or whose time is over."""
        if not self.engine:
            return []
        marked = {name: Mark.read(comment) for name, comment in self.engine.databases(self.settings.scratch_prefix).items()}
        return sorted(name for name, mark in marked.items() if mark and mark.purpose == "scratch" and mark.abandoned(now, self.around.dead))

    def sweep(self, names: Sequence[str]) -> list[str]:
        """Drop scratch databases; one that cannot be dropped is no reason to prove nothing."""
        swept = []
        for name in names:
            try:
                # Without one there are no names.
                cast("Engine", self.engine).drop(name)
                swept.append(name)
            except LmsError as error:
                self.warnings.append(f"The scratch database {name} of an earlier run stays: {error.message}")
        return swept

    def verify(self, backup: Backup) -> dict[str, Any]:
        """Look at a backup, note what was seen beside it, and return that."""
        started, begun = self.around.now(), self.around.clock()
        mismatches, facts = self._look(backup)
        finished = self.around.now()
        record = {
            "format": FORMAT,
            "backup": backup.id,
            "level": self.settings.level,
            "ok": not mismatches,
            "mismatches": mismatches,
            "started": iso(started),
            "finished": iso(finished),
            "duration_s": round(self.around.clock() - begun, 3),
            "server_version": f"{self.server.flavour} {self.server.version}" if self.server else None,
            "host": self.around.host,
            **facts,
        }
        key = verification_key(backup.path, finished, self.settings.level, self.around.token)
        self.store.create(key, canonical(record))
        look = Verification(self.settings.level, not mismatches, finished, tuple(mismatches), record)
        after = replace(backup, verifications=(*backup.verifications, look))
        shown = {shown_as: record[noted] for shown_as, noted in _SHOWN.items()}
        return {"backup": after.summary(), "record": key, **shown}

    def _look(self, backup: Backup) -> tuple[list[str], dict[str, Any]]:
        """Return in what a backup differs from what it ought to be, and what else is to be noted."""
        facts: dict[str, Any] = {"compared": False, "tables": None, "rows": None, "rto_seconds": None, "scratch": None}
        if backup.fault:
            return [backup.fault], facts
        reader = Reader(self.store, backup, self.keys, self.progress, NICE)
        level = self.settings.level
        mismatches: list[str] = []
        if level == "decode" and self.settings.kind == "files":
            try:
                return BuiltinSource(self.store, backup, self.keys, self.progress, NICE).differences(), facts
            except CorruptObjectError as error:
                return [error.message], facts
        for described in backup.manifest.get("objects", []) if level != "manifest" else []:
            # The trial restore reads the data itself.
            if level == "restore" and described == data_object(backup):
                continue
            try:
                reader.check(described) if level == "checksum" else reader.decode(described)
            except CorruptObjectError as error:
                mismatches.append(error.message)
        if self.engine and not mismatches:
            try:
                rebuilt = self._restore(self.engine, reader)
            except CorruptObjectError as error:
                return [error.message], facts
            mismatches += rebuilt.mismatches
            facts = {
                "compared": rebuilt.compared,
                "tables": rebuilt.tables,
                "rows": rebuilt.rows,
                "rto_seconds": rebuilt.seconds,
                "scratch": rebuilt.database if self.settings.keep_scratch else None,
            }
            if not rebuilt.compared:
                self.warnings.append(f"The rows of backup {backup.id} were not compared: its manifest has no exact counts.")
        return mismatches, facts

    def _restore(self, engine: Engine, reader: Reader) -> Rebuilt:
        """Restore a backup into a scratch database, compare, and drop that."""
        scratch = f"{self.settings.scratch_prefix}{self.around.token(4)}"
        # One that is to be kept belongs to no run, only to its time.
        mark = mark_of("scratch", reader.backup, self.around.now(), run="" if self.settings.keep_scratch else None)
        rebuilt = rebuild(engine, reader, scratch, mark, owners=False, clock=self.around.clock)
        if not self.settings.keep_scratch:
            self.sweep([scratch])
        return rebuilt
