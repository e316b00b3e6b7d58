# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A table of nftables and the way back: what is run in which order, and what a run leaves where it is cut off."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._nftables import LOADED, Firewall, confirm, load

OLD = "the old ruleset\n"
NEW = "the new ruleset\n"
FORMER = "table inet lms\ndelete table inet lms\n"


@dataclass
class Host:
    """A host whose nft lists a table as the ruleset that was loaded, and whose timer can be let off."""

    folder: Path
    table: str = ""
    armed: bool = False
    refuses: str = ""
    ran: list[str] = field(default_factory=list)

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        """Run a program."""
        words = [word for word in argv if not word.startswith("/") and "\n" not in word]
        file = next((Path(word) for word in argv if word.startswith("/")), None)
        command = " ".join(words[:2])
        if command == "nft list":
            return 0, "table inet lms\n" if self.table else "", ""
        if command == "nft --stateless":
            return 0, self.table, ""
        if command == "unshare --net":
            assert file is not None
            return 0, file.read_text(), ""
        if command == "systemctl is-active":
            return (0 if self.armed else 3), "", ""
        self.ran.append(" ".join(word for word in [*words, file.name if file else ""] if word and not word.startswith("--")))
        if self.refuses and self.refuses in self.ran[-1]:
            return 1, "", f"{file}:1:1-3: Error: syntax error\nthe new ruleset\n^^^\n"
        if command == "nft --file":
            assert file is not None
            self.table = file.read_text().removeprefix(FORMER)
        elif argv[0] == "systemd-run":
            self.armed = True
        elif command == "systemctl stop":
            self.armed = False
        return 0, "", ""

    @property
    def firewall(self) -> Firewall:
        """Return the firewall of this host."""
        return Firewall.of(self.folder / "nftables.conf", "inet lms", self.folder / "run", self)

    @property
    def written(self) -> str:
        """Return what the next boot loads."""
        return self.firewall.written()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Return a host that has the old ruleset, loaded and written."""
    (tmp_path / "nftables.conf").write_text(OLD)
    return Host(tmp_path, OLD)


def test_a_new_ruleset_is_loaded_with_a_way_back_and_kept_when_it_is_confirmed(host: Host) -> None:
    loaded = load(host.firewall, NEW, 60, check_mode=False)

    assert (host.table, host.written, host.armed) == (NEW, OLD, True)
    assert (host.folder / "run/former.nft").read_text() == FORMER + OLD
    assert host.ran == ["nft ruleset.nft", "nft former.nft", "systemd-run nft former.nft", "nft ruleset.nft"]
    assert loaded == {
        "changed": True,
        "confirm_within": 60,
        "diff": [
            {
                "before_header": str(host.folder / "nftables.conf"),
                "after_header": str(host.folder / "nftables.conf"),
                "before": OLD,
                "after": NEW,
            },
            {"before_header": LOADED, "after_header": LOADED, "before": OLD, "after": NEW},
        ],
    }

    confirmed = confirm(host.firewall, NEW, check_mode=False)

    assert (host.table, host.written, host.armed) == (NEW, NEW, False)
    assert confirmed == {"changed": True, "confirm_within": 0, "diff": loaded["diff"][:1]}


def test_the_first_ruleset_is_taken_back_to_none(tmp_path: Path) -> None:
    host = Host(tmp_path)

    load(host.firewall, NEW, 60, check_mode=False)

    assert (tmp_path / "run/former.nft").read_text() == FORMER


def test_a_ruleset_that_is_loaded_and_written_is_left_alone(host: Host) -> None:
    assert load(host.firewall, OLD, 60, check_mode=False) == {"changed": False, "confirm_within": 0, "diff": []}
    assert host.ran == ["nft ruleset.nft"]


def test_a_rule_that_was_removed_by_hand_is_a_difference(host: Host) -> None:
    host.table = "less\n"

    result = load(host.firewall, OLD, 60, check_mode=False)

    assert result["diff"] == [{"before_header": LOADED, "after_header": LOADED, "before": "less\n", "after": OLD}]
    assert host.table == OLD


def test_check_mode_only_looks(host: Host) -> None:
    result = load(host.firewall, NEW, 60, check_mode=True)

    assert (result["changed"], result["confirm_within"], len(result["diff"])) == (True, 0, 2)
    assert host.ran == ["nft ruleset.nft"]
    assert (host.table, host.written) == (OLD, OLD)


def test_without_a_way_back_the_file_is_written_at_once(host: Host) -> None:
    result = load(host.firewall, NEW, 0, check_mode=False)

    assert result["confirm_within"] == 0
    assert (host.table, host.written, host.armed) == (NEW, NEW, False)


def test_a_ruleset_that_nft_refuses_changes_nothing(host: Host) -> None:
    host.refuses = "nft ruleset.nft"

    with pytest.raises(CommandError, match=r"^Could not use the ruleset: .*ruleset.nft:1:1-3: Error: syntax error$"):
        load(host.firewall, NEW, 60, check_mode=False)

    assert (host.table, host.written, host.armed) == (OLD, OLD, False)


def test_nothing_is_loaded_without_a_way_back_that_was_asked_for(host: Host) -> None:
    host.refuses = "systemd-run"

    with pytest.raises(CommandError, match="Could not prepare the way back"):
        load(host.firewall, NEW, 60, check_mode=False)

    assert (host.table, host.written) == (OLD, OLD)


def test_what_a_run_that_was_cut_off_loaded_is_taken_back_first(host: Host) -> None:
    load(host.firewall, "unproven\n", 60, check_mode=False)

    result = load(host.firewall, OLD, 60, check_mode=False)

    assert result["changed"]
    assert (host.table, host.written, host.armed) == (OLD, OLD, False)


def test_a_later_way_back_leads_behind_what_was_never_proven(host: Host) -> None:
    load(host.firewall, "unproven\n", 60, check_mode=False)

    load(host.firewall, NEW, 60, check_mode=False)

    assert (host.folder / "run/former.nft").read_text() == FORMER + OLD
    assert (host.table, host.armed) == (NEW, True)


def test_a_ruleset_that_was_taken_back_cannot_be_confirmed(host: Host) -> None:
    load(host.firewall, NEW, 60, check_mode=False)
    host.table, host.armed = OLD, False

    with pytest.raises(LmsError, match=r"^The ruleset was taken back, and the host has its former one again"):
        confirm(host.firewall, NEW, check_mode=False)

    assert host.written == OLD
