# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal survives crashes."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.bitflow.lms.plugins.module_utils._journal import Journal


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")

    journal.append({"event": "built"})
    journal.append({"event": "activated"})

    assert journal.entries() == [{"event": "built"}, {"event": "activated"}]


def test_a_line_that_a_crash_cut_short_costs_only_itself(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"event": "built"})
    with journal.path.open("a") as stream:
        stream.write('{"event": "verif')

    journal.append({"event": "activated"})

    assert journal.entries() == [{"event": "built"}, {"event": "activated"}]


def test_no_journal_has_no_entries(tmp_path: Path) -> None:
    assert Journal(tmp_path / "journal.jsonl").entries() == []
