# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring the long-running processes of a Laravel application to the live release, and wait until nothing runs another one."""

from __future__ import annotations

import fnmatch
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan, RunCommand
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._processes import INTERACTIVE, Application, Finding, Process, find_processes
from ansible_collections.bitflow.lms.plugins.module_utils._systemd import Systemctl

# What tells processes that no unit manages to end when their work is done; the whole application listens to it.
COMMAND_OF_KIND = {
    "queue": "queue:restart",
    "horizon": "horizon:terminate",
    "reverb": "reverb:restart",
    "octane": "octane:reload",
    "pulse": "pulse:restart",
    "schedule": "schedule:interrupt",
}
UNIT_PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "Type",
    "MainPID",
    "Job",
    "Result",
    "ConditionResult",
    "TimeoutStopUSec",
    "Wants",
    "Requires",
    "ConsistsOf",
)
# A program that cannot start at all needs less than this to end (seconds).
SETTLED_AFTER = 1.0
INTERVAL = 0.2
# Where nothing tells how long a job may take, and what a start needs (seconds).
USUAL_PATIENCE = 60.0
START_SECONDS = 15.0
_SPAN = re.compile(r"(?P<number>[\d.]+)(?P<unit>y|month|w|d|h|min|s|ms|us)\b")
_SECONDS = {"y": 31557600, "month": 2629800, "w": 604800, "d": 86400, "h": 3600, "min": 60, "s": 1, "ms": 1e-3, "us": 1e-6}


@dataclass(frozen=True)
class Unit:
    """A systemd unit, as `systemctl show` describes it."""

    name: str
    load: str = "loaded"
    active: str = "active"
    sub: str = "running"
    type: str = "simple"
    main_pid: int = 0
    job: bool = False
    result: str = "success"
    condition: bool = True
    stop_seconds: float | None = None
    members: tuple[str, ...] = ()

    @property
    def lasts(self) -> bool:
        """Tell whether the unit is a service that runs all the time: a run of the scheduler ends by itself."""
        return self.name.endswith(".service") and self.type != "oneshot"


def parse_units(text: str) -> list[Unit]:
    """Return the units in the output of `systemctl show`, in its order."""
    return [_unit(dict(line.partition("=")[::2] for line in block.splitlines())) for block in text.split("\n\n") if block.strip()]


def _unit(properties: Mapping[str, str]) -> Unit:
    """Return one unit from its properties."""
    members = {name for key in ("Wants", "Requires", "ConsistsOf") for name in properties.get(key, "").split()}
    return Unit(
        name=properties["Id"],
        load=properties.get("LoadState", ""),
        active=properties.get("ActiveState", ""),
        sub=properties.get("SubState", ""),
        type=properties.get("Type", ""),
        main_pid=int(properties.get("MainPID") or 0),
        job=properties.get("Job", "") not in ("", "0"),
        result=properties.get("Result", ""),
        condition=properties.get("ConditionResult", "yes") != "no",
        stop_seconds=parse_span(properties.get("TimeoutStopUSec", "")),
        members=tuple(sorted(members)),
    )


def parse_span(text: str) -> float | None:
    """Return the seconds of a time span of systemd, such as 1min 30s; None for infinity."""
    found = _SPAN.findall(text)
    return sum(float(number) * _SECONDS[unit] for number, unit in found) if found else None


class Systemd:
    """The units of this host."""

    def __init__(self, systemctl: Systemctl) -> None:
        self._systemctl = systemctl

    def show(self, names: Sequence[str]) -> list[Unit]:
        """Return units by their names."""
        if not names:
            return []
        return parse_units(self._systemctl("show", f"--property={','.join(UNIT_PROPERTIES)}", "--", *names))

    def matching(self, pattern: str) -> list[str]:
        """Return the units that systemd knows for a pattern."""
        listing = self._systemctl("list-units", "--all", "--plain", "--no-legend", "--full", "--", pattern)
        return sorted(line.split()[0] for line in listing.splitlines() if line.split())

    def queue(self, action: str, names: Sequence[str]) -> None:
        """Start or restart units, all at once and without waiting for them."""
        if names:
            self._systemctl(action, "--no-block", "--", *names)


@dataclass(frozen=True)
class Plan:
    """What is to be done so that only the live release runs."""

    restart: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    # Kind of the processes that no unit manages, and the user that they run as.
    signal: tuple[tuple[str, str], ...] = ()
    skipped: tuple[dict[str, str], ...] = ()


def plan(findings: Sequence[Finding], units: Mapping[str, Unit], wanted: Iterable[str]) -> Plan:
    """Decide what is restarted, what is started because it should run and does not, and what is told to end.

    A unit that was not named is restarted when its main process runs the application: cron and supervisor, which only start such
    processes, are left alone.
    """
    old = awaited(findings)
    named = set(wanted)
    restart = {
        unit.name
        for unit in units.values()
        if unit.lasts
        and any(finding.process.unit == unit.name and (unit.name in named or unit.main_pid == finding.process.pid) for finding in old)
    }
    idle = {name for name in named if units[name].lasts and units[name].active in ("inactive", "failed") and not units[name].job}
    signal = {(finding.kind, finding.process.user) for finding in old if finding.process.unit not in restart and finding.kind != "command"}
    skipped = [
        {"what": f"pid {finding.process.pid}", "reason": f"artisan {finding.command} is a person's own: it is left alone."}
        for finding in findings
        if not finding.current and finding.command in INTERACTIVE
    ]
    return Plan(tuple(sorted(restart)), tuple(sorted(idle - restart)), tuple(sorted(signal)), tuple(skipped))


def awaited(findings: Iterable[Finding]) -> list[Finding]:
    """Return the processes of another release that must end."""
    return [finding for finding in findings if not finding.current and finding.command not in INTERACTIVE]


@dataclass
class Report:
    """What was done and seen."""

    before: list[Finding] = field(default_factory=list)
    after: list[Finding] = field(default_factory=list)
    restarted: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    progress: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    changed: bool = False
    wait: float = 0.0
    seconds: float = 0.0

    def as_result(self, application: Application, now: float) -> dict[str, Any]:
        """Return the module's result."""
        shown = [finding.as_result(now) for finding in self.after]
        return {
            "changed": self.changed,
            "release": application.release,
            "restarted": self.restarted,
            "commands": self.commands,
            "before": [finding.as_result(now) for finding in self.before],
            "after": shown,
            "leftovers": [finding.as_result(now) for finding in awaited(self.after)],
            "steps_skipped": self.skipped,
            "killed": self.killed,
            "progress": self.progress,
            "seconds": round(self.seconds, 1),
            "diff": {"before": _lines(self.before), "after": _lines(self.after)},
        }


def _lines(findings: Iterable[Finding]) -> str:
    """Return the processes for the diff: without their numbers and ages, which say nothing."""
    lines = [f"{finding.process.unit or 'no unit'}: {finding.kind} runs {finding.release or 'an older release'}" for finding in findings]
    return "".join(f"{line}\n" for line in sorted(lines))


class Workers:
    """The long-running processes of one application on this host."""

    def __init__(
        self,
        application: Application,
        systemd: Systemd,
        read_processes: Callable[[], list[Process]],
        artisan_of: Callable[[str], Artisan],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.application = application
        self.systemd = systemd
        self.artisan_of = artisan_of
        self._read_processes = read_processes
        self._clock = clock
        self._sleep = sleep
        self._now = now

    def look(self) -> list[Finding]:
        """Return the processes of the application."""
        return find_processes(self._read_processes(), self.application)

    def check(self) -> Report:
        """Only look."""
        found = self.look()
        skipped = list(plan(found, {}, ()).skipped)
        return Report(before=found, after=found, skipped=skipped)

    def restart(self, patterns: Sequence[str], wait: float | None, check_mode: bool) -> Report:
        """Cycle what runs another release, and wait until it has ended and the units run."""
        begun = self._clock()
        report = Report(before=self.look())
        wanted = self._wanted(patterns, report, check_mode)
        managed = {finding.process.unit for finding in awaited(report.before) if finding.process.unit}
        units = {unit.name: unit for unit in self.systemd.show(sorted(managed | set(wanted)))}
        decided = plan(report.before, units, [name for name in wanted if name in units])
        report.skipped += decided.skipped
        report.restarted = sorted({*decided.restart, *decided.start})
        report.changed = bool(awaited(report.before) or decided.start)
        restarting = [units[name] for name in decided.restart]
        report.warnings += _too_impatient(restarting, wait or 0)
        report.wait = patience(restarting) if wait is None else wait
        if check_mode:
            report.commands = sorted({COMMAND_OF_KIND[kind] for kind, _user in decided.signal})
            report.after = report.before
            return report
        self.systemd.queue("restart", decided.restart)
        self.systemd.queue("start", decided.start)
        self._tell(decided.signal, report)
        self._wait(report, units, begun)
        report.seconds = self._clock() - begun
        return report

    def _wanted(self, patterns: Sequence[str], report: Report, check_mode: bool) -> list[str]:
        """Return the services that the option units names, with those of its targets."""
        names: set[str] = set()
        for pattern in patterns:
            found = self.systemd.matching(pattern) if re.search(r"[*?\[]", pattern) else [pattern]
            if not found:
                report.skipped.append({"what": pattern, "reason": "No unit of this host matches it."})
            names.update(found)
        shown = self.systemd.show(sorted(names))
        missing = sorted(unit.name for unit in shown if unit.load == "not-found")
        if missing and check_mode:
            report.skipped += [{"what": name, "reason": "There is no such unit yet."} for name in missing]
            shown = [unit for unit in shown if unit.name not in missing]
        elif missing:
            raise LmsError(f"There is no unit {', '.join(missing)} on this host. Correct the option units.")
        members = {member for unit in shown if unit.name.endswith(".target") for member in unit.members}
        services = {name for name in {unit.name for unit in shown} | members if name.endswith(".service")}
        return sorted(name for name in services if not self._ignored(name))

    def _ignored(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.application.ignored_units)

    def _tell(self, signal: Iterable[tuple[str, str]], report: Report) -> None:
        """Tell the processes that no unit manages to end, where this Laravel has a command for it."""
        known: dict[str, dict[str, set[str]]] = {}
        for kind, user in signal:
            command = COMMAND_OF_KIND[kind]
            artisan = self.artisan_of(user)
            if user not in known:
                known[user] = artisan.commands()
            if command not in known[user]:
                reason = f"{artisan.laravel()} in {artisan.directory} has no command {command}."
                report.skipped.append({"what": command, "reason": reason})
                continue
            result = artisan.run(command)
            if result.rc != 0:
                report.skipped.append({"what": command, "reason": artisan.failure(result).message})
                continue
            if command not in report.commands:
                report.commands.append(command)

    def _wait(self, report: Report, units: Mapping[str, Unit], begun: float) -> None:
        """Wait until nothing runs another release and the units are up; note who ends when."""
        remaining = {finding.process.identity: finding for finding in awaited(report.before)}
        while True:
            report.after = self.look()
            elapsed = self._clock() - begun
            left = awaited(report.after)
            ended = remaining.keys() - {finding.process.identity for finding in left}
            for identity in sorted(ended):
                self._note_end(remaining.pop(identity), elapsed, units, report)
            remaining.update({finding.process.identity: finding for finding in left})
            shown = self.systemd.show(report.restarted)
            broken = [unit for unit in shown if unit.active == "failed" and not unit.job]
            if broken:
                raise self._broken(broken, report)
            waiting = [unit for unit in shown if not self._settled(unit, report, elapsed)]
            if (not left and not waiting) or elapsed >= report.wait:
                break
            self._sleep(INTERVAL)
        if waiting and not left:
            raise self._broken(waiting, report)
        report.skipped += [
            {"what": unit.name, "reason": "Its conditions do not hold, so it was not started."} for unit in shown if _held(unit)
        ]
        report.restarted = [name for name in report.restarted if name not in {unit.name for unit in shown if _held(unit)}]

    def _settled(self, unit: Unit, report: Report, elapsed: float) -> bool:
        """Tell whether a unit has come up, and stayed up for a moment."""
        if _held(unit):
            return True
        if unit.job or unit.active != "active":
            return False
        ages = [self._now() - finding.process.started for finding in report.after if finding.process.unit == unit.name]
        # Until it has become PHP, a new process is none of the application's; what never becomes one is not for us to judge.
        return max(ages) >= SETTLED_AFTER if ages else elapsed >= START_SECONDS

    def _note_end(self, finding: Finding, elapsed: float, units: Mapping[str, Unit], report: Report) -> None:
        """Note that a process ended, and whether systemd lost its patience with it."""
        name = finding.process.unit or "no unit"
        report.progress.append(f"{elapsed:.1f} s: {finding.command or finding.kind} (pid {finding.process.pid}, {name}) ended.")
        unit = units.get(name)
        if unit and name in report.restarted and unit.stop_seconds is not None and elapsed >= unit.stop_seconds:
            report.killed.append(name)
            report.warnings.append(
                f"{name} did not end its job within the {unit.stop_seconds:g} s of its TimeoutStopSec, so systemd killed it; "
                "the queue gives the job to another worker. Make TimeoutStopSec longer than the longest job."
            )

    def _broken(self, units: Sequence[Unit], report: Report) -> LmsError:
        """Return the error for units that do not come up."""
        names = ", ".join(f"{unit.name} ({unit.active}, {unit.sub}, result {unit.result})" for unit in units)
        return LmsError(
            f"{names} {'do' if len(units) > 1 else 'does'} not run with release {self.application.release}. "
            f"journalctl --unit {units[0].name} says why.",
            **{key: value for key, value in report.as_result(self.application, self._now()).items() if key != "changed"},
        )


def patience(units: Iterable[Unit]) -> float:
    """Return the seconds after which systemd has ended every one of the units by itself, or the usual ones."""
    spans = [unit.stop_seconds for unit in units if unit.stop_seconds is not None]
    return max([*spans, USUAL_PATIENCE]) + START_SECONDS


def _held(unit: Unit) -> bool:
    """Tell whether a unit stays down because its own conditions say so."""
    return unit.active == "inactive" and not unit.job and not unit.condition


def _too_impatient(units: Iterable[Unit], wait: float) -> list[str]:
    """Warn about units that systemd would kill before the time that their jobs may take."""
    short = [unit for unit in units if unit.stop_seconds is not None and unit.stop_seconds < wait]
    return [
        f"{unit.name} has a TimeoutStopSec of {unit.stop_seconds:g} s, less than wait ({wait:g} s): systemd kills a job that takes longer."
        for unit in short
    ]


def leftover_error(report: Report, application: Application, now: float) -> LmsError:
    """Return the error that names what still runs another release."""
    left = awaited(report.after)
    named = "; ".join(
        f"pid {finding.process.pid} ({finding.process.unit or 'no unit'}, {finding.release or 'an older release'}, "
        f"{int(now - finding.process.started)} s old): {finding.as_result(now)['command']}"
        for finding in left[:5]
    )
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    message = (
        f"{len(left)} process{'es' if len(left) != 1 else ''} of {application.root} {'do' if len(left) != 1 else 'does'} not run release "
        f"{application.release}{f' after {report.wait:g} s' if report.wait else ''}: {named}{more}. {_way_out(left)}"
    )
    return LmsError(message, **{key: value for key, value in report.as_result(application, now).items() if key != "changed"})


def _way_out(left: Sequence[Finding]) -> str:
    """Say what to do about the processes that are left."""
    numbers = " ".join(str(finding.process.pid) for finding in left)
    if all(finding.process.unit for finding in left):
        return "Raise wait above the longest job, or end them: they go on with their job until then."
    return f"Raise wait above the longest job, end them (kill {numbers}), or set leftovers_allowed."


def switched_at(root: Path) -> float:
    """Return when the live link was last changed."""
    return (root / "current").lstat().st_ctime


def live_release(root: Path) -> str | None:
    """Return the release that the live link leads to, or None."""
    try:
        return (root / "current").readlink().name
    except OSError:
        return None


def as_user(run_command: RunCommand, user: str | None) -> RunCommand:
    """Return a way to run programs as another user; artisan must never run as root, whose files shut the application out."""
    if not user or os.geteuid() != 0 or user == "root":
        return run_command

    def run(argv: list[str], **options: Any) -> tuple[int, str, str]:
        return run_command(["runuser", "-u", user, "--", *argv], **options)

    return run
