# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How to wait for the capacity of a colour. The argument specification is capacity_argspec in module_utils."""

from __future__ import annotations


class ModuleDocFragment:
    """The documentation fragment capacity."""

    DOCUMENTATION = r"""
options:
  wait:
    description:
      - Whether to wait until all of it is there and healthy. It is waited for also where nothing had to be changed, so that a task that was
        interrupted can be repeated.
    type: bool
    default: true
  timeout:
    description:
      - For how long (seconds).
    type: float
    default: 900
  interval:
    description:
      - Pause between two looks (seconds), 2 at least. AWS limits how often an account may ask.
    type: float
    default: 5
  consecutive:
    description:
      - How many looks in a row have to be good. A new target counts as healthy after a single passed check.
    type: int
    default: 3
  max_failures:
    description:
      - How many failures end the wait before O(timeout) does.
    type: int
    default: 3
"""
