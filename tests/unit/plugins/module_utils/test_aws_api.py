# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls to AWS: which are made again, and what is said about those that fail."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils import _aws_api
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import ATTEMPTS, Api, AwsError, client_for, is_transient
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.tests.lab.elb_model import refusal
from botocore.exceptions import (
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)


class Client:
    """A client that answers from a list, and raises what is an error in it."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    def describe_rules(self, **parameters: Any) -> Any:
        """Answer."""
        self.asked.append(parameters)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def api(client: Client, pauses: list[float] | None = None) -> Api:
    """Return a service whose pauses take no time, and are as long as they can be."""
    return Api(client, sleep=(pauses if pauses is not None else []).append, chance=lambda: 1.0)


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        # What amazon.aws' own list of retries does not have.
        (refusal("ThrottlingException"), True),
        (refusal("RequestThrottled"), True),
        (refusal("SlowDown"), True),
        (refusal("Throttling"), True),
        (refusal("InternalFailure", 500), True),
        (refusal("AnythingElse", 503), True),
        (refusal("AnythingElse", 429), True),
        (ReadTimeoutError(endpoint_url="https://example.com"), True),
        (ConnectionClosedError(endpoint_url="https://example.com"), True),
        (ConnectTimeoutError(endpoint_url="https://example.com"), True),
        (EndpointConnectionError(endpoint_url="https://example.com"), True),
        (ConnectionResetError(), True),
        (refusal("NotImplemented", 501), False),
        (refusal("ValidationError"), False),
        (refusal("RuleNotFound"), False),
        (refusal("AccessDenied", 403), False),
        (NoCredentialsError(), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient


def test_a_throttled_call_is_made_again_with_growing_pauses() -> None:
    client = Client(*[refusal("ThrottlingException")] * 4, {"Rules": []})
    pauses: list[float] = []

    reply = api(client, pauses).call("DescribeRules", "Rules cannot be read", ListenerArn="arn:1")

    assert reply == {"Rules": []}
    assert client.asked == [{"ListenerArn": "arn:1"}] * 5
    assert pauses == [0.5, 1.0, 2.0, 4.0]


def test_pauses_differ_so_that_many_do_not_come_back_together() -> None:
    pauses: list[float] = []
    service = Api(Client(refusal("Throttling"), {}), sleep=pauses.append, chance=lambda: 0.0)

    service.call("DescribeRules", "Rules cannot be read")

    assert pauses == [0.25]


def test_who_is_throttled_for_ever_is_told_so() -> None:
    client = Client(*[refusal("ThrottlingException", message="Rate exceeded")] * ATTEMPTS)

    with pytest.raises(AwsError) as caught:
        api(client).call("DescribeRules", "Rules cannot be read")

    assert caught.value.message == "Rules cannot be read: ThrottlingException: Rate exceeded, 8 times in a row."
    assert client.answers == []


def test_a_refusal_is_not_repeated() -> None:
    client = Client(refusal("ValidationError", message="That is wrong."))

    with pytest.raises(AwsError) as caught:
        api(client).call("DescribeRules", "Rules cannot be read")

    assert (caught.value.message, caught.value.code) == ("Rules cannot be read: ValidationError: That is wrong.", "ValidationError")
    assert len(client.asked) == 1


def test_a_denied_call_names_the_action_to_allow() -> None:
    with pytest.raises(AwsError, match="Allow elasticloadbalancing:DescribeRules to the identity of this task"):
        api(Client(refusal("AccessDenied", 403))).call("DescribeRules", "Rules cannot be read")


def test_a_list_is_read_to_its_last_page() -> None:
    client = Client({"Rules": [{"a": 1}, {"b": 2}], "NextMarker": "two"}, {"Rules": [{"c": 3}], "NextMarker": ""})

    found = api(client).pages("DescribeRules", "Rules", "Rules cannot be read", ListenerArn="arn:1")

    assert found == [{"a": 1}, {"b": 2}, {"c": 3}]
    assert client.asked == [{"ListenerArn": "arn:1"}, {"ListenerArn": "arn:1", "Marker": "two"}]


@pytest.mark.parametrize(
    ("options", "environment", "region"),
    [
        ({"region": "eu-west-1"}, {"AWS_REGION": "eu-west-2"}, "eu-west-1"),
        ({}, {"AWS_REGION": "eu-west-2", "AWS_DEFAULT_REGION": "eu-west-3"}, "eu-west-2"),
        ({}, {"AWS_DEFAULT_REGION": "eu-west-3"}, "eu-west-3"),
    ],
)
def test_the_region_comes_from_the_option_or_the_environment(
    options: dict[str, Any], environment: dict[str, str], region: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    client = client_for("elbv2", {"access_key": "key", "secret_key": "secret", **options})

    assert client.meta.region_name == region


def test_the_sdk_does_not_try_again_on_its_own() -> None:
    client = client_for("elbv2", {"region": "eu-west-1", "access_key": "key", "secret_key": "secret"})

    assert client.meta.config.retries["total_max_attempts"] == 1


def test_an_endpoint_replaces_that_of_aws() -> None:
    options = {"region": "eu-west-1", "access_key": "key", "secret_key": "secret", "endpoint_url": "http://127.0.0.1:5000"}

    assert client_for("elbv2", options).meta.endpoint_url == "http://127.0.0.1:5000"


def test_an_unknown_region_says_which_option_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")

    with pytest.raises(LmsError, match="Give region, or set AWS_REGION"):
        client_for("elbv2", {})


def test_a_missing_library_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_aws_api, "MISSING", ImportError("boto3"))

    with pytest.raises(LmsError, match="Install the Debian package python3-boto3"):
        client_for("elbv2", {})
