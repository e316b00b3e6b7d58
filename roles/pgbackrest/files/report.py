"""Verify the backups of a stanza, or write their figures for Prometheus.

    report.py --stanza NAME verify STATE             exits with 1 if something is not whole, and notes the outcome in STATE
    report.py --stanza NAME metrics STATE FILE DATA  writes FILE, for the node exporter

pgbackrest_info.py beside it reads what pgBackRest says. It is the same file that the module bitflow.lms.pgbackrest uses.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pgbackrest_info import Stanza, metrics, position_of, read_info, read_listing, read_verification

USER = "postgres"


def pgbackrest(stanza: str, command: str, *options: str, arguments: tuple[str, ...] = ()) -> str:
    """Run a command as the database's user and return what it printed."""
    account = pwd.getpwnam(USER)
    identity: dict[str, Any] = {} if os.geteuid() == account.pw_uid else {"user": USER, "group": account.pw_gid, "extra_groups": []}
    quiet = ("--log-level-console=off", "--log-level-stderr=warn", "--log-level-file=off")
    argv = ["pgbackrest", f"--stanza={stanza}", *quiet, *options, command, *arguments]
    # What goes wrong stands in the journal.
    run = subprocess.run(argv, stdout=subprocess.PIPE, check=True, cwd="/", **identity)
    return run.stdout.decode("utf-8", "replace")


def look(name: str, waiting: list[str]) -> Stanza:
    """Return what the repositories hold."""
    stanza = read_info(pgbackrest(name, "info", "--output=json"), name)
    if not stanza.backups:
        return stanza
    size, segments = stanza.segment_size, {}
    for repository in stanza.repositories:
        if repository.status in {"ok", "empty"}:
            listing = pgbackrest(name, "repo-ls", f"--repo={repository.key}", "--recurse", "--output=json", arguments=(f"archive/{name}",))
            segments[repository.key] = read_listing(listing, stanza.database_version, size)
    return replace(stanza, segments=segments, waiting={position_of(item, size) for item in waiting if len(item) == 24})


def waiting_in(data: Path) -> tuple[list[str], float]:
    """Return the segments that PostgreSQL has still to hand over, and when the oldest began to wait."""
    names, oldest = [], time.time()
    for path in (data / "pg_wal/archive_status").glob("*.ready"):
        try:
            oldest = min(oldest, path.stat().st_mtime)
        except FileNotFoundError:
            continue
        names.append(path.stem)
    return names, oldest


def verify(name: str, state: Path) -> int:
    """Read every file of the repositories, and note the outcome."""
    problems = []
    for repository in read_info(pgbackrest(name, "info", "--output=json"), name).repositories:
        if repository.status not in {"ok", "empty"}:
            problems.append(f"repository {repository.key}: {repository.status} {repository.message}")
            continue
        found = read_verification(pgbackrest(name, "verify", f"--repo={repository.key}", "--output=text", "--verbose"))
        problems += [f"repository {repository.key}: {problem}" for problem in found["problems"]]
    try:
        before = json.loads(state.read_text())
    except (OSError, ValueError):
        before = {}
    verified = before.get("verified", 0) if problems else int(time.time())
    write(state, json.dumps({"ok": not problems, "problems": problems, "verified": verified}))
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 1 if problems else 0


def report(name: str, state: Path, file: Path, data: Path) -> int:
    """Write the figures."""
    names, oldest = waiting_in(data)
    try:
        verification = json.loads(state.read_text())
    except (OSError, ValueError):
        verification = {}
    now = time.time()
    write(file, metrics(look(name, names), (len(names), now - oldest), verification, now))
    return 0


def write(path: Path, text: str) -> None:
    """Write a file in one step: it is never read half written."""
    # The node exporter reads files that end in .prom alone.
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(text)
    temporary.chmod(0o644)
    temporary.replace(path)


def main() -> int:
    """Do what is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stanza", required=True)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, paths in (("verify", ("state",)), ("metrics", ("state", "file", "data"))):
        subparser = commands.add_parser(command)
        for path in paths:
            subparser.add_argument(path, type=Path)
    given = parser.parse_args()
    if given.command == "verify":
        return verify(given.stanza, given.state)
    return report(given.stanza, given.state, given.file, given.data)


if __name__ == "__main__":
    sys.exit(main())
