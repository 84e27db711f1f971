"""An app whose beats have the scheduler of another project.

Owns: the task that says which entry and slot it was executed for, also if its message is plain.
Must not know: which scheduler publishes it.
"""

from __future__ import annotations

from typing import Any

from celery_idem import IdempotentTask, current_run
from tests.integration.beat_apps.base import effect, make_app

app = make_app()


@app.task(name="contrib.note", base=IdempotentTask)
def note(*args: Any, **kwargs: Any) -> None:
    """One row more."""
    run = current_run()
    effect(run.entry, run.slot.isoformat() if run.slot else None, {"args": args, "kwargs": kwargs})
