"""Stand-ins for PHP-FPM and a Node process: each answers with what it was told, as JSON.

Usage: applications.py fastcgi|http SOCKET NAME
"""

from __future__ import annotations

import http.server
import json
import socketserver
import struct
import sys
from pathlib import Path

KIND, SOCKET, NAME = sys.argv[1:]


def answer(uri, told):
    """Return status, headers and body for a request."""
    status = {"/missing": 404, "/broken": 500}.get(uri, 200)
    headers = {"Content-Type": "application/json"}
    if uri == "/own-headers":
        headers |= {"X-Frame-Options": "DENY", "Content-Security-Policy": "default-src 'self'"}
    return status, headers, json.dumps({"name": NAME, "told": told}).encode()


class FastCGI(socketserver.StreamRequestHandler):
    """One FastCGI request a connection, as nginx makes them by default."""

    def handle(self):
        parameters, kind, body_ended = b"", None, False
        while not body_ended:
            header = self.rfile.read(8)
            if len(header) < 8:
                return
            _version, kind, _request, length, padding, _reserved = struct.unpack(">BBHHBB", header)
            content = self.rfile.read(length + padding)[:length]
            parameters += content if kind == 4 else b""
            body_ended = kind == 5 and not length
        told = dict(self.pairs(parameters))
        status, headers, body = answer(told["REQUEST_URI"], told)
        lines = [f"Status: {status}", *(f"{name}: {value}" for name, value in headers.items())]
        output = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
        self.wfile.write(self.record(6, output) + self.record(6) + self.record(3, bytes(8)))

    @staticmethod
    def record(kind, content=b""):
        return struct.pack(">BBHHBB", 1, kind, 1, len(content), 0, 0) + content

    @staticmethod
    def pairs(content):
        while content:
            sizes = []
            for _line in range(2):
                long = content[0] >> 7
                sizes.append(struct.unpack(">I", content[:4])[0] & 0x7FFFFFFF if long else content[0])
                content = content[4 if long else 1 :]
            name, value = content[: sizes[0]], content[sizes[0] : sum(sizes)]
            yield name.decode(), value.decode()
            content = content[sum(sizes) :]


class Http(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status, headers, body = answer(self.path, {name.lower(): value for name, value in self.headers.items()})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 256


Path(SOCKET).parent.mkdir(parents=True, exist_ok=True)
server = Server(SOCKET, {"fastcgi": FastCGI, "http": Http}[KIND])
Path(SOCKET).chmod(0o666)
server.serve_forever()
