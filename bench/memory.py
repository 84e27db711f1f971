"""Resident memory of a worker's child process, beside one of a plain Celery worker.

Owns the row. Each child has executed some messages, so that everything that is loaded late is
there. Must not know what takes the memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import psutil

from bench.base import Row, Servers
from bench.workers import Queue, client, worker

MESSAGES = 200
MEGABYTE = 1_000_000
AIM = 30


def measure(servers: Servers) -> Iterator[Row]:
    """Two workers with one child each."""
    plain = _of_child(servers, "plain", "bench.plain", BENCH_PLAIN="1")
    idem = _of_child(servers, "idem", "bench.idem")
    yield Row(
        "resident memory of a worker's child",
        "plain Celery",
        idem,
        plain,
        "MB",
        f"+{idem - plain:.0f} MB",
        f"<= +{AIM} MB",
    )


def _of_child(servers: Servers, name: str, task: str, **env: str) -> float:
    queue = Queue(servers, client(servers), f"memory-{name}")
    try:
        with worker(servers, f"memory-{name}", "--concurrency", "1", **env) as process:
            queue.fill(task, servers.few(MESSAGES))
            queue.empty_by(f"memory-{name}@bench")
            children = psutil.Process(process.pid).children()
            return float(children[0].memory_info().rss) / MEGABYTE
    finally:
        queue.close()
