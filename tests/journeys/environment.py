"""The environment that the journeys run in, in the words of the tests: what an operator starts, what a host has, what visitors see."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import urllib3

PROJECT = Path(__file__).parents[2]
LOGS = PROJECT / ".cache" / "logs"
DOMAIN = "lms.localhost"
APPLICATION_HOSTS = ("app1", "app2")
PARTS = ("backend", "frontend")

# Runs in a host and prints what a visitor could notice: nothing of it may change where nothing should.
LOOK_AT_HOST = """
import json, os, subprocess

def command(*argv):
    return subprocess.run(argv, capture_output=True, text=True).stdout.splitlines()

# What the live application writes while it runs is no change.
written = r".*/\\(storage\\|shared\\|run\\|\\.next/cache\\)"
find = ["find", "/srv/lms/backend", "/srv/lms/frontend", "/etc", "-regex", written, "-prune", "-o"]
units = command("systemctl", "list-units", "--all", "--plain", "--no-legend", "lms-*", "php*-fpm.service", "nginx.service")
names = sorted(line.split()[0] for line in units if "lms-schedule" not in line)
print(json.dumps({
    "files": sorted(command(*find, "-printf", "%p %y %m %u %s %T@ %i %l\\n")),
    "units": {name: command("systemctl", "show", name, "--property=ActiveState,InvocationID,UnitFileState") for name in names},
}))
"""

# Prints what each process of the application runs, as /proc knows it, and what the live release consists of.
LOOK_AT_PROCESSES = """
import glob, json, os, re

frontends, releases, workers = {}, set(), []
for process in glob.glob("/proc/[0-9]*"):
    try:
        command = open(process + "/cmdline").read().split("\\0")
        place = os.readlink(process + "/cwd")
        unit = open(process + "/cgroup").read()
        opened = [os.readlink(file) for file in glob.glob(process + "/fd/*")]
    except (OSError, IndexError):
        continue
    component = re.match("/srv/lms/frontend/components/([^/]+)/", place)
    if component:
        frontends.setdefault(component[1], []).append(int(process[6:]))
    instance = re.search("/lms-fpm@([^/]+)[.]service", unit)
    if instance:
        releases.add(instance[1])
    if "queue:work" in command:
        # PHP keeps the script open that it was started with, behind the link.
        workers += [found[1] for found in (re.match("/srv/lms/backend/releases/([^/]+)/artisan$", file) for file in opened) if found]
print(json.dumps({
    "fpm": sorted(releases),
    "frontends": {component: sorted(pids) for component, pids in sorted(frontends.items())},
    "live_frontends": sorted(os.path.basename(os.readlink(app)) for app in glob.glob("/srv/lms/frontend/current/apps/*")),
    "workers": workers,
}))
"""

# Prints the JSON objects that stand one after the other on standard input as a list.
READ_RECORDS = """
import json, sys

text, decoder, records = sys.stdin.read().strip(), json.JSONDecoder(), []
while text:
    record, end = decoder.raw_decode(text)
    records.append(record)
    text = text[end:].lstrip()
print(json.dumps(records))
"""


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 120, interval: float = 0.2) -> Any:
    """Return the first true answer of a condition; fail with what was waited for."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = condition()
        if answer:
            return answer
        time.sleep(interval)
    raise AssertionError(f"After {seconds} s it is still not true that {what}.")


def wait_until_alone() -> None:
    """Wait for the other tests that script/test runs, which hold this lock: beside them, an answer may come too late."""
    if path := os.environ.get("LMS_TESTS_BUSY"):
        with Path(path).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)


def run(*argv: str | Path, **options: Any) -> str:
    """Run a program that must succeed and return its output."""
    result = subprocess.run([str(part) for part in argv], capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, f"{argv} ended with status {result.returncode}:\n{result.stdout}{result.stderr}"
    return result.stdout


@dataclass(frozen=True)
class Outcome:
    """How a playbook or a script ended."""

    status: int
    output: str

    @property
    def text(self) -> str:
        """Return the output as one line, so that a sentence is found wherever it was broken."""
        return " ".join(self.output.split())

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        """Return the figures of each host at the end of a play."""
        lines = re.findall(r"^(\S+)\s+: (ok=\d+.*)$", self.output, re.MULTILINE)
        return {host: {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", figures)} for host, figures in lines}

    @property
    def changed(self) -> dict[str, int]:
        """Return how many tasks changed something on each host."""
        return {host: figures["changed"] for host, figures in self.recap.items()}

    @property
    def errors(self) -> list[str]:
        """Return the task failures that were not rescued, as `host: message`."""
        return re.findall(r"^(?:fatal|failed): (\[\S+?\].*)$", self.output, re.MULTILINE)


class Running:
    """A program that runs while the test looks on; its output goes to a log."""

    def __init__(self, argv: list[str], log: Path, **options: Any) -> None:
        self.log = log
        # A group of its own, so that killing it leaves none of its children.
        with log.open("w") as output:
            self._process = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **options)

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until the output has the text."""
        wait_until(lambda: self.output.count(text) >= times or self.ended, f"{self.log} has {text!r} {times} times", seconds=600)
        assert self.output.count(text) >= times, f"It ended without {text!r}:\n{self.output[-3000:]}"

    def kill(self) -> None:
        """Kill it and all its children, as a crash of the control host would."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """Ask it to end, and wait."""
        self._process.terminate()
        self._process.wait(timeout=60)

    def finish(self) -> Outcome:
        """Wait for its end."""
        return Outcome(self._process.wait(timeout=900), self.output)


class Traffic:
    """Visitors who use the LMS all the time; see traffic.py."""

    def __init__(self, running: Running, result: Path) -> None:
        self._running = running
        self._result = result
        # Requests that the load balancer gave to a second host, because the first one failed.
        self.second_tries = 0

    @property
    def result(self) -> dict[str, Any]:
        """Return what the visitors saw until now."""
        return json.loads(self._result.read_text()) if self._result.exists() else {"requests": 0, "failed": 0, "releases": {}}

    def wait_for_more(self, requests: int) -> None:
        """Wait until so many further requests were answered."""
        wanted = self.result["requests"] + requests
        wait_until(lambda: self.result["requests"] >= wanted or self._running.ended, f"{wanted} requests were answered")
        assert not self._running.ended, self._running.output[-3000:]

    def stop(self) -> None:
        """Let every visitor have the last answer, then end."""
        self._running.stop()
        assert self.result.get("finished"), self._running.output[-3000:]

    def releases(self, part: str) -> set[str]:
        """Return what answered of a part of the LMS: the releases of api, the components of student or admin."""
        return {release for name, seen in self.result["releases"].items() if name.split()[0] == part for release in seen}

    def assert_nobody_noticed(self, at_least: int) -> None:
        """Assert that many requests were made and each got a good answer."""
        result = self.result
        assert (result["failed"], result["reasons"], result["failures"]) == (0, {}, [])
        # With a POST, or with one host, each of these would have failed.
        assert self.second_tries == 0
        assert result["requests"] >= at_least, result
        assert min(result["by_connection"].values()) > result["requests"] * 0.3, result["by_connection"]


class Environment:
    """The demo under another name."""

    def __init__(self) -> None:
        self.name = os.environ.get("LMS_NAME", "lms-journey")
        self.network = os.environ.get("LMS_NETWORK", "172.29.85")
        self.port = int(os.environ.get("LMS_PORT", "9443"))
        self.cache = PROJECT / ".cache" / self.name
        self.authority = PROJECT / "inventories" / "dev" / ".secrets" / self.name / "authority" / "authority.pem"
        self._numbers = count(1)
        LOGS.mkdir(parents=True, exist_ok=True)

    # The tools that an operator uses

    def demo(self, *arguments: str, **settings: str) -> Outcome:
        """Run script/demo."""
        names = {"LMS_NAME": self.name, "LMS_NETWORK": self.network, "LMS_PORT": str(self.port), **settings}
        argv = [str(PROJECT / "script" / "demo"), *arguments]
        return Running(argv, self._log("demo", *arguments), env={**_surroundings(), **names}, cwd=PROJECT).finish()

    def start(
        self,
        playbook: str,
        *options: str,
        inventory: str | Path = "inventories/dev",
        surroundings: Mapping[str, str] | None = None,
        **variables: Any,
    ) -> Running:
        """Start a playbook, with these environment variables beside its own."""
        known = {"lms_container_prefix": self.name, "lms_container_network": self.network, "lms_public_port": self.port}
        argv = ["ansible-playbook", playbook, "-i", str(inventory), "-e", json.dumps({**known, **variables}), *options]
        log = self._log(playbook.removesuffix(".yml"), *options, *map(str, variables.values()))
        return Running(argv, log, env={**_surroundings(), **(surroundings or {})}, cwd=PROJECT)

    def start_on(self, host: str, *argv: str) -> Running:
        """Start a program on a host."""
        return Running(["docker", "exec", f"{self.name}-{host}", *argv], self._log("on", host))

    def play(self, playbook: str, *options: str, **variables: Any) -> Outcome:
        """Run a playbook to its end."""
        return self.start(playbook, *options, **variables).finish()

    def deploy(self, version: str, **variables: Any) -> str:
        """Deploy a version that must go live, and return its release."""
        outcome = self.play("deploy.yml", lms_version=version, **variables)
        assert outcome.status == 0, outcome.output[-5000:]
        return self.live_release()

    def push(self, tag: str, base: str, file: str = "", old: str = "", new: str = "") -> None:
        """Push a version that differs from another one in one place of one file, or only in its commit."""
        repository = self.cache / "lms.git"
        with TemporaryDirectory() as directory:
            git = ("git", "-C", directory, "-c", "user.name=Journey", "-c", "user.email=journey@example.com")
            run("git", "clone", "--quiet", "--branch", base, "-c", "advice.detachedHead=false", repository, directory)
            if file:
                text = (Path(directory) / file).read_text()
                assert text.count(old) == 1, f"{file} of {base} has {old!r} {text.count(old)} times"
                (Path(directory) / file).write_text(text.replace(old, new))
            run(*git, "commit", "--quiet", "--all", "--allow-empty", "--message", tag)
            run(*git, "push", "--quiet", "--force", "origin", f"HEAD:refs/tags/{tag}")

    def module(self, host: str, module: str, **arguments: Any) -> dict[str, Any]:
        """Run one module on a host and return its result."""
        argv = ["ansible", host, "-i", "inventories/dev", "-m", module, "-a", json.dumps(arguments)]
        names = json.dumps({"lms_container_prefix": self.name, "lms_container_network": self.network})
        output = run(*argv, "-e", names, env={**_surroundings(), "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}, cwd=PROJECT)
        return json.loads(output[output.index("{") :])

    def _log(self, *words: str) -> Path:
        name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", word).strip("-")[:30] for word in words)
        return LOGS / f"journey-{next(self._numbers):02d}-{name}.log"

    # The hosts

    def on(self, host: str, *argv: str) -> str:
        """Run a program on a host and return its output."""
        return run("docker", "exec", f"{self.name}-{host}", *argv)

    def in_database(self, statement: str) -> list[str]:
        """Run SQL and return its rows."""
        argv = ["runuser", "-u", "postgres", "--", "psql", "--quiet", "--tuples-only", "--no-align", "--dbname=lms", "--command"]
        return self.on("data", *argv, statement).splitlines()

    def live(self) -> dict[str, str]:
        """Return the release that each link points at."""
        return {
            f"{part} on {host}": self.on(host, "readlink", f"/srv/lms/{part}/current").strip().removeprefix("releases/")
            for host in APPLICATION_HOSTS
            for part in PARTS
        }

    def live_release(self) -> str:
        """Return the one release that is live everywhere."""
        live = self.live()
        assert len(set(live.values())) == 1, live
        return next(iter(live.values()))

    def releases(self, host: str, part: str) -> dict[str, dict[str, Any]]:
        """Return what a host noted about its releases, by their ids."""
        text = self.on(host, "sh", "-c", f"cat /srv/lms/{part}/.deploy/releases/*.json | python3 -c {shlex.quote(READ_RECORDS)}")
        return {record["id"]: record for record in json.loads(text)}

    def components(self) -> dict[str, str]:
        """Return the key of the component that each front end of the live release is."""
        links = "cd /srv/lms/frontend/current/apps && for app in *; do readlink $app; done"
        return dict(Path(link).name.rsplit("-", 1) for link in self.on("app1", "sh", "-c", links).split())

    def version(self) -> str:
        """Return the version that is live on the first host."""
        return self.releases("app1", "backend")[self.live()["backend on app1"]]["metadata"]["version"]

    def other_version(self) -> str:
        """Return the good version that is not live, so that there is something to deploy."""
        return "v1" if self.version() == "v2" else "v2"

    def processes(self, host: str) -> dict[str, Any]:
        """Return what the processes of a host run."""
        return json.loads(self.on(host, "python3", "-c", LOOK_AT_PROCESSES))

    def state(self) -> dict[str, Any]:
        """Return all of which nothing may change where nothing should."""
        hosts = {host: json.loads(self.on(host, "python3", "-c", LOOK_AT_HOST)) for host in self.running_hosts()}
        if "data" in hosts:
            columns = "select table_name, column_name from information_schema.columns where table_schema = 'public' order by 1, 2"
            hosts["database"] = {"columns": self.in_database(columns), "migrations": self.in_database("select * from migrations")}
        return hosts

    def running_hosts(self) -> list[str]:
        names = run("docker", "ps", "--filter", f"label=bitflow-lms={self.name}", "--format", "{{.Names}}").split()
        return sorted(name.removeprefix(f"{self.name}-") for name in names)

    # The visitors

    def answer(self, path: str, method: str = "GET", site: str = "api", **options: Any) -> urllib3.BaseHTTPResponse:
        """Ask the LMS through the load balancer, as it is, and return the answer, whatever it is."""
        name = f"{site}.{DOMAIN}"
        with urllib3.HTTPSConnectionPool(
            "127.0.0.1", self.port, ca_certs=str(self.authority), server_hostname=name, assert_hostname=name, retries=False
        ) as pool:
            headers = {"Host": f"{name}:{self.port}", "Accept": "application/json"}
            return pool.request(method, path, headers=headers, redirect=False, **options)

    def ask(self, path: str, method: str = "GET", site: str = "api", **options: Any) -> Any:
        """Ask the LMS through the load balancer and return the JSON of its answer."""
        answer = self.answer(path, method, site, **options)
        assert answer.status in (200, 201), f"{method} {path}: {answer.status} {answer.data[:500]!r}"
        return answer.json()

    @contextmanager
    def traffic(self) -> Iterator[Traffic]:
        """Let visitors use the LMS while a test does something to it."""
        wait_until_alone()
        log = self._log("traffic", os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].split()[0].removeprefix("test_"))
        result = log.with_suffix(".json")
        result.unlink(missing_ok=True)
        options = ["--headless", "--only-summary", "--users=16", "--spawn-rate=16", "--run-time=900s", "--stop-timeout=25s"]
        options += ["--exit-code-on-error=0", f"--port={self.port}", f"--authority={self.authority}", f"--result={result}"]
        argv = ["locust", f"--locustfile={Path(__file__).with_name('traffic.py')}", *options]
        running = Running(argv, log, env=_surroundings(), cwd=PROJECT)
        tried_twice = self.tried_twice()
        try:
            traffic = Traffic(running, result)
            traffic.wait_for_more(60)
            yield traffic
            # Whatever the change did to the connections that were kept must have time to show.
            traffic.wait_for_more(100)
            traffic.stop()
            traffic.second_tries = self.tried_twice() - tried_twice
        finally:
            if not running.ended:
                running.kill()

    def tried_twice(self) -> int:
        """Return how many requests the load balancer has given to more than one host."""
        return int(self.on("lb", "sh", "-c", 'grep --count \'"upstream":"[^"]*,\' /var/log/nginx/access.log || true'))


def _surroundings() -> dict[str, str]:
    """Return the environment for the tools: that of this process, without what would change their output."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", "ANSIBLE_FORCE_COLOR")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")}


def difference(before: Any, after: Any, place: str = "") -> list[str]:
    """Return where two states differ, short enough to read."""
    if before == after:
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(before.keys() | after.keys())
        return [line for key in keys for line in difference(before.get(key, "nothing"), after.get(key, "nothing"), f"{place}/{key}")]
    if isinstance(before, list) and isinstance(after, list):
        lost, gained = [line for line in before if line not in set(after)], [line for line in after if line not in set(before)]
        return [f"{place} - {line}" for line in lost[:10]] + [f"{place} + {line}" for line in gained[:10]]
    return [f"{place}: {before} -> {after}"]
