#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: file_restore
short_description: Bring files back from a backup, all of them or none
version_added: 1.0.0
description:
  - Reads a backup that M(bitflow.lms.file_backup) made, compares size and sum of what is stored and then of every file, and puts the files
    in place when all are there. Until then they lie in a directory beside O(destination) that nobody else can enter. A failure leaves
    nothing of them; what a killed run left is removed by the next one.
  - No file is ever replaced. Either O(destination) is new or empty, or only files that are not there are added.
  - Owners are set by name, and by number where this host does not know the name. The engine V(restic) sets them by number. Without root,
    the files belong to who restores them.
  - restic does not tell names that are not UTF-8. Of its backups, such files come back with everything else that is in O(path), with
    O(mode=new) and without O(include) only.
  - A backup whose paths would leave O(destination), also through a symbolic link, is refused. Symbolic links themselves are restored as
    they were, wherever they lead.
options:
  backup:
    description:
      - Which one. V(latest) is the newest good one, V(latest_verified) the newest one that was restored for a trial, and V(before:TIME) the
        newest good one that began before a time, such as V(before:2026-11-23T10:28:35Z). Or the id of a backup.
    type: str
    default: latest
  destination:
    description:
      - Directory to restore to. The directory that it lies in has to exist.
      - Without O(path), the whole paths of the backup come into being below it.
    type: path
    required: true
  path:
    description:
      - A directory of the backup. Only what lies in it is restored, and O(destination) takes its place.
    type: path
  include:
    description:
      - Globs of what is restored, as O(bitflow.lms.file_backup#module:exclude) has them. Left out, everything is.
    type: list
    elements: str
    default: []
  mode:
    description:
      - V(new) refuses a O(destination) that holds something.
      - V(missing) adds the files that are not there, whatever the others are. Nothing that exists is changed, directories neither.
    type: str
    choices: [new, missing]
    default: new
  nice:
    description:
      - By how much the programs give way to others (C(nice)).
    type: int
    default: 0
  restic_password:
    description:
      - Password of restic's repository, for a backup that the engine V(restic) made.
    type: str
  progress_file:
    description:
      - Where to note how far the run is. The action plugin sets and reads it.
    type: path
extends_documentation_fragment:
  - bitflow.lms.backup_encryption.identity
  - bitflow.lms.backup_name
  - bitflow.lms.backup_repository
attributes:
  check_mode:
    description: Reads the list of the files, and says what would be written.
    support: full
  diff_mode:
    description: Shows what is written, up to 100 paths.
    support: full
seealso:
  - module: bitflow.lms.file_backup
  - module: bitflow.lms.backup_restore
author:
  - Bitflow LMS contributors (@bitflow-lms)
"""

EXAMPLES = r"""
- name: Bring back the uploads that are missing
  bitflow.lms.file_restore:
    repository: /var/backups/lms
    environment: prod
    name: uploads
    restic_password: "{{ vault_restic_password }}"
    path: /srv/lms/backend/shared/storage/app
    destination: /srv/lms/backend/shared/storage/app
    mode: missing

- name: Look at the environment file as it was before the change
  bitflow.lms.file_restore:
    repository: s3://example-backups/lms
    environment: prod
    name: environment
    backup: before:2026-11-23T10:28:35Z
    identity: "{{ vault_backup_identity }}"
    path: /srv/lms/backend/shared
    include:
      - .env
    destination: /srv/environment-of-yesterday
"""

RETURN = r"""
backup:
  description: The backup that the files come from.
  returned: always
  type: dict
  sample:
    id: 20261123T102835Z-6f3a91c2
    environment: prod
    kind: files
    name: environment
    path: prod/files/environment/20261123T102835Z-6f3a91c2
    time: "2026-11-23T10:28:35Z"
    state: complete
    verified: null
    held: false
    size: 3310
    raw_size: 10240
    duration: 0.2
    rows: null
    fault: ""
plan:
  description: What is written, or would be.
  returned: always
  type: dict
  contains:
    destination:
      description: Where to.
      returned: always
      type: str
      sample: /srv/environment-of-yesterday
    mode:
      description: The mode.
      returned: always
      type: str
      sample: new
    counts:
      description: Files, directories, links and bytes.
      returned: always
      type: dict
      sample: {files: 1, directories: 0, links: 0, bytes: 1711}
    existing:
      description: How many paths are there already and stay as they are.
      returned: always
      type: int
      sample: 0
    names:
      description: What is written, below the destination; at most 100.
      returned: always
      type: list
      elements: str
      sample: [.env]
    free:
      description: Room where the files are gathered (bytes).
      returned: always
      type: int
      sample: 92341796864
    needed:
      description: Room that they need (bytes).
      returned: always
      type: int
      sample: 5807
"""

import contextlib
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import Backup
from ansible_collections.bitflow.lms.plugins.module_utils._backup_encryption import identity_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._backup_repositories import name_argspec, open_store, repository_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._file_restore import (
    BuiltinSource,
    Outcome,
    ResticSource,
    Settings,
    Source,
    run,
    settings_argspec,
)
from ansible_collections.bitflow.lms.plugins.module_utils._progress import Progress
from ansible_collections.bitflow.lms.plugins.module_utils._restic_backup import open_restic


def carry_out(params: dict[str, Any], check_mode: bool) -> Outcome:
    """Restore from what the backup was stored with."""
    store, settings, progress = open_store(params), Settings.from_options(params), Progress(params["progress_file"])
    with contextlib.ExitStack() as held:

        def source_of(backup: Backup) -> Source:
            if backup.manifest.get("engine") == "restic":
                return ResticSource(backup, held.enter_context(open_restic(params, store.uri)), settings)
            return BuiltinSource(store, backup, params, progress, settings.nice)

        return run(settings, store, source_of, check_mode=check_mode, progress=progress)


def main() -> None:
    """Read the options, restore, report."""
    module = AnsibleModule(
        argument_spec={
            **repository_argspec(),
            **name_argspec(),
            **identity_argspec(),
            **settings_argspec(),
            "restic_password": {"type": "str", "no_log": True},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    try:
        outcome = carry_out(module.params, module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    for warning in outcome.warnings:
        module.warn(warning)
    module.exit_json(changed=outcome.changed, backup=outcome.backup, plan=outcome.plan, diff=dict(outcome.diff))


if __name__ == "__main__":
    main()
