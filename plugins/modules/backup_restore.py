#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_restore
short_description: Bring a database back from its backup
version_added: 1.0.0
description:
  - Restores a backup into a new database, beside the live one, and compares it with the manifest. Only then, and only with O(mode=swap)
    and O(confirm), it takes the live database's place, which is a matter of renaming. The former database is kept.
  - Size and SHA-256 of the backup are checked while it is read. A backup that is corrupt is refused, one that is suspicious as well
    unless O(accept_suspicious) is set.
  - Until everything was restored and compared, what serves is not touched. A restore that fails drops what it made, and nothing else.
  - A database that is being restored says so in its comment. When the run was killed, the next one knows it by that, drops it and begins
    anew. It is never swapped in.
  - Nothing is pruned, and no database is dropped that a restore did not make. Dropping the former database is left to you.
options:
  backup:
    description:
      - Which backup. V(latest) is the newest good one, V(latest_verified) the newest that M(bitflow.lms.backup_verify) restored and found
        equal, C(before:<time>) the newest good one before a time (ISO 8601, UTC without a zone), or an id.
    type: str
    required: true
  database:
    description:
      - With O(mode=new) the database to make. Left out, it is C(<name>__r_<id>).
      - Otherwise the live database. Left out, it is O(name).
    type: str
  mode:
    description:
      - V(new) makes a new database. One of this name that was restored from this backup already is no change; any other one is refused.
      - V(swap) restores into C(<database>__r_<id>), or takes what V(new) left there, and puts it in the place of the live database. That is
        kept as C(<database>__before_<time>). Connections to the live database are ended.
      - V(tables) restores only O(tables), into C(<database>__t_<id>), to look at them and to copy rows from them. With O(confirm), those
        of them that the live database lacks are then restored there as well; a table that is there is never written to, whatever is in it.
      - On PostgreSQL, V(tables) leaves out foreign keys that lead to or from tables that are not among O(tables).
    type: str
    choices: [new, swap, tables]
    default: new
  tables:
    description:
      - Tables to restore, for O(mode=tables). Where several schemas have one of the name, with the schema.
    type: list
    elements: str
    default: []
  globals:
    description:
      - V(missing) creates the roles or users of the backup that the server lacks, before anything else. Those that exist are not changed.
    type: str
    choices: [none, missing]
    default: none
  owners:
    description:
      - Whether what is restored belongs to whom it belonged to, with the privileges it had. Those roles have to exist. Otherwise it belongs
        to the login.
    type: bool
    default: true
  confirm:
    description:
      - The name of the live database, to say that it is meant. Required with O(mode=swap), and with O(mode=tables) where the live
        database is to get the tables that it lacks.
    type: str
  safety_backup:
    description:
      - Make a backup of the live database before anything else when O(confirm) is given. When it fails, nothing is restored.
      - It is encrypted as O(encryption) says, or else to the recipients of the backup that is restored.
    type: bool
    default: true
  accept_suspicious:
    description:
      - Also restore a backup that is much smaller than the one before it.
    type: bool
    default: false
  again:
    description:
      - With O(mode=swap), also restore a backup from which the live database was brought back already. Without it that is no change, so
        that a run that is repeated does not put aside what was written since.
    type: bool
    default: false
  progress_file:
    description:
      - Where to note how far the run is. The action plugin sets and reads it.
    type: path
extends_documentation_fragment:
  - bitflow.lms.backup_encryption
  - bitflow.lms.backup_encryption.identity
  - bitflow.lms.backup_name
  - bitflow.lms.backup_repository
  - bitflow.lms.database_login
attributes:
  check_mode:
    description: Makes every check, and says what would be done. Nothing is written.
    support: full
  diff_mode:
    description: Shows the databases whose names begin with the database's, before and after.
    support: full
seealso:
  - module: bitflow.lms.database_backup
  - module: bitflow.lms.backup_verify
author:
  - Bitflow LMS contributors (@bitflow)
"""

EXAMPLES = r"""
- name: Restore the newest proven backup beside the live database
  bitflow.lms.backup_restore:
    repository: /var/backups/lms
    environment: prod
    name: lms
    backup: latest_verified
    engine: postgresql
    login_system_user: postgres
    identity: "{{ vault_backup_identity }}"

- name: Put the database back to where it was before the accident
  bitflow.lms.backup_restore:
    repository: s3://example-backups/lms
    environment: prod
    name: lms
    backup: before:2026-11-23T09:00:00Z
    mode: swap
    confirm: lms
    engine: postgresql
    login_system_user: postgres
    identity: "{{ vault_backup_identity }}"

- name: Bring back a table that was dropped
  bitflow.lms.backup_restore:
    repository: /var/backups/lms
    environment: prod
    name: lms
    backup: 20261123T102835Z-6f3a91c2
    mode: tables
    tables: [certificates]
    confirm: lms
    engine: mysql
    identity_file: /etc/lms/backup.identity

- name: Restore onto an empty server
  bitflow.lms.backup_restore:
    repository: s3://example-backups/lms
    environment: prod
    name: lms
    backup: latest
    database: lms
    globals: missing
    engine: postgresql
    login_system_user: postgres
    identity: "{{ vault_backup_identity }}"
"""

RETURN = r"""
backup:
  description: The backup, as M(bitflow.lms.database_backup) returns it.
  returned: always
  type: dict
  sample: {id: 20261123T102835Z-6f3a91c2, state: verified, rows: 5123000}
mode:
  description: How it was restored.
  returned: always
  type: str
  sample: swap
database:
  description: The database that holds what was restored.
  returned: always
  type: str
  sample: lms
previous:
  description: What the former live database is kept as, with O(mode=swap).
  returned: always
  type: str
  sample: lms__before_20261123T111500Z
compared:
  description: Whether the rows of the tables were compared with the manifest. They are not where its counts are approximate.
  returned: always
  type: bool
  sample: true
tables:
  description: Tables that were restored. None in check mode and where nothing was done.
  returned: always
  type: int
  sample: 42
rows:
  description: Rows that were restored. None in check mode and where nothing was done.
  returned: always
  type: int
  sample: 5123000
rto_seconds:
  description: How long it took until the data served again, or stood beside (seconds).
  returned: always
  type: float
  sample: 41.3
away_seconds:
  description: How long no database had the live one's name, with O(mode=swap) (seconds).
  returned: always
  type: float
  sample: 0.036
safety_backup:
  description: The id of the backup that was made of the live database beforehand.
  returned: always
  type: str
  sample: 20261123T111432Z-91c26f3a
roles_created:
  description: Roles or users that were created.
  returned: always
  type: list
  elements: str
  sample: []
copied:
  description: With O(mode=tables), those that were restored into the live database.
  returned: always
  type: list
  elements: str
  sample: []
present:
  description: With O(mode=tables), those that the live database had. They were not touched.
  returned: always
  type: list
  elements: str
  sample: []
swept:
  description: Databases that were dropped because the restore that made them had died.
  returned: always
  type: list
  elements: str
  sample: []
plan:
  description: The steps, as sentences.
  returned: always
  type: list
  elements: str
  sample: ["Restore backup 20261123T102835Z-6f3a91c2 into lms__r_20261123T102835Z-6f3a91c2."]
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils import _database_backup as database_backup
from ansible_collections.bitflow.lms.plugins.module_utils._backup_encryption import encryption_argspec, identity_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._backup_making import ended_in_order
from ansible_collections.bitflow.lms.plugins.module_utils._backup_repositories import name_argspec, open_store, repository_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._backup_restore import MODES, Settings, Surroundings, run
from ansible_collections.bitflow.lms.plugins.module_utils._database import engine_for
from ansible_collections.bitflow.lms.plugins.module_utils._database_login import login_argspec, login_from
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._progress import Progress


def main() -> None:
    """Read the options, restore, report."""
    module = AnsibleModule(
        argument_spec={
            **repository_argspec(),
            **name_argspec(),
            **login_argspec(),
            **encryption_argspec(),
            **identity_argspec(),
            "backup": {"type": "str", "required": True},
            "database": {"type": "str"},
            "mode": {"type": "str", "choices": list(MODES), "default": "new"},
            "tables": {"type": "list", "elements": "str", "default": []},
            "globals": {"type": "str", "choices": ["none", "missing"], "default": "none"},
            "owners": {"type": "bool", "default": True},
            "confirm": {"type": "str"},
            "safety_backup": {"type": "bool", "default": True},
            "accept_suspicious": {"type": "bool", "default": False},
            "again": {"type": "bool", "default": False},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    params = module.params
    progress = Progress(params["progress_file"])
    warnings: list[str] = []
    try:
        settings, store, engine = Settings.from_options(params), open_store(params), engine_for(login_from(params))

        def make_backup(database: str, encryption: Mapping[str, Any]) -> str:
            """Back the live database up as database_backup does."""
            wanted = {"environment": settings.environment, "name": database, "encryption": params["encryption"] or encryption}
            outcome = database_backup.run(database_backup.Settings.from_options(wanted), store, engine, progress=progress)
            warnings.extend(outcome.warnings)
            return str((outcome.backup or {})["id"])

        with ended_in_order():
            outcome = run(settings, store, engine, params, Surroundings(make_backup), check_mode=module.check_mode, progress=progress)
    except LmsError as error:
        module.fail_json(**error.as_result())
    result = asdict(outcome)
    for warning in [*warnings, *result.pop("warnings")]:
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
