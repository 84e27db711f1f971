"""Messages a second of a worker: an idempotent task beside a plain one that acknowledges late.

Owns the row. The bodies are empty, so that this is the worst that the claim can cost; real bodies
take milliseconds and more. Must not know how a claim is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from bench.base import Row, Servers, in_turn, ratio
from bench.workers import Queue, client, worker

MESSAGES = 1500
ROUNDS = 5


def measure(servers: Servers) -> Iterator[Row]:
    """One worker with two processes; queues of messages of either task, in turn."""
    app = client(servers)
    numbers = count()
    messages = servers.few(MESSAGES)

    def rate(task: str) -> float:
        queue = Queue(servers, app, f"throughput-{next(numbers)}")
        try:
            queue.fill(task, messages)
            return messages / queue.empty_by("throughput@bench")
        finally:
            queue.close()

    with worker(servers, "throughput", "--concurrency", "2"):
        rates = in_turn(
            {"idem": lambda: rate("bench.idem"), "plain": lambda: rate("bench.plain")},
            servers.few(ROUNDS),
        )
    yield Row(
        "worker with empty IdempotentTask, prefork, 2 processes",
        "plain task with acks_late",
        rates["idem"],
        rates["plain"],
        "messages/s",
        ratio(rates["idem"], rates["plain"]),
    )
