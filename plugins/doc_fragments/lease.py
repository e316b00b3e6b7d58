# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The option of the modules that act under a lease. Its argument specification is lease_argspec in module_utils."""

from __future__ import annotations


class ModuleDocFragment:
    """The documentation fragment lease."""

    DOCUMENTATION = r"""
options:
  lease:
    description:
      - Act only while this owner holds the lease that M(bitflow.lms.deploy_lock) took. If somebody else holds it by now, the task fails
        before it changes anything and says who.
      - The lease is renewed before and after the action, and nobody takes it while the action lasts, however long that is.
      - Without it the module acts for whoever calls it. In check mode nothing is asked, because nothing was locked.
    type: dict
    suboptions:
      path:
        description:
          - The O(bitflow.lms.deploy_lock#module:path) of the lease.
        type: path
        required: true
      owner:
        description:
          - The O(bitflow.lms.deploy_lock#module:owner) of the lease.
        type: str
        required: true
"""
