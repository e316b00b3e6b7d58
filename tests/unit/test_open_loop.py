"""The generator of requests in tests/load, against a small server that does what it is told."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "load"))

from open_loop import Answer, Request, Target, ask, load, requests_from, spread, summary

MARKS = ("X-Release-Entry", "X-Release-End")


class Server:
    """Answer as the path says; remember what was asked, and over which connection."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[str] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        count = 0
        try:
            while line := await reader.readline():
                length = 0
                while (header := await reader.readline()) != b"\r\n":
                    if header.lower().startswith(b"content-length:"):
                        length = int(header.split(b":")[1])
                await reader.readexactly(length)
                method, path, _version = line.decode().split()
                self.asked.append(f"{method} {path}")
                count += 1
                if not await self.answer(writer, path, count):
                    break
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def answer(self, writer: asyncio.StreamWriter, path: str, count: int) -> bool:
        """Write the answer; tell whether the connection stays."""
        if path == "/reset" or (path == "/once" and count > 1):
            writer.transport.abort()
            return False
        if path == "/half":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            return False
        if path == "/chunked":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
            return True
        if path == "/to-the-end":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nwithout a length")
            return False
        if path.startswith("/wait/"):
            await asyncio.sleep(float(path.rpartition("/")[2]))
        status = {"/down": "502 Bad Gateway", "/enrol": "201 Created"}.get(path, "200 OK")
        end = {"/mixed": "v2", "/half-marked": ""}.get(path, "v1")
        marks = "" if path == "/unmarked" else f"X-Release-Entry: v1\r\nx-release-end: {end}\r\n"
        writer.write(f"HTTP/1.1 {status}\r\n{marks}Content-Length: 2\r\n\r\nok".encode())
        return path != "/close-later"


def with_server(act: Callable[[Server, Target], Awaitable[object]]) -> object:
    """Run an act against a server of its own."""

    async def run() -> object:
        server = Server()
        async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listener:
            server.port = listener.sockets[0].getsockname()[1]
            target = Target("127.0.0.1", server.port)
            try:
                return await act(server, target)
            finally:
                target.close()

    return asyncio.run(run())


def ask_for(*paths: str, method: str = "GET", kept: bool = True, **options: object) -> tuple[list[Answer], Server]:
    """Ask for one path after the other and return the answers."""

    async def act(server: Server, target: Target) -> tuple[list[Answer], Server]:
        answers = []
        for path in paths:
            answers.append(
                await ask(target, Request("localhost", path, method, **options), kept, asyncio.get_running_loop().time(), timeout=0.5)
            )
            # So that the server's end of a connection is seen.
            await asyncio.sleep(0.02)
        return answers, server

    return with_server(act)


@pytest.mark.parametrize(
    ("path", "failure"),
    [
        ("/", ""),
        ("/chunked", ""),
        ("/to-the-end", ""),
        ("/down", "status 502"),
        ("/enrol", "status 201"),
        ("/reset", "ConnectionResetError: "),
        ("/half", "IncompleteReadError: "),
        ("/wait/0.8", "TimeoutError"),
    ],
)
@pytest.mark.parametrize("kept", [True, False])
def test_every_way_to_get_no_good_answer_is_a_failure(path, failure, kept):
    (answer,), _server = ask_for(path, kept=kept)

    assert (answer.failure.startswith(failure), bool(answer.failure)) == (True, bool(failure)), answer


def test_a_server_that_is_not_there_is_a_failure():
    async def act(server, target):
        return await ask(Target("127.0.0.1", 1), Request("localhost", "/"), False, asyncio.get_running_loop().time())

    assert with_server(act).failure.startswith("ConnectionRefusedError")


@pytest.mark.parametrize(
    ("path", "failure"),
    [
        ("/", ""),
        ("/mixed", "mixed releases: v1, v2"),
        ("/half-marked", "mixed releases: v1, none"),
        ("/unmarked", "no release named"),
    ],
)
def test_an_answer_of_two_releases_is_a_failure(path, failure):
    (answer,), _server = ask_for(path, marks=MARKS)

    assert answer.failure == failure


def test_a_kept_connection_is_used_again_and_a_new_one_is_not():
    assert ask_for("/", "/chunked", "/")[1].connections == 1
    assert ask_for("/", "/", "/", kept=False)[1].connections == 3


def test_a_connection_that_was_seen_to_close_is_not_used_again():
    answers, server = ask_for("/close-later", "/")

    assert [(answer.failure, answer.retried) for answer in answers] == [("", False), ("", False)]
    assert server.connections == 2


def test_a_stale_connection_is_retried_and_counted_apart():
    answers, server = ask_for("/", "/once")

    assert [(answer.failure, answer.retried) for answer in answers] == [("", False), ("", True)]
    assert summary(answers)["retried"] == 1
    assert server.asked == ["GET /", "GET /once", "GET /once"]


def test_a_post_is_never_sent_twice():
    answers, server = ask_for("/", "/once", method="POST", body="{}")

    assert [bool(answer.failure) for answer in answers] == [False, True]
    assert server.asked == ["POST /", "POST /once"]


def test_the_rate_holds_while_the_server_stalls_and_the_stall_is_latency():
    requests = [Request("localhost", "/wait/0.3", marks=MARKS)]

    async def act(server, target):
        return await load(target, requests, rate=100, seconds=0.5)

    answers = with_server(act)
    starts = [answer.due for answer in answers]

    assert len(answers) == 50
    assert 0.45 < max(starts) - min(starts) < 0.55
    assert 290 < summary(answers)["p50_ms"] < 450


def test_what_the_server_was_asked_to_take_is_no_latency():
    (answer,), _server = ask_for("/wait/0.2", takes=0.2)

    assert answer.latency < 0.1


def test_a_request_that_was_sent_late_is_as_late_as_it_was_due():
    async def act(server, target):
        return await ask(target, Request("localhost", "/"), False, asyncio.get_running_loop().time() - 1)

    answer = with_server(act)

    assert 1 < answer.late < 1.1 < answer.late + answer.latency
    assert answer.latency > 1


def test_a_load_is_half_kept_and_half_new_and_mixed_as_the_weights_say():
    kinds = requests_from(
        [
            {"host": "localhost", "path": "/", "weight": 17},
            {"host": "localhost", "path": "/enrol", "method": "POST", "body": "{}", "weight": 2, "status": [200, 201]},
            {"host": "localhost", "path": "/wait/0.05", "weight": 1, "takes": 0.05},
        ]
    )

    async def act(server, target):
        return await load(target, kinds, rate=200, seconds=1), server

    answers, server = with_server(act)

    assert summary(answers)["reasons"] == {}
    assert [sum(answer.kept == kept for answer in answers) for kept in (True, False)] == [100, 100]
    assert [server.asked.count(kind) for kind in ("GET /", "POST /enrol", "GET /wait/0.05")] == [170, 20, 10]
    assert server.connections < 150


def test_requests_of_one_kind_do_not_come_in_a_bunch():
    paths = [request.path for request in spread([Request("localhost", "/", weight=8), Request("localhost", "/slow", weight=2)])]

    assert [number for number, path in enumerate(paths) if path == "/slow"] == [2, 7]


def test_a_load_that_is_stopped_waits_for_the_answers():
    async def act(server, target):
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.2, stop.set)
        told = []
        return await load(target, [Request("localhost", "/wait/0.2")], 50, 60, stop, told.append), told

    answers, told = with_server(act)

    assert 8 <= len(answers) <= 12
    assert [answer.failure for answer in answers] == [""] * len(answers)
    assert len(told) == len(answers)


def test_the_summary_counts_each_kind_of_failure():
    page = Request("localhost", "/", marks=MARKS)
    answers = [
        Answer(page, True, due=0.0, latency=0.010, status=200, marks=("v1", "v1")),
        Answer(page, False, due=0.1, latency=0.020, status=200, marks=("v2", "v2"), late=0.004),
        Answer(page, True, due=0.2, latency=0.030, status=200, marks=("v1", "v2"), failure="mixed releases: v1, v2"),
        Answer(page, False, due=0.3, latency=0.040, status=502, failure="status 502"),
    ]

    assert summary(answers) == {
        "sent": 4,
        "failed": 2,
        "mixed": 1,
        "retried": 0,
        "reasons": {"GET /: mixed releases: v1, v2": 1, "GET /: status 502": 1},
        "releases": {"v1": 1, "v2": 1},
        "p50_ms": 30.0,
        "p99_ms": 40.0,
        "max_ms": 40.0,
        "late_p99_ms": 4.0,
    }


def test_a_record_is_plain_data():
    answer = Answer(Request("localhost", "/", marks=MARKS), True, due=1.00001, latency=0.5, status=200, marks=("v1", "v1"))

    assert json.loads(json.dumps(answer.record())) == {
        "due": 1.0,
        "request": "GET /",
        "kept": True,
        "latency": 0.5,
        "status": 200,
        "marks": ["v1"],
        "failure": "",
    }
