#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: database_backup
short_description: Back up a database in one stream, counted and published last
version_added: 1.0.0
description:
  - Dumps a PostgreSQL, MariaDB or MySQL database of this host or of another one, such as an endpoint of RDS, into a repository. The dump
    is compressed, encrypted and hashed on its way; nothing is spooled to disk.
  - The rows of every table are counted in the snapshot that the dump is taken from, so that M(bitflow.lms.backup_verify) can compare a
    trial restore exactly although the application went on writing.
  - The manifest is written last. A run that fails, is killed or loses its connection leaves nothing that looks like a backup, and
    earlier backups as they were. The next run clears away what it left.
  - Every program of the pipe has to end well, the server's session has to be alive at the end, and the repository has to hold as many
    bytes as were sent. Anything else fails the task.
  - A backup that is much smaller than the previous one is kept, but is suspicious, and does not count as good.
  - One run at a time works on a database, whatever host it is on. The locks end with the process and its session.
options:
  record:
    description:
      - What the manifest notes of each table. V(checksums) sums the content of every row, which costs about half as much processor time
        as the dump.
    type: str
    choices: [counts, checksums, none]
    default: counts
  consistency:
    description:
      - V(exact) counts in the dump's own snapshot. On MariaDB and MySQL all writes wait for a moment, which O(lock_timeout) limits; when
        that cannot be had, the run goes on as V(fast) and warns.
      - V(fast) counts beside the dump. Nothing waits, but the counts are approximate.
      - The dump itself is consistent either way.
    type: str
    choices: [exact, fast]
    default: exact
  exclude_table_data:
    description:
      - Tables whose definition is dumped without their rows, such as V(sessions) or V(telescope_*).
    type: list
    elements: str
    default: []
  globals:
    description:
      - Also dump roles or users. A restore creates only those that are missing.
    type: bool
    default: true
  max_age:
    description:
      - Do nothing when a good backup younger than this exists (seconds). V(0) always makes one.
    type: int
    default: 0
  max_shrink_percent:
    description:
      - A backup with this many percent fewer rows or bytes than the previous good one is suspicious.
    type: int
    default: 50
  min_free:
    description:
      - Room that has to stay in a repository on disk, beside what the backup takes (bytes).
    type: int
    default: 0
  lock_timeout:
    description:
      - How long to wait for a lock of the server, and how long writes may wait for it (seconds).
    type: float
    default: 10
  when_locked:
    description:
      - What to do when another run works on the same database.
    type: str
    choices: [fail, skip]
    default: fail
  timeout:
    description:
      - End a dump that takes longer (seconds). Without it, there is no limit.
    type: int
  rate_limit:
    description:
      - Bytes a second that are written to the repository at most.
    type: int
  nice:
    description:
      - By how much the programs give way to others (C(nice)).
    type: int
    default: 10
  compression_level:
    description:
      - Level of zstd.
    type: int
    default: 3
  compression_threads:
    description:
      - Threads of zstd, where it compresses beside the dump program. V(0) takes one for each processor.
    type: int
    default: 1
  labels:
    description:
      - Words of your own for the manifest, such as the release that was live.
    type: dict
    default: {}
  progress_file:
    description:
      - Where to note how far the run is. The action plugin sets and reads it.
    type: path
extends_documentation_fragment:
  - bitflow.lms.backup_encryption
  - bitflow.lms.backup_name
  - bitflow.lms.backup_repository
  - bitflow.lms.database_login
attributes:
  check_mode:
    description: Makes every check, and says what would be done. Nothing is written.
    support: full
  diff_mode:
    description: Shows which backup is the newest good one before and after.
    support: full
seealso:
  - module: bitflow.lms.backup_verify
  - module: bitflow.lms.backup_restore
  - module: bitflow.lms.backup_prune
author:
  - Bitflow LMS contributors (@bitflow)
"""

EXAMPLES = r"""
- name: Back up the database of this host every night
  bitflow.lms.database_backup:
    repository: /var/backups/lms
    environment: prod
    name: lms
    engine: postgresql
    login_system_user: postgres
    encryption:
      recipients: "{{ lms_backup_recipients }}"

- name: Back up a database of RDS to a bucket, unless today's is there
  bitflow.lms.database_backup:
    repository: s3://example-backups/lms
    environment: prod
    name: lms
    engine: postgresql
    login_host: lms.example.com
    login_user: lms
    login_password: "{{ vault_database_password }}"
    ssl_mode: verify-full
    record: checksums
    max_age: 72000
    encryption:
      recipients: "{{ lms_backup_recipients }}"

- name: See whether a backup could be made
  bitflow.lms.database_backup:
    repository: /var/backups/lms
    environment: prod
    name: lms
    engine: mysql
  check_mode: true
"""

RETURN = r"""
backup:
  description: The backup that was made, or that is young enough. None in check mode and when another run is at work.
  returned: always
  type: dict
  contains:
    id:
      description: Its time and eight digits.
      returned: always
      type: str
      sample: 20261123T102835Z-6f3a91c2
    environment:
      description: The environment.
      returned: always
      type: str
      sample: prod
    kind:
      description: What it holds.
      returned: always
      type: str
      sample: database
    name:
      description: The database.
      returned: always
      type: str
      sample: lms
    path:
      description: Where it lies in the repository.
      returned: always
      type: str
      sample: prod/database/lms/20261123T102835Z-6f3a91c2
    time:
      description: When it began (ISO 8601, UTC).
      returned: always
      type: str
      sample: "2026-11-23T10:28:35Z"
    state:
      description: C(complete), C(suspicious), C(verified) or C(corrupt).
      returned: always
      type: str
      sample: complete
    verified:
      description: When it was last restored for a trial and found equal (ISO 8601, UTC).
      returned: always
      type: str
      sample: null
    held:
      description: Whether something holds it.
      returned: always
      type: bool
      sample: false
    size:
      description: Room that it takes (bytes).
      returned: always
      type: int
      sample: 418381824
    raw_size:
      description: Size of the dump before its compression (bytes), where that is known.
      returned: always
      type: int
      sample: 1377894400
    duration:
      description: How long it took (seconds).
      returned: always
      type: float
      sample: 9.7
    rows:
      description: Rows of all tables that were counted.
      returned: always
      type: int
      sample: 5123000
    labels:
      description: The words of O(labels).
      returned: always
      type: dict
      sample: {release: 20261123090000-0a1b2c3}
    fault:
      description: Why it is corrupt; otherwise nothing.
      returned: always
      type: str
      sample: ""
plan:
  description: What was found beforehand.
  returned: always
  type: dict
  contains:
    server:
      description: Flavour and version of the server, and the version of the client.
      returned: always
      type: dict
      sample: {flavour: postgresql, version: "17.12", client_version: "17.12"}
    database_size:
      description: Size of the database (bytes).
      returned: always
      type: int
      sample: 1442840576
    estimated_size:
      description: Size that the backup will have (bytes).
      returned: always
      type: int
      sample: 418000000
    estimated_duration:
      description: How long it took the last time (seconds).
      returned: always
      type: float
      sample: 9.6
    estimated_from:
      description: The backup that the estimate follows from. Without one it is a guess.
      returned: always
      type: str
      sample: 20261122T102835Z-0a1b2c3d
    repository:
      description: What is known of the repository, such as its room and its object lock.
      returned: always
      type: dict
      sample: {type: directory, free: 92341796864, object_lock: null, versioning: null}
    previous:
      description: The newest good backup until now, as RV(backup).
      returned: always
      type: dict
      sample: null
    partials:
      description: What interrupted runs had left in the repository.
      returned: always
      type: list
      elements: str
      sample: []
    swept:
      description: Those of them that were removed.
      returned: always
      type: list
      elements: str
      sample: []
    skipped_reason:
      description: Why no backup was made.
      returned: always
      type: str
      sample: ""
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._backup_encryption import encryption_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._backup_repositories import name_argspec, open_store, repository_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._database import engine_for
from ansible_collections.bitflow.lms.plugins.module_utils._database_backup import Settings, run, settings_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._database_login import login_argspec, login_from
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._progress import Progress


def main() -> None:
    """Read the options, make the backup, report."""
    module = AnsibleModule(
        argument_spec={
            **repository_argspec(),
            **name_argspec(),
            **login_argspec(),
            **encryption_argspec(),
            **settings_argspec(),
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    try:
        settings = Settings.from_options(module.params)
        store, engine = open_store(module.params), engine_for(login_from(module.params))
        outcome = run(settings, store, engine, check_mode=module.check_mode, progress=Progress(module.params["progress_file"]))
    except LmsError as error:
        module.fail_json(**error.as_result())
    for warning in outcome.warnings:
        module.warn(warning)
    module.exit_json(changed=outcome.changed, backup=outcome.backup, plan=outcome.plan, diff=dict(outcome.diff))


if __name__ == "__main__":
    main()
