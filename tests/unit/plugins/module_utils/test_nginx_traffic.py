# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The own load balancer beyond what every provider does: its files, its refusals, and what its host can see."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils import _nginx_traffic_flag
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic import NginxProvider
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_flag import (
    buckets_of,
    colours_of,
    label_of,
    read_flags,
    read_label,
)
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import AmbiguousError, DriftError, TrafficError, Weights
from ansible_collections.bitflow.lms.tests.unit.plugins.module_utils.nginx_model import BEFORE, URL, Nginx, servers


@pytest.fixture
def nginx(tmp_path: Path) -> Nginx:
    """Return a load balancer with the sites api and web."""
    return Nginx(tmp_path)


# Names and buckets


@pytest.mark.parametrize(
    ("percent", "label"),
    [
        ({"green": 5, "blue": 95}, "blue-95+green-5"),
        ({"blue": 100, "green": 0}, "blue-100+green-0"),
        ({"blue": 100}, "blue-100"),
        ({"release-2": 40, "release-1": 60}, "release-1-60+release-2-40"),
    ],
)
def test_a_label_says_its_weights(percent: Weights, label: str) -> None:
    assert (label_of(percent), read_label(label)) == (label, percent)


@pytest.mark.parametrize(
    "label", ["", "blue", "blue-95", "green-5+blue-95", "blue-95+green-05", "blue-95+green-6", "blue-50+blue-50", "..-100"]
)
def test_what_says_no_weights_is_no_label(label: str) -> None:
    assert read_label(label) is None


def test_a_visitor_who_went_to_the_new_colour_stays_there_while_its_share_rises() -> None:
    shares = [set(buckets_of({"blue": 100 - percent, "green": percent})["green"]) for percent in (0, 5, 25, 50, 100)]

    assert [len(buckets) for buckets in shares] == [0, 5, 25, 50, 100]
    assert all(smaller < larger for smaller, larger in zip(shares, shares[1:]))


def test_every_bucket_goes_to_one_colour() -> None:
    assert colours_of({"blue": 97, "green": 3}) == ["green"] * 3 + ["blue"] * 97


# The files


def tree(site: Path) -> dict[str, Any]:
    """Return what lies below a site: its link, and for each label how many buckets each colour has."""
    labels = {path.name: {colour.name: len(list(colour.iterdir())) for colour in path.iterdir()} for path in (site / "weights").iterdir()}
    return {"current": str((site / "current").readlink()), "weights": labels, "names": sorted(path.name for path in site.iterdir())}


def test_a_switch_is_another_link(nginx: Nginx) -> None:
    nginx.provider("api").set("api", {"blue": 95, "green": 5}, BEFORE)

    assert tree(nginx.directory / "api") == {
        "current": "weights/blue-95+green-5",
        "weights": {"blue-100+green-0": {"blue": 100, "green": 0}, "blue-95+green-5": {"blue": 95, "green": 5}},
        "names": ["current", "weights"],
    }
    assert nginx.answers("api") == ["green"] * 5 + ["blue"] * 95


def test_workers_of_nginx_can_look_whatever_the_umask_is(nginx: Nginx) -> None:
    before = os.umask(0o077)
    try:
        nginx.provider("api").set("api", {"blue": 95, "green": 5}, BEFORE)
    finally:
        os.umask(before)

    made = nginx.directory / "api" / "weights" / "blue-95+green-5"
    assert [oct(path.stat().st_mode & 0o777) for path in (made, made / "blue", made / "green")] == ["0o755"] * 3


class KilledError(BaseException):
    """The end of a process."""


@pytest.mark.parametrize("step", ["_fill", "sync_directory", "remove_tree"])
def test_a_switch_that_was_killed_leaves_the_old_weights_and_is_done_by_the_next_one(
    step: str, nginx: Nginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = nginx.provider("api")
    for survived in range(6):
        left = iter(range(survived))
        original = getattr(_nginx_traffic_flag, step)

        def die(*arguments: Any, left: Iterator[int] = left, original: Any = original) -> None:
            """Die after some calls."""
            if next(left, None) is None:
                raise KilledError
            original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(_nginx_traffic_flag, step, die)
            try:
                provider.set("api", {"blue": 60, "green": 40}, BEFORE)
            except KilledError:
                # Whoever asks now is served by the old weights or by the new ones.
                assert nginx.answers("api").count("green") in (0, 40)

        provider.set("api", {"blue": 60, "green": 40}, BEFORE)

        assert nginx.answers("api") == ["green"] * 40 + ["blue"] * 60
        assert tree(nginx.directory / "api")["names"] == ["current", "weights"]
        nginx.by_hand("api", BEFORE)
        label = nginx.directory / "api" / "weights" / "blue-60+green-40"
        for path in sorted(label.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        label.rmdir()


def test_half_a_directory_is_never_linked(nginx: Nginx, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the directory made in place instead of aside, a switch that is killed leaves a label that says more than is there."""
    provider, site = nginx.provider("api"), nginx.directory / "api"
    (site / "weights" / "blue-60+green-40" / "green").mkdir(parents=True)

    (site / ".new").symlink_to("weights/blue-60+green-40")
    (site / ".new").replace(site / "current")
    guard_off = provider.fault("api", {"blue": 60, "green": 40})
    provider.set("api", {"blue": 60, "green": 40}, BEFORE)

    assert guard_off == "nginx leads api to blue 100 of 100 buckets, and not by blue 60, green 40."
    assert provider.fault("api", {"blue": 60, "green": 40}) == ""


def test_files_that_somebody_changed_are_mended_in_place(nginx: Nginx) -> None:
    provider, site = nginx.provider("api"), nginx.directory / "api"
    provider.set("api", {"blue": 95, "green": 5}, BEFORE)
    green = site / "weights" / "blue-95+green-5" / "green"
    (green / "0").unlink()
    (green / "77").touch()
    (green.parent / "red").mkdir()
    broken = provider.verify("api", {"blue": 95, "green": 5})

    provider.set("api", {"blue": 95, "green": 5}, BEFORE)

    assert (broken, provider.verify("api", {"blue": 95, "green": 5})) == (False, True)
    assert sorted(path.name for path in green.parent.iterdir()) == ["blue", "green"]


def test_the_same_weights_again_touch_nothing(nginx: Nginx) -> None:
    provider = nginx.provider("api")
    paths = [nginx.directory / "api", *sorted((nginx.directory / "api").rglob("*"))]
    before = {path: path.lstat().st_mtime_ns for path in paths}

    provider.set("api", {"blue": 1, "green": 0}, {"blue": 7, "green": 3})

    assert {path: path.lstat().st_mtime_ns for path in paths} == before


# Lost and strange weights


def test_a_lost_link_is_named_with_the_way_out(nginx: Nginx) -> None:
    link = nginx.directory / "api" / "current"
    link.unlink()

    for attempt in (lambda: nginx.provider().read(), lambda: nginx.provider().set("api", BEFORE, BEFORE)):
        with pytest.raises(AmbiguousError) as caught:
            attempt()
        assert caught.value.message == (
            f"The site api has lost its weights: {link} is missing, so all servers of both colours serve. "
            "Run the role load_balancer, which makes it as load_balancer_traffic_initial says."
        )
    assert nginx.provider().fault("api", BEFORE) == "nginx leads api to lost 100 of 100 buckets, and not by blue 100, green 0."


@pytest.mark.parametrize("target", ["weights/blue-50", "elsewhere/blue-100+green-0", "/var/lib/lms-traffic/api/weights/blue-100+green-0"])
def test_a_link_that_says_no_weights_is_named(target: str, nginx: Nginx) -> None:
    link = nginx.directory / "api" / "current"
    link.unlink()
    link.symlink_to(target)

    with pytest.raises(AmbiguousError) as caught:
        nginx.provider().read()

    assert caught.value.message.startswith(f"{link} leads to {target}, which says no weights. Remove it, then run the role load_balancer,")


def test_a_link_to_nowhere_and_what_is_no_link_are_named(nginx: Nginx) -> None:
    api, web = nginx.directory / "api" / "current", nginx.directory / "web" / "current"
    api.unlink()
    api.symlink_to("weights/blue-60+green-40")
    web.unlink()
    web.mkdir()

    with pytest.raises(
        AmbiguousError, match=r"current leads to weights/blue-60\+green-40, which is missing, so all servers of both colours serve"
    ):
        read_flags(api.parent)
    with pytest.raises(AmbiguousError, match=r"The weights of the site web cannot be read: .*/web/current: Invalid argument"):
        read_flags(web.parent)


def test_a_site_without_a_directory_is_named(nginx: Nginx) -> None:
    nginx.write({"new": {"blue": servers("blue", 1), "green": servers("green", 1)}})

    with pytest.raises(TrafficError) as caught:
        nginx.provider().set("new", BEFORE, BEFORE)

    place = nginx.directory / "new"
    assert caught.value.message == f"The weights of the site new cannot be written below {place}: No such file or directory."


# Weights that nginx cannot have


def test_weights_that_are_no_whole_percents_are_refused_with_those_that_are_possible(nginx: Nginx) -> None:
    with pytest.raises(TrafficError) as caught:
        nginx.provider().set("api", {"blue": 2, "green": 1}, BEFORE)

    assert caught.value.message == (
        "The route api cannot have blue 2, green 1: nginx splits traffic in hundredths. "
        "Give weights that come to whole percents, such as blue 67, green 33."
    )
    assert nginx.link("api") == "weights/blue-100+green-0"


def test_half_a_percent_has_neighbours_that_come_to_a_hundred(nginx: Nginx) -> None:
    with pytest.raises(TrafficError, match=r"such as blue 98, green 2\.$"):
        nginx.provider().set("api", {"blue": 197, "green": 3}, BEFORE)


def test_colours_and_routes_that_are_not_there_are_refused(nginx: Nginx) -> None:
    with pytest.raises(TrafficError, match=r"The route api has no colour red\. Its colours: blue, green\."):
        nginx.provider().set("api", {"red": 1}, BEFORE)
    with pytest.raises(TrafficError, match=r"There is no route new\. Known routes: api, web\."):
        nginx.provider().set("new", BEFORE, BEFORE)


# Two at once


def _set(directory: Path, number: int, start: Any, results: Any) -> None:
    """Move a percent more to green from where blue has all, as one of several processes."""
    provider = NginxProvider.of_routes(str(directory), ["api"])
    start.wait()
    try:
        provider.set("api", {"blue": 100 - number, "green": number}, BEFORE)
        results.put(number)
    except DriftError:
        results.put(0)


def test_of_several_processes_that_expect_the_same_one_wins(nginx: Nginx) -> None:
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    processes = [context.Process(target=_set, args=(nginx.directory, number, start, results)) for number in range(1, 7)]
    for process in processes:
        process.start()
    start.set()
    found = [results.get(timeout=60) for _process in processes]
    for process in processes:
        process.join()

    winners = [number for number in found if number]
    assert len(winners) == 1
    assert nginx.provider("api").read()["api"].weights == {"blue": 100 - winners[0], "green": winners[0]}


def test_no_reader_ever_finds_a_site_without_weights(nginx: Nginx) -> None:
    stop, seen = threading.Event(), []

    def look() -> None:
        """Look as nginx does, as fast as it goes."""
        current = nginx.directory / "api" / "current"
        while not stop.is_set():
            seen.append(current.is_dir())

    reader = threading.Thread(target=look)
    reader.start()
    provider, before = nginx.provider("api"), dict(BEFORE)
    for percent in range(1, 100):
        after = {"blue": 100 - percent, "green": percent}
        provider.set("api", after, before)
        before = after
    stop.set()
    reader.join()

    assert len(seen) > 100
    assert all(seen)


def test_with_the_link_made_in_place_a_reader_finds_none(nginx: Nginx) -> None:
    """The same without the rename, as ln -sfn used to do it."""
    link = nginx.directory / "api" / "current"
    link.unlink()
    between = nginx.answers("api")
    link.symlink_to("weights/blue-100+green-0")

    assert set(between) == {"lost"}


# Health and connections


def test_every_server_of_every_site_is_told(nginx: Nginx) -> None:
    nginx.faults["192.0.2.22"] = "status 503"
    nginx.by_hand("web", {"blue": 100})

    health = nginx.provider().health("green")

    told = {group: [(target.id, target.port, target.state, target.reason) for target in targets] for group, targets in health.items()}
    assert told == {
        "api-green": [("192.0.2.21", 8000, "healthy", ""), ("192.0.2.22", 8000, "unhealthy", "status 503")],
        "web-green": [("192.0.2.21", 8000, "unused", "not attached"), ("192.0.2.22", 8000, "unused", "not attached")],
    }
    assert sorted(nginx.asked) == [("api", "192.0.2.21"), ("api", "192.0.2.22")]


def test_an_nginx_that_is_not_there_verifies_nothing_and_says_why(nginx: Nginx) -> None:
    nginx.running = False
    provider = nginx.provider()

    assert provider.verify("api", BEFORE) is False
    assert provider.fault("api", BEFORE) == f"nginx does not say at {URL} where it leads api: [Errno 111] Connection refused. Start it."


def test_a_colour_with_weight_is_never_drained(nginx: Nginx) -> None:
    nginx.by_hand("web", {"blue": 99, "green": 1})

    assert nginx.provider().drained("green") is False


def test_connections_to_others_are_no_matter(nginx: Nginx) -> None:
    nginx.connections = [{("192.0.2.21", 9000), ("192.0.2.11", 8000), ("198.51.100.1", 8000)}, {("192.0.2.22", 8000)}]
    provider = nginx.provider()

    assert [provider.drained("green") for _look in range(3)] == [True, False, True]
