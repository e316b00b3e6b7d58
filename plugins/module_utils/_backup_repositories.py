# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which repository a task means: the options of the documentation fragments backup_repository and backup_name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._backup_directory import DirectoryStore
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Store
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

PART_SIZE = 16 * 1024 * 1024
MAX_PARTS = 10000

_S3 = re.compile(r"^s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>.*))?$")
_PREFIX_PART = re.compile(r"^[A-Za-z0-9_=+@-][A-Za-z0-9._=+@-]*$")


def repository_argspec() -> dict[str, dict[str, Any]]:
    """Return the options of the documentation fragment backup_repository."""
    return {
        "repository": {"type": "str", "required": True},
        "s3": {
            "type": "dict",
            "options": {
                "endpoint_url": {"type": "str"},
                "region": {"type": "str"},
                "profile": {"type": "str"},
                "access_key": {"type": "str", "no_log": False},
                "secret_key": {"type": "str", "no_log": True},
                "session_token": {"type": "str", "no_log": True},
                "role_arn": {"type": "str"},
                "ca_bundle": {"type": "path"},
                "sse": {"type": "str", "choices": ["AES256", "aws:kms"]},
                "kms_key_id": {"type": "str", "no_log": False},
                "storage_class": {"type": "str"},
                "part_size": {"type": "int", "default": PART_SIZE},
                "max_parts": {"type": "int", "default": MAX_PARTS},
                "addressing_style": {"type": "str", "choices": ["auto", "path", "virtual"], "default": "auto"},
                "retention": {
                    "type": "dict",
                    "options": {
                        "mode": {"type": "str", "choices": ["GOVERNANCE", "COMPLIANCE"], "required": True},
                        "days": {"type": "int", "required": True},
                    },
                },
            },
            "required_together": [["access_key", "secret_key"]],
        },
    }


def name_argspec() -> dict[str, dict[str, Any]]:
    """Return the options of the documentation fragment backup_name."""
    return {"environment": {"type": "str", "required": True}, "name": {"type": "str", "required": True}}


def open_store(params: Mapping[str, Any]) -> Store:
    """Return the repository that the options repository and s3 mean. Nothing is asked or written yet."""
    repository = params["repository"]
    if repository.startswith("s3://"):
        # Not at the top: only this one needs the SDK of AWS.
        from ansible_collections.bitflow.lms.plugins.module_utils._backup_s3 import S3Options, S3Store, client_for

        bucket, prefix = split_s3(repository)
        options = S3Options.of(params.get("s3"))
        return S3Store(client_for(options), bucket, prefix, options)
    if not repository.startswith("/"):
        raise LmsError(f"repository is {repository!r}. Give an absolute path such as /srv/backups, or s3://bucket/prefix.")
    return DirectoryStore(Path(repository))


def split_s3(repository: str) -> tuple[str, str]:
    """Return the bucket and the prefix of s3://bucket/prefix."""
    match = _S3.match(repository)
    prefix = (match["prefix"] or "").rstrip("/") if match else ""
    if not match or not all(_PREFIX_PART.match(part) for part in prefix.split("/") if prefix):
        raise LmsError(f"repository is {repository!r}, which is no bucket with a prefix such as s3://example-backups/lms.")
    return match["bucket"], prefix
