#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: alb_targets
short_description: Register targets with a target group, or take them out of it
version_added: 1.0.0
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Registers instances or addresses with a target group of AWS and waits until all of them are healthy, or deregisters them and waits until
    all of them ended their requests.
  - A target is told apart by its id and its port, so that one host may serve on several ports.
  - A target that is draining is registered again. Other targets of the group are left alone.
  - Fails where a group that has weight on a listener or rule would keep fewer than O(min_healthy) healthy targets.
  - Fails at once, and not at O(wait_timeout), where it should wait for a group that no listener and no rule names, because the load
    balancer does not check its targets.
options:
  group:
    description:
      - Name or ARN of the target group.
    type: str
    required: true
  targets:
    description:
      - The targets.
    type: list
    elements: dict
    required: true
    suboptions:
      id:
        description:
          - Id of an instance, or an IP address, as the group's type asks.
        type: str
        required: true
      port:
        description:
          - Its port. Left out, that of the group.
        type: int
      availability_zone:
        description:
          - Where an address outside the network of the group is. V(all) for one outside AWS.
        type: str
  state:
    description:
      - Whether the group should have them.
    type: str
    choices: [present, absent]
    default: present
  wait:
    description:
      - Whether to wait until they are healthy, or gone.
    type: bool
    default: true
  wait_timeout:
    description:
      - For how long (seconds). A target that leaves drains for as long as its group says, which is 300 seconds unless somebody changed it.
    type: float
    default: 600
  interval:
    description:
      - Pause between two looks (seconds). AWS limits how often an account may ask.
    type: float
    default: 5
  consecutive:
    description:
      - How many looks in a row have to find all of them healthy. A new target counts as healthy after a single passed check.
    type: int
    default: 3
  min_healthy:
    description:
      - How many healthy targets stay in a group that has weight.
    type: int
    default: 1
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - bitflow.lms.aws_connection
attributes:
  check_mode:
    support: full
    details:
      - Returns the plan, with the states that the targets would have at first. Waits for nothing.
  diff_mode:
    support: full
  platform:
    platforms: linux
notes:
  - IAM has to allow C(elasticloadbalancing:DeregisterTargets), C(elasticloadbalancing:DescribeListeners),
    C(elasticloadbalancing:DescribeLoadBalancers), C(elasticloadbalancing:DescribeRules), C(elasticloadbalancing:DescribeTargetGroups),
    C(elasticloadbalancing:DescribeTargetHealth) and C(elasticloadbalancing:RegisterTargets).
seealso:
  - module: bitflow.lms.alb_traffic
"""

EXAMPLES = r"""
- name: Register the hosts of green and wait until all are healthy
  bitflow.lms.alb_targets:
    group: lms-green
    targets:
      - id: i-0123456789abcdef0
        port: 8080
      - id: i-0fedcba9876543210
        port: 8080

- name: Take a host out and wait until it has ended its requests
  bitflow.lms.alb_targets:
    group: lms-blue
    targets:
      - id: i-0123456789abcdef0
    state: absent
    min_healthy: 2
"""

RETURN = r"""
group:
  description: The target group.
  returned: always
  type: dict
  contains:
    name:
      description: Its name.
      returned: always
      type: str
      sample: lms-green
    arn:
      description: Its ARN.
      returned: always
      type: str
      sample: arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/lms-green/4956410fadb4eddc
    counts:
      description: How many of all its targets are in each state.
      returned: always
      type: dict
      sample: {healthy: 3}
registered:
  description: The targets that were registered, by id and port. In check mode those that would be.
  returned: always
  type: list
  elements: str
  sample: ["i-0123456789abcdef0:8080"]
deregistered:
  description: The targets that were deregistered. In check mode those that would be.
  returned: always
  type: list
  elements: str
  sample: []
targets:
  description: The targets of the task afterwards, sorted.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Id or address.
      returned: always
      type: str
      sample: i-0123456789abcdef0
    port:
      description: Its port.
      returned: always
      type: int
      sample: 8080
    state:
      description: The state as AWS calls it, or C(missing) for a target that the group does not have.
      returned: always
      type: str
      sample: healthy
    reason:
      description: AWS's reason for a state that is not healthy.
      returned: always
      type: str
      sample: ""
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._alb_targets import ABSENT, PRESENT, run
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api, aws_argspec, client_for
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock


def main() -> None:
    """Read the options, register or deregister, report."""
    module = AnsibleModule(
        argument_spec={
            **aws_argspec(),
            "group": {"type": "str", "required": True},
            "targets": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "id": {"type": "str", "required": True},
                    "port": {"type": "int"},
                    "availability_zone": {"type": "str"},
                },
            },
            "state": {"type": "str", "choices": [PRESENT, ABSENT], "default": PRESENT},
            "wait": {"type": "bool", "default": True},
            "wait_timeout": {"type": "float", "default": 600},
            "interval": {"type": "float", "default": 5},
            "consecutive": {"type": "int", "default": 3},
            "min_healthy": {"type": "int", "default": 1},
        },
        required_together=[["access_key", "secret_key"]],
        supports_check_mode=True,
    )
    try:
        result = run(Api(client_for("elbv2", module.params)), module.params, module.check_mode, Clock())
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
