# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of a rollout: what was meant, who is at it, and what happened. It says nothing about where traffic goes.

It is one small document that is only ever replaced as a whole, and only where it is still the one that was read (compare and swap).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from ansible_collections.bitflow.lms.plugins.module_utils._backup_repositories import split_s3
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import make_directory, owner_of_directory, write_atomically

FORMAT = 1
# Entries of the history that stay in the record. A versioned bucket keeps all of them.
HISTORY = 200

IDLE = "idle"
PREPARED = "prepared"
ATTACHED = "attached"
GATED = "gated"
SMOKED = "smoked"
SHIFTING = "shifting"
SHIFTED = "shifted"
BAKING = "baking"
RETAINED = "retained"
RETIRED = "retired"
ROLLING_BACK = "rolling_back"
ROLLED_BACK = "rolled_back"
FAILED = "failed"
PHASES = (PREPARED, ATTACHED, GATED, SMOKED, SHIFTING, SHIFTED, BAKING, RETAINED, RETIRED, ROLLING_BACK, ROLLED_BACK, FAILED)
# A rollout that is over.
ENDS = frozenset({RETIRED, ROLLED_BACK})


class RecordError(LmsError):
    """A record that cannot be read or written."""


class ConflictError(RecordError):
    """A record that somebody else wrote in the meantime."""


class UnreachableError(RecordError):
    """A record that could not be reached, and may be reached a moment later."""


class LeaseHeldError(RecordError):
    """A rollout that another controller is at."""

    def __init__(self, message: str, until: datetime, **details: Any) -> None:
        super().__init__(message, until=stamp(until), **details)
        self.until = until


class LeaseLostError(RecordError):
    """A lease that ran out in the middle of a tick."""


@dataclass(frozen=True)
class Stored:
    """A document as it lies in a store, with what tells it from every other version."""

    content: bytes
    tag: str


class Store(Protocol):
    """Where the record lies. Each method raises RecordError when it cannot."""

    uri: str

    def read(self) -> Stored | None:
        """Return the document, or nothing when there is none."""

    def create(self, content: bytes) -> str:
        """Write the document where there is none, and return its tag. Raises ConflictError when there is one."""

    def replace(self, content: bytes, tag: str) -> str:
        """Write the document over the one with this tag, and return the new tag. Raises ConflictError when that is not there any more."""


class FileStore:
    """A record in a file of this host."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.uri = str(path)

    def read(self) -> Stored | None:
        """Return the document, or nothing when there is none."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RecordError(f"The record {self.uri} cannot be read: {error.strerror}.") from error
        return Stored(content, _digest(content))

    def create(self, content: bytes) -> str:
        """Write the document where there is none."""
        return self._swap(content, None)

    def replace(self, content: bytes, tag: str) -> str:
        """Write the document over the one with this tag."""
        return self._swap(content, tag)

    def _swap(self, content: bytes, tag: str | None) -> str:
        """Compare and write, while nobody else does."""
        try:
            make_directory(self.path.parent)
            with self._alone():
                found = self.read()
                if (found.tag if found else None) != tag:
                    raise conflict(self.uri)
                write_atomically(self.path, content, 0o644, owner_of_directory(self.path.parent))
        except OSError as error:
            raise RecordError(f"The record {self.uri} cannot be written: {error.strerror}.") from error
        return _digest(content)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let nobody else write. The lock ends with the process."""
        lock = self.path.with_name(f".{self.path.name}.lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _digest(content: bytes) -> str:
    """Return what tells a document from every other one."""
    return hashlib.sha256(content).hexdigest()


def conflict(uri: str) -> ConflictError:
    """Return the error for a record that is not the one that was read."""
    return ConflictError(f"Somebody else wrote or removed the record {uri} in the meantime. Look at the status, then start again.")


def open_record(location: str, client: Callable[[], Any]) -> Store:
    """Return the store that the option state means; a client of S3 is only made where it is needed. Nothing is asked or written yet."""
    if location.startswith("s3://"):
        # Not at the top: only this one needs the SDK of AWS.
        from ansible_collections.bitflow.lms.plugins.module_utils._traffic_record_s3 import ObjectStore

        try:
            bucket, key = split_s3(location)
        except LmsError as error:
            raise LmsError(f"state is {location!r}, which is no object such as s3://example-state/traffic/prod/lms.json.") from error
        if not key:
            raise LmsError(f"state is {location!r}, which names no object. Add one, such as s3://{bucket}/traffic/prod/lms.json.")
        return ObjectStore(client(), bucket, key)
    if not location.startswith("/"):
        raise LmsError(f"state is {location!r}. Give an absolute path such as /var/lib/lms-traffic/lms.json, or s3://bucket/key.")
    return FileStore(Path(location))


# Times


def stamp(moment: datetime) -> str:
    """Return a time as it stands in the record and in results."""
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment_of(text: str) -> datetime:
    """Read a time."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return moment


# The record


@dataclass(frozen=True)
class Lease:
    """Who is at a rollout, and until when."""

    owner: str
    token: str
    until: datetime


@dataclass(frozen=True)
class Step:
    """A share of the traffic for the new colour, and for how long it is watched."""

    # Percent.
    weight: int
    # Seconds.
    bake: float


@dataclass(frozen=True)
class Rollout:
    """How far a rollout is, and what was meant to be done next."""

    release: str
    old: str
    new: str
    phase: str
    steps: Sequence[Step]
    started: datetime
    # When the phase, or the step in it, began.
    since: datetime
    # Before this there is nothing to do.
    next_at: datetime
    # The step that the weights belong to; -1 before the first one.
    step: int = -1
    # How many times in a row the colour that is gated was ready.
    passes: int = 0
    # The weights that are meant, written before they are set, and those before them.
    intent: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    previous: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    # Whether the intent was seen in force.
    settled: bool = True
    # Since when the load balancer has the weights without acting by them.
    unverified_since: datetime | None = None
    # When the old colour lost its last weight.
    shifted_at: datetime | None = None
    # Why it is being rolled back, was rolled back, or failed.
    reason: str = ""

    @property
    def over(self) -> bool:
        """Say whether it has ended."""
        return self.phase in ENDS


@dataclass(frozen=True)
class Record:
    """The document."""

    name: str
    serial: int = 0
    lease: Lease | None = None
    rollout: Rollout | None = None
    history: Sequence[Mapping[str, Any]] = ()

    def render(self) -> bytes:
        """Return it as it is stored."""
        document = {"format": FORMAT, **vars(self)}
        return (json.dumps(document, indent=2, sort_keys=True, default=_plain) + "\n").encode()


def _plain(value: Any) -> Any:
    """Return what JSON does not know."""
    if isinstance(value, datetime):
        return stamp(value)
    if isinstance(value, (Lease, Rollout, Step)):
        return vars(value)
    raise TypeError(f"{value!r} does not belong into a record")


def parse(content: bytes, name: str, uri: str) -> Record:
    """Read a document, or say that it is none of ours. Nothing is guessed: what is damaged is for a person to bring back."""
    advice = f"Bring an earlier version of {uri} back, or move it away and name the colour of the next step in colour."
    try:
        document = json.loads(content)
        if document["format"] != FORMAT:
            raise RecordError(
                f"The record {uri} has the format {document['format']!r}, and this version knows {FORMAT}. Use a newer version."
            )
        record = Record(
            str(document["name"]),
            _number(document["serial"]),
            _lease(document["lease"]),
            _rollout(document["rollout"]),
            [dict(entry) for entry in document["history"]],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"The record {uri} is damaged ({type(error).__name__}: {error}). {advice}") from error
    if record.name != name:
        raise RecordError(f"The record {uri} belongs to {record.name}, not to {name}. Give each rollout a state of its own.")
    return record


def _lease(given: Mapping[str, Any] | None) -> Lease | None:
    """Read the lease."""
    return None if given is None else Lease(str(given["owner"]), str(given["token"]), moment_of(given["until"]))


def _rollout(given: Mapping[str, Any] | None) -> Rollout | None:
    """Read the rollout."""
    if given is None:
        return None
    known = {each.name for each in fields(Rollout)}
    if set(given) != known:
        raise ValueError(f"keys {', '.join(sorted(set(given) ^ known))}")
    if given["phase"] not in PHASES:
        raise ValueError(f"phase {given['phase']!r}")
    steps = [Step(_number(step["weight"]), float(step["bake"])) for step in given["steps"]]
    step = _number(given["step"])
    if not steps or not -1 <= step < len(steps):
        raise ValueError(f"step {step} of {len(steps)}")
    return Rollout(
        release=_text(given["release"]),
        old=_text(given["old"]),
        new=_text(given["new"]),
        phase=given["phase"],
        steps=steps,
        started=moment_of(given["started"]),
        since=moment_of(given["since"]),
        next_at=moment_of(given["next_at"]),
        step=step,
        passes=_number(given["passes"]),
        intent=_routes(given["intent"]),
        previous=_routes(given["previous"]),
        settled=_flag(given["settled"]),
        unverified_since=_moment(given["unverified_since"]),
        shifted_at=_moment(given["shifted_at"]),
        reason=str(given["reason"]),
    )


def _moment(given: str | None) -> datetime | None:
    """Read a time that may be missing."""
    return None if given is None else moment_of(given)


def _text(given: Any) -> str:
    """Take a word."""
    if not isinstance(given, str) or not given:
        raise ValueError(f"{given!r} is no word")
    return given


def _number(given: Any) -> int:
    """Take a whole number."""
    if not isinstance(given, int) or isinstance(given, bool):
        raise ValueError(f"{given!r} is no whole number")
    return given


def _flag(given: Any) -> bool:
    """Take true or false."""
    if not isinstance(given, bool):
        raise ValueError(f"{given!r} is neither true nor false")
    return given


def _routes(given: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Read the weights of routes."""
    return {route: {colour: _number(weight) for colour, weight in weights.items()} for route, weights in given.items()}
