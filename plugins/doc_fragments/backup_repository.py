# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that say where backups lie. Their argument specification is repository_argspec in module_utils."""

from __future__ import annotations


class ModuleDocFragment:
    """The documentation fragment backup_repository."""

    DOCUMENTATION = r"""
options:
  repository:
    description:
      - Where the backups lie. An absolute path on the host, or V(s3://bucket/prefix).
      - For S3 the host needs the Debian package python3-boto3.
    type: str
    required: true
  s3:
    description:
      - How S3 is reached and used. What is left out is taken from where the SDK of AWS finds it, such as the instance's role.
    type: dict
    suboptions:
      endpoint_url:
        description:
          - Address of an S3-compatible service. Left out, it is AWS.
        type: str
      region:
        description:
          - Region of the bucket.
        type: str
      profile:
        description:
          - Profile in the configuration of the SDK.
        type: str
      access_key:
        description:
          - Access key.
        type: str
      secret_key:
        description:
          - Secret key, together with O(s3.access_key).
        type: str
      session_token:
        description:
          - Session token of temporary keys.
        type: str
      role_arn:
        description:
          - Role to assume. Its credentials are renewed while a long backup runs.
        type: str
      ca_bundle:
        description:
          - File with the certificate authorities that sign the certificate of O(s3.endpoint_url).
        type: path
      sse:
        description:
          - Encryption at rest by the service. Left out, the default of the bucket counts.
        type: str
        choices: [AES256, "aws:kms"]
      kms_key_id:
        description:
          - Key for V(aws:kms).
        type: str
      storage_class:
        description:
          - Storage class of the data, such as V(STANDARD_IA). Manifests and other small objects stay in the standard class.
        type: str
      part_size:
        description:
          - Size of the first parts of an upload, in bytes. It doubles each eighth of O(s3.max_parts). 5 MiB at least.
          - Parts are kept in memory until they are sent. With the defaults that stays below 160 MiB for objects of up to 136 GiB, and for
            those of up to 13 GiB where O(s3.max_parts=1000).
        type: int
        default: 16777216
      max_parts:
        description:
          - How many parts the service allows for an object. Some S3-compatible services allow V(1000).
        type: int
        default: 10000
      addressing_style:
        description:
          - Whether the bucket stands in the path or in the host name of an address.
        type: str
        choices: [auto, path, virtual]
        default: auto
      retention:
        description:
          - Keep each object of a backup from being deleted or overwritten, by object lock, beside what the bucket does by default.
        type: dict
        suboptions:
          mode:
            description:
              - V(GOVERNANCE) can be lifted by those who may bypass it. V(COMPLIANCE) can be lifted by nobody.
            type: str
            choices: [GOVERNANCE, COMPLIANCE]
            required: true
          days:
            description:
              - How long, in days from when the backup was made.
            type: int
            required: true
"""
