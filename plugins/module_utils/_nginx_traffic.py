# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traffic of the own load balancer: its sites as routes, and two groups of servers for each of them as colours."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_flag import BUCKETS
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_methods import Method, open_method
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_network import Network
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_sites import Server, Site, choose, read_sites
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import (
    HEALTHY,
    UNHEALTHY,
    UNUSED,
    Route,
    Target,
    TrafficError,
    Weights,
    drift,
    in_words,
    refuse_weights,
    same,
    share,
)

NOT_ATTACHED = "not attached"
MOST_THREADS = 32


@dataclass(frozen=True)
class NginxProvider:
    """Traffic of the sites of a load balancer."""

    sites: Mapping[str, Site]
    method: Method
    network: Network

    @classmethod
    def of_routes(cls, directory: str, names: Sequence[str], network: Network | None = None) -> NginxProvider:
        """Return a provider for some sites, or for all of them."""
        found, world = read_sites(directory), network or Network()
        return cls(choose(found, names), open_method(found, world), world)

    @property
    def colours(self) -> list[str]:
        """Return the names of the colours."""
        return sorted({colour for site in self.sites.values() for colour in site.colours})

    def refuse_mixed(self) -> None:
        """Refuse sites of different colours, which no rollout can switch together."""
        kinds = {site.name: ", ".join(site.colours) for site in self.sites.values()}
        if len(set(kinds.values())) > 1:
            described = "; ".join(f"{name} has {colours}" for name, colours in kinds.items())
            raise TrafficError(f"The sites have different colours: {described}. Name in routes those with the same ones.")

    def read(self) -> dict[str, Route]:
        """Return every route as it is now."""
        return {name: Route(name, self._weights(site)) for name, site in self.sites.items()}

    def health(self, colour: str, only: str | None = None) -> dict[str, list[Target]]:
        """Return the servers of a colour for each site, or for one of them, as they answer now."""
        sites = [site for site in self.sites.values() if colour in site.colours and only in (None, site.name)]
        with ThreadPoolExecutor(max_workers=MOST_THREADS) as pool:
            asked = {}
            for site in sites:
                look = self._ask if colour in self._weights(site) else _unused
                asked[group_name(site.name, colour)] = pool.map(partial(look, site), site.colours[colour])
            return {group: list(targets) for group, targets in asked.items()}

    def set(self, route: str, weights: Weights, expect: Weights) -> None:
        """Give a site these weights in one step."""
        site = self._site(route)
        percent = percent_of(site, weights)
        with self._alone(site):
            found = self._weights(site)
            if not same(found, weights) and not same(found, expect):
                raise drift(route, found, expect)
            self.method.write(site, percent)

    def verify(self, route: str, weights: Weights) -> bool:
        """Say whether the load balancer itself would choose by these weights."""
        return not self.fault(route, weights)

    def fault(self, route: str, weights: Weights) -> str:
        """Say why the load balancer does not act by these weights; nothing when it does."""
        site = self._site(route)
        percent = percent_of(site, weights)
        try:
            return self.method.fault(site, percent)
        except LmsError as error:
            return error.message

    def drained(self, colour: str) -> bool:
        """Say whether a colour has no weight, and this host no connection to its servers."""
        if any(route.weights.get(colour, 0) for route in self.read().values()):
            return False
        servers = {server for site in self.sites.values() for server in site.colours.get(colour, ())}
        places = {address for server in servers for address in self.network.addresses(server)}
        return not places & self.network.connections()

    def _ask(self, site: Site, server: Server) -> Target:
        """Return a server with what it answers."""
        fault = self.network.fault(server, site)
        return Target(server.address, server.port, UNHEALTHY if fault else HEALTHY, fault)

    def _site(self, route: str) -> Site:
        """Return a site."""
        if route not in self.sites:
            raise TrafficError(f"There is no route {route}. Known routes: {', '.join(self.sites)}.")
        return self.sites[route]

    def _weights(self, site: Site) -> dict[str, int]:
        """Return the weights of a site as they are now."""
        return self.method.read(site)

    @contextlib.contextmanager
    def _alone(self, site: Site) -> Iterator[None]:
        """Let nobody else change a site. The lock ends with the process."""
        place = self.method.place(site)
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)
        except OSError as error:
            raise TrafficError(f"The weights of the site {site.name} cannot be written below {place}: {error.strerror}.") from error


def group_name(site: str, colour: str) -> str:
    """Return what the servers of a colour are called."""
    return f"{site}-{colour}"


def _unused(_site: Site, server: Server) -> Target:
    """Return a server of a colour that is not attached, and therefore not asked."""
    return Target(server.address, server.port, UNUSED, NOT_ATTACHED)


def percent_of(site: Site, weights: Weights) -> dict[str, int]:
    """Return weights in percent, which they have to come to, or refuse them."""
    refuse_weights(f"The route {site.name}", weights)
    unknown = sorted(set(weights) - set(site.colours))
    if unknown:
        raise TrafficError(f"The route {site.name} has no colour {', '.join(unknown)}. Its colours: {', '.join(site.colours)}.")
    exact = {colour: BUCKETS * share(weights, colour) for colour in sorted(weights)}
    percent = {colour: round(part) for colour, part in exact.items()}
    total = sum(weights.values())
    if any(percent[colour] * total != BUCKETS * weights[colour] for colour in weights):
        raise TrafficError(
            f"The route {site.name} cannot have {in_words(weights)}: nginx splits traffic in hundredths. "
            f"Give weights that come to whole percents, such as {in_words(_whole(percent))}."
        )
    return percent


def _whole(percent: Weights) -> dict[str, int]:
    """Return percents near these that come to 100."""
    first, *others = sorted(percent)
    rest = {colour: percent[colour] for colour in others}
    return {first: BUCKETS - sum(rest.values()), **rest}
