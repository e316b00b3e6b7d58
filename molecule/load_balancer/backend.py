"""A server behind the load balancer: tells its name and what it was told, and fails in the ways that servers fail.

Usage: backend.py NAME PORT|SOCKET
"""

from __future__ import annotations

import http.server
import json
import socketserver
import sys
import time
from collections import deque
from pathlib import Path

NAME, ADDRESS = sys.argv[1:]
seen: deque[str] = deque(maxlen=50)


class Backend(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        seen.append(f"{self.command} {self.path}")
        if self.path.startswith("/dies"):
            self.close_connection = True
            return
        if self.path.startswith("/slow/"):
            time.sleep(float(self.path.removeprefix("/slow/")))
        status = {"/missing": 404, "/poison": 502, "/maintenance": 503}.get(self.path, 200)
        if self.path.startswith("/assets/"):
            # A release has its own files only.
            status = 200 if self.path == f"/assets/{NAME.partition('-')[0]}.css" else 404
        told = {name.lower(): value for name, value in self.headers.items()}
        body = json.dumps({"name": NAME, "told": told, "seen": list(seen)}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Server", NAME)
        self.send_header("Strict-Transport-Security", "max-age=1")
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


class Mixin(socketserver.ThreadingMixIn):
    daemon_threads = True
    request_queue_size = 256
    allow_reuse_address = True


class Tcp(Mixin, socketserver.TCPServer):
    pass


class Unix(Mixin, socketserver.UnixStreamServer):
    pass


if ADDRESS.isdigit():
    server = Tcp(("127.0.0.1", int(ADDRESS)), Backend)
else:
    Path(ADDRESS).unlink(missing_ok=True)
    server = Unix(ADDRESS, Backend)
    Path(ADDRESS).chmod(0o666)
server.serve_forever()
