# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files are meant, and what a walk tells of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._file_tree import (
    CHANGED,
    DIRECTORY,
    FILE,
    HARD_LINK,
    LINK,
    NO_FILE,
    UNREADABLE,
    VANISHED,
    Changes,
    Counts,
    FileEntry,
    Found,
    Patterns,
    Reports,
    Selection,
    _walk,
    check_path,
    compare,
    entry_from,
    scan,
    shown,
    walk,
)


@pytest.mark.parametrize(
    ("glob", "path", "meant"),
    [
        ("*.log", "srv/a.log", True),
        ("*.log", "srv/a.log/below", True),
        ("*.log", "srv/a.log.gz", False),
        ("cache", "srv/cache", True),
        ("cache", "srv/my-cache", False),
        ("framework/cache", "srv/framework/cache/x", True),
        ("framework/cache", "srv/framework/old/cache", False),
        ("/srv/*/tmp", "srv/lms/tmp", True),
        ("/srv/*/tmp", "srv/lms/deep/tmp", False),
        ("/srv/**/tmp", "srv/lms/deep/tmp", True),
        ("/srv/**/tmp", "srv/tmp", True),
        ("/srv/**", "srv/lms/deep", True),
        ("srv", "srv", True),
        ("/lms", "srv/lms", False),
        ("upload?", "srv/upload1", True),
        ("upload?", "srv/upload", False),
        ("part[0-9]", "srv/part7", True),
        ("part[!0-9]", "srv/part7", False),
        ("a+b(c", "srv/a+b(c", True),
        ("*.tmp", "srv/two\nlines.tmp", True),
        ("cache/", "srv/cache", True),
    ],
)
def test_a_glob_means_what_the_documentation_says(glob: str, path: str, meant: bool) -> None:
    assert Patterns((glob,)).match(path) is meant


def test_no_glob_means_nothing() -> None:
    assert not Patterns().match("srv/a")


def tree(root: Path) -> Path:
    """Make a small tree."""
    (root / "lms/cache").mkdir(parents=True)
    (root / "lms/cache/x").write_text("x")
    (root / "lms/a.txt").write_text("abc")
    os.link(root / "lms/a.txt", root / "lms/b.txt")
    (root / "lms/link").symlink_to("/etc")
    os.mkfifo(root / "lms/pipe")
    return root / "lms"


def paths_of(selection: Selection, reports: Reports) -> list[str]:
    """Return what a walk comes by."""
    return [found.path for found in walk(selection, reports)]


def test_a_walk_takes_everything_but_what_is_excluded_and_follows_no_link(tmp_path: Path) -> None:
    root = tree(tmp_path)
    top = str(root)[1:]

    found = paths_of(Selection.of([str(root)], ["cache"]), Reports())

    assert found == [top, f"{top}/a.txt", f"{top}/b.txt", f"{top}/link", f"{top}/pipe"]


def test_a_scan_counts_a_file_with_two_names_once(tmp_path: Path) -> None:
    root = tree(tmp_path)

    result = scan(Selection.of([str(root)]))

    assert result.counts == Counts(files=3, directories=2, links=1, bytes=4)
    assert result.recent == 4
    assert result.skipped == [(f"{root}/pipe"[1:], NO_FILE)]


def test_a_scan_knows_what_is_new_since_a_moment(tmp_path: Path) -> None:
    root = tree(tmp_path)

    assert scan(Selection.of([str(root)]), since=(root / "a.txt").stat().st_ctime + 60).recent == 0


def test_a_scan_names_all_files_that_cannot_be_read(tmp_path: Path) -> None:
    root = tree(tmp_path)

    with pytest.raises(LmsError) as caught:
        scan(Selection.of([str(root)]), readable=lambda found: not found.name.endswith(".txt"))

    assert caught.value.message == (
        f"The backup of the files would not be whole: {root}/a.txt, {root}/b.txt: unreadable: Permission denied. "
        "Let the user of the backup read it, or leave it out with exclude."
    )


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "paths is empty. Name the directories and files to back up."),
        (["srv"], "paths has 'srv'. Give absolute paths below the root directory."),
        (["/"], "paths has '/'. Give absolute paths below the root directory."),
        (["/srv", "/srv/lms"], "paths has /srv/lms, which lies in /srv and would be stored twice. Leave one of them out."),
    ],
)
def test_paths_that_make_no_sense_are_refused(paths: list[str], message: str) -> None:
    with pytest.raises(LmsError) as caught:
        Selection.of(paths)

    assert caught.value.message == message


def test_a_path_that_is_excluded_is_refused() -> None:
    with pytest.raises(LmsError, match="which exclude leaves out"):
        Selection.of(["/srv/lms"], ["lms"])


@pytest.mark.parametrize(("name", "message"), [("gone", "cannot be read: No such file"), ("link", "which is a symbolic link")])
def test_a_path_that_is_gone_or_a_link_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "link").symlink_to("/etc")

    with pytest.raises(LmsError, match=message):
        paths_of(Selection.of([str(tmp_path / name)]), Reports())


def test_a_directory_that_became_a_link_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("key")
    (tmp_path / "lms").mkdir()
    status = (tmp_path / "lms").lstat()
    (tmp_path / "lms").rmdir()
    (tmp_path / "lms").symlink_to("secret")
    reports = Reports(patient=True)
    directory = os.open(tmp_path, os.O_RDONLY)

    found = list(_walk(Found("lms", "lms", directory, status), Selection(("/lms",)), reports, status.st_dev))

    os.close(directory)
    assert found == []
    assert reports.failures == [("lms", "unreadable: Not a directory")]


@pytest.mark.parametrize(
    ("reason", "listed", "fails"),
    [
        (VANISHED, True, False),
        (CHANGED, True, False),
        (VANISHED, False, True),
        (CHANGED, False, True),
        (f"{UNREADABLE}: Permission denied", True, True),
        (NO_FILE, False, False),
    ],
)
def test_only_what_is_listed_may_vanish_or_change(reason: str, listed: bool, fails: bool) -> None:
    reports = Reports(Patterns(("tmp",)))
    path = "srv/tmp/a" if listed else "srv/a"

    if fails:
        with pytest.raises(LmsError):
            reports.tell(path, reason)
    else:
        reports.tell(path, reason)
        assert reports.skipped == [(path, reason)]


def test_changes_are_seen_by_kind_size_time_and_target() -> None:
    before = {
        "d": FileEntry("d", DIRECTORY, mtime_ns=1),
        "same": FileEntry("same", FILE, size=1, mtime_ns=1),
        "grown": FileEntry("grown", FILE, size=1, mtime_ns=1),
        "touched": FileEntry("touched", FILE, size=1, mtime_ns=1),
        "other": FileEntry("other", FILE, size=1),
        "link": FileEntry("link", LINK, target="a"),
        "named": FileEntry("named", FILE, size=1, mtime_ns=1),
        "gone": FileEntry("gone", FILE),
    }
    after = {
        "d": FileEntry("d", DIRECTORY, mtime_ns=2),
        "same": FileEntry("same", FILE, size=1, mtime_ns=1),
        "grown": FileEntry("grown", FILE, size=2, mtime_ns=1),
        "touched": FileEntry("touched", FILE, size=1, mtime_ns=2),
        "other": FileEntry("other", DIRECTORY),
        "link": FileEntry("link", LINK, target="b"),
        "named": FileEntry("named", HARD_LINK, size=1, mtime_ns=1, target="same"),
        "new": FileEntry("new", FILE),
    }

    assert compare(before, after) == Changes(added=("new",), changed=("grown", "link", "other", "touched"), removed=("gone",))


def test_changes_are_shown_up_to_a_hundred_names() -> None:
    changes = Changes(added=tuple(f"srv/{number:03}" for number in range(150)))

    assert len(changes.as_result()["added_names"]) == 100
    assert changes.as_result()["added"] == 150
    assert changes.lines().splitlines()[-1] == "and 50 more"


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../etc", "a/../../b", "a//b", "a/./b", "a/..", "a\0b"])
def test_a_path_that_would_leave_the_destination_is_refused(path: str) -> None:
    with pytest.raises(LmsError, match="does not lie below the place to restore to"):
        check_path(path)


@pytest.mark.parametrize("path", ["a", "-a", "a b/c\nd", "...", "a/..b"])
def test_an_odd_name_is_not_refused(path: str) -> None:
    check_path(path)


@pytest.mark.parametrize(
    "record",
    [
        {"path": "a", "type": "device"},
        {"path": "../a", "type": "file"},
        {"path": "a", "type": "hard_link", "target": "../../etc/shadow"},
        {"path": "a", "type": "file", "unknown": 1},
        {"type": "file"},
    ],
)
def test_a_record_that_is_none_is_refused(record: dict[str, object]) -> None:
    with pytest.raises(LmsError):
        entry_from(record)


def test_a_name_that_is_no_utf8_can_be_shown() -> None:
    assert shown(os.fsdecode(b"caf\xe9")) == "caf\\xe9"
