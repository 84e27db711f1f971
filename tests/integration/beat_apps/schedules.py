"""Schedules of a project's own, and entries that cannot be used."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

from celery.schedules import BaseSchedule, schedstate, schedule

from tests.integration.beat_apps.base import add_tasks, make_app


class Pause(BaseSchedule):
    """Due so many seconds after the last slot, whenever that was."""

    def __init__(self, seconds: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds = seconds

    def is_due(self, last_run_at: datetime) -> schedstate:
        left = self.seconds - (self.now() - last_run_at).total_seconds()
        return schedstate(left <= 0, max(0.1, left))


class Grim(schedule):
    """Fails whenever it is asked."""

    def is_due(self, last_run_at: datetime) -> schedstate:
        raise ZeroDivisionError("grim")


def entry(**more: Any) -> dict[str, Any]:
    """An entry that works, but for `more`."""
    return {"task": "beats.note", "schedule": 1.0, **more}


app = make_app(
    beat_schedule={
        "custom": entry(schedule=Pause(0.7)),
        "fine": entry(),
        # None of these may keep the others from their slots.
        "odd argument": entry(schedul=1),
        "zero": entry(schedule=0),
        "grim": entry(schedule=Grim(timedelta(seconds=1))),
        "object": entry(args=(object(),)),
        "clock": entry(kwargs={"now": time.monotonic}),
        "": entry(),
        "NUL \0": entry(),
        "half \ud800": entry(),
        "x" * 300: entry(),
        "\u202e\U0001f98a\n": entry(),
    }
)
add_tasks(app)
