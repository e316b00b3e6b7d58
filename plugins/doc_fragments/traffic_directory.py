# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the own load balancer has its weights. The argument specification is traffic_directory_argspec in module_utils."""

from __future__ import annotations


class ModuleDocFragment:
    """The documentation fragment traffic_directory."""

    DOCUMENTATION = r"""
options:
  traffic_directory:
    description:
      - Where the role P(bitflow.lms.load_balancer#role) keeps the weights of the load balancer of this host, as its variable
        C(load_balancer_traffic_directory) says.
    type: path
    default: /var/lib/lms-traffic
"""
