"""Slots of the past that are emitted by hand: each once, whoever emits it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.beat import BeatLazyFunc
from celery.schedules import BaseSchedule, crontab
from click.testing import CliRunner, Result
from kombu.exceptions import OperationalError

from celery_idem import ImproperlyConfigured, InvalidSchedule, LedgerUnavailable, RunState, backfill
from celery_idem.backfilling import Backfill, _Source
from celery_idem.cli import idem
from celery_idem.clock import SYSTEM
from celery_idem.keys import RunKey
from celery_idem.ledger.sql import SqlLedger
from tests.contract.stores import FIRST, SettableClock, Store
from tests.unit.beats import make_app, make_beat, messages, run_for, slots

HOUR = timedelta(hours=1)
START = FIRST.replace(minute=0)


class Odd(BaseSchedule):
    """Only it knows when it is due."""

    def is_due(self, last_run_at: datetime) -> Any:
        return False, 60.0


SCHEDULE: dict[str, Any] = {
    "hourly": {"task": "note", "schedule": crontab(minute="0"), "args": (7,)},
    "short": {
        "task": "note",
        "schedule": 3600,
        "start_deadline": 60,
        "options": {"expires": 30, "priority": 3},
    },
    "plain": {"task": "plain", "schedule": 3600},
    "lazy": {"task": "note", "schedule": 3600, "args": (BeatLazyFunc(lambda: "now"),)},
    "odd": {"task": "note", "schedule": Odd()},
    "bad": {"task": "note", "schedule": 3600, "catchup": "sometimes"},
    "": {"task": "note", "schedule": 3600},
}


@pytest.fixture
def app(database: Store) -> Iterator[Celery]:
    """With a broker in memory."""
    made = make_app(SCHEDULE, idem_database_url=database.url)
    yield made
    made.close()


def rows(database: Store, entry: str, hours: range) -> list[Any]:
    keys = [RunKey.for_slot("unit", entry, START + n * HOUR) for n in hours]
    return [database.ledger.read(key) for key in keys]


def test_slots_from_the_start_up_to_the_end_are_emitted(database: Store, app: Celery) -> None:
    done = backfill(app, "hourly", START, START + 3 * HOUR)
    assert (done.slots, done.unsent) == (3, ())
    assert [key.slot for key in done.recorded] == [START, START + HOUR, START + 2 * HOUR]
    found = messages(app)
    assert [slot for _, slot in slots(found)] == [f"2026-03-29T0{n}:00:00Z" for n in (1, 2, 3)]
    assert [message.headers["id"] for message in found] == [key.task_id for key in done.recorded]
    assert found[0].payload[0] == [7]
    states = [row.state for row in rows(database, "hourly", range(3))]
    assert states == [RunState.SCHEDULED] * 3
    (line,) = database.ledger.history(RunKey.for_entry("unit", "hourly"))
    assert (line.kind, line.detail) == (
        "backfill",
        "2026-03-29T01:00:00Z to 2026-03-29T04:00:00Z: 3 slots were recorded",
    )


def test_what_is_recorded_is_not_emitted_again(database: Store, app: Celery) -> None:
    backfill(app, "hourly", START, START + 3 * HOUR)
    messages(app)
    done = backfill(app, "hourly", START - HOUR, START + 4 * HOUR)
    assert [key.slot for key in done.recorded] == [START - HOUR, START + 3 * HOUR]
    assert (done.slots, len(messages(app))) == (5, 2)


def test_a_dry_run_changes_nothing(database: Store, app: Celery) -> None:
    backfill(app, "hourly", START + HOUR, START + 2 * HOUR)
    messages(app)
    done = backfill(app, "hourly", START, START + 3 * HOUR, dry_run=True)
    assert [key.slot for key in done.recorded] == [START, START + 2 * HOUR]
    assert (messages(app), database.ledger.counts()) == ([], {"scheduled": 1, "backfill": 1})


def test_many_slots_come_in_batches(database: Store, app: Celery) -> None:
    done = backfill(app, "hourly", START, START + 901 * HOUR)
    assert len(set(done.recorded)) == done.slots == len(messages(app)) == 901


def test_deadlines_do_not_hold(database: Store, app: Celery) -> None:
    """Neither for the first message nor for a copy of it, which a beat publishes."""
    backfill(app, "short", START, START + HOUR)
    (row,) = rows(database, "short", range(1))
    assert (row.state, row.deadline) == (RunState.SCHEDULED, None)
    clock = SettableClock(SYSTEM.now())
    going = make_beat(app, database.ledger, clock)
    database.ledger.record_tasks("unit", ["note"])
    run_for(going, 1)
    database.let_pass(61)
    run_for(going, 1)
    found = [m for m in messages(app) if m.headers["idem_slot"] == "2026-03-29T01:00:00Z"]
    assert [message.headers["expires"] for message in found] == [None, None]
    assert all("idem_start_by" not in message.headers for message in found)
    assert all(message.properties["priority"] == 3 for message in found)


def test_a_plain_task_is_published_once(database: Store, app: Celery) -> None:
    assert len(backfill(app, "plain", START, START + 2 * HOUR).recorded) == 2
    assert backfill(app, "plain", START, START + 2 * HOUR).recorded == ()
    assert len(messages(app)) == 2
    assert [row.state for row in rows(database, "plain", range(2))] == [RunState.EMITTED] * 2


def test_lazy_arguments_are_kept(database: Store, app: Celery) -> None:
    backfill(app, "lazy", START, START + HOUR)
    assert messages(app)[0].payload[0] == ["now"]
    (row,) = rows(database, "lazy", range(1))
    assert '"now"' in row.message


def test_backfills_and_a_beat_at_one_time_emit_each_slot_once(database: Store) -> None:
    """With the same keys, whichever is first; a copy too many is one of the same run."""
    entry = {"task": "note", "schedule": 60, "catchup": "all", "catchup_window": 86_400}
    end = SYSTEM.now().replace(second=0, microsecond=0) - timedelta(minutes=5)
    start = end - 6 * HOUR
    apps = [make_app({"e": entry}, idem_database_url=database.url) for _ in range(3)]
    going = make_beat(apps[0], SqlLedger(database.url), SettableClock(SYSTEM.now()))
    going._timetable.follow(going.schedule)
    going._timetable.activate()
    # As if it had been there for long.
    for track in going._timetable._tracks.values():
        track._since = start - timedelta(microseconds=1)
        track.activate(track._since, going.clock.now())
    going._timetable._agenda.disorder()
    errors: list[BaseException] = []
    done: list[Backfill] = []

    def run(work: Callable[[], object]) -> None:
        try:
            answer = work()
            if isinstance(answer, Backfill):
                done.append(answer)
        except BaseException as exc:
            errors.append(exc)

    work: list[Callable[[], object]] = [
        lambda: run_for(going, 2),
        *(lambda app=app: backfill(app, "e", start, end) for app in apps[1:]),
    ]
    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    found = {slot for app in apps for _, slot in slots(messages(app)) if slot < end.isoformat()}
    assert len(found) == 360
    first, second = (set(one.recorded) for one in done)
    assert not first & second
    keys = [RunKey.for_slot("unit", "e", start + n * timedelta(minutes=1)) for n in range(360)]
    assert len(database.ledger.recorded(keys)) == 360
    going.make_ledger().close()
    for app in apps:
        app.close()


def test_a_database_that_does_not_answer_is_told() -> None:
    app = make_app(SCHEDULE, idem_database_url="postgresql://nobody@127.0.0.1:1/nowhere")
    with pytest.raises(LedgerUnavailable):
        backfill(app, "hourly", START, START + HOUR)
    assert messages(app) == []
    app.close()


@pytest.mark.parametrize("entry", ["hourly", "plain"])
def test_without_a_broker_the_slots_are_left_to_beats_or_told_of(
    database: Store, app: Celery, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: Any, **kwargs: Any) -> None:
        raise OperationalError("the broker is away")

    monkeypatch.setattr(_Source, "publish", away)
    done = backfill(app, entry, START, START + 2 * HOUR)
    assert len(done.recorded) == 2
    assert done.unsent == (done.recorded if entry == "plain" else ())


NAIVE = datetime(2026, 3, 29)  # noqa: DTZ001
REFUSED = [
    ("nightly", START, START + HOUR, "entry = 'nightly' is not possible: there is no such entry"),
    ("hourly", NAIVE, START, "start = '2026-03-29T00:00:00' is not possible: it must have a time"),
    ("hourly", START, NAIVE, "end = '2026-03-29T00:00:00' is not possible: it must have a time"),
    ("hourly", START, START, "it must be before the end"),
    ("hourly", START + HOUR, START, "it must be before the end"),
    ("hourly", START, SYSTEM.now() + 24 * HOUR, "it must not be in the future"),
    ("", START, START + HOUR, "it must not be empty"),
    ("bad", START, START + HOUR, "catchup of entry 'bad' = 'sometimes'"),
]


@pytest.mark.parametrize(("entry", "start", "end", "said"), REFUSED, ids=[r[3] for r in REFUSED])
def test_what_cannot_be_is_refused(
    stores: Any, entry: str, start: datetime, end: datetime, said: str
) -> None:
    app = make_app(SCHEDULE, idem_database_url=stores.get("sqlite").url)
    with pytest.raises((ImproperlyConfigured, ValueError)) as caught:
        backfill(app, entry, start, end)
    assert said in str(caught.value)
    app.close()


def test_a_schedule_without_computable_slots_is_refused(stores: Any) -> None:
    app = make_app(SCHEDULE, idem_database_url=stores.get("sqlite").url)
    with pytest.raises(InvalidSchedule, match="only its own is_due knows its slots"):
        backfill(app, "odd", START, START + HOUR)
    app.close()


def test_it_needs_the_ledger() -> None:
    app = make_app(SCHEDULE, idem_enabled=False)
    with pytest.raises(ImproperlyConfigured, match="a backfill needs the ledger"):
        backfill(app, "hourly", START, START + HOUR)


# -- the command ----------------------------------------------------------------------------------


def run_command(app: Celery, *words: str) -> Result:
    return CliRunner().invoke(idem, ["backfill", *words], obj=SimpleNamespace(app=app))


PERIOD = ("--from", "2026-03-29T03:00+02:00", "--to", "2026-03-29T03:00:00Z")


def test_the_command(database: Store, app: Celery) -> None:
    done = run_command(app, "hourly", *PERIOD, "--dry-run")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "2026-03-29T01:00:00Z",
        "2026-03-29T02:00:00Z",
        "2 of 2 slots to be emitted; 0 were recorded before.",
    ]
    assert messages(app) == []
    for new in (2, 0):
        done = run_command(app, "hourly", *PERIOD)
        assert done.exit_code == 0, done.output
        assert done.stdout == (f"{new} of 2 slots emitted; {2 - new} were recorded before.\n")
        assert len(messages(app)) == new


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("nightly", *PERIOD), 1, "there is no such entry"),
        (
            ("hourly", "--from", "yesterday", "--to", "2026-03-29T03:00:00Z"),
            1,
            "--from = 'yesterday'",
        ),
        (("hourly", "--from", "2026-03-29", "--to", "2026-03-30"), 1, "--from = '2026-03-29'"),
        (("hourly",), 2, "Missing option"),
    ],
)
def test_what_the_command_refuses(
    stores: Any, words: tuple[str, ...], code: int, said: str
) -> None:
    app = make_app(SCHEDULE, idem_database_url=stores.get("sqlite").url)
    done = run_command(app, *words)
    assert (done.exit_code, said in done.stderr) == (code, True), done.output
    app.close()
