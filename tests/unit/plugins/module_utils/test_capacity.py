# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for the capacity of a colour, whatever makes it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._alb_targets import Group
from ansible_collections.bitflow.lms.plugins.module_utils._capacity import (
    Serving,
    draining,
    groups_result,
    refuse_to_shrink,
    refuse_unattached,
    sentences,
)
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import Target, TrafficError, UnreadyError

IGNORED = Target("i-1", 80, "unused", "Target.NotInUse")
LEAVING = Target("i-2", 80, "draining", "Target.DeregistrationInProgress")
SERVES = Target("i-3", 80, "healthy")


def serving(*weight_on: str) -> Serving:
    """Return a group with its weight."""
    return Serving(Group("green", "arn:green", 80, []), weight_on)


@pytest.mark.parametrize(
    ("targets", "refused"),
    [([], False), ([SERVES], False), ([IGNORED, SERVES], False), ([LEAVING], False), ([IGNORED], True), ([IGNORED, LEAVING], True)],
)
def test_targets_that_nobody_checks_are_refused_whatever_leaves_meanwhile(targets: Sequence[Target], refused: bool) -> None:
    if refused:
        with pytest.raises(UnreadyError, match="green is on no route"):
            refuse_unattached({"green": targets})
    else:
        refuse_unattached({"green": targets})


@pytest.mark.parametrize(
    ("before", "after", "weight_on", "refused"), [(3, 2, ["lms:443"], True), (3, 3, ["lms:443"], False), (3, 0, [], False)]
)
def test_only_a_group_with_weight_keeps_its_capacity(before: int, after: int, weight_on: list[str], refused: bool) -> None:
    if refused:
        with pytest.raises(TrafficError) as caught:
            refuse_to_shrink("lms-green", [serving(), serving(*weight_on)], before, after)
        assert caught.value.details == {"weight_on": weight_on}
    else:
        refuse_to_shrink("lms-green", [serving(), serving(*weight_on)], before, after)


def test_groups_are_told_with_the_states_of_their_targets() -> None:
    assert groups_result([serving("lms:443")], {"green": [SERVES, IGNORED]}) == [
        {"name": "green", "arn": "arn:green", "counts": {"healthy": 1, "unused": 1}, "weight_on": ["lms:443"]}
    ]
    assert draining({"green": [SERVES, LEAVING], "blue": [SERVES]}) == ["green has 1 draining targets"]


def test_sentences_end_once() -> None:
    assert sentences("One.", "", "two", " three. ") == "One. two. three."
