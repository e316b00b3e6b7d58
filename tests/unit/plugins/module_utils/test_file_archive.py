# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stream of tar is one that everybody reads, and what changes while it is read does not go unnoticed."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._file_archive import (
    TarStream,
    counts_of_reasons,
    decode_list,
    encode_list,
    joined,
)
from ansible_collections.bitflow.lms.plugins.module_utils._file_tree import CHANGED, VANISHED, Patterns, Reports, Selection

ODD = ["with space", "two\nlines", "-leading", "ünïcode", os.fsdecode(b"caf\xe9"), "x" * 200, "quote'\"\\", "*?["]


def stream_of(root: Path, vanish_ok: str = "", reading: Callable[[str], None] = lambda _path: None, whole: int = 1 << 20) -> TarStream:
    """Return the stream of a tree."""
    patterns = Patterns((vanish_ok,) if vanish_ok else ())
    return TarStream(Selection.of([str(root)]), Reports(patterns), reading=reading, whole=whole)


def members(content: bytes) -> dict[str, tarfile.TarInfo]:
    """Read an archive with what Python has for it; of two members with one name the later one counts."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:", errors="surrogateescape") as archive:
        return {member.name: member for member in archive}


def content_of(content: bytes, name: str) -> bytes:
    """Return the content of a member."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:", errors="surrogateescape") as archive:
        source = archive.extractfile(name)
        assert source
        return source.read()


@pytest.mark.parametrize("whole", [0, 1 << 20])
def test_odd_names_modes_times_and_links_are_in_the_archive(tmp_path: Path, whole: int) -> None:
    top = str(tmp_path)[1:]
    for name in ODD:
        (tmp_path / name).write_text(f"content of {name!r}")
    (tmp_path / "with space").chmod(0o4751)
    os.utime(tmp_path / "with space", ns=(1, 1700000000123456789))
    (tmp_path / "link").symlink_to("/no/where")
    os.link(tmp_path / "-leading", tmp_path / "zz")
    stream = stream_of(tmp_path, whole=whole)

    content = b"".join(stream.pieces())

    found = members(content)
    assert set(found) == {top, *(f"{top}/{name}" for name in [*ODD, "link", "zz"])}
    assert all(content_of(content, f"{top}/{name}") == f"content of {name!r}".encode() for name in ODD)
    odd = found[f"{top}/with space"]
    assert (odd.mode, odd.pax_headers["mtime"], odd.uid) == (0o4751, "1700000000.123456789", os.geteuid())
    assert found[f"{top}/link"].linkname == "/no/where"
    assert found[f"{top}/zz"].linkname == f"{top}/-leading"
    assert len(content) == stream.size
    assert stream.size % tarfile.RECORDSIZE == 0


def test_the_list_says_what_the_archive_holds(tmp_path: Path) -> None:
    top = str(tmp_path)[1:]
    for name in ODD:
        (tmp_path / name).write_text(name, encoding="utf-8", errors="surrogateescape")
    stream = stream_of(tmp_path)
    b"".join(stream.pieces())

    entries = decode_list(b"".join(joined(encode_list(stream.entries, [("srv/gone", VANISHED)]), size=300)))

    assert entries == {entry.path: entry for entry in stream.entries}
    assert {path: entry.sha256 for path, entry in entries.items() if entry.sha256} == {
        f"{top}/{name}": hashlib.sha256(os.fsencode(name)).hexdigest() for name in ODD
    }


def test_a_list_that_names_a_path_twice_is_refused() -> None:
    with pytest.raises(LmsError, match="names a path twice"):
        decode_list(b'{"path":"a","type":"file"}\n{"path":"a","type":"link","target":"/etc"}\n')


class Change:
    """Changes a file while it is read, some times."""

    def __init__(self, path: Path, times: int, size: int) -> None:
        self.path = path
        self.times = times
        self.size = size

    def __call__(self, path: str) -> None:
        if path == str(self.path)[1:] and self.times:
            self.times -= 1
            self.path.write_bytes(os.urandom(self.size))
            os.utime(self.path, ns=(self.times, self.times))


@pytest.mark.parametrize("whole", [0, 1 << 20])
@pytest.mark.parametrize("size", [10, 40000])
def test_a_file_that_changes_once_is_read_again(tmp_path: Path, whole: int, size: int) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x" * 5000)
    stream = stream_of(tmp_path, reading=Change(file, 1, size), whole=whole)

    content = b"".join(stream.pieces())

    assert content_of(content, str(file)[1:]) == file.read_bytes()
    assert [entry.sha256 for entry in stream.entries][1:] == [hashlib.sha256(file.read_bytes()).hexdigest()]
    assert stream.reports.skipped == []


@pytest.mark.parametrize("whole", [0, 1 << 20])
def test_a_file_that_goes_on_changing_fails_the_backup(tmp_path: Path, whole: int) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x" * 5000)
    stream = stream_of(tmp_path, reading=Change(file, 9, 7), whole=whole)

    with pytest.raises(LmsError) as caught:
        b"".join(stream.pieces())

    assert caught.value.message == (
        f"The backup of the files would not be whole: {file}: changed while it was read. List what may vanish or change in vanish_ok."
    )


@pytest.mark.parametrize("whole", [0, 1 << 20])
def test_a_file_that_may_change_is_stored_as_it_was_read_last(tmp_path: Path, whole: int) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x" * 5000)
    stream = stream_of(tmp_path, vanish_ok="a", reading=Change(file, 9, 7), whole=whole)

    content = b"".join(stream.pieces())

    path = str(file)[1:]
    assert stream.reports.skipped == [(path, CHANGED)]
    assert hashlib.sha256(content_of(content, path)).hexdigest() == stream.entries[-1].sha256


def test_without_the_second_look_a_changing_file_would_be_half_old_and_half_new(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x" * (3 << 20))
    stream = stream_of(tmp_path, vanish_ok="a", whole=0, reading=lambda _path: file.write_bytes(b"y" * (3 << 20)) and None)
    stream._judge = lambda *_arguments: ""  # type: ignore[method-assign]

    content = b"".join(stream.pieces())

    assert set(content_of(content, str(file)[1:])) == {ord("x"), ord("y")}
    assert stream.reports.skipped == []


@pytest.mark.parametrize("vanish_ok", ["", "b"])
def test_a_file_that_vanishes_is_told(tmp_path: Path, vanish_ok: str) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    stream = stream_of(tmp_path, vanish_ok=vanish_ok)
    original = os.open

    def vanish(path: str, *arguments: int, **named: int) -> int:
        if path == "b":
            (tmp_path / "b").unlink()
        return original(path, *arguments, **named)

    os.open = vanish  # type: ignore[assignment]
    try:
        if vanish_ok:
            b"".join(stream.pieces())
            assert stream.reports.skipped == [(f"{tmp_path}/b"[1:], VANISHED)]
        else:
            with pytest.raises(LmsError, match="/b: vanished"):
                b"".join(stream.pieces())
    finally:
        os.open = original  # type: ignore[assignment]


def test_what_was_left_out_is_counted_by_its_reason() -> None:
    assert counts_of_reasons([("a", VANISHED), ("b", CHANGED), ("c", VANISHED)]) == {CHANGED: 1, VANISHED: 2}
