#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ssh_connection_info
short_description: Say by which SSH connection Ansible came to a host
version_added: 1.0.0
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Says from which address and port the host sees Ansible come, which port of the host it uses, and as whom it logs in. These are the
    values that a firewall or the SSH server decide by, also behind address translation or a jump host.
  - Also where sudo or su removed them from the environment. Processes of other users are only seen by root.
  - Where Ansible did not come by SSH, all values are empty.
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  platform:
    platforms: linux
seealso:
  - module: bitflow.lms.nftables_ruleset
"""

EXAMPLES = r"""
- name: Ask the host how Ansible came to it
  bitflow.lms.ssh_connection_info:
  register: connection

- name: Refuse to take away the own login
  ansible.builtin.fail:
    msg: Ansible logs in as root.
  when: connection.user == 'root'
"""

RETURN = r"""
client:
  description: Address of the client, empty without an SSH connection.
  returned: always
  type: str
  sample: 192.0.2.1
client_port:
  description: Port of the client, 0 without an SSH connection. Another port is another connection.
  returned: always
  type: int
  sample: 51234
port:
  description: Port of the SSH server, 0 without an SSH connection.
  returned: always
  type: int
  sample: 22
user:
  description: User that logged in, empty without an SSH connection.
  returned: always
  type: str
  sample: admin
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._ssh_connection import connection_of


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, **connection_of(os.getpid()))


if __name__ == "__main__":
    main()
