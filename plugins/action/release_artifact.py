# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of release_artifact that only the control host can do: send the source it has, and see which artifacts it lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._archive import sha256_of
from ansible_collections.bitflow.lms.plugins.plugin_utils._sending import SendingAction

ARCHIVE = "source.tar"


class ActionModule(SendingAction):
    """Run the module, and again with the source archive when its answer is that there is none; compare what it built with what is here."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module on the host."""
        super().run(tmp, task_vars)
        options = dict(self._task.args)
        answer = self._build(options, task_vars)
        here = options.get("local_artifacts")
        if here and "artifacts" in answer:
            answer["lacking"] = [] if self._task.check_mode else lacking(answer["artifacts"], Path(here).expanduser())
        return answer

    def _build(self, options: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Build, and send the source before it where the host has none."""
        answer = self.ask_host(options, task_vars)
        if not answer.get("archive_lacking"):
            return answer
        with self.sent({ARCHIVE: str(options["local_archive"])}) as directory:
            return self.ask_host({**options, "delivered": f"{directory}/{ARCHIVE}"}, task_vars)


def lacking(artifacts: Sequence[Mapping[str, Any]], directory: Path) -> list[dict[str, Any]]:
    """Return the artifacts that a directory does not have, byte for byte."""
    return [dict(artifact) for artifact in artifacts if not _is_whole(directory / Path(artifact["artifact"]).name, artifact["sha256"])]


def _is_whole(path: Path, sha256: str) -> bool:
    """Say whether a file is there and has a sum."""
    try:
        with path.open("rb") as stream:
            return sha256_of(stream) == sha256
    except FileNotFoundError:
        return False
