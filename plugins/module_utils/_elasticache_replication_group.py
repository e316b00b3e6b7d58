# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A replication group of ElastiCache: Redis or Valkey with shards and replicas, as it should be, and waited for until it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api, AwsError
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock, Pace, wait_for

PRESENT = "present"
ABSENT = "absent"

AVAILABLE = "available"
DELETING = "deleting"
FAILED = "create-failed"
# What AWS answers for a group or a node that is not there.
NO_GROUP = "ReplicationGroupNotFoundFault"
NO_NODE = "CacheClusterNotFound"

_NAME = re.compile(r"[a-z](?!.*--)[a-z0-9-]{0,38}[a-z0-9]|[a-z]")
_TOKEN = re.compile(r"[^\s/\"@]{16,128}")

# What a group is made of. Each of these options, and what CreateReplicationGroup calls it.
CREATED_WITH = {
    "description": "ReplicationGroupDescription",
    "engine": "Engine",
    "engine_version": "EngineVersion",
    "node_type": "CacheNodeType",
    "parameter_group": "CacheParameterGroupName",
    "cluster_mode": "ClusterMode",
    "shards": "NumNodeGroups",
    "replicas": "ReplicasPerNodeGroup",
    "port": "Port",
    "subnet_group": "CacheSubnetGroupName",
    "security_groups": "SecurityGroupIds",
    "automatic_failover": "AutomaticFailoverEnabled",
    "multi_az": "MultiAZEnabled",
    "at_rest_encryption": "AtRestEncryptionEnabled",
    "kms_key": "KmsKeyId",
    "transit_encryption": "TransitEncryptionEnabled",
    "snapshot_retention": "SnapshotRetentionLimit",
    "snapshot_window": "SnapshotWindow",
    "maintenance_window": "PreferredMaintenanceWindow",
    "auto_minor_version_upgrade": "AutoMinorVersionUpgrade",
}
# What AWS changes only by making another group.
FIXED = ("cluster_mode", "port", "subnet_group", "at_rest_encryption", "kms_key", "transit_encryption")
# What has a call of its own.
SHARDS = "shards"
REPLICAS = "replicas"
TAGS = "tags"
APART = (SHARDS, REPLICAS, TAGS)

Group = Mapping[str, Any]
Settings = dict[str, Any]


# Deciding


@dataclass(frozen=True)
class Call:
    """A call that changes something, and what it does in words."""

    operation: str
    words: str
    parameters: Mapping[str, Any]
    # Whether AWS is busy afterwards, so that the next change has to wait.
    busy: bool = True


@dataclass(frozen=True)
class Plan:
    """What will be done."""

    before: Settings
    after: Settings
    calls: Sequence[Call]


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what AWS would refuse, before anything is asked of it."""
    name = options["name"]
    if not _NAME.fullmatch(name):
        raise LmsError(
            f"name is {name}. Give 1 to 40 lower-case letters, digits and hyphens, beginning with a letter, "
            "with no hyphen at the end and no two in a row."
        )
    if options["state"] == ABSENT:
        if not options["final_snapshot"] and not options["final_snapshot_skipped"]:
            raise LmsError(f"{name} would be deleted with its data. Name a final_snapshot, or set final_snapshot_skipped.")
        return
    for option, least, most in (("shards", 1, 500), ("replicas", 0, 5), ("snapshot_retention", 0, 35)):
        if not least <= options[option] <= most:
            raise LmsError(f"{option} is {options[option]}. Give {least} to {most}.")
    if options["shards"] > 1 and options["cluster_mode"] != "enabled":
        raise LmsError(f"shards is {options['shards']}, and cluster_mode is {options['cluster_mode']}. Enable it, or give one shard.")
    if options["replicas"] == 0 and options["multi_az"]:
        raise LmsError("multi_az needs a replica in another zone, and replicas is 0. Give 1 at least, or turn multi_az off.")
    if options["multi_az"] and not options["automatic_failover"]:
        raise LmsError("multi_az needs automatic_failover. Turn both on, or both off.")
    if options["cluster_mode"] == "enabled" and not options["automatic_failover"]:
        raise LmsError("A group in cluster mode needs automatic_failover. Turn it on, or disable cluster_mode.")
    if options["auth_token"] is not None and not options["transit_encryption"]:
        raise LmsError("auth_token needs transit_encryption. Turn it on, or leave the token out.")
    if options["auth_token"] is not None and not _TOKEN.fullmatch(options["auth_token"]):
        raise LmsError('auth_token has to be 16 to 128 characters, without spaces, /, " and @.')


def wanted_of(options: Mapping[str, Any]) -> Settings:
    """Return what a group should be. What was left out is not looked at."""
    found = {name: options[name] for name in CREATED_WITH if options[name] is not None}
    if "security_groups" in found:
        found["security_groups"] = sorted(found["security_groups"])
    if options["tags"] is not None:
        found[TAGS] = {str(key): str(value) for key, value in sorted(options["tags"].items())}
    return found


def settings_of(group: Group, node: Mapping[str, Any], tags: Mapping[str, str]) -> Settings:
    """Return what a group is, in the words of the options. None is what AWS does not tell (yet)."""
    shards = group.get("NodeGroups", [])
    members = max((len(shard.get("NodeGroupMembers", [])) for shard in shards), default=0)
    # What waits for the maintenance window was asked for already.
    pending = node.get("PendingModifiedValues", {})
    return {
        "description": group.get("Description"),
        "engine": group.get("Engine"),
        "engine_version": pending.get("EngineVersion") or node.get("EngineVersion"),
        "node_type": pending.get("CacheNodeType") or group.get("CacheNodeType"),
        "parameter_group": node.get("CacheParameterGroup", {}).get("CacheParameterGroupName"),
        "cluster_mode": group.get("ClusterMode") or {True: "enabled", False: "disabled"}.get(group.get("ClusterEnabled", "")),
        "shards": len(shards) or None,
        "replicas": members - 1 if members else None,
        "port": _port(group),
        "subnet_group": node.get("CacheSubnetGroupName"),
        "security_groups": sorted(each["SecurityGroupId"] for each in node["SecurityGroups"]) if node.get("SecurityGroups") else None,
        "automatic_failover": _is_on(group.get("AutomaticFailover")),
        "multi_az": _is_on(group.get("MultiAZ")),
        "at_rest_encryption": group.get("AtRestEncryptionEnabled"),
        "kms_key": group.get("KmsKeyId"),
        "transit_encryption": group.get("TransitEncryptionEnabled"),
        "snapshot_retention": group.get("SnapshotRetentionLimit"),
        "snapshot_window": group.get("SnapshotWindow"),
        "maintenance_window": node.get("PreferredMaintenanceWindow"),
        "auto_minor_version_upgrade": group.get("AutoMinorVersionUpgrade"),
        TAGS: dict(sorted(tags.items())),
    }


def _is_on(word: Any) -> bool | None:
    """Return whether something is on, or being turned on."""
    return None if word is None else word in ("enabled", "enabling")


def _port(group: Group) -> int | None:
    """Return the port of a group."""
    port = endpoint_of(group)["port"]
    return port or None


def is_same(option: str, wanted: Any, found: Any) -> bool:
    """Say whether an option is as it should be."""
    if found is None:
        return True
    if option == "engine_version":
        # 7.0 stands for each of its releases, and AWS tells the whole version.
        return bool(found == wanted or str(found).startswith(f"{wanted}."))
    if option in ("snapshot_window", "maintenance_window"):
        return bool(str(found).lower() == str(wanted).lower())
    if option == "kms_key":
        # An id, the end of an ARN, or all of it.
        return bool(found == wanted or str(found).endswith(f"/{wanted}"))
    return bool(found == wanted)


def plan_change(name: str, found: Settings, wanted: Settings, options: Mapping[str, Any], arn: str) -> Plan:
    """Decide what to change in a group that is there."""
    if TAGS in wanted and not options["purge_tags"]:
        wanted = {**wanted, TAGS: dict(sorted({**found[TAGS], **wanted[TAGS]}.items()))}
    differing = [option for option, value in wanted.items() if not is_same(option, value, found[option])]
    fixed = [option for option in differing if option in FIXED]
    if fixed:
        raise LmsError(
            f"{name} has another {', '.join(fixed)} than was asked for, and AWS cannot change that in a group that is there. "
            f"Give {', '.join(f'{option}: {found[option]}' for option in fixed)}, or make another group.",
            differing=fixed,
        )
    return Plan(
        {option: found[option] for option in wanted},
        {option: wanted[option] if option in differing else found[option] for option in wanted},
        [
            *_modification(differing, wanted, options),
            *_resharding(name, found, wanted, differing),
            *_replicas(found, wanted, differing),
            *_tagging(found, wanted, differing, arn),
        ],
    )


def _modification(differing: Sequence[str], wanted: Settings, options: Mapping[str, Any]) -> list[Call]:
    """Return the call for all that one call changes."""
    changed = [option for option in differing if option not in APART]
    if not changed:
        return []
    parameters = {CREATED_WITH[option]: wanted[option] for option in changed}
    words = f"change {', '.join(changed)}"
    return [Call("ModifyReplicationGroup", words, {**parameters, "ApplyImmediately": options["apply_immediately"]})]


def _resharding(name: str, found: Settings, wanted: Settings, differing: Sequence[str]) -> list[Call]:
    """Return the call for another number of shards. AWS takes no later moment for it."""
    if SHARDS not in differing:
        return []
    before, after = found[SHARDS], wanted[SHARDS]
    if found["cluster_mode"] not in (None, "enabled"):
        raise LmsError(f"{name} is not in cluster mode and has one shard. Give shards: 1, or make another group.")
    parameters: dict[str, Any] = {"NodeGroupCount": after, "ApplyImmediately": True}
    if after < before:
        parameters["NodeGroupsToRemove"] = [f"{number:04}" for number in range(after + 1, before + 1)]
    return [Call("ModifyReplicationGroupShardConfiguration", f"go from {before} to {after} shards", parameters)]


def _replicas(found: Settings, wanted: Settings, differing: Sequence[str]) -> list[Call]:
    """Return the call for another number of replicas of each shard."""
    if REPLICAS not in differing:
        return []
    before, after = found[REPLICAS], wanted[REPLICAS]
    operation = "IncreaseReplicaCount" if after > before else "DecreaseReplicaCount"
    return [Call(operation, f"go from {before} to {after} replicas", {"NewReplicaCount": after, "ApplyImmediately": True})]


def _tagging(found: Settings, wanted: Settings, differing: Sequence[str], arn: str) -> list[Call]:
    """Return the calls for tags."""
    if TAGS not in differing:
        return []
    before, after = found[TAGS], wanted[TAGS]
    gone = sorted(before.keys() - after.keys())
    new = {key: value for key, value in after.items() if before.get(key) != value}
    calls = []
    if gone:
        calls.append(
            Call("RemoveTagsFromResource", f"remove the tags {', '.join(gone)}", {"ResourceName": arn, "TagKeys": gone}, busy=False)
        )
    if new:
        calls.append(Call("AddTagsToResource", f"set the tags {', '.join(new)}", {"ResourceName": arn, "Tags": _as_list(new)}, busy=False))
    return calls


def plan_creation(name: str, wanted: Settings, options: Mapping[str, Any]) -> Plan:
    """Decide how to make a group."""
    parameters: dict[str, Any] = {CREATED_WITH[option]: value for option, value in wanted.items() if option != TAGS}
    if wanted.get(TAGS):
        parameters["Tags"] = _as_list(wanted[TAGS])
    if options["auth_token"] is not None:
        parameters["AuthToken"] = options["auth_token"]
    return Plan({}, wanted, [Call("CreateReplicationGroup", f"make {name}", parameters)])


def plan_removal(name: str, found: Settings, options: Mapping[str, Any]) -> Plan:
    """Decide how to delete a group."""
    snapshot = options["final_snapshot"]
    words = f"delete {name}, with the snapshot {snapshot}" if snapshot else f"delete {name} and its data"
    parameters = {"FinalSnapshotIdentifier": snapshot} if snapshot else {}
    return Plan(
        {option: value for option, value in found.items() if value is not None}, {}, [Call("DeleteReplicationGroup", words, parameters)]
    )


def _as_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Return tags as AWS takes them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


# Looking


@dataclass(frozen=True)
class Seen:
    """A group as it was found; nothing where there is none."""

    group: Group | None
    settings: Settings

    @property
    def status(self) -> str:
        """Return its status as AWS calls it."""
        return str(self.group["Status"]) if self.group else ABSENT

    @property
    def arn(self) -> str:
        """Return its ARN."""
        return str(self.group.get("ARN", "")) if self.group else ""


def find_group(api: Api, name: str) -> Group | None:
    """Return a group, or nothing."""
    try:
        found = api.call("DescribeReplicationGroups", f"The replication group {name} cannot be read", ReplicationGroupId=name)
    except AwsError as error:
        if error.code == NO_GROUP:
            return None
        raise
    groups: list[Group] = found["ReplicationGroups"]
    return groups[0]


def look(api: Api, name: str) -> Seen:
    """Return a group with what only its nodes and its tags tell."""
    group = find_group(api, name)
    if group is None:
        return Seen(None, {})
    tags: dict[str, str] = {}
    # AWS refuses to tell tags of a group that comes or goes.
    if group["Status"] == AVAILABLE:
        said = api.call("ListTagsForResource", f"The tags of {name} cannot be read", ResourceName=group["ARN"])
        tags = {tag["Key"]: tag.get("Value", "") for tag in said["TagList"]}
    return Seen(group, settings_of(group, _first_node(api, name, group), tags))


def _first_node(api: Api, name: str, group: Group) -> Mapping[str, Any]:
    """Return a node: all nodes of a group have the same settings. There is none while the group comes."""
    members = sorted(group.get("MemberClusters", []))
    if not members:
        return {}
    try:
        found = api.call("DescribeCacheClusters", f"The nodes of {name} cannot be read", CacheClusterId=members[0])
    except AwsError as error:
        if error.code.startswith(NO_NODE):
            return {}
        raise
    node: Mapping[str, Any] = found["CacheClusters"][0]
    return node


def endpoint_of(group: Group) -> dict[str, Any]:
    """Return where clients connect: in cluster mode one address for all shards, else that of the primary."""
    shards = group.get("NodeGroups") or [{}]
    found = group.get("ConfigurationEndpoint") or shards[0].get("PrimaryEndpoint") or {}
    return {"address": found.get("Address", ""), "port": found.get("Port", 0)}


# Acting


@dataclass(frozen=True)
class Worker:
    """A group that is changed and waited for."""

    api: Api
    name: str
    pace: Pace
    clock: Clock

    def settle(self, wanted: str) -> None:
        """Wait until the group has a status, or is gone."""
        status = wait_for(self._status, lambda found: found == wanted, self.pace, self.clock)
        if status != wanted:
            raise LmsError(
                f"{self.name} is {status} after {self.pace.timeout:g} s, and should be {wanted}. AWS goes on: run this again later, "
                "or give a longer timeout.",
                status=status,
            )

    def _status(self) -> str:
        """Return the status, and raise what waiting cannot mend."""
        group = find_group(self.api, self.name)
        status = str(group["Status"]) if group else ABSENT
        if status == FAILED:
            raise LmsError(
                f"AWS could not make {self.name}. Its events in ElastiCache say why. Delete it, and make it again.", status=status
            )
        return status

    def work(self, plan: Plan, wait: bool) -> None:
        """Make the calls, one after the other: AWS refuses a change while it is busy with another."""
        for number, call in enumerate(plan.calls):
            parameters = dict(call.parameters)
            if "ResourceName" not in parameters:
                parameters["ReplicationGroupId"] = self.name
            self.api.call(call.operation, f"{self.name} cannot be changed ({call.words})", **parameters)
            last = number == len(plan.calls) - 1
            if call.busy and (wait or not last):
                self.settle(ABSENT if call.operation.startswith("Delete") else AVAILABLE)


def run(api: Api, options: Mapping[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Make, change or delete a group."""
    check_options(options)
    name = options["name"]
    worker = Worker(api, name, Pace.of(options), clock)
    seen = look(api, name)
    plan = make_plan(seen, options)
    if not check_mode and seen.status == DELETING and (options["state"] == ABSENT) and options["wait"]:
        worker.settle(ABSENT)
        seen = look(api, name)
    if not check_mode and seen.group and seen.status not in (AVAILABLE, DELETING) and (plan.calls or options["wait"]):
        # Its nodes and tags tell more when it has settled.
        worker.settle(AVAILABLE)
        seen = look(api, name)
        plan = make_plan(seen, options)
    if not check_mode and plan.calls:
        worker.work(plan, options["wait"])
        seen = look(api, name)
    return as_result(name, plan, seen)


def make_plan(seen: Seen, options: Mapping[str, Any]) -> Plan:
    """Decide what to do with what was found."""
    name = options["name"]
    if options["state"] == ABSENT:
        return Plan({}, {}, []) if seen.status in (ABSENT, DELETING) else plan_removal(name, seen.settings, options)
    if seen.status == DELETING:
        raise LmsError(f"{name} is on its way out. Wait until it is gone, and run this again.")
    wanted = wanted_of(options)
    if seen.group is None:
        return plan_creation(name, wanted, options)
    if seen.status != AVAILABLE:
        # Tags are not told yet.
        wanted = {option: value for option, value in wanted.items() if option != TAGS}
    if options["auth_token"] is not None and not seen.group.get("AuthTokenEnabled"):
        raise LmsError(f"{name} asks nobody for a password, and auth_token was given. Set one in ElastiCache, or make another group.")
    return plan_change(name, seen.settings, wanted, options, seen.arn)


def as_result(name: str, plan: Plan, seen: Seen) -> dict[str, Any]:
    """Return what was found and done, as the module does."""
    group = seen.group or {}
    return {
        "changed": bool(plan.calls),
        "name": name,
        "arn": seen.arn,
        "status": seen.status,
        "endpoint": endpoint_of(group),
        "nodes": sorted(group.get("MemberClusters", [])),
        "actions": [call.words for call in plan.calls],
        "diff": {"before": plan.before, "after": plan.after},
    }
