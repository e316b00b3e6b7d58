# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure the ways to run a release of the sample LMS, on a host where it is deployed; script/bench runtime starts it there.

control    one pool of PHP-FPM, one release, no switch
rename     one pool for all releases; a switch renames the link, and nginx follows it ($realpath_root). OPcache fills up release by release
reset      the same, and OPcache is emptied through PHP-FPM after the switch
instance   a PHP-FPM a release, which sees it at a fixed path; a switch renames the link that leads to its socket, and stops the old one
           when it has no connection left
preload    the same, and PHP-FPM loads the framework's classes before its first request

Each way switches while requests arrive at a fixed rate (tests/load/open_loop.py), then serves as fast as it can (wrk). Everything lies
below /srv/bench and listens on ports of its own; the LMS of the host is not touched, except that its database and Redis answer.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._fastcgi import call, script_params
from ansible_collections.bitflow.lms.plugins.module_utils._opcache import SCRIPT, Opcache, is_restarting

ROOT = Path("/srv/bench")
# Where systemd makes room for sockets, and PHP-FPM of all releases has its one.
RUN = Path("/run/lms-bench")
LIVE = Path("/srv/lms/backend/current")
WORKERS = 16
# Seconds after a switch from which on an answer of the release before is stale.
GRACE = 1.0
# How long to look on while OPcache waits for a moment without requests.
LONGEST_RESTART = 5.0
# Milliseconds of the control beyond which the figures would tell more about the machine than about the ways.
SLOWEST_CONTROL = 250
# A way that needs longer for its switches makes fewer.
LONGEST_LOAD = 50.0
MARKS = ["X-Release-Entry", "X-Release-Config", "X-Release-End"]
# What a candidate is asked for before the switch, twice: it proves itself, and compiles what most requests need.
WARM_UP = ("/health", "/", "/api/courses", "/version")
CLOSED_LOOP = ("/", "/api/courses")
ENROLMENT = '{"student_id": 1, "course_id": 1}'
# One of ten requests writes. How many take their time is said apart: some are under way at any moment, as in real life.
MIX = [
    {"path": "/version", "weight": 74},
    {"path": "/api/courses", "weight": 5},
    {"path": "/", "weight": 11},
    {"path": "/api/enrolments", "weight": 10, "method": "POST", "body": ENROLMENT, "status": [200, 201]},
]
SLOW = {"path": "/api/slow?ms=700", "takes": 0.7}

FPM = """[global]
error_log = /var/log/lms-bench-{name}.log
process_control_timeout = 10s
[bench-{name}]
user = lms
group = lms
listen = {socket}
listen.owner = www-data
listen.group = www-data
pm = static
pm.max_children = {workers}
catch_workers_output = yes
"""

UNIT = """[Service]
Type=notify
ExecStart=/usr/sbin/php-fpm{php} --nodaemonize --fpm-config {configuration} {options}
KillSignal=SIGQUIT
TimeoutStopSec=30
RuntimeDirectory=lms-bench
RuntimeDirectoryPreserve=yes
{binding}
"""

SITE = """
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root {root}/current/public;
        location / {{ try_files $uri /index.php$is_args$args; }}
        location = /index.php {{
            fastcgi_pass unix:{socket};
            fastcgi_param SCRIPT_FILENAME {script}/index.php;
            fastcgi_param DOCUMENT_ROOT {script};
            fastcgi_param SCRIPT_NAME /index.php;
            fastcgi_param REQUEST_METHOD $request_method;
            fastcgi_param REQUEST_URI $request_uri;
            fastcgi_param QUERY_STRING $query_string;
            fastcgi_param CONTENT_TYPE $content_type;
            fastcgi_param CONTENT_LENGTH $content_length;
            fastcgi_param SERVER_PROTOCOL $server_protocol;
            fastcgi_param SERVER_NAME localhost;
            fastcgi_param SERVER_PORT {port};
            fastcgi_param REMOTE_ADDR $remote_addr;
            fastcgi_param REDIRECT_STATUS 200;
        }}
    }}"""

NGINX = """user www-data;
daemon off;
pid /run/lms-bench-nginx.pid;
worker_processes auto;
worker_rlimit_nofile 16384;
error_log /var/log/lms-bench-nginx.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    open_file_cache off;
    fastcgi_next_upstream off;
    fastcgi_buffers 16 16k;
    {sites}
}}
"""


def run(*argv: str | Path, **options: Any) -> str:
    """Run a program that must succeed and return its output."""
    result = subprocess.run([str(part) for part in argv], capture_output=True, text=True, check=False, **options)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, argv))} ended with status {result.returncode}:\n{result.stdout}{result.stderr}")
    return result.stdout


def release(number: int) -> str:
    """Return the name of a release: its directory, and what it says in each answer."""
    return f"r{number:02d}"


def rename_link(link: Path, target: str) -> None:
    """Let a link lead elsewhere, in one step."""
    aside = link.with_name(f"{link.name}.new")
    aside.unlink(missing_ok=True)
    aside.symlink_to(target)
    aside.rename(link)


@dataclass
class Way(ABC):
    """One way to run releases: where they lie, and what a switch does."""

    name: str
    port: int
    root: Path
    switching: bool = True
    # Seconds from the decision for a release to the link, and from the link to the end of what ran before.
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    # Seconds during which OPcache kept and gave nothing, because it waited for a moment without requests to empty itself.
    without_cache: list[float] = field(default_factory=list)
    live: int = 0

    @property
    def pool(self) -> str:
        """Return the directory's name, which PHP-FPM's processes have in their titles."""
        return self.root.name

    @abstractmethod
    def socket(self, name: str) -> Path:
        """Return the socket that serves a release."""

    @abstractmethod
    def script(self, name: str) -> Path:
        """Return the script that nginx names for it."""

    @abstractmethod
    def start(self, name: str) -> None:
        """Make a release answer."""

    def settle(self, name: str) -> None:
        """Do what is due when the release before has been left: nothing, unless a way says so."""
        del name

    def warm_up(self, name: str) -> None:
        """Ask a release for what visitors ask for; it must answer well."""
        for uri in WARM_UP * 2:
            script = self.script(name)
            response = call(str(self.socket(name)), script_params(str(script), str(script.parent), uri), timeout=30)
            if response.status != 200:
                sys.exit(f"{self.name}: {uri} of {name} has status {response.status}: {response.body[:500]!r} {response.stderr}")

    def switch(self) -> float:
        """Go to the next release; return when the link led there."""
        old, new = release(self.live), release(self.live + 1)
        started = time.time()
        self.start(new)
        self.warm_up(new)
        rename_link(self.root / "current", f"releases/{new}")
        switched = time.time()
        self.live += 1
        self.settle(old)
        self.before.append(switched - started)
        self.after.append(time.time() - switched)
        return switched


class Shared(Way):
    """One pool serves every release."""

    def restart(self) -> None:
        """Begin anew, with the first release and an empty OPcache."""
        rename_link(self.root / "current", f"releases/{release(0)}")
        run("systemctl", "restart", "lms-bench-shared")
        self.warm_up(release(0))

    def socket(self, name: str) -> Path:
        return RUN / "shared.sock"

    def script(self, name: str) -> Path:
        return self.root / "releases" / name / "public" / "index.php"

    def start(self, name: str) -> None:
        run("systemctl", "start", "lms-bench-shared")


class Reset(Shared):
    """One pool serves every release; OPcache is emptied after the switch."""

    def settle(self, name: str) -> None:
        started = time.time()
        cache = Opcache(str(self.socket(name)), ROOT / "opcache.php", timeout=LONGEST_RESTART)
        # An answer that does not come in time says the same.
        with suppress(LmsError):
            cache.reset(check=False)
            while is_restarting(cache.status()["status"]) and time.time() - started < LONGEST_RESTART:
                time.sleep(0.1)
        self.without_cache.append(time.time() - started)


class Instance(Way):
    """A PHP-FPM a release; the old one ends when nobody is connected to it any more."""

    def socket(self, name: str) -> Path:
        return self.root / "releases" / name / "run" / "fpm.sock"

    def script(self, name: str) -> Path:
        return self.root / "live" / "public" / "index.php"

    def start(self, name: str) -> None:
        run("systemctl", "start", f"lms-bench-{self.name}@{name}")

    def settle(self, name: str) -> None:
        quiet = 0
        while quiet < 3:
            time.sleep(0.1)
            quiet = 0 if connections(self.socket(name)) else quiet + 1
        run("systemctl", "stop", f"lms-bench-{self.name}@{name}")


def connections(socket: Path) -> int:
    """Return how many connections a socket has, those included that wait to be taken."""
    lines = (line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return sum(line[5] in ("02", "03") for line in lines if line[7:] == [str(socket)])


# Before the measurement


def prepare(ways: Sequence[Way], switches: int) -> None:
    """Lay the releases, the units and the web server ready."""
    clean_up()
    for way in ways:
        for number in range(switches + 1 if way.switching else 1):
            copy_release(way, release(number))
        (way.root / "live").mkdir()
        build_caches(way)
        rename_link(way.root / "current", f"releases/{release(0)}")
    write_units()
    (ROOT / "opcache.php").write_text(SCRIPT)
    # OPcache does not keep what is from the future, so that this script takes no room.
    os.utime(ROOT / "opcache.php", (time.time() + 86400,) * 2)
    sites = [
        SITE.format(
            port=way.port,
            root=way.root,
            socket=way.root / "current" / "run" / "fpm.sock" if isinstance(way, Instance) else RUN / "shared.sock",
            script=way.root / "live" / "public" if isinstance(way, Instance) else "$realpath_root",
        )
        for way in ways
    ]
    (ROOT / "nginx.conf").write_text(NGINX.format(sites="".join(sites)))
    run("systemd-run", "--unit=lms-bench-nginx", "--collect", "nginx", "-c", ROOT / "nginx.conf")


def copy_release(way: Way, name: str) -> None:
    """Make a release of the code that is live; only what is never written is shared with it."""
    place = way.root / "releases" / name
    place.mkdir(parents=True)
    run("cp", "--archive", "--link", LIVE / "vendor", place / "vendor")
    for entry in LIVE.resolve().iterdir():
        if entry.name not in ("vendor", "storage", "run"):
            run("cp", "--archive", entry, place / entry.name)
    for folder in ("app/public", "logs", "framework/views", "framework/sessions", "framework/cache/data"):
        (place / "storage" / folder).mkdir(parents=True)
    run("chown", "-R", "lms:lms", place / "storage")
    (place / "REVISION").write_text(name)
    (place / "run").mkdir()
    socket = RUN / "shared.sock" if isinstance(way, Shared) else place / "run" / "fpm.sock"
    (place / "run" / "fpm.conf").write_text(FPM.format(name=way.pool, socket=socket, workers=WORKERS))


def build_caches(way: Way) -> None:
    """Build Laravel's caches: for each release where they hold its path, once where every release is seen at the same."""
    names = sorted(path.name for path in (way.root / "releases").iterdir())
    steps = " && ".join(f"php artisan --quiet {command}:cache" for command in ("config", "event", "route", "view"))
    for name in names if isinstance(way, Shared) else names[:1]:
        place = way.root / "releases" / name
        if isinstance(way, Shared):
            run("sh", "-c", f"cd {place} && {steps} && chown -R lms:lms storage")
        else:
            live = way.root / "live"
            run("unshare", "--mount", "sh", "-c", f"mount --bind {place} {live} && cd {live} && {steps} && chown -R lms:lms storage")
    for name in [] if isinstance(way, Shared) else names[1:]:
        for folder in ("bootstrap/cache", "storage/framework/views"):
            source, place = way.root / "releases" / names[0] / folder, way.root / "releases" / name / folder
            shutil.copytree(source, place, dirs_exist_ok=True)
        configuration = way.root / "releases" / name / "bootstrap" / "cache" / "config.php"
        configuration.write_text(configuration.read_text().replace(f"'revision' => '{names[0]}'", f"'revision' => '{name}'"))
        run("chown", "-R", "lms:lms", way.root / "releases" / name / "storage")


def write_units() -> None:
    """Describe the services: one for all releases, and one a release."""
    php = max(path.name for path in Path("/etc/php").iterdir())
    preload = f"-d opcache.preload={ROOT}/preload.php -d opcache.preload_user=lms"
    units = {
        "lms-bench-shared": UNIT.format(php=php, configuration=ROOT / "shared/releases/r00/run/fpm.conf", options="", binding=""),
        **{
            f"lms-bench-{name}@": UNIT.format(
                php=php,
                configuration=ROOT / name / "live/run/fpm.conf",
                options=options,
                binding=f"BindPaths={ROOT}/{name}/releases/%i:{ROOT}/{name}/live",
            )
            for name, options in (("instance", ""), ("preload", preload))
        },
    }
    for name, text in units.items():
        Path(f"/run/systemd/system/{name}.service").write_text(text)
    run("systemctl", "daemon-reload")


def write_preload(way: Way, other: Way) -> int:
    """List the files of classes that one way has loaded from outside the application, for another way to preload; return how many."""
    scripts = opcache(way)["scripts"]
    root = str(way.root / "live" / "vendor")
    files = [name for name in scripts if name.startswith((root, "/usr/share/php/")) and re.search(r"/[A-Z]\w*\.php$", name)]
    lines = [f"opcache_compile_file({name.replace(str(way.root), str(other.root))!r});" for name in sorted(files)]
    (ROOT / "preload.php").write_text("<?php\n" + "\n".join(lines) + "\n")
    return len(lines)


def opcache(way: Way) -> dict[str, Any]:
    """Return the state of the OPcache that serves the live release."""
    socket = str(way.socket(release(way.live)))
    script = ROOT / "scripts.php"
    script.write_text("<?php echo json_encode(opcache_get_status(true));")
    os.utime(script, (time.time() + 86400,) * 2)
    return json.loads(call(socket, script_params(str(script), str(ROOT)), timeout=60).body)


def clean_up() -> None:
    """Remove everything that an earlier run may have left."""
    units = run("systemctl", "list-units", "--all", "--plain", "--no-legend", "lms-bench-*").splitlines()
    for unit in units:
        subprocess.run(["systemctl", "stop", unit.split()[0]], check=False, capture_output=True)
    for path in Path("/run/systemd/system").glob("lms-bench-*"):
        path.unlink()
    for folder in ("shared", "instance", "preload"):
        shutil.rmtree(ROOT / folder, ignore_errors=True)


# The measurement


class Memory:
    """The memory of the processes of a way, sampled: the sum of their proportional set sizes."""

    def __init__(self, way: Way) -> None:
        self.pattern = re.compile(rf"php-fpm: (?:pool bench-{way.pool}\b|master process \({ROOT}/{way.pool}/)")
        self.samples: list[int] = []
        self._end = threading.Event()

    def now(self) -> int:
        """Return the bytes at this moment."""
        return sum(proportional_size(pid) for pid in processes(self.pattern))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Take a sample twice a second."""

        def watch() -> None:
            while not self._end.wait(0.5):
                self.samples.append(self.now())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()


def processes(pattern: re.Pattern[str]) -> list[int]:
    """Return the processes whose title matches."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if pattern.match(path.read_text(errors="replace")):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def proportional_size(pid: int) -> int:
    """Return the memory of a process, of what it shares only its share."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return 1024 * int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])


def processor_seconds(pattern: re.Pattern[str]) -> float:
    """Return the processor time of the processes."""
    ticks = 0
    for pid in processes(pattern):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def under_load(way: Way, mix: Sequence[dict[str, Any]], switches: int, rate: float, gap: float) -> dict[str, Any]:
    """Switch again and again while requests arrive, and return what came of each request."""
    kinds, records = ROOT / "requests.json", ROOT / f"{way.name}.records"
    kinds.write_text(json.dumps([{"host": "localhost", "marks": MARKS, **kind} for kind in mix]))
    memory = Memory(way)
    program = [sys.executable, Path(__file__).with_name("open_loop.py"), f"--target=127.0.0.1:{way.port}", f"--requests={kinds}"]
    generator = subprocess.Popen([*program, f"--rate={rate}", "--seconds=120", f"--records={records}"], stdout=subprocess.PIPE, text=True)
    switched: list[float] = []
    failure = ""
    try:
        with memory.watched():
            time.sleep(gap)
            try:
                switch_again_and_again(way, switches, gap, switched)
            except LmsError as error:
                failure = error.message
            generator.terminate()
            output = generator.communicate(timeout=90)[0]
    finally:
        generator.kill()
    answers = [json.loads(line) for line in records.read_text().splitlines()]
    status = opcache(way)
    keys = status["opcache_statistics"]
    return {
        **json.loads(output),
        "failure": failure,
        "switches": len(switched),
        "stale": sum(is_stale(answer, switched) for answer in answers),
        "rest": memory.samples[0],
        "peak": max(memory.samples),
        "keys": f"{keys['num_cached_keys']}/{keys['max_cached_keys']}",
        "used": status["memory_usage"]["used_memory"],
        "full": status["cache_full"],
    }


def switch_again_and_again(way: Way, switches: int, gap: float, switched: list[float]) -> None:
    """Switch so many times, unless the time for it is over, and note when."""
    begin = time.time()
    for _number in range(switches):
        if time.time() - begin > LONGEST_LOAD:
            return
        if way.switching:
            switched.append(way.switch())
        time.sleep(gap)


def is_stale(answer: dict[str, Any], switched: Sequence[float]) -> bool:
    """Tell whether a request that began well after a switch got an answer of a release before it."""
    due = sum(moment + GRACE < answer["due"] for moment in switched)
    return bool(answer["marks"]) and min(answer["marks"]) < release(due)


def closed_loop(ways: Sequence[Way], rounds: int, seconds: int) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the requests a second and the processor's milliseconds a request, medians of rounds in which the ways take turns."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {way.name: {path: [] for path in CLOSED_LOOP} for way in ways}
    for _round in range(rounds):
        for way in ways:
            for path in CLOSED_LOOP:
                pattern = Memory(way).pattern
                before = processor_seconds(pattern)
                output = run("wrk", "-t1", "-c4", f"-d{seconds}s", f"http://127.0.0.1:{way.port}{path}")
                spent = processor_seconds(pattern) - before
                if "Non-2xx" in output:
                    sys.exit(f"{way.name}: {path} did not answer well:\n{output}")
                count = int(re.search(r"(\d+) requests in", output)[1])
                found[way.name][path].append((count / seconds, 1000 * spent / count))
    return {
        name: {path: tuple(statistics.median(value) for value in zip(*rows, strict=True)) for path, rows in paths.items()}
        for name, paths in found.items()
    }


# The report


def beside(value: float, control: float, digits: int = 1) -> str:
    """Return a figure and its ratio to the control's."""
    return f"{value:.{digits}f} ({value / control:.2f})" if control else f"{value:.{digits}f}"


def report(results: dict[str, dict[str, Any]], ways: Sequence[Way], speeds: dict[str, dict[str, tuple[float, float]]]) -> list[list[str]]:
    """Return the rows of the table: one for each figure, a column for each way."""
    control = results["control"]
    rows = [["", *results]]
    for name in ("switches", "sent", "failed", "mixed", "stale", "retried"):
        rows.append([name, *(str(result[name]) for result in results.values())])
    for name in ("p50_ms", "p99_ms", "max_ms", "late_p99_ms"):
        rows.append([name.replace("_", " "), *(beside(result[name], control[name]) for result in results.values())])
    for name in ("rest", "peak"):
        rows.append([f"memory, {name} (MiB)", *(beside(result[name] / 2**20, control[name] / 2**20) for result in results.values())])
    rows.append(["OPcache keys", *(result["keys"] for result in results.values())])
    rows.append(["OPcache used (MiB)", *(f"{result['used'] / 2**20:.1f}" for result in results.values())])
    rows.append(["OPcache full", *("yes" if result["full"] else "no" for result in results.values())])
    for title, name in (
        ("until the switch (s)", "before"),
        ("after the switch (s)", "after"),
        ("without OPcache (s)", "without_cache"),
    ):
        rows.append([title, *(f"{statistics.median(getattr(way, name)):.2f}" if getattr(way, name) else "" for way in ways)])
    for path in CLOSED_LOOP:
        base = speeds["rename"][path]
        for index, title in enumerate(("requests/s", "CPU ms a request")):
            cells = [beside(speeds[way.name][path][index], base[index], index) if way.name in speeds else "" for way in ways]
            rows.append([f"{path} {title}", *cells])
    return rows


def main() -> None:
    """Prepare, measure each way, print the table, and remove what was made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--switches", type=int, default=10)
    parser.add_argument("--rate", type=float, default=150, help="requests a second (default 150)")
    parser.add_argument("--gap", type=float, default=1.5, help="seconds between switches (default 1.5)")
    parser.add_argument("--slow", type=float, default=0.05, help="share of the requests that takes 700 ms (default 0.05)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    control = Shared("control", 8101, ROOT / "shared", switching=False)
    rename = Shared("rename", 8101, ROOT / "shared")
    reset = Reset("reset", 8101, ROOT / "shared")
    instance = Instance("instance", 8102, ROOT / "instance")
    preload = Instance("preload", 8103, ROOT / "preload")
    slow = round(sum(kind["weight"] for kind in MIX) * arguments.slow / (1 - arguments.slow))
    mix = [*MIX, *([{**SLOW, "weight": slow}] if slow else [])]
    ways = [control, rename, reset, instance, preload]
    try:
        say("Preparing the releases")
        prepare([rename, instance, preload], arguments.switches)
        for way in (rename, instance):
            way.start(release(0))
            way.warm_up(release(0))
        say(f"Preloading {write_preload(instance, preload)} files")
        preload.start(release(0))
        preload.warm_up(release(0))
        say("Serving as fast as it can")
        speeds = closed_loop([rename, instance, preload], rounds=3, seconds=2)
        results = {}
        for way in ways:
            if isinstance(way, Shared):
                way.restart()
            say(f"Sending requests: {way.name}")
            results[way.name] = under_load(way, mix, arguments.switches, arguments.rate, arguments.gap)
            if results["control"]["p50_ms"] > SLOWEST_CONTROL:
                sys.exit(
                    f"Without any switch half of the requests took longer than {SLOWEST_CONTROL} ms: this machine has no room for them.\n"
                    f"Give it less than {arguments.rate:g} requests a second with --rate."
                )
            for what in ("failure", "reasons"):
                if results[way.name][what]:
                    say(json.dumps(results[way.name][what], indent=2))
    finally:
        clean_up()
    rows = report(results, ways, speeds)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        sys.stdout.write(
            "  ".join(
                cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            + "\n"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"load": results, "closed_loop": speeds}, indent=2))


def say(text: str) -> None:
    """Say what happens now."""
    sys.stderr.write(f"==> {text}\n")


if __name__ == "__main__":
    main()
