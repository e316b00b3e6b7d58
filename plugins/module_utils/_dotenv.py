# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write and read .env files so that Laravel reads back exactly what was meant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import Owner, write_atomically

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN = re.compile(r"[A-Za-z0-9_./:@-]+")
_NAME = re.compile(r"[ \t]*(?P<name>[A-Za-z0-9_.]+)[ \t]*=[ \t]*")
_SINGLE_QUOTED = re.compile(r"'(?P<value>[^']*)'")
_DOUBLE_QUOTED = re.compile(r'"(?P<value>(?:[^"\\]|\\.)*)"', re.DOTALL)
_UNQUOTED = re.compile(r"[^ \t\r\n#]*")
_REST_OF_LINE = re.compile(r"[ \t]*(?:#[^\r\n]*)?(?:\r\n|\r|\n|\Z)")
_REFERENCE = re.compile(r"(?<!\\)(?:\\\\)*\$\{")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)

_ENCODED = {"\\": "\\\\", '"': '\\"', "$": "\\$", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_DECODED = {"\\": "\\", '"': '"', "$": "$", "n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v"}


@dataclass(frozen=True)
class Difference:
    """The names of the keys that differ."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Say whether anything differs."""
        return bool(self.added or self.removed or self.changed)


def value_text(key: str, value: Any) -> str:
    """Return a value as the text that Laravel understands."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if not isinstance(value, str):
        raise LmsError(f"{key} in values is no text, number or boolean, but of type {type(value).__name__}.")
    if "\0" in value:
        raise LmsError(f"{key} in values holds a NUL character, which no environment can carry.")
    return value


def value_texts(values: Mapping[str, Any], required: Sequence[str], where: str) -> dict[str, str]:
    """Return all values as text, or say which keys are wrong or missing."""
    wrong = sorted(str(key) for key in values if not _KEY.fullmatch(str(key)))
    if wrong:
        raise LmsError(
            f"values has the keys {', '.join(map(repr, wrong))}: use letters, digits and underscores, not a digit first.", keys=wrong
        )
    missing = sorted(key for key in required if values.get(key) in (None, ""))
    if missing:
        raise LmsError(f"{where} needs {', '.join(missing)}. Set them in lms_backend_environment.", missing=missing)
    return {key: value_text(key, values[key]) for key in sorted(values)}


def encode(value: str) -> str:
    """Return a value as it stands behind the equals sign."""
    if _PLAIN.fullmatch(value):
        return value
    return '"' + "".join(_ENCODED.get(character, character) for character in value) + '"'


def render(texts: Mapping[str, str]) -> str:
    """Return the content of a .env file."""
    return "".join(f"{key}={encode(texts[key])}\n" for key in sorted(texts))


def parse(text: str) -> dict[str, str]:
    """Read a .env file as Laravel's parser does. A reference to another variable is an error: its value is not known here."""
    return dict(_entries(text))


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """Return the keys and values in the order of the file."""
    position = 0
    while position < len(text):
        blank = _REST_OF_LINE.match(text, position)
        if blank is not None:
            position = blank.end()
            continue
        name = _NAME.match(text, position)
        if name is None:
            raise LmsError(f"Line {_line(text, position)} is no KEY=value.")
        value, position = _value(text, name.end())
        rest = _REST_OF_LINE.match(text, position)
        if rest is None:
            raise LmsError(f"Line {_line(text, position)} has something behind the value of {name['name']}.")
        position = rest.end()
        yield name["name"], value


def _value(text: str, position: int) -> tuple[str, int]:
    """Read one value, and return it with the position behind it."""
    single = _SINGLE_QUOTED.match(text, position)
    if single is not None:
        return single["value"], single.end()
    double = _DOUBLE_QUOTED.match(text, position)
    if double is not None:
        if _REFERENCE.search(double["value"]):
            raise LmsError(f"Line {_line(text, position)} refers to another variable.")
        return _ESCAPE.sub(lambda match: _decoded(match[1], text, position), double["value"]), double.end()
    plain = _UNQUOTED.match(text, position)
    found = plain[0] if plain is not None else ""
    if "${" in found or found.startswith(('"', "'")):
        raise LmsError(f"Line {_line(text, position)} refers to another variable or has an open quote.")
    return found, position + len(found)


def _decoded(character: str, text: str, position: int) -> str:
    """Return what an escaped character means."""
    if character not in _DECODED:
        raise LmsError(f"Line {_line(text, position)} has an unknown escape.")
    return _DECODED[character]


def _line(text: str, position: int) -> int:
    """Return the number of the line at a position."""
    return text.count("\n", 0, position) + 1


def compare(before: Mapping[str, str], after: Mapping[str, str]) -> Difference:
    """Return what differs between two environments."""
    return Difference(
        tuple(sorted(set(after) - set(before))),
        tuple(sorted(set(before) - set(after))),
        tuple(sorted(key for key in set(before) & set(after) if before[key] != after[key])),
    )


def masked(keys: Mapping[str, str], changed: Sequence[str] = ()) -> str:
    """Return the keys as the lines of a diff, without their values."""
    return "".join(f"{key}=***{' (changed)' if key in changed else ''}\n" for key in sorted(keys))


class Dotenv:
    """One .env file on this host."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, str] | None:
        """Return the environment, or None if the file is not there or cannot be understood."""
        try:
            return parse(self.path.read_bytes().decode("utf-8", "surrogateescape"))
        except (FileNotFoundError, NotADirectoryError, LmsError):
            return None

    def has(self, mode: int, user: str | None, group: str | None) -> bool:
        """Say whether mode, user and group are right, and the path is no link. Nothing belongs to a user who does not exist yet."""
        try:
            found = self.path.lstat()
            owner = Owner.of(user, group)
        except (FileNotFoundError, NotADirectoryError, LmsError):
            return False
        expected = (mode, found.st_uid if owner.uid == -1 else owner.uid, found.st_gid if owner.gid == -1 else owner.gid)
        return not self.path.is_symlink() and (found.st_mode & 0o7777, found.st_uid, found.st_gid) == expected

    def write(self, texts: Mapping[str, str], mode: int, owner: Owner) -> None:
        """Write the environment, and let it land only if it reads back as it was meant."""
        if not self.path.parent.is_dir():
            raise LmsError(f"{self.path.parent} is no directory, so {self.path.name} cannot be written there.")

        def check(content: bytes) -> None:
            if parse(content.decode("utf-8", "surrogateescape")) != dict(texts):
                raise LmsError(f"{self.path} would not read back as it was meant, and was left as it is.")

        try:
            write_atomically(self.path, render(texts).encode("utf-8", "surrogateescape"), mode, owner, check)
        except OSError as error:
            raise LmsError(f"{self.path} cannot be written: {error.strerror}.") from error
