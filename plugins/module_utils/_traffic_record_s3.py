# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of a rollout as an object of S3, or of a service that speaks like it and knows If-Match and If-None-Match."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._backup_s3 import FAILURES, NOT_FOUND, error_code, is_transient
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_record import RecordError, Stored, UnreachableError, conflict

ATTEMPTS = 5
# What a service answers when the condition of a write does not hold, or could not be judged because of another write.
REFUSED = frozenset({"PreconditionFailed", "412"})
# A tag that no object has.
IMPOSSIBLE = '"00000000000000000000000000000000"'


class ObjectStore:
    """A record in a bucket."""

    def __init__(self, client: Any, bucket: str, key: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self.client = client
        self.uri = f"s3://{bucket}/{key}"
        self._where = {"Bucket": bucket, "Key": key}
        self._sleep = sleep
        self._condition: dict[str, str] = {}
        # By event, because the client of Debian 12 has no parameters for it.
        client.meta.events.register("before-call.s3.PutObject", self._conditional)

    def _conditional(self, params: dict[str, Any], **_other: Any) -> None:
        """Ask S3 to refuse a write when its condition does not hold."""
        params["headers"].update(self._condition)

    def read(self) -> Stored | None:
        """Return the object, or nothing when there is none."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                reply = self.client.get_object(**self._where)
                return Stored(reply["Body"].read(), str(reply["ETag"]))
            except FAILURES as error:  # pylint: disable=catching-non-exception
                if error_code(error) in NOT_FOUND:
                    return None
                if not is_transient(error):
                    raise RecordError(f"The record {self.uri} cannot be read: {error}") from error
                if attempt == ATTEMPTS:
                    raise UnreachableError(f"The record {self.uri} cannot be read, {ATTEMPTS} times in a row: {error}") from error
                self._pause(attempt)
        raise AssertionError("unreachable")

    def create(self, content: bytes) -> str:
        """Write the object where there is none, and prove that the service compares before it swaps."""
        tag = self._put(content, {"If-None-Match": "*"}, None)
        try:
            self._send(content, {"If-Match": IMPOSSIBLE})
        except FAILURES as error:  # pylint: disable=catching-non-exception
            if error_code(error) in REFUSED:
                return tag
            raise RecordError(f"It cannot be seen whether {self.uri} is safe from a second writer: {error}") from error
        raise RecordError(
            f"The service of {self.uri} ignores If-Match, so two controllers could write over each other. Use a bucket of S3, or a file."
        )

    def replace(self, content: bytes, tag: str) -> str:
        """Write the object over the one with this tag."""
        return self._put(content, {"If-Match": tag}, tag)

    def _put(self, content: bytes, condition: dict[str, str], tag: str | None) -> str:
        """Write the object under a condition. Each content is written once only, so one that is there is one's own."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._send(content, condition)
            except FAILURES as error:  # pylint: disable=catching-non-exception
                code = error_code(error)
                refused = code in REFUSED or code in NOT_FOUND
                # The answer may have got lost after the write was done, and a second try is then refused.
                found = self.read() if refused or is_transient(error) else None
                if found and found.content == content:
                    return found.tag
                if not refused and not is_transient(error):
                    raise RecordError(f"The record {self.uri} cannot be written: {error}") from error
                if refused or (found.tag if found else None) != tag:
                    raise conflict(self.uri) from error
                if attempt == ATTEMPTS:
                    raise UnreachableError(f"The record {self.uri} cannot be written, {ATTEMPTS} times in a row: {error}") from error
                self._pause(attempt)
        raise AssertionError("unreachable")

    def _send(self, content: bytes, condition: dict[str, str]) -> str:
        """Write once."""
        self._condition = condition
        try:
            return str(self.client.put_object(**self._where, Body=content, ContentType="application/json")["ETag"])
        finally:
            self._condition = {}

    def _pause(self, attempt: int) -> None:
        """Wait before the next attempt, longer each time and never all at once."""
        self._sleep(random.uniform(0.5, 1) * 2 ** (attempt - 1))  # noqa: S311 (no secret comes of it)
