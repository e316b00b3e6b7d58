# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A database's whole way to S3 and back, while the network and the service do what they do on a bad day."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "lab"))

from database_host import Host, wait_until
from s3_proxy import Fault, Lab, answer, answer_done

ROWS = 30000
# More than one part of the smallest size that S3 takes.
FILL = f"""
    create table submissions (id int primary key, body text);
    insert into submissions
        select n, (select string_agg(md5(n::text || m), '') from generate_series(1, 12) m) from generate_series(1, {ROWS}) n"""  # noqa: S608
PART = 5 * 1024 * 1024


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Start S3."""
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def identity(host: Host) -> str:
    """Return the key that reads the backups."""
    return host.shell("age-keygen 2>/dev/null").strip().splitlines()[-1]


class Backups:
    """A database and a bucket of the test's own."""

    def __init__(self, host: Host, lab: Lab, identity: str) -> None:
        self.host = host
        self.lab = lab
        self.identity = identity
        address = {"endpoint_url": lab.endpoint_for(host.name), "region": "eu-central-1", "access_key": "lab", "secret_key": "lab"}
        self.repository = {"repository": f"s3://test-{os.urandom(4).hex()}/lms", "s3": {**address, "part_size": PART}}
        self.place = {**self.repository, "environment": "test", "name": "lms"}
        self.server = {"engine": "postgresql", "login_system_user": "postgres"}

    def create(self) -> None:
        """Make the bucket and the database."""
        self.lab.proxy.clear()
        result = self.host.module("backup_repository", **self.repository)
        assert result["changed"], result
        self.host.postgresql("drop database if exists lms with (force)")
        self.host.postgresql("create database lms")
        self.host.postgresql(FILL, "lms")
        self.lab.proxy.clear()

    def options(self, **more: Any) -> dict[str, Any]:
        """Return what database_backup is told."""
        recipient = self.host.execute("age-keygen", "-y", input=self.identity).stdout.strip()
        return {**self.place, **self.server, "encryption": {"recipients": [recipient]}, **more}

    def back_up(self, **more: Any) -> dict[str, Any]:
        """Make a backup."""
        return self.host.module("database_backup", **self.options(**more))

    def verify(self, **more: Any) -> dict[str, Any]:
        """Restore the newest one for a trial."""
        return self.host.module("backup_verify", **{**self.place, **self.server, "identity": self.identity, **more})

    def info(self) -> dict[str, Any]:
        """List what is there."""
        return self.host.module("backup_info", **self.repository, environment="test", kind="database", name="lms")


@pytest.fixture
def backups(host: Host, lab: Lab, identity: str) -> Backups:
    """Return them, and let nothing go wrong yet."""
    made = Backups(host, lab, identity)
    made.create()
    return made


MISHAPS = {
    "slow down": [answer(503, "SlowDown", operation="UploadPart", times=2)],
    "cut": [Fault("UploadPart", cut_request=1_000_000)],
    "corrupted part": [Fault("UploadPart", corrupt=True)],
    "complete done": [answer_done(500, "InternalError", operation="CompleteMultipartUpload")],
    "manifest lost": [Fault("PutObject", key="manifest.json", lose_answer=True)],
    "manifest refused once": [answer(500, "InternalError", operation="PutObject", key="manifest.json")],
}


def test_what_can_be_sent_again_is_sent_again_and_the_backup_is_whole(backups: Backups) -> None:
    for mishaps in MISHAPS.values():
        backups.lab.proxy.add(*mishaps)

    result = backups.back_up()
    verified = backups.verify()

    assert result["backup"]["state"] == "complete", result
    assert result["backup"]["size"] > PART
    assert (verified["mismatches"], verified["verifications"][0]["rows"]) == ([], ROWS)


@pytest.mark.parametrize(
    "fault",
    [
        answer(500, "InternalError", operation="UploadPart", times=None),
        answer(403, "AccessDenied", operation="CompleteMultipartUpload", times=None),
        answer(500, "InternalError", operation="PutObject", key="manifest.json", times=None),
    ],
    ids=["parts", "complete", "manifest"],
)
def test_what_stays_broken_is_no_backup_and_the_next_run_clears_it(backups: Backups, fault: Fault) -> None:
    first = backups.back_up()["backup"]
    backups.lab.proxy.add(fault)

    failed = backups.back_up()
    backups.lab.proxy.clear()
    meanwhile = backups.info()
    backups.back_up()
    after = backups.info()

    assert failed["failed"] is True
    assert [backup["id"] for backup in meanwhile["backups"]] == [first["id"]]
    assert (len(after["backups"]), after["partials"]) == (2, [])


def test_a_killed_run_is_no_backup_and_the_next_run_clears_it(backups: Backups) -> None:
    process = backups.host.start_module("database_backup", **backups.options(rate_limit=2_000_000))
    wait_until(lambda: backups.lab.proxy.count("UploadPart"))
    backups.host.shell("pkill -KILL -f '[r]un_module.py database_backup'")
    process.wait(timeout=30)
    left = backups.info()

    result = backups.back_up()
    after = backups.info()

    assert (left["backups"], len(left["partials"])) == ([], 1)
    assert result["plan"]["swept"] == [left["partials"][0]["path"]]
    assert ([backup["id"] for backup in after["backups"]], after["partials"]) == ([result["backup"]["id"]], [])


def test_kills_at_any_moment_leave_no_half_backup_and_no_upload_that_is_not_swept(backups: Backups) -> None:
    chance = random.Random(1)  # noqa: S311
    for _kill in range(12):
        process = backups.host.start_module("database_backup", **backups.options(rate_limit=8_000_000))
        time.sleep(chance.uniform(0.3, 2.0))
        backups.host.shell("pkill -KILL -f '[r]un_module.py database_backup' || true")
        process.wait(timeout=30)

    result = backups.back_up()
    info = backups.info()
    verified = backups.verify(backup="all", level="checksum")

    assert result["changed"] is True
    assert {backup["state"] for backup in info["backups"]} == {"complete"}
    assert (info["partials"], verified["mismatches"]) == ([], [])


def test_a_connection_that_breaks_is_no_fault_of_the_backup(backups: Backups) -> None:
    backups.back_up()
    backups.lab.proxy.add(Fault("GetObject", key="data.dump.age", cut_answer=1_000_000, times=None))

    cut = backups.verify()
    backups.lab.proxy.clear()
    whole = backups.verify()

    assert cut["failed"] is True
    assert backups.info()["backups"][0]["state"] == "verified"
    assert whole["mismatches"] == []
