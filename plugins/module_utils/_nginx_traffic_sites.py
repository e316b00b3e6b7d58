# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sites whose traffic the role load_balancer splits between two colours, as it has written them down for the modules."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._traffic import TrafficError

DIRECTORY = "/var/lib/lms-traffic"
SITES = "sites.json"
FLAG = "flag"
RELOAD = "reload"
HAPROXY = "haproxy"
METHODS = (FLAG, RELOAD, HAPROXY)
# One test a request decides, so that no request can fall between two weights.
COLOURS = 2

# A name becomes a file, a part of an address and a part of a label such as blue-95+green-5.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def traffic_directory_argspec() -> dict[str, dict[str, Any]]:
    """Return the option that leads to the sites."""
    return {"traffic_directory": {"type": "path", "default": DIRECTORY}}


@dataclass(frozen=True)
class Server:
    """A server of a colour."""

    address: str
    port: int


@dataclass(frozen=True)
class Site:
    """A site of the load balancer, and what serves it."""

    name: str
    # Colour to its servers, sorted by colour.
    colours: Mapping[str, Sequence[Server]]
    # What a server is asked to find out whether it is healthy.
    uri: str = "/"
    host: str = "localhost"


@dataclass(frozen=True)
class Sites:
    """What the role wrote down."""

    directory: Path
    sites: Mapping[str, Site]
    # How the weights get into the load balancer.
    method: str = FLAG
    # Where nginx says by which weights it acts.
    status_url: str = ""
    # Where HAProxy takes commands.
    socket: str = ""


def read_sites(directory: str) -> Sites:
    """Read what the role wrote down, or say what is wrong with it."""
    path = Path(directory) / SITES
    advice = "Run the role load_balancer with a site that has upstreams"
    try:
        document = json.loads(path.read_bytes())
        method = str(document["method"])
        if method not in METHODS:
            raise TrafficError(f"{path} has the method {method}. Known methods: {', '.join(METHODS)}.")
        way = "socket" if method == HAPROXY else "status_url"
        sites = {name: _site(name, given) for name, given in sorted(document["sites"].items())}
        found = Sites(Path(directory), sites, method, **{way: str(document[way])})
    except FileNotFoundError as error:
        raise TrafficError(f"There is no {path}, which tells of the sites. {advice}, or correct traffic_directory.") from error
    except OSError as error:
        raise TrafficError(f"{path}, which tells of the sites, cannot be read: {error.strerror}.") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TrafficError(f"{path}, which tells of the sites, is damaged ({type(error).__name__}: {error}). {advice}.") from error
    return found


def _site(name: str, given: Mapping[str, Any]) -> Site:
    """Read a site."""
    colours = {
        str(colour): tuple(Server(str(server["address"]), int(server["port"])) for server in servers)
        for colour, servers in sorted(given["colours"].items())
    }
    for word in (name, *colours):
        if not _NAME.fullmatch(word):
            raise TrafficError(f"The site {name} has the name {word!r}. Give letters, digits, dots, hyphens and underscores.")
    if len(colours) != COLOURS:
        raise TrafficError(f"The site {name} has the colours {', '.join(colours) or 'none'}. Give its upstreams exactly two colours.")
    first, second = colours.values()
    shared = sorted(f"{server.address}:{server.port}" for server in set(first) & set(second))
    if shared:
        raise TrafficError(f"The site {name} has {', '.join(shared)} in both colours. Give each colour servers of its own.")
    return Site(name, colours, str(given["health"]["uri"]), str(given["health"]["host"]))


def choose(sites: Sites, names: Sequence[str]) -> dict[str, Site]:
    """Return the sites that were asked for; all of them when none was named."""
    if not sites.sites:
        raise TrafficError(f"{sites.directory / SITES} tells of no site. Run the role load_balancer with a site that has upstreams.")
    unknown = sorted(set(names) - set(sites.sites))
    if unknown:
        raise TrafficError(f"There is no site {', '.join(unknown)} with two colours. Known sites: {', '.join(sites.sites)}.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TrafficError(f"routes has {', '.join(twice)} twice. Name each site once.")
    return {name: sites.sites[name] for name in names or sites.sites}
