# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The figures of deployments in the text format that Prometheus reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SUCCESS = "lms_deploy_last_success_timestamp_seconds"
FAILURE = "lms_deploy_last_failure_timestamp_seconds"
DURATION = "lms_deploy_duration_seconds"
DOWNTIME = "lms_deploy_downtime_seconds"
PENDING = "lms_migrations_pending"
# In the order of the file. All are gauges.
HELP = {
    "lms_release_info": "The live release of an application. Always 1.",
    "lms_releases_on_disk": "Releases of an application that are on the disk.",
    SUCCESS: "When a deployment or a rollback last succeeded.",
    FAILURE: "When a deployment or a rollback last failed.",
    DURATION: "How long the last deployment or rollback took.",
    DOWNTIME: "How long a site did not answer well during the last deployment or rollback, as measured.",
    PENDING: "Migrations that the live release knows and the database does not have.",
}
# Those that stay as they are when a run does not give them.
KEPT = (SUCCESS, FAILURE, DURATION, DOWNTIME, PENDING)
SAMPLE = re.compile(r"^(?P<name>[a-z_]+) (?P<value>[0-9.eE+-]+)$", re.MULTILINE)
ESCAPES = (("\\", "\\\\"), ("\n", "\\n"), ('"', '\\"'))


@dataclass(frozen=True)
class Application:
    """What is known of an application on this host."""

    name: str
    release: str = ""
    commit: str = ""
    version: str = ""
    releases: int = 0


def read_kept(text: str) -> dict[str, float]:
    """Return the figures of an earlier file that a run does not always give."""
    return {found["name"]: float(found["value"]) for found in SAMPLE.finditer(text) if found["name"] in KEPT}


def figures(before: Mapping[str, float], given: Mapping[str, Any], outcome: str, now: float) -> dict[str, float]:
    """Return the figures of the whole host: those that were given, the time of the outcome, and the earlier ones otherwise.

    A run that had nothing to deploy took time as well, and says nothing of the last deployment.
    """
    wanted = {PENDING: given.get("migrations_pending")}
    if outcome != "none":
        wanted |= {DURATION: given.get("duration"), DOWNTIME: given.get("downtime")}
    moment = {"succeeded": {SUCCESS: now}, "failed": {FAILURE: now}}.get(outcome, {})
    return {**before, **{name: float(value) for name, value in wanted.items() if value is not None}, **moment}


def render(applications: Iterable[Application], values: Mapping[str, float]) -> str:
    """Return the file."""
    known = sorted(applications, key=lambda application: application.name)
    samples: dict[str, list[str]] = {
        "lms_release_info": [
            f"{labels(application=item.name, commit=item.commit, release=item.release, version=item.version)} 1"
            for item in known
            if item.release
        ],
        "lms_releases_on_disk": [f"{labels(application=item.name)} {item.releases}" for item in known],
        **{name: [f" {number(values[name])}"] for name in KEPT if name in values},
    }
    lines = [
        line
        for name, text in HELP.items()
        if samples.get(name)
        for line in (f"# HELP {name} {text}", f"# TYPE {name} gauge", *(f"{name}{sample}" for sample in samples[name]))
    ]
    return "".join(f"{line}\n" for line in lines)


def labels(**values: str) -> str:
    """Return the labels of a sample."""
    return "{" + ",".join(f'{name}="{escape(value)}"' for name, value in sorted(values.items())) + "}"


def escape(value: str) -> str:
    """Return a value in which nothing ends the label."""
    for character, escaped in ESCAPES:
        value = value.replace(character, escaped)
    return value


def number(value: float) -> str:
    """Return a number without a point where it needs none."""
    return str(int(value)) if value == int(value) else repr(round(value, 3))
