"""The inventories: every key means something, every secret is there, environments differ in values alone, and roles accept these."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
INVENTORIES = sorted(path for path in (ROOT / "inventories").iterdir() if path.is_dir())
DEV, PROD, STAGING = INVENTORIES
# Collection-wide variables are those that the wiring or a playbook reads.
WIRING = "".join(path.read_text() for path in (ROOT / "playbooks").rglob("*.yml"))
ROLES = "".join(path.read_text() for folder in ("defaults", "meta", "tasks", "vars") for path in ROOT.glob(f"roles/*/{folder}/*.yml"))
ANSIBLE = re.compile(r"^ansible_")
# A secret that is used, unless a default stands beside it or it is only named as one that may be missing.
USED_SECRET = re.compile(r"\bvault_\w+\b(?! \| default|'\])")
# Of an example that is to be filled in.
TO_BE_SET = re.compile(r"^# (?P<name>vault_\w+):$", re.MULTILINE)

# The groups that playbooks know, and why an environment may lack one.
GROUPS = {
    *{"loadbalancer", "backend", "backend_blue", "backend_green", "frontend", "frontend_blue", "frontend_green"},
    *{"database", "cache", "monitoring", "backup"},
}
GROUPS_THAT_MAY_LACK = {
    (DEV.name, "frontend_blue"): "its front ends are on the hosts of the backend, which have a colour already",
    (DEV.name, "frontend_green"): "its front ends are on the hosts of the backend, which have a colour already",
    (DEV.name, "backup"): "the host of its database backs it up",
    (STAGING.name, "backup"): "the host of its database backs it up",
}
# Files of variables that not every environment has, and why not.
FILES_THAT_MAY_LACK = {
    (DEV.name, "monitoring/prometheus.yml"): "its alerts are told to nobody",
    (PROD.name, "database/postgresql.yml"): "its database is RDS and has no host",
    (PROD.name, "cache/redis.yml"): "its cache is ElastiCache and has no host",
    (STAGING.name, "all/secrets.yml"): "the file is made from the example, and not in Git",
}
EXAMPLES = {"all/secrets.example.yml.txt"}
# Secrets that an environment lacks on purpose.
SECRETS_THAT_MAY_LACK = {
    (PROD.name, "vault_backup_identity"): "who can read the backups gives it to the runs that need it",
    (STAGING.name, "vault_backup_identity"): "who can read the backups gives it to the runs that need it",
}


def version_of_amazon_aws() -> tuple[int, ...]:
    """Return the version of the collection that came with the tools."""
    manifests = [Path(place) / "ansible_collections/amazon/aws/MANIFEST.json" for place in sys.path]
    found = next((json.loads(path.read_text())["collection_info"]["version"] for path in manifests if path.exists()), "0")
    return tuple(map(int, found.split(".")))


# With Python 3.11 the tools bring an older one.
needs_ec2_tags = pytest.mark.skipif(version_of_amazon_aws() < (11, 2), reason="amazon.aws knows ec2_tags from 11.2.0 on")

KEYS = ["app_key", "backup_restic_password", "database_password", "notify_webhook", "redis_password"]
SECRETS = {**{key: f"stand-in of {key}" for key in KEYS}, "app_key": "base64:" + "c3RhbmQtaW4h" * 4}
REGION = "us-east-1"


def instance(address: str, role: str, colour: str = "", *, stopped: bool = False, **tags: str) -> dict[str, Any]:
    """Return an instance of EC2 with the tags that docs/inventories.md asks for, or others."""
    # Instances of one auto scaling group have one name.
    told = {"Environment": "prod", "ManagedBy": "bitflow.lms", "Role": role, "Name": f"lms-{role}", **tags}
    return {"address": address, "tags": {**told, **({"Colour": colour} if colour else {})}, "stopped": stopped}


PLACES = {
    "loadbalancer": ["10.0.1.10"],
    "monitoring": ["10.0.1.20"],
    "backend_blue": ["10.0.11.1", "10.0.11.2", "10.0.11.3"],
    "backend_green": ["10.0.12.1", "10.0.12.2", "10.0.12.3"],
    "frontend_blue": ["10.0.21.1", "10.0.21.2", "10.0.21.3"],
    "frontend_green": ["10.0.22.1", "10.0.22.2", "10.0.22.3"],
}
INSTANCES = [instance(address, *group.split("_")) for group, addresses in PLACES.items() for address in addresses]
# The same shape with one instance of each kind, which is quicker.
FEW = [instance(addresses[0], *group.split("_")) for group, addresses in PLACES.items()]
STRANGERS = [
    instance("10.0.90.1", "backend", "blue", stopped=True),
    instance("10.0.90.2", "backend", "blue", Environment="staging"),
    instance("10.0.90.3", "backend", "blue", ManagedBy="somebody"),
    instance("10.0.90.4", "bastion"),
]
MISTAGGED = instance("10.0.80.1", "backend", "Green")


class Run:
    """A run of a command of Ansible with an environment, without any host."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(
        self,
        command: str,
        *arguments: str | Path,
        instances: list[dict[str, Any]] | None = None,
        secrets: Mapping[str, str] = SECRETS,
    ) -> subprocess.CompletedProcess[str]:
        """Run it; with instances in an AWS that has them, and the secrets."""
        start = ["-m", "ansible", command]
        if instances is not None:
            world = {"region": REGION, "instances": instances, "secrets": {"lms/prod": json.dumps(secrets)}}
            start = [str(ROOT / "tests/unit/ansible_in_aws.py"), json.dumps(world), command]
        known = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "ANSIBLE_"))}
        return subprocess.run(
            [sys.executable, *start, *map(str, arguments)],
            capture_output=True,
            check=False,
            env={
                **known,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
                # The hosts are none: nothing is asked of them, and their facts are given.
                "ANSIBLE_GATHERING": "explicit",
                "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
                "LMS_PROGRESS_INTERVAL": "0",
                "HOME": str(self.home),
            },
            text=True,
            timeout=300,
        )

    def inventory(self, inventory: Path, instances: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """Return what Ansible reads from an environment."""
        done = self("inventory", "-i", inventory, "--list", instances=instances)
        assert done.returncode == 0, done.stderr
        assert "Unable to parse" not in done.stderr
        assert "reserved name" not in done.stderr
        return dict(json.loads(done.stdout))

    def play(self, inventory: Path, *arguments: str | Path, instances: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """Return the results of playbooks that end well: by task, then by host."""
        done = self("playbook", "-i", inventory, *arguments, instances=instances)
        assert done.returncode == 0, done.stdout + done.stderr
        decoder, rest, plays = json.JSONDecoder(), done.stdout.strip(), []
        # One document for each playbook.
        while rest:
            document, end = decoder.raw_decode(rest)
            plays += document["plays"]
            rest = rest[end:].strip()
        return {task["task"]["name"]: task["hosts"] for play in plays for task in play["tasks"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("home"))


def hosts_of(listing: Mapping[str, Any], group: str) -> set[str]:
    """Return the hosts of a group and of those below it."""
    found = listing.get(group, {})
    return {*found.get("hosts", [])}.union(*(hosts_of(listing, child) for child in found.get("children", [])))


def addresses_of(listing: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the addresses of the hosts in each group that playbooks know."""
    known = listing["_meta"]["hostvars"]
    values = {group: [known[host]["lms_address"] for host in hosts_of(listing, group)] for group in GROUPS & groups_of(listing)}
    # What comes from AWS is marked as data.
    return {
        group: sorted(value["__ansible_unsafe"] if isinstance(value, dict) else value for value in found) for group, found in values.items()
    }


def groups_of(listing: Mapping[str, Any]) -> set[str]:
    """Return the names of all groups, also of those without hosts."""
    return {*listing}.union(*(found.get("children", []) for name, found in listing.items() if name != "_meta"))


def variable_files(inventory: Path) -> Iterator[tuple[str, Path]]:
    """Return the files of variables, each with its place."""
    for path in sorted(inventory.glob("group_vars/*/*.yml")):
        yield str(path.relative_to(inventory / "group_vars")), path


def variables_of(inventory: Path) -> dict[str, str]:
    """Return every key that the inventory sets or asks for, and where."""
    keys: dict[str, str] = {}
    for place, path in variable_files(inventory):
        keys.update(dict.fromkeys(yaml.safe_load(path.read_text()) or {}, place))
    for path in inventory.glob("group_vars/*/*.txt"):
        keys.update(dict.fromkeys(TO_BE_SET.findall(path.read_text()), path.name))
    return keys


def role_options() -> set[str]:
    specs = [yaml.safe_load(path.read_text())["argument_specs"] for path in ROOT.glob("roles/*/meta/argument_specs.yml")]
    return {option for spec in specs for entry in spec.values() for option in entry.get("options", {})}


def filled_in(inventory: Path, place: Path) -> Path:
    """Copy an environment and set the secrets that its example asks for, as the example says, encrypted."""
    shutil.copytree(inventory, place, ignore=shutil.ignore_patterns("secrets.yml") if inventory == STAGING else None)
    example = place / "group_vars/all/secrets.example.yml.txt"
    secrets = TO_BE_SET.sub(lambda found: f"{found['name']}: {SECRETS[found['name'].removeprefix('vault_')]}", example.read_text())
    (place / "group_vars/all/secrets.yml").write_text(secrets)
    (place.parent / "vault-password").write_text("a password of this test")
    return place


@pytest.mark.parametrize("inventory", INVENTORIES, ids=lambda path: path.name)
def test_every_key_is_an_option_of_a_role_or_read_by_the_wiring(inventory):
    known = role_options()
    own = "".join(path.read_text() for _place, path in variable_files(inventory))

    unknown = {
        key: place
        for key, place in variables_of(inventory).items()
        if key not in known
        and not ANSIBLE.match(key)
        and not key.startswith("__")
        and not re.search(rf"\b{key}\b", WIRING)
        # One hop from a public name, which the environment itself gives.
        and not (key.startswith("vault_") and re.search(rf"\b{key}\b(?!:)", own))
    }

    assert unknown == {}


@pytest.mark.parametrize("inventory", INVENTORIES, ids=lambda path: path.name)
def test_every_secret_that_is_used_is_defined(inventory):
    own = "".join(path.read_text() for _place, path in variable_files(inventory))

    lacking = {(inventory.name, name) for name in USED_SECRET.findall(WIRING + ROLES + own)} - {
        (inventory.name, name) for name in variables_of(inventory)
    }

    assert lacking == {lack for lack in SECRETS_THAT_MAY_LACK if lack[0] == inventory.name}


@pytest.mark.parametrize("inventory", INVENTORIES, ids=lambda path: path.name)
def test_no_secret_is_written_down(inventory):
    for place, path in variable_files(inventory):
        values = {key: value for key, value in (yaml.safe_load(path.read_text()) or {}).items() if key.startswith("vault_")}

        assert [key for key, value in values.items() if "lookup(" not in value] == [], place


@pytest.mark.parametrize("inventory", INVENTORIES, ids=lambda path: path.name)
def test_every_public_variable_has_a_comment(inventory):
    for place, path in variable_files(inventory):
        lines = path.read_text().splitlines()
        variables = [number for number, line in enumerate(lines) if line[:1].isalpha() and not line.startswith("vault_")]

        assert [lines[number] for number in variables if not lines[number - 1].startswith("#")] == [], place


def test_all_environments_have_the_same_files_of_variables():
    files = {inventory.name: {place for place, _path in variable_files(inventory)} for inventory in INVENTORIES}
    everywhere = set().union(*files.values())
    # A working copy may have the file that is made from the example.
    lacking = {(name, place) for name, found in files.items() for place in everywhere - found} | {(STAGING.name, "all/secrets.yml")}

    assert lacking == set(FILES_THAT_MAY_LACK)


def test_git_ignores_what_is_made_from_the_example():
    made = "inventories/staging/group_vars/all/secrets.yml"

    assert f"/{made}" in (ROOT / ".gitignore").read_text().splitlines()
    assert (ROOT / made).with_name("secrets.example.yml.txt").exists()


def test_production_names_one_region():
    secrets = yaml.safe_load((PROD / "group_vars/all/secrets.yml").read_text())
    plugin = yaml.safe_load((PROD / "aws_ec2.yml").read_text())

    assert (secrets["__lms_region"], plugin["regions"]) == (REGION, [REGION])
    assert REGION not in (PROD / "group_vars/all/lms.yml").read_text().replace(f".{REGION}.rds", "")


@pytest.mark.slow
def test_all_environments_have_the_same_groups(run):
    found = {inventory.name: groups_of(run.inventory(inventory, [] if inventory == PROD else None)) for inventory in INVENTORIES}

    lacking = {(name, group) for name, groups in found.items() for group in GROUPS - groups}

    assert lacking == set(GROUPS_THAT_MAY_LACK)
    # What an environment has besides is of its own.
    assert {group for groups in found.values() for group in groups} - GROUPS == {
        *{"_meta", "all", "ungrouped", "aws_ec2", "containers", "machines"}
    }


@pytest.mark.slow
@needs_ec2_tags
def test_instances_get_groups_and_addresses_by_their_tags(run):
    listing = run.inventory(PROD, [*INSTANCES, *STRANGERS])

    assert addresses_of(listing) == {
        **PLACES,
        "backend": PLACES["backend_blue"] + PLACES["backend_green"],
        "frontend": PLACES["frontend_blue"] + PLACES["frontend_green"],
        "backup": PLACES["monitoring"],
        "cache": [],
        "database": [],
    }
    # Names that no other instance has, although those of one group share the tag Name; and what Ansible needs to get there.
    known = listing["_meta"]["hostvars"]
    assert len(known) == len(INSTANCES) + 1
    assert all(re.fullmatch(r"(loadbalancer|backend|frontend|monitoring)-i-[0-9a-f]{17}", host) for host in set(known) - {"localhost"})
    assert all(known[host]["ansible_host"] == known[host]["lms_address"] for host in set(known) - {"localhost"})
    assert {known[host]["ansible_user"]["__ansible_unsafe"] for host in set(known) - {"localhost"}} == {"admin"}


@pytest.mark.slow
@needs_ec2_tags
def test_an_instance_of_no_colour_is_named_before_anything_is_done(run):
    refused = run("playbook", "-i", PROD, ROOT / "playbooks/check_inventory.yml", instances=[*FEW, MISTAGGED])

    assert refused.returncode == 2
    assert re.search(r"The variable lms_address is not set for backend-i-[0-9a-f]{17}\. Set it", refused.stdout)


@pytest.mark.slow
@needs_ec2_tags
def test_without_its_guard_an_instance_of_no_colour_would_be_passed_over_in_silence(run, tmp_path):
    copy = Path(shutil.copytree(PROD, tmp_path / "prod"))
    plugin = copy / "aws_ec2.yml"
    plugin.write_text(re.sub(r"(lms_address: aws_private_ip_address) if .*", r"\1", plugin.read_text()))

    results = run.play(copy, ROOT / "playbooks/check_inventory.yml", instances=[*FEW, MISTAGGED])

    assert "Check that every host has an address" in results


@pytest.mark.slow
def test_the_static_example_has_the_shape_of_production(run, tmp_path):
    copy = Path(shutil.copytree(PROD, tmp_path / "prod"))
    (copy / "aws_ec2.yml").unlink()
    (copy / "hosts.example.yml.txt").rename(copy / "hosts.yml")

    found = addresses_of(run.inventory(copy))

    assert {group: len(addresses) for group, addresses in found.items()} == {
        **{group: len(addresses) for group, addresses in PLACES.items()},
        "backend": 6,
        "frontend": 6,
        "backup": 1,
        "cache": 0,
        "database": 0,
    }


@pytest.mark.slow
def test_under_another_name_the_static_example_would_be_read(run, tmp_path):
    copy = Path(shutil.copytree(PROD, tmp_path / "prod"))
    (copy / "aws_ec2.yml").unlink()
    before = addresses_of(run.inventory(copy))
    (copy / "hosts.example.yml.txt").rename(copy / "hosts.example.yml")

    after = addresses_of(run.inventory(copy))

    assert (before["loadbalancer"], len(after["loadbalancer"])) == ([], 1)


# Runs of provision.yml that hold the values of an environment against the argument specs of every role, and do nothing else: these checks
# have the tag always. What else they need is given.
GIVEN = f"""
- hosts: all:!localhost
  tasks:
    - name: Give the facts
      ansible.builtin.set_fact:
        distribution: Debian
        distribution_major_version: "13"
        memtotal_mb: 16000
        processor_vcpus: 4
        virtualization_type: kvm
        cacheable: true
      tags: [always]

- hosts: loadbalancer[0]:backend[0]:monitoring[0]
  roles: [{ROOT}/playbooks/roles/wiring]
  tasks:
    - name: Show what follows
      ansible.builtin.debug:
        msg:
          environment: "{{{{ laravel_app_environment if 'backend' in group_names else {{}} }}}}"
          endpoints: "{{{{ __lms_endpoints if 'backend' in group_names else [] }}}}"
          certificates: "{{{{ certificate_list | map(attribute='names') if 'loadbalancer' in group_names else [] }}}}"
          upstreams: "{{{{ load_balancer_upstreams if 'loadbalancer' in group_names else [] }}}}"
          services: "{{{{ firewall_services }}}}"
          probed: "{{{{ __lms_probed_urls if 'monitoring' in group_names else [] }}}}"
          backup: "{{{{ [__lms_backup_host, __lms_backup_server] if 'monitoring' in group_names else [] }}}}"
      tags: [always]
"""
VALIDATED = {
    *{"base", "php", "laravel_app", "nodejs", "nextjs_app", "nginx", "certificate", "load_balancer", "backup"},
    *{"prometheus_exporter", "prometheus", "firewall"},
}


def validate(run: Run, inventory: Path, *arguments: str | Path, instances: list[dict[str, Any]] | None = None) -> tuple[set[str], dict]:
    """Return the roles that accepted the values of an environment, and what follows from these for each host."""
    given = run.home / "given.yml"
    given.write_text(GIVEN)
    results = run.play(inventory, given, ROOT / "playbooks/provision.yml", "--tags", "none", *arguments, instances=instances)
    accepted = {found[1] for name in results if (found := re.match(r"bitflow\.lms\.(\w+) : Validating arguments", name))}
    return accepted, {host: result["msg"] for host, result in results["Show what follows"].items()}


@pytest.mark.slow
def test_a_value_of_the_wrong_kind_is_refused(run, tmp_path):
    copy = filled_in(STAGING, tmp_path / "staging")
    (copy / "group_vars/cache/redis.yml").write_text("redis_memory_share: much\n")
    given = tmp_path / "given.yml"
    given.write_text(GIVEN)

    refused = run("playbook", "-i", copy, given, ROOT / "playbooks/provision.yml", "--tags", "none")

    assert refused.returncode == 2
    assert "redis_memory_share" in refused.stdout


@pytest.mark.slow
def test_staging_is_accepted_by_every_role(run, tmp_path):
    copy = filled_in(STAGING, tmp_path / "staging")
    password = ["--vault-password-file", tmp_path / "vault-password"]
    encrypted = run("vault", "encrypt", copy / "group_vars/all/secrets.yml", *password)
    assert encrypted.returncode == 0, encrypted.stderr

    checked = run.play(copy, ROOT / "playbooks/check_inventory.yml", *password)
    accepted, follows = validate(run, copy, *password)

    assert "Check that every host has an address" in checked
    assert accepted == {*VALIDATED, "postgresql", "redis"}
    backend = follows["api1.staging.example.com"]
    assert {
        key: backend["environment"][key] for key in ("APP_ENV", "APP_URL", "DB_HOST", "REDIS_HOST", "DB_PASSWORD", "REDIS_PASSWORD")
    } == {
        "APP_ENV": "staging",
        "APP_URL": "https://api.staging.example.com",
        "DB_HOST": "192.0.2.30",
        "REDIS_HOST": "192.0.2.30",
        "DB_PASSWORD": SECRETS["database_password"],
        "REDIS_PASSWORD": SECRETS["redis_password"],
    }
    assert follows["mon1.staging.example.com"]["backup"][0] == "data1.staging.example.com"


@pytest.mark.slow
def test_staging_without_its_secrets_is_refused(run, tmp_path):
    copy = Path(shutil.copytree(STAGING, tmp_path / "staging", ignore=shutil.ignore_patterns("secrets.yml")))

    refused = run("playbook", "-i", copy, ROOT / "playbooks/check_inventory.yml")

    assert refused.returncode == 2
    named = re.search(r"The variables (.*?) are not set\.", refused.stdout)
    assert named is not None
    assert sorted(named[1].split(", ")) == ["vault_app_key", "vault_database_password", "vault_redis_password"]


@pytest.mark.slow
@needs_ec2_tags
def test_production_is_accepted_by_every_role(run):
    checked = run.play(PROD, ROOT / "playbooks/check_inventory.yml", instances=FEW)
    accepted, follows = validate(run, PROD, instances=FEW)

    assert "Check that every host has an address" in checked
    # RDS and ElastiCache are nobody's to provision.
    assert accepted == VALIDATED
    backend = next(found for host, found in follows.items() if host.startswith("backend"))
    assert backend["environment"]["APP_KEY"] == SECRETS["app_key"]
    assert backend["endpoints"] == [
        {"name": "the database", "host": "lms.example.us-east-1.rds.amazonaws.com", "port": "5432"},
        {
            "name": "Redis",
            "host": "master.lms.example.use1.cache.amazonaws.com",
            "port": "6379",
            "redis": True,
            "tls": True,
            "password": SECRETS["redis_password"],
        },
    ]
    balancer = next(found for host, found in follows.items() if host.startswith("loadbalancer"))
    assert len(balancer["certificates"][0]) == 16
    servers = {upstream["name"]: sorted(server["address"] for server in upstream["servers"]) for upstream in balancer["upstreams"]}
    assert len(servers) == 30
    assert {name: servers[name] for name in ("api_blue", "api_green", "student_blue", "student_green")} == {
        "api_blue": PLACES["backend_blue"][:1],
        "api_green": PLACES["backend_green"][:1],
        "student_blue": PLACES["frontend_blue"][:1],
        "student_green": PLACES["frontend_green"][:1],
    }
    assert [service["name"] for service in balancer["services"]] == ["ssh", "web", "exporters"]
    monitor = next(found for host, found in follows.items() if host.startswith("monitoring"))
    assert monitor["probed"][:2] == ["https://api.lms.example.com/health", "https://student.lms.example.com/api/health"]
    assert monitor["backup"] == [
        next(host for host in follows if host.startswith("monitoring")),
        {
            "engine": "postgresql",
            "login_host": "lms.example.us-east-1.rds.amazonaws.com",
            "login_port": 5432,
            "login_user": "lms",
            "login_password": SECRETS["database_password"],
            "ssl_mode": "require",
        },
    ]


# Alertmanager would post to the address that an empty secret becomes.
@pytest.mark.slow
@needs_ec2_tags
@pytest.mark.parametrize(("guard", "status"), [(" or undef(__lms_empty)", 2), ("", 0)], ids=["refused", "taken without the guard"])
def test_an_empty_secret(run, tmp_path, guard, status):
    copy, playbook = Path(shutil.copytree(PROD, tmp_path / "prod")), tmp_path / "monitoring.yml"
    secrets = copy / "group_vars/all/secrets.yml"
    secrets.write_text(secrets.read_text().replace(" or undef(__lms_empty)", guard))
    playbook.write_text("- {hosts: monitoring, roles: [bitflow.lms.prometheus]}\n")

    done = run("playbook", "-i", copy, playbook, "--tags", "none", instances=FEW, secrets={**SECRETS, "notify_webhook": ""})

    assert (done.returncode, "A key of the secret lms/prod in Secrets Manager is empty. Set it there." in done.stdout) == (
        status,
        status == 2,
    )


@pytest.mark.slow
@pytest.mark.parametrize("inventory", [PROD, STAGING], ids=lambda path: path.name)
def test_the_journeys_have_a_syntax_that_fits_the_environment(run, inventory):
    journeys = ("provision", "rollback", "switch_traffic", "maintenance", "backup", "verify_backups", "restore")
    playbooks = [ROOT / "deploy.yml", *(ROOT / f"playbooks/{name}.yml" for name in journeys)]

    done = run("playbook", "--syntax-check", "-i", inventory, *playbooks, instances=FEW if inventory == PROD else None)

    assert done.returncode == 0, done.stdout + done.stderr
    # A group that is not there would be passed over; that one is made while a deployment runs.
    assert set(re.findall(r"ignoring: (\w+)", done.stderr)) == {"deploying"}
