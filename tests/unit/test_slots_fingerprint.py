"""One definition, one fingerprint: in every process, and whatever its spelling."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta, timezone
from enum import Enum
from functools import cached_property
from importlib.util import find_spec
from itertools import combinations
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import BaseSchedule, crontab, schedule, solar

from celery_idem.errors import InvalidSchedule
from celery_idem.slots import fingerprint
from celery_idem.slots.zone_names import zone_name
from tests.unit.slots_oracles import Cron, app_in, every

pytestmark = pytest.mark.unit

BERLIN = app_in("Europe/Berlin")


class Tide(Enum):
    HIGH = 1
    LOW = 2


class Tidal(BaseSchedule):
    """A custom schedule with attributes of many types."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(app=BERLIN)
        vars(self).update(attributes)

    def is_due(self, last_run_at: object) -> Any:
        return False, 60.0

    @cached_property
    def calculated(self) -> int:
        return 5


class OtherTidal(Tidal):
    pass


def definitions() -> list[BaseSchedule]:
    """Schedules of which no two are the same."""
    return [
        crontab("0", app=BERLIN),
        crontab("1", app=BERLIN),
        crontab("0", app=app_in("UTC")),
        crontab("0", "0", app=BERLIN),
        crontab("0", "*", "0", app=BERLIN),
        crontab("0", "*", "*", "1", app=BERLIN),
        crontab("0", "*", "*", "*", "1", app=BERLIN),
        # The same minutes, but when the clock shifts.
        crontab("*/30", "2", app=BERLIN),
        crontab("0,30", "2", app=BERLIN),
        every(60),
        every(60.000001),
        every(60, "UTC", relative=True),
        every(60, "Europe/Berlin", relative=True),
        Tidal(),
        OtherTidal(),
        *[Tidal(value=value) for value in (1, 2, "1", True, None, 1.5, Tide.HIGH, Tide.LOW, b"1")],
        *[Tidal(value=value) for value in ([1, 2], [2, 1], {1, 2}, {"a": 1}, {"a": 2}, {"b": 1})],
        *[Tidal(value=value) for value in (timedelta(1), timezone.utc, ZoneInfo("Asia/Tokyo"))],
        *[Tidal(value=value) for value in (every(60), every(61), Tidal(), len, max, Tide)],
        Tidal(other=1),
        *([solar("sunset", 52.5, 13.4), solar("sunset", 52.5, 13.5)] if find_spec("ephem") else []),
    ]


def test_different_definitions_differ() -> None:
    for one, other in combinations(definitions(), 2):
        assert fingerprint(one) != fingerprint(other), (vars(one), vars(other))


@pytest.mark.parametrize("candidate", definitions(), ids=lambda one: repr(one).split(" at 0x")[0])
def test_short_and_plain(candidate: BaseSchedule) -> None:
    text = fingerprint(candidate)
    assert text.isascii()
    assert len(text) <= 64
    assert text.partition("-")[0] in {"crontab", "interval", "solar", "custom"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (crontab("0", app=BERLIN), crontab(0, app=BERLIN)),
        (crontab("0,30", app=BERLIN), crontab([30, 0], app=BERLIN)),
        (crontab("0", "9", "mon", app=BERLIN), crontab(0, 9, 1, app=BERLIN)),
        (crontab("*/15", app=BERLIN), crontab("*/15", nowfun=print, app=BERLIN)),
        (every(60), every(60.0)),
        (every(60), schedule(timedelta(minutes=1))),
        # A plain interval is the same in all zones.
        (every(60, "UTC"), every(60, "Europe/Berlin")),
        (Tidal(value={"a": 1, "b": 2}), Tidal(value={"b": 2, "a": 1})),
        # Objects have no stable text, only an address.
        (Tidal(value=object()), Tidal(value=object())),
    ],
)
def test_equal_definitions_are_equal(one: BaseSchedule, other: BaseSchedule) -> None:
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize("make", [lambda: crontab("0", app=BERLIN), lambda: Tidal(value=1)])
def test_use_does_not_change_it(make: Callable[[], Any]) -> None:
    fresh, used = make(), make()
    assert used.tz is not None
    assert used.utc_enabled
    if isinstance(used, Tidal):
        assert used.calculated == 5
    assert fingerprint(fresh) == fingerprint(used)


def test_a_value_that_contains_itself_ends() -> None:
    endless: list[object] = []
    endless.append(endless)
    tidal = Tidal(value=endless)
    vars(tidal)["me"] = tidal
    assert fingerprint(tidal).startswith("custom-")


def test_the_same_in_another_process() -> None:
    """With another seed for hashes, so that sets and dicts come in another order."""
    program = (
        "from tests.unit import test_slots_fingerprint as t\n"
        "print([t.fingerprint(each) for each in t.definitions()])"
    )
    here = repr([fingerprint(each) for each in definitions()])
    for seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert there.stdout.strip() == here


def test_written_down_and_never_to_change() -> None:
    """Other fingerprints would make every schedule new to a ledger, which ends its catch-up."""
    office = Cron("*/15", "9-17", "*", "*", "1-5").on("Europe/Berlin")
    assert fingerprint(office) == "crontab-1ceb4f064c21e57d2b6a052f90a805eb"
    assert fingerprint(every(30)) == "interval-8c8bec9c01c4ccf6fbef0387888014d3"
    tidal = Tidal(value=[1, "two", {"three": 3.5}])
    assert fingerprint(tidal) == "custom-a5f3ee80c2d6dd542f5ea75df3b583c1"


@pytest.mark.parametrize(
    ("zone", "name"),
    [
        (ZoneInfo("Europe/Berlin"), "Europe/Berlin"),
        (ZoneInfo("UTC"), "UTC"),
        (timezone.utc, "UTC"),
        (timezone(timedelta(hours=2), "free text"), "UTC+02:00"),
    ],
)
def test_zones_have_one_name(zone: Any, name: str) -> None:
    assert zone_name(zone) == name


def test_a_zone_without_a_name_is_known_by_its_offsets() -> None:
    dateutil_tz = pytest.importorskip("dateutil.tz")
    rules = "CET-1CEST,M3.5.0,M10.5.0/3"
    central, again = dateutil_tz.tzstr(rules), dateutil_tz.tzstr.instance(rules)
    eastern = dateutil_tz.tzstr("EET-2EEST,M3.5.0/3,M10.5.0/4")
    assert zone_name(central).startswith("zone-")
    assert zone_name(central) == zone_name(again)
    assert zone_name(central) != zone_name(eastern)
    assert zone_name(dateutil_tz.tzutc()) == "UTC"
    assert zone_name(dateutil_tz.tzoffset("free text", 7200)) == "UTC+02:00"


def test_no_schedule_has_none() -> None:
    with pytest.raises(InvalidSchedule, match="it is not a Celery schedule"):
        fingerprint(None)  # type: ignore[arg-type]
