"""Which schedules have computable slots, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import BaseSchedule, crontab, schedstate, schedule

from celery_idem.errors import InvalidSchedule
from celery_idem.slots import (
    agreed_by_ledger,
    check,
    fingerprint,
    latest_slot,
    next_slot,
    slots_between,
)
from celery_idem.slots.kinds import FIELDS_ARE_IN_TZ
from tests.unit.slots_oracles import DAY, Cron, app_in, at, every

pytestmark = pytest.mark.unit

NOON = at("2026-01-01T12:00")


class EveryTick(BaseSchedule):
    """Due whenever it is asked."""

    def is_due(self, last_run_at: datetime) -> schedstate:
        return schedstate(True, 1.0)


class Renamed(crontab):
    """A crontab with another name for users, due as any crontab."""

    def __repr__(self) -> str:
        return "<renamed>"


class OnWorkdays(crontab):
    def is_due(self, last_run_at: datetime) -> schedstate:
        due, seconds = super().is_due(last_run_at)
        return schedstate(due and last_run_at.weekday() < 5, seconds)


class Later(schedule):
    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        return super().remaining_estimate(last_run_at) + timedelta(seconds=5)


class InTokyo(crontab):
    def remaining_delta(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["tz"] = ZoneInfo("Asia/Tokyo")
        return super().remaining_delta(*args, **kwargs)


class LikeTzAwareCrontab(crontab):
    """django-celery-beat's in all that counts: path, zone, and that it overrides is_due."""

    __module__ = "django_celery_beat.tzcrontab"
    __qualname__ = "TzAwareCrontab"

    def __init__(self, *fields: str, tz: Any) -> None:
        vars(self)["tz"] = tz
        super().__init__(*fields, nowfun=lambda: datetime.now(tz))

    def is_due(self, last_run_at: datetime) -> schedstate:
        return super().is_due(last_run_at.astimezone(vars(self)["tz"]))


def broken(make: Callable[[], Any], **attributes: Any) -> Any:
    """A schedule whose attributes were changed after it was made."""
    made = make()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("custom", [EveryTick(), OnWorkdays(), Later(60), InTokyo()])
def test_a_schedule_that_decides_itself_is_agreed_by_the_ledger(custom: BaseSchedule) -> None:
    assert agreed_by_ledger(custom)
    check(custom)
    for ask in (
        lambda: next_slot(custom, NOON),
        lambda: slots_between(custom, NOON, NOON + DAY),
        lambda: latest_slot(custom, NOON, NOON + DAY),
    ):
        with pytest.raises(InvalidSchedule, match="only its own is_due knows its slots"):
            ask()


def test_one_object_that_decides_itself_too() -> None:
    patched = broken(lambda: every(60), is_due=lambda last_run_at: schedstate(True, 1.0))
    assert agreed_by_ledger(patched)
    assert not agreed_by_ledger(every(60))


def test_a_subclass_that_does_not_decide_has_the_slots_of_its_base() -> None:
    renamed = Renamed("5", "6", app=app_in("UTC"))
    assert not agreed_by_ledger(renamed)
    assert next_slot(renamed, NOON) == at("2026-01-02T06:05")
    assert fingerprint(renamed) == fingerprint(Cron("5", "6").on("UTC"))


def test_the_crontab_of_django_celery_beat_has_the_slots_of_its_zone() -> None:
    """It overrides is_due, but only to move last_run_at into its own time zone."""
    if find_spec("django_celery_beat"):
        made: Any = import_module("django_celery_beat.tzcrontab").TzAwareCrontab
    else:
        made = LikeTzAwareCrontab
    schedule_ = made("30", "2", tz=ZoneInfo("Europe/Berlin"))
    check(schedule_)
    assert not agreed_by_ledger(schedule_)
    slots = slots_between(schedule_, at("2026-03-28"), at("2026-03-30"))
    assert list(slots) == [at("2026-03-28T01:30"), at("2026-03-29T01:00")]


def test_the_zone_is_that_of_the_app_or_the_schedules_own() -> None:
    assert next_slot(Cron("0", "9").on("Asia/Kathmandu"), NOON) == at("2026-01-02T03:15")
    own = broken(lambda: Cron("0", "9").on("UTC"), tz=ZoneInfo("Asia/Tokyo"))
    assert next_slot(own, NOON) == at("2026-01-02T00:00")
    named = broken(lambda: Cron("0", "9").on("UTC"), tz="Asia/Tokyo")
    assert next_slot(named, NOON) == at("2026-01-02T00:00")


def test_any_kind_of_tzinfo_will_do() -> None:
    fixed = broken(lambda: Cron("0", "9").on("UTC"), tz=timezone(timedelta(hours=9)))
    assert next_slot(fixed, NOON) == at("2026-01-02T00:00")
    dateutil_tz = pytest.importorskip("dateutil.tz")
    berlin = broken(lambda: Cron("30", "2").on("UTC"), tz=dateutil_tz.gettz("Europe/Berlin"))
    slots = slots_between(berlin, at("2026-03-28T12:00"), at("2026-03-30T12:00"))
    assert list(slots) == [at("2026-03-29T01:00"), at("2026-03-30T00:30")]


def test_slots_never_read_the_clock() -> None:
    def now() -> datetime:
        raise AssertionError("the clock was read")

    for schedule_ in (
        crontab("0", "9", nowfun=now, app=app_in("UTC")),
        schedule(60, nowfun=now, app=app_in("UTC")),
        schedule(3600, relative=True, nowfun=now, app=app_in("UTC")),
    ):
        assert next_slot(schedule_, NOON) == next(slots_between(schedule_, NOON, NOON + DAY))
        assert latest_slot(schedule_, NOON, NOON + DAY) is not None
        assert fingerprint(schedule_)


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (None, "it is not a Celery schedule"),
        (60, "it is not a Celery schedule"),
        (timedelta(seconds=60), "it is not a Celery schedule"),
        ("* * * * *", "it is not a Celery schedule"),
        (crontab, "it is not a Celery schedule"),
        (BaseSchedule(), "it has no is_due of its own"),
        (schedule(), "run_every is None"),
        (schedule("60"), "run_every is '60'"),  # type: ignore[arg-type]
        (every(0), "run_every is 0.0 s: give at least one microsecond"),
        (every(-5), "run_every is -5.0 s"),
        (every(1e-7), "run_every is 0.0 s"),
        (broken(lambda: every(60), run_every=float("nan")), "run_every is nan"),
        (every(0, relative=True), "run_every is 0.0 s"),
        (crontab(minute=[]), "minute is empty"),
        (crontab(hour=[1.5]), "hour = {1.5}: give whole numbers"),  # type: ignore[list-item]
        (
            broken(lambda: crontab(month_of_year=2), day_of_month={30, 31}),
            r"day_of_month \[30, 31\] never occurs in month_of_year \[2\]",
        ),
        (broken(crontab, tz="Mars/Olympus"), "its time zone cannot be loaded"),
        (broken(crontab, tz=9), "its tz is 9"),
    ],
)
def test_what_has_no_slots_is_refused_with_the_reason(candidate: Any, reason: str) -> None:
    with pytest.raises(InvalidSchedule, match=reason):
        check(candidate)


def test_the_error_survives_pickling() -> None:
    with pytest.raises(InvalidSchedule) as caught:
        check(every(0))
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


@pytest.mark.parametrize(
    "candidate",
    [every(1e-6), every(10**9), every(0.5, relative=True), crontab(), Cron("0").on("UTC")],
)
def test_what_has_slots_passes(candidate: BaseSchedule) -> None:
    check(candidate)


def tokyo() -> datetime:
    return datetime.now(ZoneInfo("Asia/Tokyo"))


def no_clock() -> datetime:
    raise RuntimeError("no clock")


def daily(nowfun: Callable[[], datetime], zone: str) -> schedule:
    return schedule(86_400, relative=True, nowfun=nowfun, app=app_in(zone))


def at_nine(nowfun: Callable[[], datetime], zone: str) -> crontab:
    return crontab("0", "9", nowfun=nowfun, app=app_in(zone))


@pytest.mark.parametrize(
    "made",
    [
        daily,
        pytest.param(
            at_nine,
            marks=pytest.mark.skipif(FIELDS_ARE_IN_TZ, reason="Celery 5.7 does not take its hours"),
        ),
    ],
)
def test_a_nowfun_in_another_zone_is_refused(made: Callable[..., BaseSchedule]) -> None:
    """Celery would take its hours: nobody should guess."""
    with pytest.raises(InvalidSchedule, match="the time in Asia/Tokyo, but the slots are in UTC"):
        check(made(tokyo, "UTC"))
    with pytest.raises(InvalidSchedule, match="its nowfun fails: RuntimeError"):
        check(made(no_clock, "UTC"))
    check(made(tokyo, "Asia/Tokyo"))
    # Naive time is taken to be in the zone of the app, and an offset may be that of the zone.
    check(made(lambda: datetime.now().replace(tzinfo=None), "UTC"))  # noqa: DTZ005
    check(made(lambda: datetime.now(timezone(timedelta(hours=9))), "Asia/Tokyo"))
    with pytest.raises(InvalidSchedule, match=r"the time in UTC\+05:00"):
        check(made(lambda: datetime.now(timezone(timedelta(hours=5))), "UTC"))


@pytest.mark.skipif(not FIELDS_ARE_IN_TZ, reason="Celery before 5.7 takes its hours")
def test_a_crontab_has_its_hours_by_its_zone_whatever_its_nowfun_says() -> None:
    by_tokyo = at_nine(tokyo, "Europe/Berlin")
    check(by_tokyo)
    slot = next_slot(by_tokyo, at("2026-07-01T00:00"))
    assert slot == at("2026-07-01T07:00")
    asked = at("2026-07-01T06:59")
    by_celery = at_nine(lambda: asked.astimezone(ZoneInfo("Asia/Tokyo")), "Europe/Berlin")
    assert by_celery.remaining_estimate(at("2026-06-30T12:00")) == timedelta(minutes=1)


def test_a_naive_time_is_refused() -> None:
    naive = datetime(2026, 1, 1)  # noqa: DTZ001
    with pytest.raises(ValueError, match=r"after = .* is naive"):
        next_slot(every(60), naive)
    with pytest.raises(ValueError, match=r"until = .* is naive"):
        slots_between(every(60), NOON, naive)


def test_times_in_any_zone_give_slots_in_utc() -> None:
    in_tokyo = NOON.astimezone(ZoneInfo("Asia/Tokyo"))
    slot = next_slot(every(3600), in_tokyo)
    assert slot == at("2026-01-01T13:00")
    assert slot is not None
    assert slot.tzinfo is timezone.utc


def test_an_empty_window_has_no_slots() -> None:
    for candidate in (every(1), Cron("*").on("UTC"), Cron("0", "9").on("UTC")):
        assert list(slots_between(candidate, NOON, NOON)) == []
        assert list(slots_between(candidate, NOON + DAY, NOON)) == []
        assert latest_slot(candidate, NOON + DAY, NOON) is None
