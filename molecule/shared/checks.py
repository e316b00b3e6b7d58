"""What the tests of several roles ask of a host, in the words of an operator."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


def process(host: Any, unit: str) -> str:
    """Return the number of the unit's process, 0 while it does not run."""
    return str(host.check_output("systemctl show --property=MainPID --value %s", unit))


def exposure(host: Any, *units: str) -> dict[str, float]:
    """Return how exposed systemd finds each unit, between 0 and 10."""
    told = host.check_output(f"systemd-analyze security --no-pager {' '.join(units)}")
    return {unit: float(figure) for unit, figure in re.findall(r"Overall exposure level for (\S+): ([0-9.]+)", told)}


def eventually(question: Callable[[], bool], seconds: float = 30) -> bool:
    """Ask until the answer is true, and say whether it ever was."""
    end = time.monotonic() + seconds
    while not (answer := question()) and time.monotonic() < end:
        time.sleep(0.3)
    return answer


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


@dataclass
class Answer:
    """How a run of a role ended for one of several cases: what was said of its failure, empty without one, and what it changed."""

    failure: str
    changed: int


def answers(host: Any, role: str, cases: dict[str, dict[str, Any]], tasks: str | dict[str, str] = "main") -> dict[str, Answer]:
    """Apply a role, or a file of its tasks, to the host for each case, in one run, and return how each ended.

    A case has a name, and the variables by which it differs from the scenario. All run beside each other on the same host, so they are for
    what is refused.
    """
    files = tasks if isinstance(tasks, dict) else dict.fromkeys(cases, tasks)
    there = {"ansible_connection": "community.docker.docker", "ansible_host": host.backend.get_hostname()}
    inventory = {"cases": {"hosts": {name: {**there, **variables} for name, variables in cases.items()}}}
    # A task a file: hosts that include different files of a role in the same one sometimes get each other's.
    includes = [
        {
            "include_role": {"name": f"bitflow.lms.{role}", "tasks_from": file},
            "when": f"inventory_hostname in {[name for name in cases if files[name] == file]}",
        }
        for file in sorted(set(files.values()))
    ]
    play = {"hosts": "cases", "tasks": includes}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "cases.json").write_text(json.dumps(inventory))
        Path(folder, "play.json").write_text(json.dumps([play]))
        inventories = [f"--inventory={os.environ['MOLECULE_INVENTORY_FILE']}", f"--inventory={folder}/cases.json"]
        environment = {**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
        command = ["ansible-playbook", *inventories, f"{folder}/play.json"]
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    report = json.JSONDecoder().raw_decode(run.stdout[run.stdout.index("{") :])[0]
    results = [task["hosts"] for play in report["plays"] for task in play["tasks"]]
    failures = {name: [result[name] for result in results if result.get(name, {}).get("failed")] for name in cases}
    return {name: Answer(" ".join(texts(failures[name])), report["stats"][name]["changed"]) for name in cases}


def texts(value: Any) -> Iterator[str]:
    """Yield every text within a value, each in one line."""
    if isinstance(value, str):
        yield " ".join(value.split())
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def address_of(host: Any) -> str:
    """Return the address at which the machine that runs the tests reaches the host."""
    return str(host.check_output("hostname --ip-address"))


def over_ssh(host: Any, key: Path, user: str) -> dict[str, Any]:
    """Return the variables with which Ansible comes to the host over SSH, as to a real one."""
    return {
        "ansible_connection": "ssh",
        "ansible_host": address_of(host),
        "ansible_user": user,
        "ansible_ssh_private_key_file": str(key),
        "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
        "ansible_control_path_dir": str(key.parent),
    }


def play(host: Any, role: str, *options: str, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Apply a role to the host with options of ansible-playbook, as a play of its own."""
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as playbook:
        json.dump([{"name": "Apply the role", "hosts": "all", "roles": [f"bitflow.lms.{role}"]}], playbook)
        playbook.flush()
        inventory = f"--inventory={os.environ['MOLECULE_INVENTORY_FILE']}"
        limit = f"--limit={host.backend.get_hostname()}"
        command = ["ansible-playbook", playbook.name, inventory, limit, f"--extra-vars={json.dumps(variables)}", *options]
        # What is out of reach is to be found so at once.
        environment = {**os.environ, "ANSIBLE_TIMEOUT": "3", "ANSIBLE_SSH_RETRIES": "0"}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def new_key(directory: Path) -> Path:
    """Make a key to log in with, and return the path of its private half."""
    key = directory / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", key], check=True)
    return key


def said(run: subprocess.CompletedProcess[str]) -> str:
    """Return what Ansible said, without the line breaks and colours that it adds."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", run.stdout + run.stderr).split())


def once(host: Any) -> None:
    """Skip a slow test of what does not differ between the distributions on all but one of them."""
    if host.system_info.codename != "trixie":
        pytest.skip("does not differ between the distributions: tested on trixie")
