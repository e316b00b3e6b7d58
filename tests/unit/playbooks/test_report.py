# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The end of a run: the watch, the metrics and the report, in real runs against a small site."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from ansible_collections.bitflow.lms.plugins.modules import http_watch

ROOT = Path(__file__).parents[3]
PLAYBOOKS = ROOT / "playbooks"
PLAYBOOK = f"""
- hosts: backend
  gather_facts: false
  any_errors_fatal: true
  roles: [{PLAYBOOKS}/roles/wiring, {PLAYBOOKS}/roles/report]
  tasks:
    - name: Note the release before
      ansible.builtin.set_fact:
        __lms_seen:
          applications: "{{{{ {{lms_root ~ '/backend': {{'current': 'r1'}}}} }}}}"
          healthy: "{{{{ health_before == 200 }}}}"

    - name: Switch
      block:
        - ansible.builtin.include_tasks: {PLAYBOOKS}/tasks/mark.yml
          vars: {{mark_step: switch}}
        - ansible.builtin.include_tasks: {PLAYBOOKS}/tasks/watch.yml
        - name: Wait for some requests
          ansible.builtin.command: sleep 1
        - name: Prove the host
          ansible.builtin.assert:
            that: inventory_hostname != ill or item < 2
            fail_msg: "{{{{ inventory_hostname }}}} answered 503 to item {{{{ item }}}}."
          loop: [1, 2]
        - ansible.builtin.include_tasks: {PLAYBOOKS}/tasks/report.yml
          vars: {{__lms_outcome: deployed}}
      rescue:
        - ansible.builtin.include_tasks: {PLAYBOOKS}/tasks/report.yml
          vars: {{__lms_outcome: taken back}}
        - name: End the deployment
          ansible.builtin.fail:
            msg: It was taken back.
"""


class Site(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = cast(Any, self.server)
        server.requests += 1
        self.send_response(503 if server.requests in server.ill else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def site() -> Iterator[Any]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as running:
        made = cast(Any, running)
        made.requests, made.ill = 0, ()
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield made
        running.shutdown()


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    directory = tmp_path / "node-exporter"
    directory.mkdir()
    return directory


def deploy(tmp_path: Path, site: Any, *options: str, **variables: Any) -> tuple[int, str]:
    (tmp_path / "deploy.yml").write_text(PLAYBOOK)
    hosts: dict[str, Any] = {
        "all": {
            "vars": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "lms_address": "192.0.2.1"},
            "children": {
                "loadbalancer": {"hosts": {"lb1": {}}},
                "backend": {"hosts": {"web1": {}, "web2": {}}},
                "frontend": {"hosts": {"web2": {}}},
            },
        }
    }
    (tmp_path / "hosts.json").write_text(json.dumps(hosts))
    known = {
        "lms_domain": "lms.example.com",
        "lms_version": "v1.4.0",
        "lms_frontends": [{"name": "student", "port": 3001}],
        "lms_root": str(tmp_path / "lms"),
        "lms_public_port": 443,
        "lms_metrics_directory": str(tmp_path / "node-exporter"),
        "__lms_health_urls": ["http://api.lms.example.com/health"],
        "__lms_watch_places": [f"127.0.0.1:{site.server_port}"],
        "health_before": 200,
        "ill": "none",
        **variables,
    }
    return run_ansible(
        tmp_path, "playbook", "-i", str(tmp_path / "hosts.json"), str(tmp_path / "deploy.yml"), "-e", json.dumps(known), *options
    )


def run_ansible(tmp_path: Path, *argv: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "ansible", *argv],
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
    # Long lines are wrapped by the output.
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_success_is_reported_with_what_visitors_noticed(tmp_path: Path, site: Any, metrics: Path) -> None:
    status, output = deploy(tmp_path, site)

    assert status == 0, output
    assert "v1.4.0 was deployed as release no release." in output
    assert "Visitors: 0 of " in output
    assert "requests failed; longest gap 0 ms" in output
    assert "(switch " in output
    text = (metrics / "lms_deploy.prom").read_text()
    assert "lms_deploy_last_success_timestamp_seconds" in text
    assert "lms_deploy_downtime_seconds 0\n" in text
    assert site.requests > 5


def test_failure_is_reported_with_its_host_and_reason(tmp_path: Path, site: Any, metrics: Path) -> None:
    site.ill = (3, 4, 5)

    status, output = deploy(tmp_path, site, ill="web2")

    assert status == 2, output
    assert "v1.4.0 was taken back after the switch." in output
    assert "Prove the host on web2: web2 answered 503 to item 2." in output
    assert "Serving: r1, on web1, web2, as before." in output
    assert "Visitors: 3 of " in output
    assert "lms_deploy_last_failure_timestamp_seconds" in (metrics / "lms_deploy.prom").read_text()
    assert not list(tmp_path.glob(".cache/bitflow-lms/watches/*"))


def test_site_that_was_ill_before_is_not_watched(tmp_path: Path, site: Any, metrics: Path) -> None:
    status, output = deploy(tmp_path, site, health_before=503)

    assert status == 0, output
    assert "Visitors" not in output
    assert site.requests == 0


def test_run_that_watches_nothing_leaves_the_watch_of_another_run_alone(tmp_path: Path, site: Any, metrics: Path) -> None:
    url = {"name": "api", "url": f"http://127.0.0.1:{site.server_port}/health", "connect_to": None, "ca_path": None, "expect_status": [200]}
    watch = {"name": "deploy", "urls": [url], "rate": 10.0, "timeout": 3.0, "at_most": 60.0, "release_header": "X-Release"}
    place = {"directory": str(tmp_path / ".cache/bitflow-lms/watches")}
    started = http_watch.run({**watch, **place, "state": "started"}, check_mode=False)

    deploy(tmp_path, site, health_before=503)

    stopped = http_watch.run({**watch, **place, "state": "stopped"}, check_mode=False)
    assert (started["changed"], stopped["found"], stopped["complete"]) == (True, True, True)


def test_watch_that_could_not_start_is_a_warning(tmp_path: Path, site: Any) -> None:
    status, output = deploy(tmp_path, site, __lms_watch_places=["nonsense"])

    assert status == 0, output
    assert "Warning: connect_to is 'nonsense'; it must be host:port" in output.replace("''", "'")


def test_check_mode_leaves_nothing(tmp_path: Path, site: Any, metrics: Path) -> None:
    status, output = deploy(tmp_path, site, "--check")

    assert status == 0, output
    assert site.requests == 0
    assert list(metrics.iterdir()) == []
