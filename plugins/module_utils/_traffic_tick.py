# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One tick of a rollout: take the lease, read, do what is next until one has to wait, write, give the lease back.

The weights are read from the load balancer each time, and are the only truth about traffic. What is meant to be done is written into the
record before it is done, so whoever comes after a crash finds either the old weights, and does it, or the new ones, and goes on.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import (
    Change,
    DriftError,
    Health,
    Live,
    Provider,
    Readiness,
    Route,
    TrafficError,
    Weights,
    carries,
    in_words,
    judge,
    raised,
    refuse_foreign,
    refuse_unready,
    split,
    weights_of,
)
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_record import (
    ATTACHED,
    BAKING,
    FAILED,
    GATED,
    HISTORY,
    IDLE,
    RETAINED,
    RETIRED,
    ROLLED_BACK,
    ROLLING_BACK,
    SHIFTED,
    SHIFTING,
    SMOKED,
    Lease,
    LeaseHeldError,
    LeaseLostError,
    Record,
    Rollout,
    Store,
    Stored,
    parse,
    stamp,
)
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_rollout import (
    ABORT,
    ADVANCE,
    BAD,
    DRAIN,
    END,
    GATE,
    GOOD,
    INTEND,
    MOVE,
    RETIRE,
    ROLLBACK,
    SET,
    SETTLE,
    SMOKE,
    STATUS,
    UNKNOWN,
    WAIT,
    WATCH,
    Act,
    Check,
    Checks,
    Clock,
    Outcome,
    Request,
    Settings,
    Verdict,
    adopt,
    begin,
    begin_way_back,
    check_drift,
    check_routes,
    everywhere,
    means,
    next_act,
    refuse_another,
    restore,
    turn_back,
)

# A tick that does more than this goes round in circles.
MOST_ACTS = 100
# Between two ticks of one call (seconds).
SHORTEST_PAUSE = 0.05


def tick(
    name: str,
    request: Request,
    settings: Settings,
    store: Store,
    provider: Provider,
    checks: Checks,
    clock: Clock,
    owner: str,
    token: Callable[[], str] = lambda: secrets.token_hex(16),
    check_mode: bool = False,
) -> Outcome:
    """Do one action, as far as it goes without waiting. In check mode the same is done to a copy, up to the next moment of waiting."""
    if check_mode:
        store, provider = _DryStore(store), _DryProvider(provider)
    return _Tick(name, request, settings, store, provider, checks, clock, Lease(owner, token(), clock())).run()


def ticks(one: Callable[[], Outcome], max_wait: float, clock: Clock, sleep: Callable[[float], None]) -> Outcome:
    """Tick until it is done, or until the next moment at which there is something to do lies too far ahead."""
    deadline = clock() + timedelta(seconds=max_wait)
    outcomes: list[Outcome] = []
    while True:
        try:
            outcomes.append(one())
            until = outcomes[-1].next_at
            if outcomes[-1].done or until is None or until > deadline:
                return _together(outcomes)
        except LeaseHeldError as error:
            if error.until > deadline:
                raise
            until = error.until
        sleep(max(SHORTEST_PAUSE, (until - clock()).total_seconds()))


def _together(outcomes: Sequence[Outcome]) -> Outcome:
    """Return what several ticks came to as one."""
    first, last = outcomes[0], outcomes[-1]
    return replace(
        last,
        changed=any(outcome.changed for outcome in outcomes),
        before=first.before,
        phase_before=first.phase_before,
        events=[event for outcome in outcomes for event in outcome.events],
        health={colour: readiness for outcome in outcomes for colour, readiness in outcome.health.items()},
    )


class _Tick:
    """One tick."""

    def __init__(
        self,
        name: str,
        request: Request,
        settings: Settings,
        store: Store,
        provider: Provider,
        checks: Checks,
        clock: Clock,
        lease: Lease,
    ) -> None:
        self.name = name
        self.request = request
        self.settings = settings
        self.store = store
        self.provider = provider
        self.checks = checks
        self.clock = clock
        self.lease = lease
        self.colours = tuple(provider.colours)
        self.record: Record | None = None
        self.tag: str | None = None
        self.held = False
        self.events: list[Mapping[str, Any]] = []
        self.health: dict[str, Readiness] = {}
        self.waiting = ""
        self.next_at: datetime | None = None
        self.live: Live = {}

    @property
    def rollout(self) -> Rollout:
        """Return the rollout, which there is."""
        if self.record is None or self.record.rollout is None:
            raise TrafficError("There is no rollout. Begin one with advance and a release.")
        return self.record.rollout

    @property
    def hurry(self) -> bool:
        """Say whether the old colour is to be given up before its time."""
        return self.request.action == RETIRE

    def run(self) -> Outcome:
        """Look, take the lease if there is something to do, do it, and give the lease back."""
        self._read_record()
        self.live = before = self.provider.read()
        phase = self._phase()
        if self.request.action == STATUS:
            self._look()
        elif self._something_to_do():
            try:
                self._take_lease()
                # Only now nobody else changes them.
                self.live = self.provider.read()
                self._act()
            finally:
                self._give_lease_back()
        changed = bool(self.events) or weights_of(before) != weights_of(self.live)
        record = self.record or Record(self.name)
        return Outcome(
            changed,
            record,
            before,
            self.live,
            phase,
            self.colours,
            self.request.action,
            self.clock(),
            self.events,
            self.health,
            self.waiting,
            self.next_at,
        )

    def _wait(self, act: Act) -> None:
        """Say why nothing more is done now."""
        self.waiting, self.next_at = act.text, act.until

    def _phase(self) -> str:
        """Return the phase that the record says."""
        return self.record.rollout.phase if self.record and self.record.rollout else IDLE

    # The record

    def _read_record(self) -> None:
        """Read the record."""
        stored: Stored | None = self.store.read()
        self.record = parse(stored.content, self.name, self.store.uri) if stored else None
        self.tag = stored.tag if stored else None

    def _take_lease(self) -> None:
        """Take the lease, unless somebody else has it whose time is not over."""
        found = self.record.lease if self.record else None
        if found and found.until > self.clock():
            raise LeaseHeldError(
                f"{found.owner} is at the rollout {self.name} until {stamp(found.until)}. Try again then.", found.until, owner=found.owner
            )
        self._write(self.record or Record(self.name))
        self.held = True

    def _give_lease_back(self) -> None:
        """Give the lease back where it is still ours. What ended the tick matters more than that this failed: it runs out."""
        if self.held and self.record is not None:
            self.held = False
            with contextlib.suppress(LmsError):
                self._put(replace(self.record, serial=self.record.serial + 1, lease=None))

    def _write(self, record: Record) -> None:
        """Write the record with a lease that has its whole time again."""
        self._put(
            replace(
                record,
                serial=record.serial + 1,
                lease=replace(self.lease, until=self.clock() + timedelta(seconds=self.settings.lease)),
            )
        )

    def _put(self, record: Record) -> None:
        """Write the record over the one that was read."""
        content = record.render()
        self.tag = self.store.create(content) if self.tag is None else self.store.replace(content, self.tag)
        self.record = record

    def _note(self, rollout: Rollout, text: str) -> None:
        """Write how far the rollout is, and what happened."""
        record = self.record or Record(self.name)
        event = {
            "time": stamp(self.clock()),
            "owner": self.lease.owner,
            "release": rollout.release,
            "phase": rollout.phase,
            "event": text,
            "weights": weights_of(self.live),
        }
        self._write(replace(record, rollout=rollout, history=[*record.history, event][-HISTORY:]))
        self.events.append(event)

    def _keep(self, rollout: Rollout) -> None:
        """Write how far the rollout is, where nothing happened that anybody wants to read of."""
        self._write(replace(self.record or Record(self.name), rollout=rollout))

    def _check_lease(self) -> None:
        """Refuse to act when the lease may be somebody else's by now."""
        lease = self.record.lease if self.record else None
        if lease is None or self.clock() >= lease.until:
            raise LeaseLostError(
                f"The lease of the rollout {self.name} ran out before the weights were set, and nothing was changed. "
                "Run it again, and raise lease_time if that happens often."
            )

    # What is asked

    def _something_to_do(self) -> bool:
        """Say whether anything is to be done now; without the lease, so that waiting costs nothing and disturbs nobody."""
        action, request = self.request.action, self.request
        rollout = self.record.rollout if self.record else None
        if rollout is None or rollout.over:
            if action == ADVANCE:
                if not request.release or (rollout is not None and rollout.release == request.release):
                    return False
                # Refuses what cannot be begun before anything is written.
                begin(request, self._known(), self.live, self.colours, self.settings, self.clock())
                return True
            if action == ROLLBACK:
                back = rollout is not None and rollout.phase == ROLLED_BACK and request.colour in ("", rollout.old)
                if rollout is not None and back and not carries(self.live, rollout.new):
                    return False
                begin_way_back(request, self.live, self.colours, self.settings, self.clock())
                return True
            return False
        refuse_another(request, rollout)
        if action != ADVANCE or self.settings.on_drift != "fail":
            return True
        act = next_act(rollout, self.live, self.settings, self.clock(), self.hurry)
        self._wait(act)
        return act.kind not in (WAIT, END)

    def _known(self) -> Record | None:
        """Return the record, if it tells of any rollout."""
        return self.record if self.record and self.record.history else None

    def _look(self) -> None:
        """Say what would be found, without changing anything."""
        for colour in self.colours:
            if any(colour in route.weights for route in self.live.values()):
                self._ready(colour)
        rollout = self.record.rollout if self.record else None
        if rollout is not None:
            try:
                self._wait(next_act(rollout, self.live, self.settings, self.clock()))
            except TrafficError as error:
                self.waiting = error.message

    def _act(self) -> None:
        """Turn where that was asked for, then go on until one has to wait."""
        self._prepare()
        for _act in range(MOST_ACTS):
            act = next_act(self.rollout, self.live, self.settings, self.clock(), self.hurry)
            if act.kind in (WAIT, END):
                self._wait(act)
                return
            self._carry_out(act)
        raise TrafficError(f"The rollout {self.name} goes round in circles in the phase {self.rollout.phase}. Look at its history.")

    def _prepare(self) -> None:
        """Bring the rollout to where the action begins."""
        request, now = self.request, self.clock()
        rollout = self.record.rollout if self.record else None
        if rollout is None or rollout.over:
            if request.action == ADVANCE:
                begun = begin(request, self._known(), self.live, self.colours, self.settings, now)
                self._note(begun, f"begun, from {begun.old} to {begun.new}")
            else:
                begun = begin_way_back(request, self.live, self.colours, self.settings, now)
                self._note(begun, f"back to {begun.old}")
            return
        self._settle_drift(rollout)
        rollout = self.rollout
        if rollout.over:
            return
        if request.action == ROLLBACK and rollout.phase != ROLLING_BACK:
            self._note(turn_back(rollout, self.live, self.settings, now, "It was asked for."), f"back to {rollout.old}, as asked for")
        elif request.action == ABORT:
            self._abort(rollout)
        elif request.action == RETIRE:
            self._retire(rollout)

    def _settle_drift(self, rollout: Rollout) -> None:
        """Do what the user wants done about weights that somebody else set."""
        if rollout.phase == FAILED:
            # A person is at it, and whatever the weights are now, the way back begins there.
            check_routes(rollout, self.live)
            refuse_foreign(self.live, (rollout.old, rollout.new))
            return
        try:
            check_drift(rollout, self.live)
        except DriftError as error:
            if self.settings.on_drift == "fail":
                raise
            refuse_foreign(self.live, (rollout.old, rollout.new))
            if self.request.action == ROLLBACK:
                # The way back begins wherever the weights are.
                back = turn_back(rollout, self.live, self.settings, self.clock(), rollout.reason or "It was asked for.")
                self._note(back, f"drift: {error.message} Back to {rollout.old} from there, as asked for.")
                return
            if self.settings.on_drift == "restore":
                self._note(restore(rollout, self.live, self.clock()), f"drift: {error.message} The weights are restored.")
                return
            for colour in (rollout.old, rollout.new):
                if carries(self.live, colour):
                    refuse_unready(self._ready(colour))
            self._note(adopt(rollout, self.live, self.clock()), f"drift: {error.message} The weights are adopted.")

    def _abort(self, rollout: Rollout) -> None:
        """End a rollout whose colour has no weight."""
        routes = carries(self.live, rollout.new)
        if routes:
            raise TrafficError(f"{rollout.new} has weight on {', '.join(routes)}, so it cannot be aborted. Ask for rollback.")
        found = weights_of(self.live)
        over = replace(rollout, phase=ROLLED_BACK, since=self.clock(), intent=found, previous=found, settled=True, reason="It was aborted.")
        self._note(over, "aborted")

    def _retire(self, rollout: Rollout) -> None:
        """Give the old colour up before its time, where it has no traffic."""
        if rollout.phase == FAILED and not carries(self.live, rollout.old):
            refuse_unready(self._ready(rollout.new))
            found = weights_of(self.live)
            kept = replace(rollout, phase=RETAINED, since=self.clock(), intent=found, previous=found, settled=True, reason="")
            self._note(kept, f"{rollout.new} is kept, as asked for")
        elif rollout.phase == RETAINED:
            self._keep(replace(rollout, next_at=self.clock()))
        else:
            raise TrafficError(
                f"The rollout of {rollout.release} is {rollout.phase}, so {rollout.old} is still needed. "
                "Ask for advance until it is retained, or for rollback."
            )

    # What is done

    def _carry_out(self, act: Act) -> None:
        """Do one thing."""
        {
            SET: self._set,
            SETTLE: self._settle,
            INTEND: self._intend,
            GATE: self._gate,
            SMOKE: self._smoke,
            WATCH: self._watch,
            DRAIN: self._drain,
            MOVE: self._move,
        }[act.kind](act)

    def _ready(self, colour: str) -> Readiness:
        """Ask the load balancer whether a colour is ready."""
        found: Health = self.provider.health(colour)
        self.health[colour] = judge(colour, found, self.settings.min_healthy)
        return self.health[colour]

    def _intend(self, act: Act) -> None:
        """Write which weights are meant, and set nothing yet."""
        rollout, now = self.rollout, self.clock()
        self._note(
            replace(
                rollout,
                phase=act.phase,
                step=act.step if act.step >= 0 else rollout.step,
                intent={name: dict(weights) for name, weights in act.target.items()},
                previous=weights_of(self.live),
                settled=False,
                unverified_since=None,
                # The time of a way back counts from its beginning.
                since=rollout.since if act.phase == ROLLING_BACK else now,
                next_at=now,
            ),
            f"meant: {in_words(next(iter(act.target.values())))}",
        )

    def _set(self, act: Act) -> None:
        """Set the weights, route by route; on a failure put those back that were set."""
        for colour in raised(act.changes):
            readiness = self._ready(colour)
            if not self._may_take(readiness):
                return
        done: list[Change] = []
        try:
            for change in act.changes:
                self._check_lease()
                self.provider.set(change.route, change.after, change.before)
                done.append(change)
            self._check_record(done)
        except LmsError:
            self._put_back(done)
            raise
        self.live = self.provider.read()

    def _check_record(self, done: Sequence[Change]) -> None:
        """See that nobody has meant anything else while the weights were being set: this process may have slept through its lease."""
        stored = self.store.read()
        if stored is not None and stored.tag == self.tag:
            return
        rollout = parse(stored.content, self.name, self.store.uri).rollout if stored else None
        if rollout is None or not all(means(rollout, change.route, change.after) for change in done):
            raise LeaseLostError(
                f"Somebody else went on with the rollout {self.name} while its weights were being set. Look at the status, then go on."
            )

    def _may_take(self, readiness: Readiness) -> bool:
        """Judge whether a colour may get more weight; write what follows where it may not."""
        rollout, now = self.rollout, self.clock()
        if rollout.phase != ROLLING_BACK:
            if not readiness.ready:
                self._turn_back(f"{readiness.colour} is not ready: {readiness.fault}.")
            return readiness.ready
        passes = rollout.passes + 1 if readiness.ready else 0
        if passes >= self.settings.consecutive:
            return True
        self._gate_again(rollout, readiness, passes, now)
        return False

    def _gate_again(self, rollout: Rollout, readiness: Readiness, passes: int, now: datetime) -> None:
        """Wait for a colour, or give up."""
        late = now - rollout.since >= timedelta(seconds=self.settings.gate_timeout)
        if late and not readiness.ready:
            reason = f"{readiness.colour} was not ready within {self.settings.gate_timeout:g} s: {readiness.fault}."
            if rollout.phase == ROLLING_BACK:
                self._note(replace(rollout, phase=FAILED, since=now, next_at=now, reason=f"{rollout.reason} {reason}"), f"failed: {reason}")
            else:
                self._turn_back(reason)
            return
        self._keep(replace(rollout, passes=passes, next_at=now + timedelta(seconds=self.settings.interval)))

    def _put_back(self, done: Sequence[Change]) -> None:
        """Give routes back what they had, where the colour that gets more is still ready. A tick later the step is tried again."""
        with contextlib.suppress(LmsError):
            for change in reversed(done):
                back = Change(change.route, change.after, change.before)
                if self._stands_alone(change) and all(self._ready(colour).ready for colour in back.raised):
                    self.provider.set(back.route, back.after, back.before)

    def _stands_alone(self, change: Change) -> bool:
        """Say whether only this tick means a change that it made: it is at work as before, or who is at work now means something else."""
        stored = self.store.read()
        if stored is None:
            return False
        if stored.tag == self.tag:
            self._check_lease()
            return True
        rollout = parse(stored.content, self.name, self.store.uri).rollout
        return rollout is not None and not means(rollout, change.route, change.after)

    def _settle(self, _act: Act) -> None:
        """See that the load balancer acts by the weights that were meant."""
        rollout, now = self.rollout, self.clock()
        slow = [name for name, weights in sorted(rollout.intent.items()) if not self.provider.verify(name, weights)]
        if not slow:
            self._note(
                replace(
                    rollout,
                    settled=True,
                    since=now,
                    next_at=now,
                    unverified_since=None,
                    passes=0 if rollout.phase == ATTACHED else rollout.passes,
                    shifted_at=None if carries(self.live, rollout.old) else now,
                ),
                f"in force: {in_words(next(iter(rollout.intent.values())))}",
            )
            return
        since = rollout.unverified_since or now
        if rollout.phase != ROLLING_BACK and now - since >= timedelta(seconds=self.settings.verify_timeout):
            self._turn_back(f"{', '.join(slow)} did not act by the weights within {self.settings.verify_timeout:g} s.")
            return
        self._keep(replace(rollout, unverified_since=since, next_at=now + timedelta(seconds=self.settings.interval)))

    def _gate(self, _act: Act) -> None:
        """Ask whether the new colour is ready, as many times in a row as it has to be."""
        rollout, now = self.rollout, self.clock()
        readiness = self._ready(rollout.new)
        passes = rollout.passes + 1 if readiness.ready else 0
        if passes >= self.settings.consecutive:
            self._note(
                replace(rollout, phase=GATED, passes=passes, since=now, next_at=now), f"{rollout.new} was ready {passes} times in a row"
            )
            return
        self._gate_again(rollout, readiness, passes, now)

    def _smoke(self, _act: Act) -> None:
        """Ask the new colour for real answers before anybody else does."""
        rollout = self.rollout
        verdict = self._ask(self.checks.smoke, rollout.new)
        if verdict.state == BAD:
            self._turn_back(f"The smoke test failed: {verdict.text}")
        elif verdict.state == UNKNOWN:
            self._wait_for_data(verdict)
        else:
            now = self.clock()
            passed = replace(rollout, phase=SMOKED, since=now, next_at=now, unverified_since=None)
            self._note(passed, f"{rollout.new} passed its smoke test" if self.checks.smoke else "no smoke test was asked for")

    def _watch(self, act: Act) -> None:
        """See whether all is well; if so go on where it is time, and otherwise back."""
        rollout = self.rollout
        readiness = self._ready(rollout.new)
        if readiness.ready:
            verdict = self._ask(self.checks.watch, rollout.new)
        else:
            verdict = Verdict(BAD, f"{rollout.new} is not ready: {readiness.fault}.")
        now = self.clock()
        if verdict.state == BAD:
            self._turn_back(verdict.text)
        elif not act.phase:
            self._keep(replace(rollout, next_at=self._next_look(rollout, now), unverified_since=None))
        elif verdict.state == UNKNOWN:
            self._wait_for_data(verdict)
        elif act.phase == SHIFTING:
            step = rollout.step + 1
            weight = rollout.steps[step].weight
            target = everywhere(self.live, split(rollout.old, rollout.new, weight))
            self._intend(Act(INTEND, target=target, phase=SHIFTED if weight == 100 else SHIFTING, step=step))
        else:
            self._move(act)

    def _next_look(self, rollout: Rollout, now: datetime) -> datetime:
        """Return when to look again: after the interval, or when the time of the phase is over."""
        lasts = {SHIFTED: self.settings.propagation, BAKING: rollout.steps[-1].bake}.get(rollout.phase, rollout.steps[rollout.step].bake)
        return min(now + timedelta(seconds=self.settings.interval), rollout.since + timedelta(seconds=lasts))

    def _wait_for_data(self, verdict: Verdict) -> None:
        """Wait for a check that has nothing to say yet, for as long as for a gate."""
        rollout, now = self.rollout, self.clock()
        since = rollout.unverified_since or now
        if now - since >= timedelta(seconds=self.settings.gate_timeout):
            self._turn_back(f"There was no data for {self.settings.gate_timeout:g} s: {verdict.text}")
            return
        self._keep(replace(rollout, unverified_since=since, next_at=now + timedelta(seconds=self.settings.interval)))

    def _ask(self, checks: Sequence[Check], colour: str) -> Verdict:
        """Ask every check, and return the worst answer as the setting insufficient has it."""
        unknown = []
        for check in checks:
            try:
                verdict = check(colour)
            except LmsError as error:
                verdict = Verdict(UNKNOWN, error.message)
            if verdict.state == BAD or (verdict.state == UNKNOWN and self.settings.insufficient == "fail"):
                return Verdict(BAD, verdict.text)
            if verdict.state == UNKNOWN:
                unknown.append(verdict.text)
        if unknown and self.settings.insufficient == "wait":
            return Verdict(UNKNOWN, " ".join(unknown))
        return Verdict(GOOD)

    def _drain(self, _act: Act) -> None:
        """Give the old colour up when it serves nothing any more."""
        rollout, now = self.rollout, self.clock()
        if self.provider.drained(rollout.old):
            self._move(Act(MOVE, phase=RETIRED))
            return
        self._keep(replace(rollout, next_at=now + timedelta(seconds=self.settings.interval)))

    def _move(self, act: Act) -> None:
        """Go to the next phase."""
        rollout, now = self.rollout, self.clock()
        self._note(replace(rollout, phase=act.phase, since=now, next_at=now, unverified_since=None), act.phase.replace("_", " "))

    def _turn_back(self, reason: str) -> None:
        """Turn the rollout round."""
        self._note(turn_back(self.rollout, self.live, self.settings, self.clock(), reason), f"back to {self.rollout.old}: {reason}")


# Check mode


class _DryStore:
    """A store that keeps what is written to itself."""

    def __init__(self, store: Store) -> None:
        self.uri = store.uri
        self._store = store
        self._written: Stored | None = None

    def read(self) -> Stored | None:
        """Return the document as it would be."""
        return self._written or self._store.read()

    def create(self, content: bytes) -> str:
        """Keep the document."""
        self._written = Stored(content, "dry")
        return self._written.tag

    def replace(self, content: bytes, tag: str) -> str:
        """Keep the document."""
        return self.create(content)


class _DryProvider:
    """A load balancer whose weights are changed in a copy only."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._set: dict[str, dict[str, int]] = {}

    @property
    def colours(self) -> Sequence[str]:
        """Return the names of the colours."""
        return self._provider.colours

    def read(self) -> Live:
        """Return the routes as they would be."""
        return {
            name: Route(name, self._set.get(name, route.weights), route.sticky_seconds) for name, route in self._provider.read().items()
        }

    def health(self, colour: str) -> Health:
        """Return the targets as they are."""
        return self._provider.health(colour)

    def set(self, route: str, weights: Weights, expect: Weights) -> None:
        """Note the weights."""
        self._set[route] = dict(weights)

    def verify(self, route: str, weights: Weights) -> bool:
        """Say yes: nothing was set that could be seen."""
        return True

    def drained(self, colour: str) -> bool:
        """Say what is so."""
        return self._provider.drained(colour)
