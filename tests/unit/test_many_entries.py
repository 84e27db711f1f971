"""What keeps many entries small, and their order right."""

from __future__ import annotations

from datetime import timedelta
from random import Random
from typing import Any

import pytest
from celery import Celery

from celery_idem.agenda import Agenda
from celery_idem.entry import Entry
from celery_idem.rulebook import Rulebook
from celery_idem.tracks import Track
from tests.contract.stores import SettableClock
from tests.unit.test_tracks import NOW, app, settings

__all__ = ["app"]


def entry(app: Celery, **given: Any) -> Entry:
    return Entry(**{"name": "e", "task": "t", "schedule": 60, "app": app, **given})


# -- entries -------------------------------------------------------------------------------------


def test_an_entry_without_arguments_has_a_dict_of_its_own(app: Celery) -> None:
    first, second = entry(app), entry(app, kwargs={})
    assert first.kwargs == second.kwargs == {}
    first.kwargs["a"] = 1
    assert first.kwargs == {"a": 1}
    assert second.kwargs == {}


@pytest.mark.parametrize("kwargs", [{}, {"a": 1}])
def test_arguments_outlive_all_that_beats_do_with_an_entry(
    app: Celery, kwargs: dict[str, int]
) -> None:
    one = entry(app, kwargs=dict(kwargs))
    assert next(one).kwargs == kwargs
    assert one.editable_fields_equal(entry(app, kwargs=dict(kwargs)))
    assert not one.editable_fields_equal(entry(app, kwargs={"a": 2}))
    other = entry(app, kwargs={"a": 2})
    other.update(one)
    assert other.kwargs == kwargs
    assert type(one).__reduce__(one)[1][6] == kwargs


def test_entries_with_the_same_slots_share_what_is_known_of_them(app: Celery) -> None:
    book = Rulebook(settings(), SettableClock(NOW))
    made = [Track(name, entry(app, name=name), book, NOW) for name in ("a", "b")]
    for track in made:
        track.prepare()
    first, second = made
    assert first.wake is second.wake
    assert first._rules is second._rules
    assert first._state is second._state


def test_a_schedule_is_not_given_the_slots_of_another_one(app: Celery) -> None:
    book = Rulebook(settings(), SettableClock(NOW))
    for seconds in (60, 300, 60):
        track = Track("e", entry(app, schedule=seconds), book, NOW)
        track.prepare()
        assert track.wake == NOW + timedelta(seconds=seconds)
    later = NOW + timedelta(seconds=90)
    assert book.next_slot(track.entry.schedule, track.fingerprint, later) == NOW + timedelta(
        seconds=120
    )


# -- their order ---------------------------------------------------------------------------------


def a_track(app: Celery, name: str, seconds: float | None) -> Track:
    made = Track(name, None, Rulebook(settings(), SettableClock(NOW)), NOW)
    made.wake = None if seconds is None else NOW + timedelta(seconds=seconds)
    return made


@pytest.mark.parametrize("seed", range(20))
def test_tracks_are_taken_in_the_order_of_their_moments(app: Celery, seed: int) -> None:
    """Whatever comes, goes and changes in between; one that is gone is not taken."""
    random = Random(seed)
    tracks: dict[str, Track] = {}
    agenda = Agenda(tracks)

    def moment() -> Any:
        return random.choice([None, *range(0, 50, 5)])

    for number in range(random.choice([3, 30, 3000])):
        track = tracks[f"{number}"] = a_track(app, f"{number}", moment())
        agenda.put(track)
        action = random.randrange(5)
        one = tracks[random.choice(list(tracks))] if number % 10 == 0 else track
        if action == 0:
            agenda.disorder(one)
            seconds = moment()
            one.wake = None if seconds is None else NOW + timedelta(seconds=seconds)
        elif action == 1:
            one.leave()
            del tracks[one.name]
        elif action == 2 and number % 10 == 0:
            assert agenda.next_moment is None or agenda.next_moment >= NOW
    now = NOW + timedelta(seconds=30)
    expected = [track for track in tracks.values() if track.is_awake(now)]
    taken = []
    while (found := agenda.take(now)) is not None:
        taken.append(found)
    assert [track.wake for track in taken] == sorted(track.wake for track in expected if track.wake)
    assert len(taken) == len(expected)
    assert set(taken) == set(expected)
    assert agenda.next_moment is None or agenda.next_moment > now
