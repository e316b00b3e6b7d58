# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking at something again and again until it is ready, never too often and never for ever."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

# AWS limits how often an account may ask; who asks more often takes that from others.
LEAST_INTERVAL = 2.0

Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Clock:
    """The time, and how to let it pass."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Pace:
    """For how long to wait, and how often to look."""

    timeout: float = 900
    interval: float = 5
    # How many looks in a row have to be good.
    consecutive: int = 1

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Pace:
        """Read the options."""
        pace = cls(options["timeout"], options["interval"], options.get("consecutive", 1))
        for name, least in (("timeout", 0), ("interval", LEAST_INTERVAL), ("consecutive", 1)):
            if getattr(pace, name) < least:
                raise LmsError(f"{name} is {getattr(pace, name):g}. Give {least:g} at least.")
        return pace


def wait_for(look: Callable[[], Seen], is_ready: Callable[[Seen], bool], pace: Pace, clock: Clock) -> Seen:
    """Look until it was ready some times in a row, or the time is over, and return what was seen last.

    A look raises what waiting cannot mend. Looks that were good may be completed although the time is over.
    """
    deadline = clock.now() + pace.timeout
    good = 0
    while True:
        seen = look()
        good = good + 1 if is_ready(seen) else 0
        if good >= pace.consecutive or (not good and clock.now() + pace.interval > deadline):
            return seen
        clock.sleep(pace.interval)
