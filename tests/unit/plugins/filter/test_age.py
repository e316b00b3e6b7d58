# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys of age, against those that its specification and its own tools give."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.bitflow.lms.plugins.filter.age import age_identity, age_recipient

SEED = "forty characters that nobody has guessed"
# The recipients of the example in age's specification (32 times 0x42), of age's test suite, of what age-keygen 1.2.1 made, and of the seed
# above, as age-keygen -y prints them.
SPECIFIED = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX"
SEEDED = "AGE-SECRET-KEY-15S8KYGX5CRSE9VTT4JQXX8KYLWH2VYS6CXYT67995VDRUUF69HPS3PSHGX"
KNOWN = {
    SPECIFIED: "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj",
    "AGE-SECRET-KEY-1EGTZVFFV20835NWYV6270LXYVK2VKNX2MMDKWYKLMGR48UAWX40Q2P2LM0": (
        "age1xmwwc06ly3ee5rytxm9mflaz2u56jjj36s0mypdrwsvlul66mv4q47ryef"
    ),
    "AGE-SECRET-KEY-1HU9JMKVFL365U0D62CSE7NVV4F4GU00C42R6L785XQYJJG6TJ79S72MLP6": (
        "age1hf84ew75yq3tshwlrgwrnxcfleqmx7kg62v35w53z49el89y3ytqknf2ju"
    ),
    SEEDED: "age1sa3742lhq44z705f34ecllll88nzffj700aspm30cunm5eg0w37qk9fqzx",
}


@pytest.mark.parametrize(("identity", "recipient"), KNOWN.items(), ids=["specification", "test suite", "age-keygen", "seed"])
def test_a_recipient_is_the_one_that_age_gives(identity: str, recipient: str) -> None:
    assert age_recipient(identity) == recipient


def test_the_file_of_age_keygen_is_read() -> None:
    file = f"# created: 2026-11-23T10:28:35Z\n# public key: {KNOWN[SPECIFIED]}\n{SPECIFIED}\n"

    assert age_recipient(file) == KNOWN[SPECIFIED]


def test_the_same_secret_gives_the_same_identity_and_another_one_another() -> None:
    assert age_identity(SEED) == SEEDED
    assert age_identity(f"{SEED}.") != SEEDED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SPECIFIED.replace("Q4EGAEX", "Q4EGAEQ"), "its checksum is wrong"),
        (SPECIFIED[:-1], "its checksum is wrong"),
        (SPECIFIED.replace("AGE", "age"), "mixes capital and small letters"),
        (KNOWN[SPECIFIED], "is no identity of age"),
        ("AGE-SECRET-KEY-PQ-1GFPYYSJZGFPYYSJZ", "is no identity of age"),
        ("", "was given 0 identities"),
        (f"{SPECIFIED}\n{SPECIFIED}", "was given 2 identities"),
    ],
    ids=["character", "short", "case", "recipient", "post-quantum", "nothing", "two"],
)
def test_what_is_no_identity_is_refused_and_not_shown(text: str, message: str) -> None:
    with pytest.raises(AnsibleFilterError, match=message) as refused:
        age_recipient(text)

    assert "GFPYYSJZ" not in str(refused.value)


def test_a_secret_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(AnsibleFilterError, match="20 characters"):
        age_identity("password")
