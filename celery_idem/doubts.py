"""What is taken back as soon as the ledger answers again.

Owns the thread that does it, one thing after another, and how long it tries. Must not know claims
nor leases: by the time that it was given, a thing is settled by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from celery_idem import signals
from celery_idem.clock import Clock
from celery_idem.errors import LedgerError, LedgerUnavailable
from celery_idem.ledger import Ledger
from celery_idem.real_threads import Bell, start_real_thread

#: Seconds between two tries while the ledger does not answer.
PAUSE = 0.5

#: Takes something back; it may be called again if the ledger did not answer.
Undo = Callable[[Ledger], None]


class _Doubt(NamedTuple):
    undo: Undo
    #: On the process's clock.
    settled_at: float


class Doubts:
    """What this process has to take back.

    Arguments:
        make_ledger: makes a ledger, whose connection no other thread ever touches.
    """

    def __init__(self, make_ledger: Callable[[], Ledger], clock: Clock) -> None:
        self._make_ledger = make_ledger
        self._clock = clock
        self.forget()

    def forget(self) -> None:
        """They are another process's, which this one was forked from."""
        self._lock = threading.Lock()
        self._waiting: list[_Doubt] = []
        self._has_thread = False

    def add(self, undo: Undo, seconds: float) -> None:
        """Call `undo` in another thread, until the ledger has answered or `seconds` have passed."""
        doubt = _Doubt(undo, self._clock.elapsed() + seconds)
        with self._lock:
            self._waiting.append(doubt)
            starts, self._has_thread = not self._has_thread, True
        if not starts:
            return
        try:
            start_real_thread(self._run)
        except RuntimeError:  # There can be no more threads; it settles itself.
            self._has_thread = False

    def settle(self, ledger: Ledger) -> None:
        """Try once, at the end of the process, what waits still.

        Raises:
            LedgerUnavailable: the ledger does not answer.
        """
        while (doubt := self._next()) is not None:
            self._undo(doubt, ledger)

    def _next(self) -> _Doubt | None:
        """Each for one caller alone."""
        with self._lock:
            return self._waiting.pop(0) if self._waiting else None

    def _next_or_end(self) -> _Doubt | None:
        """As `_next`, for the thread; without one it ends, and the next `add` starts another."""
        with self._lock:
            if self._waiting:
                return self._waiting.pop(0)
            self._has_thread = False
            return None

    def _run(self) -> None:
        pause = Bell()
        ledger: Ledger | None = None
        while (doubt := self._next_or_end()) is not None:
            try:
                ledger = ledger or self._make_ledger()
                self._undo(doubt, ledger)
            except Exception as exc:
                if self._clock.elapsed() >= doubt.settled_at:
                    signals.ledger_lost("What was in doubt is left to end by itself", exc)
                    continue
                with self._lock:
                    self._waiting.append(doubt)
                pause.wait(PAUSE)
        if ledger is not None:
            ledger.close()

    @staticmethod
    def _undo(doubt: _Doubt, ledger: Ledger) -> None:
        try:
            doubt.undo(ledger)
        except LedgerUnavailable:
            raise
        except LedgerError as exc:
            # To repeat it will not help, and others wait.
            signals.ledger_lost("What was in doubt is left to end by itself", exc)
