# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Roles and properties of databases: what is taken from pg_dumpall, and what is written for the server."""

from __future__ import annotations

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._postgresql_roles import (
    clearing_statements,
    identifier,
    joined,
    literal,
    property_statements,
    role_names,
    role_statements,
)

# As pg_dumpall 17 prints it, shortened.
GLOBALS = r"""--
-- PostgreSQL database cluster dump
--

\restrict hYd3

SET default_transaction_read_only = off;

CREATE ROLE app;
ALTER ROLE app WITH NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB LOGIN NOREPLICATION NOBYPASSRLS PASSWORD 'SCRAM-SHA-256$4096:a==$b=:c=';
ALTER ROLE app SET work_mem TO '8MB';
CREATE ROLE "Odd "" role";
ALTER ROLE "Odd "" role" WITH NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB NOLOGIN NOREPLICATION NOBYPASSRLS;
COMMENT ON ROLE "Odd "" role" IS 'two
CREATE ROLE trap;
-- lines; and a ''quote''';
CREATE ROLE postgres;
ALTER ROLE postgres WITH SUPERUSER INHERIT CREATEROLE CREATEDB LOGIN REPLICATION BYPASSRLS;

GRANT "Odd "" role" TO app WITH ADMIN OPTION, INHERIT TRUE GRANTED BY postgres;
GRANT "Odd "" role" TO postgres WITH INHERIT TRUE GRANTED BY postgres;
GRANT gone TO app WITH INHERIT TRUE GRANTED BY postgres;
ALTER ROLE app IN DATABASE lms SET search_path TO 'x';

\unrestrict hYd3
"""


def test_roles_are_found_by_name_and_not_within_texts() -> None:
    assert role_names(GLOBALS) == ['Odd " role', "app", "postgres"]


def test_a_role_comes_back_as_it_was_and_no_other_is_touched() -> None:
    assert role_statements(GLOBALS, ["app", 'Odd " role'], ["postgres"], 17) == [
        "CREATE ROLE app",
        "ALTER ROLE app WITH NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB LOGIN NOREPLICATION NOBYPASSRLS "
        "PASSWORD 'SCRAM-SHA-256$4096:a==$b=:c='",
        "ALTER ROLE app SET work_mem TO '8MB'",
        'CREATE ROLE "Odd "" role"',
        'ALTER ROLE "Odd "" role" WITH NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB NOLOGIN NOREPLICATION NOBYPASSRLS',
        "COMMENT ON ROLE \"Odd \"\" role\" IS 'two\nCREATE ROLE trap;\n-- lines; and a ''quote'''",
        'GRANT "Odd "" role" TO app WITH ADMIN OPTION, INHERIT TRUE',
    ]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("WITH ADMIN OPTION, INHERIT TRUE GRANTED BY postgres", "GRANT a TO b WITH ADMIN OPTION"),
        ("WITH INHERIT FALSE, SET FALSE GRANTED BY postgres", "GRANT a TO b"),
        ("GRANTED BY postgres", "GRANT a TO b"),
    ],
)
def test_an_older_server_knows_fewer_options_of_a_membership(written: str, expected: str) -> None:
    assert role_statements(f"CREATE ROLE a;\nGRANT a TO b {written};\n", ["b"], ["a"], 15) == [expected]


def test_properties_become_statements() -> None:
    properties = {
        "owner": "app",
        "connection_limit": 20,
        "privileges": [
            {"role": "app", "privilege": "CREATE", "grantable": False},
            {"role": "report", "privilege": "CONNECT", "grantable": True},
            {"role": None, "privilege": "TEMPORARY", "grantable": False},
        ],
        "settings": [
            {"role": None, "value": "DateStyle=ISO, DMY"},
            {"role": "app", "value": 'search_path="Own", public'},
            {"role": None, "value": "app.greeting=it's a = b"},
        ],
    }

    assert property_statements("lms", properties) == [
        'ALTER DATABASE "lms" OWNER TO "app"',
        'ALTER DATABASE "lms" CONNECTION LIMIT 20',
        'REVOKE ALL ON DATABASE "lms" FROM PUBLIC',
        'GRANT CONNECT ON DATABASE "lms" TO "report" WITH GRANT OPTION',
        'GRANT TEMPORARY ON DATABASE "lms" TO PUBLIC',
        'ALTER DATABASE "lms" SET "DateStyle" TO \'ISO, DMY\'',
        'ALTER ROLE "app" IN DATABASE "lms" SET "search_path" TO "Own", public',
        'ALTER DATABASE "lms" SET "app"."greeting" TO \'it\'\'s a = b\'',
    ]
    assert clearing_statements("lms", properties) == [
        'ALTER DATABASE "lms" RESET ALL',
        'ALTER ROLE "app" IN DATABASE "lms" RESET ALL',
        'REVOKE ALL ON DATABASE "lms" FROM "report" CASCADE',
    ]


def test_a_database_with_nothing_of_its_own_needs_nothing() -> None:
    assert property_statements("lms", {}) == []
    assert clearing_statements("lms", {"owner": "app", "privileges": None, "settings": []}) == []


def test_names_and_texts_are_quoted() -> None:
    assert identifier('a"b') == '"a""b"'
    assert [literal(text) for text in ("it's", "back\\slash")] == ["'it''s'", "E'back\\\\slash'"]


def test_many_names_are_shortened() -> None:
    assert joined([str(number) for number in range(12)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
