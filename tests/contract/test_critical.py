"""Critical sections outside of tasks, on real databases and a real Redis."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from celery import Celery, _state
from redis import Redis

from celery_idem import IdempotentTask, critical_section
from celery_idem.errors import (
    ImproperlyConfigured,
    LedgerError,
    LockLost,
    LockNotAcquired,
    LockReentered,
)
from celery_idem.lock.held import ENTERED
from celery_idem.member import Member
from celery_idem.run import RunState
from tests.contract.sections import is_free, is_held, opened, section
from tests.contract.stores import Store, fresh, wait_until
from tests.contract.together import in_threads

#: Nobody listens there.
NO_REDIS = "redis://127.0.0.1:1/0"


@pytest.fixture(params=["rows", "redis", "redis is away"])
def app(request: pytest.FixtureRequest, database: Store) -> Iterator[Celery]:
    """An app whose locks are rows, with or without a Redis in front of them."""
    urls: dict[str, Callable[[], str | None]] = {
        "rows": lambda: None,
        "redis": lambda: str(request.getfixturevalue("redis_url")),
        "redis is away": lambda: NO_REDIS,
    }
    with opened(database.url, urls[request.param]()) as app:
        yield app


def test_a_section_is_entered_by_one_at_a_time(app: Celery) -> None:
    with section(app) as lock:
        assert lock.names == ("stock",) and lock.fence > 0
        assert not lock.lost and lock.trusted_for > 0
        lock.check()
        assert is_held(app)
        assert is_free(app, "another")
    assert lock.lost
    with pytest.raises(LockLost, match=r"'stock' is no longer held at fence .*: it was released"):
        lock.check()
    with section(app) as later:
        assert later.fence > lock.fence


def test_a_section_is_left_by_an_exception(app: Celery) -> None:
    with pytest.raises(ZeroDivisionError), section(app):
        raise ZeroDivisionError
    assert is_free(app)


def test_a_function_can_be_a_section(app: Celery) -> None:
    def count(number: int) -> int:
        assert is_held(app)
        return number + 1

    count = section(app)(count)
    assert [count(1), count(2)] == [2, 3]


def test_the_same_object_is_no_two_sections_at_once(app: Celery) -> None:
    one = section(app)
    with one, pytest.raises(RuntimeError, match="make one for each block"):
        one.__enter__()
    with one:
        pass


def test_who_is_in_does_not_get_in_again(app: Celery) -> None:
    """It would wait for itself; and another thread of the process is somebody else."""
    with section(app):
        with pytest.raises(LockReentered, match="'stock' is held by the caller already"):
            section(app, wait=60).__enter__()
        with pytest.raises(LockReentered), section(app, ["a", "stock"]):
            pass
        assert is_free(app, "a")
    assert is_free(app)


def test_a_section_may_be_left_by_another_thread(app: Celery) -> None:
    """Whoever entered it can enter it again then."""
    one = section(app)
    one.__enter__()
    in_threads(1, lambda _: one.__exit__(None, None, None))
    with section(app):
        assert is_held(app)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("leaves", [True, False])
def test_a_forked_child_holds_nothing_of_its_parent(database: Store, leaves: bool) -> None:
    """It leaves the block without giving the lock back, and is somebody else where it asks."""
    with opened(database.url) as app:
        with section(app):
            context = multiprocessing.get_context("fork")
            child = context.Process(target=_in_child, args=(app, leaves))
            child.start()
            child.join(60)
            assert child.exitcode == 0
            assert is_held(app)
        assert is_free(app)


def _in_child(app: Celery, leaves: bool) -> None:
    if leaves:
        for lock in ENTERED.get():
            Member.of(app).locks.release(lock)
        return
    with pytest.raises(LockNotAcquired), section(app):
        pass


def test_several_locks_are_taken_all_or_none(app: Celery) -> None:
    with section(app, "b"), pytest.raises(LockNotAcquired, match="'b' is not free"):
        in_threads(1, lambda _: section(app, ["c", "b", "a"]).__enter__())
    with section(app, ["c", "b", "a"]) as lock:
        assert lock.names == ("a", "b", "c") == tuple(lock.fences)
        with pytest.raises(ValueError, match=r"ask fences\[name\]"):
            lock.fence  # noqa: B018
        assert is_held(app, "a")
    assert is_free(app, ["a", "b", "c"])


def test_opposite_orders_do_not_deadlock(app: Celery) -> None:
    def move(index: int) -> int:
        names = ["a", "b"] if index % 2 else ["b", "a"]
        with section(app, names, wait=60) as lock:
            return int(lock.fences["a"])

    assert len(set(in_threads(6, move))) == 6


def test_who_waits_gets_in_when_the_holder_leaves(app: Celery) -> None:
    inside = threading.Event()

    def wait() -> None:
        with section(app, wait=60):
            inside.set()

    with ThreadPoolExecutor(1) as pool:
        with section(app):
            future = pool.submit(wait)
            assert not inside.wait(1.2), "while somebody is in"
        future.result(60)
    assert inside.is_set()


def test_who_has_waited_in_vain_is_told_how_long(app: Celery) -> None:
    with section(app), pytest.raises(LockNotAcquired, match=r"'stock' is not free after 0.1 s"):
        in_threads(1, lambda _: section(app, wait=0.1).__enter__())


def test_so_many_get_in_as_are_allowed(app: Celery) -> None:
    with section(app, concurrency=2), ExitStack() as stack:
        thread = stack.enter_context(ThreadPoolExecutor(1))
        other = section(app, concurrency=2)
        thread.submit(other.__enter__).result(60)
        assert is_held(app, concurrency=2)
        thread.submit(other.__exit__, None, None, None).result(60)
        assert is_free(app, concurrency=2)


def test_after_max_hold_others_get_in(app: Celery) -> None:
    with section(app, max_hold=1.0) as lock:
        wait_until(lambda: lock.lost)
        with pytest.raises(LockLost, match="it was held for longer than max_hold"):
            lock.check()
        assert is_free(app)
    assert is_free(app)


def test_nothing_is_held_in_the_end(app: Celery, database: Store) -> None:
    for _ in range(3):
        with section(app), section(app, "other"):
            assert len(database.ledger.held_locks()) == 2
    assert database.ledger.held_locks() == []


def test_a_number_that_nothing_protects_is_exact(app: Celery) -> None:
    """Read, let others run, write: without the lock some additions would be lost."""
    number = [0]

    def add(_: int) -> None:
        for _ in range(5):
            with section(app, wait=60):
                seen = number[0]
                threading.Event().wait(0.001)
                number[0] = seen + 1

    in_threads(4, add)
    assert number == [20]


def test_an_eager_task_takes_its_lock(app: Celery) -> None:
    """There is nobody to put it back to: it raises, and may be called again under its task id."""

    @app.task(base=IdempotentTask, idem_lock="stock", shared=False)
    def sell() -> str:
        assert is_held(app)
        return "sold"

    task_id = fresh("task")
    with section(app), ThreadPoolExecutor(1) as pool:
        result = pool.submit(sell.apply, task_id=task_id).result(60)
        assert isinstance(result.result, LockNotAcquired)
    assert sell.apply(task_id=task_id).get() == "sold"
    member = Member.of(app)
    assert member.leases.ledger.counts() == {RunState.SUCCEEDED.label: 1}


def test_a_thread_whose_current_app_is_not_the_projects_is_told_so(database: Store) -> None:
    """Celery's current app is one of a thread: this one would have a ledger of its own."""
    fallback = Celery("default", set_as_current=False)
    with pytest.raises(
        ImproperlyConfigured, match=r"'default', has no idem_database_url: pass app="
    ):
        _as_current(fallback, critical_section("stock").__enter__)
    fallback.close()
    inner = critical_section("stock")
    with opened(database.url) as project:
        _as_current(project, inner.__enter__)
        assert len(database.ledger.held_locks()) == 1
        _as_current(project, lambda: inner.__exit__(None, None, None))


def _as_current(app: Celery, call: Callable[[], Any]) -> Any:
    here: Any = _state
    before = here._tls.current_app
    app.set_current()
    try:
        return call()
    finally:
        here._tls.current_app = before


# -- faults --------------------------------------------------------------------------------------


def test_a_flushed_redis_lets_nobody_in(database: Store, redis_url: str) -> None:
    with opened(database.url, redis_url) as app:
        with section(app), Redis.from_url(redis_url) as redis:
            assert redis.keys("celery-idem:lock:*") == [b"celery-idem:lock:{shop:stock}"]
            redis.flushdb()
            assert is_held(app)
            redis.flushdb()
            assert is_held(app)
        assert is_free(app)


def test_what_redis_remembers_of_a_dead_holder_costs_a_second(
    database: Store, redis_url: str
) -> None:
    """Its lease was deleted; its key would last for the length of a lease."""
    with opened(database.url, redis_url) as app:
        dead = section(app)
        lock = in_threads(1, lambda _: dead.__enter__())[0]
        Member.of(app).leases.ledger.release([lock.lease.id])
        assert is_free(app)


def test_a_redis_url_that_celery_cannot_use_is_an_error_that_says_so(database: Store) -> None:
    url = "rediss://:secret@127.0.0.1:1/0?ssl_cert_reqs=perhaps"
    with (
        opened(database.url, url) as app,
        pytest.raises(ImproperlyConfigured, match="idem_redis_url = ") as caught,
        section(app),
    ):
        pass
    assert "ssl_cert_reqs" in str(caught.value) and "secret" not in str(caught.value)


def test_a_ledger_that_is_away_lets_nobody_in(redis_url: str) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    with opened(nowhere, redis_url) as app, pytest.raises(LedgerError), section(app):
        pass
