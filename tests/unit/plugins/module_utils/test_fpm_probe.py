# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a probe judges answers, and how long it goes on asking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._expectation import Expectation
from ansible_collections.bitflow.lms.plugins.module_utils._fastcgi import FastcgiError, Response
from ansible_collections.bitflow.lms.plugins.module_utils._fpm_probe import Probe, judge, run_probe, skipped_result

SCRIPT = "/srv/lms/backend/releases/20261123210000-abc1234/public/index.php"
GOOD = Response(
    200, {"content-type": "application/json"}, b'{"status":"ok","checks":{"database":"ok"},"list":[{"id":7}],"a.b":1,"on":true}'
)
BAD = Response(503, {"content-type": "application/json"}, b'{"status":"degraded"}')


def make_probe(**options: Any) -> Probe:
    return Probe(**{"socket": "/run/php/lms.sock", "script": SCRIPT, "document_root": SCRIPT.rpartition("/")[0], **options})


class Pool:
    """A pool that gives its answers one after the other."""

    def __init__(self, *answers: Response | FastcgiError) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str, str]] = []
        self.slept: list[float] = []
        self.seconds = 0.0

    def __call__(self, address: str, params: Mapping[str, str], timeout: float) -> Response:
        self.calls.append((params["REQUEST_METHOD"], params["REQUEST_URI"]))
        self.seconds += 0.05
        answer = self.answers.pop(0)
        if isinstance(answer, FastcgiError):
            raise answer
        return answer

    def ask(self, probe: Probe) -> dict[str, Any]:
        return run_probe(probe, self, lambda: self.seconds, self.slept.append)


def test_good_answer_is_returned() -> None:
    pool = Pool(Response(200, {"content-type": "text/plain", "set-cookie": "laravel_session=secret"}, b"ok", "a notice"))

    assert pool.ask(make_probe()) == {
        "changed": False,
        "status": 200,
        "headers": {"content-type": "text/plain"},
        "body": "ok",
        "stderr": "a notice",
        "milliseconds": [50],
        "attempts": 1,
        "reason": "",
    }
    assert pool.calls == [("GET", "/health")]


def test_good_answers_must_come_in_a_row() -> None:
    pool = Pool(GOOD, BAD, GOOD, GOOD)

    result = pool.ask(make_probe(attempts=5, consecutive=2, interval=0.5))

    assert (result["attempts"], pool.slept) == (4, [0.5, 0.5, 0.5])


def test_asking_ends_when_the_good_answers_cannot_be_reached_any_more() -> None:
    pool = Pool(GOOD, BAD, BAD)

    with pytest.raises(LmsError) as caught:
        pool.ask(make_probe(attempts=4, consecutive=2))

    assert caught.value.details["attempts"] == 3


def test_last_good_answer_is_not_enough_when_more_were_wanted() -> None:
    pool = Pool(BAD, BAD, GOOD)

    with pytest.raises(LmsError) as caught:
        pool.ask(make_probe(attempts=3, consecutive=2))

    assert caught.value.message == (
        "Release 20261123210000-abc1234 answered 503 to GET /health, expected 200. "
        'The application is in maintenance mode, or a service that it needs fails. Body: {"status":"degraded"}'
    )


def test_failure_carries_what_was_seen() -> None:
    with pytest.raises(LmsError) as caught:
        Pool(BAD).ask(make_probe(attempts=1))

    assert caught.value.details == {
        "changed": False,
        "status": 503,
        "headers": {"content-type": "application/json"},
        "body": '{"status":"degraded"}',
        "stderr": "",
        "milliseconds": [50],
        "attempts": 1,
        "reason": "",
    }


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            FastcgiError("x", "timeout"),
            "Release 20261123210000-abc1234 gave no answer to GET /health on /run/php/lms.sock within 10 seconds. "
            "Find what it waits for, or raise timeout.",
        ),
        (FastcgiError("It is gone.", "closed"), "Release 20261123210000-abc1234 cannot be asked for /health: It is gone."),
    ],
)
def test_silence_is_a_failure(error: FastcgiError, sentence: str) -> None:
    with pytest.raises(LmsError) as caught:
        Pool(error).ask(make_probe(attempts=1))

    assert (caught.value.message, caught.value.details["status"]) == (sentence, None)


def test_wrong_address_is_not_tried_again() -> None:
    pool = Pool(FastcgiError("socket is wrong", "address"))

    with pytest.raises(FastcgiError):
        pool.ask(make_probe())

    assert len(pool.calls) == 1


@pytest.mark.parametrize(
    "expected",
    [
        {"status": "ok"},
        {"checks.database": "ok"},
        {"checks": {"database": "ok"}},
        {"list.0.id": 7},
        {"a.b": 1},
        {"on": True},
        {"status": "ok", "checks": {}},
    ],
)
def test_json_that_holds_what_is_expected_is_good(expected: dict[str, Any]) -> None:
    assert judge(GOOD, make_probe(expectation=Expectation(values=expected))) == ""


@pytest.mark.parametrize(
    ("expected", "complaint"),
    [
        ({"checks.database": "down"}, 'checks.database of its body is "ok", expected "down"'),
        ({"checks.cache": "ok"}, 'checks.cache of its body is not there, expected "ok"'),
        ({"list.1.id": 7}, "list.1.id of its body is not there, expected 7"),
        ({"on": 1}, "on of its body is true, expected 1"),
        ({"status.deep": 1}, "status.deep of its body is not there, expected 1"),
    ],
)
def test_json_that_holds_something_else_is_named(expected: dict[str, Any], complaint: str) -> None:
    assert complaint in judge(GOOD, make_probe(expectation=Expectation(values=expected)))


@pytest.mark.parametrize(
    ("response", "expectation", "complaint"),
    [
        (Response(204), Expectation(status=(200, 201)), "answered 204 to GET /health, expected 200 or 201."),
        (Response(500), Expectation(), "expected 200. Read storage/logs of the release and the PHP-FPM log."),
        (Response(200, {}, b"hello"), Expectation(body="welcome"), "without the text 'welcome'. Correct expect_body"),
        (Response(200, {}, b"hello"), Expectation(values={"a": 1}), "with a body that is not JSON"),
        (Response(404, {}, b"File not found.\n", "Primary script unknown"), Expectation(), f"cannot open {SCRIPT}"),
        (Response(403, {}, b"", "Access denied (see security.limit_extensions)"), Expectation(), "security.limit_extensions of the pool"),
    ],
)
def test_other_faults_are_named(response: Response, expectation: Expectation, complaint: str) -> None:
    assert complaint in judge(response, make_probe(expectation=expectation))


def test_page_is_quoted_as_a_reader_sees_it() -> None:
    page = b"<!DOCTYPE html><html><head><style>a { b: c }</style></head>\n<body><h1>Service</h1> Unavailable</body></html>"

    sentence = judge(Response(503, {"content-type": "text/html; charset=UTF-8"}, page), make_probe())

    assert sentence.endswith("Body: Service Unavailable")


def test_status_that_is_expected_may_be_an_error() -> None:
    assert judge(BAD, make_probe(expectation=Expectation(status=(503,)))) == ""


def test_release_is_told_by_the_socket_where_all_see_theirs_at_one_place() -> None:
    probe = make_probe(script="/srv/lms/live/release/public/index.php", socket="/srv/lms/releases/20261123210000-abc1234/run/fpm.sock")

    assert probe.release == "Release 20261123210000-abc1234"


def test_script_outside_a_release_is_named_by_its_path() -> None:
    assert make_probe(script="/var/www/index.php").release == "The script /var/www/index.php"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"script": "index.php"}, "script is 'index.php'; it must be an absolute path."),
        ({"uri": "health"}, "uri is 'health'; it must start with a slash."),
        ({"attempts": 1, "consecutive": 2}, "attempts is 1 and consecutive is 2"),
        ({"timeout": 0}, "timeout is 0"),
        ({"method": "HEAD", "expectation": Expectation(body="x")}, "need a body: set method to GET."),
    ],
)
def test_probe_that_cannot_succeed_is_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LmsError) as caught:
        make_probe(**options)

    assert complaint in caught.value.message


def test_skipped_probe_has_the_same_keys() -> None:
    assert set(skipped_result("no")) == {*Pool(GOOD).ask(make_probe()), "skipped"}
