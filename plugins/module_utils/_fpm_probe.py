# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a release for its health through PHP-FPM, before any web server sends it visitors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._expectation import (
    BODY_SHOWN,
    Attempts,
    Expectation,
    ask_until_good,
    judge_answer,
    refuse_hopeless,
)
from ansible_collections.bitflow.lms.plugins.module_utils._fastcgi import FastcgiError, Response, call, script_params

ADVICE = {
    403: "Set uri, server_name or headers to what the application lets in.",
    404: "Set uri to an address that the application answers.",
    500: "Read storage/logs of the release and the PHP-FPM log.",
    502: "Read the PHP-FPM log.",
    503: "The application is in maintenance mode, or a service that it needs fails.",
}

Call = Callable[..., Response]


@dataclass(frozen=True)
class Probe:
    """One request, how often it is made, and what it must give."""

    socket: str
    script: str
    document_root: str
    uri: str = "/health"
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    server_name: str = "localhost"
    https: bool = False
    expectation: Expectation = field(default_factory=Expectation)
    attempts: int = 3
    consecutive: int = 1
    interval: float = 1
    timeout: float = 10

    def __post_init__(self) -> None:
        """Refuse what cannot succeed."""
        if not self.script.startswith("/"):
            raise LmsError(f"script is {self.script!r}; it must be an absolute path.")
        if not self.uri.startswith("/"):
            raise LmsError(f"uri is {self.uri!r}; it must start with a slash.")
        refuse_hopeless(self)

    @property
    def release(self) -> str:
        """Return the release that the script belongs to in words. Where each instance sees its own at one place, the socket tells it."""
        for path in (self.script, self.socket):
            parts = PurePosixPath(path).parts
            if "releases" in parts[:-1]:
                return f"Release {parts[parts.index('releases') + 1]}"
        return f"The script {self.script}"

    def params(self) -> dict[str, str]:
        """Return the CGI variables of the request."""
        return script_params(self.script, self.document_root, self.uri, self.method, self.server_name, self.https, self.headers)


def run_probe(
    probe: Probe,
    make_call: Call = call,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Ask until enough good answers came in a row, and return the module's result."""
    params = probe.params()
    seen = ask_until_good(probe, lambda: ask_once(probe, params, make_call), clock, sleep)
    if seen.complaint:
        raise LmsError(seen.complaint, **as_result(seen))
    return as_result(seen)


def ask_once(probe: Probe, params: Mapping[str, str], make_call: Call) -> tuple[Response | None, str]:
    """Return the answer to one attempt, and what is wrong with it."""
    try:
        response = make_call(probe.socket, params, timeout=probe.timeout)
    except FastcgiError as error:
        if error.reason == "address":
            raise
        return None, describe_silence(error, probe)
    return response, judge(response, probe)


def as_result(seen: Attempts[Response]) -> dict[str, Any]:
    """Return the module's result."""
    return {**seen.as_result(), "stderr": seen.response.stderr[:BODY_SHOWN] if seen.response else ""}


def describe_silence(error: FastcgiError, probe: Probe) -> str:
    """Return the sentence for a request without an answer."""
    if error.reason == "timeout":
        return (
            f"{probe.release} gave no answer to {probe.method} {probe.uri} on {probe.socket} within {probe.timeout:g} seconds. "
            "Find what it waits for, or raise timeout."
        )
    return f"{probe.release} cannot be asked for {probe.uri}: {error.message}"


def judge(response: Response, probe: Probe) -> str:
    """Return what is wrong with an answer; nothing when it is good."""
    if "Primary script unknown" in response.stderr:
        return (
            f"PHP-FPM on {probe.socket} cannot open {probe.script}: it is not there, or the pool's user may not enter "
            "a directory above it. Set script to the release's public/index.php."
        )
    if response.status == 403 and "security.limit_extensions" in response.stderr:
        return f"PHP-FPM on {probe.socket} refuses {probe.script}: its ending is not in security.limit_extensions of the pool."
    asked = f"{probe.release} answered {response.status} to {probe.method} {probe.uri}"
    return judge_answer(response, probe.expectation, asked, ADVICE, "uri")


def skipped_result(reason: str) -> dict[str, Any]:
    """Return the result of a probe that has nothing to ask yet."""
    return {**as_result(Attempts()), "skipped": True, "reason": reason}
