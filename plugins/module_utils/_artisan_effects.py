# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the known artisan commands must leave behind. Their exit status does not tell: these look at the files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.bitflow.lms.plugins.module_utils._artisan_parsers import SyntaxProblem, parse_blade_source, parse_storage_links
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

ABSENT = "absent"
# Laravel names an unnamed route at random each time it caches: the only bytes of the route cache that differ between two runs.
RANDOM_ROUTE_NAME = re.compile(rb"generated::[A-Za-z0-9]{16}")

Lint = Callable[[Sequence[Path]], "list[SyntaxProblem]"]


class EffectError(LmsError):
    """A command ended well and did not do what it says."""


@dataclass(frozen=True)
class Observation:
    """What is there: fingerprints by name for comparing and showing, marks that change with every writing."""

    fingerprints: dict[str, str] = field(default_factory=dict)
    marks: frozenset[tuple[str, int, int]] = frozenset()


def fingerprint(content: bytes) -> str:
    """Return a short name for a content."""
    return f"sha256:{hashlib.sha256(content).hexdigest()[:16]}"


def mark(path: Path) -> tuple[str, int, int]:
    """Return what changes when a file is written anew."""
    status = path.stat()
    return (str(path), status.st_ino, status.st_mtime_ns)


class CacheFile:
    """A command that writes one file of bootstrap/cache."""

    def __init__(self, release: Path, environment: Mapping[str, str], variable: str, name: str) -> None:
        self.variable = variable
        self.path = release / environment.get(variable, f"bootstrap/cache/{name}")
        self.label = str(self.path.relative_to(release)) if self.path.is_relative_to(release) else str(self.path)

    def observe(self) -> Observation:
        """Return the cache file as it is."""
        if not self.path.is_file():
            return Observation({self.label: ABSENT})
        content = RANDOM_ROUTE_NAME.sub(b"generated::", self.path.read_bytes())
        return Observation({self.label: fingerprint(content)}, frozenset({mark(self.path)}))

    def would_change(self, before: Observation) -> bool:
        """Tell what check mode says: the content is only known once it is written."""
        return True

    def verify(self, command: str, before: Observation, after: Observation, output: str) -> None:
        """Raise unless the command wrote the file."""
        if not after.marks:
            raise EffectError(
                f"artisan {command} ended with status 0, but {self.label} is not there. Read its output; "
                f"set {self.variable} in environment when the application keeps this cache elsewhere."
            )
        if after.marks == before.marks:
            raise EffectError(f"artisan {command} ended with status 0, but left {self.label} as it was. Read its output.")


class ClearedFile(CacheFile):
    """A command that removes one file of bootstrap/cache."""

    def would_change(self, before: Observation) -> bool:
        """Tell whether there is anything to remove."""
        return bool(before.marks)

    def verify(self, command: str, before: Observation, after: Observation, output: str) -> None:
        """Raise unless the file is gone."""
        if after.marks:
            raise EffectError(
                f"artisan {command} ended with status 0, but {self.label} is still there. "
                "Let the user that runs artisan write in its directory."
            )


class CompiledViews:
    """view:cache, which compiles templates without asking whether the result is PHP."""

    def __init__(self, release: Path, environment: Mapping[str, str], lint: Lint) -> None:
        self.release = release
        self.lint = lint
        self.directory = release / environment.get("VIEW_COMPILED_PATH", "storage/framework/views")
        self.label = str(self.directory.relative_to(release)) if self.directory.is_relative_to(release) else str(self.directory)

    def files(self) -> list[Path]:
        """Return the compiled views."""
        return sorted(self.directory.glob("*.php"))

    def observe(self) -> Observation:
        """Return all compiled views as one thing."""
        files = self.files()
        if not files:
            return Observation({self.label: ABSENT})
        content = b"".join(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest() for path in files)
        return Observation({self.label: f"{len(files)} views, {fingerprint(content)}"}, frozenset(mark(path) for path in files))

    def would_change(self, before: Observation) -> bool:
        """Tell what check mode says: the content is only known once it is written."""
        return True

    def verify(self, command: str, before: Observation, after: Observation, output: str) -> None:
        """Raise unless there are new compiled views and each of them is valid PHP."""
        if not after.marks - before.marks and any((self.release / "resources/views").rglob("*.blade.php")):
            raise EffectError(
                f"artisan {command} ended with status 0, but wrote no view into {self.label}. Read its output; "
                "set VIEW_COMPILED_PATH in environment when the application keeps its compiled views elsewhere."
            )
        problems = self.lint(self.files())
        if problems:
            raise EffectError(self.describe(problems), broken_views=[f"{self.template(one)}: {one.message}" for one in problems])

    def describe(self, problems: Sequence[SyntaxProblem]) -> str:
        """Return the sentence about broken templates."""
        first = problems[0]
        more = f" {len(problems) - 1} more are broken too." if len(problems) > 1 else ""
        template = self.template(first)
        return f"The Blade template {template} compiles to broken PHP: {first.message} of the compiled view.{more} Repair the template."

    def template(self, problem: SyntaxProblem) -> str:
        """Return the template behind a compiled view, relative to the release."""
        source = parse_blade_source(Path(problem.path).read_text(encoding="utf-8", errors="replace"))
        if source is None:
            return problem.path
        path = Path(source)
        root = self.release.resolve()
        return str(path.relative_to(root)) if path.is_relative_to(root) else source


class ClearedViews(CompiledViews):
    """view:clear."""

    def would_change(self, before: Observation) -> bool:
        """Tell whether there is anything to remove."""
        return bool(before.marks)

    def verify(self, command: str, before: Observation, after: Observation, output: str) -> None:
        """Raise unless the compiled views are gone."""
        if after.marks:
            raise EffectError(
                f"artisan {command} ended with status 0, but compiled views are still in {self.label}. "
                "Let the user that runs artisan write in that directory."
            )


class StorageLinks:
    """storage:link, which reports a link that was there before as an error with status 0."""

    def __init__(self, release: Path) -> None:
        self.release = release

    def observe(self) -> Observation:
        """Return the links in public/ with what they point to."""
        public = self.release / "public"
        links = sorted(path for path in public.iterdir() if path.is_symlink()) if public.is_dir() else []
        found = {f"public/{path.name}": str(path.readlink()) for path in links}
        return Observation(found or {"public/storage": ABSENT})

    def would_change(self, before: Observation) -> bool:
        """Tell whether the link that every application has is missing or broken."""
        return not (self.release / "public/storage").is_dir()

    def verify(self, command: str, before: Observation, after: Observation, output: str) -> None:
        """Raise unless every link that the command names is a link to a directory, the one it names if it does."""
        links = parse_storage_links(output)
        if not links:
            raise EffectError(
                f"artisan {command} ended with status 0, but named no link. Read its output, and filesystems.links of the application."
            )
        for link in links:
            path = self.release / link.path
            if not path.is_symlink():
                kind = "a directory or file" if path.exists() else "not there"
                raise EffectError(f"{link.path} is {kind}, but must be a link. Remove it and run artisan {command} again.")
            if not path.is_dir():
                raise EffectError(
                    f"The link {link.path} points to {path.readlink()}, which is not a directory. Create it, or remove the link."
                )
            if link.target is not None and path.resolve() != (self.release / link.target).resolve():
                raise EffectError(f"The link {link.path} points to {path.resolve()}, but artisan says {link.target}. Remove the link.")


CACHES = {
    "config": ("APP_CONFIG_CACHE", "config.php"),
    "event": ("APP_EVENTS_CACHE", "events.php"),
    "route": ("APP_ROUTES_CACHE", "routes-v7.php"),
}


def effect_of(command: str, release: Path, environment: Mapping[str, str], lint: Lint) -> CacheFile | CompiledViews | StorageLinks | None:
    """Return what a command must leave behind; None when that is not known."""
    subject, _colon, verb = command.partition(":")
    if subject in CACHES and verb == "cache":
        return CacheFile(release, environment, *CACHES[subject])
    if subject in CACHES and verb == "clear":
        return ClearedFile(release, environment, *CACHES[subject])
    if command == "view:cache":
        return CompiledViews(release, environment, lint)
    if command == "view:clear":
        return ClearedViews(release, environment, lint)
    if command == "storage:link":
        return StorageLinks(release)
    return None
