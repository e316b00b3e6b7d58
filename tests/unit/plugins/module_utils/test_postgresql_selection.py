# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which entries of a dump make a table whole."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._postgresql_selection import (
    ContentsError,
    Entry,
    choose,
    find_tables,
    parse_contents,
    read_contents,
)

# What pg_restore 17 --list --verbose said of a real dump.
CONTENTS = (Path(__file__).parent / "data/pg_restore_contents.txt").read_text(encoding="utf-8")


def chosen(table: str, existing: dict[str, list[str]] | None = None) -> list[str]:
    """Return what is chosen for a table: kinds and the rest of the lines."""
    entries = parse_contents(CONTENTS)
    tables = find_tables(entries, [table], [table])
    return [re.sub(r"^\d+; \d+ \d+ | postgres$", "", entry.line) for entry in choose(entries, tables.values(), existing or {})]


def test_an_entry_knows_what_it_depends_on() -> None:
    listing = '; a comment\n9; 1259 16602 TABLE Grading Odd " name. postgres\n;\tdepends on: 8 956 8\n'

    assert parse_contents(listing) == [
        Entry(9, "TABLE", 'Grading Odd " name. postgres', frozenset({8, 956}), '9; 1259 16602 TABLE Grading Odd " name. postgres')
    ]


def test_a_table_brings_what_it_needs_and_what_belongs_to_it() -> None:
    assert chosen("public users") == [
        "EXTENSION - citext ",
        "EXTENSION - pg_trgm ",
        "TYPE public role_of_user",
        "FUNCTION public touch()",
        "TABLE public users",
        "COMMENT public TABLE users",
        "SEQUENCE public users_id_seq",
        "TABLE DATA public users",
        "SEQUENCE SET public users_id_seq",
        "CONSTRAINT public users users_mail_key",
        "CONSTRAINT public users users_pkey",
        "INDEX public users_name",
        "TRIGGER public users touching",
    ]


def test_a_key_to_a_table_that_is_not_restored_is_left_out() -> None:
    assert chosen('Grading Odd " name.') == [
        "SCHEMA - Grading",
        "DOMAIN public percent",
        'TABLE Grading Odd " name.',
        'TABLE DATA Grading Odd " name.',
        'CONSTRAINT Grading Odd " name. Odd " name._pkey',
    ]


def test_what_is_there_already_is_not_made_again() -> None:
    existing = {"SCHEMA": ["- Grading", "- public"], "DOMAIN": ["public percent"], "SEQUENCE": ["public activity_id_seq"]}

    assert chosen('Grading Odd " name.', existing) == [
        'TABLE Grading Odd " name.',
        'TABLE DATA Grading Odd " name.',
        'CONSTRAINT Grading Odd " name. Odd " name._pkey',
    ]
    # Whoever uses a sequence goes on where it stands.
    assert [line for line in chosen("public activity", existing) if "SEQUENCE" in line] == []


def test_a_partitioned_table_brings_all_its_partitions() -> None:
    lines = chosen("public activity")

    assert [line for line in lines if line.startswith(("TABLE public", "TABLE DATA", "TABLE ATTACH"))] == [
        "TABLE public activity",
        "TABLE public activity_2025",
        "TABLE public activity_2026",
        "TABLE public activity_2026_login",
        "TABLE public activity_2026_rest",
        "TABLE ATTACH public activity_2025",
        "TABLE ATTACH public activity_2026",
        "TABLE ATTACH public activity_2026_login",
        "TABLE ATTACH public activity_2026_rest",
        "TABLE DATA public activity_2025",
        "TABLE DATA public activity_2026_login",
        "TABLE DATA public activity_2026_rest",
    ]


def test_a_partition_does_not_bring_the_others() -> None:
    assert [line for line in chosen("public activity_2025") if line.startswith("TABLE")] == [
        "TABLE public activity_2025",
        "TABLE DATA public activity_2025",
    ]


def test_a_name_that_begins_as_another_one_does_is_not_taken_for_it() -> None:
    entries = parse_contents("1; 1259 1 TABLE public a postgres\n2; 1259 2 TABLE public a b postgres\n")

    assert find_tables(entries, ["public a"], ["public a", "public a b"]) == {"public a": 1}


def lister(directory: Path, needs: int) -> str:
    """Return a program that lists contents once it sees so many bytes."""
    program = directory / "pg_restore"
    program.write_text(f'#!/bin/sh\n[ "$(wc -c)" -ge {needs} ] && echo contents || {{ echo "unexpected end of file" >&2; exit 1; }}\n')
    program.chmod(0o755)
    return str(program)


def test_as_much_is_read_as_the_contents_need(tmp_path: Path) -> None:
    source = io.BytesIO(b"x" * 1000)

    beginning, listing = read_contents(source, lister(tmp_path, 100), first=30)

    assert (len(beginning), listing, len(source.read())) == (120, "contents\n", 880)


def test_a_dump_that_ends_before_its_contents_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContentsError, match=r"^unexpected end of file$"):
        read_contents(io.BytesIO(b"x" * 50), lister(tmp_path, 100), first=30)
