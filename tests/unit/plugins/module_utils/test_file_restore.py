# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a restore writes, that it never leaves its destination, and that it is there whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import Backup
from ansible_collections.bitflow.lms.plugins.module_utils._backup_reading import CorruptObjectError
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._file_archive import TarStream
from ansible_collections.bitflow.lms.plugins.module_utils._file_restore import (
    MISSING,
    Comparison,
    Item,
    Pipe,
    Plan,
    Settings,
    Unpacker,
    carry_out,
    choose,
    escaped,
    make_plan,
    resolve,
    staging_place,
)
from ansible_collections.bitflow.lms.plugins.module_utils._file_tree import (
    DIRECTORY,
    FILE,
    HARD_LINK,
    LINK,
    FileEntry,
    Patterns,
    Reports,
    Selection,
)

BACKUP = Backup("prod", "files", "uploads", "20261123T120000Z-00000000", {"objects": []})
LISTING = {
    "srv/lms": FileEntry("srv/lms", DIRECTORY, mode=0o750),
    "srv/lms/.env": FileEntry("srv/lms/.env", FILE, size=3),
    "srv/lms/app": FileEntry("srv/lms/app", DIRECTORY, mode=0o755),
    "srv/lms/app/a.txt": FileEntry("srv/lms/app/a.txt", FILE, size=2),
    "srv/lms/app/b.txt": FileEntry("srv/lms/app/b.txt", HARD_LINK, size=2, target="srv/lms/app/a.txt"),
    "srv/lms/app/c.txt": FileEntry("srv/lms/app/c.txt", HARD_LINK, size=2, target="srv/lms/app/a.txt"),
    "srv/lms/link": FileEntry("srv/lms/link", LINK, target="/etc"),
}


@pytest.mark.parametrize(
    ("path", "include", "targets"),
    [
        ("", [], ["srv", *LISTING]),
        ("/srv/lms", [], ["", ".env", "app", "app/a.txt", "app/b.txt", "app/c.txt", "link"]),
        ("/srv/lms/app/", ["a.txt"], ["a.txt"]),
        ("/srv", ["/srv/lms/app"], ["lms", "lms/app", "lms/app/a.txt", "lms/app/b.txt", "lms/app/c.txt"]),
        ("", [".env"], ["srv", "srv/lms", "srv/lms/.env"]),
        ("/nowhere", [], []),
    ],
)
def test_what_path_and_include_mean(path: str, include: list[str], targets: list[str]) -> None:
    assert list(choose(LISTING, path, Patterns(tuple(include)))) == targets


def test_a_directory_that_the_backup_does_not_have_is_a_plain_one() -> None:
    chosen = choose(LISTING, "", Patterns((".env",)))

    assert (chosen["srv"].mode, chosen["srv"].uid) == (0o755, -1)
    assert chosen["srv/lms"].mode == 0o750


def test_a_path_that_is_a_file_is_refused() -> None:
    with pytest.raises(LmsError, match="Use include for a single file"):
        choose(LISTING, "/srv/lms/.env", Patterns())


@pytest.mark.parametrize("name", ["../etc/passwd", "/etc/passwd", "srv/../../etc/passwd"])
def test_a_path_that_leaves_the_destination_is_refused(name: str) -> None:
    with pytest.raises(LmsError, match="does not lie below"):
        choose({name: FileEntry(name, FILE)}, "", Patterns())


def test_a_file_below_a_link_is_refused() -> None:
    listing = {"a": FileEntry("a", LINK, target="/etc"), "a/passwd": FileEntry("a/passwd", FILE)}

    with pytest.raises(LmsError, match="names a/passwd below a, which is no directory"):
        choose(listing, "", Patterns())


def test_a_hard_link_whose_file_is_not_wanted_gets_the_content_itself() -> None:
    chosen = choose(LISTING, "/srv/lms/app", Patterns(("b.txt", "c.txt")))

    assert [(item.target, item.source, item.link_to) for item in resolve(chosen)] == [
        ("b.txt", "srv/lms/app/a.txt", ""),
        ("c.txt", "", "b.txt"),
    ]


class Tree:
    """A tree, its stream of tar and its list."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        (root / "sub").mkdir(mode=0o750)
        (root / "sub/two\nlines").write_text("odd")
        (root / "a").write_text("content")
        (root / "a").chmod(0o640)
        os.utime(root / "a", ns=(1, 1700000000123456789))
        os.link(root / "a", root / "b")
        (root / "link").symlink_to("/no/where")
        with (root / "sparse").open("wb") as file:
            file.truncate(1 << 20)
            file.seek(500000)
            file.write(b"x")
        self.root = root
        stream = TarStream(Selection.of([str(root)]), Reports())
        self.content = b"".join(stream.pieces())
        self.listing = {entry.path: entry for entry in stream.entries}

    def extract(self, items: Sequence[Item], staging: Path) -> None:
        """Write the items, as a source does."""
        unpack(self.content, items, staging)


def unpack(content: bytes, items: Sequence[Item], staging: Path) -> None:
    """Unpack a stream of tar."""
    unpacker = Unpacker(items, staging)
    unpacker.directories()
    pipe = Pipe()
    pipe._queue.maxsize = 0
    for start in range(0, len(content), 1000):
        pipe.put(content[start : start + 1000])
    pipe.close()
    unpacker.files(pipe)
    unpacker.finish()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Return a tree."""
    return Tree(tmp_path / "tree")


class FromTree:
    """Files that come from a tree."""

    def __init__(self, tree: Tree, extract: Callable[[Sequence[Item], Path], None] | None = None) -> None:
        self.tree = tree
        self.extract = extract or tree.extract

    def listing(self) -> dict[str, FileEntry]:
        """Return what there is."""
        return self.tree.listing


def restore(tree: Tree, destination: Path, extract: Callable[[Sequence[Item], Path], None] | None = None, **settings: object) -> Plan:
    """Restore a tree to where it is said."""
    wanted = replace(Settings("prod", "uploads", str(destination), path=str(tree.root)), **settings)  # type: ignore[arg-type]
    staging = staging_place(destination)
    plan = make_plan(wanted, BACKUP, tree.listing, staging)
    carry_out(plan, FromTree(tree, extract), staging)
    return plan


def look(root: Path) -> dict[str, tuple[object, ...]]:
    """Return what of a tree has to come back."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        content = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        links = 1 if path.is_dir() else status.st_nlink
        found[str(path.relative_to(root))] = (content, status.st_mode, status.st_mtime_ns, status.st_uid, status.st_gid, links)
    return found


@pytest.mark.parametrize("there", [False, True])
def test_a_tree_comes_back_as_it_was(tree: Tree, tmp_path: Path, there: bool) -> None:
    destination = tmp_path / "back"
    if there:
        destination.mkdir()

    restore(tree, destination)

    ours, theirs = look(destination), look(tree.root)
    # A directory that was there stays the one that it is.
    assert {path: ours[path] for path in ours if path != "."} == {path: theirs[path] for path in theirs if path != "."}
    assert there or ours["."] == theirs["."]
    assert (destination / "sparse").stat().st_blocks * 512 < 1 << 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "tree"]


def test_missing_files_are_added_and_nothing_else_is_touched(tree: Tree, tmp_path: Path) -> None:
    destination = tmp_path / "back"
    destination.mkdir()
    (destination / "a").write_text("newer")
    (destination / "mine").write_text("mine")

    plan = restore(tree, destination, mode=MISSING)

    assert [item.target for item in plan.items] == ["b", "link", "sparse", "sub", "sub/two\nlines"]
    assert plan.existing == 2
    assert (destination / "a").read_text() == "newer"
    assert (destination / "b").read_text() == "content"
    assert look(destination / "sub") == look(tree.root / "sub")
    assert not restore(tree, destination, mode=MISSING).items


def test_a_missing_file_goes_into_a_directory_that_is_there(tree: Tree, tmp_path: Path) -> None:
    destination = tmp_path / "back"
    restore(tree, destination)
    (destination / "sub/mine").write_text("mine")
    (destination / "sub/two\nlines").unlink()

    plan = restore(tree, destination, mode=MISSING)

    assert [item.target for item in plan.items] == ["sub/two\nlines"]
    assert (destination / "sub/mine").read_text() == "mine"
    assert (destination / "sub/two\nlines").read_bytes() == (tree.root / "sub/two\nlines").read_bytes()


def test_a_destination_that_holds_something_is_refused(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "back").mkdir()
    (tmp_path / "back/mine").write_text("mine")

    with pytest.raises(LmsError, match="which is not empty"):
        restore(tree, tmp_path / "back")


def test_nothing_is_written_through_a_link_of_the_destination(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "back").mkdir()
    (tmp_path / "back/sub").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(LmsError, match="is in the way: in the backup it is a directory"):
        restore(tree, tmp_path / "back", mode=MISSING)

    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_link_that_is_put_there_meanwhile_is_not_followed(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "back/sub").mkdir(parents=True)

    def swap(items: Sequence[Item], staging: Path) -> None:
        tree.extract(items, staging)
        (tmp_path / "back/sub").rmdir()
        (tmp_path / "back/sub").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(LmsError, match="were not restored"):
        restore(tree, tmp_path / "back", swap, mode=MISSING)

    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["sub"]


def test_a_file_that_came_into_being_meanwhile_stays_and_the_others_go_again(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "back").mkdir()

    def interfere(items: Sequence[Item], staging: Path) -> None:
        tree.extract(items, staging)
        (tmp_path / "back/sparse").write_text("mine")

    with pytest.raises(LmsError, match="nothing of them is left there: File exists"):
        restore(tree, tmp_path / "back", interfere, mode=MISSING)

    assert {path.name: path.read_text() for path in (tmp_path / "back").iterdir()} == {"sparse": "mine"}


@pytest.mark.parametrize("mode", ["new", MISSING])
def test_a_failure_leaves_nothing(tree: Tree, tmp_path: Path, mode: str) -> None:
    def fail(items: Sequence[Item], staging: Path) -> None:
        tree.extract(items[:3], staging)
        raise OSError(28, "No space left on device")

    with pytest.raises(LmsError, match="No space left on device"):
        restore(tree, tmp_path / "back", fail, mode=mode)

    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_a_file_that_differs_from_its_sum_is_refused(tree: Tree, tmp_path: Path) -> None:
    path = f"{tree.root}/a"[1:]
    tree.listing[path] = replace(tree.listing[path], sha256=hashlib.sha256(b"other").hexdigest())

    with pytest.raises(LmsError, match=r"does not hold what its list says: .*/tree/a"):
        restore(tree, tmp_path / "back")

    assert [each.name for each in tmp_path.iterdir()] == ["tree"]


def test_an_archive_that_was_cut_at_a_member_is_refused(tree: Tree, tmp_path: Path) -> None:
    tree.content = tree.content[: tree.content.index(b"sparse") // 512 * 512]

    with pytest.raises(LmsError):
        restore(tree, tmp_path / "back")

    assert [each.name for each in tmp_path.iterdir()] == ["tree"]


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside"])
def test_an_archive_with_a_path_outside_is_refused(tmp_path: Path, name: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))

    with pytest.raises(LmsError, match="does not lie below"):
        unpack(buffer.getvalue(), [], tmp_path)


def test_links_in_an_archive_write_nothing(tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    (tmp_path / "elsewhere").mkdir()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("a")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "elsewhere")
        archive.addfile(link)
        below = tarfile.TarInfo("a/b")
        below.size = 4
        archive.addfile(below, io.BytesIO(b"evil"))

    unpack(buffer.getvalue(), [], tmp_path / "staging")

    assert sorted(path.name for path in tmp_path.rglob("*")) == ["elsewhere", "staging"]


def test_what_a_dead_run_left_is_swept_and_what_is_at_work_is_not(tmp_path: Path) -> None:
    for name in (".back.restore-dead", ".back.restore-alive", ".other.restore-dead"):
        (tmp_path / name).mkdir()
    alive = os.open(tmp_path / ".back.restore-alive", os.O_RDONLY)
    fcntl.flock(alive, fcntl.LOCK_EX)

    staging_place(tmp_path / "back").sweep()

    os.close(alive)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".back.restore-alive", ".other.restore-dead"]


def test_a_destination_without_a_directory_to_lie_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LmsError, match="Create it first"):
        staging_place(tmp_path / "no/back")


def test_files_that_do_not_fit_are_refused_beforehand(tree: Tree, tmp_path: Path) -> None:
    path = f"{tree.root}/a"[1:]
    tree.listing[path] = replace(tree.listing[path], size=1 << 60)

    with pytest.raises(LmsError, match="Make room there"):
        restore(tree, tmp_path / "back")


def test_nothing_to_restore_is_said(tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(LmsError, match=f"has nothing that path and include mean. It holds {tree.root}"):
        restore(tree, tmp_path / "back", include=["nowhere"])


def test_what_the_reader_of_a_pipe_fails_with_reaches_the_writer() -> None:
    pipe = Pipe()
    pipe.failure = LmsError("The disk is full.")

    with pytest.raises(LmsError, match="The disk is full"):
        pipe.put(b"x")


def test_a_path_for_restic_means_itself() -> None:
    assert escaped("srv/a*b?[c]\\d") == "/srv/a\\*b\\?\\[c]\\\\d"


def compared(content: bytes, listing: dict[str, FileEntry]) -> list[str]:
    """Return in what a stream of tar differs from a list."""
    comparison, pipe = Comparison(listing), Pipe()
    pipe._queue.maxsize = 0
    pipe.put(content)
    pipe.close()
    pipe.serve(comparison.files)
    if pipe.failure:
        raise pipe.failure
    return comparison.differences()


def test_every_file_of_an_archive_is_held_against_the_list(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "tree")
    changed = next(path for path, entry in tree.listing.items() if entry.type == FILE)
    other = {**tree.listing, changed: replace(tree.listing[changed], sha256="0" * 64)}
    lacking = {**tree.listing, "srv/gone": replace(tree.listing[changed], path="srv/gone")}

    assert compared(tree.content, tree.listing) == []
    assert compared(tree.content, other) == [f"The archive does not hold what its list says: /{changed}."]
    assert compared(tree.content, lacking) == ["The archive does not hold what its list says: /srv/gone."]


def test_an_archive_that_was_cut_is_corrupt(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "tree")

    with pytest.raises(CorruptObjectError, match="cannot be read"):
        compared(tree.content[:5000], tree.listing)
