# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Encryption of backups to recipients: a host that writes backups cannot read them, so a thief of it cannot either."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._memory_file import MemoryFile
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import Stage

METHODS = ("age", "gpg", "none")

_AGE_RECIPIENT = re.compile(r"^(age1[a-z0-9]+|ssh-(ed25519|rsa) [A-Za-z0-9+/=]+( .*)?)$")
# Whole, because gpg takes a part of a name for any key that has it.
_GPG_RECIPIENT = re.compile(r"^(0x)?([0-9A-Fa-f]{40}|[0-9A-Fa-f]{64})$")


def encryption_argspec() -> dict[str, dict[str, Any]]:
    """Return the options of the documentation fragment backup_encryption that writers have."""
    return {
        "encryption": {
            "type": "dict",
            "options": {
                "method": {"type": "str", "choices": list(METHODS)},
                "recipients": {"type": "list", "elements": "str"},
                "gpg_home": {"type": "path"},
            },
        }
    }


def identity_argspec() -> dict[str, dict[str, Any]]:
    """Return the options of the documentation fragment backup_encryption that readers have."""
    return {
        "identity": {"type": "str", "no_log": True},
        "identity_file": {"type": "path"},
        "gpg_home": {"type": "path"},
    }


@dataclass(frozen=True)
class Encryption:
    """How a backup is encrypted, and for whom."""

    method: str = "none"
    recipients: tuple[str, ...] = ()
    gpg_home: str = ""

    @property
    def suffix(self) -> str:
        """Return how the names of encrypted objects end."""
        return "" if self.method == "none" else f".{self.method}"

    def record(self) -> dict[str, Any]:
        """Return what the manifest says of it."""
        return {"method": self.method, "recipients": list(self.recipients)}


def encryption_of(option: Mapping[str, Any] | None) -> Encryption:
    """Return what the option encryption means, or say what is wrong with it. No value is repeated: it might be a secret key."""
    given = option or {}
    recipients = tuple(recipient.strip() for recipient in given.get("recipients") or ())
    method = given.get("method") or ("age" if recipients else "none")
    if method == "none":
        if recipients:
            raise LmsError("encryption.method is none, but encryption.recipients has recipients. Leave out one of them.")
        return Encryption()
    if not recipients:
        raise LmsError(f"encryption.method is {method}, but encryption.recipients is empty. Without one nobody could read the backup.")
    pattern = _AGE_RECIPIENT if method == "age" else _GPG_RECIPIENT
    known = "age1... or a public key of SSH" if method == "age" else "the whole fingerprint of a key (40 or 64 hexadecimal digits)"
    for number, recipient in enumerate(recipients, 1):
        if not pattern.match(recipient):
            raise LmsError(f"Item {number} of encryption.recipients is no recipient of {method}. It has to be {known}, never a secret.")
    return Encryption(method, recipients, given.get("gpg_home") or "")


def encrypting_stage(option: Mapping[str, Any] | None) -> Stage | None:
    """Return the program that encrypts what goes through it, or None where nothing is to be encrypted."""
    encryption = encryption_of(option)
    if encryption.method == "age":
        return Stage(["age", "--encrypt", *_each("--recipient", encryption.recipients)])
    if encryption.method == "gpg":
        # Compressed it is already. Whom to trust is said by the whole fingerprints.
        how = ["--encrypt", "--trust-model", "always", "--compress-algo", "none"]
        return Stage([*_gpg(encryption.gpg_home), *how, *_each("--recipient", encryption.recipients)])
    return None


@contextlib.contextmanager
def decrypting(method: str, params: Mapping[str, Any]) -> Iterator[Stage | None]:
    """Give the program that decrypts what goes through it, or None where nothing is encrypted. It may run until the context ends."""
    if method == "none":
        yield None
    elif method == "age":
        with _age_identity(params) as (path, descriptors):  # pylint: disable=contextmanager-generator-missing-cleanup
            yield Stage(["age", "--decrypt", "--identity", path], descriptors=descriptors)
    elif method == "gpg":
        yield Stage([*_gpg(params.get("gpg_home") or ""), "--decrypt"])
    else:
        raise LmsError(f"The backup is encrypted with {method}, which this version of the collection cannot read. It reads age and gpg.")


@contextlib.contextmanager
def _age_identity(params: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Give the path at which age reads the identity, and the descriptor that it needs for that."""
    if params.get("identity"):
        with MemoryFile(params["identity"].strip() + "\n") as file:
            yield file.path, (file.descriptor,)
        return
    path = params.get("identity_file")
    if not path:
        raise LmsError("The backup is encrypted with age. Give the identity of one of its recipients as identity or identity_file.")
    if not Path(path).is_file():
        raise LmsError(f"identity_file is {path}, and there is no such file on this host.")
    yield path, ()


def _gpg(home: str) -> list[str]:
    """Return how gpg is called so that it asks nobody."""
    return ["gpg", "--batch", "--no-tty", "--quiet", *(["--homedir", home] if home else [])]


def _each(option: str, values: Sequence[str]) -> list[str]:
    """Return the option with each of the values."""
    return [word for value in values for word in (option, value)]
