#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: opcache
short_description: Read, reset, invalidate or warm the OPcache of PHP-FPM
version_added: 1.0.0
author: Bitflow LMS contributors (@bitflow)
description:
  - OPcache lives in the memory of PHP-FPM and can only be reached from inside. The module writes a short script into O(directory), runs
    it over FastCGI and removes it. No reload is needed, so no request is lost.
  - All pools of one PHP-FPM service share one OPcache. Any of their sockets will do.
  - When OPcache cannot be used in the pool, RV(enabled) is false and RV(reason) says why. That is not a failure.
options:
  action:
    description:
      - V(status) reads.
      - V(reset) empties the cache, and proves that it was emptied or will be once the running requests are done.
      - V(invalidate) drops the scripts that are, or lie under, O(paths); also those whose files are gone already.
      - V(warm) compiles the PHP files that are, or lie under, O(paths), without running them. Files that OPcache still takes for fresh
        are waited for.
    type: str
    choices: [status, reset, invalidate, warm]
    default: status
  socket:
    description:
      - Where a pool of the PHP-FPM service listens. A path, or C(host:port).
    type: str
    required: true
  group:
    description:
      - Name or number of the group of the pool's user. It must read the script.
    type: str
    required: true
  directory:
    description:
      - Directory for the script, outside of any document root. It is made with mode 0710 for this user and O(group), and must serve
        nothing else.
    type: path
    default: /run/lms-opcache
  paths:
    description:
      - Files or directories, as absolute paths. Needed for V(invalidate) and V(warm).
    type: list
    elements: path
    default: []
  timeout:
    description:
      - Seconds that one request may take.
    type: float
    default: 30
attributes:
  check_mode:
    description: Reads the status and counts what would be done. The script is written and removed for that.
    support: full
  diff_mode:
    description: The cache has no content to show.
    support: none
  platform:
    description: Target systems.
    platforms: posix
    support: full
seealso:
  - module: bitflow.lms.fpm_probe
"""

EXAMPLES = r"""
- name: Empty OPcache after the switch
  bitflow.lms.opcache:
    action: reset
    socket: /run/php/lms.sock
    group: lms
  become: true

- name: Compile the candidate into OPcache before the switch
  bitflow.lms.opcache:
    action: warm
    socket: /run/php/lms.sock
    group: lms
    paths:
      - /srv/lms/backend/releases/20261123210000-abc1234/app
      - /srv/lms/backend/releases/20261123210000-abc1234/bootstrap
  become: true

- name: Forget a release that was removed
  bitflow.lms.opcache:
    action: invalidate
    socket: /run/php/lms.sock
    group: lms
    paths:
      - /srv/lms/backend/releases/20261101090000-0123abc
  become: true
"""

RETURN = r"""
action:
  description: What was done.
  returned: always
  type: str
  sample: invalidate
enabled:
  description: Whether OPcache can be used in the pool.
  returned: always
  type: bool
  sample: true
reason:
  description: Why OPcache cannot be used or the task was skipped, else empty.
  returned: always
  type: str
  sample: "OPcache cannot be used in this pool: opcache.enable is off."
full:
  description: Whether the cache takes no further scripts.
  returned: always
  type: bool
  sample: false
restart_pending:
  description: Whether the cache waits for running requests before it empties itself.
  returned: always
  type: bool
  sample: false
cached_scripts:
  description: How many scripts are in the cache.
  returned: always
  type: int
  sample: 459
invalidated:
  description: How many scripts were dropped.
  returned: always
  type: int
  sample: 61
warmed:
  description: How many scripts came into the cache.
  returned: always
  type: int
  sample: 0
not_cached:
  description: Files that did not come into the cache, at most 100 of them.
  returned: always
  type: list
  elements: str
  sample: []
memory:
  description: Sizes of the cache in bytes.
  returned: always
  type: dict
  sample: {free: 114952136, used: 19265592, wasted: 0}
statistics:
  description: Counters since the last start of PHP-FPM or reset.
  returned: always
  type: dict
  sample:
    cached_keys: 494
    hash_restarts: 0
    hit_rate: 66.62
    hits: 918
    manual_restarts: 0
    max_cached_keys: 16229
    misses: 460
    oom_restarts: 0
skipped:
  description: Check mode found no PHP-FPM to ask.
  returned: when skipped
  type: bool
  sample: true
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._opcache import run


def main() -> None:
    """Read the options, act, report."""
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "choices": ["status", "reset", "invalidate", "warm"], "default": "status"},
            "socket": {"type": "str", "required": True},
            "group": {"type": "str", "required": True},
            "directory": {"type": "path", "default": "/run/lms-opcache"},
            "paths": {"type": "list", "elements": "path", "default": []},
            "timeout": {"type": "float", "default": 30},
        },
        required_if=[("action", "invalidate", ["paths"]), ("action", "warm", ["paths"])],
        supports_check_mode=True,
    )
    try:
        result = run(module.params, module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
