# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The PHP-FPM instances of an application, one systemd unit a release: start them, and stop them when nobody waits for them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._fastcgi import FastcgiError, Response, call, script_params
from ansible_collections.bitflow.lms.plugins.module_utils._systemd import Systemctl

Call = Callable[..., Response]

# The path that the configuration of the instances names as pm.status_path.
STATUS_PATH = "/fpm-status"
# The kernel takes no longer path of a Unix socket.
LONGEST_SOCKET = 107
POLL_INTERVAL = 0.05
LOG_LINES = 20

_COMPLAINT = re.compile(r"\b(?:error|fatal|failed|denied)\b", re.IGNORECASE)
# What PHP-FPM says at the end of every start that fails.
_NO_REASON = "FPM initialization failed"


@dataclass(frozen=True)
class State:
    """What systemd says of an instance."""

    active: str = "inactive"
    enabled: bool = False

    @property
    def running(self) -> bool:
        """Say whether the instance serves."""
        return self.active == "active"

    @property
    def idle(self) -> bool:
        """Say whether there is nothing to stop, now and at boot."""
        return self.active in ("inactive", "failed") and not self.enabled

    def __str__(self) -> str:
        """Return the state as a diff shows it."""
        return f"{self.active}, {'enabled' if self.enabled else 'disabled'}"


STOPPED = State()
RUNNING = State("active", True)


@dataclass(frozen=True)
class Load:
    """What an instance has to do; the question itself is one of the active requests."""

    active: int
    accepted: int


@dataclass(frozen=True)
class Drain:
    """How an instance came to rest."""

    release: str
    seconds: float
    complete: bool

    def as_result(self) -> dict[str, Any]:
        """Return the entry of the result."""
        return {"release": self.release, "seconds": round(self.seconds, 2), "complete": self.complete}


def complaint_in(log: Sequence[str]) -> str:
    """Return the line of a log that says best why a start failed, or nothing."""
    said = [line for line in log if _NO_REASON not in line]
    return next((line for line in reversed(said) if _COMPLAINT.search(line)), said[-1] if said else "")


class Instances:
    """The units <name>-fpm@<release>.service of one application."""

    def __init__(
        self,
        systemctl: Systemctl,
        name: str,
        root: Path,
        make_call: Call = call,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        wanted: Path = Path("/etc/systemd/system/multi-user.target.wants"),
    ) -> None:
        self.systemctl = systemctl
        self.name = name
        self.root = root
        self.make_call = make_call
        self.clock = clock
        self.sleep = sleep
        self._wanted = wanted
        self._listed = re.compile(re.escape(f"{name}-fpm@") + r"(?P<release>\S+)\.service\s+\S+\s+(?P<active>\S+)")

    # What follows from a release's id

    def unit(self, release: str) -> str:
        """Return the unit of a release."""
        return f"{self.name}-fpm@{release}.service"

    def socket(self, release: str) -> str:
        """Return the socket of a release's instance."""
        path = str(self.root / "releases" / release / "run" / "fpm.sock")
        if len(path.encode()) > LONGEST_SOCKET:
            raise LmsError(f"The socket {path} has a longer path than the {LONGEST_SOCKET} bytes that Linux allows. Choose a shorter path.")
        return path

    # Looking

    def state(self, release: str) -> State:
        """Return the state of one instance; on a host that does not know the unit none runs."""
        _rc, stdout, _stderr = self.systemctl.attempt("show", "--property=ActiveState", "--value", self.unit(release))
        return State(stdout.strip() or "inactive", self._link(release).is_symlink())

    def known(self) -> dict[str, State]:
        """Return the instances that run, were started or will be at boot, by release."""
        _rc, stdout, _stderr = self.systemctl.attempt("list-units", "--all", "--plain", "--full", "--no-legend", self.unit("*"))
        found = {match["release"]: match["active"] for match in map(self._listed.match, stdout.splitlines()) if match}
        before, _asterisk, after = self.unit("*").partition("*")
        enabled = {link.name[len(before) : -len(after)] for link in self._wanted.glob(self.unit("*"))}
        return {release: State(found.get(release, "inactive"), release in enabled) for release in sorted({*found, *enabled})}

    def _link(self, release: str) -> Path:
        """Return the link that starts an instance at boot: what systemd remembers of it may be older."""
        return self._wanted / self.unit(release)

    def load(self, release: str, timeout: float) -> Load:
        """Ask an instance how much it has to do. The question waits in its queue behind all that came before."""
        params = {**script_params(STATUS_PATH, "/", f"{STATUS_PATH}?json"), "SCRIPT_NAME": STATUS_PATH}
        response = self.make_call(self.socket(release), params, timeout=timeout)
        try:
            found = json.loads(response.body)
            return Load(int(found["active processes"]), int(found["accepted conn"]))
        except (ValueError, KeyError, TypeError) as error:
            raise LmsError(
                f"The instance of release {release} does not tell its status. Set pm.status_path to {STATUS_PATH} in its configuration."
            ) from error

    # Acting

    def start(self, release: str, at_boot: bool) -> None:
        """Start an instance and wait until it listens; when it does not, stop it and say why."""
        unit = self.unit(release)
        if at_boot:
            self.systemctl("enable", "--quiet", "--no-reload", unit)
        rc, stdout, stderr = self.systemctl.attempt("start", unit)
        if rc == 0 and self.state(release).running:
            return
        log = [line.strip() for line in self.systemctl.log(f"--lines={LOG_LINES}", f"_SYSTEMD_UNIT={unit}") if line.strip()]
        self.systemctl.attempt("stop", unit)
        self.systemctl.attempt("disable", "--quiet", "--no-reload", unit)
        reason = complaint_in(log) or next(iter(stderr.strip().splitlines()), "systemd found no public/index.php in the release.")
        raise CommandError(
            f"{unit} did not start: {reason}", cmd=["systemctl", "start", unit], rc=rc, stdout=stdout, stderr=stderr, log=log
        )

    def drain(self, release: str, timeout: float) -> Drain:
        """Wait until an instance has answered every request that it took or that waits in its queue.

        Nobody may be sent to it any more. A question waits in the queue behind everything that came before it; so when two
        questions in a row find nothing else at work, and nothing else was accepted in between, nothing is left.
        """
        started = self.clock()
        deadline = started + timeout
        before: Load | None = None
        while self.clock() < deadline:
            try:
                seen = self.load(release, max(deadline - self.clock(), POLL_INTERVAL))
            except FastcgiError:
                # Too busy to answer in time, or no more there: the state tells.
                before = None
                if not self.state(release).running:
                    return Drain(release, self.clock() - started, True)
            else:
                if seen.active == 1 and before is not None and seen.accepted == before.accepted + 1:
                    return Drain(release, self.clock() - started, True)
                before = seen if seen.active == 1 else None
            self.sleep(POLL_INTERVAL)
        return Drain(release, self.clock() - started, False)

    def stop(self, release: str, drain_timeout: float) -> Drain:
        """Let an instance finish its requests, then stop it, now and at boot."""
        before = self.state(release)
        drained = self.drain(release, drain_timeout) if before.running else Drain(release, 0.0, True)
        self.systemctl("stop", self.unit(release))
        if before.enabled:
            self.systemctl("disable", "--quiet", "--no-reload", self.unit(release))
        # One that had to be killed would be listed for ever.
        self.systemctl.attempt("reset-failed", self.unit(release))
        return drained
