"""The beats and workers of a demo: real processes, started by Celery's own commands.

Owns: their command lines, environment and logs, and how they end.
Must not know: when something is to happen to them.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from example_project.demo.parts import Parts
from example_project.demo.processes import Process

ROOT = Path(__file__).resolve().parents[2]
#: seconds for a process to be ready; a busy machine imports slowly
READY_TIMEOUT = 60.0
#: seconds for which a worker that was killed keeps its runs; more than a machine may be that busy
LEASE = 5


class MemberFailed(Exception):
    """A beat or a worker did not get ready; the text has the end of its log."""


@dataclass
class Member:
    """A beat or a worker."""

    name: str
    process: Process
    #: what its log says once it is ready
    sign: str
    #: what we did to it; "" while it should be running
    fate: str = ""

    @property
    def status(self) -> str:
        """Return what to show: "runs", our doing, or its own end, which is a failure."""
        code = self.process.poll()
        if self.fate:
            return self.fate if code is not None else "stopping"
        return "runs" if code is None else f"ended by itself, status {code}"

    @property
    def ready(self) -> bool:
        """Whether its log says that it is at work."""
        return self.sign in self.process.log.read_text(errors="replace")

    @property
    def failed(self) -> bool:
        """Whether it ended without our doing."""
        return not self.fate and self.process.poll() is not None

    def kill(self) -> None:
        """End it, and all its processes, as a crash of the machine does."""
        self.fate = "killed"
        self.process.kill(offspring=True)

    def ask_end(self) -> None:
        """Ask it to end (TERM: a warm shutdown), and do not wait."""
        if not self.fate and not self.failed:
            self.fate = "stopped"
        self.process.release()

    def wait_ready(self) -> None:
        """Wait until its log says so. Raises MemberFailed."""
        deadline = time.monotonic() + READY_TIMEOUT
        while not self.ready:
            if self.failed or time.monotonic() > deadline:
                text = f"{self.name} did not get ready ({self.status}); the end of its log:"
                raise MemberFailed(f"{text}\n{self.process.tail(20)}")
            time.sleep(0.05)


@dataclass
class Fleet:
    """All beats and workers of one shop."""

    parts: Parts
    shop: str
    scheduler: str
    directory: Path
    beats: list[Member] = field(default_factory=list)
    workers: list[Member] = field(default_factory=list)

    @property
    def members(self) -> list[Member]:
        """Return beats, then workers."""
        return self.beats + self.workers

    def start_beat(self) -> Member:
        """Start one more beat."""
        number = len(self.beats) + 1
        command = ["beat", "--loglevel", "INFO"]
        if self.scheduler == "stock":
            # Celery's own scheduler locks its state file: each beat needs its own.
            command += ["--schedule", str(self.directory / f"schedule-{number}")]
        member = self._start(f"beat {number}", command, "beat: Starting")
        self.beats.append(member)
        return member

    def start_worker(self) -> Member:
        """Start one more worker, with three processes: one of them may be at a report."""
        number = len(self.workers) + 1
        command = ["worker", "--loglevel", "INFO", "--concurrency", "3"]
        # Workers of other apps on a broker that was given are no business of ours.
        command += ["--without-gossip", "--without-mingle", "-n", f"{self.shop}-{number}@%h"]
        member = self._start(f"worker {number}", command, " ready.")
        self.workers.append(member)
        return member

    def end(self, members: list[Member]) -> None:
        """Ask all of them to end, then wait for all."""
        for member in members:
            member.ask_end()
        for member in members:
            member.process.stop()

    def _start(self, name: str, command: list[str], sign: str) -> Member:
        celery = [sys.executable, "-m", "celery", "-A", "example_project.app", "--no-color"]
        log = self.directory / f"{name.replace(' ', '-')}.log"
        process = Process([*celery, *command], log, env=self._environment(), grace=20.0)
        return Member(name, process, sign)

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return {
            **os.environ,
            "PYTHONPATH": path,
            "SHOP_NAME": self.shop,
            "SHOP_BROKER_URL": self.parts.broker_url,
            "SHOP_BROKER_OPTIONS": self.parts.broker_options,
            "SHOP_DATABASE_URL": self.parts.database_url,
            "SHOP_SCHEDULER": self.scheduler,
            "SHOP_LEASE": str(LEASE),
            "SHOP_INCLUDE": "example_project.demo.watch",
        }
