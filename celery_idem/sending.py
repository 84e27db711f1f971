"""The messages of a beat: how one is published, and when the broker is away.

Owns Celery's seams for publishing entries. Must not know which slots are due, or why a message is
published.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import FunctionType
from typing import Any

from celery import beat
from celery.beat import Scheduler, SchedulingError
from kombu.exceptions import KombuError, OperationalError

from celery_idem import messages
from celery_idem.clock import SYSTEM, Clock
from celery_idem.config import Settings
from celery_idem.due import Due, delay_of
from celery_idem.entry import copied
from celery_idem.run import RunRow

#: Unless an entry says otherwise, a publish reconnects once and is given up then:
#: a beat that waits for its broker records no slots.
RETRY_POLICY = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
#: Seconds after which a broker that stands still is away, as options of kombu's transports. Some
#: clients try three times: in all it must be less than the minute within which a slot is due.
LIMITS: dict[str, dict[str, float]] = {
    "redis": {"socket_timeout": 5.0},
    "amqp": {"read_timeout": 5.0, "write_timeout": 5.0},
}


class _Attempt:
    """A scheduler that keeps what came of its `apply_async`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.result: Any = None
        self.error: Exception | None = None

    def apply_async(self, entry: Any, **options: Any) -> Any:
        try:
            self.result = self._scheduler.apply_async(entry, **options)
        except Exception as exc:
            self.error = exc
        return self.result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)


class Sending(Scheduler):
    """A scheduler that publishes the messages of runs."""

    #: The wall clock, and the one that measures time.
    clock: Clock = SYSTEM
    _settings: Settings
    _is_closed = False

    def entry_of(self, name: str | None) -> Any:
        """The entry of this name; None if there is none."""
        raise NotImplementedError

    def is_left_out(self, row: RunRow) -> bool:
        """True if a slot whose message cannot be published is nothing to make up any more."""
        return False

    def check_closed(self) -> None:
        """Raise `SystemExit` if the scheduler was closed."""
        # Celery's handler of SIGTERM closes the scheduler and raises SystemExit wherever the
        # process is. Whatever was being published then may raise an error about its closed
        # connection, and nobody sees the SystemExit that it has taken the place of.
        if self._is_closed:
            raise SystemExit

    # -- publishing ------------------------------------------------------------------------------

    def publish(self, due: Due, **options: Any) -> Any:
        """Publish the message of a due slot; raises what the broker raises."""
        options = {
            **self._retry_options(),
            **due.publish_options(self._settings),
            **messages.start_at(due.eta, self.clock.now()),
            **options,
        }
        stamped = copied(due.entry, args=due.args, kwargs=due.kwargs, options=options)
        return self.apply_entry(stamped, producer=self.producer)

    def apply_entry(self, entry: Any, producer: Any = None) -> Any:
        """Publish an entry, as `Celery's own <celery.beat.Scheduler>` does it; return the result.

        Raises:
            Exception: what `apply_async` raises. Celery's logs it, and the slot is lost.
        """
        if not self._settings.enabled:
            return super().apply_entry(entry, producer=producer)
        celerys: Any = Scheduler.apply_entry
        if type(celerys) is FunctionType and celerys.__code__.co_filename == beat.__file__:
            return self.apply_async(entry, producer=producer, advance=False)
        # Somebody has put a function of theirs around Celery's, as Sentry does for its monitors.
        attempt = _Attempt(self)
        celerys(attempt, entry, producer=producer)
        if attempt.error is not None:
            raise attempt.error
        return attempt.result

    def together(self) -> AbstractContextManager[object]:
        """What is published within goes out at its end, by one round trip where kombu can (5.7)."""
        batch = getattr(self.producer, "batch", None)
        return batch(max_size=10_000) if batch is not None else nullcontext()

    def can_publish_again(self, row: RunRow) -> bool:
        """True if the run's message was kept, or its entry is one of this beat."""
        return row.message is not None or self._entry_of(row) is not None

    def publish_again(self, row: RunRow) -> Any:
        """Publish another copy of a run's message; raises what the broker raises."""
        # A kept message may be older than the retry that the run waits for.
        options: dict[str, Any] = {"retries": row.retries} if row.retries else {}
        entry = self._entry_of(row)
        if row.message is not None and (entry is None or row.fence):
            # Once it has begun, its message may be that of a retry, with options of its own.
            options |= {"producer": self.producer, **self._retry_options()}
            return messages.publish(self.app, row.message, self.clock.now(), **options)
        assert entry is not None
        if row.fence:
            # What its first start was to wait for is over.
            options |= {"countdown": None, "eta": None}
        return self.publish(self._made_again(row, entry), **options)

    def delay_of(self, row: RunRow) -> float:
        """Seconds for which a copy of the run's message, published now, waits in a worker."""
        entry = self._entry_of(row)
        if entry is None or row.fence:
            return 0.0
        try:
            return delay_of(entry.name, entry, row.key, self._settings, self.clock.now())
        except Exception:
            return 0.0  # It could not be published either, for the same reason, which was told.

    def _entry_of(self, row: RunRow) -> Any:
        entry = self.entry_of(row.entry)
        # Another version of the schedule may have an entry of this name for another task.
        return entry if entry is not None and entry.task == row.task else None

    def _made_again(self, row: RunRow, entry: Any) -> Due:
        assert row.entry is not None
        is_bound = row.deadline is not None
        return Due.made_again(
            row.key, row.entry, entry, self._settings, self.app, is_bound, row.message
        )

    def _retry_options(self) -> dict[str, Any]:
        return {"retry": True, "retry_policy": RETRY_POLICY}

    # -- the broker ------------------------------------------------------------------------------

    def _ensure_connected(self) -> Any:
        if not self._settings.enabled:
            celerys: Any = super()
            return celerys._ensure_connected()
        # One try for each host: Celery's own waits for the broker, and with it all that is due.
        connection: Any = self.connection
        for name, limit in LIMITS.get(connection.transport.driver_type, {}).items():
            connection.transport_options.setdefault(name, limit)
        return connection.ensure_connection(max_retries=max(0, len(connection.alt) - 1))

    def is_broker_away(self, exc: Exception) -> bool:
        """True if nothing can be published; False if the error is of one message."""
        self.check_closed()
        error: BaseException = exc
        while isinstance(error, SchedulingError | KombuError):
            cause = error.__cause__
            if cause is None and isinstance(error, SchedulingError):
                cause = error.__context__
            if cause is None:
                break
            error = cause
        transport: Any = self.connection.transport
        if isinstance(error, transport.channel_errors):
            # AMQP's answers to one publish have a number; what other transports say of a channel
            # is about their connection.
            is_away = not getattr(error, "code", 0)
        else:
            # For Redis, kombu takes a missing key for a lost connection.
            faults = (OSError, OperationalError, *transport.connection_errors)
            is_away = isinstance(error, faults) and not isinstance(error, LookupError)
        if is_away:
            self.drop_connection()
        return is_away

    def drop_connection(self) -> None:
        """Forget a connection that is broken; the next publish makes another."""
        self.__dict__.pop("producer", None)
        connection = self.__dict__.pop("connection", None)
        if connection is not None:
            # Not `release`, which says goodbye to a broker that may not answer.
            connection.collect(socket_timeout=1.0)
