#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: asg_capacity
short_description: Give an auto scaling group its capacity, until every instance serves
version_added: 1.0.0
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Sets the limits and the desired capacity of the auto scaling group that carries a colour, and waits until its instances are in service,
    healthy, and healthy in each target group of the group. Instances that leave are waited for until they have drained and are gone.
  - What is left out stays as it is, unless a limit moves the desired capacity.
  - Fails where a group would shrink whose target group has weight on any listener or rule, and where the targets are on no route, so that
    nobody checks them.
  - Fails, before anything is changed, where instances that are protected from scale-in would have to go, and where a process is suspended
    without which the group cannot get there. Protection and suspended processes are left as they are.
  - Neither creates nor deletes groups, and changes nothing else of them.
options:
  name:
    description:
      - Name of the auto scaling group.
    type: str
    required: true
  min_size:
    description:
      - How small the group may become.
    type: int
  desired_capacity:
    description:
      - How large it should be. Instances may count for more than one, as its policy says.
    type: int
  max_size:
    description:
      - How large it may become.
    type: int
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - bitflow.lms.aws_connection
  - bitflow.lms.capacity
attributes:
  check_mode:
    support: full
    details:
      - Returns the plan, with the instances and targets as they are now. Waits for nothing.
  diff_mode:
    support: full
  platform:
    platforms: linux
notes:
  - IAM has to allow C(autoscaling:DescribeAutoScalingGroups), C(autoscaling:DescribeScalingActivities),
    C(autoscaling:UpdateAutoScalingGroup), C(elasticloadbalancing:DescribeListeners), C(elasticloadbalancing:DescribeLoadBalancers),
    C(elasticloadbalancing:DescribeRules), C(elasticloadbalancing:DescribeTargetGroups) and C(elasticloadbalancing:DescribeTargetHealth).
seealso:
  - module: bitflow.lms.alb_targets
  - module: bitflow.lms.alb_traffic
  - module: bitflow.lms.traffic_rollout
"""

EXAMPLES = r"""
- name: Bring green to the size that it needs for all traffic
  bitflow.lms.asg_capacity:
    name: lms-green
    min_size: 3
    desired_capacity: 3
    max_size: 9

- name: End the instances of blue once it has no weight any more
  bitflow.lms.asg_capacity:
    name: lms-blue
    min_size: 0
    desired_capacity: 0
"""

RETURN = r"""
name:
  description: Name of the auto scaling group.
  returned: success
  type: str
  sample: lms-green
min_size:
  description: How small it may become.
  returned: success
  type: int
  sample: 3
desired_capacity:
  description: How large it should be.
  returned: success
  type: int
  sample: 3
max_size:
  description: How large it may become.
  returned: success
  type: int
  sample: 9
instances:
  description: Its instances, sorted.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Its id.
      returned: always
      type: str
      sample: i-0123456789abcdef0
    state:
      description: Its state as AWS calls it.
      returned: always
      type: str
      sample: InService
    health:
      description: Its health as the auto scaling group sees it.
      returned: always
      type: str
      sample: Healthy
    protected:
      description: Whether it is protected from scale-in.
      returned: always
      type: bool
      sample: false
counts:
  description: How many instances are in each state.
  returned: always
  type: dict
  sample: {InService: 3}
groups:
  description: Its target groups, sorted.
  returned: always
  type: list
  elements: dict
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
      description: How many of its targets are in each state.
      returned: always
      type: dict
      sample: {healthy: 3}
    weight_on:
      description: The listeners and rules on which it has weight.
      returned: always
      type: list
      elements: str
      sample: []
suspended:
  description: The processes of the group that somebody suspended.
  returned: always
  type: list
  elements: str
  sample: []
events:
  description: What the group did meanwhile, the newest last, 10 at most.
  returned: always
  type: list
  elements: str
  sample: ["Launching a new EC2 instance: i-0123456789abcdef0 (Successful)"]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._asg_capacity import run
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api, aws_argspec, client_for
from ansible_collections.bitflow.lms.plugins.module_utils._capacity import capacity_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock


def main() -> None:
    """Read the options, set the capacity, report."""
    module = AnsibleModule(
        argument_spec={
            **aws_argspec(),
            **capacity_argspec(),
            "name": {"type": "str", "required": True},
            "min_size": {"type": "int"},
            "desired_capacity": {"type": "int"},
            "max_size": {"type": "int"},
        },
        required_together=[["access_key", "secret_key"]],
        supports_check_mode=True,
    )
    try:
        autoscaling, elb = Api(client_for("autoscaling", module.params), "autoscaling"), Api(client_for("elbv2", module.params))
        result = run(autoscaling, elb, module.params, module.check_mode, Clock())
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
