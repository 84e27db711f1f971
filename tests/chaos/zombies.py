"""Owners that stand still in mid-body until their run has another one, and then go on.

Owns the part in which each of them is to be refused: nothing of its end is in the ledger, in the
stored result or in what follows. Must not know the other faults.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from celery import Celery
from celery.result import AsyncResult

from tests.chaos import app as chaos_app
from tests.chaos import witness
from tests.chaos.campaign import Say
from tests.chaos.facts import Facts, gather, read
from tests.chaos.fleet import APP, LONELY
from tests.chaos.report import NAMED, Report
from tests.chaos.servers import Postgres, Redis
from tests.processes import Worker, wait_for

#: Bodies of one worker that stand still together.
TOGETHER = 10
LEASE = 3.0
#: How a zombie tries to end.
WAYS = ("return", "error", "retry", "transaction")
#: Seconds for each thing that is waited for.
PATIENCE = 90.0
WINNER = "fence 2"


def run_zombies(number: int, seed: int, directory: Path, say: Say) -> Report:
    """Stops `number` bodies; the seed does not matter."""
    started = time.monotonic()
    with ExitStack() as stack:
        grave = Graveyard(directory, stack)
        for first in range(0, number, TOGETHER):
            grave.bury(min(TOGETHER, number - first))
            say(f"{len(grave.sent)} of {number} bodies have stood still")
        facts = gather(grave.postgres.conninfo, grave.witness)
        rows, broken = judge(facts, grave.sent, grave.result)
    return Report("zombies", time.monotonic() - started, rows, broken)


class Graveyard:
    """One worker whose bodies stand still, and one that takes their runs over."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.witness = directory / "witness"
        self.witness.mkdir(parents=True)
        # PostgreSQL runs as another user where we are root.
        directory.chmod(0o755)
        self._directory = directory
        self.postgres = Postgres(directory / "postgres")
        stack.callback(self.postgres.close)
        broker = Redis(directory / "broker")
        stack.callback(broker.close)
        with psycopg.connect(self.postgres.conninfo, autocommit=True) as connection:
            connection.execute(chaos_app.TABLE)
        self._settings = {
            "broker_url": broker.url,
            "result_backend": broker.url,
            "broker_connection_retry_on_startup": True,
            "idem_database_url": self.postgres.url,
            "idem_lease": LEASE,
        }
        self._sender = Celery(chaos_app.NAMESPACE, set_as_current=False)
        self._sender.conf.update(self._settings)
        stack.callback(self._sender.close)
        self._victim = self._worker(stack, "victim", TOGETHER)
        self._worker(stack, "winner", 4)
        #: Task id of each, and the way in which it is to end.
        self.sent: dict[str, str] = {}

    def _worker(self, stack: ExitStack, name: str, children: int) -> Worker:
        env = {
            chaos_app.SETTINGS: json.dumps(self._settings),
            chaos_app.EFFECTS: self.postgres.conninfo,
            witness.FOLDER: str(self.witness),
        }
        options = ("--concurrency", str(children), "--queues", name)
        return stack.enter_context(
            Worker(APP, self._directory, *LONELY, *options, name=name, env=env)
        )

    def bury(self, number: int) -> None:
        """Some more bodies that stand still, and go on too late."""
        gate = self._directory / f"gate{len(self.sent)}"
        ids = {uuid4().hex: WAYS[i % len(WAYS)] for i in range(number)}
        for task_id, way in ids.items():
            self._send("victim", task_id, gate, way)
        self._wait_for("bodies at the gate", lambda: _keys(ids) <= self._at_the_gate())
        self._victim.pause()
        self._wait_for("the end of their leases", lambda: not self._live_leases(ids))
        for task_id, way in ids.items():
            self._send("winner", task_id, gate, way)
        self._wait_for("their successors", lambda: self._count(ids, "state = 4") == number)
        gate.touch()
        self._victim.resume()
        self._wait_for("refusals", lambda: _keys(ids) <= self._told("refused"))
        # The message was put back; its copy is a no-op, and then nothing more comes.
        self._wait_for("the last copies", lambda: _keys(ids) <= self._told("duplicate"))
        self.sent |= ids

    def _send(self, queue: str, task_id: str, gate: Path, way: str) -> None:
        told = self._sender.signature("chaos.told", kwargs={"key": task_id}, queue="winner")
        self._sender.send_task(
            "chaos.zombie", (str(gate), way), task_id=task_id, queue=queue, link=told
        )

    def result(self, task_id: str) -> Any:
        """What is stored for it."""
        return AsyncResult[Any](task_id, app=self._sender).result

    def _wait_for(self, what: str, predicate: Callable[[], bool]) -> None:
        wait_for(predicate, PATIENCE, what)

    def _at_the_gate(self) -> set[str]:
        return {line["key"] for line in witness.read_all(self.witness) if line["kind"] == "waits"}

    def _live_leases(self, ids: dict[str, str]) -> int:
        rows = read(
            self.postgres.conninfo,
            "SELECT 1 FROM celery_idem_runs r JOIN celery_idem_leases l ON l.id = r.lease_id"
            " WHERE r.run_key = ANY(%s) AND l.expires_at > now()",
            sorted(_keys(ids)),
        )
        return len(rows)

    def _count(self, ids: dict[str, str], condition: str) -> int:
        statement = f"SELECT 1 FROM celery_idem_runs WHERE run_key = ANY(%s) AND {condition}"
        return len(read(self.postgres.conninfo, statement, sorted(_keys(ids))))

    def _told(self, kind: str) -> set[str]:
        statement = "SELECT run_key FROM celery_idem_history WHERE kind = %s"
        return {row["run_key"] for row in read(self.postgres.conninfo, statement, kind)}


def _keys(ids: dict[str, str]) -> set[str]:
    return {f"{chaos_app.NAMESPACE}:chaos.zombie[{task_id}]" for task_id in ids}


def judge(
    facts: Facts, sent: dict[str, str], result: Callable[[str], Any]
) -> tuple[list[tuple[str, str, str]], list[str]]:
    """The rows of the table, and what does not hold."""
    broken: list[str] = []
    counts: Counter[str] = Counter()
    for task_id, way in sent.items():
        (key,) = _keys({task_id: way})
        run = facts.runs[key]
        told = [row["detail"] for row in facts.effects if row["key"] == task_id]
        effects = [row["fence"] for row in facts.effects if row["key"] == key]
        found = {
            "refused": bool(facts.lines("refused", key)),
            "run as its winner left it": (run["state"], run["fence"]) == (4, 2),
            "result of the winner": result(task_id) == WINNER,
            "callback of the winner alone": told == [WINNER],
            "effect of the winner alone": effects == [2],
        }
        counts.update(what for what, holds in found.items() if holds)
        wrong = [what for what, holds in found.items() if not holds]
        if wrong:
            broken.append(f"{key} ({way}): not {', not '.join(wrong)}; {told} {result(task_id)!r}")
    rows = [("stopped in mid-body until taken over", str(len(sent)), ", ".join(WAYS))]
    rows += [(what, f"{counts[what]}", f"of {len(sent)}") for what in found] if sent else []
    return rows, broken[:NAMED]
