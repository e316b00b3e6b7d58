# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lease of a deployment: one owner a host, for a limited time, and taken from nobody who is still at work.

Three files in .deploy: lease.json says who holds it, lease.lock makes reading and deciding one act, and lease.acting is held shared
by every process that changes something for the owner. The kernel frees the last two when a process dies, however it dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import (
    Owner,
    make_directory,
    owner_of_directory,
    sync_directory,
    write_atomically,
)
from ansible_collections.bitflow.lms.plugins.module_utils._release_plan import format_time, parse_time

# How long others may need to read and decide (seconds): they do nothing else meanwhile.
DECIDING = 30
# How long somebody who only looks may be mistaken for somebody who acts (seconds).
LOOKING = 0.5
# How often to look again (seconds).
INTERVAL = 0.005
RETRY_INTERVAL = 0.25
LARGEST_LEASE = 65536
# A week is long for a deployment; a host may run for a century (seconds).
LONGEST_TTL = 604800
LARGEST_NUMBER = 3153600000
DETAILS = ("what", "release", "controller", "user", "process")
TIMES = ("since", "renewed_at", "expires_at")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def lease_argspec() -> dict[str, dict[str, Any]]:
    """Return the options of the documentation fragment lease."""
    return {
        "lease": {
            "type": "dict",
            "options": {"path": {"type": "path", "required": True}, "owner": {"type": "str", "required": True}},
        }
    }


@dataclass(frozen=True)
class Moment:
    """A time of this host: by its clock, which may be set, and since its start, which only goes on."""

    clock: datetime
    boot: str = ""
    uptime: float = 0

    @classmethod
    def now(cls) -> Moment:
        """Return the time."""
        try:
            boot = BOOT_ID.read_text(encoding="ascii").strip()
        except OSError:
            boot = ""
        return cls(datetime.now(timezone.utc), boot, time.clock_gettime(time.CLOCK_BOOTTIME))


@dataclass(frozen=True)
class Lease:
    """What is written about a holder."""

    owner: str
    what: str = ""
    release: str = ""
    controller: str = ""
    user: str = ""
    # The run of Ansible, by which its control host recognises that it is dead.
    process: str = ""
    since: str = ""
    renewed_at: str = ""
    expires_at: str = ""
    ttl: int = 0
    boot: str = ""
    expires_uptime: float = 0

    def renewed(self, moment: Moment, ttl: int | None = None) -> Lease:
        """Return the lease with its whole time before it again."""
        seconds = self.ttl if ttl is None else ttl
        return replace(
            self,
            since=self.since or format_time(moment.clock),
            renewed_at=format_time(moment.clock),
            expires_at=format_time(moment.clock + timedelta(seconds=seconds)),
            ttl=seconds,
            boot=moment.boot,
            expires_uptime=round(moment.uptime + seconds, 3),
        )

    def seconds_left(self, moment: Moment) -> int:
        """Return the seconds until it expires, negative afterwards. Unless the host was restarted, its clock has no say in that."""
        if self.boot and self.boot == moment.boot:
            return round(self.expires_uptime - moment.uptime)
        expiry = parse_time(self.expires_at)
        return round((expiry - moment.clock).total_seconds()) if expiry else 0

    def expired(self, moment: Moment) -> bool:
        """Say whether its time is over."""
        return self.seconds_left(moment) <= 0


@dataclass(frozen=True)
class Worker:
    """A process that acts under the lease."""

    pid: int
    name: str


@dataclass(frozen=True)
class Sight:
    """What is seen of a lease at one moment."""

    moment: Moment
    lease: Lease | None = None
    # Why the file cannot be understood.
    broken: str = ""
    busy: bool = False
    workers: tuple[Worker, ...] = ()


@dataclass(frozen=True)
class Claim:
    """Who wants the lease, for how long, and from whom it may be taken."""

    owner: str
    ttl: int = 1800
    steal: str = "expired"
    # From whom it may be taken before its time is over.
    dead_owner: str = ""
    details: Mapping[str, str] = field(default_factory=dict)

    def lease(self, moment: Moment) -> Lease:
        """Return the lease that is claimed. Its texts end up in messages, so each is one line."""
        texts = (" ".join(str(self.details.get(key) or "").split()) for key in DETAILS)
        what, release, controller, user, process = texts
        return Lease(self.owner, what, release, controller, user, process).renewed(moment, self.ttl)


def parse_lease(text: str) -> Lease:
    """Read a lease; a ValueError says what is wrong with it."""
    if not text.strip():
        raise ValueError("it is empty")
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError("it is no whole JSON") from error
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    for name, example in asdict(Lease("")).items():
        if not _is_like(found.get(name), example) or (name in TIMES and parse_time(found[name]) is None):
            raise ValueError(f"{name} is missing or wrong")
    return Lease(**{name: found[name] for name in asdict(Lease(""))})


def _is_like(value: Any, example: Any) -> bool:
    """Say whether a value is a text like the example, or a number in the range of those that are written."""
    if isinstance(example, str):
        return isinstance(value, str)
    return type(value) in (int, float) and 0 <= value <= LARGEST_NUMBER


def refusal(sight: Sight, claim: Claim, path: Path) -> str:
    """Say why the claim fails, or nothing if it succeeds."""
    found = sight.lease
    if found is not None and found.owner == claim.owner:
        return ""
    if sight.broken and claim.steal != "force":
        return broken_message(path, sight.broken)
    holder = f"{path} is held by {portrait(found, sight.moment)}." if found else f"Nobody holds {path}, but somebody changes it."
    dead = found is not None and found.owner == claim.dead_owner
    if found is not None and claim.steal != "force" and not dead:
        if not found.expired(sight.moment):
            return f"{holder} {idleness(sight)}Wait until it ends. If it is dead for sure, set steal to force."
        if claim.steal != "expired":
            return f"{holder} Set steal to expired to take it over."
    if sight.busy:
        return f"{holder} {idleness(sight)}Wait until that ends, or end the process."
    return ""


def portrait(lease: Lease, moment: Moment) -> str:
    """Return a holder for a sentence: who, what for, since when and for how long."""
    who = " on ".join(text for text in (lease.user, lease.controller) if text) or f"the owner {lease.owner}"
    release = f" (release {lease.release})" if lease.release else ""
    purpose = f" for {lease.what}{release}" if lease.what else release
    left = lease.seconds_left(moment)
    expiry = f"it expires at {lease.expires_at}, in {left} s" if left > 0 else f"it expired at {lease.expires_at}, {-left} s ago"
    return f"{who}{purpose} since {lease.since}; {expiry}"


def idleness(sight: Sight) -> str:
    """Return a sentence about who acts under the lease, or nothing."""
    if not sight.busy:
        return ""
    names = ", ".join(f"{worker.pid} ({worker.name})" for worker in sight.workers)
    return f"The process {names} is at work for it. " if names else "A process is at work for it. "


def broken_message(path: Path, reason: str) -> str:
    """Say what to do about a lease that nobody can read."""
    return (
        f"The lease {Lessor(path).file} cannot be read: {reason}. It may hide a deployment that runs. "
        "When none does, set steal to force, which replaces it, or remove the file."
    )


def _no_checkpoint(name: str) -> None:
    """Pass a step; tests hand in a function that waits or kills here."""
    del name


class Lessor:
    """The lease of what is deployed below one path of this host."""

    def __init__(
        self,
        path: Path,
        now: Callable[[], Moment] = Moment.now,
        checkpoint: Callable[[str], None] = _no_checkpoint,
        processes: Path = Path("/proc"),
    ) -> None:
        self.path = path
        self.directory = path / ".deploy"
        self.file = self.directory / "lease.json"
        self.now = now
        self._checkpoint = checkpoint
        self._processes = processes

    # Looking

    def look(self, patience: float = LOOKING) -> Sight:
        """Return what is seen from outside; writes nothing, and nothing need be there."""
        descriptor = None
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            descriptor = os.open(self._acting_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if descriptor is None:
            return self._sight(busy=False)
        try:
            return self._sight(busy=not _take(descriptor, fcntl.LOCK_EX, patience))
        finally:
            os.close(descriptor)

    def _sight(self, busy: bool) -> Sight:
        """Return what the file says."""
        lease, broken = None, ""
        try:
            lease = self._read()
        except ValueError as error:
            broken = str(error)
        return Sight(self.now(), lease, broken, busy, self._workers() if busy else ())

    def _read(self) -> Lease | None:
        """Return the lease, or None when there is none; a ValueError says why it cannot be understood."""
        try:
            descriptor = os.open(self.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ValueError(error.strerror) from error
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError("it is no file")
            return parse_lease(stream.read(LARGEST_LEASE).decode("utf-8", "replace"))

    def _workers(self) -> tuple[Worker, ...]:
        """Return the other processes that have the acting file open; without root only those of the own user are seen."""
        wanted = self._acting_file.resolve()
        found = []
        for process in self._processes.glob("[0-9]*"):
            if int(process.name) != os.getpid() and wanted in _open_files(process):
                with contextlib.suppress(OSError):
                    found.append(Worker(int(process.name), (process / "comm").read_text(encoding="utf-8", errors="replace").strip()))
        return tuple(sorted(found, key=lambda worker: worker.pid))

    # Changing

    def hold(self, claim: Claim, wait: float = 0, user: str | None = None) -> tuple[Sight, Lease]:
        """Take the lease or renew it, and return what was found and what was written; wait for it some seconds."""
        if not self.path.is_dir():
            raise LmsError(f"There is no directory {self.path} on this host, so nothing can be deployed there. Provision the host first.")
        self._make_directory(user)
        deadline = time.monotonic() + wait
        while True:
            sight, lease = self._try(claim)
            if lease is not None:
                return sight, lease
            if time.monotonic() >= deadline:
                raise LmsError(refusal(sight, claim, self.path), holder=describe(sight))
            time.sleep(RETRY_INTERVAL)

    def _try(self, claim: Claim) -> tuple[Sight, Lease | None]:
        """Look, decide and write in one act."""
        with self._alone():
            sight = self._sight(busy=False)
            self._checkpoint("seen")
            if sight.lease is not None and sight.lease.owner == claim.owner:
                return sight, self._write(sight.lease.renewed(sight.moment, claim.ttl))
            if refusal(sight, claim, self.path):
                seen = self.look(patience=0)
                return replace(sight, busy=seen.busy, workers=seen.workers), None
            with self._idle() as idle:
                if not idle:
                    return self._sight(busy=True), None
                return sight, self._write(claim.lease(sight.moment))

    def give_up(self, owner: str, wait: float = 0) -> tuple[Sight, bool]:
        """Remove the lease if the owner holds it, and return what was found and whether it was removed; wait for what acts under it."""
        if not self.directory.is_dir():
            return Sight(self.now()), False
        deadline = time.monotonic() + wait
        while True:
            sight, removed = self._try_to_give_up(owner)
            if removed or not sight.busy:
                return sight, removed
            if time.monotonic() >= deadline:
                raise LmsError(
                    f"{owner} keeps {self.path}. {idleness(sight)}Release it again when that has ended, or let it expire.",
                    holder=describe(sight),
                )
            time.sleep(RETRY_INTERVAL)

    def _try_to_give_up(self, owner: str) -> tuple[Sight, bool]:
        """Remove the lease unless it is somebody else's or in use."""
        with self._alone():
            sight = self._sight(busy=False)
            if sight.broken:
                raise LmsError(broken_message(self.path, sight.broken))
            if sight.lease is None or sight.lease.owner != owner:
                return sight, False
            with self._idle() as idle:
                if not idle:
                    return self._sight(busy=True), False
                self.file.unlink()
                sync_directory(self.directory)
                return sight, True

    def renew(self, owner: str) -> None:
        """Give the lease its whole time again, or say who took it."""
        with self._alone():
            sight = self._sight(busy=False)
            if sight.broken:
                raise LmsError(broken_message(self.path, sight.broken))
            if sight.lease is None:
                raise LmsError(f"{owner} does not hold {self.path} any more: nobody does. Start again; nothing was changed by this step.")
            if sight.lease.owner != owner:
                raise LmsError(
                    f"{owner} does not hold {self.path} any more: {portrait(sight.lease, sight.moment)}. "
                    "Nothing was changed by this step; start again when that has ended.",
                    holder=describe(sight),
                )
            self._write(sight.lease.renewed(sight.moment))

    @contextlib.contextmanager
    def acting(self, owner: str) -> Iterator[int]:
        """Act for the owner: as long as this lasts nobody takes the lease. Yields the descriptor that a program has to inherit."""
        with self._opened(self._acting_file) as descriptor:
            # Before the look at the owner: who takes the lease over needs this lock for himself alone.
            if not _take(descriptor, fcntl.LOCK_SH, DECIDING):
                raise LmsError(f"Somebody else is taking the lease of {self.path} over. Start again when that has ended.")
            self.renew(owner)
            try:
                yield descriptor
            finally:
                # Idle from here on, so its time begins now. What the action itself says matters more than that this failed.
                with contextlib.suppress(LmsError):
                    self.renew(owner)

    def _write(self, lease: Lease) -> Lease:
        """Write the lease and return it; half of it is never seen."""
        text = json.dumps(asdict(lease), indent=2, sort_keys=True) + "\n"
        try:
            write_atomically(self.file, text.encode(), 0o644, owner_of_directory(self.directory))
        except PermissionError as error:
            raise LmsError(self._forbidden()) from error
        except OSError as error:
            raise LmsError(f"The lease {self.file} cannot be written: {error.strerror}.") from error
        self._checkpoint("written")
        return lease

    def _make_directory(self, user: str | None) -> None:
        """Make the directory of the lease; it belongs to the user whose tasks act under it."""
        try:
            make_directory(self.directory, 0o755, owner_of_directory(self.path))
            if user is not None:
                Owner.of(user, None).give(self.directory)
        except PermissionError as error:
            raise LmsError(f"{self.directory} cannot be made by the user id {os.geteuid()}. Run the task as root.") from error
        except OSError as error:
            raise LmsError(f"{self.directory} cannot be made: {error.strerror}.") from error

    @property
    def _acting_file(self) -> Path:
        """Return the file that is locked, shared, while somebody acts."""
        return self.directory / "lease.acting"

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let nobody else decide."""
        with self._opened(self.directory / "lease.lock") as descriptor:
            if not _take(descriptor, fcntl.LOCK_EX, DECIDING):
                raise LmsError(f"Another process looks at the lease of {self.path} for {DECIDING} s already. End it.")
            yield

    @contextlib.contextmanager
    def _idle(self) -> Iterator[bool]:
        """Keep everybody from acting, and say whether nobody does."""
        with self._opened(self._acting_file) as descriptor:
            yield _take(descriptor, fcntl.LOCK_EX, LOOKING)

    @contextlib.contextmanager
    def _opened(self, file: Path) -> Iterator[int]:
        """Open a file that is only locked, never written. Only its owner and root can open it, so nobody else can lock it."""
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise LmsError(f"Nobody holds {self.path}. Take the lease with deploy_lock first.") from error
        except PermissionError as error:
            raise LmsError(self._forbidden()) from error
        try:
            owner = owner_of_directory(self.directory)
            # A second name would be a trap: the directory may be another user's.
            if os.geteuid() == 0 and os.fstat(descriptor).st_nlink == 1:
                os.fchown(descriptor, owner.uid, owner.gid)
            yield descriptor
        finally:
            os.close(descriptor)

    def _forbidden(self) -> str:
        """Say that the user may not act under the lease."""
        return f"The user id {os.geteuid()} may not use {self.directory}. Name the user in the option act_as of deploy_lock."


def _open_files(process: Path) -> Iterator[Path]:
    """Return the files that a process has open. It may end while we look."""
    with contextlib.suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield descriptor.readlink()


def _take(descriptor: int, operation: int, seconds: float) -> bool:
    """Lock an open file, shared or exclusively, and say whether that succeeded in time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(INTERVAL)
        else:
            return True


@contextlib.contextmanager
def acting(lease: Mapping[str, Any] | None) -> Iterator[tuple[int, ...]]:
    """Act under a lease, which must be held by its owner; without a lease just act.

    Yields the descriptors to hand to a program that acts (pass_fds): if this process is killed, the program still counts as at work.
    """
    if lease is None:
        yield ()
        return
    with Lessor(Path(lease["path"])).acting(lease["owner"]) as descriptor:
        yield (descriptor,)


def describe(sight: Sight) -> dict[str, Any] | None:
    """Return the holder for a module's result."""
    lease = sight.lease
    if lease is None:
        return None
    return {
        "owner": lease.owner,
        "what": lease.what,
        "release": lease.release,
        "controller": lease.controller,
        "user": lease.user,
        "process": lease.process,
        "since": lease.since,
        "renewed_at": lease.renewed_at,
        "expires_at": lease.expires_at,
        "expires_in": lease.seconds_left(sight.moment),
        "expired": lease.expired(sight.moment),
        "at_work": sight.busy,
        "processes": [asdict(worker) for worker in sight.workers],
    }
