"""The filters that say what a deployment did."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.filter.deploy_report import (
    deploy_failure,
    deploy_report,
    deploy_steps,
    duration,
    notification_warnings,
    release_history,
    slack_message,
    watch_urls,
)

WATCH: dict[str, Any] = {
    "found": True,
    "complete": True,
    "ended": "stopped",
    "requests": 1234,
    "failed_requests": 0,
    "longest_gap_ms": 0,
    "downtime_ms": 0,
    "p50_ms": 11,
    "p99_ms": 38,
    "failures": [],
    "urls": [{"name": "api", "failed_requests": 0, "good_at_start": True}],
}
DEPLOYED: dict[str, Any] = {
    "outcome": "deployed",
    "version": "v1.4.0",
    "commit": "94a1093",
    "subject": "Add certificates",
    "release": "20261123221300-94a1093",
    "previous": "20261120180000-fedcba9",
    "hosts": ["web1", "web2"],
    "seconds": 71.2,
    "steps": [{"name": "resolve", "seconds": 0.2}, {"name": "build", "seconds": 12.4}, {"name": "switch", "seconds": 8.0}],
    "watch": WATCH,
    "migrations": [{"name": "2026_11_01_000001_add_notes", "risk": ["expand"]}, "2026_11_02_000001_fill_notes"],
    "pruned": ["20261001000000-1111111", "20261001000000-1111111"],
    "warnings": [],
}


def test_report_of_a_deployment_says_what_was_done_and_proven() -> None:
    assert deploy_report(DEPLOYED) == [
        "v1.4.0 (94a1093: Add certificates) was deployed as release 20261123221300-94a1093.",
        "Hosts: web1, web2.",
        "Time: 1 min 11 s (build 12 s, switch 8.0 s).",
        "Visitors: 0 of 1,234 requests failed; longest gap 0 ms; half answered within 11 ms, 99 % within 38 ms.",
        "Migrations: 2 applied: 2026_11_01_000001_add_notes (expand), 2026_11_02_000001_fill_notes.",
        "Removed: 1 old release: 20261001000000-1111111.",
        "Checked: the candidate before the switch, each host after it, each site through the load balancer.",
        "The way back: ansible-playbook bitflow.lms.rollback, with the same inventory.",
    ]


def test_report_of_a_failure_says_why_and_what_serves() -> None:
    failed = {
        **DEPLOYED,
        "outcome": "taken back",
        "failure": {"task": "Ask through the load balancer", "host": "web2", "message": "it answered 503."},
        "migrations": ["2026_11_01_000001_add_notes"],
        "pruned": [],
        "steps": [],
        "watch": {
            **WATCH,
            "failed_requests": 3,
            "longest_gap_ms": 310,
            "downtime_ms": 620,
            "failures": [{"at": "2026-11-23T21:00:31.204Z", "name": "api", "status": 502, "error": ""}],
        },
        "warnings": ["The notification by Slack was not delivered: the server answered 404."],
    }

    assert deploy_report(failed) == [
        "v1.4.0 (94a1093: Add certificates) was taken back after the switch.",
        "Why: Ask through the load balancer on web2: it answered 503.",
        "Serving: 20261120180000-fedcba9, on web1, web2, as before.",
        "Time: 1 min 11 s.",
        "Visitors: 3 of 1,234 requests failed; longest gap 310 ms, 620 ms in total; half answered within 11 ms, 99 % within 38 ms."
        " First: api at 2026-11-23T21:00:31.204Z, status 502.",
        "Migrations: 1 applied, and stays: 2026_11_01_000001_add_notes.",
        "Warning: The notification by Slack was not delivered: the server answered 404.",
        "Next: mend the cause and deploy again; nothing has to be cleaned up.",
    ]


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        ({"outcome": "unchanged", "version": "main", "hosts": ["web1"]}, ["main is live already: nothing to deploy.", "Hosts: web1."]),
        (
            {"outcome": "planned", "version": "main", "release": "r2", "migrations": ["m1"]},
            [
                "main would be deployed as release r2.",
                "Migrations: 1 pending: m1.",
                "Nothing was changed. Run it without --check to deploy.",
            ],
        ),
        (
            {"outcome": "returned", "release": "r1", "previous": "r2", "hosts": ["web1"], "seconds": 2.61},
            [
                "Every host went back from r2 to r1.",
                "Hosts: web1.",
                "Time: 2.6 s.",
                "The database was not touched. Forward again: ansible-playbook bitflow.lms.deploy.",
            ],
        ),
        (
            {"outcome": "not returned", "release": "r1", "previous": "r2", "hosts": ["web1"]},
            [
                "Did not go back to r1.",
                "Serving: r2, on web1, as before.",
                "Next: mend the cause and go back again; nothing has to be cleaned up.",
            ],
        ),
        (
            {"outcome": "failed", "version": "v2", "failure": "Build the backend on web1: it failed.", "migrations": []},
            [
                "v2 was not deployed.",
                "Why: Build the backend on web1: it failed.",
                "Migrations: none ran.",
                "Next: mend the cause and deploy again; nothing has to be cleaned up.",
            ],
        ),
    ],
)
def test_report_of_other_outcomes(data: dict[str, Any], lines: list[str]) -> None:
    assert deploy_report(data) == lines


@pytest.mark.parametrize(
    ("watch", "line"),
    [
        ({"found": True, "requests": 0}, "Visitors: not measured."),
        (
            {**WATCH, "complete": False, "ended": "time limit", "ended_at": "2026-11-23T21:15:00.000Z"},
            "Visitors: 0 of 1,234 requests failed; longest gap 0 ms; half answered within 11 ms, 99 % within 38 ms."
            " The watch ended early, at 2026-11-23T21:15:00.000Z (time limit): what came after was not measured.",
        ),
        (
            {**WATCH, "failed_requests": 1, "urls": [{"name": "student", "failed_requests": 1, "good_at_start": False}]},
            "Visitors: 1 of 1,234 requests failed; longest gap 0 ms, 0 ms in total; half answered within 11 ms, 99 % within 38 ms."
            " student did not answer well before the switch either.",
        ),
    ],
)
def test_measurement_does_not_claim_more_than_it_saw(watch: dict[str, Any], line: str) -> None:
    assert deploy_report({"outcome": "unchanged", "version": "v1", "watch": watch})[1] == line


@pytest.mark.parametrize(
    ("outcome", "traffic", "lines"),
    [
        (
            "deployed",
            {"colour": "green", "kept": "blue", "until": "2026-11-29T05:00:00.000Z"},
            ["Traffic: all of it on green; blue is kept for the way back until 2026-11-29T05:00:00.000Z."],
        ),
        ("taken back", {"colour": "blue", "kept": "green", "until": ""}, ["Traffic: all of it on blue."]),
        (
            "deployed",
            {"colour": "blue", "kept": "green", "until": "", "unfinished": "r2, from blue to green: step 1 of 4 of the shift."},
            [
                "Traffic: r2, from blue to green: step 1 of 4 of the shift. "
                "Go on: ansible-playbook bitflow.lms.switch_traffic -e traffic_action=advance, with the same inventory."
            ],
        ),
        ("deployed", {}, []),
    ],
)
def test_report_says_which_colour_has_the_traffic(outcome: str, traffic: dict[str, str], lines: list[str]) -> None:
    report = deploy_report({"outcome": outcome, "release": "r2", "hosts": ["app2"], "traffic": traffic})

    assert [line for line in report if line.startswith("Traffic")] == lines


def test_a_failure_says_which_colour_serves_as_before() -> None:
    data = {"outcome": "taken back", "release": "r2", "previous": "r1", "hosts": ["app2"], "traffic": {"colour": "blue", "kept": "green"}}

    assert "Serving: r1, on the hosts of blue, as before." in deploy_report(data)


def test_traffic_that_went_back_is_said_so() -> None:
    report = deploy_report({"outcome": "returned", "release": "r1", "previous": "r2", "traffic": {"colour": "blue", "kept": "green"}})

    assert report[0] == "All traffic went back from r2 to r1."


def test_outcome_that_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="The outcome is 'great'; it must be one of deployed, failed"):
        deploy_report({"outcome": "great"})


def test_long_lists_are_cut() -> None:
    line = deploy_report({"outcome": "unchanged", "version": "v1", "pruned": [f"r{number}" for number in range(11)]})[-1]

    assert line == "Removed: 11 old releases: r0, r1, r2, r3, r4, r5, r6, r7 and 3 more."


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (10.4, "10 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s")])
def test_duration_is_said_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_steps_last_until_the_next_mark() -> None:
    marks = [{"step": "build", "at": 100.0}, {"step": "switch", "at": 112.5}, {"step": "switch", "at": 115.0}, {"step": "", "at": 120.0}]

    assert deploy_steps(marks, 130.0) == [{"name": "build", "seconds": 12.5}, {"name": "switch", "seconds": 7.5}]
    assert deploy_steps(marks[:1]) == []
    assert deploy_steps([]) == []


INFO: dict[str, Any] = {
    "current": "20261123210000-abc1234",
    "previous": "20261120180000-fedcba9",
    "releases": [
        {"id": "20261123210000-abc1234", "version": "v1.4.0", "commit": "abc1234567890"},
        {"id": "20261120180000-fedcba9", "version": "v1.3.0", "commit": "fedcba9876543"},
    ],
    "history": [
        {"at": "2026-11-20T18:00:40Z", "event": "activated", "release": "20261120180000-fedcba9"},
        {"at": "2026-11-21T18:00:40Z", "event": "failed", "release": "20261121180000-1234567", "reason": "Prove it on web1:\n503."},
        {"at": "2026-11-23T21:00:40Z", "event": "activated", "release": "20261123210000-abc1234"},
    ],
}


def test_history_is_a_table_with_the_newest_event_first() -> None:
    table = release_history(["web1", "web2"], {"backend": [INFO, {"skipped": True}]})

    assert table == [
        "web1, backend: live 20261123210000-abc1234, way back 20261120180000-fedcba9, 2 on disk",
        "  when (UTC)           event   release                 version  commit   why",
        "  2026-11-23 21:00:40  live    20261123210000-abc1234  v1.4.0   abc1234",
        "  2026-11-21 18:00:40  failed  20261121180000-1234567                    Prove it on web1: 503.",
        "  2026-11-20 18:00:40  live    20261120180000-fedcba9  v1.3.0   fedcba9",
    ]


def test_history_shows_as_many_events_as_were_asked_for() -> None:
    assert len(release_history(["web1"], {"backend": [INFO]}, 1)) == 3


def test_host_without_a_release_has_no_history() -> None:
    empty = {"current": None, "previous": None, "releases": [], "history": []}

    assert release_history(["web1"], {"backend": [empty]}) == [
        "web1, backend: live none, way back none, 0 on disk",
        "  no event was recorded",
    ]


def test_slack_gets_text_in_which_nothing_is_a_command() -> None:
    assert slack_message(["<!channel> deployed", "a & b"], succeeded=False) == {
        "text": "&lt;!channel&gt; deployed",
        "attachments": [{"color": "danger", "text": "a &amp; b", "fallback": "&lt;!channel&gt; deployed"}],
    }
    assert slack_message(["one line"], True, "example.com") == {"text": "example.com: one line", "attachments": []}


def test_long_text_is_cut_for_slack() -> None:
    assert len(slack_message(["a", "b" * 9999])["attachments"][0]["text"]) == 3000


def test_notification_that_failed_is_a_warning_without_its_secret() -> None:
    results = {
        "Slack": {"failed": True, "status": 404, "msg": "https://hooks.example.com/services/T0/secret"},
        "e-mail": {"failed": True, "msg": "\nConnecting to mail.example.com with hunter2 at https://x/y failed.\nmore"},
        "other": {"failed": False, "status": 204},
        "told": {"failed": False, "failed_when_suppressed_exception": "(traceback unavailable)"},
        "absent": {"skipped": True, "failed": False},
    }

    assert notification_warnings(results, ["hunter2", ""]) == [
        "The notification by Slack was not delivered: the server answered 404.",
        "The notification by e-mail was not delivered: Connecting to mail.example.com with *** at *** failed.",
        "The notification by told was not delivered: the server cannot be reached or does not take it.",
    ]


def test_each_address_is_watched_at_each_place() -> None:
    urls = ["https://api.example.com/health", "https://student.example.com/"]

    assert watch_urls(urls[:1], ["127.0.0.1:443"]) == [{"name": "api", "url": urls[0], "connect_to": "127.0.0.1:443"}]
    assert watch_urls(urls, ["192.0.2.1:443", "192.0.2.2:443"], "/a.pem")[3] == {
        "name": "student at 192.0.2.2:443",
        "url": urls[1],
        "connect_to": "192.0.2.2:443",
        "ca_path": "/a.pem",
    }


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"msg": "503"}, "503"),
        ({"msg": "One or more items failed", "results": [{"msg": "fine"}, {"failed": True, "msg": "503"}]}, "503"),
        ({"msg": "secret", "_ansible_no_log": True}, "its result is hidden, because the task has no_log."),
        ({"rc": 1}, "it failed."),
    ],
)
def test_failure_is_found_where_it_happened(result: dict[str, Any], message: str) -> None:
    failed = {"inventory_hostname": "web2", "ansible_failed_task": {"name": "Prove"}, "ansible_failed_result": result}

    assert deploy_failure([{"inventory_hostname": "web1"}, failed]) == {"task": "Prove", "host": "web2", "message": message}
    assert deploy_failure([{"inventory_hostname": "web1"}]) == {}


def test_a_plan_says_when_the_migrations_are_not_known_yet() -> None:
    lines = deploy_report({"outcome": "planned", "version": "main", "migrations": [], "migrations_unknown": True})

    assert "Migrations: not known until the release is on a host of backend." in lines


def test_the_plan_of_a_rollback_says_that_it_is_a_plan() -> None:
    lines = deploy_report({"outcome": "would return", "previous": "r2", "release": "r1"})

    assert lines == ["Every host would go back from r2 to r1.", "Nothing was changed. Run it without --check to go back."]
