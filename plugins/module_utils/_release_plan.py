# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide what happens to the releases of an application. Plain data in, plain data out: nothing here touches a host."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Union

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

PARTIAL = ".partial"
REMOVING = ".removing"

# How long something unfinished may belong to a deploy that is still at work (seconds).
UNFINISHED_AGE = 3600

_RELEASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Release:
    """One release and what is recorded of it.

    The sequence counts up on each host, so that the order of releases depends on no clock.
    """

    id: str
    sequence: int = 0
    state: str = "unknown"
    artifact_sha256: str = ""
    fingerprint: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    pinned: bool = False
    size: int = 0
    files: int = 0
    built_at: str = ""
    verified_at: str = ""
    activated_at: str = ""
    changed_at: str = ""
    replaced: str = ""
    left_for: str = ""
    reason: str = ""

    @property
    def rollback_target(self) -> bool:
        """Say whether the release was live and healthy, and nobody went back from it to an older one."""
        return self.state != "failed" and bool(self.activated_at) and bool(self.verified_at) and not self.left_for


@dataclass(frozen=True)
class Leftover:
    """A directory that an interrupted run left behind."""

    name: str
    age: float


@dataclass(frozen=True)
class Tree:
    """What stands below an application's root. The link decides which release is live; the releases are in order, oldest first."""

    current: str | None = None
    releases: tuple[Release, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    open: frozenset[str] = frozenset()

    def find(self, release_id: str) -> Release | None:
        """Return a release by its id."""
        return next((release for release in self.releases if release.id == release_id), None)

    @property
    def previous(self) -> str | None:
        """Return the release to roll back to: the last one before the live one that was live and healthy."""
        ids = [release.id for release in self.releases]
        if self.current not in ids:
            return None
        before = self.releases[: ids.index(self.current)]
        return next((release.id for release in reversed(before) if release.rollback_target), None)

    def state_of(self, release_id: str) -> str:
        """Return the state of a release, which may be absent."""
        release = self.find(release_id)
        return release.state if release else "absent"


@dataclass(frozen=True)
class Unpack:
    """Build a release from its artifact."""

    release: Release


@dataclass(frozen=True)
class Record:
    """Write down what became of a release."""

    release: Release
    event: str


@dataclass(frozen=True)
class Switch:
    """Point the live link at a release."""

    release: str


@dataclass(frozen=True)
class Remove:
    """Remove a release or a leftover by its directory's name."""

    name: str
    event: str


Step = Union[Unpack, Record, Switch, Remove]


@dataclass(frozen=True)
class Plan:
    """What is to be done, in order, and what the tree looks like after it."""

    steps: tuple[Step, ...]
    after: Tree

    @property
    def removed(self) -> list[str]:
        """Return the directories that go."""
        return sorted(step.name for step in self.steps if isinstance(step, Remove))


@dataclass(frozen=True)
class Request:
    """What a task asks for. None means: leave it as it is."""

    state: str
    release: str = ""
    artifact_sha256: str = ""
    fingerprint: str | None = None
    metadata: Mapping[str, Any] | None = None
    pinned: bool | None = None
    reason: str = ""
    unverified_allowed: bool = False
    keep: int = 5
    min_age: int = 0


def format_time(moment: datetime) -> str:
    """Write a time as ISO 8601 in UTC."""
    return moment.astimezone(timezone.utc).strftime(_TIME_FORMAT)


def parse_time(text: str) -> datetime | None:
    """Read a time that format_time wrote."""
    try:
        return datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=timezone.utc)
    except ValueError:
        return None


def check_release_name(name: str) -> None:
    """Refuse a release id that is no plain directory name."""
    if not _RELEASE_NAME.fullmatch(name) or name.endswith((PARTIAL, REMOVING)):
        raise LmsError(
            f"release is {name!r}: use letters, digits, dots, hyphens and underscores, begin with a letter or digit, "
            f"and do not end in {PARTIAL} or {REMOVING}."
        )


def settle(tree: Tree) -> Tree:
    """Bring the recorded states in line with the link, and the releases in order."""
    releases = (replace(release, state=_state_by_link(release, tree.current)) for release in tree.releases)
    return replace(tree, releases=tuple(sorted(releases, key=lambda release: (release.sequence, release.id))))


def _state_by_link(release: Release, current: str | None) -> str:
    """Return the state of a release: only the link says what is live."""
    if release.id == current:
        return "active"
    return "superseded" if release.state == "active" else release.state


def decide(tree: Tree, request: Request, now: datetime, foresee: bool = False) -> Plan:
    """Return the plan that fulfils a request.

    In check mode an earlier task has only said that it would build the release. Then foresee takes a release
    for built and verified if it is newer than all that are there: nothing else can still be on its way.
    """
    if request.state == "pruned":
        return _plan_pruned(tree, request, now)
    check_release_name(request.release)
    if foresee and request.state in ("verified", "active") and _may_be_on_its_way(tree, request.release):
        moment = format_time(now)
        coming = Release(request.release, _next_sequence(tree), "verified", verified_at=moment, changed_at=moment)
        tree = replace(tree, releases=(*tree.releases, coming))
        if request.state == "verified":
            return Plan((Record(coming, "verified"),), tree)
    planner = {"present": _plan_present, "verified": _plan_verified, "active": _plan_active, "failed": _plan_failed, "absent": _plan_absent}
    return planner[request.state](tree, request, now)


def _may_be_on_its_way(tree: Tree, release_id: str) -> bool:
    """Say whether a release is not there yet and newer than all that are."""
    return all(release.id < release_id for release in tree.releases)


def _next_sequence(tree: Tree) -> int:
    """Return the number after the newest release's."""
    return max((release.sequence for release in tree.releases), default=0) + 1


def _with(tree: Tree, *changed: Release, current: str | None = None) -> Tree:
    """Return the tree with some releases replaced or added."""
    by_id = {release.id: release for release in (*tree.releases, *changed)}
    return settle(replace(tree, releases=tuple(by_id.values()), current=current or tree.current))


def _required(tree: Tree, release_id: str) -> Release:
    """Return a release, or say that it is missing and which ones there are."""
    release = tree.find(release_id)
    if release is None:
        known = ", ".join(known.id for known in tree.releases) or "none"
        raise LmsError(f"Release {release_id} is not there. Known releases: {known}.", known=[known.id for known in tree.releases])
    return release


def _asked(release: Release, request: Request) -> Release:
    """Return a release with what the task says about it."""
    return replace(
        release,
        fingerprint=release.fingerprint if request.fingerprint is None else request.fingerprint,
        metadata=release.metadata if request.metadata is None else dict(request.metadata),
        pinned=release.pinned if request.pinned is None else request.pinned,
    )


def _plan_present(tree: Tree, request: Request, now: datetime) -> Plan:
    """Build a release that is not there; one that is there keeps its files for ever."""
    release = tree.find(request.release)
    moment = format_time(now)
    if release is None:
        new = Release(
            request.release,
            _next_sequence(tree),
            "built",
            artifact_sha256=request.artifact_sha256,
            built_at=moment,
            changed_at=moment,
        )
        new = _asked(new, request)
        return Plan((Unpack(new),), _with(tree, new))
    if request.artifact_sha256 and release.artifact_sha256 != request.artifact_sha256:
        raise LmsError(
            f"Release {release.id} exists and was built from another artifact. A release never changes: deploy under a new id.",
            recorded_sha256=release.artifact_sha256,
            artifact_sha256=request.artifact_sha256,
        )
    asked = _asked(release, request)
    return Plan(() if asked == release else (Record(asked, "changed"),), _with(tree, asked))


def _plan_verified(tree: Tree, request: Request, now: datetime) -> Plan:
    """Note that the health of a release was proven."""
    release = _required(tree, request.release)
    if release.state == "failed":
        raise LmsError(f"Release {release.id} is marked failed ({_reason(release)}). Deploy under a new id.")
    asked = _asked(release, request)
    if release.verified_at:
        return Plan(() if asked == release else (Record(asked, "changed"),), _with(tree, asked))
    moment = format_time(now)
    state = "verified" if release.state in ("built", "unknown") else release.state
    verified = replace(asked, state=state, verified_at=moment, changed_at=moment)
    return Plan((Record(verified, "verified"),), _with(tree, verified))


def _plan_active(tree: Tree, request: Request, now: datetime) -> Plan:
    """Make a release the live one, and note which one it replaced."""
    release = _required(tree, request.release)
    if release.state == "failed":
        raise LmsError(f"Release {release.id} is marked failed ({_reason(release)}). Activate another one or deploy under a new id.")
    live = tree.current == release.id
    if not live and not release.verified_at and not request.unverified_allowed:
        raise LmsError(
            f"Release {release.id} is not verified. Prove its health and mark it with state: verified, or set unverified_allowed: true."
        )
    moment = format_time(now)
    asked = _asked(release, request)
    if live and release.activated_at:
        return Plan(() if asked == release else (Record(asked, "changed"),), _with(tree, asked))
    active = replace(asked, state="active", activated_at=moment, changed_at=moment, left_for="")
    if live:
        # A run was killed between the switch and its record.
        return Plan((Record(active, "activated"),), _with(tree, active))
    active = replace(active, replaced=tree.current or "")
    replaced = tree.find(tree.current or "")
    if replaced is None:
        return Plan((Switch(release.id), Record(active, "activated")), _with(tree, active, current=release.id))
    left_for = release.id if release.sequence < replaced.sequence else ""
    superseded = replace(replaced, state="superseded", activated_at=replaced.activated_at or moment, changed_at=moment, left_for=left_for)
    steps = (Switch(release.id), Record(active, "activated"), Record(superseded, "superseded"))
    return Plan(steps, _with(tree, active, superseded, current=release.id))


def _plan_failed(tree: Tree, request: Request, now: datetime) -> Plan:
    """Mark a release, so that nobody ever goes back to it. A release that is not there needs no mark."""
    if request.release == tree.current:
        raise LmsError(f"Release {request.release} is live and cannot be marked failed. Activate another release first.")
    release = tree.find(request.release)
    if release is None:
        return Plan((), tree)
    reason = request.reason or release.reason
    asked = _asked(release, request)
    if release.state == "failed" and release.reason == reason:
        return Plan(() if asked == release else (Record(asked, "changed"),), _with(tree, asked))
    failed = replace(asked, state="failed", reason=reason, changed_at=format_time(now))
    return Plan((Record(failed, "failed"),), _with(tree, failed))


def _plan_absent(tree: Tree, request: Request, now: datetime) -> Plan:
    """Remove one release and what was left of building it."""
    del now
    if request.release == tree.current:
        raise LmsError(f"Release {request.release} is live and cannot be removed. Activate another release first.")
    names = {request.release, request.release + PARTIAL, request.release + REMOVING}
    there = {release.id for release in tree.releases} | {leftover.name for leftover in tree.leftovers}
    return _removal(tree, sorted(names & there), "removed")


def _removal(tree: Tree, names: list[str], event: str) -> Plan:
    """Return the plan that removes directories."""
    gone = set(names)
    after = replace(
        tree,
        releases=tuple(release for release in tree.releases if release.id not in gone),
        leftovers=tuple(leftover for leftover in tree.leftovers if leftover.name not in gone),
    )
    return Plan(tuple(Remove(name, event) for name in names), after)


def _plan_pruned(tree: Tree, request: Request, now: datetime) -> Plan:
    """Remove leftovers, failed and abandoned releases, then the oldest good ones beyond the number to keep."""
    if request.keep < 1:
        raise LmsError(f"keep is {request.keep}: keep at least 1 release.")
    leftovers = [leftover.name for leftover in tree.leftovers if leftover.name.endswith(REMOVING) or leftover.age >= UNFINISHED_AGE]
    free = [release for release in tree.releases if _may_go(tree, release, request.min_age, now)]
    failed = [release.id for release in free if release.state == "failed" and not _is_a_warning(tree, release)]
    abandoned = [release.id for release in free if _is_abandoned(tree, release, now)]
    good = [release.id for release in tree.releases if release.state != "failed" and release.activated_at]
    kept = set(good[-request.keep :])
    old = [release.id for release in free if release.id in good and release.id not in kept]
    return _removal(tree, [*leftovers, *failed, *abandoned, *old], "pruned")


def _may_go(tree: Tree, release: Release, min_age: int, now: datetime) -> bool:
    """Say whether nothing protects a release. What no record describes was put there by somebody else and stays."""
    protected = release.id in (tree.current, tree.previous) or release.id in tree.open or release.pinned or release.state == "unknown"
    return not protected and _age(release, now) >= min_age


def _is_a_warning(tree: Tree, release: Release) -> bool:
    """Say whether a release changed the database for good and an older one is there that a rollback could choose."""
    older = [other for other in tree.releases if other.sequence < release.sequence and other.rollback_target]
    return bool(release.metadata.get("contract_migrations")) and bool(older)


def _is_abandoned(tree: Tree, release: Release, now: datetime) -> bool:
    """Say whether a release never went live, is older than the live one and belongs to no deploy that is still at work."""
    current = tree.find(tree.current or "")
    if release.activated_at or release.state == "failed" or current is None:
        return False
    return release.sequence < current.sequence and _age(release, now) >= UNFINISHED_AGE


def _age(release: Release, now: datetime) -> float:
    """Return the seconds since the state of a release last changed."""
    changed = parse_time(release.changed_at)
    return (now - changed).total_seconds() if changed else 0.0


def _reason(release: Release) -> str:
    """Return why a release failed."""
    return release.reason or "no reason was given"


def summary(tree: Tree, release_id: str) -> dict[str, Any]:
    """Return one side of a diff."""
    found: dict[str, Any] = {"current": tree.current, "releases": [release.id for release in tree.releases]}
    release = tree.find(release_id)
    if release_id:
        found["release"] = release_id
        found["state"] = tree.state_of(release_id)
        found["pinned"] = bool(release and release.pinned)
        found["reason"] = release.reason if release else ""
    return found


def result(before: Tree, plan: Plan, after: Tree, release_id: str, root: str, components: Sequence[str] = ()) -> dict[str, Any]:
    """Return the result of a task; components are those that are pruned."""
    return {
        "changed": bool(plan.steps or components),
        "root": root,
        "release": release_id or None,
        "release_path": f"{root}/releases/{release_id}" if release_id else None,
        "state": after.state_of(release_id) if release_id else None,
        "current": after.current,
        "previous": after.previous,
        "pruned": plan.removed,
        "components_pruned": sorted(components),
        "diff": {"before": summary(before, release_id), "after": summary(after, release_id)},
    }


def describe(release: Release, directory: str) -> dict[str, Any]:
    """Return one release as a result."""
    return {
        "id": release.id,
        "path": f"{directory}/{release.id}",
        "state": release.state,
        "commit": str(release.metadata.get("commit", "")),
        "version": str(release.metadata.get("version", "")),
        "fingerprint": release.fingerprint,
        "artifact_sha256": release.artifact_sha256,
        "metadata": dict(release.metadata),
        "pinned": release.pinned,
        "size": release.size,
        "files": release.files,
        "built_at": release.built_at,
        "verified_at": release.verified_at,
        "activated_at": release.activated_at,
        "replaced": release.replaced,
        "left_for": release.left_for,
        "reason": release.reason,
    }
