# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build an artifact from source, once for all that its result depends on."""

from __future__ import annotations

import contextlib
import fnmatch
import gzip
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Callable

from ansible_collections.bitflow.lms.plugins.module_utils._archive import (
    Unpacker,
    content_digest,
    pack,
    paths_with_parents,
    sha256_of,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import (
    locked,
    make_directory,
    mode_number,
    relative_path,
    remove_tree,
    sync_directory,
    write_atomically,
)

# Counts up when the same inputs would give another artifact.
FORMAT = 1

OUTPUT_LINES = 30
_OUTPUT_BYTES = 1 << 16
_CLEAN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_COMPRESSION = 3
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

# Runs a step: the argument list, its directory, its whole environment, and the file for its output. Answers with the status.
RunStep = Callable[[list[str], Path, Mapping[str, str], IO[bytes]], int]


@dataclass(frozen=True)
class Step:
    """One program of a build."""

    argv: tuple[str, ...]
    chdir: str = "."
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dependency:
    """A directory that a step fills from a lock file, and that is kept for the next build with the same one."""

    lock: tuple[str, ...]
    directory: str


@dataclass(frozen=True)
class Collected:
    """A directory or file that goes into the artifact."""

    source: str
    target: str


@dataclass(frozen=True)
class Recipe:
    """How an artifact is built."""

    name: str
    source: str
    steps: tuple[Step, ...] = ()
    dependencies: tuple[Dependency, ...] = ()
    collect: tuple[Collected, ...] = (Collected(".", "."),)
    exclude: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    extra: Any = None
    umask: int = 0o022


@dataclass(frozen=True)
class Artifact:
    """An artifact that was built, as its record beside it says."""

    fingerprint: str
    sha256: str
    size: int
    files: int


def recipe_from(params: Mapping[str, Any]) -> Recipe:
    """Return how the artifact is built."""
    name = params["name"]
    if not _NAME.fullmatch(name):
        raise LmsError(f"name is {name!r}: use letters, digits, dots, hyphens and underscores, and begin with a letter or digit.")
    return Recipe(
        name=name,
        source=params["source"] or name,
        steps=tuple(_step_from(step) for step in params["steps"]),
        dependencies=tuple(
            Dependency(
                tuple(relative_path(lock, "dependencies.lock") for lock in entry["lock"]),
                relative_path(entry["directory"], "dependencies.directory"),
            )
            for entry in params["dependencies"]
        ),
        collect=tuple(
            Collected(_place(entry["from"], "collect.from"), _place(entry["to"], "collect.to"))
            for entry in params["collect"] or [{"from": ".", "to": "."}]
        ),
        exclude=tuple(params["exclude"]),
        required=tuple(relative_path(path, "required") for path in params["required"]),
        environment=texts(params["environment"]),
        extra=params["fingerprint_extra"],
        umask=mode_number(params["umask"], "umask") & 0o777,
    )


def _step_from(step: Mapping[str, Any]) -> Step:
    """Return one step of the recipe."""
    if not step["argv"] or not step["argv"][0]:
        raise LmsError("steps has an entry without a program in argv.")
    return Step(tuple(step["argv"]), _place(step["chdir"], "steps.chdir"), texts(step["environment"]))


def _place(name: str, option: str) -> str:
    """Return a relative path, which may be the top."""
    return name if name == "." else relative_path(name, option)


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of an environment as text."""
    return {str(name): "" if value is None else str(value) for name, value in values.items()}


def fingerprint(recipe: Recipe, content: str) -> str:
    """Return the sum over everything that the artifact depends on: the source's content and the recipe."""
    inputs = asdict(recipe)
    for irrelevant in ("source", "required"):
        del inputs[irrelevant]
    text = json.dumps({"format": FORMAT, "content": content, **inputs}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def dependency_key(dependency: Dependency, recipe: Recipe, locks: Sequence[bytes]) -> str:
    """Return the name under which a filled directory is kept: it depends on the lock files and on what fills it."""
    digest = hashlib.sha256()
    inputs = [recipe.name, dependency.directory, [asdict(step) for step in recipe.steps], dict(recipe.environment), recipe.extra]
    digest.update(json.dumps(inputs, sort_keys=True, default=str).encode())
    for content in locks:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:32]


def is_excluded(path: str, patterns: Sequence[str]) -> bool:
    """Say whether a path is left out: a pattern with a slash speaks of the whole path, one without of any name in it."""
    parts = PurePosixPath(path).parts
    for pattern in patterns:
        if "/" in pattern.rstrip("/"):
            wanted = pattern.strip("/")
            if any(fnmatch.fnmatchcase("/".join(parts[:depth]), wanted) for depth in range(1, len(parts) + 1)):
                return True
        elif any(fnmatch.fnmatchcase(part, pattern.rstrip("/")) for part in parts):
            return True
    return False


def members(tree: Path, collect: Sequence[Collected], exclude: Sequence[str]) -> dict[str, Path]:
    """Return what goes into the artifact: path in it, and where it is now. A later entry of collect wins."""
    found: dict[str, Path] = {}
    for entry in collect:
        source = tree if entry.source == "." else tree / entry.source
        if not source.exists():
            raise LmsError(f"collect names {entry.source}, which the steps did not make.")
        found.update(_walk(source, PurePosixPath(entry.target), exclude))
    return found


def _walk(source: Path, target: PurePosixPath, exclude: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Return a path with everything below it that is not left out, each with its place in the artifact; links are not followed."""
    if is_excluded(str(target), exclude):
        return
    if target.parts:
        yield str(target), source
    if source.is_dir() and not source.is_symlink():
        for entry in source.iterdir():
            yield from _walk(entry, target / entry.name, exclude)


def run_step(argv: list[str], directory: Path, environment: Mapping[str, str], output: IO[bytes]) -> int:
    """Run a program with nothing but the given environment."""
    # run_command can neither leave the current environment behind nor write its output to a file as it comes.
    return subprocess.run(  # pylint: disable=ansible-bad-function
        argv, cwd=directory, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
    ).returncode


@contextlib.contextmanager
def compressed(path: Path, pigz: str | None) -> Iterator[IO[bytes]]:
    """Open a file to write through gzip; pigz uses all processors where it is installed."""
    with path.open("xb") as file:
        path.chmod(0o640)
        if pigz is None:
            with gzip.GzipFile(filename="", mode="wb", compresslevel=_COMPRESSION, fileobj=file, mtime=0) as stream:
                yield stream  # type: ignore[misc]
        else:
            argv = [pigz, "-n", f"-{_COMPRESSION}", "--stdout"]
            with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=file) as process:  # pylint: disable=ansible-bad-function
                if process.stdin is None:
                    raise LmsError("pigz takes no input.")
                with process.stdin:
                    yield process.stdin
            if process.returncode != 0:
                raise CommandError(f"pigz ended with status {process.returncode}.", cmd=[pigz], rc=process.returncode)
        file.flush()
        os.fsync(file.fileno())


class Workshop:
    """The directory of the build host in which artifacts are built and kept."""

    def __init__(
        self, directory: Path, run_step: RunStep = run_step, clock: Callable[[], float] = time.monotonic, pigz: str | None = None
    ) -> None:
        self.directory = directory
        self.artifacts = directory / "artifacts"
        self.kept = directory / "dependencies"
        self.work = directory / "work"
        self.home = directory / "home"
        self.logs = directory / "logs"
        self._run_step = run_step
        self._clock = clock
        self._pigz = pigz

    def path_of(self, recipe: Recipe, number: str) -> Path:
        """Return where the artifact with a fingerprint is."""
        return self.artifacts / f"{recipe.name}-{number[:16]}.tar.gz"

    def inspect(self, recipe: Recipe, archive: Path) -> str:
        """Return the fingerprint of what would be built from a source archive that has all that is required."""
        try:
            with archive.open("rb") as stream:
                content, paths = content_digest(stream)
        except FileNotFoundError as error:
            raise LmsError(f"The source archive {archive} is not on this host.") from error
        missing = sorted(set(recipe.required) - paths_with_parents(paths))
        if missing:
            raise LmsError(
                f"{recipe.source} has no {', '.join(missing)}. Check the version and the path in the repository.", missing=missing
            )
        return fingerprint(recipe, content)

    def find(self, recipe: Recipe, number: str) -> Artifact | None:
        """Return the artifact with a fingerprint, if it is there and its bytes are those that were built."""
        path = self.path_of(recipe, number)
        try:
            record = Artifact(**json.loads(_record_path(path).read_text(encoding="utf-8")))
            with path.open("rb") as stream:
                whole = sha256_of(stream) == record.sha256 and record.fingerprint == number
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return record if whole else None

    @contextlib.contextmanager
    def locked(self, recipe: Recipe) -> Iterator[None]:
        """Let one build of a name at a time be at work here."""
        for directory in (self.directory, self.artifacts, self.kept, self.work, self.home, self.logs):
            make_directory(directory, 0o750)
        with locked(self.directory / f".{recipe.name}.lock", f"Another build of {recipe.name}"):
            yield

    def build(self, recipe: Recipe, archive: Path, number: str, secrets: Mapping[str, str]) -> tuple[Artifact, list[dict[str, Any]]]:
        """Build an artifact; return it and how long each step took. The caller holds the lock."""
        top = self.work / recipe.name
        self._clear(top)
        try:
            tree = top / "source"
            tree.mkdir(parents=True)
            with archive.open("rb") as stream:
                Unpacker(tree).unpack(stream)
            dependencies = self._take_dependencies(recipe, tree)
            taken = self._run_steps(recipe, tree, secrets)
            artifact = self._pack(recipe, tree, number)
            self._keep_dependencies(tree, dependencies)
        except OSError as error:
            raise LmsError(f"Building {recipe.name} in {self.directory} failed: {error}.") from error
        finally:
            self._clear(top)
        return artifact, taken

    def _clear(self, top: Path) -> None:
        """Remove a work directory; it loses its name first, so that what is still running in it cannot reach the next one."""
        stale = top.with_name(f".{top.name}.stale")
        remove_tree(stale)
        with contextlib.suppress(FileNotFoundError):
            top.rename(stale)
        remove_tree(stale)

    def _run_steps(self, recipe: Recipe, tree: Path, secrets: Mapping[str, str]) -> list[dict[str, Any]]:
        """Run the steps and return how long each took."""
        log = self.logs / f"{recipe.name}.log"
        log.unlink(missing_ok=True)
        taken: list[dict[str, Any]] = []
        with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as output:
            for number, step in enumerate(recipe.steps, start=1):
                output.write(f"$ {shlex.join(step.argv)}\n".encode())
                output.flush()
                start = output.tell()
                began = self._clock()
                status = self._run_one(recipe, step, number, tree, secrets, output)
                taken.append({"argv": list(step.argv), "seconds": round(self._clock() - began, 1)})
                if status != 0:
                    raise CommandError(
                        f"Step {number} of {len(recipe.steps)} of building {recipe.source}, {shlex.join(step.argv)}, "
                        f"ended with status {status}. The end of its output is in output_lines, the whole in {log}.",
                        step=number,
                        cmd=list(step.argv),
                        rc=status,
                        output_lines=_output_since(log, start),
                        log=str(log),
                        steps=taken,
                    )
        return taken

    def _run_one(self, recipe: Recipe, step: Step, number: int, tree: Path, secrets: Mapping[str, str], output: IO[bytes]) -> int:
        """Run one step with a clean environment."""
        environment = {
            "PATH": _CLEAN_PATH,
            "HOME": str(self.home),
            "LC_ALL": "C.UTF-8",
            "CI": "1",
            **recipe.environment,
            **step.environment,
            **secrets,
        }
        directory = tree / step.chdir
        if not directory.is_dir():
            raise LmsError(f"Step {number} of building {recipe.source} is to run in {step.chdir}, which the source does not have.")
        program = shutil.which(step.argv[0], path=environment["PATH"]) if "/" not in step.argv[0] else step.argv[0]
        if program is None:
            raise CommandError(
                f"Step {number} of building {recipe.source} needs {step.argv[0]}, which is not installed on the build host.",
                cmd=list(step.argv),
                searched=environment["PATH"],
            )
        previous = os.umask(recipe.umask)
        try:
            return self._run_step([program, *step.argv[1:]], directory, environment, output)
        finally:
            os.umask(previous)

    def _take_dependencies(self, recipe: Recipe, tree: Path) -> list[tuple[Dependency, Path]]:
        """Move directories that earlier builds filled into the tree; return where each belongs afterwards.

        They are moved, not linked file by file: a step that writes in place would change the kept copy behind our back.
        """
        places: list[tuple[Dependency, Path]] = []
        for dependency in recipe.dependencies:
            locks = [tree / name for name in dependency.lock]
            missing = [name for name, path in zip(dependency.lock, locks) if not path.is_file()]
            if missing:
                raise LmsError(f"{recipe.source} has no {', '.join(missing)}, which dependencies names as a lock file.", missing=missing)
            kept = self.kept / dependency_key(dependency, recipe, [path.read_bytes() for path in locks])
            target = tree / dependency.directory
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    kept.rename(target)
            places.append((dependency, kept))
        return places

    def _keep_dependencies(self, tree: Path, places: Sequence[tuple[Dependency, Path]]) -> None:
        """Move the filled directories away for the next build."""
        for dependency, kept in places:
            filled = tree / dependency.directory
            if filled.is_dir() and not filled.is_symlink():
                remove_tree(kept)
                filled.rename(kept)
                os.utime(kept)

    def _pack(self, recipe: Recipe, tree: Path, number: str) -> Artifact:
        """Write the artifact and its record beside it, each aside first; the record comes last and makes the artifact count."""
        path = self.path_of(recipe, number)
        aside = path.with_name(f".{path.name}.tmp")
        aside.unlink(missing_ok=True)
        _record_path(path).unlink(missing_ok=True)
        try:
            with compressed(aside, self._pigz) as stream:
                contents = pack(members(tree, recipe.collect, recipe.exclude), stream, recipe.umask)
            with aside.open("rb") as packed:
                artifact = Artifact(number, sha256_of(packed), aside.stat().st_size, len(contents.sums))
            aside.rename(path)
        finally:
            aside.unlink(missing_ok=True)
        sync_directory(self.artifacts)
        write_atomically(_record_path(path), (json.dumps(asdict(artifact), sort_keys=True) + "\n").encode(), 0o640)
        return artifact

    def tidy(self, recipe: Recipe, number: str, keep: int) -> list[str]:
        """Remove artifacts and kept dependencies that were not used for longest, and return their names."""
        used = _record_path(self.path_of(recipe, number))
        os.utime(used)
        records = [path for path in self.artifacts.glob(f"{recipe.name}-*.json") if _belongs_to(path, recipe.name)]
        removed: list[str] = []
        for record in oldest_beyond(records, keep, used):
            artifact = _artifact_path(record)
            record.unlink(missing_ok=True)
            artifact.unlink(missing_ok=True)
            removed.append(artifact.name)
        known = {_artifact_path(record) for record in records}
        for orphan in self.artifacts.glob(f"{recipe.name}-*.tar.gz"):
            if orphan not in known and _belongs_to(orphan, recipe.name):
                orphan.unlink(missing_ok=True)
                removed.append(orphan.name)
        for directory in oldest_beyond(list(self.kept.iterdir()), keep * max(1, len(recipe.dependencies)), None):
            remove_tree(directory)
        return sorted(set(removed))


def oldest_beyond(paths: Sequence[Path], keep: int, spared: Path | None) -> list[Path]:
    """Return the paths beyond the newest ones, without the one that is in use."""
    newest_first = sorted(paths, key=lambda path: (path == spared, path.stat().st_mtime, path.name), reverse=True)
    return newest_first[max(keep, 1) :]


def _output_since(log: Path, start: int) -> list[str]:
    """Return the last lines that a step wrote."""
    with log.open("rb") as stream:
        stream.seek(max(start, log.stat().st_size - _OUTPUT_BYTES))
        text = stream.read().decode("utf-8", "replace")
    return text.splitlines()[-OUTPUT_LINES:]


def _record_path(artifact: Path) -> Path:
    """Return the path of an artifact's record."""
    return artifact.with_name(f"{artifact.name.removesuffix('.tar.gz')}.json")


def _artifact_path(record: Path) -> Path:
    """Return the path of a record's artifact."""
    return record.with_name(f"{record.name.removesuffix('.json')}.tar.gz")


def _belongs_to(path: Path, name: str) -> bool:
    """Say whether a file is an artifact of a name and not of a longer one: the fingerprint has no hyphen."""
    return "-" not in path.name[len(name) + 1 :]


def result(
    artifact: Artifact,
    path: Path,
    reused: bool,
    steps: Sequence[Mapping[str, Any]] = (),
    removed: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the result of a task; what is not known yet is empty."""
    return {
        "changed": not reused,
        "artifact": str(path) if artifact.fingerprint else "",
        "sha256": artifact.sha256,
        "size": artifact.size,
        "files": artifact.files,
        "fingerprint": artifact.fingerprint,
        "reused": reused,
        "steps": list(steps),
        "removed": list(removed),
    }
