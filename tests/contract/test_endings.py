"""How an owner ends its claim: with its own fence, once, and with a repetition that is no error."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from celery_idem.errors import IdemError, LeaseLost, ResultLost
from celery_idem.keys import RunKey
from celery_idem.ledger import Ledger, Retry, Unsent
from celery_idem.run import ClaimOutcome, RunState
from tests.contract.stores import Store

ENDS = (RunState.SUCCEEDED, RunState.FAILED)

Ending = Callable[[Ledger, RunKey, int], object]


def _retry(ledger: Ledger, key: RunKey, fence: int) -> None:
    ledger.retry(key, fence, Retry(1, 5.0, '{"task": "shop.bill"}'))


def _end(state: RunState) -> Ending:
    return lambda ledger, key, fence: ledger.end(key, fence, state)


ENDINGS = {"retry": _retry, **{state.label: _end(state) for state in ENDS}}
each_ending = pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())


@pytest.mark.parametrize("state", ENDS, ids=lambda state: state.label)
def test_an_owner_ends_its_run(store: Store, state: RunState) -> None:
    key, claim = store.owned()
    store.ledger.end(key, claim.fence, state, "because")
    row = store.row(key)
    assert (row.state, row.error, row.fence) == (state, "because", claim.fence)
    assert row.finished_at is not None and row.started_at is not None
    assert row.finished_at >= row.started_at


def test_an_owner_asks_for_a_retry(store: Store) -> None:
    key, claim = store.owned()
    before = store.ledger.now()
    _retry(store.ledger, key, claim.fence)
    row = store.row(key)
    assert (row.state, row.retries, row.attempts) == (RunState.RETRYING, 1, 0)
    assert row.message == '{"task": "shop.bill"}'
    assert row.due_at is not None
    assert 5.0 <= (row.due_at - before).total_seconds() < 30.0


@each_ending
def test_an_ending_with_an_old_fence_is_refused(store: Store, ending: Ending) -> None:
    key, first = store.orphan()
    second = store.claim(key)
    before = store.stand(key)
    for fence in (first.fence, second.fence + 1, 0):
        with pytest.raises(LeaseLost) as caught:
            ending(store.ledger, key, fence)
        assert (caught.value.key, caught.value.fence) == (key.text, fence)
        assert f"running at fence {second.fence}" in str(caught.value)
    assert not store.ledger.give_back(key, first.fence, "late", 1.0)
    after = store.stand(key)
    assert (after.state, after.fence, after.error) == (before.state, before.fence, before.error)


@each_ending
def test_an_ending_repeated_after_a_lost_answer_is_no_error(store: Store, ending: Ending) -> None:
    key, claim = store.owned()
    ending(store.ledger, key, claim.fence)
    before = store.stand(key)
    ending(store.ledger, key, claim.fence)
    assert store.stand(key) == before


def test_an_ending_does_not_replace_another_of_the_same_claim(store: Store) -> None:
    for first in ENDINGS.values():
        key, claim = store.owned()
        first(store.ledger, key, claim.fence)
        before = store.stand(key)
        for second in ENDINGS.values():
            if second is first:
                continue
            # By a transaction of the body, which does not know that it was committed.
            committed = before.state is RunState.SUCCEEDED
            error: type[IdemError] = ResultLost if committed else LeaseLost
            text = "has ended" if committed else f"has it {before.state.label} at fence 1"
            with pytest.raises(error, match=text):
                second(store.ledger, key, claim.fence)
        assert not store.ledger.give_back(key, claim.fence, "late", 1.0)
        assert store.stand(key) == before


@each_ending
def test_an_unknown_run_cannot_be_ended(store: Store, ending: Ending) -> None:
    with pytest.raises(LeaseLost, match="not in the ledger any more"):
        ending(store.ledger, RunKey("shop:never"), 1)
    assert store.ledger.read(RunKey("shop:never")) is None
    assert not store.ledger.give_back(RunKey("shop:never"), 1, "late", 1.0)


def test_an_ending_names_the_slot_too(store: Store) -> None:
    (key,) = store.scheduled()
    claim = store.claim(key)
    other = RunKey(key.text)
    assert store.claim(other).fence == claim.fence
    store.ledger.end(other, claim.fence, RunState.FAILED)
    assert store.row(key).state is RunState.RUNNING


def test_a_claim_is_given_back(store: Store) -> None:
    key, claim = store.owned()
    assert store.ledger.give_back(key, claim.fence, "put back", 0.0)
    before = store.stand(key)
    assert (before.state, before.attempts, before.error) == (RunState.SCHEDULED, 0, "put back")
    assert store.ledger.give_back(key, claim.fence, "put back", 0.0)
    assert store.stand(key) == before
    assert store.claim(key).fence == claim.fence + 1
    assert not store.ledger.give_back(key, claim.fence, "put back", 0.0)


def test_success_clears_what_was_said_of_earlier_claims(store: Store) -> None:
    key, claim = store.owned()
    store.ledger.give_back(key, claim.fence, "put back", 0.0)
    claim = store.claim(key)
    store.ledger.end(key, claim.fence, RunState.SUCCEEDED)
    assert store.row(key).error is None


def test_a_copy_of_an_ended_run_is_told_how_it_ended(store: Store) -> None:
    key, claim = store.owned()
    store.ledger.end(key, claim.fence, RunState.FAILED, "ValueError: no")
    copy = store.claim(key)
    assert copy.outcome is ClaimOutcome.FINISHED
    assert copy.seen is not None and copy.seen.error == "ValueError: no"


# -- results that are kept -----------------------------------------------------------------------


def test_a_stored_result_stays(store: Store) -> None:
    """Also when the callbacks, which have a result kept for a while, have been sent."""
    for unsent in (None, Unsent("[1]")):
        key, claim = store.owned()
        fence = claim.fence
        store.ledger.end(key, fence, RunState.SUCCEEDED, unsent=unsent, stored="[1]")
        assert store.row(key).result == "[1]"
        assert store.row(key).callbacks_pending == (unsent is not None)
        store.ledger.callbacks_sent(key, fence, stored=True)
        row = store.row(key)
        assert (row.state, row.result, row.callbacks_pending) == (RunState.SUCCEEDED, "[1]", False)


def test_a_result_is_not_stored_unless_that_is_asked_for(store: Store) -> None:
    key, claim = store.owned()
    store.ledger.end(key, claim.fence, RunState.SUCCEEDED, unsent=Unsent("[1]"))
    store.ledger.callbacks_sent(key, claim.fence)
    assert store.row(key).result is None
    store.ledger.keep_result(key, claim.fence, "[2]")
    assert store.row(key).result is None


def test_a_result_may_be_stored_after_the_end_by_its_owner_alone(store: Store) -> None:
    key, claim = store.owned()
    store.ledger.keep_result(key, claim.fence, "[0]", stored=True)
    assert store.row(key).result is None, "it has not ended"
    store.ledger.end(key, claim.fence, RunState.SUCCEEDED)
    store.ledger.keep_result(key, claim.fence + 1, "[1]", stored=True)
    assert store.row(key).result is None
    store.ledger.keep_result(key, claim.fence, "[2]", stored=True)
    assert store.row(key).result == "[2]"
