# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time deployments of the sample LMS's API by bitflow.lms and by its rivals; script/bench deploy starts it.

first      the first deployment of version 1
new        a version that nobody has built yet; the sample has no composer.lock, so Composer works anew each time
next       versions 1 and 2 in turn, both built before: bitflow.lms keeps what it built, its rivals build again
rollback   back to the release before; deploy.sh has no rollback and deploys the old version again

deploy.sh    what the seed documents do: git pull, composer install, migrate, clear caches, restart PHP-FPM and nginx, in place
ansistrano   the roles ansistrano.deploy and ansistrano.rollback with the usual steps of Laravel (tests/bench/rivals/ansistrano.yml)
deployer     Deployer's own recipe for Laravel (tests/bench/rivals/deploy.php), run on the host itself, which spares it the network
Trellis deploys WordPress and no Laravel application, so it is left out.

Rivals work on the same hosts, each below /srv/bench in a directory and with a database of its own. deploy.sh and Deployer are timed with
one host only. bitflow.lms does all its checks: it proves the release before and after the switch and watches the site meanwhile.

Columns: runs that count; medians of the seconds that passed, of the CPU seconds of the command here with its children, and of those of
all hosts of the environment meanwhile; tasks of app1 in Ansible's recap (ok=), and how many of them ran something on the host. For
Deployer its own tasks. Then bitflow.lms divided by the rival: time, and CPU here and on the hosts together. Each single measurement is a
line of .cache/bench/measurements.jsonl, beside the output of each command.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
RIVALS = PROJECT / "tests/bench/rivals"
OURS = "bitflow.lms"
KINDS = ("first", "new", "next", "rollback")
# Where the rivals are on a host.
ROOT = "/srv/bench"
DATABASES = ["lms", "bench_seed", "bench_ansistrano", "bench_deployer"]
DEPLOYER_TASK = re.compile(r"^task \S+", re.MULTILINE)
# What provisioning does beyond the usual, for the rivals: databases, the access to them, and a PHP-FPM for all releases.
FOR_RIVALS = {
    "postgresql_databases": [{"name": name, "owner": "lms"} for name in DATABASES],
    "postgresql_access": "{{ __lms_backends | bitflow.lms.database_access('all', 'lms') }}",
    "php_fpm_enabled": True,
}


@dataclass(frozen=True)
class Measurement:
    """What one command took."""

    seconds: float
    cpu_here: float
    cpu_hosts: float
    tasks: int | None = None
    tasks_on_host: int | None = None


@dataclass(frozen=True)
class Tool:
    """A way to deploy: its commands, and where its live release is on a host."""

    name: str
    deploy: Callable[[str], list[str]]
    # Takes the version to go back to, which only deploy.sh has to be told.
    rollback: Callable[[str], list[str]]
    current: str


@dataclass
class Environment:
    """The hosts, and how to reach and count them."""

    name: str
    network: str
    port: str
    image: str
    hosts: int
    cache: Path
    log: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def applications(self) -> list[str]:
        """Return the names of the application hosts."""
        return [f"app{number}" for number in range(1, self.hosts + 1)]

    @property
    def containers(self) -> list[str]:
        """Return the names of all containers."""
        return [f"{self.name}-{host}" for host in ["lb", "data", *self.applications]]

    @property
    def inventory(self) -> Path:
        """Return the directory of the inventory."""
        return self.cache / self.name / "bench-inventory"


def main(arguments: Sequence[str]) -> None:
    """Make the hosts, time every tool in turn, print the table."""
    options = parse(arguments)
    environment = surroundings(options.hosts)
    tools = tools_of(options, environment)
    prepare(environment, options)
    print(report(measure_all(environment, tools, options.rounds)))  # noqa: T201


def surroundings(hosts: int) -> Environment:
    """Return the environment that script/bench names."""
    return Environment(
        name=os.environ["LMS_NAME"],
        network=os.environ["LMS_NETWORK"],
        port=os.environ["LMS_PORT"],
        image=os.environ["LMS_IMAGE"],
        hosts=hosts,
        cache=PROJECT / ".cache",
        log=PROJECT / ".cache/bench",
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="script/bench deploy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=1, choices=range(1, 11), metavar="1..10", help="application hosts (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="new versions, pairs of further deployments, and rollbacks (default 3)")
    parser.add_argument(
        "--ansistrano", type=directory, metavar="DIR", help="directory that holds the roles ansistrano.deploy and ansistrano.rollback"
    )
    parser.add_argument("--deployer", type=program, metavar="PATH", help="Deployer 7 in one file, such as deployer.phar")
    return parser.parse_args(arguments)


def directory(value: str) -> Path:
    """Return the directory of Ansistrano's roles."""
    path = Path(value).resolve()
    for role in ("ansistrano.deploy", "ansistrano.rollback"):
        if not (path / role / "tasks/main.yml").is_file():
            raise argparse.ArgumentTypeError(f"{path} holds no role {role}.")
    return path


def program(value: str) -> Path:
    """Return the file of Deployer."""
    path = Path(value).resolve()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{path} is not a file.")
    return path


def tools_of(options: argparse.Namespace, environment: Environment) -> list[Tool]:
    """Return what is timed: ours first, then the rivals that are here and can deploy to so many hosts."""
    inside = ["docker", "exec", f"{environment.name}-app1"]
    playbook = ["ansible-playbook", "-i", str(environment.inventory)]
    tools = [
        Tool(
            OURS,
            lambda version: [*playbook, str(PROJECT / "deploy.yml"), "-e", f"lms_version={version}"],
            lambda _version: [*playbook, "bitflow.lms.rollback"],
            "/srv/lms/backend/current",
        )
    ]
    if options.hosts == 1:
        script = [*inside, "sh", f"{ROOT}/deploy.sh"]
        tools.append(Tool("deploy.sh", lambda version: [*script, version], lambda version: [*script, version], f"{ROOT}/seed/lms/backend"))
    if options.ansistrano:
        environment.variables["ANSIBLE_ROLES_PATH"] = str(options.ansistrano)
        tools.append(
            Tool(
                "ansistrano",
                lambda version: [*playbook, str(RIVALS / "ansistrano.yml"), "-e", f"bench_version={version}"],
                lambda _version: [*playbook, str(RIVALS / "ansistrano_rollback.yml")],
                f"{ROOT}/ansistrano/current",
            )
        )
    if options.deployer and options.hosts == 1:
        dep = [*inside, "php", f"{ROOT}/dep", "--no-interaction", "--no-ansi", f"--file={ROOT}/deploy.php"]
        tools.append(
            Tool(
                "deployer",
                lambda version: [*dep, "deploy", f"--tag={version}"],
                lambda _version: [*dep, "rollback"],
                f"{ROOT}/deployer/current",
            )
        )
    return tools


def prepare(environment: Environment, options: argparse.Namespace) -> None:
    """Make hosts that are provisioned, and ready for each tool's first deployment."""
    say("Making the hosts")
    write_inventory(environment)
    network = ["docker", "network", "create", "--label", f"bitflow-lms={environment.name}"]
    run(environment, "network", [*network, "--subnet", f"{environment.network}.0/24", environment.name])
    start(environment, "lb", environment.image, "--publish", f"127.0.0.1:{environment.port}:443")
    start(environment, "app1", environment.image)
    start(environment, "data", environment.image)
    repository = environment.cache / environment.name / "lms.git"
    run(environment, "repository", [str(PROJECT / "tests/fixtures/lms/make-repository"), str(repository)])
    add_versions(repository, options.rounds)

    say("Provisioning them")
    first = ["--limit", "localhost,lb,data,app1"]
    playbook = ["ansible-playbook", "-i", str(environment.inventory)]
    run(environment, "provision", [*playbook, "bitflow.lms.provision", *first, "-e", json.dumps(FOR_RIVALS)])
    run(environment, "offline", [*playbook, str(PROJECT / "tests/fixtures/lms/offline.yml"), *first])
    bundle = environment.cache / environment.name / "lms.bundle"
    run(environment, "bundle", ["git", f"--git-dir={repository}", "bundle", "create", str(bundle), "--all"])
    rivals = json.dumps({"bench_deployer": str(options.deployer or ""), "bench_repository": str(bundle)})
    run(environment, "rivals", [*playbook, str(RIVALS / "prepare.yml"), *first, "-e", rivals])
    look = ["docker", "exec", f"{environment.name}-app1", "ls", "/etc/php"]
    environment.variables["LMS_BENCH_PHP"] = run(environment, "php", look).strip()
    if environment.hosts > 1:
        copy_first_host(environment)


def copy_first_host(environment: Environment) -> None:
    """Make the other application hosts from the first one: nothing on it knows its address, and only the scheduler is its own."""
    say(f"Copying app1 {environment.hosts - 1} times")
    image = f"bitflow-lms-bench:{environment.name}"
    run(environment, "commit", ["docker", "commit", f"{environment.name}-app1", image])
    others = environment.applications[1:]
    for host in others:
        start(environment, host, image)
    playbook = ["ansible-playbook", "-i", str(environment.inventory), "bitflow.lms.provision"]
    run(environment, "copies", [*playbook, "--limit", ",".join(["localhost", *others]), "--tags", "laravel_app_service"])


def start(environment: Environment, host: str, image: str, *options: str) -> None:
    """Start a host under the address that the inventory gives it."""
    address = f"{environment.network}.{last_number(host)}"
    network = ["--network", environment.name, "--ip", address]
    name = f"{environment.name}-{host}"
    run(environment, f"start-{host}", [str(PROJECT / "molecule/shared/host.sh"), "up", name, image, environment.name, *network, *options])
    as_elsewhere(environment, name)


def as_elsewhere(environment: Environment, container: str) -> None:
    """Let tasks of Ansible cost a test host what they cost any other."""
    run(environment, "as-elsewhere", ["docker", "exec", container, "rm", "-f", "/usr/lib/python3/dist-packages/compiled_once.pth"])


def last_number(host: str) -> int:
    """Return the end of a host's address."""
    return {"lb": 10, "data": 40}.get(host) or 10 + int(host.removeprefix("app"))


def write_inventory(environment: Environment) -> None:
    """Write the inventory; what it has in common with the development environment are links to that one's files."""
    shutil.rmtree(environment.inventory, ignore_errors=True)
    variables = environment.inventory / "group_vars/all"
    variables.mkdir(parents=True)
    development = PROJECT / "inventories/dev/group_vars"
    for name in ("lms.yml", "secrets.yml"):
        (variables / name).symlink_to(development / "all" / name)
    (variables.parent / "loadbalancer").symlink_to(development / "loadbalancer")
    home = environment.cache / environment.name
    # The last file wins.
    own = {
        "lms_frontends": [],
        "lms_public_port": int(environment.port),
        "lms_cache": str(home),
        "__lms_secrets": str(home / "secrets"),
    }
    (variables / "zz_bench.json").write_text(json.dumps(own, indent=2), encoding="utf-8")
    (environment.inventory / "hosts.json").write_text(json.dumps(inventory(environment), indent=2), encoding="utf-8")


def inventory(environment: Environment) -> dict[str, Any]:
    """Return the hosts and groups of an API alone."""
    hosts = {
        host: {"ansible_host": f"{environment.name}-{host}", "lms_address": f"{environment.network}.{last_number(host)}"}
        for host in ["lb", "data", *environment.applications]
    }
    reached = {"lms_container_prefix": environment.name, "ansible_connection": "community.docker.docker", "ansible_user": "root"}
    local = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    return {
        "all": {
            "hosts": {"localhost": local},
            "children": {
                "containers": {"hosts": hosts, "vars": reached},
                "loadbalancer": {"hosts": {"lb": None}},
                "backend": {"hosts": dict.fromkeys(environment.applications)},
                "database": {"hosts": {"data": None}},
                "cache": {"hosts": {"data": None}},
            },
        }
    }


def add_versions(repository: Path, count: int) -> None:
    """Add versions to the repository that differ from version 2 in one file, tagged bench-1 and so on."""
    identity = {"GIT_AUTHOR_NAME": "Bench", "GIT_AUTHOR_EMAIL": "bench@example.com"}
    identity |= {name.replace("AUTHOR", "COMMITTER"): value for name, value in identity.items()}
    variables = os.environ | identity | {"GIT_DIR": str(repository), "GIT_INDEX_FILE": str(repository / "bench-index")}

    def git(*arguments: str, given: str = "") -> str:
        result = subprocess.run(["git", *arguments], env=variables, input=given, capture_output=True, text=True, check=True)
        return result.stdout.strip()

    for number in range(1, count + 1):
        git("read-tree", "v2")
        blob = git("hash-object", "-w", "--stdin", given=f"{number}\n")
        git("update-index", "--add", "--cacheinfo", f"100644,{blob},backend/public/bench.txt")
        commit = git("commit-tree", "-p", "v2", "-m", f"Version {number} of the bench", git("write-tree"))
        git("update-ref", f"refs/tags/bench-{number}", commit)


def measure_all(environment: Environment, tools: Sequence[Tool], rounds: int) -> dict[tuple[str, str], list[Measurement]]:
    """Let each tool take each step before any takes the next one, so that a slow minute hits them all."""
    measured: dict[tuple[str, str], list[Measurement]] = {}
    (environment.log / "measurements.jsonl").unlink(missing_ok=True)

    def step(kind: str, version: str, *, back: bool = False) -> None:
        say(f"{kind}: {'back to ' if back else ''}{version}")
        for tool in tools:
            argv = tool.rollback(version) if back else tool.deploy(version)
            taken = measure(environment, f"{tool.name}-{kind}", argv)
            check(environment, tool, version)
            measured.setdefault((kind, tool.name), []).append(taken)
            with (environment.log / "measurements.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": kind, "tool": tool.name, "version": version, **asdict(taken)}) + "\n")

    step("first", "v1")
    for number in range(1, rounds + 1):
        step("new", f"bench-{number}")
    step("once", "v2")
    live, other = "v2", "v1"
    for _round in range(rounds):
        for _time in range(2):
            live, other = other, live
            step("next", live)
        step("rollback", other, back=True)
        live, other = other, live
    return measured


def measure(environment: Environment, name: str, argv: Sequence[str]) -> Measurement:
    """Run a command and return what it took."""
    counts = environment.log / "tasks.json"
    counts.unlink(missing_ok=True)
    cpu_hosts, cpu_here, started = cpu_of_hosts(environment), cpu_of_children(), time.monotonic()
    output = run(environment, name, argv, LMS_BENCH_TASKS=str(counts))
    seconds, cpu_here = time.monotonic() - started, cpu_of_children() - cpu_here
    cpu_hosts = cpu_of_hosts(environment) - cpu_hosts
    tasks, tasks_on_host = count_tasks(output, counts)
    return Measurement(seconds, cpu_here, cpu_hosts, tasks, tasks_on_host)


def count_tasks(output: str, counts: Path) -> tuple[int | None, int | None]:
    """Return how many tasks app1 had, and how many of them ran something there."""
    recap = re.search(r"^app1 .*\bok=(\d+)", output, re.MULTILINE)
    if recap:
        return int(recap[1]), json.loads(counts.read_text(encoding="utf-8")).get("app1", 0)
    return len(DEPLOYER_TASK.findall(output)) or None, None


def cpu_of_children() -> float:
    """Return the CPU seconds of all commands that ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def cpu_of_hosts(environment: Environment) -> float:
    """Return the CPU seconds of all hosts since they were started."""
    import docker  # Not there where only the pure parts are tested.

    client = docker.APIClient()
    usage = [client.stats(name, stream=False, one_shot=True)["cpu_stats"]["cpu_usage"]["total_usage"] for name in environment.containers]
    return float(sum(usage)) / 1e9


def check(environment: Environment, tool: Tool, version: str) -> None:
    """End unless the live release of every host is the version, starts, and has run its migrations."""
    repository = environment.cache / environment.name / "lms.git"
    wanted = run(environment, "commit", ["git", f"--git-dir={repository}", "rev-parse", f"{version}^{{commit}}"]).strip()
    look = f"cd {tool.current}/ && php artisan migrate:status && {{ cat REVISION 2>/dev/null || git rev-parse HEAD; }}"
    for host in environment.applications:
        seen = run(environment, "check", ["docker", "exec", f"{environment.name}-{host}", "sh", "-c", look])
        if "Pending" in seen or seen.split()[-1] != wanted:
            sys.exit(f"{tool.name} should have brought {version} ({wanted}) to {host}, where one finds:\n{seen}")


def run(environment: Environment, name: str, argv: Sequence[str], **variables: str) -> str:
    """Run a command that must succeed, keep its output in a log, and return it."""
    log = environment.log / f"{name}.log"
    given = os.environ | {"ANSIBLE_CALLBACK_PLUGINS": str(PROJECT / "tests/bench/callback_plugins")} | environment.variables | variables
    with log.open("w", encoding="utf-8") as stream:
        code = subprocess.run(argv, cwd=PROJECT, env=given, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
    output = log.read_text(encoding="utf-8")
    if code:
        sys.exit(f"{' '.join(argv)} ended with status {code}; {log} ends with:\n{output[-3000:]}")
    return output


def report(measured: Mapping[tuple[str, str], Sequence[Measurement]]) -> str:
    """Return the table: a row a step and tool."""
    rows: list[Sequence[str]] = [
        ("step", "tool", "runs", "time s", "cpu here s", "cpu hosts s", "tasks", "on host", "ours/its time", "ours/its cpu")
    ]
    for kind in KINDS:
        ours = middle(measured[kind, OURS])
        for (step, name), taken in measured.items():
            if step != kind:
                continue
            its = middle(taken)
            ratios = ["", ""]
            if name != OURS:
                ratios = [f"{ours.seconds / its.seconds:.2f}", f"{cpu(ours) / cpu(its):.2f}"]
            counts = ["" if count is None else str(count) for count in (its.tasks, its.tasks_on_host)]
            times = [f"{value:.1f}" for value in (its.seconds, its.cpu_here, its.cpu_hosts)]
            rows.append((kind, name, str(len(taken)), *times, *counts, *ratios))
    return table(rows)


def middle(taken: Sequence[Measurement]) -> Measurement:
    """Return the medians of what several runs took."""
    return Measurement(
        statistics.median(one.seconds for one in taken),
        statistics.median(one.cpu_here for one in taken),
        statistics.median(one.cpu_hosts for one in taken),
        middle_count(one.tasks for one in taken),
        middle_count(one.tasks_on_host for one in taken),
    )


def middle_count(counts: Iterable[int | None]) -> int | None:
    """Return the median of what was counted, if anything was."""
    known = [count for count in counts if count is not None]
    return statistics.median_low(known) if known else None


def cpu(taken: Measurement) -> float:
    """Return the CPU seconds of all machines."""
    return taken.cpu_here + taken.cpu_hosts


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows under each other: the first two columns as words, the others as numbers."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths)))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def say(message: str) -> None:
    """Say what happens next."""
    print(f"==> {message}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
