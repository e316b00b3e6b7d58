# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where backups lie, whatever keeps them: the words that a directory and a bucket share.

A repository holds C(<environment>/<kind>/<name>/<id>/) for each backup, and in it one or more data objects and C(manifest.json). The
manifest is written last and never replaces one: a backup without it is unfinished, one with it is complete. Nothing else is ever
overwritten either, so that object lock and a writer who may not delete do no harm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

MANIFEST = "manifest.json"
DESCRIPTION = "repository.json"


class StoreError(LmsError):
    """A repository that cannot be read or written."""


class MissingObjectError(StoreError):
    """An object that is not in the repository."""


class ObjectExistsError(StoreError):
    """An object that was there already, and stays as it is."""


class LockedObjectError(StoreError):
    """An object that the repository's object lock or a permission keeps from being deleted."""


@dataclass(frozen=True)
class StoredObject:
    """One data object of a backup, as it lies in the repository (sizes in bytes)."""

    name: str
    size: int
    sha256: str
    parts: int = 1
    etag: str = ""


@dataclass(frozen=True)
class Entry:
    """One key of a repository, relative to its root."""

    key: str
    size: int
    # Seconds since the epoch.
    modified: float


@dataclass(frozen=True)
class Partial:
    """What a backup that was interrupted left behind."""

    # <environment>/<kind>/<name>/<id>
    path: str
    # Seconds since the epoch.
    started: float
    # Bytes, as far as they are known.
    size: int
    # Whether its writer is certainly still at work.
    active: bool = False
    # The store's own: names of unfinished uploads, and keys.
    uploads: tuple[tuple[str, str], ...] = ()
    keys: tuple[str, ...] = ()


class Upload(Protocol):
    """One data object that is being written. It hashes what it is given."""

    def write(self, data: bytes) -> None:
        """Take the next bytes."""

    def complete(self) -> StoredObject:
        """Make sure that everything lies in the repository as it was given, and describe it."""

    def abort(self) -> None:
        """Leave nothing behind. Never raises, and may be called at any time, also after complete()."""


class Draft(Protocol):
    """A backup that is being written, and that nobody sees before it is published."""

    def upload(self, name: str) -> Upload:
        """Begin a data object, such as data.dump.age. One at a time."""

    def publish(self, manifest: bytes) -> None:
        """Write the manifest, last: from here on the backup is complete. ObjectExistsError when it is there already."""

    def discard(self) -> None:
        """Remove what was written, as far as that is allowed. Never raises; after publish() it does nothing."""


class Store(Protocol):
    """A repository. Keys are relative to its root and use slashes."""

    # As the user gave it: an absolute path, or s3://bucket/prefix.
    uri: str

    def facts(self) -> dict[str, Any]:
        """Check, without writing, that it can be used, and say what is known: type, object_lock, versioning, free (bytes or None)."""

    def entries(self, prefix: str = "") -> list[Entry]:
        """Return the keys below a prefix, sorted. Those of unfinished backups of a directory (.partial-*) are left out."""

    def read(self, key: str) -> bytes:
        """Return a small object whole. MissingObjectError when it is not there."""

    def create(self, key: str, content: bytes) -> None:
        """Write a small object, durably and at once or not at all. ObjectExistsError when it is there already."""

    def stream(self, key: str) -> Iterator[bytes]:
        """Return an object in pieces of at most one MiB. MissingObjectError at the first piece when it is not there."""

    def delete(self, key: str) -> None:
        """Delete an object; one that is not there is deleted. LockedObjectError when it may not be."""

    def draft(self, path: str) -> Draft:
        """Begin a backup at <environment>/<kind>/<name>/<id>."""

    def partials(self, prefix: str = "") -> list[Partial]:
        """Return what interrupted backups left below a prefix: unfinished uploads, and data without a manifest; sorted by path."""

    def sweep(self, partial: Partial) -> None:
        """Remove what an interrupted backup left. LockedObjectError when some of it may not be removed."""


def check_key(key: str) -> None:
    """Refuse a key that would leave the repository, or hide in it."""
    if any(not part or part.startswith(".") for part in key.split("/")):
        raise StoreError(f"{key!r} is no key of a repository.")
