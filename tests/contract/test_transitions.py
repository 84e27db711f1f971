"""Every verb on every state: the moves that happen are those of the table, all and no others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from celery_idem.errors import LeaseLost, ResultLost
from celery_idem.keys import RunKey
from celery_idem.ledger import NewSlot, Retry
from celery_idem.run import TRANSITIONS, RunRow, RunState
from tests.contract.stores import NAMESPACE, Store, fresh

#: A verb, on a run that may be unknown.
Move = Callable[[Store, RunKey, RunRow | None], object]


def _insert(claims: bool) -> Move:
    def move(store: Store, key: RunKey, row: RunRow | None) -> None:
        slot = NewSlot(key, NAMESPACE, "daily", "shop.bill", claims)
        store.ledger.insert_slots([slot], fresh("batch"))

    return move


def _claim(store: Store, key: RunKey, row: RunRow | None) -> None:
    store.claim(key, retries=row.retries if row else 0)


def _skip(store: Store, key: RunKey, row: RunRow | None) -> None:
    request = store.request(key, retries=row.retries if row else 0)
    # By the message whose run it is.
    task_id = request.task_id if row is None or row.task_id is None else row.task_id
    store.ledger.try_skip(replace(request, task_id=task_id), "expired")


def _bury(store: Store, row: RunRow) -> None:
    store.ledger.release([row.lease_id] if row.lease_id else [])


def _take_over(store: Store, key: RunKey, row: RunRow | None) -> None:
    if row:
        _bury(store, row)
        store.ledger.try_takeover(store.request(key, retries=row.retries), row)


def _kill(store: Store, key: RunKey, row: RunRow | None) -> None:
    if row:
        _bury(store, row)
        store.ledger.try_kill(row, "died")


def _end(state: RunState) -> Move:
    return lambda store, key, row: store.ledger.end(key, row.fence if row else 0, state)


def _retry(store: Store, key: RunKey, row: RunRow | None) -> None:
    store.ledger.retry(key, row.fence if row else 0, Retry(1, 0.0, None))


def _give_back(store: Store, key: RunKey, row: RunRow | None) -> None:
    store.ledger.give_back(key, row.fence if row else 0, "put back", 1.0)


def _fail(store: Store, key: RunKey, row: RunRow | None) -> None:
    store.ledger.fail_of_child(key, "parent", 1, "time limit")


def _close(state: RunState) -> Move:
    def move(store: Store, key: RunKey, row: RunRow | None) -> None:
        # As the batch that holds the run; a claim is not a batch, and its run is not to be closed.
        batch = row.claim_id if row and row.claim_id else fresh("batch")
        store.ledger.close_unclaimed([key], batch, state, "too late")

    return move


MOVES: list[Move] = [
    _insert(claims=True),
    _insert(claims=False),
    _claim,
    _skip,
    _take_over,
    _kill,
    _end(RunState.SUCCEEDED),
    _end(RunState.FAILED),
    _end(RunState.SKIPPED),
    _retry,
    _give_back,
    _fail,
    _close(RunState.EMITTED),
    _close(RunState.SKIPPED),
]


@pytest.mark.parametrize(
    "state", [None, *RunState], ids=lambda state: state.label if state is not None else "unknown"
)
def test_the_moves_out_of_a_state_are_those_of_the_table(
    store: Store, state: RunState | None
) -> None:
    reached = set()
    for move in MOVES:
        key = store.in_state(state)
        before = store.ledger.read(key)
        assert (before.state if before else None) is state
        with suppress(LeaseLost, ResultLost):
            move(store, key, before)
        after = store.ledger.read(key)
        if after is not None and (before is None or _place(after) != _place(before)):
            reached.add(after.state)
    assert reached == TRANSITIONS[state]


def _place(row: RunRow) -> tuple[RunState, int]:
    return row.state, row.fence


@pytest.mark.parametrize("state", set(RunState) - {RunState.EMITTED, RunState.SKIPPED})
def test_an_unclaimed_run_cannot_be_closed_otherwise(store: Store, state: RunState) -> None:
    with pytest.raises(ValueError, match=f"emitted or skipped, not {state.label}"):
        store.ledger.close_unclaimed([], "batch", state)
