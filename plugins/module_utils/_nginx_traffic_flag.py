# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights as files that nginx looks for with each request, so that it goes by new ones without a reload.

Each request falls into one of 100 buckets. The link current of a site leads to its weights, a directory that holds for each colour one
empty file a bucket. nginx looks for the file of the last colour, and takes the other colour where there is none. A switch is the rename of
a link: before it all requests go by the old weights, after it all by the new ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ansible_collections.bitflow.lms.plugins.module_utils._files import remove_tree, sync_directory
from ansible_collections.bitflow.lms.plugins.module_utils._traffic import AmbiguousError, Weights

BUCKETS = 100
CURRENT = "current"
WEIGHTS = "weights"
# What is being made. Only who has the lock makes anything, so whatever is there from before was left by a crash.
ASIDE = ".new"

_SHARE = re.compile(r"(?P<colour>[A-Za-z0-9_][A-Za-z0-9_.-]*)-(?P<percent>\d{1,3})")


def label_of(percent: Weights) -> str:
    """Return the name of weights, which says them: blue-95+green-5."""
    return "+".join(f"{colour}-{weight}" for colour, weight in sorted(percent.items()))


def read_label(label: str) -> dict[str, int] | None:
    """Return the weights that a name says; none where it is no such name."""
    shares = [_SHARE.fullmatch(part) for part in label.split("+")]
    percent = {share["colour"]: int(share["percent"]) for share in shares if share}
    return percent if sum(percent.values()) == BUCKETS and label_of(percent) == label else None


def buckets_of(percent: Weights) -> dict[str, range]:
    """Return the buckets of each colour. The last colour gets the lowest ones, so that its visitors stay with it while its share rises."""
    found, start = {}, 0
    for colour, weight in sorted(percent.items(), reverse=True):
        found[colour] = range(start, start + weight)
        start += weight
    return found


def colours_of(percent: Weights) -> list[str]:
    """Return the colour that each bucket goes to."""
    by_bucket = {bucket: colour for colour, buckets in buckets_of(percent).items() for bucket in buckets}
    return [by_bucket[bucket] for bucket in range(BUCKETS)]


def read_flags(site: Path) -> dict[str, int]:
    """Return the weights of a site."""
    link = site / CURRENT
    role = "the role load_balancer, which makes it as load_balancer_traffic_initial says"
    try:
        target = str(link.readlink())
    except FileNotFoundError as error:
        raise AmbiguousError(
            f"The site {site.name} has lost its weights: {link} is missing, so all servers of both colours serve. Run {role}."
        ) from error
    except OSError as error:
        raise AmbiguousError(f"The weights of the site {site.name} cannot be read: {link}: {error.strerror}.") from error
    folder, _slash, label = target.rpartition("/")
    percent = read_label(label)
    if folder != WEIGHTS or percent is None:
        raise AmbiguousError(f"{link} leads to {target}, which says no weights. Remove it, then run {role}.")
    if not link.is_dir():
        raise AmbiguousError(
            f"The site {site.name} has lost its weights: {link} leads to {target}, which is missing, so all servers of both colours serve. "
            f"Remove it, then run {role}."
        )
    return percent


def write_flags(site: Path, percent: Weights) -> None:
    """Have nginx go by these weights from its next request on. Weights that are whole and in force stay as they are."""
    label = label_of(percent)
    weights = site / WEIGHTS
    (site / ASIDE).unlink(missing_ok=True)
    if (weights / label).is_dir():
        # In place: each file decides for one bucket, and there is no moment without any.
        _fill(weights / label, buckets_of(percent))
    else:
        remove_tree(weights / ASIDE)
        _make(weights)
        _make(weights / ASIDE)
        _fill(weights / ASIDE, buckets_of(percent))
        (weights / ASIDE).rename(weights / label)
        sync_directory(weights)
    target = Path(WEIGHTS, label)
    if (site / CURRENT).is_symlink() and (site / CURRENT).readlink() == target:
        return
    (site / ASIDE).symlink_to(target)
    (site / ASIDE).replace(site / CURRENT)
    sync_directory(site)


def _fill(directory: Path, buckets: Mapping[str, range]) -> None:
    """Have a directory hold these buckets of each colour and no others."""
    for colour, wanted in buckets.items():
        folder = directory / colour
        _make(folder)
        names = {str(bucket) for bucket in wanted}
        found = {path.name for path in folder.iterdir()}
        for name in sorted(names - found):
            (folder / name).touch(mode=0o644)
        for name in sorted(found - names):
            (folder / name).unlink()
        if names != found:
            sync_directory(folder)
    for path in sorted(directory.iterdir()):
        if path.name not in buckets:
            remove_tree(path)
    sync_directory(directory)


def _make(directory: Path) -> None:
    """Make a directory that the workers of nginx can look into, whatever the umask is."""
    if not directory.is_dir():
        directory.mkdir()
        directory.chmod(0o755)
