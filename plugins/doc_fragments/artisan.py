# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of the modules that run artisan. Their argument specification is artisan_argspec in module_utils."""

from __future__ import annotations


class ModuleDocFragment:
    """The documentation fragment artisan."""

    DOCUMENTATION = r"""
options:
  chdir:
    description:
      - The directory of the release, which holds C(artisan).
    type: path
    required: true
  php:
    description:
      - Name or path of PHP's command line.
    type: str
    default: php
  environment:
    description:
      - Variables for artisan, beside those of C(.env). They reach the process by its environment, never by its arguments.
      - Only the names are shown. The values are hidden wherever they occur in the result, so a value such as V(1) also hides other ones.
        Those of well-known harmless variables, such as E(DB_HOST) and E(VIEW_COMPILED_PATH), are not hidden.
      - Booleans become V(true) and V(false), null becomes an empty value, as PHP's C(env()) reads them.
    type: dict
    default: {}
  timeout:
    description:
      - Seconds that each command may take. Then it is stopped and the task fails.
    type: int
    default: 300
requirements:
  - timeout (of coreutils)
notes:
  - What artisan writes is readable by its user and group alone, since the configuration cache holds the secrets of C(.env).
  - Run the task as the owner of the release (C(become_user)). Files that root leaves behind shut the application out; the module warns
    about it.
"""
