# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Count the tasks that ran something on a host; tests/bench/deploy.py reads it."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: bench_tasks
type: notification
short_description: Count the tasks that ran something on a host
description:
  - E(LMS_BENCH_TASKS) names the file to which the count of each host is written as JSON.
"""

# What the control host does by itself.
LOCAL = frozenset(
    {"add_host", "assert", "debug", "fail", "group_by", "include_vars", "meta", "pause", "set_fact", "set_stats", "validate_argument_spec"}
    | {"import_role", "import_tasks", "include_role", "include_tasks"}
)


class CallbackModule(CallbackBase):
    """Count what ran where."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "bench_tasks"

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def v2_runner_on_ok(self, result: Any) -> None:
        """Count a task for the host on which it ran: the one it was delegated to, if it was."""
        task = result.task if hasattr(result, "task") else result._task
        host = result.host if hasattr(result, "host") else result._host
        seen = dict(result.result if hasattr(result, "result") else result._result)
        if task.action.rpartition(".")[2] not in LOCAL:
            delegated = (seen.get("_ansible_delegated_vars") or {}).get("ansible_delegated_host")
            self.counts[delegated or host.get_name()] += 1

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Write the counts."""
        if path := os.environ.get("LMS_BENCH_TASKS"):
            Path(path).write_text(json.dumps(self.counts), encoding="utf-8")
