"""Messages are published again for runs that nobody has claimed, or whose owner is dead.

Owns what happens to a run that has waited too long: for the message of its slot, lost between a
beat and a broker, or for that of its retry; and to one whose owner is gone, in mid-body or before
its callbacks were sent. Beats compete for such runs in the ledger; whoever wins one publishes its
message, and the worker that gets it decides. Must not know schedules: the scheduler makes a slot's
message again.
"""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import datetime, timedelta
from uuid import uuid4

from celery_idem import signals
from celery_idem.clock import Clock
from celery_idem.config import Settings
from celery_idem.keys import RunKey, shorten
from celery_idem.ledger import Ledger
from celery_idem.publishing import Grace, Outcome, Publisher, Sender
from celery_idem.run import TOO_LATE, RunRow, RunState

#: Seconds between two rounds.
ROUND = 1.0
#: Runs acquired at once: they are to be published within the handover.
LIMIT = 100
#: Seconds between two looks for leases that have expired, and for what their owners have left; and
#: how many are buried at once: if there are so many, the next look is in the next round.
BURY_EVERY, BURIED_AT_ONCE = 10.0, 500
#: Seconds for which the tasks that claim are not asked for again.
KNOWN_FOR = 1.0
#: How long a run waits for a beat that knows its entry: longer than a rolling deploy.
ORPHANED_FOR = timedelta(hours=1)

#: Why a slot is closed whose message is wrong; what is wrong with it was logged at each try.
BROKEN = "its message cannot be published, and there is nothing to make up any more"
#: Where a run waits for being claimed.
_OPEN = (RunState.SCHEDULED, RunState.RETRYING)
#: Verdicts, as what a state is entered for.
Verdict = tuple[RunState, str]


class Reconciler:
    """Looks after the runs of one app."""

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        publisher: Publisher,
        sender: Sender,
        clock: Clock,
        grace: Grace,
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._publisher = publisher
        self._sender = sender
        self._clock = clock
        self._grace = grace
        self._known: set[str] = set()
        self._known_until = float("-inf")
        self._bury_at = float("-inf")

    def run(self) -> float:
        """One round; returns the seconds until the next one.

        Raises:
            LedgerError: the database did not answer.
        """
        recovers = self._bury()
        if self._sender.broker.is_left_alone:
            return ROUND
        # One is enough for asking whether the broker is there again.
        limit = 1 if self._sender.broker.away else LIMIT
        batch = uuid4().hex
        rows = self._ledger.acquire_due(self._settings.namespace, limit, batch)
        if recovers:
            rows += self._ledger.acquire_orphans(self._settings.namespace, limit, batch)
        return self._settle(rows, batch)

    def _settle(self, rows: list[RunRow], batch: str) -> float:
        closed: defaultdict[Verdict, list[RunKey]] = defaultdict(list)
        published: defaultdict[float, list[RunKey]] = defaultdict(list)
        pause = 0.0 if len(rows) >= LIMIT else ROUND
        now = self._clock.now()
        for row in rows:
            verdict = self._verdict(row, now)
            if verdict is not None:
                closed[verdict].append(row.key)
            elif self._waits_for_its_message(row):
                # Looked at ever more seldom, in case that it still comes.
                deadline = row.deadline if row.state in _OPEN else None
                published[self._grace.after(row.emit_count, now, deadline)].append(row.key)
            elif self._publisher.can_publish_again(row):
                next_ = self._publish(row, now)
                if next_ is None:
                    break  # Those that are left are due again in a second.
                (published[next_] if isinstance(next_, float) else closed[next_]).append(row.key)
            elif row.state is RunState.RUNNING and row.key.slot < now - ORPHANED_FOR:
                self._give_up(row)
            else:
                # They are due again in a second, for a beat that knows the entry: without a pause
                # that differs from its own, it might always come too late.
                pause = random.uniform(2.0, 4.0) * ROUND
        self._close(closed, batch)
        for grace, keys in published.items():
            self._ledger.published(keys, batch, grace)
        return pause

    def _pause(self, row: RunRow, now: datetime) -> float:
        """Seconds for which a run that was published again is left alone."""
        deadline = row.deadline if row.state in _OPEN else None
        delay = self._publisher.delay_of(row)
        return self._grace.after(row.emit_count, now, deadline, delay)

    def _bury(self) -> bool:
        """Bury expired leases, if it is time; True if it was."""
        now = self._clock.elapsed()
        if now < self._bury_at:
            return False
        found = self._ledger.bury_expired(BURIED_AT_ONCE)
        self._bury_at = now + (ROUND if found == BURIED_AT_ONCE else BURY_EVERY)
        return True

    def _close(self, closed: dict[Verdict, list[RunKey]], batch: str) -> None:
        for (state, reason), keys in closed.items():
            self._ledger.close_unclaimed(keys, batch, state, reason)
            if state is RunState.SKIPPED:
                for key in keys:
                    signals.skipped(self._publisher, key, reason)

    def _verdict(self, row: RunRow, now: datetime) -> Verdict | None:
        """The state in which the run is to be closed, and why; None to leave it open."""
        if row.state not in _OPEN:
            return None  # It has begun in time.
        if row.deadline is not None and row.deadline <= now:
            return RunState.SKIPPED, TOO_LATE
        if row.state is not RunState.SCHEDULED:
            return None
        if self._may_be_plain(row):
            is_old = row.age > ORPHANED_FOR.total_seconds()
            return (RunState.SKIPPED, "its task is not known to claim") if is_old else None
        if row.entry is not None and row.emit_count and not self._claims(row.task):
            # Published once, for a task that may never claim: nothing tells whether it ran.
            return RunState.EMITTED, "its task is not known to claim"
        # A run without an entry has no slot either; its message is with the broker.
        is_orphan = row.entry is not None and not self._publisher.can_publish_again(row)
        if is_orphan and row.key.slot < now - ORPHANED_FOR:
            if row.emit_count:
                # Its message may still be in the queue.
                return RunState.EMITTED, "no beat knows its entry any more"
            return RunState.SKIPPED, f"no beat knows entry {row.entry!r} any more"
        return None

    def _waits_for_its_message(self, row: RunRow) -> bool:
        """True if no beat may publish it: it has no message, or a task that may not claim."""
        is_lost = row.entry is None and not self._publisher.can_publish_again(row)
        is_plain = row.state is RunState.SCHEDULED and self._may_be_plain(row)
        return is_lost or is_plain

    def _may_be_plain(self, row: RunRow) -> bool:
        """True if a message of no slot may be executed as often as it is published."""
        if row.entry is not None or row.fence:
            return False
        registered = self._publisher.app.tasks.get(row.task)
        return not getattr(registered, "idem_claims", False) and not self._claims(row.task)

    def _give_up(self, row: RunRow) -> None:
        reason = f"its owner is gone, and no beat knows entry {row.entry!r} any more"
        if self._ledger.try_kill(row, reason):
            signals.died(self._publisher, row.key, reason)

    def _is_left_out(self, row: RunRow) -> bool:
        never_begun = row.state is RunState.SCHEDULED and row.entry is not None and not row.fence
        return never_begun and self._publisher.is_left_out(row)

    def _publish(self, row: RunRow, now: datetime) -> float | Verdict | None:
        """Seconds for which the run is left alone, or its verdict; None if the broker is away."""
        publish = self._publisher.publish_again
        outcome = self._sender.attempt(lambda: publish(row), row.entry or row.task, row.key)
        # A slot that is published for the first time was recorded by a beat that did not get to it.
        is_first = row.state is RunState.SCHEDULED and row.entry is not None and not row.emit_count
        if outcome is Outcome.SENT and not is_first:
            signals.reemitted(self._publisher, row)
        if outcome is Outcome.WAITS:
            return None
        if outcome is Outcome.BROKEN and self._is_left_out(row):
            return RunState.SKIPPED, BROKEN
        return self._pause(row, now)

    def _claims(self, task: str) -> bool:
        """True for a task that a worker has recorded as one that claims, and that is one here."""
        registered = self._publisher.app.tasks.get(task)
        if registered is not None and not getattr(registered, "idem_claims", False):
            return False
        name = shorten(f"{self._settings.namespace}:{task}")
        if name not in self._known and self._clock.elapsed() >= self._known_until:
            self._known = self._ledger.known_tasks(self._settings.namespace)
            self._known_until = self._clock.elapsed() + KNOWN_FOR
        return name in self._known
