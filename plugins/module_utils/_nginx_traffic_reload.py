# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights as a part of nginx' configuration, which it takes with a reload: for who does not want a look at a file with each request.

The file split.conf of a site gives two variables: $traffic_colour_<site>, the colour of $traffic_key, and $traffic_weights_<site>, which
the status address has to answer with at /traffic/<site>. A reload closes idle connections, and a client that has just sent a request on one
of them gets no answer. Only keepalive_min_timeout, which old versions of nginx do not have, keeps them open for long enough.
"""

from __future__ import annotations

import re
from pathlib import Path

from ansible_collections.bitflow.lms.plugins.module_utils._files import write_atomically
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_flag import label_of, read_label
from ansible_collections.bitflow.lms.plugins.module_utils._systemd import RunProgram
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import AmbiguousError, TrafficError, Weights

FILE = "split.conf"

_LABEL = re.compile(r"# (?P<label>\S+)\n")
_KEPT_OPEN = re.compile(r"^\s*keepalive_min_timeout\s+(?!0+[a-z]*;)\S+;", re.MULTILINE)
_NO_WORD = re.compile(r"\W")


def render(site: str, percent: Weights) -> str:
    """Return the configuration that splits a site. The last colour gets the first visitors, so that they stay while its share rises."""
    word, label = _NO_WORD.sub("_", site), label_of(percent)
    *parts, rest = [colour for colour, weight in sorted(percent.items(), reverse=True) if weight]
    lines = [
        f"# {label}",
        f"split_clients $traffic_key $traffic_colour_{word} {{",
        *(f"    {percent[colour]}% {colour};" for colour in parts),
        f"    * {rest};",
        "}",
        f'map "" $traffic_weights_{word} {{',
        f'    default "{label}";',
        "}",
        "",
    ]
    return "\n".join(lines)


def read_split(site: Path) -> dict[str, int]:
    """Return the weights of a site."""
    path = site / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise AmbiguousError(f"The site {site.name} has lost its weights: {path} is missing. Bring it back, or set it up again.") from error
    except OSError as error:
        raise AmbiguousError(f"The weights of the site {site.name} cannot be read: {path}: {error.strerror}.") from error
    found = _LABEL.match(text)
    percent = read_label(found["label"]) if found else None
    if percent is None or text != render(site.name, percent):
        raise AmbiguousError(f"{path} was changed by somebody else, so nobody knows its weights. Bring it back, or set it up again.")
    return percent


def write_split(site: Path, percent: Weights, run: RunProgram) -> None:
    """Have nginx go by these weights with a reload; what nginx does not take is put back."""
    path = site / FILE
    before, after = path.read_bytes(), render(site.name, percent).encode()
    # Before anything else: a reload would bring in whatever else lies there.
    _refuse_to_cut(_nginx(run, "-T"))
    if after != before:
        write_atomically(path, after)
    try:
        _nginx(run, "-t")
        _nginx(run, "-s", "reload")
    except TrafficError:
        write_atomically(path, before)
        raise


def _refuse_to_cut(configuration: str) -> None:
    """Refuse a reload that would cut kept-alive connections."""
    if not _KEPT_OPEN.search(configuration):
        raise TrafficError(
            "A reload of nginx would lose requests on kept-alive connections, because its configuration sets no keepalive_min_timeout. "
            "Set it, which takes a new version of nginx, or use the method flag."
        )


def _nginx(run: RunProgram, *arguments: str) -> str:
    """Run nginx, and return what it said."""
    argv = ["nginx", *arguments]
    rc, stdout, stderr = run(argv)
    if rc != 0:
        raise TrafficError(f"{' '.join(argv)} ended with status {rc}: {stderr.strip()} Mend its configuration.", rc=rc, stderr=stderr)
    return stdout
