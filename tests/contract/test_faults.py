"""Deadlocks, cut connections and interrupted statements: repeated, and never a wrong answer."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, insert, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from celery_idem.errors import LedgerError, LedgerUnavailable
from celery_idem.keys import RunKey
from celery_idem.ledger import database as module
from celery_idem.ledger.failures import Failure, classify
from celery_idem.ledger.schema import history, runs
from celery_idem.ledger.sql import SqlLedger
from celery_idem.run import ClaimOutcome, RunState
from tests.contract.stores import FIRST, NAMESPACE, Store, fresh, isolated, wait_until
from tests.contract.together import in_threads

WAITING = (
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND wait_event_type = 'Lock'"
)
#: The table innodb_trx would do, but is not renewed for one who asks more than ten times a second.
REPORT = "SHOW ENGINE INNODB STATUS"
WAITER = re.compile(r"^LOCK WAIT (?:.*\n)+?(?:MariaDB|MySQL) thread id (\d+)", re.MULTILINE)
OTHERS = {
    "postgresql": "SELECT pid FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    "mysql": "SELECT id FROM information_schema.processlist "
    "WHERE db = database() AND id <> connection_id()",
}
KILL = {"postgresql": "SELECT pg_terminate_backend({})", "mysql": "KILL {}"}
GONE_ALREADY = "Unknown thread id"


class Operator:
    """Somebody with a connection of his own to the same database."""

    def __init__(self, store: Store) -> None:
        self._engine = create_engine(store.sql.database.url, poolclass=NullPool)
        self._name = self._engine.dialect.name

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        with self._engine.begin() as connection:
            yield connection

    def is_waited_for(self) -> bool:
        """True if somebody waits for a lock."""
        with self._engine.connect() as connection:
            if self._name == "postgresql":
                return bool(connection.execute(text(WAITING)).scalar())
            report = connection.execute(text(REPORT)).one()[-1]
            ours = connection.execute(text(OTHERS["mysql"])).scalars().all()
            return bool({int(number) for number in WAITER.findall(report)} & set(ours))

    def kill_others(self) -> int:
        """End all other connections to this database."""
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            number = kill_from(connection)
            wait_until(lambda: not connection.execute(text(OTHERS[self._name])).scalars().all())
        return number


@pytest.fixture
def operator(server: Store) -> Operator:
    return Operator(server)


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[Failure]:
    """What the ledger has met since."""
    met: list[Failure] = []

    def spy(error: BaseException) -> Failure:
        met.append(classify(error))
        return met[-1]

    monkeypatch.setattr(module, "classify", spy)
    return met


def touch(connection: Connection, key: RunKey) -> None:
    """Change a run, and hold its row until the end of the transaction."""
    connection.execute(
        update(runs).where(runs.c.run_key == key.text, runs.c.slot == key.slot).values(entry="x")
    )


def be_heavy(connection: Connection) -> None:
    """Write so much that of a deadlock the other one is rolled back."""
    line = {"at": FIRST, "kind": "note", "run_key": "x", "slot": FIRST}
    connection.execute(insert(history), [{"id": fresh("line"), **line} for _ in range(50)])


def kill_from(connection: Connection) -> int:
    """End all other connections to the database of this one; return how many there were."""
    dialect = connection.dialect.name
    ids = connection.execute(text(OTHERS[dialect])).scalars().all()
    for number in ids:
        try:
            connection.execute(text(KILL[dialect].format(number)))
        except OperationalError as error:
            if GONE_ALREADY not in str(error):
                raise
    return len(ids)


@contextmanager
def beside(function: Callable[[], Any]) -> Iterator[Any]:
    """Run a function on another thread meanwhile; what it raises is raised at the end."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(function)
        yield future
        future.result(60)


def test_a_statement_rolled_back_by_a_deadlock_is_repeated(
    server: Store, operator: Operator, failures: list[Failure]
) -> None:
    batch = fresh("batch")
    first, second = server.scheduled(2, batch)
    with operator.transaction() as connection:
        be_heavy(connection)
        touch(connection, second)
        with beside(lambda: server.ledger.published([first, second], batch, 60.0)):
            wait_until(operator.is_waited_for)
            touch(connection, first)
            connection.commit()
    assert failures == [Failure.CONTENDED]
    assert [server.row(key).emit_count for key in (first, second)] == [1, 1]


def test_a_serialization_failure_is_repeated(postgres: Store, failures: list[Failure]) -> None:
    operator = Operator(postgres)
    strict = isolated(postgres.url, "repeatable read")
    key, claim = postgres.owned()
    strict.now()
    with operator.transaction() as connection:
        touch(connection, key)
        with beside(lambda: strict.end(key, claim.fence, RunState.SUCCEEDED)):
            wait_until(operator.is_waited_for)
            connection.commit()
    assert failures == [Failure.CONTENDED]
    assert postgres.row(key).state is RunState.SUCCEEDED
    strict.close()


def test_after_connections_were_cut_the_next_statements_succeed(
    server: Store, operator: Operator, failures: list[Failure]
) -> None:
    """Statements of both kinds, each meeting a pool of dead connections."""
    verbs: list[Callable[[], object]] = [
        server.ledger.now,
        lambda: server.ledger.bury("nobody"),
        lambda: server.claim(RunKey(fresh("run"))),
        lambda: server.ledger.read(RunKey("shop:x")),
    ]
    in_threads(4, lambda n: [server.ledger.now() for _ in range(5)])
    for verb in verbs:
        assert operator.kill_others() >= 1
        verb()
    assert set(failures) == {Failure.UNAVAILABLE}


def test_a_statement_cut_while_it_waits_is_repeated(
    server: Store, operator: Operator, failures: list[Failure]
) -> None:
    key, claim = server.owned()
    with operator.transaction() as connection:
        touch(connection, key)
        with beside(lambda: server.ledger.end(key, claim.fence, RunState.SUCCEEDED)):
            wait_until(operator.is_waited_for)
            kill_from(connection)
            wait_until(lambda: bool(failures))
            connection.commit()
    assert Failure.UNAVAILABLE in failures
    assert server.row(key).state is RunState.SUCCEEDED


def test_a_claim_that_was_repeated_says_so(
    server: Store, operator: Operator, failures: list[Failure]
) -> None:
    """Its first try may still be executed, as far as its caller knows."""
    (key,) = server.scheduled(1, fresh("batch"))
    with operator.transaction() as connection:
        touch(connection, key)
        with beside(lambda: server.claim(key)) as claim:
            wait_until(operator.is_waited_for)
            kill_from(connection)
            wait_until(lambda: bool(failures))
            connection.commit()
    assert claim.result().outcome is ClaimOutcome.CLAIMED and claim.result().doubtful
    assert not server.claim(RunKey(fresh("run"))).doubtful


def test_a_connection_that_is_stuck_in_half_an_answer_is_replaced(
    postgres: Store, failures: list[Failure]
) -> None:
    """Its driver does not call it dead, and would refuse each next statement on it."""
    verbs: list[Callable[[], object]] = [
        postgres.ledger.now,
        lambda: postgres.ledger.bury("nobody"),
    ]
    for verb in verbs:
        verb()
        stuck = postgres.sql.database.engine.raw_connection()
        assert stuck.dbapi_connection is not None
        stuck.dbapi_connection.pgconn.send_query(b"SELECT 1")
        stuck.close()
        verb()
    assert failures == [Failure.UNAVAILABLE] * 2


class TooLong(Exception):
    """What a signal handler raises into a statement: Celery's soft time limit, for one."""


@contextmanager
def interrupted_when(condition: Callable[[], bool]) -> Iterator[None]:
    """Raise `TooLong` in the main thread as soon as `condition` holds."""

    raised = threading.Event()

    def handler(number: int, frame: object) -> None:
        if not raised.is_set():
            raised.set()
            raise TooLong

    def send() -> None:
        wait_until(condition)
        # To the thread itself: it sits in a system call, which only its own signals interrupt.
        # Again, as the first may come just before the call; not often, as psycopg looks for
        # signals when it was left alone for 0.1 s.
        while not raised.wait(0.5):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=send)
    thread.start()
    try:
        with pytest.raises(TooLong):
            yield
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("hot", [True, False], ids=["write", "run"])
def test_the_answer_to_an_interrupted_statement_is_not_taken_for_the_next(
    server: Store, operator: Operator, hot: bool
) -> None:
    key, claim = server.owned()
    batch = fresh("batch")
    (slot,) = server.scheduled(1, batch)
    locked = key if hot else slot
    with operator.transaction() as connection:
        touch(connection, locked)
        with interrupted_when(operator.is_waited_for):
            if hot:
                server.ledger.end(key, claim.fence, RunState.SUCCEEDED)
            else:
                server.ledger.published([slot], batch, 60.0)
    for _ in range(3):
        fresh_key = RunKey(fresh("run"))
        assert server.claim(fresh_key).fence == 1
        assert server.row(fresh_key).key == fresh_key
        assert server.ledger.renew([], 1.0) == set()
        assert server.ledger.acquire_due("nobody", 1, "batch") == []


def test_sqlite_waits_for_another_writer(stores: Any) -> None:
    store: Store = stores.get("sqlite")
    operator = create_engine(store.url, poolclass=NullPool)
    key, claim = store.owned()
    with operator.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        touch(connection, key)
        started = threading.Event()

        def end() -> None:
            started.set()
            store.ledger.end(key, claim.fence, RunState.SUCCEEDED)

        with beside(end):
            started.wait()
            assert store.row(key).state is RunState.RUNNING
            connection.exec_driver_sql("COMMIT")
    assert store.row(key).state is RunState.SUCCEEDED


def test_sqlite_that_stays_locked_is_a_fault_that_says_so(
    tmp_path: Any, failures: list[Failure], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.PATIENCE, Failure.CONTENDED, 0.3)
    url = f"sqlite:///{tmp_path}/ledger.sqlite3"
    ledger = SqlLedger(url, engine_options={"connect_args": {"timeout": 0.01}})
    ledger.now()
    operator = create_engine(url, poolclass=NullPool)
    with operator.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnavailable, match="too contended: database is locked"):
            ledger.record("duplicate", RunKey("shop:x"))
        connection.exec_driver_sql("ROLLBACK")
    ledger.record("duplicate", RunKey("shop:x"))
    assert set(failures) == {Failure.CONTENDED} and len(failures) >= 2
    ledger.close()


def test_a_refused_statement_is_not_repeated(server: Store, failures: list[Failure]) -> None:
    with pytest.raises(LedgerError, match="refused a statement") as caught:
        server.sql._run(text("SELECT nothing FROM nowhere"))
    assert not isinstance(caught.value, LedgerUnavailable)
    assert failures == [Failure.REFUSED]
    assert server.ledger.acquire_due(NAMESPACE, 1, "batch") == []
