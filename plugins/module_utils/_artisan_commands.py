# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan a list of artisan commands, run it, and judge each by what it left behind."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan, CommandResult, MissingReleaseError
from ansible_collections.bitflow.lms.plugins.module_utils._artisan_effects import Observation, effect_of
from ansible_collections.bitflow.lms.plugins.module_utils._artisan_parsers import ERROR_LINE, version_refusal
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

SINGLE_CACHES = "config:cache, event:cache, route:cache and view:cache"
HIDES_FAILURES = {
    "optimize": f"run {SINGLE_CACHES} instead",
    "optimize:clear": "run config:clear, event:clear, route:clear, view:clear and cache:clear instead",
    "reload": "run queue:restart and the like by themselves instead",
}
READ_ONLY = frozenset(
    {
        "about",
        "channel:list",
        "config:show",
        "db:show",
        "db:table",
        "env",
        "event:list",
        "help",
        "list",
        "migrate:status",
        "model:show",
        "queue:failed",
        "route:list",
        "schedule:list",
    }
)


@dataclass(frozen=True)
class Step:
    """One command that the user wants."""

    command: str
    arguments: tuple[str, ...] = ()
    read_only: bool = False
    changed_when_output: re.Pattern[str] | None = None
    version_min: str | None = None
    version_max: str | None = None

    @property
    def gated(self) -> bool:
        """Tell whether the step depends on Laravel's version."""
        return self.version_min is not None or self.version_max is not None


# What Laravel's own optimize runs one after the other in one process. Each writes a file of its own, which shows whether it worked.
TOGETHER = frozenset(Step(f"{cache}:cache") for cache in ("config", "event", "route", "view"))


@dataclass
class Report:
    """What came of the steps so far."""

    results: list[dict[str, Any]] = field(default_factory=list)
    before: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(
        self,
        step: Step,
        result: CommandResult | None,
        changed: bool,
        skipped: bool = False,
        reason: str = "",
    ) -> None:
        """Record one step; a step that did not run has no status."""
        self.results.append(
            {
                "command": step.command,
                "argv": result.argv if result else [],
                "rc": result.rc if result else None,
                "stdout": result.stdout if result else "",
                "stderr": result.stderr if result else "",
                "changed": changed,
                "skipped": skipped,
                "reason": reason,
            }
        )

    def show(self, before: Observation, after: Mapping[str, str]) -> None:
        """Record what the step changed, for the diff: the first state and the last one of each thing."""
        for name, state in before.fingerprints.items():
            self.before.setdefault(name, state)
        self.after.update(after)

    def as_result(self, version: str | None) -> dict[str, Any]:
        """Return the module's result."""
        return {
            "changed": any(result["changed"] for result in self.results),
            "results": self.results,
            "laravel_version": version,
            "diff": {"before": dict(sorted(self.before.items())), "after": dict(sorted(self.after.items()))},
            "warnings": self.warnings,
        }


def plan_steps(params: Mapping[str, Any]) -> list[Step]:
    """Return the steps that the module's options ask for."""
    entries = params["commands"] or [{"command": params["command"], "arguments": params["arguments"]}]
    if not entries[0].get("command"):
        raise LmsError("Neither command nor commands names an artisan command.")
    steps = [plan_step(entry, params) for entry in entries]
    for step in steps:
        if step.command in HIDES_FAILURES and not params["hidden_failures_accepted"]:
            raise LmsError(
                f"artisan {step.command} ends with status 0 even when a command inside it failed: {HIDES_FAILURES[step.command]}, "
                "or set hidden_failures_accepted."
            )
    return steps


def plan_step(entry: Mapping[str, Any], params: Mapping[str, Any]) -> Step:
    """Return one step; what its entry leaves open is taken from the options beside it."""
    command = entry["command"]
    if not command or command.split() != [command]:
        raise LmsError(f"command is {command!r}; it holds one name. Put what follows the name into arguments.")

    def option(name: str) -> Any:
        value = entry.get(name)
        return params.get(name) if value is None else value

    read_only = option("read_only")
    pattern = option("changed_when_output")
    try:
        compiled = re.compile(pattern) if pattern else None
    except re.error as error:
        raise LmsError(f"changed_when_output {pattern!r} is not a regular expression: {error}.") from error
    return Step(
        command=command,
        arguments=tuple(entry.get("arguments") or ()),
        read_only=command in READ_ONLY if read_only is None else bool(read_only),
        changed_when_output=compiled,
        version_min=option("version_min"),
        version_max=option("version_max"),
    )


def run_steps(artisan: Artisan, steps: Sequence[Step], check_mode: bool) -> dict[str, Any]:
    """Run the steps in their order and return the module's result; the first failure stops the run and carries what was done."""
    report = Report()
    try:
        artisan.check()
    except MissingReleaseError as error:
        if not check_mode:
            raise
        for step in steps:
            report.add(step, None, not step.read_only, reason=f"Check mode: would run once {artisan.directory} exists.")
        report.warnings.append(error.message)
        return report.as_result(None)
    warning = artisan.ownership_warning()
    if warning:
        report.warnings.append(warning)
    try:
        known = commands_for_check_mode(artisan, steps) if check_mode else None
        for batch in batches(steps):
            if len(batch) > 1 and not check_mode and artisan.starts_as_usual():
                run_together(artisan, batch, report)
                continue
            for step in batch:
                run_step(artisan, step, report, check_mode, known)
    except LmsError as error:
        error.details = {**report.as_result(artisan.version()), **error.details}
        raise
    return report.as_result(artisan.version())


def commands_for_check_mode(artisan: Artisan, steps: Sequence[Step]) -> set[str] | None:
    """Return the commands that artisan lists, when check mode has steps to judge that it does not run."""
    installed = (artisan.directory / "vendor/autoload.php").is_file()
    if not installed or all(step.read_only for step in steps):
        return None
    return set(artisan.commands())


def run_step(artisan: Artisan, step: Step, report: Report, check_mode: bool, known: set[str] | None) -> None:
    """Run one step, or record why it does not run."""
    refusal = version_refusal(artisan.require_version(), step.version_min, step.version_max) if step.gated else None
    if refusal:
        report.add(step, None, False, skipped=True, reason=refusal)
        return
    effect = effect_of(step.command, artisan.directory, artisan.environment, artisan.lint)
    before = effect.observe() if effect else Observation()
    if check_mode and not step.read_only:
        would_change = effect.would_change(before) if effect else True
        reason = "Check mode: would run."
        if known is not None and step.command not in known:
            report.warnings.append(f"artisan list of {artisan.laravel()} in {artisan.directory} does not name the command {step.command}.")
            reason = "Check mode: would run, but artisan list does not name it."
        report.show(before, {name: "written anew" if would_change else state for name, state in before.fingerprints.items()})
        report.add(step, None, would_change, reason=reason)
        return

    judge(artisan, step, before, artisan.run(step.command, step.arguments), report)


def judge(artisan: Artisan, step: Step, before: Observation, result: CommandResult, report: Report) -> None:
    """Record a step that ran; raise when it failed, or did not do what it says."""
    effect = effect_of(step.command, artisan.directory, artisan.environment, artisan.lint)
    after = effect.observe() if effect else Observation()
    report.show(before, after.fingerprints)
    try:
        if result.rc != 0:
            raise artisan.failure(result)
        if effect:
            effect.verify(step.command, before, after, result.output)
    except LmsError as error:
        error.details = {**error.details, **result.as_details()}
        report.add(step, result, before.fingerprints != after.fingerprints, reason=error.message)
        raise
    complaint = None if effect else ERROR_LINE.search(result.output)
    if complaint:
        report.warnings.append(f"artisan {step.command} ended with status 0, but printed an error: {complaint.group('message')}")
    report.add(step, result, has_changed(step, result, before, after, effect is not None))


def run_together(artisan: Artisan, steps: Sequence[Step], report: Report) -> None:
    """Run steps in one start of Laravel, and judge each by what it left, as if it had run alone."""
    effects = [effect_of(step.command, artisan.directory, artisan.environment, artisan.lint) for step in steps]
    before = [effect.observe() if effect else Observation() for effect in effects]
    results = artisan.run_together([step.command for step in steps])
    for step, seen, result in zip(steps, before, results):
        judge(artisan, step, seen, result, report)
    # A command that ended PHP itself, and well, has kept the others from running.
    for step in steps[len(results) :]:
        run_step(artisan, step, report, check_mode=False, known=None)


def batches(steps: Sequence[Step]) -> list[list[Step]]:
    """Return the steps in their order, those that may share one start of Laravel together."""
    found: list[list[Step]] = []
    for step in steps:
        if found and step in TOGETHER and found[-1][-1] in TOGETHER:
            found[-1].append(step)
        else:
            found.append([step])
    return found


def has_changed(step: Step, result: CommandResult, before: Observation, after: Observation, effect_known: bool) -> bool:
    """Tell whether a step changed something: by the user's pattern, else by its effect, else because it ran."""
    if step.read_only:
        return False
    if step.changed_when_output is not None:
        return bool(step.changed_when_output.search(result.output))
    if effect_known:
        return before.fingerprints != after.fingerprints
    return True
