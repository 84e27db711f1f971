"""One key, other arguments: a run is executed with those with which it was claimed first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celery_idem.keys import RunKey
from celery_idem.ledger import Retry
from celery_idem.run import ClaimOutcome, ClaimRequest, RunState
from tests.contract.stores import LONG, Store, fresh


def asked(store: Store, key: RunKey, payload: str | None, **more: object) -> ClaimRequest:
    return replace(store.request(key), payload=payload, **more)  # type: ignore[arg-type]


def given_back(store: Store, payload: str | None) -> RunKey:
    """A run that was claimed with this payload, and is free again."""
    key = RunKey(fresh("run"))
    claim = store.ledger.claim(asked(store, key, payload))
    assert store.row(key).payload == payload
    store.ledger.give_back(key, claim.fence, "it was put back", LONG)
    return key


def orphan(store: Store, payload: str | None) -> RunKey:
    key = RunKey(fresh("run"))
    request = asked(store, key, payload)
    store.ledger.claim(request)
    store.ledger.release([request.lease_id])
    return key


@pytest.mark.parametrize("made", [given_back, orphan])
@pytest.mark.parametrize("payload", ["a", None])
def test_the_same_payload_or_none_claims(store: Store, made: object, payload: str | None) -> None:
    assert callable(made)
    for first in ("a", None):
        key = made(store, first)
        claim = store.ledger.claim(asked(store, key, payload))
        assert claim.outcome is ClaimOutcome.CLAIMED
        told = payload if made is given_back else None
        assert store.row(key).payload == (first or told), "it is that of the first claim"


def test_another_payload_claims_nothing(store: Store) -> None:
    key = given_back(store, "a")
    before = store.stand(key)
    claim = store.ledger.claim(asked(store, key, "b"))
    assert claim.outcome is ClaimOutcome.RETRYING
    assert claim.seen is not None and claim.seen.payload == "a"
    assert store.stand(key) == before


def test_another_payload_takes_nothing_over(store: Store) -> None:
    key = orphan(store, "a")
    before = store.stand(key)
    claim = store.ledger.claim(asked(store, key, "b"))
    assert claim.outcome is ClaimOutcome.RUNNING
    assert store.stand(key) == before
    assert store.ledger.claim(asked(store, key, "a")).outcome is ClaimOutcome.CLAIMED


def test_a_retry_is_claimed_whatever_its_arguments(store: Store) -> None:
    key = RunKey(fresh("run"))
    claim = store.ledger.claim(asked(store, key, "a"))
    store.ledger.retry(key, claim.fence, Retry(1, 0.0, None))
    again = store.ledger.claim(asked(store, key, None, retries=1))
    assert again.outcome is ClaimOutcome.CLAIMED


@pytest.mark.parametrize("why", ["expired", "late", "revoked"])
def test_a_message_that_is_not_to_begin_leaves_the_run_of_another_sender_alone(
    store: Store, why: str
) -> None:
    for made, outcome in ((given_back, ClaimOutcome.RETRYING), (orphan, ClaimOutcome.RUNNING)):
        key = made(store, "a")
        before = store.stand(key)
        claim = store.ledger.claim(asked(store, key, "a", **{why: True}))
        assert claim.outcome is outcome
        assert store.stand(key) == before
        # That of its own sender is another matter.
        own = asked(store, key, "a", **{why: True, "task_id": store.row(key).task_id})
        store.ledger.claim(own)
        skipped = made is given_back
        assert (store.row(key).state is RunState.SKIPPED) == skipped
