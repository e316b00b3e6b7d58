# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is decided about MariaDB and MySQL without a server."""

from __future__ import annotations

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._database import DatabaseError
from ansible_collections.bitflow.lms.plugins.module_utils._database_mysql import (
    DumpWatch,
    cell_expression,
    counting_statement,
    lock_name,
    older,
)
from ansible_collections.bitflow.lms.plugins.module_utils._mysql_swap import rename_statement


def test_the_lock_of_every_database_fits_the_server() -> None:
    assert len(lock_name("x" * 64)) <= 64
    assert lock_name("a") != lock_name("b")


@pytest.mark.parametrize(
    ("client", "server", "expected"),
    [("10.11.19", "11.8.9", True), ("11.8.3", "11.8.9", False), ("9.7.4", "8.0.36", False), ("8.0.36", "8.4.1", True)],
)
def test_a_client_of_an_earlier_release_is_older(client: str, server: str, expected: bool) -> None:
    assert older(client, server) == expected


@pytest.mark.parametrize(
    ("data_type", "expected"),
    [
        ("bigint", "IFNULL(CAST(`c` AS CHAR), 'N')"),
        ("timestamp", "IFNULL(CAST(`c` AS CHAR), 'N')"),
        ("varchar", "IFNULL(CONCAT(LENGTH(`c`), ':', CAST(`c` AS BINARY)), 'N')"),
        ("longtext", "IFNULL(SHA2(`c`, 256), 'N')"),
        ("bit", "IFNULL(CAST(`c` + 0 AS CHAR), 'N')"),
        ("point", "IFNULL(SHA2(CONCAT(ST_SRID(`c`), ':', ST_AsWKB(`c`)), 256), 'N')"),
        ("vector", "IFNULL(SHA2(HEX(`c`), 256), 'N')"),
        ("json", "IFNULL(SHA2(CAST(`c` AS CHAR), 256), 'N')"),
    ],
)
def test_each_type_becomes_a_text_that_tells_values_apart(data_type: str, expected: str) -> None:
    assert cell_expression("c", data_type) == expected


def test_a_table_is_counted_and_summed_in_one_statement() -> None:
    assert counting_statement("lms", "users", ()) == "SELECT COUNT(*) FROM `lms`.`users`"
    assert counting_statement("lms", "users", [("id", "int")]) == (
        "SELECT COUNT(*), COALESCE(SUM(CAST(CONV(LEFT(SHA2(CONCAT(IFNULL(CAST(`id` AS CHAR), 'N'), ''), 256), 15), 16, 10) "
        "AS UNSIGNED)), 0) FROM `lms`.`users`"
    )


def test_all_tables_move_in_one_statement() -> None:
    assert rename_statement([("lms", "a", "old"), ("new", "a", "lms")]) == "RENAME TABLE `lms`.`a` TO `old`.`a`, `new`.`a` TO `lms`.`a`"


@pytest.mark.parametrize("cut", range(1, 40, 7))
def test_the_first_table_is_noticed_once_however_the_stream_is_cut(cut: int) -> None:
    noticed: list[int] = []
    watch = DumpWatch(lambda: noticed.append(watch.size))
    stream = b"-- MySQL dump 10.13\n--\n-- Table structure for table `a`\n--\nCREATE TABLE `a` (id int);\n-- Dump completed on 2026-11-28\n"

    for start in range(0, len(stream), cut):
        watch.take(stream[start : start + cut])
    watch.check()

    assert len(noticed) == 1
    assert watch.size == len(stream)


@pytest.mark.parametrize("stream", [b"", b"-- MySQL dump\nINSERT INTO `a` VALUES (1);\n", b"(1,'-- Dump completed');\n"])
def test_a_dump_without_its_end_is_none(stream: bytes) -> None:
    watch = DumpWatch(lambda: None)
    watch.take(stream)

    with pytest.raises(DatabaseError):
        watch.check()
