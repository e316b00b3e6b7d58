# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How backups are encrypted and decrypted: the programs that are run, and that no secret stands on their command lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._backup_encryption import Encryption, decrypting, encrypting_stage, encryption_of
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import Stage

AGE = "age1qz6j9v6v4w9cyrzg0x2y5mk5fsujlq0lwwl0ycr5y0xkd8pn4e8q3l0k2p"
SSH = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGb1Qk8Y backup@example.com"
GPG = "0123456789ABCDEF0123456789ABCDEF01234567"
SECRET = "AGE-SECRET-KEY-1QQQQQQQQQQ"


@pytest.mark.parametrize("option", [None, {}, {"method": None, "recipients": None}, {"method": "none"}, {"recipients": []}])
def test_nothing_is_encrypted_unless_it_is_asked_for(option: dict[str, Any] | None) -> None:
    assert encryption_of(option) == Encryption("none", ())
    assert encrypting_stage(option) is None
    assert encryption_of(option).suffix == ""


def test_recipients_mean_age() -> None:
    option = {"method": None, "recipients": [AGE, f" {SSH}\n"], "gpg_home": None}

    assert encrypting_stage(option) == Stage(["age", "--encrypt", "--recipient", AGE, "--recipient", SSH])
    assert encryption_of(option).suffix == ".age"
    assert encryption_of(option).record() == {"method": "age", "recipients": [AGE, SSH]}


def test_gpg_takes_whole_fingerprints() -> None:
    option = {"method": "gpg", "recipients": [GPG], "gpg_home": "/etc/backup/gnupg"}

    assert encrypting_stage(option) == Stage(
        [
            *("gpg", "--batch", "--no-tty", "--quiet", "--homedir", "/etc/backup/gnupg"),
            *("--encrypt", "--trust-model", "always", "--compress-algo", "none", "--recipient", GPG),
        ]
    )
    assert encryption_of(option).suffix == ".gpg"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"method": "age"}, "encryption.method is age, but encryption.recipients is empty"),
        ({"method": "none", "recipients": [AGE]}, "encryption.method is none, but encryption.recipients has recipients"),
        ({"recipients": [AGE, "--decrypt"]}, "Item 2 of encryption.recipients is no recipient of age"),
        ({"method": "gpg", "recipients": ["backup@example.com"]}, "Item 1 of encryption.recipients is no recipient of gpg"),
        ({"method": "gpg", "recipients": ["01234567"]}, "Item 1 of encryption.recipients is no recipient of gpg"),
    ],
)
def test_what_would_not_encrypt_is_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(LmsError, match=message):
        encryption_of(option)


def test_a_secret_key_in_place_of_a_recipient_is_not_repeated() -> None:
    with pytest.raises(LmsError) as caught:
        encryption_of({"recipients": [SECRET]})

    assert SECRET not in str(caught.value.as_result())


def test_an_identity_is_read_from_memory() -> None:
    with decrypting("age", {"identity": f"{SECRET}\n\n", "identity_file": "/etc/backup/identity"}) as stage:
        assert stage is not None
        descriptor = stage.descriptors[0]
        assert stage.argv == ["age", "--decrypt", "--identity", f"/proc/self/fd/{descriptor}"]
        assert Path(stage.argv[-1]).read_text(encoding="utf-8") == f"{SECRET}\n"
        assert Path(stage.argv[-1]).stat().st_mode & 0o777 == 0o600
        assert SECRET not in repr(stage)


def test_an_identity_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "identity"
    file.write_text(SECRET, encoding="utf-8")

    with decrypting("age", {"identity": None, "identity_file": str(file)}) as stage:
        assert stage == Stage(["age", "--decrypt", "--identity", str(file)], descriptors=())


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("age", {}, "Give the identity of one of its recipients as identity or identity_file"),
        ("age", {"identity_file": "/no/such/file"}, "identity_file is /no/such/file, and there is no such file"),
        ("rot13", {}, "encrypted with rot13, which this version of the collection cannot read"),
    ],
)
def test_what_cannot_be_decrypted_is_told(method: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(LmsError, match=message), decrypting(method, params):
        pass


def test_gpg_decrypts_with_its_own_keyring() -> None:
    with decrypting("gpg", {"gpg_home": "/etc/lms/keys"}) as stage:
        assert stage == Stage(["gpg", "--batch", "--no-tty", "--quiet", "--homedir", "/etc/lms/keys", "--decrypt"])


def test_what_is_not_encrypted_needs_no_program() -> None:
    with decrypting("none", {}) as stage:
        assert stage is None
