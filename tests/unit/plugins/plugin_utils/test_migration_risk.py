# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan is judged, refused or run as it was judged, and said in words."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.plugin_utils._migration_risk import (
    carry_out,
    contract_of_run,
    judge_migrations,
    judged_plan,
    major_version,
    plan_text,
    refusal,
    refused,
)

ADD = 'alter table "courses" add column "level" varchar(16) null'
DROP = 'alter table "courses" drop column "level"'
DELETE = 'delete from "courses"'
ADD_REASON = "the running version does not know the column and need not fill it"
DROP_REASON = "the running version may use the column, and its values are gone"


def entry(name: str, *statements: str, **fields: Any) -> dict[str, Any]:
    return {
        "migration": name,
        "sha256": f"hash of {name}",
        "driver": "pgsql",
        "same_database": True,
        "within_transaction": True,
        "declined": False,
        "statements": [{"sql": sql, "times": 1} for sql in statements],
        "reads": [],
        "problem": None,
        **fields,
    }


def plan(*entries: dict[str, Any], empty: bool = False) -> dict[str, Any]:
    return {
        "changed": False,
        "plan": list(entries),
        "database_empty": empty,
        "product": {"driver": "pgsql", "product": "PostgreSQL", "version": "17.6 (Debian 17.6-0+deb13u1)"},
    }


def options(state: str = "migrated", approved: tuple[str, ...] = (), backup_confirmed: bool = False) -> dict[str, Any]:
    return {"state": state, "approved": list(approved), "backup_confirmed": backup_confirmed}


def never(_judged: Any) -> dict[str, Any]:
    raise AssertionError("it must not run")


def test_each_migration_has_its_class_and_each_statement_its_reason() -> None:
    assert judge_migrations(plan(entry("1_add", ADD), entry("2_drop", ADD, DROP)), ["2_drop"]) == [
        {
            "migration": "1_add",
            "class": "expand",
            "destructive": False,
            "approved": False,
            "statements": [{"sql": ADD, "times": 1, "class": "expand", "destructive": False, "reason": ADD_REASON}],
        },
        {
            "migration": "2_drop",
            "class": "contract",
            "destructive": True,
            "approved": True,
            "statements": [
                {"sql": ADD, "times": 1, "class": "expand", "destructive": False, "reason": ADD_REASON},
                {"sql": DROP, "times": 1, "class": "contract", "destructive": True, "reason": DROP_REASON},
            ],
        },
    ]


def test_everything_is_safe_in_a_database_without_tables() -> None:
    risks = judge_migrations(plan(entry("1_a", DROP, "nonsense (", problem="It broke."), empty=True), [])

    assert [one["class"] for one in risks[0]["statements"]] == ["expand", "expand"]
    assert risks[0]["statements"][0]["reason"] == "the database has no table yet: nothing uses it"


def test_other_database_of_a_migration_is_not_known_to_be_empty() -> None:
    assert judge_migrations(plan(entry("1_a", DROP, same_database=False), empty=True), [])[0]["class"] == "contract"


def test_table_of_an_earlier_migration_is_new_to_a_later_one() -> None:
    risks = judge_migrations(plan(entry("1_a", 'create table "courses" ("id" int)'), entry("2_b", DROP, DELETE)), [])

    assert [risk["class"] for risk in risks] == ["expand", "expand"]


def test_plan_that_broke_off_is_unknown() -> None:
    risk = judge_migrations(plan(entry("1_a", ADD, problem="Class X not found.")), [])[0]

    assert (risk["class"], risk["statements"][-1]) == (
        "unknown",
        {"sql": "", "times": 0, "class": "unknown", "destructive": False, "reason": "its plan broke off: Class X not found"},
    )


@pytest.mark.parametrize(
    ("sql", "approved", "backup", "names"),
    [
        (ADD, [], False, []),
        (DROP, [], False, ["1_a"]),
        (DROP, [], True, ["1_a"]),
        (DROP, ["1_a"], False, []),
        (DROP, ["1_b"], False, ["1_a"]),
        (DELETE, [], False, ["1_a"]),
        (DELETE, [], True, []),
        ("select 1", [], True, ["1_a"]),
    ],
)
def test_what_is_not_safe_needs_a_name_or_a_backup_where_only_rows_are_lost(
    sql: str, approved: list[str], backup: bool, names: list[str]
) -> None:
    risks = judge_migrations(plan(entry("1_a", sql)), approved)

    assert [risk["migration"] for risk in refused(risks, backup)] == names


def test_refusal_says_what_why_and_both_ways_out() -> None:
    risks = judge_migrations(plan(entry("1_a", ADD, DROP), entry("2_b", DELETE)), [])

    assert refusal(risks) == (
        "2 pending migrations are not safe beside the running version. Nothing was run.\n"
        "  1_a: contract\n"
        f"    contract: {DROP} -- {DROP_REASON}\n"
        "  2_b: irreversible\n"
        f"    irreversible: {DELETE} -- it removes rows\n"
        "Either split them: first add what is new, then deploy code that needs only that, and take away in a later "
        "version what is not used any more (docs/migrations.md).\n"
        "Or approve them by name: -e lms_migrations_approved=1_a,2_b"
    )
    assert refusal(risks[1:]).endswith("\nOr take a backup, and say so with backup_confirmed.")


def test_plan_in_words_is_the_diff() -> None:
    risks = judge_migrations(plan(entry("1_a", ADD), entry("2_b", DROP), entry("3_c")), ["2_b"])

    assert plan_text(risks) == (
        f"1_a: expand\n  expand: {ADD} -- {ADD_REASON}\n2_b: contract, approved\n  contract: {DROP} -- {DROP_REASON}\n"
        "3_c: expand\n  no statement\n"
    )


def test_only_judged_statements_may_run_unless_the_migration_is_approved() -> None:
    planned = plan(entry("1_a", ADD), entry("2_b", DROP))

    assert judged_plan(planned, judge_migrations(planned, ["2_b"])) == [
        {"migration": "1_a", "sha256": "hash of 1_a", "statements": [hashlib.sha256(ADD.encode()).hexdigest()]},
        {"migration": "2_b", "sha256": "hash of 2_b", "statements": None},
    ]


def test_first_deployment_may_execute_anything() -> None:
    planned = plan(entry("1_a", ADD), empty=True)

    assert judged_plan(planned, judge_migrations(planned, []))[0]["statements"] is None


def test_planned_state_tells_the_risk_and_runs_nothing() -> None:
    result = carry_out(plan(entry("1_a", DROP)), options("planned"), False, never)

    assert {key: result[key] for key in ("changed", "refused", "contract", "destructive")} == {
        "changed": False,
        "refused": ["1_a"],
        "contract": ["1_a"],
        "destructive": True,
    }
    assert "failed" not in result
    assert result["diff"]["after"].startswith("1_a: contract\n")


def test_refused_plan_is_not_run() -> None:
    result = carry_out(plan(entry("1_a", DROP)), options(), False, never)

    assert (result["failed"], result["changed"]) == (True, False)
    assert "1 pending migration is not safe" in result["msg"]


def test_check_mode_warns_of_a_refusal_and_goes_on() -> None:
    result = carry_out(plan(entry("1_a", DROP)), options(), True, never)

    assert (result["changed"], "failed" in result) == (True, False)
    assert "1 pending migration is not safe" in result["warnings"][0]
    assert "warnings" not in carry_out(plan(entry("1_a", ADD)), options(), True, never)


def run_of(*outcomes: tuple[str, str, list[str]]) -> dict[str, Any]:
    return {
        "changed": True,
        "product": plan()["product"],
        "plan": [],
        "outcomes": [{"migration": name, "outcome": outcome, "executed": executed} for name, outcome, executed in outcomes],
    }


def test_run_gets_what_was_judged_and_tells_the_contract_of_what_it_executed() -> None:
    calls: list[Any] = []
    planned = plan(entry("1_a", ADD), entry("2_b", DROP))

    def run(judged: Any) -> dict[str, Any]:
        calls.append([one["migration"] for one in judged])
        return run_of(("1_a", "applied", [ADD]), ("2_b", "applied", [DROP]))

    result = carry_out(planned, options(approved=("2_b",)), False, run)

    assert calls == [["1_a", "2_b"]]
    assert (result["changed"], result["contract"], result["plan"]) == (True, ["2_b"], planned["plan"])


def test_run_that_did_not_answer_keeps_the_contract_of_the_plan() -> None:
    result = carry_out(plan(entry("1_a", DROP)), options(approved=("1_a",)), False, lambda _judged: {"failed": True, "msg": "away"})

    assert (result["failed"], result["contract"]) == (True, ["1_a"])


@pytest.mark.parametrize(
    ("outcome", "executed", "names"),
    [
        ("applied", [ADD], []),
        ("applied", ["select 1", ADD], []),
        ("applied", [DELETE], ["1_a"]),
        ("applied", ["do $$ begin end $$"], ["1_a"]),
        ("applied", [ADD] * 200, ["1_a"]),
        ("declined", [], []),
        ("failed", [DROP], []),
    ],
)
def test_contract_of_a_run_is_what_it_executed(outcome: str, executed: list[str], names: list[str]) -> None:
    assert contract_of_run(plan(entry("1_a", DROP)), run_of(("1_a", outcome, executed))) == names


def test_broken_migration_that_was_not_rolled_back_counts() -> None:
    planned = plan(entry("1_a", DROP, within_transaction=False))

    assert contract_of_run(planned, run_of(("1_a", "failed", [DROP]))) == ["1_a"]


def test_nothing_is_behind_a_first_deployment() -> None:
    assert contract_of_run(plan(entry("1_a", DROP), empty=True), run_of(("1_a", "applied", [DROP]))) == []


@pytest.mark.parametrize(("version", "number"), [("17.6 (Debian)", 17), ("11.8.3-MariaDB", 11), ("", 0)])
def test_major_version(version: str, number: int) -> None:
    assert major_version({"version": version}) == number
