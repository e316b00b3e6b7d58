# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A session that a client holds: rows, errors, time-outs, and a client that goes away. The client is a small program of our own."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._database import DatabaseError
from ansible_collections.bitflow.lms.plugins.module_utils._database_session import ClientSession
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import Stage

CLIENT = """
import sys, time
for line in sys.stdin:
    mark, word, *arguments = line.split()
    if word == "rows":
        print("\\n".join(arguments))
    elif word == "many":
        sys.stdout.write("x" * int(arguments[0]) + "\\n")
    elif word == "fail":
        print("half")
        print("it failed", file=sys.stderr, flush=True)
    elif word == "sleep":
        time.sleep(60)
    elif word == "die":
        print("the server went away", file=sys.stderr, flush=True)
        sys.exit(2)
    print(mark, "bad" if word == "fail" else "good", flush=True)
"""


class Session(ClientSession):
    """A session with the small program."""

    def framed(self, statement: str, mark: str) -> str:
        return f"{mark} {statement}\n"

    def rows(self, output: bytes) -> list[list[str]]:
        return [[line] for line in output.decode().splitlines()]

    def failure(self, ending: str, said: str) -> DatabaseError | None:
        return None if ending == "good" else DatabaseError(f"{self.what}: {said}")

    def lost(self, said: str) -> DatabaseError:
        return DatabaseError(f"{self.what} is gone: {said}")


@pytest.fixture
def session() -> Iterator[Session]:
    """Begin a session."""
    with Session(Stage([sys.executable, "-c", CLIENT]), "the server") as begun:
        yield begun


def test_rows_come_back_statement_by_statement(session: Session) -> None:
    assert [session.query("rows a b"), session.query("rows"), session.query("many 300000")] == [
        [["a"], ["b"]],
        [[""]],
        [["x" * 300000]],
    ]


def test_a_statement_that_fails_leaves_the_session_usable(session: Session) -> None:
    with pytest.raises(DatabaseError, match=r"^the server: it failed$"):
        session.query("fail")

    assert session.query("rows c") == [["c"]]


def test_a_client_that_ends_is_told_with_its_last_words(session: Session) -> None:
    with pytest.raises(DatabaseError, match=r"^the server is gone: the server went away$"):
        session.query("die")

    assert not session.alive
    with pytest.raises(DatabaseError, match=r"^the server is gone: "):
        session.query("rows a")


def test_a_statement_that_takes_too_long_ends_the_session(session: Session) -> None:
    with pytest.raises(DatabaseError, match=r"^the server did not answer within 0\.05 s\.$"):
        session.query("sleep", timeout=0.05)


def test_an_answer_can_be_waited_for_later(session: Session) -> None:
    session.send("rows later")

    assert session.answered(10)
    assert session.receive() == [["later"]]


def test_a_session_that_is_closed_ends_a_statement_of_another_thread(session: Session) -> None:
    said: list[str] = []
    begun = threading.Event()

    def ask() -> None:
        session.send("sleep")
        begun.set()
        try:
            session.receive()
        except DatabaseError as error:
            said.append(error.message)

    asking = threading.Thread(target=ask)
    asking.start()
    begun.wait()
    session.close()
    asking.join()

    assert said in (["the server is gone: "], ["The session with the server was closed."])
    with pytest.raises(DatabaseError, match=r"^The session with the server was closed\.$"):
        session.query("rows a")
