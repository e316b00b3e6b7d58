"""Hosts for the API alone, once with the Laravel of Debian 12 and once with that of Debian unstable.

LMS_KEEP=1 keeps them for the next run. LMS_NAME, LMS_NETWORK and LMS_PORT choose another environment than lms-versions.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# pytest imports tests by their path, so that modules beside them are not found by themselves.
sys.path[:0] = [str(Path(__file__).parents[1] / place) for place in ("faults", "journeys")]
os.environ.setdefault("LMS_NAME", "lms-versions")
os.environ.setdefault("LMS_NETWORK", "172.29.88")
os.environ.setdefault("LMS_PORT", "11443")

# So that their assertions explain themselves as those of the tests do.
pytest.register_assert_rewrite("environment", "injection")

from environment import PROJECT, Environment, run

ADDRESSES = {"lb": 10, "old": 11, "new": 12, "data": 20}


@dataclass(frozen=True)
class Leg:
    """One Laravel: the host that has it, and the Debian that it comes from."""

    host: str
    image_suite: str
    laravel: str
    package_suite: str = ""


LEGS = {"8.83": Leg("old", "bookworm", "8.83"), "13": Leg("new", "trixie", "13.", package_suite="sid")}


class ApiAlone:
    """An environment whose backend is one host, and that has no front ends."""

    def __init__(self, leg: Leg) -> None:
        self.leg = leg
        self.environment = Environment()
        self.inventory = self.environment.cache / f"inventory-{leg.host}"
        self.environment.authority = self.environment.cache / "secrets" / "authority" / "authority.pem"

    def make(self) -> None:
        """Start and provision the hosts, with an empty database."""
        name = self.environment.name
        if name not in run("docker", "network", "ls", "--format", "{{.Name}}").split():
            run("docker", "network", "create", "--label", f"bitflow-lms={name}", "--subnet", f"{self.environment.network}.0/24", name)
        self._start("lb", "trixie", "--publish", f"127.0.0.1:{self.environment.port}:443")
        self._start("data", "trixie")
        self._start(self.leg.host, self.leg.image_suite)
        run(PROJECT / "tests/fixtures/lms/make-repository", self.environment.cache / "lms.git")
        self._write_inventory()
        for playbook in (
            "bitflow.lms.provision",
            *(["tests/versions/suite.yml"] if self.leg.package_suite else []),
            "tests/fixtures/lms/offline.yml",
        ):
            outcome = self.play(playbook, lms_package_suite=self.leg.package_suite)
            assert outcome.status == 0, outcome.output[-6000:]
        self.environment.in_database("drop owned by lms; grant all on schema public to lms")

    def play(self, playbook: str, *options: str, **variables: object):
        """Run a playbook with the inventory of this leg."""
        return self.environment.play(playbook, *options, inventory=self.inventory, **variables)

    def live(self) -> str:
        """Return the live release."""
        return self.environment.on(self.leg.host, "readlink", "/srv/lms/backend/current").strip().removeprefix("releases/")

    def _start(self, host: str, suite: str, *options: str) -> None:
        image = run("sh", "-c", f". script/lib.sh && image_of {suite}", "script/any", cwd=PROJECT).strip()
        place = ("--network", self.environment.name, "--ip", f"{self.environment.network}.{ADDRESSES[host]}")
        name = f"{self.environment.name}-{host}"
        run(PROJECT / "molecule/shared/host.sh", "up", name, image, self.environment.name, *place, *options)

    def _write_inventory(self) -> None:
        """Write the inventory; what it has in common with the development environment are links to that one's files."""
        shutil.rmtree(self.inventory, ignore_errors=True)
        variables = self.inventory / "group_vars" / "all"
        variables.mkdir(parents=True)
        development = PROJECT / "inventories" / "dev" / "group_vars"
        for file in ("lms.yml", "secrets.yml"):
            (variables / file).symlink_to(development / "all" / file)
        (variables.parent / "loadbalancer").symlink_to(development / "loadbalancer")
        # The last file wins.
        own = {"lms_frontends": [], "lms_cache": str(self.environment.cache), "__lms_secrets": str(self.environment.cache / "secrets")}
        (variables / "zz_versions.json").write_text(json.dumps(own))
        (self.inventory / "hosts.json").write_text(json.dumps(self._hosts()))

    def _hosts(self) -> dict[str, object]:
        used = ("lb", self.leg.host, "data")
        hosts = {
            host: {
                "ansible_host": f"{self.environment.name}-{host}",
                "ansible_connection": "community.docker.docker",
                "ansible_user": "root",
                "lms_address": f"{self.environment.network}.{ADDRESSES[host]}",
            }
            for host in used
        }
        hosts["localhost"] = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        groups = {"loadbalancer": "lb", "backend": self.leg.host, "database": "data", "cache": "data"}
        return {"all": {"hosts": hosts, "children": {group: {"hosts": {host: None}} for group, host in groups.items()}}}


@pytest.fixture(scope="module", params=LEGS)
def lms(request: pytest.FixtureRequest) -> Iterator[ApiAlone]:
    """Return the LMS with one Laravel."""
    made = ApiAlone(LEGS[request.param])
    made.make()
    yield made
    if os.environ.get("LMS_KEEP") != "1" and request.param == list(LEGS)[-1]:
        run(PROJECT / "molecule/shared/host.sh", "forget", made.environment.name)
        run("docker", "network", "rm", made.environment.name)
