# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time backups and restores of one database, on PostgreSQL and on MariaDB; script/bench backup starts it.

limit      the server's own dump program into /dev/null: nothing that dumps can be faster
gzip       what is found in most backup scripts: the dump program, a pipe, gzip, a file; restored by gunzip and the client
plain      the dump program into a file, not compressed; restored by the client
bitflow    database_backup: counted in the dump's snapshot, compressed, encrypted, hashed, published; restored by backup_restore into a
           new database, decrypted, its sums checked, its rows compared
verify     backup_verify: a trial restore that is compared and dropped

At the end the drill: a backup that also sums every row, a trial restore, the database dropped, and brought back under its name: rows and
sums equal, and how long that took.

Columns: medians of the seconds that passed, of the CPU seconds of the whole host (client, server and compressor), and of what was written;
the peak memory of the module's own process; then bitflow divided by the rival. Server and repository are on the same host, with warm
caches. Each measurement is a line of .cache/bench/backup.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT / "tests/backups"))

from database_host import Host, host_name, module_input
from deploy import cpu_of_children, say, table

MEGABYTE = 1000 * 1000
REPOSITORY = "/srv/backups"
# Written by a program on the host: the same rows for both servers.
GENERATE = """
import random, sys
size, chance = int(sys.argv[1]), random.Random(1)
words = ["".join(chance.choices("etaoinshrdlucmfwypvbgk", k=chance.randint(2, 11))) for _ in range(4000)]
weights = [1 / (rank + 1) for rank in range(len(words))]
texts = [" ".join(chance.choices(words, weights, k=60)) for _ in range(3000)]
with open("/srv/submissions.tsv", "w") as file:
    for row in range(size * 7 // 10 // 2500):
        text = " ".join(chance.choices(texts, k=6))
        result = '{"score": %d, "seconds": %d}' % (chance.randrange(100), chance.randrange(9999))
        print(row, chance.randrange(200000), text, result, sep="\\t", file=file)
with open("/srv/activity.tsv", "w") as file:
    for row in range(size * 3 // 10 // 110):
        happened = f"2026-11-{chance.randrange(1, 29):02} 10:00:00"
        print(row, chance.randrange(200000), f"lesson.viewed.{chance.randrange(3000)}", happened, sep="\\t", file=file)
"""
TABLES = """
create table submissions (id bigint primary key, student_id bigint, body text, result {json});
create table activity (id bigint primary key, student_id bigint, action varchar(255), happened {time});
create index submissions_student on submissions (student_id);
create index activity_student on activity (student_id);
"""


@dataclass(frozen=True)
class Server:
    """One of the servers, as a script would use it."""

    name: str
    options: dict[str, str]
    dump: str
    client: str

    def load(self, host: Host, database: str) -> None:
        """Fill a database."""
        tables = TABLES.format(json="jsonb" if self.name == "postgresql" else "json", time="timestamp")
        if self.name == "postgresql":
            host.postgresql(f"create database {database}")
            host.postgresql(tables, database)
            for table_name in ("submissions", "activity"):
                host.postgresql(f"copy {table_name} from '/srv/{table_name}.tsv'", database)
            host.postgresql("vacuum analyze", database)
            return
        host.mysql(f"create database {database}")
        host.mysql(tables, database)
        for table_name in ("submissions", "activity"):
            host.mysql(f"load data infile '/srv/{table_name}.tsv' into table {table_name}", database)

    def recreate(self, host: Host, database: str) -> None:
        """Make an empty database, in the place of one that may be there."""
        run = host.postgresql if self.name == "postgresql" else host.mysql
        run(f"drop database if exists {database}")
        run(f"create database {database}")


SERVERS = (
    Server(
        "postgresql",
        {"engine": "postgresql", "login_system_user": "postgres"},
        "runuser -u postgres -- pg_dump lms",
        "runuser -u postgres -- psql -q -v ON_ERROR_STOP=1",
    ),
    Server("mariadb", {"engine": "mysql"}, "mariadb-dump --single-transaction lms", "mariadb"),
)


@dataclass(frozen=True)
class Measurement:
    """What one run took."""

    seconds: float
    cpu: float
    size: int = 0
    memory: int = 0


def main(arguments: Sequence[str]) -> None:
    """Fill the databases, take each way again and again, and print the table."""
    options = parse(arguments)
    log = PROJECT / ".cache/bench/backup.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    host = Host(host_name("bench"))
    host.start()
    try:
        identity = prepare(host, options.size * MEGABYTE)
        measured: dict[tuple[str, str], list[Measurement]] = {}
        drills: list[str] = []
        for server in SERVERS:
            say(f"{server.name}: filling a database of {options.size} MB")
            server.load(host, "lms")
            for _round in range(options.rounds):
                for way, measure in ways(host, server, identity).items():
                    say(f"{server.name}: {way}")
                    taken = measure()
                    measured.setdefault((server.name, way), []).append(taken)
                    with log.open("a", encoding="utf-8") as stream:
                        stream.write(json.dumps({"server": server.name, "way": way, **asdict(taken)}) + "\n")
            drills.append(drill(host, server, identity))
    finally:
        if not options.keep:
            host.remove()
    print("\n".join([report(measured), "", *drills]))  # noqa: T201


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="script/bench backup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1000, metavar="MB", help="data in each database (default 1000)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way, of which the median counts (default 3)")
    parser.add_argument("--keep", action="store_true", help="keep the host")
    return parser.parse_args(arguments)


def prepare(host: Host, size: int) -> str:
    """Write the rows and a key; return the key."""
    host.execute("python3", "-", str(size), input=GENERATE)
    host.shell("chmod 755 /srv; chmod 644 /srv/*.tsv")
    host.shell("mkdir -p /srv/scripts && chmod 700 /srv/scripts")
    return host.shell("age-keygen 2>/dev/null").strip().splitlines()[-1]


def ways(host: Host, server: Server, identity: str) -> dict[str, Callable[[], Measurement]]:
    """Return the ways to dump and to restore, in the order in which they are taken."""
    recipient = host.execute("age-keygen", "-y", input=identity).stdout.strip()
    place = {"repository": REPOSITORY, "environment": "bench", "name": "lms", **server.options}
    sql = f"/srv/scripts/{server.name}.sql"

    def script(command: str, file: str = "") -> Measurement:
        return measure(host, ["docker", "exec", host.name, "bash", "-c", f"set -e -o pipefail; {command}"], file)

    def restored(command: str) -> Measurement:
        server.recreate(host, "lms_copy")
        return script(command)

    def ours(name: str, **options: Any) -> Measurement:
        return measure_module(host, name, {**place, **options})

    return {
        "dump limit": lambda: script(f"{server.dump} > /dev/null"),
        "dump gzip": lambda: script(f"{server.dump} | gzip > {sql}.gz", f"{sql}.gz"),
        "dump plain": lambda: script(f"{server.dump} > {sql}", sql),
        "dump bitflow": lambda: ours("database_backup", encryption={"recipients": [recipient]}),
        "verify bitflow": lambda: ours("backup_verify", identity=identity),
        "restore gzip": lambda: restored(f"gunzip -c {sql}.gz | {server.client} lms_copy"),
        "restore plain": lambda: restored(f"{server.client} lms_copy < {sql}"),
        "restore bitflow": lambda: ours("backup_restore", backup="latest", database=f"lms_{time.time_ns()}", identity=identity),
    }


def drill(host: Host, server: Server, identity: str) -> str:
    """Lose the database and bring it back; return what that took."""
    place = {"repository": f"{REPOSITORY}-drill", "environment": "bench", "name": "lms", **server.options}
    recipient = host.execute("age-keygen", "-y", input=identity).stdout.strip()
    say(f"{server.name}: drill")

    def must(name: str, **options: Any) -> dict[str, Any]:
        result = host.module(name, **{**place, **options})
        if result.get("failed"):
            sys.exit(f"{name} failed: {result['msg']}")
        return result

    made = must("database_backup", record="checksums", encryption={"recipients": [recipient]})
    must("backup_verify", identity=identity)
    (host.postgresql if server.name == "postgresql" else host.mysql)("drop database lms")
    back = must("backup_restore", backup="latest_verified", database="lms", identity=identity)
    size, seconds = made["plan"]["database_size"] / MEGABYTE, back["rto_seconds"]
    equal = "equal" if back["compared"] else "not compared"
    return f"{server.name}: a database of {size:.0f} MB lost and back in {seconds:.1f} s, {back['rows']} rows and their sums {equal}."


def measure(host: Host, argv: Sequence[str], file: str = "", stdin: str | None = None) -> Measurement:
    """Run a command that must succeed."""
    cpu, started = cpu_of(host), time.monotonic()
    process = subprocess.run(argv, input=stdin, check=False, capture_output=True, text=True)
    seconds, cpu = time.monotonic() - started, cpu_of(host) - cpu
    if process.returncode:
        sys.exit(f"{argv} ended with status {process.returncode}:\n{process.stdout}{process.stderr}")
    return Measurement(seconds, cpu, int(host.shell(f"stat -c %s {file}")) if file else 0)


def measure_module(host: Host, name: str, options: dict[str, Any]) -> Measurement:
    """Run a module that must succeed; what it wrote and its memory's peak are told by itself."""
    argv = host.module_argv(name)
    wrapped = (
        "import atexit, resource, runpy, sys;"
        "atexit.register(lambda: open('/srv/memory', 'w').write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)));"
        "sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    start = argv.index("python3")
    taken = measure(host, [*argv[: start + 1], "-c", wrapped, *argv[start + 1 :]], stdin=module_input(False, options))
    newest = f"ls -t {REPOSITORY}/bench/database/lms/*/data* | head -n 1 | xargs stat -c %s"
    size = int(host.shell(newest)) if name == "database_backup" else 0
    return Measurement(taken.seconds, taken.cpu, size, int(host.shell("cat /srv/memory")))


def cpu_of(host: Host) -> float:
    """Return the CPU seconds of a host's services since it was started, and of all commands that ended."""
    import docker

    usage = docker.APIClient().stats(host.name, stream=False, one_shot=True)["cpu_stats"]["cpu_usage"]["total_usage"]
    return float(usage) / 1e9 + cpu_of_children()


def report(measured: dict[tuple[str, str], list[Measurement]]) -> str:
    """Return the table: a row a way, and how the product compares with it."""
    rows: list[Sequence[str]] = [
        ("server", "way", "runs", "time s", "cpu s", "MB", "own MB", "ours/its time", "ours/its cpu", "ours/its size")
    ]
    for (server, way), taken in measured.items():
        its, own = middle(taken), middle(measured[server, f"{way.split()[0]} bitflow"])
        rival = not way.endswith("bitflow")
        rows.append(
            (
                server,
                way,
                str(len(taken)),
                f"{its.seconds:.1f}",
                f"{its.cpu:.1f}",
                f"{its.size / MEGABYTE:.0f}" if its.size else "",
                f"{its.memory / MEGABYTE:.0f}" if its.memory else "",
                f"{own.seconds / its.seconds:.2f}" if rival else "",
                f"{own.cpu / its.cpu:.2f}" if rival and its.cpu else "",
                f"{own.size / its.size:.2f}" if rival and its.size else "",
            )
        )
    return table(rows)


def middle(taken: Sequence[Measurement]) -> Measurement:
    """Return the median of each figure."""
    return Measurement(
        statistics.median(each.seconds for each in taken),
        statistics.median(each.cpu for each in taken),
        max(each.size for each in taken),
        max(each.memory for each in taken),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
