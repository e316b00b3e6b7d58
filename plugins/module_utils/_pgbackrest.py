# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pgBackRest on a database host: run it, believe only what is in its repositories afterwards, and say in one sentence what is wrong."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._pgbackrest_info import (
    STRONGER,
    Backup,
    Segment,
    Stanza,
    iso,
    position_of,
    printable,
    read_info,
    read_listing,
    read_verification,
)
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import Stage, start

# Both places at which pgBackRest looks, the first one that is there.
CONFIGURATIONS = ("/etc/pgbackrest/pgbackrest.conf", "/etc/pgbackrest.conf")
# On standard error is what goes wrong, and nothing else on standard output than what was asked for.
QUIET = "--log-level-console=off"
SAID = re.compile(r"^(?:P\d+\s+)?(?P<level>ERROR|WARN): (?:\[(?P<code>\d+)\]: )?(?P<text>.*)$", re.MULTILINE)
HINT = re.compile(r"^\s*HINT: (?P<text>.*)$", re.MULTILINE)
ARCHIVER = """
SELECT json_build_object('in_recovery', pg_is_in_recovery(), 'archive_mode', current_setting('archive_mode'),
  'archive_command', current_setting('archive_command'), 'archived', archived_count, 'failed', failed_count,
  'last_archived', last_archived_wal, 'last_archived_time', extract(epoch FROM last_archived_time)::bigint,
  'last_failed', last_failed_wal, 'last_failed_time', extract(epoch FROM last_failed_time)::bigint)
FROM pg_stat_archiver
"""
# What pgBackRest's own numbers mean, and what to do.
ADVICE = {
    26: "The backup is damaged: restore an older one (set), or one in another repository, and verify them all.",
    28: "Another database is in the stanza, as after an upgrade of PostgreSQL: run pgbackrest stanza-upgrade.",
    37: "The configuration does not know it: give its section pg1-path.",
    38: "Stop the server first.",
    50: "Another pgBackRest is at work for it: wait until it has ended.",
    55: "Create the stanza first: state=present.",
    56: "PostgreSQL does not let it in: is the server running?",
    58: "PostgreSQL does not let it in: is the server running?",
    68: "Set PostgreSQL's archive_command to: pgbackrest --stanza={stanza} archive-push %p.",
    82: "PostgreSQL hands its log over too slowly or not at all: its own log says why archive_command fails.",
    87: "Set PostgreSQL's archive_mode to on, and restart it.",
}


@dataclass(frozen=True)
class Output:
    """How a program ended, and what it printed."""

    rc: int
    stdout: str
    stderr: str


Run = Callable[[Sequence[str]], Output]


def run_as(user: str) -> Run:
    """Return what runs programs as a user of this host. They end with this process."""

    def run(argv: Sequence[str]) -> Output:
        if shutil.which(argv[0]) is None:
            raise LmsError(f"The program {argv[0]} is not installed on this host. The role bitflow.lms.pgbackrest installs it.")
        process = start(Stage(argv, user=user), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        stdout, stderr = process.communicate()
        return Output(process.returncode, stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace"))

    return run


def read_options(text: str, stanza: str) -> dict[str, str]:
    """Return what a configuration says of a stanza: its own section wins over the global one."""
    sections: dict[str, dict[str, str]] = {}
    section: dict[str, str] = {}
    for line in (line.strip() for line in text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            section = sections.setdefault(line[1:-1], {})
        elif "=" in line and not line.startswith("#"):
            key, _sign, value = line.partition("=")
            section[key.strip()] = value.strip()
    return {**sections.get("global", {}), **sections.get(stanza, {})}


@dataclass(frozen=True)
class Server:
    """The cluster of a stanza as its files tell it."""

    data: Path | None
    # Of the process, 0 while none runs.
    pid: int = 0
    port: int = 0
    socket: str = ""

    @property
    def running(self) -> bool:
        """Say whether the server runs."""
        return self.pid > 0

    def waiting(self, now: float) -> tuple[list[str], float]:
        """Return the segments that PostgreSQL has still to hand over, and for how long the oldest has waited (seconds)."""
        if self.data is None:
            return [], 0.0
        names, oldest = [], now
        try:
            for entry in os.scandir(self.data / "pg_wal/archive_status"):
                if entry.name.endswith(".ready"):
                    names.append(entry.name[: -len(".ready")])
                    oldest = min(oldest, entry.stat().st_mtime)
        except OSError:
            # Nothing there yet, or taken away while we looked.
            pass
        return sorted(names), now - oldest

    @classmethod
    def at(cls, data: Path | None) -> Server:
        """Look for the process that holds a data directory."""
        try:
            lines = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines() if data else []
            pid = int(lines[0]) if lines else 0
        except (OSError, ValueError):
            return cls(data)
        if not pid or not Path(f"/proc/{pid}").exists():
            return cls(data)
        port, socket = [*lines[3:5], "", ""][:2]
        return cls(data, pid, int(port) if port.isdigit() else 0, socket.strip())


@dataclass(frozen=True)
class State:
    """What is known of a stanza before something is decided."""

    stanza: Stanza
    server: Server
    archiver: dict[str, Any] | None
    waiting: tuple[list[str], float]
    now: float

    def describe(self) -> dict[str, Any]:
        """Return the keys of a module's result that each state has."""
        return {
            "stanza": self.stanza.name,
            "info": {
                **self.stanza.describe(self.now),
                "data_directory": str(self.server.data) if self.server.data else None,
                "server_running": self.server.running,
            },
            "archiver": self.archiver,
            "waiting": {"segments": len(self.waiting[0]), "oldest": int(self.waiting[1])},
        }


class Pgbackrest:
    """pgBackRest for a stanza of this host."""

    def __init__(
        self,
        stanza: str,
        *,
        run: Run,
        config: str = "",
        data: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.stanza = stanza
        self.run = run
        self.config = config
        self.clock = clock
        path = data or read_options(self._configuration(), stanza).get("pg1-path", "")
        self.data = Path(path) if path else None

    def _configuration(self) -> str:
        """Return the configuration, and what lies beside it."""
        main = next((path for path in ([self.config] if self.config else CONFIGURATIONS) if Path(path).is_file()), None)
        if main is None:
            return ""
        more = sorted(Path("/etc/pgbackrest/conf.d").glob("*.conf")) if not self.config else []
        try:
            return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in [Path(main), *more])
        except OSError as error:
            raise LmsError(f"{error.filename} cannot be read: {error.strerror}. Run the task as root, or as the user postgres.") from error

    def argv(self, command: str, *options: str) -> list[str]:
        """Return how a command is run for the stanza."""
        chosen = [f"--config={self.config}"] if self.config else []
        return ["pgbackrest", *chosen, f"--stanza={self.stanza}", *options, command]

    def command(self, command: str, *options: str, arguments: Sequence[str] = (), level: str = "warn") -> Output:
        """Run a command, and fail as it does."""
        output = self.run([*self.argv(command, QUIET, f"--log-level-stderr={level}", *options), *arguments])
        if output.rc != 0:
            raise CommandError(explain(command, self.stanza, output), rc=output.rc, stderr=printable_lines(output.stderr))
        return output

    def look(self) -> State:
        """Return what the repositories, the archive and the server say now."""
        now = self.clock()
        server = Server.at(self.data)
        stanza = read_info(self.command("info", "--output=json").stdout, self.stanza)
        waiting = server.waiting(now)
        if stanza.backups:
            size = stanza.segment_size
            segments = {
                repository.key: self._segments(repository.key, stanza.database_version, size)
                for repository in stanza.repositories
                if repository.status in {"ok", "empty"}
            }
            late = {position_of(name, size) for name in waiting[0] if re.fullmatch(r"[0-9A-F]{24}", name)}
            stanza = replace(stanza, segments=segments, waiting=late)
        return State(stanza, server, self._archiver(server), waiting, now)

    def _segments(self, repository: int, version: str, size: int) -> list[Segment]:
        """Return the segments of a repository."""
        options = (f"--repo={repository}", "--recurse", "--output=json")
        return read_listing(self.command("repo-ls", *options, arguments=[f"archive/{self.stanza}"]).stdout, version, size)

    def _archiver(self, server: Server) -> dict[str, Any] | None:
        """Return what PostgreSQL says of its archiving, or nothing where it cannot be asked."""
        if not server.running:
            return None
        address = ["-h", server.socket] if server.socket else []
        output = self.run(["psql", "-X", "-q", "-A", "-t", *address, "-p", str(server.port or 5432), "-d", "postgres", "-c", ARCHIVER])
        if output.rc != 0:
            return None
        found: dict[str, Any] = json.loads(output.stdout)
        times = {name: iso(found[name] or 0) for name in ("last_archived_time", "last_failed_time")}
        failing = (found["last_failed_time"] or 0) > (found["last_archived_time"] or 0)
        return {**found, **times, "failing": failing}


def printable_lines(text: str) -> str:
    """Return a text, line by line, without what is not printable."""
    return "\n".join(filter(None, map(printable, text.splitlines())))


def explain(command: str, stanza: str, output: Output) -> str:
    """Say in one sentence why a command failed, and what to do where that is known."""
    errors = [found for found in SAID.finditer(output.stderr) if found["level"] == "ERROR"]
    code = int(errors[0]["code"] or 0) if errors else 0
    if re.search(r"CryptoError|FormatError", output.stderr):
        return (
            f"The repository of stanza {stanza} cannot be read: it is encrypted with another passphrase than the configured one, or not at "
            f"all. Configure the passphrase with which it was created."
        )
    said = printable(errors[0]["text"]) if errors else f"it ended with status {output.rc}"
    hints = [printable(found["text"]) for found in HINT.finditer(output.stderr)]
    advice = ADVICE.get(code, "").format(stanza=stanza) or (f"{hints[0].rstrip('.?')}." if hints else "")
    return f"pgbackrest {command} failed for stanza {stanza}: {said.rstrip('.')}. {advice}".strip()


def check_readable(stanza: Stanza) -> None:
    """Refuse a repository that cannot be read."""
    for repository in stanza.repositories:
        if repository.status in {"passphrase", "error"}:
            raise LmsError(f"Repository {repository.key} of stanza {stanza.name} cannot be read. {repository.message}")


def check_created(stanza: Stanza) -> None:
    """Refuse a stanza that is not there."""
    check_readable(stanza)
    absent = [str(repository.key) for repository in stanza.repositories if repository.status == "missing"]
    if absent or not stanza.repositories:
        raise LmsError(f"Stanza {stanza.name} is not in repository {', '.join(absent) or 1}. Create it first: state=present.")


def young_enough(stanza: Stanza, kind: str, max_age: int, now: float) -> Backup | None:
    """Return the newest backup of a type, or of a stronger one, if it is younger than max_age (seconds) and not damaged."""
    newest = stanza.newest(*STRONGER[kind])
    if max_age and newest and not newest.damaged and 0 <= now - newest.stopped < max_age:
        return newest
    return None


def archiving_problems(state: State) -> list[str]:
    """Say what stands between the database and a recovery to now."""
    problems, archiver = [], state.archiver
    if archiver is None:
        problems.append(
            f"PostgreSQL in {state.server.data} does not answer, so nobody knows whether it hands over its log"
            if state.server.running
            else f"no PostgreSQL runs in {state.server.data}"
        )
    elif archiver["archive_mode"] == "off":
        problems.append("PostgreSQL's archive_mode is off")
    elif archiver["failing"]:
        problems.append(
            f"PostgreSQL failed to hand over {archiver['last_failed']} at {archiver['last_failed_time']}, and nothing since; "
            f"its log says why archive_command ({archiver['archive_command']}) fails"
        )
    if state.stanza.missing:
        problems.append(
            f"{state.stanza.missing} WAL segments after the newest backup are missing in the repository, as when archive-push-queue-max "
            f"was exceeded: only a new backup can be recovered from"
        )
    return problems


def create(tool: Pgbackrest, check_mode: bool) -> dict[str, Any]:
    """Create the stanza where a repository lacks it."""
    before = tool.look()
    check_readable(before.stanza)
    absent = [repository.key for repository in before.stanza.repositories if repository.status == "missing"]
    if not absent and before.stanza.repositories:
        return result(before)
    plan = [tool.argv("stanza-create")]
    if not check_mode:
        tool.command("stanza-create")
    after = before if check_mode else tool.look()
    if not check_mode:
        check_created(after.stanza)
    return result(after, changed=True, plan=plan, before={"stanza": "missing"}, after={"stanza": tool.stanza})


def check(tool: Pgbackrest, check_mode: bool, timeout: int) -> dict[str, Any]:
    """See that PostgreSQL hands over its log, from one end to the other."""
    before = tool.look()
    check_created(before.stanza)
    options = (f"--archive-timeout={timeout}",)
    said = ""
    if not check_mode:
        # It makes PostgreSQL begin a new segment, and waits for the former one to be in the repository.
        try:
            tool.command("check", *options)
        except CommandError as error:
            said = f" {error.message}"
    state = before if check_mode else tool.look() if said else settled(tool, timeout)
    problems = archiving_problems(state)
    if problems or said:
        reasons = f": {'; '.join(problems)}" if problems else ""
        raise LmsError(f"The log of stanza {tool.stanza} is not archived{reasons}.{said}", **state.describe())
    return result(state, plan=[tool.argv("check", *options)])


def settled(tool: Pgbackrest, timeout: int) -> State:
    """Look when PostgreSQL has heard of what it handed over: it is in the repository a moment earlier."""
    end = tool.clock() + min(timeout, 5)
    while (state := tool.look()).archiver and state.waiting[0] and not state.archiver["failing"] and tool.clock() < end:
        time.sleep(0.2)
    return state


def back_up(tool: Pgbackrest, check_mode: bool, kind: str, max_age: int, repository: int, options: Sequence[str]) -> dict[str, Any]:
    """Make a backup in a repository, unless there is one that is young enough."""
    before = tool.look()
    check_created(before.stanza)
    # Of several, pgBackRest itself takes the first.
    there = before.stanza.only_in(repository or min(item.key for item in before.stanza.repositories))
    sufficient = young_enough(there, kind, max_age, before.now)
    if sufficient:
        return result(before, backup=sufficient)
    if not before.server.running:
        raise LmsError(f"No PostgreSQL runs in {before.server.data}, so there is nothing to back up. Start it first.")
    options = [f"--type={kind}", *([f"--repo={repository}"] if repository else []), *options]
    plan = [tool.argv("backup", *options)]
    last = there.newest()
    shown = {"newest": last.label if last else None}
    if check_mode:
        return result(before, changed=True, plan=plan, before=shown, after={"newest": f"a new backup ({kind})"})
    output = tool.command("backup", *options)
    after = tool.look()
    known = {backup.label for backup in before.stanza.backups}
    made = next((backup for backup in reversed(after.stanza.backups) if backup.label not in known), None)
    if made is None:
        raise LmsError(f"pgbackrest backup ended well, but no new backup of stanza {tool.stanza} is in its repository.", **after.describe())
    if made.damaged:
        raise LmsError(
            f"Backup {made.label} was made, but pages of the database do not fit their checksums: the database itself is damaged. "
            f"Find the files with pgbackrest --stanza={tool.stanza} --set={made.label} info, and keep the older backups.",
            **after.describe(),
        )
    warnings = [printable(found["text"]) for found in SAID.finditer(output.stderr) if found["level"] == "WARN"]
    return result(after, changed=True, plan=plan, backup=made, before=shown, after={"newest": made.label}, warnings=warnings)


def expire(tool: Pgbackrest, check_mode: bool) -> dict[str, Any]:
    """Remove what the configured retention does not keep. The newest full backup and what builds on it always stay."""
    before = tool.look()
    check_created(before.stanza)
    # Its dry run says what it would do, in messages alone.
    told = tool.command("expire", "--dry-run", level="info").stderr
    pending = re.findall(r"remove (?:expired backup|archive,) (.*)", told)
    changed, labels = bool(pending), [backup.label for backup in before.stanza.backups]
    if changed and not check_mode:
        tool.command("expire")
    after = tool.look() if changed and not check_mode else before
    gone = re.findall(r"remove expired backup (\S+)", told)
    return result(
        after,
        changed=changed,
        plan=[tool.argv("expire")] if changed else [],
        before={"backups": labels, "archive": pending},
        after={"backups": [label for label in labels if label not in gone], "archive": []},
    )


def verify(tool: Pgbackrest, check_mode: bool) -> dict[str, Any]:
    """Read every file of the repositories, and look for what is missing between them."""
    state = tool.look()
    check_created(state.stanza)
    plan = [tool.argv("verify", f"--repo={repository.key}") for repository in state.stanza.repositories]
    if check_mode:
        return result(state, plan=plan)
    started, found = tool.clock(), []
    for repository in state.stanza.repositories:
        output = tool.command("verify", f"--repo={repository.key}", "--output=text", "--verbose")
        found.append({"repository": repository.key, **read_verification(output.stdout)})
    problems = [f"repository {item['repository']}: {problem}" for item in found for problem in item["problems"]]
    if state.stanza.missing:
        problems.append(f"{state.stanza.missing} WAL segments after the newest backup are missing")
    verification = {"ok": not problems, "problems": problems, "repositories": found, "duration_s": round(tool.clock() - started, 1)}
    if problems:
        raise LmsError(
            f"Backups of stanza {tool.stanza} are not whole: {'; '.join(problems)}. Make a full backup now.",
            verification=verification,
            **state.describe(),
        )
    return result(state, plan=plan, verification=verification)


def status(tool: Pgbackrest) -> dict[str, Any]:
    """Only look."""
    return result(tool.look())


def result(
    state: State,
    *,
    changed: bool = False,
    plan: Sequence[Sequence[str]] = (),
    backup: Backup | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return the module's result: the same keys in every state and mode."""
    return {
        "changed": changed,
        **state.describe(),
        "plan": [shlex.join(argv) for argv in plan],
        "blocked": [],
        "backup": backup.describe() if backup else None,
        "verification": None,
        "restore": None,
        "warnings": [],
        "diff": {"before": dict(before or {}), "after": dict(after or {})},
        **more,
    }
