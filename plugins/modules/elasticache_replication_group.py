#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: elasticache_replication_group
short_description: Make, change or delete a replication group of ElastiCache
version_added: 1.0.0
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Makes a replication group of ElastiCache, which is Redis or Valkey with shards and replicas, brings one that is there to what was asked
    for, or deletes it, and waits until that is done.
  - An option that is left out and has no default is not looked at.
  - Fails where AWS cannot change a group that is there, such as its encryption or its cluster mode.
  - A group is deleted only with a final snapshot, unless O(final_snapshot_skipped=true).
  - Neither makes subnet groups, parameter groups nor users.
options:
  name:
    description:
      - Name of the group. 1 to 40 lower-case letters, digits and hyphens.
    type: str
    required: true
  state:
    description:
      - Whether there should be such a group.
    type: str
    choices: [present, absent]
    default: present
  description:
    description:
      - What it is for. AWS asks for one.
    type: str
    default: Managed by Ansible
  engine:
    description:
      - The engine. A group of Redis can become one of Valkey, and not the other way round.
    type: str
    choices: [redis, valkey]
    default: redis
  engine_version:
    description:
      - Its version, such as V(7.0). A group with V(7.0.7) is one of V(7.0). Left out, AWS chooses, and a group that is there keeps its own.
    type: str
  node_type:
    description:
      - Type of the nodes, such as V(cache.r6g.large).
    type: str
    default: cache.t4g.micro
  parameter_group:
    description:
      - Name of the parameter group, such as V(default.redis7.cluster.on). Left out, AWS chooses the one of the engine.
    type: str
  cluster_mode:
    description:
      - Whether keys are spread over shards. Clients have to know how to speak to a cluster. It stays as the group was made.
    type: str
    choices: [enabled, disabled]
    default: enabled
  shards:
    description:
      - How many shards, 1 to 500. Another number moves keys from shard to shard while the group serves; with fewer, AWS refuses when they
        do not fit.
    type: int
    default: 1
  replicas:
    description:
      - How many replicas each shard has besides its primary, 0 to 5.
    type: int
    default: 1
  port:
    description:
      - The port. It stays as the group was made.
    type: int
    default: 6379
  subnet_group:
    description:
      - Name of the subnet group. It stays as the group was made. Left out, the default one of the account.
    type: str
  security_groups:
    description:
      - Ids of the security groups, and of no others.
    type: list
    elements: str
  automatic_failover:
    description:
      - Whether a replica takes over when a primary fails. Cluster mode needs it.
    type: bool
    default: true
  multi_az:
    description:
      - Whether the nodes of a shard are in several zones. It needs a replica.
    type: bool
    default: true
  at_rest_encryption:
    description:
      - Whether what is on disk and in snapshots is encrypted. It stays as the group was made.
    type: bool
    default: true
  kms_key:
    description:
      - Id or ARN of the key for it. It stays as the group was made. Left out, a key of ElastiCache's own.
    type: str
  transit_encryption:
    description:
      - Whether clients have to connect with TLS. It stays as the group was made.
    type: bool
    default: true
  auth_token:
    description:
      - The password, 16 to 128 characters. It is set when the group is made. What AWS has is not told by it, so another value here changes
        nothing later. Fails where a group that is there asks for no password at all.
    type: str
  snapshot_retention:
    description:
      - For how many days the daily snapshots are kept, 0 to 35. 0 makes none.
    type: int
    default: 1
  snapshot_window:
    description:
      - When they are made (UTC), such as V(03:00-04:00). Left out, AWS chooses.
    type: str
  maintenance_window:
    description:
      - When AWS may work on the group (UTC), such as V(sun:05:00-sun:06:00). Left out, AWS chooses.
    type: str
  auto_minor_version_upgrade:
    description:
      - Whether AWS installs minor versions in this window.
    type: bool
    default: true
  tags:
    description:
      - The tags. Left out, they are not looked at.
    type: dict
  purge_tags:
    description:
      - Whether tags that O(tags) does not name are removed.
    type: bool
    default: true
  apply_immediately:
    description:
      - Whether a change is made at once. Otherwise what interrupts clients waits for the maintenance window, and counts as done meanwhile.
        Shards and replicas always change at once.
    type: bool
    default: false
  final_snapshot:
    description:
      - Name of the snapshot that is made before the group is deleted.
    type: str
  final_snapshot_skipped:
    description:
      - Whether a group may be deleted without one. Its data are gone then.
    type: bool
    default: false
  wait:
    description:
      - Whether to wait until the group is available, or gone. Between two changes the module always waits, because AWS makes one at a time.
    type: bool
    default: true
  timeout:
    description:
      - For how long to wait for each change (seconds). A new group takes some ten minutes, and moving keys between shards may take hours.
    type: float
    default: 2400
  interval:
    description:
      - Pause between two looks (seconds).
    type: float
    default: 15
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - bitflow.lms.aws_connection
attributes:
  check_mode:
    support: full
    details:
      - Returns the plan, with the group as it is now. Waits for nothing.
  diff_mode:
    support: full
  platform:
    platforms: linux
notes:
  - IAM has to allow C(elasticache:AddTagsToResource), C(elasticache:CreateReplicationGroup), C(elasticache:DecreaseReplicaCount),
    C(elasticache:DeleteReplicationGroup), C(elasticache:DescribeCacheClusters), C(elasticache:DescribeReplicationGroups),
    C(elasticache:IncreaseReplicaCount), C(elasticache:ListTagsForResource), C(elasticache:ModifyReplicationGroup),
    C(elasticache:ModifyReplicationGroupShardConfiguration) and C(elasticache:RemoveTagsFromResource).
seealso:
  - module: community.aws.elasticache
  - module: community.aws.elasticache_subnet_group
"""

EXAMPLES = r"""
- name: Make a cache of three shards with two replicas each
  bitflow.lms.elasticache_replication_group:
    name: lms-redis
    engine_version: "7.0"
    node_type: cache.r6g.large
    parameter_group: default.redis7.cluster.on
    shards: 3
    replicas: 2
    subnet_group: lms-redis
    security_groups: [sg-0123456789abcdef0]
    auth_token: "{{ vault_redis_password }}"
    snapshot_retention: 7
    tags:
      Environment: prod

- name: Delete it, and keep what was in it
  bitflow.lms.elasticache_replication_group:
    name: lms-redis
    state: absent
    final_snapshot: lms-redis-final
"""

RETURN = r"""
name:
  description: Name of the group.
  returned: success
  type: str
  sample: lms-redis
arn:
  description: Its ARN, empty where there is no group.
  returned: success
  type: str
  sample: arn:aws:elasticache:eu-central-1:123456789012:replicationgroup:lms-redis
status:
  description: Its status as AWS calls it, or C(absent).
  returned: success
  type: str
  sample: available
endpoint:
  description: Where clients connect. In cluster mode one address stands for all shards, else it is that of the primary.
  returned: success
  type: dict
  contains:
    address:
      description: The host name, empty where there is none yet.
      returned: always
      type: str
      sample: clustercfg.lms-redis.abcdef.euc1.cache.amazonaws.com
    port:
      description: The port, 0 where there is none yet.
      returned: always
      type: int
      sample: 6379
nodes:
  description: The names of its nodes, sorted.
  returned: success
  type: list
  elements: str
  sample: [lms-redis-0001-001, lms-redis-0001-002, lms-redis-0001-003]
actions:
  description: What was done, in order. In check mode what would be.
  returned: success
  type: list
  elements: str
  sample: ["go from 1 to 2 replicas"]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api, aws_argspec, client_for
from ansible_collections.bitflow.lms.plugins.module_utils._elasticache_replication_group import ABSENT, PRESENT, run
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock


def main() -> None:
    """Read the options, make, change or delete the group, report."""
    module = AnsibleModule(
        argument_spec={
            **aws_argspec(),
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": [PRESENT, ABSENT], "default": PRESENT},
            "description": {"type": "str", "default": "Managed by Ansible"},
            "engine": {"type": "str", "choices": ["redis", "valkey"], "default": "redis"},
            "engine_version": {"type": "str"},
            "node_type": {"type": "str", "default": "cache.t4g.micro"},
            "parameter_group": {"type": "str"},
            "cluster_mode": {"type": "str", "choices": ["enabled", "disabled"], "default": "enabled"},
            "shards": {"type": "int", "default": 1},
            "replicas": {"type": "int", "default": 1},
            "port": {"type": "int", "default": 6379},
            "subnet_group": {"type": "str"},
            "security_groups": {"type": "list", "elements": "str"},
            "automatic_failover": {"type": "bool", "default": True},
            "multi_az": {"type": "bool", "default": True},
            "at_rest_encryption": {"type": "bool", "default": True},
            "kms_key": {"type": "str", "no_log": False},
            "transit_encryption": {"type": "bool", "default": True},
            "auth_token": {"type": "str", "no_log": True},
            "snapshot_retention": {"type": "int", "default": 1},
            "snapshot_window": {"type": "str"},
            "maintenance_window": {"type": "str"},
            "auto_minor_version_upgrade": {"type": "bool", "default": True},
            "tags": {"type": "dict"},
            "purge_tags": {"type": "bool", "default": True},
            "apply_immediately": {"type": "bool", "default": False},
            "final_snapshot": {"type": "str"},
            "final_snapshot_skipped": {"type": "bool", "default": False},
            "wait": {"type": "bool", "default": True},
            "timeout": {"type": "float", "default": 2400},
            "interval": {"type": "float", "default": 15},
        },
        required_together=[["access_key", "secret_key"]],
        supports_check_mode=True,
    )
    try:
        result = run(Api(client_for("elasticache", module.params), "elasticache"), module.params, module.check_mode, Clock())
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
