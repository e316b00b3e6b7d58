# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was migrated is read from the database, before and after; a break says what it leaves."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._migrations import (
    Migrations,
    apply_migrations,
    guard_release,
    plan_migrations,
    skipped_result,
)

DATA = Path(__file__).parent / "data" / "migrations"
REQUEST = re.compile(r"base64_decode\('([\w+/=]+)'\)")
ARGV = ["php", "-d", "display_errors=stderr", "-d", "log_errors=0"]
PRODUCT = {"driver": "pgsql", "product": "PostgreSQL", "version": "17.6"}
PLACE = {"name": "pgsql", "driver": "pgsql", "host": "192.0.2.9", "port": "5432", "database": "lms"}
FACTS = {"laravel": "10.48.29", "place": PLACE, "product": PRODUCT}
CREATE = 'create table "a" ("id" int)'
BROKEN = {
    "message": 'SQLSTATE[42P07]: Duplicate table: 7 ERROR:  relation "a" already exists',
    "text": f'SQLSTATE[42P07]: Duplicate table: 7 ERROR:  relation "a" already exists (Connection: pgsql, SQL: {CREATE})',
    "sql": CREATE,
    "file": "/vendor/Connection.php",
    "line": 829,
}
REFUSED = {
    "message": 'SQLSTATE[08006] [7] connection to server at "192.0.2.9", port 5432 failed: Connection refused',
    "text": 'SQLSTATE[08006] [7] connection to server at "192.0.2.9", port 5432 failed: Connection refused',
    "sql": None,
    "file": "/vendor/Connector.php",
    "line": 70,
}


def state(table: bool = True, **batches: int | None) -> dict[str, Any]:
    return {"table": table, "migrations": [{"migration": name, "batch": batch} for name, batch in batches.items()]}


class Release:
    """A run_command that plays the script: it reads the request as PHP would, and tells events."""

    def __init__(self, *answers: Sequence[dict[str, Any]] | tuple[int, Sequence[dict[str, Any]]]) -> None:
        self.answers = list(answers)
        self.requests: list[dict[str, Any]] = []
        self.calls: list[tuple[list[str], dict[str, Any]]] = []

    def __call__(self, argv: list[str], **options: Any) -> tuple[int, str, str]:
        request = json.loads(base64.b64decode(REQUEST.search(options["data"])[1]))
        self.calls.append((argv, options))
        self.requests.append(request)
        answer = self.answers.pop(0)
        rc, events = answer if isinstance(answer, tuple) else (0, answer)
        lines = "".join(f"\n{request['marker']}{json.dumps(event)}\n" for event in events)
        return (rc, f"Printed by a migration.{lines}", "PHP Warning:  first\nPHP Fatal error:  last.\n" if rc else "")


def answer(**fields: Any) -> dict[str, Any]:
    return {"event": "answer", **FACTS, **fields}


def locked(before: dict[str, Any]) -> dict[str, Any]:
    return {"event": "locked", "before": before, **FACTS}


def started(name: str, rolls_back: bool = True) -> dict[str, Any]:
    return {"event": "started", "migration": name, "rolls_back": rolls_back}


def executed(name: str, sql: str) -> dict[str, Any]:
    return {"event": "executed", "migration": name, "sql": sql}


def looked(after: dict[str, Any]) -> list[dict[str, Any]]:
    return [answer(state=after, empty=False, locked_by=None, plan=[])]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Migrations]:
    for name in ("artisan", "vendor/autoload.php"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return lambda release, **options: Migrations(Artisan(release, str(tmp_path)), **options)


def expected(changed: bool, **fields: Any) -> dict[str, Any]:
    return {
        "changed": changed,
        "migration_table": True,
        "database_empty": False,
        "product": PRODUCT,
        "pending": [],
        "applied": [],
        "batch": None,
        "plan": [],
        "outcomes": [],
        "locked_by": None,
        "laravel_version": "10.48.29",
        "reason": "",
        "diff": {"before": {"pending": []}, "after": {"pending": []}},
        **fields,
    }


def broken(migrations: Migrations) -> LmsError:
    with pytest.raises(LmsError) as caught:
        apply_migrations(migrations, step=False, judged=[])
    return caught.value


def test_plan_lists_what_is_pending_and_changes_nothing(make: Callable[..., Migrations]) -> None:
    entries = [{"migration": "2_b", "statements": [{"sql": CREATE, "times": 1}]}]
    release = Release([answer(state=state(**{"1_a": 1, "2_b": None}), empty=False, locked_by=None, plan=entries)])

    result = plan_migrations(make(release), runs=False)

    assert result == expected(
        False,
        pending=["2_b"],
        plan=entries,
        outcomes=[{"migration": "2_b", "outcome": "pending", "executed": []}],
        diff={"before": {"pending": ["2_b"]}, "after": {"pending": ["2_b"]}},
    )
    assert [(request["action"], request["sql"]) for request in release.requests] == [("plan", True)]


@pytest.mark.parametrize(("table", "pending", "changed"), [(True, None, True), (True, 1, False), (False, None, True)])
def test_check_mode_tells_whether_something_would_run(
    make: Callable[..., Migrations], table: bool, pending: int | None, changed: bool
) -> None:
    release = Release([answer(state=state(table, **{"1_a": pending}), empty=not table, locked_by=None, plan=[])])

    result = plan_migrations(make(release), runs=True)

    assert (result["changed"], result["diff"]["after"]) == (changed, {"pending": []})


@pytest.mark.parametrize("product", ["postgresql", "mariadb"])
def test_captured_plan_is_understood(make: Callable[..., Migrations], product: str) -> None:
    captured = json.loads((DATA / f"plan_{product}.json").read_text(encoding="utf-8"))

    result = plan_migrations(make(Release([captured])), runs=False)

    assert result["pending"] == [
        "2026_02_09_000001_add_level_to_courses_table",
        "2026_03_10_000001_add_language_to_courses_table",
        "2026_03_10_000002_add_credits_to_courses_table",
    ]
    assert [len(entry["statements"]) for entry in result["plan"]] == [1, 1, 1]


@pytest.mark.parametrize(
    ("product", "end"),
    [
        ("postgresql", "PostgreSQL rolled it back whole. No migration was applied."),
        (
            "mariadb",
            "MariaDB does not roll it back: what it had executed remains. Undo that before the next run: create table `notes` "
            "(`id` bigint unsigned not null auto_increment primary key) default character set utf8mb4 collate 'utf8mb4_unicode_ci'. "
            "No migration was applied.",
        ),
    ],
)
def test_captured_break_is_understood(make: Callable[..., Migrations], product: str, end: str) -> None:
    captured = json.loads((DATA / f"broken_{product}.json").read_text(encoding="utf-8"))

    error = broken(make(Release(captured)))

    assert error.message.startswith("Migration 2027_01_01_000001_add_notes failed: SQLSTATE[42")
    assert error.message.endswith(end)


def test_pending_migrations_are_applied_and_proved(make: Callable[..., Migrations]) -> None:
    before, after = state(**{"1_a": 1, "2_b": None, "3_c": None}), state(**{"1_a": 1, "2_b": 2, "3_c": 2})
    events = [
        started("2_b"),
        executed("2_b", CREATE),
        started("3_c"),
        answer(before=before, status=0, error=None, failed=None, after=after),
    ]
    release = Release([locked(before), *events])
    judged = [{"migration": "2_b", "sha256": "x", "statements": None}]

    result = apply_migrations(make(release), step=True, judged=judged)

    assert result == expected(
        True,
        applied=["2_b", "3_c"],
        batch=2,
        outcomes=[
            {"migration": "2_b", "outcome": "applied", "executed": [CREATE]},
            {"migration": "3_c", "outcome": "applied", "executed": []},
        ],
        diff={"before": {"pending": ["2_b", "3_c"]}, "after": {"pending": []}},
    )
    assert (release.requests[0]["step"], release.requests[0]["judged"]) == (True, judged)


def test_status_0_with_migrations_left_is_a_failure(make: Callable[..., Migrations]) -> None:
    before = state(**{"1_a": None, "2_b": None})

    error = broken(make(Release([locked(before), answer(status=0, error=None, after=before, output="Nothing to migrate.")])))

    assert error.message == "artisan migrate ended with status 0, but 2 migrations are still pending: 1_a, 2_b. Read its output."
    assert (error.details["changed"], error.details["pending"], error.details["output"]) == (False, ["1_a", "2_b"], "Nothing to migrate.")


def test_migration_that_declines_to_run_may_stay_pending(make: Callable[..., Migrations]) -> None:
    before = state(**{"1_a": None})
    events = [locked(before), {"event": "declined", "migration": "1_a"}, answer(status=0, error=None, after=before)]

    result = apply_migrations(make(Release(events)), step=False, judged=[])

    assert (result["pending"], result["outcomes"]) == (["1_a"], [{"migration": "1_a", "outcome": "declined", "executed": []}])


def test_broken_migration_is_reported_with_what_was_applied(make: Callable[..., Migrations]) -> None:
    before, after = state(**{"1_a": None, "2_b": None, "3_c": None}), state(**{"1_a": 1, "2_b": None, "3_c": None})
    final = answer(status=None, error=BROKEN, failed="2_b", after=after)

    error = broken(make(Release([locked(before), started("1_a"), started("2_b"), executed("2_b", "x"), final])))

    assert error.message == (
        'Migration 2_b failed: SQLSTATE[42P07]: Duplicate table: 7 ERROR:  relation "a" already exists. The statement: '
        'create table "a" ("id" int). PostgreSQL rolled it back whole. Applied before it: 1_a.'
    )
    assert error.details == {
        **expected(True, pending=["2_b", "3_c"], applied=["1_a"], batch=1),
        "outcomes": [
            {"migration": "1_a", "outcome": "applied", "executed": []},
            {"migration": "2_b", "outcome": "failed", "executed": ["x"]},
            {"migration": "3_c", "outcome": "pending", "executed": []},
        ],
        "diff": {"before": {"pending": ["1_a", "2_b", "3_c"]}, "after": {"pending": ["2_b", "3_c"]}},
        "failed_migration": "2_b",
        "argv": ARGV,
        "rc": 0,
        "stdout": "Printed by a migration.",
        "stderr": "",
    }


@pytest.mark.parametrize(
    ("ran", "changed", "remains"),
    [
        ([], False, "PostgreSQL does not roll it back, but nothing of it had been executed."),
        (["x", "y"], True, "PostgreSQL does not roll it back: what it had executed remains. Undo that before the next run: x; y."),
    ],
)
def test_broken_migration_without_transaction_leaves_its_work(
    make: Callable[..., Migrations], ran: list[str], changed: bool, remains: str
) -> None:
    before = state(**{"1_a": None})
    final = answer(status=None, error=BROKEN, failed="1_a", after=before)

    error = broken(make(Release([locked(before), started("1_a", False), *(executed("1_a", sql) for sql in ran), final])))

    assert f" {remains} No migration was applied." in error.message
    assert error.details["changed"] is changed


@pytest.mark.parametrize(
    ("rc", "reason"),
    [
        (124, "it did not end within 300 seconds and was stopped. Raise timeout, or find what it waits for."),
        (137, "PHP was killed: by somebody, for want of memory, or because it did not end within 300 seconds."),
        (255, "PHP ended with status 255: PHP Fatal error:  last."),
    ],
)
def test_run_that_ends_without_a_word_is_looked_after(make: Callable[..., Migrations], rc: int, reason: str) -> None:
    before = state(**{"1_a": None, "2_b": None})
    release = Release((rc, [locked(before), started("1_a"), started("2_b")]), looked(state(**{"1_a": 1, "2_b": None})))

    error = broken(make(release))

    assert error.message == f"Migration 2_b failed: {reason} PostgreSQL rolled it back whole. Applied before it: 1_a."
    assert [(request["action"], request.get("sql")) for request in release.requests] == [("run", None), ("plan", False)]


def test_run_that_was_killed_after_its_last_migration_blames_none(make: Callable[..., Migrations]) -> None:
    before = state(**{"1_a": None})

    error = broken(make(Release((137, [locked(before), started("1_a")]), looked(state(**{"1_a": 1})))))

    assert error.message.startswith("artisan migrate failed: PHP was killed")
    assert (error.details["failed_migration"], error.details["applied"]) == (None, ["1_a"])


def test_database_that_goes_away_meanwhile_leaves_the_outcome_open(make: Callable[..., Migrations]) -> None:
    release = Release([locked(state(**{"1_a": None})), started("1_a"), answer(error=REFUSED)], [answer(error=REFUSED)])

    error = broken(make(release))

    assert error.message == (
        f"Migration 1_a failed: {REFUSED['message']} (/vendor/Connector.php:70). What was applied is not known, because afterwards Laravel "
        "cannot use the database lms on 192.0.2.9:5432 (connection pgsql): Connection refused. Start the database, or correct DB_HOST and "
        "DB_PORT in .env."
    )
    assert error.details["changed"] is True


def test_lock_that_is_held_names_its_holder_and_the_way_out(make: Callable[..., Migrations]) -> None:
    holder = {"pid": 42, "user": "lms", "host": "192.0.2.7", "name": "lms migrations on app2", "since": "2026-11-25T13:00:00Z"}

    error = broken(make(Release([answer(locked_by=holder)])))

    assert error.message == (
        "Another run holds the lock on the migrations of the database lms on 192.0.2.9:5432 (connection pgsql): PostgreSQL session 42 of "
        "user lms from 192.0.2.7 since 2026-11-25T13:00:00Z (lms migrations on app2). Nothing was run. Wait until it has ended. If its run "
        "is gone, end the session: select pg_terminate_backend(42)"
    )
    assert (error.details["changed"], error.details["locked_by"]) == (False, holder)


def test_holder_that_cannot_be_seen_is_an_error_too(make: Callable[..., Migrations]) -> None:
    assert "It has just ended, or cannot be seen." in broken(make(Release([answer(locked_by={"pid": None})]))).message


def test_migrations_that_were_not_judged_do_not_run(make: Callable[..., Migrations]) -> None:
    before = state(**{"1_a": None})

    error = broken(make(Release([locked(before), answer(other_plan=True)])))

    assert error.message == (
        "The pending migrations are not the ones that were judged: another run, or a change of the release, came between. "
        "Pending now: 1_a. Run the task again."
    )


def test_lock_timeout_says_what_to_do(make: Callable[..., Migrations]) -> None:
    message = "SQLSTATE[55P03]: Lock not available: 7 ERROR:  canceling statement due to lock timeout"
    final = answer(error={"message": message, "text": message, "sql": CREATE}, failed="1_a", after=state(**{"1_a": None}))

    error = broken(make(Release([locked(state(**{"1_a": None})), started("1_a"), final])))

    assert f"{message}. Another session kept a table locked for longer than lock_timeout." in error.message


def test_database_that_cannot_be_used_is_named_with_the_way_out(make: Callable[..., Migrations]) -> None:
    with pytest.raises(LmsError) as caught:
        plan_migrations(make(Release([answer(error=REFUSED)])), runs=False)

    assert caught.value.message == (
        "Laravel cannot use the database lms on 192.0.2.9:5432 (connection pgsql): Connection refused. "
        "Start the database, or correct DB_HOST and DB_PORT in .env."
    )


def test_application_that_does_not_start_is_an_error_with_its_place(make: Callable[..., Migrations], tmp_path: Path) -> None:
    error = {"message": 'Class "Nowhere" not found', "text": 'Class "Nowhere" not found', "sql": None, "file": "/srv/x.php", "line": 3}

    with pytest.raises(LmsError) as caught:
        plan_migrations(make(Release([answer(error=error)])), runs=False)

    assert caught.value.message == f'Laravel in {tmp_path} cannot plan its migrations: Class "Nowhere" not found (/srv/x.php:3).'


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, {"database": None, "paths": [], "lock_timeout": 5, "statement_timeout": 300}),
        ({"database": "reporting"}, {"database": "reporting"}),
        ({"paths": ("a", "/srv/b")}, {"paths": ["a", "/srv/b"]}),
        ({"lock_timeout": 0, "statement_timeout": 0}, {"lock_timeout": 0, "statement_timeout": 0}),
        ({"name": "lms migrations on app1"}, {"name": "lms migrations on app1"}),
    ],
)
def test_every_option_reaches_the_script(make: Callable[..., Migrations], options: dict[str, Any], fields: dict[str, Any]) -> None:
    release = Release(looked(state()))

    plan_migrations(make(release, **options), runs=False)

    assert {name: release.requests[0][name] for name in fields} == fields


def test_script_reaches_php_by_standard_input_alone(make: Callable[..., Migrations], tmp_path: Path) -> None:
    release = Release(looked(state()))

    plan_migrations(make(release), runs=False)

    argv, options = release.calls[0]
    assert argv == ["timeout", "--kill-after=10", "300", *ARGV]
    assert (options["cwd"], options["umask"]) == (str(tmp_path), 0o027)


def test_php_that_cannot_be_run_is_named(make: Callable[..., Migrations]) -> None:
    def run_command(_argv: list[str], **_options: Any) -> tuple[int, str, str]:
        return (127, "", "timeout: failed to run command 'php': No such file or directory")

    with pytest.raises(LmsError, match="php cannot be run as php"):
        plan_migrations(make(run_command), runs=False)


def test_release_without_packages_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LmsError, match=r"has no vendor/autoload\.php\. Install its Composer packages first\."):
        plan_migrations(Migrations(Artisan(Release(), str(tmp_path))), runs=False)


def test_check_mode_accepts_a_release_that_is_not_there_yet(tmp_path: Path) -> None:
    artisan = Artisan(Release(), str(tmp_path / "next"))

    assert guard_release(artisan, check_mode=True) == f"There is no directory {tmp_path}/next. Set chdir to a release that exists."
    with pytest.raises(LmsError):
        guard_release(artisan, check_mode=False)


def test_check_mode_accepts_a_release_without_packages(tmp_path: Path) -> None:
    (tmp_path / "artisan").touch()

    assert guard_release(Artisan(Release(), str(tmp_path)), check_mode=True) == f"The release {tmp_path} has no vendor/autoload.php yet."


def test_skipped_result_has_the_same_keys() -> None:
    assert set(skipped_result("no")) == {*expected(False), "skipped"}
