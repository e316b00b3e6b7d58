# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Maintenance follows the live release into the next one, and out of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._maintenance_marker import MARKER, PAGE, STUBS, carry_maintenance


def release(path: Path, down: str | None = None, page: str | None = None, stub: str | None = None) -> Path:
    """Make a release, with the files of maintenance that are given."""
    (path / "storage/framework").mkdir(parents=True)
    for name, content in ((MARKER, down), (PAGE, page), (STUBS[0], stub)):
        if content is not None:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(content)
    return path


def files(path: Path) -> dict[str, str]:
    """Return the files of maintenance."""
    return {name: (path / name).read_text() for name in (MARKER, PAGE) if (path / name).exists()}


@pytest.mark.parametrize(
    ("live", "candidate", "expected", "changed"),
    [
        ({}, {}, {}, False),
        ({"down": "{1}", "page": "a"}, {}, {MARKER: "{1}", PAGE: "a"}, True),
        ({"down": "{1}", "page": "a"}, {"stub": "b"}, {MARKER: "{1}", PAGE: "b"}, True),
        ({"down": "{2}", "page": "a"}, {"down": "{1}", "page": "a"}, {MARKER: "{2}", PAGE: "a"}, True),
        ({"down": "{1}", "page": "a"}, {"down": "{1}", "page": "a"}, {MARKER: "{1}", PAGE: "a"}, False),
        ({}, {"down": "{1}", "page": "a"}, {}, True),
    ],
)
def test_candidate_becomes_what_the_live_release_is(
    tmp_path: Path, live: dict[str, str], candidate: dict[str, str], expected: dict[str, str], changed: bool
) -> None:
    next_one = release(tmp_path / "candidate", **candidate)

    result = carry_maintenance(release(tmp_path / "live", **live), next_one)

    assert (files(next_one), result) == (expected, changed)


def test_marker_with_its_secret_is_not_for_everybody(tmp_path: Path) -> None:
    candidate = release(tmp_path / "candidate")

    carry_maintenance(release(tmp_path / "live", down="{}"), candidate)

    assert (candidate / MARKER).stat().st_mode & 0o777 == 0o640


def test_shared_directory_is_left_alone(tmp_path: Path) -> None:
    live = release(tmp_path / "live", down="{}")
    (tmp_path / "candidate/storage").mkdir(parents=True)
    (tmp_path / "candidate/storage/framework").symlink_to(live / "storage/framework")

    assert carry_maintenance(live, tmp_path / "candidate") is False
    assert (live / MARKER).exists()


def test_candidate_without_the_directory_gets_it(tmp_path: Path) -> None:
    (tmp_path / "candidate").mkdir()

    assert carry_maintenance(release(tmp_path / "live", down="{}"), tmp_path / "candidate") is True
    assert files(tmp_path / "candidate") == {MARKER: "{}"}


def test_application_that_is_no_laravel_gets_nothing(tmp_path: Path) -> None:
    for name in ("live", "candidate"):
        (tmp_path / name).mkdir()

    assert carry_maintenance(tmp_path / "live", tmp_path / "candidate") is False
    assert list((tmp_path / "candidate").iterdir()) == []


def test_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "candidate").mkdir()
    (tmp_path / "candidate/storage").touch()

    with pytest.raises((LmsError, OSError)):
        carry_maintenance(release(tmp_path / "live", down="{}"), tmp_path / "candidate")
