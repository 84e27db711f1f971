"""Many at once: each run has one winner, and no deadlock reaches a caller."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from celery_idem.keys import RunKey
from celery_idem.ledger import HANDOVER, Ledger, NewSlot, emission
from celery_idem.ledger.sql import SqlLedger
from celery_idem.run import ClaimOutcome
from tests.contract.stores import NAMESPACE, Store, fresh, new_slots
from tests.contract.together import in_processes, in_threads

pytestmark = pytest.mark.slow

THREADS, PROCESSES = 4, 3
SLOTS = 1200
#: Seconds for which a busy machine may let a process wait, which loses nothing of what it has won.
STANDS_STILL = 600.0


def shuffled(slots: list[NewSlot], seed: int) -> list[NewSlot]:
    return random.Random(seed).sample(slots, len(slots))


def each_once(parts: list[set[RunKey]], keys: set[RunKey]) -> None:
    """Every key is in exactly one part."""
    times = Counter(key for part in parts for key in part)
    assert set(times) == keys
    assert set(times.values()) == {1}


# -- slots ----------------------------------------------------------------------------------------


def test_each_slot_is_won_by_one_of_several_threads(store: Store) -> None:
    slots = new_slots(SLOTS)
    parts = in_threads(
        THREADS, lambda n: store.ledger.insert_slots(shuffled(slots, n), fresh("batch"))
    )
    each_once(parts, {slot.key for slot in slots})


def _insert(index: int, url: str, rounds: list[list[NewSlot]]) -> list[set[RunKey]]:
    ledger = SqlLedger(url)
    won = [ledger.insert_slots(shuffled(r, index), f"{index}/{n}") for n, r in enumerate(rounds)]
    ledger.close()
    return won


def test_each_slot_is_won_by_one_of_several_processes(database: Store) -> None:
    """Ten rounds of adjacent keys, where gap locks of several inserts meet."""
    rounds = [new_slots(120, entry=f"entry {n % 2}") for n in range(2)]
    rounds += [new_slots(SLOTS), *(new_slots(120) for _ in range(7))]
    found = in_processes(PROCESSES, _insert, database.url, rounds)
    for slots, *parts in zip(rounds, *found, strict=True):
        each_once(parts, {slot.key for slot in slots})


def _acquire(ledger: Ledger, index: int) -> list[set[RunKey]]:
    """What a beat wins in several looks, of which each is a batch, until there is nothing left."""
    looks: list[set[RunKey]] = []
    idle = 0
    while idle < 3:
        batch = f"{index}/{len(looks)}"
        rows = ledger.acquire_due(NAMESPACE, 200, batch)
        ledger.published([row.key for row in rows], batch, 600.0)
        looks.append({row.key for row in rows})
        # Nothing won: the others hold what this one saw, for the time being.
        idle = 0 if rows else idle + 1
    return looks


def test_each_due_run_is_acquired_by_one_of_several_threads(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = set(store.scheduled(300))
    store.let_pass(HANDOVER)
    monkeypatch.setattr(emission, "HANDOVER", STANDS_STILL)
    parts = in_threads(THREADS, lambda n: _acquire(store.ledger, n))
    each_once([look for part in parts for look in part], keys)
    assert {store.row(key).emit_count for key in keys} == {1}


def _acquire_there(index: int, url: str) -> list[set[RunKey]]:
    pytest.MonkeyPatch().setattr(emission, "HANDOVER", STANDS_STILL)  # In this process alone.
    ledger = SqlLedger(url)
    found = _acquire(ledger, index)
    ledger.close()
    return found


def test_each_due_run_is_acquired_by_one_of_several_processes(database: Store) -> None:
    keys = set(database.scheduled(SLOTS))
    database.let_pass(HANDOVER)
    parts = in_processes(PROCESSES, _acquire_there, database.url)
    each_once([look for part in parts for look in part], keys)


# -- claims ---------------------------------------------------------------------------------------


def test_of_many_claims_of_one_run_one_wins(store: Store) -> None:
    lease = store.lease()
    for _ in range(10):
        key = RunKey(fresh("run"))
        claims = in_threads(8, lambda n, key=key: store.claim(key, lease=lease))  # type: ignore[misc]
        outcomes = Counter(claim.outcome for claim in claims)
        assert outcomes == {ClaimOutcome.CLAIMED: 1, ClaimOutcome.RUNNING: 7}


def test_of_many_takeovers_of_one_run_one_wins(store: Store) -> None:
    lease = store.lease()
    for _ in range(10):
        key, _ = store.orphan()
        claims = in_threads(8, lambda n, key=key: store.claim(key, lease=lease))  # type: ignore[misc]
        outcomes = Counter(claim.outcome for claim in claims)
        assert outcomes == {ClaimOutcome.CLAIMED: 1, ClaimOutcome.RUNNING: 7}
        assert store.row(key).fence == 2


RUNS, EACH = 3, 25


def _bump(index: int, url: str, file: str) -> int:
    """Claim the same runs again and again; under each claim, add 1 to an unprotected number."""
    store = Store.at("fuzz", url)

    def work(thread: int) -> int:
        done = 0
        chance = random.Random(f"{index}/{thread}")
        while done < EACH:
            key = RunKey(f"fuzz {chance.randrange(RUNS)}")
            if _bump_once(store, key, Path(f"{file}.{key.text[-1]}"), chance):
                done += 1
        return done

    total = sum(in_threads(THREADS, work))
    store.ledger.close()
    return total


def _bump_once(store: Store, key: RunKey, file: Path, chance: random.Random) -> bool:
    lease = store.lease()
    request = replace(store.request(key, lease=lease), max_attempts=1_000_000)
    claim = store.ledger.claim(request)
    if claim.outcome is not ClaimOutcome.CLAIMED:
        return False
    value = int(file.read_text() or 0)
    file.write_text(str(value + 1))
    if chance.random() < 0.5:
        assert store.ledger.give_back(key, claim.fence, "again", 600.0)
    else:
        # As if this owner had died: somebody takes over.
        store.ledger.release([lease])
    return True


def test_an_unprotected_number_is_right_under_claims(database: Store, tmp_path: Path) -> None:
    file = tmp_path / "number"
    for n in range(RUNS):
        Path(f"{file}.{n}").write_text("0")
    done = in_processes(PROCESSES, _bump, database.url, str(file))
    numbers = [int(Path(f"{file}.{n}").read_text()) for n in range(RUNS)]
    assert sum(numbers) == sum(done) == PROCESSES * THREADS * EACH
    assert [database.row(RunKey(f"fuzz {n}")).fence for n in range(RUNS)] == numbers
