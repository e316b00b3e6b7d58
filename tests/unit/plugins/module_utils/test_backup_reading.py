# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading a backup's objects: what is not what was written never looks like a whole one."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import Backup, read_catalogue, seal
from ansible_collections.bitflow.lms.plugins.module_utils._backup_directory import DirectoryStore
from ansible_collections.bitflow.lms.plugins.module_utils._backup_reading import CorruptObjectError, Reader, data_object, globals_object
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import StoreError
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import Stage, StageError

PATH = "prod/database/lms/20261123T102835Z-6f3a91c2"
SQL = b"CREATE TABLE users ();\n" * 50_000 + b"-- Dump completed on 2026-11-23\n"


class Torn(DirectoryStore):
    """A repository whose connection breaks in the middle of an object."""

    def stream(self, key: str) -> Any:
        """Give the beginning only."""
        for piece in super().stream(key):
            yield piece[:100]
            break
        raise StoreError("The connection was closed.")


def zstd(content: bytes) -> bytes:
    """Compress."""
    return subprocess.run(["zstd", "-q", "-c"], input=content, capture_output=True, check=True).stdout


def put(store: DirectoryStore, content: bytes, name: str = "data.sql.zst", kind: str = "database", **manifest: Any) -> Backup:
    """Publish a backup with this object, and return it."""
    method, where = ("zstd", "around") if name.endswith(".zst") else ("none", "around")
    draft = store.draft(PATH.replace("database", kind))
    upload = draft.upload(name)
    upload.write(content)
    done = upload.complete()
    described = {"name": name, "size": done.size, "sha256": done.sha256, "compression": {"method": method, "where": where}}
    draft.publish(seal({"objects": [{**described, "raw_size": len(SQL)}], "format_of_dump": "plain", **manifest}))
    return read(store)


def read(store: DirectoryStore) -> Backup:
    """Return the only backup that is there."""
    return read_catalogue(store).backups[0]


def stored(store: DirectoryStore, name: str = "data.sql.zst") -> Path:
    """Return the file of an object, which may be written."""
    path = store.root / PATH / name
    path.chmod(0o600)
    return path


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    """Return an empty repository."""
    return DirectoryStore(tmp_path)


def test_programs_read_an_object_as_it_was_before_it_was_compressed(store: DirectoryStore) -> None:
    backup = put(store, zstd(SQL))
    read_back = bytearray()

    Reader(store, backup, {}).run(data_object(backup), [Stage(["cat"])], sink=read_back.extend)

    assert bytes(read_back) == SQL


def test_an_object_that_is_stored_as_it_is_needs_no_program(store: DirectoryStore) -> None:
    backup = put(store, SQL, "data.sql")

    assert Reader(store, backup, {}).text(data_object(backup)) == SQL.decode()


def test_a_flipped_byte_is_seen_although_the_program_that_reads_takes_it(store: DirectoryStore) -> None:
    backup = put(store, SQL, "data.sql")
    content = bytearray(SQL)
    content[1000] ^= 1
    stored(store, "data.sql").write_bytes(content)
    reader = Reader(store, backup, {})

    with pytest.raises(CorruptObjectError, match=r"data\.sql has another SHA-256 than the manifest says"):
        reader.run(data_object(backup), [Stage(["cat"])])
    with pytest.raises(CorruptObjectError):
        reader.check(data_object(backup))
    # What the sum is for: the program itself sees nothing.
    subprocess.run(["cat"], input=content, capture_output=True, check=True)


def test_a_program_never_sees_the_end_of_an_object_that_was_cut(store: DirectoryStore, tmp_path: Path) -> None:
    backup = put(store, SQL, "data.sql")
    stored(store, "data.sql").write_bytes(SQL[: len(SQL) // 2])
    ended = tmp_path / "ended"
    program = Stage(["sh", "-c", f"cat > {tmp_path}/copy && touch {ended}"])

    with pytest.raises(CorruptObjectError, match=f"has {len(SQL) // 2} bytes, the manifest says {len(SQL)}"):
        Reader(store, backup, {}).run(data_object(backup), [program])

    assert not ended.exists()
    # Without the check the program ends well, with half of the data.
    subprocess.run(program.argv, input=SQL[: len(SQL) // 2], check=True)
    assert ended.exists()


def test_an_object_is_judged_whole_when_a_program_stopped_reading(store: DirectoryStore) -> None:
    backup = put(store, SQL, "data.sql")
    stored(store, "data.sql").write_bytes(SQL[:-1] + b"x")

    with pytest.raises(CorruptObjectError):
        Reader(store, backup, {}).run(data_object(backup), [Stage(["head", "-c", "10"])])


def test_a_program_may_have_enough_of_a_compressed_object(store: DirectoryStore) -> None:
    backup = put(store, zstd(bytes(1 << 20) + SQL * 4))
    first = bytearray()

    Reader(store, backup, {}).run(data_object(backup), [Stage(["head", "-c", "10"])], sink=first.extend, partly=True)

    assert first == bytes(10)
    # Otherwise the one before is killed by it, which says nothing of the backup.
    with pytest.raises(StageError, match="zstd was killed by signal 13"):
        Reader(store, backup, {}).run(data_object(backup), [Stage(["head", "-c", "10"])])


def test_a_program_that_fails_on_sound_bytes_is_at_fault_itself(store: DirectoryStore) -> None:
    backup = put(store, zstd(SQL))

    with pytest.raises(StageError, match="sh ended with status 3: no room"):
        Reader(store, backup, {}).run(data_object(backup), [Stage(["sh", "-c", "cat > /dev/null; echo no room >&2; exit 3"])])


def test_a_repository_that_does_not_answer_says_nothing_of_the_backup(store: DirectoryStore) -> None:
    backup = put(store, SQL, "data.sql")
    reader = Reader(Torn(store.root), backup, {})

    with pytest.raises(StoreError, match="The connection was closed"):
        reader.run(data_object(backup), [Stage(["cat"])])
    with pytest.raises(StoreError):
        reader.check(data_object(backup))


def test_bytes_that_were_wrong_from_the_beginning_are_found_by_reading_them(store: DirectoryStore) -> None:
    whole = zstd(SQL)
    backup = put(store, whole[: len(whole) - 20])

    Reader(store, backup, {}).check(data_object(backup))
    with pytest.raises(CorruptObjectError, match="is as it was written, but is no whole stream of zstd"):
        Reader(store, backup, {}).decode(data_object(backup))


def test_sql_that_does_not_say_that_it_is_whole_is_not(store: DirectoryStore) -> None:
    backup = put(store, zstd(SQL[:-1].replace(b"-- Dump completed", b"-- Dump complexxx")))
    described = {**data_object(backup), "raw_size": None}

    with pytest.raises(CorruptObjectError, match="ends without the dump program's last line"):
        Reader(store, backup, {}).decode(described)


def test_sql_of_another_length_than_was_dumped_is_not_whole(store: DirectoryStore) -> None:
    backup = put(store, zstd(SQL[5:]))

    with pytest.raises(CorruptObjectError, match=f"holds {len(SQL) - 5} bytes of SQL, the manifest says {len(SQL)}"):
        Reader(store, backup, {}).decode(data_object(backup))


def test_sql_that_is_whole_is_decoded(store: DirectoryStore) -> None:
    backup = put(store, zstd(SQL))

    Reader(store, backup, {}).decode(data_object(backup))


def test_roles_and_data_are_told_apart_by_their_names() -> None:
    objects = [{"name": "globals.sql.zst.age"}, {"name": "data.dump.age"}]
    backup = Backup("prod", "database", "lms", "20261123T102835Z-6f3a91c2", {"objects": objects})

    assert (globals_object(backup), data_object(backup)) == (objects[0], objects[1])
    with pytest.raises(CorruptObjectError, match="has no data"):
        data_object(Backup("prod", "database", "lms", "20261123T102835Z-6f3a91c2", {"objects": objects[:1]}))
