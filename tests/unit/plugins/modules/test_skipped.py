# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A result has the key skipped only where its task was skipped: on ansible-core 2.19 the key alone ends changed_when and failed_when."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

PLUGINS = Path(__file__).parents[4] / "plugins"
SOURCES = [path for folder in ("action", "modules", "module_utils", "plugin_utils") for path in sorted((PLUGINS / folder).glob("*.py"))]
MODULES = sorted((PLUGINS / "modules").glob("*.py"))


def documentation(module: Path, name: str) -> Any:
    """Return a part of a module's documentation."""
    tree = ast.parse(module.read_text())
    texts = [node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name]
    return yaml.safe_load(ast.literal_eval(texts[0])) or {}


def not_skipped(tree: ast.AST) -> Iterator[int]:
    """Yield the lines at which a dictionary says that something was not skipped."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values):
                if isinstance(key, ast.Constant) and key.value == "skipped" and isinstance(value, ast.Constant) and value.value is False:
                    yield key.lineno


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_result_says_that_it_was_not_skipped(source: Path) -> None:
    assert list(not_skipped(ast.parse(source.read_text()))) == []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_the_documentation_promises_the_key_only_to_who_is_skipped(module: Path) -> None:
    described = documentation(module, "RETURN").get("skipped")

    assert described is None or (described["returned"], described["sample"]) == ("when skipped", True)
