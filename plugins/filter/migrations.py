# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters about migrations: pure functions over plain data."""

from __future__ import annotations

from typing import Any, Callable

from ansible.errors import AnsibleFilterError


def contract_migrations_since(releases: list[dict[str, Any]], target: str) -> list[str]:
    """Return the contract migrations of the releases that are newer than the target, whether they are live or were given up."""
    ids = [release["id"] for release in releases]
    if target not in ids:
        raise AnsibleFilterError(f"Release {target} is not among the releases: {', '.join(ids) or 'there is none'}.")
    newer = releases[: ids.index(target)]
    return sorted({name for release in newer for name in release.get("metadata", {}).get("contract_migrations", [])})


class FilterModule:
    """The filters about migrations."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"contract_migrations_since": contract_migrations_since}
