#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release
short_description: Build, verify, activate and prune the releases of an application
version_added: "1.0.0"
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Manages the releases of one application below O(path). Each release is a directory in C(releases/), the live one is what the
    relative link C(current) points at, C(shared/) holds what all releases share, and C(.deploy/) holds one record a release and a journal.
  - The link alone decides which release is live. The order of releases comes from their records, never from file times or clocks.
  - A release is unpacked aside, every file is held against the manifest of the artifact, and the directory is renamed into place.
    A crash leaves nothing or a whole release.
  - The switch is one C(rename(2)) of a link, so that there is no moment without a live release.
  - Pruning as another user than root sees only this user's processes, so that a release open by another user's process is not recognised.
options:
  path:
    description:
      - The application's root.
    type: path
  paths:
    description:
      - The roots of several applications, for O(state=pruned).
    type: list
    elements: path
  release:
    description:
      - The release's id, which is the name of its directory.
      - Required unless O(state=pruned).
    type: str
  state:
    description:
      - V(present) unpacks O(artifact) unless the release is there. What is there is never changed. The same release from another artifact
        is an error.
      - V(verified) notes that the caller has proven the release's health.
      - V(active) makes the release the live one. It refuses a release that is missing, failed or not verified.
      - V(failed) marks the release, so that nothing goes back to it. It refuses the live release, and ignores one that is not there.
      - V(absent) removes the release. It refuses the live one.
      - V(pruned) removes what interrupted runs left, failed and abandoned releases, and the oldest good ones beyond O(keep).
        It never removes the live release, the one to roll back to, a failed one whose C(contract_migrations) a rollback has to know,
        or one that is pinned, open by a process, younger than O(min_age) or not built by this module.
        Of front ends it also removes the components that no release links to any more and no process has open.
    type: str
    choices: [present, verified, active, failed, absent, pruned]
    default: present
  artifact:
    description:
      - The archive on the host, as M(bitflow.lms.release_artifact) builds it.
      - Required to build a release that is not there.
    type: path
  pinned:
    description:
      - Whether pruning must keep this release. Left out, the pin stays as it is.
    type: bool
  reason:
    description:
      - Why the release failed, for O(state=failed).
    type: str
    default: ""
  unverified_allowed:
    description:
      - Whether O(state=active) accepts a release that nobody has verified.
    type: bool
    default: false
  keep:
    description:
      - How many good releases O(state=pruned) keeps. Failed ones do not count.
    type: int
    default: 5
  min_age:
    description:
      - Releases whose state changed in the last so many seconds are kept, because requests may still run in them.
    type: int
    default: 300
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - bitflow.lms.lease
  - bitflow.lms.release_files
attributes:
  check_mode:
    support: full
    details:
      - A release that is newer than all that are there is taken for one that an earlier task of the same run would have built.
  diff_mode:
    support: full
  platform:
    platforms: linux
seealso:
  - module: bitflow.lms.deploy_lock
  - module: bitflow.lms.release_info
  - module: bitflow.lms.release_artifact
  - module: bitflow.lms.nextjs_release
"""

EXAMPLES = r"""
- name: Unpack the release
  bitflow.lms.release:
    path: /srv/lms/backend
    release: 20261123210000-abc1234
    artifact: /srv/lms/artifacts/backend-0123456789abcdef.tar.gz
    artifact_sha256: "{{ artifact.sha256 }}"
    owner: lms-deploy
    group: lms
    shared_directories:
      - storage/app
      - storage/logs
    shared_owner: lms
    shared_group: lms
    writable_directories:
      - bootstrap/cache
      - storage/framework
    metadata:
      commit: abc1234567890abc1234567890abc1234567890a
      version: v1.4.0

- name: Note that the candidate answered its health check
  bitflow.lms.release:
    path: /srv/lms/backend
    release: 20261123210000-abc1234
    state: verified

- name: Switch to the release
  bitflow.lms.release:
    path: /srv/lms/backend
    release: 20261123210000-abc1234
    state: active

- name: Mark the release so that nobody goes back to it
  bitflow.lms.release:
    path: /srv/lms/backend
    release: 20261123210000-abc1234
    state: failed
    reason: The health check answered 500

- name: Remove old releases
  bitflow.lms.release:
    path: /srv/lms/backend
    state: pruned
    keep: 5

- name: Remove old releases of everything that this host serves
  bitflow.lms.release:
    paths:
      - /srv/lms/backend
      - /srv/lms/frontend
    state: pruned
"""

RETURN = r"""
applications:
  description: What the other keys say, for each root.
  returned: when O(paths) is given
  type: dict
  sample: {/srv/lms/backend: {current: 20261123210000-abc1234, pruned: [20261001120000-0a1b2c3]}}
root:
  description: The application's root. With O(paths), this key and the others are below RV(applications).
  returned: when O(path) is given
  type: str
  sample: /srv/lms/backend
release:
  description: The release's id, or null when pruning.
  returned: when O(path) is given
  type: str
  sample: 20261123210000-abc1234
release_path:
  description: The release's directory, or null when pruning.
  returned: when O(path) is given
  type: str
  sample: /srv/lms/backend/releases/20261123210000-abc1234
state:
  description:
    - The release's state after the task, or null when pruning. One of V(built), V(verified), V(active), V(superseded), V(failed),
      V(unknown) for a directory that has no record, and V(absent).
  returned: when O(path) is given
  type: str
  sample: active
current:
  description: The live release after the task, or null.
  returned: when O(path) is given
  type: str
  sample: 20261123210000-abc1234
previous:
  description: The release to roll back to after the task, which is the last one before the live one that was live and verified, or null.
  returned: when O(path) is given
  type: str
  sample: 20261120180000-fedcba9
pruned:
  description: The directories that were removed.
  returned: when O(path) is given
  type: list
  elements: str
  sample: [20261001120000-0a1b2c3]
components_pruned:
  description: The components of front ends that were removed.
  returned: when O(path) is given
  type: list
  elements: str
  sample: [student-9f86d081884c7d65]
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._lease import acting, lease_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._release import Releases, build_from, release_files_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._release_change import MIN_AGE, change
from ansible_collections.bitflow.lms.plugins.module_utils._release_plan import Request


def run(releases: Releases, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Bring the releases of one application into the state that is asked for, and return the module's result."""
    request = Request(**{key: params[key] for key in Request.__dataclass_fields__ if params.get(key) is not None})
    return change(releases, request, lambda: build_from(params), check_mode)


def run_all(applications: Sequence[Releases], params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Prune several applications, and return the module's result."""
    results = {str(releases.root): run(releases, params, check_mode) for releases in applications}
    return {
        "changed": any(found["changed"] for found in results.values()),
        "applications": results,
        "diff": [{**found["diff"], "before_header": root, "after_header": root} for root, found in results.items()],
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **lease_argspec(),
            **release_files_argspec(),
            "path": {"type": "path"},
            "paths": {"type": "list", "elements": "path"},
            "release": {"type": "str"},
            "state": {
                "type": "str",
                "choices": ["present", "verified", "active", "failed", "absent", "pruned"],
                "default": "present",
            },
            "artifact": {"type": "path"},
            "pinned": {"type": "bool"},
            "reason": {"type": "str", "default": ""},
            "unverified_allowed": {"type": "bool", "default": False},
            "keep": {"type": "int", "default": 5},
            "min_age": {"type": "int", "default": MIN_AGE},
        },
        required_if=[("state", state, ["release"]) for state in ("present", "verified", "active", "failed", "absent")],
        required_together=[("artifact", "artifact_sha256")],
        required_one_of=[("path", "paths")],
        mutually_exclusive=[("path", "paths")],
        supports_check_mode=True,
    )
    params = module.params
    if params["paths"] and params["state"] != "pruned":
        module.fail_json(msg=f"paths is only for state: pruned, and state is {params['state']}. Give one path.")
    try:
        with acting(None if module.check_mode else params["lease"]):
            if params["paths"]:
                outcome = run_all([Releases(Path(path)) for path in params["paths"]], params, module.check_mode)
            else:
                outcome = run(Releases(Path(params["path"])), params, module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**outcome)


if __name__ == "__main__":
    main()
