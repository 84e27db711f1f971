"""What many entries cost a beat that has nothing to do, and what several beats do together.

Owns the rows: the processor time of an idle beat with few and with many entries, the memory of an
entry beside Celery's own scheduler, and one beat beside three that have the same slots due. Must
not know how a scheduler works.
"""

from __future__ import annotations

import multiprocessing
import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any
from uuid import uuid4

from celery.beat import Scheduler
from redis import Redis

from bench.base import Row, Servers, in_turn, ratio
from bench.beat import Ahead, Idem, Queues, entries_of, make_app
from celery_idem import IdempotentScheduler

#: Entries of the beat that does nothing, and of the one that it is compared with.
MANY, FEW = 50_000, 10
#: Seconds for which it does nothing.
IDLE = 20.0
#: Entries whose memory is measured.
WEIGHED = 2_000
#: Slots that are due at once for three beats, and how often that is measured.
TOGETHER, ROUNDS = 2_000, 3
BEATS = 3
#: Seconds in which slots must be published.
PATIENCE = 120.0


def measure(servers: Servers) -> Iterator[Row]:
    """Three rows and one about copies."""
    yield _idle(servers)
    yield _memory(servers)
    yield from _together(servers)


# -- one beat ------------------------------------------------------------------------------------


def _idle(servers: Servers) -> Row:
    many = servers.few(MANY)
    shares = in_turn(
        {"few": lambda: _share(servers, FEW), "many": lambda: _share(servers, many)}, 1, warm_up=0
    )
    return Row(
        f"IdempotentScheduler with {many:,} entries and nothing due",
        f"with {FEW} entries",
        100 * shares["many"],
        100 * shares["few"],
        "% of a processor",
        ratio(shares["many"], shares["few"]),
        "<= 1 % more",
    )


def _share(servers: Servers, size: int) -> float:
    """The part of a processor that a beat takes which sleeps for as long as it may."""
    app = make_app(servers, entries_of(size, "bench.idem", "idle"))
    scheduler = IdempotentScheduler(app=app)
    for _ in range(3):
        scheduler.tick()
    began, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < (1.0 if servers.quick else IDLE):
        time.sleep(max(0.001, scheduler.tick()))
    share = (time.process_time() - used) / (time.perf_counter() - began)
    scheduler.close()
    return share


def _memory(servers: Servers) -> Row:
    size = servers.few(WEIGHED)
    idem = _weight(servers, size, IdempotentScheduler, "bench.idem")
    stock = _weight(servers, size, Scheduler, "bench.plain")
    return Row(
        "memory of an entry, IdempotentScheduler",
        "Celery's own scheduler",
        idem,
        stock,
        "bytes",
        ratio(idem, stock),
        "<= 1 x",
    )


def _weight(servers: Servers, size: int, cls: Callable[..., Any], task: str) -> float:
    """Bytes that a beat needs for each of its entries, without those of the schedule's setting."""
    found = []
    for number in (0, size):
        app = make_app(servers, entries_of(number, task, "weight", due=False))
        app.amqp  # noqa: B018 - what an app makes once
        tracemalloc.start()
        scheduler = cls(app=app)
        scheduler.tick()
        # Ours tidies up in its second round.
        time.sleep(1.1)
        scheduler.tick()
        found.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        scheduler.close()
    return (found[1] - found[0]) / size


# -- several beats -------------------------------------------------------------------------------


def _together(servers: Servers) -> Iterator[Row]:
    size = servers.few(TOGETHER)
    copies: list[float] = []
    rates = in_turn(
        {
            "one": lambda: _race(servers, size, 1)[0],
            "three": lambda: _race(servers, size, BEATS, copies)[0],
        },
        servers.few(ROUNDS),
        warm_up=0,
    )
    yield Row(
        f"{BEATS} beats, {size:,} entries due at once",
        "one of them alone",
        rates["three"],
        rates["one"],
        "slots/s",
        ratio(rates["three"], rates["one"]),
        ">= 1 x",
    )
    yield Row(
        f"copies published by {BEATS} beats",
        "by one of them alone",
        100 * max(copies),
        0.0,
        "% of the slots",
        f"+{100 * max(copies):.2g} %",
        "<= +1 %",
    )


def _race(
    servers: Servers, size: int, beats: int, copies: list[float] | None = None
) -> tuple[float, float]:
    """Slots a second from the moment at which they are due, and the part that came twice."""
    spawn = multiprocessing.get_context("spawn")
    ready, go = spawn.Barrier(beats + 1), spawn.Event()
    queue, namespace = f"race-{uuid4().hex}", f"bench-{uuid4().hex}"
    hour = Ahead().next_hour()
    running = [
        spawn.Process(target=_beat, args=(servers, size, queue, namespace, hour, ready, go))
        for _ in range(beats)
    ]
    for process in running:
        process.start()
    try:
        ready.wait(PATIENCE)
        with Redis.from_url(servers.broker_url) as redis:
            queues = Queues(redis, servers.prefix)
            began = time.perf_counter()
            go.set()
            while queues.length(queue) < size:
                if time.perf_counter() - began > PATIENCE:
                    raise RuntimeError(f"{queues.length(queue)} of {size} slots were published")
                time.sleep(0.002)
            took = time.perf_counter() - began
            for process in running:
                process.join(PATIENCE)
            doubled = (queues.length(queue) - size) / size
            queues.drop(queue)
    finally:
        for process in running:
            process.kill()
    if copies is not None:
        copies.append(doubled)
    return size / took, doubled


def _beat(
    servers: Servers,
    size: int,
    queue: str,
    namespace: str,
    hour: datetime,
    ready: Any,
    go: Any,
) -> None:
    app = make_app(servers, entries_of(size, "bench.idem", queue), namespace)
    idem = Idem(app)
    ready.wait(PATIENCE)
    go.wait(PATIENCE)
    idem.publish(hour)
    idem.close()
