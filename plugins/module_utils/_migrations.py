# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan and run an application's database migrations; what happened is read from the database, not from a status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._artisan import TIMED_OUT, Artisan, MissingReleaseError, artisan_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._database_errors import (
    Connection,
    explain_connection_error,
    explain_limit,
    remains_of_failure,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._lease import lease_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._migration_runner import Answer, MigrationRunner

END_SESSION = {"pgsql": "select pg_terminate_backend({pid})", "mysql": "kill {pid}", "mariadb": "kill {pid}"}


def migrate_argspec() -> dict[str, dict[str, Any]]:
    """Return the options of artisan_migrate, for the module and for its action plugin."""
    return {
        **artisan_argspec(),
        **lease_argspec(),
        "state": {"type": "str", "choices": ["planned", "migrated"], "default": "planned"},
        "database": {"type": "str"},
        "path": {"type": "list", "elements": "str", "default": []},
        "step": {"type": "bool", "default": False},
        "timeout": {"type": "int", "default": 3600},
        "lock_timeout": {"type": "int", "default": 5},
        "statement_timeout": {"type": "int"},
        "approved": {"type": "list", "elements": "str", "default": []},
        "backup_confirmed": {"type": "bool", "default": False},
        "judged": {"type": "list", "elements": "dict"},
    }


@dataclass(frozen=True)
class Status:
    """The migrations of a release against its database; without the table of migrations nothing has run."""

    table: bool
    batches: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def pending(self) -> list[str]:
        """Return the names of those that have not run."""
        return sorted(name for name, batch in self.batches.items() if batch is None)

    def applied_since(self, before: Status) -> dict[str, int]:
        """Return what ran between two looks, with its batch."""
        return {name: batch for name, batch in self.batches.items() if batch is not None and before.batches.get(name) is None}


def parse_status(state: Mapping[str, Any]) -> Status:
    """Return the state of the migrations as the release told it."""
    return Status(state["table"], {one["migration"]: one["batch"] for one in state["migrations"]})


@dataclass(frozen=True)
class Migrations:
    """The migrations of one release on one connection."""

    artisan: Artisan
    database: str | None = None
    paths: tuple[str, ...] = ()
    lock_timeout: int = 5
    statement_timeout: int | None = None
    # What the sessions of a run are called in the database.
    name: str = "lms migrations"

    def ask(self, action: str, **fields: Any) -> Answer:
        """Ask the release's own migrator; whatever it answers, also nothing."""
        if not (self.artisan.directory / "vendor/autoload.php").is_file():
            raise LmsError(f"The release {self.artisan.directory} has no vendor/autoload.php. Install its Composer packages first.")
        return MigrationRunner(self.artisan).ask(
            action,
            database=self.database,
            paths=list(self.paths),
            lock_timeout=self.lock_timeout,
            statement_timeout=self.artisan.timeout if self.statement_timeout is None else self.statement_timeout,
            name=self.name,
            **fields,
        )

    def look(self, sql: bool = True) -> Answer:
        """Read the state of the migrations, and with sql what the pending ones would execute; writes nothing."""
        answer = self.ask("plan", sql=sql)
        if "state" not in answer.final:
            raise self.error(answer, "cannot plan its migrations")
        return answer

    def error(self, answer: Answer, what: str) -> CommandError:
        """Return the error of an answer that is none."""
        if answer.error is None:
            reason = self.silence(answer)
        else:
            problem = explain_connection_error(answer.error["text"], connection_of(answer))
            if problem:
                message = f"Laravel cannot use {problem.connection.description()}: {problem.reason}. {problem.advice}"
                return CommandError(message, **answer.as_details())
            reason = describe(answer.error)
        return CommandError(f"Laravel in {self.artisan.directory} {what}: {reason}", **answer.as_details())

    def silence(self, answer: Answer) -> str:
        """Return why the release did not answer."""
        if answer.rc == TIMED_OUT[0]:
            return f"it did not end within {self.artisan.timeout} seconds and was stopped. Raise timeout, or find what it waits for."
        if answer.rc in TIMED_OUT:
            return f"PHP was killed: by somebody, for want of memory, or because it did not end within {self.artisan.timeout} seconds."
        last = next(iter(reversed(answer.stderr.strip().splitlines())), "it printed no error")
        return f"PHP ended with status {answer.rc}: {last.rstrip('.')}."


def describe(error: Mapping[str, Any]) -> str:
    """Return an exception of the application as one sentence, with its place unless it came out of the database."""
    reason = error["message"].rstrip(". ")
    limit = explain_limit(reason)
    if limit:
        return f"{reason}. {limit}"
    if error.get("sql"):
        return f"{reason}. The statement: {error['sql']}."
    return f"{reason} ({error['file']}:{error['line']})." if error.get("file") else f"{reason}."


def connection_of(answer: Answer) -> Connection:
    """Return where the database is, as the configuration of the release says it."""
    place = answer.final.get("place") or (answer.locked or {}).get("place") or {}
    return Connection(**{key: place.get(key) or None for key in ("name", "driver", "host", "port", "database")})


def build_result(before: Status, after: Status, answer: Answer, **fields: Any) -> dict[str, Any]:
    """Return the module's result with the same keys in every mode."""
    applied = after.applied_since(before)
    outcomes = {name: "applied" if name in applied else "pending" for name in before.pending}
    outcomes.update(dict.fromkeys(answer.declined, "declined"))
    if fields.get("failed_migration"):
        outcomes[fields["failed_migration"]] = "failed"
    final = {**(answer.locked or {}), **answer.final}
    return {
        "changed": bool(applied) or before.table != after.table,
        "migration_table": before.table,
        "database_empty": final.get("empty", False),
        "product": final.get("product"),
        "pending": after.pending,
        "applied": sorted(applied),
        "batch": max(applied.values()) if applied else None,
        "plan": final.get("plan", []),
        "outcomes": [
            {"migration": name, "outcome": outcome, "executed": answer.statements_of(name)} for name, outcome in sorted(outcomes.items())
        ],
        "locked_by": final.get("locked_by"),
        "laravel_version": final.get("laravel"),
        "reason": "",
        "diff": {"before": {"pending": before.pending}, "after": {"pending": after.pending}},
        **fields,
    }


def plan_migrations(migrations: Migrations, runs: bool) -> dict[str, Any]:
    """Return what is pending and what it would execute, and change nothing."""
    answer = migrations.look()
    status = parse_status(answer.final["state"])
    result = build_result(status, status, answer, changed=runs and (bool(status.pending) or not status.table))
    if runs:
        result["diff"]["after"] = {"pending": []}
    return result


def apply_migrations(migrations: Migrations, step: bool, judged: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Run what was judged, under the database's lock, and prove by a second look that nothing is left."""
    answer = migrations.ask("run", step=step, judged=list(judged))
    if answer.final.get("locked_by"):
        raise CommandError(held_lock(answer), **build_result(Status(False), Status(False), answer), **answer.as_details())
    if answer.locked is None:
        raise migrations.error(answer, "cannot run its migrations")
    before = parse_status(answer.locked["before"])
    if answer.final.get("other_plan"):
        message = (
            "The pending migrations are not the ones that were judged: another run, or a change of the release, came between. "
            f"Pending now: {', '.join(before.pending) or 'none'}. Run the task again."
        )
        raise CommandError(message, **build_result(before, before, answer), **answer.as_details())
    if answer.final.get("status") != 0:
        raise failed_run(migrations, before, answer)

    after = parse_status(answer.final["after"])
    result = build_result(before, after, answer)
    left = [name for name in after.pending if name not in answer.declined]
    if left:
        listed = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        message = f"artisan migrate ended with status 0, but {len(left)} migrations are still pending: {listed}. Read its output."
        raise CommandError(message, **result, **answer.as_details(), output=answer.final.get("output", ""))
    return result


def held_lock(answer: Answer) -> str:
    """Return who holds the lock on the migrations, and the way out."""
    connection, product, holder = connection_of(answer), answer.final["product"], answer.final["locked_by"]
    message = f"Another run holds the lock on the migrations of {connection.description()}"
    if holder.get("pid") is None:
        return f"{message}. It has just ended, or cannot be seen. Run the task again."
    words = f"{product['product']} session {holder['pid']}"
    words += f" of user {holder['user']}" if holder.get("user") else ""
    words += f" from {holder['host']}" if holder.get("host") else " from the same host"
    words += f" since {holder['since']}" if holder.get("since") else ""
    words += f" ({holder['name']})" if holder.get("name") else ""
    way_out = END_SESSION[product["driver"]].format(pid=holder["pid"])
    return f"{message}: {words}. Nothing was run. Wait until it has ended. If its run is gone, end the session: {way_out}"


def failed_run(migrations: Migrations, before: Status, answer: Answer) -> LmsError:
    """Return the error of a broken run: what was applied, which migration broke, and what that leaves in the database."""
    started = list(answer.started)
    failed = answer.final.get("failed") or (started[-1] if started and "after" not in answer.final else None)
    if answer.error:
        reason = describe(answer.error)
    elif answer.final:
        reason = f"artisan migrate ended with status {answer.final.get('status')}."
    else:
        reason = migrations.silence(answer)
    subject = f"Migration {failed}" if failed else "artisan migrate"
    try:
        after = parse_status(answer.final["after"] if "after" in answer.final else migrations.look(sql=False).final["state"])
    except LmsError as unreadable:
        result = build_result(before, before, answer, changed=True, failed_migration=failed)
        message = f"{subject} failed: {reason} What was applied is not known, because afterwards {unreadable.message}"
        return CommandError(message, **result, **answer.as_details())

    if failed in after.applied_since(before):
        failed, subject = None, "artisan migrate"
    details = {**build_result(before, after, answer, failed_migration=failed), **answer.as_details()}
    applied = count_applied(details["applied"])
    if failed is None:
        return CommandError(f"{subject} failed: {reason} {applied}", **details)
    product = {**(answer.locked or {}), **answer.final}["product"]["product"]
    remains = remains_of_failure(product, answer.started.get(failed, False), answer.statements_of(failed))
    details["changed"] = details["changed"] or (not answer.started.get(failed, False) and bool(answer.statements_of(failed)))
    return CommandError(f"{subject} failed: {reason} {remains} {applied}", **details)


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
    return build_result(Status(False), Status(False), Answer([], 0, "", ""), skipped=True, reason=reason)
