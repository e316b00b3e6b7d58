# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for the own load balancer: the files that its role writes, and an nginx that looks for weights as the real one does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic import NginxProvider
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_flag import BUCKETS, write_flags
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_network import Address, Network
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_sites import Server, Site
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import TrafficError, Weights

URL = "http://127.0.0.1:8081"
BEFORE: Mapping[str, int] = {"blue": 100, "green": 0}
FIRST = {"blue": 11, "green": 21}


def servers(colour: str, count: int) -> list[dict[str, Any]]:
    """Return servers of a colour as the role writes them down."""
    return [{"address": f"192.0.2.{FIRST[colour] + number}", "port": 8000} for number in range(count)]


class Nginx:
    """A load balancer with sites whose traffic is all on blue, with green attached, and two servers a colour."""

    def __init__(self, directory: Path, sites: Sequence[str] = ("api", "web"), weights: Weights = BEFORE) -> None:
        self.directory = directory
        self.running = True
        # Address of a server to why it is not healthy.
        self.faults: dict[str, str] = {}
        # What each look at the connections of the host finds; then none.
        self.connections: list[set[Address]] = []
        self.asked: list[tuple[str, str]] = []
        self.write({site: {colour: servers(colour, 2) for colour in FIRST} for site in sites})
        for site in sites:
            (directory / site).mkdir()
            self.by_hand(site, weights)

    def write(self, sites: Mapping[str, Any], **more: Any) -> None:
        """Write down what the sites are, as the role does."""
        health = {"uri": "/up", "host": "lms.example.com"}
        document = {
            "method": "flag",
            "status_url": URL,
            "sites": {site: {"health": health, "colours": colours} for site, colours in sites.items()},
        }
        (self.directory / "sites.json").write_text(json.dumps({**document, **more}))

    def by_hand(self, site: str, weights: Weights) -> None:
        """Change weights behind everybody's back."""
        total = sum(weights.values())
        write_flags(self.directory / site, {colour: BUCKETS * weight // total for colour, weight in weights.items()})

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
        return Network(self._fault, self._answers, lambda server: {(server.address, server.port)}, self._connections)

    def _fault(self, server: Server, site: Site) -> str:
        """Answer for a server."""
        self.asked.append((site.name, server.address))
        return self.faults.get(server.address, "")

    def _answers(self, url: str, site: str) -> list[str]:
        """Answer for nginx."""
        if not self.running:
            raise TrafficError(f"nginx does not say at {url} where it leads {site}: [Errno 111] Connection refused. Start it.")
        return self.answers(site)

    def _connections(self) -> set[Address]:
        """Answer for the kernel."""
        return self.connections.pop(0) if self.connections else set()
