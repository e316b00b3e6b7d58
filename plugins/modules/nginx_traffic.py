#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nginx_traffic
short_description: Weigh the colours of the sites of the own load balancer
version_added: 1.0.0
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Gives sites of the load balancer that the role P(bitflow.lms.load_balancer#role) sets up their weights, several of them in one task. It
    runs on the host of the load balancer.
  - A site goes by its new weights from its next request on. nginx is not reloaded, so no connection is closed, and a request that is under
    way ends where it began.
  - Weights count by their proportion and in no order, so that V(1) to V(0) is the same as V(100) to V(0). They have to come to whole
    percents. A colour with the weight 0 stays attached; one that O(weights) leaves out is taken off.
  - A colour that gets more traffic than before has to be healthy, as O(gate) says, before anything is changed. Its servers are asked over
    HTTP from the load balancer. Only colours that are attached are asked, so give a new colour the weight 0 first.
  - Each site is changed in one step. nginx is then asked which colour it would choose for each hundredth of its visitors. When one site
    fails, those before it get their weights back.
  - Fails where all weights are 0, where a colour would get traffic that has no server, is not attached or is unhealthy, where a colour that
    has traffic is not named, where somebody else changed the weights, and where a site has lost them.
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
      weights:
        description:
          - Weights of this site alone, in place of O(weights).
        type: dict
      expect:
        description:
          - What this site has to have beforehand, in place of O(expect).
        type: dict
  weights:
    description:
      - Names of colours, each with a whole number from 0 to 999, which may be a string.
    type: dict
  expect:
    description:
      - Weights that the sites have to have beforehand, by proportion. The task fails where they have others, and changes nothing. A site
        that has the wanted weights already may keep them, so that a task can be repeated.
      - Whatever it is, each site is read again before it is changed, and has to be as it was when the task decided.
    type: dict
  gate:
    description:
      - How healthy a colour has to be before it gets more traffic.
    type: dict
    default: {}
    suboptions:
      min_healthy:
        description:
          - How many of its servers have to be healthy.
        type: int
        default: 1
      consecutive:
        description:
          - How many looks in a row have to find it so.
        type: int
        default: 3
      interval:
        description:
          - Pause between two looks (seconds).
        type: float
        default: 1
      timeout:
        description:
          - For how long to wait until it is healthy (seconds).
        type: float
        default: 60
  verify_timeout:
    description:
      - For how long to ask nginx until it acts by what was written (seconds).
    type: float
    default: 10
  propagation_wait:
    description:
      - How long the task goes on after traffic was moved, so that requests that were decided before have reached their server (seconds).
    type: float
    default: 1
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - bitflow.lms.traffic_directory
attributes:
  check_mode:
    support: full
    details:
      - Returns the plan. Looks at the health of the colours once, and warns of those that could not take traffic now.
  diff_mode:
    support: full
  platform:
    platforms: linux
notes:
  - Weights that are in place are written again where nginx does not act by them, which mends files that somebody changed.
  - How the weights get into the load balancer says C(method) in the file C(sites.json) of O(traffic_directory). The role writes C(flag).
    Who runs a load balancer without the role may write the file, and one of the other methods.
  - With C(reload), nginx includes C(<traffic_directory>/*/split.conf). That file of a site C(api) splits C($traffic_key) and gives the
    colour in C($traffic_colour_api). The address C(<status_url>/traffic/api) has to answer with C($traffic_weights_api). The task is
    refused where the configuration sets no C(keepalive_min_timeout), because a reload would lose requests on kept-alive connections. Give
    O(propagation_wait) as much as that time.
  - With C(haproxy), C(socket) is the runtime socket of HAProxy with the level admin, in place of C(status_url). A site is a backend of its
    name, whose servers are named after their colour, such as C(blue1). HAProxy forgets the weights when it is restarted or reloaded, unless
    it loads a server-state-file.
seealso:
  - module: bitflow.lms.nginx_traffic_info
  - module: bitflow.lms.traffic_rollout
"""

EXAMPLES = r"""
- name: Attach green without giving it traffic
  bitflow.lms.nginx_traffic:
    weights:
      blue: 100
      green: 0

- name: Give green a tenth of the API once two of its servers are healthy
  bitflow.lms.nginx_traffic:
    routes:
      - name: api
    weights:
      blue: 90
      green: 10
    expect:
      blue: 100
      green: 0
    gate:
      min_healthy: 2

- name: Switch the API and the front end together
  bitflow.lms.nginx_traffic:
    routes:
      - name: api
      - name: student
    weights:
      blue: 0
      green: 100
"""

RETURN = r"""
before:
  description: The weights of each site beforehand, in percent.
  returned: always
  type: dict
  sample: {api: {blue: 100, green: 0}}
after:
  description: The weights of each site afterwards, in percent. In check mode those that it would have.
  returned: always
  type: dict
  sample: {api: {blue: 90, green: 10}}
live:
  description: The colour that gets all traffic of all sites afterwards. None where traffic is shared.
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
    changes:
      description: What becomes of each colour's weight. C(none) stands for a colour that is not attached.
      returned: always
      type: dict
      sample: {blue: 100->90, green: 0->10}
health:
  description: The colours that get more traffic than before, of each site, as they were found.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The site and the colour.
      returned: always
      type: str
      sample: api-green
    ready:
      description: Whether it may get traffic.
      returned: always
      type: bool
      sample: true
    fault:
      description: Why it may not, else empty.
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
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_sites import traffic_directory_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_switch import Settings, open_provider, run
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock


def main() -> None:
    """Read the options, move the traffic, report."""
    module = AnsibleModule(
        argument_spec={
            **traffic_directory_argspec(),
            "routes": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"name": {"type": "str", "required": True}, "weights": {"type": "dict"}, "expect": {"type": "dict"}},
            },
            "weights": {"type": "dict"},
            "expect": {"type": "dict"},
            "gate": {
                "type": "dict",
                "default": {},
                "options": {
                    "min_healthy": {"type": "int", "default": 1},
                    "consecutive": {"type": "int", "default": 3},
                    "interval": {"type": "float", "default": 1},
                    "timeout": {"type": "float", "default": 60},
                },
            },
            "verify_timeout": {"type": "float", "default": 10},
            "propagation_wait": {"type": "float", "default": 1},
        },
        supports_check_mode=True,
    )
    try:
        settings = Settings.of(module.params)
        provider, wanted = open_provider(module.params)
        outcome = run(provider, wanted, settings, module.check_mode, Clock())
    except LmsError as error:
        module.fail_json(**error.as_result())
    for warning in outcome.warnings:
        module.warn(warning)
    module.exit_json(**outcome.as_result())


if __name__ == "__main__":
    main()
