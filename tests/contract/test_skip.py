"""A message whose run is not to begin any more skips what nobody has begun, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from celery_idem.keys import RunKey
from celery_idem.ledger import Retry
from celery_idem.run import TOO_LATE, ClaimOutcome, ClaimRequest, RunState
from tests.contract.stores import FIRST, Store, fresh, new_slots

UNBEGUN = (None, RunState.SCHEDULED, RunState.EMITTED)
WHY = "it was not started before it expired"


@pytest.mark.parametrize("state", UNBEGUN, ids=str)
def test_a_slot_that_is_too_late_to_be_started_is_skipped(
    store: Store, state: RunState | None
) -> None:
    key = store.in_state(state)
    request = of_its_own(store, key, late=True)
    assert store.ledger.claim(request).outcome is ClaimOutcome.SKIPPED
    assert (store.row(key).state, store.row(key).error) == (RunState.SKIPPED, TOO_LATE)


def test_a_retry_has_the_deadline_of_its_message(store: Store) -> None:
    """And not that of its slot, which was started in time."""
    (slot,) = new_slots(1)
    store.ledger.insert_slots([replace(slot, deadline=FIRST)], fresh("batch"))
    for deadline in (FIRST + timedelta(days=1), None):
        claim = store.claim(slot.key, retries=0 if deadline else 1)
        retries = 1 if deadline else 2
        store.ledger.retry(slot.key, claim.fence, Retry(retries, 0.0, None, deadline=deadline))
        assert store.row(slot.key).deadline == deadline


def late(store: Store, key: RunKey, retries: int = 0) -> ClaimRequest:
    """A claim by a message that came too late."""
    return of_its_own(store, key, retries=retries, expired=True)


def of_its_own(store: Store, key: RunKey, **more: object) -> ClaimRequest:
    """By a copy of the message whose run it is."""
    row = store.ledger.read(key)
    request = store.request(key)
    task_id = request.task_id if row is None or row.task_id is None else row.task_id
    return replace(request, task_id=task_id, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", UNBEGUN, ids=str)
def test_a_run_that_nobody_has_begun_is_skipped(store: Store, state: RunState | None) -> None:
    key = store.in_state(state)
    request = late(store, key)
    assert store.ledger.claim(request).outcome is ClaimOutcome.SKIPPED
    row = store.row(key)
    assert (row.state, row.error, row.task_id) == (RunState.SKIPPED, WHY, request.task_id)
    assert (row.fence, row.lease_id, row.started_at) == (0, None, None)
    assert row.finished_at is not None
    assert store.claim(key).outcome is ClaimOutcome.FINISHED


def test_a_retry_is_skipped_by_its_own_message_alone(store: Store) -> None:
    key, claim = store.owned()
    store.ledger.retry(key, claim.fence, Retry(1, 0.0, None))
    assert store.ledger.claim(late(store, key)).outcome is ClaimOutcome.RETRYING
    assert store.ledger.claim(late(store, key, 1)).outcome is ClaimOutcome.SKIPPED
    assert (store.row(key).state, store.row(key).fence) == (RunState.SKIPPED, 1)


def test_a_skip_whose_answer_was_lost_is_recognised(store: Store) -> None:
    key = store.in_state(RunState.SCHEDULED)
    request = late(store, key)
    assert store.ledger.try_skip(request, WHY)
    assert store.ledger.claim(request).outcome is ClaimOutcome.SKIPPED
    assert store.ledger.claim(late(store, key)).outcome is ClaimOutcome.FINISHED


def test_a_run_that_has_begun_in_time_goes_on(store: Store) -> None:
    """Its owner is at work; or it is gone, and this message is what is left of the run."""
    lease = store.lease()
    key, _ = store.owned(lease=lease)
    assert store.ledger.claim(late(store, key)).outcome is ClaimOutcome.RUNNING
    assert store.row(key).lease_id == lease
    store.ledger.release([lease])
    claim = store.ledger.claim(late(store, key))
    assert (claim.outcome, claim.fence) == (ClaimOutcome.CLAIMED, 2)


def test_a_run_that_was_revoked_does_not_survive_its_owner(store: Store) -> None:
    key, _ = store.orphan()
    claim = store.ledger.claim(of_its_own(store, key, revoked=True))
    assert (claim.outcome, store.row(key).state) == (ClaimOutcome.KILLED, RunState.DEAD)
    assert store.row(key).error == "its owner is gone, and it was revoked"
