# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that say what a deployment did: pure functions over plain data, lines of text out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Callable
from urllib.parse import urlsplit

Data = Mapping[str, Any]

HEADLINES = {
    "deployed": "was deployed as release {release}.",
    "planned": "would be deployed as release {release}.",
    "unchanged": "is live already: nothing to deploy.",
    "returned": "{what} went back from {previous} to {release}.",
    "would return": "{what} would go back from {previous} to {release}.",
    "not returned": "Did not go back to {release}.",
    "failed": "was not deployed.",
    "taken back": "was taken back after the switch.",
}
FAILURES = frozenset({"failed", "taken back", "not returned"})
CHECKED = "Checked: the candidate before the switch, each host after it, each site through the load balancer."
ADVICE = {
    "deployed": "The way back: ansible-playbook bitflow.lms.rollback, with the same inventory.",
    "planned": "Nothing was changed. Run it without --check to deploy.",
    "would return": "Nothing was changed. Run it without --check to go back.",
    "returned": "The database was not touched. Forward again: ansible-playbook bitflow.lms.deploy.",
}
MEND = "Next: mend the cause and {again}; nothing has to be cleaned up."
GO_ON = "Go on: ansible-playbook bitflow.lms.switch_traffic -e traffic_action=advance, with the same inventory."
NAMES_SHOWN = 8
# What a step that took less is worth saying nothing about.
SHORTEST_STEP = 0.5
# The events of a journal, in the words of the table.
EVENTS = {"activated": "live", "superseded": "replaced"}
SLACK_ESCAPES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"))
LONGEST_SLACK_TEXT = 3000


def deploy_report(data: Data) -> list[str]:
    """Return the lines that say how a deployment or a rollback went."""
    outcome = data.get("outcome", "deployed")
    if outcome not in HEADLINES:
        raise ValueError(f"The outcome is {outcome!r}; it must be one of {', '.join(sorted(HEADLINES))}.")
    lines = [
        _headline(outcome, data),
        _failure_line(data) if outcome in FAILURES else "",
        _hosts_line(outcome, data),
        _traffic_line(outcome, data.get("traffic") or {}),
        _time_line(data),
        _visitors_line(data.get("watch") or {}),
        _migrations_line(outcome, data),
        _names_line("Removed", data.get("pruned") or [], "old release"),
        CHECKED if outcome == "deployed" else "",
        *(f"Warning: {warning}" for warning in data.get("warnings") or []),
        MEND.format(again="go back again" if outcome == "not returned" else "deploy again")
        if outcome in FAILURES
        else ADVICE.get(outcome, ""),
    ]
    return [line for line in lines if line]


def _headline(outcome: str, data: Data) -> str:
    """Return the line that one reads first."""
    sentence = HEADLINES[outcome].format(
        what="All traffic" if data.get("traffic") else "Every host",
        release=data.get("release") or "no release",
        previous=data.get("previous") or "no release",
    )
    return f"{_subject(data)} {sentence}" if sentence[0].islower() else sentence


def _subject(data: Data) -> str:
    """Return the version with its commit and the commit's subject."""
    version = data.get("version") or data.get("release") or "The version"
    details = ": ".join(str(data[key]) for key in ("commit", "subject") if data.get(key))
    return f"{version} ({details})" if details else str(version)


def _failure_line(data: Data) -> str:
    """Return why it failed: task, host and message."""
    failure = data.get("failure") or ""
    if isinstance(failure, str):
        return f"Why: {failure}" if failure else ""
    place = " on ".join(str(failure[key]) for key in ("task", "host") if failure.get(key))
    return f"Why: {': '.join(part for part in (place, failure.get('message', '')) if part)}"


def _hosts_line(outcome: str, data: Data) -> str:
    """Return which hosts serve what now."""
    hosts = ", ".join(data.get("hosts") or [])
    if not hosts:
        return ""
    if outcome not in FAILURES:
        return f"Hosts: {hosts}."
    serving = data.get("previous")
    if data.get("traffic"):
        # The hosts that were deployed to serve nobody; those of the other colour were left alone.
        hosts = f"the hosts of {data['traffic']['colour']}"
    return f"Serving: {serving}, on {hosts}, as before." if serving else f"Serving: what was there before, on {hosts}."


def _traffic_line(outcome: str, traffic: Data) -> str:
    """Return which colour has the traffic, and for how long the other one is kept."""
    if not traffic:
        return ""
    if traffic.get("unfinished"):
        return f"Traffic: {traffic['unfinished']} {GO_ON}"
    line = f"Traffic: all of it on {traffic['colour']}"
    if outcome != "deployed":
        return f"{line}."
    until = f" until {traffic['until']}" if traffic.get("until") else ""
    return f"{line}; {traffic['kept']} is kept for the way back{until}."


def _time_line(data: Data) -> str:
    """Return how long it took, and what of it each step."""
    steps = [step for step in data.get("steps") or [] if step["seconds"] >= SHORTEST_STEP]
    total = data.get("seconds") or sum(step["seconds"] for step in data.get("steps") or [])
    if not total:
        return ""
    detail = ", ".join(f"{step['name']} {duration(step['seconds'])}" for step in steps)
    return f"Time: {duration(total)}" + (f" ({detail})." if detail else ".")


def _visitors_line(watch: Data) -> str:
    """Return what visitors noticed, as the watch measured it."""
    requests = watch.get("requests") or 0
    if not requests:
        return "Visitors: not measured." if watch.get("found") else ""
    failed = watch.get("failed_requests") or 0
    line = f"Visitors: {number(failed)} of {number(requests)} requests failed; longest gap {watch.get('longest_gap_ms', 0)} ms"
    if failed:
        line += f", {watch.get('downtime_ms', 0)} ms in total"
    line += f"; half answered within {watch.get('p50_ms', 0)} ms, 99 % within {watch.get('p99_ms', 0)} ms."
    ill = [url["name"] for url in watch.get("urls") or [] if url["failed_requests"] and not url.get("good_at_start", True)]
    if ill:
        line += f" {', '.join(ill)} did not answer well before the switch either."
    first = (watch.get("failures") or [{}])[0]
    if first:
        answered = first.get("error") or f"status {first.get('status')}"
        line += f" First: {first.get('name')} at {first.get('at')}, {answered}."
    if not watch.get("complete", True):
        line += f" The watch ended early, at {watch.get('ended_at')} ({watch.get('ended')}): what came after was not measured."
    return line


def _migrations_line(outcome: str, data: Data) -> str:
    """Return which migrations ran, with their risk."""
    if "migrations" not in data:
        return ""
    if data.get("migrations_unknown") and outcome == "planned":
        return "Migrations: not known until the release is on a host of backend."
    migrations = [{"name": item} if isinstance(item, str) else item for item in data["migrations"] or []]
    if not migrations:
        return "Migrations: none ran." if outcome in FAILURES else "Migrations: none were pending." if outcome != "unchanged" else ""
    names = [f"{item['name']} ({_risk(item)})" if item.get("risk") else str(item["name"]) for item in migrations]
    what = "pending" if outcome == "planned" else "applied, and stays" if outcome in FAILURES else "applied"
    if outcome in FAILURES and len(names) > 1:
        what = "applied, and stay"
    return _names_line("Migrations", names, "migration", f"{len(names)} {what}")


def _risk(item: Data) -> str:
    """Return the risk classes of a migration in words."""
    return item["risk"] if isinstance(item["risk"], str) else ", ".join(item["risk"])


def _names_line(title: str, names: Iterable[str], thing: str, count: str = "") -> str:
    """Return a line with the first names of a list."""
    found = list(dict.fromkeys(names))
    if not found:
        return ""
    count = count or f"{len(found)} {thing}{'s' if len(found) > 1 else ''}"
    more = f" and {len(found) - NAMES_SHOWN} more" if len(found) > NAMES_SHOWN else ""
    return f"{title}: {count}: {', '.join(found[:NAMES_SHOWN])}{more}."


def number(count: int) -> str:
    """Return a number with its thousands apart."""
    return f"{int(count):,}"


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def deploy_steps(marks: list[Data], until: float | None = None) -> list[dict[str, Any]]:
    """Return the seconds from each mark to the next one; steps of the same name are added up, and the last needs an end."""
    seconds: dict[str, float] = {}
    ends = [mark["at"] for mark in marks[1:]] + ([until] if until is not None else [])
    for mark, end in zip(marks, ends):
        if mark.get("step"):
            seconds[mark["step"]] = seconds.get(mark["step"], 0.0) + max(0.0, float(end) - float(mark["at"]))
    return [{"name": name, "seconds": round(some, 1)} for name, some in seconds.items()]


def release_history(hosts: list[str], infos: Mapping[str, list[Data]], count: int = 10) -> list[str]:
    """Return a table of the last events of each application on each host, the newest first; a host without the application is left out."""
    return [
        line
        for position, host in enumerate(hosts)
        for application, found in infos.items()
        if "releases" in found[position]
        for line in _history(f"{host}, {application}", found[position], int(count))
    ]


def _history(title: str, info: Data, count: int) -> list[str]:
    """Return the lines of one application on one host."""
    releases = {release["id"]: release for release in info["releases"]}
    live, back = info.get("current") or "none", info.get("previous") or "none"
    rows = [_history_row(event, releases) for event in reversed((info.get("history") or [])[-count:])]
    table = _table(["when (UTC)", "event", "release", "version", "commit", "why"], rows) if rows else ["  no event was recorded"]
    return [f"{title}: live {live}, way back {back}, {len(releases)} on disk", *table]


def _history_row(event: Data, releases: Mapping[str, Data]) -> list[str]:
    """Return the cells of one event."""
    release = releases.get(event.get("release", ""), {})
    when = str(event.get("at", "")).replace("T", " ").rstrip("Z")
    name = str(event.get("event", ""))
    why = " ".join(str(event.get("reason") or "").split())
    return [
        when,
        EVENTS.get(name, name),
        str(event.get("release", "")),
        release.get("version") or "",
        (release.get("commit") or "")[:7],
        why,
    ]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table with columns as wide as they need to be."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return [("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths))).rstrip() for row in [head, *rows]]


def slack_message(lines: list[str], succeeded: bool = True, place: str = "") -> dict[str, Any]:
    """Return the body for an incoming webhook: the first line, and the others with a bar in the colour of the outcome."""
    first, rest = _slack_text(": ".join(filter(None, [place, *lines[:1]]))), _slack_text("\n".join(lines[1:]))
    attachment = {"color": "good" if succeeded else "danger", "text": rest, "fallback": first}
    return {"text": first, "attachments": [attachment] if rest else []}


def deploy_failure(hosts: Iterable[Data]) -> dict[str, str]:
    """Return the task, the host and the message of what failed first in a block; nothing where nothing did."""
    for host in hosts:
        result = host.get("ansible_failed_result")
        if result:
            task = host.get("ansible_failed_task") or {}
            return {"task": str(task.get("name", "")), "host": str(host.get("inventory_hostname", "")), "message": _message(result)}
    return {}


def _message(result: Data) -> str:
    """Return why a task failed; of a loop, why its first item did."""
    if result.get("_ansible_no_log") or "censored" in result:
        return "its result is hidden, because the task has no_log."
    items = [item for item in result.get("results") or [] if item.get("failed")]
    return _message(items[0]) if items else str(result.get("msg") or "it failed.")


def watch_urls(urls: list[str], places: list[str], ca_path: str = "") -> list[dict[str, Any]]:
    """Return what a watch asks for: each address at each place (host:port), named after the first part of its host."""
    authority = {"ca_path": ca_path} if ca_path else {}
    return [
        {"name": _target_name(url, place if len(places) > 1 else ""), "url": url, "connect_to": place, **authority}
        for place in places
        for url in urls
    ]


def _target_name(url: str, place: str) -> str:
    """Return the name of a target in the report."""
    name = (urlsplit(url).hostname or url).partition(".")[0]
    return f"{name} at {place}" if place else name


def _slack_text(text: str) -> str:
    """Return text in which nothing is a link, a mention or too long."""
    for character, entity in SLACK_ESCAPES:
        text = text.replace(character, entity)
    return text if len(text) <= LONGEST_SLACK_TEXT else text[: LONGEST_SLACK_TEXT - 1] + "…"


def notification_warnings(results: Mapping[str, Any], secrets: list[str] | None = None) -> list[str]:
    """Return a sentence for each notification that was not delivered, without a secret in it."""
    warnings = []
    for channel, result in results.items():
        if isinstance(result, Mapping) and _undelivered(result):
            status = result.get("status")
            known = isinstance(status, int) and status > 0
            reason = f"the server answered {status}" if known else _reason(str(result.get("msg", "")), secrets or [])
            warnings.append(f"The notification by {channel} was not delivered: {reason}.")
    return warnings


def _undelivered(result: Data) -> bool:
    """Say whether a notification failed, also where its task was told not to."""
    if result.get("skipped"):
        return False
    status = result.get("status")
    refused = isinstance(status, int) and not 200 <= status < 300
    return bool(result.get("failed") or result.get("rc") or "failed_when_suppressed_exception" in result or refused)


def _reason(message: str, secrets: list[str]) -> str:
    """Return the first line of a message without secrets and addresses."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        message = message.replace(secret, "***")
    message = re.sub(r"https?://\S+", "***", message)
    first = next((line.strip() for line in message.splitlines() if line.strip()), "the server cannot be reached or does not take it")
    return first[:300].rstrip(".")


class FilterModule:
    """The collection's filters for reports."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "deploy_failure": deploy_failure,
            "deploy_report": deploy_report,
            "deploy_steps": deploy_steps,
            "notification_warnings": notification_warnings,
            "release_history": release_history,
            "slack_message": slack_message,
            "watch_urls": watch_urls,
        }
