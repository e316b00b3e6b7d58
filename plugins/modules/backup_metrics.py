#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_metrics
short_description: Tell Prometheus how old and how large the backups are
version_added: 1.0.0
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Writes a file for the textfile collector of Prometheus' node exporter, in one step, so that it is never read half written.
  - The figures come from the repository and not from the run that made a backup, so that an alert tells of backups that nobody makes.
  - How the last attempt ended only its run knows, which says so in O(attempt). It stays in the file until another run says something else.
  - What the file has of names that this task does not look at stays as it is, so that several tasks and repositories can share one. Each
    environment, kind and name is to be in one repository only.
  - Where the directory is missing nothing is written, and the task is skipped with the reason.
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
  attempt:
    description:
      - How an attempt to make a backup has just ended. V(failed) is noted also where the repository cannot be read.
      - Needs O(environment), O(kind) and O(name). Left out, there was none.
    type: str
    choices: [ok, failed]
  stale_guard:
    description:
      - The O(bitflow.lms.backup_prune#module:stale_guard) with which these backups are pruned.
    type: str
    default: 3d
  directory:
    description:
      - Directory that the node exporter reads.
    type: path
    default: /var/lib/prometheus/node-exporter
  file:
    description:
      - Name of the file.
    type: str
    default: lms_backups.prom
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
  - module: bitflow.lms.deploy_metrics
"""

EXAMPLES = r"""
- name: Tell Prometheus of all backups of production
  bitflow.lms.backup_metrics:
    repository: s3://example-backups/lms
    environment: prod

- name: Tell Prometheus that the backup of the database failed
  bitflow.lms.backup_metrics:
    repository: s3://example-backups/lms
    environment: prod
    kind: database
    name: lms
    attempt: failed
"""

RETURN = r"""
path:
  description: The file.
  returned: always
  type: str
  sample: /var/lib/prometheus/node-exporter/lms_backups.prom
skipped:
  description: There is no directory to write to.
  returned: when skipped
  type: bool
  sample: true
reason:
  description: Why the task was skipped, else empty.
  returned: always
  type: str
  sample: ""
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import KINDS, check_name, now_utc
from ansible_collections.bitflow.lms.plugins.module_utils._backup_metrics import MetricsFile, write_metrics
from ansible_collections.bitflow.lms.plugins.module_utils._backup_repositories import open_store, repository_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._backup_retention import read_duration
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Store
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

FILTERS = ("environment", "kind", "name")


def run(opened: Callable[[], Store], params: dict[str, Any], check_mode: bool, now: datetime) -> dict[str, Any]:
    """Write the file where it differs, and return the module's result."""
    filters = [params[option] or "" for option in FILTERS]
    if params["attempt"] and not all(filters):
        raise LmsError("attempt is of one backup: give environment, kind and name as well.")
    for option in ("environment", "name"):
        if params[option]:
            check_name(option, params[option])
    stale_guard = read_duration("stale_guard", params["stale_guard"])
    file = MetricsFile(Path(params["directory"]), params["file"])
    result = {"changed": False, "path": str(file.path), "reason": "", "diff": {}}
    if not file.directory.is_dir():
        reason = f"There is no directory {file.directory}. Install the node exporter there, or set directory to what it reads."
        return {**result, "skipped": True, "reason": reason}
    before, after = write_metrics(opened, file, filters, params["attempt"], stale_guard, now, check_mode)
    return {
        **result,
        "changed": after != before,
        "diff": {"before": before, "after": after, "before_header": str(file.path), "after_header": str(file.path)},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **repository_argspec(),
            "environment": {"type": "str"},
            "kind": {"type": "str", "choices": list(KINDS)},
            "name": {"type": "str"},
            "attempt": {"type": "str", "choices": ["ok", "failed"]},
            "stale_guard": {"type": "str", "default": "3d"},
            "directory": {"type": "path", "default": "/var/lib/prometheus/node-exporter"},
            "file": {"type": "str", "default": "lms_backups.prom"},
        },
        supports_check_mode=True,
    )
    try:
        result = run(lambda: open_store(module.params), module.params, module.check_mode, now_utc())
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
