# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Maintenance mode of a Laravel application: what it is, what it should be, and the way there without a moment of neither.

Laravel's own command down makes the payload, in a rehearsal away from the application's files. So its except list, its rendered page
and what else a version puts there are right; the secret is in no command line; an application that is down stays down while its payload
changes; and check mode knows the payload without writing it.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._artisan import PARSED_ENVIRONMENT, PRIVATE_UMASK, TIMED_OUT, Artisan
from ansible_collections.bitflow.lms.plugins.module_utils._artisan_parsers import error_message
from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError

# The first Laravel that has each option of down, for the reason of a skip.
OPTION_SINCE = {"secret": "8.0", "render": "8.0", "retry": "5.0", "refresh": "8.42", "status": "8.0", "redirect": "8.0"}
SECRET = re.compile(r"^[A-Za-z0-9._~-]{8,}$")
_ANSWER = re.compile(r"^lms-maintenance:(?P<answer>[A-Za-z0-9+/=]+)$", re.MULTILINE)

# Runs in the release; its standard input, so that nothing of the request is in a command line or a file.
PROGRAM = r"""<?php
$request = json_decode(base64_decode('@REQUEST@'), true);
require getcwd() . '/vendor/autoload.php';
$app = require getcwd() . '/bootstrap/app.php';
$kernel = $app->make(Illuminate\Contracts\Console\Kernel::class);
$kernel->bootstrap();

// Laravel 8 knows no drivers: there is the file.
$driver = method_exists($app, 'maintenanceMode') ? $app['config']->get('app.maintenance.driver', 'file') : 'file';
$directory = $app->storagePath() . '/framework';

$read = function () use ($app, $driver, $directory) {
    if ($driver !== 'file') {
        return $app->maintenanceMode()->active() ? $app->maintenanceMode()->data() : null;
    }
    return is_file("$directory/down") ? (json_decode(file_get_contents("$directory/down"), true) ?: []) : null;
};

$write = function (string $name, string $content) use ($directory) {
    $temporary = "$directory/.$name." . getmypid();
    file_put_contents($temporary, $content);
    @chown($temporary, fileowner($directory));
    @chgrp($temporary, filegroup($directory));
    if (! rename($temporary, "$directory/$name")) {
        throw new RuntimeException("$directory/$name cannot be written.");
    }
};

$rehearse = function (array $options) use ($app, $kernel) {
    $scratch = sys_get_temp_dir() . '/lms-maintenance-' . bin2hex(random_bytes(8));
    foreach ([$scratch, "$scratch/framework", "$scratch/views"] as $made) {
        mkdir($made, 0700);
    }
    try {
        $app->useStoragePath($scratch);
        $app['config']->set(['app.maintenance.driver' => 'file', 'view.compiled' => "$scratch/views"]);
        $app->instance('events', new Illuminate\Events\NullDispatcher(new Illuminate\Events\Dispatcher($app)));
        $kernel->call('down', $options);
        if (! is_file("$scratch/framework/down")) {
            throw new RuntimeException(trim($kernel->output()) ?: 'The command down left nothing.');
        }
        return [json_decode(file_get_contents("$scratch/framework/down"), true), file_get_contents("$scratch/framework/maintenance.php")];
    } finally {
        array_map('unlink', glob("$scratch/*/*"));
        array_map('rmdir', ["$scratch/framework", "$scratch/views", $scratch]);
    }
};

$work = function (array $request) use ($app, $kernel, $driver, $read, $write, $rehearse) {
    $answer = ['driver' => $driver, 'before' => $read(), 'missing' => [], 'wanted' => null, 'page' => null, 'after' => null];
    if ($request['action'] === 'look' && $request['options'] !== null) {
        $definition = $kernel->all()['down']->getDefinition();
        $options = [];
        foreach ($request['options'] as $name => $value) {
            if ($definition->hasOption($name)) {
                $options["--$name"] = $value;
            } else {
                $answer['missing'][] = $name;
            }
        }
        [$answer['wanted'], $answer['page']] = $rehearse($options);
    }
    if ($request['action'] === 'down') {
        // The page first: it does nothing while the other file is not there.
        $write('maintenance.php', $request['page']);
        if ($driver === 'file') {
            $write('down', json_encode($request['payload'], JSON_PRETTY_PRINT));
        } else {
            $app->maintenanceMode()->activate($request['payload']);
        }
        if ($answer['before'] === null && class_exists(Illuminate\Foundation\Events\MaintenanceModeEnabled::class)) {
            $app['events']->dispatch(new Illuminate\Foundation\Events\MaintenanceModeEnabled());
        }
    }
    if ($request['action'] === 'up') {
        $kernel->call('up');
    }
    $answer['after'] = $read();
    return $answer;
};

// Laravel's own handler would print the exception and end with status 0.
try {
    $answer = $work($request);
} catch (Throwable $error) {
    $answer = ['error' => $error->getMessage()];
}
echo "\nlms-maintenance:", base64_encode(json_encode($answer)), "\n";
"""


@dataclass(frozen=True)
class Look:
    """What an application's maintenance mode is, and what it should become."""

    driver: str
    payload: dict[str, Any] | None
    wanted: dict[str, Any] | None
    page: str | None
    missing: tuple[str, ...] = ()


def down_options(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the options of artisan down that are asked for."""
    secret = params["secret"]
    if secret is not None and not SECRET.match(secret):
        raise LmsError("secret must have at least 8 characters, each a letter, a digit or one of . _ ~ -, since it becomes an address.")
    for name in ("retry", "refresh"):
        if params[name] is not None and params[name] < 1:
            raise LmsError(f"{name} is {params[name]}; it must be at least 1 second.")
    return {name: str(params[name]) for name in sorted(OPTION_SINCE) if params[name] is not None}


def missing_options(look: Look, artisan: Artisan) -> list[dict[str, str]]:
    """Return the options that this Laravel does not know, and since when one does."""
    return [
        {"what": name, "reason": f"artisan down of {artisan.laravel()} has no option --{name}; Laravel {OPTION_SINCE[name]} brought it."}
        for name in look.missing
    ]


def check_excepted(look: Look, paths: Sequence[str], directory: Path) -> None:
    """Raise when a path that must answer during maintenance would not."""
    patterns = [str(pattern).strip("/") or "/" for pattern in (look.wanted or {}).get("except") or []]
    closed = [path for path in paths if not any(fnmatch.fnmatchcase(path.strip("/") or "/", pattern) for pattern in patterns)]
    if closed:
        raise LmsError(
            f"{', '.join(closed)} would answer 503 during maintenance of {directory}, so that a load balancer takes the host out. "
            "Except it in the application: $except of App\\Http\\Middleware\\PreventRequestsDuringMaintenance, or since Laravel 11 "
            "preventRequestsDuringMaintenance(except: [...]) in bootstrap/app.php.",
            excepted=patterns,
        )


class Maintenance:
    """The maintenance mode of one release, or of all where the cache keeps it."""

    def __init__(self, artisan: Artisan) -> None:
        self.artisan = artisan

    def look(self, options: Mapping[str, str] | None) -> Look:
        """Return what is, and with options what would be."""
        answer = self._run("look", options=options)
        return Look(answer["driver"], answer["before"], answer["wanted"], answer["page"], tuple(answer["missing"]))

    def take_down(self, look: Look) -> None:
        """Put the payload in place, and make sure that it is."""
        after = self._run("down", payload=look.wanted, page=look.page)["after"]
        if after != look.wanted:
            raise LmsError(f"{self.artisan.directory} is not down as it should be: its {look.driver} driver gives another payload back.")

    def bring_up(self, look: Look) -> None:
        """End the maintenance, and make sure that it ended."""
        after = self._run("up")["after"]
        if after is not None:
            raise LmsError(f"artisan up left {self.artisan.directory} down: its {look.driver} driver still says so.")

    def _run(self, action: str, **request: Any) -> dict[str, Any]:
        """Run the program in the release and return its answer."""
        encoded = base64.b64encode(json.dumps({"action": action, "options": None, **request}).encode()).decode()
        argv = ["timeout", "--kill-after=10", str(self.artisan.timeout), self.artisan.php, "-d", "display_errors=stderr"]
        rc, stdout, stderr = self.artisan.run_command(
            argv,
            data=PROGRAM.replace("@REQUEST@", encoded),
            cwd=str(self.artisan.directory),
            environ_update={**self.artisan.environment, **PARSED_ENVIRONMENT},
            expand_user_and_vars=False,
            umask=PRIVATE_UMASK,
        )
        if rc in TIMED_OUT:
            raise CommandError(f"Laravel in {self.artisan.directory} did not answer within {self.artisan.timeout} s.", rc=rc)
        answer = _ANSWER.search(stdout)
        if rc != 0 or answer is None:
            reason = _uncaught(stderr) or error_message(stdout, stderr) or f"PHP ended with status {rc}."
            raise CommandError(f"Maintenance of {self.artisan.directory} failed: {reason}", rc=rc)
        try:
            decoded = json.loads(base64.b64decode(answer["answer"]))
        except (ValueError, binascii.Error) as error:
            raise CommandError(f"Laravel in {self.artisan.directory} gave an answer that is not understood.", rc=rc) from error
        if "error" in decoded:
            raise CommandError(f"Maintenance of {self.artisan.directory} failed: {' '.join(decoded['error'].split())}", rc=rc)
        return dict(decoded)


_UNCAUGHT = re.compile(r"Uncaught [\w\\]+: (?P<message>.+?)(?: in \S+:\d+)?$", re.MULTILINE)


def _uncaught(stderr: str) -> str | None:
    """Return the message of an exception that PHP ended with."""
    match = _UNCAUGHT.search(stderr)
    return match["message"] if match else None


def shown_payload(payload: Mapping[str, Any] | None, other: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a payload without its secret, and its page as a sum; a secret that differs from the other one's is told apart."""
    if payload is None:
        return {"active": False}
    shown = {"active": True, **payload}
    if payload.get("secret") is not None:
        before = (other or {}).get("secret")
        shown["secret"] = "another one" if before is not None and before != payload["secret"] else "set"
    if payload.get("template") is not None:
        shown["template"] = f"sha256 {hashlib.sha256(str(payload['template']).encode()).hexdigest()[:16]}"
    return dict(sorted(shown.items()))
