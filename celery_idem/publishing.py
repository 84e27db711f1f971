"""Messages to a broker that may be away.

Owns how a publish can end, and when a message that nobody claims is published again.
Must not know which messages there are, or why.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Any, Protocol

from celery_idem import signals
from celery_idem.clock import Clock
from celery_idem.due import Due
from celery_idem.keys import RunKey
from celery_idem.outage import Outage
from celery_idem.run import RunRow


class Outcome(Enum):
    """How a publish ended."""

    SENT = auto()
    #: The broker is away.
    WAITS = auto()
    #: The broker is there, but this message cannot be made or is refused.
    BROKEN = auto()
    #: Its deadline has passed: it was not published.
    LATE = auto()


class Publisher(Protocol):
    """The scheduler, as far as emitter and reconciler need it."""

    app: Any

    def publish(self, due: Due) -> Any:
        """Publish the message of a due slot; raises what the broker raises."""

    def together(self) -> AbstractContextManager[object]:
        """What is published within goes out at its end; raises there what the broker raises."""

    def can_publish_again(self, row: RunRow) -> bool:
        """False if only another beat can make the message of this run."""

    def publish_again(self, row: RunRow) -> Any:
        """Publish another copy of a run's message; raises what the broker raises."""

    def delay_of(self, row: RunRow) -> float:
        """Seconds for which a copy of the run's message, published now, waits in a worker."""

    def is_left_out(self, row: RunRow) -> bool:
        """True if a slot whose message cannot be published is nothing to make up any more."""

    def is_broker_away(self, exc: Exception) -> bool:
        """True if nothing can be published; False if the error is of one message."""


class Sender:
    """Publishes, and notices when the broker comes and goes."""

    def __init__(self, publisher: Publisher, clock: Clock) -> None:
        self._publisher = publisher
        self.broker = Outage(clock, signals.broker_lost, signals.broker_found)

    def attempt(self, publish: Callable[[], Any], name: str, key: RunKey) -> Outcome:
        """Call `publish` for the message of run `key`, unless the broker is known to be away."""
        if self.broker.is_left_alone:
            return Outcome.WAITS
        try:
            with self.broker.watch(self._publisher.is_broker_away):
                publish()
        except Exception as exc:
            if self.broker.is_left_alone:  # Since this moment; it may have been away before.
                return Outcome.WAITS
            signals.not_emitted(name, key, exc)
            return Outcome.BROKEN
        return Outcome.SENT


@dataclass(frozen=True, slots=True)
class Grace:
    """When a message that nobody claims is published again.

    Attributes:
        first: seconds after the first publish; twice as long after each further one.
        longest: the longest of these pauses: a queue with a backlog of hours gets a copy an hour.
    """

    first: float = 60.0
    longest: float = 3600.0

    def after(
        self, emit_count: int, now: datetime, deadline: datetime | None, delay: float = 0.0
    ) -> float:
        """Seconds until a run is looked at that was published `emit_count` times before this one.

        Arguments:
            deadline: soon after it, the run is known to be skipped.
            delay: seconds for which the task waits in a worker.
        """
        grace = min(self.longest, self.first * 2.0 ** min(emit_count, 20)) + delay
        if deadline is not None:
            grace = min(grace, (deadline - now).total_seconds() + 1.0)
        # In whole seconds, so that what is published together is reported together; and more than
        # the handover, by which the ledger tells a report from its repetition.
        return float(max(2, round(grace)))
