"""The slots of a schedule: the nominal instants at which an entry is due.

Owns one promise: slots are a pure function of the schedule and the asked time. No clock is read,
nothing is remembered, so beats with other start times, lags and clock offsets agree on every slot.
All instants are UTC and aware, in microseconds. The same slots on Celery 5.4 to 5.7.

- `fields` (crontab), `grid` (interval), `sun` (solar): the moments that a schedule names
- `zone`, `walk`: local clocks, and what happens when they are put forward or back
- `kinds`: which of these a schedule is; `fingerprint`: its identity; `periods`: calendar periods

Hosts with different releases of the time zone database disagree where those do: keep `tzdata`
equal on all beats.
Must not know what is done with a slot: no run, key, ledger or message.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from celery.schedules import BaseSchedule

from celery_idem.clock import UTC
from celery_idem.slots.fingerprint import fingerprint
from celery_idem.slots.kinds import check, kind_of, walk_of
from celery_idem.slots.periods import Grain, grain_start
from celery_idem.slots.walk import Walk

__all__ = [
    "Grain",
    "agreed_by_ledger",
    "check",
    "fingerprint",
    "grain_start",
    "latest_slot",
    "next_slot",
    "slots_between",
]

#: The calendar repeats itself after 400 years: what does not happen until then never does.
_FOREVER: Final = timedelta(days=146_097)
#: The ends of the calendar are left out, so that no time zone's offset leaves it.
_FIRST: Final = datetime(2, 1, 1, tzinfo=UTC)
_LAST: Final = datetime(9998, 1, 1, tzinfo=UTC)


def slots_between(schedule: BaseSchedule, after: datetime, until: datetime) -> Iterator[datetime]:
    """The slots in (after, until], strictly increasing.

    Raises `InvalidSchedule` (at the call, not at the first slot) if they cannot be computed, and
    `ValueError` for a naive time.
    """
    return _slots(walk_of(schedule), _utc("after", after), _utc("until", until))


def _slots(walk: Walk, after: datetime, until: datetime) -> Iterator[datetime]:
    slot = walk.first(after, until)
    while slot is not None:
        yield slot
        slot = walk.first(slot, until)


def next_slot(schedule: BaseSchedule, after: datetime) -> datetime | None:
    """The first slot after `after`; None: there is none in the next 400 years.

    Raises `InvalidSchedule` if slots cannot be computed, and `ValueError` for a naive time.
    """
    start = _utc("after", after)
    return walk_of(schedule).first(start, min(start + _FOREVER, _LAST) if start < _LAST else start)


def latest_slot(schedule: BaseSchedule, after: datetime, until: datetime) -> datetime | None:
    """The last slot in (after, until], found without walking the ones before it; None: none.

    Raises `InvalidSchedule` if slots cannot be computed, and `ValueError` for a naive time.
    """
    return walk_of(schedule).last(_utc("after", after), _utc("until", until))


def agreed_by_ledger(schedule: BaseSchedule) -> bool:
    """True if only the schedule's own `is_due` knows its slots, so that beats must agree on them.

    So are all schedules but Celery's own `crontab`, `schedule` and `solar`, and those subclasses of
    them that do not decide for themselves when they are due (`is_due`, `remaining_estimate`,
    `remaining_delta`). Raises `InvalidSchedule` if the object is no schedule.
    """
    return kind_of(schedule) == "custom"


def _utc(name: str, instant: datetime) -> datetime:
    if instant.tzinfo is None:
        raise ValueError(f"{name} = {instant!r} is naive: give it a time zone")
    try:
        moment = instant.astimezone(UTC)
    except OverflowError:
        return _FIRST if instant.year < _LAST.year else _LAST
    return min(max(moment, _FIRST), _LAST)
