# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of a PostgreSQL database: which ones a dump has, what their rows come to, and what a login does not see of them."""

# ruff: noqa: S608 - every name and value in a statement is quoted by identifier() or literal().

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._database import Table
from ansible_collections.bitflow.lms.plugins.module_utils._postgresql_roles import identifier, joined
from ansible_collections.bitflow.lms.plugins.module_utils._postgresql_session import PostgreSQLSession

CHECKSUM_ALGORITHM = "sum-hashtextextended"
# Large objects are in no table of the database's owner, and are counted as if they were one.
LARGE_OBJECTS = ("pg_catalog", "pg_largeobject")
# How many tables one statement counts or locks.
BATCH = 50

# Tables as pg_dump sees them: what belongs to an extension comes with the extension.
TABLES = """
select c.oid::int8 as oid, n.nspname as schema, c.relname as name, c.relkind as kind, c.relpersistence as persistence,
       rn.nspname as root_schema, r.relname as root_name,
       (select string_agg(quote_ident(a.attname), ', ' order by a.attname collate "C")
          from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  join pg_class r on r.oid = case when c.relispartition then pg_partition_root(c.oid) else c.oid end
  join pg_namespace rn on rn.oid = r.relnamespace
 where c.relkind in ('r', 'p') and c.relpersistence <> 't'
   and n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
   and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
 order by n.nspname, c.relname
"""

# What single tables may need, named as a dump's contents name it.
EXISTING = """
select 'SCHEMA' as kind, '- ' || nspname as name from pg_namespace
union all select 'EXTENSION', '- ' || extname from pg_extension
union all select case t.typtype when 'd' then 'DOMAIN' else 'TYPE' end, n.nspname || ' ' || t.typname
  from pg_type t join pg_namespace n on n.oid = t.typnamespace where n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
union all select 'COLLATION', n.nspname || ' ' || c.collname
  from pg_collation c join pg_namespace n on n.oid = c.collnamespace where n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
union all select 'SEQUENCE', n.nspname || ' ' || c.relname
  from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind = 'S'
union all select 'FUNCTION', n.nspname || ' ' || quote_ident(p.proname) || '('
       || coalesce((select string_agg(format_type(a.type, null), ', ' order by a.place)
                      from unnest(p.proargtypes) with ordinality a(type, place)), '') || ')'
  from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
"""

_UNREADABLE = """
select n.nspname as schema, c.relname as name, c.relkind as kind
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p', 'S') and c.relpersistence <> 't'
   and n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
   and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
   and not (has_schema_privilege(n.oid, 'USAGE')
            and case c.relkind when 'S' then has_sequence_privilege(c.oid, 'SELECT') else has_table_privilege(c.oid, 'SELECT') end)
 order by n.nspname, c.relname
"""

_FILTERED = """
select n.nspname as schema, c.relname as name
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p') and c.relrowsecurity and row_security_active(c.oid)
 order by n.nspname, c.relname
"""

_UNREADABLE_LARGE_OBJECTS = """
select count(*) as count, min(m.oid)::int8 as first
  from pg_largeobject_metadata m
 where current_setting('is_superuser') = 'off' and current_setting('lo_compat_privileges') = 'off'
   and not pg_has_role(m.lomowner, 'USAGE')
   and not exists (select from aclexplode(m.lomacl) a
                    where a.privilege_type = 'SELECT' and (a.grantee = 0 or pg_has_role(a.grantee, 'USAGE')))
"""


@dataclass(frozen=True)
class Relation:
    """A table with rows of its own, and the one under whose name it is counted: of partitions, that is the whole."""

    schema: str
    name: str
    root: tuple[str, str]
    # Names of the columns, quoted and sorted; a restore may put them in another order.
    columns: str
    # Why its rows are not counted: its data is not in the dump.
    left_out: bool = False

    @property
    def qualified(self) -> str:
        """Return its name as SQL reads it."""
        return f"{identifier(self.schema)}.{identifier(self.name)}"


def excluded(patterns: Iterable[str], schema: str, name: str) -> bool:
    """Say whether a table's data is to be left out: patterns are of its name, with or without its schema."""
    return any(fnmatch.fnmatchcase(each, pattern) for pattern in patterns for each in (name, f"{schema}.{name}"))


def count_statement(relations: Sequence[Relation], checksums: bool) -> str:
    """Return the query that counts tables, each without those that inherit from it, in one round trip."""
    parts = []
    for index, relation in enumerate(relations):
        checksum = f"coalesce(sum(hashtextextended(row({relation.columns})::text, 0)::numeric), 0)::text" if checksums else "null::text"
        parts.append(f"select {index} as index, count(*) as rows, {checksum} as checksum from only {relation.qualified}")
    return "\nunion all ".join(parts)


def merged(relations: Sequence[Relation], counted: Mapping[int, tuple[int, str | None]]) -> list[Table]:
    """Return the tables with their counts; those of partitions are added up, as rows may be in others of them after a restore."""
    rows: dict[tuple[str, str], int | None] = {}
    sums: dict[tuple[str, str], int | None] = {}
    for index, relation in enumerate(relations):
        rows.setdefault(relation.root, None)
        sums.setdefault(relation.root, None)
        if index not in counted:
            continue
        count, checksum = counted[index]
        rows[relation.root] = (rows[relation.root] or 0) + count
        if checksum is not None:
            sums[relation.root] = (sums[relation.root] or 0) + int(checksum)
    return [_table(*root, rows[root], sums[root]) for root in sorted(rows)]


def _table(schema: str, name: str, rows: int | None, checksum: int | None) -> Table:
    if checksum is None:
        return Table(schema, name, rows)
    return Table(schema, name, rows, str(checksum), CHECKSUM_ALGORITHM)


def lock_tables(session: PostgreSQLSession, tables: Sequence[Mapping[str, Any]]) -> None:
    """Keep tables from being altered or emptied until the transaction ends; nobody who reads or writes has to wait for that."""
    names = [f"only {identifier(table['schema'])}.{identifier(table['name'])}" for table in tables]
    for begin in range(0, len(names), BATCH):
        session.query(f"lock table {', '.join(names[begin : begin + BATCH])} in access share mode")


def relations_of(session: PostgreSQLSession, patterns: Sequence[str] = ()) -> list[Relation]:
    """Return the tables that have rows of their own."""
    return [_relation(row, patterns) for row in session.records(TABLES) if row["kind"] == "r"]


def _relation(row: Mapping[str, Any], patterns: Sequence[str]) -> Relation:
    root = (row["root_schema"], row["root_name"])
    left_out = excluded(patterns, row["schema"], row["name"]) or excluded(patterns, *root)
    return Relation(row["schema"], row["name"], root, row["columns"] or "", left_out)


def read_tables(session: PostgreSQLSession, record: str, patterns: Sequence[str] = ()) -> list[Table]:
    """Return the tables, counted and summed as wanted, in the session's own transaction."""
    rows = session.records(TABLES)
    standby = bool(session.value("pg_is_in_recovery()"))
    relations = [_relation(row, patterns) for row in rows if row["kind"] == "r"]
    # No standby has the rows of an unlogged table, and no dump of one either.
    unlogged = {(row["schema"], row["name"]) for row in rows if row["persistence"] == "u" and standby}
    countable = [i for i, each in enumerate(relations) if not each.left_out and (each.schema, each.name) not in unlogged]
    counted: dict[int, tuple[int, str | None]] = {}
    if record != "none":
        for begin in range(0, len(countable), BATCH):
            batch = countable[begin : begin + BATCH]
            for row in session.records(count_statement([relations[i] for i in batch], record == "checksums"), timeout=None):
                counted[batch[row["index"]]] = (row["rows"], row["checksum"])
    # A partitioned table may have no partition yet.
    childless = [Relation(row["schema"], row["name"], (row["root_schema"], row["root_name"]), "") for row in rows if row["kind"] == "p"]
    return merged([*relations, *childless], counted) + large_objects(session, record)


def large_objects(session: PostgreSQLSession, record: str) -> list[Table]:
    """Return the large objects as if they were a table, where there are any."""
    checksum = "coalesce(sum(hashtextextended(oid || ':' || md5(lo_get(oid)), 0)::numeric), 0)::text" if record == "checksums" else "null"
    found = session.records(f"select count(*) as rows, {checksum} as checksum from pg_largeobject_metadata", timeout=None)[0]
    if not found["rows"]:
        return []
    return [_table(*LARGE_OBJECTS, None if record == "none" else found["rows"], int(found["checksum"]) if found["checksum"] else None)]


def content_problems(session: PostgreSQLSession, database: str, user: str, server: int, exclude_table_data: Sequence[str]) -> list[str]:
    """Return what the login would not see of a database."""
    found = []
    grant = "pg_read_all_data" if server >= 14 else "the tables' owner"
    unreadable = [f"{row['schema']}.{row['name']}" for row in session.records(_UNREADABLE)]
    if unreadable:
        found.append(f"{user} may not read {joined(unreadable)} in {database}: GRANT {grant} TO {identifier(user)} lets it.")
    filtered = [
        f"{row['schema']}.{row['name']}"
        for row in session.records(_FILTERED)
        if not excluded(exclude_table_data, row["schema"], row["name"])
    ]
    if filtered:
        found.append(
            f"Row-level security hides rows of {joined(filtered)} in {database} from {user}: ALTER ROLE {identifier(user)} BYPASSRLS shows "
            "them, or exclude_table_data leaves them out."
        )
    objects = session.records(_UNREADABLE_LARGE_OBJECTS)[0]
    if objects["count"]:
        found.append(
            f"{user} may not read {objects['count']} large objects in {database}, such as {objects['first']}: "
            f"GRANT SELECT ON LARGE OBJECT {objects['first']} TO {identifier(user)} lets it, or the role of their owner."
        )
    return found
