# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask web servers at a steady rate while something changes, and say what a visitor would have noticed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import io
import json
import math
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any, Callable

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._expectation import Expectation
from ansible_collections.bitflow.lms.plugins.module_utils._http_probe import LONGEST_BODY, READ_SIZE, Probe, TooLongError, tls_context

HIGHEST_RATE = 50
LONGEST_WATCH = 7200
# What may wait for an answer at once: a process has 1024 descriptors by default.
MOST_WAITING = 800
FAILURES_SHOWN = 20
# A watcher that was itself held up goes on with what is due now: a burst would say more about the watcher than about the servers.
LATE = 1.0
# A server closes an idle connection after some seconds; one of these is not worth trying again.
IDLE_SECONDS = 4.0
LONGEST_HEAD = 65536
BODYLESS = frozenset({204, 304})


@dataclass(frozen=True)
class Target:
    """One address to ask for, where to connect, and which answers are good."""

    name: str
    url: str
    connect_to: str | None = None
    ca_path: str | None = None
    expect_status: tuple[int, ...] = (200,)

    @property
    def probe(self) -> Probe:
        """Return the request; an address that cannot be asked is refused."""
        return Probe(self.url, connect_to=self.connect_to, ca_path=self.ca_path, expectation=Expectation(status=self.expect_status))


@dataclass(frozen=True)
class Watch:
    """What is asked, how often, and for how long at most."""

    targets: tuple[Target, ...]
    rate: float = 10
    timeout: float = 10
    at_most: float = 900
    release_header: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be asked, or would be a load of its own."""
        if not self.targets:
            raise LmsError("urls is empty; name at least one address.")
        names = [target.name for target in self.targets]
        if len(set(names)) < len(names):
            raise LmsError(
                f"urls has {', '.join(sorted({name for name in names if names.count(name) > 1}))} twice; each needs its own name."
            )
        if not 0 < self.rate <= HIGHEST_RATE:
            raise LmsError(f"rate is {self.rate:g}; it must be above 0 and at most {HIGHEST_RATE} requests a second.")
        if not 0 < self.at_most <= LONGEST_WATCH:
            raise LmsError(f"at_most is {self.at_most:g}; it must be above 0 and at most {LONGEST_WATCH} seconds.")
        if not 0 < self.timeout <= MOST_WAITING / self.rate:
            raise LmsError(
                f"timeout is {self.timeout:g}; with rate {self.rate:g} it must be above 0 and at most {MOST_WAITING / self.rate:g}."
            )
        for target in self.targets:
            target.probe  # noqa: B018 - asks for it because it refuses what cannot be asked

    def contexts(self) -> dict[str, ssl.SSLContext | None]:
        """Return how each target's certificate is checked; authorities that cannot be read are refused."""
        return {
            target.name: tls_context(target.ca_path, validate_certs=True) if target.probe.parts.scheme == "https" else None
            for target in self.targets
        }

    def turn(self, number: int) -> tuple[Target, bool]:
        """Return which target the request with a number asks, and whether on a kept connection: half of each target's are."""
        return self.targets[number % len(self.targets)], (number // len(self.targets)) % 2 == 0


@dataclass(frozen=True)
class Answer:
    """One request: when it was made (seconds since 1970), what came back and after how long."""

    at: float
    name: str
    status: int | None
    ms: float
    good: bool
    kept: bool = False
    again: bool = False
    release: str = ""
    error: str = ""

    def line(self) -> str:
        """Return the line of the file."""
        return json.dumps(asdict(self), separators=(",", ":")) + "\n"


def read_answers(lines: Iterable[str]) -> list[Answer]:
    """Return the requests of a file in the order in which they were made; a line that was cut short is left out."""
    answers = []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            answers.append(Answer(**json.loads(line)))
    return sorted(answers, key=lambda answer: answer.at)


# Asking.


class NoAnswerError(OSError):
    """A kept connection was closed before anything of the answer came: the server had ended it already."""


@dataclass
class Line:
    """One open connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    used_at: float = 0.0
    used: bool = False

    def fit(self, now: float) -> bool:
        """Say whether another request may go over it."""
        return not self.reader.at_eof() and not self.writer.is_closing() and now - self.used_at < IDLE_SECONDS

    def close(self) -> None:
        """Give the connection up."""
        with contextlib.suppress(Exception):
            self.writer.transport.abort()


@dataclass
class Watcher:
    """Ask in an open loop: a request is made when it is due, whatever became of those before it."""

    watch: Watch
    contexts: dict[str, ssl.SSLContext | None]
    write: Callable[[str], Any]
    idle: dict[str, list[Line]] = field(default_factory=dict)

    async def run(self, stopped: Callable[[], bool]) -> None:
        """Ask until told to stop or until the time is over, and wait for the answers that are still due."""
        started, began_at = time.monotonic(), time.time()
        waiting: set[asyncio.Task[None]] = set()
        number = turn = 0
        while not stopped() and (now := time.monotonic() - started) < self.watch.at_most:
            due = number / self.watch.rate
            if now < due:
                # Short, so that a stop is noticed also when a request is due only every few seconds.
                await asyncio.sleep(min(due - now, 0.1))
                continue
            target, kept = self.watch.turn(turn)
            # The clock of the host may be set meanwhile; the distances between requests must not change with it.
            task = asyncio.ensure_future(self.ask(target, kept, began_at + now))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
            turn += 1
            number += 1
            if now - due > LATE:
                number = math.ceil(now * self.watch.rate)
        if waiting:
            await asyncio.wait(waiting, timeout=self.watch.timeout + 1)
        for lines in self.idle.values():
            for line in lines:
                line.close()

    async def ask(self, target: Target, kept: bool, at: float) -> None:
        """Make one request and write what became of it."""
        started = time.monotonic()
        status, release, error, again = None, "", "", False
        try:
            status, release, again = await asyncio.wait_for(self.exchange(target, kept), self.watch.timeout)
        except (asyncio.TimeoutError, socket.timeout):
            error = f"no complete answer within {self.watch.timeout:g} seconds"
        # Whatever it is: a request without a line would be a failure that nobody counts.
        except Exception as trouble:
            error = describe_trouble(trouble)
        good = status is not None and status in target.expect_status
        milliseconds = round((time.monotonic() - started) * 1000, 1)
        self.write(Answer(round(at, 3), target.name, status, milliseconds, good, kept, again, release, error).line())

    async def exchange(self, target: Target, kept: bool) -> tuple[int, str, bool]:
        """Send a request and read the answer: its status, the release that it names, and whether it was sent again."""
        line = self.take(target) if kept else None
        if line is not None:
            # A server may end an idle connection just when the next request comes. Browsers then ask again on a new one, and so is it here.
            with contextlib.suppress(NoAnswerError):
                return (*await self.talk(target, line, kept), False)
        return (*await self.talk(target, await self.connect(target), kept), line is not None)

    def take(self, target: Target) -> Line | None:
        """Return a kept connection that nobody uses."""
        lines = self.idle.setdefault(target.name, [])
        while lines:
            line = lines.pop()
            if line.fit(time.monotonic()):
                return line
            line.close()
        return None

    async def connect(self, target: Target) -> Line:
        """Open a connection."""
        probe, context = target.probe, self.contexts[target.name]
        host, port = probe.address
        server_name = probe.host if context is not None else None
        reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=server_name, limit=LONGEST_HEAD)
        return Line(reader, writer)

    async def talk(self, target: Target, line: Line, kept: bool) -> tuple[int, str]:
        """Make the exchange on a connection, and keep it where both sides want that."""
        keep = False
        try:
            line.writer.write(target.probe.request(kept_alive=kept))
            try:
                head = await line.reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError, BrokenPipeError) as error:
                if line.used and not getattr(error, "partial", b""):
                    raise NoAnswerError from error
                raise
            status, headers = parse_head(head)
            framed = await read_body(line.reader, status, headers)
            keep = kept and framed and headers.get("connection", "").lower() != "close"
            return status, headers.get((self.watch.release_header or "").lower(), "")[:100]
        finally:
            if keep:
                line.used, line.used_at = True, time.monotonic()
                self.idle.setdefault(target.name, []).append(line)
            else:
                line.close()


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Return the status and the headers, their names in lower case, of the first lines of an answer."""
    first, _end, rest = head.partition(b"\r\n")
    words = first.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise http.client.BadStatusLine(repr(first[:60]))
    return int(words[1]), {name.lower(): value for name, value in http.client.parse_headers(io.BytesIO(rest)).items()}


async def read_body(reader: asyncio.StreamReader, status: int, headers: dict[str, str]) -> bool:
    """Read the body away; say whether its end was known, so that another answer can follow."""
    if status in BODYLESS:
        return True
    if "chunked" in headers.get("transfer-encoding", "").lower():
        await read_chunks(reader)
        return True
    if "content-length" in headers:
        await skip(reader, int(headers["content-length"]))
        return True
    read = 0
    while piece := await reader.read(READ_SIZE):
        read += len(piece)
        refuse_long(read)
    return False


async def read_chunks(reader: asyncio.StreamReader) -> None:
    """Read a chunked body away."""
    read = 0
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        read += size
        refuse_long(read)
        await skip(reader, size + 2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass


async def skip(reader: asyncio.StreamReader, size: int) -> None:
    """Read a number of bytes away."""
    refuse_long(size)
    while size:
        piece = await reader.read(min(size, READ_SIZE))
        if not piece:
            raise EOFError
        size -= len(piece)


def refuse_long(size: int) -> None:
    """Refuse a body that is no health answer."""
    if size > LONGEST_BODY:
        raise TooLongError


def describe_trouble(error: Exception) -> str:
    """Return in a few words why there was no complete answer."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"no agreement on TLS: {(error.reason or 'unknown').replace('_', ' ').lower()}"
    if isinstance(error, socket.gaierror):
        return "the name cannot be resolved"
    if isinstance(error, TooLongError):
        return "the answer is too long"
    if isinstance(error, (EOFError, ConnectionResetError, BrokenPipeError)):
        return "connection closed before the answer was complete"
    if isinstance(error, OSError):
        if error.errno == errno.ECONNREFUSED or "Connect call failed" in str(error):
            return "connection refused"
        return (error.strerror or str(error) or "no connection").lower()
    return "the answer is not HTTP"


# Judging.


def format_moment(at: float) -> str:
    """Return a time in UTC, to the millisecond."""
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def percentile(ordered: list[float], share: float) -> int:
    """Return the time within which a share of the requests was answered (nearest rank)."""
    return round(ordered[math.ceil(share * len(ordered)) - 1]) if ordered else 0


def outages(answers: list[Answer], until: float) -> list[tuple[float, float]]:
    """Return the stretches in which one target did not serve: from a request that failed to the next one with a good answer."""
    found = []
    since: float | None = None
    for answer in answers:
        if answer.good and since is not None:
            found.append((since, answer.at))
            since = None
        elif not answer.good and since is None:
            since = answer.at
    if since is not None:
        found.append((since, max(until, since)))
    return found


def total_length(stretches: list[tuple[float, float]]) -> float:
    """Return the time that stretches cover together."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(stretches):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def figures(answers: list[Answer]) -> dict[str, Any]:
    """Return how many requests there were and how long the good answers took."""
    times = sorted(answer.ms for answer in answers if answer.good)
    return {
        "requests": len(answers),
        "failed_requests": sum(not answer.good for answer in answers),
        "p50_ms": percentile(times, 0.5),
        "p99_ms": percentile(times, 0.99),
        "max_ms": round(times[-1]) if times else 0,
    }


def gaps(stretches: list[tuple[float, float]]) -> dict[str, int]:
    """Return the longest stretch, and how long all together were."""
    return {
        "longest_gap_ms": round(max((end - start for start, end in stretches), default=0.0) * 1000),
        "downtime_ms": round(total_length(stretches) * 1000),
    }


def versions_of(answers: list[Answer]) -> list[dict[str, Any]]:
    """Return each release that answered, with its first and its last answer."""
    seen: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.release:
            seen.setdefault(answer.release, []).append(answer)
    return [
        {"release": release, "first_at": format_moment(some[0].at), "last_at": format_moment(some[-1].at), "requests": len(some)}
        for release, some in seen.items()
    ]


def summarise(answers: list[Answer], names: Iterable[str], until: float | None = None) -> dict[str, Any]:
    """Return what a visitor noticed: figures, gaps and the first failures, together and for each target."""
    last = answers[-1].at if answers else 0.0
    end = max(last, until or 0.0)
    groups = {name: [answer for answer in answers if answer.name == name] for name in names}
    stretches = {name: outages(group, end) for name, group in groups.items()}
    return {
        **figures(answers),
        **gaps([stretch for some in stretches.values() for stretch in some]),
        "seconds": round(end - answers[0].at, 1) if answers else 0.0,
        "started_at": format_moment(answers[0].at) if answers else "",
        "ended_at": format_moment(end) if answers else "",
        "sent_again": sum(answer.again for answer in answers),
        "failures": [
            {"at": format_moment(answer.at), "name": answer.name, "status": answer.status, "error": answer.error}
            for answer in [answer for answer in answers if not answer.good][:FAILURES_SHOWN]
        ],
        "versions": versions_of(answers),
        "urls": [
            {"name": name, **figures(group), **gaps(stretches[name]), "good_at_start": bool(group) and group[0].good}
            for name, group in groups.items()
        ],
    }
