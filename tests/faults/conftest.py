"""The environment that faults are injected into: that of the journeys, which LMS_KEEP=1 keeps for the next run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# pytest imports tests by their path, so that modules beside them are not found by themselves.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "journeys")]

# So that their assertions explain themselves as those of the tests do.
pytest.register_assert_rewrite("environment", "injection")

from environment import Environment
from injection import service


@pytest.fixture(scope="session")
def environment() -> Iterator[Environment]:
    """Make the environment unless the journeys have left theirs, with a version live that is one of the two good ones."""
    made = Environment()
    if sorted(made.running_hosts()) != ["app1", "app2", "data", "lb"]:
        outcome = made.demo()
        assert outcome.status == 0, outcome.output[-8000:]
    if {record["metadata"]["version"] for record in made.releases("app1", "backend").values()} < {"v1", "v2"}:
        made.deploy(made.other_version())
    yield made
    if os.environ.get("LMS_KEEP") != "1":
        outcome = made.demo("down")
        assert outcome.status == 0, outcome.output


@pytest.fixture
def served_as_before(environment: Environment) -> Iterator[None]:
    """Assert that each host serves after a test what it served before it, whole."""
    before = service(environment)
    yield
    assert service(environment) == before


@pytest.fixture
def without_names(environment: Environment) -> Iterator[None]:
    """Undo the migrations from v5-expand on, before and after, so that they are pending; the journeys leave them all."""
    undo = (
        "alter table students drop column if exists given_name, drop column if exists family_name, add column if not exists name text;"
        "update students set name = 'Somebody' where name is null; alter table students alter column name set not null;"
        "delete from migrations where migration >= '2026_04'"
    )
    environment.in_database(undo)
    yield
    environment.in_database(undo)
