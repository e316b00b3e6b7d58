# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the record of a rollout lies: only one of two writers wins, and an answer that gets lost is no second writer."""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import boto3
import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_record import (
    ConflictError,
    FileStore,
    Lease,
    Record,
    RecordError,
    Rollout,
    Step,
    Store,
    Stored,
    UnreachableError,
    moment_of,
    open_record,
    parse,
    stamp,
)
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_record_s3 import ObjectStore
from botocore.exceptions import ClientError, ConnectionClosedError
from moto import mock_aws

NOW = datetime(2026, 11, 23, 10, 0, 0, 250000, tzinfo=timezone.utc)
ROLLOUT = Rollout(
    "r1",
    "blue",
    "green",
    "shifting",
    [Step(5, 60.0), Step(100, 0.5)],
    NOW,
    NOW,
    NOW,
    step=0,
    passes=3,
    intent={"web": {"blue": 95, "green": 5}},
    previous={"web": {"blue": 100, "green": 0}},
    settled=False,
    unverified_since=NOW,
    reason="none",
)
BUCKET = "example-state"
KEY = "traffic/prod/lms.json"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a client of an S3 in this process, with an empty bucket."""
    for name, value in {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    with mock_aws():
        made = boto3.client("s3")
        made.create_bucket(Bucket=BUCKET)
        yield made


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Return a store of each kind, without a document."""
    if request.param == "file":
        return FileStore(tmp_path / "traffic" / "lms.json")
    return ObjectStore(request.getfixturevalue("client"), BUCKET, KEY, sleep=lambda _seconds: None)


# Both stores


def test_a_document_is_written_once_and_then_replaced(store: Store) -> None:
    assert store.read() is None

    first = store.create(b"one")
    assert store.read() == Stored(b"one", first)
    second = store.replace(b"two", first)

    assert store.read() == Stored(b"two", second)
    assert first != second


def test_a_second_writer_is_refused(store: Store) -> None:
    first = store.create(b"one")
    second = store.replace(b"two", first)

    with pytest.raises(ConflictError):
        store.create(b"three")
    with pytest.raises(ConflictError):
        store.replace(b"three", first)

    assert store.read() == Stored(b"two", second)


def test_a_document_that_was_removed_is_not_replaced(store: Store, request: pytest.FixtureRequest) -> None:
    first = store.create(b"one")
    if isinstance(store, FileStore):
        store.path.unlink()
    else:
        request.getfixturevalue("client").delete_object(Bucket=BUCKET, Key=KEY)

    with pytest.raises(ConflictError):
        store.replace(b"two", first)

    assert store.read() is None


# A file


def test_of_many_writers_one_wins_each_time(tmp_path: Path) -> None:
    path = tmp_path / "lms.json"
    FileStore(path).create(b"0")
    won: list[int] = []

    def write(number: int) -> None:
        """Count up, as often as that is allowed."""
        own = FileStore(path)
        for _count in range(20):
            found = own.read()
            assert found is not None
            try:
                own.replace(str(int(found.content) + 1).encode(), found.tag)
            except ConflictError:
                continue
            won.append(number)

    threads = [threading.Thread(target=write, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = FileStore(path).read()
    assert found is not None
    assert int(found.content) == len(won)


def test_a_file_is_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    FileStore(tmp_path / "lms.json").create(b"one")

    assert sorted(path.name for path in tmp_path.iterdir()) == [".lms.json.lock", "lms.json"]
    assert stat.S_IMODE((tmp_path / "lms.json").stat().st_mode) == 0o644


def test_a_file_that_cannot_be_read_or_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "lms.json").mkdir()
    with pytest.raises(RecordError, match="cannot be read: Is a directory"):
        FileStore(tmp_path / "lms.json").read()
    (tmp_path / "file").write_text("")
    with pytest.raises(LmsError):
        FileStore(tmp_path / "file" / "lms.json").create(b"one")


# S3


def failing(client: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, times: int, done: bool) -> list[str]:
    """Let the first writes fail, before or after they were done."""
    real: Callable[..., Any] = client.put_object
    failed: list[str] = []

    def put(**call: Any) -> Any:
        """Fail some times."""
        if len(failed) < times:
            failed.append("put")
            if done:
                real(**call)
            raise error
        return real(**call)

    monkeypatch.setattr(client, "put_object", put)
    return failed


LOST = ConnectionClosedError(endpoint_url="https://s3.example.com")
SLOW = ClientError({"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}, "PutObject")
DENIED = ClientError({"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "PutObject")


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("error", [LOST, SLOW])
def test_a_write_whose_answer_gets_lost_is_no_conflict(client: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, done: bool) -> None:
    own = ObjectStore(client, BUCKET, KEY, sleep=lambda _seconds: None)
    first = own.create(b"one")
    failing(client, monkeypatch, error, 2, done)

    second = own.replace(b"two", first)

    assert own.read() == Stored(b"two", second)


def test_a_write_that_fails_for_good_says_why(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ObjectStore(client, BUCKET, KEY, sleep=lambda _seconds: None)
    first = own.create(b"one")

    failing(client, monkeypatch, SLOW, 9, False)
    with pytest.raises(UnreachableError, match="cannot be written, 5 times in a row"):
        own.replace(b"two", first)
    failing(client, monkeypatch, DENIED, 1, False)
    with pytest.raises(RecordError, match=r"cannot be written.*AccessDenied"):
        own.replace(b"two", first)

    assert own.read() == Stored(b"one", first)


def test_a_bucket_that_is_not_there_is_no_empty_record(client: Any) -> None:
    with pytest.raises(RecordError, match=r"cannot be read.*NoSuchBucket"):
        ObjectStore(client, "example-other", KEY).read()


def test_a_service_that_ignores_conditions_is_refused(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ObjectStore(client, BUCKET, KEY)
    monkeypatch.setattr(own, "_conditional", lambda params, **_other: None)
    client.meta.events.unregister("before-call.s3.PutObject", ObjectStore._conditional.__get__(own))

    with pytest.raises(RecordError, match="ignores If-Match"):
        own.create(b"one")


# Which store


def no_client() -> Any:
    """Make no client: none is needed."""
    raise AssertionError("a client was made")


def test_the_location_says_which_store(client: Any) -> None:
    assert isinstance(open_record("/var/lib/lms/lms.json", no_client), FileStore)
    assert isinstance(open_record(f"s3://{BUCKET}/{KEY}", lambda: client), ObjectStore)


@pytest.mark.parametrize("location", ["lms.json", "s3://", "s3://example-state", "s3://Example/x", "s3://example-state/a//b"])
def test_a_location_that_is_none_is_refused(location: str) -> None:
    with pytest.raises(LmsError, match=r"^state is "):
        open_record(location, no_client)


# The document


def test_a_record_survives_being_written() -> None:
    record = Record("lms", 7, Lease("deployer@controller", "token", NOW + timedelta(seconds=90)), ROLLOUT, [{"event": "begun"}])

    assert parse(record.render(), "lms", "memory") == record
    assert parse(Record("lms").render(), "lms", "memory") == Record("lms", history=[])


def test_each_writing_is_another_document() -> None:
    assert Record("lms", 1, None, ROLLOUT).render() != Record("lms", 2, None, ROLLOUT).render()


def test_times_have_a_zone() -> None:
    assert stamp(NOW) == "2026-11-23T10:00:00.250Z"
    assert moment_of(stamp(NOW)) == NOW
    with pytest.raises(ValueError, match="time zone"):
        moment_of("2026-11-23T10:00:00")


def test_a_record_of_a_newer_format_is_not_touched() -> None:
    with pytest.raises(RecordError, match="has the format 2, and this version knows 1"):
        parse(b'{"format": 2}', "lms", "memory")
