# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a repository is set up: a directory with its owner and mode, or a bucket with its versions, locks and lifecycle."""

from __future__ import annotations

import contextlib
import grp
import json
import pwd
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import FORMAT, canonical, iso
from ansible_collections.bitflow.lms.plugins.module_utils._backup_directory import DirectoryStore
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import DESCRIPTION, MissingObjectError, Store, StoreError
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import Owner, mode_number, sync_directory

if TYPE_CHECKING:
    from ansible_collections.bitflow.lms.plugins.module_utils._backup_s3 import S3Store

# The lifecycle rules of a bucket whose ids begin so are ours; others are left alone.
RULE = "bitflow-backups"
ALL_BLOCKED = {"BlockPublicAcls": True, "IgnorePublicAcls": True, "BlockPublicPolicy": True, "RestrictPublicBuckets": True}


@dataclass(frozen=True)
class Lifecycle:
    """What a bucket does by itself as time passes (days; 0 is never)."""

    abort_incomplete_days: int = 2
    # 0, or when backups stop the last good one would go too.
    expire_days: int = 0
    noncurrent_days: int = 90

    @classmethod
    def of(cls, option: Mapping[str, Any] | None) -> Lifecycle:
        """Read the option, or say what is wrong with it."""
        found = cls(**{key: value for key, value in (option or {}).items() if value is not None})
        for key, value in vars(found).items():
            if value < 0:
                raise LmsError(f"lifecycle.{key} is {value}. Give a number of days, or 0 for never.")
        return found

    def rule(self, prefix: str) -> dict[str, Any] | None:
        """Return it as S3 has it, for the keys of one repository, or None where there is nothing to do."""
        found: dict[str, Any] = {}
        if self.abort_incomplete_days:
            found["AbortIncompleteMultipartUpload"] = {"DaysAfterInitiation": self.abort_incomplete_days}
        if self.expire_days:
            found["Expiration"] = {"Days": self.expire_days}
        if self.noncurrent_days:
            found["NoncurrentVersionExpiration"] = {"NoncurrentDays": self.noncurrent_days}
        return {"ID": rule_id(prefix), "Status": "Enabled", "Filter": {"Prefix": prefix}, **found} if found else None


@dataclass(frozen=True)
class Wanted:
    """How a repository should be set up."""

    recipients: tuple[str, ...] = ()
    # Of a directory; empty values are left as they are.
    owner: str = ""
    group: str = ""
    mode: str = "0700"
    # Of a bucket. False leaves it as it is.
    versioning: bool = True
    public_access_block: bool = True
    # mode and days, or nothing.
    object_lock: Mapping[str, Any] | None = None
    lifecycle: Lifecycle = Lifecycle()


@dataclass(frozen=True)
class Change:
    """One step from how a repository is to how it should be."""

    # As the plan says it.
    what: str
    act: Callable[[], None]


def rule_id(prefix: str) -> str:
    """Return the id of the lifecycle rule of one repository."""
    return f"{RULE} {prefix}".strip()


def arn_partition(region: str) -> str:
    """Return how the ARNs of a region begin."""
    return "aws-cn" if region.startswith("cn-") else "aws-us-gov" if region.startswith("us-gov-") else "aws"


def writer_policy(bucket: str, prefix: str, region: str = "", kms_key_id: str = "") -> dict[str, Any]:
    """Return what a host that makes backups may do: read and add, and neither delete nor replace."""
    objects = _objects(bucket, prefix, region)
    new = {
        # An object has to be new, and parts are none yet.
        "WriteWhatIsNotThere": {"Null": {"s3:if-none-match": "false"}},
        "WriteParts": {"Bool": {"s3:ObjectCreationOperation": "false"}},
    }
    return _policy(
        [
            *_reading(bucket, prefix, region),
            *({**_statement(sid, ["s3:PutObject"], objects), "Condition": condition} for sid, condition in new.items()),
            _statement("EndUploadsAndLock", ["s3:AbortMultipartUpload", "s3:GetObjectRetention", "s3:PutObjectRetention"], objects),
            *_key(kms_key_id, ["kms:Decrypt", "kms:GenerateDataKey"]),
        ]
    )


def pruner_policy(bucket: str, prefix: str, region: str = "", kms_key_id: str = "") -> dict[str, Any]:
    """Return what may do who prunes: read and delete. What versions and object lock keep stays."""
    return _policy(
        [
            *_reading(bucket, prefix, region),
            _statement("Delete", ["s3:AbortMultipartUpload", "s3:DeleteObject"], _objects(bucket, prefix, region)),
            *_key(kms_key_id, ["kms:Decrypt"]),
        ]
    )


def _reading(bucket: str, prefix: str, region: str) -> list[dict[str, Any]]:
    """Return the statements for looking at a repository."""
    whole = f"arn:{arn_partition(region)}:s3:::{bucket}"
    listing = _statement("List", ["s3:ListBucket"], whole)
    if prefix:
        listing["Condition"] = {"StringLike": {"s3:prefix": [f"{prefix}/*"]}}
    settings = ["s3:GetBucketObjectLockConfiguration", "s3:GetBucketVersioning", "s3:ListBucketMultipartUploads"]
    return [
        listing,
        _statement("LookAtTheBucket", settings, whole),
        _statement("Read", ["s3:GetObject", "s3:ListMultipartUploadParts"], _objects(bucket, prefix, region)),
    ]


def _key(kms_key_id: str, actions: list[str]) -> list[dict[str, Any]]:
    """Return the statements for the key of a repository, of which only the ARN can be named in a policy."""
    return [_statement("UseTheKey", actions, kms_key_id)] if kms_key_id.startswith("arn:") else []


def _objects(bucket: str, prefix: str, region: str) -> str:
    """Return the ARN of the objects of a repository."""
    return f"arn:{arn_partition(region)}:s3:::{bucket}/{prefix + '/' if prefix else ''}*"


def _statement(sid: str, actions: list[str], resource: str) -> dict[str, Any]:
    """Return a statement of a policy."""
    return {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resource}


def _policy(statements: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a policy."""
    return {"Version": "2012-10-17", "Statement": statements}


# The description


def read_description(store: Store) -> dict[str, Any] | None:
    """Return what a repository says of itself, or None where it says nothing."""
    try:
        found = json.loads(store.read(DESCRIPTION))
    except MissingObjectError:
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict) or "id" not in found:
        raise StoreError(f"{DESCRIPTION} in {store.uri} is not what backup_repository wrote. Look at what lies there before you remove it.")
    if found.get("format") != FORMAT:
        raise StoreError(f"{store.uri} has the format {found.get('format')}; this version of the collection knows {FORMAT}.")
    return found


def wanted_description(found: Mapping[str, Any] | None, recipients: Sequence[str], now: datetime, identity: str) -> dict[str, Any]:
    """Return what a repository should say of itself. Its id and its time stay."""
    made = found or {"id": identity, "created": iso(now)}
    return {"format": FORMAT, "id": made["id"], "created": made.get("created", iso(now)), "recipients": sorted(recipients)}


def write_description(store: Store, content: Mapping[str, Any], replacing: bool) -> None:
    """Write what a repository says of itself. Nothing is written over, so that what is there goes first."""
    if replacing:
        store.delete(DESCRIPTION)
    store.create(DESCRIPTION, canonical(content))


# A directory


def read_directory(root: Path) -> dict[str, Any]:
    """Return how a directory is set up."""
    try:
        status = root.lstat()
    except FileNotFoundError:
        return {"exists": False, "owner": None, "group": None, "mode": None}
    except OSError as error:
        raise StoreError(f"{root} cannot be looked at: {error.strerror}.") from error
    if not root.is_dir() or root.is_symlink():
        raise StoreError(f"{root} is in the way: it should be a directory.")
    owner, group = str(status.st_uid), str(status.st_gid)
    with contextlib.suppress(KeyError):
        owner = pwd.getpwuid(status.st_uid).pw_name
    with contextlib.suppress(KeyError):
        group = grp.getgrgid(status.st_gid).gr_name
    return {"exists": True, "owner": owner, "group": group, "mode": f"{status.st_mode & 0o7777:04o}"}


def wanted_directory(found: Mapping[str, Any], wanted: Wanted) -> dict[str, Any]:
    """Return how a directory should be set up."""
    mode = f"{mode_number(wanted.mode, 'mode'):04o}"
    return {"exists": True, "owner": wanted.owner or found["owner"], "group": wanted.group or found["group"], "mode": mode}


def directory_changes(root: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Change]:
    """Return the steps that set a directory up."""
    if not root.parent.is_dir():
        raise StoreError(
            f"The repository {root} cannot be created: there is no directory {root.parent}. Create it, or mount what belongs there."
        )

    def create() -> None:
        root.mkdir(0o700)
        sync_directory(root.parent)

    changes = [] if found["exists"] else [Change(f"create {root}", create)]
    if (wanted["owner"], wanted["group"]) != (found["owner"], found["group"]):
        # Now, so that check mode says it, too.
        owner = Owner.of(wanted["owner"], wanted["group"])
        changes.append(Change(f"give {root} to {wanted['owner']}:{wanted['group']}", lambda: owner.give(root)))
    if wanted["mode"] != (found["mode"] or "0700"):
        changes.append(Change(f"set the mode of {root} to {wanted['mode']}", lambda: root.chmod(int(wanted["mode"], 8))))
    return changes


# A bucket


class Bucket:
    """The settings of the bucket of a repository."""

    def __init__(self, store: S3Store) -> None:
        self.store = store
        self.client = store.client
        self.name = store.bucket
        self.prefix = f"{store.prefix}/" if store.prefix else ""

    def read(self) -> dict[str, Any]:
        """Return how it is set up. What the service does not know is None."""
        nothing = dict.fromkeys(("versioning", "public_access_block", "encryption", "object_lock", "lifecycle"))
        if not self._exists():
            return {"exists": False, **nothing}
        lock = self._ask("object lock", self.client.get_object_lock_configuration, {"ObjectLockConfigurationNotFoundError"})
        return {
            "exists": True,
            "versioning": (self._ask("versions", self.client.get_bucket_versioning) or {}).get("Status") == "Enabled",
            "public_access_block": self._public_access_block(),
            "encryption": self._encryption(),
            "object_lock": _lock_of(lock["ObjectLockConfiguration"]) if lock else None,
            "lifecycle": next((_known(rule) for rule in self.rules() if rule.get("ID") == rule_id(self.prefix)), None),
        }

    def rules(self) -> list[dict[str, Any]]:
        """Return all lifecycle rules of the bucket, also those of others."""
        found = self._ask("lifecycle", self.client.get_bucket_lifecycle_configuration, {"NoSuchLifecycleConfiguration"})
        return list((found or {}).get("Rules", []))

    def wanted(self, found: Mapping[str, Any], wanted: Wanted) -> dict[str, Any]:
        """Return how it should be set up. What is not asked for stays."""
        options = self.store.options
        lock = dict(wanted.object_lock) if wanted.object_lock else found["object_lock"]
        encryption = {"sse": options.sse, "kms_key_id": options.kms_key_id} if options.sse else found["encryption"]
        return {
            "exists": True,
            # Object lock does not go without.
            "versioning": True if wanted.versioning or lock else found["versioning"],
            "public_access_block": True if wanted.public_access_block else found["public_access_block"],
            "encryption": encryption,
            "object_lock": lock,
            "lifecycle": wanted.lifecycle.rule(self.prefix),
        }

    def changes(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Change]:
        """Return the steps that set it up."""
        if found["exists"] and wanted["object_lock"] and not found["object_lock"]:
            raise StoreError(
                f"The bucket {self.name} has no object lock, which it can be given only when it is created. Choose a new bucket, or leave "
                "object_lock out."
            )
        acts: dict[str, Callable[[], Any]] = {
            "versioning": self._set_versioning,
            "object_lock": lambda: self._set_lock(wanted["object_lock"]),
            "public_access_block": self._block_public_access,
            "encryption": lambda: self._set_encryption(wanted["encryption"]),
            "lifecycle": lambda: self._set_lifecycle(wanted["lifecycle"]),
        }
        changes = [] if found["exists"] else [Change(f"create the bucket {self.name}", lambda: self._create(bool(wanted["object_lock"])))]
        for setting, act in acts.items():
            if wanted[setting] != found[setting]:
                what = f"set {setting} of the bucket {self.name}"
                changes.append(Change(what, lambda what=what, act=act: self.store.attempt(f"{what} failed", act)))  # type: ignore[misc]
        return changes

    def _exists(self) -> bool:
        """Say whether the bucket is there, and ours to look at."""
        try:
            self.store.attempt(f"The bucket {self.name} cannot be looked at", lambda: self.client.head_bucket(Bucket=self.name))
        except MissingObjectError:
            return False
        return True

    def _ask(self, what: str, call: Callable[..., Any], nothing: frozenset[str] | set[str] = frozenset()) -> Any:
        """Ask for a setting; None where there is none, or where the service does not know of it."""

        def ask() -> Any:
            try:
                return call(Bucket=self.name)
            except self.client.exceptions.ClientError as error:
                if error.response["Error"]["Code"] in {*nothing, "NotImplemented", "MethodNotAllowed"}:
                    return None
                raise

        return self.store.attempt(f"The {what} of the bucket {self.name} cannot be read", ask)

    def _public_access_block(self) -> bool:
        """Say whether everything public is blocked."""
        found = self._ask("public access block", self.client.get_public_access_block, {"NoSuchPublicAccessBlockConfiguration"})
        return bool(found) and found["PublicAccessBlockConfiguration"] == ALL_BLOCKED

    def _encryption(self) -> dict[str, str] | None:
        """Return how the bucket encrypts what comes without an order."""
        found = self._ask("encryption", self.client.get_bucket_encryption, {"ServerSideEncryptionConfigurationNotFoundError"})
        rules = found["ServerSideEncryptionConfiguration"]["Rules"] if found else []
        defaults = [rule["ApplyServerSideEncryptionByDefault"] for rule in rules if "ApplyServerSideEncryptionByDefault" in rule]
        return {"sse": defaults[0]["SSEAlgorithm"], "kms_key_id": defaults[0].get("KMSMasterKeyID", "")} if defaults else None

    def _create(self, lock: bool) -> None:
        """Create the bucket."""
        region = self.client.meta.region_name
        # The oldest region has to be left out.
        place = {} if region in ("us-east-1", "aws-global") else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        locked = {"ObjectLockEnabledForBucket": True} if lock else {}
        self.store.attempt(
            f"The bucket {self.name} cannot be created",
            lambda: self.client.create_bucket(Bucket=self.name, **place, **locked),
            done=lambda: {} if self._created() else None,
        )

    def _created(self) -> bool:
        """Say whether the bucket is there after all."""
        with contextlib.suppress(StoreError):
            return self._exists()
        return False

    def _set_versioning(self) -> None:
        self.client.put_bucket_versioning(Bucket=self.name, VersioningConfiguration={"Status": "Enabled"})

    def _set_lock(self, lock: Mapping[str, Any]) -> None:
        default = {"Mode": lock["mode"], "Days": lock["days"]}
        configuration = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": default}}
        self.client.put_object_lock_configuration(Bucket=self.name, ObjectLockConfiguration=configuration)

    def _block_public_access(self) -> None:
        self.client.put_public_access_block(Bucket=self.name, PublicAccessBlockConfiguration=ALL_BLOCKED)

    def _set_encryption(self, encryption: Mapping[str, str]) -> None:
        default = {"SSEAlgorithm": encryption["sse"], **({"KMSMasterKeyID": encryption["kms_key_id"]} if encryption["kms_key_id"] else {})}
        # With a key of the bucket KMS is not asked for each object.
        rule = {"ApplyServerSideEncryptionByDefault": default, "BucketKeyEnabled": encryption["sse"] == "aws:kms"}
        configuration = {"Rules": [rule]}
        self.client.put_bucket_encryption(Bucket=self.name, ServerSideEncryptionConfiguration=configuration)

    def _set_lifecycle(self, rule: Mapping[str, Any] | None) -> None:
        """Set our own rule, and leave those of others as they are."""
        rules = [other for other in self.rules() if other.get("ID") != rule_id(self.prefix)] + ([dict(rule)] if rule else [])
        if rules:
            self.client.put_bucket_lifecycle_configuration(Bucket=self.name, LifecycleConfiguration={"Rules": rules})
        else:
            self.client.delete_bucket_lifecycle(Bucket=self.name)


def _known(rule: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a lifecycle rule of ours can have: services add what they like."""
    found = {key: rule.get(key) for key in ("ID", "Status", "Filter")}
    for key, days in (
        ("AbortIncompleteMultipartUpload", "DaysAfterInitiation"),
        ("Expiration", "Days"),
        ("NoncurrentVersionExpiration", "NoncurrentDays"),
    ):
        if days in rule.get(key, {}):
            found[key] = {days: rule[key][days]}
    return found


def _lock_of(configuration: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the object lock of a bucket; without a rule it keeps nothing by itself."""
    if configuration.get("ObjectLockEnabled") != "Enabled":
        return None
    default = configuration.get("Rule", {}).get("DefaultRetention", {})
    return {"mode": default.get("Mode"), "days": default.get("Days") or 365 * default.get("Years", 0)}


# Both


@dataclass(frozen=True)
class Plan:
    """How a repository is, how it should be, and the steps between."""

    before: dict[str, Any]
    after: dict[str, Any]
    changes: list[Change]


def plan_for(store: Store, wanted: Wanted, now: datetime, identity: str = "") -> Plan:
    """Look at a repository and say what is to be done; nothing is written."""
    if isinstance(store, DirectoryStore):
        if wanted.object_lock:
            raise LmsError(f"object_lock is given, but {store.uri} is a directory. Only buckets have it.")
        before = read_directory(store.root)
        after = wanted_directory(before, wanted)
        changes = directory_changes(store.root, before, after)
    else:
        bucket = Bucket(cast("S3Store", store))
        before = bucket.read()
        after = bucket.wanted(before, wanted)
        changes = bucket.changes(before, after)
    found = read_description(store) if before["exists"] else None
    description = wanted_description(found, wanted.recipients, now, identity or str(uuid.uuid4()))
    if description != found:
        changes.append(Change(f"write {DESCRIPTION}", lambda: write_description(store, description, found is not None)))
    return Plan({**before, "description": found}, {**after, "description": description}, changes)


def policies(store: Store) -> dict[str, Any]:
    """Return the policies of identities for a repository on S3; a directory has none."""
    if isinstance(store, DirectoryStore):
        return {"writer_policy": None, "pruner_policy": None}
    bucket = cast("S3Store", store)
    arguments = (bucket.bucket, bucket.prefix, bucket.client.meta.region_name or "", bucket.options.kms_key_id)
    return {"writer_policy": writer_policy(*arguments), "pruner_policy": pruner_policy(*arguments)}
