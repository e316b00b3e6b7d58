# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a load balancer's host can see of its servers: whether they are healthy, which of them nginx would choose, and who is connected."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ansible_collections.bitflow.lms.plugins.module_utils._http_probe import NoConnectionError, Probe, call
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_flag import BUCKETS
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_haproxy import Talk, talk
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_sites import Server, Site
from ansible_collections.bitflow.lms.plugins.module_utils._systemd import RunProgram, run_program
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import TrafficError

# How long a server may take to answer, and nginx to answer for all buckets (seconds).
TIMEOUT = 5.0
STATUS_TIMEOUT = 10.0
OK = 200
LONGEST_ANSWER = 1024
# How many connections are opened to see whether old workers of nginx still take some.
LOOKS = 20
TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
# ESTABLISHED, FIN_WAIT1 and FIN_WAIT2 in the kernel's table: what still carries a request, or the answer to one.
BUSY = frozenset({"01", "04", "05"})

# An address without a name, and a port.
Address = tuple[str, int]


def ask_server(server: Server, site: Site) -> str:
    """Return why a server is not healthy; nothing when it is."""
    host = f"[{server.address}]" if ":" in server.address else server.address
    # As nginx forwards: an application that insists on TLS would only redirect otherwise.
    headers = {"Host": site.host, "X-Forwarded-Proto": "https"}
    probe = Probe(f"http://{host}:{server.port}{site.uri}", headers=headers, timeout=TIMEOUT)
    try:
        status = call(probe).status
    except (NoConnectionError, socket.timeout, TimeoutError):
        return "timed out"
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return error.strerror or str(error)
    except http.client.HTTPException:
        return "no answer in HTTP"
    return "" if status == OK else f"status {status}"


def ask_nginx(url: str, site: str) -> list[str]:
    """Return which colour nginx chooses for each bucket, over one connection."""
    return _ask_status(url, site, [f"/traffic/{site}/{bucket}" for bucket in range(BUCKETS)])


def ask_workers(url: str, site: str) -> list[str]:
    """Return which weights nginx has, on new connections: after a reload old workers may still take some."""
    return _ask_status(url, site, [f"/traffic/{site}"] * LOOKS, kept_alive=False)


def _ask_status(url: str, site: str, paths: Iterable[str], kept_alive: bool = True) -> list[str]:
    """Ask nginx at its status address."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT)
    deadline = time.monotonic() + STATUS_TIMEOUT
    answers = []
    try:
        for path in paths:
            if time.monotonic() > deadline:
                raise socket.timeout("timed out")
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read(LONGEST_ANSWER).decode("latin-1").strip()
            if answer.status != OK:
                raise TrafficError(f"nginx answers {answer.status} at {url}{path}. Run the role load_balancer.")
            answers.append(text)
            if not kept_alive:
                connection.close()
    except (OSError, http.client.HTTPException) as error:
        raise TrafficError(f"nginx does not say at {url} where it leads {site}: {error}. Start it, or read its error log.") from error
    finally:
        connection.close()
    return answers


def addresses_of(server: Server) -> set[Address]:
    """Return where the connections to a server go."""
    try:
        found = socket.getaddrinfo(server.address, server.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TrafficError(f"The name {server.address} cannot be resolved: {error.strerror}. Correct it, or the name service.") from error
    return {(str(address[0]).partition("%")[0], server.port) for *_kind, address in found}


def open_connections(tables: Iterable[str] = TABLES) -> set[Address]:
    """Return the far ends of the connections of this host that are in use."""
    found = set()
    for table in tables:
        path = Path(table)
        # A kernel without IPv6 has one table only.
        if path.exists():
            found |= read_table(path.read_text(encoding="ascii"))
    return found


def read_table(text: str) -> set[Address]:
    """Return the far ends of the connections that are in use in a table of the kernel."""
    rows = [line.split() for line in text.splitlines()[1:]]
    return {_address(row[2]) for row in rows if row[3] in BUSY}


def _address(text: str) -> Address:
    """Read an address of the kernel's table: words of four bytes in the order of the machine."""
    digits, port = text.split(":")
    words = [bytes.fromhex(digits[start : start + 8]) for start in range(0, len(digits), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    address = ipaddress.ip_address(packed)
    # A socket for both families has an IPv4 peer in the form ::ffff:192.0.2.1.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address), int(port, 16)


@dataclass(frozen=True)
class Network:
    """How the world outside is asked."""

    fault: Callable[[Server, Site], str] = ask_server
    answers: Callable[[str, str], list[str]] = ask_nginx
    labels: Callable[[str, str], list[str]] = ask_workers
    addresses: Callable[[Server], set[Address]] = addresses_of
    connections: Callable[[], set[Address]] = open_connections
    run: RunProgram = run_program
    talk: Talk = talk
