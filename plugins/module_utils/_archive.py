# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pack and unpack archives of files that prove themselves: a manifest of SHA-256 sums travels inside."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import tarfile
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Callable

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import ANYBODY, Owner

MANIFEST = "MANIFEST.sha256"

# Not zero: OPcache takes a time of zero for a file that cannot be read and never caches it.
PACKED_TIME = 946684800

_BLOCK = 1 << 20

# tarfile copies what is left of its buffer at every read and write, so that a large one is slow.
_STREAM_BLOCK = 1 << 14
# The name of an archive of a tree of git, as release_source gives it.
_TREE_ARCHIVE = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\.tar")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MANIFEST_LINE = re.compile(r"(?P<sum>[0-9a-f]{64})  (?P<path>[^\n]+)")
_NAMES_SHOWN = 20


@dataclass
class Contents:
    """What an archive held: the sum of each file, the target of each link, the bytes of all files."""

    sums: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    size: int = 0


def sha256_of(stream: IO[bytes]) -> str:
    """Return the SHA-256 of everything that a stream still holds."""
    digest = hashlib.sha256()
    while block := stream.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def member_path(name: str) -> str:
    """Return the relative path of an archive's member, or refuse a name that is unsafe; the tree's top is the empty path."""
    if _CONTROL.search(name):
        raise LmsError(f"The archive holds the name {name!r}, which has control characters.")
    if name.startswith("/"):
        raise LmsError(f"The archive holds the absolute path {name}.")
    parts = PurePosixPath(name).parts
    if ".." in parts:
        raise LmsError(f"The archive holds the path {name}, which leaves the tree.")
    return "/".join(parts)


def link_stays_inside(path: str, target: str) -> bool:
    """Say whether a link's target, read as text, stays in the tree."""
    if not target or target.startswith("/") or _CONTROL.search(target):
        return False
    return PurePosixPath(os.path.normpath(f"{PurePosixPath(path).parent}/{target}")).parts[:1] != ("..",)


def manifest_text(sums: Mapping[str, str]) -> str:
    """Write a manifest; sha256sum --check reads it too."""
    return "".join(f"{sums[path]}  {path}\n" for path in sorted(sums))


def parse_manifest(text: str) -> dict[str, str]:
    """Read a manifest back."""
    sums: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = _MANIFEST_LINE.fullmatch(line)
        if match is None:
            raise LmsError(f"Line {number} of {MANIFEST} is not a sum and a path.")
        sums[match["path"]] = match["sum"]
    return sums


def compare_with_manifest(manifest: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Refuse files that are missing, unannounced or different."""
    missing = sorted(set(manifest) - set(found))
    extra = sorted(set(found) - set(manifest) - {MANIFEST})
    different = sorted(path for path in set(manifest) & set(found) if manifest[path] != found[path])
    if not (missing or extra or different):
        return
    counts = [f"{len(paths)} {word}" for paths, word in ((missing, "missing"), (extra, "extra"), (different, "different")) if paths]
    raise LmsError(
        f"The files do not match {MANIFEST}: {', '.join(counts)}. Build the artifact again.",
        missing=missing[:_NAMES_SHOWN],
        extra=extra[:_NAMES_SHOWN],
        different=different[:_NAMES_SHOWN],
    )


class Unpacker:
    """Unpack one archive into a new directory, never outside of it."""

    def __init__(self, destination: Path, owner: Owner | None = None, modified: int | None = None) -> None:
        self.destination = destination
        self.owner = owner or ANYBODY
        self.modified = modified
        self.contents = Contents()
        self._directories = {""}

    def unpack(self, stream: IO[bytes]) -> Contents:
        """Unpack a tar archive, compressed or not, and return what it held."""
        try:
            with tarfile.open(fileobj=stream, mode="r|*", bufsize=_STREAM_BLOCK) as archive:
                for member in archive:
                    self._take(archive, member)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise LmsError(f"The archive cannot be read: {error}.") from error
        # Links come last, so that no file was ever written through one.
        self._make_links()
        return self.contents

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Unpack one member."""
        path = member_path(member.name)
        if member.isdir():
            self._directory(path, member.mode)
            return
        self._directory(path.rpartition("/")[0])
        if path in self.contents.sums or path in self.contents.links or path in self._directories:
            raise LmsError(f"The archive holds {path} twice.")
        if member.isreg():
            self._file(archive, member, path)
        elif member.issym():
            self._link(path, member.linkname)
        elif member.islnk():
            self._hard_link(path, member_path(member.linkname))
        else:
            raise LmsError(f"The archive holds {path}, which is neither a file nor a directory nor a link.")

    def _directory(self, path: str, mode: int = 0o755) -> None:
        """Make a directory and its parents."""
        if path in self._directories:
            return
        self._directory(path.rpartition("/")[0])
        if path in self.contents.sums or path in self.contents.links:
            raise LmsError(f"The archive holds {path} both as a directory and as something else.")
        directory = self.destination / path
        directory.mkdir(0o700)
        self.owner.give(directory)
        directory.chmod(0o700 | mode & 0o755)
        self._directories.add(path)

    def _file(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        """Write a file and take its sum on the way."""
        source = archive.extractfile(member)
        if source is None:
            raise LmsError(f"The archive holds {path} without content.")
        digest = hashlib.sha256()
        descriptor = os.open(self.destination / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as target:
            while block := source.read(_BLOCK):
                digest.update(block)
                target.write(block)
            target.flush()
            if self.owner != ANYBODY:
                os.fchown(descriptor, self.owner.uid, self.owner.gid)
            # Nobody but the owner may write code, and nothing in an artifact needs setuid.
            os.fchmod(descriptor, 0o400 | member.mode & 0o755)
            if self.modified is not None:
                os.utime(descriptor, (self.modified, self.modified))
        self.contents.sums[path] = digest.hexdigest()
        self.contents.size += member.size

    def _link(self, path: str, target: str) -> None:
        """Remember a link whose target, read as text, stays in the tree."""
        if not link_stays_inside(path, target):
            raise LmsError(f"The archive holds the link {path} to {target}, which leaves the tree.")
        self.contents.links[path] = target

    def _hard_link(self, path: str, target: str) -> None:
        """Make a second name for a file that was unpacked before."""
        if target not in self.contents.sums:
            raise LmsError(f"The archive holds {path} as a second name of {target}, which is no file before it.")
        os.link(self.destination / target, self.destination / path, follow_symlinks=False)
        self.contents.sums[path] = self.contents.sums[target]

    def _make_links(self) -> None:
        """Make the links, then see where they really lead: several harmless ones can leave the tree together."""
        for path, target in self.contents.links.items():
            link = self.destination / path
            link.symlink_to(target)
            self.owner.give(link, follow=False)
        top = self.destination.resolve()
        for path, target in self.contents.links.items():
            if not leads_inside(top, self.destination / path):
                raise LmsError(f"The archive holds the link {path} to {target}, which leaves the tree.")


def leads_inside(top: Path, link: Path) -> bool:
    """Say whether a link ends in the tree; a circle ends nowhere."""
    try:
        end = link.resolve()
    except (OSError, RuntimeError):
        return False
    return end == top or top in end.parents


def pack(members: Mapping[str, Path], output: IO[bytes], umask: int = 0o022) -> Contents:
    """Write files, directories and links as a tar archive whose bytes depend on nothing else, the manifest first."""
    contents = _survey(members)
    with tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_STREAM_BLOCK) as archive:
        text = manifest_text(contents.sums).encode()
        _add(archive, tarfile.TarInfo(MANIFEST), len(text), 0o644 & ~umask, io.BytesIO(text))
        for path in sorted(members):
            _pack_member(archive, path, members[path], contents, umask)
    return contents


def _survey(members: Mapping[str, Path]) -> Contents:
    """Take the sums of the files to pack, and refuse what could not be unpacked."""
    contents = Contents()
    for path, source in members.items():
        if path == MANIFEST:
            raise LmsError(f"{MANIFEST} is the name of the artifact's own list of sums: collect the file under another name.")
        member_path(path)
        if source.is_symlink():
            target = str(source.readlink())
            if not link_stays_inside(path, target):
                raise LmsError(f"The link {path} to {target} leaves the artifact. Exclude it, or copy what it points to.")
            contents.links[path] = target
        elif source.is_file():
            with source.open("rb") as stream:
                contents.sums[path] = sha256_of(stream)
            contents.size += source.stat().st_size
        elif not source.is_dir():
            raise LmsError(f"{path} is neither a file nor a directory nor a link. Exclude it.")
    return contents


def _pack_member(archive: tarfile.TarFile, path: str, source: Path, contents: Contents, umask: int) -> None:
    """Add one path to an archive."""
    member = tarfile.TarInfo(path)
    if path in contents.links:
        member.type = tarfile.SYMTYPE
        member.linkname = contents.links[path]
        _add(archive, member, 0, 0o777, None)
    elif path in contents.sums:
        found = source.stat()
        executable = found.st_mode & 0o100
        with source.open("rb") as stream:
            _add(archive, member, found.st_size, (0o777 if executable else 0o666) & ~umask, stream)
    else:
        member.type = tarfile.DIRTYPE
        _add(archive, member, 0, 0o777 & ~umask, None)


def _add(archive: tarfile.TarFile, member: tarfile.TarInfo, size: int, mode: int, stream: IO[bytes] | None) -> None:
    """Add a member that carries no time, user or group of this host."""
    member.size = size
    member.mode = mode
    member.mtime = PACKED_TIME
    archive.addfile(member, stream)


@dataclass
class Survey:
    """What a tar archive holds, whatever its times and owners are: one line a path, and the whole content of the files asked for."""

    lines: dict[str, str] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)

    def digest(self, left_out: Collection[str] = ()) -> str:
        """Return the sum over everything, or over what is not in or below the directories that are left out."""
        digest = hashlib.sha256()
        for path in sorted(self.lines):
            if not is_below(path, left_out):
                digest.update(self.lines[path].encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def is_below(path: str, directories: Collection[str]) -> bool:
    """Say whether a path is one of some directories or lies below one."""
    return any(path == directory or path.startswith(f"{directory}/") for directory in directories)


def survey_archive(stream: IO[bytes], whole: Callable[[str], bool] = lambda path: False) -> Survey:
    """Read a tar archive without unpacking it; keep the content of the files for which `whole` is true."""
    survey = Survey()
    try:
        with tarfile.open(fileobj=stream, mode="r|*", bufsize=_STREAM_BLOCK) as archive:
            for member in archive:
                path = member_path(member.name)
                source = archive.extractfile(member) if member.isreg() else None
                held = member.linkname
                if source is not None and whole(path):
                    survey.contents[path] = source.read()
                    held = hashlib.sha256(survey.contents[path]).hexdigest()
                elif source is not None:
                    held = sha256_of(source)
                survey.lines[path] = f"{member.type!r} {bool(member.mode & 0o100)} {path!r} {held!r}\n"
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise LmsError(f"The archive cannot be read: {error}.") from error
    return survey


def paths_with_parents(paths: Iterable[str]) -> set[str]:
    """Return paths together with all directories above them."""
    found = set(paths)
    for path in list(found):
        found.update(str(parent) for parent in PurePosixPath(path).parents if str(parent) != ".")
    return found


def oldest_beyond(paths: Sequence[Path], keep: int, spared: Collection[Path] = ()) -> list[Path]:
    """Return the paths beyond the newest ones, without those that are in use."""
    newest_first = sorted(paths, key=lambda path: (path in spared, path.stat().st_mtime, path.name), reverse=True)
    return newest_first[max(keep, len(spared), 1) :]


def remove_old_archives(used: Sequence[Path], keep: int) -> None:
    """Remove the source archives beside those in use, named after trees of git as they are, that were not used for longest."""
    mine = [path for path in used if _TREE_ARCHIVE.fullmatch(path.name) and path.is_file()]
    # What another user put there is that user's.
    with contextlib.suppress(PermissionError):
        for path in mine:
            os.utime(path)
        for directory in {path.parent for path in mine}:
            archives = [path for path in directory.iterdir() if _TREE_ARCHIVE.fullmatch(path.name)]
            for archive in oldest_beyond(archives, keep, mine):
                archive.unlink(missing_ok=True)
