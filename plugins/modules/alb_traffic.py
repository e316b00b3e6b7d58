#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: alb_traffic
short_description: Weigh the target groups of an Application Load Balancer
version_added: 1.0.0
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Gives listeners and rules of an Application Load Balancer of AWS their weights, several of them in one task. Of their actions only the
    one that forwards is changed; authentication, its order, certificates and other listeners stay.
  - Weights count by their proportion and in no order, so that V(1) to V(0) is the same as V(100) to V(0). A group with the weight 0 stays
    in the action; one that O(weights) leaves out is taken off.
  - A group that gets more traffic than before has to be healthy, as O(gate) says, before anything is changed. The load balancer checks only
    groups that an action names, so give a new group the weight 0 first.
  - Each listener or rule is changed in one call. When one of them fails, those before it get their weights back.
  - What was written is read back, and then O(propagation_wait) passes before the task ends. Only after that take targets away.
  - Fails where all weights are 0, where a group would get traffic that is empty, unused or unhealthy, where a group that has traffic is not
    named, where somebody else changed the weights, and where stickiness outlives O(retain).
options:
  routes:
    description:
      - The listeners and rules. A listener stands for its default action.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - What results and messages call it. Left out, load balancer, port and priority make its name, such as V(lms:443/10).
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
          - Priority of the rule within its listener. Left out, the default action is meant.
        type: int
      weights:
        description:
          - Weights of this route alone, in place of O(weights).
        type: dict
      expect:
        description:
          - What this route has to have beforehand, in place of O(expect).
        type: dict
  weights:
    description:
      - Names or ARNs of target groups, each with a whole number from 0 to 999, which may be a string.
    type: dict
  expect:
    description:
      - Weights that the routes have to have beforehand, by proportion. The task fails where they have others, and changes nothing. A route
        that has the wanted weights already may keep them, so that a task can be repeated.
      - Whatever it is, each route is read again before it is changed, and has to be as it was when the task decided.
    type: dict
  stickiness:
    description:
      - Whether clients stay with the group of their first request. Left out, it stays as it is.
    type: dict
    suboptions:
      enabled:
        description:
          - Whether they do.
        type: bool
        required: true
      seconds:
        description:
          - For how long. Needed where it is enabled.
        type: int
  retain:
    description:
      - For how long you keep the targets of a group that loses its last weight (seconds). Stickiness that lasts longer would leave its
        clients with nobody, so the task fails then.
    type: float
    default: 0
  gate:
    description:
      - How healthy a group has to be before it gets more traffic.
    type: dict
    default: {}
    suboptions:
      min_healthy:
        description:
          - How many of its targets have to be healthy.
        type: int
        default: 1
      consecutive:
        description:
          - How many looks in a row have to find it so. A new target counts as healthy after a single passed check.
        type: int
        default: 3
      interval:
        description:
          - Pause between two looks (seconds). AWS limits how often an account may ask.
        type: float
        default: 5
      timeout:
        description:
          - For how long to wait until it is healthy (seconds).
        type: float
        default: 300
  verify_timeout:
    description:
      - For how long to read back what was written until AWS answers with it (seconds).
    type: float
    default: 30
  propagation_wait:
    description:
      - How long the task goes on after traffic was moved, until all nodes of the load balancer go by the new weights (seconds). AWS
        promises no time.
    type: float
    default: 60
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - bitflow.lms.aws_connection
attributes:
  check_mode:
    support: full
    details:
      - Returns the plan. Looks at the health of the groups once, and warns of those that could not take traffic now.
  diff_mode:
    support: full
  platform:
    platforms: linux
notes:
  - IAM has to allow C(elasticloadbalancing:DescribeListeners), C(elasticloadbalancing:DescribeLoadBalancers),
    C(elasticloadbalancing:DescribeRules), C(elasticloadbalancing:DescribeTargetGroups), C(elasticloadbalancing:DescribeTargetHealth),
    C(elasticloadbalancing:ModifyListener) and C(elasticloadbalancing:ModifyRule).
seealso:
  - module: bitflow.lms.alb_traffic_info
  - module: bitflow.lms.alb_targets
"""

EXAMPLES = r"""
- name: Have the load balancer check the targets of green
  bitflow.lms.alb_traffic:
    routes:
      - load_balancer: lms
        port: 443
    weights:
      lms-blue: 100
      lms-green: 0

- name: Give green a tenth once three of its targets are healthy
  bitflow.lms.alb_traffic:
    routes:
      - load_balancer: lms
        port: 443
      - load_balancer: lms
        port: 443
        priority: 10
    weights:
      lms-blue: 90
      lms-green: 10
    expect:
      lms-blue: 100
      lms-green: 0
    gate:
      min_healthy: 3

- name: Switch the API and the front end together
  bitflow.lms.alb_traffic:
    routes:
      - name: api
        load_balancer: lms
        port: 443
        priority: 10
        weights:
          api-blue: 0
          api-green: 100
      - name: student
        load_balancer: lms
        port: 443
        weights:
          student-blue: 0
          student-green: 100
"""

RETURN = r"""
before:
  description: The weights of each route beforehand.
  returned: always
  type: dict
  sample: {"lms:443": {lms-blue: 100, lms-green: 0}}
after:
  description: The weights of each route afterwards. In check mode those that it would have.
  returned: always
  type: dict
  sample: {"lms:443": {lms-blue: 90, lms-green: 10}}
live:
  description: The group that gets all traffic of all routes afterwards. None where traffic is shared.
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
    changes:
      description: What becomes of each group's weight. C(none) stands for a group that is not there.
      returned: always
      type: dict
      sample: {lms-blue: 100->90, lms-green: 0->10}
    sticky_seconds:
      description: For how long clients stay with their group; 0 where they do not.
      returned: always
      type: int
      sample: 0
health:
  description: The groups that get more traffic than before, as they were found.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The group.
      returned: always
      type: str
      sample: lms-green
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
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._alb import routes_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._alb_traffic import Settings, open_provider, run
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api, aws_argspec, client_for
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock


def main() -> None:
    """Read the options, move the traffic, report."""
    module = AnsibleModule(
        argument_spec={
            **aws_argspec(),
            "routes": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {**routes_argspec(), "weights": {"type": "dict"}, "expect": {"type": "dict"}},
            },
            "weights": {"type": "dict"},
            "expect": {"type": "dict"},
            "stickiness": {"type": "dict", "options": {"enabled": {"type": "bool", "required": True}, "seconds": {"type": "int"}}},
            "retain": {"type": "float", "default": 0},
            "gate": {
                "type": "dict",
                "default": {},
                "options": {
                    "min_healthy": {"type": "int", "default": 1},
                    "consecutive": {"type": "int", "default": 3},
                    "interval": {"type": "float", "default": 5},
                    "timeout": {"type": "float", "default": 300},
                },
            },
            "verify_timeout": {"type": "float", "default": 30},
            "propagation_wait": {"type": "float", "default": 60},
        },
        required_together=[["access_key", "secret_key"]],
        supports_check_mode=True,
    )
    try:
        settings = Settings.of(module.params)
        provider, wanted = open_provider(Api(client_for("elbv2", module.params)), module.params)
        outcome = run(provider, wanted, settings, module.check_mode, Clock())
    except LmsError as error:
        module.fail_json(**error.as_result())
    for warning in outcome.warnings:
        module.warn(warning)
    module.exit_json(**outcome.as_result())


if __name__ == "__main__":
    main()
