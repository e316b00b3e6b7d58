# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Proving backups and bringing them back, on a server whose databases are files with a line for each table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils import _backup_restore, _backup_verify
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import (
    Backup,
    Verification,
    canonical,
    new_id,
    read_catalogue,
    seal,
    verification_key,
)
from ansible_collections.bitflow.lms.plugins.module_utils._backup_directory import DirectoryStore
from ansible_collections.bitflow.lms.plugins.module_utils._backup_rebuild import (
    Mark,
    choose_tables,
    differences,
    mark_of,
    obstacles,
    room_for,
)
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import StoreError
from ansible_collections.bitflow.lms.plugins.module_utils._database import DatabaseError, Engine, Login, Server, Table
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import Stage

NOW = datetime(2026, 11, 23, 11, 0, 0, tzinfo=timezone.utc)
DAY = timedelta(days=1)
TABLES = [{"schema": "public", "name": "courses", "rows": 2}, {"schema": "public", "name": "users", "rows": 3}]
SQL = b"public.courses 2\npublic.users 3\n-- dump complete\n"
ALIVE, DEAD = "boot pid:[1] 1 1", "boot pid:[1] 2 2"


def is_dead(run: str) -> bool:
    """Say so of one run."""
    return run == DEAD


class Files:
    """A server. A dump is restored by copying it; what the copy says is what the tables have."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.login = Login("postgresql", unix_socket=str(root))
        self.comments: dict[str, str] = {}
        self.asked: list[tuple[str, ...]] = []
        self.flavour, self.version = "postgresql", "17.6"
        # Called before the same step; may raise.
        self.trouble: dict[str, Callable[[], None]] = {}
        # The program that restores, where it is another one.
        self.program: Sequence[str] = ()
        self.directory = ""
        self.roles: list[str] = []

    def do(self, step: str, *what: str) -> None:
        """Note a step, or fail in it."""
        self.asked.append((step, *what))
        self.trouble.get(step, lambda: None)()

    def put(self, database: str, content: str = "", comment: str = "") -> None:
        """Make a database."""
        (self.root / database).write_text(content)
        self.comments[database] = comment

    def server(self) -> Server:
        """Return the version."""
        return Server(self.flavour, self.version, self.version)

    def data_directory(self) -> str:
        """Return where the data is."""
        return self.directory

    def databases(self, prefix: str = "") -> dict[str, str]:
        """Return the databases."""
        return {name: comment for name, comment in sorted(self.comments.items()) if name.startswith(prefix)}

    def create(self, database: str, manifest: Mapping[str, Any], comment: str) -> None:
        """Make an empty database."""
        self.do("create", database)
        assert database not in self.comments
        self.put(database, "", comment)
        self.trouble.get("created", lambda: None)()

    def remark(self, database: str, comment: str) -> None:
        """Change the comment."""
        self.do("remark", database, comment)
        self.comments[database] = comment

    def restore(self, database: str, manifest: Mapping[str, Any], *, tables: Sequence[str] = (), owners: bool = True) -> list[Stage]:
        """Return what copies the dump, or the lines of some tables."""
        self.do("restore", database, *tables, "owners" if owners else "no owners")
        lines = [f"-e\\(^\\|\\.\\){table} " for table in tables]
        pick = ["grep", *lines] if tables else ["cat"]
        return [Stage(self.program or ["sh", "-c", 'database=$1; shift; "$@" >> "$database"', "sh", str(self.root / database), *pick])]

    def finish_restore(self, database: str) -> None:
        """Note it."""
        self.do("finish_restore", database)

    def tables(self, database: str, record: str) -> list[Table]:
        """Return what the lines say."""
        lines = [line.split() for line in (self.root / database).read_text().splitlines() if not line.startswith("--")]
        named = [(*name.split(".", 1), rows) for name, rows in lines]
        return [Table(schema, name, None if record == "none" else int(rows)) for schema, name, rows in named]

    def swap(self, live: str, restored: str, kept: str) -> float:
        """Rename both."""
        self.do("swap", live, restored, kept)
        for old, new in ((live, kept), (restored, live)):
            (self.root / old).rename(self.root / new)
            self.comments[new] = self.comments.pop(old)
            self.trouble.get("half a swap", lambda: None)()
        return 0.036

    def drop(self, database: str) -> None:
        """Remove it."""
        self.do("drop", database)
        (self.root / database).unlink()
        del self.comments[database]

    def missing_roles(self, globals_sql: str) -> list[str]:
        """Return the roles that are not there."""
        return [role for role in globals_sql.split() if role not in self.roles]

    def create_roles(self, globals_sql: str, names: Sequence[str]) -> None:
        """Make them."""
        self.do("create_roles", *names)
        self.roles += names


def failing(message: str) -> Callable[[], None]:
    """Return what raises as a server does."""

    def fail() -> None:
        raise DatabaseError(message)

    return fail


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    """Return an empty repository."""
    return DirectoryStore(tmp_path / "repository")


@pytest.fixture
def server(tmp_path: Path) -> Files:
    """Return a server on which lms serves."""
    files = Files(tmp_path / "server")
    files.put("lms", "public.users 1\n")
    return files


def put(store: DirectoryStore, age: timedelta = DAY, sql: bytes = SQL, **manifest: Any) -> str:
    """Publish a backup, and return its id."""
    identity = new_id(NOW - age, lambda _size: "0a1b2c3d")
    draft = store.draft(f"prod/database/lms/{identity}")
    objects = []
    for name, content in (("globals.sql", b"anna\nlms\n"), ("data.sql", sql)):
        upload = draft.upload(name)
        upload.write(content)
        done = upload.complete()
        objects.append({"name": done.name, "size": done.size, "sha256": done.sha256, "encryption": {"method": "none", "recipients": []}})
    described = {
        "database": {"engine": "postgresql", "server_version": "17.1", "size_bytes": 1000},
        "format_of_dump": "plain",
        "objects": objects,
        "record": "counts",
        "snapshot": {"consistency": "exact"},
        "tables": TABLES,
    }
    draft.publish(seal({**described, **manifest}))
    return identity


def note(store: DirectoryStore, identity: str, level: str, ok: bool = True, age: timedelta = timedelta(hours=1), fault: str = "") -> None:
    """Note a look at a backup."""
    record = {"ok": ok, "mismatches": [fault] if fault else []}
    store.create(verification_key(f"prod/database/lms/{identity}", NOW - age, level), canonical(record))


def flip(store: DirectoryStore, identity: str, name: str = "data.sql") -> None:
    """Change one byte of an object."""
    path = store.root / "prod/database/lms" / identity / name
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b"2", b"9", 1))


def states(store: DirectoryStore) -> dict[str, str]:
    """Return the states of the backups."""
    return {backup.id: backup.state for backup in read_catalogue(store).backups}


def backup_of(store: DirectoryStore) -> Backup:
    """Return the only backup."""
    return read_catalogue(store).backups[0]


# Verifying


def verify(store: DirectoryStore, server: Files | None, *, check_mode: bool = False, **options: Any) -> _backup_verify.Outcome:
    """Verify as the module does."""
    settings = replace(_backup_verify.Settings("prod", "lms"), **options)
    around = _backup_verify.Surroundings(
        now=lambda: NOW, clock=lambda: 100.0, token=lambda _size: "5c4a7c11", pick=lambda backups: backups[-1], dead=is_dead, host="db1"
    )
    return _backup_verify.run(settings, store, cast(Engine, server), {}, check_mode=check_mode, surroundings=around)


def test_a_backup_is_restored_beside_compared_and_noted(store: DirectoryStore, server: Files) -> None:
    identity = put(store)

    outcome = verify(store, server)

    record = f"prod/database/lms/{identity}/verify-20261123T110000Z-restore-5c4a7c11.json"
    assert json.loads(store.read(record)) == {
        "format": 1,
        "backup": identity,
        "level": "restore",
        "ok": True,
        "mismatches": [],
        "started": "2026-11-23T11:00:00Z",
        "finished": "2026-11-23T11:00:00Z",
        "duration_s": 0.0,
        "rto_seconds": 0.0,
        "server_version": "postgresql 17.6",
        "host": "db1",
        "compared": True,
        "tables": 2,
        "rows": 5,
        "scratch": None,
    }
    assert (outcome.changed, outcome.failure, outcome.diff["after"]) == (True, "", {identity: "verified"})
    assert states(store) == {identity: "verified"}
    steps = [("create", "lms_verify_5c4a7c11"), ("restore", "lms_verify_5c4a7c11", "no owners"), ("finish_restore", "lms_verify_5c4a7c11")]
    assert server.asked == [*steps, ("drop", "lms_verify_5c4a7c11")]


def test_check_mode_only_looks(store: DirectoryStore, server: Files) -> None:
    identity = put(store)
    server.put("lms_verify_dead", comment=replace(mark_of("scratch", backup_of(store), NOW), run=DEAD).text)

    outcome = verify(store, server, check_mode=True)

    assert outcome.as_result() == {
        "changed": True,
        "backup": backup_of(store).summary(),
        "verifications": [],
        "mismatches": [],
        "plan": [
            f"Backup {identity}: restore it into a scratch database lms_verify_<8 digits>, compare 2 tables with 5 rows, and drop that."
        ],
        "swept": ["lms_verify_dead"],
        "diff": {
            "before": {identity: "complete"},
            "after": {identity: "to be verified (level restore)"},
            "before_header": "states of backups",
            "after_header": "states of backups",
        },
    }
    assert (server.asked, states(store)) == ([], {identity: "complete"})


def test_one_missing_row_is_named_with_both_figures(store: DirectoryStore, server: Files) -> None:
    identity = put(store, sql=SQL.replace(b"users 3", b"users 2"))

    outcome = verify(store, server)

    assert outcome.failure == f"Backup {identity} is corrupt: Table public.users has 2 rows, the manifest says 3."
    assert states(store) == {identity: "corrupt"}
    assert list(server.comments) == ["lms"]


def test_a_flipped_byte_makes_a_backup_corrupt_at_every_level_that_reads(store: DirectoryStore, server: Files) -> None:
    for level in ("checksum", "decode", "restore"):
        identity = put(store)
        flip(store, identity)

        outcome = verify(store, server, level=level)

        assert outcome.mismatches == ["data.sql has another SHA-256 than the manifest says: its content was changed after it was written."]
        assert (states(store), list(server.comments)) == ({identity: "corrupt"}, ["lms"])
        for path in (store.root / "prod/database/lms" / identity).iterdir():
            path.unlink()


def test_the_roles_are_read_too(store: DirectoryStore, server: Files) -> None:
    identity = put(store)
    path = store.root / f"prod/database/lms/{identity}/globals.sql"
    path.chmod(0o600)
    path.write_bytes(b"anna\nlmx\n")

    assert verify(store, server).mismatches[0].startswith("globals.sql has another SHA-256")
    assert server.asked == []


def test_an_object_of_another_size_is_seen_without_reading(store: DirectoryStore) -> None:
    identity = put(store)
    path = store.root / f"prod/database/lms/{identity}/data.sql"
    path.chmod(0o600)
    path.write_bytes(SQL[:10])

    outcome = verify(store, None, level="manifest", backup=identity)

    assert outcome.mismatches == [f"data.sql has 10 bytes, the manifest says {len(SQL)}."]


def test_a_dump_that_was_cut_before_it_was_summed_is_corrupt(store: DirectoryStore, server: Files) -> None:
    identity = put(store, sql=SQL[:20])
    server.program = ["sh", "-c", "cat > /dev/null; echo unexpected end >&2; exit 1"]

    assert verify(store, server).mismatches == ["data.sql ends without the dump program's last line: the dump was cut."]
    assert states(store) == {identity: "corrupt"}


def test_a_server_that_fails_says_nothing_of_the_backup(store: DirectoryStore, server: Files) -> None:
    identity = put(store)
    server.program = ["sh", "-c", "cat > /dev/null; echo 'could not extend file: No space left on device' >&2; exit 1"]

    with pytest.raises(LmsError, match=r"is sound, but the server did not take it into lms_verify_5c4a7c11: .*Make room on the server\."):
        verify(store, server)

    assert (states(store), list(server.comments)) == ({identity: "complete"}, ["lms"])


def test_a_repository_that_fails_says_nothing_of_the_backup(store: DirectoryStore, server: Files) -> None:
    identity = put(store)

    class Torn(DirectoryStore):
        """Loses the connection."""

        def stream(self, key: str) -> Any:
            """Give nothing of the data."""
            if key.endswith("data.sql"):
                raise StoreError("The connection was closed.")
            return super().stream(key)

    with pytest.raises(StoreError, match="The connection was closed"):
        verify(Torn(store.root), server)

    assert (states(store), list(server.comments)) == ({identity: "complete"}, ["lms"])


def test_approximate_counts_are_not_compared_but_tables_are(store: DirectoryStore, server: Files) -> None:
    put(store, sql=SQL.replace(b"users 3", b"users 2"), snapshot={"consistency": "fast"})

    outcome = verify(store, server)

    assert (outcome.failure, outcome.verifications[0]["compared"]) == ("", False)
    assert outcome.warnings == [f"The rows of backup {backup_of(store).id} were not compared: its manifest has no exact counts."]


def test_a_young_look_of_the_same_depth_is_enough(store: DirectoryStore, server: Files) -> None:
    identity = put(store)
    note(store, identity, "restore")

    outcome = verify(store, server, max_age=7200)

    plan = [f"Backup {identity} was verified at 2026-11-23T10:00:00Z (level restore), within max_age."]
    assert (outcome.changed, outcome.plan, server.asked) == (False, plan, [])
    assert verify(store, server, max_age=1800).changed


@pytest.mark.parametrize(
    ("looks", "due"),
    [
        ([("restore", True, 1)], False),
        ([("decode", True, 1)], True),
        ([("restore", True, 3)], True),
        ([("restore", True, -1)], True),
        ([("restore", False, 1)], True),
        ([("restore", True, 2), ("checksum", False, 1)], True),
    ],
)
def test_which_looks_are_enough(looks: list[tuple[str, bool, int]], due: bool) -> None:
    noted = tuple(Verification(level, ok, NOW - timedelta(hours=hours)) for level, ok, hours in looks)
    backup = Backup("prod", "database", "lms", "20261122T110000Z-0a1b2c3d", {"objects": []}, noted)
    settings = _backup_verify.Settings("prod", "lms", max_age=9000)

    assert (_backup_verify.looked_at(backup, settings, NOW) is None) == due


def test_all_goes_on_after_a_corrupt_one(store: DirectoryStore, server: Files) -> None:
    newest, oldest = put(store), put(store, 2 * DAY)
    flip(store, newest)

    outcome = verify(store, server, backup="all")

    assert states(store) == {oldest: "verified", newest: "corrupt"}
    assert [each["backup"]["id"] for each in outcome.verifications] == [newest, oldest]


def test_a_sample_is_one_that_was_not_looked_at(store: DirectoryStore, server: Files) -> None:
    looked_at, other = put(store), put(store, 2 * DAY)
    note(store, looked_at, "restore")

    assert [each["backup"]["id"] for each in verify(store, server, backup="sample", max_age=7200).verifications] == [other]


def test_what_dead_runs_left_is_dropped_and_nothing_else(store: DirectoryStore, server: Files) -> None:
    put(store)
    mark = mark_of("scratch", backup_of(store), NOW, run=DEAD)
    server.put("lms_verify_dead", comment=mark.text)
    server.put("lms_verify_alive", comment=replace(mark, run=ALIVE).text)
    server.put("lms_verify_late", comment=replace(mark, run=ALIVE, until="2026-11-23T10:59:59Z").text)
    server.put("lms_verify_hers", comment="my notes")
    server.put("lms_verify_restored", comment=Mark("restored", backup_of(store).id).text)
    server.put("other_dead", comment=mark.text)

    outcome = verify(store, server)

    assert outcome.swept == ["lms_verify_dead", "lms_verify_late"]
    assert list(server.databases()) == ["lms", "lms_verify_alive", "lms_verify_hers", "lms_verify_restored", "other_dead"]


def test_a_scratch_database_that_is_kept_belongs_to_no_run(store: DirectoryStore, server: Files) -> None:
    put(store)

    outcome = verify(store, server, keep_scratch=True)

    mark = Mark.read(server.comments["lms_verify_5c4a7c11"])
    assert outcome.verifications[0]["scratch"] == "lms_verify_5c4a7c11"
    assert mark
    assert (mark.abandoned(NOW, is_dead), mark.abandoned(NOW + 2 * DAY, is_dead)) == (False, True)


def test_an_encrypted_backup_without_an_identity_fails_in_check_mode_too(store: DirectoryStore, server: Files) -> None:
    identity = put(store)
    manifest = dict(backup_of(store).manifest)
    manifest["objects"] = [{**each, "encryption": {"method": "age"}} for each in manifest["objects"]]

    said = f"Backup {identity} is encrypted with age; give identity or identity_file."

    assert obstacles(replace(backup_of(store), manifest=manifest), {}, None) == [said]
    assert obstacles(replace(backup_of(store), manifest=manifest), {"identity": "AGE-SECRET-KEY-1"}, None) == []


@pytest.mark.parametrize(
    ("manifest", "server", "said"),
    [
        ({"engine": "postgresql", "server_version": "17.1"}, Server("postgresql", "17.0", "17.0"), ""),
        ({"engine": "postgresql", "server_version": "17.1"}, Server("postgresql", "15.9", "17.0"), "this server is 15.9"),
        ({"engine": "mariadb", "server_version": "10.11.8"}, Server("mariadb", "11.4.1", "11.4.1"), ""),
        ({"engine": "mariadb", "server_version": "11.8.2"}, Server("mariadb", "11.4.9", "11.4.1"), "this server is 11.4.9"),
        ({"engine": "mariadb", "server_version": "11.8.2"}, Server("mysql", "9.4.0", "9.4.0"), ""),
        ({"engine": "mariadb", "server_version": "11.8.2"}, Server("postgresql", "17.1", "17.1"), "of a mariadb server"),
    ],
)
def test_an_older_or_another_server_is_refused_beforehand(manifest: dict[str, Any], server: Server, said: str) -> None:
    backup = Backup("prod", "database", "lms", "20261122T110000Z-0a1b2c3d", {"database": manifest, "objects": []})

    assert said in " ".join(obstacles(backup, {}, server))
    assert bool(obstacles(backup, {}, server)) == bool(said)


def test_room_is_compared_where_it_is_known(server: Files) -> None:
    manifest = {"database": {"size_bytes": 1000}}

    def usage(free: int) -> Callable[[str], Any]:
        return lambda _path: SimpleNamespace(free=free)

    engine = cast(Engine, server)

    assert room_for(engine, manifest, usage(0)).unknown == "the server's data is not on this host, or it does not say where"
    server.directory = "/var/lib/postgresql"
    full = "The server has 1199 bytes free, and the restored database may need 1200. Make room there."
    assert room_for(engine, manifest, usage(1199)).obstacle == full
    assert room_for(engine, manifest, usage(1200)).obstacle == ""
    assert room_for(engine, {}, usage(0)).obstacle == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "files", "level": "restore"}, "only databases are restored for a trial"),
        ({"engine": None}, "level is restore, but engine is not given"),
        ({"scratch_prefix": "L"}, "scratch_prefix is 'L'"),
        ({"name": "../lms"}, "name is '../lms'"),
    ],
)
def test_options_that_contradict_themselves_are_refused(options: dict[str, Any], said: str) -> None:
    given = {"environment": "prod", "name": "lms", "kind": "database", "backup": "latest", "level": None, "max_age": 0}
    given |= {"engine": "postgresql", "scratch_prefix": "lms_verify_", "keep_scratch": False}

    with pytest.raises(LmsError, match=said):
        _backup_verify.Settings.from_options({**given, **options})
    assert _backup_verify.Settings.from_options(given).level == "restore"
    assert _backup_verify.Settings.from_options({**given, "kind": "files", "engine": None}).level == "decode"


# Comparing


def test_each_difference_is_a_sentence() -> None:
    summed = {"schema": "public", "name": "marks", "rows": 7, "checksum": "aa", "checksum_algorithm": "sum"}
    sessions = {"schema": "public", "name": "sessions", "rows": 9}
    manifest = {
        "database": {"engine": "postgresql"},
        "excluded_data": ["sess*"],
        "record": "checksums",
        "snapshot": {"consistency": "exact"},
        "tables": [*TABLES, summed, sessions],
    }
    found = [
        Table("public", "users", 3),
        Table("public", "marks", 7, "bb", "sum"),
        Table("public", "sessions", 0),
        Table("audit", "users", 1),
    ]

    assert differences(manifest, found) == [
        "Table audit.users is in the restored database (1 rows), but not in the manifest.",
        "Table public.courses is missing; the manifest has it with 2 rows.",
        "Table public.marks has 7 rows as the manifest says, but the checksum bb instead of aa.",
    ]
    assert differences(manifest, [Table("public", "users", 3)], ["public.users"]) == []


def test_sums_that_were_made_in_another_way_are_not_compared() -> None:
    summed = {"schema": "public", "name": "marks", "rows": 7, "checksum": "aa", "checksum_algorithm": "sum"}
    manifest = {"record": "checksums", "snapshot": {"consistency": "exact"}, "tables": [summed]}

    assert differences(manifest, [Table("scratch", "marks", 7, "bb", "crc")]) == []


def test_tables_are_named_with_or_without_their_schema() -> None:
    manifest = {"database": {"engine": "postgresql"}, "tables": [*TABLES, {"schema": "audit", "name": "users"}]}

    assert choose_tables(manifest, ["courses", "audit.users", "public.courses"]) == ["public.courses", "audit.users"]
    with pytest.raises(LmsError, match=r"which is in several schemas. Name one of audit.users, public.users\."):
        choose_tables(manifest, ["users"])
    with pytest.raises(
        LmsError, match=r"tables has marks, which is not in the backup. Its tables: audit.users, public.courses, public.users\."
    ):
        choose_tables(manifest, ["marks"])


@pytest.mark.parametrize(
    "mark",
    [
        Mark("restored", "20261122T110000Z-0a1b2c3d"),
        Mark("restoring", "20261122T110000Z-0a1b2c3d", ALIVE, "2026-11-23T10:59:59Z", "01234567"),
        Mark("scratch", "20261122T110000Z-0a1b2c3d", "", "2026-11-23T10:59:59Z"),
    ],
)
def test_a_mark_is_read_as_it_was_written(mark: Mark) -> None:
    assert Mark.read(mark.text) == mark
    assert Mark.read(f"about: {mark.text}") is None


# Restoring


def make_backup(_database: str, _encryption: Mapping[str, Any]) -> str:
    """Pretend to make a safety backup."""
    return "20261123T105959Z-5afe5afe"


def restore(
    store: DirectoryStore,
    server: Files,
    *,
    check_mode: bool = False,
    saving: Callable[[str, Mapping[str, Any]], str] = make_backup,
    **options: Any,
) -> _backup_restore.Outcome:
    """Restore as the module does."""
    given: dict[str, Any] = {"environment": "prod", "name": "lms", "backup": "latest", "database": None, "mode": "new", "tables": []}
    given |= {"globals": "none", "owners": True, "confirm": None, "safety_backup": True, "accept_suspicious": False, "again": False}
    settings = _backup_restore.Settings.from_options({**given, **options})
    around = _backup_restore.Surroundings(saving, now=lambda: NOW, clock=lambda: 100.0, dead=is_dead)
    return _backup_restore.run(settings, store, cast(Engine, server), {}, around, check_mode=check_mode)


def test_a_new_database_is_made_compared_and_marked(store: DirectoryStore, server: Files) -> None:
    identity = put(store)
    beside = f"lms__r_{identity}"

    outcome = restore(store, server)

    assert outcome == _backup_restore.Outcome(
        backup=backup_of(store).summary(),
        mode="new",
        changed=True,
        database=beside,
        compared=True,
        tables=2,
        rows=5,
        rto_seconds=0.0,
        plan=[
            "Whether there is room is not checked: the server's data is not on this host, or it does not say where.",
            f"Restore backup {identity} into {beside}.",
            f"Compare {beside} with the manifest.",
        ],
        diff={"before": "lms\n", "after": f"lms\n{beside}\n", "before_header": "databases", "after_header": "databases"},
    )
    assert server.comments == {"lms": "", beside: f"bitflow.lms restored {identity}"}
    assert not restore(store, server).changed


def test_check_mode_of_a_restore_only_looks(store: DirectoryStore, server: Files) -> None:
    identity = put(store)

    outcome = restore(store, server, check_mode=True, mode="swap", confirm="lms")

    assert outcome.plan[1:] == [
        "Make a backup of lms for safety.",
        f"Restore backup {identity} into lms__r_{identity}.",
        f"Compare lms__r_{identity} with the manifest.",
        f"Put lms__r_{identity} in the place of lms, and keep that as lms__before_20261123T110000Z.",
    ]
    assert outcome.diff["after"] == "lms\nlms__before_20261123T110000Z\n"
    assert (outcome.changed, server.asked) == (True, [])


def test_a_database_that_no_restore_made_is_not_touched(store: DirectoryStore, server: Files) -> None:
    put(store)

    with pytest.raises(LmsError, match=r"The database lms exists, and no restore made it. It is not touched"):
        restore(store, server, database="lms")

    assert server.asked == []


def test_a_restore_that_fails_halfway_leaves_the_live_database_and_nothing_else(store: DirectoryStore, server: Files) -> None:
    put(store)
    server.program = ["sh", "-c", "cat > /dev/null; echo 'ERROR: role \"anna\" does not exist' >&2; exit 3"]

    with pytest.raises(LmsError, match=r"is sound, but the server did not take it .* set globals to missing, or owners to false\."):
        restore(store, server, mode="swap", confirm="lms")

    assert (server.comments, (server.root / "lms").read_text()) == ({"lms": ""}, "public.users 1\n")


def test_a_database_that_was_half_made_is_dropped_and_one_that_another_made_is_not(store: DirectoryStore, server: Files) -> None:
    put(store)
    server.trouble["created"] = failing("The session ended.")
    with pytest.raises(DatabaseError, match="The session ended"):
        restore(store, server, database="mine")
    assert list(server.comments) == ["lms"]

    def be_later_than_another() -> None:
        server.put("theirs")
        raise DatabaseError("It exists.")

    server.trouble = {"create": be_later_than_another}
    with pytest.raises(DatabaseError, match="It exists"):
        restore(store, server, database="theirs")
    assert list(server.comments) == ["lms", "theirs"]


def test_what_differs_from_the_manifest_is_not_put_in_place(store: DirectoryStore, server: Files) -> None:
    put(store, sql=SQL.replace(b"users 3", b"users 2"))

    with pytest.raises(LmsError, match=r"Table public.users has 2 rows, the manifest says 3. .* was dropped again"):
        restore(store, server, mode="swap", confirm="lms")

    assert (server.comments, (server.root / "lms").read_text()) == ({"lms": ""}, "public.users 1\n")


def test_a_swap_saves_restores_compares_and_keeps_the_former_database(store: DirectoryStore, server: Files) -> None:
    identity = put(store)

    outcome = restore(store, server, mode="swap", confirm="lms")

    kept = "lms__before_20261123T110000Z"
    assert (outcome.database, outcome.previous, outcome.safety_backup) == ("lms", kept, "20261123T105959Z-5afe5afe")
    assert (outcome.away_seconds, outcome.rows, outcome.changed) == (0.036, 5, True)
    assert server.comments == {"lms": f"bitflow.lms restored {identity}", kept: ""}
    assert ((server.root / "lms").read_bytes(), (server.root / kept).read_text()) == (SQL, "public.users 1\n")


def test_a_swap_that_is_repeated_does_not_put_aside_what_was_written_since(store: DirectoryStore, server: Files) -> None:
    put(store)
    restore(store, server, mode="swap", confirm="lms")
    (server.root / "lms").write_text("public.users 4\n")

    assert not restore(store, server, mode="swap", confirm="lms").changed
    assert (server.root / "lms").read_text() == "public.users 4\n"

    del server.comments["lms__before_20261123T110000Z"]
    assert restore(store, server, mode="swap", confirm="lms", again=True).changed
    assert (server.root / "lms").read_bytes() == SQL


def test_a_swap_takes_what_an_earlier_run_restored_if_it_is_still_equal(store: DirectoryStore, server: Files) -> None:
    identity = put(store)
    restore(store, server)
    server.asked.clear()

    restore(store, server, mode="swap", confirm="lms")

    assert [step[0] for step in server.asked] == ["swap", "remark"]

    restore(store, server)
    (server.root / f"lms__r_{identity}").write_text("public.courses 2\npublic.users 4\n")
    with pytest.raises(LmsError, match=r"Table public.users has 4 rows, the manifest says 3. Somebody wrote to it"):
        restore(store, server, mode="swap", confirm="lms", again=True)


def test_a_restore_that_was_killed_is_begun_anew_and_never_swapped_in(store: DirectoryStore, server: Files) -> None:
    identity = put(store)
    half = mark_of("restoring", backup_of(store), NOW, run=DEAD)
    server.put(f"lms__r_{identity}", "public.users 3\n", half.text)

    outcome = restore(store, server, mode="swap", confirm="lms")

    assert outcome.swept == [f"lms__r_{identity}"]
    assert (server.root / "lms").read_bytes() == SQL


def test_a_restore_that_may_be_alive_is_left_alone(store: DirectoryStore, server: Files) -> None:
    identity = put(store)
    server.put(f"lms__r_{identity}", "public.users 3\n", mark_of("restoring", backup_of(store), NOW, run=ALIVE).text)

    ways: list[dict[str, Any]] = [{}, {"mode": "swap", "confirm": "lms"}]
    for options in ways:
        with pytest.raises(LmsError, match=f"is being restored from backup {identity} by another run"):
            restore(store, server, **options)

    assert server.asked == []


@pytest.mark.parametrize(
    "options", [{"mode": "swap"}, {"mode": "swap", "confirm": "lsm"}, {"mode": "tables", "tables": ["users"], "confirm": "x"}]
)
def test_what_serves_is_not_changed_without_its_name(store: DirectoryStore, server: Files, options: dict[str, Any]) -> None:
    put(store)

    with pytest.raises(LmsError, match="Set confirm to lms if that is meant"):
        restore(store, server, **options)

    assert server.asked == []


def test_a_safety_backup_that_fails_stops_the_restore(store: DirectoryStore, server: Files) -> None:
    put(store)

    def fail(_database: str, _encryption: Mapping[str, Any]) -> str:
        raise DatabaseError("The table users cannot be read.")

    with pytest.raises(LmsError, match=r"the safety backup of lms failed: The table users cannot be read. .* set safety_backup to false"):
        restore(store, server, saving=fail, mode="swap", confirm="lms")
    assert server.asked == []

    assert restore(store, server, saving=fail, mode="swap", confirm="lms", safety_backup=False).safety_backup is None


def test_a_corrupt_backup_is_refused(store: DirectoryStore, server: Files) -> None:
    identity = put(store)
    note(store, identity, "checksum", ok=False, fault="data.sql has another SHA-256.")

    with pytest.raises(LmsError, match=r"is corrupt and is not restored: data.sql has another SHA-256. Choose another one"):
        restore(store, server, backup=identity)


def test_a_flipped_byte_that_nobody_noticed_yet_stops_the_restore(store: DirectoryStore, server: Files) -> None:
    flip(store, put(store))

    with pytest.raises(LmsError, match="has another SHA-256"):
        restore(store, server, mode="swap", confirm="lms")

    assert server.comments == {"lms": ""}


def test_a_suspicious_backup_has_to_be_accepted(store: DirectoryStore, server: Files) -> None:
    identity = put(store, suspicious=True, suspicious_reason="The database has no table.")

    with pytest.raises(LmsError, match=r"is suspicious: The database has no table. .* set accept_suspicious"):
        restore(store, server, backup=identity)
    assert restore(store, server, backup=identity, accept_suspicious=True).changed


def test_a_swap_of_nothing_says_what_is_there(store: DirectoryStore, server: Files) -> None:
    put(store)
    server.drop("lms")
    server.put("lms__before_20261122T110000Z")

    with pytest.raises(
        LmsError, match=r"has no database lms, .* What is there: lms__before_20261122T110000Z. Use mode new with database lms"
    ):
        restore(store, server, mode="swap", confirm="lms")


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("swap", "lms is the former database, as before; the restored one is lms__r_"),
        ("half a swap", "There is no lms now: the former database is lms__before_20261123T110000Z, the restored one lms__r_"),
    ],
)
def test_a_swap_that_fails_says_what_stands_where(store: DirectoryStore, server: Files, step: str, said: str) -> None:
    put(store)
    server.trouble[step] = failing("The database is used by others.")

    with pytest.raises(LmsError, match=rf"lms was not replaced: The database is used by others. {said}"):
        restore(store, server, mode="swap", confirm="lms")


def test_roles_that_are_missing_are_created_when_asked_for(store: DirectoryStore, server: Files) -> None:
    put(store)
    server.roles = ["lms"]

    assert restore(store, server, check_mode=True, globals="missing").roles_created == ["anna"]
    assert server.roles == ["lms"]
    assert restore(store, server, globals="missing").roles_created == ["anna"]
    assert server.roles == ["lms", "anna"]


def test_single_tables_are_restored_beside(store: DirectoryStore, server: Files) -> None:
    identity = put(store)

    outcome = restore(store, server, mode="tables", tables=["courses"])

    beside = f"lms__t_{identity}"
    assert (outcome.database, outcome.tables, outcome.rows, outcome.safety_backup) == (beside, 1, 2, None)
    assert ((server.root / "lms").read_text(), (server.root / beside).read_text()) == ("public.users 1\n", "public.courses 2\n")
    assert not restore(store, server, mode="tables", tables=["courses"]).changed
    with pytest.raises(LmsError, match="holds other tables of backup"):
        restore(store, server, mode="tables", tables=["users"])


def test_only_tables_that_the_live_database_lacks_are_restored_into_it(store: DirectoryStore, server: Files) -> None:
    put(store, database={"engine": "mariadb", "server_version": "11.8.2"})
    server.flavour, server.version = "mariadb", "11.8.3"

    outcome = restore(store, server, mode="tables", tables=["courses", "users"], confirm="lms")

    assert (outcome.copied, outcome.present, outcome.safety_backup) == (["courses"], ["users"], "20261123T105959Z-5afe5afe")
    assert (server.root / "lms").read_text() == "public.users 1\npublic.courses 2\n"


def test_keys_that_do_not_come_back_are_spoken_of(store: DirectoryStore, server: Files) -> None:
    put(store)

    outcome = restore(store, server, mode="tables", tables=["courses"], confirm="lms")

    said = "public.courses came back into lms without foreign keys that lead to or from other tables. Add those that are missing."
    assert (outcome.copied, outcome.warnings) == (["public.courses"], [said])


def test_a_name_that_the_server_would_cut_is_refused(store: DirectoryStore, server: Files) -> None:
    put(store)
    server.put("l" * 40)

    with pytest.raises(LmsError, match="would have 69 bytes, and a database's name has 63 at most"):
        restore(store, server, mode="swap", database="l" * 40, confirm="l" * 40)
