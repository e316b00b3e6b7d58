# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Describe a Laravel application: what artisan about says, in the same words for every version, and what this Laravel can do."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._maintenance_marker import MARKER

# Each feature with the command that it needs, and the option of it.
FEATURES: dict[str, tuple[str, str | None]] = {
    "about_json": ("about", "--json"),
    "config_show": ("config:show", None),
    "database_monitor": ("db:monitor", None),
    "event_cache": ("event:cache", None),
    "horizon": ("horizon:terminate", None),
    "maintenance_refresh": ("down", "--refresh"),
    "maintenance_render": ("down", "--render"),
    "maintenance_secret": ("down", "--secret"),
    "migrate_isolated": ("migrate", "--isolated"),
    "migrate_status_pending": ("migrate:status", "--pending"),
    "octane": ("octane:reload", None),
    "pulse": ("pulse:restart", None),
    "queue_pause": ("queue:pause", None),
    "reload": ("reload", None),
    "reverb": ("reverb:restart", None),
    "schedule_interrupt": ("schedule:interrupt", None),
    "schedule_list_json": ("schedule:list", "--json"),
    "schedule_pause": ("schedule:pause", None),
    "storage_link_relative": ("storage:link", "--relative"),
    "view_cache": ("view:cache", None),
}
DRIVERS = ("broadcasting", "cache", "database", "logs", "mail", "octane", "queue", "scout", "session")
CACHES = ("config", "events", "routes", "views")
_DOTTED = re.compile(r"^\s*(?P<label>\S.*?)\s+\.{2,}\s+(?P<value>\S.*?)\s*$")
_HEADING = re.compile(r"^\s*(?P<heading>[A-Z][\w ]*?)\s*\.*\s*$")
_ENVIRONMENT = re.compile(r"(?:Current application environment:|application environment is) \[?(?P<name>[\w.-]+)\]?")
_TRUE = frozenset({"true", "1", "enabled", "cached", "on"})


def features_of(commands: Mapping[str, set[str]]) -> dict[str, bool]:
    """Return what this Laravel can do, told by its commands and their options."""
    return {name: command in commands and (option is None or option in commands[command]) for name, (command, option) in FEATURES.items()}


def parse_about_json(text: str) -> dict[str, dict[str, Any]]:
    """Return the sections of `artisan about --json`; whatever was printed before them is passed over."""
    for match in re.finditer(r"^\{", text, re.MULTILINE):
        try:
            found = json.loads(text[match.start() :].strip())
        except ValueError:
            continue
        if isinstance(found, dict):
            return {section: dict(entries) if isinstance(entries, dict) else {} for section, entries in found.items()}
    raise LmsError("artisan about --json printed no JSON.", stdout=text[:2000])


def parse_about_text(text: str) -> dict[str, dict[str, Any]]:
    """Return the sections of `artisan about` of a Laravel that cannot print JSON, under the names that its JSON would have."""
    sections: dict[str, dict[str, Any]] = {}
    section = ""
    for line in text.splitlines():
        entry, heading = _DOTTED.match(line), _HEADING.match(line)
        if entry and section:
            sections[section][_key(entry["label"])] = entry["value"]
        elif heading:
            section = _key(heading["heading"])
            sections[section] = {}
    return sections


def _key(label: str) -> str:
    """Return a label as the JSON of artisan names it."""
    return re.sub(r"\W+", "_", label.strip().lower())


def parse_environment(text: str) -> str | None:
    """Return the environment in the output of `artisan env`, of any version."""
    match = _ENVIRONMENT.search(text)
    return match["name"] if match else None


def truth(value: Any) -> bool | None:
    """Return a yes or no of about, which some versions write as words."""
    if value is None or isinstance(value, bool):
        return value
    return str(value).strip().lower() in _TRUE


def describe(artisan: Artisan) -> dict[str, Any]:
    """Return what an application is. Costs two starts of Laravel, and never changes anything."""
    commands = artisan.commands()
    features = features_of(commands)
    about = read_about(artisan, commands)
    environment = about.get("environment", {})
    name = environment.get("environment") or parse_environment(artisan.expect("env").stdout)
    cache, drivers = about.get("cache", {}), about.get("drivers", {})
    maintenance = truth(environment.get("maintenance_mode"))
    return {
        "laravel_version": artisan.require_version(),
        "php_version": environment.get("php_version"),
        "environment": name,
        "debug": truth(environment.get("debug_mode")),
        # Before there was about there was no other driver than the file.
        "maintenance": (artisan.directory / MARKER).is_file() if maintenance is None else maintenance,
        "drivers": {driver: drivers.get(driver) for driver in DRIVERS if about},
        "caches": {entry: truth(cache.get(entry)) for entry in CACHES if about},
        "about": about,
        "commands": sorted(commands),
        "features": features,
    }


def read_about(artisan: Artisan, commands: Mapping[str, set[str]]) -> dict[str, dict[str, Any]]:
    """Return the sections of artisan about; a Laravel without that command has none."""
    if "about" not in commands:
        return {}
    if "--json" in commands["about"]:
        return parse_about_json(artisan.expect("about", ["--json"]).stdout)
    return parse_about_text(artisan.expect("about").stdout)
