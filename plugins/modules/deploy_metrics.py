#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: deploy_metrics
short_description: Tell Prometheus about releases and deployments
version_added: 1.0.0
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Writes a file for the textfile collector of Prometheus' node exporter, in one step, so that it is never read half written.
  - The live release and the number of releases come from the disk. What is not given stays as the file had it.
  - Where the directory is missing nothing is written, and the task is skipped with the reason.
options:
  directory:
    description:
      - Directory that the node exporter reads.
    type: path
    default: /var/lib/prometheus/node-exporter
  file:
    description:
      - Name of the file.
    type: str
    default: lms_deploy.prom
  applications:
    description:
      - The applications of this host.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - Name, as the label C(application).
        type: str
        required: true
      path:
        description:
          - Root, as M(bitflow.lms.release) takes it.
        type: path
        required: true
  outcome:
    description:
      - V(succeeded) and V(failed) note the time. V(none) is a run that had nothing to deploy.
      - Time, duration and downtime stay those of the last run that had something to deploy.
    type: str
    choices: [succeeded, failed, none]
    default: none
  duration:
    description:
      - Seconds that the deployment took.
    type: float
  downtime:
    description:
      - Seconds in which a site did not answer well. RV(bitflow.lms.http_watch#module:downtime_ms) divided by 1000.
    type: float
  migrations_pending:
    description:
      - Number of migrations that are pending.
    type: int
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  platform:
    platforms: linux
seealso:
  - module: bitflow.lms.http_watch
"""

EXAMPLES = r"""
- name: Tell Prometheus that the deployment succeeded
  bitflow.lms.deploy_metrics:
    applications:
      - name: backend
        path: /srv/lms/backend
    outcome: succeeded
    duration: 71.2
    downtime: 0
    migrations_pending: 0
"""

RETURN = r"""
path:
  description: The file.
  returned: always
  type: str
  sample: /var/lib/prometheus/node-exporter/lms_deploy.prom
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

import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._deploy_metrics import Application, figures, read_kept, render
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import relative_path, write_atomically
from ansible_collections.bitflow.lms.plugins.module_utils._release import Releases


def look_at(name: str, path: Path) -> Application:
    """Return what is known of an application."""
    tree = Releases(path).read()
    live = tree.find(tree.current or "")
    metadata = live.metadata if live else {}
    return Application(
        name=name,
        release=tree.current or "",
        commit=str(metadata.get("commit", "")),
        version=str(metadata.get("version", "")),
        releases=len(tree.releases),
    )


def run(params: dict[str, Any], check_mode: bool, now: float) -> dict[str, Any]:
    """Write the file where it differs, and return the module's result."""
    directory = Path(params["directory"])
    path = directory / relative_path(params["file"], "file")
    if path.parent != directory or path.suffix != ".prom":
        raise LmsError(f"file is {params['file']}; the node exporter reads names that end in .prom, directly in its directory.")
    result = {"changed": False, "path": str(path), "reason": "", "diff": {}}
    if not directory.is_dir():
        reason = f"There is no directory {directory}. Install the node exporter there, or set directory to what it reads."
        return {**result, "skipped": True, "reason": reason}
    try:
        before = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        before = ""
    applications = [look_at(item["name"], Path(item["path"])) for item in params["applications"]]
    after = render(applications, figures(read_kept(before), params, params["outcome"], now))
    if after != before and not check_mode:
        write_atomically(path, after.encode(), 0o644)
    return {
        **result,
        "changed": after != before,
        "diff": {"before": before, "after": after, "before_header": str(path), "after_header": str(path)},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "default": "/var/lib/prometheus/node-exporter"},
            "file": {"type": "str", "default": "lms_deploy.prom"},
            "applications": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"name": {"type": "str", "required": True}, "path": {"type": "path", "required": True}},
            },
            "outcome": {"type": "str", "choices": ["succeeded", "failed", "none"], "default": "none"},
            "duration": {"type": "float"},
            "downtime": {"type": "float"},
            "migrations_pending": {"type": "int"},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module.params, module.check_mode, float(int(time.time())))
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
