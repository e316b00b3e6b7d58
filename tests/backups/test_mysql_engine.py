# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine of MariaDB and MySQL against real servers: what is counted is what comes back, and nobody waits longer than is said.

LMS_MARIADB_SUITE=bookworm takes another version of MariaDB than trixie's.
"""

# ruff: noqa: S608 - the names in the statements are those of the tests.

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from database_host import LIBRARY, Host, host_name, wait_until

PASSWORD = """it's "a" pass\\word\\n with # ; and = spaces """
# What a program on the host begins with. It prints its result as JSON.
PRELUDE = """
import json, os, signal, subprocess, sys, threading, time
from ansible_collections.bitflow.lms.plugins.module_utils import _database_mysql
from ansible_collections.bitflow.lms.plugins.module_utils._database import DatabaseError, Login
from ansible_collections.bitflow.lms.plugins.module_utils._database_mysql import MySQL
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import Stage, run_pipeline

engine = MySQL(Login("mysql"))

def rows(tables):
    return {each.name: [each.rows, each.checksum] for each in tables}

def backed_up(engine, database, path, record="checksums", consistency="exact", exclude=(), lock_timeout=5):
    with engine.snapshot(database, consistency=consistency, lock_timeout=lock_timeout) as snapshot:
        dump = snapshot.dump(exclude_table_data=exclude, compression_level=1, compression_threads=1)
        with open(path, "wb") as file:
            run_pipeline(dump.stages, sink=file.write, taps=dump.taps)
        dump.check()
        tables = snapshot.tables(record)
        snapshot.check()
        return {"tables": rows(tables), "consistency": snapshot.consistency, "warnings": snapshot.warnings, "position": snapshot.position,
                "raw_size": dump.raw_size()}

def restore(engine, database, path, **options):
    def pieces():
        process = subprocess.Popen(["zstd", "-dcq", path], stdout=subprocess.PIPE)
        yield from iter(lambda: process.stdout.read(1 << 16), b"")
    run_pipeline(engine.restore(database, {}, **options), source=pieces())

def said(call):
    try:
        call()
    except LmsError as error:
        return type(error).__name__ + ": " + error.message
    return "nothing"

"""

DATA = r"""
set names utf8mb4; drop database if exists lms; create database lms character set utf8mb4; use lms;
set sql_mode = '';
create table users (
    id bigint unsigned auto_increment primary key, name varchar(100) not null, mail varchar(100) character set latin1 unique,
    born date not null default '0000-00-00', seen timestamp null, at_night time(3), hired year, score decimal(20, 6), ratio double,
    part float, photo longblob, code varbinary(16), fixed binary(4), flags bit(10), kind enum('student', 'a,b', 'it''s'),
    likes set('x', 'y'), about json, essay longtext, spot point, doubled decimal(22, 6) as (score * 2) virtual,
    shout varchar(100) as (upper(name)) stored
) engine = InnoDB;
insert into users (name, mail, born, seen, at_night, hired, score, ratio, part, photo, code, fixed, flags, kind, likes, about, essay, spot)
values
    ('Zoë 😀\t\\ ''"', 'zoë@example.com', '0000-00-00', '2024-03-31 01:30:00', '23:59:59.999', 1999, 12345678901234.123456, 0.1,
     0.1, x'00ff270a0d5c1a', x'00', x'0102', b'1010101010', 'it''s', 'x,y', '{"a": [1, 2.50, null, "é"]}',
     concat('line\nline\r\n', repeat('ä', 5000)), point(1.5, -2)),
    ('NULL', null, '2024-02-29', null, null, null, null, null, null, null, null, null, null, null, null, null, null, null),
    ('', '', '9999-12-31', '1970-01-01 00:00:01', '-838:59:59', 0, -0.000001, -1e300, 3.14159274, '', '', '', b'0', '', '', 'null', '',
     null);
create table courses (id int primary key, owner bigint unsigned, title varchar(50),
    constraint owned foreign key (owner) references users (id) on delete cascade);
insert into courses values (1, 1, 'SQL; -- no comment'), (2, 2, '/* nor this */');
create table sessions (id int auto_increment primary key, payload text);
insert into sessions (payload) values ('a'), ('b');
create table `odd ``name``` (`a col` int, `b``c` text);
insert into `odd ``name``` values (1, '-- Table structure for table `x`'), (1, '-- Table structure for table `x`');
create table log (id int auto_increment primary key, what text);
create view titles as select c.title, u.name from courses c join users u on u.id = c.owner;
create view short as select title from titles;
delimiter //
create trigger noted after insert on courses for each row begin insert into log (what) values (concat('course; ', new.title)); end //
create procedure cleared(in n int) begin
-- Table structure for table `nowhere`
delete from sessions where id < n; /* kept */ end //
create function initials(a text) returns char(1) deterministic return upper(left(a, 1)) //
create event nightly on schedule every 1 day starts '2037-01-01' comment 'ENABLE' do begin delete from sessions; end //
create event off on schedule every 1 day disable do delete from sessions //
delimiter ;
"""


class Lab:
    """A host with its server, and programs that use the engine on it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.program = "mysql" if host.suite == "sid" else "mariadb"

    def mysql(self, statement: str, database: str = "") -> list[str]:
        """Run SQL, with comments in the bodies of routines."""
        argv = [self.program, "--batch", "--skip-column-names", "--comments", "--default-character-set=utf8mb4"]
        return self.host.execute(*argv, *([database] if database else []), input=statement).stdout.split("\n")[:-1]

    def argv(self, code: str) -> list[str]:
        return ["env", f"PYTHONPATH={LIBRARY}", "PYTHONDONTWRITEBYTECODE=1", "python3", "-c", PRELUDE + code]

    def run(self, code: str) -> Any:
        """Run a program and return what it printed."""
        return json.loads(self.host.execute(*self.argv(code)).stdout.splitlines()[-1])

    def start(self, code: str) -> subprocess.Popen[str]:
        """Start a program, and wait for its first line."""
        argv = ["docker", "exec", "-i", self.host.name, *self.argv(code)]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        process.stdout.readline()
        return process

    def value(self, statement: str, database: str = "") -> str:
        return "\n".join(self.mysql(statement, database))

    def in_background(self, statement: str) -> subprocess.Popen[str]:
        """Run SQL for as long as it takes."""
        argv = ["docker", "exec", self.host.name, self.program, "--batch", "--skip-column-names", "--execute", statement]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="session")
def mariadb_host(host: Host) -> Iterator[Host]:
    suite = os.environ.get("LMS_MARIADB_SUITE")
    if not suite:
        yield host
        return
    other = Host(host_name(suite), suite)
    other.start()
    yield other
    if os.environ.get("LMS_KEEP") != "1":
        other.remove()


@pytest.fixture(scope="module", params=["mariadb_host", "mysql_host"])
def lab(request: pytest.FixtureRequest) -> Lab:
    made = Lab(request.getfixturevalue(request.param))
    made.mysql("".join(f"drop database `{name}`;" for name in databases(made)))
    made.mysql(DATA)
    return made


def test_all_kinds_of_data_come_back_as_they_were(lab: Lab) -> None:
    lab.mysql(
        "create table lms.other (id int primary key, words text, fulltext (words)) engine = MyISAM; insert into lms.other values (1, 'x')"
    )

    found = lab.run("""
made = backed_up(engine, "lms", "/srv/lms.sql.zst")
described = engine.describe("lms")
engine.create("lms_copy", {"database": described}, "ours")
restore(engine, "lms_copy", "/srv/lms.sql.zst")
engine.finish_restore("lms_copy")
print(json.dumps([made["tables"], rows(engine.tables("lms_copy", "checksums")), made["consistency"], made["warnings"], described,
                  engine.describe("lms_copy"), engine.problems("lms"), engine.databases("lms")]))
""")
    tables, restored, consistency, warnings, described, described_copy, problems, comments = found

    assert restored == tables
    assert {name: counted for name, (counted, _sum) in tables.items()} == {
        "users": 3,
        "courses": 2,
        "sessions": 2,
        "odd `name`": 2,
        "log": 0,
        "other": 1,
    }
    assert len({checksum for _rows, checksum in tables.values()}) == 6
    assert (consistency, warnings) == (
        "fast",
        ["The counts of lms are not exactly of the dump's moment: other of it have a storage engine without transactions."],
    )
    assert {**described, "size_bytes": 0} == {**described_copy, "name": "lms", "size_bytes": 0}
    assert problems == []
    assert comments == {"lms": "", "lms_copy": "ours"}
    assert lab.mysql("select * from short order by 1", "lms_copy") == ["/* nor this */", "SQL; -- no comment"]
    assert lab.value("show create procedure lms_copy.cleared").count("kept") == 1
    assert lab.mysql("insert into courses values (3, 1, 'x'); select what from log; delete from users where id = 2", "lms_copy") == [
        "course; x"
    ]
    assert lab.mysql("select count(*) from courses", "lms_copy") == ["2"]
    lab.mysql("drop table lms.other; drop database lms_copy")


def test_a_checksum_tells_any_change(lab: Lab) -> None:
    changes = [
        "update users set name = 'Zoe' where id = 1",
        "update users set name = concat(name, 'zo'), mail = substr(mail, 3) where id = 1",
        "update users set mail = 'N' where id = 2",
        "update users set photo = x'00ff270a0d5c1b' where id = 1",
        "update users set score = score + 0.000001 where id = 1",
        "update users set flags = b'1010101011' where id = 1",
        "update users set spot = point(1.5, -3) where id = 1",
        'update users set about = \'{"a": [1, 2.50, null, "e"]}\' where id = 1',
        "update users set seen = seen + interval 1 second where id = 1",
        "update users set essay = concat(essay, ' ') where id = 1",
    ]

    found = lab.run(f"""
sums = [rows(engine.tables("lms", "checksums"))["users"][1]]
for change in {changes!r}:
    with engine._session() as session:
        session.query("START TRANSACTION")
        session.query("USE lms")
        session.query(change)
        sums.append(rows(_database_mysql._read_tables(session, "lms", "checksums"))["users"][1])
        session.query("ROLLBACK")
print(json.dumps(sums + [rows(engine.tables("lms", "checksums"))["users"][1]]))
""")

    assert len(set(found)) == len(changes) + 1
    assert found[0] == found[-1]


def test_the_counts_are_those_of_the_dump_although_others_write(lab: Lab) -> None:
    lab.mysql("create table lms.moving (id int auto_increment primary key, v int)")

    found = lab.run("""
stop = threading.Event()
longest = [0.0]
writer = engine._session()
def write():
    while not stop.is_set():
        begun = time.monotonic()
        writer.query("INSERT INTO lms.moving (v) VALUES (1), (2)")
        longest[0] = max(longest[0], time.monotonic() - begun)
thread = threading.Thread(target=write, daemon=True)
thread.start()
time.sleep(0.2)
made = backed_up(engine, "lms", "/srv/moving.sql.zst")
time.sleep(0.1)
stop.set()
thread.join()
engine.create("lms_copy", {}, "ours")
restore(engine, "lms_copy", "/srv/moving.sql.zst")
print(json.dumps([made, rows(engine.tables("lms_copy", "checksums")), rows(engine.tables("lms", "counts"))["moving"][0]]))
engine.drop("lms_copy")
""")
    made, restored, now = found

    assert restored == made["tables"]
    assert 0 < made["tables"]["moving"][0] < now
    assert (made["consistency"], made["warnings"]) == ("exact", [])
    # MariaDB's log is off where nobody asked for it.
    assert bool(made["position"]) == (lab.host.suite == "sid")
    lab.mysql("drop table lms.moving")


def test_a_long_query_does_not_make_anybody_wait(lab: Lab) -> None:
    with lab.in_background("select sleep(30) from lms.users limit 1") as query:
        wait_until(lambda: lab.mysql("select 1 from information_schema.processlist where info like 'select sleep(30)%'"))
        begun = time.monotonic()
        made = lab.run('print(json.dumps(backed_up(engine, "lms", "/srv/lms.sql.zst", lock_timeout=2)))')
        lab.mysql("update lms.users set name = name where id = 3")
        still_running = query.poll() is None
        taken = time.monotonic() - begun
        stop_sleeping(lab)

    # The bound is the query's own length: whoever waited for it would show.
    assert still_running and taken < 30
    assert (made["consistency"], made["warnings"]) == ("exact", [])


def test_what_flush_tables_would_do_to_others_on_mysql(mysql_host: Host) -> None:
    """The guard off: why the tables are locked instead."""
    lab = Lab(mysql_host)
    lab.mysql(DATA)
    with lab.in_background("select sleep(30) from lms.users limit 1"):
        wait_until(lambda: lab.mysql("select 1 from information_schema.processlist where info like 'select sleep(30)%'"))
        flush = lab.in_background("set lock_wait_timeout = 1; flush tables with read lock")
        gave_up = flush.communicate()[1]
        with lab.in_background("update lms.users set name = name where id = 3") as update:
            waits = wait_until(lambda: lab.mysql("select state from information_schema.processlist where info like 'update lms.users%'"))
            waiting = update.poll() is None
            stop_sleeping(lab)

    assert "Lock wait timeout" in gave_up
    assert waiting and waits == ["Waiting for table flush"]


def stop_sleeping(lab: Lab) -> None:
    """End the queries that sleep."""
    for number in lab.mysql("select id from information_schema.processlist where info like 'select sleep(%'"):
        lab.mysql(f"kill {number}")


def test_a_transaction_that_does_not_end_is_given_up_on(lab: Lab) -> None:
    with lab.in_background("begin; update lms.users set name = name where id = 1; delete from lms.sessions; select sleep(30)") as writer:
        wait_until(lambda: lab.mysql("select 1 from information_schema.processlist where info like 'select sleep(30)%'"))
        found = lab.run("""
made = backed_up(engine, "lms", "/srv/lms.sql.zst", lock_timeout=1)
print(json.dumps([made["consistency"], made["warnings"]]))
""")
        lab.mysql("update lms.users set name = name where id = 3")
        still_writing = writer.poll() is None
        stop_sleeping(lab)

    assert still_writing
    assert found == [
        "fast",
        ["The counts of lms are not exactly of the dump's moment: a transaction that writes did not end within 1 s (lock_timeout)."],
    ]


def test_writers_go_on_when_the_dump_does_not_begin(lab: Lab) -> None:
    found = lab.run("""
with engine.snapshot("lms", consistency="exact", lock_timeout=1) as snapshot:
    dump = snapshot.dump(exclude_table_data=(), compression_level=1, compression_threads=1)
    before = snapshot.consistency
    with engine._session() as writer:
        writer.query("SET SESSION lock_wait_timeout = 10")
        writer.query("UPDATE lms.users SET name = name WHERE id = 3")
    print(json.dumps([before, snapshot.consistency, snapshot.warnings]))
""")

    assert found == ["exact", "fast", ["The counts of lms are not exactly of the dump's moment: the dump did not begin within 1 s."]]


def test_a_second_run_is_refused_and_a_killed_one_leaves_no_lock(lab: Lab) -> None:
    holding = """
with engine.snapshot("lms", consistency="exact", lock_timeout=30) as snapshot:
    snapshot.dump(exclude_table_data=(), compression_level=1, compression_threads=1)
    print(json.dumps(os.getpid()), flush=True)
    time.sleep(60)
"""
    code = 'print(json.dumps(said(lambda: engine.snapshot("lms", consistency="exact", lock_timeout=1).__enter__())))'
    with lab.start(holding) as holder:
        refused = lab.run(code)
        lab.host.shell("pkill -KILL -f '[t]ime.sleep.60'")
        holder.wait()
    free = wait_until(lambda: lab.run(code) == "nothing" or None)

    assert refused.startswith("DatabaseLockedError: Another run works on the backup of lms (session ")
    assert free
    # Nor does it keep the tables.
    lab.mysql("set lock_wait_timeout = 5; update lms.users set name = name where id = 3")


def test_a_dump_that_was_killed_or_cut_off_fails(lab: Lab) -> None:
    found = lab.run("""
from dataclasses import replace
with engine.snapshot("lms", consistency="fast", lock_timeout=1) as snapshot:
    dump = snapshot.dump(exclude_table_data=(), compression_level=1, compression_threads=1)
    argv = list(dump.stages[0].argv)
    kill = Stage([sys.executable, "-c", "import os,signal,subprocess,sys; p=subprocess.run(sys.argv[1:], capture_output=True); "
                  "sys.stdout.buffer.write(p.stdout[:2000]); sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)", *argv])
    cut = replace(kill, argv=[each.replace("os.kill(os.getpid(), signal.SIGKILL)", "") for each in kill.argv])
    killed = said(lambda: run_pipeline([kill, dump.stages[1]], sink=lambda piece: None, taps=dump.taps))
    dump = snapshot.dump(exclude_table_data=(), compression_level=1, compression_threads=1)
    run_pipeline([cut, dump.stages[1]], sink=lambda piece: None, taps=dump.taps)
    print(json.dumps([killed, said(dump.check)]))
""")

    assert found[0].startswith("StageError: python3") and found[0].endswith("was killed by signal 9")
    assert found[1].startswith("DatabaseError: The dump has no end")


def test_a_dump_that_was_cut_off_is_not_restored_silently(lab: Lab) -> None:
    found = lab.run("""
backed_up(engine, "lms", "/srv/lms.sql.zst")
subprocess.run("zstd -dc /srv/lms.sql.zst | head -n 120 | zstd -q -f -o /srv/cut.sql.zst", shell=True, check=True)
engine.create("lms_cut", {}, "ours")
print(json.dumps(said(lambda: restore(engine, "lms_cut", "/srv/cut.sql.zst"))))
engine.drop("lms_cut")
""")

    assert found.startswith("StageError: python3") and "The dump has no end" in found


def test_a_statement_that_fails_fails_the_restore(lab: Lab) -> None:
    found = lab.run("""
engine.create("lms_bad", {}, "ours")
failure = said(lambda: run_pipeline(engine.restore("lms_bad", {}), source=[b"create table a (id int);\\ninsert into b values (1);\\n"
               b"create table c (id int);\\n-- Dump completed on now\\n"]))
print(json.dumps([failure, list(rows(engine.tables("lms_bad", "none")))]))
engine.drop("lms_bad")
""")

    assert "doesn't exist" in found[0]
    assert found[1] == ["a"]


def test_tables_without_their_rows_are_there_and_serve_views_and_triggers(lab: Lab) -> None:
    found = lab.run("""
made = backed_up(engine, "lms", "/srv/less.sql.zst", exclude=["sess*", "log"])
engine.create("lms_copy", {}, "ours")
restore(engine, "lms_copy", "/srv/less.sql.zst")
print(json.dumps([made["consistency"], {name: counted for name, (counted, _sum) in rows(engine.tables("lms_copy", "counts")).items()}]))
engine.drop("lms_copy")
""")

    assert found == ["exact", {"courses": 2, "log": 0, "odd `name`": 2, "sessions": 0, "users": 3}]


def test_single_tables_come_back_alone(lab: Lab) -> None:
    found = lab.run("""
made = backed_up(engine, "lms", "/srv/lms.sql.zst")
engine.create("lms_copy", {}, "ours")
restore(engine, "lms_copy", "/srv/lms.sql.zst", tables=["courses", "odd `name`"])
tables = rows(engine.tables("lms_copy", "checksums"))
lacking = said(lambda: restore(engine, "lms_copy", "/srv/lms.sql.zst", tables=["nowhere"]))
print(json.dumps([{name: made["tables"][name] for name in tables}, tables, lacking]))
engine.drop("lms_copy")
""")

    assert found[0] == found[1]
    assert sorted(found[1]) == ["courses", "odd `name`"]
    assert "The dump does not have `nowhere`" in found[2]


def test_definers_that_are_gone_are_replaced(lab: Lab) -> None:
    lab.mysql("drop user if exists gone@localhost; create user gone@localhost; grant all on *.* to gone@localhost")
    lab.mysql(
        "create definer = gone@localhost view lms.theirs as select 1 as one; create definer = gone@localhost procedure lms.done() select 1"
    )
    lab.mysql("create definer = gone@localhost event lms.theirs on schedule every 1 day do select 1")
    lab.mysql("create definer = gone@localhost trigger lms.theirs before insert on lms.log for each row set new.what = 'x'")

    lab.run("""
backed_up(engine, "lms", "/srv/lms.sql.zst")
engine.create("lms_copy", {}, "ours")
restore(engine, "lms_copy", "/srv/lms.sql.zst", owners=False)
print("1")
""")

    for schema, expected in (("lms", "gone@localhost"), ("lms_copy", "root@localhost")):
        definers = lab.mysql(f"""
select definer from information_schema.views where table_schema = '{schema}' and table_name = 'theirs' union all
select definer from information_schema.routines where routine_schema = '{schema}' and routine_name = 'done' union all
select definer from information_schema.events where event_schema = '{schema}' and event_name = 'theirs' union all
select definer from information_schema.triggers where trigger_schema = '{schema}' and trigger_name = 'theirs'""")
        assert definers == [expected] * 4
    lab.mysql("drop database lms_copy; drop user gone@localhost")
    lab.mysql("drop view lms.theirs; drop procedure lms.done; drop event lms.theirs; drop trigger lms.theirs")


def test_what_would_make_the_dump_fail_is_said_before(lab: Lab) -> None:
    lab.mysql("create table lms.short_lived (id int); create view lms.orphan as select id from lms.short_lived; drop table lms.short_lived")
    lab.mysql("create table lms.damaged (id int primary key) engine = MyISAM; insert into lms.damaged values (1); flush tables")
    lab.host.shell("echo garbage > /var/lib/mysql/lms/damaged.MYI")

    problems = lab.run('print(json.dumps(engine.problems("lms")))')

    lab.mysql("drop view lms.orphan; drop table lms.damaged")
    assert [" ".join(problem.split()[:2]) for problem in problems] == ["Table lms.damaged", "View lms.orphan"]


def test_events_wait_until_the_database_is_said_to_be_whole(lab: Lab) -> None:
    statuses = "select event_name, status from information_schema.events where event_schema = 'lms_copy' order by 1"
    lab.run("""
backed_up(engine, "lms", "/srv/lms.sql.zst")
engine.create("lms_copy", {}, "restoring")
restore(engine, "lms_copy", "/srv/lms.sql.zst")
print("1")
""")

    waiting = lab.mysql(statuses)
    lab.run('engine.remark("lms_copy", "restored"); print(json.dumps(engine.databases("lms_copy")))')
    running = lab.mysql(statuses)

    assert [line.split("\t")[1].endswith("SIDE_DISABLED") for line in waiting] == [True, False]
    assert running == ["nightly\tENABLED", "off\tDISABLED"]
    lab.mysql("drop database lms_copy")


def test_a_password_with_everything_works_and_shows_nowhere(lab: Lab) -> None:
    quoted = PASSWORD.replace("\\", "\\\\").replace("'", "''")
    lab.mysql(f"drop user if exists backup@'%'; create user backup@'%' identified by '{quoted}'")
    lab.mysql("grant select, lock tables, show view, trigger, event, execute on lms.* to backup@'%'")
    lab.mysql(f"grant {'show_routine' if lab.host.suite == 'sid' else 'select'} on *.* to backup@'%'")

    found = lab.run(f"""
password = {PASSWORD!r}
engine = MySQL(Login("mysql", host="127.0.0.1", user="backup", password=password))
seen = []
stop = threading.Event()
def look():
    while not stop.is_set():
        for number in filter(str.isdigit, os.listdir("/proc")):
            for name in ("cmdline", "environ"):
                try:
                    seen.append((number, open(f"/proc/{{number}}/{{name}}", "rb").read()))
                except OSError:
                    pass
thread = threading.Thread(target=look, daemon=True)
thread.start()
made = backed_up(engine, "lms", "/srv/lms.sql.zst")
stop.set()
thread.join()
own = str(os.getpid())
encryption = []
for mode in ("disable", "allow", "prefer", "require"):
    try:
        with MySQL(Login("mysql", host="127.0.0.1", user="backup", password=password, ssl_mode=mode))._session() as session:
            encryption.append(session.query("SHOW SESSION STATUS LIKE 'Ssl_version'")[0][1])
    except DatabaseError as error:
        encryption.append(error.message)
refused = said(lambda: MySQL(Login("mysql", host="127.0.0.1", user="backup", password="wrong")).server())
unknown = said(lambda: engine.describe("nowhere"))
print(json.dumps([made["consistency"], made["warnings"], len({{number for number, text in seen if b"dump" in text}}),
    [text.decode() for number, text in seen if password[:12].encode() in text and number != own], encryption, engine.problems("lms"),
    refused, unknown]))
""")
    consistency, warnings, dumps_seen, leaks, encryption, problems, refused, unknown = found

    assert (consistency, warnings, leaks, problems) == ("exact", [], [], [])
    assert dumps_seen > 0
    # MariaDB 10.11 has no certificate of its own making.
    without = lab.host.suite == "bookworm"
    refusal = "The server at 127.0.0.1 offers no TLS, but ssl_mode is require."
    allowed = "TLSv1.3" if lab.host.suite == "sid" else ""
    assert encryption == ["", allowed, "" if without else "TLSv1.3", refusal if without else "TLSv1.3"]
    assert "refused the login" in refused and "Check login_user" in refused
    assert unknown.startswith("MissingDatabaseError: ")


def test_what_a_login_lacks_is_said_before(lab: Lab) -> None:
    lab.mysql("drop user if exists poor@'%'; create user poor@'%' identified by 'x'; grant select on `lm_`.* to poor@'%'")

    found = lab.run("""
engine = MySQL(Login("mysql", host="127.0.0.1", user="poor", password="x"))
fast = "without LOCK TABLES"
with engine.snapshot("lms", consistency="exact", lock_timeout=1) as snapshot:
    snapshot.tables("counts")
    warnings = snapshot.warnings
print(json.dumps([engine.problems("lms"), warnings]))
""")

    assert found[0][0] == (
        "The login lacks the privilege SHOW VIEW, TRIGGER, EVENT on lms: GRANT SHOW VIEW, TRIGGER, EVENT ON `lms`.* to it."
    )
    assert "does not see the routines" in found[0][1]
    assert found[1] == ["The counts of lms are not exactly of the dump's moment: the login lacks the privilege LOCK TABLES."]


def test_users_and_roles_come_back_with_their_passwords_and_grants(lab: Lab) -> None:
    lab.mysql(
        "drop role if exists teachers; drop user if exists 'ann o''hara'@'10.%'; create role teachers; grant select on lms.* to teachers"
    )
    default = "default role teachers" if lab.host.suite == "sid" else ""
    lab.mysql(f"create user 'ann o''hara'@'10.%' identified by 'secret' {default}; grant teachers to 'ann o''hara'@'10.%'")
    lab.mysql("grant insert on lms.courses to 'ann o''hara'@'10.%'")
    if not default:
        lab.mysql("set default role teachers for 'ann o''hara'@'10.%'")
    shown = [
        "set session print_identified_with_as_hex = on; show create user 'ann o''hara'@'10.%'"
        if lab.host.suite == "sid"
        else "show create user 'ann o''hara'@'10.%'",
        "show grants for 'ann o''hara'@'10.%'",
        "show grants for teachers",
    ]
    before = [lab.mysql(statement) for statement in shown]

    found = lab.run("""
content = bytearray()
run_pipeline(engine.globals_dump(), sink=content.extend)
text = content.decode()
with engine._session() as session:
    session.query("DROP ROLE teachers")
    session.query("DROP USER 'ann o''hara'@'10.%'")
missing = engine.missing_roles(text)
engine.create_roles(text, missing)
print(json.dumps([missing, engine.missing_roles(text), "mysql.sys" in text or "mariadb.sys" in text]))
""")

    teachers = "teachers@%" if lab.host.suite == "sid" else "teachers"
    assert found == [[teachers, "ann o'hara@10.%"] if lab.host.suite != "sid" else ["ann o'hara@10.%", teachers], [], False]
    assert [lab.mysql(statement) for statement in shown] == before


def databases(lab: Lab) -> list[str]:
    """Return the databases of these tests."""
    return lab.mysql("select schema_name from information_schema.schemata where schema_name like 'lms%' order by 1")


def prepare_swap(lab: Lab) -> None:
    """Make a live database that differs from its restored copy."""
    lab.mysql("".join(f"drop database `{name}`;" for name in databases(lab)))
    lab.mysql(DATA)
    lab.run("""
backed_up(engine, "lms", "/srv/lms.sql.zst")
engine.create("lms_new", {"database": engine.describe("lms")}, "restored")
restore(engine, "lms_new", "/srv/lms.sql.zst")
print("1")
""")
    lab.mysql("drop user if exists clerk@localhost; create user clerk@localhost; grant execute on procedure lms.cleared to clerk@localhost")
    lab.mysql(
        "delete from users where id = 3; create table later (id int); create view later_view as select * from later;"
        "create procedure later_procedure() select 1; create trigger later_trigger before insert on later for each row set new.id = 1;"
        "create event later_event on schedule every 1 day do select 1; drop function initials;",
        "lms",
    )


def everything(lab: Lab, database: str) -> list[str]:
    """Return the names of all that is in a database."""
    return lab.mysql(f"""
select concat(lower(table_type), ' ', table_name) from information_schema.tables where table_schema = '{database}' union all
select concat(lower(routine_type), ' ', routine_name) from information_schema.routines where routine_schema = '{database}' union all
select concat('trigger ', trigger_name) from information_schema.triggers where trigger_schema = '{database}' union all
select concat('event ', event_name, ' ', lower(replace(status, 'REPLICA_SIDE', 'SLAVESIDE')))
from information_schema.events where event_schema = '{database}' order by 1""")


RESTORED = [
    *("base table courses", "base table log", "base table odd `name`", "base table sessions", "base table users"),
    *(
        "event nightly enabled",
        "event off disabled",
        "function initials",
        "procedure cleared",
        "trigger noted",
        "view short",
        "view titles",
    ),
]
FORMER = sorted(
    [
        *(RESTORED[:5] + RESTORED[8:]),
        *("event nightly slaveside_disabled", "event off disabled", "event later_event slaveside_disabled", "base table later"),
        *("view later_view", "procedure later_procedure", "trigger later_trigger"),
    ]
)


def test_a_swap_changes_nothing_while_it_cannot_have_the_tables_and_then_moves_everything(lab: Lab) -> None:
    prepare_swap(lab)
    before = everything(lab, "lms")
    with lab.in_background("begin; select * from lms.users; select sleep(60)") as reader:
        wait_until(lambda: lab.mysql("select 1 from information_schema.processlist where info like 'select sleep(60)%'"))
        said = lab.run("""
import ansible_collections.bitflow.lms.plugins.module_utils._mysql_swap as swap
swap.LOCK_TIMEOUT = 1
print(json.dumps(said(lambda: engine.swap("lms", "lms_new", "lms_before"))))
""")
        still_reading = reader.poll() is None
        stop_sleeping(lab)

    assert still_reading and "held its tables for longer than 1 s" in said
    assert everything(lab, "lms") == before
    assert "trigger noted" in everything(lab, "lms_new")
    assert databases(lab) == ["lms", "lms_new"]

    away = lab.run('print(json.dumps(engine.swap("lms", "lms_new", "lms_before")))')

    assert away < 30
    assert everything(lab, "lms") == sorted(RESTORED)
    assert everything(lab, "lms_before") == FORMER
    assert lab.mysql("select schema_name from information_schema.schemata where schema_name like 'lms%' order by 1") == [
        "lms",
        "lms_before",
    ]
    assert lab.mysql("select count(*) from lms.users; select count(*) from lms_before.users") == ["3", "2"]
    # Foreign keys, triggers and views belong to the tables beside them.
    lab.mysql("insert into courses values (9, 1, 'new'); delete from users where id = 2", "lms")
    assert lab.mysql("select count(*) from lms.courses; select count(*) from lms_before.courses") == ["2", "2"]
    assert lab.mysql("select title from short order by 1; select what from log", "lms") == ["new", "SQL; -- no comment", "course; new"]
    assert lab.mysql("select title from short order by 1", "lms_before") == ["/* nor this */", "SQL; -- no comment"]
    assert "cleared" in lab.value("show grants for clerk@localhost")


@pytest.mark.parametrize("moment", ["_move", "_fill_live"])
def test_a_swap_that_was_killed_is_undone_or_completed_by_the_next_one(lab: Lab, moment: str) -> None:
    prepare_swap(lab)
    lab.run(f"""
import ansible_collections.bitflow.lms.plugins.module_utils._mysql_swap as swap
def killed(self):
    if {moment!r} == "_move":
        self._session.query("DROP TRIGGER lms.noted")
    os._exit(0)
swap.Swap.{moment} = killed
print("1", flush=True)
engine.swap("lms", "lms_new", "lms_killed")
""")

    said = lab.run('print(json.dumps(engine.problems("lms")))')
    kept = "lms_before" if moment == "_move" else "lms_killed"
    lab.run(f'print(json.dumps(engine.swap("lms", "lms_new", "{kept}")))')

    assert said[-1] == "The swap of lms with lms_new was interrupted: repeat the restore, which completes or undoes it."
    assert everything(lab, "lms") == sorted(RESTORED)
    assert everything(lab, kept) == FORMER
    assert databases(lab) == ["lms", kept]


def test_what_no_restore_made_is_not_dropped(lab: Lab) -> None:
    found = lab.run('print(json.dumps(said(lambda: engine.drop("lms"))))')

    assert found == "DatabaseError: The database lms was not made by a restore, and is not dropped: it has no table __bitflow_comment."
    assert lab.mysql("select count(*) > 0 from lms.users") == ["1"]
