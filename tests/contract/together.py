"""Running the same thing in many threads and processes at the same moment.

Owns starting, collecting and failing. Must not know what is run.
"""

from __future__ import annotations

import multiprocessing
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

#: Seconds in which everything must have ended.
TIMEOUT = 60.0

#: Forked from a process without threads that has loaded everything: new ones begin at once.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.contract.stores", "alembic.command"])


def in_threads(number: int, function: Callable[[int], T]) -> list[T]:
    """``function(0)`` to ``function(number - 1)``, begun at the same moment."""
    barrier = threading.Barrier(number)

    def run(index: int) -> T:
        barrier.wait(TIMEOUT)
        return function(index)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(run, range(number), timeout=TIMEOUT))


def in_processes(number: int, function: Callable[..., T], *args: Any) -> list[T]:
    """``function(index, *args)`` in as many new processes, begun at the same moment."""
    barrier = _context.Barrier(number)
    results: Any = _context.Queue()
    processes = [
        _context.Process(target=_run, args=(index, barrier, results, function, args), daemon=True)
        for index in range(number)
    ]
    for process in processes:
        process.start()
    try:
        found = [_next(results, processes) for _ in processes]
    finally:
        for process in processes:
            process.join(TIMEOUT)
            process.kill()
            process.join()
            process.close()
        results.close()
    for error in (value for _, value in found if isinstance(value, BaseException)):
        raise error
    return [value for _, value in sorted(found, key=lambda item: item[0])]


def _run(index: int, barrier: Any, results: Any, function: Callable[..., T], args: Any) -> None:
    try:
        barrier.wait(TIMEOUT)
        results.put((index, function(index, *args)))
    except BaseException as exc:
        results.put((index, RuntimeError(f"process {index}: {exc!r}")))
        raise


def _next(results: Any, processes: list[Any]) -> tuple[int, Any]:
    while True:
        try:
            found: tuple[int, Any] = results.get(timeout=1.0)
            return found
        except queue.Empty:
            dead = [process.exitcode for process in processes if process.exitcode]
            assert not dead, f"processes ended without an answer: {dead}"
