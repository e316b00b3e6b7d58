# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What would make a deployment fail later: each check looks at one thing, changes nothing, and says what to do about a problem."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import re
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from ansible_collections.bitflow.lms.plugins.module_utils._dotenv import Dotenv, value_text
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._release import disk_facts
from ansible_collections.bitflow.lms.plugins.module_utils._version_constraint import is_met

RunCommand = Callable[..., "tuple[int, str, str]"]

PHP_TIMEOUT = 20
PHP_CODE = (
    "$found = []; foreach (get_loaded_extensions() as $name)"
    " { $found[strtolower(str_replace(' ', '-', $name))] = (string) phpversion($name); }"
    ' echo "\\n", json_encode(["version" => PHP_VERSION, "bits" => PHP_INT_SIZE * 8, "extensions" => $found]);'
)
_PHP_ANSWER = re.compile(r'^\{"version".*\}$', re.MULTILINE)

LONGEST_ANSWER = 512

# Drivers that keep what they hold on one host.
LOCAL_DRIVERS = frozenset({"apc", "array", "file", "octane"})
DRIVER_REASONS = {
    "CACHE_DRIVER": "locks, queue:restart and what is cached reach one host only",
    "CACHE_STORE": "locks, queue:restart and what is cached reach one host only",
    "SESSION_DRIVER": "visitors are logged out whenever the load balancer sends them to another host",
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    detail: str
    problem: str = ""
    way_out: str = ""
    warning: str = ""

    @property
    def ok(self) -> bool:
        """Say whether nothing is wrong."""
        return not self.problem


@dataclass(frozen=True)
class Endpoint:
    """A service that the application needs."""

    name: str
    host: str | None = None
    port: int | None = None
    unix_socket: str | None = None
    redis: bool = False
    username: str | None = None
    password: str | None = None
    tls: bool = False
    ca_path: str | None = None

    @property
    def address(self) -> str:
        """Return where it is, for a sentence."""
        return self.unix_socket or f"{self.host}:{self.port}"


class RedisError(LmsError):
    """Redis answered, but not as it should."""


# The disk


def check_disk(demands: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Hold the free space against the demands; those on one file system are added up."""
    groups: dict[int, list[Mapping[str, Any]]] = {}
    for demand in demands:
        directory = disk_facts(Path(demand["path"]))["directory"]
        groups.setdefault(Path(directory).stat().st_dev, []).append(demand)
    return [_check_file_system(group) for group in groups.values()]


def _check_file_system(demands: Sequence[Mapping[str, Any]]) -> Check:
    """Hold the free space of one file system against what is needed there."""
    found = disk_facts(Path(demands[0]["path"]))
    needed_bytes = sum(demand["free_bytes"] for demand in demands)
    needed_inodes = sum(demand["free_inodes"] for demand in demands)
    paths = ", ".join(demand["path"] for demand in demands)
    name = f"disk {paths}"
    detail = (
        f"{_size(found['free_bytes'])} and {found['free_inodes']} inodes are free, {_size(needed_bytes)} and {needed_inodes} are needed."
    )
    if found["free_bytes"] < needed_bytes:
        problem = f"There are {_size(found['free_bytes'])} left for {paths}, and a deployment needs {_size(needed_bytes)}."
        return Check(name, detail, problem, "Make room there, or ask for less free_bytes.")
    # Some file systems make inodes as they go, and count none.
    if found["total_inodes"] and found["free_inodes"] < needed_inodes:
        problem = f"There are {found['free_inodes']} inodes left for {paths}, and a deployment needs {needed_inodes}."
        return Check(name, detail, problem, "Remove files there, for example old releases, or ask for less free_inodes.")
    scarce = found["free_bytes"] < 2 * needed_bytes or (found["total_inodes"] and found["free_inodes"] < 2 * needed_inodes)
    return Check(name, detail, warning=f"There is room for this deployment in {paths}, but not for another one: {detail}" if scarce else "")


def _size(number: int) -> str:
    """Return bytes for a sentence."""
    amount = float(number)
    units = ["B", "kB", "MB", "GB", "TB"]
    while amount >= 1000 and len(units) > 1:
        amount /= 1000
        units.pop(0)
    return f"{amount:.1f}".rstrip("0").rstrip(".") + f" {units[0]}"


def check_directories(paths: Sequence[str]) -> list[Check]:
    """Look whether the host was provisioned."""
    return [_check_directory(Path(path)) for path in paths]


def _check_directory(path: Path) -> Check:
    """Look whether a directory is there."""
    name = f"directory {path}"
    if path.is_dir():
        return Check(name, "It is there.")
    problem = f"{path} is in the way: it should be a directory." if path.exists() else f"There is no {path}."
    return Check(name, "It is not there.", problem, "Provision the host first.")


# The clock


def check_clock(controller_time: float, limit: float, now: float) -> Check:
    """Hold the host's clock against the controller's; the way from there to here counts as a difference too."""
    skew = now - controller_time
    if abs(skew) <= limit:
        return Check("clock", f"It differs from the controller's by {skew:+.1f} s, {limit:g} s are allowed.")
    return Check(
        "clock",
        f"It differs from the controller's by {skew:+.1f} s.",
        f"The clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the controller's, and {limit:g} s are allowed.",
        "Set both by a time server: tokens, cookies and certificates are judged by them.",
    )


# PHP


@dataclass(frozen=True)
class Php:
    """The PHP of this host."""

    version: str
    bits: int
    extensions: Mapping[str, str]

    @property
    def branch(self) -> str:
        """Return the two numbers that packages are named after."""
        return ".".join(self.version.split(".")[:2])


def check_php(run_command: RunCommand, php: str, requirements: Mapping[str, Any]) -> list[Check]:
    """Hold PHP and its extensions against what a composer.json or composer.lock requires of the platform."""
    wanted = {name.lower(): constraints for name, constraints in requirements.items() if _is_platform(name.lower())}
    if not wanted:
        return []
    found = read_php(run_command, php)
    if isinstance(found, Check):
        return [found]
    return [_check_requirement(found, name, _texts(wanted[name])) for name in sorted(wanted, key=lambda name: (name != "php", name))]


def read_php(run_command: RunCommand, php: str) -> Php | Check:
    """Ask PHP for its version and extensions, or return the problem."""
    # Warnings about an extension that does not load belong to no answer.
    argv = ["timeout", "--kill-after=5", str(PHP_TIMEOUT), php, "-d", "display_errors=stderr", "-r", PHP_CODE]
    rc, stdout, stderr = run_command(argv, environ_update={"LC_ALL": "C.UTF-8"}, expand_user_and_vars=False)
    if rc in (126, 127):
        return Check(
            "php", "It cannot be run.", f"PHP cannot be run as {php}.", "Provision the host first, or set php to its name or path."
        )
    answer = _PHP_ANSWER.search(stdout)
    if rc != 0 or answer is None:
        reason = "It did not end in time." if rc in (124, 137) else (stderr.strip() or stdout.strip())[:LONGEST_ANSWER]
        return Check(
            "php", f"It ended with status {rc}.", f"PHP, run as {php}, does not tell its version: {reason}", "Mend its configuration."
        )
    known = json.loads(answer[0])
    return Php(known["version"], known["bits"], known["extensions"] or {})


def _is_platform(name: str) -> bool:
    """Say whether a requirement is about PHP; libraries and Composer's own interfaces are not checked."""
    return name in ("php", "php-64bit") or name.startswith("ext-")


def _texts(constraints: Any) -> list[str]:
    """Return the constraints of one name, all of which have to be met."""
    return [str(constraint) for constraint in (constraints if isinstance(constraints, list) else [constraints])]


def _check_requirement(php: Php, name: str, constraints: Sequence[str]) -> Check:
    """Hold one requirement against what is there."""
    extension = name[len("ext-") :] if name.startswith("ext-") else ""
    package = f"php{php.branch}-{extension}"
    if extension and extension not in php.extensions:
        problem = f"PHP {php.version} has no extension {extension}."
        return Check(name, "It is not loaded.", problem, f"Install it, for example with the package {package}.")
    if name == "php-64bit" and php.bits != 64:
        return Check(name, f"PHP has {php.bits} bits.", f"PHP {php.version} has {php.bits} bits.", "Install a PHP of 64 bits.")
    version = php.extensions[extension] if extension else php.version
    what = f"the extension {extension}" if extension else "PHP"
    try:
        missed = [constraint for constraint in constraints if not is_met(constraint, version)]
    except LmsError as error:
        return Check(name, f"It is {version}.", f"php_requirements has {name}: {error.message}", "Correct it in composer.json.")
    if missed:
        return Check(
            name,
            f"It is {version}.",
            f"The application requires {what} {' and '.join(missed)}, and the host has {version or 'one without a version'}.",
            "Install a version that it accepts, or deploy one that accepts this.",
        )
    return Check(name, f"{version or 'It is loaded'}, as {' and '.join(constraints)} asks for.")


# What the application connects to


def check_endpoint(endpoint: Endpoint, timeout: float) -> Check:
    """Connect as the application would; ask Redis whether it lets us in."""
    name = f"endpoint {endpoint.name}"
    if endpoint.ca_path and not Path(endpoint.ca_path).is_file():
        return Check(
            name, "It was not asked.", f"There is no {endpoint.ca_path}, which is ca_path of {endpoint.name}.", "Put the file there."
        )
    try:
        with _connection(endpoint, timeout) as connection:
            if endpoint.redis:
                ask_redis(connection, endpoint)
    except RedisError as error:
        return Check(name, "It refuses.", f"{endpoint.name} at {endpoint.address} answers: {error}", _redis_advice(str(error)))
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no host name"
        problem = f"The name {endpoint.host} of {endpoint.name} cannot be resolved: {reason}."
        return Check(name, "Its name is unknown.", problem, "Correct the name, or the name servers of this host.")
    except OSError as error:
        late = isinstance(error, (TimeoutError, socket.timeout))
        reason = "no answer in time" if late else error.strerror or str(error)
        problem = f"{endpoint.name} at {endpoint.address} cannot be reached from this host: {reason}."
        return Check(name, "It cannot be reached.", problem, "Start it, and let this host through its firewall and its list of addresses.")
    return Check(name, f"{endpoint.address} answers.")


@contextlib.contextmanager
def _connection(endpoint: Endpoint, timeout: float) -> Iterator[socket.socket]:
    """Connect to an endpoint."""
    with contextlib.ExitStack() as stack:
        if endpoint.unix_socket:
            plain = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            plain.settimeout(timeout)
            plain.connect(endpoint.unix_socket)
        else:
            plain = stack.enter_context(socket.create_connection((endpoint.host or "", endpoint.port or 0), timeout))
        if not endpoint.tls:
            yield plain
            return
        context = ssl.create_default_context(cafile=endpoint.ca_path)
        # From 3.13 on Python refuses authorities that PHP accepts.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        yield stack.enter_context(context.wrap_socket(plain, server_hostname=endpoint.host))


def ask_redis(connection: socket.socket, endpoint: Endpoint) -> None:
    """Log in and ask for a sign of life."""
    if endpoint.password:
        credentials = [endpoint.username, endpoint.password] if endpoint.username else [endpoint.password]
        _expect(connection, "+OK", ["AUTH", *credentials], endpoint.password)
    _expect(connection, "+PONG", ["PING"], endpoint.password)


def _expect(connection: socket.socket, expected: str, words: Sequence[str], secret: str | None) -> None:
    """Send one command and compare the answer."""
    encoded = [word.encode("utf-8", "surrogateescape") for word in words]
    connection.sendall(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded))
    answer = _line(connection)
    if answer == expected:
        return
    if not answer.startswith("-"):
        raise RedisError(f"{words[0]} is not answered as Redis does. Something else may listen there.")
    # What a server says is shown, but never a secret that it was told.
    raise RedisError(answer[1:].replace(secret, "***") if secret else answer[1:])


def _line(connection: socket.socket) -> str:
    """Return one line, as far as it is reasonable."""
    received = b""
    while not received.endswith(b"\r\n") and len(received) < LONGEST_ANSWER:
        # Byte by byte: what follows belongs to nobody yet, and the line is short.
        byte = connection.recv(1)
        if not byte:
            break
        received += byte
    return "".join(character for character in received.decode("utf-8", "replace").strip() if character.isprintable())


def _redis_advice(answer: str) -> str:
    """Say what to do about an answer of Redis."""
    if answer.startswith(("NOAUTH", "WRONGPASS", "NOPERM")) or "invalid password" in answer:
        return "Give the password that this server asks for."
    if "without any password" in answer or "no password is set" in answer:
        return "Give the server its password, or leave it out on both sides."
    if answer.startswith(("LOADING", "BUSY", "MASTERDOWN")):
        return "Wait until it is ready."
    return "Look into its log."


# The environment


def check_environment(required: Sequence[str], names: Sequence[str]) -> Check:
    """Look for the names that the application needs; values are nobody's business here."""
    missing = sorted(set(required) - set(names))
    if not missing:
        return Check("environment", f"It has all {len(set(required))} required names.")
    listed = ", ".join(missing)
    return Check("environment", f"It lacks {listed}.", f"The environment has no {listed}.", "Give every required name a value.")


def check_drivers(drivers: Mapping[str, Any], hosts_count: int) -> list[Check]:
    """Look whether several hosts share what they must share."""
    return [_check_driver(name, str(drivers[name]), hosts_count) for name in sorted(drivers) if name in DRIVER_REASONS and drivers[name]]


def _check_driver(name: str, driver: str, hosts_count: int) -> Check:
    """Look at one driver."""
    if hosts_count < 2 or driver not in LOCAL_DRIVERS:
        return Check(f"driver {name}", f"It is {driver}, with {hosts_count} {'host' if hosts_count == 1 else 'hosts'}.")
    return Check(
        f"driver {name}",
        f"It is {driver}, with {hosts_count} hosts.",
        f"{name} is {driver}, which each of {hosts_count} hosts keeps for itself: {DRIVER_REASONS[name]}.",
        "Set it to redis, database or another driver that all hosts share.",
    )


def check_identity(live_environment: Path, identity: Mapping[str, Any]) -> list[Check]:
    """Look whether the live release says of itself what the new one will: nobody deploys to a host of another environment by mistake."""
    served = Dotenv(live_environment).read() or {}
    return [_check_identity(key, served[key], value_text(key, identity[key])) for key in sorted(identity) if key in served]


def _check_identity(key: str, served: str, wanted: str) -> Check:
    """Look at one key."""
    name = f"identity {key}"
    if served == wanted:
        return Check(name, f"It stays {wanted}.")
    return Check(
        name,
        f"It is {served}, and would become {wanted}.",
        f"This host serves with {key} {served}, and the inventory wants {wanted}.",
        "Look whether it is the right inventory for this host; approve the change of identity if it is meant.",
    )


def fingerprints(values: Mapping[str, Any], salt: str) -> dict[str, str]:
    """Return a sum of each value by which hosts are compared, and from which nobody learns anything."""
    return {
        name: hmac.new(salt.encode(), str(values[name]).encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()
        for name in sorted(values)
    }


# The verdict


def verdict(checks: Sequence[Check]) -> dict[str, Any]:
    """Return what all checks say together."""
    return {
        "ready": all(check.ok for check in checks),
        "checks": [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in checks],
        "problems": [{"check": check.name, "problem": check.problem, "way_out": check.way_out} for check in checks if not check.ok],
    }


def message(problems: Sequence[Mapping[str, str]]) -> str:
    """Return all problems in one answer."""
    if len(problems) == 1:
        return f"The host is not ready for a deployment. {problems[0]['problem']} {problems[0]['way_out']}"
    listed = " ".join(f"({number}) {entry['problem']} {entry['way_out']}" for number, entry in enumerate(problems, start=1))
    return f"The host is not ready for a deployment; it has {len(problems)} problems. {listed}"
