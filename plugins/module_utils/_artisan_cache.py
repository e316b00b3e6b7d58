# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The caches that artisan builds for a release: build, remove or prove them, each by its own command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan, MissingReleaseError
from ansible_collections.bitflow.lms.plugins.module_utils._artisan_commands import Step, run_steps
from ansible_collections.bitflow.lms.plugins.module_utils._artisan_effects import ABSENT, EffectError, Observation, effect_of

CACHES = ("config", "event", "route", "view")
VERBS = {"present": "cache", "absent": "clear"}


def commands_for(caches: Sequence[str], state: str) -> list[Step]:
    """Return the artisan commands that bring the caches into the state, in Laravel's own order whatever order was asked for."""
    return [Step(f"{cache}:{VERBS[state]}") for cache in CACHES if cache in caches]


def observe(artisan: Artisan, caches: Sequence[str]) -> dict[str, str]:
    """Return what there is of each cache, as content sums by the name of its file or folder."""
    found: dict[str, str] = {}
    for step in commands_for(caches, "present"):
        found.update(_observation(artisan, step.command).fingerprints)
    return found


def _observation(artisan: Artisan, command: str) -> Observation:
    """Return what a command left."""
    effect = effect_of(command, artisan.directory, artisan.environment, artisan.lint)
    return effect.observe() if effect else Observation()


def prove(artisan: Artisan, caches: Sequence[str], lint: bool) -> None:
    """Raise unless every cache is there and, if asked for, all that artisan wrote is valid PHP."""
    missing = sorted(name for name, state in observe(artisan, caches).items() if state == ABSENT)
    # An application without templates has no compiled views.
    templates = any((artisan.directory / "resources/views").rglob("*.blade.php"))
    missing = [name for name in missing if name.endswith(".php") or templates]
    if missing:
        raise EffectError(f"The release {artisan.directory} lacks {', '.join(missing)}. Build it with state: present.", missing=missing)
    if lint:
        lint_caches(artisan, with_views="view" in caches)


def lint_caches(artisan: Artisan, with_views: bool) -> None:
    """Raise unless bootstrap/cache, and the compiled views if asked for, are valid PHP: in as few processes as PHP's version allows."""
    if with_views:
        effect_of_views = effect_of("view:cache", artisan.directory, artisan.environment, artisan.lint)
        if effect_of_views is not None:
            seen = effect_of_views.observe()
            effect_of_views.verify("view:cache", Observation(), seen, "")
    problems = artisan.lint(sorted((artisan.directory / "bootstrap/cache").glob("*.php")))
    if problems:
        first = problems[0]
        raise EffectError(
            f"{first.path} is broken PHP: {first.message}. Repair the configuration or the routes that it was made from.",
            broken_files=[f"{one.path}: {one.message}" for one in problems],
        )


def run(artisan: Artisan, caches: Sequence[str], state: str, lint: bool, check_mode: bool) -> dict[str, Any]:
    """Bring the caches into the state and return the module's result."""
    if state == "verified":
        return _verified(artisan, caches, lint, check_mode)
    result = run_steps(artisan, commands_for(caches, state), check_mode)
    if state == "present" and lint and not check_mode:
        # view:cache has looked at the compiled views.
        lint_caches(artisan, with_views=False)
    return {**result, "caches": {**result["diff"]["before"], **result["diff"]["after"]}}


def _verified(artisan: Artisan, caches: Sequence[str], lint: bool, check_mode: bool) -> dict[str, Any]:
    """Prove the caches and return the module's result; in check mode a release may be missing that an earlier task would have made."""
    warnings = []
    found: dict[str, str] = {}
    try:
        artisan.check()
        prove(artisan, caches, lint)
        found = observe(artisan, caches)
    except MissingReleaseError as error:
        if not check_mode:
            raise
        warnings.append(error.message)
    return {
        "changed": False,
        "results": [],
        "laravel_version": artisan.version(),
        "caches": found,
        "diff": {"before": found, "after": found},
        "warnings": warnings,
    }
