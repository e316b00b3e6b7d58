#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: artisan_info
short_description: Describe a Laravel application
version_added: 1.0.0
author: Bitflow LMS contributors (@bitflow)
description:
  - Tells the version of a Laravel release, its environment, drivers, caches, commands, and which features its artisan has.
  - Takes C(artisan about) as JSON where Laravel can print it (since 9.21) and reads its text otherwise. Before 9.21 there may be no
    C(about) at all; then RV(drivers) and RV(caches) are empty, and RV(php_version) and RV(debug) are null.
  - Changes nothing.
extends_documentation_fragment:
  - bitflow.lms.artisan
attributes:
  check_mode:
    description: Reads as always. A release that is not there yet is skipped with the reason.
    support: full
  diff_mode:
    description: Nothing is changed.
    support: none
  platform:
    description: Target systems.
    platforms: posix
    support: full
seealso:
  - module: bitflow.lms.artisan
  - module: bitflow.lms.release_info
"""

EXAMPLES = r"""
- name: Describe the live release
  bitflow.lms.artisan_info:
    chdir: /srv/lms/backend/current
  register: application
  become: true
  become_user: lms-deploy

- name: Refuse an application that shows its errors to visitors
  ansible.builtin.assert:
    that: not application.debug
    fail_msg: Set APP_DEBUG to false.
"""

RETURN = r"""
laravel_version:
  description: The version of Laravel.
  returned: always
  type: str
  sample: 10.48.29
php_version:
  description: The version of PHP that runs artisan, or null before Laravel 9.21.
  returned: always
  type: str
  sample: 8.4.28
environment:
  description: The application's environment.
  returned: always
  type: str
  sample: production
debug:
  description: Whether the application shows its errors, or null before Laravel 9.21.
  returned: always
  type: bool
  sample: false
maintenance:
  description: Whether the application is in maintenance.
  returned: always
  type: bool
  sample: false
drivers:
  description: The driver of each part.
  returned: always
  type: dict
  sample: {"cache": "redis", "database": "pgsql", "queue": "redis", "session": "redis"}
caches:
  description: Whether each cache of the release was built.
  returned: always
  type: dict
  sample: {"config": true, "events": true, "routes": true, "views": true}
about:
  description: All sections of C(artisan about).
  returned: always
  type: dict
  sample: {"environment": {"application_name": "LMS", "laravel_version": "10.48.29"}}
commands:
  description: The names of all commands.
  returned: always
  type: list
  elements: str
  sample: [about, "cache:clear"]
features:
  description: What this Laravel can do, such as V(schedule_interrupt) or V(horizon).
  returned: always
  type: dict
  sample: {"about_json": true, "queue_pause": false}
skipped:
  description: Check mode found no release to read.
  returned: when skipped
  type: bool
  sample: true
reason:
  description: Why the task was skipped, else empty.
  returned: always
  type: str
  sample: ""
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan, artisan_argspec, public_values
from ansible_collections.bitflow.lms.plugins.module_utils._artisan_info import describe
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._migrations import guard_release


def run(artisan: Artisan, check_mode: bool) -> dict[str, Any]:
    """Describe the application."""
    reason = guard_release(artisan, check_mode)
    if reason:
        unknown = dict.fromkeys(("laravel_version", "php_version", "environment", "debug", "maintenance"))
        nothing: dict[str, Any] = {"drivers": {}, "caches": {}, "about": {}, "commands": [], "features": {}}
        return {"changed": False, **unknown, **nothing, "skipped": True, "reason": reason}
    return {"changed": False, **describe(artisan), "reason": ""}


def main() -> None:
    """Read the options, describe the application, report."""
    module = AnsibleModule(argument_spec=artisan_argspec(), supports_check_mode=True)
    params = module.params
    module.no_log_values -= public_values(params["environment"])
    artisan = Artisan(module.run_command, params["chdir"], params["php"], params["environment"], params["timeout"])
    try:
        warning = artisan.ownership_warning()
        if warning:
            module.warn(warning)
        result = run(artisan, module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
