# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The change of an application's releases from one state to another, as the options of a task ask for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._components import Components
from ansible_collections.bitflow.lms.plugins.module_utils._release import Build, Releases
from ansible_collections.bitflow.lms.plugins.module_utils._release_plan import Plan, Request, Tree, decide, result

# Seconds in which what changed last is left alone when releases are pruned: somebody may still be at work on it.
MIN_AGE = 300


def change(releases: Releases, request: Request, build_of: Callable[[], Build], check_mode: bool) -> dict[str, Any]:
    """Bring the releases into the state that is asked for, and return what the module release returns.

    How a release is put together is only asked when something is to be done: on a bare host its users need not exist before.
    """
    components = Components(releases.root, releases.now)

    def look() -> tuple[Tree, Plan, list[str]]:
        tree = releases.read(with_open=request.state == "pruned")
        plan = decide(tree, request, releases.now(), foresee=check_mode)
        return tree, plan, components.prunable(plan.after) if request.state == "pruned" else []

    before, plan, going = look()
    after = plan.after
    if (plan.steps or going) and not check_mode:
        build = build_of()
        with releases.locked(build.owner):
            # Somebody else may have been at work until now.
            before, plan, going = look()
            after = releases.carry_out(plan, build)
            components.remove(going)
    return result(before, plan, after, request.release, str(releases.root), going)


def prune(releases: Releases, keep: int, build_of: Callable[[], Build], check_mode: bool) -> dict[str, Any]:
    """Remove all but the newest good releases."""
    return change(releases, Request("pruned", keep=keep, min_age=MIN_AGE), build_of, check_mode)
