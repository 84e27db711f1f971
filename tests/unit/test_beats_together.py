"""Three beats and a worker through anything that may happen to them.

A history is drawn: clock offsets, pauses, deaths in mid-emission, restarts, outages of the ledger
and of the broker, messages that get lost. Whatever it is, each slot of the grid is executed once.
The messages go through a list here, and the worker is a claim in the ledger.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.exceptions import OperationalError

from celery_idem.due import Due
from celery_idem.errors import LedgerUnavailable
from celery_idem.keys import RunKey
from celery_idem.ledger import Owner
from celery_idem.ledger.memory import MemoryLedger
from celery_idem.run import ClaimOutcome, ClaimRequest, RunRow, RunState
from tests.contract.stores import SettableClock
from tests.unit.beats import ShakyLedger, UnitScheduler, make_app, make_beat

EVERY = {"fast": 1.0, "slow": 7.5}
#: Seconds of a history, and those after it in which everything works.
LONG, REST = 40, 15
STEP = 0.25


class Dies(BaseException):
    """A beat is gone in the middle of something."""


@dataclass
class World:
    """What beats and workers share."""

    clock: SettableClock = field(default_factory=SettableClock)
    broker_away: bool = False
    queue: list[RunKey] = field(default_factory=list)
    executed: list[RunKey] = field(default_factory=list)
    publishes: Counter[RunKey] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.ledger = ShakyLedger(self.clock)
        MemoryLedger.record_tasks(self.ledger, "unit", ["note"])
        MemoryLedger.register(self.ledger, "lease", Owner("worker", "h", 1, "p"), 10_000.0)

    def work(self) -> None:
        """A worker handles all messages, unless it has no ledger: then they come again."""
        if self.ledger.away:
            return
        for key in self.queue:
            request = ClaimRequest(
                key, "note", "unit", key.text, key.task_id, 0, "lease", uuid4().hex
            )
            claim = self.ledger.claim(request)
            if claim.outcome is ClaimOutcome.CLAIMED:
                self.executed.append(key)
                self.ledger.end(key, claim.fence, RunState.SUCCEEDED)
        self.queue.clear()


class WorldBeat(UnitScheduler):
    """A beat that publishes into the world's queue, and may die there."""

    world: World
    dies_in: int | None = None

    def publish(self, due: Due, **options: Any) -> Any:
        self._publish(due.key)

    def publish_again(self, row: RunRow) -> Any:
        self._publish(row.key)

    def _publish(self, key: RunKey) -> None:
        if self.dies_in is not None:
            self.dies_in -= 1
            if self.dies_in < 0:
                raise Dies
        if self.world.broker_away:
            raise OperationalError("the broker is away")
        self.world.publishes[key] += 1
        self.world.queue.append(key)

    def is_broker_away(self, exc: Exception) -> bool:
        return isinstance(exc, OperationalError)


@dataclass
class Player:
    """One beat, with a clock of its own that is off."""

    app: Celery
    world: World
    offset: timedelta
    paused: int = 0
    beat: Any = None

    def step(self) -> None:
        if self.paused:
            self.paused -= 1
            return
        clock = self.beat.clock if self.beat else SettableClock()
        clock.moment = self.world.clock.moment + self.offset
        if self.beat is None:
            self.beat = make_beat(self.app, self.world.ledger, clock, cls=WorldBeat)
            self.beat.world = self.world
        try:
            self.beat.tick()
        except Dies:
            self.beat = None


events = st.one_of(
    st.tuples(st.just("pause"), st.integers(0, 2), st.integers(1, 60)),
    st.tuples(st.just("die"), st.integers(0, 2), st.integers(0, 3)),
    st.tuples(st.just("restart"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("ledger"), st.booleans(), st.just(0)),
    st.tuples(st.just("answers"), st.booleans(), st.just(0)),
    st.tuples(st.just("broker"), st.booleans(), st.just(0)),
    st.tuples(st.just("work"), st.just(0), st.just(0)),
)
histories = st.lists(st.tuples(st.integers(0, int(LONG / STEP)), events), max_size=14)
offsets = st.lists(st.integers(-400, 400), min_size=3, max_size=3)


def apply(event: tuple[str, Any, int], world: World, players: list[Player]) -> None:
    """Let it happen."""
    what, which, number = event
    if what == "pause":
        players[which].paused = number
    elif what == "die":
        if players[which].beat is not None:
            players[which].beat.dies_in = number
    elif what == "restart":
        players[which].beat = None
    elif what == "ledger":
        world.ledger.away = which
    elif what == "answers":
        world.ledger.mute = which
    elif what == "broker":
        world.broker_away = which
    else:
        world.work()


def play(offset: list[int], history: list[tuple[int, Any]]) -> tuple[World, datetime, datetime]:
    """The world afterwards, and the time from the beats' start to the end of the history."""
    world = World()
    app = make_app({name: {"task": "note", "schedule": every} for name, every in EVERY.items()})
    players = [Player(app, world, timedelta(milliseconds=number)) for number in offset]
    begin = world.clock.now()
    for player in players:
        player.step()
    end = int(LONG / STEP)
    for number in range(int((LONG + REST) / STEP)):
        world.clock.advance(STEP)
        for _, event in (item for item in history if item[0] == number < end):
            apply(event, world, players)
        if number == end:
            repair(world, players)
        for player in players:
            player.step()
        if not number % 3 and not world.ledger.mute:
            world.work()
    return world, begin, begin + timedelta(seconds=LONG)


def repair(world: World, players: list[Player]) -> None:
    """Everything works from now on."""
    world.ledger.away = world.ledger.mute = world.broker_away = False
    for player in players:
        player.paused = 0
        if player.beat:
            player.beat.dies_in = None


def due(begin: datetime, end: datetime) -> set[RunKey]:
    """The slots of the grid, by arithmetic."""
    epoch = datetime(1970, 1, 1, tzinfo=begin.tzinfo)
    found = set()
    for name, every in EVERY.items():
        step = timedelta(seconds=every)
        for n in range((begin - epoch) // step + 1, (end - epoch) // step + 1):
            found.add(RunKey.for_slot("unit", name, epoch + n * step))
    return found


@settings(max_examples=60, deadline=None)
@given(offset=offsets, history=histories)
def test_each_slot_is_executed_once(offset: list[int], history: list[tuple[int, Any]]) -> None:
    world, begin, end = play(offset, history)
    executed = Counter(world.executed)
    twice = {key for key, times in executed.items() if times > 1}
    assert not twice
    # A beat whose clock is ahead begins later, by its clock.
    margin = timedelta(seconds=1)
    missed = due(begin + margin, end) - executed.keys()
    assert not missed


def test_without_mishaps_each_message_is_published_once() -> None:
    world, begin, end = play([0, 300, -300], [])
    assert due(begin, end) <= world.publishes.keys()
    assert set(world.publishes.values()) == {1}


def test_a_mishap_is_a_mishap() -> None:
    """The histories do what they say: copies are published where a beat dies, and dropped."""
    die = [(40, ("die", n, 0)) for n in range(2)]
    world, _, _ = play([0, 0, 0], [*die, (60, ("ledger", True, 0)), (100, ("ledger", False, 0))])
    assert max(world.publishes.values()) > 1
    assert "insert_slots" in world.ledger.calls
    with pytest.raises(LedgerUnavailable):
        world.ledger.away = True
        world.ledger.activate("unit", [])
    assert replace(world.ledger.tables.runs[world.executed[0]].row).state is RunState.SUCCEEDED
