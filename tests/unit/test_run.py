"""States and their moves, and the run that is being executed."""

from __future__ import annotations

import contextvars
from dataclasses import dataclass
from datetime import datetime

import pytest

from celery_idem.clock import UTC
from celery_idem.errors import LeaseLost, NoCurrentRun
from celery_idem.keys import RunKey
from celery_idem.ledger.memory_tables import new_row
from celery_idem.ledger.records import claimable
from celery_idem.run import CURRENT, TRANSITIONS, ClaimRequest, Run, RunState, current_run

SLOT = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)


@dataclass
class FakeTenure:
    lost: bool = False
    trusted_for: float = 10.0


def make(tenure: FakeTenure, key: RunKey | None = None) -> Run:
    return Run(key or RunKey("shop:x"), "shop.bill", 3, 1, 0, tenure)


# -- states ---------------------------------------------------------------------------------------


def test_stored_numbers_never_change() -> None:
    assert {state.name: state.value for state in RunState} == {
        "SCHEDULED": 0,
        "EMITTED": 1,
        "RUNNING": 2,
        "RETRYING": 3,
        "SUCCEEDED": 4,
        "FAILED": 5,
        "DEAD": 6,
        "SKIPPED": 7,
    }


def test_every_state_has_its_moves_and_final_ones_have_none() -> None:
    assert set(TRANSITIONS) == {None, *RunState}
    for state in RunState:
        assert state.final == (not TRANSITIONS[state])
        assert state.label == state.name.lower()


def test_every_state_is_reached_and_from_every_state_an_end() -> None:
    reached: set[RunState] = set()
    todo: list[RunState | None] = [None]
    while todo:
        for state in TRANSITIONS[todo.pop()] - reached:
            reached.add(state)
            todo.append(state)
    assert reached == set(RunState)
    ends = {state for state in RunState if state.final}
    while more := {s for s in RunState if TRANSITIONS[s] & ends} - ends:
        ends |= more
    assert ends == set(RunState)


def test_only_a_takeover_stays_in_its_state() -> None:
    assert [state for state in RunState if state in TRANSITIONS[state]] == [RunState.RUNNING]


@pytest.mark.parametrize("state", RunState, ids=lambda state: state.label)
@pytest.mark.parametrize("retries", range(3))
def test_what_may_be_claimed_is_a_move_of_the_table(state: RunState, retries: int) -> None:
    """A run that has reached retry 1, and messages of several."""
    row = new_row(RunKey("shop:x"), "shop", "shop.bill", None, state=state, retries=1)
    request = ClaimRequest(row.key, "shop.bill", "shop", None, None, retries, "lease", "claim")
    may = {
        RunState.SCHEDULED: retries >= 1,
        RunState.EMITTED: retries >= 1,
        RunState.RETRYING: retries == 1,
    }
    assert claimable(row, request) == may.get(state, False)
    if claimable(row, request):
        assert RunState.RUNNING in TRANSITIONS[state]


# -- the run being executed -----------------------------------------------------------------------


def test_the_slot_of_a_run() -> None:
    assert make(FakeTenure()).slot is None
    assert make(FakeTenure(), RunKey("shop:x", SLOT)).slot == SLOT


def test_a_run_is_owned_as_long_as_its_lease_is_trusted() -> None:
    tenure = FakeTenure()
    run = make(tenure)
    run.check()
    assert run.trusted_for == 10.0
    tenure.trusted_for = -5.0
    assert run.trusted_for == 0.0
    with pytest.raises(LeaseLost, match="run shop:x is no longer owned at fence 3") as caught:
        run.check()
    assert (caught.value.key, caught.value.fence) == ("shop:x", 3)


def test_a_lost_lease_is_lost_though_time_is_left() -> None:
    run = make(FakeTenure(lost=True))
    assert run.trusted_for == 0.0
    with pytest.raises(LeaseLost, match="not renewed in time"):
        run.check()


def test_a_run_that_was_ended_is_not_owned() -> None:
    run = make(FakeTenure())
    run.ended = True
    assert run.trusted_for == 0.0
    with pytest.raises(LeaseLost, match="its claim has ended"):
        run.check()


def test_there_is_no_run_outside_a_body() -> None:
    with pytest.raises(NoCurrentRun, match="base=IdempotentTask"):
        contextvars.Context().run(current_run)


def test_the_current_run_is_that_of_the_context() -> None:
    run = make(FakeTenure())

    def body() -> Run:
        CURRENT.set(run)
        return current_run()

    assert contextvars.copy_context().run(body) is run
    with pytest.raises(NoCurrentRun):
        contextvars.Context().run(current_run)
