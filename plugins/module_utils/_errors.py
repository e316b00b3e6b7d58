# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The errors that the collection's own code raises."""

from __future__ import annotations

from typing import Any


class LmsError(Exception):
    """A failure that a user can act on: one sentence, and details in fields."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def as_result(self) -> dict[str, Any]:
        """Return the arguments for AnsibleModule.fail_json."""
        return {"msg": self.message, **self.details}


class CommandError(LmsError):
    """A program that was run ended with a status that means failure."""
