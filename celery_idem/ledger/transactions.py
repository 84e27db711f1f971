"""Transactions of a body that end its run as they commit.

Owns how the end of a claim becomes the last statement of somebody's transaction, so that what it
wrote and ``succeeded`` become visible together or not at all; and how it is learned what became of
a COMMIT without an answer. Business tables and ledger must be in one database.
Must not know the other verbs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, event
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from celery_idem.errors import CommitUnknown, IdemError, LeaseLost, LedgerError
from celery_idem.keys import RunKey
from celery_idem.ledger import Ledger
from celery_idem.ledger import statements as sql
from celery_idem.ledger.compiled import compile_statement
from celery_idem.ledger.database import Answer, Database
from celery_idem.ledger.rows import named

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

#: What a transaction is opened with, so that a process that stands still between its last statement
#: and the COMMIT does not keep the row locked for ever. MySQL knows no such limit.
_BOUND_IDLE = {
    "postgresql": "SET LOCAL idle_in_transaction_session_timeout = {millis}",
    "mariadb": "SET SESSION idle_transaction_timeout = {seconds}",
}

#: A savepoint, set first and released last: whatever ends the transaction takes it along. So does
#: a COMMIT as text, a CREATE TABLE on MariaDB, or a deadlock whose error the body has swallowed.
_MARK = "celery_idem"

_PARAMSTYLES = ("format", "pyformat", "qmark", "named", "numeric")


class TransactionSql(Ledger):
    """The verbs of bodies that write where the ledger is; `SqlLedger` adds the others."""

    database: Database

    @abstractmethod
    def _write(self, statement: Any, parameters: Mapping[str, Any]) -> Answer: ...

    def transaction(
        self,
        key: RunKey,
        fence: int,
        *,
        isolation_level: str | None,
        idle: float,
        awaited: bool = False,
    ) -> AbstractContextManager[Connection]:
        return self._transaction(key, fence, isolation_level, idle, awaited)

    @contextmanager
    def _transaction(
        self,
        key: RunKey,
        fence: int,
        isolation_level: str | None,
        idle: float,
        awaited: bool = False,
    ) -> Iterator[Connection]:
        finish = self.database.compile(sql.FINISH)
        with _opened(self.database, isolation_level, idle) as connection:
            release = _kept_whole(connection, key)
            yield connection
            release()
            values = finish.values(_finished(key, fence, awaited))
            if not connection.exec_driver_sql(finish.text, values).rowcount:
                raise LeaseLost(key.text, fence, "its transaction was rolled back")
            try:
                connection.commit()
            except Exception as exc:
                connection.invalidate()
                raise CommitUnknown(key.text) from exc

    def session(
        self, connection: Any, factory: Callable[..., Any] | None
    ) -> AbstractContextManager[Session]:
        if factory is None:
            # Where it is asked for: it takes every process 6 MB.
            from sqlalchemy.orm import Session

            return _session(connection, Session)
        return _session(connection, factory)

    def finish_statement(
        self, key: RunKey, fence: int, paramstyle: str, awaited: bool = False
    ) -> tuple[str, Any]:
        if paramstyle not in _PARAMSTYLES:
            raise ValueError(f"paramstyle {paramstyle!r} is none of {', '.join(_PARAMSTYLES)}")
        kind: Any = type(self.database.engine.dialect)
        dialect = kind(paramstyle=paramstyle)
        compiled = compile_statement(sql.FINISH, dialect, self.database.schema)
        return compiled.text, compiled.values(_finished(key, fence, awaited))

    def try_hold(self, key: RunKey, fence: int) -> bool:
        return self._write(sql.HOLD, {**named(key), "b_fence": fence}).rowcount > 0


def _finished(key: RunKey, fence: int, awaited: bool) -> dict[str, Any]:
    return {**named(key), "b_fence": fence, "b_pending": True if awaited else None}


@contextmanager
def _opened(database: Database, isolation_level: str | None, idle: float) -> Iterator[Connection]:
    """A connection in a transaction, which is rolled back at the end unless it was committed."""

    def once() -> tuple[Connection, ExitStack]:
        with ExitStack() as stack:
            stack.enter_context(database.gate)
            connection = stack.enter_context(database.engine.connect())
            with _rolled_back(connection):
                _begin(connection, isolation_level, idle)
            return connection, stack.pop_all()

    connection, stack = database.repeat(once)
    with stack:
        with database.in_transaction(), _rolled_back(connection):
            yield connection
        _restore(connection)


@contextmanager
def _rolled_back(connection: Connection) -> Iterator[None]:
    """Whatever is raised in the block, nothing of it is left on the connection."""
    try:
        yield
    except (SQLAlchemyError, IdemError):
        _roll_back(connection)
        raise
    except BaseException:
        # It may come from a signal handler, in the midst of a statement's answer: closed, the
        # connection is rolled back by the server.
        connection.invalidate()
        raise


def _roll_back(connection: Connection) -> None:
    if connection.invalidated or connection.closed:
        return
    try:
        connection.rollback()
        # Past SQLAlchemy, which takes a COMMIT that was refused for the end of the transaction.
        connection.dialect.do_rollback(connection.connection)
    except (SQLAlchemyError, connection.dialect.loaded_dbapi.Error):
        connection.invalidate()
    else:
        _restore(connection)


def _restore(connection: Connection) -> None:
    """Back to AUTOCOMMIT. The pool would do it too, and raise what fails on the way."""
    if connection.invalidated or connection.closed:
        return
    try:
        connection.execution_options(isolation_level="AUTOCOMMIT")
    except BaseException as exc:
        connection.invalidate()
        if not isinstance(exc, SQLAlchemyError | connection.dialect.loaded_dbapi.Error):
            raise


def _begin(connection: Connection, isolation_level: str | None, idle: float) -> None:
    dialect = connection.dialect
    # The tables of the body are where it says, whatever the schema of the ledger's is.
    connection.execution_options(schema_translate_map={})
    level = _level(connection, isolation_level)
    if dialect.name == "sqlite":
        connection.execution_options(isolation_level="SERIALIZABLE")
        # At once, as a transaction that has read cannot always become one that writes.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    elif dialect.name == "postgresql":
        connection.execution_options(isolation_level=level)
    else:
        # The session's own level stays: the pool does not put it back, and a claim must not see
        # what is not committed.
        connection.execution_options(isolation_level=dialect.default_isolation_level)
        connection.exec_driver_sql(f"SET TRANSACTION ISOLATION LEVEL {level}")
    kind = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
    if kind in _BOUND_IDLE:
        bound = _BOUND_IDLE[kind].format(millis=int(idle * 1000), seconds=max(1, int(idle)))
        connection.exec_driver_sql(bound)
    connection.exec_driver_sql(f"SAVEPOINT {_MARK}")


def _level(connection: Connection, isolation_level: str | None) -> Any:
    dialect = connection.dialect
    if isolation_level is None:
        return dialect.default_isolation_level
    dbapi_connection = connection.connection.dbapi_connection
    assert dbapi_connection is not None
    allowed = {*dialect.get_isolation_level_values(dbapi_connection)} - {"AUTOCOMMIT"}
    level = isolation_level.replace("_", " ").upper()
    if level not in allowed:
        raise ArgumentError(
            f"isolation level {isolation_level!r} is none of {', '.join(sorted(allowed))}"
        )
    return level


def _kept_whole(connection: Connection, key: RunKey) -> Callable[[], None]:
    """Keep others from ending the transaction, and from beginning a second one.

    Returns what has to be called before it is committed.

    Raises (there, or where the transaction is about to be ended):
        LedgerError: something has ended it.
    """

    def refuse(_: Connection) -> None:
        raise _not_whole(key, "COMMIT or ROLLBACK was called")

    def release() -> None:
        event.remove(connection, "commit", refuse)
        try:
            connection.exec_driver_sql(f"RELEASE SAVEPOINT {_MARK}")
        except DBAPIError as exc:
            if exc.connection_invalidated:
                raise
            raise _not_whole(key, f"{exc.orig}") from exc

    event.listen(connection, "begin", refuse)
    event.listen(connection, "commit", refuse)
    return release


def _not_whole(key: RunKey, reason: str) -> LedgerError:
    return LedgerError(
        f"the transaction of run {key} did not stay whole: {reason}",
        "leave COMMIT and ROLLBACK to the block; a part that may fail belongs in begin_nested()",
    )


@contextmanager
def _session(connection: Connection, factory: Callable[..., Any]) -> Iterator[Any]:
    # In a savepoint: `commit` and `rollback` of the session concern what it did since the last one,
    # and neither ends the transaction. All of it on this connection, wherever its classes belong.
    with factory(bind=connection, binds=None, join_transaction_mode="create_savepoint") as session:
        yield session
        session.commit()
