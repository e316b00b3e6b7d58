# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The policies of docs/iam: they allow what the modules of traffic ask of AWS, and nothing else.

Every module is run as Ansible runs it, in all that it can do, and the SDK itself says which calls were made.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
import botocore.handlers
import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import ACTIONS
from ansible_collections.bitflow.lms.tests.lab.asg_model import asg
from ansible_collections.bitflow.lms.tests.lab.ecs_model import Fate, ecs
from ansible_collections.bitflow.lms.tests.lab.elasticache_model import do_all
from ansible_collections.bitflow.lms.tests.lab.elb_model import REGION, Alb, FakeClock, World, aws, new_alb

ROOT = Path(__file__).parents[2]
POLICIES = ROOT / "docs/iam"
BUCKET = "example-state"
PLUGINS = "ansible_collections.bitflow.lms.plugins.modules"
# What IAM calls a service, where that is not how its requests are signed.
SERVICES = {"monitoring": "cloudwatch"}
# What a call needs besides the action of its name. Without ListBucket an object that is missing looks like one that may not be read, and a
# task gets the roles of its definition from whoever starts it.
PASS_ROLE = {"iam:PassRole"}
BESIDES = {
    "s3:GetObject": {"s3:ListBucket"},
    "ecs:RegisterTaskDefinition": PASS_ROLE,
    "ecs:RunTask": PASS_ROLE,
    "ecs:UpdateService": PASS_ROLE,
}
GATE = {"consecutive": 1, "interval": 0.01, "timeout": 5}
ROUTES = [{"load_balancer": "lms", "port": 443}, {"load_balancer": "lms", "port": 443, "priority": 10}]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Put AWS into this process."""
    with aws() as made:
        boto3.client("s3", region_name=REGION).create_bucket(
            Bucket=BUCKET,
            CreateBucketConfiguration={"LocationConstraint": REGION},  # type: ignore[typeddict-item, unused-ignore]
        )
        cloudwatch = boto3.client("cloudwatch", region_name=REGION)
        cloudwatch.put_metric_alarm(
            AlarmName="lms-5xx",
            ComparisonOperator="GreaterThanThreshold",
            EvaluationPeriods=1,
            MetricName="HTTPCode_Target_5XX_Count",
            Namespace="AWS/ApplicationELB",
            Period=60,
            Statistic="Sum",
            Threshold=1,
        )
        cloudwatch.set_alarm_state(AlarmName="lms-5xx", StateValue="OK", StateReason="quiet")
        yield made


def alb_in(world: World) -> Alb:
    """Return a load balancer with two colours, of which blue is live, in an AWS that has no other."""
    made = new_alb(world)
    made.group("lms-blue", healthy=2)
    made.group("lms-green", healthy=2)
    blue = made.forward(**{"lms-blue": 1})
    made.rule(made.listener(443, blue), blue, priority=10)
    return made


class Calls:
    """Runs modules, and notes what they ask of AWS."""

    def __init__(self) -> None:
        self.made: set[str] = set()
        # For modules that wait: what they wait for happens by this clock.
        self.clock = FakeClock()

    def note(self, model: Any, **_other: Any) -> None:
        """Take in a call of the SDK."""
        service = model.service_model.signing_name
        action = f"{SERVICES.get(service, service)}:{model.name}"
        self.made |= {action} | BESIDES.get(action, set())

    def run(self, module: str, fails: bool = False, **options: Any) -> dict[str, Any]:
        """Run a module, and return its result. It makes its clients anew, so that the SDK tells of them and of no others."""
        output = io.StringIO()
        code = import_module(f"{PLUGINS}.{module}")
        waits = mock.patch.object(code, "Clock", lambda: self.clock) if hasattr(code, "Clock") else contextlib.nullcontext()
        with (
            waits,
            mock.patch.object(botocore.handlers, "BUILTIN_HANDLERS", [*botocore.handlers.BUILTIN_HANDLERS, ("before-call", self.note)]),
            patch_module_args({"region": REGION, **options}),
            contextlib.redirect_stdout(output),
            pytest.raises(SystemExit),
        ):
            code.main()
        result: dict[str, Any] = json.loads(output.getvalue())
        assert bool(result.get("failed")) == fails, result.get("msg")
        return result


def weigh(calls: Calls, alb: Alb) -> None:
    """Do all that alb_traffic can: names and ARNs, listeners and rules."""
    listener, rule = place_of(alb)
    options: dict[str, Any] = {"gate": GATE, "propagation_wait": 0}
    calls.run("alb_traffic", routes=ROUTES, weights={"lms-blue": 1, "lms-green": 0}, **options)
    calls.run("alb_traffic", routes=[{"listener_arn": listener}, {"rule_arn": rule}], weights={"lms-blue": 1, "lms-green": 1}, **options)
    calls.run(
        "alb_traffic", routes=[{"listener_arn": listener, "priority": 10}], weights={alb.groups[name]: 1 for name in alb.groups}, **options
    )
    calls.run("alb_traffic", routes=ROUTES, weights={"lms-blue": 1, "lms-green": 0}, stickiness={"enabled": False}, **options)


def look(calls: Calls, alb: Alb) -> None:
    """Do all that alb_traffic_info can."""
    listener, rule = place_of(alb)
    calls.run("alb_traffic_info", load_balancer="lms")
    calls.run("alb_traffic_info", load_balancer=alb.arn)
    calls.run("alb_traffic_info", routes=ROUTES, expect={"lms-blue": 1})
    calls.run("alb_traffic_info", routes=[{"listener_arn": listener}, {"rule_arn": rule}])


def register(calls: Calls, alb: Alb) -> None:
    """Do all that alb_targets can: on a group that has weight, by its name and its ARN, and on one that no route names."""
    target = {"targets": [{"id": "10.0.9.9", "port": 80}], "interval": 0.01, "consecutive": 1, "wait_timeout": 5}
    for group in ("lms-blue", alb.groups["lms-blue"]):
        calls.run("alb_targets", group=group, **target)
        calls.run("alb_targets", group=group, state="absent", **target)
    calls.run("alb_targets", group="lms-green", **{**target, "wait": False})
    calls.run("alb_targets", group="lms-green", state="absent", **target)


RECORDS = itertools.count()


def new_record() -> str:
    """Return where a record lies that is not there yet."""
    return f"s3://{BUCKET}/traffic/prod/lms-{next(RECORDS)}.json"


def options_of_rollout(state: str, **more: Any) -> dict[str, Any]:
    """Return the options of a rollout."""
    return {
        "name": "prod/lms",
        "provider": "alb",
        "routes": ROUTES,
        "colours": {"blue": "lms-blue", "green": "lms-green"},
        "state": state,
        "steps": [{"weight": 10, "bake": 0}, {"weight": 100, "bake": 0}],
        "gate": GATE,
        "alarms": ["lms-5xx"],
        "propagation_wait": 0,
        "max_wait": 30,
        **more,
    }


def roll_out(calls: Calls, _alb: Alb) -> None:
    """Do all that traffic_rollout can: a release out and back, one retired, one aborted, and a way back without a record."""
    state = new_record()
    # Stays at its gate.
    slow = {"max_wait": 0, "gate": {**GATE, "interval": 60, "consecutive": 2}}
    calls.run("traffic_rollout", **options_of_rollout(state, action="advance", release="r1", colour="green"))
    calls.run("traffic_rollout", **options_of_rollout(state, action="rollback"))
    calls.run("traffic_rollout", **options_of_rollout(state, action="advance", release="r2", colour="green"))
    calls.run("traffic_rollout", **options_of_rollout(state, action="retire"))
    calls.run("traffic_rollout", **options_of_rollout(state, action="advance", release="r3", colour="blue", **slow))
    calls.run("traffic_rollout", **options_of_rollout(state, action="abort"))
    calls.run("traffic_rollout", **options_of_rollout(new_record(), action="rollback", colour="blue"))


def ask_for_status(calls: Calls, _alb: Alb) -> None:
    """Look where no rollout is known."""
    calls.run("traffic_rollout", **options_of_rollout(new_record(), action="status"))


def deploy(calls: Calls, alb: Alb) -> None:
    """Do all that ecs_rollout_service can: new definitions, by name and as they are, more tasks, fewer, and one that fails."""
    alb.raw.modify_listener(ListenerArn=place_of(alb)[0], DefaultActions=[alb.forward(**{"lms-blue": 1, "lms-green": 0})])
    service = {"cluster": "lms", "service": "lms-green", "interval": 5, "timeout": 600}
    with ecs(alb, calls.clock.now) as model:
        definition = model.define(image="lms:1")
        model.serve("lms-green", definition, 1, "lms-green")
        model.define(image="lms:2")
        calls.run("ecs_rollout_service", task_definition="lms:2", desired_count=2, **service)
        made = model.raw.describe_task_definition(taskDefinition="lms:2")["taskDefinition"]
        made["containerDefinitions"][0]["image"] = "lms:3"
        newest = json.loads(json.dumps({key: made[key] for key in KEYS_OF_DEFINITION}, default=str))
        alb.world.forgetful = True
        calls.run("ecs_rollout_service", definition=newest, desired_count=1, **service)
        model.fates["lms:4"] = Fate(exit_code=1, after=1)
        model.define(image="lms:4")
        calls.run("ecs_rollout_service", fails=True, task_definition="lms:4", **service)


KEYS_OF_DEFINITION = ("family", "containerDefinitions", "networkMode", "requiresCompatibilities", "cpu", "memory")


def migrate(calls: Calls, alb: Alb) -> None:
    """Do all that ecs_run_task can: by a service and by a definition, started once, found again, and one that fails."""
    with ecs(alb, calls.clock.now) as model:
        model.serve("lms-green", model.define(), 0, "lms-green")
        definition = model.define(family="report")
        task = {"cluster": "lms", "interval": 5, "command": ["php", "artisan", "migrate", "--force"]}
        revision = definition.rpartition("/")[2]
        model.endings[revision] = Fate(exit_code=0, after=1)
        for _attempt in range(2):
            calls.run("ecs_run_task", task_definition=revision, service="lms-green", client_token="migrate-1", **task)
        model.endings[revision] = Fate(exit_code=1, after=1)
        calls.run("ecs_run_task", fails=True, task_definition=revision, service="lms-green", **task)


def scale(calls: Calls, alb: Alb) -> None:
    """Do all that asg_capacity can: more instances of a colour that is checked, and fewer of one that has no weight."""
    alb.raw.modify_listener(ListenerArn=place_of(alb)[0], DefaultActions=[alb.forward(**{"lms-blue": 1, "lms-green": 0})])
    with asg(alb, calls.clock.now) as model:
        model.scale("lms-green", 1, "lms-green")
        for size, alb.world.forgetful in ((3, False), (0, True)):
            calls.run("asg_capacity", name="lms-green", min_size=size, desired_capacity=size, interval=5)


def keep_a_cache(calls: Calls, _alb: Alb) -> None:
    """Do all that elasticache_replication_group can."""
    do_all(calls.run, calls.clock)


def place_of(alb: Alb) -> tuple[str, str]:
    """Return the listener and its rule."""
    listener = alb.raw.describe_listeners(LoadBalancerArn=alb.arn)["Listeners"][0]["ListenerArn"]
    rules = alb.raw.describe_rules(ListenerArn=listener)["Rules"]
    return str(listener), next(str(rule["RuleArn"]) for rule in rules if not rule["IsDefault"])


Story = Callable[[Calls, Alb], None]
# The modules that ask anything of AWS for traffic, each with all that it can do. A new one gets its line here.
STORIES: Mapping[str, Story] = {
    "alb_traffic": weigh,
    "alb_traffic_info": look,
    "alb_targets": register,
    "asg_capacity": scale,
    "ecs_rollout_service": deploy,
    "ecs_run_task": migrate,
    "elasticache_replication_group": keep_a_cache,
    "traffic_rollout": roll_out,
}
# What each policy is for. Those of ECS and auto scaling stand beside that of the operator, and say only what is theirs.
OPERATOR = "traffic-operator"
FOR: Mapping[str, Sequence[Story]] = {
    OPERATOR: [weigh, look, register, roll_out],
    "traffic-ecs": [deploy, migrate],
    "traffic-asg": [scale],
    "infrastructure-cache": [keep_a_cache],
    "traffic-status": [look, ask_for_status],
}
BESIDE_OPERATOR = {"traffic-ecs", "traffic-asg"}


def asked_in(world: World, *stories: Story) -> set[str]:
    """Return what the modules ask of AWS in stories, each of which begins anew."""
    calls = Calls()
    for story in stories:
        story(calls, alb_in(world))
    return calls.made


def statements_of(policy: str) -> list[dict[str, Any]]:
    """Return what a policy says."""
    statements: list[dict[str, Any]] = json.loads((POLICIES / f"{policy}.json").read_text())["Statement"]
    return statements


def allowed_by(statements: list[dict[str, Any]]) -> set[str]:
    """Return what statements allow."""
    return {action for statement in statements for action in listed(statement["Action"])}


def listed(value: Any) -> list[str]:
    """Return one or many as a list."""
    return [value] if isinstance(value, str) else list(value)


def differences(needed: set[str], allowed: set[str]) -> dict[str, list[str]]:
    """Hold what is needed against what is allowed."""
    return {"missing": sorted(needed - allowed), "superfluous": sorted(allowed - needed)}


@pytest.fixture(scope="module")
def needed(world: World) -> Mapping[str, set[str]]:
    """Return what is asked of AWS by those whom each policy is for."""
    found = {policy: asked_in(world, *stories) for policy, stories in FOR.items()}
    return {policy: asked - found[OPERATOR] if policy in BESIDE_OPERATOR else asked for policy, asked in found.items()}


@pytest.mark.parametrize("policy", FOR)
def test_a_policy_allows_what_the_modules_ask_of_aws_and_no_more(policy: str, needed: Mapping[str, set[str]]) -> None:
    assert differences(needed[policy], allowed_by(statements_of(policy))) == {"missing": [], "superfluous": []}


@pytest.mark.parametrize("policy", FOR)
def test_a_policy_that_lacks_an_action_or_has_another_is_found_out(policy: str, needed: Mapping[str, set[str]]) -> None:
    lacking = sorted(needed[policy])[0]
    wrong = (allowed_by(statements_of(policy)) - {lacking}) | {"s3:DeleteObject"}

    assert differences(needed[policy], wrong) == {"missing": [lacking], "superfluous": ["s3:DeleteObject"]}


@pytest.mark.parametrize("module", STORIES)
def test_a_module_says_what_iam_has_to_allow(module: str, world: World) -> None:
    asked = asked_in(world, STORIES[module]) - PASS_ROLE

    assert differences(asked, set(ACTIONS[module])) == {"missing": [], "superfluous": []}


def test_every_policy_is_held_against_what_is_asked() -> None:
    assert {path.stem for path in POLICIES.glob("*.json")} == set(FOR)
    assert set(STORIES.values()) <= {story for stories in FOR.values() for story in stories}


def test_every_module_that_asks_aws_for_traffic_has_its_story() -> None:
    asking = {path.stem for path in (ROOT / "plugins/modules").glob("*.py") if re.search(r"import .*\baws_argspec\b", path.read_text())}

    assert asking == set(STORIES) == set(ACTIONS)


def test_only_what_looks_is_allowed_everywhere() -> None:
    """A task definition has no ARN before it is registered; which roles it may get is what restricts it."""
    for policy in POLICIES.glob("*.json"):
        for statement in statements_of(policy.stem):
            if "*" in listed(statement["Resource"]):
                allowed = set(listed(statement["Action"])) - {"ecs:RegisterTaskDefinition"}
                assert all(re.fullmatch(r"\w+:(Describe|List)\w+", action) for action in allowed)
            assert not any("*" in action for action in listed(statement["Action"]))


def test_who_may_look_may_change_nothing() -> None:
    assert all(re.fullmatch(r"\w+:(Describe|Get|List)\w+", action) for action in allowed_by(statements_of("traffic-status")))
