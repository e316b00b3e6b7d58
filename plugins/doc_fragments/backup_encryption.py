# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that say how backups are encrypted and decrypted: encryption_argspec and identity_argspec in module_utils."""

from __future__ import annotations


class ModuleDocFragment:
    """The documentation fragments backup_encryption (for who writes) and backup_encryption.identity (for who reads)."""

    DOCUMENTATION = r"""
options:
  encryption:
    description:
      - Encrypt the data before it leaves the host. Nothing that decrypts it needs to be on the host.
    type: dict
    suboptions:
      method:
        description:
          - The program that encrypts. Left out, it is V(age) where O(encryption.recipients) are given, else V(none).
        type: str
        choices: [age, gpg, none]
      recipients:
        description:
          - Who can decrypt it. For V(age), C(age1...) or public keys of SSH. For V(gpg), whole fingerprints of keys that the keyring has.
          - Give two at least, one of which lies in a safe place, because a backup that nobody can decrypt is lost.
        type: list
        elements: str
      gpg_home:
        description:
          - Home directory of gpg with the public keys. Left out, it is the user's own.
        type: path
"""

    IDENTITY = r"""
options:
  identity:
    description:
      - The identity of age that decrypts the backup. age reads it from memory; it is on no disk and in no list of processes.
    type: str
  identity_file:
    description:
      - File on the host with the identity of age. O(identity) goes first.
    type: path
  gpg_home:
    description:
      - Home directory of gpg with the secret key. Left out, it is the user's own.
    type: path
"""
