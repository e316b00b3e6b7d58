# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a repository comes to: lists, the newest ones, ages and sums, and what filters leave."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import (
    Catalogue,
    canonical,
    hold_key,
    read_catalogue,
    seal,
    time_of,
    verification_key,
)
from ansible_collections.bitflow.lms.plugins.module_utils._backup_directory import DirectoryStore
from ansible_collections.bitflow.lms.plugins.module_utils._backup_info import STATES, overview
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Partial
from ansible_collections.bitflow.lms.plugins.modules import backup_info

NOW = datetime(2026, 11, 23, 10, 0, 0, tzinfo=timezone.utc)
GOOD = "20261120T100000Z-00000001"
VERIFIED = "20261119T100000Z-00000002"
CORRUPT = "20261121T100000Z-00000003"
SUSPICIOUS = "20261122T100000Z-00000004"


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    """Return a repository with a database in all states, a set of files, and another environment."""
    made = DirectoryStore(tmp_path)
    for path, suspicious in {
        f"prod/database/lms/{VERIFIED}": False,
        f"prod/database/lms/{GOOD}": False,
        f"prod/database/lms/{CORRUPT}": False,
        f"prod/database/lms/{SUSPICIOUS}": True,
        f"prod/files/uploads/{GOOD}": False,
        f"staging/database/lms/{GOOD}": False,
    }.items():
        draft = made.draft(path)
        tables = [{"rows": 40}, {"rows": 2}]
        draft.publish(seal({"objects": [], "tables": tables, "suspicious": suspicious, "raw_size": 900, "duration_s": 1.5}))
    looks = [(VERIFIED, "restore", True, []), (CORRUPT, "checksum", False, ["data.dump has another sum."])]
    for identity, level, ok, mismatches in looks:
        key = verification_key(f"prod/database/lms/{identity}", time_of(identity), level, lambda _size: "0a1b2c3d")
        made.create(key, canonical({"ok": ok, "mismatches": mismatches}))
    made.create(hold_key(f"prod/database/lms/{VERIFIED}", 1), canonical({"reason": "audit", "until": "2027-01-01T00:00:00Z"}))
    made.create(hold_key(f"prod/database/lms/{GOOD}", 1), canonical({"reason": "over", "until": "2026-11-21T00:00:00Z"}))
    return made


def run(store: DirectoryStore, **wanted: Any) -> dict[str, Any]:
    """Run the module's own part."""
    return backup_info.run(store, {"environment": None, "kind": None, "name": None, "states": list(STATES), **wanted}, NOW)


def test_each_backup_is_listed_with_what_is_known_of_it(store: DirectoryStore) -> None:
    result = run(store, environment="prod", kind="database", name="lms")

    sizes = [backup.size for backup in read_catalogue(store, "prod", "database", "lms").backups]
    shared = {"environment": "prod", "kind": "database", "name": "lms", "raw_size": 900, "duration": 1.5, "rows": 42}
    released = {"verified": None, "held": False, "hold_reason": None, "hold_until": None, "labels": {}, "fault": ""}
    assert result["backups"] == [
        {**shared, **released, **more, "path": f"prod/database/lms/{more['id']}", "size": size}
        for size, more in zip(
            sizes,
            [
                {
                    "id": VERIFIED,
                    "state": "verified",
                    "time": "2026-11-19T10:00:00Z",
                    "verified": "2026-11-19T10:00:00Z",
                    "age": 4 * 86400,
                    "held": True,
                    "hold_reason": "audit",
                    "hold_until": "2027-01-01T00:00:00Z",
                },
                {"id": GOOD, "state": "complete", "time": "2026-11-20T10:00:00Z", "age": 3 * 86400},
                {
                    "id": CORRUPT,
                    "state": "corrupt",
                    "time": "2026-11-21T10:00:00Z",
                    "age": 2 * 86400,
                    "fault": "data.dump has another sum.",
                },
                {"id": SUSPICIOUS, "state": "suspicious", "time": "2026-11-22T10:00:00Z", "age": 86400},
            ],
        )
    ]
    assert result["changed"] is False


def test_a_name_has_its_newest_backups_and_their_ages(store: DirectoryStore) -> None:
    result = run(store, environment="prod", kind="database", name="lms")

    listed = {backup["id"]: backup for backup in result["backups"]}
    assert result["names"] == [
        {
            "environment": "prod",
            "kind": "database",
            "name": "lms",
            "newest_good": listed[GOOD],
            "newest_verified": listed[VERIFIED],
            "age": 3 * 86400,
            "verified_age": 4 * 86400,
            "good": 2,
            "backups": 4,
            "partials": 0,
            "size": sum(backup["size"] for backup in listed.values()),
        }
    ]
    assert {key: number for key, number in result["totals"].items() if key != "size"} == {
        "backups": 4,
        "complete": 1,
        "verified": 1,
        "suspicious": 1,
        "corrupt": 1,
        "partials": 0,
    }


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({}, ["prod/database/lms", "prod/files/uploads", "staging/database/lms"]),
        ({"environment": "prod"}, ["prod/database/lms", "prod/files/uploads"]),
        ({"kind": "database"}, ["prod/database/lms", "staging/database/lms"]),
        ({"name": "uploads"}, ["prod/files/uploads"]),
        ({"environment": "staging", "name": "lms"}, ["staging/database/lms"]),
        ({"environment": "prod", "kind": "files"}, ["prod/files/uploads"]),
        ({"environment": "prod", "kind": "files", "name": "avatars"}, ["prod/files/avatars"]),
    ],
)
def test_filters_leave_what_is_asked_for(store: DirectoryStore, wanted: dict[str, str], names: list[str]) -> None:
    found = run(store, **wanted)["names"]

    assert ["/".join(row[key] for key in ("environment", "kind", "name")) for row in found] == names


def test_states_only_narrow_the_list(store: DirectoryStore) -> None:
    everything, corrupt = run(store), run(store, states=["corrupt"])

    assert [backup["id"] for backup in corrupt["backups"]] == [CORRUPT]
    assert {**corrupt, "backups": []} == {**everything, "backups": []}


def test_a_name_without_backups_has_no_ages(tmp_path: Path) -> None:
    assert run(DirectoryStore(tmp_path), environment="prod", kind="database", name="lms") == {
        "changed": False,
        "backups": [],
        "names": [
            {
                "environment": "prod",
                "kind": "database",
                "name": "lms",
                "newest_good": None,
                "newest_verified": None,
                "age": None,
                "verified_age": None,
                "good": 0,
                "backups": 0,
                "partials": 0,
                "size": 0,
            }
        ],
        "partials": [],
        "totals": {**dict.fromkeys(("backups", *STATES, "partials", "size"), 0)},
    }


def test_unfinished_backups_are_told_apart_from_backups() -> None:
    partial = Partial(f"prod/database/lms/{GOOD}", NOW.timestamp() - 90.5, 7, active=True)

    result = overview(Catalogue((), (partial,)), NOW, wanted="prod/database/lms")

    assert result["partials"] == [
        {"path": f"prod/database/lms/{GOOD}", "started": "2026-11-23T09:58:29Z", "age": 90, "size": 7, "active": True}
    ]
    assert (result["names"][0]["partials"], result["totals"]["partials"], result["totals"]["size"]) == (1, 1, 7)
