#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_artifact
short_description: Build the artifact of an application, or find the one that was built before
version_added: "1.0.0"
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Unpacks a source archive, runs the steps that install and build, and packs the result together with a manifest of SHA-256 sums.
  - The artifact's name holds a fingerprint of everything it depends on, which is the source's content, the steps, their environment,
    O(fingerprint_extra), O(collect), O(exclude) and O(umask). If it was built before and its bytes are whole, nothing runs.
  - The tar archive carries no times, users or order of this host. The permission to execute and links are kept.
  - The steps run as the current user with nothing of the current environment. C(HOME) is a directory below O(directory), so that the
    caches of package managers stay between builds.
  - Two builds of the same name wait for each other. What a killed build left is removed by the next.
options:
  name:
    description:
      - What is built. It begins the artifact's file name.
    type: str
    required: true
  archive:
    description:
      - The source, as a tar archive on the build host.
    type: path
    required: true
  directory:
    description:
      - The directory for artifacts, dependencies and work. It is created where missing.
    type: path
    required: true
  source:
    description:
      - What the source is, for messages, such as V(backend at abc1234). Without it the messages say O(name).
    type: str
  fingerprint_extra:
    description:
      - What else the result depends on, such as the versions of the tools that the steps call.
    type: raw
  steps:
    description:
      - The programs to run, in order.
    type: list
    elements: dict
    default: []
    suboptions:
      argv:
        description:
          - The program and its arguments.
        type: list
        elements: str
        required: true
      chdir:
        description:
          - The directory to run in, relative to the source's top.
        type: str
        default: "."
      environment:
        description:
          - Variables for this step.
        type: dict
        default: {}
  environment:
    description:
      - Variables for all steps. They are part of the fingerprint.
    type: dict
    default: {}
  secret_environment:
    description:
      - Variables for all steps that are secret, such as the token of a package registry. They are not part of the fingerprint.
    type: dict
    default: {}
  dependencies:
    description:
      - Directories that a step fills from a lock file. The next build with the same lock files, steps and environment finds them filled.
      - A build that fails does not give them back, because they may be half filled.
    type: list
    elements: dict
    default: []
    suboptions:
      lock:
        description:
          - The lock files, relative to the source's top.
        type: list
        elements: str
        required: true
      directory:
        description:
          - The directory, relative to the source's top.
        type: str
        required: true
  collect:
    description:
      - What goes into the artifact. Without it the whole tree does. Where two entries give the same path, the later one wins.
    type: list
    elements: dict
    suboptions:
      from:
        description:
          - A directory or file, relative to the source's top.
        type: str
        required: true
      to:
        description:
          - The path in the artifact. A single dot is its top.
        type: str
        default: "."
  exclude:
    description:
      - Patterns of paths in the artifact to leave out. One with a slash in the middle is held against the whole path and leaves out
        everything below, one without against each name in the path.
    type: list
    elements: str
    default: []
  required:
    description:
      - Paths that the source must have. It is an error before anything runs if one is missing.
    type: list
    elements: str
    default: []
  umask:
    description:
      - The permissions that no file of the artifact has. The default lets the web server read public files.
    type: str
    default: "022"
  keep:
    description:
      - How many artifacts of this name to keep. Those that were not used for longest go first.
    type: int
    default: 5
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details:
      - Says whether it would build. A source archive that is not there counts as one that would have to be built.
  diff_mode:
    support: none
  platform:
    platforms: linux
seealso:
  - module: bitflow.lms.release_source
  - module: bitflow.lms.release
"""

EXAMPLES = r"""
- name: Build the backend
  bitflow.lms.release_artifact:
    name: backend
    source: backend at abc1234
    archive: /srv/lms/build/sources/4b825dc642cb6eb9a060e54bf8d69288fbee4904.tar
    directory: /srv/lms/build
    required: [artisan, composer.lock]
    fingerprint_extra:
      php: "8.4"
    steps:
      - argv: [composer, install, --no-dev, --classmap-authoritative, --no-interaction]
    dependencies:
      - lock: [composer.lock]
        directory: vendor
    exclude: [.git, tests]
  register: backend_artifact

- name: Build the front ends and keep what they need to run
  bitflow.lms.release_artifact:
    name: frontend
    archive: /srv/lms/build/sources/83baae61804e65cc73a7201a7252750c76066a30.tar
    directory: /srv/lms/build
    steps:
      - argv: [pnpm, install, --frozen-lockfile]
      - argv: [pnpm, --recursive, run, build]
    environment:
      NEXT_PUBLIC_API_URL: https://api.example.com
    collect:
      - from: apps/student/.next/standalone
        to: student
      - from: apps/student/.next/static
        to: student/apps/student/.next/static
"""

RETURN = r"""
artifact:
  description: The artifact's path. Empty in check mode if the source archive is not there.
  returned: always
  type: str
  sample: /srv/lms/build/artifacts/backend-5d41402abc4b2a76.tar.gz
sha256:
  description: The artifact's SHA-256. Empty in check mode if it would be built.
  returned: always
  type: str
  sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
size:
  description: The artifact's bytes. Zero in check mode if it would be built.
  returned: always
  type: int
  sample: 18350080
files:
  description: The number of files in it. Zero in check mode if it would be built.
  returned: always
  type: int
  sample: 1200
fingerprint:
  description: The sum over everything that the artifact depends on. Empty in check mode if the source archive is not there.
  returned: always
  type: str
  sample: 5d41402abc4b2a76b9719d911017c5925d41402abc4b2a76b9719d911017c592
reused:
  description: Whether the artifact had been built before.
  returned: always
  type: bool
  sample: false
steps:
  description: The steps that ran, and how long each took. Empty if the artifact was reused.
  returned: always
  type: list
  elements: dict
  contains:
    argv:
      description: The program and its arguments.
      returned: always
      type: list
      elements: str
      sample: [composer, install, --no-dev]
    seconds:
      description: The seconds it took.
      returned: always
      type: float
      sample: 12.4
removed:
  description: The old artifacts that were removed.
  returned: always
  type: list
  elements: str
  sample: []
"""

import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._artifact import Artifact, Workshop, recipe_from, result, texts
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

SECRET_LENGTH = 8


def run(workshop: Workshop, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Build or find the artifact, and return the module's result."""
    recipe = recipe_from(params)
    archive = Path(params["archive"])
    if check_mode:
        number = workshop.inspect(recipe, archive) if archive.exists() else ""
        found = workshop.find(recipe, number) if number else None
        return result(found or Artifact(number, "", 0, 0), workshop.path_of(recipe, number), reused=found is not None)
    number = workshop.inspect(recipe, archive)
    with workshop.locked(recipe):
        found = workshop.find(recipe, number)
        steps: list[dict[str, Any]] = []
        artifact = found
        if artifact is None:
            artifact, steps = workshop.build(recipe, archive, number, texts(params["secret_environment"]))
        removed = workshop.tidy(recipe, number, params["keep"])
    path = workshop.path_of(recipe, number)
    return result(artifact, path, reused=found is not None, steps=steps, removed=removed)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "archive": {"type": "path", "required": True},
            "directory": {"type": "path", "required": True},
            "source": {"type": "str"},
            "fingerprint_extra": {"type": "raw"},
            "steps": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "argv": {"type": "list", "elements": "str", "required": True},
                    "chdir": {"type": "str", "default": "."},
                    "environment": {"type": "dict", "default": {}},
                },
            },
            "environment": {"type": "dict", "default": {}},
            "secret_environment": {"type": "dict", "default": {}, "no_log": True},
            "dependencies": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "lock": {"type": "list", "elements": "str", "required": True},
                    "directory": {"type": "str", "required": True},
                },
            },
            "collect": {
                "type": "list",
                "elements": "dict",
                "options": {"from": {"type": "str", "required": True}, "to": {"type": "str", "default": "."}},
            },
            "exclude": {"type": "list", "elements": "str", "default": []},
            "required": {"type": "list", "elements": "str", "default": []},
            "umask": {"type": "str", "default": "022"},
            "keep": {"type": "int", "default": 5},
        },
        supports_check_mode=True,
    )
    # A value as short as a digit is no secret, and masking it would spoil paths and sums.
    module.no_log_values = {value for value in module.no_log_values if len(value) >= SECRET_LENGTH}
    workshop = Workshop(Path(module.params["directory"]), pigz=shutil.which("pigz"))
    try:
        outcome = run(workshop, module.params, module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**outcome)


if __name__ == "__main__":
    main()
