#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: artisan_migrate
short_description: Plan, judge and run the database migrations of a Laravel release
version_added: 1.0.0
author: Bitflow LMS contributors (@bitflow)
description:
  - Asks the release's own migrator which migrations are pending and which SQL they would execute, judges each statement beside the version
    that still serves, runs what is safe or approved, and looks again. C(changed) and RV(applied) come from looks at the database, not from
    what C(migrate) prints.
  - A plan writes nothing, not even the table of migrations; its session can only read. That is why C(migrate --pretend) is not used.
  - A run holds a lock of the database itself, on PostgreSQL an advisory lock and on MySQL and MariaDB C(GET_LOCK). A lock that is held
    fails the task and names its holder; a run that was killed leaves no lock. That is why C(migrate --isolated) is not used, which ends
    with status 0 when its lock is held.
  - Each statement is read with the SQL parser sqlglot on the control host and gets a class. V(expand) is safe beside the running version.
    V(locking) keeps a table locked while rows are read or rewritten. V(contract) takes away what the running version may use.
    V(irreversible) removes or overwrites rows. V(unknown) could not be judged. All but V(expand) are refused, unless O(approved) names the
    migration.
  - What a migration creates itself is new, so nothing on it is dangerous. In a database without any table everything is safe.
  - What was judged is what runs. A migration that is not approved stops when it executes a statement that its plan did not have.
  - When a migration breaks, the task fails and says what was applied, which one broke and what it leaves in the database. Nothing is
    rolled back by the task.
options:
  state:
    description:
      - V(planned) lists what is pending, with SQL and risk, and changes nothing.
      - V(migrated) runs what is pending.
    type: str
    choices: [planned, migrated]
    default: planned
  approved:
    description:
      - Names of migrations that may run although they are not safe beside the running version. They may execute anything.
      - There is no name for all of them.
    type: list
    elements: str
    default: []
  backup_confirmed:
    description:
      - Say that a backup was taken for this run. It lets migrations run whose only dangerous statements are V(irreversible).
    type: bool
    default: false
  lock_timeout:
    description:
      - Seconds that a statement may wait for a lock; V(0) is for ever. While it waits, every later request for the table waits behind it.
    type: int
    default: 5
  statement_timeout:
    description:
      - Seconds that a statement may take; V(0) is for ever. Without it, as long as O(timeout).
      - MySQL has no such limit for statements that write. PostgreSQL and MariaDB have.
    type: int
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
      - Seconds that the whole run may take. Then it is stopped and the task fails.
      - MySQL and MariaDB may go on with the statement of a run that was stopped, so choose more than the longest one needs.
    type: int
    default: 3600
  judged:
    description:
      - What the plan held when it was judged. The action plugin of this module sets it.
    type: list
    elements: dict
extends_documentation_fragment:
  - bitflow.lms.artisan
  - bitflow.lms.lease
attributes:
  check_mode:
    description: Plans and judges, as V(planned) does. A release that is not there yet is skipped with the reason.
    support: full
  diff_mode:
    description: Shows the pending migrations with their SQL, class and reason.
    support: full
  platform:
    description: Target systems.
    platforms: posix
    support: full
requirements:
  - sqlglot on the control host, when migrations are pending
notes:
  - Between the application and PostgreSQL, a pooler that shares sessions between transactions takes the lock away. Give migrations a
    connection of their own with O(database).
seealso:
  - module: bitflow.lms.artisan
  - plugin: bitflow.lms.contract_migrations_since
    plugin_type: filter
"""

EXAMPLES = r"""
- name: List the pending migrations
  bitflow.lms.artisan_migrate:
    chdir: /srv/lms/backend/releases/20261123210000-abc1234
  become: true
  become_user: lms-deploy

- name: Run the migrations; those that are not safe beside the running version only if the operator named them
  bitflow.lms.artisan_migrate:
    chdir: /srv/lms/backend/releases/20261123210000-abc1234
    state: migrated
    approved: "{{ lms_migrations_approved | default([]) }}"
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
plan:
  description:
    - What each pending migration would execute, in the order of the run. C(statements) has each SQL text once, C(times) says how often.
    - C(problem) says why a migration could not be planned, C(declined) that its C(shouldRun) said no, C(reads) what it really read.
    - C(within_transaction) says whether the database rolls it back when it breaks.
  returned: always
  type: list
  elements: dict
  sample:
    - migration: 2025_02_01_000002_add_notes_table
      driver: pgsql
      same_database: true
      within_transaction: true
      declined: false
      problem: null
      reads: []
      sha256: c1ddb701c2525ecc298f1a5d665833693cc3d94c8346a68bd958ee5e8392f8b0
      statements:
        - sql: alter table "courses" add column "level" varchar(16) null
          times: 1
risks:
  description: The class of each migration that was pending, and of each of its statements with the reason.
  returned: always
  type: list
  elements: dict
  sample:
    - migration: 2025_02_01_000002_add_notes_table
      class: expand
      destructive: false
      approved: false
      statements:
        - sql: alter table "courses" add column "level" varchar(16) null
          class: expand
          destructive: false
          reason: the running version does not know the column and need not fill it
refused:
  description: Names of the pending migrations that are not safe and not approved.
  returned: always
  type: list
  elements: str
  sample: []
contract:
  description:
    - Names of the migrations that the version before may not live with. In a plan those that are pending, after a run those of
      RV(applied), judged by what they really executed. The release's record keeps them, so that nobody goes back across them unasked.
  returned: always
  type: list
  elements: str
  sample: [2026_05_18_000001_drop_name_from_students_table]
destructive:
  description: Whether a pending migration removes or overwrites data, so that a backup is due before it.
  returned: always
  type: bool
  sample: false
outcomes:
  description:
    - What came of each migration that was pending (V(pending), V(applied), V(declined) or V(failed)), and the SQL that it executed.
  returned: always
  type: list
  elements: dict
  sample:
    - migration: 2025_02_01_000001_create_notes_table
      outcome: applied
      executed:
        - create table "notes" ("id" bigserial not null primary key)
migration_table:
  description: Whether the database had the table of migrations before the task.
  returned: always
  type: bool
  sample: true
database_empty:
  description: Whether the database had no table at all.
  returned: always
  type: bool
  sample: false
product:
  description: The database, as its driver tells it. Null when there was nothing to ask.
  returned: always
  type: dict
  sample:
    driver: pgsql
    product: PostgreSQL
    version: 17.6 (Debian 17.6-0+deb13u1)
locked_by:
  description: The session that holds the lock on the migrations, or null.
  returned: always
  type: dict
  sample: null
laravel_version:
  description: The version of Laravel, or null when there was nothing to ask.
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
failed_migration:
  description: The migration that broke, or null when it cannot be told.
  returned: when a run broke
  type: str
  sample: 2025_02_01_000002_add_notes_table
argv:
  description: The program that failed. It gets its script by standard input.
  returned: when the release answered with an error, or not at all
  type: list
  elements: str
  sample: [php, -d, display_errors=stderr, -d, log_errors=0]
"""

import platform
from functools import partial
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan, public_values
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._lease import acting
from ansible_collections.bitflow.lms.plugins.module_utils._migrations import (
    Migrations,
    apply_migrations,
    guard_release,
    migrate_argspec,
    plan_migrations,
    skipped_result,
)


def run(migrations: Migrations, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Plan or run the migrations and return the module's result."""
    reason = guard_release(migrations.artisan, check_mode)
    if reason:
        return skipped_result(reason)
    runs = params["state"] == "migrated"
    if check_mode or not runs:
        return plan_migrations(migrations, runs)
    if params["judged"] is None:
        raise LmsError("judged is not set. Call the module by its full name, so that its action plugin judges the migrations.")
    return apply_migrations(migrations, params["step"], params["judged"])


def main() -> None:
    """Read the options, run the migrations, report."""
    module = AnsibleModule(argument_spec=migrate_argspec(), supports_check_mode=True)
    params = module.params
    module.no_log_values -= public_values(params["environment"])
    acts = params["state"] == "migrated" and not module.check_mode
    try:
        with acting(params["lease"] if acts else None) as descriptors:
            # PHP inherits the lock of who acts: it still counts as at work when this process is killed.
            run_command = partial(module.run_command, pass_fds=descriptors)
            artisan = Artisan(run_command, params["chdir"], params["php"], params["environment"], params["timeout"])
            warning = artisan.ownership_warning()
            if warning:
                module.warn(warning)
            migrations = Migrations(
                artisan,
                params["database"],
                tuple(params["path"]),
                params["lock_timeout"],
                params["statement_timeout"],
                name=f"lms migrations on {platform.node()}",
            )
            result = run(migrations, params, module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
