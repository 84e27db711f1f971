"""What a dead owner leaves: a body in its middle, callbacks that were not sent, a locked row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from sqlalchemy import create_engine, update
from sqlalchemy.pool import NullPool

from celery_idem.keys import RunKey
from celery_idem.ledger import HANDOVER, NewSlot, Retry, Unsent
from celery_idem.ledger.schema import runs
from celery_idem.run import ClaimOutcome, RunState
from tests.contract.stores import NAMESPACE, Store, fresh


def orphans(store: Store, batch: str | None = None, namespace: str = NAMESPACE) -> list[RunKey]:
    """The runs that a batch acquires."""
    batch = batch or fresh("batch")
    return [row.key for row in store.ledger.acquire_orphans(namespace, 100, batch)]


def ended(store: Store, result: str | None = "7") -> tuple[RunKey, int, str]:
    """A run whose callbacks are pending, its fence, and its owner's lease."""
    lease = store.lease()
    key, claim = store.owned(lease=lease)
    store.ledger.end(key, claim.fence, RunState.SUCCEEDED, unsent=Unsent(result))
    return key, claim.fence, lease


# -- runs that nobody owns ------------------------------------------------------------------------


def test_a_run_whose_owner_lives_is_no_orphan(store: Store) -> None:
    store.owned()
    ended(store)
    assert orphans(store) == []


def test_an_expired_lease_must_be_buried_first(store: Store) -> None:
    key, _ = store.owned(lease=store.lease(1.0))
    store.let_pass(2.0)
    assert orphans(store) == []
    assert store.ledger.bury_expired(100) == 1
    assert orphans(store) == [key]


def test_an_orphan_is_won_by_one_batch_and_again_after_its_grace(store: Store) -> None:
    key, _ = store.orphan()
    assert orphans(store, "first") == [key]
    assert orphans(store, "second") == []
    store.ledger.published([key], "first", 60.0)
    assert store.row(key).emit_count == 1
    store.let_pass(59.0)
    assert orphans(store) == []
    store.let_pass(2.0)
    assert orphans(store) == [key]


def test_a_beat_that_dies_before_it_publishes_an_orphan_costs_the_handover(store: Store) -> None:
    key, _ = store.orphan()
    assert orphans(store) == [key]
    store.let_pass(HANDOVER + 1)
    assert orphans(store) == [key]


def test_an_orphan_that_is_taken_over_is_none_until_that_owner_dies(store: Store) -> None:
    key, _ = store.orphan()
    assert orphans(store, "batch") == [key]
    lease = store.lease()
    assert store.claim(key, lease=lease).taken_over
    store.ledger.published([key], "batch", 3600.0)
    assert store.row(key).emit_count == 0
    assert orphans(store) == []
    store.ledger.release([lease])
    assert orphans(store) == [key]


def test_a_message_that_is_with_the_broker_alone_makes_no_orphan(store: Store) -> None:
    key = RunKey(fresh("run"))
    lease = store.lease()
    request = replace(store.request(key, lease=lease), entry=None)
    claim = store.ledger.claim(request)
    store.ledger.release([lease])
    assert orphans(store) == []
    # A retry's message is kept, also while the retry is executed.
    store.ledger.retry(key, claim.fence, Retry(1, 0.0, '{"args": []}'))
    lease = store.lease()
    assert store.ledger.claim(
        replace(request, retries=1, lease_id=lease, claim_id=fresh("claim"))
    ).outcome is (ClaimOutcome.CLAIMED)
    store.ledger.release([lease])
    assert orphans(store) == [key]


def test_orphans_of_another_namespace_are_left_to_it(store: Store) -> None:
    store.orphan()
    assert orphans(store, namespace="another") == []


def test_a_limit_is_kept(store: Store) -> None:
    keys = {store.orphan()[0] for _ in range(5)}
    first = {row.key for row in store.ledger.acquire_orphans(NAMESPACE, 3, "first")}
    rest = {row.key for row in store.ledger.acquire_orphans(NAMESPACE, 3, "second")}
    assert (len(first), len(rest), first | rest) == (3, 2, keys)


@contextmanager
def held(store: Store, key: RunKey) -> Iterator[None]:
    """A transaction holds the row, as that of an owner who was stopped before its COMMIT."""
    engine = create_engine(store.url, poolclass=NullPool)
    one = update(runs).where(runs.c.run_key == key.text, runs.c.slot == key.slot)
    with engine.connect() as connection:
        connection.execute(one.values(error="held"))
        yield
        connection.rollback()


def test_nobody_waits_for_a_row_that_a_stopped_owner_holds(server: Store) -> None:
    key, _ = server.orphan()
    other, _ = server.orphan()
    with held(server, key):
        assert orphans(server) == [other]
        assert server.ledger.try_takeover(server.request(key), server.row(key)) is None
        slot = NewSlot(key, NAMESPACE, "daily", "shop.bill")
        assert server.ledger.insert_slots([slot], fresh("batch")) == set()
    assert orphans(server) == [key]
    assert server.claim(key).taken_over


# -- callbacks that were not sent -----------------------------------------------------------------


def test_callbacks_are_pending_until_they_were_sent(store: Store) -> None:
    key, fence, lease = ended(store, '"seven"')
    row = store.row(key)
    assert (row.state, row.callbacks_pending, row.result) == (RunState.SUCCEEDED, True, '"seven"')
    store.ledger.callbacks_sent(key, fence)
    row = store.row(key)
    assert (row.state, row.callbacks_pending, row.result) == (RunState.SUCCEEDED, False, None)
    store.ledger.release([lease])
    assert orphans(store) == []


def test_a_run_without_callbacks_has_none_pending(store: Store) -> None:
    key, claim = store.owned()
    store.ledger.end(key, claim.fence, RunState.SUCCEEDED)
    assert not store.row(key).callbacks_pending
    store.ledger.keep_result(key, claim.fence, "7")
    assert store.row(key).result is None


def test_a_result_may_be_kept_after_the_end(store: Store) -> None:
    key, fence, _ = ended(store, None)
    store.ledger.keep_result(key, fence, "[1]")
    assert store.row(key).result == "[1]"
    store.ledger.keep_result(key, fence + 1, "[2]")
    assert store.row(key).result == "[1]"


def test_an_ending_with_callbacks_is_repeated_safely(store: Store) -> None:
    key, fence, _ = ended(store)
    store.ledger.end(key, fence, RunState.SUCCEEDED, unsent=Unsent("7"))
    assert store.row(key).callbacks_pending


def test_pending_callbacks_of_a_dead_owner_make_an_orphan(store: Store) -> None:
    key, _, lease = ended(store)
    store.ledger.release([lease])
    assert orphans(store) == [key]


def test_an_owner_that_cannot_send_callbacks_lets_go(store: Store) -> None:
    """Though it lives, and though the message was with the broker alone."""
    key = RunKey(fresh("run"))
    claim = store.ledger.claim(replace(store.request(key), entry=None))
    store.ledger.end(key, claim.fence, RunState.SUCCEEDED, unsent=Unsent("7"))
    store.ledger.let_go(key, claim.fence + 1, "{}")
    assert store.row(key).message is None
    store.ledger.let_go(key, claim.fence, '{"args": [1]}')
    assert orphans(store) == [key]
    row = store.row(key)
    assert (row.message, row.result, row.lease_id) == ('{"args": [1]}', "7", None)
    store.ledger.let_go(key, claim.fence, '{"args": [2]}')
    assert store.row(key).message == '{"args": [1]}'
    assert store.ledger.repair(store.request(key), store.row(key)) == claim.fence + 1
    assert orphans(store) == []


def test_a_repair_is_won_by_one(store: Store) -> None:
    key, fence, lease = ended(store)
    assert store.ledger.repair(store.request(key), store.row(key)) is None
    store.ledger.release([lease])
    seen = store.row(key)
    assert store.ledger.repair(store.request(key), seen) == fence + 1
    assert store.ledger.repair(store.request(key), seen) is None
    assert store.row(key).callbacks_pending
    # The one that came back to life says that it has sent them.
    store.ledger.callbacks_sent(key, fence)
    assert store.row(key).callbacks_pending
    store.ledger.callbacks_sent(key, fence + 1)
    assert not store.row(key).callbacks_pending


def test_callbacks_that_a_late_owner_has_sent_meanwhile_are_not_sent_again(store: Store) -> None:
    key, fence, lease = ended(store)
    store.ledger.release([lease])
    seen = store.row(key)
    store.ledger.callbacks_sent(key, fence)
    assert store.ledger.repair(store.request(key), seen) is None
    assert store.row(key).fence == fence


def test_a_repair_buries_an_expired_lease(store: Store) -> None:
    lease = store.lease(1.0)
    key, claim = store.owned(lease=lease)
    store.ledger.end(key, claim.fence, RunState.FAILED, "no")
    store.let_pass(2.0)
    assert store.ledger.repair(store.request(key), store.row(key)) == claim.fence + 1
    assert store.row(key).error == "no"


def test_who_dies_in_a_repair_is_repaired_too(store: Store) -> None:
    key, fence, lease = ended(store)
    store.ledger.release([lease])
    lease = store.lease()
    assert store.ledger.repair(store.request(key, lease=lease), store.row(key)) == fence + 1
    store.ledger.release([lease])
    assert store.ledger.repair(store.request(key), store.row(key)) == fence + 2


def test_a_repair_whose_answer_was_lost_recognises_itself(store: Store) -> None:
    key, fence, lease = ended(store)
    store.ledger.release([lease])
    seen, request = store.row(key), store.request(key)
    assert store.ledger.try_repair(request, seen) == fence + 1
    assert store.ledger.try_repair(request, seen) == fence + 1


def test_a_run_that_has_not_ended_is_not_repaired(store: Store) -> None:
    key, _ = store.orphan()
    assert store.ledger.try_repair(store.request(key), store.row(key)) is None


@pytest.mark.parametrize("state", [RunState.SUCCEEDED, RunState.FAILED])
def test_an_ended_run_that_was_repaired_stays_ended(store: Store, state: RunState) -> None:
    lease = store.lease()
    key, claim = store.owned(lease=lease)
    store.ledger.end(key, claim.fence, state)
    store.ledger.release([lease])
    assert store.ledger.repair(store.request(key), store.row(key)) == 2
    assert store.row(key).state is state
    assert store.claim(key).outcome is ClaimOutcome.FINISHED
