# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL's engine against a real server: what is counted is what comes back, nothing half is left, nobody's password is seen.

LMS_POSTGRESQL_SUITE=bookworm or sid takes another version of PostgreSQL than trixie's.
"""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from database_host import LIBRARY, Host, host_name, wait_until

PASSWORD = "pass:word\\with 'everything'"
# What a program on the host begins with. It prints its result as JSON.
PRELUDE = """
import json, os, signal, sys, threading, time
from ansible_collections.bitflow.lms.plugins.module_utils import _database_postgresql
from ansible_collections.bitflow.lms.plugins.module_utils._database import DatabaseError, Login, engine_for
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._pipeline import Stage, run_pipeline, start

ADMINISTRATOR = Login("postgresql", system_user="postgres")

def login(user, database=None):
    return Login("postgresql", host="127.0.0.1", user=user, password=PASSWORD)

def said(call):
    try:
        call()
    except LmsError as error:
        return type(error).__name__ + ": " + error.message
    return "nothing"

def rows(tables):
    return {f"{each.schema}.{each.name}": [each.rows, each.checksum] for each in tables}

def dump(engine, snapshot, path, exclude=()):
    made = snapshot.dump(exclude_table_data=exclude, compression_level=1, compression_threads=1)
    with open(path, "wb") as file:
        run_pipeline(made.stages, sink=file.write, taps=made.taps)
    made.check()
    return made

def manifest_of(engine, database, made, tables):
    tables = [{"schema": each.schema, "name": each.name} for each in tables]
    described = {**engine.describe(database), "server_version": engine.server().version}
    return {"database": described, "tool": {"version": made.version}, "tables": tables}

def restore(engine, database, manifest, path, **options):
    def pieces():
        with open(path, "rb") as file:
            while piece := file.read(1 << 16):
                yield piece
    around = [Stage(["zstd", "-dcq", "-"])] if open(path, "rb").read(4) == bytes([0x28, 0xB5, 0x2F, 0xFD]) else []
    run_pipeline([*around, *engine.restore(database, manifest, **options)], source=pieces())

"""

DATA = """
create extension citext;
create extension pg_trgm;
create schema "Grading";
create type role_of_user as enum ('student', 'teacher');
create domain percent as numeric check (value between 0 and 100);
create function initials(text) returns text language sql immutable as $$ select upper(left($1, 1)) $$;
create table users (
    id bigint generated always as identity primary key,
    name text not null,
    mail citext unique,
    role role_of_user not null default 'student',
    tags text[] default '{}',
    photo bytea,
    about jsonb,
    raw json,
    score double precision,
    share real,
    price money,
    seen timestamptz default now(),
    during interval,
    initial text generated always as (initials(name)) stored,
    t integer
);
create index users_name on users using gin (name gin_trgm_ops);
insert into users (name, mail, role, tags, photo, about, raw, score, share, price, seen, during, t)
select 'Zoë "O''Neil" \\ ' || chr(9) || chr(10) || repeat('日本', i % 5) || i, 'User' || i || '@Example.com',
       case i % 7 when 0 then 'teacher' else 'student' end::role_of_user, array['a,b', '"', null, i::text],
       decode(lpad(to_hex(i), 8, '0'), 'hex') || '\\x00ff'::bytea, jsonb_build_object('b', i, 'a', 0.1 + i, 'ü', null),
       '{"b": 1,  "b": 2, "a": 1.10}', i / 3.0, i / 7.0, i * 1.01, '2026-10-25 01:30:00+02'::timestamptz + i * interval '1 hour',
       make_interval(months => i, secs => i / 10.0), i
  from generate_series(1, 500) i;
insert into users (name, score, share) values ('not a number', 'NaN', '-Infinity'), ('negative zero', '-0', '1e-45');
create table "Grading"."Odd "" name." ("select" integer primary key, "Ünïcode" percent, who bigint references users);
insert into "Grading"."Odd "" name." select i, i % 100, i from generate_series(1, 50) i;
create table activity (id bigserial, at date not null, user_id bigint, what text) partition by range (at);
create table activity_2025 partition of activity for values from ('2025-01-01') to ('2026-01-01');
create table activity_2026 partition of activity for values from ('2026-01-01') to ('2027-01-01') partition by list (what);
create table activity_2026_login partition of activity_2026 for values in ('login');
create table activity_2026_rest partition of activity_2026 default;
alter table activity add primary key (id, at, what);
create index on activity (user_id);
insert into activity (at, user_id, what)
select '2025-06-01'::date + i, i % 500 + 1, (array['login', 'read', 'write'])[i % 3 + 1] from generate_series(1, 400) i;
create table by_role (role role_of_user, n integer) partition by hash (role);
create table by_role_0 partition of by_role for values with (modulus 2, remainder 0);
create table by_role_1 partition of by_role for values with (modulus 2, remainder 1);
insert into by_role select case i % 2 when 0 then 'student' else 'teacher' end::role_of_user, i from generate_series(1, 60) i;
create table parents (id integer, a text);
create table children (extra text) inherits (parents);
alter table parents add column late text default 'late';
insert into parents values (1, 'p');
insert into children (id, a, extra) values (2, 'c', 'x'), (3, 'c', 'y');
create table no_columns ();
insert into no_columns default values;
create table empty_partitions (n integer) partition by range (n);
create table nothing (id integer primary key);
create unlogged table cache (key text primary key, value text);
insert into cache select i::text, 'v' from generate_series(1, 20) i;
create table sessions (id text primary key, payload text);
insert into sessions select i::text, 'p' from generate_series(1, 30) i;
create table dropped (a integer, b integer, c integer);
insert into dropped select i, i, i from generate_series(1, 10) i;
alter table dropped drop column b;
create sequence tickets start 100 increment 7;
select nextval('tickets'), nextval('tickets');
create view teachers as select * from users where role = 'teacher';
create materialized view roles as select role, count(*) from users group by role;
create function touch() returns trigger language plpgsql as $$ begin new.seen := '2026-01-01'; return new; end $$;
create trigger touching before update on users for each row execute function touch();
create rule ignore_nothing as on delete to nothing do instead nothing;
comment on table users is 'Everybody; with a semicolon';
select lo_from_bytea(4711, '\\x00010203ff'), lo_from_bytea(4712, convert_to(repeat('large', 5000), 'UTF8'));
create table written (id bigserial primary key, at timestamptz default clock_timestamp(), note text);
insert into written (note) values ('the first');
create sequence steps;
create table hidden (id integer);
insert into hidden values (1), (2);
alter table hidden enable row level security;
create policy own on hidden using (id = 1);
alter database engine_lms set datestyle = 'German, DMY';
alter database engine_lms set "app.secret" = 'hidden';
alter role engine_owner in database engine_lms set search_path = "Grading", public;
revoke connect on database engine_lms from public;
grant connect on database engine_lms to engine_reader with grant option;
"""
# How many rows each table has but for the one that is written to all the time.
COUNTS = {
    'Grading.Odd " name.': 50,
    "pg_catalog.pg_largeobject": 2,
    "public.activity": 400,
    "public.by_role": 60,
    "public.cache": 20,
    "public.children": 2,
    "public.dropped": 10,
    "public.empty_partitions": None,
    "public.hidden": 2,
    "public.no_columns": 1,
    "public.nothing": 0,
    "public.parents": 1,
    "public.sessions": None,
    "public.users": 502,
}


@pytest.fixture(scope="session")
def server() -> Iterator[Host]:
    """Start the host, with the database whose backup is made."""
    suite = os.environ.get("LMS_POSTGRESQL_SUITE", "trixie")
    made = Host(host_name(suite), suite)
    made.start()
    clean(made)
    made.postgresql(f"create role engine_owner login password {quoted(PASSWORD)}; create role engine_reader login;")
    made.postgresql("create database engine_lms owner engine_owner")
    made.postgresql(DATA, "engine_lms")
    made.postgresql(
        f"create role engine_backup login bypassrls password {quoted(PASSWORD)};"
        "grant connect on database engine_lms to engine_backup; grant pg_read_all_data to engine_backup;"
        "grant select on large object 4711, 4712 to engine_backup",
        "engine_lms",
    )
    yield made
    if os.environ.get("LMS_KEEP") == "1":
        clean(made)
    else:
        made.remove()


def quoted(text: str) -> str:
    """Return a text as SQL reads it."""
    return "'" + text.replace("'", "''") + "'"


def clean(server: Host) -> None:
    """Remove what these tests make."""
    for name in server.postgresql("select datname from pg_database where datname like 'engine%'"):
        server.postgresql(f'drop database "{name}" with (force)')
    for name in server.postgresql("select rolname from pg_roles where rolname like 'engine%' order by 1 desc"):
        server.postgresql(f'drop role "{name}"')
    server.shell("rm -rf /tmp/engine && mkdir /tmp/engine")


def argv(server: Host) -> list[str]:
    """Return what runs Python on the host, with the collection."""
    return [
        *("docker", "exec", "-i", "--env", f"PYTHONPATH={LIBRARY}", "--env", "PYTHONDONTWRITEBYTECODE=1", server.name),
        *("python3", "-c", "import sys; exec(compile(sys.stdin.read(), 'test', 'exec'))"),
    ]


def program(code: str) -> str:
    """Return a program for the host."""
    return f"PASSWORD = {PASSWORD!r}\n{PRELUDE}{textwrap.dedent(code)}"


def run(server: Host, code: str) -> Any:
    """Run a program on the host and return what it printed last, as JSON."""
    process = subprocess.run(argv(server), input=program(code), check=False, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def begin(command: list[str], text: str) -> tuple[subprocess.Popen[str], str]:
    """Start a program on the host with a text as its input, and return it when it said its number on the host, and that number."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    process.stdin.write(text)
    process.stdin.close()
    number = process.stdout.readline().strip()
    assert number.isdigit()
    return process, number


@pytest.fixture
def writer(server: Host) -> Iterator[None]:
    """Write to the database all the time."""
    loop = "while :; do echo \"insert into written (note) values (repeat('x', 100)); update users set t = t + 1 where id = 1;\"; done"
    process = subprocess.Popen(
        ["docker", "exec", server.name, "sh", "-c", f"({loop}) | timeout 60 runuser -u postgres -- psql -qX engine_lms"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: int(server.postgresql("select count(*) from written", "engine_lms")[0]) > 10)
    yield
    server.postgresql(
        "select pg_terminate_backend(pid) from pg_stat_activity where query like 'insert into written%' or query like 'update users%'"
    )
    process.wait()


@pytest.fixture
def dumped(server: Host) -> str:
    """Make a dump that tests restore, once, and return the path of it and (with .json) its manifest."""
    path = "/tmp/engine/dumped"
    if server.execute("test", "-e", f"{path}.json", check=False).returncode:
        run(
            server,
            f"""
            engine = engine_for(ADMINISTRATOR)
            with engine.snapshot("engine_lms", consistency="exact", lock_timeout=5) as snapshot:
                made = dump(engine, snapshot, {path!r})
                manifest = manifest_of(engine, "engine_lms", made, snapshot.tables("none"))
            json.dump(manifest, open({path + ".json"!r}, "w"))
            print("null")
            """,
        )
    return path


def test_what_comes_back_is_what_was_counted_in_the_dump_s_moment(server: Host, writer: None) -> None:
    result = run(
        server,
        """
        engine = engine_for(ADMINISTRATOR)
        with engine.snapshot("engine_lms", consistency="exact", lock_timeout=5) as snapshot:
            made = dump(engine, snapshot, "/tmp/engine/first", ["sessions"])
            counted = rows(snapshot.tables("checksums"))
            snapshot.check()
            position, warnings = snapshot.position, snapshot.warnings
        manifest = manifest_of(engine, "engine_lms", made, [])
        engine.create("engine_first", manifest, "bitflow.lms restoring")
        restore(engine, "engine_first", manifest, "/tmp/engine/first")
        engine.finish_restore("engine_first")
        restored = rows(engine.tables("engine_first", "checksums"))
        live = rows(engine.tables("engine_lms", "checksums"))
        print(json.dumps([made.format, made.suffix, made.compression["where"], counted, restored, live, sorted(position), warnings]))
        """,
    )

    form, suffix, where, counted, restored, live, position, warnings = result
    assert (form, position, warnings) == ("custom", ["id", "lsn"], [])
    assert (suffix, where) == ((".dump.zst", "around") if server.suite == "bookworm" else (".dump", "inside"))
    assert {name: each[0] for name, each in counted.items() if name != "public.written"} == COUNTS
    assert restored.pop("public.sessions")[0] == 0
    assert restored.pop("public.empty_partitions")[0] is None
    assert restored == {name: each for name, each in counted.items() if name not in ("public.sessions", "public.empty_partitions")}
    # What was counted outside of the dump's moment would not have been equal.
    assert live["public.written"][0] > counted["public.written"][0]
    assert live["public.users"] != counted["public.users"]


@pytest.fixture
def restored(server: Host, dumped: str) -> str:
    """Restore the dump, once, and return the name of the database."""
    if not server.postgresql("select 1 from pg_database where datname = 'engine_second'"):
        run(
            server,
            f"""
            engine = engine_for(ADMINISTRATOR)
            manifest = json.load(open({dumped + ".json"!r}))
            engine.create("engine_second", manifest, "bitflow.lms restoring")
            restore(engine, "engine_second", manifest, {dumped!r})
            engine.finish_restore("engine_second")
            print("null")
            """,
        )
    return "engine_second"


def test_everything_but_rows_comes_back_too(server: Host, restored: str) -> None:
    checks = """
        select count(*) from teachers;
        select string_agg(concat(role, count), ' ' order by role) from roles;
        select nextval('tickets');
        insert into users (name) values ('new') returning id, initial;
        update users set name = 'other' where name = 'new' returning seen = '2026-01-01';
        delete from nothing;
        select obj_description('users'::regclass);
        select count(*) from pg_indexes where indexname in ('users_name', 'users_mail_key', 'activity_user_id_idx');
        select convert_from(lo_get(4712), 'UTF8') = repeat('large', 5000);
        select string_agg(extname, ' ' order by extname) from pg_extension;
        select reltuples > 0 from pg_class where relname = 'users';
    """
    assert server.postgresql(checks, restored) == [
        "71", "student431 teacher71", "114", "503|N", "t", "Everybody; with a semicolon", "3", "t", "citext pg_trgm plpgsql", "t",
    ]  # fmt: skip


def test_a_database_gets_its_owner_privileges_and_settings_back(server: Host, dumped: str, restored: str) -> None:
    described = run(server, f"print(json.dumps(json.load(open({dumped + '.json'!r}))['database']['properties']))")

    # Settings of one's own may be secrets, which no manifest is to have.
    assert described["settings"] == [
        {"role": "engine_owner", "value": 'search_path="Grading", public'},
        {"role": None, "value": "DateStyle=German, DMY"},
    ]
    ours, live = (run(server, f"print(json.dumps(engine_for(ADMINISTRATOR).describe({name!r})))") for name in (restored, "engine_lms"))
    for each in (ours, live):
        del each["size_bytes"], each["name"]
    assert ours == live


def test_a_second_run_is_refused_and_told_by_whom(server: Host) -> None:
    first, number = begin(
        argv(server),
        program(
            """
        with engine_for(ADMINISTRATOR).snapshot("engine_lms", consistency="exact", lock_timeout=5) as snapshot:
            counting = threading.Thread(target=lambda: snapshot._session.query("select pg_sleep(60)"), daemon=True)
            counting.start()
            time.sleep(0.2)
            print(os.getpid(), flush=True)
            counting.join()
        """
        ),
    )
    attempt = """
        def snapshot():
            with engine_for(ADMINISTRATOR).snapshot("engine_lms", consistency="exact", lock_timeout=5):
                pass
        print(json.dumps(said(snapshot)))
        """

    refused = run(server, attempt)
    server.execute("kill", "-KILL", number)
    first.wait()
    taken = run(server, attempt)

    assert refused.startswith("DatabaseLockedError: Another run works on the backup of engine_lms: bitflow.lms ")
    assert "from the server itself, since 20" in refused
    assert taken == "nothing"


def test_a_lock_of_a_session_that_works_would_outlive_its_client(server: Host) -> None:
    """Why the lock has a session of its own."""
    busy, number = begin(
        ["docker", "exec", "-i", server.name, "runuser", "-u", "postgres", "--", "sh", "-c", "echo $$; exec psql -qXtA engine_lms"],
        "select pg_advisory_lock(42); select pg_sleep(3), 'engine-busy';\n",
    )
    wait_until(lambda: server.postgresql("select pid from pg_stat_activity where query like '%engine-busy%' and pid <> pg_backend_pid()"))

    server.execute("kill", "-KILL", number)
    busy.wait()

    assert server.postgresql("select pg_try_advisory_lock(42)", "engine_lms") == ["f"]


@pytest.mark.parametrize("session", ["_session", "_lock"])
def test_a_snapshot_whose_session_was_ended_is_noticed(server: Host, session: str) -> None:
    said = run(
        server,
        f"""
        with engine_for(ADMINISTRATOR).snapshot("engine_lms", consistency="exact", lock_timeout=5) as snapshot:
            snapshot.check()
            pid = snapshot.{session}.value("pg_backend_pid()")
            other = engine_for(ADMINISTRATOR)._maintenance()
            other.query(f"select pg_terminate_backend({{pid}}, 5000)")
            print(json.dumps(said(snapshot.check)))
        """,
    )

    assert said.startswith("DatabaseError: The session that held the snapshot of engine_lms did not last, so the dump is not certainly of")
    assert "terminating connection due to administrator command" in said


def test_what_the_login_would_not_see_is_said_before(server: Host) -> None:
    server.postgresql(f"create role engine_reading login password {quoted(PASSWORD)}")
    problems = """
        print(json.dumps(engine_for(login("engine_reading")).problems("engine_lms", [EXCLUDE])))
        """

    nowhere = run(server, problems.replace("EXCLUDE", ""))
    server.postgresql("grant connect on database engine_lms to engine_reading")
    nothing = run(server, problems.replace("EXCLUDE", ""))
    server.postgresql("grant pg_read_all_data to engine_reading", "engine_lms")
    filtered = run(server, problems.replace("EXCLUDE", ""))
    left_out = run(server, problems.replace("EXCLUDE", "'public.hid*'"))
    server.postgresql("grant select on large object 4711 to engine_reading; grant select on large object 4712 to public", "engine_lms")
    server.postgresql("alter role engine_reading bypassrls")
    whole = run(server, problems.replace("EXCLUDE", ""))

    assert nowhere == ['engine_reading may not connect to engine_lms: GRANT CONNECT ON DATABASE "engine_lms" TO "engine_reading" lets it.']
    assert len(nothing) == 3
    assert nothing[0].startswith('engine_reading may not read Grading.Odd " name., public.activity, public.activity_2025, ')
    assert nothing[0].endswith(' more in engine_lms: GRANT pg_read_all_data TO "engine_reading" lets it.')
    hidden = (
        'Row-level security hides rows of public.hidden in engine_lms from engine_reading: ALTER ROLE "engine_reading" BYPASSRLS shows '
        "them, or exclude_table_data leaves them out."
    )
    objects = (
        "engine_reading may not read 2 large objects in engine_lms, such as 4711: GRANT SELECT ON LARGE OBJECT 4711 TO "
        '"engine_reading" lets it, or the role of their owner.'
    )
    assert nothing[1:] == [hidden, objects]
    assert filtered == [hidden, objects]
    assert left_out == [objects]
    assert whole == []


def test_a_login_that_is_nobody_makes_a_whole_backup(server: Host) -> None:
    """As on a provider's server, where nobody is superuser: only reading is granted, and the roles' passwords are not."""
    result = run(
        server,
        """
        engine = engine_for(login("engine_backup"))
        with engine.snapshot("engine_lms", consistency="exact", lock_timeout=5) as snapshot:
            made = dump(engine, snapshot, "/tmp/engine/unprivileged")
            counted = rows(snapshot.tables("checksums"))
            snapshot.check()
        roles = bytearray()
        run_pipeline(engine_for(login("engine_owner")).globals_dump(), sink=roles.extend)
        print(json.dumps([counted == rows(engine_for(ADMINISTRATOR).tables("engine_lms", "checksums")), roles.decode()]))
        """,
    )

    assert result[0] is True
    assert "CREATE ROLE engine_owner;" in result[1]
    assert "PASSWORD" not in result[1]


def test_rows_that_a_policy_hides_fail_and_are_never_left_out_silently(server: Host) -> None:
    server.postgresql("alter role engine_backup nobypassrls")

    try:
        said = run(server, """print(json.dumps(said(lambda: engine_for(login("engine_backup")).tables("engine_lms", "counts"))))""")
    finally:
        server.postgresql("alter role engine_backup bypassrls")

    assert 'row-level security policy for table "hidden"' in said


def test_a_wrong_password_is_said_without_it(server: Host) -> None:
    said = run(
        server,
        """
        wrong = Login("postgresql", host="127.0.0.1", user="engine_owner", password="not this one")
        print(json.dumps(said(engine_for(wrong).server)))
        """,
    )

    assert said == (
        "DatabaseError: PostgreSQL at 127.0.0.1, database postgres gave no session: password authentication failed for user "
        '"engine_owner". Compare login_host, login_port, login_user, login_password and ssl_mode with what the server expects.'
    )


def test_nobody_sees_the_password(server: Host) -> None:
    result = run(
        server,
        """
        engine = engine_for(login("engine_backup"))
        seen, samples, names = 0, 0, set()

        def look():
            global seen, samples
            while not done.is_set():
                for process in os.listdir("/proc"):
                    try:
                        command = open(f"/proc/{process}/cmdline", "rb").read()
                        shown = command + open(f"/proc/{process}/environ", "rb").read()
                    except OSError:
                        continue
                    samples += 1
                    names.add(os.path.basename(command.split(b"\\0")[0].decode()))
                    seen += b"word" in shown and b"everything" in shown

        done = threading.Event()
        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        with engine.snapshot("engine_lms", consistency="exact", lock_timeout=5) as snapshot:
            dump(engine, snapshot, "/tmp/engine/seen")
        run_pipeline(engine.globals_dump())
        done.set()
        looking.join()
        print(json.dumps([seen, samples > 20, sorted(names & {"psql", "pg_dump", "pg_dumpall"})]))
        """,
    )

    assert result == [0, True, ["pg_dump", "pg_dumpall", "psql"]]


def test_a_table_that_somebody_locked_is_named(server: Host) -> None:
    said = run(
        server,
        """
        engine = engine_for(ADMINISTRATOR)
        def snapshot():
            with engine.snapshot("engine_lms", consistency="exact", lock_timeout=0.5):
                pass
        with engine._session("engine_lms") as migrating:
            migrating.query("begin")
            migrating.query("lock table public.users")
            print(json.dumps([said(snapshot), migrating.value("pg_backend_pid()")]))
        """,
    )

    assert said[0].startswith(
        f"DatabaseError: A table of engine_lms stayed locked for 0.5 s, as migrations do: public.users by process {said[1]} (bitflow.lms "
    )


def test_a_table_is_not_emptied_between_its_count_and_its_dump(server: Host) -> None:
    result = run(
        server,
        """
        engine = engine_for(ADMINISTRATOR)
        with engine.snapshot("engine_lms", consistency="exact", lock_timeout=5) as snapshot, engine._session("engine_lms", 0.3) as other:
            locked = said(lambda: other.query("truncate public.cache"))
        # Without the lock, a transaction that has its moment sees the table empty all the same.
        with engine._session("engine_lms") as reading, engine._session("engine_lms", 0.3) as other:
            reading.query("begin isolation level repeatable read")
            before = reading.value("(select count(*) from public.sessions)")
            other.query("create table public.kept as select * from public.cache")
            other.query("truncate public.cache")
            unlocked = reading.value("(select count(*) from public.cache)")
            reading.query("rollback")
            other.query("insert into public.cache select * from public.kept")
            other.query("drop table public.kept")
        print(json.dumps([locked, unlocked]))
        """,
    )

    assert "canceling statement due to lock timeout" in result[0]
    assert result[1] == 0


def test_a_restore_without_a_role_or_an_extension_fails(server: Host, dumped: str) -> None:
    result = run(
        server,
        f"""
        engine = engine_for(ADMINISTRATOR)
        manifest = json.load(open({dumped + ".json"!r}))
        with engine._session("engine_lms") as session:
            session.query("create role engine_gone")
            session.query("create table public.owned (id integer)")
            session.query("alter table public.owned owner to engine_gone")
        with engine.snapshot("engine_lms", consistency="exact", lock_timeout=5) as snapshot:
            dump(engine, snapshot, "/tmp/engine/owned")
        with engine._session("engine_lms") as session:
            session.query("drop table public.owned")
            session.query("drop role engine_gone")
        engine.create("engine_role", manifest, "bitflow.lms restoring")
        role = said(lambda: restore(engine, "engine_role", manifest, "/tmp/engine/owned"))
        engine.drop("engine_role")
        engine.create("engine_role", manifest, "bitflow.lms restoring")
        nobody = said(lambda: restore(engine, "engine_role", manifest, "/tmp/engine/owned", owners=False))
        engine.finish_restore("engine_role")
        engine.drop("engine_role")
        directory = f"/usr/share/postgresql/{{engine.server().version.split('.')[0]}}/extension"
        os.rename(f"{{directory}}/citext.control", f"{{directory}}/citext.hidden")
        try:
            engine.create("engine_role", manifest, "bitflow.lms restoring")
            extension = said(lambda: restore(engine, "engine_role", manifest, {dumped!r}))
        finally:
            os.rename(f"{{directory}}/citext.hidden", f"{{directory}}/citext.control")
        engine.drop("engine_role")
        cut = open({dumped!r}, "rb").read()
        open("/tmp/engine/cut", "wb").write(cut[:len(cut) * 9 // 10])
        engine.create("engine_role", manifest, "bitflow.lms restoring")
        half = said(lambda: restore(engine, "engine_role", manifest, "/tmp/engine/cut"))
        engine.drop("engine_role")
        print(json.dumps([role, nobody, extension, half, sorted(engine.databases("engine_role"))]))
        """,
    )

    role, nobody, extension, half, left = result
    assert role.startswith("StageError: pg_restore ended with status 1") and 'role "engine_gone" does not exist' in role
    assert nobody == "nothing"
    assert extension.startswith("StageError: pg_restore ended with status 1")
    assert half.startswith("StageError: ")
    assert left == []


def test_single_tables_come_back_whole(server: Host, dumped: str) -> None:
    result = run(
        server,
        f"""
        engine = engine_for(ADMINISTRATOR)
        manifest = json.load(open({dumped + ".json"!r}))
        tables = ["public.users", "activity", 'Grading.Odd " name.']
        engine.create("engine_tables", manifest, "bitflow.lms restoring")
        restore(engine, "engine_tables", manifest, {dumped!r}, tables=tables)
        engine.finish_restore("engine_tables")
        found, live = rows(engine.tables("engine_tables", "checksums")), rows(engine.tables("engine_lms", "checksums"))
        equal = {{name: each == live[name] for name, each in found.items()}}
        with engine._session("engine_tables") as session:
            session.query("alter sequence public.activity_id_seq owned by none")
            session.query("drop table public.activity")
            session.query("select setval('public.activity_id_seq', 4000)")
        restore(engine, "engine_tables", manifest, {dumped!r}, tables=["public.activity"])
        again = rows(engine.tables("engine_tables", "checksums"))["public.activity"] == live["public.activity"]
        missing = said(lambda: engine.restore("engine_tables", manifest, tables=["nonsense"]))
        print(json.dumps([equal, again, missing]))
        """,
    )

    assert result == [
        {'Grading.Odd " name.': True, "public.activity": True, "public.users": True},
        True,
        "LmsError: tables has nonsense, which is not in the backup.",
    ]
    keys = """
        select conname from pg_constraint where contype in ('p', 'f', 'u') and conrelid::regclass::text ~ '^users|Odd' order by 1;
        select indexname from pg_indexes where tablename = 'users' order by 1;
        select tgname from pg_trigger where tgrelid = 'users'::regclass and not tgisinternal;
        insert into users (name) values ('new') returning id;
        select nextval('activity_id_seq');
    """
    assert server.postgresql(keys, "engine_tables") == [
        'Odd " name._pkey', 'Odd " name._who_fkey', "users_mail_key", "users_pkey",
        "users_mail_key", "users_name", "users_pkey", "touching", "503", "4001",
    ]  # fmt: skip


def test_pg_restore_alone_forgets_what_belongs_to_a_table(server: Host, dumped: str) -> None:
    """Why we choose from the contents ourselves."""
    server.postgresql("create database engine_alone")
    server.postgresql("create extension citext; create type role_of_user as enum ('student', 'teacher');", "engine_alone")
    server.postgresql(
        "create function initials(text) returns text language sql immutable as $$ select upper(left($1, 1)) $$;", "engine_alone"
    )

    decompress = "zstd -dcf" if server.suite == "bookworm" else "cat"
    server.shell(f"{decompress} {dumped} | runuser -u postgres -- pg_restore -e -t users -d engine_alone")

    assert server.postgresql("select count(*) from users", "engine_alone") == ["502"]
    assert server.postgresql("select count(*) from pg_indexes where tablename = 'users'", "engine_alone") == ["0"]


def test_roles_that_are_missing_come_back_and_others_stay_as_they_are(server: Host) -> None:
    server.postgresql(
        f"""
        create role "engine Group"; comment on role "engine Group" is 'two
        lines; and a ''quote''';
        create role engine_member login connection limit 3 valid until '2030-01-01' password {quoted(PASSWORD)};
        alter role engine_member set work_mem = '8MB';
        grant "engine Group" to engine_member with admin option;
        grant "engine Group" to engine_owner;
        """
    )
    before = server.postgresql("select rolname, rolpassword, rolconnlimit, rolvaliduntil from pg_authid where rolname = 'engine_member'")

    result = run(
        server,
        """
        engine = engine_for(ADMINISTRATOR)
        roles = bytearray()
        run_pipeline(engine.globals_dump(), sink=roles.extend)
        sql = roles.decode()
        with engine._maintenance() as session:
            session.query('drop role "engine Group"')
            session.query("drop role engine_member")
            session.query("alter role engine_owner nologin")
        missing = engine.missing_roles(sql)
        engine.create_roles(sql, missing)
        with engine._maintenance() as session:
            unchanged = session.value("(select not rolcanlogin from pg_roles where rolname = 'engine_owner')")
            session.query("alter role engine_owner login")
        print(json.dumps([missing, engine.missing_roles(sql), unchanged]))
        """,
    )

    assert result == [["engine Group", "engine_member"], [], True]
    after = server.postgresql("select rolname, rolpassword, rolconnlimit, rolvaliduntil from pg_authid where rolname = 'engine_member'")
    assert after == before
    members = server.postgresql("select member::regrole, admin_option from pg_auth_members where roleid = '\"engine Group\"'::regrole")
    assert members == ["engine_member|t"]
    assert server.postgresql("select shobj_description('\"engine Group\"'::regrole, 'pg_authid')") == [
        "two",
        "        lines; and a 'quote'",
    ]
    assert run(server, 'print(json.dumps(said(engine_for(login("engine_member")).server)))') == "nothing"


SWAPPED = """
        engine = engine_for(ADMINISTRATOR)
        manifest = {"database": {"encoding": "UTF8", "collation": "C.UTF-8"}}
        for name in ("engine_live", "engine_live__r"):
            engine.create(name, manifest, "bitflow.lms restoring")
            with engine._session(name) as session:
                session.query(f"create table public.which as select '{name}' as name")
                session.query("grant select on public.which to public")
        with engine._maintenance() as session:
            session.query("alter database engine_live owner to engine_owner")
            session.query('alter database engine_live set "app.secret" = \\'hidden\\'')
            session.query("alter database engine_live connection limit 50")
            # What the live database does not have, or not any more.
            session.query("alter database engine_live__r set work_mem = '1MB'")
            session.query("grant create on database engine_live__r to engine_reader")
        def which(name):
            with engine._session(name) as session:
                return session.value("(select name from public.which)")
        def cleaned(result):
            for name in engine.databases("engine_live"):
                engine.remark(name, "bitflow.lms restoring")
                engine.drop(name)
            print(json.dumps(result))
"""


def test_a_swap_shows_clients_the_one_or_the_other(server: Host) -> None:
    result = run(
        server,
        SWAPPED  # noqa: S608 - a program, in whose text SQL is found
        + """
        # Clients that come back whenever they are sent away.
        asking = "psql -qXtA -h 127.0.0.1 -U engine_owner -d engine_live -c 'select name from which' -c 'select pg_sleep(0.05)'"
        open("/tmp/engine/pgpass", "w").write(_database_postgresql.password_file(PASSWORD))
        os.chmod("/tmp/engine/pgpass", 0o600)
        import subprocess
        options = {"env": {**os.environ, "PGPASSFILE": "/tmp/engine/pgpass"}, "stderr": subprocess.DEVNULL, "start_new_session": True}
        heard = [open(f"/tmp/engine/client{number}", "w+") for number in range(3)]
        clients = [subprocess.Popen(["sh", "-c", f"while :; do {asking}; done"], stdout=each, **options) for each in heard]
        time.sleep(1)
        try:
            away = engine.swap("engine_live", "engine_live__r", "engine_live__before")
            time.sleep(1)
        finally:
            for each in clients:
                os.killpg(each.pid, signal.SIGKILL)
        seen = []
        for each in heard:
            each.seek(0)
            seen.append([line for line in each.read().split("\\n") if line.startswith("engine")])
        properties = engine.describe("engine_live")["properties"]
        with engine._session("engine_live") as session:
            secret = session.value("current_setting('app.secret')")
        names = sorted(engine.databases("engine_live"))
        cleaned([seen, which("engine_live"), which("engine_live__before"), names, properties, secret, away > 0])
        """,
    )

    seen, live, before, names, properties, secret, away = result
    for client in seen:
        assert client == sorted(client)
        assert set(client) == {"engine_live", "engine_live__r"}
    assert (live, before, names) == ("engine_live__r", "engine_live", ["engine_live", "engine_live__before"])
    granted = {(each["role"], each["privilege"]) for each in properties.pop("privileges")}
    assert granted == {(None, "CONNECT"), (None, "TEMPORARY"), *(("engine_owner", each) for each in ("CONNECT", "CREATE", "TEMPORARY"))}
    assert properties == {"owner": "engine_owner", "connection_limit": 50, "settings": []}
    assert (secret, away) == ("hidden", True)


def test_a_swap_that_fails_or_is_killed_leaves_everything_as_it_was(server: Host) -> None:
    result = run(
        server,
        SWAPPED
        + """
        state = lambda: [sorted(engine.databases("engine_live")), which("engine_live"), which("engine_live__r")]
        # The login may rename, but not end an administrator's session.
        with engine._maintenance() as session:
            session.query("alter role engine_owner createdb")
            session.query("alter database engine_live__r owner to engine_owner")
        lacking = said(lambda: engine_for(login("engine_owner")).swap("engine_live", "engine_live__r", "engine_live__before"))
        with engine._maintenance() as session:
            session.query('alter database engine_live reset "app.secret"')
        with engine._session("engine_live") as administrator:
            refused = said(lambda: engine_for(login("engine_owner")).swap("engine_live", "engine_live__r", "engine_live__before"))
        failed = state()
        # Killed between the two.
        child = os.fork()
        if not child:
            rename = _database_postgresql._rename
            def killed(acting, ending, old, new):
                if old == "engine_live__r":
                    os.kill(os.getpid(), signal.SIGKILL)
                rename(acting, ending, old, new)
            _database_postgresql._rename = killed
            engine_for(ADMINISTRATOR).swap("engine_live", "engine_live__r", "engine_live__before")
        status = os.waitpid(child, 0)[1]
        died = state()
        exists = said(lambda: engine.swap("engine_live", "engine_live__r", "engine_lms"))
        missing = said(lambda: engine.swap("engine_live", "engine_nothing", "engine_live__before"))
        cleaned([lacking, refused, failed, status, died, exists, missing])
        """,
    )

    lacking, refused, failed, status, died, exists, missing = result
    as_before = [["engine_live", "engine_live__r"], "engine_live", "engine_live__r"]
    assert lacking.startswith("DatabaseError: Nothing was renamed, because engine_live__r would lack what engine_live has (ALTER DATABASE ")
    assert "hidden" not in lacking
    assert refused.startswith("DatabaseError: Sessions with the database engine_live could not be ended, so it keeps its name: ")
    assert refused.endswith("GRANT pg_signal_backend lets the login end them.")
    assert (failed, status, died) == (as_before, 9, as_before)
    assert exists == (
        "DatabaseError: PostgreSQL at this host's socket has a database engine_lms already, so engine_live cannot be kept under that name."
    )
    assert missing == (
        "MissingDatabaseError: PostgreSQL at this host's socket has no database engine_nothing, so engine_live and engine_nothing cannot "
        "change places."
    )


def test_only_half_and_scratch_databases_are_dropped(server: Host) -> None:
    result = run(
        server,
        """
        engine = engine_for(ADMINISTRATOR)
        print(json.dumps([said(lambda: engine.drop("engine_lms")), said(lambda: engine.drop("engine_nonsense"))]))
        """,
    )

    assert result == [
        "DatabaseError: The database engine_lms is not dropped: its comment does not say that it is a half or a scratch one.",
        "nothing",
    ]


def test_a_locale_that_the_server_lacks_is_said(server: Host) -> None:
    said = run(
        server,
        """
        manifest = {"database": {"encoding": "UTF8", "collation": "tlh_KLI.UTF-8"}}
        print(json.dumps(said(lambda: engine_for(ADMINISTRATOR).create("engine_klingon", manifest, "bitflow.lms restoring"))))
        """,
    )

    assert said.startswith(
        "DatabaseError: The database engine_klingon was not created with encoding UTF8 and collation tlh_KLI.UTF-8, as the backup has "
    )


def test_a_standby_is_backed_up_as_well(server: Host) -> None:
    version = server.shell("ls /usr/lib/postgresql").split()[0]
    directory, programs = "/tmp/engine/standby", f"/usr/lib/postgresql/{version}/bin"
    as_postgres = "runuser -u postgres --"
    server.shell(f"install -d -o postgres -m 0700 {directory}")
    server.shell(f"{as_postgres} pg_basebackup -c fast -R -D {directory}")
    settings = {"config_file": f"/etc/postgresql/{version}/main/postgresql.conf", "data_directory": directory, "port": 5499}
    options = " ".join(f"-c {name}={value}" for name, value in {**settings, "external_pid_file": "", "hot_standby": "on"}.items())
    server.shell(f"{as_postgres} {programs}/pg_ctl -w -s -D {directory} -l /tmp/engine/standby/log -o '{options}' start")
    try:
        result = run(
            server,
            """
            primary, standby = engine_for(ADMINISTRATOR), engine_for(Login("postgresql", system_user="postgres", port=5499))
            with standby.snapshot("engine_lms", consistency="exact", lock_timeout=5) as snapshot:
                made = dump(standby, snapshot, "/tmp/engine/of_standby")
                counted = rows(snapshot.tables("checksums"))
                snapshot.check()
            live = rows(primary.tables("engine_lms", "checksums"))
            different = {name: counted[name] for name in live if live[name] != counted[name]}
            print(json.dumps([standby.problems("engine_lms"), different]))
            """,
        )
    finally:
        server.shell(f"{as_postgres} {programs}/pg_ctl -D {directory} -m immediate stop")

    # A standby has no rows of unlogged tables.
    assert result == [[], {"public.cache": [None, None]}]
