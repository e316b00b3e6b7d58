# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of real databases, proven and brought back: what differs is named, what serves is never half."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from database_host import LIBRARY, Host, wait_until

NAME = "campus"
REPOSITORY = "/srv/proof"
FILL = {
    "postgresql": """
        create type standing as enum ('active', 'gone');
        create table students (id bigserial primary key, name text not null, standing standing default 'active');
        create unique index students_name on students (name);
        create table marks (id bigserial primary key, student_id bigint not null references students (id), mark int);
        insert into students (name) select 'student ' || n from generate_series(1, 200) n;
        insert into marks (student_id, mark) select 1 + n % 200, n % 7 from generate_series(1, 3000) n""",
    "mariadb": """
        create table students (id bigint auto_increment primary key, name varchar(60) not null unique);
        create table marks (id bigint auto_increment primary key, student_id bigint not null, mark int,
            foreign key (student_id) references students (id));
        insert into students (name) select concat('student ', seq) from seq_1_to_200;
        insert into marks (student_id, mark) select 1 + seq % 200, seq % 7 from seq_1_to_3000""",
}
ACCESS = {"postgresql": {"engine": "postgresql", "login_system_user": "postgres"}, "mariadb": {"engine": "mysql"}}
ROWS = 3200
# An index that is never done when it is told so, so that something can happen meanwhile.
SLOW = """
    create function slow(bigint) returns bigint immutable language plpgsql as $$
    begin perform pg_sleep(1) where current_setting('campus.slow', true) = 'on'; return $1; end $$;
    create index marks_slow on marks (slow(id))"""
# Writes a manifest anew as if it had been written so.
RESEAL = f"""
import json, sys
sys.path.insert(0, "{LIBRARY}")
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import seal
path, changes = sys.argv[1], json.load(sys.stdin)
manifest = json.load(open(path))
del manifest["manifest_sha256"]
open(path, "wb").write(seal({{**manifest, **changes}}))
"""


class Campus:
    """A database, and the repository of its backups."""

    def __init__(self, host: Host, flavour: str) -> None:
        self.host = host
        self.flavour = flavour
        # Nothing else is to know it.
        self.identity = host.shell("age-keygen 2>/dev/null | tail -n 1").strip()
        self.recipient = host.execute("age-keygen", "-y", input=self.identity).stdout.strip()
        self.options: dict[str, Any] = {"repository": REPOSITORY, "environment": "test", "name": NAME, **ACCESS[flavour]}

    def create(self) -> None:
        """Make the database anew, and the repository empty."""
        self.host.shell(f"rm -rf {REPOSITORY}")
        for name in self.databases():
            self.drop(name)
        self.sql(f"create database {NAME}", "")
        self.sql(FILL[self.flavour])

    def sql(self, statements: str, database: str = NAME) -> list[str]:
        """Run SQL as the administrator."""
        if self.flavour == "mariadb":
            return self.host.mysql(statements, database)
        return self.host.postgresql(statements, database or "postgres")

    def databases(self) -> list[str]:
        """Return the names of all databases that have to do with this one."""
        if self.flavour == "mariadb":
            names = self.sql("select schema_name from information_schema.schemata", "")
        else:
            names = self.sql("select datname from pg_database", "")
        return sorted(name for name in names if name.startswith((NAME, "lms_verify_", "half")))

    def drop(self, name: str) -> None:
        """Remove a database."""
        quoted = f"`{name}`" if self.flavour == "mariadb" else f'"{name}" with (force)'
        self.sql(f"drop database {quoted}", "")

    def back_up(self, **options: Any) -> dict[str, Any]:
        """Make a backup, and return it."""
        result = self.host.module("database_backup", **{**self.options, "encryption": {"recipients": [self.recipient]}, **options})
        assert not result.get("failed"), result["msg"]
        backup: dict[str, Any] = result["backup"]
        return backup

    def verify(self, **options: Any) -> dict[str, Any]:
        """Verify as the module does."""
        return self.host.module("backup_verify", **{**self.options, "identity": self.identity, **options})

    def restore(self, backup: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Restore as the module does."""
        return self.host.module("backup_restore", **{**self.options, "identity": self.identity, "backup": backup["id"], **options})

    def object(self, backup: dict[str, Any], name: str = "data") -> str:
        """Return the path of one of its objects."""
        return self.host.shell(f"ls {REPOSITORY}/{backup['path']}/{name}*").strip()

    def manifest(self, backup: dict[str, Any]) -> dict[str, Any]:
        """Return what was written of it."""
        manifest: dict[str, Any] = json.loads(self.host.shell(f"cat {REPOSITORY}/{backup['path']}/manifest.json"))
        return manifest

    def rewrite(self, backup: dict[str, Any], **changes: Any) -> None:
        """Let its manifest say something else."""
        path = f"{REPOSITORY}/{backup['path']}/manifest.json"
        self.host.execute("python3", "-c", RESEAL, path, input=json.dumps(changes))

    def state(self, backup: dict[str, Any]) -> str:
        """Return what is known of it now."""
        listed = self.host.module("backup_info", repository=REPOSITORY)["backups"]
        return next(str(each["state"]) for each in listed if each["id"] == backup["id"])

    def looks(self, backup: dict[str, Any]) -> list[str]:
        """Return what was noted beside it."""
        return self.host.shell(f"find {REPOSITORY}/{backup['path']} -name 'verify-*'").split()

    def count(self, table: str = "marks", database: str = NAME) -> int:
        """Return how many rows a table has."""
        return int(self.sql(f"select count(*) from {table}", database)[0])  # noqa: S608

    @contextmanager
    def held_up(self, module: str, **options: Any) -> Iterator[None]:
        """Run a module that does not get to its end, and come when it restores."""
        self.sql("alter role postgres set campus.slow = 'on'")
        try:
            process = self.host.start_module(module, **self.options, identity=self.identity, **options)
            wait_until(lambda: self.sql("select 1 from pg_stat_activity where query ~ 'INDEX marks_slow' and wait_event = 'PgSleep'", ""))
            yield
            process.wait(timeout=30)
        finally:
            self.sql("alter role postgres reset campus.slow")


@pytest.fixture(scope="module", params=sorted(FILL))
def made(request: pytest.FixtureRequest, host: Host) -> Campus:
    """Return the database; it is not filled yet."""
    return Campus(host, request.param)


@pytest.fixture
def campus(made: Campus) -> Iterator[Campus]:
    """Return the database, filled, and an empty repository; afterwards no scratch database may be left."""
    made.create()
    yield made
    assert [name for name in made.databases() if name.startswith("lms_verify_")] == []


@pytest.fixture
def postgresql(host: Host) -> Iterator[Campus]:
    """Return a database of PostgreSQL."""
    made = Campus(host, "postgresql")
    made.create()
    yield made
    assert [name for name in made.databases() if name.startswith("lms_verify_")] == []


# Verifying


def test_a_backup_is_proven_row_for_row_and_sum_for_sum(campus: Campus) -> None:
    backup = campus.back_up(record="checksums")
    planned = campus.verify(check_mode=True)
    assert (planned["changed"], planned["verifications"], campus.looks(backup)) == (True, [], [])

    result = campus.verify()

    assert (result["changed"], result["mismatches"], result["backup"]["state"]) == (True, [], "verified")
    look = result["verifications"][0]
    assert (look["ok"], look["compared"], look["tables"] >= 2, look["rows"]) == (True, True, True, ROWS)
    assert look["rto_seconds"] > 0
    assert campus.state(backup) == "verified"
    assert campus.databases() == [NAME]

    again = campus.verify(max_age=3600)
    assert (again["changed"], again["verifications"]) == (False, [])


def test_lower_levels_need_no_server(postgresql: Campus) -> None:
    backup = postgresql.back_up()
    options = {key: value for key, value in postgresql.options.items() if key not in ("engine", "login_system_user")}

    levels = [
        postgresql.host.module("backup_verify", **options, identity=postgresql.identity, level=level)
        for level in ("manifest", "checksum", "decode")
    ]

    assert [(each["changed"], each["backup"]["state"]) for each in levels] == [(True, "complete")] * 3
    assert len(postgresql.looks(backup)) == 3


def test_one_missing_row_is_found(campus: Campus) -> None:
    whole = campus.manifest(campus.back_up())
    campus.sql("delete from marks where id = 1500")
    backup = campus.back_up()
    campus.rewrite(backup, tables=whole["tables"])

    result = campus.verify(backup=backup["id"])

    table = "Table public.marks" if campus.flavour == "postgresql" else "Table marks"
    assert result["msg"] == f"Backup {backup['id']} is corrupt: {table} has 2999 rows, the manifest says 3000."
    assert campus.state(backup) == "corrupt"


def test_one_changed_value_is_found_by_its_sum(postgresql: Campus) -> None:
    whole = postgresql.manifest(postgresql.back_up(record="checksums"))
    postgresql.sql("update marks set mark = 6 - mark where id = 1500")
    backup = postgresql.back_up(record="checksums")
    postgresql.rewrite(backup, tables=whole["tables"])

    result = postgresql.verify(backup=backup["id"])

    assert result["failed"] is True
    assert "3000 rows as the manifest says, but the checksum" in result["msg"]


def test_a_flipped_byte_is_corrupt_and_not_restored(campus: Campus) -> None:
    backup = campus.back_up()
    path = campus.object(backup)
    campus.host.shell(f"chmod u+w {path}; printf X | dd of={path} bs=1 seek=900 conv=notrunc status=none")

    result = campus.verify(backup=backup["id"], level="checksum")

    assert result["failed"] is True
    assert "has another SHA-256 than the manifest says" in result["msg"]
    assert campus.state(backup) == "corrupt"
    assert "is corrupt and is not restored" in campus.restore(backup, mode="swap", confirm=NAME)["msg"]
    assert campus.databases() == [NAME]


def test_the_wrong_key_says_nothing_of_the_backup(postgresql: Campus) -> None:
    backup = postgresql.back_up()

    without = postgresql.verify(identity=None, check_mode=True)
    wrong = postgresql.verify(identity=postgresql.host.shell("age-keygen 2>/dev/null | tail -n 1").strip())

    assert without["msg"] == f"Backup {backup['id']} is encrypted with age; give identity or identity_file."
    assert "was not decrypted" in wrong["msg"]
    assert "AGE-SECRET-KEY" not in json.dumps(wrong)
    assert (postgresql.state(backup), postgresql.looks(backup), postgresql.databases()) == ("complete", [], [NAME])


def test_a_server_that_is_not_there_says_nothing_of_the_backup(postgresql: Campus) -> None:
    backup = postgresql.back_up()

    result = postgresql.verify(login_port=5999)

    assert result["failed"] is True
    assert (postgresql.state(backup), postgresql.looks(backup)) == ("complete", [])


def test_what_a_killed_verification_left_is_swept_by_the_next_one(postgresql: Campus) -> None:
    postgresql.sql(SLOW)
    postgresql.back_up()

    with postgresql.held_up("backup_verify"):
        postgresql.host.shell("pkill -9 -f '[r]un_module.py backup_verify'")
    # The programs that it started end with it.
    wait_until(lambda: not postgresql.host.shell("pgrep -f '[p]g_restore|[a]ge --decrypt' || true"))
    scratch = next(name for name in postgresql.databases() if name.startswith("lms_verify_"))

    assert postgresql.verify(check_mode=True)["swept"] == [scratch]
    assert postgresql.verify(max_age=0)["swept"] == [scratch]


def test_a_verification_that_is_told_to_end_drops_its_scratch_database(postgresql: Campus) -> None:
    postgresql.sql(SLOW)
    backup = postgresql.back_up()

    with postgresql.held_up("backup_verify"):
        postgresql.host.shell("pkill -TERM -f '[r]un_module.py backup_verify'")

    assert (postgresql.databases(), postgresql.looks(backup)) == ([NAME], [])


# Restoring


def test_a_backup_is_restored_beside_and_then_put_in_place(campus: Campus) -> None:
    backup = campus.back_up()
    campus.sql("delete from marks")
    planned = campus.restore(backup, check_mode=True)
    assert (planned["changed"], campus.databases()) == (True, [NAME])

    beside = campus.restore(backup)
    again = campus.restore(backup)

    assert (beside["changed"], beside["compared"], beside["rows"]) == (True, True, ROWS)
    assert beside["database"] == f"{NAME}__r_{backup['id']}"
    assert again["changed"] is False
    assert (campus.count(), campus.count(database=beside["database"])) == (0, 3000)

    swapped = campus.restore(backup, mode="swap", confirm=NAME)

    assert not swapped.get("failed"), swapped["msg"]
    assert (swapped["database"], campus.count(), campus.count(database=swapped["previous"])) == (NAME, 3000, 0)
    assert campus.databases() == [NAME, swapped["previous"]]
    assert swapped["away_seconds"] < swapped["rto_seconds"]
    assert swapped["safety_backup"] != backup["id"]
    assert campus.manifest({"path": f"test/database/{NAME}/{swapped['safety_backup']}"})["objects"][-1]["encryption"]["recipients"] == [
        campus.recipient
    ]
    assert campus.restore(backup, mode="swap", confirm=NAME)["changed"] is False


def test_what_serves_is_not_touched_without_its_name(postgresql: Campus) -> None:
    backup = postgresql.back_up()

    assert f"Set confirm to {NAME}" in postgresql.restore(backup, mode="swap")["msg"]
    assert f"Set confirm to {NAME}" in postgresql.restore(backup, mode="swap", confirm="lms")["msg"]
    assert "no restore made it" in postgresql.restore(backup, database=NAME)["msg"]
    assert (postgresql.databases(), postgresql.count()) == ([NAME], 3000)


def test_a_database_that_is_gone_comes_back_under_its_name(campus: Campus) -> None:
    backup = campus.back_up()
    campus.drop(NAME)

    refused = campus.restore(backup, mode="swap", confirm=NAME)
    result = campus.restore(backup, database=NAME, globals="missing")

    assert f"Use mode new with database {NAME}" in refused["msg"]
    assert (result["changed"], campus.databases(), campus.count()) == (True, [NAME], 3000)


def test_a_restore_that_fails_halfway_leaves_the_live_database(postgresql: Campus) -> None:
    postgresql.sql("drop role if exists registrar; create role registrar; alter table marks owner to registrar")
    backup = postgresql.back_up()
    postgresql.sql("alter table marks owner to postgres; drop role registrar")

    failed = postgresql.restore(backup, mode="swap", confirm=NAME)

    assert 'role "registrar" does not exist' in failed["msg"]
    assert "set globals to missing, or owners to false" in failed["msg"]
    assert (postgresql.databases(), postgresql.count()) == ([NAME], 3000)

    mended = postgresql.restore(backup, mode="swap", confirm=NAME, globals="missing")
    assert not mended.get("failed"), mended["msg"]
    assert mended["roles_created"] == ["registrar"]
    assert postgresql.sql("select tableowner from pg_tables where tablename = 'marks'") == ["registrar"]


def test_a_safety_backup_that_fails_stops_the_restore(postgresql: Campus) -> None:
    backup = postgresql.back_up()

    failed = postgresql.restore(backup, mode="swap", confirm=NAME, encryption={"recipients": ["age1nobody"]})

    assert f"the safety backup of {NAME} failed" in failed["msg"]
    assert postgresql.databases() == [NAME]


def test_a_restore_that_was_killed_is_known_and_begun_anew(postgresql: Campus) -> None:
    postgresql.sql(SLOW)
    backup = postgresql.back_up()

    with postgresql.held_up("backup_restore", backup=backup["id"], mode="swap", confirm=NAME, safety_backup=False):
        postgresql.host.shell("pkill -9 -f '[r]un_module.py backup_restore'")
    half = f"{NAME}__r_{backup['id']}"
    assert half in postgresql.databases()

    result = postgresql.restore(backup, mode="swap", confirm=NAME, safety_backup=False)

    assert not result.get("failed"), result["msg"]
    assert (result["swept"], postgresql.databases(), postgresql.count()) == ([half], [NAME, result["previous"]], 3000)


def test_somebody_who_wrote_to_what_stands_beside_is_noticed(postgresql: Campus) -> None:
    backup = postgresql.back_up()
    beside = postgresql.restore(backup)["database"]
    postgresql.sql("delete from marks where id = 7", beside)

    result = postgresql.restore(backup, mode="swap", confirm=NAME, safety_backup=False)

    assert "has 2999 rows, the manifest says 3000. Somebody wrote to it" in result["msg"]
    assert postgresql.databases() == [NAME, beside]


# What the tools alone make of half a backup


def test_half_a_dump_is_refused_although_its_list_reads_well(postgresql: Campus) -> None:
    backup = postgresql.back_up(encryption={"method": "none"})
    path = postgresql.object(backup)
    postgresql.host.shell(f"chmod u+w {path}; truncate -s $(($(stat -c %s {path}) * 9 / 10)) {path}")

    # Its list of contents stands at the beginning.
    postgresql.host.shell(f"pg_restore --list {path}")
    assert "the manifest says" in postgresql.restore(backup)["msg"]
    assert postgresql.verify(backup=backup["id"])["failed"] is True
    assert postgresql.state(backup) == "corrupt"


def test_half_a_dump_that_was_summed_so_is_found_by_reading_it(postgresql: Campus) -> None:
    backup = postgresql.back_up(encryption={"method": "none"}, globals=False)
    path = postgresql.object(backup)
    postgresql.host.shell(f"chmod u+w {path}; truncate -s $(($(stat -c %s {path}) * 9 / 10)) {path}")
    size, total = postgresql.host.shell(f"stat -c %s {path}; sha256sum {path} | cut -c -64").split()
    described = postgresql.manifest(backup)["objects"][0]
    postgresql.rewrite(backup, objects=[{**described, "size": int(size), "sha256": total}])

    for level in ("decode", "restore"):
        result = postgresql.verify(backup=backup["id"], level=level)
        assert "is as it was written, but cannot be read to its end" in result["msg"]


def test_without_the_guard_half_an_archive_restores_half_and_no_error(postgresql: Campus) -> None:
    host = postgresql.host
    host.shell("runuser -u postgres -- pg_dump --format=tar campus > /tmp/whole.tar")
    # Cut at the end of a row.
    read = "import re, sys; data = sys.stdin.buffer.read();"
    cut = f"{read} sys.stdout.buffer.write(data[: re.search(rb'\\n1500\\t\\d+\\t', data).start() + 1])"
    host.execute("sh", "-c", 'python3 -c "$1" < /tmp/whole.tar > /tmp/half.tar', "sh", cut)
    postgresql.sql("create database half", "")

    # Some versions end well, others never end; none says that half is missing.
    argv = ["timeout", "2", "runuser", "-u", "postgres", "--", "pg_restore", "--exit-on-error", "--dbname=half", "/tmp/half.tar"]
    restored = host.execute(*argv, check=False)

    assert restored.returncode in (0, 124)
    assert "error" not in restored.stderr
    assert 0 < postgresql.count(database="half") < 3000


# Single tables


def test_single_tables_come_back_without_touching_those_that_are_there(campus: Campus) -> None:
    backup = campus.back_up()
    campus.sql("drop table marks")
    campus.sql("update students set name = concat('new ', id)")

    beside = campus.restore(backup, mode="tables", tables=["marks"])

    assert not beside.get("failed"), beside["msg"]
    assert beside["database"] == f"{NAME}__t_{backup['id']}"
    assert campus.count(database=beside["database"]) == 3000
    assert campus.restore(backup, mode="tables", tables=["marks"])["changed"] is False

    copied = campus.restore(backup, mode="tables", tables=["marks"], confirm=NAME)
    assert copied.get("copied") == ["public.marks" if campus.flavour == "postgresql" else "marks"], copied
    assert campus.count() == 3000
    # The next row gets its own number.
    campus.sql("insert into marks (student_id, mark) values (1, 5)")
    assert campus.sql("select count(*) from students where name like 'new %'") == ["200"]
    assert campus.count("students") == 200
