# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a web server for its health, at the address that a visitor uses or at another one."""

from __future__ import annotations

import contextlib
import errno
import http.client
import io
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._expectation import (
    Attempts,
    Expectation,
    ask_until_good,
    judge_answer,
    refuse_hopeless,
)

READ_SIZE = 65536
LONGEST_BODY = 16 * 1024 * 1024
DEFAULT_PORTS = {"http": 80, "https": 443}
BEFORE_AT = re.compile(r"(?<=//).*(?=@)", re.DOTALL)
PRINTABLE = re.compile(r"[!-~]+")
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# What would end the line, or what HTTP cannot carry.
NOT_IN_HEADER = re.compile(r"[^\t -~\x80-\xff]")
HOST_AND_PORT = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<name>[\w.-]+)):(?P<port>\d{1,5})")
ADVICE = {
    401: "Set headers to the credentials that the server wants.",
    403: "Set url or headers to what the server lets in.",
    404: "Set url to an address that the server answers.",
    500: "Read the log of the application.",
    502: "The application behind the server does not answer: read the error log of the server.",
    503: "The application is in maintenance mode, or a service that it needs fails.",
    504: "The application behind the server is too slow: read the error log of the server.",
}
# The codes of X509_verify_cert_error_string(3).
CERTIFICATE_NOT_YET_VALID = 9
CERTIFICATE_EXPIRED = 10
CERTIFICATE_OF_UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})
CERTIFICATE_OF_ANOTHER_NAME = frozenset({62, 64})


class NoConnectionError(OSError):
    """The other side took no connection in time."""


class TooLongError(http.client.HTTPException):
    """The body is longer than a probe reads."""


@dataclass(frozen=True)
class Response:
    """The answer of a web server."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Probe:
    """One request, how often it is made, and what it must give."""

    url: str
    method: str = "GET"
    headers: Mapping[str, Any] = field(default_factory=dict, repr=False)
    connect_to: str | None = None
    unix_socket: str | None = None
    ca_path: str | None = None
    validate_certs: bool = True
    expectation: Expectation = field(default_factory=Expectation)
    attempts: int = 3
    consecutive: int = 1
    interval: float = 1
    timeout: float = 10

    def __post_init__(self) -> None:
        """Refuse what cannot succeed."""
        refuse_url(self.url)
        if self.unix_socket is not None:
            if not self.unix_socket.startswith("/"):
                raise LmsError(f"unix_socket is {self.unix_socket!r}; it must be an absolute path.")
            if self.connect_to is not None:
                raise LmsError("connect_to and unix_socket are both set; leave one of them out.")
            if self.parts.scheme != "http":
                raise LmsError(f"url is {self.url}; with unix_socket it must start with http://.")
        if self.connect_to is not None:
            split_address(self.connect_to)
        for name, value in self.headers.items():
            if not HEADER_NAME.fullmatch(name):
                raise LmsError(f"headers holds the name {name!r}; a name consists of letters, digits and hyphens.")
            if NOT_IN_HEADER.search(str(value)):
                raise LmsError(f"The value of {name} in headers holds a line break or another character that HTTP cannot carry.")
        refuse_hopeless(self)

    @property
    def parts(self) -> SplitResult:
        """Return the URL in pieces."""
        return urlsplit(self.url)

    @property
    def host(self) -> str:
        """Return the host of the URL, which the certificate must be for."""
        return self.parts.hostname or ""

    @property
    def authority(self) -> str:
        """Return the Host header: the port is left out when it is the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = self.parts.port
        return host if port in (None, DEFAULT_PORTS[self.parts.scheme]) else f"{host}:{port}"

    @property
    def target(self) -> str:
        """Return the path with its query."""
        path = self.parts.path or "/"
        return f"{path}?{self.parts.query}" if self.parts.query else path

    @property
    def address(self) -> tuple[str, int]:
        """Return the host and port to connect to."""
        if self.connect_to is not None:
            return split_address(self.connect_to)
        return self.host, self.parts.port or DEFAULT_PORTS[self.parts.scheme]

    @property
    def place(self) -> str:
        """Return where the request goes, in words."""
        if self.unix_socket is not None:
            return self.unix_socket
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def place_option(self) -> str:
        """Return the option that says where the request goes."""
        if self.unix_socket is not None:
            return "unix_socket"
        return "url" if self.connect_to is None else "connect_to"

    def request(self, kept_alive: bool = False) -> bytes:
        """Return the bytes of the request."""
        headers = {"host": self.authority, "user-agent": "bitflow.lms", "accept": "*/*", "accept-encoding": "identity"}
        names = {name: name.title() for name in headers}
        for name, value in self.headers.items():
            headers[name.lower()] = str(value).strip()
            names[name.lower()] = name
        # Each attempt of a probe has its own connection.
        headers["connection"], names["connection"] = "keep-alive" if kept_alive else "close", "Connection"
        lines = [f"{self.method} {self.target} HTTP/1.1", *(f"{names[name]}: {value}" for name, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode("latin-1")


def refuse_url(url: str) -> None:
    """Refuse a URL that cannot be asked, without repeating a credential in it."""
    shown = hide_userinfo(url)
    if userinfo_of(url):
        raise LmsError(f"url is {shown}; it must not hold a user or a password. Set Authorization in headers.")
    if not PRINTABLE.fullmatch(url):
        raise LmsError(f"url is {shown!r}; spaces and letters outside ASCII must be percent-encoded, in a host name by punycode.")
    try:
        parts = urlsplit(url)
        complete = parts.scheme in DEFAULT_PORTS and parts.port != 0 and is_host(parts.hostname or "")
    except ValueError:
        complete = False
    if not complete:
        raise LmsError(f"url is {shown}; it must be http://host/path or https://host/path, with a port from 1 to 65535 if any.")


def userinfo_of(url: str) -> str:
    """Return the user and the password in a URL, also where a slash in them hides them from the parser."""
    found = BEFORE_AT.search(url)
    try:
        parts = urlsplit(url)
        host_is_clear = "@" not in parts.netloc and parts.port != 0
    except ValueError:
        host_is_clear = False
    return found.group() if found and not host_is_clear else ""


def hide_userinfo(url: str) -> str:
    """Return a URL without the user and the password in it."""
    userinfo = userinfo_of(url)
    return url.replace(userinfo, "***") if userinfo else url


def secrets_of(url: str) -> set[str]:
    """Return what must not be shown of a URL."""
    userinfo = userinfo_of(url)
    return {text for text in (userinfo, userinfo.partition(":")[2]) if text}


def is_host(name: str) -> bool:
    """Tell whether a name can be looked up: no part of it is empty or too long."""
    try:
        return bool(name.encode("idna"))
    except UnicodeError:
        return False


def split_address(address: str) -> tuple[str, int]:
    """Return the host and port of host:port, with an IPv6 host in brackets."""
    found = HOST_AND_PORT.fullmatch(address)
    if not found or not 0 < int(found["port"]) < 65536 or not is_host(found["address"] or found["name"]):
        raise LmsError(f"connect_to is {address!r}; it must be host:port, such as 127.0.0.1:443 or [::1]:443.")
    return found["address"] or found["name"], int(found["port"])


def tls_context(ca_path: str | None, validate_certs: bool) -> ssl.SSLContext:
    """Return the rules that a certificate is checked by."""
    try:
        context = ssl.create_default_context(cafile=ca_path if validate_certs else None)
    except FileNotFoundError as error:
        raise LmsError(f"ca_path is {ca_path}; there is no such file. Install the authority's certificate, or correct ca_path.") from error
    except ssl.SSLError as error:
        raise LmsError(f"ca_path is {ca_path}; it holds no certificate that can be read. It must be a PEM bundle.") from error
    except OSError as error:
        raise LmsError(f"ca_path is {ca_path}; it cannot be read: {error.strerror or error}.") from error
    # From 3.13 on Python refuses authorities that browsers accept; the answer must not depend on the Python of the host.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not validate_certs:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def remaining(deadline: float) -> float:
    """Return the seconds that are left; raise when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise socket.timeout("deadline")
    return left


def connect_unix(path: str, deadline: float) -> socket.socket:
    """Open a connection to a socket in the file system."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(remaining(deadline))
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_tcp(host: str, port: int, deadline: float) -> socket.socket:
    """Open a connection to the first address of a host that takes it; each gets its share of the time."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    refusal: OSError = NoConnectionError(f"{host} has no address")
    for number, (family, kind, protocol, _name, address) in enumerate(found):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(remaining(deadline) / (len(found) - number))
            connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            refusal = error
    if isinstance(refusal, socket.timeout):
        raise NoConnectionError("timeout") from refusal
    raise refusal


def open_connection(probe: Probe, context: ssl.SSLContext | None, deadline: float) -> socket.socket:
    """Open the connection for one attempt, with TLS when a context is given."""
    if probe.unix_socket is not None:
        return connect_unix(probe.unix_socket, deadline)
    connection = connect_tcp(*probe.address, deadline)
    if context is None:
        return connection
    try:
        connection.settimeout(remaining(deadline))
        return context.wrap_socket(connection, server_hostname=probe.host)
    except BaseException:
        connection.close()
        raise


class DeadlineReader(io.RawIOBase):
    """Read from a connection until a deadline: a server that trickles its answer cannot hold the probe longer."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        super().__init__()
        self._connection = connection
        self._deadline = deadline

    def readable(self) -> bool:
        """Tell that this can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with what comes next."""
        self._connection.settimeout(remaining(self._deadline))
        return self._connection.recv_into(buffer)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return the file that http.client reads from."""
        return io.BufferedReader(self)


def call(probe: Probe, context: ssl.SSLContext | None = None) -> Response:
    """Make one request on a connection of its own and return the answer."""
    deadline = time.monotonic() + probe.timeout
    with open_connection(probe, context, deadline) as connection:
        connection.settimeout(remaining(deadline))
        # A server that answers without reading everything closes its side: its answer is still worth reading.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(probe.request())
        # All that http.client wants of a socket is a file to read from.
        answer = http.client.HTTPResponse(cast(socket.socket, DeadlineReader(connection, deadline)), method=probe.method)
        with answer:
            answer.begin()
            return Response(answer.status, read_headers(answer), read_body(answer))


def read_headers(answer: http.client.HTTPResponse) -> dict[str, str]:
    """Return the headers with their names in lower case; one that comes twice is joined."""
    headers: dict[str, str] = {}
    for name, value in answer.getheaders():
        name = name.lower()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def read_body(answer: http.client.HTTPResponse) -> bytes:
    """Return the whole body."""
    body = bytearray()
    while piece := answer.read(READ_SIZE):
        body += piece
        if len(body) > LONGEST_BODY:
            raise TooLongError
    if answer.length:
        raise http.client.IncompleteRead(bytes(body), answer.length)
    return bytes(body)


Call = Callable[[Probe, "ssl.SSLContext | None"], Response]


def run_probe(
    probe: Probe,
    make_call: Call = call,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Ask until enough good answers came in a row, and return the module's result."""
    context = tls_context(probe.ca_path, probe.validate_certs) if probe.parts.scheme == "https" else None
    seen = ask_until_good(probe, lambda: ask_once(probe, context, make_call), clock, sleep)
    if seen.complaint:
        raise LmsError(seen.complaint, **seen.as_result())
    return seen.as_result()


def run_probes(probes: Sequence[Probe], run: Callable[[Probe], dict[str, Any]] = run_probe) -> dict[str, Any]:
    """Ask several addresses side by side, and return the module's result: that of the first, and all of them in probes."""

    def outcome(probe: Probe) -> dict[str, Any] | LmsError:
        try:
            return run(probe)
        except LmsError as error:
            return error

    with ThreadPoolExecutor(max_workers=len(probes)) as pool:
        outcomes = list(pool.map(outcome, probes))
    details = [{"url": probe.url, **(found.details if isinstance(found, LmsError) else found)} for probe, found in zip(probes, outcomes)]
    first = {key: value for key, value in details[0].items() if key != "url"}
    complaints = [found.message for found in outcomes if isinstance(found, LmsError)]
    if complaints:
        raise LmsError(" ".join(complaints), **{**first, "probes": details})
    return {**first, "probes": details}


def ask_once(probe: Probe, context: ssl.SSLContext | None, make_call: Call) -> tuple[Response | None, str]:
    """Return the answer to one attempt, and what is wrong with it."""
    try:
        response = make_call(probe, context)
    except (OSError, http.client.HTTPException) as error:
        return None, describe_silence(error, probe)
    return response, judge(response, probe)


def judge(response: Response, probe: Probe) -> str:
    """Return what is wrong with an answer; nothing when it is good."""
    advice = ADVICE
    location = response.headers.get("location")
    if location and 300 <= response.status < 400:
        advice = {response.status: f"It leads to {hide_userinfo(location)}, and redirects are not followed: set url to where it leads."}
    return judge_answer(
        response, probe.expectation, f"{probe.url} on {probe.place} answered {response.status} to {probe.method}", advice, "url"
    )


def describe_silence(error: OSError | http.client.HTTPException, probe: Probe) -> str:
    """Return the sentence for a request without a complete answer."""
    asked = f"{probe.url} on {probe.place}"
    option = probe.place_option
    if isinstance(error, ssl.SSLError):
        return f"{asked} {explain_tls(error, probe)}"
    if isinstance(error, NoConnectionError):
        return f"{asked} took no connection within {probe.timeout:g} seconds. Look for a firewall, or correct {option}."
    if isinstance(error, (socket.timeout, TimeoutError)):
        late = f"gave no complete answer to {probe.method} within {probe.timeout:g} seconds"
        return f"{asked} {late}. Find what it waits for, or raise timeout."
    if isinstance(error, (ConnectionResetError, BrokenPipeError, http.client.IncompleteRead)):
        return f"{asked} closed the connection before the answer to {probe.method} was complete. Read the log of the server."
    if isinstance(error, TooLongError):
        return f"{asked} gave an answer of more than {LONGEST_BODY} bytes. Set url to a health address."
    if isinstance(error, http.client.HTTPException):
        hint = "Start url with https:// if it speaks TLS, or correct" if probe.parts.scheme == "http" else "Correct"
        return f"{asked} gave an answer that is not HTTP. {hint} {option}."
    return f"{asked} cannot be asked: {explain_connect(error, probe)}"


def explain_connect(error: OSError, probe: Probe) -> str:
    """Return why there is no connection, and the way out."""
    option = probe.place_option
    if isinstance(error, socket.gaierror):
        return f"the name {probe.address[0]} cannot be resolved. Correct {option} or the name service."
    if error.errno == errno.ENOENT:
        return f"there is no such socket. Start the server, or correct {option}."
    if error.errno == errno.ECONNREFUSED:
        return f"nothing listens there (connection refused). Start the server, or correct {option}."
    if error.errno in (errno.EACCES, errno.EPERM) and probe.unix_socket is not None:
        return "the socket may not be opened by this user. Run the task as root, or as a user in the socket's group."
    return f"{error.strerror or error}. Correct {option}, or the network between the hosts."


def explain_tls(error: ssl.SSLError, probe: Probe) -> str:
    """Return why there is no trust or no TLS, and the way out."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        reason = (error.reason or str(error)).replace("_", " ").lower()
        if "unrecognized name" in reason:
            return f"refuses the name {probe.host} in the TLS greeting. Correct url, or give the server a site with this name."
        return f"cannot agree on TLS ({reason}). Start url with http:// if it speaks no TLS, or correct the TLS settings of the server."
    if error.verify_code == CERTIFICATE_EXPIRED:
        return "has a certificate that is expired. Renew it and reload the server, or correct the clock of this host."
    if error.verify_code == CERTIFICATE_NOT_YET_VALID:
        return "has a certificate that is not valid yet. Correct the clock of this host, or wait."
    if error.verify_code in CERTIFICATE_OF_ANOTHER_NAME:
        return f"has a certificate for another name than {probe.host}. Give the server a certificate for it, or correct url."
    if error.verify_code in CERTIFICATE_OF_UNKNOWN_AUTHORITY:
        return "has a certificate of an unknown authority. Set ca_path to the certificate of the authority that issued it."
    return f"has a certificate that is not trusted: {error.verify_message}. Correct the certificate of the server, or ca_path."


def skipped_result(reason: str) -> dict[str, Any]:
    """Return the result of a probe that has nothing to ask yet."""
    return {**Attempts[Response]().as_result(), "skipped": True, "reason": reason}
