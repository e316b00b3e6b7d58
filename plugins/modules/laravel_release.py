#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: laravel_release
short_description: Prepare, activate and settle a Laravel release that runs in a PHP-FPM instance of its own
version_added: 1.0.0
author: Bitflow LMS contributors (@bitflow)
description:
  - Does in one task what a deployment does on a host at a time, from an artifact to a release that has proven its health, the switch
    to it, and the end of the release before. M(bitflow.lms.release) manages the same releases one by one, without Laravel and PHP-FPM.
  - Every release runs in a PHP-FPM of its own, the unit C(<name>-fpm@<release>.service) of the role P(bitflow.lms.laravel_app#role), on
    the socket C(run/fpm.sock) of the release. The link C(current) alone decides which one the web server reaches. It is changed by one
    C(rename(2)); nothing is reloaded and nothing has to be emptied.
  - A run that is killed at any step is made good by the next one with the same options.
options:
  path:
    description:
      - The application's root.
    type: path
    required: true
  name:
    description:
      - Name of the application, which is the prefix of its units.
    type: str
    default: lms
  release:
    description:
      - The release's id, which is the name of its directory.
      - Required unless O(state=settled).
    type: str
  state:
    description:
      - V(prepared) unpacks the artifact, writes C(.env), builds Laravel's caches, lets PHP read what came out, starts the release's
        PHP-FPM, asks it for its health, fills its OPcache, and notes that the release is verified. No visitor sees any of it.
        When a step fails, the release is marked failed and its PHP-FPM is stopped.
      - V(active) makes sure that the release's PHP-FPM runs, starts at boot and answers, renames the link, and asks the web server for
        the release's health. It serves for going back too. The PHP-FPM of the release before runs on, so that going back is one rename.
      - V(settled) stops the PHP-FPM of every release but the live one, each when it has answered all requests that it took. Without a
        live release nothing is stopped. With O(keep) it removes old releases after that.
      - V(failed) marks the release, so that nothing goes back to it, and stops its PHP-FPM likewise. It refuses the live release.
    type: str
    choices: [prepared, active, settled, failed]
    required: true
  artifact:
    description:
      - The archive on the host, as M(bitflow.lms.release_artifact) builds it. To prepare a release that is not there, this or
        O(local_artifact) is required.
    type: path
  local_artifact:
    description:
      - The archive on the control host, in place of O(artifact). It is sent in the same task, and removed at its end.
    type: path
  environment:
    description:
      - Keys and values of the release's C(.env). No value is ever shown.
      - The environment of the live release never changes. Deploy the same artifact under a new id for that.
    type: dict
    default: {}
  environment_required:
    description:
      - Keys that must have a value.
    type: list
    elements: str
    default: []
  environment_example:
    description:
      - File of the release that names the keys which the application reads. A key that it names and O(environment) lacks is an error.
        Empty looks at no file; one that is not there is no error.
    type: str
    default: .env.example
  environment_optional:
    description:
      - Keys that O(environment) may lack. An asterisk stands for any letters, as in V(MAIL_*).
    type: list
    elements: str
    default: []
  php:
    description:
      - Name or path of PHP's command line.
    type: str
    default: php
  timeout:
    description:
      - Seconds that each artisan command may take.
    type: int
    default: 300
  caches:
    description:
      - Caches that artisan builds, each by its own command.
    type: list
    elements: str
    choices: [config, event, route, view]
    default: [config, event, route, view]
  commands:
    description:
      - Further artisan commands that prepare the release, after the caches, as O(bitflow.lms.artisan#module:commands) takes them.
    type: list
    elements: dict
    default: []
    suboptions:
      command:
        description:
          - Name of the command, without arguments.
        type: str
        required: true
      arguments:
        description:
          - Arguments and options of the command.
        type: list
        elements: str
        default: []
      version_min:
        description:
          - Oldest Laravel that has the command; an older one skips it.
        type: str
      version_max:
        description:
          - Newest Laravel that has the command; a newer one skips it.
        type: str
  warm_paths:
    description:
      - Files and directories of the release whose PHP files are compiled before it goes live. Those that are not there are left out.
    type: list
    elements: str
    default: [app, bootstrap, routes]
  health_uri:
    description:
      - Address of the health check.
    type: str
    default: /health
  health_host:
    description:
      - Host name that the health check asks for.
    type: str
    default: localhost
  expect_status:
    description:
      - Status codes of a healthy answer.
    type: list
    elements: int
    default: [200]
  attempts:
    description:
      - How often to ask at most.
    type: int
    default: 20
  consecutive:
    description:
      - How many good answers in a row are needed.
    type: int
    default: 3
  interval:
    description:
      - Seconds between two questions.
    type: float
    default: 0.1
  web_address:
    description:
      - Address and port at which this host's web server serves the application. V(active) asks there after the switch; without it the
        web server is not asked.
    type: str
  drain_timeout:
    description:
      - Seconds that PHP-FPM may take to answer the requests that it took before it is stopped. It is told to end gracefully even then.
    type: int
    default: 300
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
  - bitflow.lms.lease
  - bitflow.lms.release_files
attributes:
  check_mode:
    description: Says what each step would do. It works on a bare host and for a release that is not there yet.
    support: full
  diff_mode:
    description: Shows the releases, the keys of the environment, the caches as content sums, and the instances.
    support: full
  platform:
    description: Target systems. They need systemd.
    platforms: linux
    support: full
requirements:
  - setpriv (of util-linux) and timeout (of coreutils)
notes:
  - Run it as root. Artisan then runs as O(owner), PHP-FPM as the user of its unit.
seealso:
  - module: bitflow.lms.release
  - module: bitflow.lms.release_info
  - module: bitflow.lms.artisan_cache
"""

EXAMPLES = r"""
- name: Prepare the release beside the live one
  bitflow.lms.laravel_release:
    path: /srv/lms/backend
    release: 20261123210000-abc1234
    state: prepared
    local_artifact: ~/.cache/bitflow-lms/artifacts/backend.tar.gz
    artifact_sha256: "{{ artifact.sha256 }}"
    owner: lms-deploy
    group: lms
    shared_directories: [storage/app, storage/logs]
    shared_owner: lms
    shared_group: lms
    writable_directories: [storage/framework/cache/data, storage/framework/sessions, storage/framework/views]
    environment: "{{ laravel_environment }}"
    environment_required: [APP_KEY, APP_ENV, APP_URL]
    health_host: api.example.com
  become: true

- name: Switch to the release
  bitflow.lms.laravel_release:
    path: /srv/lms/backend
    release: 20261123210000-abc1234
    state: active
    health_host: api.example.com
    web_address: 127.0.0.1:8000
  become: true

- name: Stop the PHP-FPM of the release before, now that every host is well, and remove old releases
  bitflow.lms.laravel_release:
    path: /srv/lms/backend
    state: settled
    keep: 5
  become: true

- name: Give the candidate up
  bitflow.lms.laravel_release:
    path: /srv/lms/backend
    release: 20261123210000-abc1234
    state: failed
    reason: Another host failed
  become: true
"""

RETURN = r"""
root:
  description: The application's root.
  returned: always
  type: str
  sample: /srv/lms/backend
release:
  description: The release's id, or null when settling.
  returned: always
  type: str
  sample: 20261123210000-abc1234
release_path:
  description: The release's directory, or null when settling.
  returned: always
  type: str
  sample: /srv/lms/backend/releases/20261123210000-abc1234
state:
  description: The release's state after the task, as M(bitflow.lms.release) returns it, or null when settling.
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
  sample: 20261118090000-0a1b2c3
steps:
  description: The steps that were taken, in their order. On failure the last one is the one that failed.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: What the step did.
      returned: always
      type: str
      sample: build the caches
    seconds:
      description: How long it took.
      returned: always
      type: float
      sample: 1.4
    changed:
      description: Whether it changed something, or in check mode would.
      returned: always
      type: bool
      sample: true
failed_step:
  description: Name of the step that failed.
  returned: failure
  type: str
  sample: build the caches
drained:
  description: The instances that were stopped.
  returned: always
  type: list
  elements: dict
  contains:
    release:
      description: The release that the instance served.
      returned: always
      type: str
      sample: 20261120180000-fedcba9
    seconds:
      description: How long its last requests took.
      returned: always
      type: float
      sample: 0.06
    complete:
      description: Whether it was at rest when it was stopped.
      returned: always
      type: bool
      sample: true
pruned:
  description: The releases that were removed, or in check mode would be.
  returned: always
  type: list
  elements: str
  sample: [20261001120000-0a1b2c3]
environment_keys:
  description: How the environment differs from the release's own C(.env), or when there is none yet from that of the live release.
  returned: always
  type: dict
  sample: {added: [FEATURE_QUIZ], changed: [], removed: []}
"""

from functools import partial
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._fpm_instances import Instances
from ansible_collections.bitflow.lms.plugins.module_utils._laravel_release import Deployment, run
from ansible_collections.bitflow.lms.plugins.module_utils._lease import acting, lease_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._release import Releases, release_files_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._systemd import Systemctl, run_program


def main() -> None:
    """Read the options, take the steps, report."""
    names = {"type": "list", "elements": "str"}
    module = AnsibleModule(
        argument_spec={
            **lease_argspec(),
            **release_files_argspec(),
            "path": {"type": "path", "required": True},
            "name": {"type": "str", "default": "lms"},
            "release": {"type": "str"},
            "state": {"type": "str", "choices": ["prepared", "active", "settled", "failed"], "required": True},
            "artifact": {"type": "path"},
            # The action plugin has sent it by now, and given artifact in its place.
            "local_artifact": {"type": "path"},
            "environment": {"type": "dict", "default": {}, "no_log": True},
            "environment_required": {**names, "default": []},
            "environment_example": {"type": "str", "default": ".env.example"},
            "environment_optional": {**names, "default": []},
            "php": {"type": "str", "default": "php"},
            "timeout": {"type": "int", "default": 300},
            "caches": {**names, "choices": ["config", "event", "route", "view"], "default": ["config", "event", "route", "view"]},
            "commands": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "command": {"type": "str", "required": True},
                    "arguments": {**names, "default": []},
                    "version_min": {"type": "str"},
                    "version_max": {"type": "str"},
                },
            },
            "warm_paths": {**names, "default": ["app", "bootstrap", "routes"]},
            "health_uri": {"type": "str", "default": "/health"},
            "health_host": {"type": "str", "default": "localhost"},
            "expect_status": {"type": "list", "elements": "int", "default": [200]},
            "attempts": {"type": "int", "default": 20},
            "consecutive": {"type": "int", "default": 3},
            "interval": {"type": "float", "default": 0.1},
            "web_address": {"type": "str"},
            "drain_timeout": {"type": "int", "default": 300},
            "keep": {"type": "int"},
            "reason": {"type": "str", "default": ""},
        },
        required_if=[("state", state, ["release"]) for state in ("prepared", "active", "failed")],
        required_by={"artifact": ["artifact_sha256"], "local_artifact": ["artifact_sha256"]},
        supports_check_mode=True,
    )
    params = dict(module.params)
    # From here on nothing that the module says holds a value. Masking every text that equals one would only spoil
    # the names of keys and paths: a database that is called lms would blot out /srv/lms.
    module.params["environment"] = {str(key): "***" for key in params["environment"]}
    module.no_log_values.clear()
    root = Path(params["path"])
    try:
        with acting(None if module.check_mode else params["lease"]) as descriptors:
            # artisan inherits the lock of who acts: it still counts as at work when this process is killed.
            run_command = partial(module.run_command, pass_fds=descriptors)
            instances = Instances(Systemctl(partial(run_program, pass_fds=descriptors)), params["name"], root)
            outcome = run(Deployment(params, run_command, Releases(root), instances, module.check_mode), params["state"])
    except LmsError as error:
        module.fail_json(**error.as_result())
    for warning in outcome.pop("warnings"):
        module.warn(warning)
    module.exit_json(**outcome)


if __name__ == "__main__":
    main()
