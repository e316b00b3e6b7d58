"""The inventories: every key means something to a role or to the collection, every secret is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
INVENTORIES = sorted(path for path in (ROOT / "inventories").iterdir() if path.is_dir())
# Collection-wide variables are those that the wiring or a playbook reads.
WIRING = "".join(path.read_text() for path in (ROOT / "playbooks").rglob("*.yml"))
ANSIBLE = re.compile(r"^ansible_")


def variables_of(inventory: Path) -> dict[str, Path]:
    """Return every key that the inventory sets, and where."""
    keys = {}
    for path in inventory.rglob("group_vars/**/*.yml"):
        keys.update(dict.fromkeys(yaml.safe_load(path.read_text()) or {}, path))
    return keys


def role_options() -> set[str]:
    specs = [yaml.safe_load(path.read_text())["argument_specs"] for path in ROOT.glob("roles/*/meta/argument_specs.yml")]
    return {option for spec in specs for entry in spec.values() for option in entry.get("options", {})}


@pytest.mark.parametrize("inventory", INVENTORIES, ids=lambda path: path.name)
def test_every_key_is_an_option_of_a_role_or_read_by_the_wiring(inventory):
    known = role_options()

    unknown = {
        key: path.name
        for key, path in variables_of(inventory).items()
        if key not in known and not ANSIBLE.match(key) and not key.startswith("__") and not re.search(rf"\b{key}\b", WIRING)
    }

    assert unknown == {}


@pytest.mark.parametrize("inventory", INVENTORIES, ids=lambda path: path.name)
def test_every_secret_that_the_wiring_uses_is_defined(inventory):
    used = set(re.findall(r"\bvault_\w+\b(?! \| default|'\])", WIRING))

    assert used - set(variables_of(inventory)) == set()
