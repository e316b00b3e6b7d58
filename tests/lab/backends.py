# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers of the application: small ones, on addresses of this machine, that say who they are and fail where a test tells them to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from urllib.parse import parse_qs, urlsplit

from ansible_collections.bitflow.lms.tests.lab.http_wire import Message, accept_key, answer, frame, read_frame, read_message
from ansible_collections.bitflow.lms.tests.lab.lab_clock import LabClock

HEALTH_PATH = "/up"


class Backend:
    """One server. Until it has booted, and after it was stopped, its port refuses connections."""

    def __init__(self, clock: LabClock, colour: str, release: str, host: str, boot: float) -> None:
        self.colour = colour
        self.release = release
        self.host = host
        # Answers its health check with 503, and all else as if nothing were.
        self.ill = False
        # Answers users with 500, and its health check as if nothing were.
        self.failing = False
        self.served = 0
        self._clock = clock
        self._boot = boot
        self._socket: socket.socket | None = socket.socket()
        # Bound and not listening: the address is known, and nobody is served there.
        self._socket.bind((host, 0))
        self.port: int = self._socket.getsockname()[1]
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    def __repr__(self) -> str:
        return f"{self.colour} {self.release} at {self.host}:{self.port}"

    def begin(self) -> None:
        """Listen once it has booted."""
        self._clock.after(self._boot, lambda: asyncio.ensure_future(self._listen()))

    async def _listen(self) -> None:
        """Serve from now on."""
        if self._socket is not None:
            self._server = await asyncio.start_server(self._serve, sock=self._socket)

    def end(self) -> None:
        """Stop as a process does that is killed: what it was answering is lost."""
        if self._server is not None:
            self._server.close()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        for writer in list(self._connections):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection."""
        self._connections.add(writer)
        try:
            with contextlib.suppress(OSError):
                while (asked := await read_message(reader)) is not None:
                    if asked.upgrades:
                        await self._talk(asked, reader, writer)
                        return
                    writer.write(await self._answer(asked))
                    if not asked.lasts:
                        return
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _answer(self, asked: Message) -> bytes:
        """Answer a request. /slow takes as many seconds as it is told."""
        url = urlsplit(asked.path)
        if url.path == HEALTH_PATH:
            return self._say(503 if self.ill else 200)
        self.served += 1
        if url.path == "/slow":
            await self._clock.wait(float(parse_qs(url.query)["seconds"][0]))
        return self._say(500 if self.failing else 200)

    def _say(self, status: int) -> bytes:
        """Return who this is."""
        body = {"colour": self.colour, "release": self.release, "boot": self._boot, "address": f"{self.host}:{self.port}"}
        return answer(status, json.dumps(body).encode(), {"X-Colour": self.colour, "X-Release": self.release})

    async def _talk(self, asked: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Repeat what comes over a WebSocket, with the colour before it."""
        self.served += 1
        agreed = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": accept_key(asked.headers["sec-websocket-key"])}
        lines = ["HTTP/1.1 101 Switching Protocols", *(f"{name}: {value}" for name, value in agreed.items())]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        while (text := await read_frame(reader)) is not None:
            writer.write(frame(f"{self.colour}: {text}", masked=False))
