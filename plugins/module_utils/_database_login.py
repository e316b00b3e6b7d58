# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that say how a database server is reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._database import Login
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

ENGINES = ("postgresql", "mysql")
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
LARGEST_PORT = 65535


def login_argspec() -> dict[str, dict[str, Any]]:
    """Return the options of the documentation fragment database_login."""
    return {
        "engine": {"type": "str", "required": True, "choices": list(ENGINES)},
        "login_host": {"type": "str"},
        "login_port": {"type": "int"},
        "login_user": {"type": "str"},
        "login_password": {"type": "str", "no_log": True},
        "login_unix_socket": {"type": "path"},
        "ssl_mode": {"type": "str", "default": "prefer", "choices": list(SSL_MODES)},
        "ca_cert": {"type": "path"},
        "login_system_user": {"type": "str"},
    }


def login_from(params: Mapping[str, Any]) -> Login:
    """Return how a server is reached, as a module's parameters say. LmsError when they contradict each other."""
    host, socket, port = params["login_host"] or "", params["login_unix_socket"] or "", params["login_port"]
    if host and socket:
        raise LmsError("login_host and login_unix_socket are both given, but a server is reached by one of them.")
    if port is not None and not 0 < port <= LARGEST_PORT:
        raise LmsError(f"login_port is {port}, which is no port: 1 to {LARGEST_PORT}.")
    password = params["login_password"] or ""
    if any(character in password for character in "\n\r\0"):
        raise LmsError("login_password contains a line break or a zero byte, which no file of passwords can carry.")
    return Login(
        engine=params["engine"],
        host=host,
        port=port or 0,
        user=params["login_user"] or "",
        password=password,
        unix_socket=socket,
        ssl_mode=params["ssl_mode"],
        ca_cert=params["ca_cert"] or "",
        system_user=params["login_system_user"] or "",
    )
