# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files are whole or not there, locks are exclusive."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils import _files
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import (
    Owner,
    locked,
    make_directory,
    mode_number,
    relative_path,
    write_atomically,
)


def names_in(directory: Path) -> list[str]:
    """Return the names in a directory."""
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    with path.open() as reader:
        write_atomically(path, b"new", 0o640)

        assert reader.read() == "old"
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode), names_in(tmp_path)) == ("new", 0o640, ["file"])


def test_a_file_that_fails_its_check_never_lands(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def check(content: bytes) -> None:
        raise LmsError(f"not {content!r}")

    with pytest.raises(LmsError, match="not b'new'"):
        write_atomically(path, b"new", check=check)

    assert (path.read_text(), names_in(tmp_path)) == ("old", ["file"])


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".file.4194305.tmp").write_text("secret")

    write_atomically(tmp_path / "file", b"new")

    assert names_in(tmp_path) == ["file"]


def test_a_file_is_readable_by_nobody_else_before_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []

    def watch(descriptor: int, mode: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        original(descriptor, mode)

    original = os.fchmod
    monkeypatch.setattr(_files.os, "fchmod", watch)
    previous = os.umask(0)
    try:
        write_atomically(tmp_path / "file", b"secret", 0o644)
    finally:
        os.umask(previous)

    assert modes == [0o600]


def test_a_lock_lets_one_in_at_a_time(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock", "Another build"),
        pytest.raises(LmsError, match="Another build is still at work after 0 seconds"),
        locked(tmp_path / "lock", "Another build", timeout=0),
    ):
        pass

    with locked(tmp_path / "lock", "Another build", timeout=0):
        pass


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with locked(tmp_path / "lock", "Another build"):
            os._exit(0)
    os.waitpid(child, 0)

    with locked(tmp_path / "lock", "Another build", timeout=0):
        pass


def test_a_file_in_the_way_of_a_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "shared").write_text("")

    with pytest.raises(LmsError, match="shared is in the way"):
        make_directory(tmp_path / "shared")


@pytest.mark.parametrize("name", ["", "/etc", "../x", "a/../b", "-x", "a\nb", "."])
def test_a_relative_path_stays_where_it_is(name: str) -> None:
    with pytest.raises(LmsError, match="shared_directories has"):
        relative_path(name, "shared_directories")


def test_a_relative_path_is_shortened() -> None:
    assert relative_path("./storage//app/", "shared_directories") == "storage/app"


@pytest.mark.parametrize("mode", ["u=rw", "0888", "-1", "10000", ""])
def test_a_mode_is_octal(mode: str) -> None:
    with pytest.raises(LmsError, match="is no octal mode"):
        mode_number(mode, "mode")


def test_users_and_groups_are_found_by_name_and_number() -> None:
    assert Owner.of("root", "0") == Owner(0, 0)
    assert Owner.of(None, None) == Owner(-1, -1)
    with pytest.raises(LmsError, match="There is no user nobody-of-that-name"):
        Owner.of("nobody-of-that-name", None)
