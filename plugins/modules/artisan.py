#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: artisan
short_description: Run artisan commands of a Laravel release
version_added: 1.0.0
author: Bitflow LMS contributors (@bitflow)
description:
  - Runs one or several artisan commands in their order. The first failure ends the task.
  - A status of 0 is not taken as proof where the effect of a command is known. C(config:cache), C(event:cache) and C(route:cache) must
    have written their file anew; C(view:cache) must have compiled the templates to valid PHP; C(storage:link) must have left links to
    directories; C(config:clear), C(event:clear), C(route:clear) and C(view:clear) must have left nothing.
  - These commands report C(changed) by comparing contents, so a second run is not a change. Any other command counts as a change
    unless O(read_only) or O(changed_when_output) says otherwise.
  - C(optimize), C(optimize:clear) and C(reload) are refused, because they end with status 0 when a command inside them failed.
  - C(view:cache) removes all compiled views first. Never let two releases share C(storage/framework/views).
options:
  command:
    description:
      - Name of the one command to run, without arguments.
    type: str
  arguments:
    description:
      - Arguments and options of O(command). They appear in the process list and in the result, so give secrets in O(environment).
    type: list
    elements: str
    default: []
  commands:
    description:
      - Several commands to run in one task.
    type: list
    elements: dict
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
      read_only:
        description:
          - As O(read_only), for this command.
        type: bool
      changed_when_output:
        description:
          - As O(changed_when_output), for this command.
        type: str
      version_min:
        description:
          - As O(version_min), for this command.
        type: str
      version_max:
        description:
          - As O(version_max), for this command.
        type: str
  read_only:
    description:
      - Whether the commands change nothing. Such commands also run in check mode and are never a change.
      - Commands that are known to read only, such as C(about) and C(route:list), need not be marked.
    type: bool
  changed_when_output:
    description:
      - Regular expression. The command counts as a change when its output matches.
    type: str
  version_min:
    description:
      - Oldest Laravel that has the command, such as V(11.27). On an older one the command is skipped and its result says why.
    type: str
  version_max:
    description:
      - Newest Laravel that has the command. V(10) includes every 10.x. On a newer one the command is skipped and its result says why.
    type: str
  hidden_failures_accepted:
    description:
      - Run C(optimize), C(optimize:clear) and C(reload) although nobody can tell from them whether they worked.
    type: bool
    default: false
extends_documentation_fragment:
  - bitflow.lms.artisan
  - bitflow.lms.lease
attributes:
  check_mode:
    description: Commands that read only run. The others are listed as those that would run; artisan is asked whether it has them.
    support: full
  diff_mode:
    description: Shows the state of the files whose command is known, as content sums.
    support: partial
  platform:
    description: Target systems.
    platforms: posix
    support: full
seealso:
  - module: bitflow.lms.artisan_migrate
  - module: bitflow.lms.deploy_lock
  - module: bitflow.lms.fpm_probe
"""

EXAMPLES = r"""
- name: Build the caches of the release
  bitflow.lms.artisan:
    chdir: /srv/lms/backend/releases/20261123210000-abc1234
    commands:
      - command: config:cache
      - command: event:cache
      - command: route:cache
      - command: view:cache
      - command: storage:link
        arguments:
          - --relative
  become: true
  become_user: lms-deploy

- name: Tell the queue workers to restart
  bitflow.lms.artisan:
    chdir: /srv/lms/backend/current
    command: queue:restart
  become: true
  become_user: lms-deploy

- name: Pause the scheduler where Laravel can
  bitflow.lms.artisan:
    chdir: /srv/lms/backend/current
    command: schedule:pause
    version_min: "13"
  become: true
  become_user: lms-deploy
"""

RETURN = r"""
results:
  description: One entry a command, in their order. On failure those that ran.
  returned: always
  type: list
  elements: dict
  contains:
    command:
      description: The name of the command.
      returned: always
      type: str
      sample: config:cache
    argv:
      description: The arguments that were run. Empty when the command did not run.
      returned: always
      type: list
      elements: str
      sample: [php, artisan, --no-interaction, --no-ansi, "config:cache"]
    rc:
      description: The status that the command ended with, or null when it did not run.
      returned: always
      type: int
      sample: 0
    stdout:
      description: What the command printed.
      returned: always
      type: str
      sample: "INFO  Configuration cached successfully."
    stderr:
      description: What the command printed as errors.
      returned: always
      type: str
      sample: ""
    changed:
      description: Whether this command changed something, or in check mode would.
      returned: always
      type: bool
      sample: true
    skipped:
      description: Whether Laravel's version kept the command from running.
      returned: always
      type: bool
      sample: false
    reason:
      description: Why the command did not run, or what is wrong with its effect.
      returned: always
      type: str
      sample: Laravel 10.48.29 is older than version_min 13.
laravel_version:
  description: The version of Laravel, or null when its source is not in the usual place.
  returned: always
  type: str
  sample: 10.48.29
broken_views:
  description: The templates that compile to broken PHP.
  returned: when view:cache left broken views
  type: list
  elements: str
  sample: ["resources/views/welcome.blade.php: Parse error: syntax error, unexpected end of file on line 3"]
"""

from functools import partial

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan, artisan_argspec, public_values
from ansible_collections.bitflow.lms.plugins.module_utils._artisan_commands import plan_steps, run_steps
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._lease import acting, lease_argspec


def main() -> None:
    """Read the options, run the commands, report."""
    judgement = {
        "read_only": {"type": "bool"},
        "changed_when_output": {"type": "str"},
        "version_min": {"type": "str"},
        "version_max": {"type": "str"},
    }
    arguments = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            **artisan_argspec(),
            **lease_argspec(),
            **judgement,
            "command": {"type": "str"},
            "arguments": arguments,
            "commands": {
                "type": "list",
                "elements": "dict",
                "options": {"command": {"type": "str", "required": True}, "arguments": arguments, **judgement},
            },
            "hidden_failures_accepted": {"type": "bool", "default": False},
        },
        mutually_exclusive=[("command", "commands")],
        required_one_of=[("command", "commands")],
        supports_check_mode=True,
    )
    params = module.params
    module.no_log_values -= public_values(params["environment"])
    try:
        with acting(None if module.check_mode else params["lease"]) as descriptors:
            # artisan inherits the lock of who acts: it still counts as at work when this process is killed.
            run_command = partial(module.run_command, pass_fds=descriptors)
            artisan = Artisan(run_command, params["chdir"], params["php"], params["environment"], params["timeout"])
            result = run_steps(artisan, plan_steps(params), module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
