#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: file_backup
short_description: Back up files so that every one of them is there, or the task fails
version_added: 1.0.0
description:
  - Stores directories and files of this host in a repository. Owners, modes, times, hard and symbolic links are kept. Links are never
    followed, and of sockets, pipes and devices only a note remains.
  - A file that cannot be read fails the task, and so does one that vanishes or changes while it is read, unless O(vanish_ok) names it.
  - The manifest is written last. A run that fails or is killed leaves nothing that looks like a backup, and earlier backups as they were.
    The next run clears away what it left.
  - The engine V(builtin) streams tar through zstd and age. It is for small trees, such as C(.env) and configuration. The sum of each file
    is kept in a list beside the data, encrypted as that is. C(age), C(zstd) and C(tar) alone can bring the files back as well.
  - The engine V(restic) is for large trees that change little, such as uploads. restic's repository lies in O(repository), as
    C(<environment>/restic/<name>), and is encrypted with O(restic_password), which this host has to have. What was changed while restic
    read it is not noticed. Dumps of databases do not belong there, since little of them repeats.
  - Back up the database first and the files afterwards, so that every row has its file.
options:
  state:
    description:
      - V(present) makes a backup.
      - V(pruned) is for O(engine=restic). It forgets the snapshots whose backup was deleted by M(bitflow.lms.backup_prune), and removes the
        data that only they had. Retention and holds are decided there alone; the newest snapshot is never forgotten, nor is one younger
        than a day.
    type: str
    choices: [present, pruned]
    default: present
  engine:
    description:
      - What stores the files.
    type: str
    choices: [builtin, restic]
    default: builtin
  paths:
    description:
      - Absolute paths of directories and files. None of them may be a symbolic link, or lie in another one.
      - Required with O(state=present).
    type: list
    elements: path
  exclude:
    description:
      - Globs of what is left out, with everything below. One that begins with a slash means whole paths, any other one a name or the end
        of a path, such as V(*.log) or V(framework/cache). V(*) stops at a slash, V(**) does not.
    type: list
    elements: str
    default: []
  one_file_system:
    description:
      - Stay on the file system of each of O(paths).
    type: bool
    default: false
  vanish_ok:
    description:
      - Globs, as in O(exclude), of files that may vanish or change while they are read. A changed one is stored as it was read last.
      - A file that is there and cannot be read fails the task in any case.
    type: list
    elements: str
    default: []
  xattrs:
    description:
      - Also keep extended attributes and access control lists. The engine V(restic) always does.
    type: bool
    default: false
  encrypted_required:
    description:
      - Refuse to store files without recipients, since C(.env) and uploads are secret. The engine V(restic) always encrypts.
    type: bool
    default: true
  max_age:
    description:
      - Do nothing when a good backup younger than this exists (seconds). V(0) always makes one.
    type: int
    default: 0
  max_shrink_percent:
    description:
      - A backup with this many percent fewer files or bytes than the previous good one is suspicious.
    type: int
    default: 50
  when_locked:
    description:
      - What to do when another run works on the same files.
    type: str
    choices: [fail, skip]
    default: fail
  nice:
    description:
      - By how much the programs give way to others (C(nice)).
    type: int
    default: 10
  labels:
    description:
      - Words of your own for the manifest.
    type: dict
    default: {}
  restic_password:
    description:
      - Password of restic's repository. Required with O(engine=restic). Without it, nothing can be restored.
    type: str
  restic_keys:
    description:
      - Further passwords that open restic's repository, such as one for the safe of the company. One whose password differs is replaced.
      - Keys that are not named stay, and the one of O(restic_password) is never removed.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - Name of the key (restic calls it the user).
        type: str
        required: true
      password:
        description:
          - Password of the key. Required with O(restic_keys[].state=present).
        type: str
      state:
        description:
          - Whether it opens the repository.
        type: str
        choices: [present, absent]
        default: present
  restic_check_percent:
    description:
      - After the backup, check restic's repository, and read this much of the data back (percent). V(0) checks its structure only.
      - Damage fails the task and marks the backup as corrupt. Without it, nothing is checked.
    type: int
  progress_file:
    description:
      - Where to note how far the run is. The action plugin sets and reads it.
    type: path
extends_documentation_fragment:
  - bitflow.lms.backup_encryption
  - bitflow.lms.backup_name
  - bitflow.lms.backup_repository
attributes:
  check_mode:
    description: Makes every check, and says what would be done and which files changed. Nothing is written.
    support: full
  diff_mode:
    description: Shows the newest good backup before and after, and which files were added, changed or removed since.
    support: full
notes:
  - With encryption, the changes are known only where this host made the newest backup, because it cannot decrypt the list of the files. It
    remembers the list in C(/var/cache/bitflow-lms-backups).
  - restic takes part in C(s3) with keys, a profile, or the instance's role. C(role_arn) needs restic 0.17. C(sse), C(kms_key_id) and
    C(retention) are left to the bucket's defaults; with object lock, restic cannot remove its own locks.
  - A lock of restic is removed if its process is dead for certain. That is one that this host started and that is gone, one of this host's
    name that neither runs here nor was refreshed for half an hour, and one of another host that was not refreshed for a day.
seealso:
  - module: bitflow.lms.file_restore
  - module: bitflow.lms.database_backup
  - module: bitflow.lms.backup_prune
author:
  - Bitflow LMS contributors (@bitflow-lms)
"""

EXAMPLES = r"""
- name: Back up the environment file
  bitflow.lms.file_backup:
    repository: s3://example-backups/lms
    environment: prod
    name: environment
    paths:
      - /srv/lms/backend/shared/.env
    encryption:
      recipients: "{{ lms_backup_recipients }}"

- name: Back up the uploads, and read a fiftieth of the repository back
  bitflow.lms.file_backup:
    repository: /var/backups/lms
    environment: prod
    name: uploads
    engine: restic
    restic_password: "{{ vault_restic_password }}"
    restic_check_percent: 2
    paths:
      - /srv/lms/backend/shared/storage/app
    exclude:
      - livewire-tmp
    vanish_ok:
      - /srv/lms/backend/shared/storage/app/tmp

- name: Remove what only pruned backups of the uploads had
  bitflow.lms.file_backup:
    repository: /var/backups/lms
    environment: prod
    name: uploads
    engine: restic
    restic_password: "{{ vault_restic_password }}"
    state: pruned
"""

RETURN = r"""
backup:
  description: The backup that was made, or that is young enough. None in check mode and when another run is at work.
  returned: always
  type: dict
  sample:
    id: 20261123T102835Z-6f3a91c2
    environment: prod
    kind: files
    name: uploads
    path: prod/files/uploads/20261123T102835Z-6f3a91c2
    time: "2026-11-23T10:28:35Z"
    state: complete
    verified: null
    held: false
    size: 1434
    raw_size: 734003200
    duration: 3.1
    rows: null
    fault: ""
plan:
  description: What was found, and what is done or to be done.
  returned: always
  type: dict
  contains:
    paths:
      description: The paths that are meant.
      returned: always
      type: list
      elements: str
      sample: [/srv/lms/backend/shared/storage/app]
    counts:
      description: Files, directories, links and bytes that were found there. All zero when a young enough backup exists.
      returned: always
      type: dict
      sample: {files: 2300, directories: 41, links: 1, bytes: 734003200}
    estimated_size:
      description: Room that the backup may need (bytes).
      returned: always
      type: int
      sample: 52428800
    changes:
      description:
        - How the files differ from the newest good backup, with at most 100 names of each kind. Null where that is not asked (neither check
          nor diff mode), or not known.
      returned: always
      type: dict
      sample: {added: 1, changed: 0, removed: 0, added_names: [/srv/lms/uploads/a.pdf], changed_names: [], removed_names: []}
    skipped:
      description: Paths that are not in the backup, or were changing, with the reason; at most 100.
      returned: always
      type: list
      elements: dict
      sample: [{path: /srv/lms/backend/shared/storage/app/worker.sock, reason: "neither a file, a directory nor a link"}]
    notes:
      description: What is done beside, such as creating restic's repository or adding a key.
      returned: always
      type: list
      elements: str
      sample: []
    repository:
      description: What is known of the repository, such as its room and its object lock.
      returned: always
      type: dict
      sample: {type: directory, free: 92341796864, object_lock: null, versioning: false}
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

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._backup_encryption import encryption_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._backup_making import Outcome
from ansible_collections.bitflow.lms.plugins.module_utils._backup_repositories import name_argspec, open_store, repository_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Store
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._file_backup import BuiltinWriter, Settings, run, settings_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._progress import Progress
from ansible_collections.bitflow.lms.plugins.module_utils._restic_backup import (
    ResticWriter,
    open_restic,
    prune,
    restic_argspec,
    wanted_keys,
)


def carry_out(params: dict[str, Any], store: Store, check_mode: bool, compared: bool) -> Outcome:
    """Do what is asked, with the engine that is asked."""
    settings, progress = Settings.from_options(params), Progress(params["progress_file"])
    if params["engine"] == "builtin":
        writer = BuiltinWriter(settings, store, progress)
        return run(settings, store, writer, check_mode=check_mode, compared=compared, progress=progress)
    with open_restic(params, store.uri) as restic:
        if params["state"] == "pruned":
            return prune(settings, store, restic, check_mode=check_mode, progress=progress)
        keeper = ResticWriter(settings, store, restic, wanted_keys(params["restic_keys"]), params["restic_check_percent"], progress)
        return run(settings, store, keeper, check_mode=check_mode, compared=compared, progress=progress)


def main() -> None:
    """Read the options, make the backup, report."""
    module = AnsibleModule(
        argument_spec={
            **repository_argspec(),
            **name_argspec(),
            **encryption_argspec(),
            **settings_argspec(),
            **restic_argspec(),
            "state": {"type": "str", "choices": ["present", "pruned"], "default": "present"},
            "engine": {"type": "str", "choices": ["builtin", "restic"], "default": "builtin"},
            "progress_file": {"type": "path"},
        },
        required_if=[("state", "present", ["paths"]), ("engine", "restic", ["restic_password"])],
        supports_check_mode=True,
    )
    params = module.params
    if params["state"] == "pruned" and params["engine"] != "restic":
        module.fail_json(msg="state is pruned, which is for engine restic. Backups of the engine builtin are pruned by backup_prune alone.")
    try:
        outcome = carry_out(params, open_store(params), module.check_mode, module._diff)
    except LmsError as error:
        module.fail_json(**error.as_result())
    for warning in outcome.warnings:
        module.warn(warning)
    module.exit_json(changed=outcome.changed, backup=outcome.backup, plan=outcome.plan, diff=dict(outcome.diff))


if __name__ == "__main__":
    main()
