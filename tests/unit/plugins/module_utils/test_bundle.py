# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bundles carry artifacts whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._bundle import (
    check_bundle,
    expected_sum,
    file_sum,
    index_text,
    missing_artifacts,
    parse_index,
    read_index,
    remove_old_artifacts,
    sum_path,
    unpack_bundle,
    write_bundle,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

METADATA = {"commit": "abc1234", "version": "v1.4.0"}


def artifact(directory: Path, name: str, content: str = "1") -> dict[str, Any]:
    """Make an artifact, and say of it what release_artifact does."""
    directory.mkdir(exist_ok=True)
    fingerprint = hashlib.sha256(f"{name} {content}".encode()).hexdigest()
    path = directory / f"{name}-{fingerprint[:16]}.tar.gz"
    path.write_text(content)
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    return {
        "name": name,
        "artifact": str(path),
        "fingerprint": fingerprint,
        "sha256": sha256,
        "size": len(content),
        "files": 1,
        "built": True,
    }


@pytest.fixture
def artifacts(tmp_path: Path) -> list[dict[str, Any]]:
    """Return artifacts of a version."""
    return [artifact(tmp_path / "built", name) for name in ("backend", "frontend-student")]


@pytest.fixture
def bundle(tmp_path: Path, artifacts: list[dict[str, Any]]) -> Path:
    """Return a bundle."""
    path = tmp_path / "out" / "lms.tar"
    assert write_bundle(path, artifacts, METADATA) is True
    return path


def names_in(directory: Path) -> list[str]:
    """Return the names in a directory."""
    return sorted(path.name for path in directory.iterdir() if path.name != ".bundle.lock")


def test_a_bundle_carries_its_artifacts_and_what_is_known_of_them(bundle: Path, artifacts: list[dict[str, Any]], tmp_path: Path) -> None:
    index = check_bundle(bundle, expected_sum(bundle, None))
    destination = tmp_path / "cache" / "artifacts"
    missing = missing_artifacts(index, destination)
    unpack_bundle(bundle, index, missing, destination)

    assert index["metadata"] == METADATA
    assert missing == names_in(destination) == sorted(Path(entry["artifact"]).name for entry in artifacts)
    assert missing_artifacts(index, destination) == []


def test_the_same_artifacts_give_the_same_bytes(bundle: Path, artifacts: list[dict[str, Any]]) -> None:
    before = bundle.read_bytes(), bundle.stat().st_ino

    assert write_bundle(bundle, artifacts[::-1], METADATA) is False
    assert (bundle.read_bytes(), bundle.stat().st_ino) == before
    assert write_bundle(bundle, artifacts, {**METADATA, "version": "main"}) is True
    assert names_in(bundle.parent) == ["lms.tar", "lms.tar.sha256"]


def test_sha256sum_and_tar_read_a_bundle(bundle: Path, tmp_path: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", sum_path(bundle).name], cwd=bundle.parent, check=True)
    target = tmp_path / "target"
    target.mkdir()
    subprocess.run(["tar", "-xf", str(bundle), "-C", str(target)], check=True)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "MANIFEST.sha256"], cwd=target, check=True)


def test_an_artifact_that_changed_since_it_was_built_makes_no_bundle(artifacts: list[dict[str, Any]], tmp_path: Path) -> None:
    Path(artifacts[0]["artifact"]).write_text("2")

    with pytest.raises(LmsError, match="has not the SHA-256"):
        write_bundle(tmp_path / "out" / "lms.tar", artifacts, METADATA)

    assert names_in(tmp_path / "out") == []


def test_an_artifact_that_is_gone_makes_no_bundle(artifacts: list[dict[str, Any]], tmp_path: Path) -> None:
    Path(artifacts[0]["artifact"]).unlink()

    with pytest.raises(LmsError, match=r"backend-.* is not on this host\. Build the artifacts here first"):
        write_bundle(tmp_path / "out" / "lms.tar", artifacts, METADATA)


def test_a_bundle_with_another_sum_is_refused(bundle: Path) -> None:
    with pytest.raises(LmsError, match="should have 0000") as caught:
        check_bundle(bundle, "0" * 64)
    assert caught.value.details == {"found": file_sum(bundle), "wanted": "0" * 64}

    content = bytearray(bundle.read_bytes())
    content[-2000] ^= 1
    bundle.write_bytes(content)
    with pytest.raises(LmsError, match="Fetch it again"):
        check_bundle(bundle, expected_sum(bundle, None))


def test_the_given_sum_counts_before_the_one_beside_the_bundle(bundle: Path) -> None:
    assert expected_sum(bundle, f"{'A' * 64}\n") == "a" * 64
    assert expected_sum(bundle, None) == file_sum(bundle)


def test_a_bundle_needs_a_sum(bundle: Path) -> None:
    sum_path(bundle).unlink()

    with pytest.raises(LmsError, match=r"give sha256, or put lms\.tar\.sha256 beside it"):
        expected_sum(bundle, None)
    with pytest.raises(LmsError, match="it needs 64 hexadecimal digits"):
        expected_sum(bundle, "abc")


def test_a_bundle_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LmsError, match=r"lms\.tar is not on this host"):
        check_bundle(tmp_path / "lms.tar", "0" * 64)
    with pytest.raises(LmsError, match=r"lms\.tar is not on this host"):
        read_index(tmp_path / "lms.tar")


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"\0" * 10240])
def test_what_is_no_bundle_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lms.tar").write_bytes(content)

    with pytest.raises(LmsError, match=r"cannot be read|it is no bundle"):
        read_index(tmp_path / "lms.tar")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"artifacts": None},
        {"artifacts": [{"name": "backend"}]},
        {"metadata": 1},
        {"file": "../../etc/passwd"},
        {"file": "backend-0123456789abcdef.tar.gz/x"},
        {"file": "other-0123456789abcdef.tar.gz"},
    ],
)
def test_a_hostile_index_is_refused(artifacts: list[dict[str, Any]], change: dict[str, Any]) -> None:
    index = json.loads(index_text(artifacts, METADATA))
    if "file" in change:
        index["artifacts"][0]["file"] = change["file"]
    else:
        index.update(change)

    with pytest.raises(LmsError):
        parse_index(json.dumps(index))


def test_an_index_that_promises_other_artifacts_is_refused(bundle: Path, tmp_path: Path) -> None:
    index = read_index(bundle)
    index["artifacts"][0]["sha256"] = "0" * 64
    destination = tmp_path / "cache"

    with pytest.raises(LmsError, match=r"is not what its index says\. Make the bundle anew"):
        unpack_bundle(bundle, index, missing_artifacts(index, destination), destination)

    assert names_in(destination) == []


def test_a_bundle_with_a_file_more_is_refused(bundle: Path, tmp_path: Path) -> None:
    index = read_index(bundle)
    with tarfile.open(bundle, "a") as tar:
        member = tarfile.TarInfo("artifacts/more")
        tar.addfile(member, io.BytesIO())

    with pytest.raises(LmsError, match="1 extra"):
        unpack_bundle(bundle, index, missing_artifacts(index, tmp_path / "cache"), tmp_path / "cache")

    assert names_in(tmp_path / "cache") == []


def test_only_a_damaged_artifact_is_replaced(bundle: Path, tmp_path: Path) -> None:
    index, destination = read_index(bundle), tmp_path / "cache"
    (destination / ".bundle" / "left by a killed run").mkdir(parents=True)
    unpack_bundle(bundle, index, missing_artifacts(index, destination), destination)
    damaged, whole = (destination / name for name in names_in(destination))
    damaged.write_text("half")
    inode = whole.stat().st_ino

    missing = missing_artifacts(index, destination)
    unpack_bundle(bundle, index, missing, destination)

    assert missing == [damaged.name]
    assert damaged.read_text() == "1"
    assert whole.stat().st_ino == inode


def test_old_artifacts_of_the_same_names_go(tmp_path: Path) -> None:
    entries = [artifact(tmp_path / "cache", "backend", str(number)) for number in range(4)]
    other = artifact(tmp_path / "cache", "backend-admin")
    for number, entry in enumerate(entries, start=1):
        os.utime(entry["artifact"], (number, number))
    index = parse_index(index_text(entries[:1], METADATA))

    removed = remove_old_artifacts(index, tmp_path / "cache", keep=2)

    assert removed == sorted(Path(entries[number]["artifact"]).name for number in (1, 2))
    assert names_in(tmp_path / "cache") == sorted(Path(entry["artifact"]).name for entry in (entries[0], entries[3], other))
