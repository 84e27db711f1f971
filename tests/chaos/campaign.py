"""One part of the campaign: servers and processes, faults, dust, verdict.

Owns its course. Must not know what a fault does, how a verdict is computed or shown.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg
from celery import Celery, chain

from tests.chaos import app as chaos_app
from tests.chaos import witness
from tests.chaos.facts import Facts, gather, read
from tests.chaos.faults import ALL, Faults, Injected
from tests.chaos.fleet import Fleet
from tests.chaos.servers import BROKERS, Postgres, Restartable
from tests.chaos.verdict import Slot, Verdict, judge

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
#: Seconds from the last fault until all is quiet, at most, beyond two leases.
DUST = 180.0
#: Seconds after which Redis gives what a dead worker had to another one, and how often it looks:
#: every hundred seconds by default.
VISIBILITY = {
    "visibility_timeout": 15,
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
}
#: Seconds after which a message that has not come again is lost.
LOST_AFTER = 60.0
#: Seconds between two chains.
CHAIN_EVERY = 2.0
#: Seconds between two lines about the progress.
SAY_EVERY = 15.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """What is done in one part.

    Attributes:
        kills: SIGKILLs; the other faults are as frequent as `weights` say.
        gap: seconds between two faults, at least and at most.
        half: seconds of half a body, at least and at most.
        settings: Celery's, beside those of the servers.
        preload: environment of a process, by its seat's name.
        chains: messages that are not of the schedule are sent as well.
        one_down: never more than one beat, and one worker, are away.
    """

    name: str
    kills: int
    broker: str = "redis"
    lease: float = 3.0
    weights: Mapping[str, int] = field(default_factory=lambda: ALL)
    gap: tuple[float, float] = (0.4, 1.6)
    half: tuple[float, float] = (0.1, 0.6)
    settings: Mapping[str, Any] = field(default_factory=dict)
    preload: Callable[[str], Mapping[str, str]] = lambda _: {}
    chains: bool = True
    one_down: bool = False
    seconds: float = 0.0


@dataclass
class Outcome:
    """What a part has brought."""

    part: Part
    verdict: Verdict
    facts: Facts
    faults: list[Injected]
    took: float
    settled: bool
    lossy: bool
    hurt: bool
    ended: list[str]
    still_open: list[str] = field(default_factory=list)


class Stage:
    """The servers, processes and messages of one part."""

    def __init__(self, part: Part, directory: Path, stack: ExitStack) -> None:
        self.part = part
        self.witness = directory / "witness"
        self.witness.mkdir(parents=True)
        # PostgreSQL runs as another user where we are root.
        directory.chmod(0o755)
        self.postgres = Postgres(directory / "postgres")
        stack.callback(self.postgres.close)
        self.broker: Restartable = BROKERS[part.broker](directory / "broker")
        stack.callback(self.broker.close)
        with psycopg.connect(self.postgres.conninfo, autocommit=True) as connection:
            connection.execute(chaos_app.TABLE)
        self.steps: list[str] = []
        self.sender = Celery(chaos_app.NAMESPACE, broker=self.broker.direct, set_as_current=False)
        stack.callback(self.sender.close)
        self.fleet = Fleet(directory, self.env)
        stack.callback(self.fleet.close)

    def env(self, seat: str) -> dict[str, str]:
        """The environment of a process."""
        settings: dict[str, Any] = {
            "broker_url": self.broker.url,
            "broker_connection_retry_on_startup": True,
            "broker_connection_max_retries": None,
            "idem_database_url": self.postgres.url,
            "idem_lease": self.part.lease,
            "idem_max_attempts": 50,
            "beat_scheduler": "tests.chaos.app:Hasty",
        }
        if self.part.broker == "redis":
            settings["broker_transport_options"] = VISIBILITY
        settings.update(self.part.settings)
        return {
            chaos_app.SETTINGS: json.dumps({k: v for k, v in settings.items() if v != "default"}),
            chaos_app.EFFECTS: self.postgres.conninfo,
            chaos_app.SECONDS: json.dumps(self.part.half),
            witness.FOLDER: str(self.witness),
            **self.part.preload(seat),
        }

    def send_chain(self) -> None:
        """One more chain of two steps, past the proxies."""
        name = f"chain{len(self.steps)}"
        step = self.sender.signature("chaos.step", kwargs={"name": name})
        try:
            chain(step.clone(args=(0,)), step.clone()).apply_async()
        except Exception:
            return  # The broker is away: nothing was promised.
        self.steps += [f"{name}:0", f"{name}:1"]

    def open_runs(self, due: list[Slot], with_others: bool) -> list[str]:
        """The runs that have not ended: of slots that are due, and, perhaps, those without one."""
        # Others may come later, by beats whose clocks are wrong.
        first, last = min(at for _, at in due), max(at for _, at in due)
        rows = read(
            self.postgres.conninfo,
            "SELECT run_key, state, fence FROM celery_idem_runs WHERE"
            " (state IN (0, 2, 3) OR callbacks_pending)"
            " AND (slot BETWEEN %s AND %s OR slot = %s AND %s)",
            first,
            last,
            EPOCH,
            with_others,
        )
        return [f"{row['run_key']}: state {row['state']}, fence {row['fence']}" for row in rows]

    def missing(self, due: list[Slot]) -> tuple[list[str], list[str]]:
        """What has no effect yet: slots; and links of those that have one, and steps of chains."""
        rows = read(self.postgres.conninfo, "SELECT kind, key, slot FROM chaos_effects")
        done = {(row["kind"], row["slot"]) for row in rows}
        slots = [f"{name}@{at}" for name, at in due if (name, at.isoformat()) not in done]
        before = {row["key"] for row in rows if row["kind"] == "linked"}
        after = {row["key"] for row in rows if row["kind"] in ("link", "step")}
        return slots, sorted((before | set(self.steps)) - after)


def run_part(part: Part, seed: int, directory: Path, say: Say) -> Outcome:
    """Runs one part; ends everything that it has started."""
    started = time.monotonic()
    with ExitStack() as stack:
        stage = Stage(part, directory, stack)
        say(f"{len(stage.fleet.beats)} beats and {len(stage.fleet.workers)} workers start")
        stage.fleet.wait_ready()
        draw = random.Random(f"{seed}:{part.name}")
        faults = Faults(
            stage.fleet,
            stage.postgres,
            stage.broker,
            part.lease,
            draw,
            part.weights,
            part.gap,
            part.one_down,
        )
        first = _now() + timedelta(seconds=1)
        _strike(stage, faults, say)
        until = _now()
        say("the faults are over; the dust settles")
        due = slots_due(first, until)
        settled, left = _settle(stage, faults, due, say)
        stage.fleet.close()
        facts = gather(stage.postgres.conninfo, stage.witness)
        verdict = judge(facts, stage.fleet.kills, due, stage.steps)
        ended = [text for seat in stage.fleet.seats for text in seat.ended]
        return Outcome(
            part,
            verdict,
            facts,
            faults.log,
            time.monotonic() - started,
            settled,
            faults.has_lost_messages,
            faults.has_hurt_broker,
            ended,
            left,
        )


def slots_due(after: datetime, until: datetime) -> list[Slot]:
    """The multiples of each entry's interval since the epoch in (after, until]."""
    due: list[Slot] = []
    for name, (_, every) in chaos_app.ENTRIES.items():
        step = timedelta(seconds=every)
        numbers = range((after - EPOCH) // step + 1, (until - EPOCH) // step + 1)
        due += [(name, EPOCH + number * step) for number in numbers]
    return due


def _strike(stage: Stage, faults: Faults, say: Say) -> None:
    """Inject faults until there were enough kills."""
    part = stage.part
    end_at = time.monotonic() + part.seconds
    next_chain = said = time.monotonic()
    next_fault = time.monotonic() + 2.0
    plan = faults.plan()
    fault = next(plan)
    while faults.kills < part.kills or time.monotonic() < end_at:
        stage.fleet.revive()
        faults.settle(witness.clock())
        now = time.monotonic()
        if part.chains and now >= next_chain:
            next_chain = now + CHAIN_EVERY
            stage.send_chain()
        if now >= next_fault and faults.kills < part.kills and faults.inject(fault):
            next_fault = time.monotonic() + fault.gap
            fault = next(plan)
        if now >= said + SAY_EVERY:
            said = now
            say(f"{faults.kills} of {part.kills} kills, {len(faults.log)} faults")
        time.sleep(0.05)
    faults.end_all()


def _settle(stage: Stage, faults: Faults, due: list[Slot], say: Say) -> tuple[bool, list[str]]:
    """Wait until all is quiet; what is left open at the deadline."""
    started = said = time.monotonic()
    deadline = started + DUST + 2 * stage.part.lease
    while True:
        stage.fleet.revive()
        slots, others = stage.missing(due)
        left = stage.open_runs(due, not faults.has_hurt_broker) + slots
        now = time.monotonic()
        # Messages that were lost are not waited for much longer than those that come again.
        if not left and faults.has_hurt_broker and now > started + LOST_AFTER:
            others = []
        if not left + others or now > deadline:
            return not left + others, left + others
        if now > said + SAY_EVERY:
            said = now
            say(f"{len(left + others)} left, for one {(left + others)[0]}")
        time.sleep(0.3)


def _now() -> datetime:
    return datetime.now(timezone.utc)
