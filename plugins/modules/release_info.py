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
options:
  path:
    description:
      - The application's root.
    type: path
    required: true
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
"""

RETURN = r"""
root:
  description: The application's root.
  returned: always
  type: str
  sample: /srv/lms/backend
current:
  description: The live release, or null.
  returned: always
  type: str
  sample: 20261123210000-abc1234
previous:
  description: The release to roll back to, which is the last one before the live one that was live and verified, or null.
  returned: always
  type: str
  sample: 20261120180000-fedcba9
fingerprint:
  description: The fingerprint of the live release, empty if there is none.
  returned: always
  type: str
  sample: 5d41402abc4b2a76b9719d911017c5925d41402abc4b2a76b9719d911017c592
releases:
  description: The releases, the newest first.
  returned: always
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
    reason:
      description: Why it failed, empty if it did not.
      returned: always
      type: str
      sample: ""
leftovers:
  description: The directories that interrupted runs left.
  returned: always
  type: list
  elements: str
  sample: []
history:
  description: The last events of the journal, the newest last.
  returned: always
  type: list
  elements: dict
  sample:
    - {at: "2026-11-23T21:00:40Z", event: activated, release: 20261123210000-abc1234}
disk:
  description: The space where the root is, or would be.
  returned: always
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

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._release import Releases, disk_facts
from ansible_collections.bitflow.lms.plugins.module_utils._release_plan import describe

HISTORY_SHOWN = 20


def run(releases: Releases) -> dict[str, Any]:
    """Return what is known about the releases."""
    tree = releases.read()
    live = tree.find(tree.current or "")
    return {
        "changed": False,
        "root": str(releases.root),
        "current": tree.current,
        "previous": tree.previous,
        "fingerprint": live.fingerprint if live else "",
        "releases": [describe(release, str(releases.directory)) for release in reversed(tree.releases)],
        "leftovers": [leftover.name for leftover in tree.leftovers],
        "history": releases.journal.entries()[-HISTORY_SHOWN:],
        "disk": disk_facts(releases.root),
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec={"path": {"type": "path", "required": True}}, supports_check_mode=True)
    try:
        outcome = run(Releases(Path(module.params["path"])))
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**outcome)


if __name__ == "__main__":
    main()
