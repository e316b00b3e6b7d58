# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Encryption with the real programs: who has the identity reads what was written, and nobody else does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from database_host import LIBRARY, Host

# Encrypts what is given, decrypts it again, and prints both as JSON.
ROUND_TRIP = """
import json, sys
from ansible_collections.bitflow.lms.plugins.module_utils._backup_encryption import decrypting, encrypting_stage, encryption_of
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import run_pipeline
given = json.load(sys.stdin)
plain, stored, read = bytes(range(256)) * 8192, [], []
try:
    run_pipeline([encrypting_stage(given["encryption"])], source=[plain], sink=stored.append)
    with decrypting(encryption_of(given["encryption"]).method, given["reader"]) as stage:
        run_pipeline([stage], source=stored, sink=read.append)
    print(json.dumps({"error": "", "whole": b"".join(read) == plain, "hidden": plain[:64] not in b"".join(stored)}))
except LmsError as error:
    print(json.dumps({"error": error.message, "whole": b"".join(read) == plain, "hidden": plain[:64] not in b"".join(stored)}))
"""


def round_trip(host: Host, encryption: dict[str, Any], reader: dict[str, Any]) -> dict[str, Any]:
    """Encrypt and decrypt on the host."""
    argv = ["env", f"PYTHONPATH={LIBRARY}", "PYTHONDONTWRITEBYTECODE=1", "python3", "-c", ROUND_TRIP]
    found = json.loads(host.execute(*argv, input=json.dumps({"encryption": encryption, "reader": reader})).stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def identities(host: Host) -> list[tuple[str, str]]:
    """Return two identities of age, each with its recipient."""
    made = []
    for _number in range(2):
        lines = host.shell("age-keygen 2>/dev/null").splitlines()
        made.append((lines[-1], lines[1].rpartition(" ")[2]))
    return made


@pytest.fixture(scope="module")
def fingerprint(host: Host) -> str:
    """Return the fingerprint of a key of gpg, whose home is /var/lib/test-gnupg."""
    gpg = "gpg --homedir /var/lib/test-gnupg --batch --quiet"
    host.shell("rm -rf /var/lib/test-gnupg && install -d -m 0700 /var/lib/test-gnupg")
    host.shell(f"{gpg} --passphrase '' --quick-generate-key backup@example.com rsa2048 encrypt never 2>&1")
    lines = host.shell(f"{gpg} --with-colons --list-keys").splitlines()
    return next(line.split(":")[9] for line in lines if line.startswith("fpr"))


GOOD = {"error": "", "whole": True, "hidden": True}


def test_any_recipient_of_age_reads_it(host: Host, identities: list[tuple[str, str]]) -> None:
    encryption = {"recipients": [recipient for _identity, recipient in identities]}

    assert [round_trip(host, encryption, {"identity": identity}) for identity, _recipient in identities] == [GOOD, GOOD]


def test_nobody_else_reads_it(host: Host, identities: list[tuple[str, str]]) -> None:
    found = round_trip(host, {"recipients": [identities[0][1]]}, {"identity": identities[1][0]})

    assert (found["whole"], found["hidden"]) == (False, True)
    assert found["error"].startswith("age ended with status 1")
    assert identities[1][0] not in found["error"]


def test_an_identity_file_reads_it(host: Host, identities: list[tuple[str, str]]) -> None:
    host.execute("sh", "-c", "umask 077 && cat > /srv/test-identity", input=identities[0][0] + "\n")

    assert round_trip(host, {"recipients": [identities[0][1]]}, {"identity_file": "/srv/test-identity"}) == GOOD


def test_a_key_of_ssh_reads_it(host: Host) -> None:
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    host.execute("sh", "-c", "umask 077 && cat > /srv/test-ssh", input=private)

    assert round_trip(host, {"recipients": [public]}, {"identity_file": "/srv/test-ssh"}) == GOOD


def test_gpg_reads_it_with_its_own_keyring(host: Host, fingerprint: str) -> None:
    home = {"gpg_home": "/var/lib/test-gnupg"}

    assert round_trip(host, {"method": "gpg", "recipients": [fingerprint], **home}, home) == GOOD


def test_a_key_that_gpg_does_not_have_fails(host: Host, fingerprint: str) -> None:
    found = round_trip(host, {"method": "gpg", "recipients": ["0" * 40], "gpg_home": "/var/lib/test-gnupg"}, {})

    assert found["error"].startswith("gpg ended with status 2")
