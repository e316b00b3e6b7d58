# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that turn services into rules of a packet filter: pure functions over plain data."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Callable, Union

from ansible.errors import AnsibleFilterError

Service = dict[str, Any]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
PORTS = re.compile(r"(?P<first>[0-9]+)(?:-(?P<last>[0-9]+))?")
RATE = re.compile(r"(?P<number>[1-9][0-9]*)/(?P<period>second|minute|hour|day)")
# How long an address is remembered: as long as its rate counts.
REMEMBERED = {"second": "1s", "minute": "1m", "hour": "1h", "day": "1d"}


def firewall_rules(services: list[Service]) -> list[dict[str, Any]]:
    """Return one rule for each service, with what a template needs, or say which value no rule can be made of."""
    names = [_name(service) for service in services]
    for name in names:
        if names.count(name) > 1:
            raise AnsibleFilterError(f"Two services of the firewall have the name {name}. Give each a name of its own.")
    return [_rule(service) for service in services]


def firewall_admits(services: list[Service], address: str, port: int) -> bool:
    """Say whether a service lets the address connect to the TCP port."""
    client = ipaddress.ip_address(address.partition("%")[0])
    return any(
        service.get("protocol", "tcp") == "tcp"
        and any(first <= int(port) <= last for first, last in _ports(service))
        and (not service.get("sources") or any(client in network for network in _networks(service)))
        for service in services
    )


def _name(service: Service) -> str:
    name = str(service.get("name", ""))
    if not NAME.fullmatch(name):
        raise AnsibleFilterError(
            f"A service of the firewall has the name {name!r}. A name begins with a letter and has at most 31 of a to z, 0 to 9 and _."
        )
    return name


def _rule(service: Service) -> dict[str, Any]:
    networks = _networks(service)
    families: dict[str, list[str]] = {} if networks else {"ip": [], "ip6": []}
    for network in networks:
        families.setdefault("ip" if network.version == 4 else "ip6", []).append(_written(network))
    return {
        "name": service["name"],
        "protocol": service.get("protocol", "tcp"),
        "ports": [f"{first}-{last}" if first != last else str(first) for first, last in _ports(service)],
        "families": [{"name": name, "sources": sources} for name, sources in sorted(families.items())],
        "rate": _rate(service),
    }


def _ports(service: Service) -> list[tuple[int, int]]:
    """Return the ports as ranges that do not touch each other, which nft would refuse."""
    ranges = sorted(_range(service, str(port)) for port in service["ports"])
    if not ranges:
        raise AnsibleFilterError(f"The service {service['name']} of the firewall has no ports.")
    merged = [ranges[0]]
    for first, last in ranges[1:]:
        before_first, before_last = merged[-1]
        if first <= before_last + 1:
            merged[-1] = (before_first, max(before_last, last))
        else:
            merged.append((first, last))
    return merged


def _range(service: Service, port: str) -> tuple[int, int]:
    found = PORTS.fullmatch(port)
    first = int(found["first"]) if found else 0
    last = int(found["last"] or first) if found else 0
    if not 1 <= first <= last <= 65535:
        raise AnsibleFilterError(
            f"The service {service['name']} of the firewall has the port {port!r}. A port is a number from 1 to 65535,"
            " or a range such as 3001-3014."
        )
    return first, last


def _networks(service: Service) -> list[Network]:
    """Return the sources as networks that do not overlap, which nft would refuse."""
    four, six = [], []
    for source in service.get("sources") or []:
        try:
            network = ipaddress.ip_network(str(source))
        except ValueError as error:
            raise AnsibleFilterError(
                f"The service {service['name']} of the firewall has the source {str(source)!r}, no address and no network: {error}."
            ) from error
        if isinstance(network, ipaddress.IPv4Network):
            four.append(network)
        else:
            six.append(network)
    return [*ipaddress.collapse_addresses(four), *ipaddress.collapse_addresses(six)]


def _written(network: Network) -> str:
    """Return a network as nft lists it: one address without its mask."""
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def _rate(service: Service) -> dict[str, Any]:
    rate = str(service.get("rate_limit") or "")
    if not rate:
        return {}
    found = RATE.fullmatch(rate)
    if not found:
        raise AnsibleFilterError(
            f"The service {service['name']} of the firewall has the rate limit {rate!r}. One is a number and second, minute, hour or day,"
            " such as 20/minute."
        )
    return {"limit": rate, "burst": int(found["number"]), "remembered": REMEMBERED[found["period"]]}


class FilterModule:
    """The collection's filters of the firewall."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"firewall_admits": firewall_admits, "firewall_rules": firewall_rules}
