# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How AWS is reached. The argument specification is aws_argspec in module_utils."""

from __future__ import annotations


class ModuleDocFragment:
    """The documentation fragment aws_connection."""

    DOCUMENTATION = r"""
options:
  region:
    description:
      - The region. Left out, E(AWS_REGION), E(AWS_DEFAULT_REGION) or the profile gives it.
    type: str
    aliases: [aws_region]
  profile:
    description:
      - A profile of the files of the AWS SDK. Left out, E(AWS_PROFILE) or E(AWS_DEFAULT_PROFILE) gives it.
    type: str
    aliases: [aws_profile]
  access_key:
    description:
      - An access key. Left out, the SDK looks in the environment, in its files and at the role of the host. A role is the better choice.
    type: str
    aliases: [aws_access_key]
  secret_key:
    description:
      - The secret that belongs to O(access_key).
    type: str
    aliases: [aws_secret_key]
  session_token:
    description:
      - The token of temporary keys.
    type: str
    aliases: [aws_session_token]
  endpoint_url:
    description:
      - Another address of the service. Left out, E(AWS_ENDPOINT_URL) may give one.
    type: str
    aliases: [aws_endpoint_url]
  ca_bundle:
    description:
      - A file with the authorities to trust. Left out, E(AWS_CA_BUNDLE) may give one.
    type: path
    aliases: [aws_ca_bundle]
requirements:
  - boto3
notes:
  - A call that AWS throttles or that fails inside AWS is made again, up to 8 times, with growing pauses.
"""
