"""An app whose worker dies, once for each task id, between the end of a run and what follows it.

Owns: tasks that tell at which fact of theirs the process is to be killed. Must not know: the tests.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from celery import current_task
from celery import signals as celery_signals

from celery_idem import IdempotentTask, current_run
from celery_idem import signals as facts
from tests.integration.apps.base import effect, once, record_signals
from tests.integration.apps.tasks import app

__all__ = ["app"]

record_signals()


@app.task(base=IdempotentTask, bind=True, name="tests.fragile")
def fragile(self: Any, number: int, fact: str) -> int:
    """Its worker dies at `fact` of this task."""
    effect("fragile", number)
    self.request.dies_at = fact
    if fact == "run_failed":
        raise ValueError(f"not {number}")
    return number


@app.task(base=IdempotentTask, bind=True, name="tests.fragile_unheard", ignore_result=True)
def fragile_unheard(self: Any, fact: str) -> None:
    """The same, and nobody waits for its result."""
    effect("fragile")
    self.request.dies_at = fact


@app.task(base=IdempotentTask, bind=True, name="tests.fragile_transaction")
def fragile_transaction(self: Any, number: int) -> int:
    """Its worker dies when its transaction has been committed."""
    with current_run().transaction():
        effect("fragile", number)
        self.request.dies_at = "run_succeeded"
    return number


@app.task(base=IdempotentTask, bind=True, name="tests.fragile_sender")
def fragile_sender(self: Any, number: int) -> int:
    """Its worker dies after its callbacks were sent, and before its result is stored."""
    with current_run().transaction():
        effect("fragile", number)
    self.request.dies_at = "after_task_publish"
    return number


def die_after_publish(**_: Any) -> None:
    if current_task.request.id:
        die_at("after_task_publish")(current_task)


def die_at(fact: str) -> Any:
    def receiver(sender: Any, **_: Any) -> None:
        request = sender.request
        if getattr(request, "dies_at", None) == fact and once(f"death of {request.id}"):
            os.kill(os.getpid(), signal.SIGKILL)

    return receiver


facts.run_succeeded.connect(die_at("run_succeeded"), weak=False)
facts.run_failed.connect(die_at("run_failed"), weak=False)
celery_signals.after_task_publish.connect(die_after_publish, weak=False)
celery_signals.task_success.connect(die_at("task_success"), weak=False)
