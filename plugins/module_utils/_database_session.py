# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A session with a database server, held by its command-line client: one statement goes in, its rows come out.

So the hosts need no driver for Python. The client ends with this process, and with it whatever the session held on the server.
"""

from __future__ import annotations

import abc
import contextlib
import os
import re
import secrets
import select
import subprocess
import threading
import time
from types import TracebackType
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._database import DatabaseError
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import PIECE, Stage, start

# How much of what a client says on standard error about one statement is kept: its beginning (bytes).
STDERR_KEPT = 8192
# How long a client that was told to end may take (seconds).
FAREWELL = 5.0


class ClientSession(abc.ABC):
    """A client that is kept running. To be made in the main thread; used by one thread at a time, the others wait."""

    def __init__(self, stage: Stage, what: str) -> None:
        """Start the client. what is how messages name the session, such as "PostgreSQL at db.example.com, database lms"."""
        self.what = what
        self._process: subprocess.Popen[bytes] = start(
            stage, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        # Something that no row can contain by chance.
        self._mark = f"end-of-{secrets.token_hex(8)}"
        self._said = bytearray()
        self._turn = threading.RLock()
        self._waiting = False

    @abc.abstractmethod
    def framed(self, statement: str, mark: str) -> str:
        """Return what makes the client run a statement, and then print a line that begins with the mark."""

    @abc.abstractmethod
    def rows(self, output: bytes) -> list[list[str]]:
        """Return the rows that the client printed."""

    @abc.abstractmethod
    def failure(self, ending: str, said: str) -> DatabaseError | None:
        """Return why a statement failed, by the rest of the marked line and what was said on standard error; None when it did not."""

    @abc.abstractmethod
    def lost(self, said: str) -> DatabaseError:
        """Return why the client ended: it could not connect, or the server ended the session."""

    @property
    def alive(self) -> bool:
        """Say whether the client still runs. The server may have ended the session all the same: only a statement tells."""
        return self._process.poll() is None

    def query(self, statement: str, timeout: float | None = None) -> list[list[str]]:
        """Run one statement and return its rows. DatabaseError when it fails, or takes longer than that (seconds)."""
        with self._turn:
            self.send(statement)
            return self.receive(timeout)

    def send(self, statement: str) -> None:
        """Have one statement run, without waiting for it; receive() has to follow."""
        with self._turn:
            self._said.clear()
            self._waiting = True
            # A client that is gone is noticed, with its reason, when its answer is read.
            with contextlib.suppress(BrokenPipeError, ValueError):
                self._write(self.framed(statement, self._mark).encode("utf-8", errors="surrogateescape"))

    def receive(self, timeout: float | None = None) -> list[list[str]]:
        """Return the rows of the statement that was sent."""
        with self._turn:
            output, ending = self._read(timeout)
            self._waiting = False
            failure = self.failure(ending, self._said.decode("utf-8", errors="replace").strip())
            if failure is not None:
                raise failure
            return self.rows(output)

    def answered(self, timeout: float) -> bool:
        """Say whether the statement that was sent printed something or ended, waiting that long (seconds)."""
        return bool(select.select([self._stream("stdout")], [], [], timeout)[0])

    def close(self) -> None:
        """End the session. Never raises, and may be called again."""
        if self._waiting:
            self._process.kill()
        with contextlib.suppress(OSError):
            self._stream("stdin").close()
        try:
            self._process.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # Whoever still reads sees the end now; only then may the descriptors be closed.
        with self._turn:
            for name in ("stdout", "stderr"):
                with contextlib.suppress(OSError):
                    self._stream(name).close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _stream(self, name: str) -> Any:
        return getattr(self._process, name)

    def _write(self, data: bytes) -> None:
        """Write all of it: an unbuffered stream may take less."""
        stream, rest = self._stream("stdin"), memoryview(data)
        while rest:
            rest = rest[stream.write(rest) :]

    def _read(self, timeout: float | None) -> tuple[bytes, str]:
        """Return what was printed before the marked line, and what stands in that line behind the mark."""
        end_of_answer = re.compile(re.escape(self._mark.encode()) + rb"([^\n]*)\n\Z")
        deadline = None if timeout is None else time.monotonic() + timeout
        output = bytearray()
        stdout, stderr = self._stream("stdout"), self._stream("stderr")
        if stdout.closed:
            raise DatabaseError(f"The session with {self.what} was closed.")
        listening = [stdout, stderr]
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                self._process.kill()
                raise DatabaseError(f"{self.what} did not answer within {timeout:g} s.")
            ready = select.select(listening, [], [], left)[0]
            if stderr in ready and not self._hear(stderr):
                listening.remove(stderr)
            if stdout not in ready:
                continue
            piece = os.read(stdout.fileno(), PIECE)
            if not piece:
                raise self._lost(stderr if stderr in listening else None)
            output += piece
            found = end_of_answer.search(output, max(0, len(output) - STDERR_KEPT))
            if found:
                # The client wrote about the statement before it wrote the mark.
                while stderr in listening and select.select([stderr], [], [], 0)[0] and self._hear(stderr):
                    pass
                return bytes(output[: found.start()]), found[1].decode("utf-8", errors="replace").strip()

    def _hear(self, stderr: Any) -> bool:
        """Take what the client says on standard error. Return whether there may be more."""
        piece = os.read(stderr.fileno(), PIECE)
        self._said += piece[: max(0, STDERR_KEPT - len(self._said))]
        return bool(piece)

    def _lost(self, stderr: Any) -> DatabaseError:
        """Listen to the client's last words."""
        while stderr is not None and self._hear(stderr):
            pass
        self._process.wait()
        return self.lost(self._said.decode("utf-8", errors="replace").strip())
