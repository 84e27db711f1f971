"""Named locks in each ledger: who gets a seat, and when it is free again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from celery_idem.ledger import LockRequest, LockRow, Taken
from tests.contract.stores import LONG, SHORT, Store, fresh
from tests.contract.together import in_processes, in_threads

NAME = "shop:stock"


def ask(store: Store, lease: str | None = None, **more: object) -> LockRequest:
    request = LockRequest(NAME, lease or store.lease(), fresh("claim"))
    return replace(request, **more)  # type: ignore[arg-type]


def take(store: Store, lease: str | None = None, **more: object) -> Taken | None:
    return store.ledger.take(ask(store, lease, **more))


def taken(store: Store, lease: str | None = None, **more: object) -> Taken:
    found = take(store, lease, **more)
    assert found is not None
    return found


def test_a_lock_is_taken_once(store: Store) -> None:
    held = taken(store)
    assert (held.name, held.seat) == (NAME, 0)
    assert take(store) is None
    assert take(store, name="shop:Stock") is not None, "another name"


def test_a_name_is_compared_byte_by_byte(store: Store) -> None:
    for name in ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe", "Cafe", "cafe "):
        assert take(store, name=name) is not None


def test_the_first_fence_is_the_clock_and_each_next_one_is_larger(store: Store) -> None:
    before = store.ledger.now()
    fences = []
    for _ in range(4):
        held = taken(store)
        fences.append(held.fence)
        assert store.ledger.release_seat(held)
    assert fences == sorted(set(fences))
    assert fences[0] >= int(before.timestamp() * 1_000_000) - 1


def test_a_released_lock_is_free_and_its_last_holder_cannot_release_it_again(store: Store) -> None:
    first = taken(store)
    assert store.ledger.release_seat(first)
    assert not store.ledger.release_seat(first)
    second = taken(store)
    assert not store.ledger.release_seat(first), "not the next holder's"
    assert take(store) is None
    assert store.ledger.release_seat(second)


def test_a_lock_is_free_when_its_lease_was_deleted(store: Store) -> None:
    lease = store.lease()
    first = taken(store, lease)
    store.ledger.release([lease])
    assert taken(store).fence > first.fence


def test_a_lock_is_free_when_its_lease_has_expired(store: Store) -> None:
    first = taken(store, store.lease(SHORT))
    store.let_pass(SHORT - 60)
    assert take(store) is None
    store.let_pass(61)
    second = taken(store)
    assert second.fence > first.fence
    assert not store.ledger.release_seat(first)


def test_a_lock_lives_as_long_as_its_lease_is_renewed(store: Store) -> None:
    lease = store.lease(SHORT)
    taken(store, lease)
    for _ in range(3):
        store.let_pass(SHORT - 60)
        assert store.ledger.renew([lease], SHORT) == {lease}
    assert take(store) is None


def test_max_hold_ends_it_although_its_lease_holds(store: Store) -> None:
    for _ in range(2):  # The first taking of a name is another statement.
        held = taken(store, max_hold=SHORT)
        store.let_pass(SHORT - 60)
        assert take(store) is None
        store.let_pass(61)
        last = taken(store)
        assert last.fence > held.fence
        assert not store.ledger.release_seat(held)
        store.ledger.release_seat(last)


def test_a_request_whose_answer_was_lost_finds_what_it_has_taken(store: Store) -> None:
    first = ask(store)
    held = store.ledger.take(first)
    assert held is not None
    assert store.ledger.take(first) == held
    store.ledger.release_seat(held)
    again = ask(store, first.lease_id)
    held = store.ledger.take(again)
    assert held is not None
    assert store.ledger.take(again) == held


def test_a_taking_that_arrives_late_takes_nothing(store: Store) -> None:
    """Somebody else has had the lock since it was seen free."""
    late = ask(store)
    store.ledger.release_seat(taken(store))
    (seen,) = store.ledger.read_seats(NAME, 1)
    store.ledger.release_seat(taken(store))
    assert store.ledger.try_take(late, seen) is None
    assert store.ledger.try_take(late, LockRow(0)) is None, "seen before anybody had taken it"
    assert store.ledger.take(late) is not None


def test_a_seat_that_is_held_is_not_taken_at_the_fence_that_was_seen(store: Store) -> None:
    taken(store)
    (seen,) = store.ledger.read_seats(NAME, 1)
    assert store.ledger.try_take(ask(store), seen) is None


def test_so_many_may_hold_a_lock_as_it_has_seats(store: Store) -> None:
    held = [taken(store, seats=3, first_seat=n) for n in (1, 1, 2)]
    assert {it.seat for it in held} == {0, 1, 2}
    assert take(store, seats=3) is None
    store.ledger.release_seat(held[1])
    assert taken(store, seats=3).seat == held[1].seat


def test_held_seats_are_listed(store: Store) -> None:
    assert store.ledger.held_locks() == []
    lease = store.lease(LONG)
    held = taken(store, lease)
    store.ledger.release_seat(taken(store, name="shop:other"))
    ((name, row),) = store.ledger.held_locks()
    assert (name, row.seat, row.fence, row.lease_id) == (NAME, 0, held.fence, lease)
    assert row.lease_seconds is not None and LONG - 60 < row.lease_seconds <= LONG


@pytest.mark.parametrize("seats", [1, 3])
def test_threads_that_ask_at_once_get_no_seat_too_many(store: Store, seats: int) -> None:
    for _ in range(5):
        found = in_threads(8, lambda n: take(store, seats=seats, first_seat=n % seats))
        held = [it for it in found if it is not None]
        assert len({it.seat for it in held}) == len(held) == seats
        for it in held:
            assert store.ledger.release_seat(it)


def enter_often(index: int, url: str, folder: str, seats: int, times: int) -> list[int]:
    """Take the lock `times` times; whoever is in marks its seat, which must not be marked."""
    store = Store.at("fuzz", url)
    fences: list[int] = []
    lease = store.lease()
    while len(fences) < times:
        found = take(store, lease, seats=seats, first_seat=index % seats)
        if found is None:
            continue
        mark = Path(folder, str(found.seat))
        mark.touch(exist_ok=False)
        fences.append(found.fence)
        mark.unlink()
        assert store.ledger.release_seat(found)
    store.ledger.close()
    return fences


@pytest.mark.parametrize("seats", [1, 2])
def test_processes_never_let_in_one_too_many(database: Store, tmp_path: Path, seats: int) -> None:
    times = 10 if database.name == "sqlite" else 40
    found = in_processes(4, enter_often, database.url, str(tmp_path), seats, times)
    fences = [fence for each in found for fence in each]
    assert len(fences) == 4 * times
    if seats == 1:
        assert len(set(fences)) == len(fences), "each holder has a fence of its own"
