"""A database or a broker that goes away, or stands still, and comes back.

Beats go on, and when everything works again each slot has been executed once.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.integration.beat_stage import APPS, PATIENCE, BeatStage, Slot, grid, now
from tests.processes import CeleryProcess, wait_for
from tests.proxy import Proxy
from tests.services import Broker

EVERY = {"e": 1.0, "f": 0.7}
SCHEDULE = {name: {"task": "beats.note", "schedule": every} for name, every in EVERY.items()}
PROMPT = {"beat_scheduler": f"{APPS}.special:Prompt"}


@pytest.fixture
def database(postgres_url: str) -> Iterator[Proxy]:
    """What stands between the database and everybody but this test."""
    with Proxy.before(postgres_url) as proxy:
        yield proxy


@pytest.fixture
def stage(
    tmp_path: Path, redis_url: str, postgres_url: str, database: Proxy
) -> Iterator[BeatStage]:
    """The ledger is behind the proxy; effects are not."""
    broker = Broker("redis", redis_url)
    ledger = database.url(postgres_url)
    with BeatStage(tmp_path, broker, postgres_url, SCHEDULE, ledger=ledger) as made:
        yield made


def due(since: datetime, until: datetime) -> set[Slot]:
    """The slots of all entries in that time."""
    return {(name, slot) for name, every in EVERY.items() for slot in grid(every, since, until)}


def wait_for_slots(stage: BeatStage, since: datetime, until: datetime) -> None:
    """Waits until all slots between were executed."""
    expected = due(since, until)
    wait_for(
        lambda: expected <= stage.executions().keys(),
        PATIENCE,
        lambda: f"{sorted(expected - stage.executions().keys())}",
    )


def check(stage: BeatStage, since: datetime) -> None:
    """Every slot since then was executed once."""
    wait_for_slots(stage, since, now())
    for beat in stage.processes("beat"):
        beat.kill()
    wait_for(stage.is_drained, PATIENCE, "an empty queue")
    assert set(stage.executions().values()) == {1}


def end(beat: CeleryProcess) -> None:
    """A beat ends by itself when it is asked to, whatever it waits for."""
    beat.terminate()
    wait_for(lambda: not beat.running, PATIENCE, "the end of a beat")
    assert beat.returncode == 0, beat.tail()


def lines(process: CeleryProcess, text: str) -> int:
    """How often a process has written it."""
    return process.log.count(text)


LOST = "slots are published without the ledger"
FOUND = "Beat: the ledger answers again"


def test_beats_start_without_a_database(stage: BeatStage, database: Proxy) -> None:
    database.cut()
    beats = stage.beats(3)
    worker = stage.worker("-P", "solo")
    since = now()
    wait_for(lambda: stage.waiting() >= 12, PATIENCE, "messages of every slot by every beat")
    worker.ready()
    wait_for(lambda: "is put back" in worker.log, PATIENCE, "a message that waits")
    assert stage.effects() == []
    database.mend()
    wait_for(lambda: all(lines(beat, FOUND) for beat in beats), PATIENCE, "a ledger for all")
    check(stage, since)
    assert all(beat.log.count("Traceback") == 0 for beat in beats)
    assert [lines(beat, LOST) for beat in beats] == [1, 1, 1]
    assert [lines(beat, FOUND) for beat in beats] == [1, 1, 1]


def test_beats_lose_the_database_again_and_again(stage: BeatStage, database: Proxy) -> None:
    stage.worker("-P", "solo")
    beats = stage.beats(3)
    stage.wait_for_executions(2)
    since = now()
    for number in range(1, 3):
        database.cut()
        wait_for(
            lambda number=number: all(lines(beat, LOST) == number for beat in beats),  # type: ignore[misc]
            PATIENCE,
            "all without a ledger",
        )
        before = stage.waiting()
        wait_for(lambda before=before: stage.waiting() > before + 6, PATIENCE, "messages")  # type: ignore[misc]
        database.mend()
        wait_for(
            lambda number=number: all(lines(beat, FOUND) == number for beat in beats),  # type: ignore[misc]
            PATIENCE,
            "all with a ledger",
        )
        wait_for_slots(stage, since, now())
    check(stage, since)
    assert all(beat.log.count("Traceback") == 0 for beat in beats)


def test_beats_go_on_while_the_database_stands_still(stage: BeatStage, database: Proxy) -> None:
    worker = stage.worker("-P", "solo")
    beats = stage.beats(3, settings=PROMPT)
    stage.wait_for_executions(2)
    since = now()
    # The worker would wait for a minute, as its driver does.
    worker.stop()
    database.freeze()
    wait_for(lambda: all(lines(beat, LOST) for beat in beats), PATIENCE, "no answer")
    before = stage.waiting()
    wait_for(lambda: stage.waiting() > before + 6, PATIENCE, "messages")
    end(beats.pop())
    database.mend()
    worker.start()
    wait_for(lambda: all(lines(beat, FOUND) for beat in beats), PATIENCE, "answers")
    check(stage, since)
    # On a machine that is busy, a database that works may not answer in time either.
    assert all(lines(beat, LOST) <= 3 for beat in beats)


def test_beats_record_slots_while_the_broker_is_away(
    tmp_path: Path, broker: Broker, postgres_url: str
) -> None:
    with Proxy.before(broker.url) as proxy:
        near = Broker(broker.name, proxy.url(broker.url), broker.transport_options)
        with BeatStage(tmp_path, broker, postgres_url, SCHEDULE) as stage:
            # One of them has not even had a broker at its start.
            # What an AMQP client writes into a connection that is being cut is lost, and is
            # published again after the grace.
            settings = {**near.settings, "beat_scheduler": f"{APPS}.special:Hasty"}
            beats = stage.beats(2, settings=settings)
            stage.worker("-c", "1")
            stage.wait_for_executions(2)
            since = now()
            proxy.cut()
            beats += stage.beats(1, settings=settings)
            wait_for(
                lambda: all(lines(beat, "the broker does not answer") for beat in beats),
                PATIENCE,
                "all without a broker",
            )
            recorded = len(stage.runs())
            wait_for(lambda: len(stage.runs()) > recorded + 6, PATIENCE, "slots")
            proxy.mend()
            check(stage, since)
            for beat in beats:
                assert lines(beat, "the broker does not answer") == 1
                # It is found by whoever has something to publish.
                assert lines(beat, "the broker answers again") <= 1
                assert lines(beat, "ERROR") == 1
                assert "Traceback" not in beat.log


def test_beats_record_slots_while_the_broker_stands_still(
    tmp_path: Path, redis_url: str, postgres_url: str
) -> None:
    with Proxy.before(redis_url) as proxy:
        broker = Broker("redis", redis_url)
        with BeatStage(tmp_path, broker, postgres_url, SCHEDULE) as stage:
            # Rather than the five seconds of a beat whose settings say nothing.
            near = Broker("redis", proxy.url(redis_url), {"socket_timeout": 1.0})
            beats = stage.beats(3, settings=near.settings)
            stage.worker("-P", "solo")
            stage.wait_for_executions(2)
            since = now()
            proxy.freeze()
            wait_for(
                lambda: all(lines(beat, "the broker does not answer") for beat in beats),
                PATIENCE,
                "no answer",
            )
            recorded = len(stage.runs())
            wait_for(lambda: len(stage.runs()) > recorded + 6, PATIENCE, "slots")
            end(beats.pop())
            proxy.mend()
            check(stage, since)
