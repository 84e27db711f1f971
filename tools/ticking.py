"""Tells whether a process is alive in earnest: whether its main thread wakes up now and then.

A health check for a beat. A beat that hangs, in a connection for one, still has its process and
its other threads; but its main thread, which wakes up at least once a second to look for due
entries, does not leave its sleep. Linux only: it reads /proc.

    python tools/ticking.py PID [SECONDS]

Exit status 0: it woke up within SECONDS (5); 1: it did not, or it is not there.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

POLL = 0.2


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit status."""
    pid = int(arguments[0])
    seconds = float(arguments[1]) if len(arguments) > 1 else 5.0
    try:
        alive = ticks(pid, seconds)
    except OSError as error:
        print(f"process {pid} cannot be watched: {error}", file=sys.stderr)
        return 1
    if not alive:
        print(f"the main thread of process {pid} did nothing for {seconds:g} s", file=sys.stderr)
    return 0 if alive else 1


def ticks(pid: int, seconds: float) -> bool:
    """Whether the main thread of ``pid`` went to sleep and woke up within ``seconds``.

    Raises:
        OSError: There is no such process.
    """
    deadline = time.monotonic() + seconds
    before = sleeps(pid)
    while time.monotonic() < deadline:
        time.sleep(POLL)
        if sleeps(pid) != before:
            return True
    return False


def sleeps(pid: int) -> int:
    """How often the main thread of ``pid`` has gone to sleep so far."""
    status = Path(f"/proc/{pid}/task/{pid}/status").read_text()
    for line in status.splitlines():
        if line.startswith("voluntary_ctxt_switches:"):
            return int(line.split()[1])
    raise OSError("the system does not count context switches")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
