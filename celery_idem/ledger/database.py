"""The connection to the ledger's database.

Owns the engine (one per process, made after the fork) and the repetition of statements that failed
for a passing reason. Must not know what the statements mean; whoever runs one through here must be
able to bear that it is executed again after its answer was lost.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Executable
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.pool import NullPool, PoolProxiedConnection

from celery_idem.clock import SYSTEM
from celery_idem.errors import ImproperlyConfigured, LedgerError
from celery_idem.ledger.compiled import Compiled, compile_statement
from celery_idem.ledger.connect import make_engine
from celery_idem.ledger.failures import Failure, classify, is_away, translate
from celery_idem.ledger.forks import gate_of
from celery_idem.ledger.url import parse, shown

#: Longest pause before the second try (seconds, then doubled), and the longest of all.
PAUSE = 0.05
LONGEST_PAUSE = 1.0

#: Seconds after which no further try begins. A database that is away is away for longer than a
#: beat may stand still; a deadlock ends as soon as the others have gone on.
PATIENCE = {Failure.UNAVAILABLE: 1.0, Failure.CONTENDED: 10.0, Failure.REFUSED: 0.0}

T = TypeVar("T")

#: Engines of a parent process: kept, as even closing their connections here would be felt there.
_inherited: list[Engine] = []


@dataclass(frozen=True, slots=True)
class Answer:
    """What a statement gave: its rows, and how many rows it matched."""

    rows: Sequence[Any]
    rowcount: int


class Database:
    """Runs single statements in AUTOCOMMIT, in any thread, in any process that inherits it.

    Arguments:
        url: SQLAlchemy URL. ``postgresql://`` means psycopg 3, ``mysql://`` PyMySQL.
        options: further arguments of `sqlalchemy.create_engine`.
        schema: schema of the tables, None for the connection's default.

    Raises:
        ImproperlyConfigured: URL or options cannot be used; it says why and what to do.
    """

    def __init__(
        self, url: str, options: Mapping[str, Any] | None = None, schema: str | None = None
    ) -> None:
        self.url = parse(url)
        self.schema = schema
        self.dialect = self.url.get_backend_name()
        self._options = dict(options or {})
        if schema and self.dialect == "sqlite":
            raise ImproperlyConfigured(
                "idem_database_schema", schema, "SQLite has no schemas: leave it out"
            )
        # Made once here for its errors; no connection is opened before it is used.
        self._engine = (os.getpid(), self._make())
        error: type[Exception] = self.url.get_dialect().import_dbapi().Error
        self._faults = (DBAPIError, error, OSError, NoConnectionFree)
        self._compiled: dict[Executable, Compiled] = {}
        #: What every use of a connection happens in.
        self.gate = gate_of(self, self.dialect)
        self._here = threading.local()

    @property
    def engine(self) -> Engine:
        """The engine of this process; a forked child makes its own and leaves the parent's."""
        pid, engine = self._engine
        if pid != os.getpid():
            # No lock, which another thread of the parent might have held at the fork. Two threads
            # may each make one here: neither has connected, and one of the two stays.
            _inherited.append(engine)
            engine = self._make()
            self._engine = (os.getpid(), engine)
        return engine

    @property
    def shown(self) -> str:
        """The URL for people, without a password."""
        return shown(self.url)

    def run(
        self,
        statement: Executable,
        parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> Answer:
        """Execute one statement, again if it failed for a passing reason.

        Raises:
            LedgerUnavailable: the database did not answer; the statement may have been executed.
            LedgerError: the database refused the statement.
        """

        def once() -> Answer:
            with self._connection() as connection:
                result = connection.execute(statement, parameters)
                rows = result.all() if result.returns_rows else ()
                return Answer(rows, result.rowcount)

        return self.repeat(once)

    def write(self, statement: Executable, parameters: Mapping[str, Any]) -> Answer:
        """As `run`, in less time, for statements whose rows are made of plain values.

        The statement is kept for ever: pass a constant, without lists of values.
        """
        compiled = self.compile(statement)
        text, values = compiled.text, compiled.values(parameters)
        return self.repeat(lambda: self._execute(text, values))

    def compile(self, statement: Executable) -> Compiled:
        """The text of a constant statement, kept for ever."""
        return self._compiled.get(statement) or self._compile(statement)

    def _compile(self, statement: Executable) -> Compiled:
        # The text may depend on the server's version, which is known once it has been connected.
        self.inspect(lambda connection: None)
        compiled = compile_statement(statement, self.engine.dialect, self.schema)
        self._compiled[statement] = compiled
        return compiled

    def repeat(self, once: Callable[[], T]) -> T:
        """Call `once`, again if it fails for a passing reason; errors come out as `LedgerError`."""
        started, pause = SYSTEM.elapsed(), PAUSE
        while True:
            try:
                with self.gate:
                    return once()
            except self._faults as exc:
                failure = classify(exc)
                if failure is Failure.CONTENDED and getattr(self._here, "writes", False):
                    raise LedgerError(
                        f"the ledger's database {self.shown} is locked by this very thread",
                        "leave the block of its transaction first",
                    ) from exc
                if SYSTEM.elapsed() + pause > started + PATIENCE[failure]:
                    raise translate(exc, failure, self.shown) from exc
                self._here.unanswered = self.unanswered + (failure is Failure.UNAVAILABLE)
            except SQLAlchemyError as exc:
                raise LedgerError(f"the ledger's database {self.shown}: {exc}") from exc
            except (ValueError, OverflowError) as exc:
                # The driver's, of a text that the connection's encoding or a number that the
                # database does not have: nothing was executed.
                raise LedgerError(
                    f"the ledger's database {self.shown} cannot take a value: {exc}"
                ) from exc
            # Jittered, so that two statements that met in a deadlock do not meet again.
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)

    @property
    def unanswered(self) -> int:
        """How many tries of this thread's statements were not answered, and were repeated.

        Each of them may still be executed: its server may be waiting for a lock.
        """
        return getattr(self._here, "unanswered", 0)

    @contextmanager
    def in_transaction(self) -> Iterator[None]:
        """For a thread that keeps a transaction open: on SQLite it is the only one that writes."""
        self._here.writes = self.dialect == "sqlite"
        try:
            yield
        finally:
            self._here.writes = False

    def inspect(self, look: Callable[[Connection], T]) -> T:
        """What `look` finds, by several statements on one connection, of which none writes."""

        def once() -> T:
            with self._connection() as connection:
                return look(connection)

        return self.repeat(once)

    def apart(self) -> Engine:
        """An engine of its own for work in transactions: none of its connections are kept."""
        return self._make(poolclass=NullPool)

    def close(self) -> None:
        """Close the connections that this process has opened."""
        pid, engine = self._engine
        if pid == os.getpid():
            engine.dispose()

    def _make(self, **more: Any) -> Engine:
        return make_engine(self.url, self._options, self.schema, **more)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        with self.engine.connect() as connection:
            try:
                yield connection
            except SQLAlchemyError as exc:
                if is_away(exc) and not connection.invalidated:
                    connection.invalidate(exc)  # See `_broken`.
                raise
            except BaseException:
                # A time limit, a killed greenlet, anything that a signal handler raised: half an
                # answer may still be on the wire, and the next statement would take it for its own.
                connection.invalidate()
                raise

    def _execute(self, text: str, values: Any) -> Answer:
        connection = self.engine.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute(text, values)
            rows = cursor.fetchall() if cursor.description else ()
            answer = Answer(rows, cursor.rowcount)
            cursor.close()
        except BaseException as exc:
            self._broken(connection, exc)
            raise
        connection.close()
        return answer

    def _broken(self, connection: PoolProxiedConnection, exc: BaseException) -> None:
        engine = self.engine
        dbapi = engine.dialect.loaded_dbapi
        if not isinstance(exc, dbapi.Error):
            connection.invalidate(exc)  # See `_connection`.
        elif engine.dialect.is_disconnect(exc, connection.dbapi_connection, None):
            connection.invalidate(exc)
            # The others of the pool are most probably as dead.
            engine.dispose()
        elif is_away(exc):
            # What the driver does not call dead may be stuck in half an answer, for every next try.
            connection.invalidate(exc)
        else:
            connection.close()
