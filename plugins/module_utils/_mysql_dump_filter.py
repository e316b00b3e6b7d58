# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A program between a dump of MariaDB or MySQL and the client that restores it.

It knows nothing of the collection: the restore hands its text to an interpreter. Standard input is the dump, standard output what of
it is to be run; the argument says what that is. The programs that dump write every row's line breaks as \\n, so that a line begins
where a line of the dump begins; only the bodies of routines have lines of their own, and those stand between DELIMITER lines.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import Any

TRAILER = b"-- Dump completed"
# The last line may be followed by others.
TRAILER_LINES = 8

_START = re.compile(rb"^-- (?:MariaDB|MySQL) dump ")
_END = re.compile(rb"^/\*!40103 SET TIME_ZONE=@OLD_TIME_ZONE \*/")
_TABLE = re.compile(rb"^-- (?:Table structure for table|Dumping data for table) (?P<name>`(?:[^`]|``)*`)")
# What is left out when only some tables are wanted.
_OTHER = re.compile(rb"^-- (?:Temporary (?:table|view) structure for view|Final view structure for view|Dumping (?:routines|events) for)")
_DEFINER = re.compile(
    rb"^(?P<before>(?:/\*!50013|/\*!50003 CREATE\*/ /\*!50017|/\*!50106 CREATE\*/ /\*!50117|CREATE) DEFINER=)"
    rb"`(?:[^`]|``)*`(?:@`(?:[^`]|``)*`)?"
)
_TRIGGER = re.compile(rb"^/\*!50003 CREATE\*/ (?:/\*!50017 DEFINER=.*?\*/ )?/\*!50003 TRIGGER\b", re.IGNORECASE)
# Where a trigger's name and table end. All before is as whoever made it wrote it, and may name the database that it was in.
_TRIGGER_HEAD_ENDS = re.compile(rb"\bFOR\s+EACH\s+ROW\b", re.IGNORECASE)
_QUALIFIED = re.compile(rb"(?P<before>\b(?:TRIGGER|IF\s+NOT\s+EXISTS|ON)\s+)(?:`(?:[^`]|``)*`|[\w$]+|[^\x00-\x7f]+)\s*\.\s*", re.IGNORECASE)
_EVENT = re.compile(rb"^/\*!50106 CREATE\*/ (?:/\*!50117 DEFINER=.*?\*/ )?/\*!50106 EVENT ")
_ENABLED = re.compile(rb"(?P<before> ON COMPLETION (?:NOT )?PRESERVE )ENABLE(?= )")


class UnfitDumpError(Exception):
    """A dump that must not be restored so."""


def filtered(lines: Iterable[bytes], *, tables: Iterable[str] = (), owners: bool = True, events_become: str = "") -> Iterator[bytes]:
    """Return the lines of a dump that are to be run.

    tables: only those. owners: leave the definers as they are; otherwise it is who restores. events_become: such as DISABLE, instead
    of ENABLE. UnfitDumpError at the end when the dump was cut off, or lacks a table.
    """
    wanted = {b"`" + name.replace("`", "``").encode() + b"`" for name in tables}
    missing, keep, in_body, last = set(wanted), True, False, [b""] * TRAILER_LINES
    remaining = iter(lines)
    for line in remaining:
        # Rows are nearly all there is.
        if line.startswith((b"(", b"INSERT ")):
            if keep:
                yield line
            continue
        last = [*last[1:], line]
        if line.startswith(b"DELIMITER "):
            in_body = line.strip() != b"DELIMITER ;"
        elif not in_body or line.startswith((b"CREATE", b"/*!")):
            keep = _keeps(line, wanted, keep, missing)
            if _TRIGGER.match(line):
                line = _unqualified(line, remaining)
            line = _rewritten(line, owners, events_become)
        if keep:
            yield line
    if not any(line.startswith(TRAILER) for line in last):
        raise UnfitDumpError("The dump has no end: it was cut off.")
    if missing:
        names = ", ".join(sorted(name.decode(errors="replace") for name in missing))
        raise UnfitDumpError(f"The dump does not have {names}.")


def _keeps(line: bytes, wanted: set[bytes], keep: bool, missing: set[bytes]) -> bool:
    """Say whether what follows this line is wanted."""
    if not wanted:
        return True
    table = _TABLE.match(line)
    if table:
        missing.discard(table["name"])
        return table["name"] in wanted
    if _OTHER.match(line):
        return False
    return keep or bool(_START.match(line) or _END.match(line) or line.startswith(TRAILER))


def _rewritten(line: bytes, owners: bool, events_become: str) -> bytes:
    """Return a line of the dump as it is to be run."""
    if events_become and _EVENT.match(line):
        line = _ENABLED.sub(lambda found: found["before"] + events_become.encode(), line, count=1)
    return line if owners else _DEFINER.sub(rb"\g<before>CURRENT_USER", line)


def _unqualified(line: bytes, remaining: Iterator[bytes]) -> bytes:
    """Return the beginning of a trigger without the database's name, or it would be made in that one whichever it is restored into."""
    while not _TRIGGER_HEAD_ENDS.search(line):
        following = next(remaining, b"")
        line += following
        if not following:
            break
    end = _TRIGGER_HEAD_ENDS.search(line)
    head = line[: end.start()] if end else line
    return _QUALIFIED.sub(rb"\g<before>", head) + line[len(head) :]


def main() -> int:
    """Filter standard input."""
    # As other programs of a pipe: end when the next one is gone.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    options: dict[str, Any] = json.loads(sys.argv[1])
    try:
        for line in filtered(sys.stdin.buffer, **options):
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    except UnfitDumpError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
