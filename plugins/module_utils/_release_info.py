# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known about the releases of applications on this host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._components import Components
from ansible_collections.bitflow.lms.plugins.module_utils._release import Releases, command_of, disk_facts, holders
from ansible_collections.bitflow.lms.plugins.module_utils._release_plan import describe

HISTORY_SHOWN = 20

Held = dict[str, list[int]]


def describe_applications(applications: Sequence[Releases]) -> dict[str, dict[str, Any]]:
    """Return what is known about the releases of each application, by its root."""
    places = [place for releases in applications for place in (releases.directory, Components(releases.root).directory)]
    held = holders([place for place in places if place.is_dir()])
    return {
        str(releases.root): _describe(releases, held.get(releases.directory, {}), held.get(Components(releases.root).directory, {}))
        for releases in applications
    }


def _describe(releases: Releases, held: Held, held_components: Held) -> dict[str, Any]:
    """Return what is known about the releases of one application."""
    tree = releases.read()
    live = tree.find(tree.current or "")
    components = Components(releases.root)
    linked = {release.id: components.linked(release.id).values() for release in tree.releases}
    users = {
        release_id: {*held.get(release_id, []), *(pid for component in parts for pid in held_components.get(component.name, []))}
        for release_id, parts in linked.items()
    }
    return {
        "root": str(releases.root),
        "current": tree.current,
        "previous": tree.previous,
        "fingerprint": live.fingerprint if live else "",
        "releases": [
            {**describe(release, str(releases.directory)), "in_use_by": _processes(users[release.id])}
            for release in reversed(tree.releases)
        ],
        "components": [
            {
                "name": component.name,
                **asdict(component),
                "releases": sorted(release_id for release_id, parts in linked.items() if component in parts),
                "in_use_by": _processes(held_components.get(component.name, [])),
            }
            for _name, component in sorted(components.read().items())
        ],
        "leftovers": [leftover.name for leftover in tree.leftovers] + components.leftovers(),
        "history": releases.journal.entries()[-HISTORY_SHOWN:],
        "disk": disk_facts(releases.root),
    }


def _processes(numbers: Iterable[int]) -> list[dict[str, Any]]:
    """Return processes with their commands."""
    return [{"pid": number, "command": command_of(number)} for number in sorted(numbers)]
