# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Repositories on disk and on S3: one contract that both keep, and then what goes wrong with S3."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import read_catalogue, seal
from ansible_collections.bitflow.lms.plugins.module_utils._backup_directory import DirectoryStore
from ansible_collections.bitflow.lms.plugins.module_utils._backup_repository_settings import Lifecycle
from ansible_collections.bitflow.lms.plugins.module_utils._backup_s3 import Retention, S3Options, S3Store, client_for
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import (
    LockedObjectError,
    MissingObjectError,
    ObjectExistsError,
    Partial,
    Store,
    StoreError,
)
from ansible_collections.bitflow.lms.plugins.modules import backup_repository

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT / "tests/lab"))

from database_host import Host
from s3_proxy import Fault, Lab, answer, answer_done, no_conditions, part_limit

PATH = "prod/database/lms/20261123T102835Z-6f3a91c2"
OTHER = "prod/database/lms/20261124T102835Z-00000001"
MANIFEST = f"{PATH}/manifest.json"
DATA = f"{PATH}/data.dump"
KIB = 1024
# Small ones, so that many are sent.
PART = 64 * KIB
CONTENT = bytes(range(256)) * 1200
OPTIONS = S3Options(region="eu-central-1", access_key="lab", secret_key="lab", part_size=PART, max_parts=80)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Start S3."""
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def administrator(lab: Lab) -> Any:
    """Return a client that makes buckets."""
    return client(lab)


@pytest.fixture
def bucket(lab: Lab, administrator: Any, request: pytest.FixtureRequest) -> str:
    """Return a bucket of the test's own, and let nothing go wrong yet."""
    lab.proxy.clear()
    name = "test-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:16]
    administrator.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    lab.proxy.clear()
    return name


def client(lab: Lab, **options: Any) -> Any:
    """Return a client for the lab."""
    return client_for(replace(OPTIONS, endpoint_url=lab.endpoint, **options), read_timeout=1)


@pytest.fixture
def s3(lab: Lab, bucket: str) -> S3Store:
    """Return a repository in the bucket, which does not wait between attempts."""
    return s3_store(lab, bucket)


def s3_store(lab: Lab, bucket: str, **options: Any) -> S3Store:
    """Return a repository in a bucket."""
    chosen = replace(OPTIONS, endpoint_url=lab.endpoint, **options)
    return S3Store(client(lab), bucket, "backups/lms", chosen, sleep=lambda seconds: None)


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Return a repository of each kind."""
    if request.param == "directory":
        return DirectoryStore(tmp_path / "repository")
    made: S3Store = request.getfixturevalue("s3")
    return made


def write(store: Store, path: str = PATH, content: bytes = CONTENT, manifest: bytes = b"{}\n") -> Any:
    """Make a backup and return what is known of its data."""
    draft = store.draft(path)
    upload = draft.upload("data.dump")
    for start in range(0, len(content), 10000):
        upload.write(content[start : start + 10000])
    stored = upload.complete()
    draft.publish(manifest)
    return stored


def keys(store: Store) -> list[str]:
    """Return the keys of a repository."""
    return [entry.key for entry in store.entries()]


# What both promise


def test_a_backup_is_there_as_it_was_written(store: Store) -> None:
    stored = write(store)

    assert (stored.name, stored.size, stored.sha256) == ("data.dump", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert [(entry.key, entry.size) for entry in store.entries()] == [(DATA, len(CONTENT)), (MANIFEST, 3)]
    assert b"".join(store.stream(DATA)) == CONTENT
    assert store.read(MANIFEST) == b"{}\n"
    assert store.partials() == []


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 3 * PART])
def test_any_size_is_stored(store: Store, size: int) -> None:
    content = (CONTENT * 2)[:size]

    stored = write(store, content=content)

    assert (stored.size, stored.sha256) == (size, hashlib.sha256(content).hexdigest())
    assert b"".join(store.stream(DATA)) == content


def test_pieces_are_small(store: Store) -> None:
    write(store, content=CONTENT * 8)

    assert max(len(piece) for piece in store.stream(DATA)) <= 1024 * KIB


def test_nobody_sees_a_backup_before_it_is_published(store: Store) -> None:
    draft = store.draft(PATH)
    upload = draft.upload("data.dump")
    upload.write(CONTENT)
    seen = [read_catalogue(store).backups]
    upload.complete()
    seen.append(read_catalogue(store).backups)
    draft.publish(seal({}))

    assert seen == [(), ()]
    assert [backup.state for backup in read_catalogue(store).backups] == ["complete"]


def test_a_backup_is_never_written_over(store: Store) -> None:
    write(store, manifest=b"first")

    with pytest.raises(ObjectExistsError):
        write(store, content=b"other", manifest=b"second")

    assert store.read(MANIFEST) == b"first"
    assert b"".join(store.stream(DATA)) == CONTENT


def test_an_object_is_created_once(store: Store) -> None:
    def contend(number: int) -> int:
        try:
            store.create("repository.json", str(number).encode())
        except ObjectExistsError:
            return -1
        return number

    with ThreadPoolExecutor(6) as pool:
        winners = [number for number in pool.map(contend, range(6)) if number >= 0]

    assert len(winners) == 1
    assert store.read("repository.json") == str(winners[0]).encode()


def test_what_is_missing_is_named(store: Store) -> None:
    with pytest.raises(MissingObjectError, match=f"{MANIFEST}.*is not in the repository"):
        store.read(MANIFEST)
    with pytest.raises(MissingObjectError):
        next(iter(store.stream(MANIFEST)))


def test_an_empty_repository_has_nothing(store: Store) -> None:
    assert (store.entries(), store.entries("prod/database/lms/"), store.partials()) == ([], [], [])


def test_entries_are_narrowed_by_prefix(store: Store) -> None:
    for key in ("prod/database/lms/1", "prod/database/lms2/1", "staging/database/lms/1"):
        store.create(key, b"")

    assert [entry.key for entry in store.entries("prod/database/lms/")] == ["prod/database/lms/1"]
    assert [entry.key for entry in store.entries("prod/")] == ["prod/database/lms/1", "prod/database/lms2/1"]


def test_deleting_is_final_and_may_be_repeated(store: Store) -> None:
    write(store)

    for key in (MANIFEST, DATA, DATA):
        store.delete(key)

    assert (keys(store), store.partials()) == ([], [])


def test_a_discarded_backup_leaves_nothing(store: Store) -> None:
    draft = store.draft(PATH)
    done, begun = draft.upload("globals.sql"), draft.upload("data.dump")
    done.write(b"roles")
    done.complete()
    begun.write(CONTENT)
    draft.discard()
    draft.discard()

    assert (keys(store), store.partials()) == ([], [])


def test_discarding_after_publishing_does_nothing(store: Store) -> None:
    draft = store.draft(PATH)
    upload = draft.upload("data.dump")
    upload.complete()
    upload.abort()
    draft.publish(b"{}\n")
    draft.discard()

    assert keys(store) == [DATA, MANIFEST]


def test_an_aborted_upload_leaves_nothing_and_takes_nothing(store: Store) -> None:
    draft = store.draft(PATH)
    upload = draft.upload("data.dump")
    upload.write(CONTENT)
    upload.abort()
    upload.abort()

    with pytest.raises(StoreError, match="takes no more data"):
        upload.write(b"more")
    draft.discard()
    assert (keys(store), store.partials()) == ([], [])


def test_an_unfinished_backup_is_not_published(store: Store) -> None:
    draft = store.draft(PATH)
    draft.upload("data.dump").write(CONTENT)

    with pytest.raises(StoreError, match="is not complete"):
        draft.publish(b"{}\n")

    assert read_catalogue(store).backups == ()


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../secret", "prod/../../secret", "prod//x", "prod/.partial-1/data"])
def test_no_key_leaves_the_repository(store: Store, key: str) -> None:
    for act in (store.read, store.delete, store.draft, lambda key: store.create(key, b"")):
        with pytest.raises(StoreError, match="is no key of a repository"):
            act(key)


def test_data_whose_manifest_was_deleted_is_swept(store: Store) -> None:
    write(store)
    write(store, OTHER)
    store.delete(MANIFEST)

    left = store.partials("prod/database/lms/")
    store.sweep(left[0])

    assert [(partial.path, partial.size, partial.keys, partial.active) for partial in left] == [(PATH, len(CONTENT), (DATA,), False)]
    assert abs(left[0].started - time.time()) < 3600
    assert keys(store) == [f"{OTHER}/data.dump", f"{OTHER}/manifest.json"]


def test_a_sweep_spares_what_was_published_meanwhile(store: Store) -> None:
    write(store)
    seen_before = Partial(PATH, 0, 0, keys=(DATA,))

    store.sweep(seen_before)

    assert keys(store) == [DATA, MANIFEST]


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from ansible_collections.bitflow.lms.plugins.module_utils._backup_repositories import open_store
store = open_store({"repository": sys.argv[2], "s3": {"endpoint_url": sys.argv[3], "region": "eu-central-1", "access_key": "lab",
                    "secret_key": "lab", "part_size": 5 << 20}})
upload = store.draft(sys.argv[4]).upload("data.dump")
piece = bytes(1 << 20)
for number in range(100000):
    upload.write(piece)
    if number == 12:
        print("going", flush=True)
        sys.stdin.read()
"""


def writer(store: Store, lab: Lab | None) -> subprocess.Popen[bytes]:
    """Start a process that writes a backup, and return it when it is in the middle of that."""
    endpoint = lab.endpoint if lab else "http://127.0.0.1:1"
    argv = [sys.executable, "-c", WRITER, str(PROJECT / "collections"), store.uri, endpoint, PATH]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"going\n"
    return process


def test_what_a_killed_writer_leaves_is_found_and_swept(store: Store, request: pytest.FixtureRequest) -> None:
    process = writer(store, request.getfixturevalue("lab") if isinstance(store, S3Store) else None)
    at_work = store.partials()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = store.partials()

    store.sweep(left[0])

    assert [partial.path for partial in left] == [PATH]
    assert left[0].size >= 5 * KIB * KIB
    assert abs(left[0].started - time.time()) < 3600
    # Nobody tells the store on S3 who is at work; the directory's writer holds a lock.
    assert [partial.active for partial in at_work + left] == [isinstance(store, DirectoryStore), False]
    assert (keys(store), store.partials()) == ([], [])


# The directory


def test_a_backup_that_is_being_written_is_not_swept(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    draft = store.draft(PATH)

    with pytest.raises(StoreError, match="is being written"):
        store.sweep(store.partials()[0])

    draft.publish(b"{}\n")
    assert keys(store) == [MANIFEST]


def test_only_the_owner_reads_a_backup(tmp_path: Path) -> None:
    os.umask(0)
    store = DirectoryStore(tmp_path / "repository")

    write(store)

    modes = {str(path.relative_to(tmp_path)): oct(path.stat().st_mode & 0o777) for path in tmp_path.rglob("*")}
    files = {f"repository/{DATA}": "0o600", f"repository/{MANIFEST}": "0o600"}
    directories = ["repository"] + ["/".join(["repository", *PATH.split("/")[:depth]]) for depth in range(1, 5)]
    assert modes == {**files, **dict.fromkeys(directories, "0o700")}


# What goes wrong with S3


def fails_once(operation: str) -> list[Any]:
    """Return what S3 and the network do now and then, for a request with a body."""
    return [
        pytest.param(lambda: answer(503, "SlowDown", operation=operation, times=4), id="slow down"),
        pytest.param(lambda: answer(500, "InternalError", operation=operation), id="internal error"),
        pytest.param(lambda: Fault(operation, cut_request=20000), id="cut"),
        pytest.param(lambda: Fault(operation, hang=True), id="hang"),
        pytest.param(lambda: Fault(operation, corrupt=True), id="corrupted"),
        pytest.param(lambda: answer_done(500, "InternalError", operation=operation), id="done but not said"),
        pytest.param(lambda: Fault(operation, lose_answer=True), id="answer lost"),
    ]


@pytest.mark.parametrize("fault", fails_once("UploadPart"))
def test_a_part_is_sent_again(lab: Lab, s3: S3Store, fault: Callable[[], Fault]) -> None:
    lab.proxy.add(fault())

    stored = write(s3)

    assert stored.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert stored.parts == 5
    assert b"".join(s3.stream(DATA)) == CONTENT
    assert lab.proxy.count("UploadPart") > stored.parts


@pytest.mark.parametrize("fault", fails_once("PutObject"))
def test_a_small_object_is_sent_again(lab: Lab, s3: S3Store, fault: Callable[[], Fault]) -> None:
    content = CONTENT[:30000]
    lab.proxy.add(fault())

    s3.create("repository.json", content)

    assert s3.read("repository.json") == content


@pytest.mark.parametrize("fault", fails_once("CompleteMultipartUpload"))
def test_an_upload_is_completed_once(lab: Lab, s3: S3Store, fault: Callable[[], Fault]) -> None:
    made = fault()
    lab.proxy.add(replace(made, cut_request=10) if made.cut_request else replace(made, corrupt=False))

    stored = write(s3)

    assert stored.etag.endswith("-5")
    assert b"".join(s3.stream(DATA)) == CONTENT
    assert s3.partials() == []


@pytest.mark.parametrize(
    "operation", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"], ids=["begin", "a part", "the end"]
)
def test_what_does_not_work_in_the_end_leaves_nothing(lab: Lab, s3: S3Store, operation: str) -> None:
    lab.proxy.add(answer(503, "SlowDown", operation=operation, times=None))
    draft = s3.draft(PATH)
    upload = draft.upload("data.dump")

    with pytest.raises(StoreError, match=f"{DATA}.*SlowDown"):
        upload.write(CONTENT)
        upload.complete()
    draft.discard()

    assert (keys(s3), s3.partials()) == ([], [])
    assert lab.proxy.count(operation) == 5


def test_a_part_that_is_corrupted_each_time_fails(lab: Lab, s3: S3Store) -> None:
    lab.proxy.add(Fault("UploadPart", times=None, corrupt=True))

    with pytest.raises(StoreError, match="BadDigest"):
        write(s3)

    assert (keys(s3), s3.partials()) == ([], [])


def test_without_sums_a_corrupted_part_would_be_stored(lab: Lab, s3: S3Store, bucket: str) -> None:
    lab.proxy.add(Fault("UploadPart", corrupt=True))
    careless = client(lab)
    name = careless.create_multipart_upload(Bucket=bucket, Key="x")["UploadId"]
    part = careless.upload_part(Bucket=bucket, Key="x", UploadId=name, PartNumber=1, Body=CONTENT)
    careless.complete_multipart_upload(
        Bucket=bucket, Key="x", UploadId=name, MultipartUpload={"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]}
    )

    assert careless.get_object(Bucket=bucket, Key="x")["Body"].read() != CONTENT


def test_an_object_that_is_not_what_was_sent_is_noticed(lab: Lab, s3: S3Store) -> None:
    # A service that takes the sums and does not look at them.
    lab.proxy.add(Fault("UploadPart", corrupt=True, when=lambda request: request.headers.pop("content-md5", "") != ""))

    with pytest.raises(StoreError, match=r"sent. Make the backup again"):
        write(s3)


def test_a_manifest_that_cannot_be_written_leaves_an_unfinished_backup(lab: Lab, s3: S3Store) -> None:
    lab.proxy.add(answer(500, "InternalError", operation="PutObject", key="manifest.json", times=None))
    lab.proxy.add(answer(403, "AccessDenied", operation="DeleteObject"))
    draft = s3.draft(PATH)
    upload = draft.upload("data.dump")
    upload.write(CONTENT)
    upload.complete()

    with pytest.raises(StoreError, match=r"manifest.json cannot be written: InternalError"):
        draft.publish(b"{}\n")
    draft.discard()

    assert read_catalogue(s3).backups == ()
    assert [partial.keys for partial in s3.partials()] == [(DATA,)]
    s3.sweep(s3.partials()[0])
    assert keys(s3) == []


def test_a_manifest_that_is_there_although_nobody_could_tell_keeps_its_data(lab: Lab, s3: S3Store) -> None:
    draft = s3.draft(PATH)
    upload = draft.upload("data.dump")
    upload.complete()
    lab.proxy.add(answer_done(500, "InternalError", operation="PutObject", times=None))
    lab.proxy.add(answer(503, "SlowDown", operation="HeadObject", times=None))

    with pytest.raises(StoreError):
        draft.publish(b"{}\n")
    draft.discard()

    assert keys(s3) == [DATA, MANIFEST]


def test_two_writers_of_one_key_do_not_mix(lab: Lab, bucket: str) -> None:
    first, second = s3_store(lab, bucket).draft(PATH), s3_store(lab, bucket).draft(PATH)
    uploads = [draft.upload("data.dump") for draft in (first, second)]
    for upload, content in zip(uploads, (CONTENT, CONTENT[::-1])):
        upload.write(content)
    uploads[0].complete()

    with pytest.raises(ObjectExistsError):
        uploads[1].complete()
    first.publish(b"{}\n")
    store = s3_store(lab, bucket)

    assert b"".join(store.stream(DATA)) == CONTENT
    assert store.partials() == []


def test_what_may_not_be_deleted_is_told_from_what_failed(lab: Lab, s3: S3Store) -> None:
    write(s3)
    s3.delete(MANIFEST)
    lab.proxy.add(answer(403, "AccessDenied", operation="DeleteObject", times=None))

    with pytest.raises(LockedObjectError, match="may not be deleted"):
        s3.delete(DATA)
    with pytest.raises(LockedObjectError):
        s3.sweep(s3.partials()[0])

    assert keys(s3) == [DATA]


def test_growing_parts_stay_below_a_small_limit(lab: Lab, bucket: str) -> None:
    lab.proxy.add(part_limit(16))
    store = s3_store(lab, bucket, max_parts=16)
    content = CONTENT * 16

    stored = write(store, content=content)

    # Two of each size: 64, 128, 256 and so on KiB.
    assert (len(content), stored.parts) == (4915200, 11)
    assert b"".join(store.stream(DATA)) == content


def test_too_many_parts_for_the_service_say_what_to_set(lab: Lab, bucket: str) -> None:
    with pytest.raises(StoreError, match=r"needs more than 3 parts.*s3.part_size"):
        write(s3_store(lab, bucket, max_parts=3), content=CONTENT * 4)

    assert s3_store(lab, bucket).partials() == []


def test_a_service_without_conditions_is_looked_at_first(lab: Lab, s3: S3Store) -> None:
    lab.proxy.add(no_conditions())

    write(s3)

    assert b"".join(s3.stream(DATA)) == CONTENT
    with pytest.raises(ObjectExistsError):
        s3.create(MANIFEST, b"other")
    assert s3.read(MANIFEST) == b"{}\n"


def test_a_cut_download_goes_on_where_it_was_cut(lab: Lab, s3: S3Store) -> None:
    write(s3, content=CONTENT * 16)
    lab.proxy.add(Fault("GetObject", cut_answer=3000000), Fault("GetObject", cut_answer=0), answer(503, "SlowDown", operation="GetObject"))

    assert b"".join(s3.stream(DATA)) == CONTENT * 16
    assert [request.headers.get("range") for request in lab.proxy.requests if request.operation == "GetObject"][1:] != [None]


def test_lists_are_read_to_the_end_although_a_page_fails(lab: Lab, s3: S3Store) -> None:
    for number in range(5):
        s3.create(f"prod/database/lms/{number}", b"")
    lab.proxy.add(answer(503, "SlowDown", operation="ListObjectsV2", after=1))
    short = s3.client.list_objects_v2
    s3.client.list_objects_v2 = lambda **arguments: short(**arguments, MaxKeys=2)

    assert len(s3.entries()) == 5


def test_a_bucket_that_is_missing_or_closed_is_named(lab: Lab, s3: S3Store) -> None:
    with pytest.raises(StoreError, match=r"there is no bucket no-such-bucket. The module backup_repository creates it"):
        s3_store(lab, "no-such-bucket").facts()
    lab.proxy.add(answer(403, "AccessDenied", times=None))
    with pytest.raises(StoreError, match="the identity that is used may not do that in s3://"):
        s3.facts()


def test_an_address_where_nobody_answers_is_named() -> None:
    store = S3Store(client_for(replace(OPTIONS, endpoint_url="http://127.0.0.1:1")), "bucket", "", OPTIONS, sleep=lambda seconds: None)

    with pytest.raises(StoreError, match=r"The repository s3://bucket cannot be used: .*127.0.0.1:1"):
        store.facts()


def test_facts_of_a_bucket(s3: S3Store, tmp_path: Path) -> None:
    directory = DirectoryStore(tmp_path).facts()

    assert s3.facts() == {"type": "s3", "object_lock": None, "versioning": False, "free": None}
    assert sorted(directory) == sorted(s3.facts())


# Object lock


@pytest.fixture
def locked_bucket(lab: Lab, administrator: Any) -> str:
    """Return a bucket with object lock."""
    lab.proxy.clear()
    name = "test-locked-" + os.urandom(4).hex()
    administrator.create_bucket(
        Bucket=name, ObjectLockEnabledForBucket=True, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    return name


@pytest.mark.parametrize("size", [1000, len(CONTENT)], ids=["in one piece", "in parts"])
def test_retention_keeps_each_object_of_a_backup(lab: Lab, locked_bucket: str, size: int) -> None:
    store = s3_store(lab, locked_bucket, retention=Retention("COMPLIANCE", 30))
    began = datetime.now(timezone.utc).replace(microsecond=0)

    write(store, content=CONTENT[:size])

    assert store.facts() == {"type": "s3", "object_lock": {"mode": None, "days": None}, "versioning": True, "free": None}
    for key in (DATA, MANIFEST):
        head = store.client.head_object(**store.where(key))
        assert head["ObjectLockMode"] == "COMPLIANCE"
        assert head["ObjectLockRetainUntilDate"] >= began + timedelta(days=30)
        with pytest.raises(store.client.exceptions.ClientError, match="AccessDenied"):
            store.client.delete_object(**store.where(key), VersionId=head["VersionId"])
    # A mark hides it; the data stays.
    store.delete(DATA)
    assert keys(store) == [MANIFEST]


def test_retention_without_object_lock_is_refused_before_anything_is_written(lab: Lab, bucket: str) -> None:
    with pytest.raises(StoreError, match="the bucket has no object lock"):
        s3_store(lab, bucket, retention=Retention("GOVERNANCE", 7)).facts()


def test_a_role_is_assumed(lab: Lab, bucket: str) -> None:
    assuming = replace(OPTIONS, endpoint_url=lab.endpoint, role_arn="arn:aws:iam::123456789012:role/backup")
    write(s3_store(lab, bucket))

    store = S3Store(client_for(assuming), bucket, "backups/lms", assuming)

    assert keys(store) == [DATA, MANIFEST]
    # Given by the service for the role, not the keys of the options.
    assert "Credential=lab/" not in lab.proxy.requests[-1].headers["authorization"]


# How a bucket is set up


def set_up(lab: Lab, name: str, check_mode: bool = False, **options: Any) -> dict[str, Any]:
    """Run what the module backup_repository runs."""
    s3 = {"endpoint_url": lab.endpoint, "region": "eu-central-1", "access_key": "lab", "secret_key": "lab", "sse": "AES256"}
    defaults = {option: spec.get("default") for option, spec in backup_repository.argument_spec().items()}
    return backup_repository.run({**defaults, "repository": f"s3://{name}/lms", "s3": s3, **options}, check_mode)


def new_bucket() -> str:
    """Return the name of a bucket that is not there."""
    return "test-new-" + os.urandom(4).hex()


def test_a_bucket_is_created_and_set_up_once(lab: Lab, administrator: Any) -> None:
    lab.proxy.clear()
    name = new_bucket()
    wanted: dict[str, Any] = {"object_lock": {"mode": "COMPLIANCE", "days": 14}, "recipients": ["age1b", "age1a"]}

    planned = set_up(lab, name, check_mode=True, **wanted)
    asked = {request.operation for request in lab.proxy.requests}
    made = set_up(lab, name, **wanted)
    again = set_up(lab, name, **wanted)

    assert asked == {"HeadBucket"}
    settings = ("versioning", "object_lock", "public_access_block", "encryption", "lifecycle")
    steps = [f"create the bucket {name}", *(f"set {setting} of the bucket {name}" for setting in settings), "write repository.json"]
    assert (planned["changed"], planned["plan"], planned["id"]) == (True, steps, "")
    assert (made["changed"], made["plan"], made["settings"]) == (True, steps, planned["settings"])
    assert (again["changed"], again["plan"], again["id"], again["settings"]) == (False, [], made["id"], made["settings"])
    assert again["diff"]["before"] == again["diff"]["after"] == made["diff"]["after"]
    assert made["settings"] == {
        "exists": True,
        "versioning": True,
        "public_access_block": True,
        "encryption": {"sse": "AES256", "kms_key_id": ""},
        "object_lock": {"mode": "COMPLIANCE", "days": 14},
        "lifecycle": Lifecycle().rule("lms/"),
    }
    # And that is what the service says, not only what was read back.
    assert administrator.get_bucket_versioning(Bucket=name)["Status"] == "Enabled"
    lock = administrator.get_object_lock_configuration(Bucket=name)["ObjectLockConfiguration"]["Rule"]["DefaultRetention"]
    assert (lock["Mode"], lock["Days"]) == ("COMPLIANCE", 14)


def test_changed_settings_converge_and_those_of_others_stay(lab: Lab, administrator: Any) -> None:
    lab.proxy.clear()
    name = new_bucket()
    first = set_up(lab, name)
    other = {"ID": "logs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 7}}
    rules = administrator.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]
    administrator.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": [*rules, other]})

    shown = set_up(lab, name, check_mode=True, lifecycle={"expire_days": 400}, recipients=["age1c"])
    changed = set_up(lab, name, lifecycle={"expire_days": 400}, recipients=["age1c"])
    cleared = set_up(lab, name, lifecycle={"abort_incomplete_days": 0, "expire_days": 0, "noncurrent_days": 0}, recipients=["age1c"])

    assert shown["plan"] == changed["plan"] == [f"set lifecycle of the bucket {name}", "write repository.json"]
    assert changed["id"] == first["id"]
    assert changed["diff"]["after"]["lifecycle"]["Expiration"] == {"Days": 400}
    assert cleared["plan"] == [f"set lifecycle of the bucket {name}"]
    left = administrator.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]
    assert [rule["ID"] for rule in left] == ["logs"]


def test_object_lock_cannot_be_added_later(lab: Lab) -> None:
    lab.proxy.clear()
    name = new_bucket()
    set_up(lab, name)

    with pytest.raises(StoreError, match="has no object lock, which it can be given only when it is created"):
        set_up(lab, name, object_lock={"mode": "GOVERNANCE", "days": 7})


def test_a_service_without_some_settings_is_named_and_can_be_used(lab: Lab) -> None:
    lab.proxy.clear()
    name = new_bucket()
    lab.proxy.add(*(answer(501, "NotImplemented", operation=f"{verb}PublicAccessBlock", times=None) for verb in ("Get", "Put")))

    with pytest.raises(StoreError, match="set public_access_block of the bucket"):
        set_up(lab, name)
    set_up(lab, name, public_access_block=False)

    assert set_up(lab, name, public_access_block=False)["changed"] is False


def test_a_bucket_that_was_made_although_the_answer_was_lost_is_ours(lab: Lab) -> None:
    lab.proxy.clear()
    lab.proxy.add(Fault("CreateBucket", lose_answer=True))

    assert set_up(lab, new_bucket())["changed"] is True


@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_the_module_sets_up_a_repository_on_a_host(lab: Lab, host: Host, kind: str) -> None:
    lab.proxy.clear()
    uri = f"/srv/{new_bucket()}" if kind == "directory" else f"s3://{new_bucket()}/lms"
    keys_and_address = {"endpoint_url": lab.endpoint_for(host.name), "region": "eu-central-1", "access_key": "lab", "secret_key": "lab"}
    options: dict[str, Any] = {"repository": uri} if kind == "directory" else {"repository": uri, "s3": keys_and_address}

    planned = host.module("backup_repository", check_mode=True, **options)
    made = host.module("backup_repository", **options)
    again = host.module("backup_repository", **options)

    assert [planned["changed"], made["changed"], again["changed"]] == [True, True, False]
    assert planned["plan"] == made["plan"] == [*made["plan"][:-1], "write repository.json"]
    assert again["id"] == made["id"] != ""


# How much memory it takes

METER = """
import re, sys
sys.path.insert(0, sys.argv[1])
from ansible_collections.bitflow.lms.plugins.module_utils._backup_repositories import open_store
store = open_store({"repository": sys.argv[2], "s3": {"endpoint_url": sys.argv[3], "region": "eu-central-1", "access_key": "lab",
                    "secret_key": "lab"}})
draft = store.draft(sys.argv[4])
upload = draft.upload("data.dump")
piece = bytes(1 << 20)
for _number in range(int(sys.argv[5])):
    upload.write(piece)
upload.complete()
draft.publish(b"{}")
# Not ru_maxrss, which a program takes over from the one that started it.
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024)
"""


def test_memory_does_not_grow_with_the_backup(lab: Lab, s3: S3Store) -> None:
    argv = [sys.executable, "-c", METER, str(PROJECT / "collections"), s3.uri, lab.endpoint, PATH, os.environ.get("LMS_STREAM_MIB", "80")]

    peak = int(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)

    assert peak <= 160
