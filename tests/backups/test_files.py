# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of real files, with the real tar, zstd, age and restic, that are broken in every way."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from database_host import Host, wait_until
from moto.server import ThreadedMotoServer

TREE, REPOSITORY, BACK = "/srv/files", "/srv/file-repository", "/srv/back"
PASSWORD = "hush-this-is-the-password"
# Names, owners, modes and links as they come. What is no file, directory or link is left out on purpose.
MAKE_TREE = rf"""
set -e
rm -rf {TREE} {BACK} /srv/.back* {REPOSITORY}; mkdir -p {TREE}/sub {TREE}/tmp; cd {TREE}
echo APP_KEY=hush-this-is-the-key > .env; chmod 600 .env
printf odd > "$(printf 'two\nlines')"; printf odd > ' with space '; printf odd > -leading; printf odd > 'ünïcode'
printf odd > "$(printf 'caf\351')"; printf odd > '*?[\'
ln .env hard; ln -s /etc/passwd link; ln -s nowhere broken; mkfifo pipe
truncate -s 3M sparse; head -c 9000000 /dev/urandom > large
chown www-data:www-data sub; chmod 2770 sub; chmod 4755 -- -leading; touch -h -d '2001-02-03 04:05:06.789' link large sub
"""
# Everything of a tree that has to come back.
LOOK = (
    r"find . -mindepth 1 ! -type p -printf '%P|%y|%m|%u|%g|%s|%T@|%l|%n\0' | sort -z; find . -type f -print0 | sort -z | xargs -0 sha256sum"
)


class Files:
    """A tree of files, and a repository for it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.host.shell(MAKE_TREE)
        key = self.host.shell("age-keygen 2>&1")
        self.recipient = next(line for line in key.splitlines() if "ublic key" in line).split()[-1]
        self.identity = next(line for line in key.splitlines() if line.startswith("AGE-SECRET-KEY"))

    def options(self, **more: Any) -> dict[str, Any]:
        """Return what both modules take."""
        return {"repository": REPOSITORY, "environment": "test", "name": "files", **more}

    def backup(self, check_mode: bool = False, user: str = "root", **more: Any) -> dict[str, Any]:
        """Back the files up with the engine builtin."""
        given = self.options(**{"paths": [TREE], "encryption": {"recipients": [self.recipient]}, **more})
        return self.host.module("file_backup", check_mode=check_mode, user=user, **given)

    def restore(self, check_mode: bool = False, **more: Any) -> dict[str, Any]:
        """Restore them."""
        given = self.options(**{"destination": BACK, "path": TREE, "identity": self.identity, **more})
        return self.host.module("file_restore", check_mode=check_mode, **given)

    def restic_backup(self, **more: Any) -> dict[str, Any]:
        """Back the files up with restic."""
        return self.backup(**{"engine": "restic", "restic_password": PASSWORD, "encryption": None, **more})

    def look(self, directory: str) -> str:
        """Return what of a tree has to come back."""
        return self.host.shell(f"cd {directory} && {LOOK}", errors="surrogateescape")

    def listed(self) -> list[str]:
        """Return the states of the backups."""
        return [each["state"] for each in self.host.module("backup_info", repository=REPOSITORY)["backups"]]

    def left(self) -> str:
        """Return what there is beside whole backups, the tree and what was restored."""
        beside = f"find {REPOSITORY} -name '.partial-*' 2>/dev/null; find /srv -maxdepth 2 -name '*.restore-*'"
        return self.host.shell(f"{{ {beside}; }} || true")

    def restic(self, *arguments: str, check: bool = True) -> Any:
        """Call restic itself."""
        argv = ["env", f"RESTIC_PASSWORD={PASSWORD}", "restic", "-r", f"{REPOSITORY}/test/restic/files", *arguments]
        return self.host.execute(*argv, check=check)

    def program(self, name: str, script: str) -> None:
        """Put a script in front of a program."""
        self.host.shell(f"cat > /usr/local/bin/{name} && chmod 755 /usr/local/bin/{name}", input=f"#!/bin/sh{script}")

    def processes(self, word: str) -> list[str]:
        """Return the numbers of the processes of the host whose command line has a word."""
        return self.host.execute("pgrep", "-f", word, check=False).stdout.split()


@pytest.fixture
def files(host: Host) -> Iterator[Files]:
    """Give the files and an empty repository."""
    yield Files(host)
    host.shell("rm -f /usr/local/bin/restic /usr/local/bin/zstd")


# Stand in front of programs.
BLINDING = f"""
case "$*" in *" backup "*) chmod 000 {TREE}/.env;; esac
exec /usr/bin/restic "$@"
"""
LYING = f"""
/usr/bin/restic "$@"; rc=$?
case "$*" in *" backup "*) rc=3
    echo '{{"message_type":"error","error":{{"message":"lstat: no such file or directory"}},"item":"{TREE}/tmp/x"}}' >&2;;
esac
exit $rc
"""
ENDLESS = """
case "$*" in *--decompress*) exec sleep 60;; esac
exec /usr/bin/zstd "$@"
"""
SPYING = r"""
{ tr '\0' '\n' < /proc/$$/cmdline; tr '\0' '\n' < /proc/$PPID/cmdline; cat /proc/$$/environ; } >> /tmp/seen
"""


# The engine builtin


def test_everything_comes_back_as_it_was_and_nobody_can_read_it_meanwhile(files: Files) -> None:
    looked = files.backup(check_mode=True)
    assert (looked["changed"], looked["backup"], looked["plan"]["counts"]["files"]) == (True, None, 10)
    assert files.host.shell(f"ls {REPOSITORY} 2>&1 || true").count("No such file") == 1

    made = files.backup()

    assert (made["changed"], made["backup"]["state"]) == (True, "complete")
    assert made["plan"]["skipped"] == [{"path": f"{TREE}/pipe", "reason": "neither a file, a directory nor a link"}]
    assert files.host.shell(f"find {REPOSITORY} -type f -perm /077; grep -rl 'hush\\|odd\\|with space' {REPOSITORY} || true") == ""
    assert files.restore(check_mode=True)["plan"]["counts"] == made["plan"]["counts"]
    assert files.restore()["changed"]
    assert files.look(BACK) == files.look(TREE)
    assert files.left() == ""


def test_a_young_backup_is_enough_and_the_next_one_says_what_changed(files: Files) -> None:
    first = files.backup()
    second = files.backup(max_age=3600)
    assert (second["changed"], second["backup"]) == (False, first["backup"])

    files.host.shell(f"cd {TREE} && echo more >> large && rm broken && touch new")
    changes = files.backup(check_mode=True)["plan"]["changes"]

    assert [changes[what] for what in ("added", "changed", "removed")] == [1, 1, 1]
    assert [changes[f"{what}_names"] for what in ("added", "changed", "removed")] == [
        [f"{TREE}/new"],
        [f"{TREE}/large"],
        [f"{TREE}/broken"],
    ]


def test_age_zstd_and_tar_alone_bring_the_files_back_too(files: Files) -> None:
    path = files.backup()["backup"]["path"]

    files.host.shell(
        f"mkdir {BACK} && cd {BACK} && cat > /srv/key && age -d -i /srv/key {REPOSITORY}/{path}/files.tar.zst.age | zstd -d | tar xp",
        input=files.identity,
    )

    assert files.look(f"{BACK}{TREE}") == files.look(TREE)


def test_access_control_lists_and_attributes_are_kept_on_demand(files: Files) -> None:
    script = f"""import os; os.setxattr("{TREE}/sub", "user.note", b"\\xff\\x00bin"); os.setxattr("{TREE}/large", "user.a", b"b")"""
    files.host.execute("python3", "-c", script)
    files.backup(xattrs=True)

    files.restore()

    read = f"""import os; print(os.getxattr("{BACK}/sub", "user.note"), os.getxattr("{BACK}/large", "user.a"))"""
    assert files.host.execute("python3", "-c", read).stdout == "b'\\xff\\x00bin' b'b'\n"


def test_missing_files_are_added_and_those_that_are_there_stay(files: Files) -> None:
    files.backup()
    before = files.look(TREE)
    files.host.shell(f"cd {TREE} && rm -r sub ' with space ' && rm link && ln -s /etc/shadow link")

    added = files.restore(destination=TREE, mode="missing")

    assert added["plan"]["names"] == [" with space ", "sub"]
    assert files.host.shell(f"readlink {TREE}/link") == "/etc/shadow\n"
    files.host.shell(f"cd {TREE} && ln -sfn /etc/passwd link && touch -h -d '2001-02-03 04:05:06.789' link")
    assert files.look(TREE) == before
    assert not files.restore(destination=TREE, mode="missing")["changed"]


def test_a_file_that_cannot_be_read_fails_and_is_named(files: Files) -> None:
    files.host.shell(f"chmod 755 {TREE}; mkdir -p {REPOSITORY}; chown nobody {REPOSITORY}")

    failed = files.backup(user="nobody")

    assert failed["failed"]
    assert f"{TREE}/.env" in failed["msg"]
    assert "Permission denied" in failed["msg"]
    assert files.listed() == []


# One process that only writes: on a busy machine programs that have to be started would write too seldom.
WRITER = f"""
import os, time
print(os.getpid(), flush=True)
with open("{TREE}/tmp/log", "ab", 0) as log:
    while True:
        log.write(os.urandom(3000))
        time.sleep(0.001)
"""


def test_a_file_that_is_written_all_the_time_fails_the_backup_unless_it_may(files: Files) -> None:
    endless = subprocess.Popen(["docker", "exec", files.host.name, "python3", "-c", WRITER], stdout=subprocess.PIPE, text=True)
    assert endless.stdout
    pid = endless.stdout.readline().strip()
    try:
        wait_until(lambda: files.host.execute("test", "-s", f"{TREE}/tmp/log", check=False).returncode == 0)
        # Slow enough for the file to grow while it is read.
        files.host.shell(f"head -c 40000000 /dev/urandom >> {TREE}/tmp/log")
        failed = files.backup()
        made = files.backup(vanish_ok=["/srv/files/tmp"])
    finally:
        files.host.shell(f"kill {pid}")
        endless.wait()

    assert f"{TREE}/tmp/log: changed while it was read. List what may vanish or change in vanish_ok." in failed["msg"]
    assert made["backup"]["state"] == "complete"
    assert f"{TREE}/tmp/log" in made["warnings"][0]
    assert files.restore()["changed"]
    assert files.listed() == ["complete"]


def test_a_full_disk_fails_and_leaves_the_earlier_backup(files: Files) -> None:
    files.host.shell(f"rm {TREE}/large; mkdir -p {REPOSITORY}; mount -t tmpfs -o size=1m none {REPOSITORY}")
    try:
        # What compressed so well before lets the estimate be small.
        files.host.shell(f"truncate -s 5M {TREE}/sparse; head -c 900000 /dev/zero > {TREE}/a")
        assert "may need" in files.backup()["msg"]
        files.host.shell(f"truncate -s 0 {TREE}/sparse")
        first = files.backup()
        files.host.shell(f"head -c 3000000 /dev/urandom > {TREE}/a")

        failed = files.backup()

        assert "No space left on device" in failed["msg"]
        assert files.listed() == [first["backup"]["state"]] == ["complete"]
        assert files.left() == ""
        files.host.shell(f"head -c 200000 /dev/urandom > {TREE}/a")
        assert files.backup(max_shrink_percent=100)["backup"]["state"] == "complete"
    finally:
        files.host.shell(f"umount {REPOSITORY}")


def test_a_restore_to_a_full_disk_leaves_nothing(files: Files) -> None:
    files.backup()
    files.host.shell(f"mkdir {BACK} && mount -t tmpfs -o size=20m none {BACK}")
    try:
        # Enough for what is announced, and taken away while it is written.
        whole = files.restore(include=[".env"])
        assert whole["changed"]
        files.host.shell(f"rm {BACK}/.env {BACK}/hard -f; head -c 15000000 /dev/zero > /srv/back/ballast")
        failed = files.restore(mode="missing")
        assert "bytes free, and the files need" in failed["msg"]
        assert files.host.shell(f"ls -A {BACK}") == "ballast\n"
    finally:
        files.host.shell(f"umount {BACK}")


def test_a_changed_byte_is_found_before_anything_is_in_place(files: Files) -> None:
    path = files.backup()["backup"]["path"]
    files.host.shell(f"printf X | dd of={REPOSITORY}/{path}/files.tar.zst.age bs=1 seek=5000000 conv=notrunc 2>/dev/null")

    failed = files.restore()

    assert "has another SHA-256" in failed["msg"]
    assert files.host.shell(f"ls -A {BACK} 2>/dev/null || true") == ""
    assert files.left() == ""


def test_another_key_and_a_destination_that_holds_something_are_refused(files: Files) -> None:
    files.backup()
    other = files.host.shell("age-keygen 2>/dev/null").splitlines()[-1]

    assert "the key is another one" in files.restore(identity=other)["msg"]
    files.host.shell(f"mkdir {BACK} && touch {BACK}/mine")
    assert "is not empty" in files.restore()["msg"]
    assert files.host.shell(f"ls -A {BACK}") == "mine\n"


def test_runs_that_are_killed_leave_nothing_that_looks_complete(files: Files) -> None:
    for moment in (0.05, 0.15, 0.25, 0.35, 0.45):
        run = files.host.start_module("file_backup", **files.options(paths=[TREE], encryption={"recipients": [files.recipient]}))
        pid = wait_until(lambda: files.processes("run_module.py file_backu[p]"))[0]
        files.host.shell(f"sleep {moment}; kill -9 {pid} 2>/dev/null || true")
        run.wait()
    whole = files.listed()
    wait_until(lambda: not files.processes("zstd -3 -T[2]"))

    made = files.backup()

    assert set(whole) <= {"complete"}
    assert len(files.listed()) == len(whole) + 1
    assert files.left() == ""
    assert files.restore(backup=made["backup"]["id"])["changed"]
    assert files.look(BACK) == files.look(TREE)


def test_a_restore_that_is_killed_is_swept_by_the_next_one(files: Files) -> None:
    files.backup()
    # Never ends, so that there is a moment to kill it.
    files.program("zstd", ENDLESS)
    given = files.options(destination=BACK, path=TREE, identity=files.identity)
    run = files.host.start_module("file_restore", **given)
    pid = wait_until(lambda: files.processes("run_module.py file_restor[e]") if files.processes("sleep 6[0]") else None)[0]
    files.host.shell(f"mkdir /srv/.back.restore-12345678; kill -9 {pid}; rm /usr/local/bin/zstd")
    run.wait()

    assert files.restore()["changed"]
    assert files.left() == ""


# restic


def test_restic_keeps_files_beside_the_other_backups(files: Files) -> None:
    looked = files.restic_backup(check_mode=True)
    assert looked["plan"]["notes"] == [f"Create the repository of restic at {REPOSITORY}/test/restic/files."]
    made = files.restic_backup(restic_keys=[{"name": "safe", "password": "of the safe"}])
    assert (made["backup"]["state"], made["backup"]["raw_size"] > 9000000) == ("complete", True)
    assert files.restic("cat", "config", "--quiet").stdout.count('"version": 2') == 1

    # Whatever is swept or pruned, restic's own files are none of it.
    swept = files.host.module(
        "backup_prune", repository=REPOSITORY, environment="test", kind="files", keep={"last": 1}, partial_max_age="1s", min_good=1
    )
    assert (swept.get("deleted"), swept.get("aborted_uploads")) == ([], []), swept

    again = files.restic_backup(restic_keys=[{"name": "safe", "password": "another one"}], max_age=3600, check_mode=True)
    assert again["plan"]["notes"] == ["Add the key safe to restic's repository.", "Remove the key safe from restic's repository."]
    wrong = files.restic_backup(restic_password="wrong")
    assert wrong["msg"] == f"restic_password does not open the repository {REPOSITORY}/test/restic/files."
    assert files.restore(restic_password="of the safe")["changed"]
    assert files.look(BACK) == files.look(TREE)


def test_a_file_that_restic_cannot_read_fails_the_backup_although_there_is_a_snapshot(files: Files) -> None:
    # restic ends with 3 then, and keeps what it has.
    files.host.shell(f"""
        useradd --create-home joe 2>/dev/null || true; chown -hR joe {TREE}; mkdir -p {REPOSITORY}; chown joe {REPOSITORY}
        rm -f /run/lock/bitflow-lms-*""")
    files.program("restic", BLINDING)

    failed = files.restic_backup(user="joe")

    assert [problem["path"] for problem in failed["problems"]] == [f"{TREE}/.env", f"{TREE}/hard"]
    assert all("permission denied" in problem["reason"].lower() for problem in failed["problems"])
    assert files.listed() == []
    assert files.restic("snapshots", "--json").stdout.strip() in ("[]", "null")


def test_a_file_that_vanishes_under_restic_fails_the_backup_unless_it_may(files: Files) -> None:
    # The directory had one name more than there are files: it vanished between the two looks.
    files.program("restic", LYING)

    failed = files.restic_backup()
    made = files.restic_backup(vanish_ok=[f"{TREE}/tmp"])

    assert f"{TREE}/tmp/x: vanished" in failed["msg"]
    assert made["backup"]["state"] == "complete"
    assert f"{TREE}/tmp/x" in made["warnings"][0]
    assert len(json.loads(files.restic("snapshots", "--json").stdout)) == 1


def test_a_run_that_was_killed_leaves_a_lock_and_the_next_one_works(files: Files) -> None:
    files.restic_backup(restic_check_percent=0)
    files.host.shell(f"head -c 30000000 /dev/urandom > {TREE}/new")
    run = files.host.start_module("file_backup", **files.options(paths=[TREE], engine="restic", restic_password=PASSWORD))
    locks = f"{REPOSITORY}/test/restic/files/locks"
    wait_until(lambda: files.host.shell(f"ls {locks}"))
    pid = files.processes("run_module.py file_backu[p]")[0]
    files.host.shell(f"kill -9 {pid}")
    run.wait()
    wait_until(lambda: not files.processes("restic.*backu[p] --json"))
    # What everybody else is kept from by it.
    assert files.restic("prune", check=False).returncode != 0

    made = files.restic_backup(restic_check_percent=0)

    assert made["warnings"][0].startswith("A lock of restic was removed, whose process is dead: root@")
    assert files.host.shell(f"ls {locks}") == ""
    assert files.listed() == ["complete", "complete"]


def test_damage_is_found_and_the_backup_does_not_count(files: Files) -> None:
    files.restic_backup()
    files.host.shell(f"""
        for pack in $(find {REPOSITORY}/test/restic/files/data -type f -size +100k); do
            chmod u+w $pack; printf DAMAGE | dd of=$pack bs=1 seek=4000 conv=notrunc 2>/dev/null
        done""")

    failed = files.restic_backup(restic_check_percent=100)

    assert "is damaged" in failed["msg"]
    assert files.listed() == ["complete", "corrupt"]


def test_snapshots_go_when_their_backup_was_pruned(files: Files) -> None:
    files.restic_backup()
    for tag, time in (("20200101T000000Z-00000000", "2020-01-01 00:00:00"), ("", "2020-01-02 00:00:00")):
        tags = ["--tag", "bitflow-lms", "--tag", f"bitflow-lms:{tag}"] if tag else ["--tag", "by-hand"]
        files.restic("backup", "--quiet", *tags, "--time", time, f"{TREE}/sub")

    looked = files.restic_backup(state="pruned", check_mode=True)
    pruned = files.restic_backup(state="pruned")

    assert (looked["changed"], looked["plan"]["notes"]) == (True, pruned["plan"]["notes"])
    assert len(pruned["plan"]["notes"]) == 1
    tags = sorted(each["tags"][0] for each in json.loads(files.restic("snapshots", "--json").stdout))
    assert tags == ["bitflow-lms", "by-hand"]
    assert not files.restic_backup(state="pruned")["changed"]


def test_no_secret_stands_where_others_can_read_it(files: Files) -> None:
    files.host.shell("rm -f /tmp/seen")
    for program in ("restic", "zstd"):
        files.program(program, f'{SPYING}exec /usr/bin/{program} "$@"\n')

    results = [files.backup(name="tar"), files.restore(name="tar")]
    results += [files.restic_backup(restic_keys=[{"name": "safe", "password": "of the safe"}])]

    seen = files.host.shell("cat /tmp/seen", errors="replace")
    assert "RESTIC_PASSWORD_FILE=/proc/self/fd/" in seen
    for secret in (PASSWORD, "of the safe", files.identity, "hush"):
        assert secret not in seen
        assert secret not in json.dumps(results)


@pytest.fixture(scope="module")
def s3_port() -> Iterator[int]:
    """Start an S3. The laboratory's proxy is not in front of it: restic signs its requests in pieces, which that does not read."""
    server = ThreadedMotoServer("0.0.0.0", port=0, verbose=False)  # noqa: S104 - containers have to reach it
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


MAKE_BUCKET = """
import boto3, json, sys
option = json.load(sys.stdin)
client = boto3.client(
    "s3", endpoint_url=option["endpoint_url"], region_name=option["region"], aws_access_key_id="lab", aws_secret_access_key="lab"
)
client.create_bucket(Bucket="file-backups", CreateBucketConfiguration={"LocationConstraint": option["region"]})
"""


def test_both_engines_keep_files_on_s3(files: Files, s3_port: int) -> None:
    gateway = files.host.shell("ip route").split()[2]
    options = {"endpoint_url": f"http://{gateway}:{s3_port}", "region": "eu-central-1", "access_key": "lab", "secret_key": "hush-key"}
    s3 = {"repository": "s3://file-backups/lms", "s3": {**options, "addressing_style": "path"}}
    files.host.execute("python3", "-c", MAKE_BUCKET, input=json.dumps(options))

    tar = files.backup(**s3)
    assert tar["backup"]["state"] == "complete", tar
    assert files.restore(**s3)["changed"]
    assert files.look(BACK) == files.look(TREE)
    files.host.shell(f"rm -rf {BACK}")

    kept = files.restic_backup(**s3, name="uploads")
    assert kept["backup"]["state"] == "complete", kept
    back = files.restore(**s3, name="uploads", restic_password=PASSWORD)
    assert back.get("changed"), back
    assert files.look(BACK) == files.look(TREE)


def test_a_backup_is_proven_by_reading_every_file_of_it(files: Files) -> None:
    files.backup()

    verified = files.host.module("backup_verify", kind="files", identity=files.identity, **files.options())

    assert (verified["mismatches"], files.listed()) == ([], ["verified"])


def test_what_restic_keeps_is_never_called_proven_unread(files: Files) -> None:
    files.restic_backup()

    refused = files.host.module("backup_verify", kind="files", level="manifest", **files.options())

    assert "are kept by restic, which alone can read them" in refused["msg"]
    assert files.listed() == ["complete"]
