# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways in which the weights of a site get into the load balancer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_flag import (
    BUCKETS,
    colours_of,
    label_of,
    read_flags,
    write_flags,
)
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_haproxy import read_backend, weights_of_servers, write_backend
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_network import Network
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_reload import read_split, write_split
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_sites import HAPROXY, RELOAD, Site, Sites
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import Weights, in_words, same


class Method(Protocol):
    """How weights, in percent, are kept and switched. Each method raises LmsError or OSError when it cannot."""

    def place(self, site: Site) -> Path:
        """Return the directory whose lock keeps others from switching the site."""

    def read(self, site: Site) -> dict[str, int]:
        """Return the weights of a site as they are now."""

    def write(self, site: Site, percent: Weights) -> None:
        """Give a site its weights in one step. Weights that are in force already stay."""

    def fault(self, site: Site, percent: Weights) -> str:
        """Say why the load balancer does not act by these weights; nothing when it does."""


@dataclass(frozen=True)
class OwnFiles:
    """Files of a site in a directory of its own, and nginx, which says at its status port what it does by them."""

    directory: Path
    status_url: str
    network: Network

    def place(self, site: Site) -> Path:
        """Return the directory of the site."""
        return self.directory / site.name


@dataclass(frozen=True)
class FlagMethod(OwnFiles):
    """Files that nginx looks for with each request."""

    def read(self, site: Site) -> dict[str, int]:
        """Read the link."""
        return read_flags(self.place(site))

    def write(self, site: Site, percent: Weights) -> None:
        """Rename a link."""
        write_flags(self.place(site), percent)

    def fault(self, site: Site, percent: Weights) -> str:
        """Ask nginx for every bucket."""
        answers = self.network.answers(self.status_url, site.name)
        if answers == colours_of(percent):
            return ""
        counts = {answer: answers.count(answer) for answer in sorted(set(answers))}
        return f"nginx leads {site.name} to {in_words(counts)} of {BUCKETS} buckets, and not by {in_words(percent)}."


@dataclass(frozen=True)
class ReloadMethod(OwnFiles):
    """A file of nginx' configuration."""

    def read(self, site: Site) -> dict[str, int]:
        """Read the file."""
        return read_split(self.place(site))

    def write(self, site: Site, percent: Weights) -> None:
        """Write the file and reload, unless nginx has it already."""
        if self.read(site) != percent or self.fault(site, percent):
            write_split(self.place(site), percent, self.network.run)

    def fault(self, site: Site, percent: Weights) -> str:
        """Ask some workers of nginx which weights they have."""
        others = sorted(set(self.network.labels(self.status_url, site.name)) - {label_of(percent)})
        return f"nginx still has {', '.join(others)} for {site.name}, and not {label_of(percent)}." if others else ""


@dataclass(frozen=True)
class HaproxyMethod:
    """The runtime socket of HAProxy."""

    directory: Path
    socket: str
    network: Network

    def place(self, site: Site) -> Path:
        """Return the directory of all sites: HAProxy has no files for them."""
        return self.directory

    def read(self, site: Site) -> dict[str, int]:
        """Read the weights of the servers."""
        return weights_of_servers(read_backend(site.name, self.socket, self.network.talk), site.colours)

    def write(self, site: Site, percent: Weights) -> None:
        """Set the weights of the servers."""
        write_backend(site.name, self.socket, percent, list(site.colours), self.network.talk)

    def fault(self, site: Site, percent: Weights) -> str:
        """Read the weights again: HAProxy acts by what it answers with."""
        found = self.read(site)
        return "" if same(found, percent) else f"HAProxy has {in_words(found)} for {site.name}, and not {in_words(percent)}."


def open_method(sites: Sites, network: Network) -> Method:
    """Return the way that the sites go."""
    if sites.method == HAPROXY:
        return HaproxyMethod(sites.directory, sites.socket, network)
    return (ReloadMethod if sites.method == RELOAD else FlagMethod)(sites.directory, sites.status_url, network)
