"""What happens to the run of an owner that is gone: only its buried lease opens it to others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celery_idem.errors import LeaseLost
from celery_idem.keys import RunKey
from celery_idem.run import ClaimOutcome, RunState
from tests.contract.stores import SHORT, Store, fresh


def test_an_expired_owner_is_buried_and_its_run_taken_over(store: Store) -> None:
    key, first = store.owned(lease=store.lease(SHORT))
    assert store.claim(key).outcome is ClaimOutcome.RUNNING
    store.let_pass(SHORT)
    second = store.claim(key)
    assert second.outcome is ClaimOutcome.CLAIMED and second.taken_over
    assert (second.fence, second.attempts) == (first.fence + 1, 2)


def test_a_run_whose_lease_is_gone_is_taken_over(store: Store) -> None:
    key, _ = store.orphan()
    assert store.row(key).lease_seconds is None
    claim = store.claim(key)
    assert claim.taken_over and claim.fence == 2


def test_takeover_needs_the_lease_to_be_gone_and_not_only_expired(store: Store) -> None:
    lease = store.lease(SHORT)
    key, _ = store.owned(lease=lease)
    store.let_pass(SHORT)
    seen = store.row(key)
    assert seen.lease_seconds is not None and seen.lease_seconds <= 0
    assert store.ledger.try_takeover(store.request(key), seen) is None
    assert not store.ledger.try_kill(seen, "died")
    store.ledger.bury(lease)
    assert store.ledger.try_takeover(store.request(key), seen) == (2, 2)


def test_takeover_of_a_live_run_is_refused(store: Store) -> None:
    key, claim = store.owned()
    assert store.ledger.try_takeover(store.request(key), store.row(key)) is None
    assert not store.ledger.try_kill(store.row(key), "died")
    assert store.row(key).fence == claim.fence


def test_of_two_that_saw_the_same_fence_one_takes_over(store: Store) -> None:
    key, _ = store.orphan()
    seen = store.row(key)
    assert store.ledger.try_takeover(store.request(key), seen) == (2, 2)
    store.ledger.release([store.row(key).lease_id or ""])
    assert store.ledger.try_takeover(store.request(key), seen) is None
    assert not store.ledger.try_kill(seen, "died")
    assert store.row(key).fence == 2


def test_a_takeover_whose_answer_was_lost_is_recognised(store: Store) -> None:
    key, _ = store.orphan()
    request = store.request(key)
    seen = store.row(key)
    won = store.ledger.try_takeover(request, seen)
    claim = store.ledger.claim(request)
    assert (claim.outcome, claim.fence) == (ClaimOutcome.CLAIMED, 2)
    assert won == (claim.fence, claim.attempts)


def test_the_former_owner_is_refused(store: Store) -> None:
    key, first = store.orphan()
    second = store.claim(key)
    with pytest.raises(LeaseLost):
        store.ledger.end(key, first.fence, RunState.SUCCEEDED)
    store.ledger.end(key, second.fence, RunState.SUCCEEDED)


def test_after_max_attempts_the_run_is_dead(store: Store) -> None:
    key = RunKey(fresh("run"))
    for attempt in (1, 2):
        lease = store.lease()
        request = replace(store.request(key, lease=lease), max_attempts=2)
        assert store.ledger.claim(request).attempts == attempt
        store.ledger.release([lease])
    claim = store.ledger.claim(replace(store.request(key), max_attempts=2))
    assert claim.outcome is ClaimOutcome.KILLED
    row = store.row(key)
    assert row.state is RunState.DEAD and row.finished_at is not None
    assert row.error == claim.error == "its owners are gone after 2 attempts"
    assert store.claim(key).outcome is ClaimOutcome.FINISHED


def test_a_claim_given_back_is_no_attempt_of_a_dead_owner(store: Store) -> None:
    key = RunKey(fresh("run"))
    for _ in range(3):
        claim = store.ledger.claim(replace(store.request(key), max_attempts=2))
        assert claim.attempts == 1
        store.ledger.give_back(key, claim.fence, "put back", 60.0)
    store.orphan(key)
    assert store.ledger.claim(replace(store.request(key), max_attempts=2)).taken_over


def test_a_task_that_is_abandoned_on_a_crash_never_runs_again(store: Store) -> None:
    key, _ = store.orphan()
    claim = store.ledger.claim(replace(store.request(key), abandon_on_crash=True))
    assert claim.outcome is ClaimOutcome.KILLED
    assert store.row(key).state is RunState.DEAD
    assert store.claim(key).outcome is ClaimOutcome.FINISHED


def test_a_message_of_an_earlier_retry_does_not_take_over(store: Store) -> None:
    key = store.in_state(RunState.RETRYING)
    lease = store.lease()
    store.claim(key, lease=lease, retries=1)
    store.ledger.release([lease])
    assert store.claim(key, retries=0).outcome is ClaimOutcome.RUNNING
    assert store.claim(key, retries=1).taken_over


def test_a_message_of_a_later_retry_takes_over_as_the_first_attempt(store: Store) -> None:
    key, _ = store.orphan()
    claim = store.claim(key, retries=3)
    assert (claim.taken_over, claim.attempts, store.row(key).retries) == (True, 1, 3)


def test_a_parent_fails_the_run_of_its_own_dead_child(store: Store) -> None:
    key, claim = store.owned(lease=store.lease(pid=41, process="mine"))
    for process, pid in (("mine", 42), ("other", 41)):
        assert not store.ledger.fail_of_child(key, process, pid, "time limit")
    assert store.row(key).state is RunState.RUNNING
    assert store.ledger.fail_of_child(key, "mine", 41, "time limit")
    row = store.stand(key)
    assert (row.state, row.error, row.fence) == (RunState.FAILED, "time limit", claim.fence)
    assert not store.ledger.fail_of_child(key, "mine", 41, "again")
    assert store.stand(key) == row


def test_a_parent_does_not_fail_a_run_that_went_on_elsewhere(store: Store) -> None:
    key, _ = store.owned(lease=store.lease(SHORT, pid=41, process="mine"))
    store.let_pass(SHORT)
    assert store.claim(key, lease=store.lease(pid=7, process="other")).taken_over
    assert not store.ledger.fail_of_child(key, "mine", 41, "time limit")
    assert store.row(key).state is RunState.RUNNING
