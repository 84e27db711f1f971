"""A job of two seconds in the scheduler of somebody else: one process of several.

Owns: the program as its author would write it, with and without `Ledger.idempotent`, and tables
without any constraint that show how often it was called and took effect.
Must not know: what is tested.

    python -m tests.integration.outside_apps.periodic URL SCHEDULER [--plain] [--hold FILE]

While FILE is there, a body says so and stands still before its effect.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import schedule
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import BigInteger, Column, Connection, Integer, MetaData, Table, create_engine

from celery_idem import IdemError, Ledger, current_run
from celery_idem.clock import UTC

SECONDS = 2
LEASE = 3.0
SCHEDULERS = ["schedule", "interval", "interval-coalesce", "cron", "cron-coalesce"]

metadata = MetaData()
effects = Table("effects", metadata, Column("slot", BigInteger), Column("pid", Integer))
#: In which interval a call began, and in which it ended.
calls = Table(
    "calls",
    metadata,
    Column("began", BigInteger),
    Column("ended", BigInteger),
    Column("pid", Integer),
)

over = threading.Event()


def interval(at: datetime | None = None) -> int:
    """The number of the interval that holds this moment."""
    return int((at or datetime.now(UTC)).timestamp()) // SECONDS


class Program:
    """What the processes have in common."""

    def __init__(self, url: str, hold: Path | None, plain: bool) -> None:
        self.engine = create_engine(url)
        self.hold = hold
        ledger = Ledger.from_url(url)
        decorated = ledger.idempotent(every=f"{SECONDS} seconds", key="job", lease=LEASE)
        self.job: Callable[[], Any] = self.effect if plain else decorated(self.body)

    def call(self) -> None:
        """What the scheduler calls."""
        began = interval()
        try:
            self.job()
        except IdemError as error:
            print("the ledger:", error)
            return
        row = {"began": began, "ended": interval(), "pid": os.getpid()}
        with self.engine.begin() as connection:
            connection.execute(calls.insert().values(row))

    def effect(self) -> None:
        """Without us."""
        with self.engine.begin() as connection:
            self.write(connection, interval())

    def body(self) -> None:
        """With us."""
        run = current_run()
        number = interval(run.slot)
        while self.hold is not None and self.hold.exists():
            print(f"in the body of {number}, attempt {run.attempt}")
            time.sleep(0.05)
        with run.transaction() as connection:
            self.write(connection, number)

    def write(self, connection: Connection, number: int) -> None:
        connection.execute(effects.insert().values(slot=number, pid=os.getpid()))


def by_schedule(call: Callable[[], None]) -> None:
    schedule.every(SECONDS).seconds.do(call)
    print("ready")
    while not over.is_set():
        schedule.run_pending()
        time.sleep(0.02)


def by_apscheduler(call: Callable[[], None], trigger: str, coalesce: bool) -> None:
    scheduler = BackgroundScheduler(timezone="UTC")
    when = {"second": f"*/{SECONDS}"} if trigger == "cron" else {"seconds": SECONDS}
    scheduler.add_job(call, trigger, coalesce=coalesce, **when)
    scheduler.start()
    print("ready")
    over.wait()
    scheduler.shutdown(wait=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("scheduler", choices=SCHEDULERS)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--hold", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    call = Program(options.url, options.hold, options.plain).call
    trigger, _, coalesce = options.scheduler.partition("-")
    if trigger == "schedule":
        by_schedule(call)
    else:
        by_apscheduler(call, trigger, bool(coalesce))


if __name__ == "__main__":
    main()
