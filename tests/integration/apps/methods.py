"""Tasks whose classes have methods of their own, or whose bodies hand on what they got.

Owns: bodies; each leaves a row in `effects` whenever it runs. Must not know: which test uses them.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from celery import group

from celery_idem import IdempotentTask, critical_section
from tests.integration.apps.base import effect, make_app, wait_at

app = make_app()


class Straight(IdempotentTask):
    """Calls the body itself, as in the documentation of Flask."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        effect("around")
        return self.run(*args, **kwargs)


class Polite(IdempotentTask):
    """Leaves it to the class above."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        effect("around")
        return super().__call__(*args, **kwargs)


class Prepared(IdempotentTask):
    """Does something beforehand."""

    abstract = True

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        effect("before_start")
        if args[0] == "fails":
            raise ValueError("not today")


class Politer(Polite):
    """Of a class whose tasks are bound already, on that of others."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        effect("around all")
        return super().__call__(*args, **kwargs)

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        super().before_start(task_id, args, kwargs)
        effect("before_start")


def body(self: Any, depth: int) -> Any:
    effect("body", depth)
    if depth:
        # As a plain function, which makes no run.
        self(depth - 1)
    return self.request.id


straight = app.task(base=Straight, bind=True, name="tests.straight")(body)
polite = app.task(base=Polite, bind=True, name="tests.polite")(body)


class Registered(Politer):
    """A task by its class."""

    name = "tests.registered"

    def run(self, depth: int) -> Any:
        return body(self, depth)


class Inheriting(Registered):
    """Another one, whose base was bound before."""

    name = "tests.inheriting"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        effect("around it")
        return super().__call__(*args, **kwargs)

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        effect("first of all")
        super().before_start(task_id, args, kwargs)


registered = app.register_task(Registered())
inheriting = app.register_task(Inheriting())


@app.task(base=Prepared, name="tests.prepared")
def prepared(how: str) -> str:
    effect("body", how)
    return how


@app.task(base=IdempotentTask, name="tests.cancelled")
def cancelled() -> None:
    effect("body")
    raise asyncio.CancelledError("nobody waits for it")


@app.task(base=IdempotentTask, bind=True, name="tests.headed")
def headed(self: Any) -> Any:
    effect("body", (self.request.headers or {}).get("mine"))
    if self.request.retries == 0:
        raise self.retry(countdown=0, headers={"mine": 1})
    return self.request.headers.get("mine")


@app.task(base=IdempotentTask, bind=True, name="tests.passes_on")
def passes_on(self: Any) -> str:
    effect("body")
    child: Any = prepared.apply_async(("child",), headers=dict(self.request.headers or {}))
    return str(child.id)


@app.task(base=IdempotentTask, bind=True, name="tests.walks")
def walks(self: Any, left: int) -> None:
    """Sends itself again, with all the headers that it has got."""
    effect("walks", left)
    if left:
        walks.apply_async((left - 1,), headers=dict(self.request.headers or {}))


@app.task(bind=True, name="tests.between")
def between(self: Any, customer: int) -> Any:
    """A plain task that replaces itself by the one whose place it has."""
    return self.replace(returns_to_itself.si(customer, True))


@app.task(base=IdempotentTask, bind=True, name="tests.returns_to_itself", idem_key=["customer"])
def returns_to_itself(self: Any, customer: int, is_last: bool = False) -> Any:
    effect("returns_to_itself", is_last)
    return "done" if is_last else self.replace(between.si(customer))


@app.task(base=IdempotentTask, name="tests.page")
def page(number: int) -> int:
    return number


@app.task(base=IdempotentTask, name="tests.total")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(base=IdempotentTask, bind=True, name="tests.crawl")
def crawl(self: Any, found: int | None = None) -> Any:
    """Is the last one of what takes its place."""
    effect("crawl", found)
    if found is None:
        return self.replace(group(page.s(1), page.s(2)) | total.s() | crawl.s())
    return found


@app.task(base=IdempotentTask, bind=True, name="tests.turns")
def turns(self: Any, left: int) -> Any:
    effect("turns", left)
    return self.replace(turns.si(left - 1)) if left else "turned"


@app.task(base=IdempotentTask, name="tests.bill", idem_key=["customer"])
def bill(customer: int) -> int:
    effect("bill", customer)
    return customer


@app.task(base=IdempotentTask, bind=True, name="tests.ignored")
def ignored(self: Any) -> Any:
    effect("body")
    return self.replace(prepared.s("instead").set(countdown=3600))


@app.task(base=IdempotentTask, name="tests.holds")
def holds(gate: str) -> None:
    with critical_section("desk"):
        effect("in")
        wait_at(gate)


@app.task(base=IdempotentTask, name="tests.collects")
def collects(items: list[str]) -> list[str]:
    """Changes what it got, and then has to come again."""
    items.append("header")
    effect("body", ",".join(items))
    with critical_section("desk"):
        return items


@app.task(base=IdempotentTask, name="tests.dies", max_retries=1, default_retry_delay=0)
def dies() -> None:
    effect("body")
    os.kill(os.getpid(), signal.SIGKILL)


# Of Celery 5.7; others do not know it.
dies.retry_on_worker_lost = True  # type: ignore[attr-defined]
