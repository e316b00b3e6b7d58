# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation fragments of the backups and their argument specifications describe the same options."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from ansible_collections.bitflow.lms.plugins.doc_fragments import backup_encryption, backup_name, backup_repository
from ansible_collections.bitflow.lms.plugins.module_utils._backup_encryption import encryption_argspec, identity_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._backup_repositories import name_argspec, repository_argspec

COMPARED = ("type", "required", "default", "choices", "elements")
FRAGMENTS = {
    "backup_repository": (backup_repository.ModuleDocFragment.DOCUMENTATION, repository_argspec()),
    "backup_name": (backup_name.ModuleDocFragment.DOCUMENTATION, name_argspec()),
    "backup_encryption": (backup_encryption.ModuleDocFragment.DOCUMENTATION, encryption_argspec()),
    "backup_encryption.identity": (backup_encryption.ModuleDocFragment.IDENTITY, identity_argspec()),
}


def skeleton(options: dict[str, Any], inner: str) -> dict[str, Any]:
    """Return what documentation and specification have in common."""
    return {
        name: {**{key: option[key] for key in COMPARED if key in option}, "options": skeleton(option.get(inner, {}), inner)}
        for name, option in options.items()
    }


@pytest.mark.parametrize("name", FRAGMENTS)
def test_fragment_and_argument_specification_list_the_same_options(name: str) -> None:
    fragment, specification = FRAGMENTS[name]

    assert skeleton(yaml.safe_load(fragment)["options"], "suboptions") == skeleton(specification, "options")


def test_secrets_are_kept_out_of_logs() -> None:
    s3 = repository_argspec()["s3"]["options"]
    secret = sorted(name for name, option in {**s3, **identity_argspec()}.items() if option.get("no_log"))

    assert secret == ["identity", "secret_key", "session_token"]
