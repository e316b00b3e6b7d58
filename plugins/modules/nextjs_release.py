#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nextjs_release
short_description: Prepare, activate and settle releases of Next.js front ends
version_added: "1.0.0"
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Manages releases of a set of front ends below O(path), one call a step of a deployment, whatever the number of front ends.
  - A release consists of components. A component is the files of one front end's artifact with its environment, in
    C(components/APP-KEY), where the key is a hash over both. It never changes and has a process of its own,
    C(NAME-APP@KEY.service), which listens on the socket C(run/APP.sock) in it. A release holds a link C(apps/APP) to each.
  - A front end that did not change keeps its component and its process from one release to the next. It is neither sent, nor unpacked,
    nor restarted.
  - The web server connects through the link C(current), so that one C(rename(2)) switches all front ends at once.
  - A component is unpacked aside, every file is held against the manifest of the artifact, and the directory is renamed into place.
    A crash leaves nothing or a whole component.
  - The units come from the role C(bitflow.lms.nextjs_app), which also says what starts at boot.
options:
  path:
    description:
      - The root of the front ends.
    type: path
    required: true
  state:
    description:
      - V(prepared) unpacks the components that are not there, offers their assets beside those of older releases, starts their processes
        beside the live ones, asks each for its health, and marks the release verified.
      - V(active) starts processes of the release that do not run, asks each for its health, makes the release the live one, and asks this
        host's web server for each front end. It refuses a release that is missing, failed or not verified. Nothing is switched unless
        every process answers.
      - V(settled) stops the processes that the live release does not need. Each gives its last answers first. It also removes
        assets that no component has had for O(assets_kept) days, and with O(keep) old releases.
      - V(failed) marks the release, so that nothing goes back to it, and stops the processes that the live release does not use.
        It refuses the live release.
      - M(bitflow.lms.release) prunes the releases and their components.
    type: str
    choices: [prepared, active, settled, failed]
    required: true
  release:
    description:
      - The release's id.
      - Required unless O(state=settled).
    type: str
  name:
    description:
      - The prefix of the systemd units.
    type: str
    default: lms
  frontends:
    description:
      - The front ends. A release may have been made of others.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - The name of the front end, of a-z, 0-9 and hyphens. Its program is in C(apps/NAME) of the artifact.
        type: str
        required: true
      port:
        description:
          - The port at which this host's web server serves it.
        type: int
        required: true
      server:
        description:
          - Next.js's server program, relative to C(apps/NAME).
        type: str
        default: server.js
      environment:
        description:
          - Variables of this front end's process, over those of O(environment).
        type: dict
        default: {}
  artifacts:
    description:
      - The SHA-256 of each front end's artifact, by the front end's name. M(bitflow.lms.release_artifact) builds artifacts.
      - Required if O(state=prepared). In check mode a sum may be empty, since the artifact need not have been built.
    type: dict
    default: {}
  artifacts_path:
    description:
      - The directory on this host in which the artifact of a front end is C(NAME.tar.gz). It is only read for a component whose files are
        in no other component; RV(bitflow.lms.release_info#module:components) says which ones there are.
      - C(artifacts) in O(path) unless it is given.
    type: path
  local_artifacts:
    description:
      - Artifacts on the control host, by the front end's name, in place of O(artifacts_path). They are sent in the same task, and removed
        at its end. Those whose files are in a component of the host need not be among them.
    type: dict
    default: {}
  environment:
    description:
      - Variables of the front ends' processes, which are texts, numbers, booleans or null.
    type: dict
    default: {}
  fingerprint:
    description:
      - A sum over everything that makes this release what it is. M(bitflow.lms.release_info) returns it.
    type: str
  metadata:
    description:
      - What else is known about the release. C(commit) is also written to the file C(REVISION) in the release.
    type: dict
  owner:
    description:
      - The user who owns the files. The environments belong to the user who runs the module, which must be root to manage units.
    type: str
  group:
    description:
      - The group of the files.
    type: str
  domain:
    description:
      - The domain below which the web server serves each front end, as C(NAME.DOMAIN).
      - Required if O(state=active).
    type: str
  health_uri:
    description:
      - The URI of every front end's health check. It must answer 200 with JSON whose C(revision) is the component's key, which the process
        has in the environment variable E(RELEASE).
    type: str
    default: /api/health
  consecutive:
    description:
      - How many good answers in a row prove that a front end is well.
    type: int
    default: 3
  timeout:
    description:
      - The seconds in which all front ends together must be well. A process that does not stay up is not waited for.
    type: float
    default: 60
  assets_kept:
    description:
      - The days for which assets are offered after the last component that had them was removed.
    type: int
    default: 30
  keep:
    description:
      - How many good releases stay when O(state=settled), as for M(bitflow.lms.release). Without it none is removed.
    type: int
  reason:
    description:
      - Why the release failed, for O(state=failed).
    type: str
    default: ""
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - bitflow.lms.lease
attributes:
  check_mode:
    support: full
    details:
      - A release that is newer than all that are there is taken for one that an earlier task of the same run would have prepared.
  diff_mode:
    support: full
    details:
      - Shows the components and the names of variables that differ from those of the live release, never a value.
  platform:
    platforms: linux
seealso:
  - module: bitflow.lms.release
  - module: bitflow.lms.release_info
  - module: bitflow.lms.release_artifact
"""

EXAMPLES = r"""
- name: Prepare the release beside the live one
  bitflow.lms.nextjs_release:
    path: /srv/lms/frontend
    state: prepared
    release: 20261123210000-abc1234
    frontends:
      - name: student
        port: 3001
      - name: admin
        port: 3002
        environment:
          SESSION_SECRET: "{{ vault_admin_session_secret }}"
    artifacts:
      student: "{{ builds.student.sha256 }}"
      admin: "{{ builds.admin.sha256 }}"
    environment:
      API_URL: https://api.example.com
    owner: lms-deploy
    group: root
    metadata:
      commit: abc1234567890abc1234567890abc1234567890a

- name: Switch all front ends to the release
  bitflow.lms.nextjs_release:
    path: /srv/lms/frontend
    state: active
    release: 20261123210000-abc1234
    frontends: "{{ frontends }}"
    domain: example.com

- name: Stop the processes that nobody is sent to any more
  bitflow.lms.nextjs_release:
    path: /srv/lms/frontend
    state: settled
    frontends: "{{ frontends }}"

- name: Give a candidate up
  bitflow.lms.nextjs_release:
    path: /srv/lms/frontend
    state: failed
    release: 20261123210000-abc1234
    reason: The API of the release was not healthy
    frontends: "{{ frontends }}"
"""

RETURN = r"""
root:
  description: The root of the front ends.
  returned: always
  type: str
  sample: /srv/lms/frontend
release:
  description: The release's id, or null when settling.
  returned: always
  type: str
  sample: 20261123210000-abc1234
state:
  description: The release's state after the task, as M(bitflow.lms.release) names it, or null when settling.
  returned: always
  type: str
  sample: verified
current:
  description: The live release after the task, or null.
  returned: always
  type: str
  sample: 20261120180000-fedcba9
previous:
  description: The release to roll back to after the task, or null.
  returned: always
  type: str
  sample: 20261119180000-0123456
components:
  description:
    - The component of each front end, in the release that is prepared or activated, and in the live one otherwise.
  returned: always
  type: dict
  sample: {admin: admin-5d41402abc4b2a76, student: student-9f86d081884c7d65}
built:
  description: The components that were not there.
  returned: always
  type: list
  elements: str
  sample: [student-9f86d081884c7d65]
environment:
  description: The names of variables that differ from those of the live release, of each front end that has some.
  returned: always
  type: dict
  sample: {student: {added: [FEATURE_CHAT], removed: [], changed: [API_URL]}}
started:
  description: The units that were started.
  returned: always
  type: list
  elements: str
  sample: [lms-student@9f86d081884c7d65.service]
stopped:
  description: The units that were stopped.
  returned: always
  type: list
  elements: str
  sample: []
assets_offered:
  description: The number of assets that were not offered yet. In check mode those of new components are not counted.
  returned: always
  type: int
  sample: 31
assets_removed:
  description: The number of old assets that were removed.
  returned: always
  type: int
  sample: 0
pruned:
  description: The releases that were removed, or in check mode would be.
  returned: always
  type: list
  elements: str
  sample: [20261001120000-0a1b2c3]
components_pruned:
  description: The components that were removed with them.
  returned: always
  type: list
  elements: str
  sample: [student-9f86d081884c7d65]
steps:
  description: The steps, in order.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: What the step does.
      returned: always
      type: str
      sample: unpack
    seconds:
      description: How long it took.
      returned: always
      type: float
      sample: 0.81
    changed:
      description: Whether it changed something.
      returned: always
      type: bool
      sample: true
app:
  description: The front end that is not well. With several, the first one.
  returned: when a front end is not well
  type: str
  sample: student
unit:
  description: Its unit.
  returned: when a front end is not well
  type: str
  sample: lms-student@9f86d081884c7d65.service
not_well:
  description: What is wrong with each front end that is not well.
  returned: when a front end is not well
  type: dict
  sample: {student: its process does not stay up.}
journal:
  description: The last lines that the unit wrote.
  returned: when a front end is not well
  type: list
  elements: str
  sample: ["Error: Cannot find module 'next'"]
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._components import Components
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import ANYBODY, Owner
from ansible_collections.bitflow.lms.plugins.module_utils._lease import acting, lease_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._nextjs_release import (
    Frontend,
    FrontEnds,
    Outcome,
    Settings,
    Units,
    result,
)
from ansible_collections.bitflow.lms.plugins.module_utils._release import Releases
from ansible_collections.bitflow.lms.plugins.module_utils._release_plan import Request
from ansible_collections.bitflow.lms.plugins.module_utils._systemd import Systemctl

STATES = {"prepared": "present", "active": "active", "failed": "failed"}


def settings_of(params: dict[str, Any], check_mode: bool) -> Settings:
    """Return what the task says about the front ends. On a bare host the owner need not exist in check mode."""
    return Settings(
        prefix=params["name"],
        frontends=tuple(Frontend(**entry) for entry in params["frontends"]),
        environment=params["environment"],
        artifacts=params["artifacts"],
        artifacts_path=Path(params["artifacts_path"] or f"{params['path']}/artifacts"),
        domain=params["domain"] or "",
        health_uri=params["health_uri"],
        timeout=params["timeout"],
        consecutive=params["consecutive"],
        assets_kept=params["assets_kept"],
        keep=params["keep"],
        owner=ANYBODY if check_mode else Owner.of(params["owner"], params["group"]),
    )


def run(frontends: FrontEnds, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Bring the release into the state that is asked for, and return the module's result."""
    if params["state"] == "settled":
        return result(frontends.settle(check_mode), "", params["path"])
    request = Request(
        STATES[params["state"]],
        params["release"],
        fingerprint=params["fingerprint"],
        metadata=params["metadata"],
        reason=params["reason"],
    )
    deed = {"prepared": frontends.prepare, "active": frontends.activate, "failed": frontends.fail}[params["state"]]
    outcome: Outcome = deed(request, check_mode)
    return result(outcome, params["release"], params["path"])


def frontends_on(params: dict[str, Any], check_mode: bool) -> FrontEnds:
    """Return the front ends of this host."""
    root = Path(params["path"])
    return FrontEnds(Releases(root), Components(root), Units(Systemctl(), params["name"]), settings_of(params, check_mode))


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **lease_argspec(),
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["prepared", "active", "settled", "failed"], "required": True},
            "release": {"type": "str"},
            "name": {"type": "str", "default": "lms"},
            "frontends": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                    "server": {"type": "str", "default": "server.js"},
                    "environment": {"type": "dict", "default": {}, "no_log": True},
                },
            },
            "artifacts": {"type": "dict", "default": {}},
            "artifacts_path": {"type": "path"},
            # The action plugin has sent them by now, and given artifacts_path in their place.
            "local_artifacts": {"type": "dict", "default": {}},
            "environment": {"type": "dict", "default": {}, "no_log": True},
            "fingerprint": {"type": "str"},
            "metadata": {"type": "dict"},
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "domain": {"type": "str"},
            "health_uri": {"type": "str", "default": "/api/health"},
            "consecutive": {"type": "int", "default": 3},
            "timeout": {"type": "float", "default": 60},
            "assets_kept": {"type": "int", "default": 30},
            "keep": {"type": "int"},
            "reason": {"type": "str", "default": ""},
        },
        required_if=[
            ("state", "prepared", ["release"]),
            ("state", "active", ["release", "domain"]),
            ("state", "failed", ["release"]),
        ],
        supports_check_mode=True,
    )
    params = dict(module.params)
    # From here on nothing that the module says holds a value. Masking every text that equals one would only spoil
    # names and paths: a variable whose value is lms would blot out /srv/lms.
    module.params["environment"] = {str(key): "***" for key in params["environment"]}
    module.params["frontends"] = [
        {**entry, "environment": {str(key): "***" for key in entry["environment"]}} for entry in params["frontends"]
    ]
    module.no_log_values.clear()

    try:
        with acting(None if module.check_mode else params["lease"]):
            outcome = run(frontends_on(params, module.check_mode), params, module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**outcome)


if __name__ == "__main__":
    main()
