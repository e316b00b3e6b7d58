# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run artisan in a release."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._artisan_parsers import (
    SyntaxProblem,
    error_message,
    parse_command_list,
    parse_lint,
    parse_unknown_command,
    parse_unknown_option,
    parse_version,
    parse_version_constant,
    split_by_marks,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError

RunCommand = Callable[..., "tuple[int, str, str]"]

# Wide, so that Laravel wraps no message; in C.UTF-8, so that it draws the same characters everywhere.
PARSED_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "COLUMNS": "4000"}
# Variables of Laravel whose values are no secrets: hiding them would only blacken results and messages.
PUBLIC_VARIABLES = frozenset(
    {
        "APP_CONFIG_CACHE",
        "APP_DEBUG",
        "APP_ENV",
        "APP_EVENTS_CACHE",
        "APP_ROUTES_CACHE",
        "CACHE_DRIVER",
        "CACHE_STORE",
        "DB_CONNECTION",
        "DB_DATABASE",
        "DB_HOST",
        "DB_PORT",
        "LOG_CHANNEL",
        "QUEUE_CONNECTION",
        "SESSION_DRIVER",
        "VIEW_COMPILED_PATH",
    }
)
VERSION_FILES = (
    "vendor/laravel/framework/src/Illuminate/Foundation/Application.php",
    "vendor/laravel/framework/Foundation/Application.php",
)
TIMED_OUT = (124, 137)
# What timeout says of a program that it cannot run, and what setpriv says.
CANNOT_RUN = re.compile(r"failed to (run command|execute)")
LINT_CHUNK = 400

# Does for each command what the file artisan of an application does once. Before and after each it writes a mark to both streams.
MANY_COMMANDS = """
define('LARAVEL_START', microtime(true));
require 'vendor/autoload.php';
$application = require 'bootstrap/app.php';
$kernel = $application->make(Illuminate\\Contracts\\Console\\Kernel::class);
$mark = function (string $text) use ($argv) {
    foreach ([STDOUT, STDERR] as $stream) {
        fwrite($stream, "\\n" . $argv[1] . $text . "\\n");
    }
};
foreach (array_slice($argv, 2) as $command) {
    $mark("begin");
    $input = new Symfony\\Component\\Console\\Input\\ArgvInput(['artisan', '--no-interaction', '--no-ansi', $command]);
    $status = $kernel->handle($input, new Symfony\\Component\\Console\\Output\\ConsoleOutput());
    $mark("end $status");
    if ($status !== 0) {
        break;
    }
}
$kernel->terminate($input, $status);
exit($status);
"""

# The configuration cache holds every secret of .env: what artisan writes is for its user and group alone.
PRIVATE_UMASK = 0o027


def artisan_argspec() -> dict[str, dict[str, Any]]:
    """Return the options of the documentation fragment artisan."""
    return {
        "chdir": {"type": "path", "required": True},
        "php": {"type": "str", "default": "php"},
        "environment": {"type": "dict", "default": {}, "no_log": True},
        "timeout": {"type": "int", "default": 300},
    }


def as_user(user: str | None, group: str | None) -> tuple[str, ...]:
    """Return what goes before a command, so that root runs it as another user."""
    if not user or os.geteuid() != 0:
        return ()
    return ("setpriv", f"--reuid={user}", f"--regid={group or user}", "--init-groups", "--")


class MissingReleaseError(LmsError):
    """The directory of the release is not there."""


@dataclass(frozen=True)
class CommandResult:
    """One artisan command that ended."""

    command: str
    argv: list[str]
    rc: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """Return everything that was printed."""
        return f"{self.stdout}\n{self.stderr}"

    def as_details(self) -> dict[str, Any]:
        """Return the fields of an error or of a result."""
        return asdict(self)


def environment_text(value: Any) -> str:
    """Return a value of the environment as PHP's env() reads it back."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def public_values(environment: Mapping[str, Any]) -> set[str]:
    """Return the values that need no hiding: those of known variables, unless a variable that may be secret has the same one."""
    values = {name: str(value) for name, value in environment.items()}
    hidden = {value for name, value in values.items() if name not in PUBLIC_VARIABLES}
    return {value for name, value in values.items() if name in PUBLIC_VARIABLES} - hidden


class Artisan:
    """The artisan program of one release."""

    def __init__(
        self,
        run_command: RunCommand,
        chdir: str,
        php: str = "php",
        environment: Mapping[str, Any] | None = None,
        timeout: int = 300,
        prefix: Sequence[str] = (),
    ) -> None:
        self.run_command = run_command
        self.prefix = list(prefix)
        self.directory = Path(chdir)
        self.php = php
        self.environment = {name: environment_text(value) for name, value in (environment or {}).items()}
        self.timeout = timeout
        self._version: str | None = None

    def check(self) -> None:
        """Make sure that the release is there and holds artisan."""
        if self.timeout < 1:
            raise LmsError(f"timeout is {self.timeout}; it must be at least 1 second.")
        if not self.directory.is_dir():
            raise MissingReleaseError(f"There is no directory {self.directory}. Set chdir to a release that exists.")
        if not (self.directory / "artisan").is_file():
            raise LmsError(f"There is no artisan in {self.directory}. Set chdir to the release: the directory that holds the file artisan.")

    def run(self, command: str, arguments: Sequence[str] = ()) -> CommandResult:
        """Run one command and return how it ended, whatever its status; only a timeout or a missing php raises."""
        argv = [self.php, "artisan", "--no-interaction", "--no-ansi", command, *arguments]
        return self._ended(CommandResult(command, argv, *self._execute(argv)))

    def _ended(self, result: CommandResult) -> CommandResult:
        """Return how a command ended, unless it was stopped or PHP could not be run."""
        if result.rc in TIMED_OUT:
            raise CommandError(
                f"artisan {result.command} did not end within {self.timeout} seconds and was stopped. "
                "Raise timeout, or find what it waits for.",
                **result.as_details(),
            )
        if result.rc in (126, 127) and CANNOT_RUN.search(result.stderr):
            raise CommandError(
                f"php cannot be run as {self.php}. Set php to the name or path of PHP's command line.", **result.as_details()
            )
        return result

    def starts_as_usual(self) -> bool:
        """Say whether the release has what the file artisan of every Laravel application starts from."""
        return all((self.directory / name).is_file() for name in ("vendor/autoload.php", "bootstrap/app.php"))

    def run_together(self, commands: Sequence[str]) -> list[CommandResult]:
        """Run commands one after the other in one start of Laravel, up to the first that fails; return those that began."""
        mark = f"{secrets.token_hex(8)} "
        rc, stdout, stderr = self._execute([self.php, "-r", MANY_COMMANDS, "--", mark, *commands], self.timeout * len(commands))
        printed, complained = (split_by_marks(text, mark) for text in (stdout, stderr))
        # PHP may not even have come to the first one.
        begun = list(zip(printed, complained)) or [((None, stdout), (None, stderr))]
        results = []
        for number, (command, ((status, out), (_status, err))) in enumerate(zip(commands, begun), start=1):
            argv = [self.php, "artisan", "--no-interaction", "--no-ansi", command]
            ended = rc if status is None or number == len(begun) else status
            results.append(self._ended(CommandResult(command, argv, ended, out, err)))
        return results

    def expect(self, command: str, arguments: Sequence[str] = ()) -> CommandResult:
        """Run one command and raise when it fails."""
        result = self.run(command, arguments)
        if result.rc != 0:
            raise self.failure(result)
        return result

    def failure(self, result: CommandResult) -> CommandError:
        """Return the error that says why a command failed."""
        if "vendor/autoload.php" in result.output and result.rc == 255:
            message = f"The release {self.directory} has no vendor/autoload.php. Install its Composer packages first."
            return CommandError(message, **result.as_details())
        unknown = parse_unknown_command(result.output)
        if unknown:
            similar = f" Similar: {', '.join(unknown.similar)}." if unknown.similar else ""
            return CommandError(f"{self.laravel()} in {self.directory} has no command {result.command}.{similar}", **result.as_details())
        option = parse_unknown_option(result.output)
        if option:
            message = f"artisan {result.command} of {self.laravel()} in {self.directory} has no option {option}."
            return CommandError(message, **result.as_details())
        reason = error_message(result.stdout, result.stderr)
        message = f"artisan {result.command} ended with status {result.rc}" + (f": {reason}" if reason else ".")
        return CommandError(message, **result.as_details())

    def commands(self) -> dict[str, set[str]]:
        """Return the commands of this release with the names of their options; costs one start of Laravel."""
        return parse_command_list(self.expect("list", ["--format=json"]).stdout)

    def version(self) -> str | None:
        """Return Laravel's version, read from its source: no start of Laravel."""
        if self._version is None:
            for name in VERSION_FILES:
                path = self.directory / name
                if path.is_file():
                    self._version = parse_version_constant(path.read_text(encoding="utf-8", errors="replace"))
                    break
        return self._version

    def require_version(self) -> str:
        """Return Laravel's version; ask artisan when its source does not tell."""
        if self.version() is None:
            self._version = parse_version(self.expect("--version").stdout)
        if self._version is None:
            raise LmsError(f"artisan in {self.directory} does not tell its version, so version_min and version_max cannot be judged.")
        return self._version

    def laravel(self) -> str:
        """Return the framework's name for a sentence."""
        version = self.version()
        return f"Laravel {version}" if version else "Laravel"

    def lint(self, paths: Sequence[Path]) -> list[SyntaxProblem]:
        """Return the files that PHP cannot parse."""
        problems: list[SyntaxProblem] = []
        names = [str(path) for path in paths]
        for start in range(0, len(names), LINT_CHUNK):
            problems += self._lint_chunk(names[start : start + LINT_CHUNK])
        return problems

    def _lint_chunk(self, names: list[str]) -> list[SyntaxProblem]:
        """Lint some files at once; PHP before 8.3 reads only the first of them, so the others go one by one."""
        remaining = names
        problems: list[SyntaxProblem] = []
        while remaining:
            argv = [self.php, "-d", "log_errors=0", "-d", "display_errors=stderr", "-l", *remaining]
            rc, stdout, stderr = self._execute(argv)
            good, bad = parse_lint(stdout, stderr)
            problems += bad
            judged = good | {problem.path for problem in bad}
            if not judged:
                raise CommandError(f"php -l gave no verdict on {remaining[0]}.", argv=argv[:7], rc=rc, stdout=stdout, stderr=stderr)
            remaining = [name for name in remaining if name not in judged]
        return problems

    def ownership_warning(self, user_id: int | None = None) -> str | None:
        """Return a warning when root runs the artisan of another user: files that it leaves shut the application out."""
        user_id = os.geteuid() if user_id is None else user_id
        if user_id != 0 or self.prefix:
            return None
        try:
            owner = (self.directory / "artisan").stat().st_uid
        except OSError:
            return None
        if owner == 0:
            return None
        return (
            f"artisan in {self.directory} runs as root, but belongs to user id {owner}: set become_user, so that its files stay readable."
        )

    def _execute(self, argv: list[str], timeout: int = 0) -> tuple[int, str, str]:
        """Run a program in the release, stopped after the timeout."""
        limited = [*self.prefix, "timeout", "--kill-after=10", str(timeout or self.timeout), *argv]
        return self.run_command(
            limited,
            cwd=str(self.directory),
            environ_update={**self.environment, **PARSED_ENVIRONMENT},
            expand_user_and_vars=False,
            umask=PRIVATE_UMASK,
        )
