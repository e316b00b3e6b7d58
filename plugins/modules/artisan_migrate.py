#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: artisan_migrate
short_description: Plan and run the database migrations of a Laravel release
version_added: 1.0.0
author: Bitflow LMS contributors (@bitflow)
description:
  - Reads which migrations of a release are pending, runs them, and reads again whether any is left. C(changed) and RV(applied) come from
    these two looks at the database, not from what C(migrate) prints.
  - A database without the table of migrations has all migration files of the release pending. Migrations that Composer packages bring by
    themselves are not known before the first run on such a database.
  - C(migrate --isolated) is not used, because it skips the migrations and ends with status 0 when its lock is held. Run the task on one
    host only.
  - C(migrate --pretend) is not used, because it writes to an empty database.
  - When a migration breaks, the task fails and says what was applied, which one broke and what it leaves in the database. Nothing is
    rolled back.
options:
  state:
    description:
      - V(planned) lists what is pending and changes nothing.
      - V(migrated) runs what is pending.
    type: str
    choices: [planned, migrated]
    default: planned
  database:
    description:
      - Name of the connection in the application's configuration, when it is not its default.
    type: str
  path:
    description:
      - Directories or files with migrations, relative to O(chdir) or absolute. Without it Laravel takes C(database/migrations) and what
        packages bring.
    type: list
    elements: str
    default: []
  step:
    description:
      - Give each migration a batch of its own, so that it can be rolled back alone.
    type: bool
    default: false
  timeout:
    description:
      - Seconds that each command may take. Then it is stopped and the task fails.
      - A migration that is stopped may go on inside the database, so choose more than the longest one needs.
    type: int
    default: 3600
extends_documentation_fragment:
  - bitflow.lms.artisan
attributes:
  check_mode:
    description: Lists what is pending, as V(planned) does. A release that is not there yet is skipped with the reason.
    support: full
  diff_mode:
    description: Shows the pending migrations before and after.
    support: full
  platform:
    description: Target systems.
    platforms: posix
    support: full
seealso:
  - module: bitflow.lms.artisan
"""

EXAMPLES = r"""
- name: List the pending migrations
  bitflow.lms.artisan_migrate:
    chdir: /srv/lms/backend/releases/20261123210000-abc1234
  become: true
  become_user: lms-deploy

- name: Run the migrations
  bitflow.lms.artisan_migrate:
    chdir: /srv/lms/backend/releases/20261123210000-abc1234
    state: migrated
    step: true
  become: true
  become_user: lms-deploy

- name: Run the migrations of the reporting database
  bitflow.lms.artisan_migrate:
    chdir: /srv/lms/backend/releases/20261123210000-abc1234
    state: migrated
    database: reporting
    path:
      - database/migrations/reporting
  become: true
  become_user: lms-deploy
"""

RETURN = r"""
pending:
  description: Names of the migrations that have not run when the task ends; in check mode those that would run.
  returned: always
  type: list
  elements: str
  sample: [2025_02_01_000002_add_notes_table]
applied:
  description: Names of the migrations that this task ran, also when a later one broke.
  returned: always
  type: list
  elements: str
  sample: [2025_02_01_000001_create_notes_table]
batch:
  description: The last batch that this task ran, or null.
  returned: always
  type: int
  sample: 4
migration_table:
  description: Whether the database had the table of migrations before the task.
  returned: always
  type: bool
  sample: true
laravel_version:
  description: The version of Laravel, or null when its source is not in the usual place.
  returned: always
  type: str
  sample: 10.48.29
skipped:
  description: Whether check mode found no release to read.
  returned: always
  type: bool
  sample: false
reason:
  description: Why the task was skipped, else empty.
  returned: always
  type: str
  sample: ""
failed_migration:
  description: The migration that broke, or null when it cannot be told.
  returned: when migrate failed
  type: str
  sample: 2025_02_01_000002_add_notes_table
driver:
  description: The kind of database, told by its error message or by the connection's name, or null.
  returned: when migrate failed
  type: str
  sample: pgsql
argv:
  description: The command that failed.
  returned: on failure of a command
  type: list
  elements: str
  sample: [php, artisan, --no-interaction, --no-ansi, migrate, --force]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan, artisan_argspec, public_values
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._migrations import (
    Migrations,
    apply_migrations,
    guard_release,
    plan_migrations,
    skipped_result,
)


def run(migrations: Migrations, state: str, step: bool, check_mode: bool) -> dict[str, Any]:
    """Plan or run the migrations and return the module's result."""
    reason = guard_release(migrations.artisan, check_mode)
    if reason:
        return skipped_result(reason)
    if state == "planned":
        return plan_migrations(migrations)
    return apply_migrations(migrations, step, check_mode)


def main() -> None:
    """Read the options, run the migrations, report."""
    module = AnsibleModule(
        argument_spec={
            **artisan_argspec(),
            "state": {"type": "str", "choices": ["planned", "migrated"], "default": "planned"},
            "database": {"type": "str"},
            "path": {"type": "list", "elements": "str", "default": []},
            "step": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 3600},
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
        result = run(Migrations(artisan, params["database"], tuple(params["path"])), params["state"], params["step"], module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
