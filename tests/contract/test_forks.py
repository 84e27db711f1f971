"""A process that forks after it used its ledger: parent and children each go on with their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.stores import Store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

#: Runs in a process of its own: a fork of pytest's would take its threads' locks along. Two threads
#: of the parent use the ledger all the while, so that forks happen in the midst of statements and
#: under every lock.
SCRIPT = """
import gc, os, sys, threading, traceback
from celery_idem.keys import RunKey
from celery_idem.ledger.sql import SqlLedger
from celery_idem.run import ClaimOutcome, RunState
from tests.contract.stores import Store

store = Store.at("forked", sys.argv[1])
lease = store.lease()
going = threading.Event()
going.set()
faults = []

def use(name, number):
    for n in range(number):
        key = RunKey(f"{name} {n}")
        claim = store.claim(key, lease=lease)
        assert claim.outcome is ClaimOutcome.CLAIMED, claim
        store.ledger.end(key, claim.fence, RunState.SUCCEEDED)
        assert store.row(key).state is RunState.SUCCEEDED

def keep_using(name):
    n = 0
    try:
        while going.is_set():
            use(f"{name} {n}", 1)
            n += 1
    except BaseException as error:
        faults.append(repr(error))

threads = [threading.Thread(target=keep_using, args=(f"thread {n}",)) for n in range(2)]
for thread in threads:
    thread.start()

def child(n):
    use(f"child {n}", 5)
    if n % 2:
        store.ledger.close()
    # What the parent left here is thrown away, as at the end of a pool process.
    gc.collect()
    use(f"child {n} again", 2)

children = []
for n in range(6):
    pid = os.fork()
    if not pid:
        status = 1
        try:
            child(n)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    children.append(pid)
    use(f"parent {n}", 3)
statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
going.clear()
for thread in threads:
    thread.join()
assert statuses == [0] * 6, statuses
assert not faults, faults
use("parent at last", 5)
counts = store.ledger.counts()
assert counts["succeeded"] >= 6 * 7 + 6 * 3 + 5, counts
assert set(counts) == {"succeeded"}, counts
print("fine")
"""


def test_children_and_parent_go_on_with_their_own_connections(database: Store) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, database.url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


#: Nothing but the fork between two questions: who am I to the server?
WHO = {
    "postgres": "SELECT pg_backend_pid()",
    "mariadb": "SELECT connection_id()",
    "mysql": "SELECT connection_id()",
}

CONNECTION = """
import os, sys
from sqlalchemy import text
from celery_idem.ledger.database import Database

database = Database(sys.argv[1])
who = lambda: database.run(text(sys.argv[2])).rows[0][0]
before = who()
reader, writer = os.pipe()
if not os.fork():
    os.write(writer, str(who()).encode())
    database.close()
    os._exit(0)
os.wait()
assert int(os.read(reader, 100)) != before
assert who() == before
print("fine")
"""


def test_a_child_opens_a_connection_and_the_parent_keeps_its_own(server: Store) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CONNECTION, server.url, WHO[server.name]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


#: The parent closes its last connection, which for SQLite is to put the log away, while the child
#: goes on writing to it.
LAST = """
import os, sys
from celery_idem.keys import RunKey
from celery_idem.ledger.sql import SqlLedger

ledger = SqlLedger(sys.argv[1])
ledger.record("before", RunKey("shop:daily"))
child_reads, parent_writes = os.pipe()
parent_reads, child_writes = os.pipe()
if not os.fork():
    for n in range(3):
        ledger.record(f"child {n}", RunKey("shop:daily"))
        os.write(child_writes, b"x")
        os.read(child_reads, 1)
    os._exit(0)
for n in range(3):
    os.read(parent_reads, 1)
    ledger.record(f"parent {n}", RunKey("shop:daily"))
    ledger.close()
    os.write(parent_writes, b"x")
os.wait()
kinds = {line.kind for line in SqlLedger(sys.argv[1]).history(RunKey("shop:daily"))}
expected = {"before"} | {f"{who} {n}" for who in ("child", "parent") for n in range(3)}
assert kinds == expected, expected - kinds
print("fine")
"""


def test_what_a_child_writes_survives_its_parents_close(database_url: str) -> None:
    """In a database that nobody else has open."""
    done = subprocess.run(
        [sys.executable, "-c", LAST, database_url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


#: Other threads of the parent are making connections at the moment of most forks.
CONNECTING = """
import os, signal, sys, threading
from sqlalchemy.pool import NullPool
from celery_idem.ledger.sql import SqlLedger

ledgers = [SqlLedger(sys.argv[1], engine_options={"poolclass": NullPool}) for _ in range(3)]
going = threading.Event()
going.set()

def keep_connecting(ledger):
    while going.is_set():
        ledger.now()

threads = [threading.Thread(target=keep_connecting, args=(ledger,)) for ledger in ledgers[1:]]
for thread in threads:
    thread.start()
statuses = []
for n in range(int(sys.argv[2])):
    pid = os.fork()
    if not pid:
        status = 1
        try:
            signal.alarm(20)
            ledgers[0].now()
            status = 0
        finally:
            os._exit(status)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
going.clear()
for thread in threads:
    thread.join()
assert not any(statuses), statuses
print("fine")
"""


def test_a_child_connects_that_was_made_while_its_parent_connected(server: Store) -> None:
    """None of them waits for ever for a lock that a thread of its parent held."""
    done = subprocess.run(
        [sys.executable, "-c", CONNECTING, server.url, "20"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
