# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which version of PostgreSQL's clients is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._database import DatabaseError
from ansible_collections.bitflow.lms.plugins.module_utils._postgresql_clients import Clients, for_dump, for_restore, major_of


@pytest.mark.parametrize(
    ("installed", "server", "expected"),
    [([15, 17], 15, 15), ([15, 17], 16, 17), ([17, 18], 16, 17), ([15], 17, None), ([], 17, None)],
)
def test_a_server_is_dumped_by_its_own_version_or_the_next_newer_one(installed: list[int], server: int, expected: int | None) -> None:
    assert for_dump(installed, server) == expected


@pytest.mark.parametrize(
    ("installed", "dumped_with", "server", "expected"),
    [
        ([15, 17], 15, 15, 15),
        ([15, 17], 15, 17, 17),
        ([15, 17], 17, 15, 17),
        ([16, 17], 15, 18, 17),
        ([15], 17, 17, None),
    ],
)
def test_a_dump_is_restored_by_a_version_that_can_read_it(
    installed: list[int], dumped_with: int, server: int, expected: int | None
) -> None:
    assert for_restore(installed, dumped_with, server) == expected


def clients(directory: Path, *majors: int, on_path: str | None = None) -> Clients:
    """Return clients of these versions."""
    for major in majors:
        programs = directory / str(major) / "bin"
        programs.mkdir(parents=True)
        (programs / "pg_dump").touch()
    return Clients(directory, lambda _name: on_path, lambda program: "16.4" if program == on_path else f"{Path(program).parts[-3]}.1")


def test_versions_lie_beside_each_other(tmp_path: Path) -> None:
    found = clients(tmp_path, 15, 17, on_path="/usr/bin/pg_dump")

    assert (found.majors, found.newest) == ([15, 17], 17)
    assert found.program("psql", 15) == str(tmp_path / "15/bin/psql")
    assert found.version(17) == "17.1"


def test_elsewhere_the_one_on_the_path_is_taken(tmp_path: Path) -> None:
    found = clients(tmp_path, on_path="/opt/postgresql/pg_dump")

    assert (found.majors, found.program("pg_restore", 16)) == ([16], "/opt/postgresql/pg_restore")


def test_too_old_clients_are_named_with_the_way_out(tmp_path: Path) -> None:
    found = clients(tmp_path, 15)

    with pytest.raises(DatabaseError) as dumping:
        found.dumping(17)
    with pytest.raises(DatabaseError) as restoring:
        found.restoring(16, 15)

    assert dumping.value.message == (
        "The server is PostgreSQL 17, and the newest client on this host is 15, which cannot dump it: install the package "
        "postgresql-client-17."
    )
    assert restoring.value.message == (
        "The dump was made by pg_dump 16, and the newest client on this host is 15, which cannot read it: install the package "
        "postgresql-client-16."
    )


def test_no_client_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"^No client of PostgreSQL is installed on this host: install the package postgresql-client.$"):
        clients(tmp_path).dumping(17)


def test_a_major_version_is_the_first_number() -> None:
    assert [major_of(version) for version in ("17.11", "18beta1", "")] == [17, 18, 0]
