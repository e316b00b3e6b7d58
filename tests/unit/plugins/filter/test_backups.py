# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reports about backups: what a person reads in the morning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.filter import backups
from ansible_collections.bitflow.lms.plugins.filter.backups import (
    backup_outcomes,
    backup_report,
    backup_sets,
    drill_report,
    restore_report,
    size,
)

SETS = backup_sets("data", "lms", ["app1"], ["uploads"])
DATABASE, UPLOADS = SETS
DUMP = {
    "id": "20261123T020000Z-6f3a91c2",
    "kind": "database",
    "name": "lms",
    "state": "complete",
    "size": 418381824,
    "raw_size": 1377894400,
    "rows": 5123000,
    "duration": 9.7,
    "time": "2026-11-23T02:00:00Z",
}
FILES = {
    "id": "20261123T020100Z-0a1b2c3d",
    "kind": "files",
    "name": "uploads-app1",
    "state": "complete",
    "size": 1434,
    "raw_size": 734003200,
    "rows": None,
    "duration": 3.1,
}
MADE = {"__lms_set": DATABASE, "changed": True, "backup": DUMP, "plan": {}}
STORED = {"__lms_set": UPLOADS, "changed": True, "backup": FILES, "plan": {}}
VARIABLES = ["database", "files"]
INFOS = {"data": {"names": [{"kind": "database", "name": "lms", "verified_age": 3 * 86400 + 5}]}}


def host(name: str, **results: Any) -> dict[str, Any]:
    """Return the variables of a host on which tasks looped over its sets."""
    return {"inventory_hostname": name, **{variable: {"results": found} for variable, found in results.items()}}


def outcomes(*hosts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what became of the two sets."""
    return backup_outcomes(SETS, hosts, VARIABLES)


def test_every_host_has_files_of_its_own() -> None:
    assert backup_sets("data", "lms", ["app1", "app2"], ["uploads", "environment"]) == [
        {"host": "data", "kind": "database", "name": "lms"},
        {"host": "app1", "kind": "files", "name": "uploads-app1"},
        {"host": "app1", "kind": "files", "name": "environment-app1"},
        {"host": "app2", "kind": "files", "name": "uploads-app2"},
        {"host": "app2", "kind": "files", "name": "environment-app2"},
    ]


def test_what_was_made_is_found_on_its_host() -> None:
    assert outcomes(host("data", database=[MADE]), host("app1", files=[STORED])) == [
        {**DATABASE, "ok": True, "reason": "", "result": MADE},
        {**UPLOADS, "ok": True, "reason": "", "result": STORED},
    ]


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"failed": True, "msg": "The disk is full."}, "The disk is full"),
        ({"unreachable": True, "msg": "ssh"}, "the host cannot be reached, or was given up before this"),
        ({"skipped": True, "skip_reason": "Conditional result was False"}, "Conditional result was False"),
    ],
    ids=["failed", "unreachable", "skipped"],
)
def test_what_was_not_made_has_its_reason(result: dict[str, Any], reason: str) -> None:
    found = outcomes(host("data", database=[{"__lms_set": DATABASE, **result}]), host("app1", files=[STORED]))

    assert [(one["ok"], one["reason"]) for one in found] == [(False, reason), (True, "")]


@pytest.mark.parametrize("hosts", [[], [host("data", database=[MADE]), host("app1")]], ids=["no host", "no result"])
def test_what_nobody_speaks_of_was_not_made(hosts: list[dict[str, Any]]) -> None:
    assert outcomes(*hosts)[1]["ok"] is False


def test_a_good_run_is_told_on_one_screen() -> None:
    pruned = [
        {
            "deleted": [{**DUMP, "id": "20261001T020000Z-11111111", "reason": "no rule keeps it"}],
            "freed": 2_000_000,
            "left_alone": [{"path": "prod/database/lms/20260901T020000Z-22222222", "reason": "held: audit"}],
            "aborted_uploads": [{"path": "x"}],
        },
        # Of a task that was skipped.
        {"skipped": True},
    ]
    data = {
        "journey": "backup",
        "environment": "prod",
        "seconds": 75,
        "pruned": pruned,
        "infos": INFOS,
        "warnings": ["app2: no."],
    }

    assert backup_report(outcomes(host("data", database=[MADE]), host("app1", files=[STORED])), data) == [
        "prod: 2 sets backed up.",
        "database lms on data: 20261123T020000Z-6f3a91c2, 418.4 MB of 1.4 GB, 5,123,000 rows, in 9.7 s.",
        "files uploads-app1 on app1: 20261123T020100Z-0a1b2c3d, 734.0 MB, in 3.1 s.",
        "Pruned: 1 backup, 2.0 MB: database lms 20261001T020000Z-11111111 (no rule keeps it).",
        "Removed what 1 interrupted backup had left.",
        "Left alone: prod/database/lms/20260901T020000Z-22222222: held: audit.",
        "Newest verified: lms 3 days old.",
        "Time: 1 min 15 s.",
        "Warning: app2: no.",
    ]


def test_a_run_that_failed_names_what_is_missing_and_what_to_do() -> None:
    found = outcomes(host("data", database=[{"__lms_set": DATABASE, "failed": True, "msg": "No room."}]), host("app1", files=[STORED]))

    assert backup_report(found, {"journey": "backup", "environment": "prod"}) == [
        "prod: 1 of 2 sets was not backed up.",
        "Failed: database lms on data: No room.",
        "files uploads-app1 on app1: 20261123T020100Z-0a1b2c3d, 734.0 MB, in 3.1 s.",
        "Next: mend the cause and run it again. Nothing was pruned, and nothing that is half done looks like a backup.",
    ]


def test_backups_that_are_made_do_not_hide_a_failure_after_them() -> None:
    found = outcomes(host("data", database=[MADE]), host("app1", files=[STORED]))
    lines = backup_report(found, {"journey": "backup", "pruned": [{"blocked": "The newest is old."}], "failure": "Prune: old."})

    assert (lines[0], lines[-2:]) == (
        "The backups are made, and then something failed.",
        ["Nothing is pruned: The newest is old.", "Why: Prune: old."],
    )


def test_a_suspicious_backup_is_not_told_as_a_good_one() -> None:
    made = {**MADE, "backup": {**DUMP, "state": "suspicious"}}

    assert " It is suspicious: " in backup_report(outcomes(host("data", database=[made])), {"journey": "backup"})[1]


def test_a_plan_says_what_would_be() -> None:
    planned = [{"__lms_set": one, "backup": None, "plan": {"estimated_size": 10900, "skipped_reason": ""}} for one in SETS]

    assert backup_report(outcomes(host("data", database=planned[:1]), host("app1", files=planned[1:])), {"check_mode": True}) == [
        "2 sets would be backed up.",
        "database lms on data: not made yet, about 10.9 kB.",
        "files uploads-app1 on app1: not made yet, about 10.9 kB.",
        "Nothing was changed.",
    ]


def look(**found: Any) -> dict[str, Any]:
    """Return one look at the dump."""
    return {"backup": DUMP, "level": "restore", "tables": 42, "rows": 5123000, "compared": True, "rto_seconds": 38.7, **found}


def test_a_verification_says_what_was_restored_and_how_soon() -> None:
    results = [{"__lms_set": DATABASE, "backup": DUMP, "verifications": [look()]}]
    files = [{"__lms_set": UPLOADS, "backup": FILES, "verifications": [{"backup": FILES, "level": "decode", "duration": 2.5}]}]

    assert backup_report(outcomes(host("data", database=results), host("app1", files=files)), {"journey": "verification"}) == [
        "All is well with 2 sets.",
        "database lms on data: 20261123T020000Z-6f3a91c2 was restored: 42 tables, 5,123,000 rows, equal; the data was back within 39 s.",
        "files uploads-app1 on app1: 20261123T020100Z-0a1b2c3d passed level decode in 2.5 s.",
    ]


def test_a_backup_that_differs_is_told_as_corrupt() -> None:
    differing = {"__lms_set": DATABASE, "failed": True, "msg": "students has 999 rows, not 1000.", "mismatches": ["students"]}
    lines = backup_report(outcomes(host("data", database=[differing]), host("app1", files=[STORED])), {"journey": "verification"})

    assert lines[:2] == ["1 of 2 sets could not be proven.", "Failed: database lms on data: students has 999 rows, not 1000."]
    assert lines[-1] == "Next: what differs is corrupt from now on, and never counted again. Find out why, and make a new backup at once."


RESTORED = {
    "changed": True,
    "backup": DUMP,
    "database": "lms",
    "previous": "lms__before_20261123T111500Z",
    "safety_backup": "20261123T111432Z-91c26f3a",
    "compared": True,
    "tables": 42,
    "rows": 5123000,
    "rto_seconds": 41.3,
    "away_seconds": 0.036,
    "plan": ["Restore."],
}


@pytest.mark.parametrize(
    ("result", "check_mode", "lines"),
    [
        (
            RESTORED,
            False,
            [
                "data: the database lms holds 20261123T020000Z-6f3a91c2 of 2026-11-23T02:00:00Z: 42 tables, 5,123,000 rows, "
                "equal to the backup.",
                "Back after 41 s, away for 36 ms.",
                "The former one is kept as lms__before_20261123T111500Z. Drop it when nobody needs it.",
                "What it held before is backed up as 20261123T111432Z-91c26f3a.",
            ],
        ),
        (RESTORED, True, ["data: Restore."]),
        ({"failed": True, "msg": "No key."}, False, ["data: not restored. No key."]),
        ({"skipped": True}, False, ["Nothing was restored."]),
        (
            {"backup": FILES, "plan": {"counts": {"files": 3, "bytes": 300000}, "destination": "/srv/x", "existing": 2}},
            False,
            [
                "data: 3 files, 300.0 kB, are in /srv/x, from uploads-app1 20261123T020100Z-0a1b2c3d; "
                "2 paths were there and stay as they are."
            ],
        ),
    ],
    ids=["swap", "plan", "failed", "skipped", "files"],
)
def test_a_restore_says_what_is_where(result: dict[str, Any], check_mode: bool, lines: list[str]) -> None:
    assert restore_report([{"inventory_hostname": "data", "__lms_restored": result}], check_mode) == lines


def test_a_drill_says_what_is_lost_and_how_long_it_took() -> None:
    data = {
        "environment": "prod",
        "hosts": ["app1"],
        "version": "abc1234",
        "seconds": 312,
        "steps": [{"name": "database", "seconds": 41.0}],
        "lost": 3600,
        "lost_at": "2026-11-23T03:00:00Z",
    }
    files = [{"__lms_restored_files": {"plan": {"counts": {"files": 3, "bytes": 300000}}}}, {"__lms_restored_files": {"skipped": True}}]

    assert drill_report(RESTORED, files, data) == [
        "prod: the LMS is back on app1.",
        "Database: 20261123T020000Z-6f3a91c2 of 2026-11-23T02:00:00Z, 5,123,000 rows.",
        "Files: 3, 300.0 kB.",
        "Release: abc1234.",
        "Lost: what was written in the 60 min 0 s between the backup and 2026-11-23T03:00:00Z.",
        "Time to recover: 5 min 12 s (database 41 s).",
    ]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (1_377_894_400, "1.4 GB"), (2e15, "2000.0 TB")]
)
def test_sizes_are_in_the_unit_that_suits_them(count: float, text: str) -> None:
    assert size(count) == text


def test_every_filter_has_its_page() -> None:
    pages = {path.stem for path in Path(backups.__file__).parent.glob("*.yml")}

    assert set(backups.FilterModule().filters()) - pages == set()
    assert len(backups.FilterModule().filters()) == 5
