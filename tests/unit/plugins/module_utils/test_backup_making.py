# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every run that makes a backup does."""

from __future__ import annotations

import os
import signal

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._backup_making import check_room, ended_in_order, sweep_interrupted
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import LockedObjectError, Partial
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError


def test_what_will_not_fit_is_not_begun() -> None:
    with pytest.raises(LmsError, match="/srv has 1000 bytes free, and the backup may need 1300"):
        check_room("/srv", 1000, 1300)
    check_room("/srv", 1300, 1300)
    check_room("s3://bucket", None, 1300)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_end_becomes_a_failure_that_is_told(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    with pytest.raises(LmsError, match=f"The run was ended by {number.name}; nothing half is left"), ended_in_order():
        os.kill(os.getpid(), number)
        signal.pause()

    assert signal.getsignal(number) is before


class Repository:
    """A repository with what interrupted runs left."""

    def __init__(self, *partials: Partial) -> None:
        self.left = list(partials)

    def partials(self, prefix: str = "") -> list[Partial]:
        """Return what is left."""
        return [partial for partial in self.left if partial.path.startswith(prefix)]

    def sweep(self, partial: Partial) -> None:
        """Remove it, unless it is locked."""
        if partial.keys:
            raise LockedObjectError("The bucket's object lock keeps it.")
        self.left.remove(partial)


def test_what_is_dead_is_cleared_away_and_what_stays_is_told() -> None:
    dead, at_work = Partial("prod/files/uploads/1", 0, 1), Partial("prod/files/uploads/2", 0, 1, active=True)
    locked, other = Partial("prod/files/uploads/3", 0, 1, keys=("data",)), Partial("prod/files/other/4", 0, 1)
    repository = Repository(dead, at_work, locked, other)

    swept, warnings = sweep_interrupted(repository, "prod/files/uploads")  # type: ignore[arg-type]

    assert swept == ["prod/files/uploads/1"]
    assert warnings == ["What an interrupted run left at prod/files/uploads/3 stays: The bucket's object lock keeps it."]
    assert repository.left == [at_work, locked, other]
