"""Hypothesis strategies: schedules of every kind, and times near the shifts of local clocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.util import find_spec
from typing import Any

from celery.schedules import BaseSchedule, solar
from hypothesis import strategies as st

from tests.unit.slots_oracles import SHIFTS, ZONES, Cron, app_in, at, every

zones = st.sampled_from(ZONES)
#: cronsim needs two fields that begin with a star to join them by AND, as Celery always does.
steps = st.integers(2, 6).map("*/{}".format)


def field(low: int, high: int) -> st.SearchStrategy[str]:
    """One field of a crontab: a star, a step, a range, or a list."""
    number = st.integers(low, high)
    listed = st.lists(number, min_size=1, max_size=4, unique=True).map(
        lambda numbers: ",".join(map(str, numbers))
    )
    ranged = st.tuples(number, number).map(lambda ends: f"{min(ends)}-{max(ends)}")
    return st.one_of(st.just("*"), steps, listed, ranged)


#: Hours at which local clocks are put forward or back, and others.
hours = st.one_of(field(0, 23), st.sampled_from(["0", "1", "2", "3", "23", "1,2", "2,3"]))

crons = st.builds(
    Cron,
    field(0, 59),
    hours,
    st.one_of(st.just("*"), field(1, 28)),
    st.just("*"),
    st.one_of(st.just("*"), field(0, 6)),
)


def near_shift(zone: str, days: float) -> st.SearchStrategy[datetime]:
    """Instants around the shifts of the zone's clock, in microseconds."""
    margin = timedelta(days=days)
    return st.builds(
        lambda shift, off: at(shift) + off,
        st.sampled_from(SHIFTS[zone]),
        st.timedeltas(-margin, margin),
    )


@dataclass(frozen=True)
class Case:
    """A schedule, where it is looked at, and a span that holds a few dozen slots."""

    schedule: BaseSchedule
    start: datetime
    span: timedelta


def _case(make: Callable[[], BaseSchedule], start: datetime, hours: float) -> Case:
    return Case(make(), start, timedelta(hours=hours))


@st.composite
def crontab_cases(draw: st.DrawFn) -> Case:
    zone, cron = draw(zones), draw(crons)
    hours = 8 if cron.minute.startswith("*") else 40
    start = draw(near_shift(zone, hours / 24))
    return _case(lambda: cron.on(zone), start, hours)


@st.composite
def interval_cases(draw: st.DrawFn) -> Case:
    zone = draw(zones)
    every_us = draw(st.one_of(st.integers(1, 10**6), st.integers(10**6, 10**11)))
    seconds = every_us / 1e6
    return _case(lambda: every(seconds), draw(near_shift(zone, 1)), seconds * 40 / 3600)


@st.composite
def relative_cases(draw: st.DrawFn) -> Case:
    zone = draw(zones)
    unit, most = draw(st.sampled_from([(0.5, 5), (60, 50), (3600, 30), (86400, 5)]))
    seconds = unit * draw(st.integers(1, most))
    span = seconds * 30
    start = draw(near_shift(zone, span / 86400))
    return _case(lambda: every(seconds, zone, relative=True), start, span / 3600)


@st.composite
def solar_cases(draw: st.DrawFn) -> Case:
    event: Any = draw(st.sampled_from(["sunrise", "solar_noon", "dusk_nautical"]))
    latitude, longitude = draw(st.sampled_from([(52.52, 13.4), (69.65, 18.96), (-31.5, 159.1)]))
    start = draw(near_shift("Europe/Berlin", 60))
    app = app_in("Europe/Berlin")
    return _case(lambda: solar(event, latitude, longitude, app=app), start, 24 * 12)


_kinds = [crontab_cases(), interval_cases(), relative_cases()]
cases = st.one_of(*_kinds, solar_cases()) if find_spec("ephem") else st.one_of(*_kinds)
