# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replication groups of ElastiCache in this process: moto, with groups that take their time, have nodes, and change.

A group that was made or changed is busy for a while by the clock that was handed in, and refuses changes meanwhile, as AWS does. Shards and
replicas can be changed at once only. What a test wants otherwise it sets on the group.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import boto3
from ansible_collections.bitflow.lms.tests.lab.elb_model import REGION, FakeClock, Recorder
from moto.core.exceptions import ServiceException
from moto.core.responses import ActionResult
from moto.elasticache.exceptions import ReplicationGroupNotFound
from moto.elasticache.models import ElastiCacheBackend, ReplicationGroup
from moto.elasticache.responses import ElastiCacheResponse

CREATING, MODIFYING, DELETING = "creating", "modifying", "deleting"
# What one call changes, as the nodes tell it.
OF_NODES = {
    "EngineVersion": "engine_version",
    "CacheParameterGroupName": "cache_parameter_group_name",
    "PreferredMaintenanceWindow": "preferred_maintenance_window",
}
# What waits for the maintenance window unless it is asked for at once.
LATER = {"EngineVersion", "CacheNodeType"}


class BusyError(ServiceException):
    """What AWS answers for a group that is not available."""

    code = "InvalidReplicationGroupState"


class RefusedError(ServiceException):
    """What AWS refuses."""

    code = "InvalidParameterValue"


@dataclass
class Life:
    """What moto does not keep of a group."""

    status: str = CREATING
    due: float = 0
    # What waits for the maintenance window.
    pending: dict[str, str] = field(default_factory=dict)


class ElastiCache:
    """ElastiCache with the groups that a test makes."""

    def __init__(self, now: Callable[[], float], busy: float) -> None:
        self.now = now
        # For how long a group is busy with a change (seconds).
        self.busy = busy
        self.lives: dict[str, Life] = {}
        # The snapshots that were made of groups that are gone.
        self.snapshots: list[str] = []
        # Whether what is asked for comes to nothing.
        self.fails = False
        self.client = Recorder(_client())

    def group(self, backend: Any, name: str) -> ReplicationGroup:
        """Return a group as it is now."""
        found: ReplicationGroup | None = backend.replication_groups.get(name)
        if found is None:
            raise ReplicationGroupNotFound(name)
        life = self.lives[name]
        if self.now() >= life.due:
            if life.status == DELETING:
                del backend.replication_groups[name], self.lives[name]
                backend.tagging_service.delete_all_tags_for_resource(found.arn)
                raise ReplicationGroupNotFound(name)
            life.status = "create-failed" if self.fails else "available"
        found.status = life.status
        return found

    def begin(self, name: str, status: str) -> None:
        """Let a group be busy for a while."""
        self.lives[name].status, self.lives[name].due = status, self.now() + self.busy

    def ready(self, backend: Any, name: str) -> ReplicationGroup:
        """Return a group that takes a change."""
        found = self.group(backend, name)
        if found.status != "available":
            raise BusyError(f"Replication group {name} is {found.status}")
        return found


def shape(group: ReplicationGroup, shards: int, replicas: int) -> None:
    """Give a group so many shards with so many replicas."""
    group.node_groups, group.member_clusters = [], []
    for number in range(1, shards + 1):
        shard: dict[str, Any] = {"node_group_id": f"{number:04}", "status": "available", "node_group_members": []}
        group._set_node_members_clusters_enabled(group.member_clusters, group.replication_group_id, replicas, [], shard, [])
        group.node_groups.append(shard)


def _at_once(response: Any) -> None:
    """Refuse a change that is to wait."""
    if not response._get_bool_param("ApplyImmediately"):
        raise RefusedError("ApplyImmediately must be true")


@contextlib.contextmanager
def elasticache(now: Callable[[], float], busy: float = 60) -> Iterator[ElastiCache]:
    """Give moto's ElastiCache what it lacks. AWS has to be in this process already."""
    made = ElastiCache(now, busy)
    create_in_moto = ElastiCacheBackend.create_replication_group

    def create(backend: Any, **given: Any) -> ReplicationGroup:
        group = create_in_moto(backend, **given)
        name = group.replication_group_id
        made.lives[name] = Life()
        made.begin(name, CREATING)
        return made.group(backend, name)

    def describe(backend: Any, replication_group_id: str | None = None) -> list[ReplicationGroup]:
        names = [replication_group_id] if replication_group_id else [*backend.replication_groups]
        return [made.group(backend, name) for name in names]

    def change(response: Any) -> ActionResult:
        name = response._get_param("ReplicationGroupId")
        group = made.ready(response.elasticache_backend, name)
        given = response._get_params()
        if not response._get_bool_param("ApplyImmediately"):
            made.lives[name].pending.update({key: given[key] for key in LATER & given.keys()})
            given = {key: value for key, value in given.items() if key not in LATER}
        for key, attribute in {
            **OF_NODES,
            "ReplicationGroupDescription": "description",
            "Engine": "engine",
            "CacheNodeType": "cache_node_type",
            "SecurityGroupIds": "security_group_ids",
            "SnapshotWindow": "snapshot_window",
        }.items():
            if key in given:
                setattr(group, attribute, given[key])
        if "SnapshotRetentionLimit" in given:
            group.snapshot_retention_limit = response._get_int_param("SnapshotRetentionLimit")
        for key, attribute in {"AutomaticFailoverEnabled": "automatic_failover", "MultiAZEnabled": "multi_az"}.items():
            if key in given:
                setattr(group, attribute, "enabled" if response._get_bool_param(key) else "disabled")
        if "AutoMinorVersionUpgrade" in given:
            group.auto_minor_version_upgrade = response._get_bool_param("AutoMinorVersionUpgrade")
        made.begin(name, MODIFYING)
        return ActionResult({"ReplicationGroup": group})

    def reshard(response: Any) -> ActionResult:
        _at_once(response)
        name, wanted = response._get_param("ReplicationGroupId"), response._get_int_param("NodeGroupCount")
        group = made.ready(response.elasticache_backend, name)
        leaving = response._get_param("NodeGroupsToRemove", [])
        if len(group.node_groups) - len(leaving) != min(wanted, len(group.node_groups)):
            raise RefusedError("NodeGroupsToRemove has to name the shards that leave")
        shape(group, wanted, len(group.node_groups[0]["node_group_members"]) - 1)
        made.begin(name, MODIFYING)
        return ActionResult({"ReplicationGroup": group})

    def replicate(response: Any) -> ActionResult:
        _at_once(response)
        name = response._get_param("ReplicationGroupId")
        group = made.ready(response.elasticache_backend, name)
        shape(group, len(group.node_groups), response._get_int_param("NewReplicaCount"))
        made.begin(name, MODIFYING)
        return ActionResult({"ReplicationGroup": group})

    def delete(response: Any) -> ActionResult:
        name = response._get_param("ReplicationGroupId")
        group = made.ready(response.elasticache_backend, name)
        snapshot = response._get_param("FinalSnapshotIdentifier")
        made.snapshots.extend([snapshot] if snapshot else [])
        made.begin(name, DELETING)
        return ActionResult({"ReplicationGroup": group})

    def forget_subnets(response: Any) -> ActionResult:
        del response.elasticache_backend.cache_subnet_groups[response._get_param("CacheSubnetGroupName")]
        return ActionResult({})

    def nodes(response: Any) -> ActionResult:
        wanted = response._get_param("CacheClusterId")
        groups = response.elasticache_backend.replication_groups
        name = next(name for name, group in groups.items() if wanted in group.member_clusters)
        group = groups[name]
        node = {
            "CacheClusterId": wanted,
            "Engine": group.engine,
            "EngineVersion": f"{group.engine_version}.7" if group.engine_version else "7.1.0",
            "CacheParameterGroup": {"CacheParameterGroupName": group.cache_parameter_group_name or "default.redis7.cluster.on"},
            "CacheSubnetGroupName": group.cache_subnet_group_name or "default",
            "SecurityGroups": [{"SecurityGroupId": each, "Status": "active"} for each in group.security_group_ids or []],
            "PreferredMaintenanceWindow": group.preferred_maintenance_window or "sun:05:00-sun:06:00",
            "PendingModifiedValues": made.lives[name].pending,
        }
        return ActionResult({"CacheClusters": [node]})

    with contextlib.ExitStack() as stack:
        for name, replacement in (("create_replication_group", create), ("describe_replication_groups", describe)):
            stack.enter_context(mock.patch.object(ElastiCacheBackend, name, replacement))
        for name, answer in (
            ("modify_replication_group", change),
            ("modify_replication_group_shard_configuration", reshard),
            ("increase_replica_count", replicate),
            ("decrease_replica_count", replicate),
            ("delete_replication_group", delete),
            ("delete_cache_subnet_group", forget_subnets),
            ("describe_cache_clusters", nodes),
        ):
            # Some of them moto does not have at all.
            stack.enter_context(mock.patch.object(ElastiCacheResponse, name, answer, create=True))
        yield made


@functools.cache
def _client() -> Any:
    """Return a client, whose making takes longer than a test."""
    return boto3.client("elasticache", region_name=REGION)


def do_all(run: Callable[..., Any], clock: FakeClock) -> None:
    """Let the module do all that it can: a group made, changed in every way and deleted."""
    group: dict[str, Any] = {"name": "lms", "shards": 2, "replicas": 1}
    with elasticache(clock.now):
        run("elasticache_replication_group", **group, tags={"Environment": "prod"})
        run("elasticache_replication_group", **group, tags={"Role": "cache"}, snapshot_retention=7)
        run("elasticache_replication_group", **{**group, "shards": 3, "replicas": 2})
        run("elasticache_replication_group", **group)
        run("elasticache_replication_group", name="lms", state="absent", final_snapshot="lms-final")
