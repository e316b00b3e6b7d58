# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation fragment traffic_directory and traffic_directory_argspec describe the same option."""

from __future__ import annotations

import yaml
from ansible_collections.bitflow.lms.plugins.doc_fragments.traffic_directory import ModuleDocFragment
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_sites import traffic_directory_argspec


def test_fragment_and_argument_specification_describe_the_same_option() -> None:
    documented = yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]

    assert {name: {"type": option["type"], "default": option["default"]} for name, option in documented.items()} == (
        traffic_directory_argspec()
    )
