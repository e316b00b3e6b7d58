# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a login is read from a module's parameters."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from ansible_collections.bitflow.lms.plugins.doc_fragments.database_login import ModuleDocFragment
from ansible_collections.bitflow.lms.plugins.module_utils._database import Login
from ansible_collections.bitflow.lms.plugins.module_utils._database_login import login_argspec, login_from
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError


def parameters(**given: Any) -> dict[str, Any]:
    """Return what a module gets when these were given."""
    return {**{name: option.get("default") for name, option in login_argspec().items()}, "engine": "postgresql", **given}


def test_what_is_not_given_is_left_to_the_client() -> None:
    assert login_from(parameters()) == Login("postgresql")


def test_every_option_reaches_the_login() -> None:
    given = parameters(
        engine="mysql",
        login_host="database.example.com",
        login_port=3307,
        login_user="backup",
        login_password="secret word",
        ssl_mode="verify-full",
        ca_cert="/etc/ssl/rds.pem",
        login_system_user="nobody",
    )

    expected = Login("mysql", "database.example.com", 3307, "backup", "secret word", "", "verify-full", "/etc/ssl/rds.pem", "nobody")
    assert login_from(given) == expected
    assert login_from(parameters(login_unix_socket="/run/postgresql")) == Login("postgresql", unix_socket="/run/postgresql")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"login_host": "192.0.2.1", "login_unix_socket": "/run/postgresql"},
            "login_host and login_unix_socket are both given, but a server is reached by one of them.",
        ),
        ({"login_port": 0}, "login_port is 0, which is no port: 1 to 65535."),
        ({"login_port": 65536}, "login_port is 65536, which is no port: 1 to 65535."),
        (
            {"login_password": "two\nlines"},
            "login_password contains a line break or a zero byte, which no file of passwords can carry.",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(LmsError) as caught:
        login_from(parameters(**given))

    assert caught.value.message == message


def test_a_login_does_not_show_its_password() -> None:
    assert "secret" not in repr(login_from(parameters(login_password="secret")))


def test_the_fragment_documents_what_is_accepted() -> None:
    documented = yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]

    for option in documented.values():
        assert option.pop("description")
    accepted = {name: {key: value for key, value in option.items() if key != "no_log"} for name, option in login_argspec().items()}
    assert documented == accepted
