#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nginx_traffic_info
short_description: Say where the traffic of the own load balancer goes
version_added: 1.0.0
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Reads the weights of the sites, asks nginx whether it acts by them and the servers whether they are healthy, and names what a person
    should look at. It runs on the host of the load balancer.
options:
  routes:
    description:
      - The sites. Left out, all sites that have colours.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - The name of the site.
        type: str
        required: true
  min_healthy:
    description:
      - How many healthy servers a colour needs to be called ready.
    type: int
    default: 1
  expect:
    description:
      - Weights that the sites should have. Others are a finding.
    type: dict
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - bitflow.lms.traffic_directory
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  platform:
    platforms: linux
seealso:
  - module: bitflow.lms.nginx_traffic
  - module: bitflow.lms.traffic_rollout
"""

EXAMPLES = r"""
- name: Ask where the traffic goes
  bitflow.lms.nginx_traffic_info:
  register: traffic

- name: Show what looks wrong
  ansible.builtin.debug:
    var: traffic.findings
"""

RETURN = r"""
live:
  description: The colour that gets all traffic of all sites. None where traffic is shared, or where a site has lost its weights.
  returned: always
  type: str
  sample: blue
routes:
  description: The sites, sorted.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The name of the site.
      returned: always
      type: str
      sample: api
    weights:
      description: The weight of each colour that is attached, in percent. Empty where the site has lost them.
      returned: always
      type: dict
      sample: {blue: 90, green: 10}
    live:
      description: The colour that gets all of its traffic, if there is one.
      returned: always
      type: str
      sample: null
    verified:
      description: Whether nginx, when it is asked, acts by these weights.
      returned: always
      type: bool
      sample: true
groups:
  description: The colours of each site, sorted. Those of a site that has lost its weights are left out.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The site and the colour.
      returned: always
      type: str
      sample: api-green
    route:
      description: The site.
      returned: always
      type: str
      sample: api
    colour:
      description: The colour.
      returned: always
      type: str
      sample: green
    weight:
      description: Its weight in percent.
      returned: always
      type: int
      sample: 10
    ready:
      description: Whether it could get traffic.
      returned: always
      type: bool
      sample: true
    fault:
      description: Why it could not, else empty.
      returned: always
      type: str
      sample: ""
    counts:
      description: How many servers are in each state.
      returned: always
      type: dict
      sample: {healthy: 2}
    targets:
      description: The servers.
      returned: always
      type: list
      elements: dict
      sample: [{group: api-green, id: 192.0.2.11, port: 8000, state: healthy, reason: ""}]
findings:
  description: What a person should look at, one sentence each, such as a colour with traffic that has no healthy server.
  returned: always
  type: list
  elements: str
  sample: []
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_info import run
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_sites import traffic_directory_argspec


def main() -> None:
    """Read the options, look, report."""
    module = AnsibleModule(
        argument_spec={
            **traffic_directory_argspec(),
            "routes": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"name": {"type": "str", "required": True}},
            },
            "min_healthy": {"type": "int", "default": 1},
            "expect": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module.params)
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
