# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read and run an application's database migrations; what happened is read from the database, not from a status."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan, CommandResult, MissingReleaseError
from ansible_collections.bitflow.lms.plugins.module_utils._artisan_parsers import (
    Migration,
    error_message,
    migration_table_missing,
    parse_failed_migration,
    parse_migration_status,
    parse_skipped_migrations,
)
from ansible_collections.bitflow.lms.plugins.module_utils._database_errors import (
    KNOWN_DRIVERS,
    Connection,
    declines_transaction,
    driver_of_error,
    explain_connection_error,
    remains_of_failure,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError

DEFAULT_PATH = "database/migrations"
DATABASE_SETTING = re.compile(r"^\s*(?:export\s+)?(?P<name>DB_(?:CONNECTION|HOST|PORT|DATABASE))\s*=\s*(?P<value>[^\s#]*)", re.MULTILINE)


@dataclass(frozen=True)
class Status:
    """The migrations of a release against its database; without the table of migrations nothing has run."""

    table: bool
    migrations: tuple[Migration, ...] = ()

    @property
    def pending(self) -> list[str]:
        """Return the names of those that have not run."""
        return sorted(one.name for one in self.migrations if one.batch is None)

    @property
    def batches(self) -> dict[str, int]:
        """Return the batch of each one that ran."""
        return {one.name: one.batch for one in self.migrations if one.batch is not None}


@dataclass(frozen=True)
class Migrations:
    """The migrations of one release on one connection."""

    artisan: Artisan
    database: str | None = None
    paths: tuple[str, ...] = field(default_factory=tuple)

    def options(self) -> list[str]:
        """Return the options that migrate and migrate:status share."""
        options = [f"--database={self.database}"] if self.database else []
        if any(path.startswith("/") for path in self.paths):
            return options + ["--realpath"] + [f"--path={self.artisan.directory / path}" for path in self.paths]
        return options + [f"--path={path}" for path in self.paths]

    def files(self) -> list[Path]:
        """Return the migration files of the release, as Laravel collects them from the paths."""
        found: dict[str, Path] = {}
        for name in self.paths or (DEFAULT_PATH,):
            path = self.artisan.directory / name
            for file in [path] if name.endswith(".php") else sorted(path.glob("*_*.php")):
                found[file.stem] = file
        return [found[name] for name in sorted(found)]

    def connection(self) -> Connection:
        """Return what the environment says about the database; the password is never read."""
        settings = read_settings(self.artisan.directory / ".env")
        settings.update(
            {name: value for name, value in self.artisan.environment.items() if name in settings or DATABASE_SETTING.match(f"{name}=")}
        )
        default = settings.get("DB_CONNECTION")
        name = self.database or default
        driver = name if name in KNOWN_DRIVERS else None
        if self.database and self.database != default:
            return Connection(name=name, driver=driver)
        return Connection(name, driver, settings.get("DB_HOST"), settings.get("DB_PORT"), settings.get("DB_DATABASE"))

    def status(self) -> Status:
        """Return the state of the migrations; an empty database has all files pending."""
        result = self.artisan.run("migrate:status", self.options())
        if result.rc == 0:
            return Status(True, tuple(parse_migration_status(result.stdout)))
        if migration_table_missing(result.output):
            return Status(False, tuple(Migration(path.stem, None) for path in self.files()))
        raise self.database_error(result) or self.artisan.failure(result)

    def database_error(self, result: CommandResult) -> CommandError | None:
        """Return the error for a database that cannot be used; None when the failure is another one."""
        problem = explain_connection_error(result.output, self.connection())
        if problem is None:
            return None
        message = f"artisan {result.command} cannot use {problem.connection.description()}: {problem.reason}. {problem.advice}"
        return CommandError(message, **result.as_details())

    def migrate(self, step: bool) -> CommandResult:
        """Run the pending migrations and return how artisan ended."""
        return self.artisan.run("migrate", ["--force", *(["--step"] if step else []), *self.options()])


def read_settings(path: Path) -> dict[str, str]:
    """Return where the database is, as .env says it: connection, host, port and name, nothing else."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return {match.group("name"): match.group("value").strip("\"'") for match in DATABASE_SETTING.finditer(text)}


def build_result(
    before: Status, pending: Sequence[str], applied: Sequence[str], batch: int | None, version: str | None, changed: bool
) -> dict[str, Any]:
    """Return the module's result with the same keys in every mode."""
    return {
        "changed": changed,
        "migration_table": before.table,
        "pending": sorted(pending),
        "applied": sorted(applied),
        "batch": batch,
        "laravel_version": version,
        "skipped": False,
        "reason": "",
        "diff": {"before": {"pending": before.pending}, "after": {"pending": sorted(pending)}},
    }


def plan_migrations(migrations: Migrations) -> dict[str, Any]:
    """Return what is pending, and change nothing."""
    status = migrations.status()
    return build_result(status, status.pending, [], None, migrations.artisan.version(), False)


def apply_migrations(migrations: Migrations, step: bool, check_mode: bool) -> dict[str, Any]:
    """Run what is pending, and prove by a second look that nothing is left."""
    before = migrations.status()
    version = migrations.artisan.version()
    needed = bool(before.pending) or not before.table
    if check_mode:
        result = build_result(before, before.pending, [], None, version, needed)
        result["diff"]["after"] = {"pending": []}
        return result
    if not needed:
        return build_result(before, [], [], None, version, False)

    try:
        outcome = migrations.migrate(step)
    except CommandError as error:
        # A migration that was stopped by the timeout is not in the output of a finished run.
        outcome = CommandResult("migrate", error.details["argv"], error.details["rc"], error.details["stdout"], error.details["stderr"])
        raise failed_run(migrations, before, outcome, error.message) from error
    if outcome.rc != 0:
        raise failed_run(migrations, before, outcome, None)

    after = migrations.status()
    declined = set(parse_skipped_migrations(outcome.output))
    left = [name for name in after.pending if name not in declined]
    applied, batch = newly_applied(before, after)
    result = build_result(before, after.pending, applied, batch, version, bool(applied) or before.table != after.table)
    if left:
        listed = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        message = f"artisan migrate ended with status 0, but {len(left)} migrations are still pending: {listed}. Read its output."
        raise CommandError(message, **{**result, **outcome.as_details()})
    return result


def newly_applied(before: Status, after: Status) -> tuple[list[str], int | None]:
    """Return the migrations that ran between two looks, and their last batch."""
    new = {name: batch for name, batch in after.batches.items() if name not in before.batches}
    return sorted(new), max(new.values()) if new else None


def failed_run(migrations: Migrations, before: Status, outcome: CommandResult, stopped: str | None) -> LmsError:
    """Return the error of a broken run: what was applied, which migration broke, and what that leaves in the database."""
    driver = driver_of_error(outcome.output) or migrations.connection().driver
    reason = stopped or one_sentence(error_message(outcome.stdout, outcome.stderr)) or f"artisan migrate ended with status {outcome.rc}."
    failed = parse_failed_migration(outcome.output)
    version = migrations.artisan.version()
    try:
        after = migrations.status()
    except LmsError as unreadable:
        result = build_result(before, before.pending, [], None, version, True)
        subject = f"Migration {failed}" if failed else "artisan migrate"
        message = f"{subject} failed: {reason} What was applied is not known, because afterwards {unreadable.message}"
        return CommandError(message, **{**result, "failed_migration": failed, "driver": driver, **outcome.as_details()})

    applied, batch = newly_applied(before, after)
    if failed is None and after.pending and (applied or stopped):
        failed = after.pending[0]
    changed = bool(applied) or before.table != after.table
    details = {
        **build_result(before, after.pending, applied, batch, version, changed),
        "failed_migration": failed,
        "driver": driver,
        **outcome.as_details(),
    }
    if failed is None:
        known = migrations.database_error(outcome) or migrations.artisan.failure(outcome)
        return CommandError(known.message, **details)
    remains = remains_of_failure(driver, within_transaction(migrations, failed))
    return CommandError(f"Migration {failed} failed: {reason} {remains} {count_applied(applied)}", **details)


def within_transaction(migrations: Migrations, name: str) -> bool:
    """Tell whether a migration leaves its transaction to Laravel."""
    for path in migrations.files():
        if path.stem == name:
            return not declines_transaction(path.read_text(encoding="utf-8", errors="replace"))
    return True


def one_sentence(text: str | None) -> str | None:
    """Return a message with one full stop at its end."""
    return text.rstrip(". ") + "." if text else None


def count_applied(applied: Sequence[str]) -> str:
    """Return what was applied before the failure, in words."""
    if not applied:
        return "No migration was applied."
    if len(applied) > 3:
        return f"{len(applied)} migrations were applied before it."
    return f"Applied before it: {', '.join(applied)}."


def guard_release(artisan: Artisan, check_mode: bool) -> str | None:
    """Return why check mode has nothing to read yet; raise when the release is wrong."""
    try:
        artisan.check()
    except MissingReleaseError as error:
        if check_mode:
            return error.message
        raise
    if check_mode and not (artisan.directory / "vendor/autoload.php").is_file():
        return f"The release {artisan.directory} has no vendor/autoload.php yet."
    return None


def skipped_result(reason: str) -> dict[str, Any]:
    """Return the result of a run that had nothing to read."""
    return {**build_result(Status(False), [], [], None, None, False), "skipped": True, "reason": reason}
