# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules of the load balancer of AWS as Ansible runs them, and what IAM has to allow for them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.bitflow.lms.plugins.module_utils import _alb_targets, _alb_traffic_info
from ansible_collections.bitflow.lms.plugins.module_utils._alb import AlbProvider
from ansible_collections.bitflow.lms.plugins.module_utils._alb_traffic import Settings, open_provider, run
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import ACTIONS, Api
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock
from ansible_collections.bitflow.lms.plugins.modules import alb_targets, alb_traffic, alb_traffic_info, traffic_rollout
from ansible_collections.bitflow.lms.tests.lab.elb_model import Alb, FakeClock, World, aws, new_alb
from ansible_collections.bitflow.lms.tests.unit.plugins.module_utils.traffic_world import World as RolloutWorld

MODULES = [alb_traffic, alb_traffic_info, alb_targets]
AWS = {"region": "eu-central-1", "access_key": "test", "secret_key": "test"}
ROUTES = [{"load_balancer": "lms", "port": 443}, {"load_balancer": "lms", "port": 443, "priority": 10}]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Put AWS into this process, once for all tests."""
    with aws() as made:
        yield made


@pytest.fixture
def alb(world: World) -> Alb:
    """Return a load balancer with two colours."""
    made = new_alb(world)
    made.group("blue", healthy=1)
    made.group("green", healthy=1)
    made.rule(made.listener(443, made.forward(blue=1)), made.forward(blue=1), priority=10)
    return made


def name_of(module: ModuleType) -> str:
    """Return the name of a module."""
    return module.__name__.rpartition(".")[2]


def call(module: Any, capsys: pytest.CaptureFixture[str], check_mode: bool = False, **options: Any) -> dict[str, Any]:
    """Run a module and return its result, without what Ansible adds."""
    with patch_module_args({**AWS, **options, "_ansible_check_mode": check_mode}), pytest.raises(SystemExit):
        module.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    result.pop("invocation", None)
    return result


@pytest.mark.usefixtures("alb")
def test_a_switch_from_the_first_target_to_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    quick: dict[str, Any] = {"routes": ROUTES, "gate": {"interval": 0}, "propagation_wait": 0}
    targets: dict[str, Any] = {"group": "green", "targets": [{"id": "10.0.2.9", "port": "8080"}], "interval": 0}

    attached = call(alb_traffic, capsys, **quick, weights={"blue": "100", "green": "0"})
    registered = call(alb_targets, capsys, **targets)
    planned = call(alb_traffic, capsys, check_mode=True, **quick, weights={"blue": 0, "green": 100})
    shifted = call(alb_traffic, capsys, **quick, weights={"blue": 0, "green": 100})
    again = call(alb_traffic, capsys, **quick, weights={"blue": 0, "green": 100})
    looked = call(alb_traffic_info, capsys, load_balancer="lms")
    refused = call(alb_targets, capsys, group="green", targets=[{"id": "10.0.2.9", "port": 8080}, {"id": "10.0.2.1"}], state="absent")
    emptied = call(alb_targets, capsys, group="blue", targets=[{"id": "10.0.1.1"}], state="absent", interval=0)

    assert [result["changed"] for result in (attached, registered, planned, shifted, again, looked, emptied)] == [
        *(True, True, True, True, False, False, True)
    ]
    assert planned == shifted
    assert (looked["live"], looked["findings"]) == ("green", [])
    assert refused["failed"] is True
    assert refused["msg"].startswith("green has weight on lms:443, lms:443/10, and would keep 0 healthy targets where 1 are needed.")


@pytest.mark.usefixtures("alb")
def test_what_is_not_ready_is_a_failure_and_in_check_mode_a_warning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where a controller's modules were loaded before, ansible-core shows warnings itself and leaves them out of the result.
    warned: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda _module, warning, **_options: warned.append(warning))
    options: dict[str, Any] = {"routes": ROUTES, "weights": {"blue": 1, "green": 1}, "gate": {"timeout": 0, "interval": 0}}

    planned = call(alb_traffic, capsys, check_mode=True, **options)
    failed = call(alb_traffic, capsys, **options)

    assert planned["changed"] is True
    assert "green could not take traffic now: green has 0 healthy of 1 targets" in " ".join(warned)
    assert (failed["failed"], failed["msg"][:21]) == (True, "green is on no route,")


# Documentation


def documented(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of the documentation in the form of a specification."""
    return {
        name: {
            **{key: option[key] for key in ("type", "required", "default", "choices", "elements") if key in option},
            "options": documented(option.get("suboptions", {})),
        }
        for name, option in options.items()
    }


def specified(module: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the specification of a module in the same form, without what a fragment documents."""
    seen: dict[str, Any] = {}

    class StoppedError(Exception):
        """The end of a module that was only asked for its options."""

    def stop(**arguments: Any) -> None:
        seen.update(arguments["argument_spec"])
        raise StoppedError

    monkeypatch.setattr(module, "AnsibleModule", stop)
    with pytest.raises(StoppedError):
        module.main()
    for name in module.aws_argspec():
        del seen[name]

    def plain(options: dict[str, Any]) -> dict[str, Any]:
        return {
            name: {
                **{key: option[key] for key in ("type", "required", "default", "choices", "elements") if key in option},
                "options": plain(option.get("options", {})),
            }
            for name, option in options.items()
        }

    return plain(seen)


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_every_option_is_documented_as_it_is(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert documented(yaml.safe_load(module.DOCUMENTATION)["options"]) == specified(module, monkeypatch)


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_every_key_of_the_result_is_documented(module: Any, alb: Alb, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, dict[str, Any]] = {
        "alb_traffic": {"routes": ROUTES, "weights": {"blue": 1}},
        "alb_traffic_info": {"load_balancer": "lms"},
        "alb_targets": {"group": "blue", "targets": [{"id": "10.0.1.1"}], "interval": 0},
    }
    found = call(module, capsys, **options[name_of(module)])
    keys = set(found) - {"changed", "diff", "warnings"}
    returned = yaml.safe_load(module.RETURN)

    assert alb.client.changes() == []
    assert keys == set(returned)
    for key, value in found.items():
        contained = returned.get(key, {}).get("contains")
        samples = value if isinstance(value, list) else [value]
        assert all(set(sample) == set(contained) for sample in samples if contained)


# IAM


def traffic(alb: Alb) -> None:
    """Do everything that alb_traffic does."""
    clock = FakeClock()
    options: dict[str, Any] = {
        **dict.fromkeys(("weights", "expect", "stickiness")),
        **dict.fromkeys(("retain", "verify_timeout", "propagation_wait"), 0),
        "gate": {},
        "routes": [*ROUTES, {"listener_arn": alb.listener(80, alb.forward(blue=1))}],
    }
    for weights in ({"blue": 1, "green": 0}, {"blue": 0, alb.groups["green"]: 1}):
        given = {**options, "weights": weights}
        run(*open_provider(Api(alb.client), given), Settings.of(given), False, Clock(clock.now, clock.sleep))


def looks(alb: Alb) -> None:
    """Do everything that alb_traffic_info does."""
    for asked in ({"load_balancer": "lms", "routes": []}, {"load_balancer": None, "routes": ROUTES}):
        _alb_traffic_info.run(Api(alb.client), {"min_healthy": 1, "expect": None, **asked})


def targets(alb: Alb) -> None:
    """Do everything that alb_targets does."""
    clock = FakeClock()
    options = {
        "group": "blue",
        "targets": [{"id": "10.0.1.9", "port": 80}],
        "wait": True,
        **dict.fromkeys(("interval", "consecutive", "min_healthy"), 1),
        "wait_timeout": 60,
    }
    for state, alb.world.forgetful in (("present", False), ("absent", True)):
        _alb_targets.run(Api(alb.client), {**options, "state": state}, False, Clock(clock.now, clock.sleep))


@pytest.mark.parametrize(
    ("module", "work"),
    [(alb_traffic, traffic), (alb_traffic_info, looks), (alb_targets, targets)],
    ids=["alb_traffic", "alb_traffic_info", "alb_targets"],
)
def test_iam_has_to_allow_exactly_the_calls_that_are_made(module: ModuleType, work: Callable[[Alb], None], alb: Alb) -> None:
    work(alb)

    made = {f"elasticloadbalancing:{method.title().replace('_', '')}" for method, _parameters in alb.client.calls}

    assert made == set(ACTIONS[name_of(module)])
    assert len(ACTIONS[name_of(module)]) == len(made)


def test_a_rollout_needs_what_a_switch_needs(alb: Alb) -> None:
    rollout = RolloutWorld(min_healthy=1)
    rollout.provider = AlbProvider.of_colours(Api(alb.client), ROUTES, {"blue": "blue", "green": "green"})  # type: ignore[assignment]

    rollout.run(until="retired")

    made = {f"elasticloadbalancing:{method.title().replace('_', '')}" for method, _parameters in alb.client.calls}
    others = re.findall(r"C\(((?:s3|cloudwatch):\w+)\)", traffic_rollout.DOCUMENTATION)
    assert made == set(ACTIONS["alb_traffic"])
    assert sorted(ACTIONS["traffic_rollout"]) == sorted([*made, *others])


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_the_documentation_names_the_actions_of_iam(module: Any) -> None:
    named = re.findall(r"C\((elasticloadbalancing:\w+)\)", module.DOCUMENTATION)

    assert sorted(named) == sorted(ACTIONS[name_of(module)])


def test_the_actions_of_iam_stand_in_one_place() -> None:
    sources = Path(alb_traffic.__file__).parents[1].glob("module_utils/*.py")

    assert [source.name for source in sources if "elasticloadbalancing:Modify" in source.read_text()] == ["_aws_api.py"]
