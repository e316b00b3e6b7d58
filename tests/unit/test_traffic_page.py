"""The page about traffic: every message that the code of traffic has for an operator stands there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/traffic.md").read_text()
CODE = sorted(
    path
    for pattern in ("_traffic*.py", "_alb*.py", "_nginx_traffic*.py", "_aws_api.py", "_ecs*.py", "_asg*.py", "_capacity.py")
    for path in ROOT.glob(f"plugins/module_utils/{pattern}")
)
# What stands for whatever is put into a message.
ANYTHING = "(anything)"
# Errors for the code itself, not for a person.
INTERNAL = {"AssertionError", "TypeError", "ValueError"}


def text_of(node: ast.expr) -> str:
    """Return the text that an expression makes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    return ANYTHING


def messages_in(path: Path) -> Iterator[str]:
    """Return the messages of the errors, verdicts and reasons in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", "") or getattr(node.func, "attr", "")
            if (name.endswith("Error") and name not in INTERNAL) or name in ("Verdict", "_turn_back"):
                yield from (text for text in map(text_of, node.args) if " " in text.replace(ANYTHING, "").strip(": "))


def patterns() -> list[re.Pattern[str]]:
    """Return what the first column of the table has for messages."""
    table = PAGE.partition("## Messages and what to do")[2].partition("\n## ")[0]
    told = [
        name for row in re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row) if name != "...: ..."
    ]
    return [re.compile(".*".join(re.escape(part) for part in each.split("..."))) for each in told]


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.stem)
def test_every_message_of_traffic_stands_on_the_page(path: Path) -> None:
    known = patterns()

    lacking = [message for message in messages_in(path) if not any(pattern.match(message) for pattern in known)]

    assert lacking == []


def test_a_message_that_is_not_on_the_page_is_found() -> None:
    assert not any(pattern.match("The moon is full, so no traffic was moved.") for pattern in patterns())
