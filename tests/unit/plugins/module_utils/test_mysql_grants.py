# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the privileges of a login are read."""

from __future__ import annotations

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._mysql_grants import read_privileges

NEEDED = ("SELECT", "SHOW VIEW", "TRIGGER", "EVENT")


@pytest.mark.parametrize(
    ("grants", "missing", "sees_routines"),
    [
        ([], list(NEEDED), False),
        (["GRANT USAGE ON *.* TO `b`@`%`", "GRANT ALL PRIVILEGES ON `lms_prod`.* TO `b`@`%`"], [], True),
        (["GRANT SELECT, RELOAD ON *.* TO `b`@`%` IDENTIFIED BY PASSWORD '*0'"], ["SHOW VIEW", "TRIGGER", "EVENT"], True),
        (["GRANT SELECT, SHOW VIEW, TRIGGER, EVENT ON `lms\\_prod`.* TO `b`@`%`"], [], False),
        (["GRANT SELECT, SHOW VIEW, TRIGGER, EVENT ON `lmsx_prod`.* TO `b`@`%`"], list(NEEDED), False),
        (["GRANT SELECT, EXECUTE ON `lms%`.* TO `b`@`%`"], ["SHOW VIEW", "TRIGGER", "EVENT"], True),
        (["GRANT SELECT (`a`, `b`), TRIGGER ON `lms_prod`.* TO `b`@`%`"], ["SELECT", "SHOW VIEW", "EVENT"], False),
        (["GRANT SELECT ON `lms_prod`.`users` TO `b`@`%`"], list(NEEDED), False),
    ],
)
def test_what_is_missing(grants: list[str], missing: list[str], sees_routines: bool) -> None:
    privileges = read_privileges(grants, "lms_prod")

    assert (privileges.missing(NEEDED), privileges.sees_routines) == (missing, sees_routines)
