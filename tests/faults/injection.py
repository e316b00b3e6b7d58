"""Harm at an exact moment of a deployment, under traffic of which every answer is accounted for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from environment import APPLICATION_HOSTS, DOMAIN, LOGS, PROJECT, Environment, Outcome, Running, wait_until

FAULTS = Path(__file__).parent
MARKS = ["X-Release-Entry", "X-Release-Config", "X-Release-End"]
ENROLMENT = json.dumps({"student_id": 1, "course_id": 1})
# Requests a second: as many as two cores bear beside a deployment.
RATE = float(os.environ.get("LMS_FAULT_RATE", "25"))
_numbers = count(1)

# What visitors ask for, and how often. What needs neither database nor Redis is a kind of its own: a fault may take those away.
STATELESS = [{"site": "api", "path": "/version", "weight": 8, "marks": MARKS}]
EVERYTHING = (
    *STATELESS,
    {"site": "api", "path": "/api/courses", "weight": 4, "marks": MARKS},
    {"site": "api", "path": "/api/enrolments", "weight": 2, "method": "POST", "body": ENROLMENT, "status": [200, 201], "marks": MARKS},
    {"site": "api", "path": "/api/slow?ms=700", "weight": 1, "takes": 0.7, "marks": MARKS},
    {"site": "student", "path": "/", "weight": 3},
    {"site": "admin", "path": "/", "weight": 2},
)

# Runs on a host, and prints what it serves: where the links lead, and what the answers say of the release that made them.
LOOK_AT_SERVICE = """
import http.client, json, os

def ask(port, name, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={"Host": name})
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()

status, headers, body = ask(8000, "api.lms.localhost", "/version")
marks = sorted({headers[name] for name in MARKS})
links = {part: os.path.basename(os.readlink(f"/srv/lms/{part}/current")) for part in ("backend", "frontend")}
with open(f"/srv/lms/backend/releases/{links['backend']}/REVISION") as file:
    revision = file.read().strip()
# A front end is served by its component, which the release links to.
wanted = {name: os.readlink(f"/srv/lms/frontend/current/apps/{name}").rpartition("-")[2] for name in PORTALS}
frontends = {name: json.loads(ask(port, f"{name}.lms.localhost", "/api/health")[2])["revision"] for name, port in PORTALS.items()}
seen = {"status": status, "marks": marks, "links": links, "revision": revision, "frontends": frontends, "wanted": wanted}
print(json.dumps(seen))
"""
PORTALS = {"student": 3001, "admin": 3002}


@dataclass(frozen=True)
class Fault:
    """What happens, and at which task of a play.

    The moment is before it, within it (the first host has ended it and others may be at it), or while it runs, once the command of the
    condition prints something. A task is named by its module (or a pattern of names) and its arguments (None: whatever the value), which
    say what it does, or by its number. Without a command the control host dies.
    """

    action: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    time: int = 1
    number: int = 0
    moment: str = "before"
    command: Sequence[str] | None = None
    condition: Sequence[str] = ()

    def surroundings(self, struck: Path) -> dict[str, str]:
        """Return the environment variables that put it in the way of a play."""
        place = {"number": self.number} if self.number else {"action": self.action, "arguments": dict(self.arguments), "time": self.time}
        known = {**place, "moment": self.moment, "command": self.command, "condition": self.condition, "struck": str(struck)}
        return {"LMS_FAULT": json.dumps(known), "ANSIBLE_CALLBACK_PLUGINS": str(FAULTS / "callback_plugins")}


def on_host(environment: Environment, host: str, script: str) -> list[str]:
    """Return the command of a fault that runs a shell script on a host."""
    return ["docker", "exec", f"{environment.name}-{host}", "sh", "-c", script]


def start_with(
    environment: Environment,
    fault: Fault,
    playbook: str = "deploy.yml",
    surroundings: Mapping[str, str] | None = None,
    **variables: Any,
) -> tuple[Running, Path]:
    """Start a playbook with a fault in its way; give it and the file that is there once the fault has struck."""
    struck = LOGS / f"fault-{next(_numbers):02d}.struck"
    struck.unlink(missing_ok=True)
    return environment.start(playbook, surroundings={**fault.surroundings(struck), **(surroundings or {})}, **variables), struck


def play_with(
    environment: Environment,
    fault: Fault,
    playbook: str = "deploy.yml",
    surroundings: Mapping[str, str] | None = None,
    **variables: Any,
) -> Outcome:
    """Run a playbook with a fault in its way to its end; the fault must have struck."""
    running, struck = start_with(environment, fault, playbook, surroundings, **variables)
    outcome = running.finish()
    assert struck.exists(), f"The play ended before {fault}:\n{outcome.output[-4000:]}"
    return outcome


def record_steps(environment: Environment, **variables: Any) -> list[dict[str, Any]]:
    """Deploy, and return the tasks that changed something, in their order."""
    steps = LOGS / "fault-steps.jsonl"
    steps.unlink(missing_ok=True)
    surroundings = {"LMS_FAULT_STEPS": str(steps), "ANSIBLE_CALLBACK_PLUGINS": str(FAULTS / "callback_plugins")}
    outcome = environment.start("deploy.yml", surroundings=surroundings, **variables).finish()
    assert outcome.status == 0, outcome.output[-5000:]
    found = {step["number"]: step for step in map(json.loads, steps.read_text().splitlines())}
    return [found[number] for number in sorted(found)]


def service_of(environment: Environment, host: str) -> dict[str, Any]:
    """Return what a host serves."""
    return json.loads(environment.on(host, "python3", "-c", f"MARKS, PORTALS = {MARKS!r}, {PORTALS!r}\n{LOOK_AT_SERVICE}"))


def service(environment: Environment) -> dict[str, Any]:
    """Return what each host serves; each must serve one whole version."""
    found = {host: service_of(environment, host) for host in APPLICATION_HOSTS}
    for host, seen in found.items():
        assert (seen["status"], seen["marks"]) == (200, [seen["revision"]]), (host, seen)
        assert seen["frontends"] == seen["wanted"], (host, seen)
    return found


class Load:
    """Requests at a fixed rate; see tests/load/open_loop.py."""

    def __init__(self, running: Running, records: Path) -> None:
        self._running = running
        self._records = records
        self.summary: dict[str, Any] = {}
        # Requests that the load balancer gave to a second host, because the first one failed.
        self.second_tries = 0

    def wait_for_more(self, requests: int) -> None:
        """Wait until so many further requests were answered."""
        wanted = self.answered() + requests
        wait_until(lambda: self.answered() >= wanted or self._running.ended, f"{wanted} requests were answered")
        assert not self._running.ended, self._running.output[-3000:]

    def answered(self) -> int:
        """Return how many requests were answered until now."""
        return self._records.read_text().count("\n") if self._records.exists() else 0

    def stop(self) -> None:
        """Let the answers that are due come, and read the figures."""
        self._running.stop()
        self.summary = json.loads(self._running.output)

    def assert_nobody_noticed(self) -> None:
        """Assert that each request got a good answer of one release, from the first host that was asked."""
        assert (self.summary["failed"], self.summary["reasons"], self.second_tries) == (0, {}, 0), self.summary
        assert self.summary["sent"] >= 40


@contextmanager
def load(
    environment: Environment, kinds: Sequence[Mapping[str, Any]] = EVERYTHING, rate: float = RATE, seconds: int = 900
) -> Iterator[Load]:
    """Let visitors use the LMS while a test does something to it, for so long at most."""
    name = f"load-{next(_numbers):02d}"
    requests, records = LOGS / f"{name}.requests.json", LOGS / f"{name}.jsonl"
    entries = [
        {"host": f"{kind['site']}.{DOMAIN}:{environment.port}", **{key: value for key, value in kind.items() if key != "site"}}
        for kind in kinds
    ]
    requests.write_text(json.dumps(entries))
    records.unlink(missing_ok=True)
    # The load balancer itself: the engine's own proxy for the published port is not made for a load.
    argv = [sys.executable, str(PROJECT / "tests" / "load" / "open_loop.py"), f"--target={environment.network}.10:443"]
    argv += [
        f"--authority={environment.authority}",
        f"--requests={requests}",
        f"--rate={rate}",
        f"--seconds={seconds}",
        f"--records={records}",
    ]
    running = Running(argv, LOGS / f"{name}.log")
    tried_twice = environment.tried_twice()
    try:
        seen = Load(running, records)
        seen.wait_for_more(20)
        yield seen
        # Whatever the change did to the connections that were kept must have time to show.
        seen.wait_for_more(round(3 * rate))
        seen.stop()
        seen.second_tries = environment.tried_twice() - tried_twice
    finally:
        if not running.ended:
            running.kill()


@contextmanager
def held_table(environment: Environment, table: str) -> Iterator[list[str]]:
    """Hold a table so that it can be read but not changed; give the command that prints something when somebody waits for it."""
    hold = f"begin; lock table {table} in share mode; select pg_sleep(120)"
    argv = ["docker", "exec", "-e", "PGAPPNAME=fault", f"{environment.name}-data", "runuser", "-u", "postgres", "--", "psql", "lms"]
    waits = f"select 1 from pg_locks where not granted and relation = '{table}'::regclass"  # noqa: S608
    with subprocess.Popen([*argv, "--command", hold], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as holder:
        held = "select 1 from pg_stat_activity where application_name = 'fault' and wait_event = 'PgSleep'"
        wait_until(lambda: environment.in_database(held), f"{table} is held")
        try:
            yield [*argv, "--quiet", "--tuples-only", "--command", waits]
        finally:
            let_go(environment)
            holder.wait(timeout=30)


def let_go(environment: Environment) -> None:
    """Let go of every table that is held, unless the database is down: then nobody holds any."""
    with suppress(AssertionError):
        environment.in_database("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'fault'")


def assert_failed(outcome: Outcome, *patterns: str) -> None:
    """Assert that a playbook failed, and said so in these words."""
    assert outcome.status != 0, outcome.output[-4000:]
    missing = [pattern for pattern in patterns if not re.search(pattern, outcome.text)]
    assert missing == [], outcome.output[-5000:]
    assert "Traceback" not in outcome.output, outcome.output[-5000:]


def assert_deploys(environment: Environment) -> None:
    """Assert that the next deployment works, that nobody notices it, and that it is whole everywhere."""
    with load(environment) as visitors:
        release = environment.deploy(environment.other_version())
    visitors.assert_nobody_noticed()
    assert {link for seen in service(environment).values() for link in seen["links"].values()} == {release}
