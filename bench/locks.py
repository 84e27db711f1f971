"""Entering and leaving a critical section, and being turned away, beside redis-py's own lock.

Owns the rows: with a Redis in front of the rows of the ledger, and by these alone. What redis-py
does not do is most of the difference: a fence, a holder's lease, a row that outlives Redis. Must
not know how locks are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery import Celery
from redis import Redis

from bench.base import Row, Servers, in_turn, ratio, seconds
from celery_idem import critical_section
from celery_idem.errors import LockNotAcquired
from celery_idem.member import Member

ENTRIES, ATTEMPTS = 200, 400
ROUNDS = 9


def measure(servers: Servers) -> Iterator[Row]:
    """Rounds of entries into a free section, and of attempts at one that is held."""
    name = f"{servers.prefix}stock"
    rows, redis = _app(servers, None), _app(servers, servers.broker_url)
    with Redis.from_url(servers.broker_url) as client:
        lock = client.lock(name, timeout=60)
        entries, attempts = servers.few(ENTRIES), servers.few(ATTEMPTS)

        def theirs() -> None:
            with lock:
                pass

        entering = {
            "rows": _often(lambda: _enter(rows, name), entries),
            "redis": _often(lambda: _enter(redis, name), entries),
            "theirs": _often(theirs, entries),
        }
        took = in_turn(entering, servers.few(ROUNDS), warm_up=1)
        yield _entry("by the ledger alone", took["rows"] / entries, took["theirs"] / entries)
        yield _entry("with Redis in front", took["redis"] / entries, took["theirs"] / entries)
        with ThreadPoolExecutor(1) as other, lock:
            held = critical_section(name, app=redis)
            other.submit(held.__enter__).result()
            trying = {
                "rows": _often(lambda: _is_held(rows, name), attempts),
                "redis": _often(lambda: _is_held(redis, name), attempts),
                "theirs": _often(lambda: not lock.acquire(blocking=False), attempts),
            }
            took = in_turn(trying, servers.few(ROUNDS), warm_up=1)
            other.submit(held.__exit__, None, None, None).result()
        yield _attempt("by the ledger alone", attempts / took["rows"], attempts / took["theirs"])
        yield _attempt("with Redis in front", attempts / took["redis"], attempts / took["theirs"])
    for app in (rows, redis):
        Member.of(app).leases.close()
        app.close()


def _app(servers: Servers, redis: str | None) -> Celery:
    app = Celery("bench", set_as_current=False)
    app.conf.update(idem_database_url=servers.database_url, idem_redis_url=redis)
    return app


def _enter(app: Celery, name: str) -> None:
    with critical_section(name, app=app):
        pass


def _is_held(app: Celery, name: str) -> bool:
    try:
        _enter(app, name)
    except LockNotAcquired:
        return True
    return False


def _often(call: Callable[[], Any], times: int) -> Callable[[], float]:
    def all_of_them() -> None:
        for _ in range(times):
            call()

    return lambda: seconds(all_of_them)


def _entry(how: str, ours: float, theirs: float) -> Row:
    return Row(
        f"critical section, enter and leave, {how}",
        "redis-py's Lock, acquire and release",
        ours * 1e6,
        theirs * 1e6,
        "µs",
        ratio(ours, theirs),
    )


def _attempt(how: str, ours: float, theirs: float) -> Row:
    return Row(
        f"attempts at a lock that is held, {how}",
        "redis-py's Lock",
        ours,
        theirs,
        "attempts/s",
        ratio(ours, theirs),
    )
