#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_info
short_description: List backups, and tell how old the newest good and the newest verified one are
version_added: 1.0.0
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Reads a repository, all of it or an environment, a kind and a name of it. Changes nothing.
  - Every backup is looked at as far as its records tell; the data is not read. M(bitflow.lms.backup_verify) does that.
  - An age beyond a limit is no failure. Compare RV(names[].age) with what you expect.
options:
  environment:
    description:
      - Look at this environment only.
    type: str
    required: false
  kind:
    description:
      - Look at this kind only.
    type: str
    choices: [database, files]
  name:
    description:
      - Look at the backups of this database or set of files only.
    type: str
    required: false
  states:
    description:
      - List only backups in one of these states. RV(names) and RV(totals) count all.
      - V(complete) and V(verified) ones are good. V(verified) was restored for a trial, V(suspicious) is complete, but too small to be
        true, and of V(corrupt) something is gone or was changed.
    type: list
    elements: str
    choices: [complete, verified, suspicious, corrupt]
    default: [complete, verified, suspicious, corrupt]
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - bitflow.lms.backup_repository
  - bitflow.lms.backup_name
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  platform:
    platforms: linux
seealso:
  - module: bitflow.lms.backup_metrics
  - module: bitflow.lms.backup_prune
"""

EXAMPLES = r"""
- name: Look at the backups of the database
  bitflow.lms.backup_info:
    repository: /srv/backups
    environment: prod
    kind: database
    name: lms
  register: found

- name: Go on only with a verified backup of the last week
  ansible.builtin.assert:
    that:
      - found.names[0].newest_verified
      - found.names[0].verified_age < 7 * 86400

- name: List what is wrong in the whole repository
  bitflow.lms.backup_info:
    repository: s3://example-backups/lms
    states: [suspicious, corrupt]
"""

RETURN = r"""
backups:
  description: The backups, sorted by environment, kind, name and time.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: When it began, and eight digits.
      returned: always
      type: str
      sample: 20261123T020000Z-6f3a91c2
    environment:
      description: Its environment.
      returned: always
      type: str
      sample: prod
    kind:
      description: Its kind.
      returned: always
      type: str
      sample: database
    name:
      description: The database, or the set of files.
      returned: always
      type: str
      sample: lms
    path:
      description: Where it lies in the repository.
      returned: always
      type: str
      sample: prod/database/lms/20261123T020000Z-6f3a91c2
    time:
      description: When it began.
      returned: always
      type: str
      sample: "2026-11-23T02:00:00Z"
    age:
      description: Seconds since then.
      returned: always
      type: int
      sample: 30515
    state:
      description: One of the O(states).
      returned: always
      type: str
      sample: verified
    verified:
      description: When it was last restored for a trial and found equal, or null.
      returned: always
      type: str
      sample: "2026-11-23T04:00:00Z"
    held:
      description: Whether M(bitflow.lms.backup_hold) holds it.
      returned: always
      type: bool
      sample: false
    hold_reason:
      description: Why it is held, or null.
      returned: always
      type: str
      sample: null
    hold_until:
      description: When the hold ends, or null.
      returned: always
      type: str
      sample: null
    size:
      description: Bytes that it takes.
      returned: always
      type: int
      sample: 418119680
    raw_size:
      description: Bytes before they were compressed, or null where nobody counted them.
      returned: always
      type: int
      sample: 1377828864
    duration:
      description: Seconds that it took, or null.
      returned: always
      type: float
      sample: 10.4
    rows:
      description: Rows of all tables, or null for files.
      returned: always
      type: int
      sample: 5123000
    labels:
      description: The labels that it was given.
      returned: always
      type: dict
      sample: {release: 20261123010000-0a1b2c3}
    fault:
      description: Why it is corrupt, else empty.
      returned: always
      type: str
      sample: ""
names:
  description: For each environment, kind and name the newest backups and sums. A name that was given has its row in any case.
  returned: always
  type: list
  elements: dict
  contains:
    environment:
      description: The environment.
      returned: always
      type: str
      sample: prod
    kind:
      description: The kind.
      returned: always
      type: str
      sample: database
    name:
      description: The name.
      returned: always
      type: str
      sample: lms
    newest_good:
      description: The newest good backup, with the keys of RV(backups), or null.
      returned: always
      type: dict
      sample: {id: 20261123T020000Z-6f3a91c2, state: complete, age: 30515}
    newest_verified:
      description: The newest verified backup, with the keys of RV(backups), or null.
      returned: always
      type: dict
      sample: {id: 20261122T020000Z-1c26f3a9, state: verified, age: 116915}
    age:
      description: Seconds since the newest good backup began, or null.
      returned: always
      type: int
      sample: 30515
    verified_age:
      description: Seconds since the newest verified backup began, or null.
      returned: always
      type: int
      sample: 116915
    good:
      description: Number of good backups.
      returned: always
      type: int
      sample: 20
    backups:
      description: Number of all backups.
      returned: always
      type: int
      sample: 21
    partials:
      description: Number of unfinished backups.
      returned: always
      type: int
      sample: 0
    size:
      description: Bytes that the backups take.
      returned: always
      type: int
      sample: 8362393600
partials:
  description: What interrupted backups left, and what is being written.
  returned: always
  type: list
  elements: dict
  contains:
    path:
      description: Where the backup would lie.
      returned: always
      type: str
      sample: prod/database/lms/20261120T020000Z-0a1b2c3d
    started:
      description: When it began.
      returned: always
      type: str
      sample: "2026-11-20T02:00:00Z"
    age:
      description: Seconds since then.
      returned: always
      type: int
      sample: 289715
    size:
      description: Bytes, as far as they are known.
      returned: always
      type: int
      sample: 104857600
    active:
      description: Whether it is certainly being written.
      returned: always
      type: bool
      sample: false
totals:
  description: Sums over everything that was read.
  returned: always
  type: dict
  sample: {backups: 21, complete: 17, verified: 3, suspicious: 1, corrupt: 0, partials: 0, size: 8362393600}
"""

from datetime import datetime
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import KINDS, check_name, now_utc
from ansible_collections.bitflow.lms.plugins.module_utils._backup_info import STATES, overview, read_filtered
from ansible_collections.bitflow.lms.plugins.module_utils._backup_repositories import open_store, repository_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Store
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

FILTERS = ("environment", "kind", "name")


def run(store: Store, params: dict[str, Any], now: datetime) -> dict[str, Any]:
    """Read what is asked for, and return the module's result."""
    for option in ("environment", "name"):
        if params[option]:
            check_name(option, params[option])
    filters = [params[option] or "" for option in FILTERS]
    wanted = "/".join(filters) if all(filters) else ""
    return {"changed": False, **overview(read_filtered(store, filters), now, params["states"], wanted)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **repository_argspec(),
            "environment": {"type": "str"},
            "kind": {"type": "str", "choices": list(KINDS)},
            "name": {"type": "str"},
            "states": {"type": "list", "elements": "str", "choices": list(STATES), "default": list(STATES)},
        },
        supports_check_mode=True,
    )
    try:
        result = run(open_store(module.params), module.params, now_utc())
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
