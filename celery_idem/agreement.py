"""Whether the clock of a beat agrees with the database's.

Slots are due by the clock of the beat. One that is minutes ahead would publish what is not due, and
would take for missed what is about to come. Owns the comparison of both clocks, and from when on a
beat is not to be trusted. What it knows stays true while the database is away. Must not know slots.
"""

from __future__ import annotations

from datetime import timedelta

from celery_idem import signals
from celery_idem.clock import Clock
from celery_idem.errors import LedgerError
from celery_idem.ledger import Ledger
from celery_idem.outage import Outage, is_ledger_error

#: Seconds between two comparisons, and while the clocks do not agree.
EVERY, SOON = 60.0, 1.0
#: Seconds by which a clock may be off without a word, and with a warning.
SILENT, TOLERATED = 5.0, 30.0
#: Seconds by which a wall clock leaves its way when it is set, rather than slewed.
STEP = 1.0


class Agreement:
    """The clock of one beat, compared with its ledger's."""

    def __init__(self, ledger: Ledger, outage: Outage, clock: Clock) -> None:
        self._ledger = ledger
        self._outage = outage
        self._clock = clock
        #: Seconds by which the beat's clock is ahead, as far as is sure.
        self._ahead = 0.0
        self._told = ""
        self._look_at = float("-inf")
        self._lead = self._wall() - clock.elapsed()

    def holds(self) -> bool:
        """Compare the clocks, if it is time; False if the beat is not to emit anything."""
        self._notice_step()
        if self._clock.elapsed() >= self._look_at and not self._outage.is_left_alone:
            try:
                # It only reads: no proof that the ledger can be written.
                with self._outage.watch(is_ledger_error, proves=False):
                    self._compare()
            except LedgerError:
                pass
            else:
                agrees = abs(self._ahead) <= SILENT
                self._look_at = self._clock.elapsed() + (EVERY if agrees else SOON)
        self._tell()
        return not self.is_refused

    @property
    def is_refused(self) -> bool:
        """True if, as far as is known, the clock is too far off."""
        return abs(self._ahead) > TOLERATED

    def _wall(self) -> float:
        return self._clock.now().timestamp()

    def _notice_step(self) -> None:
        """Somebody may set the clock at any moment: right, or wrong."""
        lead = self._wall() - self._clock.elapsed()
        step, self._lead = lead - self._lead, lead
        if abs(step) > STEP:
            self._look_at = float("-inf")
            if self._told:
                self._ahead += step

    def _compare(self) -> None:
        before, started = self._clock.now(), self._clock.elapsed()
        theirs = self._ledger.now()
        # The database has read its clock at some moment in between.
        doubt = (self._clock.elapsed() - started) / 2
        ahead = (before + timedelta(seconds=doubt) - theirs).total_seconds()
        sure = max(0.0, abs(ahead) - doubt)
        self._ahead = sure if ahead > 0 else -sure

    def _tell(self) -> None:
        off = abs(self._ahead)
        state = "refused" if off > TOLERATED else "warned" if off > SILENT else ""
        if state == self._told:
            return
        self._told = state
        if state == "refused":
            signals.clock_refused(self._ahead, TOLERATED)
        elif state == "warned":
            signals.clock_off(self._ahead)
        else:
            signals.clock_agrees()
