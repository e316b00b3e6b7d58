#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pgbackrest
short_description: Back up a PostgreSQL cluster with pgBackRest, and recover it to a moment
version_added: 1.0.0
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Creates a stanza, sees that the write-ahead log (WAL) is archived, makes and verifies backups of a whole cluster, and restores it to a
    moment.
  - What pgBackRest is configured to do stands in its own file, which the role C(bitflow.lms.pgbackrest) writes, with all secrets. The
    module passes none.
  - Every state returns RV(info), which is read from the repositories after the work. A backup counts when it is there, and not when a
    program ended well.
  - It tells what pgBackRest does not. C(pgbackrest verify) ends with status 0 whatever it finds, also with a wrong passphrase; its words
    are read. WAL segments that are missing between others are named; each recovery would end there.
  - A restore replaces the cluster, with all its databases. The data that are there are renamed, and put back if the restore fails,
    unless O(delta=true).
options:
  stanza:
    description:
      - The stanza, as pgBackRest calls a cluster and its backups.
    type: str
    required: true
  state:
    description:
      - V(present) creates the stanza in each repository that lacks it.
      - V(status) only looks.
      - V(checked) sees that archiving works, from PostgreSQL to the repository, and that no segment is missing after the newest backup. It
        makes PostgreSQL begin a new segment.
      - V(backup) makes a backup, unless O(max_age) says that there is one.
      - V(expired) removes what the configured retention does not keep. A backup does that too.
      - V(verified) reads every file of the repositories and compares the checksums.
      - V(restored) restores the cluster, whose server must be stopped. It recovers when it is started next, which is not this module's.
    type: str
    choices: [present, status, checked, backup, expired, verified, restored]
    default: present
  type:
    description:
      - What a backup holds. V(full) everything, V(diff) what changed since the last full one, V(incr) what changed since the last one.
      - Without a full one before it, it becomes full.
    type: str
    choices: [full, diff, incr]
    default: incr
  max_age:
    description:
      - Make no backup when there is one of O(type), or of a stronger type, that is younger than this (seconds). V(0) always makes one.
    type: int
    default: 0
  repository:
    description:
      - The number of the repository that a backup goes to, where there are several. Left out, the first.
    type: int
  archive_timeout:
    description:
      - How long a segment may take to the repository with O(state=checked) (seconds).
    type: int
    default: 60
  target_time:
    description:
      - Recover to this moment, in ISO 8601 with a time zone, such as V(2026-11-23T10:28:35Z). It must be one before the damage, and a
        transaction must have ended after it.
      - Without any target, recover everything that was archived.
    type: str
  target_lsn:
    description:
      - Recover to this place in the log.
    type: str
  target_xid:
    description:
      - Recover to this transaction.
    type: str
  target_name:
    description:
      - Recover to this restore point, which C(pg_create_restore_point) made. If it is older than the newest backup, O(set) is needed.
    type: str
  target_immediate:
    description:
      - Recover to the end of the backup, and no further.
    type: bool
    default: false
  target_inclusive:
    description:
      - Whether the transaction at the target itself is recovered.
    type: bool
    default: true
  target_action:
    description:
      - What PostgreSQL does at the target. V(promote) takes writes; V(pause) lets one look first; V(shutdown) stops.
    type: str
    choices: [promote, pause, shutdown]
    default: promote
  target_timeline:
    description:
      - The timeline to recover along. After a recovery to the wrong moment, the number of the old one leads to what was left out.
      - Left out, the newest.
    type: str
  set:
    description:
      - The label of the backup to begin with. Left out, the newest that ended before the target.
    type: str
  path:
    description:
      - Restore to this directory instead of the cluster's own, to look at it beside the live one. What is restored there does not archive.
      - Its server is to be given a port of its own.
    type: path
  delta:
    description:
      - Rewrite the data in place, only where they differ. Faster and without need of space, but what was there is gone.
      - Needed where the data have tablespaces, or are a file system of their own.
    type: bool
    default: false
  confirm:
    description:
      - Must be the name of the stanza with O(state=restored).
    type: str
  process_max:
    description:
      - Processes that back up or restore at once. Left out, as configured.
    type: int
  config:
    description:
      - pgBackRest's configuration. Left out, C(/etc/pgbackrest/pgbackrest.conf).
    type: path
  login_system_user:
    description:
      - User of the host as whom pgBackRest and psql run.
    type: str
    default: postgres
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details:
      - With O(state=checked) it looks at what the server and the repositories say, and has no segment archived for a trial.
      - With O(state=verified) no file is read. With O(state=restored) what stands in the way is in RV(blocked), and is no failure.
  diff_mode:
    support: full
  platform:
    platforms: linux
seealso:
  - module: bitflow.lms.database_backup
"""

EXAMPLES = r"""
- name: Create the stanza
  bitflow.lms.pgbackrest:
    stanza: lms

- name: Prove that the log is archived
  bitflow.lms.pgbackrest:
    stanza: lms
    state: checked

- name: Have a backup of the last 24 hours
  bitflow.lms.pgbackrest:
    stanza: lms
    state: backup
    type: incr
    max_age: 86400

- name: Read the backups from one end to the other
  bitflow.lms.pgbackrest:
    stanza: lms
    state: verified

- name: Bring the cluster back to a moment, its server being stopped
  bitflow.lms.pgbackrest:
    stanza: lms
    state: restored
    target_time: "2026-11-23T10:28:35Z"
    confirm: lms

- name: Look at that moment beside the live cluster
  bitflow.lms.pgbackrest:
    stanza: lms
    state: restored
    path: /var/lib/postgresql/17/look
    target_time: "2026-11-23T10:28:35Z"
    confirm: lms
"""

RETURN = r"""
stanza:
  description: The stanza.
  returned: always
  type: str
  sample: lms
info:
  description: What the repositories hold, after the work.
  returned: always
  type: dict
  contains:
    status:
      description:
        - V(ok), V(empty) without a backup, V(missing) without the stanza, V(passphrase) where the passphrase is another one, or V(error).
      returned: always
      type: str
      sample: ok
    message:
      description: What pgBackRest says of a repository that cannot be read, else empty.
      returned: always
      type: str
      sample: ""
    backup_running:
      description: Whether a backup is being made.
      returned: always
      type: bool
      sample: false
    database_version:
      description: Major version of PostgreSQL.
      returned: always
      type: str
      sample: "17"
    data_directory:
      description: The cluster's data, or null if the configuration does not name them.
      returned: always
      type: str
      sample: /var/lib/postgresql/17/main
    server_running:
      description: Whether PostgreSQL runs there.
      returned: always
      type: bool
      sample: true
    repositories:
      description: The repositories with their own status.
      returned: always
      type: list
      elements: dict
      sample: [{key: 1, status: ok, message: "", cipher: aes-256-cbc}]
    backups:
      description: The backups, the oldest first.
      returned: always
      type: list
      elements: dict
      sample:
        - label: 20261123-010000F
          type: full
          repository: 1
          started: "2026-11-23T01:00:00Z"
          stopped: "2026-11-23T01:02:10Z"
          size: 25479582
          stored_size: 2799576
          wal_start: "000000010000000000000002"
          wal_stop: "000000010000000000000003"
          lsn_start: 0/2000028
          lsn_stop: 0/3000050
          damaged: false
    newest:
      description: The newest backup with its RV(ignore:age) in seconds, or null.
      returned: always
      type: dict
      sample: {label: 20261123-010000F, type: full, age: 33985}
    newest_full:
      description: The same of the newest full one.
      returned: always
      type: dict
      sample: {label: 20261123-010000F, type: full, age: 33985}
    archive:
      description: What each repository has of the log since the oldest backup, and what it lacks.
      returned: always
      type: list
      elements: dict
      sample:
        - repository: 1
          segments: 12
          first: "000000010000000000000002"
          last: 00000001000000000000000D
          newest: "2026-11-23T10:25:00Z"
          missing: []
          missing_since_newest_backup: 0
    recoverable_since:
      description: From when on every moment can be recovered, or null.
      returned: always
      type: str
      sample: "2026-11-23T01:02:10Z"
    recoverable_until:
      description: When the newest segment came into a repository, or null. What PostgreSQL wrote after that is in its own files alone.
      returned: always
      type: str
      sample: "2026-11-23T10:25:00Z"
archiver:
  description: What PostgreSQL says of its archiving, or null if it cannot be asked. RV(ignore:failing) is whether the last try failed.
  returned: always
  type: dict
  sample:
    in_recovery: false
    archive_mode: "on"
    archive_command: pgbackrest --stanza=lms archive-push %p
    archived: 14
    failed: 0
    last_archived: 00000001000000000000000D
    last_archived_time: "2026-11-23T10:25:00Z"
    last_failed: null
    last_failed_time: null
    failing: false
waiting:
  description: Segments that PostgreSQL has still to hand over, and for how many seconds the oldest has waited.
  returned: always
  type: dict
  sample: {segments: 0, oldest: 0}
plan:
  description: What was run, or would be in check mode.
  returned: always
  type: list
  elements: str
  sample: [pgbackrest --stanza=lms --type=incr backup]
blocked:
  description: In check mode why O(state=restored) would be refused, else empty.
  returned: always
  type: list
  elements: str
  sample: []
backup:
  description: The backup that was made, that is young enough, or that is restored, as in RV(info.backups), else null.
  returned: always
  type: dict
  sample: null
verification:
  description: What O(state=verified) found, with RV(ignore:problems) and RV(ignore:duration_s), else null. It is returned by a failure too.
  returned: always
  type: dict
  sample: null
restore:
  description: What is restored, else null. RV(ignore:previous) is where the data are that were there.
  returned: always
  type: dict
  sample:
    set: 20261123-010000F
    set_stopped: "2026-11-23T01:02:10Z"
    type: time
    target: "2026-11-23 10:28:35.000000+00"
    path: /var/lib/postgresql/17/main
    previous: /var/lib/postgresql/17/main.before_20261123T104000Z
    size: 25479582
    duration_s: 2.6
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._pgbackrest import (
    Pgbackrest,
    back_up,
    check,
    create,
    expire,
    run_as,
    status,
    verify,
)
from ansible_collections.bitflow.lms.plugins.module_utils._pgbackrest_restore import restore


def run(tool: Pgbackrest, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Bring the stanza into the state that is asked for, and return the module's result."""
    state = params["state"]
    if state == "present":
        return create(tool, check_mode)
    if state == "checked":
        return check(tool, check_mode, params["archive_timeout"])
    if state == "backup":
        options = [f"--process-max={params['process_max']}"] if params["process_max"] else []
        return back_up(tool, check_mode, params["type"], params["max_age"], params["repository"] or 0, options)
    if state == "expired":
        return expire(tool, check_mode)
    if state == "verified":
        return verify(tool, check_mode)
    if state == "restored":
        return restore(tool, params, check_mode)
    return status(tool)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "stanza": {"type": "str", "required": True},
            "state": {
                "type": "str",
                "choices": ["present", "status", "checked", "backup", "expired", "verified", "restored"],
                "default": "present",
            },
            "type": {"type": "str", "choices": ["full", "diff", "incr"], "default": "incr"},
            "max_age": {"type": "int", "default": 0},
            "repository": {"type": "int"},
            "archive_timeout": {"type": "int", "default": 60},
            "target_time": {"type": "str"},
            "target_lsn": {"type": "str"},
            "target_xid": {"type": "str"},
            "target_name": {"type": "str"},
            "target_immediate": {"type": "bool", "default": False},
            "target_inclusive": {"type": "bool", "default": True},
            "target_action": {"type": "str", "choices": ["promote", "pause", "shutdown"], "default": "promote"},
            "target_timeline": {"type": "str"},
            "set": {"type": "str"},
            "path": {"type": "path"},
            "delta": {"type": "bool", "default": False},
            "confirm": {"type": "str"},
            "process_max": {"type": "int"},
            "config": {"type": "path"},
            "login_system_user": {"type": "str", "default": "postgres"},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        tool = Pgbackrest(params["stanza"], run=run_as(params["login_system_user"]), config=params["config"] or "")
        result = run(tool, params, module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
