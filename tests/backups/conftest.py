"""The hosts on which backups are made, broken and brought back.

LMS_KEEP=1 keeps them for the next run. LMS_NAME chooses another beginning of their names than lms-backups.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# pytest imports tests by their path, so that modules beside them are not found by themselves.
sys.path.insert(0, str(Path(__file__).parent))

pytest.register_assert_rewrite("database_host")

from database_host import Host, host_name


def _hosts(suite: str) -> Iterator[Host]:
    made = Host(host_name(suite), suite)
    made.start()
    yield made
    if os.environ.get("LMS_KEEP") != "1":
        made.remove()


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """Start the host with PostgreSQL and MariaDB; remove it at the end."""
    yield from _hosts("trixie")


@pytest.fixture(scope="session")
def mysql_host() -> Iterator[Host]:
    """Start the host with MySQL; remove it at the end."""
    yield from _hosts("sid")
