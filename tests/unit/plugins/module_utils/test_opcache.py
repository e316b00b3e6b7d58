# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How OPcache is asked: the script is private and leaves nothing behind; answers are judged."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._fastcgi import FastcgiError, Response
from ansible_collections.bitflow.lms.plugins.module_utils._opcache import (
    BATCH,
    group_number,
    prepare_directory,
    run,
    seconds_until_cacheable,
    temporary_script,
)

GROUP = os.getegid()


def make_status(**options: Any) -> dict[str, Any]:
    statistics = {"num_cached_scripts": 459, "num_cached_keys": 494, "max_cached_keys": 16229, "hits": 918, "misses": 460}
    statistics |= {"oom_restarts": 0, "hash_restarts": 0, "manual_restarts": 0, "opcache_hit_rate": 66.61828737300436}
    return {
        "cache_full": False,
        "restart_pending": False,
        "restart_in_progress": False,
        "memory_usage": {"used_memory": 19265592, "free_memory": 114952136, "wasted_memory": 0, "current_wasted_percentage": 0},
        "opcache_statistics": statistics,
        **options,
    }


class Fpm:
    """A PHP-FPM that answers the script's requests, and looks at the script while it lies there."""

    def __init__(self, cached: int = 61, unavailable: str | None = None) -> None:
        self.cached = cached
        self.unavailable = unavailable
        self.status = make_status()
        self.resets = True
        self.protection = 2
        self.not_cached: list[str] = []
        self.response: Response | FastcgiError | None = None
        self.requests: list[dict[str, Any]] = []
        self.seen: list[tuple[int, int]] = []

    def __call__(self, address: str, params: Mapping[str, str], body: bytes, timeout: float) -> Response:
        script = Path(params["SCRIPT_FILENAME"])
        self.seen.append((stat.S_IMODE(script.stat().st_mode), stat.S_IMODE(script.parent.stat().st_mode)))
        if isinstance(self.response, FastcgiError):
            raise self.response
        if self.response:
            return self.response
        request = json.loads(body)
        self.requests.append(request)
        answer = {"unavailable": self.unavailable, "count": 0, "not_cached": [], "status": None, "protection": self.protection}
        if self.unavailable is None:
            answer |= {"status": self.status, **self.act(**request)}
        return Response(200, {}, json.dumps(answer).encode())

    def act(self, action: str, paths: list[str], check: bool) -> dict[str, Any]:
        if action == "reset" and not check and self.resets:
            statistics = {**self.status["opcache_statistics"], "manual_restarts": 1}
            self.status = {**self.status, "opcache_statistics": statistics}
        count = {"status": 0, "reset": 1, "invalidate": self.cached, "warm": len(paths) - len(self.not_cached)}[action]
        return {"count": count, "not_cached": self.not_cached if action == "warm" else []}


def act(fpm: Fpm, directory: Path, action: str, *paths: str, check_mode: bool = False, slept: list[float] | None = None) -> dict[str, Any]:
    params = {
        "action": action,
        "socket": "/run/php/lms.sock",
        "group": str(GROUP),
        "directory": str(directory / "opcache"),
        "paths": list(paths),
        "timeout": 30.0,
    }
    return run(params, check_mode, fpm, (slept if slept is not None else []).append)


def expected(action: str, **fields: Any) -> dict[str, Any]:
    return {
        "changed": False,
        "action": action,
        "enabled": True,
        "reason": "",
        "full": False,
        "restart_pending": False,
        "cached_scripts": 459,
        "invalidated": 0,
        "warmed": 0,
        "not_cached": [],
        "memory": {"free": 114952136, "used": 19265592, "wasted": 0},
        "statistics": {
            "cached_keys": 494,
            "hash_restarts": 0,
            "hit_rate": 66.62,
            "hits": 918,
            "manual_restarts": 0,
            "max_cached_keys": 16229,
            "misses": 460,
            "oom_restarts": 0,
        },
        "warnings": [],
        **fields,
    }


def test_status_is_read(tmp_path: Path) -> None:
    assert act(Fpm(), tmp_path, "status") == expected("status")


def test_script_is_private_while_it_runs_and_gone_afterwards(tmp_path: Path) -> None:
    fpm = Fpm()

    act(fpm, tmp_path, "status")

    assert fpm.seen == [(0o640, 0o710)]
    assert list((tmp_path / "opcache").iterdir()) == []


def test_script_is_gone_after_a_failure_too(tmp_path: Path) -> None:
    fpm = Fpm()
    fpm.response = FastcgiError("gone", "closed")

    with pytest.raises(FastcgiError):
        act(fpm, tmp_path, "status")

    assert list((tmp_path / "opcache").iterdir()) == []


def test_script_is_too_young_for_opcache_to_keep_it(tmp_path: Path) -> None:
    with temporary_script(tmp_path / "opcache", GROUP, 1000.0) as script:
        assert script.stat().st_mtime > 1000.0 + 3600


def test_reset_is_proved(tmp_path: Path) -> None:
    fpm = Fpm()

    result = act(fpm, tmp_path, "reset")

    assert result == expected("reset", changed=True, statistics=expected("reset")["statistics"] | {"manual_restarts": 1})
    assert [request["action"] for request in fpm.requests] == ["status", "reset", "status"]


def test_reset_that_waits_for_running_requests_counts(tmp_path: Path) -> None:
    fpm = Fpm()
    fpm.resets = False
    fpm.status = make_status(restart_pending=True)

    assert act(fpm, tmp_path, "reset")["restart_pending"] is True


def test_reset_that_did_nothing_is_a_failure(tmp_path: Path) -> None:
    fpm = Fpm()
    fpm.resets = False

    with pytest.raises(LmsError, match=r"was told to reset and did not"):
        act(fpm, tmp_path, "reset")


@pytest.mark.parametrize(("cached", "changed"), [(61, True), (0, False)])
def test_invalidating_is_a_change_when_something_was_cached(tmp_path: Path, cached: int, changed: bool) -> None:
    fpm = Fpm(cached)

    result = act(fpm, tmp_path, "invalidate", "/srv/r1", "/srv/r2")

    assert result == expected("invalidate", changed=changed, invalidated=cached)
    assert fpm.requests == [{"action": "invalidate", "paths": ["/srv/r1", "/srv/r2"], "check": False}]


def make_files(directory: Path, count: int) -> Path:
    code = directory / "code"
    (code / "deep").mkdir(parents=True)
    for number in range(count):
        (code / "deep" / f"{number:04}.php").touch()
    (code / "notes.txt").touch()
    for file in code.rglob("*.php"):
        os.utime(file, (1000, 1000))
    return code


def test_warming_takes_all_php_files_in_batches(tmp_path: Path) -> None:
    fpm = Fpm()
    slept: list[float] = []

    result = act(fpm, tmp_path, "warm", str(make_files(tmp_path, BATCH + 1)), slept=slept)

    assert result == expected("warm", changed=True, warmed=BATCH + 1)
    assert [len(request["paths"]) for request in fpm.requests if request["action"] == "warm"] == [BATCH, 1]
    assert slept == []


def test_warming_waits_for_fresh_files(tmp_path: Path) -> None:
    code = make_files(tmp_path, 1)
    (code / "fresh.php").touch()
    slept: list[float] = []

    act(Fpm(), tmp_path, "warm", str(code), slept=slept)

    assert len(slept) == 1
    assert 1 < slept[0] <= 3


@pytest.mark.parametrize(("now", "wait"), [(1001.0, 1.0), (1002.0, 0.0), (900.0, 2.0)])
def test_wait_is_never_longer_than_the_protection(tmp_path: Path, now: float, wait: float) -> None:
    files = list(make_files(tmp_path, 1).rglob("*.php"))

    assert seconds_until_cacheable(files, 2, now) == wait


def test_files_that_stay_out_are_warned_about(tmp_path: Path) -> None:
    fpm = Fpm()
    fpm.not_cached = ["/srv/bad.php"]

    result = act(fpm, tmp_path, "warm", str(make_files(tmp_path, 3)))

    assert result == expected(
        "warm",
        changed=True,
        warmed=2,
        not_cached=["/srv/bad.php"],
        warnings=["1 files were not taken into OPcache, the first of them /srv/bad.php."],
    )


def test_full_cache_is_warned_about(tmp_path: Path) -> None:
    fpm = Fpm()
    fpm.status = make_status(cache_full=True)

    result = act(fpm, tmp_path, "status")

    assert (result["full"], len(result["warnings"])) == (True, 1)


@pytest.mark.parametrize("action", ["status", "reset", "invalidate", "warm"])
def test_pool_without_opcache_is_said_clearly_and_is_no_change(tmp_path: Path, action: str) -> None:
    fpm = Fpm(unavailable="opcache.enable is off")

    result = act(fpm, tmp_path, action, str(make_files(tmp_path, 1)))

    assert (result["enabled"], result["changed"]) == (False, False)
    assert result["reason"] == "OPcache cannot be used in this pool: opcache.enable is off."
    assert len(result["warnings"]) == (0 if action == "status" else 1)
    assert set(result) == set(expected(action))


@pytest.mark.parametrize("action", ["reset", "invalidate", "warm"])
def test_check_mode_only_looks(tmp_path: Path, action: str) -> None:
    fpm = Fpm()

    result = act(fpm, tmp_path, action, str(make_files(tmp_path, 2)), check_mode=True)

    assert result == expected(action, changed=True)
    assert all(request["check"] for request in fpm.requests if request["action"] != "status")


def test_check_mode_without_fpm_is_skipped(tmp_path: Path) -> None:
    fpm = Fpm()
    fpm.response = FastcgiError("There is no socket.", "connect")

    result = act(fpm, tmp_path, "reset", check_mode=True)

    assert (result["skipped"], result["reason"], set(result)) == (True, "There is no socket.", {*expected("reset"), "skipped"})


@pytest.mark.parametrize(
    ("response", "complaint"),
    [
        (Response(404, {}, b"File not found.\n", "Primary script unknown"), "cannot read a script in"),
        (Response(403, {}, b"Access denied.\n"), "cannot read a script in"),
        (Response(500, {}, b"", "open_basedir restriction in effect"), "open_basedir of the pool"),
        (Response(500, {}, b""), "ended with status 500. Read the PHP-FPM log."),
        (Response(200, {}, b"no json"), "ended with status 200"),
    ],
)
def test_script_that_gives_no_answer_is_explained(tmp_path: Path, response: Response, complaint: str) -> None:
    fpm = Fpm()
    fpm.response = response

    with pytest.raises(LmsError) as caught:
        act(fpm, tmp_path, "status")

    assert complaint in caught.value.message


def test_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "opcache").mkdir(mode=0o755)
    (tmp_path / "opcache/index.html").touch()

    with pytest.raises(LmsError, match=r"has mode 0755 and holds files of others"):
        act(Fpm(), tmp_path, "status")


def test_link_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "opcache").symlink_to("real")

    with pytest.raises(LmsError, match=r"is not a directory of the user that runs this"):
        act(Fpm(), tmp_path, "status")


def test_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LmsError, match=r"cannot be made"):
        prepare_directory(tmp_path / "none" / "opcache", GROUP)


def test_directory_that_was_left_half_made_is_finished(tmp_path: Path) -> None:
    (tmp_path / "opcache").mkdir(mode=0o700)

    act(Fpm(), tmp_path, "status")

    assert stat.S_IMODE((tmp_path / "opcache").stat().st_mode) == 0o710


def test_group_is_a_name_or_a_number() -> None:
    assert (group_number("0"), group_number("root")) == (0, 0)
    with pytest.raises(LmsError, match=r"There is no group nosuchgroup. Set group to"):
        group_number("nosuchgroup")


@pytest.mark.parametrize(
    ("action", "paths", "complaint"),
    [
        ("invalidate", [], "action invalidate needs paths."),
        ("warm", ["app"], "paths holds 'app'; it must be an absolute path."),
        ("warm", ["/nowhere/at/all"], "There is no file or directory /nowhere/at/all"),
    ],
)
def test_wrong_paths_are_named(tmp_path: Path, action: str, paths: list[str], complaint: str) -> None:
    with pytest.raises(LmsError) as caught:
        act(Fpm(), tmp_path, action, *paths)

    assert complaint in caught.value.message
