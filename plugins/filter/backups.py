# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that say which backups there should be and what became of them: pure functions over plain data, lines of text out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable

from ansible_collections.bitflow.lms.plugins.filter.deploy_report import duration, number

Data = Mapping[str, Any]

UNITS = ("bytes", "kB", "MB", "GB", "TB")
# How many backups that were pruned are named.
NAMES_SHOWN = 6
# The loop variable of the tasks that act on each set.
SET = "__lms_set"
UNREACHED = "the host cannot be reached, or was given up before this"


def backup_sets(database_host: str, database: str, file_hosts: Sequence[str], kinds_of_files: Sequence[str]) -> list[dict[str, str]]:
    """Return what is backed up, each with its host, kind and name. Files carry the name of their host, since each host has its own."""
    sets = [{"host": database_host, "kind": "database", "name": database}]
    return sets + [{"host": host, "kind": "files", "name": f"{name}-{host}"} for host in file_hosts for name in kinds_of_files]


def backup_outcomes(sets: Sequence[Data], hosts: Iterable[Data], variables: Sequence[str]) -> list[dict[str, Any]]:
    """Return what became of each set: the result of its task, whether it went well, and why not.

    hosts are the variables of the hosts. variables are the names under which the tasks' loops were registered.
    """
    known = {host["inventory_hostname"]: host for host in hosts}
    return [_outcome(one, known.get(one["host"], {}), variables) for one in sets]


def backup_report(outcomes: Sequence[Data], data: Data) -> list[str]:
    """Return the lines that say how a backup, or a verification of backups, went."""
    lines = [
        _headline(outcomes, data),
        *(_line(outcome, data) for outcome in outcomes),
        *_pruned_lines(data.get("pruned") or []),
        *_verified_lines(outcomes, data.get("infos") or {}),
        f"Time: {duration(data['seconds'])}." if data.get("seconds") else "",
        *(f"Warning: {warning}" for warning in data.get("warnings") or []),
        _advice(outcomes, data),
    ]
    return [line for line in lines if line]


def restore_report(hosts: Iterable[Data], check_mode: bool = False) -> list[str]:
    """Return the lines that say what was brought back on each host."""
    lines: list[str] = []
    for host in hosts:
        result = host.get("__lms_restored") or {}
        if result and not (result.get("skipped") and "backup" not in result):
            lines += _restored(str(host["inventory_hostname"]), result, check_mode)
    return lines or ["Nothing was restored."]


def _restored(host: str, result: Data, check_mode: bool) -> list[str]:
    """Return the lines about one host."""
    if "backup" not in result:
        return [f"{host}: not restored. {result.get('msg') or UNREACHED}"]
    backup, plan = result["backup"], result.get("plan") or {}
    if isinstance(plan, Mapping):
        counts = plan.get("counts") or {}
        verb = "would be restored to" if check_mode else "are in"
        files = f"{number(counts.get('files') or 0)} files, {size(counts.get('bytes') or 0)}, {verb} {plan.get('destination')}"
        there = f"; {number(plan['existing'])} paths were there and stay as they are" if plan.get("existing") else ""
        return [f"{host}: {files}, from {backup['name']} {backup['id']}{there}."]
    if check_mode or not result.get("changed"):
        return [f"{host}: {line}" for line in plan] or [f"{host}: {result.get('database')} has {backup['id']} already."]
    compared = "equal to the backup" if result.get("compared") else "not compared, since the backup's counts are approximate"
    lines = [
        f"{host}: the database {result['database']} holds {backup['id']} of {backup['time']}: {number(result.get('tables') or 0)} tables, "
        f"{number(result.get('rows') or 0)} rows, {compared}.",
        f"Back after {duration(result.get('rto_seconds') or 0)}"
        + (f", away for {result['away_seconds'] * 1000:.0f} ms." if result.get("away_seconds") is not None else "."),
    ]
    if result.get("previous"):
        lines.append(f"The former one is kept as {result['previous']}. Drop it when nobody needs it.")
    if result.get("safety_backup"):
        lines.append(f"What it held before is backed up as {result['safety_backup']}.")
    if result.get("copied") or result.get("present"):
        lines.append(
            f"Tables brought back: {', '.join(result.get('copied') or []) or 'none'}. There already, and not touched: "
            f"{', '.join(result.get('present') or []) or 'none'}."
        )
    return lines


def drill_report(restored: Data, files: Sequence[Data], data: Data) -> list[str]:
    """Return the lines that say how a whole LMS came back: what is lost, and how long it took."""
    backup = restored.get("backup") or {}
    counts = [(host.get("__lms_restored_files") or {}).get("plan", {}).get("counts") or {} for host in files]
    lines = [
        f"{data['environment']}: the LMS {'would come back' if data.get('check_mode') else 'is back'} on {', '.join(data['hosts'])}.",
        f"Database: {backup.get('id', 'none')} of {backup.get('time', 'an unknown time')}, {number(backup.get('rows') or 0)} rows.",
        f"Files: {number(sum(count.get('files') or 0 for count in counts))}, {size(sum(count.get('bytes') or 0 for count in counts))}.",
        f"Release: {data.get('version') or 'none'}.",
        f"Lost: what was written in the {duration(data['lost'])} between the backup and {data['lost_at']}." if data.get("lost") else "",
    ]
    if data.get("check_mode"):
        return [*filter(None, lines), "Nothing was changed."]
    steps = ", ".join(f"{step['name']} {duration(step['seconds'])}" for step in data.get("steps") or [])
    return [*filter(None, lines), f"Time to recover: {duration(data['seconds'])}{f' ({steps})' if steps else ''}."]


def _outcome(one: Data, host: Data, variables: Sequence[str]) -> dict[str, Any]:
    """Return what became of one set."""
    outcome = {**one, "ok": False, "result": {}, "reason": UNREACHED}
    for result in _results(host, variables):
        if all(result.get(SET, {}).get(key) == one[key] for key in ("kind", "name")):
            reason = _reason(result)
            outcome.update(ok=not reason, result=result, reason=reason)
    return outcome


def _results(host: Data, variables: Sequence[str]) -> Iterator[Data]:
    """Yield the results of loops over sets."""
    for variable in variables:
        yield from (host.get(variable) or {}).get("results") or []


def _reason(result: Data) -> str:
    """Return why a task did not do what it was for; nothing when it did."""
    if result.get("unreachable"):
        return UNREACHED
    if result.get("failed"):
        return str(result.get("msg") or "it failed").strip().rstrip(".")
    if result.get("skipped") and "backup" not in result:
        return str(result.get("skip_reason") or "it was skipped")
    return ""


def _headline(outcomes: Sequence[Data], data: Data) -> str:
    """Return the line that one reads first."""
    bad = sum(not outcome["ok"] for outcome in outcomes)
    place = f"{data['environment']}: " if data.get("environment") else ""
    count = f"{len(outcomes)} set{'s' if len(outcomes) != 1 else ''}"
    if data.get("failure") and not bad:
        return f"{place}The backups are made, and then something failed."
    if data.get("journey") == "verification":
        if bad:
            return f"{place}{bad} of {count} could not be proven."
        return f"{place}{count} would be read." if data.get("check_mode") else f"{place}All is well with {count}."
    if bad:
        return f"{place}{bad} of {count} {'was' if bad == 1 else 'were'} not backed up."
    return f"{place}{count} would be backed up." if data.get("check_mode") else f"{place}{count} backed up."


def _line(outcome: Data, data: Data) -> str:
    """Return what became of one set."""
    title = f"{outcome['kind']} {outcome['name']} on {outcome['host']}"
    if not outcome["ok"]:
        return f"Failed: {title}: {outcome['reason']}."
    if data.get("journey") == "verification":
        return f"{title}: {_verification(outcome['result'])}"
    return f"{title}: {_backup(outcome['result'])}"


def _backup(result: Data) -> str:
    """Return what a backup is like."""
    plan, backup = result.get("plan") or {}, result.get("backup") or {}
    if not backup:
        expected = f", about {size(plan['estimated_size'])}" if plan.get("estimated_size") else ""
        return f"{plan.get('skipped_reason') or 'not made yet'}{expected}."
    # Of what restic keeps there is a manifest alone; how much its data grew nobody says here.
    raw, stored = backup.get("raw_size") or 0, backup.get("size") or 0
    parts = [f"{size(stored)} of {size(raw)}" if raw and backup["kind"] == "database" else size(raw or stored)]
    if backup.get("rows") is not None:
        parts.append(f"{number(backup['rows'])} rows")
    if backup.get("duration"):
        parts.append(f"in {duration(backup['duration'])}")
    state = (
        f" It is {backup['state']}: {backup.get('fault') or 'see its manifest'}."
        if backup.get("state") in ("suspicious", "corrupt")
        else ""
    )
    reason = f" {plan['skipped_reason']}" if plan.get("skipped_reason") else ""
    return f"{backup['id']}, {', '.join(parts)}.{reason}{state}"


def _verification(result: Data) -> str:
    """Return what looks at backups found."""
    looks = result.get("verifications") or []
    if not looks:
        return " ".join(result.get("plan") or []) or "nothing was due."
    return " ".join(_look(look) for look in looks)


def _look(look: Data) -> str:
    """Return what one look at a backup found."""
    words = f"{look['backup']['id']} passed level {look['level']}"
    if look["level"] == "restore":
        compared = "equal" if look.get("compared") else "not compared, since its counts are approximate"
        counts = f"{number(look.get('tables') or 0)} tables, {number(look.get('rows') or 0)} rows"
        words = f"{look['backup']['id']} was restored: {counts}, {compared}"
    back = (
        f"; the data was back within {duration(look['rto_seconds'])}"
        if look.get("rto_seconds")
        else f" in {duration(look.get('duration') or 0)}"
    )
    return f"{words}{back}."


def _pruned_lines(pruned: Sequence[Data]) -> list[str]:
    """Return what was pruned and why, and what was not although no rule keeps it."""
    deleted = [backup for result in pruned for backup in result.get("deleted") or []]
    lines = []
    if deleted:
        freed = sum(result.get("freed") or 0 for result in pruned)
        shown = [f"{backup['kind']} {backup['name']} {backup['id']} ({backup.get('reason', '')})" for backup in deleted[:NAMES_SHOWN]]
        more = f", and {len(deleted) - NAMES_SHOWN} more" if len(deleted) > NAMES_SHOWN else ""
        lines.append(f"Pruned: {len(deleted)} backup{'s' if len(deleted) != 1 else ''}, {size(freed)}: {', '.join(shown)}{more}.")
    swept = [partial for result in pruned for partial in result.get("aborted_uploads") or []]
    if swept:
        lines.append(f"Removed what {len(swept)} interrupted backup{'s' if len(swept) != 1 else ''} had left.")
    lines += [f"Left alone: {one['path']}: {one['reason']}." for result in pruned for one in result.get("left_alone") or []]
    lines += [f"Nothing is pruned: {result['blocked']}" for result in pruned if result.get("blocked")]
    return lines


def _verified_lines(outcomes: Sequence[Data], infos: Mapping[str, Data]) -> list[str]:
    """Return the age of the newest proven backup of each set, as far as the repository could be read."""
    ages = []
    for outcome in outcomes:
        for row in (infos.get(outcome["host"]) or {}).get("names") or []:
            if (row["kind"], row["name"]) == (outcome["kind"], outcome["name"]):
                ages.append(f"{row['name']} {_age(row.get('verified_age'))}")
    hint = " bitflow.lms.verify_backups looks at the newest." if any(age.endswith(" none") for age in ages) else ""
    return [f"Newest verified: {', '.join(ages)}.{hint}"] if ages else []


def _age(seconds: float | None) -> str:
    """Return an age in words."""
    if seconds is None:
        return "none"
    if seconds < 2 * 3600:
        return f"{duration(seconds)} old"
    return f"{int(seconds // 3600)} hours old" if seconds < 2 * 86400 else f"{int(seconds // 86400)} days old"


def _advice(outcomes: Sequence[Data], data: Data) -> str:
    """Return what to do next."""
    if data.get("failure"):
        return f"Why: {data['failure']}"
    if all(outcome["ok"] for outcome in outcomes):
        return "Nothing was changed." if data.get("check_mode") else ""
    if any(outcome["result"].get("mismatches") for outcome in outcomes):
        return "Next: what differs is corrupt from now on, and never counted again. Find out why, and make a new backup at once."
    if data.get("journey") == "verification":
        return "Next: mend the cause and run it again. Of what could not be read nothing was noted."
    return "Next: mend the cause and run it again. Nothing was pruned, and nothing that is half done looks like a backup."


def size(count: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {UNITS[unit]}" if unit == 0 else f"{value:.1f} {UNITS[unit]}"


class FilterModule:
    """The collection's filters for backups."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "backup_outcomes": backup_outcomes,
            "backup_report": backup_report,
            "backup_sets": backup_sets,
            "drill_report": drill_report,
            "restore_report": restore_report,
        }
