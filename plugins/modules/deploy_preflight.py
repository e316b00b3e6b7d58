#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: deploy_preflight
short_description: Find out what would make a deployment fail later
version_added: "1.0.0"
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Looks at everything that is asked for, and fails with all problems in one answer, each with its way out.
  - Also says what the host serves and how well, because a deployment asks for that at the same time.
  - What is not asked for is not checked. Nothing is changed, in check mode and without it.
  - Secrets are sent to the services that they belong to, and appear nowhere.
options:
  applications:
    description:
      - Roots of applications whose releases are described, as M(bitflow.lms.release_info) does.
    type: list
    elements: path
    default: []
  health:
    description:
      - Addresses of health checks, each asked once. A bad answer is no problem, since it may be the reason for the deployment.
    type: list
    elements: dict
    default: []
    suboptions:
      url:
        description:
          - The address.
        type: str
        required: true
      connect_to:
        description:
          - Host and port to connect to, instead of those of O(health[].url).
        type: str
  disk:
    description:
      - How much room is needed. What is needed on the same file system is added up. A path need not exist.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description:
          - Where the room is needed.
        type: path
        required: true
      free_bytes:
        description:
          - The bytes that must be free.
        type: int
        default: 0
      free_inodes:
        description:
          - The inodes that must be free. File systems that count none are taken to have enough.
        type: int
        default: 0
  directories:
    description:
      - Directories that provisioning makes.
    type: list
    elements: path
    default: []
  controller_time:
    description:
      - The time on the control host as seconds since 1970. The clock of this host is held against it.
      - The control host sends the time of just now in its place, and leaves the clock out where the way to this host took longer than
        O(clock_skew_limit).
    type: float
  clock_skew_limit:
    description:
      - Seconds by which the clocks may differ.
    type: float
    default: 30
  php_requirements:
    description:
      - The block C(require) of a C(composer.json), or C(platform) of a C(composer.lock).
      - Each value is a constraint, or a list of constraints that all have to be met.
      - C(php), C(php-64bit) and C(ext-*) are checked, everything else is passed over.
      - The extensions of PHP's command line are looked at. PHP-FPM may be configured differently.
    type: dict
    default: {}
  php:
    description:
      - Name or path of PHP's command line.
    type: str
    default: php
  endpoints:
    description:
      - Services that this host must reach.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - What the service is called in messages.
        type: str
        required: true
      host:
        description:
          - Its name or address.
        type: str
      port:
        description:
          - Its port.
        type: int
      unix_socket:
        description:
          - Its Unix socket, instead of host and port.
        type: path
      redis:
        description:
          - Whether it is Redis, which is then asked for a sign of life.
        type: bool
        default: false
      username:
        description:
          - The user of Redis, where it has several.
        type: str
      password:
        description:
          - The password of Redis.
        type: str
      tls:
        description:
          - Whether to speak TLS. The certificate must be for the host.
        type: bool
        default: false
      ca_path:
        description:
          - File with the authorities to trust, in PEM format. The ones that the system trusts when it is left out.
        type: path
  timeout:
    description:
      - Seconds that each endpoint may take. Looking up its name is not counted.
    type: float
    default: 3
  required_environment:
    description:
      - Names that the application's environment must have.
    type: list
    elements: str
    default: []
  environment_names:
    description:
      - The names that it has a value for. Only names are asked for, so that no value gets here.
    type: list
    elements: str
    default: []
  environment_drivers:
    description:
      - The values of C(CACHE_STORE), C(CACHE_DRIVER) and C(SESSION_DRIVER). Other names are passed over.
    type: dict
    default: {}
  identity:
    description:
      - Keys that say which installation this is, such as C(APP_ENV) and C(APP_URL), with the values that the new release will have.
      - They must be those of O(live_environment), so that nobody deploys to the hosts of another environment by mistake.
    type: dict
    default: {}
  live_environment:
    description:
      - The C(.env) of the live release. O(identity) is not checked where it is not there, or lacks a key.
      - Required with O(identity).
    type: path
  hosts_count:
    description:
      - How many hosts serve the application. With more than one they must share the cache and the sessions.
    type: int
    default: 1
  same_everywhere:
    description:
      - Values that must be the same on every host. RV(fingerprints) holds a salted hash of each, by which a play compares the hosts.
    type: dict
    default: {}
  salt:
    description:
      - What the hashes are salted with. Choose a random text for each run, the same for all hosts.
      - Required with O(same_everywhere).
    type: str
    default: ""
  enforced:
    description:
      - Whether a problem fails the task. Otherwise each becomes a warning, for the plan of a host that is not provisioned yet.
    type: bool
    default: true
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
  - module: bitflow.lms.deploy_lock
  - module: bitflow.lms.release_info
"""

EXAMPLES = r"""
- name: Find out whether the host can be deployed to
  bitflow.lms.deploy_preflight:
    applications:
      - /srv/lms/backend
    health:
      - url: http://api.example.com/health
        connect_to: 127.0.0.1:8000
    disk:
      - path: /srv/lms/backend
        free_bytes: 1000000000
        free_inodes: 50000
    directories:
      - /srv/lms/backend
    controller_time: "{{ now().timestamp() }}"
    php_requirements:
      php: ^8.2
      ext-redis: "*"
    endpoints:
      - name: database
        host: database.example.com
        port: 5432
      - name: cache
        host: cache.example.com
        port: 6379
        redis: true
        password: "{{ vault_redis_password }}"
    required_environment:
      - APP_KEY
      - DB_PASSWORD
    environment_names: "{{ environment_of_the_application.keys() }}"
    environment_drivers:
      CACHE_STORE: redis
      SESSION_DRIVER: redis
    identity:
      APP_ENV: production
      APP_URL: https://api.example.com
    live_environment: /srv/lms/backend/current/.env
    hosts_count: 2
    same_everywhere:
      APP_KEY: "{{ vault_app_key }}"
    salt: "{{ run_id }}"
  register: preflight

- name: Check that all hosts have the same key
  ansible.builtin.assert:
    that: ansible_play_hosts | map('extract', hostvars, ['preflight', 'fingerprints', 'APP_KEY']) | unique | length == 1
    fail_msg: APP_KEY differs between hosts.
  run_once: true
"""

RETURN = r"""
applications:
  description: What C(applications) of M(bitflow.lms.release_info) says, for each of O(applications).
  returned: always
  type: dict
  sample: {/srv/lms/backend: {current: 20261123210000-abc1234}}
healthy:
  description: Whether each health check of O(health) gave a good answer.
  returned: always
  type: bool
  sample: true
ready:
  description: Whether no problem was found.
  returned: always
  type: bool
  sample: false
checks:
  description: Everything that was looked at.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: What was looked at.
      returned: always
      type: str
      sample: ext-redis
    ok:
      description: Whether nothing is wrong with it.
      returned: always
      type: bool
      sample: false
    detail:
      description: What was found.
      returned: always
      type: str
      sample: It is not loaded.
problems:
  description: What would make a deployment fail.
  returned: always
  type: list
  elements: dict
  contains:
    check:
      description: The name of the check.
      returned: always
      type: str
      sample: ext-redis
    problem:
      description: What is wrong.
      returned: always
      type: str
      sample: PHP 8.4.16 has no extension redis.
    way_out:
      description: What to do about it.
      returned: always
      type: str
      sample: Install it, for example with the package php8.4-redis.
fingerprints:
  description: A salted hash of each value of O(same_everywhere).
  returned: always
  type: dict
  sample: {APP_KEY: 0c7a4bd5c6d8a1a0b8b2c1f0a1a3f4d2a4a1b9c3d7e6f5a4b3c2d1e0f9a8b7c6}
"""

import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._http_probe import Probe, run_probe
from ansible_collections.bitflow.lms.plugins.module_utils._preflight import (
    Check,
    Endpoint,
    RunCommand,
    check_clock,
    check_directories,
    check_disk,
    check_drivers,
    check_endpoint,
    check_environment,
    check_identity,
    check_php,
    fingerprints,
    message,
    verdict,
)
from ansible_collections.bitflow.lms.plugins.module_utils._release import Releases
from ansible_collections.bitflow.lms.plugins.module_utils._release_info import describe_applications


def run(run_command: RunCommand, params: dict[str, Any], now: float) -> dict[str, Any]:
    """Look at everything that is asked for, and return the module's result."""
    if params["same_everywhere"] and not params["salt"]:
        raise LmsError("salt is empty. Set it to a random text, the same for all hosts, to compare same_everywhere.")
    if params["identity"] and not params["live_environment"]:
        raise LmsError("live_environment is not set. Set it to the .env of the live release, to compare identity.")
    checks: list[Check] = check_directories(params["directories"]) + check_disk(params["disk"])
    if params["controller_time"] is not None:
        checks.append(check_clock(params["controller_time"], params["clock_skew_limit"], now))
    checks += check_php(run_command, params["php"], params["php_requirements"])
    if params["required_environment"]:
        checks.append(check_environment(params["required_environment"], params["environment_names"]))
    if params["identity"]:
        checks += check_identity(Path(params["live_environment"]), params["identity"])
    checks += check_drivers(params["environment_drivers"], params["hosts_count"])
    checks += [check_endpoint(Endpoint(**options), params["timeout"]) for options in params["endpoints"]]
    found = verdict(checks)
    warnings = [check.warning for check in checks if check.warning]
    if not params["enforced"]:
        warnings += [f"{entry['problem']} {entry['way_out']}" for entry in found["problems"]]
    return {
        "changed": False,
        **found,
        "applications": describe_applications([Releases(Path(path)) for path in params["applications"]]),
        "healthy": all(is_well(Probe(**asked, attempts=1)) for asked in params["health"]),
        "fingerprints": fingerprints(params["same_everywhere"], params["salt"]),
        "warnings": warnings,
    }


def is_well(probe: Probe) -> bool:
    """Say whether a health check gives a good answer."""
    try:
        run_probe(probe)
    except LmsError:
        return False
    return True


def main() -> None:
    """Run the module."""
    # First of all: what follows takes its time.
    now = time.time()
    module = AnsibleModule(
        argument_spec={
            "applications": {"type": "list", "elements": "path", "default": []},
            "health": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"url": {"type": "str", "required": True}, "connect_to": {"type": "str"}},
            },
            "disk": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "free_bytes": {"type": "int", "default": 0},
                    "free_inodes": {"type": "int", "default": 0},
                },
            },
            "directories": {"type": "list", "elements": "path", "default": []},
            "controller_time": {"type": "float"},
            "clock_skew_limit": {"type": "float", "default": 30},
            "php_requirements": {"type": "dict", "default": {}},
            "php": {"type": "str", "default": "php"},
            "endpoints": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "host": {"type": "str"},
                    "port": {"type": "int"},
                    "unix_socket": {"type": "path"},
                    "redis": {"type": "bool", "default": False},
                    "username": {"type": "str"},
                    "password": {"type": "str", "no_log": True},
                    "tls": {"type": "bool", "default": False},
                    "ca_path": {"type": "path"},
                },
                "mutually_exclusive": [("host", "unix_socket"), ("tls", "unix_socket")],
                "required_one_of": [("host", "unix_socket")],
                "required_together": [("host", "port")],
            },
            "timeout": {"type": "float", "default": 3},
            "required_environment": {"type": "list", "elements": "str", "default": []},
            "environment_names": {"type": "list", "elements": "str", "default": []},
            "environment_drivers": {"type": "dict", "default": {}},
            "identity": {"type": "dict", "default": {}},
            "live_environment": {"type": "path"},
            "hosts_count": {"type": "int", "default": 1},
            "same_everywhere": {"type": "dict", "default": {}, "no_log": True},
            "salt": {"type": "str", "default": ""},
            "enforced": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module.run_command, module.params, now)
    except LmsError as error:
        module.fail_json(**error.as_result())
    for warning in result.pop("warnings"):
        module.warn(warning)
    if result["problems"] and module.params["enforced"]:
        module.fail_json(msg=message(result["problems"]), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
