# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module dotenv."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._dotenv import Dotenv
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.modules.dotenv import run


def params(path: Path, values: dict[str, Any], **others: Any) -> dict[str, Any]:
    """Return the module's parameters."""
    return {"path": str(path), "values": values, "required": [], "owner": None, "group": None, "mode": "0640", **others}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the file is to be."""
    return tmp_path / ".env"


def test_create_again_modify_again(path: Path) -> None:
    def both(values: dict[str, Any]) -> dict[str, Any]:
        foreseen = run(Dotenv(path), params(path, values), check_mode=True)
        done = run(Dotenv(path), params(path, values), check_mode=False)
        assert foreseen == done
        return {key: value for key, value in done.items() if key != "diff"}

    first = both({"APP_KEY": "secret one", "APP_DEBUG": False})
    again = both({"APP_KEY": "secret one", "APP_DEBUG": "false"})
    second = both({"APP_KEY": "secret two", "DB_HOST": "data"})

    assert first == {"changed": True, "keys_added": ["APP_DEBUG", "APP_KEY"], "keys_removed": [], "keys_changed": []}
    assert again == {"changed": False, "keys_added": [], "keys_removed": [], "keys_changed": []}
    assert second == {"changed": True, "keys_added": ["DB_HOST"], "keys_removed": ["APP_DEBUG"], "keys_changed": ["APP_KEY"]}
    assert path.read_text() == 'APP_KEY="secret two"\nDB_HOST=data\n'


def test_check_mode_only_looks(path: Path) -> None:
    result = run(Dotenv(path.parent / "missing" / ".env"), params(path, {"A": "1"}, owner="nobody-of-that-name"), check_mode=True)

    assert result["changed"] is True
    assert list(path.parent.iterdir()) == []


def test_no_result_holds_a_value(path: Path) -> None:
    path.write_text("A='old secret'\n")

    result = run(Dotenv(path), params(path, {"A": "new secret"}), check_mode=False)

    assert result["diff"] == {
        "before_header": str(path),
        "after_header": str(path),
        "before": "A=***\n",
        "after": "A=*** (changed)\n",
    }
    assert "secret" not in json.dumps(result)


def test_a_file_with_another_form_and_the_same_meaning_is_left_alone(path: Path) -> None:
    path.write_text("# by hand\nB = '2'\nA=1\n")
    path.chmod(0o640)

    assert run(Dotenv(path), params(path, {"A": 1, "B": "2"}), check_mode=False)["changed"] is False
    assert path.read_text().startswith("# by hand")


def test_a_mode_that_is_wrong_is_put_right(path: Path) -> None:
    path.write_text("A=1\n")
    path.chmod(0o644)

    result = run(Dotenv(path), params(path, {"A": "1"}), check_mode=False)

    assert (result["changed"], result["keys_changed"]) == (True, [])
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("mode", ["0644", "0641", "0602"])
def test_a_mode_for_everybody_is_refused(path: Path, mode: str) -> None:
    with pytest.raises(LmsError, match=f"mode is {mode}, which lets everybody read secrets"):
        run(Dotenv(path), params(path, {"A": "1"}, mode=mode), check_mode=False)


def test_required_keys_are_checked_in_check_mode_too(path: Path) -> None:
    with pytest.raises(LmsError, match=r"\.env needs APP_KEY"):
        run(Dotenv(path), params(path, {}, required=["APP_KEY"]), check_mode=True)
