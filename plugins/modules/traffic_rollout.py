#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: traffic_rollout
short_description: Move traffic from one colour to another, step by step, and back
version_added: 1.0.0
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Takes a release from no traffic to all of it. Its colour is attached without weight, gated on the health that the load balancer itself
    sees, asked for real answers, given its share step by step while checks watch it, and at last all traffic. The old colour is then kept
    warm for O(retain).
  - Each call is a short tick. It goes on from what it finds to the next moment at which one has to wait, and says in RV(next_at) when
    that is over. Repeat the task until RV(done); later let a timer call it, which ends with the phase C(retired).
  - The weights are read from the load balancer each time and are the only truth about traffic. What is meant is written to O(state) before
    it is done, so a call that was killed anywhere is gone on with by the next one.
  - A colour that is not healthy gets no weight. When it gets unhealthy, or a check fails, the traffic goes back by itself, and the task
    fails once that is done. The old colour is gated too where it was scaled down in the meantime.
  - Several routes are gated together and then changed one after the other. When one of them fails, those before it get their weights back.
  - Fails where weights are not those that were meant last, where no colour or different ones are live, where stickiness lasts longer than
    O(retain), and where the record is damaged. It never guesses.
options:
  name:
    description:
      - What the rollout is called, such as V(prod/lms). It has to be the one in the record.
    type: str
    required: true
  action:
    description:
      - V(advance) begins the rollout of O(release) or goes on with the one that is under way.
      - V(rollback) gives all traffic back to the old colour, from every phase before C(retired).
      - V(abort) ends a rollout whose colour has no weight yet.
      - V(retire) gives up the old colour before its time, once the rollout is C(retained).
      - V(status) only looks.
    type: str
    choices: [advance, rollback, abort, retire, status]
    required: true
  provider:
    description:
      - What carries the traffic. V(alb) is an Application Load Balancer of AWS. V(nginx) is the load balancer that the role
        P(bitflow.lms.load_balancer#role) sets up, on whose host the task then has to run.
    type: str
    choices: [alb, nginx]
    required: true
  routes:
    description:
      - What is switched together. With O(provider=alb) these are listeners and rules, of which a listener stands for its default action.
        With O(provider=nginx) these are sites, each with O(routes[].name) alone; left out, all sites that have colours.
      - Required with O(provider=alb).
    type: list
    elements: dict
    suboptions:
      name:
        description:
          - With O(provider=alb) what results and messages call it. Left out, load balancer, port and priority make its name, such as
            V(lms:443/10).
          - With O(provider=nginx) the name of the site.
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
  colours:
    description:
      - The colours, such as V(blue) and V(green), each with the name or ARN of its target group, or with a dictionary of the name of each
        route to its target group. Required with O(provider=alb).
      - With O(provider=nginx) the upstreams of the sites say what the colours are.
    type: dict
  release:
    description:
      - What is rolled out. A release that is out already, or was rolled back, is not begun again.
      - Without it O(action=advance) goes on with what is under way and begins nothing, which is what a timer should do.
    type: str
    default: ""
  colour:
    description:
      - With O(action=advance) the colour that O(release) was deployed to. Left out, it is the one without traffic. Without a record of
        earlier rollouts it has to be given, because a colour without traffic may as well hold an old release.
      - With O(action=rollback) the colour that is to get all traffic, where no rollout is under way or the record was lost.
    type: str
    default: ""
  state:
    description:
      - Where the record lies. V(s3://bucket/key), or an absolute path on the host, which then has to be the same one each time.
      - It is written by compare and swap. Turn the versions of the bucket on to keep each of them.
    type: str
    required: true
  steps:
    description:
      - Shares of the traffic for the new colour, rising to 100. A rollout keeps those that it began with.
      - By default 5, 25 and 50 percent for 300 seconds each, and 100 for 600.
    type: list
    elements: dict
    default:
      - {weight: 5, bake: 300}
      - {weight: 25, bake: 300}
      - {weight: 50, bake: 300}
      - {weight: 100, bake: 600}
    suboptions:
      weight:
        description:
          - Percent.
        type: int
        required: true
      bake:
        description:
          - For how long it is watched before the next step (seconds). With all traffic the time begins after O(propagation_wait).
        type: float
        required: true
  gate:
    description:
      - How healthy a colour has to be.
    type: dict
    default: {}
    suboptions:
      min_healthy:
        description:
          - How many targets of each of its groups have to be healthy, at the gate and as long as it is watched.
        type: int
        default: 1
      consecutive:
        description:
          - How many looks in a row have to find it so. A new target counts as healthy after a single passed check.
        type: int
        default: 3
      interval:
        description:
          - Pause between two looks, at the gate and while it is watched (seconds).
        type: float
        default: 5
      timeout:
        description:
          - For how long to wait until it is healthy, or until a check has data (seconds).
        type: float
        default: 600
  smoke:
    description:
      - Requests that the new colour has to answer before it gets any weight. Lead them past the weights, by a host, a header or a listener
        that belongs to the colour. V({colour}) stands for its name.
    type: list
    elements: dict
    default: []
    suboptions:
      url:
        description:
          - Address to ask.
        type: str
        required: true
      headers:
        description:
          - Request headers.
        type: dict
        default: {}
      connect_to:
        description:
          - Where to connect instead of the host and port of the address, as C(host:port).
        type: str
      ca_path:
        description:
          - File with the certificates of the authorities to trust.
        type: path
      validate_certs:
        description:
          - Check the certificate of the server.
        type: bool
        default: true
      expect_status:
        description:
          - Status codes of a healthy answer.
        type: list
        elements: int
        default: [200]
      expect_body:
        description:
          - Text that the body must hold.
        type: str
      expect_json:
        description:
          - Values that the JSON body must hold. A dotted key leads into the document.
        type: dict
        default: {}
      expect_headers:
        description:
          - Headers that the answer must have, each with a text that its value must hold, such as the version.
        type: dict
        default: {}
      attempts:
        description:
          - How often to ask at most.
        type: int
        default: 5
      consecutive:
        description:
          - How many good answers in a row are needed.
        type: int
        default: 3
      interval:
        description:
          - Pause between two attempts (seconds).
        type: float
        default: 1
      timeout:
        description:
          - Time that one attempt may take (seconds).
        type: float
        default: 10
      watch:
        description:
          - Ask also at each look while the colour is watched.
        type: bool
        default: true
  alarms:
    description:
      - Names of alarms of CloudWatch. One that fires, or that is not there, brings the traffic back. They have to be quiet before the first
        weight, too. V({colour}) stands for the colour.
    type: list
    elements: str
    default: []
  queries:
    description:
      - Queries of Prometheus that are made at each look. V({colour}) stands for the colour.
    type: list
    elements: dict
    default: []
    suboptions:
      url:
        description:
          - Address of Prometheus, such as V(https://prometheus.example.com).
        type: str
        required: true
      query:
        description:
          - The query. Each of its values counts.
        type: str
        required: true
      min:
        description:
          - A smaller value brings the traffic back. This or O(queries[].max) is required.
        type: float
      max:
        description:
          - A greater value brings the traffic back.
        type: float
      headers:
        description:
          - Request headers.
        type: dict
        default: {}
      ca_path:
        description:
          - File with the certificates of the authorities to trust.
        type: path
      validate_certs:
        description:
          - Check the certificate of the server.
        type: bool
        default: true
      timeout:
        description:
          - Time that the answer may take (seconds).
        type: float
        default: 10
  insufficient_data:
    description:
      - What it means when an alarm or a query has no data, or cannot be asked. V(wait) does not go on to the next step, and back after
        O(gate.timeout). V(fail) is as bad as an alarm. V(pass) is as good as data.
    type: str
    choices: [wait, fail, pass]
    default: wait
  verify_timeout:
    description:
      - For how long to read back the weights until the load balancer answers with them (seconds).
    type: float
    default: 60
  propagation_wait:
    description:
      - How long a colour that lost its last weight is still taken to get requests (seconds). Left out, 60 with O(provider=alb), because
        AWS promises no time, and 1 with O(provider=nginx), which goes by its weights from the next request on.
    type: float
  retain:
    description:
      - For how long the old colour is kept warm for a way back (seconds).
    type: float
    default: 86400
  on_drift:
    description:
      - What to do when the weights are not those that were meant last. V(fail) changes nothing. V(adopt) goes on from the weights that are
        there. V(restore) sets those that were meant. With O(action=rollback), V(adopt) and V(restore) both go back from where the weights
        are.
    type: str
    choices: [fail, adopt, restore]
    default: fail
  lease_time:
    description:
      - For how long a call that was killed keeps others from going on (seconds). It has to be longer than any one thing that a call does,
        such as a smoke test. The clocks of the controllers should agree.
    type: float
    default: 120
  max_wait:
    description:
      - For how long the task may wait and go on by itself (seconds). With V(0) it ends at the first moment at which one has to wait.
      - The control host is what waits. It says how far the rollout is, with each change and at least every ten seconds, and calls the host
        for no longer than there is something to do, so that a task which is interrupted leaves nothing behind. What passes, such as
        another one's lease or AWS that throttles, is tried again until the time is over. With C(async) the host waits by itself.
    type: float
    default: 0
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - bitflow.lms.aws_connection
  - bitflow.lms.traffic_directory
attributes:
  check_mode:
    support: full
    details:
      - Does the same to a copy, up to the next moment at which one has to wait. Health, smoke tests and other checks are asked.
  diff_mode:
    support: full
  platform:
    platforms: linux
notes:
  - IAM has to allow what M(bitflow.lms.alb_traffic) needs, C(s3:GetObject), C(s3:PutObject) and C(s3:ListBucket) for the record, without
    which a record that is missing cannot be told from one that may not be read, and C(cloudwatch:DescribeAlarms) for O(alarms).
  - Routes are changed one after the other, so for a moment both releases serve. Migrations have to suit both.
  - With O(provider=nginx) the old colour is given up once the host has no connection to its servers. Idle ones that nginx keeps for reuse
    count too, until they time out.
seealso:
  - module: bitflow.lms.alb_traffic
  - module: bitflow.lms.alb_traffic_info
  - module: bitflow.lms.alb_targets
  - module: bitflow.lms.nginx_traffic
  - module: bitflow.lms.nginx_traffic_info
  - module: bitflow.lms.http_probe
"""

EXAMPLES = r"""
- name: Roll the release out until all traffic is on it
  bitflow.lms.traffic_rollout:
    name: prod/lms
    action: advance
    release: "{{ lms_release }}"
    provider: alb
    routes:
      - load_balancer: lms
        port: 443
    colours:
      blue: lms-blue
      green: lms-green
    state: s3://example-state/traffic/prod/lms.json
    gate:
      min_healthy: 3
    smoke:
      - url: https://{colour}.test.example.com/up
        expect_headers:
          X-Release: "{{ lms_release }}"
    alarms:
      - lms-5xx
    max_wait: 60
  register: rollout
  until: rollout.done
  retries: 120
  delay: 1

- name: Go on with what is under way, from a timer
  bitflow.lms.traffic_rollout:
    name: prod/lms
    action: advance
    provider: alb
    routes: "{{ lms_routes }}"
    colours: "{{ lms_colours }}"
    state: s3://example-state/traffic/prod/lms.json

- name: Give all traffic back
  bitflow.lms.traffic_rollout:
    name: prod/lms
    action: rollback
    provider: alb
    routes: "{{ lms_routes }}"
    colours: "{{ lms_colours }}"
    state: s3://example-state/traffic/prod/lms.json
    max_wait: 600

- name: Roll the release out on the load balancer of this host
  bitflow.lms.traffic_rollout:
    name: prod/lms
    action: advance
    release: "{{ lms_release }}"
    provider: nginx
    routes:
      - name: api
      - name: student
    state: /var/lib/lms-traffic/lms.json
    max_wait: 60
  register: rollout
  until: rollout.done
  retries: 120
  delay: 1

- name: Show where the traffic goes
  bitflow.lms.traffic_rollout:
    name: prod/lms
    action: status
    provider: alb
    routes: "{{ lms_routes }}"
    colours: "{{ lms_colours }}"
    state: s3://example-state/traffic/prod/lms.json
"""

RETURN = r"""
phase:
  description:
    - C(idle), C(prepared), C(attached), C(gated), C(smoked), C(shifting), C(shifted), C(baking), C(retained), C(retired),
      C(rolling_back), C(rolled_back) or C(failed).
  returned: always
  type: str
  sample: shifting
done:
  description:
    - Whether what was asked for is done, or will not be. A rollout is done for O(action=advance) once it is C(retained).
    - A task that fails although it is not done may succeed a moment later. Another one has the lease, for example, or AWS throttles.
  returned: always
  type: bool
  sample: false
next_at:
  description: When there will be something to do (ISO 8601, UTC). None when there will not.
  returned: always
  type: str
  sample: "2026-11-23T10:05:00.000Z"
live_colour:
  description: The colour that gets all traffic of all routes. Empty while traffic is shared.
  returned: always
  type: str
  sample: ""
weights:
  description: The weights of each route. In check mode those that it would have.
  returned: always
  type: dict
  sample: {"lms:443": {blue: 95, green: 5}}
release:
  description: What is rolled out.
  returned: always
  type: str
  sample: 20261123090000-0a1b2c3
old:
  description: The colour that had the traffic.
  returned: always
  type: str
  sample: blue
new:
  description: The colour that is to get it.
  returned: always
  type: str
  sample: green
step:
  description: The step that was reached, counted from 1; 0 before the first one.
  returned: always
  type: int
  sample: 1
steps:
  description: The steps that the rollout began with.
  returned: always
  type: list
  elements: dict
  contains:
    weight:
      description: Percent for the new colour.
      returned: always
      type: int
      sample: 5
    bake:
      description: For how long it is watched (seconds).
      returned: always
      type: float
      sample: 300
reason:
  description: Why it goes back, went back or failed.
  returned: always
  type: str
  sample: The alarm lms-5xx fires.
waiting:
  description: Why nothing more was done.
  returned: always
  type: str
  sample: green is watched until 2026-11-23T10:05:00.000Z
capacity:
  description: Which colours have to C(keep) their targets, and which are C(free) to lose them.
  returned: always
  type: dict
  sample: {blue: keep, green: keep}
health:
  description: The colours that were looked at.
  returned: always
  type: list
  elements: dict
  contains:
    colour:
      description: The colour.
      returned: always
      type: str
      sample: green
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
events:
  description: What happened in this task, in the form of RV(history).
  returned: always
  type: list
  elements: dict
  sample: []
history:
  description: The last 200 things that happened to rollouts of this name, the oldest first.
  returned: always
  type: list
  elements: dict
  contains:
    time:
      description: When (ISO 8601, UTC).
      returned: always
      type: str
      sample: "2026-11-23T10:00:00.000Z"
    owner:
      description: User and host that did it.
      returned: always
      type: str
      sample: deployer@controller
    release:
      description: The release.
      returned: always
      type: str
      sample: 20261123090000-0a1b2c3
    phase:
      description: The phase that it came to.
      returned: always
      type: str
      sample: shifting
    event:
      description: What happened.
      returned: always
      type: str
      sample: "in force: blue 95, green 5"
    weights:
      description: The weights of each route as they were found last.
      returned: always
      type: dict
      sample: {"lms:443": {blue: 95, green: 5}}
message:
  description: All of that in words.
  returned: always
  type: str
  sample: "r1, from blue to green: step 1 of 4 of the shift. Traffic: lms:443: blue 95, green 5."
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import aws_argspec
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_options import (
    checks_of,
    open_api,
    open_provider,
    open_state,
    passes,
    rollout_argspec,
    run,
)


def main() -> None:
    """Read the options, do what is next, report."""
    module = AnsibleModule(
        argument_spec={
            **aws_argspec(),
            **rollout_argspec(),
        },
        required_if=[["provider", "alb", ["routes", "colours"]]],
        required_together=[["access_key", "secret_key"]],
        supports_check_mode=True,
    )
    try:
        api = open_api(module.params)
        checks = checks_of(module.params, api)
        provider, store = open_provider(module.params, api), open_state(module.params)
        outcome = run(module.params, provider, store, checks, check_mode=module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result(), done=not passes(error))
    result = {"changed": outcome.changed, "diff": outcome.diff(), **outcome.as_result()}
    if outcome.fault:
        module.fail_json(msg=outcome.fault, **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
