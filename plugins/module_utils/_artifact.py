# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build artifacts from one source, each once for all that its result depends on."""

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
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Callable
from urllib.parse import quote, unquote

from ansible_collections.bitflow.lms.plugins.module_utils._archive import (
    Survey,
    Unpacker,
    is_below,
    oldest_beyond,
    pack,
    paths_with_parents,
    remove_old_archives,
    sha256_of,
    survey_archive,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import (
    locked,
    make_directory,
    mode_number,
    relative_path,
    remove_tree,
    sync_directory,
    sync_filesystem,
    write_atomically,
)
from ansible_collections.bitflow.lms.plugins.module_utils._workspace import is_manifest, left_out, packages_from

# Counts up when the same inputs would give another artifact.
FORMAT = 2

OUTPUT_LINES = 30

# How many lock files' dependencies are kept for one name: the live branch's and the one that changes them.
KEPT_LOCKS = 2

_OUTPUT_BYTES = 1 << 16
_CLEAN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_COMPRESSION = 3
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BUILD_ID = 20
# What the line of a build's output says that names the reason of its failure, how programs colour it, and how much of it a message takes.
_COMPLAINT = re.compile(r"\b(?:error|failed|could not|cannot|not found|problem \d)\b", re.IGNORECASE)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST_REASON = 300
# A build that takes longer than this hangs.
_LOCK_TIMEOUT = 3600


@dataclass(frozen=True)
class Step:
    """One program of a build."""

    argv: tuple[str, ...]
    chdir: str = "."
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dependency:
    """Directories that a step fills from a lock file, and that are kept for the next build with the same one."""

    lock: tuple[str, ...]
    directory: str


@dataclass(frozen=True)
class Collected:
    """A directory or file that goes into the artifact, and whether it may be missing."""

    source: str
    target: str
    optional: bool = False


@dataclass(frozen=True)
class Recipe:
    """How one artifact is built from the source, after the steps that all share."""

    name: str
    steps: tuple[Step, ...] = ()
    collect: tuple[Collected, ...] = (Collected(".", "."),)
    exclude: tuple[str, ...] = ()
    package: str = ""


@dataclass(frozen=True)
class Build:
    """What is built of one source: the artifacts, and what they have in common."""

    name: str
    source: str
    recipes: tuple[Recipe, ...]
    steps: tuple[Step, ...] = ()
    dependencies: tuple[Dependency, ...] = ()
    required: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    extra: Any = None
    tools: tuple[tuple[str, ...], ...] = ()
    umask: int = 0o022

    @property
    def in_place(self) -> bool:
        """Say whether the only artifact is built in the unpacked source itself, because nothing else needs it afterwards."""
        return len(self.recipes) == 1 and not self.recipes[0].package

    def title(self, recipe: Recipe) -> str:
        """Return what messages call an artifact."""
        return self.source if self.in_place else f"{recipe.name} of {self.source}"


@dataclass(frozen=True)
class Plan:
    """What the artifacts of a source would be: the fingerprint of each, what its build must not see, and what the tools said."""

    numbers: Mapping[str, str]
    hidden: Mapping[str, list[str]]
    versions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Artifact:
    """An artifact that was built, as its record beside it says."""

    fingerprint: str
    sha256: str
    size: int
    files: int


NOT_KNOWN = Artifact("", "", 0, 0)


@dataclass(frozen=True)
class Provided:
    """An artifact that is there now, or that would be."""

    name: str
    path: str
    artifact: Artifact
    built: bool
    seconds: float = 0.0
    steps: tuple[Mapping[str, Any], ...] = ()


def build_from(params: Mapping[str, Any]) -> Build:
    """Return what is to be built."""
    _check_name(params["name"], "name")
    steps = tuple(_step_from(step) for step in params["steps"])
    if params["artifacts"] is None:
        recipes = [Recipe(params["name"], steps, _collect_from(params["collect"]), tuple(params["exclude"]))]
        steps = ()
    else:
        recipes = [_recipe_from(entry) for entry in params["artifacts"]]
        names = [params["name"], *(recipe.name for recipe in recipes)]
        if not recipes or len(set(names)) < len(names):
            raise LmsError("artifacts needs at least one entry, each with a name of its own that is not the name of the whole.")
    return Build(
        name=params["name"],
        source=params["source"] or params["name"],
        recipes=tuple(recipes),
        steps=steps,
        dependencies=tuple(
            Dependency(
                tuple(relative_path(lock, "dependencies.lock") for lock in entry["lock"]),
                relative_path(entry["directory"], "dependencies.directory"),
            )
            for entry in params["dependencies"]
        ),
        required=tuple(relative_path(path, "required") for path in params["required"]),
        environment=texts(params["environment"]),
        extra=params["fingerprint_extra"],
        tools=tuple(_program(argv, "tools") for argv in params["tools"]),
        umask=mode_number(params["umask"], "umask") & 0o777,
    )


def _recipe_from(entry: Mapping[str, Any]) -> Recipe:
    """Return how one of several artifacts is built."""
    _check_name(entry["name"], "artifacts.name")
    return Recipe(
        name=entry["name"],
        steps=tuple(_step_from(step) for step in entry["steps"]),
        collect=_collect_from(entry["collect"]),
        exclude=tuple(entry["exclude"]),
        package=relative_path(entry["package"], "artifacts.package") if entry["package"] else "",
    )


def _check_name(name: str, option: str) -> None:
    """Refuse a name that is no plain file name."""
    if not _NAME.fullmatch(name):
        raise LmsError(f"{option} is {name!r}: use letters, digits, dots, hyphens and underscores, and begin with a letter or digit.")


def _collect_from(entries: Sequence[Mapping[str, Any]] | None) -> tuple[Collected, ...]:
    """Return what goes into an artifact."""
    if not entries:
        return (Collected(".", "."),)
    return tuple(
        Collected(_place(entry["from"], "collect.from"), _place(entry["to"], "collect.to"), entry["optional"]) for entry in entries
    )


def _step_from(step: Mapping[str, Any]) -> Step:
    """Return one step of a build."""
    return Step(_program(step["argv"], "steps.argv"), _place(step["chdir"], "steps.chdir"), texts(step["environment"]))


def _program(argv: Sequence[Any], option: str) -> tuple[str, ...]:
    """Return a program with its arguments."""
    if not argv or not argv[0]:
        raise LmsError(f"{option} has an entry without a program.")
    return tuple(str(argument) for argument in argv)


def _place(name: str, option: str) -> str:
    """Return a relative path, which may be the top."""
    return name if name == "." else relative_path(name, option)


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of an environment as text; a structure, such as COMPOSER_AUTH is one, as JSON."""
    return {str(name): _text_of(value) for name, value in values.items()}


def _text_of(value: Any) -> str:
    """Return the value of a variable of an environment."""
    if isinstance(value, (dict, list)):
        return json.dumps(value, sort_keys=True)
    return "" if value is None else str(value)


def fingerprint(build: Build, recipe: Recipe, content: str, versions: Sequence[str] = ()) -> str:
    """Return the sum over everything that an artifact depends on: the source's content, its recipe, what all share, the tools."""
    inputs = asdict(build)
    for irrelevant in ("name", "source", "recipes", "required"):
        del inputs[irrelevant]
    return _sum_of({"format": FORMAT, "content": content, "recipe": asdict(recipe), "versions": list(versions), **inputs})


def plan(build: Build, survey: Survey, versions: tuple[str, ...] = ()) -> Plan:
    """Return what the artifacts of a source would be."""
    packages = packages_from(survey.contents)
    hidden = {recipe.name: left_out(packages, recipe.package) if recipe.package else [] for recipe in build.recipes}
    numbers = {recipe.name: fingerprint(build, recipe, survey.digest(hidden[recipe.name]), versions) for recipe in build.recipes}
    return Plan(numbers, hidden, versions)


def dependency_key(dependency: Dependency, build: Build, locks: Sequence[bytes], versions: Sequence[str] = ()) -> str:
    """Return the name under which filled directories are kept: it depends on the lock files and on what fills them."""
    steps = build.steps or build.recipes[0].steps
    inputs = [dependency.directory, [asdict(step) for step in steps], dict(build.environment), build.extra, list(versions)]
    inputs += [hashlib.sha256(content).hexdigest() for content in locks]
    return f"{build.name}-{_sum_of(inputs)[:32]}"


def _sum_of(inputs: Any) -> str:
    """Return a sum over plain data."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def filled_directories(build: Build, tree: Path) -> list[str]:
    """Return the directories that the shared steps filled from a lock file, relative to the tree."""
    found = [path for dependency in build.dependencies for path in tree.glob(dependency.directory)]
    return sorted(str(path.relative_to(tree)) for path in set(found) if path.is_dir() and not path.is_symlink())


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
        if not source.exists() and entry.optional:
            continue
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


def run_step(
    argv: Sequence[str], directory: Path, environment: Mapping[str, str], output: IO[bytes], umask: int = 0o022, lock: int | None = None
) -> int:
    """Run a program with nothing but the given environment, and the lock that it holds until it ends."""
    # run_command can neither leave the current environment behind nor write its output to a file as it comes.
    return subprocess.run(  # pylint: disable=ansible-bad-function
        list(argv),
        cwd=directory,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        check=False,
        umask=umask,
        pass_fds=() if lock is None else (lock,),
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
        self,
        directory: Path,
        clock: Callable[[], float] = time.monotonic,
        pigz: str | None = None,
        concurrency: int = 1,
    ) -> None:
        self.directory = directory
        self.artifacts = directory / "artifacts"
        self.kept = directory / "dependencies"
        self.work = directory / "work"
        self.home = directory / "home"
        self.logs = directory / "logs"
        self._clock = clock
        self._pigz = pigz
        self._concurrency = concurrency
        self._lock: int | None = None

    def path_of(self, name: str, number: str) -> Path:
        """Return where the artifact with a fingerprint is."""
        return self.artifacts / f"{name}-{number[:16]}.tar.gz"

    def inspect(self, build: Build, archive: Path) -> Plan:
        """Return what would be built from a source archive that has all that is required."""
        try:
            with archive.open("rb") as stream:
                survey = survey_archive(stream, is_manifest)
        except FileNotFoundError as error:
            raise LmsError(f"The source archive {archive} is not on this host.") from error
        missing = sorted(set(build.required) - paths_with_parents(survey.lines))
        if missing:
            raise LmsError(
                f"{build.source} has no {', '.join(missing)}. Check the version and the path in the repository.", missing=missing
            )
        return plan(build, survey, tuple(self._version(argv, build) for argv in build.tools))

    def _version(self, argv: tuple[str, ...], build: Build) -> str:
        """Return what a tool prints about itself."""
        environment = self._environment(build.environment)
        program = self._program(argv, environment, f"Building {build.source}")
        with tempfile.TemporaryFile() as output:
            status = run_step([program, *argv[1:]], Path("/"), environment, output)
            output.seek(0)
            said = output.read(_OUTPUT_BYTES).decode("utf-8", "replace")
        if status != 0:
            raise CommandError(
                f"{shlex.join(argv)}, which tools names, ended with status {status}.", cmd=list(argv), rc=status, output=said
            )
        return said

    def find(self, name: str, number: str) -> Artifact | None:
        """Return the artifact with a fingerprint, if it is there and its bytes are those that were built."""
        path = self.path_of(name, number)
        try:
            record = Artifact(**json.loads(_record_path(path).read_text(encoding="utf-8")))
            with path.open("rb") as stream:
                whole = sha256_of(stream) == record.sha256 and record.fingerprint == number
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return record if whole else None

    def look(self, build: Build, planned: Plan) -> list[Provided]:
        """Say which artifacts are there and which would be built."""
        return [self._look(recipe.name, planned.numbers[recipe.name]) for recipe in build.recipes]

    def _look(self, name: str, number: str) -> Provided:
        """Say whether an artifact is there."""
        found = self.find(name, number)
        return Provided(name, str(self.path_of(name, number)), found or Artifact(number, "", 0, 0), built=found is None)

    @contextlib.contextmanager
    def locked(self, build: Build) -> Iterator[None]:
        """Let one build of a name at a time be at work here. What a killed one had started still is, until it ends."""
        for directory in (self.directory, self.artifacts, self.kept, self.work, self.home, self.logs):
            make_directory(directory, 0o750)
        with locked(self.directory / f".{build.name}.lock", f"Another build of {build.name}", _LOCK_TIMEOUT) as self._lock:
            try:
                yield
            finally:
                self._lock = None

    def provide(
        self, build: Build, archive: Path, planned: Plan, secrets: Mapping[str, str]
    ) -> tuple[list[Provided], list[dict[str, Any]]]:
        """Build the artifacts that are not there; return all, and the shared steps that ran. The caller holds the lock."""
        there = {entry.name: entry for entry in self.look(build, planned)}
        wanted = [recipe for recipe in build.recipes if there[recipe.name].built]
        if not wanted:
            return list(there.values()), []
        top = self.work / build.name
        self._clear(top)
        try:
            tree = top / "source"
            tree.mkdir(parents=True)
            with archive.open("rb") as stream:
                Unpacker(tree).unpack(stream)
            places = self._take_dependencies(build, tree, planned)
            taken = self._run_steps(build, build.name, build.source, build.steps, tree, secrets)
            try:
                made = self._make_all(build, wanted, tree, planned, secrets)
            finally:
                # The artifacts' own steps ran elsewhere: even if one failed, what the shared ones filled is whole.
                if not build.in_place:
                    self._keep_dependencies(tree, places)
            if build.in_place:
                self._keep_dependencies(tree, places)
        except OSError as error:
            raise LmsError(f"Building {build.source} in {self.directory} failed: {error}.") from error
        finally:
            self._clear(top)
        there.update({entry.name: entry for entry in made})
        return list(there.values()), taken

    def _make_all(self, build: Build, wanted: Sequence[Recipe], tree: Path, planned: Plan, secrets: Mapping[str, str]) -> list[Provided]:
        """Build artifacts side by side. After a failure none is begun; those that are whole by then are kept."""
        failures: dict[str, LmsError] = {}

        def make(recipe: Recipe) -> Provided | None:
            if failures:
                return None
            try:
                return self._make(build, recipe, tree, planned, secrets)
            except OSError as error:
                failures[recipe.name] = LmsError(f"Building {build.title(recipe)} in {self.directory} failed: {error}.")
            except LmsError as error:
                failures[recipe.name] = error
            return None

        with ThreadPoolExecutor(max_workers=max(1, self._concurrency)) as pool:
            made = [entry for entry in pool.map(make, wanted) if entry is not None]
        for recipe in wanted:
            if recipe.name in failures:
                if not build.in_place:
                    failures[recipe.name].details.update(broken=sorted(failures), built=sorted(entry.name for entry in made))
                raise failures[recipe.name]
        return made

    def _make(self, build: Build, recipe: Recipe, tree: Path, planned: Plan, secrets: Mapping[str, str]) -> Provided:
        """Build one artifact: in the tree itself, or in a copy from which what its fingerprint does not cover is gone."""
        began = self._clock()
        number = planned.numbers[recipe.name]
        own = tree if build.in_place else tree.parent / "copies" / recipe.name
        if own != tree:
            self._copy(tree, own, filled_directories(build, tree), planned.hidden[recipe.name])
        taken = self._run_steps(build, recipe.name, build.title(recipe), recipe.steps, own, secrets, number)
        artifact = self._pack(recipe, own, number, build.umask)
        if own != tree:
            remove_tree(own)
        return Provided(recipe.name, str(self.path_of(recipe.name, number)), artifact, True, round(self._clock() - began, 1), tuple(taken))

    def _copy(self, tree: Path, target: Path, filled: Sequence[str], hidden: Sequence[str]) -> None:
        """Copy a tree without its hidden directories; the filled ones, which may be huge, are linked file by file."""

        def skipped(directory: str, names: list[str]) -> list[str]:
            place = Path(directory).relative_to(tree)
            return [name for name in names if str(place / name) in (*filled, *hidden)]

        shutil.copytree(tree, target, symlinks=True, ignore=skipped)
        for directory in filled:
            if not is_below(directory, hidden):
                self._link(tree / directory, target / directory)

    def _link(self, source: Path, target: Path) -> None:
        """Copy a directory by hard links."""
        argv = ["cp", "--archive", "--link", str(source), str(target)]
        with tempfile.TemporaryFile() as output:
            status = run_step(argv, source, {"PATH": _CLEAN_PATH, "LC_ALL": "C.UTF-8"}, output, lock=self._lock)
            output.seek(0)
            said = output.read(_OUTPUT_BYTES).decode("utf-8", "replace")
        if status != 0:
            raise CommandError(
                f"{source} could not be linked to {target}: cp ended with status {status}.", cmd=argv, rc=status, output=said
            )

    def _clear(self, top: Path) -> None:
        """Remove a work directory; it loses its name first, so that a daemon that a step left behind cannot reach the next one."""
        stale = top.with_name(f".{top.name}.stale")
        remove_tree(stale)
        with contextlib.suppress(FileNotFoundError):
            top.rename(stale)
        remove_tree(stale)

    def _run_steps(
        self,
        build: Build,
        name: str,
        what: str,
        steps: Sequence[Step],
        tree: Path,
        secrets: Mapping[str, str],
        number: str = "",
    ) -> list[dict[str, Any]]:
        """Run steps and return how long each took."""
        if not steps:
            return []
        log = self.logs / f"{name}.log"
        log.unlink(missing_ok=True)
        taken: list[dict[str, Any]] = []
        with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as output:
            for position, step in enumerate(steps, start=1):
                output.write(f"$ {shlex.join(step.argv)}\n".encode())
                output.flush()
                start = output.tell()
                began = self._clock()
                own = {"BUILD_ID": number[:_BUILD_ID]} if number else {}
                environment = self._environment(own, build.environment, step.environment, secrets)
                status = self._run_one(step, f"Step {position} of building {what}", tree, environment, output, build.umask)
                taken.append({"argv": list(step.argv), "seconds": round(self._clock() - began, 1)})
                if status != 0:
                    lines = _output_since(log, start)
                    raise CommandError(
                        f"Step {position} of {len(steps)} of building {what}, {shlex.join(step.argv)}, "
                        f"ended with status {status}{what_it_said(lines)}. "
                        f"The end of its output is in output_lines, the whole in {log}.",
                        step=position,
                        cmd=list(step.argv),
                        rc=status,
                        output_lines=lines,
                        log=str(log),
                        steps=taken,
                    )
        return taken

    def _environment(self, *additions: Mapping[str, str]) -> dict[str, str]:
        """Return the whole environment of a program; a later addition wins."""
        environment = {"PATH": _CLEAN_PATH, "HOME": str(self.home), "LC_ALL": "C.UTF-8", "CI": "1"}
        for addition in additions:
            environment.update(addition)
        return environment

    def _program(self, argv: Sequence[str], environment: Mapping[str, str], what: str) -> str:
        """Return where a program is."""
        program = shutil.which(argv[0], path=environment["PATH"]) if "/" not in argv[0] else argv[0]
        if program is None:
            raise CommandError(
                f"{what} needs {argv[0]}, which is not installed on the build host.", cmd=list(argv), searched=environment["PATH"]
            )
        return program

    def _run_one(self, step: Step, what: str, tree: Path, environment: Mapping[str, str], output: IO[bytes], umask: int) -> int:
        """Run one step."""
        directory = tree / step.chdir
        if not directory.is_dir():
            raise LmsError(f"{what} is to run in {step.chdir}, which the source does not have.")
        program = self._program(step.argv, environment, what)
        return run_step([program, *step.argv[1:]], directory, environment, output, umask, self._lock)

    def _take_dependencies(self, build: Build, tree: Path, planned: Plan) -> list[tuple[Dependency, Path]]:
        """Move directories that earlier builds filled into the tree; return where each belongs afterwards.

        They are moved, not linked file by file: a step that writes in place would change the kept copy behind our back.
        """
        places: list[tuple[Dependency, Path]] = []
        for dependency in build.dependencies:
            locks = [path.read_bytes() for path in (tree / name for name in dependency.lock) if path.is_file()]
            if len(locks) < len(dependency.lock):
                # Without its lock file nothing says that what was installed once is what would be installed now.
                continue
            kept = self.kept / dependency_key(dependency, build, locks, planned.versions)
            taken = kept.with_name(f".{kept.name}.taken")
            remove_tree(taken)
            with contextlib.suppress(FileNotFoundError):
                kept.rename(taken)
                for entry in list(taken.iterdir()):
                    target = tree / unquote(entry.name)
                    if target.parent.is_dir() and not target.exists():
                        entry.rename(target)
            remove_tree(taken)
            places.append((dependency, kept))
        return places

    def _keep_dependencies(self, tree: Path, places: Sequence[tuple[Dependency, Path]]) -> None:
        """Move the filled directories away for the next build, aside first: a half moved set does not count."""
        for dependency, kept in places:
            aside = kept.with_name(f".{kept.name}.new")
            remove_tree(aside)
            aside.mkdir(mode=0o750)
            for filled in tree.glob(dependency.directory):
                if filled.is_dir() and not filled.is_symlink():
                    filled.rename(aside / quote(str(filled.relative_to(tree)), safe=""))
            sync_filesystem(aside)
            remove_tree(kept)
            aside.rename(kept)

    def _pack(self, recipe: Recipe, tree: Path, number: str, umask: int) -> Artifact:
        """Write the artifact and its record beside it, each aside first; the record comes last and makes the artifact count."""
        path = self.path_of(recipe.name, number)
        aside = path.with_name(f".{path.name}.tmp")
        aside.unlink(missing_ok=True)
        _record_path(path).unlink(missing_ok=True)
        try:
            with compressed(aside, self._pigz) as stream:
                contents = pack(members(tree, recipe.collect, recipe.exclude), stream, umask)
            with aside.open("rb") as packed:
                artifact = Artifact(number, sha256_of(packed), aside.stat().st_size, len(contents.sums))
            aside.rename(path)
        finally:
            aside.unlink(missing_ok=True)
        sync_directory(self.artifacts)
        write_atomically(_record_path(path), (json.dumps(asdict(artifact), sort_keys=True) + "\n").encode(), 0o640)
        return artifact

    def tidy(self, build: Build, archive: Path, provided: Sequence[Provided], keep: int) -> list[str]:
        """Remove artifacts, kept dependencies and source archives that were not used for longest; return the artifacts' names."""
        removed: list[str] = []
        for entry in provided:
            removed += self._tidy_artifacts(entry, keep)
        kept = [path for path in self.kept.glob(f"{build.name}-*") if _belongs_to(path, build.name)]
        for directory in oldest_beyond(kept, KEPT_LOCKS * max(1, len(build.dependencies))):
            remove_tree(directory)
        for stale in _half_made(self.kept, build.name):
            remove_tree(stale)
        remove_old_archives([archive], keep)
        return sorted(set(removed))

    def _tidy_artifacts(self, entry: Provided, keep: int) -> list[str]:
        """Remove the oldest artifacts of one name."""
        used = _record_path(Path(entry.path))
        os.utime(used)
        records = [path for path in self.artifacts.glob(f"{entry.name}-*.json") if _belongs_to(path, entry.name)]
        removed: list[str] = []
        for record in oldest_beyond(records, keep, [used]):
            artifact = _artifact_path(record)
            record.unlink(missing_ok=True)
            artifact.unlink(missing_ok=True)
            removed.append(artifact.name)
        for stale in _half_made(self.artifacts, entry.name):
            stale.unlink(missing_ok=True)
        known = {_artifact_path(record) for record in records}
        for orphan in self.artifacts.glob(f"{entry.name}-*.tar.gz"):
            if orphan not in known and _belongs_to(orphan, entry.name):
                orphan.unlink(missing_ok=True)
                removed.append(orphan.name)
        return removed


def what_it_said(lines: Sequence[str]) -> str:
    """Return the line of an output that most likely says why a program failed: the first that names an error, or the last one."""
    plain = [_COLOUR.sub("", line).strip() for line in lines]
    said = next((line for line in plain if _COMPLAINT.search(line)), next((line for line in reversed(plain) if line), ""))
    return f" ({said[:_LONGEST_REASON].rstrip('.:')})" if said else ""


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
    """Say whether a file is of a name and not of a longer one: the sum after it has no hyphen."""
    return "-" not in path.name.lstrip(".")[len(name) + 1 :]


def _half_made(directory: Path, name: str) -> list[Path]:
    """Return what a killed build left aside under a name. The caller holds the lock."""
    return [path for path in directory.glob(f".{name}-*") if _belongs_to(path, name)]


def result(
    build: Build, provided: Sequence[Provided], steps: Sequence[Mapping[str, Any]] = (), removed: Sequence[str] = (), seconds: float = 0.0
) -> dict[str, Any]:
    """Return the result of a task; what is not known yet is empty."""
    only = provided[0] if len(build.recipes) == 1 else Provided("", "", NOT_KNOWN, built=False)
    return {
        "changed": any(entry.built for entry in provided),
        "artifacts": [_entry(entry) for entry in provided],
        "artifact": only.path,
        "sha256": only.artifact.sha256,
        "size": only.artifact.size,
        "files": only.artifact.files,
        "fingerprint": only.artifact.fingerprint,
        "reused": not any(entry.built for entry in provided),
        "steps": [dict(step) for step in (*steps, *only.steps)],
        "summary": summary(build, provided, steps),
        "removed": list(removed),
        "seconds": seconds,
    }


def summary(build: Build, provided: Sequence[Provided], steps: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Return a line for each step that ran and for each artifact, in the order in which one waits for them."""
    lines = [_step_line(build.name, step) for step in steps]
    for entry in provided:
        lines += [_step_line(entry.name, step) for step in entry.steps]
        if not entry.built:
            lines.append(f"{entry.name}: unchanged, used again")
        elif entry.artifact.sha256:
            lines.append(f"{entry.name}: built in {entry.seconds:.1f} s")
        else:
            lines.append(f"{entry.name}: would be built")
    return lines


def _step_line(name: str, step: Mapping[str, Any]) -> str:
    """Return a line about a step that ran."""
    return f"{name}: {shlex.join(step['argv'])}, {step['seconds']:.1f} s"


def _entry(provided: Provided) -> dict[str, Any]:
    """Return what the result says of one artifact."""
    return {
        "name": provided.name,
        "artifact": provided.path,
        **asdict(provided.artifact),
        "built": provided.built,
        "seconds": provided.seconds,
        "steps": [dict(step) for step in provided.steps],
    }
