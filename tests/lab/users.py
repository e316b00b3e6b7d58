# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Those who use the application while its traffic is switched, and who count what did not work.

Each of them asks in turn over a connection that is kept and over a new one, and keeps cookies. Some talk over WebSocket, and some ask for
what takes long. Nobody asks twice: what fails has failed.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ansible_collections.bitflow.lms.tests.lab.http_wire import Message, accept_key, frame, read_frame, read_message, request
from ansible_collections.bitflow.lms.tests.lab.lab_clock import LabClock

USERS = 6
PATHS = ("/", "/api/courses")
# How long the slow answers and the conversations take (seconds of the lab).
SLOW = 2
TALK = 3
# What the users count at least before they leave.
ENOUGH = 4000


@dataclass(frozen=True)
class Answered:
    """A request and what became of it."""

    # When it was answered (seconds of the lab).
    at: float
    path: str
    kept: bool
    colour: str
    # Empty where all was well.
    fault: str


@dataclass
class Count:
    """What became of all requests."""

    requests: list[Answered] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Return how many there were."""
        return len(self.requests)

    @property
    def failures(self) -> list[Answered]:
        """Return those that failed."""
        return [each for each in self.requests if each.fault]

    @property
    def failed(self) -> int:
        """Return how many failed."""
        return len(self.failures)

    def words(self) -> str:
        """Return what failed for the message of a test."""
        faults = Counter((each.fault, each.path, "kept" if each.kept else "new") for each in self.failures)
        first = min((each.at for each in self.failures), default=0)
        return f"{self.failed} of {self.total} failed, the first at {first:.1f} s: {dict(faults)}"

    def served(self, colour: str, since: float = 0) -> int:
        """Return how many requests a colour answered."""
        return sum(each.colour == colour and each.at >= since for each in self.requests)


class Users:
    """Some users of one listener."""

    def __init__(self, clock: LabClock, addresses: Sequence[tuple[str, int]]) -> None:
        self.count = Count()
        self._clock = clock
        self._addresses = itertools.cycle(addresses)
        self._going = True
        self._tasks: list[asyncio.Task[None]] = []

    def come(self) -> None:
        """Begin."""
        work = [*(self._use() for _user in range(USERS)), self._ask_slowly(), self._talk()]
        self._tasks = [asyncio.ensure_future(each) for each in work]

    async def leave(self) -> Count:
        """End, with enough requests and none of them given up."""
        while self.count.total < ENOUGH:
            await self._clock.wait(0.5)
        self._going = False
        await asyncio.gather(*self._tasks)
        return self.count

    def _note(self, path: str, kept: bool, colour: str, fault: str) -> None:
        """Count a request."""
        self.count.requests.append(Answered(self._clock.seconds, path, kept, colour, fault))

    async def _use(self) -> None:
        """Ask for one thing after the other."""
        cookies: dict[str, str] = {}
        kept: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        for path in itertools.cycle(PATHS):
            if not self._going:
                break
            for keep in (True, False):
                await self._clock.flowing()
                connection = kept if keep else None
                try:
                    connection = connection or await asyncio.open_connection(*next(self._addresses))
                    colour, fault, lasts = await self._ask(connection, path, keep, cookies)
                except OSError as error:
                    colour, fault, lasts = "", type(error).__name__, False
                self._note(path, keep, colour, fault)
                if keep and lasts:
                    kept = connection
                elif connection is not None:
                    connection[1].close()
                    kept = None if keep else kept
                self._clock.request_done()
        if kept is not None:
            kept[1].close()

    async def _ask(
        self, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], path: str, keep: bool, cookies: dict[str, str]
    ) -> tuple[str, str, bool]:
        """Ask once; return the colour that answered, what was wrong, and whether the connection lasts."""
        headers = {} if keep else {"Connection": "close"}
        if cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
        connection[1].write(request(path, headers=headers))
        reply = await read_message(connection[0])
        if reply is None:
            raise ConnectionResetError("no answer")
        if "set-cookie" in reply.headers:
            name, _equals, value = reply.headers["set-cookie"].partition("=")
            cookies[name] = value
        return reply.headers.get("x-colour", ""), fault_of(reply), reply.lasts

    async def _ask_slowly(self) -> None:
        """Ask for what takes long, again and again."""
        while self._going:
            await self._clock.flowing()
            try:
                connection = await asyncio.open_connection(*next(self._addresses))
                colour, fault, _lasts = await self._ask(connection, f"/slow?seconds={SLOW}", False, {})
                connection[1].close()
            except OSError as error:
                colour, fault = "", type(error).__name__
            self._note("/slow", False, colour, fault)
            self._clock.request_done()

    async def _talk(self) -> None:
        """Talk over WebSocket, hang up, and call again."""
        while self._going:
            await self._clock.flowing()
            colour = ""
            try:
                reader, writer = await asyncio.open_connection(*next(self._addresses))
                colour, fault = await self._converse(reader, writer)
                writer.close()
            except OSError as error:
                fault = type(error).__name__
            self._note("/ws", True, colour, fault)
            self._clock.request_done()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, str]:
        """Say something each second, and hear whether it comes back."""
        key = base64.b64encode(os.urandom(16)).decode()
        headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": key}
        writer.write(request("/ws", headers=headers))
        reply = await read_message(reader)
        if reply is None or reply.status != 101 or reply.headers.get("sec-websocket-accept") != accept_key(key):
            return "", f"no WebSocket: {reply.status if reply else 'no answer'}"
        colour = ""
        for number in range(TALK):
            writer.write(frame(f"message {number}", masked=True))
            heard = await read_frame(reader)
            if heard is None:
                return colour, "the conversation broke off"
            colour = heard.partition(":")[0]
            await self._clock.wait(1)
        return colour, ""


def fault_of(reply: Message) -> str:
    """Say what is wrong with an answer."""
    if reply.status == 200 and reply.headers.get("x-colour"):
        return ""
    return f"{reply.status} {reply.body.decode()[:40]}" if reply.status in (502, 503) else str(reply.status)
