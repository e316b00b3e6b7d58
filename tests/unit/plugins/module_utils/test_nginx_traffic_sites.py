# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role wrote down about its sites is read, or named where it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_sites import Server, Site, Sites, choose, read_sites
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import TrafficError
from ansible_collections.bitflow.lms.tests.unit.plugins.module_utils.nginx_model import URL, Nginx, servers

TWO = {"green": servers("green", 1), "blue": servers("blue", 1)}


@pytest.fixture
def nginx(tmp_path: Path) -> Nginx:
    """Return a load balancer without sites."""
    return Nginx(tmp_path, ())


def refusal(directory: Path) -> str:
    """Return why the sites cannot be read."""
    with pytest.raises(TrafficError) as caught:
        read_sites(str(directory))
    return caught.value.message


def test_sites_and_colours_are_sorted(nginx: Nginx) -> None:
    nginx.write({"web": TWO, "api": TWO})

    colours = {"blue": (Server("192.0.2.11", 8000),), "green": (Server("192.0.2.21", 8000),)}
    found = read_sites(str(nginx.directory))
    sites = {name: Site(name, colours, "/up", "lms.example.com") for name in ("api", "web")}
    assert found == Sites(nginx.directory, sites, "flag", status_url=URL)
    assert [list(found.sites), list(found.sites["web"].colours)] == [["api", "web"], ["blue", "green"]]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        f"There is no {tmp_path}/sites.json, which tells of the sites. Run the role load_balancer with a site that has upstreams, "
        "or correct traffic_directory."
    )


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "sites.json").mkdir()

    assert refusal(tmp_path) == f"{tmp_path}/sites.json, which tells of the sites, cannot be read: Is a directory."


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"sites": {"api": {"colours": {"blue": [{}]}}}}', '{"sites": []}'])
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "sites.json").write_text(content)

    message = refusal(tmp_path)

    assert message.startswith(f"{tmp_path}/sites.json, which tells of the sites, is damaged (")
    assert message.endswith("). Run the role load_balancer with a site that has upstreams.")


@pytest.mark.parametrize(
    ("colours", "message"),
    [
        ({"blue": []}, "The site api has the colours blue. Give its upstreams exactly two colours."),
        ({}, "The site api has the colours none. Give its upstreams exactly two colours."),
        ({**TWO, "red": []}, "The site api has the colours blue, green, red. Give its upstreams exactly two colours."),
        (
            {"blue": servers("blue", 2), "green": servers("blue", 1)},
            "The site api has 192.0.2.11:8000 in both colours. Give each colour servers of its own.",
        ),
        ({"blue": [], "../green": []}, "The site api has the name '../green'. Give letters, digits, dots, hyphens and underscores."),
        ({"blue": [], ".": []}, "The site api has the name '.'. Give letters, digits, dots, hyphens and underscores."),
    ],
)
def test_colours_that_nothing_can_be_split_between_are_refused(colours: dict[str, Any], message: str, nginx: Nginx) -> None:
    nginx.write({"api": colours})

    assert refusal(nginx.directory) == message


def test_haproxy_has_a_socket_in_place_of_an_address(nginx: Nginx) -> None:
    nginx.write({}, method="haproxy", socket="/run/haproxy/admin.sock")

    assert read_sites(str(nginx.directory)) == Sites(nginx.directory, {}, "haproxy", socket="/run/haproxy/admin.sock")


def test_haproxy_without_a_socket_is_refused(nginx: Nginx) -> None:
    nginx.write({}, method="haproxy")

    assert "is damaged (KeyError: 'socket')" in refusal(nginx.directory)


def test_a_method_that_is_not_known_is_refused(nginx: Nginx) -> None:
    nginx.write({"api": TWO}, method="pigeon")

    assert refusal(nginx.directory) == f"{nginx.directory}/sites.json has the method pigeon. Known methods: flag, reload, haproxy."


@pytest.mark.parametrize(("names", "found"), [((), ["api", "web"]), (("web",), ["web"]), (("web", "api"), ["web", "api"])])
def test_the_sites_that_were_asked_for_are_chosen_in_their_order(names: tuple[str, ...], found: list[str], nginx: Nginx) -> None:
    nginx.write({"api": TWO, "web": TWO})

    assert list(choose(read_sites(str(nginx.directory)), names)) == found


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["new"], "There is no site new with two colours. Known sites: api, web."),
        (["api", "web", "api"], "routes has api twice. Name each site once."),
    ],
)
def test_sites_that_cannot_be_meant_are_refused(names: list[str], message: str, nginx: Nginx) -> None:
    nginx.write({"api": TWO, "web": TWO})

    with pytest.raises(TrafficError) as caught:
        choose(read_sites(str(nginx.directory)), names)

    assert caught.value.message == message


def test_a_load_balancer_without_colours_has_nothing_to_switch(nginx: Nginx) -> None:
    with pytest.raises(TrafficError) as caught:
        nginx.provider()

    assert caught.value.message == (
        f"{nginx.directory}/sites.json tells of no site. Run the role load_balancer with a site that has upstreams."
    )
