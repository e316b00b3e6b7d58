# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters for the keys of age, so that a control host needs no tool to make them and to read a recipient from one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

IDENTITY = "age-secret-key-"
RECIPIENT = "age"
KEY_SIZE = 32
# Bech32 (BIP 173).
CHARACTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
CHECKSUM_LENGTH = 6


def age_identity(seed: str) -> str:
    """Return the identity that follows from a secret text: the same one for the same text."""
    if len(seed) < 20:
        raise AnsibleFilterError("age_identity needs a secret of 20 characters or more: whoever guesses it can read the backups.")
    key = hashlib.sha256(b"bitflow.lms age identity\n" + seed.encode()).digest()
    return _encode(IDENTITY, key).upper()


def age_recipient(identity: str) -> str:
    """Return the recipient that belongs to an identity, or to a file with one."""
    # Only who uses it needs the package.
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    lines = [line.strip() for line in identity.splitlines()]
    identities = [line for line in lines if line and not line.startswith("#")]
    if len(identities) != 1:
        raise AnsibleFilterError(f"age_recipient was given {len(identities)} identities of age; it takes one.")
    key = _decode(IDENTITY, identities[0])
    public = X25519PrivateKey.from_private_bytes(key).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return _encode(RECIPIENT, public)


def _encode(kind: str, key: bytes) -> str:
    """Return a key as text."""
    data = _regroup(key, 8, 5)
    checksum = _polymod([*_expanded(kind), *data, *[0] * CHECKSUM_LENGTH]) ^ 1
    data += [(checksum >> 5 * (CHECKSUM_LENGTH - 1 - position)) & 31 for position in range(CHECKSUM_LENGTH)]
    return f"{kind}1{''.join(CHARACTERS[value] for value in data)}"


def _decode(kind: str, text: str) -> bytes:
    """Return the key in a text. What is wrong with it is said without showing it."""
    problem = "What was given to age_recipient is no identity of age (AGE-SECRET-KEY-1...)"
    if text not in (text.upper(), text.lower()):
        raise AnsibleFilterError(f"{problem}: it mixes capital and small letters.")
    found, _separator, rest = text.lower().rpartition("1")
    if found != kind or not set(rest) <= set(CHARACTERS):
        raise AnsibleFilterError(f"{problem}.")
    data = [CHARACTERS.index(character) for character in rest]
    if _polymod([*_expanded(kind), *data]) != 1:
        raise AnsibleFilterError(f"{problem}: its checksum is wrong, so a character is.")
    # Five bits do not divide 256: the last group holds four zeros, which the way back makes a byte of.
    values = _regroup(data[:-CHECKSUM_LENGTH], 5, 8)
    if len(values) != KEY_SIZE + 1 or values[-1] != 0:
        raise AnsibleFilterError(f"{problem}: its length is wrong.")
    return bytes(values[:KEY_SIZE])


def _expanded(kind: str) -> list[int]:
    """Return the kind as it goes into the checksum."""
    return [*(ord(character) >> 5 for character in kind), 0, *(ord(character) & 31 for character in kind)]


def _polymod(values: Iterable[int]) -> int:
    """Return the checksum over values of five bits."""
    checksum = 1
    for value in values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for position, generator in enumerate(GENERATOR):
            checksum ^= generator if top >> position & 1 else 0
    return checksum


def _regroup(values: Iterable[int], width: int, wanted: int) -> list[int]:
    """Return the same bits in groups of another width, the last one filled up with zeros."""
    bits = "".join(f"{value:0{width}b}" for value in values)
    bits += "0" * (-len(bits) % wanted)
    return [int(bits[start : start + wanted], 2) for start in range(0, len(bits), wanted)]


class FilterModule:
    """The collection's filters for age."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"age_identity": age_identity, "age_recipient": age_recipient}
