# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restore single tables from a dump that is read once, from its beginning to its end.

pg_restore --table leaves out what a table needs (its schema, types, partitions) and what belongs to it (keys, indexes, triggers, the
owned sequences), and says nothing. This program reads the dump's table of contents, which stands at its front, chooses the entries,
and hands the whole dump to pg_restore. It is a program of its own, between others of a pipe, and so imports nothing but Python's own:

    python3 <this file> <plan: JSON> <pg_restore> <its options>
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

PIECE = 1024 * 1024
# How much of a dump is read before its contents are asked for, at first; they may be longer (bytes).
FIRST_LOOK = 256 * 1024

# What belongs to a table, and is nothing without it.
BELONGING = frozenset(
    {
        *("ACL", "CHECK CONSTRAINT", "COMMENT", "CONSTRAINT", "DEFAULT", "FK CONSTRAINT", "INDEX", "INDEX ATTACH", "POLICY"),
        *("ROW SECURITY", "RULE", "SECURITY LABEL", "SEQUENCE", "SEQUENCE OWNED BY", "SEQUENCE SET", "STATISTICS", "STATISTICS DATA"),
        *("TABLE ATTACH", "TABLE DATA", "TRIGGER"),
    }
)
# What has rows, or shows those of others; only tables that were asked for are restored.
RELATIONS = frozenset({"FOREIGN TABLE", "MATERIALIZED VIEW", "TABLE", "VIEW"})
# What a table may need, as far as it has to be told from the other words of a line.
NEEDED = frozenset({"COLLATION", "DOMAIN", "EXTENSION", "FUNCTION", "SCHEMA", "SHELL TYPE", "TYPE"})

_KINDS = "|".join(sorted(BELONGING | RELATIONS | NEEDED | {"DEFAULT ACL", "MATERIALIZED VIEW DATA"}, key=len, reverse=True))
_ENTRY = re.compile(rf"^(?P<id>\d+); \d+ \d+ (?P<kind>{_KINDS}|\S+) (?P<rest>.*)$")
_DEPENDENCIES = re.compile(r"^;\s+depends on:(?P<ids>[ \d]+)$")


@dataclass(frozen=True)
class Entry:
    """A line of a dump's table of contents."""

    id: int
    kind: str
    # Schema (or -), name and owner, between which only spaces stand, as they may within a name.
    rest: str
    dependencies: frozenset[int] = frozenset()
    line: str = ""

    def is_named(self, name: str) -> bool:
        """Say whether schema and name are these, whatever the owner."""
        return self.rest.startswith(f"{name} ")


def parse_contents(listing: str) -> list[Entry]:
    """Return the entries that pg_restore --list --verbose prints."""
    entries: list[Entry] = []
    for line in listing.splitlines():
        match = _ENTRY.match(line)
        dependencies = _DEPENDENCIES.match(line)
        if match:
            entries.append(Entry(int(match["id"]), match["kind"], match["rest"], line=line))
        elif dependencies and entries:
            last = entries[-1]
            entries[-1] = Entry(last.id, last.kind, last.rest, frozenset(map(int, dependencies["ids"].split())), last.line)
    return entries


def find_tables(entries: Iterable[Entry], wanted: Collection[str], known: Collection[str]) -> dict[str, int]:
    """Return the entries of the wanted tables, named as the contents name them ("public users"). known are all tables of the dump."""
    found = {}
    for entry in entries:
        # One name may begin as another one does.
        name = max((name for name in known if entry.is_named(name)), key=len, default="") if entry.kind == "TABLE" else ""
        if name and name in wanted:
            found[name] = entry.id
    return found


def choose(entries: Sequence[Entry], tables: Iterable[int], existing: Mapping[str, Collection[str]]) -> list[Entry]:
    """Return the entries that make the tables whole: their partitions, what belongs to them, and what they need and is not there yet."""
    by_id = {entry.id: entry for entry in entries}
    relations = {entry.id for entry in entries if entry.kind in RELATIONS}
    own = _with_partitions(entries, set(tables))
    needed: set[int] = set()
    before = -1
    while before != len(own) + len(needed):
        before = len(own) + len(needed)
        for entry in entries:
            # A key to a table that is not restored, or a policy that asks one, would fail.
            elsewhere = (entry.dependencies & relations) - own
            if entry.kind in BELONGING and entry.dependencies & own and not elsewhere:
                own.add(entry.id)
        for entry in [by_id[each] for each in own | needed]:
            needed |= {each for each in entry.dependencies if each in by_id and each not in own and each not in relations}
        own |= {each for each in needed if by_id[each].kind == "SEQUENCE"}
        needed -= own
    there = {entry.id for entry in entries if any(entry.is_named(name) for name in existing.get(entry.kind, ()))}
    sequences = {entry.id for entry in entries if entry.kind == "SEQUENCE"} & there
    # Whoever uses a sequence that is there goes on where it stands.
    skipped = {entry.id for entry in entries if entry.kind.startswith("SEQUENCE") and entry.dependencies & sequences}
    return [entry for entry in entries if (entry.id in own and entry.id not in sequences | skipped) or entry.id in needed - there]


def _with_partitions(entries: Iterable[Entry], tables: set[int]) -> set[int]:
    """Return tables with all their partitions, and the partitions of these."""
    names = {entry.id: entry.rest for entry in entries if entry.kind == "TABLE"}
    # By parent. What attaches a partition is named as that is.
    children: dict[int, set[int]] = {}
    for entry in entries:
        if entry.kind == "TABLE ATTACH":
            pair = entry.dependencies & names.keys()
            child = {each for each in pair if names[each] == entry.rest}
            for parent in pair - child:
                children.setdefault(parent, set()).update(child)
    found, new = set(tables), set(tables)
    while new:
        new = {child for parent in new for child in children.get(parent, ())} - found
        found |= new
    return found


class ContentsError(Exception):
    """A dump whose contents cannot be read, or that lacks a table."""


def read_contents(source: BinaryIO, program: str, first: int = FIRST_LOOK) -> tuple[bytes, str]:
    """Return the beginning of a dump, and what it lists as its contents."""
    beginning, wanted = b"", first
    while True:
        piece = source.read(wanted - len(beginning))
        beginning += piece
        argv = [program, "--list", "--verbose"]
        listed = subprocess.run(argv, input=beginning, check=False, capture_output=True)  # pylint: disable=ansible-bad-function
        if listed.returncode == 0:
            return beginning, listed.stdout.decode("utf-8", errors="surrogateescape")
        if not piece:
            raise ContentsError(listed.stderr.decode("utf-8", errors="replace").strip())
        wanted *= 4


def main(arguments: Sequence[str]) -> int:
    """Choose, and let pg_restore act. Return its status."""
    plan: dict[str, Any] = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    program = arguments[1:]
    source = sys.stdin.buffer
    try:
        beginning, listing = read_contents(source, program[0])
        entries = parse_contents(listing)
        tables = find_tables(entries, plan["tables"], plan["known"])
        missing = sorted(set(plan["tables"]) - tables.keys())
        if missing:
            raise ContentsError(f"The dump has no table {', '.join(missing)}.")
    except ContentsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    chosen = choose(entries, tables.values(), plan["existing"])
    descriptor = os.memfd_create("contents")
    with os.fdopen(os.dup(descriptor), "w", encoding="utf-8", errors="surrogateescape") as stream:
        stream.writelines(f"{entry.line}\n" for entry in chosen)
    argv = [*program, f"--use-list=/proc/self/fd/{descriptor}"]
    restoring = subprocess.Popen(argv, stdin=subprocess.PIPE, pass_fds=(descriptor,))  # pylint: disable=ansible-bad-function
    # It was opened as a pipe.
    stream_in = cast(IO[bytes], restoring.stdin)
    piece = beginning
    try:
        while piece:
            stream_in.write(piece)
            piece = source.read(PIECE)
        stream_in.close()
    except BrokenPipeError:
        # Its status says why.
        pass
    # What is not read would look like a failure of the program before.
    while source.read(PIECE):
        pass
    status = restoring.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
