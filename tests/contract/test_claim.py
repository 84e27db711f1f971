"""A claim: one owner, told apart from copies, and recognised after a lost answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celery_idem.errors import LedgerUnavailable
from celery_idem.keys import RunKey
from celery_idem.ledger import Ledger, Retry
from celery_idem.ledger.memory import MemoryLedger
from celery_idem.run import Claim, ClaimOutcome, ClaimRequest, RunRow, RunState
from tests.contract.stores import Store, fresh


def test_the_first_claim_makes_the_run(store: Store) -> None:
    request = store.request(RunKey("shop:daily"))
    assert store.ledger.claim(request) == Claim(ClaimOutcome.CLAIMED, fence=1, attempts=1)
    row = store.row(request.key)
    assert (row.state, row.fence, row.attempts, row.retries) == (RunState.RUNNING, 1, 1, 0)
    assert (row.lease_id, row.claim_id) == (request.lease_id, request.claim_id)
    assert (row.task, row.entry, row.task_id) == (request.task, request.entry, request.task_id)
    assert row.namespace == request.namespace
    assert row.started_at is not None and row.finished_at is None
    assert row.lease_seconds is not None and row.lease_seconds > 0


def test_a_copy_of_a_running_run_is_told_so(store: Store) -> None:
    key, claim = store.owned()
    copy = store.claim(key)
    assert copy.outcome is ClaimOutcome.RUNNING
    assert copy.seen is not None and copy.seen.fence == claim.fence
    assert store.row(key).fence == claim.fence


def test_a_claim_whose_answer_was_lost_is_recognised_by_its_repetition(store: Store) -> None:
    request = store.request(RunKey(fresh("run")))
    first = store.ledger.claim(request)
    assert store.ledger.claim(request) == first
    assert store.row(request.key).fence == first.fence


def test_a_scheduled_slot_is_claimed(store: Store) -> None:
    (key,) = store.scheduled()
    assert store.claim(key) == Claim(ClaimOutcome.CLAIMED, fence=1, attempts=1)


def test_a_slot_published_once_is_claimed_by_a_task_that_claims_after_all(store: Store) -> None:
    key = store.in_state(RunState.EMITTED)
    assert store.claim(key).outcome is ClaimOutcome.CLAIMED


@pytest.mark.parametrize("retries", [0, 2])
def test_a_message_of_another_retry_does_not_claim_the_awaited_one(
    store: Store, retries: int
) -> None:
    key = store.in_state(RunState.RETRYING)
    claim = store.claim(key, retries=retries)
    assert claim.outcome is ClaimOutcome.RETRYING
    assert claim.seen is not None and claim.seen.retries == 1
    assert store.row(key).state is RunState.RETRYING


def test_the_awaited_retry_is_claimed_with_the_next_fence(store: Store) -> None:
    key = store.in_state(RunState.RETRYING)
    assert store.claim(key, retries=1) == Claim(ClaimOutcome.CLAIMED, fence=2, attempts=1)
    assert store.row(key).retries == 1


def test_a_message_older_than_the_scheduled_retry_does_not_claim_it(store: Store) -> None:
    key = store.in_state(RunState.RETRYING)
    claim = store.claim(key, retries=1)
    assert store.ledger.give_back(key, claim.fence, "put back", 60.0)
    assert store.claim(key, retries=0).outcome is ClaimOutcome.RETRYING
    assert store.claim(key, retries=1).outcome is ClaimOutcome.CLAIMED


def test_attempts_count_the_claims_of_one_retry_number(store: Store) -> None:
    (key,) = store.scheduled()
    claim = store.claim(key)
    store.ledger.give_back(key, claim.fence, "put back", 60.0)
    later = store.claim(key, retries=1)
    assert (later.fence, later.attempts) == (2, 1)


@pytest.mark.parametrize(
    "state", [state for state in RunState if state.final], ids=lambda state: state.label
)
def test_a_finished_run_is_never_claimed(store: Store, state: RunState) -> None:
    key = store.in_state(state)
    before = store.stand(key)
    for retries in (0, 1, 2):
        claim = store.claim(key, retries=retries)
        assert claim.outcome is ClaimOutcome.FINISHED
        assert claim.seen is not None and replace(claim.seen, lease_seconds=None) == before
    assert store.stand(key) == before


def test_a_claim_that_was_ended_does_not_revive_by_its_repetition(store: Store) -> None:
    """The repeated statement of a lost connection may arrive long after."""
    request = store.request(RunKey(fresh("run")))
    claim = store.ledger.claim(request)
    assert store.ledger.give_back(request.key, claim.fence, "put back", 60.0)
    assert store.ledger.try_claim(request) is None
    assert store.ledger.claim(request).outcome is not ClaimOutcome.CLAIMED
    assert store.row(request.key).state is RunState.SCHEDULED
    assert store.claim(request.key).outcome is ClaimOutcome.CLAIMED


def test_a_retry_claimed_under_the_same_lease_is_a_claim_of_its_own(store: Store) -> None:
    """Leases are pooled: the row must not take its own former lease for the new claim's."""
    lease = store.lease()
    key, claim = store.owned(lease=lease)
    store.ledger.retry(key, claim.fence, Retry(1, 0.0, None))
    assert store.row(key).lease_id is None
    assert store.claim(key, lease=lease, retries=0).outcome is ClaimOutcome.RETRYING
    assert store.claim(key, lease=lease, retries=1).fence == 2


def test_a_claim_updates_who_executes_the_run(store: Store) -> None:
    (key,) = store.scheduled()
    request = replace(store.request(key), task="shop.bill_v2", task_id="another")
    store.ledger.claim(request)
    row = store.row(key)
    assert (row.task, row.task_id) == ("shop.bill_v2", "another")


class Restless(MemoryLedger):
    """Somebody else changes the row between any two statements."""

    def try_claim(self, request: ClaimRequest) -> tuple[int, int] | None:
        return None

    def read(self, key: RunKey) -> RunRow | None:
        return None


def test_a_row_that_never_stands_still_is_no_answer() -> None:
    """Taken for a duplicate, the only message of a run would be dropped."""
    ledger: Ledger = Restless()
    request = Store("memory", MemoryLedger()).request(RunKey("shop:x"))
    with pytest.raises(LedgerUnavailable, match="shop:x was changed by others"):
        ledger.claim(request)
