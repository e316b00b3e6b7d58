# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read and change the OPcache of a running PHP-FPM: it is only reachable from inside, so a script asks there."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._fastcgi import FastcgiError, Response, call, script_params

Call = Callable[..., Response]

BATCH = 500
NOT_CACHED_SHOWN = 100
DIRECTORY_MODE = 0o710
SCRIPT_MODE = 0o640
# OPcache does not keep files younger than opcache.file_update_protection: one from the future never gets in.
ALWAYS_YOUNG = 24 * 3600

SCRIPT = r"""<?php
header('Content-Type: application/json');
ini_set('display_errors', '0');
@set_time_limit(0);

function unavailable(): ?string
{
    if (!extension_loaded('Zend OPcache')) {
        return 'the extension OPcache is not loaded';
    }
    foreach (['opcache_get_status', 'opcache_reset', 'opcache_invalidate', 'opcache_compile_file', 'opcache_is_script_cached'] as $name) {
        if (!function_exists($name)) {
            return "disable_functions holds $name";
        }
    }
    if (!filter_var(ini_get('opcache.enable'), FILTER_VALIDATE_BOOLEAN)) {
        return 'opcache.enable is off';
    }
    if (@opcache_get_status(false) === false) {
        return ini_get('opcache.restrict_api') !== '' ? 'opcache.restrict_api keeps scripts outside of it away' : 'OPcache gives no status';
    }
    return null;
}

function lies_in(string $file, array $paths): bool
{
    foreach ($paths as $path) {
        if ($file === $path || strncmp($file, rtrim($path, '/') . '/', strlen(rtrim($path, '/')) + 1) === 0) {
            return true;
        }
    }
    return false;
}

function invalidate(array $paths, bool $check): int
{
    $all = array_unique(array_merge($paths, array_filter(array_map('realpath', $paths))));
    $count = 0;
    foreach (opcache_get_status(true)['scripts'] ?? [] as $file => $entry) {
        $valid = isset($entry['timestamp']) ? $entry['timestamp'] !== 0 : opcache_is_script_cached($file);
        if ($valid && lies_in($file, $all)) {
            $count += $check || opcache_invalidate($file, true) ? 1 : 0;
        }
    }
    return $count;
}

function warm(array $files, bool $check): array
{
    $count = 0;
    $missed = [];
    foreach ($files as $file) {
        if (opcache_is_script_cached($file)) {
            continue;
        }
        if ($check) {
            $count++;
            continue;
        }
        try {
            @opcache_compile_file($file);
        } catch (Throwable $error) {
        }
        if (opcache_is_script_cached($file)) {
            $count++;
        } else {
            $missed[] = $file;
        }
    }
    return [$count, $missed];
}

$request = json_decode(file_get_contents('php://input'), true);
$answer = ['unavailable' => unavailable(), 'count' => 0, 'not_cached' => [], 'status' => null, 'protection' => 0];
if ($answer['unavailable'] === null) {
    switch ($request['action']) {
        case 'reset':
            $answer['count'] = $request['check'] || opcache_reset() ? 1 : 0;
            break;
        case 'invalidate':
            $answer['count'] = invalidate($request['paths'], $request['check']);
            break;
        case 'warm':
            [$answer['count'], $answer['not_cached']] = warm($request['paths'], $request['check']);
            break;
    }
    $answer['status'] = opcache_get_status(false);
    $answer['protection'] = (int) ini_get('opcache.file_update_protection');
}
echo json_encode($answer, JSON_INVALID_UTF8_SUBSTITUTE);
"""


def group_number(group: str) -> int:
    """Return the number of a group that is given by name or number."""
    try:
        return int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise LmsError(f"There is no group {group}. Set group to the group of the PHP-FPM pool's user.") from error


def prepare_directory(path: Path, group: int) -> None:
    """Make the directory that only we may write and only the group may enter; refuse one that serves something else."""
    with contextlib.suppress(FileExistsError):
        try:
            path.mkdir(mode=0o700)
        except OSError as error:
            if isinstance(error, FileExistsError):
                raise
            raise LmsError(
                f"The directory {path} cannot be made: {error.strerror}. Set directory to a place that this user may write."
            ) from error
    status = path.lstat()
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise LmsError(f"{path} is not a directory of the user that runs this. Set directory to a place of its own.")
    if mode == DIRECTORY_MODE and status.st_gid == group:
        return
    if any(path.iterdir()):
        raise LmsError(f"The directory {path} has mode {mode:04o} and holds files of others. Set directory to a place of its own.")
    try:
        os.chown(path, -1, group)
    except PermissionError as error:
        raise LmsError(f"The group of {path} cannot be set to {group}. Run the task as root.") from error
    path.chmod(DIRECTORY_MODE)


@contextlib.contextmanager
def temporary_script(directory: Path, group: int, now: float) -> Iterator[Path]:
    """Write the script under a name that nobody can guess, readable for the group only, and remove it in any case."""
    prepare_directory(directory, group)
    path = directory / f"opcache-{secrets.token_hex(16)}.php"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(SCRIPT)
            file.flush()
            os.fchown(file.fileno(), -1, group)
            os.fchmod(file.fileno(), SCRIPT_MODE)
        os.utime(path, (now + ALWAYS_YOUNG, now + ALWAYS_YOUNG))
        yield path
    finally:
        path.unlink(missing_ok=True)


class Opcache:
    """The OPcache of the PHP-FPM behind one socket, asked through a script that lies ready."""

    def __init__(self, socket: str, script: Path, timeout: float = 30, make_call: Call = call) -> None:
        self.socket = socket
        self.script = script
        self.timeout = timeout
        self.make_call = make_call

    def ask(self, action: str, paths: Sequence[str] = (), check: bool = False) -> dict[str, Any]:
        """Run one action and return the script's answer."""
        body = json.dumps({"action": action, "paths": list(paths), "check": check}).encode()
        params = script_params(
            str(self.script),
            str(self.script.parent),
            f"/{self.script.name}",
            method="POST",
            content_length=len(body),
            content_type="application/json",
        )
        response = self.make_call(self.socket, params, body, timeout=self.timeout)
        try:
            answer = json.loads(response.body)
        except ValueError:
            answer = None
        if response.status != 200 or not isinstance(answer, dict):
            raise LmsError(
                self.explain(response), status=response.status, body=response.body[:2000].decode("utf-8", "replace"), stderr=response.stderr
            )
        return answer

    def explain(self, response: Response) -> str:
        """Return why the script gave no answer."""
        directory = self.script.parent
        if "open_basedir" in response.stderr:
            return f"open_basedir of the pool on {self.socket} shuts out {directory}. Add it there, or set directory to a place inside."
        if "Primary script unknown" in response.stderr or response.status in (403, 404):
            return (
                f"PHP-FPM on {self.socket} cannot read a script in {directory}. Set group to the group of the pool's user, "
                "and directory to a place that the user may reach."
            )
        return f"The script that asks OPcache on {self.socket} ended with status {response.status}. Read the PHP-FPM log."

    def status(self) -> dict[str, Any]:
        """Return the state of the cache."""
        return self.ask("status")

    def invalidate(self, paths: Sequence[str], check: bool) -> dict[str, Any]:
        """Drop the scripts that are, or lie under, the paths."""
        return self.ask("invalidate", paths, check)

    def warm(self, files: Sequence[str], check: bool) -> dict[str, Any]:
        """Compile files into the cache, a batch a request, and return the last answer with the sums."""
        count = 0
        not_cached: list[str] = []
        answer = self.status()
        for start in range(0, len(files), BATCH):
            if answer["unavailable"] is not None:
                break
            answer = self.ask("warm", files[start : start + BATCH], check)
            count += answer["count"]
            not_cached += answer["not_cached"]
        return {**answer, "count": count, "not_cached": not_cached}

    def reset(self, check: bool) -> dict[str, Any]:
        """Empty the cache, and prove that it was or will be emptied."""
        before = self.status()
        if before["unavailable"] is not None:
            return before
        asked = self.ask("reset", check=check)
        if check:
            return asked
        # The cache is emptied at the start of the next request, once no request runs any more.
        after = self.status()
        restarted = after["status"]["opcache_statistics"]["manual_restarts"] > before["status"]["opcache_statistics"]["manual_restarts"]
        if not restarted and not is_restarting(after["status"]):
            raise LmsError(f"OPcache on {self.socket} was told to reset and did not. Read the PHP-FPM log.")
        return {**after, "count": asked["count"]}


def is_restarting(status: Mapping[str, Any]) -> bool:
    """Tell whether the cache waits for running requests before it empties itself."""
    return bool(status["restart_pending"] or status["restart_in_progress"])


def php_files(paths: Iterable[str]) -> list[Path]:
    """Return the PHP files that are, or lie under, the paths."""
    found: set[Path] = set()
    for name in paths:
        path = Path(name)
        if path.is_dir():
            found.update(file for file in path.rglob("*.php") if file.is_file())
        elif path.is_file():
            found.add(path)
        else:
            raise LmsError(f"There is no file or directory {name}, which paths names.")
    return sorted(found)


def seconds_until_cacheable(files: Sequence[Path], protection: int, now: float) -> float:
    """Return how long to wait until OPcache keeps the youngest file."""
    newest = max((path.stat().st_mtime for path in files), default=0.0)
    return min(max(newest + protection - now, 0.0), float(protection))


def act(
    opcache: Opcache,
    action: str,
    paths: Sequence[str],
    check_mode: bool,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.time,
) -> dict[str, Any]:
    """Carry out the action and return the module's result."""
    if action == "status":
        return build_result(action, opcache.status(), check_mode)
    if action == "reset":
        return build_result(action, opcache.reset(check_mode), check_mode)
    if action == "invalidate":
        return build_result(action, opcache.invalidate(paths, check_mode), check_mode)
    files = php_files(paths)
    state = opcache.status()
    if state["unavailable"] is None and not check_mode:
        wait = seconds_until_cacheable(files, state["protection"], now())
        if wait > 0:
            sleep(wait + 1)
    return build_result(action, opcache.warm([str(file) for file in files], check_mode), check_mode)


def build_result(action: str, answer: Mapping[str, Any], check_mode: bool) -> dict[str, Any]:
    """Return the module's result with the same keys in every mode."""
    unavailable = answer["unavailable"]
    status = answer["status"] or {}
    count = answer["count"]
    not_cached = sorted(answer["not_cached"])
    warnings = []
    if unavailable is not None and action != "status":
        warnings.append(f"OPcache cannot be used in this pool, so {action} did nothing: {unavailable}.")
    if not_cached:
        warnings.append(f"{len(not_cached)} files were not taken into OPcache, the first of them {not_cached[0]}.")
    if status.get("cache_full"):
        warnings.append("OPcache is full: PHP compiles every further file at each request. Reset it, or raise opcache.memory_consumption.")
    return {
        "changed": count > 0,
        "action": action,
        "enabled": unavailable is None,
        "reason": f"OPcache cannot be used in this pool: {unavailable}." if unavailable is not None else "",
        "full": bool(status.get("cache_full")),
        "restart_pending": bool(status) and is_restarting(status),
        "cached_scripts": status.get("opcache_statistics", {}).get("num_cached_scripts", 0),
        "invalidated": count if action == "invalidate" and not check_mode else 0,
        "warmed": count if action == "warm" and not check_mode else 0,
        "not_cached": not_cached[:NOT_CACHED_SHOWN],
        "memory": build_memory(status.get("memory_usage", {})),
        "statistics": build_statistics(status.get("opcache_statistics", {})),
        "warnings": warnings,
    }


def build_memory(usage: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes in bytes."""
    return {name: int(usage.get(f"{name}_memory", 0)) for name in ("free", "used", "wasted")}


def build_statistics(statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counters that tell whether the cache does its work."""
    counters = {name: int(statistics.get(name, 0)) for name in ("hash_restarts", "hits", "manual_restarts", "misses", "oom_restarts")}
    keys = {"cached_keys": int(statistics.get("num_cached_keys", 0)), "max_cached_keys": int(statistics.get("max_cached_keys", 0))}
    return {**counters, **keys, "hit_rate": round(float(statistics.get("opcache_hit_rate", 0)), 2)}


def run(
    params: Mapping[str, Any],
    check_mode: bool,
    make_call: Call = call,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Lay the script ready, act through it, and remove it."""
    if params["action"] in ("invalidate", "warm") and not params["paths"]:
        raise LmsError(f"action {params['action']} needs paths.")
    for path in params["paths"]:
        if not path.startswith("/"):
            raise LmsError(f"paths holds {path!r}; it must be an absolute path.")
    try:
        group = group_number(params["group"])
        with temporary_script(Path(params["directory"]), group, time.time()) as script:
            return act(
                Opcache(params["socket"], script, params["timeout"], make_call), params["action"], params["paths"], check_mode, sleep
            )
    except FastcgiError as error:
        if check_mode and error.reason == "connect":
            return skipped_result(params["action"], error.message)
        raise


def skipped_result(action: str, reason: str) -> dict[str, Any]:
    """Return the result of check mode on a host that has no PHP-FPM yet."""
    answer: dict[str, Any] = {"unavailable": None, "status": None, "count": 0, "not_cached": []}
    return {**build_result(action, answer, True), "enabled": False, "skipped": True, "reason": reason}
