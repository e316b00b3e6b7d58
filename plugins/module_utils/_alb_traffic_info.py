# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the traffic of a load balancer goes, whether its targets can take it, and what looks wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._alb import (
    Place,
    all_places,
    find_places,
    group_name,
    is_left_out,
    read_actions,
    read_forward,
    read_targets,
)
from ansible_collections.bitflow.lms.plugins.module_utils._alb_traffic import by_group
from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import (
    DriftError,
    Live,
    Readiness,
    Route,
    Target,
    TrafficError,
    Weights,
    carries,
    check_expected,
    in_words,
    judge,
    share,
    weights_of,
)
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_switch import health_of, only_live


def run(api: Api, options: Mapping[str, Any]) -> dict[str, Any]:
    """Look at the routes and their groups."""
    places = _places(api, options)
    actions = read_actions(api, places)
    forwards = {place.name: read_forward(place, actions[place.name]) for place in places}
    live = {
        name: Route(name, {group_name(arn): weight for arn, weight in forward.weights.items()}, forward.sticky_seconds)
        for name, forward in forwards.items()
    }
    arns = {group_name(arn): arn for forward in forwards.values() for arn in forward.weights}
    targets = {group: read_targets(api, arn) for group, arn in sorted(arns.items())}
    judged = {group: judge(group, {group: found}, options["min_healthy"]) for group, found in targets.items()}
    expect = by_group("expect", options["expect"]) if options["expect"] else {}
    return {
        "live": only_live(live),
        "routes": [_route(place, live[place.name]) for place in sorted(places, key=lambda place: place.name)],
        "groups": [
            {**health_of(readiness), "arn": arns[group], "weight_on": carries(live, group)} for group, readiness in sorted(judged.items())
        ],
        "findings": findings(live, judged, targets, expect),
    }


def _places(api: Api, options: Mapping[str, Any]) -> list[Place]:
    """Return the routes that were asked for."""
    if options["load_balancer"]:
        places = all_places(api, options["load_balancer"])
        if not places:
            raise TrafficError(f"The load balancer {options['load_balancer']} has no listener and no rule that forwards.")
        return places
    if not options["routes"]:
        raise TrafficError("routes is empty. Name one listener or rule at least, or a load_balancer.")
    return find_places(api, options["routes"])


def _route(place: Place, route: Route) -> dict[str, Any]:
    """Return a route as the module does."""
    weights = dict(sorted(route.weights.items()))
    return {
        **place.as_result(),
        "weights": weights,
        "percent": {group: round(100 * share(weights, group), 1) for group in weights},
        "sticky_seconds": route.sticky_seconds,
        "live": only_live({route.name: route}),
    }


def findings(live: Live, judged: Mapping[str, Readiness], targets: Mapping[str, Sequence[Target]], expect: Weights) -> list[str]:
    """Say what a person should look at, one sentence each."""
    found = []
    for name, route in sorted(live.items()):
        if not any(route.weights.values()):
            found.append(f"The route {name} has {in_words(route.weights)}, so nobody is served.")
        if route.sticky_seconds and len(route.weights) > 1:
            found.append(f"The route {name} keeps clients on their group for {route.sticky_seconds} s, whatever the weights are.")
        if expect:
            try:
                check_expected({name: route}, {name: expect})
            except DriftError as error:
                found.append(error.message)
    for group, readiness in sorted(judged.items()):
        routes = carries(live, group)
        if routes and not readiness.ready:
            found.append(f"{group} has weight on {', '.join(routes)}, and cannot take it: {readiness.fault}.")
        left_out = [target.label for target in targets[group] if is_left_out(target)]
        if left_out:
            found.append(f"{group} has targets in a zone that the load balancer is not in: {', '.join(left_out)}.")
    if _same_groups(live) and len({str(_shares(route)) for route in live.values()}) > 1:
        described = "; ".join(f"{name} has {in_words(weights)}" for name, weights in weights_of(live).items())
        found.append(f"The routes do not agree: {described}.")
    return found


def _same_groups(live: Live) -> bool:
    """Say whether all routes choose between the same groups. Those of different applications do not have to agree."""
    return len({frozenset(route.weights) for route in live.values()}) == 1


def _shares(route: Route) -> dict[str, float]:
    """Return what each group of a route gets."""
    return {group: round(share(route.weights, group), 4) for group in sorted(route.weights)}
