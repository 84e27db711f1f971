"""Tasks whose bodies are critical sections, or hold some.

Owns: nothing else. Must not know: which test uses it.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from celery_idem import IdempotentTask, critical_section, current_run
from celery_idem.errors import LockLost, LockNotAcquired
from tests.integration.apps.base import PATIENCE, effect, make_app, once, record_signals, wait_at

app = make_app()
record_signals()


def _stay(gate: str, lock: Any = None) -> str:
    effect("in", lock and lock.fence)
    wait_at(gate)
    effect("out")
    return "done"


@app.task(base=IdempotentTask, name="tests.comes_again", idem_lock="desk:{desk}")
def comes_again(gate: str, desk: int = 1) -> str:
    """Is put back while another one is at the desk."""
    return _stay(gate)


@app.task(
    base=IdempotentTask,
    name="tests.is_skipped",
    idem_lock=critical_section("desk:{desk}", on_contended="skip"),
)
def is_skipped(gate: str, desk: int = 1) -> str:
    """Is not executed while another one is at the desk."""
    return _stay(gate)


@app.task(
    base=IdempotentTask,
    name="tests.fails",
    idem_lock=critical_section("desk:{desk}", on_contended="raise"),
)
def fails(gate: str, desk: int = 1) -> str:
    """Fails while another one is at the desk."""
    return _stay(gate)


@app.task(
    bind=True,
    base=IdempotentTask,
    name="tests.autoretries",
    idem_lock=lambda gate, desk=1: [f"desk:{desk}", f"chair:{desk}"],
    autoretry_for=(Exception,),
    max_retries=0,
)
def autoretries(self: Any, gate: str, desk: int = 1) -> str:
    """A lock that is not free is no exception of the body; there are no retries to be lost."""
    return _stay(gate)


@app.task(base=IdempotentTask, name="tests.enters")
def enters(gate: str, desk: int = 1) -> str:
    """Holds the lock in a part of its body."""
    effect("before")
    with critical_section(f"desk:{desk}") as lock:
        return _stay(gate, lock)


@app.task(base=IdempotentTask, name="tests.waits")
def waits(gate: str, desk: int = 1) -> str:
    """Waits for its turn."""
    effect("before")
    with critical_section(f"desk:{desk}", wait=PATIENCE) as lock:
        return _stay(gate, lock)


@app.task(base=IdempotentTask, name="tests.dies_inside")
def dies_inside(desk: int = 1) -> str:
    """Its process is killed while it holds the lock; the second time it goes through."""
    with critical_section(f"desk:{desk}") as lock:
        effect("in", lock.fence)
        if once(f"{current_run().key}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"


@app.task(base=IdempotentTask, name="tests.notices")
def notices(gate: str, desk: int = 1) -> str:
    """Tells whether the lock was lost while it waited."""
    with critical_section(f"desk:{desk}") as lock:
        effect("in", lock.fence)
        try:
            wait_at(gate)
        finally:
            effect("lost" if lock.lost else "held", lock.fence)
        try:
            lock.check()
        except LockLost as exc:
            return str(exc)
        return "held"


@app.task(base=IdempotentTask, name="tests.insists")
def insists(gate: str, desk: int = 1) -> str:
    """Does its work only while it holds the lock for certain."""
    with critical_section(f"desk:{desk}") as lock:
        effect("in", lock.fence)
        wait_at(gate)
        lock.check()
        effect("worked", lock.fence)
        return "done"


@app.task(base=IdempotentTask, name="tests.forgets")
def forgets(desk: int = 1) -> None:
    """Leaves its critical section open."""
    critical_section(f"desk:{desk}").__enter__()
    effect("in")


@app.task(name="tests.plain")
def plain(desk: int = 1) -> str:
    """A task of plain Celery: nobody would put it back."""
    try:
        with critical_section(f"desk:{desk}") as lock:
            return f"in {lock.fence > 0}"
    except LockNotAcquired as exc:
        return str(exc)


@app.task(base=IdempotentTask, name="tests.uses_up_its_time", acks_late=True)
def uses_up_its_time(gate: str, desk: int = 1) -> str:
    """Holds the lock for longer than it may."""
    with critical_section(f"desk:{desk}", max_hold=1.0) as lock:
        effect("in", lock.fence)
        deadline = time.monotonic() + PATIENCE
        while not lock.lost and time.monotonic() < deadline:
            time.sleep(0.01)
        wait_at(gate)
        effect("out", lock.lost)
        return "done"
