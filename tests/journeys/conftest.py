"""The environment that the journeys run in: the demo's four hosts, once more, beside those of the developer.

LMS_KEEP=1 keeps it for the next run. LMS_NAME, LMS_NETWORK and LMS_PORT choose another one than lms-journey.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# pytest imports tests by their path, so that modules beside them are not found by themselves.
sys.path.insert(0, str(Path(__file__).parent))

# So that its assertions explain themselves as those of the tests do.
pytest.register_assert_rewrite("environment")

from environment import Environment, difference


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let those come last that divide the hosts of the environment."""
    items.sort(key=lambda item: item.path.stem == "test_two_colours")


@pytest.fixture(scope="session")
def environment() -> Iterator[Environment]:
    """Make the environment as a newcomer would, with v1 live; remove it at the end."""
    made = Environment()
    outcome = made.demo()
    assert outcome.status == 0, outcome.output[-8000:]
    # What an earlier run left in the database of an environment that was kept.
    made.in_database(
        "alter table courses drop column if exists level, drop column if exists language;"
        "alter table students drop column if exists given_name, drop column if exists family_name;"
        "delete from migrations where migration like '2026%'; delete from failed_jobs"
    )
    yield made
    if os.environ.get("LMS_KEEP") != "1":
        outcome = made.demo("down")
        assert outcome.status == 0, outcome.output


@pytest.fixture
def unchanged(environment: Environment) -> Iterator[None]:
    """Assert that a test left everything that serves as it was."""
    before = environment.state()
    yield
    assert difference(before, environment.state()) == []
