# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the repository on S3 calculates and how it judges errors. What it does with a service is in tests/backups."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils import _backup_s3
from ansible_collections.bitflow.lms.plugins.module_utils._backup_s3 import (
    S3Options,
    client_for,
    is_transient,
    multipart_etag,
    part_size_at,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from botocore.exceptions import ClientError, ConnectionClosedError, NoCredentialsError, ReadTimeoutError

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("number", "max_parts", "size"),
    [(1, 10000, 16), (1250, 10000, 16), (1251, 10000, 32), (10000, 10000, 2048), (126, 1000, 32), (1000, 1000, 2048), (3, 4, 64)],
)
def test_parts_double_each_eighth(number: int, max_parts: int, size: int) -> None:
    assert part_size_at(number, 16 * MIB, max_parts) == size * MIB


@pytest.mark.parametrize(("max_parts", "gibibytes"), [(10000, 4980), (1000, 498)])
def test_all_parts_together_hold_a_large_database(max_parts: int, gibibytes: int) -> None:
    assert sum(part_size_at(number, 16 * MIB, max_parts) for number in range(1, max_parts + 1)) >= gibibytes * 1024 * MIB


def test_no_part_is_larger_than_the_service_takes() -> None:
    assert part_size_at(10000, 1024 * MIB, 10000) == 5 * 1024 * MIB


def test_the_etag_of_parts_is_the_sum_of_their_sums() -> None:
    digests = [hashlib.md5(part, usedforsecurity=False).digest() for part in (b"one", b"two")]

    assert multipart_etag(digests) == hashlib.md5(digests[0] + digests[1], usedforsecurity=False).hexdigest() + "-2"


def refusal(status: int, code: str) -> ClientError:
    """Return an error as the SDK raises it."""
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (refusal(503, "SlowDown"), True),
        (refusal(500, "InternalError"), True),
        (refusal(502, "502"), True),
        (refusal(429, "TooMany"), True),
        (refusal(400, "BadDigest"), True),
        (refusal(400, "RequestTimeout"), True),
        (refusal(409, "ConditionalRequestConflict"), True),
        (ReadTimeoutError(endpoint_url="https://s3.example.com"), True),
        (ConnectionClosedError(endpoint_url="https://s3.example.com"), True),
        (ConnectionResetError(), True),
        (refusal(501, "NotImplemented"), False),
        (refusal(403, "AccessDenied"), False),
        (refusal(404, "NoSuchBucket"), False),
        (refusal(412, "PreconditionFailed"), False),
        (NoCredentialsError(), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient


def test_secrets_are_not_in_the_text_of_the_options() -> None:
    options = S3Options.of({"access_key": "key", "secret_key": "hidden-1", "session_token": "hidden-2"})

    assert "hidden" not in repr(options)


def test_a_missing_library_names_its_package(monkeypatch: Any) -> None:
    monkeypatch.setattr(_backup_s3, "MISSING", ImportError("boto3"))

    with pytest.raises(LmsError, match="Install the Debian package python3-boto3"):
        client_for(S3Options())


def test_an_unknown_profile_is_named(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))

    with pytest.raises(LmsError, match=r"The options s3 cannot be used: .*no-such-profile"):
        client_for(S3Options(profile="no-such-profile"))
