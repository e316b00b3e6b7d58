# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Resolve a version of a git repository to a commit, and archive directories of it."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import locked, relative_path, write_atomically

# Runs a program: the argument list, and variables to add to its environment. Answers with status, output and errors.
RunCommand = Callable[[list[str], Mapping[str, str]], tuple[int, str, str]]

ALLOWED_TRANSPORTS = ("file", "git", "http", "https", "ssh")
SHORT = 7
_TOKEN_LENGTH = 20
_NAMES_SHOWN = 10

# Cleaning up in the background would outlive the lock; a transfer that stalls must end.
_SETTINGS = ("gc.autoDetach=false", "maintenance.autoDetach=false", "http.lowSpeedLimit=1", "http.lowSpeedTime=30")

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCP_LIKE = re.compile(r"(?P<host>(?:[A-Za-z0-9._~+-]+@)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])):(?P<path>(?!/?/)?[^:].*)")
_FULL_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_SHORT_COMMIT = re.compile(rf"[0-9a-f]{{{SHORT},64}}")
_UNSAFE_IN_VERSION = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|^[-/]|[/.]$|\.lock$|^@$")
_USERINFO = re.compile(r"(?P<scheme>[a-z+]+://)(?P<userinfo>[^/\s]+)@")


@dataclass(frozen=True)
class Location:
    """Where a repository is, without the secrets that its URL may carry."""

    url: str
    shown: str
    username: str = ""
    password: str = ""
    secrets: tuple[str, ...] = ()

    @property
    def local_directory(self) -> Path | None:
        """Return the directory of a repository on this host."""
        if self.url.startswith("file://"):
            return Path(unquote(urlsplit(self.url).path))
        return Path(self.url) if self.url.startswith("/") else None

    @property
    def key(self) -> str:
        """Return the name of the repository's cache."""
        name = re.sub(r"[^A-Za-z0-9._-]", "-", self.url.rstrip("/").rpartition("/")[2]).lstrip(".-")
        return f"{name.removesuffix('.git') or 'repository'}-{hashlib.sha256(self.url.encode()).hexdigest()[:16]}.git"


@dataclass(frozen=True)
class Access:
    """How git proves itself to the repository's host, beyond what its own configuration says."""

    ssh_key: Path | None = None
    new_host_key_accepted: bool = False


@dataclass(frozen=True)
class Resolved:
    """What a version is."""

    commit: str
    ref: str
    kind: str
    ambiguous: bool = False


def masked(text: str) -> str:
    """Return a text in which no URL shows a password or token."""
    return _USERINFO.sub(_masked_userinfo, text)


def _masked_userinfo(match: re.Match[str]) -> str:
    """Return the start of a URL without its secret; a user alone is a secret only where it may be a token."""
    user, separator, _password = match["userinfo"].partition(":")
    if match["scheme"] in ("http://", "https://"):
        return f"{match['scheme']}***@"
    return f"{match['scheme']}{user}{':***' if separator else ''}@"


def parse_location(repository: str) -> Location:
    """Read a repository's path or URL, and refuse what could make git run something else."""
    shown = masked(repository)
    if not repository or _CONTROL.search(repository) or repository.startswith("-"):
        raise LmsError(f"repository is {shown!r}: give a path or a URL without a leading hyphen or control characters.")
    if "://" in repository:
        return _parse_url(repository, shown)
    if "::" in repository:
        raise LmsError(f"repository is {shown!r}: use one of the transports {', '.join(ALLOWED_TRANSPORTS)}.")
    if repository.startswith(("/", "~")):
        path = Path(repository).expanduser()
        return Location(str(path), str(path))
    if _SCP_LIKE.fullmatch(repository) and not repository.partition(":")[2].startswith("-"):
        return Location(repository, shown)
    raise LmsError(
        f"repository is {shown!r}: give an absolute path or a URL, because a relative path depends on where Ansible was started."
    )


def _parse_url(repository: str, shown: str) -> Location:
    """Read a URL and take the password out of it."""
    try:
        parts = urlsplit(repository)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        # The URL itself is not shown: where its parts cannot be told apart, neither can its password.
        raise LmsError(
            f"repository is no valid {repository.partition(':')[0]} URL. Write special characters of a password as %XX."
        ) from error
    if parts.scheme not in ALLOWED_TRANSPORTS:
        raise LmsError(f"repository is {shown!r}: use one of the transports {', '.join(ALLOWED_TRANSPORTS)}.")
    if host.startswith("-") or (not host and parts.scheme != "file") or (parts.username or "").startswith("-"):
        raise LmsError(f"repository is {shown!r}, which has no valid host.")
    if parts.scheme not in ("http", "https"):
        if parts.password:
            raise LmsError(f"repository is {shown!r}: git takes no password for {parts.scheme} from a URL. Use a key.")
        return Location(repository, shown)
    netloc = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    bare = urlunsplit((parts.scheme, netloc, parts.path, parts.query, ""))
    user, password = parts.username or "", parts.password or ""
    # A user alone may be a token, but "git" is none.
    raw = password or (user if len(user) >= _TOKEN_LENGTH else "")
    secrets = tuple(dict.fromkeys(filter(None, (raw, unquote(raw)))))
    return Location(bare, shown, unquote(user), unquote(password), secrets)


def check_version(version: str) -> None:
    """Refuse a version that cannot be the name of a branch, tag or commit."""
    if not version or _UNSAFE_IN_VERSION.search(version):
        raise LmsError(f"version is {version!r}, which is no name of a branch, tag or commit.")


def release_id(now: datetime, commit: str, dirty: bool = False) -> str:
    """Return the id of a release: the time in UTC and the short commit, with a mark where it holds more than the commit."""
    return f"{now.astimezone(timezone.utc):%Y%m%d%H%M%S}-{short_commit(commit, dirty)}"


def short_commit(commit: str, dirty: bool = False) -> str:
    """Return the first digits of a commit, with a mark where it is not all."""
    return commit[:SHORT] + ("-dirty" if dirty else "")


def near_names(wanted: str, names: list[str]) -> list[str]:
    """Return the names that look most like the one that was not found."""
    short = {name: name.removeprefix("refs/heads/").removeprefix("refs/tags/") for name in names}
    lowered = wanted.lower()
    containing = [name for name in short.values() if lowered in name.lower() or name.lower() in lowered]
    alike = difflib.get_close_matches(wanted, list(short.values()), n=_NAMES_SHOWN, cutoff=0.6)
    return list(dict.fromkeys([*alike, *sorted(containing)]))[:_NAMES_SHOWN]


class Source:
    """A git repository, seen through a bare mirror on this host."""

    def __init__(self, location: Location, cache: Path, run_command: RunCommand, git: str = "git", access: Access | None = None) -> None:
        self.location = location
        self.cache = cache
        self.mirror = cache.absolute() / location.key
        self._run_command = run_command
        self._git = git
        self.access = access or Access()
        self._ssh: str | None = None
        if self.access.ssh_key is not None and not os.access(self.access.ssh_key, os.R_OK):
            raise LmsError(f"ssh_key is {self.access.ssh_key}, which cannot be read. Name a private key of the user who runs Ansible.")

    def archive_directories(self, version: str, paths: list[str], destination: Path | None, uncommitted: str = "refused") -> dict[str, Any]:
        """Resolve a version and archive directories of its commit; without a destination nothing is archived."""
        check_version(version)
        wanted = {path: path if path == "." else relative_path(path, "paths") for path in paths}
        self.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self.cache / f".{self.location.key}.lock", f"Another look into {self.location.shown}", 600):
            self._prepare()
            resolved = self.resolve(version)
            top, changes = self._with_changes(resolved, uncommitted) if version == "HEAD" else (resolved.commit, [])
            trees = {path: self._tree(top, clean) for path, clean in wanted.items()}
            made = [self._archive(tree, destination) for tree in dict.fromkeys(trees.values())] if destination else []
            subject = self._read("log", "-1", "--format=%s", resolved.commit).strip()
        return {"resolved": resolved, "trees": trees, "subject": subject, "made": made, "changes": changes}

    # Git

    def _environment(self) -> dict[str, str]:
        """Return the variables that keep git quiet, alone and inside the allowed transports."""
        environment = {
            "GIT_ALLOW_PROTOCOL": ":".join(ALLOWED_TRANSPORTS),
            "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C.UTF-8",
        }
        ssh = self._ssh_command(environment)
        return {**environment, "GIT_SSH_COMMAND": ssh} if ssh else environment

    def _ssh_command(self, environment: Mapping[str, str]) -> str:
        """Return how git calls ssh, which asks nothing; empty where the user has said it, and the options say nothing else."""
        if self._ssh is None:
            words = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15"]
            if self.access.ssh_key:
                words += ["-i", str(self.access.ssh_key), "-o", "IdentitiesOnly=yes"]
            if self.access.new_host_key_accepted:
                words += ["-o", "StrictHostKeyChecking=accept-new"]
            # The environment would override the program that the user's configuration of git names.
            configured = [self._git, "-C", "/", "config", "--get", "core.sshCommand"]
            said = {"GIT_SSH_COMMAND", "GIT_SSH"} & set(os.environ) or self._run_command(configured, environment)[0] == 0
            self._ssh = "" if said and self.access == Access() else shlex.join(words)
        return self._ssh

    def _run(self, *arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, str, str]:
        """Run git on the mirror."""
        settings = [argument for setting in _SETTINGS for argument in ("-c", setting)]
        argv = [self._git, f"--git-dir={self.mirror}", *settings, *arguments]
        return self._run_command(argv, {**self._environment(), **(environment or {})})

    def _read(self, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
        """Return the output of a git command that must succeed."""
        status, output, errors = self._run(*arguments, environment=environment)
        if status != 0:
            raise CommandError(
                f"git {arguments[0]} on the mirror of {self.location.shown} ended with status {status}.",
                cmd=["git", *arguments],
                rc=status,
                stderr=masked(errors),
            )
        return output

    def _object(self, expression: str) -> str | None:
        """Return the id of an object, or None if there is none."""
        status, output, _errors = self._run("rev-parse", "--verify", "--quiet", expression)
        return output.strip() if status == 0 else None

    def _prepare(self) -> None:
        """Create the mirror where it is missing, and clear what a killed git left in it. The caller holds the lock."""
        if not self.mirror.is_dir():
            aside = self.cache / f".{self.location.key}.new"
            shutil.rmtree(aside, ignore_errors=True)
            argv = [self._git, "init", "--quiet", "--bare", "--template=", str(aside)]
            status, _output, errors = self._run_command(argv, self._environment())
            if status != 0:
                raise CommandError(f"git init of the mirror {self.mirror} ended with status {status}.", cmd=argv, rc=status, stderr=errors)
            aside.rename(self.mirror)
        for stale in [*self.mirror.glob("*.lock"), *self.mirror.glob("refs/**/*.lock")]:
            stale.unlink(missing_ok=True)

    def _fetch(self, *refspecs: str) -> tuple[int, str]:
        """Fetch from the repository; answers with status and errors."""
        with self._access() as environment:
            status, _output, errors = self._run(
                "fetch",
                "--quiet",
                "--force",
                "--prune",
                "--no-tags",
                "--end-of-options",
                self.location.url,
                *refspecs,
                environment=environment,
            )
        return status, masked(errors).strip()

    @contextlib.contextmanager
    def _access(self) -> Iterator[dict[str, str]]:
        """Give git the user's configuration, and what this repository needs besides, without secrets on a command line."""
        settings = self._settings()
        if not settings:
            yield {}
            return
        configuration = self.mirror / "access.config"
        credentials = self.mirror / "access.credentials"
        try:
            if self.location.password:
                write_atomically(credentials, f"{_with_credentials(self.location)}\n".encode(), 0o600)
            text = _configuration_text([*_user_configuration(), *settings])
            write_atomically(configuration, text.encode(), 0o600)
            yield {"GIT_CONFIG_GLOBAL": str(configuration)}
        finally:
            configuration.unlink(missing_ok=True)
            credentials.unlink(missing_ok=True)

    def _settings(self) -> list[tuple[str, str, str]]:
        """Return the settings that only this repository needs: section, key, value."""
        settings: list[tuple[str, str, str]] = []
        directory = self.location.local_directory
        if directory is not None and _belongs_to_somebody_else(directory):
            # The task names this repository, which is the consent that git asks for.
            settings += [("safe", "directory", str(place)) for place in _git_directories(directory)]
        if self.location.password:
            store = f"store --file={shlex.quote(str(self.mirror / 'access.credentials'))}"
            settings += [("credential", "helper", ""), ("credential", "helper", store)]
        elif self.location.username:
            settings.append(("credential", "username", self.location.username))
        return settings

    # Versions

    def resolve(self, version: str) -> Resolved:
        """Return the commit of a version. Git's own rule decides: a full commit, a tag, a branch, a short commit."""
        if _FULL_COMMIT.fullmatch(version):
            return self._resolve_full_commit(version)
        self._mirror_refs(version)
        if version == "HEAD":
            return self._peeled("refs/lms/HEAD", version, "branch")
        if version.startswith("refs/"):
            kind = "tag" if version.startswith("refs/tags/") else "branch"
            if self._object(version):
                return self._peeled(version, version, kind)
            raise self._not_found(version)
        tag, branch = f"refs/tags/{version}", f"refs/heads/{version}"
        is_tag, is_branch = bool(self._object(tag)), bool(self._object(branch))
        if is_tag:
            found = self._peeled(tag, version, "tag")
            return Resolved(found.commit, found.ref, found.kind, ambiguous=is_branch)
        if is_branch:
            return self._peeled(branch, version, "branch")
        if _SHORT_COMMIT.fullmatch(version):
            return self._resolve_short_commit(version)
        raise self._not_found(version)

    def _resolve_full_commit(self, version: str) -> Resolved:
        """Return a full commit, asking the repository only if the mirror has not got it."""
        if self._object(f"{version}^{{commit}}") is None and self._fetch(version)[0] != 0:
            # A server may refuse to hand out a commit by its id, but not its branches and tags.
            self._mirror_refs(version)
        commit = self._object(f"{version}^{{commit}}")
        if commit is None:
            raise LmsError(f"{self.location.shown} has no commit {version}. Push it, or name another version.", version=version)
        return Resolved(commit, commit, "commit")

    def _resolve_short_commit(self, version: str) -> Resolved:
        """Return the one commit that begins like this."""
        commit = self._object(f"{version}^{{commit}}")
        if commit is not None:
            return Resolved(commit, commit, "commit")
        _status, output, _errors = self._run("rev-parse", f"--disambiguate={version}")
        candidates = output.split()
        if len(candidates) > 1:
            raise LmsError(f"version {version} begins several commits of {self.location.shown}: give more digits.", candidates=candidates)
        raise self._not_found(version)

    def _peeled(self, ref: str, version: str, kind: str) -> Resolved:
        """Return the commit behind a branch or tag."""
        commit = self._object(f"{ref}^{{commit}}")
        if commit is None:
            raise LmsError(f"{kind.capitalize()} {version} of {self.location.shown} points to no commit. Name another version.")
        return Resolved(commit, ref, kind)

    def _mirror_refs(self, version: str) -> None:
        """Bring the mirror's branches and tags up to date."""
        refspecs = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
        if version == "HEAD":
            refspecs.append("+HEAD:refs/lms/HEAD")
        status, errors = self._fetch(*refspecs)
        if status != 0:
            raise self._unreadable(status, errors)

    def _unreadable(self, status: int, errors: str) -> LmsError:
        """Return the error of a repository that could not be read, with the way out."""
        directory = self.location.local_directory
        if directory is not None and not directory.exists():
            return LmsError(f"The repository {self.location.shown} does not exist. Set lms_repository to its path or URL.", stderr=errors)
        way_out = "Check lms_repository and the access to it"
        if "Host key verification failed" in errors:
            way_out = "Add the server's host key to known_hosts"
        elif "could not read Username" in errors or "Authentication failed" in errors or "Permission denied" in errors:
            way_out = "Check the key or token that gives access to it"
        return CommandError(f"The repository {self.location.shown} cannot be read. {way_out}.", rc=status, stderr=errors)

    def _not_found(self, version: str) -> LmsError:
        """Return the error of a version that is not there, with the names that look like it."""
        names = self._read("for-each-ref", "--format=%(refname)", "refs/heads", "refs/tags").split()
        near = near_names(version.removeprefix("refs/heads/").removeprefix("refs/tags/"), names)
        branches = sorted(name.removeprefix("refs/heads/") for name in names if name.startswith("refs/heads/"))
        tags = sorted(name.removeprefix("refs/tags/") for name in names if name.startswith("refs/tags/"))
        shown = near or [*branches, *tags[::-1]][:_NAMES_SHOWN]
        hint = f"Names like it: {', '.join(near)}" if near else f"It has: {', '.join(shown) or 'no branch and no tag'}"
        return LmsError(
            f"{self.location.shown} has no branch, tag or commit {version}. {hint}.",
            version=version,
            near=near,
            branches=branches[:_NAMES_SHOWN],
            tags=tags[-_NAMES_SHOWN:],
        )

    # Working copies

    def _with_changes(self, resolved: Resolved, uncommitted: str) -> tuple[str, list[str]]:
        """Return what to archive of a working copy, the commit or a tree of all that is there, and what the tree changes."""
        directory = self.location.local_directory
        if uncommitted == "ignored" or directory is None or not (directory / ".git").exists():
            return resolved.commit, []
        tree = self._tree_of_files(directory, resolved.commit)
        changes = self._read("diff-tree", "-r", "-z", "--name-only", "--no-renames", resolved.commit, tree).split("\0")
        changes = [path for path in changes if path]
        if changes and uncommitted == "refused":
            shown = ", ".join(changes[:_NAMES_SHOWN]) + (", ..." if len(changes) > _NAMES_SHOWN else "")
            raise LmsError(
                f"The working copy {directory} has changes that are not committed: {shown}. "
                "Commit them, name a version, or set uncommitted to included or ignored.",
                changes=changes,
            )
        return (tree if changes else resolved.commit), changes

    def _tree_of_files(self, directory: Path, commit: str) -> str:
        """Write the files of a working copy into the mirror as a tree. The copy's own repository is not written to."""
        index = self.mirror / "uncommitted.index"
        index.unlink(missing_ok=True)
        own_excludes = directory / ".git" / "info" / "exclude"
        excludes = self.mirror / "info" / "exclude"
        excludes.parent.mkdir(exist_ok=True)
        excludes.write_bytes(own_excludes.read_bytes() if own_excludes.is_file() else b"")
        environment = {"GIT_INDEX_FILE": str(index)}
        files = ["-c", "core.bare=false", f"--work-tree={directory}"]
        try:
            self._read("read-tree", commit, environment=environment)
            self._read(*files, "-C", str(directory), "add", "--all", environment=environment)
            return self._read("write-tree", environment=environment).strip()
        finally:
            index.unlink(missing_ok=True)

    # Trees

    def _tree(self, commit: str, path: str) -> str:
        """Return the id of a directory of a commit."""
        expression = f"{commit}^{{tree}}" if path == "." else f"{commit}:{path}"
        found = self._object(expression)
        if found is None:
            names = self._read("ls-tree", "-d", "--name-only", commit).splitlines()
            raise LmsError(
                f"{self.location.shown} has no directory {path} at {commit[:SHORT]}. It has: {', '.join(names[:_NAMES_SHOWN]) or 'none'}.",
                commit=commit,
                directories=names,
            )
        if self._read("cat-file", "-t", found).strip() != "tree":
            raise LmsError(f"{path} is no directory in {self.location.shown} at {commit[:SHORT]}.", commit=commit)
        return found

    def _archive(self, tree: str, destination: Path) -> bool:
        """Archive a directory under the name of its tree; say whether it had to be made."""
        archive = archive_path(destination, tree)
        if archive.is_file():
            return False
        destination.mkdir(parents=True, exist_ok=True)
        aside = destination / f".{tree}.{os.getpid()}.tar"
        try:
            self._read("archive", "--format=tar", f"--output={aside}", tree)
            aside.rename(archive)
        finally:
            aside.unlink(missing_ok=True)
        return True


def archive_path(destination: Path, tree: str) -> Path:
    """Return where the archive of a tree is."""
    return destination / f"{tree}.tar"


def _belongs_to_somebody_else(directory: Path) -> bool:
    """Say whether git would doubt the owner of a repository on this host."""
    with contextlib.suppress(OSError):
        return any(place.stat().st_uid != os.geteuid() for place in _git_directories(directory) if place.exists())
    return False


def _git_directories(directory: Path) -> list[Path]:
    """Return the paths under which git may know a repository of this host."""
    places = dict.fromkeys([directory, directory.resolve()])
    return [path for place in places for path in (place, place / ".git")]


def _user_configuration() -> list[tuple[str, str, str]]:
    """Return the settings that include the user's own configuration, which GIT_CONFIG_GLOBAL would replace."""
    own = os.environ.get("GIT_CONFIG_GLOBAL")
    if own is not None:
        return [("include", "path", own)] if own else []
    home = Path.home()
    base = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return [("include", "path", str(base / "git" / "config")), ("include", "path", str(home / ".gitconfig"))]


def _configuration_text(settings: list[tuple[str, str, str]]) -> str:
    """Write settings as a configuration file of git."""
    quoted = ((section, key, value.replace("\\", "\\\\").replace('"', '\\"')) for section, key, value in settings)
    return "".join(f'[{section}]\n\t{key} = "{value}"\n' for section, key, value in quoted)


def _with_credentials(location: Location) -> str:
    """Return the line that git's credential store reads."""
    parts = urlsplit(location.url)
    userinfo = f"{quote(location.username, safe='')}:{quote(location.password, safe='')}"
    return urlunsplit((parts.scheme, f"{userinfo}@{parts.netloc}", "", "", ""))
