"""Tell Prometheus what nginx answered and how long it took, counted in its access log, each line of which is an object of JSON."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import defaultdict
from typing import BinaryIO

from serving import Server, family, labels, parser

BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# Names of hosts come from visitors where a log has no others: there are not more of them than this.
SITES = 200
OTHERS = "others"


class Counts:
    """How often a site answered with which status, and how long its answers took."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str], int] = defaultdict(int)
        self.buckets: dict[str, list[int]] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        self.unreadable = 0

    def add(self, line: bytes) -> None:
        """Count a line of the log."""
        try:
            entry = json.loads(line.decode(errors="replace"))
            status, seconds = int(entry["status"]), float(entry["seconds"])
            site = str(entry["site"] if "site" in entry else entry["host"])
        except (KeyError, TypeError, ValueError):
            self.unreadable += 1
            return
        # 444: no answer was given, since nobody has that name.
        site = OTHERS if status == 444 or (site not in self.buckets and len(self.buckets) >= SITES) else site
        self.requests[site, str(status)] += 1
        buckets = self.buckets.setdefault(site, [0] * (len(BOUNDS) + 1))
        buckets[next((index for index, bound in enumerate(BOUNDS) if seconds <= bound), len(BOUNDS))] += 1
        self.seconds[site] += seconds

    def render(self) -> list[str]:
        """Return the lines of the metrics."""
        requests = [
            f"nginx_log_requests_total{labels(site=site, status=status)} {count}" for (site, status), count in sorted(self.requests.items())
        ]
        seconds = [line for site in sorted(self.buckets) for line in self.histogram(site)]
        return [
            *family("nginx_log_requests_total", "counter", "Answers of a site, by their status.", requests),
            *family("nginx_log_request_seconds", "histogram", "Time from a request's first byte to its answer's last.", seconds),
            *family(
                "nginx_log_lines_unreadable_total",
                "counter",
                "Lines of the log that do not say status, seconds and site.",
                [f"nginx_log_lines_unreadable_total {self.unreadable}"],
            ),
        ]

    def histogram(self, site: str) -> list[str]:
        """Return the samples of a site's histogram."""
        total, lines = 0, []
        for bound, count in zip([*map(str, BOUNDS), "+Inf"], self.buckets[site]):
            total += count
            lines.append(f"nginx_log_request_seconds_bucket{labels(le=bound, site=site)} {total}")
        lines.append(f"nginx_log_request_seconds_sum{labels(site=site)} {round(self.seconds[site], 3)}")
        return [*lines, f"nginx_log_request_seconds_count{labels(site=site)} {total}"]


class Log:
    """A log that is read on from where it was read to, over its rotation too."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.counts = Counts()
        self.rest = b""
        self.file: BinaryIO | None = None
        self.lock = threading.Lock()
        self.open(at_end=True)

    def open(self, at_end: bool = False) -> bool:
        """Open the log, and say whether that worked. What was written before the exporter began is not counted."""
        try:
            self.file = open(self.path, "rb")  # noqa: PTH123, SIM115
        except OSError as error:
            print(f"{self.path}: {error}", file=sys.stderr, flush=True)
            return False
        if at_end:
            self.file.seek(0, os.SEEK_END)
        return True

    def render(self) -> str:
        """Read on, and return the metrics."""
        with self.lock:
            up = self.read()
            lines = [
                *family("nginx_log_up", "gauge", "Whether the log can be read.", [f"nginx_log_up {int(up)}"]),
                *self.counts.render(),
            ]
        return "\n".join(lines) + "\n"

    def read(self) -> bool:
        """Count what is new, and say whether the log is there."""
        if self.file:
            self.read_on()
        if self.file and self.is_still_the_log():
            return True
        if self.file:
            self.file.close()
            self.file, self.rest = None, b""
        if not self.open():
            return False
        self.read_on()
        return True

    def read_on(self) -> None:
        """Count the lines from where the file was read to. A line that is not complete waits for its end."""
        assert self.file  # noqa: S101
        while content := self.file.read(1 << 20):
            *lines, self.rest = (self.rest + content).split(b"\n")
            for line in lines:
                self.counts.add(line)

    def is_still_the_log(self) -> bool:
        """Say whether the open file is what the path leads to, and has not been emptied."""
        assert self.file  # noqa: S101
        mine = os.fstat(self.file.fileno())
        try:
            there = os.stat(self.path)  # noqa: PTH116
        except OSError:
            return False
        return os.path.samestat(mine, there) and mine.st_size >= self.file.tell()


def main() -> None:
    """Read the arguments and serve."""
    arguments = parser(__doc__, 9114)
    arguments.add_argument("--accesslog.path", dest="path", default="/var/log/nginx/access.log", help="the log")
    options = arguments.parse_args()
    if not options.version:
        Server(options.listen, Log(options.path).render).serve_forever()


if __name__ == "__main__":
    main()
