# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Composer's version constraints, held against what Composer's documentation and its semver library say."""

from __future__ import annotations

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._version_constraint import is_met, parse_version


@pytest.mark.parametrize(
    ("constraint", "met", "missed"),
    [
        ("*", ["0", "8.4.16"], []),
        ("^8.1", ["8.1.0", "8.4.16"], ["8.0.30", "9.0.0"]),
        ("^8.1.5", ["8.1.5", "8.9.9"], ["8.1.4", "9.0.0"]),
        ("^8", ["8.0.0", "8.9.0"], ["7.4.33", "9.0.0"]),
        ("^0.3", ["0.3.0", "0.3.9"], ["0.2.9", "0.4.0"]),
        ("^0.0.3", ["0.0.3"], ["0.0.4", "0.1.0"]),
        ("^0", ["0.9.9"], ["1.0.0"]),
        ("^0.0", ["0.0.9"], ["0.1.0"]),
        ("~8", ["8.0.0", "8.9.0"], ["9.0.0"]),
        ("~8.1", ["8.1.0", "8.9.0"], ["8.0.9", "9.0.0"]),
        ("~8.1.2", ["8.1.2", "8.1.9"], ["8.1.1", "8.2.0"]),
        ("~8.1.2.3", ["8.1.2.3", "8.1.2.9"], ["8.1.2.2", "8.1.3"]),
        (">=8.1", ["8.1.0", "9.0.0"], ["8.0.30"]),
        (">= 8.1", ["8.1.0"], ["8.0.30"]),
        (">8.1", ["8.1.1"], ["8.1.0"]),
        ("<8.5", ["8.4.99"], ["8.5.0"]),
        ("<=8.4", ["8.4.0"], ["8.4.1"]),
        ("=8.4.16", ["8.4.16"], ["8.4.15"]),
        ("==8.4.16", ["8.4.16"], ["8.4.17"]),
        ("8.4.16", ["8.4.16"], ["8.4.17"]),
        ("v8.4.16", ["8.4.16"], ["8.4.17"]),
        ("!=8.4.1", ["8.4.0", "8.4.2"], ["8.4.1"]),
        ("<>8.4.1", ["8.4.2"], ["8.4.1"]),
        ("8.*", ["8.0.0", "8.9.9"], ["7.4.0", "9.0.0"]),
        ("8.1.*", ["8.1.0", "8.1.9"], ["8.0.9", "8.2.0"]),
        ("8.x", ["8.4.0"], ["9.0.0"]),
        ("8.*.*", ["8.4.0"], ["9.0.0"]),
        (">=7.4 <8.3", ["7.4.0", "8.2.9"], ["7.3.9", "8.3.0"]),
        (">=7.4,<8.3", ["8.2.9"], ["8.3.0"]),
        (">=7.4 , <8.3", ["8.2.9"], ["8.3.0"]),
        ("^7.4 || ^8.0", ["7.4.33", "8.4.16"], ["7.3.0", "9.0.0"]),
        ("^7.4|^8.0", ["7.4.33", "8.4.16"], ["7.3.0", "9.0.0"]),
        (">=7.4 <8.0 || >=8.2 <8.5", ["7.4.1", "8.2.0"], ["8.1.9", "8.5.0"]),
        ("8.0 - 8.2", ["8.0.0", "8.2.99"], ["7.4.9", "8.3.0"]),
        ("8.0.0 - 8.2.3", ["8.2.3"], ["8.2.4"]),
        ("8 - 8", ["8.0.0", "8.9.9"], ["9.0.0"]),
        ("8.0 - 8.1 || ^8.4", ["8.1.9", "8.4.0"], ["8.2.0"]),
        ("^6.0@beta", ["6.1.0"], ["5.3.7"]),
        ("*@dev", ["1"], []),
        (">=8.4.0-beta1", ["8.4.0"], ["8.3.9"]),
        (">=8.4.0RC2", ["8.4.0"], ["8.3.9"]),
    ],
)
def test_versions_meet_a_constraint_or_miss_it(constraint: str, met: list[str], missed: list[str]) -> None:
    versions = [*met, *missed]

    assert {version: is_met(constraint, version) for version in versions} == {version: version in met for version in versions}


@pytest.mark.parametrize("constraint", ["eight", "^", ">=", "8.1.", "^8.1 || latest", "=>8.1", "8.1.2.3.4", "dev-main", "> < 8"])
def test_what_is_no_constraint_is_refused(constraint: str) -> None:
    with pytest.raises(LmsError, match="is no version constraint of Composer"):
        is_met(constraint, "8.4.0")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("8.4.16", (8, 4, 16, 0)),
        ("8.1.2-1ubuntu2.22", (8, 1, 2, 0)),
        ("8.5.0RC3", (8, 5, 0, 0)),
        ("8.5.0-dev", (8, 5, 0, 0)),
        ("7.4.33-1+0~20221108.73+debian11", (7, 4, 33, 0)),
        ("20031129", (20031129, 0, 0, 0)),
        ("", None),
        ("$Id$", None),
    ],
)
def test_versions_as_php_tells_them(text: str, version: tuple[int, int, int, int] | None) -> None:
    assert parse_version(text) == version


def test_an_extension_without_a_version_meets_only_what_any_version_meets() -> None:
    assert (is_met("*", ""), is_met("^1.0", "")) == (True, False)
