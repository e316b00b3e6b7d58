#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_info
short_description: Describe the releases of an application
version_added: "1.0.0"
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Says which release is live, which one to roll back to, what is known about each, and how much space is left.
  - On a host that has no release yet it returns the same keys, without releases.
  - Processes of other users are only seen by root.
options:
  path:
    description:
      - The application's root.
    type: path
  paths:
    description:
      - The roots of several applications.
    type: list
    elements: path
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  platform:
    platforms: linux
seealso:
  - module: bitflow.lms.release
"""

EXAMPLES = r"""
- name: Look at the releases
  bitflow.lms.release_info:
    path: /srv/lms/backend
  register: releases

- name: Go back to the last release that was live and verified
  bitflow.lms.release:
    path: /srv/lms/backend
    release: "{{ releases.previous }}"
    state: active
  when: releases.previous is not none

- name: Look at the releases of everything that this host serves
  bitflow.lms.release_info:
    paths:
      - /srv/lms/backend
      - /srv/lms/frontend
  register: releases
"""

RETURN = r"""
applications:
  description: What is said about one application, for each root.
  returned: always
  type: dict
  sample: {/srv/lms/backend: {current: 20261123210000-abc1234}}
now:
  description: The time of the host, in seconds since 1970. A clock that is wrong breaks sessions and certificates.
  returned: always
  type: float
  sample: 1795467600.25
root:
  description: The application's root.
  returned: when O(path) is given
  type: str
  sample: /srv/lms/backend
current:
  description: The live release, or null.
  returned: when O(path) is given
  type: str
  sample: 20261123210000-abc1234
previous:
  description: The release to roll back to, which is the last one before the live one that was live and verified, or null.
  returned: when O(path) is given
  type: str
  sample: 20261120180000-fedcba9
fingerprint:
  description: The fingerprint of the live release, empty if there is none.
  returned: when O(path) is given
  type: str
  sample: 5d41402abc4b2a76b9719d911017c5925d41402abc4b2a76b9719d911017c592
releases:
  description: The releases, the newest first.
  returned: when O(path) is given
  type: list
  elements: dict
  contains:
    id:
      description: The release's id.
      returned: always
      type: str
      sample: 20261123210000-abc1234
    path:
      description: The release's directory.
      returned: always
      type: str
      sample: /srv/lms/backend/releases/20261123210000-abc1234
    state:
      description: One of V(built), V(verified), V(active), V(superseded), V(failed), and V(unknown) for a directory without a record.
      returned: always
      type: str
      sample: active
    commit:
      description: The commit, empty if it is not known.
      returned: always
      type: str
      sample: abc1234567890abc1234567890abc1234567890a
    version:
      description: The branch, tag or commit that was asked for, empty if it is not known.
      returned: always
      type: str
      sample: v1.4.0
    fingerprint:
      description: The fingerprint that the release was built with.
      returned: always
      type: str
      sample: 5d41402abc4b2a76b9719d911017c5925d41402abc4b2a76b9719d911017c592
    artifact_sha256:
      description: The SHA-256 of the artifact.
      returned: always
      type: str
      sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    metadata:
      description: Everything that was given as metadata.
      returned: always
      type: dict
      sample: {commit: abc1234567890abc1234567890abc1234567890a}
    pinned:
      description: Whether pruning keeps the release.
      returned: always
      type: bool
      sample: false
    size:
      description: The bytes of the release's files when it was built.
      returned: always
      type: int
      sample: 18350080
    files:
      description: The number of the release's files when it was built.
      returned: always
      type: int
      sample: 1200
    built_at:
      description: When the release was built, empty if it is not known.
      returned: always
      type: str
      sample: "2026-11-23T21:00:12Z"
    verified_at:
      description: When its health was proven, empty if never.
      returned: always
      type: str
      sample: "2026-11-23T21:00:31Z"
    activated_at:
      description: When it last went live, empty if never.
      returned: always
      type: str
      sample: "2026-11-23T21:00:40Z"
    replaced:
      description: The release that it replaced when it went live, empty if none.
      returned: always
      type: str
      sample: 20261120180000-fedcba9
    left_for:
      description:
        - The older release that somebody went back to from this one, empty if none. No rollback chooses such a release by itself.
      returned: always
      type: str
      sample: 20261120180000-fedcba9
    reason:
      description: Why it failed, empty if it did not.
      returned: always
      type: str
      sample: ""
    in_use_by:
      description: The processes that hold the release open, or for front ends one of its components.
      returned: always
      type: list
      elements: dict
      sample: [{pid: 4711, command: php-fpm8.4}]
components:
  description: The components that releases of front ends consist of.
  returned: when O(path) is given
  type: list
  elements: dict
  contains:
    name:
      description: The component's directory.
      returned: always
      type: str
      sample: student-9f86d081884c7d65
    app:
      description: The front end.
      returned: always
      type: str
      sample: student
    key:
      description: The hash over its files and its environment.
      returned: always
      type: str
      sample: 9f86d081884c7d65
    artifact_sha256:
      description: The SHA-256 of the artifact that it came from. An artifact with the same sum need not be sent.
      returned: always
      type: str
      sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    size:
      description: The bytes of its files.
      returned: always
      type: int
      sample: 41943040
    files:
      description: The number of its files.
      returned: always
      type: int
      sample: 900
    built_at:
      description: When it was unpacked.
      returned: always
      type: str
      sample: "2026-11-23T21:00:12Z"
    releases:
      description: The releases that it is in.
      returned: always
      type: list
      elements: str
      sample: [20261123210000-abc1234]
    in_use_by:
      description: The processes that hold it open.
      returned: always
      type: list
      elements: dict
      sample: [{pid: 4712, command: node}]
leftovers:
  description: The directories that interrupted runs left.
  returned: when O(path) is given
  type: list
  elements: str
  sample: []
history:
  description: The last events of the journal, the newest last.
  returned: when O(path) is given
  type: list
  elements: dict
  sample:
    - {at: "2026-11-23T21:00:40Z", event: activated, release: 20261123210000-abc1234}
disk:
  description: The space where the root is, or would be.
  returned: when O(path) is given
  type: dict
  contains:
    directory:
      description: The nearest directory that exists.
      returned: always
      type: str
      sample: /srv/lms/backend
    free_bytes:
      description: The bytes that are free.
      returned: always
      type: int
      sample: 21474836480
    total_bytes:
      description: The bytes of the file system.
      returned: always
      type: int
      sample: 42949672960
    free_inodes:
      description: The inodes that are free.
      returned: always
      type: int
      sample: 1310720
    total_inodes:
      description: The inodes of the file system. Zero on a file system that does not count them.
      returned: always
      type: int
      sample: 2621440
"""

import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._release import Releases
from ansible_collections.bitflow.lms.plugins.module_utils._release_info import describe_applications


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"path": {"type": "path"}, "paths": {"type": "list", "elements": "path"}},
        required_one_of=[("path", "paths")],
        mutually_exclusive=[("path", "paths")],
        supports_check_mode=True,
    )
    path = module.params["path"]
    try:
        described = describe_applications([Releases(Path(found)) for found in ([path] if path else module.params["paths"])])
    except LmsError as error:
        module.fail_json(**error.as_result())
    first = described[path] if path else {}
    module.exit_json(changed=False, applications=described, now=round(time.time(), 2), **first)


if __name__ == "__main__":
    main()
