# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as Ansible runs it, on a load balancer of AWS in this process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.bitflow.lms.plugins.module_utils import _traffic_options
from ansible_collections.bitflow.lms.plugins.module_utils._alb import AlbProvider
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import ACTIONS, Api, aws_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_sites import traffic_directory_argspec
from ansible_collections.bitflow.lms.plugins.modules import traffic_rollout
from ansible_collections.bitflow.lms.tests.lab.elb_model import REGION, Alb, State, World, aws, new_alb

BUCKET = "example-state"
OPTIONS: dict[str, Any] = {
    "region": REGION,
    "name": "prod/lms",
    "action": "advance",
    "provider": "alb",
    "routes": [{"load_balancer": "lms", "port": 443}, {"load_balancer": "lms", "port": 443, "priority": 10}],
    "colours": {"blue": "lms-blue", "green": "lms-green"},
    "steps": [{"weight": 10, "bake": 0}, {"weight": 100, "bake": 0}],
    "gate": {"consecutive": 1},
    "propagation_wait": 0,
}
ALL_GREEN = {"lms-blue": 0, "lms-green": 100}
ALL_BLUE = {"lms-blue": 100, "lms-green": 0}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Put AWS into this process, once for all tests."""
    with aws() as made:
        boto3.client("s3", region_name=REGION).create_bucket(
            Bucket=BUCKET,
            CreateBucketConfiguration={"LocationConstraint": REGION},  # type: ignore[typeddict-item, unused-ignore]
        )
        yield made


@pytest.fixture
def alb(world: World) -> Alb:
    """Return a load balancer with two colours, of which blue is live."""
    made = new_alb(world)
    made.group("lms-blue", healthy=2)
    made.group("lms-green", healthy=2)
    blue = made.forward(**{"lms-blue": 1})
    made.rule(made.listener(443, blue), blue, priority=10)
    return made


def listener_of(alb: Alb) -> str:
    """Return the listener of the load balancer."""
    return str(alb.raw.describe_listeners(LoadBalancerArn=alb.arn)["Listeners"][0]["ListenerArn"])


def call(capsys: pytest.CaptureFixture[str], state: object, check_mode: bool = False, **options: Any) -> dict[str, Any]:
    """Run the module and return its result, without what Ansible adds."""
    given = {**OPTIONS, "state": str(state), **options, "_ansible_check_mode": check_mode}
    with patch_module_args(given), pytest.raises(SystemExit):
        traffic_rollout.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    result.pop("invocation", None)
    return result


@pytest.fixture(params=["file", "s3"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a place for a record of each kind."""
    return str(tmp_path / "lms.json") if request.param == "file" else f"s3://{BUCKET}/traffic/{tmp_path.name}.json"


def test_a_release_goes_out_and_comes_back(alb: Alb, state: str, capsys: pytest.CaptureFixture[str]) -> None:
    listener = listener_of(alb)

    planned = call(capsys, state, check_mode=True, release="r1", colour="green")
    attached = call(capsys, state, release="r1", colour="green")
    retained = call(capsys, state, release="r1", max_wait=30, gate={"consecutive": 1, "interval": 0.05})
    weights = alb.weights(listener)
    again = call(capsys, state, release="r1")
    back = call(capsys, state, action="rollback")
    after = call(capsys, state, release="r1")

    assert [result["phase"] for result in (planned, attached, retained, again, back)] == [
        *("attached", "retained", "retained", "retained", "rolled_back")
    ]
    assert [result["changed"] for result in (planned, attached, retained, again, back)] == [True, True, False, False, True]
    assert (weights, alb.weights(listener)) == (ALL_GREEN, ALL_BLUE)
    assert after["msg"].startswith("r1 was rolled back to blue: It was asked for.")
    assert set(after) - {"failed", "msg"} == set(back) == set(planned)


def test_a_colour_that_is_not_healthy_fails_the_task(alb: Alb, state: str, capsys: pytest.CaptureFixture[str]) -> None:
    alb.states("lms-green").update({key: State("unhealthy", "Target.Timeout") for key in alb.states("lms-green")})

    failed = call(capsys, state, release="r1", colour="green", gate={"timeout": 0})

    assert (failed["failed"], failed["phase"], failed["done"]) == (True, "rolled_back", True)
    assert "green was not ready within 0 s: lms-green has 0 healthy of 2 targets" in failed["msg"]
    assert alb.weights(listener_of(alb)) == ALL_BLUE


def test_an_alarm_that_is_not_there_fails_the_task_before_any_weight(alb: Alb, state: str, capsys: pytest.CaptureFixture[str]) -> None:
    failed = call(capsys, state, release="r1", colour="green", alarms=["lms-5xx"], max_wait=30)

    assert failed["msg"].startswith("r1 was rolled back to blue: There is no alarm lms-5xx.")
    assert all(weights["green"] == 0 for weights in failed["weights"].values())


def test_weights_of_somebody_else_fail_the_task(alb: Alb, state: str, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, state, release="r1", colour="green")
    alb.by_hand(listener_of(alb), **{"lms-blue": 50, "lms-green": 50})

    failed = call(capsys, state)
    seen = call(capsys, state, action="status")

    assert failed["msg"].startswith("The route lms:443 has blue 50, green 50, but blue 0, green 100 was expected")
    assert (seen["waiting"], failed["done"]) == (failed["msg"], True)


# Documentation


def plain(options: dict[str, Any], below: str) -> dict[str, Any]:
    """Return options, of the documentation or of the specification, in one form."""
    kept = ("type", "required", "default", "choices", "elements")
    return {
        name: {**{key: option[key] for key in kept if key in option}, below: plain(option.get(below, {}), below)}
        for name, option in options.items()
    }


def test_every_option_is_documented_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class StoppedError(Exception):
        """The end of a module that was only asked for its options."""

    def stop(**arguments: Any) -> None:
        """Note the specification."""
        seen.update(arguments["argument_spec"])
        raise StoppedError

    monkeypatch.setattr(traffic_rollout, "AnsibleModule", stop)
    with pytest.raises(StoppedError):
        traffic_rollout.main()

    specified = plain(
        {name: option for name, option in seen.items() if name not in {**aws_argspec(), **traffic_directory_argspec()}}, "options"
    )
    documented = plain(yaml.safe_load(traffic_rollout.DOCUMENTATION)["options"], "suboptions")
    assert json.loads(json.dumps(documented).replace('"suboptions"', '"options"')) == specified


def test_every_key_of_the_result_is_documented(alb: Alb, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = call(capsys, tmp_path / "lms.json", release="r1", colour="green")
    returned = yaml.safe_load(traffic_rollout.RETURN)

    assert set(found) - {"changed", "diff"} == set(returned)
    for key in ("steps", "health", "history"):
        assert found[key]
        assert all(set(entry) == set(returned[key]["contains"]) for entry in found[key])
    assert all(set(entry) == set(returned["history"]["contains"]) for entry in found["events"])
    assert "skipped" not in found


# IAM


def test_aws_has_to_allow_what_alb_traffic_needs_and_no_more(alb: Alb, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        **{name: option.get("default") for name, option in _traffic_options.rollout_argspec().items()},
        **OPTIONS,
        "gate": {"min_healthy": 1, "consecutive": 1, "interval": 0.01, "timeout": 5},
        "state": str(tmp_path / "lms.json"),
        "release": "r1",
        "colour": "green",
        "retain": 0,
        "max_wait": 5,
    }
    provider = _traffic_options.open_provider(options, lambda service: Api(alb.client, service))
    store = _traffic_options.open_state(options)

    outcome = _traffic_options.run(options, provider, store, _traffic_options.checks_of(options, lambda _service: None))

    made = {f"elasticloadbalancing:{method.title().replace('_', '')}" for method, _parameters in alb.client.calls}
    assert isinstance(provider, AlbProvider)
    assert outcome.phase in ("retained", "retired")
    assert made <= set(ACTIONS["alb_traffic"])
    assert re.findall(r"C\((s3:\w+|cloudwatch:\w+)\)", traffic_rollout.DOCUMENTATION) == [
        *("s3:GetObject", "s3:PutObject", "s3:ListBucket", "cloudwatch:DescribeAlarms")
    ]
