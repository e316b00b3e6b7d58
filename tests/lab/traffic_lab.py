# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab of traffic: a load balancer of AWS that serves users from real backends, controllers that may die, and an AWS that may say no.

with aws() as world, Lab(world) as lab:
    lab.deploy("green", "r2")
    lab.controller().until("retired")
    lab.count().failed                              # the users leave, with 4000 requests at least
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import boto3
from ansible_collections.bitflow.lms.plugins.module_utils import _alb_targets, _alb_traffic
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_checks import smoke_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_options import (
    checks_of,
    open_provider,
    passes,
    rollout_argspec,
    run,
)
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_record import Record, parse
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_record_s3 import ObjectStore
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_rollout import Outcome
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock
from ansible_collections.bitflow.lms.tests.lab.backends import HEALTH_PATH, Backend
from ansible_collections.bitflow.lms.tests.lab.data_plane import DELAYS, DataPlane
from ansible_collections.bitflow.lms.tests.lab.elb_model import REGION, World, new_alb
from ansible_collections.bitflow.lms.tests.lab.lab_clock import CALL
from ansible_collections.bitflow.lms.tests.lab.users import Count, Users

GROUPS = {"blue": "lms-blue", "green": "lms-green"}
BUCKET, KEY = "example-state", "traffic/lab/lms.json"
CANARY = ({"weight": 5, "bake": 4}, {"weight": 25, "bake": 4}, {"weight": 50, "bake": 4}, {"weight": 100, "bake": 4})
AT_ONCE = ({"weight": 100, "bake": 4},)
# All times in seconds of the lab. The slowest node needs seven of them.
OPTIONS: Mapping[str, Any] = {
    "name": "lab/lms",
    "action": "advance",
    "provider": "alb",
    "release": "r2",
    "colour": "green",
    "colours": GROUPS,
    "state": f"s3://{BUCKET}/{KEY}",
    "steps": CANARY,
    "gate": {"min_healthy": 2, "consecutive": 3, "interval": 1, "timeout": 25},
    "propagation_wait": 9,
    "retain": 8,
    "verify_timeout": 10,
    "lease_time": 10,
}
DRAIN = 4
# No shorter one is taken by AWS.
CHECK_INTERVAL = 5

_Result = TypeVar("_Result")


class Killed(BaseException):
    """The end of a controller, as kill -9 is: nothing catches it, and nothing is done after it."""


class Wire:
    """A client of AWS in the hands of a controller."""

    def __init__(self, client: Any, controller: Controller) -> None:
        self.meta = client.meta
        self._client = client
        self._controller = controller

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(**parameters: Any) -> Any:
            return self._controller.carry(moment(method, parameters), lambda: getattr(self._client, method)(**parameters))

        return call


def moment(method: str, parameters: Mapping[str, Any]) -> str:
    """Return what a call is, such as modify_listener, or put_object with the phase that it writes."""
    if method != "put_object":
        return method
    rollout = json.loads(parameters["Body"])["rollout"]
    return f"put_object {rollout['phase'] if rollout else 'idle'}"


class Controller:
    """One process that drives a rollout, with the code of the module and connections of its own."""

    def __init__(self, lab: Lab, **options: Any) -> None:
        self.lab = lab
        self.calls: list[str] = []
        # Asked before and after each call: an error is raised, whatever else happens. Killed ends the controller.
        self.before: Callable[[str], BaseException | None] = lambda _moment: None
        self.after: Callable[[str], BaseException | None] = lambda _moment: None
        self._dead = False
        defaults = {name: option.get("default") for name, option in rollout_argspec().items()}
        self.options = {**defaults, "routes": lab.routes, **OPTIONS, **options}
        self._clients = {service: Wire(boto3.client(service, region_name=REGION), self) for service in ("elbv2", "s3", "cloudwatch")}

    def carry(self, what: str, call: Callable[[], _Result]) -> _Result:
        """Make a call, unless something goes wrong on the way there or back."""
        if self._dead:
            raise Killed
        self.lab.clock.sleep(CALL)
        self.calls.append(what)
        self._meet(self.before(what))
        with self.lab.clock.held():
            reply = call()
        self._meet(self.after(what))
        return reply

    def _meet(self, error: BaseException | None) -> None:
        """Raise an error, if there is one."""
        if error is not None:
            self._dead = isinstance(error, Killed)
            raise error

    def dies(self, what: str, after: bool = False) -> None:
        """Have this controller killed at the first call of a kind, before it or after it."""

        def hook(found: str) -> BaseException | None:
            return Killed() if found == what else None

        if after:
            self.after = hook
        else:
            self.before = hook

    def api(self, service: str) -> Api:
        """Return a service of AWS."""
        client = self._clients["elbv2" if service == "elasticloadbalancing" else service]
        return Api(client, service, self.lab.clock.sleep)

    def call(self, action: str = "advance", **options: Any) -> Outcome:
        """Do what one run of the module does."""
        given = {**self.options, "action": action, **options}
        if action == "rollback" and "colour" not in options:
            given["colour"] = ""
        checks = checks_of(given, self.api)
        store = ObjectStore(self._clients["s3"], BUCKET, KEY, self.lab.clock.sleep)
        return run(given, open_provider(given, self.api), store, checks, clock=self.lab.clock.now, sleep=self.lab.clock.sleep)

    def until(self, phase: str = "", action: str = "advance", **options: Any) -> Outcome:
        """Call again and again, as the playbook does, until a phase is reached, or else until it is done."""
        for _time in range(400):
            try:
                outcome = self.call(action, **options)
            except LmsError as error:
                if not passes(error):
                    raise
                self.lab.clock.sleep(1)
                continue
            if outcome.phase == phase or (not phase and outcome.done):
                return outcome
            if phase and outcome.phase in ("failed", "retired", "rolled_back"):
                raise AssertionError(f"{phase} was never reached: {outcome.message()} {outcome.fault}")
            now = self.lab.clock.now()
            self.lab.clock.sleep((outcome.next_at - now).total_seconds() if outcome.next_at else 0.5)
        raise AssertionError(f"no end in sight: {outcome.message()}")

    def weigh(self, weights: Mapping[str, int], **options: Any) -> _alb_traffic.Outcome:
        """Set weights with the code of the module alb_traffic."""
        given = {
            "routes": self.lab.routes,
            "weights": {GROUPS[colour]: weight for colour, weight in weights.items()},
            "expect": None,
            "stickiness": None,
            **{key: self.options[key] for key in ("gate", "retain", "verify_timeout", "propagation_wait")},
            **options,
        }
        provider, wanted = _alb_traffic.open_provider(self.api("elasticloadbalancing"), given)
        return _alb_traffic.run(provider, wanted, _alb_traffic.Settings.of(given), False, self._clock)

    def targets(self, backends: Sequence[Backend], state: str) -> dict[str, Any]:
        """Register or deregister backends of a colour with the code of the module alb_targets, and wait for them."""
        given = {
            "group": GROUPS[backends[0].colour],
            "targets": [{"id": backend.host, "port": backend.port} for backend in backends],
            "state": state,
            "wait": True,
            "wait_timeout": 60,
            "interval": 1,
            "consecutive": 3,
            "min_healthy": 1,
        }
        return _alb_targets.run(self.api("elasticloadbalancing"), given, False, self._clock)

    @property
    def _clock(self) -> Clock:
        """Return the time as the modules take it."""
        return Clock(lambda: self.lab.clock.seconds, self.lab.clock.sleep)


class Lab:
    """Blue serves two routes, the listener's default action and a rule for /api/*; green has nothing yet, and no action names it."""

    def __init__(self, world: World, *, targets: int = 2, sticky: int = 0, delays: Sequence[float] = DELAYS, drain: float = DRAIN) -> None:
        self.plane = DataPlane(world, delays=delays)
        self._targets = targets
        self._sticky = sticky
        self._drain = drain
        self._world = world
        self._users: Users | None = None

    def __enter__(self) -> Lab:
        self.alb = new_alb(self._world)
        self.plane.__enter__()
        self.clock = self.plane.clock
        for group in GROUPS.values():
            self._make_group(group)
        self.listener = self.alb.listener(443, self.alb.forward(**{GROUPS["blue"]: 100}, sticky=self._sticky))
        self.rule = self.alb.rule(self.listener, self.alb.forward(**{GROUPS["blue"]: 100}, sticky=self._sticky))
        self.routes = [{"name": "web", "listener_arn": self.listener}, {"name": "api", "rule_arn": self.rule}]
        self.s3 = boto3.client("s3", region_name=REGION)
        self.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        self.s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        self.alarms = boto3.client("cloudwatch", region_name=REGION)
        self.deploy("blue", "r1")
        self.wait_for("blue", "healthy", self._targets)
        self.users_come()
        return self

    def __exit__(self, *exception: object) -> None:
        self.plane.__exit__(*exception)

    def _make_group(self, name: str) -> None:
        """Make a target group that is checked often and drains quickly."""
        arn = self.alb.group(name)
        self.alb.raw.modify_target_group(
            TargetGroupArn=arn,
            HealthCheckPath=HEALTH_PATH,
            HealthCheckIntervalSeconds=CHECK_INTERVAL,
            HealthyThresholdCount=2,
            UnhealthyThresholdCount=2,
        )
        delay = {"Key": "deregistration_delay.timeout_seconds", "Value": str(self._drain)}
        self.alb.raw.modify_target_group_attributes(TargetGroupArn=arn, Attributes=[delay])

    # Users

    def users_come(self) -> None:
        """Let users ask for things from now on."""
        users = Users(self.clock, self.plane.addresses(self.listener))

        async def come() -> None:
            users.come()

        self.plane.do(come())
        self._users = users

    def count(self) -> Count:
        """Let the users leave, once they have asked often enough, and return what they met."""
        if self._users is None:
            raise AssertionError("there are no users")
        users, self._users = self._users, None
        found: Count = self.plane.do(users.leave())
        return found

    def smoke_rule(self, colour: str) -> dict[str, Any]:
        """Have the listener send those who ask for a colour there, and return a smoke test that does."""
        self.alb.raw.create_rule(
            ListenerArn=self.listener,
            Priority=1,
            Conditions=[{"Field": "http-header", "HttpHeaderConfig": {"HttpHeaderName": "X-Colour", "Values": [colour]}}],
            Actions=[self.alb.forward(**{GROUPS[colour]: 1})],
        )
        host, port = self.plane.addresses(self.listener)[0]
        defaults = {name: option.get("default") for name, option in smoke_argspec().items()}
        answers = {"expect_headers": {"X-Colour": "{colour}", "X-Release": "r2"}, "attempts": 3, "interval": 0.01}
        return {**defaults, **answers, "url": f"http://{host}:{port}/", "headers": {"X-Colour": "{colour}"}}

    # Capacity

    def deploy(self, colour: str, release: str, count: int = 0, *, boot: float = 0) -> list[Backend]:
        """Start backends of a colour and register them."""
        made = [self.plane.start_backend(colour, release, boot=boot) for _number in range(count or self._targets)]
        for backend in made:
            self.register(backend)
        return made

    def register(self, backend: Backend) -> None:
        """Register a backend with the group of its colour."""
        self.alb.raw.register_targets(TargetGroupArn=self.alb.groups[GROUPS[backend.colour]], Targets=[target_of(backend)])

    def deregister(self, backend: Backend) -> None:
        """Deregister a backend."""
        self.alb.raw.deregister_targets(TargetGroupArn=self.alb.groups[GROUPS[backend.colour]], Targets=[target_of(backend)])

    def scale(self, colour: str, count: int) -> None:
        """Leave so many backends of a colour, as ECS does: targets leave, and their backends stop when they have drained."""
        leaving = self.of(colour)[count:]
        for backend in leaving:
            self.deregister(backend)
        for backend in leaving:
            self.wait_until(lambda backend=backend: (backend.host, backend.port) not in self.alb.states(GROUPS[colour]))
            self.plane.stop_backend(backend)

    def of(self, colour: str) -> list[Backend]:
        """Return the backends of a colour."""
        return [backend for backend in self.plane.backends if backend.colour == colour]

    # Looking and waiting

    def controller(self, **options: Any) -> Controller:
        """Return a controller."""
        return Controller(self, **options)

    def weights(self) -> dict[str, dict[str, int]]:
        """Return the live weights by colour."""
        colours = {group: colour for colour, group in GROUPS.items()}
        return {
            name: {colours[group]: weight for group, weight in sorted(self.alb.weights(arn).items())}
            for name, arn in (("web", self.listener), ("api", self.rule))
        }

    def record(self) -> Record:
        """Return the record."""
        return parse(self.s3.get_object(Bucket=BUCKET, Key=KEY)["Body"].read(), OPTIONS["name"], KEY)

    def states(self, colour: str) -> list[str]:
        """Return the states of a colour's targets."""
        return sorted(state.state for state in list(self.alb.states(GROUPS[colour]).values()))

    def alarm(self, name: str, state: str) -> None:
        """Make an alarm, or have it change its state."""
        self.alarms.put_metric_alarm(
            AlarmName=name,
            MetricName="errors",
            Namespace="lms",
            Period=60,
            EvaluationPeriods=1,
            Statistic="Sum",
            Threshold=1,
            ComparisonOperator="GreaterThanThreshold",
        )
        self.alarms.set_alarm_state(AlarmName=name, StateValue=state, StateReason="said so")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        for _look in range(2000):
            if condition():
                return
            self.clock.sleep(0.25)
        raise AssertionError("it never came about")

    def wait_for(self, colour: str, state: str, count: int) -> None:
        """Wait until so many targets of a colour have a state."""
        self.wait_until(lambda: self.states(colour).count(state) >= count)

    # As somebody does who knows no guards

    def modify(self, *, sticky: int = 0, routes: Sequence[str] = ("web", "api"), **weights: int) -> None:
        """Set the weights of routes with bare calls."""
        action = self.alb.forward(sticky=sticky or self._sticky, **{GROUPS[colour]: weight for colour, weight in weights.items()})
        if "web" in routes:
            self.alb.raw.modify_listener(ListenerArn=self.listener, DefaultActions=[action])
        if "api" in routes:
            self.alb.raw.modify_rule(RuleArn=self.rule, Actions=[action])


def target_of(backend: Backend) -> dict[str, Any]:
    """Return a backend as a target."""
    return {"Id": backend.host, "Port": backend.port}


def together(*work: Callable[[], None]) -> None:
    """Do several things at once; fail as the first of them that fails."""
    errors: list[BaseException] = []

    def one(each: Callable[[], None]) -> None:
        try:
            each()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(each,)) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
