"""The pages: what they name exists, and what a person can set or use is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from ansible_collections.bitflow.lms.plugins.module_utils._backup_metrics import HELP as HELP_OF_BACKUPS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path for pattern in ("*.md", "docs/*.md", "roles/*/README.md", "tests/fixtures/lms/README.md") for path in ROOT.glob(pattern)
)
ROLES = sorted(path.parents[1] for path in ROOT.glob("roles/*/meta/argument_specs.yml"))
# Files of metrics, a cookie, and the role of a playbook.
NO_VARIABLES = {"lms_aws", "lms_backups", "lms_deploy", "lms_traffic"}

ROW = re.compile(r"^\| (?P<first>[^|]*?) \|", re.MULTILINE)
NAME = re.compile(r"`(?P<name>[^`]+)`")
VARIABLE = re.compile(r"(?<![\w/.-])(?:lms|vault)_[a-z0-9_]+")
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)|src(?:set)?=\"(?P<source>[^\"]+)\"")
HEADING = re.compile(r"^#+ (?P<title>.+)$", re.MULTILINE)


def read(*patterns: str) -> str:
    """Return what the files that match hold, one after the other."""
    return "\n".join(path.read_text() for pattern in patterns for path in sorted(ROOT.glob(pattern)) if path.is_file())


def section(page: str, title: str) -> str:
    """Return a section of a page, without its heading."""
    return re.split(r"^## ", (ROOT / page).read_text().partition(f"\n## {title}\n")[2], flags=re.MULTILINE)[0]


def first_cells(text: str) -> set[str]:
    """Return the names in code type in the first column of the tables."""
    return {name["name"] for row in ROW.finditer(text) for name in NAME.finditer(row["first"])}


def variables_in(*patterns: str) -> set[str]:
    """Return the variables of the collection that files name."""
    return set(VARIABLE.findall(read(*patterns)))


def variables_used() -> set[str]:
    """Return the variables of the collection that a person can set."""
    settings = [f"roles/*/{folder}/**/*.yml" for folder in ("defaults", "handlers", "meta", "tasks", "vars")]
    return variables_in("playbooks/**/*.yml", "roles/**/*.j2", *settings)


def metrics() -> set[str]:
    """Return the names of the metrics that deployments and backups write, and of those that alerts look at."""
    return {*HELP_OF_BACKUPS} | variables_in("plugins/module_utils/_deploy_metrics.py", "roles/prometheus/files/rules/*.yml")


def named(page: Path) -> str:
    """Return a page's name for a test."""
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Return the names that a page's headings get as targets of links."""
    return {re.sub(r"[^\w\- ]", "", heading["title"].lower()).replace(" ", "-") for heading in HEADING.finditer(page.read_text())}


def leads_somewhere(page: Path, target: str) -> bool:
    """Say whether a link within the pages has a file, and a heading where it names one."""
    path, _hash, anchor = target.partition("#")
    found = page.parent / path if path else page
    return found.exists() and (not anchor or anchor in anchors(found))


def test_every_variable_of_the_collection_is_in_the_table():
    table = first_cells(section("docs/configuration.md", "Variables of the collection"))

    assert table == variables_used() - NO_VARIABLES


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_page_names_a_variable_that_nothing_reads(page):
    known = variables_used() | metrics() | variables_in("inventories/**/*.yml") | NO_VARIABLES

    # A page may show how a secret gets a name of its own.
    found = {name for name in VARIABLE.findall(page.read_text()) if not name.startswith("vault_")}

    assert found - known == set()


@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
def test_no_page_names_an_option_that_its_role_does_not_have(role):
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    options = {option for spec in specs.values() for option in spec.get("options", {})}

    found = {name for page in PAGES for name in re.findall(rf"\b{role.name}_[a-z_]+\b(?!\()", page.read_text())}
    # One role's name may begin with another's, and a module's with that of a role.
    others = tuple(other.name for other in ROLES if other.name.startswith(f"{role.name}_"))
    modules = {path.stem for path in ROOT.glob("plugins/modules/*.py")}

    assert {name for name in found - options - modules if not name.startswith(others)} == set()


@pytest.mark.parametrize(
    ("title", "things"),
    [
        ("The journeys", {f"bitflow.lms.{path.stem}" for path in ROOT.glob("playbooks/*.yml")}),
        ("Modules", {path.stem for path in ROOT.glob("plugins/modules/*.py")}),
    ],
)
def test_the_readme_lists_all_playbooks_and_modules(title, things):
    assert first_cells(section("README.md", title)) == things


def test_the_readme_lists_all_roles():
    listed = set(re.findall(r"^\| \[(\w+)\]\(roles/\1/README\.md\)", section("README.md", "Roles"), re.MULTILINE))

    assert listed == {role.name for role in ROLES}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_within_the_pages_leads_somewhere(page):
    targets = {match["target"] or match["source"] for match in LINK.finditer(page.read_text())}

    broken = [target for target in targets if not re.match(r"[a-z]+:", target) and not leads_somewhere(page, target)]

    assert broken == []


def test_every_fault_on_the_page_has_its_test() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/faults.md").read_text()))
    there = set(re.findall(r"def (test_\w+)\(", read("tests/*/*.py", "molecule/*/tests/*.py")))
    injected = set(re.findall(r"def (test_\w+)\(", read("tests/faults/test_faults.py", "tests/faults/test_killed_controller.py")))

    assert named - there == set()
    # What only tidies up after the others is no row.
    assert {name for name in injected - named if "after_all" not in name} == set()
