"""When the shop's tasks are due.

Owns: the entries, at the shop's real hours, and at high speed (SHOP_STEP, see `app`).
Must not know: what the tasks do, and who schedules them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from celery.schedules import crontab, schedule

from example_project.settings import STEP

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Entry:
    """A task, its real hours, the seconds between those, and the steps at high speed."""

    task: str
    hours: crontab
    period: int
    steps: int

    @property
    def interval(self) -> timedelta:
        """Time between two slots, as it is configured now."""
        return timedelta(seconds=self.steps * STEP or self.period)


ENTRIES = {
    "send-reminder": Entry("shop.send_reminder", crontab(minute="*/15"), 900, steps=1),
    "award-points": Entry("shop.award_points", crontab(minute=5), 3600, steps=2),
    "hourly-report": Entry("shop.hourly_report", crontab(minute=0), 3600, steps=1),
    "daily-bill": Entry("shop.daily_bill", crontab(hour=2, minute=30), 86400, steps=2),
}


def beat_schedule() -> dict[str, dict[str, Any]]:
    """Return the value of Celery's setting `beat_schedule`."""
    return {
        name: {
            "task": entry.task,
            # celery_idem counts intervals from the Unix epoch, so that all beats agree on the
            # slots; Celery's own scheduler counts them from the start of each beat.
            "schedule": schedule(entry.interval) if STEP else entry.hours,
        }
        for name, entry in ENTRIES.items()
    }


def grid_slot(entry: str, instant: datetime) -> datetime:
    """Return the beginning of the interval in which `instant` lies, counted from the epoch."""
    interval = ENTRIES[entry].interval
    return EPOCH + (instant - EPOCH) // interval * interval
