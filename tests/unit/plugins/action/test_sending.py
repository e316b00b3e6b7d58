# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The actions whose artifacts travel with them: what the host is asked, and what is left there."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.bitflow.lms.plugins.action import laravel_release, nextjs_release, release_artifact

SHELL = SimpleNamespace(tmpdir=None, join_path=lambda *parts: "/".join(part.rstrip("/") for part in parts))


class Sending:
    """A connection to a host that takes files, and a module there that says what it was asked."""

    def __init__(
        self, plugin: Any, options: dict[str, Any], check_mode: bool = False, fails: bool = False, answers: Sequence[dict[str, Any]] = ()
    ) -> None:
        remaining = list(answers) or [{"changed": True}]
        self.files: dict[str, str] = {}
        self.asked: dict[str, Any] = {}
        task = SimpleNamespace(args=options, async_val=0, check_mode=check_mode, environment=None, action="bitflow.lms.some_release")
        sending = self

        class Action(plugin.ActionModule):  # type: ignore[misc, name-defined]
            def _make_tmp_path(self, remote_user: Any = None) -> str:
                SHELL.tmpdir = "/tmp/of-the-task/"
                return SHELL.tmpdir

            def _transfer_file(self, local_path: str, remote_path: str) -> str:
                sending.files[remote_path] = Path(local_path).read_text()
                return remote_path

            def _fixup_perms2(self, remote_paths: Any, remote_user: Any = None, execute: bool = True) -> None:
                assert set(remote_paths) == {SHELL.tmpdir, *sending.files}

            def _remove_tmp_path(self, tmp_path: str, force: bool = False) -> None:
                sending.files = {path: text for path, text in sending.files.items() if not path.startswith(tmp_path)}

            def _execute_module(self, module_args: dict[str, Any], **_options: Any) -> dict[str, Any]:
                sending.asked, sending.seen = module_args, dict(sending.files)
                if fails:
                    raise ConnectionError
                return remaining.pop(0)

        self.seen: dict[str, str] = {}
        self.action = Action(task, SimpleNamespace(_shell=SHELL), SimpleNamespace(), None, None, None)


def test_the_artifact_of_laravel_is_there_when_the_module_runs_and_not_after(tmp_path: Path) -> None:
    (tmp_path / "backend-1.tar.gz").write_text("backend")
    sending = Sending(laravel_release, {"release": "r1", "local_artifact": str(tmp_path / "backend-1.tar.gz")})

    assert sending.action.run() == {"changed": True}
    assert sending.asked == {"release": "r1", "artifact": "/tmp/of-the-task/release.tar.gz"}
    assert (sending.seen, sending.files) == ({"/tmp/of-the-task/release.tar.gz": "backend"}, {})


def test_the_artifacts_of_front_ends_are_there_under_their_names(tmp_path: Path) -> None:
    for name in ("admin", "student"):
        (tmp_path / f"{name}-1.tar.gz").write_text(name)
    sending = Sending(nextjs_release, {"local_artifacts": {name: str(tmp_path / f"{name}-1.tar.gz") for name in ("admin", "student")}})

    sending.action.run()

    assert sending.asked == {"artifacts_path": "/tmp/of-the-task"}
    assert sending.seen == {"/tmp/of-the-task/admin.tar.gz": "admin", "/tmp/of-the-task/student.tar.gz": "student"}


def test_nothing_is_left_when_the_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "backend.tar.gz").write_text("backend")
    sending = Sending(laravel_release, {"local_artifact": str(tmp_path / "backend.tar.gz")}, fails=True)

    with pytest.raises(ConnectionError):
        sending.action.run()

    assert sending.files == {}


@pytest.mark.parametrize("plugin", [laravel_release, nextjs_release])
@pytest.mark.parametrize(("given", "check_mode"), [({}, False), ({"local_artifact": "/none", "local_artifacts": {"admin": "/none"}}, True)])
def test_without_a_file_and_in_check_mode_nothing_is_sent(plugin: Any, given: dict[str, Any], check_mode: bool) -> None:
    own = {key: value for key, value in given.items() if key == ("local_artifact" if plugin is laravel_release else "local_artifacts")}
    sending = Sending(plugin, {"release": "r1", **own}, check_mode)

    sending.action.run()

    assert (sending.asked, sending.seen) == ({"release": "r1"}, {})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    sending = Sending(laravel_release, {"local_artifact": str(tmp_path / "none.tar.gz")})

    with pytest.raises(AnsibleActionFail, match=r"There is no file .*/none\.tar\.gz on the control host\. Build the artifact first\."):
        sending.action.run()


LACKING = {"changed": False, "archive_lacking": True}
BUILT = {"changed": True, "artifacts": [{"artifact": "/srv/build/backend-1.tar.gz", "sha256": sha256(b"built").hexdigest()}]}


@pytest.mark.parametrize(("answers", "sent"), [([BUILT], {}), ([LACKING, BUILT], {"/tmp/of-the-task/source.tar": "source"})])
def test_the_source_is_sent_where_the_build_host_lacks_it(tmp_path: Path, answers: list[dict[str, Any]], sent: dict[str, str]) -> None:
    (tmp_path / "1.tar").write_text("source")
    options = {"archive": "/srv/build/1.tar", "local_archive": str(tmp_path / "1.tar")}
    sending = Sending(release_artifact, options, answers=answers)

    assert sending.action.run() == BUILT
    assert (sending.seen, sending.files) == (sent, {})
    assert sending.asked == options | ({"delivered": "/tmp/of-the-task/source.tar"} if sent else {})


@pytest.mark.parametrize(("here", "check_mode", "lacking"), [("built", False, 0), ("half", False, 1), (None, False, 1), (None, True, 0)])
def test_what_the_control_host_lacks_is_told_by_its_bytes(tmp_path: Path, here: str | None, check_mode: bool, lacking: int) -> None:
    if here:
        (tmp_path / "backend-1.tar.gz").write_text(here)
    options = {"archive": "/srv/build/1.tar", "local_artifacts": str(tmp_path)}

    answer = Sending(release_artifact, options, check_mode, answers=[dict(BUILT)]).action.run()

    assert answer["lacking"] == BUILT["artifacts"][:lacking]
