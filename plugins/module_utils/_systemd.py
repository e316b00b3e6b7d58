# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs of systemd, whose output decides what is started and stopped here."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence

from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError

RunProgram = Callable[[list[str]], "tuple[int, str, str]"]


def run_program(argv: list[str], pass_fds: Sequence[int] = ()) -> tuple[int, str, str]:
    """Run a program and return its status and all that it said.

    AnsibleModule.run_command loses output on a busy host: a program that says nothing for a second and then all at once, before it
    ends, is found to have ended and is not read any more.
    """
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(argv, env=environment, pass_fds=pass_fds, capture_output=True, check=False)  # pylint: disable=ansible-bad-function
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


class Systemctl:
    """The program systemctl."""

    def __init__(self, run: RunProgram = run_program) -> None:
        self.run = run

    def __call__(self, *arguments: str) -> str:
        """Run it with arguments that it must accept, and return what it said."""
        rc, stdout, stderr = self.attempt(*arguments)
        if rc != 0:
            argv = ["systemctl", *arguments]
            raise CommandError(
                f"systemctl {arguments[0]} ended with status {rc}: {stderr.strip()}", cmd=argv, rc=rc, stdout=stdout, stderr=stderr
            )
        return stdout

    def attempt(self, *arguments: str) -> tuple[int, str, str]:
        """Run it with arguments that it may refuse, and return its status and what it said."""
        return self.run(["systemctl", *arguments])

    def log(self, *arguments: str) -> list[str]:
        """Return the lines that journalctl finds, as the processes wrote them."""
        _rc, stdout, _stderr = self.run(["journalctl", "--no-pager", "--quiet", "--output=cat", *arguments])
        return stdout.splitlines()
