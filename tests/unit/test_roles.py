"""The roles' interfaces: what the documentation says is what the role does."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROLES = sorted(path.parent for path in Path(__file__).parents[2].glob("roles/*/meta"))
# Defaults that Jinja computes stand in the documentation in words, not as a value.
COMPUTED = "{{"


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text()) or {} if path.exists() else {}


def options_of(role: Path) -> dict:
    """Return the options of every entry point; an option that several share is the same in each."""
    specs = load(role / "meta/argument_specs.yml")["argument_specs"]
    options: dict = {}
    for name, spec in specs.items():
        for option, description in spec.get("options", {}).items():
            assert options.setdefault(option, description) == description, f"{name} describes {option} differently"
    return options


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_documented_defaults_are_the_defaults(role):
    defaults = {name: value for name, value in load(role / "defaults/main.yml").items() if COMPUTED not in str(value)}

    documented = {name: option["default"] for name, option in options_of(role).items() if "default" in option}

    assert documented == defaults


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_input_is_documented_and_has_a_default_or_is_required(role):
    defaults = load(role / "defaults/main.yml")
    options = options_of(role)

    assert set(defaults) <= set(options)
    assert {name for name, option in options.items() if option.get("required")} == set(options) - set(defaults)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_public_variables_carry_the_roles_name(role):
    assert [name for name in options_of(role) if not name.startswith(f"{role.name}_")] == []


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_default_has_a_comment(role):
    lines = (role / "defaults/main.yml").read_text().splitlines() if (role / "defaults/main.yml").exists() else []
    inputs = [number for number, line in enumerate(lines) if line[:1].isalpha()]

    assert [lines[number] for number in inputs if not lines[number - 1].startswith("#")] == []


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_role_has_a_page_and_a_scenario(role):
    root = role.parents[1]

    assert (role / "README.md").exists()
    assert (root / "molecule" / role.name / "molecule.yml").exists()


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_roles_know_neither_groups_nor_other_roles(role):
    text = "".join(path.read_text() for path in role.rglob("*") if path.is_file() and path.suffix in {".yml", ".j2"})

    assert "groups[" not in text
    assert "hostvars" not in text
    assert "include_role" not in text.replace("bitflow.lms.apt_repository", "")
