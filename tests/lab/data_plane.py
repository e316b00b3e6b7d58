# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An Application Load Balancer that carries traffic: what moto holds in this process is what its nodes do, each a little later.

with DataPlane(world) as plane:                     # world: elb_model.World
    plane.start_backend(colour, release="r1", *, boot=0, host="") -> Backend    # .host and .port are known at once
    plane.stop_backend(backend)                     # as kill -9 does; its port refuses connections from then on
    plane.on_start.append(hook)                     # hook(backend), after a backend was started; such as to register it
    plane.on_stop.append(hook)                      # hook(backend), before a backend is stopped
    plane.clock                                     # LabClock: now(), sleep(seconds) and after(seconds, action)
    plane.addresses(listener_arn)                   # where the nodes serve a listener: (host, port) each

These may be called from every thread but that of the plane's event loop. To register a backend is up to whoever starts it, by
register_targets with its host and port.

What it does as AWS says: targets are told apart by id and port; only groups that an action names are checked; a new target is healthy after
one passed check; where a group has no healthy target, all of them get requests; 503 where there is no target or no weight; 502 where a
target refuses or breaks off; a target that leaves keeps its requests for the deregistration delay of its group, and new ones go elsewhere.
What AWS does not say, and is assumed here: nodes learn listeners and rules after a delay of their own, and targets at once; a client that
sticks to a group stays with it until its cookie ends, counted from its first request, whatever the weight of the group.
What it does not imitate: TLS, slow start, zones, idle timeouts, and targets that are too few for their load.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fnmatch
import itertools
import os
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.bitflow.lms.tests.lab.backends import HEALTH_PATH, Backend
from ansible_collections.bitflow.lms.tests.lab.elb_model import ACCOUNT, REGION, Key, State, World
from ansible_collections.bitflow.lms.tests.lab.http_wire import Message, answer, ask, read_message, tunnel
from ansible_collections.bitflow.lms.tests.lab.lab_clock import LabClock
from moto.elbv2 import models

NODES = 3
# How often the plane looks at what moto holds (seconds of the lab).
LOOK = 0.1
# After how long each node goes by new listeners and rules (seconds of the lab).
DELAYS = (0.5, 3.0, 7.0)
COOKIE = "AWSALBTG"
REGISTERING = ("initial", "Elb.RegistrationInProgress")


@dataclass(frozen=True)
class Rule:
    """A rule of a listener, as a node knows it."""

    conditions: Sequence[Mapping[str, Any]]
    action: Mapping[str, Any]

    def suits(self, request: Message) -> bool:
        """Say whether a request is one for this rule."""
        return all(self._suits(condition, request) for condition in self.conditions)

    def _suits(self, condition: Mapping[str, Any], request: Message) -> bool:
        """Judge one condition."""
        kind = condition["Field"]
        config = condition.get({"path-pattern": "PathPatternConfig", "host-header": "HostHeaderConfig"}.get(kind, "HttpHeaderConfig")) or {}
        patterns = condition.get("Values") or config["Values"]
        found = {
            "path-pattern": request.path.partition("?")[0],
            "host-header": request.headers.get("host", "").partition(":")[0],
            "http-header": request.headers.get(str(config.get("HttpHeaderName", "")).lower(), ""),
        }[kind]
        return any(fnmatch.fnmatchcase(found, pattern) for pattern in patterns)


# ARN of a listener to its rules, in the order in which they are asked.
Configuration = Mapping[str, Sequence[Rule]]


@dataclass
class Check:
    """What the health checks of one target have found."""

    state: State
    due: float
    passed: int = 0
    failed: int = 0


@dataclass
class Node:
    """One of the load balancer's nodes."""

    number: int
    dice: random.Random
    knows: dict[str, Sequence[Rule]] = field(default_factory=dict)


@dataclass(eq=False)
class Connection:
    """A connection to a target."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def usable(self) -> bool:
        """Say whether a request may be sent over it."""
        return not (self.reader.at_eof() or self.writer.is_closing())


class DataPlane:
    """The nodes of the load balancers of one AWS, its health checks, and the backends."""

    def __init__(self, world: World, seed: int = 1, delays: Sequence[float] = DELAYS) -> None:
        self.world = world
        # May be changed while it runs.
        self.delays = list(delays)
        self.on_start: list[Callable[[Backend], None]] = []
        self.on_stop: list[Callable[[Backend], None]] = []
        self.backends: list[Backend] = []
        self.broken: list[Exception] = []
        self._nodes = [Node(number, random.Random(seed * NODES + number)) for number in range(NODES)]  # noqa: S311 (no secret)
        self._published: Configuration = {}
        self._sockets: dict[str, list[asyncio.Server]] = {}
        self._checks: dict[tuple[str, Key], Check] = {}
        self._leaving: set[int] = set()
        self._idle: dict[Key, list[Connection]] = {}
        self._busy: dict[Key, set[Connection]] = {}
        self._hosts = (f"127.{os.getpid() % 250 + 1}.{number // 200}.{number % 200 + 1}" for number in itertools.count(200))
        self._turns = itertools.count()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        # Set once the thread runs.
        self.clock: LabClock
        self._looking: asyncio.Lock

    # From other threads

    def __enter__(self) -> DataPlane:
        started = threading.Event()
        self.loop.call_soon_threadsafe(self._start, started)
        self._thread.start()
        started.wait()
        self.take_over()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.do(self._close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        if self.broken:
            raise AssertionError("the data plane itself is at fault") from self.broken[0]

    def take_over(self) -> None:
        """Say from now on how targets arrive and leave. To be called again where a test has made AWS anew."""
        self.world.arriving, self.world.drains = State(*REGISTERING), True

    def do(self, work: Any) -> Any:
        """Have the loop do something, and return what it came to."""
        with self.clock.awaited():
            future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self.loop)
            return future.result()

    def start_backend(self, colour: str, release: str = "r1", *, boot: float = 0, host: str = "") -> Backend:
        """Start a server, which serves after so many seconds of the lab. Several may share a host."""

        async def start() -> Backend:
            backend = Backend(self.clock, colour, release, host or next(self._hosts), boot)
            backend.begin()
            self.backends.append(backend)
            # Without a boot time it serves by now.
            for _turn in range(2):
                await asyncio.sleep(0)
            return backend

        made: Backend = self.do(start())
        for hook in self.on_start:
            hook(made)
        return made

    def stop_backend(self, backend: Backend) -> None:
        """Stop a server in the middle of whatever it does."""
        for hook in self.on_stop:
            hook(backend)

        async def stop() -> None:
            backend.end()
            if backend in self.backends:
                self.backends.remove(backend)

        self.do(stop())

    def addresses(self, listener_arn: str) -> list[tuple[str, int]]:
        """Return where each node serves a listener."""

        async def look() -> list[tuple[str, int]]:
            async with self._looking:
                await self._look()
            return [server.sockets[0].getsockname() for server in self._sockets[listener_arn]]

        found: list[tuple[str, int]] = self.do(look())
        return found

    # In the loop

    def _run(self) -> None:
        """Run the loop."""
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def _start(self, started: threading.Event) -> None:
        """Begin to look at what moto holds."""
        self.clock = LabClock(self.loop)
        self._looking = asyncio.Lock()
        self.keep(self._watch())
        started.set()

    async def _close(self) -> None:
        """End everything."""
        self.clock.close()
        for backend in self.backends:
            backend.end()
        for servers in self._sockets.values():
            for server in servers:
                server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def keep(self, work: Any) -> asyncio.Task[Any]:
        """Do something beside everything else."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _watch(self) -> None:
        """Look again and again."""
        while True:
            async with self._looking:
                await self._look()
            await self.clock.wait(LOOK)

    async def _look(self) -> None:
        """Take up what changed in moto: listeners and rules, targets that are new and targets that leave."""
        published = read_configuration()
        for listener in published:
            if listener not in self._sockets:
                await self._open(listener)
                for node in self._nodes:
                    node.knows[listener] = published[listener]
        if published != self._published:
            self._published = published
            for node, delay in zip(self._nodes, self.delays):
                self.clock.after(delay, lambda node=node: node.knows.update(published))
        attached = groups_of(published)
        for arn, states in list(self.world.targets.items()):
            for key, state in list(states.items()):
                if state.state == "draining":
                    self._let_go(arn, key, state)
                elif arn in attached:
                    self._check_when_due(arn, key, state)
                else:
                    # Whoever attaches the group again has its targets checked as new ones.
                    self._checks.pop((arn, key), None)
                    state.state, state.reason = REGISTERING

    async def _open(self, listener: str) -> None:
        """Serve a listener on every node."""
        self._sockets[listener] = []
        for node in self._nodes:

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, node: Node = node) -> None:
                await self._serve(node, listener, reader, writer)

            self._sockets[listener].append(await asyncio.start_server(serve, "127.0.0.1", 0))

    # Targets

    def _let_go(self, arn: str, key: Key, state: State) -> None:
        """Let a target that was deregistered end its requests, and then forget it."""
        if id(state) in self._leaving:
            return
        self._leaving.add(id(state))
        delay = float(group_of(arn).attributes["deregistration_delay.timeout_seconds"])

        def over() -> None:
            self._leaving.discard(id(state))
            # It may have been registered again.
            if self.world.targets.get(arn, {}).get(key) is state:
                del self.world.targets[arn][key]
                for connection in [*self._idle.pop(key, []), *self._busy.get(key, ())]:
                    connection.writer.transport.abort()

        self.clock.after(delay, over)

    def _check_when_due(self, arn: str, key: Key, state: State) -> None:
        """Check a target if it is time."""
        check = self._checks.get((arn, key))
        if check is None or check.state is not state:
            check = self._checks[arn, key] = Check(state, self.clock.seconds)
        if check.due <= self.clock.seconds:
            check.due = self.clock.seconds + float(group_of(arn).health_check_interval_seconds)
            self.keep(self._check(arn, key, check))

    async def _check(self, arn: str, key: Key, check: Check) -> None:
        """Ask a target how it is, and say what follows."""
        group = group_of(arn)
        reason = "Target.FailedHealthChecks"
        try:
            status = (await ask(*key, group.health_check_path or HEALTH_PATH)).status
            reason = "" if status == 200 else "Target.ResponseCodeMismatch"
        except OSError:
            pass
        check.passed, check.failed = (0, check.failed + 1) if reason else (check.passed + 1, 0)
        state = check.state
        if state.state == "initial" and not reason:
            # A new one needs a single passed check.
            state.state, state.reason = "healthy", ""
        elif check.passed >= int(group.healthy_threshold_count):
            state.state, state.reason = "healthy", ""
        elif check.failed >= int(group.unhealthy_threshold_count):
            state.state, state.reason = "unhealthy", reason
        elif state.state == "initial":
            state.reason = "Elb.InitialHealthChecking"

    def _choose_target(self, node: Node, arn: str) -> Key | None:
        """Choose who of a group gets a request: one of the healthy, or of all where none is."""
        there = [(key, state) for key, state in list(self.world.targets.get(arn, {}).items()) if state.state != "draining"]
        healthy = [key for key, state in there if state.state == "healthy"]
        found = healthy or [key for key, _state in there]
        return found[next(self._turns) % len(found)] if found else None

    # Requests

    async def _serve(self, node: Node, listener: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a client's connection."""
        try:
            with contextlib.suppress(OSError):
                while (request := await read_message(reader)) is not None:
                    if not await self._answer(node, listener, request, reader, writer) or not request.lasts:
                        return
        except Exception as error:
            # A fault of the lab is none of what it looks at.
            self.broken.append(error)
        finally:
            writer.close()

    async def _answer(
        self, node: Node, listener: str, request: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer a request; say whether the connection may stay."""
        action = next(rule for rule in node.knows[listener] if rule.suits(request)).action
        if action["Type"] == "fixed-response":
            writer.write(answer(int(action["FixedResponseConfig"]["StatusCode"])))
            return True
        if action["Type"] == "redirect":
            writer.write(answer(301, headers={"Location": str(action["RedirectConfig"].get("Path", "/"))}))
            return True
        group = stuck_to(action["ForwardConfig"], request.headers.get("cookie", ""), self.clock.seconds)
        cookies = ""
        if group is None:
            group = choose_group(node.dice, action["ForwardConfig"])
            cookies = new_cookies(action["ForwardConfig"], group, self.clock.seconds) if group else ""
        key = self._choose_target(node, group) if group else None
        if key is None:
            writer.write(answer(503, b"no target"))
            return True
        return await self._forward(key, request, cookies, reader, writer)

    async def _forward(self, key: Key, request: Message, cookies: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Have a target answer a request."""
        try:
            connection = await self._connect(key)
        except OSError:
            writer.write(answer(502, b"refused"))
            return True
        busy = self._busy.setdefault(key, set())
        busy.add(connection)
        try:
            connection.writer.write(request.passed_on(writer.get_extra_info("peername")[0]))
            reply = await read_message(connection.reader)
            if reply is None:
                raise ConnectionResetError("the target left without an answer")
            if reply.status == 101:
                writer.write(reply.whole)
                await tunnel((reader, writer), (connection.reader, connection.writer))
                return False
        except OSError:
            connection.writer.close()
            writer.write(answer(502, b"broken off"))
            return True
        finally:
            busy.discard(connection)
        writer.write(reply.with_header("Set-Cookie", cookies) if cookies else reply.whole)
        self._idle.setdefault(key, []).append(connection)
        return True

    async def _connect(self, key: Key) -> Connection:
        """Return a connection to a target: one that is there, or a new one."""
        idle = self._idle.get(key, [])
        while idle:
            connection = idle.pop()
            if connection.usable:
                return connection
            connection.writer.close()
        return Connection(*await asyncio.open_connection(*key))


# What moto holds


def read_configuration() -> dict[str, list[Rule]]:
    """Return every listener with its rules, as moto has them now."""
    found = {}
    for balancer in list(models.elbv2_backends[ACCOUNT][REGION].load_balancers.values()):
        for listener in list(balancer.listeners.values()):
            rules = sorted(listener.rules.values(), key=lambda rule: (rule.is_default, 0 if rule.is_default else int(rule.priority)))
            found[listener.arn] = [Rule(list(rule.conditions), rule.actions[-1].data) for rule in rules]
    return found


def groups_of(configuration: Configuration) -> set[str]:
    """Return the groups that actions name."""
    return {
        group["TargetGroupArn"]
        for rules in configuration.values()
        for rule in rules
        for group in (rule.action.get("ForwardConfig") or {}).get("TargetGroups", [])
    }


def group_of(arn: str) -> Any:
    """Return a target group as moto has it."""
    return models.elbv2_backends[ACCOUNT][REGION].target_groups[arn]


# Whom a request goes to


def stuck_to(config: Mapping[str, Any], cookies: str, now: float) -> str | None:
    """Return the group that a client sticks to."""
    if not config["TargetGroupStickinessConfig"].get("Enabled"):
        return None
    for cookie in cookies.split("; "):
        name, _equals, value = cookie.partition("=")
        if name == COOKIE:
            until, _space, arn = base64.b64decode(value).decode().partition(" ")
            if float(until) > now and any(group["TargetGroupArn"] == arn for group in config["TargetGroups"]):
                return arn
    return None


def choose_group(dice: random.Random, config: Mapping[str, Any]) -> str | None:
    """Choose a group by weight; none where no group has any."""
    weights = {group["TargetGroupArn"]: int(group.get("Weight", 1)) for group in config["TargetGroups"]}
    return dice.choices(list(weights), list(weights.values()))[0] if any(weights.values()) else None


def new_cookies(config: Mapping[str, Any], group: str, now: float) -> str:
    """Return the cookie that keeps a client on a group; nothing where none is to be kept."""
    sticky = config["TargetGroupStickinessConfig"]
    if not sticky.get("Enabled"):
        return ""
    until = now + float(sticky["DurationSeconds"])
    return f"{COOKIE}={base64.b64encode(f'{until} {group}'.encode()).decode()}"
