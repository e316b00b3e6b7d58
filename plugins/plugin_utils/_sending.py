# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An action whose files travel with it: one task sends them and runs the module, in place of a task for each file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase


class SendingAction(ActionBase):  # type: ignore[misc]
    """Runs the module of its task on the host, with files of the control host beside it."""

    _supports_check_mode = True
    _supports_async = False

    def ask_host(self, options: Mapping[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Run the module and return its result."""
        result: dict[str, Any] = self._execute_module(module_args=dict(options), task_vars=task_vars)
        return result

    @contextmanager
    def sent(self, files: Mapping[str, str]) -> Iterator[str]:
        """Send files, named by the keys, and give the directory of the host in which they lie until the end."""
        found = {name: Path(path).expanduser() for name, path in files.items()}
        lacking = [str(path) for path in found.values() if not path.is_file()]
        if lacking:
            raise AnsibleActionFail(f"There is no file {', '.join(lacking)} on the control host. Build the artifact first.")
        shell = self._connection._shell
        self._make_tmp_path()
        try:
            places = [self._transfer_file(str(path), shell.join_path(shell.tmpdir, name)) for name, path in found.items()]
            # The user who runs the module need not be the one who connects.
            self._fixup_perms2((shell.tmpdir, *places))
            yield shell.tmpdir.rstrip("/")
        finally:
            self._remove_tmp_path(shell.tmpdir)
