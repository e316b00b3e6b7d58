# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab: an AWS in this process, a load balancer that carries traffic, and a table of what users met in each scenario."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ansible_collections.bitflow.lms.tests.lab.elb_model import World, aws
from ansible_collections.bitflow.lms.tests.lab.traffic_lab import Lab
from ansible_collections.bitflow.lms.tests.lab.users import Count

COLUMNS = ("scenario", "guards", "requests", "failed", "end")
# Writes a row of the table: what users met, whether our code or bare calls did it, and how it ended.
Report = Callable[[Count, str, str], None]


@pytest.fixture
def world() -> Iterator[World]:
    """Put AWS into this process."""
    # So that what moto computes does not keep the traffic waiting.
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    with aws() as made:
        yield made
    sys.setswitchinterval(before)


@pytest.fixture
def lab(world: World) -> Iterator[Lab]:
    """Return a load balancer whose blue serves users."""
    with Lab(world) as made:
        yield made


@pytest.fixture
def report(request: pytest.FixtureRequest, record_property: Callable[[str, Any], None]) -> Report:
    """Return what writes a row of the table that stands at the end of the run."""

    def write(count: Count, guards: str, end: str) -> None:
        scenario = request.node.name.removeprefix("test_").replace("_", " ")
        record_property("scenario", dict(zip(COLUMNS, (scenario, guards, count.total, count.failed, end))))

    return write


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table, also where several processes ran the tests."""
    rows = [
        value
        for reports in terminalreporter.stats.values()
        for found in reports
        if getattr(found, "when", "") == "call"
        for name, value in found.user_properties
        if name == "scenario"
    ]
    if not rows:
        return
    rows.sort(key=lambda row: (row["guards"], row["scenario"]))
    widths = {column: max(len(column), *(len(str(row[column])) for row in rows)) for column in COLUMNS}
    terminalreporter.section("traffic: what users met")
    for row in [dict(zip(COLUMNS, COLUMNS)), *rows]:
        terminalreporter.write_line("  ".join(str(row[column]).ljust(widths[column]) for column in COLUMNS).rstrip())
    terminalreporter.write_line(f"{sum(row['requests'] for row in rows)} requests in {len(rows)} scenarios")
