"""Run keys in the messages of other schedulers.

Owns how a subclass of Celery's scheduler, which finds out by itself what is due, comes to name each
message by its slot. Nothing is recorded by such a beat: the workers' claims alone decide, so that
what several beats publish is executed once, and what no beat publishes is not made up for.
Must not know where a scheduler has its entries from, nor what a task does with its message.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from celery.beat import Scheduler
from celery.utils.time import maybe_make_aware

from celery_idem import signals
from celery_idem.aligned import plain_of
from celery_idem.clock import SYSTEM, UTC, Clock
from celery_idem.config import Settings
from celery_idem.entry import copied
from celery_idem.errors import InvalidSchedule
from celery_idem.keys import RunKey, Stamp
from celery_idem.slots import latest_slot

#: Before all slots.
_BEGINNING = datetime(2, 1, 1, tzinfo=UTC)

if TYPE_CHECKING:
    _Scheduler = Scheduler
else:
    _Scheduler = object


class StampingMixin(_Scheduler):
    """Put before a scheduler's class: its beats name each message by its slot.

    ``class MyScheduler(StampingMixin, TheirScheduler)``. Of the copies that several such beats
    publish, idempotent tasks execute one. All else is as the scheduler has it: entries, options,
    what is due after a pause. Give it `celery_idem.aligned.AlignedEntry` before its class of
    entries too, or each of its intervals is counted from the start of a beat, and may now and then
    pass a slot.

    With ``idem_enabled = False`` it changes nothing.
    """

    #: The wall clock.
    clock: Clock = SYSTEM

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        self._settings = Settings.of(app)
        #: Up to when entries count as published that are to be published now.
        self._reserved: dict[str | None, datetime] = {}
        self._told: set[str] = set()
        super().__init__(app, *args, **kwargs)

    def slot_of(self, entry: Any, until: datetime) -> datetime | None:
        """The slot of which `entry` is due at `until`: the last one of its schedule.

        Never a time at which a beat happened to look. Override it for schedules whose slots only
        their class knows. None, or `InvalidSchedule`: the message goes out without a run key.
        """
        return latest_slot(plain_of(entry.schedule), _BEGINNING, until)

    def reserve(self, entry: Any) -> Any:
        """Celery's; remembers the time from which on the next slot will count."""
        following = super().reserve(entry)
        # Not the clock's when it is published: a slot in between would be passed over.
        self._reserved[entry.name] = _aware(getattr(following, "last_run_at", None), self.clock)
        return following

    def apply_async(
        self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any
    ) -> Any:
        """Celery's publish, stamped.

        Raises:
            SchedulingError: it could not be published.
            InvalidRunKey: the entry's name cannot be part of a run key.
        """
        if not self._settings.enabled:
            return super().apply_async(entry, producer=producer, advance=advance, **kwargs)
        if advance:
            self.reserve(entry)
        until = self._reserved.pop(entry.name, None) or self.clock.now()
        key = self._key(entry, until)
        if key is None:
            return super().apply_async(entry, producer=producer, advance=False, **kwargs)
        stamped = self._stamped(entry, key)
        result = super().apply_async(stamped, producer=producer, advance=False, **kwargs)
        signals.emitted(self, entry, key)
        return result

    def _key(self, entry: Any, until: datetime) -> RunKey | None:
        try:
            slot = self.slot_of(entry, until)
            if slot is None:
                raise InvalidSchedule(entry.schedule, "it has no slot yet")
        except InvalidSchedule as exc:
            if entry.name not in self._told:
                self._told.add(entry.name)
                signals.unstamped(entry.name, exc)
            return None
        return RunKey.for_slot(self._settings.namespace, entry.name, slot)

    def _stamped(self, entry: Any, key: RunKey) -> Any:
        # Options that are stored, or that others publish, stay as they are.
        options: Mapping[str, Any] = entry.options or {}
        stamp = Stamp(key, entry.name, overlap=self._settings.overlap)
        headers = stamp.write(options.get("headers"), entry.task, self._settings.signing_key)
        return copied(entry, options={**options, "headers": headers, "task_id": key.task_id})


def _aware(moment: Any, clock: Clock) -> datetime:
    """Aware; of a time without a zone Celery says that it is in UTC."""
    if not isinstance(moment, datetime):
        return clock.now()
    return maybe_make_aware(moment)
