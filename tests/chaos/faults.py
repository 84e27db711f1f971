"""The faults, and how they are drawn.

Owns what each fault does, for how long, and the list of those that were injected. Drawn from a
seed: the same seed gives the same kinds, victims and pauses, though not the same moments in what
the victims are doing. Must not know what comes of them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from tests.chaos.fleet import Fleet, Seat, only
from tests.chaos.servers import Restartable
from tests.chaos.witness import clock

#: Kinds that kill, which are counted against the number that was asked for.
KILLS = ("kill child", "kill worker", "kill beat")
#: One beat at a time.
ONLY_BEATS = {"kill beat": 1}
#: Relative frequencies.
ONLY_KILLS = {"kill child": 5, "kill worker": 3, "kill beat": 2}
ALL = {
    "kill child": 20,
    "kill worker": 8,
    "kill beat": 6,
    "stop worker": 4,
    "stop beat": 2,
    "restart PostgreSQL": 1,
    "crash PostgreSQL": 1,
    "cut PostgreSQL": 2,
    "slow PostgreSQL": 1,
    "restart broker": 1,
    "crash broker": 1,
    "cut broker": 2,
    "slow broker": 1,
    "flush broker": 1,
}
#: Seconds of delay, each way, of what goes through a slow proxy: a lease of three seconds is
#: renewed in time with the first, and not with the second.
DELAYS = (1.0, 2.0)

Undo = Callable[[], None]


@dataclass(frozen=True)
class Planned:
    """A fault to come.

    Attributes:
        gap: seconds until the next one.
        draw: chooses the victim.
    """

    kind: str
    gap: float
    draw: random.Random


@dataclass(frozen=True)
class Injected:
    """One fault; times in seconds since boot."""

    what: str
    victim: str
    at: float
    seconds: float = 0.0


@dataclass
class Faults:
    """Injects faults into a fleet and its servers.

    Attributes:
        lease: seconds; who stands still does so for longer.
        gap: seconds between two faults, at least and at most.
        one_down: nothing is done to anybody while another one of its kind is not there.
        log: what was injected.
    """

    fleet: Fleet
    postgres: Restartable
    broker: Restartable
    lease: float
    draw: random.Random
    weights: Mapping[str, int]
    gap: tuple[float, float]
    one_down: bool = False
    log: list[Injected] = field(default_factory=list)
    _ends: list[tuple[float, str, Undo]] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """SIGKILLs so far."""
        return sum(one.what in KILLS for one in self.log)

    @property
    def counts(self) -> Counter[str]:
        """How often each kind was injected."""
        return Counter(one.what for one in self.log)

    @property
    def has_lost_messages(self) -> bool:
        """True if messages may have been lost."""
        return bool({"flush broker", *self.broker.lossy} & set(self.counts))

    @property
    def has_hurt_broker(self) -> bool:
        """True if a publish may have failed."""
        return self.has_lost_messages or any("broker" in one.what for one in self.log)

    def plan(self) -> Iterator[Planned]:
        """The faults, without end: drawn from the seed alone, whatever becomes of them."""
        kinds, weights = list(self.weights), list(self.weights.values())
        while True:
            draw = random.Random(self.draw.getrandbits(64))
            yield Planned(draw.choices(kinds, weights)[0], draw.uniform(*self.gap), draw)

    def inject(self, fault: Planned) -> bool:
        """Inject it; False if that is not possible now, as too much is broken already."""
        verb, _, what = fault.kind.partition(" ")
        if verb == "kill":
            return self._kill(fault, what)
        if verb == "stop":
            return self._stop(fault, what)
        if any(victim == what for _, victim, _ in self._ends):
            return False
        server = self.postgres if what == "PostgreSQL" else self.broker
        self._strike(fault, verb, what, server)
        return True

    def settle(self, now: float) -> None:
        """End those whose time is over."""
        for end in [end for end in self._ends if end[0] <= now]:
            self._ends.remove(end)
            end[2]()

    def end_all(self) -> None:
        """End those that go on."""
        self.settle(float("inf"))

    def _kill(self, fault: Planned, what: str) -> bool:
        seat = self._victim(fault, self.fleet.beats if what == "beat" else self.fleet.workers)
        if seat is None:
            return False
        name = seat.process.name
        if what == "child":
            if not self.fleet.kill_child(seat, fault.draw):
                return False
        else:
            self.fleet.kill(seat)
        self._note(fault.kind, name, self.fleet.kills[-1].at)
        return True

    def _stop(self, fault: Planned, what: str) -> bool:
        seat = self._victim(fault, self.fleet.beats if what == "beat" else self.fleet.workers)
        if seat is None:
            return False
        seconds = self.lease * fault.draw.uniform(1.2, 2.5)
        self._last(fault.kind, seat.process.name, seconds, self.fleet.pause(seat))
        return True

    def _strike(self, fault: Planned, verb: str, what: str, server: Restartable) -> None:
        proxy, kind, draw = server.proxy, fault.kind, fault.draw
        if verb == "cut":
            proxy.cut()
            self._last(kind, what, draw.uniform(0.1, 2 * self.lease), proxy.mend)
        elif verb == "slow":
            proxy.delay(draw.choice(DELAYS))
            self._last(kind, what, draw.uniform(4.0, 10.0), lambda: proxy.delay(0.0))
        elif verb == "flush":
            self._note(kind, what, clock())
            server.forget()
        else:
            self._note(kind, what, clock())
            server.restart(crash=verb == "crash")

    def _victim(self, fault: Planned, seats: list[Seat]) -> Seat | None:
        """One that works; more than half of them always do, or all but one."""
        able = only(seats)
        needed = len(seats) if self.one_down else len(seats) // 2 + 1
        return fault.draw.choice(able) if len(able) >= needed else None

    def _note(self, kind: str, victim: str, at: float, seconds: float = 0.0) -> None:
        self.log.append(Injected(kind, victim, at, seconds))

    def _last(self, kind: str, victim: str, seconds: float, undo: Undo) -> None:
        self._note(kind, victim, clock(), seconds)
        self._ends.append((clock() + seconds, victim, undo))
