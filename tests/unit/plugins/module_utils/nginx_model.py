# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for the own load balancer: the files that its role writes, and an nginx or HAProxy that goes by them as real ones do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic import NginxProvider
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_flag import BUCKETS, write_flags
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_haproxy import MAINTAINED
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_network import LOOKS, Address, Network
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_reload import render
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_sites import Server, Site
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import TrafficError, Weights

URL = "http://127.0.0.1:8081"
SOCKET = "/run/haproxy/admin.sock"
HEADER = "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change"
BEFORE: Mapping[str, int] = {"blue": 100, "green": 0}
FIRST = {"blue": 11, "green": 21}


def servers(colour: str, count: int) -> list[dict[str, Any]]:
    """Return servers of a colour as the role writes them down."""
    return [{"address": f"192.0.2.{FIRST[colour] + number}", "port": 8000} for number in range(count)]


class Haproxy:
    """Backends with two servers a colour, behind a runtime socket."""

    def __init__(self, backends: Sequence[str]) -> None:
        # Name of a server to its weight and its administrative state.
        self.backends = {name: {f"{colour}{number}": [0, 0] for colour in FIRST for number in (1, 2)} for name in backends}
        self.commands: list[str] = []

    def talk(self, path: str, commands: str) -> str:
        """Answer as the socket does: an empty line where all went well."""
        assert path == SOCKET
        return "".join(self._do(command.split()) + "\n" for command in commands.split("; "))

    def _do(self, words: list[str]) -> str:
        """Carry out a command."""
        if words[:3] == ["show", "servers", "state"]:
            if words[3] not in self.backends:
                return "Can't find backend.\n"
            rows = [f"3 {words[3]} 1 {name} 192.0.2.1 2 {admin} {weight} 1 1" for name, (weight, admin) in self.backends[words[3]].items()]
            return "\n".join(["1", HEADER, *rows, ""])
        self.commands.append(" ".join(words))
        backend, _slash, server = words[2].partition("/")
        found = self.backends.get(backend, {}).get(server)
        if found is None:
            return "No such server.\n"
        if words[:2] == ["set", "weight"]:
            found[0] = int(words[3])
        else:
            found[1] = {"ready": 0, "maint": MAINTAINED}[words[4]]
        return ""

    def by_hand(self, backend: str, weights: Weights) -> None:
        """Change weights as somebody at the socket does."""
        servers = self.backends[backend]
        for name, found in servers.items():
            found[1] = 0 if name[:-1] in weights else MAINTAINED
        for colour, weight in weights.items():
            for number in (1, 2):
                servers[f"{colour}{number}"] = [weight, 0]


class Nginx:
    """A load balancer with sites whose traffic is all on blue, with green attached, and two servers a colour."""

    def __init__(
        self, directory: Path, sites: Sequence[str] = ("api", "web"), weights: Weights | None = None, method: str = "flag"
    ) -> None:
        self.directory = directory
        self.method = method
        self.haproxy = Haproxy(sites)
        # What a reload brought in, by site.
        self.loaded: dict[str, str] = {}
        self.ran: list[list[str]] = []
        # Arguments of nginx to what it says when it refuses them.
        self.refusals: dict[str, str] = {}
        self.configuration = "    keepalive_min_timeout 5s;\n"
        self.running = True
        # Address of a server to why it is not healthy.
        self.faults: dict[str, str] = {}
        # What each look at the connections of the host finds; then none.
        self.connections: list[set[Address]] = []
        self.asked: list[tuple[str, str]] = []
        self.write({site: {colour: servers(colour, 2) for colour in FIRST} for site in sites})
        for site in sites:
            (directory / site).mkdir()
            self.by_hand(site, BEFORE if weights is None else weights)

    def write(self, sites: Mapping[str, Any], **more: Any) -> None:
        """Write down what the sites are, as the role does."""
        health = {"uri": "/up", "host": "lms.example.com"}
        document = {
            "method": self.method,
            **({"socket": SOCKET} if self.method == "haproxy" else {"status_url": URL}),
            "sites": {site: {"health": health, "colours": colours} for site, colours in sites.items()},
        }
        (self.directory / "sites.json").write_text(json.dumps({**document, **more}))

    def by_hand(self, site: str, weights: Weights) -> None:
        """Change weights behind everybody's back."""
        total = sum(weights.values())
        percent = {colour: BUCKETS * weight // total for colour, weight in weights.items()}
        if self.method == "haproxy":
            self.haproxy.by_hand(site, percent)
        elif self.method == "reload":
            (self.directory / site / "split.conf").write_text(render(site, percent))
            self._load()
        else:
            write_flags(self.directory / site, percent)

    def link(self, site: str) -> str:
        """Return where the link of a site leads."""
        return str((self.directory / site / "current").readlink())

    def answers(self, site: str) -> list[str]:
        """Return what nginx chooses for each bucket; its second colour is green."""
        current = self.directory / site / "current"
        if not current.is_dir():
            return ["lost"] * BUCKETS
        return ["green" if (current / "green" / str(bucket)).is_file() else "blue" for bucket in range(BUCKETS)]

    def provider(self, *sites: str) -> NginxProvider:
        """Return the provider for sites; for all of them when none is named."""
        return NginxProvider.of_routes(str(self.directory), sites, self.network)

    @property
    def network(self) -> Network:
        """Return the world outside."""
        return Network(
            fault=self._fault,
            answers=self._answers,
            labels=lambda _url, site: [self.loaded.get(site, "")] * LOOKS,
            addresses=lambda server: {(server.address, server.port)},
            connections=self._connections,
            run=self._run,
            talk=self.haproxy.talk,
        )

    def _fault(self, server: Server, site: Site) -> str:
        """Answer for a server."""
        self.asked.append((site.name, server.address))
        return self.faults.get(server.address, "")

    def _answers(self, url: str, site: str) -> list[str]:
        """Answer for nginx."""
        if not self.running:
            raise TrafficError(f"nginx does not say at {url} where it leads {site}: [Errno 111] Connection refused. Start it.")
        return self.answers(site)

    def _run(self, argv: list[str]) -> tuple[int, str, str]:
        """Run nginx."""
        self.ran.append(argv)
        arguments = " ".join(argv[1:])
        if arguments in self.refusals:
            return 1, "", self.refusals[arguments]
        if arguments == "-s reload":
            self._load()
        return 0, self.configuration, ""

    def _load(self) -> None:
        """Take what lies there, as a reload does."""
        for path in sorted(self.directory.glob("*/split.conf")):
            self.loaded[path.parent.name] = path.read_text().splitlines()[0][2:]

    def _connections(self) -> set[Address]:
        """Answer for the kernel."""
        return self.connections.pop(0) if self.connections else set()
