#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: artisan_cache
short_description: Build, remove or prove the caches of a Laravel release
version_added: 1.0.0
author: Bitflow LMS contributors (@bitflow)
description:
  - Builds each cache by its own artisan command, never by C(optimize), which ends with status 0 when a command inside it failed.
  - The effect is what counts. A cache must have been written anew, and all of it must be valid PHP. Artisan accepts broken templates.
  - Laravel writes some caches in place. Build them for a release that is not live yet, as M(bitflow.lms.laravel_release) does.
options:
  caches:
    description:
      - The caches, in any order.
    type: list
    elements: str
    choices: [config, event, route, view]
    default: [config, event, route, view]
  state:
    description:
      - V(present) builds the caches anew. It is a change when their contents differ afterwards.
      - V(absent) removes them.
      - V(verified) changes nothing, and fails unless every cache is there.
    type: str
    choices: [present, absent, verified]
    default: present
  lint:
    description:
      - Whether PHP reads all files of C(bootstrap/cache) and, for V(verified), the compiled views. Those that V(present) compiles are
        read in any case.
    type: bool
    default: true
extends_documentation_fragment:
  - bitflow.lms.artisan
attributes:
  check_mode:
    description: V(present) and V(absent) say what would run. V(verified) looks as usual, unless the release is not there yet.
    support: full
  diff_mode:
    description: Shows the caches as content sums.
    support: full
  platform:
    description: Target systems.
    platforms: posix
    support: full
seealso:
  - module: bitflow.lms.artisan
  - module: bitflow.lms.laravel_release
"""

EXAMPLES = r"""
- name: Build the caches of the release
  bitflow.lms.artisan_cache:
    chdir: /srv/lms/backend/releases/20261123210000-abc1234
  become: true
  become_user: lms-deploy

- name: Prove that the caches of the live release are whole
  bitflow.lms.artisan_cache:
    chdir: /srv/lms/backend/current
    state: verified
  become: true
  become_user: lms-deploy

- name: Remove the cache of the routes
  bitflow.lms.artisan_cache:
    chdir: /srv/www/example
    caches: [route]
    state: absent
"""

RETURN = r"""
caches:
  description: What there is of each cache after the task, by its path in the release. In check mode what would be there.
  returned: always
  type: dict
  sample:
    bootstrap/cache/config.php: sha256:0a1b2c3d4e5f6071
    storage/framework/views: 21 views, sha256:1b2c3d4e5f607182
results:
  description: One entry a command, as M(bitflow.lms.artisan) returns it.
  returned: always
  type: list
  elements: dict
  sample: []
laravel_version:
  description: The version of Laravel, or null when its source is not in the usual place.
  returned: always
  type: str
  sample: 10.48.29
broken_views:
  description: The templates that compile to broken PHP.
  returned: when there are any
  type: list
  elements: str
  sample: ["resources/views/welcome.blade.php: Parse error: syntax error, unexpected end of file on line 3"]
broken_files:
  description: The files of bootstrap/cache that are broken PHP.
  returned: when there are any
  type: list
  elements: str
  sample: []
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan, artisan_argspec, public_values
from ansible_collections.bitflow.lms.plugins.module_utils._artisan_cache import CACHES, run
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError


def main() -> None:
    """Read the options, bring the caches into their state, report."""
    module = AnsibleModule(
        argument_spec={
            **artisan_argspec(),
            "caches": {"type": "list", "elements": "str", "choices": list(CACHES), "default": list(CACHES)},
            "state": {"type": "str", "choices": ["present", "absent", "verified"], "default": "present"},
            "lint": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    module.no_log_values -= public_values(params["environment"])
    artisan = Artisan(module.run_command, params["chdir"], params["php"], params["environment"], params["timeout"])
    try:
        result = run(artisan, params["caches"], params["state"], params["lint"], module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
