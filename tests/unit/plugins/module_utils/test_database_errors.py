# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What database errors mean, read from real messages of PostgreSQL and MariaDB through Laravel 8.83, 10.48 and 13.31."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._database_errors import (
    Connection,
    ConnectionProblem,
    driver_of_error,
    explain_connection_error,
    explain_limit,
    remains_of_failure,
)

DATA = Path(__file__).parent / "data" / "artisan"
ALL = pytest.mark.parametrize("laravel", ["laravel8", "laravel10", "laravel13"])
BOTH = pytest.mark.parametrize("laravel", ["laravel8", "laravel10"])
CREDENTIALS = "Correct DB_USERNAME and DB_PASSWORD in .env."
UNREACHABLE = "Start the database, or correct DB_HOST and DB_PORT in .env."
POOLED = "A pooler shares its sessions, and migrations need one of their own: name a connection past the pooler with database."
NO_DATABASE = "Create the database, or correct DB_DATABASE in .env."


def captured(laravel: str, name: str) -> str:
    return (DATA / laravel / f"{name}.txt").read_text(encoding="utf-8")


@BOTH
@pytest.mark.parametrize(
    ("name", "host", "port", "reason", "advice"),
    [
        ("wrong_password", "127.0.0.1", "5432", 'password authentication failed for user "lms_user"', CREDENTIALS),
        ("refused", "127.0.0.1", "5999", "Connection refused", UNREACHABLE),
        ("no_database", "127.0.0.1", "5432", 'database "nope" does not exist', NO_DATABASE),
        ("unknown_host", "db.invalid", "5432", 'could not translate host name "db.invalid"', "Correct DB_HOST in .env."),
    ],
)
def test_postgresql_says_where_it_was_sought(laravel: str, name: str, host: str, port: str, reason: str, advice: str) -> None:
    known = Connection("pgsql", "pgsql", "192.0.2.9", "5432", "lms")

    problem = explain_connection_error(captured(laravel, f"pgsql_status_{name}"), known)

    assert problem == ConnectionProblem(Connection("pgsql", "pgsql", host, port, "lms"), reason, advice)


@BOTH
@pytest.mark.parametrize(
    ("name", "host", "reason", "advice"),
    [
        ("wrong_password", "192.0.2.9", "Access denied for user 'lms_user'@'localhost' (using password: YES)", CREDENTIALS),
        ("refused", "192.0.2.9", "Connection refused", UNREACHABLE),
        ("no_database", "192.0.2.9", "Access denied for user 'lms_user'@'localhost' to database 'nope'", NO_DATABASE),
        ("unknown_host", "db.invalid", "getaddrinfo for db.invalid failed", "Correct DB_HOST in .env."),
    ],
)
def test_mysql_does_not_say_where_so_the_environment_does(laravel: str, name: str, host: str, reason: str, advice: str) -> None:
    known = Connection("mysql", "mysql", "192.0.2.9", "3306", "lms")

    problem = explain_connection_error(captured(laravel, f"mysql_status_{name}"), known)

    assert problem == ConnectionProblem(Connection("mysql", "mysql", host, "3306", "lms"), reason, advice)


@pytest.mark.parametrize(
    ("name", "found", "reason", "advice"),
    [
        (
            "pgsql_status_wrong_password",
            Connection("pgsql", "pgsql", "127.0.0.1", "5432", "lms"),
            'password authentication failed for user "lms_user"',
            CREDENTIALS,
        ),
        (
            "pgsql_status_no_database",
            Connection("pgsql", "pgsql", "127.0.0.1", "5432", "nope"),
            'database "nope" does not exist',
            NO_DATABASE,
        ),
        ("mysql_status_refused", Connection("mysql", "mysql", "127.0.0.1", "3999", "lms"), "Connection refused", UNREACHABLE),
        (
            "mysql_status_unknown_host",
            Connection("mysql", "mysql", "db.invalid", "3306", "lms"),
            "getaddrinfo for db.invalid failed",
            "Correct DB_HOST in .env.",
        ),
    ],
)
def test_new_laravel_says_where_it_sought(name: str, found: Connection, reason: str, advice: str) -> None:
    problem = explain_connection_error(captured("laravel13", name), Connection("other", "mysql", "192.0.2.9", "1", "other"))

    assert problem == ConnectionProblem(found, reason, advice)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("could not find driver (Connection: pgsql, SQL: select 1)", "Install the PHP extension of the database: php-pgsql or php-mysql."),
        ("SQLSTATE[08006] [7] FATAL:  the database system is starting up", "Wait until the database is up."),
        ("SQLSTATE[08006] [7] FATAL:  sorry, too many clients already", "Free connections, or raise the database's limit."),
        ("Database file at path [/x.sqlite] does not exist.", "Create the file, or correct DB_DATABASE in .env."),
        ("SQLSTATE[08006] [7] connection failed: FATAL:  unsupported startup parameter in options: lock_timeout", POOLED),
        ("unsupported startup parameter: the session has another lock_timeout", POOLED),
        ("SQLSTATE[HY000] [2002] No such file or directory", UNREACHABLE),
        ("SQLSTATE[HY000] [2002] something new", UNREACHABLE),
    ],
)
def test_way_out_of_other_connection_errors(text: str, advice: str) -> None:
    problem = explain_connection_error(text, Connection())

    assert problem is not None
    assert problem.advice == advice


@ALL
@pytest.mark.parametrize("name", ["pgsql_migrate_broken", "mysql_migrate_broken", "unknown_command", "pgsql_status_empty"])
def test_other_failures_are_no_connection_error(laravel: str, name: str) -> None:
    assert explain_connection_error(captured(laravel, name), Connection()) is None


@pytest.mark.parametrize(
    ("connection", "words"),
    [
        (Connection(), "the database"),
        (Connection("pgsql", "pgsql", "db1", "5432", "lms"), "the database lms on db1:5432 (connection pgsql)"),
        (Connection(name="reporting"), "the database (connection reporting)"),
    ],
)
def test_connection_in_words(connection: Connection, words: str) -> None:
    assert connection.description() == words


@ALL
@pytest.mark.parametrize("driver", ["pgsql", "mysql"])
@pytest.mark.parametrize("name", ["migrate_broken", "status_wrong_password", "status_refused", "status_no_database"])
def test_driver_is_told_by_the_form_of_its_errors(laravel: str, driver: str, name: str) -> None:
    assert driver_of_error(captured(laravel, f"{driver}_{name}")) == driver


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ('SQLSTATE[HY000]: General error: 1 table "students" already exists (Connection: sqlite, SQL: x)', "sqlite"),
        ("SQLSTATE[42S01]: [Microsoft][ODBC Driver 18 for SQL Server]There is already an object", "sqlsrv"),
        ('Class "Nowhere" not found', None),
    ],
)
def test_driver_of_other_errors(text: str, driver: str | None) -> None:
    assert driver_of_error(text) == driver


@pytest.mark.parametrize(
    ("rolled_back", "executed", "sentence"),
    [
        (True, ["x"], "PostgreSQL rolled it back whole."),
        (False, [], "PostgreSQL does not roll it back, but nothing of it had been executed."),
        (False, ["x", "y"], "PostgreSQL does not roll it back: what it had executed remains. Undo that before the next run: x; y."),
        (
            False,
            list("abcdefghijkl"),
            "PostgreSQL does not roll it back: what it had executed remains. Undo that before the next run: "
            "a; b; c; d; e; f; g; h; i; j; and 2 more.",
        ),
    ],
)
def test_what_a_broken_migration_leaves(rolled_back: bool, executed: list[str], sentence: str) -> None:
    assert remains_of_failure("PostgreSQL", rolled_back, executed) == sentence


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("SQLSTATE[55P03]: Lock not available: 7 ERROR:  canceling statement due to lock timeout", "lock_timeout"),
        ("SQLSTATE[HY000]: General error: 1205 Lock wait timeout exceeded; try restarting transaction", "lock_timeout"),
        ("SQLSTATE[57014]: Query canceled: 7 ERROR:  canceling statement due to statement timeout", "statement_timeout"),
        ("SQLSTATE[70100]: <<Unknown error>>: 1969 Query execution was interrupted (max_statement_time exceeded)", "statement_timeout"),
    ],
)
def test_limit_that_was_reached_names_its_option(text: str, option: str) -> None:
    assert str(explain_limit(text)).endswith(f"or raise {option}.")


def test_other_errors_reached_no_limit() -> None:
    assert explain_limit(captured("laravel10", "pgsql_migrate_broken")) is None
