"""A key that names one run after another: each message is executed once, whenever it comes."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from celery_idem.keys import RunKey
from celery_idem.ledger import HANDOVER, Ledger, Reservation, Retry, Unsent
from celery_idem.ledger.sql import SqlLedger
from celery_idem.run import Claim, ClaimOutcome, ClaimRequest, RunRow, RunState
from tests.contract.stores import LONG, NAMESPACE, SHORT, Store, fresh
from tests.contract.together import in_processes, in_threads

DONE = 0.0


def ask(
    store: Store, key: RunKey, message: str, free_after: float | None = DONE, **more: object
) -> ClaimRequest:
    """What a worker asks for when a copy of the message arrives."""
    known: dict[str, object] = {"task_id": message, "entry": None, "free_after": free_after}
    return replace(store.request(key), **(known | more))  # type: ignore[arg-type]


def claim(store: Store, *args: object, **more: object) -> Claim:
    return store.ledger.claim(ask(store, *args, **more))  # type: ignore[arg-type]


def run(store: Store, key: RunKey, message: str, *args: object, **more: object) -> int:
    """The message is executed; its fence."""
    claimed = claim(store, key, message, *args, **more)
    assert claimed.outcome is ClaimOutcome.CLAIMED
    store.ledger.end(key, claimed.fence, RunState.SUCCEEDED)
    return claimed.fence


def reserve(
    store: Store, key: RunKey, message: str, free_after: float | None = DONE, **more: object
) -> RunRow | None:
    return store.ledger.reserve(reservation(key, message, free_after, **more))


def reservation(
    key: RunKey, message: str, free_after: float | None = DONE, **more: object
) -> Reservation:
    known = Reservation(key, NAMESPACE, "shop.bill", message, fresh("publish"), f'"{message}"')
    return replace(known, free_after=free_after, **more)  # type: ignore[arg-type]


@pytest.fixture
def key() -> RunKey:
    return RunKey(fresh("key"))


# -- one after another ----------------------------------------------------------------------------


def test_for_ever_a_key_is_that_of_one_message(store: Store, key: RunKey) -> None:
    run(store, key, "a", None)
    before = store.stand(key)
    found = claim(store, key, "b", None)
    assert (found.outcome, found.seen and found.seen.task_id) == (ClaimOutcome.FINISHED, "a")
    assert store.stand(key) == before


@pytest.mark.parametrize("ending", [RunState.SUCCEEDED, RunState.FAILED])
def test_what_has_ended_leaves_its_key(store: Store, key: RunKey, ending: RunState) -> None:
    first = claim(store, key, "a", payload="1")
    store.ledger.end(key, first.fence, ending, "why", stored='"of a"')
    ended = store.stand(key)
    second = claim(store, key, "b", payload="2")
    assert (second.outcome, second.fence, second.attempts) == (ClaimOutcome.CLAIMED, 2, 1)
    assert not second.taken_over
    row = store.stand(key)
    assert (row.task_id, row.payload, row.state) == ("b", "2", RunState.RUNNING)
    assert (row.error, row.result, row.finished_at) == (None, None, None)
    assert store.stand(key.of_message("a")) == replace(ended, key=key.of_message("a"))


def test_a_late_copy_finds_its_own_run(store: Store, key: RunKey) -> None:
    for message in "abc":
        run(store, key, message)
    for message in "abc":
        found = claim(store, key, message)
        assert (found.outcome, found.seen and found.seen.task_id) == (
            ClaimOutcome.FINISHED,
            message,
        )
    claim(store, key, "d")
    assert claim(store, key, "a").outcome is ClaimOutcome.FINISHED
    assert claim(store, key, "e").outcome is ClaimOutcome.RUNNING


@pytest.mark.parametrize("state", [RunState.RUNNING, RunState.RETRYING, RunState.SCHEDULED])
def test_what_goes_on_keeps_its_key(store: Store, key: RunKey, state: RunState) -> None:
    first = claim(store, key, "a")
    if state is RunState.SCHEDULED:
        store.ledger.give_back(key, first.fence, "its lock was not free", LONG, '"a"')
        assert store.row(key).message == '"a"'
    if state is RunState.RETRYING:
        store.ledger.retry(key, first.fence, Retry(1, 0.0, "{}"))
    before = store.stand(key)
    for retries in (0, 1):
        found = claim(store, key, "b", retries=retries)
        assert found.outcome in (ClaimOutcome.RUNNING, ClaimOutcome.RETRYING)
        assert found.seen is not None and found.seen.task_id == "a"
    assert store.stand(key) == before
    if state is not RunState.RUNNING:
        assert claim(store, key, "a", retries=1).outcome is ClaimOutcome.CLAIMED


def test_a_dead_owners_run_is_taken_over_and_its_message_runs_later(
    store: Store, key: RunKey
) -> None:
    first = ask(store, key, "a")
    store.ledger.claim(first)
    store.ledger.release([first.lease_id])
    second = claim(store, key, "b")
    assert (second.outcome, second.taken_over) == (ClaimOutcome.CLAIMED, True)
    assert claim(store, key, "a").outcome is ClaimOutcome.RUNNING
    store.ledger.end(key, second.fence, RunState.SUCCEEDED)
    assert run(store, key, "a") == 3


def test_what_is_given_up_leaves_its_key_at_once(store: Store, key: RunKey) -> None:
    first = ask(store, key, "a")
    store.ledger.claim(first)
    store.ledger.release([first.lease_id])
    second = claim(store, key, "b", abandon_on_crash=True)
    assert (second.outcome, second.fence) == (ClaimOutcome.CLAIMED, 2)
    found = claim(store, key, "a")
    assert found.seen is not None and found.seen.state is RunState.DEAD


def test_an_unwanted_message_leaves_the_key_alone(store: Store, key: RunKey) -> None:
    run(store, key, "a")
    before = store.stand(key)
    assert claim(store, key, "b", expired=True).outcome is ClaimOutcome.SKIPPED
    assert store.stand(key) == before
    assert store.ledger.read(key.of_message("a")) is None


def test_a_period_counts_from_the_record(store: Store, key: RunKey) -> None:
    run(store, key, "a", SHORT)
    assert claim(store, key, "b", SHORT).outcome is ClaimOutcome.FINISHED
    assert reserve(store, key, "c", SHORT) is not None
    assert store.ledger.read(key.of_message("a")) is None, "it was not kept apart for nothing"
    store.let_pass(SHORT)
    assert run(store, key, "b", SHORT) == 2
    found = claim(store, key, "c", SHORT)
    assert found.seen is not None and found.seen.task_id == "b", "a new period has begun"


def test_a_run_outlives_its_period(store: Store, key: RunKey) -> None:
    first = claim(store, key, "a", SHORT)
    store.let_pass(SHORT)
    assert claim(store, key, "b", SHORT).outcome is ClaimOutcome.RUNNING
    store.ledger.end(key, first.fence, RunState.SUCCEEDED)
    assert run(store, key, "b", SHORT) == 2


def test_callbacks_are_sent_before_the_key_is_left(store: Store, key: RunKey) -> None:
    first = ask(store, key, "a")
    fence = store.ledger.claim(first).fence
    store.ledger.end(key, fence, RunState.SUCCEEDED, None, Unsent("1"))
    assert claim(store, key, "b").outcome is ClaimOutcome.FINISHED
    assert reserve(store, key, "b") is not None
    store.ledger.release([first.lease_id])
    assert run(store, key, "b") == 2
    # They are sent by its message, when it comes again.
    found = claim(store, key, "a").seen
    assert found is not None
    assert (found.callbacks_pending, found.result, found.key) == (True, "1", key.of_message("a"))
    assert store.ledger.repair(ask(store, key, "a"), found) == fence + 1


def test_a_late_statement_changes_nothing(store: Store, key: RunKey) -> None:
    """The claim, the ending, and a repeated try to have the key, of the messages before."""
    first = ask(store, key, "a")
    fence = store.ledger.claim(first).fence
    store.ledger.end(key, fence, RunState.SUCCEEDED)
    seen, second = store.row(key), ask(store, key, "b")
    assert store.ledger.claim(second).fence == fence + 1
    before = store.stand(key)
    assert store.ledger.try_claim(first) is None
    assert not store.ledger.try_end(key, fence, RunState.FAILED, "late")
    assert store.ledger.try_claim_again(ask(store, key, "c"), seen) is None
    assert not store.ledger.try_reserve_again(reservation(key, "c"), seen)
    assert store.stand(key) == before
    assert store.ledger.try_claim_again(second, seen) == (fence + 1, 1), "its answer was lost"


# -- recorded before the publish ------------------------------------------------------------------


def test_a_reservation_is_its_messages(store: Store, key: RunKey) -> None:
    assert reserve(store, key, "a", None) is None
    assert reserve(store, key, "a", None) is None, "the same message may be published again"
    row = store.row(key)
    assert (row.state, row.fence, row.task_id, row.message) == (
        *(RunState.SCHEDULED, 0),
        *("a", '"a"'),
    )
    for free_after in (None, DONE):
        seen = reserve(store, key, "b", free_after)
        assert seen is not None and seen.task_id == "a"
        found = claim(store, key, "b", free_after)
        assert (found.outcome, found.seen and found.seen.task_id) == (ClaimOutcome.RETRYING, "a")
    assert run(store, key, "a", None) == 1


def test_it_is_published_again_if_nobody_claims_it(store: Store, key: RunKey) -> None:
    assert reserve(store, key, "a", due_in=SHORT, grace=HANDOVER) is None
    namespace = NAMESPACE
    store.let_pass(SHORT)
    assert key not in {row.key for row in store.ledger.acquire_due(namespace, 1000, fresh("b"))}
    store.let_pass(HANDOVER)
    rows = {row.key: row for row in store.ledger.acquire_due(namespace, 1000, fresh("b"))}
    assert rows[key].message == '"a"'


def test_an_ended_run_is_followed_by_a_reservation(store: Store, key: RunKey) -> None:
    run(store, key, "a")
    assert reserve(store, key, "b") is None
    row = store.row(key)
    assert (row.state, row.fence, row.task_id) == (RunState.SCHEDULED, 1, "b")
    assert claim(store, key, "a").outcome is ClaimOutcome.FINISHED
    assert run(store, key, "b") == 2


def test_a_cancelled_reservation_frees_the_key(store: Store, key: RunKey) -> None:
    first = reservation(key, "a", None)
    assert store.ledger.reserve(first) is None
    store.ledger.cancel(first)
    assert store.ledger.read(key) is None
    assert reserve(store, key, "b", None) is None
    store.ledger.cancel(first)
    assert store.row(key).task_id == "b"


@pytest.mark.parametrize("free_after", [DONE, LONG])
def test_cancelled_after_an_ended_run_it_frees_the_key(
    store: Store, key: RunKey, free_after: float
) -> None:
    """The fences go on: what the run before may still write meets none of them."""
    run(store, key, "a", free_after)
    store.let_pass(LONG)
    second = reservation(key, "b", free_after)
    assert store.ledger.reserve(second) is None
    store.ledger.cancel(second)
    assert store.row(key).state is RunState.SKIPPED
    assert reserve(store, key, "c", free_after) is None
    assert run(store, key, "c", free_after) == 2


def test_a_claimed_reservation_is_not_cancelled(store: Store, key: RunKey) -> None:
    first = reservation(key, "a")
    store.ledger.reserve(first)
    claim(store, key, "a")
    store.ledger.cancel(first)
    store.ledger.leave(key, "a")
    assert store.row(key).state is RunState.RUNNING


def test_a_message_leaves_its_own_reservation_alone(store: Store, key: RunKey) -> None:
    reserve(store, key, "a")
    store.ledger.leave(key, "b")
    assert store.row(key).task_id == "a"
    store.ledger.leave(key, "a")
    assert store.ledger.read(key) is None


# -- together -------------------------------------------------------------------------------------


def test_one_of_many_reserves(store: Store, key: RunKey) -> None:
    for _ in range(10):
        found = in_threads(4, lambda n: reserve(store, key, f"m{n}-{fresh('m')}"))
        assert [row is None for row in found].count(True) == 1
        message = store.row(key).task_id
        assert {row.task_id for row in found if row is not None} <= {message}
        run(store, key, str(message))


def _execute(index: int, url: str, text: str, messages: list[str]) -> list[tuple[str, int]]:
    """Each message until its run is known to have ended; those that were executed here."""
    store = Store.at("", url)
    ledger: Ledger = store.ledger
    key, lease = RunKey(text), store.lease()
    executed = []
    for message in random.Random(index).sample(messages, len(messages)):
        while True:
            request = replace(ask(store, key, message), lease_id=lease)
            found = ledger.claim(request)
            if found.outcome is ClaimOutcome.CLAIMED:
                executed.append((message, found.fence))
                ledger.end(key, found.fence, RunState.SUCCEEDED)
                break
            if found.seen is not None and found.seen.task_id == message:
                break
    assert isinstance(ledger, SqlLedger)
    ledger.close()
    return executed


def test_each_message_is_executed_once_whoever_gets_its_copies(
    database: Store, key: RunKey
) -> None:
    messages = [f"m{n}" for n in range(30)]
    executed = in_processes(3, _execute, database.url, key.text, messages)
    fences = Counter(fence for part in executed for _, fence in part)
    times = Counter(message for part in executed for message, _ in part)
    assert times == dict.fromkeys(messages, 1)
    assert fences == dict.fromkeys(range(1, len(messages) + 1), 1)


# -- corners --------------------------------------------------------------------------------------


def test_a_reservation_that_somebody_relies_on_is_not_cancelled(store: Store, key: RunKey) -> None:
    """Whoever was told of it got its result: a beat is to publish it if its sender could not."""
    first = reservation(key, "a")
    assert store.ledger.reserve(first) is None
    assert reserve(store, key, "b") is not None
    store.ledger.cancel(first)
    assert store.row(key).state is RunState.SCHEDULED
    assert run(store, key, "a") == 1


def test_a_reservation_that_expired_in_its_queue_leaves_its_key(store: Store, key: RunKey) -> None:
    """Though nobody has closed it; its message, if it comes, is told so."""
    past = store.ledger.now()
    assert reserve(store, key, "a", None, deadline=past) is None
    store.tick()
    assert reserve(store, key, "b", None) is None
    kept = store.row(key.of_message("a"))
    assert (kept.state, kept.fence, kept.task_id) == (RunState.SKIPPED, 0, "a")
    assert claim(store, key, "a", None, expired=True).outcome is not ClaimOutcome.CLAIMED
    assert run(store, key, "b", None) == 1


def test_an_expired_message_is_told_so_whoever_has_its_key_now(store: Store, key: RunKey) -> None:
    assert claim(store, key, "a", expired=True).outcome is ClaimOutcome.SKIPPED
    run(store, key, "b")
    assert claim(store, key, "a", expired=True).outcome is ClaimOutcome.SKIPPED


def test_arguments_are_known_from_the_first_claim_on(store: Store, key: RunKey) -> None:
    """Though the sender could not tell them, and also for the message whose body changed them."""
    reserve(store, key, "a", None)
    first = ask(store, key, "a", None, payload="1")
    assert store.ledger.claim(first).outcome is ClaimOutcome.CLAIMED
    store.ledger.release([first.lease_id])
    assert claim(store, key, "b", None, payload="2").outcome is ClaimOutcome.RUNNING
    again = claim(store, key, "a", None, payload="changed")
    assert (again.outcome, again.taken_over) == (ClaimOutcome.CLAIMED, True)
    store.ledger.give_back(key, again.fence, "its lock was not free", LONG, '"a"')
    assert claim(store, key, "a", None, payload="once more").outcome is ClaimOutcome.CLAIMED


def test_what_waits_may_have_followed_a_run(store: Store, key: RunKey) -> None:
    """As after the scope of a task was changed to until_start."""
    run(store, key, "a")
    assert reserve(store, key, "b") is None
    store.ledger.leave(key, "b")
    assert store.row(key).state is RunState.SCHEDULED
    store.ledger.leave(key, "b", followed=True)
    assert reserve(store, key, "c") is None
