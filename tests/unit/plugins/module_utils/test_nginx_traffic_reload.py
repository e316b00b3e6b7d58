# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights as a part of nginx' configuration: written, tested, reloaded, and put back where nginx does not take them."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_reload import read_split, render
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import AmbiguousError, TrafficError, Weights
from ansible_collections.bitflow.lms.tests.unit.plugins.module_utils.nginx_model import BEFORE, Nginx

SHIFTED = {"blue": 95, "green": 5}
COMMANDS = [["nginx", "-T"], ["nginx", "-t"], ["nginx", "-s", "reload"]]


@pytest.fixture
def nginx(tmp_path: Path) -> Nginx:
    """Return a load balancer that is reloaded."""
    return Nginx(tmp_path, method="reload")


def text_of(nginx: Nginx) -> str:
    """Return the configuration of the site api."""
    return (nginx.directory / "api" / "split.conf").read_text()


@pytest.mark.parametrize(
    ("percent", "parts"),
    [
        (SHIFTED, ["    5% green;", "    * blue;"]),
        ({"blue": 100, "green": 0}, ["    * blue;"]),
        ({"blue": 0, "green": 100}, ["    * green;"]),
        ({"green": 100}, ["    * green;"]),
    ],
)
def test_a_split_names_colours_with_weight_and_the_last_one_first(percent: Weights, parts: list[str]) -> None:
    lines = render("web-site", percent).splitlines()

    assert lines[1:-3] == ["split_clients $traffic_key $traffic_colour_web_site {", *parts, "}"]
    assert lines[-3] == 'map "" $traffic_weights_web_site {'


def test_a_switch_is_tested_and_reloaded(nginx: Nginx) -> None:
    nginx.provider("api").set("api", SHIFTED, BEFORE)

    assert text_of(nginx) == render("api", SHIFTED)
    assert (nginx.ran, nginx.loaded["api"]) == (COMMANDS, "blue-95+green-5")


def test_the_same_weights_again_reload_nothing(nginx: Nginx) -> None:
    for _time in range(2):
        nginx.provider("api").set("api", SHIFTED, BEFORE)

    assert nginx.ran == COMMANDS


def test_a_switch_that_was_killed_before_its_reload_is_reloaded_by_the_next_one(nginx: Nginx) -> None:
    (nginx.directory / "api" / "split.conf").write_text(render("api", SHIFTED))
    provider = nginx.provider("api")
    before = provider.fault("api", SHIFTED)

    provider.set("api", SHIFTED, BEFORE)

    assert before == "nginx still has blue-100+green-0 for api, and not blue-95+green-5."
    assert (provider.fault("api", SHIFTED), nginx.ran) == ("", COMMANDS)


@pytest.mark.parametrize(
    "configuration",
    ["", "# keepalive_min_timeout 5s;\n", "keepalive_min_timeout 0;\n", "keepalive_min_timeout 0s;\n", "keepalive_timeout 75s;\n"],
)
def test_a_reload_that_would_lose_requests_is_refused(configuration: str, nginx: Nginx) -> None:
    nginx.configuration = f"http {{\n{configuration}}}\n"

    with pytest.raises(TrafficError) as caught:
        nginx.provider("api").set("api", SHIFTED, BEFORE)

    assert caught.value.message == (
        "A reload of nginx would lose requests on kept-alive connections, because its configuration sets no keepalive_min_timeout. "
        "Set it, which takes a new version of nginx, or use the method flag."
    )
    assert (text_of(nginx), nginx.ran) == (render("api", BEFORE), [["nginx", "-T"]])


@pytest.mark.parametrize(("arguments", "ran"), [("-T", 1), ("-t", 2), ("-s reload", 3)])
def test_what_nginx_does_not_take_is_put_back(arguments: str, ran: int, nginx: Nginx) -> None:
    nginx.refusals[arguments] = "unknown directive\n"

    with pytest.raises(TrafficError) as caught:
        nginx.provider("api").set("api", SHIFTED, BEFORE)

    assert caught.value.message == f"nginx {arguments} ended with status 1: unknown directive Mend its configuration."
    assert (text_of(nginx), nginx.ran, nginx.loaded["api"]) == (render("api", BEFORE), COMMANDS[:ran], "blue-100+green-0")


def test_a_file_that_is_gone_or_was_changed_is_named(nginx: Nginx) -> None:
    site = nginx.directory / "api"
    path = site / "split.conf"
    path.write_text(text_of(nginx).replace("* blue", "* green"))
    with pytest.raises(AmbiguousError) as changed:
        read_split(site)
    path.unlink()
    with pytest.raises(AmbiguousError) as gone:
        read_split(site)
    path.mkdir()
    with pytest.raises(AmbiguousError) as unreadable:
        read_split(site)

    assert [caught.value.message for caught in (changed, gone, unreadable)] == [
        f"{path} was changed by somebody else, so nobody knows its weights. Bring it back, or set it up again.",
        f"The site api has lost its weights: {path} is missing. Bring it back, or set it up again.",
        f"The weights of the site api cannot be read: {path}: Is a directory.",
    ]
