# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a login of MariaDB or MySQL may do in a database, as SHOW GRANTS tells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_GRANT = re.compile(r"^GRANT (?P<what>.+?) ON (?P<scope>\*\.\*|`(?P<database>(?:[^`]|``)+)`\.\*) TO ")
_WITHIN_PARENTHESES = re.compile(r"\s*\([^)]*\)")
# Any of these in the database lets a login see that its routines exist.
_SEE_IN_DATABASE = {"ALL PRIVILEGES", "EXECUTE", "ALTER ROUTINE", "CREATE ROUTINE", "SHOW CREATE ROUTINE"}
_SEE_EVERYWHERE = {*_SEE_IN_DATABASE, "SELECT", "SHOW_ROUTINE"}


@dataclass(frozen=True)
class Privileges:
    """What a login may do."""

    FOR_ROUTINES = "SHOW_ROUTINE ON *.* (MySQL), SHOW CREATE ROUTINE ON the database (MariaDB 11.3), or SELECT ON mysql.proc (MariaDB)"

    everywhere: frozenset[str]
    in_database: frozenset[str]

    def missing(self, needed: Sequence[str]) -> list[str]:
        """Return which of the needed privileges it lacks."""
        has = self.everywhere | self.in_database
        return [] if "ALL PRIVILEGES" in has else [name for name in needed if name not in has]

    @property
    def sees_routines(self) -> bool:
        """Say whether it sees which routines there are."""
        return bool(self.everywhere & _SEE_EVERYWHERE or self.in_database & _SEE_IN_DATABASE)


def read_privileges(grants: Iterable[str], database: str) -> Privileges:
    """Return what lines of SHOW GRANTS say of a database."""
    everywhere: set[str] = set()
    in_database: set[str] = set()
    for line in grants:
        match = _GRANT.match(line)
        if not match:
            continue
        names = {name.strip().upper() for name in _WITHIN_PARENTHESES.sub(" (columns)", match["what"]).split(",")}
        if match["scope"] == "*.*":
            everywhere |= names
        elif _pattern(match["database"].replace("``", "`")).fullmatch(database):
            in_database |= names
    return Privileges(frozenset(everywhere), frozenset(in_database))


def _pattern(text: str) -> re.Pattern[str]:
    """Return a pattern of databases as a regular expression: %, _ and a backslash before what stands for itself."""
    parts = re.findall(r"\\.|.", text, re.DOTALL)
    return re.compile("".join({"%": ".*", "_": "."}.get(part) or re.escape(part[-1]) for part in parts), re.DOTALL)
