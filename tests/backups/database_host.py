"""A host with databases and the tools of backups, on which the modules run as Ansible runs them, only without the second it takes."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
# Where the host sees the collection and ansible-core's module_utils.
LIBRARY = "/opt/ansible"
TOOLS = "age gnupg pgbackrest python3-boto3 restic zstd"
PACKAGES = {
    "trixie": f"{TOOLS} mariadb-server postgresql",
    "bookworm": f"{TOOLS} mariadb-server postgresql",
    "sid": f"{TOOLS} mysql-server postgresql",
}
# What no stable release has (MySQL) comes from unstable onto a stable host. A mirror may be late, so that its list is past its date.
UNSTABLE = """
sed 's/trixie/sid/; s/^deb /deb [check-valid-until=no] /; 1q' /etc/apt/sources.list > /etc/apt/sources.list.d/sid.list
echo 'APT::Default-Release "sid";' > /etc/apt/apt.conf.d/50sid
"""

# Runs a module of the collection with the arguments on standard input, as ansible-core's own wrapper does on a host.
RUN_MODULE = """
import json, runpy, sys
from ansible.module_utils import basic
name, arguments = sys.argv[1], sys.stdin.buffer.read()
sys.argv = [name]
basic._ANSIBLE_ARGS = arguments
basic._ANSIBLE_PROFILE = "legacy"
runpy.run_module("ansible_collections.bitflow.lms.plugins.modules." + name, run_name="__main__", alter_sys=True)
"""


def wait_until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Return what the condition gives as soon as it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {condition}")


class Host:
    """A container in which systemd runs."""

    def __init__(self, name: str, suite: str = "trixie") -> None:
        self.name = name
        self.suite = suite

    def start(self) -> None:
        """Start it and install the databases; one that runs already is kept."""
        release = "trixie" if self.suite == "sid" else self.suite
        subprocess.run([PROJECT / "script/bootstrap", release], check=True, stdout=subprocess.DEVNULL)
        image = subprocess.run(
            [PROJECT / "script/bootstrap", "--print-image", release], check=True, capture_output=True, text=True
        ).stdout.strip()
        core = Path(__import__("ansible").__file__).parent
        mounts = {str(core): f"{LIBRARY}/ansible", str(PROJECT / "plugins"): f"{LIBRARY}/ansible_collections/bitflow/lms/plugins"}
        volumes = [word for source, target in mounts.items() for word in ("--volume", f"{source}:{target}:ro")]
        subprocess.run([PROJECT / "molecule/shared/host.sh", "up", self.name, image, self.name, *volumes], check=True)
        if self.execute("sh", "-c", "command -v restic && command -v psql", check=False).returncode != 0:
            if self.suite == "sid":
                self.shell(UNSTABLE)
            self.shell("apt-get update -qq")
            self.shell(f"DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends {PACKAGES[self.suite]}")
            self.shell(f"mkdir -p /usr/local/lib/tests && cat > /usr/local/lib/tests/run_module.py <<'END'\n{RUN_MODULE}\nEND")

    def remove(self) -> None:
        """Remove it."""
        subprocess.run([PROJECT / "molecule/shared/host.sh", "down", self.name], check=True)

    def execute(self, *argv: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program on the host."""
        process = subprocess.run(["docker", "exec", "-i", self.name, *argv], check=False, capture_output=True, text=True, **options)
        assert not check or process.returncode == 0, f"{argv}: {process.returncode}\n{process.stdout}{process.stderr}"
        return process

    def shell(self, command: str, **options: Any) -> str:
        """Run a shell command on the host and return what it printed."""
        return self.execute("sh", "-c", command, **options).stdout

    def module_argv(self, name: str, user: str = "root") -> list[str]:
        """Return the argv that runs a module here; its arguments are read from standard input."""
        return [
            *("docker", "exec", "-i", "--user", user, "--env", f"PYTHONPATH={LIBRARY}", "--env", "PYTHONDONTWRITEBYTECODE=1", self.name),
            *("python3", "/usr/local/lib/tests/run_module.py", name),
        ]

    def module(self, module: str, *, check_mode: bool = False, user: str = "root", **arguments: Any) -> dict[str, Any]:
        """Run a module of the collection on the host and return its result, with failed where it failed."""
        process = subprocess.run(
            self.module_argv(module, user), input=module_input(check_mode, arguments), check=False, capture_output=True, text=True
        )
        try:
            result = json.loads(process.stdout)
        except ValueError:
            raise AssertionError(f"{module} gave no result:\n{process.stdout}{process.stderr}") from None
        assert isinstance(result, dict)
        # Some versions of ansible-core repeat the arguments.
        result.pop("invocation", None)
        # What ansible-core wraps for the control host is a sentence to a test.
        result["warnings"] = [each["event"]["msg"] if isinstance(each, dict) else each for each in result.get("warnings", [])]
        return result

    def start_module(self, module: str, **arguments: Any) -> subprocess.Popen[str]:
        """Start a module and leave it running, so that something can happen to it."""
        process = subprocess.Popen(
            self.module_argv(module), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdin
        process.stdin.write(module_input(False, arguments))
        process.stdin.close()
        # communicate() would flush it.
        process.stdin = None
        return process

    def postgresql(self, statement: str, database: str = "postgres") -> list[str]:
        """Run SQL as PostgreSQL's administrator and return its rows."""
        argv = ["runuser", "-u", "postgres", "--", "psql", "-qtA", "-v", "ON_ERROR_STOP=1", database]
        return self.execute(*argv, input=statement).stdout.split("\n")[:-1]

    def mysql(self, statement: str, database: str = "") -> list[str]:
        """Run SQL as the administrator of MariaDB or MySQL and return its rows."""
        program = "mysql" if self.suite == "sid" else "mariadb"
        argv = [program, "--batch", "--skip-column-names", *([database] if database else [])]
        return self.execute(*argv, input=statement).stdout.split("\n")[:-1]


def module_input(check_mode: bool, arguments: dict[str, Any]) -> str:
    """Return the arguments as a module reads them."""
    internal = {
        "_ansible_check_mode": check_mode,
        "_ansible_diff": True,
        "_ansible_remote_tmp": "/tmp",
        "_ansible_keep_remote_files": False,
    }
    return json.dumps({"ANSIBLE_MODULE_ARGS": {**internal, **arguments}})


def host_name(purpose: str) -> str:
    """Return the name of a host for the tests. LMS_NAME chooses another beginning than lms-backups."""
    return f"{os.environ.get('LMS_NAME', 'lms-backups')}-{purpose}"
