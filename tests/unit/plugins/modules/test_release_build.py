# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules release_source, release_artifact and release_bundle, one after the other as a build runs them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._artifact import Workshop
from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._source import Source, parse_location
from ansible_collections.bitflow.lms.plugins.modules import release_artifact, release_bundle, release_source

NOW = datetime(2026, 11, 23, 21, 0, tzinfo=timezone.utc)


def git(argv: list[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Run git."""
    ended = subprocess.run(argv, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout, ended.stderr


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository with a backend."""
    path = tmp_path / "lms"
    (path / "backend").mkdir(parents=True)
    (path / "backend" / "artisan").write_text("php")
    for arguments in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "--all"],
        ["-c", "user.name=A", "-c", "user.email=a@example.com", "commit", "--quiet", "--message", "Show progress"],
    ):
        subprocess.run(["git", "-C", str(path), *arguments], check=True)
    return path


def source(repository: Path, tmp_path: Path, check_mode: bool = False, **values: Any) -> dict[str, Any]:
    """Run release_source."""
    params = {"version": "main", "paths": ["backend"], "destination": str(tmp_path / "archives"), "uncommitted": "refused", "keep": 10}
    params.update(values)
    return release_source.run(Source(parse_location(str(repository)), tmp_path / "cache", git), params, NOW, check_mode)


def artifact(tmp_path: Path, archive: str, check_mode: bool = False, **values: Any) -> dict[str, Any]:
    """Run release_artifact."""
    params = {
        "name": "backend",
        "source": "backend at abc1234",
        "archive": archive,
        "local_archive": None,
        "delivered": None,
        "steps": [],
        "dependencies": [],
        "artifacts": None,
        "tools": [],
        "collect": None,
        "exclude": [],
        "required": ["artisan"],
        "environment": {},
        "secret_environment": {},
        "fingerprint_extra": None,
        "umask": "022",
        "keep": 5,
        **values,
    }
    return release_artifact.run(Workshop(tmp_path / "build", clock=lambda: 0.0), params, check_mode)


def test_a_source_is_archived_once(repository: Path, tmp_path: Path) -> None:
    foreseen = source(repository, tmp_path, check_mode=True)
    assert not (tmp_path / "archives").exists()
    first = source(repository, tmp_path)
    again = source(repository, tmp_path)

    commit = git(["git", "-C", str(repository), "rev-parse", "main"], {})[1].strip()
    tree = git(["git", "-C", str(repository), "rev-parse", "main:backend"], {})[1].strip()
    assert first == {
        "changed": True,
        "release": f"20261123210000-{commit[:7]}",
        "commit": commit,
        "short_commit": commit[:7],
        "subject": "Show progress",
        "version": "main",
        "kind": "branch",
        "ref": "refs/heads/main",
        "ambiguous": False,
        "uncommitted": [],
        "trees": {"backend": tree},
        "archives": {"backend": f"{tmp_path}/archives/{tree}.tar"},
    }
    assert foreseen == first
    assert again == {**first, "changed": False}
    assert source(repository, tmp_path, check_mode=True) == again


def test_a_release_of_changes_that_are_not_committed_says_so(repository: Path, tmp_path: Path) -> None:
    clean = source(repository, tmp_path, version="HEAD")
    (repository / "backend" / "artisan").write_text("php 2")

    dirty = source(repository, tmp_path, version="HEAD", uncommitted="included")

    assert (dirty["uncommitted"], dirty["commit"]) == (["backend/artisan"], clean["commit"])
    assert (dirty["short_commit"], dirty["release"]) == (f"{clean['short_commit']}-dirty", f"{clean['release']}-dirty")
    assert dirty["trees"] != clean["trees"]


def test_archives_that_were_not_used_for_longest_go(repository: Path, tmp_path: Path) -> None:
    for number in range(3):
        (repository / "backend" / "artisan").write_text(f"php {number}")
        last = source(repository, tmp_path, version="HEAD", uncommitted="included", keep=1)

    assert [str(path) for path in (tmp_path / "archives").iterdir()] == [last["archives"]["backend"]]


def test_an_artifact_is_built_once(repository: Path, tmp_path: Path) -> None:
    archive = source(repository, tmp_path)["archives"]["backend"]
    steps = [{"argv": ["sh", "-c", "echo $TOKEN > built"], "chdir": ".", "environment": {}}]
    values: dict[str, Any] = {"steps": steps, "secret_environment": {"TOKEN": "secret"}}

    foreseen = artifact(tmp_path, archive, check_mode=True, **values)
    assert not (tmp_path / "build").exists()
    first = artifact(tmp_path, archive, **values)
    again = artifact(tmp_path, archive, **{**values, "secret_environment": {"TOKEN": "another"}})

    unknown = {"sha256": "", "size": 0, "files": 0, "steps": []}
    entry = first["artifacts"][0]
    assert foreseen == {**first, **unknown, "artifacts": [{**entry, **unknown}], "summary": ["backend: would be built"]}
    assert entry == {key: first[key] for key in entry if key in first} | {"name": "backend", "built": True}
    assert first["steps"] == [{"argv": ["sh", "-c", "echo $TOKEN > built"], "seconds": 0.0}]
    assert (first["changed"], first["reused"], first["files"]) == (True, False, 2)
    assert first["artifact"] == f"{tmp_path}/build/artifacts/backend-{first['fingerprint'][:16]}.tar.gz"
    entry = {**entry, "built": False, "steps": []}
    summary = ["backend: unchanged, used again"]
    assert again == {**first, "changed": False, "reused": True, "steps": [], "artifacts": [entry], "summary": summary}
    assert artifact(tmp_path, archive, check_mode=True, **values) == again
    assert "secret" not in str(first)


def test_check_mode_fresh_host_passes_without_a_source_archive(tmp_path: Path) -> None:
    result = artifact(tmp_path, "/nowhere", check_mode=True)

    assert (result["changed"], result["artifact"], result["sha256"], result["summary"]) == (True, "", "", ["backend: would be built"])
    with pytest.raises(LmsError, match="is not on this host"):
        artifact(tmp_path, "/nowhere")


def test_a_source_archive_that_is_not_there_is_asked_for_and_put_in_its_place(repository: Path, tmp_path: Path) -> None:
    sent = source(repository, tmp_path)["archives"]["backend"]
    archive = tmp_path / "build" / "sources" / "backend" / Path(sent).name
    asked = artifact(tmp_path, str(archive), local_archive="/on/the/control/host.tar")

    built = artifact(tmp_path, str(archive), local_archive="/on/the/control/host.tar", delivered=sent)

    assert asked == {"changed": False, "archive_lacking": True}
    assert (built["reused"], archive.read_bytes() == Path(sent).read_bytes(), archive.stat().st_mode & 0o777) == (False, True, 0o640)
    with pytest.raises(LmsError, match=r"The source archive .*/none\.tar is not on this host"):
        artifact(tmp_path, str(tmp_path / "none.tar"))


def test_a_step_that_fails_fails_the_task_and_the_next_run_tries_again(repository: Path, tmp_path: Path) -> None:
    archive = source(repository, tmp_path)["archives"]["backend"]
    flag = tmp_path / "registry"
    steps = [{"argv": ["test", "-e", str(flag)], "chdir": ".", "environment": {}}]

    with pytest.raises(CommandError, match="ended with status 1"):
        artifact(tmp_path, archive, steps=steps)
    flag.write_text("")

    assert artifact(tmp_path, archive, steps=steps)["changed"] is True


def bundle(tmp_path: Path, check_mode: bool = False, **values: Any) -> dict[str, Any]:
    """Run release_bundle."""
    params = {
        "path": str(tmp_path / "lms.tar"),
        "state": "present",
        "artifacts": None,
        "directory": None,
        "metadata": {},
        "destination": None,
        "sha256": None,
        "keep": 5,
        **values,
    }
    return release_bundle.run(params, check_mode)


def test_a_bundle_is_written_once_and_unpacked_once(repository: Path, tmp_path: Path) -> None:
    built = artifact(tmp_path, source(repository, tmp_path)["archives"]["backend"])["artifacts"]
    present: dict[str, Any] = {"artifacts": built, "metadata": {"version": "main"}}
    foreseen = bundle(tmp_path, check_mode=True, **present)
    assert not (tmp_path / "lms.tar").exists()
    written = bundle(tmp_path, **present)

    entry = {key: built[0][key] for key in ("name", "artifact", "sha256", "size", "files", "fingerprint")}
    assert written == {
        "changed": True,
        "path": f"{tmp_path}/lms.tar",
        "sha256": (tmp_path / "lms.tar.sha256").read_text().split()[0],
        "metadata": {"version": "main"},
        "artifacts": [entry],
        "removed": [],
    }
    assert foreseen == {**written, "sha256": ""}
    assert bundle(tmp_path, **present) == {**written, "changed": False}
    assert bundle(tmp_path, check_mode=True, **present) == {**written, "changed": False}

    home = tmp_path / "home"
    unpacked: dict[str, Any] = {"state": "unpacked", "destination": str(home)}
    expected = {**written, "artifacts": [{**entry, "artifact": str(home / Path(entry["artifact"]).name)}]}
    assert bundle(tmp_path, check_mode=True, **unpacked) == expected
    assert not home.exists()
    assert bundle(tmp_path, **unpacked) == expected
    assert bundle(tmp_path, **unpacked) == {**expected, "changed": False}
    assert bundle(tmp_path, check_mode=True, **unpacked) == {**expected, "changed": False}


def test_artifacts_of_another_host_are_taken_from_where_they_were_fetched_to(repository: Path, tmp_path: Path) -> None:
    built = artifact(tmp_path, source(repository, tmp_path)["archives"]["backend"])["artifacts"]
    elsewhere = [{**built[0], "artifact": f"/srv/lms/build/artifacts/{Path(built[0]['artifact']).name}"}]

    written = bundle(tmp_path, artifacts=elsewhere, directory=str(tmp_path / "build" / "artifacts"))

    assert written["artifacts"][0]["artifact"] == built[0]["artifact"]


def test_a_bundle_with_a_wrong_sum_is_refused_and_nothing_is_unpacked(repository: Path, tmp_path: Path) -> None:
    built = artifact(tmp_path, source(repository, tmp_path)["archives"]["backend"])["artifacts"]
    bundle(tmp_path, artifacts=built)

    with pytest.raises(LmsError, match="Fetch it again"):
        bundle(tmp_path, state="unpacked", destination=str(tmp_path / "home"), sha256="0" * 64)

    assert not (tmp_path / "home").exists()
