# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation fragment capacity and capacity_argspec describe the same options."""

from __future__ import annotations

import yaml
from ansible_collections.bitflow.lms.plugins.doc_fragments.capacity import ModuleDocFragment
from ansible_collections.bitflow.lms.plugins.module_utils._capacity import capacity_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import LEAST_INTERVAL


def test_fragment_and_argument_specification_list_the_same_options() -> None:
    documented = yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]

    assert {name: {key: option[key] for key in ("type", "default")} for name, option in documented.items()} == capacity_argspec()


def test_the_fragment_tells_the_shortest_pause() -> None:
    assert f"(seconds), {LEAST_INTERVAL:g} at least" in ModuleDocFragment.DOCUMENTATION
