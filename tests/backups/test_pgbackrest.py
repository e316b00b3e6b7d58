"""pgBackRest on a real PostgreSQL: backups, an archive that breaks, and the way back to the moment before a mistake."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from database_host import Host, wait_until

STANZA = "lms"
# A cluster of its own, so that the other tests' databases neither archive nor go back in time.
CLUSTER = "17 pitr"
DATA = "/var/lib/postgresql/17/pitr"
UNIT = "postgresql@17-pitr"
PORT = 5499
CONFIGURATION = "/etc/pgbackrest/pgbackrest.conf"
REPOSITORY = "/var/lib/pgbackrest"
PASSPHRASE = "a passphrase for tests"
SETTINGS = f"""
port = {PORT}
archive_mode = on
archive_command = 'pgbackrest --stanza={STANZA} archive-push %p'
shared_buffers = 16MB
"""
PGBACKREST = f"""[global]
repo1-path={REPOSITORY}
repo1-retention-full=2
repo1-cipher-type=aes-256-cbc
repo1-cipher-pass={PASSPHRASE}
repo1-bundle=y
repo1-block=y
compress-type=zst
start-fast=y
archive-async=y
spool-path=/var/spool/pgbackrest
archive-push-queue-max=4GiB
[{STANZA}]
pg1-path={DATA}
pg1-port={PORT}
"""
KEYS = {"changed", "warnings", "stanza", "info", "archiver", "waiting", "plan", "blocked", "backup", "verification", "restore", "diff"}


class Cluster:
    """A PostgreSQL cluster that pgBackRest backs up."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def make(self) -> None:
        """Create it anew, with an empty repository."""
        self.host.shell(
            f"pg_dropcluster --stop {CLUSTER} 2>/dev/null; rm -rf {DATA}* {REPOSITORY}/* /var/spool/pgbackrest/*;"
            f" pg_createcluster --port {PORT} {CLUSTER} -- --no-sync >/dev/null && install -d /etc/pgbackrest"
        )
        self.host.execute("tee", "/etc/postgresql/17/pitr/conf.d/archive.conf", input=SETTINGS)
        self.configure(PGBACKREST)
        self.host.execute("systemctl", "start", UNIT)

    def remove(self) -> None:
        """Remove it."""
        self.host.shell(f"pg_dropcluster --stop {CLUSTER}; rm -rf {DATA}* {REPOSITORY}/* {CONFIGURATION}", check=False)

    def configure(self, text: str) -> None:
        """Write pgBackRest's configuration."""
        self.host.execute("install", "-m", "640", "-o", "root", "-g", "postgres", "/dev/stdin", CONFIGURATION, input=text)

    def run(self, state: str, *, check_mode: bool = False, **options: Any) -> dict[str, Any]:
        """Run the module."""
        return self.host.module("pgbackrest", check_mode=check_mode, stanza=STANZA, state=state, **options)

    def sql(self, statement: str) -> str:
        """Run SQL and return what it says."""
        argv = ["runuser", "-u", "postgres", "--", "psql", "-XqtA", "-v", "ON_ERROR_STOP=1", "-p", str(PORT), "postgres"]
        return self.host.execute(*argv, input=statement).stdout.strip()

    def archive_with(self, command: str) -> None:
        """Let PostgreSQL archive with another command."""
        self.sql(f"ALTER SYSTEM SET archive_command = '{command}'; SELECT pg_reload_conf()")

    def archive_again(self) -> None:
        """Let PostgreSQL archive as configured, and wait until it has made up for what it missed."""
        self.sql("ALTER SYSTEM RESET archive_command; SELECT pg_reload_conf()")
        self.sql("SELECT pg_switch_wal()")
        wait_until(lambda: self.sql("SELECT last_archived_time > coalesce(last_failed_time, 'epoch') FROM pg_stat_archiver") == "t", 90)

    def stop(self) -> None:
        self.host.execute("systemctl", "stop", UNIT)

    def start(self) -> float:
        """Start it and return after how many seconds it takes writes."""
        started = time.monotonic()
        self.host.execute("systemctl", "start", UNIT)
        wait_until(lambda: self.sql("SELECT pg_is_in_recovery()") == "f")
        return time.monotonic() - started

    def files(self) -> str:
        """Return what is in the repository and in the data, but for what a server writes as it runs."""
        return self.host.shell(f"find {REPOSITORY} {DATA}/base -type f -printf '%p %s %T@\\n' | sort | sha256sum; ls -d {DATA}*")


@pytest.fixture(scope="module")
def cluster(host: Host) -> Iterator[Cluster]:
    """Return a cluster whose stanza was created, with a full backup and an incremental one."""
    made = Cluster(host)
    made.make()
    assert made.run("present")["changed"] is True
    made.sql("CREATE TABLE students AS SELECT g AS id, md5(g::text) AS name FROM generate_series(1, 3000) g")
    assert made.run("backup", type="full").get("backup"), "no full backup"
    yield made
    made.remove()


def test_a_stanza_is_created_once(cluster: Cluster) -> None:
    again = cluster.run("present")

    assert set(again) == KEYS
    assert (again["changed"], again["info"]["status"], again["plan"]) == (False, "ok", [])


def test_a_backup_is_made_unless_one_is_young_enough(cluster: Cluster) -> None:
    planned = cluster.run("backup", check_mode=True)
    files = cluster.files()
    made = cluster.run("backup")
    again = cluster.run("backup", max_age=3600)
    stronger = cluster.run("backup", type="diff", max_age=3600)

    assert (planned["changed"], planned["plan"]) == (True, [f"pgbackrest --stanza={STANZA} --type=incr backup"])
    assert cluster.files() != files
    assert (made["changed"], made["backup"]["type"], made["diff"]["after"]) == (True, "incr", {"newest": made["backup"]["label"]})
    assert (again["changed"], again["backup"]) == (False, made["backup"])
    # The full one of before counts as a differential one.
    assert (stronger["changed"], stronger["backup"]["type"]) == (False, "full")
    assert made["info"]["archive"][0]["missing"] == []


def test_check_mode_touches_nothing(cluster: Cluster) -> None:
    before = cluster.files(), cluster.sql("SELECT pg_walfile_name(pg_current_wal_lsn())")

    results = [cluster.run(state, check_mode=True) for state in ("present", "checked", "backup", "expired", "verified", "restored")]

    assert [result.get("msg") for result in results] == [None] * 6
    assert [set(result) for result in results] == [KEYS] * 6
    assert (cluster.files(), cluster.sql("SELECT pg_walfile_name(pg_current_wal_lsn())")) == before


def test_archiving_is_proved(cluster: Cluster) -> None:
    result = cluster.run("checked")

    assert (result.get("msg"), result["changed"], result["archiver"]["failing"]) == (None, False, False)


def test_an_archive_command_that_fails_is_noticed(cluster: Cluster) -> None:
    cluster.archive_with("pgbackrest --stanza=lms archive-push %p && false")
    # pgBackRest's own check is content: the segment is there. PostgreSQL is not, and keeps its log until the disk is full.
    blind = cluster.host.execute("runuser", "-u", "postgres", "--", "pgbackrest", f"--stanza={STANZA}", "check", check=False)
    result = cluster.run("checked", archive_timeout=3)
    cluster.archive_with("/bin/false")
    other = cluster.run("checked", archive_timeout=3)
    cluster.archive_again()

    assert blind.returncode == 0
    assert "PostgreSQL failed to hand over 0000" in result["msg"]
    assert result["archiver"]["failing"] is True
    assert other["msg"].endswith(
        "pgbackrest check failed for stanza lms: archive_command '/bin/false' must contain pgbackrest."
        " Set PostgreSQL's archive_command to: pgbackrest --stanza=lms archive-push %p."
    )


def test_another_passphrase_is_named_and_not_taken_for_an_empty_repository(cluster: Cluster) -> None:
    cluster.configure(PGBACKREST.replace(PASSPHRASE, "another"))
    blind = cluster.host.execute("runuser", "-u", "postgres", "--", "pgbackrest", f"--stanza={STANZA}", "verify", check=False)
    results = {state: cluster.run(state) for state in ("present", "checked", "backup", "expired", "verified")}
    status = cluster.run("status")
    cluster.configure(PGBACKREST)

    # pgBackRest itself: no error.
    assert blind.returncode == 0
    assert {result["msg"] for result in results.values()} == {
        "Repository 1 of stanza lms cannot be read. It is encrypted with another passphrase, or not at all."
    }
    assert (status["changed"], status["info"]["status"], status["info"]["backups"]) == (False, "passphrase", [])
    assert "another" not in json.dumps([results, status]).replace("another passphrase", "")


def test_a_byte_that_changed_in_a_backup_is_found(cluster: Cluster) -> None:
    good = cluster.run("verified")
    file = cluster.host.shell(f"find {REPOSITORY}/backup/{STANZA}/*F/ -type f -path '*bundle*' | head -1").strip()
    cluster.host.shell(f"cp {file} /tmp/kept && printf DAMAGE | dd of={file} bs=1 seek=1000 conv=notrunc 2>/dev/null")
    blind = cluster.host.execute("runuser", "-u", "postgres", "--", "pgbackrest", f"--stanza={STANZA}", "verify", check=False)
    broken = cluster.run("verified")
    cluster.host.shell(f"cat /tmp/kept > {file}")

    assert (good.get("msg"), good["verification"]["ok"]) == (None, True)
    assert blind.returncode == 0
    assert "checksum invalid: 1" in broken["msg"]
    assert broken["verification"]["ok"] is False


def test_a_segment_that_is_missing_between_others_is_named(cluster: Cluster) -> None:
    for _number in range(3):
        cluster.sql("CREATE TABLE IF NOT EXISTS more (id int); INSERT INTO more VALUES (1); SELECT pg_switch_wal()")
    assert cluster.run("checked").get("msg") is None
    names = cluster.host.shell(f"find {REPOSITORY}/archive -type f -name '0000*-*' | sort | tail -3").split()
    cluster.host.shell(f"mv {names[1]} /tmp/")
    blind = cluster.host.execute("runuser", "-u", "postgres", "--", "pgbackrest", f"--stanza={STANZA}", "check", check=False)
    results = [cluster.run("checked"), cluster.run("verified")]
    name = names[1].rpartition("/")[2][:24]
    later = cluster.sql("SELECT clock_timestamp() AT TIME ZONE 'UTC'")
    cluster.stop()
    refused = cluster.run("restored", confirm=STANZA, target_time=f"{later}Z")
    cluster.start()
    cluster.host.shell(f"mv /tmp/{name}* {names[1]}; chown postgres: {names[1]}")

    assert blind.returncode == 0
    assert ["WAL segments after the newest backup are missing" in result["msg"] for result in results] == [True, True]
    assert results[0]["info"]["archive"][0]["missing"][0]["first"] == name
    assert f"WAL segment {name} is missing in the repository" in refused["msg"]


def test_a_restore_is_refused_while_the_server_runs_and_without_confirmation(cluster: Cluster) -> None:
    files = cluster.files()

    running = cluster.run("restored", confirm=STANZA)
    unconfirmed = cluster.run("restored")
    planned = cluster.run("restored", check_mode=True)
    without_zone = cluster.run("restored", confirm=STANZA, target_time="2026-11-23T10:28:35")
    too_early = cluster.run("restored", confirm=STANZA, target_time="2026-01-01T00:00:00Z")

    assert running["msg"].startswith(f"PostgreSQL runs in {DATA} (process ")
    assert "Confirm it with the name of the stanza: confirm: lms." in unconfirmed["msg"]
    assert len(planned["blocked"]) == 2
    assert "does not say in which time zone" in without_zone["msg"]
    assert "No backup of stanza lms is older than 2026-01-01 00:00:00.000000+00." in too_early["msg"]
    assert cluster.files() == files


def test_the_rows_of_the_moment_before_a_mistake_come_back(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.sql("INSERT INTO students SELECT g, 'late' FROM generate_series(3001, 3100) g")
    time.sleep(0.2)
    moment = cluster.sql("SELECT clock_timestamp() AT TIME ZONE 'UTC'")
    time.sleep(0.2)
    cluster.sql("DELETE FROM students WHERE id % 2 = 0; CREATE TABLE after AS SELECT 1")
    cluster.sql("DROP TABLE students")
    cluster.stop()

    restored = cluster.run("restored", target_time=f"{moment}Z", confirm=STANZA)
    assert restored.get("msg") is None, restored
    replay = cluster.start()

    with capsys.disabled():
        sys.stdout.write(f"\npoint-in-time recovery: restore {restored['restore']['duration_s']} s, replay {replay:.1f} s\n")
    assert cluster.sql("SELECT count(*), sum(id) FROM students") == f"3100|{sum(range(1, 3101))}"
    assert cluster.sql("SELECT to_regclass('after') IS NULL") == "t"
    # What was there is kept, with the mistake.
    previous = restored["restore"]["previous"]
    assert cluster.host.execute("test", "-f", f"{previous}/global/pg_control").returncode == 0
    cluster.host.shell(f"rm -rf {previous}")
    # The new timeline is archived and backed up as the old one was.
    assert cluster.run("checked").get("msg") is None
    assert cluster.run("backup", type="diff")["changed"] is True


def test_a_restore_that_fails_leaves_the_data_where_they_were(cluster: Cluster) -> None:
    file = cluster.host.shell(f"ls {REPOSITORY}/backup/{STANZA}/*F/backup.manifest | tail -1").strip()
    label = file.split("/")[-2]
    cluster.stop()
    cluster.host.shell(f"mv {file} /tmp/manifest; mv {file}.copy /tmp/manifest.copy")
    failed = cluster.run("restored", set=label, confirm=STANZA)
    cluster.host.shell(f"mv /tmp/manifest {file}; mv /tmp/manifest.copy {file}.copy")
    cluster.start()

    assert failed["msg"].startswith("pgbackrest restore failed for stanza lms: ")
    assert cluster.sql("SELECT count(*) FROM students") == "3100"
    assert cluster.host.shell(f"ls -d {DATA}*").split() == [DATA]


def test_a_moment_can_be_looked_at_beside_the_live_cluster(cluster: Cluster) -> None:
    beside = f"{DATA}.look"
    restored = cluster.run("restored", path=beside, target_immediate=True, confirm=STANZA)
    settings = cluster.host.shell(f"cat {beside}/postgresql.auto.conf")
    cluster.host.shell(f"rm -rf {beside}")

    assert (restored.get("msg"), restored["restore"]["previous"]) == (None, None)
    assert "archive_mode = 'off'" in settings


def test_old_backups_expire_as_configured(cluster: Cluster) -> None:
    cluster.run("backup", type="full")
    cluster.configure(PGBACKREST.replace("retention-full=2", "retention-full=1"))
    planned = cluster.run("expired", check_mode=True)
    done = cluster.run("expired")
    again = cluster.run("expired")
    cluster.configure(PGBACKREST)

    assert (planned["changed"], done["changed"], again["changed"]) == (True, True, False)
    assert planned["diff"] == done["diff"]
    assert [backup["type"] for backup in done["info"]["backups"]] == ["full"]
    assert [backup["label"] for backup in done["info"]["backups"]] == done["diff"]["after"]["backups"]


def test_no_secret_is_in_an_argument_or_the_environment(cluster: Cluster) -> None:
    process = cluster.host.start_module("pgbackrest", stanza=STANZA, state="backup", type="full")
    seen = set()
    while process.poll() is None:
        found = cluster.host.shell("cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'", check=False)
        seen.update(found.splitlines())

    assert any("archive-push" in line or "--type=full" in line for line in seen)
    assert not any(PASSPHRASE in line for line in seen)
