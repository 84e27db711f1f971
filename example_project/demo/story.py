"""What happens in the demo, and when.

Owns: the plot. Workers, then beats; a pool process, a worker and a beat are killed, a worker is
stopped; beats end, the queue runs empty, workers end; and what was seen is judged.
Must not know: how any of it is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from example_project.demo.fleet import READY_TIMEOUT, Fleet
from example_project.demo.grid import (
    Seen,
    Verdict,
    due_slots,
    full_windows,
    judge,
    next_instant,
    step,
)
from example_project.demo.killer import Killer, recovered
from example_project.demo.observe import Observer
from example_project.demo.redelivery import Redelivery
from example_project.demo.screen import Frame, Screen

BEATS = 3
WORKERS = 2
#: seconds between two looks at the tables
TICK = 0.2
#: seconds in which somebody must be seen at work
PATIENCE = timedelta(seconds=30)
#: seconds in which the run of a dead worker must have been started again
RECOVERY = timedelta(seconds=60)
#: how long the queue may take to run empty, in seconds
DRAIN = 30.0
#: seconds without news after which nothing is waited for: a message that is put back takes longest
QUIET = 10.0
#: a slot is due if beats had this long before it, and after it: within it, it may happen or not
MARGIN = timedelta(seconds=1)
NEVER = datetime.max.replace(tzinfo=timezone.utc)


@dataclass
class Story:
    """One performance."""

    fleet: Fleet
    observer: Observer
    screen: Screen
    seconds: int
    #: None: nothing is sent again
    redelivery: Redelivery | None = None
    #: None: nobody is killed
    killer: Killer | None = None
    #: names of processes that ended without our doing
    failures: list[str] = field(default_factory=list)
    #: the first and the last slot that is due
    begin: datetime = NEVER
    end: datetime = NEVER
    #: what was seen last, and when it last differed from what was seen before
    seen: Seen = field(default_factory=Seen)
    news_at: float = 0.0

    @property
    def stock(self) -> bool:
        """Whether this is about Celery's own scheduler."""
        return self.fleet.scheduler == "stock"

    def play(self) -> Verdict:
        """Play it from beginning to end; whatever is left running is the caller's to end."""
        self._start()
        self._middle()
        return self._finish()

    def _start(self) -> None:
        """Start workers, then beats just after a slot, so that the first one due is certain."""
        for _ in range(WORKERS):
            self.fleet.start_worker()
        for worker in self.fleet.workers:
            worker.wait_ready()
        self.screen.note(f"{WORKERS} workers run")
        self._until(next_instant(_now()) + timedelta(seconds=0.2))
        for _ in range(BEATS):
            self.fleet.start_beat().wait_ready()
            if len(self.fleet.beats) == 1:
                self.begin = next_instant(_now() + MARGIN)
        count = max(3, self.seconds // int(step().total_seconds()))
        self.end = self.begin + (count - 1) * step()
        self.screen.note(f"{BEATS} beats run; the first slot is {self.begin:%H:%M:%S}")

    def _middle(self) -> None:
        """Disturb: in the middle of things, not between them."""
        slots = (self.end - self.begin) // step() + 1
        if self.killer:
            self._kill(self.killer, slots // 8)
        else:
            self.screen.note("Nobody is killed here: it would only make the numbers smaller")
        self._until(self.begin + slots * 5 // 8 * step() + timedelta(seconds=0.2))
        worker = [worker for worker in self.fleet.workers[:WORKERS] if not worker.fate][-1]
        worker.ask_end()
        self.screen.note(f"{worker.name.capitalize()} is stopped (TERM, as in a deployment)")
        self._until(self._curtain)
        if self.killer:
            self._go_on(self.killer)

    def _kill(self, killer: Killer, first: int) -> None:
        """Kill a pool process, a worker and a beat, at the slots from the number `first` on."""
        self._until(self.begin + first * step())
        self._until(_now() + PATIENCE, killer.aims)
        self.screen.note(killer.kill_process())
        # Celery looks every five seconds whether its processes are there.
        self._until(_now() + PATIENCE, lambda: not killer.waits)
        self._until(_now() + PATIENCE, killer.aims)
        self.screen.note(killer.kill_worker())
        worker = self.fleet.start_worker()
        self.screen.note(f"{worker.name.capitalize()} takes its place")
        instant = next_instant(_now())
        self._until(instant)
        self.fleet.beats[1].kill()
        self.screen.note(f"Beat 2 is killed (SIGKILL) at the instant of slot {instant:%H:%M:%S}")
        self._until(_now() + timedelta(seconds=READY_TIMEOUT), lambda: worker.ready)
        worker.wait_ready()

    def _go_on(self, killer: Killer) -> None:
        """Have the beats see to it that all that was killed is started again."""
        deadline = _now() + RECOVERY
        # If all took longer than planned, they have gone on: what they published is due as well.
        while self.end + step() - MARGIN < _now() or (killer.waits and _now() < deadline):
            self.end += step()
            self._until(self._curtain)

    def _finish(self) -> Verdict:
        """End the beats, let the queue run empty, end the workers, judge."""
        self.fleet.end(self.fleet.beats)
        self.screen.note("The beats are stopped; the queue runs empty")
        self.news_at = time.monotonic()
        self._until(_now() + timedelta(seconds=DRAIN), self._settled)
        self.fleet.end(self.fleet.workers)
        self._report_failures()
        due = due_slots(self.begin, self.end)
        verdict = judge(
            full_windows(due, self._curtain) if self.stock else due, self.observer.look()
        )
        self.screen.show(Frame(self._members(), verdict.due, verdict.seen), _now())
        return verdict

    @property
    def _curtain(self) -> datetime:
        """When the beats are stopped: as far as possible from any moment at which one acts."""
        # Celery's own beats act some time after the grid's instants, which they do not know.
        return self.end + (step() if self.stock else step() / 2)

    def _until(self, instant: datetime, satisfied: Callable[[], bool] = lambda: False) -> None:
        """Go on showing and sending again until an instant, or until something is so."""
        while (left := (instant - _now()).total_seconds()) > 0 and not satisfied():
            self._tick()
            time.sleep(max(0.0, min(TICK, left)))

    def _tick(self) -> None:
        if self.redelivery:
            self.redelivery.step(time.monotonic())
        self._report_failures()
        now = _now()
        if now < self.begin:
            return
        left = max(0, round((self._curtain - now).total_seconds()))
        slots = due_slots(self.begin, min(now, self.end))
        progress = f"{left} s to go" if left else "the queue runs empty"
        self._look()
        frame = Frame(self._members(), slots, self.seen, progress)
        # Two steps later, what belongs to a slot has happened, late copies included; save where it
        # waits for its recovery.
        waits = [slot.instant for slot in slots if not (self.stock or self.seen.runs[slot])]
        self.screen.show(frame, min([now - 2 * step(), *waits]))

    def _settled(self) -> bool:
        """Whether each copy is accounted for and each slot due was executed, or nobody is left."""
        if all(worker.failed or worker.fate for worker in self.fleet.workers):
            return True
        if self.redelivery and not self.redelivery.idle:
            return False
        self._look()
        due = due_slots(self.begin, self.end)
        if not self.stock and not all(self.seen.runs[slot] for slot in due):
            return False
        # The worker that was killed may have had copies that nobody will hear of again.
        return self.seen.settled or time.monotonic() - self.news_at > QUIET

    def _look(self) -> None:
        """See what is to be seen, and tell of what went on after a death."""
        seen = self.observer.look()
        if seen != self.seen:
            self.seen, self.news_at = seen, time.monotonic()
        for loss in self.killer.look(seen) if self.killer else ():
            self.screen.note(recovered(loss))

    def _members(self) -> list[tuple[str, str]]:
        return [(member.name, member.status) for member in self.fleet.members]

    def _report_failures(self) -> None:
        """Say once of each process that it ended by itself."""
        for member in self.fleet.members:
            if member.failed and member.name not in self.failures:
                self.failures.append(member.name)
                self.screen.note(f"{member.name} {member.status}; see {member.process.log}")


def _now() -> datetime:
    return datetime.now(timezone.utc)
