# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Composer's version constraints, as far as they are written about PHP and its extensions. Plain data in, plain data out.

A constraint becomes ranges: it is met when a version lies in one of them. Stabilities (@dev, -beta1) are read and make no difference,
since a host has one PHP, which was released or counts as the release that it leads to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

# A version is four numbers, as in Composer.
Version = tuple[int, int, int, int]

_VERSION = re.compile(
    r"v?(?P<numbers>\d+(?:\.\d+){0,3})(?:[-._+]?(?:stable|alpha|beta|b|a|RC|patch|pl|p|dev)(?:[.-]?\d+)*)?(?:[-+~][0-9A-Za-z.+~-]*)?",
    re.IGNORECASE,
)
_STABILITY = re.compile(r"@(?:stable|RC|beta|alpha|dev)\b", re.IGNORECASE)
_OR = re.compile(r"\s*\|\|?\s*")
_AND = re.compile(r"\s*,\s*|\s+")
_SPACE_AFTER_OPERATOR = re.compile(r"(?<=[\^~<>=!])\s+(?=[v\d])", re.IGNORECASE)
_HYPHEN = re.compile(r"(?P<low>\S+)\s+-\s+(?P<high>\S+)")
_WILDCARD = re.compile(r"(?:==?)?v?(?P<numbers>\d+(?:\.\d+){0,2})(?:\.[*xX])+")
_OPERATOR = re.compile(r"(?P<operator>>=|<=|==|!=|<>|[\^~<>=])?(?P<version>.+)")


@dataclass(frozen=True)
class Range:
    """The versions from the first one on to just before the last one, without some."""

    first: Version = (0, 0, 0, 0)
    end: Version | None = None
    without: Version | None = None

    def holds(self, version: Version) -> bool:
        """Say whether a version lies in the range."""
        return self.first <= version and (self.end is None or version < self.end) and version != self.without


def parse_version(text: str) -> Version | None:
    """Read the version of PHP or of an extension; None if it is none."""
    match = _VERSION.fullmatch(text.strip())
    return _padded(_numbers(match["numbers"])) if match else None


def is_met(constraint: str, version: str) -> bool:
    """Say whether a version meets a constraint. An extension that tells no version meets only those that any version meets."""
    found = parse_version(version) or (0, 0, 0, 0)
    return any(all(part.holds(found) for part in parts) for parts in parse_constraint(constraint))


def parse_constraint(text: str) -> list[list[Range]]:
    """Return the alternatives of a constraint; in each of them all ranges have to hold the version."""
    try:
        return [_alternative(part) for part in _OR.split(text.strip())]
    except ValueError as error:
        raise LmsError(f"{text!r} is no version constraint of Composer, such as ^8.2 or >=8.1 <8.5.") from error


def _alternative(text: str) -> list[Range]:
    """Return the ranges of one alternative."""
    text = _STABILITY.sub("", text).strip()
    if not text or text in ("*", "x", "X"):
        return [Range()]
    hyphen = _HYPHEN.fullmatch(text)
    if hyphen:
        return [_hyphen_range(hyphen["low"], hyphen["high"])]
    return [_simple_range(part) for part in _AND.split(_SPACE_AFTER_OPERATOR.sub("", text))]


def _hyphen_range(low: str, high: str) -> Range:
    """Return the range "low - high": a high end that is cut short includes everything that begins with it."""
    first, last = _read(low), _read(high)
    return Range(_padded(first), _after(last, min(len(last), 3)) if len(last) < 3 else _next(_padded(last)))


def _simple_range(text: str) -> Range:
    """Return the range of one operator with its version, or of a version with a wildcard."""
    if text in ("*", "x", "X"):
        return Range()
    wildcard = _WILDCARD.fullmatch(text)
    if wildcard:
        numbers = _numbers(wildcard["numbers"])
        return Range(_padded(numbers), _after(numbers, len(numbers)))
    match = _OPERATOR.fullmatch(text)
    if match is None:
        raise ValueError(text)
    numbers = _read(match["version"])
    version = _padded(numbers)
    operator = match["operator"] or "="
    if operator == "^":
        return Range(version, _after(numbers, _caret_length(numbers)))
    if operator == "~":
        return Range(version, _after(numbers, max(1, len(numbers) - 1)))
    return {
        "=": Range(version, _next(version)),
        "==": Range(version, _next(version)),
        "!=": Range(without=version),
        "<>": Range(without=version),
        ">": Range(_next(version)),
        ">=": Range(version),
        "<": Range(end=version),
        "<=": Range(end=_next(version)),
    }[operator]


def _caret_length(numbers: tuple[int, ...]) -> int:
    """Return how many numbers must stay: up to the first one that is not zero."""
    for position, number in enumerate(numbers[:3], start=1):
        if number:
            return position
    return min(len(numbers), 3)


def _read(text: str) -> tuple[int, ...]:
    """Return the numbers of a version."""
    match = _VERSION.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return _numbers(match["numbers"])


def _numbers(text: str) -> tuple[int, ...]:
    """Return numbers between dots."""
    return tuple(int(number) for number in text.split("."))


def _padded(numbers: tuple[int, ...]) -> Version:
    """Return four numbers."""
    first, second, third, fourth = (*numbers, 0, 0, 0, 0)[:4]
    return first, second, third, fourth


def _after(numbers: tuple[int, ...], length: int) -> Version:
    """Return the first version that no longer begins with so many of the numbers."""
    kept = numbers[:length]
    return _padded((*kept[:-1], kept[-1] + 1))


def _next(version: Version) -> Version:
    """Return the version that follows."""
    return version[0], version[1], version[2], version[3] + 1
