# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what artisan and php print. Nothing here touches a file or a process."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

VERSION_LINE = re.compile(r"^Laravel Framework (?P<version>\d[\w.+-]*)", re.MULTILINE)
VERSION_CONSTANT = re.compile(r"^\s*(?:public\s+)?const VERSION = '(?P<version>[^']+)';", re.MULTILINE)
VERSION_NUMBER = re.compile(r"^\d+(\.\d+)*$")


@dataclass(frozen=True)
class UnknownCommand:
    """What artisan answers to a command that it does not have."""

    name: str
    similar: tuple[str, ...]


@dataclass(frozen=True)
class StorageLink:
    """A link that storage:link speaks of; the target is None when it was there before."""

    path: str
    target: str | None


@dataclass(frozen=True)
class SyntaxProblem:
    """A file that PHP cannot parse."""

    path: str
    message: str


def split_by_marks(text: str, mark: str) -> list[tuple[int | None, str]]:
    """Return the status and the output of each command between its marks; one that did not come to its end has no status."""
    found = []
    for piece in text.split(f"\n{mark}begin\n")[1:]:
        output, _mark, ending = piece.partition(f"\n{mark}end ")
        status, _newline, rest = ending.partition("\n")
        found.append((int(status) if status else None, output + rest))
    return found


def parse_version(text: str) -> str | None:
    """Return the version in the output of `artisan --version`."""
    match = VERSION_LINE.search(text)
    return match.group("version") if match else None


def parse_version_constant(source: str) -> str | None:
    """Return the version that the framework's Application class declares."""
    match = VERSION_CONSTANT.search(source)
    return match.group("version") if match else None


def version_numbers(text: str, option: str = "version") -> tuple[int, ...]:
    """Return the numbers of a version such as 10.48 for comparison; name the option when it is none."""
    bare = text.lstrip("v").split("-")[0].split("+")[0]
    if not VERSION_NUMBER.match(bare):
        raise LmsError(f"{option} is {text!r}, which is not a version such as 10.48.")
    return tuple(int(part) for part in bare.split("."))


def version_refusal(version: str, minimum: str | None, maximum: str | None) -> str | None:
    """Return why a Laravel version lies outside the gate, or None; a maximum of 10 includes every 10.x."""
    numbers = version_numbers(version)
    if minimum is not None and numbers < version_numbers(minimum, "version_min"):
        return f"Laravel {version} is older than version_min {minimum}."
    if maximum is not None:
        limit = version_numbers(maximum, "version_max")
        if numbers[: len(limit)] > limit:
            return f"Laravel {version} is newer than version_max {maximum}."
    return None


EXCEPTION = re.compile(r"^In \S+ line \d+:\s*\n(?P<body>.*?)(?=^\s*$\n\s*^In \S+ line \d+:|\Z)", re.MULTILINE | re.DOTALL)
ERROR_LINE = re.compile(r"^\s{2,}(?:ERROR|FAIL)\s\s(?P<message>.+?)\s*$", re.MULTILINE)
SQL_TAIL = re.compile(r" \((?:Connection: [\w-]+, (?:[^()]*?, )?)?SQL: .*$", re.DOTALL)
PHP_ERROR = re.compile(r"^(?:PHP )?(?P<message>(?:Fatal|Parse) error:\s+.+?)\s*$", re.MULTILINE)


def error_message(stdout: str, stderr: str) -> str | None:
    """Return the message that a failed artisan command ends with: on one line, without the statement that failed."""
    for text in (stderr, stdout):
        exception = EXCEPTION.search(text)
        if exception:
            lines = [line.strip() for line in exception.group("body").splitlines()]
            return SQL_TAIL.sub("", " ".join(line for line in lines if line)) or None
    for text in (stdout, stderr):
        for pattern in (ERROR_LINE, PHP_ERROR):
            match = pattern.search(text)
            if match:
                return match.group("message").strip()
    plain = [line.strip() for line in stderr.splitlines() if line.strip()]
    return plain[0] if plain else None


UNKNOWN_COMMAND = re.compile(
    r'Command "(?P<command>[^"]+)" is not defined|There are no commands defined in the "(?P<namespace>[^"]+)" namespace'
)
SIMILAR_COMMAND = re.compile(r"^\s+(?:\u21c2\s+)?(?P<name>[a-z][\w-]*(?::[\w:-]+)?)\s*$", re.MULTILINE)
UNKNOWN_OPTION = re.compile(r'The "(?P<option>-[^"]*)" option does not exist')


def parse_unknown_command(text: str) -> UnknownCommand | None:
    """Return the command that artisan does not know, and those that it names instead."""
    match = UNKNOWN_COMMAND.search(text)
    if not match:
        return None
    return UnknownCommand(match.group("command") or match.group("namespace"), tuple(SIMILAR_COMMAND.findall(text[match.end() :])))


def parse_unknown_option(text: str) -> str | None:
    """Return the option that an artisan command does not have."""
    match = UNKNOWN_OPTION.search(text)
    return match.group("option") if match else None


def parse_command_list(text: str) -> dict[str, set[str]]:
    """Return the option names of each command in the output of `artisan list --format=json`."""
    start = text.find("{")
    try:
        listing = json.loads(text[start:]) if start >= 0 else None
        return {
            entry["name"]: {option["name"] for option in dict(entry["definition"]["options"] or {}).values()}
            for entry in (listing or {})["commands"]
        }
    except (ValueError, KeyError, TypeError) as error:
        raise LmsError("artisan list --format=json printed no list of commands.", stdout=text[:2000]) from error


LINK_MESSAGE = re.compile(r"The \[(?P<path>[^\]]+)\] link (?:has been connected to \[(?P<target>[^\]]+)\]|already exists)")


def parse_storage_links(text: str) -> list[StorageLink]:
    """Return the links that storage:link made or found."""
    return [StorageLink(match.group("path"), match.group("target")) for match in LINK_MESSAGE.finditer(text)]


LINT_GOOD = re.compile(r"^No syntax errors detected in (?P<path>.+?)\s*$", re.MULTILINE)
LINT_BAD = re.compile(r"^(?:PHP )?(?P<message>(?:Parse|Fatal) error:\s+.+?) in (?P<path>/.+?) on line (?P<line>\d+)\s*$", re.MULTILINE)
BLADE_SOURCE = re.compile(r"/\*\*PATH (?P<path>.+?) ENDPATH\*\*/")


def parse_lint(stdout: str, stderr: str) -> tuple[set[str], list[SyntaxProblem]]:
    """Return the files that php -l found good, and those that it found broken, without doubles."""
    problems: dict[str, SyntaxProblem] = {}
    for match in LINT_BAD.finditer(stderr + "\n" + stdout):
        message = f"{match.group('message')} on line {match.group('line')}"
        problems.setdefault(match.group("path"), SyntaxProblem(match.group("path"), " ".join(message.split())))
    return set(LINT_GOOD.findall(stdout)), list(problems.values())


def parse_blade_source(compiled: str) -> str | None:
    """Return the template that a compiled view was made from."""
    match = BLADE_SOURCE.search(compiled)
    return match.group("path") if match else None
