#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_artifact
short_description: Build the artifacts of an application, or find those that were built before
version_added: "1.0.0"
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Unpacks a source archive, runs the steps that install and build, and packs the result together with a manifest of SHA-256 sums.
  - The artifact's name holds a fingerprint of everything it depends on, which is the source's content, the steps, their environment,
    what O(tools) print, O(fingerprint_extra), O(collect), O(exclude) and O(umask). If it was built before and its bytes are whole,
    no step runs.
  - With O(artifacts) one source gives several artifacts, for example one for each front end of a workspace. Each has a fingerprint of its
    own, and only those that are not there are built. The source is unpacked once, and O(steps), which install what all need, run once
    and only if something is to be built.
  - The steps of an artifact find the first 20 digits of its fingerprint in E(BUILD_ID), unless O(environment) says otherwise.
  - The tar archive carries no times, users or order of this host. The permission to execute and links are kept.
  - The steps run as the current user with nothing of the current environment. C(HOME) is a directory below O(directory), so that the
    caches of package managers stay between builds.
  - Two builds of the same name wait for each other, up to an hour. A build that was killed counts as at work until the programs that it
    started have ended; what it left is removed by the next. Whatever fails, only whole artifacts are kept.
  - What the steps print goes to one file a name below C(logs/) in O(directory) as it comes, so that C(tail -F) shows where a long build is.
options:
  name:
    description:
      - What is built. It begins the artifact's file name. With O(artifacts) it names the whole, in messages and in the log of O(steps).
    type: str
    required: true
  archive:
    description:
      - The source, as a tar archive on the build host.
    type: path
    required: true
  local_archive:
    description:
      - The same archive on the control host. It is sent where the build host has none at O(archive), and not in check mode.
    type: path
  delivered:
    description:
      - Where O(local_archive) has arrived on the build host. The control host sets it.
    type: path
  local_artifacts:
    description:
      - The directory in which the control host keeps artifacts. The result then says in RV(lacking) which ones are to be fetched.
    type: path
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
      - What else the result depends on, as plain data.
    type: raw
  tools:
    description:
      - Programs with arguments that print the versions of what the steps call. What they print is part of the fingerprint.
    type: list
    elements: list
    default: []
  steps:
    description:
      - The programs to run, in order.
      - With O(artifacts) they run before the steps of any artifact and see the whole source. What they leave must then depend on nothing
        but the lock files, as that of an installation does.
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
      - Directories that O(steps) fill from a lock file. The next build with the same lock files, steps and environment finds them filled.
      - Where the source lacks a lock file nothing is kept, because nothing says that the same would be installed again.
      - If O(steps) fail they are not given back, because they may be half filled.
      - Those of the two lock files that were used last are kept.
      - The copies in which O(artifacts) are built share these directories' files by hard links, as pnpm's own do. A step of an artifact
        that writes into such a file in place changes it for all. Leave a directory with which this happens out.
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
          - The directory, relative to the source's top. It may be a pattern, such as V(apps/*/node_modules).
        type: str
        required: true
  artifacts:
    description:
      - The artifacts, if the source gives several. Each is built in a copy of what O(steps) left.
    type: list
    elements: dict
    suboptions:
      name:
        description:
          - What is built. It begins the artifact's file name.
        type: str
        required: true
      package:
        description:
          - The directory of the artifact's package in a workspace of pnpm, npm or Yarn, relative to the source's top.
          - The artifact then depends on this package, on the packages that it and the top of the workspace depend on by their
            C(package.json), on packages elsewhere that no other depends on, and on everything outside of packages. The others are not
            there while its steps run, so that a build that reads more than it declares fails, and is not left stale.
          - Without it the artifact depends on the whole source.
        type: str
        default: ""
      steps:
        description:
          - The programs to run, in order, after O(steps).
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
      collect:
        description:
          - What goes into the artifact, as O(collect) says it.
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
          optional:
            description:
              - Whether it may be missing.
            type: bool
            default: false
      exclude:
        description:
          - Patterns of paths in the artifact to leave out, as O(exclude) says them.
        type: list
        elements: str
        default: []
  concurrency:
    description:
      - How many of O(artifacts) are built at the same time. Without it, half as many as there are processors, and at least one.
    type: int
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
      optional:
        description:
          - Whether it may be missing.
        type: bool
        default: false
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
      - How many artifacts of each name to keep. Those that were not used for longest go first.
      - As many source archives are kept in the directory of O(archive), if it has the name that M(bitflow.lms.release_source) gives it.
        Files with other names are left alone.
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
    local_archive: ~/.cache/bitflow-lms/sources/4b825dc642cb6eb9a060e54bf8d69288fbee4904.tar
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

- name: Build each front end of a pnpm workspace
  bitflow.lms.release_artifact:
    name: frontend
    archive: /srv/lms/build/sources/83baae61804e65cc73a7201a7252750c76066a30.tar
    directory: /srv/lms/build
    tools:
      - [node, --version]
    steps:
      - argv: [pnpm, install, --frozen-lockfile, --prefer-offline]
    dependencies:
      - lock: [pnpm-lock.yaml]
        directory: node_modules
      - lock: [pnpm-lock.yaml]
        directory: apps/*/node_modules
    environment:
      NEXT_PUBLIC_API_URL: https://api.example.com
    artifacts:
      - name: frontend-student
        package: apps/student
        steps:
          - argv: [pnpm, run, build]
            chdir: apps/student
        collect:
          - from: apps/student/.next/standalone
          - from: apps/student/.next/static
            to: apps/student/.next/static
  register: frontend_artifacts
"""

RETURN = r"""
artifacts:
  description: The artifacts, in the order of O(artifacts). Without O(artifacts) the one.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The artifact's name.
      returned: always
      type: str
      sample: frontend-student
    artifact:
      description: The artifact's path. Empty in check mode if the source archive is not there.
      returned: always
      type: str
      sample: /srv/lms/build/artifacts/frontend-student-5d41402abc4b2a76.tar.gz
    sha256:
      description: The artifact's SHA-256. Empty in check mode if it would be built.
      returned: always
      type: str
      sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    size:
      description: The artifact's bytes. Zero in check mode if it would be built.
      returned: always
      type: int
      sample: 2936012
    files:
      description: The number of files in it. Zero in check mode if it would be built.
      returned: always
      type: int
      sample: 820
    fingerprint:
      description: The sum over everything that the artifact depends on. Empty in check mode if the source archive is not there.
      returned: always
      type: str
      sample: 5d41402abc4b2a76b9719d911017c5925d41402abc4b2a76b9719d911017c592
    built:
      description: Whether it was built, or would be in check mode.
      returned: always
      type: bool
      sample: true
    seconds:
      description: The seconds that its own steps and its packing took.
      returned: always
      type: float
      sample: 21.3
    steps:
      description: Its own steps that ran, as in RV(steps).
      returned: always
      type: list
      elements: dict
      sample: [{argv: [pnpm, run, build], seconds: 19.8}]
lacking:
  description: Those of RV(artifacts) that are not in O(local_artifacts), or are there with other bytes. Empty in check mode.
  returned: when O(local_artifacts) is given
  type: list
  elements: dict
  sample: []
artifact:
  description: RV(artifacts[].artifact) of the only artifact. Empty where there are several; so are the keys below that belong to one.
  returned: always
  type: str
  sample: /srv/lms/build/artifacts/backend-5d41402abc4b2a76.tar.gz
sha256:
  description: RV(artifacts[].sha256) of the only artifact.
  returned: always
  type: str
  sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
size:
  description: RV(artifacts[].size) of the only artifact.
  returned: always
  type: int
  sample: 18350080
files:
  description: RV(artifacts[].files) of the only artifact.
  returned: always
  type: int
  sample: 1200
fingerprint:
  description: RV(artifacts[].fingerprint) of the only artifact.
  returned: always
  type: str
  sample: 5d41402abc4b2a76b9719d911017c5925d41402abc4b2a76b9719d911017c592
reused:
  description: Whether every artifact had been built before.
  returned: always
  type: bool
  sample: false
steps:
  description:
    - The steps that ran for all artifacts, and those of the only artifact, with how long each took. Empty if every artifact was reused.
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
summary:
  description: A line for each step that ran and for each artifact, for people.
  returned: always
  type: list
  elements: str
  sample:
    - "frontend: pnpm install --frozen-lockfile, 1.3 s"
    - "frontend-student: pnpm run build, 19.8 s"
    - "frontend-student: built in 21.3 s"
    - "frontend-admin: unchanged, used again"
removed:
  description: The old artifacts that were removed.
  returned: always
  type: list
  elements: str
  sample: []
seconds:
  description: The seconds that all of it took.
  returned: always
  type: float
  sample: 34.1
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._artifact import (
    NOT_KNOWN,
    Provided,
    Workshop,
    build_from,
    result,
    texts,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import write_atomically

SECRET_LENGTH = 8

STEPS: dict[str, Any] = {
    "type": "list",
    "elements": "dict",
    "default": [],
    "options": {
        "argv": {"type": "list", "elements": "str", "required": True},
        "chdir": {"type": "str", "default": "."},
        "environment": {"type": "dict", "default": {}},
    },
}
COLLECT: dict[str, Any] = {
    "type": "list",
    "elements": "dict",
    "options": {
        "from": {"type": "str", "required": True},
        "to": {"type": "str", "default": "."},
        "optional": {"type": "bool", "default": False},
    },
}
EXCLUDE: dict[str, Any] = {"type": "list", "elements": "str", "default": []}


def run(workshop: Workshop, params: dict[str, Any], check_mode: bool, clock: Callable[[], float] = time.monotonic) -> dict[str, Any]:
    """Build or find the artifacts, and return the module's result."""
    began = clock()
    build = build_from(params)
    archive = Path(params["archive"])
    if not archive.exists():
        if check_mode:
            return result(build, [Provided(recipe.name, "", NOT_KNOWN, built=True) for recipe in build.recipes])
        if params["delivered"]:
            accept(Path(params["delivered"]), archive)
        elif params["local_archive"]:
            return {"changed": False, "archive_lacking": True}
    planned = workshop.inspect(build, archive)
    if check_mode:
        return result(build, workshop.look(build, planned))
    with workshop.locked(build):
        provided, steps = workshop.provide(build, archive, planned, texts(params["secret_environment"]))
        removed = workshop.tidy(build, archive, provided, params["keep"])
    return result(build, provided, steps, removed, round(clock() - began, 1))


def accept(delivered: Path, archive: Path) -> None:
    """Put a source archive that has arrived where it belongs; it has its name only when it is whole."""
    archive.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    write_atomically(archive, delivered.read_bytes(), 0o640)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "archive": {"type": "path", "required": True},
            "local_archive": {"type": "path"},
            "local_artifacts": {"type": "path"},
            "delivered": {"type": "path"},
            "directory": {"type": "path", "required": True},
            "source": {"type": "str"},
            "fingerprint_extra": {"type": "raw"},
            "tools": {"type": "list", "elements": "list", "default": []},
            "steps": STEPS,
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
            "artifacts": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "package": {"type": "str", "default": ""},
                    "steps": STEPS,
                    "collect": COLLECT,
                    "exclude": EXCLUDE,
                },
            },
            "concurrency": {"type": "int"},
            "collect": COLLECT,
            "exclude": EXCLUDE,
            "required": {"type": "list", "elements": "str", "default": []},
            "umask": {"type": "str", "default": "022"},
            "keep": {"type": "int", "default": 5},
        },
        mutually_exclusive=[("artifacts", "collect"), ("artifacts", "exclude")],
        supports_check_mode=True,
    )
    # A value as short as a digit is no secret, and masking it would spoil paths and sums.
    module.no_log_values = {value for value in module.no_log_values if len(value) >= SECRET_LENGTH}
    concurrency = module.params["concurrency"] or max(1, (os.cpu_count() or 1) // 2)
    workshop = Workshop(Path(module.params["directory"]), pigz=shutil.which("pigz"), concurrency=concurrency)
    try:
        outcome = run(workshop, module.params, module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**outcome)


if __name__ == "__main__":
    main()
