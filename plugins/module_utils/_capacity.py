# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Capacity of a colour, whatever makes it: the target groups that it serves through, their health, and what a colour with weight keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._alb import is_unattached, read_targets
from ansible_collections.bitflow.lms.plugins.module_utils._alb_targets import Group, find_group, weight_of
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import DRAINING, STATES, Target, TrafficError, UnreadyError
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Pace

# How many events a result tells, the newest of them.
MAX_EVENTS = 10


def capacity_argspec() -> dict[str, dict[str, Any]]:
    """Return the options of the documentation fragment capacity."""
    return {
        "wait": {"type": "bool", "default": True},
        "timeout": {"type": "float", "default": 900},
        "interval": {"type": "float", "default": 5},
        "consecutive": {"type": "int", "default": 3},
        "max_failures": {"type": "int", "default": 3},
    }


@dataclass(frozen=True)
class Settings:
    """How to wait."""

    wait: bool
    pace: Pace
    # How many failures end the wait.
    max_failures: int

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        """Read the options."""
        if options["max_failures"] < 1:
            raise LmsError(f"max_failures is {options['max_failures']}. Give 1 at least.")
        return cls(options["wait"], Pace.of(options), options["max_failures"])


@dataclass(frozen=True)
class Serving:
    """A target group that a colour serves through."""

    group: Group
    # The listeners and rules on which it has weight.
    weight_on: Sequence[str]


# Name of a group to its targets.
Targets = Mapping[str, Sequence[Target]]


def find_serving(api: Api, groups: Iterable[str]) -> list[Serving]:
    """Find target groups by their ARNs, with their weight."""
    found = [find_group(api, group) for group in sorted(set(groups))]
    return [Serving(group, weight_of(api, group)) for group in found]


def targets_of(api: Api, serving: Sequence[Serving]) -> dict[str, list[Target]]:
    """Return the targets of every group as they are now."""
    return {each.group.name: read_targets(api, each.group.arn) for each in serving}


def refuse_to_shrink(what: str, serving: Sequence[Serving], before: int, after: int) -> None:
    """Refuse to take capacity from a colour that gets traffic."""
    weight_on = sorted({route for each in serving for route in each.weight_on})
    if after < before and weight_on:
        raise TrafficError(
            f"{what} has weight on {', '.join(weight_on)}, so it keeps its capacity of {before}, and {after} was asked for. "
            "Move the traffic away first.",
            weight_on=weight_on,
        )


def refuse_unattached(targets: Targets) -> None:
    """Refuse to wait for targets that the load balancer does not look at: they never become healthy."""
    for name, found in sorted(targets.items()):
        if is_unattached([target for target in found if target.state != DRAINING]):
            raise UnreadyError(
                f"{name} is on no route, or its targets are in no zone of the load balancer, so that they are never checked. "
                "Give it the weight 0 on a route first, or set wait to false."
            )


def draining(targets: Targets) -> list[str]:
    """Say which groups have targets that still end their requests."""
    counts = {name: sum(target.state == DRAINING for target in found) for name, found in sorted(targets.items())}
    return [f"{name} has {count} draining targets" for name, count in counts.items() if count]


def groups_result(serving: Sequence[Serving], targets: Targets) -> list[dict[str, Any]]:
    """Return the groups as a module does."""
    return [
        {
            "name": each.group.name,
            "arn": each.group.arn,
            "counts": {state: count for state in STATES if (count := sum(target.state == state for target in targets[each.group.name]))},
            "weight_on": list(each.weight_on),
        }
        for each in serving
    ]


def sentences(*parts: str) -> str:
    """Join sentences to a message."""
    return " ".join(f"{part.strip().rstrip('.')}." for part in parts if part.strip())
