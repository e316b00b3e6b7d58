# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Releases of Next.js front ends on this host: their components, the processes of these, and the switch between two releases."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._components import APP_NAME, SOCKETS, Component, Components, Order, component_key
from ansible_collections.bitflow.lms.plugins.module_utils._dotenv import Difference, compare, value_texts
from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._expectation import Expectation
from ansible_collections.bitflow.lms.plugins.module_utils._files import ANYBODY, Owner
from ansible_collections.bitflow.lms.plugins.module_utils._http_probe import Probe, Response, ask_once, call
from ansible_collections.bitflow.lms.plugins.module_utils._release import Build, Releases
from ansible_collections.bitflow.lms.plugins.module_utils._release_change import prune
from ansible_collections.bitflow.lms.plugins.module_utils._release_plan import Request, Tree, decide, summary
from ansible_collections.bitflow.lms.plugins.module_utils._systemd import Systemctl

# Node.js writes some twenty lines about an error that nobody caught, the reason at their top.
JOURNAL_LINES = 40
SHORTEST_SECRET = 6
# Stands for the key of a component in check mode, while nobody knows what its artifact will hold.
NOT_BUILT = "not-built"

# What one question may take, and how long to wait between two (seconds). A process that has just been started is asked often.
QUESTION_TIMEOUT = 5
INTERVAL = 0.25

# A process may fall once, such as when a service that it needs was restarted just then.
RESTARTS_ALLOWED = 1

_INSTANCE = re.compile(r"(?P<app>[a-z0-9-]+)@(?P<key>[0-9a-f]{16})\.service")


@dataclass(frozen=True)
class Frontend:
    """One front end as the inventory describes it."""

    name: str
    port: int
    server: str = "server.js"
    environment: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """What does not change from one release to the next."""

    prefix: str = "lms"
    frontends: tuple[Frontend, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict)
    artifacts_path: Path = Path("artifacts")
    domain: str = ""
    health_uri: str = "/"
    timeout: float = 60
    consecutive: int = 3
    assets_kept: int = 30
    keep: int | None = None
    owner: Owner = ANYBODY


# Decisions


def wanted(settings: Settings, foresee: bool = False) -> tuple[Order, ...]:
    """Return the components of a release. In check mode an artifact need not have been built: its sum is empty then."""
    names = [frontend.name for frontend in settings.frontends]
    wrong = sorted({name for name in names if not APP_NAME.fullmatch(name) or names.count(name) > 1})
    if wrong:
        raise LmsError(f"frontends has the names {', '.join(map(repr, wrong))}: each must occur once and consist of a-z, 0-9 and hyphens.")
    missing = sorted(name for name in names if not settings.artifacts.get(name)) if not foresee else []
    if missing:
        raise LmsError(f"artifacts has no SHA-256 of the front ends {', '.join(missing)}. Build them first.", missing=missing)
    return tuple(_order(settings, frontend) for frontend in settings.frontends)


def _order(settings: Settings, frontend: Frontend) -> Order:
    """Return what one component is made from."""
    given = {**settings.environment, **frontend.environment}
    environment = value_texts(given, (), f"The front end {frontend.name}")
    sha256 = settings.artifacts.get(frontend.name, "")
    component = Component(frontend.name, component_key(sha256, environment) if sha256 else NOT_BUILT, sha256)
    return Order(component, settings.artifacts_path / f"{frontend.name}.tar.gz", environment, frontend.server)


def sum_of(components: Iterable[Component]) -> str:
    """Return one sum for all components of a release: what it is made of never changes."""
    return hashlib.sha256("\n".join(sorted(component.name for component in components)).encode()).hexdigest()


def unit_of(prefix: str, component: Component) -> str:
    """Return the unit that runs a component."""
    return f"{prefix}-{component.app}@{component.key}.service"


def superfluous(running: Iterable[str], needed: Iterable[str]) -> list[str]:
    """Return the units that run for nobody."""
    return sorted(set(running) - set(needed))


def hide_values(text: str, environment: Mapping[str, str]) -> str:
    """Replace the values of an environment in a text by the variables' names. Short ones are no secrets, and would spoil other words."""
    for key in sorted(environment, key=lambda key: (-len(environment[key]), key)):
        if len(environment[key]) >= SHORTEST_SECRET:
            text = text.replace(environment[key], f"${{{key}}}")
    return text


# The service manager


@dataclass(frozen=True)
class UnitState:
    """What systemd says about a unit: its state, and how often it had to start the process again."""

    active: str = "inactive"
    restarts: int = 0


class Units:
    """The units of the front ends."""

    def __init__(self, systemctl: Systemctl, prefix: str) -> None:
        self._systemctl = systemctl
        self.prefix = prefix

    def states(self, units: Sequence[str]) -> dict[str, UnitState]:
        """Return the state of each unit."""
        if not units:
            return {}
        blocks = self._systemctl("show", "--property=Id,ActiveState,NRestarts", *units).strip().split("\n\n")
        found = (dict(line.split("=", 1) for line in block.splitlines()) for block in blocks)
        return {entry["Id"]: UnitState(entry["ActiveState"], int(entry.get("NRestarts", 0))) for entry in found}

    def _failed(self, units: Sequence[str]) -> list[str]:
        """Return the units that ended badly."""
        return [unit for unit, state in self.states(units).items() if state.active == "failed"]

    def there(self, apps: Container[str]) -> list[str]:
        """Return the units of some front ends that are not stopped. Others on this host may have units with the same prefix."""
        listed = self._systemctl("list-units", "--all", "--plain", "--no-legend", "--full", "--type=service", f"{self.prefix}-*@*.service")
        units: list[str] = []
        for line in listed.splitlines():
            name, _load, active = line.split()[:3]
            instance = _INSTANCE.fullmatch(name[len(self.prefix) + 1 :])
            if instance and instance["app"] in apps and active != "inactive":
                units.append(name)
        return sorted(units)

    def start(self, units: Sequence[str]) -> None:
        """Start units. What failed before may try again at once."""
        failed = self._failed(units)
        if failed:
            self._systemctl("reset-failed", *failed)
        try:
            self._systemctl("start", *units)
        except CommandError:
            # A process that ended at once is a front end that is not well: the one who asks it says so, with its log.
            if not {"activating", "failed"} & {state.active for state in self.states(units).values()}:
                raise

    def stop(self, units: Sequence[str]) -> None:
        """Stop units: each gives its last answers first, for as long as its unit lets it."""
        self._systemctl("stop", *units)
        failed = self._failed(units)
        if failed:
            # It was killed in the end. Nobody needs it any more, so it is no failure of the host.
            self._systemctl("reset-failed", *failed)

    def journal(self, unit: str) -> list[str]:
        """Return the last lines that the processes of a unit wrote, or what systemd says about it if they wrote none."""
        own = self._systemctl.log(f"_SYSTEMD_UNIT={unit}", f"--lines={JOURNAL_LINES}")
        return own or self._systemctl.log(f"--unit={unit}", f"--lines={JOURNAL_LINES}")


# Health


@dataclass(frozen=True, eq=False)
class Question:
    """Ask a front end whether a component answers for it."""

    component: Component
    unit: str
    probe: Probe


Ask = Callable[[Probe], "tuple[Response | None, str]"]
LookAtUnits = Callable[[Sequence[str]], Mapping[str, UnitState]]


def ask(probe: Probe) -> tuple[Response | None, str]:
    """Ask once, and return what is wrong with the answer."""
    return ask_once(probe, None, call)


class Prober:
    """Ask all front ends side by side until each has given enough good answers in a row."""

    def __init__(
        self,
        ask: Ask = ask,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ask = ask
        self.clock = clock
        self._sleep = sleep

    def wait(self, questions: Sequence[Question], consecutive: int, timeout: float, states: LookAtUnits) -> dict[Question, str]:
        """Return what is wrong with those that are not well in time. A process that does not stay up is not waited for."""
        at_first = states([question.unit for question in questions])
        deadline = self.clock() + timeout
        good = dict.fromkeys(questions, 0)
        complaints: dict[Question, str] = {}
        with ThreadPoolExecutor(max_workers=max(1, len(questions))) as pool:
            while True:
                pending = [question for question in questions if good[question] < consecutive]
                if not pending:
                    return {}
                for question, (_response, complaint) in zip(pending, pool.map(lambda question: self._ask(question.probe), pending)):
                    good[question] = 0 if complaint else good[question] + 1
                    complaints[question] = complaint
                ill = {question: complaints[question] for question in pending if complaints[question]}
                failed = self._failed(list(ill), states, at_first)
                if failed:
                    return failed
                if self.clock() >= deadline:
                    return {question: complaints[question] or "answers only now and then." for question in pending}
                # Three good answers of a healthy front end need no pause of their own.
                if ill:
                    self._sleep(INTERVAL)

    @staticmethod
    def _failed(questions: Sequence[Question], states: LookAtUnits, at_first: Mapping[str, UnitState]) -> dict[Question, str]:
        """Return those whose process does not stay up: systemd gave up, or had to start it again and again while we asked."""
        found = states([question.unit for question in questions])

        def is_down(unit: str) -> bool:
            now, before = found.get(unit, UnitState()), at_first.get(unit, UnitState())
            return now.active == "failed" or now.restarts - before.restarts > RESTARTS_ALLOWED

        return {question: "its process does not stay up." for question in questions if is_down(question.unit)}


# The steps of a deployment


@dataclass
class Outcome:
    """What a task found and did."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    built: list[str] = field(default_factory=list)
    assets_offered: int = 0
    assets_removed: int = 0
    pruned: list[str] = field(default_factory=list)
    components_pruned: list[str] = field(default_factory=list)
    live: dict[str, Component] = field(default_factory=dict)
    components: dict[str, Component] = field(default_factory=dict)
    environment: dict[str, Difference] = field(default_factory=dict)
    before: Tree = field(default_factory=Tree)
    after: Tree = field(default_factory=Tree)


class FrontEnds:
    """The front ends of one host."""

    def __init__(self, releases: Releases, components: Components, units: Units, settings: Settings, prober: Prober | None = None) -> None:
        self.releases = releases
        self.components = components
        self.units = units
        self.settings = settings
        self.prober = prober or Prober()
        self.outcome = Outcome()

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[dict[str, Any]]:
        """Note how long a step takes and whether it changes something."""
        step: dict[str, Any] = {"name": name, "seconds": 0.0, "changed": False}
        self.outcome.steps.append(step)
        began = self.prober.clock()
        try:
            yield step
        except LmsError as error:
            error.details.setdefault("steps", self.outcome.steps)
            raise
        finally:
            step["seconds"] = round(self.prober.clock() - began, 2)

    def prepare(self, request: Request, check_mode: bool) -> Outcome:
        """Put a release together beside the live one, start what it needs, and prove that each front end of it is well."""
        orders = wanted(self.settings, foresee=check_mode)
        components = {order.component.app: order.component for order in orders}
        request = _with_sum(request, components.values())
        self._begin(components)
        decide(self.outcome.before, request, self.releases.now())
        self._refuse_failed(request)
        self._compare_environments(orders)
        if check_mode:
            return self._foresee_prepared(request, orders)
        with self.releases.locked(self.settings.owner):
            self._build(orders)
            self._offer_assets(components.values())
            self._carry_out(request, Build(owner=self.settings.owner, links=dict(component.link for component in components.values())))
        self._start(components)
        self._prove("probe", [self._on_socket(component) for component in components.values()], request.release)
        with self.releases.locked(self.settings.owner):
            self._carry_out(Request("verified", request.release), Build(), "verify")
        return self.outcome

    def activate(self, request: Request, check_mode: bool) -> Outcome:
        """Make a release the live one: nothing is switched before all its processes answer, all front ends are switched by one rename."""
        components = self._served(request.release)
        self._begin(components)
        plan = decide(self.outcome.before, request, self.releases.now(), foresee=check_mode)
        if check_mode:
            self._foresee_running(components)
            self.outcome.steps.append(_foreseen("switch", bool(plan.steps)))
            self.outcome.after = plan.after
            return self.outcome
        self._start(components)
        self._prove("probe", [self._on_socket(component) for component in components.values()], request.release)
        with self.releases.locked(self.settings.owner):
            self._carry_out(request, Build(), "switch")
        self._prove("ask the web server", [self._through_web_server(component) for component in components.values()], request.release)
        return self.outcome

    def settle(self, check_mode: bool) -> Outcome:
        """Stop what the live release does not need, and remove assets, and where it is asked for releases, that nobody needs any more."""
        self._begin()
        if self.outcome.before.current is not None:
            self._stop(superfluous(self._running(), self._units(self.outcome.live)), check_mode)
        with self._step("remove old assets") as step:
            old = self.components.old_assets(self.settings.assets_kept * 86400)
            step["changed"], self.outcome.assets_removed = bool(old), len(old)
            if old and not check_mode:
                with self.releases.locked(self.settings.owner):
                    self.components.remove_assets(old)
        if self.settings.keep is not None:
            with self._step("remove old releases") as step:
                done = prune(self.releases, self.settings.keep, lambda: Build(owner=self.settings.owner), check_mode)
                step["changed"], self.outcome.after = done["changed"], self.releases.read()
                self.outcome.pruned, self.outcome.components_pruned = done["pruned"], done["components_pruned"]
        return self.outcome

    def fail(self, request: Request, check_mode: bool) -> Outcome:
        """Mark a release, so that nothing goes back to it, and stop what only it uses."""
        components = self.components.linked(request.release)
        self._begin()
        plan = decide(self.outcome.before, request, self.releases.now())
        self.outcome.after = plan.after
        if check_mode:
            self.outcome.steps.append(_foreseen("mark", bool(plan.steps)))
        else:
            with self.releases.locked(self.settings.owner):
                self._carry_out(request, Build(), "mark")
        own = set(self._units(components)) & set(self._running())
        self._stop(superfluous(own, self._units(self.outcome.live)), check_mode)
        return self.outcome

    # Parts of them

    def _begin(self, components: Mapping[str, Component] | None = None) -> None:
        """Note what stands there, and the components that it is about: those of the live release where no others are given."""
        self.outcome.before = self.outcome.after = self.releases.read()
        self.outcome.live = self.components.linked(self.outcome.before.current)
        self.outcome.components = dict(self.outcome.live if components is None else components)

    def _refuse_failed(self, request: Request) -> None:
        """Refuse a release that was given up, before anything is started for it."""
        release = self.outcome.before.find(request.release)
        if release is not None and release.state == "failed":
            raise LmsError(f"Release {release.id} is marked failed ({release.reason or 'no reason was given'}). Deploy under a new id.")

    def _compare_environments(self, orders: Iterable[Order]) -> None:
        """Note which variables differ from those of the live release."""
        for order in orders:
            live = self.outcome.live.get(order.component.app)
            self.outcome.environment[order.component.app] = compare(self.components.environment(live) if live else {}, order.environment)

    def _served(self, release_id: str) -> dict[str, Component]:
        """Return the components of a release whose front ends are served. An older one may have had others."""
        names = {frontend.name for frontend in self.settings.frontends}
        served = {app: component for app, component in self.components.linked(release_id).items() if app in names}
        gone = sorted(component.name for component in served.values() if not component.artifact_sha256)
        if gone:
            raise LmsError(f"Release {release_id} lacks the components {', '.join(gone)}. Activate another one or deploy under a new id.")
        return served

    def _build(self, orders: Sequence[Order]) -> None:
        """Build the components that are not there."""
        with self._step("unpack") as step:
            there = self.components.read()
            new = [order for order in orders if order.component.name not in there]
            step["changed"], self.outcome.built = bool(new), sorted(order.component.name for order in new)
            if new:
                self.components.build(new, self.settings.owner)

    def _offer_assets(self, components: Iterable[Component]) -> None:
        """Offer the assets of components beside those of older ones.

        A page of this release may ask a host that is not switched yet for its assets, a page of the old one a host that is.
        """
        with self._step("offer assets") as step:
            for component in components:
                missing = self.components.missing_assets(component)
                self.components.offer_assets(component, missing, self.settings.owner)
                self.outcome.assets_offered += len(missing)
            step["changed"] = self.outcome.assets_offered > 0

    def _carry_out(self, request: Request, build: Build, name: str = "link") -> None:
        """Bring the release into a state. The caller holds the lock: somebody else may have been at work until now."""
        with self._step(name) as step:
            plan = decide(self.releases.read(), request, self.releases.now())
            step["changed"] = bool(plan.steps)
            self.outcome.after = self.releases.carry_out(plan, build) if plan.steps else plan.after

    def _start(self, components: Mapping[str, Component]) -> None:
        """Start the processes that do not run."""
        with self._step("start") as step:
            self.outcome.started = self._not_running(components)
            step["changed"] = bool(self.outcome.started)
            if self.outcome.started:
                self.units.start(self.outcome.started)

    def _units(self, components: Mapping[str, Component]) -> list[str]:
        """Return the units that run components."""
        return [unit_of(self.settings.prefix, component) for component in components.values()]

    def _running(self) -> list[str]:
        """Return the units of front ends that are not stopped, also of those that are in no release any more."""
        apps = {component.app for component in self.components.read().values()} | {frontend.name for frontend in self.settings.frontends}
        return self.units.there(apps)

    def _not_running(self, components: Mapping[str, Component]) -> list[str]:
        """Return the units that do not run."""
        units = self._units(components)
        states = self.units.states(units)
        return sorted(unit for unit in units if states.get(unit, UnitState()).active != "active")

    def _stop(self, units: Sequence[str], check_mode: bool) -> None:
        """Stop processes."""
        with self._step("stop") as step:
            step["changed"], self.outcome.stopped = bool(units), list(units)
            if units and not check_mode:
                self.units.stop(units)

    def _on_socket(self, component: Component) -> Question:
        """Return the question for a process, before anybody else is sent to it."""
        place = self.components.directory / component.name / SOCKETS / f"{component.app}.sock"
        return self._question(component, unix_socket=str(place), url=f"http://{component.app}{self.settings.health_uri}")

    def _through_web_server(self, component: Component) -> Question:
        """Return the question for this host's web server."""
        port = next(frontend.port for frontend in self.settings.frontends if frontend.name == component.app)
        url = f"http://{component.app}.{self.settings.domain}{self.settings.health_uri}"
        return self._question(component, connect_to=f"127.0.0.1:{port}", url=url)

    def _question(self, component: Component, **where: Any) -> Question:
        """Return a question whose answer must name the component."""
        expectation = Expectation(values={"revision": component.key})
        unit = unit_of(self.settings.prefix, component)
        return Question(component, unit, Probe(expectation=expectation, timeout=QUESTION_TIMEOUT, **where))

    def _prove(self, name: str, questions: Sequence[Question], release_id: str) -> None:
        """Ask each front end until it has given enough good answers in a row, or say which one is not well and why."""
        with self._step(name):
            ill = self.prober.wait(questions, self.settings.consecutive, self.settings.timeout, self.units.states)
            if not ill:
                return
            ill = {question: self._without_values(question, complaint) for question, complaint in ill.items()}
            first = min(ill, key=lambda question: question.component.app)
            others = sorted(question.component.app for question in ill if question is not first)
            also = f" Not well either: {', '.join(others)}." if others else ""
            raise LmsError(
                f"The front end {first.component.app} of release {release_id} is not well: {ill[first]} "
                f"The last lines of its log are in journal.{also}",
                app=first.component.app,
                unit=first.unit,
                not_well={question.component.app: complaint for question, complaint in ill.items()},
                journal=[self._without_values(first, line) for line in self.units.journal(first.unit)],
            )

    def _without_values(self, question: Question, text: str) -> str:
        """Replace values of the environment by their names: what an application says when it fails may hold a secret."""
        return hide_values(text, self.components.environment(question.component))

    # Check mode

    def _foresee_prepared(self, request: Request, orders: Sequence[Order]) -> Outcome:
        """Say what preparing would do."""
        there = self.components.read()
        new = [order.component for order in orders if order.component.name not in there]
        kept = [order.component for order in orders if order.component.name in there]
        plan = decide(self.outcome.before, request, self.releases.now())
        self.outcome.built = sorted(component.name for component in new)
        self.outcome.assets_offered = sum(len(self.components.missing_assets(component)) for component in kept)
        self.outcome.after = plan.after
        self.outcome.steps += [
            _foreseen("unpack", bool(new)),
            _foreseen("offer assets", bool(new) or self.outcome.assets_offered > 0),
            _foreseen("link", bool(plan.steps)),
        ]
        self._foresee_running(self.outcome.components)
        verified = decide(self.outcome.before, Request("verified", request.release), self.releases.now(), foresee=True)
        self.outcome.steps.append(_foreseen("verify", bool(verified.steps)))
        self.outcome.after = verified.after if verified.after.find(request.release) else plan.after
        return self.outcome

    def _foresee_running(self, components: Mapping[str, Component]) -> None:
        """Say which processes would be started."""
        self.outcome.started = self._not_running(components)
        self.outcome.steps.append(_foreseen("start", bool(self.outcome.started)))


def _foreseen(name: str, changed: bool) -> dict[str, Any]:
    """Return a step that was not carried out."""
    return {"name": name, "seconds": 0.0, "changed": changed}


def _with_sum(request: Request, components: Iterable[Component]) -> Request:
    """Return the request with the sum over its components."""
    values = {name: getattr(request, name) for name in Request.__dataclass_fields__}
    return Request(**{**values, "artifact_sha256": sum_of(components)})


def result(outcome: Outcome, release_id: str, root: str) -> dict[str, Any]:
    """Return the result of a task. No value of an environment is in it."""
    live = {app: component.name for app, component in sorted(outcome.live.items())}
    components = {app: component.name for app, component in sorted(outcome.components.items())}
    return {
        "changed": any(step["changed"] for step in outcome.steps),
        "root": root,
        "release": release_id or None,
        "state": outcome.after.state_of(release_id) if release_id else None,
        "current": outcome.after.current,
        "previous": outcome.after.previous,
        "components": components,
        "built": outcome.built,
        "environment": {
            app: {"added": list(found.added), "removed": list(found.removed), "changed": list(found.changed)}
            for app, found in sorted(outcome.environment.items())
            if found
        },
        "started": sorted(outcome.started),
        "stopped": sorted(outcome.stopped),
        "assets_offered": outcome.assets_offered,
        "assets_removed": outcome.assets_removed,
        "pruned": outcome.pruned,
        "components_pruned": outcome.components_pruned,
        "steps": outcome.steps,
        "diff": {
            "before": {**summary(outcome.before, release_id), "components": live},
            "after": {**summary(outcome.after, release_id), "components": components, **_environment_lines(outcome.environment)},
        },
    }


def _environment_lines(environment: Mapping[str, Difference]) -> dict[str, Any]:
    """Return the names of the variables that differ from those of the live release, for the diff."""
    lines = {
        app: [f"{sign} {key}=***" for sign, keys in (("+", found.added), ("-", found.removed), ("~", found.changed)) for key in keys]
        for app, found in sorted(environment.items())
        if found
    }
    return {"environment": lines} if lines else {}
