#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_source
short_description: Resolve a version of a git repository and archive directories of it
version_added: "1.0.0"
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Resolves a branch, tag or commit to a full commit, gives the release its id, and archives the directories in O(paths).
  - The repository is mirrored below O(cache). A full commit that the mirror has needs no access to the repository.
  - Where a tag and a branch have the same name, the tag is taken, which is git's own rule, and a warning says so.
  - Submodules and files in Git LFS are not followed.
  - Git runs without prompts and only over the transports file, git, http, https and ssh. A password in the URL reaches git through a file
    that only the current user can read.
  - Meant to run on the controller, with C(delegate_to=localhost) and C(run_once=true).
options:
  repository:
    description:
      - The repository, as an absolute path or a URL.
      - A working copy of this host is one, too. See O(uncommitted).
    type: str
    required: true
  ssh_key:
    description:
      - The private key for a repository over SSH, such as a deploy key. Without it git's and SSH's own configuration decide.
    type: path
  accept_newhostkey:
    description:
      - Whether the key of an SSH host that C(known_hosts) does not have is accepted and added there. A key that changed is never accepted.
    type: bool
    default: false
  uncommitted:
    description:
      - What happens to changes in a working copy that are not committed, if O(version=HEAD). Files that git ignores do not count.
      - V(refused) is an error that names them.
      - V(ignored) takes the commit without them.
      - V(included) archives the files as they are. RV(release) and RV(short_commit) then end in C(-dirty).
    type: str
    choices: [refused, ignored, included]
    default: refused
  keep:
    description:
      - How many archives to keep in O(destination). Those that were not used for longest go first. Other files are left alone.
    type: int
    default: 10
  version:
    description:
      - The branch, tag or commit. A commit may be shortened to seven digits or more.
      - V(HEAD) is the repository's default branch.
    type: str
    required: true
  cache:
    description:
      - The directory for the mirrors. It is created where missing.
    type: path
    required: true
  destination:
    description:
      - The directory for the archives, each named after the tree that it holds. An archive that is there is used again.
    type: path
    required: true
  paths:
    description:
      - The directories to archive, relative to the repository's top. A single dot is the whole repository.
    type: list
    elements: str
    default: ["."]
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details:
      - The version is resolved, for which the mirror may be brought up to date. No archive is made.
  diff_mode:
    support: none
  platform:
    platforms: posix
requirements:
  - git 2.24 or newer
seealso:
  - module: bitflow.lms.release_artifact
"""

EXAMPLES = r"""
- name: Resolve the version and archive both applications
  bitflow.lms.release_source:
    repository: https://git.example.com/lms.git
    version: v1.4.0
    cache: ~/.cache/bitflow-lms/repositories
    destination: ~/.cache/bitflow-lms/archives
    paths:
      - backend
      - frontend
  delegate_to: localhost
  run_once: true
  register: source
"""

RETURN = r"""
release:
  description: The id for a release of this commit, made of the time in UTC and the short commit. It differs each time.
  returned: always
  type: str
  sample: 20261123210000-abc1234
commit:
  description: The full commit.
  returned: always
  type: str
  sample: abc1234567890abc1234567890abc1234567890a
short_commit:
  description: The first seven digits of the commit, followed by C(-dirty) if RV(uncommitted) is not empty.
  returned: always
  type: str
  sample: abc1234
subject:
  description: The first line of the commit's message.
  returned: always
  type: str
  sample: Show progress on the course page
version:
  description: The version that was asked for.
  returned: always
  type: str
  sample: v1.4.0
kind:
  description: What the version is, one of V(branch), V(tag) and V(commit).
  returned: always
  type: str
  sample: tag
ref:
  description: The full name of the branch or tag, or the commit.
  returned: always
  type: str
  sample: refs/tags/v1.4.0
ambiguous:
  description: Whether the version is both a tag and a branch, of which the tag was taken.
  returned: always
  type: bool
  sample: false
uncommitted:
  description: The paths of the working copy that are archived otherwise than in the commit.
  returned: always
  type: list
  elements: str
  sample: []
trees:
  description: The id of each directory's content. It changes only if something in the directory does.
  returned: always
  type: dict
  sample: {backend: 4b825dc642cb6eb9a060e54bf8d69288fbee4904}
archives:
  description: The archive of each directory. In check mode those that are not there yet are named all the same.
  returned: always
  type: dict
  sample: {backend: /home/deploy/.cache/bitflow-lms/archives/4b825dc642cb6eb9a060e54bf8d69288fbee4904.tar}
"""

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._archive import remove_old_archives
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._source import (
    Access,
    Source,
    archive_path,
    parse_location,
    release_id,
    short_commit,
)


def run(source: Source, params: dict[str, Any], now: datetime, check_mode: bool) -> dict[str, Any]:
    """Resolve and archive, and return the module's result."""
    destination = Path(params["destination"])
    found = source.archive_directories(params["version"], params["paths"], None if check_mode else destination, params["uncommitted"])
    resolved, trees, dirty = found["resolved"], found["trees"], bool(found["changes"])
    archives = {path: archive_path(destination, tree) for path, tree in trees.items()}
    if not check_mode:
        remove_old_archives(list(archives.values()), params["keep"])
    return {
        "changed": any(found["made"]) or any(not archive.is_file() for archive in archives.values()),
        "release": release_id(now, resolved.commit, dirty),
        "commit": resolved.commit,
        "short_commit": short_commit(resolved.commit, dirty),
        "subject": found["subject"],
        "version": params["version"],
        "kind": resolved.kind,
        "ref": resolved.ref,
        "ambiguous": resolved.ambiguous,
        "uncommitted": found["changes"],
        "trees": trees,
        "archives": {path: str(archive) for path, archive in archives.items()},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "repository": {"type": "str", "required": True},
            "version": {"type": "str", "required": True},
            "ssh_key": {"type": "path", "no_log": False},
            "accept_newhostkey": {"type": "bool", "default": False, "no_log": False},
            "uncommitted": {"type": "str", "choices": ["refused", "ignored", "included"], "default": "refused"},
            "keep": {"type": "int", "default": 10},
            "cache": {"type": "path", "required": True},
            "destination": {"type": "path", "required": True},
            "paths": {"type": "list", "elements": "str", "default": ["."]},
        },
        supports_check_mode=True,
    )

    def run_command(argv: list[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
        status, output, errors = module.run_command(argv, environ_update=dict(environment), expand_user_and_vars=False)
        return status, output, errors

    try:
        location = parse_location(module.params["repository"])
        module.no_log_values.update(location.secrets)
        key = module.params["ssh_key"]
        access = Access(Path(key) if key else None, module.params["accept_newhostkey"])
        source = Source(location, Path(module.params["cache"]), run_command, module.get_bin_path("git", required=True), access)
        outcome = run(source, module.params, datetime.now(timezone.utc), module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    if outcome["ambiguous"]:
        module.warn(f"{module.params['version']} is both a tag and a branch: the tag was taken. Write refs/heads/... to mean the branch.")
    module.exit_json(**outcome)


if __name__ == "__main__":
    main()
