# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traffic of an Application Load Balancer of AWS: its listeners and rules as routes, its target groups as what carries a colour.

A route is the default action of a listener, or a rule. Of its actions only the one that forwards is changed. A group without weight stays
in that action: the load balancer checks only groups that an action names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._aws_api import Api, AwsError
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import (
    DRAINING,
    UNUSED,
    Route,
    Target,
    TrafficError,
    Weights,
    drift,
    refuse_weights,
    same,
)

# How many groups AWS takes in one action, and how many names in one question.
MAX_GROUPS = 5
MAX_NAMES = 20
MAX_STICKY_SECONDS = 604800
# Why a target is not used.
NOT_IN_USE = "Target.NotInUse"
NOT_REGISTERED = "Target.NotRegistered"

Action = Mapping[str, Any]


# How routes are named


def routes_argspec() -> dict[str, dict[str, Any]]:
    """Return the options that say which listener or rule a route is."""
    return {
        "name": {"type": "str"},
        "load_balancer": {"type": "str"},
        "port": {"type": "int"},
        "listener_arn": {"type": "str"},
        "rule_arn": {"type": "str"},
        "priority": {"type": "int"},
    }


@dataclass(frozen=True)
class Place:
    """Where a route is found."""

    name: str
    listener_arn: str
    # Empty for the default action of the listener.
    rule_arn: str = ""

    @property
    def words(self) -> str:
        """Return it for a message."""
        return f"the route {self.name}"

    def as_result(self) -> dict[str, Any]:
        """Return it as a module does."""
        return {"name": self.name, "listener_arn": self.listener_arn, "rule_arn": self.rule_arn or None}


def group_name(arn: str) -> str:
    """Return the name of a target group, which is unique in its region."""
    return arn.split("/")[1] if is_arn(arn) else arn


def is_arn(name: str) -> bool:
    """Say whether something is named by its ARN."""
    return name.startswith("arn:")


def listener_of(rule_arn: str) -> str:
    """Return the listener that a rule belongs to."""
    return rule_arn.replace(":listener-rule/", ":listener/").rpartition("/")[0]


def check_route(option: Mapping[str, Any]) -> None:
    """Refuse a route that is named in no way, or in several."""
    given = {key: option[key] for key in routes_argspec() if option.get(key) not in (None, "")}
    ways = sorted(key for key in ("load_balancer", "listener_arn", "rule_arn") if key in given)
    described = ", ".join(f"{key}={value}" for key, value in sorted(given.items())) or "nothing"
    if len(ways) != 1:
        raise TrafficError(f"A route has {described}. Give load_balancer and port, or listener_arn, or rule_arn.")
    if ("load_balancer" in given) != ("port" in given):
        raise TrafficError(f"A route has {described}. Give load_balancer and port together.")
    if "rule_arn" in given and "priority" in given:
        raise TrafficError(f"A route has {described}. Give rule_arn without priority.")
    for key, kind in (("listener_arn", ":listener/"), ("rule_arn", ":listener-rule/")):
        if key in given and not (is_arn(given[key]) and kind in given[key]):
            raise TrafficError(f"{key} is {given[key]}, which is no ARN of {'a listener' if key == 'listener_arn' else 'a rule'}.")


def find_places(api: Api, options: Sequence[Mapping[str, Any]]) -> list[Place]:
    """Find the listeners and rules that the options name."""
    for option in options:
        check_route(option)
    ports = _ports(api, {arn for option in options if (arn := option.get("listener_arn") or listener_of(option.get("rule_arn") or ""))})
    balancers: dict[str, tuple[str, dict[int, str]]] = {}
    places = []
    for option in options:
        wanted = option.get("load_balancer")
        if wanted:
            if wanted not in balancers:
                balancers[wanted] = _balancer(api, wanted)
            name, listeners = balancers[wanted]
            if option["port"] not in listeners:
                known = ", ".join(str(port) for port in sorted(listeners)) or "none"
                raise TrafficError(f"The load balancer {wanted} has no listener on port {option['port']}. Its listeners: {known}.")
            listener, label = listeners[option["port"]], f"{name}:{option['port']}"
        else:
            listener = option.get("listener_arn") or listener_of(option["rule_arn"])
            label = f"{listener.split('/')[2]}:{ports[listener]}"
        rule, priority = _rule(api, listener, label, option)
        places.append(Place(option.get("name") or (f"{label}/{priority}" if rule else label), listener, rule))
    _refuse_twice(places)
    return places


def all_places(api: Api, load_balancer: str) -> list[Place]:
    """Find every listener and rule of a load balancer that forwards."""
    name, listeners = _balancer(api, load_balancer)
    places = []
    for port, listener in sorted(listeners.items()):
        for rule in rules_of(api, listener):
            if _forwarding(rule["Actions"]) is not None:
                default = rule["IsDefault"]
                label = f"{name}:{port}"
                places.append(Place(label, listener) if default else Place(f"{label}/{rule['Priority']}", listener, rule["RuleArn"]))
    return sorted(places, key=lambda place: place.name)


def rules_of(api: Api, listener_arn: str) -> list[dict[str, Any]]:
    """Return all rules of a listener, the default one too."""
    return api.pages("DescribeRules", "Rules", f"The rules of {listener_arn} cannot be read", ListenerArn=listener_arn)


def _ports(api: Api, arns: Iterable[str]) -> dict[str, int]:
    """Return the port of each listener."""
    wanted = sorted(arns)
    if not wanted:
        return {}
    found = api.pages("DescribeListeners", "Listeners", f"The listeners {', '.join(wanted)} cannot be read", ListenerArns=wanted)
    return {listener["ListenerArn"]: int(listener["Port"]) for listener in found}


def _balancer(api: Api, wanted: str) -> tuple[str, dict[int, str]]:
    """Return the name of a load balancer, and its listeners by port."""
    where = {"LoadBalancerArns": [wanted]} if is_arn(wanted) else {"Names": [wanted]}
    found = api.pages("DescribeLoadBalancers", "LoadBalancers", f"The load balancer {wanted} cannot be found", **where)[0]
    arn = found["LoadBalancerArn"]
    listeners = api.pages("DescribeListeners", "Listeners", f"The listeners of {wanted} cannot be read", LoadBalancerArn=arn)
    return found["LoadBalancerName"], {int(listener["Port"]): listener["ListenerArn"] for listener in listeners}


def _rule(api: Api, listener: str, label: str, option: Mapping[str, Any]) -> tuple[str, str]:
    """Return the ARN and the priority of a rule; both empty for the default action."""
    arn, priority = option.get("rule_arn"), option.get("priority")
    if arn:
        rules = api.pages("DescribeRules", "Rules", f"The rule {arn} cannot be found", RuleArns=[arn])
        return ("", "") if rules[0]["IsDefault"] else (arn, str(rules[0]["Priority"]))
    if priority is None:
        return "", ""
    by_priority = {str(rule["Priority"]): rule["RuleArn"] for rule in rules_of(api, listener)}
    if str(priority) not in by_priority:
        raise TrafficError(f"{label} has no rule of the priority {priority}. Its priorities: {', '.join(by_priority)}.")
    return by_priority[str(priority)], str(priority)


def _refuse_twice(places: Sequence[Place]) -> None:
    """Refuse a route that is there twice, and two of the same name."""
    seen: dict[Any, str] = {}
    for place in places:
        for key in (("place", place.listener_arn, place.rule_arn), ("name", place.name)):
            if key in seen:
                raise TrafficError(f"The routes {seen[key]} and {place.name} are the same. Leave one out, or give them names.")
            seen[key] = place.name


# The actions of a listener or rule


@dataclass(frozen=True)
class Forward:
    """What an action forwards to."""

    # ARN of a target group to its weight.
    weights: Weights
    # 0 where clients are not kept on their group.
    sticky_seconds: int = 0


def _forwarding(actions: Sequence[Action]) -> int | None:
    """Return which of the actions forwards."""
    return next((index for index, action in enumerate(actions) if action["Type"] == "forward"), None)


def read_forward(place: Place, actions: Sequence[Action]) -> Forward:
    """Return what a route forwards to, in whichever of its forms AWS tells it."""
    index = _forwarding(actions)
    if index is None:
        last = actions[-1]["Type"] if actions else "nothing"
        raise TrafficError(f"{place.words.capitalize()} ends in {last}, so there is nothing to weigh. Name a route that forwards.")
    sticky = (actions[index].get("ForwardConfig") or {}).get("TargetGroupStickinessConfig") or {}
    return Forward(read_forward_weights(actions), int(sticky.get("DurationSeconds") or 0) if sticky.get("Enabled") else 0)


def read_forward_weights(actions: Sequence[Action]) -> dict[str, int]:
    """Return the weights of the groups that actions forward to; none where they do not forward."""
    index = _forwarding(actions)
    if index is None:
        return {}
    action = actions[index]
    groups = (action.get("ForwardConfig") or {}).get("TargetGroups") or [{"TargetGroupArn": action["TargetGroupArn"]}]
    return {group["TargetGroupArn"]: int(group.get("Weight", 1)) for group in groups}


def write_forward(actions: Sequence[Action], forward: Forward) -> list[dict[str, Any]]:
    """Return the actions as AWS takes them, with another forward and the others as they are."""
    index = _forwarding(actions)
    written = [_as_given(action) for action in actions]
    if index is None:
        raise TrafficError("The actions have none that forwards.")
    stickiness: dict[str, Any] = {"Enabled": bool(forward.sticky_seconds)}
    if forward.sticky_seconds:
        stickiness["DurationSeconds"] = forward.sticky_seconds
    # Without TargetGroupArn, which AWS adds to its answer and refuses beside several groups.
    order = {"Order": actions[index]["Order"]} if "Order" in actions[index] else {}
    written[index] = {
        "Type": "forward",
        **order,
        "ForwardConfig": {
            "TargetGroups": [{"TargetGroupArn": arn, "Weight": weight} for arn, weight in sorted(forward.weights.items())],
            "TargetGroupStickinessConfig": stickiness,
        },
    }
    return written


def _as_given(action: Action) -> dict[str, Any]:
    """Return another action so that writing it changes nothing."""
    if action["Type"] != "authenticate-oidc":
        return dict(action)
    # The secret is never in an answer, and leaving it out would be refused.
    config = {key: value for key, value in action["AuthenticateOidcConfig"].items() if key != "ClientSecret"}
    return {**action, "AuthenticateOidcConfig": {**config, "UseExistingClientSecret": True}}


def read_actions(api: Api, places: Sequence[Place]) -> dict[str, list[dict[str, Any]]]:
    """Return the actions of every route as they are now, in two calls at most."""
    rules = [place.rule_arn for place in places if place.rule_arn]
    listeners = sorted({place.listener_arn for place in places if not place.rule_arn})
    what = f"The routes {', '.join(place.name for place in places)} cannot be read"
    found: dict[str, list[dict[str, Any]]] = {}
    if rules:
        found.update({rule["RuleArn"]: rule["Actions"] for rule in api.pages("DescribeRules", "Rules", what, RuleArns=rules)})
    if listeners:
        answers = api.pages("DescribeListeners", "Listeners", what, ListenerArns=listeners)
        found.update({listener["ListenerArn"]: listener["DefaultActions"] for listener in answers})
    for place in places:
        if (place.rule_arn or place.listener_arn) not in found:
            raise TrafficError(f"{place.words.capitalize()} is gone: AWS does not know {place.rule_arn or place.listener_arn} any more.")
    return {place.name: found[place.rule_arn or place.listener_arn] for place in places}


# Target groups


def find_groups(api: Api, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the target groups by the names or ARNs that were asked for."""
    wanted = sorted(set(names))
    found: dict[str, dict[str, Any]] = {}
    for key, field_name in (("Names", "TargetGroupName"), ("TargetGroupArns", "TargetGroupArn")):
        asked = [name for name in wanted if is_arn(name) == (key == "TargetGroupArns")]
        for start in range(0, len(asked), MAX_NAMES):
            some = asked[start : start + MAX_NAMES]
            found.update({group[field_name]: group for group in _describe_groups(api, key, some)})
    missing = [name for name in wanted if name not in found]
    if missing:
        raise TrafficError(f"The target group {', '.join(missing)} cannot be found. Name one of this account and region.")
    return found


def _describe_groups(api: Api, key: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return some target groups. AWS does not say which of several it does not know."""
    what = f"The target group {', '.join(names)} cannot be found"
    try:
        return api.pages("DescribeTargetGroups", "TargetGroups", what, **{key: list(names)})
    except AwsError as error:
        if len(names) == 1 or error.code != "TargetGroupNotFound":
            raise
    return [group for name in names for group in _describe_groups(api, key, [name])]


def read_targets(api: Api, arn: str) -> list[Target]:
    """Return the targets of a group with the states that the load balancer has them in."""
    what = f"The health of the target group {group_name(arn)} cannot be read"
    found = api.call("DescribeTargetHealth", what, TargetGroupArn=arn)["TargetHealthDescriptions"]
    return sorted((_target(each) for each in found), key=lambda target: (target.id, target.port or 0))


def _target(description: Mapping[str, Any]) -> Target:
    """Read a target. One of a Lambda function has no port."""
    target, health = description["Target"], description["TargetHealth"]
    port = int(target["Port"]) if target.get("Port") is not None else None
    return Target(target["Id"], port, health["State"], health.get("Reason") or "")


# The provider


@dataclass
class AlbProvider:
    """Traffic of a load balancer, as colours."""

    api: Api
    places: Sequence[Place]
    # Name of a route to the target group of each colour, by name or ARN.
    groups: Mapping[str, Mapping[str, str]]
    # By the name or ARN of a target group; none of them ever changes.
    _arns: dict[str, str] = field(default_factory=dict)
    # The groups of no colour that were seen, by route and name: who puts a route back puts them back too.
    _foreign: dict[tuple[str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse colours that cannot be told from each other."""
        for place in self.places:
            names = [group_name(group) for group in self.groups[place.name].values()]
            if len(names) != len(set(names)):
                raise TrafficError(f"{place.words.capitalize()} has two colours in one target group: {', '.join(sorted(names))}.")

    @classmethod
    def of_colours(cls, api: Api, routes: Sequence[Mapping[str, Any]], colours: Mapping[str, str | Mapping[str, str]]) -> AlbProvider:
        """Return a provider whose colours have one target group for all routes, or one for each route by its name."""
        places = find_places(api, routes)
        groups: dict[str, dict[str, str]] = {place.name: {} for place in places}
        for colour, given in colours.items():
            if not isinstance(given, (str, Mapping)):
                raise TrafficError(f"The colour {colour} has {given!r}. Give a target group, or one for each route by its name.")
            by_route = dict.fromkeys(groups, given) if isinstance(given, str) else dict(given)
            for name in sorted(set(by_route) ^ set(groups)):
                problem = "has no group for" if name in groups else "has a group for an unknown route,"
                raise TrafficError(f"The colour {colour} {problem} {name}. The routes are {', '.join(sorted(groups))}.")
            for name, group in by_route.items():
                groups[name][colour] = group
        return cls(api, places, groups)

    def find_groups(self) -> None:
        """Find the groups of all colours, or say which one there is not. Otherwise the first need of one would."""
        names = {group for groups in self.groups.values() for group in groups.values()}
        self._arns = {name: found["TargetGroupArn"] for name, found in find_groups(self.api, names).items()}

    @property
    def colours(self) -> list[str]:
        """Return the names of the colours, in the order of the options."""
        return list(dict.fromkeys(colour for place in self.places for colour in self.groups[place.name]))

    def read(self) -> dict[str, Route]:
        """Return every route as it is now."""
        actions = read_actions(self.api, self.places)
        return {place.name: self._route(place, read_forward(place, actions[place.name])) for place in self.places}

    def health(self, colour: str) -> dict[str, list[Target]]:
        """Return the targets of every group of a colour."""
        arns = {self._arn(groups[colour]) for groups in self.groups.values() if colour in groups}
        return {group_name(arn): read_targets(self.api, arn) for arn in sorted(arns)}

    def set(self, route: str, weights: Weights, expect: Weights, sticky_seconds: int | None = None) -> None:
        """Give a route these weights in one call. Its stickiness stays, unless one is given."""
        place = self._place(route)
        refuse_weights(place.words.capitalize(), weights)
        actions = read_actions(self.api, [place])[route]
        forward = read_forward(place, actions)
        found = self._route(place, forward)
        sticky = forward.sticky_seconds if sticky_seconds is None else sticky_seconds
        if same(found.weights, weights) and sticky == forward.sticky_seconds:
            return
        if not same(found.weights, expect):
            raise drift(route, found.weights, expect)
        if len(weights) > MAX_GROUPS:
            raise TrafficError(f"{place.words.capitalize()} would have {len(weights)} target groups, and AWS takes {MAX_GROUPS}.")
        new = Forward({self._arn(self._group(route, colour)): weight for colour, weight in weights.items()}, sticky)
        self._write(place, write_forward(actions, new))

    def verify(self, route: str, weights: Weights) -> bool:
        """Say whether AWS answers with these weights. Its nodes follow some seconds later, and nothing says when."""
        place = self._place(route)
        return same(self._route(place, read_forward(place, read_actions(self.api, [place])[route])).weights, weights)

    def drained(self, colour: str) -> bool:
        """Say whether a colour has no weight and no target that still ends its requests."""
        if any(route.weights.get(colour, 0) for route in self.read().values()):
            return False
        return not any(target.state == DRAINING for targets in self.health(colour).values() for target in targets)

    def _write(self, place: Place, actions: list[dict[str, Any]]) -> None:
        """Replace the actions of a route."""
        what = f"{place.words.capitalize()} cannot be changed"
        if place.rule_arn:
            self.api.call("ModifyRule", what, RuleArn=place.rule_arn, Actions=actions)
        else:
            self.api.call("ModifyListener", what, ListenerArn=place.listener_arn, DefaultActions=actions)

    def _place(self, route: str) -> Place:
        """Return where a route is."""
        for place in self.places:
            if place.name == route:
                return place
        raise TrafficError(f"There is no route {route}. Known routes: {', '.join(place.name for place in self.places)}.")

    def _route(self, place: Place, forward: Forward) -> Route:
        """Return a route in colours. A group of no colour keeps its own name."""
        colours = {group_name(group): colour for colour, group in self.groups[place.name].items()}
        weights: dict[str, int] = {}
        for arn, weight in forward.weights.items():
            name = group_name(arn)
            if name not in colours:
                # A group of no colour may have a colour's name.
                name = arn if name in self.groups[place.name] else name
                self._foreign[place.name, name] = arn
            weights[colours.get(name, name)] = weight
        return Route(place.name, weights, forward.sticky_seconds)

    def _group(self, route: str, colour: str) -> str:
        """Return the target group of a colour on a route."""
        group = self.groups[route].get(colour) or self._foreign.get((route, colour))
        if group is None:
            raise TrafficError(f"The route {route} has no colour {colour}. Its colours: {', '.join(self.groups[route])}.")
        return group

    def _arn(self, group: str) -> str:
        """Return the ARN of a target group."""
        if is_arn(group):
            return group
        if group not in self._arns:
            self.find_groups()
        return self._arns[group]


def is_unattached(targets: Sequence[Target]) -> bool:
    """Say whether the load balancer checks none of the targets: no action names their group, or it is not in their zones."""
    return bool(targets) and all(is_left_out(target) for target in targets)


def is_left_out(target: Target) -> bool:
    """Say whether the load balancer neither checks nor uses a target."""
    return target.state == UNUSED and target.reason == NOT_IN_USE
