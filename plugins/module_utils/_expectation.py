# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a healthy answer looks like, and how long a probe goes on asking for it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

BODY_SHOWN = 2000
BODY_IN_SENTENCE = 200
# Session and remember-me cookies are credentials.
HIDDEN_HEADERS = frozenset({"set-cookie"})
MARKUP = re.compile(r"<(style|script)\b.*?</\1\s*>|<[^>]*>", re.DOTALL | re.IGNORECASE)


class Answer(Protocol):
    """An answer in the terms of HTTP, whatever protocol brought it; header names are in lower case."""

    @property
    def status(self) -> int:
        """Return the status code."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Return the headers."""

    @property
    def body(self) -> bytes:
        """Return the body."""


class Question(Protocol):
    """What every probe has, whatever it asks."""

    @property
    def method(self) -> str:
        """Return the method of the request."""

    @property
    def expectation(self) -> Expectation:
        """Return what the answer must look like."""

    @property
    def attempts(self) -> int:
        """Return how often to ask at most."""

    @property
    def consecutive(self) -> int:
        """Return how many good answers in a row are needed."""

    @property
    def interval(self) -> float:
        """Return the seconds between two attempts."""

    @property
    def timeout(self) -> float:
        """Return the seconds that one attempt may take."""


@dataclass(frozen=True)
class Expectation:
    """What a healthy answer looks like."""

    status: tuple[int, ...] = (200,)
    body: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


AnyAnswer = TypeVar("AnyAnswer", bound=Answer)


@dataclass
class Attempts(Generic[AnyAnswer]):
    """The answers so far; a complaint is what was wrong with the last one."""

    milliseconds: list[int] = field(default_factory=list)
    good_in_a_row: int = 0
    response: AnyAnswer | None = None
    complaint: str = ""

    def as_result(self) -> dict[str, Any]:
        """Return the module's result."""
        response = self.response
        return {
            "changed": False,
            "status": response.status if response else None,
            "headers": {name: value for name, value in sorted(response.headers.items()) if name not in HIDDEN_HEADERS} if response else {},
            "body": response.body.decode("utf-8", "replace")[:BODY_SHOWN] if response else "",
            "milliseconds": self.milliseconds,
            "attempts": len(self.milliseconds),
            "reason": "",
        }


def refuse_hopeless(question: Question) -> None:
    """Refuse what cannot succeed."""
    attempts, consecutive = question.attempts, question.consecutive
    if consecutive < 1 or attempts < consecutive:
        raise LmsError(f"attempts is {attempts} and consecutive is {consecutive}; attempts >= consecutive >= 1 is needed.")
    if question.timeout <= 0 or question.interval < 0:
        raise LmsError(f"timeout is {question.timeout:g} and interval is {question.interval:g}; timeout > 0 and interval >= 0 is needed.")
    if question.method == "HEAD" and (question.expectation.body is not None or question.expectation.values):
        raise LmsError("expect_body and expect_json need a body: set method to GET.")


def ask_until_good(
    question: Question,
    ask: Callable[[], tuple[AnyAnswer | None, str]],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Attempts[AnyAnswer]:
    """Ask until enough good answers came in a row, or until they cannot come any more; ask returns an answer and what is wrong with it."""
    seen: Attempts[AnyAnswer] = Attempts()
    for number in range(question.attempts):
        if number:
            sleep(question.interval)
        started = clock()
        seen.response, seen.complaint = ask()
        seen.milliseconds.append(round((clock() - started) * 1000))
        seen.good_in_a_row = 0 if seen.complaint else seen.good_in_a_row + 1
        left = question.attempts - number - 1
        if seen.good_in_a_row >= question.consecutive or seen.good_in_a_row + left < question.consecutive:
            break
    return seen


def judge_answer(answer: Answer, expectation: Expectation, asked: str, advice: Mapping[int, str], option: str) -> str:
    """Return what is wrong with an answer, nothing when it is good; option is the one that says what to ask for."""
    body = text_of(answer)
    shown = f" Body: {body}" if body else ""
    if answer.status not in expectation.status:
        expected = " or ".join(str(status) for status in expectation.status)
        hint = advice.get(answer.status, "")
        return f"{asked}, expected {expected}." + (f" {hint}" if hint else "") + shown
    for name, text in sorted(expectation.headers.items()):
        if name.lower() not in answer.headers or text not in answer.headers[name.lower()]:
            wanted = f"expected {text!r} in it. Correct expect_headers, or what the server says."
            return f"{asked} {describe_header(answer, name)}, {wanted}"
    if expectation.body is not None and expectation.body not in answer.body.decode("utf-8", "replace"):
        return f"{asked} without the text {expectation.body!r}. Correct expect_body, or what the application says.{shown}"
    if expectation.values:
        return judge_json(answer, expectation.values, asked, shown, option)
    return ""


def describe_header(answer: Answer, name: str) -> str:
    """Return a header in words; a cookie is not shown."""
    value = answer.headers.get(name.lower())
    if value is None:
        return f"without the header {name}"
    if name.lower() in HIDDEN_HEADERS:
        return f"with another header {name}"
    return f"with the header {name}: {value[:BODY_IN_SENTENCE]}"


def judge_json(answer: Answer, expected: Mapping[str, Any], asked: str, shown: str, option: str) -> str:
    """Return the first value of the JSON body that is not as expected."""
    try:
        document = json.loads(answer.body)
    except ValueError:
        return f"{asked} with a body that is not JSON. Set {option} to an address that answers JSON, or leave expect_json out.{shown}"
    for path, value in sorted(expected.items()):
        found = look_up(document, path)
        if not is_subset(value, found):
            is_now = "not there" if found is MISSING else json.dumps(found)[:BODY_IN_SENTENCE]
            wanted = f"expected {json.dumps(value)}. Repair what it names, or correct expect_json."
            return f"{asked}, but {path} of its body is {is_now}, {wanted}{shown}"
    return ""


class _Missing:
    """The value of a key that is not there."""


MISSING = _Missing()


def look_up(document: Any, path: str) -> Any:
    """Return the value at a dotted path; a number names an element of a list, a key may hold dots itself."""
    if isinstance(document, Mapping):
        if path in document:
            return document[path]
        for position in (index for index, letter in enumerate(path) if letter == "."):
            if path[:position] in document:
                found = look_up(document[path[:position]], path[position + 1 :])
                if found is not MISSING:
                    return found
        return MISSING
    if isinstance(document, list):
        head, _dot, rest = path.partition(".")
        if head.isdigit() and int(head) < len(document):
            return look_up(document[int(head)], rest) if rest else document[int(head)]
    return MISSING


def is_subset(expected: Any, found: Any) -> bool:
    """Tell whether a value holds everything that is expected; true is not 1 here."""
    if isinstance(expected, Mapping):
        return isinstance(found, Mapping) and all(is_subset(value, found.get(key, MISSING)) for key, value in expected.items())
    if isinstance(expected, bool) or isinstance(found, bool):
        return expected is found
    return bool(expected == found)


def text_of(answer: Answer) -> str:
    """Return the first words of a body for a sentence; of a page, what a reader would see."""
    text = answer.body.decode("utf-8", "replace")
    if "html" in answer.headers.get("content-type", ""):
        text = MARKUP.sub(" ", text)
    return " ".join(text.split())[:BODY_IN_SENTENCE]
