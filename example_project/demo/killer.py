"""Kill in the middle of a body, and measure until the run goes on.

Owns: the choice of the moment and of the process. What is aimed at is a report, which takes the
longest; and it is not touched before nothing else is about to begin, as a message that a dead
worker had and did not claim stays with it for as long as the broker likes.
Must not know: when it is asked to, and how anything is shown.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

from example_project.demo.fleet import Fleet, Member
from example_project.demo.grid import Seen, Slot
from example_project.demo.observe import Observer

TARGET = "hourly-report"
#: seconds for which it has to be seen at work, and for which it may be: then it is in the middle
SEEN = (0.6, 1.2)


class NothingToKill(Exception):
    """Nobody was seen at work for long enough."""


@dataclass
class Loss:
    """A run whose process was killed in the middle of its body."""

    slot: Slot
    #: what was killed: "process" or "worker"
    what: str
    #: when, in monotonic seconds
    at: float
    #: how often it had been started again before
    before: int
    #: whether it was aimed at; others were in work at the same worker
    aimed: bool = True
    #: seconds from then to the next start of the run; None until that
    seconds: float | None = None
    #: it had ended at the last moment, so that there was nothing to be recovered
    spared: bool = False

    @property
    def open(self) -> bool:
        """Whether the run is still to be started again."""
        return self.seconds is None and not self.spared


class Killer:
    """Kills workers and pool processes of one fleet."""

    def __init__(self, fleet: Fleet, observer: Observer) -> None:
        """Kill nobody yet."""
        self._fleet = fleet
        self._observer = observer
        self._aim: tuple[Slot, int] | None = None
        self._since = 0.0
        self._sure = False
        self._seen = Seen()
        self.losses: list[Loss] = []

    def aims(self) -> bool:
        """Look for a report in the middle of its work; True while there is one.

        Not for one that was killed before: what is shown is one death after the other.
        """
        moment = self._observer.moment()
        lost = [loss.slot for loss in self.losses]
        running = [
            (slot, pid)
            for slot, pid in moment.running.items()
            if slot.entry == TARGET and slot not in lost
        ]
        if self._aim not in running:
            self._aim = running[0] if running else None
            self._since = time.monotonic()
        in_the_middle = SEEN[0] <= time.monotonic() - self._since <= SEEN[1]
        self._sure = self._aim is not None and in_the_middle and not moment.waiting
        return self._sure

    def kill_process(self) -> str:
        """Kill the pool process at which it aims, as a system does that has run out of memory."""
        slot, pid = self._take_aim()
        worker = self._worker_of(pid)
        os.kill(pid, signal.SIGKILL)
        self._lose(slot, "process")
        return f"A process of {worker.name} is killed (SIGKILL) in {_name(slot)}"

    def kill_worker(self) -> str:
        """Kill the worker at which it aims: parent and pool processes, as a power cut does."""
        slot, pid = self._take_aim()
        worker = self._worker_of(pid)
        worker.kill()
        self._lose(slot, "worker")
        for other, pid in self._observer.moment().running.items():
            if other != slot and _group(pid) in (None, worker.process.pid):
                self._lose(other, "worker", aimed=False)
        return f"{worker.name.capitalize()} is killed (SIGKILL) in {_name(slot)}"

    def look(self, seen: Seen) -> list[Loss]:
        """Return the losses that were aimed at and made good since the last look."""
        self._seen = seen
        found = []
        for loss in self.losses:
            if loss.open and seen.takeovers[loss.slot] > loss.before:
                loss.seconds = time.monotonic() - loss.at
                found.append(loss)
            elif loss.open and seen.runs[loss.slot]:
                loss.spared = True
        return [loss for loss in found if loss.aimed]

    @property
    def waits(self) -> bool:
        """Whether a run that was lost is still to be started again."""
        return any(loss.open for loss in self.losses)

    def _take_aim(self) -> tuple[Slot, int]:
        if self._aim is None or not self._sure:
            raise NothingToKill(f"{TARGET} was not seen in the middle of its work.")
        self._sure = False
        return self._aim

    def _worker_of(self, pid: int) -> Member:
        """Return the worker to which a pool process belongs, by its process group."""
        for worker in self._fleet.workers:
            if not worker.fate and worker.process.pid == _group(pid):
                return worker
        raise NothingToKill(f"Process {pid} is at work on {TARGET}, and belongs to no worker.")

    def _lose(self, slot: Slot, what: str, aimed: bool = True) -> None:
        before = self._seen.takeovers[slot]
        self.losses.append(Loss(slot, what, time.monotonic(), before, aimed))


def _group(pid: int) -> int | None:
    """Return the process group of a process, None if there is no such process."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def recovered(loss: Loss) -> str:
    """Return what is to be said of a run that was started again."""
    return f"{_name(loss.slot)} starts again, {loss.seconds:.1f} s after its {loss.what} was killed"


def _name(slot: Slot) -> str:
    return f"{slot.entry} {slot.instant:%H:%M:%S}"
