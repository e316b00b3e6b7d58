# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command-line clients of MariaDB and MySQL: which are installed, how they are started, and a session that one of them holds."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._database import DatabaseError, Login
from ansible_collections.bitflow.lms.plugins.module_utils._database_session import ClientSession
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._memory_file import MemoryFile
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import PIECE, Stage

# The client and the dump program under both names. Debian's MariaDB brings those of MySQL too, as other names of its own.
PROGRAMS = (("mariadb", "mariadb-dump"), ("mysql", "mysqldump"))
# The largest that servers and clients allow (bytes): a row that was stored has to fit through.
LARGEST_PACKET = 1024 * 1024 * 1024
SAID_KEPT = 65536

ACCESS_DENIED = 1045
NO_TLS = 2026
UNKNOWN_DATABASE = 1049
DATABASE_EXISTS = 1007
LOCK_TIMED_OUT = 1205
NO_SUCH_TABLE = 1146
INVALID_VIEW = 1356
# Missing privileges: for a database, a table, a global one, a table command, a routine.
FORBIDDEN = (1044, 1142, 1227, 1370, 1143)
# The server is not there any more, or ended the session.
_LOST = (1053, 1927, 2006, 2013, 2055, 4031)

_ERROR = re.compile(r"^ERROR (?P<code>\d+)(?: \(\w+\))?(?: at line \d+)?: (?P<text>.*)$", re.MULTILINE)
_PROGRAM_VERSION = re.compile(r"(?:from |Distrib |Ver )(\d+\.\d+(?:\.\d+)?)")
_ESCAPED = re.compile(r"\\([ntr0\\])")
_UNESCAPED = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\"}
_MYSQL_MODES = {
    "disable": "DISABLED",
    "allow": "PREFERRED",
    "prefer": "PREFERRED",
    "require": "REQUIRED",
    "verify-ca": "VERIFY_CA",
    "verify-full": "VERIFY_IDENTITY",
}


class StatementError(DatabaseError):
    """A statement that the server refused."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code=code)
        self.code = code


@dataclass(frozen=True)
class Programs:
    """A client and its dump program, of one flavour and version."""

    # mariadb or mysql
    flavour: str
    client: str
    dump: str
    version: str


def identifier(name: str) -> str:
    """Return a name as SQL has it."""
    return "`" + name.replace("`", "``") + "`"


def literal(text: str) -> str:
    """Return a string as SQL has it (with backslash escapes, as the sessions here have them)."""
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def option_value(text: str) -> str:
    """Return a value as option files have it: quoted, so that spaces, quotes and # are themselves."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def tls_options(flavour: str, ssl_mode: str, ca_cert: str) -> list[list[str]]:
    """Return the options of a client for a mode, or several that are tried one after the other."""
    authority = [f"--ssl-ca={ca_cert}"] if ca_cert else []
    if flavour == "mysql":
        # Without TLS a password is only sent under the server's key, for which the client has to ask.
        key = ["--get-server-public-key"] if ssl_mode == "disable" else []
        return [[f"--ssl-mode={_MYSQL_MODES[ssl_mode]}", *authority, *key]]
    # MariaDB's client knows neither a preference nor an authority without the host's name.
    plain, secure = ["--skip-ssl"], ["--ssl", "--skip-ssl-verify-server-cert", *authority]
    return {
        "disable": [plain],
        "allow": [plain, secure],
        "prefer": [secure, plain],
        "require": [secure],
    }.get(ssl_mode, [["--ssl", "--ssl-verify-server-cert", *authority]])


def program_version(said: str) -> tuple[str, str]:
    """Return flavour and version from what a program prints for --version."""
    found = _PROGRAM_VERSION.findall(said)
    # MariaDB's older clients name their own version first, and then the one of the distribution.
    return ("mariadb" if "MariaDB" in said else "mysql"), (found[-1] if found else "")


def installed_programs() -> dict[str, Programs]:
    """Return the clients of this host by flavour."""
    found: dict[str, Programs] = {}
    for client, dump in PROGRAMS:
        if shutil.which(client) and shutil.which(dump):
            argv = [dump, "--version"]
            done = subprocess.run(argv, check=False, capture_output=True, text=True, env=_environment())  # pylint: disable=ansible-bad-function
            flavour, version = program_version(done.stdout)
            found.setdefault(flavour, Programs(flavour, client, dump, version))
    if not found:
        raise LmsError(
            "Neither mariadb-dump nor mysqldump is installed on this host. The role bitflow.lms.backup installs what backups need."
        )
    return found


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}


class Client:
    """How programs of one flavour reach a server."""

    def __init__(self, login: Login, programs: Programs, tls: Sequence[str]) -> None:
        self.login = login
        self.programs = programs
        self._secret = MemoryFile(f"[client]\npassword={option_value(login.password)}\n", login.system_user) if login.password else None
        self._options = [*_address(login), *tls]

    @property
    def what(self) -> str:
        """Return how messages call the server."""
        address = self.login.unix_socket or self.login.host or "this host"
        return f"{address}:{self.login.port}" if self.login.port else address

    def stage(self, program: str, *arguments: str) -> Stage:
        """Return one of the programs, with what it needs to log in."""
        # Only this file then: the password of another file, which is read later, would win.
        secret = [f"--defaults-file={self._secret.path}"] if self._secret else []
        descriptors = (self._secret.descriptor,) if self._secret else ()
        return Stage([program, *secret, *self._options, *arguments], descriptors=descriptors, user=self.login.system_user)

    def running_sql(self, database: str, first: str = "") -> Stage:
        """Return the client as it runs SQL from its standard input, and fails at the first error. first: a statement to begin with."""
        options = ("--binary-mode", "--comments", "--default-character-set=utf8mb4", f"--max-allowed-packet={LARGEST_PACKET}")
        return self.stage(self.programs.client, "--batch", *options, *([f"--init-command={first}"] if first else []), database)

    def dump(self, *arguments: str) -> Stage:
        """Return the dump program with the options that every dump has."""
        options = ["--quick", "--hex-blob", "--no-tablespaces", "--default-character-set=utf8mb4", f"--max-allowed-packet={LARGEST_PACKET}"]
        if self.programs.flavour == "mysql":
            options += ["--set-gtid-purged=OFF", "--column-statistics=0"]
        return self.stage(self.programs.dump, *options, *arguments)

    def session(self) -> Session:
        """Open a session. To be called in the main thread."""
        return Session(
            self.stage(
                self.programs.client,
                *("--batch", "--unbuffered", "--skip-column-names", "--force", "--skip-reconnect", "--binary-mode", "--comments"),
                *("--default-character-set=utf8mb4", f"--max-allowed-packet={LARGEST_PACKET}"),
            ),
            self.what,
        )


def _address(login: Login) -> list[str]:
    """Return the options that say where the server is, and as whom."""
    options = []
    if login.unix_socket:
        options.append(f"--socket={login.unix_socket}")
    elif login.host:
        options.append(f"--host={login.host}")
    if login.port:
        options.append(f"--port={login.port}")
    if login.user:
        options.append(f"--user={login.user}")
    return options


class Session(ClientSession):
    """A session with MariaDB or MySQL. A statement that fails does not end it."""

    def __init__(self, stage: Stage, what: str) -> None:
        # Bodies of routines have semicolons. MariaDB's client takes up to 15 characters.
        self._delimiter = f"@@{secrets.token_hex(6)}"
        super().__init__(stage, what)

    def prepare(self, flavour: str) -> None:
        """Set what statements here count on, and lift the limits that would end a long session."""
        # utf8mb4, UTC and no strictness: text is quoted, shown and compared in one way on every server.
        self.query("SET SESSION sql_mode = '', time_zone = '+00:00', wait_timeout = 31536000")
        self.query("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        if flavour == "mariadb":
            self.query("SET SESSION max_statement_time = 0, idle_transaction_timeout = 0, idle_readonly_transaction_timeout = 0")
        else:
            self.query("SET SESSION max_execution_time = 0, information_schema_stats_expiry = 0, print_identified_with_as_hex = ON")

    def column(self, statement: str) -> list[str]:
        """Return the first column of what a statement gives."""
        return [row[0] for row in self.query(statement)]

    def value(self, statement: str) -> str:
        """Return the one value that a statement gives, or nothing."""
        return next(iter(self.column(statement)), "")

    def framed(self, statement: str, mark: str) -> str:
        return f"delimiter {self._delimiter}\n{statement}\n{self._delimiter}\nSELECT '{mark}'{self._delimiter}\n"

    def rows(self, output: bytes) -> list[list[str]]:
        text = output.decode("utf-8", errors="surrogateescape")
        return [[_ESCAPED.sub(_unescape, cell) for cell in line.split("\t")] for line in text.split("\n")[:-1]]

    def failure(self, ending: str, said: str) -> DatabaseError | None:
        errors = list(_ERROR.finditer(said))
        return self._error(errors[0]) if errors else None

    def lost(self, said: str) -> DatabaseError:
        errors = list(_ERROR.finditer(said))
        if errors:
            return self._error(errors[0])
        return DatabaseError(f"The session with the server at {self.what} ended: {said.splitlines()[-1] if said else 'it said nothing'}.")

    def _error(self, found: re.Match[str]) -> StatementError:
        """Return an error of the client or server."""
        code, text = int(found["code"]), found["text"].rstrip(". ")
        if code == ACCESS_DENIED:
            return StatementError(f"The server at {self.what} refused the login: {text}. Check login_user and login_password.", code)
        if code in _LOST:
            return StatementError(f"The server at {self.what} ended the session: {text} (error {code}).", code)
        return StatementError(f"The server at {self.what} said: {text} (error {code}).", code)

    def _hear(self, stderr: Any) -> bool:
        # The end is kept, where the error stands: MariaDB's client repeats the statement before it.
        piece = os.read(stderr.fileno(), PIECE)
        self._said += piece
        del self._said[:-SAID_KEPT]
        if any(int(found["code"]) in _LOST for found in _ERROR.finditer(self._said.decode("utf-8", errors="replace"))):
            # It would go on to wait for statements, and answer each in this way but never with the mark.
            self._process.kill()
        return bool(piece)


def _unescape(found: re.Match[str]) -> str:
    return _UNESCAPED[found[1]]
