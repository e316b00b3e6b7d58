# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""S3 as it is on a bad day: moto, and in front of it a proxy that checks sums as S3 does and makes mistakes on demand.

with Lab() as lab:
    lab.proxy.add(answer(503, "SlowDown", operation="UploadPart", times=2))
    client = boto3.client("s3", endpoint_url=lab.endpoint, ...)
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import logging
import os
import re
import socket
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

# moto reads it when it is imported. Parts as small as this keep the tests quick.
os.environ.setdefault("S3_UPLOAD_PART_MIN_SIZE", "1024")

from moto.server import ThreadedMotoServer

PIECE = 65536
# Headers that belong to one connection.
OWN_HEADERS = frozenset({"connection", "content-length", "date", "expect", "server", "transfer-encoding"})
_INITIATED = re.compile(rb"<UploadId>([^<]+)</UploadId>(?:(?!<UploadId>).)*?<Initiated>([^<]+)</Initiated>", re.DOTALL)
_UPLOAD = re.compile(rb"<UploadId>([^<]+)</UploadId>")


@dataclass
class Request:
    """A request to S3, as the rules see it."""

    # Such as UploadPart
    operation: str
    bucket: str
    key: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    length: int
    # 0 until it is answered, and when it is never.
    status: int = 0

    @property
    def part(self) -> int:
        """Return the number of the part, or 0."""
        return int(self.query.get("partNumber", ["0"])[0])


@dataclass
class Fault:
    """What goes wrong, with which requests, and how often."""

    operation: str = ""
    # How the key ends.
    key: str = ""
    # How many requests of the kind are left in peace before.
    after: int = 0
    # None: always.
    times: int | None = 1
    # Whether only certain requests are meant.
    when: Callable[[Request], bool] = lambda request: True
    # Answer with this instead of S3: status, code.
    answer: tuple[int, str] | None = None
    # Answer so although S3 did what was asked.
    answer_done: tuple[int, str] | None = None
    # Cut the connection after so many bytes of the request's body, or of the answer's.
    cut_request: int | None = None
    cut_answer: int | None = None
    # Cut the connection before the answer, although S3 did what was asked.
    lose_answer: bool = False
    # Say nothing until the lab ends.
    hang: bool = False
    # Change a byte of the body on its way.
    corrupt: bool = False
    seen: int = field(default=0, init=False)

    def meets(self, request: Request) -> bool:
        """Say whether it is this request's turn."""
        if self.operation not in ("", request.operation) or not request.key.endswith(self.key) or not self.when(request):
            return False
        self.seen += 1
        return self.after < self.seen and (self.times is None or self.seen <= self.after + self.times)


def answer(status: int, code: str, **which: Any) -> Fault:
    """Return a fault: the request is answered so, and does nothing."""
    return Fault(answer=(status, code), **which)


def answer_done(status: int, code: str, **which: Any) -> Fault:
    """Return a fault: the request is answered so, although it was done."""
    return Fault(answer_done=(status, code), **which)


def part_limit(parts: int) -> Fault:
    """Return a service that takes fewer parts than S3."""
    return answer(400, "InvalidArgument", operation="UploadPart", times=None, when=lambda request: request.part > parts)


def no_conditions() -> Fault:
    """Return a service that does not know If-None-Match."""
    return answer(501, "NotImplemented", times=None, when=lambda request: "if-none-match" in request.headers)


def operation_of(method: str, key: str, query: dict[str, list[str]]) -> str:
    """Return what S3 calls a request."""
    if "uploads" in query:
        return "CreateMultipartUpload" if method == "POST" else "ListMultipartUploads"
    if "uploadId" in query:
        return {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload", "GET": "ListParts"}[method]
    setting = next((name for name in query if name in SETTINGS), "")
    if setting:
        return f"{method.capitalize()}{SETTINGS[setting]}"
    if not key:
        return {"GET": "ListObjectsV2", "PUT": "CreateBucket", "HEAD": "HeadBucket", "DELETE": "DeleteBucket"}.get(method, method)
    return f"{method.capitalize()}Object"


SETTINGS = {
    "encryption": "BucketEncryption",
    "lifecycle": "BucketLifecycleConfiguration",
    "object-lock": "ObjectLockConfiguration",
    "policy": "BucketPolicy",
    "publicAccessBlock": "PublicAccessBlock",
    "retention": "ObjectRetention",
    "versioning": "BucketVersioning",
    "versions": "ObjectVersions",
}


def bad_sum(headers: dict[str, str], body: bytes) -> bool:
    """Say whether a sum that was sent with a body is not the body's."""
    given = headers.get("content-md5")
    if given and base64.b64decode(given) != hashlib.md5(body, usedforsecurity=False).digest():
        return True
    sums: dict[str, Callable[[bytes], bytes]] = {
        "x-amz-checksum-sha256": lambda data: hashlib.sha256(data).digest(),
        "x-amz-checksum-sha1": lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
        "x-amz-checksum-crc32": lambda data: struct.pack(">I", zlib.crc32(data)),
    }
    return any(name in headers and base64.b64decode(headers[name]) != function(body) for name, function in sums.items())


class Proxy:
    """The proxy. It listens on all addresses, so that containers reach it."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.faults: list[Fault] = []
        # All that was asked, in the order of the answers.
        self.requests: list[Request] = []
        # Headers that were asked with each upload, by the id it got, and when it was begun.
        self.begun: dict[bytes, str] = {}
        self.released = threading.Event()
        proxy = self

        class Handler(_Handler):
            pass

        Handler.proxy = proxy
        self.server = ThreadingHTTPServer(("0.0.0.0", 0), Handler)  # noqa: S104 - containers have to reach it
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """End, and let go of everything that hangs."""
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def add(self, *faults: Fault) -> None:
        """Let something go wrong from now on."""
        self.faults += faults

    def clear(self) -> None:
        """Let nothing go wrong any more, and forget what was asked."""
        self.released.set()
        self.released = threading.Event()
        self.faults.clear()
        self.requests.clear()

    def count(self, operation: str, status: int | None = None) -> int:
        """Return how often something was asked, and answered so."""
        return sum(request.operation == operation and status in (None, request.status) for request in list(self.requests))

    def fault_for(self, request: Request) -> Fault:
        """Return what goes wrong with a request."""
        return next((fault for fault in list(self.faults) if fault.meets(request)), Fault())


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        # A client that was killed, or cut off by a fault.
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().handle()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _serve(self) -> None:
        request = self._request()
        fault = self.proxy.fault_for(request)
        self.proxy.requests.append(request)
        if fault.hang:
            self.proxy.released.wait()
            self._cut()
            return
        if fault.cut_request is not None:
            self.rfile.read(min(fault.cut_request, request.length))
            self._cut()
            return
        body = self._body(request)
        if fault.corrupt and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        if fault.answer:
            self._refuse(request, *fault.answer)
        elif bad_sum(request.headers, body):
            self._refuse(request, 400, "BadDigest")
        else:
            self._forward(request, fault, body)

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815 - as the standard library wants them

    def _request(self) -> Request:
        """Read what is asked, without the body."""
        address = urlsplit(self.path)
        bucket, _slash, key = address.path.lstrip("/").partition("/")
        query = parse_qs(address.query, keep_blank_values=True)
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Request(operation_of(self.command, key, query), bucket, key, query, headers, int(headers.get("content-length", 0)))

    def _body(self, request: Request) -> bytes:
        """Read the body."""
        return self.rfile.read(request.length)

    def _cut(self) -> None:
        """End the connection as a broken network does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _refuse(self, request: Request, status: int, code: str) -> None:
        """Answer with an error of S3."""
        request.status = status
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code} by the lab</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _forward(self, request: Request, fault: Fault, body: bytes) -> None:
        """Let S3 answer."""
        upstream = http.client.HTTPConnection(*self.proxy.upstream, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in OWN_HEADERS}
            upstream.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            reply = upstream.getresponse()
            content = self._timed(request, reply.read())
        finally:
            upstream.close()
        if fault.lose_answer:
            self._cut()
            return
        if fault.answer_done:
            self._refuse(request, *fault.answer_done)
            return
        request.status = reply.status
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in OWN_HEADERS:
                self.send_header(name, value)
        self.send_header("Content-Length", reply.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(content)))
        self.end_headers()
        if fault.cut_answer is not None:
            self.wfile.write(content[: fault.cut_answer])
            self.wfile.flush()
            self._cut()
            return
        self.wfile.write(content)

    def _timed(self, request: Request, content: bytes) -> bytes:
        """Give uploads the time when they were begun: moto says 2010 of all of them."""
        if request.operation == "CreateMultipartUpload":
            for name in _UPLOAD.findall(content):
                self.proxy.begun[name] = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        if request.operation == "ListMultipartUploads":
            return _INITIATED.sub(self._begun, content)
        return content

    def _begun(self, upload: re.Match[bytes]) -> bytes:
        """Return the description of an upload with its own time."""
        time = self.proxy.begun.get(upload[1])
        return upload[0].replace(upload[2], time.encode()) if time else upload[0]


class Lab:
    """moto with the proxy in front of it, for as long as the context lasts."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.moto = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        self.moto.start()
        self.proxy = Proxy(self.moto.get_host_and_port())
        self.proxy.start()

    @property
    def endpoint(self) -> str:
        """Return where the programs of this machine find it."""
        return f"http://127.0.0.1:{self.proxy.port}"

    def endpoint_for(self, container: str) -> str:
        """Return where a container finds it: at this machine's end of the container's network."""
        form = "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}"
        found = subprocess.run(["docker", "inspect", "--format", form, container], check=True, capture_output=True, text=True)
        return f"http://{found.stdout.strip()}:{self.proxy.port}"

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """End both."""
        self.proxy.stop()
        self.moto.stop()


def lab() -> Iterator[Lab]:
    """Yield a lab, for a fixture."""
    with Lab() as made:
        yield made
