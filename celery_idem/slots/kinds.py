"""Which slots a schedule has.

Owns the choice: what kind of schedule an object is, whether its slots can be computed at all, and
the `celery_idem.slots.walk.Walk` that computes them. Refuses what has none, with the reason.

The time zone of a schedule is its ``tz``: ``app.timezone``, so the settings ``timezone`` and
``enable_utc``, unless the schedule sets its own. ``nowfun`` is never asked for slots. Before 5.7,
Celery read the fields of a crontab in the zone of what ``nowfun`` returned, since then in ``tz``:
with such a Celery, `check` refuses one where the two zones differ instead of guessing the hour, and
a relative interval with any.
Must not know what is done with slots.
"""

from __future__ import annotations

from datetime import timedelta, tzinfo
from typing import Any, Literal
from weakref import WeakKeyDictionary

from celery import VERSION
from celery.schedules import BaseSchedule, crontab, schedule, solar
from celery.utils.time import timezone

from celery_idem.errors import InvalidSchedule
from celery_idem.slots.fields import Fields, goes_by_elapsed_time
from celery_idem.slots.grid import DAY, MINUTE, Grid, cut_to_unit
from celery_idem.slots.sun import EVENTS, Sun
from celery_idem.slots.walk import Elapsed, Once, Walk
from celery_idem.slots.zone import TICK, Zone
from celery_idem.slots.zone_names import has_name, zone_name

Kind = Literal["crontab", "interval", "solar", "custom"]

#: Celery reads the fields of a crontab in its ``tz``, whatever ``nowfun`` says.
FIELDS_ARE_IN_TZ = (VERSION.major, VERSION.minor) >= (5, 7)

_BASES: dict[type[BaseSchedule], Kind] = {
    crontab: "crontab",
    solar: "solar",
    schedule: "interval",
}
#: What decides when a schedule is due: a class that overrides one of these keeps its own time.
_DECIDING = ("is_due", "remaining_estimate", "remaining_delta", "_delta_to_next", "_next_event")
#: Classes that override one of these and keep the slots of their base. django-celery-beat's crontab
#: moves ``last_run_at`` into its own ``tz`` and leaves the rest to Celery.
_KEEP_SLOTS = frozenset({"django_celery_beat.tzcrontab.TzAwareCrontab"})


def path_of(thing: Any) -> str:
    """Where a class or function is defined, as one dotted name."""
    return f"{thing.__module__}.{thing.__qualname__}"


#: What was found out about a class; it asks a dozen attributes, and slots are asked for often.
_known: WeakKeyDictionary[type, Kind] = WeakKeyDictionary()


def _kind_of_class(cls: type) -> Kind:
    for base, kind in _BASES.items():
        if issubclass(cls, base):
            same = all(getattr(cls, name, None) is getattr(base, name, None) for name in _DECIDING)
            return kind if same or path_of(cls) in _KEEP_SLOTS else "custom"
    return "custom"


def kind_of(candidate: object) -> Kind:
    """The kind of a schedule. Raises `InvalidSchedule` if the object is no schedule."""
    if not isinstance(candidate, BaseSchedule):
        raise InvalidSchedule(
            candidate, "it is not a Celery schedule: use crontab, schedule(seconds) or solar"
        )
    cls = type(candidate)
    kind = _known.get(cls) or _known.setdefault(cls, _kind_of_class(cls))
    return "custom" if kind != "custom" and _decides_itself(candidate) else kind


def _decides_itself(candidate: BaseSchedule) -> bool:
    """True if this very object has something of `_DECIDING`, which its class has not."""
    cls = type(candidate)
    for name in _DECIDING:
        # Not by the object's `__dict__`: to ask for it costs memory until the object goes.
        found = getattr(candidate, name, None)
        if getattr(found, "__func__", found) is not getattr(cls, name, None):
            return True
    return False


def zone_of(candidate: BaseSchedule) -> tzinfo:
    """The schedule's time zone. Raises `InvalidSchedule` if it cannot be loaded."""
    try:
        found: Any = timezone.get_timezone(candidate.tz)
    except (KeyError, ValueError, OSError) as error:
        raise InvalidSchedule(
            candidate, f"its time zone cannot be loaded ({error}): set timezone to an IANA name"
        ) from error
    if not isinstance(found, tzinfo):
        raise InvalidSchedule(candidate, f"its tz is {found!r}: set it to a tzinfo")
    return found


def step_of(interval: schedule) -> int:
    """The interval in microseconds. Raises `InvalidSchedule` if it is not at least one."""
    every: Any = getattr(interval, "run_every", None)
    if not isinstance(every, timedelta):
        # Its class, as such a schedule has no repr.
        raise InvalidSchedule(
            type(interval), f"run_every is {every!r}: give seconds or a timedelta"
        )
    step = every // TICK
    if step < 1:
        raise InvalidSchedule(
            interval, f"run_every is {every.total_seconds()} s: give at least one microsecond"
        )
    return step


def walk_of(candidate: object) -> Walk:
    """The slots of a schedule. Raises `InvalidSchedule` if only its own `is_due` knows them."""
    kind = kind_of(candidate)
    if kind == "interval":
        assert isinstance(candidate, schedule)
        return _interval(candidate)
    if kind == "crontab":
        assert isinstance(candidate, crontab)
        fields, zone = Fields.of(candidate), Zone(zone_of(candidate))
        return Elapsed(fields, zone) if goes_by_elapsed_time(candidate) else Once(fields, zone)
    if kind == "solar":
        assert isinstance(candidate, solar)
        return _solar(candidate)
    raise InvalidSchedule(
        candidate, "only its own is_due knows its slots: they are agreed through the ledger"
    )


def _interval(interval: schedule) -> Walk:
    step = step_of(interval)
    if not interval.relative:
        return Grid(step)
    period = cut_to_unit(step)
    if period < MINUTE:
        return Grid(period)
    zone = Zone(zone_of(interval))
    if period >= DAY:
        return Once(Grid(period), zone)
    return Elapsed(Grid(period), zone, fill_gaps=True)


def _solar(candidate: solar) -> Walk:
    facts: Any = candidate
    if facts.event not in EVENTS:
        raise InvalidSchedule(candidate, f"event {facts.event!r} is unknown: {sorted(EVENTS)}")
    return Sun(facts.event, float(facts.lat), float(facts.lon))


def check(candidate: Any) -> None:
    """Raise `InvalidSchedule`, with the reason and the way out, if a schedule cannot work.

    Asks ``nowfun`` once, for its time zone only. A custom schedule passes if it has an `is_due`.
    """
    if kind_of(candidate) != "custom":
        walk_of(candidate)
        _check_nowfun(candidate)
    elif getattr(candidate.is_due, "__func__", None) is BaseSchedule.is_due:
        raise InvalidSchedule(candidate, "it has no is_due of its own: no slot can be told")


def _check_nowfun(candidate: Any) -> None:
    local = (isinstance(candidate, crontab) and not FIELDS_ARE_IN_TZ) or (
        isinstance(candidate, schedule) and candidate.relative
    )
    if not local or candidate.nowfun is None:
        return
    try:
        now = candidate.nowfun()
        theirs = now.tzinfo
    except Exception as error:
        raise InvalidSchedule(candidate, f"its nowfun fails: {error!r}") from error
    ours = zone_of(candidate)
    if theirs is None or zone_name(theirs) == zone_name(ours):
        return
    if has_name(theirs) or now.utcoffset() != now.astimezone(ours).utcoffset():
        raise InvalidSchedule(
            candidate,
            f"nowfun gives the time in {zone_name(theirs)}, but the slots are in "
            f"{zone_name(ours)}: set the schedule's tz, or the setting timezone",
        )
