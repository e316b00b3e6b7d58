# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a probe asks real servers over TCP, TLS and a Unix socket, and what it says about their answers."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._expectation import Expectation
from ansible_collections.bitflow.lms.plugins.module_utils._http_probe import (
    Probe,
    Response,
    hide_userinfo,
    judge,
    run_probe,
    run_probes,
    secrets_of,
    skipped_result,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{"status":"ok"}'
DOWN = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\ndown"
TLS_HANDSHAKE = b"\x16"
NOW = datetime.now(timezone.utc)

Talk = Callable[[socket.socket, bytes], None]


class Server:
    """A server that gives its answers one after the other, the last one again and again, and records the requests."""

    def __init__(self, listener: socket.socket, answers: tuple[bytes | Talk, ...], context: ssl.SSLContext | None) -> None:
        self.listener = listener
        self.answers = list(answers)
        self.context = context
        self.requests: list[str] = []
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.listener.getsockname()[1]}"

    def serve(self) -> None:
        while True:
            try:
                connection, _peer = self.listener.accept()
            except OSError:
                return
            try:
                with connection:
                    self.answer(connection)
            except OSError:
                continue

    def answer(self, connection: socket.socket) -> None:
        if self.context is not None:
            connection = self.context.wrap_socket(connection, server_side=True)
        request = b""
        # A greeting of TLS is answered at once, as web servers do on a port without TLS.
        while b"\r\n\r\n" not in request and not request.startswith(TLS_HANDSHAKE):
            piece = connection.recv(65536)
            if not piece:
                return
            request += piece
        self.requests.append(request.decode("latin-1"))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            answer(connection, request)
        else:
            connection.sendall(answer)
        connection.close()


@contextmanager
def server(*answers: bytes | Talk, context: ssl.SSLContext | None = None, path: Path | None = None) -> Iterator[Server]:
    if path is None:
        listener = socket.create_server(("127.0.0.1", 0))
    else:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen()
    running = Server(listener, answers or (OK,), context)
    try:
        yield running
    finally:
        # Closing alone does not wake up a thread that waits in accept().
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        running.thread.join(5)


class Authority:
    """A certificate authority that signs what a test wants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])
        # Like many a private authority it has no key identifiers, which Python 3.13 would refuse by itself.
        builder = x509.CertificateBuilder().subject_name(self.name).issuer_name(self.name).public_key(self.key.public_key())
        builder = builder.serial_number(1).not_valid_before(NOW - timedelta(days=9)).not_valid_after(NOW + timedelta(days=9))
        certificate = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(self.key, hashes.SHA256())
        self.path = folder / "authority.pem"
        self.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def context(self, name: str = "api.example.com", first_day: int = -1, last_day: int = 1) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
        builder = builder.serial_number(2).not_valid_before(NOW + timedelta(days=first_day)).not_valid_after(NOW + timedelta(days=last_day))
        names = x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("192.0.2.1"))])
        certificate = builder.add_extension(names, critical=False).sign(self.key, hashes.SHA256())
        path = self.folder / "server.pem"
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def ask(url: str, **options: Any) -> dict[str, Any]:
    return run_probe(Probe(url, **{"attempts": 1, "interval": 0, "timeout": 3, **options}))


def complaint(url: str, **options: Any) -> str:
    with pytest.raises(LmsError) as caught:
        ask(url, **options)
    return caught.value.message


def test_good_answer_is_returned() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nSet-Cookie: session=secret\r\nVia: a\r\nVia: b\r\nContent-Length: 2\r\n\r\nok"

    with server(answer) as running:
        result = ask(f"http://{running.address}/health")

    assert result == {
        "changed": False,
        "status": 200,
        "headers": {"content-length": "2", "content-type": "text/plain", "via": "a, b"},
        "body": "ok",
        "milliseconds": result["milliseconds"],
        "attempts": 1,
        "reason": "",
    }


def test_request_carries_the_name_of_the_url_and_the_headers() -> None:
    with server() as running:
        ask("http://api.example.com?x=1", connect_to=running.address, headers={"accept": "text/html", "X-Number": 7})

    assert running.requests == [
        "GET /?x=1 HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: bitflow.lms\r\naccept: text/html\r\n"
        "Accept-Encoding: identity\r\nX-Number: 7\r\nConnection: close\r\n\r\n"
    ]


@pytest.mark.parametrize(
    ("url", "host", "place"),
    [
        ("http://Example.com:80/", "example.com", "example.com:80"),
        ("http://example.com:8080/", "example.com:8080", "example.com:8080"),
        ("https://example.com/", "example.com", "example.com:443"),
        ("https://[2001:db8::1]:443/", "[2001:db8::1]", "[2001:db8::1]:443"),
    ],
)
def test_usual_port_is_left_out_of_the_host_header(url: str, host: str, place: str) -> None:
    probe = Probe(url)

    assert (probe.authority, probe.place) == (host, place)


def test_each_attempt_has_its_own_connection() -> None:
    with server(OK, DOWN, OK) as running:
        result = ask(f"http://{running.address}/", attempts=6, consecutive=2)

    assert (result["attempts"], len(running.requests)) == (4, 4)


def test_unix_socket_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "student.sock"

    with server(path=path) as running:
        result = ask("http://student/api/health", unix_socket=str(path), expectation=Expectation(values={"status": "ok"}))

    assert (result["status"], running.requests[0].split("\r\n")[:2]) == (200, ["GET /api/health HTTP/1.1", "Host: student"])


def test_body_in_chunks_and_head_without_body_are_read() -> None:
    with server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n") as running:
        chunked = ask(f"http://{running.address}/")
    with server(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n") as running:
        head = ask(f"http://{running.address}/", method="HEAD")

    assert (chunked["body"], head["status"], head["body"]) == ("abcde", 200, "")


def test_certificate_is_checked_for_the_name_of_the_url(authority: Authority) -> None:
    context = authority.context()
    names: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)

    with server(context=context) as running:
        result = ask("https://api.example.com/health", connect_to=running.address, ca_path=str(authority.path))

    assert (result["status"], names, "Host: api.example.com\r\n" in running.requests[0]) == (200, ["api.example.com"], True)


def test_certificate_may_be_for_an_address(authority: Authority) -> None:
    with server(context=authority.context()) as running:
        assert ask("https://192.0.2.1/", connect_to=running.address, ca_path=str(authority.path))["status"] == 200


@pytest.mark.parametrize(
    ("certificate", "trusted", "reason"),
    [
        ({"first_day": -2, "last_day": -1}, True, "that is expired. Renew it and reload the server, or correct the clock of this host."),
        ({"first_day": 1, "last_day": 2}, True, "that is not valid yet. Correct the clock of this host, or wait."),
        (
            {"name": "www.example.com"},
            True,
            "for another name than api.example.com. Give the server a certificate for it, or correct url.",
        ),
        ({}, False, "of an unknown authority. Set ca_path to the certificate of the authority that issued it."),
    ],
)
def test_certificate_that_is_not_trusted_is_explained(
    authority: Authority, certificate: dict[str, Any], trusted: bool, reason: str
) -> None:
    ca_path = str(authority.path) if trusted else None

    with server(context=authority.context(**certificate)) as running:
        address = running.address
        sentence = complaint("https://api.example.com/", connect_to=running.address, ca_path=ca_path)
        unchecked = ask("https://api.example.com/", connect_to=running.address, validate_certs=False)

    assert sentence == f"https://api.example.com/ on {address} has a certificate {reason}"
    assert unchecked["status"] == 200


def test_name_without_a_site_is_explained(authority: Authority) -> None:
    context = authority.context()
    context.sni_callback = lambda _socket, _name, _context: ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

    with server(context=context) as running:
        address = running.address
        sentence = complaint("https://api.example.com/", connect_to=address)

    assert sentence == (
        f"https://api.example.com/ on {address} refuses the name api.example.com in the TLS greeting. "
        "Correct url, or give the server a site with this name."
    )


def test_server_without_tls_is_told_from_one_with_a_bad_certificate() -> None:
    with server(DOWN) as running:
        sentence = complaint(f"https://{running.address}/")

    assert "cannot agree on TLS (" in sentence
    assert sentence.endswith("Start url with http:// if it speaks no TLS, or correct the TLS settings of the server.")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "there is no such file. Install the authority's certificate, or correct ca_path."),
        ("no certificate", "it holds no certificate that can be read. It must be a PEM bundle."),
    ],
)
def test_authorities_that_cannot_be_read_end_the_task_before_the_first_attempt(tmp_path: Path, content: str | None, reason: str) -> None:
    path = tmp_path / "bundle.pem"
    if content is not None:
        path.write_text(content)

    assert complaint("https://127.0.0.1:9/", ca_path=str(path)) == f"ca_path is {path}; {reason}"


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_refused_connection_is_explained(tmp_path: Path) -> None:
    address = closed_port()
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    refused = "cannot be asked: nothing listens there (connection refused). Start the server, or correct"

    assert complaint(f"http://{address}/up") == f"http://{address}/up on {address} {refused} url."
    assert complaint("http://a.example.com/", connect_to=address) == f"http://a.example.com/ on {address} {refused} connect_to."
    assert complaint("http://a/", unix_socket=str(dead)) == f"http://a/ on {dead} {refused} unix_socket."
    assert complaint("http://a/", unix_socket=f"{dead}2") == (
        f"http://a/ on {dead}2 cannot be asked: there is no such socket. Start the server, or correct unix_socket."
    )


def test_name_that_cannot_be_resolved_is_explained() -> None:
    def make_call(_probe: Probe, _context: ssl.SSLContext | None) -> Response:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(LmsError) as caught:
        run_probe(Probe("http://host.example.com/", attempts=1), make_call)

    assert caught.value.message == (
        "http://host.example.com/ on host.example.com:80 cannot be asked: the name host.example.com cannot be resolved. "
        "Correct url or the name service."
    )


def trickle(connection: socket.socket, _request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _number in range(40):
        connection.sendall(b"x")
        time.sleep(0.05)


def test_timeout_bounds_the_whole_attempt() -> None:
    started = time.monotonic()

    with server(trickle) as running:
        sentence = complaint(f"http://{running.address}/", timeout=0.3)
        seconds = time.monotonic() - started

    assert sentence.endswith("gave no complete answer to GET within 0.3 seconds. Find what it waits for, or raise timeout.")
    assert seconds < 1.5


def test_full_queue_of_connections_is_explained() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        waiting = [socket.socket() for _number in range(4)]
        for connection in waiting:
            connection.setblocking(False)
            connection.connect_ex(listener.getsockname())

        sentence = complaint(f"http://{address}/", timeout=0.3)

        for connection in waiting:
            connection.close()
    assert sentence == f"http://{address}/ on {address} took no connection within 0.3 seconds. Look for a firewall, or correct url."


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        (b"", "closed the connection before the answer to GET was complete. Read the log of the server."),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
            "closed the connection before the answer to GET was complete. Read the log of the server.",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
            "closed the connection before the answer to GET was complete. Read the log of the server.",
        ),
        (b"+PONG\r\n\r\n", "gave an answer that is not HTTP. Start url with https:// if it speaks TLS, or correct url."),
    ],
)
def test_broken_answer_is_explained(answer: bytes, end: str) -> None:
    with server(answer) as running:
        address = running.address
        sentence = complaint(f"http://{address}/")

    assert sentence == f"http://{address}/ on {address} {end}"


def test_failure_carries_what_was_seen() -> None:
    with server(DOWN) as running, pytest.raises(LmsError) as caught:
        ask(f"http://{running.address}/", attempts=2)

    assert caught.value.details == {
        "changed": False,
        "status": 503,
        "headers": {"content-length": "4"},
        "body": "down",
        "milliseconds": caught.value.details["milliseconds"],
        "attempts": 2,
        "reason": "",
    }


ASKED = "http://a.example.com/x on 192.0.2.1:8000 answered"


@pytest.mark.parametrize(
    ("response", "expectation", "sentence"),
    [
        (Response(204), Expectation(status=(200, 204)), ""),
        (
            Response(503, {}, b"down"),
            Expectation(),
            f"{ASKED} 503 to GET, expected 200. The application is in maintenance mode, or a service that it needs fails. Body: down",
        ),
        (
            Response(301, {"location": "https://me:secret@a.example.com/"}),
            Expectation(),
            f"{ASKED} 301 to GET, expected 200. It leads to https://***@a.example.com/, and redirects are not followed: "
            "set url to where it leads.",
        ),
        (Response(301, {"location": "https://b.example.com/"}), Expectation((301,), headers={"Location": "https://b"}), ""),
        (Response(200, {"server": ""}), Expectation(headers={"Server": ""}), ""),
        (
            Response(200, {"cache-control": "public"}),
            Expectation(headers={"Cache-Control": "no-store"}),
            f"{ASKED} 200 to GET with the header Cache-Control: public, expected 'no-store' in it. "
            "Correct expect_headers, or what the server says.",
        ),
        (
            Response(200),
            Expectation(headers={"X-Release": ""}),
            f"{ASKED} 200 to GET without the header X-Release, expected '' in it. Correct expect_headers, or what the server says.",
        ),
        (
            Response(200, {"set-cookie": "session=secret"}),
            Expectation(headers={"Set-Cookie": "HttpOnly"}),
            f"{ASKED} 200 to GET with another header Set-Cookie, expected 'HttpOnly' in it. "
            "Correct expect_headers, or what the server says.",
        ),
        (
            Response(200, {}, b"hello"),
            Expectation(body="welcome"),
            f"{ASKED} 200 to GET without the text 'welcome'. Correct expect_body, or what the application says. Body: hello",
        ),
        (
            Response(200, {}, b"hello"),
            Expectation(values={"a": 1}),
            f"{ASKED} 200 to GET with a body that is not JSON. Set url to an address that answers JSON, or leave expect_json out. "
            "Body: hello",
        ),
        (
            Response(200, {}, b'{"revision": "1"}'),
            Expectation(values={"revision": "2"}),
            f'{ASKED} 200 to GET, but revision of its body is "1", expected "2". Repair what it names, or correct expect_json. '
            'Body: {"revision": "1"}',
        ),
    ],
)
def test_answer_is_judged(response: Response, expectation: Expectation, sentence: str) -> None:
    probe = Probe("http://a.example.com/x", connect_to="192.0.2.1:8000", expectation=expectation)

    assert judge(response, probe) == sentence


NEEDED = "it must be http://host/path or https://host/path, with a port from 1 to 65535 if any."


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"url": "ftp://a/"}, f"url is ftp://a/; {NEEDED}"),
        ({"url": "/health"}, f"url is /health; {NEEDED}"),
        ({"url": "http://a:99999/"}, f"url is http://a:99999/; {NEEDED}"),
        ({"url": "http://a..b/"}, f"url is http://a..b/; {NEEDED}"),
        ({"url": "http://a/\r\nX: y"}, "url is 'http://a/\\r\\nX: y'; spaces and letters outside ASCII must be percent-encoded"),
        ({"url": "http://me:secret@a/"}, "url is http://***@a/; it must not hold a user or a password. Set Authorization in headers."),
        ({"url": "http://me:sec/ret@a/"}, "url is http://***@a/; it must not hold a user or a password. Set Authorization in headers."),
        ({"connect_to": "a"}, "connect_to is 'a'; it must be host:port, such as 127.0.0.1:443 or [::1]:443."),
        ({"connect_to": "::1:443"}, "connect_to is '::1:443'; it must be host:port"),
        ({"connect_to": "a:0"}, "connect_to is 'a:0'; it must be host:port"),
        ({"connect_to": "a:1", "unix_socket": "/s"}, "connect_to and unix_socket are both set; leave one of them out."),
        ({"unix_socket": "s"}, "unix_socket is 's'; it must be an absolute path."),
        ({"url": "https://a/", "unix_socket": "/s"}, "url is https://a/; with unix_socket it must start with http://."),
        ({"headers": {"a b": "c"}}, "headers holds the name 'a b'; a name consists of letters, digits and hyphens."),
        ({"headers": {"A": "b\r\nc"}}, "The value of A in headers holds a line break or another character that HTTP cannot carry."),
        ({"attempts": 1, "consecutive": 2}, "attempts is 1 and consecutive is 2; attempts >= consecutive >= 1 is needed."),
        ({"timeout": 0}, "timeout is 0 and interval is 1; timeout > 0 and interval >= 0 is needed."),
        ({"method": "HEAD", "expectation": Expectation(body="x")}, "expect_body and expect_json need a body: set method to GET."),
    ],
)
def test_probe_that_cannot_succeed_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LmsError) as caught:
        Probe(**{"url": "http://a/", **options})

    assert caught.value.message.startswith(sentence)


@pytest.mark.parametrize(
    ("url", "shown", "secrets"),
    [
        ("https://me:secret@a.example.com/", "https://***@a.example.com/", {"me:secret", "secret"}),
        ("https://token@a.example.com/", "https://***@a.example.com/", {"token"}),
        ("https://a.example.com/@me?x=a@b", "https://a.example.com/@me?x=a@b", set()),
    ],
)
def test_credential_in_a_url_is_hidden(url: str, shown: str, secrets: set[str]) -> None:
    assert (hide_userinfo(url), secrets_of(url)) == (shown, secrets)


def test_skipped_probe_has_the_same_keys() -> None:
    with server() as running:
        assert set(skipped_result("no")) == {*ask(f"http://{running.address}/"), "skipped"}


def test_several_addresses_are_asked_side_by_side_and_each_has_a_result() -> None:
    with server() as first, server() as second:
        urls = [f"http://{first.address}/a", f"http://{second.address}/b"]

        result = run_probes([Probe(url, attempts=3, consecutive=2, interval=0) for url in urls])

    assert [(probe["url"], probe["status"], probe["attempts"]) for probe in result["probes"]] == [(url, 200, 2) for url in urls]
    assert result["status"] == 200
    assert [request.split()[1] for request in first.requests] == ["/a", "/a"]


def test_one_ill_address_among_several_is_named() -> None:
    with server() as well, server(DOWN) as ill:
        probes = [Probe(f"http://{running.address}/{name}", attempts=1) for name, running in (("well", well), ("ill", ill))]

        with pytest.raises(LmsError) as caught:
            run_probes(probes)

    assert "/ill on " in caught.value.message
    assert "/well" not in caught.value.message
    assert [probe["status"] for probe in caught.value.details["probes"]] == [200, 503]
