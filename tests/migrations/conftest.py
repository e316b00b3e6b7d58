"""One host with Laravel, PostgreSQL and MariaDB, in which the migrations of the sample LMS are run and broken.

LMS_KEEP=1 keeps it for the next run. LMS_NAME chooses another name than lms-migrations.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# pytest imports tests by their path, so that modules beside them are not found by themselves.
sys.path.insert(0, str(Path(__file__).parent))

pytest.register_assert_rewrite("laravel_host")

from laravel_host import DATABASES, Database, Host


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """Start the host and put the versions of the sample LMS on it; remove it at the end."""
    made = Host(f"{os.environ.get('LMS_NAME', 'lms-migrations')}-laravel")
    made.start()
    yield made
    if os.environ.get("LMS_KEEP") != "1":
        made.remove()


@pytest.fixture(params=sorted(DATABASES))
def database(request: pytest.FixtureRequest, host: Host) -> Database:
    """Return a database, once of PostgreSQL and once of MariaDB; empty, or as the mark migrated says."""
    made = Database(host, request.param)
    # The test before may have stopped it.
    made.start()
    mark = request.node.get_closest_marker("migrated")
    if mark:
        made.create_at(mark.args[0])
    else:
        made.create()
    return made


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line("markers", "migrated(version): the version that the database was migrated to")
