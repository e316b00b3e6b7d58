# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pgBackRest, answered for from a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._pgbackrest import (
    Output,
    Pgbackrest,
    back_up,
    create,
    expire,
    explain,
    read_options,
    verify,
    young_enough,
)
from ansible_collections.bitflow.lms.plugins.module_utils._pgbackrest_info import read_info
from ansible_collections.bitflow.lms.plugins.module_utils._pgbackrest_restore import Target, choose, restore, unreachable

from .test_pgbackrest_info import backup, info

NOW = 1000.0
PARAMS = {
    **dict.fromkeys(("target_time", "target_lsn", "target_xid", "target_name", "target_timeline", "set", "path", "process_max")),
    "target_immediate": False,
    "target_inclusive": True,
    "target_action": "promote",
    "delta": False,
    "confirm": "main",
}


class Programs:
    """Answers for pgbackrest and psql, and notes what was run."""

    def __init__(self, *infos: str, **outputs: Output) -> None:
        self.infos = list(infos)
        self.outputs = outputs
        self.ran: list[str] = []

    def __call__(self, argv: Sequence[str]) -> Output:
        command = next((word for word in argv[1:] if not word.startswith("-")), "") if argv[0] == "pgbackrest" else argv[0]
        if command == "info":
            return Output(0, self.infos.pop(0) if len(self.infos) > 1 else self.infos[0], "")
        if command == "repo-ls":
            return Output(0, "{}", "")
        self.ran.append(" ".join(word for word in argv if not word.startswith(("--log-level", "--stanza"))))
        return self.outputs.get(command.replace("-", "_"), Output(0, "", ""))


def tool(programs: Programs, tmp_path: Path, running: bool = False) -> Pgbackrest:
    """Return pgBackRest for a cluster on this machine."""
    data = tmp_path / "data"
    data.mkdir(exist_ok=True)
    (data / "PG_VERSION").write_text("17\n")
    if running:
        # Of a process that is there, whichever it is.
        (data / "postmaster.pid").write_text(f"1\n{data}\n0\n5432\n\n")
    return Pgbackrest("main", run=programs, config=str(tmp_path / "none"), data=str(data), clock=lambda: NOW)


def test_a_stanzas_own_section_wins() -> None:
    text = "[global]\nprocess-max=2\npg1-path=/no\n# pg1-path=/comment\n[main]\npg1-path = /data\n[other]\npg1-path=/other\n"

    assert read_options(text, "main") == {"process-max": "2", "pg1-path": "/data"}


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        (
            "ERROR: [050]: unable to acquire lock on file '/tmp/x.lock': Resource temporarily unavailable\n",
            "pgbackrest backup failed for stanza main: unable to acquire lock on file '/tmp/x.lock': Resource temporarily unavailable. "
            "Another pgBackRest is at work for it: wait until it has ended.",
        ),
        (
            "P00  ERROR: [068]: archive_command '/bin/false' must contain pgbackrest\n",
            "pgbackrest backup failed for stanza main: archive_command '/bin/false' must contain pgbackrest. "
            "Set PostgreSQL's archive_command to: pgbackrest --stanza=main archive-push %p.",
        ),
        (
            "WARN: nothing\nP00  ERROR: [099]: something else\n            HINT: is it so?\n",
            "pgbackrest backup failed for stanza main: something else. is it so.",
        ),
        ("", "pgbackrest backup failed for stanza main: it ended with status 1."),
    ],
)
def test_an_error_is_one_sentence_with_advice(stderr: str, message: str) -> None:
    assert explain("backup", "main", Output(1, "", stderr)) == message


@pytest.mark.parametrize("error", ["CryptoError: unable to flush", "FormatError: key/value found outside of section at line 1: \ufffd\x01"])
def test_a_wrong_passphrase_is_called_that(error: str) -> None:
    message = explain("check", "main", Output(95, "", f"ERROR: [095]: unable to load info file\n       {error}\n"))

    assert message == (
        "The repository of stanza main cannot be read: it is encrypted with another passphrase than the configured one, or not at all. "
        "Configure the passphrase with which it was created."
    )


@pytest.mark.parametrize(
    ("kind", "max_age", "found"),
    [
        ("incr", 901, "20261128-000758F"),
        ("full", 901, "20261128-000758F"),
        ("full", 900, None),
        ("full", 0, None),
    ],
)
def test_a_backup_that_is_young_enough_is_found(kind: str, max_age: int, found: str | None) -> None:
    sufficient = young_enough(read_info(info(backup()), "main"), kind, max_age, NOW)

    assert (sufficient and sufficient.label) == found


def test_a_damaged_backup_is_not_enough() -> None:
    assert young_enough(read_info(info(backup(error=True)), "main"), "full", 5000, NOW) is None


def test_an_incremental_backup_is_no_full_one() -> None:
    assert young_enough(read_info(info(backup(kind="incr")), "main"), "full", 5000, NOW) is None


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_missing_stanza_is_created(check_mode: bool, tmp_path: Path) -> None:
    programs = Programs(info(code=1, message="missing stanza path"), info(code=2, message="no valid backups"))

    result = create(tool(programs, tmp_path), check_mode)

    assert (result["changed"], result["plan"]) == (True, [f"pgbackrest --config={tmp_path}/none --stanza=main stanza-create"])
    assert len(programs.ran) == (0 if check_mode else 1)


def test_a_backup_that_is_not_in_the_repository_was_not_made(tmp_path: Path) -> None:
    with pytest.raises(LmsError, match="no new backup of stanza main is in its repository"):
        back_up(tool(Programs(info(backup()), psql=Output(2, "", "")), tmp_path, running=True), False, "full", 0, 0, [])


def test_a_backup_of_damaged_pages_is_a_failure(tmp_path: Path) -> None:
    programs = Programs(info(), info(backup(error=True)), psql=Output(2, "", ""))

    with pytest.raises(LmsError, match="the database itself is damaged"):
        back_up(tool(programs, tmp_path, running=True), False, "full", 0, 0, [])


def test_without_a_server_there_is_nothing_to_back_up(tmp_path: Path) -> None:
    with pytest.raises(LmsError, match="so there is nothing to back up"):
        back_up(tool(Programs(info()), tmp_path), False, "full", 0, 0, [])


def test_a_verification_fails_although_the_program_ended_well(tmp_path: Path) -> None:
    broken = Output(0, "stanza: main\nstatus: error\n  No usable backup.info file\n", "")

    with pytest.raises(LmsError, match=r"repository 1: No usable backup\.info file"):
        verify(tool(Programs(info(backup()), verify=broken), tmp_path), False)


def test_what_would_expire_is_read_from_the_dry_run(tmp_path: Path) -> None:
    told = "P00   INFO: [DRY-RUN] repo1: remove expired backup 20261128-000758F\n"
    programs = Programs(info(backup(), backup("20261129-000758F", stop=200)), expire=Output(0, "", told))

    result = expire(tool(programs, tmp_path), True)

    assert result["diff"]["after"] == {"backups": ["20261129-000758F"], "archive": []}
    assert (result["changed"], len(programs.ran)) == (True, 1)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, []),
        ({"target_timeline": "1"}, ["--target-timeline=1"]),
        ({"target_immediate": True}, ["--type=immediate", "--target-action=promote"]),
        ({"target_lsn": "0/3000050"}, ["--type=lsn", "--target=0/3000050", "--target-action=promote"]),
        ({"target_xid": "7"}, ["--type=xid", "--target=7", "--target-action=promote"]),
        ({"target_name": "before", "target_action": "pause"}, ["--type=name", "--target=before", "--target-action=pause"]),
        (
            {"target_time": "2026-11-23T11:28:35.5+01:00", "target_inclusive": False},
            ["--type=time", "--target=2026-11-23 10:28:35.500000+00", "--target-exclusive", "--target-action=promote"],
        ),
    ],
)
def test_a_target_becomes_the_options_of_pgbackrest(given: dict[str, Any], options: list[str]) -> None:
    assert Target.of({**PARAMS, **given}).options == options


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target_time": "yesterday"}, "no moment such as"),
        ({"target_time": "2026-11-23T10:28:35"}, "does not say in which time zone"),
        ({"target_time": "2026-11-23T10:28:35Z", "target_xid": "7"}, "target_time and target_xid exclude each other"),
    ],
)
def test_a_target_that_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(LmsError, match=message):
        Target.of({**PARAMS, **given})


def test_the_newest_backup_before_the_target_is_chosen() -> None:
    stanza = read_info(info(backup("first", stop=100), backup("second", stop=200), backup("third", stop=300)), "main")

    assert choose(stanza, Target("time", "x", 250.0), None).label == "second"
    assert choose(stanza, Target(), None).label == "third"
    assert choose(stanza, Target("lsn", "0/3000050"), None).label == "third"
    assert choose(stanza, Target("time", "x", 250.0), "first").label == "first"
    for target, label in (
        (Target("time", "x", 100.0), None),
        (Target("time", "x", 250.0), "third"),
        (Target("lsn", "0/1"), None),
        (Target(), "no"),
    ):
        with pytest.raises(LmsError):
            choose(stanza, target, label)


def test_a_gap_on_the_way_makes_a_target_unreachable(tmp_path: Path) -> None:
    names = {position: f"17-1/0000000100000000/00000001000000000000000{position}-{'b' * 40}.zst" for position in (2, 3, 5)}
    listing = json.dumps({name: {"time": position * 100} for position, name in names.items()})

    class Listed(Programs):
        def __call__(self, argv: Sequence[str]) -> Output:
            return Output(0, listing, "") if "repo-ls" in argv else super().__call__(argv)

    stanza = tool(Listed(info(backup())), tmp_path).look().stanza
    first = stanza.backups[0]

    assert "WAL segment 000000010000000000000004 is missing" in unreachable(stanza, first, Target("time", "x", 350.0))
    assert "WAL segment 000000010000000000000004 is missing" in unreachable(stanza, first, Target())
    assert unreachable(stanza, first, Target("time", "x", 250.0)) == ""
    assert unreachable(stanza, first, Target("immediate")) == ""


@pytest.mark.parametrize(
    ("params", "running", "reason"),
    [
        ({}, True, "Stop it first"),
        ({"confirm": None}, False, "confirm: main"),
        ({"confirm": "other"}, False, "confirm: main"),
    ],
)
def test_what_stands_in_the_way_is_refused_and_in_check_mode_told(
    params: dict[str, Any], running: bool, reason: str, tmp_path: Path
) -> None:
    programs = Programs(info(whole_backup()), psql=Output(2, "", ""))
    asked = {**PARAMS, "target_immediate": True, **params}

    planned = restore(tool(programs, tmp_path, running), asked, True)
    with pytest.raises(LmsError, match=reason):
        restore(tool(programs, tmp_path, running), asked, False)

    assert reason in " ".join(planned["blocked"])
    assert [ran for ran in programs.ran if "restore" in ran] == []


def whole_backup() -> dict[str, Any]:
    """Return a backup that fits onto every disk."""
    return backup(info={"delta": 1, "repository": {"delta": 1}, "size": 1})


def test_the_data_are_kept_and_put_back_when_the_restore_fails(tmp_path: Path) -> None:
    asked = {**PARAMS, "target_immediate": True}
    failing = Programs(info(whole_backup()), restore=Output(1, "", "ERROR: [026]: checksum\n"))

    with pytest.raises(CommandError, match="The backup is damaged"):
        restore(tool(failing, tmp_path), asked, False)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert (tmp_path / "data/PG_VERSION").exists()

    done = restore(tool(Programs(info(whole_backup())), tmp_path), asked, False)
    assert done["restore"]["previous"] == f"{tmp_path}/data.before_19700101T001640Z"
    assert (tmp_path / "data.before_19700101T001640Z/PG_VERSION").exists()


def test_an_interrupted_restore_is_continued(tmp_path: Path) -> None:
    programs = Programs(info(whole_backup()))
    pgbackrest = tool(programs, tmp_path)
    (tmp_path / "data/backup.manifest").touch()

    done = restore(pgbackrest, {**PARAMS, "target_immediate": True}, False)

    assert done["restore"]["previous"] is None
    assert "--delta" in programs.ran[0]


def test_tablespaces_are_not_renamed(tmp_path: Path) -> None:
    pgbackrest = tool(Programs(info(whole_backup())), tmp_path)
    (tmp_path / "data/pg_tblspc").mkdir()
    (tmp_path / "data/pg_tblspc/16384").symlink_to("/srv")

    with pytest.raises(LmsError, match="has tablespaces outside of it"):
        restore(pgbackrest, {**PARAMS, "target_immediate": True}, False)
