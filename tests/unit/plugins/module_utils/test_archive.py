# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives prove themselves and stay in their tree."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._archive import (
    MANIFEST,
    PACKED_TIME,
    Survey,
    Unpacker,
    compare_with_manifest,
    link_stays_inside,
    manifest_text,
    member_path,
    oldest_beyond,
    pack,
    parse_manifest,
    remove_old_archives,
    survey_archive,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError


def archive(*members: tuple[str, bytes, bytes | str]) -> io.BytesIO:
    """Return a tar archive of members: name, type, content or link target."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            if isinstance(content, str):
                member.linkname = content
                content = b""
            member.size = len(content)
            member.mode = 0o644
            tar.addfile(member, io.BytesIO(content))
    stream.seek(0)
    return stream


def tree_of(directory: Path) -> dict[str, str]:
    """Return what a directory holds: content, link target or nothing for a directory."""
    found: dict[str, str] = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        found[name] = f"-> {path.readlink()}" if path.is_symlink() else "" if path.is_dir() else path.read_text()
    return found


def names_in(directory: Path) -> list[str]:
    """Return the names in a directory."""
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Return a tree with a file of each kind."""
    top = tmp_path / "packed"
    (top / "public" / "empty").mkdir(parents=True)
    (top / "artisan").write_text("#!/usr/bin/env php\n")
    (top / "artisan").chmod(0o700)
    (top / "public" / "index.php").write_text("<?php\n")
    (top / "public" / "index.php").chmod(0o666)
    (top / "link").symlink_to("public/index.php")
    return top


def members_of(top: Path) -> dict[str, Path]:
    """Return everything below a directory."""
    return {str(path.relative_to(top)): path for path in top.rglob("*")}


def test_a_tree_survives_packing_and_unpacking(packed: Path, tmp_path: Path) -> None:
    stream = io.BytesIO()
    sums = pack(members_of(packed), stream).sums
    stream.seek(0)
    target = tmp_path / "target"
    target.mkdir()

    contents = Unpacker(target, modified=1_000_000_000).unpack(stream)

    found = tree_of(target)
    assert found.pop(MANIFEST) == manifest_text(sums)
    assert found == {
        "artisan": "#!/usr/bin/env php\n",
        "link": "-> public/index.php",
        "public": "",
        "public/empty": "",
        "public/index.php": "<?php\n",
    }
    assert {path: stat.S_IMODE((target / path).stat().st_mode) for path in ("artisan", "public", "public/index.php", MANIFEST)} == {
        "artisan": 0o755,
        "public": 0o755,
        "public/index.php": 0o644,
        MANIFEST: 0o644,
    }
    assert (target / "artisan").stat().st_mtime == 1_000_000_000
    compare_with_manifest(sums, contents.sums)


def test_the_bytes_of_an_archive_depend_only_on_the_files(packed: Path) -> None:
    first, second = io.BytesIO(), io.BytesIO()
    pack(members_of(packed), first)
    os.utime(packed / "artisan", (1, 1))
    (packed / "public" / "index.php").chmod(0o600)

    pack(dict(reversed(members_of(packed).items())), second)

    assert first.getvalue() == second.getvalue()


def test_no_packed_file_has_the_time_zero_which_opcache_never_caches(packed: Path) -> None:
    stream = io.BytesIO()
    pack(members_of(packed), stream)
    stream.seek(0)

    with tarfile.open(fileobj=stream) as tar:
        assert {member.mtime for member in tar} == {PACKED_TIME}
    assert PACKED_TIME > 0


def test_a_manifest_is_what_sha256sum_checks(packed: Path, tmp_path: Path) -> None:
    stream = io.BytesIO()
    pack(members_of(packed), stream)
    stream.seek(0)
    target = tmp_path / "target"
    target.mkdir()
    Unpacker(target).unpack(stream)

    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", MANIFEST], cwd=target, check=True)


def test_a_umask_takes_permissions_away(packed: Path) -> None:
    stream = io.BytesIO()
    pack(members_of(packed), stream, umask=0o027)
    stream.seek(0)

    with tarfile.open(fileobj=stream) as tar:
        modes = {member.name: member.mode for member in tar}
    assert modes == {MANIFEST: 0o640, "artisan": 0o750, "link": 0o777, "public": 0o750, "public/empty": 0o750, "public/index.php": 0o640}


@pytest.mark.parametrize(
    "members",
    [
        [("/etc/passwd", tarfile.REGTYPE, b"")],
        [("../up", tarfile.REGTYPE, b"")],
        [("a/../../up", tarfile.REGTYPE, b"")],
        [("a\nb", tarfile.REGTYPE, b"")],
        [("null", tarfile.CHRTYPE, b"")],
        [("pipe", tarfile.FIFOTYPE, b"")],
        [("link", tarfile.SYMTYPE, "/etc/passwd")],
        [("a/link", tarfile.SYMTYPE, "../../up")],
        [("link", tarfile.SYMTYPE, "../target-sibling/x")],
        [("hard", tarfile.LNKTYPE, "/etc/passwd")],
        [("hard", tarfile.LNKTYPE, "../up")],
        [("hard", tarfile.LNKTYPE, "never-seen")],
        [("link", tarfile.SYMTYPE, "file"), ("hard", tarfile.LNKTYPE, "link")],
        [("file", tarfile.REGTYPE, b"1"), ("./file", tarfile.REGTYPE, b"2")],
        [("d", tarfile.SYMTYPE, "."), ("d/file", tarfile.REGTYPE, b"")],
        [("file", tarfile.REGTYPE, b""), ("file/below", tarfile.REGTYPE, b"")],
        [("d", tarfile.SYMTYPE, "."), ("e", tarfile.SYMTYPE, "d/d/d/../../..")],
    ],
)
def test_hostile_archives_are_refused(tmp_path: Path, members: list[tuple[str, bytes, bytes | str]]) -> None:
    target = tmp_path / "target"
    target.mkdir()

    with pytest.raises(LmsError, match="The archive holds"):
        Unpacker(target).unpack(archive(*members))

    assert names_in(tmp_path) == ["target"]


def test_setuid_and_foreign_write_permission_do_not_survive(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        member = tarfile.TarInfo("tool")
        member.mode = 0o6777
        tar.addfile(member, io.BytesIO())
    stream.seek(0)

    Unpacker(tmp_path).unpack(stream)

    assert stat.S_IMODE((tmp_path / "tool").stat().st_mode) == 0o755


def test_a_hard_link_in_the_tree_is_kept(tmp_path: Path) -> None:
    contents = Unpacker(tmp_path).unpack(archive(("a", tarfile.REGTYPE, b"x"), ("b", tarfile.LNKTYPE, "a")))

    assert (tmp_path / "a").stat().st_ino == (tmp_path / "b").stat().st_ino
    assert contents.sums["a"] == contents.sums["b"]


@pytest.mark.parametrize("content", [b"", b"no archive at all" * 100, archive(("a", tarfile.REGTYPE, b"x" * 9000)).getvalue()[:4000]])
def test_a_broken_archive_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(LmsError, match="The archive cannot be read"):
        Unpacker(tmp_path).unpack(io.BytesIO(content))


def test_links_that_leave_the_artifact_are_not_packed(tmp_path: Path) -> None:
    (tmp_path / "vendor").symlink_to("/usr/share/php")

    with pytest.raises(LmsError, match="The link vendor to /usr/share/php leaves the artifact"):
        pack(members_of(tmp_path), io.BytesIO())


def test_special_files_are_not_packed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(LmsError, match="pipe is neither a file"):
        pack(members_of(tmp_path), io.BytesIO())


def test_the_name_of_the_manifest_is_taken(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("mine")

    with pytest.raises(LmsError, match="own list of sums"):
        pack(members_of(tmp_path), io.BytesIO())


def test_missing_extra_and_different_files_are_told_apart() -> None:
    manifest = {"gone": "1", "same": "2", "other": "3"}

    with pytest.raises(LmsError, match="1 missing, 1 extra, 1 different") as caught:
        compare_with_manifest(manifest, {"same": "2", "other": "9", "new": "4", MANIFEST: "5"})

    assert caught.value.details == {"missing": ["gone"], "extra": ["new"], "different": ["other"]}


def test_a_manifest_reads_back() -> None:
    sums = {"b c": hashlib.sha256(b"1").hexdigest(), "a": hashlib.sha256(b"2").hexdigest()}

    assert parse_manifest(manifest_text(sums)) == sums


def test_a_line_that_is_no_sum_is_an_error() -> None:
    with pytest.raises(LmsError, match="Line 2 of MANIFEST"):
        parse_manifest(f"{'0' * 64}  a\nrubbish\n")


def survey_of(when: int, content: bytes, mode: int = 0o644) -> Survey:
    """Survey an archive of one file."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        member = tarfile.TarInfo("src/file")
        member.mtime, member.uid, member.size, member.mode = when, when, len(content), mode
        tar.addfile(member, io.BytesIO(content))
    stream.seek(0)
    return survey_archive(stream)


def test_the_digest_of_a_content_ignores_times_and_owners() -> None:
    digest = survey_of(1, b"same").digest()

    assert survey_of(2, b"same").digest() == digest
    assert survey_of(1, b"other").digest() != digest
    assert survey_of(1, b"same", 0o755).digest() != digest


def test_a_survey_can_leave_directories_out_and_hold_whole_files() -> None:
    files = [("apps/a/x", "1"), ("apps/ab", "2"), ("package.json", "{}")]

    def survey(*entries: tuple[str, str]) -> Survey:
        return survey_archive(
            archive(*((name, tarfile.REGTYPE, text.encode()) for name, text in entries)), lambda path: path.endswith("json")
        )

    assert survey(*files).contents == {"package.json": b"{}"}
    assert survey(*files).digest(["apps/a"]) == survey(*files[1:]).digest()
    assert survey(*files).digest() != survey(*files[1:]).digest()


def test_the_newest_are_kept_and_what_is_in_use(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(4)]
    for number, path in enumerate(paths, start=1):
        path.write_text("")
        os.utime(path, (number, number))

    assert oldest_beyond(paths, 2, [paths[0]]) == [paths[2], paths[1]]
    assert oldest_beyond(paths, 0) == [paths[2], paths[1], paths[0]]
    assert oldest_beyond(paths, 1, paths[:3]) == [paths[3]]


def test_only_archives_of_trees_go_and_none_in_use(tmp_path: Path) -> None:
    names = [f"{number:040x}.tar" for number in range(4)]
    for number, name in enumerate([*names, "mine.tar"], start=1):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (number, number))

    remove_old_archives([tmp_path / names[0]], keep=2)

    assert names_in(tmp_path) == sorted([names[0], names[3], "mine.tar"])


@pytest.mark.parametrize(
    ("path", "target", "inside"),
    [
        ("a/b", "../c", True),
        ("a/b", "..", True),
        ("a", "..", False),
        ("a/b", "../../c", False),
        ("a", "", False),
        ("a", "..b", True),
        ("a", "b/../../c", False),
    ],
)
def test_where_a_link_points_as_text(path: str, target: str, inside: bool) -> None:
    assert link_stays_inside(path, target) is inside


def test_a_member_is_named_in_its_shortest_form() -> None:
    assert [member_path(name) for name in ("./a//b/", ".", "a")] == ["a/b", "", "a"]
