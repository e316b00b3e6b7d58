# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lease of a deployment: real processes, real files. Beside each guard there is a run without it, which shows the harm."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils import _lease
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._lease import Claim, Lease, Lessor, Moment, acting

NOW = datetime(2026, 11, 23, 21, 0, tzinfo=timezone.utc)
OURS, THEIRS = "20261123210000-abc1234-ours", "20261123210001-fedcba9-theirs"
DETAILS = {"what": "the deployment of v1.4.0", "release": "20261123210000-abc1234", "controller": "control", "user": "anna"}
ANNA = "anna on control for the deployment of v1.4.0 (release 20261123210000-abc1234) since 2026-11-23T21:00:00Z"
# Without the mutex, a few are enough to let two win.
ROUNDS = 300
PROCESSES = multiprocessing.get_context("fork")


class Clock:
    """The time of a host: its clock can be set, its uptime cannot."""

    def __init__(self) -> None:
        self.moment = Moment(NOW, "boot-1", 1000)

    def __call__(self) -> Moment:
        return self.moment

    def pass_by(self, seconds: int) -> None:
        self.moment = replace(self.moment, clock=self.moment.clock + timedelta(seconds=seconds), uptime=self.moment.uptime + seconds)

    def set(self, **by: int) -> None:
        self.moment = replace(self.moment, clock=self.moment.clock + timedelta(**by))

    def restart(self) -> None:
        self.moment = replace(self.moment, boot="boot-2", uptime=10)


@pytest.fixture
def clock() -> Clock:
    """Return a clock that stands still."""
    return Clock()


@pytest.fixture
def lessor(tmp_path: Path, clock: Clock) -> Lessor:
    """Return the lessor of a directory that nobody holds."""
    return Lessor(tmp_path, clock)


class WithoutMutex(Lessor):
    """A lease that is looked at, and then written: the guard is off."""

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class WithoutIdleness(Lessor):
    """A lease that is taken from whoever is late, at work or not: the guard is off."""

    @contextlib.contextmanager
    def _idle(self) -> Iterator[bool]:
        yield True


class WithoutFencing(Lessor):
    """A lease that nobody looks at before acting: the guard is off."""

    def renew(self, owner: str) -> None:
        del owner


class WithoutDoubt(Lessor):
    """A lease that is free when it cannot be understood: the guard is off."""

    def _read(self) -> Lease | None:
        with contextlib.suppress(ValueError):
            return super()._read()
        return None


def hold(lessor: Lessor, owner: str, **claim: Any) -> Lease:
    """Take the lease."""
    return lessor.hold(Claim(owner, **claim))[1]


def holder(path: Path) -> str | None:
    """Return who is written down as the owner."""
    file = path / ".deploy/lease.json"
    return json.loads(file.read_text())["owner"] if file.exists() else None


# One winner


def contend(kind: type[Lessor], path: Path, rounds: int, number: int, gate: Any, winners: Any) -> None:
    """Try to take the lease in each round, as a process of its own, and give it up after it."""

    def dawdle(step: str) -> None:
        if step == "seen":
            time.sleep(0.0005)

    lessor = kind(path, checkpoint=dawdle)
    for current in range(rounds):
        gate.wait()
        with contextlib.suppress(LmsError):
            lessor.hold(Claim(f"{current}-{number}"))
            winners[current * gate.parties + number] = 1
        gate.wait()
        if winners[current * gate.parties + number]:
            lessor.give_up(f"{current}-{number}")
        gate.wait()


def races(kind: str, path: str, rounds: int, contenders: int) -> list[int]:
    """Return how many contenders won each round."""
    gate = PROCESSES.Barrier(contenders, timeout=30)
    winners = PROCESSES.Array("b", rounds * contenders, lock=False)
    group = [
        PROCESSES.Process(target=contend, args=(KINDS[kind], Path(path), rounds, number, gate, winners)) for number in range(contenders)
    ]
    for process in group:
        process.start()
    for process in group:
        process.join(60)
    assert [process.exitcode for process in group] == [0] * contenders
    return [sum(winners[start : start + contenders]) for start in range(0, rounds * contenders, contenders)]


def test_lock_is_exclusive_300x(tmp_path: Path) -> None:
    assert apart("races", "Lessor", str(tmp_path), ROUNDS, 3) == [1] * ROUNDS


def test_to_look_and_then_to_write_lets_several_win(tmp_path: Path) -> None:
    assert max(apart("races", "WithoutMutex", str(tmp_path), 20, 3)) > 1


# The owner's time


def test_the_owner_renews_and_keeps_the_beginning(lessor: Lessor, clock: Clock) -> None:
    first = hold(lessor, OURS, ttl=60, details=DETAILS)
    clock.pass_by(50)

    again = hold(lessor, OURS, ttl=60, details={"what": "something else"})

    assert again == replace(
        first, renewed_at="2026-11-23T21:00:50Z", expires_at="2026-11-23T21:01:50Z", expires_uptime=first.expires_uptime + 50
    )
    assert (again.since, again.what) == ("2026-11-23T21:00:00Z", "the deployment of v1.4.0")


def test_the_loser_learns_who_holds_it_since_when_and_what_to_do(lessor: Lessor, clock: Clock) -> None:
    hold(lessor, OURS, ttl=60, details=DETAILS)
    clock.pass_by(20)

    with pytest.raises(LmsError) as caught:
        hold(lessor, THEIRS)

    assert caught.value.message == (
        f"{lessor.path} is held by {ANNA}; it expires at 2026-11-23T21:01:00Z, in 40 s. "
        "Wait until it ends. If it is dead for sure, set steal to force."
    )
    assert caught.value.details["holder"]["owner"] == OURS


@pytest.mark.parametrize(
    ("seconds", "steal", "taken", "advice"),
    [
        (59, "never", False, "If it is dead for sure, set steal to force."),
        (59, "expired", False, "If it is dead for sure, set steal to force."),
        (59, "force", True, ""),
        (60, "never", False, "it expired at 2026-11-23T21:01:00Z, 0 s ago. Set steal to expired to take it over."),
        (60, "expired", True, ""),
        (60, "force", True, ""),
    ],
)
def test_steal_decides_from_whom_it_is_taken(lessor: Lessor, clock: Clock, seconds: int, steal: str, taken: bool, advice: str) -> None:
    hold(lessor, OURS, ttl=60)
    clock.pass_by(seconds)

    try:
        hold(lessor, THEIRS, steal=steal)
        message = ""
    except LmsError as error:
        message = error.message

    assert holder(lessor.path) == (THEIRS if taken else OURS)
    assert advice in message
    assert bool(message) != taken


def test_it_is_taken_from_an_owner_who_is_dead_and_from_nobody_else(lessor: Lessor) -> None:
    hold(lessor, OURS)

    with pytest.raises(LmsError, match=f"the owner {OURS} since"):
        hold(lessor, THEIRS, dead_owner="another")
    with lessor.acting(OURS), pytest.raises(LmsError, match="Wait until that ends, or end the process"):
        hold(lessor, THEIRS, dead_owner=OURS)

    assert hold(lessor, THEIRS, dead_owner=OURS).owner == THEIRS


@pytest.mark.parametrize("by", [{"days": 365}, {"days": -1}])
def test_a_clock_that_is_set_neither_ends_nor_prolongs_a_lease(lessor: Lessor, clock: Clock, by: dict[str, int]) -> None:
    hold(lessor, OURS, ttl=60)
    clock.set(**by)

    with pytest.raises(LmsError, match=OURS):
        hold(lessor, THEIRS)
    clock.pass_by(60)

    assert hold(lessor, THEIRS).owner == THEIRS


def test_by_the_clock_alone_a_lease_would_end_with_the_clock(lessor: Lessor, clock: Clock) -> None:
    clock.moment = replace(clock.moment, boot="")
    hold(lessor, OURS, ttl=60)
    clock.set(days=365)

    assert hold(lessor, THEIRS).owner == THEIRS


def test_after_a_restart_of_the_host_the_clock_counts(lessor: Lessor, clock: Clock) -> None:
    hold(lessor, OURS, ttl=60)
    clock.restart()

    with pytest.raises(LmsError, match=OURS):
        hold(lessor, THEIRS)
    clock.pass_by(60)

    assert hold(lessor, THEIRS).owner == THEIRS


def test_waiting_ends_when_the_lease_is_given_up(tmp_path: Path) -> None:
    lessor = Lessor(tmp_path)
    hold(lessor, OURS)
    waiting = threading.Thread(target=lessor.hold, args=(Claim(THEIRS), 30))
    waiting.start()

    # The other one may be at the door just now.
    lessor.give_up(OURS, wait=20)
    waiting.join(30)

    assert holder(tmp_path) == THEIRS


# Giving it up


def test_only_the_owner_gives_it_up(lessor: Lessor) -> None:
    hold(lessor, OURS)

    sight, removed = lessor.give_up(THEIRS)

    assert (removed, sight.lease.owner if sight.lease else None, holder(lessor.path)) == (False, OURS, OURS)
    assert lessor.give_up(OURS)[1] is True
    assert lessor.give_up(OURS)[1] is False
    assert holder(lessor.path) is None


def test_it_is_not_given_up_while_a_process_acts(lessor: Lessor) -> None:
    hold(lessor, OURS)

    with lessor.acting(OURS), pytest.raises(LmsError, match=f"{OURS} keeps .* at work for it. Release it again when that has ended"):
        lessor.give_up(OURS)

    assert holder(lessor.path) == OURS


# Files that cannot be understood


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "it is empty"),
        ('{"owner": "a', "it is no whole JSON"),
        ("[]", "it is no JSON object"),
        ("{}", "owner is missing or wrong"),
    ],
)
def test_half_a_lease_is_never_taken_for_a_free_one(lessor: Lessor, content: str, reason: str) -> None:
    lessor.directory.mkdir()
    lessor.file.write_text(content)
    attempts: list[Callable[[], Any]] = [
        lambda: hold(lessor, OURS),
        lambda: lessor.give_up(OURS),
        lambda: lessor.renew(OURS),
    ]

    for attempt in attempts:
        with pytest.raises(LmsError) as caught:
            attempt()
        assert caught.value.message == (
            f"The lease {lessor.file} cannot be read: {reason}. It may hide a deployment that runs. "
            "When none does, set steal to force, which replaces it, or remove the file."
        )
    assert lessor.file.read_text() == content
    assert hold(lessor, OURS, steal="force").owner == OURS


def test_without_doubt_a_damaged_lease_is_taken_from_a_deployment_that_runs(tmp_path: Path) -> None:
    lessor = WithoutDoubt(tmp_path)
    hold(lessor, OURS)
    lessor.file.write_text(lessor.file.read_text()[:-20])

    assert hold(lessor, THEIRS).owner == THEIRS


@pytest.mark.parametrize("name", ["since", "expires_at", "owner", "ttl", "expires_uptime", "boot"])
def test_every_field_of_a_lease_is_checked(lessor: Lessor, name: str) -> None:
    hold(lessor, OURS)
    written = json.loads(lessor.file.read_text())

    for value in (None, [], True):
        lessor.file.write_text(json.dumps({**written, name: value}))
        with pytest.raises(LmsError, match=f"{name} is missing or wrong"):
            hold(lessor, OURS)


def test_a_link_or_a_pipe_in_place_of_the_lease_is_not_followed(lessor: Lessor, tmp_path: Path) -> None:
    lessor.directory.mkdir()
    (tmp_path / "elsewhere").write_text("precious")
    lessor.file.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(LmsError, match="cannot be read"):
        hold(lessor, OURS)
    hold(lessor, OURS, steal="force")
    lessor.file.unlink()
    os.mkfifo(lessor.file)
    with pytest.raises(LmsError, match="it is no file"):
        hold(lessor, OURS)

    assert (tmp_path / "elsewhere").read_text() == "precious"


# Acting


def test_acting_renews_before_and_after(lessor: Lessor, clock: Clock) -> None:
    hold(lessor, OURS, ttl=60)
    clock.pass_by(50)

    with lessor.acting(OURS):
        during = json.loads(lessor.file.read_text())["expires_at"]
        clock.pass_by(3600)

    assert (during, json.loads(lessor.file.read_text())["expires_at"]) == ("2026-11-23T21:01:50Z", "2026-11-23T22:01:50Z")


def test_several_processes_act_for_one_owner_at_once(lessor: Lessor) -> None:
    hold(lessor, OURS)

    with lessor.acting(OURS), lessor.acting(OURS):
        assert hold(lessor, OURS).owner == OURS


def test_who_lost_the_lease_cannot_act(lessor: Lessor, clock: Clock) -> None:
    hold(lessor, OURS, ttl=60)
    clock.pass_by(60)
    hold(lessor, THEIRS, ttl=60, details=DETAILS)

    with pytest.raises(LmsError) as caught, lessor.acting(OURS):
        raise AssertionError

    assert caught.value.message == (
        f"{OURS} does not hold {lessor.path} any more: {ANNA.replace('21:00:00Z', '21:01:00Z')}; "
        "it expires at 2026-11-23T21:02:00Z, in 60 s. Nothing was changed by this step; start again when that has ended."
    )
    assert holder(lessor.path) == THEIRS


def test_without_fencing_two_owners_act_at_once(tmp_path: Path) -> None:
    lessor = WithoutFencing(tmp_path)
    hold(lessor, OURS)
    hold(lessor, THEIRS, steal="force")

    with lessor.acting(THEIRS), lessor.acting(OURS):
        assert holder(tmp_path) == THEIRS


def test_nobody_acts_without_a_lease(tmp_path: Path) -> None:
    lessor = Lessor(tmp_path)

    for prepared in (False, True):
        if prepared:
            lessor.directory.mkdir()
        with pytest.raises(LmsError, match=r"Take the lease with deploy_lock first|nobody does"), lessor.acting(OURS):
            raise AssertionError


def test_without_the_option_everybody_acts() -> None:
    with acting(None) as descriptors:
        assert descriptors == ()


# A process that acts as a module does. It says when it has begun, and what it did when it could not begin.
ACTOR = """
import sys, time
from pathlib import Path
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._lease import acting
import subprocess
try:
    with acting({"path": sys.argv[1], "owner": sys.argv[2]}) as descriptors:
        if sys.argv[3]:
            child = subprocess.Popen(["sleep", "60"], pass_fds=descriptors if sys.argv[3] == "inherits" else ())
            print(child.pid, flush=True)
        print("acts", flush=True)
        time.sleep(60)
except LmsError as error:
    print(error.message, flush=True)
"""


def environment() -> dict[str, str]:
    """Return the environment in which a fresh Python finds the collection."""
    return {**os.environ, "PYTHONPATH": str(Path(_lease.__file__).resolve().parents[2] / "collections")}


@contextlib.contextmanager
def actor(path: Path, owner: str, child: str = "") -> Iterator[subprocess.Popen[str]]:
    """Run a process that acts for an owner until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", ACTOR, str(path), owner, child],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def line_of(process: subprocess.Popen[str]) -> str:
    """Return the next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def later(path: Path, seconds: int) -> Lessor:
    """Return a lessor for whom so many seconds have passed."""

    def now() -> Moment:
        moment = Moment.now()
        return replace(moment, clock=moment.clock + timedelta(seconds=seconds), uptime=moment.uptime + seconds)

    return Lessor(path, now)


@pytest.mark.parametrize("steal", ["expired", "force"])
def test_takeover_waits_for_the_process_that_acts(tmp_path: Path, steal: str) -> None:
    hold(Lessor(tmp_path), OURS, ttl=600)
    with actor(tmp_path, OURS) as process:
        assert line_of(process) == "acts"

        with pytest.raises(LmsError) as caught:
            hold(later(tmp_path, 601), THEIRS, steal=steal)

        assert f"The process {process.pid} (python" in caught.value.message
        assert "Wait until that ends, or end the process." in caught.value.message
        assert holder(tmp_path) == OURS


def test_without_the_proof_it_is_taken_from_a_process_that_acts(tmp_path: Path) -> None:
    lessor = WithoutIdleness(tmp_path)
    hold(lessor, OURS)
    with actor(tmp_path, OURS) as process:
        assert line_of(process) == "acts"

        hold(lessor, THEIRS, steal="force")

        assert (process.poll(), holder(tmp_path)) == (None, THEIRS)


def test_sigkilled_lock_expires(tmp_path: Path) -> None:
    hold(Lessor(tmp_path), OURS, ttl=600)
    with actor(tmp_path, OURS) as process:
        assert line_of(process) == "acts"
        process.send_signal(signal.SIGKILL)
        process.wait()

    with pytest.raises(LmsError, match="If it is dead for sure"):
        hold(later(tmp_path, 590), THEIRS)

    assert hold(later(tmp_path, 601), THEIRS).owner == THEIRS


def test_the_program_of_a_killed_module_still_counts_as_at_work(tmp_path: Path) -> None:
    lessor = Lessor(tmp_path)
    hold(lessor, OURS)
    with actor(tmp_path, OURS, "inherits") as process:
        child = int(line_of(process))
        assert line_of(process) == "acts"
        process.kill()
        process.wait()

        with pytest.raises(LmsError, match=rf"The process {child} \(sleep\) is at work for it"):
            hold(lessor, THEIRS, steal="force")

        os.kill(child, signal.SIGKILL)
    until(lambda: not lessor.look().busy)
    assert hold(lessor, THEIRS, steal="force").owner == THEIRS


def test_without_the_inherited_lock_the_program_of_a_killed_module_is_overlooked(tmp_path: Path) -> None:
    lessor = Lessor(tmp_path)
    hold(lessor, OURS)
    with actor(tmp_path, OURS, "does not inherit") as process:
        child = int(line_of(process))
        assert line_of(process) == "acts"
        process.kill()
        process.wait()

        taken = hold(lessor, THEIRS, steal="force")

        # It still runs: a kill of a process that has ended would fail.
        os.kill(child, signal.SIGKILL)
    assert taken.owner == THEIRS


def test_an_owner_whose_lease_was_taken_cannot_begin_another_step(tmp_path: Path) -> None:
    lessor = Lessor(tmp_path)
    hold(lessor, OURS)
    hold(lessor, THEIRS, steal="force")

    with actor(tmp_path, OURS) as process:
        assert line_of(process).startswith(f"{OURS} does not hold {tmp_path} any more")


def kill_when(path: str, step: str) -> None:
    """Take the lease over, and be killed at a step."""

    def die(name: str) -> None:
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Lessor(Path(path), checkpoint=die).hold(Claim(THEIRS, steal="force"))


@pytest.mark.parametrize(("step", "owner"), [("seen", OURS), ("written", THEIRS)])
def test_a_takeover_that_is_killed_leaves_one_owner_and_no_lock(tmp_path: Path, step: str, owner: str) -> None:
    hold(Lessor(tmp_path), OURS)

    with pytest.raises(subprocess.CalledProcessError) as caught:
        apart("kill_when", str(tmp_path), step)

    assert (caught.value.returncode, holder(tmp_path)) == (-signal.SIGKILL, owner)
    assert hold(Lessor(tmp_path), owner).owner == owner


# The user who acts


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_the_named_user_acts_and_others_cannot_even_lock(tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents):
        if directory == Path("/tmp"):
            break
        directory.chmod(0o755)
    lessor = Lessor(tmp_path)
    lessor.hold(Claim(OURS), user="65534")

    assert {file.name: (file.stat().st_uid, file.stat().st_mode & 0o777) for file in lessor.directory.iterdir()} == {
        "lease.json": (65534, 0o644),
        "lease.lock": (65534, 0o600),
        "lease.acting": (65534, 0o600),
    }
    assert apart("act_as", 65534, str(tmp_path)) == "acts"
    assert apart("act_as", 65533, str(tmp_path)) == (
        f"The user id 65533 may not use {lessor.directory}. Name the user in the option act_as of deploy_lock."
    )


def act_as(user_id: int, path: str) -> str:
    """Say what a user meets who acts."""
    # Imports what comes late, and what that user might not be allowed to read.
    Lessor(Path(path)).look()
    os.setgid(user_id)
    os.setuid(user_id)
    try:
        with Lessor(Path(path)).acting(OURS):
            return "acts"
    except LmsError as error:
        return error.message


# Processes of their own: pytest's has threads, and a fork would take only one of them along.

KINDS: dict[str, type[Lessor]] = {"Lessor": Lessor, "WithoutMutex": WithoutMutex}
FUNCTIONS: dict[str, Callable[..., Any]] = {"races": races, "kill_when": kill_when, "act_as": act_as}


def apart(function: str, *arguments: Any) -> Any:
    """Call a function of this file in a fresh process and return what it returns."""
    command = [sys.executable, __file__, function, json.dumps(arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=120, env=environment()).stdout)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(FUNCTIONS[sys.argv[1]](*json.loads(sys.argv[2]))))
