# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a watch asks real servers, what it counts as a failure, and how it reckons the time without service."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._http_watch import (
    Answer,
    Target,
    Watch,
    Watcher,
    describe_trouble,
    outages,
    parse_head,
    percentile,
    read_answers,
    summarise,
    total_length,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Release: r1\r\n\r\nok"
DOWN = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\ndown"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;a=b\r\nabcd\r\n2\r\nef\r\n0\r\nTrailer: x\r\n\r\n"
UNTIL_THE_END = b"HTTP/1.1 200 OK\r\n\r\nuntil the end"


class Server:
    """A server that answers each request of a connection with what a function says; None closes the connection."""

    def __init__(self, answer: Callable[[int], bytes | None]) -> None:
        self.answer = answer
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.requests: list[tuple[int, bytes]] = []
        self.connections = 0
        self.last_words = UNTIL_THE_END
        threading.Thread(target=self.accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.listener.getsockname()[1]}"

    def accept(self) -> None:
        while True:
            try:
                connection, _peer = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self.serve, args=(connection, self.connections), daemon=True).start()

    def serve(self, connection: socket.socket, number: int) -> None:
        received = b""
        while True:
            try:
                piece = connection.recv(65536)
            except OSError:
                return
            if not piece:
                return
            received += piece
            while b"\r\n\r\n" in received:
                request, _end, received = received.partition(b"\r\n\r\n")
                self.requests.append((number, request))
                answer = self.answer(len(self.requests))
                if answer is not None:
                    connection.sendall(answer)
                if answer is None or answer == self.last_words:
                    connection.shutdown(socket.SHUT_RDWR)
                    connection.close()
                    return


@contextmanager
def server(answer: Callable[[int], bytes | None] | bytes = OK) -> Iterator[Server]:
    running = Server(answer if callable(answer) else lambda _number: answer)
    try:
        yield running
    finally:
        running.listener.shutdown(socket.SHUT_RDWR)
        running.listener.close()


def watch_on(*addresses: str, **options: Any) -> Watch:
    targets = tuple(Target(f"t{number}", f"http://www.example.com/{number}", address) for number, address in enumerate(addresses))
    return Watch(targets, **{"rate": 50, "timeout": 2, "at_most": 5, **options})


def run(watch: Watch, requests: int) -> list[Answer]:
    """Ask until a number of requests were made, and return their answers."""
    lines: list[str] = []
    asyncio.run(Watcher(watch, watch.contexts(), lines.append).run(lambda: len(lines) >= requests))
    # In the order in which they were asked: an answer may overtake another one.
    return sorted(read_answers(lines), key=lambda answer: answer.at)


def outcome(answer: bytes) -> tuple[int | None, bool, str]:
    with server(answer) as running:
        first = run(watch_on(running.address, release_header="x-release"), 1)[0]
    return first.status, first.good, first.release


def test_half_of_the_requests_go_over_kept_connections() -> None:
    with server() as running:
        # Slowly, so that the answer is there before the next request, also on a machine that is busy.
        answers = run(watch_on(running.address, rate=5), 12)

    assert all(answer.good for answer in answers)
    assert {answer.kept for answer in answers[::2]} == {True}
    assert {answer.kept for answer in answers[1::2]} == {False}
    kept = {number for number, request in running.requests if b"Connection: keep-alive" in request}
    new = [number for number, request in running.requests if b"Connection: close" in request]
    assert len(kept) == 1
    assert len(new) == len(set(new)) >= 6


def test_targets_take_turns_and_each_is_asked_both_ways() -> None:
    watch = watch_on("127.0.0.1:1", "127.0.0.1:2")

    assert [(target.name, kept) for target, kept in map(watch.turn, range(5))] == [
        ("t0", True),
        ("t1", True),
        ("t0", False),
        ("t1", False),
        ("t0", True),
    ]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (OK, (200, True, "r1")),
        (DOWN, (503, False, "")),
        (CHUNKED, (200, True, "")),
        (UNTIL_THE_END, (200, True, "")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, False, "")),
    ],
)
def test_answers_are_read_to_their_end(answer: bytes, expected: tuple[int, bool, str]) -> None:
    assert outcome(answer) == expected


def test_kept_connection_that_the_server_ended_is_no_failure() -> None:
    with server(lambda number: OK if number != 3 else None) as running:
        answers = run(watch_on(running.address, rate=5), 6)

    # The third request is the second one on the kept connection.
    assert [answer.good for answer in answers] == [True] * len(answers)
    assert [answer.again for answer in answers[:4]] == [False, False, True, False]


@pytest.mark.parametrize("partial", [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", b"HTTP/1.1 200 OK\r\nContent-Le"])
def test_answer_that_ends_early_is_a_failure(partial: bytes) -> None:
    with server(partial) as running:
        running.last_words = partial
        answers = run(watch_on(running.address), 2)

    assert {(seen.status, seen.good, seen.error) for seen in answers} == {(None, False, "connection closed before the answer was complete")}


def test_server_that_stalls_does_not_slow_the_questions_down() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        watch = watch_on(f"127.0.0.1:{listener.getsockname()[1]}", timeout=0.5, at_most=0.8)

        answers = run(watch, 1000)

    assert len(answers) >= 30
    assert {answer.error for answer in answers} == {"no complete answer within 0.5 seconds"}
    assert answers[-1].at - answers[0].at < 0.9


def test_nothing_that_listens_is_a_failure_with_its_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

    assert {answer.error for answer in run(watch_on(address), 3)} == {"connection refused"}


def test_certificate_that_is_not_trusted_is_a_failure() -> None:
    error = ssl.SSLCertVerificationError(1, "x")
    error.verify_message = "self-signed certificate"

    assert describe_trouble(error) == "certificate not trusted: self-signed certificate"


def test_answer_that_is_not_http_is_a_failure() -> None:
    assert outcome(b"+PONG\r\n\r\n") == (None, False, "")
    assert describe_trouble(socket.gaierror(-2, "Name or service not known")) == "the name cannot be resolved"


def test_watch_ends_by_itself() -> None:
    with server() as running:
        started = time.monotonic()
        answers = run(watch_on(running.address, at_most=0.4), 10_000)

    assert 10 <= len(answers) <= 21
    assert time.monotonic() - started < 2


def test_head_gives_status_and_headers() -> None:
    assert parse_head(b"HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\n") == (200, {"x-a": "1"})


GOOD = {"good": True, "status": 200, "ms": 10.0}
BAD = {"good": False, "status": 502, "ms": 1.0}


def answers_of(name: str, *states: bool, start: float = 1000.0, step: float = 0.1, release: str = "") -> list[Answer]:
    return [Answer(at=start + number * step, name=name, release=release, **(GOOD if state else BAD)) for number, state in enumerate(states)]


def milliseconds(stretches: list[tuple[float, float]]) -> list[tuple[int, int]]:
    return [(round((start - 1000) * 1000), round((end - 1000) * 1000)) for start, end in stretches]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ((True, True), []),
        ((True, False, True), [(100, 200)]),
        ((True, False, False, True, False, True), [(100, 300), (400, 500)]),
        ((True, False), [(100, 1000)]),
        ((False, False), [(0, 1000)]),
        ((), []),
    ],
)
def test_outage_goes_from_a_failure_to_the_next_good_answer(states: tuple[bool, ...], expected: list[tuple[int, int]]) -> None:
    assert milliseconds(outages(answers_of("api", *states), 1001.0)) == expected


def test_stretches_that_overlap_count_once() -> None:
    assert total_length([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100)])
def test_percentile_is_a_time_that_was_seen(share: float, expected: int) -> None:
    assert percentile([float(number) for number in range(1, 101)], share) == expected
    assert percentile([], share) == 0


def test_summary_says_what_visitors_noticed() -> None:
    api = answers_of("api", True, True, False, True, release="r1")
    student = [*answers_of("student", True, True), *answers_of("student", True, start=1000.2, release="r2")]

    assert summarise(sorted([*api, *student], key=lambda answer: answer.at), ["api", "student"], until=1000.5) == {
        "requests": 7,
        "failed_requests": 1,
        "p50_ms": 10,
        "p99_ms": 10,
        "max_ms": 10,
        "longest_gap_ms": 100,
        "downtime_ms": 100,
        "seconds": 0.5,
        "started_at": "1970-01-01T00:16:40.000Z",
        "ended_at": "1970-01-01T00:16:40.500Z",
        "sent_again": 0,
        "failures": [{"at": "1970-01-01T00:16:40.200Z", "name": "api", "status": 502, "error": ""}],
        "versions": [
            {"release": "r1", "first_at": "1970-01-01T00:16:40.000Z", "last_at": "1970-01-01T00:16:40.300Z", "requests": 4},
            {"release": "r2", "first_at": "1970-01-01T00:16:40.200Z", "last_at": "1970-01-01T00:16:40.200Z", "requests": 1},
        ],
        "urls": [
            {
                "name": "api",
                "requests": 4,
                "failed_requests": 1,
                "p50_ms": 10,
                "p99_ms": 10,
                "max_ms": 10,
                "longest_gap_ms": 100,
                "downtime_ms": 100,
                "good_at_start": True,
            },
            {
                "name": "student",
                "requests": 3,
                "failed_requests": 0,
                "p50_ms": 10,
                "p99_ms": 10,
                "max_ms": 10,
                "longest_gap_ms": 0,
                "downtime_ms": 0,
                "good_at_start": True,
            },
        ],
    }


def test_line_that_was_cut_short_is_left_out() -> None:
    answer = answers_of("api", True)[0]

    assert read_answers([answer.line(), answer.line()[:-9], "[]", ""]) == [answer]


def test_first_failures_are_listed_and_all_are_counted() -> None:
    result = summarise(answers_of("api", *[False] * 30), ["api"])

    assert (result["failed_requests"], len(result["failures"])) == (30, 20)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"targets": ()}, "urls is empty; name at least one address."),
        ({"targets": (Target("a", "http://a/"),) * 2}, "urls has a twice; each needs its own name."),
        ({"rate": 51}, "rate is 51; it must be above 0 and at most 50 requests a second."),
        ({"at_most": 0}, "at_most is 0; it must be above 0 and at most 7200 seconds."),
        ({"rate": 50, "timeout": 17}, "timeout is 17; with rate 50 it must be above 0 and at most 16."),
        ({"targets": (Target("a", "ftp://a/"),)}, "url is ftp://a/; it must be http://host/path or https://host/path"),
    ],
)
def test_watch_that_cannot_be_kept_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LmsError) as caught:
        Watch(**{"targets": (Target("a", "http://a/"),), **options})

    assert caught.value.message.startswith(sentence)
