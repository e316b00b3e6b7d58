"""Deployments of front ends, as an operator and a visitor notice them. Small servers stand in for Next.js, which tests/journeys deploys."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from checks import access_to, said

ROOT = "/srv/lms/frontend"
FIRST, SECOND, BROKEN = "20260101000000-aaaaaaa", "20260102000000-bbbbbbb", "20260103000000-ccccccc"
APPS = ["admin", "student"]
GREETING = 'it\'s "new" \\ $HOME `x` # ü\nand goes on'

SERVER = """
const server = require('node:http').createServer((request, response) => {
  const answer = {
    '/api/health': JSON.stringify({ revision: process.env.RELEASE }),
    '/greeting': process.env.GREETING,
  }[request.url] ?? `%s of build %s ${process.env.RELEASE}`;
  setTimeout(() => response.end(answer), request.url === '/slow' ? 700 : 0);
});
process.on('SIGTERM', () => server.close(() => process.exit(143)));
server.listen(3000, '0.0.0.0');
"""


def artifact(directory: Path, app: str, build: str, server: str = "") -> dict[str, str]:
    """Build an artifact as release_artifact does."""
    files = {
        f"apps/{app}/server.js": server or SERVER % (app, build),
        f"apps/{app}/.next/static/chunks/{app}-{build}.js": f"// {build}",
        f"apps/{app}/.next/static/chunks/shared.js": "// all builds",
    }
    sums = "".join(f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n" for name, text in sorted(files.items()))
    path = directory / f"{app}-{build}.tar.gz"
    with gzip.GzipFile(path, "wb", mtime=0) as stream, tarfile.open(fileobj=stream, mode="w") as archive:
        for name, text in {"MANIFEST.sha256": sums, **files}.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text.encode()), 0o644
            archive.addfile(member, io.BytesIO(text.encode()))
    return {"artifact": f"/build/artifacts/{path.name}", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


@dataclass
class Operator:
    """Somebody who deploys to a host."""

    host: Any
    directory: Path
    builds: dict[str, dict[str, str]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=lambda: {"GREETING": "hello"})

    def ask(self, *steps: str, release: str = "", check: bool = False, **variables: Any) -> subprocess.CompletedProcess[str]:
        """Take steps of a deployment: entry points of the role."""
        given = {
            "steps": steps,
            **({"nextjs_app_release": release} if release else {}),
            "nextjs_app_builds": self.builds,
            "nextjs_app_artifacts_path": str(self.directory),
            "nextjs_app_environment": self.environment,
            "nextjs_app_fingerprint": release,
            "nextjs_app_metadata": {"commit": release[-7:]},
            "nextjs_app_domain": "lms.test",
            **variables,
        }
        argv = [
            "ansible-playbook",
            str(Path(__file__).parents[1] / "deploy.yml"),
            f"--inventory={os.environ['MOLECULE_INVENTORY_FILE']}",
            f"--limit={self.host.backend.get_hostname()}",
            f"--extra-vars={json.dumps(given)}",
            "--diff",
            *(["--check"] if check else []),
        ]
        return subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "ANSIBLE_NOCOLOR": "1"})

    def do(self, *steps: str, **variables: Any) -> int:
        """Take steps that must succeed, and say how many tasks changed something."""
        run = self.ask(*steps, **variables)
        assert run.returncode == 0, said(run)
        return int(re.findall(r"changed=(\d+)", run.stdout)[-1])

    def key(self, app: str, release: str = "") -> str:
        """Return the key of a front end's component."""
        return self.host.check_output("basename $(readlink %s/%s/apps/%s)", ROOT, f"releases/{release}" if release else "current", app)[
            -16:
        ]

    def processes(self) -> dict[str, str]:
        """Return the process of each unit that runs."""
        lines = self.host.check_output(
            "systemctl list-units --plain --no-legend --state=active 'lms-student@*' 'lms-admin@*' | awk '{print $1}' | "
            "xargs -r systemctl show --property=Id,MainPID --value"
        ).split()
        return dict(zip(lines[1::2], lines[::2])) if lines and lines[0].isdigit() else dict(zip(lines[::2], lines[1::2]))

    def asset(self, path: str) -> int:
        """Return how the web server answers for an asset of the student's front end."""
        return int(
            self.host.check_output(
                "curl --silent --output /dev/null --write-out '%%{http_code}' --header 'Host: student.lms.test' http://127.0.0.1:3001/_next/static/%s",
                path,
            )
        )

    def greeting(self, app: str) -> str:
        """Return what the process of a front end has in its environment."""
        socket = f"{ROOT}/current/apps/{app}/run/{app}.sock"
        return self.host.run("curl --silent --fail --unix-socket %s http://x/greeting", socket).stdout


class Visitor:
    """Somebody who goes on asking while the operator works."""

    def __init__(self, host: Any) -> None:
        self.host = host

    def __enter__(self) -> Visitor:
        self.host.check_output("rm -f /tmp/stop")
        program = Path(__file__).parents[1] / "visitor.py"
        self.host.check_output("printf %%s %s > /tmp/visitor.py", program.read_text())
        self.host.check_output("nohup python3 /tmp/visitor.py /tmp/stop >/tmp/seen.json 2>/tmp/visitor.log & sleep 0.5")
        return self

    def __exit__(self, *_: object) -> None:
        self.host.check_output("touch /tmp/stop")
        deadline = time.monotonic() + 30
        while not (text := self.host.check_output("cat /tmp/seen.json")):
            assert time.monotonic() < deadline, self.host.check_output("cat /tmp/visitor.log")
            time.sleep(0.2)
        self.seen = json.loads(text)

    def failures(self) -> dict[str, int]:
        """Return the visits that got no answer."""
        return {f"{app} {what}": count for app, counts in self.seen.items() for what, count in counts.items() if what.startswith("failed")}


@pytest.fixture(scope="module")
def directory():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def operator(host, directory):
    return Operator(host, directory)


@pytest.fixture(scope="module")
def first(operator):
    """A first release, deployed on a bare host."""
    operator.builds = {app: artifact(operator.directory, app, "1") for app in APPS}
    foreseen = operator.ask("deploy", release=FIRST, check=True)
    bare = operator.host.check_output("find %s/releases %s/components -mindepth 1", ROOT, ROOT)
    changes = operator.do("deploy", "activate", "settle", release=FIRST)
    again = operator.do("deploy", "activate", "settle", release=FIRST)
    return {"foreseen": foreseen, "bare": bare, "changes": changes, "again": again, "processes": operator.processes()}


@pytest.fixture(scope="module")
def second(operator, first):
    """A second release in which only the front end of the students changed, deployed while visitors come."""
    operator.builds = {**operator.builds, "student": artifact(operator.directory, "student", "2")}
    # Whoever would send it again, would not find it.
    (operator.directory / Path(operator.builds["admin"]["artifact"]).name).unlink()
    with Visitor(operator.host) as visitor:
        sent = operator.ask("deploy", "activate", release=SECOND)
        beside = operator.processes()
        operator.do("settle")
    return {"sent": sent, "visitor": visitor, "beside": beside, "processes": operator.processes()}


def test_a_deployment_on_a_bare_host_can_be_planned(first):
    assert first["foreseen"].returncode == 0, said(first["foreseen"])
    assert re.search(r"student-[0-9a-f]{16}", first["foreseen"].stdout)
    assert "GREETING=***" in first["foreseen"].stdout
    assert first["bare"] == ""


def test_a_second_run_of_every_step_changes_nothing(first):
    # There is nothing to settle.
    assert (first["changes"], first["again"]) == (2, 0)


def test_an_unchanged_front_end_keeps_its_process(operator, first, second):
    admin = f"lms-admin@{operator.key('admin')}.service"

    assert first["processes"][admin] == second["processes"][admin]
    assert set(first["processes"]) & set(second["processes"]) == {admin}
    assert len(second["beside"]) == 3
    assert len(second["processes"]) == 2


def test_only_what_changed_is_sent(second):
    assert second["sent"].returncode == 0, said(second["sent"])


def test_no_visitor_notices_the_switch(operator, second):
    visitor = second["visitor"]

    assert visitor.failures() == {}
    assert set(visitor.seen["student"]) == {"visits", operator.key("student", FIRST), operator.key("student", SECOND)}
    assert set(visitor.seen["admin"]) == {"visits", operator.key("admin")}
    assert visitor.seen["student"]["visits"] > 50


def test_assets_of_the_release_before_stay_served(operator, second):
    assert [operator.asset(f"chunks/{name}.js") for name in ("student-1", "student-2", "shared", "none")] == [200, 200, 200, 404]


def test_the_processes_are_shut_in(operator, second):
    component = f"{ROOT}/components/student-{operator.key('student')}"
    pid = second["processes"][f"lms-student@{operator.key('student')}.service"]

    assert access_to(operator.host, f"{component}/.env") == ("root", "root", "0600")
    assert access_to(operator.host, f"{component}/run") == ("lms-frontend", "www-data", "2750")
    assert operator.host.check_output("stat --format=%%U /proc/%s", pid) == "lms-frontend"
    assert operator.host.run("setpriv --reuid lms-frontend --clear-groups touch %s/apps/student/x", component).failed
    stranger = "setpriv --reuid nobody --clear-groups curl --silent --unix-socket %s/run/student.sock http://x/"
    assert operator.host.run(stranger, component).failed
    assert "node" not in operator.host.check_output("ss --tcp --listening --numeric --processes --no-header")


def test_a_killed_process_comes_back(operator, second):
    operator.host.check_output("systemctl kill --signal=KILL lms-admin@%s", operator.key("admin"))

    answer = operator.host.check_output(
        "curl --silent --fail --retry 20 --retry-all-errors --retry-delay 1 --header 'Host: admin.lms.test' http://127.0.0.1:3002/"
    )

    assert answer == f"admin of build 1 {operator.key('admin')}"


def test_going_back_starts_what_was_stopped_and_nobody_notices(operator, second):
    planned = operator.ask("activate", release=FIRST, check=True)
    with Visitor(operator.host) as visitor:
        operator.do(
            "rollback",
            nextjs_app_rollback_release=FIRST,
            nextjs_app_failed_release=SECOND,
            nextjs_app_failure="It was only a try",
        )

    assert planned.returncode == 0, said(planned)
    assert visitor.failures() == {}
    assert operator.key("student") == operator.key("student", FIRST)
    assert set(operator.processes()) == {f"lms-{app}@{operator.key(app)}.service" for app in APPS}
    assert operator.ask("activate", release=SECOND).returncode != 0


def test_a_front_end_that_does_not_start_is_named_with_its_log_and_nothing_else_happens(operator, second):
    before = operator.processes()
    server = "console.error(process.env.TOKEN); require('./gone');"
    operator.builds = {**operator.builds, "admin": artifact(operator.directory, "admin", "3", server)}
    operator.environment = {"GREETING": "hello", "TOKEN": "canary-93f1"}

    failed = operator.ask("deploy", release=BROKEN)
    given_up = {"nextjs_app_failed_release": BROKEN, "nextjs_app_failure": "It does not start"}
    operator.do("rollback", nextjs_app_rollback_release=FIRST, **given_up)

    assert failed.returncode != 0
    assert f"The front end admin of release {BROKEN} is not well: its process does not stay up." in said(failed)
    assert "Error: Cannot find module" in said(failed)
    assert "canary-93f1" not in said(failed)
    assert "${TOKEN}" in said(failed)
    assert operator.processes() == before


def test_a_new_environment_alone_needs_no_artifact_and_arrives_as_it_was_meant(operator, second):
    operator.builds = {app: artifact(operator.directory, app, "1") for app in APPS}
    operator.environment = {"GREETING": GREETING}

    known = [{"artifact_sha256": build["sha256"]} for build in operator.builds.values()]
    for build in operator.builds.values():
        (operator.directory / Path(build["artifact"]).name).unlink()
    operator.do("deploy", "activate", "settle", release="20260104000000-ddddddd", nextjs_app_components=known)

    assert operator.greeting("student") == GREETING
    assert operator.greeting("admin") == "good day"


def test_the_live_release_starts_at_boot(operator, second):
    operator.host.check_output("systemctl stop 'lms-student@*' 'lms-admin@*'")
    operator.host.check_output("systemctl restart lms-frontends.service")

    answer = operator.host.check_output(
        "curl --silent --fail --retry 20 --retry-all-errors --retry-delay 1 --header 'Host: student.lms.test' http://127.0.0.1:3001/"
    )

    assert operator.host.service("lms-frontends").is_enabled
    assert answer == f"student of build 1 {operator.key('student')}"


def test_pruning_keeps_what_a_kept_release_consists_of(operator, second):
    operator.do("settle")

    linked = {name.rsplit("/", 1)[-1] for name in operator.host.check_output("readlink %s/releases/*/apps/*", ROOT).split()}
    assert linked == set(operator.host.check_output("ls %s/components", ROOT).split())
