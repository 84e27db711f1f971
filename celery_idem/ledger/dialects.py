"""What differs between databases, and nothing else.

Owns four differences: how the database's clock is read and added to, how a statement names many
rows, how rows are inserted unless they are there, and how one statement inserts a row or changes it
if a guard holds.
Must not know what the tables mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Dialect,
    String,
    Table,
    Text,
    bindparam,
    case,
    cast,
    column,
    func,
    select,
    tuple_,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

from celery_idem.ledger.schema import FreeText, KeyText, UtcDateTime

#: Columns of a row: as it stands (``current``) and as it was to be inserted (``new``).
Columns = Any
#: (column name, its new value) in the order in which MySQL must assign them.
Updates = Sequence[tuple[str, ColumnElement[Any]]]


class db_now(FunctionElement[Any]):
    """The database's clock at the start of the statement, plus an optional bind in microseconds.

    Constant within one statement everywhere: MariaDB's SYSDATE() is not, and let two claims win
    one fence.
    """

    type = UtcDateTime()
    name = "db_now"
    inherit_cache = True


@compiles(db_now, "postgresql")
def _postgresql_now(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    if not element.clauses.clauses:
        return "now()"
    return f"(now() + {compiler.process(element.clauses, **kw)} * interval '1 microsecond')"


@compiles(db_now, "mysql")
@compiles(db_now, "mariadb")
def _mysql_now(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    if not element.clauses.clauses:
        return "UTC_TIMESTAMP(6)"
    return f"(UTC_TIMESTAMP(6) + INTERVAL {compiler.process(element.clauses, **kw)} MICROSECOND)"


@compiles(db_now, "sqlite")
def _sqlite_now(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    # Milliseconds are all that SQLite has; padded to the six digits in which instants are stored.
    form = "%Y-%m-%d %H:%M:%f000"
    if compiler.dialect.paramstyle in ("format", "pyformat"):
        form = form.replace("%", "%%")
    if not element.clauses.clauses:
        return f"strftime('{form}', 'now')"
    seconds = f"({compiler.process(element.clauses, **kw)} / 1000000.0) || ' seconds'"
    return f"strftime('{form}', 'now', {seconds})"


class _Rows(TypeDecorator[Any]):
    """Rows, each with a value for each of these columns, as JSON.

    So the text of a statement is short, and the same for any number of rows. To read one with a
    placeholder for each value takes a driver longer than all that the database does.
    """

    impl = Text
    cache_ok = True

    def __init__(self, *columns: Column[Any]) -> None:
        super().__init__()
        self.columns = columns

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        names = [c.name for c in self.columns]
        free = {at: c.type for at, c in enumerate(self.columns) if isinstance(c.type, FreeText)}
        rows = [list(row) for row in value]
        for row in rows:
            for at, type_ in free.items():
                row[at] = type_.process_bind_param(row[at], dialect)
        # Characters as they are: an escape of one that the database lacks is refused by it.
        named = [dict(zip(names, row, strict=True)) for row in rows]
        return json.dumps(named, ensure_ascii=False, default=str)

    def given(self, bind: str) -> Any:
        """The table of these rows, for PostgreSQL."""
        columns = [column(c.name, _plain(c.type)) for c in self.columns]
        rows = func.json_to_recordset(cast(bindparam(bind, type_=self), JSON))
        return rows.table_valued(*columns).render_derived(name="given", with_types=True)


def _plain(of: Any) -> Any:
    """Without the collation of a key, and any length of a text."""
    return Text() if isinstance(of, KeyText | FreeText | String) else of


def among(dialect: str, columns: Sequence[Column[Any]], bind: str) -> ColumnElement[bool]:
    """True of the rows whose `columns` are those of one of the rows given as `bind`."""
    if dialect != "postgresql":
        return tuple_(*columns).in_(bindparam(bind, expanding=True))
    return tuple_(*columns).in_(select(*_Rows(*columns).given(bind).c))


def _postgresql_insert_if_absent(table: Table) -> Insert:
    return postgresql.insert(table).on_conflict_do_nothing()


def _sqlite_insert_if_absent(table: Table) -> Insert:
    # RETURNING is what makes SQLAlchemy send many rows as one statement; without it, each row would
    # be a transaction of its own.
    insert = sqlite.insert(table).on_conflict_do_nothing()
    return insert.returning(next(iter(table.primary_key)))


def _mysql_insert_if_absent(table: Table) -> Insert:
    # Not INSERT IGNORE: it also cuts a text that is too long, and one key becomes another.
    # Nothing but values: PyMySQL makes one statement of many rows of this form only.
    key = next(iter(table.primary_key))
    return mysql.insert(table).on_duplicate_key_update({key.name: key})


_IF_ABSENT: dict[str, Callable[[Table], Insert]] = {
    "postgresql": _postgresql_insert_if_absent,
    "sqlite": _sqlite_insert_if_absent,
    "mysql": _mysql_insert_if_absent,
    "mariadb": _mysql_insert_if_absent,
}


@lru_cache
def insert_if_absent(dialect: str, table: Table) -> Insert:
    """An insert that changes nothing if a row with this primary key is there."""
    return _IF_ABSENT[dialect](table)


def insert_rows_if_absent(
    dialect: str, table: Table, rows: Sequence[Mapping[str, Any]]
) -> tuple[Insert, Any]:
    """One statement, with its values, that inserts those of `rows` that are not there.

    Arguments:
        rows: all with the same columns, in the same order.
    """
    if dialect != "postgresql":
        return insert_if_absent(dialect, table), rows
    return _from_rows(table, tuple(rows[0])), {"b_rows": [list(row.values()) for row in rows]}


@lru_cache
def _from_rows(table: Table, names: tuple[str, ...]) -> Insert:
    given = _Rows(*(table.c[name] for name in names)).given("b_rows")
    insert = postgresql.insert(table).from_select(list(names), select(*given.c))
    return insert.on_conflict_do_nothing()


def insert_or_change(
    dialect: str,
    table: Table,
    values: dict[str, Any],
    guard: Callable[[Columns, Columns], ColumnElement[bool]],
    updates: Callable[[Columns, Columns], Updates],
    changed: Callable[[Columns, Columns], ColumnElement[bool]],
) -> Insert:
    """One statement that inserts `values`, or makes `updates` to the row if `guard` holds.

    Where the database can, it returns the columns ``fence`` and ``attempts`` of the row if the
    statement wrote it (see `returns_rows`).

    Arguments:
        guard: may the row, as it stands, be changed?
        changed: given that the first of `updates` is made if and only if `guard` held: was it?
            It must stay true until the last of `updates`.
    """
    if returns_rows(dialect):
        insert: Any = (postgresql if dialect == "postgresql" else sqlite).insert(table)
        insert = insert.values(values)
        statement: Insert = insert.on_conflict_do_update(
            index_elements=list(table.primary_key),
            set_=dict(updates(table.c, insert.excluded)),
            where=guard(table.c, insert.excluded),
        ).returning(table.c.fence, table.c.attempts)
        return statement
    # MySQL has no WHERE here: every assignment carries a condition. They run from left to right
    # and see the row as the earlier ones have left it, so that only the first can test the guard.
    insert = mysql.insert(table).values(values)
    new = insert.inserted
    (first, value), *rest = updates(table.c, new)
    return insert.on_duplicate_key_update(  # type: ignore[no-any-return]
        [
            (first, case((guard(table.c, new), value), else_=table.c[first])),
            *((name, case((changed(table.c, new), v), else_=table.c[name])) for name, v in rest),
        ]
    )


def returns_rows(dialect: str) -> bool:
    """True if `insert_or_change` answers with the row; else it has to be read back."""
    return dialect in ("postgresql", "sqlite")
