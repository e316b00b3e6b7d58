#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_repository
short_description: Set up where backups are kept
version_added: 1.0.0
description:
  - Creates the directory or the bucket of a repository and sets it up, and notes in C(repository.json) what it is.
  - Returns the policies for an identity that makes backups and can neither delete nor replace one, and for an identity that prunes.
    Attach them to the users or roles that the hosts have; this module makes none.
  - It needs an administrator of the bucket. Run it where you have one, such as on the control host. The hosts that make backups do not
    need one.
  - It never deletes a repository, and never deletes or shortens what is stored in it.
options:
  state:
    description:
      - The repository is there, and set up so.
    type: str
    choices: [present]
    default: present
  owner:
    description:
      - User to whom a directory belongs. Left out, it stays as it is.
    type: str
  group:
    description:
      - Group to which a directory belongs. Left out, it stays as it is.
    type: str
  mode:
    description:
      - Mode of a directory. Backups hold everything; keep others out.
    type: str
    default: "0700"
  recipients:
    description:
      - Who can decrypt the backups, to be noted in C(repository.json). It encrypts nothing by itself.
    type: list
    elements: str
    default: []
  versioning:
    description:
      - Keep former versions of the objects of a bucket, so that what is deleted can be brought back until the lifecycle ends it.
      - V(false) leaves it as it is.
    type: bool
    default: true
  public_access_block:
    description:
      - Block everything public of a bucket. V(false) leaves it as it is, for services that do not know it.
    type: bool
    default: true
  object_lock:
    description:
      - Keep every object of a bucket from being deleted or replaced for some days. Left out, it stays as it is.
      - A bucket can be given it only when it is created. Afterwards O(object_lock.mode) and O(object_lock.days) can be changed, for
        objects that are written from then on.
      - Choose fewer days than O(lifecycle.expire_days), where that is used.
    type: dict
    suboptions:
      mode:
        description:
          - V(GOVERNANCE) can be lifted by those who may bypass it. V(COMPLIANCE) can be lifted by nobody, not even the account's owner.
        type: str
        choices: [GOVERNANCE, COMPLIANCE]
        default: GOVERNANCE
      days:
        description:
          - How long, in days.
        type: int
        required: true
  lifecycle:
    description:
      - What the bucket does by itself with the objects of this repository, in days. V(0) is never. Other rules of the bucket stay.
    type: dict
    default: {}
    suboptions:
      abort_incomplete_days:
        description:
          - End uploads that were begun so long ago and not completed. They cost money and nobody sees them.
        type: int
        default: 2
      expire_days:
        description:
          - Delete everything that is older, whatever M(bitflow.lms.backup_prune) would keep, and also what M(bitflow.lms.backup_hold)
            holds. When backups stop, the last one is deleted too after this time.
          - A bucket cannot tell a good backup from a bad one. Leave it at V(0), and let M(bitflow.lms.backup_prune) decide by what is
            there.
        type: int
        default: 0
      noncurrent_days:
        description:
          - Delete for good what was deleted so long ago, where there are versions. Until then a backup that was pruned by mistake comes
            back by removing the marker.
        type: int
        default: 90
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - bitflow.lms.backup_repository
attributes:
  check_mode:
    description: Looks, and says what would be done. Nothing is written.
    support: full
  diff_mode:
    description: Shows the settings before and after.
    support: full
  platform:
    platforms: linux
notes:
  - O(s3.sse) and O(s3.kms_key_id) also become the default encryption of the bucket.
seealso:
  - module: bitflow.lms.database_backup
  - module: bitflow.lms.backup_prune
author:
  - Bitflow LMS contributors (@bitflow-lms)
"""

EXAMPLES = r"""
- name: Set up the directory of the backups
  bitflow.lms.backup_repository:
    repository: /srv/backups/lms

- name: Set up a bucket whose backups cannot be deleted for two weeks
  bitflow.lms.backup_repository:
    repository: s3://example-backups/lms
    s3:
      region: eu-central-1
      sse: AES256
    object_lock:
      mode: COMPLIANCE
      days: 14
  register: repository
  delegate_to: localhost
  run_once: true

- name: Let the hosts write backups and delete none
  amazon.aws.iam_policy:
    iam_type: role
    iam_name: example-lms
    policy_name: write-backups
    policy_json: "{{ repository.writer_policy }}"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
repository:
  description: The repository, as it was given.
  returned: always
  type: str
  sample: s3://example-backups/lms
id:
  description: The id of the repository. In check mode it is empty for one that is not there yet.
  returned: always
  type: str
  sample: 6c1a2f0e-5d3b-4c0a-9f59-0c8b6f6a9b11
plan:
  description: The steps that were taken, or would be.
  returned: always
  type: list
  elements: str
  sample: [create the bucket example-backups, set lifecycle of the bucket example-backups, write repository.json]
settings:
  description: How the repository is set up. In check mode, how it would be.
  returned: always
  type: dict
  sample:
    exists: true
    versioning: true
    public_access_block: true
    encryption: {sse: AES256, kms_key_id: ""}
    object_lock: {mode: COMPLIANCE, days: 14}
writer_policy:
  description: Policy for an identity that makes and verifies backups. Nothing for a directory.
  returned: always
  type: dict
  sample: {Version: "2012-10-17", Statement: []}
pruner_policy:
  description: Policy for an identity that deletes what M(bitflow.lms.backup_prune) chooses. Nothing for a directory.
  returned: always
  type: dict
  sample: {Version: "2012-10-17", Statement: []}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import now_utc
from ansible_collections.bitflow.lms.plugins.module_utils._backup_repositories import open_store, repository_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._backup_repository_settings import Lifecycle, Wanted, plan_for, policies
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError


def argument_spec() -> dict[str, dict[str, Any]]:
    """Return the options of the module."""
    return {
        **repository_argspec(),
        "state": {"type": "str", "choices": ["present"], "default": "present"},
        "owner": {"type": "str"},
        "group": {"type": "str"},
        "mode": {"type": "str", "default": "0700"},
        "recipients": {"type": "list", "elements": "str", "default": []},
        "versioning": {"type": "bool", "default": True},
        "public_access_block": {"type": "bool", "default": True},
        "object_lock": {
            "type": "dict",
            "options": {
                "mode": {"type": "str", "choices": ["GOVERNANCE", "COMPLIANCE"], "default": "GOVERNANCE"},
                "days": {"type": "int", "required": True},
            },
        },
        "lifecycle": {
            "type": "dict",
            "default": {},
            "options": {
                "abort_incomplete_days": {"type": "int", "default": 2},
                "expire_days": {"type": "int", "default": 0},
                "noncurrent_days": {"type": "int", "default": 90},
            },
        },
    }


def wanted_from(params: dict[str, Any]) -> Wanted:
    """Return how the options want the repository to be."""
    lock = params["object_lock"]
    if lock and lock["days"] < 1:
        raise LmsError(f"object_lock.days is {lock['days']}. Give one day at least.")
    return Wanted(
        recipients=tuple(params["recipients"]),
        owner=params["owner"] or "",
        group=params["group"] or "",
        mode=params["mode"],
        versioning=params["versioning"],
        public_access_block=params["public_access_block"],
        object_lock=lock,
        lifecycle=Lifecycle.of(params["lifecycle"]),
    )


def run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Set the repository up, or say what would be done."""
    store = open_store(params)
    plan = plan_for(store, wanted_from(params), now_utc())
    if not check_mode:
        for change in plan.changes:
            change.act()
    known = plan.before if check_mode else plan.after
    return {
        "changed": bool(plan.changes),
        "repository": params["repository"],
        "id": (known["description"] or {}).get("id", ""),
        "plan": [change.what for change in plan.changes],
        "settings": {key: value for key, value in plan.after.items() if key != "description"},
        **policies(store),
        "diff": {"before": plan.before, "after": plan.after},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        result = run(module.params, module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
