"""Leases: renewed while they have not expired, buried only after, and never back."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from celery_idem.errors import LeaseLost, LedgerError
from celery_idem.ledger import LeaseCount, Owner, beside_runs
from celery_idem.ledger.database import Answer
from celery_idem.ledger.sql import SqlLedger
from celery_idem.run import RunState
from tests.contract.stores import LONG, SHORT, Store, fresh, wait_until


def test_a_lease_is_renewed(store: Store) -> None:
    lease = store.lease(SHORT)
    key, _ = store.owned(lease=lease)
    assert store.ledger.renew([lease], LONG) == {lease}
    left = store.row(key).lease_seconds
    assert left is not None and SHORT < left <= LONG
    store.let_pass(SHORT)
    assert store.ledger.renew([lease], LONG) == {lease}


def test_an_expired_lease_is_not_renewed_though_nobody_has_buried_it(store: Store) -> None:
    lease = store.lease(SHORT)
    key, _ = store.owned(lease=lease)
    store.let_pass(SHORT)
    assert store.ledger.renew([lease], LONG) == set()
    left = store.row(key).lease_seconds
    assert left is not None and left <= 0


def test_of_several_leases_those_that_live_are_renewed(store: Store) -> None:
    expired, live, released = store.lease(SHORT), store.lease(), store.lease()
    store.ledger.release([released])
    store.let_pass(SHORT)
    assert store.ledger.renew([expired, live, released, fresh("unknown")], LONG) == {live}


def test_a_live_lease_is_not_buried(store: Store) -> None:
    lease = store.lease()
    store.ledger.bury(lease)
    assert store.ledger.renew([lease], LONG) == {lease}


def test_a_buried_lease_does_not_return(store: Store) -> None:
    lease = store.lease(SHORT)
    key, _ = store.owned(lease=lease)
    store.let_pass(SHORT)
    store.ledger.bury(lease)
    store.ledger.bury(lease)
    assert store.row(key).lease_seconds is None
    assert store.ledger.renew([lease], LONG) == set()
    assert store.row(key).lease_seconds is None


def test_released_leases_are_gone(store: Store) -> None:
    lease, other = store.lease(), store.lease()
    store.ledger.release([lease, fresh("unknown")])
    store.ledger.release([lease])
    assert store.ledger.renew([lease, other], LONG) == {other}


def test_a_parent_releases_the_leases_of_its_dead_child(store: Store) -> None:
    first, second = (store.lease(pid=41, process="mine") for _ in range(2))
    others = {store.lease(pid=42, process="mine"), store.lease(pid=41, process="another's")}
    key, claim = store.owned(lease=first)
    store.ledger.release_child("mine", 41)
    assert store.ledger.renew([first, second, *others], LONG) == others
    assert store.claim(key).fence == claim.fence + 1


def test_nothing_is_renewed_or_released_for_nothing(store: Store) -> None:
    lease = store.lease()
    assert store.ledger.renew([], LONG) == set()
    store.ledger.release([])
    assert store.ledger.renew([lease], LONG) == {lease}


def test_a_registration_repeated_after_a_lost_answer_is_no_error(store: Store) -> None:
    lease = fresh("lease")
    owner = Owner("worker", "host", 1, "parent")
    store.ledger.register(lease, owner, LONG)
    store.ledger.register(lease, owner, LONG)
    assert store.ledger.renew([lease], LONG) == {lease}


def test_a_lease_that_has_expired_is_not_registered_again(store: Store) -> None:
    lease = fresh("lease")
    owner = Owner("worker", "host", 1, "parent")
    store.ledger.register(lease, owner, SHORT)
    store.let_pass(SHORT)
    with pytest.raises(LedgerError):
        store.ledger.register(lease, owner, LONG)
    assert store.ledger.renew([lease], LONG) == set()


def test_a_lease_expires_by_the_clock_of_the_database(database: Store) -> None:
    lease = database.lease(0.2)
    key, _ = database.owned(lease=lease)

    def expired() -> bool:
        left = database.row(key).lease_seconds
        return left is not None and left <= 0

    wait_until(expired)
    assert database.ledger.renew([lease], LONG) == set()
    claim = database.claim(key)
    assert claim.taken_over and database.row(key).lease_id != lease


# -- those of processes that died ------------------------------------------------------------------


def test_leases_that_have_expired_are_buried(store: Store) -> None:
    dead, live = [store.lease(SHORT) for _ in range(3)], store.lease()
    assert store.ledger.bury_expired(100) == 0
    store.let_pass(SHORT)
    assert store.ledger.lease_counts() == {"worker": LeaseCount(1, 3)}
    assert store.ledger.bury_expired(100) == 3
    assert store.ledger.lease_counts() == {"worker": LeaseCount(1, 0)}
    assert store.ledger.bury_expired(100) == 0
    assert store.ledger.renew([*dead, live], LONG) == {live}


def test_so_many_leases_are_buried_at_once(store: Store) -> None:
    for _ in range(5):
        store.lease(SHORT)
    store.let_pass(SHORT)
    assert [store.ledger.bury_expired(2) for _ in range(4)] == [2, 2, 1, 0]
    assert store.ledger.lease_counts() == {}


def test_a_run_whose_lease_was_buried_by_a_beat_is_taken_over(store: Store) -> None:
    key, claim = store.owned(lease=store.lease(SHORT))
    store.let_pass(SHORT)
    store.ledger.bury_expired(100)
    again = store.claim(key)
    assert again.taken_over and again.fence == claim.fence + 1
    with pytest.raises(LeaseLost):
        store.ledger.end(key, claim.fence, RunState.SUCCEEDED)


def test_a_lease_that_was_renewed_meanwhile_is_not_buried(database: Store) -> None:
    """It had expired when it was looked for: by a clock that was put back since, or for a read
    that came from a standby.
    """

    class Late(SqlLedger):
        def _run(self, statement: Any, parameters: Any = None) -> Answer:
            answer = super()._run(statement, parameters)
            if statement is beside_runs.EXPIRED:
                database.let_pass(-LONG)
            return answer

    lease = database.lease(SHORT)
    database.let_pass(SHORT)
    with closing(Late(database.url)) as ledger:
        assert ledger.bury_expired(100) == 1
    assert database.ledger.renew([lease], LONG) == {lease}


def test_leases_are_counted_by_kind(store: Store) -> None:
    assert store.ledger.lease_counts() == {}
    store.lease(SHORT)
    store.lease()
    store.ledger.register(fresh("lease"), Owner("beat", "host", 1, "parent"), LONG)
    store.let_pass(SHORT)
    assert store.ledger.lease_counts() == {"worker": LeaseCount(1, 1), "beat": LeaseCount(1, 0)}
