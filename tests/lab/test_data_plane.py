# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The data plane does what AWS says of its load balancers: what the scenarios prove is worth no more than that."""

from __future__ import annotations

import asyncio
import base64
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.bitflow.lms.tests.lab.backends import Backend
from ansible_collections.bitflow.lms.tests.lab.data_plane import COOKIE, DataPlane, stuck_to
from ansible_collections.bitflow.lms.tests.lab.elb_model import Alb, State, World, new_alb
from ansible_collections.bitflow.lms.tests.lab.http_wire import ask, frame, read_frame, read_message, request
from botocore.exceptions import ClientError

DELAYS = (0, 2, 4)
DRAIN = 6
# Longer than any node needs, and than two health checks.
LONG = 12


class Site:
    """A load balancer with two groups, of which blue gets everything."""

    def __init__(self, world: World, plane: DataPlane) -> None:
        self.plane = plane
        self.alb: Alb = new_alb(world)
        # Resetting AWS has forgotten how targets arrive.
        plane.take_over()
        for name in ("blue", "green"):
            arn = self.alb.group(name)
            self.alb.raw.modify_target_group(
                TargetGroupArn=arn, HealthCheckPath="/up", HealthCheckIntervalSeconds=5, HealthyThresholdCount=2, UnhealthyThresholdCount=2
            )
            delay = {"Key": "deregistration_delay.timeout_seconds", "Value": str(DRAIN)}
            self.alb.raw.modify_target_group_attributes(TargetGroupArn=arn, Attributes=[delay])
        self.listener = self.alb.listener(80, self.alb.forward(blue=1))
        self.nodes = plane.addresses(self.listener)

    def start(self, colour: str, **options: Any) -> Backend:
        """Start a backend and register it."""
        backend = self.plane.start_backend(colour, **options)
        self.register(colour, backend)
        return backend

    def register(self, group: str, backend: Backend) -> None:
        """Register a backend."""
        self.alb.raw.register_targets(TargetGroupArn=self.alb.groups[group], Targets=[{"Id": backend.host, "Port": backend.port}])

    def deregister(self, group: str, backend: Backend) -> None:
        """Deregister a backend."""
        self.alb.raw.deregister_targets(TargetGroupArn=self.alb.groups[group], Targets=[{"Id": backend.host, "Port": backend.port}])

    def weigh(self, **weights: int) -> None:
        """Set weights, and wait until each node knows them."""
        self.alb.by_hand(self.listener, **weights)
        self.wait()

    def wait(self, seconds: float = LONG) -> None:
        """Let time pass."""
        self.plane.clock.sleep(seconds)

    def ask(self, path: str = "/", node: int = 0, **headers: str) -> str:
        """Ask a node; return the colour, or the status where it is no good one."""
        reply = self.plane.do(ask(*self.nodes[node], path, headers))
        return reply.headers["x-colour"] if reply.status == 200 else str(reply.status)

    def states(self, group: str) -> list[tuple[str, str]]:
        """Return the states and reasons of a group's targets, as AWS tells them."""
        found = self.alb.raw.describe_target_health(TargetGroupArn=self.alb.groups[group])["TargetHealthDescriptions"]
        return [(each["TargetHealth"]["State"], each["TargetHealth"].get("Reason", "")) for each in found]


@pytest.fixture
def site(world: World) -> Iterator[Site]:
    """Return a site."""
    with DataPlane(world, delays=DELAYS) as plane:
        yield Site(world, plane)


def test_requests_reach_real_servers(site: Site) -> None:
    backends = [site.start("blue"), site.start("blue")]
    site.wait()

    answers = Counter(site.ask() for _time in range(10))

    assert (answers, [backend.served for backend in backends]) == ({"blue": 10}, [5, 5])


def test_a_new_target_is_healthy_after_one_passed_check(site: Site) -> None:
    site.start("blue")
    before = site.states("blue")
    site.wait(1)

    assert (before, site.states("blue")) == ([("initial", "Elb.RegistrationInProgress")], [("healthy", "")])


def test_a_target_that_refuses_becomes_unhealthy_and_recovers_after_two_checks(site: Site) -> None:
    backend = site.start("blue")
    site.wait(1)
    backend.ill = True
    site.wait(6)
    once = site.states("blue")
    site.wait(6)
    twice = site.states("blue")
    backend.ill = False
    site.wait(LONG)

    assert (once, twice, site.states("blue")) == ([("healthy", "")], [("unhealthy", "Target.ResponseCodeMismatch")], [("healthy", "")])


def test_only_groups_that_an_action_names_are_checked(site: Site) -> None:
    site.start("green")
    site.wait()
    unused = site.states("green")
    site.weigh(blue=1, green=0)

    assert (unused, site.states("green")) == ([("unused", "Target.NotInUse")], [("healthy", "")])


def test_a_group_that_is_taken_off_and_put_back_is_checked_anew(site: Site) -> None:
    backend = site.start("green")
    site.weigh(blue=1, green=0)
    site.weigh(blue=1)
    backend.ill = True
    site.weigh(blue=1, green=0)

    assert site.states("green") == [("unhealthy", "Target.ResponseCodeMismatch")]


def test_a_target_that_boots_is_not_healthy_yet(site: Site) -> None:
    site.start("blue", boot=4)
    site.wait(1)
    booting = site.states("blue")
    site.wait()

    assert (booting, site.states("blue")) == ([("initial", "Elb.InitialHealthChecking")], [("healthy", "")])


def test_two_ports_of_a_host_are_two_targets(site: Site) -> None:
    one = site.start("blue")
    other = site.start("blue", host=one.host)
    other.ill = True
    site.wait()

    assert sorted(site.states("blue")) == [("healthy", ""), ("unhealthy", "Target.ResponseCodeMismatch")]


def test_a_group_without_targets_answers_503(site: Site) -> None:
    assert site.ask() == "503"


def test_no_weight_at_all_answers_503(site: Site) -> None:
    site.start("blue")
    site.start("green")
    site.weigh(blue=0, green=0)

    assert site.ask() == "503"


def test_a_target_that_refuses_connections_answers_502(site: Site) -> None:
    backend = site.start("blue")
    site.wait()
    site.plane.stop_backend(backend)

    assert site.ask() == "502"


def test_a_target_that_dies_in_the_middle_answers_502(site: Site) -> None:
    backend = site.start("blue")
    site.wait()

    async def die() -> str:
        asked = asyncio.ensure_future(ask(*site.nodes[0], "/slow?seconds=30"))
        await site.plane.clock.wait(1)
        backend.end()
        return str((await asked).status)

    assert site.plane.do(die()) == "502"


def test_unhealthy_targets_get_requests_where_no_other_is_left(site: Site) -> None:
    well, ill = site.start("blue"), site.start("blue")
    ill.ill = True
    site.wait()
    with_one = [site.ask() for _time in range(6)]
    served = (well.served, ill.served)
    well.ill = True
    site.wait()
    with_none = [site.ask() for _time in range(6)]

    assert (with_one, served, with_none, ill.served) == (["blue"] * 6, (6, 0), ["blue"] * 6, 3)


def test_each_node_learns_new_weights_after_its_own_time(site: Site) -> None:
    site.start("blue")
    site.start("green")
    site.alb.by_hand(site.listener, blue=0, green=1)
    seen = []
    for _look in range(3):
        site.wait(1)
        seen.append([site.ask(node=node) for node in range(3)])
        site.wait(1)

    assert seen == [["green", "blue", "blue"], ["green", "green", "blue"], ["green", "green", "green"]]


def test_a_target_that_leaves_ends_its_requests_and_gets_no_new_ones(site: Site) -> None:
    leaving, staying = site.start("blue"), site.start("blue")
    site.wait()

    async def leave() -> str:
        asked = [asyncio.ensure_future(ask(*site.nodes[0], f"/slow?seconds={DRAIN - 2}")) for _time in range(2)]
        await site.plane.clock.wait(1)
        await asyncio.to_thread(site.deregister, "blue", leaving)
        return str([(await each).status for each in asked])

    slow = site.plane.do(leave())
    served = leaving.served
    quick = [site.ask() for _time in range(6)]
    draining = sorted(site.states("blue"))
    site.wait()

    assert (slow, quick, served, leaving.served, staying.served) == ("[200, 200]", ["blue"] * 6, 1, 1, 7)
    assert (draining, site.states("blue")) == ([("draining", "Target.DeregistrationInProgress"), ("healthy", "")], [("healthy", "")])


def test_what_takes_longer_than_the_deregistration_delay_is_cut_off(site: Site) -> None:
    backend = site.start("blue")
    site.wait()

    async def leave() -> str:
        asked = asyncio.ensure_future(ask(*site.nodes[0], f"/slow?seconds={DRAIN * 3}"))
        await site.plane.clock.wait(1)
        await asyncio.to_thread(site.deregister, "blue", backend)
        return str((await asked).status)

    assert site.plane.do(leave()) == "502"


def test_a_target_that_is_registered_again_while_it_drains_stays(site: Site) -> None:
    backend = site.start("blue")
    site.wait()
    site.deregister("blue", backend)
    site.wait(1)
    site.register("blue", backend)
    site.wait(DRAIN * 2)

    assert (site.states("blue"), site.ask()) == ([("healthy", "")], "blue")


def test_rules_are_asked_in_order_before_the_default_action(site: Site) -> None:
    site.start("blue")
    site.start("green")
    site.alb.rule(site.listener, site.alb.forward(green=1), priority=20)
    site.alb.raw.create_rule(
        ListenerArn=site.listener,
        Priority=10,
        Conditions=[{"Field": "http-header", "HttpHeaderConfig": {"HttpHeaderName": "X-Stay", "Values": ["yes"]}}],
        Actions=[site.alb.forward(blue=1)],
    )
    site.wait()

    assert [site.ask("/api/x"), site.ask("/x"), site.ask("/api/x", **{"X-Stay": "yes"})] == ["green", "blue", "blue"]


def test_a_client_stays_with_its_group_whatever_the_weights_until_its_cookie_ends() -> None:
    config = {
        "TargetGroups": [{"TargetGroupArn": "blue", "Weight": 0}, {"TargetGroupArn": "green", "Weight": 1}],
        "TargetGroupStickinessConfig": {"Enabled": True, "DurationSeconds": 30},
    }
    cookie = f"{COOKIE}={base64.b64encode(b'30.0 blue').decode()}"

    assert [stuck_to(config, cookie, now) for now in (29, 31)] == ["blue", None]


def test_the_cookie_is_given_with_the_first_answer(site: Site) -> None:
    site.start("blue")
    site.start("green")
    site.alb.raw.modify_listener(ListenerArn=site.listener, DefaultActions=[site.alb.forward(sticky=600, blue=1, green=0)])
    site.wait()
    first = site.plane.do(ask(*site.nodes[0], "/")).headers["set-cookie"]
    site.alb.raw.modify_listener(ListenerArn=site.listener, DefaultActions=[site.alb.forward(sticky=600, blue=0, green=1)])
    site.wait()

    again = site.plane.do(ask(*site.nodes[0], "/", {"Cookie": first}))

    # Who sticks gets no longer time by asking again.
    assert (again.headers["x-colour"], again.headers.get("set-cookie"), site.ask()) == ("blue", None, "green")


def test_websockets_are_carried_both_ways(site: Site) -> None:
    site.start("blue")
    site.wait()

    async def talk() -> list[str | None]:
        reader, writer = await asyncio.open_connection(*site.nodes[0])
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write(request("/ws", headers={"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": key}))
        reply = await read_message(reader)
        heard = [str(reply.status) if reply else None]
        for text in ("one", "two"):
            writer.write(frame(text, masked=True))
            heard.append(await read_frame(reader))
        writer.close()
        return heard

    assert site.plane.do(talk()) == ["101", "blue: one", "blue: two"]


def test_weights_and_groups_that_aws_does_not_take_are_refused(site: Site) -> None:
    gone = site.alb.groups["green"].replace("green", "gone")
    bad = [
        site.alb.forward(blue=1000),
        site.alb.forward(blue=-1),
        {"Type": "forward", "ForwardConfig": {"TargetGroups": [{"TargetGroupArn": gone, "Weight": 1}]}},
        {"Type": "forward", "TargetGroupArn": gone},
    ]
    codes = []
    for action in bad:
        with pytest.raises(ClientError) as caught:
            site.alb.raw.modify_listener(ListenerArn=site.listener, DefaultActions=[action])
        codes.append(caught.value.response["Error"]["Code"])

    assert codes == ["ValidationError", "ValidationError", "TargetGroupNotFound", "TargetGroupNotFound"]
    assert site.alb.weights(site.listener) == {"blue": 1}


def test_hooks_hear_of_backends_that_start_and_stop(site: Site) -> None:
    heard: list[tuple[str, Backend]] = []
    site.plane.on_start.append(lambda backend: heard.append(("started", backend)))
    site.plane.on_stop.append(lambda backend: heard.append(("stops", backend)))

    backend = site.plane.start_backend("blue")
    site.plane.stop_backend(backend)

    assert heard == [("started", backend), ("stops", backend)]


def test_states_of_targets_may_be_looked_at_by_tests(site: Site) -> None:
    backend = site.start("blue")
    site.wait()

    assert site.alb.states("blue") == {(backend.host, backend.port): State()}
