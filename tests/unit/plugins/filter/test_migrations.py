# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which migrations keep a release from being gone back to."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.bitflow.lms.plugins.filter.migrations import FilterModule, contract_migrations_since


def release(number: int, *contract: str, **fields: Any) -> dict[str, Any]:
    return {"id": f"r{number}", "metadata": {"contract_migrations": list(contract)}, **fields}


RELEASES = [release(4, "6_drop", state="failed"), {"id": "r3", "metadata": {}}, release(2, "5_rename", "4_drop"), release(1, "1_drop")]


@pytest.mark.parametrize(
    ("target", "names"), [("r4", []), ("r3", ["6_drop"]), ("r2", ["6_drop"]), ("r1", ["4_drop", "5_rename", "6_drop"])]
)
def test_contract_migrations_of_newer_releases_are_in_the_way(target: str, names: list[str]) -> None:
    assert contract_migrations_since(RELEASES, target) == names


def test_release_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AnsibleFilterError, match=r"Release r9 is not among the releases: r4, r3, r2, r1\."):
        contract_migrations_since(RELEASES, "r9")


def test_filters_by_name() -> None:
    assert FilterModule().filters() == {"contract_migrations_since": contract_migrations_since}
