# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time the provisioning of the demo's four hosts; script/bench provision starts it.

first         bare hosts, with all that bitflow.lms.provision brings: applications, data, firewall, hardening, monitoring
second        the same again, which changes nothing
floor         the packages that the first one installed, in one transaction of apt on each of four bare hosts, all at once
geerlingguy   the roles of that name for nginx, PHP, PostgreSQL and Redis on four bare hosts (tests/bench/rivals/geerlingguy.yml), first and
              second. They bring less: no applications, firewall, hardening or monitoring, and none of what these need

Columns: medians of the seconds that passed, of the CPU seconds of the command here with its children, and of those of all hosts meanwhile;
tasks of app1 in Ansible's recap (ok=), and how many of them ran something on the host; then bitflow.lms divided by the rival. Hosts begin
with an empty cache of packages. Each single measurement is a line of .cache/bench/provision.jsonl, beside the output of each command.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from deploy import PROJECT, RIVALS, Environment, Measurement, as_elsewhere, cpu, measure, middle, run, say, surroundings, table

HOSTS = ("lb", "app1", "app2", "data")
ROLES = ("nginx", "php", "postgresql", "redis")
# What of the product each rival is compared with.
COMPARED = {"floor": "first", "geerlingguy first": "first", "geerlingguy second": "second"}


def main(arguments: Sequence[str]) -> None:
    """Provision bare hosts in each way, again and again, and print the table."""
    options = parse(arguments)
    environment = surroundings(hosts=2)
    measured: dict[str, list[Measurement]] = {}
    (environment.log / "provision.jsonl").unlink(missing_ok=True)
    for _round in range(options.rounds):
        for name, taken in measure_all(environment, options.geerlingguy):
            measured.setdefault(name, []).append(taken)
            with (environment.log / "provision.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": name, **asdict(taken)}) + "\n")
    print(report(measured))  # noqa: T201


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="script/bench provision", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1, help="how often each way begins with bare hosts (default 1)")
    parser.add_argument("--geerlingguy", type=roles, metavar="DIR", help="directory that holds the roles geerlingguy.nginx and so on")
    return parser.parse_args(arguments)


def roles(value: str) -> Path:
    """Return the directory of geerlingguy's roles."""
    path = Path(value).resolve()
    for role in ROLES:
        if not (path / f"geerlingguy.{role}/tasks/main.yml").is_file():
            raise argparse.ArgumentTypeError(f"{path} holds no role geerlingguy.{role}.")
    return path


def measure_all(environment: Environment, geerlingguy: Path | None) -> list[tuple[str, Measurement]]:
    """Provision bare hosts in each way once."""
    measured = []
    places = ["-i", "inventories/dev", "-e", json.dumps(variables(environment))]
    ours = ["ansible-playbook", "bitflow.lms.provision", *places]

    say("first: bitflow.lms")
    bare_hosts(environment)
    before = packages(environment)
    measured.append(("first", measure(environment, "provision-first", ours)))
    new = {host: sorted(names - before[host]) for host, names in packages(environment).items()}
    say("second: bitflow.lms")
    measured.append(("second", measure(environment, "provision-second", ours)))

    say(f"floor: {', '.join(f'{len(names)} packages on {host}' for host, names in new.items())}")
    bare_hosts(environment)
    measured.append(("floor", measure(environment, "provision-floor", ["sh", "-c", transactions(environment, new)])))

    if geerlingguy:
        with_roles = replace(environment, variables={"ANSIBLE_ROLES_PATH": str(geerlingguy)})
        theirs = ["ansible-playbook", str(RIVALS / "geerlingguy.yml"), *places]
        bare_hosts(environment)
        for step in ("first", "second"):
            say(f"{step}: geerlingguy")
            measured.append((f"geerlingguy {step}", measure(with_roles, f"provision-geerlingguy-{step}", theirs)))
    return measured


def variables(environment: Environment) -> dict[str, str]:
    """Return the variables by which the inventory of development names these hosts."""
    return {
        "lms_container_prefix": environment.name,
        "lms_container_network": environment.network,
        "lms_public_port": environment.port,
    }


def bare_hosts(environment: Environment) -> None:
    """Replace the hosts and their caches of packages by new ones."""
    demo = str(PROJECT / "script/demo")
    run(environment, "down", [demo, "down"])
    run(environment, "hosts", [demo, "hosts"])
    for host in HOSTS:
        as_elsewhere(environment, f"{environment.name}-{host}")


def packages(environment: Environment) -> dict[str, set[str]]:
    """Return the names of the packages of each host."""
    look = ["dpkg-query", "--show", "--showformat=${Package}\\n"]
    return {host: set(run(environment, "packages", ["docker", "exec", f"{environment.name}-{host}", *look]).split()) for host in HOSTS}


def transactions(environment: Environment, new: dict[str, list[str]]) -> str:
    """Return the shell script that installs the packages of every host at once, and fails if one of them does."""
    install = "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends"
    # Services do not start: a role would have written their configuration first.
    policy = "printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d"
    lines, waits = [], []
    for host, names in new.items():
        command = f"{policy} && {install} {' '.join(names)}"
        lines.append(f"docker exec {environment.name}-{host} sh -c {shlex.quote(command)} & {host}=$!")
        waits.append(f"wait ${host}")
    return "\n".join([*lines, " && ".join(waits)])


def report(measured: dict[str, list[Measurement]]) -> str:
    """Return the table: a row a step, and how the product compares with each rival."""
    head = ("step", "runs", "time s", "cpu here s", "cpu hosts s", "tasks", "on host", "ours/its time", "ours/its cpu")
    rows: list[Sequence[str]] = [head]
    for name, taken in measured.items():
        its = middle(taken)
        ratios = ["", ""]
        if name in COMPARED:
            ours = middle(measured[COMPARED[name]])
            ratios = [f"{ours.seconds / its.seconds:.2f}", f"{cpu(ours) / cpu(its):.2f}"]
        counts = ["" if count is None else str(count) for count in (its.tasks, its.tasks_on_host)]
        times = [f"{value:.1f}" for value in (its.seconds, its.cpu_here, its.cpu_hosts)]
        rows.append((name, str(len(taken)), *times, *counts, *ratios))
    return table(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
