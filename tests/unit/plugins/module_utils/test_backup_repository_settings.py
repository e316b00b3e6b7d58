# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a repository is set up: what is decided, and a directory on the disk. Buckets are set up in tests/backups."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._backup_directory import DirectoryStore
from ansible_collections.bitflow.lms.plugins.module_utils._backup_repository_settings import (
    Lifecycle,
    Wanted,
    plan_for,
    policies,
    pruner_policy,
    read_description,
    wanted_description,
    writer_policy,
)
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import StoreError
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

NOW = datetime(2026, 11, 23, 10, 28, 35, tzinfo=timezone.utc)
KEY = "arn:aws:kms:eu-central-1:123456789012:key/1"


def actions(policy: dict[str, Any]) -> list[str]:
    """Return all that a policy allows."""
    return sorted({action for statement in policy["Statement"] for action in statement["Action"]})


@pytest.mark.parametrize(
    ("lifecycle", "rule"),
    [
        (
            Lifecycle(),
            {
                "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2},
                "NoncurrentVersionExpiration": {"NoncurrentDays": 90},
            },
        ),
        (Lifecycle(3, 0, 0), {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 3}}),
        (Lifecycle(0, 400, 0), {"Expiration": {"Days": 400}}),
    ],
)
def test_the_lifecycle_is_for_the_keys_of_the_repository_alone(lifecycle: Lifecycle, rule: dict[str, Any]) -> None:
    frame = {"ID": "bitflow-backups lms/", "Status": "Enabled", "Filter": {"Prefix": "lms/"}}

    assert lifecycle.rule("lms/") == {**frame, **rule}


def test_no_lifecycle_is_no_rule() -> None:
    assert Lifecycle(0, 0, 0).rule("lms/") is None


def test_a_negative_number_of_days_is_refused() -> None:
    with pytest.raises(LmsError, match=r"lifecycle\.expire_days is -1"):
        Lifecycle.of({"expire_days": -1})


def test_a_writer_may_neither_delete_nor_replace() -> None:
    policy = writer_policy("example-backups", "lms")

    assert actions(policy) == [
        "s3:AbortMultipartUpload",
        "s3:GetBucketObjectLockConfiguration",
        "s3:GetBucketVersioning",
        "s3:GetObject",
        "s3:GetObjectRetention",
        "s3:ListBucket",
        "s3:ListBucketMultipartUploads",
        "s3:ListMultipartUploadParts",
        "s3:PutObject",
        "s3:PutObjectRetention",
    ]
    conditions = [statement.get("Condition") for statement in policy["Statement"] if "s3:PutObject" in statement["Action"]]
    assert conditions == [{"Null": {"s3:if-none-match": "false"}}, {"Bool": {"s3:ObjectCreationOperation": "false"}}]


def test_a_pruner_may_not_write_nor_delete_what_is_kept() -> None:
    assert actions(pruner_policy("example-backups", "lms")) == [
        "s3:AbortMultipartUpload",
        "s3:DeleteObject",
        "s3:GetBucketObjectLockConfiguration",
        "s3:GetBucketVersioning",
        "s3:GetObject",
        "s3:ListBucket",
        "s3:ListBucketMultipartUploads",
        "s3:ListMultipartUploadParts",
    ]


@pytest.mark.parametrize("make", [writer_policy, pruner_policy])
@pytest.mark.parametrize(
    ("prefix", "region", "resources"),
    [
        ("lms", "eu-central-1", {"arn:aws:s3:::example-backups", "arn:aws:s3:::example-backups/lms/*"}),
        ("", "", {"arn:aws:s3:::example-backups", "arn:aws:s3:::example-backups/*"}),
        ("lms", "cn-north-1", {"arn:aws-cn:s3:::example-backups", "arn:aws-cn:s3:::example-backups/lms/*"}),
        ("lms", "us-gov-west-1", {"arn:aws-us-gov:s3:::example-backups", "arn:aws-us-gov:s3:::example-backups/lms/*"}),
    ],
)
def test_policies_name_the_repository_alone(make: Any, prefix: str, region: str, resources: set[str]) -> None:
    assert {statement["Resource"] for statement in make("example-backups", prefix, region)["Statement"]} == resources


@pytest.mark.parametrize(
    ("make", "allowed"),
    [(writer_policy, ["kms:Decrypt", "kms:GenerateDataKey"]), (pruner_policy, ["kms:Decrypt"])],
    ids=["writer", "pruner"],
)
def test_policies_name_the_key(make: Any, allowed: list[str]) -> None:
    assert make("b", "", "", KEY)["Statement"][-1] == {"Sid": "UseTheKey", "Effect": "Allow", "Action": allowed, "Resource": KEY}
    assert "kms" not in str(make("b", "", "", "alias/lms"))


def test_a_description_keeps_its_id() -> None:
    first = wanted_description(None, ["age1b", "age1a"], NOW, "one")
    second = wanted_description(first, ["age1c"], NOW.replace(year=2027), "two")

    assert first == {"format": 1, "id": "one", "created": "2026-11-23T10:28:35Z", "recipients": ["age1a", "age1b"]}
    assert second == {**first, "recipients": ["age1c"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "is not what backup_repository wrote"), (b"[]", "is not what"), (b'{"format": 2, "id": "one"}', "has the format 2")],
)
def test_a_description_of_something_else_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "repository.json").write_bytes(content)

    with pytest.raises(StoreError, match=message):
        read_description(DirectoryStore(tmp_path))


def test_a_directory_is_created_and_then_left_alone(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "repository")

    plan = plan_for(store, Wanted(recipients=("age1a",)), NOW, "one")
    nothing_yet = not store.root.exists()
    for change in plan.changes:
        change.act()
    again = plan_for(store, Wanted(recipients=("age1a",)), NOW, "two")

    description = {"format": 1, "id": "one", "created": "2026-11-23T10:28:35Z", "recipients": ["age1a"]}
    assert nothing_yet
    assert [change.what for change in plan.changes] == [f"create {store.root}", "write repository.json"]
    assert plan.before == {"exists": False, "owner": None, "group": None, "mode": None, "description": None}
    assert plan.after == {"exists": True, "owner": None, "group": None, "mode": "0700", "description": description}
    assert (again.changes, again.before) == ([], again.after)
    assert (store.root.stat().st_mode & 0o777, again.after["mode"]) == (0o700, "0700")


def test_the_mode_of_a_directory_is_mended(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "repository")
    store.root.mkdir(0o755)
    store.root.chmod(0o755)

    plan = plan_for(store, Wanted(mode="0750"), NOW)
    for change in plan.changes:
        change.act()

    assert [change.what for change in plan.changes] == [f"set the mode of {store.root} to 0750", "write repository.json"]
    assert store.root.stat().st_mode & 0o777 == 0o750


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives directories away")
def test_the_owner_of_a_directory_is_mended(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "repository")
    store.root.mkdir(0o700)

    plan = plan_for(store, Wanted(owner="nobody"), NOW)
    for change in plan.changes:
        change.act()

    assert [change.what for change in plan.changes] == [f"give {store.root} to nobody:root", "write repository.json"]
    assert (store.root.owner(), (store.root / "repository.json").owner()) == ("nobody", "nobody")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(mode="rwx"), "mode is rwx"),
        (Wanted(owner="no-such-user"), "There is no user no-such-user"),
        (Wanted(object_lock={"mode": "COMPLIANCE", "days": 1}), "is a directory. Only buckets have it"),
    ],
)
def test_what_does_not_go_fails_before_anything_is_written(tmp_path: Path, wanted: Wanted, message: str) -> None:
    store = DirectoryStore(tmp_path / "repository")

    with pytest.raises(LmsError, match=message):
        plan_for(store, wanted, NOW)

    assert not store.root.exists()


def test_a_directory_needs_its_parent(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no directory .*/mnt\. Create it, or mount"):
        plan_for(DirectoryStore(tmp_path / "mnt/repository"), Wanted(), NOW)


def test_a_directory_has_no_policies(tmp_path: Path) -> None:
    assert policies(DirectoryStore(tmp_path)) == {"writer_policy": None, "pruner_policy": None}
