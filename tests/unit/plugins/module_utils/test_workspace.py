# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which packages of a workspace the build of one does not read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._workspace import Package, is_manifest, left_out, packages_from


def packages(**manifests: dict[str, Any]) -> dict[str, Package]:
    """Return the packages of a workspace; two underscores stand for a slash, one name for the top."""
    contents = {f"{directory.replace('__', '/')}/package.json".removeprefix("top/"): manifest for directory, manifest in manifests.items()}
    return packages_from({path: json.dumps(manifest).encode() for path, manifest in contents.items()})


STUDENT = {"name": "student", "dependencies": {"@lms/ui": "workspace:*", "next": "16"}}
ADMIN = {"name": "admin", "devDependencies": {"@lms/api": "workspace:^"}}
UI = {"name": "@lms/ui", "peerDependencies": {"@lms/icons": "workspace:*"}}
WORKSPACE: dict[str, dict[str, Any]] = {
    "top": {"private": True},
    "apps__student": STUDENT,
    "apps__admin": ADMIN,
    "packages__ui": UI,
    "packages__icons": {"name": "@lms/icons"},
    "packages__api": {"name": "@lms/api"},
}


def test_a_build_reads_what_its_package_depends_on_and_what_that_does() -> None:
    assert left_out(packages(**WORKSPACE), "apps/student") == ["apps/admin", "packages/api"]
    assert left_out(packages(**WORKSPACE), "apps/admin") == ["apps/student", "packages/icons", "packages/ui"]


def test_a_build_reads_what_the_top_depends_on() -> None:
    workspace = {**WORKSPACE, "top": {"devDependencies": {"@lms/api": "workspace:*"}}}

    assert left_out(packages(**workspace), "apps/student") == ["apps/admin"]


def test_a_build_may_read_a_package_that_nobody_names_but_not_another_application() -> None:
    workspace = {**WORKSPACE, "packages__settings": {"name": "@lms/settings"}}

    assert left_out(packages(**workspace), "apps/student") == ["apps/admin", "packages/api"]


@pytest.mark.parametrize("spec", ["workspace:../../packages/api", "file:../../packages/api", "link:../../packages/api"])
def test_a_dependency_may_be_named_by_its_path(spec: str) -> None:
    workspace = {**WORKSPACE, "apps__student": {"name": "student", "dependencies": {"anything": spec}}}

    assert "packages/api" not in left_out(packages(**workspace), "apps/student")


def test_a_dependency_may_have_another_name() -> None:
    workspace = {**WORKSPACE, "apps__student": {"name": "student", "dependencies": {"interface": "workspace:@lms/api@*"}}}

    assert "packages/api" not in left_out(packages(**workspace), "apps/student")


def test_packages_in_a_circle_are_read_once() -> None:
    workspace = {**WORKSPACE, "packages__icons": {"name": "@lms/icons", "dependencies": {"@lms/ui": "workspace:*"}}}

    assert left_out(packages(**workspace), "apps/student") == ["apps/admin", "packages/api"]


def test_a_package_inside_another_belongs_to_it() -> None:
    found = packages(**WORKSPACE, packages__ui__demo={"name": "demo", "dependencies": {"@lms/api": "*"}}, docs__esm={})

    assert sorted(found) == ["", "apps/admin", "apps/student", "packages/api", "packages/icons", "packages/ui"]


def test_a_package_that_is_not_there_is_named() -> None:
    with pytest.raises(LmsError, match=r"package is apps/teacher, .* Packages: apps/admin, apps/student, packages/api"):
        left_out(packages(**WORKSPACE), "apps/teacher")


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"dependencies": "x"}', b'{"dependencies": [1]}'])
def test_a_package_that_cannot_be_read_is_named(content: bytes) -> None:
    with pytest.raises(LmsError, match=r"^apps/student/package\.json of the source cannot be read"):
        packages_from({"apps/student/package.json": content})


@pytest.mark.parametrize(
    ("path", "manifest"),
    [
        ("package.json", True),
        ("apps/student/package.json", True),
        ("node_modules/next/package.json", False),
        ("apps/package.json.bak", False),
    ],
)
def test_which_files_describe_a_package(path: str, manifest: bool) -> None:
    assert is_manifest(path) is manifest
