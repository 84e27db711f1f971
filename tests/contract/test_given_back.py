"""Runs that wait, given back by a worker that could not begin them."""

from __future__ import annotations

from datetime import timedelta

from celery_idem.keys import RunKey
from celery_idem.run import RunState
from tests.contract.stores import NAMESPACE, Store


def waiting(store: Store, key: RunKey, namespace: str = NAMESPACE) -> list[RunKey]:
    """Those that were given back and come before this run."""
    return sorted(row.key for row in store.ledger.given_back_before(namespace, key.slot))


def test_runs_that_were_given_back_are_seen_by_later_slots_alone(store: Store) -> None:
    first, second, third = store.scheduled(3)
    for key in (first, second, third):
        assert waiting(store, key) == [], "nobody has begun any"
    _, claim = store.owned(second)
    assert waiting(store, third) == [], "it goes on"
    assert store.ledger.give_back(second, claim.fence, "the lock is held", 60.0)
    assert waiting(store, third) == [second]
    assert [waiting(store, key) for key in (first, second)] == [[], []]
    assert waiting(store, third, "another") == []
    _, claim = store.owned(second)
    store.ledger.end(second, claim.fence, RunState.SUCCEEDED)
    assert waiting(store, third) == []


def test_messages_without_a_slot_do_not_count(store: Store) -> None:
    (slot,) = store.scheduled()
    key, claim = store.owned()
    assert store.ledger.give_back(key, claim.fence, "the lock is held", 60.0)
    assert waiting(store, RunKey("later", slot.slot + timedelta(days=1))) == []
