# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lease in the playbooks: whoever comes second learns who is first, and which variable is the way out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PLAYBOOKS = ROOT / "playbooks"
PLAYBOOK = f"""
- hosts: localhost
  gather_facts: false
  roles: [{PLAYBOOKS}/roles/wiring]
  tasks:
    - name: Let somebody else be first
      bitflow.lms.deploy_lock:
        path: "{{{{ lms_root }}}}"
        owner: somebody
        details: {{what: the deployment of v9, controller: elsewhere, user: somebody, process: a-start a-namespace 1 1}}

    - name: Come second
      block:
        - ansible.builtin.include_tasks: {PLAYBOOKS}/tasks/lock.yml
      rescue:
        - name: End the deployment
          ansible.builtin.fail:
            msg: "{{{{ __lms_failure }}}} That was all."
"""


def test_whoever_comes_second_learns_who_is_first_and_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "lms").mkdir()
    (tmp_path / "deploy.yml").write_text(PLAYBOOK)
    known = {
        "lms_version": "v1",
        "lms_root": str(tmp_path / "lms"),
        "__lms_release": "r1",
        "__lms_run": "second",
        "__lms_deploy_user": None,
        "ansible_python_interpreter": sys.executable,
    }

    done = subprocess.run(
        [
            *[sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-c", "local"],
            str(tmp_path / "deploy.yml"),
            "-e",
            json.dumps(known),
        ],
        capture_output=True,
        check=False,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
            "HOME": str(tmp_path),
        },
        text=True,
        timeout=120,
    )

    output = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2, output
    assert "is held by somebody on elsewhere for the deployment of v9 since " in output
    assert "set steal to force. Here that is -e lms_lock_steal=force. That was all." in output
