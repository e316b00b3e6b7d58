# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting: how often is looked, and when it ends."""

from __future__ import annotations

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock, Pace, wait_for


class Time:
    """A time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.pauses.append(seconds)
        self.passed += seconds

    def clock(self) -> Clock:
        """Return it as a clock."""
        return Clock(lambda: self.passed, self.sleep)


@pytest.mark.parametrize(
    ("looks", "consecutive", "timeout", "pauses", "last"),
    [
        # The first good look ends it, where one is enough.
        ([True], 1, 60, 0, True),
        ([False, False, True], 1, 60, 2, True),
        # Looks have to be good in a row.
        ([True, False, True, True], 2, 60, 3, True),
        # The time is over.
        ([False] * 9, 1, 12, 2, False),
        ([False], 1, 0, 0, False),
        # Looks that were good may be completed although the time is over.
        ([False, False, True, True, True], 3, 12, 4, True),
        ([False, False, True, False], 3, 12, 3, False),
    ],
)
def test_it_ends_with_enough_good_looks_or_with_the_time(
    looks: list[bool], consecutive: int, timeout: float, pauses: int, last: bool
) -> None:
    time, left = Time(), list(looks)

    seen = wait_for(lambda: left.pop(0), lambda look: look, Pace(timeout, 5, consecutive), time.clock())

    assert (seen, time.pauses) == (last, [5] * pauses)


def test_what_a_look_raises_ends_it() -> None:
    def look() -> bool:
        raise LmsError("no")

    with pytest.raises(LmsError, match="no"):
        wait_for(look, lambda _look: True, Pace(), Time().clock())


def test_a_pause_that_takes_from_others_is_refused() -> None:
    assert Pace.of({"timeout": 10, "interval": 2}) == Pace(10, 2, 1)
    with pytest.raises(LmsError, match=r"interval is 1\.9\. Give 2 at least\."):
        Pace.of({"timeout": 10, "interval": 1.9})
