"""Beats that differ in everything but the schedule agree on every slot."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from celery.schedules import BaseSchedule
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_idem.slots import latest_slot, next_slot, slots_between
from tests.unit.slots_strategies import Case, cases

pytestmark = pytest.mark.unit

fractions = st.floats(0, 1, allow_nan=False)
offsets = st.timedeltas(timedelta(milliseconds=-400), timedelta(milliseconds=400))


@st.composite
def beats(draw: st.DrawFn, case: Case) -> list[datetime]:
    """The moments, by its own clock, up to which a beat asks for slots, one after the other.

    The first is where it begins: its start, or a `last_run_at` some time before. Each tick comes
    late by any lag, also by most of the span, and the clock is off by up to 400 ms, anew each time.
    """
    begins = draw(fractions) * 0.5
    ticks = sorted(draw(st.lists(fractions, max_size=8)))
    moments = [case.start + case.span * fraction + draw(offsets) for fraction in [begins, *ticks]]
    # A clock that was put back makes no slot come again: a beat never asks backwards.
    return [max(moments[: index + 1]) for index in range(len(moments))]


def asked(schedule: BaseSchedule, moments: list[datetime]) -> Iterator[datetime]:
    for after, until in pairwise(moments):
        yield from slots_between(schedule, after, until)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), case=cases)
def test_windows_of_any_beat_join_without_a_gap_or_a_double(
    data: st.DataObject, case: Case
) -> None:
    moments = data.draw(beats(case))

    slots = list(asked(case.schedule, moments))

    assert slots == list(slots_between(case.schedule, moments[0], moments[-1]))
    assert all(earlier < later for earlier, later in pairwise(slots))
    assert all(moments[0] < slot <= moments[-1] for slot in slots)
    assert all(slot.utcoffset() == timedelta(0) for slot in slots)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), case=cases)
def test_two_beats_agree_where_both_were_up(data: st.DataObject, case: Case) -> None:
    one, other = data.draw(beats(case)), data.draw(beats(case))
    after, until = max(one[0], other[0]), min(one[-1], other[-1])

    def common(moments: list[datetime]) -> list[datetime]:
        return [slot for slot in asked(case.schedule, moments) if after < slot <= until]

    assert common(one) == common(other)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), case=cases)
def test_next_and_latest_slot_are_those_of_the_window(data: st.DataObject, case: Case) -> None:
    after = case.start + case.span * data.draw(fractions) * 0.5
    until = after + case.span * data.draw(fractions)

    slots = list(slots_between(case.schedule, after, until))

    assert latest_slot(case.schedule, after, until) == (slots[-1] if slots else None)
    following = next_slot(case.schedule, after)
    assert following is not None
    assert following > after
    assert following == (slots[0] if slots else following)
    assert slots or following > until
    # From just before a slot, and from the slot itself.
    for slot, later in pairwise(slots[:20]):
        assert next_slot(case.schedule, slot - timedelta(microseconds=1)) == slot
        assert next_slot(case.schedule, slot) == later
        assert latest_slot(case.schedule, after, later) == later
        assert latest_slot(case.schedule, after, later - timedelta(microseconds=1)) == slot
