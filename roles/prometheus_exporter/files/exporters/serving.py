"""What the exporters of this folder share: the answer to a scrape, and the form of a sample."""

from __future__ import annotations

import argparse
import http.server
import ipaddress
import socket
from typing import Callable


def labels(**values: str) -> str:
    """Return the labels of a sample. Nothing in a value ends it."""
    return "{" + ",".join(f'{name}="{escape(value)}"' for name, value in sorted(values.items())) + "}"


def escape(value: str) -> str:
    """Return a value as it stands between the quotes of a label."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def family(name: str, kind: str, text: str, samples: list[str]) -> list[str]:
    """Return the lines of a metric, none where it has no sample."""
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *samples] if samples else []


def parser(description: str | None, port: int) -> argparse.ArgumentParser:
    """Return a parser of the arguments that all have."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--web.listen-address", dest="listen", default=f"127.0.0.1:{port}", help="address and port to listen at")
    found.add_argument("--version", action="store_true", help="say whether the arguments are right, and end")
    return found


class Server(http.server.ThreadingHTTPServer):
    """Answers scrapes at an address of either family with what a function gives."""

    daemon_threads = True

    def __init__(self, listen: str, render: Callable[[], str]) -> None:
        host, _colon, port = listen.rpartition(":")
        host = host.strip("[]")
        self.address_family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        self.render = render
        super().__init__((host, int(port)), Handler)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one scrape."""

    server: Server
    timeout = 10

    def do_GET(self) -> None:
        """Answer with the metrics, or say where they are."""
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, "The metrics are at /metrics")
            return
        body = self.server.render().encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Log no scrape."""
