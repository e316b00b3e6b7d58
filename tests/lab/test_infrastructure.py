# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook infrastructure as its user runs it, against a moto in a process of its own.

Without LMS_INFRASTRUCTURE=whole only the parts run that need no network, because a whole run takes minutes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.bitflow.lms.tests.lab.moto_process import Moto, moto_process

ROOT = Path(__file__).parents[2]
REGION = "us-east-1"
EXAMPLE = ROOT / "docs/infrastructure-outputs.example.yml"
# What needs no network.
CHEAP = "infrastructure_buckets,infrastructure_registry,infrastructure_secrets,infrastructure_identity"
RECAP = re.compile(r"ok=(\d+) +changed=(\d+) +unreachable=0 +failed=(\d+)")
# Where something waits for what moto does not do at once: nothing here.
whole = pytest.mark.skipif(os.environ.get("LMS_INFRASTRUCTURE") != "whole", reason="LMS_INFRASTRUCTURE=whole runs it: it takes minutes")


@dataclass(frozen=True)
class Run:
    """A run of the playbook."""

    status: int
    output: str

    @property
    def changed(self) -> int:
        """Return how many tasks changed something."""
        found = RECAP.search(self.output)
        assert found, self.output
        return int(found[2])


class Account:
    """An account of AWS, and an operator who has the variables of an environment."""

    def __init__(self, moto: Moto, folder: Path) -> None:
        self.moto = moto
        self.folder = folder
        certificate = moto.client("acm", REGION).request_certificate(DomainName="*.lms.example.com")["CertificateArn"]
        self.variables: dict[str, Any] = {
            "lms_environment": "prod",
            "lms_domain": "lms.example.com",
            "lms_frontends": [{"name": "student", "port": 3001}],
            "lms_aws_region": REGION,
            # One of those that moto has.
            "lms_aws_image": "ami-12c6146b",
            "lms_aws_certificate": certificate,
            # moto has no origin access identities.
            "lms_aws_distribution_enabled": False,
            "lms_aws_outputs_file": str(folder / "outputs.yml"),
        }

    def run(self, *options: str, **variables: Any) -> Run:
        """Run the playbook."""
        ran = subprocess.run(
            [
                *(str(Path(sys.executable).parent / "ansible-playbook"), str(ROOT / "playbooks/infrastructure.yml"), "-i", "localhost,"),
                *("-e", json.dumps({**self.variables, **variables}), *options),
            ],
            env={
                **self.moto.environment(REGION),
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
                "ANSIBLE_LOCAL_TEMP": str(self.folder / "local"),
                "ANSIBLE_NOCOLOR": "1",
                "COLUMNS": "500",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        return Run(ran.returncode, ran.stdout + ran.stderr)

    def client(self, service: str) -> Any:
        """Return a client of a service."""
        return self.moto.client(service, REGION)

    def holds(self) -> dict[str, int]:
        """Count what there is of each kind."""
        ec2 = self.client("ec2")
        return {
            "networks": len(ec2.describe_vpcs(Filters=[{"Name": "tag:ManagedBy", "Values": ["bitflow.lms"]}])["Vpcs"]),
            "buckets": len(self.client("s3").list_buckets()["Buckets"]),
            "repositories": len(self.client("ecr").describe_repositories()["repositories"]),
            "secrets": len(self.client("secretsmanager").list_secrets()["SecretList"]),
            "roles": len(self.client("iam").list_roles()["Roles"]),
            "instances": sum(len(each["Instances"]) for each in ec2.describe_instances()["Reservations"]),
        }


NOTHING = {"networks": 0, "buckets": 0, "repositories": 0, "secrets": 0, "roles": 0, "instances": 0}


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    """Start a moto with what it lacks."""
    with moto_process("ansible_collections.bitflow.lms.tests.lab.moto_infrastructure") as made:
        yield made


@dataclass(frozen=True)
class Story:
    """What an operator did: a plan, a run, and another one, and what there was after the plan."""

    account: Account
    planned: Run
    after_plan: Mapping[str, int]
    made: Run
    again: Run


def tell(moto: Moto, folder: Path, *options: str) -> Story:
    """Let the operator do it."""
    moto.client("sts", REGION)
    account = Account(moto, folder)
    planned = account.run("--check", "--diff", *options)
    after_plan = account.holds()
    return Story(account, planned, after_plan, account.run("--diff", *options), account.run(*options))


@pytest.fixture(scope="module")
def story(moto: Moto, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Return the story of all of it, or of what needs no network."""
    options = () if os.environ.get("LMS_INFRASTRUCTURE") == "whole" else ("--tags", CHEAP)
    return tell(moto, tmp_path_factory.mktemp("infrastructure"), *options)


def test_a_plan_succeeds_in_an_empty_account_and_makes_nothing(story: Story) -> None:
    assert story.planned.status == 0, story.planned.output
    assert story.planned.changed > 0
    assert story.after_plan == NOTHING


def test_a_run_makes_it_and_a_second_one_changes_nothing(story: Story) -> None:
    assert story.made.status == 0, story.made.output
    assert story.made.changed > 0
    assert (story.again.status, story.again.changed) == (0, 0), story.again.output


def test_every_bucket_keeps_versions_encrypts_and_is_shut(story: Story) -> None:
    s3 = story.account.client("s3")

    for bucket in ("lms-prod-backups", "lms-prod-static", "lms-prod-uploads"):
        assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
        assert set(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values()) == {True}
        rules = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
        assert rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
        tags = {tag["Key"]: tag["Value"] for tag in s3.get_bucket_tagging(Bucket=bucket)["TagSet"]}
        assert tags == {"Environment": "prod", "ManagedBy": "bitflow.lms", "Name": bucket, "Role": "bucket"}


def test_who_comes_without_tls_is_refused(story: Story) -> None:
    policy = json.loads(story.account.client("s3").get_bucket_policy(Bucket="lms-prod-uploads")["Policy"])

    assert [statement for statement in policy["Statement"] if statement["Effect"] == "Deny"] == [
        {
            "Sid": "TlsOnly",
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:*",
            "Resource": ["arn:aws:s3:::lms-prod-uploads", "arn:aws:s3:::lms-prod-uploads/*"],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }
    ]


def test_backups_go_after_90_days_and_uploads_stay(story: Story) -> None:
    s3 = story.account.client("s3")
    days = {
        bucket: [
            rule.get("Expiration", {}).get("Days") for rule in s3.get_bucket_lifecycle_configuration(Bucket=f"lms-prod-{bucket}")["Rules"]
        ]
        for bucket in ("backups", "uploads")
    }

    assert days == {"backups": [90], "uploads": [None]}


def test_the_secret_has_what_the_inventory_reads_and_stays_as_it_is(story: Story) -> None:
    client = story.account.client("secretsmanager")
    value = json.loads(client.get_secret_value(SecretId="lms/prod")["SecretString"])

    assert set(value) == {"app_key", "database_password", "redis_password", "backup_restic_password", "notify_webhook"}
    assert len(set(value.values())) == 5
    assert all(secret not in run.output for secret in value.values() if secret for run in (story.made, story.again))


def test_the_hosts_have_roles_of_their_own(story: Story) -> None:
    iam = story.account.client("iam")

    policies = {role["RoleName"]: iam.list_role_policies(RoleName=role["RoleName"])["PolicyNames"] for role in iam.list_roles()["Roles"]}

    assert policies == {f"lms-prod-{role}": ["lms"] for role in ("backend", "frontend", "loadbalancer", "monitoring")}


def test_images_are_scanned_and_never_overwritten(story: Story) -> None:
    found = story.account.client("ecr").describe_repositories()["repositories"]

    assert sorted(
        (each["repositoryName"], each["imageTagMutability"], each["imageScanningConfiguration"]["scanOnPush"]) for each in found
    ) == [
        ("lms-prod/backend", "IMMUTABLE", True),
        ("lms-prod/student", "IMMUTABLE", True),
    ]


# What is refused


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"lms_aws_destroy": "staging"}, "lms_aws_destroy is staging, and this is the environment prod. To destroy it, give its name"),
        ({"lms_aws_destroy": "prod"}, "The database is protected."),
        ({"lms_aws_destroy": "prod", "lms_aws_database_protected": False}, "The load balancer is protected."),
        ({"lms_aws_zones": ["a"]}, "lms_aws_public_subnets has 3 networks, and lms_aws_zones 1."),
        ({"lms_aws_secret": "lms.prod"}, "lms_aws_secret is lms.prod, and may have no dot."),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_before_anything_is_done(variables: dict[str, Any], message: str, story: Story) -> None:
    before = story.account.holds()

    ran = story.account.run(**variables)

    assert ran.status != 0
    assert message in ran.output
    assert story.account.holds() == before


def test_what_is_missing_is_named(moto: Moto, tmp_path: Path) -> None:
    account = Account(moto, tmp_path)
    del account.variables["lms_aws_image"]

    ran = account.run()

    assert ran.status != 0
    assert "lms_aws_image is not set." in ran.output


# Made by others


def contract_holds(moto: Moto, folder: Path, outputs: Any) -> Run:
    """Let the playbook look at what somebody else says to have made."""
    return Account(moto, folder).run(lms_aws_outputs=outputs)


def test_the_example_of_the_page_keeps_the_contract(moto: Moto, tmp_path: Path) -> None:
    ran = contract_holds(moto, tmp_path, yaml.safe_load(EXAMPLE.read_text())["lms_aws_outputs"])

    assert (ran.status, ran.changed) == (0, 0), ran.output
    assert "lms_database_host" in ran.output


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("database",), None, "missing required arguments: database"),
        (("database", "port"), "five", "port"),
        (("load_balancer", "target_groups"), [], "no target group of backend blue"),
        (("unknown",), 1, "unknown"),
    ],
    ids=str,
)
def test_outputs_that_break_the_contract_are_refused(where: tuple[str, ...], value: Any, message: str, moto: Moto, tmp_path: Path) -> None:
    outputs = yaml.safe_load(EXAMPLE.read_text())["lms_aws_outputs"]
    place = outputs
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    if value is None:
        del place[where[-1]]

    ran = contract_holds(moto, tmp_path, outputs)

    assert ran.status != 0
    assert message in ran.output


# All of it


@whole
def test_a_plan_of_what_is_there_changes_nothing(story: Story) -> None:
    ran = story.account.run("--check", "--diff")

    assert (ran.status, ran.changed) == (0, 0), ran.output


@whole
def test_the_instances_carry_the_tags_that_the_inventory_reads(story: Story) -> None:
    reservations = story.account.client("ec2").describe_instances()["Reservations"]
    tags = [{tag["Key"]: tag["Value"] for tag in each["Tags"]} for reservation in reservations for each in reservation["Instances"]]

    counts: dict[tuple[str, str], int] = {}
    for each in tags:
        assert (each["Environment"], each["ManagedBy"]) == ("prod", "bitflow.lms")
        key = (each["Role"], each.get("Colour", ""))
        counts[key] = counts.get(key, 0) + 1
    assert counts == {
        **{(role, colour): 3 for role in ("backend", "frontend") for colour in ("blue", "green")},
        ("loadbalancer", ""): 1,
        ("monitoring", ""): 1,
    }


@whole
def test_the_database_is_what_was_asked_for(story: Story) -> None:
    found = {each["DBInstanceIdentifier"]: each for each in story.account.client("rds").describe_db_instances()["DBInstances"]}

    primary = found["lms-prod"]
    keys = ("Engine", "MultiAZ", "StorageEncrypted", "BackupRetentionPeriod", "PerformanceInsightsEnabled", "DeletionProtection")
    assert [primary[key] for key in keys] == ["postgres", True, True, 30, True, True]
    assert primary["EngineVersion"].startswith("16")
    assert primary["ReadReplicaDBInstanceIdentifiers"] == ["lms-prod-replica-1", "lms-prod-replica-2"]


@whole
def test_the_cache_has_three_shards_with_two_replicas_each(story: Story) -> None:
    group = story.account.client("elasticache").describe_replication_groups(ReplicationGroupId="lms-prod")["ReplicationGroups"][0]

    assert [len(shard["NodeGroupMembers"]) for shard in group["NodeGroups"]] == [3, 3, 3]
    assert (group["ClusterEnabled"], group["TransitEncryptionEnabled"], group["AtRestEncryptionEnabled"]) == (True, True, True)


@whole
def test_another_run_leaves_the_traffic_where_it_is(story: Story) -> None:
    elb = story.account.client("elbv2")
    arn = elb.describe_load_balancers(Names=["lms-prod"])["LoadBalancers"][0]["LoadBalancerArn"]
    https = next(each for each in elb.describe_listeners(LoadBalancerArn=arn)["Listeners"] if each["Port"] == 443)
    rule = next(each for each in elb.describe_rules(ListenerArn=https["ListenerArn"])["Rules"] if each["Priority"] == "10")
    moved = rule["Actions"][0]
    for group in moved["ForwardConfig"]["TargetGroups"]:
        group["Weight"] = 100 - group["Weight"]
    moved.pop("TargetGroupArn", None)
    elb.modify_rule(RuleArn=rule["RuleArn"], Actions=[moved])

    ran = story.account.run()

    assert (ran.status, ran.changed) == (0, 0), ran.output
    groups = elb.describe_rules(RuleArns=[rule["RuleArn"]])["Rules"][0]["Actions"][0]["ForwardConfig"]["TargetGroups"]
    assert {group["TargetGroupArn"].split("/")[1]: group["Weight"] for group in groups} == {
        "lms-prod-8000-blue": 0,
        "lms-prod-8000-green": 100,
    }


@whole
def test_what_it_tells_keeps_the_contract(story: Story, moto: Moto, tmp_path: Path) -> None:
    told = yaml.safe_load((story.account.folder / "outputs.yml").read_text())["lms_aws_outputs"]

    ran = contract_holds(moto, tmp_path, told)

    assert (ran.status, ran.changed) == (0, 0), ran.output


@whole
def test_in_the_end_only_what_cannot_be_made_again_is_left(story: Story) -> None:
    unprotected = {"lms_aws_database_protected": False, "lms_aws_deletion_protected": False}
    released = story.account.run(**unprotected)

    ran = story.account.run(**unprotected, lms_aws_destroy="prod")

    assert (released.status, ran.status) == (0, 0), ran.output
    left = story.account.holds()
    assert (left["networks"], left["roles"], left["buckets"], left["repositories"], left["secrets"]) == (0, 0, 3, 2, 1)
    assert story.account.client("rds").describe_db_instances()["DBInstances"] == []
    snapshots = story.account.client("rds").describe_db_snapshots()["DBSnapshots"]
    assert [each["DBInstanceIdentifier"] for each in snapshots if each["DBSnapshotIdentifier"].startswith("lms-prod-final-")] == [
        "lms-prod"
    ]
