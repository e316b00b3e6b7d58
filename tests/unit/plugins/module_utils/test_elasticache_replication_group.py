# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replication groups of ElastiCache that are made, changed, deleted and waited for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api, AwsError
from ansible_collections.bitflow.lms.plugins.module_utils._elasticache_replication_group import is_same, run, settings_of
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock
from ansible_collections.bitflow.lms.tests.lab.elasticache_model import ElastiCache, elasticache
from ansible_collections.bitflow.lms.tests.lab.elb_model import FakeClock, World, aws, refusal
from moto.core.models import DEFAULT_ACCOUNT_ID as ACCOUNT
from moto.elasticache.models import elasticache_backends

REGION = "eu-central-1"
DEFAULTS: Mapping[str, Any] = {
    **dict.fromkeys(
        (
            *("engine_version", "parameter_group", "subnet_group", "security_groups", "kms_key", "auth_token", "snapshot_window"),
            *("maintenance_window", "tags", "final_snapshot"),
        )
    ),
    "name": "lms",
    "state": "present",
    "description": "Managed by Ansible",
    "engine": "redis",
    "node_type": "cache.t4g.micro",
    "cluster_mode": "enabled",
    "shards": 3,
    "replicas": 2,
    "port": 6379,
    "automatic_failover": True,
    "multi_az": True,
    "at_rest_encryption": True,
    "transit_encryption": True,
    "snapshot_retention": 1,
    "auto_minor_version_upgrade": True,
    "purge_tags": True,
    "apply_immediately": False,
    "final_snapshot_skipped": False,
    "wait": True,
    "timeout": 2400,
    "interval": 15,
}
ARN = f"arn:aws:elasticache:{REGION}:{ACCOUNT}:replicationgroup:lms"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Put AWS into this process, once for all tests."""
    with aws() as made:
        yield made


@pytest.fixture
def clock() -> FakeClock:
    """Return a time that passes only where somebody sleeps."""
    return FakeClock()


@pytest.fixture
def cache(world: World, clock: FakeClock) -> Iterator[ElastiCache]:
    """Return an ElastiCache without a group."""
    del world
    elasticache_backends[ACCOUNT][REGION].reset()
    with elasticache(clock.now) as made:
        yield made


def work(cache: ElastiCache, clock: FakeClock, check_mode: bool = False, **options: Any) -> dict[str, Any]:
    """Run the module's work."""
    cache.client.calls.clear()
    api = Api(cache.client, "elasticache", sleep=lambda _seconds: None)
    return run(api, {**DEFAULTS, **options}, check_mode, Clock(clock.now, clock.sleep))


def changes(cache: ElastiCache) -> list[tuple[str, dict[str, Any]]]:
    """Return the calls that changed something."""
    return [call for call in cache.client.changes() if not call[0].startswith("list_")]


# Made


def test_the_result_is_whole(cache: ElastiCache, clock: FakeClock) -> None:
    result = work(cache, clock, tags={"Environment": "prod"})

    address = result["endpoint"].pop("address")
    assert address.startswith("clustercfg.lms.")
    assert result == {
        "changed": True,
        "name": "lms",
        "arn": ARN,
        "status": "available",
        "endpoint": {"port": 6379},
        "nodes": [f"lms-000{shard}-00{node}" for shard in (1, 2, 3) for node in (1, 2, 3)],
        "actions": ["make lms"],
        "diff": {
            "before": {},
            "after": {
                "description": "Managed by Ansible",
                "engine": "redis",
                "node_type": "cache.t4g.micro",
                "cluster_mode": "enabled",
                "shards": 3,
                "replicas": 2,
                "port": 6379,
                "automatic_failover": True,
                "multi_az": True,
                "at_rest_encryption": True,
                "transit_encryption": True,
                "snapshot_retention": 1,
                "auto_minor_version_upgrade": True,
                "tags": {"Environment": "prod"},
            },
        },
    }
    assert clock.time >= cache.busy


def test_check_mode_tells_the_same_plan_and_makes_nothing(cache: ElastiCache, clock: FakeClock) -> None:
    planned = work(cache, clock, check_mode=True)
    asked = changes(cache)
    done = work(cache, clock)

    assert (planned["status"], planned["endpoint"], planned["nodes"], asked, clock.time >= cache.busy) == (
        *("absent", {"address": "", "port": 0}, [], []),
        True,
    )
    assert (planned["diff"], planned["actions"], set(planned)) == (done["diff"], done["actions"], set(done))


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"engine": "valkey"}, {"Engine": "valkey"}),
        ({"engine_version": "7.0"}, {"EngineVersion": "7.0"}),
        ({"node_type": "cache.r6g.large"}, {"CacheNodeType": "cache.r6g.large"}),
        ({"description": "Sessions"}, {"ReplicationGroupDescription": "Sessions"}),
        ({"parameter_group": "lms"}, {"CacheParameterGroupName": "lms"}),
        ({"cluster_mode": "disabled", "shards": 1}, {"ClusterMode": "disabled", "NumNodeGroups": 1}),
        ({"replicas": 4}, {"ReplicasPerNodeGroup": 4}),
        ({"port": 6380}, {"Port": 6380}),
        ({"subnet_group": "lms"}, {"CacheSubnetGroupName": "lms"}),
        ({"security_groups": ["sg-2", "sg-1"]}, {"SecurityGroupIds": ["sg-1", "sg-2"]}),
        ({"multi_az": False}, {"MultiAZEnabled": False}),
        ({"at_rest_encryption": False}, {"AtRestEncryptionEnabled": False}),
        ({"kms_key": "key"}, {"KmsKeyId": "key"}),
        ({"transit_encryption": False}, {"TransitEncryptionEnabled": False}),
        ({"auth_token": "0123456789abcdef"}, {"AuthToken": "0123456789abcdef"}),
        ({"snapshot_retention": 7}, {"SnapshotRetentionLimit": 7}),
        ({"snapshot_window": "03:00-04:00"}, {"SnapshotWindow": "03:00-04:00"}),
        ({"maintenance_window": "sun:05:00-sun:06:00"}, {"PreferredMaintenanceWindow": "sun:05:00-sun:06:00"}),
        ({"auto_minor_version_upgrade": False}, {"AutoMinorVersionUpgrade": False}),
        ({"tags": {"Role": "cache", "Number": 1}}, {"Tags": [{"Key": "Number", "Value": "1"}, {"Key": "Role", "Value": "cache"}]}),
    ],
    ids=str,
)
def test_every_option_reaches_aws_and_is_found_again(
    options: dict[str, Any], sent: dict[str, Any], cache: ElastiCache, clock: FakeClock
) -> None:
    work(cache, clock, **options)
    made = changes(cache)
    again = work(cache, clock, **options)

    assert [operation for operation, _parameters in made] == ["create_replication_group"]
    assert {key: made[0][1].get(key) for key in sent} == sent
    assert (again["changed"], again["actions"], changes(cache)) == (False, [], [])


def test_the_password_is_in_no_result(cache: ElastiCache, clock: FakeClock) -> None:
    assert "0123456789abcdef" not in str(work(cache, clock, auth_token="0123456789abcdef"))


# Changed


@pytest.mark.parametrize(
    ("options", "operation", "sent", "words"),
    [
        (
            {"description": "Sessions", "snapshot_retention": 7},
            "modify_replication_group",
            {"ReplicationGroupDescription": "Sessions", "SnapshotRetentionLimit": 7, "ApplyImmediately": False},
            "change description, snapshot_retention",
        ),
        (
            {"node_type": "cache.r6g.large", "apply_immediately": True},
            "modify_replication_group",
            {"CacheNodeType": "cache.r6g.large", "ApplyImmediately": True},
            "change node_type",
        ),
        # What waits for the maintenance window is not asked for twice.
        (
            {"node_type": "cache.r6g.large"},
            "modify_replication_group",
            {"CacheNodeType": "cache.r6g.large", "ApplyImmediately": False},
            "change node_type",
        ),
        (
            {"multi_az": False},
            "modify_replication_group",
            {"MultiAZEnabled": False, "ApplyImmediately": False},
            "change multi_az",
        ),
        (
            {"security_groups": ["sg-1"]},
            "modify_replication_group",
            {"SecurityGroupIds": ["sg-1"], "ApplyImmediately": False},
            "change security_groups",
        ),
        (
            {"shards": 4},
            "modify_replication_group_shard_configuration",
            {"NodeGroupCount": 4, "ApplyImmediately": True},
            "go from 3 to 4 shards",
        ),
        (
            {"shards": 1},
            "modify_replication_group_shard_configuration",
            {"NodeGroupCount": 1, "ApplyImmediately": True, "NodeGroupsToRemove": ["0002", "0003"]},
            "go from 3 to 1 shards",
        ),
        ({"replicas": 3}, "increase_replica_count", {"NewReplicaCount": 3, "ApplyImmediately": True}, "go from 2 to 3 replicas"),
        ({"replicas": 1}, "decrease_replica_count", {"NewReplicaCount": 1, "ApplyImmediately": True}, "go from 2 to 1 replicas"),
    ],
    ids=str,
)
def test_a_group_is_changed_once(
    options: dict[str, Any], operation: str, sent: dict[str, Any], words: str, cache: ElastiCache, clock: FakeClock
) -> None:
    work(cache, clock, security_groups=["sg-2"])

    planned = work(cache, clock, check_mode=True, **options)
    asked = changes(cache)
    done = work(cache, clock, **options)
    made = changes(cache)
    again = work(cache, clock, **options)

    assert (asked, made) == ([], [(operation, {"ReplicationGroupId": "lms", **sent})])
    assert (planned["actions"], done["actions"], planned["diff"]) == ([words], [words], done["diff"])
    assert (done["status"], again["changed"], changes(cache)) == ("available", False, [])


def test_tags_are_set_and_removed(cache: ElastiCache, clock: FakeClock) -> None:
    work(cache, clock, tags={"Environment": "prod", "Old": "x"})

    kept = work(cache, clock, tags={"Environment": "staging"}, purge_tags=False)
    result = work(cache, clock, tags={"Environment": "staging"})

    assert kept["diff"]["after"]["tags"] == {"Environment": "staging", "Old": "x"}
    assert result["actions"] == ["remove the tags Old"]
    assert changes(cache) == [("remove_tags_from_resource", {"ResourceName": ARN, "TagKeys": ["Old"]})]
    assert work(cache, clock, tags={"Environment": "staging"})["changed"] is False
    assert work(cache, clock)["changed"] is False


def test_several_changes_wait_for_each_other_even_without_wait(cache: ElastiCache, clock: FakeClock) -> None:
    work(cache, clock)

    result = work(cache, clock, description="Sessions", shards=2, replicas=1, wait=False)

    assert [operation for operation, _parameters in changes(cache)] == [
        *("modify_replication_group", "modify_replication_group_shard_configuration", "decrease_replica_count")
    ]
    assert result["status"] == "modifying"


def test_without_the_wait_between_them_aws_refuses_the_second_change(
    cache: ElastiCache, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(cache, clock)
    monkeypatch.setattr(
        "ansible_collections.bitflow.lms.plugins.module_utils._elasticache_replication_group.Worker.settle", lambda _self, _wanted: None
    )

    with pytest.raises(AwsError) as caught:
        work(cache, clock, description="Sessions", shards=2)

    assert caught.value.code == "InvalidReplicationGroupState"


def test_a_busy_group_is_waited_for_before_it_is_changed(cache: ElastiCache, clock: FakeClock) -> None:
    work(cache, clock, tags={"Environment": "prod"}, wait=False)

    result = work(cache, clock, tags={"Environment": "staging"})

    assert (result["status"], result["actions"]) == ("available", ["set the tags Environment"])


def test_a_busy_group_is_only_looked_at_without_wait_and_without_a_change(cache: ElastiCache, clock: FakeClock) -> None:
    work(cache, clock, wait=False)

    result = work(cache, clock, wait=False)

    assert (result["changed"], result["status"], clock.time) == (False, "creating", 0)


@pytest.mark.parametrize(
    ("option", "value", "found"),
    [
        ("port", 6380, "6379"),
        ("subnet_group", "lms", "default"),
        ("at_rest_encryption", False, "True"),
        ("transit_encryption", False, "True"),
        ("kms_key", "b", "arn:aws:kms:eu-central-1:123456789012:key/a"),
    ],
)
def test_what_aws_cannot_change_is_refused(option: str, value: Any, found: str, cache: ElastiCache, clock: FakeClock) -> None:
    work(cache, clock, kms_key="arn:aws:kms:eu-central-1:123456789012:key/a")

    with pytest.raises(LmsError) as caught:
        work(cache, clock, **{option: value})

    assert caught.value.message == (
        f"lms has another {option} than was asked for, and AWS cannot change that in a group that is there. "
        f"Give {option}: {found}, or make another group."
    )
    assert changes(cache) == []


def test_a_group_out_of_cluster_mode_stays_so(cache: ElastiCache, clock: FakeClock) -> None:
    work(cache, clock, cluster_mode="disabled", shards=1)

    with pytest.raises(LmsError) as caught:
        work(cache, clock)

    assert caught.value.message.startswith("lms has another cluster_mode than was asked for")


def test_a_group_without_a_password_is_told(cache: ElastiCache, clock: FakeClock) -> None:
    work(cache, clock)

    with pytest.raises(LmsError) as caught:
        work(cache, clock, auth_token="0123456789abcdef")

    assert caught.value.message.startswith("lms asks nobody for a password, and auth_token was given.")


# Waited for


def test_the_wait_ends(cache: ElastiCache, clock: FakeClock) -> None:
    with pytest.raises(LmsError) as caught:
        work(cache, clock, timeout=30)

    assert caught.value.message == (
        "lms is creating after 30 s, and should be available. AWS goes on: run this again later, or give a longer timeout."
    )


def test_a_group_that_aws_could_not_make_is_told_at_once(cache: ElastiCache, clock: FakeClock) -> None:
    cache.fails = True

    with pytest.raises(LmsError) as caught:
        work(cache, clock)

    assert caught.value.message.startswith("AWS could not make lms.")
    assert clock.time < cache.busy + 30


def test_what_aws_refuses_is_told_with_the_group(cache: ElastiCache, clock: FakeClock) -> None:
    cache.client.fault = lambda method, _number: refusal("AccessDenied", 403) if method == "create_replication_group" else None

    with pytest.raises(LmsError) as caught:
        work(cache, clock)

    assert caught.value.message == (
        "lms cannot be changed (make lms): AWS does not allow it. Allow elasticache:CreateReplicationGroup to the identity of this task."
    )


@pytest.mark.parametrize("method", ["describe_replication_groups", "describe_cache_clusters"])
def test_who_may_not_look_is_not_told_that_there_is_nothing(method: str, cache: ElastiCache, clock: FakeClock) -> None:
    work(cache, clock)
    cache.client.fault = lambda asked, _number: refusal("AccessDenied", 403) if asked == method else None

    with pytest.raises(LmsError) as caught:
        work(cache, clock)

    assert "AWS does not allow it." in caught.value.message


def test_a_group_whose_nodes_are_not_there_yet_is_compared_by_what_is_known(cache: ElastiCache, clock: FakeClock) -> None:
    work(cache, clock, engine_version="7.0")
    cache.client.fault = lambda asked, _number: refusal("CacheClusterNotFound", 404) if asked == "describe_cache_clusters" else None

    assert work(cache, clock, engine_version="7.1")["changed"] is False


# Deleted


def test_a_group_is_deleted_with_a_snapshot(cache: ElastiCache, clock: FakeClock) -> None:
    work(cache, clock)

    planned = work(cache, clock, check_mode=True, state="absent", final_snapshot="lms-final")
    asked = changes(cache)
    done = work(cache, clock, state="absent", final_snapshot="lms-final")
    made = changes(cache)
    again = work(cache, clock, state="absent", final_snapshot="lms-final")

    assert (asked, made) == ([], [("delete_replication_group", {"ReplicationGroupId": "lms", "FinalSnapshotIdentifier": "lms-final"})])
    assert (planned["actions"], done["actions"]) == (["delete lms, with the snapshot lms-final"],) * 2
    assert (planned["diff"]["after"], done["status"], again["changed"], cache.snapshots) == ({}, "absent", False, ["lms-final"])


def test_a_group_is_not_deleted_without_a_word_about_its_data(cache: ElastiCache, clock: FakeClock) -> None:
    work(cache, clock)

    with pytest.raises(LmsError) as caught:
        work(cache, clock, state="absent")

    assert caught.value.message == "lms would be deleted with its data. Name a final_snapshot, or set final_snapshot_skipped."
    assert cache.client.calls == []


def test_with_the_word_it_is_gone_and_there_is_no_snapshot(cache: ElastiCache, clock: FakeClock) -> None:
    work(cache, clock)

    result = work(cache, clock, state="absent", final_snapshot_skipped=True)

    assert (result["status"], cache.snapshots) == ("absent", [])


def test_a_group_that_leaves_is_waited_for_and_not_made_again(cache: ElastiCache, clock: FakeClock) -> None:
    work(cache, clock)
    work(cache, clock, state="absent", final_snapshot="lms-final", wait=False)

    with pytest.raises(LmsError) as caught:
        work(cache, clock)
    result = work(cache, clock, state="absent", final_snapshot="lms-final")

    assert caught.value.message == "lms is on its way out. Wait until it is gone, and run this again."
    assert (result["changed"], result["status"]) == (False, "absent")


# Refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "LMS"}, "name is LMS. Give 1 to 40 lower-case letters"),
        ({"name": "lms-"}, "name is lms-."),
        ({"name": "l--s"}, "name is l--s."),
        ({"name": "l" * 41}, f"name is {'l' * 41}."),
        ({"shards": 0}, "shards is 0. Give 1 to 500."),
        ({"replicas": 6}, "replicas is 6. Give 0 to 5."),
        ({"snapshot_retention": 36}, "snapshot_retention is 36. Give 0 to 35."),
        ({"cluster_mode": "disabled"}, "shards is 3, and cluster_mode is disabled."),
        ({"replicas": 0}, "multi_az needs a replica in another zone, and replicas is 0."),
        ({"automatic_failover": False}, "multi_az needs automatic_failover."),
        ({"automatic_failover": False, "multi_az": False}, "A group in cluster mode needs automatic_failover."),
        ({"auth_token": "0123456789abcdef", "transit_encryption": False}, "auth_token needs transit_encryption."),
        ({"auth_token": "short"}, "auth_token has to be 16 to 128 characters"),
        ({"auth_token": "0123456789/abcdef"}, "auth_token has to be 16 to 128 characters"),
        ({"interval": 1}, "interval is 1. Give 2 at least."),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused_before_anything_is_asked(
    options: dict[str, Any], message: str, cache: ElastiCache, clock: FakeClock
) -> None:
    with pytest.raises(LmsError) as caught:
        work(cache, clock, **options)

    assert (caught.value.message.startswith(message), cache.client.calls) == (True, [])


# Compared


@pytest.mark.parametrize(
    ("option", "wanted", "found", "same"),
    [
        ("engine_version", "7.0", "7.0.7", True),
        ("engine_version", "7", "7.0.7", True),
        ("engine_version", "7.1", "7.10.1", False),
        ("snapshot_window", "03:00-04:00", "03:00-04:00", True),
        ("maintenance_window", "Sun:05:00-Sun:06:00", "sun:05:00-sun:06:00", True),
        ("kms_key", "abc", "arn:aws:kms:eu-central-1:123456789012:key/abc", True),
        ("kms_key", "bc", "arn:aws:kms:eu-central-1:123456789012:key/abc", False),
        ("port", 6379, None, True),
        ("port", 6379, 6380, False),
    ],
)
def test_what_counts_as_the_same(option: str, wanted: Any, found: Any, same: bool) -> None:
    assert is_same(option, wanted, found) is same


def test_a_group_that_aws_tells_little_of_is_read() -> None:
    found = settings_of({"ReplicationGroupId": "lms", "Status": "creating", "ClusterEnabled": True}, {}, {})

    assert {option: value for option, value in found.items() if value is not None} == {"cluster_mode": "enabled", "tags": {}}
