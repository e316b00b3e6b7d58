"""Tell Prometheus what PHP-FPM says on its status page, asked through the sockets of its pools at the moment of each scrape."""

from __future__ import annotations

import json
import socket
import struct
import sys

from serving import Server, family, labels, parser

# By the name that Prometheus gets: kind, the status page's own name, help.
METRICS = {
    "php_fpm_accepted_connections_total": ("counter", "accepted conn", "Requests that the pool accepted."),
    "php_fpm_active_processes": ("gauge", "active processes", "Processes that answer a request."),
    "php_fpm_idle_processes": ("gauge", "idle processes", "Processes that wait for a request."),
    "php_fpm_listen_queue": ("gauge", "listen queue", "Requests that wait for a process."),
    "php_fpm_listen_queue_length": ("gauge", "listen queue len", "Requests that can wait for a process."),
    "php_fpm_max_active_processes": ("gauge", "max active processes", "Most processes that were active at once since the start."),
    "php_fpm_max_children_reached": ("gauge", "max children reached", "How often there were as many processes as there may be."),
    "php_fpm_max_listen_queue": ("gauge", "max listen queue", "Most requests that waited at once since the start."),
    "php_fpm_slow_requests": ("gauge", "slow requests", "Requests that took longer than the pool's limit for slow ones."),
    "php_fpm_start_time_seconds": ("gauge", "start time", "When PHP-FPM started."),
    "php_fpm_total_processes": ("gauge", "total processes", "Processes of the pool."),
}
BEGIN, END, PARAMETERS, INPUT, OUTPUT = 1, 3, 4, 5, 6
SECONDS = 3


def record(kind: int, content: bytes = b"") -> bytes:
    """Return a FastCGI record."""
    return struct.pack(">BBHHBB", 1, kind, 1, len(content), 0, 0) + content


def parameter(name: str, value: str) -> bytes:
    """Return a FastCGI parameter. None is as long as 128 characters."""
    return struct.pack(">BB", len(name), len(value)) + name.encode() + value.encode()


def read_status(path: str, status_path: str) -> dict[str, object]:
    """Ask the pool behind a socket for its status page."""
    parameters = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_FILENAME": status_path,
        "SCRIPT_NAME": status_path,
        "REQUEST_URI": f"{status_path}?json",
        "QUERY_STRING": "json",
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(path)
        words = b"".join(parameter(name, value) for name, value in parameters.items())
        connection.sendall(record(BEGIN, struct.pack(">HB5x", 1, 0)) + record(PARAMETERS, words) + record(PARAMETERS) + record(INPUT))
        answer = read_output(connection)
    _headers, _blank, body = answer.partition(b"\r\n\r\n")
    try:
        return dict(json.loads(body))
    except ValueError as error:
        raise OSError(f"{status_path} is no status page of this pool. It answers: {answer[:200].decode(errors='replace')!r}") from error


def read_output(connection: socket.socket) -> bytes:
    """Read what the pool answers until it is done."""
    output = b""
    with connection.makefile("rb") as stream:
        while True:
            header = stream.read(8)
            if len(header) < 8:
                raise OSError("The pool hung up before it was done.")
            _version, kind, _request, length, padding, _reserved = struct.unpack(">BBHHBB", header)
            content = stream.read(length + padding)[:length]
            if kind == OUTPUT:
                output += content
            elif kind == END:
                return output


def ask(path: str, status_path: str) -> dict[str, object]:
    """Return what a pool says, nothing where it is down, and tell the journal why."""
    try:
        return read_status(path, status_path)
    except OSError as error:
        print(f"{path}: {error}", file=sys.stderr, flush=True)
        return {}


def render(sockets: list[str], status_path: str) -> str:
    """Return the metrics of the pools."""
    answers = {path: ask(path, status_path) for path in sockets}
    up = [f"php_fpm_up{labels(socket=path)} {int(bool(status))}" for path, status in answers.items()]
    lines = family("php_fpm_up", "gauge", "Whether the pool told its status.", up)
    for name, (kind, key, text) in METRICS.items():
        samples = [
            f"{name}{labels(pool=str(status.get('pool', '')), socket=path)} {status[key]}"
            for path, status in answers.items()
            if isinstance(status.get(key), int)
        ]
        lines += family(name, kind, text, samples)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the arguments and serve."""
    arguments = parser(__doc__, 9253)
    arguments.add_argument("--phpfpm.socket-path", dest="sockets", action="append", default=[], help="socket of a pool; can be given again")
    arguments.add_argument("--phpfpm.status-path", dest="status_path", default="/fpm-status", help="pm.status_path of the pools")
    options = arguments.parse_args()
    if not options.version:
        Server(options.listen, lambda: render(options.sockets, options.status_path)).serve_forever()


if __name__ == "__main__":
    main()
