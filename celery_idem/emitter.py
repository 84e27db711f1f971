"""Due slots into the ledger, and their messages to the broker.

Owns the order in which a slot is emitted: recorded, published, reported as published; and what
happens if the database or the broker is away. Without the ledger every beat publishes every slot,
and the workers tell the copies apart; without the broker slots are recorded, and published when it
is there again. Must not know when anything is due.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from uuid import uuid4

from celery_idem import signals
from celery_idem.clock import Clock
from celery_idem.config import Settings
from celery_idem.due import Due, may_claim
from celery_idem.errors import LedgerError
from celery_idem.keys import RunKey
from celery_idem.ledger import HANDOVER, Ledger, NewSlot
from celery_idem.outage import Outage, is_ledger_error
from celery_idem.publishing import Grace, Outcome, Publisher, Sender
from celery_idem.run import TOO_LATE, RunState

#: Slots recorded in one statement, and published before the next.
FEWEST, MOST = 20, 500
#: So many are published together, where kombu can: one by one, a lost connection is made anew.
MANY = 20
#: The part of the handover within which these are to be published: then another beat takes over.
TIMELY = 0.5
#: Slots that are remembered while ledger or broker are away; of more, the oldest are forgotten.
MOST_LEFT = 10_000


@dataclass(slots=True)
class Left:
    """A slot that an outage has kept from being emitted in order.

    Attributes:
        recorded: the ledger has it.
        sent: it was published from here.
        looked_after: somebody else publishes it: another beat, or the ledger has it as due.
    """

    due: Due
    recorded: bool = False
    sent: bool = False
    looked_after: bool = False

    @property
    def done(self) -> bool:
        return self.recorded and (self.sent or self.looked_after)


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

    def emit(self, dues: Iterable[Due]) -> None:
        """Publish those of `dues` that no other beat has recorded."""
        rest = iter(dues)
        while some := list(islice(rest, self._size)):
            self._emit(some)

    def _emit(self, dues: Sequence[Due]) -> None:
        batch = uuid4().hex
        won = self._record(dues, batch)
        if won is None:
            self._left.extend(Left(due, sent=sent) for due, sent in self._send(dues))
            return
        started = self._clock.elapsed()
        mine = self._send([due for due in dues if due.key in won])
        self._measure(len(mine), self._clock.elapsed() - started)
        self._report([due for due, sent in mine if sent], batch)
        # A slot of a plain task was closed in the ledger when it was recorded.
        unsent = [due for due, sent in mine if not sent and not self._may_claim(due)]
        self._left.extend(Left(due, recorded=True) for due in unsent)

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
        batch = uuid4().hex
        won = self._ledger.insert_slots([self._new_slot(due) for due in dues], batch)
        started = self._clock.elapsed()
        mine = self._send([due for due in dues if due.key in won])
        self._measure(len(mine), self._clock.elapsed() - started)
        self._report([due for due, sent in mine if sent], batch)
        return won, {due.key for due, sent in mine if not sent and not self._may_claim(due)}

    def _measure(self, number: int, took: float) -> None:
        if number:
            fitting = TIMELY * HANDOVER * number / max(took, 1e-6)
            self._size = max(FEWEST, min(MOST, 2 * self._size, int(fitting)))

    def _record(self, dues: Sequence[Due], batch: str) -> set[RunKey] | None:
        """Those of `dues` that this batch has recorded; None if the ledger is away."""
        if self._outage.is_left_alone:
            return None
        slots = [self._new_slot(due) for due in dues]
        try:
            with self._outage.watch(is_ledger_error):
                return self._ledger.insert_slots(slots, batch)
        except LedgerError:
            return None

    def _report(self, dues: Iterable[Due], batch: str) -> None:
        """Tell the ledger what is done with, so that others leave it alone for a while."""
        now = self._clock.now()
        graces: defaultdict[float, list[RunKey]] = defaultdict(list)
        late: list[RunKey] = []
        for due in dues:
            if due.is_late(now):
                late.append(due.key)
            elif self._may_claim(due):
                graces[self._grace.after(0, now, due.deadline, due.delay)].append(due.key)
        try:
            with self._outage.watch(is_ledger_error, proves=False):
                for grace, keys in graces.items():
                    self._ledger.published(keys, batch, grace)
                self._ledger.close_unclaimed(late, batch, RunState.SKIPPED, TOO_LATE)
        except LedgerError:
            return  # They are published again in a second, by whoever is first.

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
        batch = uuid4().hex
        won = self._record([left.due for left in some], batch) if some else None
        if won is None:
            return False
        for left in some:
            left.recorded = True
            left.looked_after = left.due.key not in won or self._may_claim(left.due)
        self._report([left.due for left in some if left.sent and left.due.key in won], batch)
        return True
