#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: laravel_workers
short_description: Bring the long-running processes of a Laravel application to the live release
version_added: 1.0.0
author: Bitflow LMS contributors (@bitflow)
description:
  - After a switch, queue workers, Horizon, Reverb, Octane, Pulse and the scheduler still run the code that they were started with. This
    module finds these processes in C(/proc), lets each end its job, and waits until every process of the application runs O(release).
  - PHP keeps the script that it was started with open, so C(/proc) tells the release of a worker for certain, also when it was started
    through the link C(current). Where that file is not to be seen, the working directory tells it, or the time of the start against the
    time of the switch. RV(before[].proof) says which it was.
  - Services of systemd are restarted all at the same time, each within its C(TimeoutStopSec). The others are told by artisan, where this
    Laravel has the command - C(queue:restart), C(horizon:terminate), C(reverb:restart), C(octane:reload), C(pulse:restart),
    C(schedule:interrupt). What it lacks is in RV(steps_skipped).
  - C(queue:restart) and its like go through the cache, so they also reach the workers of other hosts, which then start anew in the release
    that is live there.
  - A run of the scheduler and every other artisan command that started before the switch is waited for, not ended. An interactive one, such
    as C(tinker), is left alone. PHP-FPM is not looked at, since it changes over in other ways.
  - What still runs another release at the end makes the task fail.
options:
  path:
    description:
      - Directory of the application, which holds C(releases) and the link C(current).
    type: path
    required: true
  release:
    description:
      - Id of the release that everything must run. It must be the live one. The live one when it is left out.
    type: str
  state:
    description:
      - V(restarted) cycles what runs another release, starts those of O(units) that do not run, and waits.
      - V(checked) only looks, and fails when something runs another release.
    type: str
    choices: [restarted, checked]
    default: restarted
  units:
    description:
      - Services, targets or patterns of them that belong to the application. Of a target, its services are meant.
      - A service whose main process runs the application is restarted although it is not named here. Naming it has it started as well.
    type: list
    elements: str
    default: []
  ignored_units:
    description:
      - Patterns of units whose processes are not looked at.
    type: list
    elements: str
    default: ["*-fpm@*.service", "*-frontend@*.service"]
  kinds:
    description:
      - Which processes to look at. V(command) is every artisan command and PHP script beside the others.
    type: list
    elements: str
    choices: [queue, horizon, reverb, octane, pulse, schedule, command]
    default: [queue, horizon, reverb, octane, pulse, schedule, command]
  wait:
    description:
      - Seconds after which everything must run the release - the longest job.
      - Without it, the longest C(TimeoutStopSec) of the restarted units, at least 60 seconds, and 15 seconds for their start.
    type: int
  leftovers_allowed:
    description:
      - Only report what still runs another release.
    type: bool
    default: false
  php:
    description:
      - Name or path of PHP's command line, for artisan.
    type: str
    default: php
  user:
    description:
      - User to run artisan as. The one that the process runs as when it is left out.
    type: str
attributes:
  check_mode:
    description: Lists what would be cycled. The release need not be there yet.
    support: full
  diff_mode:
    description: Shows which release each process ran, and runs.
    support: full
  platform:
    description: Target systems.
    platforms: posix
    support: full
requirements:
  - Linux with systemd
  - runuser (of util-linux), where artisan runs as another user
notes:
  - Run the task as root. Any other user sees only its own processes.
seealso:
  - module: bitflow.lms.release
"""

EXAMPLES = r"""
- name: Bring the workers to the live release
  bitflow.lms.laravel_workers:
    path: /srv/lms/backend
    units:
      - lms-workers.target
  become: true

- name: Bring everything to the release, with jobs of up to ten minutes
  bitflow.lms.laravel_workers:
    path: /srv/lms/backend
    release: 20261123210000-abc1234
    units:
      - lms-queue@*.service
      - lms-horizon.service
    wait: 600
  become: true

- name: Prove that nothing runs old code
  bitflow.lms.laravel_workers:
    path: /srv/lms/backend
    state: checked
  become: true
"""

RETURN = r"""
release:
  description: The release that everything must run. Null when there is none yet.
  returned: always
  type: str
  sample: 20261123210000-abc1234
restarted:
  description: The units that were restarted or started. In check mode, those that would be.
  returned: always
  type: list
  elements: str
  sample: [lms-queue@1.service, lms-queue@2.service]
commands:
  description: The artisan commands that told other processes to end. In check mode, those that would be tried.
  returned: always
  type: list
  elements: str
  sample: ["horizon:terminate"]
before:
  description: The processes of the application when the task began, by their numbers.
  returned: always
  type: list
  elements: dict
  contains: &process
    pid:
      description: Number of the process.
      returned: always
      type: int
      sample: 4711
    kind:
      description: What it does, as O(kinds) names it.
      returned: always
      type: str
      sample: queue
    command:
      description: Its command line, without values that look like secrets.
      returned: always
      type: str
      sample: /usr/bin/php /srv/lms/backend/current/artisan queue:work
    user:
      description: The user that it runs as.
      returned: always
      type: str
      sample: lms
    unit:
      description: Its service, or null outside of services.
      returned: always
      type: str
      sample: lms-queue@1.service
    release:
      description: The release that it runs. Null when all that is known is that it started before the switch.
      returned: always
      type: str
      sample: 20261123210000-abc1234
    proof:
      description: What tells its release - an open V(file), an V(argument), the V(program), the working V(directory), or its V(start).
      returned: always
      type: str
      sample: file
    current:
      description: Whether it runs the release that it must.
      returned: always
      type: bool
      sample: true
    started:
      description: When it was started.
      returned: always
      type: str
      sample: "2026-11-23T21:05:13Z"
    age:
      description: Its age in seconds.
      returned: always
      type: int
      sample: 12
after:
  description: The processes of the application at the end.
  returned: always
  type: list
  elements: dict
  contains: *process
leftovers:
  description: Those of RV(after) that run another release and must not.
  returned: always
  type: list
  elements: dict
  contains: *process
steps_skipped:
  description: What was not done.
  returned: always
  type: list
  elements: dict
  contains:
    what:
      description: The command, unit or process.
      returned: always
      type: str
      sample: "reverb:restart"
    reason:
      description: Why.
      returned: always
      type: str
      sample: Laravel 10.48.29 in /srv/lms/backend/current has no command reverb:restart.
killed:
  description: Units whose process systemd killed, because its job took longer than C(TimeoutStopSec).
  returned: always
  type: list
  elements: str
  sample: []
progress:
  description: Which process ended after how many seconds.
  returned: always
  type: list
  elements: str
  sample: ["0.6 s: queue:work (pid 4711, lms-queue@1.service) ended."]
seconds:
  description: How long it took.
  returned: always
  type: float
  sample: 2.1
"""

import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._processes import KINDS, Application, ProcessTable
from ansible_collections.bitflow.lms.plugins.module_utils._systemd import Systemctl
from ansible_collections.bitflow.lms.plugins.module_utils._workers import (
    Report,
    Systemd,
    Workers,
    as_user,
    awaited,
    leftover_error,
    live_release,
    switched_at,
)


def application_from(params: dict[str, Any], check_mode: bool) -> Application:
    """Return what the processes are held against."""
    root = Path(params["path"])
    live = live_release(root)
    release = params["release"] or live
    if release != live and not check_mode:
        raise LmsError(f"{root}/current leads to {live or 'nothing'}, not to {release}. Switch to the release first.", live=live)
    if live is None and not check_mode:
        raise LmsError(f"{root} has no live release: there is no link current. Correct path, or deploy a release first.")
    # What check mode plans for happens now.
    switched = switched_at(root) if live is not None and release == live else time.time()
    return Application(root, release or "", switched, tuple(params["kinds"]), tuple(params["ignored_units"]))


def run(workers: Workers, params: dict[str, Any], check_mode: bool) -> Report:
    """Cycle the processes or only look; raise for what is left."""
    only_look = params["state"] == "checked"
    report = workers.check() if only_look else workers.restart(params["units"], params["wait"], check_mode)
    if awaited(report.after) and not params["leftovers_allowed"] and (only_look or not check_mode):
        raise leftover_error(report, workers.application, time.time())
    return report


def main() -> None:
    """Read the options, cycle the processes, report."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "release": {"type": "str"},
            "state": {"type": "str", "choices": ["restarted", "checked"], "default": "restarted"},
            "units": {"type": "list", "elements": "str", "default": []},
            "ignored_units": {"type": "list", "elements": "str", "default": ["*-fpm@*.service", "*-frontend@*.service"]},
            "kinds": {"type": "list", "elements": "str", "choices": list(KINDS), "default": list(KINDS)},
            "wait": {"type": "int"},
            "leftovers_allowed": {"type": "bool", "default": False},
            "php": {"type": "str", "default": "php"},
            "user": {"type": "str"},
        },
        supports_check_mode=True,
    )
    params = module.params

    def artisan_of(user: str) -> Artisan:
        """Return the live release's artisan, as the user whose processes it speaks to."""
        return Artisan(as_user(module.run_command, params["user"] or user), f"{params['path']}/current", params["php"])

    try:
        application = application_from(params, module.check_mode)
        workers = Workers(application, Systemd(Systemctl()), ProcessTable().read, artisan_of)
        report = run(workers, params, module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    for warning in report.warnings:
        module.warn(warning)
    module.exit_json(**report.as_result(application, time.time()))


if __name__ == "__main__":
    main()
