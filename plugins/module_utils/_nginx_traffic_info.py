# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the traffic of the own load balancer goes, whether its servers can take it, and what looks wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic import NginxProvider, group_name
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_network import Network
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import (
    DriftError,
    Live,
    Route,
    check_expected,
    in_words,
    judge,
    read_weights,
    share,
    weights_of,
)
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_switch import health_of, only_live


def run(options: Mapping[str, Any], network: Network | None = None) -> dict[str, Any]:
    """Look at the sites and their servers."""
    provider = NginxProvider.of_routes(options["traffic_directory"], [route["name"] for route in options["routes"]], network)
    expect = read_weights("expect", options["expect"], provider.colours) if options["expect"] else {}
    findings: list[str] = []
    live: dict[str, Route] = {}
    for name in sorted(provider.sites):
        try:
            live.update(_only(provider, [name]).read())
        except LmsError as error:
            # The others are worth a look all the same.
            findings.append(error.message)
    faults = {name: _fault(provider, route) for name, route in live.items()}
    groups = _groups(_only(provider, live), live, options["min_healthy"])
    findings += [fault for fault in faults.values() if fault]
    findings += _about_weights(live, expect)
    findings += [
        f"{group['name']} has the weight {group['weight']}, and cannot take it: {group['fault']}."
        for group in groups
        if group["weight"] and not group["ready"]
    ]
    return {
        "live": only_live(live) if len(live) == len(provider.sites) else None,
        "routes": [_route(name, live.get(name), faults.get(name)) for name in sorted(provider.sites)],
        "groups": groups,
        "findings": findings,
    }


def _only(provider: NginxProvider, names: Iterable[str]) -> NginxProvider:
    """Return the provider for some of its sites."""
    return replace(provider, sites={name: provider.sites[name] for name in names})


def _fault(provider: NginxProvider, route: Route) -> str:
    """Say why nginx does not act by the weights that are there."""
    try:
        return provider.fault(route.name, route.weights)
    except LmsError as error:
        return error.message


def _route(name: str, route: Route | None, fault: str | None) -> dict[str, Any]:
    """Return a site as the module does. One that has lost its weights has none."""
    weights = dict(route.weights) if route else {}
    return {
        "name": name,
        "weights": weights,
        "live": only_live({name: route}) if route else None,
        "verified": fault == "",
    }


def _groups(provider: NginxProvider, live: Live, min_healthy: int) -> list[dict[str, Any]]:
    """Return the servers of every colour of every site as the module does."""
    health = {group: targets for colour in provider.colours for group, targets in provider.health(colour).items()}
    found = []
    for _name, site in sorted(provider.sites.items()):
        for colour in site.colours:
            name = group_name(site.name, colour)
            readiness = judge(name, {name: health[name]}, min_healthy)
            weight = live[site.name].weights.get(colour, 0)
            found.append({**health_of(readiness), "route": site.name, "colour": colour, "weight": weight})
    return found


def _about_weights(live: Live, expect: Mapping[str, int]) -> list[str]:
    """Say what looks wrong with the weights."""
    found = []
    if expect:
        for name, route in live.items():
            try:
                check_expected({name: route}, {name: expect})
            except DriftError as error:
                found.append(error.message)
    # Sites of different colours do not have to agree.
    alike = len({frozenset(route.weights) for route in live.values()}) == 1
    shares = {tuple(share(route.weights, colour) for colour in sorted(route.weights)) for route in live.values()}
    if alike and len(shares) > 1:
        described = "; ".join(f"{name} has {in_words(weights)}" for name, weights in weights_of(live).items())
        found.append(f"The routes do not agree: {described}.")
    return found
