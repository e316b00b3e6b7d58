# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge the plan of pending migrations, decide what may run, and say it. Plain data in and out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.bitflow.lms.plugins.plugin_utils._sql_risk import (
    CONTRACT,
    EXPAND,
    IRREVERSIBLE,
    RULES,
    UNKNOWN,
    Rule,
    Schema,
    judge_statement,
    worst,
)

Risk = dict[str, Any]

FIRST_TABLES = Rule(EXPAND, "the database has no table yet: nothing uses it")
ANSWER_LIMIT = 200
MAJOR_VERSION = re.compile(r"\d+")


def carry_out(
    plan: Mapping[str, Any], options: Mapping[str, Any], check_mode: bool, run: Callable[[list[Risk]], Mapping[str, Any]]
) -> dict[str, Any]:
    """Judge a plan, and run what was judged unless it is refused; return the result of the task."""
    risks = judge_migrations(plan, options["approved"])
    refusals = refused(risks, options["backup_confirmed"])
    verdict = {
        "risks": risks,
        "refused": [one["migration"] for one in refusals],
        "contract": contract_of_plan(risks),
        "destructive": any(one["destructive"] for one in risks),
        "diff": {"before": "", "after": plan_text(risks), "before_header": "applied", "after_header": "pending migrations"},
    }
    if options["state"] == "planned":
        return {**plan, **verdict}
    if check_mode:
        # The rest of the play can still be planned, so a refusal is told and does not end it.
        return {**plan, **verdict, "changed": True, **({"warnings": [refusal(refusals)]} if refusals else {})}
    if refusals:
        return {**plan, **verdict, "failed": True, "msg": refusal(refusals)}
    outcome = run(judged_plan(plan, risks))
    if outcome.get("outcomes") is not None:
        verdict["contract"] = contract_of_run(plan, outcome)
    return {**outcome, "plan": plan["plan"], **verdict}


def major_version(product: Mapping[str, str]) -> int:
    """Return the first number of a database's version, 0 when there is none."""
    match = MAJOR_VERSION.match(product["version"])
    return int(match.group()) if match else 0


def judge_migrations(result: Mapping[str, Any], approved: Sequence[str]) -> list[Risk]:
    """Return the risk of each planned migration; a table that an earlier one creates is new to the later ones."""
    product = result["product"]
    shared = Schema(product["driver"], major_version(product)) if product else Schema("")
    risks = []
    for entry in result["plan"]:
        schema = shared if entry["same_database"] else Schema(entry["driver"])
        schema.in_transaction = entry["within_transaction"]
        unused = result["database_empty"] and entry["same_database"]
        statements = [judged(one["sql"], one["times"], unused, schema) for one in entry["statements"]]
        if entry["problem"] and not unused:
            reason = f"its plan broke off: {entry['problem'].rstrip('.')}"
            statements.append({"sql": "", "times": 0, "class": UNKNOWN, "destructive": False, "reason": reason})
        risks.append(
            {
                "migration": entry["migration"],
                "class": worst([one["class"] for one in statements]),
                "destructive": any(one["destructive"] for one in statements),
                "approved": entry["migration"] in approved,
                "statements": statements,
            }
        )
    return risks


def judged(sql: str, times: int, unused: bool, schema: Schema) -> Risk:
    """Return the verdict on one statement: of all that it does, the worst."""
    rules = [FIRST_TABLES] if unused else [RULES[name] for name in judge_statement(sql, schema)]
    risk = worst([rule.risk for rule in rules])
    reasons = dict.fromkeys(rule.reason for rule in rules if rule.risk == risk)
    return {
        "sql": sql,
        "times": times,
        "class": risk,
        "destructive": any(rule.destructive for rule in rules),
        "reason": "; ".join(reasons),
    }


def refused(risks: Sequence[Risk], backup_confirmed: bool) -> list[Risk]:
    """Return the risks that nobody has taken: not expand and not approved; a backup covers rows that are lost, and nothing else."""

    def covered(risk: Risk) -> bool:
        classes = {one["class"] for one in risk["statements"]} - {EXPAND}
        return risk["approved"] or not classes or (backup_confirmed and classes == {IRREVERSIBLE})

    return [risk for risk in risks if not covered(risk)]


def judged_plan(result: Mapping[str, Any], risks: Sequence[Risk]) -> list[dict[str, Any]]:
    """Return what may run: each file by its hash, and the statements that it may execute; null where it may execute any."""
    free = {risk["migration"] for risk in risks if risk["approved"]}
    return [
        {
            "migration": entry["migration"],
            "sha256": entry["sha256"],
            "statements": None
            if entry["migration"] in free or (result["database_empty"] and entry["same_database"])
            else [hashlib.sha256(one["sql"].encode()).hexdigest() for one in entry["statements"]],
        }
        for entry in result["plan"]
    ]


def contract_of_plan(risks: Sequence[Risk]) -> list[str]:
    """Return the migrations that the version before may not live with, as far as a plan can tell."""
    return sorted(risk["migration"] for risk in risks if risk["class"] in (CONTRACT, IRREVERSIBLE, UNKNOWN))


def contract_of_run(plan: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """Return the migrations that the version before may not live with, judged by what they executed."""
    if plan["database_empty"] or not run["product"]:
        return []
    entries = {entry["migration"]: entry for entry in plan["plan"]}
    shared = Schema(run["product"]["driver"], major_version(run["product"]))
    names = []
    for outcome in run["outcomes"]:
        entry = entries[outcome["migration"]]
        remains = outcome["outcome"] == "applied" or (outcome["outcome"] == "failed" and not entry["within_transaction"])
        if not remains:
            continue
        schema = shared if entry["same_database"] else Schema(entry["driver"])
        schema.in_transaction = entry["within_transaction"]
        rules = [name for sql in outcome["executed"] for name in judge_statement(sql, schema) if name != "read"]
        known = len(outcome["executed"]) < ANSWER_LIMIT
        if not known or any(RULES[name].risk in (CONTRACT, IRREVERSIBLE, UNKNOWN) for name in rules):
            names.append(outcome["migration"])
    return sorted(names)


def refusal(refusals: Sequence[Risk]) -> str:
    """Return why these migrations are not run, and the ways out."""
    names = [risk["migration"] for risk in refusals]
    one = len(names) == 1
    lines = [f"{len(names)} pending {'migration is' if one else 'migrations are'} not safe beside the running version. Nothing was run."]
    for risk in refusals:
        lines.append(f"  {risk['migration']}: {risk['class']}")
        lines += [f"    {describe_statement(statement)}" for statement in risk["statements"] if statement["class"] != EXPAND]
    lines.append(
        f"Either split {'it' if one else 'them'}: first add what is new, then deploy code that needs only that, and take away in a later "
        "version what is not used any more (docs/migrations.md)."
    )
    lines.append(f"Or approve {'it' if one else 'them'} by name: -e lms_migrations_approved={','.join(names)}")
    if all({one["class"] for one in risk["statements"]} <= {EXPAND, IRREVERSIBLE} for risk in refusals):
        lines.append("Or take a backup, and say so with backup_confirmed.")
    return "\n".join(lines)


def describe_statement(statement: Risk) -> str:
    """Return a statement, its class and why in one line."""
    sql = " ".join(statement["sql"].split())
    times = f" ({statement['times']} times)" if statement["times"] > 1 else ""
    return f"{statement['class']}: {sql}{times} -- {statement['reason']}" if sql else f"{statement['class']}: {statement['reason']}"


def plan_text(risks: Sequence[Risk]) -> str:
    """Return the pending migrations with their SQL and risk, for a diff."""
    lines = []
    for risk in risks:
        lines.append(f"{risk['migration']}: {risk['class']}{', approved' if risk['approved'] else ''}")
        lines += [f"  {describe_statement(statement)}" for statement in risk["statements"]] or ["  no statement"]
    return "".join(f"{line}\n" for line in lines)
