"""What the roles of the stores would do on each platform. Ubuntu is not run in any test: its names and files are looked at here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import filter_loader
from ansible.template import Templar, trust_as_template

ROLES = Path(__file__).parents[2] / "roles"
# Without a playbook, Ansible does not look into collections: their filters go by their short names here.
filter_loader.add_directory(str(ROLES.parent / "plugins/filter"))
PLATFORMS = {"bookworm": ("Debian", "12"), "trixie": ("Debian", "13"), "jammy": ("Ubuntu", "22"), "noble": ("Ubuntu", "24")}
GIVEN = {
    "redis_password": "test",
    "redis_users": [{"name": "reader", "password": "test", "commands": ["+get"], "channels_allowed": ["*"]}],
    "ansible_managed": "Ansible managed",
}


class Role:
    """The variables of a role, as a host of the platform would see them."""

    def __init__(self, name: str, platform: str, **given: object) -> None:
        self.path = ROLES / name
        distribution, version = PLATFORMS[platform]
        self.loader = DataLoader()
        self.loader.set_basedir(str(self.path))
        defaults, constants = (self.loader.load(self.read(f"{part}/main.yml")) for part in ("defaults", "vars"))
        facts = {"distribution": distribution, "distribution_major_version": version, "memtotal_mb": 4000}
        self.variables = {**defaults, **constants, **GIVEN, **given, "ansible_facts": facts, "role_path": str(self.path)}

    def read(self, name: str) -> str:
        """Return a file of the role, as Ansible may evaluate it."""
        return trust_as_template((self.path / name).read_text().replace("bitflow.lms.", ""))

    def value(self, expression: str) -> object:
        """Return what the expression is on the host."""
        return Templar(loader=self.loader, variables=self.variables).template(trust_as_template(f"{{{{ {expression} }}}}"))

    def file(self, template: str, **given: object) -> str:
        """Return what a template renders to."""
        return str(Templar(loader=self.loader, variables={**self.variables, **given}).template(self.read(f"templates/{template}")))


@pytest.mark.parametrize(("platform", "version"), [("bookworm", "15"), ("trixie", "17"), ("jammy", "14"), ("noble", "16")])
def test_postgresql_has_the_version_of_the_distribution(platform, version):
    role = Role("postgresql", platform, postgresql_pgbouncer_enabled=True)

    assert role.value("__postgresql_packages") == [f"postgresql-{version}", "python3-psycopg2", "acl", "sudo", "pgbouncer"]
    assert role.value("__postgresql_service") == f"postgresql@{version}-main"
    assert role.value("__postgresql_etc") == f"/etc/postgresql/{version}/main"


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_settings_of_postgresql_are_lines_of_a_name_and_a_quoted_value(platform):
    lines = [line for line in Role("postgresql", platform).file("lms.conf.j2").splitlines() if line and not line.startswith("#")]

    assert [line for line in lines if not re.fullmatch(r"[a-z_]+ = '[^']*'", line)] == []
    assert "shared_buffers = '1000MB'" in lines


def test_pgbouncer_comes_in_for_the_pooled_databases_and_users_alone():
    users = [{"name": "lms", "password": "test"}, {"name": "all", "password": "test"}, {"name": "peer"}]
    databases = [{"name": "lms", "owner": "lms"}, {"name": "reports", "owner": "lms"}]
    role = Role("postgresql", "trixie", postgresql_pgbouncer_enabled=True, postgresql_users=users, postgresql_databases=databases)

    assert 'host "lms","reports" "lms","all" 127.0.0.1/32 scram-sha-256' in role.file("pg_hba.conf.j2").splitlines()


@pytest.mark.parametrize("platform", PLATFORMS)
def test_redis_has_the_packages_and_units_of_the_distribution(platform):
    role = Role("redis", platform, redis_sentinels=[{}])

    assert role.value("__redis_packages") == ["redis-server", "redis-tools", "redis-sentinel"]
    assert role.value("__redis_services | map(attribute='unit') | list") == ["redis-server", "redis-sentinel"]


@pytest.mark.parametrize(("platform", "there"), [("bookworm", False), ("trixie", True), ("jammy", False), ("noble", True)])
def test_valkey_is_refused_where_the_distribution_lacks_it(platform, there):
    refusals = Role("redis", platform, redis_flavour="valkey").value("__redis_refusals | select | list")

    assert refusals == ([] if there else ["redis_flavour valkey is not in this distribution. It has: redis."])


@pytest.mark.parametrize(("platform", "channels"), [("bookworm", " &*"), ("trixie", " &*"), ("jammy", ""), ("noble", " &*")])
def test_users_of_an_old_redis_have_no_channels(platform, channels):
    users = Role("redis", platform).file("users.acl.j2").splitlines()

    assert [re.sub("#[0-9a-f]{64}", "#", line) for line in users] == [
        f"user default on # ~*{channels} +@all",
        f"user reader on # -@all +get{channels}",
    ]


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        ({"redis_password": "two\nlines"}, "redis_password may not be empty or hold a line break."),
        (
            {"redis_password": 'a "b"', "redis_sentinels": [{}], "redis_sentinel_primary": {"name": "lms", "address": "192.0.2.1"}},
            "redis_password may hold no white space, quotes or backslashes where redis_sentinels are used.",
        ),
        ({"redis_tls": {"key": "/etc/ssl/key.pem"}}, "redis_tls needs certificate, key and authority."),
        ({"redis_sentinels": [{}]}, "redis_sentinels need redis_sentinel_primary: what they watch."),
        (
            {"redis_cluster_nodes": [{"address": "192.0.2.1", "port": 1}] * 5},
            "redis_cluster_nodes has 5 nodes. With redis_cluster_replicas 1 it needs 6 or more: three shards.",
        ),
        (
            {"redis_cluster_nodes": [{"address": "192.0.2.1", "port": 1}] * 6, "redis_replica_of": {"address": "192.0.2.1"}},
            "redis_cluster_nodes and redis_replica_of exclude each other: a cluster gives each node its primary.",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(given, refusal):
    assert Role("redis", "trixie", **given).value("__redis_refusals | select | list") == [refusal]
