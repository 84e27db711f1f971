"""Messages a second of a beat with many entries due at once, beside publishing alone.

Owns the rows: celery_idem's scheduler, which also records each slot in the ledger, and Celery's
own, against `apply_async` in a loop in the same process. Must not know how a scheduler works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from math import inf
from typing import Any
from uuid import uuid4

from celery import Celery
from celery.beat import Scheduler
from celery.schedules import schedule
from redis import Redis

from bench.app import make
from bench.base import Row, Servers, in_turn, ratio, seconds
from bench.workers import environment
from celery_idem import IdempotentScheduler, agreement
from celery_idem.clock import SystemClock

#: Entries that are due together, and how often that is measured.
SIZES = {1_000: 5, 20_000: 1}
#: Messages after which Celery's own scheduler is stopped: all 20,000 would take it minutes.
ENOUGH = 100
HOUR = timedelta(hours=1)
AIM = ">= 0.9 x"


def measure(servers: Servers) -> Iterator[Row]:
    """For each number of entries: the three candidates in turn."""
    for size, rounds in SIZES.items():
        yield from _measure(servers, servers.few(size), servers.few(rounds))


def _measure(servers: Servers, size: int, rounds: int) -> Iterator[Row]:
    with Redis.from_url(servers.broker_url) as redis:
        queues = Queues(redis, servers.prefix)
        idem = Idem(_app(servers, _entries(size, "bench.idem", "idem")), queues, size)
        stock = Stock(_app(servers, _entries(size, "bench.plain", "stock")), queues, size)
        loop = Loop(_app(servers, {}), queues, size)
        rates = in_turn(
            {"idem": idem.rate, "loop": loop.rate, "stock": stock.rate}, rounds, warm_up=0
        )
        idem.close()
    against = "apply_async in a loop, same process"
    for name, what in (("idem", "IdempotentScheduler"), ("stock", "Celery's own scheduler")):
        yield Row(
            f"{what}, {size:,} entries due at once",
            against,
            rates[name],
            rates["loop"],
            "messages/s",
            ratio(rates[name], rates["loop"]),
            AIM if name == "idem" else "",
        )


class Queues:
    """The queues to which is published."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis = redis
        self._prefix = prefix

    def length(self, name: str) -> int:
        return int(self._redis.llen(f"{self._prefix}{name}"))

    def rate(self, name: str, publish: Callable[[], None]) -> float:
        """Messages a second that `publish` publishes to a queue, which is emptied then."""
        took = seconds(publish)
        count = self.length(name)
        self._redis.delete(f"{self._prefix}{name}")
        return count / took


class Ahead(SystemClock):
    """A wall clock that can be put forward, so that nobody waits for the hour."""

    def __init__(self) -> None:
        self.offset = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.offset

    def to_next_hour(self) -> None:
        """Go on just after the next full hour: the next slot of every entry."""
        now = self.now()
        hour = now.replace(minute=0, second=0, microsecond=0) + HOUR
        self.offset += hour - now + timedelta(milliseconds=10)


class Idem:
    """celery_idem's scheduler, from the moment at which the entries are due."""

    def __init__(self, app: Celery, queues: Queues, size: int) -> None:
        # A beat whose clock is hours ahead of the database's would emit nothing.
        agreement.SILENT = agreement.TOLERATED = inf
        self._clock = Ahead()
        self._queues = queues
        self._size = size
        self._scheduler = IdempotentScheduler(app=app, lazy=True)
        self._scheduler.clock = self._clock
        self._scheduler.setup_schedule()
        # Entries are made, and become active, once in the life of a beat.
        self._scheduler.tick()

    def rate(self) -> float:
        self._clock.to_next_hour()
        return self._queues.rate("idem", self._publish_all)

    def _publish_all(self) -> None:
        before = -1
        while before < (length := self._queues.length("idem")) < self._size:
            before = length
            self._scheduler.tick()
        if length != self._size:
            raise RuntimeError(f"{length} messages were published of {self._size} that were due")

    def close(self) -> None:
        self._scheduler.close()


class Stock:
    """Celery's own scheduler, whose entries are all due at its start."""

    def __init__(self, app: Celery, queues: Queues, size: int) -> None:
        self._app = app
        self._queues = queues
        # Without the one of its first tick.
        self._count = min(size - 1, ENOUGH)

    def rate(self) -> float:
        scheduler = Scheduler(app=self._app)
        # It makes its heap, which it does once.
        scheduler.tick()
        self._queues.rate("stock", lambda: None)

        def publish() -> None:
            for _ in range(self._count):
                scheduler.tick()

        return self._queues.rate("stock", publish)


class Loop:
    """What there is at best: one message after the other on one connection."""

    def __init__(self, app: Celery, queues: Queues, size: int) -> None:
        self._app = app
        self._queues = queues
        self._size = size

    def rate(self) -> float:
        return self._queues.rate("loop", self._publish)

    def _publish(self) -> None:
        task: Any = self._app.tasks["bench.plain"]
        with self._app.producer_or_acquire() as producer:
            for _ in range(self._size):
                task.apply_async(queue="loop", producer=producer)


def _app(servers: Servers, entries: dict[str, Any]) -> Celery:
    app = make(environment(servers))
    # The slots of another measurement are recorded already.
    app.conf.idem_namespace = f"bench-{uuid4().hex}"
    app.conf.beat_schedule = entries
    return app


def _entries(size: int, task: str, queue: str) -> dict[str, Any]:
    long_ago = datetime.now(timezone.utc) - 2 * HOUR
    return {
        f"entry-{number}": {
            "task": task,
            "schedule": schedule(HOUR),
            "options": {"queue": queue},
            # For Celery's own scheduler: due at once.
            "last_run_at": long_ago,
        }
        for number in range(size)
    }
