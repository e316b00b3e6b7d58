#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_bundle
short_description: Carry the artifacts of a version in one file
version_added: "1.0.0"
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Writes the artifacts that M(bitflow.lms.release_artifact) built into one file, or takes them out of it where nothing can be built.
  - A bundle is a tar archive with C(MANIFEST.sha256), C(INDEX.json) and the directory C(artifacts/). The same artifacts give the same
    bytes. Its SHA-256 stands beside it in a file with the ending C(.sha256), which C(sha256sum --check) reads.
  - The sums tell a bundle that was damaged. Whoever may replace the bundle and the sum can replace the application.
options:
  path:
    description:
      - The bundle.
    type: path
    required: true
  state:
    description:
      - V(present) writes the bundle.
      - V(unpacked) holds it against its SHA-256 and puts its artifacts into O(destination). Those that are there already are left alone.
    type: str
    choices: [present, unpacked]
    default: present
  artifacts:
    description:
      - The artifacts, as RV(bitflow.lms.release_artifact#module:artifacts) returns them. Required if O(state=present).
    type: list
    elements: dict
  directory:
    description:
      - The directory of the artifacts on this host, if O(state=present) and O(artifacts) were built on another one.
    type: path
  metadata:
    description:
      - What else is known, such as commit and version. It travels in the index. Times make bundles of the same artifacts differ.
    type: dict
    default: {}
  destination:
    description:
      - The directory for the artifacts. It is created where missing. Required if O(state=unpacked).
    type: path
  sha256:
    description:
      - The SHA-256 that the bundle must have, if O(state=unpacked). Without it the file beside the bundle is read.
    type: str
  keep:
    description:
      - How many artifacts of each name to keep in O(destination). Those that were not used for longest go first.
    type: int
    default: 5
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details:
      - With O(state=present) a bundle counts as one that would be written, unless its index says the same.
  diff_mode:
    support: none
  platform:
    platforms: posix
seealso:
  - module: bitflow.lms.release_artifact
"""

EXAMPLES = r"""
- name: Write what was built into one file
  bitflow.lms.release_bundle:
    path: /srv/lms/build/lms-v1.4.0.tar
    artifacts: "{{ backend.artifacts + frontends.artifacts }}"
    metadata:
      version: v1.4.0
      commit: abc1234567890abc1234567890abc1234567890a

- name: Take the artifacts out on the control host
  bitflow.lms.release_bundle:
    path: ~/downloads/lms-v1.4.0.tar
    state: unpacked
    destination: ~/.cache/bitflow-lms/artifacts
  delegate_to: localhost
  register: bundle
"""

RETURN = r"""
path:
  description: The bundle.
  returned: always
  type: str
  sample: /srv/lms/build/lms-v1.4.0.tar
sha256:
  description: The bundle's SHA-256. Empty in check mode if it would be written.
  returned: always
  type: str
  sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
metadata:
  description: What else is known.
  returned: always
  type: dict
  sample: {version: v1.4.0}
artifacts:
  description:
    - The artifacts. After O(state=unpacked) their paths are those in O(destination).
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The artifact's name.
      returned: always
      type: str
      sample: backend
    artifact:
      description: The artifact's path.
      returned: always
      type: str
      sample: /home/deploy/.cache/bitflow-lms/artifacts/backend-5d41402abc4b2a76.tar.gz
    sha256:
      description: The artifact's SHA-256.
      returned: always
      type: str
      sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    size:
      description: The artifact's bytes.
      returned: always
      type: int
      sample: 18350080
    files:
      description: The number of files in it.
      returned: always
      type: int
      sample: 1200
    fingerprint:
      description: The sum over everything that the artifact depends on.
      returned: always
      type: str
      sample: 5d41402abc4b2a76b9719d911017c5925d41402abc4b2a76b9719d911017c592
removed:
  description: The old artifacts that were removed from O(destination).
  returned: always
  type: list
  elements: str
  sample: []
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._bundle import (
    check_bundle,
    expected_sum,
    file_sum,
    index_text,
    missing_artifacts,
    parse_index,
    read_index,
    remove_old_artifacts,
    unpack_bundle,
    write_bundle,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError


def run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Write or unpack the bundle, and return the module's result."""
    return _unpack(params, check_mode) if params["state"] == "unpacked" else _write(params, check_mode)


def _write(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Write the bundle."""
    path = Path(params["path"])
    artifacts = params["artifacts"]
    if params["directory"]:
        artifacts = [{**entry, "artifact": str(Path(params["directory"]) / Path(entry["artifact"]).name)} for entry in artifacts]
    wanted = parse_index(index_text(artifacts, params["metadata"]))
    foreseen = not path.is_file() or read_index(path) != wanted
    changed = foreseen if check_mode else write_bundle(path, artifacts, params["metadata"])
    return {
        "changed": changed,
        "path": str(path),
        "sha256": "" if check_mode and changed else file_sum(path),
        "metadata": wanted["metadata"],
        "artifacts": _entries(wanted, {entry["name"]: entry["artifact"] for entry in artifacts}),
        "removed": [],
    }


def _unpack(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Unpack the bundle."""
    path, destination = Path(params["path"]), Path(params["destination"])
    wanted = expected_sum(path, params["sha256"])
    index = check_bundle(path, wanted)
    missing = missing_artifacts(index, destination)
    removed: list[str] = []
    if not check_mode:
        if missing:
            unpack_bundle(path, index, missing, destination)
        removed = remove_old_artifacts(index, destination, params["keep"])
    return {
        "changed": bool(missing),
        "path": str(path),
        "sha256": wanted,
        "metadata": index["metadata"],
        "artifacts": _entries(index, {entry["name"]: str(destination / entry["file"]) for entry in index["artifacts"]}),
        "removed": removed,
    }


def _entries(index: dict[str, Any], paths: dict[str, str]) -> list[dict[str, Any]]:
    """Return what the result says of the artifacts."""
    keys = ("name", "sha256", "size", "files", "fingerprint")
    return [{"artifact": paths[entry["name"]], **{key: entry[key] for key in keys}} for entry in index["artifacts"]]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "unpacked"], "default": "present"},
            "artifacts": {"type": "list", "elements": "dict"},
            "directory": {"type": "path"},
            "metadata": {"type": "dict", "default": {}},
            "destination": {"type": "path"},
            "sha256": {"type": "str"},
            "keep": {"type": "int", "default": 5},
        },
        required_if=[("state", "present", ["artifacts"]), ("state", "unpacked", ["destination"])],
        supports_check_mode=True,
    )
    try:
        outcome = run(module.params, module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**outcome)


if __name__ == "__main__":
    main()
