# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation fragment lease and lease_argspec describe the same options."""

from __future__ import annotations

from typing import Any

import yaml
from ansible_collections.bitflow.lms.plugins.doc_fragments.lease import ModuleDocFragment
from ansible_collections.bitflow.lms.plugins.module_utils._lease import lease_argspec

COMPARED = ("type", "required", "default")


def skeleton(options: dict[str, Any], inner: str) -> dict[str, Any]:
    """Return what documentation and specification have in common."""
    return {
        name: {**{key: option[key] for key in COMPARED if key in option}, "options": skeleton(option.get(inner, {}), inner)}
        for name, option in options.items()
    }


def test_fragment_and_argument_specification_list_the_same_options() -> None:
    documented = yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]

    assert skeleton(documented, "suboptions") == skeleton(lease_argspec(), "options")
