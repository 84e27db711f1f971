"""What a body leaves behind, whatever becomes of its process.

Owns lines of JSON in files, one file for each process: the kernel has a line as soon as it is
written, so that neither a SIGKILL nor a server that is away loses one, and a process that stands
still holds up no other. Times are of the clock since boot, which all processes of a machine share,
and which does not follow the wall clock. Must not know Celery, nor what a body is for.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

#: Environment variable with the folder of the files.
FOLDER = "IDEM_CHAOS_WITNESS"
#: Seconds between two looks at the trust of a body that dwells.
LOOK = 0.05
#: Trust that ends so many seconds later was renewed.
RENEWED = 0.05


class TrustedRun(Protocol):
    """What is read of a run."""

    @property
    def trusted_for(self) -> float: ...


def clock() -> float:
    """Seconds since boot: the same in each process, also in one with another wall clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def tell(kind: str, **facts: Any) -> None:
    """One line more, in one write."""
    path = Path(os.environ[FOLDER]) / f"{os.getpid()}.jsonl"
    line = json.dumps({"kind": kind, "at": clock(), "pid": os.getpid(), **facts})
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)


def read_all(folder: Path) -> Iterator[dict[str, Any]]:
    """All whole lines of all files, those of a process in their order."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)


class Body:
    """A body that was begun.

    Attributes:
        id: of this body alone; its effects name it.
    """

    def __init__(self, run: Any, task: str) -> None:
        self._run: TrustedRun = run
        self._trusted_until = 0.0
        self.id = ""
        self.look()
        self.id = uuid4().hex
        tell(
            "begin",
            body=self.id,
            task=task,
            key=run.key.text,
            slot=None if run.slot is None else run.slot.isoformat(),
            entry=run.entry,
            fence=run.fence,
            attempt=run.attempt,
            retries=run.retries,
            trusted_until=self._trusted_until,
        )

    def look(self) -> None:
        """Note until when the lease is trusted, if it is."""
        trusted = self._run.trusted_for
        until = clock() + trusted
        if trusted > 0 and until > self._trusted_until + RENEWED:
            self._trusted_until = until
            if self.id:
                tell("trust", body=self.id, trusted_until=until)

    def dwell(self, seconds: float) -> None:
        """Work for so long."""
        end = clock() + seconds
        while (left := end - clock()) > 0:
            time.sleep(min(LOOK, left))
            self.look()

    def end(self, how: str) -> None:
        """It is over."""
        self.look()
        tell("end", body=self.id, how=how, trusted_until=self._trusted_until)
