"""RedBeat's scheduler, of which several may work at once.

Owns which slot an entry in Redis is due for, and when it counts as published. Must not know how it
is published.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from celery.beat import ScheduleEntry, Scheduler
from celery.utils.time import maybe_make_aware
from redbeat import schedulers
from redbeat.schedules import rrule

from celery_idem.aligned import AlignedEntry
from celery_idem.stamping import StampingMixin

if TYPE_CHECKING:
    _Entry = ScheduleEntry
    _Scheduler = Scheduler
else:
    _Entry = schedulers.RedBeatSchedulerEntry
    _Scheduler = schedulers.RedBeatScheduler


class RedBeatSchedulerEntry(AlignedEntry, _Entry):
    """An entry of RedBeat, due at its slots. In Redis it is as RedBeat writes it."""


class RedBeatScheduler(StampingMixin, _Scheduler):
    """RedBeat's scheduler with run keys.

    Use it as ``beat_scheduler = "celery_idem.contrib.redbeat:RedBeatScheduler"``. All beats work,
    unless ``redbeat_lock_key`` is set: then one has the lock and the others wait, as in RedBeat.
    """

    Entry = RedBeatSchedulerEntry

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(app, *args, **kwargs)
        asked_for = kwargs.get("lock_key") or app.conf.first("redbeat_lock_key", "REDBEAT_LOCK_KEY")
        if self._settings.enabled and not asked_for:
            self.lock_key = None

    def slot_of(self, entry: Any, until: datetime) -> datetime | None:
        """The last slot, also of an rrule."""
        schedule = entry.schedule
        if isinstance(schedule, rrule):
            slot: datetime | None = schedule.rrule.before(until, inc=True)
            return None if slot is None else maybe_make_aware(slot)
        return super().slot_of(entry, until)

    def apply_async(
        self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any
    ) -> Any:
        """As RedBeat's; the entry counts as published afterwards.

        Redis has one time of the last run for all beats: a beat that died between telling it and
        publishing would take the slot along.
        """
        if not (advance and self._settings.enabled):
            return super().apply_async(entry, producer=producer, advance=advance, **kwargs)
        moment = maybe_make_aware(entry.default_now())
        self._reserved[entry.name] = moment
        try:
            return super().apply_async(entry, producer=producer, advance=False, **kwargs)
        finally:
            entry._next_instance(last_run_at=moment)
