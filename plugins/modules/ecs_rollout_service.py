#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ecs_rollout_service
short_description: Roll a task definition out to an ECS service, until its targets are healthy
version_added: 1.0.0
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Gives the service that carries a colour its task definition and its number of tasks, and waits until the deployment is complete and the
    load balancer calls as many targets healthy as there are tasks, in each target group of the service.
  - What is left out stays as it is, so that auto scaling keeps its number of tasks.
  - A deployment that fails ends the task with the reason, from the deployment, from its stopped tasks and from the events of the service,
    whether or not the circuit breaker of ECS is on. Where ECS went back to the definition before, the task fails, too.
  - A failed deployment of the wanted definition is begun again.
  - Fails where a service would lose tasks whose target group has weight on any listener or rule, and where the targets are on no route, so
    that nobody checks them.
  - Neither creates nor deletes services, and changes nothing else of them.
options:
  cluster:
    description:
      - Name or ARN of the cluster.
    type: str
    required: true
  service:
    description:
      - Name or ARN of the service. Its deployment controller has to be C(ECS).
    type: str
    required: true
  task_definition:
    description:
      - The task definition, as V(family:revision), as its ARN, or as V(family) for the newest active revision.
    type: str
  definition:
    description:
      - What the task definition says, with the keys of the API of ECS, such as C(family) and C(containerDefinitions), in place of
        O(task_definition). Where the newest active revision of the family says the same it is used, otherwise a new one is registered.
      - Defaults that AWS adds, the order of environment variables and tags make no difference. What AWS adds to an answer, such as
        C(revision), is left out, so that an answer can be given as it is.
    type: dict
  desired_count:
    description:
      - The number of tasks.
    type: int
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - bitflow.lms.aws_connection
  - bitflow.lms.capacity
attributes:
  check_mode:
    support: full
    details:
      - Returns the plan, with the tasks and targets as they are now. Waits for nothing.
  diff_mode:
    support: full
    details:
      - Shows what a new revision changes. The values of environment variables are hidden.
  platform:
    platforms: linux
notes:
  - IAM has to allow C(ecs:DescribeServices), C(ecs:DescribeTaskDefinition), C(ecs:DescribeTasks), C(ecs:ListTasks),
    C(ecs:RegisterTaskDefinition) and C(ecs:UpdateService), C(iam:PassRole) for the roles of the task, and
    C(elasticloadbalancing:DescribeListeners), C(elasticloadbalancing:DescribeLoadBalancers), C(elasticloadbalancing:DescribeRules),
    C(elasticloadbalancing:DescribeTargetGroups) and C(elasticloadbalancing:DescribeTargetHealth).
seealso:
  - module: bitflow.lms.ecs_run_task
  - module: bitflow.lms.alb_traffic
  - module: bitflow.lms.traffic_rollout
"""

EXAMPLES = r"""
- name: Roll the new version out to green, with the tasks that it needs
  bitflow.lms.ecs_rollout_service:
    cluster: lms
    service: lms-green
    task_definition: lms-backend:42
    desired_count: 3

- name: Roll out an image, whatever revision that becomes
  bitflow.lms.ecs_rollout_service:
    cluster: lms
    service: lms-green
    definition:
      family: lms-backend
      networkMode: awsvpc
      requiresCompatibilities: [FARGATE]
      cpu: 512
      memory: 1024
      executionRoleArn: arn:aws:iam::123456789012:role/lms-execution
      containerDefinitions:
        - name: app
          image: "registry.example.com/lms-backend:{{ version }}"
          portMappings:
            - containerPort: 8080

- name: End the tasks of blue once it has no weight any more
  bitflow.lms.ecs_rollout_service:
    cluster: lms
    service: lms-blue
    desired_count: 0
"""

RETURN = r"""
service:
  description: Name of the service.
  returned: always
  type: str
  sample: lms-green
cluster:
  description: Name of the cluster.
  returned: always
  type: str
  sample: lms
task_definition:
  description: ARN of the task definition that the service has. Null in check mode where it has yet to be registered.
  returned: always
  type: str
  sample: arn:aws:ecs:eu-central-1:123456789012:task-definition/lms-backend:42
registered:
  description: Whether a new revision was registered, or would be.
  returned: always
  type: bool
  sample: false
restarted:
  description: Whether a failed deployment of the same definition was begun again, or would be.
  returned: always
  type: bool
  sample: false
desired_count:
  description: The number of tasks that was asked for, or that the service had.
  returned: always
  type: int
  sample: 3
deployment:
  description: The newest deployment of the service.
  returned: always
  type: dict
  contains:
    id:
      description: Its id.
      returned: always
      type: str
      sample: ecs-svc/9223370526043414679
    state:
      description: Its state as AWS calls it.
      returned: always
      type: str
      sample: COMPLETED
    reason:
      description: Why it has that state.
      returned: always
      type: str
      sample: ECS deployment ecs-svc/9223370526043414679 completed.
counts:
  description: How many tasks the service wants, how many run or start, and how many of the deployment failed in a row.
  returned: always
  type: dict
  contains:
    desired:
      description: Number of tasks that the service wants.
      returned: always
      type: int
      sample: 3
    running:
      description: Number of tasks that run.
      returned: always
      type: int
      sample: 3
    pending:
      description: Number of tasks that start.
      returned: always
      type: int
      sample: 0
    failed:
      description: Number of failures in a row, until a first task runs.
      returned: always
      type: int
      sample: 0
groups:
  description: The target groups of the service, sorted.
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
events:
  description: What ECS said of the service meanwhile, the newest last, 10 at most.
  returned: always
  type: list
  elements: str
  sample: ["(service lms-green) has reached a steady state."]
stopped:
  description: Why tasks of the deployment stopped, the newest last.
  returned: when the deployment fails
  type: list
  elements: str
  sample: ["Essential container in task exited (app ended with 1)"]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api, aws_argspec, client_for
from ansible_collections.bitflow.lms.plugins.module_utils._capacity import capacity_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._ecs_rollout_service import run
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock


def main() -> None:
    """Read the options, roll out, report."""
    module = AnsibleModule(
        argument_spec={
            **aws_argspec(),
            **capacity_argspec(),
            "cluster": {"type": "str", "required": True},
            "service": {"type": "str", "required": True},
            "task_definition": {"type": "str"},
            "definition": {"type": "dict"},
            "desired_count": {"type": "int"},
        },
        mutually_exclusive=[["task_definition", "definition"]],
        required_together=[["access_key", "secret_key"]],
        supports_check_mode=True,
    )
    try:
        ecs, elb = Api(client_for("ecs", module.params), "ecs"), Api(client_for("elbv2", module.params))
        result = run(ecs, elb, module.params, module.check_mode, Clock())
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
