# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks before a deployment: real directories, real sockets on loopback, and a tiny Redis."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils import _preflight
from ansible_collections.bitflow.lms.plugins.module_utils._preflight import (
    Check,
    Endpoint,
    check_clock,
    check_directories,
    check_disk,
    check_drivers,
    check_endpoint,
    check_environment,
    check_php,
    fingerprints,
    message,
    verdict,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SECRET = "p4ss word\r\n$1"
FREE = {"free_bytes": 5_000_000_000, "total_bytes": 10_000_000_000, "free_inodes": 100_000, "total_inodes": 200_000}


# The disk


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return what the only file system has left; a test may change it."""
    facts = dict(FREE)
    monkeypatch.setattr(_preflight, "disk_facts", lambda _path: {"directory": "/", **facts})
    return facts


def demand(path: str, free_bytes: int = 1_000_000_000, free_inodes: int = 10_000) -> dict[str, Any]:
    """Return what is needed at a path."""
    return {"path": path, "free_bytes": free_bytes, "free_inodes": free_inodes}


def test_enough_room_is_no_problem(disk: dict[str, int]) -> None:
    assert check_disk([demand("/srv")]) == [
        Check("disk /srv", "5 GB and 100000 inodes are free, 1 GB and 10000 are needed."),
    ]


def test_demands_on_one_file_system_are_added_up(disk: dict[str, int]) -> None:
    found = check_disk([demand("/srv/a", 3_000_000_000), demand("/srv/b", 3_000_000_000)])

    assert found == [
        Check(
            "disk /srv/a, /srv/b",
            "5 GB and 100000 inodes are free, 6 GB and 20000 are needed.",
            "There are 5 GB left for /srv/a, /srv/b, and a deployment needs 6 GB.",
            "Make room there, or ask for less free_bytes.",
        )
    ]


def test_inodes_run_out_before_bytes(disk: dict[str, int]) -> None:
    disk["free_inodes"] = 999

    assert [(check.problem, check.way_out) for check in check_disk([demand("/srv", 0)])] == [
        (
            "There are 999 inodes left for /srv, and a deployment needs 10000.",
            "Remove files there, for example old releases, or ask for less free_inodes.",
        )
    ]


def test_a_file_system_that_counts_no_inodes_has_enough(disk: dict[str, int]) -> None:
    disk.update(free_inodes=0, total_inodes=0)

    assert [check.ok for check in check_disk([demand("/srv")])] == [True]


def test_room_for_only_one_more_is_a_warning(disk: dict[str, int]) -> None:
    found = check_disk([demand("/srv", 2_600_000_000)])

    assert [(check.ok, check.warning) for check in found] == [
        (
            True,
            "There is room for this deployment in /srv, but not for another one: "
            "5 GB and 100000 inodes are free, 2.6 GB and 10000 are needed.",
        )
    ]


def test_a_path_that_is_not_there_yet_is_judged_by_what_it_will_be_in(tmp_path: Path) -> None:
    found = check_disk([demand(str(tmp_path / "not/yet"), 0, 0), demand(str(tmp_path), 10**18, 0)])

    assert [check.ok for check in found] == [False]


def test_directories_are_provisioned(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert check_directories([str(tmp_path), str(tmp_path / "file"), str(tmp_path / "none")]) == [
        Check(f"directory {tmp_path}", "It is there."),
        Check(
            f"directory {tmp_path}/file",
            "It is not there.",
            f"{tmp_path}/file is in the way: it should be a directory.",
            "Provision the host first.",
        ),
        Check(f"directory {tmp_path}/none", "It is not there.", f"There is no {tmp_path}/none.", "Provision the host first."),
    ]


# The clock


@pytest.mark.parametrize(
    ("now", "problem"),
    [
        (1000, ""),
        (1030, ""),
        (970, ""),
        (1031, "The clock is 31 s ahead of the controller's, and 30 s are allowed."),
        (900, "The clock is 100 s behind the controller's, and 30 s are allowed."),
    ],
)
def test_the_clock_may_differ_a_little(now: float, problem: str) -> None:
    assert check_clock(1000, 30, now).problem == problem


# PHP


class Host:
    """A run_command that answers as PHP does, and records the commands."""

    def __init__(self, rc: int = 0, stdout: str | None = None, stderr: str = "", **answer: Any) -> None:
        known = {"version": "8.4.16", "bits": 64, "extensions": {"redis": "6.2.0", "zend-opcache": "8.4.16", "odd": ""}, **answer}
        self.answer = (rc, f"\n{json.dumps(known)}" if stdout is None else stdout, stderr)
        self.commands: list[list[str]] = []

    def __call__(self, argv: list[str], **_options: Any) -> tuple[int, str, str]:
        self.commands.append(argv)
        return self.answer


def test_php_meets_a_composer_json() -> None:
    requirements = {"php": "^8.1", "laravel/framework": "^12.0", "ext-redis": "*", "ext-Zend-OPcache": ">=8", "lib-icu": ">=60"}

    assert check_php(Host(), "php", requirements) == [
        Check("php", "8.4.16, as ^8.1 asks for."),
        Check("ext-redis", "6.2.0, as * asks for."),
        Check("ext-zend-opcache", "8.4.16, as >=8 asks for."),
    ]


def test_everything_that_php_lacks_is_told_at_once() -> None:
    requirements = {"php": ["^8.1", "<8.4"], "ext-gd": "*", "ext-redis": "^5.3", "ext-odd": "^1", "php-64bit": "*", "ext-intl": "=>1"}

    found = [(check.name, check.problem, check.way_out) for check in check_php(Host(bits=32), "php", requirements)]

    other = "Install a version that it accepts, or deploy one that accepts this."
    assert found == [
        ("php", "The application requires PHP <8.4, and the host has 8.4.16.", other),
        ("ext-gd", "PHP 8.4.16 has no extension gd.", "Install it, for example with the package php8.4-gd."),
        ("ext-intl", "PHP 8.4.16 has no extension intl.", "Install it, for example with the package php8.4-intl."),
        ("ext-odd", "The application requires the extension odd ^1, and the host has one without a version.", other),
        ("ext-redis", "The application requires the extension redis ^5.3, and the host has 6.2.0.", other),
        ("php-64bit", "PHP 8.4.16 has 32 bits.", "Install a PHP of 64 bits."),
    ]


def test_a_constraint_that_nobody_understands_is_one_problem_among_others() -> None:
    assert [check.problem for check in check_php(Host(), "php", {"php": "newest"})] == [
        "php_requirements has php: 'newest' is no version constraint of Composer, such as ^8.2 or >=8.1 <8.5."
    ]


def test_a_package_that_needs_no_php_asks_none() -> None:
    host = Host()

    assert (check_php(host, "php", {"laravel/framework": "^12.0"}), host.commands) == ([], [])


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        (Host(127, "", "timeout: failed to run command"), "PHP cannot be run as php8.9."),
        (Host(126, "", "timeout: failed to run command"), "PHP cannot be run as php8.9."),
        (Host(255, "", "Fatal error: boom"), "PHP, run as php8.9, does not tell its version: Fatal error: boom"),
        (Host(124, "", ""), "PHP, run as php8.9, does not tell its version: It did not end in time."),
        (Host(0, "no JSON", ""), "PHP, run as php8.9, does not tell its version: no JSON"),
    ],
)
def test_a_php_that_does_not_answer_is_the_problem(host: Host, problem: str) -> None:
    assert [(check.name, check.problem) for check in check_php(host, "php8.9", {"php": "^8", "ext-gd": "*"})] == [("php", problem)]
    assert host.commands[0][:4] == ["timeout", "--kill-after=5", "20", "php8.9"]


def test_what_php_prints_before_its_answer_is_passed_over() -> None:
    noise = 'Warning: redis.so: cannot open {"version": 1}\n'

    assert check_php(Host(stdout=f'{noise}\n{{"version":"8.2.1","bits":64,"extensions":[]}}'), "php", {"php": "^8"})[0].ok


# Endpoints


class Redis:
    """A server that speaks as much of Redis's protocol as a greeting needs, and records what it was told."""

    def __init__(self, password: str | None = None, answers: dict[str, bytes] | None = None, context: ssl.SSLContext | None = None) -> None:
        self.password = password
        self.answers = answers or {}
        self.context = context
        self.told: list[list[str]] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def __enter__(self) -> Redis:
        self.thread.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = self.listener.accept()[0]
                connection.settimeout(5)
                with contextlib.suppress(OSError, ValueError):
                    if self.context is not None:
                        connection = self.context.wrap_socket(connection, server_side=True)
                    self.talk(connection)
                connection.close()

    def talk(self, connection: socket.socket) -> None:
        trusted = self.password is None
        with connection.makefile("rb") as stream:
            while line := stream.readline():
                words = []
                for _number in range(int(line[1:])):
                    length = int(stream.readline()[1:])
                    words.append(stream.read(length + 2)[:-2].decode())
                self.told.append(words)
                if words[0] in self.answers:
                    connection.sendall(self.answers[words[0]])
                elif words[0] == "AUTH":
                    trusted = words[-1] == self.password
                    connection.sendall(b"+OK\r\n" if trusted else b"-WRONGPASS invalid username-password pair or user is disabled.\r\n")
                else:
                    connection.sendall(b"+PONG\r\n" if trusted else b"-NOAUTH Authentication required.\r\n")


def endpoint_of(redis: Redis, **more: Any) -> Endpoint:
    """Return the endpoint of a Redis on loopback."""
    return Endpoint("cache", "127.0.0.1", redis.port, redis=True, **more)


@pytest.mark.parametrize(
    ("server", "options", "told"),
    [
        (None, {}, [["PING"]]),
        (SECRET, {"password": SECRET}, [["AUTH", SECRET], ["PING"]]),
        (SECRET, {"password": SECRET, "username": "lms"}, [["AUTH", "lms", SECRET], ["PING"]]),
    ],
)
def test_redis_lets_us_in(server: str | None, options: dict[str, Any], told: list[list[str]]) -> None:
    with Redis(server) as redis:
        found = check_endpoint(endpoint_of(redis, **options), 3)

    assert (found, redis.told) == (Check("endpoint cache", f"127.0.0.1:{redis.port} answers."), told)


@pytest.mark.parametrize(
    ("server", "password", "answers", "says", "way_out"),
    [
        (SECRET, None, {}, "NOAUTH Authentication required.", "Give the password that this server asks for."),
        (
            SECRET,
            "wrong",
            {},
            "WRONGPASS invalid username-password pair or user is disabled.",
            "Give the password that this server asks for.",
        ),
        (
            None,
            "needless",
            {"AUTH": b"-ERR AUTH <password> called without any password configured for the default user. Are you sure?\r\n"},
            "ERR AUTH <password> called without any password configured for the default user. Are you sure?",
            "Give the server its password, or leave it out on both sides.",
        ),
        (None, None, {"PING": b"-LOADING Redis is loading\r\n"}, "LOADING Redis is loading", "Wait until it is ready."),
        (None, None, {"PING": b"-ERR max number of clients\r\n"}, "ERR max number of clients", "Look into its log."),
        (
            None,
            None,
            {"PING": b"HTTP/1.1 400 Bad Request\r\n\r\n"},
            "PING is not answered as Redis does. Something else may listen there.",
            "Look into its log.",
        ),
        (None, None, {"PING": b""}, None, None),
    ],
)
def test_redis_refuses(server: str | None, password: str | None, answers: dict[str, bytes], says: str | None, way_out: str | None) -> None:
    with Redis(server, answers) as redis:
        found = check_endpoint(endpoint_of(redis, password=password), 0.3 if says is None else 3)

    address = f"127.0.0.1:{redis.port}"
    if says is None:
        assert found.problem == f"cache at {address} cannot be reached from this host: no answer in time."
    else:
        assert (found.problem, found.way_out) == (f"cache at {address} answers: {says}", way_out)


def test_a_server_that_repeats_the_password_does_not_bring_it_out() -> None:
    with Redis(answers={"AUTH": b"-ERR unknown command AUTH hunter2!\r\n"}) as redis:
        found = check_endpoint(endpoint_of(redis, password="hunter2!"), 3)

    assert found.problem.endswith("answers: ERR unknown command AUTH ***")
    assert "hunter2!" not in repr(verdict([found]))


def test_a_port_that_nobody_listens_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    assert check_endpoint(Endpoint("database", "127.0.0.1", port), 3) == Check(
        "endpoint database",
        "It cannot be reached.",
        f"database at 127.0.0.1:{port} cannot be reached from this host: Connection refused.",
        "Start it, and let this host through its firewall and its list of addresses.",
    )


def test_a_port_that_answers_need_not_be_redis() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert check_endpoint(Endpoint("database", "127.0.0.1", listener.getsockname()[1]), 3).ok


def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")

    before = check_endpoint(Endpoint("cache", unix_socket=path), 3)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        after = check_endpoint(Endpoint("cache", unix_socket=path), 3)

    assert before.problem == f"cache at {path} cannot be reached from this host: No such file or directory."
    assert after == Check("endpoint cache", f"{path} answers.")


@pytest.mark.parametrize("host", ["database.invalid", "data..base", "x" * 70 + ".example.com"])
def test_a_name_that_nobody_knows(host: str) -> None:
    found = check_endpoint(Endpoint("database", host, 5432), 3)

    assert found.problem.startswith(f"The name {host} of database cannot be resolved: ")


@contextlib.contextmanager
def certificate(folder: Path, name: str) -> Iterator[Path]:
    """Make a certificate that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test")])
    now = datetime.now(timezone.utc)
    names = x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("192.0.2.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    yield path


@pytest.mark.parametrize(("name", "ok"), [("localhost", True), ("elsewhere.example.com", False)])
def test_tls_is_checked_for_the_host(tmp_path: Path, name: str, ok: bool) -> None:
    with certificate(tmp_path, name) as path:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        with Redis(SECRET, context=context) as redis:
            options: dict[str, Any] = {"redis": True, "password": SECRET, "tls": True, "ca_path": str(path)}
            found = check_endpoint(Endpoint("cache", "localhost", redis.port, **options), 3)

    assert found.ok is ok
    assert bool(redis.told) is ok
    assert ok or "localhost" in found.problem


def test_an_authority_that_is_not_there_is_not_taken_for_a_service_that_is_down() -> None:
    found = check_endpoint(Endpoint("cache", "127.0.0.1", 1, tls=True, ca_path="/nowhere/ca.pem"), 3)

    assert found.problem == "There is no /nowhere/ca.pem, which is ca_path of cache."


# The environment


def test_names_that_are_missing_are_listed() -> None:
    assert check_environment(["APP_KEY", "DB_HOST", "DB_PASSWORD"], ["DB_HOST", "OTHER"]) == Check(
        "environment", "It lacks APP_KEY, DB_PASSWORD.", "The environment has no APP_KEY, DB_PASSWORD.", "Give every required name a value."
    )
    assert check_environment(["APP_KEY"], ["APP_KEY"]) == Check("environment", "It has all 1 required names.")


@pytest.mark.parametrize(
    ("drivers", "hosts", "problems"),
    [
        ({"CACHE_STORE": "file", "SESSION_DRIVER": "array"}, 1, []),
        ({"CACHE_STORE": "redis", "SESSION_DRIVER": "database", "CACHE_DRIVER": ""}, 2, []),
        ({"QUEUE_CONNECTION": "sync", "LOG_CHANNEL": "file"}, 2, []),
        (
            {"CACHE_DRIVER": "array", "CACHE_STORE": "file", "SESSION_DRIVER": "file"},
            3,
            [
                "CACHE_DRIVER is array, which each of 3 hosts keeps for itself: "
                "locks, queue:restart and what is cached reach one host only.",
                "CACHE_STORE is file, which each of 3 hosts keeps for itself: locks, queue:restart and what is cached reach one host only.",
                "SESSION_DRIVER is file, which each of 3 hosts keeps for itself: "
                "visitors are logged out whenever the load balancer sends them to another host.",
            ],
        ),
    ],
)
def test_several_hosts_share_cache_and_sessions(drivers: dict[str, str], hosts: int, problems: list[str]) -> None:
    assert [check.problem for check in check_drivers(drivers, hosts) if not check.ok] == problems


def test_fingerprints_compare_values_and_depend_on_the_salt() -> None:
    one, same, other, resalted = (
        fingerprints({"APP_KEY": value}, salt)["APP_KEY"] for value, salt in [("a", "s"), ("a", "s"), ("b", "s"), ("a", "t")]
    )

    assert one == same
    assert len({one, other, resalted}) == 3


# The verdict


def test_all_problems_stand_in_one_answer() -> None:
    checks = [
        Check("clock", "fine"),
        Check("disk /srv", "full", "There is no room.", "Make some."),
        Check("php", "old", "PHP is old.", "Renew it."),
    ]

    found = verdict(checks)

    assert found == {
        "ready": False,
        "checks": [
            {"name": "clock", "ok": True, "detail": "fine"},
            {"name": "disk /srv", "ok": False, "detail": "full"},
            {"name": "php", "ok": False, "detail": "old"},
        ],
        "problems": [
            {"check": "disk /srv", "problem": "There is no room.", "way_out": "Make some."},
            {"check": "php", "problem": "PHP is old.", "way_out": "Renew it."},
        ],
    }
    assert message(found["problems"]) == (
        "The host is not ready for a deployment; it has 2 problems. (1) There is no room. Make some. (2) PHP is old. Renew it."
    )
    assert message(found["problems"][:1]) == "The host is not ready for a deployment. There is no room. Make some."
