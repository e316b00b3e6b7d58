# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is decided about releases, without a host."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._release_plan import (
    Leftover,
    Plan,
    Record,
    Release,
    Remove,
    Request,
    Switch,
    Tree,
    Unpack,
    check_release_name,
    decide,
    format_time,
    parse_time,
    settle,
)

NOW = datetime(2026, 11, 23, 21, 0, tzinfo=timezone.utc)
LONG_AGO = format_time(NOW - timedelta(days=3))


def release(name: str, sequence: int, state: str = "superseded", **values: object) -> Release:
    """Return a release as records describe it."""
    seen_live = state in ("active", "superseded")
    seen_healthy = state in ("active", "superseded", "verified")
    known = {
        "changed_at": LONG_AGO,
        "built_at": LONG_AGO,
        "verified_at": LONG_AGO if seen_healthy else "",
        "activated_at": LONG_AGO if seen_live else "",
    }
    return Release(name, sequence, state, **{**known, **values})


def tree(current: str | None, *releases: Release, **values: object) -> Tree:
    """Return a tree in order."""
    return settle(Tree(current, releases, **values))


def good(*numbers: int) -> list[Release]:
    """Return good releases r1, r2, ..."""
    return [release(f"r{number}", number) for number in numbers]


def ask(state: str, name: str = "", **values: object) -> Request:
    """Return a request."""
    return Request(state, name, **values)


def pruned(of: Tree, keep: int, **values: object) -> list[str]:
    """Return what pruning removes, in order."""
    plan = decide(of, ask("pruned", keep=keep, **values), NOW)
    return [step.name for step in plan.steps if isinstance(step, Remove)]


def test_only_the_link_says_what_is_live() -> None:
    found = tree("r1", release("r1", 1, "superseded"), release("r2", 2, "active"))

    assert [(entry.id, entry.state) for entry in found.releases] == [("r1", "active"), ("r2", "superseded")]


def test_releases_are_ordered_by_sequence_even_if_a_clock_went_back() -> None:
    found = tree("20250101000000-b", release("20260101000000-a", 1), release("20250101000000-b", 2, "active"))

    assert found.previous == "20260101000000-a"


def test_previous_is_the_last_one_before_the_live_one_that_was_live_and_verified() -> None:
    found = tree("r5", *good(1, 2), release("r3", 3, "failed", activated_at=LONG_AGO), release("r4", 4, "verified"), release("r5", 5))

    assert found.previous == "r2"


def test_second_rollback_moves_on() -> None:
    before = tree("r3", *good(1, 2, 3))

    first = decide(before, ask("active", before.previous), NOW).after
    second = decide(first, ask("active", first.previous), NOW).after

    assert (first.current, second.current, second.previous) == ("r2", "r1", None)


def test_a_release_that_was_rolled_back_from_is_no_target_of_the_next_rollback() -> None:
    rolled_back = decide(tree("r2", *good(1, 2)), ask("active", "r1"), NOW).after
    deployed_again = decide(tree("r1", *rolled_back.releases, release("r3", 3, "verified")), ask("active", "r3"), NOW).after

    assert (deployed_again.current, deployed_again.previous) == ("r3", "r1")


def test_a_release_that_was_rolled_back_from_is_good_again_once_it_was_chosen() -> None:
    rolled_back = decide(tree("r2", *good(1, 2)), ask("active", "r1"), NOW).after
    chosen = decide(rolled_back, ask("active", "r2"), NOW).after
    deployed = decide(tree("r2", *chosen.releases, release("r3", 3, "verified")), ask("active", "r3"), NOW).after

    assert (deployed.current, deployed.previous) == ("r3", "r2")


def test_rollback_forward_keeps_target() -> None:
    plan = decide(tree("r2", *good(1, 2, 3)), ask("active", "r3"), NOW)

    assert plan.after.current == "r3"
    assert pruned(plan.after, keep=1) == ["r1"]


def test_failed_release_never_candidate() -> None:
    found = tree("r4", *good(1, 2), release("r3", 3, "failed", verified_at=LONG_AGO, activated_at=LONG_AGO), release("r4", 4))

    assert found.previous == "r2"
    with pytest.raises(LmsError, match=r"Release r3 is marked failed \(it was slow\)"):
        decide(tree("r4", release("r3", 3, "failed", reason="it was slow"), release("r4", 4)), ask("active", "r3"), NOW)


def test_present_plans_to_build_what_is_not_there() -> None:
    plan = decide(tree("r1", *good(1)), ask("present", "r2", artifact_sha256="a" * 64, fingerprint="f", metadata={"commit": "c"}), NOW)

    built = Release(
        "r2",
        2,
        "built",
        artifact_sha256="a" * 64,
        fingerprint="f",
        metadata={"commit": "c"},
        built_at=format_time(NOW),
        changed_at=format_time(NOW),
    )
    assert plan == Plan((Unpack(built),), tree("r1", *good(1), built))


def test_present_again_changes_nothing() -> None:
    found = tree("r1", release("r1", 1, artifact_sha256="a" * 64))

    assert decide(found, ask("present", "r1", artifact_sha256="a" * 64), NOW) == Plan((), found)


def test_present_again_with_another_artifact_is_an_error() -> None:
    found = tree("r1", release("r1", 1, artifact_sha256="a" * 64))

    with pytest.raises(LmsError, match="built from another artifact"):
        decide(found, ask("present", "r1", artifact_sha256="b" * 64), NOW)


@pytest.mark.parametrize(
    ("option", "value"),
    [("pinned", True), ("fingerprint", "new"), ("metadata", {"commit": "new"})],
)
@pytest.mark.parametrize("state", ["present", "verified", "active"])
def test_what_is_known_about_a_release_can_be_changed(state: str, option: str, value: object) -> None:
    found = tree("r1", release("r1", 1))
    changed = replace(found.releases[0], **{option: value})

    assert decide(found, ask(state, "r1", **{option: value}), NOW) == Plan((Record(changed, "changed"),), tree("r1", changed))


def test_active_switches_first_and_records_both_releases() -> None:
    plan = decide(tree("r1", *good(1), release("r2", 2, "verified")), ask("active", "r2"), NOW)

    moment = format_time(NOW)
    active = release("r2", 2, "active", activated_at=moment, changed_at=moment, replaced="r1")
    superseded = release("r1", 1, "superseded", changed_at=moment)
    assert plan.steps == (Switch("r2"), Record(active, "activated"), Record(superseded, "superseded"))
    assert plan.after == tree("r2", superseded, active)


def test_active_again_changes_nothing() -> None:
    found = tree("r1", *good(1))

    assert decide(found, ask("active", "r1"), NOW) == Plan((), found)


def test_active_repairs_the_record_that_a_crash_left_out() -> None:
    found = tree("r2", *good(1), release("r2", 2, "verified"))

    plan = decide(found, ask("active", "r2"), NOW)

    assert [type(step) for step in plan.steps] == [Record]
    assert decide(plan.after, ask("active", "r2"), NOW).steps == ()


def test_active_refuses_what_nobody_verified_unless_told() -> None:
    found = tree(None, release("r1", 1, "built"))

    with pytest.raises(LmsError, match="Release r1 is not verified"):
        decide(found, ask("active", "r1"), NOW)

    assert decide(found, ask("active", "r1", unverified_allowed=True), NOW).after.current == "r1"


def test_activate_missing_release_fails() -> None:
    with pytest.raises(LmsError, match=r"Release r9 is not there\. Known releases: r1, r2\."):
        decide(tree("r2", *good(1, 2)), ask("active", "r9"), NOW)


def test_check_mode_foresees_only_a_release_newer_than_all() -> None:
    found = tree("r2", *good(1, 2))

    assert decide(found, ask("active", "r3"), NOW, foresee=True).after.current == "r3"
    assert decide(found, ask("verified", "r3"), NOW, foresee=True).after.state_of("r3") == "verified"
    with pytest.raises(LmsError, match="Release r0 is not there"):
        decide(found, ask("active", "r0"), NOW, foresee=True)


def test_verified_refuses_a_failed_release() -> None:
    with pytest.raises(LmsError, match=r"marked failed \(no reason was given\)"):
        decide(tree(None, release("r1", 1, "failed")), ask("verified", "r1"), NOW)


def test_verified_after_the_switch_leaves_the_release_active() -> None:
    found = tree("r1", release("r1", 1, "active", verified_at=""))

    after = decide(found, ask("verified", "r1"), NOW).after

    assert (after.state_of("r1"), after.releases[0].verified_at) == ("active", format_time(NOW))


def test_failed_refuses_the_live_release() -> None:
    with pytest.raises(LmsError, match="r1 is live and cannot be marked failed"):
        decide(tree("r1", *good(1)), ask("failed", "r1"), NOW)


def test_failed_notes_the_reason_once() -> None:
    found = tree("r1", *good(1), release("r2", 2, "built"))

    plan = decide(found, ask("failed", "r2", reason="it answered 500"), NOW)

    marked = plan.after.find("r2")
    assert marked is not None
    assert (marked.state, marked.reason) == ("failed", "it answered 500")
    assert decide(plan.after, ask("failed", "r2"), NOW).steps == ()


def test_failed_has_nothing_to_mark_where_the_release_never_came() -> None:
    found = tree("r1", *good(1))

    assert decide(found, ask("failed", "r2"), NOW) == Plan((), found)


def test_absent_refuses_the_live_release() -> None:
    with pytest.raises(LmsError, match="r1 is live and cannot be removed"):
        decide(tree("r1", *good(1)), ask("absent", "r1"), NOW)


def test_absent_removes_the_release_and_what_building_it_left() -> None:
    found = tree("r1", *good(1, 2), leftovers=(Leftover("r2.partial", 1), Leftover("r3.partial", 1)))

    plan = decide(found, ask("absent", "r2"), NOW)

    assert plan == Plan(
        (Remove("r2", "removed"), Remove("r2.partial", "removed")), tree("r1", *good(1), leftovers=(Leftover("r3.partial", 1),))
    )


def test_prune_keeps_the_newest() -> None:
    assert pruned(tree("r7", *good(1, 2, 3, 4, 5, 6, 7)), keep=5) == ["r1", "r2"]


def test_prune_keeps_current_after_rollback() -> None:
    found = tree("r2", *good(1, 2, 3, 4, 5, 6, 7, 8))

    assert pruned(found, keep=3) == ["r3", "r4", "r5"]


def test_failed_deploys_do_not_eat_keep() -> None:
    failed = [release(f"r{number}", number, "failed", activated_at=LONG_AGO) for number in (4, 5, 6)]

    assert pruned(tree("r7", *good(1, 2, 3), *failed, *good(7)), keep=3) == ["r4", "r5", "r6", "r1"]


def test_prune_keeps_a_failed_release_that_changed_the_database_for_good() -> None:
    """A rollback to an older release must know about its migrations; with that release they lose their meaning."""
    contracted = release("r2", 2, "failed", metadata={"contract_migrations": ["drop_names"]})

    assert pruned(tree("r3", release("r1", 1), contracted, release("r3", 3, "active")), keep=2) == []
    assert pruned(tree("r4", contracted, *good(3, 4)), keep=2) == ["r2"]


def test_prune_keeps_the_rollback_target_however_few_are_kept() -> None:
    unproven = release("r2", 2, verified_at="")

    assert pruned(tree("r3", *good(1), unproven, *good(3)), keep=1) == ["r2"]


@pytest.mark.parametrize(
    "protected",
    [
        tree("r9", release("r1", 1, pinned=True), *good(8, 9)),
        tree("r9", *good(1, 8, 9), open=frozenset({"r1"})),
        tree("r9", release("r1", 1, changed_at=format_time(NOW - timedelta(seconds=59))), *good(8, 9)),
        tree("r9", release("r1", 0, "unknown"), *good(8, 9)),
    ],
    ids=["pinned", "open", "young", "not built by us"],
)
def test_prune_keeps_what_is_protected(protected: Tree) -> None:
    assert pruned(protected, keep=1, min_age=60) == []


def test_prune_keeps_a_failed_release_that_a_process_has_open() -> None:
    found = tree("r2", release("r1", 1, "failed"), *good(2), open=frozenset({"r1"}))

    assert pruned(found, keep=1) == []


def test_concurrent_unfinished_not_deleted() -> None:
    young = format_time(NOW - timedelta(minutes=59))
    found = tree(
        "r4",
        release("r2", 2, "built", changed_at=young),
        *good(3, 4),
        release("r5", 5, "built"),
        release("r6", 6, "verified"),
        leftovers=(Leftover("r7.partial", 3599),),
    )

    assert pruned(found, keep=1) == []


def test_prune_sweeps_what_interrupted_runs_left_first() -> None:
    found = tree(
        "r4",
        release("r1", 1, "built"),
        release("r2", 2, "verified"),
        *good(3, 4),
        leftovers=(Leftover("r0.removing", 1), Leftover("r9.partial", 3600)),
    )

    assert pruned(found, keep=2) == ["r0.removing", "r9.partial", "r1", "r2"]


def test_prune_has_nothing_to_do_on_a_bare_host() -> None:
    assert decide(Tree(), ask("pruned"), NOW) == Plan((), Tree())


def test_prune_keeps_at_least_one() -> None:
    with pytest.raises(LmsError, match="keep at least 1"):
        decide(Tree(), ask("pruned", keep=0), NOW)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-x", ".hidden", "x.partial", "x.removing", "a b", "a\nb", "ä", "x" * 129])
def test_a_release_name_must_be_a_plain_directory_name(name: str) -> None:
    with pytest.raises(LmsError, match="release is"):
        check_release_name(name)


def test_times_survive_being_written() -> None:
    assert parse_time(format_time(NOW)) == NOW
    assert parse_time("") is None
