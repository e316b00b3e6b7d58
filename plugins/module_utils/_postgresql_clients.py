# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The clients of PostgreSQL on this host, and which of their versions fits."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path

from ansible_collections.bitflow.lms.plugins.module_utils._database import DatabaseError
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import Stage, start

# Where Debian and Ubuntu keep the versions beside each other.
VERSIONED = Path("/usr/lib/postgresql")

_VERSION = re.compile(r"\(PostgreSQL\) (?P<version>\d+[\w.]*)")


def major_of(version: str) -> int:
    """Return the major version, such as 17 of 17.11."""
    match = re.match(r"\d+", version)
    return int(match[0]) if match else 0


def for_dump(installed: Collection[int], server: int) -> int | None:
    """Return the version that dumps a server: its own, or the next newer one. An older one cannot.

    The newest one would write what only its like reads, so that the server's own pg_restore were too old for the dump.
    """
    return min((major for major in installed if major >= server), default=None)


def for_restore(installed: Collection[int], dumped_with: int, server: int) -> int | None:
    """Return the version that reads a dump: at least the one that wrote it, and else the one that is nearest to the server."""
    able = [major for major in installed if major >= dumped_with]
    return min((major for major in able if major >= server), default=max(able, default=None))


def ask_version(program: str) -> str:
    """Return the version that a client says it has, or nothing."""
    process = start(Stage([program, "--version"]), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    match = _VERSION.search(process.communicate()[0].decode(errors="replace"))
    return match["version"] if match else ""


class Clients:
    """The clients that are installed."""

    def __init__(
        self,
        directory: Path = VERSIONED,
        which: Callable[[str], str | None] = shutil.which,
        version_of: Callable[[str], str] = ask_version,
    ) -> None:
        self._version_of = version_of
        # By major version, where its programs are.
        self._found = {
            int(found.parent.parent.name): found.parent for found in directory.glob("*/bin/pg_dump") if found.parent.parent.name.isdigit()
        }
        elsewhere = which("pg_dump")
        if not self._found and elsewhere:
            self._found = {major_of(version_of(elsewhere)): Path(elsewhere).parent}

    @property
    def majors(self) -> list[int]:
        """Return the major versions that are installed."""
        return sorted(self._found)

    @property
    def newest(self) -> int:
        """Return the newest major version."""
        if not self._found:
            raise DatabaseError("No client of PostgreSQL is installed on this host: install the package postgresql-client.")
        return max(self._found)

    def program(self, name: str, major: int) -> str:
        """Return the path of a client."""
        return str(self._found[major] / name)

    def version(self, major: int) -> str:
        """Return the full version of a client, such as 17.11."""
        return self._version_of(self.program("pg_dump", major))

    def dumping(self, server: int) -> int:
        """Return the major version of the client that dumps a server."""
        major = for_dump(self._found, server)
        if major is None:
            raise DatabaseError(
                f"The server is PostgreSQL {server}, and the newest client on this host is {self.newest}, which cannot dump it: "
                f"install the package postgresql-client-{server}."
            )
        return major

    def restoring(self, dumped_with: int, server: int) -> int:
        """Return the major version of the client that restores a dump."""
        major = for_restore(self._found, dumped_with, server)
        if major is None:
            raise DatabaseError(
                f"The dump was made by pg_dump {dumped_with}, and the newest client on this host is {self.newest}, which cannot read it: "
                f"install the package postgresql-client-{dumped_with}."
            )
        return major
