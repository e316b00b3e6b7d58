# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module of replication groups as Ansible runs it, and what its documentation says."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import yaml
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import ACTIONS
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock
from ansible_collections.bitflow.lms.plugins.modules import elasticache_replication_group as module
from ansible_collections.bitflow.lms.tests.lab.elasticache_model import elasticache
from ansible_collections.bitflow.lms.tests.lab.elb_model import FakeClock, aws
from ansible_collections.bitflow.lms.tests.unit.plugins.modules.test_alb_modules import call, documented, specified

OPTIONS = {"name": "lms", "shards": 3, "replicas": 2, "engine_version": "7.0"}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put an ElastiCache into this process, whose groups take as long as the module sleeps."""
    clock = FakeClock()
    monkeypatch.setattr(module, "Clock", lambda: Clock(clock.now, clock.sleep))
    with aws(), elasticache(clock.now):
        yield


def test_the_module_plans_does_and_does_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    planned = call(module, capsys, check_mode=True, **OPTIONS)
    done = call(module, capsys, **OPTIONS)
    again = call(module, capsys, **OPTIONS)

    assert [result["changed"] for result in (planned, done, again)] == [True, True, False]
    assert planned["diff"] == done["diff"]
    assert set(planned) == set(done) == set(again)


def test_a_failure_is_told_by_the_module(capsys: pytest.CaptureFixture[str]) -> None:
    result = call(module, capsys, **OPTIONS, state="absent")

    assert (result["failed"], result["msg"][:36]) == (True, "lms would be deleted with its data. ")


def test_every_option_is_documented_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert documented(yaml.safe_load(module.DOCUMENTATION)["options"]) == specified(module, monkeypatch)


def test_every_key_of_the_result_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    found = call(module, capsys, **OPTIONS)

    returned = yaml.safe_load(module.RETURN)
    assert set(found) - {"changed", "diff"} == set(returned)
    assert set(found["endpoint"]) == set(returned["endpoint"]["contains"])


def test_the_note_names_what_iam_has_to_allow() -> None:
    notes = " ".join(yaml.safe_load(module.DOCUMENTATION)["notes"])

    assert tuple(re.findall(r"C\((elasticache:\w+)\)", notes)) == ACTIONS["elasticache_replication_group"]
