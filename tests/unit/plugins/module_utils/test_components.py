# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Components of front ends on a real file system, with crashes."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils import _components
from ansible_collections.bitflow.lms.plugins.module_utils._archive import pack
from ansible_collections.bitflow.lms.plugins.module_utils._components import (
    Component,
    Components,
    Order,
    component_key,
    environment_text,
    orphans,
    parse_environment,
)
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._files import Owner
from ansible_collections.bitflow.lms.plugins.module_utils._release_plan import Release, Tree

OURS = Owner(os.geteuid(), os.getegid())
ENVIRONMENT = {"API_URL": "http://127.0.0.1:8000"}
SERVED = ["apps/student/server.js", "apps/student/.next/static/1.js", "node_modules/x.js"]
CHECKPOINTS = ["unpacked", "finished", "synced", "renamed"]


class Killed(BaseException):
    """The run was killed here."""


def order(directory: Path, app: str, build: str = "1", environment: dict[str, str] | None = None) -> Order:
    """Return an order for one front end, with its artifact."""
    environment = ENVIRONMENT if environment is None else environment
    tree = directory / f"{app}-{build}.tree"
    for name, text in {f"apps/{app}/server.js": build, f"apps/{app}/.next/static/{build}.js": build, "node_modules/x.js": "x"}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    link = tree / "node_modules" / "y.js"
    if not link.is_symlink():
        link.symlink_to("x.js")
    artifact = directory / f"{app}-{build}.tar"
    with artifact.open("wb") as stream:
        pack({str(found.relative_to(tree)): found for found in tree.rglob("*")}, stream)
    sha256 = hashlib.sha256(artifact.read_bytes()).hexdigest()
    return Order(Component(app, component_key(sha256, environment), sha256), artifact, environment)


def components(directory: Path, checkpoint: Callable[[str], None] = lambda name: None, later: timedelta = timedelta()) -> Components:
    """Return the components of an application, some time later."""
    return Components(directory / "srv", lambda: datetime.now(timezone.utc) + later, checkpoint)


def names(directory: Path) -> list[str]:
    """Return the names below components/."""
    return sorted(path.name for path in (directory / "srv" / "components").iterdir())


def link(directory: Path, release: str, *built: Component) -> None:
    """Put a release together."""
    for component in built:
        name, target = component.link
        place = directory / "srv" / "releases" / release / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)


def test_a_key_comes_from_files_and_environment_and_nothing_else() -> None:
    key = component_key("a" * 64, {"X": "1", "Y": "2"})

    assert key == component_key("a" * 64, {"Y": "2", "X": "1"})
    assert len({key, component_key("b" * 64, {"X": "1", "Y": "2"}), component_key("a" * 64, {"X": "1", "Y": "3"})}) == 3


def test_an_environment_reads_back_as_systemd_reads_it() -> None:
    environment = {"A": "", "B": 'it\'s "new" \\ $HOME `x` # ü\nand =goes on', "C": "plain"}

    text = environment_text(environment)

    assert text == 'A=""\nB="it\'s \\"new\\" \\\\ \\$HOME \\`x\\` # ü\nand =goes on"\nC="plain"\n'
    assert parse_environment(text) == environment


def test_a_component_is_built_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    wanted = order(tmp_path, "student")

    built = components(tmp_path).build([wanted], OURS)

    place = tmp_path / "srv" / "components" / wanted.component.name
    assert components(tmp_path).read() == {wanted.component.name: built[0]}
    size = sum((place / name).stat().st_size for name in (*SERVED, "MANIFEST.sha256"))
    assert (built[0].files, built[0].size) == (4, size)
    assert stat.S_IMODE((place / ".env").stat().st_mode) == 0o600
    assert (place / "node_modules/y.js").readlink() == Path("x.js")
    assert components(tmp_path).environment(built[0]) == ENVIRONMENT


def test_files_carry_a_time_that_comes_from_their_artifact(tmp_path: Path) -> None:
    orders = [order(tmp_path, "student", build) for build in "12"]
    components(tmp_path).build(orders, OURS)

    times = [(tmp_path / "srv/components" / entry.component.name / "node_modules/x.js").stat().st_mtime for entry in orders]

    assert times == [946684800 + int(entry.component.artifact_sha256[:8], 16) % (20 * 365 * 86400) for entry in orders]
    assert times[0] != times[1]


@pytest.mark.parametrize("where", CHECKPOINTS)
def test_a_run_that_is_killed_anywhere_leaves_nothing_that_a_later_one_trusts(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = [order(tmp_path, app) for app in ("admin", "student")]

    def checkpoint(name: str) -> None:
        if name == where:
            raise Killed

    # SIGKILL leaves no time to tidy up.
    monkeypatch.setattr(_components, "remove_tree", lambda path: None)
    with pytest.raises(Killed):
        components(tmp_path, checkpoint).build(orders, OURS)
    monkeypatch.undo()
    whole = components(tmp_path).read()
    missing = [entry for entry in orders if entry.component.name not in whole]
    components(tmp_path).build(missing, OURS)

    assert sorted(whole) == ([orders[0].component.name] if where == "renamed" else [])
    assert names(tmp_path) == sorted(entry.component.name for entry in orders)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    good, bad = order(tmp_path, "admin"), order(tmp_path, "student")
    bad.artifact.write_bytes(bad.artifact.read_bytes()[:-1])

    with pytest.raises(LmsError, match="is not the one that was built"):
        components(tmp_path).build([good, bad], OURS)

    assert names(tmp_path) == []


def test_an_artifact_without_the_server_is_refused_by_name(tmp_path: Path) -> None:
    wanted = order(tmp_path, "student")
    wanted = Order(wanted.component, wanted.artifact, wanted.environment, "main.js")

    with pytest.raises(LmsError, match=r"The artifact of the front end student has no apps/student/main\.js"):
        components(tmp_path).build([wanted], OURS)


def test_another_environment_needs_no_artifact_and_no_room(tmp_path: Path) -> None:
    old = order(tmp_path, "student")
    components(tmp_path).build([old], OURS)
    (tmp_path / "srv/components" / old.component.name / "run").mkdir()
    new = order(tmp_path, "student", environment={"API_URL": "https://api.example.com"})
    new.artifact.unlink()

    built = components(tmp_path).build([new], OURS)

    places = [tmp_path / "srv/components" / entry.component.name for entry in (old, new)]
    assert built[0].name != old.component.name
    assert [(places[0] / name).samefile(places[1] / name) for name in ("node_modules/x.js", "MANIFEST.sha256")] == [True, True]
    assert (places[1] / "node_modules/y.js").readlink() == Path("x.js")
    assert not (places[1] / "run").exists()
    assert components(tmp_path).environment(built[0]) == {"API_URL": "https://api.example.com"}


def test_files_that_somebody_changed_are_not_taken_over(tmp_path: Path) -> None:
    old = order(tmp_path, "student")
    components(tmp_path).build([old], OURS)
    (tmp_path / "srv/components" / old.component.name / "node_modules/x.js").write_text("changed")

    with pytest.raises(LmsError, match="1 different"):
        components(tmp_path).build([order(tmp_path, "student", environment={})], OURS)


def test_a_directory_without_a_record_is_not_trusted(tmp_path: Path) -> None:
    wanted = order(tmp_path, "student")
    (tmp_path / "srv/components" / wanted.component.name).mkdir(parents=True)

    assert components(tmp_path).read() == {}
    with pytest.raises(LmsError, match=r"has no COMPONENT\.json"):
        components(tmp_path).build([wanted], OURS)


def test_assets_are_offered_as_hard_links_and_once(tmp_path: Path) -> None:
    found = components(tmp_path)
    built = found.build([order(tmp_path, "student", build) for build in "12"], OURS)

    for component in built:
        found.offer_assets(component, found.missing_assets(component), OURS)

    static = tmp_path / "srv/assets/apps/student/.next/static"
    assert sorted(path.name for path in static.iterdir()) == ["1.js", "2.js"]
    assert (static / "1.js").stat().st_nlink == 2
    assert [found.missing_assets(component) for component in built] == [[], []]


def test_assets_go_when_no_component_has_had_them_for_long(tmp_path: Path) -> None:
    built = components(tmp_path).build([order(tmp_path, "student", build) for build in "12"], OURS)
    for component in built:
        components(tmp_path).offer_assets(component, components(tmp_path).missing_assets(component), OURS)
    components(tmp_path).remove([built[0].name])

    later = components(tmp_path, later=timedelta(days=31))
    old = later.old_assets(30 * 86400)
    soon = components(tmp_path, later=timedelta(days=29)).old_assets(30 * 86400)
    later.remove_assets(old)

    assert (soon, old) == ([], [Path("apps/student/.next/static/1.js")])
    assert [path.name for path in (tmp_path / "srv/assets/apps/student/.next/static").iterdir()] == ["2.js"]


def test_what_a_release_consists_of_comes_from_its_links(tmp_path: Path) -> None:
    built = components(tmp_path).build([order(tmp_path, app) for app in ("admin", "student")], OURS)
    link(tmp_path, "r1", *built)
    components(tmp_path).remove([built[0].name])

    assert components(tmp_path).linked("r1") == {"admin": Component("admin", built[0].key), "student": built[1]}
    assert components(tmp_path).linked("r2") == components(tmp_path).linked(None) == {}


def test_orphans_are_linked_by_nothing_held_by_nobody_and_not_young() -> None:
    found = [Component("student", key) for key in ("linked", "held", "young", "orphan")]
    ages = {"student-linked": 9, "student-held": 9, "student-young": 1, "student-orphan": 9}

    assert orphans(found, ["student-linked"], ["student-held"], ages, 5) == ["student-orphan"]


def test_pruning_removes_orphans_and_leftovers(tmp_path: Path) -> None:
    built = components(tmp_path).build([order(tmp_path, "student", build) for build in "12"], OURS)
    link(tmp_path, "r1", built[0])
    for name in ("admin-1.partial", "admin-2.removing"):
        (tmp_path / "srv/components" / name).mkdir()
    kept = Tree(None, (Release("r1"),))

    young = components(tmp_path).prunable(kept)
    later = components(tmp_path, later=timedelta(hours=2))
    going = later.prunable(kept)
    later.remove(going)

    assert young == ["admin-2.removing"]
    assert going == sorted(["admin-1.partial", "admin-2.removing", built[1].name])
    assert names(tmp_path) == [built[0].name]


def test_a_component_that_a_process_works_in_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = components(tmp_path).build([order(tmp_path, "student")], OURS)
    monkeypatch.chdir(tmp_path / "srv/components" / built[0].name / "apps")

    assert components(tmp_path, later=timedelta(hours=2)).prunable(Tree()) == []
