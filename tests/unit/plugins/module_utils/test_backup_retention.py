# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backups stay: by rule, whatever the rules are, and where nothing may be deleted."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import Backup, Catalogue, Verification, new_id
from ansible_collections.bitflow.lms.plugins.module_utils._backup_retention import (
    DELETE,
    KEEP,
    PERIODS,
    SKIP,
    Plan,
    Rules,
    clock_fault,
    in_words,
    make_plan,
    read_duration,
)
from ansible_collections.bitflow.lms.plugins.module_utils._backup_store import Partial
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

NOW = datetime(2026, 11, 23, 10, 0, 0, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
NUMBERS = itertools.count()
KEPT_ALONE = {"last": 1}


def options(keep: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return the options of the module that the rules are read from."""
    defaults = {"min_good": 2, "min_verified": 1, "stale_guard": "3d", "partial_max_age": "24h", "suspicious_max_age": "14d"}
    return {"keep": keep, **defaults, **more}


def rules(keep: dict[str, Any], **more: Any) -> Rules:
    """Return rules as the module reads them."""
    return Rules.of(options(keep, **more))


def backup(age: timedelta, state: str = "complete", name: str = "lms", hold: dict[str, Any] | None = None) -> Backup:
    """Return a backup of an age in a state."""
    moment = NOW - age
    looks = {"verified": (Verification("restore", True, moment),), "corrupt": (Verification("checksum", False, moment),)}
    return Backup(
        "prod",
        "database",
        name,
        new_id(moment, lambda _size: f"{next(NUMBERS):08x}"),
        {"suspicious": state == "suspicious"},
        looks.get(state, ()),
        hold,
    )


def decide(backups: Iterable[Backup], wanted: Rules, partials: Sequence[Partial] = (), now: datetime = NOW) -> Plan:
    """Plan as the module does."""
    return make_plan(Catalogue(tuple(backups), tuple(partials)), wanted, now)


def fates(plan: Plan) -> list[tuple[str, str]]:
    """Return what becomes of each backup, the oldest first, and why."""
    return [(verdict.fate, verdict.reason) for verdict in plan.verdicts]


def survivors(plan: Plan) -> list[Backup]:
    """Return the backups that are there afterwards."""
    return [verdict.backup for verdict in plan.verdicts if verdict.fate != DELETE]


def newest_by_date(backups: Sequence[Backup], count: int) -> list[Backup]:
    """Return what the usual script leaves: the newest files, whatever is in them."""
    return sorted(backups, key=lambda backup: backup.id)[-count:]


def seeded(seed: int) -> random.Random:
    """Return chance that repeats itself."""
    return random.Random(seed)  # noqa: S311 (no secret comes of it)


def random_catalogue(source: random.Random) -> list[Backup]:
    """Return backups of several names, ages and states, at times that nobody would have chosen."""
    found = []
    for name in source.sample(["lms", "lms_audit", "uploads"], source.randint(1, 3)):
        for _index in range(source.randint(0, 40)):
            age = timedelta(seconds=source.randint(0, source.choice([3, 30, 900]) * 86400))
            state = source.choices(["complete", "verified", "suspicious", "corrupt"], [6, 2, 2, 2])[0]
            hold = source.choice([None, None, None, {"reason": "audit", "until": source.choice([None, "2026-01-01T00:00:00Z"])}])
            found.append(backup(age, state, name, hold))
    source.shuffle(found)
    return found


def random_rules(source: random.Random) -> Rules:
    """Return rules that the module takes."""
    keep: dict[str, Any] = {name: source.choice([0, 0, 1, 3, 7]) for name in ("last", *PERIODS)}
    keep["within"] = source.choice(["0", "12h", "30d"])
    if not any(count for count in keep.values() if count != "0"):
        keep["last"] = 1
    return rules(
        keep,
        min_good=source.randint(1, 4),
        min_verified=source.randint(1, 3),
        stale_guard=source.choice(["1d", "3d", "900d"]),
        suspicious_max_age=source.choice(["1h", "14d"]),
    )


# What each rule keeps


def test_each_rule_keeps_the_newest_good_backup_of_its_periods() -> None:
    # Twice a day for 800 days; the newest is two hours old.
    backups = [backup(2 * HOUR + index * 12 * HOUR) for index in range(1600)]

    plan = decide(backups, rules({"last": 3, "hourly": 4, "daily": 7, "weekly": 4, "monthly": 6, "yearly": 3}))

    kept = [(str(verdict.backup.time)[:16], verdict.reason) for verdict in reversed(plan.verdicts) if verdict.fate == KEEP]
    assert kept == [
        (
            "2026-11-23 08:00",
            "newest good, last 3, hourly 2026-11-23 08 h, daily 2026-11-23, weekly 2026-W48, monthly 2026-11, yearly 2026",
        ),
        ("2026-11-22 20:00", "min_good, last 3, hourly 2026-11-22 20 h, daily 2026-11-22, weekly 2026-W47"),
        ("2026-11-22 08:00", "last 3, hourly 2026-11-22 08 h"),
        ("2026-11-21 20:00", "hourly 2026-11-21 20 h, daily 2026-11-21"),
        ("2026-11-20 20:00", "daily 2026-11-20"),
        ("2026-11-19 20:00", "daily 2026-11-19"),
        ("2026-11-18 20:00", "daily 2026-11-18"),
        ("2026-11-17 20:00", "daily 2026-11-17"),
        ("2026-11-15 20:00", "weekly 2026-W46"),
        ("2026-11-08 20:00", "weekly 2026-W45"),
        ("2026-10-31 20:00", "monthly 2026-10"),
        ("2026-09-30 20:00", "monthly 2026-09"),
        ("2026-08-31 20:00", "monthly 2026-08"),
        ("2026-07-31 20:00", "monthly 2026-07"),
        ("2026-06-30 20:00", "monthly 2026-06"),
        ("2025-12-31 20:00", "yearly 2025"),
        ("2024-12-31 20:00", "yearly 2024"),
    ]
    assert {verdict.reason for verdict in plan.verdicts if verdict.fate == DELETE} == {"no rule keeps it"}


def test_what_is_within_the_span_stays() -> None:
    plan = decide([backup(index * DAY) for index in (40, 31, 30, 2, 1)], rules({"within": "30d"}))

    assert fates(plan) == [
        (DELETE, "no rule keeps it"),
        (DELETE, "no rule keeps it"),
        (KEEP, "within 30d"),
        (KEEP, "min_good, within 30d"),
        (KEEP, "newest good, within 30d"),
    ]


def test_the_newest_good_and_verified_ones_stay_beside_what_the_rules_keep() -> None:
    plan = decide(
        [
            backup(9 * DAY, "verified"),
            backup(8 * DAY, "verified"),
            backup(7 * DAY, "verified"),
            backup(3 * DAY),
            backup(2 * DAY),
            backup(DAY),
        ],
        rules(KEPT_ALONE, min_good=2, min_verified=2),
    )

    assert fates(plan) == [
        (DELETE, "no rule keeps it"),
        (KEEP, "min_verified"),
        (KEEP, "newest verified"),
        (DELETE, "no rule keeps it"),
        (KEEP, "min_good"),
        (KEEP, "newest good, last 1"),
    ]


def test_a_period_is_kept_by_its_newest_good_backup_and_not_by_a_bad_one() -> None:
    # All three are from the day before yesterday; yesterday has none.
    two_days = [backup(46 * HOUR, "complete"), backup(45 * HOUR, "suspicious"), backup(44 * HOUR, "corrupt")]

    plan = decide([*two_days, backup(HOUR)], rules({"daily": 2}, min_good=1, suspicious_max_age="1d"))

    assert fates(plan) == [
        (KEEP, "daily 2026-11-21"),
        (DELETE, "suspicious for more than 1d"),
        (DELETE, "corrupt for more than 1d"),
        (KEEP, "newest good, daily 2026-11-23"),
    ]


def test_a_bad_backup_is_kept_for_a_while_to_be_looked_at() -> None:
    plan = decide([backup(15 * DAY, "corrupt"), backup(13 * DAY, "suspicious"), backup(DAY), backup(HOUR, "corrupt")], rules(KEPT_ALONE))

    assert fates(plan) == [
        (DELETE, "corrupt for more than 14d"),
        (KEEP, "suspicious, kept 14d to be looked at"),
        (KEEP, "newest good, last 1"),
        (KEEP, "corrupt, kept 14d to be looked at"),
    ]


def test_a_held_backup_stays_until_its_hold_ends() -> None:
    plan = decide(
        [
            backup(90 * DAY, hold={"reason": "case 4711", "until": None}),
            backup(80 * DAY, "corrupt", hold={"reason": "case 4712", "until": "2027-01-01T00:00:00Z"}),
            backup(70 * DAY, hold={"reason": "case 4713", "until": "2026-11-01T00:00:00Z"}),
            backup(60 * DAY, hold={}),
            backup(50 * DAY, hold={"reason": "case 4714", "until": "next year"}),
            backup(2 * DAY, hold={"reason": "case 4715"}),
            backup(DAY),
        ],
        rules(KEPT_ALONE),
    )

    assert fates(plan) == [
        (SKIP, "held: case 4711"),
        (SKIP, "held until 2027-01-01T00:00:00Z: case 4712"),
        (DELETE, "no rule keeps it"),
        (SKIP, "held: no reason was given"),
        (SKIP, "held until next year: case 4714"),
        (KEEP, "min_good"),
        (KEEP, "newest good, last 1"),
    ]


def test_names_are_judged_on_their_own() -> None:
    plan = decide([backup(2 * DAY, name=name) for name in ("lms", "audit")] + [backup(DAY, name="lms")], rules(KEPT_ALONE, min_good=1))

    assert [(verdict.backup.name, verdict.fate) for verdict in plan.verdicts] == [("audit", KEEP), ("lms", DELETE), ("lms", KEEP)]


# What is never deleted, whatever the catalogue and the rules are


@pytest.mark.parametrize("seed", range(300))
def test_no_rules_cost_the_newest_good_or_the_newest_verified_backup(seed: int) -> None:
    source = seeded(seed)
    backups, wanted = random_catalogue(source), random_rules(source)

    left = survivors(decide(backups, wanted))

    for name in {backup.name for backup in backups}:
        before = sorted((backup for backup in backups if backup.name == name), key=lambda backup: backup.id)
        after = {backup.id for backup in left if backup.name == name}
        good = [backup.id for backup in before if backup.good]
        verified = [backup.id for backup in before if backup.state == "verified"]
        assert set(good[-wanted.min_good :]) <= after
        assert set(verified[-wanted.min_verified :]) <= after
        assert {backup.id for backup in before if backup.held(NOW)} <= after
        # Bad ones do not fill places: a rule finds as many good ones as there are.
        assert len(after & set(good)) >= min(len(good), wanted.counts["last"])


@pytest.mark.parametrize("seed", range(100))
def test_a_second_run_deletes_nothing(seed: int) -> None:
    source = seeded(1000 + seed)
    backups, wanted = random_catalogue(source), random_rules(source)
    left = survivors(decide(backups, wanted))

    again = decide(left, wanted)

    assert survivors(again) == [verdict.backup for verdict in again.verdicts] == left


@pytest.mark.parametrize("seed", range(100))
def test_more_keeping_never_deletes_more(seed: int) -> None:
    source = seeded(2000 + seed)
    backups, wanted = random_catalogue(source), random_rules(source)
    larger = Rules(
        {name: count + 1 for name, count in wanted.counts.items()},
        wanted.within + DAY,
        wanted.min_good + 1,
        wanted.min_verified + 1,
        wanted.stale_guard,
        wanted.partial_max_age,
        wanted.suspicious_max_age + DAY,
    )

    assert {backup.path for backup in survivors(decide(backups, wanted))} <= {backup.path for backup in survivors(decide(backups, larger))}


def test_pruning_every_day_leaves_what_pruning_once_would_leave_of_the_good_ones() -> None:
    wanted = rules({"daily": 7, "weekly": 4, "monthly": 12})
    everything: list[Backup] = []
    left: list[Backup] = []
    for day in range(400, -1, -1):
        made = backup(day * DAY)
        everything.append(made)
        left = survivors(decide([*left, made], wanted, now=made.time))

    assert left == survivors(decide(everything, wanted))


# Where nothing may be deleted


def test_a_dead_timer_costs_no_backup() -> None:
    # Nothing was made for twenty days, but the timer that deletes goes on.
    backups = [backup(20 * DAY + index * DAY) for index in range(10)]

    plan = decide(backups, rules({"within": "7d"}, min_good=1))

    assert {verdict.fate for verdict in plan.verdicts} == {KEEP}
    assert {verdict.reason for verdict in plan.verdicts} == {"newest good", "no rule keeps it, but nothing is deleted now"}
    assert plan.blocked == (
        "The newest good backup of prod/database/lms is 20d old, which is more than stale_guard (3d): nothing of it is deleted. "
        "Make a good one; backup_info says what is wrong with the newer ones, if there are any.",
    )
    # Without the guard one would be left of ten.
    unguarded = decide(backups, rules({"within": "7d"}, min_good=1, stale_guard="1000d"))
    assert len(survivors(unguarded)) == 1
    # By age alone, as find -mtime +7 -delete does it, none would be.
    assert [backup for backup in backups if NOW - backup.time <= 7 * DAY] == []


@pytest.mark.parametrize("state", ["suspicious", "corrupt"])
def test_bad_backups_do_not_push_out_the_good_ones(state: str) -> None:
    # The dumps have been empty for two days, eight times.
    good = [backup(2 * DAY + index * DAY, "verified" if index == 1 else "complete") for index in range(1, 4)]
    bad = [backup(index * 6 * HOUR, state) for index in range(8)]

    plan = decide([*good, *bad], rules({"last": 7}))

    assert [backup for backup in survivors(plan) if backup.good] == good[::-1]
    # The usual script is left with bad ones only.
    assert {backup.good for backup in newest_by_date([*good, *bad], 7)} == {False}


def test_without_any_good_backup_nothing_is_deleted() -> None:
    plan = decide([backup(30 * DAY, "suspicious"), backup(20 * DAY, "corrupt")], rules(KEPT_ALONE))

    assert {verdict.fate for verdict in plan.verdicts} == {KEEP}
    assert plan.blocked == (
        "No backup of prod/database/lms is good: nothing of it is deleted. Make a good one; backup_info says what is wrong with these.",
    )


def test_a_name_that_is_stale_does_not_keep_the_others_from_being_pruned() -> None:
    plan = decide(
        [backup(age * DAY, name=name) for name, ages in {"lms": (9, 8, 7), "audit": (2, 1, 0)}.items() for age in ages],
        rules(KEPT_ALONE, min_good=1),
    )

    assert [(verdict.backup.name, verdict.fate) for verdict in plan.verdicts] == [
        *(("audit", fate) for fate in (DELETE, DELETE, KEEP)),
        *(("lms", fate) for fate in (KEEP, KEEP, KEEP)),
    ]
    assert len(plan.blocked) == 1


def test_a_backup_from_the_future_stops_everything() -> None:
    future = backup(-30 * DAY)
    old = Partial("prod/database/lms/20261001T000000Z-00000000", (NOW - 60 * DAY).timestamp(), 5)

    plan = decide([*(backup(index * DAY) for index in range(5)), future], rules(KEPT_ALONE, min_good=1), [old])

    assert {verdict.fate for verdict in (*plan.verdicts, *plan.partials)} == {KEEP}
    assert plan.blocked == (
        f"The backup {future.path} is from the future: it is 2026-11-23T10:00:00Z here. Nothing is deleted. "
        "Set the clock of this host, or, where the clock of its writer was wrong, move that backup out of the repository.",
    )


def test_clocks_may_differ_by_minutes() -> None:
    assert clock_fault([backup(timedelta(minutes=-9))], NOW) == ""
    assert clock_fault([backup(timedelta(minutes=-11))], NOW) != ""


def test_an_empty_repository_is_no_fault() -> None:
    assert decide([], rules(KEPT_ALONE)) == Plan((), (), ())


# What interrupted backups left


def test_only_what_is_old_and_unattended_is_swept() -> None:
    def partial(name: str, age: timedelta, **more: Any) -> Partial:
        return Partial(f"prod/database/lms/{name}", (NOW - age).timestamp(), 10, **more)

    partials = [
        partial("active", 30 * HOUR, active=True),
        partial("held", 30 * HOUR, keys=("prod/database/lms/held/data.dump", "prod/database/lms/held/hold-2.json")),
        partial("old", 30 * HOUR, keys=("prod/database/lms/old/data.dump",)),
        partial("from-the-future", -HOUR),
        partial("young", 23 * HOUR),
    ]

    plan = decide([backup(HOUR)], rules(KEPT_ALONE), partials)

    assert [(verdict.partial.path.rpartition("/")[2], verdict.fate, verdict.reason) for verdict in plan.partials] == [
        ("active", KEEP, "it is being written"),
        ("held", SKIP, "held, though its manifest is gone"),
        ("old", DELETE, "unfinished for more than 1d"),
        ("from-the-future", KEEP, "younger than 1d, so that it may be being written"),
        ("young", KEEP, "younger than 1d, so that it may be being written"),
    ]


def test_nothing_is_swept_of_a_name_whose_backups_are_stale() -> None:
    old = Partial("prod/database/lms/20261001T000000Z-00000000", (NOW - 60 * DAY).timestamp(), 5)

    assert [verdict.fate for verdict in decide([backup(9 * DAY)], rules(KEPT_ALONE), [old]).partials] == [KEEP]
    # The leftovers of a first backup that failed are swept: nothing is there that could be lost.
    assert [verdict.fate for verdict in decide([], rules(KEPT_ALONE), [old]).partials] == [DELETE]


# What the options may say


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"keep": {}}, "keep keeps nothing. Give at least one of last, hourly, daily, weekly, monthly, yearly and within more than 0."),
        ({"keep": {"last": 0, "daily": None, "within": "0"}}, "keep keeps nothing."),
        ({"keep": {"last": -1, "daily": 3}}, "keep.last is -1."),
        ({"keep": {"within": "a month"}}, "keep.within is 'a month'."),
        ({"keep": {"within": "-3d"}}, "keep.within is '-3d'."),
        ({"min_good": 0}, "min_good is 0. At least the newest one stays: give 1 or more."),
        ({"min_verified": 0}, "min_verified is 0."),
        ({"stale_guard": "0"}, "stale_guard is '0'. Give more than 0, such as \"3d\"."),
        ({"suspicious_max_age": "0d"}, "suspicious_max_age is '0d'."),
        ({"partial_max_age": "never"}, "partial_max_age is 'never'."),
    ],
)
def test_rules_that_keep_nothing_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(LmsError) as caught:
        Rules.of({**options({"last": 1}), **wrong})

    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("text", "seconds", "words"),
    [
        ("0", 0, "0s"),
        ("90", 90, "1m 30s"),
        ("90s", 90, "1m 30s"),
        ("5m", 300, "5m"),
        ("277205s", 277205, "3d 5h"),
        ("1728001s", 1728001, "20d"),
        ("24h", 86400, "1d"),
        ("3d", 259200, "3d"),
        ("2w", 1209600, "14d"),
    ],
)
def test_a_span_of_time_is_read_and_told(text: str, seconds: int, words: str) -> None:
    span = read_duration("option", text)

    assert (span.total_seconds(), in_words(span)) == (seconds, words)
