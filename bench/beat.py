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
SIZES = {1_000: 5, 20_000: 1, 50_000: 1}
#: Messages after which Celery's own scheduler is stopped: all 20,000 would take it minutes.
ENOUGH = 100
#: Entries with which it is not tried any more.
MOST = 20_000
HOUR = timedelta(hours=1)
AIM = ">= 0.9 x"


def measure(servers: Servers) -> Iterator[Row]:
    """For each number of entries: the three candidates in turn."""
    for size, rounds in SIZES.items():
        yield from _measure(servers, servers.few(size), servers.few(rounds), size <= MOST)


def _measure(servers: Servers, size: int, rounds: int, with_stock: bool) -> Iterator[Row]:
    with Redis.from_url(servers.broker_url) as redis:
        queues = Queues(redis, servers.prefix)
        idem = Idem(make_app(servers, entries_of(size, "bench.idem", "idem")))
        loop = Loop(make_app(servers, {}), queues, size)
        candidates = {
            "idem": lambda: queues.rate("idem", lambda: _publish_all(idem, queues, size)),
            "loop": loop.rate,
        }
        if with_stock:
            stock = Stock(make_app(servers, entries_of(size, "bench.plain", "stock")), queues, size)
            candidates["stock"] = stock.rate
        rates = in_turn(candidates, rounds, warm_up=0)
        idem.close()
    against = "apply_async in a loop, same process"
    for name, what in (("idem", "IdempotentScheduler"), ("stock", "Celery's own scheduler")):
        if name not in rates:
            continue
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

    def drop(self, name: str) -> None:
        """Empty a queue."""
        self._redis.delete(f"{self._prefix}{name}")

    def rate(self, name: str, publish: Callable[[], None]) -> float:
        """Messages a second that `publish` publishes to a queue, which is emptied then."""
        took = seconds(publish)
        count = self.length(name)
        self.drop(name)
        return count / took


class Ahead(SystemClock):
    """A wall clock that can be put forward, so that nobody waits for the hour."""

    def __init__(self) -> None:
        self.offset = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.offset

    def next_hour(self) -> datetime:
        """The next full hour: the next slot of every entry."""
        return self.now().replace(minute=0, second=0, microsecond=0) + HOUR

    def to(self, hour: datetime) -> None:
        """Go on just after this instant."""
        self.offset += hour - self.now() + timedelta(milliseconds=10)


class Idem:
    """celery_idem's scheduler, from the moment at which its entries are due."""

    def __init__(self, app: Celery) -> None:
        # A beat whose clock is hours ahead of the database's would emit nothing.
        agreement.SILENT = agreement.TOLERATED = inf
        self._clock = Ahead()
        self._scheduler = IdempotentScheduler(app=app, lazy=True)
        self._scheduler.clock = self._clock
        self._scheduler.setup_schedule()
        # Entries are made, and become active, once in the life of a beat.
        self._scheduler.tick()

    def publish(self, hour: datetime | None = None) -> None:
        """Publish what is due at this hour, which comes now."""
        self._clock.to(hour or self._clock.next_hour())
        self._scheduler.tick()

    def close(self) -> None:
        self._scheduler.close()


def _publish_all(idem: Idem, queues: Queues, size: int) -> None:
    idem.publish()
    if queues.length("idem") != size:
        raise RuntimeError(f"{queues.length('idem')} of {size} messages that were due")


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


def make_app(servers: Servers, entries: dict[str, Any], namespace: str | None = None) -> Celery:
    """An app with this schedule; of a namespace of its own, as slots are recorded once."""
    app = make(environment(servers))
    app.conf.idem_namespace = namespace or f"bench-{uuid4().hex}"
    app.conf.beat_schedule = entries
    return app


def entries_of(size: int, task: str, queue: str, *, due: bool = True) -> dict[str, Any]:
    """Entries of each full hour; `due` at once for Celery's own scheduler, or not."""
    last = datetime.now(timezone.utc) - (2 * HOUR if due else timedelta(0))
    return {
        f"entry-{number}": {
            "task": task,
            "schedule": schedule(HOUR),
            "options": {"queue": queue},
            "last_run_at": last,
        }
        for number in range(size)
    }
