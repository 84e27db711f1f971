"""A beat that ticks is seen, and one that does not is not."""

from __future__ import annotations

import os
import socket

import pytest

from celery_idem.ledger import LiveBeat
from celery_idem.presence import LASTS
from tests.contract.stores import SettableClock
from tests.unit.beats import ShakyLedger, beat, run_for

SCHEDULE = {"e": {"task": "note", "schedule": 10}}


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def ledger(clock: SettableClock) -> ShakyLedger:
    return ShakyLedger(clock)


def test_a_beat_that_ticks_is_seen(ledger: ShakyLedger, clock: SettableClock) -> None:
    going = beat(SCHEDULE, ledger, clock)
    started = clock.now()
    run_for(going, 600)
    assert ledger.live_beats("unit") == [LiveBeat(socket.gethostname(), os.getpid(), started)]
    assert ledger.live_beats("another") == []
    assert ledger.calls.count("renew") <= 600 / LASTS * 6


def test_each_beat_is_seen(ledger: ShakyLedger, clock: SettableClock) -> None:
    for _ in range(3):
        run_for(beat(SCHEDULE, ledger, clock), 1)
    assert len(ledger.live_beats("unit")) == 3


def test_a_beat_that_hangs_is_not_seen_any_more(ledger: ShakyLedger, clock: SettableClock) -> None:
    going = beat(SCHEDULE, ledger, clock)
    run_for(going, 30)
    clock.advance(LASTS + 1)
    assert ledger.live_beats("unit") == []
    back = clock.now()
    run_for(going, 1)
    assert [one.started_at for one in ledger.live_beats("unit")] == [back]


def test_a_beat_that_ends_is_gone_at_once(ledger: ShakyLedger, clock: SettableClock) -> None:
    going = beat(SCHEDULE, ledger, clock)
    run_for(going, 1)
    going.close()
    assert ledger.live_beats("unit") == []
    assert ledger.lease_counts() == {}


def test_an_outage_ends_no_beat(ledger: ShakyLedger, clock: SettableClock) -> None:
    going = beat(SCHEDULE, ledger, clock)
    run_for(going, 30)
    ledger.away = True
    run_for(going, 2 * LASTS)
    ledger.away = False
    run_for(going, 40)
    assert len(ledger.live_beats("unit")) == 1


def test_a_lost_answer_leaves_one_lease_in_use(ledger: ShakyLedger, clock: SettableClock) -> None:
    going = beat(SCHEDULE, ledger, clock)
    ledger.mute = True
    run_for(going, 20)
    ledger.mute = False
    run_for(going, 40)
    assert len(ledger.live_beats("unit")) == 1
