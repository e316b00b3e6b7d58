# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which directories of a JavaScript workspace the build of one of its packages does not read."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from ansible_collections.bitflow.lms.plugins.module_utils._archive import is_below
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

MANIFEST = "package.json"
_FIELDS = ("dependencies", "devDependencies", "optionalDependencies", "peerDependencies")

# A dependency that names its package by path, or a workspace package under another name.
_BY_PATH = re.compile(r"(?:workspace|file|link|portal):(?P<path>\.{1,2}/.*|\.{1,2})")
_BY_ALIAS = re.compile(r"workspace:(?P<name>@?[^@]+)@.*")


@dataclass(frozen=True)
class Package:
    """A package of the workspace: its directory, its name, and what it says it depends on, as name and range."""

    directory: str
    name: str
    wanted: tuple[tuple[str, str], ...]


def is_manifest(path: str) -> bool:
    """Say whether a path of the source describes a package of the workspace."""
    parts = PurePosixPath(path).parts
    return parts[-1:] == (MANIFEST,) and "node_modules" not in parts


def packages_from(contents: Mapping[str, bytes]) -> dict[str, Package]:
    """Read the workspace's packages by directory; the top's is empty. One inside another belongs to the outer one."""
    found: dict[str, Package] = {}
    for path in sorted(contents, key=lambda path: len(PurePosixPath(path).parts)):
        directory = posixpath.dirname(path)
        if is_below(directory, [outer for outer in found if outer]):
            continue
        package = _package_from(path, contents[path])
        # One that only says how its directory's files are to be read is no package.
        if package.name or package.wanted or not directory:
            found[directory] = package
    return found


def _package_from(path: str, content: bytes) -> Package:
    """Read one package.json."""
    try:
        text = json.loads(content)
        wanted = [item for field in _FIELDS for item in dict(text.get(field) or {}).items()]
        return Package(posixpath.dirname(path), str(text.get("name") or ""), tuple((str(name), str(spec)) for name, spec in wanted))
    except (ValueError, TypeError, AttributeError) as error:
        raise LmsError(f"{path} of the source cannot be read: {error}.") from error


def _directories(packages: Mapping[str, Package]) -> dict[str, str]:
    """Return where the packages with a name are."""
    return {package.name: directory for directory, package in packages.items() if package.name}


def _dependencies(package: Package, directories: Mapping[str, str]) -> list[str]:
    """Return the directories of the workspace packages that a package says it depends on."""
    found: list[str] = []
    for name, spec in package.wanted:
        by_path, by_alias = _BY_PATH.fullmatch(spec), _BY_ALIAS.fullmatch(spec)
        if by_path:
            found.append(posixpath.normpath(f"{package.directory or '.'}/{by_path['path']}"))
        else:
            found.append(directories.get(by_alias["name"] if by_alias else name, ""))
    return found


def closure(packages: Mapping[str, Package], starts: Iterable[str]) -> set[str]:
    """Return packages with all that they depend on, by directory."""
    directories = _directories(packages)
    reached: set[str] = set()
    waiting = list(starts)
    while waiting:
        directory = waiting.pop()
        if directory not in reached and directory in packages:
            reached.add(directory)
            waiting += _dependencies(packages[directory], directories)
    return reached


def left_out(packages: Mapping[str, Package], package: str) -> list[str]:
    """Return the directories of the packages that a package's build does not read.

    It reads what it and the top say they depend on. A package on which nothing depends may be read without a word, as shared
    settings are, and so counts as read, unless it stands beside this one: those are the other applications.
    """
    if package not in packages:
        known = ", ".join(sorted(directory for directory in packages if directory)) or "none"
        raise LmsError(f"package is {package}, which is no package of the workspace. Packages: {known}.")
    directories = _directories(packages)
    wanted = {name for found in packages.values() for name in _dependencies(found, directories)}
    beside = posixpath.dirname(package)
    silent = {directory for directory in packages if directory not in wanted and posixpath.dirname(directory) != beside}
    return sorted(set(packages) - closure(packages, {package, "", *silent}) - {""})
