# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository in a bucket of S3, or of a service that speaks like it.

What is written is never written over: each PUT and each end of an upload carries C(If-None-Match: *). An object also carries a random
word of its writer, so that one that is there although the answer was an error, or got lost, is known as one's own.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar, cast

from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import (
    MANIFEST,
    Entry,
    LockedObjectError,
    MissingObjectError,
    ObjectExistsError,
    Partial,
    StoredObject,
    StoreError,
    check_key,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

try:
    import boto3
    import botocore.credentials
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
    from urllib3.exceptions import HTTPError
except ImportError as error:
    MISSING: ImportError | None = error
    # So that the code that names them can be read; nothing of it runs without a client.
    BotoCoreError = ClientError = HTTPClientError = NoCredentialsError = LmsError
    HTTPError = LmsError  # type: ignore[misc, assignment]
else:
    MISSING = None

PIECE = 1024 * 1024
SMALLEST_PART = 5 * 1024 * 1024
LARGEST_PART = 5 * 1024 * 1024 * 1024
# While one part of this size is on its way the next one may be collected (bytes).
OVERLAPPING = 32 * 1024 * 1024
ATTEMPTS = 5
CONNECT_TIMEOUT = 10
READ_TIMEOUT = 60
LONGEST_PAUSE = 20
# How deep a backup lies: environment, kind, name, id.
DEPTH = 4
# The key of the metadata that says who wrote an object.
WRITER = "bitflow-writer"

FORBIDDEN = frozenset({"403", "AccessDenied", "AllAccessDisabled", "Forbidden", "ObjectLocked"})
NOT_FOUND = frozenset({"NoSuchKey", "NoSuchUpload", "404", "NotFound"})
EXISTS = frozenset({"PreconditionFailed", "412"})
# What a bucket without object lock answers to who asks for it.
NO_LOCK = frozenset({"InvalidRequest", "NotImplemented", "ObjectLockConfigurationNotFoundError"})
TRANSIENT = frozenset(
    {
        *("BadDigest", "ConditionalRequestConflict", "InternalError", "OperationAborted", "RequestLimitExceeded", "RequestTimeout"),
        *("RequestTimeoutException", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"),
        *("TooManyRequestsException", "XAmzContentSHA256Mismatch"),
    }
)
FAILURES = (BotoCoreError, ClientError, HTTPError, OSError)

T = TypeVar("T")


class DeniedError(StoreError):
    """A request that the identity may not make."""


@dataclass(frozen=True)
class Retention:
    """How long object lock keeps an object."""

    # GOVERNANCE or COMPLIANCE
    mode: str
    days: int


@dataclass(frozen=True)
class S3Options:
    """The option s3. Empty values are what the SDK finds by itself."""

    endpoint_url: str = ""
    region: str = ""
    profile: str = ""
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    role_arn: str = ""
    ca_bundle: str = ""
    sse: str = ""
    kms_key_id: str = ""
    storage_class: str = ""
    part_size: int = 16 * 1024 * 1024
    max_parts: int = 10000
    addressing_style: str = "auto"
    retention: Retention | None = None

    @classmethod
    def of(cls, option: Mapping[str, Any] | None) -> S3Options:
        """Read the option, or say what is wrong with it."""
        given = {key: value for key, value in (option or {}).items() if value is not None}
        if given.get("retention"):
            given["retention"] = Retention(given["retention"]["mode"], given["retention"]["days"])
            if given["retention"].days < 1:
                raise LmsError(f"s3.retention.days is {given['retention'].days}. Give one day at least.")
        options = cls(**given)
        if not SMALLEST_PART <= options.part_size <= LARGEST_PART:
            raise LmsError(f"s3.part_size is {options.part_size}. S3 takes parts from {SMALLEST_PART} to {LARGEST_PART} bytes.")
        if not 1 <= options.max_parts <= 10000:
            raise LmsError(f"s3.max_parts is {options.max_parts}. S3 takes from 1 to 10000 parts.")
        if options.kms_key_id and options.sse != "aws:kms":
            raise LmsError("s3.kms_key_id is given, but s3.sse is not aws:kms.")
        return options

    def storage(self) -> dict[str, str]:
        """Return how every object is stored."""
        found = {"ServerSideEncryption": self.sse, "SSEKMSKeyId": self.kms_key_id}
        return {key: value for key, value in found.items() if value}


def client_for(options: S3Options, read_timeout: float = READ_TIMEOUT) -> Any:
    """Return a client of S3. Nothing is asked yet."""
    if MISSING is not None:
        raise LmsError("A repository on S3 needs boto3. Install the Debian package python3-boto3 on the host.") from MISSING
    settings = {
        "connect_timeout": CONNECT_TIMEOUT,
        "read_timeout": read_timeout,
        # S3Store tries again itself: it has to look first whether a write was done although it failed.
        "retries": {"total_max_attempts": 1},
        "s3": {"addressing_style": options.addressing_style},
    }
    try:
        # Left to itself a newer SDK adds checksums that not every service knows. Content-MD5 all of them check.
        config = Config(**settings, request_checksum_calculation="when_required", response_checksum_validation="when_required")
    except TypeError:
        config = Config(**settings)
    common = {"config": config, "endpoint_url": options.endpoint_url or None, "verify": options.ca_bundle or None}
    try:
        session = boto3.session.Session(
            aws_access_key_id=options.access_key or None,
            aws_secret_access_key=options.secret_key or None,
            aws_session_token=options.session_token or None,
            region_name=options.region or None,
            profile_name=options.profile or None,
        )
        if options.role_arn:
            session = _assuming(session, options, common)
        # Services that are not AWS have no regions, but a signature needs one.
        region = None if session.region_name or not options.endpoint_url else "us-east-1"
        return session.client("s3", region_name=region, **common)
    except (BotoCoreError, ValueError) as error:
        raise LmsError(f"The options s3 cannot be used: {error}") from error


def _assuming(session: Any, options: S3Options, common: Mapping[str, Any]) -> Any:
    """Return a session with the credentials of the role, which are renewed before they expire."""
    settings = dict(common)
    if "amazonaws.com" in options.endpoint_url:
        # An endpoint of S3 alone.
        settings["endpoint_url"] = None
    region = session.region_name or "us-east-1"
    service = session.client("sts", region_name=region, **settings)

    def renew() -> dict[str, str]:
        given = service.assume_role(RoleArn=options.role_arn, RoleSessionName="bitflow-lms-backup")["Credentials"]
        return {
            "access_key": given["AccessKeyId"],
            "secret_key": given["SecretAccessKey"],
            "token": given["SessionToken"],
            "expiry_time": given["Expiration"].isoformat(),
        }

    core = botocore.session.get_session()
    core._credentials = botocore.credentials.DeferredRefreshableCredentials(refresh_using=renew, method="sts-assume-role")
    return boto3.session.Session(botocore_session=core, region_name=region)


def part_size_at(number: int, first: int, max_parts: int) -> int:
    """Return the size of a part, counted from 1. It doubles each eighth of the parts: nobody knows how large a stream becomes."""
    return min(first << ((number - 1) // max(1, max_parts // 8)), LARGEST_PART)


def multipart_etag(digests: Sequence[bytes]) -> str:
    """Return the ETag of an object of parts with these MD5 sums."""
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


def error_code(error: BaseException) -> str:
    """Return what S3 calls an error; nothing for one of the connection."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def is_transient(error: BaseException) -> bool:
    """Say whether the same request may succeed a moment later."""
    if not isinstance(error, ClientError):
        return isinstance(error, (HTTPClientError, HTTPError, OSError))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return error_code(error) in TRANSIENT or status == 429 or (status >= 500 and status != 501)


class S3Store:
    """A repository in a bucket."""

    def __init__(self, client: Any, bucket: str, prefix: str, options: S3Options, sleep: Callable[[float], None] = time.sleep) -> None:
        self.client = client
        self.bucket = bucket
        self.options = options
        self.uri = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        # Whether the service knows If-None-Match, as far as it was seen.
        self.conditional = True
        self.prefix = prefix
        self._prefix = f"{prefix}/" if prefix else ""
        self._sleep = sleep
        for operation in ("PutObject", "CompleteMultipartUpload"):
            # By event, because the client of Debian 12 has no parameter for it.
            client.meta.events.register(f"before-call.s3.{operation}", self._never_over)

    def _never_over(self, params: dict[str, Any], **_other: Any) -> None:
        """Ask S3 to refuse what would replace an object."""
        if self.conditional:
            params["headers"]["If-None-Match"] = "*"

    # Looking

    def facts(self) -> dict[str, Any]:
        """Check, without writing, that it can be used, and say what is known."""
        what = f"The repository {self.uri} cannot be used"
        self.attempt(what, lambda: self.client.list_objects_v2(Bucket=self.bucket, Prefix=self._prefix, MaxKeys=1))
        versioning = self._known(lambda: self.client.get_bucket_versioning(Bucket=self.bucket).get("Status") == "Enabled")
        lock = self._known(lambda: self.client.get_object_lock_configuration(Bucket=self.bucket)["ObjectLockConfiguration"])
        if self.options.retention and not lock:
            raise StoreError(
                f"{what}: s3.retention is given, and the bucket has no object lock, or does not say so. "
                "Leave s3.retention out, or let backup_repository create a bucket with object_lock."
            )
        default = ((lock or {}).get("Rule") or {}).get("DefaultRetention") or {}
        days = default.get("Days") or 365 * default.get("Years", 0) or None
        known = {"mode": default.get("Mode"), "days": days} if lock else None
        return {"type": "s3", "object_lock": known, "versioning": versioning, "free": None}

    def entries(self, prefix: str = "") -> list[Entry]:
        """Return the keys below a prefix, sorted."""
        next_page = {"ContinuationToken": "NextContinuationToken"}
        pages = self._pages(f"{self.uri} cannot be listed", self.client.list_objects_v2, next_page, Prefix=self._prefix + prefix)
        found = [
            Entry(item["Key"][len(self._prefix) :], item["Size"], item["LastModified"].timestamp())
            for page in pages
            for item in page.get("Contents", [])
            if not item["Key"].endswith("/")
        ]
        return sorted(found, key=lambda entry: entry.key)

    def read(self, key: str) -> bytes:
        """Return a small object whole."""
        return b"".join(self.stream(key))

    def stream(self, key: str) -> Iterator[bytes]:
        """Return an object in pieces. A cut connection is taken up where it was cut."""
        what = f"{key} cannot be read"
        offset, size, etag, failures = 0, None, "", 0
        while size is None or offset < size:
            # The same object to the end: nobody should have replaced it, and a mixture would be neither.
            rest = {"Range": f"bytes={offset}-", "IfMatch": etag} if offset else {}
            try:
                reply = self.attempt(what, lambda rest=rest: self.client.get_object(**self.where(key), **rest))  # type: ignore[misc]
            except ObjectExistsError as error:
                raise StoreError(f"{what}: it was replaced while it was being read.") from error
            size, etag = size if size is not None else reply["ContentLength"], reply["ETag"]
            try:
                with contextlib.closing(reply["Body"]) as body:
                    while piece := body.read(PIECE):
                        offset += len(piece)
                        failures = 0
                        yield piece
                if offset < size:
                    raise OSError(f"{offset} of {size} bytes came")
            except FAILURES as error:  # pylint: disable=catching-non-exception
                failures += 1
                if failures >= ATTEMPTS:
                    raise self.error(what, error) from error
                self._sleep(self._pause(failures))

    def partials(self, prefix: str = "") -> list[Partial]:
        """Return what interrupted backups left below a prefix, and those that are being written: nobody can tell them apart here."""
        found: dict[str, _Left] = {}
        for upload in self._unfinished(prefix):
            key, name = upload["Key"][len(self._prefix) :], upload["UploadId"]
            left = found.setdefault(_backup_path(key), _Left())
            left.uploads.append((key, name))
            left.times.append(upload["Initiated"].timestamp())
            left.size += self._size_of_parts(key, name)
        entries = self.entries(prefix)
        complete = {entry.key.rpartition("/")[0] for entry in entries if entry.key.endswith(f"/{MANIFEST}")}
        for entry in entries:
            path = _backup_path(entry.key)
            if path and path not in complete:
                left = found.setdefault(path, _Left())
                left.keys.append(entry.key)
                left.times.append(entry.modified)
                left.size += entry.size
        return [left.partial(path) for path, left in sorted(found.items()) if path]

    def lock_of(self, key: str) -> tuple[datetime | None, bool]:
        """Return until when object lock keeps an object, and whether a legal hold does. A delete would hide it, and remove nothing."""
        head = self.attempt(f"{key} cannot be looked at", lambda: self.client.head_object(**self.where(key)))
        return head.get("ObjectLockRetainUntilDate"), head.get("ObjectLockLegalHoldStatus") == "ON"

    # Changing

    def create(self, key: str, content: bytes) -> None:
        """Write a small object, durably and at once or not at all."""
        self.put(key, content)

    def legal_hold(self, key: str, on: bool) -> None:
        """Set or lift the legal hold of an object. A bucket without object lock has none."""
        status = {"Status": "ON" if on else "OFF"}
        try:
            self.attempt(
                f"The legal hold of {key} cannot be set {status['Status']}",
                lambda: self.client.put_object_legal_hold(**self.where(key), LegalHold=status),
            )
        except StoreError as error:
            if error.__cause__ is None or error_code(error.__cause__) not in NO_LOCK:
                raise

    def delete(self, key: str) -> None:
        """Delete an object. A bucket with versions keeps it behind a mark until its lifecycle ends it."""
        self._remove(f"{key} may not be deleted from {self.uri}", lambda: self.client.delete_object(**self.where(key)))

    def draft(self, path: str) -> S3Draft:
        """Begin a backup."""
        check_key(path)
        if self.exists(f"{path}/{MANIFEST}"):
            raise ObjectExistsError(f"The backup {path} is in the repository {self.uri} already.")
        return S3Draft(self, path)

    def sweep(self, partial: Partial) -> None:
        """Remove what an interrupted backup left, as far as that is allowed, and say so where it was not."""
        refused: list[LockedObjectError] = []
        for key, name in partial.uploads:
            try:
                self.abort(key, name)
            except LockedObjectError as error:
                refused.append(error)
        if partial.keys and not self.exists(f"{partial.path}/{MANIFEST}"):
            for key in partial.keys:
                try:
                    self.delete(key)
                except LockedObjectError as error:
                    refused.append(error)
        if refused:
            raise refused[0]

    # For the drafts

    def where(self, key: str) -> dict[str, str]:
        """Return which object is meant, for a request."""
        check_key(key)
        return {"Bucket": self.bucket, "Key": self._prefix + key}

    def exists(self, key: str) -> bool:
        """Say whether an object is there. By a list: for one that is missing, HEAD is denied to who may list below a prefix only."""
        where = self.where(key)
        what = f"{key} cannot be looked for"
        page = self.attempt(what, lambda: self.client.list_objects_v2(Bucket=where["Bucket"], Prefix=where["Key"], MaxKeys=1))
        return any(item["Key"] == where["Key"] for item in page.get("Contents", []))

    def look_first(self, key: str) -> None:
        """Refuse to replace an object where the service cannot refuse it itself."""
        if not self.conditional and self.exists(key):
            raise ObjectExistsError(f"{key} is in the repository {self.uri} already, and stays as it is.")

    def put(self, key: str, content: bytes, **how: Any) -> str:
        """Write an object in one piece that is not there yet, and return its ETag."""
        writer, digest = secrets.token_hex(16), hashlib.md5(content, usedforsecurity=False).digest()

        def send() -> str:
            self.look_first(key)
            reply = self.client.put_object(
                **self.where(key),
                Body=content,
                ContentMD5=base64.b64encode(digest).decode(),
                Metadata={WRITER: writer},
                **self.options.storage(),
                **how,
            )
            return str(reply["ETag"]).strip('"')

        return self.attempt(f"{key} cannot be written", send, done=lambda: self.written(key, writer, len(content)))

    def abort(self, key: str, name: str) -> None:
        """Give an upload up; one that is gone is given up."""
        self._remove(
            f"The unfinished upload of {key} to {self.uri} may not be ended",
            lambda: self.client.abort_multipart_upload(**self.where(key), UploadId=name),
        )

    def written(self, key: str, writer: str, size: int) -> str | None:
        """Return the ETag of an object if it is this writer's and whole."""
        with contextlib.suppress(*FAILURES):
            head = self.client.head_object(**self.where(key))
            if head.get("Metadata", {}).get(WRITER) == writer and head["ContentLength"] == size:
                return str(head["ETag"]).strip('"')
        return None

    def retain(self, key: str, now: datetime) -> None:
        """Let object lock keep an object for as long as s3.retention says, and see that it does."""
        retention = self.options.retention
        if retention is None:
            return
        wanted = {"Mode": retention.mode, "RetainUntilDate": now + timedelta(days=retention.days)}
        what = f"{key} cannot be kept by object lock"
        head = self.attempt(what, lambda: self.client.head_object(**self.where(key)))
        if not _keeps(head, wanted):
            self.attempt(what, lambda: self.client.put_object_retention(**self.where(key), Retention=wanted))
            head = self.attempt(what, lambda: self.client.head_object(**self.where(key)))
        if not _keeps(head, wanted):
            raise StoreError(f"{what}: the service took the order, but {self.uri} does not have it. It may not know object lock.")

    def attempt(
        self,
        what: str,
        call: Callable[[], T],
        done: Callable[[], T | None] = lambda: None,
        going: Callable[[], bool] = lambda: True,
    ) -> T:
        """Make a request, some times where that may help. done looks whether a write was made although it failed."""
        for failures in range(1, ATTEMPTS + 1):
            try:
                return call()
            except FAILURES as error:  # pylint: disable=catching-non-exception
                found = done()
                if found is not None:
                    return found
                if self._without_condition(error):
                    continue
                if not is_transient(error) or failures == ATTEMPTS or not going():
                    raise self.error(what, error) from error
                self._sleep(self._pause(failures))
        raise StoreError(f"{what}: the service {self.options.endpoint_url} refused it in every form.")

    def error(self, what: str, error: BaseException) -> StoreError:
        """Say what failed and what to do."""
        code = error_code(error)
        if code in EXISTS:
            return ObjectExistsError(f"{what}: it is in the repository {self.uri} already, and stays as it is.")
        if code in NOT_FOUND:
            return MissingObjectError(f"{what}: it is not in the repository {self.uri}.")
        if code == "NoSuchBucket":
            return StoreError(f"{what}: there is no bucket {self.bucket}. The module backup_repository creates it.")
        if code in FORBIDDEN:
            return DeniedError(f"{what}: the identity that is used may not do that in {self.uri}.")
        if isinstance(error, NoCredentialsError):
            return StoreError(f"{what}: there are no keys. Give s3.access_key and s3.secret_key, or run it where the SDK finds some.")
        said = error.response["Error"].get("Message", code) if isinstance(error, ClientError) else str(error)
        return StoreError(f"{what}: {code + ': ' if code else ''}{said} (repository {self.uri}).")

    # Helpers

    def _remove(self, denied: str, call: Callable[[], Any]) -> None:
        """Make a request that removes something, which may be gone already."""
        try:
            self.attempt(denied.replace("may not", "cannot"), call)
        except MissingObjectError:
            return
        except DeniedError as error:
            raise LockedObjectError(f"{denied}: the identity that is used may not do that, or object lock forbids it.") from error

    def _without_condition(self, error: BaseException) -> bool:
        """Notice a service that does not know If-None-Match, and do without."""
        if error_code(error) != "NotImplemented" or not self.conditional:
            return False
        self.conditional = False
        return True

    def _known(self, call: Callable[[], T]) -> T | None:
        """Ask for a setting, which the identity need not see nor the service know."""
        with contextlib.suppress(StoreError):
            return self.attempt("A setting of the bucket cannot be read", call)
        return None

    def _pages(self, what: str, call: Callable[..., Any], next_page: Mapping[str, str], **arguments: Any) -> Iterator[Mapping[str, Any]]:
        """Return the pages of a list. Those of the SDK end without a word after a page that had to be asked for twice."""
        while True:
            page = self.attempt(what, lambda asked=dict(arguments): call(Bucket=self.bucket, **asked))  # type: ignore[misc]
            yield page
            if not page.get("IsTruncated"):
                return
            arguments.update({asked: page[given] for asked, given in next_page.items()})

    def _unfinished(self, prefix: str) -> list[Mapping[str, Any]]:
        """Return the uploads below a prefix that were not completed."""
        what = f"Unfinished uploads of {self.uri} cannot be listed"
        next_page = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        pages = self._pages(what, self.client.list_multipart_uploads, next_page, Prefix=self._prefix + prefix)
        return [upload for page in pages for upload in page.get("Uploads", [])]

    def _size_of_parts(self, key: str, name: str) -> int:
        """Return how much of an upload was sent, or 0 where that is not told."""
        next_page = {"PartNumberMarker": "NextPartNumberMarker"}
        what = f"The parts of {key} cannot be listed"
        try:
            pages = list(self._pages(what, self.client.list_parts, next_page, Key=self._prefix + key, UploadId=name))
        except StoreError:
            return 0
        return sum(part["Size"] for page in pages for part in page.get("Parts", []))

    @staticmethod
    def _pause(failures: int) -> float:
        """Return how long to wait (seconds): longer each time, and not as long as everybody else."""
        return random.uniform(0.5, 1) * min(LONGEST_PAUSE, 2.0 ** (failures - 1))  # noqa: S311 - it hides nothing


@dataclass
class _Left:
    """What an interrupted backup left, while it is being collected."""

    uploads: list[tuple[str, str]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    size: int = 0

    def partial(self, path: str) -> Partial:
        """Return it as the stores do."""
        return Partial(path, min(self.times), self.size, uploads=tuple(self.uploads), keys=tuple(self.keys))


class S3Draft:
    """A backup that is being written to a bucket."""

    def __init__(self, store: S3Store, path: str) -> None:
        self.store = store
        self.path = path
        self.started = datetime.now(timezone.utc).replace(microsecond=0)
        self._uploads: list[S3Upload] = []
        self._done = False
        self._publishing = False

    def upload(self, name: str) -> S3Upload:
        """Begin a data object."""
        upload = S3Upload(self.store, f"{self.path}/{name}", self.started)
        self._uploads.append(upload)
        return upload

    def publish(self, manifest: bytes) -> None:
        """Write the manifest, and let everybody see the backup."""
        unfinished = [upload.key for upload in self._uploads if upload.state == "open"]
        if unfinished:
            raise StoreError(f"The backup {self.path} cannot be published: {unfinished[0]} is not complete.")
        key = f"{self.path}/{MANIFEST}"
        self._publishing = True
        self.store.put(key, manifest)
        self._done = True
        self.store.retain(key, self.started)

    def discard(self) -> None:
        """Remove what was written. Who may not delete leaves it for a later sweep."""
        if self._done:
            return
        self._done = True
        for upload in self._uploads:
            upload.abort()
        with contextlib.suppress(LmsError):
            # Its answer may have got lost. Where nobody can tell, a sweep will.
            if self._publishing and self.store.exists(f"{self.path}/{MANIFEST}"):
                return
            for upload in self._uploads:
                if upload.ended:
                    self.store.delete(upload.key)


class S3Upload:
    """A data object that is being written in parts, of which one is on its way while the next one is collected."""

    def __init__(self, store: S3Store, key: str, started: datetime) -> None:
        check_key(key)
        self.store = store
        self.key = key
        # open, complete or given up
        self.state = "open"
        # Whether the object may be there.
        self.ended = False
        self._started = started
        self._writer = secrets.token_hex(16)
        self._name = ""
        self._hash = hashlib.sha256()
        self._size = 0
        self._collected = bytearray()
        self._digests: list[bytes] = []
        self._etags: list[str] = []
        self._sender: ThreadPoolExecutor | None = None
        self._sending: Future[str] | None = None

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self._check_open()
        try:
            self._hash.update(data)
            self._size += len(data)
            view = memoryview(data)
            while view:
                room = self._part_size - len(self._collected)
                self._collected += view[:room]
                view = view[room:]
                if len(self._collected) >= self._part_size and view:
                    self._send()
        except BaseException:
            self.abort()
            raise

    def complete(self) -> StoredObject:
        """End the upload, and see that the object is there as it was sent."""
        self._check_open()
        try:
            etag = self._complete_parts() if self._name else self._put()
            self.store.retain(self.key, self._started)
        except BaseException:
            self.abort()
            raise
        return StoredObject(self.key.rpartition("/")[2], self._size, self._hash.hexdigest(), max(1, len(self._digests)), etag)

    def abort(self) -> None:
        """Leave nothing behind. What is complete stays for the draft to publish or to discard."""
        if self.state != "open":
            return
        self.state = "given up"
        if self._sending is not None:
            # An answer that comes after the end of the upload would leave a part behind.
            with contextlib.suppress(Exception):
                self._sending.result()
        self._end_sender()
        if self._name:
            with contextlib.suppress(LmsError):
                self.store.abort(self.key, self._name)

    @property
    def _part_size(self) -> int:
        """Return the size of the part that is collected."""
        return part_size_at(len(self._digests) + 1, self.store.options.part_size, self.store.options.max_parts)

    def _check_open(self) -> None:
        """Refuse what comes too late."""
        if self.state != "open":
            raise StoreError(f"{self.key} takes no more data: its upload is {self.state}.")

    def _how(self) -> dict[str, Any]:
        """Return how data is stored."""
        storage_class = self.store.options.storage_class
        return {"StorageClass": storage_class} if storage_class else {}

    def _put(self) -> str:
        """Write everything in one request: there is not more than a part."""
        self.ended = True
        etag = self.store.put(self.key, bytes(self._collected), **self._how())
        self.state = "complete"
        return etag

    def _send(self) -> None:
        """Send what was collected."""
        store = self.store
        if len(self._digests) >= store.options.max_parts:
            raise StoreError(
                f"{self.key} needs more than {store.options.max_parts} parts, and the service takes no more. Set s3.part_size higher than "
                f"{store.options.part_size}."
            )
        if self._sender is None:
            self._begin()
        self._wait()
        part, self._collected = self._collected, bytearray()
        digest = hashlib.md5(part, usedforsecurity=False).digest()
        self._digests.append(digest)
        # _begin made it.
        self._sending = cast("ThreadPoolExecutor", self._sender).submit(self._send_part, len(self._digests), part, digest)
        if len(part) > OVERLAPPING:
            del part
            self._wait()

    def _begin(self) -> None:
        """Begin an upload in parts."""
        store = self.store
        self._name = store.attempt(
            f"The upload of {self.key} cannot be begun",
            lambda: store.client.create_multipart_upload(
                **store.where(self.key), Metadata={WRITER: self._writer}, **store.options.storage(), **self._how()
            )["UploadId"],
        )
        self._sender = ThreadPoolExecutor(1)

    def _send_part(self, number: int, part: bytearray, digest: bytes) -> str:
        """Send a part, some times where that may help, and return its ETag."""
        store = self.store

        def send() -> str:
            reply = store.client.upload_part(
                **store.where(self.key),
                UploadId=self._name,
                PartNumber=number,
                # As it is: a file object would hold a copy of it.
                Body=part,
                ContentMD5=base64.b64encode(digest).decode(),
            )
            return str(reply["ETag"])

        return store.attempt(f"Part {number} of {self.key} cannot be sent", send, going=lambda: self.state == "open")

    def _wait(self) -> None:
        """Wait for the part that is on its way."""
        if self._sending is not None:
            sending, self._sending = self._sending, None
            self._etags.append(sending.result())

    def _end_sender(self) -> None:
        """End the thread that sends."""
        self._sending = None
        if self._sender is not None:
            self._sender.shutdown()

    def _complete_parts(self) -> str:
        """Send the last part and make an object of all of them."""
        store = self.store
        self._send()
        self._wait()
        self._end_sender()
        self.ended = True
        parts = [{"ETag": etag, "PartNumber": number} for number, etag in enumerate(self._etags, 1)]

        def end() -> str:
            store.look_first(self.key)
            reply = store.client.complete_multipart_upload(**store.where(self.key), UploadId=self._name, MultipartUpload={"Parts": parts})
            return str(reply["ETag"]).strip('"')

        store.attempt(f"The upload of {self.key} cannot be completed", end, done=lambda: store.written(self.key, self._writer, self._size))
        self.state = "complete"
        head = store.attempt(f"{self.key} cannot be looked at", lambda: store.client.head_object(**store.where(self.key)))
        return self._check(head["ContentLength"], str(head["ETag"]).strip('"'))

    def _check(self, size: int, etag: str) -> str:
        """Compare the object with what was sent, and return its ETag."""
        # Where the service encrypts with keys of KMS, no ETag is an MD5 sum. A part alone whose ETag is none arrived damaged.
        same = [given.strip('"') == digest.hex() for given, digest in zip(self._etags, self._digests)]
        if size != self._size or (any(same) and (not all(same) or etag != multipart_etag(self._digests))):
            raise StoreError(f"{self.key} has {size} bytes and the ETag {etag}, but {self._size} bytes were sent. Make the backup again.")
        return etag


def _backup_path(key: str) -> str:
    """Return the path of the backup that an object belongs to, or nothing."""
    parts = key.split("/")
    return "/".join(parts[:DEPTH]) if len(parts) == DEPTH + 1 else ""


def _keeps(head: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Say whether an object is kept at least as strictly and as long as is wanted."""
    until = head.get("ObjectLockRetainUntilDate")
    return head.get("ObjectLockMode") in (wanted["Mode"], "COMPLIANCE") and until is not None and until >= wanted["RetainUntilDate"]
