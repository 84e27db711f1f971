"""django-celery-beat's scheduler, of which several may run at once.

Owns which slot a row of its tables is due for, and what a beat writes into a row that people and
other beats write too. Must not know how the slot is published.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import schedstate
from celery.utils.time import maybe_make_aware
from django_celery_beat import schedulers
from django_celery_beat.clockedschedule import clocked
from django_celery_beat.models import PeriodicTasks
from django_celery_beat.utils import NEVER_CHECK_TIMEOUT

from celery_idem.aligned import AlignedEntry, plain_of
from celery_idem.slots import agreed_by_ledger, next_slot
from celery_idem.stamping import StampingMixin

if TYPE_CHECKING:
    _Entry = ScheduleEntry
    _Scheduler = Scheduler
else:
    _Entry = schedulers.ModelEntry
    _Scheduler = schedulers.DatabaseScheduler


class ModelEntry(AlignedEntry, _Entry):
    """A row of django-celery-beat's `PeriodicTask`, due at its slots.

    Attributes:
        model: the row.
        ran_at, saved_at: what the row says, before django-celery-beat makes up for what it lacks
            by the time of this beat.
    """

    model: Any

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        self.ran_at: datetime | None = model.last_run_at
        self.saved_at: datetime | None = model.date_changed
        super().__init__(model, *args, **kwargs)

    def is_due(self) -> Any:
        """django-celery-beat's; what has run once is switched off, unless it was saved since."""
        model = self.model
        if not (model.one_off and model.enabled and model.total_run_count):
            return super().is_due()
        model.enabled, model.total_run_count = False, 0
        if self._as_loaded().update(enabled=False, total_run_count=0, last_run_at=None):
            PeriodicTasks.update_changed()
        return schedstate(is_due=False, next=NEVER_CHECK_TIMEOUT)

    def save(self) -> None:
        """Tell when it has run last.

        The two columns alone: django-celery-beat writes the row as it has read it, and undoes what
        somebody has edited meanwhile. And not of a row that was switched off, or off and on again.
        """
        model = self.model
        rows = self._as_loaded() if model.one_off else self._row().filter(enabled=True)
        rows.update(last_run_at=model.last_run_at, total_run_count=model.total_run_count)

    def _disable(self, model: Any) -> None:
        self.model, model.enabled = model, False
        self._as_loaded().update(enabled=False, last_run_at=None)

    def _as_loaded(self) -> Any:
        """The row, unless somebody has saved it, or a beat has switched it off, since."""
        return self._row().filter(enabled=True, date_changed=self.saved_at)

    def _row(self) -> Any:
        return type(self.model)._default_manager.filter(pk=self.model.pk)


class DatabaseScheduler(StampingMixin, _Scheduler):
    """django-celery-beat's DatabaseScheduler with run keys.

    Use it as ``beat_scheduler = "celery_idem.contrib.django_celery_beat:DatabaseScheduler"``.
    """

    Entry = ModelEntry

    def slot_of(self, entry: Any, until: datetime) -> datetime | None:
        """The last slot; of what runs once, the one slot that all beats find."""
        schedule = plain_of(entry.schedule)
        if isinstance(schedule, clocked):
            return maybe_make_aware(schedule.clocked_time)
        if entry.model.one_off and not agreed_by_ledger(schedule):
            only = _only_slot(entry, schedule)
            if only is not None:
                return only
        return super().slot_of(entry, until)


def _only_slot(entry: Any, schedule: Any) -> datetime | None:
    """The slot of an entry that runs once: not the last, which later beats find a later one.

    It follows from the row as it was saved, which stays what it is until a beat that has published
    the entry says so.
    """
    start, since = entry.model.start_time, entry.ran_at or entry.saved_at
    if since is None:
        return None
    since = maybe_make_aware(since)
    if start is None:
        return next_slot(schedule, since)
    # Where there is a start, django-celery-beat makes a row that has not run due at that instant,
    # or at once.
    first = since if entry.ran_at is None else next_slot(schedule, since)
    return None if first is None else max(first, maybe_make_aware(start))
