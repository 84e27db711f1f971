"""Slots: recorded once, published by who recorded them, and again by one beat if nobody claims."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from celery_idem.keys import RunKey
from celery_idem.ledger import HANDOVER, Retry
from celery_idem.run import RunState
from tests.contract.stores import FIRST, NAMESPACE, Store, fresh, new_slots


def due(store: Store, batch: str | None = None, limit: int = 10_000) -> set[RunKey]:
    """The runs that a new batch acquires."""
    rows = store.ledger.acquire_due(NAMESPACE, limit, batch or fresh("batch"))
    keys = [row.key for row in rows]
    assert len(keys) == len(set(keys))
    return set(keys)


def test_a_slot_is_recorded_once(store: Store) -> None:
    slots = new_slots(3)
    keys = {slot.key for slot in slots}
    assert store.ledger.insert_slots(slots, "first") == keys
    assert store.ledger.insert_slots(slots, "second") == set()
    assert store.ledger.insert_slots([*reversed(slots), *new_slots(1)], "third") != set()
    row = store.row(slots[0].key)
    assert (row.state, row.fence, row.attempts, row.retries) == (RunState.SCHEDULED, 0, 0, 0)
    assert (row.entry, row.task, row.namespace) == (slots[0].entry, "shop.bill", NAMESPACE)
    assert (row.due_at, row.task_id) == (slots[0].key.slot, slots[0].key.task_id)


def test_an_insert_repeated_after_a_lost_answer_finds_its_own(store: Store) -> None:
    slots = new_slots(3)
    first = store.ledger.insert_slots(slots, "batch")
    assert store.ledger.insert_slots(slots, "batch") == first


def test_of_slots_that_overlap_each_batch_gets_the_new_ones(store: Store) -> None:
    slots = new_slots(5)
    assert store.ledger.insert_slots(slots[:3], "first") == {s.key for s in slots[:3]}
    assert store.ledger.insert_slots(slots[1:], "second") == {s.key for s in slots[3:]}


def test_many_slots_at_once(store: Store) -> None:
    slots = new_slots(1200)
    keys = {slot.key for slot in slots}
    assert store.ledger.insert_slots(slots, "first") == keys
    assert store.ledger.insert_slots(slots, "second") == set()
    assert store.ledger.counts() == {"scheduled": 1200}


def test_no_slots_are_no_statement(store: Store) -> None:
    assert store.ledger.insert_slots([], "batch") == set()
    store.ledger.published([], "batch", 60.0)
    assert store.ledger.counts() == {}


def test_a_claimed_slot_is_not_recorded_anew(store: Store) -> None:
    (slot,) = new_slots(1)
    store.owned(slot.key)
    assert store.ledger.insert_slots([slot], "batch") == set()
    assert store.row(slot.key).state is RunState.RUNNING


def test_the_slot_of_a_plain_task_is_closed_at_once(store: Store) -> None:
    (slot,) = new_slots(1, claims=False)
    assert store.ledger.insert_slots([slot], "batch") == {slot.key}
    assert store.ledger.insert_slots([slot], "other") == set()
    assert store.row(slot.key).state is RunState.EMITTED
    store.let_pass(HANDOVER)
    assert due(store) == set()


def test_what_is_recorded_is_known(store: Store) -> None:
    slots = [slot.key for slot in new_slots(700)]
    recorded = {*store.scheduled(3), store.in_state(RunState.SUCCEEDED)}
    assert store.ledger.recorded([*slots, *recorded]) == recorded
    assert store.ledger.recorded([]) == set()


def test_deadline_and_message_are_kept(store: Store) -> None:
    (slot,) = new_slots(1)
    slot = replace(slot, deadline=FIRST + timedelta(hours=1), message='{"args": []}')
    store.ledger.insert_slots([slot], "batch")
    row = store.row(slot.key)
    assert (row.deadline, row.message) == (slot.deadline, slot.message)


# -- published again ------------------------------------------------------------------------------


def test_a_slot_not_reported_as_published_is_handed_over(store: Store) -> None:
    keys = set(store.scheduled(3))
    assert due(store) == set()
    store.let_pass(HANDOVER)
    assert due(store) == keys
    assert due(store) == set()
    store.let_pass(HANDOVER)
    assert due(store) == keys


def test_a_published_slot_is_left_alone_for_its_grace(store: Store) -> None:
    batch = fresh("batch")
    (key,) = store.scheduled(batch=batch)
    store.ledger.published([key], batch, 120.0)
    assert store.row(key).emit_count == 1
    store.let_pass(60.0)
    assert due(store) == set()
    store.let_pass(60.0)
    assert due(store) == {key}


def test_a_report_repeated_after_a_lost_answer_counts_once(store: Store) -> None:
    batch = fresh("batch")
    keys = store.scheduled(2, batch)
    for _ in range(3):
        store.ledger.published(keys, batch, 60.0)
    assert [store.row(key).emit_count for key in keys] == [1, 1]


def test_only_the_batch_that_holds_a_run_reports_on_it(store: Store) -> None:
    first, second = fresh("batch"), fresh("batch")
    keys = store.scheduled(3, first)
    store.let_pass(HANDOVER)
    assert due(store, second) == set(keys)
    store.ledger.published(keys, first, 60.0)
    store.ledger.close_unclaimed(keys, first, RunState.SKIPPED, "late")
    assert all(store.row(key).emit_count == 0 for key in keys)
    assert all(store.row(key).state is RunState.SCHEDULED for key in keys)
    store.ledger.published(keys[:1], second, 60.0)
    store.ledger.close_unclaimed(keys[1:], second, RunState.SKIPPED, "late")
    assert [store.row(key).emit_count for key in keys] == [1, 0, 0]
    assert [store.row(key).state for key in keys] == [
        RunState.SCHEDULED,
        RunState.SKIPPED,
        RunState.SKIPPED,
    ]


def test_a_claimed_run_is_neither_acquired_nor_closed(store: Store) -> None:
    batch = fresh("batch")
    (key,) = store.scheduled(batch=batch)
    store.owned(key)
    store.let_pass(HANDOVER)
    assert due(store) == set()
    before = store.stand(key)
    store.ledger.published([key], batch, 60.0)
    store.ledger.close_unclaimed([key], batch, RunState.SKIPPED, "late")
    assert store.stand(key) == before


def test_a_closed_run_is_not_acquired(store: Store) -> None:
    for state in (RunState.EMITTED, RunState.SKIPPED):
        batch = fresh("batch")
        (key,) = store.scheduled(batch=batch)
        store.ledger.close_unclaimed([key], batch, state, "for a reason")
        row = store.row(key)
        assert row.state is state
        assert (row.finished_at is not None) is state.final
    assert store.row(key).error == "for a reason"
    store.let_pass(HANDOVER)
    assert due(store) == set()


def test_an_overdue_retry_is_acquired(store: Store) -> None:
    key, claim = store.owned()
    store.ledger.retry(key, claim.fence, Retry(1, 30.0, '{"retries": 1}', grace=30.0))
    assert due(store) == set()
    store.let_pass(60.0)
    (row,) = store.ledger.acquire_due(NAMESPACE, 10, "batch")
    assert (row.key, row.state, row.message) == (key, RunState.RETRYING, '{"retries": 1}')
    assert store.claim(key, retries=1).fence == claim.fence + 1


def test_a_claim_given_back_is_acquired_after_its_grace(store: Store) -> None:
    key, claim = store.owned()
    store.ledger.give_back(key, claim.fence, "put back", 60.0)
    assert due(store) == set()
    store.let_pass(60.0)
    assert due(store) == {key}


def test_the_longest_due_come_first_up_to_the_limit(store: Store) -> None:
    first = store.scheduled(2)
    store.tick()
    second = store.scheduled(2)
    store.let_pass(HANDOVER)
    assert due(store, limit=2) == set(first)
    assert due(store, limit=3) == set(second)


def test_more_are_acquired_than_fit_into_one_statement(store: Store) -> None:
    keys = set(store.scheduled(1100))
    store.let_pass(HANDOVER)
    some = due(store, limit=700)
    rest = due(store, limit=700)
    assert (len(some), some | rest) == (700, keys)


def test_an_acquisition_repeated_after_a_lost_answer_is_the_same(store: Store) -> None:
    keys = set(store.scheduled(2))
    store.let_pass(HANDOVER)
    assert due(store, "batch") == keys
    assert {store.row(key).claim_id for key in keys} == {"batch"}
    assert due(store, "other") == set()


def test_namespaces_do_not_see_each_other(store: Store) -> None:
    """Not even where the database's own comparison of texts would take them for one."""
    (key,) = store.scheduled()
    store.let_pass(HANDOVER)
    for other in ("Shop", "shop ", "shöp", "shopp", ""):
        assert store.ledger.acquire_due(other, 10, "batch") == []
    assert due(store) == {key}
