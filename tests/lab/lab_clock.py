# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The time of the lab. It passes by what happens there, not by the clock on the wall: a slow machine makes a run longer, not different.

Each answered request lets a little of it pass, and so does each call to AWS. Where neither happens it passes by itself, as long as
somebody waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone

# How many requests users make in a second of the lab.
REQUESTS_A_SECOND = 50
# How long a call to AWS takes (seconds of the lab).
CALL = 0.05
# By how much time passes at once where nothing happens (seconds of the lab), and after which pause (seconds).
STEP = 0.1
IDLE = 0.004
BEGINNING = datetime(2026, 11, 23, 10, 0, 0, tzinfo=timezone.utc)
# After so many seconds on the wall a wait is taken for a test that hangs.
PATIENCE = 120


class LabClock:
    """Time that belongs to one event loop, and that other threads may ask for and wait for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.seconds = 0.0
        self._loop = loop
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._held = 0
        self._awaited = 0
        self._guard = threading.Lock()
        self._touched = 0
        self._keeper = loop.create_task(self._pass_by_itself())

    # In the loop

    def request_done(self) -> None:
        """Let the time pass that a request takes its users to make."""
        self.advance(1 / REQUESTS_A_SECOND)

    def advance(self, seconds: float) -> None:
        """Let time pass, and do what was due in it."""
        self._touched += 1
        end = self.seconds + seconds
        while self._timers and self._timers[0][0] <= end:
            due, _number, action = heapq.heappop(self._timers)
            self.seconds = max(self.seconds, due)
            action()
        self.seconds = end

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._timers, (self.seconds + max(0.0, seconds), next(self._numbers), action))

    async def wait(self, seconds: float) -> None:
        """Let so much time pass."""
        over = self._loop.create_future()
        self.after(seconds, lambda: over.done() or over.set_result(None))
        await over

    async def flowing(self) -> None:
        """Wait while somebody holds the time."""
        while self._held:
            await asyncio.sleep(0.0005)

    async def _pass_by_itself(self) -> None:
        """Let time pass where it is waited for, and nobody asks for anything."""
        seen = self._touched
        while True:
            await asyncio.sleep(IDLE)
            if seen == self._touched and self._awaited and not self._held:
                self.advance(STEP)
            seen = self._touched

    # In other threads

    def now(self) -> datetime:
        """Return the time."""
        return BEGINNING + timedelta(seconds=self.seconds)

    def sleep(self, seconds: float) -> None:
        """Wait in a thread other than that of the loop."""
        over = threading.Event()
        with self.awaited():
            self._loop.call_soon_threadsafe(self.after, seconds, over.set)
            passed = over.wait(PATIENCE)
        if not passed:
            raise TimeoutError(f"{seconds} seconds of the lab have not passed within {PATIENCE} s")

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Wait for something that needs time to pass."""
        with self._guard:
            self._awaited += 1
        try:
            yield
        finally:
            with self._guard:
                self._awaited -= 1

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Do something that takes no time of the lab, however long this machine takes for it."""
        with self._guard:
            self._held += 1
        try:
            yield
        finally:
            with self._guard:
                self._held -= 1

    def close(self) -> None:
        """Let no more time pass."""
        self._keeper.cancel()
