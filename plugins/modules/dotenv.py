#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: dotenv
short_description: Write the environment file of a Laravel application
version_added: "1.0.0"
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Writes a whole C(.env) file, so that Laravel reads back exactly the values that are given, whatever characters they hold.
  - The file is compared by what it means, not by its bytes. It is written aside, read back, and renamed into place.
    At no moment may anybody else read it.
  - Keys that O(values) does not have are removed.
  - No value appears in a result, in a diff or in a log. The diff shows the names of the keys.
  - Laravel itself reads the texts V(true), V(false), V(null) and V(empty) as something else than text, also in quotes, and takes away
    a pair of quotes around a whole value.
options:
  path:
    description:
      - The file to write. A link in its place is replaced, and what it points to is left alone.
    type: path
    required: true
  values:
    description:
      - The keys and their values, which are texts, numbers, booleans or null.
    type: dict
    required: true
  required:
    description:
      - Keys that must have a value.
    type: list
    elements: str
    default: []
  owner:
    description:
      - The user who owns the file.
    type: str
  group:
    description:
      - The group of the file.
    type: str
  mode:
    description:
      - The mode of the file. It must give nothing to others.
    type: str
    default: "0640"
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - bitflow.lms.lease
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  platform:
    platforms: posix
seealso:
  - module: bitflow.lms.deploy_lock
"""

EXAMPLES = r"""
- name: Write the environment of the release
  bitflow.lms.dotenv:
    path: /srv/lms/backend/releases/20261123210000-abc1234/.env
    values:
      APP_ENV: production
      APP_DEBUG: false
      APP_KEY: "{{ vault_app_key }}"
      DB_PASSWORD: "{{ vault_db_password }}"
    required:
      - APP_KEY
      - DB_PASSWORD
    owner: lms-deploy
    group: lms
    mode: "0640"
"""

RETURN = r"""
keys_added:
  description: The keys that the file did not have. All of them if there was no file that could be read.
  returned: always
  type: list
  elements: str
  sample: [APP_KEY]
keys_removed:
  description: The keys that were removed.
  returned: always
  type: list
  elements: str
  sample: []
keys_changed:
  description: The keys whose value differed.
  returned: always
  type: list
  elements: str
  sample: [DB_PASSWORD]
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._dotenv import Dotenv, compare, masked, value_texts
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import Owner, mode_number
from ansible_collections.bitflow.lms.plugins.module_utils._lease import acting, lease_argspec


def run(dotenv: Dotenv, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Write the file where it differs, and return the module's result."""
    mode = mode_number(params["mode"], "mode")
    if mode & 0o007:
        raise LmsError(f"mode is {params['mode']}, which lets everybody read secrets. Give nothing to others, as 0640 does.")
    texts = value_texts(params["values"], params["required"], str(dotenv.path))
    found = dotenv.read()
    before = found or {}
    difference = compare(before, texts)
    changed = bool(difference) or found is None or not dotenv.has(mode, params["owner"], params["group"])
    if changed and not check_mode:
        dotenv.write(texts, mode, Owner.of(params["owner"], params["group"]))
    return {
        "changed": changed,
        "keys_added": list(difference.added),
        "keys_removed": list(difference.removed),
        "keys_changed": list(difference.changed),
        "diff": {
            "before_header": str(dotenv.path),
            "after_header": str(dotenv.path),
            "before": masked(before),
            "after": masked(texts, difference.changed),
        },
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **lease_argspec(),
            "path": {"type": "path", "required": True},
            "values": {"type": "dict", "required": True, "no_log": True},
            "required": {"type": "list", "elements": "str", "default": []},
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "mode": {"type": "str", "default": "0640"},
        },
        supports_check_mode=True,
    )
    params = dict(module.params)
    # From here on nothing that the module says holds a value. Masking every text that equals one would only spoil
    # the names of keys and paths: a database that is called lms would blot out /srv/lms.
    module.params["values"] = {str(key): "***" for key in params["values"]}
    module.no_log_values.clear()
    try:
        with acting(None if module.check_mode else params["lease"]):
            outcome = run(Dotenv(Path(params["path"])), params, module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**outcome)


if __name__ == "__main__":
    main()
