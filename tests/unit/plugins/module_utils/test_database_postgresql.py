# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of PostgreSQL and its clients, and how their answers are understood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._database import Login, Table
from ansible_collections.bitflow.lms.plugins.module_utils._database_postgresql import (
    PostgreSQL,
    contents_names,
    create_statement,
    dump_of,
    restore_stages,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import Stage
from ansible_collections.bitflow.lms.plugins.module_utils._postgresql_clients import Clients
from ansible_collections.bitflow.lms.plugins.module_utils._postgresql_session import (
    conninfo,
    environment_of,
    password_file,
    reason_of,
)
from ansible_collections.bitflow.lms.plugins.module_utils._postgresql_tables import Relation, count_statement, excluded, merged

BASE: dict[str, Any] = {"environment": {"PGHOST": "db.example.com"}, "descriptors": (7,), "user": "postgres"}
KEEPALIVES = "keepalives_idle=30 keepalives_interval=10 keepalives_count=3"
USERS = Relation("public", "users", ("public", "users"), '"id", name')
SESSIONS = Relation("public", "sessions", ("public", "sessions"), "id", left_out=True)


@pytest.fixture
def clients(tmp_path: Path) -> Clients:
    """Return clients of PostgreSQL 15 and 17."""
    for major in ("15", "17"):
        (tmp_path / major / "bin").mkdir(parents=True)
        (tmp_path / major / "bin/pg_dump").touch()
    return Clients(tmp_path, lambda _name: None, lambda program: f"{Path(program).parts[-3]}.1")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            'psql: error: connection to server at "127.0.0.1", port 5432 failed: FATAL:  password authentication failed for user "x"\n'
            'connection to server at "127.0.0.1", port 5432 failed: FATAL:  password authentication failed for user "x"',
            'password authentication failed for user "x"',
        ),
        (
            'psql: error: connection to server at "192.0.2.1", port 5432 failed: Connection refused\n\tIs the server running on that host?',
            "Connection refused",
        ),
        ('psql: error: could not translate host name "x" to address: Name or service not known', None),
        ('ERROR:  relation "nothing" does not exist\nLINE 1: select', 'relation "nothing" does not exist'),
        ("FEHLER:  Relation »nichts« existiert nicht", "Relation »nichts« existiert nicht"),
        ("FATAL:  terminating connection due to administrator command", "terminating connection due to administrator command"),
        ("", ""),
    ],
)
def test_a_reason_is_what_the_client_s_message_is_about(said: str, reason: str | None) -> None:
    assert reason_of(said) == ('could not translate host name "x" to address: Name or service not known' if reason is None else reason)


def test_a_name_never_becomes_a_setting_of_the_connection() -> None:
    assert conninfo("it's host=evil\\") == f"dbname='it\\'s host=evil\\\\' {KEEPALIVES}"


def test_a_password_is_escaped_as_clients_read_it() -> None:
    assert password_file("a:b\\c") == "*:*:*:*:a\\:b\\\\c\n"


def test_the_environment_says_where_the_server_is_and_nothing_secret() -> None:
    login = Login("postgresql", "db.example.com", 5433, "backup", "secret", "", "verify-full", "/etc/ssl/ca.pem")

    environment = environment_of(login)

    assert environment.pop("PGAPPNAME").startswith("bitflow.lms ")
    assert environment == {
        "PGHOST": "db.example.com",
        "PGPORT": "5433",
        "PGUSER": "backup",
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": "/etc/ssl/ca.pem",
        "PGCONNECT_TIMEOUT": "15",
    }
    assert environment_of(Login("postgresql", unix_socket="/run/postgresql"))["PGHOST"] == "/run/postgresql"


def test_programs_get_the_password_by_descriptor() -> None:
    base = PostgreSQL(Login("postgresql", password="secret")).base

    (descriptor,) = base["descriptors"]
    assert base["environment"]["PGPASSFILE"] == f"/proc/self/fd/{descriptor}"
    assert "secret" not in repr(base)


def test_no_user_of_this_host_is_said() -> None:
    with pytest.raises(LmsError, match=r"^This host has no user nobody-there, as whom the clients were to run \(login_system_user\)\.$"):
        str(PostgreSQL(Login("postgresql", password="secret", system_user="nobody-there")).base)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [(["sessions"], True), (["sess*"], True), (["public.sess*"], True), (["cache.*"], False), (["Sessions"], False), ([], False)],
)
def test_patterns_are_of_names_with_or_without_their_schema(patterns: list[str], expected: bool) -> None:
    assert excluded(patterns, "public", "sessions") is expected


def test_tables_are_counted_in_one_round_trip() -> None:
    odd = Relation('O"dd', "a b", ('O"dd', "a b"), "")

    assert count_statement([USERS, odd], checksums=True) == (
        'select 0 as index, count(*) as rows, coalesce(sum(hashtextextended(row("id", name)::text, 0)::numeric), 0)::text as checksum '
        'from only "public"."users"\nunion all '
        "select 1 as index, count(*) as rows, coalesce(sum(hashtextextended(row()::text, 0)::numeric), 0)::text as checksum "
        'from only "O""dd"."a b"'
    )
    assert count_statement([USERS], checksums=False) == (
        'select 0 as index, count(*) as rows, null::text as checksum from only "public"."users"'
    )


def test_partitions_are_added_up_and_what_is_left_out_is_only_named() -> None:
    parts = [Relation("public", f"log_{year}", ("public", "log"), "id") for year in (2025, 2026)]

    assert merged([*parts, SESSIONS, USERS], {0: (5, "10"), 1: (7, "-3"), 3: (2, None)}) == [
        Table("public", "log", 12, "7", "sum-hashtextextended"),
        Table("public", "sessions"),
        Table("public", "users", 2),
    ]


def test_a_new_pg_dump_compresses_itself(clients: Clients) -> None:
    dump = dump_of(clients, BASE, 17, "lms", "0A-1", left_out=[SESSIONS], lock_timeout=2.5, level=3, threads=2)

    assert dump.stages == [
        Stage(
            [
                clients.program("pg_dump", 17),
                "--format=custom",
                "--compress=zstd:3",
                "--snapshot=0A-1",
                "--no-password",
                "--lock-wait-timeout=2500",
                '--exclude-table-data="public"."sessions"',
                f"--dbname=dbname='lms' {KEEPALIVES}",
            ],
            **BASE,
        )
    ]
    assert (dump.suffix, dump.compression, dump.version) == (".dump", {"method": "zstd", "level": 3, "where": "inside"}, "17.1")


def test_an_old_pg_dump_is_compressed_by_zstd(clients: Clients) -> None:
    dump = dump_of(clients, BASE, 15, "lms", "0A-1", left_out=[], lock_timeout=0, level=3, threads=2)
    dump.taps[0](b"12345")

    assert dump.stages[0].argv[:3] == [clients.program("pg_dump", 15), "--format=custom", "--compress=0"]
    assert dump.stages[1] == Stage(["zstd", "--quiet", "--stdout", "-3", "--threads=2", "-"])
    assert (dump.suffix, dump.compression, dump.raw_size()) == (".dump.zst", {"method": "zstd", "level": 3, "where": "around"}, 5)


@pytest.mark.parametrize(
    ("described", "server", "expected"),
    [
        ({}, 17, ""),
        ({"encoding": "UTF8", "collation": "C.UTF-8"}, 14, " encoding 'UTF8' lc_collate 'C.UTF-8' lc_ctype 'C.UTF-8'"),
        (
            {"encoding": "UTF8", "collation": "C", "ctype": "de_DE.UTF-8", "locale_provider": "icu", "locale": "de", "icu_rules": "&a"},
            17,
            " encoding 'UTF8' locale_provider \"icu\" lc_collate 'C' lc_ctype 'de_DE.UTF-8' icu_locale 'de' icu_rules '&a'",
        ),
        (
            {"encoding": "UTF8", "collation": "C", "ctype": "C", "locale_provider": "builtin", "locale": "C.UTF-8"},
            17,
            " encoding 'UTF8' locale_provider \"builtin\" lc_collate 'C' lc_ctype 'C' builtin_locale 'C.UTF-8'",
        ),
    ],
)
def test_a_database_is_created_as_it_was(described: dict[str, Any], server: int, expected: str) -> None:
    assert create_statement("lms", described, server) == f'create database "lms" template template0{expected}'


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["public.users"], ["public users"]),
        (["courses"], ["Grading courses"]),
        (["users"], "tables has users, which is in several schemas, so name it with its schema."),
        (["nothing"], "tables has nothing, which is not in the backup."),
    ],
)
def test_tables_are_named_with_or_without_their_schema(wanted: list[str], expected: list[str] | str) -> None:
    manifest = {"tables": [{"schema": s, "name": n} for s, n in (("public", "users"), ("Grading", "users"), ("Grading", "courses"))]}

    if isinstance(expected, list):
        assert contents_names(manifest, wanted) == expected
    else:
        with pytest.raises(LmsError) as caught:
            contents_names(manifest, wanted)
        assert caught.value.message == expected


def test_a_dump_is_restored_by_pg_restore_alone(clients: Clients) -> None:
    program = clients.program("pg_restore", 17)

    assert restore_stages(clients, BASE, 17, "lms", 17) == [
        Stage([program, "--exit-on-error", "--no-password", f"--dbname=dbname='lms' {KEEPALIVES}"], **BASE)
    ]
    assert restore_stages(clients, BASE, 17, "lms", 17, owners=False, selecting=["python3", "/proc/self/fd/8"])[0].argv == [
        *("python3", "/proc/self/fd/8", program),
        *("--exit-on-error", "--no-owner", "--no-privileges", "--no-password", f"--dbname=dbname='lms' {KEEPALIVES}"),
    ]


def test_an_older_server_does_not_hear_what_it_does_not_know(clients: Clients) -> None:
    assert [stage.argv for stage in restore_stages(clients, BASE, 15, "lms", 17)] == [
        [clients.program("pg_restore", 17), "--exit-on-error", "--file=-"],
        ["sed", "--expression", "1,60{/^SET transaction_timeout = /d}"],
        [
            *(clients.program("psql", 17), "--no-psqlrc", "--no-password", "--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null"),
            f"--dbname=dbname='lms' {KEEPALIVES}",
        ],
    ]
