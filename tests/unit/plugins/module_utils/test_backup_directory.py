# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository in a directory: what a crash, a full disk and another process do to it. What it shares with S3 is in tests/backups."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._backup_directory import DirectoryStore
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import (
    Entry,
    LockedObjectError,
    ObjectExistsError,
    Partial,
    StoreError,
)

PATH = "prod/database/lms/20261123T102835Z-6f3a91c2"
PARENT = "prod/database/lms"


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    """Return a repository that is not there yet."""
    return DirectoryStore(tmp_path / "repository")


def files(store: DirectoryStore) -> list[str]:
    """Return all files of a repository, also those that it does not list."""
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())


def publish(store: DirectoryStore, path: str = PATH) -> None:
    """Make a backup."""
    draft = store.draft(path)
    upload = draft.upload("data.dump")
    upload.write(b"data")
    upload.complete()
    draft.publish(b"{}\n")


def test_facts_of_a_repository_that_is_not_there_yet_are_those_of_its_parent(store: DirectoryStore) -> None:
    facts = store.facts()

    assert facts == {"type": "directory", "object_lock": None, "versioning": False, "free": facts["free"]}
    assert facts["free"] > 0
    assert not store.root.exists()


def test_facts_say_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    messages = {}
    for name in ("missing/repository", "file"):
        with pytest.raises(StoreError) as caught:
            DirectoryStore(tmp_path / name).facts()
        messages[name] = caught.value.message

    start, ending = "The repository", "Create it, or mount what belongs there."
    assert messages == {
        "missing/repository": f"{start} {tmp_path}/missing/repository cannot be used: there is no directory {tmp_path}/missing. {ending}",
        "file": f"{start} {file} cannot be used: {file} is no directory. {ending}",
    }


def test_a_missing_parent_is_never_created(tmp_path: Path) -> None:
    # A disk that is not mounted: its place must not fill the disk below it.
    store = DirectoryStore(tmp_path / "mnt/backups/repository")

    with pytest.raises(StoreError, match="there is no directory"):
        store.draft(PATH)

    assert list(tmp_path.iterdir()) == []


def test_a_draft_that_a_crash_left_is_partial_and_not_active(store: DirectoryStore) -> None:
    directory = store.root / PARENT / ".partial-20261123T102835Z-6f3a91c2"
    directory.mkdir(parents=True)
    (directory / "data.dump").write_bytes(b"half")
    (directory / ".lock").touch()
    os.utime(directory / ".lock", (1000, 1000))

    assert store.partials() == [Partial(PATH, 1000, 4)]
    assert store.partials("prod/database/other/") == []
    assert store.entries() == []


def test_a_sweep_removes_a_crashed_draft(store: DirectoryStore) -> None:
    publish(store)
    directory = store.root / PARENT / ".partial-20261124T102835Z-6f3a91c2"
    directory.mkdir()
    (directory / "data.dump").write_bytes(b"half")

    for partial in store.partials():
        store.sweep(partial)

    assert files(store) == [f"{PATH}/data.dump", f"{PATH}/manifest.json"]
    assert not directory.exists()


def test_publishing_never_replaces_a_backup(store: DirectoryStore) -> None:
    draft = store.draft(PATH)
    (store.root / PATH).mkdir()
    (store.root / PATH / "manifest.json").write_bytes(b"first")

    with pytest.raises(ObjectExistsError, match=r"is in the repository .* already"):
        draft.publish(b"second")
    draft.discard()

    assert files(store) == [f"{PATH}/manifest.json"]
    assert store.read(f"{PATH}/manifest.json") == b"first"


def test_two_drafts_of_one_backup_are_refused(store: DirectoryStore) -> None:
    first = store.draft(PATH)

    with pytest.raises(ObjectExistsError, match="is being written already, or was interrupted"):
        store.draft(PATH)

    first.publish(b"{}\n")
    assert files(store) == [f"{PATH}/manifest.json"]


def test_a_lock_that_a_crash_left_in_a_published_backup_goes_with_it(store: DirectoryStore) -> None:
    publish(store)
    (store.root / PATH / ".lock").touch()
    (store.root / PATH / ".hold.json.0001").touch()

    for entry in store.entries():
        store.delete(entry.key)

    assert not (store.root / PATH).exists()
    assert (store.root / PARENT).is_dir()


def test_deleting_keeps_the_directory_while_something_is_in_it(store: DirectoryStore) -> None:
    publish(store)

    store.delete(f"{PATH}/manifest.json")

    assert files(store) == [f"{PATH}/data.dump"]


def test_a_share_without_hard_links_still_keeps_what_is_there(tmp_path: Path) -> None:
    def unsupported(source: Path, target: Path) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    store = DirectoryStore(tmp_path / "share", link=unsupported)

    store.create("repository.json", b"first")
    with pytest.raises(ObjectExistsError):
        store.create("repository.json", b"second")

    assert store.read("repository.json") == b"first"
    assert files(store) == ["repository.json"]


def test_other_failures_of_the_disk_are_told(tmp_path: Path) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = DirectoryStore(tmp_path, link=full)

    with pytest.raises(StoreError) as caught:
        store.create("repository.json", b"{}")

    assert caught.value.message == (
        f"repository.json cannot be written: No space left on device (repository {tmp_path}). Free some room, or choose another repository."
    )
    assert files(store) == []


def test_links_lead_nowhere(store: DirectoryStore, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret", encoding="utf-8")
    publish(store)
    (store.root / PATH / "link").symlink_to(secret)
    (store.root / "elsewhere").symlink_to(tmp_path)

    assert [entry.key for entry in store.entries()] == [f"{PATH}/data.dump", f"{PATH}/manifest.json"]
    with pytest.raises(StoreError, match="cannot be read"):
        store.read(f"{PATH}/link")


def test_entries_have_sizes_and_times(store: DirectoryStore) -> None:
    store.create("a", b"123")
    os.utime(store.root / "a", (1000, 1000))

    assert store.entries() == [Entry("a", 3, 1000)]


def test_a_draft_is_active_while_its_process_has_it(store: DirectoryStore) -> None:
    draft = store.draft(PATH)
    upload = draft.upload("data.dump")
    upload.write(b"x" * 100000)

    partial = store.partials()[0]

    assert (partial.path, partial.active) == (PATH, True)
    assert abs(partial.started - time.time()) < 3600
    draft.discard()
    assert files(store) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_writes_belongs_to_the_owner_of_the_repository(store: DirectoryStore) -> None:
    store.root.mkdir(0o700)
    os.chown(store.root, 65534, 65534)

    publish(store)
    store.create("repository.json", b"{}")

    assert {path.stat().st_uid for path in store.root.rglob("*")} == {65534}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may delete everything")
def test_what_may_not_be_deleted_is_locked(store: DirectoryStore) -> None:
    store.create("a/b", b"")
    (store.root / "a").chmod(0o500)

    with pytest.raises(LockedObjectError, match="may not be deleted"):
        store.delete("a/b")


def test_a_full_disk_fails_and_leaves_nothing(store: DirectoryStore, monkeypatch: Any) -> None:
    draft = store.draft(PATH)
    upload = draft.upload("data.dump")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    upload.write(b"data")
    with pytest.raises(StoreError, match="No space left on device"):
        upload.complete()
    with pytest.raises(StoreError, match="is not complete"):
        draft.publish(b"{}\n")
    draft.discard()

    assert files(store) == []
