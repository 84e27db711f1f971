"""What the message of a slot is made of."""

from __future__ import annotations

import copy
from datetime import datetime, timedelta, timezone
from itertools import count
from typing import Any
from uuid import UUID

import pytest
from celery.beat import BeatLazyFunc
from celery.schedules import crontab
from kombu import Queue

from celery_idem import RunState
from celery_idem.clock import SYSTEM
from celery_idem.due import Due
from celery_idem.keys import RunKey, Stamp
from celery_idem.ledger import Owner, Retry
from celery_idem.ledger.memory import MemoryLedger
from celery_idem.messages import dump, publish
from celery_idem.run import ClaimRequest, RunRow
from tests.contract.stores import SettableClock
from tests.unit.beats import (
    UnitScheduler,
    make_app,
    make_beat,
    messages,
    rows,
    run_for,
    slots,
)

EVERY = {"e": {"task": "note", "schedule": 10}}


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


def one_message(entry: dict[str, Any], **settings: Any) -> Any:
    """The message of the first slot of an entry, and the beat that sent it."""
    app = make_app({"e": {"task": "note", "schedule": 10, **entry}}, **settings)
    sent = make_beat(app)
    run_for(sent, 10)
    (message,) = messages(app, entry.get("options", {}).get("queue"))
    return message, sent


def test_a_message_names_its_run(clock: SettableClock) -> None:
    message, _ = one_message({})
    key = RunKey.for_slot("unit", "e", datetime(2026, 3, 30, 1, 30, 10, tzinfo=timezone.utc))
    assert message.headers["idem_run_key"] == "unit:e@2026-03-30T01:30:10Z"
    assert message.headers["idem_entry"] == "e"
    assert message.headers["id"] == message.properties["correlation_id"] == key.task_id
    assert UUID(message.headers["id"]).version == 5
    assert message.headers["celery_beat_task" if "celery_beat_task" in message.headers else "id"]
    assert Stamp.read(message.headers, "note") == Stamp(key, "e")


def test_a_message_is_signed() -> None:
    message, _ = one_message({}, idem_signing_key="geheim")
    assert Stamp.read(message.headers, "note", "geheim") is not None


def test_arguments_and_options_arrive() -> None:
    options = {"priority": 3, "headers": {"tenant": "x"}, "time_limit": 70, "serializer": "json"}
    message, _ = one_message({"args": (1, "two"), "kwargs": {"three": 3}, "options": options})
    assert message.payload[0] == [1, "two"]
    assert message.payload[1] == {"three": 3}
    assert message.properties["priority"] == 3
    assert message.headers["tenant"] == "x"
    assert message.headers["timelimit"] == [70, None]


def test_a_queue_of_its_own() -> None:
    app = make_app({"e": {"task": "note", "schedule": 10, "options": {"queue": "side"}}})
    name = f"{app.main}-side"
    app.conf.task_queues = [Queue("side", routing_key=name), Queue(app.conf.task_default_queue)]
    run_for(make_beat(app), 10)
    assert messages(app) == []
    assert len(messages(app, "side")) == 1


def test_options_and_their_headers_are_never_changed() -> None:
    given = {
        "headers": {"tenant": {"nested": [1]}},
        "expires": 5,
        "priority": 1,
        "retry_policy": {"max_retries": 0},
    }
    app = make_app({"e": {"task": "note", "schedule": 10, "options": given}})
    sent = make_beat(app)
    before = copy.deepcopy((given, sent.schedule["e"].options, app.conf.beat_schedule["e"]))
    run_for(sent, 50)
    assert len(messages(app)) == 5
    assert (given, sent.schedule["e"].options, app.conf.beat_schedule["e"]) == before
    assert "celery_beat_task" not in given["headers"]  # type: ignore[operator]


def test_the_schedule_stays_bound_to_its_app() -> None:
    app = make_app({"e": {"task": "note", "schedule": crontab()}}, timezone="Asia/Kathmandu")
    sent = make_beat(app)
    run_for(sent, 120)
    assert sent.schedule["e"].schedule.app is app
    assert str(sent.schedule["e"].schedule.tz) == "Asia/Kathmandu"


def test_a_task_that_is_not_imported_here_is_sent_by_name(clock: SettableClock) -> None:
    app = make_app({"e": {"task": "elsewhere.task", "schedule": 10, "args": (1,)}})
    ledger = MemoryLedger(clock)
    run_for(make_beat(app, ledger, clock), 10)
    (message,) = messages(app)
    assert message.headers["task"] == "elsewhere.task"
    # It may claim: whether it does is known when a worker has recorded it.
    assert [row.state for row in rows(ledger)] == [RunState.SCHEDULED]


def test_the_slot_of_a_plain_task_is_closed_when_it_is_recorded(clock: SettableClock) -> None:
    ledger = MemoryLedger(clock)
    app = make_app({"e": {"task": "plain", "schedule": 10}})
    run_for(make_beat(app, ledger, clock), 10)
    assert len(messages(app)) == 1
    assert [row.state for row in rows(ledger)] == [RunState.EMITTED]


EXPIRES = [
    30,
    30.0,
    timedelta(seconds=30),
    datetime(2026, 3, 30, 1, 30, 40, tzinfo=timezone.utc),
    datetime(2026, 3, 30, 3, 30, 40, tzinfo=timezone(timedelta(hours=2))),
    datetime(2026, 3, 30, 1, 30, 40),  # noqa: DTZ001 - Celery, too, takes it for UTC
    "2026-03-30T01:30:40+00:00",
]


@pytest.mark.parametrize("expires", EXPIRES, ids=str)
def test_expires_counts_from_the_slot(expires: Any, clock: SettableClock) -> None:
    ledger = MemoryLedger(clock)
    app = make_app({"e": {"task": "note", "schedule": 10, "options": {"expires": expires}}})
    late = make_beat(app, ledger, clock)
    late.tick()
    clock.advance(13)
    late.tick()
    (message,) = messages(app)
    assert datetime.fromisoformat(message.headers["expires"]) == datetime(
        2026, 3, 30, 1, 30, 40, tzinfo=timezone.utc
    )
    assert [row.deadline for row in rows(ledger)] == [
        datetime(2026, 3, 30, 1, 30, 40, tzinfo=timezone.utc)
    ]


def test_expires_of_the_task_counts_from_the_slot_too(clock: SettableClock) -> None:
    ledger = MemoryLedger(clock)
    app = make_app(EVERY)
    app.tasks["note"].expires = 20
    run_for(make_beat(app, ledger, clock), 10)
    assert rows(ledger)[0].deadline == datetime(2026, 3, 30, 1, 30, 30, tzinfo=timezone.utc)


def test_a_delayed_task_is_not_published_again_while_it_waits(clock: SettableClock) -> None:
    ledger = MemoryLedger(clock)
    ledger.record_tasks("unit", ["note"])
    app = make_app({"e": {"task": "note", "schedule": 3600, "options": {"countdown": 900}}})
    sent = make_beat(app, ledger, clock)
    clock.moment += timedelta(seconds=3600 - clock.moment.timestamp() % 3600 - 1)
    sent.tick()
    run_for(sent, 900)
    assert len(messages(app)) == 1
    run_for(sent, 70)
    assert len(messages(app)) == 1


# -- lazy arguments ------------------------------------------------------------------------------


def test_lazy_arguments_are_evaluated_once_for_a_slot_and_kept(clock: SettableClock) -> None:
    calls = count(1)
    lazy = BeatLazyFunc(lambda text: f"{text}{next(calls)}", "call ")
    entry = {"task": "note", "schedule": 3600, "args": (lazy, 7), "kwargs": {"also": lazy}}
    ledger = MemoryLedger(clock)
    ledger.record_tasks("unit", ["note"])
    app = make_app({"e": entry})
    sent = make_beat(app, ledger, clock)
    clock.moment += timedelta(seconds=3600 - clock.moment.timestamp() % 3600 - 1)
    sent.tick()
    run_for(sent, 1)
    (first,) = messages(app)
    assert first.payload[:2] == [["call 1", 7], {"also": "call 2"}]
    run_for(sent, 61)
    (copy_,) = messages(app)
    assert copy_.payload[:2] == first.payload[:2]
    for header in ("id", "task", "idem_run_key", "idem_slot", "idem_entry"):
        assert copy_.headers[header] == first.headers[header]
    assert next(calls) == 3


def test_a_kept_message_can_be_published_by_anybody(clock: SettableClock) -> None:
    ledger = MemoryLedger(clock)
    lazy = {"args": (BeatLazyFunc(lambda: 42),), "options": {"expires": 60, "priority": 4}}
    app = make_app({"e": {"task": "note", "schedule": 10, **lazy}})
    run_for(make_beat(app, ledger, clock), 10)
    (first,) = messages(app)
    (row,) = rows(ledger)
    assert row.message is not None
    publish(app, row.message)
    (again,) = messages(app)
    assert again.payload == first.payload
    assert again.properties["priority"] == 4
    assert again.headers["expires"] == first.headers["expires"]


OPTIONS: dict[str, dict[str, Any]] = {
    "countdown": {"countdown": 3600},
    "eta": {"eta": SYSTEM.now() + timedelta(days=1)},
    "repr": {"argsrepr": "secret", "kwargsrepr": "too"},
    "queue": {"headers": {"mine": 1}, "shadow": "other", "expires": 7200, "priority": 3},
}


def told(message: Any, name: str) -> Any:
    """A header; a time without its fractions, as a countdown begins with each publish."""
    value = message.headers.get(name)
    return value[:16] if name == "eta" and value else value


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_copy_by_another_beat_is_what_the_first_would_have_been(
    clock: SettableClock, lazy: bool, options: dict[str, Any]
) -> None:
    """Also if nobody but the beat that died knows what a lazy argument was."""

    class Dies(UnitScheduler):
        def publish(self, due: Due, **options: Any) -> Any:
            raise SystemExit

    args = (BeatLazyFunc(lambda: 1),) if lazy else (1,)
    schedule = {"e": {"task": "note", "schedule": 3600, "args": args, "options": options}}
    ledger = MemoryLedger(clock)
    ledger.record_tasks("unit", ["note"])
    first, dying, other = (
        make_beat(make_app(schedule), ledger, clock, cls=cls)
        for cls in (UnitScheduler, Dies, UnitScheduler)
    )
    clock.moment += timedelta(seconds=3600 - clock.moment.timestamp() % 3600 - 1)
    for one in (first, dying, other):
        one.tick()
    clock.advance(1)
    first.tick()
    (published,) = messages(first.app)
    clock.advance(3600)
    with pytest.raises(SystemExit):
        dying.tick()
    run_for(other, 2)
    (copy_,) = (m for m in messages(other.app) if m.headers["id"] != published.headers["id"])
    differ = {"id", "root_id", "idem_slot", "idem_run_key", "expires", "origin"}
    names = (published.headers.keys() | copy_.headers.keys()) - differ
    assert {n: told(copy_, n) for n in names} == {n: told(published, n) for n in names}
    assert copy_.payload == published.payload
    assert copy_.properties.get("priority") == published.properties.get("priority")


def test_a_kept_message_starts_when_it_was_to_start(clock: SettableClock) -> None:
    """Published by a beat that does not know its entry."""
    ledger = MemoryLedger(clock)
    lazy = {"args": (BeatLazyFunc(lambda: 42),), "options": {"countdown": 3600}}
    app = make_app({"e": {"task": "note", "schedule": 10, **lazy}})
    run_for(make_beat(app, ledger, clock), 10)
    (first,) = messages(app)
    (row,) = rows(ledger)
    assert row.message is not None
    publish(app, row.message)
    (again,) = messages(app)
    assert again.headers["eta"][:16] == first.headers["eta"][:16]


def daily(clock: SettableClock, **entry: Any) -> Any:
    """A beat at the slot of `e`, which is about to publish it."""
    ledger = MemoryLedger(clock)
    ledger.record_tasks("unit", ["note"])
    sent = make_beat(make_app({"e": {"task": "note", "schedule": 86_400, **entry}}), ledger, clock)
    clock.moment += timedelta(seconds=86_400 - clock.moment.timestamp() % 86_400 - 1)
    sent.tick()
    return sent


def claimed(sent: Any) -> tuple[RunRow, int]:
    """The run of `e` and its fence, in the hands of a worker."""
    ledger = sent.ledger
    (row,) = [row for row in rows(ledger) if row.entry == "e"]
    ledger.register("lease", Owner("worker", "host", 1, "process"), 60)
    claim = ClaimRequest(row.key, "note", "unit", "e", row.task_id, 0, "lease", "claim")
    return row, ledger.claim(claim).fence


def of_entry(sent: Any) -> list[Any]:
    """The messages of `e`."""
    return [m for m in messages(sent.app) if m.headers["idem_entry"] == "e"]


def test_a_copy_for_a_retry_does_not_wait_again(clock: SettableClock) -> None:
    sent = daily(clock, options={"countdown": 3600})
    run_for(sent, 1)
    (first,) = of_entry(sent)
    assert first.headers["eta"]
    row, fence = claimed(sent)
    assert sent.ledger.give_back(row.key, fence, "put back", 5.0)
    run_for(sent, 6)
    (copy_,) = of_entry(sent)
    assert copy_.headers["eta"] is None


def test_a_lost_retry_comes_with_its_own_options(clock: SettableClock) -> None:
    """A retry may have other ones than its slot had."""
    sent = daily(clock, args=(1,))
    run_for(sent, 1)
    messages(sent.app)
    row, fence = claimed(sent)
    options = {"task_id": row.task_id, "queue": "slow", "headers": {"mine": 2}, "time_limit": 5}
    awaited = Retry(1, 0.0, dump("note", (2,), {}, options), grace=5.0)
    sent.ledger.retry(row.key, fence, awaited)
    run_for(sent, 6)
    (copy_,) = messages(sent.app, "slow")
    assert copy_.payload[0] == [2]
    assert (copy_.headers["mine"], copy_.headers["timelimit"]) == (2, [5, None])
    assert copy_.headers["retries"] == 1


def test_a_copy_is_not_sent_while_the_one_before_waits(clock: SettableClock) -> None:
    sent = daily(clock, options={"countdown": 3600})
    run_for(sent, 10_000)
    # After a minute and then two, on top of the hour for which each waits.
    assert len(of_entry(sent)) == 3


@pytest.mark.parametrize("args", [(), (BeatLazyFunc(lambda: 1),)], ids=["from entry", "kept"])
def test_a_copy_has_the_retry_number_that_the_run_waits_for(
    args: Any, clock: SettableClock
) -> None:
    ledger = MemoryLedger(clock)
    ledger.record_tasks("unit", ["note"])
    app = make_app({"e": {"task": "note", "schedule": 3600, "args": args}})
    sent = make_beat(app, ledger, clock)
    clock.moment += timedelta(seconds=3600 - clock.moment.timestamp() % 3600 - 1)
    sent.tick()
    run_for(sent, 1)
    assert len(messages(app)) == 1
    (row,) = rows(ledger)
    ledger.register("lease", Owner("worker", "host", 1, "process"), 60)
    claim = ClaimRequest(row.key, "note", "unit", "e", row.task_id, 2, "lease", "claim")
    fence = ledger.claim(claim).fence
    assert ledger.give_back(row.key, fence, "put back", 5.0)
    run_for(sent, 6)
    assert [message.headers["retries"] for message in messages(app)] == [2]


def test_a_lazy_argument_that_fails_is_told_of(
    clock: SettableClock, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise LookupError("no such customer")

    app = make_app({**EVERY, "lazy": {**EVERY["e"], "args": (BeatLazyFunc(fail),)}})
    run_for(make_beat(app, clock=clock), 20)
    assert [entry for entry, _ in slots(messages(app))] == ["e", "e"]
    assert "Entry lazy is left out: no such customer" in caplog.text


def test_a_lazy_argument_that_json_cannot_tell_is_not_kept(clock: SettableClock) -> None:
    lazy = {"args": (BeatLazyFunc(lambda: {1, 2}),), "options": {"serializer": "pickle"}}
    ledger = MemoryLedger(clock)
    app = make_app({"e": {"task": "note", "schedule": 10, **lazy}})
    run_for(make_beat(app, ledger, clock), 10)
    assert [row.message for row in rows(ledger)] == [None]
    assert messages(app)[0].content_type == "application/x-python-serialize"
