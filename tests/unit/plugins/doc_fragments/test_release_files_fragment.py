# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a release's files: what is documented is what is accepted."""

from __future__ import annotations

import yaml
from ansible_collections.bitflow.lms.plugins.doc_fragments.release_files import ModuleDocFragment
from ansible_collections.bitflow.lms.plugins.module_utils._release import release_files_argspec


def test_the_documentation_is_the_argument_specification() -> None:
    documented = {
        name: {key: value for key, value in option.items() if key != "description"}
        for name, option in yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"].items()
    }

    assert documented == release_files_argspec()
