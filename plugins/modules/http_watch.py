#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: http_watch
short_description: Measure what visitors notice while something changes
version_added: 1.0.0
author: Bitflow LMS contributors (@bitflow)
description:
  - V(started) starts a small process that asks for some addresses at a steady rate and goes on after the task. V(stopped) ends it and says
    how many requests failed, for how long, and how long the others took.
  - The process runs on the host of the task, as its user. Delegate it to a host outside of those that change, such as a load balancer.
  - Requests are made when they are due, whether those before them were answered or not, so that a server that stalls is seen. Half of them
    go over connections that are kept, half over new ones. All are GET requests. Redirects are not followed, and a proxy in the environment
    is not used.
  - A kept connection that the server closed just when a request came is replaced and the request made again, as browsers do;
    RV(sent_again) counts these.
  - The process ends when it is told to, when O(at_most) is over, or when its files are removed. A control host that is killed leaves
    nothing that runs for ever.
options:
  name:
    description:
      - Name of the watch. Several can run on a host.
      - Started again, a watch with the same name is ended first, and what it saw is dropped.
    type: str
    default: default
  state:
    description:
      - V(started) starts the watch and waits until each address was asked once.
      - V(stopped) ends it, returns what it saw and removes its files. Without a watch the task is ok, and RV(found) is false.
    type: str
    choices: [started, stopped]
    default: started
  urls:
    description:
      - What to ask for. Required by V(started).
    type: list
    elements: dict
    suboptions:
      name:
        description:
          - Name in the result.
        type: str
        required: true
      url:
        description:
          - Address, with V(http) or V(https). A user or password in it is refused.
        type: str
        required: true
      connect_to:
        description:
          - Where to connect, as C(host:port), instead of the host and port of the address.
        type: str
      ca_path:
        description:
          - File with the certificates of the authorities to trust, in PEM format. The ones that the system trusts when it is left out.
        type: path
      expect_status:
        description:
          - Status codes of a good answer.
        type: list
        elements: int
        default: [200]
  rate:
    description:
      - Requests a second, of all addresses together, at most 50.
    type: float
    default: 10
  timeout:
    description:
      - Seconds after which a request without a complete answer has failed.
    type: float
    default: 10
  at_most:
    description:
      - Seconds after which the watch ends by itself, at most 7200. It must be longer than what is watched; RV(complete) says whether it
        was.
    type: float
    default: 900
  release_header:
    description:
      - Response header in which the application names its release. With it, RV(versions) says which one answered from when until when.
    type: str
  directory:
    description:
      - Directory for the files of watches. It is made private to the user of the task.
    type: path
    default: ~/.cache/bitflow-lms/watches
attributes:
  check_mode:
    description: Nothing is asked and nothing is ended.
    support: full
  diff_mode:
    description: Nothing lasting is changed.
    support: none
  platform:
    description: Target systems.
    platforms: linux
    support: full
seealso:
  - module: bitflow.lms.http_probe
"""

EXAMPLES = r"""
- name: Watch the site from the load balancer
  bitflow.lms.http_watch:
    name: switch
    urls:
      - name: api
        url: https://api.example.com/health
        connect_to: 127.0.0.1:443
      - name: student
        url: https://student.example.com/api/health
        connect_to: 127.0.0.1:443
  delegate_to: balancer.example.com
  run_once: true

- name: Reload the web server
  ansible.builtin.systemd_service:
    name: nginx
    state: reloaded

- name: See what visitors noticed
  bitflow.lms.http_watch:
    name: switch
    state: stopped
  delegate_to: balancer.example.com
  run_once: true
  register: watch

- name: Fail when a request failed
  ansible.builtin.assert:
    that: watch.failed_requests == 0 and watch.complete
    fail_msg: "{{ watch.failed_requests }} of {{ watch.requests }} requests failed."
"""

RETURN = r"""
found:
  description: Whether there was a watch with this name.
  returned: always
  type: bool
  sample: true
pid:
  description: Number of the process that was started, else 0.
  returned: always
  type: int
  sample: 0
ended:
  description: How the watch ended, as V(stopped), V(time limit) or V(killed). Empty without one.
  returned: always
  type: str
  sample: stopped
complete:
  description: Whether it was still asking when it was stopped. Otherwise the figures say nothing about the time after RV(ended_at).
  returned: always
  type: bool
  sample: true
seconds:
  description: How long it asked.
  returned: always
  type: float
  sample: 41.2
started_at:
  description: Time of the first request, empty without one.
  returned: always
  type: str
  sample: "2026-11-23T21:00:12.104Z"
ended_at:
  description: Time until which the figures hold, empty without a request.
  returned: always
  type: str
  sample: "2026-11-23T21:00:53.304Z"
requests:
  description: Number of requests.
  returned: always
  type: int
  sample: 412
failed_requests:
  description: Number of requests without a good answer. The name differs from C(failed), which Ansible takes for the failure of the task.
  returned: always
  type: int
  sample: 0
sent_again:
  description: Number of requests that were made again because the server had ended the kept connection.
  returned: always
  type: int
  sample: 1
p50_ms:
  description: Milliseconds within which half of the good answers came.
  returned: always
  type: int
  sample: 11
p99_ms:
  description: Milliseconds within which 99 of 100 good answers came.
  returned: always
  type: int
  sample: 38
max_ms:
  description: Milliseconds that the slowest good answer took.
  returned: always
  type: int
  sample: 52
longest_gap_ms:
  description: Milliseconds of the longest stretch in which an address did not serve, from a request that failed to the next one with a good
    answer. 0 when no request failed.
  returned: always
  type: int
  sample: 0
downtime_ms:
  description: Milliseconds in which at least one address did not serve, in total.
  returned: always
  type: int
  sample: 0
failures:
  description: The first 20 requests that failed.
  returned: always
  type: list
  elements: dict
  sample:
    - {at: "2026-11-23T21:00:31.204Z", name: api, status: 502, error: ""}
versions:
  description: The releases that answered, in the order in which they were seen first.
  returned: always
  type: list
  elements: dict
  sample:
    - release: 20261120180000-fedcba9
      first_at: "2026-11-23T21:00:12.104Z"
      last_at: "2026-11-23T21:00:30.904Z"
      requests: 188
urls:
  description: The figures of each address, and whether its first request was answered well.
  returned: always
  type: list
  elements: dict
  sample:
    - name: api
      requests: 206
      failed_requests: 0
      p50_ms: 12
      p99_ms: 38
      max_ms: 52
      longest_gap_ms: 0
      downtime_ms: 0
      good_at_start: true
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._http_probe import secrets_of
from ansible_collections.bitflow.lms.plugins.module_utils._http_watch import summarise
from ansible_collections.bitflow.lms.plugins.module_utils._watch_process import ENDED_STOPPED, WatchProcess, watch_from

NOTHING: dict[str, Any] = {
    "changed": False,
    "found": False,
    "pid": 0,
    "ended": "",
    "complete": False,
    **summarise([], []),
}


def run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Start or end a watch and return the module's result."""
    process = WatchProcess(Path(params["directory"]), params["name"])
    found = process.exists()
    if params["state"] == "started":
        # Also in check mode: a wrong address is worth knowing before.
        watch = watch_from(params)
        started = {} if check_mode else process.start(watch)
        return {**NOTHING, "changed": True, "found": found, **started}
    if check_mode or not found:
        return {**NOTHING, "changed": found, "found": found}
    seen = process.end()
    return {**NOTHING, "changed": True, "found": True, **seen, "complete": seen["ended"] == ENDED_STOPPED}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "default"},
            "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
            "urls": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "url": {"type": "str", "required": True},
                    "connect_to": {"type": "str"},
                    "ca_path": {"type": "path"},
                    "expect_status": {"type": "list", "elements": "int", "default": [200]},
                },
            },
            "rate": {"type": "float", "default": 10},
            "timeout": {"type": "float", "default": 10},
            "at_most": {"type": "float", "default": 900},
            "release_header": {"type": "str"},
            "directory": {"type": "path", "default": "~/.cache/bitflow-lms/watches"},
        },
        required_if=[("state", "started", ["urls"])],
        supports_check_mode=True,
    )
    for item in module.params["urls"] or []:
        module.no_log_values.update(secrets_of(item["url"]))
    try:
        result = run(module.params, module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
