#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fpm_probe
short_description: Ask a release for its health through PHP-FPM
version_added: 1.0.0
author: Bitflow LMS contributors (@bitflow)
description:
  - Speaks FastCGI to the socket of a PHP-FPM pool and runs one script there, as the web server would. A release that is not live yet can
    so be checked with the user, the settings and the extensions that it will have, before anybody sees it.
  - Fails unless the answer is as expected. One sentence then says which check failed on which release, with the status and the first
    part of the body.
  - Changes nothing. Only GET and HEAD can be asked.
options:
  socket:
    description:
      - Where the pool listens. A path, or C(host:port).
    type: str
    required: true
  script:
    description:
      - Absolute path of the script, as PHP-FPM sees it. The front controller C(public/index.php) of a release.
    type: str
    required: true
  document_root:
    description:
      - The document root that the script is told. The directory of O(script) when it is left out.
    type: str
  uri:
    description:
      - Address to ask for, with the query when there is one.
    type: str
    default: /health
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
  server_name:
    description:
      - Host name that the application is asked under.
    type: str
    default: localhost
  https:
    description:
      - Tell the application that it is asked over TLS.
    type: bool
    default: false
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
      - Seconds that one attempt may take.
    type: float
    default: 10
attributes:
  check_mode:
    description: Asks as usual. When the script or the socket is not there yet, the task is skipped with the reason.
    support: full
  diff_mode:
    description: Nothing is changed.
    support: none
  platform:
    description: Target systems.
    platforms: posix
    support: full
seealso:
  - module: bitflow.lms.opcache
  - name: FastCGI specification
    description: The protocol between web server and PHP-FPM.
    link: https://fastcgi-archives.github.io/FastCGI_Specification.html
"""

EXAMPLES = r"""
- name: Check the candidate before it goes live
  bitflow.lms.fpm_probe:
    socket: /run/php/lms.sock
    script: /srv/lms/backend/releases/20261123210000-abc1234/public/index.php
    uri: /health
    server_name: api.example.com
    https: true
    expect_json:
      status: ok
      checks.database: ok
  become: true

- name: Wait until the live release answers three times in a row
  bitflow.lms.fpm_probe:
    socket: 127.0.0.1:9000
    script: /srv/lms/backend/current/public/index.php
    attempts: 20
    consecutive: 3
    interval: 0.5
"""

RETURN = r"""
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
stderr:
  description: What PHP reported beside the last answer.
  returned: always
  type: str
  sample: ""
milliseconds:
  description: Duration of each attempt.
  returned: always
  type: list
  elements: int
  sample: [41, 12, 11]
attempts:
  description: How often the script was asked.
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

from pathlib import Path, PurePosixPath
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._expectation import Expectation
from ansible_collections.bitflow.lms.plugins.module_utils._fpm_probe import Probe, run_probe, skipped_result


def build_probe(params: dict[str, Any]) -> Probe:
    """Return the probe that the options describe."""
    return Probe(
        socket=params["socket"],
        script=params["script"],
        document_root=params["document_root"] or str(PurePosixPath(params["script"]).parent),
        uri=params["uri"],
        method=params["method"],
        headers=params["headers"],
        server_name=params["server_name"],
        https=params["https"],
        expectation=Expectation(tuple(params["expect_status"]), params["expect_body"], params["expect_json"]),
        attempts=params["attempts"],
        consecutive=params["consecutive"],
        interval=params["interval"],
        timeout=params["timeout"],
    )


def missing(probe: Probe) -> str:
    """Return what is not there yet, for check mode."""
    if not Path(probe.script).is_file():
        return f"The script {probe.script} is not there yet."
    if probe.socket.startswith("/") and not Path(probe.socket).exists():
        return f"The socket {probe.socket} is not there yet."
    return ""


def run(probe: Probe, check_mode: bool) -> dict[str, Any]:
    """Ask the script and return the module's result."""
    reason = missing(probe) if check_mode else ""
    return skipped_result(reason) if reason else run_probe(probe)


def main() -> None:
    """Read the options, ask, report."""
    module = AnsibleModule(
        argument_spec={
            "socket": {"type": "str", "required": True},
            "script": {"type": "str", "required": True},
            "document_root": {"type": "str"},
            "uri": {"type": "str", "default": "/health"},
            "method": {"type": "str", "choices": ["GET", "HEAD"], "default": "GET"},
            "headers": {"type": "dict", "default": {}, "no_log": True},
            "server_name": {"type": "str", "default": "localhost"},
            "https": {"type": "bool", "default": False},
            "expect_status": {"type": "list", "elements": "int", "default": [200]},
            "expect_body": {"type": "str"},
            "expect_json": {"type": "dict", "default": {}},
            "attempts": {"type": "int", "default": 3},
            "consecutive": {"type": "int", "default": 1},
            "interval": {"type": "float", "default": 1},
            "timeout": {"type": "float", "default": 10},
        },
        supports_check_mode=True,
    )
    try:
        result = run(build_probe(module.params), module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
