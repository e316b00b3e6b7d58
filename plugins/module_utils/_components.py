# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The components that releases of front ends consist of: one application's files and environment, named by what is in them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Callable

from ansible_collections.bitflow.lms.plugins.module_utils._archive import (
    MANIFEST,
    PACKED_TIME,
    Contents,
    compare_with_manifest,
    parse_manifest,
    sha256_of,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import (
    Owner,
    make_directory,
    remove_tree,
    sync_directory,
    sync_filesystem,
    write_atomically,
)
from ansible_collections.bitflow.lms.plugins.module_utils._release import holders, open_artifact, unpack_artifact, utc_now
from ansible_collections.bitflow.lms.plugins.module_utils._release_plan import PARTIAL, REMOVING, UNFINISHED_AGE, Tree, format_time

# What a component has beside the files of its artifact. The record is written before the directory gets its name.
RECORD = "COMPONENT.json"
ENVIRONMENT = ".env"
SOCKETS = "run"

APP_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")

# Files carry a time that comes from their artifact: the same on every host, so that two hosts behind one load balancer give a file
# the same ETag, and another one for another build. Within twenty years from PACKED_TIME.
_FILE_TIMES = 20 * 365 * 86400
_SPECIAL = re.compile(r'([\\"`$])')
_VARIABLE = re.compile(r'(?P<key>[A-Za-z_][A-Za-z0-9_]*)="(?P<value>(?:[^"\\]|\\.)*)"\n', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True)
class Component:
    """One front end's files with its environment."""

    app: str
    key: str
    artifact_sha256: str = ""
    size: int = 0
    files: int = 0
    built_at: str = ""

    @property
    def name(self) -> str:
        """Return the name of its directory."""
        return f"{self.app}-{self.key}"

    @property
    def link(self) -> tuple[str, str]:
        """Return the path in a release that stands for it, and where the link leads."""
        return f"apps/{self.app}", f"../../../components/{self.name}"


@dataclass(frozen=True)
class Order:
    """A component that is wanted, and what it is made from."""

    component: Component
    artifact: Path
    environment: Mapping[str, str]
    server: str = "server.js"


def component_key(artifact_sha256: str, environment: Mapping[str, str]) -> str:
    """Return what names a component: a hash over its files and its environment."""
    described = json.dumps([artifact_sha256, sorted(environment.items())])
    return hashlib.sha256(described.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def environment_text(environment: Mapping[str, str]) -> str:
    """Return an environment as systemd's EnvironmentFile reads it back: in double quotes a line break stands for itself."""
    quoted = {key: _SPECIAL.sub(r"\\\1", environment[key]) for key in sorted(environment)}
    return "".join(f'{key}="{value}"\n' for key, value in quoted.items())


def parse_environment(text: str) -> dict[str, str]:
    """Read back what environment_text wrote."""
    return {match["key"]: _ESCAPED.sub(r"\1", match["value"]) for match in _VARIABLE.finditer(text)}


def orphans(
    components: Iterable[Component], linked: Iterable[str], held: Iterable[str], ages: Mapping[str, float], unfinished_age: float
) -> list[str]:
    """Return the components that may go: no release links to them, no process has them open, no deployment can still be at work on them."""
    kept = {*linked, *held}
    return sorted(entry.name for entry in components if entry.name not in kept and ages.get(entry.name, 0) >= unfinished_age)


def _no_checkpoint(name: str) -> None:
    """Pass a step; tests hand in a function that fails or kills here."""
    del name


class Components:
    """The components below the root of the front ends."""

    def __init__(self, root: Path, now: Callable[[], Any] = utc_now, checkpoint: Callable[[str], None] = _no_checkpoint) -> None:
        self.root = root
        self.directory = root / "components"
        self.assets = root / "assets"
        self.now = now
        self._checkpoint = checkpoint

    # Reading

    def read(self) -> dict[str, Component]:
        """Return the components that are whole, by their directory's name."""
        found = (self._component_in(entry) for entry in self._entries() if not entry.name.endswith((PARTIAL, REMOVING)))
        return {component.name: component for component in found if component is not None}

    def leftovers(self) -> list[str]:
        """Return the directories that an interrupted run left."""
        return sorted(entry.name for entry in self._entries() if entry.name.endswith((PARTIAL, REMOVING)))

    def linked(self, release_id: str | None) -> dict[str, Component]:
        """Return the components of a release by the name of the front end."""
        found: dict[str, Component] = {}
        if not release_id:
            return found
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for link in sorted((self.root / "releases" / release_id / "apps").iterdir()):
                with contextlib.suppress(OSError):
                    key = link.readlink().name[len(link.name) + 1 :]
                    found[link.name] = self._component_in(self.directory / f"{link.name}-{key}") or Component(link.name, key)
        return found

    def environment(self, component: Component) -> dict[str, str]:
        """Return the environment of a component, as far as it may be read."""
        try:
            return parse_environment((self.directory / component.name / ENVIRONMENT).read_text("utf-8", "surrogateescape"))
        except OSError:
            return {}

    def age(self, name: str) -> float:
        """Return the seconds since a directory was made or renamed: nothing in an archive can set that time."""
        try:
            return float(self.now().timestamp() - (self.directory / name).stat().st_ctime)
        except FileNotFoundError:
            return 0

    def _entries(self) -> list[Path]:
        """Return the directories below components/."""
        try:
            return sorted(entry for entry in self.directory.iterdir() if entry.is_dir() and not entry.is_symlink())
        except (FileNotFoundError, NotADirectoryError):
            return []

    @staticmethod
    def _component_in(directory: Path) -> Component | None:
        """Return the component in a directory, if its record is there and means this directory."""
        try:
            found = json.loads((directory / RECORD).read_text(encoding="utf-8"))
            component = Component(**{key: found[key] for key in (entry.name for entry in fields(Component))})
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return component if component.name == directory.name else None

    # Building

    def build(self, orders: Sequence[Order], owner: Owner) -> list[Component]:
        """Build components that are not there: all aside, all on the disk, then each gets its name. The caller holds the lock."""
        make_directory(self.directory, 0o755, owner)
        built: list[Component] = []
        try:
            for order in orders:
                built.append(self._build_aside(order, owner))
            sync_filesystem(self.directory)
            self._checkpoint("synced")
        except BaseException:
            for order in orders:
                remove_tree(self._aside(order.component))
            raise
        for component in built:
            self._aside(component).rename(self.directory / component.name)
            self._checkpoint("renamed")
        sync_directory(self.directory)
        return built

    def _aside(self, component: Component) -> Path:
        """Return where a component is put together."""
        return self.directory / f"{component.name}{PARTIAL}"

    def _build_aside(self, order: Order, owner: Owner) -> Component:
        """Put one component together under a name that nobody trusts."""
        name, partial = order.component.name, self._aside(order.component)
        if (self.directory / name).exists():
            raise LmsError(f"{self.directory / name} has no {RECORD}, so that nothing is known about it. Remove it and deploy again.")
        remove_tree(partial)
        partial.mkdir(0o700)
        contents = self._fill(order, partial, owner)
        self._checkpoint("unpacked")
        server = f"apps/{order.component.app}/{order.server}"
        if server not in contents.sums:
            raise LmsError(f"The artifact of the front end {order.component.app} has no {server}. Correct the build, or server.")
        write_atomically(partial / ENVIRONMENT, environment_text(order.environment).encode("utf-8", "surrogateescape"), 0o600)
        component = replace(order.component, size=contents.size, files=len(contents.sums), built_at=format_time(self.now()))
        write_atomically(partial / RECORD, (json.dumps(asdict(component), indent=2, sort_keys=True) + "\n").encode(), 0o644, owner)
        owner.give(partial)
        partial.chmod(0o755)
        self._checkpoint("finished")
        return component

    def _fill(self, order: Order, partial: Path, owner: Owner) -> Contents:
        """Bring in the files of the artifact: from a component that has the same ones, which needs no room, or by unpacking it."""
        sha256 = order.component.artifact_sha256
        for sibling in self.read().values():
            if sibling.artifact_sha256 == sha256 and sibling.app == order.component.app:
                return _link_files(self.directory / sibling.name, partial, owner)
        if not sha256:
            raise LmsError(f"The front end {order.component.app} has no artifact: give its SHA-256 in artifacts.")
        modified = PACKED_TIME + int(sha256[:8], 16) % _FILE_TIMES
        with open_artifact(order.artifact, sha256) as stream:
            return unpack_artifact(stream, order.artifact, partial, owner, modified)

    # Assets

    def assets_of(self, app: str) -> Path:
        """Return the directory of a front end's assets, relative to a component and to assets/."""
        return Path("apps", app, ".next", "static")

    def missing_assets(self, component: Component) -> list[Path]:
        """Return the assets of a component that are not offered yet."""
        source = self.directory / component.name
        return [path for path in _files_below(source, self.assets_of(component.app)) if not _same_file(source / path, self.assets / path)]

    def offer_assets(self, component: Component, paths: Iterable[Path], owner: Owner) -> None:
        """Offer assets beside those of other components: hard links take no room. Each gets its name by rename(2)."""
        source = self.directory / component.name
        for path in paths:
            target = self.assets / path
            make_directory(target.parent, 0o755, owner)
            aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            aside.unlink(missing_ok=True)
            os.link(source / path, aside, follow_symlinks=False)
            aside.rename(target)

    def old_assets(self, seconds: float) -> list[Path]:
        """Return the assets that no component has and whose last component went so many seconds ago.

        A page that was loaded before may still ask for them for a while. Removing a hard link sets the time of the others.
        """
        latest = self.now().timestamp() - seconds
        known: dict[str, list[str]] = {}
        for component in self.read().values():
            known.setdefault(component.app, []).append(component.name)
        old: list[Path] = []
        for path in _files_below(self.assets, Path("apps")):
            app = path.parts[1]
            if (self.assets / path).lstat().st_ctime <= latest and not any(
                (self.directory / name / path).exists() for name in known.get(app, [])
            ):
                old.append(path)
        return old

    def remove_assets(self, paths: Iterable[Path]) -> None:
        """Remove assets and the directories that become empty."""
        for path in paths:
            (self.assets / path).unlink(missing_ok=True)
            for parent in list(path.parents)[:-2]:
                with contextlib.suppress(OSError):
                    (self.assets / parent).rmdir()

    # Removing

    def prunable(self, kept: Tree) -> list[str]:
        """Return the components that may go when some releases are kept, and what interrupted runs left."""
        linked = [component.name for release in kept.releases for component in self.linked(release.id).values()]
        there = self.read()
        held = holders([self.directory])[self.directory] if there else {}
        ages = {name: self.age(name) for name in there}
        stale = [name for name in self.leftovers() if name.endswith(REMOVING) or self.age(name) >= UNFINISHED_AGE]
        return sorted([*orphans(there.values(), linked, held, ages, UNFINISHED_AGE), *stale])

    def remove(self, names: Iterable[str]) -> None:
        """Remove components; each loses its name first, so that half of it is never taken for one."""
        for name in names:
            path = self.directory / name
            if not name.endswith((PARTIAL, REMOVING)):
                removing = self.directory / f"{name}{REMOVING}"
                remove_tree(removing)
                path.rename(removing)
                path = removing
                self._checkpoint("taken away")
            remove_tree(path)


def _files_below(top: Path, directory: Path) -> Iterator[Path]:
    """Return the files below a directory, relative to the top."""
    for place, _names, files in os.walk(top / directory):
        for file in sorted(files):
            yield (Path(place) / file).relative_to(top)


def _same_file(one: Path, other: Path) -> bool:
    """Say whether two names mean the same file."""
    try:
        return os.path.samestat(one.lstat(), other.lstat())
    except FileNotFoundError:
        return False


def _link_files(source: Path, partial: Path, owner: Owner) -> Contents:
    """Make a component from one with the same files, by hard links, and hold every file against the manifest again."""
    contents = Contents()
    for place, names, files in os.walk(source):
        inside = Path(place).relative_to(source)
        if inside == Path():
            names[:] = [name for name in names if name != SOCKETS]
            files = [name for name in files if name not in (RECORD, ENVIRONMENT)]
        for name in list(names):
            found = Path(place, name)
            if found.is_symlink():
                files.append(name)
                continue
            made = partial / inside / name
            made.mkdir(0o700)
            owner.give(made)
            shutil.copymode(found, made)
        for name in files:
            found = Path(place, name)
            os.link(found, partial / inside / name, follow_symlinks=False)
            if not found.is_symlink():
                with found.open("rb") as stream:
                    contents.sums[str(inside / name)] = sha256_of(stream)
                contents.size += found.stat().st_size
    compare_with_manifest(parse_manifest((partial / MANIFEST).read_text(encoding="utf-8")), contents.sums)
    return contents
