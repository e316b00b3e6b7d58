# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The FastCGI client: records as FastCGI 1.0 writes them, and exchanges over real sockets."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._fastcgi import (
    END_REQUEST,
    PARAMS,
    STDERR,
    STDIN,
    STDOUT,
    Answer,
    Decoder,
    FastcgiError,
    Record,
    Response,
    call,
    collect,
    encode_params,
    encode_record,
    encode_request,
    encode_stream,
    parse_response,
    script_params,
)

END = struct.pack("!IB3x", 0, 0)
GOOD = b"Content-Type: text/plain\r\n\r\nok"


def records(data: bytes) -> list[Record]:
    return list(Decoder().feed(data))


def test_request_is_what_the_specification_says() -> None:
    assert encode_request({"A": "1"}) == (
        b"\x01\x01\x00\x01\x00\x08\x00\x00"
        b"\x00\x01\x00\x00\x00\x00\x00\x00"  # begin: responder, close afterwards
        b"\x01\x04\x00\x01\x00\x04\x04\x00"
        b"\x01\x01A1\x00\x00\x00\x00"  # params, padded to eight bytes
        b"\x01\x04\x00\x01\x00\x00\x00\x00"  # end of params
        b"\x01\x05\x00\x01\x00\x00\x00\x00"  # end of stdin
    )


@pytest.mark.parametrize(
    ("length", "encoded"),
    [(0, b"\x00"), (127, b"\x7f"), (128, b"\x80\x00\x00\x80"), (70000, b"\x80\x01\x11\x70")],
)
def test_lengths_take_one_byte_or_four(length: int, encoded: bytes) -> None:
    assert encode_params({"A": "x" * length}) == b"\x01" + encoded + b"A" + b"x" * length


@pytest.mark.parametrize("kind", [PARAMS, STDIN])
def test_large_streams_are_split(kind: int) -> None:
    content = bytes(range(256)) * 600

    found = records(encode_stream(kind, content))

    assert [len(record.content) for record in found] == [65535, 65535, 22530, 0]
    assert b"".join(record.content for record in found) == content


def test_records_are_found_in_any_pieces() -> None:
    data = encode_record(STDOUT, b"hello") + encode_record(STDERR, b"x" * 300) + encode_record(END_REQUEST, END)
    decoder = Decoder()

    found = [record for position in range(len(data)) for record in decoder.feed(data[position : position + 1])]

    assert found == [Record(STDOUT, 1, b"hello"), Record(STDERR, 1, b"x" * 300), Record(END_REQUEST, 1, END)]


def test_foreign_protocol_is_refused() -> None:
    with pytest.raises(FastcgiError, match=r"not FastCGI"):
        records(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_records_of_other_requests_and_unknown_kinds_are_passed_over() -> None:
    answer = Answer()

    for record in (Record(STDOUT, 2, b"not ours"), Record(11, 1, b"?"), Record(STDOUT, 1, b"ours")):
        collect(answer, record)

    assert answer == Answer(stdout=b"ours")


@pytest.mark.parametrize(("status", "reason"), [(1, "second request"), (2, "overloaded"), (3, "responder role"), (9, "protocol status 9")])
def test_refusal_of_the_responder_is_an_error(status: int, reason: str) -> None:
    with pytest.raises(FastcgiError, match=reason):
        collect(Answer(), Record(END_REQUEST, 1, struct.pack("!IB3x", 0, status)))


@pytest.mark.parametrize(
    ("stdout", "response"),
    [
        (GOOD, Response(200, {"content-type": "text/plain"}, b"ok")),
        (b"Status: 503 Service Unavailable\r\nX-A: 1\r\nX-a: 2\r\n\r\n", Response(503, {"x-a": "1, 2"}, b"")),
        (b"Status: 404\nA: b\n\nbody\n\nmore", Response(404, {"a": "b"}, b"body\n\nmore")),
    ],
)
def test_answer_is_read_as_http(stdout: bytes, response: Response) -> None:
    assert parse_response(Answer(stdout=stdout)) == response


def test_answer_without_headers_is_an_error_that_quotes_php() -> None:
    with pytest.raises(FastcgiError, match=r"no headers. It says: PHP Fatal error"):
        parse_response(Answer(stderr=b"PHP Fatal error: x"))


Handler = Callable[[socket.socket], None]


class Responder:
    """A Unix socket that answers one connection with a handler."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self.address = str(path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.address)
        self.listener.listen(1)
        self.received = b""
        self.thread = threading.Thread(target=self.serve, args=(handler,), daemon=True)
        self.thread.start()

    def serve(self, handler: Handler) -> None:
        connection, _address = self.listener.accept()
        with connection:
            while STDIN not in [record.kind for record in records(self.received) if not record.content]:
                self.received += connection.recv(65536)
            handler(connection)
        self.listener.close()


def answer_slowly(connection: socket.socket) -> None:
    for byte in encode_record(STDERR, b"careful") + encode_stream(STDOUT, GOOD) + encode_record(END_REQUEST, END):
        connection.sendall(bytes([byte]))


def die_in_the_middle(connection: socket.socket) -> None:
    connection.sendall(encode_record(STDOUT, GOOD))


def trickle_for_ever(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(encode_record(STDERR, b"still busy"))
            time.sleep(0.02)


def stay_silent(connection: socket.socket) -> None:
    time.sleep(1)


def test_call_returns_the_answer_however_it_trickles_in(tmp_path: Path) -> None:
    responder = Responder(tmp_path / "socket", answer_slowly)

    response = call(responder.address, {"SCRIPT_FILENAME": "/a.php"}, b"body", timeout=5)

    responder.thread.join(5)
    assert response == Response(200, {"content-type": "text/plain"}, b"ok", "careful")
    assert responder.received == encode_request({"SCRIPT_FILENAME": "/a.php"}, b"body")


def test_call_sends_large_variables(tmp_path: Path) -> None:
    params = {f"HTTP_X_{number}": "v" * 5000 for number in range(40)}
    responder = Responder(tmp_path / "socket", answer_slowly)

    call(responder.address, params, timeout=5)

    assert responder.received == encode_request(params)


def test_worker_that_dies_is_an_error(tmp_path: Path) -> None:
    responder = Responder(tmp_path / "socket", die_in_the_middle)

    with pytest.raises(FastcgiError, match=r"its process died or was restarted") as caught:
        call(responder.address, {}, timeout=5)

    assert caught.value.reason == "closed"


@pytest.mark.parametrize("handler", [stay_silent, trickle_for_ever])
def test_request_ends_with_the_timeout(tmp_path: Path, handler: Handler) -> None:
    responder = Responder(tmp_path / "socket", handler)
    started = time.monotonic()

    with pytest.raises(FastcgiError) as caught:
        call(responder.address, {}, timeout=0.1)

    assert caught.value.reason == "timeout"
    assert time.monotonic() - started < 0.9


def test_missing_socket_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FastcgiError, match=r"There is no socket .*none\. Start PHP-FPM, or set socket"):
        call(str(tmp_path / "none"), {})


def test_socket_without_listener_is_an_error(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "stale"))
    listener.close()

    with pytest.raises(FastcgiError, match=r"PHP-FPM does not listen on"):
        call(str(tmp_path / "stale"), {})


def test_refused_port_is_an_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"

        with pytest.raises(FastcgiError, match=rf"does not listen on {address}"):
            call(address, {})


@pytest.mark.parametrize("address", ["php.sock", "localhost", "localhost:http"])
def test_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(FastcgiError) as caught:
        call(address, {})

    assert caught.value.reason == "address"


def test_variables_are_those_of_a_web_server() -> None:
    params = script_params(
        "/srv/r/public/index.php",
        "/srv/r/public",
        "/health?deep=1",
        server_name="api.example.com",
        https=True,
        headers={"X-Token": "t", "Accept": "application/json"},
    )

    assert params == {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": "bitflow.lms",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "api.example.com",
        "SERVER_ADDR": "127.0.0.1",
        "SERVER_PORT": "443",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "0",
        "REQUEST_METHOD": "GET",
        "REQUEST_SCHEME": "https",
        "REQUEST_URI": "/health?deep=1",
        "QUERY_STRING": "deep=1",
        "DOCUMENT_ROOT": "/srv/r/public",
        "DOCUMENT_URI": "/health",
        "SCRIPT_NAME": "/index.php",
        "SCRIPT_FILENAME": "/srv/r/public/index.php",
        "CONTENT_TYPE": "",
        "CONTENT_LENGTH": "",
        "REDIRECT_STATUS": "200",
        "HTTP_HOST": "api.example.com",
        "HTTP_USER_AGENT": "bitflow.lms",
        "HTTPS": "on",
        "HTTP_X_TOKEN": "t",
        "HTTP_ACCEPT": "application/json",
    }
