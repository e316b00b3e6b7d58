# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of real databases that are broken in every way: never half a backup, never a lock left, never a good one lost."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from database_host import Host, wait_until

REPOSITORY = "/srv/repository"
ROWS = 20000
FILL = {
    "postgresql": f"""
        create table students (id int primary key, name text);
        create table submissions (id int primary key, student_id int references students, body text);
        insert into students select n, 'student ' || n from generate_series(1, {ROWS // 10}) n;
        insert into submissions select n, 1 + n % {ROWS // 10}, repeat(md5(n::text), 8) from generate_series(1, {ROWS}) n""",  # noqa: S608
    "mariadb": f"""
        create table students (id int primary key, name text);
        create table submissions (id int primary key, student_id int, body text, foreign key (student_id) references students (id));
        insert into students select seq, concat('student ', seq) from seq_1_to_{ROWS // 10};
        insert into submissions select seq, 1 + seq % {ROWS // 10}, repeat(md5(seq), 8) from seq_1_to_{ROWS};
        analyze table students, submissions""",  # noqa: S608
}
PROGRAMS = {"postgresql": "/usr/lib/postgresql/17/bin/pg_dump", "mariadb": "/usr/bin/mariadb-dump"}
ACCESS = {"postgresql": {"engine": "postgresql", "login_system_user": "postgres"}, "mariadb": {"engine": "mysql"}}
INCOMPRESSIBLE = {
    "postgresql": "md5(random()::text) || md5(random()::text) || md5(random()::text) || md5(random()::text) || md5(random()::text)",
    "mariadb": "concat(md5(rand()), md5(rand()), md5(rand()), md5(rand()), md5(rand()), md5(rand()), md5(rand()), md5(rand()))",
}
# Slow enough for something to happen meanwhile (bytes a second).
SLOW = 100_000


class Database:
    """A database called lms, and the repository of its backups."""

    def __init__(self, host: Host, name: str, recipient: str) -> None:
        self.host = host
        self.name = name
        self.options: dict[str, Any] = {
            "repository": REPOSITORY,
            "environment": "test",
            "name": "lms",
            "encryption": {"recipients": [recipient]},
            **ACCESS[name],
        }

    def create(self) -> None:
        """Make the database anew, and the repository empty."""
        self.host.shell(f"rm -rf {REPOSITORY}")
        self.sql("drop database if exists lms", "")
        self.sql("create database lms", "")
        self.sql(FILL[self.name])

    def sql(self, statements: str, database: str = "lms") -> list[str]:
        """Run SQL as the administrator."""
        if self.name == "mariadb":
            return self.host.mysql(statements, database)
        return self.host.postgresql(statements, database or "postgres")

    def back_up(self, **options: Any) -> dict[str, Any]:
        """Run the module."""
        return self.host.module("database_backup", **{**self.options, **options})

    @contextmanager
    def backing_up(self, **options: Any) -> Iterator[subprocess.Popen[str]]:
        """Run the module slowly, and come as soon as data arrives in the repository."""
        process = self.host.start_module("database_backup", **{**self.options, "rate_limit": SLOW, **options})
        wait_until(lambda: self.host.shell(f"find {REPOSITORY} -path '*/.partial-*/data*' -size +0 2>/dev/null || true"))
        yield process
        process.wait(timeout=60)

    def files(self) -> dict[str, str]:
        """Return all files of the repository with their sums."""
        lines = self.host.shell(f"find {REPOSITORY} -type f 2>/dev/null | sort | xargs -r sha256sum").splitlines()
        return {path: total for total, path in (line.split("  ") for line in lines)}

    def partials(self) -> list[str]:
        """Return what interrupted runs left."""
        return self.host.shell(f"find {REPOSITORY} -name '.partial-*'").split()

    def programs(self) -> str:
        """Return the dumps that run."""
        return self.host.shell("pgrep -f '[p]g_dump|[m]ariadb-dump|[r]un_module.py database_backup' || true")

    def manifest(self, backup: dict[str, Any]) -> dict[str, Any]:
        """Return a backup's manifest."""
        manifest: dict[str, Any] = json.loads(self.host.shell(f"cat {REPOSITORY}/{backup['path']}/manifest.json"))
        return manifest


@pytest.fixture(scope="session")
def recipient(host: Host) -> str:
    """Return the public half of a key whose other half nobody needs here."""
    identity = host.shell("age-keygen 2>/dev/null")
    return host.execute("age-keygen", "-y", input=identity).stdout.strip()


@pytest.fixture(params=sorted(FILL))
def database(request: pytest.FixtureRequest, host: Host, recipient: str) -> Iterator[Database]:
    """Return a filled database and an empty repository; afterwards nothing may run on."""
    made = Database(host, request.param, recipient)
    made.create()
    yield made
    assert wait_until(lambda: not made.programs())


@contextmanager
def replaced(host: Host, program: str, script: str) -> Iterator[None]:
    """Put a script in the place of a program; it finds the true one as $REAL."""
    content = f"#!/bin/bash\nREAL={program}.real\n{script}\n"
    host.shell(f"mv {program} {program}.real && cat > {program} && chmod 755 {program}", input=content)
    try:
        yield
    finally:
        host.shell(f"mv {program}.real {program}")


def test_a_backup_is_counted_encrypted_and_private(database: Database) -> None:
    result = database.back_up()

    manifest = database.manifest(result["backup"])
    assert result["changed"] is True
    assert (result["backup"]["state"], result["backup"]["rows"]) == ("complete", ROWS + ROWS // 10)
    assert {table["name"]: table["rows"] for table in manifest["tables"]} == {"students": ROWS // 10, "submissions": ROWS}
    assert manifest["snapshot"]["consistency"] == "exact"
    data = [path for path in database.files() if "/data." in path]
    assert database.host.shell(f"head -c 21 {data[0]}") == "age-encryption.org/v1"
    assert set(database.host.shell(f"find {REPOSITORY}/test -type f -printf '%m\\n'").split()) == {"600"}
    assert set(database.host.shell(f"find {REPOSITORY}/test -type d -printf '%m\\n'").split()) == {"700"}


def test_check_mode_makes_all_checks_and_writes_nothing(database: Database) -> None:
    planned = database.host.module("database_backup", check_mode=True, **database.options)

    assert planned["changed"] is True
    assert planned["plan"]["server"]["flavour"] == database.name
    assert (planned["backup"], database.files()) == (None, {})


def test_one_that_is_young_enough_is_not_made_again(database: Database) -> None:
    first = database.back_up()["backup"]

    again = database.back_up(max_age=3600)

    assert (again["changed"], again["backup"]["id"]) == (False, first["id"])
    assert again["plan"]["skipped_reason"] == f"{first['id']} is younger than max_age."


@pytest.mark.parametrize("end", ["exit 3", "kill -9 $$"])
def test_a_dump_that_ends_early_is_no_backup_and_the_last_one_stays(database: Database, end: str) -> None:
    database.back_up()
    before = database.files()

    with replaced(database.host, PROGRAMS[database.name], f'$REAL "$@" | head -c 50000; {end}'):
        result = database.back_up()

    assert result["failed"] is True
    assert ("ended with status 3" if end == "exit 3" else "was killed by signal 9") in result["msg"]
    assert database.files() == before


def test_without_the_guard_a_killed_dump_becomes_a_file_that_looks_whole(database: Database) -> None:
    with replaced(database.host, PROGRAMS[database.name], '$REAL "$@" | head -c 50000; kill -9 $$'):
        user = "runuser -u postgres -- " if database.name == "postgresql" else ""
        database.host.shell(f"mkdir -p {REPOSITORY}; {user}{PROGRAMS[database.name]} lms | gzip > {REPOSITORY}/lms.sql.gz")

    assert database.host.shell(f"gzip -t {REPOSITORY}/lms.sql.gz && echo whole").strip() == "whole"


@pytest.mark.parametrize("program", ["age", "zstd"])
def test_a_program_on_the_way_that_dies_ends_the_backup(database: Database, program: str) -> None:
    with replaced(database.host, f"/usr/bin/{program}", "head -c 1000; kill -9 $$"):
        result = database.back_up()

    assert result["failed"] is True
    assert database.files() == {}


def test_a_full_disk_is_no_backup_and_the_last_one_stays(database: Database) -> None:
    # By its estimate the run would end beforehand.
    unchecked = {"min_free": -1_000_000_000}
    database.host.shell(f"mkdir -p {REPOSITORY} && mount -t tmpfs -o size=2M tmpfs {REPOSITORY}")
    try:
        refused = database.back_up()
        made = database.back_up(**unchecked)
        before = database.files()
        database.sql(f"update submissions set body = {INCOMPRESSIBLE[database.name]}")  # noqa: S608
        full = database.back_up(**unchecked)
        after, left = database.files(), database.partials()
    finally:
        database.host.shell(f"umount {REPOSITORY}")

    assert made["changed"] is True
    assert "bytes free, and the backup may need" in refused["msg"]
    assert "No space left on device" in full["msg"]
    assert (after, left) == (before, [])


def test_a_restart_of_the_server_ends_the_backup(database: Database) -> None:
    unit = "postgresql@17-main" if database.name == "postgresql" else "mariadb"
    with database.backing_up() as process:
        database.host.shell(f"systemctl restart {unit}")
        output, _errors = process.communicate(timeout=60)

    assert json.loads(output)["failed"] is True
    assert database.files() == {}
    assert database.back_up()["changed"] is True


def test_a_second_run_is_refused_while_one_is_at_work(database: Database) -> None:
    with database.backing_up() as process:
        refused = database.back_up()
        skipped = database.back_up(when_locked="skip")
        # Another host has another lock of its own: the server's holds there too.
        elsewhere = database.host.module("database_backup", **{**database.options, "repository": "/srv/other"})
        process.send_signal(signal.SIGTERM)
        database.host.shell("pkill -TERM -f '[r]un_module.py database_backup'")

    assert "works on" in refused["msg"]
    assert (skipped["changed"], skipped["backup"]) == (False, None)
    assert elsewhere["failed"] is True
    assert "lms" in elsewhere["msg"]
    assert database.files() == {}


def test_an_end_that_is_asked_for_leaves_nothing(database: Database) -> None:
    with database.backing_up() as process:
        database.host.shell("pkill -TERM -f '[r]un_module.py database_backup'")
        output, _errors = process.communicate(timeout=60)

    assert json.loads(output)["msg"] == "The run was ended by SIGTERM; nothing half is left. Start it again."
    assert (database.files(), database.partials()) == ({}, [])


def test_what_a_killed_run_leaves_is_no_backup_and_the_next_run_clears_it(database: Database) -> None:
    with database.backing_up():
        database.host.shell("pkill -KILL -f '[r]un_module.py database_backup'")
    left = database.partials()
    info = database.host.module("backup_info", repository=REPOSITORY, environment="test", kind="database", name="lms")

    result = database.back_up()

    assert len(left) == 1
    assert info["backups"] == []
    assert (result["changed"], database.partials()) == (True, [])
    assert len(result["plan"]["swept"]) == 1


def test_fifty_kills_leave_no_half_backup_no_lock_and_nothing_unswept(database: Database) -> None:
    chance = random.Random(database.name)  # noqa: S311
    for _kill in range(25):
        process = database.host.start_module("database_backup", **{**database.options, "rate_limit": 4_000_000})
        time.sleep(chance.uniform(0.1, 1.0))
        database.host.shell("pkill -KILL -f '[r]un_module.py database_backup' || true")
        process.wait(timeout=30)
        assert wait_until(lambda: not database.programs())

    result = database.back_up()
    listed = database.host.module("backup_info", repository=REPOSITORY, environment="test", kind="database", name="lms")
    directories = database.host.shell(f"ls -A {REPOSITORY}/test/database/lms").split()

    assert result["changed"] is True
    assert sorted(directories) == sorted(backup["id"] for backup in listed["backups"])
    assert {backup["state"] for backup in listed["backups"]} == {"complete"}


def test_a_database_that_lost_its_rows_makes_a_suspicious_backup_that_does_not_count(database: Database) -> None:
    good = database.back_up()["backup"]
    database.sql("delete from submissions")

    result = database.back_up()
    again = database.back_up(max_age=3600)

    assert result["backup"]["state"] == "suspicious"
    assert "more than 50 % fewer" in result["warnings"][-1]
    # It is no reason to make none, and none to be content.
    assert again["backup"]["id"] == good["id"]


def test_an_empty_database_makes_a_suspicious_backup(database: Database) -> None:
    database.sql("drop table submissions; drop table students")

    result = database.back_up()

    assert result["backup"]["state"] == "suspicious"
    assert "The database has no table." in result["warnings"][-1]


def test_a_database_that_is_missing_is_named(database: Database) -> None:
    result = database.back_up(name="forum")

    assert result["failed"] is True
    assert "forum" in result["msg"]
    assert database.files() == {}


def test_no_secret_can_be_read_while_it_runs(database: Database) -> None:
    password = "s3cret ' \\ # word"
    quoted = password.replace("'", "''") if database.name == "postgresql" else password.replace("\\", "\\\\").replace("'", "\\'")
    if database.name == "postgresql":
        database.sql(f"drop role if exists dumper; create role dumper login superuser password '{quoted}'", "")
        login = {"login_system_user": "", "login_host": "127.0.0.1"}
    else:
        database.sql(f"create or replace user dumper@localhost identified by '{quoted}'; grant all on *.* to dumper@localhost", "")
        login = {"login_unix_socket": "/run/mysqld/mysqld.sock"}
    options = {**login, "login_user": "dumper", "login_password": password}

    with database.backing_up(**options) as process:
        seen = database.host.shell("cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'")
        database.host.shell("pkill -TERM -f '[r]un_module.py database_backup'")
        output, _errors = process.communicate(timeout=60)
    result = database.back_up(**options)

    assert "dump" in seen
    assert "s3cret" not in seen
    assert "s3cret" not in output
    assert "s3cret" not in json.dumps(result)
    assert result["changed"] is True
