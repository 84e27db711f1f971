"""What is taken back as soon as the ledger answers again.

Owns the thread that does it, one thing after another, and how long it tries. Must not know claims
nor leases: by the time that it was given, a thing is settled by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from celery_idem import signals
from celery_idem.clock import Clock
from celery_idem.errors import LedgerError, LedgerUnavailable
from celery_idem.ledger import Ledger
from celery_idem.real_threads import Bell, start_real_thread

#: Seconds between two tries while the ledger does not answer.
PAUSE = 0.5

#: Takes something back; it may be called again if the ledger did not answer.
Undo = Callable[[Ledger], None]


@dataclass(frozen=True, eq=False)
class _Doubt:
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
        with self._lock:
            self._waiting.append(_Doubt(undo, self._clock.elapsed() + seconds))
            if self._has_thread:
                return
            try:
                self._has_thread = True
                start_real_thread(self._run)
            except RuntimeError:  # There can be no more threads; it settles itself.
                self._has_thread = False
            except BaseException:
                self._has_thread = False
                raise

    def settle(self, ledger: Ledger) -> None:
        """Try once, at the end of the process, what waits still.

        What the thread is about as well, as it ends with the process: to undo it twice is harmless.

        Raises:
            LedgerUnavailable: the ledger does not answer.
        """
        for doubt in list(self._waiting):
            self._undo(doubt, ledger)

    def _run(self) -> None:
        try:
            self._undo_all()
        except BaseException:
            self._has_thread = False
            raise

    def _undo_all(self) -> None:
        pause = Bell()
        ledger: Ledger | None = None
        while (doubt := self._next()) is not None:
            try:
                ledger = ledger or self._make_ledger()
                self._undo(doubt, ledger)
            except Exception as exc:
                self._remove(doubt)
                if self._clock.elapsed() < doubt.settled_at:
                    with self._lock:
                        self._waiting.append(doubt)
                    pause.wait(PAUSE)
                else:
                    signals.ledger_lost("What was in doubt is left to end by itself", exc)
        if ledger is not None:
            ledger.close()

    def _next(self) -> _Doubt | None:
        """The one that has waited for longest; without one the thread ends."""
        with self._lock:
            self._has_thread = bool(self._waiting)
            return self._waiting[0] if self._waiting else None

    def _undo(self, doubt: _Doubt, ledger: Ledger) -> None:
        try:
            doubt.undo(ledger)
        except LedgerUnavailable:
            raise
        except LedgerError as exc:
            # To repeat it will not help, and others wait.
            signals.ledger_lost("What was in doubt is left to end by itself", exc)
        self._remove(doubt)

    def _remove(self, doubt: _Doubt) -> None:
        with self._lock, suppress(ValueError):
            self._waiting.remove(doubt)
