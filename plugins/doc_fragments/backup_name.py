# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that say which backups are meant. Their argument specification is name_argspec in module_utils."""

from __future__ import annotations


class ModuleDocFragment:
    """The documentation fragment backup_name."""

    DOCUMENTATION = r"""
options:
  environment:
    description:
      - Environment whose backup it is, such as V(prod). It is the first part of where a backup lies in the repository.
      - Letters, digits, dot, underscore and hyphen.
    type: str
    required: true
  name:
    description:
      - Name of the database, or of the set of files.
      - Letters, digits, dot, underscore and hyphen.
    type: str
    required: true
"""
