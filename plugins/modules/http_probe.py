#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: http_probe
short_description: Ask a web server for its health
version_added: 1.0.0
author: Bitflow LMS contributors (@bitflow)
description:
  - Asks for one address over HTTP, with or without TLS, until enough good answers came in a row. The connection can go to another host, or
    to a Unix socket. A server can so be checked under the name that visitors use, before the name leads to it.
  - Fails unless the answer is as expected. One sentence then says what was wrong, with the address, the host that was asked, the status and
    the first part of the body.
  - Each attempt makes a connection of its own, so that a load balancer chooses anew. Redirects are not followed, and a proxy in the
    environment is not used.
  - Changes nothing. Only GET and HEAD can be asked.
options:
  url:
    description:
      - Address to ask for, with V(http) or V(https).
      - It is shown in messages, and a user or password in it is refused. Credentials belong in O(headers).
      - Either this or O(urls) is required.
    type: str
  urls:
    description:
      - Several addresses, which are asked side by side in the same way, each until enough good answers came in a row.
    type: list
    elements: str
  method:
    description:
      - How to ask.
    type: str
    choices: [GET, HEAD]
    default: GET
  headers:
    description:
      - Further request headers. Their values are hidden wherever they occur in the result.
    type: dict
    default: {}
  connect_to:
    description:
      - Where to connect, as C(host:port), instead of the host and port of O(url). An IPv6 address stands in brackets.
      - The name in the TLS greeting, the name that the certificate must be for, and the Host header remain those of O(url).
    type: str
  unix_socket:
    description:
      - Path of the Unix socket to connect to. For V(http) only.
    type: path
  ca_path:
    description:
      - File with the certificates of the authorities to trust, in PEM format. The ones that the system trusts when it is left out.
    type: path
  validate_certs:
    description:
      - Check the certificate of the server. Without this, anybody on the way can answer in its place.
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
      - Values that the JSON body must hold. A dotted key such as C(checks.database) leads into the document; other values may be there
        too.
    type: dict
    default: {}
  expect_headers:
    description:
      - Headers that the answer must have, each with a text that its value must hold. An empty text asks for the header alone.
    type: dict
    default: {}
  attempts:
    description:
      - How often to ask at most.
    type: int
    default: 3
  consecutive:
    description:
      - How many good answers in a row are needed. At most O(attempts).
    type: int
    default: 1
  interval:
    description:
      - Seconds between two attempts.
    type: float
    default: 1
  timeout:
    description:
      - Seconds that one attempt may take. Looking up the name is not counted.
    type: float
    default: 10
attributes:
  check_mode:
    description: Asks as usual. When O(unix_socket) is not there yet, the task is skipped with the reason.
    support: full
  diff_mode:
    description: Nothing is changed.
    support: none
  platform:
    description: Target systems.
    platforms: posix
    support: full
seealso:
  - module: bitflow.lms.fpm_probe
  - module: ansible.builtin.uri
"""

EXAMPLES = r"""
- name: Ask the load balancer for each site, as a visitor would
  bitflow.lms.http_probe:
    urls:
      - https://api.example.com/health
      - https://student.example.com/api/health
    connect_to: 127.0.0.1:443
    attempts: 30
    consecutive: 4
    interval: 0.2

- name: Check the health of the API
  bitflow.lms.http_probe:
    url: https://api.example.com/health
    expect_json:
      status: ok
      checks.database: ok

- name: Check a new load balancer before the name leads to it
  bitflow.lms.http_probe:
    url: https://api.example.com/health
    connect_to: 192.0.2.10:443
    ca_path: /etc/ssl/private-authority.pem
    attempts: 30
    consecutive: 4
    interval: 0.2

- name: Wait for a process that listens on a Unix socket
  bitflow.lms.http_probe:
    url: http://student/api/health
    unix_socket: /run/lms/student.sock
    attempts: 60
    interval: 0.5

- name: Check that plain HTTP leads to TLS
  bitflow.lms.http_probe:
    url: http://api.example.com/
    method: HEAD
    expect_status: [301, 308]
    expect_headers:
      Location: https://api.example.com/
"""

RETURN = r"""
probes:
  description: The keys below for each address, in the order of O(urls), with its C(url). What stands at the top is that of the first.
  returned: always
  type: list
  elements: dict
  sample: [{url: "https://api.example.com/health", status: 200, attempts: 3}]
status:
  description: Status of the last answer, or null when there was none.
  returned: always
  type: int
  sample: 200
body:
  description: First 2000 characters of the last answer.
  returned: always
  type: str
  sample: '{"status":"ok"}'
headers:
  description: Headers of the last answer with their names in lower case, without cookies.
  returned: always
  type: dict
  sample: {content-type: application/json}
milliseconds:
  description: Duration of each attempt.
  returned: always
  type: list
  elements: int
  sample: [41, 12, 11]
attempts:
  description: How often the server was asked.
  returned: always
  type: int
  sample: 3
skipped:
  description: Check mode found nothing to ask.
  returned: when skipped
  type: bool
  sample: true
reason:
  description: Why the task was skipped, else empty.
  returned: always
  type: str
  sample: ""
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._expectation import Expectation
from ansible_collections.bitflow.lms.plugins.module_utils._http_probe import Probe, run_probes, secrets_of, skipped_result


def build_probe(params: dict[str, Any]) -> Probe:
    """Return the probe that the options describe."""
    return Probe(
        url=params["url"],
        method=params["method"],
        headers=params["headers"],
        connect_to=params["connect_to"],
        unix_socket=params["unix_socket"],
        ca_path=params["ca_path"],
        validate_certs=params["validate_certs"],
        expectation=Expectation(
            status=tuple(params["expect_status"]),
            body=params["expect_body"],
            values=params["expect_json"],
            headers={name: str(text) for name, text in params["expect_headers"].items()},
        ),
        attempts=params["attempts"],
        consecutive=params["consecutive"],
        interval=params["interval"],
        timeout=params["timeout"],
    )


def missing(probe: Probe) -> str:
    """Return what is not there yet, for check mode."""
    if probe.unix_socket is not None and not Path(probe.unix_socket).exists():
        return f"The socket {probe.unix_socket} is not there yet."
    return ""


def run(probes: list[Probe], check_mode: bool) -> dict[str, Any]:
    """Ask the server and return the module's result."""
    reason = missing(probes[0]) if check_mode else ""
    return {**skipped_result(reason), "probes": []} if reason else run_probes(probes)


def main() -> None:
    """Read the options, ask, report."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str"},
            "urls": {"type": "list", "elements": "str"},
            "method": {"type": "str", "choices": ["GET", "HEAD"], "default": "GET"},
            "headers": {"type": "dict", "default": {}, "no_log": True},
            "connect_to": {"type": "str"},
            "unix_socket": {"type": "path"},
            "ca_path": {"type": "path"},
            "validate_certs": {"type": "bool", "default": True},
            "expect_status": {"type": "list", "elements": "int", "default": [200]},
            "expect_body": {"type": "str"},
            "expect_json": {"type": "dict", "default": {}},
            "expect_headers": {"type": "dict", "default": {}},
            "attempts": {"type": "int", "default": 3},
            "consecutive": {"type": "int", "default": 1},
            "interval": {"type": "float", "default": 1},
            "timeout": {"type": "float", "default": 10},
        },
        mutually_exclusive=[("connect_to", "unix_socket"), ("url", "urls")],
        required_one_of=[("url", "urls")],
        supports_check_mode=True,
    )
    params = module.params
    urls = [params["url"]] if params["urls"] is None else params["urls"]
    if not urls:
        module.fail_json(msg="urls is empty: name at least one address.")
    for url in urls:
        module.no_log_values.update(secrets_of(url))
    try:
        result = run([build_probe({**params, "url": url}) for url in urls], module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
