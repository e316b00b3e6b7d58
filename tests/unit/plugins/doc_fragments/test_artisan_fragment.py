# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation fragment artisan and artisan_argspec describe the same options."""

from __future__ import annotations

import yaml
from ansible_collections.bitflow.lms.plugins.doc_fragments.artisan import ModuleDocFragment
from ansible_collections.bitflow.lms.plugins.module_utils._artisan import artisan_argspec

COMPARED = ("type", "required", "default")


def test_fragment_and_argument_specification_list_the_same_options() -> None:
    documented = yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]

    assert {name: {key: option[key] for key in COMPARED if key in option} for name, option in documented.items()} == {
        name: {key: option[key] for key in COMPARED if key in option} for name, option in artisan_argspec().items()
    }


def test_environment_is_never_logged() -> None:
    assert artisan_argspec()["environment"]["no_log"] is True
