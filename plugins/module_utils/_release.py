# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The releases of one application on this host: read what is there, and carry out a plan so that no crash leaves half of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import IO, Any, Callable

from ansible_collections.bitflow.lms.plugins.module_utils._archive import (
    MANIFEST,
    Contents,
    Unpacker,
    compare_with_manifest,
    parse_manifest,
    sha256_of,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import (
    ANYBODY,
    Owner,
    locked,
    make_directory,
    mode_number,
    owner_of_directory,
    relative_path,
    remove_tree,
    sync_directory,
    sync_filesystem,
    write_atomically,
)
from ansible_collections.bitflow.lms.plugins.module_utils._journal import Journal
from ansible_collections.bitflow.lms.plugins.module_utils._maintenance_marker import carry_maintenance
from ansible_collections.bitflow.lms.plugins.module_utils._release_plan import (
    PARTIAL,
    REMOVING,
    Leftover,
    Plan,
    Record,
    Release,
    Remove,
    Step,
    Switch,
    Tree,
    Unpack,
    format_time,
    settle,
)

# A second run on the same host, or the rest of a run whose controller was killed, is given this time to end (seconds).
LOCK_TIMEOUT = 60

# OPcache does not cache a file that is younger than two seconds, so a release's files are dated a little back.
FILES_DATED_BACK = timedelta(seconds=10)

_STAMP = re.compile(r"\d{14}(?=-|$)")
_MAPPED_PATH = re.compile(r" (?P<path>/.*)$")


@dataclass(frozen=True)
class Build:
    """How the files of a release are put together."""

    artifact: Path | None = None
    owner: Owner = ANYBODY
    shared_directories: tuple[str, ...] = ()
    shared_owner: Owner = ANYBODY
    shared_mode: int = 0o2770
    writable_directories: tuple[str, ...] = ()
    # Paths in the release and the links to make there: a release that is put together from what lies beside it has no artifact.
    links: Mapping[str, str] = field(default_factory=dict)


def release_files_argspec() -> dict[str, Any]:
    """Return the options that say what a release consists of and to whom it belongs; the fragment release_files documents them."""
    names = {"type": "list", "elements": "str", "default": []}
    return {
        "artifact_sha256": {"type": "str"},
        "fingerprint": {"type": "str"},
        "metadata": {"type": "dict"},
        "owner": {"type": "str"},
        "group": {"type": "str"},
        "shared_directories": names,
        "shared_owner": {"type": "str"},
        "shared_group": {"type": "str"},
        "shared_mode": {"type": "str", "default": "2770"},
        "writable_directories": names,
    }


def build_from(params: Mapping[str, Any]) -> Build:
    """Return how a release is put together; users and groups must exist by now."""
    return Build(
        artifact=Path(params["artifact"]) if params["artifact"] else None,
        owner=Owner.of(params["owner"], params["group"]),
        shared_directories=tuple(relative_path(name, "shared_directories") for name in params["shared_directories"]),
        shared_owner=Owner.of(params["shared_owner"], params["shared_group"]),
        shared_mode=mode_number(params["shared_mode"], "shared_mode"),
        writable_directories=tuple(relative_path(name, "writable_directories") for name in params["writable_directories"]),
    )


def _no_checkpoint(name: str) -> None:
    """Pass a step; tests hand in a function that fails or kills here."""
    del name


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(timezone.utc)


@contextlib.contextmanager
def open_artifact(artifact: Path, sha256: str) -> Iterator[IO[bytes]]:
    """Open an artifact and prove its sum; what was proven is what is read afterwards."""
    try:
        stream = artifact.open("rb")
    except FileNotFoundError as error:
        raise LmsError(f"The artifact {artifact} is not on this host.") from error
    with stream:
        found = sha256_of(stream)
        if found != sha256:
            raise LmsError(
                f"The artifact {artifact} is not the one that was built: its SHA-256 differs. Copy it again.",
                found_sha256=found,
                expected_sha256=sha256,
            )
        stream.seek(0)
        yield stream


def unpack_artifact(stream: IO[bytes], artifact: Path, destination: Path, owner: Owner, modified: int) -> Contents:
    """Unpack an artifact into a new directory and hold every file against the manifest."""
    contents = Unpacker(destination, owner, modified).unpack(stream)
    if MANIFEST not in contents.sums:
        raise LmsError(f"The artifact {artifact} has no {MANIFEST}. Build it with release_artifact.")
    compare_with_manifest(parse_manifest((destination / MANIFEST).read_text(encoding="utf-8")), contents.sums)
    return contents


class Releases:
    """The releases below an application's root."""

    def __init__(
        self,
        root: Path,
        now: Callable[[], datetime] = utc_now,
        checkpoint: Callable[[str], None] = _no_checkpoint,
        processes: Path = Path("/proc"),
    ) -> None:
        self.root = root
        self.directory = root / "releases"
        self.shared = root / "shared"
        self.current = root / "current"
        self.state = root / ".deploy"
        self.records = self.state / "releases"
        self.journal = Journal(self.state / "journal.jsonl")
        self.now = now
        self._checkpoint = checkpoint
        self._processes = processes

    # Reading

    def read(self, with_open: bool = False) -> Tree:
        """Return what stands below the root; on a bare host that is nothing."""
        names = sorted(entry.name for entry in self._entries() if not entry.name.startswith("."))
        releases = tuple(self._record_of(name) for name in names if not name.endswith((PARTIAL, REMOVING)))
        leftovers = tuple(self._leftover(name) for name in names if name.endswith((PARTIAL, REMOVING)))
        opened = open_releases(self.directory, self._processes) if with_open and names else frozenset()
        return settle(Tree(self._live(), releases, leftovers, opened))

    def _entries(self) -> list[Path]:
        """Return the directories below releases/."""
        try:
            return [entry for entry in self.directory.iterdir() if entry.is_dir() and not entry.is_symlink()]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _live(self) -> str | None:
        """Return the release that the link points at."""
        try:
            target = self.current.readlink()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LmsError(f"{self.current} is not a link. Move it away: the live release is a link there.") from error
        with contextlib.suppress(ValueError):
            inside = Path(os.path.normpath(self.root / target)).relative_to(self.directory)
            return inside.parts[0] if inside.parts else None
        with contextlib.suppress(ValueError):
            inside = self.current.resolve().relative_to(self.directory.resolve())
            return inside.parts[0] if inside.parts else None
        return None

    def _record_of(self, name: str) -> Release:
        """Return a release with its record; without a readable record its state is unknown."""
        try:
            found = json.loads((self.records / f"{name}.json").read_text(encoding="utf-8"))
            known = {key: found[key] for key in (entry.name for entry in fields(Release)) if key in found}
        except (FileNotFoundError, ValueError, TypeError):
            return Release(name)
        return Release(**{**known, "id": name})

    def _leftover(self, name: str) -> Leftover:
        """Return a directory that an interrupted run left."""
        # The time of the last change of the directory itself: unlike its modification time nothing in an archive can set it.
        try:
            changed = (self.directory / name).stat().st_ctime
        except FileNotFoundError:
            return Leftover(name, 0)
        return Leftover(name, self.now().timestamp() - changed)

    # Acting

    @contextlib.contextmanager
    def locked(self, owner: Owner) -> Iterator[None]:
        """Let nobody else change the releases; create the directories that hold them."""
        make_directory(self.root.parent)
        for directory in (self.root, self.directory, self.shared, self.state, self.records):
            make_directory(directory, 0o755, owner)
        with locked(self.state / "release.lock", f"Another change of the releases in {self.root}", LOCK_TIMEOUT):
            yield

    def carry_out(self, plan: Plan, build: Build) -> Tree:
        """Carry out a plan and return what stands there then."""
        for step in plan.steps:
            try:
                self._carry_out_step(step, build)
            except OSError as error:
                raise LmsError(f"{_deed(step)} in {self.root} failed: {error}.") from error
        return self.read()

    def _carry_out_step(self, step: Step, build: Build) -> None:
        """Carry out one step."""
        if isinstance(step, Unpack):
            self._build(step.release, build)
        elif isinstance(step, Record):
            self._record(step.release)
            self._note(step.event, step.release.id, reason=step.release.reason)
        elif isinstance(step, Switch):
            self._switch(step.release)
        else:
            self._remove(step)

    def _note(self, event: str, release_id: str, **details: Any) -> None:
        """Add an event to the journal."""
        known = {key: value for key, value in details.items() if value}
        self.journal.append({"at": format_time(self.now()), "event": event, "release": release_id, **known})
        self._checkpoint("journal")

    def _record(self, release: Release) -> None:
        """Write the record of a release."""
        text = json.dumps(asdict(release), indent=2, sort_keys=True) + "\n"
        write_atomically(self.records / f"{release.id}.json", text.encode(), 0o644, owner_of_directory(self.records))
        self._checkpoint("record")

    def _build(self, release: Release, build: Build) -> None:
        """Unpack a release aside, prove its files, finish it and rename it into place."""
        partial = self.directory / f"{release.id}{PARTIAL}"
        remove_tree(partial)
        try:
            contents = self._make_links(build, partial) if build.links else self._unpack(release, build, partial)
            self._link_shared_directories(partial, build)
            self._write_revision(partial, release, build.owner)
            self._open_writable_directories(partial, build)
            self._checkpoint("finished")
            partial.chmod(0o755)
            build.owner.give(partial)
            sync_filesystem(partial)
            self._checkpoint("synced")
            # The record goes first: it counts only once the directory is there, and the rename makes both true at once.
            self._record(replace(release, size=contents.size, files=len(contents.sums)))
            partial.rename(self.directory / release.id)
            self._checkpoint("renamed")
        except Exception:
            remove_tree(partial)
            if not (self.directory / release.id).is_dir():
                (self.records / f"{release.id}.json").unlink(missing_ok=True)
            raise
        sync_directory(self.directory)
        self._note("built", release.id, artifact_sha256=release.artifact_sha256)

    def _unpack(self, release: Release, build: Build, partial: Path) -> Contents:
        """Unpack the artifact and hold every file against the manifest."""
        if build.artifact is None or not release.artifact_sha256:
            raise LmsError(f"Release {release.id} is not there yet: give artifact and artifact_sha256 to build it.")
        modified = int(_file_time(release.id, self.now()).timestamp())
        with open_artifact(build.artifact, release.artifact_sha256) as stream:
            self._checkpoint("artifact")
            partial.mkdir(0o700)
            contents = unpack_artifact(stream, build.artifact, partial, build.owner, modified)
        self._checkpoint("unpacked")
        return contents

    def _make_links(self, build: Build, partial: Path) -> Contents:
        """Put a release together from links."""
        partial.mkdir(0o700)
        for name, target in build.links.items():
            link = partial / name
            make_directory(link.parent, 0o755, build.owner)
            link.symlink_to(target)
            build.owner.give(link, follow=False)
        self._checkpoint("linked")
        return Contents(links=dict(build.links))

    def _link_shared_directories(self, partial: Path, build: Build) -> None:
        """Replace directories of the release by relative links to those that all releases share."""
        for name in build.shared_directories:
            shared = self.shared / name
            make_directory(shared.parent, 0o755, build.owner)
            make_directory(shared, build.shared_mode, build.shared_owner)
            build.shared_owner.give(shared)
            if shared.stat().st_mode & 0o7777 != build.shared_mode:
                shared.chmod(build.shared_mode)
            link = _inside(partial, name)
            if link.is_dir() and not link.is_symlink():
                remove_tree(link)
            link.unlink(missing_ok=True)
            make_directory(link.parent, 0o755, build.owner)
            link.symlink_to(os.path.relpath(self.shared.resolve() / name, link.parent.resolve()))
            build.owner.give(link, follow=False)

    def _write_revision(self, partial: Path, release: Release, owner: Owner) -> None:
        """Write the commit where people and tools look for it."""
        commit = release.metadata.get("commit")
        if commit:
            write_atomically(partial / "REVISION", f"{commit}\n".encode(), 0o644, owner)

    def _open_writable_directories(self, partial: Path, build: Build) -> None:
        """Let the group of the runtime user write in some directories, and only there."""
        group = Owner(gid=build.shared_owner.gid)
        for name in build.writable_directories:
            top = _inside(partial, name)
            if top.is_symlink():
                raise LmsError(f"writable_directories has {name}, which is a link in the release. Name a directory of the release itself.")
            make_directory(top, 0o755, build.owner)
            for directory, _names, files in os.walk(top):
                group.give(Path(directory))
                Path(directory).chmod(0o2770)
                for file in (Path(directory) / found for found in files):
                    if not file.is_symlink():
                        group.give(file)
                        file.chmod(file.stat().st_mode & 0o770 | 0o660)

    def _switch(self, release_id: str) -> None:
        """Put a new link over the live one by rename(2): there is no moment without a live release.

        An application in maintenance stays in it, and one that is open stays open, whatever the release was when it was live before.
        """
        for stale in self.root.glob(".current.*"):
            stale.unlink(missing_ok=True)
        temporary = self.root / f".current.{os.getpid()}"
        temporary.symlink_to(Path("releases", release_id))
        owner_of_directory(self.root).give(temporary, follow=False)
        carry_maintenance(self.current, self.directory / release_id)
        self._checkpoint("linked")
        temporary.rename(self.current)
        self._checkpoint("switched")
        sync_directory(self.root)

    def _remove(self, step: Remove) -> None:
        """Remove a directory; it loses its name first, so that half of it is never taken for a release."""
        path = self.directory / step.name
        if not step.name.endswith((PARTIAL, REMOVING)):
            removing = self.directory / f"{step.name}{REMOVING}"
            remove_tree(removing)
            path.rename(removing)
            path = removing
            self._checkpoint("taken away")
            (self.records / f"{step.name}.json").unlink(missing_ok=True)
        remove_tree(path)
        self._note(step.event, step.name)


def _deed(step: Step) -> str:
    """Say what a step does."""
    if isinstance(step, Unpack):
        return f"Building release {step.release.id}"
    if isinstance(step, Record):
        return f"Recording release {step.release.id}"
    if isinstance(step, Switch):
        return f"Switching to release {step.release}"
    return f"Removing {step.name}"


def _inside(partial: Path, name: str) -> Path:
    """Return a path in the release that no link of the artifact leads elsewhere."""
    path = partial / name
    top = partial.resolve()
    if top not in (path.parent.resolve() / path.name).parents:
        raise LmsError(f"{name} leads out of the release through a link. Remove that link from the application.")
    return path


def _file_time(release_id: str, now: datetime) -> datetime:
    """Return the time that all files of a release carry: the same on every host, and a little in the past.

    It comes from the release's id, so that two hosts behind one load balancer answer with the same ETag,
    and two releases never with the same one.
    """
    latest = now - FILES_DATED_BACK
    match = _STAMP.match(release_id)
    if match is None:
        return latest
    try:
        stamped = datetime.strptime(match[0], "%Y%m%d%H%M%S").replace(tzinfo=timezone.utc)
    except ValueError:
        return latest
    return min(stamped, latest)


def open_releases(directory: Path, processes: Path = Path("/proc")) -> frozenset[str]:
    """Return the releases that a process works in, runs from, maps, holds open or has mounted.

    Without root only the own processes can be looked into.
    """
    return frozenset(holders([directory], processes)[directory])


def holders(directories: Sequence[Path], processes: Path = Path("/proc")) -> dict[Path, dict[str, list[int]]]:
    """Return the entries of directories that processes hold, each with the processes' numbers; one look at each serves all."""
    places = {directory: directory.resolve() for directory in directories}
    here = _read(processes / "self" / "mountinfo")
    on_disk = {directory: _place_on_disk(place, here) for directory, place in places.items()}
    seen_namespaces: set[str] = set()
    found: dict[Path, dict[str, list[int]]] = {directory: {} for directory in directories}
    for process in sorted(processes.glob("[0-9]*"), key=lambda path: int(path.name)):
        paths = set(_paths_of(process))
        namespace = _link_target(process / "ns" / "mnt")
        mounts = "" if namespace in seen_namespaces else _read(process / "mountinfo")
        seen_namespaces.update({namespace} - {""})
        for directory, place in places.items():
            held = {name for path in paths for name in _release_in(path, str(place))}
            held.update(_mounted_releases(mounts, on_disk[directory]))
            for name in held:
                found[directory].setdefault(name, []).append(int(process.name))
    return found


def command_of(number: int, processes: Path = Path("/proc")) -> str:
    """Return the name of a process, without its arguments: they may hold a secret."""
    return _read(processes / str(number) / "comm").strip()


def _paths_of(process: Path) -> Iterator[str]:
    """Return the paths that a process holds. It may end while we look."""
    for name in ("cwd", "root", "exe"):
        yield _link_target(process / name)
    with contextlib.suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            yield _link_target(descriptor)
    for line in _read(process / "maps").splitlines():
        match = _MAPPED_PATH.search(line)
        if match:
            yield match["path"]


def _link_target(link: Path) -> str:
    """Return what a link of /proc says, or nothing."""
    try:
        return str(link.readlink())
    except OSError:
        return ""


def _read(path: Path) -> str:
    """Return the text of a file of /proc, or nothing."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _release_in(path: str, top: str) -> set[str]:
    """Return the release that a path lies in."""
    if not path.startswith(f"{top}/"):
        return set()
    return {path[len(top) + 1 :].partition("/")[0].replace(" (deleted)", "")}


def _mounts(mountinfo: str) -> Iterator[tuple[str, str, str]]:
    """Return device, root within the device and mount point of each mount."""
    for line in mountinfo.splitlines():
        columns = line.split(" ")
        if len(columns) > 4:
            yield columns[2], columns[3], columns[4]


def _place_on_disk(directory: Path, mountinfo: str) -> tuple[str, str] | None:
    """Return the device of a directory and its path on that device."""
    best: tuple[str, str, str] | None = None
    for device, root, point in _mounts(mountinfo):
        inside = directory == Path(point) or Path(point) in directory.parents
        if inside and (best is None or len(point) >= len(best[2])):
            best = (device, root, point)
    if best is None:
        return None
    device, root, point = best
    return device, os.path.normpath(f"{root.rstrip('/')}/{directory.relative_to(point)}")


def _mounted_releases(mountinfo: str, on_disk: tuple[str, str] | None) -> set[str]:
    """Return the releases that are mounted somewhere, as a unit with its own mount namespace does."""
    if on_disk is None:
        return set()
    device, place = on_disk
    found: set[str] = set()
    for mount_device, root, _point in _mounts(mountinfo):
        if mount_device == device:
            found.update(_release_in(root, place))
    return found


def disk_facts(path: Path) -> dict[str, Any]:
    """Return the free space and inodes where a path is, or would be."""
    existing = next(candidate for candidate in (path, *path.parents) if candidate.exists())
    found = os.statvfs(existing)
    return {
        "directory": str(existing),
        "free_bytes": found.f_bavail * found.f_frsize,
        "total_bytes": found.f_blocks * found.f_frsize,
        "free_inodes": found.f_favail,
        "total_inodes": found.f_files,
    }
