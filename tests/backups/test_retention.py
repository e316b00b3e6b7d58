# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeping and deleting backups: in a directory of a host with the modules as Ansible runs them, and in a bucket with object lock."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import new_id, now_utc, read_catalogue, seal
from ansible_collections.bitflow.lms.plugins.module_utils._backup_s3 import S3Options, S3Store, client_for
from ansible_collections.bitflow.lms.plugins.modules import backup_hold, backup_prune
from database_host import LIBRARY, Host

sys.path.insert(0, str(Path(__file__).parents[1] / "lab"))

from s3_proxy import Lab

DAY = timedelta(days=1)
NAME = {"environment": "prod", "kind": "database"}
REPOSITORY = "/srv/retention"
# Writes the backups that stand on standard input, each with a kilobyte of data.
WRITE = """
import json, sys
from pathlib import Path
from ansible_collections.bitflow.lms.plugins.module_utils._backup_catalogue import canonical, seal
from ansible_collections.bitflow.lms.plugins.module_utils._backup_directory import DirectoryStore
Path(sys.argv[1]).mkdir()
store = DirectoryStore(Path(sys.argv[1]))
for backup in json.load(sys.stdin):
    draft = store.draft(backup["path"])
    upload = draft.upload("data.dump")
    upload.write(bytes(1024))
    done = upload.complete()
    described = {"name": done.name, "size": done.size, "sha256": done.sha256}
    draft.publish(seal({"objects": [described], "suspicious": backup["suspicious"]}))
    if backup["verified"]:
        store.create(backup["path"] + "/verify-" + backup["path"][-25:-9] + "-restore.json", canonical({"ok": True}))
"""


class Repository:
    """A repository on the host, with backups that are made up."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def fill(self, ages: list[timedelta], name: str = "lms", suspicious: bool = False, verified: bool = False) -> list[str]:
        """Begin a repository with backups of these ages, and return their ids, the oldest first."""
        self.host.execute("rm", "-rf", REPOSITORY)
        ids = sorted(new_id(now_utc() - age) for age in ages)
        backups = [{"path": f"prod/database/{name}/{identity}", "suspicious": suspicious, "verified": verified} for identity in ids]
        self.host.execute("env", f"PYTHONPATH={LIBRARY}", "python3", "-c", WRITE, REPOSITORY, input=json.dumps(backups))
        return ids

    def module(self, module: str, **arguments: Any) -> dict[str, Any]:
        """Run a module on it."""
        return self.host.module(module, repository=REPOSITORY, **NAME, **arguments)

    def prune(self, keep: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        """Prune it."""
        return self.module("backup_prune", keep=keep, **arguments)

    def info(self) -> dict[str, Any]:
        """List it."""
        return self.module("backup_info", name="lms")

    def ids(self) -> list[str]:
        """Return the ids of what is listed."""
        return [backup["id"] for backup in self.info()["backups"]]

    def size(self) -> int:
        """Return the bytes of all its files."""
        return int(self.host.shell(f"find {REPOSITORY} -type f -printf '%s\\n' | awk '{{ sum += $1 }} END {{ print sum + 0 }}'"))


@pytest.fixture
def repository(host: Host) -> Repository:
    """Return a repository on the host."""
    return Repository(host)


def ids_of(backups: list[dict[str, Any]]) -> list[str]:
    """Return the ids of backups that a module returned."""
    return [backup["id"] for backup in backups]


def test_a_year_of_backups_becomes_what_the_rules_keep(repository: Repository) -> None:
    ids = repository.fill([timedelta(hours=1) + index * DAY for index in range(365)])
    keep = {"daily": 7, "weekly": 4, "monthly": 12}
    before = repository.size()

    planned = repository.prune(keep, check_mode=True)
    assert repository.ids() == ids
    done = repository.prune(keep)
    again = repository.prune(keep)

    assert {**planned, "warnings": []} == {**done, "warnings": []}
    assert (done["changed"], done["blocked"], done["left_alone"]) == (True, "", [])
    assert done["freed"] == before - repository.size()
    # Some days are the newest of their week or month as well.
    assert 7 + 12 <= len(done["kept"]) <= 7 + 4 + 12
    assert repository.ids() == ids_of(done["kept"])
    assert sorted(ids_of(done["kept"]) + ids_of(done["deleted"])) == ids
    assert (again["changed"], again["deleted"], ids_of(again["kept"])) == (False, [], repository.ids())
    lines = done["diff"]["before"].splitlines()
    assert [line.partition(":")[0].rpartition("/")[2] for line in lines] == ids
    assert lines[0] == f"prod/database/lms/{ids[0]}: delete (no rule keeps it)"
    # Nothing is left of what is gone, not even its directory.
    assert sorted(repository.host.shell(f"ls -A {REPOSITORY}/prod/database/lms").split()) == ids_of(done["kept"])


def test_a_dead_timer_costs_no_backup(repository: Repository) -> None:
    ids = repository.fill([index * DAY for index in range(20, 30)])

    planned = repository.prune({"within": "7d"}, check_mode=True)
    done = repository.prune({"within": "7d"})

    assert "failed" not in planned
    assert planned["warnings"] == [planned["blocked"]]
    assert (done["failed"], done["changed"], done["deleted"]) == (True, False, [])
    assert done["msg"].startswith(
        "The newest good backup of prod/database/lms is 20d old, which is more than stale_guard (3d): nothing of it"
    )
    assert repository.ids() == ids


def test_good_backups_outlive_any_number_of_bad_ones(repository: Repository) -> None:
    ids = repository.fill([index * DAY for index in range(1, 13)], verified=True)
    host = repository.host
    # Two are cut off, of two the manifest was changed, and of one the data is gone.
    for identity in ids[-2:]:
        host.shell(f"truncate --size 1000 {REPOSITORY}/prod/database/lms/{identity}/data.dump")
    for identity in ids[-4:-2]:
        host.shell(f"sed -i s/false/true/ {REPOSITORY}/prod/database/lms/{identity}/manifest.json")
    host.shell(f"rm {REPOSITORY}/prod/database/lms/{ids[-5]}/data.dump")

    done = repository.prune({"last": 4}, stale_guard="10d", suspicious_max_age="1h")

    # By date the last four would be what is kept: all of them bad.
    assert ids_of(done["deleted"]) == [*ids[:3], *ids[-5:]]
    assert repository.ids() == ids[3:7]
    assert [backup["state"] for backup in repository.info()["backups"]] == ["verified"] * 4


def test_a_held_backup_stays_until_it_is_released(repository: Repository) -> None:
    ids = repository.fill([index * DAY for index in range(1, 4)])
    hold = {"name": "lms", "id": ids[0]}

    planned = repository.module("backup_hold", **hold, reason="The audit", check_mode=True)
    held = repository.module("backup_hold", **hold, reason="The audit")
    again = repository.module("backup_hold", **hold, reason="The audit")
    pruned = repository.prune({"last": 1}, min_good=1)

    assert planned["hold"].keys() == held["hold"].keys()
    assert (planned["changed"], held["changed"], again["changed"]) == (True, True, False)
    assert pruned["left_alone"] == [{"path": f"prod/database/lms/{ids[0]}", "reason": "held: The audit"}]
    assert repository.ids() == [ids[0], ids[2]]
    assert repository.module("backup_hold", **hold, state="absent")["hold"] is None
    assert ids_of(repository.prune({"last": 1}, min_good=1)["deleted"]) == [ids[0]]


def test_killed_at_any_moment_it_leaves_whole_backups_or_none(repository: Repository) -> None:
    ids = repository.fill([index * DAY for index in range(1, 301)])
    host = repository.host
    arguments = json.dumps({"ANSIBLE_MODULE_ARGS": {"repository": REPOSITORY, **NAME, "keep": {"last": 1}, "_ansible_remote_tmp": "/tmp"}})
    argv = ["env", f"PYTHONPATH={LIBRARY}", "PYTHONDONTWRITEBYTECODE=1", "python3", "/usr/local/lib/tests/run_module.py", "backup_prune"]
    source = random.Random(4711)  # noqa: S311 (no secret comes of it)
    seen = []

    for _attempt in range(12):
        host.execute("timeout", "--signal=KILL", f"{0.2 + source.random() * 0.5:.3f}", *argv, input=arguments, check=False)
        found = repository.info()
        assert {backup["state"] for backup in found["backups"]} == {"complete"}
        seen.append(len(found["backups"]))

    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < len(ids)
    # What was cut off is told apart, and swept as soon as it is old enough.
    host.shell(f"find {REPOSITORY} -type f -exec touch --date='2 days ago' {{}} +")
    repository.prune({"last": 1})
    assert repository.ids() == ids[-2:]
    assert repository.info()["partials"] == []
    files = host.shell(f"cd {REPOSITORY}/prod/database/lms && find . -type f | sort").split()
    assert files == [f"./{identity}/{file}" for identity in ids[-2:] for file in ("data.dump", "manifest.json")]


def test_the_metrics_lie_where_the_exporter_reads_them(repository: Repository) -> None:
    ids = repository.fill([2 * DAY, DAY], verified=True)
    host = repository.host
    host.shell("rm -rf /srv/metrics && mkdir /srv/metrics")

    first = repository.module("backup_metrics", name="lms", attempt="failed", directory="/srv/metrics")
    again = repository.module("backup_metrics", directory="/srv/metrics")

    assert (first["changed"], again["changed"]) == (True, False)
    assert host.shell("stat -c '%a %U' /srv/metrics/lms_backups.prom") == "644 root\n"
    text = host.shell("cat /srv/metrics/lms_backups.prom")
    moment = int(datetime.strptime(ids[1][:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc).timestamp())
    labels = 'environment="prod",kind="database",name="lms"'
    assert f"lms_backup_last_success_timestamp_seconds{{{labels}}} {moment}\n" in text
    assert f"lms_backup_last_attempt_ok{{{labels}}} 0\n" in text


# On S3

OPTIONS = S3Options(region="eu-central-1", access_key="lab", secret_key="lab")
NOW = now_utc()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Start S3."""
    with Lab() as made:
        yield made


def bucket_with_lock(lab: Lab, name: str) -> S3Store:
    """Return a repository in a bucket with object lock, which keeps nothing by default."""
    options = S3Options(region="eu-central-1", access_key="lab", secret_key="lab", endpoint_url=lab.endpoint)
    client = client_for(options)
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    return S3Store(client, name, "lms", options)


def put(store: S3Store, age: timedelta) -> str:
    """Publish a backup and return its path."""
    path = f"prod/database/lms/{new_id(NOW - age)}"
    draft = store.draft(path)
    upload = draft.upload("data.dump")
    upload.write(bytes(1024))
    done = upload.complete()
    draft.publish(seal({"objects": [{"name": done.name, "size": done.size, "sha256": done.sha256}]}))
    return path


def prune(store: S3Store, check_mode: bool = False, now: datetime = NOW) -> dict[str, Any]:
    """Prune down to the newest one."""
    params = {
        **NAME,
        "name": "lms",
        "keep": {"last": 1},
        "min_good": 1,
        "min_verified": 1,
        "stale_guard": "900d",
        "partial_max_age": "24h",
        "suspicious_max_age": "14d",
    }
    return backup_prune.run(store, params, check_mode, now)


def hold(store: S3Store, path: str, **wanted: Any) -> dict[str, Any]:
    """Hold a backup, or release it."""
    params = {**NAME, "name": "lms", "id": path.rpartition("/")[2], "state": "present", "reason": "The audit", "until": None}
    return backup_hold.run(store, {**params, **wanted}, False, NOW)


def listed(store: S3Store) -> list[str]:
    """Return the paths of the backups that are listed."""
    return [backup.path for backup in read_catalogue(store).backups]


@pytest.mark.parametrize("mode", ["GOVERNANCE", "COMPLIANCE"])
def test_what_object_lock_keeps_is_told_and_is_no_failure(lab: Lab, mode: str) -> None:
    store = bucket_with_lock(lab, f"locked-{mode.lower()}")
    locked, free, newest = put(store, 3 * DAY), put(store, 2 * DAY), put(store, DAY)
    until = NOW + 30 * DAY
    for file in ("data.dump", "manifest.json"):
        store.client.put_object_retention(**store.where(f"{locked}/{file}"), Retention={"Mode": mode, "RetainUntilDate": until})

    planned = prune(store, check_mode=True)
    done = prune(store)

    assert planned == done
    reason = f"locked by the bucket until {until:%Y-%m-%dT%H:%M:%SZ}"
    assert done["left_alone"] == [{"path": locked, "reason": reason}]
    assert [backup["path"] for backup in done["deleted"]] == [free]
    assert listed(store) == [locked, newest]
    # When the lock has ended it goes as any other.
    assert [backup["path"] for backup in prune(store, now=until + DAY)["deleted"]] == [locked]


def test_a_delete_alone_would_hide_what_is_locked_and_say_that_it_is_gone(lab: Lab) -> None:
    store = bucket_with_lock(lab, "hidden")
    path = put(store, DAY)
    key = f"{path}/manifest.json"
    store.client.put_object_retention(**store.where(key), Retention={"Mode": "COMPLIANCE", "RetainUntilDate": NOW + 30 * DAY})

    store.delete(key)

    assert listed(store) == []
    versions = store.client.list_object_versions(Bucket="hidden", Prefix=store.where(key)["Key"])
    assert len(versions["Versions"]) == 1


def test_a_hold_is_a_legal_hold_of_the_bucket_too(lab: Lab) -> None:
    store = bucket_with_lock(lab, "held")
    old, newest = put(store, 2 * DAY), put(store, DAY)

    hold(store, old)

    keys = [f"{old}/{file}" for file in ("data.dump", "manifest.json")]
    assert [store.lock_of(key) for key in keys] == [(None, True)] * 2
    assert prune(store)["left_alone"] == [{"path": old, "reason": "held: The audit"}]
    hold(store, old, state="absent")
    assert [store.lock_of(key) for key in keys] == [(None, False)] * 2
    assert [backup["path"] for backup in prune(store)["deleted"]] == [old]
    assert listed(store) == [newest]


def test_a_hold_that_ends_frees_what_it_locked(lab: Lab) -> None:
    store = bucket_with_lock(lab, "ended")
    old, newest = put(store, 2 * DAY), put(store, DAY)
    hold(store, old, until=(NOW + 7 * DAY).isoformat())

    before, after = prune(store, now=NOW + 6 * DAY), prune(store, now=NOW + 8 * DAY)

    assert (before["deleted"], [backup["path"] for backup in after["deleted"]]) == ([], [old])
    assert listed(store) == [newest]


def test_a_legal_hold_of_somebody_else_is_respected(lab: Lab) -> None:
    store = bucket_with_lock(lab, "theirs")
    old, _newest = put(store, 2 * DAY), put(store, DAY)
    store.legal_hold(f"{old}/manifest.json", True)

    assert prune(store)["left_alone"] == [{"path": old, "reason": "locked by a legal hold that backup_hold did not set"}]


def test_a_bucket_without_object_lock_holds_by_the_note_alone(lab: Lab) -> None:
    options = S3Options(region="eu-central-1", access_key="lab", secret_key="lab", endpoint_url=lab.endpoint)
    client = client_for(options)
    client.create_bucket(Bucket="plain", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    store = S3Store(client, "plain", "", options)
    old, newest = put(store, 2 * DAY), put(store, DAY)

    hold(store, old)
    kept = prune(store)
    hold(store, old, state="absent")
    prune(store)

    assert kept["left_alone"] == [{"path": old, "reason": "held: The audit"}]
    assert listed(store) == [newest]
