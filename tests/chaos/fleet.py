"""The beats and workers of a campaign, which are started again whenever they end.

Owns which of them are there, how they are killed and stopped, and that none is left behind.
Must not know why something is done to them, nor what they execute.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.chaos.witness import clock
from tests.processes import Beat, CeleryProcess, Worker

APP = "tests.chaos.app"
LONELY = ("--without-gossip", "--without-mingle", "--without-heartbeat")
#: Seconds in which a process is ready after its start; a busy machine imports slowly.
READY = 120.0


@dataclass(frozen=True)
class Died:
    """What a SIGKILL has ended.

    Attributes:
        what: "beat", "worker" or "child".
        at: seconds since boot, when the signal had been sent.
        pids: all processes that ended by it.
        parent: of a child.
    """

    what: str
    at: float
    pids: frozenset[int]
    parent: int | None = None


@dataclass
class Seat:
    """The place of one beat or worker; one process after the other has it."""

    name: str
    make: Callable[[str], CeleryProcess]
    process: CeleryProcess
    started_at: float
    number: int = 1
    paused: bool = False
    #: Its own ends, which nobody has caused.
    ended: list[str] = field(default_factory=list)

    @property
    def is_ready(self) -> bool:
        process = self.process
        return process.running and process.ready_text.format(name=process.name) in process.log

    @property
    def is_worker(self) -> bool:
        return isinstance(self.process, Worker)


class Fleet:
    """All beats and workers.

    Args:
        directory: for their logs.
        env: of each process, by its seat's name.
        beats, workers: how many.
        children: of each worker.
    """

    def __init__(
        self,
        directory: Path,
        env: Callable[[str], Mapping[str, str]],
        beats: int = 3,
        workers: int = 4,
        children: int = 3,
    ) -> None:
        self._directory = directory
        self._env = env
        self._children = children
        self.kills: list[Died] = []
        #: Pid, and when it stood still, from and to, in seconds since boot.
        self.pauses: list[tuple[frozenset[int], float, float]] = []
        self.seats: list[Seat] = []
        for number in range(workers):
            self._add(f"worker{number}", self._worker)
        for number in range(beats):
            self._add(f"beat{number}", self._beat)

    def _worker(self, name: str) -> CeleryProcess:
        options = (*LONELY, "--concurrency", str(self._children))
        env = self._env(name.split("-")[0])
        return Worker(APP, self._directory, *options, name=name, env=env)

    def _beat(self, name: str) -> CeleryProcess:
        return Beat(APP, self._directory, name=name, env=self._env(name.split("-")[0]))

    def _add(self, name: str, make: Callable[[str], CeleryProcess]) -> None:
        process = make(f"{name}-1")
        process.start()
        self.seats.append(Seat(name, make, process, clock()))

    # -- what is there ---------------------------------------------------------------------------

    @property
    def beats(self) -> list[Seat]:
        return [seat for seat in self.seats if not seat.is_worker]

    @property
    def workers(self) -> list[Seat]:
        return [seat for seat in self.seats if seat.is_worker]

    def wait_ready(self, alive: Callable[[], None] = lambda: None) -> None:
        """Waits until all work.

        Raises:
            AssertionError: One does not.
        """
        deadline = time.monotonic() + READY
        while not all(seat.is_ready for seat in self.seats):
            self.revive()
            alive()
            if time.monotonic() > deadline:
                slow = [seat for seat in self.seats if not seat.is_ready]
                raise AssertionError(f"{slow[0].name} is not ready:\n{slow[0].process.tail()}")
            time.sleep(0.1)

    def revive(self) -> None:
        """Start anew what has ended."""
        for seat in self.seats:
            if seat.process.running:
                continue
            code = seat.process.returncode
            if code != 128 + signal.SIGKILL:
                last = seat.process.tail(1).strip()
                seat.ended.append(f"{seat.process.name} ended by itself, status {code}: {last}")
            seat.process.kill()  # What it has left behind, if anything.
            seat.number += 1
            seat.process = seat.make(f"{seat.name}-{seat.number}")
            seat.process.start()
            seat.started_at, seat.paused = clock(), False

    # -- what is done to them --------------------------------------------------------------------

    def kill(self, seat: Seat) -> None:
        """SIGKILL to a beat or worker with all its children."""
        pids = self.pids(seat)
        with suppress(ProcessLookupError):
            os.killpg(seat.process.pid, signal.SIGKILL)
        self.kills.append(Died("worker" if seat.is_worker else "beat", clock(), pids))
        seat.process.kill()

    def kill_child(self, seat: Seat, draw: random.Random) -> bool:
        """SIGKILL to one of the worker's pool processes; False if it has none."""
        children = sorted(self.pids(seat) - {seat.process.pid})
        if not children:
            return False
        pid = draw.choice(children)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.kills.append(Died("child", clock(), frozenset({pid}), seat.process.pid))
            return True
        return False

    def pause(self, seat: Seat) -> Callable[[], None]:
        """SIGSTOP to a beat or worker with all its children; returns what ends it."""
        process, pids, since = seat.process, self.pids(seat), clock()
        process.pause()
        seat.paused = True

        def resume() -> None:
            if seat.process is process and process.running:
                process.resume()
                seat.paused = False
            self.pauses.append((pids, since, clock()))

        return resume

    def pids(self, seat: Seat) -> frozenset[int]:
        """Its process and those below."""
        pid = seat.process.pid
        try:
            children = psutil.Process(pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        return frozenset({pid, *(child.pid for child in children)})

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends all of them."""
        for seat in self.seats:
            seat.process.kill()


def only(seats: list[Seat]) -> list[Seat]:
    """Those that work, and do not stand still."""
    return [seat for seat in seats if seat.is_ready and not seat.paused]
