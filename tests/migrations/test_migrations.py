"""Migrations on real databases: planned without a trace, judged, run under a lock, and broken in every way."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from laravel_host import RELEASES, Database, wait_until, write_migration

FIRST = [
    "2025_01_01_000001_create_students_table",
    "2025_01_01_000002_create_courses_table",
    "2025_01_01_000003_create_enrolments_table",
    "2025_01_01_000004_create_failed_jobs_table",
]
LEVEL = "2026_02_09_000001_add_level_to_courses_table"
DROP_NAME = "2026_06_15_000001_drop_name_from_students_table"


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Return a directory for migrations that a test writes."""
    made = RELEASES / "written" / request.node.name.replace("[", "-").rstrip("]")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    yield made
    shutil.rmtree(made)


def succeeded(result: dict[str, Any]) -> dict[str, Any]:
    assert not result.get("failed"), result["msg"]
    return result


def failed(result: dict[str, Any]) -> str:
    assert result.get("failed"), result
    return result["msg"]


def outcomes(result: dict[str, Any]) -> dict[str, str]:
    return {one["migration"]: one["outcome"] for one in result["outcomes"]}


def test_pretend_does_not_create_table(database: Database) -> None:
    plan = succeeded(database.migrate("v1", state="planned"))

    assert (plan["pending"], plan["migration_table"], plan["database_empty"], plan["changed"]) == (FIRST, False, True, False)
    assert "create table" in plan["plan"][0]["statements"][0]["sql"]
    assert {risk["class"] for risk in plan["risks"]} == {"expand"}
    assert database.tables() == []

    # The guard off: what Laravel's own plan leaves.
    assert database.artisan("v1", "migrate", "--pretend", "--force")[0] == 0
    assert database.tables() == ["migrations"]


def test_first_run_migrates_and_a_second_one_changes_nothing(database: Database) -> None:
    first = succeeded(database.migrate("v1"))
    second = succeeded(database.migrate("v1"))

    assert (first["changed"], first["applied"], first["contract"]) == (True, FIRST, [])
    assert (second["changed"], second["applied"]) == (False, [])
    assert database.tables() == ["courses", "enrolments", "failed_jobs", "migrations", "students"]


@pytest.mark.migrated("v2")
def test_name_of_students_is_split_in_three_versions_and_no_row_is_lost(database: Database) -> None:
    names = ",".join(f"('Ada Lovelace {number}', 's{number}@example.com')" for number in range(2500))
    database.sql(f"insert into students (name, email) values {names}, ('Plato', 'plato@example.com')")  # noqa: S608

    assert succeeded(database.migrate("v5-expand"))["contract"] == []
    backfill = succeeded(database.migrate("v6-backfill"))
    assert [risk["class"] for risk in backfill["risks"]] == ["expand", "expand"]
    assert backfill["contract"] == []
    assert database.sql("select count(*) from students where given_name is null or family_name is null") == ["0"]
    assert database.sql("select concat(given_name, '|', family_name) from students where id in (1, 2501) order by id") == [
        "Ada|Lovelace 0",
        "Plato|",
    ]

    refused = database.migrate("v7-contract")
    assert f"-e lms_migrations_approved={DROP_NAME}" in failed(refused)
    assert (refused["refused"], refused["destructive"]) == ([DROP_NAME], True)
    assert database.sql("select count(name) from students") == ["2501"]

    approved = succeeded(database.migrate("v7-contract", approved=[DROP_NAME]))
    assert (approved["applied"], approved["contract"]) == ([DROP_NAME], [DROP_NAME])
    assert database.sql("select count(given_name) from students") == ["2501"]


@pytest.mark.migrated("v2")
def test_broken_migration_says_what_it_leaves_and_its_mended_form_runs(database: Database, folder: Path) -> None:
    half = "Schema::create('notes', function (Blueprint $table) { $table->id(); });"
    write_migration(folder, "2027_01_01_000001_add_first", "Schema::create('firsts', function (Blueprint $table) { $table->id(); });")
    write_migration(folder, "2027_01_01_000002_add_notes", half + "DB::table('nowhere')->insert(['id' => 1]);")
    write_migration(folder, "2027_01_01_000003_add_third", "Schema::create('thirds', function (Blueprint $table) { $table->id(); });")

    result = database.migrate("v2", paths=(str(folder),))
    message = failed(result)

    assert outcomes(result) == {
        "2027_01_01_000001_add_first": "applied",
        "2027_01_01_000002_add_notes": "failed",
        "2027_01_01_000003_add_third": "pending",
    }
    assert message.startswith("Migration 2027_01_01_000002_add_notes failed: SQLSTATE")
    assert "Applied before it: 2027_01_01_000001_add_first." in message
    if database.name == "postgresql":
        assert "PostgreSQL rolled it back whole." in message
        assert "notes" not in database.tables()
    else:
        assert "MariaDB does not roll it back: what it had executed remains. Undo that before the next run: create table `notes`" in message
        assert "notes" in database.tables()
        database.sql("drop table notes")

    write_migration(folder, "2027_01_01_000002_add_notes", half)
    mended = succeeded(database.migrate("v2", paths=(str(folder),)))
    assert mended["applied"] == ["2027_01_01_000002_add_notes", "2027_01_01_000003_add_third"]


@pytest.mark.migrated("v2")
def test_migration_that_raises_only_when_it_runs_is_rolled_back(database: Database) -> None:

    result = database.migrate("v4-bad-migration")

    assert "The credits of the courses are not known" in failed(result)
    assert result["applied"] == ["2026_03_10_000001_add_language_to_courses_table"]


class SlowRun:
    """A run whose migration goes on until it is let go, or killed."""

    WAITS = "if (! DB::connection()->pretending()) { touch('%s/begun'); while (! file_exists('%s/gate')) { usleep(20000); } }"

    def __init__(self, database: Database, folder: Path, run: Any) -> None:
        self.database = database
        self.folder = folder
        self.result: Any = None
        write_migration(folder, "2027_01_01_000001_wait", self.WAITS % (folder, folder))
        self.thread = threading.Thread(target=self.keep, args=(run,))
        self.thread.start()
        wait_until((folder / "begun").exists)

    def keep(self, run: Any) -> None:
        self.result = run()

    def processes(self) -> list[str]:
        return self.database.host.execute("pgrep", "-x", "php", check=False).stdout.split()

    def kill(self) -> Any:
        for process in self.processes():
            self.database.host.execute("kill", "-9", process, check=False)
        self.thread.join()
        return self.result

    def let_go(self) -> Any:
        (self.folder / "gate").touch()
        self.thread.join()
        return self.result


@pytest.mark.migrated("v2")
def test_isolated_skip_is_failure(database: Database, folder: Path) -> None:
    slow = SlowRun(database, folder, lambda: database.migrate("v2", paths=(str(folder),)))
    try:
        holder = database.migrate("v2", state="planned")["locked_by"]

        refused = database.migrate("v2", paths=(str(folder),))

        assert f"session {holder['pid']} of user lms" in failed(refused)
        assert ("lms migrations on the test host" in refused["msg"]) == (database.name == "postgresql")
        assert refused["changed"] is False
    finally:
        result = slow.let_go()
    assert succeeded(result)["applied"] == ["2027_01_01_000001_wait"]


@pytest.mark.migrated("v2")
def test_run_that_was_killed_leaves_no_lock(database: Database, folder: Path) -> None:
    slow = SlowRun(database, folder, lambda: database.migrate("v2", paths=(str(folder),)))

    killed = slow.kill()
    assert "Migration 2027_01_01_000001_wait failed" in failed(killed)
    assert killed["applied"] == []

    (folder / "gate").touch()
    wait_until(lambda: database.migrate("v2", state="planned")["locked_by"] is None)
    assert succeeded(database.migrate("v2", paths=(str(folder),)))["applied"] == ["2027_01_01_000001_wait"]


@pytest.mark.migrated("v2")
def test_lock_of_laravel_outlives_a_killed_run_and_skips_the_next_with_status_0(database: Database, folder: Path) -> None:
    """The guard off: why migrate --isolated is not used."""
    options = ("migrate", "--force", "--isolated", "--realpath", f"--path={folder}")
    slow = SlowRun(database, folder, lambda: database.artisan("v2", *options))
    slow.kill()
    (folder / "gate").touch()

    status, output = database.artisan("v2", *options)
    database.artisan("v2", "cache:clear")

    assert (status, "already running" in output) == (0, True)
    assert succeeded(database.migrate("v2", paths=(str(folder),), state="planned"))["pending"] == ["2027_01_01_000001_wait"]


@pytest.mark.migrated("v1")
def test_table_that_somebody_has_locked_is_not_waited_for_long(database: Database) -> None:
    if database.name == "postgresql":
        other = database.session("begin", "lock table courses", "select pg_sleep(60)")
        wait_until(lambda: database.sql("select 1 from pg_stat_activity where query like 'select pg_sleep(60)%'"))
    else:
        other = database.session("lock tables courses write", "select sleep(60)")
        wait_until(lambda: database.sql("select 1 from information_schema.processlist where info = 'select sleep(60)'"))

    try:
        result = database.migrate("v2", lock_timeout=1)
    finally:
        database.end_sessions("sleep(60)")
        other.wait()

    assert "Another session kept a table locked for longer than lock_timeout." in failed(result)
    assert succeeded(database.migrate("v2"))["applied"] == [LEVEL]


@pytest.mark.migrated("v2")
def test_statement_that_takes_too_long_is_ended(database: Database, folder: Path) -> None:
    sleep = "pg_sleep(30)" if database.name == "postgresql" else "sleep(30)"
    write_migration(folder, "2027_01_01_000001_sleep", f"DB::statement('insert into failed_jobs (uuid) select {sleep}');")

    result = database.migrate("v2", paths=(str(folder),), statement_timeout=1)

    if database.name == "postgresql":
        assert "The statement took longer than statement_timeout." in failed(result)
    else:
        failed(result)


@pytest.mark.migrated("v1")
def test_database_that_is_down_is_named_and_the_next_run_is_green(database: Database) -> None:
    database.stop()

    message = failed(database.migrate("v2"))

    assert message.startswith(f"Laravel cannot use the database lms on 127.0.0.1:{database.environment['DB_PORT']}")
    assert message.endswith("Connection refused. Start the database, or correct DB_HOST and DB_PORT in .env.")
    database.start()
    assert succeeded(database.migrate("v2"))["applied"] == [LEVEL]


@pytest.mark.migrated("v2")
def test_migration_executes_only_what_was_judged_unless_it_is_approved(database: Database, folder: Path) -> None:
    write_migration(folder, "2027_01_01_000001_hide", "if (! DB::connection()->pretending()) { DB::statement('drop table enrolments'); }")

    stopped = database.migrate("v2", paths=(str(folder),))

    assert "It executes a statement that its plan did not have: drop table enrolments. Approve it by name" in failed(stopped)
    assert "enrolments" in database.tables()

    # The guard off.
    approved = succeeded(database.migrate("v2", paths=(str(folder),), approved=["2027_01_01_000001_hide"]))
    assert approved["contract"] == ["2027_01_01_000001_hide"]
    assert "enrolments" not in database.tables()


@pytest.mark.migrated("v2")
def test_migration_that_writes_while_it_is_planned_cannot(database: Database, folder: Path) -> None:
    write_migration(folder, "2027_01_01_000001_write", "DB::connection()->getPdo()->exec('create table behind (id int)');")

    result = database.migrate("v2", paths=(str(folder),))

    assert "unknown: its plan broke off: " in failed(result)
    assert "behind" not in database.tables()


@pytest.mark.migrated("v2")
def test_migrations_that_changed_after_they_were_judged_do_not_run(database: Database, folder: Path) -> None:
    write_migration(folder, "2027_01_01_000001_first", "Schema::create('firsts', function (Blueprint $table) { $table->id(); });")

    def run_command(argv: list[str], **options: Any) -> tuple[int, str, str]:
        answer = database.host.run_command(argv, **options)
        write_migration(folder, "2027_01_01_000001_first", "Schema::drop('enrolments');")
        return answer

    result = database.migrate("v2", paths=(str(folder),), run_command=run_command)

    assert "The pending migrations are not the ones that were judged" in failed(result)
    assert "enrolments" in database.tables()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.migrated("v1")
def test_task_shows_the_plan_as_a_diff_and_refuses_what_is_not_safe(database: Database) -> None:
    before = database.tables()

    check = database.play("v7-contract", "--check", "--diff", state="migrated")
    run = database.play("v7-contract", state="migrated")

    assert check.startswith("0\n")
    assert f"+{DROP_NAME}: contract" in check
    assert "is not safe beside the running version" in check
    assert run.startswith("2\n")
    assert f"Or approve it by name: -e lms_migrations_approved={DROP_NAME}" in run
    assert database.environment["APP_KEY"] not in check + run
    assert (database.tables(), database.sql("select count(*) from migrations")) == (before, ["4"])
