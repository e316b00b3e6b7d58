# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""restic, for trees of files that are large and change little: its repository, its passwords, its locks, its snapshots.

Passwords and keys of S3 are in files in memory. restic's exit status is not trusted further than it goes: 3 means that a snapshot was
made although files could not be read, and here that is a failure unless it was allowed for each of them.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Callable, cast

from ansible_collections.bitflow.lms.plugins.module_utils._backup_repositories import split_s3
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import MissingObjectError, Store
from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._file_tree import (
    DIRECTORY,
    FILE,
    LINK,
    UNREADABLE,
    VANISHED,
    FileEntry,
)
from ansible_collections.bitflow.lms.plugins.module_utils._memory_file import MemoryFile
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import Stage, start

# The oldest one that has repositories of version 2.
OLDEST = (0, 14)
ASSUMES_ROLES = (0, 17)
FOLDER = "restic"
# What marks snapshots as ours; a second tag says to which backup one belongs.
TAG = "bitflow-lms"
INCOMPLETE, LOCKED, WRONG_PASSWORD = 3, 11, 12
# A restic that lives refreshes its lock every five minutes, and takes one for stale that was not for half an hour.
REFRESHED_WITHIN = timedelta(minutes=30)
# Clocks of other hosts may be wrong, and their processes cannot be seen.
FOREIGN_LOCK_AGE = timedelta(hours=24)
# A snapshot without a backup may be one whose manifest is just being written.
ORPHAN_AGE = timedelta(hours=24)
ERRORS_KEPT = 20000
_VERSION = re.compile(r"^restic (?P<version>\d+\.\d+(?:\.\d+)?)")
_MISSING = re.compile(r"no such file or directory|stale (?:NFS )?file handle", re.IGNORECASE)
_ENOENT, _ESTALE = 2, 116
# Of Go's modes.
_GO_BITS = {1 << 23: 0o4000, 1 << 22: 0o2000, 1 << 20: 0o1000}
_TYPES = {"file": FILE, "dir": DIRECTORY, "symlink": LINK}


class ResticError(CommandError):
    """restic ended badly."""


# What restic says


@dataclass(frozen=True)
class Lock:
    """A lock in a repository of restic."""

    id: str
    time: datetime
    hostname: str
    username: str
    pid: int
    exclusive: bool = False

    def portrait(self) -> str:
        """Return it for a sentence."""
        moment = self.time.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        return f"{self.username}@{self.hostname} (process {self.pid}, {moment})"


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of restic."""

    id: str
    time: datetime
    tags: tuple[str, ...] = ()

    @property
    def backup(self) -> str:
        """Return the id of the backup that it belongs to; empty when it is none of ours."""
        return next((tag.partition(":")[2] for tag in self.tags if tag.startswith(f"{TAG}:")), "")


@dataclass(frozen=True)
class Key:
    """A password of a repository, by its name."""

    id: str
    name: str
    current: bool


@dataclass(frozen=True)
class Answer:
    """What a call of restic gave."""

    rc: int
    lines: Sequence[str] = ()
    errors: Sequence[str] = ()

    def messages(self) -> list[dict[str, Any]]:
        """Return the lines that are JSON objects."""
        return [message for line in self.lines if isinstance(message := _json(line), dict)]


def parse_time(text: str) -> datetime:
    """Read a time as Go writes it, whose nanoseconds Python does not take."""
    match = re.match(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)$", text)
    if not match:
        raise LmsError(f"restic wrote the time {text}, which cannot be read.")
    return datetime.fromisoformat(match[1] + match[2].replace("Z", "+00:00"))


def parse_version(line: str) -> tuple[int, ...]:
    """Read the version of restic."""
    match = _VERSION.match(line)
    if not match:
        raise LmsError(f"The program restic says {line.strip()!r} of its version, which cannot be read.")
    return tuple(int(part) for part in match["version"].split("."))


def parse_problems(errors: Iterable[str]) -> list[tuple[str, str]]:
    """Return the paths that restic complained of, without the slash at their beginning, and why."""
    found: dict[str, str] = {}
    for line in errors:
        message = _json(line)
        if not isinstance(message, dict) or message.get("message_type") != "error":
            continue
        error = message.get("error") or {}
        code = error.get("Err")
        text = str(error.get("message") or (os.strerror(code) if isinstance(code, int) else "restic does not say why"))
        gone = _MISSING.search(text) or code in (_ENOENT, _ESTALE)
        path = str(message.get("item") or "").lstrip("/")
        # The first complaint of a path is the cause.
        found.setdefault(path, VANISHED if gone else f"{UNREADABLE}: {text}")
    return sorted(found.items())


def parse_listing(lines: Iterable[str]) -> dict[str, FileEntry]:
    """Return what a snapshot holds, by paths. Other things than files, directories and links are left out."""
    entries: dict[str, FileEntry] = {}
    for line in lines:
        node = _json(line)
        if not isinstance(node, dict) or node.get("struct_type") != "node" or node.get("type") not in _TYPES:
            continue
        mode = int(node.get("mode", 0))
        path = str(node["path"]).lstrip("/")
        entries[path] = FileEntry(
            path,
            _TYPES[node["type"]],
            size=int(node.get("size", 0)),
            mode=(mode & 0o777) | sum(bit for go_bit, bit in _GO_BITS.items() if mode & go_bit),
            uid=int(node.get("uid", 0)),
            gid=int(node.get("gid", 0)),
            mtime_ns=_nanoseconds(str(node["mtime"])),
        )
    return entries


def _nanoseconds(text: str) -> int:
    """Return a time in nanoseconds."""
    fraction = re.search(r"\.(\d+)", text)
    return int(parse_time(text).timestamp()) * 10**9 + int((fraction[1] if fraction else "0")[:9].ljust(9, "0"))


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


# Decisions


def is_gone(lock: Lock, now: datetime, hostname: str, own: Mapping[int, int], running: Callable[[int], int | None]) -> bool:
    """Say whether the process that holds a lock is dead for certain.

    Of processes that this host noted it is certain at once. Of others with the same host name it is when none of that number runs here and
    the lock was not refreshed either: a container may share the name, but not the processes. Of another host's only the clock can tell.
    """
    age = now - lock.time
    if lock.hostname != hostname:
        return age > FOREIGN_LOCK_AGE
    if lock.pid in own:
        return running(lock.pid) != own[lock.pid]
    return running(lock.pid) is None and age > REFRESHED_WITHIN


def forgettable(snapshots: Iterable[Snapshot], backups: Iterable[str], newest_good: str, now: datetime) -> list[Snapshot]:
    """Return the snapshots of ours whose backup was pruned. The decision on keeping was made there, once and for both."""
    known = set(backups)
    if not newest_good:
        raise LmsError("There is no good backup of these files, so that no snapshot is forgotten. Make one first.")
    ours = [snapshot for snapshot in snapshots if snapshot.backup]
    if newest_good not in {snapshot.backup for snapshot in ours}:
        raise LmsError(f"The newest good backup {newest_good} has no snapshot in restic's repository, so that none is forgotten.")
    newest = max(ours, key=lambda snapshot: snapshot.time)
    return [
        snapshot
        for snapshot in sorted(ours, key=lambda snapshot: snapshot.time)
        if snapshot.backup not in known and snapshot.id != newest.id and now - snapshot.time > ORPHAN_AGE
    ]


def running_restic(pid: int, proc: Path = Path("/proc")) -> int | None:
    """Return when a process of restic started (ticks of the kernel); None when none has this number."""
    try:
        name, fields = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)
    except OSError:
        return None
    return int(fields.split()[19]) if name.partition("(")[2] == "restic" else None


# Where it lies


@dataclass(frozen=True)
class Location:
    """Where a repository of restic lies."""

    # Of its keys in the store.
    prefix: str
    # As restic wants to hear it.
    repository: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    # A shared credentials file of AWS; empty: restic finds credentials by itself.
    credentials: str = field(default="", repr=False)
    role_arn: str = ""


def location_of(params: Mapping[str, Any]) -> Location:
    """Return where the options repository, s3, environment and name put the repository of restic."""
    prefix = f"{params['environment']}/{FOLDER}/{params['name']}"
    repository = params["repository"]
    if not repository.startswith("s3://"):
        return Location(prefix, f"{repository.rstrip('/')}/{prefix}")
    given = {key: value for key, value in (params.get("s3") or {}).items() if value}
    bucket, beginning = split_s3(repository)
    region = given.get("region")
    endpoint = (given.get("endpoint_url") or f"https://s3.{f'{region}.' if region else ''}amazonaws.com").rstrip("/")
    lookup = {"path": "path", "virtual": "dns"}.get(given.get("addressing_style", ""), "auto")
    options = {"s3.bucket-lookup": lookup, "s3.region": region, "s3.storage-class": given.get("storage_class")}
    arguments = [word for name, value in options.items() if value for word in ("--option", f"{name}={value}")]
    arguments += ["--cacert", given["ca_bundle"]] if given.get("ca_bundle") else []
    environment = {"AWS_PROFILE": given["profile"]} if given.get("profile") and not given.get("access_key") else {}
    if given.get("role_arn"):
        environment["RESTIC_AWS_ASSUME_ROLE_ARN"] = given["role_arn"]
        if region:
            environment["RESTIC_AWS_ASSUME_ROLE_REGION"] = region
    return Location(
        prefix,
        f"s3:{endpoint}/{'/'.join(part for part in (bucket, beginning, prefix) if part)}",
        tuple(arguments),
        environment,
        _credentials(given),
        given.get("role_arn", ""),
    )


def _credentials(given: Mapping[str, Any]) -> str:
    """Return a shared credentials file of AWS, where keys are given by options or by the task's environment."""
    keys = [given.get(key, "") for key in ("access_key", "secret_key", "session_token")]
    if not keys[0] and not given.get("profile"):
        keys = [os.environ.get(name, "") for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")]
    if not keys[0]:
        return ""
    named = zip(("aws_access_key_id", "aws_secret_access_key", "aws_session_token"), keys)
    return "\n".join(["[default]", *(f"{name} = {value}" for name, value in named if value), ""])


class Restic:
    """Calls restic on one repository. To be used as a context: the passwords lie in memory for as long."""

    def __init__(self, location: Location, password: str, cache: Path, notes: Path, nice: int = 0) -> None:
        if not password:
            raise LmsError("restic_password is empty. The engine restic needs one; without it nothing can ever be restored.")
        self.location = location
        self.cache = cache
        # Which processes of restic this host started under its lock.
        self.notes = notes
        self.nice = nice
        self._password = password
        self._held = ExitStack()
        self._files: dict[str, MemoryFile] = {}

    def __enter__(self) -> Restic:
        self._files["RESTIC_PASSWORD_FILE"] = self._held.enter_context(MemoryFile(self._password))
        if self.location.credentials:
            self._files["AWS_SHARED_CREDENTIALS_FILE"] = self._held.enter_context(MemoryFile(self.location.credentials))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._held.close()

    # Calling

    def call(
        self,
        *arguments: str,
        accepted: Sequence[int] = (0,),
        password: MemoryFile | None = None,
        more: Sequence[MemoryFile] = (),
        heard: Callable[[str], None] | None = None,
    ) -> Answer:
        """Run restic and return what it said. ResticError when it ended with a status that is not accepted."""
        files = {**self._files, **({"RESTIC_PASSWORD_FILE": password} if password else {})}
        stage = Stage(
            ["restic", "--repo", self.location.repository, "--cache-dir", str(self.cache), *self.location.arguments, *arguments],
            environment={**self.location.environment, **{name: file.path for name, file in files.items()}},
            descriptors=[file.descriptor for file in [*files.values(), *more]],
        )
        process = start(stage, nice=self.nice, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        answer = self._hear(process, "--no-lock" not in arguments, heard)
        if answer.rc not in accepted:
            raise self._error(arguments, answer)
        return answer

    def _hear(self, process: subprocess.Popen[bytes], locking: bool, heard: Callable[[str], None] | None) -> Answer:
        """Read what a process says until it ends."""
        lines: list[str] = []
        errors: list[str] = []

        def listen() -> None:
            for line in cast(IO[bytes], process.stderr):
                if len(errors) < ERRORS_KEPT:
                    errors.append(line.decode("utf-8", "surrogateescape").rstrip("\n"))

        listener = threading.Thread(target=listen, daemon=True)
        try:
            if locking:
                self._note(process.pid)
            listener.start()
            for piece in cast(IO[bytes], process.stdout):
                line = piece.decode("utf-8", "surrogateescape").rstrip("\n")
                if heard:
                    heard(line)
                else:
                    lines.append(line)
            process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            if listener.ident is not None:
                listener.join()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        return Answer(process.returncode, lines, errors)

    def _error(self, arguments: Sequence[str], answer: Answer) -> ResticError:
        """Say what failed."""
        said = [text for line in answer.errors if (text := _said(line))]
        text = "\n".join(said)
        if answer.rc == WRONG_PASSWORD or "wrong password" in text:
            return ResticError(f"restic_password does not open the repository {self.location.repository}.", rc=answer.rc, stderr=text)
        if answer.rc == LOCKED or "already locked" in text:
            return ResticError(
                f"The repository {self.location.repository} is locked by a restic that may be alive: {text}. Wait until it has ended.",
                rc=answer.rc,
                stderr=text,
            )
        how = f"was killed by signal {-answer.rc}" if answer.rc < 0 else f"ended with status {answer.rc}"
        last = f": {said[-1]}" if said else ""
        return ResticError(f"restic {arguments[0]} {how} on {self.location.repository}{last}", rc=answer.rc, stderr=text[-8192:])

    def _note(self, pid: int) -> None:
        """Note a process that takes a lock, so that the next run knows that it is dead."""
        ticks = running_restic(pid)
        with suppress(OSError):
            descriptor = os.open(self.notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as stream:
                stream.write(f"{pid} {ticks or 0}\n")

    def noted(self) -> dict[int, int]:
        """Return the processes that this host noted since it started, and when each of them started."""
        with suppress(OSError, ValueError):
            return {int(pid): int(ticks) for pid, ticks in (line.split() for line in self.notes.read_text(encoding="ascii").splitlines())}
        return {}

    # Asking; nothing of this takes a lock

    def version(self) -> str:
        """Return the version of restic. LmsError when it is too old."""
        stage = Stage(["restic", "version"])
        process = start(stage, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        found = parse_version(process.communicate()[0].decode())
        version = ".".join(str(part) for part in found)
        if found < OLDEST:
            raise LmsError(f"restic is {version}; 0.14 is the oldest one that is used. Install a newer one.")
        if self.location.role_arn and found < ASSUMES_ROLES:
            raise LmsError(f"restic is {version}, which does not know s3.role_arn; 0.17 does. Give keys, a profile or the instance's role.")
        return version

    def exists(self, store: Store) -> bool:
        """Say whether there is a repository. One that lost its configuration is neither there nor missing."""
        try:
            store.read(f"{self.location.prefix}/config")
        except MissingObjectError:
            for folder in ("keys", "snapshots"):
                if store.entries(f"{self.location.prefix}/{folder}/"):
                    raise LmsError(
                        f"The repository {self.location.repository} has lost its config, but still holds {folder}. Bring the file config "
                        "back from a copy; a new repository beside what is left would make that unreadable."
                    ) from None
            return False
        return True

    def repository_id(self) -> str:
        """Return the id of the repository; this tries the password, too."""
        answer = self.call("cat", "config", "--no-lock", "--quiet")
        found = _json("\n".join(answer.lines))
        return str(found["id"]) if isinstance(found, dict) else ""

    def keys(self, password: MemoryFile | None = None) -> list[Key]:
        """Return the passwords that open the repository, by their names."""
        answer = self.call("key", "list", "--json", "--no-lock", password=password)
        return [Key(found["id"], found["userName"], bool(found["current"])) for found in _json("\n".join(answer.lines)) or []]

    def opens(self, password: str) -> Key | None:
        """Return the key that a password is, or None when it opens nothing."""
        with MemoryFile(password) as file:
            try:
                return next((key for key in self.keys(file) if key.current), None)
            except ResticError as error:
                if error.details["rc"] == WRONG_PASSWORD or "wrong password" in error.details["stderr"]:
                    return None
                raise

    def snapshots(self, *ids: str) -> list[Snapshot]:
        """Return the snapshots, or those with some ids."""
        answer = self.call("snapshots", "--json", "--no-lock", *ids)
        found = _json("\n".join(answer.lines)) or []
        return [Snapshot(each["id"], parse_time(each["time"]), tuple(each.get("tags") or ())) for each in found]

    def listing(self, snapshot: str) -> dict[str, FileEntry]:
        """Return what a snapshot holds."""
        return parse_listing(self.call("ls", "--json", "--no-lock", snapshot).lines)

    # Acting

    def create(self) -> None:
        """Create the repository."""
        self.call("init", "--repository-version", "2")

    def add_key(self, name: str, password: str) -> None:
        """Let a further password open the repository."""
        with MemoryFile(password) as file:
            self.call("key", "add", "--new-password-file", file.path, "--user", name, more=[file])

    def remove_key(self, key: Key) -> None:
        """Let a password open the repository no longer."""
        self.call("key", "remove", key.id)

    def clear_locks(self, store: Store, now: datetime) -> tuple[list[Lock], list[Lock]]:
        """Remove the locks whose processes are dead for certain. Return those, and the others.

        restic's own unlock takes every lock for stale whose process it does not find, although a container may share the name of the host.
        """
        removed, others = [], []
        own = self.noted()
        for entry in store.entries(f"{self.location.prefix}/locks/"):
            lock = self._lock(entry.key.rpartition("/")[2])
            if lock is None:
                continue
            if is_gone(lock, now, socket.gethostname(), own, running_restic):
                store.delete(entry.key)
                removed.append(lock)
            else:
                others.append(lock)
        if not others:
            # What was noted has no lock any more.
            self.notes.unlink(missing_ok=True)
        return removed, others

    def _lock(self, identity: str) -> Lock | None:
        """Return a lock; None when it is gone meanwhile."""
        answer = self.call("cat", "lock", identity, "--no-lock", "--quiet", accepted=(0, 1))
        found = _json("\n".join(answer.lines))
        if not isinstance(found, dict):
            return None
        return Lock(
            identity,
            parse_time(found["time"]),
            str(found.get("hostname", "")),
            str(found.get("username", "")),
            int(found.get("pid", 0)),
            bool(found.get("exclusive")),
        )

    def check(self, percent: int) -> Answer:
        """Check the repository, and read some of the data back."""
        subset = [f"--read-data-subset={percent}%"] if percent else []
        return self.call("check", *subset, accepted=(0, 1))

    def forget(self, snapshots: Sequence[str]) -> None:
        """Forget snapshots; the data that only they had goes with prune()."""
        for first in range(0, len(snapshots), 200):
            self.call("forget", "--quiet", *snapshots[first : first + 200])

    def prune(self) -> None:
        """Remove the data that no snapshot has."""
        self.call("prune", "--quiet")


def _said(line: str) -> str:
    """Return what a line on standard error says: newer ones write JSON there."""
    message = _json(line)
    if not isinstance(message, dict):
        return line.strip()
    return str(message.get("message") or (message.get("error") or {}).get("message") or "").strip()
