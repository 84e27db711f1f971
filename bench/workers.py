"""A real worker process for a measurement.

Owns starting and ending it, and knowing when it has done all of its messages, which is asked of the
broker so that the tasks can be empty. Must not know what is measured.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from celery import Celery
from redis import Redis

from bench.base import Servers
from example_project.demo.processes import Process

ROOT = Path(__file__).resolve().parents[1]
#: Seconds in which a worker must get ready, or do what was asked of it.
PATIENCE = 120.0


@contextmanager
def worker(servers: Servers, name: str, *options: str, **env: str) -> Iterator[Process]:
    """A worker of `bench.app`, ready; ended at the end."""
    log = servers.directory / f"{name}.log"
    command = [sys.executable, "-m", "celery", "-A", "bench.app", "worker", "--loglevel", "INFO"]
    command += ["--hostname", f"{name}@bench", "--without-gossip", "--without-mingle", *options]
    process = Process(command, log, env={**os.environ, **environment(servers), **env}, cwd=ROOT)
    try:
        _wait_ready(process, f"{name}@bench ready.")
        yield process
    finally:
        process.stop()


def environment(servers: Servers) -> Mapping[str, str]:
    """What `bench.app` reads."""
    return {
        "BENCH_BROKER_URL": servers.broker_url,
        "BENCH_PREFIX": servers.prefix,
        "BENCH_DATABASE_URL": servers.database_url,
    }


def client(servers: Servers) -> Celery:
    """An app that publishes to the workers, and imports none of their tasks."""
    app = Celery("bench", broker=servers.broker_url)
    app.conf.broker_transport_options = {"global_keyprefix": servers.prefix}
    return app


class Queue:
    """A queue of the broker, to which a worker is sent once it is full."""

    def __init__(self, servers: Servers, app: Celery, name: str) -> None:
        self._redis = Redis.from_url(servers.broker_url)
        self._prefix = servers.prefix
        self._app = app
        self.name = name

    def fill(self, task: str, count: int) -> None:
        """Publish `count` messages of a task."""
        with self._app.producer_or_acquire() as producer:
            for _ in range(count):
                self._app.send_task(task, queue=self.name, producer=producer)

    def empty_by(self, node: str) -> float:
        """Let the worker have the queue; return the seconds until the last message was done."""
        started = time.perf_counter()
        self._app.control.add_consumer(self.name, destination=[node])
        deadline = started + PATIENCE
        while self._left():
            if time.perf_counter() > deadline:
                raise RuntimeError(f"{node} did not empty {self.name} in {PATIENCE:g} s")
            time.sleep(0.005)
        took = time.perf_counter() - started
        self._app.control.cancel_consumer(self.name, destination=[node])
        return took

    def close(self) -> None:
        """Disconnect."""
        self._redis.close()

    def _left(self) -> int:
        with self._redis.pipeline() as pipe:
            pipe.llen(f"{self._prefix}{self.name}")
            # Acknowledged late, so that what is being executed is still in here.
            pipe.hlen(f"{self._prefix}unacked")
            waiting, unacknowledged = pipe.execute()
        return int(waiting) + int(unacknowledged)


def _wait_ready(process: Process, sign: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while sign not in process.log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the worker did not get ready:\n{process.tail(20)}")
        time.sleep(0.05)
