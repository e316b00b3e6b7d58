# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers and nginx are asked over real connections; the table of the kernel is real text."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils import _nginx_traffic_network
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_network import (
    LOOKS,
    addresses_of,
    ask_nginx,
    ask_server,
    ask_workers,
    open_connections,
    read_table,
)
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_sites import Server, Site
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import TrafficError

SITE = Site("api", {}, "/up?deep=1", "api.example.com")

# As Debian 12 has it on a host that is connected to 192.0.2.21:8000, and listens on port 22.
TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 18322 1 0000000000000000 100 0 0 10 0
   1: 0A00000A:8D2C 150200C0:1F40 01 00000000:00000000 00:00000000 00000000    33        0 99123 1 0000000000000000 20 4 30 10 -1
   2: 0A00000A:8D2E 160200C0:1F40 04 00000000:00000000 00:00000000 00000000    33        0 99124 1 0000000000000000 20 4 30 10 -1
   3: 0A00000A:8D30 170200C0:1F40 05 00000000:00000000 00:00000000 00000000    33        0 99125 1 0000000000000000 20 4 30 10 -1
   4: 0A00000A:8D32 180200C0:1F40 06 00000000:00000000 03:00000F5E 00000000     0        0 0 3 0000000000000000
   5: 0A00000A:8D34 190200C0:1F40 08 00000000:00000000 00:00000000 00000000    33        0 99126 1 0000000000000000 20 4 30 10 -1
   6: 0A00000A:8D36 1A0200C0:1F40 02 00000001:00000000 01:00000064 00000000    33        0 99127 2 0000000000000000 100 0 0 10 -1
"""
TABLE_OF_SIX = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0000000000000000FFFF00000A00000A:8D40 0000000000000000FFFF0000150200C0:1F40 01 00000000:00000000 00:00000000 00000000    33        0 1 1 0
   1: B80D0120000000000000000001000000:8D42 B80D0120000000000000000021000000:1F40 01 00000000:00000000 00:00000000 00000000    33        0 2 1 0
"""  # noqa: E501


class Handler(BaseHTTPRequestHandler):
    """Answers as the test wants it, and notes what it was asked."""

    protocol_version = "HTTP/1.1"
    # Each answer in one piece, or the kernel holds the second one back.
    wbufsize = -1

    def do_GET(self) -> None:
        """Answer."""
        server: Any = self.server
        server.asked.append((self.path, self.headers["Host"], self.headers["X-Forwarded-Proto"], self.client_address))
        status, body = server.answer(self.path)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(answer: Any) -> Iterator[Any]:
    """Serve on a port of loopback."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.asked, server.answer = [], answer
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def closed_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


# Health


@pytest.mark.parametrize(("status", "fault"), [(200, ""), (204, "status 204"), (301, "status 301"), (503, "status 503")])
def test_a_server_is_healthy_that_answers_200(status: int, fault: str) -> None:
    with serving(lambda _path: (status, b"")) as server:
        found = ask_server(Server("127.0.0.1", server.server_port), SITE)

    assert found == fault
    assert [asked[:3] for asked in server.asked] == [("/up?deep=1", "api.example.com", "https")]


def test_a_server_that_is_not_there_refuses(closed_port: int) -> None:
    assert ask_server(Server("127.0.0.1", closed_port), SITE) == "refused"


def test_a_server_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nginx_traffic_network, "TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert ask_server(Server("127.0.0.1", silent.getsockname()[1]), SITE) == "timed out"


def test_a_server_that_speaks_no_http_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as strange:

        def answer() -> None:
            """Answer one client."""
            connection, _address = strange.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"+OK\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        found = ask_server(Server("127.0.0.1", strange.getsockname()[1]), SITE)
        thread.join()

    assert found == "no answer in HTTP"


# What nginx says


def test_nginx_is_asked_for_every_bucket_over_one_connection() -> None:
    with serving(lambda path: (200, b"green\n" if int(path.rsplit("/", 1)[1]) < 5 else b"blue\n")) as server:
        found = ask_nginx(f"http://127.0.0.1:{server.server_port}", "api")

    assert found == ["green"] * 5 + ["blue"] * 95
    assert [asked[0] for asked in server.asked] == [f"/traffic/api/{bucket}" for bucket in range(100)]
    assert len({asked[3] for asked in server.asked}) == 1


def test_the_workers_of_nginx_are_asked_on_new_connections() -> None:
    with serving(lambda _path: (200, b"blue-95+green-5\n")) as server:
        found = ask_workers(f"http://127.0.0.1:{server.server_port}", "api")

    assert found == ["blue-95+green-5"] * LOOKS
    assert [asked[0] for asked in server.asked] == ["/traffic/api"] * LOOKS
    assert len({asked[3] for asked in server.asked}) == LOOKS


def test_an_nginx_that_knows_no_such_site_is_named() -> None:
    with serving(lambda _path: (404, b"")) as server, pytest.raises(TrafficError) as caught:
        ask_nginx(f"http://127.0.0.1:{server.server_port}", "api")

    assert caught.value.message == (
        f"nginx answers 404 at http://127.0.0.1:{server.server_port}/traffic/api/0. Run the role load_balancer."
    )


def test_an_nginx_that_is_not_there_is_named(closed_port: int) -> None:
    with pytest.raises(TrafficError) as caught:
        ask_nginx(f"http://127.0.0.1:{closed_port}", "api")

    assert caught.value.message == (
        f"nginx does not say at http://127.0.0.1:{closed_port} where it leads api: [Errno 111] Connection refused. "
        "Start it, or read its error log."
    )


def test_an_nginx_that_answers_too_slowly_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nginx_traffic_network, "STATUS_TIMEOUT", -1)
    with serving(lambda _path: (200, b"blue\n")) as server, pytest.raises(TrafficError, match="where it leads api: timed out"):
        ask_nginx(f"http://127.0.0.1:{server.server_port}", "api")

    assert server.asked == []


# Connections


@pytest.mark.parametrize(
    ("table", "found"),
    [
        (TABLE, {("192.0.2.21", 8000), ("192.0.2.22", 8000), ("192.0.2.23", 8000)}),
        (TABLE_OF_SIX, {("192.0.2.21", 8000), ("2001:db8::21", 8000)}),
        (TABLE.splitlines()[0], set()),
    ],
    ids=["IPv4", "IPv6", "none"],
)
def test_connections_that_carry_something_are_read_from_the_table_of_the_kernel(table: str, found: set[Any]) -> None:
    assert read_table(table) == found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs the tables of Linux")
def test_a_connection_is_there_until_we_close_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        client = socket.create_connection(address)
        served, _address = listening.accept()
        during = address in open_connections()
        client.shutdown(socket.SHUT_WR)
        half = address in open_connections()
        served.close()
        client.close()

        assert (during, half, address in open_connections()) == (True, True, False)


def test_a_kernel_without_ipv6_has_one_table(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(TABLE)

    assert len(open_connections([str(tmp_path / "tcp"), str(tmp_path / "tcp6")])) == 3


@pytest.mark.parametrize(("address", "found"), [("192.0.2.21", "192.0.2.21"), ("2001:db8::21", "2001:db8::21")])
def test_an_address_is_its_own(address: str, found: str) -> None:
    assert addresses_of(Server(address, 8000)) == {(found, 8000)}


def test_a_name_that_cannot_be_resolved_is_named() -> None:
    with pytest.raises(TrafficError, match=re.escape("The name app.invalid cannot be resolved: ")):
        addresses_of(Server("app.invalid", 8000))
