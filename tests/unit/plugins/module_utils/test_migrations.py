# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was migrated is read from the database, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan
from ansible_collections.bitflow.lms.plugins.module_utils._database_errors import Connection
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._migrations import (
    Migrations,
    apply_migrations,
    guard_release,
    plan_migrations,
    read_settings,
    skipped_result,
)

DATA = Path(__file__).parent / "data" / "artisan" / "laravel10"
MIGRATE = ["php", "artisan", "--no-interaction", "--no-ansi", "migrate", "--force"]
ENV = 'DB_CONNECTION=pgsql\nDB_HOST="192.0.2.9"\nDB_PORT=5432\nDB_DATABASE=lms\nDB_USERNAME=lms\nDB_PASSWORD=s3cret\n'


class Database:
    """A run_command that plays migrate:status and migrate over a list of what ran."""

    def __init__(self, names: Sequence[str], ran: Sequence[str] = (), table: bool = True) -> None:
        self.names = sorted(names)
        self.batches = dict.fromkeys(ran, 1)
        self.table = table
        self.breaks_at: str | None = None
        self.declines: str | None = None
        self.migrate_answer: tuple[int, str, str] | None = None
        self.goes_away = False
        self.calls: list[list[str]] = []

    def __call__(self, argv: list[str], **_options: Any) -> tuple[int, str, str]:
        self.calls.append(argv[7:])
        if argv[7] == "migrate:status":
            return self.status()
        return self.migrate()

    def status(self) -> tuple[int, str, str]:
        if self.goes_away and any(call[0] == "migrate" for call in self.calls):
            return (1, (DATA / "pgsql_status_refused.txt").read_text(), "")
        if not self.table:
            return (1, (DATA / "pgsql_status_empty.txt").read_text(), "")
        states = [f"[{self.batches[name]}] Ran" if name in self.batches else "Pending" for name in self.names]
        lines = [f"  {name} ...... {state}  " for name, state in zip(self.names, states)]
        return (0, "\n  Migration name ..... Batch / Status  \n" + ("\n".join(lines) or "   INFO  No migrations found.") + "\n", "")

    def migrate(self) -> tuple[int, str, str]:
        if self.migrate_answer:
            return self.migrate_answer
        self.table = True
        lines = ["   INFO  Running migrations.  "]
        batch = max(self.batches.values(), default=0) + 1
        for name in [name for name in self.names if name not in self.batches]:
            if name == self.breaks_at:
                lines += [f"  {name} ..... 3ms FAIL", "", "In Connection.php line 829:", "  ", *ERROR]
                return (1, "\n".join(lines), "")
            if name == self.declines:
                lines.append(f"  {name} ..... 1ms SKIPPED")
                continue
            lines.append(f"  {name} ..... 3ms DONE")
            self.batches[name] = batch
        return (0, "\n".join(lines), "")


ERROR = [
    '  SQLSTATE[42P07]: Duplicate table: 7 ERROR:  relation "a" already exists (Connection: pgsql, SQL: create table "a" ("id" int))',
    "",
]


def make_migrations(release: Path, played: Database, **options: Any) -> Migrations:
    (release / "database/migrations").mkdir(parents=True, exist_ok=True)
    for name in played.names:
        (release / f"database/migrations/{name}.php").touch()
    for name in ("artisan", "vendor/autoload.php"):
        (release / name).parent.mkdir(exist_ok=True)
        (release / name).touch()
    (release / ".env").write_text(ENV)
    return Migrations(Artisan(played, str(release)), **options)


def expected(
    changed: bool, before: Sequence[str], pending: Sequence[str] = (), applied: Sequence[str] = (), **fields: Any
) -> dict[str, Any]:
    return {
        "changed": changed,
        "migration_table": True,
        "pending": list(pending),
        "applied": list(applied),
        "batch": None,
        "laravel_version": None,
        "skipped": False,
        "reason": "",
        "diff": {"before": {"pending": list(before)}, "after": {"pending": list(pending)}},
        **fields,
    }


def test_plan_lists_what_is_pending_and_changes_nothing(tmp_path: Path) -> None:
    database = Database(["1_a", "2_b", "3_c"], ran=["1_a"])

    result = plan_migrations(make_migrations(tmp_path, database))

    assert result == expected(False, ["2_b", "3_c"], pending=["2_b", "3_c"])
    assert database.calls == [["migrate:status"]]


def test_empty_database_has_all_files_pending(tmp_path: Path) -> None:
    database = Database(["1_a", "2_b"], table=False)

    result = plan_migrations(make_migrations(tmp_path, database))

    assert result == expected(False, ["1_a", "2_b"], pending=["1_a", "2_b"], migration_table=False)


def test_pending_migrations_are_applied_and_proved(tmp_path: Path) -> None:
    database = Database(["1_a", "2_b", "3_c"], ran=["1_a"])

    result = apply_migrations(make_migrations(tmp_path, database), step=False, check_mode=False)

    assert result == expected(True, ["2_b", "3_c"], applied=["2_b", "3_c"], batch=2)
    assert database.calls == [["migrate:status"], ["migrate", "--force"], ["migrate:status"]]


def test_second_run_changes_nothing_and_starts_artisan_once(tmp_path: Path) -> None:
    database = Database(["1_a"], ran=["1_a"])

    result = apply_migrations(make_migrations(tmp_path, database), step=False, check_mode=False)

    assert result == expected(False, [])
    assert database.calls == [["migrate:status"]]


def test_empty_database_is_migrated(tmp_path: Path) -> None:
    database = Database(["1_a"], table=False)

    result = apply_migrations(make_migrations(tmp_path, database), step=False, check_mode=False)

    assert result == expected(True, ["1_a"], applied=["1_a"], batch=1, migration_table=False)


@pytest.mark.parametrize("table", [True, False])
def test_check_mode_only_looks(tmp_path: Path, table: bool) -> None:
    database = Database(["1_a"], table=table)

    result = apply_migrations(make_migrations(tmp_path, database), step=False, check_mode=True)

    assert result == expected(True, ["1_a"], pending=["1_a"], migration_table=table) | {
        "diff": {"before": {"pending": ["1_a"]}, "after": {"pending": []}}
    }
    assert database.calls == [["migrate:status"]]


@pytest.mark.parametrize(
    ("options", "step", "shared", "own"),
    [
        ({}, True, [], ["--force", "--step"]),
        ({"database": "reporting"}, False, ["--database=reporting"], ["--force"]),
        ({"paths": ("a", "b/1_x.php")}, False, ["--path=a", "--path=b/1_x.php"], ["--force"]),
    ],
)
def test_options_reach_both_commands(tmp_path: Path, options: dict[str, Any], step: bool, shared: list[str], own: list[str]) -> None:
    database = Database(["1_a"])

    apply_migrations(make_migrations(tmp_path, database, **options), step=step, check_mode=False)

    assert database.calls == [["migrate:status", *shared], ["migrate", *own, *shared], ["migrate:status", *shared]]


def test_absolute_path_makes_all_paths_absolute(tmp_path: Path) -> None:
    migrations = make_migrations(tmp_path, Database([]), paths=("a", "/srv/b"))

    assert migrations.options() == ["--realpath", f"--path={tmp_path}/a", "--path=/srv/b"]


def test_files_are_those_that_laravel_takes(tmp_path: Path) -> None:
    migrations = make_migrations(tmp_path, Database(["1_a", "2_b"]), paths=("database/migrations", "more", "one/9_z.php"))
    (tmp_path / "more").mkdir()
    for name in ("more/1_first.php", "more/readme.php", "more/3_c.txt"):
        (tmp_path / name).touch()

    assert [path.stem for path in migrations.files()] == ["1_a", "1_first", "2_b", "9_z"]


def broken(tmp_path: Path, database: Database, **options: Any) -> LmsError:
    with pytest.raises(LmsError) as caught:
        apply_migrations(make_migrations(tmp_path, database, **options), step=False, check_mode=False)
    return caught.value


def test_broken_migration_is_reported_with_what_was_applied(tmp_path: Path) -> None:
    database = Database(["1_a", "2_b", "3_c"])
    database.breaks_at = "2_b"

    error = broken(tmp_path, database)

    assert error.message == (
        'Migration 2_b failed: SQLSTATE[42P07]: Duplicate table: 7 ERROR:  relation "a" already exists. '
        "PostgreSQL rolled it back whole. Applied before it: 1_a."
    )
    stdout = error.details.pop("stdout")
    assert "2_b ..... 3ms FAIL" in stdout
    assert error.details == {
        **expected(True, ["1_a", "2_b", "3_c"], pending=["2_b", "3_c"], applied=["1_a"], batch=1),
        "failed_migration": "2_b",
        "driver": "pgsql",
        "command": "migrate",
        "argv": MIGRATE,
        "rc": 1,
        "stderr": "",
    }


def test_broken_migration_without_transaction_leaves_its_work(tmp_path: Path) -> None:
    database = Database(["1_a"])
    database.breaks_at = "1_a"
    migrations = make_migrations(tmp_path, database)
    (tmp_path / "database/migrations/1_a.php").write_text("<?php public $withinTransaction = false;")

    with pytest.raises(LmsError, match=r"It declines a transaction.*No migration was applied."):
        apply_migrations(migrations, step=False, check_mode=False)


def test_broken_migration_on_mariadb_may_leave_a_half_made_table(tmp_path: Path) -> None:
    database = Database(["2025_02_01_000002_add_broken_table"])
    database.migrate_answer = (1, (DATA / "mysql_migrate_broken.txt").read_text(), "")

    error = broken(tmp_path, database)

    assert error.details["driver"] == "mysql"
    assert "MySQL and MariaDB do not roll back schema changes" in error.message


def test_failure_outside_the_database_takes_the_driver_from_the_environment(tmp_path: Path) -> None:
    database = Database(["1_a"])
    database.migrate_answer = (1, '  1_a ..... 3ms FAIL\n\nIn 1_a.php line 3:\n\n  Class "Nowhere" not found\n', "")

    error = broken(tmp_path, database)

    assert error.message == 'Migration 1_a failed: Class "Nowhere" not found. PostgreSQL rolled it back whole. No migration was applied.'


def test_status_0_with_migrations_left_is_a_failure(tmp_path: Path) -> None:
    database = Database(["1_a", "2_b"])
    database.migrate_answer = (0, "   INFO  The [migrate] command is already running.\n", "")

    error = broken(tmp_path, database)

    assert error.message == "artisan migrate ended with status 0, but 2 migrations are still pending: 1_a, 2_b. Read its output."
    assert (error.details["changed"], error.details["pending"]) == (False, ["1_a", "2_b"])


def test_migration_that_declines_to_run_may_stay_pending(tmp_path: Path) -> None:
    database = Database(["1_a", "2_b"])
    database.declines = "1_a"

    result = apply_migrations(make_migrations(tmp_path, database), step=False, check_mode=False)

    assert result == expected(True, ["1_a", "2_b"], pending=["1_a"], applied=["2_b"], batch=1)


def test_stopped_migration_is_named_by_what_is_still_pending(tmp_path: Path) -> None:
    database = Database(["1_a", "2_b"], ran=["1_a"])
    database.migrate_answer = (124, "", "")

    error = broken(tmp_path, database)

    assert error.message == (
        "Migration 2_b failed: artisan migrate did not end within 300 seconds and was stopped. Raise timeout, or find what it waits for. "
        "PostgreSQL rolled it back whole. No migration was applied."
    )


def test_database_that_goes_away_meanwhile_leaves_the_outcome_open(tmp_path: Path) -> None:
    database = Database(["1_a", "2_b"])
    database.breaks_at = "2_b"
    database.goes_away = True

    error = broken(tmp_path, database)

    assert "Migration 2_b failed" in error.message
    assert "What was applied is not known, because afterwards artisan migrate:status cannot use the database lms" in error.message
    assert error.details["changed"] is True


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "pgsql_status_wrong_password",
            "artisan migrate:status cannot use the database lms on 127.0.0.1:5432 (connection pgsql): "
            'password authentication failed for user "lms_user". Correct DB_USERNAME and DB_PASSWORD in .env.',
        ),
        (
            "mysql_status_refused",
            "artisan migrate:status cannot use the database lms on 192.0.2.9:5432 (connection mysql): "
            "Connection refused. Start the database, or correct DB_HOST and DB_PORT in .env.",
        ),
    ],
)
def test_database_that_cannot_be_used_is_named_without_its_password(tmp_path: Path, name: str, message: str) -> None:
    class Unreachable(Database):
        def status(self) -> tuple[int, str, str]:
            return (1, (DATA / f"{name}.txt").read_text(), "")

    with pytest.raises(LmsError) as caught:
        plan_migrations(make_migrations(tmp_path, Unreachable([])))

    assert caught.value.message == message
    assert "s3cret" not in str(caught.value.as_result())


def test_settings_hold_no_credentials(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(ENV)

    assert read_settings(tmp_path / ".env") == {"DB_CONNECTION": "pgsql", "DB_HOST": "192.0.2.9", "DB_PORT": "5432", "DB_DATABASE": "lms"}
    assert read_settings(tmp_path / "none") == {}


def test_environment_of_the_task_wins_over_the_file(tmp_path: Path) -> None:
    make_migrations(tmp_path, Database([]))
    artisan = Artisan(Database([]), str(tmp_path), environment={"DB_CONNECTION": "mysql", "DB_PORT": 3306, "DB_PASSWORD": "x"})

    assert Migrations(artisan).connection() == Connection("mysql", "mysql", "192.0.2.9", "3306", "lms")


def test_place_of_another_connection_is_not_guessed(tmp_path: Path) -> None:
    assert make_migrations(tmp_path, Database([]), database="reporting").connection() == Connection("reporting")


def test_check_mode_accepts_a_release_that_is_not_there_yet(tmp_path: Path) -> None:
    artisan = Artisan(Database([]), str(tmp_path / "next"))

    assert guard_release(artisan, check_mode=True) == f"There is no directory {tmp_path}/next. Set chdir to a release that exists."
    with pytest.raises(LmsError):
        guard_release(artisan, check_mode=False)


def test_check_mode_accepts_a_release_without_packages(tmp_path: Path) -> None:
    (tmp_path / "artisan").touch()

    assert guard_release(Artisan(Database([]), str(tmp_path)), check_mode=True) == f"The release {tmp_path} has no vendor/autoload.php yet."


def test_skipped_result_has_the_same_keys() -> None:
    assert set(skipped_result("no")) == set(expected(False, []))
