"""Entries that cannot be used, for now or for ever."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.schedules import BaseSchedule, schedule

from celery_idem.entry import Entry
from celery_idem.errors import IdemError, ImproperlyConfigured
from celery_idem.ledger.memory import MemoryLedger
from celery_idem.rulebook import Rulebook
from celery_idem.tracks import Track
from tests.contract.stores import SettableClock
from tests.unit.test_tracks import NOW, after, minutes, settings, track


@pytest.fixture
def app() -> Celery:
    return Celery("tracks", set_as_current=False)


LEDGER = MemoryLedger(SettableClock())
BROKEN: dict[str, dict[str, Any]] = {
    "an empty name": {"name": ""},
    "NUL in the name": {"name": "a\0b"},
    "half a surrogate pair": {"name": "a\ud800"},
    "no task": {"task": None},
    "an empty task": {"task": ""},
    "no schedule": {"schedule": None},
    "an interval of nothing": {"schedule": 0},
    "an interval that goes back": {"schedule": -5},
    "an unknown policy": {"catchup": "sometimes"},
    "an impossible window": {"catchup_window": "a day"},
    "a schedule without is_due": {"schedule": BaseSchedule()},
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_entry_says_what_is_wrong(app: Celery, what: str) -> None:
    given = {"name": "e", "task": "t", "schedule": 60, "app": app, **BROKEN[what]}
    entry = Entry(**given)
    made = Track(given["name"], entry, Rulebook(settings(), SettableClock(NOW)), NOW)
    with pytest.raises(IdemError):
        made.prepare()
    assert not made.is_new
    made.fails(NOW)
    assert made.wake == NOW + timedelta(seconds=5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"catchupp": "all"}, "catchupp of entry 'e' = 'all'"),
        ({"idem_catchupp": "all"}, "idem_catchupp of entry 'e' = 'all'"),
        ({"options": {"catch_up": "all"}}, "catch_up of entry 'e' = 'all'"),
        ({"options": {"idem_catchupp": "all"}}, "idem_catchupp of entry 'e' = 'all'"),
    ],
)
def test_an_unknown_option_of_an_entry_is_refused(
    app: Celery, given: dict[str, Any], said: str
) -> None:
    """The error names entry, option and what may be meant."""
    with pytest.raises(ImproperlyConfigured) as caught:
        Entry(**{"name": "e", "task": "t", "schedule": 60, "app": app, **given})
    text = str(caught.value)
    assert text.startswith(f"{said} is not possible: there is no such option; did you mean 'catch")
    assert "known are " in text


@pytest.mark.parametrize(
    "given", [{"idem_catchup": "all"}, {"options": {"idem_catchup": "all", "priority": 3}}]
)
def test_an_option_of_an_entry_may_be_written_as_its_setting_is(
    app: Celery, given: dict[str, Any]
) -> None:
    entry = Entry(**{"name": "e", "task": "t", "schedule": 60, "app": app, **given})
    assert entry.catchup == "all"
    assert not any(name.startswith("idem_") for name in [*vars(entry), *(entry.options or ())])
    with pytest.raises(
        ImproperlyConfigured, match=r"^idem_overlap of entry 'e' = 'skip' .* its overlap is 'allow'"
    ):
        Entry("e", "t", schedule=60, app=app, overlap="allow", idem_overlap="skip")


def test_what_is_unlike_any_option_has_no_hint(app: Celery) -> None:
    with pytest.raises(ImproperlyConfigured, match="there is no such option; known are args, "):
        Entry(name="e", task="t", schedule=60, app=app, xyzzy=1)


def test_options_of_the_publish_are_left_alone(app: Celery) -> None:
    """Whatever the task's `apply_async` may take."""
    options = {"queue": "q", "catcher": 1, "window": 2, "headers": {"idem_x": 1}}
    assert Entry(name="e", task="t", schedule=60, app=app, options=options).options == options


def test_an_entry_under_another_name_is_broken(app: Celery) -> None:
    entry = Entry(name="other", task="t", schedule=60, app=app)
    with pytest.raises(IdemError, match="must be its key"):
        Track("e", entry, Rulebook(settings(), SettableClock(NOW)), NOW).prepare()


def test_a_broken_entry_is_tried_again_ever_later(app: Celery) -> None:
    made = track(app, 60)
    pauses = []
    for _ in range(8):
        made.fails(NOW)
        assert made.wake is not None
        pauses.append((made.wake - NOW).total_seconds())
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300]


def test_an_entry_that_can_be_used_later_has_missed_nothing(app: Celery) -> None:
    class Moody(schedule):
        broken = True

        def now(self) -> datetime:
            return NOW

        @property
        def tz(self) -> Any:
            if self.broken:
                raise ValueError("no tz today")
            return app.timezone

        @tz.setter
        def tz(self, value: Any) -> None: ...

    every = Moody(timedelta(minutes=1), relative=True, app=app)
    made = Track(
        "e",
        Entry(name="e", task="t", schedule=every, app=app),
        Rulebook(settings(), SettableClock(NOW)),
        NOW,
    )
    with pytest.raises(IdemError):
        made.prepare()
    every.broken = False
    assert made.advance(after(1.5), LEDGER) == []
    assert made.is_new
    assert made.advance(after(1.5), LEDGER) == minutes(1)
