# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell how far a backup of a database is."""

from __future__ import annotations

from ansible_collections.bitflow.lms.plugins.plugin_utils._progress_action import ProgressAction


class ActionModule(ProgressAction):
    """Runs database_backup."""
