# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carry artifacts, and what is known of their source, in one file that proves itself."""

from __future__ import annotations

import json
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._archive import (
    MANIFEST,
    Unpacker,
    compare_with_manifest,
    oldest_beyond,
    pack,
    parse_manifest,
    sha256_of,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import locked, remove_tree, write_atomically

FORMAT = 1

# Its name sorts before the artifacts' directory, so that it can be read without reading them.
INDEX = "INDEX.json"
ARTIFACTS = "artifacts"

# Seconds for another bundle of the same directory.
_LOCK_TIMEOUT = 600

_ENTRY: dict[str, type] = {"name": str, "fingerprint": str, "sha256": str, "size": int, "files": int}
_FILE_NAME = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)-[0-9a-f]{16}\.tar\.gz")
_SUM = re.compile(r"[0-9a-f]{64}")


def index_text(artifacts: Sequence[Mapping[str, Any]], metadata: Mapping[str, Any]) -> str:
    """Write the index: what each artifact is, and what the source was."""
    entries = [{"file": Path(entry["artifact"]).name, **{key: kind(entry[key]) for key, kind in _ENTRY.items()}} for entry in artifacts]
    entries.sort(key=lambda entry: str(entry["name"]))
    return json.dumps({"format": FORMAT, "metadata": dict(metadata), "artifacts": entries}, indent=2, sort_keys=True) + "\n"


def parse_index(text: str) -> dict[str, Any]:
    """Read an index back, and refuse what could lead out of the bundle."""
    try:
        index = json.loads(text)
        entries = [{"file": str(entry["file"]), **{key: kind(entry[key]) for key, kind in _ENTRY.items()}} for entry in index["artifacts"]]
        version, metadata = index["format"], dict(index["metadata"])
    except (ValueError, TypeError, KeyError) as error:
        raise LmsError(f"{INDEX} of the bundle cannot be read: {error!r}.") from error
    if version != FORMAT:
        raise LmsError(f"The bundle has the format {version}; this collection reads {FORMAT}. Make it anew.")
    for entry in entries:
        match = _FILE_NAME.fullmatch(entry["file"])
        if match is None or match["name"] != entry["name"]:
            raise LmsError(f"{INDEX} of the bundle names the file {entry['file']!r} for {entry['name']!r}.")
    return {"artifacts": entries, "metadata": metadata}


def sum_path(bundle: Path) -> Path:
    """Return where the sum of a bundle stands beside it."""
    return bundle.with_name(f"{bundle.name}.sha256")


def expected_sum(bundle: Path, given: str | None) -> str:
    """Return the SHA-256 that a bundle must have."""
    text = given
    if not text:
        try:
            text = sum_path(bundle).read_text(encoding="utf-8").partition(" ")[0]
        except FileNotFoundError as error:
            raise LmsError(
                f"Nothing says which bundle {bundle} should be: give sha256, or put {sum_path(bundle).name} beside it."
            ) from error
    text = text.strip().lower()
    if not _SUM.fullmatch(text):
        raise LmsError(f"The SHA-256 of the bundle {bundle} is given as {text!r}: it needs 64 hexadecimal digits.")
    return text


def file_sum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return sha256_of(stream)


def write_bundle(path: Path, artifacts: Sequence[Mapping[str, Any]], metadata: Mapping[str, Any]) -> bool:
    """Write a bundle and its sum; say whether it differs from the one that was there. The same artifacts give the same bytes."""
    gone = [entry["artifact"] for entry in artifacts if not Path(entry["artifact"]).is_file()]
    if gone:
        raise LmsError(f"{', '.join(gone)} is not on this host. Build the artifacts here first.", missing=gone)
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.*.tmp"):
        stale.unlink(missing_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with tempfile.NamedTemporaryFile(mode="w", encoding="utf-8", suffix=".json") as index, aside.open("xb") as output:
            index.write(index_text(artifacts, metadata))
            index.flush()
            members = {INDEX: Path(index.name), ARTIFACTS: path.parent}
            members.update({f"{ARTIFACTS}/{Path(entry['artifact']).name}": Path(entry["artifact"]) for entry in artifacts})
            pack(members, output)
            output.flush()
            os.fsync(output.fileno())
        _check_artifacts(artifacts)
        number = file_sum(aside)
        same = path.is_file() and file_sum(path) == number and sum_path(path).is_file()
        if not same:
            aside.chmod(0o640)
            aside.rename(path)
            write_atomically(sum_path(path), f"{number}  {path.name}\n".encode(), 0o640)
    finally:
        aside.unlink(missing_ok=True)
    return not same


def _check_artifacts(artifacts: Sequence[Mapping[str, Any]]) -> None:
    """Refuse artifacts that are not what was built."""
    for entry in artifacts:
        if file_sum(Path(entry["artifact"])) != entry["sha256"]:
            raise LmsError(f"{entry['artifact']} has not the SHA-256 {entry['sha256']} with which it was built. Build it again.")


def read_index(path: Path) -> dict[str, Any]:
    """Read the index of a bundle without reading the artifacts."""
    try:
        with tarfile.open(path, mode="r|*") as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.name == INDEX else None
                if stream is not None:
                    return parse_index(stream.read().decode("utf-8", "replace"))
    except FileNotFoundError as error:
        raise LmsError(f"The bundle {path} is not on this host.") from error
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise LmsError(f"The bundle {path} cannot be read: {error}.") from error
    raise LmsError(f"{path} has no {INDEX}: it is no bundle.")


def check_bundle(path: Path, wanted: str) -> dict[str, Any]:
    """Return the index of a bundle that is the one that is wanted."""
    try:
        found = file_sum(path)
    except FileNotFoundError as error:
        raise LmsError(f"The bundle {path} is not on this host.") from error
    if found != wanted:
        raise LmsError(f"The bundle {path} has the SHA-256 {found} and should have {wanted}. Fetch it again.", found=found, wanted=wanted)
    return read_index(path)


def missing_artifacts(index: Mapping[str, Any], destination: Path) -> list[str]:
    """Return the files of the artifacts that a directory does not have as the index says."""
    return [
        entry["file"]
        for entry in index["artifacts"]
        if not (destination / entry["file"]).is_file() or file_sum(destination / entry["file"]) != entry["sha256"]
    ]


def unpack_bundle(path: Path, index: Mapping[str, Any], missing: Sequence[str], destination: Path) -> None:
    """Put the missing artifacts of a bundle into a directory, each whole or not at all."""
    destination.mkdir(parents=True, exist_ok=True)
    aside = destination / ".bundle"
    with locked(destination / ".bundle.lock", f"Another bundle for {destination}", _LOCK_TIMEOUT):
        remove_tree(aside)
        try:
            aside.mkdir(mode=0o700)
            with path.open("rb") as stream:
                found = Unpacker(aside).unpack(stream).sums
            compare_with_manifest(parse_manifest((aside / MANIFEST).read_text(encoding="utf-8")), found)
            for entry in index["artifacts"]:
                if found.get(f"{ARTIFACTS}/{entry['file']}") != entry["sha256"]:
                    raise LmsError(f"{entry['file']} of the bundle {path} is not what its index says. Make the bundle anew.")
            for name in missing:
                (aside / ARTIFACTS / name).rename(destination / name)
        finally:
            remove_tree(aside)


def remove_old_artifacts(index: Mapping[str, Any], destination: Path, keep: int) -> list[str]:
    """Remove the artifacts of each name that were not used for longest, and return their names."""
    removed: list[str] = []
    for entry in index["artifacts"]:
        used = destination / entry["file"]
        os.utime(used)
        beside = [(path, _FILE_NAME.fullmatch(path.name)) for path in destination.iterdir()]
        same = [path for path, match in beside if match is not None and match["name"] == entry["name"]]
        for path in oldest_beyond(same, keep, [used]):
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return sorted(removed)
