"""The shop's periodic tasks: each costs money, or a customer, when it happens twice.

Owns: what is done. There is no lock, no flag and no "already done?" in here: that is the point.
Must not know: how many beats and workers there are, and which of them runs this.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone

from celery.signals import worker_init

from celery_idem import current_run
from example_project import effects
from example_project.app import IDEM, app
from example_project.schedule import grid_slot
from example_project.settings import BILL_CENTS

POINTS = 10
#: seconds that a letter, or an answer of a payment service, takes
LATENCY = 0.4
#: seconds that it takes to add up a report
ADDING_UP = 2.0


@app.task(name="shop.send_reminder")
def send_reminder() -> None:
    """Write to the customer whose invoice is overdue: into the outbox, which the mailer empties."""
    record("send-reminder", "e-mail to customer 17: invoice 2031 is overdue")


@app.task(name="shop.award_points")
def award_points() -> None:
    """Add this period's points to the customer's account: they are as good as money."""
    record("award-points", "points for customer 17", POINTS)


@app.task(name="shop.hourly_report")
def hourly_report() -> None:
    """Tell the shopkeeper what was charged so far."""
    charged = effects.total("daily-bill") / 100
    record("hourly-report", f"e-mail to the shopkeeper: {charged:.2f} charged", takes=ADDING_UP)


@app.task(name="shop.daily_bill")
def daily_bill() -> None:
    """Charge the subscription.

    The row in the books is written once. A call to a payment service is another matter, as it is an
    effect outside of our database: should the worker die after the call and before the commit, the
    run is repeated. So the run key goes along as the service's idempotency key, and the service,
    too, charges once.
    """
    record("daily-bill", "charge card 4242 of customer 17", BILL_CENTS)


def record(entry: str, what: str, amount: int = 0, takes: float = LATENCY) -> None:
    """Do it: here, a pause stands for the work, and a row in the shop's table for its effect.

    The row and the end of the run are one commit. A worker that dies, at whatever moment, leaves
    both of them or neither, and without them the run is executed again: so there is one row for
    each slot. The work comes first, as a transaction should be short.
    """
    if not IDEM:
        record_plainly(entry, what, amount, takes)
        return
    run = current_run()
    time.sleep(takes)
    with run.transaction() as connection:
        effects.add(connection, entry, run.slot, what, amount, run.key.text)


def record_plainly(entry: str, what: str, amount: int, takes: float) -> None:
    """Do the same in a plain task, for comparison."""
    # It is not told which slot it was sent for: it has to guess by the clock.
    slot = grid_slot(entry, datetime.now(timezone.utc))
    time.sleep(takes)
    with effects.engine().begin() as connection:
        effects.add(connection, entry, slot, what, amount, None)


@worker_init.connect
def make_table(**_: object) -> None:
    """See to it that the table is there before a task writes to it."""
    effects.engine()
