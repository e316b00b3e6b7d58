# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A FastCGI 1.0 client for one request on one connection: encoder, decoder, and the exchange over a socket."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

VERSION = 1
BEGIN_REQUEST, ABORT_REQUEST, END_REQUEST, PARAMS, STDIN, STDOUT, STDERR = range(1, 8)
RESPONDER = 1
REQUEST_ID = 1
HEADER = struct.Struct("!BBHHBx")
BEGIN_BODY = struct.Struct("!HB5x")
END_BODY = struct.Struct("!IB3x")
LONGEST_CONTENT = 65535
ALIGNMENT = 8
READ_SIZE = 65536
LONGEST_RESPONSE = 16 * 1024 * 1024
PROTOCOL_STATUS = {
    1: "it cannot take a second request on one connection",
    2: "it is overloaded",
    3: "it does not know the responder role",
}


class FastcgiError(LmsError):
    """A request that got no complete answer; reason is one word."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Record:
    """One FastCGI record without its padding."""

    kind: int
    request_id: int
    content: bytes


@dataclass
class Answer:
    """What a responder sent."""

    stdout: bytes = b""
    stderr: bytes = b""
    complete: bool = False
    application_status: int = 0


@dataclass(frozen=True)
class Response:
    """The answer of a CGI program, read as HTTP."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    stderr: str = ""


def encode_record(kind: int, content: bytes = b"", request_id: int = REQUEST_ID) -> bytes:
    """Return one record, padded to a multiple of eight bytes."""
    padding = -len(content) % ALIGNMENT
    return HEADER.pack(VERSION, kind, request_id, len(content), padding) + content + b"\0" * padding


def encode_stream(kind: int, content: bytes) -> bytes:
    """Return a stream: as many records as the content needs, and the empty one that ends it."""
    chunks = [content[start : start + LONGEST_CONTENT] for start in range(0, len(content), LONGEST_CONTENT)]
    return b"".join(encode_record(kind, chunk) for chunk in chunks) + encode_record(kind)


def encode_length(length: int) -> bytes:
    """Return a length in one byte, or in four from 128 on."""
    return bytes([length]) if length < 128 else struct.pack("!I", length | 0x80000000)


def encode_params(params: Mapping[str, str]) -> bytes:
    """Return name-value pairs."""
    encoded = b""
    for name, value in params.items():
        raw_name, raw_value = name.encode(), value.encode()
        encoded += encode_length(len(raw_name)) + encode_length(len(raw_value)) + raw_name + raw_value
    return encoded


def encode_request(params: Mapping[str, str], body: bytes = b"") -> bytes:
    """Return everything that a client sends for one request, and the wish to close the connection after it."""
    begin = encode_record(BEGIN_REQUEST, BEGIN_BODY.pack(RESPONDER, 0))
    return begin + encode_stream(PARAMS, encode_params(params)) + encode_stream(STDIN, body)


class Decoder:
    """Turn bytes, in whatever pieces they come, into records."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Record]:
        """Take some bytes and yield the records that are complete."""
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            version, kind, request_id, length, padding = HEADER.unpack_from(self._buffer)
            if version != VERSION:
                raise FastcgiError("The answer is not FastCGI version 1. Set socket to the address of a PHP-FPM pool.", "protocol")
            end = HEADER.size + length + padding
            if len(self._buffer) < end:
                return
            yield Record(kind, request_id, bytes(self._buffer[HEADER.size : HEADER.size + length]))
            del self._buffer[:end]


def collect(answer: Answer, record: Record) -> None:
    """Add one record to the answer; records of other requests and unknown kinds are none of ours."""
    if record.request_id != REQUEST_ID:
        return
    if record.kind == STDOUT:
        answer.stdout += record.content
    elif record.kind == STDERR:
        answer.stderr += record.content
    elif record.kind == END_REQUEST:
        if len(record.content) < END_BODY.size:
            raise FastcgiError("The answer ends with a broken FastCGI record.", "protocol")
        answer.application_status, protocol_status = END_BODY.unpack_from(record.content)
        if protocol_status:
            reason = PROTOCOL_STATUS.get(protocol_status, f"protocol status {protocol_status}")
            raise FastcgiError(f"PHP-FPM refused the request: {reason}.", "refused")
        answer.complete = True


def parse_response(answer: Answer) -> Response:
    """Read a CGI answer: headers, an empty line, the body; the status is in a header, 200 without it."""
    head, separator, body = answer.stdout.partition(b"\r\n\r\n")
    if not separator:
        head, separator, body = answer.stdout.partition(b"\n\n")
    stderr = answer.stderr.decode("utf-8", "replace").strip()
    if not separator:
        raise FastcgiError("The answer of PHP-FPM has no headers." + (f" It says: {stderr[:300]}" if stderr else ""), "protocol")
    headers: dict[str, str] = {}
    for line in head.decode("latin-1").splitlines():
        name, _colon, value = line.partition(":")
        name, value = name.strip().lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    status = headers.pop("status", "200").split()[0]
    if not status.isdigit():
        raise FastcgiError(f"The answer of PHP-FPM has the status {status!r}.", "protocol")
    return Response(int(status), headers, body, stderr)


def connect(address: str, timeout: float) -> socket.socket:
    """Open a connection to a path, or to host:port with an IPv6 host in brackets."""
    try:
        if address.startswith("/"):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(timeout)
            try:
                connection.connect(address)
            except BaseException:
                connection.close()
                raise
            return connection
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdigit():
            raise FastcgiError(f"socket is {address!r}; it is a path such as /run/php/lms.sock, or host:port.", "address")
        return socket.create_connection((host.strip("[]"), int(port)), timeout)
    except socket.timeout as error:
        raise FastcgiError(
            f"PHP-FPM on {address} took no connection within {timeout:g} seconds: all its processes may be busy.", "timeout"
        ) from error
    except OSError as error:
        raise FastcgiError(explain_connect(address, error), "connect") from error


def explain_connect(address: str, error: OSError) -> str:
    """Return why there is no connection, and the way out."""
    if error.errno == errno.ENOENT:
        return f"There is no socket {address}. Start PHP-FPM, or set socket to the listen address of its pool."
    if error.errno == errno.ECONNREFUSED:
        return f"PHP-FPM does not listen on {address}. Start it, or set socket to the listen address of its pool."
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"The socket {address} may not be opened by this user. Run the task as root, or as a user in the socket's group."
    return f"PHP-FPM on {address} cannot be reached: {error.strerror or error}."


Connect = Callable[[str, float], socket.socket]
Clock = Callable[[], float]


def exchange(connection: socket.socket, request: bytes, deadline: float, clock: Clock = time.monotonic) -> Answer:
    """Send a request and read until the responder ends it; the deadline bounds the whole of it."""
    answer = Answer()
    decoder = Decoder()
    try:
        connection.settimeout(remaining(deadline, clock))
        # A responder that answers without reading everything closes its side: its answer is still worth reading.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)
        while not answer.complete:
            connection.settimeout(remaining(deadline, clock))
            data = connection.recv(READ_SIZE)
            if not data:
                raise FastcgiError(
                    "PHP-FPM closed the connection in the middle of the answer: its process died or was restarted. Read the PHP-FPM log.",
                    "closed",
                )
            for record in decoder.feed(data):
                collect(answer, record)
            if len(answer.stdout) > LONGEST_RESPONSE:
                raise FastcgiError(f"The answer is longer than {LONGEST_RESPONSE} bytes.", "size")
    except socket.timeout as error:
        raise FastcgiError("PHP-FPM gave no complete answer in time.", "timeout") from error
    except ConnectionResetError as error:
        raise FastcgiError("PHP-FPM reset the connection: its process died or was restarted. Read the PHP-FPM log.", "closed") from error
    return answer


def remaining(deadline: float, clock: Clock) -> float:
    """Return the seconds that are left; raise when there are none."""
    left = deadline - clock()
    if left <= 0:
        raise socket.timeout("deadline")
    return left


def call(
    address: str,
    params: Mapping[str, str],
    body: bytes = b"",
    timeout: float = 10,
    connect_to: Connect = connect,
    clock: Clock = time.monotonic,
) -> Response:
    """Make one request and return its answer."""
    deadline = clock() + timeout
    connection = connect_to(address, timeout)
    try:
        return parse_response(exchange(connection, encode_request(params, body), deadline, clock))
    finally:
        connection.close()


def script_params(
    script: str,
    document_root: str,
    uri: str = "/",
    method: str = "GET",
    server_name: str = "localhost",
    https: bool = False,
    headers: Mapping[str, str] | None = None,
    content_length: int = 0,
    content_type: str = "",
) -> dict[str, str]:
    """Return the CGI variables that nginx would send for this script and address."""
    path, _mark, query = uri.partition("?")
    params = {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": "bitflow.lms",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": server_name,
        "SERVER_ADDR": "127.0.0.1",
        "SERVER_PORT": "443" if https else "80",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "0",
        "REQUEST_METHOD": method,
        "REQUEST_SCHEME": "https" if https else "http",
        "REQUEST_URI": uri,
        "QUERY_STRING": query,
        "DOCUMENT_ROOT": document_root,
        "DOCUMENT_URI": path,
        "SCRIPT_NAME": f"/{PurePosixPath(script).name}",
        "SCRIPT_FILENAME": script,
        "CONTENT_TYPE": content_type,
        "CONTENT_LENGTH": str(content_length) if content_length else "",
        "REDIRECT_STATUS": "200",
        "HTTP_HOST": server_name,
        "HTTP_USER_AGENT": "bitflow.lms",
    }
    if https:
        params["HTTPS"] = "on"
    for name, value in (headers or {}).items():
        params["HTTP_" + name.upper().replace("-", "_")] = str(value)
    return params
