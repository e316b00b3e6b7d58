"""What the tests of several roles ask of a host, in the words of an operator."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest


def service_is_up(host: Any, name: str) -> bool:
    """Tell whether the unit runs now and will run after a reboot."""
    service = host.service(name)
    return bool(service.is_running and service.is_enabled)


def listening_addresses(host: Any, port: int) -> set[str]:
    """Return the addresses on which something accepts TCP connections at the port."""
    lines = host.check_output("ss --tcp --listening --numeric --no-header 'sport = :%s'", str(port)).splitlines()
    return {line.split()[3].rsplit(":", 1)[0] for line in lines}


def access_to(host: Any, path: str) -> tuple[str, str, str]:
    """Return a path's owner, group and mode, the mode in octal digits."""
    file = host.file(path)
    return file.user, file.group, f"{file.mode:04o}"


# The smallest FastCGI client: one request, then the answer's body. It ends with an error when the connection breaks.
FASTCGI_CLIENT = """
import socket, struct, sys

def record(kind, content=b""):
    return struct.pack(">BBHHBB", 1, kind, 1, len(content), 0, 0) + content

def parameter(name, value):
    return struct.pack(">BB", len(name), len(value)) + name.encode() + value.encode()

path, script = sys.argv[1:]
parameters = {"REQUEST_METHOD": "GET", "SCRIPT_FILENAME": script, "SCRIPT_NAME": script, "REQUEST_URI": script}
connection = socket.socket(socket.AF_UNIX)
connection.connect(path)
connection.sendall(record(1, struct.pack(">HB5x", 1, 0)) + record(4, b"".join(parameter(*item) for item in parameters.items())))
connection.sendall(record(4) + record(5))
stream, output, kind = connection.makefile("rb"), b"", None
while kind != 3:
    _, kind, _, length, padding, _ = struct.unpack(">BBHHBB", stream.read(8))
    content = stream.read(length + padding)[:length]
    output += content if kind == 6 else b""
sys.stdout.write(output.decode().partition("\\r\\n\\r\\n")[2])
"""


def ask_php_fpm(host: Any, socket: str, script: str, user: str = "www-data") -> Any:
    """Let the user ask PHP-FPM to run the script, and return the client's result with the body of the answer."""
    return host.run("runuser --user %s -- python3 -c %s %s %s", user, FASTCGI_CLIENT, socket, script)


def apply_role(host: Any, role: str, tasks: str = "main", **variables: Any) -> subprocess.CompletedProcess[str]:
    """Apply a role, or one of its task files, to the host once more with other variables. The facts of the host are not known."""
    arguments = [
        host.backend.get_hostname(),
        f"--inventory={os.environ['MOLECULE_INVENTORY_FILE']}",
        "--module-name=include_role",
        f"--args=name=bitflow.lms.{role} tasks_from={tasks}",
        f"--extra-vars={json.dumps(variables)}",
    ]
    return subprocess.run(["ansible", *arguments], capture_output=True, text=True, check=False)


def converge(host: Any, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Apply the role of the scenario to the host once more, after gathering facts, with other variables."""
    playbook = str(Path(__file__).with_name("converge.yml"))
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    arguments = [playbook, f"--inventory={inventory}", f"--limit={host.backend.get_hostname()}"]
    return subprocess.run(
        ["ansible-playbook", *arguments, f"--extra-vars={json.dumps(variables)}"], capture_output=True, text=True, check=False
    )


def said(run: subprocess.CompletedProcess[str]) -> str:
    """Return what Ansible said, without the line breaks and colours that it adds."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", run.stdout + run.stderr).split())


def once(host: Any) -> None:
    """Skip a slow test of what does not differ between the distributions on all but one of them."""
    if host.system_info.codename != "trixie":
        pytest.skip("does not differ between the distributions: tested on trixie")
