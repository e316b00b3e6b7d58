# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which repository is meant, and how it is encrypted: the options."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._backup_directory import DirectoryStore
from ansible_collections.bitflow.lms.plugins.module_utils._backup_repositories import open_store, split_s3
from ansible_collections.bitflow.lms.plugins.module_utils._backup_s3 import S3Store
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

KEYS = {"access_key": "key", "secret_key": "secret", "region": "eu-central-1"}


def test_a_path_is_a_directory() -> None:
    store = open_store({"repository": "/srv/backups/lms", "s3": None})

    assert isinstance(store, DirectoryStore)
    assert store.uri == "/srv/backups/lms"


def test_an_address_of_s3_is_a_bucket() -> None:
    store = open_store(
        {"repository": "s3://example-backups/lms/", "s3": {**KEYS, "endpoint_url": "https://s3.example.com", "profile": None}}
    )

    assert isinstance(store, S3Store)
    assert (store.uri, store.bucket, store.prefix) == ("s3://example-backups/lms", "example-backups", "lms")
    assert store.client.meta.endpoint_url == "https://s3.example.com"


@pytest.mark.parametrize(
    ("repository", "bucket", "prefix"),
    [
        ("s3://example-backups", "example-backups", ""),
        ("s3://example-backups/", "example-backups", ""),
        ("s3://example-backups/a/b", "example-backups", "a/b"),
    ],
)
def test_bucket_and_prefix(repository: str, bucket: str, prefix: str) -> None:
    assert split_s3(repository) == (bucket, prefix)


@pytest.mark.parametrize(
    "repository", ["s3://", "s3://B", "s3://example-backups//a", "s3://example-backups/../a", "s3://example-backups/ä"]
)
def test_what_is_no_bucket_is_refused(repository: str) -> None:
    with pytest.raises(LmsError, match="which is no bucket with a prefix"):
        split_s3(repository)


@pytest.mark.parametrize("repository", ["backups", "~/backups", "http://example.com/backups", ""])
def test_what_is_neither_is_refused(repository: str) -> None:
    with pytest.raises(LmsError, match="Give an absolute path"):
        open_store({"repository": repository})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"part_size": 1024}, "s3.part_size is 1024"),
        ({"max_parts": 0}, "s3.max_parts is 0"),
        ({"max_parts": 10001}, "s3.max_parts is 10001"),
        ({"kms_key_id": "alias/lms"}, "s3.kms_key_id is given, but s3.sse is not aws:kms"),
        ({"retention": {"mode": "COMPLIANCE", "days": 0}}, "s3.retention.days is 0"),
    ],
)
def test_options_that_do_not_go_are_named(option: dict[str, Any], message: str) -> None:
    with pytest.raises(LmsError, match=message):
        open_store({"repository": "s3://example-backups", "s3": {**KEYS, **option}})
