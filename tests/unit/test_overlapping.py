"""What becomes of a run whose entry's earlier run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta

import pytest

from celery_idem.errors import Contended
from celery_idem.keys import RunKey, Stamp
from celery_idem.lease import Lease, Leases
from celery_idem.ledger import NewSlot
from celery_idem.ledger.memory import MemoryLedger
from celery_idem.lock import Locks
from celery_idem.overlapping import alone
from celery_idem.policy import OnContended, Overlap
from celery_idem.run import UNANSWERED, ClaimRequest, Run
from tests.contract.stores import FIRST
from tests.contract.together import in_threads

NAMESPACE = "shop"


@pytest.fixture
def locks() -> Iterator[Locks]:
    leases = Leases(MemoryLedger, 3600.0)
    yield Locks(leases, NAMESPACE)
    leases.close()


def slot(number: int) -> RunKey:
    return RunKey.for_slot(NAMESPACE, "daily", FIRST + timedelta(days=number))


def run_of(locks: Locks, number: int, retries: int = 0, attempt: int = 1) -> Run:
    """A run that was just claimed."""
    ledger, key = locks.leases.ledger, slot(number)
    ledger.insert_slots([NewSlot(key, NAMESPACE, "daily", "bill")], "batch")
    lease = locks.leases.acquire()
    claim = ledger.claim(
        ClaimRequest(key, "bill", NAMESPACE, "daily", "task", 0, lease.id, f"claim of {key}")
    )
    return Run(key, "bill", claim.fence, attempt, retries, lease)


def enters(locks: Locks, run: Run, overlap: Overlap) -> Contended | None:
    """Whether another thread's run gets in; if not, what becomes of it."""

    def enter(_: int) -> Contended | None:
        try:
            with alone(Stamp(run.key, "daily", overlap=overlap), run, locks, NAMESPACE):
                return None
        except Contended as exc:
            return exc

    return in_threads(1, enter)[0]


def given_back(locks: Locks, run: Run) -> None:
    assert locks.leases.ledger.give_back(run.key, run.fence, "it waits", 60.0)


@pytest.fixture
def going(locks: Locks) -> Iterator[Run]:
    """A run that goes on."""
    run = run_of(locks, 1)
    with alone(Stamp(run.key, "daily", overlap=Overlap.SKIP), run, locks, NAMESPACE):
        yield run


def test_a_message_without_an_entry_is_nobodys_overlap(locks: Locks) -> None:
    run = run_of(locks, 1)
    with ExitStack() as stack:
        for stamp in (None, Stamp(run.key), Stamp(run.key, "daily")):
            stack.enter_context(alone(stamp, run, locks, NAMESPACE))
        assert not locks.leases.ledger.held_locks()


@pytest.mark.parametrize(
    ("overlap", "then"),
    [(Overlap.SKIP, OnContended.SKIP), (Overlap.BUFFER_ONE, OnContended.RETRY)],
)
def test_a_later_slot_does_not_begin(
    locks: Locks, going: Run, overlap: Overlap, then: OnContended
) -> None:
    found = enters(locks, run_of(locks, 2), overlap)
    assert found is not None and found.then == then
    assert str(found) == "an earlier run of entry 'daily' goes on"


@pytest.mark.parametrize("overlap", [Overlap.SKIP, Overlap.BUFFER_ONE])
@pytest.mark.parametrize("begun", [{"retries": 1}, {"attempt": 2}], ids=str)
def test_a_run_that_has_begun_before_waits(
    locks: Locks, going: Run, overlap: Overlap, begun: dict[str, int]
) -> None:
    """A retry of the one that goes on can be there before its first try has left."""
    given_back(locks, run_of(locks, 0))
    found = enters(locks, run_of(locks, 2, **begun), overlap)
    assert found is not None and found.then == OnContended.RETRY


def test_of_those_that_wait_the_later_is_skipped(locks: Locks, going: Run) -> None:
    given_back(locks, run_of(locks, 3))
    early, late = run_of(locks, 2), run_of(locks, 4)
    found = enters(locks, late, Overlap.BUFFER_ONE)
    assert found is not None and found.then == OnContended.SKIP
    assert str(found) == "an earlier run of entry 'daily' goes on, and one waits for it"
    found = enters(locks, early, Overlap.BUFFER_ONE)
    assert found is not None and found.then == OnContended.RETRY


def test_the_one_that_has_waited_comes_before_a_new_one(locks: Locks) -> None:
    first, second = run_of(locks, 1), run_of(locks, 2)
    given_back(locks, first)
    found = enters(locks, second, Overlap.BUFFER_ONE)
    assert found is not None and found.then == OnContended.RETRY
    assert "has waited for longer" in str(found)
    assert enters(locks, first, Overlap.BUFFER_ONE) is None


def test_the_one_that_looks_just_now_comes_before_a_new_one(locks: Locks) -> None:
    """It has an owner then, and the lock was not free a moment ago."""
    first, second = run_of(locks, 1), run_of(locks, 2)
    found = enters(locks, second, Overlap.BUFFER_ONE)
    assert found is not None and found.then == OnContended.RETRY
    assert enters(locks, first, Overlap.BUFFER_ONE) is None


def test_of_those_that_wait_for_one_without_the_lock_the_later_is_skipped(locks: Locks) -> None:
    """Its body began while the entry had no policy, for example."""
    run_of(locks, 1)
    given_back(locks, run_of(locks, 2))
    found = enters(locks, run_of(locks, 3), Overlap.BUFFER_ONE)
    assert found is not None and found.then == OnContended.SKIP


def test_nobody_waits_for_the_dead(locks: Locks) -> None:
    dead, second = run_of(locks, 1), run_of(locks, 2)
    assert isinstance(dead.tenure, Lease)
    locks.leases.ledger.release([dead.tenure.id])
    assert enters(locks, second, Overlap.BUFFER_ONE) is None


def test_whose_claim_was_not_answered_waits_for_nobody(locks: Locks) -> None:
    """Its message comes again and finds the lock as it is then; a later one need not wait."""
    first, second = run_of(locks, 1), run_of(locks, 2)
    assert locks.leases.ledger.give_back(first.key, first.fence, UNANSWERED, 60.0)
    assert enters(locks, second, Overlap.BUFFER_ONE) is None
