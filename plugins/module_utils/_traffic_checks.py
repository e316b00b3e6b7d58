# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollout asks besides the load balancer: the application itself, alarms of CloudWatch, and metrics of Prometheus."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from typing import Any, Protocol
from urllib.parse import urlencode

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._expectation import Expectation
from ansible_collections.bitflow.lms.plugins.module_utils._http_probe import Probe, Response, call, run_probe, tls_context
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_rollout import BAD, GOOD, UNKNOWN, Check, Verdict

# Stands in options for the colour that is asked.
COLOUR = "{colour}"
# How many names CloudWatch takes in one question.
MOST_ALARMS = 100


class Api(Protocol):
    """A service of AWS."""

    def call(self, operation: str, what: str, **parameters: Any) -> dict[str, Any]:
        """Make a call. What says which failure it would be."""


def smoke_argspec() -> dict[str, dict[str, Any]]:
    """Return the options of a smoke test."""
    return {
        "url": {"type": "str", "required": True},
        "headers": {"type": "dict", "default": {}, "no_log": True},
        "connect_to": {"type": "str"},
        "ca_path": {"type": "path"},
        "validate_certs": {"type": "bool", "default": True},
        "expect_status": {"type": "list", "elements": "int", "default": [200]},
        "expect_body": {"type": "str"},
        "expect_json": {"type": "dict", "default": {}},
        "expect_headers": {"type": "dict", "default": {}},
        "attempts": {"type": "int", "default": 5},
        "consecutive": {"type": "int", "default": 3},
        "interval": {"type": "float", "default": 1},
        "timeout": {"type": "float", "default": 10},
        "watch": {"type": "bool", "default": True},
    }


def queries_argspec() -> dict[str, dict[str, Any]]:
    """Return the options of a query."""
    return {
        "url": {"type": "str", "required": True},
        "query": {"type": "str", "required": True},
        "min": {"type": "float"},
        "max": {"type": "float"},
        "headers": {"type": "dict", "default": {}, "no_log": True},
        "ca_path": {"type": "path"},
        "validate_certs": {"type": "bool", "default": True},
        "timeout": {"type": "float", "default": 10},
    }


def with_colour(value: Any, colour: str) -> Any:
    """Put the colour where its placeholder stands."""
    if isinstance(value, str):
        return value.replace(COLOUR, colour)
    if isinstance(value, Mapping):
        return {key: with_colour(each, colour) for key, each in value.items()}
    return value


def smoke_probe(option: Mapping[str, Any], colour: str) -> Probe:
    """Return the request of a smoke test."""
    given = {key: with_colour(value, colour) for key, value in option.items()}
    return Probe(
        url=given["url"],
        headers=given["headers"],
        connect_to=given["connect_to"],
        ca_path=given["ca_path"],
        validate_certs=given["validate_certs"],
        expectation=Expectation(
            tuple(given["expect_status"]),
            given["expect_body"],
            given["expect_json"],
            {name: str(value) for name, value in given["expect_headers"].items()},
        ),
        attempts=given["attempts"],
        consecutive=given["consecutive"],
        interval=given["interval"],
        timeout=given["timeout"],
    )


def smoke_check(option: Mapping[str, Any], run: Callable[[Probe], Any] = run_probe) -> Check:
    """Return the check that asks the application for answers."""
    # What cannot succeed is refused before anything begins, not when the test is due.
    smoke_probe(option, "colour")

    def check(colour: str) -> Verdict:
        try:
            run(smoke_probe(option, colour))
        except LmsError as error:
            return Verdict(BAD, error.message)
        return Verdict(GOOD)

    return check


def alarm_check(api: Api, names: Sequence[str]) -> Check:
    """Return the check that reads alarms of CloudWatch."""

    def check(colour: str) -> Verdict:
        wanted = list(dict.fromkeys(with_colour(name, colour) for name in names))
        states: dict[str, str] = {}
        for start in range(0, len(wanted), MOST_ALARMS):
            some = wanted[start : start + MOST_ALARMS]
            answer = api.call(
                "DescribeAlarms",
                f"The alarms {', '.join(some)} cannot be read",
                AlarmNames=some,
                AlarmTypes=["MetricAlarm", "CompositeAlarm"],
                MaxRecords=MOST_ALARMS,
            )
            for kind in ("MetricAlarms", "CompositeAlarms"):
                states.update({alarm["AlarmName"]: alarm["StateValue"] for alarm in answer.get(kind, [])})
        return judge_alarms(wanted, states)

    return check


def judge_alarms(wanted: Sequence[str], states: Mapping[str, str]) -> Verdict:
    """Judge the states of alarms. One that is not there would never fire, so it is as bad as one that does."""
    missing = [name for name in wanted if name not in states]
    if missing:
        return Verdict(BAD, f"There is no alarm {', '.join(missing)}.")
    firing = [name for name in wanted if states[name] == "ALARM"]
    if firing:
        return Verdict(BAD, f"The alarm {', '.join(firing)} fires.")
    silent = [name for name in wanted if states[name] != "OK"]
    return Verdict(UNKNOWN, f"The alarm {', '.join(silent)} has not enough data.") if silent else Verdict(GOOD)


def query_check(option: Mapping[str, Any], ask: Callable[[Probe], Response] | None = None) -> Check:
    """Return the check that asks Prometheus."""
    if option["min"] is None and option["max"] is None:
        raise LmsError(f"The query {option['query']} has neither min nor max. Give one, or both.")
    context = None if ask else tls_context(option["ca_path"], option["validate_certs"])

    def check(colour: str) -> Verdict:
        probe = query_probe(option, colour)
        query = with_colour(option["query"], colour)
        try:
            response = ask(probe) if ask else call(probe, context if probe.parts.scheme == "https" else None)
        except (OSError, HTTPException) as error:
            return Verdict(UNKNOWN, f"Prometheus at {option['url']} does not answer: {error}.")
        return judge_query(query, response, option["min"], option["max"])

    return check


def query_probe(option: Mapping[str, Any], colour: str) -> Probe:
    """Return the request of a query."""
    query = urlencode({"query": with_colour(option["query"], colour)})
    return Probe(
        url=f"{option['url'].rstrip('/')}/api/v1/query?{query}",
        headers=option["headers"],
        ca_path=option["ca_path"],
        validate_certs=option["validate_certs"],
        timeout=option["timeout"],
    )


def judge_query(query: str, response: Response, least: float | None, most: float | None) -> Verdict:
    """Judge what Prometheus answered. Every value counts; none at all is no data."""
    try:
        document = json.loads(response.body)
        if response.status != 200 or document["status"] != "success":
            return Verdict(
                UNKNOWN, f"Prometheus refused the query {query} ({response.status}): {document.get('error', 'no reason given')}."
            )
        data = document["data"]
        rows = [data["result"]] if data["resultType"] == "scalar" else [row["value"] for row in data["result"]]
        values = [float(value) for _time, value in rows]
    except (ValueError, KeyError, TypeError, AttributeError):
        return Verdict(UNKNOWN, f"What answers the query {query} ({response.status}) is no Prometheus.")
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Verdict(UNKNOWN, f"The query {query} has no value.")
    if most is not None and max(known) > most:
        return Verdict(BAD, f"The query {query} gives {max(known):g}, more than {most:g}.")
    if least is not None and min(known) < least:
        return Verdict(BAD, f"The query {query} gives {min(known):g}, less than {least:g}.")
    return Verdict(GOOD)
