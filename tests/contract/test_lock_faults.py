"""Locks under faults: nobody too many is ever inside, and a dead holder keeps nobody out for long.

What is said of redis-py's own lock in the documentation is tested here as well.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from celery import Celery
from redis import Redis
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from celery_idem import critical_section
from tests.contract.sections import is_held, opened
from tests.contract.stores import Store
from tests.contract.together import in_processes, in_threads
from tests.processes import python_path
from tests.proxy import Proxy

pytestmark = pytest.mark.slow

#: Seconds.
LEASE = 3.0
SHORT = {"idem_lease": LEASE}
#: Entries of each contender; more by the environment, for a longer run.
TIMES = int(os.environ.get("IDEM_TEST_LOCK_TIMES", "6"))
PROCESSES, THREADS = 4, 4


@pytest.fixture(params=["rows", "redis"])
def redis(request: pytest.FixtureRequest) -> str | None:
    """URL of a Redis, or none."""
    if request.param == "rows":
        return None
    return str(request.getfixturevalue("redis_url"))


HOLDER = """
import sys
from celery_idem import critical_section
from tests.contract.sections import make_app

app = make_app(sys.argv[1], sys.argv[2] or None, idem_lease=float(sys.argv[3]))
with critical_section("stock", app=app) as lock:
    print(lock.fence, flush=True)
    sys.stdin.readline()
    print(lock.lost, flush=True)
"""


@contextmanager
def holder(url: str, redis: str | None) -> Iterator[subprocess.Popen[str]]:
    """A process that is in the section, and stays until it is told."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, url, redis or "", str(LEASE)],
        env={**os.environ, "PYTHONPATH": python_path()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def fence_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


@pytest.mark.sample("postgres-rows", "mariadb-redis", "sqlite-rows")
def test_after_kill_9_of_the_holder_the_lock_is_free_within_its_lease(
    database: Store, redis: str | None
) -> None:
    with (
        holder(database.url, redis) as process,
        opened(database.url, redis, **SHORT) as app,
    ):
        fence = fence_of(process)
        assert is_held(app)
        process.kill()
        with critical_section("stock", wait=60, app=app) as lock:
            assert lock.fence > fence


@pytest.mark.sample("postgres-redis", "mariadb-rows", "sqlite-redis")
def test_a_stopped_holder_has_lost_its_lock_when_another_is_in(
    database: Store, redis: str | None
) -> None:
    with (
        holder(database.url, redis) as process,
        opened(database.url, redis, **SHORT) as app,
    ):
        fence = fence_of(process)
        process.send_signal(signal.SIGSTOP)
        with critical_section("stock", wait=60, app=app) as lock:
            assert lock.fence > fence
            process.send_signal(signal.SIGCONT)
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "True\n"
            assert process.wait(60) == 0
            assert is_held(app), "what the late one gave back was not its own"
            lock.check()


def test_a_flushed_redis_lets_nobody_in(database: Store, redis_url: str) -> None:
    with (
        holder(database.url, redis_url) as process,
        opened(database.url, redis_url, **SHORT) as app,
    ):
        fence_of(process)
        with Redis.from_url(redis_url) as client:
            for _ in range(3):
                client.flushdb()
                assert is_held(app)


def test_a_redis_that_is_away_lets_nobody_in_and_keeps_nobody_out(
    database: Store, redis_url: str
) -> None:
    with Proxy.before(redis_url) as proxy:
        url = proxy.url(redis_url)
        with (
            holder(database.url, url) as process,
            opened(database.url, url, **SHORT) as app,
        ):
            fence_of(process)
            assert is_held(app)
            proxy.cut()
            assert is_held(app)
            process.kill()
            with critical_section("stock", wait=60, app=app):
                proxy.mend()
                assert is_held(app)
            assert not is_held(app)


class Stay(NamedTuple):
    """When somebody was inside, by the clock that all processes of this machine share."""

    entered: float
    left: float
    fence: int


def contend(index: int, url: str, redis: str | None, times: int) -> list[Stay]:
    """Enter again and again in several threads; each entry writes to a table, by its fence."""
    engine = create_engine(Store.at("witness", url).sql.database.url, poolclass=NullPool)
    guarded = text("UPDATE witness SET fence = :fence, entries = entries + 1 WHERE fence < :fence")

    def enter(app: Celery) -> list[Stay]:
        stays: list[Stay] = []
        while len(stays) < times:
            with critical_section("stock", wait=60, app=app) as lock:
                entered = time.monotonic()
                with engine.begin() as connection:
                    assert connection.execute(guarded, {"fence": lock.fence}).rowcount == 1
                stays.append(Stay(entered, time.monotonic(), lock.fence))
        return stays

    with opened(url, redis) as app:
        return [stay for each in in_threads(THREADS, lambda _: enter(app)) for stay in each]


@pytest.mark.sample("postgres-rows", "mariadb-redis", "sqlite-rows")
def test_sixteen_contenders_are_inside_one_after_the_other(
    database: Store, redis: str | None
) -> None:
    """By an interval log, and by writes that only ever larger fences can make."""
    times = TIMES if database.name != "sqlite" else min(TIMES, 2)
    engine = create_engine(database.sql.database.url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS witness"))
        connection.execute(text("CREATE TABLE witness (fence BIGINT, entries BIGINT)"))
        connection.execute(text("INSERT INTO witness VALUES (0, 0)"))
    found = in_processes(PROCESSES, contend, database.url, redis, times)
    stays = sorted(stay for each in found for stay in each)
    assert len(stays) == PROCESSES * THREADS * times
    overlaps = [(one, two) for one, two in pairwise(stays) if two.entered < one.left]
    assert overlaps == []
    assert [stay.fence for stay in stays] == sorted({stay.fence for stay in stays})
    with engine.begin() as connection:
        entries: Any = connection.execute(text("SELECT entries FROM witness")).scalar()
        connection.execute(text("DROP TABLE witness"))
    assert entries == len(stays)


# -- what others do ------------------------------------------------------------------------------


def test_redis_pys_lock_lets_two_in_when_redis_is_flushed(redis_url: str) -> None:
    with Redis.from_url(redis_url) as client:
        first = client.lock("stock", timeout=60)
        assert first.acquire(blocking=False)
        client.flushdb()
        assert client.lock("stock", timeout=60).acquire(blocking=False)
        assert first.local.token is not None, "who believes to hold it"


def test_redis_pys_lock_lets_two_in_when_its_holder_stands_still(redis_url: str) -> None:
    """It is not renewed by itself, and nobody tells the first one."""
    with Redis.from_url(redis_url) as client:
        first = client.lock("stock", timeout=0.1)
        assert first.acquire(blocking=False)
        assert client.lock("stock", timeout=60).acquire(blocking=True, blocking_timeout=30)
        assert first.local.token is not None
