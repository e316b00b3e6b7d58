# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read from pgBackRest's words, captured from versions 2.45 and 2.55."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._pgbackrest_info import (
    HELP,
    Gap,
    Segment,
    gaps,
    metrics,
    position_of,
    read_info,
    read_listing,
    read_verification,
    segment_name,
    segment_size,
)

SIZE = 16 * 1024 * 1024
VALID = """stanza: main
status: ok
  archiveId: 17-1, total WAL checked: 5, total valid WAL: 5
    missing: 0, checksum invalid: 0, size invalid: 0, other: 0
  backup: 20261128-000758F, status: valid, total files checked: 963, total valid files: 963
    missing: 0, checksum invalid: 0, size invalid: 0, other: 0
"""


def backup(label: str = "20261128-000758F", kind: str = "full", stop: int = 100, **values: Any) -> dict[str, Any]:
    """Return a backup as pgBackRest tells it."""
    return {
        "archive": {"start": "000000010000000000000002", "stop": "000000010000000000000003"},
        "database": {"id": 1, "repo-key": 1},
        "error": False,
        "info": {"delta": 23382430, "repository": {"delta": 2799576, "delta-map": 24712}, "size": 23382430},
        "label": label,
        "lsn": {"start": "0/2000028", "stop": "0/3000050"},
        "timestamp": {"start": stop - 1, "stop": stop},
        "type": kind,
        **values,
    }


def info(*backups: dict[str, Any], code: int = 0, message: str = "ok") -> str:
    """Return what pgbackrest info prints."""
    stanza = {
        "archive": [],
        "backup": list(backups),
        "cipher": "aes-256-cbc",
        "db": [{"id": 1, "repo-key": 1, "version": "17"}],
        "name": "main",
        "repo": [{"cipher": "aes-256-cbc", "key": 1, "status": {"code": code, "message": message}}],
        "status": {"code": code, "lock": {"backup": {"held": False}}, "message": message},
    }
    return json.dumps([stanza])


def numbered(*positions: int, timeline: int = 1) -> list[Segment]:
    """Return segments, each as old as its position."""
    return [Segment(timeline, position, position) for position in positions]


@pytest.mark.parametrize(
    ("code", "message", "status"),
    [
        (0, "ok", "ok"),
        (1, "missing stanza path", "missing"),
        (2, "no valid backups", "empty"),
        (3, "missing stanza data", "missing"),
        (99, "[FormatError] unable to load info file\nFormatError: key/value found outside of section at line 1: \x01\ufffd", "passphrase"),
        (99, "[CryptoError] unable to flush", "passphrase"),
        (99, "[HostConnectError] unable to get address", "error"),
    ],
)
def test_the_status_of_a_repository_is_told_apart(code: int, message: str, status: str) -> None:
    assert read_info(info(code=code, message=message), "main").status == status


def test_bytes_of_a_wrong_passphrase_are_no_error_of_ours() -> None:
    text = info(code=99, message="[FormatError] line 1").replace("line 1", "line 1: \x08\x07\ufffd")

    assert read_info(text, "main").message == "It is encrypted with another passphrase, or not at all."


def test_a_stanza_that_is_not_listed_is_missing() -> None:
    assert read_info("[]", "main").status == "missing"


def test_the_strongest_and_the_newest_backup_are_found() -> None:
    stanza = read_info(info(backup(), backup("20261128-000758F_20261128-000759I", "incr", 200)), "main")

    newest, full = stanza.newest(), stanza.newest("full")
    assert newest and full
    assert (newest.label, full.label) == ("20261128-000758F_20261128-000759I", "20261128-000758F")
    assert stanza.newest("diff") is None


@pytest.mark.parametrize(
    ("lsn", "name", "size"),
    [
        ("0/2000028", "000000010000000000000002", SIZE),
        ("0/8000028", "000000010000000000000002", 64 * 1024 * 1024),
        ("3/40000028", "000000010000000300000001", 1024 * 1024 * 1024),
        ("0/200028", "000000010000000000000002", 1024 * 1024),
    ],
)
def test_the_size_of_a_segment_follows_from_a_backups_place(lsn: str, name: str, size: int) -> None:
    assert segment_size([(lsn, name)]) == size
    assert segment_name(*position_of(name, size), size) == name


def test_only_segments_of_the_clusters_version_are_read() -> None:
    checksum = "b32e33173564c158b2456ad735766a1a1be01018"
    listing = {
        "17-1": {"type": "path"},
        f"17-1/0000000100000000/000000010000000000000001-{checksum}.zst": {"type": "file", "time": 7},
        "17-1/0000000100000000/000000010000000000000002.00000028.backup": {"type": "file", "time": 8},
        f"17-1/0000000100000000/000000010000000000000003.partial-{checksum}.zst": {"type": "file", "time": 8},
        f"15-1/0000000100000000/000000010000000000000009-{checksum}.gz": {"type": "file", "time": 1},
        "17-1/00000002.history": {"type": "file", "time": 9},
        "archive.info": {"type": "file", "time": 9},
    }

    assert read_listing(json.dumps(listing), "17", SIZE) == [Segment(1, 1, 7)]


@pytest.mark.parametrize(
    ("segments", "waiting", "missing"),
    [
        (numbered(2, 3, 4), (), []),
        # Older ones were for older backups.
        (numbered(0, 2, 3), (), []),
        (numbered(2, 3, 6, 7, 9), (), [Gap(1, 4, 5, 3), Gap(1, 8, 8, 7)]),
        # A backup needs what was written while it was made.
        (numbered(2), (), [Gap(1, 3, 3, 2)]),
        ([], (), [Gap(1, 2, 3, 0)]),
        # Still on its way.
        (numbered(2, 3, 5), {(1, 4)}, []),
        # A new timeline begins where the old one was left.
        (numbered(2, 3, 4, 5) + numbered(4, 6, timeline=2), (), [Gap(2, 5, 5, 4)]),
    ],
)
def test_segments_that_are_missing_between_others_are_found(segments: list[Segment], waiting: Any, missing: list[Gap]) -> None:
    made = read_info(info(backup()), "main").backups[0]

    assert gaps(segments, made, SIZE, waiting) == missing


def test_a_verification_is_judged_by_its_words() -> None:
    found = read_verification(VALID)

    assert (found["ok"], found["problems"]) == (True, [])
    assert found["backups"][0]["files"] == 963
    assert found["archives"][0]["segments"] == 5


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            VALID.replace("status: ok", "status: error")
            .replace("status: valid", "status: invalid")
            .replace("checksum invalid: 0", "checksum invalid: 1"),
            [
                "backup 20261128-000758F is invalid (checksum invalid: 1)",
                "archive 17-1 has bad segments (checksum invalid: 1)",
            ],
        ),
        (
            "stanza: main\nstatus: error\n  No usable backup.info file\n  No usable archive.info file\n",
            ["No usable backup.info file", "No usable archive.info file"],
        ),
        ("stanza: main\nstatus: ok\n    no archives or backups exist in the repo\n", ["no archives or backups exist in the repo"]),
        ("", ["there is no backup"]),
        (VALID.replace("status: ok", "status: error"), ["pgBackRest calls it an error and does not say why"]),
    ],
)
def test_a_verification_that_found_something_says_what(text: str, problems: list[str]) -> None:
    found = read_verification(text)

    assert (found["ok"], found["problems"]) == (False, problems)


def test_the_figures_are_those_of_the_help() -> None:
    stanza = read_info(info(backup()), "main")

    told = metrics(stanza, (2, 5.5), {"ok": True, "verified": 90}, 1000)

    samples = [line for line in told.splitlines() if not line.startswith("#")]
    assert samples[:3] == [
        'lms_pgbackrest_report_timestamp_seconds{stanza="main"} 1000',
        'lms_pgbackrest_repository_ok{repository="1",stanza="main"} 1',
        'lms_pgbackrest_last_backup_timestamp_seconds{stanza="main",type="full"} 100',
    ]
    assert {line.partition("{")[0] for line in samples} <= set(HELP)
    assert 'lms_pgbackrest_wal_waiting_seconds{stanza="main"} 5' in samples


def test_a_repository_that_cannot_be_read_is_not_told_as_empty() -> None:
    told = metrics(read_info(info(code=99, message="[CryptoError]"), "main"), (0, 0), {}, 1000)

    names = {line.partition("{")[0] for line in told.splitlines() if not line.startswith("#")}
    assert names == {
        f"lms_pgbackrest_{name}" for name in ("report_timestamp_seconds", "repository_ok", "wal_waiting_segments", "wal_waiting_seconds")
    }
