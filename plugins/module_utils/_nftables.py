# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One table of the packet filter: what is loaded, what a file would load, and the way back from a ruleset that shuts everybody out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import make_directory, write_atomically
from ansible_collections.bitflow.lms.plugins.module_utils._systemd import RunProgram, Systemctl, run_program

# Loads a file into a network namespace that nothing else uses, and prints the table "$2..." as nft itself would list it.
LIST_IN_EMPTY_NAMESPACE = 'file=$1 && shift && nft --file "$file" && exec nft --stateless --terse list table "$@"'

LOADED = "what the kernel has loaded"


class Nftables:
    """The program nft, for one table."""

    def __init__(self, table: str, run: RunProgram = run_program) -> None:
        self.table = table
        self.words = table.split()
        self.run = run

    def _run(self, doing: str, argv: list[str]) -> str:
        """Run a program that must succeed, and return what it printed."""
        rc, stdout, stderr = self.run(argv)
        if rc != 0:
            # nft shows each error with the line and a mark below it: the first line says what and where.
            said = next(iter(stderr.strip().splitlines()), "no reason given")
            raise CommandError(f"Could not {doing}: {said}", cmd=argv, rc=rc, stdout=stdout, stderr=stderr)
        return stdout

    def exists(self) -> bool:
        """Say whether the table is loaded."""
        names = self._run("list the tables of the packet filter", ["nft", "list", "tables"])
        return f"table {self.table}" in names.splitlines()

    def loaded(self) -> str:
        """Return the loaded table without what changes by itself: counters, and the addresses that sets collected."""
        if not self.exists():
            return ""
        return self._run(f"list the table {self.table}", ["nft", "--stateless", "--terse", "list", "table", *self.words])

    def former(self) -> str:
        """Return a ruleset that brings the table back as it is now, whatever it is then."""
        return f"table {self.table}\ndelete table {self.table}\n{self.loaded()}"

    def expected(self, file: Path) -> str:
        """Return what would be loaded after the file, as nft lists it."""
        argv = ["unshare", "--net", "sh", "-c", LIST_IN_EMPTY_NAMESPACE, "sh", str(file), *self.words]
        return self._run(f"load the ruleset into an empty network namespace and list its table {self.table}", argv)

    def check(self, file: Path) -> None:
        """Let nft judge a file."""
        self._run("use the ruleset", ["nft", "--check", "--file", str(file)])

    def load(self, file: Path) -> None:
        """Load a file in one step: all of it, or nothing."""
        self._run("load the ruleset", ["nft", "--file", str(file)])


class WayBack:
    """A timer of systemd that loads the former ruleset again, unless it is stopped in time. It needs neither Ansible nor a connection."""

    def __init__(self, directory: Path, unit: str, run: RunProgram = run_program) -> None:
        self.file = directory / "former.nft"
        self.unit = unit
        self.run = run
        self.systemctl = Systemctl(run)

    def armed(self) -> bool:
        """Say whether the timer runs."""
        return self.systemctl.attempt("is-active", "--quiet", f"{self.unit}.timer")[0] == 0

    def keep(self, ruleset: str) -> None:
        """Keep the ruleset that the timer is to load."""
        make_directory(self.file.parent, 0o700)
        write_atomically(self.file, ruleset.encode(), 0o600)

    def arm(self, seconds: int) -> None:
        """Let systemd load what was kept, after a time."""
        argv = [
            "systemd-run",
            "--quiet",
            "--collect",
            f"--unit={self.unit}",
            f"--on-active={seconds}",
            "--timer-property=AccuracySec=100ms",
            "--description=Take back a ruleset that nobody confirmed",
            "nft",
            "--file",
            str(self.file),
        ]
        rc, stdout, stderr = self.run(argv)
        if rc != 0:
            raise CommandError(f"Could not prepare the way back: {stderr.strip()}", cmd=argv, rc=rc, stdout=stdout, stderr=stderr)

    def disarm(self) -> None:
        """Stop the timer. A ruleset that is being loaded at this moment is loaded whole or not at all."""
        self.systemctl.attempt("stop", f"{self.unit}.timer", f"{self.unit}.service")


@dataclass(frozen=True)
class Firewall:
    """The file of a table, the loaded table, and the way back."""

    path: Path
    nftables: Nftables
    way_back: WayBack

    @classmethod
    def of(cls, path: Path, table: str, directory: Path = Path("/run/lms-firewall"), run: RunProgram = run_program) -> Firewall:
        """Return the firewall whose file is at the path."""
        return cls(path, Nftables(table, run), WayBack(directory, "lms-firewall-way-back", run))

    def written(self) -> str:
        """Return the ruleset that is loaded at boot."""
        try:
            return self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""


@contextmanager
def candidate(content: str) -> Iterator[Path]:
    """Give the ruleset as a file that nobody else can read or change."""
    with tempfile.TemporaryDirectory(prefix="lms-firewall-") as directory:
        file = Path(directory, "ruleset.nft")
        file.write_text(content, encoding="utf-8")
        yield file


def differences(firewall: Firewall, content: str, file: Path) -> list[dict[str, str]]:
    """Return what differs from the ruleset, as Ansible shows differences: the file, and the loaded table."""
    compared = [
        (str(firewall.path), firewall.written(), content),
        (LOADED, firewall.nftables.loaded(), firewall.nftables.expected(file)),
    ]
    return [
        {"before_header": name, "after_header": name, "before": before, "after": after}
        for name, before, after in compared
        if before != after
    ]


def load(firewall: Firewall, content: str, seconds: int, check_mode: bool) -> dict[str, Any]:
    """Load the ruleset where it differs from what is loaded or from what is written, and arm the way back."""
    with candidate(content) as file:
        firewall.nftables.check(file)
        unconfirmed = firewall.way_back.armed()
        if unconfirmed and not check_mode:
            # Of a run that was cut off. What it loaded was never proven: all begins anew from what was before it.
            firewall.nftables.load(firewall.way_back.file)
            firewall.way_back.disarm()
        diff = differences(firewall, content, file)
        if diff and not check_mode:
            _replace(firewall, content, file, seconds)
    return {"changed": bool(diff) or unconfirmed, "diff": diff, "confirm_within": seconds if diff and not check_mode else 0}


def _replace(firewall: Firewall, content: str, file: Path, seconds: int) -> None:
    """Load the file. Without a way back it is kept at once."""
    if not seconds:
        firewall.nftables.load(file)
        write_atomically(firewall.path, content.encode(), 0o644)
        return
    firewall.way_back.keep(firewall.nftables.former())
    firewall.nftables.check(firewall.way_back.file)
    firewall.way_back.arm(seconds)
    try:
        firewall.nftables.load(file)
    except LmsError:
        firewall.way_back.disarm()
        raise


def confirm(firewall: Firewall, content: str, check_mode: bool) -> dict[str, Any]:
    """Keep the loaded ruleset: the way back ends, and the file is written. Fail where the former ruleset is back."""
    with candidate(content) as file:
        if not check_mode:
            firewall.way_back.disarm()
        diff = differences(firewall, content, file)
    if any(found["before_header"] == LOADED for found in diff) and not check_mode:
        raise LmsError(
            "The ruleset was taken back, and the host has its former one again: no new connection through it confirmed it in time."
            f" {firewall.path} is as it was. Let in the address and the port that Ansible uses, or give more time.",
            diff=diff,
        )
    if diff and not check_mode:
        write_atomically(firewall.path, content.encode(), 0o644)
    return {"changed": bool(diff), "diff": diff, "confirm_within": 0}
