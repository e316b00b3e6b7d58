#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: alb_traffic_info
short_description: Say where the traffic of an Application Load Balancer goes
version_added: 1.0.0
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Reads the weights of listeners and rules, the states of the targets behind them, and names what a person should look at.
options:
  routes:
    description:
      - The listeners and rules, named as in M(bitflow.lms.alb_traffic). A listener stands for its default action.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - What results and messages call it.
        type: str
      load_balancer:
        description:
          - Name or ARN of the load balancer, together with O(routes[].port).
        type: str
      port:
        description:
          - Port of the listener.
        type: int
      listener_arn:
        description:
          - ARN of the listener, in place of O(routes[].load_balancer) and O(routes[].port).
        type: str
      rule_arn:
        description:
          - ARN of the rule, in place of all others.
        type: str
      priority:
        description:
          - Priority of the rule within its listener.
        type: int
  load_balancer:
    description:
      - Name or ARN of a load balancer, for all its listeners and rules that forward.
    type: str
  min_healthy:
    description:
      - How many healthy targets a group needs to be called ready.
    type: int
    default: 1
  expect:
    description:
      - Weights that the routes should have. Others are a finding.
    type: dict
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - bitflow.lms.aws_connection
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  platform:
    platforms: linux
notes:
  - IAM has to allow C(elasticloadbalancing:DescribeListeners), C(elasticloadbalancing:DescribeLoadBalancers),
    C(elasticloadbalancing:DescribeRules) and C(elasticloadbalancing:DescribeTargetHealth).
seealso:
  - module: bitflow.lms.alb_traffic
"""

EXAMPLES = r"""
- name: Ask where the traffic goes
  bitflow.lms.alb_traffic_info:
    load_balancer: lms
  register: traffic

- name: Show what looks wrong
  ansible.builtin.debug:
    var: traffic.findings
"""

RETURN = r"""
live:
  description: The group that gets all traffic of all routes. None where traffic is shared, or where several applications have routes.
  returned: always
  type: str
  sample: lms-blue
routes:
  description: The routes, sorted.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: What it is called.
      returned: always
      type: str
      sample: lms:443
    listener_arn:
      description: Its listener.
      returned: always
      type: str
      sample: arn:aws:elasticloadbalancing:eu-central-1:123456789012:listener/app/lms/14a4ddb2605b6de1/dca646a2ccd32cf8
    rule_arn:
      description: Its rule; none for the default action.
      returned: always
      type: str
      sample: null
    weights:
      description: The weight of each group.
      returned: always
      type: dict
      sample: {lms-blue: 90, lms-green: 10}
    percent:
      description: The share of each group.
      returned: always
      type: dict
      sample: {lms-blue: 90.0, lms-green: 10.0}
    sticky_seconds:
      description: For how long clients stay with their group; 0 where they do not.
      returned: always
      type: int
      sample: 0
    live:
      description: The group that gets all of its traffic, if there is one.
      returned: always
      type: str
      sample: null
groups:
  description: The target groups that the routes name, sorted.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The group.
      returned: always
      type: str
      sample: lms-green
    arn:
      description: Its ARN.
      returned: always
      type: str
      sample: arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/lms-green/4956410fadb4eddc
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
      description: How many targets are in each state.
      returned: always
      type: dict
      sample: {healthy: 3}
    targets:
      description: The targets.
      returned: always
      type: list
      elements: dict
      sample: [{group: lms-green, id: 10.0.2.11, port: 8080, state: healthy, reason: ""}]
    weight_on:
      description: The routes on which it has weight.
      returned: always
      type: list
      elements: str
      sample: ["lms:443"]
findings:
  description: What a person should look at, one sentence each, such as a group with traffic that has no healthy target.
  returned: always
  type: list
  elements: str
  sample: []
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._alb import routes_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._alb_traffic_info import run
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api, aws_argspec, client_for
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError


def main() -> None:
    """Read the options, look, report."""
    module = AnsibleModule(
        argument_spec={
            **aws_argspec(),
            "routes": {"type": "list", "elements": "dict", "default": [], "options": routes_argspec()},
            "load_balancer": {"type": "str"},
            "min_healthy": {"type": "int", "default": 1},
            "expect": {"type": "dict"},
        },
        required_together=[["access_key", "secret_key"]],
        supports_check_mode=True,
    )
    try:
        result = run(Api(client_for("elbv2", module.params)), module.params)
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
