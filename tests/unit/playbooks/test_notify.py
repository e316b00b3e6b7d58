# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The notifications, sent by real runs to a web server and a mail server that keep what they get."""

from __future__ import annotations

import email
import email.policy
import http.server
import json
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any, cast

import pytest

ROOT = Path(__file__).parents[3]
SECRET = "T0-B0-canary"
PLAYBOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Notify
      ansible.builtin.include_tasks: {tasks}
    - name: Show what was not delivered
      run_once: true
      ansible.builtin.debug:
        msg: "{{{{ results | bitflow.lms.notification_warnings(['hunter2']) }}}}"
      vars:
        results:
          chat: "{{{{ __lms_chat_notification }}}}"
          e-mail: "{{{{ __lms_mail_notification }}}}"
"""
REPORT = ["v1.4.0 (94a1093: Grüße & mehr) was deployed.", "Hosts: <web1>."]


class Webhook(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server = cast(Any, self.server)
        server.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
        self.send_response(server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


class Mailbox(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.say("220 mail.example.com")
        while line := self.rfile.readline():
            command = line.decode().strip().upper()
            if command == "DATA":
                self.say("354 go on")
                data = b""
                while not data.endswith(b"\r\n.\r\n"):
                    data += self.rfile.readline()
                cast(Any, self.server).got.append(email.message_from_bytes(data[:-5], policy=email.policy.default))
            elif command == "QUIT":
                self.say("221 bye")
                return
            self.say("250 mail.example.com")

    def say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


@pytest.fixture
def webhook() -> Iterator[Any]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Webhook) as running:
        sink = cast(Any, running)
        sink.got, sink.status = [], 200
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield sink
        running.shutdown()


@pytest.fixture
def mailbox() -> Iterator[Any]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mailbox) as running:
        sink = cast(Any, running)
        sink.got = []
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield sink
        running.shutdown()


def mail_at(port: int, **options: str) -> dict[str, Any]:
    sender = {"from": "LMS <lms@example.com>", "to": ["ops@example.com", "dev@example.com"]}
    return {"host": "127.0.0.1", "port": port, "secure": "never", **sender, **options}


def webhook_at(port: int) -> str:
    return f"http://127.0.0.1:{port}/services/{SECRET}"


def notify(tmp_path: Path, *options: str, **variables: Any) -> str:
    playbook = tmp_path / "notify.yml"
    playbook.write_text(PLAYBOOK.format(tasks=ROOT / "playbooks/tasks/notify.yml"))
    known = {"__lms_report": REPORT, "__lms_succeeded": True, "lms_domain": "lms.example.com", **variables}
    done = subprocess.run(
        [
            *[sys.executable, "-m", "ansible", "playbook", "-i", "web1,web2,", "-c", "local", str(playbook)],
            *["-e", json.dumps(known), *options],
        ],
        capture_output=True,
        check=False,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections")},
        text=True,
        timeout=120,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


def test_success_is_told_once_by_both_ways(tmp_path: Path, webhook: Any, mailbox: Any) -> None:
    lms = {"lms_notify_webhook": webhook_at(webhook.server_port), "lms_notify_mail": mail_at(mailbox.server_address[1])}

    output = notify(tmp_path, "-vvv", **lms)

    text = "lms.example.com: v1.4.0 (94a1093: Grüße &amp; mehr) was deployed."
    attachment = {"color": "good", "text": "Hosts: &lt;web1&gt;.", "fallback": text}
    assert webhook.got == [(f"/services/{SECRET}", "application/json", {"text": text, "attachments": [attachment]})]
    (mail,) = cast(list[EmailMessage], mailbox.got)
    assert (mail["From"], mail["To"]) == ("LMS <lms@example.com>", "ops@example.com, dev@example.com")
    assert mail["Subject"] == f"lms.example.com: {REPORT[0]}"
    (part,) = mail.iter_parts()
    assert part.get_content().split("\n")[:2] == REPORT
    assert "msg: []" in output
    # Of what the tasks did; the run's own command line, which -vvv shows, is not theirs.
    assert SECRET not in output.partition("TASK [Notify]")[2]


def test_failure_to_deliver_is_a_warning_without_the_secret(tmp_path: Path, webhook: Any, mailbox: Any) -> None:
    webhook.status = 404
    closed = mail_at(1, username="lms", password="hunter2")

    output = notify(tmp_path, lms_notify_webhook=webhook_at(webhook.server_port), lms_notify_mail=closed)

    assert "The notification by chat was not delivered: the server answered 404." in output
    assert "The notification by e-mail was not delivered: the server cannot be reached or does not take it." in " ".join(output.split())
    assert SECRET not in output
    assert "hunter2" not in output


@pytest.mark.parametrize(
    ("options", "variables"),
    [((), {"lms_notify_on": ["failure"]}), (("--check",), {})],
    ids=["only failures", "check mode"],
)
def test_nobody_is_told_who_did_not_ask(tmp_path: Path, webhook: Any, options: tuple[str, ...], variables: dict[str, Any]) -> None:
    output = notify(tmp_path, *options, lms_notify_webhook=webhook_at(webhook.server_port), **variables)

    assert webhook.got == []
    assert "msg: []" in output


def test_failure_is_told_in_its_colour(tmp_path: Path, webhook: Any) -> None:
    lms = {"lms_notify_webhook": webhook_at(webhook.server_port), "lms_notify_on": ["failure"]}

    notify(tmp_path, __lms_succeeded=False, **lms)

    assert webhook.got[0][2]["attachments"][0]["color"] == "danger"
