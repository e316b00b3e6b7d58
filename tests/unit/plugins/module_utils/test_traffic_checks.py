# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollout asks besides the load balancer, and what the answers mean."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._expectation import Expectation
from ansible_collections.bitflow.lms.plugins.module_utils._http_probe import Probe, Response
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_checks import alarm_check, query_check, smoke_check
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_rollout import BAD, GOOD, UNKNOWN, Verdict

SMOKE: dict[str, Any] = {
    "url": "https://{colour}.test.example.com/up",
    "headers": {"X-Colour": "{colour}"},
    "connect_to": "192.0.2.1:443",
    "ca_path": "/etc/ssl/authority.pem",
    "validate_certs": False,
    "expect_status": [200, 204],
    "expect_body": "ok",
    "expect_json": {"colour": "{colour}"},
    "expect_headers": {"X-Release": 7},
    "attempts": 9,
    "consecutive": 2,
    "interval": 0.5,
    "timeout": 4.0,
    "watch": True,
}
QUERY: dict[str, Any] = {
    "url": "http://prometheus.example.com/",
    "query": 'rate(errors{colour="{colour}"}[1m])',
    "min": 0.0,
    "max": 0.01,
    "headers": {"Authorization": "Bearer secret"},
    "ca_path": None,
    "validate_certs": True,
    "timeout": 3.0,
}


# The application


def test_every_option_of_a_smoke_test_reaches_the_probe() -> None:
    asked: list[Probe] = []

    verdict = smoke_check(SMOKE, asked.append)("green")

    assert verdict == Verdict(GOOD)
    assert asked == [
        Probe(
            url="https://green.test.example.com/up",
            headers={"X-Colour": "green"},
            connect_to="192.0.2.1:443",
            ca_path="/etc/ssl/authority.pem",
            validate_certs=False,
            expectation=Expectation((200, 204), "ok", {"colour": "green"}, {"X-Release": "7"}),
            attempts=9,
            consecutive=2,
            interval=0.5,
            timeout=4.0,
        )
    ]


def test_a_smoke_test_that_fails_is_bad() -> None:
    def fail(_probe: Probe) -> None:
        """Answer badly."""
        raise LmsError("https://green.test.example.com/up answered 500.")

    assert smoke_check(SMOKE, fail)("green") == Verdict(BAD, "https://green.test.example.com/up answered 500.")


def test_a_smoke_test_that_cannot_succeed_is_refused_at_once() -> None:
    with pytest.raises(LmsError, match="consecutive"):
        smoke_check({**SMOKE, "consecutive": 10})


# CloudWatch


class CloudWatch:
    """Answers from a table, and records what was asked."""

    def __init__(self, **states: str) -> None:
        self.states = states
        self.asked: list[list[str]] = []

    def call(self, operation: str, what: str, **parameters: Any) -> dict[str, Any]:
        """Answer as DescribeAlarms."""
        assert (operation, what[:10]) == ("DescribeAlarms", "The alarms")
        assert parameters["AlarmTypes"] == ["MetricAlarm", "CompositeAlarm"]
        names = parameters["AlarmNames"]
        self.asked.append(names)
        found = [{"AlarmName": name, "StateValue": self.states[name]} for name in names if name in self.states]
        return {"MetricAlarms": found[1:], "CompositeAlarms": found[:1]}


@pytest.mark.parametrize(
    ("states", "verdict"),
    [
        ({"a": "OK", "b-green": "OK"}, Verdict(GOOD)),
        ({"a": "OK", "b-green": "ALARM"}, Verdict(BAD, "The alarm b-green fires.")),
        ({"a": "INSUFFICIENT_DATA", "b-green": "ALARM"}, Verdict(BAD, "The alarm b-green fires.")),
        ({"a": "INSUFFICIENT_DATA", "b-green": "OK"}, Verdict(UNKNOWN, "The alarm a has not enough data.")),
        ({"a": "OK"}, Verdict(BAD, "There is no alarm b-green.")),
    ],
)
def test_alarms_are_judged_by_their_worst_state(states: dict[str, str], verdict: Verdict) -> None:
    service = CloudWatch(**states)

    assert alarm_check(service, ["a", "b-{colour}", "a"])("green") == verdict
    assert service.asked == [["a", "b-green"]]


def test_many_alarms_are_asked_for_in_several_calls() -> None:
    names = [f"alarm-{number}" for number in range(250)]
    service = CloudWatch(**dict.fromkeys(names, "OK"))

    assert alarm_check(service, names)("green") == Verdict(GOOD)
    assert [len(some) for some in service.asked] == [100, 100, 50]


# Prometheus


def answer(*values: str, status: int = 200) -> Response:
    """Return what Prometheus answers to a query with these values."""
    result = [{"metric": {}, "value": [1763892000.1, value]} for value in values]
    document = {"status": "success", "data": {"resultType": "vector", "result": result}}
    return Response(status, body=json.dumps(document).encode())


SCALAR = Response(200, body=b'{"status": "success", "data": {"resultType": "scalar", "result": [1763892000.1, "0.5"]}}')
REFUSED = Response(400, body=b'{"status": "error", "error": "parse error"}')
NAME = 'rate(errors{colour="green"}[1m])'


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        (answer("0", "0.01"), Verdict(GOOD)),
        (answer("0", "0.02"), Verdict(BAD, f"The query {NAME} gives 0.02, more than 0.01.")),
        (answer("-1", "0"), Verdict(BAD, f"The query {NAME} gives -1, less than 0.")),
        (answer("NaN", "0"), Verdict(GOOD)),
        (answer("+Inf"), Verdict(BAD, f"The query {NAME} gives inf, more than 0.01.")),
        (answer(), Verdict(UNKNOWN, f"The query {NAME} has no value.")),
        (answer("NaN"), Verdict(UNKNOWN, f"The query {NAME} has no value.")),
        (SCALAR, Verdict(BAD, f"The query {NAME} gives 0.5, more than 0.01.")),
        (REFUSED, Verdict(UNKNOWN, f"Prometheus refused the query {NAME} (400): parse error.")),
        (Response(502, body=b"<html>"), Verdict(UNKNOWN, f"What answers the query {NAME} (502) is no Prometheus.")),
        (Response(200, body=b"[]"), Verdict(UNKNOWN, f"What answers the query {NAME} (200) is no Prometheus.")),
    ],
)
def test_a_query_is_judged_by_each_of_its_values(response: Response, verdict: Verdict) -> None:
    asked: list[Probe] = []

    def ask(probe: Probe) -> Response:
        """Answer."""
        asked.append(probe)
        return response

    assert query_check(QUERY, ask)("green") == verdict
    assert [(probe.url, probe.headers, probe.timeout) for probe in asked] == [
        (
            "http://prometheus.example.com/api/v1/query?query=rate%28errors%7Bcolour%3D%22green%22%7D%5B1m%5D%29",
            {"Authorization": "Bearer secret"},
            3.0,
        )
    ]


def test_a_prometheus_that_does_not_answer_has_no_data() -> None:
    def fail(_probe: Probe) -> Response:
        """Refuse the connection."""
        raise ConnectionRefusedError("refused")

    verdict = query_check(QUERY, fail)("green")

    assert verdict == Verdict(UNKNOWN, "Prometheus at http://prometheus.example.com/ does not answer: refused.")


def test_a_query_without_a_limit_is_refused() -> None:
    with pytest.raises(LmsError, match="has neither min nor max"):
        query_check({**QUERY, "min": None, "max": None})
