"""Schedules that are due at their slots, for schedulers that ask `is_due`.

Celery counts an interval from the last run, which each beat knows differently, and a beat that is
late by a moment each time slowly walks through the grid of slots and passes one. Owns the schedules
that are due exactly if a slot lies between the last run and now, and the entries that have them.
Must not know what is published for a slot.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from celery.app import app_or_default
from celery.beat import ScheduleEntry
from celery.schedules import BaseSchedule, crontab, schedstate

from celery_idem.config import Settings
from celery_idem.errors import InvalidSchedule
from celery_idem.slots import agreed_by_ledger, check, latest_slot, next_slot

#: When a schedule without a further slot is asked again: never, as far as beats live.
NEVER = timedelta(days=36_500)

if TYPE_CHECKING:
    _Schedule = BaseSchedule
    _Entry = ScheduleEntry
else:
    _Schedule = _Entry = object


class Aligned(_Schedule):
    """Put before the class of a schedule: that is due at its slots, and is else what it was.

    It is stored (pickle, RedBeat's JSON) as the plain schedule.

    Attributes:
        plain: the class before which this one was put.
    """

    plain: type[BaseSchedule]

    def remaining_estimate(self, last_run_at: datetime, *_: Any, **__: Any) -> timedelta:
        """Until the next slot; less than nothing if there was one after `last_run_at`."""
        now = self._now()
        plain = plain_of(self)
        missed = latest_slot(plain, self.maybe_make_aware(last_run_at), now)
        slot = missed or next_slot(plain, now)
        return NEVER if slot is None else slot - now

    def is_due(self, last_run_at: datetime) -> Any:
        """As Celery's; the seconds reach to the next slot."""
        now = self._now()
        plain = plain_of(self)
        missed = latest_slot(plain, self.maybe_make_aware(last_run_at), now)
        coming = next_slot(plain, now)
        wait = NEVER if coming is None else coming - now
        due = missed is not None and not self._is_too_late(now - missed)
        return schedstate(is_due=due, next=wait.total_seconds())

    def _now(self) -> datetime:
        return self.maybe_make_aware(self.now())

    def _is_too_late(self, lateness: timedelta) -> bool:
        # Celery, too, has this setting for crontabs alone.
        limit = self.app.conf.beat_cron_starting_deadline
        return isinstance(self, crontab) and limit is not None and lateness.total_seconds() > limit

    def __reduce__(self) -> Any:
        return plain_of(self).__reduce__()


_classes: dict[type, type] = {}


def aligned(plain: Any) -> Any:
    """The schedule, due at its slots; the same object if its slots cannot be computed."""
    if not isinstance(plain, BaseSchedule) or isinstance(plain, Aligned):
        return plain
    try:
        check(plain)
        if agreed_by_ledger(plain):
            return plain
    except InvalidSchedule:
        return plain
    base = type(plain)
    if base not in _classes:
        _classes[base] = type(f"Aligned{base.__name__}", (Aligned, base), {"plain": base})
    return _remade(plain, _classes[base])


def plain_of(schedule: Any) -> Any:
    """The schedule that `aligned` was given."""
    return _remade(schedule, schedule.plain) if isinstance(schedule, Aligned) else schedule


def _remade(schedule: Any, cls: type) -> Any:
    made: Any = object.__new__(cls)
    made.__dict__.update(schedule.__dict__)
    return made


class AlignedEntry(_Entry):
    """Put before a scheduler's class of entries: their schedules are due at their slots.

    With ``idem_enabled = False`` they are as they were.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._align()

    def update(self, other: Any) -> None:
        super().update(other)
        self._align()

    def _align(self) -> None:
        if Settings.of(app_or_default(self.app)).enabled:
            self.schedule = aligned(self.schedule)
