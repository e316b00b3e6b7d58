#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nftables_ruleset
short_description: Load a table of nftables, with a way back
version_added: 1.0.0
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Loads a ruleset into the kernel where the loaded table or the file for the next boot differs from it. A rule that was removed or added
    by hand is found too, because nft itself says what the ruleset would load, in an empty network namespace.
  - nft judges the ruleset first; one that it refuses changes nothing. Loading is one step; there is no moment without rules.
  - With O(confirm_timeout), a timer of systemd on the host brings the former table back, unless a task with O(state=confirmed) comes in
    time. That task is to run over a new connection. Only then is O(path) written, so that a reboot mends a host which shut everybody out.
  - A ruleset of an earlier run that nobody confirmed is taken back before anything else.
  - Other tables, such as those of Docker or fail2ban, are not touched, as long as O(content) names its own table alone.
options:
  content:
    description:
      - The ruleset. It has to empty its own table first, in the two lines C(table inet lms) and C(delete table inet lms).
    type: str
    required: true
  path:
    description:
      - File that the ruleset is kept in, for the next boot.
    type: path
    default: /etc/nftables.conf
  table:
    description:
      - Family and name of the table that the ruleset loads.
    type: str
    default: inet lms
  state:
    description:
      - V(loaded) loads the ruleset. V(confirmed) ends the way back and writes the file, or fails where the former table is back already.
    type: str
    choices: [loaded, confirmed]
    default: loaded
  confirm_timeout:
    description:
      - Seconds after which the former table comes back.
      - V(0) gives up the way back. The file is written at once, and a ruleset that shuts everybody out stays.
    type: int
    default: 60
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  platform:
    platforms: linux
seealso:
  - module: bitflow.lms.ssh_connection_info
  - module: ansible.builtin.wait_for_connection
"""

EXAMPLES = r"""
- name: Load the ruleset
  bitflow.lms.nftables_ruleset:
    content: "{{ lookup('ansible.builtin.template', 'nftables.conf.j2') }}"
  register: loaded

- name: Confirm it over a new connection
  when: loaded.confirm_within > 0
  block:
    - name: Connect anew
      ansible.builtin.wait_for_connection:

    - name: Keep the ruleset
      bitflow.lms.nftables_ruleset:
        content: "{{ lookup('ansible.builtin.template', 'nftables.conf.j2') }}"
        state: confirmed
"""

RETURN = r"""
confirm_within:
  description: Seconds within which the ruleset has to be confirmed, 0 where nothing waits for it.
  returned: always
  type: int
  sample: 60
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._nftables import Firewall, confirm, load


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "content": {"type": "str", "required": True},
            "path": {"type": "path", "default": "/etc/nftables.conf"},
            "table": {"type": "str", "default": "inet lms"},
            "state": {"type": "str", "choices": ["loaded", "confirmed"], "default": "loaded"},
            "confirm_timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    params = module.params
    if params["confirm_timeout"] < 0:
        module.fail_json(msg=f"confirm_timeout is {params['confirm_timeout']}. It is a number of seconds, or 0 for no way back.")
    if len(params["table"].split()) != 2:
        module.fail_json(msg=f"table is {params['table']!r}. It is a family and a name, such as inet lms.")
    firewall = Firewall.of(Path(params["path"]), params["table"])
    try:
        if params["state"] == "loaded":
            result = load(firewall, params["content"], params["confirm_timeout"], module.check_mode)
        else:
            result = confirm(firewall, params["content"], module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
