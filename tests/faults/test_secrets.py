"""No secret is where others could read it: not in what a deployment prints, on a command line, in a journal, a cache or an open file."""

from __future__ import annotations

import base64
import threading
from pathlib import Path

import pytest
from environment import APPLICATION_HOSTS, LOGS, PROJECT, run

HOSTS = (*APPLICATION_HOSTS, "data", "lb")


class CommandLines:
    """Every command line that is seen on this machine, whose kernel runs the hosts' processes too."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> CommandLines:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:
                    continue


@pytest.fixture
def secrets(environment) -> dict[str, str]:
    """Return the secrets of the environment by name, as they are written."""
    directory = PROJECT / "inventories" / "dev" / ".secrets" / environment.name
    found = {path.name: path.read_text().strip() for path in directory.iterdir() if path.is_file()}
    found["app_key"] = base64.b64encode(found["app_key"].encode()).decode()
    assert {"app_key", "database_password", "redis_password"} <= set(found)
    return found


def test_a_deployment_at_its_most_talkative_shows_no_secret(environment, secrets):
    with CommandLines() as command_lines:
        deployment = environment.start("deploy.yml", "-vvv", "--diff", lms_version=environment.other_version())
        outcome = deployment.finish()
    assert outcome.status == 0, outcome.output[-3000:]
    # The watch saw the deployment itself.
    assert any(b"ansible-playbook" in line for line in command_lines.seen)

    shown = {"output": outcome.output, "command lines": b"\n".join(command_lines.seen).decode(errors="replace")}
    shown |= {f"journal of {host}": environment.on(host, "journalctl", "--no-pager") for host in HOSTS}
    hits = [(name, place) for name, secret in secrets.items() for place, text in shown.items() if secret in text]

    assert hits == []


@pytest.mark.parametrize("host", HOSTS)
def test_no_secret_lies_in_a_file_that_everybody_can_read(environment, secrets, host):
    # The patterns come by standard input, into a file that only root can read.
    files = "find / -xdev -type f -perm -o=r -size -20000k -not -path '/proc/*' -print0"
    search = f'patterns=$(mktemp); cat >"$patterns"; {files} 2>/dev/null | xargs -0 -r grep -l -F -f "$patterns"; rm "$patterns"'

    found = run("docker", "exec", "--interactive", f"{environment.name}-{host}", "sh", "-c", search, input="\n".join(secrets.values()))

    assert found.split() == []


def test_no_secret_stays_in_a_cache_of_the_control_host(secrets):
    places = [path for path in (PROJECT / ".cache", PROJECT / ".ansible", Path.home() / ".ansible") if path.is_dir()]
    files = (path for place in places for path in place.rglob("*") if path.is_file() and path.parent != LOGS)
    readable = [path for path in files if path.stat().st_size < 20_000_000]

    hits = [(name, str(path)) for path in readable for name, secret in secrets.items() if secret.encode() in path.read_bytes()]

    assert hits == []
