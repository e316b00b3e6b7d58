# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What restic says, whose lock is dead, which snapshots may go, and that no secret stands where others can read it."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._backup_directory import DirectoryStore
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._file_tree import (
    DIRECTORY,
    FILE,
    LINK,
    VANISHED,
    FileEntry,
)
from ansible_collections.bitflow.lms.plugins.module_utils._restic import (
    Answer,
    Key,
    Lock,
    Restic,
    ResticError,
    Snapshot,
    forgettable,
    is_gone,
    location_of,
    parse_listing,
    parse_problems,
    parse_time,
    parse_version,
    running_restic,
)
from ansible_collections.bitflow.lms.plugins.module_utils._restic_backup import KeyChange, WantedKey, key_changes, wanted_keys

NOON = datetime(2026, 11, 23, 12, 0, 0, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("restic 0.18.0 compiled with go1.24.4 on linux/amd64", (0, 18, 0)),
        ("restic 0.14.0 (v0.14.0-dev) compiled with go1.19", (0, 14, 0)),
    ],
)
def test_the_version_is_read(line: str, version: tuple[int, ...]) -> None:
    assert parse_version(line) == version


@pytest.mark.parametrize("text", ["2026-11-23T12:00:00.123456789Z", "2026-11-23T12:00:00Z", "2026-11-23T13:00:00.1+01:00"])
def test_times_of_go_are_read(text: str) -> None:
    assert parse_time(text) == NOON


def test_complaints_of_old_and_new_ones_are_read() -> None:
    errors = [
        '{"message_type":"error","error":{"message":"open /srv/a: permission denied"},"during":"archival","item":"/srv/a"}',
        '{"message_type":"error","error":{"message":"open /srv/b: no such file or directory"},"during":"archival","item":"/srv/b"}',
        '{"message_type":"error","error":{"Op":"open","Path":"/srv/c","Err":13},"during":"archival","item":"/srv/c"}',
        '{"message_type":"error","error":{"Op":"lstat","Path":"/srv/d","Err":2},"during":"archival","item":"/srv/d"}',
        '{"message_type":"error","error":{"message":"read /srv/e: input/output error"},"during":"archival","item":"/srv/e"}',
        '{"message_type":"exit_error","code":3,"message":"Warning: at least one source file could not be read"}',
        "Warning: at least one source file could not be read",
    ]

    assert parse_problems(errors) == [
        ("srv/a", "unreadable: open /srv/a: permission denied"),
        ("srv/b", VANISHED),
        ("srv/c", "unreadable: Permission denied"),
        ("srv/d", VANISHED),
        ("srv/e", "unreadable: read /srv/e: input/output error"),
    ]


def test_a_listing_is_read() -> None:
    def node(**facts: Any) -> str:
        return json.dumps({"uid": 1, "gid": 2, "mtime": "2026-11-23T12:00:00.5Z", "struct_type": "node", **facts})

    lines = [
        json.dumps({"struct_type": "snapshot", "id": "1"}),
        node(type="dir", path="/srv", mode=(1 << 31) | (1 << 22) | 0o750),
        node(type="file", path="/srv/a", mode=(1 << 23) | 0o755, size=3),
        node(type="symlink", path="/srv/l", mode=(1 << 27) | 0o777),
        node(type="fifo", path="/srv/f", mode=0o644),
    ]

    time = int(NOON.timestamp()) * 10**9 + 500000000
    assert parse_listing(lines) == {
        "srv": FileEntry("srv", DIRECTORY, mode=0o2750, uid=1, gid=2, mtime_ns=time),
        "srv/a": FileEntry("srv/a", FILE, size=3, mode=0o4755, uid=1, gid=2, mtime_ns=time),
        "srv/l": FileEntry("srv/l", LINK, mode=0o777, uid=1, gid=2, mtime_ns=time),
    }


def lock(age: timedelta, hostname: str = "here", pid: int = 7) -> Lock:
    """Return a lock."""
    return Lock("1", NOON - age, hostname, "root", pid)


MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


@pytest.mark.parametrize(
    ("held", "own", "running", "gone"),
    [
        # Ours, and no process has the number any more, or another one has it.
        (lock(MINUTE), {7: 100}, {}, True),
        (lock(MINUTE), {7: 100}, {7: 200}, True),
        # Ours, and alive.
        (lock(48 * HOUR), {7: 100}, {7: 100}, False),
        # A container may have the same host name, and processes that nobody here sees.
        (lock(MINUTE), {}, {}, False),
        (lock(HOUR), {}, {}, True),
        # Somebody started restic here by hand.
        (lock(48 * HOUR), {}, {7: 300}, False),
        # Another host's clock may be wrong, and its processes are not ours.
        (lock(HOUR, "there"), {7: 100}, {}, False),
        (lock(25 * HOUR, "there"), {}, {7: 1}, True),
        (lock(-HOUR, "there"), {}, {}, False),
    ],
)
def test_a_lock_is_removed_only_when_its_process_is_dead_for_certain(
    held: Lock, own: dict[int, int], running: dict[int, int], gone: bool
) -> None:
    assert is_gone(held, NOON, "here", own, running.get) is gone


def test_a_process_with_another_name_is_no_restic(tmp_path: Path) -> None:
    for pid, name in ((1, "restic"), (2, "restic (x)"), (3, "systemd")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) S {' '.join(str(number) for number in range(4, 60))}")

    assert [running_restic(pid, tmp_path) for pid in (1, 2, 3, 4)] == [22, None, None, None]


def snapshot(days: int, backup: str = "") -> Snapshot:
    """Return a snapshot."""
    tags = ("bitflow-lms", f"bitflow-lms:{backup}") if backup else ("by-hand",)
    return Snapshot(f"s{days}", NOON - timedelta(days=days), tags)


def test_snapshots_go_with_their_backup_and_others_stay() -> None:
    snapshots = [snapshot(0, "new"), snapshot(1, "pruned-lately"), snapshot(3, "kept"), snapshot(5, "pruned"), snapshot(9)]

    assert forgettable(snapshots, ["new", "kept"], "new", NOON) == [snapshot(5, "pruned")]


def test_a_snapshot_whose_manifest_may_just_be_written_stays() -> None:
    snapshots = [snapshot(3, "new"), Snapshot("s", NOON - timedelta(hours=23), ("bitflow-lms:unwritten",))]

    assert forgettable(snapshots, ["new"], "new", NOON) == []


def test_the_newest_snapshot_stays_whatever_the_catalogue_says() -> None:
    snapshots = [snapshot(9, "good"), snapshot(5, "pruned")]

    assert forgettable(snapshots, ["good"], "good", NOON) == []


@pytest.mark.parametrize(("newest", "message"), [("", "There is no good backup"), ("elsewhere", "has no snapshot in restic's repository")])
def test_nothing_is_forgotten_when_catalogue_and_repository_do_not_fit(newest: str, message: str) -> None:
    with pytest.raises(LmsError, match=message):
        forgettable([snapshot(5, "pruned"), snapshot(6, "other")], [], newest, NOON)


KEYS = {"access_key": "AKIA", "secret_key": "hush", "session_token": "token"}
S3 = {"endpoint_url": "http://127.0.0.1:5000", "region": "eu-central-1", **KEYS}


def test_a_repository_lies_beside_the_backups_on_disk() -> None:
    location = location_of({"repository": "/srv/backups", "environment": "prod", "name": "uploads", "s3": None})

    assert (location.prefix, location.repository, location.arguments) == ("prod/restic/uploads", "/srv/backups/prod/restic/uploads", ())


def test_a_repository_lies_beside_the_backups_in_a_bucket_and_no_key_is_said_aloud() -> None:
    options = {**S3, "addressing_style": "path", "storage_class": "STANDARD_IA", "ca_bundle": "/etc/ca.pem"}

    location = location_of({"repository": "s3://example/lms", "environment": "prod", "name": "uploads", "s3": options})

    assert location.repository == "s3:http://127.0.0.1:5000/example/lms/prod/restic/uploads"
    assert location.arguments == (
        *("--option", "s3.bucket-lookup=path", "--option", "s3.region=eu-central-1", "--option", "s3.storage-class=STANDARD_IA"),
        *("--cacert", "/etc/ca.pem"),
    )
    assert location.credentials == ("[default]\naws_access_key_id = AKIA\naws_secret_access_key = hush\naws_session_token = token\n")
    assert location.environment == {}
    assert "hush" not in repr(location)


@pytest.mark.parametrize(
    ("options", "repository", "environment"),
    [
        ({"region": "eu-central-1"}, "s3:https://s3.eu-central-1.amazonaws.com/example/prod/restic/u", {}),
        ({}, "s3:https://s3.amazonaws.com/example/prod/restic/u", {}),
        ({"profile": "backup"}, "s3:https://s3.amazonaws.com/example/prod/restic/u", {"AWS_PROFILE": "backup"}),
        (
            {"role_arn": "arn:aws:iam::1:role/b", "region": "eu-central-1"},
            "s3:https://s3.eu-central-1.amazonaws.com/example/prod/restic/u",
            {"RESTIC_AWS_ASSUME_ROLE_ARN": "arn:aws:iam::1:role/b", "RESTIC_AWS_ASSUME_ROLE_REGION": "eu-central-1"},
        ),
    ],
)
def test_options_of_s3_are_told_to_restic(
    options: dict[str, str], repository: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)

    location = location_of({"repository": "s3://example", "environment": "prod", "name": "u", "s3": options})

    assert (location.repository, location.environment, location.credentials) == (repository, environment, "")


def test_an_empty_password_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LmsError, match="restic_password is empty"):
        Restic(location_of({"repository": "/r", "environment": "p", "name": "u"}), "", tmp_path, tmp_path / "notes")


def test_a_repository_that_lost_its_config_is_not_made_anew(tmp_path: Path) -> None:
    (tmp_path / "prod/restic/uploads/keys").mkdir(parents=True)
    (tmp_path / "prod/restic/uploads/keys/1234").write_text("{}")
    restic = Restic(location_of({"repository": str(tmp_path), "environment": "prod", "name": "uploads"}), "x", tmp_path, tmp_path / "n")

    with pytest.raises(LmsError, match="has lost its config, but still holds keys"):
        restic.exists(DirectoryStore(tmp_path))

    assert not restic.exists(DirectoryStore(tmp_path / "elsewhere"))


CURRENT, SAFE, OTHER = Key("1", "root", True), Key("2", "safe", False), Key("3", "other", False)


@pytest.mark.parametrize(
    ("wanted", "opened", "changes"),
    [
        ([WantedKey("safe", "p")], {"safe": SAFE}, []),
        ([WantedKey("new", "p")], {"new": None}, [KeyChange(add=WantedKey("new", "p"))]),
        ([WantedKey("safe", "p")], {"safe": None}, [KeyChange(add=WantedKey("safe", "p")), KeyChange(remove=SAFE)]),
        ([WantedKey("safe", present=False)], {}, [KeyChange(remove=SAFE)]),
        ([WantedKey("gone", present=False)], {}, []),
        ([WantedKey("root", "p")], {"root": CURRENT}, []),
    ],
)
def test_keys_converge(wanted: list[WantedKey], opened: dict[str, Key | None], changes: list[KeyChange]) -> None:
    assert key_changes(wanted, [CURRENT, SAFE, OTHER], opened) == changes


def test_the_password_in_use_is_not_removed() -> None:
    with pytest.raises(LmsError, match="but restic_password is that key"):
        key_changes([WantedKey("root", present=False)], [CURRENT, SAFE], {})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ([{"name": "safe", "state": "present"}], "restic_keys has safe without a password"),
        ([{"name": "safe", "password": "a"}, {"name": "safe", "state": "absent"}], "restic_keys names safe twice"),
    ],
)
def test_keys_that_make_no_sense_are_refused(option: list[dict[str, str]], message: str) -> None:
    with pytest.raises(LmsError, match=message):
        wanted_keys(option)


class Told(Restic):
    """A restic whose program answers from a table, and whose calls are recorded."""

    def __init__(self, tmp_path: Path, *answers: Answer) -> None:
        super().__init__(location_of({"repository": "/r", "environment": "p", "name": "u"}), "x", tmp_path, tmp_path / "notes")
        self.answers = list(answers)
        self.calls: list[tuple[str, ...]] = []

    def call(self, *arguments: str, accepted: Any = (0,), **_others: Any) -> Answer:
        """Record the call and give the next answer."""
        self.calls.append(arguments)
        answer = self.answers.pop(0)
        if answer.rc not in accepted:
            raise self._error(arguments, answer)
        return answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(12, [], ["Fatal: wrong password or no key found"]), "restic_password does not open the repository /r/p/restic/u."),
        (Answer(1, [], ["Fatal: wrong password or no key found"]), "restic_password does not open the repository /r/p/restic/u."),
        (
            Answer(11, [], ["unable to create lock in backend: repository is already locked by PID 1 on there"]),
            "The repository /r/p/restic/u is locked by a restic that may be alive: unable to create lock in backend: repository is already "
            "locked by PID 1 on there. Wait until it has ended.",
        ),
        (
            Answer(1, [], ['{"message_type":"exit_error","code":1,"message":"Fatal: no space left on device"}']),
            "restic cat ended with status 1 on /r/p/restic/u: Fatal: no space left on device",
        ),
        (Answer(-9), "restic cat was killed by signal 9 on /r/p/restic/u"),
    ],
)
def test_errors_of_restic_are_sentences(tmp_path: Path, answer: Answer, message: str) -> None:
    with pytest.raises(ResticError) as caught:
        Told(tmp_path, answer).repository_id()

    assert caught.value.message == message


def test_locks_are_removed_one_by_one_and_never_all(tmp_path: Path) -> None:
    locks = tmp_path / "p/restic/u/locks"
    locks.mkdir(parents=True)
    (locks / "dead").write_text("")
    (locks / "foreign").write_text("")
    dead = json.dumps({"time": "2026-11-20T12:00:00.1Z", "hostname": "there", "username": "root", "pid": 1, "exclusive": True})
    foreign = json.dumps({"time": "2026-11-23T11:59:00.1Z", "hostname": "there", "username": "root", "pid": 2})
    restic = Told(tmp_path, Answer(0, [dead]), Answer(0, [foreign]))

    removed, others = restic.clear_locks(DirectoryStore(tmp_path), NOON)

    assert ([each.id for each in removed], [each.id for each in others]) == (["dead"], ["foreign"])
    assert [path.name for path in locks.iterdir()] == ["foreign"]
    assert removed[0].portrait() == "root@there (process 1, 2026-11-20T12:00:00Z)"
