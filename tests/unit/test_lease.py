"""The leases of a process: whom they belong to, how long they are trusted, how they end."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from celery_idem import doubts
from celery_idem.clock import SYSTEM, Clock
from celery_idem.errors import LedgerError, LedgerUnavailable
from celery_idem.lease import MARGIN, PROCESS, Leases
from celery_idem.ledger import Owner
from celery_idem.ledger.memory import MemoryLedger
from tests.contract.stores import SettableClock, wait_until

#: Seconds: the heartbeat, a third of it, never beats while a test runs.
LONG = 3600.0
TRUST = LONG * (1 - MARGIN)


class Away(MemoryLedger):
    """A ledger that can be away, or slow, by the clock of the test."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        super().__init__(clock)
        self.away = False
        self.asked = 0
        self.closed = 0
        self.delay: Callable[[], None] = lambda: None

    def register(self, lease_id: str, owner: Owner, seconds: float) -> None:
        self._answer()
        super().register(lease_id, owner, seconds)
        self.delay()

    def renew(self, lease_ids: Collection[str], seconds: float) -> set[str]:
        self._answer()
        renewed = super().renew(lease_ids, seconds)
        self.delay()
        return renewed

    def release(self, lease_ids: Collection[str]) -> None:
        self._answer()
        super().release(lease_ids)

    def close(self) -> None:
        self.closed += 1

    def _answer(self) -> None:
        if self.away:
            self.asked += 1
            raise LedgerUnavailable("away")


@pytest.fixture
def clock() -> SettableClock:
    """One clock for the process and its ledger."""
    return SettableClock()


@pytest.fixture
def ledger(clock: SettableClock) -> Away:
    return Away(clock)


@pytest.fixture
def leases(ledger: Away, clock: SettableClock) -> Iterator[Leases]:
    leases = Leases(lambda: ledger, LONG, clock=clock)
    yield leases
    ledger.away = False
    leases.close()


def ids(ledger: MemoryLedger) -> set[str]:
    return set(ledger.tables.leases)


# -- whom they belong to -------------------------------------------------------------------------


def test_a_lease_tells_who_holds_it(leases: Leases, ledger: Away) -> None:
    """Kind, process, and the nonce that tells containers apart."""
    lease = leases.acquire()
    row = ledger.tables.leases[lease.id]
    assert (row.owner.kind, row.owner.pid, row.owner.process) == ("worker", os.getpid(), PROCESS)


def test_whoever_executes_something_has_a_lease_alone(leases: Leases, ledger: Away) -> None:
    """A nested execution takes another one."""
    outer, inner = leases.acquire(), leases.acquire()
    assert outer.id != inner.id
    assert ids(ledger) == {outer.id, inner.id}


def test_threads_do_not_share_a_lease(leases: Leases, ledger: Away) -> None:
    """Twenty at once, from a pool with some free ones."""
    for lease in [leases.acquire() for _ in range(5)]:
        leases.give_back(lease)
    gate = threading.Barrier(20)

    def take(_: int) -> str:
        gate.wait(30)
        return leases.acquire().id

    with ThreadPoolExecutor(20) as pool:
        taken = list(pool.map(take, range(20)))
    assert len(set(taken)) == 20
    assert ids(ledger) == set(taken)


def test_a_lease_that_was_given_back_is_used_again(leases: Leases, ledger: Away) -> None:
    """Without a statement: a claim does not pay for a registration each time."""
    lease = leases.acquire()
    leases.give_back(lease)
    ledger.away = True
    assert leases.acquire() is lease


def test_without_its_ledger_there_is_no_lease(leases: Leases, ledger: Away) -> None:
    """The error says so, and the next try can succeed."""
    ledger.away = True
    with pytest.raises(LedgerUnavailable):
        leases.acquire()
    ledger.away = False
    assert leases.acquire().trusted_for > 0


# -- how long they are trusted -------------------------------------------------------------------


def test_a_lease_is_trusted_for_less_than_it_lasts(leases: Leases, clock: SettableClock) -> None:
    """Trust ends before anybody may bury the lease."""
    lease = leases.acquire()
    assert lease.trusted_for == pytest.approx(TRUST)
    clock.advance(TRUST)
    assert lease.trusted_for == pytest.approx(0, abs=1e-6)
    clock.advance(LONG)
    assert lease.trusted_for < 0


def test_trust_counts_from_the_start_of_a_statement(
    leases: Leases, ledger: Away, clock: SettableClock
) -> None:
    """The database may have counted from any moment until the answer: from the first one."""
    ledger.delay = lambda: clock.advance(100)
    lease = leases.acquire()
    assert lease.trusted_for == pytest.approx(TRUST - 100)
    leases.renew_all(ledger)
    assert lease.trusted_for == pytest.approx(TRUST - 100)


def test_all_leases_are_renewed(leases: Leases, ledger: Away, clock: SettableClock) -> None:
    """Those of bodies and the free ones."""
    held, idle = leases.acquire(), leases.acquire()
    leases.give_back(idle)
    clock.advance(1000)
    leases.renew_all(ledger)
    for lease in (held, idle):
        assert lease.trusted_for == pytest.approx(TRUST)
        assert (ledger.tables.leases[lease.id].expires_at - clock.now()).total_seconds() == LONG


def test_a_renewal_without_an_answer_leaves_trust_to_run_out(
    leases: Leases, ledger: Away, clock: SettableClock
) -> None:
    """It is not lost: the next renewal may come in time."""
    lease = leases.acquire()
    clock.advance(1000)
    ledger.away = True
    with pytest.raises(LedgerUnavailable):
        leases.renew_all(ledger)
    assert lease.trusted_for == pytest.approx(TRUST - 1000)
    ledger.away = False
    leases.renew_all(ledger)
    assert lease.trusted_for == pytest.approx(TRUST)


def test_an_abandoned_lease_is_neither_trusted_nor_renewed(
    leases: Leases, ledger: Away, clock: SettableClock
) -> None:
    """Whatever it may own becomes free with its end."""
    lease = leases.acquire()
    ends = ledger.tables.leases[lease.id].expires_at
    leases.abandon(lease)
    assert lease.trusted_for == 0.0
    clock.advance(1000)
    leases.renew_all(ledger)
    assert ledger.tables.leases[lease.id].expires_at == ends
    leases.give_back(lease)
    assert leases.acquire() is not lease


def test_a_spent_lease_is_renewed_until_it_is_given_back(leases: Leases, ledger: Away) -> None:
    lease = leases.acquire()
    lease.spent = True
    assert lease.trusted_for > 0
    leases.give_back(lease)
    assert lease.trusted_for == 0.0
    assert leases.acquire() is not lease


# -- in doubt ------------------------------------------------------------------------------------


def test_what_is_in_doubt_is_taken_back_at_once(leases: Leases, ledger: Away) -> None:
    """Not when the lease has ended, in an hour; and first what it may own."""
    held, lease = leases.acquire(), leases.acquire()
    seen: list[set[str]] = []
    leases.take_back(lease, lambda given: seen.append(ids(ledger)))
    assert lease.trusted_for == 0.0
    wait_until(lambda: ids(ledger) == {held.id})
    assert seen == [{held.id, lease.id}]
    leases.give_back(lease)
    assert leases.acquire() is not lease


def test_what_is_in_doubt_is_taken_back_when_the_ledger_answers(
    leases: Leases, ledger: Away
) -> None:
    """Nor do others wait for it meanwhile."""
    held, lease = leases.acquire(), leases.acquire()
    ledger.away = True
    leases.take_back(lease)
    wait_until(lambda: ledger.asked > 0)
    leases.give_back(held)
    assert leases.acquire() is held
    assert ids(ledger) == {held.id, lease.id}
    ledger.away = False
    wait_until(lambda: ids(ledger) == {held.id})


def test_a_renewal_does_not_wait_for_what_is_in_doubt(
    leases: Leases, ledger: Away, clock: SettableClock
) -> None:
    """A table of runs that is locked for an hour must not end the leases of bodies."""
    held, lease = leases.acquire(), leases.acquire()
    locked = threading.Event()

    def wait(given: object) -> None:
        locked.wait(60)

    leases.take_back(lease, wait)
    clock.advance(1000)
    leases.renew_all(ledger)
    assert held.trusted_for == pytest.approx(TRUST)
    locked.set()


def test_what_the_ledger_refuses_to_take_back_is_left_to_end(
    leases: Leases, ledger: Away, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, and told: what comes after it is taken back all the same."""
    bad, good = leases.acquire(), leases.acquire()

    def refuse(given: object) -> None:
        raise LedgerError("the ledger cannot take a value")

    leases.take_back(bad, refuse)
    leases.take_back(good)
    wait_until(lambda: ids(ledger) == {bad.id})
    (record,) = [it for it in caplog.records if getattr(it, "action", "") == "ledger_lost"]
    assert "cannot take a value" in record.getMessage()
    leases.acquire()


def test_what_is_in_doubt_is_left_alone_after_its_lease(
    leases: Leases, ledger: Away, clock: SettableClock
) -> None:
    lease = leases.acquire()
    ledger.away = True
    leases.take_back(lease)
    wait_until(lambda: ledger.asked > 0)
    clock.advance(LONG)
    wait_until(lambda: not leases._doubts._has_thread)
    assert leases._doubts._waiting == []


def test_a_clean_exit_takes_back_what_is_in_doubt(leases: Leases, ledger: Away) -> None:
    """Though a thread is about it: that ends with the process."""
    lease, another = leases.acquire(), leases.acquire()
    begun, may_go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def undo(given: object) -> None:
        if not begun.is_set():
            begun.set()
            may_go_on.wait(60)
        done.append("undone")

    leases.take_back(lease, undo)
    assert begun.wait(60)
    leases.take_back(another)
    leases.close()
    assert ids(ledger) == set()
    assert done == ["undone"]
    may_go_on.set()
    wait_until(lambda: not leases._doubts._has_thread)


def test_without_another_thread_it_ends_by_itself(
    leases: Leases, ledger: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(function: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(doubts, "start_real_thread", refuse)
        first = leases.acquire()
        leases.take_back(first)
        assert ids(ledger) == {first.id}
    second = leases.acquire()
    leases.take_back(second)
    wait_until(lambda: ids(ledger) == set())


# -- how they end --------------------------------------------------------------------------------


def test_a_lease_that_ended_is_lost_for_ever(
    leases: Leases, ledger: Away, clock: SettableClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Not renewed in time, it is buried, told of, and never used again."""
    lease = leases.acquire()
    clock.advance(LONG + 1)
    with caplog.at_level(logging.WARNING, "celery_idem"):
        leases.renew_all(ledger)
        leases.renew_all(ledger)
    assert lease.lost
    assert lease.trusted_for == 0.0
    assert [record.getMessage() for record in caplog.records] == [
        f"Lease {lease.id} is lost: it had ended when it was to be renewed"
    ]
    assert ids(ledger) == set()
    leases.give_back(lease)
    assert leases.acquire() is not lease


def test_a_free_lease_of_a_process_that_slept_is_renewed(
    leases: Leases, ledger: Away, clock: SettableClock
) -> None:
    """No longer trusted but not ended: the database is asked before it is used."""
    lease = leases.acquire()
    leases.give_back(lease)
    clock.advance(TRUST + 1)
    assert leases.acquire() is lease
    assert lease.trusted_for == pytest.approx(TRUST)


def test_a_free_lease_that_ended_is_replaced(
    leases: Leases, ledger: Away, clock: SettableClock
) -> None:
    """The machine slept for longer than a lease."""
    old = [leases.acquire() for _ in range(3)]
    for lease in old:
        leases.give_back(lease)
    clock.advance(LONG + 1)
    new = leases.acquire()
    assert new not in old
    assert all(lease.lost for lease in old)
    assert ids(ledger) == {new.id}


def test_a_clean_exit_deletes_the_free_leases(leases: Leases, ledger: Away) -> None:
    """Those of bodies that still run are kept, and go with the next exit."""
    held, idle = leases.acquire(), leases.acquire()
    leases.give_back(idle)
    leases.close()
    assert ids(ledger) == {held.id}
    leases.give_back(held)
    leases.close()
    assert ids(ledger) == set()


def test_a_clean_exit_without_the_ledger_is_quiet(leases: Leases, ledger: Away) -> None:
    """The leases end by themselves."""
    leases.give_back(leases.acquire())
    ledger.away = True
    leases.close()
    assert len(ids(ledger)) == 1


def test_after_a_close_leases_can_be_had_again(leases: Leases, ledger: Away) -> None:
    """A worker's parent closes when it stops, and a late body may still come."""
    leases.give_back(leases.acquire())
    leases.close()
    lease = leases.acquire()
    assert ids(ledger) == {lease.id}


# -- the heartbeat -------------------------------------------------------------------------------


@pytest.fixture
def beating() -> Iterator[tuple[Leases, Away, list[Away]]]:
    """Leases of half a second by the system's clock; the ledger; what the heartbeat has made."""
    ledger, made = Away(), list[Away]()

    def make() -> Away:
        made.append(ledger)
        return ledger

    leases = Leases(make, 0.5)
    yield leases, ledger, made
    ledger.away = False
    leases.close()


def test_the_heartbeat_renews(beating: tuple[Leases, Away, list[Away]]) -> None:
    """A lease is held for as long as somebody wants it; by a ledger of the heartbeat's own."""
    leases, ledger, made = beating
    assert len(made) == 1
    lease = leases.acquire()
    ends = ledger.tables.leases[lease.id].expires_at
    wait_until(lambda: ledger.tables.leases[lease.id].expires_at > ends)
    assert len(made) == 2


def test_the_heartbeat_goes_on_after_an_outage(
    beating: tuple[Leases, Away, list[Away]], caplog: pytest.LogCaptureFixture
) -> None:
    """It tells once that the ledger is away, and once that it is there again."""
    leases, ledger, _ = beating
    with caplog.at_level(logging.WARNING, "celery_idem"):
        leases.give_back(leases.acquire())
        ledger.away = True
        wait_until(lambda: "leases are not renewed" in caplog.text)
        ledger.away = False
        wait_until(lambda: "the ledger answers again" in caplog.text)
    assert caplog.text.count("leases are not renewed") == 1
    assert caplog.text.count("the ledger answers again") == 1
    assert leases.acquire().trusted_for > 0


def test_the_heartbeat_ends_with_the_last_lease(beating: tuple[Leases, Away, list[Away]]) -> None:
    """A closed process leaves no thread that writes; one with a body at work keeps it."""
    leases, ledger, _ = beating
    lease = leases.acquire()
    leases.close()
    ends = ledger.tables.leases[lease.id].expires_at
    wait_until(lambda: ledger.tables.leases[lease.id].expires_at > ends)
    assert ledger.closed == 1
    leases.give_back(lease)
    leases.close()
    assert ids(ledger) == set()
    # Once by each close, and once by the thread at its end.
    wait_until(lambda: ledger.closed == 3)
