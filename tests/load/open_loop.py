# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Send requests at a fixed rate, whatever the answers do, and account for every one of them.

A closed-loop tool waits for an answer before it asks again: while a server stalls it hardly asks, and counts a long outage as a few
slow requests. Here the n-th request is due at its own time, and its latency counts from then. Half of the requests use a new
connection, half a kept one. What an answer says about the release that made it (its marks) is kept: an answer that two releases had a
part in, and one without marks where there should be some, count as failures.

It runs until its time is over or it gets SIGTERM, waits for the answers that are due, and prints its figures as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import ssl
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TIMEOUT = 20.0
KEPT_CONNECTIONS = 64
HIGHEST_RATE = 500
BODYLESS = (204, 304)
# What a client may send again by itself when its kept connection turns out to be closed (RFC 9110, 9.2.2).
REPEATABLE = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")


@dataclass(frozen=True)
class Request:
    """One kind of request, and how often it comes among the others."""

    host: str
    path: str
    method: str = "GET"
    body: str = ""
    weight: int = 1
    status: tuple[int, ...] = (200,)
    marks: tuple[str, ...] = ()
    # Seconds that the server is asked to take, which are not its latency.
    takes: float = 0.0

    def as_bytes(self, keep: bool) -> bytes:
        """Return the request as it is sent."""
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: {self.host}", "Accept: application/json"]
        lines.append(f"Connection: {'keep-alive' if keep else 'close'}")
        if self.body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(self.body.encode())}"]
        return ("\r\n".join(lines) + "\r\n\r\n" + self.body).encode()


@dataclass
class Answer:
    """What came of one request."""

    request: Request
    kept: bool
    # When it was due, as the clock on the wall says, and how much later it was sent: that is the generator's fault.
    due: float
    late: float = 0.0
    latency: float = 0.0
    status: int = 0
    marks: tuple[str, ...] = ()
    failure: str = ""
    retried: bool = False

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "due": round(self.due, 4),
            "request": f"{self.request.method} {self.request.path}",
            "kept": self.kept,
            "latency": round(self.latency, 4),
            "status": self.status,
            "marks": sorted(set(self.marks)),
            "failure": self.failure,
        }


@dataclass
class Connection:
    """A connection, and whether the server may keep it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def closed(self) -> bool:
        """Tell whether the other side is known to have closed it."""
        return self.reader.at_eof() or self.reader.exception() is not None or self.writer.is_closing()


@dataclass
class Target:
    """Where the requests go: an address, with TLS or without it, and the connections that are kept."""

    address: str
    port: int
    tls: ssl.SSLContext | None = None
    # By the host that they were opened for, as browsers keep them.
    idle: dict[str, deque[Connection]] = field(default_factory=lambda: defaultdict(deque))

    async def open(self, host: str) -> Connection:
        """Open a connection."""
        name = host.split(":")[0] if self.tls else None
        return Connection(*await asyncio.open_connection(self.address, self.port, ssl=self.tls, server_hostname=name))

    def take(self, host: str) -> Connection | None:
        """Return the kept connection that was used longest ago and is not known to be closed."""
        while self.idle[host]:
            connection = self.idle[host].popleft()
            if not connection.closed:
                return connection
            connection.writer.close()
        return None

    def give_back(self, host: str, connection: Connection) -> None:
        """Keep a connection for a later request."""
        if len(self.idle[host]) < KEPT_CONNECTIONS:
            self.idle[host].append(connection)
        else:
            connection.writer.close()

    def close(self) -> None:
        """Close the connections that are kept."""
        for connections in self.idle.values():
            while connections:
                connections.popleft().writer.close()


async def read_answer(reader: asyncio.StreamReader, answer: Answer) -> bool:
    """Read one answer to its end; tell whether the connection can be used again."""
    status_line = await reader.readline()
    if not status_line:
        raise ConnectionResetError("closed before an answer")
    answer.status = int(status_line.split()[1])
    headers: dict[str, str] = {}
    while (line := (await reader.readline()).strip()) != b"":
        name, _colon, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    answer.marks = tuple(headers.get(name.lower(), "") for name in answer.request.marks)
    if answer.request.method == "HEAD" or answer.status in BODYLESS:
        pass
    elif headers.get("transfer-encoding") == "chunked":
        while (size := int(await reader.readline(), 16)) > 0:
            await reader.readexactly(size + 2)
        await reader.readline()
    elif "content-length" in headers:
        await reader.readexactly(int(headers["content-length"]))
    else:
        await reader.read()
        return False
    return headers.get("connection", "keep-alive").lower() != "close"


async def exchange(target: Target, connection: Connection, answer: Answer) -> None:
    """Send one request over a connection and read its answer."""
    reusable = False
    try:
        connection.writer.write(answer.request.as_bytes(answer.kept))
        await connection.writer.drain()
        reusable = await read_answer(connection.reader, answer)
    finally:
        if answer.kept and reusable:
            target.give_back(answer.request.host, connection)
        else:
            connection.writer.close()


async def exchange_as_a_client_does(target: Target, answer: Answer) -> None:
    """Use a kept connection if the request may; when the server had just closed it, ask again over a new one where that is harmless."""
    kept = target.take(answer.request.host) if answer.kept else None
    if kept is None:
        return await exchange(target, await target.open(answer.request.host), answer)
    try:
        return await exchange(target, kept, answer)
    except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
        if answer.status or answer.request.method not in REPEATABLE:
            raise
    answer.retried = True
    return await exchange(target, await target.open(answer.request.host), answer)


def verdict(answer: Answer) -> str:
    """Return what is wrong with a whole answer."""
    if answer.status not in answer.request.status:
        return f"status {answer.status}"
    if answer.request.marks and len(set(answer.marks)) > 1:
        return "mixed releases: " + ", ".join(mark or "none" for mark in answer.marks)
    if answer.request.marks and not answer.marks[0]:
        return "no release named"
    return ""


async def ask(target: Target, request: Request, kept: bool, due: float, timeout: float = TIMEOUT) -> Answer:
    """Ask once and return what came of it; due is in the time of the monotonic clock."""
    late = time.monotonic() - due
    answer = Answer(request, kept, due=time.time() - late, late=late)
    try:
        async with asyncio.timeout(timeout):
            await exchange_as_a_client_does(target, answer)
        answer.failure = verdict(answer)
    except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError, IndexError) as error:
        answer.failure = f"{type(error).__name__}: {error}".rstrip(": ")
    answer.latency = max(0.0, time.monotonic() - due - request.takes)
    return answer


def spread(requests: Sequence[Request]) -> list[Request]:
    """Return each kind as often as its weight says, none in a bunch."""
    places = [((turn + 0.5) / request.weight, number) for number, request in enumerate(requests) for turn in range(request.weight)]
    return [requests[number] for _place, number in sorted(places)]


async def load(
    target: Target,
    requests: Sequence[Request],
    rate: float,
    seconds: float,
    stop: asyncio.Event | None = None,
    tell: Callable[[Answer], object] = lambda _answer: None,
) -> list[Answer]:
    """Send requests at the rate until it is stopped or the time is over, and wait for all answers."""
    stop = stop or asyncio.Event()
    mix = spread(requests)
    tasks: list[asyncio.Task[Answer]] = []
    begin = time.monotonic()
    while (number := len(tasks)) < rate * seconds:
        due = begin + number / rate
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), due - time.monotonic())
        if stop.is_set():
            break
        # Two of a kind follow each other, one over a kept connection and one over a new one.
        tasks.append(asyncio.create_task(ask(target, mix[number // 2 % len(mix)], number % 2 == 0, due)))
        tasks[-1].add_done_callback(lambda task: tell(task.result()))
    answers = list(await asyncio.gather(*tasks))
    target.close()
    return answers


def percentile(times: Sequence[float], share: float) -> float:
    """Return the time, in milliseconds, that this share of all does not exceed."""
    ordered = sorted(times) or [0.0]
    return round(1000 * ordered[min(len(ordered) - 1, int(len(ordered) * share))], 1)


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the figures of a run."""
    failures = [answer for answer in answers if answer.failure]
    latencies = [answer.latency for answer in answers]
    return {
        "sent": len(answers),
        "failed": len(failures),
        "mixed": sum(answer.failure.startswith("mixed") for answer in failures),
        "retried": sum(answer.retried for answer in answers),
        "reasons": dict(Counter(f"{answer.request.method} {answer.request.path}: {answer.failure}" for answer in failures).most_common(20)),
        "releases": dict(Counter(answer.marks[0] for answer in answers if answer.marks and not answer.failure)),
        "p50_ms": percentile(latencies, 0.50),
        "p99_ms": percentile(latencies, 0.99),
        "max_ms": percentile(latencies, 1.0),
        # How late the generator itself was: where this is no small part of the latency, the machine was too busy to tell.
        "late_p99_ms": percentile([answer.late for answer in answers], 0.99),
    }


def requests_from(entries: Sequence[Mapping[str, Any]]) -> list[Request]:
    """Return the kinds of requests that a file describes."""
    return [Request(**{**entry, "status": tuple(entry.get("status", [200])), "marks": tuple(entry.get("marks", []))}) for entry in entries]


def main() -> None:
    """Run a load as the arguments say and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, help="ADDRESS:PORT that every request goes to")
    parser.add_argument("--authority", help="certificate authority of the server; without it there is no TLS")
    parser.add_argument("--requests", required=True, type=Path, help="JSON list of host, path, method, body, weight, status, marks, takes")
    parser.add_argument("--rate", type=float, default=150, help=f"requests a second (default 150, at most {HIGHEST_RATE})")
    parser.add_argument("--seconds", type=float, default=60, help="how long at most (default 60)")
    parser.add_argument("--records", type=Path, help="file to which each answer is written, as a line of JSON, when it is there")
    arguments = parser.parse_args()
    address, _colon, port = arguments.target.rpartition(":")
    tls = ssl.create_default_context(cafile=arguments.authority) if arguments.authority else None
    kinds = requests_from(json.loads(arguments.requests.read_text()))

    async def run(tell: Callable[[Answer], object]) -> list[Answer]:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        return await load(Target(address, int(port), tls), kinds, min(arguments.rate, HIGHEST_RATE), arguments.seconds, stop, tell)

    if arguments.records:
        with arguments.records.open("w", buffering=1, encoding="utf-8") as file:
            answers = asyncio.run(run(lambda answer: file.write(json.dumps(answer.record()) + "\n")))
    else:
        answers = asyncio.run(run(lambda _answer: None))
    sys.stdout.write(json.dumps(summary(answers), indent=2) + "\n")


if __name__ == "__main__":
    main()
