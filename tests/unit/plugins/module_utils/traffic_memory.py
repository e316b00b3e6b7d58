# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A load balancer and a record that live in memory: what every provider and every store has to do, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ansible_collections.bitflow.lms.plugins.module_utils._traffic import (
    HEALTHY,
    UNUSED,
    Health,
    Live,
    Route,
    Target,
    Weights,
    drift,
    refuse_weights,
    same,
)
from ansible_collections.bitflow.lms.plugins.module_utils._traffic_record import Stored, conflict


class MemoryProvider:
    """Holds routes and the state of each target, and calls a hook before and after every call."""

    def __init__(self, routes: Mapping[str, Weights], colours: Sequence[str] = ("blue", "green"), targets: int = 2) -> None:
        self.colours = tuple(colours)
        self.routes = {name: Route(name, dict(weights)) for name, weights in routes.items()}
        # Colour to the state of each of its targets, the same in every group.
        self.states: dict[str, list[str]] = {colour: [HEALTHY] * targets for colour in colours}
        self.undrained: set[str] = set()
        # Routes that do not act by their weights yet.
        self.slow: set[str] = set()
        self.calls: list[str] = []
        self.writes: list[tuple[str, dict[str, int]]] = []
        self.before: Callable[[str], None] = lambda _call: None
        self.after: Callable[[str], None] = lambda _call: None
        # Sees each change before it is made: route, weights before, weights after.
        self.guard: Callable[[str, Weights, Weights], None] = lambda _route, _before, _after: None

    def read(self) -> Live:
        """Return every route as it is."""
        self._begin("read")
        found = {name: Route(name, dict(route.weights), route.sticky_seconds) for name, route in self.routes.items()}
        self.after("read")
        return found

    def health(self, colour: str) -> Health:
        """Return the targets of a colour: those of a route that it is not attached to are unused."""
        self._begin(f"health {colour}")
        found = {}
        for name, route in self.routes.items():
            attached = colour in route.weights
            found[f"{name}-{colour}"] = [
                Target(f"192.0.2.{number}", 80, state if attached else UNUSED, "" if attached else "Target.NotInUse")
                for number, state in enumerate(self.states[colour], 1)
            ]
        self.after(f"health {colour}")
        return found

    def set(self, route: str, weights: Weights, expect: Weights) -> None:
        """Give a route its weights, unless somebody else changed them."""
        self._begin(f"set {route}")
        refuse_weights(f"The route {route}", weights)
        found = self.routes[route].weights
        if not same(found, weights):
            if not same(found, expect):
                raise drift(route, found, expect)
            self.guard(route, found, weights)
            self.by_hand(route, weights)
            self.writes.append((route, dict(weights)))
        self.after(f"set {route}")

    def verify(self, route: str, weights: Weights) -> bool:
        """Say whether the weights are in force."""
        self._begin(f"verify {route}")
        answer = route not in self.slow and same(self.routes[route].weights, weights)
        self.after(f"verify {route}")
        return answer

    def drained(self, colour: str) -> bool:
        """Say whether a colour serves nothing any more."""
        self._begin(f"drained {colour}")
        answer = colour not in self.undrained
        self.after(f"drained {colour}")
        return answer

    def by_hand(self, route: str, weights: Weights) -> None:
        """Change the weights as somebody with a console would."""
        self.routes[route] = Route(route, dict(weights), self.routes[route].sticky_seconds)

    def _begin(self, call: str) -> None:
        """Note a call."""
        self.before(call)
        self.calls.append(call)


class MemoryStore:
    """Holds a document, and calls a hook before and after every write."""

    uri = "memory"

    def __init__(self) -> None:
        self.content: bytes | None = None
        self.version = 0
        self.before: Callable[[str], None] = lambda _call: None
        self.after: Callable[[str], None] = lambda _call: None

    def read(self) -> Stored | None:
        """Return the document."""
        return None if self.content is None else Stored(self.content, str(self.version))

    def create(self, content: bytes) -> str:
        """Write the document where there is none."""
        return self._swap(content, None)

    def replace(self, content: bytes, tag: str) -> str:
        """Write the document over the one with this tag."""
        return self._swap(content, tag)

    def _swap(self, content: bytes, tag: str | None) -> str:
        """Compare and write."""
        self.before("write")
        found = self.read()
        if (found.tag if found else None) != tag:
            raise conflict(self.uri)
        self.content = content
        self.version += 1
        # Taken now: by the time the answer arrives somebody else may have written again.
        written = str(self.version)
        self.after("write")
        return written
