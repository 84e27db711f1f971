"""An app with a task for each thing that a body can do.

Owns: bodies; each leaves a row in `effects` whenever it runs. Must not know: which test uses them.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Task
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from kombu.serialization import register

from celery_idem import IdempotentTask, critical_section, current_run
from tests.integration.apps.base import effect, make_app, wait_at

app = make_app()
if importlib.util.find_spec("pydantic"):
    models = importlib.import_module("tests.integration.apps.models")
    models.add_task(app)


@app.task(name="tests.plain")
def plain(text: str = "") -> str:
    """A plain task beside the others."""
    effect("plain", text)
    return text


@app.task(base=IdempotentTask, name="tests.note")
def note(text: str = "") -> str:
    effect("note", text)
    return text


@app.task(base=IdempotentTask, name="tests.add")
def add(*numbers: int) -> int:
    effect("add", numbers)
    return sum(numbers)


@app.task(base=IdempotentTask, name="tests.total")
def total(numbers: list[int]) -> int:
    effect("total", sorted(numbers))
    return sum(numbers)


@app.task(base=IdempotentTask, name="tests.size")
def size(parts: list[Any]) -> int:
    effect("size", parts)
    return len(parts)


@app.task(base=IdempotentTask, name="tests.shout")
def shout(text: str) -> str:
    effect("shout", text)
    return text.upper()


@app.task(base=IdempotentTask, name="tests.gated")
def gated(gate: str) -> str:
    effect("started", gate)
    wait_at(gate)
    effect("ended", gate)
    return gate


@app.task(base=IdempotentTask, name="tests.keyed", idem_key=["customer", "month"])
def keyed(customer: int, month: str = "may", gate: str | None = None) -> str:
    """One run for each customer and month, however often it is asked for."""
    effect("keyed", f"{customer} {month}")
    if gate:
        wait_at(gate)
    return f"{customer} {month}"


@app.task(
    base=IdempotentTask,
    name="tests.replayed",
    idem_key="{name}",
    store_result=True,
    on_duplicate="replay",
)
def replayed(name: str, value: Any = None, gate: str | None = None) -> Any:
    """Whoever asks for the same name gets the same result."""
    if value in ("transaction", "large, in a transaction"):
        with current_run().transaction():
            effect("replayed", name)
    else:
        effect("replayed", name)
    if gate:
        wait_at(gate)
    if value == "error":
        raise ValueError(name)
    if value in ("large", "large, in a transaction"):
        return "x" * 70_000
    if value == "object":
        return object()
    return {"name": name, "value": value}


@app.task(base=IdempotentTask, name="tests.ignored", idem_key="{name}", on_duplicate="ignore")
def ignored(name: str) -> str:
    effect("ignored", name)
    return name


@app.task(base=IdempotentTask, bind=True, name="tests.rekeyed", idem_key="{number}")
def rekeyed(self: Any, number: int) -> Any:
    """Is retried with other arguments."""
    effect("rekeyed", number)
    if self.request.retries == 0:
        raise self.retry(args=(number + 1,), countdown=0)
    return [number, current_run().key.text.partition("tests.")[2]]


@app.task(base=IdempotentTask, bind=True, name="tests.replaces_itself", idem_key=["name"])
def replaces_itself(self: Any, name: int, page: int) -> Any:
    """Page by page, each in the place of the one before."""
    effect("replaces_itself", page)
    if page < 3:
        raise self.replace(replaces_itself.s(name, page + 1))
    return page


@app.task(base=IdempotentTask, name="tests.careless", check_payload=False)
def careless(text: str) -> str:
    effect("careless", text)
    return text


@app.task(base=IdempotentTask, name="tests.monthly", idem_key="{customer}", idem_grain="month")
def monthly(customer: int) -> None:
    effect("monthly", customer)


@app.task(base=IdempotentTask, name="tests.single", idem_key="{name}", idem_scope="until_done")
def single(name: str, gate: str | None = None, fails: bool = False) -> str:
    """One at a time for each name."""
    effect("single", name)
    if gate:
        wait_at(gate)
    if fails:
        raise ValueError(name)
    return name


@app.task(
    base=IdempotentTask,
    name="tests.queued",
    idem_key="{name}",
    idem_scope="until_start",
    idem_publish="once",
)
def queued(name: str, gate: str | None = None) -> str:
    """One that waits for each name."""
    effect("queued", name)
    if gate:
        wait_at(gate)
    return name


@app.task(
    base=IdempotentTask,
    name="tests.queued_locked",
    idem_key="{name}",
    idem_scope="until_start",
    idem_publish="once",
    idem_lock="queued:{name}",
)
def queued_locked(name: str, gate: str | None = None) -> str:
    """Waits for its lock before it begins."""
    effect("queued_locked", name)
    if gate:
        wait_at(gate)
    return name


@app.task(base=IdempotentTask, name="tests.changes", idem_key="{name}", idem_publish="once")
def changes(name: str, items: list[int]) -> str:
    """Changes its arguments, and then cannot go on."""
    items.append(len(items))
    effect("changes", name)
    with critical_section(f"changes:{name}", wait=0):
        return name


@app.task(
    bind=True,
    base=IdempotentTask,
    name="tests.daily",
    idem_key="{name}",
    idem_grain="day",
    idem_publish="once",
)
def daily(self: Any, name: str) -> str:
    """Needs a retry."""
    effect("daily", name)
    if not self.request.retries:
        raise self.retry(countdown=0)
    return name


@app.task(base=IdempotentTask, name="tests.lingers", idem_key="{name}", idem_scope="until_done")
def lingers(name: str, seconds: float) -> None:
    """Takes its time to end when it is killed."""
    effect("lingers begins", name)
    try:
        time.sleep(60 if seconds else 0)
    finally:
        time.sleep(seconds)
        effect("lingers ends", name)


@app.task(base=IdempotentTask, name="tests.seldom", idem_key="{name}", idem_period=300)
def seldom(name: str) -> str:
    effect("seldom", name)
    return name


@app.task(base=IdempotentTask, name="tests.gated_bound")
def gated_bound(gate: str) -> str:
    """Returns the key of its run, as it sees it after others have run beside it."""
    effect("started", gate)
    wait_at(gate)
    return current_run().key.text


@app.task(base=IdempotentTask, bind=True, name="tests.bound")
def bound(self: Task[Any, Any], text: str) -> list[Any]:
    run = current_run()
    effect("bound", text)
    return [self.request.id, run.key.text, run.attempt, run.fence]


@app.task(base=IdempotentTask, name="tests.fails")
def fails(text: str = "as asked") -> None:
    effect("fails")
    raise ValueError(text)


@app.task(base=IdempotentTask, bind=True, max_retries=3, name="tests.retries")
def retries(self: Task[Any, Any], times: int, countdown: float = 0) -> int:
    """Asks for a retry `times` times."""
    effect("try")
    if self.request.retries < times:
        raise self.retry(exc=OSError("not yet"), countdown=countdown)
    return self.request.retries


@app.task(base=IdempotentTask, bind=True, name="tests.gated_retry")
def gated_retry(self: Task[Any, Any], gate: str) -> int:
    effect("try")
    if not self.request.retries:
        wait_at(gate)
        effect("retrying")
        raise self.retry(countdown=0)
    return self.request.retries


@app.task(base=IdempotentTask, bind=True, name="tests.retries_and_goes_on")
def retries_and_goes_on(self: Task[Any, Any]) -> str:
    effect("try")
    if not self.request.retries:
        self.retry(countdown=0, throw=False)
        effect("after")
    return f"try {self.request.retries}"


@app.task(
    base=IdempotentTask,
    bind=True,
    name="tests.autoretry",
    autoretry_for=(OSError,),
    default_retry_delay=0,
    max_retries=3,
)
def autoretry(self: Task[Any, Any], times: int) -> int:
    effect("try")
    if self.request.retries < times:
        raise OSError(f"failure {self.request.retries}")
    return self.request.retries


@app.task(base=IdempotentTask, name="tests.raises_retry")
def raises_retry() -> None:
    """A Retry that nobody has published."""
    effect("raises_retry")
    raise Retry("own")


@app.task(base=IdempotentTask, bind=True, name="tests.ignores")
def ignores(self: Task[Any, Any]) -> None:
    effect("ignores")
    self.update_state(state="CUSTOM", meta={"by": "the body"})
    raise Ignore("own")


@app.task(base=IdempotentTask, bind=True, name="tests.rejects")
def rejects(self: Task[Any, Any], requeue: bool) -> str:
    """Rejects its message: each one, or only the first if it is to come again."""
    info = self.request.delivery_info or {}
    effect("rejects", f"redelivered {bool(info.get('redelivered'))}")
    if requeue and info.get("redelivered"):
        return "came again"
    raise Reject("own", requeue=requeue)


@app.task(base=IdempotentTask, bind=True, name="tests.replaces")
def replaces(self: Task[Any, Any], times: int) -> str:
    """Replaces itself by itself, and in the end by another task."""
    effect("replaces", times)
    if times:
        raise self.replace(replaces.s(times - 1))
    raise self.replace(note.s("replaced"))


@app.task(base=IdempotentTask, name="tests.too_slow", soft_time_limit=1)
def too_slow() -> None:
    effect("too_slow")
    while True:
        time.sleep(0.05)


@app.task(base=IdempotentTask, name="tests.cleans_up", soft_time_limit=1)
def cleans_up() -> str:
    """Catches its soft time limit."""
    effect("cleans_up")
    try:
        while True:
            time.sleep(0.05)
    except SoftTimeLimitExceeded:
        return "cleaned up"


@app.task(base=IdempotentTask, name="tests.brief", soft_time_limit=1)
def brief(text: str = "") -> str:
    """Takes no time at all."""
    effect("brief")
    return text


class Odd(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@app.task(base=IdempotentTask, name="tests.odd")
def odd() -> None:
    effect("odd")
    raise Odd


@app.task(base=IdempotentTask, name="tests.hangs", time_limit=1)
def hangs() -> None:
    effect("hangs")
    while True:
        time.sleep(0.05)


@app.task(base=IdempotentTask, name="tests.started", track_started=True)
def started(gate: str) -> None:
    effect("started")
    wait_at(gate)
    raise ValueError("after it has started")


@app.task(base=IdempotentTask, name="tests.silent", ignore_result=True)
def silent() -> str:
    effect("silent")
    return "nobody hears it"


@app.task(base=IdempotentTask, name="tests.unclaimed", on_database_error="run")
def unclaimed() -> None:
    """Rather twice than not at all."""
    effect("unclaimed")


@app.task(base=IdempotentTask, name="tests.calls")
def calls(depth: int) -> int:
    """Calls itself and another task as plain functions."""
    effect("calls", depth)
    note("called as a function")
    return 1 + (calls(depth - 1) if depth else 0)


@app.task(base=IdempotentTask, name="tests.spins")
def spins(file: str) -> None:
    """Computes without a pause until there is a file: no other greenlet gets a turn."""
    effect("started")
    while not Path(file).exists():
        sum(range(1000))
    effect("ended")


def die() -> None:
    """As when the machine has no memory left."""
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(base=IdempotentTask, name="tests.dies")
def dies(times: int) -> str:
    """Takes its process with it in the first `times` attempts."""
    effect("dies")
    if current_run().attempt <= times:
        die()
    return "survived"


@app.task(base=IdempotentTask, name="tests.dies_always", max_attempts=2)
def dies_always() -> None:
    effect("dies")
    die()


@app.task(base=IdempotentTask, bind=True, name="tests.formed")
def formed(self: Task[Any, Any], value: Any) -> None:
    """Tells what came, and how it was packed; is retried once."""
    effect("try", f"{value} {self.request.get('compression')}")
    if not self.request.retries:
        raise self.retry(countdown=0)


def _cannot_write(value: Any) -> str:
    raise TypeError("sealed messages can only be read here")


register("sealed", _cannot_write, json.loads, "application/x-sealed", "utf-8")


@app.task(base=IdempotentTask, name="tests.dies_once", on_crash="abandon")
def dies_once() -> None:
    """Rather not at all than twice."""
    effect("dies")
    die()
