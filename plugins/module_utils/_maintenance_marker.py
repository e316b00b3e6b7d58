# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files by which a release knows that it is in maintenance, and how they follow the live release."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ansible_collections.bitflow.lms.plugins.module_utils._files import make_directory, owner_of_directory, write_atomically

MARKER = "storage/framework/down"
PAGE = "storage/framework/maintenance.php"
STUBS = (
    "vendor/laravel/framework/src/Illuminate/Foundation/Console/stubs/maintenance-mode.stub",
    "vendor/laravel/framework/Foundation/Console/stubs/maintenance-mode.stub",
)


def carry_maintenance(live: Path, candidate: Path) -> bool:
    """Give a release the maintenance mode of the live one, before it takes its place; return whether that was a change.

    The marker lies in each release. Without this, a deployment during maintenance would open the application, and a rollback to a
    release that was down once would close it. Where the cache keeps the mode there are no files, and nothing to do.
    """
    marker, page = candidate / MARKER, candidate / PAGE
    if marker.parent.resolve() == (live / MARKER).parent.resolve():
        return False
    payload, before = _content(live / MARKER), _content(marker)
    if payload is None:
        for path in (marker, page):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
        return before is not None
    # A candidate of another Laravel answers with its own page, which does nothing until the marker is there.
    stubs = [content for content in (_content(candidate / name) for name in STUBS) if content is not None]
    make_directory(marker.parent, 0o755, owner_of_directory(candidate))
    for path, content in ((page, stubs[0] if stubs else _content(live / PAGE)), (marker, payload)):
        if content is not None and _content(path) != content:
            write_atomically(path, content, 0o640, owner_of_directory(marker.parent))
    return before != payload


def _content(path: Path) -> bytes | None:
    """Return what a file holds; None when it is not there."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
