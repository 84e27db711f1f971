"""Threads of the operating system, also where gevent has patched what Python calls threads.

Under gevent a patched thread does not run while a greenlet computes. Must not know what is done in
them.
"""

from __future__ import annotations

import _thread
import sys
from collections.abc import Callable
from typing import Any


def start_real_thread(function: Callable[[], None]) -> None:
    """Call `function` in a thread of the operating system, which ends with the process."""
    _real("start_new_thread")(function, ())


class Bell:
    """A wait that somebody may end: the only one that works in a real thread under gevent."""

    def __init__(self) -> None:
        self._lock = _real("allocate_lock")()
        self._lock.acquire()

    def ring(self) -> None:
        """End the wait, or the next one. Called once."""
        self._lock.release()

    def wait(self, seconds: float) -> bool:
        """Wait for so long; True if it has rung."""
        return bool(self._lock.acquire(True, seconds))


def _real(name: str) -> Any:
    """A function of `_thread`, as it was before gevent patched it."""
    if "gevent.monkey" in sys.modules:
        from gevent.monkey import get_original

        return get_original("_thread", name)
    return getattr(_thread, name)
