# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page that shows a run over time: pure functions from records to HTML."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from html import escape

STATUSES = ("ok", "changed", "skipped", "failed", "unreachable", "unfinished")
BAD = frozenset({"failed", "unreachable"})
TICKS_WANTED = 8
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 21600)
LONGEST_MESSAGE = 2000
STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #1f2430; --quiet: #667085; --line: #e4e7ec; --raised: #f7f8fa;
  --ok: #3b8f5a; --changed: #b7791f; --skipped: #c3c8d1; --failed: #c8322b; --unreachable: #8e3fa8; --unfinished: #5b7fbf; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171d; --text: #e6e9ef; --quiet: #98a2b3; --line: #2a2f3a; --raised: #1b1f27;
  --ok: #57b47b; --changed: #dba642; --skipped: #4a5160; --failed: #f0655d; --unreachable: #c17fd6; --unfinished: #86a8e2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 90rem; padding: 2rem 1.5rem 4rem; background: var(--ground); color: var(--text);
  font: 14px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0; } .quiet { color: var(--quiet); }
.verdict { display: inline-block; padding: .1rem .6rem; border-radius: 1rem; color: var(--ground); font-weight: 600;
  background: var(--ok); }
.verdict.failed { background: var(--failed); }
.key { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 1rem 0 0; color: var(--quiet); }
.key i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .4rem; vertical-align: -1px; }
.failure { border-left: 4px solid var(--failed); background: var(--raised); padding: .5rem .9rem; margin: .5rem 0; }
.failure pre { margin: .25rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.45 ui-monospace, monospace; }
.row { display: grid; grid-template-columns: minmax(9rem, 26%) 1fr 4.5rem; gap: .75rem; align-items: center; padding: 1px 0; }
.row:hover { background: var(--raised); }
.name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.time { text-align: right; color: var(--quiet); font-variant-numeric: tabular-nums; }
.track { position: relative; background: linear-gradient(var(--line), var(--line)) 0 100% / 100% 1px no-repeat; }
.track i { position: absolute; min-width: 2px; border-radius: 1px; }
.lane .track { height: 1.1rem; } .lane .track i { top: 2px; bottom: 3px; }
.axis .track { height: 1.3rem; background: none; }
.axis .track span { position: absolute; white-space: nowrap; transform: translateX(-50%); color: var(--quiet); font-size: 12px; }
.axis .track span:first-child { transform: none; }
.play > .track i { background: var(--unfinished); opacity: .55; }
details { border-top: 1px solid var(--line); padding-bottom: .35rem; }
summary { cursor: pointer; padding: .35rem 0; list-style: none; font-weight: 600; } summary::-webkit-details-marker { display: none; }
summary .name::before { content: "▸ "; } details[open] summary .name::before { content: "▾ "; }
""" + "\n".join(f".{status} {{ background: var(--{status}); }}" for status in STATUSES)


@dataclass
class Bar:
    """What a task did on one host."""

    host: str
    start: float
    end: float | None = None
    status: str = "unfinished"
    message: str = ""


@dataclass
class Task:
    """A task of a play, with a bar a host."""

    name: str
    start: float
    bars: list[Bar] = field(default_factory=list)

    def end(self, until: float) -> float:
        """Return when its last host was done."""
        return max((part.end or until for part in self.bars), default=self.start)


@dataclass
class Play:
    """A play with its tasks."""

    name: str
    start: float
    tasks: list[Task] = field(default_factory=list)

    def end(self, until: float) -> float:
        """Return when its last task was done."""
        return max((task.end(until) for task in self.tasks), default=self.start)


@dataclass
class Run:
    """A run of a playbook."""

    title: str
    start: float
    plays: list[Play] = field(default_factory=list)
    end: float = 0.0

    def bars(self) -> list[tuple[Task, Bar]]:
        """Return all bars with their tasks."""
        return [(task, part) for play in self.plays for task in play.tasks for part in task.bars]

    def failures(self) -> list[tuple[Task, Bar]]:
        """Return the bars that failed."""
        return [(task, part) for task, part in self.bars() if part.status in BAD]


def seconds_text(seconds: float) -> str:
    """Return a time as people read it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min"


def ticks(length: float) -> list[float]:
    """Return the round times at which the axis has a mark."""
    step = next((step for step in STEPS if length / step <= TICKS_WANTED), STEPS[-1])
    return [round(number * step, 1) for number in range(int(length / step) + 1)]


def tick_text(seconds: float, length: float) -> str:
    """Return the text of a mark on the axis."""
    if length >= 120:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
    return f"{seconds:g} s"


def render(run: Run) -> str:
    """Return the page."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{escape(run.title)}</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            *_head(run),
            *_failures(run),
            *_hosts(run),
            *_plays(run),
            "</body>",
            "</html>",
            "",
        ]
    )


def _head(run: Run) -> Iterable[str]:
    """Return the title, the outcome and the key of the colours."""
    bars = [part for _task, part in run.bars()]
    failed = len(run.failures())
    moment = datetime.fromtimestamp(run.start, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    counts = {status: sum(part.status == status for part in bars) for status in STATUSES}
    verdict = f'<span class="verdict failed">{failed} failed</span>' if failed else '<span class="verdict">no failure</span>'
    yield f"<h1>{escape(run.title)}</h1>"
    yield f'<p class="quiet">{moment}, {seconds_text(run.end - run.start)}, {len({part.host for part in bars})} hosts</p>'
    yield f"<p>{verdict}</p>"
    key = [f'<span><i class="{status}"></i>{status} {count}</span>' for status, count in counts.items() if count]
    yield f'<p class="key">{"".join(key)}</p>'


def _failures(run: Run) -> Iterable[str]:
    """Return what failed, with the messages."""
    failures = run.failures()
    if failures:
        yield "<h2>What failed</h2>"
    for task, part in failures:
        where = f"<strong>{escape(task.name)}</strong> on {escape(part.host)}, after {seconds_text(part.start - run.start)}"
        message = f"<pre>{escape(part.message[:LONGEST_MESSAGE])}</pre>" if part.message else ""
        yield f'<div class="failure">{where}{message}</div>'


def _hosts(run: Run) -> Iterable[str]:
    """Return the lane of each host."""
    lanes: dict[str, list[tuple[Task, Bar]]] = {}
    for task, part in run.bars():
        lanes.setdefault(part.host, []).append((task, part))
    if not lanes:
        return
    yield "<h2>Hosts</h2>"
    yield _axis(run)
    for host, bars in sorted(lanes.items()):
        busy = sum((part.end or run.end) - part.start for _task, part in bars)
        yield _row(host, "".join(_bar(run, task, part) for task, part in bars), seconds_text(busy), "lane")


def _plays(run: Run) -> Iterable[str]:
    """Return the plays, each with a row a task."""
    if run.plays:
        yield "<h2>Plays and tasks</h2>"
        yield _axis(run)
    for play in run.plays:
        end = play.end(run.end)
        place = f'<i style="{_place(run, play.start, end)} top:4px;bottom:4px"></i>'
        yield f"<details{' open' if end - play.start > 0 and any(task.bars for task in play.tasks) else ''}>"
        yield f"<summary>{_row(play.name, place, seconds_text(end - play.start), 'lane play')}</summary>"
        busy = [task for task in play.tasks if any(part.status != "skipped" for part in task.bars)]
        for task in busy:
            yield _task(run, task)
        idle = sum(bool(task.bars) for task in play.tasks) - len(busy)
        if idle:
            yield f'<p class="quiet">{idle} task{"s" if idle > 1 else ""} had nothing to do.</p>'
        yield "</details>"


def _task(run: Run, task: Task) -> str:
    """Return the row of a task: its hosts one below the other."""
    height = max(6, 18 // len(task.bars))
    inner = "".join(
        _bar(run, task, part, f"top:{number * (height + 1) + 1}px;height:{height}px")
        for number, part in enumerate(sorted(task.bars, key=lambda part: part.host))
    )
    size = len(task.bars) * (height + 1) + 3
    return _row(task.name, inner, seconds_text(task.end(run.end) - task.start), "task", f"height:{size}px")


def _bar(run: Run, task: Task, part: Bar, more: str = "") -> str:
    """Return one bar, which says in words what its colour means."""
    end = part.end or run.end
    title = f"{task.name}\n{part.host}: {part.status}, {seconds_text(end - part.start)}"
    if part.message:
        title += f"\n{part.message[:200]}"
    return f'<i class="{part.status}" style="{_place(run, part.start, end)}{more}" title="{escape(title)}"></i>'


def _place(run: Run, start: float, end: float) -> str:
    """Return where something is on the axis."""
    length = max(run.end - run.start, 0.001)
    return f"left:{100 * (start - run.start) / length:.3f}%;width:{100 * max(end - start, 0) / length:.3f}%;"


def _axis(run: Run) -> str:
    """Return the marks of the time."""
    length = max(run.end - run.start, 0.001)
    marks = "".join(f'<span style="left:{100 * tick / length:.2f}%">{tick_text(tick, length)}</span>' for tick in ticks(length))
    return f'<div class="row axis"><span></span><div class="track">{marks}</div><span></span></div>'


def _row(name: str, inner: str, time: str, kind: str, style: str = "") -> str:
    """Return a row: a name, a track and a time."""
    track = f'<div class="track" style="{style}">' if style else '<div class="track">'
    return (
        f'<div class="row {kind}"><span class="name" title="{escape(name)}">{escape(name)}</span>{track}{inner}</div>'
        f'<span class="time">{time}</span></div>'
    )
