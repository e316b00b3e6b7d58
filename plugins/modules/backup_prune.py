#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_prune
short_description: Delete backups that no rule keeps, and never the last good one
version_added: 1.0.0
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Deletes what no rule of O(keep) keeps, for each name on its own. Only good backups count, which are complete, and neither suspicious
    nor found corrupt. Whatever the rules are, the newest good and the newest verified backup stay.
  - Suspicious and corrupt backups fill no place of a rule. They are kept for O(suspicious_max_age) to be looked at.
  - Where the newest good backup of a name is older than O(stale_guard), or no backup is good, nothing of that name is deleted, and the
    task fails with the reason, after it has pruned the other names. Where a backup is from the future, the clock is wrong, and nothing at
    all is deleted.
  - A backup that M(bitflow.lms.backup_hold) holds, or that the repository has locked, is left alone and told in RV(left_alone).
  - Removes what interrupted backups left, once it is older than O(partial_max_age). What is being written is left alone.
  - Of each backup the manifest is deleted first. A run that is killed leaves nothing that looks like a backup, and the next one sweeps it.
options:
  kind:
    description:
      - Kind of the backups.
    type: str
    choices: [database, files]
    required: true
  name:
    description:
      - Name of the database, or of the set of files. Left out, all names of the environment and kind are looked at.
    type: str
    required: false
  keep:
    description:
      - Which good backups stay. What one rule keeps no other takes away. At least one has to be more than 0.
      - Periods are those of UTC, and of each that has a good backup the newest one is kept.
    type: dict
    required: true
    suboptions:
      last:
        description:
          - How many of the newest.
        type: int
        default: 0
      hourly:
        description:
          - For how many hours.
        type: int
        default: 0
      daily:
        description:
          - For how many days.
        type: int
        default: 0
      weekly:
        description:
          - For how many weeks, which begin on Monday.
        type: int
        default: 0
      monthly:
        description:
          - For how many months.
        type: int
        default: 0
      yearly:
        description:
          - For how many years.
        type: int
        default: 0
      within:
        description:
          - All that are not older than this. Seconds, or a number with V(s), V(m), V(h), V(d) or V(w), such as V(30d).
        type: str
        default: "0"
  min_good:
    description:
      - How many of the newest good backups stay in any case. 1 at least.
    type: int
    default: 2
  min_verified:
    description:
      - How many of the newest verified backups stay in any case. 1 at least.
    type: int
    default: 1
  stale_guard:
    description:
      - Age of the newest good backup beyond which nothing is deleted. Seconds, or a number with a unit as in O(keep.within).
      - Choose more than the time between two backups. Backups that are made each week need more than V(7d).
    type: str
    default: 3d
  partial_max_age:
    description:
      - Age from which on what an interrupted backup left is removed. Choose more than the longest backup takes.
    type: str
    default: 24h
  suspicious_max_age:
    description:
      - Age from which on suspicious and corrupt backups are deleted.
    type: str
    default: 14d
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - bitflow.lms.backup_repository
  - bitflow.lms.backup_name
attributes:
  check_mode:
    support: full
    details:
      - Returns the plan. That nothing may be deleted is a warning then, and no failure.
  diff_mode:
    support: full
  platform:
    platforms: linux
seealso:
  - module: bitflow.lms.backup_hold
  - module: bitflow.lms.backup_info
  - module: bitflow.lms.backup_verify
"""

EXAMPLES = r"""
- name: Keep a week of days, a month of weeks and a year of months
  bitflow.lms.backup_prune:
    repository: /srv/backups
    environment: prod
    kind: database
    keep:
      daily: 7
      weekly: 4
      monthly: 12

- name: Keep ninety days of the weekly backups of the uploads
  bitflow.lms.backup_prune:
    repository: s3://example-backups/lms
    environment: prod
    kind: files
    name: uploads
    keep:
      within: 90d
    stale_guard: 10d
"""

RETURN = r"""
kept:
  description: The backups that stay, each with the keys that M(bitflow.lms.backup_info) returns and with C(reason).
  returned: always
  type: list
  elements: dict
  sample:
    - {id: 20261123T102835Z-6f3a91c2, path: prod/database/lms/20261123T102835Z-6f3a91c2, reason: "newest good, daily 2026-11-23"}
deleted:
  description: The backups that were deleted, with the same keys. In check mode those that would be.
  returned: always
  type: list
  elements: dict
  sample:
    - {id: 20261023T102835Z-91c26f3a, path: prod/database/lms/20261023T102835Z-91c26f3a, reason: no rule keeps it}
left_alone:
  description: What no rule keeps, but is held or locked, with the reason.
  returned: always
  type: list
  elements: dict
  contains:
    path:
      description: The backup, or the object of one whose other objects were deleted.
      returned: always
      type: str
      sample: prod/database/lms/20261001T020000Z-0a1b2c3d
    reason:
      description: Why it was left alone.
      returned: always
      type: str
      sample: "held: the audit of 2026"
aborted_uploads:
  description: What interrupted backups had left and was removed.
  returned: always
  type: list
  elements: dict
  contains:
    path:
      description: The backup that was not finished.
      returned: always
      type: str
      sample: prod/database/lms/20261120T020000Z-0a1b2c3d
    size:
      description: Its size in bytes, as far as it is known.
      returned: always
      type: int
      sample: 104857600
freed:
  description: Bytes that were freed. A bucket with versions frees them when its lifecycle ends what was deleted.
  returned: always
  type: int
  sample: 418119680
blocked:
  description: Why nothing of a name, or nothing at all, is deleted, else empty. The task fails with it, except in check mode.
  returned: always
  type: str
  sample: ""
"""

from datetime import datetime
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import KINDS, check_name, now_utc, read_catalogue
from ansible_collections.bitflow.lms.plugins.module_utils._backup_prune import as_result, carry_out, foresee, respect_locks
from ansible_collections.bitflow.lms.plugins.module_utils._backup_repositories import name_argspec, open_store, repository_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._backup_retention import COUNTS, Rules, make_plan
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Store
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError


def run(store: Store, params: dict[str, Any], check_mode: bool, now: datetime) -> dict[str, Any]:
    """Delete what no rule keeps, and return the module's result."""
    rules = Rules.of(params)
    check_name("environment", params["environment"])
    if params["name"]:
        check_name("name", params["name"])
    store.facts()
    catalogue = read_catalogue(store, params["environment"], params["kind"], params["name"] or "")
    plan = respect_locks(store, make_plan(catalogue, rules, now), now)
    return as_result(plan, foresee(plan) if check_mode else carry_out(store, plan))


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **repository_argspec(),
            **name_argspec(),
            "name": {"type": "str"},
            "kind": {"type": "str", "choices": list(KINDS), "required": True},
            "keep": {
                "type": "dict",
                "required": True,
                "options": {**{name: {"type": "int", "default": 0} for name in COUNTS}, "within": {"type": "str", "default": "0"}},
            },
            "min_good": {"type": "int", "default": 2},
            "min_verified": {"type": "int", "default": 1},
            "stale_guard": {"type": "str", "default": "3d"},
            "partial_max_age": {"type": "str", "default": "24h"},
            "suspicious_max_age": {"type": "str", "default": "14d"},
        },
        supports_check_mode=True,
    )
    try:
        result = run(open_store(module.params), module.params, module.check_mode, now_utc())
    except LmsError as error:
        module.fail_json(**error.as_result())
    if result["blocked"] and not module.check_mode:
        module.fail_json(msg=result["blocked"], **result)
    if result["blocked"]:
        module.warn(result["blocked"])
    module.exit_json(**result)


if __name__ == "__main__":
    main()
