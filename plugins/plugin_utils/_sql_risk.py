# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge one SQL statement beside an application that goes on serving: by its parse tree, never by its letters."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

try:
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError
    from sqlglot.tokens import Token, TokenType  # type: ignore[attr-defined]
except ImportError as error:
    PARSER_PROBLEM: ImportError | None = error
else:
    PARSER_PROBLEM = None
    CHECKED = (exp.CheckColumnConstraint, exp.Reference, exp.UniqueColumnConstraint, exp.PrimaryKeyColumnConstraint)
    NUMBERED = (exp.GeneratedAsIdentityColumnConstraint, exp.AutoIncrementColumnConstraint)
    # Of functions in a default, these have one value for all rows.
    CONSTANT = (exp.Cast, exp.Array, exp.CurrentTimestamp, exp.CurrentDate, exp.CurrentTime)
    HARMLESS_OPTIONS = (exp.SchemaCommentProperty, exp.AutoIncrementProperty, exp.AlgorithmProperty, exp.LockProperty)

EXPAND, LOCKING, UNKNOWN, IRREVERSIBLE, CONTRACT = "expand", "locking", "unknown", "irreversible", "contract"
# Of several verdicts on one statement or one migration the last in this order is told.
SEVERITY = (EXPAND, LOCKING, UNKNOWN, IRREVERSIBLE, CONTRACT)
DIALECTS = {"pgsql": "postgres", "mysql": "mysql", "mariadb": "mysql"}

# sqlglot warns on standard error about what it takes as text. Such a statement gets a verdict of its own.
logging.getLogger("sqlglot").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Rule:
    """One thing that a statement can do, its class, and why."""

    risk: str
    reason: str
    destructive: bool = False


RULES = {
    # Nothing that the running version uses changes, and no table stays locked for longer than a moment.
    "create": Rule(EXPAND, "it is new: the running version does not know it"),
    "on_new_table": Rule(EXPAND, "the same plan creates the table: nothing uses it yet"),
    "add_column": Rule(EXPAND, "the running version does not know the column and need not fill it"),
    "loosen": Rule(EXPAND, "it only allows more than before"),
    "describe": Rule(EXPAND, "it changes names and notes that no query uses"),
    "create_index_aside": Rule(EXPAND, "the index is built while rows are read and written"),
    "add_constraint_for_new_rows": Rule(EXPAND, "existing rows are not read; validate the constraint in a later migration"),
    "validate_constraint": Rule(EXPAND, "existing rows are read while others are written"),
    "insert": Rule(EXPAND, "it only adds rows"),
    "backfill": Rule(EXPAND, "it fills empty values, some rows at a time, and holds their locks only so long"),
    # A table cannot be written, or not even read, for as long as the work takes.
    "create_index": Rule(LOCKING, "the table cannot be written until the index is built; create it concurrently, outside a transaction"),
    "create_search_index": Rule(LOCKING, "the table cannot be written until the index is built"),
    "add_unique": Rule(LOCKING, "the table is locked until its rows are compared; create a unique index concurrently, then add it"),
    "add_constraint": Rule(LOCKING, "the table is locked until its rows are checked; add it as not valid, validate it later"),
    "add_constraint_by_copy": Rule(LOCKING, "the table is copied and cannot be written until its rows are checked"),
    "add_primary_key": Rule(LOCKING, "the table is locked until its rows are checked or written anew"),
    "add_column_and_write_rows": Rule(LOCKING, "every row is written anew to hold its value; add it empty, fill it later"),
    "add_column_and_check_rows": Rule(LOCKING, "the table is locked until the column's constraint is checked; add the constraint later"),
    "rewrite_table": Rule(LOCKING, "the table may be written anew, and is locked meanwhile"),
    "fill_at_once": Rule(LOCKING, "it keeps every row that it fills locked until the migration ends; fill some at a time, each on its own"),
    "lock_table": Rule(LOCKING, "it locks the table"),
    # The running version may use what goes away.
    "drop_table": Rule(CONTRACT, "the running version may use the table, and its rows are gone", destructive=True),
    "rename_table": Rule(CONTRACT, "the running version uses the old name"),
    "drop_column": Rule(CONTRACT, "the running version may use the column, and its values are gone", destructive=True),
    "rename_column": Rule(CONTRACT, "the running version uses the old name"),
    "change_column": Rule(CONTRACT, "the running version relies on the old type, and the table may be written anew"),
    "set_not_null": Rule(CONTRACT, "the running version may leave the column empty, and the table is locked while its rows are checked"),
    "drop_default": Rule(CONTRACT, "the running version may leave the column to its default"),
    "add_required_column": Rule(CONTRACT, "the inserts of the running version do not fill it; give it a default, or allow null"),
    "drop_constraint": Rule(CONTRACT, "the running version may rely on it, as an upsert or a cascade does"),
    "drop_index": Rule(CONTRACT, "the running version may need it, to be fast or for an upsert"),
    "drop_other": Rule(CONTRACT, "the running version may use it"),
    "replace": Rule(CONTRACT, "it changes what the running version uses"),
    # Rows are lost. The schema stays.
    "truncate": Rule(IRREVERSIBLE, "it removes all rows of the table", destructive=True),
    "delete": Rule(IRREVERSIBLE, "it removes rows", destructive=True),
    "overwrite": Rule(IRREVERSIBLE, "it overwrites values that are not known to be empty", destructive=True),
    # Not safe, because nobody can say that it is.
    "read": Rule(UNKNOWN, "it reads rows, and a plan sees none: what it does with them is not known"),
    "session": Rule(UNKNOWN, "it changes the session, whose limits protect the running version"),
    "concurrently_in_transaction": Rule(UNKNOWN, "it fails inside a transaction: give the migration public $withinTransaction = false"),
    "unreadable": Rule(UNKNOWN, "the SQL parser cannot read it"),
    "other": Rule(UNKNOWN, "there is no rule for it"),
    "other_database": Rule(UNKNOWN, "there are no rules for this kind of database"),
}

SERIAL = {"SERIAL", "BIGSERIAL", "SMALLSERIAL"}
# Statements that the parser knows by their first words only.
WORDS = {
    "CREATE EXTENSION": "create",
    "RENAME TABLE": "rename_table",
    "LOCK TABLE": "lock_table",
    "LOCK TABLES": "lock_table",
    "VALIDATE CONSTRAINT": "validate_constraint",
    "CONVERT TO": "rewrite_table",
    "SET CONSTRAINTS": "session",
}


@dataclass
class Schema:
    """What is known about the database while the statements of a plan go by."""

    driver: str
    version: int = 0
    # Whether the statement stands in a transaction that ends with the migration.
    in_transaction: bool = False
    new_tables: set[str] = field(default_factory=set)
    new_columns: set[tuple[str, str]] = field(default_factory=set)

    @property
    def postgresql(self) -> bool:
        """Tell whether the database is PostgreSQL."""
        return self.driver == "pgsql"


def worst(risks: Iterator[str] | list[str]) -> str:
    """Return the class that is told of several."""
    return max(risks, key=SEVERITY.index, default=EXPAND)


def judge_statement(sql: str, schema: Schema) -> list[str]:
    """Return the names of the rules that a statement falls under, and note in the schema what it creates."""
    dialect = DIALECTS.get(schema.driver)
    if dialect is None:
        return ["other_database"]
    try:
        trees = [tree for tree in sqlglot.parse(sql, dialect=dialect) if tree is not None]
    except (SqlglotError, RecursionError):
        return ["unreadable"]
    return [rule for tree in trees for rule in judge_tree(tree, sql, schema)] or ["other"]


def judge_tree(tree: exp.Expr, sql: str, schema: Schema) -> list[str]:
    """Return the rules of one parsed statement."""
    if isinstance(tree, exp.Create):
        return [judge_create(tree, schema)]
    if isinstance(tree, exp.Drop):
        return [judge_drop(tree, schema)]
    if isinstance(tree, exp.Alter):
        return judge_alter(tree, schema)
    if isinstance(tree, exp.Command):
        return judge_command(tree, sql, schema)
    if isinstance(tree, exp.TruncateTable):
        return ["on_new_table" if all(name_of(one) in schema.new_tables for one in tree.expressions) else "truncate"]
    if isinstance(tree, (exp.Insert, exp.Update, exp.Delete)):
        return [judge_rows(tree, schema)]
    if isinstance(tree, (exp.Comment, exp.Analyze)):
        return ["describe"]
    if isinstance(tree, exp.Set):
        return ["session"]
    if isinstance(tree, exp.Query):
        return [judge_rows(one, schema) for one in tree.find_all(exp.Insert, exp.Update, exp.Delete)] or ["read"]
    return ["other"]


def name_of(node: exp.Expr | None) -> str:
    """Return the name of the table that a node is, or is about."""
    table = node if isinstance(node, exp.Table) or node is None else node.find(exp.Table)
    return f"{table.db}.{table.name}".lower().removeprefix("public.").lstrip(".") if table is not None else ""


def judge_create(tree: exp.Create, schema: Schema) -> str:
    """Return the rule of a CREATE; what it creates is new from here on."""
    kind = str(tree.args["kind"]).upper()
    if kind == "INDEX":
        if name_of(tree.this) in schema.new_tables:
            return "on_new_table"
        if not schema.postgresql:
            return "create_index_aside"
        if not tree.args.get("concurrently"):
            return "create_index"
        return "concurrently_in_transaction" if schema.in_transaction else "create_index_aside"
    if kind == "TRIGGER":
        return "other"
    if kind == "TABLE" and not tree.args.get("exists"):
        schema.new_tables.add(name_of(tree.this))
    return "replace" if tree.args.get("replace") else "create"


def judge_drop(tree: exp.Drop, schema: Schema) -> str:
    """Return the rule of a DROP."""
    kind = str(tree.args["kind"]).upper()
    names = {name_of(table) for table in tree.args.get("tables") or [] if isinstance(table, exp.Table)}
    if kind == "TABLE":
        if names <= schema.new_tables:
            schema.new_tables -= names
            return "on_new_table"
        return "drop_table"
    if kind == "INDEX":
        on = tree.args.get("cluster")
        return "on_new_table" if on is not None and name_of(on) in schema.new_tables else "drop_index"
    return "drop_other"


def judge_alter(tree: exp.Alter, schema: Schema) -> list[str]:
    """Return the rules of the actions of an ALTER."""
    kind, table = str(tree.args["kind"]).upper(), name_of(tree.this)
    if kind == "INDEX":
        return ["describe"]
    if kind != "TABLE":
        return ["other"]
    if table in schema.new_tables:
        return ["on_new_table"]
    options = tree.args.get("options") or []
    rules = [] if all(isinstance(option, HARMLESS_OPTIONS) for option in options) else ["rewrite_table"]
    for action in tree.args["actions"]:
        rules += judge_action(action, table, bool(tree.args.get("not_valid")), schema)
    return rules or ["describe"]


def judge_action(action: exp.Expr, table: str, not_valid: bool, schema: Schema) -> list[str]:
    """Return the rules of one action of an ALTER TABLE."""
    if isinstance(action, exp.ColumnDef):
        schema.new_columns.add((table, action.name.lower()))
        return judge_column(action, schema)
    if isinstance(action, exp.AddConstraint):
        return [judge_constraint(one, not_valid, schema) for one in action.expressions]
    if isinstance(action, exp.Drop):
        kinds = {"COLUMN": "drop_column", "INDEX": "drop_index"}
        return [kinds.get(str(action.args["kind"]).upper(), "drop_constraint")]
    if isinstance(action, exp.AlterColumn):
        return [judge_column_change(action)]
    simple: dict[type, str] = {
        exp.RenameColumn: "rename_column",
        exp.AlterRename: "rename_table",
        exp.ModifyColumn: "change_column",
        exp.RenameIndex: "describe",
        exp.DropPrimaryKey: "drop_constraint",
        exp.AlterSet: "rewrite_table",
    }
    return [simple.get(type(action), "other")]


def judge_column(column: exp.ColumnDef, schema: Schema) -> list[str]:
    """Return the rules of a new column."""
    kinds = [constraint.args["kind"] for constraint in column.args.get("constraints") or []]
    numbered = any(isinstance(kind, NUMBERED) for kind in kinds)
    type_name = column.args["kind"].this.name if isinstance(column.args.get("kind"), exp.DataType) else ""
    default = next((kind.this for kind in kinds if isinstance(kind, exp.DefaultColumnConstraint)), None)
    computed = [kind for kind in kinds if isinstance(kind, exp.ComputedColumnConstraint)]
    required = any(isinstance(kind, exp.NotNullColumnConstraint) and not kind.args.get("allow_null") for kind in kinds)

    if numbered or type_name in SERIAL or any(is_stored(kind, schema) for kind in computed):
        return ["add_column_and_write_rows"]
    if default is not None and (not is_constant(default) or (schema.postgresql and 0 < schema.version < 11)):
        return ["add_column_and_write_rows"]
    if any(isinstance(kind, CHECKED) for kind in kinds):
        return ["add_column_and_check_rows"]
    if required and default is None and not computed:
        return ["add_required_column"]
    return ["add_column"]


def is_stored(kind: exp.Expr, schema: Schema) -> bool:
    """Tell whether a computed column is written into the rows; PostgreSQL's are."""
    return schema.postgresql or bool(kind.args.get("persisted"))


def is_constant(default: exp.Expr) -> bool:
    """Tell whether a default has one value for all rows."""
    return all(isinstance(function, CONSTANT) or function.name.lower() == "now" for function in default.find_all(exp.Func))


def judge_constraint(constraint: exp.Expr, not_valid: bool, schema: Schema) -> str:
    """Return the rule of a constraint or an index that is added to a table."""
    if isinstance(constraint, exp.IndexColumnConstraint):
        return "create_search_index" if constraint.args.get("kind") else "create_index_aside"
    if constraint.find(exp.UniqueColumnConstraint):
        return "add_unique"
    if constraint.find(exp.PrimaryKey, exp.PrimaryKeyColumnConstraint):
        return "add_primary_key"
    if constraint.find(exp.ForeignKey, exp.CheckColumnConstraint):
        if not schema.postgresql:
            return "add_constraint_by_copy"
        return "add_constraint_for_new_rows" if not_valid else "add_constraint"
    return "other"


def judge_column_change(action: exp.AlterColumn) -> str:
    """Return the rule of an ALTER COLUMN."""
    if action.args.get("dtype") is not None:
        return "change_column"
    if action.args.get("default") is not None:
        return "loosen"
    if action.args.get("drop"):
        return "loosen" if action.args.get("allow_null") else "drop_default"
    # SET NOT NULL is the form that leaves no mark in the tree.
    return "set_not_null" if not any(value for name, value in action.args.items() if name != "this") else "other"


def judge_rows(tree: exp.Expr, schema: Schema) -> str:
    """Return the rule of a statement that writes rows."""
    table = name_of(tree.this)
    if table in schema.new_tables:
        return "on_new_table"
    if isinstance(tree, exp.Delete):
        return "delete"
    if isinstance(tree, exp.Insert):
        conflict = tree.args.get("conflict")
        return "overwrite" if conflict is not None and conflict.args.get("expressions") else "insert"
    conditions, limited = conditions_of(tree)
    for assignment in tree.expressions:
        column = assignment.this.name.lower()
        if (table, column) not in schema.new_columns and column not in conditions:
            return "overwrite"
    return "backfill" if limited and not schema.in_transaction else "fill_at_once"


def conditions_of(tree: exp.Expr) -> tuple[set[str], bool]:
    """Return the columns that must be empty in every row that a query takes, and whether it takes a limited number of rows."""
    where, limited = tree.args.get("where"), tree.args.get("limit") is not None
    empty: set[str] = set()
    for condition in where.this.flatten() if where is not None and isinstance(where.this, exp.And) else [where.this] if where else []:
        one = condition.unnest()
        if isinstance(one, exp.Is) and isinstance(one.this, exp.Column) and isinstance(one.expression, exp.Null):
            empty.add(one.this.name.lower())
        elif isinstance(one, exp.In) and one.args.get("query") is not None:
            inner_empty, inner_limited = conditions_of(one.args["query"].unnest())
            empty, limited = empty | inner_empty, limited or inner_limited
    return empty, limited


def judge_command(tree: exp.Command, sql: str, schema: Schema) -> list[str]:
    """Return the rules of a statement that the parser took as text; an ALTER TABLE is read again, action by action."""
    first_words = " ".join(sql.upper().split()[:2])
    if first_words != "ALTER TABLE":
        return [WORDS.get(first_words, "unreadable")]
    read = sqlglot.tokenize(sql, dialect=DIALECTS[schema.driver])
    table, start = read_target(read)
    if table in schema.new_tables:
        return ["on_new_table"]
    actions = split_actions(read[start:], sql)
    if len(actions) > 1:
        return [rule for action in actions for rule in judge_statement(f"{sql[: read[start].start]}{action}", schema)]
    return [WORDS.get(" ".join(token.text.upper() for token in read[start : start + 2]), "unreadable")]


def read_target(read: list[Token]) -> tuple[str, int]:
    """Return the table of an ALTER TABLE, and where its first action stands."""
    start = 2
    while start < len(read) and read[start].text.upper() in {"IF", "EXISTS", "ONLY"}:
        start += 1
    end = start + 1
    while end < len(read) and read[end].token_type == TokenType.DOT:
        end += 2
    return "".join(token.text for token in read[start:end]).lower().removeprefix("public."), end


def split_actions(read: list[Token], sql: str) -> list[str]:
    """Return the actions of an ALTER TABLE, which commas outside parentheses part."""
    actions, depth, begin = [], 0, read[0].start if read else 0
    for token in read:
        depth += {TokenType.L_PAREN: 1, TokenType.R_PAREN: -1}.get(token.token_type, 0)
        if depth == 0 and token.token_type == TokenType.COMMA:
            actions.append(sql[begin : token.start].strip())
            begin = token.end + 1
    return [*actions, sql[begin:].strip()]
