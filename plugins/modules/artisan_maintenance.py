#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: artisan_maintenance
short_description: Put a Laravel application into maintenance, or end it
version_added: 1.0.0
author: Bitflow LMS contributors (@bitflow)
description:
  - Brings the maintenance mode of a release to what is asked for, and reads it again. The exit status of artisan is not taken as proof.
  - Laravel's own command C(down) makes the payload, in a rehearsal beside the application's files; then it is put in place by a rename. An
    application that is down stays down while its secret changes, which C(artisan down) cannot do before Laravel 12.53 - it keeps the
    old secret and ends with status 0.
  - The driver of the application is found, C(file) or C(cache). With C(file) the mode belongs to one release, and the module release
    carries it to the next one. With C(cache) it belongs to all releases and hosts that share the store.
  - During maintenance the queue workers take no jobs and the scheduler runs no tasks, unless the application says otherwise.
options:
  state:
    description:
      - V(down) puts the application into maintenance, with exactly the options given here.
      - V(up) ends it.
    type: str
    choices: [down, up]
    required: true
  secret:
    description:
      - Whoever opens this path once gets a cookie with which the application answers as usual.
      - At least 8 characters of letters, digits and C(._~-).
      - It reaches Laravel by the standard input of PHP. It is in no command line, result or diff.
    type: str
  retry:
    description:
      - Seconds for the header C(Retry-After).
    type: int
  refresh:
    description:
      - Seconds after which browsers ask again, for the header C(Refresh). Since Laravel 8.42.
    type: int
  status:
    description:
      - Status of the answers. Laravel's 503 when it is left out.
    type: int
  redirect:
    description:
      - Path that all requests are sent to instead of an answer.
    type: str
  render:
    description:
      - View that is rendered now and served without a start of Laravel, such as V(errors::503).
    type: str
  excepted:
    description:
      - Paths that must answer during maintenance, such as the one that a load balancer asks. When the application does not except one,
        the task fails and changes nothing.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - bitflow.lms.artisan
attributes:
  check_mode:
    description: The payload is made and compared, and not put in place. A release that is not there yet is skipped with the reason.
    support: full
  diff_mode:
    description: Shows the payload, without the secret and with a sum of the rendered page.
    support: full
  platform:
    description: Target systems.
    platforms: posix
    support: full
seealso:
  - module: bitflow.lms.artisan
  - module: bitflow.lms.release
"""

EXAMPLES = r"""
- name: Answer with a page that was rendered before
  bitflow.lms.artisan_maintenance:
    chdir: /srv/lms/backend/current
    state: down
    render: errors::503
    retry: 60
    secret: "{{ vault_maintenance_secret }}"
    excepted:
      - /health
  become: true
  become_user: lms-deploy

- name: End the maintenance
  bitflow.lms.artisan_maintenance:
    chdir: /srv/lms/backend/current
    state: up
  become: true
  become_user: lms-deploy
"""

RETURN = r"""
active:
  description: Whether the application is in maintenance when the task ends; in check mode, whether it would be.
  returned: always
  type: bool
  sample: true
driver:
  description: Where Laravel keeps the mode. Null when the release is not there.
  returned: always
  type: str
  sample: file
payload:
  description: What Laravel keeps, without the secret and with a sum of the rendered page.
  returned: always
  type: dict
  sample: {"active": true, "except": ["/health"], "retry": 60, "secret": "set", "status": 503}
options_skipped:
  description: The options that this Laravel does not have.
  returned: always
  type: list
  elements: dict
  contains:
    what:
      description: Name of the option.
      returned: always
      type: str
      sample: refresh
    reason:
      description: Why it was left out.
      returned: always
      type: str
      sample: artisan down of Laravel 8.0.0 has no option --refresh; Laravel 8.42 brought it.
laravel_version:
  description: The version of Laravel, or null when its source is not in the usual place.
  returned: always
  type: str
  sample: 10.48.29
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

from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan, artisan_argspec, public_values
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._maintenance import (
    Maintenance,
    check_excepted,
    down_options,
    missing_options,
    shown_payload,
)
from ansible_collections.bitflow.lms.plugins.module_utils._migrations import guard_release


def run(maintenance: Maintenance, params: Mapping[str, Any], check_mode: bool) -> dict[str, Any]:
    """Bring the application down or up, and return the module's result."""
    artisan = maintenance.artisan
    options = down_options(params) if params["state"] == "down" else None
    reason = guard_release(artisan, check_mode)
    if reason:
        return skipped_result(reason)
    look = maintenance.look(options)
    if params["state"] == "down":
        check_excepted(look, params["excepted"], artisan.directory)
    changed = look.payload != look.wanted
    if changed and not check_mode:
        if look.wanted is None:
            maintenance.bring_up(look)
        else:
            maintenance.take_down(look)
    after = shown_payload(look.wanted, look.payload)
    return {
        "changed": changed,
        "active": look.wanted is not None,
        "driver": look.driver,
        "payload": shown_payload(look.wanted),
        "options_skipped": missing_options(look, artisan),
        "laravel_version": artisan.version(),
        "reason": "",
        "diff": {"before": shown_payload(look.payload), "after": after},
    }


def skipped_result(reason: str) -> dict[str, Any]:
    """Return the result for a release that is not there yet."""
    empty: dict[str, Any] = {"active": False, "driver": None, "payload": {"active": False}, "options_skipped": [], "laravel_version": None}
    return {"changed": False, **empty, "skipped": True, "reason": reason, "diff": {"before": {}, "after": {}}}


def main() -> None:
    """Read the options, change the mode, report."""
    module = AnsibleModule(
        argument_spec={
            **artisan_argspec(),
            "state": {"type": "str", "choices": ["down", "up"], "required": True},
            "secret": {"type": "str", "no_log": True},
            "retry": {"type": "int"},
            "refresh": {"type": "int"},
            "status": {"type": "int"},
            "redirect": {"type": "str"},
            "render": {"type": "str"},
            "excepted": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    params = module.params
    module.no_log_values -= public_values(params["environment"])
    artisan = Artisan(module.run_command, params["chdir"], params["php"], params["environment"], params["timeout"])
    try:
        warning = artisan.ownership_warning()
        if warning:
            module.warn(warning)
        result = run(Maintenance(artisan), params, module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    for skipped in result["options_skipped"]:
        module.warn(f"{skipped['reason']} The option {skipped['what']} was left out.")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
