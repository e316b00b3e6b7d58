# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation fragment aws_connection and aws_argspec describe the same options."""

from __future__ import annotations

import yaml
from ansible_collections.bitflow.lms.plugins.doc_fragments.aws_connection import ModuleDocFragment
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import ATTEMPTS, aws_argspec


def test_fragment_and_argument_specification_list_the_same_options() -> None:
    documented = yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]

    assert {name: {"type": option["type"], "aliases": option["aliases"]} for name, option in documented.items()} == {
        name: {key: option[key] for key in ("type", "aliases")} for name, option in aws_argspec().items()
    }


def test_the_fragment_tells_how_often_a_call_is_made() -> None:
    assert f"up to {ATTEMPTS} times" in ModuleDocFragment.DOCUMENTATION
