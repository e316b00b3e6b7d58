# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions are resolved in real repositories."""

from __future__ import annotations

import base64
import functools
import http.server
import os
import ssl
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._source import (
    Access,
    Location,
    Source,
    check_version,
    masked,
    near_names,
    parse_location,
    release_id,
)

IDENTITY = {
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.com",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.com",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
}


@dataclass
class Git:
    """Runs git, and remembers how."""

    calls: list[list[str]] = field(default_factory=list)
    environments: list[dict[str, str]] = field(default_factory=list)

    def __call__(self, argv: list[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
        self.calls.append(argv)
        self.environments.append(dict(environment))
        ended = subprocess.run(argv, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
        return ended.returncode, ended.stdout, ended.stderr

    def fetches(self) -> int:
        """Return how often the repository was asked."""
        return sum("fetch" in call for call in self.calls)


@dataclass
class Repository:
    """A repository with a work tree."""

    path: Path

    def git(self, *arguments: str) -> str:
        """Run git in the repository."""
        environment = {**os.environ, **IDENTITY}
        return subprocess.run(
            ["git", *arguments], cwd=self.path, env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    def commit(self, **files: str) -> str:
        """Write files and commit them."""
        for name, content in files.items():
            path = self.path / name / "file"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", f"Change {', '.join(files)}\n\nbody")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository with a backend and a frontend, a branch and a tag."""
    found = Repository(tmp_path / "lms")
    found.path.mkdir()
    found.git("init", "--quiet", "--initial-branch=main")
    found.commit(backend="1", frontend="1")
    found.git("tag", "--annotate", "--message", "first", "v1.0.0")
    found.commit(backend="2")
    return found


@pytest.fixture
def git() -> Git:
    """Return a git that remembers its calls."""
    return Git()


def source_of(repository: Repository | str, tmp_path: Path, git: Git) -> Source:
    """Return a source with its cache."""
    location = repository if isinstance(repository, str) else str(repository.path)
    return Source(parse_location(location), tmp_path / "cache", git)


def resolve(repository: Repository, version: str, tmp_path: Path, git: Git) -> tuple[str, str, str]:
    """Return commit, ref and kind of a version."""
    found = source_of(repository, tmp_path, git).archive_directories(version, ["."], None)["resolved"]
    return found.commit, found.ref, found.kind


def test_a_branch_is_resolved_to_where_it_is_now(repository: Repository, tmp_path: Path, git: Git) -> None:
    before = resolve(repository, "main", tmp_path, git)
    commit = repository.commit(backend="3")

    assert before[0] != commit
    assert resolve(repository, "main", tmp_path, git) == (commit, "refs/heads/main", "branch")


def test_an_annotated_tag_is_peeled(repository: Repository, tmp_path: Path, git: Git) -> None:
    commit = repository.git("rev-parse", "v1.0.0^{commit}")

    assert commit != repository.git("rev-parse", "v1.0.0")
    assert resolve(repository, "v1.0.0", tmp_path, git) == (commit, "refs/tags/v1.0.0", "tag")


def test_a_branch_that_was_rewritten_is_followed(repository: Repository, tmp_path: Path, git: Git) -> None:
    resolve(repository, "main", tmp_path, git)
    repository.git("reset", "--quiet", "--hard", "HEAD~1")
    commit = repository.commit(backend="other")

    assert resolve(repository, "main", tmp_path, git)[0] == commit


def test_a_branch_that_was_deleted_is_gone_and_may_become_a_directory(repository: Repository, tmp_path: Path, git: Git) -> None:
    repository.git("branch", "feature")
    resolve(repository, "feature", tmp_path, git)
    repository.git("branch", "--delete", "feature")
    repository.git("branch", "feature/progress")

    assert resolve(repository, "feature/progress", tmp_path, git)[2] == "branch"
    with pytest.raises(LmsError, match=r"no branch, tag or commit feature\. Names like it: feature/progress"):
        resolve(repository, "feature", tmp_path, git)


def test_the_default_branch_is_head(repository: Repository, tmp_path: Path, git: Git) -> None:
    repository.git("checkout", "--quiet", "-b", "production")
    commit = repository.commit(backend="3")

    assert resolve(repository, "HEAD", tmp_path, git)[0] == commit


def test_a_full_commit_in_the_mirror_needs_no_repository(repository: Repository, tmp_path: Path, git: Git) -> None:
    commit = resolve(repository, "main", tmp_path, git)[0]
    repository.path.rename(tmp_path / "gone")
    fetches = git.fetches()

    assert resolve(repository, commit, tmp_path, git) == (commit, commit, "commit")
    assert git.fetches() == fetches


def test_a_full_commit_that_no_branch_reaches_is_fetched_by_its_id(repository: Repository, tmp_path: Path, git: Git) -> None:
    repository.git("checkout", "--quiet", "--detach")
    commit = repository.commit(backend="detached")
    repository.git("update-ref", "refs/pull/1/head", commit)
    repository.git("checkout", "--quiet", "main")

    assert resolve(repository, commit, tmp_path, git)[0] == commit


def test_a_short_commit_is_completed(repository: Repository, tmp_path: Path, git: Git) -> None:
    commit = repository.git("rev-parse", "HEAD")

    assert resolve(repository, commit[:7], tmp_path, git) == (commit, commit, "commit")


def test_a_tag_wins_over_a_branch_of_the_same_name(repository: Repository, tmp_path: Path, git: Git) -> None:
    repository.git("branch", "stable")
    repository.git("tag", "stable", "v1.0.0")

    found = source_of(repository, tmp_path, git).archive_directories("stable", ["."], None)["resolved"]
    branch = source_of(repository, tmp_path, git).archive_directories("refs/heads/stable", ["."], None)["resolved"]

    assert (found.commit, found.kind, found.ambiguous) == (repository.git("rev-parse", "v1.0.0^{commit}"), "tag", True)
    assert (branch.commit, branch.kind, branch.ambiguous) == (repository.git("rev-parse", "main"), "branch", False)


def test_a_branch_wins_over_a_commit_that_begins_like_it(repository: Repository, tmp_path: Path, git: Git) -> None:
    first = repository.git("rev-parse", "v1.0.0^{commit}")
    repository.git("branch", first[:8], "main")

    assert resolve(repository, first[:8], tmp_path, git)[0] == repository.git("rev-parse", "main")


def test_a_version_that_is_not_there_names_those_like_it(repository: Repository, tmp_path: Path, git: Git) -> None:
    with pytest.raises(LmsError, match=r"lms has no branch, tag or commit v1\.0\.1\. Names like it: v1\.0\.0\.") as caught:
        resolve(repository, "v1.0.1", tmp_path, git)

    assert caught.value.details == {"version": "v1.0.1", "near": ["v1.0.0"], "branches": ["main"], "tags": ["v1.0.0"]}


@pytest.mark.parametrize("version", ["0" * 40, "0" * 7])
def test_a_commit_that_is_not_there_is_an_error(repository: Repository, tmp_path: Path, git: Git, version: str) -> None:
    with pytest.raises(LmsError, match=rf"lms has no (branch, tag or )?commit {version}\."):
        resolve(repository, version, tmp_path, git)


def test_a_tag_of_something_else_than_a_commit_is_an_error(repository: Repository, tmp_path: Path, git: Git) -> None:
    repository.git("tag", "tree", "HEAD^{tree}")

    with pytest.raises(LmsError, match=r"Tag tree of .* points to no commit"):
        resolve(repository, "tree", tmp_path, git)


def test_a_repository_that_does_not_exist_is_named(tmp_path: Path, git: Git) -> None:
    with pytest.raises(LmsError, match=r"The repository /nowhere/lms\.git does not exist\. Set lms_repository"):
        source_of("/nowhere/lms.git", tmp_path, git).archive_directories("main", ["."], None)


def test_a_directory_that_is_no_repository_cannot_be_read(tmp_path: Path, git: Git) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(LmsError, match=r"cannot be read\. Check lms_repository"):
        source_of(str(tmp_path / "empty"), tmp_path, git).archive_directories("main", ["."], None)


def test_archives_are_named_after_their_tree_and_made_once(repository: Repository, tmp_path: Path, git: Git) -> None:
    source = source_of(repository, tmp_path, git)
    destination = tmp_path / "archives"

    first = source.archive_directories("v1.0.0", ["backend", "frontend"], destination)
    second = source.archive_directories("main", ["backend", "./frontend/", "."], destination)

    assert first["trees"] == {
        "backend": repository.git("rev-parse", "v1.0.0:backend"),
        "frontend": repository.git("rev-parse", "v1.0.0:frontend"),
    }
    assert second["trees"]["./frontend/"] == first["trees"]["frontend"]
    assert second["trees"]["."] == repository.git("rev-parse", "main^{tree}")
    # Both applications have the same content at the first version, and so the same tree.
    assert (first["made"], second["made"]) == ([True], [True, False, True])
    assert sorted(path.name for path in destination.iterdir()) == sorted(
        f"{tree}.tar" for tree in {*first["trees"].values(), *second["trees"].values()}
    )
    with tarfile.open(destination / f"{second['trees']['backend']}.tar") as tar:
        assert [member.name for member in tar] == ["file"]
    assert first["subject"] == "Change backend, frontend"


def test_without_a_destination_nothing_is_archived(repository: Repository, tmp_path: Path, git: Git) -> None:
    found = source_of(repository, tmp_path, git).archive_directories("main", ["backend"], None)

    assert found["made"] == []
    assert not any("archive" in call for call in git.calls)


def test_a_directory_that_the_commit_lacks_is_named(repository: Repository, tmp_path: Path, git: Git) -> None:
    short = repository.git("rev-parse", "HEAD")[:7]

    with pytest.raises(LmsError, match=rf"lms has no directory api at {short}\. It has: backend, frontend\."):
        source_of(repository, tmp_path, git).archive_directories("main", ["api"], None)
    with pytest.raises(LmsError, match="backend/file is no directory"):
        source_of(repository, tmp_path, git).archive_directories("main", ["backend/file"], None)


@pytest.mark.parametrize("path", ["../up", "/etc", "-x", "a\nb", ""])
def test_hostile_paths_are_refused(repository: Repository, tmp_path: Path, git: Git, path: str) -> None:
    with pytest.raises(LmsError, match="paths has"):
        source_of(repository, tmp_path, git).archive_directories("main", [path], None)


@pytest.mark.parametrize(
    "version",
    [
        "",
        "-x",
        "--upload-pack=touch pwned",
        "x;touch pwned",
        "a..b",
        "a\nb",
        "main~1",
        "main^",
        "a:b",
        "@{-1}",
        "@",
        "*",
        "/main",
        "main.lock",
        "a//b",
    ],
)
def test_hostile_versions_are_refused_or_not_found(repository: Repository, tmp_path: Path, git: Git, version: str) -> None:
    with pytest.raises(LmsError, match=r"version is|has no branch, tag or commit"):
        resolve(repository, version, tmp_path, git)

    assert not any("pwned" in name for _top, _names, files in os.walk(tmp_path) for name in files)


SHELLISH = "feature/$(touch${IFS}pwned);touch`pwned`'&|<x>\"!"


def test_a_branch_with_shell_metacharacters_is_plain_data(repository: Repository, tmp_path: Path, git: Git) -> None:
    repository.git("switch", "--quiet", "--create", SHELLISH)
    commit = repository.commit(backend="shellish")

    assert resolve(repository, SHELLISH, tmp_path, git) == (commit, f"refs/heads/{SHELLISH}", "branch")
    assert not any("pwned" in name for _top, _names, files in os.walk(tmp_path) for name in files if SHELLISH.rpartition("/")[2] != name)


@pytest.mark.parametrize("version", ["main", "feature/x-1", "v1.0.0", "release_2", "abc1234", "x;y"])
def test_names_of_branches_are_accepted(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize(
    "repository",
    [
        "",
        "-x",
        "--upload-pack=x",
        "ext::sh -c touch% pwned",
        "fd::17",
        "ext://x",
        "ftp://example.com/x",
        "relative/path",
        "./here",
        "a\nb",
        "ssh://-oProxyCommand=touch/x",
        "https:///x",
        "-host:path",
        "host:-path",
    ],
)
def test_hostile_repositories_are_refused(repository: str) -> None:
    with pytest.raises(LmsError, match="repository is"):
        parse_location(repository)


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        ("/srv/git/lms.git", Location("/srv/git/lms.git", "/srv/git/lms.git")),
        ("file:///srv/git/lms.git", Location("file:///srv/git/lms.git", "file:///srv/git/lms.git")),
        ("git@example.com:team/lms.git", Location("git@example.com:team/lms.git", "git@example.com:team/lms.git")),
        ("ssh://git@example.com:22/lms.git", Location("ssh://git@example.com:22/lms.git", "ssh://git@example.com:22/lms.git")),
        ("https://example.com/lms.git", Location("https://example.com/lms.git", "https://example.com/lms.git")),
        ("https://me@example.com/lms", Location("https://example.com/lms", "https://***@example.com/lms", "me")),
        (
            "https://me:p%40ss@example.com:8443/lms",
            Location("https://example.com:8443/lms", "https://***@example.com:8443/lms", "me", "p@ss", ("p%40ss", "p@ss")),
        ),
        (
            "https://0123456789abcdefghij@example.com/lms",
            Location("https://example.com/lms", "https://***@example.com/lms", "0123456789abcdefghij", "", ("0123456789abcdefghij",)),
        ),
    ],
)
def test_repositories_are_read(repository: str, expected: Location) -> None:
    assert parse_location(repository) == expected


@pytest.mark.parametrize(
    "repository", ["https://me:se/cret@example.com/x", "ssh://me:secret@example.com/x", "ftp://me:secret@example.com/"]
)
def test_no_error_shows_a_password(repository: str) -> None:
    with pytest.raises(LmsError) as caught:
        parse_location(repository)

    assert "cret" not in str(caught.value.as_result())


def test_passwords_are_masked_in_texts() -> None:
    text = "fatal: https://me:p@ss@example.com/x, https://token@example.com/y, ssh://git:x@example.com/z, ssh://git@example.com/"

    assert (
        masked(text) == "fatal: https://***@example.com/x, https://***@example.com/y, ssh://git:***@example.com/z, ssh://git@example.com/"
    )


@pytest.mark.parametrize("user", ["me:secret", "me"])
def test_two_users_of_a_repository_share_its_mirror_and_no_secret_is_in_its_name(user: str) -> None:
    assert parse_location(f"https://{user}@example.com/lms.git").key == parse_location("https://example.com/lms.git").key
    assert parse_location("https://example.com/lms.git").key.startswith("lms-")


def test_git_never_asks_and_keeps_to_the_allowed_transports(repository: Repository, tmp_path: Path, git: Git) -> None:
    resolve(repository, "main", tmp_path, git)

    expected = {"GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh", "LC_ALL": "C.UTF-8"}
    assert all(expected.items() <= environment.items() for environment in git.environments)
    assert git.calls[0][1:] == ["-C", "/", "config", "--get", "core.sshCommand"]
    assert all("BatchMode=yes" in environment["GIT_SSH_COMMAND"] for environment in git.environments[1:])


def test_what_a_killed_git_left_in_the_mirror_does_no_harm(repository: Repository, tmp_path: Path, git: Git) -> None:
    source = source_of(repository, tmp_path, git)
    aside = source.cache / f".{source.location.key}.new"
    (aside / "objects").mkdir(parents=True)
    source.archive_directories("main", ["."], None)
    (source.mirror / "refs" / "heads" / "main.lock").write_text("")
    (source.mirror / "packed-refs.lock").write_text("")
    commit = repository.commit(backend="3")

    assert source.archive_directories("main", ["."], None)["resolved"].commit == commit
    assert not aside.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_repository_of_another_user_can_be_read(repository: Repository, tmp_path: Path, git: Git) -> None:
    for directory, names, files in os.walk(repository.path):
        for name in [".", *names, *files]:
            os.chown(Path(directory) / name, 65534, 65534)

    assert resolve(repository, "main", tmp_path, git)[2] == "branch"
    assert [path.name for path in (tmp_path / "cache").glob("*/access.*")] == []


class Server(http.server.SimpleHTTPRequestHandler):
    """Hands out files to those who know the password."""

    def do_GET(self) -> None:
        wanted = "Basic " + base64.b64encode(b"me:p@ss word").decode()
        if self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


FAKE_SSH = """#!/bin/sh
printf '%s\\n' "$@" > "$SSH_LOG"
for command; do :; done
exec sh -c "$command"
"""


@pytest.fixture
def ssh_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program in ssh's place that runs the command on this host, and return where it writes how it was called."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").write_text(FAKE_SSH)
    (tmp_path / "bin" / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("SSH_LOG", str(tmp_path / "ssh.log"))
    for name in ("GIT_SSH_COMMAND", "GIT_SSH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "ssh.log"


@pytest.mark.parametrize("prefix", ["git@example.com:", "ssh://git@example.com:2222"])
@pytest.mark.parametrize("version", ["main", "v1.0.0"])
def test_a_repository_over_ssh_is_read(repository: Repository, tmp_path: Path, git: Git, ssh_log: Path, prefix: str, version: str) -> None:
    source = source_of(f"{prefix}{repository.path}", tmp_path, git)

    found = source.archive_directories(version, ["backend"], tmp_path / "archives")

    assert found["resolved"].commit == repository.git("rev-parse", f"{version}^{{commit}}")
    assert found["made"] == [True]
    told = ssh_log.read_text().splitlines()
    assert {"BatchMode=yes", "ConnectTimeout=15", "git@example.com"} <= set(told)
    assert not {"-i", "StrictHostKeyChecking=accept-new"} & set(told)


def test_a_key_and_a_new_host_are_told_to_ssh(repository: Repository, tmp_path: Path, git: Git, ssh_log: Path) -> None:
    key = tmp_path / "the key; touch pwned"
    key.write_text("secret")
    location = parse_location(f"git@example.com:{repository.path}")

    Source(location, tmp_path / "cache", git, access=Access(key, new_host_key_accepted=True)).archive_directories("main", ["."], None)

    told = ssh_log.read_text().splitlines()
    assert told[told.index("-i") + 1] == str(key)
    assert {"IdentitiesOnly=yes", "StrictHostKeyChecking=accept-new"} <= set(told)
    assert not any("pwned" in name for _top, _names, files in os.walk(tmp_path) for name in files if name != key.name)


def test_a_key_that_is_not_there_is_named(tmp_path: Path, git: Git) -> None:
    with pytest.raises(LmsError, match="ssh_key is /nowhere, which cannot be read"):
        Source(parse_location("git@example.com:lms.git"), tmp_path, git, access=Access(Path("/nowhere")))


def test_how_the_user_calls_ssh_is_respected(repository: Repository, tmp_path: Path, git: Git, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_SSH_COMMAND", "ssh -F /home/me/config")

    resolve(repository, "main", tmp_path, git)

    assert not any("GIT_SSH_COMMAND" in environment for environment in git.environments)


@pytest.fixture
def working_copy(repository: Repository) -> Repository:
    """Return a working copy with a change, a new file and a removed one, none committed, and a file that git ignores."""
    (repository.path / ".gitignore").write_text("*.log\n")
    repository.commit(docs="1")
    (repository.path / "backend" / "file").write_text("changed")
    (repository.path / "backend" / "new").write_text("new")
    (repository.path / "backend" / "debug.log").write_text("ignored")
    (repository.path / "frontend" / "file").unlink()
    return repository


def names_in_archive(archive: Path) -> dict[str, str]:
    """Return the files of an archive."""
    with tarfile.open(archive) as tar:
        found = {member.name: tar.extractfile(member) for member in tar if member.isreg()}
        return {name: stream.read().decode() for name, stream in found.items() if stream}


CHANGES = ["backend/file", "backend/new", "frontend/file"]


def test_what_is_not_committed_is_refused(working_copy: Repository, tmp_path: Path, git: Git) -> None:
    with pytest.raises(LmsError, match=r"not committed: backend/file, backend/new, frontend/file\. Commit them") as caught:
        source_of(working_copy, tmp_path, git).archive_directories("HEAD", ["."], tmp_path / "archives")

    assert caught.value.details == {"changes": CHANGES}
    assert not (tmp_path / "archives").exists()


def test_what_is_not_committed_is_included(working_copy: Repository, tmp_path: Path, git: Git) -> None:
    before = working_copy.git("status", "--porcelain"), (working_copy.path / ".git" / "index").read_bytes()

    found = source_of(working_copy, tmp_path, git).archive_directories("HEAD", ["backend"], tmp_path / "archives", "included")

    assert found["changes"] == CHANGES
    assert found["resolved"].commit == working_copy.git("rev-parse", "HEAD")
    assert names_in_archive(tmp_path / "archives" / f"{found['trees']['backend']}.tar") == {"file": "changed", "new": "new"}
    assert (working_copy.git("status", "--porcelain"), (working_copy.path / ".git" / "index").read_bytes()) == before


def test_what_is_not_committed_is_ignored(working_copy: Repository, tmp_path: Path, git: Git) -> None:
    found = source_of(working_copy, tmp_path, git).archive_directories("HEAD", ["backend"], tmp_path / "archives", "ignored")

    assert found["changes"] == []
    assert names_in_archive(tmp_path / "archives" / f"{found['trees']['backend']}.tar") == {"file": "2"}


def test_a_version_by_name_is_what_was_committed(working_copy: Repository, tmp_path: Path, git: Git) -> None:
    assert source_of(working_copy, tmp_path, git).archive_directories("main", ["."], None)["changes"] == []


def test_a_clean_working_copy_is_its_commit(repository: Repository, tmp_path: Path, git: Git) -> None:
    found = source_of(repository, tmp_path, git).archive_directories("HEAD", ["."], None, "included")

    assert (found["changes"], found["trees"]) == ([], {".": repository.git("rev-parse", "HEAD^{tree}")})


def test_what_is_more_than_its_commit_says_so() -> None:
    assert release_id(datetime(2026, 11, 23, 21, 0, tzinfo=timezone.utc), "abc1234567", dirty=True) == "20261123210000-abc1234-dirty"


@pytest.fixture
def server(repository: Repository, tmp_path: Path) -> Iterator[str]:
    """Serve the repository over HTTP; return host and port."""
    subprocess.run(["git", "clone", "--quiet", "--bare", str(repository.path), str(tmp_path / "web" / "lms.git")], check=True)
    subprocess.run(["git", "-C", str(tmp_path / "web" / "lms.git"), "update-server-info"], check=True)
    handler = functools.partial(Server, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{found.server_port}"
        found.shutdown()


def test_a_password_reaches_the_server_without_standing_on_a_command_line(
    repository: Repository, tmp_path: Path, git: Git, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    source = source_of(f"http://me:p%40ss%20word@{server}/lms.git", tmp_path, git)

    found = source.archive_directories("main", ["backend"], None)["resolved"]

    assert found.commit == repository.git("rev-parse", "main")
    told = str(git.calls) + str(git.environments)
    assert not any(secret in told for secret in ("p@ss", "p%40ss"))
    assert not any("p%40ss" in path.read_text(errors="replace") for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_a_repository_over_https_is_read_and_its_certificate_is_checked(
    repository: Repository, tmp_path: Path, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*request, *names, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    subprocess.run(["git", "clone", "--quiet", "--bare", str(repository.path), str(tmp_path / "web" / "lms.git")], check=True)
    subprocess.run(["git", "-C", str(tmp_path / "web" / "lms.git"), "update-server-info"], check=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(Server, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        found.socket = context.wrap_socket(found.socket, server_side=True)
        threading.Thread(target=found.serve_forever, daemon=True).start()
        source = source_of(f"https://me:p%40ss%20word@127.0.0.1:{found.server_port}/lms.git", tmp_path, git)
        with pytest.raises(LmsError, match="cannot be read"):
            source.archive_directories("main", ["."], None)
        monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate))

        assert source.archive_directories("v1.0.0", ["."], None)["resolved"].commit == repository.git("rev-parse", "v1.0.0^{commit}")
        found.shutdown()


def test_a_wrong_password_is_an_error_that_does_not_show_it(tmp_path: Path, git: Git, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    with pytest.raises(LmsError, match="Check the key or token that gives access") as caught:
        source_of(f"http://me:wrong@{server}/lms.git", tmp_path, git).archive_directories("main", ["."], None)

    assert "wrong" not in str(caught.value.as_result())


def test_a_release_id_is_a_time_in_utc_and_a_short_commit() -> None:
    assert release_id(datetime(2026, 11, 23, 21, 0, tzinfo=timezone.utc), "abc1234567") == "20261123210000-abc1234"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("mian", ["main"]), ("v1.0.1", ["v1.0.0"]), ("origin/main", ["main"]), ("PROGRESS", ["feature/progress"]), ("zzz", [])],
)
def test_names_that_look_like_another(wanted: str, expected: list[str]) -> None:
    assert near_names(wanted, ["refs/heads/main", "refs/heads/feature/progress", "refs/tags/v1.0.0"]) == expected
