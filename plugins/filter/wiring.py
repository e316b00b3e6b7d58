# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that turn the inventory's facts into the roles' variables: pure functions over plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from ansible_collections.bitflow.lms.plugins.filter.monitoring import socket_address

Frontend = dict[str, Any]

# The colours of a blue-green deployment.
COLOURS = ("blue", "green")


def upstreams(frontends: list[Frontend], servers: Mapping[str, Any], api_port: int) -> list[dict[str, Any]]:
    """Return the load balancer's upstreams: the API on every backend host, each front end on every frontend host.

    servers has the addresses of backend and of frontend: a list, or where there are colours, a list for each colour.
    """
    ports = [("api", servers["backend"], int(api_port)), *((app["name"], servers["frontend"], int(app["port"])) for app in frontends)]
    return [
        {"name": name, "servers": [{"address": address, "port": port} for address in addresses]}
        for site, hosts, port in ports
        for name, addresses in _by_colour(site, hosts)
    ]


def _by_colour(site: str, hosts: Any) -> list[tuple[str, list[str]]]:
    """Return the upstreams of a site with their addresses."""
    if isinstance(hosts, Mapping):
        return [(f"{site}_{colour}", list(addresses)) for colour, addresses in hosts.items()]
    return [(site, list(hosts))]


def public_sites(
    frontends: list[Frontend],
    domain: str,
    certificate_directory: str,
    colours: bool = False,
    health_uris: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Return the load balancer's sites: one host name for the API and one for each front end; the first has the bare domain too.

    With colours a site leads to an upstream of each, and health_uris says by site what tells that one of its servers is well.
    """
    names = ["api", *(app["name"] for app in frontends)]
    first = frontends[0]["name"] if frontends else None
    return [
        {
            "name": name,
            "server_names": [f"{name}.{domain}", *([domain] if name == first else [])],
            **(_colours(name, health_uris or {}) if colours else {"upstream": name}),
            **({"assets": ["/_next/static/"]} if colours and name != "api" else {}),
            "certificate": f"{certificate_directory}/fullchain.pem",
            "key": f"{certificate_directory}/privkey.pem",
        }
        for name in names
    ]


def _colours(name: str, health_uris: Mapping[str, str]) -> dict[str, Any]:
    """Return what a site of two colours has in the place of its upstream."""
    return {"upstreams": {colour: f"{name}_{colour}" for colour in COLOURS}, "health_uri": health_uris.get(name, "/")}


def frontend_sites(frontends: list[Frontend], domain: str, path: str) -> list[dict[str, Any]]:
    """Return an application host's sites: assets of every release that may be in a browser, everything else from the live one's socket."""
    first = frontends[0]["name"] if frontends else None
    return [
        {
            "name": app["name"],
            "listen": [str(app["port"])],
            "server_names": [f"{app['name']}.{domain}", *([domain] if app["name"] == first else [])],
            "proxy": {"socket": f"{path}/current/apps/{app['name']}/run/{app['name']}.sock"},
            "assets": [
                {
                    "location": "/_next/static/",
                    "directory": f"{path}/assets/apps/{app['name']}/.next/static/",
                    "immutable": True,
                }
            ],
        }
        for app in frontends
    ]


def frontend_artifact(frontends: list[Frontend]) -> list[dict[str, Any]]:
    """Return what of the built workspace a release needs: Next.js's standalone server, and the assets that it leaves beside."""
    return [
        {"from": f"apps/{app['name']}/{built}", "to": place, "optional": built == "public"}
        for app in frontends
        for built, place in (
            (".next/standalone", "."),
            (".next/static", f"apps/{app['name']}/.next/static"),
            ("public", f"apps/{app['name']}/public"),
        )
    ]


def frontend_artifacts(frontends: list[Frontend]) -> list[dict[str, Any]]:
    """Return one artifact for each front end of the workspace: its package, what builds it and the packages it needs, what it runs on."""
    return [
        {
            "name": f"frontend-{app['name']}",
            "package": f"apps/{app['name']}",
            "steps": [{"argv": ["pnpm", "--filter", f"{{apps/{app['name']}}}...", "--fail-if-no-match", "run", "build"]}],
            "collect": frontend_artifact([app]),
        }
        for app in frontends
    ]


def database_access(addresses: list[str], database: str, user: str) -> list[dict[str, str]]:
    """Return the host-based access rules that let the user reach the database from each address, with a password and TLS."""
    return [
        {
            "type": "hostssl",
            "database": database,
            "user": user,
            "address": f"{address}/{128 if ':' in address else 32}",
            "method": "scram-sha-256",
        }
        for address in addresses
    ]


def host_exporters(exporters: list[dict[str, Any]], groups: list[str]) -> list[dict[str, Any]]:
    """Return the exporters of a host in the groups, as the role prometheus_exporter takes them."""
    return [{"name": exporter["name"], **exporter.get("settings", {})} for exporter in exporters if set(exporter["groups"]) & set(groups)]


def exporter_jobs(
    exporters: list[dict[str, Any]], groups: Mapping[str, list[str]], hosts: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return what Prometheus reads: each exporter of every host that has it, at the host's address. One that no host has is left out."""
    jobs = []
    for exporter in exporters:
        names = sorted({host for group in exporter["groups"] for host in groups.get(group, [])})
        targets = [socket_address(hosts[name]["lms_address"], int(exporter["port"])) for name in names]
        jobs += [{"name": exporter["name"], "targets": targets}] if targets else []
    return jobs


def host_services(services: list[dict[str, Any]], groups: list[str]) -> list[dict[str, Any]]:
    """Return what a host in the groups lets in, as the role firewall takes it. What nobody may reach is left out."""
    return [
        {"name": service["name"], "ports": service["ports"], "sources": sorted(set(service["sources"]))}
        for service in services
        if set(service["groups"]) & set(groups) and service["ports"] and service["sources"]
    ]


class FilterModule:
    """The collection's wiring filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "database_access": database_access,
            "frontend_artifact": frontend_artifact,
            "frontend_artifacts": frontend_artifacts,
            "frontend_sites": frontend_sites,
            "exporter_jobs": exporter_jobs,
            "host_exporters": host_exporters,
            "host_services": host_services,
            "public_sites": public_sites,
            "upstreams": upstreams,
        }
