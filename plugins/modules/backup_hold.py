#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_hold
short_description: Keep a backup, whatever the rules of retention are
version_added: 1.0.0
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Notes beside a backup that it is held, why, and until when. M(bitflow.lms.backup_prune) leaves it alone as long as the hold lasts.
  - Each change adds a note, and the last one counts. No note is replaced or deleted, so that no crash loses a hold.
  - In a bucket with object lock the objects of the backup get a legal hold as well. It has no end of its own and is taken away with
    O(state=absent), or when the backup is pruned after O(until).
  - A lifecycle rule of a bucket knows nothing of the notes. Only the legal hold keeps a backup from it.
options:
  kind:
    description:
      - Kind of the backup.
    type: str
    choices: [database, files]
    required: true
  id:
    description:
      - The backup. V(latest) is the newest good one, V(latest_verified) the newest that was restored for a trial, and
        V(before:2026-11-23T10:00:00Z) the newest good one before that time. Anything else is an id.
    type: str
    required: true
  state:
    description:
      - V(present) holds the backup, V(absent) releases it.
    type: str
    choices: [present, absent]
    default: present
  reason:
    description:
      - Why it is held. Required to hold it.
    type: str
  until:
    description:
      - When the hold ends, as a date or a time in ISO 8601, which is UTC where it names no zone. Left out, when it is released.
    type: str
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - bitflow.lms.backup_repository
  - bitflow.lms.backup_name
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  platform:
    platforms: linux
seealso:
  - module: bitflow.lms.backup_info
  - module: bitflow.lms.backup_prune
"""

EXAMPLES = r"""
- name: Keep the last good backup from before the incident
  bitflow.lms.backup_hold:
    repository: /srv/backups
    environment: prod
    kind: database
    name: lms
    id: before:2026-11-23T10:00:00Z
    reason: The incident of 23 November
    until: "2027-11-23"

- name: Give it up to the rules again
  bitflow.lms.backup_hold:
    repository: /srv/backups
    environment: prod
    kind: database
    name: lms
    id: 20261123T020000Z-6f3a91c2
    state: absent
"""

RETURN = r"""
backup:
  description: The backup, with the keys that M(bitflow.lms.backup_info) returns.
  returned: always
  type: dict
  sample: {id: 20261123T020000Z-6f3a91c2, path: prod/database/lms/20261123T020000Z-6f3a91c2, state: verified, held: true}
hold:
  description: The hold after the task, or null.
  returned: always
  type: dict
  contains:
    reason:
      description: Why it is held.
      returned: always
      type: str
      sample: The incident of 23 November
    until:
      description: When the hold ends, or null.
      returned: always
      type: str
      sample: "2027-11-23T00:00:00Z"
    created:
      description: When it was noted.
      returned: always
      type: str
      sample: "2026-11-23T12:00:00Z"
"""

from dataclasses import replace
from datetime import datetime
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import KINDS, check_name, now_utc, read_catalogue, select
from ansible_collections.bitflow.lms.plugins.module_utils._backup_hold import carry_out, plan_hold, plan_release, shown
from ansible_collections.bitflow.lms.plugins.module_utils._backup_repositories import name_argspec, open_store, repository_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Store
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError


def run(store: Store, params: dict[str, Any], check_mode: bool, now: datetime) -> dict[str, Any]:
    """Hold or release the backup, and return the module's result."""
    for option in ("environment", "name"):
        check_name(option, params[option])
    store.facts()
    backup = select(read_catalogue(store, params["environment"], params["kind"], params["name"]).backups, params["id"])
    present = params["state"] == "present"
    plan = plan_hold(backup, params["reason"], params["until"], now) if present else plan_release(backup, now)
    if not check_mode:
        carry_out(store, backup, plan)
    return {
        "changed": plan.record is not None,
        "backup": replace(backup, hold=plan.after).summary(),
        "hold": plan.after,
        "diff": {"before_header": backup.path, "after_header": backup.path, "before": shown(plan.before), "after": shown(plan.after)},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **repository_argspec(),
            **name_argspec(),
            "kind": {"type": "str", "choices": list(KINDS), "required": True},
            "id": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "reason": {"type": "str"},
            "until": {"type": "str"},
        },
        required_if=[("state", "present", ["reason"])],
        supports_check_mode=True,
    )
    try:
        result = run(open_store(module.params), module.params, module.check_mode, now_utc())
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
