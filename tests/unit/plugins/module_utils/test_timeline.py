# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page that shows a run over time."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._timeline import Bar, Play, Run, Task, render, seconds_text, tick_text, ticks

VOID = {"meta"}


class Page(HTMLParser):
    """What a browser would find: the open elements must close in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.elements: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def run() -> Run:
    build = Task("Build", 100.0, [Bar("web1", 100.0, 102.0, "changed"), Bar("web2", 100.0, 104.0, "ok")])
    idle = Task("Nothing", 104.0, [Bar("web1", 104.0, 104.1, "skipped")])
    prove = Task("Prove", 105.0, [Bar("web2", 105.0, 109.0, "failed", "it answered 503")])
    return Run("deploy.yml", 100.0, [Play("Prepare", 100.0, [build, idle]), Play("Switch", 105.0, [prove])], 110.0)


def test_page_is_whole_and_needs_nothing_else() -> None:
    text = render(run())
    page = Page(text)

    assert page.open == []
    assert page.elements.isdisjoint({"script", "link", "img", "iframe"})
    assert not re.search(r"https?://|url\(|@import", text)
    assert {name for name, _value in page.attributes}.isdisjoint({"src", "href", "onclick"})


def test_bars_stand_where_they_happened() -> None:
    text = render(run())

    assert '<i class="changed" style="left:0.000%;width:20.000%;' in text
    assert '<i class="failed" style="left:50.000%;width:40.000%;' in text


def test_failure_is_told_in_words() -> None:
    text = render(run())

    assert '<span class="verdict failed">1 failed</span>' in text
    assert '<div class="failure"><strong>Prove</strong> on web2, after 5.0 s<pre>it answered 503</pre></div>' in text
    assert '<p class="quiet">1 task had nothing to do.</p>' in text


def test_nothing_that_a_task_says_becomes_markup() -> None:
    evil = "</title><script>alert(1)</script>\"' onload=x"
    text = render(Run(evil, 0.0, [Play(evil, 0.0, [Task(evil, 0.0, [Bar(evil, 0.0, 1.0, "failed", evil)])])], 1.0))

    page = Page(text)
    assert "script" not in page.elements
    assert "onload" not in {name for name, _value in page.attributes}


def test_run_that_was_interrupted_shows_what_it_was_at() -> None:
    text = render(Run("deploy.yml", 0.0, [Play("Prepare", 0.0, [Task("Build", 0.0, [Bar("web1", 1.0)])])], 5.0))

    assert '<i class="unfinished" style="left:20.000%;width:80.000%;' in text


@pytest.mark.parametrize("empty", [Run("deploy.yml", 0.0), Run("deploy.yml", 0.0, [Play("Prepare", 0.0, [Task("Build", 0.0)])])])
def test_run_without_a_task_is_a_page_too(empty: Run) -> None:
    assert Page(render(empty)).open == []


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0.5, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]), (7.2, [0, 1, 2, 3, 4, 5, 6, 7]), (40, [0, 5, 10, 15, 20, 25, 30, 35, 40])],
)
def test_axis_has_round_marks(length: float, expected: list[float]) -> None:
    assert ticks(length) == expected


def test_times_read_as_people_say_them() -> None:
    assert (seconds_text(4.25), seconds_text(125.4)) == ("4.2 s", "2:05 min")
    assert (tick_text(0.5, 3), tick_text(90, 300)) == ("0.5 s", "1:30")
