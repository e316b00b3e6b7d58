"""What script/bench runtime decides by: what is stale, when a socket is left, and what the table says."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from runtime import Instance, Shared, beside, connections, is_stale, rename_link, report


@pytest.mark.parametrize(
    ("due", "marks", "stale"),
    [
        # Before and soon after the switches at 10 and 20.
        (9.0, ["r00"], False),
        (10.9, ["r00"], False),
        (11.1, ["r00"], True),
        (11.1, ["r01"], False),
        (21.1, ["r01"], True),
        (21.1, ["r02"], False),
        # Part of it is.
        (21.1, ["r01", "r02"], True),
        # There was no answer that could be stale.
        (21.1, [], False),
    ],
)
def test_an_answer_is_stale_a_second_after_the_switch(due, marks, stale):
    assert is_stale({"due": due, "marks": marks}, [10.0, 20.0]) is stale


def test_a_socket_is_left_when_neither_a_taken_nor_a_waiting_connection_is_there(tmp_path):
    path = tmp_path / "fpm.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        seen = [connections(path)]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            seen.append(connections(path))
            accepted, _address = listener.accept()
            seen.append(connections(path))
        accepted.close()
        seen.append(connections(path))

    assert seen == [0, 1, 1, 0]


def test_a_link_is_renamed_over_the_old_one(tmp_path):
    link = tmp_path / "current"
    link.symlink_to("releases/r00")

    rename_link(link, "releases/r01")

    assert (str(link.readlink()), [path.name for path in tmp_path.iterdir()]) == ("releases/r01", ["current"])


def test_a_figure_stands_beside_its_ratio_to_the_control():
    assert [beside(30, 20), beside(3, 0), beside(112.4, 98, 0)] == ["30.0 (1.50)", "3.0", "112 (1.15)"]


def test_the_table_has_a_column_for_each_way():
    result = {
        **dict.fromkeys(("switches", "sent", "failed", "mixed", "stale", "retried"), 0),
        **dict.fromkeys(("p50_ms", "p99_ms", "max_ms", "late_p99_ms"), 10.0),
        "rest": 2**20,
        "peak": 2**21,
        "keys": "1/2",
        "used": 2**20,
        "full": False,
    }
    ways = [
        Shared("control", 1, Path("/shared"), switching=False),
        Shared("rename", 1, Path("/shared")),
        Instance("instance", 2, Path("/i")),
    ]
    ways[2].before += [0.1, 0.3, 0.5]
    speed = {"/": (100.0, 5.0), "/api/courses": (50.0, 10.0)}

    rows = report({way.name: result for way in ways}, ways, {"rename": speed, "instance": {**speed, "/": (200.0, 2.5)}})

    assert {len(row) for row in rows} == {4}
    assert ["p99 ms", "10.0 (1.00)", "10.0 (1.00)", "10.0 (1.00)"] in rows
    assert ["memory, peak (MiB)", "2.0 (1.00)", "2.0 (1.00)", "2.0 (1.00)"] in rows
    assert ["until the switch (s)", "", "", "0.30"] in rows
    assert ["/ requests/s", "", "100 (1.00)", "200 (2.00)"] in rows
    assert ["/ CPU ms a request", "", "5.0 (1.00)", "2.5 (0.50)"] in rows
