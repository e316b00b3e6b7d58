"""Visitors of the sample LMS: a steady load in which every answer is read and every failure counted, none tried again.

Usage: locust --locustfile traffic.py --headless --run-time 600s --stop-timeout 15s \
           --port 9443 --authority authority.pem --result result.json

Half of the visitors keep their connection, half open a new one for each request. All speak TLS with the load balancer and
trust the environment's own authority only. The result is written every half a second and once more, as finished, at the end.
Nothing but this machine is ever asked.
"""

from __future__ import annotations

import json
import random
import re
import socket
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import gevent
from locust import HttpUser, constant_throughput, events, task

DOMAIN = "lms.localhost"
VISITORS = 20
STUDENTS, COURSES = 60, 10
FAILURES_LISTED = 50

RELEASE = r"(?P<release>\d{14}-[0-9a-f]{7})"
# A front end is known by its component, which stays the same where a release did not change it.
COMPONENT = re.compile(r"Front end <code>(?P<key>[0-9a-f]{16})</code>")
API_RELEASE = re.compile(rf"API <code>{RELEASE}</code>")
ASSET = re.compile(r'(?:href|src)="(?P<path>/_next/static/[^"?]+\.(?:css|js))')

_resolve = socket.getaddrinfo


def resolve_on_loopback(host: Any, *arguments: Any, **options: Any) -> Any:
    """Find every name below localhost on this machine (RFC 6761), and no other name at all."""
    name = host.decode() if isinstance(host, bytes) else host
    if name != "127.0.0.1" and not name.endswith(f".{DOMAIN}"):
        raise OSError(f"{name} is not below {DOMAIN}.")
    return _resolve("127.0.0.1", *arguments, **options)


socket.getaddrinfo = resolve_on_loopback


class UnexpectedError(Exception):
    """An answer that a visitor would not be content with."""


def expect(condition: Any, reason: str) -> None:
    """Count the answer as a failure unless the condition holds."""
    if not condition:
        raise UnexpectedError(reason)


class Results:
    """What was asked, what went wrong, and which releases answered when."""

    def __init__(self) -> None:
        self.started = time.time()
        self.requests: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.failures: list[dict[str, Any]] = []
        self.milliseconds: dict[str, list[float]] = defaultdict(list)
        self.releases: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)

    def note_answer(self, name: str, connection: str, milliseconds: float, failure: str | None) -> None:
        """Note one answer, or that there was none."""
        self.requests[name] += 1
        self.requests[connection] += 1
        self.milliseconds[connection].append(milliseconds)
        if failure is not None:
            self.reasons[f"{name}: {failure}"] += 1
            if len(self.failures) < FAILURES_LISTED:
                self.failures.append({"at": self._now(), "name": name, "connection": connection, "reason": failure})

    def note_release(self, part: str, release: str) -> None:
        """Note which release of a part of the LMS answered; of a front end, which component."""
        seen = self.releases[part].setdefault(release, {"first": self._now(), "last": 0, "answers": 0})
        seen["last"] = self._now()
        seen["answers"] += 1

    def _now(self) -> float:
        return round(time.time() - self.started, 2)

    def summary(self, finished: bool) -> dict[str, Any]:
        """Return everything as plain data."""
        connections = {name: len(times) for name, times in self.milliseconds.items()}
        return {
            "finished": finished,
            "seconds": self._now(),
            "requests": sum(connections.values()),
            "failed": sum(self.reasons.values()),
            "reasons": dict(self.reasons.most_common()),
            "failures": self.failures,
            "by_connection": connections,
            "by_name": {name: count for name, count in sorted(self.requests.items()) if name not in connections},
            "milliseconds": {name: percentiles(times) for name, times in self.milliseconds.items()},
            "releases": self.releases,
        }


def percentiles(times: list[float]) -> dict[str, float]:
    """Return the median, the 99th percentile and the longest time."""
    if len(times) < 2:
        return {}
    hundredths = quantiles(times, n=100)
    return {"p50": round(hundredths[49], 1), "p99": round(hundredths[98], 1), "max": round(max(times), 1)}


results = Results()


class Visitor(HttpUser):
    """Somebody who uses the LMS: about one page or call a second."""

    abstract = True
    connection = ""
    host = f"https://{DOMAIN}"
    wait_time = constant_throughput(1)

    def on_start(self) -> None:
        """Trust the environment's own authority, and nothing that the surroundings say."""
        self.client.trust_env = False
        self.client.verify = self.environment.parsed_options.authority
        # Not all at once.
        gevent.sleep(random.random())  # noqa: S311

    def before_request(self) -> None:
        """Do what this kind of visitor does before each request."""

    @contextmanager
    def asking(self, name: str, method: str, site: str, path: str, **options: Any):
        """Ask once, and count the answer by what the caller finds in it."""
        self.before_request()
        url = f"https://{site}.{DOMAIN}:{self.environment.parsed_options.port}{path}"
        started = time.perf_counter()
        failure = None
        try:
            # Time for the slowest good answer: a stall is a failure of its own.
            response = self.client.request(method, url, name=name, timeout=20, allow_redirects=False, **options)
            error = getattr(response, "error", None)
            expect(error is None, f"{type(error).__name__}: {error}")
            yield response
        except UnexpectedError as error:
            failure = str(error)
        except Exception as error:  # Whatever it was, a visitor got no good answer.
            failure = f"{type(error).__name__}: {error}"
        results.note_answer(name, self.connection, (time.perf_counter() - started) * 1000, failure)

    @task(4)
    def ask_for_health(self) -> None:
        """Ask as a monitor would."""
        with self.asking("GET /health", "GET", "api", "/health") as response:
            expect(response.status_code == 200, f"status {response.status_code}: {response.text[:200]}")
            health = response.json()
            expect(health["status"] == "ok" and health["failed"] == [], f"health {health}")
            expect(len(health["checks"]) >= 4, f"only the checks {sorted(health['checks'])}")

    @task(8)
    def ask_for_version(self) -> None:
        """Ask which release serves."""
        with self.asking("GET /version", "GET", "api", "/version") as response:
            expect(response.status_code == 200, f"status {response.status_code}")
            version = response.json()
            expect(re.fullmatch(RELEASE, version["release"]), f"release {version['release']!r}")
            expect(version["host"] and version["laravel"], f"version {version}")
            results.note_release(f"api on {version['host']}", version["release"])

    @task(2)
    def enrol(self) -> None:
        """Write: a row in the database and a job in the queue."""
        student, course = random.randint(1, STUDENTS), random.randint(1, COURSES)  # noqa: S311
        wanted = {"student_id": student, "course_id": course}
        with self.asking("POST /api/enrolments", "POST", "api", "/api/enrolments", json=wanted) as response:
            expect(response.status_code in (200, 201), f"status {response.status_code}: {response.text[:200]}")
            enrolment = response.json()["data"]
            expect((enrolment["student"]["id"], enrolment["course"]["id"]) == (student, course), f"enrolment {enrolment}")

    @task(2)
    def read_student_page(self) -> None:
        """Read the portal's first page, and one of the files that it names."""
        page = ""
        with self.asking("student page", "GET", "student", "/") as response:
            page = self.read_page(response, "student", ("Welcome back, ", "My courses", "Upcoming"))
        assets = sorted(set(ASSET.findall(page)))
        if not page:
            return
        with self.asking("asset of the student page", "GET", "student", random.choice(assets)) as response:  # noqa: S311
            expect(response.status_code == 200, f"status {response.status_code}")
            expect(response.headers["Content-Type"].startswith(("text/css", "application/javascript")), "another type of content")
            expect("immutable" in response.headers["Cache-Control"], "may not be kept by browsers")
            expect(len(response.text) > 50, f"only {len(response.text)} characters")

    @task(1)
    def read_admin_page(self) -> None:
        """Read the administrators' dashboard."""
        with self.asking("admin page", "GET", "admin", "/") as response:
            self.read_page(response, "admin", ("Dashboard", "Enrolments per course", "Newest enrolments"))

    def read_page(self, response: Any, site: str, parts: tuple[str, ...]) -> str:
        """Return a page that is whole, and note which component and which release made it."""
        expect(response.status_code == 200, f"status {response.status_code}")
        page = response.text
        expect(page.rstrip().endswith("</html>"), "the page ends early")
        missing = [part for part in parts if part not in page]
        expect(not missing, f"the page lacks {missing}")
        frontend, api = COMPONENT.search(page), API_RELEASE.search(page)
        expect(frontend and api, "the page does not say what made it")
        expect(ASSET.search(page), "the page names no asset")
        results.note_release(site, frontend["key"])
        results.note_release(f"api behind {site}", api["release"])
        return page


class KeptConnection(Visitor):
    """A visitor whose browser keeps its connection."""

    fixed_count = VISITORS // 2
    connection = "kept"


class NewConnection(Visitor):
    """A visitor who comes anew with every request."""

    fixed_count = VISITORS // 2
    connection = "new"

    def before_request(self) -> None:
        """Close what the last request left open."""
        self.client.close()


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Say where the LMS is, whom to trust and where the result goes."""
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--authority", required=True)
    parser.add_argument("--result", type=Path, required=True)


def write_result(path: Path, finished: bool) -> None:
    """Write the result so that a reader never sees half of it."""
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(results.summary(finished), indent=1))
    aside.rename(path)


@events.test_start.add_listener
def keep_result_current(environment: Any, **_arguments: Any) -> None:
    """Let the test see how far the traffic is, and leave it the last word at the end."""
    path = environment.parsed_options.result

    def write_again_and_again() -> None:
        while True:
            gevent.sleep(0.5)
            write_result(path, finished=False)

    writer = gevent.spawn(write_again_and_again)

    # The last event of all: by now every visitor has had the answer to the last question.
    @events.quit.add_listener
    def write_last_result(**_arguments: Any) -> None:
        writer.kill()
        write_result(path, finished=True)
