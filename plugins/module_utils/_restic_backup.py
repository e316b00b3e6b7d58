# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of files that restic keeps. Each has a manifest like any other one, so that age, retention and holds are the same for all.

What restic keeps and what the catalogue lists are joined in one direction: backup_prune decides by the catalogue alone, and prune() here
then forgets the snapshots whose backup is gone. Two sets of rules would sooner or later delete what the other one promises.
"""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import (
    FORMAT,
    Backup,
    canonical,
    check_name,
    iso,
    now_utc,
    read_catalogue,
    verification_key,
)
from ansible_collections.bitflow.lms.plugins.module_utils._backup_lock import DIRECTORY as LOCKS
from ansible_collections.bitflow.lms.plugins.module_utils._backup_lock import only_one
from ansible_collections.bitflow.lms.plugins.module_utils._backup_making import Outcome, ended_in_order, newest_good
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Draft, Store
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._file_backup import KIND, Plan, Settings, Written, cache_directory
from ansible_collections.bitflow.lms.plugins.module_utils._file_tree import Counts, FileEntry, Patterns, Reports
from ansible_collections.bitflow.lms.plugins.module_utils._progress import Progress
from ansible_collections.bitflow.lms.plugins.module_utils._restic import (
    INCOMPLETE,
    TAG,
    Answer,
    Key,
    Location,
    Lock,
    Restic,
    Snapshot,
    forgettable,
    location_of,
    parse_problems,
)


@dataclass(frozen=True)
class WantedKey:
    """A further password of the repository."""

    name: str
    password: str = ""
    present: bool = True


def restic_argspec() -> dict[str, dict[str, Any]]:
    """Return the options of file_backup that only the engine restic takes."""
    return {
        "restic_password": {"type": "str", "no_log": True},
        "restic_keys": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "no_log": False,
            "options": {
                "name": {"type": "str", "required": True},
                "password": {"type": "str", "no_log": True},
                "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            },
        },
        "restic_check_percent": {"type": "int"},
    }


def open_restic(params: Mapping[str, Any], uri: str) -> Restic:
    """Return restic for the repository that the options of a module mean."""
    location: Location = location_of(params)
    name = hashlib.sha256(f"{uri}/{location.prefix}".encode()).hexdigest()[:16]
    notes = LOCKS / f"bitflow-lms-restic-{name}"
    return Restic(location, params.get("restic_password") or "", cache_directory() / "restic", Path(notes), params.get("nice") or 0)


def wanted_keys(option: Sequence[Mapping[str, Any]]) -> list[WantedKey]:
    """Return what the option restic_keys means."""
    keys = [WantedKey(item["name"], item.get("password") or "", item.get("state") != "absent") for item in option]
    names = [key.name for key in keys]
    for key in keys:
        if names.count(key.name) > 1:
            raise LmsError(f"restic_keys names {key.name} twice. Leave one of them out.")
        if key.present and not key.password:
            raise LmsError(f"restic_keys has {key.name} without a password. Give one, or set its state to absent.")
    return keys


@dataclass(frozen=True)
class KeyChange:
    """What is to be done so that a password opens the repository, or does no longer."""

    add: WantedKey | None = None
    remove: Key | None = None

    def sentence(self) -> str:
        """Say it."""
        if self.add:
            return f"Add the key {self.add.name} to restic's repository."
        return f"Remove the key {self.remove.name if self.remove else ''} from restic's repository."


def key_changes(wanted: Sequence[WantedKey], present: Sequence[Key], opened: Mapping[str, Key | None]) -> list[KeyChange]:
    """Say what differs. opened: for each wanted name the key that its password is now. The password in use is never removed."""
    changes = []
    current = next((key for key in present if key.current), None)
    for want in wanted:
        named = [key for key in present if key.name == want.name and key != current]
        if not want.present and current and current.name == want.name:
            raise LmsError(f"restic_keys wants {want.name} absent, but restic_password is that key. Use another password to remove it.")
        right = opened.get(want.name) if want.present else None
        if want.present and (right is None or right.name != want.name):
            changes.append(KeyChange(add=want))
        # Only after the new one was added, so that at no moment neither opens it.
        changes += [KeyChange(remove=key) for key in named if right is None or key.id != right.id]
    return changes


class ResticWriter:
    """Keeps files as a snapshot of restic."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        restic: Restic,
        keys: Sequence[WantedKey] = (),
        check_percent: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        if check_percent is not None and not 0 <= check_percent <= 100:
            raise LmsError(f"restic_check_percent is {check_percent}. It is 0 (structure only) to 100 (all data).")
        self.settings = settings
        self.store = store
        self.restic = restic
        self.wanted = keys
        self.check_percent = check_percent
        self.progress = progress or Progress()
        self.warnings: list[str] = []
        self._exists = False
        self._changes: list[KeyChange] = []
        self._version = ""
        self._repository = ""
        self._roots: tuple[str, ...] = ()

    def check(self, plan: Plan) -> None:
        """Try the password, and say what is to be done to the repository of restic."""
        self._version = self.restic.version()
        self._roots = plan.selection.paths
        self._exists = self.restic.exists(self.store)
        if not self._exists:
            plan.notes.append(f"Create the repository of restic at {self.restic.location.repository}.")
            self._changes = [KeyChange(add=want) for want in self.wanted if want.present]
        else:
            self._repository = self.restic.repository_id()
            opened = {want.name: self.restic.opens(want.password) for want in self.wanted if want.present}
            self._changes = key_changes(self.wanted, self.restic.keys(), opened) if self.wanted else []
        plan.notes += [change.sentence() for change in self._changes]

    def prepare(self) -> None:
        """Create the repository, and let the right passwords open it."""
        if not self._exists:
            self.restic.create()
            self._repository = self.restic.repository_id()
        removed, others = self.restic.clear_locks(self.store, now_utc())
        self._tell(removed, others)
        for change in self._changes:
            if change.add:
                self.restic.add_key(change.add.name, change.add.password)
            elif change.remove:
                self.restic.remove_key(change.remove)

    def before(self, backup: Backup) -> Mapping[str, FileEntry] | None:
        """Return the files of an earlier backup."""
        snapshot = (backup.manifest.get("restic") or {}).get("snapshot")
        if not snapshot or not self._exists:
            return None
        roots = [root[1:] for root in self._roots]
        return {path: entry for path, entry in self.restic.listing(snapshot).items() if _is_below(path, roots)}

    def estimate(self, plan: Plan) -> int:
        """Say how much is new since the newest good backup: what did not change takes no room again."""
        return plan.scan.recent if plan.previous and self._exists else plan.scan.counts.bytes

    def write(self, draft: Draft, identity: str, plan: Plan) -> Written:
        """Make a snapshot. One that is not whole is forgotten."""
        settings = self.settings
        self.progress.step(f"back up {settings.name}", plan.scan.counts.bytes)
        summary, answer = self._backup(identity, plan)
        snapshot = str(summary.get("snapshot_id", ""))
        try:
            reports = self._judge(answer)
            found = self._read_back(snapshot, identity)
        except LmsError:
            self._forget(snapshot)
            raise
        counts = Counts(
            int(summary.get("total_files_processed", 0)),
            sum(int(summary.get(key, 0)) for key in ("dirs_new", "dirs_changed", "dirs_unmodified")),
            plan.scan.counts.links,
            int(summary.get("total_bytes_processed", 0)),
        )
        record = {
            "snapshot": found.id,
            "repository": self._repository,
            "files": counts.files,
            "bytes": counts.bytes,
            "added": int(summary.get("data_added", 0)),
        }
        tool = {"name": "restic", "version": self._version}
        manifest = {"engine": "restic", "tool": tool, "objects": [], "raw_size": counts.bytes, "restic": record}
        return Written(counts, manifest, [*plan.scan.skipped, *reports.skipped])

    def finish(self, backup: Backup) -> None:
        """Check the repository where that is asked, and note what was found with the backup."""
        if self.check_percent is None:
            return
        self.progress.step(f"check restic's repository of {self.settings.name}")
        started, begun = now_utc(), time.monotonic()
        answer = self.restic.check(self.check_percent)
        said = [line.strip() for line in [*answer.errors, *answer.lines] if line.strip()]
        level = "checksum" if self.check_percent else "manifest"
        record = {
            "format": FORMAT,
            "backup": backup.path,
            "level": level,
            "ok": answer.rc == 0,
            "mismatches": [] if answer.rc == 0 else said[-20:],
            "started": iso(started),
            "finished": iso(now_utc()),
            "duration_s": round(time.monotonic() - begun, 3),
            "rto_seconds": None,
            "server_version": None,
            "host": socket.gethostname(),
        }
        self.store.create(verification_key(backup.path, now_utc(), level), canonical(record))
        if answer.rc != 0:
            raise LmsError(
                f"The repository {self.restic.location.repository} is damaged: {said[-1] if said else 'restic check failed'}. "
                f"Backup {backup.id} was marked as corrupt. Keep the repository as it is, and look into it with restic check --read-data.",
                stderr="\n".join(said[-50:]),
            )

    def _backup(self, identity: str, plan: Plan) -> tuple[dict[str, Any], Answer]:
        """Let restic read the files. Return what it says at the end, and all of its complaints."""
        settings = self.settings
        excluded = [f"--exclude={pattern}" for pattern in settings.exclude]
        one_file_system = ["--one-file-system"] if settings.one_file_system else []
        tags = ["--tag", TAG, "--tag", f"{TAG}:{identity}"]
        ending: list[dict[str, Any]] = []
        done = 0

        def hear(line: str) -> None:
            nonlocal done
            for message in Answer(0, [line]).messages():
                if message.get("message_type") == "status" and int(message.get("bytes_done", 0)) > done:
                    self.progress.add(int(message["bytes_done"]) - done)
                    done = int(message["bytes_done"])
                elif message.get("message_type") == "summary":
                    ending.append(message)

        arguments = ["backup", "--json", *tags, *one_file_system, *excluded, "--", *plan.selection.paths]
        answer = self.restic.call(*arguments, accepted=(0, INCOMPLETE), heard=hear)
        if not ending or not ending[-1].get("snapshot_id"):
            raise LmsError(
                f"restic ended with status {answer.rc} and made no snapshot of {settings.name}.", stderr="\n".join(answer.errors)
            )
        return ending[-1], answer

    def _judge(self, answer: Answer) -> Reports:
        """Refuse a snapshot for which files could not be read, unless each of them may vanish."""
        reports = Reports(Patterns(tuple(self.settings.vanish_ok)), patient=True)
        problems = parse_problems(answer.errors)
        for path, reason in problems:
            reports.tell(path, reason)
        reports.judge()
        if answer.rc == INCOMPLETE and not problems:
            raise LmsError(
                f"restic could not read all files of {self.settings.name}, and did not say which ones.", stderr="\n".join(answer.errors)
            )
        return reports

    def _read_back(self, snapshot: str, identity: str) -> Snapshot:
        """Return the snapshot as the repository lists it."""
        found = [each for each in self.restic.snapshots(snapshot) if each.backup == identity]
        if len(found) != 1:
            raise LmsError(f"restic said that it made the snapshot {snapshot}, but does not list it.")
        return found[0]

    def _forget(self, snapshot: str) -> None:
        """Forget a snapshot that is not whole. Without a manifest nothing here takes it for a backup, whether that works or not."""
        try:
            self.restic.forget([snapshot])
        except LmsError as error:
            self.warnings.append(f"The incomplete snapshot {snapshot} stays: {error.message}")

    def _tell(self, removed: Sequence[Lock], others: Sequence[Lock]) -> None:
        self.warnings += [f"A lock of restic was removed, whose process is dead: {lock.portrait()}." for lock in removed]
        self.warnings += [f"restic's repository has a lock of a process that may be alive: {lock.portrait()}." for lock in others]


def prune(settings: Settings, store: Store, restic: Restic, *, check_mode: bool = False, progress: Progress | None = None) -> Outcome:
    """Forget the snapshots whose backup was pruned, and remove the data that only they had."""
    check_name("environment", settings.environment)
    check_name("name", settings.name)
    repository = store.facts()
    restic.version()
    if not restic.exists(store):
        raise LmsError(f"There is no repository of restic at {restic.location.repository}. Correct environment or name.")
    if check_mode:
        return _pruned(settings, store, restic, repository, True, progress or Progress())
    with ended_in_order(), only_one(f"{store.uri}/{settings.path}"):
        return _pruned(settings, store, restic, repository, False, progress or Progress())


def _pruned(
    settings: Settings, store: Store, restic: Restic, repository: Mapping[str, Any], check_mode: bool, progress: Progress
) -> Outcome:
    """Decide, and carry it out."""
    catalogue = read_catalogue(store, settings.environment, KIND, settings.name)
    newest = newest_good(catalogue)
    gone = forgettable(restic.snapshots(), [backup.id for backup in catalogue.backups], newest.id if newest else "", now_utc())
    notes = [
        f"Forget the snapshot {snapshot.id[:8]} of {iso(snapshot.time)}: its backup {snapshot.backup} was pruned." for snapshot in gone
    ]
    warnings: list[str] = []
    if gone and not check_mode:
        progress.step(f"prune restic's repository of {settings.name}")
        removed, _others = restic.clear_locks(store, now_utc())
        warnings = [f"A lock of restic was removed, whose process is dead: {lock.portrait()}." for lock in removed]
        restic.forget([snapshot.id for snapshot in gone])
        restic.prune()
    plan = {**_EMPTY_PLAN, "notes": notes, "repository": dict(repository), "previous": newest.summary() if newest else None}
    diff = {"before": "".join(f"{snapshot.id}\n" for snapshot in gone), "after": "", "before_header": "snapshots that are forgotten"}
    return Outcome(bool(gone), plan, newest.summary() if newest else None, warnings, diff)


# What a plan of a backup has, where no backup is made.
_EMPTY_PLAN: Mapping[str, Any] = {
    "paths": [],
    "counts": {"files": 0, "directories": 0, "links": 0, "bytes": 0},
    "estimated_size": 0,
    "changes": None,
    "skipped": [],
    "notes": [],
    "repository": {},
    "previous": None,
    "partials": [],
    "swept": [],
    "skipped_reason": "",
}


def _is_below(path: str, roots: Sequence[str]) -> bool:
    return any(path == root or path.startswith(f"{root}/") for root in roots)
