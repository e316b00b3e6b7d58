# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights of the servers of HAProxy: read, calculated, and set in an order in which somebody always serves."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_haproxy import (
    DRAINING,
    MAINTAINED,
    BackendServer,
    colour_of,
    read_backend,
    server_weights,
    talk,
    weights_of_servers,
    write_backend,
)
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import TrafficError, Weights
from ansible_collections.bitflow.lms.tests.unit.plugins.module_utils.nginx_model import BEFORE, Nginx

COLOURS = ("blue", "green")
# What HAProxy 2.6 answered.
STATE = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change srv_check_status \
srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl \
srv_check_port srv_check_addr srv_agent_addr srv_agent_port
3 api 1 blue1 127.0.0.1 2 0 5 1 1 1 0 2 0 0 0 0 - 9001 - 0 0 - - 0
3 api 2 green1 127.0.0.1 0 1 0 1 1 1 0 2 0 0 0 0 - 9003 - 0 0 - - 0
3 api 3 green2 127.0.0.1 2 8 7 1 1 1 0 2 0 0 0 0 - 9004 - 0 0 - - 0

"""


@pytest.fixture
def nginx(tmp_path: Path) -> Nginx:
    """Return a load balancer that is HAProxy."""
    return Nginx(tmp_path, method="haproxy")


def servers(**weights: int) -> list[BackendServer]:
    """Return servers by their names."""
    return [BackendServer(name, weight) for name, weight in weights.items()]


def test_servers_are_read_as_haproxy_tells_them() -> None:
    found = read_backend("api", "/socket", lambda _path, _command: STATE)

    assert found == [BackendServer("blue1", 5), BackendServer("green1", 0, MAINTAINED), BackendServer("green2", 7, DRAINING)]
    assert [(server.attached, server.weight) for server in found] == [(True, 5), (False, 0), (True, 0)]


def test_a_backend_that_there_is_not_is_named() -> None:
    with pytest.raises(TrafficError) as caught:
        read_backend("api", "/socket", lambda _path, _command: "Can't find backend.\n\n")

    assert caught.value.message == "HAProxy has no backend api: Can't find backend. Give the backend the name of the site."


@pytest.mark.parametrize(
    ("server", "colour"),
    [("blue1", "blue"), ("blue", "blue"), ("blue-next2", "blue-next"), ("red-12", "red"), ("10", ""), ("web1a", "web1a")],
)
def test_a_server_has_the_longest_colour_that_its_name_begins_with(server: str, colour: str) -> None:
    assert colour_of(server, ("blue", "blue-next")) == colour


@pytest.mark.parametrize(
    ("found", "weights"),
    [
        (servers(blue1=19, blue2=19, green1=1, green2=1), {"blue": 95, "green": 5}),
        (servers(blue1=1, green1=0), {"blue": 100, "green": 0}),
        (servers(blue1=1, green1=2), {"blue": 1, "green": 2}),
        (servers(blue1=0, green1=0), {"blue": 0, "green": 0}),
        ([BackendServer("blue1", 1), BackendServer("green1", 1, MAINTAINED)], {"blue": 100}),
        ([BackendServer("blue1", 1), BackendServer("green1", 1, DRAINING)], {"blue": 100, "green": 0}),
        (servers(blue1=1, red1=1), {"blue": 50, "red": 50}),
    ],
)
def test_what_a_colour_gets_is_the_sum_of_its_servers(found: list[BackendServer], weights: Weights) -> None:
    assert weights_of_servers(found, COLOURS) == weights


@pytest.mark.parametrize(
    ("percent", "names", "wanted"),
    [
        ({"blue": 95, "green": 5}, ("blue1", "blue2", "green1", "green2"), {"blue1": 19, "blue2": 19, "green1": 1, "green2": 1}),
        ({"blue": 50, "green": 50}, ("blue1", "blue2", "green1"), {"blue1": 1, "blue2": 1, "green1": 2}),
        ({"blue": 75, "green": 25}, ("blue1", "green1", "green2", "green3"), {"blue1": 9, "green1": 1, "green2": 1, "green3": 1}),
        ({"blue": 0, "green": 100}, ("blue1", "green1"), {"blue1": 0, "green1": 1}),
        ({"blue": 100}, ("blue1", "green1"), {"blue1": 1}),
        ({"blue": 100, "green": 0}, ("blue1",), {"blue1": 1}),
    ],
)
def test_each_server_gets_its_part(percent: Weights, names: tuple[str, ...], wanted: dict[str, int]) -> None:
    found = [BackendServer(name, 0) for name in names]

    assert server_weights("api", found, percent, COLOURS) == wanted


def test_more_than_a_server_can_weigh_is_refused() -> None:
    names = ("blue1", "blue2", "green1", "green2", "green3")

    with pytest.raises(TrafficError) as caught:
        server_weights("api", [BackendServer(name, 1) for name in names], {"blue": 99, "green": 1}, COLOURS)

    assert caught.value.message == (
        "The backend api cannot have blue 99, green 1 with blue 2, green 3 servers: one would need a weight above 256. "
        "Give weights such as 5, 25 and 50."
    )


def test_a_colour_without_servers_gets_no_weight() -> None:
    with pytest.raises(TrafficError) as caught:
        server_weights("api", servers(blue1=1), {"blue": 95, "green": 5}, COLOURS)

    assert caught.value.message == "The backend api has no server whose name begins with green. Name its servers green1, green2."


def test_somebody_serves_at_each_moment(nginx: Nginx) -> None:
    totals = []
    original = nginx.haproxy._do

    def watch(words: list[str]) -> str:
        answer = original(words)
        totals.append(sum(weight for weight, admin in nginx.haproxy.backends["api"].values() if not admin))
        return answer

    nginx.haproxy._do = watch  # type: ignore[method-assign]
    provider = nginx.provider("api")
    for before, after in ((BEFORE, {"blue": 0, "green": 100}), ({"green": 1, "blue": 0}, {"blue": 100}), ({"blue": 1}, BEFORE)):
        provider.set("api", after, before)

    assert min(totals) > 0
    assert nginx.haproxy.commands == [
        *("set weight api/green1 1", "set weight api/green2 1", "set weight api/blue1 0", "set weight api/blue2 0"),
        *("set weight api/blue1 1", "set weight api/blue2 1"),
        *("set weight api/green1 0", "set server api/green1 state maint", "set weight api/green2 0", "set server api/green2 state maint"),
        *("set weight api/blue1 1", "set weight api/blue2 1"),
        *("set weight api/green1 0", "set server api/green1 state ready", "set weight api/green2 0", "set server api/green2 state ready"),
    ]


def test_in_the_order_of_their_names_nobody_would_serve_for_a_moment(nginx: Nginx) -> None:
    """The same weights, set server by server."""
    totals = []
    for command in ("api/blue1 0", "api/blue2 0", "api/green1 1", "api/green2 1"):
        nginx.haproxy.talk("/run/haproxy/admin.sock", f"set weight {command}")
        totals.append(sum(weight for weight, _admin in nginx.haproxy.backends["api"].values()))

    assert min(totals) == 0


def test_the_same_weights_again_say_nothing(nginx: Nginx) -> None:
    nginx.provider("api").set("api", {"blue": 1, "green": 0}, {"blue": 3, "green": 4})

    assert nginx.haproxy.commands == []


def test_a_haproxy_that_was_restarted_is_noticed(nginx: Nginx) -> None:
    provider = nginx.provider("api")
    provider.set("api", {"blue": 0, "green": 100}, BEFORE)
    nginx.haproxy.by_hand("api", BEFORE)

    assert provider.fault("api", {"blue": 0, "green": 100}) == "HAProxy has blue 100, green 0 for api, and not blue 0, green 100."


def test_what_haproxy_refuses_is_told() -> None:
    answers = iter([STATE, "Permission denied\n\n"])

    with pytest.raises(TrafficError) as caught:
        write_backend("api", "/socket", {"blue": 50, "green": 50}, COLOURS, lambda _path, _commands: next(answers))

    assert caught.value.message == "HAProxy refuses the weights of api: Permission denied Give the socket level admin."


# The socket


def test_commands_go_to_the_socket_and_its_whole_answer_comes_back(tmp_path: Path) -> None:
    path, heard = str(tmp_path / "admin.sock"), []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def answer() -> None:
            """Answer one client in two pieces, and hang up as HAProxy does."""
            connection, _address = server.accept()
            with connection:
                heard.append(connection.recv(4096))
                connection.sendall(b"1\n")
                connection.sendall(b"# be_id\n")

        thread = threading.Thread(target=answer)
        thread.start()
        found = talk(path, "show servers state api")
        thread.join()

    assert (heard, found) == ([b"show servers state api\n"], "1\n# be_id\n")


def test_a_haproxy_that_is_not_there_is_named(tmp_path: Path, nginx: Nginx) -> None:
    path: Any = tmp_path / "gone.sock"

    with pytest.raises(TrafficError) as caught:
        talk(str(path), "show servers state api")

    assert caught.value.message == f"HAProxy does not answer at {path}: No such file or directory. Start it, or correct socket."
