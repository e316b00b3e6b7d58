# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights of the servers of HAProxy, set at its runtime socket: a site is a backend, and each server's name begins with its colour.

HAProxy forgets what was set when it is started or reloaded, unless it loads a server-state-file. The weights are read from it each time, so
a rollout notices.
"""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ansible_collections.bitflow.lms.plugins.module_utils._traffic import TrafficError, Weights, in_words, same

# The largest weight of a server.
MAX_SERVER_WEIGHT = 256
TIMEOUT = 5.0
# In srv_admin_state: the server was put into maintenance, or has to end what it serves, by a command.
MAINTAINED = 0x01
DRAINING = 0x08

_NUMBER = re.compile(r"[-_.]?\d+$")

# Sends commands to the socket and returns what it answers.
Talk = Callable[[str, str], str]


@dataclass(frozen=True)
class BackendServer:
    """A server as HAProxy has it."""

    name: str
    given: int
    admin_state: int = 0

    @property
    def attached(self) -> bool:
        """Say whether it may get requests."""
        return not self.admin_state & MAINTAINED

    @property
    def weight(self) -> int:
        """Return its weight, as far as it counts."""
        return self.given if self.attached and not self.admin_state & DRAINING else 0


def talk(path: str, commands: str) -> str:
    """Send commands to the runtime socket, and return what it answers."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(path)
            connection.sendall(f"{commands}\n".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
    except OSError as error:
        raise TrafficError(f"HAProxy does not answer at {path}: {error.strerror or error}. Start it, or correct socket.") from error
    return answer.decode("utf-8", "replace")


def read_backend(site: str, path: str, say: Talk) -> list[BackendServer]:
    """Return the servers of a backend."""
    answer = say(path, f"show servers state {site}")
    lines = [line for line in answer.splitlines() if line.strip()]
    header = next((line for line in lines if line.startswith("# ")), None)
    if header is None:
        raise TrafficError(f"HAProxy has no backend {site}: {answer.strip() or 'no answer'} Give the backend the name of the site.")
    names = header[2:].split()
    rows = [dict(zip(names, line.split())) for line in lines[lines.index(header) + 1 :]]
    return [BackendServer(row["srv_name"], int(row["srv_uweight"]), int(row["srv_admin_state"])) for row in rows]


def colour_of(server: str, colours: Iterable[str]) -> str:
    """Return the colour of a server; what its name is without a number where it has none."""
    return max((colour for colour in colours if server.startswith(colour)), key=len, default=_NUMBER.sub("", server))


def weights_of_servers(servers: Sequence[BackendServer], colours: Iterable[str]) -> dict[str, int]:
    """Return what each colour gets, in percent where that comes out whole. A colour in maintenance is not attached."""
    sums: dict[str, int] = {}
    for server in servers:
        if server.attached:
            colour = colour_of(server.name, colours)
            sums[colour] = sums.get(colour, 0) + server.weight
    total = sum(sums.values())
    if total and all(100 * weight % total == 0 for weight in sums.values()):
        return {colour: 100 * weight // total for colour, weight in sorted(sums.items())}
    return dict(sorted(sums.items()))


def server_weights(site: str, servers: Sequence[BackendServer], percent: Weights, colours: Iterable[str]) -> dict[str, int]:
    """Return the weight of each server that gives every colour its percent, however many servers it has."""
    by_colour = {colour: [server.name for server in servers if colour_of(server.name, colours) == colour] for colour in percent}
    for colour, names in by_colour.items():
        if percent[colour] and not names:
            raise TrafficError(f"The backend {site} has no server whose name begins with {colour}. Name its servers {colour}1, {colour}2.")
    common = math.lcm(*(len(names) for names in by_colour.values() if names))
    shares = {colour: percent[colour] * common // len(names) for colour, names in by_colour.items() if names}
    divisor = math.gcd(*shares.values())
    found = {name: shares[colour] // divisor for colour, names in by_colour.items() for name in names}
    if max(found.values()) > MAX_SERVER_WEIGHT:
        counts = in_words({colour: len(names) for colour, names in by_colour.items()})
        raise TrafficError(
            f"The backend {site} cannot have {in_words(percent)} with {counts} servers: one would need a weight above {MAX_SERVER_WEIGHT}. "
            "Give weights such as 5, 25 and 50."
        )
    return found


def write_backend(site: str, path: str, percent: Weights, colours: Sequence[str], say: Talk) -> None:
    """Give the servers of a backend their weights: first what rises, then what falls, so that somebody serves at each moment."""
    servers = read_backend(site, path, say)
    if same(weights_of_servers(servers, colours), percent):
        return
    wanted = server_weights(site, servers, percent, colours)
    servers.sort(key=lambda server: wanted.get(server.name, 0) <= server.weight)
    commands = []
    for server in servers:
        commands.append(f"set weight {site}/{server.name} {wanted.get(server.name, 0)}")
        if colour_of(server.name, colours) not in percent:
            commands.append(f"set server {site}/{server.name} state maint")
        elif server.admin_state & (MAINTAINED | DRAINING):
            commands.append(f"set server {site}/{server.name} state ready")
    answer = say(path, "; ".join(commands)).strip()
    if answer:
        raise TrafficError(f"HAProxy refuses the weights of {site}: {answer} Give the socket level admin.")
