# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Workers are cycled without losing a job, all at once, and what is left is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan
from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._processes import Application, Process, judge
from ansible_collections.bitflow.lms.plugins.module_utils._systemd import Systemctl
from ansible_collections.bitflow.lms.plugins.module_utils._workers import (
    Plan,
    Report,
    Systemd,
    Unit,
    Workers,
    as_user,
    leftover_error,
    live_release,
    parse_span,
    parse_units,
    patience,
    plan,
    switched_at,
)

ROOT = Path("/srv/lms/backend")
SWITCHED = 1000.0
APPLICATION = Application(ROOT, "new", SWITCHED)
QUEUE = "lms-queue@1.service"
SHOWN = f"""Type=simple
TimeoutStopUSec=1min 30s
MainPID=10
Result=success
Id={QUEUE}
LoadState=loaded
ActiveState=active
SubState=running
ConditionResult=yes
Job=712

Id=lms-workers.target
LoadState=loaded
ActiveState=active
SubState=active
ConditionResult=yes
Wants=lms-queue@2.service lms-queue@1.service
ConsistsOf=lms-queue@1.service
"""


def process(pid: int, command: str = "queue:work", release: str = "old", unit: str | None = QUEUE, **values: Any) -> Process:
    """Make a process that runs a release."""
    script = f"{ROOT}/releases/{release}/artisan"
    known = {"started": SWITCHED - 60 if release == "old" else SWITCHED + 1, "user": "lms", "program": "/usr/bin/php8.4"}
    arguments = ("php", f"{ROOT}/current/artisan", command)
    return Process(**{"pid": pid, "parent": 1, "arguments": arguments, "files": (script,), "unit": unit, "ticks": pid, **known, **values})


def findings(*processes: Process) -> list[Any]:
    return [judge(found, APPLICATION) for found in processes]


class Host:
    """A host with systemd and artisan, whose processes change as time passes."""

    def __init__(self, *states: list[Process], units: list[Unit] | None = None, commands: tuple[str, ...] = ()) -> None:
        self.states = list(states)
        self.units = {unit.name: unit for unit in units or []}
        self.commands = commands
        self.calls: list[list[str]] = []
        self.time = 0.0

    def workers(self) -> Workers:
        return Workers(
            APPLICATION, Systemd(Systemctl(self)), self.processes, self.artisan, lambda: self.time, self.sleep, lambda: SWITCHED + 100
        )

    def processes(self) -> list[Process]:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def artisan(self, user: str) -> Artisan:
        return Artisan(self, f"/home/{user}")

    def __call__(self, argv: list[str], **_options: Any) -> tuple[int, str, str]:
        if argv[0] == "timeout":
            return self.artisan_answer(argv[argv.index("--no-ansi") + 1 :])
        action = argv[1]
        names = argv[argv.index("--") + 1 :]
        if action == "show":
            return (0, "\n".join(shown(self.units.get(name, Unit(name, load="not-found", active="inactive"))) for name in names), "")
        if action == "list-units":
            return (0, "".join(f"{name} loaded active running x\n" for name in sorted(self.units)), "")
        self.calls.append(argv[1:])
        return (0, "", "")

    def artisan_answer(self, arguments: list[str]) -> tuple[int, str, str]:
        if arguments[0] == "list":
            return (0, json.dumps({"commands": [{"name": name, "definition": {"options": {}}} for name in self.commands]}), "")
        self.calls.append(arguments)
        return (0, "", "")


def shown(unit: Unit) -> str:
    """Return a unit as systemctl show prints it."""
    seconds = "infinity" if unit.stop_seconds is None else f"{unit.stop_seconds:g}s"
    return (
        f"Id={unit.name}\nLoadState={unit.load}\nActiveState={unit.active}\nSubState={unit.sub}\nType={unit.type}\nMainPID={unit.main_pid}\n"
        f"Result={unit.result}\nConditionResult={'yes' if unit.condition else 'no'}\nTimeoutStopUSec={seconds}\n"
        f"Wants={' '.join(unit.members)}\n"
    )


def test_units_are_read_from_systemd() -> None:
    assert parse_units(SHOWN) == [
        Unit(QUEUE, main_pid=10, job=True, stop_seconds=90.0),
        Unit("lms-workers.target", sub="active", type="", result="", members=("lms-queue@1.service", "lms-queue@2.service")),
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1min 30s", 90.0), ("10s", 10.0), ("500ms", 0.5), ("1h 5min", 3900.0), ("infinity", None), ("", None)],
)
def test_time_spans_are_read(text: str, seconds: float | None) -> None:
    assert parse_span(text) == seconds


OLD_QUEUE, SUPERVISED = process(10), process(11, unit="supervisor.service")
MAIN = {QUEUE: Unit(QUEUE, main_pid=10), "supervisor.service": Unit("supervisor.service", main_pid=3)}


@pytest.mark.parametrize(
    ("processes", "units", "wanted", "expected"),
    [
        # Everything runs the release: nothing to do.
        ([process(10, release="new")], MAIN, [QUEUE], Plan()),
        # A service that runs the application is restarted without being named; what only starts such processes is not.
        ([OLD_QUEUE], MAIN, [], Plan(restart=(QUEUE,))),
        ([SUPERVISED], MAIN, [], Plan(signal=(("queue", "lms"),))),
        # A named one also when its main process is a wrapper.
        ([OLD_QUEUE], {QUEUE: Unit(QUEUE, main_pid=9)}, [QUEUE], Plan(restart=(QUEUE,))),
        # A run of the scheduler is waited for.
        (
            [process(12, "schedule:run", unit="lms-schedule.service")],
            {"lms-schedule.service": Unit("lms-schedule.service", type="oneshot", main_pid=12)},
            [],
            Plan(signal=(("schedule", "lms"),)),
        ),
        # Without a unit: the command for its kind, as the user whose process it is.
        (
            [process(13, "horizon", unit=None, user="web"), process(14, "horizon:work", unit=None, user="web"), process(15, unit=None)],
            {},
            [],
            Plan(signal=(("horizon", "web"), ("queue", "lms"))),
        ),
        # Other commands are waited for, and a person's own are left alone.
        ([process(16, "lms:import", unit=None)], {}, [], Plan()),
        (
            [process(17, "tinker", unit=None)],
            {},
            [],
            Plan(skipped=({"what": "pid 17", "reason": "artisan tinker is a person's own: it is left alone."},)),
        ),
        # What should run and does not is started.
        ([], {QUEUE: Unit(QUEUE, active="inactive", sub="dead")}, [QUEUE], Plan(start=(QUEUE,))),
        ([], {QUEUE: Unit(QUEUE, active="failed", sub="failed")}, [QUEUE], Plan(start=(QUEUE,))),
        ([], {QUEUE: Unit(QUEUE, active="inactive", sub="dead")}, [], Plan()),
    ],
)
def test_plan(processes: list[Process], units: dict[str, Unit], wanted: list[str], expected: Plan) -> None:
    assert plan(findings(*processes), units, wanted) == expected


TWO = [Unit(f"lms-queue@{number}.service", main_pid=10 + number, stop_seconds=90) for number in (1, 2)]
TARGET = Unit("lms-workers.target", type="", members=tuple(unit.name for unit in TWO))


def old_and_new() -> tuple[list[Process], list[Process], list[Process]]:
    """Return the processes before, while the second one ends its job, and after."""
    old = [process(10 + number, unit=unit.name) for number, unit in enumerate(TWO, 1)]
    new = [process(20 + number, unit=unit.name, release="new") for number, unit in enumerate(TWO, 1)]
    return old, [old[1], new[0]], new


def test_all_units_are_restarted_at_once_and_each_job_is_waited_for() -> None:
    old, between, new = old_and_new()
    host = Host(old, old, between, new, units=[*TWO, TARGET])

    report = host.workers().restart(["lms-workers.target"], wait=None, check_mode=False)

    assert host.calls == [["restart", "--no-block", "--", TWO[0].name, TWO[1].name]]
    assert (report.changed, report.restarted, report.killed, report.warnings) == (True, [TWO[0].name, TWO[1].name], [], [])
    assert [found.process.pid for found in report.after] == [21, 22]
    assert report.progress == [
        f"0.2 s: queue:work (pid 11, {TWO[0].name}) ended.",
        f"0.4 s: queue:work (pid 12, {TWO[1].name}) ended.",
    ]


def test_second_run_changes_nothing() -> None:
    host = Host(old_and_new()[2], units=[*TWO, TARGET])

    report = host.workers().restart(["lms-queue@*.service"], wait=60, check_mode=False)

    assert (host.calls, report.changed, report.restarted) == ([], False, [])


def test_check_mode_only_looks() -> None:
    old = [*old_and_new()[0], process(30, "horizon", unit=None)]
    host = Host(old, units=[*TWO, TARGET])

    report = host.workers().restart(["lms-workers.target"], wait=60, check_mode=True)

    assert host.calls == []
    assert (report.changed, report.restarted, report.commands) == (True, [TWO[0].name, TWO[1].name], ["horizon:terminate"])


def test_job_that_takes_too_long_is_left_and_named() -> None:
    old = [process(11, unit=TWO[0].name)]
    host = Host(old, units=TWO)

    report = host.workers().restart([], wait=3, check_mode=False)
    error = leftover_error(report, APPLICATION, now=SWITCHED + 100)

    assert 3 <= host.time < 4
    assert error.message == (
        f"1 process of /srv/lms/backend does not run release new after 3 s: pid 11 ({TWO[0].name}, old, 160 s old): "
        "php /srv/lms/backend/current/artisan queue:work. "
        "Raise wait above the longest job, or end them: they go on with their job until then."
    )
    assert [left["pid"] for left in error.details["leftovers"]] == [11]


def test_job_that_systemd_kills_is_told() -> None:
    impatient = replace(TWO[0], stop_seconds=2.0)
    old, new = [process(11, unit=impatient.name)], [process(21, unit=impatient.name, release="new")]
    host = Host(*[old] * 13, new, units=[impatient])

    report = host.workers().restart([], wait=30, check_mode=False)

    assert report.killed == [impatient.name]
    assert [warning.partition(":")[0] for warning in report.warnings] == [
        f"{impatient.name} has a TimeoutStopSec of 2 s, less than wait (30 s)",
        f"{impatient.name} did not end its job within the 2 s of its TimeoutStopSec, so systemd killed it; the queue gives the job to "
        "another worker. Make TimeoutStopSec longer than the longest job.",
    ]


def test_processes_without_a_unit_are_told_where_laravel_can() -> None:
    old = [process(30, "horizon", unit=None), process(31, "reverb:start", unit=None)]
    host = Host(old, old, [old[1]], [], commands=("horizon:terminate",))

    report = host.workers().restart([], wait=30, check_mode=False)

    assert host.calls == [["horizon:terminate"]]
    assert (report.commands, report.skipped) == (
        ["horizon:terminate"],
        [{"what": "reverb:restart", "reason": "Laravel in /home/lms has no command reverb:restart."}],
    )


def test_unit_that_does_not_come_up_is_an_error() -> None:
    broken = replace(TWO[0], active="failed", sub="failed", result="exit-code")
    host = Host([], units=[broken])

    with pytest.raises(LmsError, match=r"lms-queue@1\.service \(failed, failed, result exit-code\) does not run with release new\."):
        host.workers().restart([broken.name], wait=30, check_mode=False)


def test_unit_that_only_just_started_is_watched_for_a_moment() -> None:
    fresh = process(11, unit=TWO[0].name, release="new", started=SWITCHED + 99.9)
    settled = replace(fresh, started=SWITCHED + 98)
    host = Host([process(11, unit=TWO[0].name, ticks=1)], [fresh], [fresh], [settled], units=[TWO[0]])

    host.workers().restart([], wait=30, check_mode=False)

    assert host.time == pytest.approx(0.4)


def test_unit_is_not_up_before_its_new_process_is_seen() -> None:
    new = process(21, unit=TWO[0].name, release="new")
    host = Host([process(11, unit=TWO[0].name)], [], [], [new], units=[TWO[0]])

    report = host.workers().restart([], wait=30, check_mode=False)

    assert [found.process.pid for found in report.after] == [21]


def test_unit_whose_conditions_do_not_hold_is_skipped() -> None:
    waiting = replace(TWO[0], active="inactive", sub="dead", condition=False)
    host = Host([], units=[waiting])

    report = host.workers().restart([waiting.name], wait=30, check_mode=False)

    assert (report.restarted, report.skipped) == (
        [],
        [{"what": waiting.name, "reason": "Its conditions do not hold, so it was not started."}],
    )


def test_unit_that_does_not_exist_is_an_error_and_a_plan_in_check_mode() -> None:
    host = Host([], units=[])

    report = host.workers().restart(["lms-horizon.service"], wait=30, check_mode=True)

    assert report.skipped == [{"what": "lms-horizon.service", "reason": "There is no such unit yet."}]
    with pytest.raises(LmsError, match=r"There is no unit lms-horizon\.service on this host\."):
        host.workers().restart(["lms-horizon.service"], wait=30, check_mode=False)


def test_pattern_without_a_match_is_reported() -> None:
    report = Host([], units=[]).workers().restart(["lms-*.service"], wait=30, check_mode=False)

    assert report.skipped == [{"what": "lms-*.service", "reason": "No unit of this host matches it."}]


def test_ignored_units_are_not_started() -> None:
    host = Host([], units=[replace(TWO[0], active="inactive")])
    workers = host.workers()
    workers.application = replace(APPLICATION, ignored_units=("lms-queue@*",))

    assert workers.restart([TWO[0].name], wait=30, check_mode=False).restarted == []
    assert host.calls == []


def test_patience_is_that_of_the_most_patient_unit() -> None:
    assert [patience(units) for units in ([], TWO, [Unit("a", stop_seconds=None)], [Unit("a", stop_seconds=5)])] == [75, 105, 75, 75]


def test_systemd_that_refuses_is_an_error() -> None:
    def run_command(_argv: list[str], **_options: Any) -> tuple[int, str, str]:
        return (1, "", "Access denied\n")

    with pytest.raises(CommandError, match="systemctl restart ended with status 1: Access denied"):
        Systemd(Systemctl(run_command)).queue("restart", ["a.service"])


def test_result_has_every_key() -> None:
    report = Report(before=findings(OLD_QUEUE), after=findings(process(20, release="new")), restarted=[QUEUE], changed=True)

    result = report.as_result(APPLICATION, now=SWITCHED + 100)

    assert result == {
        "changed": True,
        "release": "new",
        "restarted": [QUEUE],
        "commands": [],
        "before": [
            {
                "pid": 10,
                "kind": "queue",
                "command": "php /srv/lms/backend/current/artisan queue:work",
                "user": "lms",
                "unit": QUEUE,
                "release": "old",
                "proof": "file",
                "current": False,
                "started": "1970-01-01T00:15:40Z",
                "age": 160,
            }
        ],
        "after": result["after"],
        "leftovers": [],
        "steps_skipped": [],
        "killed": [],
        "progress": [],
        "seconds": 0.0,
        "diff": {"before": f"{QUEUE}: queue runs old\n", "after": f"{QUEUE}: queue runs new\n"},
    }


@pytest.mark.parametrize(("user", "prefix"), [("lms", ["runuser", "-u", "lms", "--"]), (None, []), ("root", [])])
def test_artisan_runs_as_the_user_of_the_process(monkeypatch: pytest.MonkeyPatch, user: str | None, prefix: list[str]) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    seen: list[list[str]] = []

    def run_command(argv: list[str], **_options: Any) -> tuple[int, str, str]:
        seen.append(argv)
        return (0, "", "")

    wrapped: Callable[..., Any] = as_user(run_command, user)
    wrapped(["php"])

    assert seen == [[*prefix, "php"]]


def test_live_release_is_read_from_the_link(tmp_path: Path) -> None:
    nothing = live_release(tmp_path)
    (tmp_path / "current").symlink_to("releases/r1")

    assert (nothing, live_release(tmp_path)) == (None, "r1")
    assert switched_at(tmp_path) == (tmp_path / "current").lstat().st_ctime
