# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a PostgreSQL cluster back to a moment with pgBackRest.

What can be known before is told before: that no backup is old enough, that the log has a gap, that a server runs. The data that are there
are renamed and not removed, so that a recovery to the wrong moment can be taken back; rewriting them in place (delta) has to be asked for.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import remove_tree, sync_directory
from ansible_collections.bitflow.lms.plugins.module_utils._pgbackrest import Pgbackrest, Server, State, check_created, result
from ansible_collections.bitflow.lms.plugins.module_utils._pgbackrest_info import Backup, Stanza, iso, segment_name

TARGETS = ("target_time", "target_lsn", "target_xid", "target_name", "target_immediate")
# Clocks of the host and of a repository may differ by so much (seconds).
CLOCKS_DIFFER = 60


@dataclass(frozen=True)
class Target:
    """The moment to recover to."""

    # default is the end of the archive.
    type: str = "default"
    value: str = ""
    # Of a time, in seconds since 1970.
    moment: float | None = None
    inclusive: bool = True
    action: str = "promote"
    timeline: str = ""

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Target:
        """Read the options of the module."""
        given = [name for name in TARGETS if params[name]]
        more = {"inclusive": params["target_inclusive"], "action": params["target_action"], "timeline": params["target_timeline"] or ""}
        if len(given) > 1:
            raise LmsError(f"{' and '.join(given)} exclude each other: a recovery ends at one of them.")
        if not given:
            return cls(**more)
        if given == ["target_immediate"]:
            return cls("immediate", **more)
        if given == ["target_time"]:
            moment = read_time(params["target_time"])
            return cls("time", moment.strftime("%Y-%m-%d %H:%M:%S.%f+00"), moment.timestamp(), **more)
        return cls(given[0][len("target_") :], str(params[given[0]]), **more)

    @property
    def options(self) -> list[str]:
        """Return the options of pgBackRest."""
        if self.type == "default":
            return [f"--target-timeline={self.timeline}"] if self.timeline else []
        return [
            f"--type={self.type}",
            *([f"--target={self.value}"] if self.value else []),
            *(["--target-exclusive"] if self.type in {"time", "lsn", "xid"} and not self.inclusive else []),
            f"--target-action={self.action}",
            *([f"--target-timeline={self.timeline}"] if self.timeline else []),
        ]


def read_time(text: str) -> datetime:
    """Read a moment; one without a time zone could be any of two dozen, and is refused."""
    try:
        moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError as error:
        raise LmsError(f"target_time is {text}, which is no moment such as 2026-11-23T10:28:35Z.") from error
    if moment.tzinfo is None:
        raise LmsError(f"target_time is {text} and does not say in which time zone. Add Z for UTC, or an offset such as +01:00.")
    return moment.astimezone(timezone.utc)


def choose(stanza: Stanza, target: Target, label: str | None) -> Backup:
    """Return the backup to begin with: the one that is asked for, or the newest that ended before the target."""
    if not stanza.backups:
        raise LmsError(f"There is no backup of stanza {stanza.name} to restore.")
    if label:
        for backup in stanza.backups:
            if backup.label == label:
                return _old_enough(backup, target)
        raise LmsError(f"Backup {label} is not in the repositories. They have: {', '.join(backup.label for backup in stanza.backups)}.")
    fitting = [backup for backup in stanza.backups if _before(backup, target)]
    if not fitting:
        oldest = stanza.backups[0]
        raise LmsError(
            f"No backup of stanza {stanza.name} is older than {target.value}. The oldest, {oldest.label}, ended at {iso(oldest.stopped)}: "
            f"later moments can be recovered."
        )
    return fitting[-1]


def _old_enough(backup: Backup, target: Target) -> Backup:
    """Refuse a backup that ended after the target."""
    if not _before(backup, target):
        raise LmsError(
            f"Backup {backup.label} ended at {iso(backup.stopped)}, after {target.value}. Choose an older one, or leave set out."
        )
    return backup


def _before(backup: Backup, target: Target) -> bool:
    """Say whether a backup ended before the target, as far as that can be told."""
    if target.moment is not None:
        return backup.stopped < target.moment
    if target.type == "lsn" and backup.lsn_stop:
        return number_of(backup.lsn_stop) <= number_of(target.value)
    return True


def number_of(lsn: str) -> int:
    """Return a place in the log as a number."""
    try:
        high, low = (int(part, 16) for part in lsn.split("/"))
    except ValueError as error:
        raise LmsError(f"target_lsn is {lsn}, which is no place in the log such as 0/3000028.") from error
    return high * (1 << 32) + low


def unreachable(stanza: Stanza, backup: Backup, target: Target) -> str:
    """Say why the log does not lead from a backup to the target, else nothing."""
    if target.type == "immediate":
        return ""
    for gap in stanza.gaps_after(backup):
        if target.moment is None or gap.reached < target.moment:
            name = segment_name(gap.timeline, gap.first, stanza.segment_size)
            until = f"moments until {iso(gap.reached)}" if gap.reached else "nothing"
            return f"WAL segment {name} is missing in the repository: from backup {backup.label} on, {until} can be recovered."
    if target.moment is not None and stanza.newest_wal and target.moment > stanza.newest_wal + CLOCKS_DIFFER:
        return (
            f"The log in the repository ends at {iso(stanza.newest_wal)}, before {target.value}: PostgreSQL would not start. "
            f"Leave target_time out to recover all that there is."
        )
    return ""


def restore(tool: Pgbackrest, params: Mapping[str, Any], check_mode: bool) -> dict[str, Any]:
    """Restore the cluster, so that it recovers to the target when it is started."""
    target = Target.of(params)
    state = tool.look()
    check_created(state.stanza)
    backup = choose(state.stanza, target, params["set"])
    place = Place.of(params["path"], state, params["delta"])
    blocked = refusals(state, place, backup, target, params["confirm"])
    options = options_of(backup, target, place, params["process_max"], state)
    description: dict[str, Any] = {
        "set": backup.label,
        "set_stopped": iso(backup.stopped),
        "type": target.type,
        "target": target.value or None,
        "path": str(place.path),
        "previous": str(place.previous(state.now)) if place.kept else None,
        "size": backup.size,
        "duration_s": None,
    }
    if blocked and not check_mode:
        raise LmsError(" ".join(blocked), **state.describe())
    started = tool.clock()
    if not check_mode:
        carry_out(tool, options, place, state)
        description["duration_s"] = round(tool.clock() - started, 1)
    return result(
        state if check_mode else tool.look(),
        changed=True,
        plan=[tool.argv("restore", *options)],
        backup=backup,
        before={"cluster": "as it is"},
        after={"cluster": _moment(backup, target)},
        blocked=blocked,
        restore=description,
    )


def _moment(backup: Backup, target: Target) -> str:
    """Say in words what the cluster becomes."""
    ends = {"default": "the end of the log", "immediate": "the end of the backup"}
    return f"backup {backup.label} and the log until {ends.get(target.type, f'{target.type} {target.value}')}"


@dataclass(frozen=True)
class Place:
    """Where the cluster is restored to."""

    path: Path
    # The data directory of the stanza, and not another one beside it.
    own: bool
    delta: bool
    # There are data, which are kept under another name.
    kept: bool
    # An earlier restore was cut off here.
    interrupted: bool

    @classmethod
    def of(cls, path: str | None, state: State, delta: bool) -> Place:
        """Look at a directory."""
        own = state.server.data
        chosen = Path(path) if path else own
        if chosen is None:
            raise LmsError(
                f"Nobody knows where to restore to: give path, or pg1-path of stanza {state.stanza.name} in pgBackRest's configuration."
            )
        chosen = Path(os.path.realpath(chosen))
        filled = chosen.is_dir() and any(chosen.iterdir())
        # It is the last file that pgBackRest writes; no server starts without.
        interrupted = filled and not (chosen / "global/pg_control").exists() and (chosen / "backup.manifest").exists()
        same = own is not None and chosen == Path(os.path.realpath(own))
        return cls(chosen, same, delta or interrupted, filled and not delta and not interrupted, interrupted)

    def previous(self, now: float) -> Path:
        """Return under which name the data are kept."""
        stamp = datetime.fromtimestamp(now, timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        return self.path.with_name(f"{self.path.name}.before_{stamp}")


def refusals(state: State, place: Place, backup: Backup, target: Target, confirm: str | None) -> list[str]:
    """Say what stands in the way."""
    found = []
    server = state.server if place.own else Server.at(place.path)
    if server.running:
        found.append(f"PostgreSQL runs in {place.path} (process {server.pid}). Stop it first.")
    else:
        # What a server that runs has not handed over yet, it does when it is stopped.
        found.append(unreachable(state.stanza, backup, target))
    if confirm != state.stanza.name:
        found.append(f"A restore replaces the whole cluster. Confirm it with the name of the stanza: confirm: {state.stanza.name}.")
    if place.kept:
        found.append(_no_room_for_both(place, backup))
    return [sentence for sentence in found if sentence]


def _no_room_for_both(place: Place, backup: Backup) -> str:
    """Say why the data cannot be kept beside the restored ones, else nothing."""
    tablespaces = [entry.name for entry in (place.path / "pg_tblspc").iterdir()] if (place.path / "pg_tblspc").is_dir() else []
    if tablespaces:
        return f"{place.path} has tablespaces outside of it, which cannot be kept under another name. Rewrite them in place: delta: true."
    if place.path.is_mount():
        return f"{place.path} is a file system of its own and cannot be renamed. Rewrite it in place: delta: true."
    free = shutil.disk_usage(place.path.parent).free
    if free < backup.size:
        return (
            f"{place.path.parent} has {free} bytes free, and {backup.size} are needed beside the data that are kept. "
            f"Make room, or rewrite them in place: delta: true."
        )
    return ""


def options_of(backup: Backup, target: Target, place: Place, processes: int | None, state: State) -> list[str]:
    """Return the options with which pgBackRest restores."""
    return [
        f"--set={backup.label}",
        *([f"--repo={backup.repository}"] if len(state.stanza.repositories) > 1 else []),
        *target.options,
        *(["--delta"] if place.delta else []),
        # What is tried out beside the live cluster must not write into its archive.
        *([] if place.own else [f"--pg1-path={place.path}", "--archive-mode=off"]),
        *([f"--process-max={processes}"] if processes else []),
    ]


def carry_out(tool: Pgbackrest, options: Sequence[str], place: Place, state: State) -> None:
    """Put the data aside and restore; what failed leaves the data where they were."""
    previous = place.previous(state.now)
    owner = (place.path if place.path.exists() else place.path.parent).stat()
    if place.kept:
        place.path.rename(previous)
        sync_directory(place.path.parent)
    if not place.path.exists():
        place.path.mkdir(mode=0o700, parents=True)
        if os.geteuid() == 0:
            os.chown(place.path, owner.st_uid, owner.st_gid)
    try:
        tool.command("restore", *options)
    except BaseException:
        if place.kept:
            remove_tree(place.path)
            previous.rename(place.path)
            sync_directory(place.path.parent)
        raise
