# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""As much of HTTP/1.1 and of WebSocket as the load balancer of the lab, its backends and its users need."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

END = b"\r\n\r\n"
REASONS = {200: "OK", 301: "Moved Permanently", 404: "Not Found", 500: "Internal Server Error", 502: "Bad Gateway", 503: "Unavailable"}
# What RFC 6455 has a server add to the key.
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@dataclass
class Message:
    """A request or an answer."""

    # The first line and the headers, as they came.
    head: bytes
    start: list[str]
    headers: dict[str, str]
    body: bytes = b""

    @property
    def whole(self) -> bytes:
        """Return it as it came."""
        return self.head + self.body

    @property
    def path(self) -> str:
        """Return what a request asks for."""
        return self.start[1]

    @property
    def status(self) -> int:
        """Return how a request was answered."""
        return int(self.start[1])

    @property
    def upgrades(self) -> bool:
        """Say whether this asks for WebSocket."""
        return self.headers.get("upgrade", "").lower() == "websocket"

    @property
    def lasts(self) -> bool:
        """Say whether the connection stays."""
        return self.headers.get("connection", "").lower() != "close"

    def with_header(self, name: str, value: str) -> bytes:
        """Return it with one more header."""
        return self.head[:-2] + f"{name}: {value}\r\n\r\n".encode() + self.body

    def passed_on(self, client: str) -> bytes:
        """Return a request as a proxy sends it: how long the client's connection lasts is not the business of whoever answers."""
        whole = self.with_header("X-Forwarded-For", client)
        return whole if self.lasts else whole.replace(b"\r\nConnection: close\r\n", b"\r\n", 1)


async def read_message(reader: asyncio.StreamReader) -> Message | None:
    """Read a request or an answer; nothing where the other side has gone between two of them."""
    try:
        head = await reader.readuntil(END)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise ConnectionResetError("the other side left in the middle of a message") from error
        return None
    lines = head[:-4].decode("latin-1").split("\r\n")
    headers = {}
    for line in lines[1:]:
        name, _colon, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    length = int(headers.get("content-length", 0))
    try:
        body = await reader.readexactly(length) if length else b""
    except asyncio.IncompleteReadError as error:
        raise ConnectionResetError("the other side left in the middle of a body") from error
    return Message(head, lines[0].split(" ", 2), headers, body)


def answer(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """Return an answer."""
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Unknown')}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + END + body


def request(path: str, host: str = "lms.example.com", headers: Mapping[str, str] | None = None) -> bytes:
    """Return a request."""
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in (headers or {}).items())]
    return "\r\n".join(lines).encode() + END


async def ask(host: str, port: int, path: str, headers: Mapping[str, str] | None = None) -> Message:
    """Ask once, on a connection of its own."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request(path, headers={"Connection": "close", **(headers or {})}))
        found = await read_message(reader)
    finally:
        writer.close()
    if found is None:
        raise ConnectionResetError("the other side left without an answer")
    return found


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy what comes until it ends."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def tunnel(one: tuple[asyncio.StreamReader, asyncio.StreamWriter], other: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    """Copy in both directions until either side ends."""
    ways = [asyncio.ensure_future(pump(one[0], other[1])), asyncio.ensure_future(pump(other[0], one[1]))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        one[1].close()
        other[1].close()


# WebSocket: text in single frames of less than 126 bytes


def accept_key(key: str) -> str:
    """Return what a server proves with that it speaks WebSocket."""
    return base64.b64encode(hashlib.sha1(key.encode() + _MAGIC).digest()).decode()  # noqa: S324 (so says the RFC)


def frame(text: str, masked: bool) -> bytes:
    """Return a frame. Those of a client are masked."""
    data = text.encode()
    if not masked:
        return bytes([0x81, len(data)]) + data
    mask = os.urandom(4)
    return bytes([0x81, 0x80 | len(data)]) + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))


async def read_frame(reader: asyncio.StreamReader) -> str | None:
    """Read a frame; nothing where the other side has gone."""
    try:
        kind, length = await reader.readexactly(2)
        mask = await reader.readexactly(4) if length & 0x80 else bytes(4)
        data = await reader.readexactly(length & 0x7F)
    except (asyncio.IncompleteReadError, OSError):
        return None
    if kind != 0x81:
        return None
    return bytes(byte ^ mask[index % 4] for index, byte in enumerate(data)).decode()
