# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all tests of modules need."""

from __future__ import annotations

import pytest
from ansible.module_utils.common import warnings


@pytest.fixture(autouse=True)
def _no_warnings_of_others() -> None:
    """Forget the warnings of earlier modules: ansible-core keeps them for the process, which on a host runs one module."""
    warnings._global_warnings.clear()
    warnings._global_deprecations.clear()
