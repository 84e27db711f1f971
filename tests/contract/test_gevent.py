"""Under gevent: greenlets share the ledger, wait beside each other, and a real thread goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.stores import Store

ROOT = Path(__file__).parents[2]

SCRIPT = """
from gevent import monkey
monkey.patch_all()

import sys, threading, time
import gevent
from gevent.monkey import get_original
from sqlalchemy import text
from celery_idem.keys import RunKey
from celery_idem.ledger.sql import SqlLedger
from celery_idem.run import ClaimOutcome, RunState
from tests.contract.stores import Store

url, slow = sys.argv[1:3]
store = Store.at("green", url)
lease = store.lease()

# Many greenlets, each run claimed by one of them.
def claim(n):
    key = RunKey(f"run {n // 4}")
    claimed = store.claim(key, lease=lease)
    if claimed.outcome is ClaimOutcome.CLAIMED:
        store.ledger.end(key, claimed.fence, RunState.SUCCEEDED)
        return 1
    return 0

jobs = [gevent.spawn(claim, n) for n in range(80)]
gevent.joinall(jobs, timeout=30, raise_error=True)
assert sum(job.value for job in jobs) == 20

# A statement that waits in one greenlet does not stop the others.
if slow:
    waiting = gevent.spawn(lambda: store.sql._run(text(slow)))
    ticks = 0
    while not waiting.ready():
        store.ledger.now()
        ticks += 1
    waiting.get()
    assert ticks > 5, ticks

# A greenlet killed in the midst of a statement leaves no half answer behind.
if slow:
    for hot in (False, True):
        victim = gevent.spawn(lambda: store.sql._run(text(slow)))
        gevent.sleep(0.05)
        victim.kill()
        for n in range(3):
            key = RunKey(f"after {hot} {n}")
            assert store.claim(key, lease=lease).fence == 1
            assert store.row(key).key == key

# The heartbeat's thread is a real one, with a ledger of its own, while the main thread computes.
beats, done = [], []

def heartbeat():
    ledger = SqlLedger(url)
    while not done:
        assert ledger.renew([lease], 600.0) == {lease}
        beats.append(get_original("time", "monotonic")())
        get_original("time", "sleep")(0.02)
    ledger.close()
    done.append("closed")

get_original("_thread", "start_new_thread")(heartbeat, ())
while not beats:
    gevent.sleep(0.01)
before, until = len(beats), time.monotonic() + 1.0
while time.monotonic() < until:
    sum(range(1000))
assert len(beats) > before + 3, beats
done.append("stop")
while "closed" not in done:
    gevent.sleep(0.01)
print("fine")
"""

SLOW = {"postgres": "SELECT pg_sleep(0.5)", "mariadb": "SELECT sleep(0.5)", "sqlite": ""}


@pytest.mark.slow
def test_greenlets_share_a_ledger(database: Store) -> None:
    slow = SLOW.get(database.name, SLOW["mariadb"])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, database.url, slow],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
