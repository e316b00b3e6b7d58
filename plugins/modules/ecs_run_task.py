#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ecs_run_task
short_description: Run one task of ECS to its end
version_added: 1.0.0
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Starts one task, such as the migrations of a release, awaits its end, and fails unless its container ended with 0. The message tells the
    exit code, the reason and where the last lines of the log are.
  - With O(client_token) the same work is started once only. A task that was started with it before is found and awaited, also when the
    controller that started it was killed. One that ended badly makes the task fail again; give another token once the cause is mended.
  - A task that outlives O(timeout) goes on. The message names the token with which to await it.
options:
  cluster:
    description:
      - Name or ARN of the cluster.
    type: str
    required: true
  task_definition:
    description:
      - The task definition, as V(family:revision), as its ARN, or as V(family) for the newest active revision. Left out, that of
        O(service).
    type: str
  service:
    description:
      - A service of the cluster. What is left out of O(task_definition), O(launch_type), O(network) and O(platform_version) is taken from
        it.
    type: str
  container:
    description:
      - The container whose command is replaced and whose exit code counts. Needed where the task definition has several.
    type: str
  command:
    description:
      - What the container runs, as a list of arguments, in place of what its image or its definition says.
    type: list
    elements: str
  environment:
    description:
      - Environment variables of the container, besides those of the definition. Everybody who may describe the task reads them, so they are
        no place for secrets.
    type: dict
  launch_type:
    description:
      - Where the task runs. Left out, as O(service) or the cluster says.
    type: str
    choices: [EC2, EXTERNAL, FARGATE]
  network:
    description:
      - Its network, for definitions with the network mode C(awsvpc).
    type: dict
    suboptions:
      subnets:
        description:
          - Ids of the subnets.
        type: list
        elements: str
        required: true
      security_groups:
        description:
          - Ids of the security groups.
        type: list
        elements: str
        default: []
      assign_public_ip:
        description:
          - Whether the task gets a public address.
        type: bool
        default: false
  platform_version:
    description:
      - The version of the platform of Fargate.
    type: str
  client_token:
    description:
      - A name for this piece of work, such as V(migrate-20250101120000), from 1 to 64 letters, digits, hyphens, slashes and underscores. It
        becomes the task's C(startedBy) and its idempotency token.
      - AWS forgets tasks that ended about an hour ago. After that the token starts a new one.
      - Left out, each run starts a task.
    type: str
  timeout:
    description:
      - For how long to await the end (seconds).
    type: float
    default: 900
  interval:
    description:
      - Pause between two looks (seconds), 2 at least. AWS limits how often an account may ask.
    type: float
    default: 5
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - bitflow.lms.aws_connection
attributes:
  check_mode:
    support: full
    details:
      - Returns what would run, and finds a task that was started already. Awaits nothing.
  diff_mode:
    support: full
  platform:
    platforms: linux
notes:
  - IAM has to allow C(ecs:DescribeServices), C(ecs:DescribeTaskDefinition), C(ecs:DescribeTasks), C(ecs:ListTasks) and C(ecs:RunTask), and
    C(iam:PassRole) for the roles of the task.
seealso:
  - module: bitflow.lms.ecs_rollout_service
  - module: bitflow.lms.artisan_migrate
"""

EXAMPLES = r"""
- name: Run the migrations of the new version, once, in the network of green
  bitflow.lms.ecs_run_task:
    cluster: lms
    service: lms-green
    task_definition: lms-backend:42
    container: app
    command: [php, artisan, migrate, --force]
    client_token: migrate-lms-backend-42

- name: Run the task of a definition of its own
  bitflow.lms.ecs_run_task:
    cluster: lms
    task_definition: lms-report
    launch_type: FARGATE
    network:
      subnets: [subnet-0123456789abcdef0]
      security_groups: [sg-0123456789abcdef0]
"""

RETURN = r"""
task_definition:
  description: ARN of the task definition.
  returned: success
  type: str
  sample: arn:aws:ecs:eu-central-1:123456789012:task-definition/lms-backend:42
container:
  description: The container whose exit code counts.
  returned: success
  type: str
  sample: app
command:
  description: What replaces its command. Empty where nothing does.
  returned: success
  type: list
  elements: str
  sample: [php, artisan, migrate, --force]
client_token:
  description: The token of the task, one that was made where none was given.
  returned: always
  type: str
  sample: migrate-lms-backend-42
task:
  description: The task. Null in check mode where it has yet to be started.
  returned: always
  type: dict
  contains:
    id:
      description: Its id.
      returned: always
      type: str
      sample: 1dc5c17a4b0b4c6c8a1d4a1a6a1c5a0e
    arn:
      description: Its ARN.
      returned: always
      type: str
      sample: arn:aws:ecs:eu-central-1:123456789012:task/lms/1dc5c17a4b0b4c6c8a1d4a1a6a1c5a0e
    status:
      description: Its status as AWS calls it.
      returned: always
      type: str
      sample: STOPPED
    exit_code:
      description: What the container ended with. Null while it has not, and where it never ran.
      returned: always
      type: int
      sample: 0
    reason:
      description: Why the task stopped.
      returned: always
      type: str
      sample: Essential container in task exited
log:
  description: Where the container writes to. Null where that is not CloudWatch, and where there is no task.
  returned: always
  type: dict
  contains:
    group:
      description: The log group.
      returned: always
      type: str
      sample: /ecs/lms
    stream:
      description: The log stream. Empty where the definition gives it no prefix.
      returned: always
      type: str
      sample: app/app/1dc5c17a4b0b4c6c8a1d4a1a6a1c5a0e
events:
  description: The statuses that the task was seen in.
  returned: always
  type: list
  elements: str
  sample: [PENDING, RUNNING, STOPPED]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api, aws_argspec, client_for
from ansible_collections.bitflow.lms.plugins.module_utils._ecs_run_task import network_argspec, run
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._waiting import Clock


def main() -> None:
    """Read the options, run the task, report."""
    module = AnsibleModule(
        argument_spec={
            **aws_argspec(),
            "cluster": {"type": "str", "required": True},
            "task_definition": {"type": "str"},
            "service": {"type": "str"},
            "container": {"type": "str"},
            "command": {"type": "list", "elements": "str"},
            "environment": {"type": "dict"},
            "launch_type": {"type": "str", "choices": ["EC2", "EXTERNAL", "FARGATE"]},
            "network": {"type": "dict", "options": network_argspec()},
            "platform_version": {"type": "str"},
            "client_token": {"type": "str", "no_log": False},
            "timeout": {"type": "float", "default": 900},
            "interval": {"type": "float", "default": 5},
        },
        required_one_of=[["task_definition", "service"]],
        required_together=[["access_key", "secret_key"]],
        supports_check_mode=True,
    )
    try:
        result = run(Api(client_for("ecs", module.params), "ecs"), module.params, module.check_mode, Clock())
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
