# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a repository holds, and what is known of each backup."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import (
    Backup,
    CorruptManifestError,
    check_name,
    new_id,
    parse_manifest,
    read_catalogue,
    seal,
    select,
    time_of,
    verification_key,
)
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Entry, Partial
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

NOON = datetime(2026, 11, 23, 12, 0, 0, tzinfo=timezone.utc)
PLACE = "prod/database/lms"


class Repository:
    """A repository in memory, as far as reading goes."""

    uri = "memory"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def entries(self, prefix: str = "") -> list[Entry]:
        """Return the keys."""
        return [Entry(key, len(self.objects[key]), 0) for key in sorted(self.objects) if key.startswith(prefix)]

    def read(self, key: str) -> bytes:
        """Return an object."""
        return self.objects[key]

    def partials(self, prefix: str = "") -> list[Partial]:
        """Return nothing."""
        return []

    def add(self, days: int = 0, **manifest: Any) -> str:
        """Put a backup there and return its path."""
        identity = new_id(NOON + timedelta(days=days), lambda _size: f"{days:08x}")
        data = b"data"
        objects = [{"name": "data.dump", "size": len(data), "sha256": ""}]
        self.objects[f"{PLACE}/{identity}/data.dump"] = data
        self.objects[f"{PLACE}/{identity}/manifest.json"] = seal({"id": identity, "objects": objects, **manifest})
        return f"{PLACE}/{identity}"

    def look(self, path: str, level: str, ok: bool, hours: int = 1, **record: Any) -> None:
        """Note a verification."""
        self.objects[verification_key(path, time_of(path.rpartition("/")[2]) + timedelta(hours=hours), level)] = json.dumps(
            {"ok": ok, **record}
        ).encode()

    def all(self) -> tuple[Backup, ...]:
        """Read them."""
        return read_catalogue(self, "prod", "database", "lms").backups  # type: ignore[arg-type]

    def states(self) -> list[str]:
        """Return what each is, the oldest first."""
        return [backup.state for backup in self.all()]


@pytest.fixture
def repository() -> Repository:
    """Return an empty repository."""
    return Repository()


def test_an_id_tells_when_the_backup_began() -> None:
    assert time_of(new_id(NOON)) == NOON


@pytest.mark.parametrize("name", ["", ".partial", "a/b", "..", "a b", "-x"])
def test_a_name_that_is_no_part_of_a_path_is_refused(name: str) -> None:
    with pytest.raises(LmsError, match="letters, digits, dot, underscore and hyphen only"):
        check_name("name", name)


def test_a_manifest_is_read_as_it_was_written() -> None:
    assert parse_manifest(seal({"id": "x", "name": "Übung"})) == {"format": 1, "id": "x", "name": "Übung"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no manifest"),
        (b"[]", "no manifest"),
        (b"{}", "no manifest"),
        (seal({"rows": 100}).replace(b"100", b"101"), "was changed after it was written"),
        (seal({"format": 2}), "format 2; this version of the collection reads 1"),
    ],
)
def test_a_manifest_that_is_not_as_it_was_written_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(CorruptManifestError, match=message):
        parse_manifest(content)


def test_only_what_has_a_manifest_is_a_backup(repository: Repository) -> None:
    path = repository.add()
    repository.objects[f"{PLACE}/20261124T120000Z-00000001/data.dump"] = b"half"
    repository.objects["repository.json"] = b"{}"
    repository.objects["prod/restic/uploads/config"] = b""

    assert [backup.path for backup in repository.all()] == [path]


@pytest.mark.parametrize(
    ("looks", "state", "good"),
    [
        ([], "complete", True),
        ([("checksum", True)], "complete", True),
        ([("restore", True)], "verified", True),
        ([("restore", True), ("checksum", False)], "corrupt", False),
        ([("restore", False), ("restore", True)], "verified", True),
        ([("restore", False)], "corrupt", False),
        ([("restore", True), ("checksum", True)], "verified", True),
    ],
)
def test_the_last_look_says_what_a_backup_is_worth(repository: Repository, looks: list[tuple[str, bool]], state: str, good: bool) -> None:
    path = repository.add()
    for hours, (level, ok) in enumerate(looks, start=1):
        repository.look(path, level, ok, hours)

    backup = repository.all()[0]

    assert (backup.state, backup.good) == (state, good)


def test_files_are_proven_when_each_was_read_and_a_database_is_not(repository: Repository) -> None:
    repository.look(repository.add(), "decode", True)
    database = repository.all()[0]

    assert [database.state, replace(database, kind="files").state] == ["complete", "verified"]


def test_a_suspicious_one_counts_only_once_it_was_restored(repository: Repository) -> None:
    path = repository.add(suspicious=True)
    before = repository.states()
    repository.look(path, "restore", True)

    assert (before, repository.states()) == (["suspicious"], ["verified"])


def test_an_object_that_is_gone_or_cut_makes_it_corrupt(repository: Repository) -> None:
    cut, gone = repository.add(0), repository.add(1)
    repository.objects[f"{cut}/data.dump"] = b"dat"
    del repository.objects[f"{gone}/data.dump"]

    assert [backup.fault for backup in repository.all()] == ["data.dump has 3 bytes, the manifest says 4.", "data.dump is gone."]
    assert repository.states() == ["corrupt", "corrupt"]


def test_a_changed_manifest_makes_it_corrupt_and_hides_nothing_else(repository: Repository) -> None:
    changed, other = repository.add(0, rows=100), repository.add(1)
    repository.objects[f"{changed}/manifest.json"] = repository.objects[f"{changed}/manifest.json"].replace(b"100", b"101")

    assert [(backup.path, backup.state) for backup in repository.all()] == [(changed, "corrupt"), (other, "complete")]


@pytest.mark.parametrize(
    ("wanted", "day"),
    [("latest", 3), ("latest_verified", 1), ("before:2026-11-25T12:00:00Z", 1), ("before:2026-11-25T14:00:00+01:00", 2)],
)
def test_a_selector_means_the_newest_good_one_that_fits(repository: Repository, wanted: str, day: int) -> None:
    paths = [repository.add(days) for days in range(4)]
    repository.add(4, suspicious=True)
    repository.look(repository.add(5), "checksum", False)
    repository.look(paths[1], "restore", True)

    assert select(repository.all(), wanted).path == paths[day]


def test_an_id_means_that_one_whatever_its_state(repository: Repository) -> None:
    path = repository.add(0, suspicious=True)

    assert select(repository.all(), path.rpartition("/")[2]).path == path


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("latest", "There is no backup that is meant by latest"),
        ("before:tomorrow", "before:tomorrow has no time that can be read"),
        ("newest", "newest is not the id of a backup"),
        ("20261101T000000Z-00000000", "is not in the repository. The newest ones there: 20261123T120000Z-00000000"),
    ],
)
def test_a_selector_that_means_nothing_is_refused(repository: Repository, wanted: str, message: str) -> None:
    repository.add(0, suspicious=True)

    with pytest.raises(LmsError, match=message):
        select(repository.all(), wanted)


def test_a_hold_counts_until_its_time(repository: Repository) -> None:
    path = repository.add()
    repository.objects[f"{path}/hold.json"] = json.dumps({"reason": "audit", "until": "2026-12-01T00:00:00Z"}).encode()

    backup = repository.all()[0]

    assert [backup.held(NOON), backup.held(NOON + timedelta(days=30))] == [True, False]


def test_what_is_unfinished_is_told_with_the_backups(repository: Repository) -> None:
    class WithPartial(Repository):
        def partials(self, prefix: str = "") -> list[Partial]:
            return list(self._those(prefix))

        def _those(self, prefix: str) -> Iterator[Partial]:
            yield Partial(f"{prefix}20261124T120000Z-00000001", 0, 4)

    found = read_catalogue(WithPartial(), "prod", "database", "lms")  # type: ignore[arg-type]

    assert [partial.path for partial in found.partials] == [f"{PLACE}/20261124T120000Z-00000001"]
