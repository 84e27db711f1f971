"""Due slots into the ledger, and their messages to the broker.

Owns the order in which a slot is emitted: recorded, published, reported as published; and what
happens if the database or the broker is away. Without the ledger every beat publishes every slot,
and the workers tell the copies apart; without the broker slots are recorded, and published when it
is there again. Must not know when anything is due.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import islice
from typing import cast
from uuid import uuid4

from celery_idem import signals
from celery_idem.batches import Answer, Batch, Left, Source
from celery_idem.clock import Clock
from celery_idem.config import Settings
from celery_idem.due import Due, may_claim
from celery_idem.errors import LedgerError
from celery_idem.keys import RunKey
from celery_idem.ledger import HANDOVER, Ledger, NewSlot
from celery_idem.outage import Outage, begin, is_ledger_error
from celery_idem.publishing import Grace, Outcome, Publisher, Sender
from celery_idem.run import TOO_LATE, RunState

#: Slots recorded in one statement, and published before the next.
FEWEST, MOST = 20, 500
#: So many are published together, where kombu can: one by one, a lost connection is made anew.
MANY = 20
#: The part of the handover within which these are to be published: then another beat takes over.
#: Those that were recorded meanwhile have waited for as long.
TIMELY = 0.25
#: Slots that are remembered while ledger or broker are away; of more, the oldest are forgotten.
MOST_LEFT = 10_000


class Emitter:
    """Emits due slots of one app."""

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        publisher: Publisher,
        sender: Sender,
        outage: Outage,
        clock: Clock,
        grace: Grace,
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._publisher = publisher
        self._sender = sender
        self._outage = outage
        self._clock = clock
        self._grace = grace
        self._size = FEWEST
        self._left: deque[Left] = deque(maxlen=MOST_LEFT)

    def emit(self, dues: Iterable[Due]) -> bool:
        """Publish those of `dues` that no other beat has recorded.

        The ledger records some while those before them are published.

        Returns:
            True if another beat has recorded some, and is to publish them.
        """
        others = False
        source = Source(dues)
        batch = self._recording(source.take(self._size))
        ahead: Batch | None = None
        reports: list[Answer] = []
        try:
            while batch.dues:
                # Before anything is known to be won: it calls the code of schedules.
                following = source.take(self._size)
                won = self._wait(batch)
                # A plain task's slot is closed by its record: whoever ends now would take it along.
                if all(map(self._may_claim, following)):
                    ahead = self._recording(following)
                begun = self._emit(batch, won)
                others = others or (won is not None and len(won) < len(batch.dues))
                batch, ahead = ahead or self._recording(following), None
                self._finish(reports)
                reports = begun
            self._finish(reports)
        except Exception:
            if ahead is not None:
                self._keep(ahead)
            raise
        if source.error is not None:
            raise source.error
        return others

    def _keep(self, batch: Batch) -> None:
        """Of a batch that is not published, as something went wrong: what is recorded comes."""
        if self._wait(batch) is None:
            self._left.extend(Left(due) for due in batch.dues)

    def _emit(self, batch: Batch, won: set[RunKey] | None) -> list[Answer]:
        if won is None:
            self._left.extend(Left(due, sent=sent) for due, sent in self._send(batch.dues))
            return []
        unsent, reports = self._publish_won(batch, won)
        self._left.extend(Left(due, recorded=True) for due in unsent)
        return reports

    def _publish_won(self, batch: Batch, won: set[RunKey]) -> tuple[list[Due], list[Answer]]:
        """Publish those that were new, and begin to report it.

        Returns:
            With the reports those that nobody will publish, as the broker is away: the slot of a
            plain task was closed in the ledger when it was recorded.
        """
        started = self._clock.elapsed()
        mine = self._send([due for due in batch.dues if due.key in won])
        self._measure(len(mine), self._clock.elapsed() - started)
        reports = self._report([due for due, sent in mine if sent], batch.name)
        return [due for due, sent in mine if not sent and not self._may_claim(due)], reports

    @property
    def size(self) -> int:
        """How many slots are recorded, and published in time, at once."""
        return self._size

    def emit_strictly(self, dues: Sequence[Due]) -> tuple[set[RunKey], set[RunKey]]:
        """Record `dues`, and publish those that are new.

        Returns:
            Those that were new, and those of them whose message nobody will publish, as the broker
            is away. Others are made up by the beats.

        Raises:
            LedgerError: the ledger did not answer; nothing was published.
        """
        name = uuid4().hex
        won = self._ledger.insert_slots([self._new_slot(due) for due in dues], name)
        unsent, reports = self._publish_won(Batch(dues, name), won)
        self._finish(reports)
        return won, {due.key for due in unsent}

    def _measure(self, number: int, took: float) -> None:
        if number:
            fitting = TIMELY * HANDOVER * number / max(took, 1e-6)
            self._size = max(FEWEST, min(MOST, 2 * self._size, int(fitting)))

    def _recording(self, dues: Sequence[Due]) -> Batch:
        """Have `dues` recorded; without an answer if the ledger is away."""
        batch = Batch(dues, uuid4().hex)
        if not dues or self._outage.is_left_alone:
            return batch
        slots = [self._new_slot(due) for due in dues]
        with suppress(LedgerError), self._outage.watch(is_ledger_error, proves=False):
            batch.answer = begin(self._ledger, "insert_slots", slots, batch.name)
        return batch

    def _wait(self, batch: Batch) -> set[RunKey] | None:
        """Those that this batch has recorded; None if the ledger is away."""
        if batch.answer is None:
            return None
        try:
            with self._outage.watch(is_ledger_error):
                return cast("set[RunKey]", batch.answer())
        except LedgerError:
            return None

    def _report(self, dues: Iterable[Due], batch: str) -> list[Answer]:
        """Tell the ledger what is done with, so that others leave it alone for a while."""
        now = self._clock.now()
        graces: defaultdict[float, list[RunKey]] = defaultdict(list)
        late: list[RunKey] = []
        for due in dues:
            if due.is_late(now):
                late.append(due.key)
            elif self._may_claim(due):
                graces[self._grace.after(0, now, due.deadline, due.delay)].append(due.key)
        reports: list[Answer] = []
        with suppress(LedgerError), self._outage.watch(is_ledger_error, proves=False):
            for grace, keys in graces.items():
                reports.append(begin(self._ledger, "published", keys, batch, grace))
            if late:
                skipped = (late, batch, RunState.SKIPPED, TOO_LATE)
                reports.append(begin(self._ledger, "close_unclaimed", *skipped))
        return reports

    def _finish(self, reports: Iterable[Answer]) -> None:
        # What was not reported is published again in a second, by whoever is first.
        with suppress(LedgerError), self._outage.watch(is_ledger_error, proves=False):
            for answer in reports:
                answer()

    def _send(self, dues: Sequence[Due]) -> list[tuple[Due, bool]]:
        """Publish; with each, False if it must be tried again when the broker is there."""
        outcomes = self._publish_together(dues) if len(dues) >= MANY else None
        if outcomes is None:
            outcomes = [self._publish(due) for due in dues]
        for due, outcome in zip(dues, outcomes, strict=True):
            if outcome is Outcome.SENT:
                signals.emitted(self._publisher, due.entry, due.key)
        return [
            (due, outcome is not Outcome.WAITS) for due, outcome in zip(dues, outcomes, strict=True)
        ]

    def _publish_together(self, dues: Sequence[Due]) -> list[Outcome] | None:
        """None if it is not known which of them were published."""
        if self._sender.broker.away:
            return None
        try:
            with self._publisher.together():
                return [self._publish(due) for due in dues]
        except Exception:
            # A connection that has grown old, for one: a single publish makes another.
            return None

    def _publish(self, due: Due) -> Outcome:
        if due.is_late(self._clock.now()):
            signals.skipped(self._publisher, due.key, TOO_LATE)
            return Outcome.LATE
        return self._sender.attempt(lambda: self._publisher.publish(due), due.name, due.key)

    def _new_slot(self, due: Due) -> NewSlot:
        return NewSlot(
            key=due.key,
            namespace=self._settings.namespace,
            entry=due.name,
            task=due.task,
            claims=self._may_claim(due),
            deadline=due.deadline,
            message=due.message,
        )

    def _may_claim(self, due: Due) -> bool:
        return may_claim(self._publisher.app, due.task)

    # -- what an outage has left -----------------------------------------------------------------

    def settle(self) -> None:
        """Record and publish what could not be while the ledger or the broker was away."""
        if not self._left:
            return
        while self._record_left():
            pass
        for left in self._left:
            if not left.sent and not left.looked_after:
                ((_, left.sent),) = self._send([left.due])
                if not left.sent:
                    break
        window = max(60.0, self._settings.catchup_window)
        oldest = self._clock.now() - timedelta(seconds=window)
        self._left = deque(
            (left for left in self._left if not left.done and left.due.key.slot > oldest),
            MOST_LEFT,
        )

    def _record_left(self) -> bool:
        """Record some; False if there are none, or the ledger is away."""
        some = list(islice((left for left in self._left if not left.recorded), MOST))
        if not some:
            return False
        batch = self._recording([left.due for left in some])
        won = self._wait(batch)
        if won is None:
            return False
        for left in some:
            left.recorded = True
            left.looked_after = left.due.key not in won or self._may_claim(left.due)
        sent = [left.due for left in some if left.sent and left.due.key in won]
        self._finish(self._report(sent, batch.name))
        return True
