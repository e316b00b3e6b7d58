#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_verify
short_description: Prove backups by restoring them
version_added: 1.0.0
description:
  - Reads a backup and notes in the repository what came of it. At the level V(restore) it is restored into a scratch database, whose
    tables are compared with the manifest, row for row counted and, where the backup has checksums, summed.
  - Whatever differs is named with both figures, and fails the task after it was noted. From then on the backup is corrupt; it is neither
    restored nor counted by M(bitflow.lms.backup_prune).
  - A failure of the server, of the network or of a key says nothing of the backup. It fails the task, and nothing is noted.
  - Nothing that was there before is touched. The scratch database is dropped whatever happens; after a run that was killed the next run
    drops it. Only databases whose name begins with O(scratch_prefix) and whose comment says that this module made them are ever dropped.
  - The rows of a backup that was made with C(consistency=fast) are not compared, because its counts are approximate.
options:
  kind:
    description:
      - What the backup holds.
    type: str
    choices: [database, files]
    default: database
  backup:
    description:
      - Which backup. V(latest) is the newest good one, V(latest_verified) the newest that was proven, C(before:<time>) the newest good one
        before a time (ISO 8601, UTC without a zone), or an id.
      - V(all) takes all, the newest first. V(sample) takes any one of those that O(max_age) does not exempt.
    type: str
    default: latest
  level:
    description:
      - How far to look. V(manifest) compares the sizes of the objects. V(checksum) reads them and compares their SHA-256. V(decode) also
        decrypts and decompresses them and reads the dump or archive to its end. V(restore) also restores and compares.
      - Only V(restore) proves a backup. It is for databases; it needs O(engine) and a server that is not older than the backup's.
      - Left out, it is V(restore) for databases and V(decode) for files.
    type: str
    choices: [manifest, checksum, decode, restore]
  max_age:
    description:
      - Leave a backup alone that was found good at this level or a deeper one less than this ago (seconds). V(0) always looks.
    type: int
    default: 0
  scratch_prefix:
    description:
      - How the names of scratch databases begin; eight digits follow. The login needs to be allowed to create and drop them.
    type: str
    default: lms_verify_
  keep_scratch:
    description:
      - Keep the scratch database, to look at it. It is dropped by the first run that comes a day later.
    type: bool
    default: false
  engine:
    description:
      - Which clients speak to the server on which the trial is made. Required for the level V(restore).
    type: str
    choices: [postgresql, mysql]
    required: false
  progress_file:
    description:
      - Where to note how far the run is. The action plugin sets and reads it.
    type: path
extends_documentation_fragment:
  - bitflow.lms.backup_encryption.identity
  - bitflow.lms.backup_name
  - bitflow.lms.backup_repository
  - bitflow.lms.database_login
attributes:
  check_mode:
    description: Makes every check but reads no data, and says what would be looked at. Nothing is written.
    support: full
  diff_mode:
    description: Shows the states of the backups before and after.
    support: full
seealso:
  - module: bitflow.lms.database_backup
  - module: bitflow.lms.backup_restore
author:
  - Bitflow LMS contributors (@bitflow)
"""

EXAMPLES = r"""
- name: Prove the newest backup, once a week
  bitflow.lms.backup_verify:
    repository: /var/backups/lms
    environment: prod
    name: lms
    engine: postgresql
    login_system_user: postgres
    identity: "{{ vault_backup_identity }}"
    max_age: 600000

- name: Read every backup of the bucket and compare the sums
  bitflow.lms.backup_verify:
    repository: s3://example-backups/lms
    environment: prod
    name: lms
    backup: all
    level: checksum

- name: Read the newest backup of the uploads to its end
  bitflow.lms.backup_verify:
    repository: /var/backups/lms
    environment: prod
    kind: files
    name: uploads
    identity_file: /etc/lms/backup.identity
"""

RETURN = r"""
backup:
  description:
    - The first backup that was looked at, or that is meant, as M(bitflow.lms.database_backup) returns it. Its state is the one after the
      look.
  returned: always
  type: dict
  sample: {id: 20261123T102835Z-6f3a91c2, state: verified, verified: "2026-11-23T11:02:10Z", rows: 5123000}
verifications:
  description: What was looked at and noted, in this order. Empty in check mode and where nothing was due.
  returned: always
  type: list
  elements: dict
  contains:
    backup:
      description: The backup, as RV(backup).
      returned: always
      type: dict
      sample: {id: 20261123T102835Z-6f3a91c2, state: verified}
    record:
      description: Where it is noted in the repository.
      returned: always
      type: str
      sample: prod/database/lms/20261123T102835Z-6f3a91c2/verify-20261123T110210Z-restore-0c1d2e3f.json
    level:
      description: How far was looked.
      returned: always
      type: str
      sample: restore
    ok:
      description: Whether nothing differs.
      returned: always
      type: bool
      sample: true
    mismatches:
      description: What differs, as sentences.
      returned: always
      type: list
      elements: str
      sample: []
    compared:
      description: Whether rows were compared.
      returned: always
      type: bool
      sample: true
    tables:
      description: Tables that were restored.
      returned: always
      type: int
      sample: 42
    rows:
      description: Rows that were restored.
      returned: always
      type: int
      sample: 5123000
    duration:
      description: How long it took (seconds).
      returned: always
      type: float
      sample: 41.2
    rto_seconds:
      description: How long it took to have the data back on this server and compared (seconds).
      returned: always
      type: float
      sample: 38.7
    scratch:
      description: The scratch database that was kept.
      returned: always
      type: str
      sample: null
mismatches:
  description: What differs in all of them.
  returned: always
  type: list
  elements: str
  sample: []
plan:
  description: What is done with each backup that is meant, as sentences.
  returned: always
  type: list
  elements: str
  sample: ["Backup 20261123T102835Z-6f3a91c2 was verified at 2026-11-23T11:02:10Z (level restore), within max_age."]
swept:
  description: Scratch databases that were dropped because the run that made them had died, or their time was over.
  returned: always
  type: list
  elements: str
  sample: []
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import KINDS, LEVELS
from ansible_collections.bitflow.lms.plugins.module_utils._backup_encryption import identity_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._backup_making import ended_in_order
from ansible_collections.bitflow.lms.plugins.module_utils._backup_repositories import name_argspec, open_store, repository_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._backup_verify import Settings, run
from ansible_collections.bitflow.lms.plugins.module_utils._database import engine_for
from ansible_collections.bitflow.lms.plugins.module_utils._database_login import ENGINES, login_argspec, login_from
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._progress import Progress


def main() -> None:
    """Read the options, look at the backups, report."""
    module = AnsibleModule(
        argument_spec={
            **repository_argspec(),
            **name_argspec(),
            **login_argspec(),
            **identity_argspec(),
            "kind": {"type": "str", "choices": list(KINDS), "default": "database"},
            "backup": {"type": "str", "default": "latest"},
            "level": {"type": "str", "choices": list(LEVELS)},
            "max_age": {"type": "int", "default": 0},
            "scratch_prefix": {"type": "str", "default": "lms_verify_"},
            "keep_scratch": {"type": "bool", "default": False},
            "engine": {"type": "str", "choices": list(ENGINES)},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        settings = Settings.from_options(params)
        store, engine = open_store(params), engine_for(login_from(params)) if settings.level == "restore" else None
        with ended_in_order():
            outcome = run(settings, store, engine, params, check_mode=module.check_mode, progress=Progress(params["progress_file"]))
    except LmsError as error:
        module.fail_json(**error.as_result())
    for warning in outcome.warnings:
        module.warn(warning)
    if outcome.failure:
        module.fail_json(msg=outcome.failure, **outcome.as_result())
    module.exit_json(**outcome.as_result())


if __name__ == "__main__":
    main()
