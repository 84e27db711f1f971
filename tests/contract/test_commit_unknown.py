"""The connection breaks at each message of an exchange, before the server has it or before its
answer comes back: what was done is recognised, and what was not done is done or told.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy.exc import DBAPIError

from celery_idem.ledger import Retry, database
from celery_idem.ledger.failures import Failure
from celery_idem.ledger.sql import SqlLedger
from celery_idem.run import ClaimOutcome, ClaimRequest, Run, RunState
from tests.contract.shop import Held, Shop, order, run_of, state
from tests.contract.stores import LONG, fresh
from tests.contract.test_faults import Operator
from tests.processes import wait_for
from tests.proxy import Proxy

pytestmark = pytest.mark.slow

#: Seconds.
PATIENCE = 30.0


@dataclass
class Far:
    """A ledger behind a proxy, and its database seen past that."""

    shop: Shop
    ledger: SqlLedger
    proxy: Proxy

    def request(self) -> ClaimRequest:
        return self.shop.store.request(self.shop.store.in_state(None))

    def orphaned(self) -> ClaimRequest:
        key, _ = self.shop.store.orphan()
        return self.shop.store.request(key)

    def scheduled(self) -> ClaimRequest:
        (key,) = self.shop.store.scheduled()
        return self.shop.store.request(key)

    def owned(self, idle: float = LONG) -> Run:
        """A run of which the proxy knows nothing yet."""
        request = self.request()
        claim = self.shop.store.ledger.claim(request)
        return run_of(self.ledger, request, claim, Held(), idle)


@pytest.fixture
def far(server_shop: Shop) -> Iterator[Far]:
    """On each kind of server."""
    url = server_shop.store.url
    with Proxy.before(url) as proxy:
        ledger = SqlLedger(proxy.url(url))
        yield Far(server_shop, ledger, proxy)
        ledger.close()


# -- exchanges -----------------------------------------------------------------------------------

#: Makes something to be done; doing it returns what the ledger has answered.
Deed = Callable[[], Any]
#: The deed, and the check of its answer and of what it left.
Exchange = Callable[[Far], tuple[Deed, Callable[[Any], None]]]


def _claim(far: Far, request: ClaimRequest, fence: int) -> tuple[Deed, Callable[[Any], None]]:
    def check(claim: Any) -> None:
        assert (claim.outcome, claim.fence, claim.attempts) == (
            ClaimOutcome.CLAIMED,
            fence,
            fence,
        )
        row = far.shop.store.row(request.key)
        assert (row.state, row.fence, row.attempts) == (RunState.RUNNING, fence, fence)
        assert (row.claim_id, row.lease_id) == (request.claim_id, request.lease_id)

    return lambda: far.ledger.claim(request), check


def claims(far: Far) -> tuple[Deed, Callable[[Any], None]]:
    return _claim(far, far.request(), 1)


def claims_scheduled(far: Far) -> tuple[Deed, Callable[[Any], None]]:
    return _claim(far, far.scheduled(), 1)


def takes_over(far: Far) -> tuple[Deed, Callable[[Any], None]]:
    return _claim(far, far.orphaned(), 2)


def _end(far: Far, deed: Callable[[Run], Any], wanted: RunState) -> Any:
    run = far.owned()

    def check(answer: Any) -> None:
        assert answer in (None, True)
        row = far.shop.store.row(run.key)
        assert (row.state, row.fence) == (wanted, 1)

    return lambda: deed(run), check


def succeeds(far: Far) -> Any:
    ended = RunState.SUCCEEDED
    return _end(far, lambda run: far.ledger.end(run.key, run.fence, ended), ended)


def fails(far: Far) -> Any:
    ended = RunState.FAILED
    return _end(far, lambda run: far.ledger.end(run.key, run.fence, ended, "because"), ended)


def retries(far: Far) -> Any:
    retry = Retry(1, 5.0, "{}")
    return _end(far, lambda run: far.ledger.retry(run.key, run.fence, retry), RunState.RETRYING)


def gives_back(far: Far) -> Any:
    return _end(
        far,
        lambda run: far.ledger.give_back(run.key, run.fence, "no", 60.0),
        RunState.SCHEDULED,
    )


def commits(far: Far) -> Any:
    run, name = far.owned(), fresh("order")

    def body() -> bool:
        try:
            with run.transaction() as connection:
                order(connection, name)
        except DBAPIError:
            return False
        return True

    def check(told: bool) -> None:
        assert is_true(far, run, name, told)
        if not told:
            assert body()
            assert is_true(far, run, name, True)

    return body, check


def is_true(far: Far, run: Run, name: str, told: bool) -> bool:
    """Whether a body was told how its transaction has ended."""
    row = far.shop.store.row(run.key)
    wanted = RunState.SUCCEEDED if told else RunState.RUNNING
    found = (name in far.shop.orders(), row.state, row.fence, run.ended)
    assert found == (told, wanted, 1, told)
    return True


EXCHANGES = [claims, claims_scheduled, takes_over, succeeds, fails, retries, gives_back, commits]


@pytest.mark.sample("postgres-*-new", "mariadb-*-pooled")
@pytest.mark.parametrize("warm", [True, False], ids=["pooled", "new"])
@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: exchange.__name__)
def test_a_connection_may_break_at_any_message(
    far: Far, exchange: Exchange, warm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine may need longer than a second to connect anew.
    monkeypatch.setitem(database.PATIENCE, Failure.UNAVAILABLE, PATIENCE)

    def begin() -> None:
        far.ledger.close()
        # Or the goodbye of a connection might count as a message of what comes next.
        far.proxy.wait_until_left()
        if warm:
            far.ledger.now()

    def do(deed: Deed, check: Callable[[Any], None]) -> None:
        check(deed())

    do(*exchange(far))  # Statements are compiled.
    begin()
    deed, check = exchange(far)
    far.proxy.count_anew()
    answer = deed()
    number = far.proxy.messages
    check(answer)
    assert number >= 1
    for cut in range(1, number + 1):
        for forwarded in (False, True):
            begin()
            deed, check = exchange(far)
            far.proxy.cut_when(lambda at, _, cut=cut: at == cut, forwarded=forwarded)  # type: ignore[misc]
            answer = deed()
            assert far.proxy.struck.is_set(), (cut, number)
            check(answer)


# -- a COMMIT that nobody has answered -----------------------------------------------------------


def is_commit(_: int, message: bytes) -> bool:
    return b"COMMIT" in message


def body(far: Far, run: Run, name: str, **cut: Any) -> bool:
    """A transaction whose connection breaks at its COMMIT; returns whether it was committed."""
    try:
        with run.transaction() as connection:
            order(connection, name)
            far.proxy.cut_when(is_commit, **cut)
    except DBAPIError:
        return False
    return True


@pytest.mark.parametrize("forwarded", [True, False], ids=["committed", "lost"])
def test_a_commit_without_an_answer_is_told_by_the_row(far: Far, forwarded: bool) -> None:
    run, name = far.owned(), fresh("order")
    told = body(far, run, name, forwarded=forwarded)
    assert far.proxy.struck.is_set()
    assert told is forwarded
    assert is_true(far, run, name, told)


@pytest.fixture
def operator(far: Far) -> Operator:
    return Operator(far.shop.store)


@pytest.mark.parametrize("delivered", [True, False], ids=["late", "never"])
def test_a_session_that_has_not_noticed_is_waited_for(
    far: Far, operator: Operator, delivered: bool
) -> None:
    """The COMMIT is under way, for as long as the server's session lives."""
    run, name = far.owned(), fresh("order")
    with ThreadPoolExecutor(1) as pool:
        future: Future[bool] = pool.submit(body, far, run, name, forwarded=False, unnoticed=True)
        try:
            wait_for(operator.is_waited_for, PATIENCE, "somebody who waits for the row")
            assert not future.done()
            assert state(far.shop, run) is RunState.RUNNING
        finally:
            far.proxy.notice(delivered)
        assert future.result(PATIENCE) is delivered
    assert is_true(far, run, name, delivered)


def test_a_session_that_never_notices_is_ended(far: Far) -> None:
    """By the bound of the time for which a transaction may stand still."""
    run, name = far.owned(idle=1.0), fresh("order")
    assert body(far, run, name, forwarded=False, unnoticed=True) is False
    assert is_true(far, run, name, False)
    assert body(far, run, name, forwarded=True) is True
    assert is_true(far, run, name, True)


@pytest.mark.parametrize("forwarded", [True, False], ids=["committed", "lost"])
def test_the_database_is_away_for_longer(
    far: Far, forwarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can tell meanwhile: the body waits."""
    run, name = far.owned(), fresh("order")
    asked = threading.Semaphore(0)
    was_committed = SqlLedger.was_committed

    def told(self: SqlLedger, *args: Any) -> bool:
        try:
            return was_committed(self, *args)
        finally:
            asked.release()

    monkeypatch.setattr(SqlLedger, "was_committed", told)
    cut_too = threading.Event()

    def commit_and_all(number: int, message: bytes) -> bool:
        if is_commit(number, message):
            cut_too.set()
        return cut_too.is_set()

    with ThreadPoolExecutor(1) as pool:
        try:
            with run.transaction() as connection:
                order(connection, name)
                far.proxy.cut_when(commit_and_all, forwarded=forwarded)
                mended = pool.submit(mend_later, far.proxy, asked)
        except DBAPIError:
            answer = False
        else:
            answer = True
        mended.result(PATIENCE)
    assert answer is forwarded
    assert is_true(far, run, name, answer)


def mend_later(proxy: Proxy, asked: threading.Semaphore) -> None:
    assert proxy.struck.wait(PATIENCE)
    proxy.cut()
    # Twice in vain, each time for a second.
    for _ in range(2):
        assert asked.acquire(timeout=PATIENCE)
    proxy.mend()


def test_a_time_limit_while_a_commit_is_not_answered(far: Far) -> None:
    """It comes in the midst of waiting for the answer: the row is asked instead."""
    run, name = far.owned(), fresh("order")
    raised = threading.Event()

    def limit(number: int, frame: object) -> None:
        if not raised.is_set():
            raised.set()
            far.proxy.mend()
            raise SoftTimeLimitExceeded

    def send() -> None:
        assert far.proxy.struck.wait(PATIENCE)
        while not raised.wait(0.5):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, limit)
    thread = threading.Thread(target=send)
    thread.start()
    try:
        told = body(far, run, name, forwarded=True, frozen=True)
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert raised.is_set()
    assert told
    assert is_true(far, run, name, True)
